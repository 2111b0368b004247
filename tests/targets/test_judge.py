"""A whole model is held to a profile: every node, by the rules alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dilrewrite.errors import UsageError
from dilrewrite.targets import Fit, find, judge
from tests.models_for_tests import build, conv_node, values


def conv(
    channels: int = 8,
    extents: tuple[Any, ...] = (40, 40),
    *,
    d: int = 1,
    k: int = 3,
    s: int = 1,
    p: Any = None,
    group: int = 1,
    batch: Any = 1,
    **more: Any,
) -> onnx.ModelProto:
    """x -> Conv -> Relu -> y."""
    rank = len(extents)
    pads = p if isinstance(p, list) else [d * (k - 1) // 2 if p is None else p] * 2 * rank
    sizes = {"kernel_shape": [k] * rank, "dilations": [d] * rank, "strides": [s] * rank, "group": group}
    pads = {} if "auto_pad" in more else {"pads": pads}
    node = conv_node("x", "c", "w", name="conv", **sizes, **pads, **more)
    weight = values(channels, channels // group, *[k] * rank)
    relu = helper.make_node("Relu", ["c"], ["y"], name="relu")
    return build([node, relu], {"x": (batch, channels, *extents)}, {"y": None}, {"w": weight})


def fits(model: onnx.ModelProto, target: str = "rknn-2.3.2", **shapes: tuple[int, ...]) -> dict[str, Fit]:
    return {node.name: node.fit for node in judge(model, find(target), shapes).nodes}


def said(model: onnx.ModelProto, target: str = "rknn-2.3.2") -> list[str]:
    return [one.text for node in judge(model, find(target)).nodes for one in node.findings]


def test_every_node_is_judged() -> None:
    assert fits(conv(d=2)) == {"conv": Fit.NATIVE, "relu": Fit.NATIVE}
    assert fits(conv(d=16)) == {"conv": Fit.OUT, "relu": Fit.NATIVE}
    assert said(conv(d=16)) == ["pads 16 is not at most 15"]


def test_depthwise_has_other_limits_than_dense() -> None:
    assert fits(conv(k=9))["conv"] is Fit.NATIVE
    assert said(conv(k=9, group=8)) == ["kernel 9 is not at most 8"]
    assert said(conv(d=32, p=0, extents=(80, 80))) == ["dilation 32 is not at most 31"]
    assert said(conv(d=32, p=0, extents=(80, 80), group=8)) == []


def test_of_rules_that_say_the_same_a_conv_tells_its_own() -> None:
    """The batch of a tensor is limited, too."""
    (conv_, _) = judge(conv(batch=200), find("rdk-x3")).nodes
    assert [(one.text, one.rule and one.rule.place) for one in conv_.findings if "batch" in one.text] == [
        ("batch 200 is not at most 128", "conv.batch")
    ]


def test_auto_pad_is_counted() -> None:
    assert said(conv(d=16, auto_pad="SAME_UPPER")) == ["pads 16 is not at most 15"]
    assert said(conv(d=16, auto_pad="VALID")) == []


def test_static_targets_ask_for_sizes() -> None:
    with pytest.raises(UsageError, match=r"input 'x' has 1, 8, H, 40; give its sizes: --shape x:1x8xSIZEx40"):
        judge(conv(extents=("H", 40)), find("rknn-2.3.2"))
    assert fits(conv(extents=("H", 40)), x=(1, 8, 40, 40))["conv"] is Fit.NATIVE
    assert fits(conv(batch="n"), "ethos-u-vela-5.2")["conv"] is Fit.NATIVE
    with pytest.raises(UsageError, match="fixed sizes only"):
        judge(conv(batch="n"), find("rknn-2.3.2"))


def test_an_input_of_no_known_rank_is_asked_for() -> None:
    model = conv(d=2)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UsageError, match=r"input 'x' has none; give its sizes: --shape x:SIZES"):
        judge(model, find("rknn-2.3.2"))


def test_operators_of_the_host_and_unknown_ones() -> None:
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["a"], name="s2d", blocksize=2),
        helper.make_node("Slice", ["a", "0", "big", "2", "2"], ["b"], name="steps"),
        helper.make_node("Slice", ["a", "0", "big", "2", "1"], ["c"], name="cut"),
        helper.make_node("DynamicQuantizeLinear", ["b"], ["d", "s", "z"], name="integers"),
        helper.make_node("Mine", ["c"], ["e"], name="mine", domain="my.own"),
    ]
    numbers = {name: np.array([int(name)]) for name in "012"} | {"big": np.array([8])}
    types = {"d": TensorProto.UINT8}
    model = build(nodes, {"x": (1, 4, 32, 32)}, {"d": None, "e": None}, numbers, domains=["my.own"], types=types)
    fit = {"s2d": Fit.HOST, "steps": Fit.HOST, "cut": Fit.NATIVE, "integers": Fit.OUT, "mine": Fit.UNKNOWN}
    assert fits(model) == fit
    judgement = judge(model, find("rknn-2.3.2"))
    assert judgement.fit is Fit.OUT
    assert [node.key for node in judgement.at(Fit.HOST)] == ["main/a", "main/b"]
    assert judgement.at(Fit.HOST, convs=True) == []


def test_what_is_known_before_it_runs_is_not_judged() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "0"], ["n"]),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"], name="reshape"),
    ]
    numbers = {"0": np.array([0]), "rest": np.array([-1])}
    judgement = judge(build(nodes, {"x": (1, 4, 8)}, {"y": None}, numbers), find("rknn-2.3.2"))
    assert ([node.name for node in judgement.nodes], judgement.folded) == (["reshape"], 3)


def test_nodes_inside_of_nodes_are_judged() -> None:
    inner = helper.make_graph(
        [helper.make_node("SpaceToDepth", ["x"], ["z"], name="inside", blocksize=2)],
        "then",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], name="if", then_branch=inner, else_branch=inner)
    model = build([node], {"c": (), "x": (1, 4, 8, 8)}, {"y": None}, types={"c": TensorProto.BOOL})
    nodes = judge(model, find("rknn-2.3.2")).nodes
    assert {one.key for one in nodes[1:]} == {"main/if.then_branch/z", "main/if.else_branch/z"}
    assert {one.fit for one in nodes[1:]} == {Fit.HOST}


def test_quantised_models_are_judged_by_what_they_store() -> None:
    def quantised(kind: int) -> onnx.ModelProto:
        zero = helper.make_tensor("zero", kind, (), [0])
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["f"]),
            conv_node("f", "c", "w", name="conv", kernel_shape=[1, 1]),
            helper.make_node("QuantizeLinear", ["c", "scale", "zero"], ["r"]),
            helper.make_node("DequantizeLinear", ["r", "scale", "zero"], ["y"]),
        ]
        model = build(
            nodes,
            {"x": (1, 4, 8, 8)},
            {"y": None},
            {"w": values(4, 4, 1, 1), "scale": np.array(0.1, np.float32)},
            opset=21,
            ir=10,
        )
        model.graph.initializer.append(zero)
        return model

    assert fits(quantised(TensorProto.INT8), "ethos-u-vela-5.2")["conv"] is Fit.NATIVE
    assert fits(quantised(TensorProto.UINT16), "ethos-u-vela-5.2")["conv"] is Fit.OUT
    assert judge(quantised(TensorProto.INT8), find("ethos-u-vela-5.2")).remarks == ()
    assert "quantise" in judge(conv(), find("ethos-u-vela-5.2")).remarks[0]


def test_what_is_moved_between_two_scales_is_stored_as_they_are() -> None:
    """Forms of int8 Convs move real numbers in front of a QuantizeLinear and behind a DequantizeLinear."""
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale"], ["f"]),
        helper.make_node("Pad", ["f", "pads"], ["padded"], name="pad"),
        helper.make_node("Transpose", ["padded"], ["turned"], name="transpose", perm=[0, 1, 3, 2]),
        helper.make_node("Concat", ["turned", "turned"], ["doubled"], name="concat", axis=1),
        helper.make_node("Exp", ["doubled"], ["e"], name="exp"),
        helper.make_node("Slice", ["e", "one", "nine", "one"], ["cut"], name="slice"),
        helper.make_node("QuantizeLinear", ["cut", "scale"], ["y"]),
    ]
    held = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "one": np.array([1]), "nine": np.array([3])}
    held["scale"] = np.array(0.1, np.float32)
    model = build(nodes, {"x": (1, 4, 8, 8)}, {"y": None}, held, opset=17, types={"x": TensorProto.INT8})
    found = fits(model, "ethos-u-vela-5.2")
    assert [found[name] for name in ("pad", "transpose", "concat", "slice")] == [Fit.NATIVE] * 4
    model.graph.node[-1].op_type = "Identity"  # now nothing behind Exp is quantised
    del model.graph.node[-1].input[1:]
    assert fits(model, "ethos-u-vela-5.2")["slice"] is Fit.OUT


@pytest.mark.parametrize(("d", "cost"), [(1, None), (2, None), (3, 5.4), (4, 2.8), (5, 13.4), (12, 18.8), (31, 441)])
def test_what_the_compiler_makes_of_a_dilation(d: int, cost: float | None) -> None:
    """As the vendor's compiler said of a 3x3 Conv: its cycles, relative to d = 1."""
    node = judge(conv(d=d, extents=(64, 64)), find("ethos-u-vela-5.2")).nodes[0]
    assert node.cost == (None if cost is None else pytest.approx(cost, rel=0.01))
    assert node.lowered == ("zero_fill" if cost else "")


DAMAGED = {
    "a Slice of a scalar": (helper.make_node("Slice", ["x", "zero", "zero", "zero"], ["y"]), ()),
    "a Pad of a scalar": (helper.make_node("Pad", ["x", "pair", "", "zero"], ["y"]), ()),
    "a Pad with too few amounts": (helper.make_node("Pad", ["x", "pair", "", "axes"], ["y"]), (1, 8)),
    "a pooling without a stride": (
        helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[0, 0], auto_pad="SAME_UPPER"),
        (1, 8, 9, 9),
    ),
}


@pytest.mark.parametrize("target", ["rknn-2.3.2", "ethos-u-vela-3.10", "coral-edgetpu", "amd-dpu"])
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_node_is_not_native(case: str, target: str) -> None:
    node, shape = DAMAGED[case]
    constants = {"zero": np.array([0]), "pair": np.array([0, 1]), "axes": np.array([0, 1, 2])}
    held = {name: value for name, value in constants.items() if name in node.input}
    graph = helper.make_graph(
        [node],
        "damaged",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    (judged,) = judge(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), find(target)).nodes
    assert judged.fit is not Fit.NATIVE
