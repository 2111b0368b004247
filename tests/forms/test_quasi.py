"""What is said of formulas of unknown extents holds for every extent."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dilrewrite.forms.quasi import (
    Formula,
    Size,
    Unproved,
    at,
    constant,
    divisible,
    equal,
    larger,
    minus,
    multiple,
    nonnegative,
    over,
    plus,
    rest,
    smaller,
    times,
    unknown,
)

H = unknown("h")

FORMULAS: list[tuple[Size, Callable[[int], int]]] = [
    (plus(H, 3), lambda h: h + 3),
    (minus(times(over(plus(H, 4), 5), 5), H), lambda h: (h + 4) // 5 * 5 - h),
    (over(plus(over(plus(H, 1), 2), 2), 3), lambda h: ((h + 1) // 2 + 2) // 3),
    (rest(plus(H, 7), 4), lambda h: (h + 7) % 4),
    (plus(rest(H, 6), over(H, 4)), lambda h: h % 6 + h // 4),
]


@pytest.mark.parametrize(("size", "meant"), FORMULAS)
def test_a_formula_is_what_it_is_made_of_and_repeats_itself(size: Size, meant: Callable[[int], int]) -> None:
    assert isinstance(size, Formula)
    ((period, rise),) = size.periods.values()
    for h in range(1, 60):
        assert at(size, {"h": h}) == meant(h)
        assert meant(h + period) - meant(h) == rise


def test_equal_means_for_all_extents() -> None:
    whole = times(over(plus(H, 1), 2), 2)
    assert divisible(whole, 2)
    assert not divisible(plus(H, 1), 2)
    assert equal(plus(H, rest(H, 2)), whole)
    assert not equal(H, whole), "although they are for even extents"
    assert constant(minus(whole, times(over(whole, 2), 2))) == 0
    assert constant(whole) is None


def test_a_multiple_is_one_for_all_extents() -> None:
    whole = over(plus(H, 2), 3)
    assert [multiple(times(H, 6), H), multiple(whole, whole), multiple(12, 4)] == [6, 1, 3]
    assert [multiple(H, times(H, 2)), multiple(plus(H, 1), H), multiple(whole, H), multiple(7, 2)] == [None] * 4


def test_order_is_told_where_it_is_one() -> None:
    whole = times(over(plus(H, 2), 3), 3)
    assert nonnegative(minus(whole, H))
    assert not nonnegative(minus(H, 2)), "extents begin at 1"
    assert nonnegative(minus(unknown("h", first=2), 2))
    assert (larger(whole, H), smaller(whole, H)) == (whole, H)
    with pytest.raises(Unproved, match="depends on the extents"):
        larger(H, 5)


@pytest.mark.parametrize("wrong", [lambda: times(H, H), lambda: over(4, H), lambda: over(minus(H, 5), 2)])
def test_what_is_no_such_formula_is_refused(wrong: Callable[[], Size]) -> None:
    with pytest.raises(Unproved):
        wrong()
