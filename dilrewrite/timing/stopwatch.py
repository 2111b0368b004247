"""Times two models against each other: calibrated, paired, with an interval. The only place that turns runs into times.

The two run in turn, AB BA AB BA, so that what drifts (clock frequency, a neighbour's load) meets both alike. First the
original runs against itself (A/A): what it differs from itself by is the noise. Above `QUIET` one session at a time is
loaded and runs a block, in the same order. The ratio is the Hodges-Lehmann estimate over the pairs' log ratios and its
interval the one of the Wilcoxon signed-rank test (Hollander, Wolfe and Chicken, Nonparametric Statistical Methods, 3rd
edition, sections 3.1 to 3.3), widened by how far the original was from itself.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dilrewrite.runtimes import Opened, Pace

MIN_PAIRS = 6
"""Fewer pairs have no 95 % interval."""

MAX_PAIRS = 120
"""More pairs narrow the interval too little to be worth their time."""

QUIET = 0.02
"""Noise up to here lets both sessions live at the same time."""

MARGIN = 0.02
"""A form must be faster by more than this, and by more than the noise."""

SCREEN_PAIRS = 3
"""How many pairs a form gets before it is worth more."""

HOPELESS = 1.15
"""A form that loses by more than this in every one of the first `SCREEN_PAIRS` is not timed further."""

VISIBLE = 0.10
"""A gain that must be seen: where it could have been missed, a measurement says nothing."""

SAMPLE_S = 1e-3
"""Shorter runs are repeated until a sample takes about this long."""

BLOCK_S = 0.05
"""How long a block of one session runs, about."""

TICK_S = 1e-9
"""What a run counts that the clock does not see."""

CONFIDENCE = 0.95

Mode = Literal["interleaved", "blocks"]
Samples = tuple[list[float], list[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one run of a model."""

    median_s: float
    """Median of the seconds of one run."""
    p20_s: float
    """20th percentile."""
    p80_s: float
    """80th percentile."""
    runs: int
    """How many samples there are; a sample of a short run is the mean of several runs."""
    p99_s: float = 0.0
    """99th percentile; 0 where it is not known."""
    variation: float = 0.0
    """Coefficient of variation of the samples: standard deviation divided by mean; 0 where it is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """A model against itself, in two sessions of the runtime."""

    ratio: float
    """Time of the one divided by that of the other."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end of it."""
    pairs: int
    """How many pairs ran."""

    @property
    def level(self) -> float:
        """Return how far from 1 the ratio of equal models may be, as a share."""
        return max(self.high, 1 / self.low if self.low > 0 else math.inf) - 1

    @property
    def offset(self) -> float:
        """Return the distance of the ratio from 1 on the scale of logarithms."""
        return abs(math.log(self.ratio))


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two models that ran in turn. The second is faster where `ratio` is below 1, beyond doubt where `high` is too.

    With fewer than `MIN_PAIRS` pairs (a form given up early) the interval is from the smallest to the largest ratio.
    """

    first: Timing
    """Times of the first model."""
    second: Timing
    """Times of the second model."""
    ratio: float
    """Time of the second divided by that of the first: the Hodges-Lehmann estimate over the pairs."""
    low: float
    """Lower end of the 95 % interval of `ratio`, widened by how far the first model is from itself."""
    high: float
    """Upper end of it."""
    pairs: int
    """How many pairs ran."""
    noise: float | None
    """How far from 1 the ratio of equal models may be, as a share, measured on the first model; `None` when not
    measured.
    """
    mode: Mode
    """`interleaved` (both models loaded, runs in turn) or `blocks` (one model loaded at a time)."""
    state_before: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Readings of the device before, where it tells: clocks in MHz, `temperature_c` (°C), `load`. A temperature that
    climbed by 2 °C or more until `state_after` has widened the interval.
    """
    state_after: Mapping[str, float] = field(default_factory=dict, hash=False)
    """The same after."""

    @property
    def faster(self) -> bool:
        """Say whether the second is faster beyond the margin, the noise and the interval."""
        return self.gains(MARGIN)

    def gains(self, least: float) -> bool:
        """Say whether the second saves more than the share `least` of the time, and more than the noise."""
        beyond = self.ratio < 1 - max(least, self.noise or 0.0)
        return self.pairs >= MIN_PAIRS and self.high < 1 and beyond

    @property
    def conclusive(self) -> bool:
        """Say whether a gain of `VISIBLE` was seen or is ruled out: the interval, widened by the noise, is above it."""
        return self.faster or self.low / (1 + (self.noise or 0.0)) >= 1 - VISIBLE

    @property
    def slower(self) -> bool:
        """Say whether the second is slower beyond the interval."""
        return self.low > 1


# -- statistics ------------------------------------------------------------------------------------------------------


@functools.cache
def _rank(pairs: int) -> int:
    """Return which Walsh average, counted from either end, bounds the interval of `CONFIDENCE`; 1 for the outermost."""
    shares: NDArray[np.float64] = np.ones(1)
    for rank in range(1, pairs + 1):  # the null distribution of the signed-rank statistic, exactly
        shares = (np.pad(shares, (0, rank)) + np.pad(shares, (rank, 0))) / 2
    return max(int(np.searchsorted(np.cumsum(shares), (1 - CONFIDENCE) / 2, side="right")), 1)


def signed_rank_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return (estimate, low, high) of the centre of a symmetric distribution from independent values of it.

    The Hodges-Lehmann estimate, and the Wilcoxon signed-rank interval of at least `CONFIDENCE` (with fewer than
    `MIN_PAIRS` values, the widest one there is).
    """
    given = np.asarray(values, np.float64)
    i, j = np.triu_indices(len(given))
    averages = np.sort((given[i] + given[j]) / 2)
    rank = _rank(len(given))
    return float(np.median(averages)), float(averages[rank - 1]), float(averages[-rank])


def _ratio(samples: Samples, offset: float = 0.0) -> dict[str, Any]:
    """Return `ratio`, `low` and `high` of the second of two models, the interval widened by `offset` on both sides."""
    centre, low, high = signed_rank_interval(np.log(np.divide(samples[1], samples[0])).tolist())
    return {"ratio": math.exp(centre), "low": math.exp(low - offset), "high": math.exp(high + offset)}


def timing(samples: Sequence[float]) -> Timing:
    """Return the figures of samples in seconds."""
    values = np.asarray(samples, np.float64)
    p20, median, p80, p99 = np.percentile(values, [20, 50, 80, 99])
    return Timing(
        median_s=float(median),
        p20_s=float(p20),
        p80_s=float(p80),
        runs=len(samples),
        p99_s=float(p99),
        variation=float(values.std(ddof=1) / values.mean()) if len(samples) > 1 else 0.0,
    )


# -- running ---------------------------------------------------------------------------------------------------------


def turns(pairs: int) -> list[tuple[int, int]]:
    """Return who runs when: AB, BA, AB, BA, ... as (0, 1), (1, 0), ..."""
    return [(0, 1) if pair % 2 == 0 else (1, 0) for pair in range(pairs)]


class OutOfTime(Exception):  # noqa: N818 - says nothing about what was timed
    """The deadline came before the fewest pairs had run."""


class Loads(Protocol):
    """What of a `Bench` a stopwatch needs: models are there already."""

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:
        """Load these models in this order, and free all others; then warm each up as `warmed` does."""

    def shut(self) -> None:
        """Free all loaded models."""

    def run(self, order: Sequence[str]) -> list[float]:
        """Run loaded models by key, one after the other; return the seconds of each run."""


@dataclass
class Stopwatch:
    """Times models that are on a `bench`, by their keys.

    `deadline_s` (on `clock`) is when to stop: what is under way still gets its fewest pairs; when `strict` only if one
    more message does, and else `OutOfTime` is raised. `tick` is called now and then while it runs. `pace`: the least
    that the backend wants; its `seconds` hold for what is timed to the end.
    """

    bench: Loads
    deadline_s: float = math.inf
    strict: bool = False
    clock: Callable[[], float] = time.monotonic
    tick: Callable[[], None] = lambda: None
    pace: Pace = field(default_factory=Pace)
    opening_s: float = 0.0
    """Seconds that the last two sessions took to load and to warm up."""
    pair_s: float = 0.0
    """Seconds of the last pair of runs."""
    first_s: dict[str, float] = field(default_factory=dict)
    """Seconds until the first run of each session was done, as it was first loaded, where the runtime tells."""
    samples: Samples = field(default_factory=lambda: ([], []))
    """Seconds of every sample of the last comparison."""
    _late: bool = False

    def noise(
        self, first: str, twin: str, slice_s: float, *, rounds: int = 1, enough: float = math.inf
    ) -> tuple[Noise, Mode]:
        """Time a model against `twin`, the same model in a session of its own, for about `slice_s` seconds.

        Interleaved, with new sessions `rounds` times; as long once more where the level is above `enough`; when it is
        above `QUIET`, in blocks. Both only where time is left.
        """
        try:
            samples = self._interleaved(first, twin, slice_s, rounds)
            noise = Noise(**_ratio(samples), pairs=len(samples[0]))
            if noise.level > enough and self._left() > 2 * slice_s:
                more = self._interleaved(first, twin, slice_s, rounds)
                samples = (samples[0] + more[0], samples[1] + more[1])
                noise = Noise(**_ratio(samples), pairs=len(samples[0]))
            if noise.level <= QUIET or not self._blocks_fit(first, twin, slice_s):
                return noise, "interleaved"
            samples = self._blocks(first, twin, slice_s)
        finally:
            self.bench.shut()
        blocks = Noise(**_ratio(samples), pairs=len(samples[0]))
        return (blocks, "blocks") if blocks.level < noise.level else (noise, "interleaved")

    def compare(
        self,
        first: str,
        second: str,
        slice_s: float,
        *,
        noise: Noise | None = None,
        mode: Mode = "interleaved",
        rounds: int = 1,
        hopeless: float = math.inf,
    ) -> Comparison:
        """Time `second` against `first` for about `slice_s` seconds.

        `rounds`: how often both sessions are made anew (where memory lies differs from session to session).
        `hopeless`: look at `SCREEN_PAIRS` first, and leave it at that when the second loses by more than this in each,
        or no time is left.
        """
        screened: Samples = ([], [])
        try:
            if hopeless < math.inf and mode == "blocks":
                start = self.clock()
                screened = self._interleaved(first, second, 0.0, 1, fewest=SCREEN_PAIRS)
                slice_s -= self.clock() - start
            if screened[0] and self._is_left_at(screened, hopeless):
                samples, mode = screened, "interleaved"
            elif mode == "blocks" and self._blocks_fit(first, second, slice_s):
                samples = self._blocks(first, second, slice_s)
            else:
                mode = "interleaved"
                hopeless = math.inf if screened[0] else hopeless
                samples = self._interleaved(first, second, max(slice_s, 0.0), rounds, hopeless=hopeless)
        finally:
            self.bench.shut()
        self.samples = samples
        return Comparison(
            first=timing(samples[0]),
            second=timing(samples[1]),
            **_ratio(samples, noise.offset if noise is not None else 0.0),
            pairs=len(samples[0]),
            noise=noise.level if noise is not None else None,
            mode=mode,
        )

    @property
    def fewest(self) -> int:
        """Return how many pairs there must be."""
        return max(MIN_PAIRS, self.pace.pairs)

    def _left(self) -> float:
        return self.deadline_s - self.clock()

    def _in_time(self) -> Loads:
        """Return the bench for a message; when `strict`, one is the last that begins after the deadline."""
        if self.strict and self._late:
            raise OutOfTime
        self._late = self._left() <= 0
        return self.bench

    def _open(self, keys: Sequence[str], runs: int = 3) -> list[float]:
        """Load these models and no others, and warm them up; return the seconds of the last run of each."""
        opened = self._in_time().open(keys, self.pace.warm_s, runs)
        for key, model in zip(keys, opened, strict=True):
            if model.first_s is not None:
                self.first_s.setdefault(key, model.first_s)
        return [model.run_s for model in opened]

    def _is_left_at(self, samples: Samples, hopeless: float) -> bool:
        """Say whether the second loses by more than `hopeless` in each pair, or no time is left for more."""
        return self._left() <= 0 or np.divide(samples[1], samples[0]).min() > hopeless

    def _interleaved(
        self,
        first: str,
        second: str,
        slice_s: float,
        rounds: int,
        *,
        fewest: int | None = None,
        hopeless: float = math.inf,
    ) -> Samples:
        """Run pairs in turn, `fewest` at least; without a slice no more than these.

        A `hopeless` second is left at `SCREEN_PAIRS`.
        """
        fewest = self.fewest if fewest is None else fewest
        samples: Samples = ([], [])
        start = self.clock()
        for number in range(rounds):
            opened = self.clock()
            slowest = self._open((first, second) if number % 2 == 0 else (second, first))
            pair_s = max(sum(slowest), 1e-6)
            self.opening_s, self.pair_s = self.clock() - opened, pair_s
            repeats = min(math.ceil(SAMPLE_S / max(min(slowest), 1e-6)), 10)
            if number == 0 and hopeless < math.inf:
                self._pairs((first, second), samples, SCREEN_PAIRS, repeats, -math.inf)
                if self._is_left_at(samples, hopeless):
                    break
            share = (slice_s - (self.clock() - start) - self.opening_s * (rounds - number - 1)) / (rounds - number)
            share = min(share, self._left())
            if slice_s > 0:
                repeats = max(repeats, math.ceil(self.pace.seconds / (MAX_PAIRS * pair_s)))
                share = max(share, self.pace.seconds / rounds)
            pairs = int(min(share / (pair_s * repeats), -(-MAX_PAIRS // rounds)))
            pairs = max(pairs + pairs % 2, -(-fewest // rounds)) - (0 if number else len(samples[0]))
            self._pairs((first, second), samples, pairs, repeats, self.clock() + share)
            if self._left() <= 0 and len(samples[0]) >= fewest:
                break
        return samples

    def _pairs(self, keys: tuple[str, str], samples: Samples, pairs: int, repeats: int, until: float) -> None:
        """Run `pairs` pairs and append their samples, in parts that are short enough to stop between.

        The fewest there must be are run in any case, further ones as long as `until` has not come. Who begins goes on
        in turn from the pairs before, so that an odd number of them favours nobody.
        """
        part = max(2, 2 * int(0.25 / (self.pair_s * repeats)))
        done = 0
        while done < pairs:
            if done and len(samples[0]) >= self.fewest and self.clock() >= until:
                return
            odd = len(samples[0]) % 2
            some = turns(odd + min(part, pairs - done))[odd:]
            order = [who for turn in some for who in turn]
            seconds = self._in_time().run([keys[who] for who in order for _ in range(repeats)])
            for who, sample in zip(order, np.reshape(seconds, (-1, repeats)).mean(axis=1).tolist(), strict=True):
                samples[who].append(max(sample, TICK_S))
            done += len(some)
            self.tick()

    def _blocks(self, first: str, second: str, slice_s: float) -> Samples:
        """Run pairs of blocks, one session at a time; a sample is the median of a block."""
        samples: Samples = ([], [])
        keys = (first, second)
        start = self.clock()
        for pair, turn in enumerate(turns(MAX_PAIRS)):
            over = self._left() <= 0 or (pair % 2 == 0 and self.clock() - start > slice_s)
            if pair >= self.fewest and over:
                break
            for who in turn:
                (seconds,) = self._open([keys[who]], 2)
                runs = min(max(3, math.ceil(BLOCK_S / max(seconds, 1e-6))), 50)
                block = self._in_time().run([keys[who]] * runs)
                samples[who].append(max(float(np.median(block)), TICK_S))
            self.tick()
        return samples

    def _blocks_fit(self, first: str, second: str, slice_s: float) -> bool:
        """Say whether the fewest blocks take no more than twice the slice, nor a quarter of the time that is left.

        By what the last two sessions took, or one of each.
        """
        if self.pair_s == 0:
            opened = self.clock()
            self.pair_s = max(sum(self._open([key], 2)[0] for key in (first, second)), 1e-6)
            self.opening_s = self.clock() - opened
        spent = self.opening_s + max(3 * self.pair_s, 2 * BLOCK_S)
        return spent * MIN_PAIRS <= min(2 * slice_s, self._left() / 4)
