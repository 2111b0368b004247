"""Where inferred sizes are not to be trusted: what ONNX Runtime computes otherwise, and what inference dies of.

The nodes in doubt are hidden from inference in the light copy (`hide`), with what may still be believed of them.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from dilrewrite.model.light import Shape, Typed, graph_shapes
from dilrewrite.model.walk import DEFAULT_DOMAINS, Key, callers_last, containers, expanded, function_key, subgraphs

UNKNOWN_DOMAIN = "dilrewrite.unknown"
"""Of operators that stand in a copy for nodes whose results are not to be inferred."""

MAX_EXPANDED = 100_000
"""Nodes that all calls of functions together may stand for in inference; the calls beyond are not looked into."""

Doubt = tuple[GraphProto, NodeProto, Mapping[str, Typed]]
"""A node of the light copy, its graph, and what may still be believed of its outputs."""


def hide(light: ModelProto, doubts: Sequence[Doubt]) -> None:
    """Make inference take the given shapes for the nodes' outputs, in place of what it would find."""
    if all(entry.domain != UNKNOWN_DOMAIN for entry in light.opset_import):
        light.opset_import.add(domain=UNKNOWN_DOMAIN, version=1)
    for graph, node, outputs in doubts:
        node.domain, node.op_type = UNKNOWN_DOMAIN, "Unknown"
        entries = {value.name: value for value in (*graph.value_info, *graph.output)}
        for name, (element, shape) in outputs.items():
            value = entries.get(name)
            if value is None:
                value = graph.value_info.add(name=name)
            if element:
                kind = onnx.helper.make_tensor_type_proto(element, None if shape is None else list(shape))
                value.type.CopyFrom(kind)


# -- operators -------------------------------------------------------------------------------------------------------

POOLS = ("MaxPool", "AveragePool", "LpPool")

Values = Mapping[str, NodeProto | TensorProto]
"""Constants by name: initializers, and the nodes that make the others."""


def runtime_doubts(light: ModelProto, inferred: ModelProto) -> list[Doubt]:
    """Return the nodes whose output ONNX Runtime may give other sizes than ONNX's inference, with unknown sizes.

    Those that may give other values, which inference takes for sizes later on, come with the sizes that they have.
    """
    risky, narrowing = _risky_functions(light)
    found: list[Doubt] = []

    def walk(
        graph: GraphProto, twin: GraphProto, outer: MutableMapping[str, Typed], around: MutableMapping[str, Any]
    ) -> None:
        shapes = ChainMap(graph_shapes(twin), outer)
        values = ChainMap(_constants(graph.node, graph.initializer), around)
        for node, other in zip(graph.node, twin.node, strict=True):
            for (_, _, below), (_, _, below_twin) in zip(subgraphs(node), subgraphs(other), strict=True):
                walk(below, below_twin, shapes, values)
            if function_key(node) in risky:
                found.append((graph, node, {name: (shapes.get(name, (0, None))[0], None) for name in node.output}))
            elif function_key(node) in narrowing:
                found.append((graph, node, {name: shapes.get(name, (0, None)) for name in node.output if name}))
            elif node.input and node.output and node.domain in DEFAULT_DOMAINS:
                given = shapes.get(node.input[0], (0, None))[1]
                shape = shapes.get(node.output[0], (0, None))[1]
                if shape is not None and _differs(node, given, shape, values):
                    open_shape = None if given is None else (None,) * len(given)
                    known = {name: (shapes.get(name, (0, None))[0], open_shape) for name in node.output if name}
                    found.append((graph, node, known))
                elif _narrows(node, shapes.get(node.input[0], (0, None))):
                    found.append((graph, node, {node.output[0]: shapes.get(node.output[0], (0, None))}))

    walk(light.graph, inferred.graph, {}, {})
    return found


def _constants(nodes: Sequence[NodeProto], initializers: Sequence[TensorProto]) -> dict[str, Any]:
    values: dict[str, Any] = {tensor.name: tensor for tensor in initializers}
    values.update((node.output[0], node) for node in nodes if node.op_type == "Constant" and node.output)
    return values


def _differs(node: NodeProto, given: Shape | None, found: Shape | None, values: Values) -> bool:
    """Say whether ONNX Runtime may compute other sizes than `found` from an input of shape `given`.

    Without shapes: whether there is an input for which it may. Tried over random attributes with onnx 1.23 and ONNX
    Runtime 1.32: only these operators differ.
    """
    check: Callable[[NodeProto, Shape | None, Shape | None], bool]
    if node.op_type == "Slice":
        return _slices_backwards(node, values)
    if node.op_type in ("Resize", "Upsample"):
        return _resize_differs(node, given, found, values)
    if node.op_type in POOLS:
        check = _pool_differs
    elif node.op_type == "ConvTranspose":
        check = _transpose_differs
    else:
        return False
    if given is not None and found is not None:
        if len(given) != len(found):
            return True
        if all(size is None for size in found[2:]):
            return False
    return check(node, given, found)


def _pool_differs(node: NodeProto, given: Shape | None, found: Shape | None) -> bool:
    rounds_up = bool(_int(node, "ceil_mode"))
    same = _text(node, "auto_pad").startswith("SAME")
    dilated = any(d > 1 for d in _ints(node, "dilations") or ())
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return True
    if same or not rounds_up:
        return same and (rounds_up or dilated)
    if given is None or found is None:
        return True
    kernel = _ints(node, "kernel_shape") or ()
    rank = len(kernel)
    strides, dilations = _ints(node, "strides") or (1,) * rank, _ints(node, "dilations") or (1,) * rank
    pads = (_ints(node, "pads") if _text(node, "auto_pad") != "VALID" else None) or (0,) * (2 * rank)
    if not len(strides) == len(dilations) == len(pads) // 2 == len(given) - 2 == rank or min(strides, default=0) < 1:
        return True
    for axis in range(rank):
        extent, begin = given[axis + 2], pads[axis]
        if extent is None or found[axis + 2] is None:
            continue
        rest = extent + begin + pads[axis + rank] - dilations[axis] * (kernel[axis] - 1) - 1
        count = -(-rest // strides[axis]) + 1
        if (count - 1) * strides[axis] >= extent + begin:  # no window begins behind the data
            count -= 1
        if count != found[axis + 2]:
            return True
    return False


def _transpose_differs(node: NodeProto, given: Shape | None, found: Shape | None) -> bool:
    sizes = _ints(node, "output_shape")
    same = _text(node, "auto_pad").startswith("SAME")
    if sizes is None and not same:
        return False
    if given is None or found is None:
        return True
    if sizes is None:
        strides = _ints(node, "strides") or (1,) * (len(given) - 2)
        pairs = zip(given[2:], strides, strict=False)
        sizes = tuple(-1 if extent is None else extent * stride for extent, stride in pairs)
    return any(a not in (b, None) for a, b in zip(found[2:], sizes, strict=False))


def _slices_backwards(node: NodeProto, values: Values) -> bool:
    """Say whether a Slice has a negative step and an end that ONNX Runtime takes for "all", or one not known."""
    steps = _constant(node, 4, values)
    if steps is None or not np.any(steps < 0):
        return False
    ends = _constant(node, 2, values)
    return ends is None or ends.shape != steps.shape or bool(np.any((steps < 0) & (ends >= 2**31 - 1)))


def _resize_differs(node: NodeProto, given: Shape | None, found: Shape | None, values: Values) -> bool:
    """Say whether an extent times its scale may be another whole number in single precision, as ONNX Runtime computes.

    A target size that keeps the ratio of the extents is rounded in several ways too.
    """
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return True
    scales = _scales(node, values)
    if scales is None or not scales.size:
        sized = len(node.input) > 3 and node.input[3]
        return not sized or _text(node, "keep_aspect_ratio_policy") not in ("", "stretch")
    if not np.all(np.isfinite(scales) & (scales > 0)):
        return True
    if given is None or found is None:
        return not all(scale.is_integer() or math.frexp(scale)[0] == 0.5 for scale in scales.ravel().tolist())
    rank = len(given)
    axes = _ints(node, "axes") or tuple(range(rank))
    if rank != len(found) or scales.shape != (len(axes),) or not all(-rank <= axis < rank for axis in axes):
        return True
    for axis, scale in zip(axes, scales.tolist(), strict=True):
        extent, size = given[axis], found[axis]
        if extent is None or size is None:
            continue
        double = extent * scale
        if double >= 2**31 or not math.floor(double) == math.floor(np.float32(extent) * np.float32(scale)) == size:
            return True
    return False


def _scales(node: NodeProto, values: Values) -> Any:
    """Return the scales of a Resize or Upsample of any opset, `None` when they are not known."""
    attribute = _attribute(node, "scales")
    if attribute is not None:
        return np.array(attribute.floats, np.float32)
    return _constant(node, 2 if len(node.input) > 2 else 1, values)


WHOLE = (TensorProto.INT32, TensorProto.INT64)
"""The types in which inference follows sizes."""


def _narrows(node: NodeProto, given: Typed) -> bool:
    """Say whether a Cast may change sizes that inference follows through it unchanged: true and false, 8 bits."""
    if node.op_type != "Cast" or _int(node, "to") in WHOLE:
        return False
    element, shape = given
    return element in (0, *WHOLE) and (shape is None or len(shape) <= 1)


def _constant(node: NodeProto, place: int, values: Values) -> Any:
    """Return the values of a constant input, `None` when there are none to know."""
    held = values.get(node.input[place]) if len(node.input) > place else None
    if isinstance(held, NodeProto):
        held = next((attribute.t for attribute in held.attribute if attribute.name == "value"), None)
    if held is None or held.data_type not in (*WHOLE, TensorProto.FLOAT) or held.data_location == TensorProto.EXTERNAL:
        return None
    try:
        return onnx.numpy_helper.to_array(held)
    except ValueError:
        return None  # damaged


def _attribute(node: NodeProto, name: str) -> AttributeProto | None:
    return next((attribute for attribute in node.attribute if attribute.name == name), None)


def _int(node: NodeProto, name: str) -> int:
    attribute = _attribute(node, name)
    return 0 if attribute is None else attribute.i


def _ints(node: NodeProto, name: str) -> tuple[int, ...] | None:
    attribute = _attribute(node, name)
    return tuple(attribute.ints) if attribute is not None and attribute.ints else None


def _text(node: NodeProto, name: str) -> str:
    attribute = _attribute(node, name)
    return "" if attribute is None else attribute.s.decode("utf-8", "replace")


# -- functions -------------------------------------------------------------------------------------------------------

FATAL = ("DictVectorizer", "RegexFullMatch")
"""Operators whose inference ends the process where the type of what they read is not known (onnx 1.23)."""


def limit_calls(light: ModelProto) -> None:
    """Make inference leave calls alone where all together stand for more than `MAX_EXPANDED` nodes, and `FATAL` ones.

    onnx goes through a function again at every call: functions that call twice, 24 deep, are 16 million nodes.
    """
    fatal: list[Doubt] = [
        (body, node, {})
        for body in containers(light)
        for node in (body.node if isinstance(body, GraphProto) else ())
        if node.op_type in FATAL
    ]
    if fatal:
        hide(light, fatal)
    if not light.functions:
        return
    sizes = expanded(light)
    keys = {function_key(function) for function in light.functions}
    total = 0

    def walk(graph: GraphProto) -> Iterator[Doubt]:
        nonlocal total
        for node in graph.node:
            key = function_key(node)
            if key in keys:
                size = sizes.get(key, MAX_EXPANDED + 1)
                if total + size > MAX_EXPANDED:
                    yield graph, node, {}
                else:
                    total += size
            for _, _, below in subgraphs(node):
                yield from walk(below)

    doubts = list(walk(light.graph))
    if doubts:
        hide(light, doubts)


def _risky_functions(proto: ModelProto) -> tuple[set[Key], set[Key]]:
    """Return the functions with a node in them whose sizes ONNX Runtime may compute otherwise, and those that narrow.

    The values that a function narrows may become sizes behind it, or in it where something makes them whole again.
    """
    risky: set[Key] = set()
    narrowing: set[Key] = set()
    widening: set[Key] = set()
    for key, nodes in callers_last(proto):
        values = _constants(nodes, ())
        calls = {function_key(node) for node in nodes}
        own = [node for node in nodes if node.domain in DEFAULT_DOMAINS and node.output]
        if calls & narrowing or any(_narrows(node, (0, None)) for node in own):
            narrowing.add(key)
        if calls & widening or any(node.op_type == "Cast" and not _narrows(node, (0, None)) for node in own):
            widening.add(key)
        differs = any(_differs(node, None, None, values) for node in own)
        if differs or calls & risky or key in narrowing & widening:
            risky.add(key)
    return risky, narrowing
