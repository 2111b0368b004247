"""Times two models, or two engines, against each other, or one against itself."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dilrewrite import devices
from dilrewrite.choice.decide import Decider
from dilrewrite.choice.original import Original
from dilrewrite.choice.tune import Tuning
from dilrewrite.commands.places import Claims
from dilrewrite.commands.run import Run, dilated, files, notes_of
from dilrewrite.errors import FailedError, UsageError, shown
from dilrewrite.keywords import Progress, silent
from dilrewrite.model.tensors import InMemory
from dilrewrite.options import CommandOptions
from dilrewrite.proof import trial
from dilrewrite.proof.carve import Source
from dilrewrite.proof.inputs import Chooser, load_inputs, parse_shapes
from dilrewrite.reports import describe
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import Array, Options, Runnable, RuntimeFailure, backends, profiled
from dilrewrite.settings import named
from dilrewrite.sites.find import find
from dilrewrite.splice.plain import plain
from dilrewrite.tensorrt import bindings, engines, exports, sidecar
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import open_cache
from dilrewrite.timing.measure import Meter


def bench(
    first: Path | InMemory, second: Path | InMemory | None, options: CommandOptions, *, progress: Progress = silent
) -> Report:
    """Time two models against each other, or one against itself; see `dilrewrite.bench`."""
    options.check()
    places = [first] if second is None else [first, second]
    of_engines = any(map(sidecar.is_engine, files(*places)))
    if of_engines and options.measuring.on is not None:
        raise UsageError("--on: engines are timed on the machine that they were built on", hint="leave it out")
    with devices.device(options.measuring.on) as device:
        if options.measuring.backend != "auto" or device.on:
            device.backend(options.measuring.backend)  # an error when it is not ready
        run = Run("bench", options, progress, device=device)
        return run.written((_engines if of_engines else _models)(run, places))


def _models(run: Run, places: Sequence[Path | InMemory]) -> Report:
    options, paths = run.options, files(*places)
    _check_exports(options, paths, len(places))
    models = [run.load(place) for place in places]
    Claims(paths).reports(options.places.report, options.places.report_format)
    if len(models) > 1:
        trial.check_same_inputs(models[0].proto, models[1].proto, models[1].name)
    settings = trial.settings(models[0], options.proving)
    found = [find(model.proto) for model in models]
    sessions = Options(threads=options.proving.threads, custom_op_library=options.proving.custom_op_library)
    meter = _meter(run, options.measuring.backend, sessions)
    baselines = (trial.runnable(model, model.proto, meter.backend) for model in models)
    originals = [Original(*parts, settings) for parts in zip(models, found, baselines, strict=True)]
    decider = Decider(options.scope, options.proving, Source(models[0].proto))
    tuning = Tuning(original=originals[0], meter=meter, decider=decider)
    with run.clock("measure"):
        try:
            tuning.time_against(originals[-1].subject())
            _export(options, meter, [original.runnable() for original in originals], originals[0].feeds)
        finally:
            tuning.close()
    told = [find(plain(model).proto) for model in models]
    before, *after = (
        describe.model(model, model.proto, dilated=dilated(sites), peak_bytes=meter.peak_bytes.get(key))
        for model, sites, key in zip(models, told, ("before", "after"), strict=False)
    )
    return run.report(
        "measured",
        before=before,
        after=after[0] if after else None,
        skipped=told[-1].skipped,
        measurement=tuning.measurement(),
        notes=(*notes_of(tuning), *dict.fromkeys(remark for sites in told for remark in sites.remarks)),
    )


def _engines(run: Run, places: Sequence[Path | InMemory]) -> Report:
    """Time two engines of one flavour against each other, or one against itself."""
    paths, known = _read(places)
    options, first = run.options, paths[0]
    engine, name, asked = known[0], bindings.module_name(known[0].flavour), options.measuring.backend
    if asked != "auto" and named(asked, backends()) != name:
        raise UsageError(f"--backend {asked}: the engine is of {engine.flavour}", hint="leave it out")
    engines.check_runs(first, engine)
    Claims(list(paths)).reports(options.places.report, options.places.report_format)
    _check_exports(options, paths, len(paths))
    with tempfile.TemporaryDirectory(prefix="dilrewrite-") as scratch:
        meter = _meter(run, name, Options(threads=options.proving.threads, scratch=Path(scratch)))
        runnables = [Runnable(model=path.absolute(), engine=True) for path in (first, paths[-1])]
        with run.clock("measure"):
            try:
                meter.begin()
                feeds = _feeds(options, engine, runnables[0], meter)
                final = meter.whole(runnables[0], runnables[1], ("", ""), feeds, run_s=meter.budget.run_s)
                _export(options, meter, runnables[: len(paths)], feeds)
            except RuntimeFailure as error:
                raise FailedError(f"{shown(first)}: {error}", hint=engines.built_for(engine)) from error
            finally:
                meter.close()
    return run.report(
        "measured",
        before=describe.engine(engine, shown(first)),
        after=describe.engine(known[1], shown(paths[1])) if len(paths) > 1 else None,
        measurement=meter.measurement(feeds, final=final),
        engine=engine,
    )


def _meter(run: Run, backend: str, sessions: Options) -> Meter:
    budget = Budget(run.options.measuring.seconds, progress=run.progress)
    meter = Meter.on(run.device.backend(backend), open_cache(None, none=True), budget, sessions)
    meter.cool_down_s = run.options.measuring.cool_down_s
    return meter


def _read(places: Sequence[Path | InMemory]) -> tuple[list[Path], list[EngineReport]]:
    """Return engines that can be timed against each other and what is known of them; `UsageError` for others."""
    paths = files(*places)
    for place in places:
        if isinstance(place, InMemory) or not sidecar.is_engine(place):
            name = shown(place) if isinstance(place, Path) else place
            raise UsageError(
                f"{name} is a model, and the other an engine: they are not timed against each other",
                hint="build the model's engine with `dilrewrite build`, and time the two engines",
            )
    known = [sidecar.read(path) for path in paths]
    flavours = {engine.flavour for engine in known}
    if len(flavours) > 1:
        raise UsageError(f"the engines are of {' and '.join(sorted(flavours))}: they do not run in one library")
    inputs = [{tensor.name: tensor.datatype for tensor in engine.inputs} for engine in known]
    if inputs[0] != inputs[-1]:
        told = [", ".join(f"{name} ({kind})" for name, kind in some.items()) for some in (inputs[-1], inputs[0])]
        raise UsageError(
            f"{shown(paths[-1])}: its inputs are {told[0]}, not {told[1]}",
            hint="only engines that take the same inputs can be timed against each other",
        )
    return paths, known


def _feeds(options: CommandOptions, engine: EngineReport, runnable: Runnable, meter: Meter) -> Mapping[str, Array]:
    """Return what engines are timed on: the user's data, and made-up values of the sizes that they are fast at."""
    data = load_inputs(options.proving.inputs) if options.proving.inputs else {}
    sizes = {name: profile.opt for name, profile in engine.profiles.items()}
    with meter.backend.session(runnable, meter.options) as session:
        given = {**sizes, **parse_shapes(options.proving.shapes, [io.name for io in session.inputs])}
        chooser = Chooser(
            session.inputs,
            given={name: shape for name, shape in given.items() if name not in data},
            user=data,
            seed=options.proving.seed,
        )
        case, _ = chooser.first(session.run)
    return case.feeds


def _check_exports(options: CommandOptions, paths: Sequence[Path], number: int) -> None:
    """Raise `UsageError` for places that nothing can be written to; an export of before is replaced."""
    claims = Claims(list(paths), force=True)
    for option, place in exports.places(options.places, number):
        claims.claim(place, option)


def _export(options: CommandOptions, meter: Meter, runnables: Sequence[Runnable], feeds: Mapping[str, Array]) -> None:
    exports.write(
        options.places,
        meter.samples,
        lambda number: profiled(meter.backend, runnables[number], meter.options, feeds, exports.PROFILE_RUNS),
        len(runnables),
    )
