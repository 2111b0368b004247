"""The exact oracle: whole numbers without a rounding, and the sizes of the sums that are rounded."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper

from dilrewrite.proof.exact import exact
from tests.models_for_tests import build, conv_node, values

make = helper.make_node


def test_whole_numbers_beyond_float32_are_exact() -> None:
    w = np.array([[[2**20 + 1, 2**21 - 1, 2]]], np.float32)
    model = build([conv_node("x", "y", dilations=[2])], {"x": [1, 1, 8]}, {"y": None}, {"w": w})
    x = np.arange(2**23, 2**23 + 8, dtype=np.float32).reshape(1, 1, 8)
    taps = [int(value) for value in w.ravel()]
    wanted = [sum(tap * int(x[0, 0, at + 2 * place]) for place, tap in enumerate(taps)) for at in range(4)]
    result = exact(model, {"x": x})
    assert result.dtype == np.float64
    assert result.ravel().tolist() == wanted
    assert int(np.float32(wanted[0])) != wanted[0]


def test_long_doubles_are_finer() -> None:
    if np.finfo(np.longdouble).eps >= np.finfo(np.float64).eps:
        pytest.skip("the machine has none")
    w = values(1, 64, 3, seed=1).astype(np.float64)
    node = conv_node("x", "y", dilations=[2])
    model = build([node], {"x": [1, 64, 5]}, {"y": None}, {"w": w}, types={"x": TensorProto.DOUBLE})
    x = np.random.default_rng(0).standard_normal((1, 64, 5))
    terms = [Fraction(float(a)) * Fraction(float(b)) for a, b in zip(x[0, :, ::2].ravel(), w.ravel(), strict=True)]
    (fine,) = exact(model, {"x": x}, np.longdouble).ravel()
    assert fine.dtype == np.longdouble
    assert abs(Fraction(*fine.as_integer_ratio()) - sum(terms)) < Fraction(1, 2**58)


def test_magnitudes() -> None:
    held = {"w": np.float32([[[1, -2, 4]]]), "b": np.float32([-8])}
    model = build([make("Conv", ["x", *held], ["y"])], {"x": [1, 1, 3]}, {"y": None}, held)
    x = np.float32([[[1, 1, -1]]])
    assert exact(model, {"x": x}).item() == -13
    assert exact(model, {"x": x}, magnitudes=True).item() == 15


def quantised(axis: int | None, zero: bool) -> ModelProto:
    """DequantizeLinear and QuantizeLinear with scales that are powers of two."""
    shape = () if axis is None else (4,)
    held: dict[str, Any] = {"s": np.full(shape, 0.25, np.float32), "u": np.full(shape, 2.0, np.float32)}
    if zero:
        held |= {"sz": np.full(shape, 3, np.int8), "uz": np.full(shape, 100, np.uint8)}
    attributes = {} if axis is None else {"axis": axis}
    return build(
        [
            make("DequantizeLinear", ["x", *(name for name in held if name[0] == "s")], ["f"], **attributes),
            make("QuantizeLinear", ["f", *(name for name in held if name[0] == "u")], ["y"], **attributes),
        ],
        {"x": [4, 4, 16]},
        {"y": None},
        held,
        types={"x": TensorProto.INT8, "y": TensorProto.UINT8},
    )


@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("axis", [None, 0, 1, -2])
def test_quantisation_is_onnx_runtimes(axis: int | None, zero: bool) -> None:
    model = quantised(axis, zero)
    x = np.arange(-128, 128).astype(np.int8).reshape(4, 4, 16)
    (wanted,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    result = exact(model, {"x": x})
    assert result.dtype == wanted.dtype == np.uint8
    np.testing.assert_array_equal(result, wanted)
