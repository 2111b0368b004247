"""Decides about one site: which forms come into question, which one it gets, whether that is proved, and why."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from dilrewrite.choice import choose
from dilrewrite.choice.decisions import Decided
from dilrewrite.errors import UsageError
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import Refusal, parse, plan, strategies
from dilrewrite.options import OptimizeOptions
from dilrewrite.proof.inputs import SPELL_PADS
from dilrewrite.proof.prove import Proof, Prover
from dilrewrite.reports import report
from dilrewrite.reports.report import CandidateReport, SiteReport
from dilrewrite.sites.find import Found, Site, too_new
from dilrewrite.timing.outcome import FormTiming, Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """A site before anything is measured.

    `offered` are the forms that apply, `refused` the others; `wanted` those of which it may get one, the first to try
    in front. `kept`: why it stays as it is in any case. `reason`: why the wanted ones are wanted, where that needs no
    measuring. `measurable`: timings decide between the wanted ones.
    """

    site: Site
    offered: tuple[choose.Candidate, ...]
    refused: tuple[Refusal, ...]
    wanted: tuple[choose.Candidate, ...]
    kept: str | None = None
    reason: str = ""
    measurable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What measuring says of a site.

    `timings`: forms by strategy; `instead`: why there are none. `details` go into the site's report as they are.
    `keep`: why it stays as it is although a form was faster (the whole model was not). `wrong`: a form that was to be
    timed and was shown to compute something else, with the proof.
    """

    timings: Mapping[str, FormTiming]
    instead: str = ""
    keep: str | None = None
    wrong: tuple[str, Proof] | None = None
    details: Mapping[str, Any]


NOT_MEASURED = Measured(timings={}, instead="not measured", details={})


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a site.

    `fragment` replaces it (`None`: kept), `spelling` names the form with its settings. `explicit` makes a kept Conv one
    that runtimes take: its SAME_* pads, which depend on an unknown extent, become a computed Pad. `wrong`: a form that
    was to be used is not equal to it.
    """

    site: Site
    fragment: Fragment | None
    reported: SiteReport
    spelling: str = "keep"
    explicit: Fragment | None = None
    wrong: str | None = None


def matches(pattern: str | None, where: str, name: str, output: str = "") -> bool:
    """Say whether the regular expression is found in a node's name, `where/name`, or output."""
    return pattern is not None and any(re.search(pattern, text) for text in (name, f"{where}/{name}", output) if text)


def described(
    offered: Sequence[choose.Candidate], timings: Mapping[str, FormTiming] | None = None
) -> tuple[CandidateReport, ...]:
    """Return candidates as the report shows them."""
    known = timings or {}
    return tuple(
        CandidateReport(
            strategy=candidate.strategy,
            multiply_adds=candidate.multiply_adds,
            elements_moved=candidate.elements_moved,
            nodes=candidate.fragment.node_count,
            max_dilation=candidate.fragment.max_dilation,
            outcome=known[candidate.strategy].outcome if candidate.strategy in known else None,
            cause=known[candidate.strategy].cause if candidate.strategy in known else "",
            timing=known[candidate.strategy].timing if candidate.strategy in known else None,
        )
        for candidate in offered
    )


class Decider:
    """Decides about the sites of one model. `decided`: by a decisions file. `proving` surrounds every proof.

    Raises `UsageError` for a strategy that does not exist.
    """

    def __init__(
        self,
        options: OptimizeOptions,
        decided: Mapping[str, Decided] | None = None,
        proving: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self.options = options
        self.proving = proving
        self.decided = decided
        self.planner = choose.Planner(strategies(), options.max_dilation)
        self.forced: choose.Planner | None = None
        if options.strategy is not None:
            self.forced = choose.Planner(dict([parse(options.strategy)]), options.max_dilation)
        self._prover: Prover | None = None

    @property
    def prover(self) -> Prover | None:
        """Return the prover, made when it is first needed; `None` when nothing is to be proved."""
        if self._prover is None and self.options.verify != "none":
            self._prover = Prover(seed=self.options.seed, threads=self.options.threads)
        return self._prover

    def prove(self, site: Site, fragment: Fragment) -> Proof | None:
        """Return the proof of a form, `None` when nothing is to be proved."""
        with self.proving():
            return self.prover.prove(site, fragment) if self.prover else None

    # -- before measuring ----------------------------------------------------------------------------------------

    def consider(self, site: Site) -> Considered:
        """Return which forms a site may get."""
        options, geometry = self.options, site.geometry
        offered, refused = self.planner.candidates(site)

        def considered(wanted: Sequence[choose.Candidate] = (), **more: Any) -> Considered:
            return Considered(site=site, offered=tuple(offered), refused=tuple(refused), wanted=tuple(wanted), **more)

        if self.decided is not None:
            return self._replayed(site, offered, refused)
        newest = too_new(site.opset)
        if newest is not None:
            return considered(kept=newest)
        if options.only is not None and not matches(options.only, site.where, site.name, site.output):
            return considered(kept="not named by --only")
        if matches(options.skip, site.where, site.name, site.output):
            return considered(kept="named by --skip")
        if options.max_dilation > 1 and geometry.max_dilation <= options.max_dilation:
            return considered(kept=f"its dilation is at most {options.max_dilation}")
        if self.forced is not None:
            asked, denied = self.forced.candidates(site)
            reason = "forced by --strategy"
            if denied:
                refused = [*(refusal for refusal in refused if refusal.strategy != denied[0].strategy), *denied]
                reason = f"{denied[0].strategy} refuses: {denied[0].reason}"
            offered = [*asked, *(c for c in offered if c.strategy not in self.forced.offered)]
            wanted = [candidate for candidate in asked if candidate.strategy != "keep"]
            if not options.eliminate:
                return considered(wanted, reason=reason)
            wanted = choose.without_dilation([*wanted, *offered], options.max_dilation)
            if asked and wanted[:1] == asked:
                return considered(wanted, reason=reason)
            if wanted:
                return considered(wanted, measurable=True)
        if options.eliminate:
            wanted = choose.without_dilation(offered, options.max_dilation)
            if not wanted:
                reasons = "; ".join(f"{refusal.strategy}: {refusal.reason}" for refusal in refused)
                return considered(kept=f"no form leaves it without such a dilation ({reasons})")
            return considered(wanted, measurable=True)
        if not any(candidate.strategy == "keep" for candidate in offered):  # the opset cannot even spell its pads
            why = next((refusal.reason for refusal in refused if refusal.strategy == "keep"), "")
            return considered(
                kept=f"no form applies, nor can its own pads be made explicit ({why}): {SPELL_PADS}",
            )
        wanted = choose.worth_timing(offered)
        if not wanted:
            return considered(kept="no other form applies")
        return considered(wanted, measurable=True)

    def _replayed(self, site: Site, offered: list[choose.Candidate], refused: list[Refusal]) -> Considered:
        assert self.decided is not None
        name, strategy = parse(self.decided[site.key].strategy)
        common: dict[str, Any] = {"site": site, "offered": tuple(offered), "refused": tuple(refused)}
        if name == "keep":
            return Considered(**common, wanted=(), kept="by the decisions file")
        asked, denied = choose.candidates(site, {name: strategy})
        if denied:
            node = f"{site.where}/{site.name or site.output}"
            raise UsageError(
                f"--decisions {self.options.decisions}: {name} does not apply to {node}: {denied[0].reason}",
                hint="decide again, without --decisions",
            )
        return Considered(**common, wanted=tuple(asked), reason="by the decisions file")

    # -- after measuring -----------------------------------------------------------------------------------------

    def settle(self, considered: Considered, measured: Measured) -> Decision:
        """Return what becomes of a site: the first of the forms that come into question that is proved."""
        if considered.kept is not None:
            return self._kept(considered, measured, considered.kept)
        if measured.wrong is not None:
            wrong, disproof = measured.wrong
            return self._kept(considered, measured, "a form is wrong", wrong=wrong, proof=disproof)
        ranked: list[tuple[choose.Candidate, str]]
        otherwise = considered.reason
        if not considered.measurable:
            ranked = [(candidate, considered.reason) for candidate in considered.wanted]
        elif self.options.eliminate:
            timings = {} if measured.instead else measured.timings
            ranked = choose.fastest(considered.wanted, timings, measured.instead or "not measured")
        elif measured.instead:
            return self._kept(considered, measured, measured.instead)
        elif measured.keep is not None:
            return self._kept(considered, measured, measured.keep)
        else:
            faster, otherwise = choose.by_time(considered.wanted, measured.timings)
            ranked = [(candidate, choose.by_time([candidate], measured.timings)[1]) for candidate in faster]
        unproved = _unproved(measured)
        for candidate, why in ranked:
            proof = self.prove(considered.site, candidate.fragment)
            if proof is not None and not proof.passed:
                if proof.wrong:
                    wrong = f"{candidate.strategy} is wrong: {proof.failure}"
                    return self._kept(considered, measured, "a form is wrong", wrong=wrong, proof=proof)
                unproved[candidate.strategy] = proof.failure or ""
                otherwise = f"{candidate.strategy} was not proved: {proof.failure}"
                continue
            finite = [f"exact for {candidate.holds_for} only"] if candidate.holds_for else []
            passed_over = [f"{name} was not proved: {failure}" for name, failure in unproved.items()]
            reported = self._report(
                considered,
                measured,
                _with_unproved(considered.refused, unproved),
                action="rewritten",
                strategy=candidate.strategy,
                reason="; ".join([why, *finite, *passed_over]),
                max_dilation_left=candidate.fragment.max_dilation,
                proof=proof,
            )
            return Decision(
                site=considered.site, fragment=candidate.fragment, reported=reported, spelling=candidate.spelling
            )
        refused = _with_unproved(considered.refused, unproved)
        return self._kept(considered, measured, otherwise, refused=refused)

    def _report(
        self, considered: Considered, measured: Measured, refused: Sequence[Refusal], **more: Any
    ) -> SiteReport:
        return report.describe_site(
            considered.site,
            candidates=described(considered.offered, measured.timings),
            refused=tuple(refused),
            **more,
            **measured.details,
        )

    def _kept(
        self,
        considered: Considered,
        measured: Measured,
        reason: str,
        *,
        wrong: str | None = None,
        proof: Proof | None = None,
        refused: Sequence[Refusal] | None = None,
    ) -> Decision:
        site = considered.site
        geometry = site.geometry
        explicit = None
        if wrong is None and geometry.auto_pad.startswith("SAME"):
            keep = plan("keep", strategies()["keep"], geometry, site.opset, storage=site.storage)
            if isinstance(keep, Fragment):
                proof = self.prove(site, keep)
                if proof is not None and proof.wrong:
                    wrong = f"keep with explicit pads is wrong: {proof.failure}"
                if geometry.explicit().auto_pad != "NOTSET":
                    explicit = keep
                    reason += "; its SAME_* pads are computed by a Pad, as ONNX Runtime takes none with dilation"
        reported = self._report(
            considered,
            measured,
            considered.refused if refused is None else refused,
            action="kept",
            strategy="keep",
            reason=reason,
            max_dilation_left=geometry.max_dilation,
            proof=proof,
        )
        return Decision(site=site, fragment=None, reported=reported, explicit=explicit, wrong=wrong)


def _unproved(measured: Measured) -> dict[str, str]:
    """Return the forms that were faster and not proved, and why not."""
    timings = measured.timings.items()
    return {strategy: form.cause for strategy, form in timings if form.outcome is Outcome.UNPROVED}


def _with_unproved(refused: Sequence[Refusal], unproved: Mapping[str, str]) -> list[Refusal]:
    return [*refused, *(Refusal(strategy, failure) for strategy, failure in unproved.items())]


def remaining(decisions: Sequence[Decision], found: Found, options: OptimizeOptions) -> tuple[str, ...]:
    """Return the nodes that keep a dilation above the limit and are not excused by --skip or --only."""

    def excused(where: str, name: str, output: str = "") -> bool:
        if options.only is not None and not matches(options.only, where, name, output):
            return True
        return matches(options.skip, where, name, output)

    left = [
        f"{d.site.where}/{d.site.name}: {d.reported.reason}"
        for d in decisions
        if d.reported.max_dilation_left > options.max_dilation and not excused(d.site.where, d.site.name, d.site.output)
    ]
    left += [
        f"{node.where}/{node.name} ({node.op}): {node.reason}"
        for node in found.skipped
        if node.convolution
        and max(node.dilations, default=math.inf) > options.max_dilation
        and not excused(node.where, node.name)
    ]
    return tuple(left)
