"""Writes out, before anything is looked for, what finders cannot read: FusedConv, and calls that say how to dilate.

What is not changed afterwards is put back, node for node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from onnx import ModelProto, NodeProto

from dilrewrite.model.tensors import Model, WrittenOut
from dilrewrite.model.walk import (
    DEFAULT_DOMAINS,
    Container,
    all_nodes,
    containers,
    copied,
    function_key,
    graphs_in,
    permute,
    rearrange,
    sorted_places,
)
from dilrewrite.sites.operators import dilations_of
from dilrewrite.splice.fused import is_fused, parts
from dilrewrite.splice.inline import copied_function, forget_uncalled, inline, specialised
from dilrewrite.splice.names import Names


def plain(model: Model, *, fused: bool = True) -> Model:
    """Return the model with nodes written out, itself where there are none; `given` is then what it was.

    `fused`: FusedConv too.
    """
    proto, written = model.proto, []
    fused = fused and any(map(is_fused, all_nodes(proto))) and any(map(_dilated, all_nodes(proto)))
    if not (fused or specialised(proto)):
        return model
    edited, names = copied(proto), Names(proto)

    def note(node: NodeProto, nodes: Iterable[NodeProto], opset: int = 0) -> None:
        written.append(WrittenOut(node=node, nodes=tuple(map(copied, nodes)), opset=opset))

    inline(edited, names, note)
    if fused:
        _write_fused(edited, names, note)
    return replace(model, proto=edited, given=proto, written_out=tuple(written))


def _dilated(node: NodeProto) -> bool:
    dilations, of_call = dilations_of(node)
    return of_call or max(dilations, default=1) > 1


def _write_fused(proto: ModelProto, names: Names, note: Callable[[NodeProto, list[NodeProto], int], None]) -> None:
    """Write out every FusedConv, of the functions too: of those without dilation regions may be made."""
    for body in (proto.graph, *proto.functions):
        imported = proto.opset_import if body is proto.graph else body.opset_import
        opset = next((entry.version for entry in imported if entry.domain in DEFAULT_DOMAINS), None)
        if opset is None:
            continue
        for container in _lists(body):
            if any(map(is_fused, container.node)):
                nodes: list[NodeProto] = []
                for node in map(copied, container.node):
                    fresh = list(parts(node, opset, names)) if is_fused(node) else [node]
                    if is_fused(node):
                        note(node, fresh, opset)
                    nodes += fresh
                del container.node[:]
                container.node.extend(nodes)


def _lists(body: Container) -> Iterator[Container]:
    """Yield a graph or function and the graphs in it, each before those in it, which may be others by then."""
    yield body
    yield from graphs_in(body.node)


def restored(model: Model, proto: ModelProto) -> ModelProto:
    """Return an edited `model.proto` with every node put back of whose parts none was changed; `proto` is consumed."""
    if model.given is None:
        return proto
    for written in reversed(model.written_out):  # a call's nodes may hold a FusedConv
        wanted = {tuple(node.output): _bytes(node) for node in written.nodes}
        for container in containers(proto):
            made = ((tuple(node.output), place) for place, node in enumerate(container.node))
            places = {outputs: place for outputs, place in made if outputs in wanted}
            if len(places) == len(written.nodes) and all(
                _bytes(container.node[place]) == wanted[outputs] for outputs, place in places.items()
            ):
                _put_back(container, written.node, list(places.values()))
                break
    _functions_back(model.given, proto)
    return proto


def _bytes(node: NodeProto) -> bytes:
    return bytes(node.SerializeToString(deterministic=True))


def _put_back(container: Container, node: NodeProto, places: Sequence[int]) -> None:
    last = max(places)
    container.node[last].CopyFrom(node)
    gone = {place for place in places if place != last}
    rearrange(container.node, [None if place in gone else place for place in range(len(container.node))])
    permute(container.node, sorted_places(container.node))


def _functions_back(given: ModelProto, proto: ModelProto) -> None:
    """Add the functions that are called again, in the order that they had."""
    here = {function_key(function) for function in proto.functions}
    if len(here) < len(given.functions):
        now = {function_key(function): copied_function(function) for function in proto.functions}
        every = [now.get(function_key(function), function) for function in given.functions]
        functions = [copied_function(function) for function in every]
        del proto.functions[:]
        proto.functions.extend(functions)
        forget_uncalled(proto, {function_key(function) for function in given.functions} - here)
