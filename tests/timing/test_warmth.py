"""A device that grows warmer: its comparisons have wider intervals."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from dilrewrite.timing.stopwatch import Comparison, Timing
from dilrewrite.timing.warmth import compared, widened

TIMING = Timing(median_s=1.0, p20_s=1.0, p80_s=1.0, runs=8)
FOUND = Comparison(
    first=TIMING, second=TIMING, ratio=0.9, low=0.89, high=0.91, pairs=8, noise=0.0, mode="interleaved"
)  # fmt: skip


@pytest.mark.parametrize(
    ("first", "before", "after", "share"),
    [
        ([1.0] * 8, {"temperature_c": 50.0}, {"temperature_c": 51.9}, 0.0),
        ([1.0] * 8, {"temperature_c": 60.0}, {"temperature_c": 50.0}, 0.0),
        ([1.0] * 8, {}, {"temperature_c": 80.0}, 0.0),
        ([1.0] * 8, {"temperature_c": 50.0}, {}, 0.0),
        ([1.0] * 8, {"temperature_c": 50.0}, {"temperature_c": 60.0}, 0.02),
        ([1.0] * 4 + [1.25] * 4, {"temperature_c": 50.0}, {"temperature_c": 52.0}, math.log(1.25)),
        ([1.0], {"temperature_c": 50.0}, {"temperature_c": 52.0}, 0.004),
    ],
)
def test_a_climb_widens_the_interval(
    first: list[float], before: dict[str, float], after: dict[str, float], share: float
) -> None:
    got = widened(FOUND, first, before, after)
    assert got.ratio == FOUND.ratio
    assert math.isclose(got.low, FOUND.low * math.exp(-share))
    assert math.isclose(got.high, FOUND.high * math.exp(share))
    assert (got.state_before, got.state_after) == (before, after)


def test_a_gain_is_none_where_the_device_slows_down_by_as_much() -> None:
    assert FOUND.faster
    hot = widened(FOUND, [1.0] * 4 + [1.2] * 4, {"temperature_c": 50.0}, {"temperature_c": 70.0})
    assert not hot.faster


def test_the_state_is_read_before_and_after() -> None:
    told = iter([{"temperature_c": 40.0}, {"temperature_c": 45.0}])
    asked: list[Any] = []
    backend: Any = SimpleNamespace(state=lambda: next(told))
    watch: Any = SimpleNamespace(samples=([1.0] * 8, [0.9] * 8), compare=lambda *_, **how: asked.append(how) or FOUND)
    got = compared(backend, watch, "a", "b", 1.0, rounds=2)
    assert asked == [{"rounds": 2}]
    assert (got.state_before["temperature_c"], got.state_after["temperature_c"]) == (40.0, 45.0)
    assert got.high > FOUND.high
