"""The integer maths against brute force and the naive convolution."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.geometry import ConvGeometry, Phases, Window, ceil_div, product
from dilrewrite.forms.strategies import Refusal, every_strategy, plan
from tests import naive

quick = settings(max_examples=150, deadline=None, derandomize=True, database=None)


@st.composite
def geometries(draw: st.DrawFn, *, rank: int | None = None, negative: bool = True, auto: bool = False) -> ConvGeometry:
    """Valid geometries of small extents."""
    rank = draw(st.integers(1, 3)) if rank is None else rank

    def per_axis(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank)))

    found = ConvGeometry(
        batch=draw(st.integers(1, 2)),
        in_channels=draw(st.integers(1, 2)),
        out_channels=draw(st.integers(1, 2)),
        group=1,
        extents=per_axis(1, 14 if rank == 1 else 6),
        kernel=per_axis(1, 4 if rank == 1 else 3),
        strides=per_axis(1, 4),
        dilations=per_axis(1, 8),
        pads_begin=per_axis(-3 if negative else 0, 12),
        pads_end=per_axis(-3 if negative else 0, 12),
        auto_pad=draw(st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"])) if auto else "NOTSET",
    )
    assume(found.explicit().invalid() is None)
    return found


def live(g: ConvGeometry, axis: int) -> list[set[int]]:
    """For every output of an axis the taps that see data, from the definition."""
    h, s, d, p0 = g.extents[axis], g.strides[axis], g.dilations[axis], g.pads_begin[axis]
    outs = (h + p0 + g.pads_end[axis] - d * (g.kernel[axis] - 1) - 1) // s + 1
    return [{t for t in range(g.kernel[axis]) if 0 <= o * s + t * d - p0 < h} for o in range(outs)]


def tensors(g: ConvGeometry) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.integers(1, 100, (g.batch, g.in_channels, *g.extents))
    return x, rng.integers(1, 100, (g.out_channels, g.in_channels, *g.kernel))


def run(g: ConvGeometry, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return naive.conv(
        x,
        w,
        strides=g.strides,
        dilations=g.dilations,
        begin=g.pads_begin,
        end=g.pads_end,
        auto_pad=g.auto_pad,
        group=g.group,
    )


@quick
@given(st.integers(-50, 50), st.integers(1, 9))
def test_ceil_div(a: int, b: int) -> None:
    assert ceil_div(a, b) == math.ceil(a / b)


def test_product_of_nothing_is_one() -> None:
    assert product(()) == 1
    assert product((2, 3)) == 6


@quick
@given(geometries())
def test_taps_and_extents_are_the_definition(g: ConvGeometry) -> None:
    assert g.out_extents == naive.out_extents(g.extents, g.kernel, g.strides, g.dilations, g.pads_begin, g.pads_end)
    dead = False
    touching = total = 1
    for axis in g.axes:
        taps, seen = g.taps(axis), live(g, axis)
        assert taps is not None
        for t in range(g.kernel[axis]):
            outputs = [o for o, found in enumerate(seen) if t in found]
            assert taps.live(t) == bool(outputs)
            if outputs:
                assert outputs == list(range(taps.lo[t], taps.hi[t]))
        count = sum(map(len, seen))
        assert taps.touching() == count
        touching, total = touching * count, total * len(seen) * g.kernel[axis]
        dead = dead or count == 0
    assert g.dead == dead
    assert g.data_share() == pytest.approx(touching / total)
    assert g.multiply_adds() == total * g.batch * g.out_channels * g.in_channels


@quick
@given(geometries())
def test_pruning_changes_no_value_and_leaves_no_dead_end(g: ConvGeometry) -> None:
    pruned = g.pruned()
    x, w = tensors(g)
    assert pruned.out_extents == g.out_extents
    kept = tuple(slice(front, k - back) for (front, back), k in zip(pruned.cut, g.kernel, strict=True))
    short = w[(slice(None), slice(None), *kept)]
    assert short.shape[2:] == pruned.kernel
    assert np.array_equal(run(pruned, x, short), run(g, x, w))
    if g.dead:
        assert not any(front or back for front, back in pruned.cut)
        assert not run(g, x, w).any()
    else:
        for axis in g.axes:
            taps = pruned.taps(axis)
            assert taps is not None
            assert taps.live(0)
            assert taps.live(pruned.kernel[axis] - 1)
    assert pruned.pruned().kernel == pruned.kernel


@quick
@given(geometries(), st.data())
def test_pruning_leaves_unknown_axes_alone(g: ConvGeometry, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, g.rank - 1))
    blind = replace(g, extents=tuple(None if a == axis else h for a, h in enumerate(g.extents)))
    pruned = blind.pruned()
    assert pruned.cut[axis] == (0, 0)
    assert pruned.kernel[axis] == g.kernel[axis]
    assert blind.data_share() is None
    assert blind.multiply_adds() is None
    assert blind.out_extents[axis] is None
    if not blind.dead and not g.dead:
        others = [a for a in g.axes if a != axis]
        assert [pruned.cut[a] for a in others] == [g.pruned().cut[a] for a in others]


@quick
@given(geometries())
def test_zones_cover_the_outputs_and_hold_what_is_live(g: ConvGeometry) -> None:
    for axis in g.axes:
        zones, seen = g.zones(axis), live(g, axis)
        assert [zone[0] for zone in zones] == [0, *(zone[1] for zone in zones[:-1])]
        assert zones[-1][1] == len(seen)
        for start, stop, first, after in zones:
            assert start < stop
            for o in range(start, stop):
                assert seen[o] == set(range(first, after))


@quick
@given(geometries(rank=1), st.integers(1, 4))
def test_phases_compute_the_conv(g: ConvGeometry, max_dilation: int) -> None:
    phases = g.phases(0, max_dilation)
    s, d, k = g.strides[0], g.dilations[0], g.kernel[0]
    if k == 1 or d <= max_dilation:
        assert phases == Phases(grain=1, block=1, stride=s, dilation=d)
        assert phases.grain == phases.block == 1
        return
    grain = math.gcd(s, d)
    assert (phases.grain, phases.stride) == (grain, s // grain)
    assert phases.block * phases.dilation * grain == d
    assert phases.dilation <= max_dilation
    divisors = [b for b in range(1, d // grain + 1) if (d // grain) % b == 0]
    assert phases.block == min(b for b in divisors if d // grain // b <= max_dilation)
    x, w = tensors(g)
    wanted = run(g, x, w)
    # the padded input, with zeros to spare behind it
    h, p0 = g.extents[0], g.pads_begin[0]
    room = h + abs(p0) + abs(g.pads_end[0]) + 200
    padded = np.zeros((*x.shape[:2], room), x.dtype)
    cropped = x[:, :, max(-p0, 0) : h + min(g.pads_end[0], 0)]
    padded[:, :, max(p0, 0) : max(p0, 0) + cropped.shape[2]] = cropped
    step = phases.grain * phases.block
    for r in range(min(phases.block, wanted.shape[2])):
        outputs = wanted[:, :, r :: phases.block]
        samples = padded[:, :, r * s :: step]
        y = naive.conv(samples, w, strides=[phases.stride], dilations=[phases.dilation], begin=[0], end=[0])
        assert np.array_equal(y[:, :, : outputs.shape[2]], outputs)
    assert (g.overlapping(max_dilation) is None) == (phases.stride == 1 or phases.block == 1)


@quick
@given(geometries(auto=True))
def test_auto_pad_is_resolved_as_the_specification_says(g: ConvGeometry) -> None:
    explicit = g.explicit()
    assert explicit.auto_pad == "NOTSET"
    wanted = naive.explicit_pads(g.extents, g.kernel, g.strides, g.dilations, (), (), g.auto_pad)
    assert (explicit.pads_begin, explicit.pads_end) == wanted
    if g.auto_pad.startswith("SAME"):
        longest = zip(explicit.out_extents, g.extents, g.strides, strict=True)
        assert all(out == ceil_div(h, s) for out, h, s in longest)
    x, w = tensors(g)
    assert np.array_equal(run(explicit, x, w), run(g, x, w))


@quick
@given(geometries(auto=True))
def test_auto_pad_of_unknown_extents_is_static_with_stride_one(g: ConvGeometry) -> None:
    blind = replace(g, extents=(None,) * g.rank).explicit()
    for axis in g.axes:
        if g.auto_pad == "VALID":
            assert (blind.pads_begin[axis], blind.pads_end[axis]) == (0, 0)
        elif g.strides[axis] == 1:
            # the known extent gives the same pads, unless its own total is below the span
            assert blind.pads_begin[axis] + blind.pads_end[axis] == g.span(axis) - 1
            assert (blind.pads_begin[axis], blind.pads_end[axis]) == (
                g.explicit().pads_begin[axis],
                g.explicit().pads_end[axis],
            )
        else:
            assert blind.pads_begin[axis] is None
            assert blind.pads_end[axis] is None
    assert (blind.auto_pad == "NOTSET") == (None not in blind.pads_begin)


@quick
@given(geometries())
def test_normal_means_cropped_first(g: ConvGeometry) -> None:
    normal = g.normal()
    assert min(*normal.pads_begin, *normal.pads_end) >= 0
    x, w = tensors(g)
    cuts = tuple(
        slice(max(-p0, 0), h + min(p1, 0)) for h, p0, p1 in zip(g.extents, g.pads_begin, g.pads_end, strict=True)
    )
    cropped = x[(slice(None), slice(None), *cuts)]
    assert cropped.shape[2:] == normal.extents
    assert np.array_equal(run(normal, cropped, w), run(g, x, w))
    assert normal.static_pads == (normal.pads_begin, normal.pads_end)


@quick
@given(geometries(negative=False), st.data())
def test_invalid_is_exactly_what_leaves_no_output(g: ConvGeometry, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, g.rank - 1))
    extent = data.draw(st.integers(1, 12))
    changed = replace(g, extents=(*g.extents[:axis], extent, *g.extents[axis + 1 :]))
    outs = naive.out_extents(changed.extents, g.kernel, g.strides, g.dilations, g.pads_begin, g.pads_end)
    reason = changed.invalid()
    assert (reason is not None) == (min(outs) < 1)
    if reason is not None:
        assert f"axis {axis}" in reason
        assert str(extent) in reason


SOUND = ConvGeometry(
    batch=1,
    in_channels=4,
    out_channels=6,
    group=2,
    extents=(9, 9),
    kernel=(3, 1),
    strides=(1, 1),
    dilations=(2, 5),
    pads_begin=(2, 0),
    pads_end=(2, 0),
)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"group": 0}, "group is 0"),
        ({"group": 3}, "4 input channels are not divisible by group 3"),
        ({"group": 4}, "6 output channels are not divisible by group 4"),
        ({"dilations": (0, 1)}, "dilations (0, 1)"),
        ({"strides": (1, 0)}, "strides (1, 0)"),
        ({"kernel": (0, 1)}, "kernel (0, 1)"),
        ({"auto_pad": "SAME"}, "'SAME'"),
        ({"extents": (9, 2), "pads_begin": (2, -3), "pads_end": (2, 4)}, "crop more than the extent 2"),
        ({"extents": (1, 9), "pads_begin": (0, 0)}, "extent 1 with pads (0, 2) is 3"),
    ],
)
def test_invalid_says_why_with_the_numbers(changes: dict[str, object], text: str) -> None:
    reason = replace(SOUND, **changes).invalid()
    assert reason is not None
    assert text in reason


def test_what_is_derived_from_a_geometry() -> None:
    assert SOUND.invalid() is None
    assert SOUND.rank == 2
    assert SOUND.dilated
    assert SOUND.max_dilation == 2  # the 5 acts on a kernel axis of size 1
    assert not replace(SOUND, kernel=(1, 1)).dilated
    assert SOUND.weight_bytes == 6 * 2 * 3 * 4
    assert replace(SOUND, element="float16").weight_bytes == 6 * 2 * 3 * 2
    assert replace(SOUND, element="int32", quantized=True).weight_bytes == 6 * 2 * 3
    assert replace(SOUND, out_channels=None).weight_bytes is None
    assert [SOUND.span(axis) for axis in SOUND.axes] == [5, 1]
    assert SOUND.padded(0) == 13
    assert replace(SOUND, extents=(None, 9)).padded(0) is None
    assert replace(SOUND, batch=None).multiply_adds() is None
    assert SOUND.overlapping() is None
    assert replace(SOUND, strides=(4, 1), dilations=(6, 1)).overlapping() == 0
    # d' = 1: thinned, not split
    assert replace(SOUND, strides=(6, 1), dilations=(3, 1)).overlapping() is None


@pytest.mark.parametrize(("extent", "rate", "share"), [(65, 36, 0.40), (28, 36, 0.11)])
def test_the_share_of_data_in_deeplab(extent: int, rate: int, share: float) -> None:
    g = replace(
        SOUND,
        extents=(extent, extent),
        kernel=(3, 3),
        dilations=(rate, rate),
        pads_begin=(rate, rate),
        pads_end=(rate, rate),
    )
    assert g.data_share() == pytest.approx(share, abs=0.005)


def test_a_large_rate_makes_a_1x1_kernel() -> None:
    g = replace(SOUND, kernel=(3, 3), dilations=(9, 12), pads_begin=(9, 12), pads_end=(9, 12))
    pruned = g.pruned()
    assert pruned.kernel == (1, 1)
    assert pruned.cut == ((1, 1), (1, 1))
    assert pruned.dilations == (1, 1)
    assert (pruned.pads_begin, pruned.pads_end) == ((0, 0), (0, 0))


def test_dead_taps_between_live_ones_stay() -> None:
    # some kernel with a dead tap in the middle exists only with strides: find one and prune it
    for h, k, s, d, p in itertools.product((2, 3), (3, 4), (3, 4, 5), (2, 3, 4), range(9)):
        g = replace(
            SOUND,
            extents=(h,),
            kernel=(k,),
            strides=(s,),
            dilations=(d,),
            pads_begin=(p,),
            pads_end=(p,),
        )
        if g.invalid() or g.dead:
            continue
        taps = g.taps(0)
        assert taps is not None
        found = [taps.live(t) for t in range(k)]
        first, last = found.index(True), k - 1 - found[::-1].index(True)
        if not all(found[first : last + 1]):
            assert g.pruned().kernel == (last - first + 1,)
            return
    pytest.fail("no such kernel was tried")


# -- how long it takes ---------------------------------------------------------------------------------------------


LINE = ConvGeometry(
    batch=1,
    in_channels=4,
    out_channels=4,
    group=1,
    extents=(None,),
    kernel=(3,),
    strides=(1,),
    dilations=(2,),
    pads_begin=(0,),
    pads_end=(0,),
)


@pytest.mark.parametrize("stride", [1, 2, 6, 7])
@pytest.mark.parametrize("max_dilation", [1, 2, 5])
def test_block_is_the_smallest_that_leaves_no_more_dilation(stride: int, max_dilation: int) -> None:
    for d in range(1, 300):
        phases = replace(LINE, strides=(stride,), dilations=(d,)).phases(0, max_dilation)
        if d <= max_dilation:
            assert phases == Phases(grain=1, block=1, stride=stride, dilation=d)
            continue
        rest = d // math.gcd(d, stride)
        block = next(b for b in range(1, rest + 1) if rest % b == 0 and rest // b <= max_dilation)
        assert (phases.block, phases.dilation) == (block, rest // block)


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("extent", [None, 2**33])
@pytest.mark.parametrize("stride", [1, 2, 2**31 - 2])
@pytest.mark.parametrize("dilation", [2**14, 2**30, 2**31 - 1])
@pytest.mark.parametrize("name", sorted(every_strategy()))
def test_planning_takes_no_longer_for_a_larger_dilation(
    name: str, dilation: int, stride: int, extent: int | None
) -> None:
    g = replace(LINE, dilations=(dilation,), strides=(stride,), extents=(extent,))
    assert seconds(lambda: plan(name, every_strategy()[name], g, 17)) < 0.5


def planned(dilation: int) -> Fragment | Refusal:
    return plan("slice_to_batch", every_strategy()["slice_to_batch"], replace(LINE, dilations=(dilation,)), 17)


def test_planning_grows_no_faster_than_the_phases() -> None:
    few, many = (min(seconds(lambda d=d: planned(d)) for _ in range(3)) for d in (512, 4096))
    assert many < 25 * few  # 8 times as many phases; when every pair of them is looked at, 60 times as long
    found = [planned(d) for d in (1024, 2048, 4096)]
    counts = [len(each.enter) for each in found if isinstance(each, Fragment)]
    assert len(counts) == 3
    assert all(later < 2.1 * earlier for earlier, later in itertools.pairwise(counts))


def test_very_many_phases_are_refused() -> None:
    assert planned(4097) == Refusal("slice_to_batch", "4097 phases need 4097 slices, above limit_nodes=4096")
    several = replace(LINE, extents=(None,) * 2, kernel=(3, 3), strides=(1, 1), pads_begin=(0, 0), pads_end=(0, 0))
    assert isinstance(
        plan("slice_to_batch", every_strategy()["slice_to_batch"], replace(several, dilations=(64, 65)), 17), Fragment
    )


def test_zones_of_a_long_kernel() -> None:
    g = replace(LINE, kernel=(2**14,), extents=(2**16,), pads_begin=(2**15,), pads_end=(2**15,))
    assert seconds(lambda: g.zones(0)) < 2


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_window_gets_an_axis_along_which_it_stands_still() -> None:
    window = Window(kernel=(3, 5), strides=(2, 3), dilations=(4, 6), begin=(7, 8), end=(9, 10))
    assert window.with_axis(1) == Window(
        kernel=(3, 1, 5), strides=(2, 1, 3), dilations=(4, 1, 6), begin=(7, 0, 8), end=(9, 0, 10)
    )
    assert window.with_axis(2).kernel == (3, 5, 1)


def test_a_point_is_one_tap_without_pads() -> None:
    assert Window.point((2, 3)) == Window(kernel=(1, 1), strides=(2, 3), dilations=(1, 1), begin=(0, 0), end=(0, 0))


def test_without_an_output_there_is_no_share_of_data() -> None:
    short = replace(LINE, kernel=(3,), dilations=(4,), strides=(3,), pads_begin=(0,), pads_end=(0,), extents=(6,))
    assert (short.out_extents, short.data_share()) == ((0,), None)
