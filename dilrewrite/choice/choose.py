"""Chooses a form for each site: by its timings where there are some, in the order of an estimate otherwise.

The estimate is of multiply-adds on data and elements moved. It says what to time first, and takes no form by itself
except where dilation has to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from dilrewrite.choice.fitted import Fitted
from dilrewrite.choice.reason import Condition, Reason, Why
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import AddKernelAxis, CoreConv, Fragment
from dilrewrite.forms.geometry import ConvGeometry, Limit
from dilrewrite.forms.pools import PoolGeometry, pool_forms
from dilrewrite.forms.regions import region_forms
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.forms.strategies import (
    BACK_TO_FLOAT,
    FOLD,
    PLAIN_CONV,
    Refusal,
    Strategy,
    _back_to_float,
    _fold,
    _plain_conv,
    plan,
    spelled,
    strategies,
    with_layout,
    with_max_dilation,
)
from dilrewrite.sites import Place, Site
from dilrewrite.splice import floats
from dilrewrite.timing.outcome import FormTiming, Outcome

MULTIPLY_ADDS_PER_ELEMENT = 16
"""How many multiply-adds are taken to cost as much as writing one element: an assumption, not a measurement."""

ASSUMED_EXTENTS = {1: 1024, 2: 64, 3: 32}
"""Extents that stand for unknown ones in an estimate, by rank (or four times the kernel's span, if more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A form that applies to a site, and its estimated cost in multiply-adds.

    `strategy`: its name, with settings where another one of that name stands beside it. `spelling` names it with its
    settings in any case, as `--strategy` takes it. `covers`: the nodes that go; of
    candidates that share one only one can be taken. `holds_for`: what its exactness hangs on; a form for which there
    is something is taken to eliminate dilation and when asked for, never otherwise. `only_prunes`: see `Strategy`.
    `fitted`: how what it writes fits the target, where there is one.
    """

    strategy: str
    spelling: str
    fragment: Fragment
    multiply_adds: int
    elements_moved: int
    covers: frozenset[Place] = frozenset()
    holds_for: tuple[Condition, ...] = ()
    only_prunes: bool = False
    fitted: Fitted | None = None

    @property
    def cost(self) -> float:
        """Return the estimate."""
        return self.multiply_adds + MULTIPLY_ADDS_PER_ELEMENT * self.elements_moved

    @property
    def order(self) -> tuple[bool, bool, float]:
        """Return the sorting key: the estimate, but forms last that fewer devices run or that hold for less input.

        A 2-D Conv as a 3-D one is of no use to a device without 3-D convolution.
        """
        convs = [core for core in self.fragment.core if isinstance(core, CoreConv)]
        lifted = any(len(core.kernel) > 2 and any(isinstance(e, AddKernelAxis) for e in core.weight) for core in convs)
        return lifted, bool(self.holds_for), self.cost

    @property
    def fit_order(self) -> tuple[float, ...]:
        """Return the sorting key for a target: how it fits, the estimate with its work, the number of nodes."""
        assert self.fitted is not None, "it was held to a target"
        return (*self.fitted.order, *self.order[:2], self.cost_on_target, len(self.fragment.steps))

    @property
    def cost_on_target(self) -> float:
        """Return the estimate, with what the target's compiler makes of a dilation that stays."""
        more = self.fitted.work - 1 if self.fitted is not None else 0.0
        return self.cost + more * self.multiply_adds


def holds_for(site: Site, strategy: Strategy, fragment: Fragment) -> tuple[Condition, ...]:
    """Return what the exactness of a form of `site`, which the strategy planned, hangs on."""
    conditions = []
    largest = isinstance(site.meaning, PoolGeometry) and site.meaning.kind == "max"
    if (strategy.finite_inputs_only or largest) and not site.part.on_integers:
        conditions.append(Condition.FINITE_INPUTS)
    transposed = site.geometry.transposed is not None  # it multiplies no padding, and the Conv in its place does
    pads = transposed or site.geometry.explicit().data_share() != 1
    if strategy.skips_padding != transposed and pads and not site.fixed_weights:
        conditions.append(Condition.FINITE_WEIGHTS)
    if site.geometry.element == "float16" and fragment.adds:
        conditions.append(Condition.FLOAT16_SUMS)
    return tuple(conditions)


def assumed(geometry: ConvGeometry) -> ConvGeometry:
    """Return the geometry with typical sizes for everything unknown."""
    extents = tuple(
        extent if extent is not None else max(ASSUMED_EXTENTS[geometry.rank], 4 * geometry.span(axis))
        for axis, extent in enumerate(geometry.extents)
    )
    inside, outside = (channels or 16 * geometry.group for channels in (geometry.in_channels, geometry.out_channels))
    return replace(geometry, batch=geometry.batch or 1, in_channels=inside, out_channels=outside, extents=extents)


def assumed_chain(chain: Chain) -> Chain:
    """Return the chain with typical sizes for everything unknown."""
    rank = len(chain.block) or 1

    def size(place: int) -> int:
        return 1 if place == 0 else 16 if place == 1 else ASSUMED_EXTENTS[rank]

    shapes = {
        name: tuple(size(place) if known is None else known for place, known in enumerate(shape))
        for name, shape in chain.shapes.items()
    }
    convs = {
        place: replace(geometry, batch=geometry.batch or 1, extents=tuple(e or size(2) for e in geometry.extents))
        for place, geometry in chain.convs.items()
    }
    return replace(chain, shapes=shapes, convs=convs)


def _assumed(meaning: object, site: Site) -> object:
    """Return what a site means with typical sizes."""
    if isinstance(meaning, Chain):
        return assumed_chain(meaning)
    typical = assumed(site.geometry)
    return replace(meaning, geometry=typical) if isinstance(meaning, Sandwich) else typical


def candidates(site: Site, offered: Mapping[str, Strategy], limit: Limit = 1) -> tuple[list[Candidate], list[Refusal]]:
    """Return the forms that apply to a site, the one to try first in front, and the refusals of the others."""
    found: list[Candidate] = []
    refused: list[Refusal] = []
    for name, strategy in offered.items():
        chosen = with_max_dilation(strategy, limit) if limit != 1 else strategy
        how: dict[str, Any] = {"storage": site.storage, "fixed_weights": site.fixed_weights}
        fragment = sized = plan(name, chosen, site.meaning, site.opset, **how)
        if isinstance(fragment, Fragment) and fragment.in_floats and (reason := floats.refusal(site.part)) is not None:
            fragment = Refusal(name, reason)
        unknown = isinstance(fragment, Fragment) and None in (fragment.multiply_adds, fragment.elements_moved)
        if unknown:
            typical = _assumed(site.meaning, site)
            sized = plan(name, chosen, typical, site.opset, **how)
        if isinstance(fragment, Refusal) or isinstance(sized, Refusal):
            refused.append(next(one for one in (fragment, sized) if isinstance(one, Refusal)))
            continue
        found.append(
            Candidate(
                strategy=name,
                spelling=spelled(name, chosen),
                fragment=fragment,
                multiply_adds=sized.multiply_adds or 0,
                elements_moved=sized.elements_moved or 0,
                covers=site.covers(fragment),
                holds_for=holds_for(site, chosen, fragment) if not isinstance(site.meaning, Chain) else (),
                only_prunes=not isinstance(site.meaning, Chain) and chosen.only_prunes,
            )
        )
    return sorted(found, key=lambda candidate: candidate.order), refused


def told_apart(found: Sequence[Candidate]) -> list[Candidate]:
    """Return forms of one name under names of their own, without those that come to the same: the first has the name
    alone, the others have it with their settings.
    """
    apart = list({one.fragment.digest(): one for one in reversed(found)}.values())[::-1]
    return [replace(one, strategy=one.spelling if place else one.strategy) for place, one in enumerate(apart)]


@dataclass
class Planner:
    """Plans sites with the given strategies, each distinct geometry once.

    `own`: forms of Convs with settings of their own, in place of the usual ones of their names; there may be several of
    one name. `eliminates`: beside the usual ones.
    """

    offered: Mapping[str, Strategy]
    max_dilation: int = 1
    own: Sequence[tuple[str, Strategy]] = ()
    eliminates: bool = False
    _known: dict[tuple[object, ...], tuple[list[Candidate], list[Refusal]]] = field(default_factory=dict)

    def candidates(self, site: Site) -> tuple[list[Candidate], list[Refusal]]:
        """Return what `candidates` returns for the site."""
        key = (site.meaning, site.opset, site.storage, site.fixed_weights)
        if key not in self._known:
            every = self.offered.keys() >= strategies().keys()
            offered = _forms_of(site, self.offered) if every else self.offered
            self._known[key] = self._planned(site, offered)
        found, refused = self._known[key]
        return [replace(one, covers=site.covers(one.fragment)) for one in found], list(refused)

    def _planned(self, site: Site, offered: Mapping[str, Strategy]) -> tuple[list[Candidate], list[Refusal]]:
        own = self.own if isinstance(site.meaning, ConvGeometry) else ()
        names = {name: name in offered for name, _ in own}
        found, refused = candidates(site, {n: one for n, one in offered.items() if n not in names}, self.max_dilation)
        for name, usual in names.items():
            settings = [one for other, one in own if other == name]
            settings += [offered[name]] if usual and self.eliminates else []
            tried = [candidates(site, {name: one}, self._limit(one)) for one in settings]
            some = told_apart([one for taken, _ in tried for one in taken])
            found += some
            refused += [] if some else tried[0][1]
        return sorted(found, key=lambda candidate: candidate.order), refused

    def _limit(self, strategy: Strategy) -> Limit:
        """Return the dilation that a form with settings of its own is to leave: 1 for what these say."""
        return self.max_dilation if getattr(strategy, "max_dilation", 1) == 1 else 1


def _forms_of(site: Site, offered: Mapping[str, Strategy]) -> Mapping[str, Strategy]:
    """Return the forms of a pooling, a ConvTranspose or a Conv; `offered`: those of a Conv."""
    if isinstance(site.meaning, PoolGeometry):
        return pool_forms()
    transposed = isinstance(site.meaning, ConvGeometry) and site.meaning.transposed is not None
    return {PLAIN_CONV: _plain_conv.FORM, **offered} if transposed else offered


def site_planner(
    max_dilation: int = 1, layout: str = "depth", *, requantised: bool = False, eliminate: bool = False
) -> Planner:
    """Return what plans Convs; `requantised`: with `back_to_float`, which is undilated to `eliminate`."""
    own: dict[str, Strategy] = {}
    if requantised:
        own[BACK_TO_FLOAT] = _back_to_float.undilated() if eliminate else _back_to_float.FORM
    return Planner(_laid({**strategies(), **own}, layout), max_dilation)


def region_planner(max_dilation: int = 1, layout: str = "depth") -> Planner:
    """Return what plans regions."""
    return Planner(_laid(cast("Mapping[str, Strategy]", region_forms()), layout), max_dilation)


def sandwich_planner(max_dilation: int = 1, layout: str = "depth") -> Planner:
    """Return what plans sandwiches: the dilated Conv that one is, and every form of that."""
    forms = {name: strategy for name, strategy in strategies().items() if name != "keep"}
    return Planner(_laid({FOLD: _fold.FORM, **forms}, layout), max_dilation)


def _laid(forms: Mapping[str, Strategy], layout: str) -> dict[str, Strategy]:
    return {name: with_layout(strategy, layout) for name, strategy in forms.items()}


def worth_timing(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the forms that may replace a Conv to make it faster, in the order of the estimate, none of them twice."""
    return distinct([candidate for candidate in found if candidate.strategy != "keep" and not candidate.holds_for])


def distinct(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without those that come to the same fragment as another.

    Where pruning leaves a kernel of one tap, all forms are that one: it goes by the name of the one that only prunes.
    """
    named = {c.fragment.digest(): c for c in found if c.only_prunes}
    kept: dict[str, Candidate] = {}
    for candidate in found:
        digest = candidate.fragment.digest()
        kept.setdefault(digest, named.get(digest, candidate))
    return list(kept.values())


BROKEN = (Outcome.FAILED, Outcome.WRONG, Outcome.CRASHED, Outcome.TIMED_OUT)
"""Outcomes of forms that did not run."""


def by_time(wanted: Sequence[Candidate], timings: Mapping[str, FormTiming]) -> tuple[list[Candidate], Why]:
    """Return the forms that are faster than the Conv, fastest first, and why; none: keep.

    A form that was not timed is never faster.
    """
    forms = [(candidate, timings[candidate.strategy]) for candidate in wanted if candidate.strategy in timings]
    compared = [(candidate, form.timing) for candidate, form in forms if form.timing is not None]
    compared.sort(key=lambda pair: pair[1].ratio)
    faster = [(candidate, timing) for candidate, timing in compared if timing.faster]
    if faster:
        return [candidate for candidate, _ in faster], Why(reason=Reason.TIMED, timing=faster[0][1])
    if compared:
        best, timing = compared[0]
        reason, missing = Reason.SLOWER if timing.slower else Reason.TIE, len(wanted) - len(compared)
        return [], Why(reason=reason, strategy=best.strategy, timing=timing, number=missing, total=len(wanted))
    if forms:
        return [], Why(reason=Reason.UNTIMED, forms=tuple(form for _, form in forms))
    return [], Why(reason=Reason.UNKNOWN)


def fastest(
    wanted: Sequence[Candidate], timings: Mapping[str, FormTiming], missing: Why | None = None
) -> list[tuple[Candidate, Why]]:
    """Return the forms in the order in which to take one where the Conv has to go, each with the reason.

    `missing`: why a form is not among the `timings`.

    The timed ones first, fastest first, then the others in the order given, then those that failed. Forms that fewer
    devices run or that hold for less input come after all others, however fast they are here; those that fit a target
    less well, too.
    """
    ranked: list[tuple[tuple[float, ...], Candidate, Why]] = []
    for candidate in wanted:
        form = timings.get(candidate.strategy)
        if form is not None and form.timing is not None:
            rank, why = form.timing.ratio, Why(reason=Reason.TIMED, timing=form.timing)
        else:
            rank = 1e9 if form is not None and form.outcome in BROKEN else 1e6
            because = Why(reason=Reason.UNTIMED, forms=(form,)) if form is not None else missing
            why = Why(reason=Reason.ESTIMATED, because=because or Why(reason=Reason.UNKNOWN))
        fit = candidate.fitted.order if candidate.fitted is not None else (0, 0)
        ranked.append(((*fit, *candidate.order[:2], rank), candidate, why))
    ranked.sort(key=lambda entry: entry[0])
    best = (*ranked[0][0][:2], False, False) if ranked else ()
    common = sum(order[:4] == best and why.reason is Reason.TIMED for order, _, why in ranked)
    if common > 1:
        ranked[0] = (*ranked[0][:2], replace(ranked[0][2], reason=Reason.FASTEST, number=common))
    return [(candidate, why) for _, candidate, why in ranked]


def without_dilation(found: list[Candidate], max_dilation: int) -> list[Candidate]:
    """Return the forms that leave no dilation above `max_dilation`, cheapest first, none of them twice."""
    return distinct([candidate for candidate in found if candidate.fragment.max_dilation <= max_dilation])
