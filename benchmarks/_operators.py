"""Small models of every operator that dilates, made on the spot: by ONNX Runtime's own quantiser and optimiser where
these write such models."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Sizes = Sequence[int | str]

CONTRIB = "com.microsoft"
FUNCTIONS = "dilrewrite.functions"


def models() -> Iterator[tuple[str, Callable[[], ModelProto]]]:
    """Every model: its name, and what makes it."""
    for sizes, extents in (("known", [16, 16]), ("unknown", ["H", "W"])):
        for kind in (*STATIC, DYNAMIC):
            yield f"{kind}, sizes {sizes}", functools.partial(_quantised, kind, extents)
    yield "float16 beside float32", _half
    yield from MADE.items()
    for level, name in (("EXTENDED", "FusedConv, saved"), ("ALL", "NCHWc, saved")):
        yield name, functools.partial(_saved, level)


def _normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _codes(*shape: int) -> Array:
    return np.random.default_rng(1).integers(-127, 128, shape).astype(np.int8)


def _model(
    nodes: Sequence[NodeProto], shape: Sizes, weights: dict[str, Any], *, opset: int = 17, ir: int = 8, **more: Any
) -> ModelProto:
    """x -> nodes -> y, both of the type `element`."""
    element = more.pop("element", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "operators",
        [helper.make_tensor_value_info("x", element, shape)],
        [helper.make_tensor_value_info("y", element, [f"y{axis}" for axis in range(len(shape))])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    domains = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in more.pop("domains", ()))]
    return helper.make_model(graph, opset_imports=domains, ir_version=ir, **more)


# -- quantised and saved by ONNX Runtime -----------------------------------------------------------------------------


def _net(extents: Sizes) -> ModelProto:
    """Conv, Conv of dilation 2, depthwise Conv of dilation 4, and a residual sum."""
    weights = {
        "w0": _normal(8, 3, 3, 3), "b0": _normal(8), "w1": 0.3 * _normal(8, 8, 3, 3, seed=1), "b1": _normal(8, seed=1),
        "w2": _normal(8, 1, 3, 3, seed=2),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["first"], name="plain", kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["first"], ["bent"], name="bend"),
        helper.make_node(
            "Conv", ["bent", "w1", "b1"], ["second"], name="dense", kernel_shape=[3, 3], dilations=[2, 2], pads=[2] * 4
        ),
        helper.make_node("Relu", ["second"], ["again"], name="bend again"),
        helper.make_node(
            "Conv", ["again", "w2"], ["third"], name="depthwise", kernel_shape=[3, 3], dilations=[4, 4], pads=[4] * 4,
            group=8,
        ),
        helper.make_node("Add", ["third", "bent"], ["y"], name="sum"),
    ]  # fmt: skip
    return _model(nodes, ["N", 3, *extents], weights)


DYNAMIC = "ConvInteger u8 x u8"
STATIC: dict[str, tuple[str, str, str, bool]] = {
    "QDQ u8 x s8": ("QDQ", "QUInt8", "QInt8", True),
    "QDQ s8 x s8": ("QDQ", "QInt8", "QInt8", False),
    "QDQ u16 x u8": ("QDQ", "QUInt16", "QUInt8", False),
    "QLinearConv u8 x s8": ("QOperator", "QUInt8", "QInt8", True),
    "QLinearConv s8 x s8": ("QOperator", "QInt8", "QInt8", False),
}
"""Format, types of data and weights, and whether weights have a scale for each channel, as the quantiser calls them."""


class _Data:
    """Calibration data."""

    def __init__(self) -> None:
        self.left = [{"x": _normal(1, 3, 16, 16, seed=seed)} for seed in range(4)]

    def get_next(self) -> dict[str, Array] | None:
        return self.left.pop() if self.left else None


def _quantised(kind: str, extents: Sizes) -> ModelProto:
    """The net as ONNX Runtime's quantiser writes it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        base, ready, made = (str(Path(folder) / f"{name}.onnx") for name in ("base", "ready", "made"))
        onnx.save(_net(extents), base)
        quant_pre_process(base, ready)
        if kind == DYNAMIC:
            quantize_dynamic(ready, made, weight_type=QuantType.QUInt8)
            return onnx.load(made)
        form, data, weights, channels = STATIC[kind]
        how = {"quant_format": QuantFormat[form], "per_channel": channels}
        symmetric = {"ActivationSymmetric": True} if kind == "QDQ s8 x s8" else {}
        types = {"activation_type": QuantType[data], "weight_type": QuantType[weights]}
        quantize_static(ready, made, _Data(), **how, **types, extra_options=symmetric)  # type: ignore[arg-type]
        return onnx.load(made)


def _half() -> ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(_net(["H", "W"]), keep_io_types=True, node_block_list=["dense"])  # type: ignore[no-any-return]


def _saved(level: str) -> ModelProto:
    """The net as ONNX Runtime saves it with its own operators."""
    import onnxruntime

    net = _net([32, 32])
    net.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "saved.onnx")
        onnxruntime.InferenceSession(net.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


# -- made operator by operator ---------------------------------------------------------------------------------------


def _qlinear() -> ModelProto:
    """A QLinearConv with zero points other than 0 and 128, and a scale for each channel."""
    weights = {
        "s": np.float32(0.05), "z": np.uint8(120), "w": _codes(8, 8, 3), "zw": np.zeros(8, np.int8),
        "sw": np.linspace(0.001, 0.01, 8).astype(np.float32), "b": np.arange(-400, 400, 100).astype(np.int32),
    }  # fmt: skip
    node = helper.make_node(
        "QLinearConv", ["x", "s", "z", "w", "sw", "zw", "s", "z", "b"], ["y"], name="q", dilations=[4], pads=[4, 4]
    )
    return _model([node], ["N", 8, "T"], weights, opset=13, element=TensorProto.UINT8)


def _integers() -> ModelProto:
    """What dynamic quantisation makes, then what static quantisation makes."""
    weights = {
        "w": _codes(8, 8, 3), "zw": np.int8(0), "sw": np.float32(0.01), "s": np.float32(0.05), "z": np.uint8(120),
    }  # fmt: skip
    more: dict[str, Any] = {"kernel_shape": [3]}
    read = ["q", "s", "z", "w", "sw", "zw", "s", "z"]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node(
            "ConvInteger", ["xq", "w", "xz", "zw"], ["sums"], name="sums", dilations=[8], pads=[8, 8], **more
        ),
        helper.make_node("Cast", ["sums"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["xs", "sw"], ["scale"]),
        helper.make_node("Mul", ["cast", "scale"], ["real"]),
        helper.make_node("QuantizeLinear", ["real", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", read, ["yq"], name="fused", dilations=[16], pads=[16, 16], **more),
        helper.make_node("DequantizeLinear", ["yq", "s", "z"], ["y"]),
    ]
    return _model(nodes, [1, 8, "T"], weights, opset=13)


def _sixteen_bits() -> ModelProto:
    """16-bit data in a QDQ of com.microsoft, as ONNX Runtime writes them below opset 21."""
    sx, sw = np.float32(2.5e-4), np.linspace(0.001, 0.01, 8).astype(np.float32)
    weights = {
        "sx": sx, "zx": np.uint16(32000), "sy": np.float32(1e-3), "zy": np.uint16(32668), "w": _codes(8, 8, 3, 3),
        "sw": sw, "zw": np.zeros(8, np.int8), "b": np.arange(-400, 400, 100).astype(np.int32), "sb": sx * sw,
        "zb": np.zeros(8, np.int32),
    }  # fmt: skip

    def quantising(op: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
        return helper.make_node(op, inputs.split(), [output], domain=CONTRIB, **attributes)

    nodes = [
        quantising("QuantizeLinear", "x sx zx", "xq"),
        quantising("DequantizeLinear", "xq sx zx", "xd"),
        quantising("DequantizeLinear", "w sw zw", "wd", axis=0),
        quantising("DequantizeLinear", "b sb zb", "bd", axis=0),
        helper.make_node("Conv", ["xd", "wd", "bd"], ["c"], name="site", dilations=[2, 2], pads=[2] * 4),
        helper.make_node("Relu", ["c"], ["r"]),
        quantising("QuantizeLinear", "r sy zy", "yq"),
        quantising("DequantizeLinear", "yq sy zy", "y"),
    ]
    return _model(nodes, [1, 8, 17, 16], weights, opset=13, domains=[CONTRIB])


def _functions() -> ModelProto:
    """A function that takes dilations and pads from its call, and one that has its own; both called twice."""
    conv = helper.make_node("Conv", ["X", "W"], ["Y"], name="inner")
    for name in ("dilations", "pads"):
        conv.attribute.add(name=name, ref_attr_name=name, type=onnx.AttributeProto.INTS)
    own = helper.make_node("Conv", ["X", "W"], ["C"], name="inner", dilations=[3], pads=[3, 3])
    opset, domain = [helper.make_opsetid("", 18)], FUNCTIONS
    functions = [
        helper.make_function(domain, "given", ["X", "W"], ["Y"], [conv], opset, ["dilations", "pads"]),
        helper.make_function(
            domain, "own", ["X", "W"], ["Y"], [own, helper.make_node("Relu", ["C"], ["Y"])], opset
        ),
    ]  # fmt: skip
    nodes = [
        helper.make_node("given", ["x", "w"], ["a"], domain=domain, dilations=[2], pads=[2, 2]),
        helper.make_node("own", ["a", "w"], ["b"], domain=domain),
        helper.make_node("given", ["b", "w"], ["c"], domain=domain, dilations=[4], pads=[4, 4]),
        helper.make_node("own", ["c", "w"], ["y"], domain=domain),
    ]
    return _model(nodes, ["N", 4, "T"], {"w": _normal(4, 4, 3)}, opset=18, functions=functions, domains=[domain])


def _transposed(
    shape: Sizes, weights: tuple[int, ...], *, group: int = 1, **attributes: Any
) -> Callable[[], ModelProto]:
    def make() -> ModelProto:
        node = helper.make_node("ConvTranspose", ["x", "w", "b"], ["c"], name="up", group=group, **attributes)
        held = {"w": _normal(*weights), "b": _normal(weights[1] * group, seed=1)}
        return _model([node, helper.make_node("Relu", ["c"], ["y"])], shape, held)

    return make


def _pooled(op: str, **attributes: Any) -> Callable[[], ModelProto]:
    more = {"kernel_shape": [3, 3], "dilations": [2, 3], "pads": [1] * 4}
    node = helper.make_node(op, ["x"], ["y"], name="pool", **more, **attributes)
    return lambda: _model([node], ["N", 4, "H", "W"], {}, opset=19)


def _sandwich() -> ModelProto:
    """What tf2onnx writes for a 1-D Conv of dilation 2: phases in the batch, with shapes that are computed."""

    def row(name: str, *values: int) -> None:
        held[name] = np.array(values)

    held: dict[str, Any] = {"w": _normal(6, 4, 3)}
    row("pads", 0, 0, 2, 0, 0, 2)
    row("apart", -1, 4, 9, 2)
    row("phases", -1, 4, 9)
    row("joined", 2, -1, 6, 7)
    row("whole", -1, 6, 14)
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"]),
        helper.make_node("Reshape", ["p", "apart"], ["r0"]),
        helper.make_node("Transpose", ["r0"], ["t0"], perm=[3, 0, 1, 2]),
        helper.make_node("Reshape", ["t0", "phases"], ["r1"]),
        helper.make_node("Conv", ["r1", "w"], ["c"], name="inside", kernel_shape=[3]),
        helper.make_node("Reshape", ["c", "joined"], ["r2"]),
        helper.make_node("Transpose", ["r2"], ["t1"], perm=[1, 2, 3, 0]),
        helper.make_node("Reshape", ["t1", "whole"], ["y"]),
    ]
    return _model(nodes, ["N", 4, 14], held)


MADE: dict[str, Callable[[], ModelProto]] = {
    "QLinearConv, zero points": _qlinear,
    "ConvInteger, then QLinearConv": _integers,
    "QDQ of com.microsoft, 16 bits": _sixteen_bits,
    "functions with attributes of their call": _functions,
    "ConvTranspose, depthwise 3x3 d5": _transposed(
        [1, 8, "T", 33], (8, 1, 3, 3), group=8, dilations=[5, 1], pads=[10, 1, 0, 1]
    ),
    "ConvTranspose, stride 2, k5 d3": _transposed(
        ["N", 4, "T"], (4, 3, 5), strides=[2], dilations=[3], output_padding=[1]
    ),
    "ConvTranspose, 3-D, groups": _transposed([1, 4, 4, 5, 6], (4, 3, 2, 3, 2), group=2, dilations=[2, 1, 3]),
    "MaxPool": _pooled("MaxPool", strides=[1, 2]),
    "AveragePool, padding counts": _pooled("AveragePool", count_include_pad=1),
    "LpPool": _pooled("LpPool", p=2),
    "sandwich, 1-D": _sandwich,
}
"""The rest, by name."""
