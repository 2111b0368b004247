"""Where inferred sizes are not to be trusted: what ONNX Runtime computes otherwise, and what inference dies of.

The nodes in doubt are hidden from inference in the light copy (`hide`), with what may still be believed of them.
"""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from dilrewrite.model import walk
from dilrewrite.model.light import UNKNOWN, Shape, Typed, graph_shapes
from dilrewrite.model.walk import DEFAULT_DOMAINS, Key, function_key, subgraphs

UNKNOWN_DOMAIN = "dilrewrite.unknown"
"""Of operators that stand in a copy for nodes whose results are not to be inferred."""

MAX_EXPANDED = 100_000
"""Nodes that all calls of functions together may stand for in inference; the calls beyond are not looked into."""

Doubt = tuple[GraphProto, NodeProto, Mapping[str, Typed]]
"""A node of the light copy, its graph, and what may still be believed of its outputs."""


def hide(light: ModelProto, doubts: Sequence[Doubt]) -> None:
    """Make inference take the given shapes for the nodes' outputs, in place of what it would find."""
    if doubts and all(entry.domain != UNKNOWN_DOMAIN for entry in light.opset_import):
        light.opset_import.add(domain=UNKNOWN_DOMAIN, version=1)
    for graph, node, outputs in doubts:
        node.domain, node.op_type = UNKNOWN_DOMAIN, "Unknown"
        entries = {value.name: value for value in (*graph.value_info, *graph.output)}
        for name, (element, shape) in outputs.items():
            value = entries[name] if name in entries else graph.value_info.add(name=name)
            if element:
                value.type.CopyFrom(onnx.helper.make_tensor_type_proto(element, shape))


# -- operators -------------------------------------------------------------------------------------------------------

POOLS = ("MaxPool", "AveragePool", "LpPool")

Values = Mapping[str, NodeProto | TensorProto]
"""Constants by name: initializers, and the nodes that make the others."""


def runtime_doubts(light: ModelProto, inferred: ModelProto) -> list[Doubt]:
    """Return the nodes whose output ONNX Runtime may give other sizes than ONNX's inference, with unknown sizes.

    Those that may give other values, which inference takes for sizes later on, come with the sizes that they have.
    """
    risky, narrowing = _risky_functions(light)
    doubts: list[Doubt] = []

    def visit(
        graph: GraphProto, twin: GraphProto, outer: MutableMapping[str, Typed], around: MutableMapping[str, Any]
    ) -> None:
        shapes = ChainMap(graph_shapes(twin), outer)
        values = ChainMap(_constants(graph.node, graph.initializer), around)
        for node, other in zip(graph.node, twin.node, strict=True):
            for (_, _, below), (_, _, below_twin) in zip(subgraphs(node), subgraphs(other), strict=True):
                visit(below, below_twin, shapes, values)
            key, outputs = function_key(node), {name: shapes.get(name, UNKNOWN) for name in node.output if name}
            if key in risky:
                doubts.append((graph, node, {name: (element, None) for name, (element, _) in outputs.items()}))
            elif key in narrowing:
                doubts.append((graph, node, outputs))
            elif node.input and node.output and node.domain in DEFAULT_DOMAINS:
                source, shape = shapes.get(node.input[0], UNKNOWN), shapes.get(node.output[0], UNKNOWN)[1]
                given = source[1]
                if shape is not None and _differs(node, given, shape, values):
                    some = None if given is None else (None,) * len(given)
                    doubts.append((graph, node, {name: (element, some) for name, (element, _) in outputs.items()}))
                elif _narrows(node, source):
                    doubts.append((graph, node, outputs))

    visit(light.graph, inferred.graph, {}, {})
    return doubts


def _constants(nodes: Sequence[NodeProto], initializers: Sequence[TensorProto]) -> dict[str, Any]:
    values: dict[str, Any] = {tensor.name: tensor for tensor in initializers}
    values.update((node.output[0], node) for node in nodes if node.op_type == "Constant" and node.output)
    return values


def _differs(node: NodeProto, given: Shape | None, size: Shape | None, values: Values) -> bool:
    """Say whether ONNX Runtime may compute another `size` from an input of shape `given`.

    Without shapes: whether there is an input for which it may. Tried over random attributes with onnx 1.23 and ONNX
    Runtime 1.32: only these operators differ.
    """
    if node.op_type == "Slice":
        return _slices_backwards(node, values)
    if node.op_type in ("Resize", "Upsample"):
        return _resize_differs(node, given, size, values)
    if node.op_type not in _WINDOWS:
        return False
    if given is not None and size is not None:
        if len(given) != len(size):
            return True
        if all(extent is None for extent in size[2:]):
            return False
    return _WINDOWS[node.op_type](node, given, size)


def _pool_differs(node: NodeProto, given: Shape | None, size: Shape | None) -> bool:
    auto_pad, dilations = _get(node, "auto_pad", "s") or b"", _get(node, "dilations", "ints")
    rounds_up, same = bool(_get(node, "ceil_mode", "i")), auto_pad.startswith(b"SAME")
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return True
    if same or not rounds_up:
        return same and (rounds_up or any(d > 1 for d in dilations or ()))
    if given is None or size is None:
        return True
    kernel = _get(node, "kernel_shape", "ints") or ()
    rank = len(kernel)
    strides, dilations = _get(node, "strides", "ints") or (1,) * rank, dilations or (1,) * rank
    pads = (_get(node, "pads", "ints") if auto_pad != b"VALID" else None) or (0,) * (2 * rank)
    if not len(strides) == len(dilations) == len(pads) / 2 == len(given) - 2 == rank or min(strides, default=0) < 1:
        return True
    axes = zip(given[2:], size[2:], kernel, strides, dilations, pads[:rank], pads[rank:], strict=True)
    for extent, inferred, k, s, d, begin, end in axes:
        if extent is not None and inferred is not None:
            count = -(-(extent + begin + end - d * (k - 1) - 1) // s) + 1
            if (count - 1) * s >= extent + begin:  # no window begins behind the data
                count -= 1
            if count != inferred:
                return True
    return False


def _transpose_differs(node: NodeProto, given: Shape | None, size: Shape | None) -> bool:
    extents, auto_pad = _get(node, "output_shape", "ints"), _get(node, "auto_pad", "s") or b""
    if not extents and not auto_pad.startswith(b"SAME"):
        return False
    if given is None or size is None:
        return True
    if not extents:
        strides = _get(node, "strides", "ints") or (1,) * (len(given) - 2)
        extents = [-1 if h is None else h * s for h, s in zip(given[2:], strides, strict=False)]
    return any(a not in (b, None) for a, b in zip(size[2:], extents, strict=False))


_WINDOWS = {**dict.fromkeys(POOLS, _pool_differs), "ConvTranspose": _transpose_differs}


def _slices_backwards(node: NodeProto, values: Values) -> bool:
    """Say whether a Slice has a negative step and an end that ONNX Runtime takes for "all", or one not known."""
    steps = _constant(node, 4, values)
    if steps is None or not np.any(steps < 0):
        return False
    ends = _constant(node, 2, values)
    return ends is None or ends.shape != steps.shape or bool(np.any((steps < 0) & (ends >= 2**31 - 1)))


def _resize_differs(node: NodeProto, given: Shape | None, size: Shape | None, values: Values) -> bool:
    """Say whether an extent times its scale may be another whole number in single precision, as ONNX Runtime computes.

    A target size that keeps the ratio of the extents is rounded in several ways too.
    """
    if any(attribute.ref_attr_name for attribute in node.attribute):
        return True
    scales = _get(node, "scales", "floats")
    if scales is None:
        scales = _constant(node, 2 if len(node.input) > 2 else 1, values)
    if scales is None or not np.size(scales):
        sized = len(node.input) > 3 and node.input[3]
        return not sized or _get(node, "keep_aspect_ratio_policy", "s") not in (None, b"", b"stretch")
    scales = np.array(scales, np.float32)
    if not np.all(np.isfinite(scales) & (scales > 0)):
        return True
    if given is None or size is None:
        return not all(scale.is_integer() or math.frexp(scale)[0] == 0.5 for scale in scales.ravel().tolist())
    rank = len(given)
    axes = _get(node, "axes", "ints") or tuple(range(rank))
    if rank != len(size) or scales.shape != (len(axes),) or not all(-rank <= axis < rank for axis in axes):
        return True
    for axis, scale in zip(axes, scales.tolist(), strict=True):
        extent, inferred = given[axis], size[axis]
        if extent is not None and inferred is not None:
            double = extent * scale
            if double >= 2**31 or not math.floor(double) == inferred == math.floor(
                np.float32(extent) * np.float32(scale)
            ):
                return True
    return False


WHOLE = (TensorProto.INT32, TensorProto.INT64)
"""The types in which inference follows sizes."""


def _narrows(node: NodeProto, given: Typed) -> bool:
    """Say whether a Cast may change sizes that inference follows through it unchanged: true and false, 8 bits."""
    if node.op_type != "Cast" or _get(node, "to", "i") in WHOLE:
        return False
    element, shape = given
    return element in (0, *WHOLE) and (shape is None or len(shape) <= 1)


def _constant(node: NodeProto, place: int, values: Values) -> Any:
    """Return the values of a constant input, `None` when there are none to know."""
    held = values.get(node.input[place]) if len(node.input) > place else None
    if isinstance(held, NodeProto):
        held = _get(held, "value", "t")
    if held is None or held.data_type not in (*WHOLE, TensorProto.FLOAT) or held.data_location == TensorProto.EXTERNAL:
        return None
    try:
        return onnx.numpy_helper.to_array(held)
    except ValueError:  # damaged
        return None


def _get(node: NodeProto, name: str, kind: str) -> Any:
    """Return what a field of an attribute holds, `None` without the attribute."""
    return next((getattr(attribute, kind) for attribute in node.attribute if attribute.name == name), None)


# -- functions -------------------------------------------------------------------------------------------------------

FATAL = ("DictVectorizer", "RegexFullMatch")
"""Operators whose inference ends the process where the type of what they read is not known (onnx 1.23)."""


def limit_calls(light: ModelProto) -> None:
    """Make inference leave calls alone where all together stand for more than `MAX_EXPANDED` nodes, and `FATAL` ones.

    onnx goes through a function again at every call: functions that call twice, 24 deep, are 16 million nodes.
    """
    bodies = [body for body in walk.containers(light) if isinstance(body, GraphProto)]
    hide(light, [(body, node, {}) for body in bodies for node in body.node if node.op_type in FATAL])
    sizes, total = walk.expanded(light), 0
    beyond: list[Doubt] = []
    functions = {function_key(function) for function in light.functions}
    for graph in walk.graphs(light.graph) if functions else ():
        for node in graph.node:
            key = function_key(node)
            size = sizes.get(key, MAX_EXPANDED + 1) if key in functions else 0
            if total + size > MAX_EXPANDED:
                beyond.append((graph, node, {}))
            else:
                total += size
    hide(light, beyond)


def _risky_functions(proto: ModelProto) -> tuple[set[Key], set[Key]]:
    """Return the functions with a node in them whose sizes ONNX Runtime may compute otherwise, and those that narrow.

    The values that a function narrows may become sizes behind it, or in it where something makes them whole again.
    """
    risky: set[Key] = set()
    narrowing: set[Key] = set()
    widening: set[Key] = set()
    for key, nodes in walk.callers_last(proto):
        values, calls = _constants(nodes, ()), {function_key(node) for node in nodes}
        own = [node for node in nodes if node.domain in DEFAULT_DOMAINS and node.output]
        if calls & narrowing or any(_narrows(node, UNKNOWN) for node in own):
            narrowing.add(key)
        if calls & widening or any(node.op_type == "Cast" and not _narrows(node, UNKNOWN) for node in own):
            widening.add(key)
        if calls & risky or key in narrowing & widening or any(_differs(node, None, None, values) for node in own):
            risky.add(key)
    return risky, narrowing
