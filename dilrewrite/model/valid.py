"""Refuses what no valid model has, so that no other file meets it: called once, when a model is read.

Everything here is linear in the size of the model. What is wrong with a Conv's geometry, `sites/find.py` says.
"""

from __future__ import annotations

import functools
import graphlib
import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import onnx
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped, unused-ignore]
from google.protobuf.message import Message  # type: ignore[import-untyped, unused-ignore]
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from dilrewrite.errors import UsageError
from dilrewrite.model.walk import DEFAULT_DOMAINS, function_calls, subgraphs, written_out

MOST_ELEMENTS = 2**40
"""An input of more elements cannot be fed anywhere."""

MOST_NUMBER = 2**31 - 1
"""No window that runs has larger dilations, strides, pads or kernels: the extents they make would have no memory."""

MAX_WRITTEN_OUT = 1_000_000
"""Nodes that all calls of functions together may stand for in a model that is to run: runtimes write every call out."""

_NUMBERS = ("dilations", "group", "kernel_shape", "pads", "strides")
_SECOND = {"W": "weights", "x_scale": "scale", "y_scale": "scale"}
"""What ONNX's schemas call second inputs that no version of an operator can be without, and messages."""
_ELEMENTS = frozenset(TensorProto.DataType.values()) - {TensorProto.UNDEFINED}
_DAMAGED = "the model is damaged: export it again"

N = TypeVar("N", bound=Hashable)


def check(proto: ModelProto, where: str) -> None:
    """Raise `UsageError`, which begins with `where`, for a model that no runtime can take."""
    _check_texts(proto, where)
    _Graphs(where).graph(proto.graph)
    for value in proto.graph.input:
        _check_input(value, where)
    for function in proto.functions:
        _Graphs(f"{where}: function {function.name}").nodes(function.node)
    circle = _circle(function_calls(proto)[1])
    if circle:
        raise _refusal(where, f"the function {circle[0][1]!r} calls itself")


def check_calls(proto: ModelProto, where: str) -> None:
    """Raise `UsageError` for a model whose calls of functions stand for more nodes than a runtime can take."""
    total = written_out(proto) if proto.functions else 0
    if total > MAX_WRITTEN_OUT:
        problem = f"its functions stand for {total:,} nodes when every call is written out, as runtimes do"
        hint = "export the model without functions that call each other many times"
        raise _refusal(where, f"{problem}; at most {MAX_WRITTEN_OUT:,} are run", hint)


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
    """Return the names of a message's text fields, but for comments, which nothing reads, and of its message fields."""
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


def _circle(needs: Mapping[N, Collection[N]]) -> list[N]:
    """Return the members of a circle, nothing where there is none."""
    try:
        graphlib.TopologicalSorter(needs).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


@functools.cache
def _second_input(op_type: str) -> str | None:
    """Return a word for the second input of an operator that cannot be without it."""
    inputs = onnx.defs.get_schema(op_type).inputs if onnx.defs.has(op_type) else []
    return _SECOND.get(inputs[1].name) if len(inputs) > 1 else None


@dataclass(frozen=True, slots=True)
class _Graphs:
    """Checks graphs; `where`, the file and what of it is around them, begins each message."""

    where: str

    def graph(self, graph: GraphProto) -> set[str]:
        """Return the names that a graph reads from the scopes around it."""
        own = {tensor.name for tensor in graph.initializer}
        own |= {sparse.values.name for sparse in graph.sparse_initializer}
        own |= {value.name for value in graph.input}
        for tensor in graph.initializer:
            self._external(tensor)
        for value in (*graph.input, *graph.output, *graph.value_info):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < 0:
                    problem = f"an axis of {value.name!r} has the size {dim.dim_value}"
                    hint = "give an axis of unknown size a name (dim_param) instead, and export the model again"
                    raise _refusal(self.where, problem, hint)
        makes, reads = self.nodes(graph.node)
        return (reads | {value.name for value in graph.output}) - makes - own

    def _external(self, tensor: TensorProto) -> None:
        """Readers of a tensor's place in a file differ in which entry counts, where there are two of one key."""
        keys = [entry.key for entry in tensor.external_data]
        if len(set(keys)) < len(keys):
            raise _refusal(self.where, f"the external data of {tensor.name!r} have two entries of one key")

    def nodes(self, nodes: Sequence[NodeProto]) -> tuple[set[str], set[str]]:
        """Check nodes; return the names that they make, and those that they and the graphs inside them read."""
        makers: dict[str, int] = {}
        reads: list[set[str]] = []
        for index, node in enumerate(nodes):
            self._node(node)
            for name in filter(None, node.output):
                if name in makers:
                    raise _refusal(self.where, f"{_label(node)} makes {name!r}, which another node makes too")
                makers[name] = index
            inside = _Graphs(f"{self.where}: in {_label(node)}")
            reads.append(set(node.input).union(*(inside.graph(graph) for _, _, graph in subgraphs(node))))
        circle = _circle({i: {makers[name] for name in names if name in makers} for i, names in enumerate(reads)})
        if circle:
            problem = f"{_label(nodes[circle[0]])} needs its own result: {len(set(circle))} nodes form a circle"
            raise _refusal(self.where, problem)
        return set(makers), set().union(*reads)

    def _node(self, node: NodeProto) -> None:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                self._external(attribute.t)
        if node.domain not in DEFAULT_DOMAINS:
            return
        given, second = [*node.input, "", ""][:2], _second_input(node.op_type)
        if second and not all(given):
            raise _refusal(self.where, f"{_label(node)} has no {second if given[0] else 'input'}")
        for attribute in node.attribute:
            for number in (*attribute.ints, attribute.i) if attribute.name in _NUMBERS else ():
                if abs(number) > MOST_NUMBER:
                    raise _refusal(self.where, f"{_label(node)} has {number} among its {attribute.name}")
            if attribute.name == "num_scan_inputs" and attribute.i > len(node.input):
                problem = f"{_label(node)} has {attribute.i} num_scan_inputs and {len(node.input)} inputs"
                raise _refusal(self.where, problem)


def _label(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or next(iter(node.output), '')!r}"
