"""Writes a quantised ONNX model (QuantizeLinear, DequantizeLinear, int8 or uint8, fixed sizes) as a TFLite model."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from onnx import ModelProto, NodeProto

from dilrewrite.runtimes import CannotLoad
from dilrewrite.tflite import arithmetic, convolutions, moves
from dilrewrite.tflite.graph import Graph
from dilrewrite.tflite.source import DEQUANTIZE, QUANTIZE, Source, called, plain
from dilrewrite.tflite.writer import Writer


def quantize(writer: Writer, node: NodeProto) -> None:
    """Give a value the scale that is asked for; a value that has it stays."""
    later, quantum = writer.later.get(node.input[0]), writer.source.wanted(node)
    if later is not None and later.quantum == quantum:
        writer.later[node.output[0]] = later
    else:
        writer.values[node.output[0]] = writer.requantised(writer.value(node.input[0]), quantum)


WRITERS: Mapping[str, Callable[[Writer, NodeProto], None]] = {
    QUANTIZE: quantize,
    DEQUANTIZE: moves.same,
    "Identity": moves.same,
    "Dropout": moves.same,
    "Reshape": moves.reshape,
    "Squeeze": moves.reshape,
    "Unsqueeze": moves.reshape,
    "Flatten": moves.reshape,
    "Transpose": moves.transpose,
    "Concat": moves.concat,
    "Slice": moves.slice_,
    "Split": moves.split,
    "Pad": moves.pad,
    "SpaceToDepth": moves.space_to_depth,
    "DepthToSpace": moves.depth_to_space,
    "Gather": moves.gather,
    "Conv": convolutions.conv,
    "ConvTranspose": convolutions.conv_transpose,
    "MaxPool": convolutions.pool,
    "AveragePool": convolutions.pool,
    "GlobalAveragePool": convolutions.mean,
    "ReduceMean": convolutions.mean,
    "Add": arithmetic.binary,
    "Sub": arithmetic.binary,
    "Mul": arithmetic.binary,
    "Div": arithmetic.divide,
    "Sum": arithmetic.total,
    "Relu": arithmetic.unary,
    "Clip": arithmetic.unary,
    "LeakyRelu": arithmetic.unary,
    "Sigmoid": arithmetic.unary,
    "Tanh": arithmetic.unary,
    "HardSwish": arithmetic.unary,
    "Softmax": arithmetic.unary,
    "Resize": arithmetic.resize,
    "Upsample": arithmetic.resize,
    "Gemm": arithmetic.gemm,
}
"""Who writes each operator."""


def tflite(proto: ModelProto) -> bytes:
    """Return a model as a TFLite file: tensors of int8, channels last, its inputs and outputs in the order of ONNX's.

    Raises CannotLoad, which names the node, for an operator that is not written.
    """
    return written(Source(proto)).file()


def written(source: Source) -> Graph:
    """Return the TFLite graph of a model. Raises CannotLoad."""
    for node in source.graph.node:
        if (not plain(node) or node.op_type not in WRITERS) and not _folded(source, node):
            raise CannotLoad(f"{called(node)}: no operator of int8 is written for it")
    writer = Writer(source)
    graph = writer.graph
    for value in source.inputs:
        quantum = source.quantum(value.name)
        if quantum is None:
            raise CannotLoad(f"the input {value.name!r} is not quantised")
        writer.layouts.name = value.name
        writer.values[value.name] = made = writer.new(source.shape(value.name), quantum)
        graph.inputs.append(made.tensor)
    for node in source.graph.node:
        if node.output[0] not in writer.done and not _folded(source, node):
            writer.layouts.name = node.name or node.output[0]
            WRITERS[node.op_type](writer, node)
    for value in source.graph.output:
        writer.layouts.name = value.name
        graph.outputs.append(writer.at(value.name))
    return graph


def _folded(source: Source, node: NodeProto) -> bool:
    """Say whether all that a node makes is constant."""
    return all(name in source.constants for name in node.output)
