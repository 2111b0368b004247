"""Asks the ONNX checker and shape inference what is wrong with a model: the only one to tell it, error by error.

Both stop early: the checker at its first error, inference where a declared shape misleads it. So nodes, inputs, outputs
and tensors are also checked one by one, and shapes are inferred from the inputs and compared with the declared ones.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from dilrewrite.model.doubts import limit_calls
from dilrewrite.model.light import without_declarations, without_weights
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.model.walk import copied, graphs_in, put_in_order, rearrange, subgraphs

UNSORTED = "Nodes in a graph must be topologically sorted"

MENDED = "dilrewrite.mended"
"""The domain of what stands in for a node that the checker refuses, so that it looks at the others."""

ERRORS = (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is said against a model. `kind` is the same for the same error at another node, in any operator."""

    kind: str
    text: str


def findings(proto: ModelProto) -> list[Finding]:
    """Return what the checker and strict shape inference say against a model; empty when nothing.

    Real files list their nodes in any order. That is one finding, and the rest is looked for in a sorted copy.
    """
    found = [*_checker(proto), *_inference(proto)]
    if any(UNSORTED in finding.text for finding in found):
        ordered = copied(proto)
        put_in_order(ordered)
        found = [Finding(UNSORTED, UNSORTED), *_checker(ordered), *_inference(ordered)]
    return found


def fresh(before: Sequence[Finding], after: Sequence[Finding]) -> list[Finding]:
    """Return the findings of `after` that are more than `before` has of their kind, one of each text."""
    known = Counter(finding.kind for finding in before)
    found: dict[str, Finding] = {}
    for finding in after:
        known[finding.kind] -= 1
        if known[finding.kind] < 0:
            found.setdefault(finding.text, finding)
    return [*found.values()]


# -- the checker -----------------------------------------------------------------------------------------------------


def _checker(proto: ModelProto) -> list[Finding]:
    """Ask the checker. External weights become inputs: loading checked their files already."""
    model = _with_weights_as_inputs(proto)
    error = _error(onnx.checker.check_model, model)
    if error is None:
        return []
    mended = copied(model)
    if model.ir_version > onnx.IR_VERSION:
        mended.ir_version = onnx.IR_VERSION
        return [Finding(error, error), *_checker(mended)]
    parts = [finding for body in (mended.graph, *mended.functions) for finding in _mend(mended, body)]
    rest = _error(onnx.checker.check_model, mended) if parts else error
    return [*parts, *([] if rest is None else [Finding(rest, rest)])]


def _mend(model: ModelProto, body: GraphProto | FunctionProto) -> Iterator[Finding]:
    """Yield the findings about single parts of a graph or function, and put in their place what has none."""
    opsets = model.opset_import if isinstance(body, GraphProto) else body.opset_import
    context = type(onnx.checker.DEFAULT_CONTEXT)()
    context.ir_version = model.ir_version
    context.opset_imports = {entry.domain: min(entry.version, 2**31 - 1) for entry in opsets}
    if MENDED not in context.opset_imports:
        opsets.add(domain=MENDED, version=1)
    for graph in reversed([body, *graphs_in(body.node)]):  # from the inside out: a node goes with the graphs in it
        for node in graph.node:
            error = _error(onnx.checker.check_node, _bare(node), context)
            if error is not None:
                yield Finding(_kind(error, [node.name, *node.input, *node.output]), error)
                del node.attribute[:]
                node.domain, node.op_type = MENDED, "Mended"
        if isinstance(graph, GraphProto):
            yield from _mend_values(graph, context, main=graph is body)


def _mend_values(graph: GraphProto, context: Any, *, main: bool) -> Iterator[Finding]:
    """See `_mend`. Inputs and outputs of graphs inside of nodes need no type and no shape (onnx/checker.cc)."""
    scalar = onnx.helper.make_tensor_value_info("", TensorProto.FLOAT, [])
    zero = onnx.helper.make_tensor("", TensorProto.FLOAT, [], [0.0])
    values = [(onnx.checker.check_value_info, value, scalar) for value in (*graph.input, *graph.output) if main]
    tensors = [(onnx.checker.check_tensor, tensor, zero) for tensor in graph.initializer]
    for check, part, plain in (*values, *tensors):
        error = _error(check, part, context)
        if error is not None:
            yield Finding(_kind(error, [part.name]), error)
            name = part.name
            part.CopyFrom(plain)
            part.name = name


def _bare(node: NodeProto) -> NodeProto:
    """Return a node with empty graphs in it: they are looked at by themselves."""
    bare = copied(node)
    for _, _, graph in subgraphs(bare):
        graph.CopyFrom(GraphProto(name="graph"))
    return bare


def _with_weights_as_inputs(proto: ModelProto) -> ModelProto:
    """Return `proto` with its external initializers as graph inputs; itself when there is none."""
    outside = [tensor.data_location == TensorProto.EXTERNAL for tensor in proto.graph.initializer]
    if not any(outside):
        return proto
    light = copied(proto)
    inputs = {value.name for value in light.graph.input}
    for tensor in itertools.compress(proto.graph.initializer, outside):
        if tensor.name not in inputs:
            value = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            light.graph.input.append(value)
    rearrange(light.graph.initializer, [None if gone else place for place, gone in enumerate(outside)])
    return light


def _error(ask: Callable[..., object], *arguments: object) -> str | None:
    """Return what is said against something, in one line, without what differs from run to run."""
    try:
        ask(*arguments)
    except ERRORS as error:
        return " ".join(line.strip() for line in str(error).splitlines() if line.strip() and "==>" not in line)
    return None


def _kind(text: str, names: Sequence[str]) -> str:
    """Return an error's text without the names in it, which stand in quotes or brackets."""
    for name in filter(None, names):
        text = re.sub(rf"(?<=['\"(]){re.escape(name)}(?=['\")])", "_", text)
    return text


# -- shape inference -------------------------------------------------------------------------------------------------

_AT = re.compile(r"\(op_type:(?P<op>[^,()]*)(?:, node name: (?P<name>.*?))?\): ")
"""Where the error of a node begins: one without a name is told by its operator alone."""

_MADE_UP = re.compile(r"\bunk__\d+")
"""A name that inference gives to an unknown size: its number depends on all nodes before."""


def _inference(proto: ModelProto) -> Iterator[Finding]:
    """Yield what inference from the inputs says against nodes, and against declared shapes."""
    light = without_declarations(without_weights(proto))
    limit_calls(light)
    error = _error(lambda: onnx.shape_inference.infer_shapes(light, strict_mode=True, data_prop=True))
    if error is not None:
        yield from _node_errors(error)
    yield from _contradictions(proto.graph, infer_shapes(light).graph)


def _node_errors(text: str) -> Iterator[Finding]:
    """Yield the errors that inference joins into one, with their nodes."""
    _, *parts = _AT.split(text)
    if not parts:  # it concerns no node alone, as two functions of one name do
        yield Finding(_MADE_UP.sub("?", text), text)
    for op, name, reason in zip(parts[::3], parts[1::3], map(str.strip, parts[2::3]), strict=True):
        yield Finding(_MADE_UP.sub("?", reason), f"{op} {name or '(no name)'}: {reason}")


def _contradictions(graph: GraphProto, inferred: GraphProto) -> Iterator[Finding]:
    """Yield the declared types and shapes, in a graph and those inside it, that inference contradicts."""
    known = {value.name: value for value in (*inferred.value_info, *inferred.output)}
    for value in (*graph.value_info, *graph.output):
        other = known.get(value.name)
        if other is None:
            continue
        for kind in _contradicted(value, other):
            says = f"is declared {_type(value)}, and inference says "
            yield Finding(says + kind, f"{value.name!r} {says}{_type(other)}")
    for node, twin in zip(graph.node, inferred.node, strict=True):
        for (_, _, inner), (_, _, inside) in zip(subgraphs(node), subgraphs(twin), strict=True):
            yield from _contradictions(inner, inside)


def _contradicted(declared: ValueInfoProto, inferred: ValueInfoProto) -> Iterator[str]:
    """Yield each thing that inference contradicts. How much more it knows differs from model to model."""
    first, second = declared.type.tensor_type, inferred.type.tensor_type
    if not (declared.type.HasField("tensor_type") and inferred.type.HasField("tensor_type")):
        return
    if first.elem_type and second.elem_type and first.elem_type != second.elem_type:
        yield _element(second.elem_type)
    if not (first.HasField("shape") and second.HasField("shape")):
        return
    if len(first.shape.dim) != len(second.shape.dim):
        yield f"rank {len(second.shape.dim)}"
        return
    for axis, (one, other) in enumerate(zip(first.shape.dim, second.shape.dim, strict=True)):
        if one.HasField("dim_value") and other.HasField("dim_value") and one.dim_value != other.dim_value:
            yield f"{other.dim_value} at axis {axis}"


def _type(value: ValueInfoProto) -> str:
    kind = value.type.tensor_type
    element = _element(kind.elem_type)
    if not kind.HasField("shape"):
        return element
    sizes = [str(dim.dim_value) if dim.HasField("dim_value") else dim.dim_param or "?" for dim in kind.shape.dim]
    return f"{element} [{', '.join(sizes)}]"


def _element(number: int) -> str:
    known = TensorProto.DataType
    return str(known.Name(number)).lower() if number in known.values() else f"element type {number}"
