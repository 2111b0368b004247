"""Cuts a region out of a model as a model of its own: its nodes and tensors by their names, in their places."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from dilrewrite.forms.chain import Chain
from dilrewrite.model.elements import NAMED
from dilrewrite.model.walk import ScopePath
from dilrewrite.proof.carve import NEWEST_IR, Source, tensor
from dilrewrite.runtimes import Array
from dilrewrite.sites import Operand, Part, Site

Place = tuple[int, int]
"""An input of a node of a region: the node and the input, counted from 0."""

OLDEST_IR = 4
"""Before it every initializer had to be an input too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A region as a model, and as a site of it that a fragment for the region fits."""

    model: ModelProto
    site: Site


def constants_of(source: Source, site: Site, read: Callable[[TensorProto], Array]) -> dict[Place, Array]:
    """Return the values of all constants that the nodes of a region read.

    Weights behind a DequantizeLinear are dequantised. Raises LookupError for one that is not known.
    """
    known: dict[str, Array] = {}

    def value(name: str) -> Array:
        if name not in known:
            given = source.constant(site.scope, name)
            if given is None:
                raise LookupError(f"the values of {name!r} are not known")
            known[name] = read(given)
        return known[name]

    for part in site.parts:
        for pair in (part.weight_quantization, part.bias_quantization):
            if pair is not None:
                codes, scale = value(pair.source.name), value(pair.scale.name)
                zero = value(pair.zero_point.name) if pair.zero_point is not None else np.zeros((), codes.dtype)
                along = [-1 if axis == pair.axis else 1 for axis in range(codes.ndim)]
                scale, zero = (each.reshape(along if each.size > 1 else ()) for each in (scale, zero))
                known[pair.output] = ((codes.astype(np.int32) - zero.astype(np.int32)) * scale).astype(scale.dtype)
    nodes = source.scope(site.scope).nodes
    made = {name for index in site.nodes for name in nodes[index].output}
    return {
        (number, place): value(name)
        for number, index in enumerate(site.nodes)
        for place, name in enumerate(nodes[index].input)
        if name and ((number, place) in site.operands or name not in {*made, *site.inputs})
    }


def cut(
    site: Site,
    nodes: Sequence[NodeProto],
    constants: Mapping[Place, Array],
    inputs: Mapping[str, str],
) -> Cut:
    """Return a model of `nodes`, which stand for those of the region, and of these constants.

    `inputs`: the element types of the tensors that enter. A node is told from others by its place, which is its
    doc string; a rewritten model keeps it.
    """
    chain = site.meaning
    assert isinstance(chain, Chain)
    model = ModelProto(ir_version=max(min(site.ir_version, NEWEST_IR), OLDEST_IR))
    model.opset_import.add(domain="", version=site.opset)
    graph = model.graph
    graph.name = "region"
    names: dict[Place, str] = {}
    held: dict[int, str] = {}
    for place, values in constants.items():
        if id(values) not in held:
            held[id(values)] = f"constant/{place[0]}/{place[1]}"
            initializer = tensor(values)
            initializer.name = held[id(values)]
            graph.initializer.append(initializer)
        names[place] = held[id(values)]
    for number, node in enumerate(nodes):
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.domain, copy.name, copy.doc_string = "", f"node/{number}", str(number)
        del copy.metadata_props[:]
        copy.input[:] = [names.get((number, place), name) for place, name in enumerate(node.input)]
    for name, own in zip(site.inputs, chain.inputs, strict=True):
        graph.input.append(_input(name, inputs[name], chain.shapes.get(own)))
    graph.output.extend(ValueInfoProto(name=name) for name in site.outputs)
    return Cut(model=model, site=_site(site, names, constants))


def _input(name: str, element: str, shape: tuple[int | None, ...] | None) -> ValueInfoProto:
    dims = None if shape is None else [None if size is None else int(size) for size in shape]
    return helper.make_tensor_value_info(name, NAMED[element].number, dims)


def _site(site: Site, names: Mapping[Place, str], constants: Mapping[Place, Array]) -> Site:
    def operand(place: Place) -> Operand:
        values = constants[place]
        return Operand(kind="initializer", name=names[place], shape=values.shape, element=None, scope=ScopePath())

    number_of = {place: number for number, place in enumerate(site.nodes)}

    def part(given: Part) -> Part:
        index = number_of[given.index]
        bias = given.bias
        if (index, 2) in names:
            bias = operand((index, 2))
        return replace(
            given, index=index, weight=operand((index, 1)), bias=bias,
            weight_quantization=None, bias_quantization=None, input_quantization=None,
        )  # fmt: skip

    return replace(
        site, scope=ScopePath(), where="region", name="region", nodes=tuple(range(len(site.nodes))),
        parts=tuple(part(each) for each in site.parts), operands={place: operand(place) for place in names}, follow=(),
    )  # fmt: skip
