"""The sizes and numbers that proofs are made with."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.proof.numbers import EXACT_LIMIT, exact_ranges, whole_numbers
from dilrewrite.proof.sizes import LIMIT_ELEMENTS, concrete, footprint, sample_extents, smaller
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from tests.models_for_tests import conv1d, conv2d


def only(model: ModelProto) -> Site:
    (site,) = find(model).sites
    return site


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("terms", [0, 1, 2, 9, 27, 576, 4608, 10**5, 10**7])
@pytest.mark.parametrize("weights", [1, 3, 100, 10**4, 10**7])
@pytest.mark.parametrize("highest", [7, 15, 127, 2**20])
def test_ranges_keep_every_sum_exact(terms: int, weights: int, highest: int) -> None:
    x, w = exact_ranges(terms, weights=weights, highest_weight=highest)
    assert x >= 1
    assert 1 <= w <= highest
    if terms <= 2**24 - 2**12:
        assert terms * x * w + 2**12 <= EXACT_LIMIT


def test_weights_differ_where_there_is_room() -> None:
    _, w = exact_ranges(9, weights=54)
    made = whole_numbers(np.random.default_rng(0), (2, 3, 3, 3), -w, w)
    assert len(np.unique(made)) == made.size


@pytest.mark.parametrize(("shape", "low", "high"), [((3,), -1, 1), ((2, 2), -5, 5), ((0, 4), 0, 3), ((), 1, 9)])
def test_whole_numbers_are_different_where_there_are_enough(shape: tuple[int, ...], low: int, high: int) -> None:
    made = whole_numbers(np.random.default_rng(0), shape, low, high)
    assert made.shape == shape
    assert np.issubdtype(made.dtype, np.integer)
    assert len(np.unique(made)) == made.size
    assert made.size == 0 or (low <= made.min() and made.max() <= high)


def test_whole_numbers_repeat_where_there_are_not() -> None:
    made = whole_numbers(np.random.default_rng(0), (1000,), -3, 3)
    assert set(made.tolist()) == set(range(-3, 4))
    again = whole_numbers(np.random.default_rng(0), (1000,), -3, 3)
    assert np.array_equal(made, again)


# -- extents -------------------------------------------------------------------------------------------------------


def geometry(**changes: Any) -> ConvGeometry:
    return replace(only(conv1d()).geometry, **changes)


def test_known_extents_are_taken() -> None:
    assert sample_extents(geometry(extents=(16,))) == ((16,),)
    assert sample_extents(only(conv2d(size=12)).geometry) == ((12, 12),)


@pytest.mark.parametrize("kernel", [2, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [2, 3, 8])
@pytest.mark.parametrize("pads", [(0, 0), (2, 2), (8, 0), (1, 40), (-1, 0), (-2, -3)])
def test_unknown_extents(kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> None:
    """A length that the phases divide, one that they do not, and the smallest that gives an output."""
    given = geometry(
        extents=(None,),
        kernel=(kernel,),
        strides=(stride,),
        dilations=(dilation,),
        pads_begin=pads[:1],
        pads_end=pads[1:],
    )
    lengths = [length for (length,) in sample_extents(given)]
    step = math.lcm(stride, dilation)
    span = dilation * (kernel - 1) + 1
    cropped = [length + min(pads[0], 0) + min(pads[1], 0) for length in lengths]
    assert min(cropped) >= 1, "what is left after negative pads"
    outputs = [(length + sum(pads) - span) // stride + 1 for length in lengths]
    assert min(outputs) >= 1
    assert any(length % step == 0 for length in lengths)
    assert any(length % step != 0 for length in lengths)
    smallest = next(
        length
        for length in itertools.count(1)
        if length + sum(pads) >= span and length + min(pads[0], 0) + min(pads[1], 0) >= 1
    )
    assert smallest in lengths
    if smallest < dilation:
        assert any(length < dilation for length in lengths)


def test_several_unknown_axes_get_different_kinds_of_length() -> None:
    found = sample_extents(only(conv2d(size=None)).geometry)
    assert any(h != w for h, w in found)
    mixed = replace(only(conv2d(size=None)).geometry, extents=(12, None))
    assert {h for h, _ in sample_extents(mixed)} == {12}
    assert len({w for _, w in sample_extents(mixed)}) > 1


# -- large sizes ---------------------------------------------------------------------------------------------------


def volume(*extents: int | None, dilation: int = 2, pad: int = 2, **changes: Any) -> ConvGeometry:
    given: dict[str, Any] = {
        "in_channels": 16,
        "out_channels": 16,
        "kernel": (3,) * 3,
        "strides": (1,) * 3,
        "dilations": (dilation,) * 3,
        "pads_begin": (pad,) * 3,
        "pads_end": (pad,) * 3,
    }
    return geometry(extents=extents, **{**given, **changes})


def largest(given: ConvGeometry) -> int:
    return max(footprint(concrete(given, extents)) for extents in sample_extents(given))


@pytest.mark.parametrize("dilation", [2, 3, 8, 16])
@pytest.mark.parametrize("pads", [False, True])
def test_a_large_volume_becomes_one_within_the_limit(dilation: int, pads: bool) -> None:
    given = volume(256, 255, 254, dilation=dilation, pad=dilation if pads else 0)
    small = smaller(given)
    assert footprint(given) > LIMIT_ELEMENTS >= largest(small)
    assert largest(small) > LIMIT_ELEMENTS / 4, "no smaller than it has to be"
    assert dilation == 16 or (small.in_channels, small.out_channels, small.group) == (16, 16, 1)
    assert max(map(int, filter(None, small.extents))) < 110, "no axis stays long"


def test_images_go_before_extents() -> None:
    small = smaller(volume(32, 32, 32, batch=64))
    assert (small.batch, small.extents) == (2, (32, 32, 32))


def test_unknown_extents_that_are_large_together_take_their_lengths_one_by_one() -> None:
    given = volume(None, None, None, dilation=64, pad=64)
    lengths = sample_extents(given)
    assert largest(given) <= LIMIT_ELEMENTS
    for axis in range(3):
        mine = {extents[axis] for extents in lengths}
        assert any(length % 64 == 0 for length in mine)
        assert any(length > 64 and length % 64 for length in mine)
        assert 1 in mine
    assert smaller(given) == given


def test_groups_of_one_channel_stay_so() -> None:
    small = smaller(volume(256, 256, 256, dilation=100, pad=100, group=16))
    assert small.group == small.in_channels > 1
    assert small.group == 2
