"""What a file says of its tensors, and copies of a model without its weights: all that shape inference needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from dilrewrite.model.walk import containers, fed

Shape = tuple[int | None, ...]
Typed = tuple[int, Shape | None]
"""An element type (0: unknown) and a shape (`None`: the rank is unknown too)."""

UNKNOWN: Typed = (0, None)


def value_shape(value: ValueInfoProto) -> Typed:
    """Return what a declaration says."""
    kind = value.type.tensor_type
    if not kind.HasField("shape"):  # nor has what is no tensor
        return kind.elem_type, None
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in kind.shape.dim)
    return kind.elem_type, dims


def graph_shapes(graph: GraphProto) -> dict[str, Typed]:
    """Return what a graph says of its tensors."""
    shapes = {value.name: value_shape(value) for value in (*graph.input, *graph.value_info, *graph.output)}
    for tensor in graph.initializer:
        shapes[tensor.name] = tensor.data_type, tuple(tensor.dims)
    for sparse in graph.sparse_initializer:
        shapes[sparse.values.name] = sparse.values.data_type, tuple(sparse.dims)
    shapes.update((value.name, value_shape(value)) for value in graph.input)
    return shapes


_LIGHT_ELEMENTS = 512


def without_weights(proto: ModelProto) -> ModelProto:
    """Return a copy whose larger constants have a type and a shape and no values: all that inference needs.

    The values are not copied at any time (`ByteSize` would copy them too).
    """
    light = ModelProto()
    _copy_fields(proto, light, but=("graph",))
    _copy_light(proto.graph, light.graph)
    return light


def _copy_fields(source: Any, target: Any, *, but: tuple[str, ...]) -> None:
    for descriptor, value in source.ListFields():
        name = descriptor.name
        if name in (*but, "doc_string"):  # inference needs no comments, and they need not be UTF-8
            continue
        if isinstance(value, int | float | str | bytes):
            setattr(target, name, value)
        else:
            getattr(target, name).MergeFrom(value)


def _copy_light(source: GraphProto, target: GraphProto) -> None:
    _copy_fields(source, target, but=("node", "initializer"))
    target.initializer.extend(map(_hollow, source.initializer))
    for node in source.node:
        if not any(a.type in (a.TENSOR, a.GRAPH, a.GRAPHS) for a in node.attribute):
            target.node.append(node)
            continue
        twin = target.node.add()
        _copy_fields(node, twin, but=("attribute",))
        for attribute in node.attribute:
            copy = twin.attribute.add()
            _copy_fields(attribute, copy, but=("t", "g", "graphs"))
            if attribute.HasField("t"):
                copy.t.CopyFrom(_hollow(attribute.t))
            if attribute.HasField("g"):
                copy.g.SetInParent()
                _copy_light(attribute.g, copy.g)
            for graph in attribute.graphs:
                _copy_light(graph, copy.graphs.add())


def _hollow(tensor: TensorProto) -> TensorProto:
    if math.prod(tensor.dims) <= _LIGHT_ELEMENTS:
        return tensor
    hollow = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    hollow.data_location = TensorProto.EXTERNAL
    hollow.external_data.add(key="location", value="weights")
    return hollow


def with_inputs(proto: ModelProto, known: Mapping[str, Typed]) -> ModelProto:
    """Return a copy without weights in which tensors that nodes make are inputs of these types and shapes."""
    light = without_weights(proto)
    for node in light.graph.node:
        for place, name in enumerate(node.output):
            if name in known:
                node.output[place] = f"{name}/as it was"
    kept = [value for value in light.graph.value_info if value.name not in known]
    del light.graph.value_info[:]
    light.graph.value_info.extend(kept)
    for name, (number, shape) in known.items():
        dims = None if shape is None else [None if size is None else int(size) for size in shape]
        light.graph.input.append(helper.make_tensor_value_info(name, number, dims))
    return light


def with_sizes(proto: ModelProto, shapes: Mapping[str, Sequence[int]]) -> ModelProto:
    """Give inputs their sizes, by name, in place. Returns it."""
    for value in fed(proto):
        if value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add(dim_value=size)
    return proto


def without_declarations(proto: ModelProto) -> ModelProto:
    """Forget, in place, the declared shapes of all but the inputs: they may contradict these. Returns it."""
    for body in containers(proto):
        del body.value_info[:]
        for output in body.output if isinstance(body, GraphProto) else ():
            if output.type.HasField("tensor_type"):
                output.type.tensor_type.ClearField("shape")
    return proto
