"""Collects the tensors and operators of a TFLite model that is being written, and makes the file of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dilrewrite.tflite import schema
from dilrewrite.tflite.schema import Table

Array = NDArray[Any]

VERSIONS = {
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEPTH_TO_SPACE": 1,
    "FULLY_CONNECTED": 4,
    "HARD_SWISH": 1,
    "RESHAPE": 1,
    "TRANSPOSE_CONV": 3,
}
"""Versions of operators on int8, where 2 is not the one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantum:
    """What an integer of a tensor stands for: `scale * (integer - zero)`, for the whole tensor."""

    scale: float
    zero: int


@dataclass
class Graph:
    """The model so far. Tensors are known by their numbers."""

    tensors: list[Table] = field(default_factory=list)
    operators: list[Table] = field(default_factory=list)
    buffers: list[bytes] = field(default_factory=lambda: [b""])
    codes: list[str] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)

    def tensor(self, name: str, shape: Sequence[int], quantum: Quantum) -> int:
        """Add a tensor of int8 and return its number; the name becomes one that no other has."""
        scales = {"scale": [quantum.scale], "zero_point": [quantum.zero]}
        return self._tensor(name, shape, "INT8", Table("QuantizationParameters", scales))

    def constant(self, name: str, values: Array, scales: Sequence[float] = (), *, axis: int = 0, zero: int = 0) -> int:
        """Add a constant of int8 or int32, quantised by one scale or by one along `axis`, or not, and return it."""
        of = {"scale": list(scales), "zero_point": [zero] * len(scales), "quantized_dimension": axis}
        number = self._tensor(
            name,
            values.shape,
            "INT8" if values.dtype == np.int8 else "INT32",
            Table("QuantizationParameters", of) if scales else None,
            len(self.buffers),
        )
        self.buffers.append(np.ascontiguousarray(values).tobytes())
        return number

    def add(self, operator: str, inputs: Sequence[int], output: int, options: str = "", **values: Any) -> None:
        """Add an operator, with the table of its options and their values."""
        if operator not in self.codes:
            self.codes.append(operator)
        fields: dict[str, Any] = {"opcode_index": self.codes.index(operator), "inputs": inputs, "outputs": [output]}
        if options:
            fields |= {
                "builtin_options_type": schema.OPTIONS[options],
                "builtin_options": Table(options, values),
            }
        self.operators.append(Table("Operator", fields))

    def kinds(self) -> list[str]:
        """Return the operators in their order."""
        return [self.codes[operator.fields["opcode_index"]] for operator in self.operators]

    def file(self) -> bytes:
        """Return the model."""
        subgraph = {
            "tensors": self.tensors,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "operators": self.operators,
            "name": "main",
        }
        return schema.packed(
            Table(
                "Model",
                {
                    "version": 3,
                    "operator_codes": list(map(_code, self.codes)),
                    "subgraphs": [Table("SubGraph", subgraph)],
                    "description": "written by dilrewrite",
                    "buffers": [Table("Buffer", {"data": data} if data else {}) for data in self.buffers],
                },
            )
        )

    def _tensor(self, name: str, shape: Sequence[int], kind: str, quantization: Table | None, buffer: int = 0) -> int:
        unique, number = name, 1
        while unique in self.names:
            unique, number = f"{name}_{number}", number + 1
        self.names.add(unique)
        fields: dict[str, Any] = {"shape": list(shape), "type": schema.TYPES[kind], "buffer": buffer, "name": unique}
        if quantization is not None:
            fields["quantization"] = quantization
        self.tensors.append(Table("Tensor", fields))
        return len(self.tensors) - 1


def _code(operator: str) -> Table:
    number = schema.OPERATORS[operator]
    return Table(
        "OperatorCode",
        {
            "deprecated_builtin_code": min(number, 127),
            "version": VERSIONS.get(operator, 2),
            "builtin_code": number,
        },
    )
