"""Small float models, an operator or a few each, and what a quantised one computes on ONNX Runtime and as TFLite."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.tflite import quantize
from dilrewrite.tflite.source import DEQUANTIZE, Source
from dilrewrite.tflite.values import UNIT, usual

Array = NDArray[Any]

IMAGE = (1, 8, 12, 10)


def model(
    nodes: Sequence[onnx.NodeProto], shape: Sequence[int] = IMAGE, opset: int = 18, **constants: Any
) -> ModelProto:
    """A model from x to y."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, tensors)
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    )


def values(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(
    kernel: Sequence[int] = (3, 3), *, shape: Sequence[int] = IMAGE, out: int = 8, group: int = 1, bias: bool = True,
    then: str = "", **attributes: Any,
) -> ModelProto:  # fmt: skip
    constants = {"w": values(out, shape[1] // group, *kernel) / 4}
    if bias:
        constants["b"] = values(out, seed=1)
    attributes = {"kernel_shape": kernel, "group": group, **attributes}
    nodes = [helper.make_node("Conv", ["x", *constants], ["c" if then else "y"], name="conv", **attributes)]
    if then:
        nodes.append(helper.make_node(then, ["c"], ["y"], name="then"))
    return model(nodes, shape, **constants)


def one(kind: str, *more: str, shape: Sequence[int] = IMAGE, attributes: Any = None, **constants: Any) -> ModelProto:
    """An operator behind a Conv with kernel 1, so that its data are computed."""
    first = helper.make_node("Conv", ["x", "w1"], ["c"], name="first", kernel_shape=[1] * (len(shape) - 2))
    second = helper.make_node(kind, ["c", *more, *constants], ["y"], name="second", **(attributes or {}))
    kernel = values(shape[1], shape[1], *[1] * (len(shape) - 2), seed=3) / 2
    return model([first, second], shape, w1=kernel, **constants)


def alone(kind: str, *more: str, attributes: Any = None, **constants: Any) -> ModelProto:
    """An operator that reads the input: no rounding in front that a steep function would enlarge."""
    node = helper.make_node(kind, ["x", *more, *constants], ["y"], name="only", **(attributes or {}))
    return model([node], **constants)


def chain(
    *nodes: tuple[str, Sequence[str], str, dict[str, Any]], shape: Sequence[int] = IMAGE, **constants: Any
) -> ModelProto:
    made = [
        helper.make_node(kind, inputs, [out], name=f"n{i}", **given)
        for i, (kind, inputs, out, given) in enumerate(nodes)
    ]
    return model(made, shape, **constants)


def ints(*numbers: int) -> Array:
    return np.asarray(numbers, np.int64)


def block(block: int) -> ModelProto:
    """Space to batch by Reshape and Transpose, and back."""
    n, c, h, w = IMAGE
    rows, columns = h // block, w // block
    return chain(
        ("Reshape", ["x", "s1"], "a", {}),
        ("Transpose", ["a"], "t", {"perm": [3, 5, 0, 1, 2, 4]}),
        ("Reshape", ["t", "s2"], "b", {}),
        ("Conv", ["b", "w"], "c", {"pads": [1] * 4}),
        ("Reshape", ["c", "s3"], "d", {}),
        ("Transpose", ["d"], "u", {"perm": [2, 3, 4, 0, 5, 1]}),
        ("Reshape", ["u", "s4"], "y", {}),
        w=values(c, c, 3, 3) / 4, s1=ints(n, c, rows, block, columns, block),
        s2=ints(block * block * n, c, rows, columns),
        s3=ints(block, block, n, c, rows, columns), s4=ints(n, c, h, w),
    )  # fmt: skip


def phases(apart: Sequence[int], perm: Sequence[int], whole: Sequence[int], *, twice: bool = False) -> ModelProto:
    """Parts of an image joined along the channels, which are taken apart again; `twice`: what is between is read, too.

    The parts are its rows from 0, from 1, and so on.
    """
    channels, rows, *columns = apart[1 - len(whole) :]
    count = int(np.prod(apart[1 : 1 - len(whole)]))
    parts = [f"p{place}" for place in range(count)]
    nodes: list[Any] = [("Conv", ["x", "w"], "o", {})]
    nodes += [("Slice", ["o", f"s{place}", f"e{place}", "rows"], part, {}) for place, part in enumerate(parts)]
    nodes += [
        ("Concat", parts, "c", {"axis": 1}),
        ("Reshape", ["c", "apart"], "a", {}),
        ("Transpose", ["a"], "t", {"perm": perm}),
        ("Reshape", ["t", "whole"], "b" if twice else "y", {}),
    ]
    if twice:
        nodes += [("Reshape", ["a", "whole"], "d", {}), ("Add", ["b", "d"], "y", {})]
    cuts = {f"{end}{place}": ints(at) for place in range(count) for end, at in (("s", place), ("e", place + rows))}
    weight = values(channels, channels, *[1] * (len(columns) + 1)) / 2
    sizes = {"rows": ints(2), "apart": ints(*apart), "whole": ints(*whole)}
    return chain(*nodes, shape=(1, channels, rows + count, *columns), w=weight, **cuts, **sizes)


CASES: dict[str, Callable[[], ModelProto]] = {
    "conv SAME": lambda: conv(pads=[1] * 4),
    "conv VALID": lambda: conv(out=5),
    "conv stride 2, SAME": lambda: conv(pads=[0, 0, 1, 1], strides=[2, 2]),
    "conv stride 2, PAD": lambda: conv(pads=[1] * 4, strides=[2, 2]),
    "conv causal": lambda: conv(pads=[4, 0, 0, 0], dilations=[2, 1]),
    "conv dilated": lambda: conv(pads=[3] * 4, dilations=[3, 3], bias=False),
    "conv SAME_UPPER": lambda: conv(auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv SAME_LOWER": lambda: conv(auto_pad="SAME_LOWER", strides=[2, 2]),
    "conv 1-D": lambda: conv([3], shape=(2, 8, 30), pads=[4, 4], dilations=[4]),
    "conv and Relu": lambda: conv(pads=[1] * 4, then="Relu"),
    "depthwise": lambda: conv(pads=[2] * 4, dilations=[2, 2], group=8),
    "depthwise, two of each": lambda: conv(pads=[1] * 4, group=8, out=16),
    "groups": lambda: conv(pads=[1] * 4, group=2, out=6),
    "batch": lambda: conv(pads=[1] * 4, shape=(3, 8, 9, 7)),
    "ConvTranspose": lambda: one("ConvTranspose", w=values(8, 6, 3, 3) / 4, attributes={"strides": [2, 2]}),
    "ConvTranspose, pads": lambda: one(
        "ConvTranspose", w=values(8, 6, 4, 4) / 4, attributes={"strides": [2, 2], "pads": [1] * 4}
    ),
    "ConvTranspose 1-D": lambda: one(
        "ConvTranspose", shape=(1, 8, 20), w=values(8, 6, 4) / 4, attributes={"strides": [2], "pads": [1, 1]}
    ),
    "Relu": lambda: one("Relu"),
    "LeakyRelu": lambda: alone("LeakyRelu", attributes={"alpha": 0.1}),
    "Clip to 6": lambda: one("Clip", lo=np.float32(0), hi=np.float32(6)),
    "Sigmoid": lambda: alone("Sigmoid"),
    "Tanh": lambda: alone("Tanh"),
    "HardSwish": lambda: alone("HardSwish"),
    "Softmax": lambda: alone("Softmax", attributes={"axis": 1}),
    "Add": lambda: one("Add", "x"),
    "Sub": lambda: one("Sub", "x"),
    "Mul": lambda: alone("Mul", "x"),
    "Sum of three": lambda: one("Sum", "x", "c"),
    "Add of a constant": lambda: one("Add", k=values(8, 1, 1)),
    "Mul by a scalar": lambda: alone("Mul", k=np.float32(0.37)),
    "Div by a constant": lambda: one("Div", k=np.float32(3)),
    "Concat of channels": lambda: one("Concat", "x", attributes={"axis": 1}),
    "Concat of batches": lambda: one("Concat", "x", attributes={"axis": 0}),
    "Pad": lambda: one("Pad", pads=ints(0, 0, 1, 2, 0, 0, 3, 0)),
    "Pad with a number": lambda: one("Pad", pads=ints(0, 0, 1, 2, 0, 0, 3, 0), fill=np.float32(0.5)),
    "Pad of negative size": lambda: one("Pad", pads=ints(0, 0, -1, 2, 0, 0, 0, -3)),
    "Reshape, nothing moves": lambda: one("Reshape", shape_=ints(2, 4, 12, 10)),
    "Reshape, all moves": lambda: one("Reshape", shape_=ints(1, 10, 8, 12)),
    "Transpose": lambda: one("Transpose", attributes={"perm": [0, 2, 1, 3]}),
    "Transpose, then Conv": lambda: chain(
        ("Transpose", ["x"], "t", {"perm": [0, 3, 1, 2]}), ("Conv", ["t", "w"], "y", {}), w=values(4, 10, 3, 3) / 4
    ),
    "phases into the batch": lambda: block(2),
    "phases joined": lambda: phases((1, 2, 2, 8, 6, 5), (0, 3, 4, 1, 5, 2), (1, 8, 12, 10)),
    "phases joined along one axis": lambda: phases((1, 3, 8, 6, 5), (0, 2, 3, 4, 1), (1, 8, 6, 15)),
    "phases joined, 1-D": lambda: phases((1, 2, 8, 30), (0, 2, 3, 1), (1, 8, 60)),
    "phases joined, read before": lambda: phases((1, 2, 2, 8, 6, 5), (0, 3, 4, 1, 5, 2), (1, 8, 12, 10), twice=True),
    "channels shuffled": lambda: phases((1, 2, 8, 6, 5), (0, 2, 1, 3, 4), (1, 16, 6, 5)),
    "Slice": lambda: one("Slice", starts=ints(1, 2), ends=ints(9, 100), axes=ints(2, 3)),
    "Slice with steps": lambda: one("Slice", starts=ints(1), ends=ints(12), axes=ints(2), steps=ints(3)),
    "Slice with steps that do not divide": lambda: one(
        "Slice", starts=ints(1), ends=ints(12), axes=ints(2), steps=ints(5)
    ),
    "Slice with steps on both axes": lambda: one(
        "Slice", starts=ints(1, 0), ends=ints(12, 10), axes=ints(2, 3), steps=ints(3, 2)
    ),
    "Split": lambda: chain(
        ("Conv", ["x", "w"], "c", {}),
        ("Slice", ["c", "b", "e", "a"], "s", {}),
        ("Add", ["s", "s"], "y", {}),
        w=values(8, 8, 1, 1) / 4,
        b=ints(2),
        e=ints(6),
        a=ints(1),
    ),
    "SpaceToDepth": lambda: one("SpaceToDepth", attributes={"blocksize": 2}),
    "DepthToSpace": lambda: one("DepthToSpace", attributes={"blocksize": 2}),
    "DepthToSpace, CRD": lambda: one("DepthToSpace", attributes={"blocksize": 2, "mode": "CRD"}),
    "Gather": lambda: one("Gather", shape_=ints(3, 1, 1, 0), attributes={"axis": 2}),
    "MaxPool": lambda: one("MaxPool", attributes={"kernel_shape": [2, 2], "strides": [2, 2]}),
    "MaxPool, SAME": lambda: one("MaxPool", attributes={"kernel_shape": [3, 3], "pads": [1] * 4}),
    "AveragePool": lambda: one("AveragePool", attributes={"kernel_shape": [3, 3], "pads": [1] * 4}),
    "AveragePool, 1-D": lambda: one("AveragePool", shape=(1, 8, 20), attributes={"kernel_shape": [4], "strides": [4]}),
    "GlobalAveragePool": lambda: one("GlobalAveragePool"),
    "ReduceMean": lambda: one("ReduceMean", axes=ints(2, 3), attributes={"keepdims": 0}),
    "Resize, nearest": lambda: one(
        "Resize",
        "",
        "",
        sizes=ints(1, 8, 24, 20),
        attributes={"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    ),
    "Resize, linear": lambda: one("Resize", "", "", sizes=ints(1, 8, 24, 20), attributes={"mode": "linear"}),
    "Resize, corners": lambda: one(
        "Resize",
        "",
        "",
        sizes=ints(1, 8, 23, 19),
        attributes={"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ),
    "Unsqueeze and Squeeze": lambda: chain(
        ("Unsqueeze", ["x", "a"], "u", {}),
        ("Squeeze", ["u", "a"], "s", {}),
        ("Conv", ["s", "w"], "y", {}),
        a=ints(2),
        w=values(4, 8, 3, 3) / 4,
    ),
    "Flatten and Gemm": lambda: model(
        [
            helper.make_node("Flatten", ["x"], ["f"], name="flat"),
            helper.make_node("Gemm", ["f", "w", "b"], ["y"], name="gemm", transB=1),
        ],
        (1, 4, 3, 2),
        w=values(5, 24) / 4,
        b=values(5, seed=1),
    ),
    "BatchNormalization behind a Conv": lambda: normalised(behind=True),
    "BatchNormalization alone": lambda: normalised(behind=False),
}


def normalised(*, behind: bool) -> ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], name="conv")] if behind else []
    names = ["scale", "shift", "mean", "variance"]
    nodes.append(helper.make_node("BatchNormalization", ["c" if behind else "x", *names], ["y"], name="norm"))
    constants = {name: np.abs(values(8, seed=at)) + 0.5 for at, name in enumerate(names)}
    return model(nodes, w=values(8, 8, 1, 1) / 4, **constants) if behind else model(nodes, **constants)


@functools.cache
def quantised(name: str) -> ModelProto:
    return quantize.quantised(CASES[name]())


def laid(given: Array) -> Array:
    """An array of ONNX as it lies in TFLite."""
    order = usual(given.ndim)
    shape = [1 if axis == UNIT else given.shape[axis] for axis in order]
    return given.transpose([axis for axis in order if axis != UNIT]).reshape(shape)


def on_onnxruntime(proto: ModelProto) -> tuple[list[Array], list[Array]]:
    """The inputs and outputs of a model as integers of int8 in TFLite's order, as ONNX Runtime computes them."""
    source = Source(onnx.ModelProto.FromString(proto.SerializeToString()))
    rng = np.random.default_rng(7)
    feeds, given = {}, []
    for value in source.inputs:
        quantum = source.quantum(value.name)
        assert quantum is not None
        integers = rng.integers(-128, 128, source.shape(value.name))
        given.append(laid(integers).astype(np.int8))
        feeds[value.name] = ((integers - quantum.zero) * np.float64(quantum.scale)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    outputs = []
    for value, result in zip(source.graph.output, session.run(None, feeds), strict=True):
        (node,) = (node for node in source.graph.node if value.name in node.output)
        assert node.op_type == DEQUANTIZE
        quantum = source.of(node)
        outputs.append(np.rint(laid(result) / quantum.scale) + quantum.zero)
    return given, outputs


def on_tflite(file: bytes, given: Sequence[Array]) -> list[Array]:
    """What TFLite's reference kernels compute of these inputs."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=file, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )  # fmt: skip
    interpreter.allocate_tensors()
    for about, integers in zip(interpreter.get_input_details(), given, strict=True):
        interpreter.set_tensor(about["index"], integers)
    interpreter.invoke()
    return [interpreter.get_tensor(about["index"]) for about in interpreter.get_output_details()]
