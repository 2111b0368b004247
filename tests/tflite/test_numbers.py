"""TFLite computes what ONNX Runtime does, within one quantum: ai-edge-litert runs what is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

from dilrewrite.tflite import convert, quantize
from tests.tflite.models import CASES, conv, ints, model, on_onnxruntime, on_tflite, quantised, values

pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed: scripts/runtimes.sh has it")


def check(proto: ModelProto, within: int = 1) -> None:
    """Both round what they sum once, so that they are at most one quantum of the output apart."""
    given, wanted = on_onnxruntime(proto)
    for found, expected in zip(on_tflite(convert.tflite(proto), given), wanted, strict=True):
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= within
        assert expected.std() > 5, "the output hardly varies: nothing is compared"


@pytest.mark.parametrize("name", CASES)
def test_an_operator(name: str) -> None:
    check(quantised(name))


def test_uint8_becomes_int8() -> None:
    """Integers and zero points move by 128 together."""
    from onnxruntime.quantization import QuantType

    check(quantize.quantised(conv(pads=[1] * 4), of=QuantType.QUInt8))


def between(kind: str, *more: str, scales: Sequence[float] = (0.07, 0.05), **constants: Any) -> ModelProto:
    """An operator between a DequantizeLinear and a QuantizeLinear, with scales of its own."""
    quants = {"s0": np.float32(scales[0]), "s1": np.float32(scales[1]), "z": np.int8(-3)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s0", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s0", "z"], ["d"], name="d"),
        helper.make_node(kind, ["d", *more], ["o"], name="only"),
        helper.make_node("QuantizeLinear", ["o", "s1", "z"], ["r"], name="r"),
        helper.make_node("DequantizeLinear", ["r", "s1", "z"], ["y"], name="e"),
    ]
    return model(nodes, **quants, **constants)


@pytest.mark.parametrize("limits", [(0, 6), (0, 100), (-100, 100)], ids=["to 6", "from 0", "all that the scale has"])
def test_a_clip(limits: tuple[float, float]) -> None:
    check(between("Clip", "lo", "hi", lo=np.float32(limits[0]), hi=np.float32(limits[1])))


def test_a_relu_between_scales() -> None:
    check(between("Relu"))


def test_a_quantised_split() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
        helper.make_node("Split", ["q", "sizes"], ["a", "b"], name="split", axis=1),
        helper.make_node("DequantizeLinear", ["a", "s", "z"], ["c"], name="c"),
        helper.make_node("DequantizeLinear", ["b", "s", "z"], ["d"], name="d"),
        helper.make_node("Add", ["c", "d"], ["e"], name="add"),
        helper.make_node("QuantizeLinear", ["e", "s", "z"], ["f"], name="f"),
        helper.make_node("DequantizeLinear", ["f", "s", "z"], ["y"], name="y"),
    ]
    check(model(nodes, s=np.float32(0.05), z=np.int8(4), sizes=ints(4, 4)))


def test_scales_of_single_channels() -> None:
    """Weights whose channels differ by four orders of magnitude keep their scales."""
    proto = conv(pads=[1] * 4)
    weights = values(8, 8, 3, 3) * np.logspace(-3, 1, 8, dtype=np.float32).reshape(8, 1, 1, 1)
    proto.graph.initializer[0].raw_data = weights.tobytes()
    check(quantize.quantised(proto))
