"""Holds what operators of a model that is being written have in common: values by name, new tensors, scales."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import NodeProto

from dilrewrite.runtimes import CannotLoad
from dilrewrite.tflite.graph import Array, Graph, Quantum
from dilrewrite.tflite.schema import ACTIVATIONS
from dilrewrite.tflite.source import Constant, Source, attributes, called
from dilrewrite.tflite.values import UNIT, Layouts, Order, Shape, Value, long, usual

LEAST, MOST = -128, 127
"""Of int8."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Later:
    """A tensor of phases that is written when something reads all of it, by `whole`.

    `phase`: writes one of the phases alone, by the channels that it would have. `parts`: what makes it when joined
    along its channels; with `blocks` along axes of their own: {axis: parts along it}, the first outermost.
    """

    quantum: Quantum
    whole: Callable[[], Value]
    phase: Callable[[range], Value | None] = lambda _: None
    parts: Sequence[Value] = ()
    blocks: Mapping[int, int] = field(default_factory=dict)


class Writer:
    """A model that is being written, at the node that is being written."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.graph = Graph()
        self.layouts = Layouts(self.graph)
        self.values: dict[str, Value] = {}
        self.done: set[str] = set()
        self.later: dict[str, Later] = {}

    def value(self, name: str) -> Value:
        """Return a tensor of the model, a constant quantised too. Raises CannotLoad."""
        if name not in self.values and name in self.later:
            self.values[name] = self.later[name].whole()
        if name not in self.values and name in self.source.constants:
            self.values[name] = self.constant(name, self.source.constants[name])
        if name not in self.values:
            raise CannotLoad(f"the tensor {name!r} is not quantised")
        return self.values[name]

    def constant(self, name: str, given: Constant, rank: int | None = None) -> Value:
        """Add a constant of int8, in the usual order; one that is not quantised yet by its largest number."""
        values, scales, zeros = given.values, given.scales, given.zeros
        if scales is None or zeros is None or scales.size != 1:
            real = given.real
            largest = float(np.abs(real).max(initial=0)) or 1.0
            scales, zeros = np.asarray([np.float32(largest / MOST)], np.float64), np.zeros(1, np.int64)
            values = np.clip(np.rint(real / scales), -MOST, MOST).astype(np.int8)
        values = values.reshape((1,) * ((rank or values.ndim) - values.ndim) + values.shape)
        order = usual(values.ndim)
        laid = values.transpose([axis for axis in order if axis != UNIT])
        shape = tuple(1 if axis == UNIT else values.shape[axis] for axis in order)
        quantum = Quantum(scale=float(np.float32(scales.item())), zero=int(zeros.item()))
        tensor = self.graph.constant(name, laid.reshape(shape), [quantum.scale], zero=quantum.zero)
        return Value(
            tensor=tensor, held=shape, shape=values.shape, order=long(order, values.shape), quantum=quantum
        )  # fmt: skip

    def at(self, name: str, order: Order | None = None) -> int:
        """Return a tensor that holds a value in an order, the usual one of its rank unless told otherwise."""
        value = self.value(name)
        return self.layouts.at(value, order or usual(len(value.shape)))

    def new(self, shape: Shape, quantum: Quantum, order: Order | None = None) -> Value:
        """Return a new tensor of a shape in ONNX, in an order, for the operator that comes next to write."""
        order = order or usual(len(shape))
        held = tuple(1 if axis == UNIT else shape[axis] for axis in order)
        tensor = self.graph.tensor(self.layouts.name, held, quantum)
        return Value(tensor=tensor, held=held, shape=shape, order=long(order, shape), quantum=quantum)

    def quantum(self, name: str) -> Quantum:
        """Return by what the result of an operator is quantised. Raises CannotLoad where nothing tells."""
        found = self.source.quantum(name)
        if found is None:
            raise CannotLoad(f"the tensor {name!r} is computed and not quantised")
        return found

    def requantised(self, value: Value, quantum: Quantum) -> Value:
        """Return a value by another scale."""
        if value.quantum == quantum:
            return value
        tensor = self.graph.tensor(f"{self.layouts.name}/quantize", value.held, quantum)
        self.graph.add("QUANTIZE", [value.tensor], tensor)
        return replace(value, tensor=tensor, quantum=quantum)

    def activation(self, node: NodeProto) -> tuple[str, int]:
        """Return the tensor that a node and the activation that follows it make together, and which that is."""
        (name,) = node.output[:1]
        readers = self.source.consumers[name]
        if len(readers) == 1 and name not in self.source.outputs:
            kind = clamp(self.source, readers[0])
            if kind is not None:
                self.done.add(readers[0].output[0])
                return readers[0].output[0], ACTIVATIONS[kind]
        return name, ACTIVATIONS["NONE"]

    def emit(
        self, node: NodeProto, operator: str, inputs: Sequence[int], options: str = "", *, clamps: bool = False,
        **values: Any,
    ) -> None:  # fmt: skip
        """Write an operator that computes the output of a node anew; `clamps`: with the activation behind it."""
        name = node.output[0]
        if clamps:
            name, values["fused_activation_function"] = self.activation(node)
        made = self.new(self.source.shape(name), self.quantum(name))
        self.graph.add(operator, inputs, made.tensor, options, **values)
        self.values[name] = made


def clamp(source: Source, node: NodeProto) -> str | None:
    """Return which activation a Relu or Clip is; None for another operator."""
    if node.op_type == "Relu":
        return "RELU"
    if node.op_type != "Clip":
        return None
    given = attributes(node)
    ends = [given.get("min", -np.inf), given.get("max", np.inf)]
    for place in (1, 2):
        name = node.input[place] if len(node.input) > place else ""
        if name:
            if name not in source.constants:
                raise CannotLoad(f"{called(node)}: its limits are no constants")
            ends[place - 1] = source.constants[name].real.item()
    kind = {(0.0, 6.0): "RELU6", (0.0, np.inf): "RELU"}.get((float(ends[0]), float(ends[1])))
    if kind is None:
        quantum = source.quantum(node.output[0])
        most = np.inf if quantum is None else quantum.scale * (MOST - quantum.zero)
        least = -np.inf if quantum is None else quantum.scale * (LEAST - quantum.zero)
        if ends[1] >= most and ends[0] in (0.0, min(ends[0], least)):
            return "RELU" if ends[0] == 0 else "NONE"
        raise CannotLoad(f"{called(node)}: limits {ends[0]:g} and {ends[1]:g}; written are 0 and 6, and 0 alone")
    return kind


def ints(values: Sequence[int]) -> Array:
    """Return whole numbers as TFLite takes them."""
    return np.asarray(values, np.int32)
