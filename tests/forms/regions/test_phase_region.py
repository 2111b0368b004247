"""Phases where operators have odd operands: the same, or outside."""

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from tests.region_models import Array, between, inside, ints, same, whole

SHAPE, BLOCK = (2, 4, 9, 9), (2, 2)


def middle(text: str, weights: dict[str, Array] | None = None, given: str = "", **more: int) -> ModelProto:
    return between(text, weights, shape=SHAPE, given=given, **more)


INSIDE: dict[str, ModelProto] = {
    "an operand of one image": middle("b = Mul (c, a)", given=", float[1, 4, 1, 1] c"),
    "an operand of each image": middle("b = Mul (c, a)", given=", float[2, 4, 1, 1] c"),
    "an operand without a batch that comes first": middle("b = Mul (c, a)", given=", float[4, 1, 1] c"),
    "an operand of one channel": middle("b = Mul (c, a)", given=", float[2, 1, 9, 9] c"),
    "a greatest of three, one of which is above zero": middle("r = Relu (a) b = Max (a, r, c)", {"c": np.float32(5)}),
    "a factor without an end": middle("b = Mul (a, c)", {"c": np.float32(np.inf)}),
    "a quotient of zeros": middle("b = Div (a, c)", {"c": np.float32(0)}),
    "nothing has a logarithm": middle("b = Log (a)"),
    "a power of zero": middle("b = Pow (a, c)", {"c": np.float32(0)}),
    "a shrinkage that grows": middle("b = Shrink <bias = 1.0, lambd = -1.0> (a)"),
    "a condition that leaves": between(
        "z = Greater (a, c) b = Where (z, a, c)", {"c": whole(4, 1, 1)}, shape=SHAPE, outputs=", bool[p, q, r, s] z"
    ),
    "integers that are padded": middle(
        "i = Cast <to = 6> (a) n = Neg (i) p = Pad (n, w) b = Cast <to = 1> (p)", {"w": ints(0, 0, 1, 2, 0, 0, 1, 1)}
    ),
    "halves between floats": middle(
        "h = Cast <to = 10> (a) e = Sigmoid (h) p = Pad (e, w) b = Cast <to = 1> (p)",
        {"w": ints(0, 0, 0, 0, 0, 0, 1, 1)},
    ),
    "pads with a zero that is written": middle(
        "b = Pad (a, w, v)", {"w": ints(0, 0, 1, 0, 0, 0, 0, 3), "v": np.float32(0)}
    ),
    "pads of channels and samples": middle(
        "e = Add (a, c) b = Pad (e, w)", {"w": ints(0, 1, 1, 0, 0, 2, 0, 3), "c": whole(4, 1, 1)}, channels=7
    ),
    "a slice from both ends": middle("b = Slice (a, s, e, c)", {"s": ints(1, -6), "e": ints(9, -1), "c": ints(-1, 2)}),
    "a slice of nothing and of channels": middle(
        "b = Slice (a, s, e, c)", {"s": ints(0, 0), "e": ints(99, 99), "c": ints(1, 2)}
    ),
    "channels backwards": middle("b = Slice (a, s, e, c, s)", {"s": ints(-1), "e": ints(-99), "c": ints(1)}),
    "a quantised tensor that leaves": between(
        "q = QuantizeLinear (a, s, z) b = DequantizeLinear (q, s, z)",
        {"s": np.float32(1), "z": np.uint8(3)}, shape=SHAPE, outputs=", uint8[p, q0, r, s0] q",
    ),
    "a quantised tensor whose zero is not 0": middle(
        "e = Add (a, s) q = QuantizeLinear (e, s, z) b = DequantizeLinear (q, s, z)",
        {"s": np.float32(2), "z": np.int8(-7)},
    ),
    "a gate from all of space": middle(
        "g = GlobalMaxPool (a) h = Conv (g, w) b = Mul (a, h)", {"w": whole(4, 4, 1, 1)}
    ),
    "a least of all of space": middle("e = Exp (a) m = ReduceMin <axes = [-1, 2]> (e) t = Floor (m) b = Add (t, a)"),
    "another kernel, other pads": middle(
        "b = Conv <group = 4, dilations = [2, 4], pads = [1, 2, 3, 4]> (a, w)", {"w": whole(4, 1, 3, 2)}
    ),
    "a bias that is computed": middle(
        "m = ReduceMax <axes = [0, 2, 3], keepdims = 0> (a)"
        "b = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (a, w1, m)"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_an_odd_operand_changes_nothing(name: str) -> None:
    model = INSIDE[name]
    (ops,) = inside(model, "phase_region", BLOCK)
    assert ops[0] == ops[-1] == "Conv"
    assert same(model, "phase_region", BLOCK)


OUTSIDE: dict[str, tuple[str, ModelProto]] = {
    "a constant that is computed": ("Relu", middle("r = Relu (c) b = Add (a, r)", {"c": whole(2, 4, 9, 9)})),
    "a Conv of a constant": (
        "Conv",
        middle("r = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (c, w1) b = Add (a, r)", {"c": whole(2, 4, 9, 9)}),
    ),
    "an operand of every sample": ("Add", middle("b = Add (a, c)", {"c": whole(9)})),
    "an operand of every row": ("Add", middle("b = Add (a, c)", {"c": whole(9, 1)})),
    "a constant of each image": ("Add", middle("b = Add (a, c)", {"c": whole(2, 4, 1, 1)})),
    "an operand of one image with samples": ("Add", middle("b = Add (a, c)", given=", float[1, 4, 9, 9] c")),
    "slopes of every sample": ("PRelu", middle("b = PRelu (a, c)", {"c": whole(9)})),
    "a softmax that is over samples": ("Hardmax", middle("b = Hardmax (a)")),
    "a softmax over all behind an axis": ("Hardmax", middle("b = Hardmax <axis = 1> (a)", opset=11)),
    "parts of the batch": ("Split", middle("p, q = Split (a) b = Concat <axis = 0> (q, p)")),
    "pads with a number": ("Pad", middle("b = Pad (a, w, v)", {"w": ints(0, 0, 1, 0, 0, 0, 0, 3), "v": np.float32(2)})),
    "pads that crop": ("Pad", middle("b = Pad (a, w)", {"w": ints(0, 0, -1, 0, 0, 0, 0, 3)})),
    "pads that mirror": ("Pad", middle('b = Pad <mode = "reflect"> (a, w)', {"w": ints(0, 0, 1, 0, 0, 0, 0, 3)})),
    "every other sample": ("Slice", middle("b = Slice (a, s, e, e, e)", {"s": ints(0), "e": ints(2)})),
    "a slice of the batch": ("Slice", middle("b = Slice (a, s, e, s)", {"s": ints(0), "e": ints(2)})),
    "a norm of every sample by itself": (
        "BatchNormalization",
        middle(
            "n = BatchNormalization <spatial = 0> (a, s, s, s, v) b = Floor (n)",
            {"s": whole(4, 9, 9), "v": np.ones((4, 9, 9), np.float32)}, opset=8,
        ),
    ),
    "a tensor that is quantised one way and back another": (
        "DequantizeLinear",
        middle(
            "q = QuantizeLinear (a, s, z) b = DequantizeLinear (q, s, o)",
            {"s": np.float32(1), "z": np.uint8(3), "o": np.uint8(5)},
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_what_is_not_known_to_commute_stays_outside(name: str) -> None:
    op, model = OUTSIDE[name]
    taken = [ops.count(op) for ops in inside(model, "phase_region", BLOCK)]
    assert sum(taken) < sum(node.op_type == op for node in model.graph.node)
    if taken:
        assert same(model, "phase_region", BLOCK)


def test_a_slice_of_the_batch_with_one_spatial_axis() -> None:
    model = between("b = Slice (a, s, e, s)", {"s": ints(0), "e": ints(2)})
    assert inside(model, "phase_region", (2,)) == []


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2), (2, 9)])
def test_extents_below_the_block(size: tuple[int, int]) -> None:
    model = between("b = Exp (a)", {"w1": whole(4, 4, 3, 3) * 0}, shape=(2, 4, *size), dilation=4)
    assert inside(model, "phase_region", (4, 4)) == [("Conv", "Exp", "Conv")]
    assert same(model, "phase_region", (4, 4))


def test_zeros_of_a_quantised_tensor_have_a_node_of_their_own() -> None:
    """What makes them is a QuantizeLinear too, and the user's stands before every Conv of the region."""
    model = middle(
        "k = Add (a, o) q = QuantizeLinear (k, s, z) d = DequantizeLinear (q, s, z) n = Neg (a)"
        "c = Conv <dilations = [4, 4], pads = [4, 4, 4, 4]> (d, w1) r = Add (c, n)"
        "b = Conv <dilations = [4, 4], pads = [4, 4, 4, 4]> (r, w1)",
        {"o": np.float32(1), "s": np.float32(4), "z": np.uint8(9)},
    )
    (ops,) = inside(model, "phase_region", (4, 4))
    assert ops[:2] == ("Add", "QuantizeLinear")
    assert same(model, "phase_region", (4, 4))


def test_a_block_along_the_other_axis_serves_no_conv() -> None:
    """Each 3 x 1 Conv keeps its dilation there, so nothing is gained by splitting."""
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> tiny (float[2, 4, 9, 9] x) => (float[2, 4, 9, 9] y) {'
        " a = Conv <dilations = [2, 1], pads = [2, 0, 2, 0]> (x, w) b = Relu (a)"
        " y = Conv <dilations = [2, 1], pads = [2, 0, 2, 0]> (b, w) }"
    )
    model.graph.initializer.append(numpy_helper.from_array(whole(4, 4, 3, 1), "w"))
    assert inside(model, "phase_region", (1, 2)) == []
    assert inside(model, "phase_region", (2, 1)) == [("Conv", "Relu", "Conv")]
    assert same(model, "phase_region", (2, 1))
