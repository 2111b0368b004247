"""The element types of tensors: the only table of them. ONNX itself is not loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import ml_dtypes
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Element:
    """A type of tensor elements.

    `name`: ONNX's word in lower case, but "float32" and "float64"; `number`: in `TensorProto.DataType`; `bits`: of one
    value in a file, 0 for texts; `numpy`: the name in NumPy or ml_dtypes where it is another; `field`: the one of a
    TensorProto that holds the values when `raw_data` does not; `tensorrt`: TensorRT's name, "" where it has none.
    The types that a Conv computes in have a unit roundoff and a tolerance of whole models' outputs, (rtol, share) of
    |difference| <= rtol * |value| + share * max|values|; the coarsest type that the outputs depend on counts.
    """

    name: str
    number: int
    bits: int
    numpy: str = ""
    field: str = "int32_data"
    tensorrt: str = ""
    roundoff: float = 0.0
    tolerance: tuple[float, float] = (0.0, 0.0)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the type in NumPy, which has one element per value."""
        name = self.numpy or self.name
        return np.dtype(getattr(ml_dtypes, name, name))

    @property
    def per_byte(self) -> int:
        """Return how many values a byte of a file holds, 1 for larger ones."""
        return 8 // self.bits if 0 < self.bits < 8 else 1


ELEMENTS = (
    Element("float32", 1, 32, "", "float_data", "FLOAT", 2.0**-24, (1e-4, 1e-5)),
    Element("uint8", 2, 8, tensorrt="UINT8"),
    Element("int8", 3, 8, tensorrt="INT8"),
    Element("uint16", 4, 16),
    Element("int16", 5, 16),
    Element("int32", 6, 32, tensorrt="INT32"),
    Element("int64", 7, 64, field="int64_data", tensorrt="INT64"),
    Element("string", 8, 0, "object", "string_data"),
    Element("bool", 9, 8, tensorrt="BOOL"),
    Element("float16", 10, 16, "", "int32_data", "HALF", 2.0**-11, (1e-2, 2e-3)),
    Element("float64", 11, 64, "", "double_data", "", 2.0**-53, (1e-9, 1e-10)),
    Element("uint32", 12, 32, field="uint64_data"),
    Element("uint64", 13, 64, field="uint64_data"),
    Element("complex64", 14, 64, field="float_data"),
    Element("complex128", 15, 128, field="double_data"),
    Element("bfloat16", 16, 16, "", "int32_data", "BF16", 2.0**-8, (5e-2, 2e-2)),
    Element("float8e4m3fn", 17, 8, "float8_e4m3fn", tensorrt="FP8"),
    Element("float8e4m3fnuz", 18, 8, "float8_e4m3fnuz"),
    Element("float8e5m2", 19, 8, "float8_e5m2"),
    Element("float8e5m2fnuz", 20, 8, "float8_e5m2fnuz"),
    Element("uint4", 21, 4),
    Element("int4", 22, 4),
    Element("float4e2m1", 23, 4, "float4_e2m1fn"),
    Element("float8e8m0", 24, 8, "float8_e8m0fnu"),
    Element("uint2", 25, 2),
    Element("int2", 26, 2),
)

NUMBERED = {element.number: element for element in ELEMENTS}
NAMED = {element.name: element for element in ELEMENTS}
FLOATS = {element.name: element for element in ELEMENTS if element.roundoff}
"""The types that a Conv computes in, by name."""


def element_name(number: int) -> str | None:
    """Return the name of ONNX's element type `number`; None for no type, and for those of later releases."""
    element = NUMBERED.get(number)
    return None if element is None else element.name


def dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy (or ml_dtypes) type of an element type; a KeyError for a word that is none."""
    return NAMED[name].dtype


def pack(values: NDArray[Any], element: Element) -> NDArray[np.uint8]:
    """Return the bytes of an array as a file holds them: several small values in a byte, the lowest bits first."""
    count = element.per_byte
    if count == 1:
        return values.reshape(-1).view(np.uint8)
    codes = values.reshape(-1).view(np.uint8) & np.uint8(2**element.bits - 1)
    codes = np.pad(codes, (0, -codes.size % count)).reshape(-1, count)
    shifts = element.bits * np.arange(count, dtype=np.uint8)
    return cast("NDArray[np.uint8]", np.bitwise_or.reduce(codes << shifts, axis=1))


def unpack(raw: NDArray[np.uint8], element: Element, dims: tuple[int, ...]) -> NDArray[Any]:
    """Return the values that the bytes of a file hold."""
    if element.per_byte > 1:
        codes = raw[:, None] >> np.arange(0, 8, element.bits, dtype=np.uint8) & np.uint8(2**element.bits - 1)
        raw = codes.reshape(-1)[: int(np.prod(dims, dtype=np.int64))]
    return raw.view(element.dtype).reshape(dims)
