"""Goes through the graphs, nodes and names of a model: the only walker."""

from __future__ import annotations

import functools
import graphlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message  # type: ignore[import-untyped, unused-ignore]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

DEFAULT_DOMAINS = ("", "ai.onnx")

Container = GraphProto | FunctionProto
"""What has a list of nodes."""

Step = tuple[int, str, int]
"""A way down: node index, attribute name, index in `graphs` (0 for `g`)."""

M = TypeVar("M", ModelProto, GraphProto, NodeProto)

Key = tuple[str, str, str]
"""What a call and its function have in common: domain, name and overload."""


@dataclass(frozen=True, slots=True)
class ScopePath:
    """Where a node list is: a function (its index) or the main graph, and the way down from there."""

    function: int | None = None
    """Index of the model's function; `None` for the main graph."""
    steps: tuple[Step, ...] = ()
    """The way down from there: node index, attribute, place in the attribute's list of graphs (0 for a single one)."""


def copied(message: M) -> M:
    """Return a copy of a model or of a part of it."""
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


# -- graphs and nodes ------------------------------------------------------------------------------------------------


def subgraphs(node: NodeProto) -> Iterator[tuple[str, int, GraphProto]]:
    """Yield (attribute name, place, graph) for every graph that a node holds."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.name, 0, attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            for place, graph in enumerate(attribute.graphs):
                yield attribute.name, place, graph


def graphs_in(nodes: Iterable[NodeProto]) -> Iterator[GraphProto]:
    """Yield the graphs inside nodes, at any depth, each before those in it."""
    for node in nodes:
        for _, _, graph in subgraphs(node):
            yield graph
            yield from graphs_in(graph.node)


def graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield a graph and those inside it."""
    yield graph
    yield from graphs_in(graph.node)


def containers(proto: ModelProto, *, training: bool = False) -> Iterator[Container]:
    """Yield every graph and function, each before the graphs in it; those that only training runs if asked for."""
    trained = [graph for info in proto.training_info for graph in (info.initialization, info.algorithm)]
    for body in (proto.graph, *proto.functions, *(trained if training else ())):
        yield body
        yield from graphs_in(body.node)


def nodes_in(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes and those of the graphs inside them, each before those in it."""
    for node in nodes:
        yield node
        for _, _, graph in subgraphs(node):
            yield from nodes_in(graph.node)


def all_nodes(proto: ModelProto) -> Iterator[NodeProto]:
    """Yield every node of the model: main graph, functions, and all graphs inside."""
    for body in (proto.graph, *proto.functions):
        yield from nodes_in(body.node)


def scopes(proto: ModelProto) -> Iterator[tuple[ScopePath, Container]]:
    """Yield every graph and function of a model with its path."""

    def below(path: ScopePath, container: Container) -> Iterator[tuple[ScopePath, Container]]:
        yield path, container
        for index, node in enumerate(container.node):
            for attribute, place, graph in subgraphs(node):
                yield from below(ScopePath(path.function, (*path.steps, (index, attribute, place))), graph)

    yield from below(ScopePath(), proto.graph)
    for number, function in enumerate(proto.functions):
        yield from below(ScopePath(number), function)


def resolve(proto: ModelProto, path: ScopePath) -> Container:
    """Return the graph or function at `path`."""
    scope: Container = proto.graph if path.function is None else proto.functions[path.function]
    for index, attribute, place in path.steps:
        holder = next(a for a in scope.node[index].attribute if a.name == attribute)
        scope = holder.g if holder.type == AttributeProto.GRAPH else holder.graphs[place]
    return scope


_HOLDING = {
    f"{kind}Proto" for kind in ("Attribute", "Function", "Graph", "Node", "SparseTensor", "Tensor", "TrainingInfo")
}


@functools.cache
def _holders(kind: Any) -> list[str]:
    """Return the fields of a message that may hold tensors, nodes after the constants beside them."""
    fields = [field for field in kind.fields if field.message_type and field.message_type.name in _HOLDING]
    return sorted((field.name for field in fields), key=lambda name: name == "node")


def fed(proto: ModelProto) -> list[ValueInfoProto]:
    """Return the inputs that have no value of their own."""
    own = {tensor.name for tensor in proto.graph.initializer}
    return [value for value in proto.graph.input if value.name not in own]


def tensors(message: Message) -> Iterator[TensorProto]:
    """Yield every tensor of a model: (sparse) initializers at any depth, attributes, functions, training."""
    if isinstance(message, TensorProto):
        yield message
    for name in _holders(message.DESCRIPTOR):
        value = getattr(message, name)
        for part in value if not isinstance(value, Message) else (value,) if message.HasField(name) else ():
            yield from tensors(part)


# -- names -----------------------------------------------------------------------------------------------------------


def ends(body: Container) -> tuple[set[str], set[str]]:
    """Return the names of a graph's or function's inputs and outputs."""
    if isinstance(body, GraphProto):
        return {value.name for value in body.input}, {value.name for value in body.output}
    return set(body.input), set(body.output)


def names_read(body: Container) -> Counter[str]:
    """Count the names that are read in a graph or function and all graphs inside, its own too, and its outputs."""
    names: Counter[str] = Counter()
    for inner in (body, *graphs_in(body.node)):
        for node in inner.node:
            names.update(filter(None, node.input))
        names.update(ends(inner)[1])
    return names


def names_in_training(proto: ModelProto) -> Counter[str]:
    """Count the names that training uses: its graphs run together with the main one and see its tensors."""
    names: Counter[str] = Counter()
    for info in proto.training_info:
        for graph in (info.initialization, info.algorithm):
            names.update(names_read(graph))
        for binding in (*info.initialization_binding, *info.update_binding):
            names.update((binding.key, binding.value))
    return names


def reads(node: NodeProto) -> set[str]:
    """Return the names that a node reads, and those that the graphs inside it read from outside of them."""
    names = set(filter(None, node.input))
    for _, _, graph in subgraphs(node):
        inputs, outputs = ends(graph)
        own = inputs.union((tensor.name for tensor in graph.initializer), *(inner.output for inner in graph.node))
        names |= outputs.union(*map(reads, graph.node)) - own
    return names


# -- order -----------------------------------------------------------------------------------------------------------


def rearrange(repeated: Any, order: Sequence[int | None]) -> None:
    """Sort a repeated message field in place by `order`, dropping what has `None`; messages keep their identity."""
    last = 1 << 62
    keys = iter([last if key is None else key for key in order])
    repeated.sort(key=lambda _: next(keys))  # list.sort asks for each key once, in order
    del repeated[sum(key is not None for key in order) :]


def permute(repeated: Any, places: Sequence[int]) -> None:
    """Put the messages of a repeated field in the order of `places`, which are those where they stand now."""
    ranks = sorted(range(len(places)), key=lambda place: places[place])
    rearrange(repeated, ranks)


def sorted_places(nodes: Sequence[NodeProto]) -> list[int]:
    """Return the places of nodes in an order in which everything is made before it is read.

    Nodes that are in order stay so; otherwise a node comes right after what it needs. A circle, which no runtime takes,
    is cut somewhere.
    """
    makers = {name: place for place, node in enumerate(nodes) for name in node.output if name}
    begun: set[int] = set()
    order: dict[int, None] = {}
    for first in range(len(nodes)):
        stack = [first]
        while stack:
            here = stack[-1]
            if here in begun:
                order.setdefault(stack.pop())
                continue
            begun.add(here)
            needs = {makers[name] for name in reads(nodes[here]) if name in makers}
            stack += sorted(needs - begun, reverse=True)
    return list(order)


def put_in_order(proto: ModelProto) -> None:
    """Sort nodes and functions in place, makers before readers: real files are not sorted. Domains get one spelling."""
    for item in (*proto.opset_import, *all_nodes(proto)):
        item.domain = "" if item.domain in DEFAULT_DOMAINS else item.domain
    for body in containers(proto):
        permute(body.node, sorted_places(body.node))
    ranks = {key: rank for rank, (key, _) in enumerate(callers_last(proto))}
    proto.functions.sort(key=lambda function: ranks.get(function_key(function), 0))


# -- functions -------------------------------------------------------------------------------------------------------


def function_key(item: NodeProto | FunctionProto) -> Key:
    """Return what a call and its function have in common."""
    return item.domain, item.op_type if isinstance(item, NodeProto) else item.name, item.overload


def function_calls(proto: ModelProto) -> tuple[dict[Key, list[NodeProto]], dict[Key, set[Key]]]:
    """Return the nodes of each function, those of the graphs in it too, and the functions that it calls."""
    bodies: dict[Key, list[NodeProto]] = {}
    for function in proto.functions:
        bodies.setdefault(function_key(function), []).extend(nodes_in(function.node))
    return bodies, {key: {function_key(node) for node in nodes} & bodies.keys() for key, nodes in bodies.items()}


def callers_last(proto: ModelProto) -> Iterator[tuple[Key, list[NodeProto]]]:
    """Yield the functions with all their nodes, those that they call before them; those of a circle are left out."""
    bodies, calls = function_calls(proto)
    sorter = graphlib.TopologicalSorter(calls)
    with suppress(graphlib.CycleError):
        sorter.prepare()
    while sorter.is_active():
        for key in sorter.get_ready():
            yield key, bodies[key]
            sorter.done(key)


def expanded(proto: ModelProto) -> dict[Key, int]:
    """Return how many nodes a call of each function stands for; a function that calls itself is left out."""
    sizes: dict[Key, int] = {}
    for key, nodes in callers_last(proto):
        sizes[key] = sum(sizes.get(function_key(node), 1) for node in nodes)
    return sizes


def written_out(proto: ModelProto) -> int:
    """Return how many nodes the main graph stands for when every call is written out."""
    sizes = expanded(proto)
    return sum(sizes.get(function_key(node), 1) for node in nodes_in(proto.graph.node))
