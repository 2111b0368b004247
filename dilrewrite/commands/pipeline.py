"""The whole way: load, find, plan, measure, choose, prove, substitute, confirm, verify, report, save."""

from __future__ import annotations

import functools
import itertools
import json
import math
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx import ModelProto, TensorProto

from dilrewrite.choice import choose, decisions
from dilrewrite.choice.decide import Decider, matches, remaining
from dilrewrite.choice.decision import Considered, Decision, SiteMeasurement
from dilrewrite.choice.original import Original
from dilrewrite.choice.reason import Reason, Why, not_measured
from dilrewrite.choice.tune import Tuning
from dilrewrite.errors import FailedError, MissingError, UsageError, shown
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.keywords import Progress
from dilrewrite.model.load import load
from dilrewrite.model.save import stage_model
from dilrewrite.model.tensors import Model, read_tensor
from dilrewrite.model.valid import check_calls
from dilrewrite.options import Building, CommandOptions, Places, Proving
from dilrewrite.proof.carve import Source
from dilrewrite.proof.disturb import disturb
from dilrewrite.proof.inputs import Chooser, load_inputs, parse_shapes
from dilrewrite.proof.verdict import Settings, Subject, Verdict, verify
from dilrewrite.reports import check_report_folder, reasons, report, write_reports
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Profile,
    Runnable,
    TimedBackend,
    TimedOut,
    backend,
    backends,
    profiled,
    timed_backend,
    timed_backends,
)
from dilrewrite.sites import Found, Site, Skipped
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import Rewritten, mark, rewrite
from dilrewrite.staging import ELSEWHERE, Staging, check_destination, is_file, same_file
from dilrewrite.tensorrt import bindings, engines, sidecar
from dilrewrite.tensorrt.make import TIMING_CACHE
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import open_cache
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.measurement import Measurement


def silent(step: str, done: int, total: int) -> None:
    """Show no progress."""


@dataclass
class _Clock:
    """Seconds by step; what a step inside another takes is not the other's."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=lambda: [0.0])

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            own = spent - self._inner.pop()
            self._inner[-1] += spent
            self.seconds[step] = round(self.seconds.get(step, 0.0) + own, 3)


# -- inspect -------------------------------------------------------------------------------------------------------


def inspect(path: Path, options: CommandOptions, *, progress: Progress = silent) -> Report:
    """Return every dilated Conv of the model at `path`, with the forms that apply and why others refuse."""
    clock, profile, max_dilation = _Clock(), options.measuring.profile, options.scope.max_dilation
    report_folder = options.places.report
    with clock("load"):
        model = load(path, weights=profile)
    if report_folder is not None:
        check_report_folder(report_folder, others=[path])
    with clock("find"):
        found = find(model.proto)
    with clock("plan"):
        planner = choose.Planner(strategies(), max_dilation)
        planned = [planner.candidates(site) for site in found.sites]
    tuning = None
    if profile:
        options.check()
        decider = Decider(options.scope, options.proving, Source(model.proto))
        tuning = _tuning(model, found, decider, _settings(model, options.proving), options, progress)
        with clock("profile"):
            try:
                if not tuning.start():
                    raise FailedError(f"{shown(path)}: {_failure(tuning)}")
            finally:
                tuning.close()
    sites = []
    for site, (offered, refused) in zip(found.sites, planned, strict=True):
        entry = Considered(site=site, offered=tuple(offered), refused=tuple(refused), wanted=())
        measured = SiteMeasurement(run=tuning.run_of(site)) if tuning is not None else SiteMeasurement()
        decision = Decision(considered=entry, measured=measured, why=Why(reason=Reason.INSPECTED))
        sites.append(report.describe_site(decision))
    result = Report(
        command="inspect",
        status="inspected",
        before=report.describe_model(model, model.proto, dilated=_dilated(found)),
        options={"max_dilation": max_dilation, **(options.plain() if profile else {})},
        sites=tuple(sites),
        skipped=found.skipped,
        normalised=found.normalisations,
        measurement=tuning.measurement() if tuning is not None else None,
        environment=report.environment(options.proving.threads if profile else None),
        seconds=clock.seconds,
        notes=(*_notes_of(tuning), *found.remarks),
    )
    _write(result, report_folder)
    return result


def _write(result: Report, folder: Path | None) -> None:
    if folder is not None:
        with Staging() as staging:
            write_reports(result, folder, staging)
            staging.commit()


def _dilated(found: Found) -> int:
    return report.dilated_convolutions(len(found.sites), found.skipped)


# -- optimize ------------------------------------------------------------------------------------------------------


def optimize(path: Path, options: CommandOptions, *, beside: bool = False, progress: Progress = silent) -> Report:
    """Rewrite the model at `path`, prove it, and write it to the output (`None`: `<stem>.dilrewrite.onnx` beside it).

    `beside`: without a folder for reports, they go to `<output stem>.report` beside the output, except when dilation is
    left that should go: then nothing at all is written. Returns the report; when results differ or dilation is left, no
    model is written and `report.exit_code` says so.
    """
    options.check()
    with engines.on_device(options.building.device if options.building is not None else None):
        return _optimize(path, options, beside, progress)


def _optimize(path: Path, options: CommandOptions, beside: bool, progress: Progress) -> Report:
    scope, proving, places = options.scope, options.proving, options.places
    clock = _Clock()
    options = _backend(options)
    with clock("load"):
        model = load(path)
    check_calls(model.proto, shown(path))
    target = places.output or path.with_name(f"{path.stem}.dilrewrite.onnx")
    started, engine_place = None, places.engine or target.with_suffix(".engine")
    if options.building is not None:
        started = engines.start(model, options.building, parse_shapes(proving.shapes))
    report_folder = places.report
    asked = report_folder is not None
    if beside and not asked:
        report_folder = target.with_name(f"{target.stem}.report")
    if not places.dry_run:
        _check_places(model, path, target, report_folder, options)
        if options.building is not None:
            others = [path, target, *_data_files(model)]
            others += [place for place in (places.save_decisions, options.measuring.cache) if place is not None]
            cache = options.building.timing_cache
            engines.check_places(engine_place, force=places.force, others=others, timing_cache=cache)
            if report_folder is not None:
                check_report_folder(report_folder, others=_engine_places(engine_place, cache), force=places.force)
    settings = _settings(model, proving)
    sizes = engines.measured_sizes(started, settings) if started is not None else settings.shapes
    with clock("find"):
        found = find(model.proto)
    decided = None
    if scope.decisions is not None:
        decided = decisions.read(scope.decisions)
        decisions.check(scope.decisions, decided, found.sites)
    decider = Decider(scope, proving, Source(model.proto), decided, functools.partial(clock, "prove"))
    with clock("plan"):
        considered = [decider.consider(site) for site in found.sites]
    tuning = None
    if found.sites and decided is None and options.measuring.seconds > 0:
        tuning = _tuning(model, found, decider, replace(settings, shapes=sizes), options, progress)
    try:
        made = _decide(model, found, considered, decider, tuning, clock, progress, places.dry_run)
    finally:
        if tuning is not None:
            tuning.close()
    settled, rewritten = made.settled, made.rewritten
    wrong = [reasons.wrong(decision) for decision in settled if decision.wrong]
    changed = bool(any(d.fragment or d.explicit for d in settled) or found.normalisations)
    if proving.verify == "none" and changed:
        mark(rewritten.proto, "unverified")
    left = remaining(settled, found, scope) if scope.eliminate else ()
    verdict: Verdict | None = None
    if wrong:
        verdict = Verdict(level=proving.verify, passed=False, failures=tuple(wrong), skipped="a form is wrong")
    elif left:
        verdict = None  # nothing will be written
    elif proving.verify == "none":
        verdict = Verdict(level="none", passed=True, skipped="--verify none: the result is unverified")
    elif changed and proving.verify == "full":
        progress("verify", 0, 1)
        with clock("verify"):
            verdict = _verify(model, found, rewritten, settled, settings, proving.seed)
        progress("verify", 1, 1)
    elif changed:
        verdict = Verdict(level="sites", passed=True, skipped="--verify sites: the whole model was not run")
    result = _report(model, found, made, changed, verdict, left, target, options, clock)
    if places.dry_run:
        return result
    engine = None
    if started is not None and result.output is not None:
        with clock("build"):
            engine = engines.make(
                started,
                rewritten.proto if changed else model.proto,
                engine_place,
                settings,
                chosen_on=_chosen_on(result, started),
                source=target if changed else None,
                progress=progress,
            )
        result = replace(result, engine=engine.report, seconds=clock.seconds)
    with Staging(force=places.force) as staging:
        if engine is not None:
            engines.stage(engine, engine_place, staging)
        if result.output is not None:
            spill = _spill(model, rewritten)
            further = stage_model(
                model, rewritten.proto, target, staging, external_data=places.external_data, spill=spill
            )
            result = replace(result, notes=(*result.notes, *further))
            if places.save_decisions is not None:
                staging.add_text(places.save_decisions, _decisions(result, settled))
        if report_folder is not None and (asked or result.status != "dilation left"):
            write_reports(result, report_folder, staging)
        staging.commit()
    return result


def _backend(options: CommandOptions) -> CommandOptions:
    """Return the options with the backend that engines are built for, where it is ready and none was asked for.

    Raises `UsageError` or `MissingError`, before any work, when the one that was asked for is not ready.
    """
    if options.measuring.backend != "auto":
        timed_backend(options.measuring.backend)
        return options
    if options.building is None or options.scope.decisions is not None:
        return options
    flavour = bindings.choose(options.building.flavour)
    ready = backends()[bindings.module_name(flavour)].missing() is None
    measuring = replace(options.measuring, backend=bindings.module_name(flavour))
    return replace(options, measuring=measuring) if ready else options


def _chosen_on(result: Report, started: engines.Started) -> str:
    """Return what chose the forms in an engine: the timings of a backend, or what the user said."""
    found = result.measurement
    told = next((name for name in ("strategy", "decisions") if result.options.get(name)), None)
    if told is not None:
        return f"--{told} {result.options[told]}, not measured on TensorRT"
    if found is None:
        return "nothing, not measured on TensorRT"
    if found.backend == bindings.module_name(started.flavour):
        return f"{found.backend} on {found.device}"
    return f"{found.backend}, not measured on TensorRT"


def _check_places(model: Model, path: Path, target: Path, report_folder: Path | None, options: CommandOptions) -> None:
    """Raise `UsageError` for places that nothing can or may be written to."""
    data_files = _data_files(model)
    if any(same_file(target, file) for file in data_files):
        raise UsageError(f"{shown(target)} is a data file of the input", hint=ELSEWHERE)
    check_destination(target, force=options.places.force, source=path)
    others = [path, target, *data_files]
    if options.places.save_decisions is not None:
        place = options.places.save_decisions
        if any(engines.same_place(place, other) for other in others):
            raise UsageError(f"--save-decisions {shown(place)}: is a place for a model", hint="name another file")
        check_destination(place, force=options.places.force, source=None)
        others.append(place)
    if options.measuring.cache is not None:
        place = options.measuring.cache
        if any(engines.same_place(place, other) for other in others):
            raise UsageError(f"--cache {shown(place)}: is a place for something else", hint="name another file")
    if report_folder is not None:
        check_report_folder(report_folder, others=others, force=options.places.force)


def _data_files(model: Model) -> list[Path]:
    return [model.folder / location for location in model.external_files]


def _engine_places(engine: Path, timing_cache: Path | None) -> list[Path]:
    return [engine, sidecar.place(engine), *([timing_cache] if timing_cache is not None else [])]


def _tuning(
    model: Model, found: Found, decider: Decider, settings: Settings, options: CommandOptions, progress: Progress
) -> Tuning:
    """Return what measures the model; raises `UsageError` or `MissingError` when its backend is not there."""
    measured_on = timed_backend(options.measuring.backend)
    scratch = tempfile.TemporaryDirectory(prefix="dilrewrite-") if measured_on.trial is not None else None
    sessions = Options(
        threads=options.proving.threads,
        custom_op_library=options.proving.custom_op_library,
        precision=options.building.precision if options.building is not None and scratch is not None else None,
        scratch=Path(scratch.name) if scratch is not None else None,
    )
    cache = open_cache(options.measuring.cache, none=options.measuring.no_cache)
    meter = Meter.on(measured_on, cache, Budget(options.measuring.seconds, progress=progress), sessions)
    kept = options.building.timing_cache if options.building is not None else None
    if scratch is not None and kept is not None and is_file(kept):
        shutil.copyfile(kept, Path(scratch.name) / TIMING_CACHE)
    original = Original(
        model=model, found=found, baseline=_runnable(model, model.proto, measured_on), settings=settings
    )
    min_gain = options.measuring.min_gain_percent / 100
    return Tuning(scratch=scratch, original=original, meter=meter, decider=decider, min_gain=min_gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """What was decided, the model that it makes, and what measuring says."""

    settled: Sequence[Decision]
    rewritten: Rewritten
    measurement: Measurement | None
    notes: Sequence[str]


def _decide(
    model: Model,
    found: Found,
    considered: Sequence[Considered],
    decider: Decider,
    tuning: Tuning | None,
    clock: _Clock,
    progress: Progress,
    dry_run: bool,
) -> _Made:
    """Measure, choose, prove, and confirm on the whole model."""
    scope = decider.scope
    measurement: Measurement | None = None
    open_questions = any(entry.measurable for entry in considered)
    if tuning is not None and dry_run:
        if any(entry.wanted for entry in considered):
            measurement = tuning.planned(considered)
        else:
            tuning = None  # nothing would be measured
    elif tuning is not None and open_questions:
        with clock("measure"):
            _start(tuning, decider.proving)
            tuning.measure(considered)

    def settle(stay: Mapping[str, Why]) -> list[Decision]:
        settled = []
        for number, entry in enumerate(considered):
            progress("prove", number, len(considered))
            unmeasured = SiteMeasurement(why=not_measured(Reason.NO_BUDGET))
            measured = tuning.of(entry) if tuning is not None else unmeasured
            settled.append(decider.settle(entry, measured, stay.get(entry.site.key)))
        progress("prove", len(considered), len(considered))
        return settled

    def make(settled: Sequence[Decision], only: Collection[str] | None = None) -> Rewritten:
        edits = [(d.site, d.fragment) for d in settled if d.fragment and (only is None or d.site.key in only)]
        kept = [(d.site, d.explicit) for d in settled if d.explicit]
        with clock("substitute"):
            return rewrite(model.proto, [*edits, *kept], found.normalisations, lambda t: read_tensor(model, t))

    settled = settle({})
    winners = [decision for decision in settled if decision.fragment is not None]
    wrong = any(decision.wrong for decision in settled)
    final: Rewritten | None = None
    if tuning is not None and measurement is None and winners and not wrong:
        if scope.strategy is None and not scope.eliminate:
            with clock("measure"):
                stay = tuning.confirm(winners, lambda keys: make(settled, keys).proto)
            settled = settle(stay)
        elif not (scope.eliminate and remaining(settled, found, scope)):
            final = make(settled)
            with clock("measure"):
                if open_questions or _start(tuning, decider.proving):
                    tuning.compare(final.proto, [decision.site.key for decision in winners])
    if tuning is not None and measurement is None:
        gains = {d.site.key: tuning.gain(d.site, d.strategy) for d in settled if d.fragment is not None}
        settled = [
            replace(d, measured=replace(d.measured, run=tuning.run_of(d.site)), gain=gains.get(d.site.key))
            for d in settled
        ]
        known = [gain for gain in gains.values() if gain is not None]
        predicted = 1 - sum(known) if known and len(known) == len(gains) else None
        if tuning.original.profiled is not None or tuning.failure is not None:
            if tuning.final is not None and any(decision.fragment is not None for decision in settled):
                final = final or make(settled)
                tuning.compare_layers(final.proto)
            tuning.close()
            measurement = tuning.measurement(predicted_ratio=predicted)
    return _Made(
        settled=settled,
        rewritten=final or make(settled),
        measurement=measurement,
        notes=_notes_of(tuning),
    )


def _notes_of(tuning: Tuning | None) -> list[str]:
    """Return what a reader should know of measuring besides its figures."""
    if tuning is None:
        return []
    return [*tuning.meter.ledger.cache.warnings, *filter(None, [_failure(tuning)])]


def _failure(tuning: Tuning) -> str:
    return reasons.why(tuning.failure, tuning.meter.backend.name) if tuning.failure is not None else ""


def _start(tuning: Tuning, proving: Proving) -> bool:
    """Start measuring; False: the model does not run. Data that it does not take are an error only where it must."""
    try:
        return tuning.start()
    except UsageError as error:
        if proving.verify == "full":
            raise
        tuning.failure = Why(reason=Reason.NO_DATA, said=str(error))
        return False


def _decisions(result: Report, settled: Sequence[Decision]) -> str:
    """Return the text of the decisions file."""
    measurement = result.measurement
    made_on: dict[str, object] = {}
    if measurement is not None:
        made_on = {
            "backend": measurement.backend,
            "device": measurement.device,
            "versions": dict(measurement.versions),
            "settings": dict(measurement.settings),
            "inputs": {name: list(shape) for name, shape in measurement.inputs.items()},
        }
    return decisions.render(
        result.before.sha256,
        [(d.site, d.spelling, site.reason) for d, site in zip(settled, result.sites, strict=True)],
        made_on,
    )


def _verify(
    model: Model,
    found: Found,
    rewritten: Rewritten,
    settled: Sequence[Decision],
    settings: Settings,
    seed: int,
) -> Verdict:
    """Compare the rewritten model with the original, and the original with itself disturbed."""
    backend(settings.backend.name)  # an error when it is not ready
    baseline = _runnable(model, model.proto)
    errors = [
        (decision.site, decision.proof.rounding.difference)
        for decision in settled
        if decision.fragment is not None and decision.proof is not None and decision.proof.rounding is not None
    ]
    verdict = verify(
        Subject(model.proto, model.folder, model.path),
        Subject(rewritten.proto, model.folder),
        settings,
        runnable_before=Subject(baseline, model.folder),
        runnable_after=Subject(_runnable(model, rewritten.proto), model.folder),
        disturbed=Subject(disturb(model.proto, errors, seed), model.folder)
        if errors and baseline is model.proto
        else None,
        step=_step(found),
    )
    if baseline is not model.proto:
        verdict = replace(verdict, notes=(*verdict.notes, AWKWARD))
    return verdict


def _settings(model: Model, proving: Proving) -> Settings:
    """Return how to compare whole models; raises `UsageError` for shapes and data that do not fit the model."""
    shapes = parse_shapes(proving.shapes)
    data = load_inputs(proving.inputs) if proving.inputs else {}
    known = [value.name for value in model.proto.graph.input]
    for option, names in (("--shape", shapes), ("--inputs", data)):
        for name in names:
            if name not in known:
                raise UsageError(f"{option}: the model has no input {name!r}", hint=f"its inputs: {', '.join(known)}")
    return Settings(
        backend=backends()["onnxruntime_cpu"],
        fallback=backends()["reference"],
        rtol=proving.rtol,
        atol=proving.atol,
        shapes=shapes,
        inputs=data,
        seed=proving.seed,
        threads=proving.threads,
        custom_op_library=proving.custom_op_library,
    )


AWKWARD = (
    "ONNX Runtime does not run some of the original's Convs (SAME_* with dilation, negative pads); "
    "the comparison is with the same Convs behind explicit pads, a Pad or a Slice"
)


def _runnable(model: Model, proto: ModelProto, *backends: TimedBackend) -> ModelProto:
    """Return `proto` with the Convs explicit that ONNX Runtime or a backend refuses; itself when there is none."""
    runtimes = (timed_backends()["onnxruntime_cpu"], *backends)
    found = find(proto)
    awkward: list[tuple[Site, Fragment]] = []
    for site in found.sites:
        if any(runtime.refuses(site.geometry) for runtime in runtimes):
            fragment = plan("keep", strategies()["keep"], site.geometry, site.opset, storage=site.storage)
            if isinstance(fragment, Fragment):
                awkward.append((site, fragment))
    if not awkward:
        return proto
    return rewrite(proto, awkward, found.normalisations, lambda tensor: read_tensor(model, tensor)).proto


def _step(found: Found) -> int:
    """Return what lengths are a multiple of in one case and not in another: all dilations, within reason."""
    return min(max(math.lcm(*(d for site in found.sites for d in site.geometry.dilations)), 2), 256)


def _spill(model: Model, rewritten: Rewritten) -> list[str]:
    """Return new weights that go to a data file: all of 1 KiB and more, when the model keeps its weights outside."""
    if not model.external_files:
        return []
    added = set(rewritten.added_tensors)
    return [t.name for t in rewritten.proto.graph.initializer if t.name in added and len(t.raw_data) >= 1024]


def _report(
    model: Model,
    found: Found,
    made: _Made,
    changed: bool,
    verdict: Verdict | None,
    remaining: Sequence[Decision | Skipped],
    target: Path,
    options: CommandOptions,
    clock: _Clock,
) -> Report:
    settled = made.settled
    on = made.measurement.backend if made.measurement is not None else ""
    sites = tuple(report.describe_site(decision, on) for decision in settled)
    edits = sum(decision.fragment is not None for decision in settled)
    if verdict is not None and not verdict.passed:
        status = "differs"
    elif verdict is not None and verdict.checker_after:
        status = "not valid"
    elif remaining:
        status = "dilation left"
    elif edits:
        status = "rewritten"
    elif found.sites:
        cores = report.environment(options.proving.threads).cores
        blind = not options.places.dry_run and report.inconclusive(sites, made.measurement, cores)
        status = "inconclusive" if blind else "kept"
    else:
        status = "nothing to rewrite"
    written = status not in ("differs", "not valid", "dilation left")
    told = {d.why.said for d in settled if d.why.reason is Reason.TOO_NEW and d.explicit is None}
    left = sum(decision.max_dilation > 1 for decision in settled)
    after = None
    peaks = verdict.peak_bytes if verdict is not None else (None, None)
    if written:
        after = report.describe_model(
            model,
            made.rewritten.proto if changed else model.proto,
            path=shown(target),
            dilated=report.dilated_convolutions(left, found.skipped),
            peak_bytes=peaks[1],
        )
    return Report(
        command="optimize",
        status=status,
        before=report.describe_model(model, model.proto, dilated=_dilated(found), peak_bytes=peaks[0]),
        after=after,
        output=shown(target) if written and not options.places.dry_run else None,
        options=_plain(options),
        sites=sites,
        skipped=found.skipped,
        normalised=found.normalisations,
        remaining=tuple(reasons.left(node, on) for node in remaining),
        verdict=verdict,
        measurement=made.measurement,
        environment=report.environment(options.proving.threads),
        seconds=clock.seconds,
        notes=(*made.notes, *_notes(found, options), *(r for r in found.remarks if r not in told)),
    )


def _plain(options: CommandOptions) -> dict[str, object]:
    building = {"build_engine": options.building.plain()} if options.building is not None else {}
    return {**options.plain(), **building}


def _notes(found: Found, options: CommandOptions) -> tuple[str, ...]:
    """Return what the user may have meant otherwise."""
    named = [(site.where, site.name, site.output) for site in found.sites]
    named += [(node.where, node.name, "") for node in found.skipped]
    return tuple(
        f"{option} {pattern} matches no dilated node"
        for option, pattern in (("--only", options.scope.only), ("--skip", options.scope.skip))
        if pattern is not None and not any(matches(pattern, *names) for names in named)
    )


# -- verify --------------------------------------------------------------------------------------------------------


def verify_files(before: Path, after: Path, options: CommandOptions) -> Report:
    """Compare two models as wholes; see `dilrewrite.verify`."""
    options.check()
    if sidecar.is_engine(after):
        return _verify_engine(before, after, options)
    clock, report_folder = _Clock(), options.places.report
    with clock("load"):
        first, second = load(before), load(after)
    check_calls(first.proto, shown(before))
    check_calls(second.proto, shown(after))
    if report_folder is not None:
        check_report_folder(report_folder, others=[before, after])
    found, found_after = find(first.proto), find(second.proto)
    settings = _settings(first, options.proving)
    backend(settings.backend.name)  # an error when it is not ready
    with clock("verify"):
        baseline, other = _runnable(first, first.proto), _runnable(second, second.proto)
        verdict = verify(
            Subject(first.proto, first.folder, first.path),
            Subject(second.proto, second.folder, second.path),
            settings,
            runnable_before=None if baseline is first.proto else Subject(baseline, first.folder),
            runnable_after=None if other is second.proto else Subject(other, second.folder),
            step=_step(found),
        )
        if baseline is not first.proto or other is not second.proto:
            verdict = replace(verdict, notes=(*verdict.notes, AWKWARD))
    result = Report(
        command="verify",
        status="differs" if not verdict.passed else "not compared" if verdict.skipped else "equal",
        before=report.describe_model(first, first.proto, dilated=_dilated(found), peak_bytes=verdict.peak_bytes[0]),
        after=report.describe_model(
            second, second.proto, dilated=_dilated(found_after), peak_bytes=verdict.peak_bytes[1]
        ),
        options=options.plain(),
        skipped=found_after.skipped,
        verdict=verdict,
        environment=report.environment(options.proving.threads),
        seconds=clock.seconds,
        notes=tuple(dict.fromkeys((*found.remarks, *found_after.remarks))),
    )
    _write(result, report_folder)
    return result


@dataclass(frozen=True, slots=True)
class Exports:
    """Files for the times of all runs, and for the time by layer, in trtexec's formats."""

    places: Places

    def check(self, others: Sequence[Path]) -> None:
        """Raise `UsageError` for places that nothing can be written to; an export of before is replaced."""
        asked = (("--export-times", self.places.export_times), ("--export-profile", self.places.export_profile))
        taken = list(others)
        for number, (option, first) in itertools.product(range(len(others)), asked):
            if first is not None:
                place = _other(first, number)
                if any(engines.same_place(place, other) for other in taken):
                    raise UsageError(
                        f"{option} {shown(place)}: is a place for something else", hint="name another file"
                    )
                check_destination(place, force=True, source=None)
                taken.append(place)

    def write(self, meter: Meter, runnables: Sequence[Runnable], feeds: Mapping[str, Array]) -> None:
        """Write what was asked for; the profile is made now, in a pass of its own."""
        with Staging(force=True) as staging:
            for number, runnable in enumerate(runnables):
                if self.places.export_times is not None:
                    runs = [{"computeMs": seconds * 1e3} for seconds in meter.last.samples[number]]
                    staging.add_text(_other(self.places.export_times, number), json.dumps(runs, indent=1) + "\n")
                if self.places.export_profile is not None:
                    found = profiled(meter.backend, runnable, meter.options, feeds, PROFILE_RUNS)
                    staging.add_text(
                        _other(self.places.export_profile, number), json.dumps(_layers(found), indent=1) + "\n"
                    )
            staging.commit()


PROFILE_RUNS = 20


def _other(place: Path, number: int) -> Path:
    return place if number == 0 else place.with_name(f"{place.stem}.other{place.suffix}")


def _layers(profile: Profile) -> list[dict[str, object]]:
    """Return a profile as trtexec's --exportProfile has it."""
    by_name: dict[str, list[float]] = {}
    for run in profile.nodes:
        by_name.setdefault(run.name, []).append(run.seconds * 1e3)
    whole = sum(map(sum, by_name.values())) or 1.0
    found: list[dict[str, object]] = [{"count": profile.runs}]
    for name, values in by_name.items():
        total = sum(values)
        found.append(
            {
                "name": name,
                "timeMs": total,
                "averageMs": total / len(values),
                "medianMs": statistics.median(values),
                "percentage": 100 * total / whole,
            }
        )
    return found


def _verify_engine(before: Path, after: Path, options: CommandOptions) -> Report:
    """Compare an engine's outputs with those of a model on ONNX Runtime. Needs the GPU that it was built for."""
    clock, report_folder = _Clock(), options.places.report
    known = sidecar.read(after)
    _check_runs(after, known)
    with clock("load"):
        model = load(before)
    if report_folder is not None:
        check_report_folder(report_folder, others=[before, after])
    settings = _settings(model, options.proving)
    found = find(model.proto)
    sizes = {name: profile.opt for name, profile in known.profiles.items()}
    with clock("verify"):
        try:
            verdict = engines.outputs_agree(
                Runnable(model=before),
                Runnable(model=after, engine=True),
                known.flavour,
                known.precision.built,
                sizes,
                settings,
            )
        except engines.NoAnswer as error:
            raise FailedError(f"{shown(before)}: {error}") from error
        except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
            raise FailedError(f"{shown(after)}: {error}", hint=_foreign(known)) from error
    result = Report(
        command="verify",
        status="equal" if verdict.passed else "differs",
        before=report.describe_model(model, model.proto, dilated=_dilated(found)),
        after=report.describe_engine(known, shown(after)),
        options=options.plain(),
        verdict=verdict,
        engine=known,
        environment=report.environment(options.proving.threads),
        seconds=clock.seconds,
    )
    _write(result, report_folder)
    return result


def _check_runs(path: Path, known: EngineReport) -> None:
    """Raise `MissingError` where an engine cannot run here."""
    why = backends()[bindings.module_name(known.flavour)].missing()
    if why is not None:
        raise MissingError(f"{shown(path)} cannot run here: {why}")


def _foreign(known: EngineReport) -> str:
    """Return where an engine was built for, for the case that it is another place."""
    built_on = f" on {known.device}" if known.device is not None else ""
    return f"it was built by {known.flavour} {known.version}{built_on}; build it again for this GPU"


# -- build ---------------------------------------------------------------------------------------------------------


def build_file(
    path: Path, options: CommandOptions, *, progress: Progress = silent, tell: Callable[[str], None] | None = None
) -> Report:
    """Build the engine of the model at `path`; see `dilrewrite.build`."""
    options.check()
    building = options.building or Building()
    with engines.on_device(building.device):
        return _build(path, building, options, progress, tell)


def _build(
    path: Path, building: Building, options: CommandOptions, progress: Progress, tell: Callable[[str], None] | None
) -> Report:
    places = options.places
    save_onnx, export_layers, report_folder = places.save_onnx, places.export_layer_info, places.report
    clock = _Clock()
    with clock("load"):
        model = load(path)
    check_calls(model.proto, shown(path))
    target = places.output or path.with_suffix(".engine")
    started = engines.start(model, building, parse_shapes(options.proving.shapes))
    others, taken = [path, *_data_files(model)], _engine_places(target, building.timing_cache)
    engines.check_places(target, force=places.force, others=others, timing_cache=building.timing_cache)
    for option, place in (("--save-onnx", save_onnx), ("--export-layer-info", export_layers)):
        if place is None:
            continue
        if any(engines.same_place(place, other) for other in (*others, *taken)):
            raise UsageError(f"{option} {shown(place)}: is a place for something else", hint="name another file")
        check_destination(place, force=places.force, source=None)
        taken.append(place)
    if report_folder is not None:
        check_report_folder(report_folder, others=[*others, *taken], force=places.force)
    settings = _settings(model, options.proving)
    with clock("find"):
        found = find(model.proto)
    with clock("build"):
        engine = engines.make(
            started,
            model.proto,
            target,
            settings,
            chosen_on="the model as it was given, not measured on TensorRT",
            progress=progress,
            tell=tell,
        )
    result = Report(
        command="build",
        status="built",
        before=report.describe_model(model, model.proto, dilated=_dilated(found)),
        output=shown(target),
        options={**options.plain(), **building.plain()},
        skipped=found.skipped,
        verdict=engine.check,
        engine=engine.report,
        environment=report.environment(options.proving.threads),
        seconds=clock.seconds,
    )
    with Staging(force=places.force) as staging:
        engines.stage(engine, target, staging)
        if save_onnx is not None:
            left = stage_model(model, engine.prepared.proto, save_onnx, staging, external_data="auto", spill=[])
            result = replace(result, notes=(*result.notes, *left))
        if export_layers is not None:
            staging.add_text(export_layers, sidecar.layer_information(engine.report))
        if report_folder is not None:
            write_reports(result, report_folder, staging)
        staging.commit()
    return result


# -- bench ---------------------------------------------------------------------------------------------------------


def time_files(first: Path, second: Path | None, options: CommandOptions, *, progress: Progress = silent) -> Report:
    """Time two models against each other, or one against itself; see `dilrewrite.bench`."""
    options.check()
    _backend(options)
    if sidecar.is_engine(first) or (second is not None and sidecar.is_engine(second)):
        return _time_engines(first, second, options, progress)
    exports, report_folder = Exports(options.places), options.places.report
    exports.check([first] if second is None else [first, second])
    clock = _Clock()
    with clock("load"):
        before = load(first)
        after = load(second) if second is not None else None
    check_calls(before.proto, shown(first))
    if after is not None:
        check_calls(after.proto, shown(second or first))
    if report_folder is not None:
        check_report_folder(report_folder, others=[first] if second is None else [first, second])
    if second is not None and after is not None:
        _check_same_inputs(before.proto, after.proto, shown(second))
    settings = _settings(before, options.proving)
    found = find(before.proto)
    found_after = find(after.proto) if after is not None else found
    other = after or before
    meter = Meter.on(
        timed_backend(options.measuring.backend),
        open_cache(None, none=True),
        Budget(options.measuring.seconds, progress=progress),
        Options(threads=options.proving.threads, custom_op_library=options.proving.custom_op_library),
    )
    original = Original(model=before, found=found, baseline=_runnable(before, before.proto), settings=settings)
    decider = Decider(options.scope, options.proving, Source(before.proto))
    tuning = Tuning(original=original, meter=meter, decider=decider)
    runnable = _runnable(other, other.proto)
    subject = Subject(runnable, other.folder, other.path if runnable is other.proto else None)
    with clock("measure"):
        try:
            tuning.time_against(subject)
            others = [] if after is None else [subject.runnable()]
            exports.write(meter, [original.runnable(), *others], original.feeds)
        finally:
            tuning.close()
    result = Report(
        command="bench",
        status="measured",
        before=report.describe_model(before, before.proto, dilated=_dilated(found)),
        after=report.describe_model(after, after.proto, dilated=_dilated(found_after)) if after is not None else None,
        options=options.plain(),
        skipped=found_after.skipped,
        measurement=tuning.measurement(),
        environment=report.environment(options.proving.threads),
        seconds=clock.seconds,
        notes=(*_notes_of(tuning), *dict.fromkeys((*found.remarks, *found_after.remarks))),
    )
    _write(result, report_folder)
    return result


def _time_engines(first: Path, second: Path | None, options: CommandOptions, progress: Progress) -> Report:
    """Time two engines of one flavour against each other, or one against itself."""
    exports, report_folder = Exports(options.places), options.places.report
    paths = [first] if second is None else [first, second]
    for path in paths:
        if not sidecar.is_engine(path):
            raise UsageError(
                f"{shown(path)} is a model, and the other an engine: they are not timed against each other",
                hint="build the model's engine with `dilrewrite build`, and time the two engines",
            )
    known = [sidecar.read(path) for path in paths]
    flavours = {found.flavour for found in known}
    if len(flavours) > 1:
        raise UsageError(f"the engines are of {' and '.join(sorted(flavours))}: they do not run in one library")
    inputs = [{tensor.name: tensor.datatype for tensor in engine.inputs} for engine in known]
    if inputs[0] != inputs[-1]:
        told = [", ".join(f"{name} ({kind})" for name, kind in some.items()) for some in (inputs[-1], inputs[0])]
        raise UsageError(
            f"{shown(paths[-1])}: its inputs are {told[0]}, not {told[1]}",
            hint="only engines that take the same inputs can be timed against each other",
        )
    name = bindings.module_name(known[0].flavour)
    if options.measuring.backend not in ("auto", name):
        raise UsageError(
            f"--backend {options.measuring.backend}: the engine is of {known[0].flavour}", hint="leave it out"
        )
    _check_runs(first, known[0])
    if report_folder is not None:
        check_report_folder(report_folder, others=paths)
    exports.check(paths)
    clock = _Clock()
    timed = timed_backend(name)
    scratch = tempfile.TemporaryDirectory(prefix="dilrewrite-")
    meter = Meter.on(
        timed,
        open_cache(None, none=True),
        Budget(options.measuring.seconds, progress=progress),
        Options(threads=options.proving.threads, scratch=Path(scratch.name)),
    )
    shapes = {name: profile.opt for name, profile in known[0].profiles.items()} | dict(
        parse_shapes(options.proving.shapes)
    )
    data = load_inputs(options.proving.inputs) if options.proving.inputs else {}
    runnables = [Runnable(model=path.absolute(), engine=True) for path in (first, second or first)]
    before = timed.state()
    with clock("measure"):
        try:
            meter.budget.begin()
            with timed.session(runnables[0], meter.options) as session:
                given = {name: shape for name, shape in shapes.items() if name not in data}
                chooser = Chooser(session.inputs, given=given, user=data, seed=options.proving.seed)
                case, _ = chooser.first(session.run)
            final = meter.whole(runnables[0], runnables[1], ("", ""), case.feeds, run_s=meter.budget.run_s)
            exports.write(meter, runnables[: len(paths)], case.feeds)
        except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
            raise FailedError(f"{shown(first)}: {error}", hint=_foreign(known[0])) from error
        finally:
            meter.close()
            scratch.cleanup()
    measurement = meter.measurement(case.feeds, final=final, state_before=before)
    result = Report(
        command="bench",
        status="measured",
        before=report.describe_engine(known[0], shown(first)),
        after=report.describe_engine(known[-1], shown(paths[-1])) if second is not None else None,
        options=options.plain(),
        measurement=measurement,
        engine=known[0],
        environment=report.environment(options.proving.threads),
        seconds=clock.seconds,
    )
    _write(result, report_folder)
    return result


def _check_same_inputs(first: ModelProto, second: ModelProto, other: str) -> None:
    """Raise `UsageError` unless what the `first` model takes can be given to the `second`, which is called `other`."""
    ours, theirs = _inputs(first), _inputs(second)
    hint = "only models that take the same inputs can be timed against each other"
    if ours.keys() != theirs.keys():
        names = [", ".join(map(repr, found)) or "none" for found in (theirs, ours)]
        raise UsageError(f"{other}: its inputs are {names[0]}, not {names[1]}", hint=hint)
    for name, (element, sizes) in ours.items():
        kind, others = theirs[name]
        known = bool(sizes) and bool(others)
        clash = len(sizes) != len(others) or any(a != b for a, b in zip(sizes, others, strict=False) if a and b)
        if element != kind or (known and clash):
            told = [
                f"{word.lower()} {'x'.join(str(size or '?') for size in some)}"
                for word, some in ((kind, others), (element, sizes))
            ]
            raise UsageError(f"{other}: its input {name!r} is {told[0]}, not {told[1]}", hint=hint)


def _inputs(proto: ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return element type and sizes (0: not known) of each input that has no value of its own; no sizes: no tensor."""
    own = {tensor.name for tensor in proto.graph.initializer}
    found = {}
    for value in proto.graph.input:
        if value.name not in own:
            kind = value.type.tensor_type
            found[value.name] = (
                TensorProto.DataType.Name(kind.elem_type),
                tuple(size.dim_value for size in kind.shape.dim),
            )
    return found
