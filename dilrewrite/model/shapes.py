"""Says which sizes of a model can be believed: the only file that doubts what other shape inference takes for true.

A static size in value_info, in a declared output or at the input of a subgraph is a claim: many files were given
dynamic inputs by hand and kept their old claims. A size is believed where it follows from the model's inputs and
constants, the file says nothing else, and ONNX Runtime is known to compute it as ONNX does.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import onnx
from onnx import GraphProto, ModelProto, TypeProto, ValueInfoProto

from dilrewrite.model import contrib
from dilrewrite.model.doubts import UNKNOWN_DOMAIN, Doubt, hide, limit_calls, runtime_doubts
from dilrewrite.model.light import UNKNOWN, Shape, Typed, graph_shapes, value_shape, without_weights
from dilrewrite.model.walk import DEFAULT_DOMAINS, containers, graphs, permute, rearrange, sorted_places, subgraphs

Claims = Mapping[str, list[Shape]]
"""What a graph declares of its tensors, by name."""


def infer_shapes(proto: ModelProto) -> ModelProto:
    """Return a weightless copy with the sizes that can be believed, and no other."""
    return believed(without_weights(proto))


def believed(light: ModelProto) -> ModelProto:
    """Return `light`, a copy without weights that is used up, with the sizes that can be believed and no others."""
    _forget_overridable(light)
    orders = []
    for graph in graphs(light.graph):  # as onnx's inference needs the nodes
        orders.append(sorted_places(graph.node))
        permute(graph.node, orders[-1])
    replaced = contrib.stand_in(light)
    claims = [_take_claims(graph, inner) for graph, inner in _graphs(light)]
    limit_calls(light)
    inferred = _inferred(light)
    for doubtful in (runtime_doubts, functools.partial(_claim_doubts, claims)):
        doubts = doubtful(light, inferred)
        if doubts:
            hide(light, doubts)
            inferred = _inferred(light)
    contrib.put_back(inferred, replaced, UNKNOWN_DOMAIN)
    for graph, order in zip([*graphs(inferred.graph)], orders, strict=True):
        rearrange(graph.node, order)
    return inferred


def _forget_overridable(light: ModelProto) -> None:
    """Remove the initializers that a caller may replace: their values say nothing, their inputs the type and shape.

    Before IR version 4 every initializer is an input too, and none can be replaced.
    """
    if light.ir_version < 4:
        return
    for graph, _ in _graphs(light):
        inputs = {value.name for value in graph.input}
        rearrange(graph.initializer, [None if tensor.name in inputs else 0 for tensor in graph.initializer])


def forget_unbelieved(proto: ModelProto, twin: ModelProto) -> None:
    """Remove from `proto` every declared size that `twin`, its `believed` copy, does not confirm; put types right.

    The model's own inputs and outputs stay: they are its interface. A runtime takes the other declarations for true and
    folds them into constants wherever something asks for a size, as the nodes of a fragment do. Inputs and outputs of
    subgraphs keep a shape, of no known size if need be: onnx's checker asks for one.
    """
    for (graph, inner), (other, _) in zip(_graphs(proto), _graphs(twin), strict=True):
        shapes = graph_shapes(other)
        for value in graph.value_info:
            _correct(value, shapes.get(value.name, UNKNOWN), keeps_rank=False)
        for value in (*graph.input, *graph.output) if inner else ():
            _correct(value, shapes.get(value.name, UNKNOWN), keeps_rank=True)


def _correct(value: ValueInfoProto, believed: Typed, *, keeps_rank: bool) -> None:
    if not value.type.HasField("tensor_type"):
        _forget_shapes(value.type, open_too=False)
        return
    (element, shape), kind, declared = believed, value.type.tensor_type, value_shape(value)[1]
    if element:
        kind.elem_type = element
    if declared is None or all(size is None for size in declared):
        return
    if shape is None or len(shape) != len(declared):
        if not keeps_rank:
            kind.ClearField("shape")
            return
        shape = (None,) * len(declared)
        for dim in kind.shape.dim:
            dim.ClearField("dim_param")  # equal names would be claims too
    for dim, size in zip(kind.shape.dim, shape, strict=True):
        if dim.HasField("dim_value") and dim.dim_value != size:
            dim.ClearField("dim_value")


def declares(proto: ModelProto) -> bool:
    """Say whether the file declares anything but its inputs and outputs."""
    return any(inner or graph.value_info for graph, inner in _graphs(proto))


def _graphs(proto: ModelProto) -> Iterator[tuple[GraphProto, bool]]:
    """Yield every graph, those in functions too, and whether it stands inside a node."""
    return ((body, place > 0) for place, body in enumerate(containers(proto)) if isinstance(body, GraphProto))


# -- claims ----------------------------------------------------------------------------------------------------------


def _forget_shapes(kind: TypeProto, *, open_too: bool = True) -> None:
    """Remove the shape that a type states, also one without any size if `open_too`."""
    which = kind.WhichOneof("value")
    if which in ("sequence_type", "optional_type"):
        _forget_shapes(getattr(kind, which).elem_type, open_too=open_too)
    elif which in ("tensor_type", "sparse_tensor_type"):
        tensor = getattr(kind, which)
        if open_too or any(dim.HasField("dim_value") for dim in tensor.shape.dim):
            tensor.ClearField("shape")


def _take_claims(graph: GraphProto, inner: bool) -> Claims:
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
    rearrange(graph.value_info, [0 if value.HasField("type") else None for value in graph.value_info])
    return claims


def _inferred(light: ModelProto) -> ModelProto:
    try:
        return onnx.shape_inference.infer_shapes(light, data_prop=True)
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError):
        return light  # an operator or opset that the installed onnx does not know


def _claim_doubts(claims: Sequence[Claims], light: ModelProto, inferred: ModelProto) -> list[Doubt]:
    """Return the nodes of whose outputs, or inside which, the file says other sizes than inference finds."""
    doubts: list[Doubt] = []
    claims_of_graphs = iter(claims)

    def walk(graph: GraphProto, twin: GraphProto, *, inner: bool) -> bool:
        """Add the doubts of a graph; say whether its own inputs are in doubt."""
        said, shapes = next(claims_of_graphs), graph_shapes(twin)
        for node, other in zip(graph.node, twin.node, strict=True):
            count = len(doubts)
            pairs = zip(subgraphs(node), subgraphs(other), strict=True)
            inside = [walk(below, below_twin, inner=True) for (_, _, below), (_, _, below_twin) in pairs]
            inferred = {name: shapes.get(name, UNKNOWN) for name in node.output if name}
            agreed = {name: _agreed(typed, said.get(name, ())) for name, typed in inferred.items()}
            if any(inside):
                del doubts[count:]  # nothing inside is inferred any more
                agreed = {name: (element, None) for name, (element, _) in inferred.items()}
            if any(inside) or agreed != inferred:
                doubts.append((graph, node, agreed))
        inputs = [value.name for value in graph.input] if inner else ()
        return any(_agreed(shapes[name], said.get(name, ())) != shapes[name] for name in inputs)

    walk(light.graph, inferred.graph, inner=False)
    return doubts


def _agreed(typed: Typed, claims: Sequence[Shape]) -> Typed:
    """Return what is left of an inferred shape when the sizes that the file contradicts are unknown."""
    element, shape = typed
    for claim in claims:
        if shape is None or len(claim) != len(shape):
            return element, None
        shape = tuple(a if b in (a, None) else None for a, b in zip(shape, claim, strict=True))
    return element, shape
