"""Weight edits: what they do to a convolution, and that `shape` tells what `apply` makes; the steps of a fragment."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.fragment import (
    AddKernelAxis,
    CoreConv,
    CoreFill,
    Fragment,
    Kept,
    MalformedFragmentError,
    Node,
    RepeatOutputs,
    SpreadTaps,
    SwapKernelAxes,
    TakeTaps,
    TapsToInputs,
    WeightEdit,
)
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy, plan
from tests import naive

ZERO = np.zeros((), np.int64)

quick = settings(max_examples=100, deadline=None, derandomize=True, database=None)


@st.composite
def edits(draw: st.DrawFn) -> tuple[WeightEdit, tuple[int, ...]]:
    rank = draw(st.integers(1, 3))
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=rank + 2, max_size=rank + 2)))
    axis = draw(st.integers(0, rank - 1))
    start = draw(st.integers(0, shape[axis + 2] - 1))
    stop = draw(st.integers(start + 1, shape[axis + 2]))
    dilations = tuple(draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank)))
    edit = draw(
        st.sampled_from(
            [
                TakeTaps(axis, start, stop),
                RepeatOutputs(draw(st.integers(1, 4))),
                AddKernelAxis(draw(st.integers(0, rank))),
                SwapKernelAxes(axis, draw(st.integers(0, rank - 1))),
                TapsToInputs(),
                SpreadTaps(dilations),
            ]
        )
    )
    return edit, shape


def weights(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.arange(1, np.prod(shape) + 1)).reshape(shape)


def conv(x: np.ndarray, w: np.ndarray, *, group: int = 1, dilations: tuple[int, ...] | None = None) -> np.ndarray:
    rank = w.ndim - 2
    ones, zeros = (1,) * rank, (0,) * rank
    return naive.conv(x, w, strides=ones, dilations=dilations or ones, begin=zeros, end=zeros, group=group)


@quick
@given(edits())
def test_apply_moves_values_and_computes_nothing(drawn: tuple[WeightEdit, tuple[int, ...]]) -> None:
    edit, shape = drawn
    weight = weights(*shape)
    before = weight.copy()
    made = edit.apply(weight, ZERO)
    assert made.dtype == weight.dtype
    assert np.array_equal(weight, before), "an initializer may be shared: it is never changed in place"
    assert set(np.unique(made)) <= {*np.unique(weight), 0}, "values move, nothing is computed"


def test_take_taps_cuts_one_axis() -> None:
    w = weights(2, 3, 4, 5)
    assert np.array_equal(TakeTaps(0, 1, 3).apply(w, ZERO), w[:, :, 1:3])
    assert np.array_equal(TakeTaps(1, 0, 4).apply(w, ZERO), w[:, :, :, :4])


def test_repeat_outputs_makes_whole_sets_for_grouped_phases() -> None:
    w, x = weights(4, 3, 2), weights(1, 6, 9)
    phases = [x, x[:, :, ::-1], 2 * x]
    wanted = np.concatenate([conv(phase, w, group=2) for phase in phases], axis=1)
    joined = np.concatenate(phases, axis=1)
    assert np.array_equal(conv(joined, RepeatOutputs(3).apply(w, ZERO), group=6), wanted)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_add_kernel_axis_convolves_a_new_axis_by_one_tap(axis: int) -> None:
    w, x = weights(2, 3, 2, 3), weights(1, 3, 5, 6)
    many = np.stack([x, 3 * x], axis=axis + 2)
    wanted = np.stack([conv(x, w), conv(3 * x, w)], axis=axis + 2)
    assert np.array_equal(conv(many, AddKernelAxis(axis).apply(w, ZERO)), wanted)


def test_swapped_kernel_axes_convolve_what_is_turned() -> None:
    w, x = weights(2, 3, 2, 3), weights(1, 3, 5, 6)
    turned = conv(x.swapaxes(2, 3), SwapKernelAxes(0, 1).apply(w, ZERO))
    assert np.array_equal(turned.swapaxes(2, 3), conv(x, w))


def test_taps_to_inputs_is_im2col_tap_major() -> None:
    w, x = weights(2, 3, 2, 3), weights(1, 3, 5, 6)
    columns = [x[:, :, i : i + 4, j : j + 4] for i in range(2) for j in range(3)]
    assert np.array_equal(conv(np.concatenate(columns, axis=1), TapsToInputs().apply(w, ZERO)), conv(x, w))


@quick
@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=3))
def test_spread_taps_is_the_dilated_kernel_written_out(axes: list[tuple[int, int]]) -> None:
    kernel, dilations = tuple(k for k, _ in axes), tuple(d for _, d in axes)
    w = weights(2, 2, *kernel)
    x = weights(1, 2, *(d * (k - 1) + 3 for k, d in axes))
    spread = SpreadTaps(dilations).apply(w, ZERO)
    assert np.array_equal(conv(x, spread), conv(x, w, dilations=dilations))


def test_spread_taps_writes_the_zero_point() -> None:
    w = weights(2, 1, 2).astype(np.int8)
    spread = SpreadTaps((3,)).apply(w, np.array(-7, np.int8))
    assert spread.dtype == np.int8
    assert spread.tolist() == [[[w[o, 0, 0], -7, -7, w[o, 0, 1]]] for o in range(2)]


def test_spread_taps_writes_one_zero_point_per_channel() -> None:
    w = weights(2, 1, 2).astype(np.int8)
    zeros = np.array([5, -6], np.int8).reshape(-1, 1, 1)
    spread = SpreadTaps((2,)).apply(w, zeros)
    assert spread[:, 0, 1].tolist() == [5, -6]


def test_edits_in_a_row() -> None:
    w = weights(2, 3, 5)
    made: np.ndarray = w
    for edit in (TakeTaps(0, 1, 4), SpreadTaps((2,)), RepeatOutputs(2), AddKernelAxis(1)):
        made = edit.apply(made, ZERO)
    assert made.shape == (4, 3, 5, 1)
    assert np.array_equal(made[:2, :, ::2, 0], w[:, :, 1:4])


# -- the fragment ------------------------------------------------------------------------------------------------

CORE = CoreConv(
    source="pad_1",
    output="conv_1",
    kernel=(3, 1),
    strides=(1, 1),
    dilations=(2, 7),
    pads=(0, 0, 0, 0),
    group=1,
    weight=(),
    bias_times=1,
)
PAD = Node("Pad", ("x", "const_1"), ("pad_1",), {})
FILLED = CoreFill(repeats="const_1", output="fill_1")
CONCAT = Node("Concat", ("conv_1", "fill_1"), ("y",), {"axis": 2})
FRAGMENT = Fragment(
    strategy="keep",
    opset=17,
    steps=(PAD, CORE, FILLED, CONCAT),
    constants={"const_1": (1, 2)},
    results=("y",),
)


def test_max_dilation_counts_acting_axes_only() -> None:
    assert FRAGMENT.max_dilation == 2
    assert replace(FRAGMENT, steps=(PAD,)).max_dilation == 1


def test_enter_core_and_exit_are_the_steps_in_three_parts() -> None:
    assert (FRAGMENT.enter, FRAGMENT.core, FRAGMENT.exit) == ((PAD,), (CORE, FILLED), (CONCAT,))
    lone = replace(FRAGMENT, steps=(PAD,), results=("pad_1",))
    assert (lone.enter, lone.core, lone.exit) == ((PAD,), (), ())
    lone.check()


def test_kept_nodes_stand_behind_every_part_of_the_core() -> None:
    kept = FRAGMENT.keeping(2)
    kept.check()
    assert (kept.enter, kept.exit) == (FRAGMENT.enter, FRAGMENT.exit)
    assert [type(step).__name__ for step in kept.steps[1:-1]] == [
        "CoreConv",
        "Kept",
        "Kept",
        "CoreFill",
        "Kept",
        "Kept",
    ]
    conv, first, last = kept.steps[1:4]
    assert isinstance(conv, CoreConv)
    assert isinstance(first, Kept)
    assert isinstance(last, Kept)
    assert (first.sources, last.sources) == ({0: conv.output}, {0: first.outputs[0]})
    assert last.outputs == ("conv_1",)
    assert (first.of, last.of) == (1, 2)


@pytest.mark.parametrize("changes", [{"partial": True}, {"steps": (PAD, CORE), "results": ("conv_1",)}], ids=str)
def test_behind_partial_sums_and_a_lone_conv_nothing_is_kept_inside(changes: dict[str, object]) -> None:
    fragment = replace(FRAGMENT, **changes)
    assert fragment.keeping(1) is fragment
    assert FRAGMENT.keeping(0) is FRAGMENT


LATE = Node("Slice", ("y",), ("slice_1",), {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"steps": (PAD, replace(CORE, source="y"), FILLED, CONCAT)},
            r"step 2 of keep \(core, Conv, conv_1\) reads 'y', which only step 4 of keep \(exit, Concat, y\) makes",
        ),
        (
            {"steps": (PAD, CORE, FILLED, CONCAT, LATE, replace(CORE, source="slice_1", output="conv_2"))},
            r"step 4 of keep \(core, Concat, y\) stands inside the core, before step 6 of keep \(core, Conv, conv_2\)",
        ),
        ({"steps": (CORE, FILLED, CONCAT)}, r"step 1 of keep \(core, Conv, conv_1\) reads 'pad_1', which no step"),
        ({"steps": (PAD, CORE, CONCAT, FILLED)}, r"step 3 of keep \(core, Concat, y\) stands inside the core"),
        ({"steps": (LATE, PAD, CORE, FILLED, CONCAT)}, r"step 1 of keep \(enter, Slice, slice_1\) reads 'y'"),
        (
            {"steps": (PAD, CORE, replace(FILLED, output="conv_1"), CONCAT)},
            r"step 3 of keep \(core, Fill, conv_1\) makes 'conv_1', which step 2 of keep \(core, Conv, conv_1\) ma",
        ),
        (
            {"steps": (replace(PAD, outputs=("const_1",)), CORE, FILLED, CONCAT)},
            r"step 1 of keep \(enter, Pad, const_1\) makes 'const_1', which is given",
        ),
        ({"results": ("z",)}, "no step of keep makes its output 'z'"),
        ({"constants": {}}, r"step 1 of keep \(enter, Pad, pad_1\) reads 'const_1'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_malformed_fragment_names_the_step(changes: dict[str, object], words: str) -> None:
    FRAGMENT.check()
    with pytest.raises(MalformedFragmentError, match=words):
        replace(FRAGMENT, **changes).check()


def test_plan_checks_what_a_strategy_emits() -> None:
    class Forgetful(Strategy):
        prunes = False

        def refusal(self, _: object) -> None:
            return None

        def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
            y = builder.plain_conv(geometry)
            builder.x = builder.transpose(y, [0, 1, 2])
            return builder.plain_conv(geometry)

    geometry = ConvGeometry(
        batch=1, in_channels=1, out_channels=1, group=1, extents=(9,), kernel=(3,), strides=(1,), dilations=(2,),
        pads_begin=(2,), pads_end=(2,),
    )  # fmt: skip
    with pytest.raises(MalformedFragmentError, match=r"step 2 of forgetful \(core, Conv, conv_3\) reads 'transpose_2'"):
        plan("forgetful", Forgetful(), geometry, 17)


def test_digest_says_whether_the_content_is_the_same() -> None:
    same = replace(FRAGMENT, strategy="other", multiply_adds=5, elements_moved=6)
    assert same.digest() == FRAGMENT.digest()
    assert len(FRAGMENT.digest()) == 16
    int(FRAGMENT.digest(), 16)


@pytest.mark.parametrize(
    "changes",
    [
        {"opset": 18},
        {"steps": (CORE, FILLED, CONCAT)},
        {"steps": (PAD, replace(CORE, group=2), FILLED, CONCAT)},
        {"steps": (PAD, replace(CORE, weight=(RepeatOutputs(2),)), FILLED, CONCAT)},
        {"steps": (PAD, replace(CORE, of=1), FILLED, CONCAT)},
        {"steps": (PAD, CORE, FILLED)},
        {"constants": {"const_1": (1, 3)}},
        {"results": ("z",)},
        {"partial": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_digest_differs_with_the_content(changes: dict[str, object]) -> None:
    assert replace(FRAGMENT, **changes).digest() != FRAGMENT.digest()


def test_digest_does_not_depend_on_the_order_of_constants() -> None:
    one = replace(FRAGMENT, constants={"a": (1,), "b": (2,)})
    other = replace(FRAGMENT, constants={"b": (2,), "a": (1,)})
    assert one.digest() == other.digest()
