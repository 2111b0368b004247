"""Decides about the sites of a model together: measures, chooses, proves, and confirms on the whole model."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from dilrewrite.choice.decide import Decider, remaining
from dilrewrite.choice.decision import Considered, Decision, SiteMeasurement
from dilrewrite.choice.original import Original
from dilrewrite.choice.reason import Reason, Why, not_measured
from dilrewrite.choice.tune import Tuning
from dilrewrite.errors import UsageError
from dilrewrite.keywords import Progress, silent
from dilrewrite.model.tensors import Model, read_tensor
from dilrewrite.options import Building, Measuring
from dilrewrite.proof import trial
from dilrewrite.proof.verdict import Settings
from dilrewrite.runtimes import Options, TimedBackend, timed_backend
from dilrewrite.runtimes import _kept as kept
from dilrewrite.runtimes._kept import store
from dilrewrite.sites import Found
from dilrewrite.splice.rewrite import Rewritten, rewrite
from dilrewrite.staging import is_file
from dilrewrite.tensorrt.make import TIMING_CACHE
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import default_path, open_cache
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.measurement import Measurement


def tuning(
    model: Model,
    found: Found,
    decider: Decider,
    settings: Settings,
    measuring: Measuring,
    building: Building | None = None,
    progress: Progress = silent,
) -> Tuning:
    """Return what measures the model; raises `UsageError` or `MissingError` when its backend is not there."""
    backend = timed_backend(measuring.backend).building(building.precision if building is not None else None)
    folder, forget = _building_place(backend, None if measuring.no_cache else measuring.cache or default_path())
    sessions = Options(threads=settings.threads, custom_op_library=settings.custom_op_library, scratch=folder)
    cache = open_cache(measuring.cache, none=measuring.no_cache)
    meter = Meter.on(backend, cache, Budget(measuring.seconds, progress=progress), sessions)
    timings = building.timing_cache if building is not None else None
    if timings is not None and is_file(timings):
        store(folder / TIMING_CACHE, timings.read_bytes())
    baseline = trial.runnable(model, model.proto, backend)
    original = Original(model=model, found=found, baseline=baseline, settings=settings)
    min_gain = measuring.min_gain_percent / 100
    return Tuning(forget=forget, original=original, meter=meter, decider=decider, min_gain=min_gain)


def _building_place(backend: TimedBackend, cache: Path | None) -> tuple[Path, Callable[[], None]]:
    """Return where a backend keeps what it builds, beside the cache of timings, and what is done with it at the end."""
    if cache is None:
        scratch = tempfile.TemporaryDirectory(prefix="dilrewrite-")
        return Path(scratch.name), scratch.cleanup
    root = cache.absolute().with_name(f"{cache.name}.built")
    return kept.folder(root, backend), functools.partial(kept.trim, root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What was decided, the model that it makes, and what measuring says of it."""

    settled: Sequence[Decision]
    rewritten: Rewritten
    measurement: Measurement | None = None


@dataclass
class Choosing:
    """The choice for one model; `tuning`: what measures, where anything does. `clock` counts the seconds of a step."""

    model: Model
    found: Found
    considered: Sequence[Considered]
    decider: Decider
    tuning: Tuning | None
    clock: Callable[[str], AbstractContextManager[None]]
    progress: Progress

    def plan(self) -> Chosen:
        """Choose without measuring, and say what would be measured."""
        measurement = None
        if self.tuning is not None and any(entry.wanted for entry in self.considered):
            measurement = self.tuning.planned(self.considered)
        else:
            self.tuning = None  # nothing would be measured
        settled = self._settle({})
        return Chosen(settled=settled, rewritten=self._rewrite(settled), measurement=measurement)

    def choose(self) -> Chosen:
        """Measure, choose, prove, and confirm on the whole model."""
        tuning, decider = self.tuning, self.decider
        measured = any(entry.measurable for entry in self.considered)
        if tuning is not None and measured:
            with self.clock("measure"):
                self._start(tuning)
                tuning.measure(self.considered)
        settled = self._settle({})
        winners = [decision for decision in settled if decision.fragment is not None]
        final = measurement = None
        if tuning is not None and winners and not any(decision.wrong for decision in settled):
            if decider.scope.strategy is None and not decider.scope.eliminate:
                settled = self._confirm(tuning, settled, winners)
            elif not (decider.scope.eliminate and remaining(settled, self.found, decider.scope)):
                final = self._rewrite(settled)
                with self.clock("measure"):
                    if measured or self._start(tuning):
                        tuning.compare(final.proto, [decision.site.key for decision in winners])
        if tuning is not None:
            settled = [_ran(decision, tuning) for decision in settled]
        if tuning is not None and (tuning.original.profiled is not None or tuning.failure is not None):
            if tuning.final is not None and any(decision.fragment is not None for decision in settled):
                final = final or self._rewrite(settled)
                tuning.compare_layers(final.proto)
            tuning.close()
            measurement = tuning.measurement(predicted_ratio=_predicted(settled))
        return Chosen(settled=settled, rewritten=final or self._rewrite(settled), measurement=measurement)

    def _settle(self, stay: Mapping[str, Why]) -> list[Decision]:
        settled = []
        for number, entry in enumerate(self.considered):
            self.progress("prove", number, len(self.considered))
            unmeasured = SiteMeasurement(why=not_measured(Reason.NO_BUDGET))
            measured = self.tuning.of(entry) if self.tuning is not None else unmeasured
            settled.append(self.decider.settle(entry, measured, stay.get(entry.site.key)))
        self.progress("prove", len(self.considered), len(self.considered))
        return settled

    def _rewrite(self, settled: Sequence[Decision], only: Collection[str] | None = None) -> Rewritten:
        edits = [(d.site, d.fragment) for d in settled if d.fragment and (only is None or d.site.key in only)]
        kept = [(d.site, d.explicit) for d in settled if d.explicit]
        with self.clock("substitute"):
            read = functools.partial(read_tensor, self.model)
            return rewrite(self.model.proto, [*edits, *kept], self.found.normalisations, read)

    def _start(self, tuning: Tuning) -> bool:
        """Start measuring; False: the model does not run. Data that it does not take are an error only if it must."""
        try:
            return tuning.start()
        except UsageError as error:
            if self.decider.proving.verify == "full":
                raise
            tuning.failure = Why(reason=Reason.NO_DATA, said=str(error))
            return False

    def _confirm(self, tuning: Tuning, settled: Sequence[Decision], winners: Sequence[Decision]) -> list[Decision]:
        """Return what is decided once the whole model was timed with what won."""
        with self.clock("measure"):
            stay = tuning.confirm(winners, lambda keys: self._rewrite(settled, keys).proto)
        return self._settle(stay)


def _ran(decision: Decision, tuning: Tuning) -> Decision:
    """Return a decision with how its site ran, which a form that was asked for did not wait for."""
    gain = tuning.gain(decision.site, decision.strategy) if decision.fragment is not None else None
    return replace(decision, measured=replace(decision.measured, run=tuning.run_of(decision.site)), gain=gain)


def _predicted(settled: Sequence[Decision]) -> float | None:
    """Return the share of its time that the sites' gains leave the model; `None` where one is not known."""
    gains = [decision.gain for decision in settled if decision.fragment is not None]
    certain = [gain for gain in gains if gain is not None]
    return 1 - sum(certain) if certain and len(certain) == len(gains) else None
