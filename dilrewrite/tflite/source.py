"""Reads a quantised ONNX model of fixed sizes: shapes, constants, and by what scale each tensor is quantised."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from dilrewrite.model.walk import DEFAULT_DOMAINS
from dilrewrite.runtimes import CannotLoad
from dilrewrite.tflite.graph import Array, Quantum

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"

MOVES = frozenset(
    ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Pad", "SpaceToDepth", "DepthToSpace",
     "MaxPool", "Gather", "Identity", "Dropout")
)  # fmt: skip
"""Operators that only move elements: what comes out is quantised as what goes in."""

CLAMPS = frozenset(("Relu", "Clip"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A constant as integers of int8 with a scale for each entry of an axis, or (no scales) as it is."""

    values: Array
    scales: Array | None = None
    zeros: Array | None = None
    axis: int = 0

    @property
    def real(self) -> Array:
        """Return what it stands for."""
        if self.scales is None or self.zeros is None:
            return self.values
        sizes = [-1 if axis == self.axis else 1 for axis in range(self.values.ndim)]
        scales, zeros = (each.reshape(sizes if each.size > 1 else ()) for each in (self.scales, self.zeros))
        return np.asarray((self.values.astype(np.float64) - zeros) * scales)


class Source:
    """A model whose tensors are asked for by name."""

    def __init__(self, proto: ModelProto) -> None:
        for node in proto.graph.node:
            if node.op_type in (QUANTIZE, DEQUANTIZE):
                node.domain = ""
        try:
            proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        except onnx.shape_inference.InferenceError as error:
            raise CannotLoad(f"its shapes cannot be inferred: {' '.join(str(error).split())}") from error
        self.graph = proto.graph
        self.constants = {each.name: Constant(values=numpy_helper.to_array(each)) for each in self.graph.initializer}
        self.inputs = [value for value in self.graph.input if value.name not in self.constants]
        self.outputs = {value.name for value in self.graph.output}
        self.shapes: dict[str, tuple[int, ...] | None] = {}
        for value in (*self.graph.input, *self.graph.value_info, *self.graph.output):
            self.shapes[value.name] = _shape(value)
        self.consumers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in self.graph.node:
            for name in node.input:
                self.consumers[name].append(node)
        for node in self.graph.node:
            self._fold(node)

    def _fold(self, node: NodeProto) -> None:
        """Note what a node makes of constants alone, where that is a constant of weights."""
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            self.constants[node.output[0]] = Constant(values=numpy_helper.to_array(node.attribute[0].t))
        elif node.op_type == "Identity" and node.input[0] in self.constants:
            self.constants[node.output[0]] = self.constants[node.input[0]]
        elif node.op_type == "Expand" and all(name in self.constants for name in node.input):
            part, extents = (self.constants[name].values for name in node.input)
            self.constants[node.output[0]] = Constant(values=part * np.ones(extents, part.dtype))
        elif node.op_type in (QUANTIZE, DEQUANTIZE) and node.input[0] in self.constants:
            given, (scales, zeros) = self.constants[node.input[0]], self.parameters(node)
            axis = attributes(node).get("axis", 1) % max(given.values.ndim, 1)
            if node.op_type == DEQUANTIZE:
                values = given.values if given.scales is not None else shifted(given.values)
            else:
                sizes = [-1 if place == axis and scales.size > 1 else 1 for place in range(given.values.ndim)]
                steps = np.rint(given.values / scales.reshape(sizes)) + zeros.reshape(sizes)
                values = np.clip(steps, -128, 127).astype(np.int8)
            self.constants[node.output[0]] = Constant(values=values, scales=scales, zeros=zeros, axis=axis)

    def parameters(self, node: NodeProto) -> tuple[Array, Array]:
        """Return the scales and zero points of a QuantizeLinear or DequantizeLinear, as of int8 (int32: of a bias)."""
        if node.input[1] not in self.constants:
            raise CannotLoad(f"{called(node)}: its scale is no constant")
        scales = self.constants[node.input[1]].values.astype(np.float64)
        given = node.input[2] if len(node.input) > 2 else ""
        if not given:  # uint8, unless an attribute says otherwise
            data = self.constants.get(node.input[0])
            signed = node.op_type == DEQUANTIZE and data is not None and data.values.dtype != np.uint8
            zeros = np.zeros(scales.shape, np.int32 if signed else np.uint8)
        elif given not in self.constants:
            raise CannotLoad(f"{called(node)}: its zero point is no constant")
        else:
            zeros = self.constants[given].values
        return scales, shifted(zeros).astype(np.int64)

    def quantum(self, name: str) -> Quantum | None:
        """Return by what a tensor is quantised, as the nodes behind it tell; None where none does."""
        for node in self.consumers[name]:
            if node.op_type == QUANTIZE and node.input[0] == name:
                return self.wanted(node)
            if node.op_type == DEQUANTIZE and node.input[0] == name:
                return self.of(node)
        for node in self.consumers[name]:
            if node.op_type in MOVES | CLAMPS | {"Concat"} and node.input[0] == name:
                found = self.quantum(node.output[0])
                if found is not None:
                    return found
        return None

    def of(self, node: NodeProto) -> Quantum:
        """Return the scale and zero point of a QuantizeLinear or DequantizeLinear of a whole tensor."""
        scales, zeros = self.parameters(node)
        if scales.size != 1:
            raise CannotLoad(f"{called(node)}: data of a scale for each channel")
        return Quantum(scale=float(np.float32(scales.item())), zero=int(zeros.item()))

    def wanted(self, node: NodeProto) -> Quantum:
        """Return the scale of a QuantizeLinear, or that of the Concat which alone reads its result."""
        alone = len(self.consumers[node.input[0]]) == 1
        return (self._joined(node.output[0]) if alone else None) or self.of(node)

    def _joined(self, name: str) -> Quantum | None:
        """Return by what a Concat is quantised that alone reads a quantised tensor: its parts need no scales of own."""
        for kind in (DEQUANTIZE, "Concat"):
            if len(self.consumers[name]) != 1 or name in self.outputs or self.consumers[name][0].op_type != kind:
                return None
            name = self.consumers[name][0].output[0]
        return self.quantum(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor. Raises CannotLoad where it is not known."""
        if name in self.constants:
            return tuple(self.constants[name].values.shape)
        shape = self.shapes.get(name)
        if shape is None:
            raise CannotLoad(f"the shape of {name!r} is not known")
        return shape

    def numbers(self, node: NodeProto, place: int) -> list[int] | None:
        """Return an input of a node that must be constant, as whole numbers; None where it is left out."""
        if len(node.input) <= place or not node.input[place]:
            return None
        if node.input[place] not in self.constants:
            raise CannotLoad(f"{called(node)}: its input {node.input[place]!r} is no constant")
        return [int(value) for value in self.constants[node.input[place]].values.ravel()]


def shifted(values: Array) -> Array:
    """Return integers of uint8 as those of int8 that stand for the same where the zero point moves along."""
    return (values.astype(np.int16) - 128).astype(np.int8) if values.dtype == np.uint8 else values


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node, text as `str`."""
    values = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def called(node: NodeProto) -> str:
    """Return what a node is called in a message."""
    return f"{node.op_type} {node.name or (node.output[0] if node.output else '')!r}"


def plain(node: NodeProto) -> bool:
    """Say whether a node is an operator of ONNX itself."""
    return node.domain in DEFAULT_DOMAINS


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape") or any(not size.HasField("dim_value") for size in kind.shape.dim):
        return None
    return tuple(size.dim_value for size in kind.shape.dim)
