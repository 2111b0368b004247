"""Equal forms are told from faster ones on a machine that drifts and stutters: a simulated one with its own clock."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from dilrewrite.runtimes import CannotLoad, Crashed, Opened, warmed
from dilrewrite.timing import stopwatch as timing
from dilrewrite.timing.stopwatch import (
    HOPELESS,
    MARGIN,
    MAX_PAIRS,
    MIN_PAIRS,
    QUIET,
    SCREEN_PAIRS,
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

    A run takes `base[key]`, times what `drift` says of the moment, times lognormal jitter (`crowded` comes to it while
    another model is loaded), times now and then a spike, times one of `modes`.
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
        crowded: float = 0.0,
        modes: Sequence[float] = (1.0,),
    ) -> None:
        self.base = dict(base)
        self.jitter = jitter
        self.spikes = spikes
        self.drift = drift
        self.opening_s = opening_s
        self.crowded = crowded
        self.modes = np.asarray(modes)
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

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 3) -> list[Opened]:
        self.shut()
        for key in keys:
            assert key in self.base
            error = self.fails(f"open {key}")
            if error is not None:
                raise error
            self.now += self.opening_s
            self.live.append(key)
            self.most = max(self.most, len(self.live))
            self.opened.append(key)
        return [
            Opened(run_s=warmed(lambda times, key=key: self.run([key] * times), warm_s, runs, self.clock))  # type: ignore[misc]
            for key in keys
        ]

    def shut(self) -> None:
        self.shuts += self.live
        self.live.clear()

    def run(self, order: Sequence[str]) -> list[float]:
        self.orders.append(list(order))
        jitter = self.jitter + (self.crowded if len(self.live) > 1 else 0)
        noise = np.exp(jitter * self.random.standard_normal(len(order))) * self.random.choice(self.modes, len(order))
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
    modes: tuple[float, ...] = (1.0,)
    seconds: float = 20 * MS
    noise_slice_s: float = 4.0
    slice_s: float = 4.0


class BackToBack(Stopwatch):
    """The order that is wrong: all runs of the one, then all of the other. As many as otherwise."""

    def _interleaved(
        self, first: str, second: str, slice_s: float, rounds: int, **_: float
    ) -> tuple[list[float], list[float]]:
        assert rounds == 1
        pair_s = sum(self._open((first, second)))
        pairs = max(MIN_PAIRS, min(int(slice_s / pair_s), MAX_PAIRS))
        a, b = (self.bench.run([key] * pairs) for key in (first, second))
        return a, b


def trial(seed: int, ratio: float, machine: Machine, kind: type[Stopwatch] = Stopwatch) -> tuple[Comparison, Mode]:
    """What a form that takes `ratio` of the original's time gets, on a machine calibrated as in real use."""
    base = machine.seconds
    bench = FakeBench(
        {"keep": base, "twin": base, "form": ratio * base},
        seed=seed,
        jitter=machine.jitter,
        spikes=machine.spikes,
        modes=machine.modes,
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


@functools.cache
def trials(ratio: float, machine: Machine, kind: type[Stopwatch] = Stopwatch) -> tuple[Comparison, ...]:
    return tuple(trial(seed, ratio, machine, kind)[0] for seed in range(TRIALS))


UP = Machine(drift=0.05)
MACHINES = {
    "steady": Machine(),
    "slows down": UP,
    "speeds up": Machine(drift=-0.05),
    "slows down after the calibration": Machine(drift=0.05, when="after the calibration"),
    "speeds up after the calibration": Machine(drift=-0.05, when="after the calibration"),
    "little time": Machine(drift=0.05, noise_slice_s=1, slice_s=1),
    "wild": Machine(drift=0.05, jitter=0.08, spikes=0.05),
    "two speeds": Machine(drift=0.05, modes=(1.0, 1.3)),
}

ANY = pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES.keys())


@ANY
def test_equal_forms_are_kept(machine: Machine) -> None:
    found = trials(1.0, machine)
    assert sum(not comparison.faster for comparison in found) >= 95
    assert sum(not comparison.slower for comparison in found) >= 95


@pytest.mark.parametrize("name", ["steady", "slows down", "speeds up", "little time", "wild"])
def test_a_tenth_less_is_chosen(name: str) -> None:
    found = trials(0.9, MACHINES[name])
    assert sum(comparison.faster for comparison in found) >= 90
    assert not any(comparison.slower for comparison in found)


@pytest.mark.parametrize("name", ["steady", "slows down", "little time"])
def test_a_tenth_more_is_slower(name: str) -> None:
    """As far on the other side: what is found is mirrored."""
    found = trials(1 / 0.9, MACHINES[name])
    assert sum(comparison.slower for comparison in found) >= 90
    assert not any(comparison.faster for comparison in found)


@pytest.mark.parametrize("ratio", [1.0, 0.9])
@ANY
def test_the_interval_holds_the_true_ratio(machine: Machine, ratio: float) -> None:
    found = trials(ratio, machine)
    assert sum(comparison.low <= ratio <= comparison.high for comparison in found) >= 95
    assert all(comparison.low <= comparison.ratio <= comparison.high for comparison in found)


@pytest.mark.parametrize("drift", [-0.05, 0.05])
def test_back_to_back_would_fail(drift: float) -> None:
    """The test of the tests above: the same trials with the runs in the wrong order, and equal forms differ."""
    machine = Machine(drift=drift, when="after the calibration")
    found = trials(1.0, machine, BackToBack)
    wrong = sum(comparison.faster if drift < 0 else comparison.slower for comparison in found)
    assert TRIALS - wrong < 95
    assert sum(comparison.low <= 1 <= comparison.high for comparison in found) < 95


# ---- statistics ---------------------------------------------------------------------------------------------------

PUBLISHED = {6: 0, 7: 2, 8: 3, 9: 5, 10: 8, 11: 10, 12: 13, 13: 17, 14: 21, 15: 25, 16: 29, 17: 34, 18: 40, 19: 46}
PUBLISHED |= {20: 52, 25: 89, 30: 137}
"""The largest T for which equality is refused at 5 %, two-sided: Wilcoxon's table, as textbooks print it."""


def walsh(values: Sequence[float]) -> list[float]:
    """All averages of two values, each with itself too."""
    return sorted((a + b) / 2 for a, b in itertools.combinations_with_replacement(values, 2))


def numbers(count: int, seed: int = 0) -> list[float]:
    return [0.3 + float(value) for value in np.random.default_rng(seed).standard_normal(count)]


@pytest.mark.parametrize(("count", "critical"), PUBLISHED.items())
def test_the_interval_ends_at_the_published_ranks(count: int, critical: int) -> None:
    values = numbers(count)
    averages = walsh(values)
    estimate, low, high = signed_rank_interval(values)
    assert low == pytest.approx(averages[critical])
    assert high == pytest.approx(averages[-1 - critical])
    assert estimate == pytest.approx(float(np.median(averages)))


@pytest.mark.parametrize("count", range(6, 13))
def test_the_interval_is_what_the_test_does_not_refuse(count: int) -> None:
    """By definition, with all 2^n signs counted."""
    signs = np.array(list(itertools.product([0, 1], repeat=count)))
    sums = signs @ np.arange(1, count + 1)

    def refused(values: Sequence[float], centre: float) -> bool:
        moved = np.asarray(values) - centre
        ranks = np.argsort(np.argsort(np.abs(moved))) + 1
        plus = ranks[moved > 0].sum()
        return bool(2 * min((sums <= plus).mean(), (sums >= plus).mean()) <= 0.05)

    for seed in range(5):
        values = numbers(count, seed)
        _, low, high = signed_rank_interval(values)
        for centre, wanted in ((low, -1), (high, 1)):
            assert not refused(values, centre - wanted * 1e-6)
            assert refused(values, centre + wanted * 1e-6)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7, 40, 121])
def test_the_interval_moves_with_the_values(count: int) -> None:
    values = np.array(numbers(count))
    found = np.array(signed_rank_interval(values.tolist()))
    assert found[1] <= found[0] <= found[2]
    assert signed_rank_interval((values + 5).tolist()) == pytest.approx(found + 5)
    assert signed_rank_interval((3 * values).tolist()) == pytest.approx(3 * found)
    assert signed_rank_interval((-values).tolist()) == pytest.approx(-found[[0, 2, 1]])
    assert signed_rank_interval(values[::-1].tolist()) == pytest.approx(found)


def test_few_values_have_the_widest_interval() -> None:
    assert signed_rank_interval([3.0]) == (3.0, 3.0, 3.0)
    assert signed_rank_interval([1.0, 2.0]) == (1.5, 1.0, 2.0)
    for count in range(2, 7):
        values = numbers(count)
        assert signed_rank_interval(values)[1:] == (min(values), max(values))
    values = numbers(7)
    assert signed_rank_interval(values)[1:] != (min(values), max(values))


def test_one_wild_value_changes_little() -> None:
    values = numbers(20)
    tame, wild = (np.array(signed_rank_interval([*values, last])) for last in (0.3, 1e6))
    assert np.abs(wild - tame).max() < 0.3


def test_equal_values() -> None:
    assert signed_rank_interval([0.25] * 30) == (0.25, 0.25, 0.25)


def test_figures_of_samples() -> None:
    found = timing.timing([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert (found.median_s, found.p20_s, found.p80_s, found.runs) == (3.5, 2.0, 5.0, 6)
    found = timing.timing([2.0])
    assert (found.median_s, found.p20_s, found.p80_s, found.runs) == (2.0, 2.0, 2.0, 1)
    found = timing.timing([2.0, 4.0])
    assert (found.median_s, found.p20_s, found.p80_s) == pytest.approx((3.0, 2.4, 3.6))


def test_noise() -> None:
    def noise(ratio: float, low: float, high: float) -> Noise:
        return Noise(ratio=ratio, low=low, high=high, pairs=9)

    assert noise(1.0, 1.0, 1.0).level == noise(1.0, 1.0, 1.0).offset == 0
    assert noise(1.01, 0.99, 1.03).level == pytest.approx(0.03)
    assert noise(0.99, 0.96, 1.02).level == pytest.approx(1 / 0.96 - 1)
    assert noise(1.04, 1.03, 1.05).level == pytest.approx(0.05)
    assert noise(1.0, 0.0, 1.02).level == math.inf
    assert noise(1.05, 1, 1.1).offset == pytest.approx(math.log(1.05))
    assert noise(1 / 1.05, 1, 1.1).offset == pytest.approx(math.log(1.05))


def comparison(ratio: float, low: float, high: float, noise: float | None = None) -> Comparison:
    figures = timing.timing([1.0])
    return Comparison(
        first=figures, second=figures, ratio=ratio, low=low, high=high, pairs=9, noise=noise, mode="interleaved"
    )


@pytest.mark.parametrize(
    ("ratio", "low", "high", "noise", "faster", "slower"),
    [
        (0.90, 0.88, 0.92, None, True, False),
        (0.90, 0.88, 0.92, 0.01, True, False),
        (0.90, 0.88, 1.001, 0.01, False, False),
        (0.90, 0.88, 0.92, 0.11, False, False),
        (0.985, 0.98, 0.99, 0.0, False, False),
        (0.985, 0.98, 0.99, None, False, False),
        (0.97, 0.96, 0.98, None, True, False),
        (1.0, 1.0, 1.0, None, False, False),
        (1.1, 1.05, 1.2, None, False, True),
        (1.1, 1.05, 1.2, 0.3, False, True),
        (1.1, 0.99, 1.2, None, False, False),
        (0.9, 0.88, 0.92, math.inf, False, False),
    ],
)
def test_faster_and_slower(
    ratio: float, low: float, high: float, noise: float | None, faster: bool, slower: bool
) -> None:
    found = comparison(ratio, low, high, noise)
    assert (found.faster, found.slower) == (faster, slower)
    mirrored = comparison(1 / ratio, 1 / high, 1 / low, noise)
    assert mirrored.slower == (high < 1)
    assert not found.slower or not found.faster


def test_swapped_forms_swap_the_interval() -> None:
    """The same samples, the other way round: slower is symmetric to what would be faster without a margin."""
    bench = FakeBench({"a": 10 * MS, "b": 12 * MS}, jitter=0.03, seed=1)
    there = watch(bench).compare("a", "b", 2)
    bench = FakeBench({"a": 12 * MS, "b": 10 * MS}, jitter=0.03, seed=1)
    back = watch(bench).compare("a", "b", 2)
    assert there.slower
    assert back.faster
    assert not there.faster
    assert not back.slower
    assert back.ratio == pytest.approx(1 / there.ratio, rel=0.02)


def test_what_the_original_is_from_itself_widens_the_interval() -> None:
    plain, widened = (
        watch(FakeBench({"a": 10 * MS, "b": 9 * MS}, jitter=0.02, seed=3)).compare("a", "b", 1, noise=noise)
        for noise in (None, Noise(ratio=0.98, low=0.97, high=0.99, pairs=50))
    )
    assert plain.noise is None
    assert widened.noise == pytest.approx(1 / 0.97 - 1)
    assert widened.ratio == plain.ratio
    assert widened.low == pytest.approx(plain.low * 0.98)
    assert widened.high == pytest.approx(plain.high / 0.98)


# ---- running: interleaved -----------------------------------------------------------------------------------------


def timed(bench: FakeBench, warm: int = 3) -> list[str]:
    """What ran after the sessions were warm, in order; of one round."""
    flat = list(itertools.chain.from_iterable(bench.orders))
    return flat[2 * warm :]


def test_who_runs_when() -> None:
    assert turns(5) == [(0, 1), (1, 0), (0, 1), (1, 0), (0, 1)]
    assert turns(0) == []
    bench = FakeBench({"a": 10 * MS, "b": 20 * MS})
    found = watch(bench).compare("a", "b", 1.0)
    assert bench.opened == ["a", "b"]
    assert sorted(bench.shuts) == ["a", "b"]
    order = timed(bench)
    assert order == ["a", "b", "b", "a"] * (len(order) // 4)
    assert found.pairs == len(order) // 2 == found.first.runs == found.second.runs
    assert found.pairs % 2 == 0
    assert found.mode == "interleaved"
    assert (found.ratio, found.low, found.high) == pytest.approx((2, 2, 2))
    assert (found.first.median_s, found.second.p80_s) == pytest.approx((10 * MS, 20 * MS))


def test_samples_are_paired_as_they_ran() -> None:
    """A slow moment that covers one pair counts for both, whoever came first."""
    bench = FakeBench({"a": 10 * MS, "b": 10 * MS})
    bench.drift = lambda now: 3.0 if now % 1 < 0.7 else 1.0
    found = watch(bench).compare("a", "b", 2)
    assert found.first.p80_s == pytest.approx(30 * MS)
    assert found.second.p20_s == pytest.approx(10 * MS)
    assert (found.ratio, found.low, found.high) == pytest.approx((1, 1, 1), abs=0.01)


@pytest.mark.parametrize(
    ("seconds", "repeats"), [(5e-5, 10), (1e-4, 10), (2.5e-4, 4), (4e-4, 3), (1.2 * MS, 1), (5 * MS, 1), (0.0, 10)]
)
def test_short_runs_are_repeated(seconds: float, repeats: int) -> None:
    bench = FakeBench({"a": seconds, "b": 3 * seconds})
    found = watch(bench).compare("a", "b", 0.1)
    order = timed(bench)
    block = ["a"] * repeats + ["b"] * 2 * repeats + ["a"] * repeats
    assert order == block * (len(order) // len(block))
    assert found.first.runs == found.pairs == len(order) // (2 * repeats)
    assert found.first.median_s == pytest.approx(max(seconds, timing.TICK_S))


def test_a_sample_of_repeated_runs_is_their_mean() -> None:
    bench = FakeBench({"a": 0.5 * MS, "b": 0.5 * MS})
    times = itertools.cycle([1.0, 3.0])
    bench.drift = lambda _: next(times)
    found = watch(bench).compare("a", "b", 0.1)
    assert found.first.p20_s == found.first.p80_s == pytest.approx(1 * MS)


@pytest.mark.parametrize("first_s", [0.0, 1e-9])
@pytest.mark.parametrize("second_s", [0.0, 10 * MS])
def test_a_run_that_the_clock_does_not_see(first_s: float, second_s: float) -> None:
    bench = FakeBench({"a": first_s, "b": second_s, "twin": first_s})
    stopwatch = watch(bench)
    noise, _ = stopwatch.noise("a", "twin", 0.2)
    assert noise.ratio == 1
    modes: list[Mode] = ["interleaved", "blocks"]
    for mode in modes:
        found = stopwatch.compare("a", "b", 2, noise=noise, mode=mode)
        assert found.mode == mode
        assert 0 < found.low <= found.ratio <= found.high < math.inf
        assert found.faster is False
        assert found.slower is (second_s > 0)
    assert bench.live == []


def test_how_often_a_session_is_warmed() -> None:
    bench = FakeBench({"a": 20 * MS, "b": 20 * MS})
    watch(bench).compare("a", "b", 0)
    assert bench.orders[:6] == [["a"]] * 3 + [["b"]] * 3
    assert bench.ran == {"a": 3 + MIN_PAIRS, "b": 3 + MIN_PAIRS}
    bench = FakeBench({"a": 1.5, "b": 0.5})
    watch(bench).compare("a", "b", 0)
    assert bench.ran == {"a": 1 + MIN_PAIRS, "b": 2 + MIN_PAIRS}


def test_a_slow_first_run_is_not_the_measure() -> None:
    """Memory is made and kernels are chosen in it: how many pairs fit is told by the last of the warm runs."""
    bench = FakeBench({"a": 10 * MS, "b": 10 * MS})
    bench.drift = lambda _: 50.0 if bench.ran["a"] == 1 or bench.ran["b"] == 1 else 1.0
    found = watch(bench).compare("a", "b", 3)
    assert found.pairs > 50


@pytest.mark.parametrize("base", [2 * MS, 10 * MS, 0.1, 0.7])
@pytest.mark.parametrize("slower_later", [1.0, 5.0])
def test_the_slice_is_kept_to_a_part(base: float, slower_later: float) -> None:
    """Also when runs take longer than the warm runs let expect."""
    slice_s = 0.4 + 6 * base + 2 * MIN_PAIRS * base * slower_later + 1
    bench = FakeBench({"a": base, "b": base}, opening_s=0.2)
    bench.drift = lambda now: slower_later if now > 0.4 + 6 * base else 1.0
    found = watch(bench).compare("a", "b", slice_s)
    assert found.pairs >= MIN_PAIRS
    part = max(0.5, 4 * base) * slower_later
    assert bench.now <= slice_s + part + 1e-9
    if slower_later == 1 and found.pairs < MAX_PAIRS:
        assert bench.now >= slice_s - 4 * base


def test_no_more_pairs_than_are_worth_it() -> None:
    bench = FakeBench({"a": 1 * MS, "b": 1 * MS})
    assert watch(bench).compare("a", "b", 1e6).pairs == MAX_PAIRS
    assert watch(bench).compare("a", "b", math.inf).pairs == MAX_PAIRS
    assert MAX_PAIRS <= watch(bench).compare("a", "b", 1e6, rounds=7).pairs <= MAX_PAIRS + 14


@pytest.mark.parametrize("mode", ["interleaved", "blocks"])
@pytest.mark.parametrize("rounds", [1, 2, 3])
@pytest.mark.parametrize("hopeless", [HOPELESS, math.inf])
@pytest.mark.parametrize("base", [1e-5, 10 * MS, 3.0])
def test_after_the_deadline_only_the_fewest_pairs(base: float, mode: Mode, rounds: int, hopeless: float) -> None:
    bench = FakeBench({"a": base, "b": base}, opening_s=0.1)
    found = watch(bench, -1.0).compare("a", "b", 60, mode=mode, rounds=rounds, hopeless=hopeless)
    assert found.pairs == found.first.runs == (SCREEN_PAIRS if hopeless < math.inf else MIN_PAIRS)
    assert found.mode == "interleaved", "blocks take more time"
    if hopeless < math.inf:
        assert bench.opened == ["a", "b"], "the first look is all there is time for"
    bench = FakeBench({"a": base, "b": base}, opening_s=0.1)
    noise, mode = watch(bench, -1.0).noise("a", "b", 60)
    assert noise.pairs == MIN_PAIRS
    assert mode == "interleaved"
    assert len(timed(bench, 1 if base > 1 else 3)) % (2 * MIN_PAIRS) == 0


@pytest.mark.parametrize("base", [10 * MS, 0.2, 3.0])
def test_the_deadline_ends_it_within_a_part(base: float) -> None:
    bench = FakeBench({"a": base, "b": base})
    deadline = 2 * base * (3 + MIN_PAIRS) + 0.5
    found = watch(bench, deadline).compare("a", "b", 600)
    assert MIN_PAIRS <= found.pairs < MAX_PAIRS
    assert bench.now <= deadline + max(0.5, 4 * base)


@pytest.mark.parametrize("rounds", [1, 2, 3, 4])
@pytest.mark.parametrize("slice_s", [0.0, 4.0])
def test_rounds_make_sessions_anew(rounds: int, slice_s: float) -> None:
    bench = FakeBench({"a": 10 * MS, "b": 10 * MS})
    found = watch(bench).compare("a", "b", slice_s, rounds=rounds)
    assert bench.opened == (["a", "b", "b", "a"] * rounds)[: 2 * rounds]
    assert Counter(bench.shuts) == {"a": rounds, "b": rounds}
    assert bench.most == 2
    assert found.pairs >= MIN_PAIRS
    assert bench.now <= (slice_s + 0.5 if slice_s else rounds * 0.06 + found.pairs * 0.02 + 1e-9)
    assert slice_s > 0 or found.pairs < MIN_PAIRS + rounds
    pairs = [order for order in bench.orders if len(order) > 1]
    firsts = Counter(order[n] for order in pairs for n in range(0, len(order), 2))
    assert abs(firsts["a"] - firsts["b"]) <= 1, "who begins changes from pair to pair, across rounds too"
    assert sum(firsts.values()) == found.pairs


def test_rounds_have_equal_shares() -> None:
    """Each keeps the time that those after it take to load."""
    bench = FakeBench({"a": 10 * MS, "b": 10 * MS}, opening_s=0.2)
    found = watch(bench).compare("a", "b", 3, rounds=3)
    rounds: list[int] = []
    for order in bench.orders:
        if len(order) == 1:
            rounds += [0] if not rounds or rounds[-1] else []
        else:
            rounds[-1] += len(order) // 2
    assert len(rounds) == 3
    assert sum(rounds) == found.pairs
    assert max(rounds) - min(rounds) <= 2
    assert 2.9 <= bench.now <= 3.1


def test_the_deadline_ends_the_rounds() -> None:
    bench = FakeBench({"a": 10 * MS, "b": 10 * MS})
    found = watch(bench, 0.5).compare("a", "b", 60, rounds=3)
    assert bench.opened == ["a", "b"]
    assert found.pairs >= 20
    assert bench.now <= 1.0


def test_a_session_that_is_slow_by_itself_is_evened_out_by_rounds() -> None:
    """Every session has its luck with memory: more sessions, less of it."""

    def error(rounds: int) -> float:
        errors = []
        for seed in range(40):
            bench = FakeBench({"a": 10 * MS, "b": 10 * MS}, seed=seed, jitter=0.01)
            luck = np.random.default_rng(1000 + seed)
            bench.fails = lambda what, bench=bench, luck=luck: (  # type: ignore[misc]
                bench.base.update({what[-1]: 10 * MS * math.exp(0.03 * luck.standard_normal())})
                if what.startswith("open")
                else None
            )
            errors.append(math.log(watch(bench).compare("a", "b", 2, rounds=rounds).ratio))
        return float(np.std(errors))

    assert error(3) < 0.8 * error(1)


def test_it_ticks() -> None:
    ticks: list[float] = []
    bench = FakeBench({"a": 10 * MS, "b": 10 * MS})
    watch(bench, tick=lambda: ticks.append(bench.now)).compare("a", "b", 2)
    assert len(ticks) >= 3
    assert np.diff(ticks).max() <= 0.6
    before = len(ticks)
    watch(bench, tick=lambda: ticks.append(bench.now)).compare("a", "b", 2, mode="blocks")
    assert len(ticks) >= before + MIN_PAIRS


# ---- running: what clearly loses ----------------------------------------------------------------------------------


def test_what_clearly_loses_is_not_timed_further() -> None:
    bench = FakeBench({"a": 10 * MS, "b": 20 * MS}, jitter=0.02)
    found = watch(bench).compare("a", "b", 4, hopeless=HOPELESS)
    assert found.pairs == SCREEN_PAIRS
    assert found.slower
    assert bench.ran == {"a": 3 + SCREEN_PAIRS, "b": 3 + SCREEN_PAIRS}
    assert bench.live == []
    bench = FakeBench({"a": 10 * MS, "b": 20 * MS}, jitter=0.02)
    assert watch(bench).compare("a", "b", 4).pairs > 100


@pytest.mark.parametrize("mode", ["interleaved", "blocks"])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_what_clearly_loses_has_its_range(mode: Mode, rounds: int) -> None:
    """Whatever else was asked for: `SCREEN_PAIRS` pairs, interleaved, from the least ratio to the largest."""
    bench = FakeBench({"a": 10 * MS, "b": 20 * MS}, jitter=0.02)
    found = watch(bench).compare("a", "b", 4, hopeless=HOPELESS, mode=mode, rounds=rounds)
    assert found.pairs == SCREEN_PAIRS
    assert found.mode == "interleaved"
    assert found.low > 1


@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.1])
@pytest.mark.parametrize("mode", ["interleaved", "blocks"])
def test_what_does_not_clearly_lose_is_timed(mode: Mode, ratio: float) -> None:
    bench = FakeBench({"a": 10 * MS, "b": ratio * 10 * MS})
    found = watch(bench).compare("a", "b", 4, hopeless=HOPELESS, mode=mode)
    assert found.pairs > MIN_PAIRS
    assert found.mode == mode
    bench = FakeBench({"a": 10 * MS, "b": ratio * 10 * MS}, opening_s=0.5)
    watch(bench).compare("a", "b", 4, hopeless=HOPELESS)
    assert bench.now <= 4.1, "the first look is part of the slice"


def test_a_few_pairs_are_no_win() -> None:
    """They may end the timing of a form, and nothing else."""
    found = watch(FakeBench({"a": 10 * MS, "b": 5 * MS})).compare("a", "b", 4)
    assert found.faster
    assert not replace(found, pairs=SCREEN_PAIRS).faster


def test_one_win_among_the_first_is_enough() -> None:
    bench = FakeBench({"a": 10 * MS, "b": 20 * MS})
    bench.drift = lambda now: 3.0 if abs(now - 0.09) < 5 * MS else 1.0
    assert watch(bench).compare("a", "b", 4, hopeless=HOPELESS).pairs > MIN_PAIRS


# ---- running: one session at a time -------------------------------------------------------------------------------


def crowded(opening_s: float = 0.0) -> FakeBench:
    """Two sessions at a time disturb each other."""
    base = {"a": 10 * MS, "b": 9 * MS, "twin": 10 * MS}
    return FakeBench(base, seed=5, jitter=0.01, crowded=0.3, opening_s=opening_s)


def test_a_noisy_machine_gets_one_session_at_a_time() -> None:
    bench = crowded()
    noise, mode = watch(bench).noise("a", "twin", 2)
    assert mode == "blocks"
    assert noise.level < QUIET
    bench.most = 0
    bench.opened.clear()
    bench.shuts.clear()
    found = watch(bench).compare("a", "b", 2, noise=noise, mode=mode)
    assert found.mode == "blocks"
    assert bench.most == 1
    assert bench.opened == bench.shuts
    order = bench.opened[2:]  # the first two tell whether there is time
    assert order == ["a", "b", "b", "a"] * (len(order) // 4)
    assert found.pairs == len(order) // 2 >= MIN_PAIRS
    assert found.ratio == pytest.approx(0.9, rel=0.03)
    assert found.faster


def test_a_quiet_machine_keeps_both_sessions() -> None:
    bench = FakeBench({"a": 10 * MS, "twin": 10 * MS}, jitter=0.01)
    noise, mode = watch(bench).noise("a", "twin", 2)
    assert mode == "interleaved"
    assert noise.level <= QUIET
    assert noise.pairs > 50
    assert bench.opened == ["a", "twin"]


def test_blocks_that_are_no_better_are_not_taken() -> None:
    bench = FakeBench({"a": 10 * MS, "twin": 10 * MS}, seed=1, jitter=0.02)
    bench.drift = lambda _: (
        1.5 if bench.live == ["twin"] else 1.04 if len(bench.live) > 1 and bench.now % 1 < 0.5 else 1
    )
    bench.crowded = 0.2
    noise, mode = watch(bench).noise("a", "twin", 2)
    assert QUIET < noise.level < 0.5
    assert mode == "interleaved"


@pytest.mark.parametrize("near", ["deadline", "slice"])
def test_blocks_need_time(near: str) -> None:
    """They open a session for each sample: with slow loading there are too few of them."""
    bench = crowded(opening_s=1.0)
    deadline, slice_s = (8.0, 4.0) if near == "deadline" else (math.inf, 4.0)
    noise, mode = watch(bench, deadline).noise("a", "twin", slice_s)
    assert noise.level > QUIET
    assert mode == "interleaved"
    assert watch(bench, bench.now + 8).compare("a", "b", slice_s, noise=noise, mode="blocks").mode == "interleaved"
    bench = crowded(opening_s=1.0)
    _, mode = watch(bench, 1000).noise("a", "twin", 40)
    assert mode == "blocks"
    assert bench.live == []


def test_blocks_keep_the_slice_and_the_deadline() -> None:
    bench = FakeBench({"a": 10 * MS, "b": 10 * MS}, opening_s=0.01)
    pair_s = 2 * (0.01 + 0.07)
    found = watch(bench).compare("a", "b", 3, mode="blocks")
    assert found.mode == "blocks"
    assert 3 - 2 * pair_s <= bench.now <= 3 + 4 * pair_s
    start = bench.now
    found = watch(bench, start + 4.5).compare("a", "b", 60, mode="blocks")
    assert found.mode == "blocks"
    assert found.pairs >= MIN_PAIRS
    assert bench.now <= start + 4.5 + 2 * pair_s


@pytest.mark.parametrize(("base", "runs"), [(1e-4, 50), (5 * MS, 10), (30 * MS, 3), (1.5, 3)])
def test_a_block_is_a_few_runs(base: float, runs: int) -> None:
    bench = FakeBench({"a": base, "b": base})
    found = watch(bench).compare("a", "b", 60, mode="blocks")
    blocks = [order for order in bench.orders if len(order) > 1]
    assert {(len(order), len(set(order))) for order in blocks} == {(runs, 1)}
    assert len(blocks) == 2 * found.pairs


# ---- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["noise", "interleaved", "blocks", "hopeless", "rounds"])
@pytest.mark.parametrize("error", [CannotLoad("no"), Crashed("gone")], ids=["cannot load", "crashed"])
def test_no_session_is_left_behind(how: str, error: Exception) -> None:
    """Whichever request fails, every session that was opened is shut."""
    failed = 0
    for number in itertools.count():
        bench = crowded(opening_s=0.01)
        count = itertools.count()
        bench.fails = lambda _, count=count, number=number: error if next(count) == number else None  # type: ignore[misc]
        stopwatch = watch(bench, 100)
        try:
            if how == "noise":
                stopwatch.noise("a", "twin", 0.4)
            elif how == "hopeless":
                stopwatch.compare("a", "b", 0.3, hopeless=HOPELESS)
            elif how == "rounds":
                stopwatch.compare("a", "b", 0.2, rounds=3)
            else:
                stopwatch.compare("a", "b", 0.8, mode="blocks" if how == "blocks" else "interleaved")
            done = True
        except type(error):
            done = False
        assert bench.live == []
        assert Counter(bench.opened) == Counter(bench.shuts)
        if done:
            break
        failed += 1
    assert failed > 20


# ---- all of it at once --------------------------------------------------------------------------------------------


def test_margins_are_what_they_are_said_to_be() -> None:
    assert min(PUBLISHED) == MIN_PAIRS
    assert 2 * 0.5**MIN_PAIRS <= 0.05 < 2 * 0.5 ** (MIN_PAIRS - 1)
    assert MARGIN == QUIET == 0.02
