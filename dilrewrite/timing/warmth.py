"""A comparison with the device's state before and after, and a wider interval where the device grew warmer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dilrewrite.runtimes import TimedBackend
from dilrewrite.timing.stopwatch import Comparison, Stopwatch

CLIMB_C = 2.0
"""A climb of the temperature, in °C, from which on an interval is widened."""

PER_C = 0.002
"""How much it is widened on either side for each °C, as a share, where nothing more was seen."""


def compared(
    backend: TimedBackend, watch: Stopwatch, first: str, second: str, slice_s: float, **how: Any
) -> Comparison:
    """Return what `watch.compare` does, with the state of the backend's device before and after."""
    before = backend.state()
    comparison = watch.compare(first, second, slice_s, **how)
    return widened(comparison, watch.samples[0], before, backend.state())


def widened(
    comparison: Comparison, first: Sequence[float], before: Mapping[str, float], after: Mapping[str, float]
) -> Comparison:
    """Return a comparison with the states, its interval wider by what a climb of `CLIMB_C` or more may have done.

    That is how far the second half of the first model's samples (`first`, in order) is from the first half, and no
    less than `PER_C` for each °C. Pairs in turn take away what both models lose alike, and not what one loses more.
    """
    comparison = replace(comparison, state_before=before, state_after=after)
    climb = after.get("temperature_c", -math.inf) - before.get("temperature_c", math.inf)
    if climb < CLIMB_C:
        return comparison
    half = len(first) // 2
    drift = abs(math.log(np.median(first[half:]) / np.median(first[:half]))) if half else 0.0
    share = max(drift, PER_C * climb)
    return replace(comparison, low=comparison.low * math.exp(-share), high=comparison.high * math.exp(share))
