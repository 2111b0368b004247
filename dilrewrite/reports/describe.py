"""Describes what was decided, as the data of a report: of a site and of a region."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from dilrewrite.choice.choose import Candidate
from dilrewrite.choice.decision import Decision
from dilrewrite.forms.chain import Chain
from dilrewrite.reports import reasons
from dilrewrite.reports.report import CandidateReport, RegionNode, RegionReport, SiteReport
from dilrewrite.timing.outcome import FormTiming


def site(decision: Decision, backend: str = "") -> SiteReport:
    """Return what is known and what was decided of a site; `backend`: what was measured on."""
    found, measured = decision.site, decision.measured
    explicit = found.geometry.explicit()
    share = explicit.data_share()
    same = {name: getattr(found, name) for name in ("where", "name", "output", "key", "opset", "geometry", "ends")}
    return SiteReport(
        **same,
        multiply_adds=explicit.multiply_adds(),
        padding_share=None if share is None else 1 - share,
        action="kept" if decision.fragment is None and decision.region is None else "rewritten",
        strategy=decision.strategy,
        reason=reasons.of(decision, backend),
        max_dilation_left=decision.max_dilation,
        proof=decision.proof,
        candidates=tuple(
            _candidate(candidate, measured.timings.get(candidate.strategy), backend, "Conv")
            for candidate in decision.considered.offered
        ),
        refused=(*decision.considered.refused, *decision.unproved),
        share=measured.run.share,
        share_interval=measured.run.interval,
        ran=measured.run.shapes,
        question=measured.question,
        predicted_gain=decision.gain,
        region=decision.region.site.key if decision.region is not None else None,
    )


def region(decision: Decision, backend: str = "", sites: Mapping[str, int] | None = None) -> RegionReport:
    """Return what is known and what was decided of a region; `backend`: what was measured on.

    `sites`: the dilation that is left of each site, for a kept region whose Convs may have forms of their own.
    """
    found, measured, chain = decision.site, decision.measured, decision.site.meaning
    assert isinstance(chain, Chain)
    left = decision.max_dilation
    if decision.fragment is None and sites is not None:
        left = max((sites[key] for key in decision.considered.inside), default=left)
    same = {name: getattr(found, name) for name in ("where", "name", "key", "opset", "inputs", "outputs", "ends")}
    return RegionReport(
        **same,
        block=chain.block,
        nested=tuple(block for block, _ in chain.nests),
        operators=dict(sorted(Counter(link.op for link in chain.links).items())),
        members=decision.considered.inside,
        action="kept" if decision.fragment is None else "rewritten",
        strategy=decision.strategy,
        reason=reasons.of(decision, backend),
        max_dilation_left=left,
        proof=decision.proof,
        candidates=tuple(
            _candidate(candidate, measured.timings.get(candidate.strategy), backend, "region")
            for candidate in decision.considered.offered
        ),
        refused=(*decision.considered.refused, *decision.unproved),
        share=measured.run.share,
        question=measured.question,
        predicted_gain=decision.gain,
        nodes=() if decision.fragment is None else tuple(_nodes(chain)),
    )


def _nodes(chain: Chain) -> Iterator[RegionNode]:
    makers = {name: -1 - place for place, name in enumerate(chain.inputs)}
    for place, link in enumerate(chain.links):
        dilation = chain.convs[place].max_dilation if place in chain.convs else 1
        reads = tuple(dict.fromkeys(makers[name] for name in link.inputs if name in makers))
        yield RegionNode(op=link.op, dilation=dilation, reads=reads)
        makers |= dict.fromkeys(filter(None, link.outputs), place)


def _candidate(candidate: Candidate, form: FormTiming | None, backend: str, whole: str) -> CandidateReport:
    estimated = CandidateReport(
        strategy=candidate.strategy,
        multiply_adds=candidate.multiply_adds,
        elements_moved=candidate.elements_moved,
        nodes=len(candidate.fragment.steps),
        max_dilation=candidate.fragment.max_dilation,
    )
    if form is None:
        return estimated
    return replace(
        estimated,
        outcome=form.outcome,
        cause=reasons.cause(form, backend, whole),
        timing=form.timing,
        keep_peak_bytes=form.keep_peak_bytes,
        peak_bytes=form.peak_bytes,
    )
