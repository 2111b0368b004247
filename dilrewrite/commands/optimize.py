"""The whole way: load, find, plan, measure, choose, prove, substitute, confirm, verify, report, save."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dilrewrite import devices, targets
from dilrewrite.choice import decisions, fits, regions, whole
from dilrewrite.choice.decide import Decider, is_pool, left_out, matches, remaining
from dilrewrite.choice.decision import Decision
from dilrewrite.choice.fits import Fitter
from dilrewrite.choice.reason import Reason
from dilrewrite.choice.tune import Tuning
from dilrewrite.choice.whole import Choosing, Chosen
from dilrewrite.commands import micro
from dilrewrite.commands.places import Claims, data_files
from dilrewrite.commands.run import Run, dilated, failure, files, notes_of, to_fold
from dilrewrite.devices import Device
from dilrewrite.errors import UsageError, shown
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.strategies import FOLD
from dilrewrite.keywords import Progress, silent
from dilrewrite.model.light import with_sizes
from dilrewrite.model.save import stage_model
from dilrewrite.model.tensors import InMemory, Model, read_tensor
from dilrewrite.model.walk import copied, fed
from dilrewrite.options import CommandOptions, Scope
from dilrewrite.proof import fused, trial
from dilrewrite.proof.carve import Source
from dilrewrite.proof.inputs import parse_shapes
from dilrewrite.proof.observe import Observer
from dilrewrite.proof.verdict import Settings, Verdict
from dilrewrite.reports import describe, reasons, report, write_reports
from dilrewrite.reports.report import RegionReport, Report, SiteReport
from dilrewrite.reports.units import listed
from dilrewrite.runtimes import TimeKind, backends
from dilrewrite.sites import Found, Site, Skipped
from dilrewrite.sites.find import with_pools
from dilrewrite.splice.plain import plain
from dilrewrite.splice.rewrite import Rewritten, mark
from dilrewrite.staging import Staging
from dilrewrite.targets import Judgement
from dilrewrite.tensorrt import bindings, engines

LEFT = ("dilation left", "does not fit")
"""Statuses where something stays that was to go: for a device without dilation, and for a named target."""


def optimize(
    place: Path | InMemory,
    options: CommandOptions,
    *,
    beside: bool = False,
    progress: Progress = silent,
    command: str = "optimize",
) -> Report:
    """Rewrite the model at `place`, prove it, and write it to the output (`None`: `<stem>.dilrewrite.onnx` beside it).

    A model in memory is written only where an output is named. Else no file is, not even that of timings.
    `beside`: without a folder for reports, they go to `<output stem>.report` beside the output, except when dilation is
    left that should go: then nothing at all is written. `command`: what the report is of. Returns the report; when
    results differ or dilation is left, no model is written and `report.exit_code` says so.
    """
    options.check()
    measuring = options.measuring
    if isinstance(place, InMemory) and options.places.output is None:
        if beside or options.building is not None:
            what = "report='beside'" if beside else "build_engine"
            raise UsageError(f"{what} with {place}: nothing says where files go", hint="name an output")
        if measuring.cache is None:
            options = replace(options, measuring=replace(measuring, no_cache=True))
    gpu = options.building.device if options.building is not None else None
    with engines.on_device(gpu), devices.device(measuring.on) as device:
        job = _job(Run(command, _with_backend(options, device), progress, device=device), place, beside=beside)
        done = _done(job, _choosing(job))
        result = _report(job, done)
        return result if options.places.dry_run else _written(job, done, result)


@dataclass(frozen=True, slots=True)
class _Job:
    """A model, and where what it becomes goes; `target`: `None` where that stays in memory.

    `loaded`: as it is in its file; `model`: for a device it has the sizes that were given.
    """

    run: Run
    loaded: Model
    model: Model
    found: Found
    settings: Settings
    target: Path | None
    engine: Path
    started: engines.Started | None
    fitter: Fitter | None
    reports: Path | None

    @property
    def sites(self) -> tuple[Site, ...]:
        """Return what the command rewrites."""
        return self.found.sandwiches if self.run.command == "fold" else self.found.sites


@dataclass(frozen=True, slots=True)
class _Done:
    """What was chosen, whether that changes the model, the dilation that is left and should not be, and the verdict."""

    choosing: Choosing
    chosen: Chosen
    notes: Sequence[str]
    changed: bool
    left: Sequence[Decision | Skipped]
    verdict: Verdict | None
    fits: Judgement | None


def _job(run: Run, place: Path | InMemory, *, beside: bool) -> _Job:
    """Load the model, and check everything that can be before long work."""
    options, places = run.options, run.options.places
    loaded = model = plain(run.load(place), fused=options.building is None)  # an engine is built of what stays, too
    ending = "folded" if run.command == "fold" else "dilrewrite"
    usual = place.with_name(f"{place.stem}.{ending}.onnx") if isinstance(place, Path) else None
    target = places.output or usual
    if target is not None and not target.name:
        raise UsageError(f"{target} is a folder, not a place for a file", hint="name a file in it")
    engine = places.engine or (target or Path("model")).with_suffix(".engine")
    started = None
    if options.building is not None:
        sizes = parse_shapes(options.proving.shapes, [value.name for value in fed(model.proto)])
        started = engines.start(model, options.building, sizes, run.device.builder(options.building))
    reports = places.report or (target.with_name(f"{target.stem}.report") if beside and target is not None else None)
    if not places.dry_run:
        claims = Claims([*files(place), *data_files(model)], force=places.force)
        if target is not None:
            claims.model(target, model)
        claims.claim(places.save_decisions, "--save-decisions", kind="a model")
        if options.measuring.cache is not None:
            claims.keep(options.measuring.cache, "--cache")
        if options.building is not None:
            claims.engine(engine, options.building.timing_cache)
        claims.folder(places.keep_micro, "--keep-micro")
        claims.reports(reports, places.report_format)
    settings = trial.settings(model, options.proving)
    if options.scope.target is not None:
        model = _sized(loaded, settings)
    if started is not None:
        engines.measured_sizes(started, settings)  # an error before long work
    if run.command == "fold":  # its Convs stay as they are
        found = replace(run.find(model, sandwiches=True), normalisations=())
    else:
        found = _with_pools(run.find(model, regions=True, sandwiches=True), options.scope)
        found = _with_sandwiches(found, options.scope)
    _check_only(_named(run, found), options.scope.only)
    fitter = None
    if options.scope.target is not None:  # an error before long work
        profile = targets.find(options.scope.target)
        fitter = _fitter(run, profile, model, settings)
        lifts = (one for one in found.regions if isinstance(one.meaning, Chain) and not one.meaning.block)
        found = replace(found, normalisations=(), regions=tuple(lifts))
    return _Job(run, loaded, model, found, settings, target, engine, started, fitter, reports)


def _fitter(run: Run, profile: targets.Profile, model: Model, settings: Settings) -> Fitter:
    """Return what holds forms to a target, for its judge if one is named. Raises `UsageError` for another backend."""
    judged, forms = False, tuple[str, ...]()
    if (measuring := run.options.measuring).backend != "auto":
        judge = run.device.backend(measuring.backend)
        fits.check_judge(judge, profile)
        judged, forms = measuring.seconds > 0, judge.forms
    read = functools.partial(read_tensor, model)
    return Fitter(profile, model.proto, settings.shapes, read, judged=judged, forms=forms)


def _sized(loaded: Model, settings: Settings) -> Model:
    """Return a model whose inputs have the sizes that were given: a compiler of a device asks for them."""
    if not settings.shapes:
        return loaded
    protos = [copied(proto) for proto in (loaded.proto, loaded.given) if proto is not None]
    for proto in protos:
        with_sizes(proto, settings.shapes)
    return replace(loaded, proto=protos[0], given=protos[1] if len(protos) > 1 else None)


def _with_pools(found: Found, scope: Scope) -> Found:
    """Return what was found, with the poolings where they are to be rewritten: by the options, or by the decisions."""
    asked = scope.eliminate or scope.target is not None or (scope.strategy or "").partition(":")[0] == "phase_pools"
    if scope.decisions is not None:
        decided = decisions.read(scope.decisions)
        asked = any(site.key in decided for site in found.pools)
    return with_pools(found) if asked else found


def _with_sandwiches(found: Found, scope: Scope) -> Found:
    """Return what was found, with the sandwiches that share no node with another site as sites like any other.

    Of those that a decisions file does not know nothing is decided. Where dilation is to go by `--eliminate`, or a form
    of Convs is asked for, sandwiches are none of it: they hold no dilated Conv.
    """
    taken = {(one.scope, index) for one in (*found.sites, *found.regions) for index in (*one.nodes, *one.follow)}
    apart = [one for one in found.sandwiches if not any((one.scope, index) in taken for index in one.nodes)]
    if scope.decisions is not None:
        decided = decisions.read(scope.decisions)
        apart = [one for one in apart if one.key in decided]
    elif scope.eliminate or (scope.strategy or FOLD).partition(":")[0] != FOLD:
        return replace(found, sandwiches=(), remarks=(*found.remarks, *to_fold(apart)))
    return replace(found, sites=(*found.sites, *apart), sandwiches=())


def _choosing(job: _Job) -> Choosing:
    """Return what chooses the forms."""
    run, options, model, found = job.run, job.run.options, job.model, job.found
    decided = None
    if options.scope.decisions is not None:
        decided = decisions.read(options.scope.decisions)
        decisions.check(options.scope.decisions, decided, found)
    proofs = functools.partial(run.clock, "prove")
    read = functools.partial(read_tensor, model)
    judged = job.fitter is None or job.fitter.judged
    name, measured = options.measuring.backend, decided is None and judged and options.measuring.seconds > 0
    runtime = run.device.backend(name) if job.sites and (measured or name != "auto") else None
    decider = Decider(
        options.scope, options.proving, Source(model.proto), decided,
        around=proofs, read=read, fitter=job.fitter, runtime=runtime,
    )  # fmt: skip
    with run.clock("plan"):
        considered = [decider.consider(site) for site in job.sites]
        around = regions.consider(decider, found)
    tuning = None
    if (job.sites or around) and measured:
        tuning = _tuning(job, decider)
        if not options.scope.eliminate:
            around = [entry for entry in around if regions.may_gain(entry, tuning.meter.backend)]
    if not options.places.dry_run:
        decider.seen = Observer(model, [entry.site for entry in around], job.settings).of
    return Choosing(model, found, around, considered, decider, tuning, run.clock, run.progress)


def _tuning(job: _Job, decider: Decider) -> Tuning:
    """Return what measures the model."""
    settings, options = job.settings, job.run.options
    if job.started is not None:
        settings = replace(settings, shapes=engines.measured_sizes(job.started, settings))
    how = options.measuring, options.building, job.run.progress, job.run.device
    return whole.tuning(job.model, job.found, decider, settings, *how)


def _done(job: _Job, choosing: Choosing) -> _Done:
    """Choose, and prove what was chosen."""
    scope, proving = job.run.options.scope, job.run.options.proving
    measures = choosing.tuning
    try:
        chosen = choosing.plan() if job.run.options.places.dry_run else choosing.choose()
    finally:
        if measures is not None:
            measures.close()
    _check_runs(job, measures, chosen)
    settled, every = chosen.settled, (*chosen.regions, *chosen.settled)
    changed = bool(any(d.fragment or d.explicit for d in every) or job.found.normalisations)
    if proving.verify == "none" and changed:
        mark(chosen.rewritten.proto, "unverified")
    left: Sequence[Decision | Skipped] = ()
    if scope.eliminate or job.fitter is not None:
        left = remaining(settled, job.found, scope, pools=_for_tensorrt(job.run))
    fits: Judgement | None = None
    broken: tuple[str, ...] = ()
    if job.fitter is not None:
        left = (*left, *(one for one in job.fitter.stuck(job.found.skipped) if left_out(scope, one) is None))
        fits, broken = job.fitter.after(chosen.rewritten.proto, {one.site.key for one in settled if one.fragment})
    wrong = (*(reasons.wrong(decision) for decision in every if decision.wrong), *broken)
    if measures is not None and measures.differs is not None:
        wrong = (*wrong, reasons.words(measures.differs, measures.meter.backend.name))
    if changed and proving.verify != "none":
        with job.run.clock("prove"):
            wrong = (*wrong, *fused.unequal(job.model, threads=proving.threads, seed=proving.seed))
    verdict = None
    if wrong:
        verdict = Verdict(level=proving.verify, passed=False, failures=wrong, skipped="a form is wrong")
    elif not left:  # else nothing will be written
        verdict = _verdict(job, chosen, changed)
    return _Done(choosing, chosen, notes_of(choosing.tuning), changed, left, verdict, fits)


def _check_runs(job: _Job, tuning: Tuning | None, chosen: Chosen) -> None:
    """Raise `UsageError` when the runtime that was named for a choice by timings does not run the model."""
    options = job.run.options
    asked = (options.measuring.backend != "auto" and options.building is None) or options.measuring.on is not None
    if tuning is None or tuning.failure is None or not asked or options.scope.strategy or options.scope.eliminate:
        return
    if any(one.considered.must_go for one in (*chosen.regions, *chosen.settled)):
        return
    if tuning.failure.reason in (Reason.MODEL_FAILED, Reason.TRIAL_FAILED):
        tried = tuning.failure.reason is Reason.TRIAL_FAILED and not tuning.here  # here, as for every backend
        hint = "say with --shape or --inputs what to run it on" if tried else job.run.device.otherwise
        raise UsageError(f"{job.model.name}: {failure(tuning)}", hint=f"{hint}, or --budget 0 to measure nothing")


def _for_tensorrt(run: Run) -> bool:
    """Say whether the result is for TensorRT, which takes no dilated pooling."""
    options = run.options
    timed = run.device.backend(options.measuring.backend).name if options.measuring.backend != "auto" else ""
    return options.building is not None or timed in map(bindings.module_name, bindings.FLAVOURS)


def _verdict(job: _Job, chosen: Chosen, changed: bool) -> Verdict | None:
    level = job.run.options.proving.verify
    if level == "none":
        return Verdict(level="none", passed=True, skipped="--verify none: the result is unverified")
    if not changed:
        return None
    if level != "full":
        return Verdict(level="sites", passed=True, skipped="--verify sites: the whole model was not run")
    errors = [
        (decision.site, decision.proof.difference)
        for decision in (*chosen.regions, *chosen.settled)
        if decision.fragment is not None and decision.proof is not None and decision.proof.difference is not None
    ]
    job.run.progress("verify", 0, 1)
    with job.run.clock("verify"):
        verdict = trial.compare_rewritten(job.model, job.found, chosen.rewritten.proto, errors, job.settings)
    job.run.progress("verify", 1, 1)
    return verdict


def _status(job: _Job, done: _Done, sites: Sequence[SiteReport], around: Sequence[RegionReport]) -> str:
    verdict, options = done.verdict, job.run.options
    if verdict is not None and not verdict.passed:
        return "differs"
    if verdict is not None and verdict.checker_after:
        return "not valid"
    if done.left:
        return LEFT[job.fitter is not None]
    if any(decision.fragment is not None for decision in (*done.chosen.regions, *done.chosen.settled)):
        return "rewritten"
    if not job.sites:
        return "nothing to rewrite"
    cores = report.environment(options.proving.threads).cores
    blind = not options.places.dry_run and report.inconclusive(sites, done.chosen.measurement, cores, around)
    return "inconclusive" if blind else "kept"


def _report(job: _Job, done: _Done) -> Report:
    found, options, verdict = job.found, job.run.options, done.verdict
    settled, measurement = done.chosen.settled, done.chosen.measurement
    on, counts = (measurement.backend, measurement.source is TimeKind.ESTIMATED) if measurement else ("", False)
    sites = tuple(describe.site(decision, on, estimates=counts) for decision in settled)
    dilations = {site.key: site.max_dilation_left for site in sites}
    around = tuple(describe.region(decision, on, dilations, estimates=counts) for decision in done.chosen.regions)
    status = _status(job, done, sites, around)
    written = status not in ("differs", "not valid", *LEFT)
    told = {d.why.said for d in settled if d.why.reason is Reason.TOO_NEW and d.explicit is None}
    left = sum(decision.max_dilation > 1 and not is_pool(decision) for decision in settled)
    left += len(found.sites) if job.run.command == "fold" else 0
    after = None
    peaks = verdict.peak_bytes if verdict is not None else (None, None)
    if written:
        after = describe.model(
            job.loaded,
            done.chosen.rewritten.proto if done.changed else job.loaded.original,
            path=shown(job.target) if job.target is not None else "the rewritten model in memory",
            dilated=report.dilated_convolutions(left, found.skipped),
            peak_bytes=peaks[1],
        )
    building = {"build_engine": options.building.plain()} if options.building is not None else {}
    return job.run.report(
        status,
        before=describe.model(job.loaded, job.loaded.original, dilated=dilated(found), peak_bytes=peaks[0]),
        after=after,
        output=shown(job.target) if written and job.target is not None and not options.places.dry_run else None,
        options={**options.plain(), **building},
        sites=sites,
        regions=around,
        example=describe.example((*done.chosen.regions, *settled)) if status == "rewritten" else None,
        skipped=() if job.run.command == "fold" else found.skipped,
        unfolded=found.unfolded,
        normalised=found.normalisations,
        remaining=tuple(reasons.left(node, on) for node in done.left),
        verdict=verdict,
        measurement=measurement,
        target=targets.report(job.fitter.profile, done.fits) if job.fitter is not None and done.fits else None,
        notes=(
            *done.notes,
            *_unmatched(_named(job.run, found), options.scope),
            *(r for r in found.remarks if r not in told),
            *_sizes(job, done),
            *(job.fitter.unasked() if job.fitter is not None else ()),
        ),
    )


def _sizes(job: _Job, done: _Done) -> list[str]:
    """Return which sizes the written model has that were open."""
    if job.model is job.loaded or not done.changed:
        return []
    sizes = (f"{name}:{'x'.join(map(str, shape))}" for name, shape in job.settings.shapes.items())
    return [f"the written model takes the sizes that were given, and no others: {', '.join(sizes)}"]


def _named(run: Run, found: Found) -> list[Site | Skipped]:
    """Return the nodes that --only and --skip may name."""
    return [*found.sandwiches] if run.command == "fold" else [*found.sites, *found.skipped]


def _check_only(nodes: Sequence[Site | Skipped], only: str | None) -> None:
    """Raise `UsageError` for an `--only` that leaves nothing of a model with dilated nodes."""
    if only is not None and nodes and not any(matches(only, node) for node in nodes):
        names = listed([repr(node.name or node.where) for node in nodes], 4)
        raise UsageError(f"--only {only}: matches no dilated node", hint=f"its dilated nodes: {names}")


def _unmatched(nodes: Sequence[Site | Skipped], scope: Scope) -> list[str]:
    """Return what the user may have meant otherwise."""
    matched = scope.skip is None or any(matches(scope.skip, node) for node in nodes)
    return [] if matched else [f"--skip {scope.skip} matches no dilated node"]


def _written(job: _Job, done: _Done, result: Report) -> Report:
    """Write what came of the model, or keep it in the report; return that with what there is to say of it."""
    places, rewritten, engine = job.run.options.places, done.chosen.rewritten, None
    if job.started is not None and result.output is not None:
        with job.run.clock("build"):
            engine = engines.make(
                job.started,
                rewritten.proto if done.changed else job.model.proto,
                job.engine,
                job.settings,
                chosen_on=_chosen_on(result, job.started),
                source=job.target if done.changed else None,
                progress=job.run.progress,
            )
        result = replace(result, engine=engine.report)
    with Staging(force=places.force) as staging:
        if engine is not None:
            engines.stage(engine, job.engine, staging)
        if result.output is not None and job.target is not None:
            spill = _spill(job.model, rewritten)
            proto = rewritten.proto if done.changed else job.loaded.original
            remarks = stage_model(
                job.model, proto, job.target, staging, external_data=places.external_data, spill=spill
            )
            result = replace(result, notes=(*result.notes, *remarks))
        if result.after is not None:
            held = rewritten.proto if done.changed else job.loaded.original
            result = replace(result, _held=job.target.absolute() if job.target is not None else held)
            if places.save_decisions is not None:
                staging.add_text(places.save_decisions, _decisions(result, done.chosen))
        if places.keep_micro is not None:
            parts = (*done.chosen.regions, *done.chosen.settled)
            known = done.choosing.tuning
            tuning = functools.partial(_tuning, job, done.choosing.decider) if known is None else lambda: known
            lines = micro.stage(result, parts, tuning, places.keep_micro, staging)
            result = replace(result, notes=(*result.notes, *lines))
        if job.reports is not None and (places.report is not None or result.status not in LEFT):
            result = write_reports(result, job.reports, staging, places.report_format)
        staging.commit()
    return result


def _chosen_on(result: Report, started: engines.Started) -> str:
    """Return what chose the forms in an engine: the timings of a backend, or what the user said."""
    measurement = result.measurement
    told = next((name for name in ("strategy", "decisions") if result.options.get(name)), None)
    if told is not None:
        return f"--{told} {result.options[told]}, not measured on TensorRT"
    if measurement is None:
        return "nothing, not measured on TensorRT"
    if measurement.backend == bindings.module_name(started.flavour):
        return f"{measurement.backend} on {measurement.device}"
    return f"{measurement.backend}, not measured on TensorRT"


def _decisions(result: Report, chosen: Chosen) -> str:
    """Return the text of the decisions file."""
    facts = ("backend", "device", "versions", "settings", "inputs") if result.measurement is not None else ()
    made_on, settled = {name: getattr(result.measurement, name) for name in facts}, chosen.settled
    sites = [(d.site, d.spelling, site.reason) for d, site in zip(settled, result.sites, strict=True)]
    sites += [(d.site, d.spelling, reasons.of(d)) for d in chosen.regions if d.fragment is not None]
    return decisions.render(result.before.sha256, sites, made_on)


def _spill(model: Model, rewritten: Rewritten) -> list[str]:
    """Return new weights that go to a data file: all of 1 KiB and more, when the model keeps its weights outside."""
    if not model.external_files:
        return []
    added = set(rewritten.added_tensors)
    return [t.name for t in rewritten.proto.graph.initializer if t.name in added and len(t.raw_data) >= 1024]


def _with_backend(options: CommandOptions, device: Device) -> CommandOptions:
    """Return the options with the backend that engines are built for, where it is ready and none was asked for."""
    if options.measuring.backend != "auto" or device.on:
        device.backend(options.measuring.backend)  # an error when it is not ready
        return options
    if options.building is None or options.scope.decisions is not None:
        return options
    name = bindings.module_name(bindings.choose(options.building.flavour))
    ready = backends()[name].missing() is None
    return replace(options, measuring=replace(options.measuring, backend=name)) if ready else options
