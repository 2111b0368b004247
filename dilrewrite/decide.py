"""Decides about one site: which forms to try, whether they are proved, and why in words."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dilrewrite import choose, report
from dilrewrite.errors import UsageError
from dilrewrite.find import Found, Site
from dilrewrite.fragment import Fragment
from dilrewrite.load import EXTERNAL_DATA_MODES
from dilrewrite.prove import Proof, Prover
from dilrewrite.report import CandidateReport, SiteReport
from dilrewrite.strategies import Refusal, parse, plan, strategies

VERIFY_LEVELS = ("full", "sites", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeOptions:
    """What `optimize` may do; see `dilrewrite.optimize` for each field."""

    strategy: str | None = None
    eliminate: bool = False
    max_dilation: int = 1
    only: str | None = None
    skip: str | None = None
    shapes: Sequence[str] = ()
    inputs: Path | None = None
    verify: str = "full"
    rtol: float | None = None
    atol: float | None = None
    dry_run: bool = False
    force: bool = False
    seed: int = 0
    threads: int | None = None
    custom_op_library: tuple[Path, ...] = ()
    external_data: str = "auto"

    def check(self) -> None:
        """Raise `UsageError` for options that do not fit together."""
        if self.verify not in VERIFY_LEVELS:
            raise UsageError(f"--verify {self.verify}: not one of {', '.join(VERIFY_LEVELS)}")
        if self.verify == "none" and self.strategy is None:
            raise UsageError("--verify none works only with --strategy", hint="name the form, or leave verification on")
        if self.max_dilation < 1:
            raise UsageError(f"--max-dilation {self.max_dilation}: at least 1 is needed")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: at least 0 is needed")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: at least 1 is needed")
        for name, value in (("--rtol", self.rtol), ("--atol", self.atol)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} {value}: a finite number of at least 0 is needed")
        if self.external_data not in EXTERNAL_DATA_MODES:
            raise UsageError(f"--external-data {self.external_data}: not one of {', '.join(EXTERNAL_DATA_MODES)}")
        for name, pattern in (("--only", self.only), ("--skip", self.skip)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise UsageError(f"{name} {pattern}: not a regular expression: {error}") from error

    def plain(self) -> dict[str, object]:
        """Return the options as plain data for a report."""
        shown = {name: getattr(self, name) for name in self.__slots__}
        return {
            key: [str(item) for item in value] if isinstance(value, tuple) else value for key, value in shown.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a site.

    `fragment` replaces it (`None`: kept). `explicit` makes a kept Conv one that runtimes take: its SAME_* pads, which
    depend on an unknown extent, become a computed Pad. `wrong`: a form that was to be used is not equal to it.
    """

    site: Site
    fragment: Fragment | None
    reported: SiteReport
    explicit: Fragment | None = None
    wrong: str | None = None


def matches(pattern: str | None, where: str, name: str, output: str = "") -> bool:
    """Say whether the regular expression is found in a node's name, `where/name`, or output."""
    return pattern is not None and any(re.search(pattern, text) for text in (name, f"{where}/{name}", output) if text)


def described(offered: Sequence[choose.Candidate]) -> tuple[CandidateReport, ...]:
    """Return candidates as the report shows them."""
    return tuple(
        CandidateReport(
            strategy=candidate.strategy,
            multiply_adds=candidate.multiply_adds,
            elements_moved=candidate.elements_moved,
            nodes=candidate.fragment.node_count,
            max_dilation=candidate.fragment.max_dilation,
        )
        for candidate in offered
    )


class Decider:
    """Decides about the sites of one model. Raises `UsageError` for a strategy that does not exist."""

    def __init__(self, options: OptimizeOptions) -> None:
        self.options = options
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

    def decide(self, site: Site, ir_version: int) -> Decision:
        """Choose the form of one site and prove it."""
        return _decide(site, self, ir_version)


def _decide(site: Site, decider: Decider, ir_version: int) -> Decision:
    options, planner, forced = decider.options, decider.planner, decider.forced
    geometry = site.geometry
    offered, refused = planner.candidates(site)

    def kept(reason: str, wrong: str | None = None, proof: Proof | None = None) -> Decision:
        explicit = None
        if wrong is None and geometry.auto_pad.startswith("SAME"):
            keep = plan("keep", strategies()["keep"], geometry, site.opset, storage=site.storage)
            if isinstance(keep, Fragment):
                proof = decider.prover.prove(site, keep, ir_version) if decider.prover else None
                if proof is not None and proof.wrong:
                    wrong = f"keep with explicit pads is wrong: {proof.failure}"
                if geometry.explicit().auto_pad != "NOTSET":
                    explicit = keep
                    reason += "; its SAME_* pads are computed by a Pad, as ONNX Runtime takes none with dilation"
        reported = report.describe_site(
            site,
            action="kept",
            strategy="keep",
            reason=reason,
            max_dilation_left=geometry.max_dilation,
            proof=proof,
            candidates=described(offered),
            refused=tuple(refused),
        )
        return Decision(site=site, fragment=None, reported=reported, explicit=explicit, wrong=wrong)

    if options.only is not None and not matches(options.only, site.where, site.name, site.output):
        return kept("not named by --only")
    if matches(options.skip, site.where, site.name, site.output):
        return kept("named by --skip")
    if options.max_dilation > 1 and geometry.max_dilation <= options.max_dilation:
        return kept(f"its dilation is at most {options.max_dilation}")
    wanted: list[choose.Candidate]
    if forced is not None:
        asked, denied = forced.candidates(site)
        reason = "forced by --strategy"
        if denied:
            refused = [*(refusal for refusal in refused if refusal.strategy != denied[0].strategy), *denied]
            reason = f"{denied[0].strategy} refuses: {denied[0].reason}"
        offered = [*asked, *(c for c in offered if c.strategy not in forced.offered)]
        wanted = [candidate for candidate in asked if candidate.strategy != "keep"]
        if options.eliminate:
            wanted = choose.without_dilation([*wanted, *offered], options.max_dilation)
            if not asked or wanted[:1] != asked:
                reason = "the cheapest by estimate without dilation, as the form asked for leaves some; not measured"
    elif options.eliminate:
        wanted = choose.without_dilation(offered, options.max_dilation)
        reason = "the cheapest by estimate without dilation; not measured"
    else:
        wanted, reason = choose.by_estimate(offered)
    if options.eliminate and not wanted:
        reasons = "; ".join(f"{refusal.strategy}: {refusal.reason}" for refusal in refused)
        reason = f"no form leaves it without such a dilation ({reasons})"
    for candidate in wanted:
        if candidate.strategy in choose.INEXACT:
            reason += "; exact for finite inputs only"
        prover = decider.prover
        proof = prover.prove(site, candidate.fragment, ir_version) if prover else None
        if proof is not None and not proof.passed:
            if proof.wrong:
                return kept("a form is wrong", f"{candidate.strategy} is wrong: {proof.failure}", proof)
            refused = [*refused, Refusal(candidate.strategy, proof.failure or "")]
            reason = f"{candidate.strategy} was not proved: {proof.failure}"
            continue
        reported = report.describe_site(
            site,
            action="rewritten",
            strategy=candidate.strategy,
            reason=reason,
            max_dilation_left=candidate.fragment.max_dilation,
            proof=proof,
            candidates=described(offered),
            refused=tuple(refused),
        )
        return Decision(site=site, fragment=candidate.fragment, reported=reported)
    return kept(reason)


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
