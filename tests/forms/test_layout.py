"""Layouts: phases carried from Conv to Conv compute what the Convs compute, whatever stands in the padded cells."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dilrewrite.forms.geometry import ceil_div
from dilrewrite.forms.layout import AxisLayout, Layout
from tests import naive

Array = np.ndarray

POISON = 10**6


def entered(x: Array, layout: AxisLayout) -> Array:
    """[N, C, L] -> [phases * N, C, samples], with zeros in the padded cells."""
    cells = np.pad(x, ((0, 0), (0, 0), (layout.front, layout.back)))
    return np.concatenate([cells[:, :, phase :: layout.block] for phase in range(layout.block)])


def left(y: Array, layout: AxisLayout) -> Array:
    """The way back: the valid range alone."""
    phases = np.stack(np.split(y, layout.block), axis=-1)
    whole = phases.reshape(*phases.shape[:2], -1)
    return whole[:, :, layout.front : layout.front + layout.extent]


def filled(y: Array, layout: AxisLayout, value: int) -> Array:
    """The same with `value` in the padded cells."""
    valid = entered(np.ones((1, 1, layout.extent), bool), layout).repeat(len(y) // layout.block, axis=0)
    return np.where(valid, y, value)


def conv(x: Array, w: Array, dilation: int, pads: tuple[int, int]) -> Array:
    return naive.conv(x, w, strides=(1,), dilations=(dilation,), begin=pads[:1], end=pads[1:])


def chain(seed: int, *, trusting: bool = False) -> tuple[bool, int]:
    """Three Convs inside one layout: are they right, and how many needed zeros written between them.

    Behind each Conv, `POISON` stands in every padded cell; `trusting` takes them for zeros.
    """
    rng = np.random.default_rng(seed)
    block, extent, front = (int(rng.integers(*ends)) for ends in ((2, 6), (1, 40), (0, 2)))
    samples = ceil_div(extent + front, block)
    layout = AxisLayout(extent=extent, samples=samples, block=block, front=front, back=samples * block - extent - front)
    plain = rng.integers(-3, 4, (1, 2, extent))
    phases, masks = entered(plain, layout), 0
    for _ in range(3):
        kernel, begin, end = (int(value) for value in rng.integers((1, 0, 0), (4, 8, 8)))
        dilation = block * int(rng.integers(1, 3))
        if plain.shape[2] + begin + end - dilation * (kernel - 1) < 1:
            continue
        w = rng.integers(-3, 4, (2, 2, kernel))
        try:
            pads, after = replace(layout, zeros=trusting or layout.zeros).convolved(
                kernel, dilation // block, begin, end
            )
        except ValueError:
            phases, masks = filled(phases, layout, 0), masks + 1
            pads, after = replace(layout, zeros=True).convolved(kernel, dilation // block, begin, end)
        plain = conv(plain, w, dilation, (begin, end))
        phases = filled(conv(phases, w, dilation // block, pads), after, POISON)
        assert phases.shape == (block, 2, after.samples)
        assert after.samples * block == after.front + after.extent + after.back
        layout = after
    return np.array_equal(left(phases, layout), plain), masks


def test_convs_in_one_layout_are_the_convs() -> None:
    outcomes = [chain(seed) for seed in range(600)]
    assert all(right for right, _ in outcomes)
    assert sum(masks > 0 for _, masks in outcomes) > 50


def test_padded_cells_taken_for_zeros_would_be_wrong() -> None:
    assert sum(not chain(seed, trusting=True)[0] for seed in range(600)) > 50


def test_a_conv_that_reads_no_padded_cell_needs_no_zeros() -> None:
    dirty = AxisLayout(extent=9, samples=5, block=2, back=1, zeros=False)
    assert not dirty.clean
    assert dirty.convolved(3, 1, 4, 0)[0] == (2, 0), "causal"
    with pytest.raises(ValueError, match=r"pads \(2, 2\) read cells around the 9 valid ones"):
        dirty.convolved(3, 1, 2, 2)
    whole = replace(dirty, samples=5, extent=10, back=0)
    assert whole.clean
    assert whole.convolved(3, 1, 2, 2)[1].clean


def test_a_shifted_output_keeps_its_front() -> None:
    pads, after = AxisLayout(extent=9, samples=5, block=2, back=1).convolved(2, 1, 1, 1)
    assert pads == (1, 0)
    assert (after.front, after.extent, after.samples, after.back, after.clean) == (1, 9, 5, 0, False)


def test_a_layout_tells_its_blocks() -> None:
    idle, two, three = (AxisLayout(extent=12, samples=12 // block, block=block) for block in (1, 2, 3))
    layout = Layout(axes=(two, idle, three))
    assert (layout.split, layout.blocks, layout.phases, layout.square) == ((0, 2), (2, 3), 6, None)
    assert Layout(axes=(two, two)).square == 2
    assert Layout(axes=(two, two, idle)).square is None
    assert Layout(axes=(idle, idle)).square is None
