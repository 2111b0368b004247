"""Writes out calls of functions: in the place of each call a copy of the function's nodes, attributes filled in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto

from dilrewrite.forms.geometry import acting_dilation
from dilrewrite.model.walk import (
    Key,
    copied,
    expanded,
    function_calls,
    function_key,
    graphs,
    nodes_in,
    subgraphs,
)
from dilrewrite.sites.operators import dilations_of, label_of, operator_of
from dilrewrite.splice.names import Names

MOST_NODES = 100_000
"""Models whose calls stand for more nodes are not written out."""

Called = Callable[[NodeProto, list[NodeProto]], None]


def specialised(proto: ModelProto) -> dict[Key, FunctionProto]:
    """Return the functions whose calls are written out.

    These are functions in which a dilation, or anything else that a form of a dilated operator hangs on, comes with the
    call: as an attribute of the function or as one of its inputs; and all that call them. Left out are functions of
    other operator versions than the model's, which its graph cannot hold, and those that call themselves.
    """
    sizes, counts = expanded(proto), Counter(map(function_key, proto.functions))
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    able = {
        function_key(function): function
        for function in proto.functions
        if function_key(function) in sizes
        and counts[function_key(function)] == 1
        and all(versions.get(entry.domain) == entry.version for entry in function.opset_import)
    }
    found = {key for key, function in able.items() if any(_open(node, function) for node in nodes_in(function.node))}
    _, calls = function_calls(proto)
    while callers := {key for key, called in calls.items() if called & found and key in able} - found:
        found |= callers
    written = sum(sizes.get(function_key(node), 1) for node in nodes_in(proto.graph.node))
    return {key: able[key] for key in able if key in found} if written <= MOST_NODES else {}


def _open(node: NodeProto, function: FunctionProto) -> bool:
    """Say whether it depends on the call how a dilated node is rewritten."""
    if operator_of(node) is None:
        return False
    dilations, of_call = dilations_of(node)
    if of_call:
        return True
    if acting_dilation((2,) * len(dilations), dilations) == 1:
        return False
    given = {name for name in node.input[1:] if name} & set(function.input)
    return bool(given) or any(attribute.ref_attr_name for attribute in node.attribute)


def inline(proto: ModelProto, names: Names, called: Called) -> None:
    """Write out, in the main graph and all graphs in it, the calls of the `specialised` functions of a model.

    Functions that nothing calls any more go. `called` is told of each call and of the nodes in its place.
    """
    functions = specialised(proto)
    if not functions:
        return
    for graph in graphs(proto.graph):
        nodes = []
        for node in graph.node:
            function = functions.get(function_key(node))
            if function is None:
                nodes.append(copied(node))
                continue
            fresh = list(_Copy(node, function, functions, names).nodes())
            called(copied(node), fresh)
            nodes += fresh
        del graph.node[:]
        graph.node.extend(nodes)
    forget_uncalled(proto, functions)


def forget_uncalled(proto: ModelProto, functions: Collection[Key]) -> None:
    """Remove those of `functions` that nothing calls."""
    bodies, calls = function_calls(proto)
    trained = (graph for info in proto.training_info for graph in (info.initialization, info.algorithm))
    called = (node for graph in (proto.graph, *trained) for node in nodes_in(graph.node))
    needed = set(map(function_key, called)) | (bodies.keys() - set(functions))
    while more := {other for key in needed for other in calls.get(key, ())} - needed:
        needed |= more
    kept = [copied_function(function) for function in proto.functions if function_key(function) in needed]
    del proto.functions[:]
    proto.functions.extend(kept)


def copied_function(function: FunctionProto) -> FunctionProto:
    """Return a copy of a function."""
    copy = FunctionProto()
    copy.CopyFrom(function)
    return copy


@dataclass
class _Copy:
    """The nodes of a function for one call: `values` are the names of its tensors around the call."""

    call: NodeProto
    function: FunctionProto
    functions: Mapping[Key, FunctionProto]
    names: Names

    def __post_init__(self) -> None:
        inputs, outputs = list(self.call.input), list(self.call.output)
        inputs += [""] * (len(self.function.input) - len(inputs))
        self.values: dict[str, str] = {"": "", **dict(zip(self.function.input, inputs, strict=False))}
        outputs += [""] * (len(self.function.output) - len(outputs))
        pairs = list(zip(self.function.output, outputs, strict=False))
        self.through = [(own, given) for own, given in pairs if own in self.values and given]
        self.values |= {own: given for own, given in pairs if given and own not in self.values}
        self.attributes = {attribute.name: attribute for attribute in self.function.attribute_proto}
        self.attributes |= {attribute.name: attribute for attribute in self.call.attribute}

    def nodes(self) -> Iterable[NodeProto]:
        """Yield the nodes; calls of other functions that are written out too are so already."""
        for node in self.function.node:
            yield from self._copied(node)
        for own, given in self.through:  # an output that is an input
            name = self.names.make(f"{label_of(self.call)}/Identity")
            yield NodeProto(op_type="Identity", name=name, input=[self.values[own]], output=[given])

    def _copied(self, node: NodeProto) -> Iterable[NodeProto]:
        copy = copied(node)
        copy.name = self.names.make(f"{label_of(self.call)}/{label_of(node)}")
        copy.input[:] = [self._value(name) for name in node.input]
        copy.output[:] = [self._value(name) for name in node.output]
        del copy.attribute[:]
        copy.attribute.extend(filter(None, map(self._attribute, node.attribute)))
        for _, _, graph in subgraphs(copy):
            self._rename(graph)
        function = self.functions.get(function_key(copy))
        return [copy] if function is None else _Copy(copy, function, self.functions, self.names).nodes()

    def _value(self, name: str) -> str:
        if name not in self.values:
            self.values[name] = self.names.make(f"{label_of(self.call)}/{name}")
        return self.values[name]

    def _attribute(self, attribute: AttributeProto) -> AttributeProto | None:
        """Return an attribute with what the call, or the function's default, gives for one of the function."""
        given = self.attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if given is None:
            return None
        own = AttributeProto()
        own.CopyFrom(given)
        own.name = attribute.name
        return own

    def _rename(self, graph: GraphProto) -> None:
        for named in (*graph.input, *graph.output, *graph.initializer):
            named.name = self._value(named.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = self._value(sparse.values.name)
        del graph.value_info[:], graph.quantization_annotation[:]
        nodes = [fresh for node in graph.node for fresh in self._copied(node)]
        del graph.node[:]
        graph.node.extend(nodes)
