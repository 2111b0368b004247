"""Layout operators in digits: every element stands where NumPy puts it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from dilrewrite.forms.digits import Laid
from dilrewrite.forms.quasi import Unproved, equal, over, plus, times, unknown


def places(laid: Laid, shape: Sequence[int]) -> np.ndarray:
    """The numbers of the elements of an array of `shape`, -1 in padding, as `laid` says where they stand."""
    numbers, sizes = np.arange(np.prod(shape)).reshape(shape), [int(str(size)) for size in laid.shape]
    made = np.empty(sizes, int)
    for where in itertools.product(*map(range, sizes)):
        place = {axis: int(str(base)) for axis, base in laid.base.items()}
        for axis, index in zip(laid.axes, where, strict=True):
            for digit in reversed(axis):
                size = int(str(digit.size))
                place[digit.axis] += index % size * digit.weight
                index //= size
        inside = all(0 <= place[axis] < size for axis, size in enumerate(shape))
        made[where] = numbers[tuple(place[axis] for axis in range(len(shape)))] if inside else -1
    return made


def test_a_run_of_operators() -> None:
    x, laid = np.arange(2 * 3 * 8).reshape(2, 3, 8), Laid.plain((2, 3, 8))
    x, laid = np.pad(x, ((0, 0), (0, 0), (1, 3)), constant_values=-1), laid.padded(2, 1, 3)
    x, laid = x.reshape(2, 3, 4, 3), laid.reshaped([2, 3, 4, 3])
    x, laid = x.transpose(3, 0, 1, 2), laid.transposed([3, 0, 1, 2])
    x, laid = x.reshape(6, 3, 4), laid.reshaped([6, 3, -1])
    np.testing.assert_array_equal(places(laid, (2, 3, 8)), x)
    x, laid = x.reshape(3, 2, 3, 4).transpose(1, 2, 3, 0), laid.reshaped([3, 2, 3, 4]).transposed([1, 2, 3, 0])
    x, laid = x.reshape(2, 3, 12)[:, :, 1:9], laid.reshaped([-1, 3, 12]).sliced(2, 1, -3, 1)
    np.testing.assert_array_equal(places(laid, (2, 3, 8)), x)
    assert laid.axes == Laid.plain((2, 3, 8)).axes


@pytest.mark.parametrize("crd", [False, True])
def test_depth_and_space(crd: bool) -> None:
    shape = (2, 12, 2, 3)
    x, laid = np.arange(144).reshape(shape), Laid.plain(shape).to_space(2, crd=crd)
    apart = x.reshape(2, 3, 2, 2, 2, 3).transpose(0, 1, 4, 2, 5, 3) if crd else None
    apart = x.reshape(2, 2, 2, 3, 2, 3).transpose(0, 3, 4, 1, 5, 2) if apart is None else apart
    np.testing.assert_array_equal(places(laid, shape), apart.reshape(2, 3, 4, 6))
    assert crd or laid.to_depth(2).axes == Laid.plain(shape).axes, "what DCR takes apart SpaceToDepth puts together"


def test_slices_that_are_joined() -> None:
    x, plain = np.arange(2 * 12).reshape(2, 12), Laid.plain((2, 12))
    starts = range(3)
    parts = [plain.sliced(1, start, 2**63 - 1, 3) for start in starts]
    joined = parts[0].stacked(parts[1:], 0)
    np.testing.assert_array_equal(places(joined, (2, 12)), np.concatenate([x[:, start::3] for start in starts]))
    with pytest.raises(Unproved, match="do not follow one another"):
        parts[0].stacked([parts[2], parts[1]], 0)


def test_unknown_extents_are_split_where_the_block_divides_them() -> None:
    h, n = unknown("h"), unknown("n")
    blocks = over(plus(h, 1), 2)
    padded = Laid.plain((n, 4, h)).padded(2, 0, plus(times(blocks, 2), times(h, -1)))
    apart = padded.reshaped([-1, 4, blocks, 2])
    assert equal(apart.size(2), blocks)
    with pytest.raises(Unproved, match="no whole number of phases"):
        Laid.plain((n, 4, h)).reshaped([-1, 4, over(h, 2), 2])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_an_unknown_batch_is_told_with_its_phases(order: tuple[int, int, int]) -> None:
    n = unknown("n")
    apart = Laid.plain((n, 4, 12)).reshaped([n, 4, 4, 3]).transposed([3, 0, 1, 2]).reshaped([3, n, 16])
    joined = apart.transposed(order).reshaped([times(n, 3), 16])
    assert [digit.axis for digit in joined.axes[0]] == ([2, 0] if order[0] == 0 else [0, 2])
    assert joined.reshaped([apart.size(order[0]), apart.size(order[1]), 16]).axes == apart.transposed(order).axes
