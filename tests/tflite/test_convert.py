"""What is written of each operator, and what is not. That TFLite computes the same: `test_numbers`."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper

from dilrewrite.runtimes import CannotLoad
from dilrewrite.tflite import convert, quantize
from dilrewrite.tflite.source import Source
from tests.tflite.models import CASES, conv, model, one, quantised, values

WRITTEN = {
    "conv SAME": "CONV_2D",
    "conv VALID": "CONV_2D",
    "conv stride 2, SAME": "CONV_2D",
    "conv stride 2, PAD": "PAD CONV_2D",
    "conv causal": "PAD CONV_2D",
    "conv dilated": "CONV_2D",
    "conv SAME_UPPER": "CONV_2D",
    "conv SAME_LOWER": "PAD CONV_2D",
    "conv 1-D": "CONV_2D",
    "conv and Relu": "CONV_2D",
    "depthwise": "DEPTHWISE_CONV_2D",
    "depthwise, two of each": "DEPTHWISE_CONV_2D",
    "groups": "SLICE CONV_2D SLICE CONV_2D CONCATENATION",
    "batch": "CONV_2D",
    "ConvTranspose": "CONV_2D TRANSPOSE_CONV",
    "ConvTranspose, pads": "CONV_2D TRANSPOSE_CONV SLICE",
    "ConvTranspose 1-D": "CONV_2D TRANSPOSE_CONV SLICE",
    "Relu": "CONV_2D",
    "LeakyRelu": "LEAKY_RELU",
    "Clip to 6": "CONV_2D",
    "Sigmoid": "LOGISTIC QUANTIZE",
    "Tanh": "TANH QUANTIZE",
    "HardSwish": "HARD_SWISH",
    "Softmax": "SOFTMAX QUANTIZE",
    "Add": "CONV_2D ADD",
    "Sub": "CONV_2D SUB",
    "Mul": "MUL",
    "Sum of three": "CONV_2D ADD ADD",
    "Add of a constant": "CONV_2D ADD",
    "Mul by a scalar": "MUL",
    "Div by a constant": "CONV_2D MUL",
    "Concat of channels": "CONV_2D QUANTIZE CONCATENATION",
    "Concat of batches": "CONV_2D QUANTIZE CONCATENATION",
    "Pad": "CONV_2D PAD",
    "Pad with a number": "CONV_2D PADV2",
    "Pad of negative size": "CONV_2D SLICE PAD",
    "Reshape, nothing moves": "CONV_2D RESHAPE TRANSPOSE RESHAPE",
    "Reshape, all moves": "CONV_2D RESHAPE TRANSPOSE RESHAPE TRANSPOSE RESHAPE",
    "Transpose": "CONV_2D RESHAPE TRANSPOSE RESHAPE",
    "Transpose, then Conv": "RESHAPE TRANSPOSE RESHAPE CONV_2D",
    "phases into the batch": "RESHAPE TRANSPOSE RESHAPE CONV_2D RESHAPE TRANSPOSE RESHAPE",
    "phases joined": "CONV_2D SLICE SLICE SLICE SLICE CONCATENATION CONCATENATION CONCATENATION RESHAPE",
    "phases joined along one axis": "CONV_2D SLICE SLICE SLICE CONCATENATION RESHAPE",
    "phases joined, 1-D": "CONV_2D SLICE SLICE CONCATENATION RESHAPE",
    "phases joined, read before": "CONV_2D SLICE SLICE SLICE SLICE CONCATENATION RESHAPE TRANSPOSE CONCATENATION "
    "CONCATENATION CONCATENATION RESHAPE RESHAPE TRANSPOSE RESHAPE ADD",
    "channels shuffled": "CONV_2D SLICE SLICE CONCATENATION RESHAPE TRANSPOSE RESHAPE",
    "Slice": "CONV_2D SLICE",
    "Slice with steps": "CONV_2D RESHAPE SLICE RESHAPE",
    "Slice with steps that do not divide": "CONV_2D STRIDED_SLICE",
    "Slice with steps on both axes": "CONV_2D RESHAPE SLICE",
    "Split": "CONV_2D SLICE ADD",
    "SpaceToDepth": "CONV_2D SPACE_TO_DEPTH",
    "DepthToSpace": "CONV_2D DEPTH_TO_SPACE",
    "DepthToSpace, CRD": "CONV_2D RESHAPE TRANSPOSE RESHAPE",
    "Gather": "CONV_2D GATHER",
    "MaxPool": "CONV_2D MAX_POOL_2D",
    "MaxPool, SAME": "CONV_2D MAX_POOL_2D",
    "AveragePool": "CONV_2D AVERAGE_POOL_2D",
    "AveragePool, 1-D": "CONV_2D AVERAGE_POOL_2D",
    "GlobalAveragePool": "CONV_2D MEAN",
    "ReduceMean": "CONV_2D MEAN RESHAPE",
    "Resize, nearest": "CONV_2D RESIZE_NEAREST_NEIGHBOR",
    "Resize, linear": "CONV_2D RESIZE_BILINEAR",
    "Resize, corners": "CONV_2D RESIZE_BILINEAR",
    "Unsqueeze and Squeeze": "CONV_2D",
    "Flatten and Gemm": "RESHAPE TRANSPOSE RESHAPE FULLY_CONNECTED",
    "BatchNormalization behind a Conv": "CONV_2D",
    "BatchNormalization alone": "MUL ADD",
}
"""The operators of each model, in their order."""


def test_every_case_is_written_down() -> None:
    assert WRITTEN.keys() == CASES.keys()
    assert convert.WRITERS.keys() - {node.op_type for name in CASES for node in quantised(name).graph.node} == {
        "Clip", "Dropout", "Identity", "Relu", "Split", "Upsample",
    }  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_the_operators_that_are_written(name: str) -> None:
    """Pads that neither SAME nor VALID says become a PAD; what only moves axes becomes one TRANSPOSE at most."""
    assert " ".join(convert.written(Source(quantised(name))).kinds()) == WRITTEN[name]


def test_a_file_is_the_same_each_time() -> None:
    assert convert.tflite(quantised("conv causal")) == convert.tflite(quantised("conv causal"))
    assert convert.tflite(quantised("conv causal"))[4:8] == b"TFL3"


def erf() -> ModelProto:
    nodes = [
        helper.make_node("Erf", ["x"], ["e"], name="erf"),
        helper.make_node("Conv", ["e", "w"], ["y"], name="conv"),
    ]
    return model(nodes, w=values(8, 8, 1, 1))


REFUSED = {
    "Conv 'conv': 3 spatial axes; Ethos-U and TFLite's int8 operators take 2": lambda: conv(
        [3, 3, 3], shape=(1, 2, 5, 5, 5), out=2, pads=[1] * 6
    ),
    "Erf 'erf': no operator of int8 is written for it": erf,
    "Slice 'second': step -1 is below 1": lambda: one(
        "Slice", starts=np.int64([-1]), ends=np.int64([-100]), axes=np.int64([2]), steps=np.int64([-1])
    ),
    "Pad 'second': mode reflect; constant is written": lambda: one(
        "Pad", pads=np.int64([0, 0, 1, 1, 0, 0, 1, 1]), attributes={"mode": "reflect"}
    ),
    "ConvTranspose 'second': groups, dilation or auto_pad; TFLite's TRANSPOSE_CONV has none of these": lambda: one(
        "ConvTranspose", w=values(8, 6, 3, 3), attributes={"dilations": [2, 2]}
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_not_written_is_named(reason: str) -> None:
    with pytest.raises(CannotLoad) as raised:
        convert.tflite(quantize.quantised(REFUSED[reason]()))
    assert str(raised.value) == reason


def test_a_model_that_is_not_quantised() -> None:
    with pytest.raises(CannotLoad, match="the input 'x' is not quantised"):
        convert.tflite(conv())
