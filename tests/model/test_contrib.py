"""contrib: what is inferred behind operators of com.microsoft is what ONNX Runtime makes, and no node is changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite.model.contrib import ALIKE, DOMAIN
from dilrewrite.model.light import graph_shapes
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.sites.find import find
from tests.models_for_tests import values

Array = np.ndarray[Any, Any]

X, Q = values(2, 4, 9, 8), np.random.default_rng(0).integers(0, 255, (2, 4, 9, 8)).astype(np.uint8)
SCALE, HALF, ZERO = np.float32(0.5), np.float16(0.5), np.uint8(7)
PAIR, WINDOW = [SCALE, ZERO], {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]}
CODES = np.ones((6, 4, 3, 3), np.int8)

CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    **{op: (op, [X], {}) for op in ("Gelu", "FastGelu", "QuickGelu")},
    "BiasGelu": ("BiasGelu", [X, values(8)], {}),
    "FusedConv": ("FusedConv", [X, values(6, 4, 3, 3), values(6)], {"activation": "Relu", "dilations": [2, 1]}),
    "QuantizeLinear": ("QuantizeLinear", [X, SCALE, np.uint16(7)], {}),
    "DequantizeLinear": ("DequantizeLinear", [Q.astype(np.uint16), SCALE, np.uint16(7)], {}),
    "DequantizeLinear to float16": ("DequantizeLinear", [Q, HALF, ZERO], {}),
    "QLinearAdd": ("QLinearAdd", [Q, *PAIR, Q[:, :, :1], *PAIR, *PAIR], {}),
    "QLinearMul": ("QLinearMul", [Q, *PAIR, Q[:1], *PAIR, *PAIR], {}),
    "QLinearConcat": ("QLinearConcat", [*PAIR, Q, *PAIR, Q[:, :1], *PAIR], {"axis": 1}),
    "QLinearLeakyRelu": ("QLinearLeakyRelu", [Q, *PAIR, *PAIR], {"alpha": 0.1}),
    "QLinearSigmoid": ("QLinearSigmoid", [Q, *PAIR, *PAIR], {}),
    "QLinearSoftmax": ("QLinearSoftmax", [Q, *PAIR, *PAIR], {"axis": -1, "opset": 13}),
    "QLinearAveragePool": ("QLinearAveragePool", [Q, *PAIR, *PAIR], WINDOW),
    "QLinearAveragePool, last": ("QLinearAveragePool", [Q, *PAIR, *PAIR], {**WINDOW, "channels_last": 1}),
    "QLinearGlobalAveragePool": ("QLinearGlobalAveragePool", [Q, *PAIR, *PAIR], {}),
    "QLinearConv": ("QLinearConv", [Q, *PAIR, CODES, SCALE, np.int8(0), *PAIR], {"dilations": [2, 1]}),
}
"""An operator, what it reads, and its attributes; arrays of data are inputs, the others constants."""


def build(name: str) -> tuple[ModelProto, dict[str, Array]]:
    """The operator between the inputs and `y`, then a Relu or an Identity."""
    op, operands, attributes = CASES[name]
    feeds = {f"x{place}": value for place, value in enumerate(operands) if np.ndim(value) == 4 and value is not CODES}
    held = {f"x{place}": np.asarray(value) for place, value in enumerate(operands) if f"x{place}" not in feeds}
    names = [f"x{place}" for place in range(len(operands))]
    element = helper.np_dtype_to_tensor_dtype
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"], name="own", domain=DOMAIN, **attributes)],
        "contrib",
        [helper.make_tensor_value_info(key, element(value.dtype), value.shape) for key, value in feeds.items()],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, key) for key, value in held.items()],
    )
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8), feeds


def test_every_operator_has_a_case() -> None:
    assert {op for op, *_ in CASES.values()} == set(ALIKE)


@pytest.mark.parametrize("name", CASES)
def test_the_type_and_the_sizes_that_the_runtime_makes(name: str) -> None:
    model, feeds = build(name)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (made,) = session.run(None, feeds)
    inferred = infer_shapes(model)
    element, shape = graph_shapes(inferred.graph).get("y", (0, None))
    if name.endswith("last"):
        assert shape is None, "nothing is said of channels last"
    else:
        assert (element, shape) == (helper.np_dtype_to_tensor_dtype(made.dtype), made.shape)
    assert [(node.domain, node.op_type) for node in inferred.graph.node] == [(DOMAIN, CASES[name][0])]
    assert inferred.graph.node[0].input == model.graph.node[0].input


def test_a_conv_behind_one_has_known_sizes() -> None:
    model, _ = build("Gelu")
    conv = helper.make_node("Conv", ["y", "w"], ["z"], name="site", dilations=[2, 2], pads=[2, 2, 2, 2])
    model.graph.node.append(conv)
    model.graph.initializer.append(numpy_helper.from_array(values(4, 4, 3, 3), "w"))
    model.graph.output[0].name = "z"
    (site,) = find(model).sites
    assert (site.geometry.batch, site.geometry.extents) == (2, (9, 8))
    model.graph.node[0].op_type = "Mystery"
    (unknown,) = find(model).sites
    assert unknown.geometry.extents == (None, None)
