"""How timings of a model were taken and what they say of it as a whole, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dilrewrite.runtimes import MEASURED
from dilrewrite.timing.stopwatch import MARGIN, Comparison, Noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A version of the whole model that was timed against the original: which sites were rewritten, and the result."""

    sites: tuple[str, ...]
    timing: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """A layer of an engine: its name and type in the runtime's words, the ONNX nodes in it, seconds of one run.

    `role`: `convolution`, `layout` for what the rewrite put around it (pads, slices, reshapes), or `other`.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    seconds: float
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerComparison:
    """The layers of two engines with their times, the median over `runs` profiled runs; no timings, but shares."""

    runs: int
    first: tuple[LayerTime, ...]
    second: tuple[LayerTime, ...]

    def seconds(self, second: bool, role: str) -> float:
        """Return the seconds of one engine's layers of a role."""
        return sum(layer.seconds for layer in (self.second if second else self.first) if layer.role == role)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """How timings were taken, and what they say of the whole model.

    `inputs`: the shapes it ran on. `budget_s`: the seconds asked for; `spent_s`: the seconds that measuring took;
    `floor_s`: how much of them is always done (data, the profile, the least confirmation). `estimated_s`: of a dry run,
    about how long measuring would take. `measured` and `recalled` count timings made now and taken from the cache.
    `profiled_s`: one run of the original under the profiler. `noise`: the original against itself. `attempts`: versions
    of the model that were timed; `final`: the original (first) against the model written (second), `None` when that was
    not timed. `predicted_ratio`: what the sites' timings let expect for `final.ratio`. `load`: how many processes
    wanted a core before measuring began, on average over a minute. `form_noise`: the largest noise of a Conv against
    itself. `min_gain`: the share of the time that the whole model had to save. `needed_s`: about the budget that would
    have measured every site, `None` where all were. `made_up`: the tool chose the sizes. `others`: further backends
    that are ready here. `doubts`: what the runtime said that makes timings doubtful. `source`: "measured"; nothing else
    is ever written. `first_run_s`: seconds that loading an engine and its first run took, `before` and `after`: with
    TensorRT for RTX, the compiling. `state_before`, `state_after`: the device's clocks (MHz), power (W) and temperature
    (°C), where it tells them. `layers`: times by layer of both models from a separate profiled pass, where the runtime
    tells them.
    """

    backend: str
    device: str
    versions: Mapping[str, str]
    settings: Mapping[str, str]
    inputs: Mapping[str, tuple[int, ...]]
    budget_s: float
    spent_s: float = 0.0
    floor_s: float = 0.0
    estimated_s: float | None = None
    measured: int = 0
    recalled: int = 0
    profiled_s: float | None = None
    noise: Noise | None = None
    attempts: tuple[Attempt, ...] = ()
    final: Comparison | None = None
    predicted_ratio: float | None = None
    load: float | None = None
    form_noise: float | None = None
    min_gain: float = MARGIN
    needed_s: float | None = None
    made_up: bool = False
    others: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    source: str = MEASURED
    first_run_s: Mapping[str, float] = field(default_factory=dict)
    state_before: Mapping[str, float] = field(default_factory=dict)
    state_after: Mapping[str, float] = field(default_factory=dict)
    layers: LayerComparison | None = None
