"""Writes elementwise operators, activations, Resize and Gemm."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import NodeProto

from dilrewrite.runtimes import CannotLoad
from dilrewrite.tflite.convolutions import bias, weights
from dilrewrite.tflite.graph import Quantum
from dilrewrite.tflite.source import Constant, attributes, called
from dilrewrite.tflite.values import Value, usual
from dilrewrite.tflite.writer import Writer, clamp

FIXED = {"Sigmoid": Quantum(scale=1 / 256, zero=-128), "Softmax": Quantum(scale=1 / 256, zero=-128),
         "Tanh": Quantum(scale=1 / 128, zero=0)}  # fmt: skip
"""By what TFLite quantises what these make."""

UNARY = {"Sigmoid": "LOGISTIC", "Tanh": "TANH", "HardSwish": "HARD_SWISH", "Relu": "RELU"}


def binary(writer: Writer, node: NodeProto) -> None:
    """Write an Add, Sub or Mul, with the activation behind it."""
    operator = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL"}[node.op_type]
    rank = len(writer.source.shape(node.output[0]))
    inputs = [writer.layouts.at(_ranked(writer, name, rank), usual(rank)) for name in node.input]
    writer.emit(node, operator, inputs, f"{operator.title()}Options", clamps=True)


def _ranked(writer: Writer, name: str, rank: int) -> Value:
    """Return an operand with leading axes of extent 1, up to a rank."""
    if name not in writer.values and name in writer.source.constants:
        return writer.constant(name, writer.source.constants[name], rank)
    value = writer.value(name)
    missing = rank - len(value.shape)
    return replace(
        value, shape=(1,) * missing + value.shape, order=tuple(axis + missing for axis in value.order)
    )  # fmt: skip


def divide(writer: Writer, node: NodeProto) -> None:
    """Write a Div by a constant as a Mul."""
    given = writer.source.constants.get(node.input[1])
    if given is None:
        raise CannotLoad(f"{called(node)}: its divisor is no constant; TFLite's int8 has no division")
    rank = len(writer.source.shape(node.output[0]))
    factor = writer.constant(f"{node.input[1]}/inverse", Constant(values=1 / given.real), rank)
    inputs = [writer.at(node.input[0]), writer.layouts.at(factor, usual(rank))]
    writer.emit(node, "MUL", inputs, "MulOptions", clamps=True)


def total(writer: Writer, node: NodeProto) -> None:
    """Write a Sum of two, or of more as a chain of ADD by one scale."""
    name, rank = node.output[0], len(writer.source.shape(node.output[0]))
    shape, quantum = writer.source.shape(name), writer.quantum(name)
    value = writer.value(node.input[0])
    for other in node.input[1:]:
        made = writer.new(shape, quantum)
        inputs = [writer.layouts.at(value, usual(rank)), writer.layouts.at(_ranked(writer, other, rank), usual(rank))]
        writer.graph.add("ADD", inputs, made.tensor, "AddOptions")
        value = made
    writer.values[name] = writer.requantised(value, quantum)


def unary(writer: Writer, node: NodeProto) -> None:
    """Write an activation where its data lie."""
    name, value = node.output[0], writer.value(node.input[0])
    operator, options, values = UNARY.get(node.op_type, ""), "", {}
    if node.op_type == "LeakyRelu":
        operator, options = "LEAKY_RELU", "LeakyReluOptions"
        values = {"alpha": attributes(node).get("alpha", 0.01)}
    elif node.op_type == "Softmax":
        if attributes(node).get("axis", -1) % len(value.shape) != 1:
            raise CannotLoad(f"{called(node)}: along another axis than the channels")
        operator, options, values = "SOFTMAX", "SoftmaxOptions", {"beta": 1.0}
        value = replace(value, tensor=writer.layouts.at(value, usual(len(value.shape))))
        value = replace(value, held=value.stored(usual(len(value.shape))))
    elif node.op_type == "Clip":
        operator = clamp(writer.source, node) or ""
        if operator == "NONE":
            writer.values[name] = writer.requantised(value, writer.quantum(name))
            return
    wanted = writer.quantum(name)
    quantum = FIXED.get(node.op_type, wanted)
    fused = f"{writer.graph.tensors[value.tensor].fields['name']} + {writer.layouts.name}"
    tensor = writer.graph.tensor(fused, value.held, quantum)
    writer.graph.add(operator, [value.tensor], tensor, options, **values)
    writer.values[name] = writer.requantised(replace(value, tensor=tensor, quantum=quantum), wanted)


def resize(writer: Writer, node: NodeProto) -> None:
    """Write a Resize of height and width: nearest or linear, by the three ways that TFLite has."""
    value, given = writer.value(node.input[0]), attributes(node)
    rank, name = len(value.shape), node.output[0]
    shape = writer.source.shape(name)
    mode, way = given.get("mode", "nearest"), given.get("coordinate_transformation_mode", "half_pixel")
    if node.op_type == "Upsample":
        way = "asymmetric"
    if rank not in (3, 4) or shape[:2] != value.shape[:2] or mode not in ("nearest", "linear"):
        raise CannotLoad(f"{called(node)}: mode {mode} of rank {rank}; nearest and linear of height and width fit")
    if way not in ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"):
        raise CannotLoad(f"{called(node)}: coordinate_transformation_mode {way}")
    how = {"align_corners": way == "align_corners", "half_pixel_centers": way.endswith("half_pixel")}
    order = usual(rank)
    made = writer.new(shape, value.quantum)
    sizes = np.asarray(made.held[1:3], np.int32)
    operator = "RESIZE_NEAREST_NEIGHBOR" if mode == "nearest" else "RESIZE_BILINEAR"
    options = "ResizeNearestNeighborOptions" if mode == "nearest" else "ResizeBilinearOptions"
    inputs = [writer.layouts.at(value, order), writer.graph.constant(f"{writer.layouts.name}/sizes", sizes)]
    writer.graph.add(operator, inputs, made.tensor, options, **how)
    writer.values[name] = made


def gemm(writer: Writer, node: NodeProto) -> None:
    """Write a Gemm of data by constant weights as FULLY_CONNECTED."""
    given, value = attributes(node), writer.value(node.input[0])
    if given.get("transA", 0) or given.get("alpha", 1.0) != 1 or given.get("beta", 1.0) != 1:
        raise CannotLoad(f"{called(node)}: transA, alpha or beta")
    rows = 0 if given.get("transB", 0) else 1
    kernels, scales = weights(writer, node, rows)
    scales = scales if len({*scales}) > 1 else scales[:1]  # a scale for each channel is not for every compiler
    laid, of = (kernels if rows == 0 else kernels.T), scales * value.quantum.scale
    label = writer.layouts.name
    inputs = [
        writer.layouts.at(value, usual(2)),
        writer.graph.constant(f"{label}/weights", np.ascontiguousarray(laid), scales.tolist()),
        writer.graph.constant(f"{label}/bias", bias(writer, node, len(laid), of), of.tolist()),
    ]
    writer.emit(node, "FULLY_CONNECTED", inputs, "FullyConnectedOptions", clamps=True)
