"""Describes models and what was decided, as the data of a report: of a model, an engine, a site and a region."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from onnx import ModelProto, ValueInfoProto

from dilrewrite._compat import sha256_of
from dilrewrite.choice.choose import Candidate
from dilrewrite.choice.decision import Decision
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import CoreConv, Kept, Step, entering, makes, reads
from dilrewrite.forms.geometry import acting_dilation
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.model.elements import element_name
from dilrewrite.model.tensors import Model
from dilrewrite.model.walk import DEFAULT_DOMAINS, all_nodes, fed, tensors
from dilrewrite.reports import reasons, units
from dilrewrite.reports.report import (
    CandidateReport,
    ExampleReport,
    ModelReport,
    RegionNode,
    RegionReport,
    SiteFit,
    SiteReport,
    ValueReport,
)
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.outcome import FormTiming

MOST_NODES = 400  # a form of more nodes is no example


def site(decision: Decision, backend: str = "", *, estimates: bool = False) -> SiteReport:
    """Return what is known and what was decided of a site; `backend`: what was measured on, which may only estimate."""
    found, measured = decision.site, decision.measured
    explicit = found.geometry.explicit()
    share = explicit.data_share()
    fields = ("where", "name", "node", "output", "key", "opset", "geometry", "ends")
    same = {name: getattr(found, name) for name in fields}
    reason = reasons.of(decision, backend)
    return SiteReport(
        **same,
        multiply_adds=explicit.multiply_adds(),
        padding_share=None if share is None else 1 - share,
        action="kept" if decision.fragment is None and decision.region is None else "rewritten",
        strategy=decision.strategy,
        reason=units.estimated(reason) if estimates else reason,
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
        fit=_fit(decision),
        sandwich=isinstance(found.meaning, Sandwich),
    )


def _fit(decision: Decision) -> SiteFit | None:
    own, now = decision.considered.own, decision.fitted
    if own is None or now is None:
        return None
    return SiteFit(before=own.fit, because=own.because, after=now.fit, host=now.host, because_after=now.because)


def region(
    decision: Decision, backend: str = "", sites: Mapping[str, int] | None = None, *, estimates: bool = False
) -> RegionReport:
    """Return what is known and what was decided of a region; `backend`: what was measured on.

    `sites`: the dilation that is left of each site, for a kept region whose Convs may have forms of their own.
    """
    found, measured, chain = decision.site, decision.measured, decision.site.meaning
    assert isinstance(chain, Chain)
    left, reason = decision.max_dilation, reasons.of(decision, backend)
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
        reason=units.estimated(reason) if estimates else reason,
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


def example(decisions: Iterable[Decision]) -> ExampleReport | None:
    """Return the rewritten place that is expected to gain most, node by node; `None` where none is of `MOST_NODES`."""
    convs = (one for one in decisions if not isinstance(one.site.meaning, Sandwich))
    small = [one for one in convs if one.fragment is not None and len(one.fragment.steps) <= MOST_NODES]
    if not small:
        return None
    best = max(small, key=lambda one: one.gain or 0.0)
    meaning, fragment = best.site.meaning, best.fragment
    assert fragment is not None
    chain = meaning if isinstance(meaning, Chain) else None
    if chain is None:
        conv = best.site.geometry
        before = [RegionNode(op="Conv", dilation=conv.max_dilation, reads=(-1,), kernel=conv.kernel)]
    else:
        kernels = {place: conv.kernel for place, conv in chain.convs.items()}
        before = [replace(node, kernel=kernels.get(place, ())) for place, node in enumerate(_nodes(chain))]
    makers = {name: -1 - place for place, name in enumerate(entering(len(best.site.inputs)))}
    after = []
    for place, step in enumerate(fragment.steps):
        known = tuple(dict.fromkeys(makers[name] for name in reads(step) if name in makers))
        after.append(_node(step, known, chain))
        makers |= dict.fromkeys(makes(step), place)
    return ExampleReport(key=best.site.key, before=tuple(before), after=tuple(after))


def _node(step: Step, known: tuple[int, ...], chain: Chain | None) -> RegionNode:
    """Return a step of a form; `known`: places of what it reads."""
    if isinstance(step, CoreConv):
        dilation = acting_dilation(step.kernel, step.dilations)
        return RegionNode(op="Conv", dilation=dilation, reads=known, kernel=step.kernel)
    if isinstance(step, Kept):
        assert chain is not None
        op = "Identity" if step.of in chain.gone else chain.links[step.of].op
    else:
        op = getattr(step, "op", "Tile")  # a fill is a tiled bias
    return RegionNode(op=op, dilation=1, reads=known)


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


def model(known: Model, proto: ModelProto, *, dilated: int, path: str | None = None, **more: Any) -> ModelReport:
    """Return a model's figures; `proto` may be an edited version, whose size and hash are those of its own message."""
    original = proto is known.original
    if original and known.path is not None:
        with known.path.open("rb") as file:
            size, digest = known.file_bytes, sha256_of(file)
    elif original and known.memory is not None:
        size, digest = known.file_bytes, hashlib.sha256(known.memory.data)
    else:
        serialized = proto.SerializeToString()
        size = known.file_bytes if original else len(serialized) + _external_bytes(known, proto)
        digest = hashlib.sha256(serialized)
    operators = Counter(
        node.op_type if node.domain in DEFAULT_DOMAINS else f"{node.domain}.{node.op_type}" for node in all_nodes(proto)
    )
    return ModelReport(
        path=path or known.name,
        bytes=size,
        sha256=digest.hexdigest(),
        ir_version=proto.ir_version,
        opsets={entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        producer=" ".join(filter(None, (proto.producer_name, proto.producer_version))),
        nodes=sum(operators.values()),
        operators=dict(sorted(operators.items())),
        dilated=dilated,
        inputs=tuple(map(_value, fed(proto))),
        outputs=tuple(map(_value, proto.graph.output)),
        **more,
    )


def _value(value: ValueInfoProto) -> ValueReport:
    kind = value.type.WhichOneof("value") or ""
    if kind != "tensor_type":
        return ValueReport(name=value.name, element=kind.removesuffix("_type"), shape="")
    tensor = value.type.tensor_type
    extents = [str(one.dim_value) if one.HasField("dim_value") else one.dim_param or "?" for one in tensor.shape.dim]
    return ValueReport(
        name=value.name,
        element=element_name(tensor.elem_type) or "",
        shape=f"[{', '.join(extents)}]" if tensor.HasField("shape") else "",
    )


def engine(known: EngineReport, path: str) -> ModelReport:
    """Return an engine's figures; nodes and operators are its layers and their types."""
    return ModelReport(
        path=path,
        bytes=known.bytes,
        sha256=known.sha256,
        ir_version=0,
        opsets={},
        producer=f"{known.flavour} {known.version}",
        nodes=len(known.layers),
        operators=dict(known.layer_types),
        dilated=0,
    )


def _external_bytes(known: Model, proto: ModelProto) -> int:
    """Return the size of the data files that an edited model still refers to."""
    used = {entry.value for tensor in tensors(proto) for entry in tensor.external_data if entry.key == "location"}
    return sum((known.folder / location).stat().st_size for location in used)
