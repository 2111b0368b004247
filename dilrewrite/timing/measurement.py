"""How timings of a model were taken and what they say of it as a whole, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dilrewrite.runtimes import TimeKind, TimeUnit
from dilrewrite.timing.stopwatch import MARGIN, Comparison, Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A version of the whole model that was timed against the original."""

    sites: tuple[str, ...]
    """The sites rewritten in it."""
    timing: Comparison
    """The original (`first`) against this version (`second`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """A layer of an engine with its time."""

    name: str
    """The layer's name."""
    kind: str
    """Its type."""
    nodes: tuple[str, ...]
    """Names of the ONNX nodes that it stands for; may be empty."""
    seconds: float
    """Seconds of it in one profiled run."""
    role: str
    """`convolution`, `layout` (of nodes that the rewrite put there: pads, slices, reshapes) or `other`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerComparison:
    """The layers of two engines with their times, from a profiled pass apart from the timings.

    The profiler slows every layer down: take these seconds for shares of a run, never for timings.
    """

    runs: int
    """How many runs were profiled; seconds are the median over them."""
    first: tuple[LayerTime, ...]
    """Layers of the original's engine, in their order."""
    second: tuple[LayerTime, ...]
    """Layers of the rewritten model's engine, in their order."""

    def seconds(self, second: bool, role: str) -> float:
        """Return the seconds of one engine's layers of a role."""
        return sum(layer.seconds for layer in (self.second if second else self.first) if layer.role == role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How timings were taken, and what they say of the whole model."""

    backend: str
    """Runtime that was timed."""
    device: str
    """What it ran on."""
    versions: Mapping[str, str]
    """Versions of the runtime and of what it runs on."""
    settings: Mapping[str, str]
    """Settings that timings depend on."""
    inputs: Mapping[str, tuple[int, ...]]
    """Shape by input of the whole model."""
    budget_s: float
    """Seconds that measuring was to take."""
    spent_s: float = 0.0
    """Seconds that it took; above `budget_s` where `floor_s` needs it."""
    floor_s: float = 0.0
    """How many of `spent_s` are always done, whatever the budget: finding data, the profile, and the least confirmation
    where the budget was over; 0 when there was none.
    """
    estimated_s: float | None = None
    """Of a dry run, about how many seconds measuring would take; `None` otherwise."""
    measured: int = 0
    """Timings taken now."""
    recalled: int = 0
    """Timings taken from the cache."""
    profiled_s: float | None = None
    """Median seconds of a run of the original under the profiler; `None` when it was not profiled."""
    noise: Noise | None = None
    """The original against itself; `None` when not measured."""
    attempts: tuple[Attempt, ...] = ()
    """Rewritten versions of the whole model that were timed, in the order tried."""
    final: Comparison | None = None
    """The original (`first`) against the model written (`second`); of `bench`, the first model against the second, or
    against itself where there is one only; `None` when that was not timed.
    """
    predicted_ratio: float | None = None
    """What the timings of the sites let expect for `final.ratio`; `None` when they let expect nothing."""
    load: float | None = None
    """How many processes wanted a core in the minute before, on average; `None` where the system does not tell."""
    form_noise: float | None = None
    """The largest noise of a Conv against itself, as a share; `None` when not measured."""
    min_gain: float = MARGIN
    """Share of its time that the whole model had to save to be rewritten."""
    needed_s: float | None = None
    """About the budget, in seconds, that would have timed every form; `None` where all were."""
    made_up: bool = False
    """Whether the tool chose sizes that the model leaves open."""
    others: tuple[str, ...] = ()
    """Further backends that are ready to time on."""
    doubts: tuple[str, ...] = ()
    """What the runtime said that makes timings doubtful."""
    source: TimeKind = TimeKind.MEASURED
    """`measured`, or `estimated` by a device's compiler: those are written in cycles only."""
    unit: TimeUnit = TimeUnit.SECONDS
    """What all times but those of the budget count, whatever a field's name says: `seconds`, or `cycles`, thousands of
    millions of them.
    """
    first_run_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds that loading a whole model and its first run took, by `before` and `after`: with an engine, also what its
    runtime compiles once; empty when not timed.
    """
    state_before: Mapping[str, float] = field(default_factory=dict)
    """Readings of the device before measuring: `sm_clock_mhz`, `memory_clock_mhz`, `power_w`, `temperature_c` (°C) and
    `throttle_reasons` (NVML's bits); those that it does not tell are left out.
    """
    state_after: Mapping[str, float] = field(default_factory=dict)
    """The same after measuring."""
    layers: LayerComparison | None = None
    """Times by layer of the original and of the model written; `None` where the runtime tells none."""
