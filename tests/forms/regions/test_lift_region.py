"""Lifting where operators have odd operands: the same, or outside."""

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite.forms import lift
from dilrewrite.forms.chain import Chain, Link
from tests.region_models import between, inside, ints, same, whole

ONE = np.float32(1)
INSIDE: dict[str, ModelProto] = {
    "an overridable operand": between("b = Add (a, c)", {"c": whole(4, 1)}, given=", float[4, 1] c"),
    "the same tensor twice": between("b = Concat <axis = -2> (a, a)", channels=8),
    "a constant among what is joined": between("b = Concat <axis = 1> (c, a)", {"c": whole(2, 3, 9)}, channels=7),
    "constants under a condition": between(
        "g = Greater (a, z) b = Where (g, c, d)", {"z": whole(4, 1), "c": whole(2, 4, 9), "d": whole(4, 9)}
    ),
    "an operand of higher rank": between(
        "p = Add (a, c) b = ReduceMax <axes = [0], keepdims = 0> (p)", {"c": whole(3, 1, 4, 1)}
    ),
    "slopes per sample": between("b = PRelu (a, c)", {"c": whole(9)}),
    "one sum": between("b = Sum (a, c, a)", {"c": whole(2, 1, 1)}),
    "a limit left out": between("b = Clip (a, , c)", {"c": ONE}),
    "a limit that is computed": between("m = ReduceMax <axes = [0, 1, 2], keepdims = 0> (a) b = Clip (a, , m)"),
    "the last place of the greatest": between(
        "i = ArgMax <axis = 1, keepdims = 0, select_last_index = 1> (a) j = Cast <to = 1> (i)"
        "k = Unsqueeze (j, one) b = Add (k, a)",
        {"one": ints(1)},
    ),
    "hardmax over all behind an axis": between("b = Hardmax (a)", opset=11),
    "a sum that starts behind itself": between(
        "b = CumSum <exclusive = 1, reverse = 1> (a, c)", {"c": np.array(-1, np.int64)}
    ),
    "backwards": between("b = Slice (a, s, e, s, s)", {"s": ints(-1), "e": ints(-99)}),
    "a slice that names no axes": between(
        "b = Slice (a, s, e, , t)", {"s": ints(0, 0, 1), "e": ints(9, 9, 8), "t": ints(1, 1, 2)}
    ),
    "negative pads": between("b = Pad (a, p)", {"p": ints(0, 0, -1, 0, 0, 2)}),
    "pads of named axes": between("b = Pad (a, p, , e)", {"p": ints(1, 2), "e": ints(-1)}, opset=18),
    "other pads": between('b = Pad <mode = "wrap"> (a, p)', {"p": ints(0, 0, 1, 0, 0, 2)}, opset=19),
    "parts by number": between("p, q = Split <axis = -1, num_outputs = 2> (a) b = Concat <axis = 2> (q, p)", opset=18),
    "a transposition backwards": between(
        "p = Transpose (a) q = Mul (p, c) b = Transpose <perm = [2, 1, 0]> (q)", {"c": whole(4, 2)}
    ),
    "an axis that goes and comes": between(
        "m = ReduceMax <axes = [1]> (a) s = Squeeze (m, e) t = Mul (s, c) u = Unsqueeze (t, e) b = Add (u, a)",
        {"e": ints(-2), "c": whole(2, 1)},
    ),
    "a transposed Conv of a given size": between(
        'b = ConvTranspose <auto_pad = "SAME_UPPER", output_shape = [19], strides = [2]> (a, w)', {"w": whole(4, 4, 4)}
    ),
    "a mean of what is there": between(
        "b = AveragePool <kernel_shape = [2], strides = [4], pads = [0, 1], ceil_mode = 1> (a)"
    ),
    "a mean with padding": between(
        "b = AveragePool <kernel_shape = [2], strides = [2], pads = [1, 1], ceil_mode = 1, count_include_pad = 1> (a)"
    ),
    "a pool with automatic pads": between(
        'b = MaxPool <kernel_shape = [4], strides = [2], auto_pad = "SAME_LOWER"> (a)'
    ),
    "a scale of one element, before there are axes": between(
        "q = QuantizeLinear (a, s, z) b = DequantizeLinear (q, s, z)",
        {"s": np.ones(1, np.float32), "z": np.full(1, 3, np.uint8)},
        opset=11,
    ),
    "scales per sample": between(
        "q = QuantizeLinear <axis = -1> (a, s, z) b = DequantizeLinear <axis = 2> (q, s, z)",
        {"s": np.ones(9, np.float32), "z": np.full(9, 3, np.int8)},
    ),
    "a norm of channels and samples": between(
        "n = LayerNormalization <axis = 1> (a, s) b = Sign (n)", {"s": whole(4, 9)}
    ),
    "weights that are an operand too": between("p = Add (a, w1) b = Conv (p, w1)", shape=(4, 4, 3)),
    "weights of a transposed Conv that are given": between("b = ConvTranspose (a, w)", given=", float[4, 4, 2] w"),
    "a bias that is computed": between("m = ReduceMax <axes = [0, 2], keepdims = 0> (a) b = Conv (a, w1, m)"),
    "no data at all": between("b = Relu (a)", shape=(0, 4, 9)),
    "no data for other channels": between(
        "u = Reshape (a, s) v = Neg (u) b = Reshape (v, t)",
        {"s": ints(0, 2, 2, 9), "t": ints(0, 4, 9)},
        shape=(0, 4, 9),
    ),
}


@pytest.mark.parametrize("name", INSIDE)
def test_an_odd_operand_changes_nothing(name: str) -> None:
    model = INSIDE[name]
    assert len(inside(model, "lift_region")) == 1
    assert same(model, "lift_region")


OUTSIDE: dict[str, tuple[str, ModelProto]] = {
    "a constant that is computed": ("Relu", between("r = Relu (c) b = Add (a, r)", {"c": whole(1, 4, 9)})),
    "a Conv of a constant": ("Conv", between("r = Conv (c, w1) b = Add (a, r)", {"c": whole(1, 4, 11)})),
    "a norm of every sample by itself": (
        "BatchNormalization",
        between(
            "b = BatchNormalization <spatial = 0> (a, s, s, s, v)",
            {"s": whole(4, 9), "v": np.ones((4, 9), np.float32)}, opset=8,
        ),
    ),
    "factors in an attribute": (
        "Upsample",
        between('u = Upsample <scales = [1.0, 1.0, 2.0], mode = "nearest"> (a) b = Floor (u)', opset=8),
    ),
    "an axis list that is left out": ("ReduceSum", between("r = ReduceSum (a) b = Add (a, r)")),
    "pads that may be given": (
        "Pad", between("b = Pad (a, p)", {"p": ints(0, 0, 1, 0, 0, 1)}, given=", int64[6] p"),
    ),
    "where it is dropped": ("Dropout", between("b, m = Dropout (a)", outputs=", bool[2, 4, 9] m")),
    "the statistics of a norm": (
        "LayerNormalization",
        between("n, m = LayerNormalization (a, s) b = Sign (n)", {"s": whole(9)}, outputs=", float[2, 4, 1] m"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_not_known_to_commute_stays_outside(name: str) -> None:
    op, model = OUTSIDE[name]
    taken = [ops.count(op) for ops in inside(model, "lift_region")]
    assert sum(taken) < sum(node.op_type == op for node in model.graph.node)
    if taken:
        assert same(model, "lift_region")


def quantised(middle: str, axis: int | None = None, shape: tuple[int, ...] = (2, 4, 9)) -> ModelProto:
    """Return `between` with quantised weights of the first Conv."""
    model = between(middle, shape=shape)
    integers = whole(4, 4, 3).astype(np.int8)
    scale = np.float32(2) if axis is None else np.arange(1, 5, dtype=np.float32)
    named = {"q": integers, "scale": scale, "zero": np.full(np.shape(scale), 1, np.int8)}
    model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == "w1"))
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(each), name) for name, each in named.items())
    along = {} if axis is None else {"axis": axis}
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", list(named), ["w1"], name="dq", **along))
    return model


@pytest.mark.parametrize("axis", [None, 0])
def test_quantised_weights_get_the_axis_before_they_are_dequantised(axis: int | None) -> None:
    model = quantised("b = Relu (a)", axis)
    assert inside(model, "lift_region") == [("Conv", "Relu", "Conv")]
    assert same(model, "lift_region")


def test_quantised_weights_that_are_an_operand_too_stay_as_they_are() -> None:
    model = quantised("b = Add (a, w1)", shape=(4, 4, 3))
    assert inside(model, "lift_region") == []


def test_a_tensor_of_unknown_rank_is_not_lifted() -> None:
    """It is not known where its new axis would be."""
    links = [
        Link(op="Relu", inputs=("p",), outputs=("x",), attributes={}),
        Link(op="Conv", inputs=("x", "w"), outputs=("y",), attributes={}),
        Link(op="Relu", inputs=("y",), outputs=("z",), attributes={}),
    ]
    chain = Chain(
        links=tuple(links), inputs=("p",), outputs=("z",), shapes={"x": (2, 4, 9), "y": (2, 4, 9), "w": (4, 4, 3)},
        constants=frozenset("w"), integers={}, opset=17,
    )  # fmt: skip
    assert [each is not None for each in lift.spread(chain).links] == [False, True, False]
