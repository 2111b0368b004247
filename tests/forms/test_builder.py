"""The builder: arithmetic that folds, operators as each opset spells them, shapes that tell the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dilrewrite.forms.builder import END, INFER, Builder, Cut, Extent, Symbol, Tensor, Unsupported
from dilrewrite.forms.fragment import FILL, CoreConv, CoreFill, Fragment, Node, RepeatOutputs, TakeTaps, X
from dilrewrite.forms.geometry import ConvGeometry, Window
from tests.contract import session

OPSETS = [7, 9, 10, 11, 12, 13, 17, 18, 21, 22]

KNOWN = ConvGeometry(
    batch=2,
    in_channels=4,
    out_channels=3,
    group=1,
    extents=(6, 9),
    kernel=(3, 3),
    strides=(1, 1),
    dilations=(2, 2),
    pads_begin=(2, 2),
    pads_end=(2, 2),
    bias=True,
)
UNKNOWN = replace(KNOWN, batch=None, extents=(None, None))
IMAGE = np.arange(2 * 4 * 6 * 9, dtype=np.float32).reshape(2, 4, 6, 9)


def model(builder: Builder, result: str, rank: int, kind: int, element: int) -> onnx.ModelProto:
    """A model of the builder's nodes alone (no Convs)."""
    fragment = builder.finish("test", Tensor(result, ()))
    nodes = [
        helper.make_node(node.op, node.inputs, node.outputs, **node.attributes)
        for node in (*fragment.enter, *fragment.exit)
    ]
    held = [numpy_helper.from_array(np.array(v, np.int64), name) for name, v in fragment.constants.items()]
    held.append(numpy_helper.from_array(np.array(7, helper.tensor_dtype_to_np_dtype(element)), FILL))
    nodes.append(helper.make_node("Identity", [result], ["out"]))  # the result may be the input itself
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(X, element, [None] * 4)],
        [helper.make_tensor_value_info("out", kind, [None] * rank)],
        held,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", builder.opset)], ir_version=8)
    onnx.checker.check_model(made, full_check=builder.opset >= 9)
    return made


def run(builder: Builder, tensor: Tensor, x: np.ndarray = IMAGE) -> np.ndarray:
    """The value of a tensor, whose known sizes must be the real ones."""
    element = helper.np_dtype_to_tensor_dtype(x.dtype)
    live = session(model(builder, tensor.name, len(tensor.shape), element, element), optimised=False)
    (y,) = live.run(None, {X: x})
    known = [(size, real) for size, real in zip(tensor.shape, y.shape, strict=True) if isinstance(size, int)]
    assert all(size == real for size, real in known), f"{tensor.shape} is really {y.shape}"
    return y


def value(builder: Builder, extent: Extent, x: np.ndarray = IMAGE) -> int:
    """The value of a computed size."""
    assert isinstance(extent, Symbol)
    live = session(model(builder, extent.name, 1, TensorProto.INT64, TensorProto.FLOAT), optimised=False)
    (y,) = live.run(None, {X: x})
    assert y.shape == (1,)
    return int(y[0])


def ops(builder: Builder) -> list[str]:
    fragment = builder.finish("test", builder.x)
    return [node.op for node in (*fragment.enter, *fragment.exit)]


# -- arithmetic --------------------------------------------------------------------------------------------------


def test_known_sizes_are_computed_at_once() -> None:
    b = Builder(KNOWN, 17)
    assert b.extent(b.x, 3) == 9
    assert (b.positive(-3), b.positive(3)) == (0, 3)
    assert b.bounded(5, 3) == 5
    assert ops(b) == []


def test_what_changes_nothing_makes_no_node() -> None:
    b = Builder(UNKNOWN, 17)
    h = b.extent(b.x, 2)
    before = ops(b)
    assert h + 0 is h
    assert 0 + h is h
    assert h - 0 is h
    assert h * 1 is h
    assert h // 1 is h
    assert ops(b) == before


def test_equal_computations_are_made_once() -> None:
    b = Builder(UNKNOWN, 17)
    assert b.extent(b.x, 2) == b.extent(b.x, 2)
    h = b.extent(b.x, 2)
    assert h + 3 == h + 3
    assert b.constant([1, 2]) == b.constant((1, 2))
    b.extent(b.x, 3)
    assert ops(b).count("Shape") == 1
    assert ops(b).count("Add") == 1


@pytest.mark.parametrize("opset", OPSETS)
def test_computed_sizes_are_right(opset: int) -> None:
    b = Builder(UNKNOWN, opset)
    h, w = b.extent(b.x, 2), b.extent(b.x, 3)
    assert (value(b, h), value(b, w)) == (6, 9)
    assert value(b, h + w) == 15
    assert value(b, 20 - w) == 11
    assert value(b, h * 4) == 24
    assert value(b, w // 2) == 4
    assert value(b, (w + 1) // 2) == 5
    assert value(b, b.positive(h - w)) == 0
    assert value(b, b.positive(w - h)) == 3


def test_a_bound_changes_no_value() -> None:
    b = Builder(UNKNOWN, 17)
    h = b.extent(b.x, 2)
    bounded = b.bounded(h, 12)
    assert bounded == Symbol(h.name, 12)


# -- slices and pads ---------------------------------------------------------------------------------------------

CUTS = {
    "front": {2: Cut(1)},
    "back": {3: Cut(0, -2)},
    "both": {2: Cut(1, 4), 3: Cut(2, 9)},
    "steps": {2: Cut(1, END, 2), 3: Cut(0, END, 3)},
    "one_step": {2: Cut(1, 5), 3: Cut(2, 8, 4)},
    "past_the_end": {3: Cut(7, 50)},
    "negative_start": {3: Cut(-3)},
}


def sliced(cuts: dict[int, Cut]) -> np.ndarray:
    whole = [slice(None)] * 4
    for axis, cut in cuts.items():
        whole[axis] = slice(cut.start, None if cut.stop == END else cut.stop, cut.step)
    return IMAGE[tuple(whole)]


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("opset", OPSETS)
def test_slices_of_known_sizes_at_every_opset(opset: int, name: str) -> None:
    b = Builder(KNOWN, opset)
    cut = b.slice(b.x, CUTS[name])
    assert None not in cut.shape
    assert np.array_equal(run(b, cut), sliced(CUTS[name]))
    by_attribute = [node for node in b.finish("test", cut).enter if node.op == "Slice" and node.attributes]
    assert bool(by_attribute) == (opset < 10)


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("opset", OPSETS)
def test_slices_of_unknown_sizes(opset: int, name: str) -> None:
    b = Builder(UNKNOWN, opset)
    steps = any(cut.step != 1 for cut in CUTS[name].values())
    if opset < 10 and steps:
        with pytest.raises(Unsupported, match=rf"opset {opset} has no Slice with steps \(opset 10\)"):
            b.slice(b.x, CUTS[name])
        return
    assert np.array_equal(run(b, b.slice(b.x, CUTS[name])), sliced(CUTS[name]))


@pytest.mark.parametrize("opset", OPSETS)
def test_slices_to_computed_ends(opset: int) -> None:
    b = Builder(UNKNOWN, opset)
    half = b.extent(b.x, 3) // 2
    if opset < 10:
        with pytest.raises(Unsupported, match=rf"opset {opset} has no Slice with ends computed"):
            b.slice(b.x, {3: Cut(0, half)})
        return
    cut = b.slice(b.x, {3: Cut(0, half)})
    assert cut.shape[3] == half
    assert np.array_equal(run(b, cut), IMAGE[..., :4])
    assert np.array_equal(run(b, b.slice(b.x, {2: Cut(half)})), IMAGE[:, :, 4:])


def test_a_slice_that_keeps_everything_is_none() -> None:
    b = Builder(KNOWN, 17)
    assert b.slice(b.x, {2: Cut(), 3: Cut(0, 9)}) is b.x
    assert b.slice(b.x, {}) is b.x


PADS = {
    "end": ([0, 0, 0, 0], [0, 0, 2, 1]),
    "both": ([0, 0, 1, 0], [0, 0, 0, 3]),
    "channels": ([0, 1, 0, 0], [0, 2, 0, 0]),
}


def sides(begin: Sequence[int], end: Sequence[int]) -> dict[int, tuple[int, int]]:
    return dict(enumerate(zip(begin, end, strict=True)))


def padded(begin: Sequence[int], end: Sequence[int], fill: int = 0, x: np.ndarray = IMAGE) -> np.ndarray:
    return np.pad(x, list(zip(begin, end, strict=True)), constant_values=fill)


@pytest.mark.parametrize("name", PADS)
@pytest.mark.parametrize("geometry", [KNOWN, UNKNOWN], ids=["known", "unknown"])
@pytest.mark.parametrize("opset", OPSETS)
def test_known_pads_at_every_opset(opset: int, geometry: ConvGeometry, name: str) -> None:
    b = Builder(geometry, opset)
    made = b.pad(b.x, sides(*PADS[name]))
    assert np.array_equal(run(b, made), padded(*PADS[name]))
    (node,) = [node for node in b.finish("test", made).enter if node.op == "Pad"]
    assert node.attributes["mode"] == "constant", "pnnx takes no Pad that leaves it out"
    assert ("pads" in node.attributes) == (opset < 11)


@pytest.mark.parametrize("opset", OPSETS)
def test_computed_pads(opset: int) -> None:
    b = Builder(UNKNOWN, opset)
    h = b.extent(b.x, 2)
    front, back = b.bounded(8 - h, 8), b.bounded(9 - h, 9)
    if opset < 10:
        with pytest.raises(Unsupported, match=rf"opset {opset} has no Pad .*\(opset 11\).*\(opset 10\)"):
            b.pad(b.x, {2: (front, back), 3: (1, 0)})
        return
    made = b.pad(b.x, {2: (front, back), 3: (1, 0)})
    assert np.array_equal(run(b, made), padded([0, 0, 2, 1], [0, 0, 3, 0]))
    # the same nodes at another size: 8 - 7 in front, 9 - 7 behind
    other = np.ones((1, 4, 7, 2), np.float32)
    assert np.array_equal(run(b, made, other), padded([0, 0, 1, 1], [0, 0, 2, 0], x=other))


def test_pads_of_nothing_are_none() -> None:
    b = Builder(KNOWN, 17)
    assert b.pad(b.x, {0: (0, 0), 3: (0, 0)}) is b.x


@pytest.mark.parametrize("storage", ["uint8", "int8"])
@pytest.mark.parametrize("opset", OPSETS)
def test_quantised_pads_are_filled_with_the_zero_point(opset: int, storage: str) -> None:
    b = Builder(replace(KNOWN, quantized=True), opset, storage=storage)
    if storage == "int8" and opset < 21:
        assert not b.quantized, "it is laid out in reals"
        return
    if opset < 11:
        with pytest.raises(Unsupported, match=rf"opset {opset} has no Pad for {storage} \(opset 11\)"):
            b.pad(b.x, sides(*PADS["both"]))
        return
    x = (IMAGE % 100).astype(storage)
    assert np.array_equal(run(b, b.pad(b.x, sides(*PADS["both"])), x), padded(*PADS["both"], fill=7, x=x))


# -- layout ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", OPSETS)
def test_reshape_transpose_and_concat(opset: int) -> None:
    b = Builder(KNOWN, opset)
    apart = b.reshape(b.x, [0, 0, 2, 3, 9])
    assert apart.shape == (2, 4, 2, 3, 9)
    turned = b.transpose(apart, [0, 2, 1, 3, 4])
    assert turned.shape == (2, 2, 4, 3, 9)
    back = b.reshape(turned, [INFER, 4, 3, 9])
    assert back.shape[1:] == (4, 3, 9)
    wanted = IMAGE.reshape(2, 4, 2, 3, 9).transpose(0, 2, 1, 3, 4).reshape(4, 4, 3, 9)
    assert np.array_equal(run(b, back), wanted)
    joined = b.concat([b.x, b.x, b.x], 1)
    assert joined.shape == (2, 12, 6, 9)
    assert np.array_equal(run(b, joined), np.concatenate([IMAGE] * 3, 1))
    assert b.concat([b.x], 1) is b.x


def test_reshape_to_computed_sizes() -> None:
    b = Builder(UNKNOWN, 17)
    h = b.extent(b.x, 2)
    made = b.reshape(b.x, [0, 0, h // 3, 3, b.extent(b.x, 3)])
    assert np.array_equal(run(b, made), IMAGE.reshape(2, 4, 2, 3, 9))


def test_concat_of_unknown_and_known_sizes() -> None:
    b = Builder(KNOWN, 17)
    blind = Tensor(b.x.name, (None, 4, None, 9))
    joined = b.concat([blind, b.x], 3)
    assert joined.shape == (2, 4, 6, 18)
    assert b.concat([blind, b.x], 2).shape == (2, 4, None, 9)


@pytest.mark.parametrize("opset", OPSETS)
def test_space_to_depth_keeps_its_order_and_back(opset: int) -> None:
    b = Builder(KNOWN, opset)
    deep = b.space_to_depth(b.x, 3)
    assert deep.shape == (2, 36, 2, 3)
    phases = [IMAGE[:, :, i::3, j::3] for i in range(3) for j in range(3)]
    assert np.array_equal(run(b, deep), np.concatenate(phases, 1))
    flat = b.depth_to_space(deep, 3)
    assert flat.shape == (2, 4, 6, 9)
    assert np.array_equal(run(b, flat), IMAGE)
    (node,) = [node for node in b.finish("test", flat).enter if node.op == "DepthToSpace"]
    assert node.attributes.get("mode") == ("DCR" if opset >= 11 else None)


@pytest.mark.parametrize("opset", [10, 11, 13])
def test_depth_to_space_takes_integers_from_opset_11_on(opset: int) -> None:
    assert Builder(KNOWN, opset).has_depth_to_space
    assert Builder(replace(KNOWN, quantized=True), opset, storage="uint8").has_depth_to_space == (opset >= 11)


# -- the core ----------------------------------------------------------------------------------------------------


def build_conv(b: Builder, source: Tensor | None = None, **changes: object) -> Tensor:
    window = Window(kernel=(3, 3), strides=(1, 2), dilations=(2, 1), begin=(0, 0), end=(0, 0))
    slides = {key: changes.pop(key) for key in ("kernel", "dilations", "begin", "end") if key in changes}
    return b.conv(source or b.x, replace(window, **slides), **changes)  # type: ignore[arg-type]


def test_conv_tells_its_shape_and_work() -> None:
    b = Builder(KNOWN, 17)
    y = build_conv(b, begin=(1, 0), end=(0, 1))
    assert y.shape == (2, 3, 3, 4)
    fragment = b.finish("test", y)
    assert fragment.multiply_adds == 2 * 3 * 3 * 4 * 9 * 4
    (core,) = fragment.core
    assert isinstance(core, CoreConv)
    assert core.pads == (1, 0, 0, 1)
    assert core.bias_times == 1
    assert fragment.elements_moved == 0


def test_conv_writes_no_dilation_where_the_kernel_is_one() -> None:
    b = Builder(KNOWN, 17)
    build_conv(b, kernel=(1, 3), dilations=(5, 2))
    (core,) = b.finish("test", b.x).core
    assert isinstance(core, CoreConv)
    assert core.dilations == (1, 2)


def test_conv_has_no_negative_pads() -> None:
    with pytest.raises(AssertionError, match="negative"):
        build_conv(Builder(KNOWN, 17), begin=(-1, 0))


def test_conv_puts_the_pruning_before_its_own_edits() -> None:
    b = Builder(KNOWN, 17)
    b.weight_edits = (TakeTaps(0, 0, 2),)
    build_conv(b, weight=[RepeatOutputs(2)])
    (core,) = b.finish("test", b.x).core
    assert isinstance(core, CoreConv)
    assert core.weight == (TakeTaps(0, 0, 2), RepeatOutputs(2))


def test_conv_without_bias_repeats_none() -> None:
    b = Builder(replace(KNOWN, bias=False), 17)
    build_conv(b, bias_times=4)
    (core,) = b.finish("test", b.x).core
    assert isinstance(core, CoreConv)
    assert core.bias_times == 0


def test_finish_sorts_what_comes_before_and_after_the_core() -> None:
    b = Builder(UNKNOWN, 17)
    x = b.pad(b.x, {2: (1, 1), 3: (1, 1)})
    y = build_conv(b, x)
    length = b.extent(b.x, 2) // 2  # of the input, although made after the Conv
    z = b.slice(y, {2: Cut(0, length)})
    fragment: Fragment = b.finish("test", b.transpose(z, [0, 1, 3, 2]))
    assert [node.op for node in fragment.enter] == ["Pad", "Shape", "Gather", "Div"]
    assert [node.op for node in fragment.exit] == ["Slice", "Transpose"]
    assert fragment.multiply_adds is None
    assert not fragment.partial


def test_fill_repeats_the_bias_over_batch_and_extents() -> None:
    b = Builder(KNOWN, 17)
    y = b.fill([5, 6])
    assert y.shape == (2, 3, 5, 6)
    (core,) = b.finish("test", y).core
    assert isinstance(core, CoreFill)
    assert b.finish("test", y).constants[core.repeats] == (2, 1, 5, 6)
    with pytest.raises(Unsupported, match="output channels"):
        Builder(replace(KNOWN, out_channels=None), 17).fill([5, 6])


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_sum_is_a_chain_of_adds_and_makes_the_core_partial(count: int) -> None:
    """One n-ary Sum is what a compiler dies on."""
    b = Builder(KNOWN, 17)
    parts = [build_conv(b) for _ in range(count)]
    total = b.sum(parts)
    assert total.shape == parts[0].shape
    fragment = b.finish("test", total)
    assert fragment.partial
    assert [node.op for node in fragment.exit] == ["Add"] * (count - 1)
    names = [parts[0].name, *(node.outputs[0] for node in fragment.exit)]
    expected = [(before, part.name) for before, part in zip(names, parts[1:], strict=False)]
    assert [node.inputs for node in fragment.exit] == expected
    assert names[-1] == total.name


def test_names_are_never_made_twice() -> None:
    b = Builder(UNKNOWN, 17)
    y = b.slice(b.pad(build_conv(b), {2: (1, 0), 3: (0, 1)}), {2: Cut(1), 3: Cut(0, END, 2)})
    b.extent(y, 2)
    fragment = b.finish("test", y)
    made = [name for node in (*fragment.enter, *fragment.exit) for name in node.outputs]
    made += [core.output for core in fragment.core]
    made += list(fragment.constants)
    assert len(set(made)) == len(made)
    assert all(isinstance(node, Node) for node in fragment.enter)


def test_elements_moved_counts_what_layout_operators_write() -> None:
    b = Builder(KNOWN, 17)
    y = b.transpose(b.pad(b.x, {3: (0, 1)}), [0, 1, 3, 2])
    assert b.finish("test", y).elements_moved == 2 * (2 * 4 * 6 * 10)
    blind = Builder(UNKNOWN, 17)
    assert blind.finish("test", blind.transpose(blind.x, [0, 1, 3, 2])).elements_moved is None
