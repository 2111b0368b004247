"""Dilations that may stay, as a largest number or as a list: which are left, and that the form computes the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dilrewrite.errors import UsageError
from dilrewrite.forms.fragment import CoreConv, Fragment
from dilrewrite.forms.geometry import Limit, Phases, divisors
from dilrewrite.forms.strategies import every_strategy, parse, plan, spelled
from tests.cases import Case
from tests.contract import check, original

SPLITTING = [name for name, strategy in every_strategy().items() if hasattr(strategy, "max_dilation")]


def case(*dilations: int) -> Case:
    """A Conv with 3 taps on each axis and SAME pads, of 25 and more places."""
    rank = len(dilations)
    return Case(
        topic="limits", extents=tuple(range(25, 25 + rank)), kernel=(3,) * rank, strides=(1,) * rank,
        dilations=dilations, begin=dilations, end=dilations, channels=1, outputs=1,
    )  # fmt: skip


def split(limit: Limit, dilation: int) -> Phases:
    return original(case(dilation))[1].sites[0].geometry.phases(0, limit)


@pytest.mark.parametrize(
    ("limit", "dilation", "block", "left"),
    [
        ((1, 2, 4, 8), 12, 3, 4),
        (8, 12, 2, 6),  # which is no power of two
        ((1, 2, 4, 8), 7, 7, 1),
        ((1, 2, 4, 8), 24, 3, 8),
        ((2, 4), 9, 9, 1),
        ((1, 2, 4, 8), 8, 1, 8),
        ((1, 2, 4, 8, 16), 48, 3, 16),
        ((3,), 12, 4, 3),
    ],
)
def test_the_fewest_phases_leave_a_dilation_that_may_stay(limit: Limit, dilation: int, block: int, left: int) -> None:
    assert split(limit, dilation) == Phases(grain=1, block=block, stride=1, dilation=left)


@pytest.mark.parametrize("number", [1, 2, 12, 49, 97, 360])
def test_divisors(number: int) -> None:
    assert divisors(number) == [b for b in range(1, number + 1) if number % b == 0]


@pytest.mark.parametrize("name", SPLITTING)
def test_each_axis_keeps_what_may_stay(name: str) -> None:
    """12 x 7 becomes 4 x 1, by 21 phases: a largest number would leave 6, or split both axes entirely."""
    own, strategy = parse(f"{name}:max_dilation=1/2/4/8,{'limit_phases=99' if name == 'phases_apart' else ''}")
    both = case(12, 7)
    made = plan(own, strategy, original(both)[1].sites[0].geometry, both.opset)
    assert isinstance(made, Fragment)
    left = {core.dilations[-2:] for core in made.core if isinstance(core, CoreConv)}
    assert left == {(4, 1)}
    assert parse(spelled(own, strategy))[1] == strategy


@pytest.mark.parametrize("name", SPLITTING)
def test_it_computes_the_same(name: str) -> None:
    assert check(name, every_strategy()[name], replace(case(12), max_dilation=(1, 2, 4, 8))) == "emitted"


@pytest.mark.parametrize("value", ["1/", "1/0", "/", "1/x"])
def test_a_list_that_is_none(value: str) -> None:
    with pytest.raises(UsageError, match=f"max_dilation='{value}' is no list of whole numbers above 0, as 1/2/4"):
        parse(f"space_to_batch:max_dilation={value}")
    with pytest.raises(UsageError, match="limit_phases='1/2' is no whole number above 0"):
        parse("phases_apart:limit_phases=1/2")
