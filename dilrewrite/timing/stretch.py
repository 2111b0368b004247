"""Builds what is timed for a region: its nodes as a model, on inputs of the sizes that they had in the profiled run.

Values play no part, so regions of equal operators, sizes and types are one question. Sizes that the model does not know
stay unknown in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from dilrewrite.model.elements import NUMBERED
from dilrewrite.model.light import Typed
from dilrewrite.model.walk import ScopePath, copied
from dilrewrite.proof.carve import NEWEST_IR, Source, tensor
from dilrewrite.proof.inputs import random_values
from dilrewrite.runtimes import Array, Io
from dilrewrite.sites import Operand, Part, Site
from dilrewrite.splice.editor import Reader
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.profiling import Profiled

Types = Mapping[tuple[ScopePath, str], Typed]
"""Element types and shapes of a model's tensors, by scope and name."""


def ask(source: Source, site: Site, profiled: Profiled, types: Types, read: Reader) -> Question:
    """Return the question of a region of `source`, whose tensors' values `read` returns.

    Raises LookupError when the type or size of a tensor that enters is not known.
    """
    feeds: dict[str, Array] = {}
    inputs: list[ValueInfoProto] = []
    for name in site.inputs:
        element, declared = types.get((site.scope, name), (0, None))
        shape = profiled.tensors.get((site.scope, name))
        if shape is None or element not in NUMBERED:
            raise LookupError(f"the size or type of {name!r}, which enters, is not known")
        io = Io(name=name, element=NUMBERED[element].name, shape=shape)
        feeds[name] = random_values(io, shape, np.random.default_rng(len(feeds)))
        dims = declared if declared is not None and len(declared) == len(shape) else (None,) * len(shape)
        sizes = [size if size is not None else f"{name}_{axis}" for axis, size in enumerate(dims)]
        inputs.append(helper.make_tensor_value_info(name, element, sizes))
    model, alone = extracted(source, site, inputs, types, read)
    text = repr((site.meaning, site.opset, [(each.shape, each.dtype) for each in feeds.values()], alone.fixed_weights))
    return Question(
        key=hashlib.sha256(f"region {text}".encode()).hexdigest(), model=model, site=alone, feeds=feeds, neighbours=()
    )


def extracted(
    source: Source, site: Site, inputs: list[ValueInfoProto], types: Types, read: Reader
) -> tuple[ModelProto, Site]:
    """Return the nodes of a region with their constants as a model with these inputs, and the region as its site."""
    proto, here = source.proto, source.scope(site.scope)
    own = () if site.scope.function is None else proto.functions[site.scope.function].opset_import
    opsets = {entry.domain: entry for entry in (*proto.opset_import, *own)}
    graph = GraphProto(name="region", node=[copied(here.nodes[place]) for place in site.nodes], input=inputs)
    made = {name for node in graph.node for name in node.output} | {value.name for value in inputs}
    for name in dict.fromkeys(name for node in graph.node for name in node.input if name and name not in made):
        constant = source.constant(site.scope, name)
        if constant is None:
            raise LookupError(f"{name!r}, which its nodes read, is no constant")
        values = tensor(np.asarray(read(constant)))
        values.data_type = constant.data_type
        values.name = name
        graph.initializer.append(values)
    for name in site.outputs:
        element, _ = types.get((site.scope, name), (0, None))
        if not element:
            raise LookupError(f"the type of {name!r}, which leaves, is not known")
        graph.output.append(helper.make_tensor_value_info(name, element, None))
    model = ModelProto(
        ir_version=min(max(proto.ir_version, 4), NEWEST_IR), graph=graph, opset_import=list(opsets.values())
    )
    return model, _restored(site)


def _restored(site: Site) -> Site:
    """Return a region as it stands in the model of its own nodes."""
    top = ScopePath(None, ())
    places = {place: number for number, place in enumerate(site.nodes)}

    def operand(given: Operand) -> Operand:
        return replace(given, kind="initializer", scope=top, index=None)

    def part(given: Part) -> Part:
        bias = operand(given.bias) if given.bias is not None else None
        return replace(given, index=places[given.index], weight=operand(given.weight), bias=bias)

    return replace(
        site,
        scope=top,
        where="main",
        nodes=tuple(places.values()),
        parts=tuple(map(part, site.parts)),
        operands={key: operand(given) for key, given in site.operands.items()},
    )
