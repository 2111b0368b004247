"""Decides about the sites of a model together: measures, chooses, proves, and confirms on the whole model."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from dilrewrite import machine
from dilrewrite.choice import choose, regions
from dilrewrite.choice.decide import Decider, remaining
from dilrewrite.choice.decision import Considered, Decision, SiteMeasurement
from dilrewrite.choice.original import Original
from dilrewrite.choice.reason import Reason, Why, not_measured
from dilrewrite.choice.tune import Tuning
from dilrewrite.devices import Device
from dilrewrite.errors import UsageError
from dilrewrite.keywords import Progress, silent
from dilrewrite.model.tensors import Model, read_tensor
from dilrewrite.options import Building, Measuring
from dilrewrite.proof import trial
from dilrewrite.proof.verdict import Settings
from dilrewrite.runtimes import Options, TimedBackend, TimeKind
from dilrewrite.runtimes import _kept as kept
from dilrewrite.runtimes._kept import store
from dilrewrite.sites import Found
from dilrewrite.splice.plain import restored
from dilrewrite.splice.rewrite import Rewritten, rewrite
from dilrewrite.staging import is_file
from dilrewrite.tensorrt.make import TIMING_CACHE
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import default_path, open_cache
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.measurement import Measurement
from dilrewrite.timing.outcome import Outcome


def tuning(
    model: Model,
    found: Found,
    decider: Decider,
    settings: Settings,
    measuring: Measuring,
    building: Building | None = None,
    progress: Progress = silent,
    device: Device | None = None,
) -> Tuning:
    """Return what measures the model; raises `UsageError` or `MissingError` when its backend is not there."""
    device = device or Device()
    backend = device.backend(measuring.backend).building(building.precision if building is not None else None)
    folder, forget = _building_place(backend, None if measuring.no_cache else measuring.cache or default_path())
    sessions = Options(threads=settings.threads, custom_op_library=settings.custom_op_library, scratch=folder)
    cache = open_cache(measuring.cache, none=measuring.no_cache)
    meter = Meter.on(backend, cache, Budget(measuring.seconds, progress=progress), sessions)
    meter.cool_down_s = measuring.cool_down_s
    timings = building.timing_cache if building is not None else None
    if timings is not None and is_file(timings):
        store(folder / TIMING_CACHE, timings.read_bytes())
    baseline = trial.runnable(model, model.proto, backend)
    original = Original(model=model, found=found, baseline=baseline, settings=settings)
    min_gain = measuring.min_gain_percent / 100
    load = machine.load() if backend.source is TimeKind.MEASURED and not device.on else None
    here = not device.on
    return Tuning(original, meter, decider, min_gain=min_gain, load=load, here=here, forget=forget)


def _building_place(backend: TimedBackend, cache: Path | None) -> tuple[Path, Callable[[], None]]:
    """Return where a backend keeps what it builds, beside the cache of timings, and what is done with it at the end."""
    if cache is None:
        scratch = tempfile.TemporaryDirectory(prefix="dilrewrite-")
        return Path(scratch.name), scratch.cleanup
    root = cache.absolute().with_name(f"{cache.name}.built")
    return kept.folder(root, backend), functools.partial(kept.trim, root)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What was decided of the sites and of the regions, the model that it makes, and what measuring says of it."""

    settled: Sequence[Decision]
    regions: Sequence[Decision]
    rewritten: Rewritten
    measurement: Measurement | None = None


@dataclass
class Choosing:
    """The choice for one model; `tuning`: what measures, where anything does. `clock` counts the seconds of a step."""

    model: Model
    found: Found
    regions: Sequence[Considered]
    considered: Sequence[Considered]
    decider: Decider
    tuning: Tuning | None
    clock: Callable[[str], AbstractContextManager[None]]
    progress: Progress

    def plan(self) -> Chosen:
        """Choose without measuring, and say what would be measured."""
        measurement = None
        if self.tuning is not None and any(entry.wanted for entry in self._all):
            measurement = self.tuning.planned(self._all)
        else:
            self.tuning = None  # nothing would be measured
        settled = self._settle({})
        return self._chosen(settled, self._rewrite(settled), measurement)

    @property
    def _all(self) -> list[Considered]:
        return [*self.regions, *self.considered]

    def _chosen(self, settled: Settled, rewritten: Rewritten, measurement: Measurement | None) -> Chosen:
        return Chosen(settled=settled.sites, regions=settled.regions, rewritten=rewritten, measurement=measurement)

    def choose(self) -> Chosen:
        """Measure, choose, prove, and confirm on the whole model."""
        tuning, decider = self.tuning, self.decider
        measured = any(entry.measurable for entry in self._all)
        if tuning is not None and measured:
            with self.clock("measure"):
                self._measure(tuning)
        settled = self._settle({})
        final = measurement = None
        if tuning is not None and settled.winners and not settled.wrong:
            if decider.fitter is not None:
                settled, final = self._judged(tuning, settled)
            elif decider.scope.strategy is None and not decider.scope.eliminate:
                settled = self._confirm(tuning, settled)
            elif not (decider.scope.eliminate and remaining(settled.sites, self.found, decider.scope)):
                settled, final = self._compared(tuning, settled, measured=measured)
        if tuning is not None:
            settled = Settled(*([_ran(one, tuning) for one in some] for some in (settled.regions, settled.sites)))
        if tuning is not None and (tuning.original.profiled is not None or tuning.failure is not None):
            if tuning.final is not None and settled.winners:
                final = final or self._rewrite(settled)
                tuning.compare_layers(final.proto)
            tuning.close()
            measurement = tuning.measurement(predicted_ratio=_predicted(settled.winners))
        return self._chosen(settled, final or self._rewrite(settled), measurement)

    def _measure(self, tuning: Tuning) -> None:
        """Time regions, then the sites outside of those that win, then the others if there is time."""
        self._start(tuning)
        tuning.measure(self.regions)
        covered = {key for region in self._settled_regions({}) if region.fragment for key in region.considered.inside}
        needed, region_goes = self.decider.scope.eliminate, self.decider.fitter is not None
        tuning.measure([entry for entry in self.considered if needed or entry.site.key not in covered])
        if not (needed or region_goes):
            tuning.measure([entry for entry in self.considered if entry.site.key in covered], needed=False)

    def _judged(self, tuning: Tuning, settled: Settled) -> tuple[Settled, Rewritten | None]:
        """Confirm what the target takes as it is, too, without what has to go; then count the whole."""
        if settled.optional:
            settled = self._confirm(tuning, settled)
        if len(settled.optional) == len(settled.winners):
            return settled, None
        final = self._rewrite(settled)
        with self.clock("measure"):
            if tuning.original.profiled is not None or (tuning.failure is None and self._start(tuning)):
                tuning.compare(final.proto, [winner.site.key for winner in settled.winners])
        return settled, final

    def _compared(self, tuning: Tuning, settled: Settled, *, measured: bool) -> tuple[Settled, Rewritten]:
        """Time what was chosen as a whole, and without any region: return the faster one."""
        final = self._rewrite(settled)
        with self.clock("measure"):
            if not (measured or self._start(tuning)):
                return settled, final
            tuning.compare(final.proto, [winner.site.key for winner in settled.winners])
            first, taken = tuning.final, [region for region in settled.regions if region.fragment]
            if first is None or not taken or not measured:
                return settled, final
        better = [one for one in settled.regions if one.fragment or one.why.reason is Reason.LESS_THAN_SITES]
        other = self._settle({one.site.key: _less(one) if one.fragment else one.why for one in better})
        if remaining(other.sites, self.found, self.decider.scope) or other.wrong:
            return settled, final
        alone = self._rewrite(other)
        with self.clock("measure"):
            tuning.compare(alone.proto, [winner.site.key for winner in other.winners])
        if tuning.final is not None and tuning.final.ratio < first.ratio:
            return other, alone
        tuning.final = first
        return settled, final

    def _settle(self, stay: Mapping[str, Why]) -> Settled:
        """Decide about regions, and about the sites outside of those that are taken."""
        chosen = self._settled_regions(stay)
        owners = {key: one for one in chosen if one.fragment is not None for key in one.considered.inside}
        settled = []
        for number, entry in enumerate(self.considered):
            self.progress("prove", number, len(self.considered))
            measured, owner = self._measured(entry), owners.get(entry.site.key)
            if owner is None:
                settled.append(self.decider.settle(entry, measured, stay.get(entry.site.key)))
                continue
            timings = {name: form for name, form in measured.timings.items() if form.outcome is not Outcome.NO_TIME}
            measured = replace(measured, timings=timings, why=None)
            why = Why(reason=Reason.IN_REGION, said=owner.site.key)
            if owner.why.reason is Reason.DECIDED:
                why = owner.why
            left = regions.left_in(owner, entry.site)
            settled.append(Decision(considered=entry, measured=measured, why=why, region=owner, dilation_left=left))
        self.progress("prove", len(self.considered), len(self.considered))
        return Settled(chosen, settled)

    def _settled_regions(self, stay: Mapping[str, Why]) -> list[Decision]:
        """Decide about regions: those that are worth it get their forms, unless they share nodes with a better one."""
        settled = [self.decider.settle(entry, self._measured(entry)) for entry in self.regions]
        settled = [one if one.site.key not in stay else _kept(one, stay[one.site.key]) for one in settled]
        taken = {one.site.key for one in regions.disjoint(settled, self._worth)}
        return [one if one.site.key in taken or one.candidate is None else _kept(one, _less(one)) for one in settled]

    def _worth(self, region: Decision) -> float:
        """Return how much better a region is than its sites alone, above 0 if it is."""
        inside = [entry for entry in self.considered if entry.site.key in region.considered.inside]
        if not region.considered.measurable:
            return 1.0 + len(inside)
        gain = self.tuning.gain(region.site, region.strategy) if self.tuning is not None else None
        gains = [self._best_gain(entry) for entry in inside]
        if gain is None or None in gains:
            return regions.estimated(region, inside) if self.decider.scope.eliminate else gain or 0.0
        return gain - sum(filter(None, gains))

    def _best_gain(self, entry: Considered) -> float | None:
        """Return what a site's own best form gains; `None` where it was not timed and that matters."""
        timings = self._measured(entry).timings
        if self.decider.scope.eliminate:
            ranked = [candidate for candidate, _ in choose.fastest(entry.wanted, timings)]
        else:
            ranked, _ = choose.by_time(entry.wanted, timings)
        if not ranked:
            return None if self.decider.scope.eliminate else 0.0
        return self.tuning.gain(entry.site, ranked[0].strategy) if self.tuning is not None else None

    def _measured(self, entry: Considered) -> SiteMeasurement:
        unmeasured = SiteMeasurement(why=not_measured(Reason.NO_BUDGET))
        return self.tuning.of(entry) if self.tuning is not None else unmeasured

    def _rewrite(self, settled: Settled, only: Collection[str] | None = None) -> Rewritten:
        edits = [(d.site, d.fragment) for d in settled.winners if d.fragment and (only is None or d.site.key in only)]
        kept = [(d.site, d.explicit) for d in settled.sites if d.explicit]
        with self.clock("substitute"):
            read = functools.partial(read_tensor, self.model)
            rewritten = rewrite(self.model.proto, [*edits, *kept], self.found.normalisations, read)
            return replace(rewritten, proto=restored(self.model, rewritten.proto))

    def _start(self, tuning: Tuning) -> bool:
        """Start measuring; False: the model does not run. Data that it does not take are an error only if it must."""
        try:
            return tuning.start()
        except UsageError as error:
            if self.decider.proving.verify == "full":
                raise
            tuning.failure = Why(reason=Reason.NO_DATA, said=str(error))
            return False

    def _confirm(self, tuning: Tuning, settled: Settled) -> Settled:
        """Return what is decided once the whole model was timed with what won.

        Where a region is not confirmed, the sites in it may have forms of their own that won: these are asked next.
        """
        stay: dict[str, Why] = {}
        asked: set[str] = set()
        while fresh := [one for one in settled.optional if one.site.key not in asked]:
            before, attempts = tuning.final, len(tuning.attempts)
            winners = settled.optional
            asked |= {one.site.key for one in winners}

            def make(keys: set[str], settled: Settled = settled) -> ModelProto:
                return self._rewrite(settled, keys).proto

            with self.clock("measure"):
                told = tuning.confirm(winners, make)
            if before is not None and tuning.final is not None and tuning.final.ratio >= before.ratio:
                tuning.final = before
                told = {one.site.key: told.get(one.site.key) or _unconfirmed(one, tuning, attempts) for one in fresh}
            stay |= told
            settled = self._settle(stay)
        return settled


@dataclass(frozen=True, slots=True)
class Settled:
    """What was decided about regions and sites."""

    regions: Sequence[Decision]
    sites: Sequence[Decision]

    @property
    def winners(self) -> list[Decision]:
        """Return what is rewritten."""
        return [decision for decision in (*self.regions, *self.sites) if decision.fragment is not None]

    @property
    def optional(self) -> list[Decision]:
        """Return what is rewritten only because that is faster."""
        return [decision for decision in self.winners if not decision.considered.must_go]

    @property
    def wrong(self) -> bool:
        """Say whether a form is wrong."""
        return any(decision.wrong for decision in (*self.regions, *self.sites))


def _less(region: Decision) -> Why:
    """Return that the sites in a region are better off by themselves."""
    timing = region.measured.timings.get(region.strategy)
    return Why(
        reason=Reason.LESS_THAN_SITES, strategy=region.strategy, timing=timing.timing if timing is not None else None
    )


def _kept(region: Decision, why: Why) -> Decision:
    return replace(region, candidate=None, why=why)


def _unconfirmed(winner: Decision, tuning: Tuning, attempt: int) -> Why:
    whole = tuning.attempts[attempt].timing if len(tuning.attempts) > attempt else None
    return replace(_less(winner), reason=Reason.NOT_CONFIRMED, whole=whole)


def _ran(decision: Decision, tuning: Tuning) -> Decision:
    """Return a decision with how its site ran, which a form that was asked for did not wait for."""
    gain = tuning.gain(decision.site, decision.strategy) if decision.fragment is not None else None
    return replace(decision, measured=replace(decision.measured, run=tuning.run_of(decision.site)), gain=gain)


def _predicted(winners: Sequence[Decision]) -> float | None:
    """Return the share of its time that the winners' gains leave the model; `None` where one is not known."""
    gains = [decision.gain for decision in winners]
    certain = [gain for gain in gains if gain is not None]
    return 1 - sum(certain) if certain and len(certain) == len(gains) else None
