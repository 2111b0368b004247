"""Equal forms are told from faster ones on a machine that drifts and stutters: with a simulated one, by its own clock."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from dilrewrite import timing
from dilrewrite.backends import Array, CannotLoad, Crashed, Runnable
from dilrewrite.timing import (
    HOPELESS,
    MARGIN,
    MAX_PAIRS,
    MIN_PAIRS,
    QUIET,
    Comparison,
    Mode,
    Noise,
    Stopwatch,
    signed_rank_interval,
    turns,
)

MS = 1e-3


class FakeBench:
    """Models that take simulated seconds, on a simulated clock.

    A run takes `base[key]`, times what `drift` says of the moment, times lognormal jitter, times now and then a spike.
    """

    def __init__(
        self,
        base: Mapping[str, float],
        *,
        seed: int = 0,
        jitter: float = 0.0,
        spikes: float = 0.0,
        drift: Callable[[float], float] = lambda _: 1.0,
        opening_s: float = 0.0,
    ) -> None:
        self.base = dict(base)
        self.jitter = jitter
        self.spikes = spikes
        self.drift = drift
        self.opening_s = opening_s
        self.now = 0.0
        self.random = np.random.default_rng(seed)
        self.live: list[str] = []
        self.most = 0
        self.opened: list[str] = []
        self.shuts: list[str] = []
        self.orders: list[list[str]] = []
        self.fails: Callable[[str], Exception | None] = lambda _: None

    def clock(self) -> float:
        return self.now

    @property
    def ran(self) -> Counter[str]:
        return Counter(itertools.chain.from_iterable(self.orders))

    def add(self, key: str, runnable: Runnable, feeds: Mapping[str, Array]) -> None:
        raise AssertionError("a stopwatch adds nothing")

    def drop(self, key: str) -> None:
        raise AssertionError("nor does it drop")

    def open(self, key: str) -> None:
        assert key in self.base
        assert key not in self.live, "loaded already"
        error = self.fails(f"open {key}")
        if error is not None:
            raise error
        self.now += self.opening_s
        self.live.append(key)
        self.most = max(self.most, len(self.live))
        self.opened.append(key)

    def shut(self, key: str) -> None:
        if key in self.live:
            self.live.remove(key)
            self.shuts.append(key)

    def run(self, order: Sequence[str]) -> list[float]:
        self.orders.append(list(order))
        noise = np.exp(self.jitter * self.random.standard_normal(len(order)))
        spiked = self.random.random(len(order)) < self.spikes
        noise *= np.where(spiked, self.random.uniform(2, 4, len(order)), 1)
        seconds = []
        for key, factor in zip(order, noise.tolist(), strict=True):
            assert key in self.live, "not loaded"
            error = self.fails(f"run {key}")
            if error is not None:
                raise error
            took = self.base[key] * self.drift(self.now) * factor
            self.now += took
            seconds.append(took)
        return seconds

    def warnings(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        raise AssertionError("its owner closes it")


def watch(bench: FakeBench, deadline_s: float = math.inf, tick: Callable[[], None] = lambda: None) -> Stopwatch:
    return Stopwatch(bench, deadline_s=deadline_s, clock=bench.clock, tick=tick)


# ---- forms in trials ----------------------------------------------------------------------------------------------

TRIALS = 100


@dataclass(frozen=True, kw_only=True)
class Machine:
    """How a machine behaves in a trial, and for how long it is watched."""

    drift: float = 0.0
    when: str = "throughout"
    jitter: float = 0.025
    spikes: float = 0.02
    seconds: float = 10 * MS
    noise_slice_s: float = 2.0
    slice_s: float = 4.0


class BackToBack(Stopwatch):
    """The order that is wrong: all runs of the one, then all of the other. As many as otherwise."""

    def _interleaved(self, first: str, second: str, slice_s: float, rounds: int) -> tuple[list[float], list[float]]:
        assert rounds == 1
        for key in (first, second):
            self.bench.open(key)
        pair_s = sum(self._warm(key) for key in (first, second))
        pairs = max(MIN_PAIRS, min(int(slice_s / pair_s), MAX_PAIRS))
        a, b = (self.bench.run([key] * pairs) for key in (first, second))
        for key in (first, second):
            self.bench.shut(key)
        return a, b


def trial(seed: int, ratio: float, machine: Machine, kind: type[Stopwatch] = Stopwatch) -> tuple[Comparison, Mode]:
    """What a form that takes `ratio` of the original's time gets, on a machine calibrated as in real use."""
    base = machine.seconds
    bench = FakeBench(
        {"keep": base, "twin": base, "form": ratio * base}, seed=seed, jitter=machine.jitter, spikes=machine.spikes
    )
    whole = machine.noise_slice_s + machine.slice_s
    if machine.when == "throughout":
        bench.drift = lambda now: 1 + machine.drift * now / whole
    stopwatch = kind(bench, clock=bench.clock)
    noise, mode = stopwatch.noise("keep", "twin", machine.noise_slice_s)
    if machine.when == "after the calibration":
        start = bench.now
        bench.drift = lambda now: 1 + machine.drift * (now - start) / machine.slice_s
    found = stopwatch.compare("keep", "form", machine.slice_s, noise=noise, mode=mode)
    assert bench.live == []
    return found, mode
