"""Refuses what no valid model has, so that no other file meets it: called once, when a model is read.

Everything here is linear in the size of the model. What is wrong with a Conv's geometry, `sites/find.py` says.
"""

from __future__ import annotations

import functools
import graphlib
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped, unused-ignore]
from google.protobuf.message import Message  # type: ignore[import-untyped, unused-ignore]
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from dilrewrite.errors import UsageError
from dilrewrite.model.walk import DEFAULT_DOMAINS, function_key, nodes_in, subgraphs, written_out

MOST_ELEMENTS = 2**40
"""An input of more elements cannot be fed anywhere."""

MOST_NUMBER = 2**31 - 1
"""No Conv that runs has larger dilations, strides, pads or kernels: the extents they make would have no memory."""

MAX_WRITTEN_OUT = 1_000_000
"""Nodes that all calls of functions together may stand for in a model that is to run: runtimes write every call out."""

_NUMBERS = ("dilations", "group", "kernel_shape", "pads", "strides")
_FEWEST_INPUTS = {"Conv": 2, "QuantizeLinear": 2, "DequantizeLinear": 2}
_ELEMENTS = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_DAMAGED = "the model is damaged: export it again"


def check(proto: ModelProto, where: str) -> None:
    """Raise `UsageError`, which begins with `where`, for a model that no runtime can take."""
    _check_texts(proto, where)
    _Graphs(where, "").check_graph(proto.graph)
    for value in proto.graph.input:
        _check_input(value, where)
    for function in proto.functions:
        _Graphs(where, f"function {function.name}: ").check_function(function)
    _check_calls(proto.functions, where)


def check_calls(proto: ModelProto, where: str) -> None:
    """Raise `UsageError` for a model whose calls of functions stand for more nodes than a runtime can take."""
    total = written_out(proto) if proto.functions else 0
    if total > MAX_WRITTEN_OUT:
        raise UsageError(
            f"{where}: its functions stand for {total:,} nodes when every call is written out, as runtimes do; "
            f"at most {MAX_WRITTEN_OUT:,} are run",
            hint="export the model without functions that call each other many times",
        )


def _refusal(where: str, problem: str, hint: str = _DAMAGED) -> UsageError:
    return UsageError(f"{where}: {problem}", hint=hint)


def _check_texts(message: Message, where: str) -> None:
    """Refuse a text that is not UTF-8, in a message and those inside it. Weights, which are bytes, are not touched."""
    texts, inner = _fields(message.DESCRIPTOR)
    for name in texts:
        value = getattr(message, name)
        for text in (value,) if isinstance(value, str | bytes) else value:
            if isinstance(text, bytes):  # protobuf gives them where a text is not UTF-8
                raise _refusal(where, f"{message.DESCRIPTOR.name}.{name} is {text[:80]!r}, which is not UTF-8")
    for name in inner:
        value = getattr(message, name)
        if not isinstance(value, Message):
            for part in value:
                _check_texts(part, where)
        elif message.HasField(name):
            _check_texts(value, where)


@functools.cache
def _fields(kind: Any) -> tuple[list[str], list[str]]:
    """Return the names of a message's fields that are texts, and of those that are messages.

    Comments are no matter: nothing reads them.
    """
    texts = [field.name for field in kind.fields if field.type == FieldDescriptor.TYPE_STRING]
    inner = [field.name for field in kind.fields if field.type == FieldDescriptor.TYPE_MESSAGE]
    return [name for name in texts if name != "doc_string"], inner


def _check_input(value: ValueInfoProto, where: str) -> None:
    kind = value.type.tensor_type
    if value.type.HasField("tensor_type") and kind.elem_type not in _ELEMENTS:
        raise _refusal(where, f"the input {value.name!r} is of no known element type")
    elements = math.prod(dim.dim_value for dim in kind.shape.dim if dim.HasField("dim_value"))
    if elements > MOST_ELEMENTS:
        raise _refusal(where, f"the input {value.name!r} has {elements} elements, more than can be fed")


def _check_calls(functions: Sequence[FunctionProto], where: str) -> None:
    """Refuse functions that call themselves, whatever the way."""
    places = {function_key(function): place for place, function in enumerate(functions)}
    calls = {
        place: {places[key] for node in nodes_in(function.node) if (key := function_key(node)) in places}
        for place, function in enumerate(functions)
    }
    circle = _circle(calls)
    if circle:
        raise _refusal(where, f"the function {functions[circle[0]].name!r} calls itself")


def _circle(needs: Mapping[int, Collection[int]]) -> list[int]:
    """Return the members of a circle, nothing where there is none."""
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@dataclass(frozen=True, slots=True)
class _Graphs:
    """Checks the graphs of the file `where`; `scope` begins each message with the function or the node around them."""

    where: str
    scope: str

    def check_function(self, function: FunctionProto) -> None:
        self._nodes(function.node)

    def check_graph(self, graph: GraphProto) -> set[str]:
        """Return the names that a graph reads from the scopes around it."""
        own = {tensor.name for tensor in graph.initializer}
        own |= {sparse.values.name for sparse in graph.sparse_initializer}
        inputs = {value.name for value in graph.input}
        outputs = {value.name for value in graph.output}
        for tensor in graph.initializer:
            self._external(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            self._sizes(value)
        made, read = self._nodes(graph.node)
        return (read | outputs) - made - own - inputs

    def _external(self, tensor: TensorProto) -> None:
        """Readers of a tensor's place in a file differ in which entry counts, where there are two of one key."""
        keys = [entry.key for entry in tensor.external_data]
        if len(set(keys)) < len(keys):
            raise _refusal(self.where, f"{self.scope}the external data of {tensor.name!r} have two entries of one key")

    def _sizes(self, value: ValueInfoProto) -> None:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_value < 0:
                raise _refusal(
                    self.where,
                    f"{self.scope}an axis of {value.name!r} has the size {dim.dim_value}",
                    "give an axis of unknown size a name (dim_param) instead, and export the model again",
                )

    def _nodes(self, nodes: Sequence[NodeProto]) -> tuple[set[str], set[str]]:
        """Check nodes; return the names that they make, and those that they and the graphs inside them read."""
        makers: dict[str, int] = {}
        reads: list[set[str]] = []
        for index, node in enumerate(nodes):
            label = self._node(node)
            for name in filter(None, node.output):
                if name in makers:
                    raise _refusal(self.where, f"{self.scope}{label} makes {name!r}, which another node makes too")
                makers[name] = index
            inside = _Graphs(self.where, f"{self.scope}in {label}: ")
            inner = [inside.check_graph(graph) for _, _, graph in subgraphs(node)]
            reads.append(set(node.input).union(*inner))
        circle = _circle({i: {makers[name] for name in names if name in makers} for i, names in enumerate(reads)})
        if circle:
            label = _label(nodes[circle[0]])
            problem = f"{label} needs its own result: {len(set(circle))} nodes form a circle"
            raise _refusal(self.where, f"{self.scope}{problem}")
        return set(makers), set().union(*reads)

    def _node(self, node: NodeProto) -> str:
        """Check one node; return its label."""
        label = _label(node)
        for attribute in node.attribute:
            if attribute.HasField("t"):
                self._external(attribute.t)
        if node.domain in DEFAULT_DOMAINS:
            fewest = _FEWEST_INPUTS.get(node.op_type, 0)
            if sum(map(bool, node.input[:fewest])) < fewest:
                lacking = "weights" if node.op_type == "Conv" else "scale"
                problem = f"has no {'input' if not any(node.input[:1]) else lacking}"
                raise _refusal(self.where, f"{self.scope}{label} {problem}")
            if node.op_type == "Conv":
                self._numbers(node, label)
            for attribute in node.attribute:
                if attribute.name == "num_scan_inputs" and attribute.i > len(node.input):
                    problem = f"has {attribute.i} num_scan_inputs and {len(node.input)} inputs"
                    raise _refusal(self.where, f"{self.scope}{label} {problem}")
        return label

    def _numbers(self, node: NodeProto, label: str) -> None:
        for attribute in node.attribute:
            if attribute.name in _NUMBERS:
                for number in (*attribute.ints, attribute.i):
                    if abs(number) > MOST_NUMBER:
                        raise _refusal(self.where, f"{self.scope}{label} has {number} among its {attribute.name}")


def _label(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or next(iter(node.output), '')!r}"
