"""Chooses a form for each site: by its timings where there are some, in the order of an estimate otherwise.

The estimate is of multiply-adds on data and elements moved. It says what to time first, and takes no form by itself
except where dilation has to go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dilrewrite.forms.fragment import CoreConv, Fragment
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import SKIP_PADDING, Refusal, Strategy, plan, spelled, with_max_dilation
from dilrewrite.sites.find import Site
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.stopwatch import Comparison

MULTIPLY_ADDS_PER_ELEMENT = 16
"""How many multiply-adds are taken to cost as much as writing one element: an assumption, not a measurement."""

INEXACT = frozenset({"zero_fill"})
"""Forms that are exact for finite inputs only."""

LARGEST_FLOAT16 = 65504

ASSUMED_EXTENTS = {1: 1024, 2: 64, 3: 32}
"""Extents that stand for unknown ones in an estimate, by rank (or four times the kernel's span, if more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A form that applies to a site, and its estimated cost in multiply-adds.

    `spelling` names the strategy with its settings, as `--strategy` takes it. `holds_for`: what it is exact for, where
    that is not everything; such a form is taken to eliminate dilation and when asked for, never otherwise.
    """

    strategy: str
    spelling: str
    fragment: Fragment
    multiply_adds: int
    elements_moved: int
    holds_for: str = ""

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
        lifted = self.strategy == "space_to_axis" and any(len(core.kernel) > 2 for core in convs)
        return lifted, bool(self.holds_for), self.cost


def holds_for(site: Site, fragment: Fragment) -> str:
    """Return what a form of `site` is exact for, where that is not everything."""
    conditions = []
    if fragment.strategy in INEXACT:
        conditions.append("finite inputs")
    pads = site.geometry.explicit().data_share() != 1
    if fragment.strategy in SKIP_PADDING and pads and not site.weight.is_constant:
        conditions.append("finite weights, which are not constant here")
    if site.geometry.element == "float16" and fragment.adds:
        conditions.append(f"partial sums in the range of float16: Conv(|x|, |w|) + |b| up to {LARGEST_FLOAT16:,}")
    return " and ".join(conditions)


def assumed(geometry: ConvGeometry) -> ConvGeometry:
    """Return the geometry with typical sizes for everything unknown."""
    extents = tuple(
        extent if extent is not None else max(ASSUMED_EXTENTS[geometry.rank], 4 * geometry.span(axis))
        for axis, extent in enumerate(geometry.extents)
    )
    channels = geometry.in_channels or 16 * geometry.group
    return replace(
        geometry,
        batch=geometry.batch or 1,
        in_channels=channels,
        out_channels=geometry.out_channels or 16 * geometry.group,
        extents=extents,
    )


def candidates(
    site: Site, offered: Mapping[str, Strategy], max_dilation: int = 1
) -> tuple[list[Candidate], list[Refusal]]:
    """Return the forms that apply to a site, the one to try first in front, and the refusals of the others."""
    found: list[Candidate] = []
    refused: list[Refusal] = []
    for name, strategy in offered.items():
        chosen = with_max_dilation(strategy, max_dilation) if max_dilation > 1 else strategy
        fixed = site.weight.is_constant
        fragment = plan(name, chosen, site.geometry, site.opset, storage=site.storage, fixed_weights=fixed)
        if isinstance(fragment, Refusal):
            refused.append(fragment)
            continue
        sized: Fragment | Refusal = fragment
        if fragment.multiply_adds is None or fragment.elements_moved is None:
            sizes = assumed(site.geometry)
            sized = plan(name, chosen, sizes, site.opset, storage=site.storage, fixed_weights=fixed)
        if isinstance(sized, Refusal):
            refused.append(sized)
            continue
        assert sized.multiply_adds is not None, "every size is known or assumed"
        assert sized.elements_moved is not None
        found.append(
            Candidate(
                strategy=name,
                spelling=spelled(name, chosen),
                fragment=fragment,
                multiply_adds=sized.multiply_adds,
                elements_moved=sized.elements_moved,
                holds_for=holds_for(site, fragment),
            )
        )
    return sorted(found, key=lambda candidate: candidate.order), refused


class Planner:
    """Plans sites with the given strategies, each distinct geometry once."""

    def __init__(self, offered: Mapping[str, Strategy], max_dilation: int = 1) -> None:
        self.offered = offered
        self.max_dilation = max_dilation
        self._known: dict[tuple[object, ...], tuple[list[Candidate], list[Refusal]]] = {}

    def candidates(self, site: Site) -> tuple[list[Candidate], list[Refusal]]:
        """Return what `candidates` returns for the site."""
        key = (site.geometry, site.opset, site.storage, site.weight.is_constant)
        if key not in self._known:
            self._known[key] = candidates(site, self.offered, self.max_dilation)
        found, refused = self._known[key]
        return list(found), list(refused)


def worth_timing(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the forms that may replace a Conv to make it faster, in the order of the estimate, none of them twice."""
    return distinct([candidate for candidate in found if candidate.strategy != "keep" and not candidate.holds_for])


def distinct(found: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without those that come to the same fragment as another.

    Where pruning leaves a kernel of one tap, all forms are that one: it goes by the name of `tap_prune`.
    """
    named = {c.fragment.digest(): c for c in found if c.strategy == "tap_prune"}
    kept: dict[str, Candidate] = {}
    for candidate in found:
        digest = candidate.fragment.digest()
        kept.setdefault(digest, named.get(digest, candidate))
    return list(kept.values())


def times(ratio: float) -> str:
    """Return a ratio of times in words."""
    return f"{ratio:.2f}x"


def between(comparison: Comparison) -> str:
    """Return a ratio with its interval in words: `0.71x (0.69 to 0.73)`."""
    return f"{times(comparison.ratio)} ({comparison.low:.2f} to {comparison.high:.2f})"


BROKEN = (Outcome.FAILED, Outcome.CRASHED, Outcome.TIMED_OUT)
"""Outcomes of forms that did not run."""


def untimed(form: FormTiming) -> str:
    """Return why a form has no time, in words."""
    if form.outcome in BROKEN:
        return f"failed: {form.cause}"
    if form.outcome is Outcome.UNPROVED:
        return f"not proved: {form.cause}"
    if form.outcome is Outcome.PLANNED:
        return "would be measured"
    return f"not measured: {form.cause or 'budget'}"


def by_time(wanted: Sequence[Candidate], timings: Mapping[str, FormTiming]) -> tuple[list[Candidate], str]:
    """Return the forms that are faster than the Conv, fastest first, and why in words; none: keep.

    A form that was not timed is never faster.
    """
    timed = [(candidate, timings[candidate.strategy].timing) for candidate in wanted if candidate.strategy in timings]
    compared = sorted(
        ((candidate, timing) for candidate, timing in timed if timing is not None), key=lambda pair: pair[1].ratio
    )
    faster = [(candidate, timing) for candidate, timing in compared if timing.faster]
    if faster:
        return [candidate for candidate, _ in faster], f"takes {between(faster[0][1])} of the dilated Conv's time"
    if compared:
        best, timing = compared[0]
        missing = len(wanted) - len(compared)
        rest = f"; {missing} of {len(wanted)} forms not timed" if missing else ""
        if timing.slower:
            return [], f"keep won by {times(timing.ratio)} over {best.strategy}{rest}"
        return [], f"no form is faster beyond noise: {best.strategy} takes {between(timing)} of the time{rest}"
    reasons = dict.fromkeys(untimed(timings[c.strategy]) for c in wanted if c.strategy in timings)
    return [], "; ".join(reasons) or "not measured"


def fastest(
    wanted: Sequence[Candidate], timings: Mapping[str, FormTiming], missing: str = "not measured"
) -> list[tuple[Candidate, str]]:
    """Return the forms in the order in which to take one where the Conv has to go, each with the reason in words.

    `missing`: why a form is not among the `timings`.

    The timed ones first, fastest first, then the others in the order given, then those that failed. Forms that fewer
    devices run or that hold for less input come after all others, however fast they are here.
    """
    found: list[tuple[tuple[bool, bool, float, int], Candidate, str]] = []
    for place, candidate in enumerate(wanted):
        known = timings.get(candidate.strategy)
        lifted, inexact, _ = candidate.order
        if known is not None and known.timing is not None:
            reason = f"takes {between(known.timing)} of the dilated Conv's time"
            found.append(((lifted, inexact, known.timing.ratio, place), candidate, reason))
        else:
            why = untimed(known) if known is not None else missing
            last = 1e9 if known is not None and known.outcome in BROKEN else 1e6
            reason = f"the cheapest by estimate without dilation; {why}"
            found.append(((lifted, inexact, last, place), candidate, reason))
    found.sort(key=lambda entry: entry[0])
    common = sum(not (lifted or inexact) and ratio < 1e6 for (lifted, inexact, ratio, _), *_ in found)
    return [
        (
            candidate,
            f"the fastest of {common} forms timed: {reason}"
            if common > 1 and key == found[0][0] and key[2] < 1e6
            else reason,
        )
        for key, candidate, reason in found
    ]


def without_dilation(found: list[Candidate], max_dilation: int) -> list[Candidate]:
    """Return the forms that leave no dilation above `max_dilation`, cheapest first, none of them twice."""
    return distinct([candidate for candidate in found if candidate.fragment.max_dilation <= max_dilation])
