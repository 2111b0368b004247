"""Says which sizes of a model can be believed: the only file that doubts what other shape inference takes for true.

A static size in value_info, in a declared output or at the input of a subgraph is a claim: many files were given
dynamic inputs by hand and kept their old claims. A size is believed where it follows from the model's inputs and
constants, the file says nothing else, and ONNX Runtime is known to compute it as ONNX does.
"""

from __future__ import annotations

import graphlib
import math
from collections import ChainMap, deque
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import (
    AttributeProto,
    FunctionProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
)

from dilrewrite.errors import UsageError

DEFAULT_DOMAINS = ("", "ai.onnx")

UNKNOWN_DOMAIN = "dilrewrite.unknown"
"""Of operators that stand in a copy for nodes whose results are not to be inferred."""

MAX_EXPANDED = 100_000
"""Nodes that all calls of functions together may stand for in inference; the calls beyond are not looked into."""

MAX_WRITTEN_OUT = 1_000_000
"""Nodes that they may stand for in a model that is to run: runtimes write every call out."""

Shape = tuple[int | None, ...]
Typed = tuple[int, Shape | None]
"""An element type (0: unknown) and a shape (`None`: the rank is unknown too)."""


def subgraphs(node: NodeProto) -> Iterator[tuple[str, int, GraphProto]]:
    """Yield (attribute name, place, graph) for every graph that a node holds."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, 0, attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            for place, graph in enumerate(attribute.graphs):
                yield attribute.name, place, graph


def value_shape(value: ValueInfoProto) -> Typed:
    """Return what a declaration says."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return 0, None
    if not kind.HasField("shape"):
        return kind.elem_type, None
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in kind.shape.dim)
    return kind.elem_type, dims


def graph_shapes(graph: GraphProto) -> dict[str, Typed]:
    """Return what a graph says of its tensors."""
    shapes = {value.name: value_shape(value) for value in (*graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        shapes[tensor.name] = tensor.data_type, tuple(tensor.dims)
    for sparse in graph.sparse_initializer:
        shapes[sparse.values.name] = sparse.values.data_type, tuple(sparse.dims)
    shapes.update((value.name, value_shape(value)) for value in graph.input)
    return shapes


def believed(light: ModelProto) -> ModelProto:
    """Return `light`, a copy without weights that is used up, with the sizes that can be believed and no others."""
    _forget_overridable(light)
    orders = _sort_all(light.graph)
    claims = [_take_claims(graph, inner) for graph, inner in _graphs(light)]
    limit_calls(light)
    inferred = _inferred(light)
    doubts = _runtime_doubts(light, inferred)
    if doubts:
        _doubt(light, doubts)
        inferred = _inferred(light)
    doubts = _claim_doubts(light, inferred, claims)
    if doubts:
        _doubt(light, doubts)
        inferred = _inferred(light)
    _restore_all(inferred.graph, orders)
    return inferred


def _forget_overridable(light: ModelProto) -> None:
    """Remove the initializers that a caller may replace: their values say nothing, their inputs the type and shape.

    Before IR version 4 every initializer is an input too, and none can be replaced.
    """
    if light.ir_version < 4:
        return
    for graph, _ in _graphs(light):
        inputs = {value.name for value in graph.input}
        kept = [tensor for tensor in graph.initializer if tensor.name not in inputs]
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)


def forget_unbelieved(proto: ModelProto, twin: ModelProto) -> None:
    """Remove from `proto` every declared size that `twin`, its `believed` copy, does not confirm; put types right.

    The model's own inputs and outputs stay: they are its interface. A runtime takes the other declarations for true and
    folds them into constants wherever something asks for a size, as the nodes of a fragment do. Inputs and outputs of
    subgraphs keep a shape, of no known size if need be: onnx's checker asks for one.
    """
    for (graph, inner), (other, _) in zip(_graphs(proto), _graphs(twin), strict=True):
        shapes = graph_shapes(other)
        ends = (*graph.input, *graph.output) if inner else ()
        for value, end in (*((value, False) for value in graph.value_info), *((value, True) for value in ends)):
            if not value.type.HasField("tensor_type"):
                if _states_size(value.type):
                    _forget_shapes(value.type)
                continue
            element, known = shapes.get(value.name, (0, None))
            if element:
                value.type.tensor_type.elem_type = element
            declared = value_shape(value)[1]
            if declared is None or all(size is None for size in declared):
                continue
            if known is None or len(known) != len(declared):
                if not end:
                    value.type.tensor_type.ClearField("shape")
                    continue
                known = (None,) * len(declared)
                for dim in value.type.tensor_type.shape.dim:
                    dim.ClearField("dim_param")  # equal names would be claims too
            for dim, size in zip(value.type.tensor_type.shape.dim, known, strict=True):
                if dim.HasField("dim_value") and dim.dim_value != size:
                    dim.ClearField("dim_value")


def declares(proto: ModelProto) -> bool:
    """Say whether the file declares anything but its inputs and outputs."""
    return any(inner or graph.value_info for graph, inner in _graphs(proto))


def _graphs(proto: ModelProto) -> Iterator[tuple[GraphProto, bool]]:
    """Yield every graph, those in functions too, and whether it stands inside a node."""
    yield proto.graph, False
    yield from _below(proto.graph.node)
    for function in proto.functions:
        yield from _below(function.node)


def _below(nodes: Sequence[NodeProto]) -> Iterator[tuple[GraphProto, bool]]:
    for node in nodes:
        for _, _, graph in subgraphs(node):
            yield graph, True
            yield from _below(graph.node)


# -- order -----------------------------------------------------------------------------------------------------------


def _sort_all(graph: GraphProto) -> list[list[int]]:
    """Sort the nodes of a graph, and of those inside, as onnx's inference needs them; return their old places."""
    reads = [{*node.input, *_captured(node)} for node in graph.node]
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    waits = [{makers[name] for name in names if name in makers} for names in reads]
    order = list(range(len(waits)))
    if any(wait and max(wait) >= place for place, wait in enumerate(waits)):
        order = _ordered(waits)
        _permute(graph.node, order)
    orders = [order]
    for node in graph.node:
        for _, _, below in subgraphs(node):
            orders.extend(_sort_all(below))
    return orders


def _captured(node: NodeProto) -> set[str]:
    """Return the names that the graphs of a node read, and do not make."""
    names: set[str] = set()
    for _, _, graph in subgraphs(node):
        read = {name for inner in graph.node for name in (*inner.input, *_captured(inner))}
        read |= {value.name for value in graph.output}
        made = {name for inner in graph.node for name in inner.output} | {value.name for value in graph.input}
        names |= read - made
    return names


def _ordered(waits: Sequence[set[int]]) -> list[int]:
    try:
        return list(graphlib.TopologicalSorter(dict(enumerate(waits))).static_order())
    except graphlib.CycleError:
        return list(range(len(waits)))  # no runtime takes it


def _permute(repeated: Any, order: Sequence[int]) -> None:
    """Put the messages of a repeated field in the given order of their places; they keep their identity."""
    ranks = sorted(range(len(order)), key=order.__getitem__)
    keys = iter(ranks)
    repeated.sort(key=lambda _: next(keys))


def _restore_all(graph: GraphProto, orders: Sequence[Sequence[int]]) -> None:
    """Undo `_sort_all`."""
    graphs = [graph, *(below for below, _ in _below(graph.node))]
    for one, order in zip(graphs, orders, strict=True):
        _permute(one.node, sorted(range(len(order)), key=order.__getitem__))


# -- claims ----------------------------------------------------------------------------------------------------------


def _states_size(kind: TypeProto) -> bool:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        return _states_size(getattr(kind, which).elem_type)
    shape = getattr(kind, which).shape if which in ("tensor_type", "sparse_tensor_type") else None
    return shape is not None and any(dim.HasField("dim_value") for dim in shape.dim)


def _forget_shapes(kind: TypeProto) -> None:
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        _forget_shapes(getattr(kind, which).elem_type)
    elif which in ("tensor_type", "sparse_tensor_type"):
        getattr(kind, which).ClearField("shape")


def _take_claims(graph: GraphProto, inner: bool) -> dict[str, list[Shape]]:
    """Remove the declared shapes of a graph, but for the model's own tensor inputs, and return them.

    A runtime refuses other sizes at those; at the inputs of a subgraph it does not.
    """
    makers = {name: node.domain in DEFAULT_DOMAINS for node in graph.node for name in node.output}
    claims: dict[str, list[Shape]] = {}
    for value in (*graph.value_info, *graph.output, *(graph.input if inner else ())):
        shape = value_shape(value)[1]
        if shape is not None:
            claims.setdefault(value.name, []).append(shape)
    for value in (*graph.value_info, *graph.output):
        if makers.get(value.name, True):
            value.ClearField("type")  # inference knows the operator; a wrong type would only stop it
    for value in (*graph.value_info, *graph.output, *graph.input):
        if inner or value.name in makers or not value.type.HasField("tensor_type"):
            _forget_shapes(value.type)
    kept = [value for value in graph.value_info if value.HasField("type")]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return claims


def _inferred(light: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return light  # an operator or opset that the installed onnx does not know


# -- doubts ----------------------------------------------------------------------------------------------------------

Doubt = tuple[GraphProto, NodeProto, Mapping[str, Typed]]
"""A node of the light copy, its graph, and what may still be believed of its outputs."""


def _doubt(light: ModelProto, doubts: Sequence[Doubt]) -> None:
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


def _claim_doubts(light: ModelProto, inferred: ModelProto, claims: Sequence[Mapping[str, list[Shape]]]) -> list[Doubt]:
    """Return the nodes of whose outputs, or inside which, the file says other sizes than inference finds."""
    found: list[Doubt] = []
    place = 0

    def walk(graph: GraphProto, twin: GraphProto, *, owned: bool) -> bool:
        """Add the doubts of a graph; say whether its own inputs are in doubt."""
        nonlocal place
        said = claims[place]
        place += 1
        shapes = graph_shapes(twin)
        for node, other in zip(graph.node, twin.node, strict=True):
            count = len(found)
            inside = [
                walk(below, below_twin, owned=True)
                for (_, _, below), (_, _, below_twin) in zip(subgraphs(node), subgraphs(other), strict=True)
            ]
            known = {name: shapes.get(name, (0, None)) for name in node.output if name}
            agreed = {name: _agreed(typed, said.get(name, ())) for name, typed in known.items()}
            if any(inside):
                del found[count:]  # nothing inside is inferred any more
                agreed = {name: (element, None) for name, (element, _) in known.items()}
            if any(inside) or agreed != known:
                found.append((graph, node, agreed))
        return owned and any(
            _agreed(shapes[value.name], said.get(value.name, ())) != shapes[value.name] for value in graph.input
        )

    walk(light.graph, inferred.graph, owned=False)
    return found


def _agreed(typed: Typed, claims: Sequence[Shape]) -> Typed:
    """Return what is left of an inferred shape when the sizes that the file contradicts are unknown."""
    element, shape = typed
    for claim in claims:
        if shape is None or len(claim) != len(shape):
            return element, None
        shape = tuple(a if b in (a, None) else None for a, b in zip(shape, claim, strict=True))
    return element, shape


# -- where runtimes compute otherwise ----------------------------------------------------------------------------------

POOLS = ("MaxPool", "AveragePool", "LpPool")

Values = Mapping[str, NodeProto | TensorProto]
"""Constants by name: initializers, and the nodes that make the others."""


def _runtime_doubts(light: ModelProto, inferred: ModelProto) -> list[Doubt]:
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

Key = tuple[str, str, str]


def function_key(item: NodeProto | FunctionProto) -> Key:
    """Return what a call and its function have in common."""
    return item.domain, item.op_type if isinstance(item, NodeProto) else item.name, item.overload


def _inside(nodes: Sequence[NodeProto]) -> Iterator[NodeProto]:
    for node in nodes:
        yield node
        for _, _, graph in subgraphs(node):
            yield from _inside(graph.node)


def _callers_last(proto: ModelProto) -> Iterator[tuple[Key, list[NodeProto]]]:
    """Yield the functions with all their nodes, those that they call before them; those of a cycle are left out."""
    bodies: dict[Key, list[NodeProto]] = {}
    for function in proto.functions:
        bodies.setdefault(function_key(function), []).extend(_inside(function.node))
    waits = {key: {function_key(node) for node in nodes} & bodies.keys() for key, nodes in bodies.items()}
    callers: dict[Key, list[Key]] = {}
    for key, callees in waits.items():
        for callee in callees:
            callers.setdefault(callee, []).append(key)
    ready = deque(key for key, callees in waits.items() if not callees)
    while ready:
        key = ready.popleft()
        yield key, bodies[key]
        for caller in callers.get(key, ()):
            waits[caller].discard(key)
            if not waits[caller]:
                ready.append(caller)


def expanded(proto: ModelProto) -> dict[Key, int]:
    """Return how many nodes a call of each function stands for; a function that calls itself is left out."""
    sizes: dict[Key, int] = {}
    for key, nodes in _callers_last(proto):
        sizes[key] = sum(sizes.get(function_key(node), 1) for node in nodes)
    return sizes


def check_calls(proto: ModelProto, where: str) -> None:
    """Raise `UsageError` for a model whose calls of functions stand for more nodes than a runtime can take."""
    if proto.functions:
        sizes = expanded(proto)
        total = sum(sizes.get(function_key(node), 1) for node in _inside(proto.graph.node))
        if total > MAX_WRITTEN_OUT:
            raise UsageError(
                f"{where}: its functions stand for {total:,} nodes when every call is written out, as runtimes do; "
                f"at most {MAX_WRITTEN_OUT:,} are run",
                hint="export the model without functions that call each other many times",
            )


FATAL = ("DictVectorizer", "RegexFullMatch")
"""Operators whose inference ends the process where the type of what they read is not known (onnx 1.23)."""


def limit_calls(light: ModelProto) -> None:
    """Make inference leave calls alone where all together stand for more than `MAX_EXPANDED` nodes, and `FATAL` ones.

    onnx goes through a function again at every call: functions that call twice, 24 deep, are 16 million nodes.
    """
    fatal: list[Doubt] = [
        (graph, node, {}) for graph, _ in _graphs(light) for node in graph.node if node.op_type in FATAL
    ]
    if fatal:
        _doubt(light, fatal)
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
        _doubt(light, doubts)


def _risky_functions(proto: ModelProto) -> tuple[set[Key], set[Key]]:
    """Return the functions with a node in them whose sizes ONNX Runtime may compute otherwise, and those that narrow.

    The values that a function narrows may become sizes behind it, or in it where something makes them whole again.
    """
    risky: set[Key] = set()
    narrowing: set[Key] = set()
    widening: set[Key] = set()
    for key, nodes in _callers_last(proto):
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
