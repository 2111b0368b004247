"""Decides about one site: which forms come into question, which one it gets, whether that is proved, and why."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from onnx import numpy_helper

from dilrewrite.choice import choose
from dilrewrite.choice.decision import Considered, Decision, SiteMeasurement
from dilrewrite.choice.decisions import Decided
from dilrewrite.choice.fits import Fitter
from dilrewrite.choice.reason import Reason, Why
from dilrewrite.errors import UsageError
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.forms.regions import region_forms
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.forms.strategies import (
    BACK_TO_FLOAT,
    Refusal,
    Strategy,
    _back_to_float,
    parse,
    plan,
    spelled,
    strategies,
    with_layout,
)
from dilrewrite.model.doubts import POOLS
from dilrewrite.options import Proving, Scope
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Proof, Prover
from dilrewrite.runtimes import Array, TimedBackend
from dilrewrite.sites import Found, Site, Skipped
from dilrewrite.sites.find import too_new
from dilrewrite.splice.editor import Reader
from dilrewrite.targets import Fit
from dilrewrite.timing.outcome import Outcome

_LAYOUT = re.compile("[:,]layout=", re.IGNORECASE)


def matches(pattern: str | None, node: Site | Skipped) -> bool:
    """Say whether a regular expression is in what a node is called, its own name, these after `where/`, or output."""
    own = node.node if isinstance(node, Skipped) or len(node.nodes) == 1 else ""
    names = [name for name in (node.name, own) if name]
    names += [f"{node.where}/{name}" for name in names]
    names += [node.output] if isinstance(node, Site) else []
    return pattern is not None and any(re.search(pattern, name) for name in names)


def left_out(scope: Scope, node: Site | Skipped) -> Reason | None:
    """Return why the user wants a node left as it is, by --only or --skip; `None` where nothing was said of it."""
    if scope.only is not None and not matches(scope.only, node):
        return Reason.NOT_NAMED
    return Reason.SKIPPED if matches(scope.skip, node) else None


@dataclass
class Decider:
    """Decides about the sites of one model, `source`. `decided`: by a decisions file. `around` surrounds every proof.
    `seen`: what entered a region when the model ran. `read` gives the values of a constant. `forms`: settings of forms
    that a runtime wants, in the order in which they are tried.

    Raises `UsageError` for a strategy that does not exist.
    """

    scope: Scope
    proving: Proving
    source: Source
    decided: Mapping[str, Decided] | None = None
    seen: Callable[[Site], Sequence[Mapping[str, Array]]] = lambda _: ()
    around: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    read: Reader = numpy_helper.to_array
    fitter: Fitter | None = None
    runtime: TimedBackend | None = None

    def __post_init__(self) -> None:
        limit, strategy, asked = self.scope.max_dilation, self.scope.strategy or "", self.scope.strategy is not None
        more = {"requantised": self.scope.allow_requantised, "eliminate": self.scope.eliminate}
        forms, layout = (self.runtime.forms, self.runtime.layout) if self.runtime is not None else ((), "depth")
        self.planner = choose.site_planner(limit, layout, **more)
        self.planner.own, self.planner.eliminates = [*map(parse, forms)], self.scope.eliminate
        self.places = {spelled(*form): place for place, form in enumerate(self.planner.own)}
        self.sandwich_planner = choose.sandwich_planner(limit, layout)
        self.region_planner = choose.region_planner(limit, layout)
        self.forced = choose.Planner(dict([self._forced(strategy, layout)]), limit) if asked else None

    def _forced(self, text: str, layout: str) -> tuple[str, Strategy]:
        """Return the form that `--strategy` names; where it does not say how phases are made, as the runtime has it."""
        name, strategy = self._allowed("--strategy", text)
        return name, strategy if _LAYOUT.search(text) else with_layout(strategy, layout)

    def _allowed(self, option: str, text: str) -> tuple[str, Strategy]:
        """Return the form that an option names; `UsageError` for one that is not exact, unless that is allowed."""
        name, strategy = parse(text)
        if name == BACK_TO_FLOAT and not self.scope.allow_requantised:
            problem = f"{option}: {name} is not equal bit for bit, at best within one quantum"
            raise UsageError(problem, hint="allow that with --allow-requantised")
        if strategy == _back_to_float.FORM and self.scope.eliminate:
            strategy = _back_to_float.undilated()
        return name, strategy

    @functools.cached_property
    def _prover(self) -> Prover:
        return Prover(seed=self.proving.seed, threads=self.proving.threads, read=self.read)

    def prove(self, site: Site, fragment: Fragment) -> Proof | None:
        """Return the proof of a form, `None` when nothing is to be proved."""
        with self.around():
            if self.proving.verify == "none":
                return None
            if isinstance(site.meaning, Chain):
                return self._prover.prove(self.source, site, fragment, seen=self.seen(site))
            return self._prover.prove(self.source, site, fragment)

    def consider(self, site: Site) -> Considered:
        """Return which forms a site may get."""
        scope, geometry = self.scope, site.geometry
        folds = isinstance(site.meaning, Sandwich)
        planner = self.fitter or (self.sandwich_planner if folds else self.planner)
        offered, refused = planner.candidates(site)

        def considered(why: Why | None, wanted: Sequence[choose.Candidate] = ()) -> Considered:
            forms = Considered(site=site, offered=tuple(offered), refused=tuple(refused), wanted=tuple(wanted))
            return replace(forms, why=why, measurable=why is None)

        if self.decided is not None:
            return considered(*self.replayed(site, self.decided[site.key]))
        newest = too_new(site.opset)
        if newest is not None:
            return considered(Why(reason=Reason.TOO_NEW, said=newest))
        reason = left_out(scope, site)
        if reason is not None:
            return considered(Why(reason=reason))
        if self.fitter is not None:
            own, why, fitting = self.fitter.choice(site, offered, refused)
            judged, must_go = bool(fitting) and self.fitter.judged, bool(fitting) and own.fit is not Fit.NATIVE
            return replace(considered(why, fitting), own=own, measurable=judged, must_go=must_go)
        if not folds and scope.max_dilation > 1 and geometry.max_dilation <= scope.max_dilation:
            return considered(Why(reason=Reason.SMALL_DILATION, number=scope.max_dilation))
        asked: list[choose.Candidate] = []
        why = Why(reason=Reason.FOLDED if folds else Reason.FORCED)
        if self.forced is not None:
            asked, denied = self.forced.candidates(site)
            if denied:
                refused = [*(refusal for refusal in refused if refusal.strategy != denied[0].strategy), *denied]
                why = Why(reason=Reason.REFUSED, refusals=(denied[0],))
                if denied[0].strategy in region_forms():
                    some = Reason.NO_WHOLE_REGION if scope.only or scope.skip else Reason.NO_REGION
                    why = Why(reason=some, strategy=denied[0].strategy)
            offered = [*asked, *(c for c in offered if c.strategy.partition(":")[0] not in self.forced.offered)]
            if not scope.eliminate:
                return considered(why, [candidate for candidate in asked if candidate.strategy != "keep"])
        if scope.eliminate:
            wanted = self._own_first(choose.without_dilation(offered, scope.max_dilation))
            if asked and wanted[:1] == asked:
                return considered(why, wanted)
            return considered(None if wanted else Why(reason=Reason.CANNOT_GO, refusals=tuple(refused)), wanted)
        if not folds and not any(
            candidate.strategy == "keep" for candidate in offered
        ):  # the opset cannot even spell its pads
            denials = tuple(refusal for refusal in refused if refusal.strategy == "keep")
            return considered(Why(reason=Reason.NO_PADS, refusals=denials))
        wanted = self._own_first(choose.worth_timing(offered))
        return considered(None if wanted else Why(reason=Reason.NO_FORM), wanted)

    def _own_first(self, wanted: Sequence[choose.Candidate]) -> list[choose.Candidate]:
        """Return the forms with those in front that the runtime wants, in its order."""
        return sorted(wanted, key=lambda one: self.places.get(one.spelling, len(self.places)))

    def replayed(self, site: Site, decided: Decided) -> tuple[Why, list[choose.Candidate]]:
        """Return the form that the file says. Raises `UsageError` where it does not apply."""
        name, strategy = self._allowed(f"--decisions {self.scope.decisions}", decided.strategy)
        why = Why(reason=Reason.DECIDED)
        if name == "keep":
            return why, []
        asked, denied = choose.candidates(site, {name: strategy})
        if denied:
            node = f"{site.where}/{site.name or site.output}"
            raise UsageError(
                f"--decisions {self.scope.decisions}: {name} does not apply to {node}: {denied[0].reason}",
                hint="decide again, without --decisions",
            )
        return why, asked

    def settle(self, considered: Considered, measured: SiteMeasurement, keep: Why | None = None) -> Decision:
        """Return what becomes of a site: the first of the forms that come into question that is proved.

        `keep`: why it stays as it is although a form was faster.
        """
        common: dict[str, Any] = {"considered": considered, "measured": measured}
        if measured.wrong is not None:
            wrong, disproof = measured.wrong
            return Decision(**common, why=Why(reason=Reason.WRONG), wrong=wrong, proof=disproof)
        ranked, otherwise = self._ranked(considered, measured, keep)
        if ranked is None:
            return self._kept(considered, measured, otherwise)
        timings = measured.timings.items()
        unproved = {name: form.cause for name, form in timings if form.outcome is Outcome.UNPROVED}
        for candidate, why in ranked:
            proof = self.prove(considered.site, candidate.fragment)
            if proof is None or proof.passed:
                passed_over = _refusals(unproved)
                return Decision(**common, why=why, candidate=candidate, proof=proof, unproved=passed_over)
            if proof.wrong:
                return Decision(**common, why=Why(reason=Reason.WRONG), wrong=candidate.strategy, proof=proof)
            unproved[candidate.strategy] = proof.failure or ""
            otherwise = Why(reason=Reason.UNPROVED, strategy=candidate.strategy, said=proof.failure)
        return self._kept(considered, measured, otherwise, _refusals(unproved))

    def _ranked(
        self, considered: Considered, measured: SiteMeasurement, keep: Why | None
    ) -> tuple[list[tuple[choose.Candidate, Why]] | None, Why]:
        """Return the forms that a site may get, each with the reason (`None`: it stays), and why it stays otherwise."""
        wanted = considered.wanted
        if not considered.measurable:
            assert considered.why is not None
            return [(candidate, considered.why) for candidate in wanted] or None, considered.why
        if considered.must_go:
            timings = {} if measured.why is not None else measured.timings
            ranked = choose.fastest(wanted, timings, measured.why)
            return [(one, self._fits(considered, why)) for one, why in ranked], Why(reason=Reason.NO_FIT)
        if self.scope.eliminate:
            timings = {} if measured.why is not None else measured.timings
            return choose.fastest(wanted, timings, measured.why), Why(reason=Reason.CANNOT_GO)
        stays = measured.why or keep
        if stays is not None:
            return None, stays
        faster, otherwise = choose.by_time(wanted, measured.timings)
        return [(one, choose.by_time([one], measured.timings)[1]) for one in faster], otherwise

    @staticmethod
    def _fits(considered: Considered, why: Why) -> Why:
        """Return why a form is taken that fits a target better, by what measuring says of it."""
        fits = considered.why
        assert fits is not None
        if why.reason is not Reason.ESTIMATED:
            return Why(reason=Reason.JUDGED, said=fits.said, because=why)
        only = why.because is None or why.because.reason in (Reason.ONLY_FORM, Reason.UNKNOWN)
        return fits if only else replace(fits, because=why.because)

    def _kept(
        self, considered: Considered, measured: SiteMeasurement, why: Why, unproved: tuple[Refusal, ...] = ()
    ) -> Decision:
        """Return that a site stays, with its SAME_* pads made explicit where a runtime needs that."""
        site = considered.site
        decision = Decision(considered=considered, measured=measured, why=why, unproved=unproved)
        same = isinstance(site.meaning, ConvGeometry) and site.geometry.auto_pad.startswith("SAME")
        if not same or self.fitter is not None:  # what a target runs stays as it is
            return decision
        keep = plan("keep", strategies()["keep"], site.geometry, site.opset, storage=site.storage)
        if isinstance(keep, Refusal):
            return decision
        proof = self.prove(site, keep)
        wrong = "keep" if proof is not None and proof.wrong else None
        explicit = keep if site.geometry.explicit().auto_pad != "NOTSET" else None
        return replace(decision, proof=proof, wrong=wrong, explicit=explicit)


def _refusals(unproved: Mapping[str, str]) -> tuple[Refusal, ...]:
    return tuple(Refusal(strategy, failure) for strategy, failure in unproved.items())


def is_pool(decision: Decision) -> bool:
    """Say whether a decision is about a pooling, which is no convolution."""
    return isinstance(decision.site.meaning, PoolGeometry)


def remaining(
    decisions: Sequence[Decision], found: Found, scope: Scope, *, pools: bool = False
) -> tuple[Decision | Skipped, ...]:
    """Return the nodes that keep a dilation above the limit and are not excused by --skip or --only.

    With a target, the sites that it does not take.

    `pools`: poolings too, where the target takes none that is dilated.
    """
    if scope.target is not None:
        out = (one for one in decisions if one.fitted is not None and one.fitted.fit is Fit.OUT)
        return tuple(one for one in out if left_out(scope, one.site) is None)
    limit = scope.max_dilation
    skipped = [node for node in found.skipped if node.convolution or (pools and node.op in POOLS)]
    counted = [one for one in decisions if pools or not is_pool(one)]
    return (
        *(one for one in counted if one.max_dilation > limit and left_out(scope, one.site) is None),
        *(one for one in skipped if max(one.dilations, default=math.inf) > limit and left_out(scope, one) is None),
    )
