"""Chains in phases, case by case: what is inside, where zeros are written, and the same results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite.forms import grid
from dilrewrite.forms.fragment import Fragment, Node
from dilrewrite.forms.regions import _layers
from dilrewrite.sites import Site
from dilrewrite.splice.rewrite import rewrite
from tests.forms.regions.test_random_phases import planned
from tests.region_models import Array, between, ints, same, whole
from tests.sites.test_chains import regions, run

TWO = (2, 2)
MORE = "c = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (s, w1) b = Relu (c)"


def taken(model: ModelProto, block: tuple[int, ...] = TWO) -> list[tuple[Site, Fragment]]:
    edits = regions(model, "phase_region", block)
    assert edits, "no region"
    return edits


def ops(model: ModelProto, block: tuple[int, ...] = TWO) -> list[str]:
    """Return the operators inside the regions."""
    return [model.graph.node[place].op_type for site, _ in taken(model, block) for place in site.nodes]


def masks(model: ModelProto, block: tuple[int, ...] = TWO) -> int:
    steps = [step for _, fragment in taken(model, block) for step in fragment.steps]
    return sum(isinstance(step, Node) and step.op == "Where" for step in steps)


def results(model: ModelProto, edits: Sequence[tuple[Site, Fragment]], feeds: dict[str, Array]) -> tuple[Any, Any]:
    """Return the outputs before and after."""
    rewritten = rewrite(model, edits, (), numpy_helper.to_array).proto
    onnx.checker.check_model(rewritten)
    return run(model, feeds), run(rewritten, feeds)


def numbers(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def close(model: ModelProto, shape: tuple[int, ...], block: tuple[int, ...] = TWO) -> bool:
    """Say whether the results are close on reals."""
    before, after = results(model, taken(model, block), {"x": numbers(*shape)})
    return all(np.allclose(*pair, rtol=1e-5, atol=1e-4) for pair in zip(before, after, strict=True))


# -- extents -----------------------------------------------------------------------------------------------------------


EXTENTS = [((64, 64), 2, 0), ((64, 64), 4, 0), ((65, 65), 2, 1), ((65, 65), 4, 1), ((33, 33), 2, 1), ((33, 33), 4, 1)]


@pytest.mark.parametrize(("size", "d", "zeros"), [*EXTENTS, ((64, 65), 2, 1), ((9, 8), 4, 1)])
def test_zeros_are_written_where_the_block_does_not_divide_an_extent(size: tuple[int, int], d: int, zeros: int) -> None:
    model = between("b = Relu (a)", shape=(2, 4, *size), dilation=d)
    assert masks(model, (d, d)) == zeros
    assert same(model, "phase_region", (d, d))


def test_a_mask_of_known_sizes_is_stored_as_a_factor_for_each_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of it is left for the runtime to pad; one that would be large is computed."""
    model = between("b = Relu (a)", shape=(2, 4, 9, 11), dilation=4)
    for limit, expanded in ((2 * 16 * 3, False), (2 * 16 * 3 - 1, True)):
        monkeypatch.setattr(_layers, "STORED", limit)
        ((_, fragment),) = taken(model, (4, 4))
        used = [step.op for step in fragment.steps if isinstance(step, Node)]
        assert ("Expand" in used) is expanded
        assert same(model, "phase_region", (4, 4))


def opened(model: ModelProto, *, batch: bool = True) -> ModelProto:
    """Return the model with unknown extents, and an unknown batch."""
    for place, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
        if place > 1 or (place == 0 and batch):
            dim.Clear()
            dim.dim_param = f"d{place}"
    return model


MIDDLES = {
    "a residual": "r = Relu (a) b = Add (r, a)",
    "a residual from before": "b = Add (x, a)",
    "above zero": "b = Clip (a, one)",
    "a gate": "g = GlobalMaxPool (a) h = Neg (g) b = Add (h, a)",
    "channels": "p, q = Split <axis = 1> (a) r = Neg (p) b = Concat <axis = 1> (q, r)",
}


@pytest.mark.parametrize("middle", MIDDLES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unknown_extents(rank: int, middle: str) -> None:
    """One rewritten model for all lengths: below the dilation, divisible or not, another on each axis."""
    shape, block = (2, 4, *(9, 8, 5)[:rank]), (4,) * rank
    model = opened(between(MIDDLES[middle], {"one": np.float32(1)}, shape=shape, dilation=4))
    edits = taken(model, block)
    assert ops(model, block)[0] == ops(model, block)[-1] == "Conv"
    assert all(fragment.elements_moved is None for _, fragment in edits)
    for batch, first in [(1, 1), (3, 2), (2, 3), (1, 4), (2, 5), (1, 8), (3, 17)]:
        x = whole(batch, 4, *(max(first - place, 1) for place in range(rank)), seed=first)
        before, after = results(model, edits, {"x": x})
        assert np.array_equal(before[0], after[0])


def test_a_conv_that_shortens_an_unknown_extent_stays_outside() -> None:
    """An input that is too short for it must fail still."""
    text = (
        "c = Conv <dilations = [2, 2]> (a, w) r = Relu (c) d = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (r, w) "
    )
    model = between(text + "b = Relu (d)", {"w": whole(4, 4, 3, 3)}, shape=(2, 4, 9, 9))
    assert ops(model).count("Conv") == 4
    opened(model)
    assert ops(model).count("Conv") == 2
    before, after = results(model, taken(model), {"x": whole(1, 4, 7, 6)})
    assert np.array_equal(before[0], after[0])


# -- what 0 becomes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["Sigmoid", "Exp", "HardSigmoid", "Softplus", "Cos"])
def test_zero_does_not_stay_zero(op: str) -> None:
    model = between(f"b = {op} (a)", {"b1": np.zeros(4, np.float32)}, shape=(2, 4, 9, 8))
    assert op in ops(model)
    assert masks(model) == 1
    assert close(model, (2, 4, 9, 8))


def test_a_clip_above_zero() -> None:
    model = between("b = Clip (a, one)", {"one": np.float32(1)}, shape=(2, 4, 9, 8))
    assert ops(model) == ["Conv", "Clip", "Conv"]
    assert same(model, "phase_region", TWO)


def test_slopes_per_channel() -> None:
    model = between("b = PRelu (a, s)", {"s": whole(4, 1, 1)}, shape=(2, 4, 9, 8))
    assert ops(model) == ["Conv", "PRelu", "Conv"]
    assert same(model, "phase_region", TWO)


def test_what_has_no_end_around_the_data_never_reaches_it() -> None:
    """1 / 0 in a cell that is cut away: zeros are written by Where; a product with 0 would be no number."""
    ones, none = np.ones((4, 4, 3, 3), np.float32), np.zeros(4, np.float32)
    model = between("b = Reciprocal (a)", {"w1": ones, "b1": none}, shape=(2, 4, 9, 8))
    (edit,) = edits = taken(model)
    assert masks(model) == 1
    x = np.full((2, 4, 9, 8), 0.5, np.float32)
    before, after = results(model, edits, {"x": x})
    assert np.isfinite(before[0]).all()
    np.testing.assert_allclose(after[0], before[0], rtol=1e-5)
    inner = [step for step in edit[1].steps if not isinstance(step, Node)]
    assert len(inner) == 3


# -- inside and outside ------------------------------------------------------------------------------------------------


def test_softmax_over_channels_is_inside_and_over_space_outside() -> None:
    model = between("b = Softmax <axis = 1> (a)", shape=(2, 4, 9, 8))
    assert "Softmax" in ops(model)
    assert close(model, (2, 4, 9, 8))
    model = between("r = Relu (a) s = Softmax <axis = 2> (r) " + MORE, shape=(2, 4, 9, 8))
    assert "Softmax" not in ops(model)


def test_a_tensor_from_outside_enters_beside_one_of_the_region() -> None:
    model = between(
        "c = MaxPool <kernel_shape = [1, 1]> (x) b = Concat <axis = 1> (a, c)", shape=(2, 4, 9, 8), channels=8
    )
    assert ops(model) == ["Conv", "Concat", "Conv"]
    (site, _), = taken(model)  # fmt: skip
    assert len(site.inputs) == 2
    assert same(model, "phase_region", TWO)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_pooling_ends_a_region(dilation: int) -> None:
    """Zeros around the data are no neutral elements of a maximum."""
    pool = f"kernel_shape = [3, 3], pads = [{dilation}, {dilation}, {dilation}, {dilation}]"
    dilations = f", dilations = [{dilation}, {dilation}]"
    model = between(f"r = Neg (x) c = MaxPool <{pool}{dilations}> (r) b = Add (a, c)", shape=(2, 4, 9, 8))
    assert ops(model) == ["Conv", "Add", "Conv"]
    assert same(model, "phase_region", TWO)


def test_a_residual_from_before_the_region() -> None:
    model = between("r = Relu (a) b = Add (x, r)", shape=(2, 4, 9, 8))
    assert ops(model) == ["Conv", "Relu", "Add", "Conv"]
    assert sum(isinstance(step, Node) and step.op == "SpaceToDepth" for step in taken(model)[0][1].steps) == 1
    assert same(model, "phase_region", TWO)


def test_a_tensor_of_the_region_that_is_an_output() -> None:
    model = between("r = Relu (a) b = Neg (r)", shape=(2, 4, 9, 8), outputs=", float[p, q, s, t] r")
    (site, _), = taken(model)  # fmt: skip
    assert site.outputs == ("r", "y")
    assert same(model, "phase_region", TWO)


def test_a_norm_by_running_statistics_is_inside_and_one_over_space_outside() -> None:
    ones = np.ones(4, np.float32)
    model = between("b = BatchNormalization (a, s, t, t, s)", {"s": ones, "t": whole(4)}, shape=(2, 4, 9, 8))
    assert ops(model) == ["Conv", "BatchNormalization", "Conv"]
    assert close(model, (2, 4, 9, 8))
    model = between(
        "r = Relu (a) s = InstanceNormalization (r, k, t) " + MORE, {"k": ones, "t": ones}, shape=(2, 4, 9, 8)
    )
    assert "InstanceNormalization" not in ops(model)
    assert close(model, (2, 4, 9, 8))


def test_resize_is_outside() -> None:
    model = between(
        'r = Relu (a) s = Resize <mode = "nearest"> (r, , z) ' + MORE,
        {"z": np.array([1, 1, 2, 2], np.float32)}, shape=(2, 4, 9, 8),
    )  # fmt: skip
    assert "Resize" not in ops(model)
    assert same(model, "phase_region", TWO)


def test_two_regions_that_share_an_input() -> None:
    """Each enters by itself; the pools between them are no part of either."""
    text = "c = MaxPool <kernel_shape = [2, 2]> (x) d = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (x, w1, b1) "
    more = (
        "e = Relu (d) f = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (e, w1) g = MaxPool <kernel_shape = [3, 3]> "
    )
    model = between(
        f"{text}{more} (f) b = Relu (a)", shape=(2, 4, 9, 8), outputs=", float[p, q, s, t] g, float[k, l, m, n] c"
    )
    assert ops(model).count("Conv") == 4
    assert {name for site, _ in taken(model) for name in site.inputs} == {"x"}
    assert same(model, "phase_region", TWO)


@pytest.mark.parametrize("batch", [1, 3])
def test_squeeze_and_excitation(batch: int) -> None:
    """The gate is made outside, on [N, C, 1, 1], and repeated for the phases."""
    text = "g = GlobalMaxPool (a) h = Conv (g, w) r = Relu (h) i = Conv (r, w) j = Clip (i, m, p) b = Mul (a, j)"
    weights = {"w": whole(4, 4, 1, 1), "m": np.float32(-2), "p": np.float32(2)}
    model = between(text, weights, shape=(batch, 4, 9, 8))
    assert {"GlobalMaxPool", "Mul"} <= set(ops(model))
    assert same(model, "phase_region", TWO)
    model = opened(between(text, weights, shape=(2, 4, 9, 8)))
    for images in (1, 3):
        before, after = results(model, taken(model), {"x": whole(images, 4, 7, 10)})
        assert np.array_equal(before[0], after[0])


# -- reductions over space ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 11, 13, 18, 22])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "op", ["GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceSum"]
)
def test_a_reduction_over_space(op: str, rank: int, opset: int) -> None:
    """In phases, then over the phases; a mean is divided by the extents, not by the cells."""
    shape, block = (3, 4, *(9, 8, 5)[:rank]), (2,) * rank
    by_input = opset >= (13 if op == "ReduceSum" else 18)
    axes = ", ".join(str(axis) for axis in range(2, rank + 2))
    given = "(a)" if op.startswith("Global") else "(a, s)" if by_input else f"<axes = [{axes}]> (a)"
    weights = {"s": ints(*range(2, rank + 2))} if given == "(a, s)" else {}
    model = between(f"g = {op} {given} b = Add (a, g)", weights, shape=shape, opset=opset)
    if opset < 9:
        assert not regions(model, "phase_region", block)  # no Where
        return
    assert op in ops(model, block)
    if "Mean" in op or "Average" in op:
        assert close(model, shape, block)
    else:
        assert same(model, "phase_region", block)


# -- element types, quantised units ------------------------------------------------------------------------------------


def quantised(signed: bool) -> ModelProto:
    """Return two dilated Convs as QDQ units, with an activation between that shifts zero."""
    kind, zero = (np.int8, np.int8(-7)) if signed else (np.uint8, np.uint8(5))
    unit = "= DequantizeLinear (qw, s) "
    text = (
        "e = Add (a, one) q = QuantizeLinear (e, s, z) d = DequantizeLinear (q, s, z) "
        f"u {unit} c = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (d, u) f = Relu (c) "
        "r = QuantizeLinear (f, s, z) b = DequantizeLinear (r, s, z)"
    )
    weights = {"one": np.float32(1), "s": np.float32(1), "z": np.array(zero, kind)}
    return between(text, {**weights, "qw": whole(4, 4, 3, 3).astype(np.int8)}, shape=(2, 4, 9, 8))


@pytest.mark.parametrize("signed", [False, True])
def test_quantised_units_stay_whole(signed: bool) -> None:
    """Zeros are written between QuantizeLinear and DequantizeLinear, as what stands for zero there."""
    model = quantised(signed)
    assert ops(model).count("QuantizeLinear") == 2
    (_, fragment), = taken(model)  # fmt: skip
    rewritten = rewrite(model, taken(model), (), numpy_helper.to_array).proto
    makers = {name: node for node in rewritten.graph.node for name in node.output}
    behind = [
        makers[node.input[0]] for node in rewritten.graph.node if node.op_type == "Conv" and node.input[0] in makers
    ]
    assert [node.op_type for node in behind[-2:]] == ["DequantizeLinear"] * 2
    assert sum(isinstance(step, Node) and step.op == "Where" for step in fragment.steps) == 2
    assert same(model, "phase_region", TWO)


def test_a_unit_is_not_entered_in_its_midst() -> None:
    """The tensor before the first unit has as many elements as that between its operators."""
    text = "q = QuantizeLinear (m, s, z) d = DequantizeLinear (q, s, z) "
    conv = (
        "c = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (d, w1) e = Relu (c) b = Conv <dilations = [2, 2]> (e, w1)"
    )
    model = between(
        f"m = MaxPool <kernel_shape = [2, 2]> (a) {text} {conv}",
        {"s": np.float32(1), "z": np.uint8(5)},
        shape=(2, 4, 15, 14),
    )
    assert ops(model) == ["QuantizeLinear", "DequantizeLinear", "Conv", "Relu", "Conv", "Conv"]
    assert same(model, "phase_region", TWO)


def converted(element: int, opset: int) -> ModelProto:
    """Return a chain in another element type."""
    model = between("r = Relu (a) b = Neg (r)", shape=(2, 4, 9, 8), opset=opset)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(element))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = element
    return model


def test_float16() -> None:
    model = converted(onnx.TensorProto.FLOAT16, 17)
    before, after = results(model, taken(model), {"x": whole(2, 4, 9, 8).astype(np.float16)})
    assert masks(model) == 1
    assert np.array_equal(before[0], after[0])


def test_bfloat16_has_no_where_before_opset_16() -> None:
    assert masks(converted(onnx.TensorProto.BFLOAT16, 16)) == 1
    assert not regions(converted(onnx.TensorProto.BFLOAT16, 15), "phase_region", TWO)


# -- phases of phases --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (65, 65), (33, 33), (64, 31), (3, 5)])
@pytest.mark.parametrize("unknown", [False, True])
def test_dilations_2_4_2(size: tuple[int, int], unknown: bool) -> None:
    """The Conv between is split again, and no dilation is left."""
    text = "r = Relu (a) c = Conv <dilations = [4, 4], pads = [4, 4, 4, 4]> (r, w1, b1) b = Relu (c)"
    model = between(text, shape=(2, 4, *size))
    model = opened(model) if unknown else model
    plans = planned(model)
    assert set(plans) == {(TWO,), (TWO, TWO)}
    for way, edits in plans.items():
        assert max(fragment.max_dilation for _, fragment in edits) == (2 if len(way) == 1 else 1)
        before, after = results(model, edits, {"x": whole(2, 4, *size)})
        assert np.array_equal(before[0], after[0])


def test_dilations_of_three_layers() -> None:
    text = "c = Conv <dilations = [4, 4], pads = [4, 4, 4, 4]> (a, w1, b1) d = Relu (c) "
    model = between(text + "b = Conv <dilations = [8, 8], pads = [8, 8, 8, 8]> (d, w1)", shape=(2, 4, 21, 30))
    edits = planned(model)[TWO, TWO, TWO]
    assert {fragment.max_dilation for _, fragment in edits} == {1}
    before, after = results(model, edits, {"x": whole(2, 4, 21, 30)})
    assert np.array_equal(before[0], after[0])


def test_dilations_of_unequal_axes() -> None:
    text = "r = Relu (a) c = Conv <dilations = [4, 8], pads = [4, 8, 4, 8]> (r, w1, b1) b = Relu (c)"
    model = between(text, shape=(2, 4, 21, 30))
    assert set(planned(model)) == {(TWO,), (TWO, (2, 4))}
    for edits in planned(model).values():
        before, after = results(model, edits, {"x": whole(2, 4, 21, 30)})
        assert np.array_equal(before[0], after[0])


# -- the table ---------------------------------------------------------------------------------------------------------

ALL = between(
    "r = Relu (a) s = Clip (r, one) t = Add (s, a) u, v = Split <axis = 1> (t) c = Concat <axis = 1> (v, u) "
    "p = Pad (c, w) k = Slice (p, i, j, l) g = ReduceMax <axes = [2, 3]> (k) b = Mul (k, g)",
    {"one": np.float32(1), "w": ints(0, 0, 1, 1, 0, 0, 1, 1), "i": ints(1, 1), "j": ints(-1, -1), "l": ints(2, 3)},
    shape=(2, 4, 9, 8),
)


@pytest.mark.parametrize("op", ["Add", "Clip", "Concat", "Mul", "Pad", "ReduceMax", "Relu", "Slice", "Split"])
def test_without_the_row_of_an_operator_there_is_less_inside(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = ops(ALL)
    assert op in with_it
    assert same(ALL, "phase_region", TWO)
    monkeypatch.setattr(grid, "ROWS", {name: row for name, row in grid.ROWS.items() if name != op})
    edits = regions(ALL, "phase_region", TWO)
    inside = [ALL.graph.node[place].op_type for site, _ in edits for place in site.nodes]
    assert op not in inside
    assert len(inside) < len(with_it)
    if edits:
        assert same(ALL, "phase_region", TWO)


def test_elements_moved_and_multiply_adds() -> None:
    (_, fragment), = taken(between("b = Relu (a)", shape=(2, 4, 8, 8)))  # fmt: skip
    assert fragment.elements_moved == 2 * (2 * 4 * 8 * 8)
    assert fragment.multiply_adds == 2 * (2 * 4 * 8 * 8 * 4 * 9)
