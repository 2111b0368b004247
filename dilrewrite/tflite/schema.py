"""Packs TFLite models: the tables of the published schema that are written here, by their field numbers.

Source: tensorflow/compiler/mlir/lite/schema/schema.fbs, version 3. A test holds the numbers to the classes that
ai-edge-litert ships.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

OPERATORS = {
    "ADD": 0, "AVERAGE_POOL_2D": 1, "CONCATENATION": 2, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 4, "DEPTH_TO_SPACE": 5,
    "FULLY_CONNECTED": 9, "LOGISTIC": 14, "MAX_POOL_2D": 17, "MUL": 18, "RELU": 19, "RELU6": 21, "RESHAPE": 22,
    "RESIZE_BILINEAR": 23, "SOFTMAX": 25, "SPACE_TO_DEPTH": 26, "TANH": 28, "PAD": 34, "GATHER": 36, "TRANSPOSE": 39,
    "MEAN": 40, "SUB": 41, "STRIDED_SLICE": 45, "PADV2": 60, "SLICE": 65, "TRANSPOSE_CONV": 67,
    "RESIZE_NEAREST_NEIGHBOR": 97, "LEAKY_RELU": 98, "QUANTIZE": 114, "HARD_SWISH": 117,
}  # fmt: skip
"""BuiltinOperator: the number of each operator."""

OPTIONS = {
    "Conv2DOptions": 1, "DepthwiseConv2DOptions": 2, "Pool2DOptions": 5, "FullyConnectedOptions": 8,
    "SoftmaxOptions": 9, "ConcatenationOptions": 10, "AddOptions": 11, "ResizeBilinearOptions": 15,
    "ReshapeOptions": 17, "SpaceToDepthOptions": 19, "MulOptions": 21, "GatherOptions": 23, "ReducerOptions": 27,
    "SubOptions": 28, "StridedSliceOptions": 32, "TransposeConvOptions": 49, "ResizeNearestNeighborOptions": 74,
    "LeakyReluOptions": 75, "DepthToSpaceOptions": 94,
}  # fmt: skip
"""BuiltinOptions: the number of each table of options."""

TYPES = {"INT32": 2, "INT8": 9}
"""TensorType."""

PADDING = {"SAME": 0, "VALID": 1}
ACTIVATIONS = {"NONE": 0, "RELU": 1, "RELU6": 3}

_WINDOW = {"padding": (0, "Int8"), "stride_w": (1, "Int32"), "stride_h": (2, "Int32")}
_ACTIVATION = "fused_activation_function"

FIELDS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "Model": {
        "version": (0, "Uint32"),
        "operator_codes": (1, "[Table]"),
        "subgraphs": (2, "[Table]"),
        "description": (3, "String"),
        "buffers": (4, "[Table]"),
    },
    "OperatorCode": {"deprecated_builtin_code": (0, "Int8"), "version": (2, "Int32"), "builtin_code": (3, "Int32")},
    "SubGraph": {
        "tensors": (0, "[Table]"),
        "inputs": (1, "[Int32]"),
        "outputs": (2, "[Int32]"),
        "operators": (3, "[Table]"),
        "name": (4, "String"),
    },
    "Tensor": {
        "shape": (0, "[Int32]"),
        "type": (1, "Int8"),
        "buffer": (2, "Uint32"),
        "name": (3, "String"),
        "quantization": (4, "Table"),
    },
    "QuantizationParameters": {
        "scale": (2, "[Float32]"),
        "zero_point": (3, "[Int64]"),
        "quantized_dimension": (6, "Int32"),
    },
    "Operator": {
        "opcode_index": (0, "Uint32"),
        "inputs": (1, "[Int32]"),
        "outputs": (2, "[Int32]"),
        "builtin_options_type": (3, "Uint8"),
        "builtin_options": (4, "Table"),
    },
    "Buffer": {"data": (0, "Bytes")},
    "Conv2DOptions": {
        **_WINDOW,
        _ACTIVATION: (3, "Int8"),
        "dilation_w_factor": (4, "Int32"),
        "dilation_h_factor": (5, "Int32"),
    },
    "DepthwiseConv2DOptions": {
        **_WINDOW,
        "depth_multiplier": (3, "Int32"),
        _ACTIVATION: (4, "Int8"),
        "dilation_w_factor": (5, "Int32"),
        "dilation_h_factor": (6, "Int32"),
    },
    "TransposeConvOptions": {**_WINDOW, _ACTIVATION: (3, "Int8")},
    "Pool2DOptions": {
        **_WINDOW,
        "filter_width": (3, "Int32"),
        "filter_height": (4, "Int32"),
        _ACTIVATION: (5, "Int8"),
    },
    "FullyConnectedOptions": {_ACTIVATION: (0, "Int8"), "keep_num_dims": (2, "Bool")},
    "SoftmaxOptions": {"beta": (0, "Float32")},
    "ConcatenationOptions": {"axis": (0, "Int32")},
    "AddOptions": {_ACTIVATION: (0, "Int8")},
    "MulOptions": {_ACTIVATION: (0, "Int8")},
    "SubOptions": {_ACTIVATION: (0, "Int8")},
    "ResizeBilinearOptions": {"align_corners": (2, "Bool"), "half_pixel_centers": (3, "Bool")},
    "ResizeNearestNeighborOptions": {"align_corners": (0, "Bool"), "half_pixel_centers": (1, "Bool")},
    "ReshapeOptions": {"new_shape": (0, "[Int32]")},
    "SpaceToDepthOptions": {"block_size": (0, "Int32")},
    "DepthToSpaceOptions": {"block_size": (0, "Int32")},
    "GatherOptions": {"axis": (0, "Int32")},
    "ReducerOptions": {"keep_dims": (0, "Bool")},
    "StridedSliceOptions": {},
    "LeakyReluOptions": {"alpha": (0, "Float32")},
}
"""What is written of each table: the number and the type of each field."""

DEFAULTS = {"dilation_w_factor": 1, "dilation_h_factor": 1}
"""What a field that is not written means, where that is not 0. Version 1 of an OperatorCode is written out."""

ALIGNMENT = 16
"""Of the data of a buffer, in bytes."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the schema, and the values of its fields: numbers, text, sequences and other tables."""

    name: str
    fields: Mapping[str, Any]


def packed(model: Table) -> bytes:
    """Return the file of a table `Model`."""
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(_table(builder, model), b"TFL3")
    return bytes(builder.Output())


def _table(builder: Any, table: Table) -> int:
    """Write a table behind everything that it refers to, and return its place."""
    kinds = FIELDS[table.name]
    held = {
        name: _referred(builder, kinds[name][1], value)
        for name, value in table.fields.items()
        if kinds[name][1][0] in "[TS" or kinds[name][1] == "Bytes"
    }
    builder.StartObject(1 + max((number for number, _ in kinds.values()), default=-1))
    for name, value in table.fields.items():
        number, kind = kinds[name]
        if name in held:
            builder.PrependUOffsetTRelativeSlot(number, held[name], 0)
        else:
            getattr(builder, f"Prepend{kind}Slot")(number, value, DEFAULTS.get(name, 0))
    return int(builder.EndObject())


def _referred(builder: Any, kind: str, value: Any) -> int:
    """Write what a table refers to, and return its place."""
    if kind == "String":
        return int(builder.CreateString(value))
    if kind == "Table":
        return _table(builder, value)
    if kind == "Bytes":
        return _bytes(builder, value)
    if kind == "[Table]":
        places = [_table(builder, each) for each in value]
        return _vector(builder, 4, "UOffsetTRelative", places)
    of = kind[1:-1]
    return _vector(builder, 8 if of.endswith("64") else 4, of, value)


def _vector(builder: Any, size: int, kind: str, values: Sequence[Any]) -> int:
    builder.StartVector(size, len(values), size)
    for value in reversed(values):
        getattr(builder, f"Prepend{kind}")(value)
    return int(builder.EndVector())


def _bytes(builder: Any, data: bytes) -> int:
    """Write the data of a buffer at once, aligned as the schema asks."""
    builder.StartVector(1, len(data), ALIGNMENT)
    builder.head = builder.Head() - len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return int(builder.EndVector())
