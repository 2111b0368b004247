"""Lists the dilated Convs of a model, the forms that apply, why others refuse, and each Conv's share of the time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dilrewrite import devices, targets
from dilrewrite.choice import choose, whole
from dilrewrite.choice.decide import Decider
from dilrewrite.choice.decision import Considered, Decision, SiteMeasurement
from dilrewrite.choice.reason import Reason, Why
from dilrewrite.choice.regions import members
from dilrewrite.choice.tune import Tuning
from dilrewrite.commands.places import Claims
from dilrewrite.commands.run import Run, dilated, failure, files, notes_of, to_fold
from dilrewrite.errors import FailedError, UsageError
from dilrewrite.forms.strategies import strategies
from dilrewrite.model.load import load
from dilrewrite.model.tensors import InMemory, Model
from dilrewrite.model.walk import fed
from dilrewrite.options import CommandOptions, Proving
from dilrewrite.proof import trial
from dilrewrite.proof.carve import Source
from dilrewrite.proof.inputs import check_names, check_shapes, parse_shapes
from dilrewrite.reports import describe
from dilrewrite.reports.report import Report
from dilrewrite.sites import Found, Site
from dilrewrite.splice.plain import plain
from dilrewrite.targets import TargetReport
from dilrewrite.timing.profiling import UNSEEN


def inspect(place: Path | InMemory, options: CommandOptions) -> Report:
    """Return every dilated Conv of the model at `place`; see `dilrewrite.inspect`."""
    profile = options.measuring.profile
    run = Run("inspect", options if profile else replace(options, proving=Proving()))
    if options.measuring.on is not None and not profile:
        raise UsageError("--on: nothing runs there", hint="add --profile, or leave it out")
    with devices.device(options.measuring.on) as device:
        return _inspect(replace(run, device=device), place, options)


def _inspect(run: Run, place: Path | InMemory, options: CommandOptions) -> Report:
    profile, limit = options.measuring.profile, options.scope.max_dilation
    if run.device.on:
        run.device.backend(options.measuring.backend)  # an error when it is not ready
    with run.clock("load"):
        model = plain(load(place, weights=profile))
    Claims(files(place)).reports(options.places.report, options.places.report_format)
    found = run.find(model, regions=True, sandwiches=True)
    with run.clock("plan"):
        planner = choose.Planner(strategies(), limit)
        considered = [
            Considered(site=site, offered=tuple(offered), refused=tuple(refused), wanted=())
            for site in found.sites
            for offered, refused in [planner.candidates(site)]
        ]
        regional = choose.region_planner(limit)
        regions = [_inspected(region, regional, found) for region in found.regions]
    target = _target(model, options)
    tuning = _profiled(run, model, found) if profile else None
    sites = []
    for entry in considered:
        measured = SiteMeasurement(run=tuning.run_of(entry.site) if tuning is not None else UNSEEN)
        decision = Decision(considered=entry, measured=measured, why=Why(reason=Reason.INSPECTED))
        sites.append(describe.site(decision))
    result = run.report(
        "inspected",
        before=describe.model(model, model.original, dilated=dilated(found)),
        target=target,
        options={
            "max_dilation": limit,
            **({"target": options.scope.target} if target is not None else {}),
            **(options.plain() if profile else _sizes(options)),
        },
        sites=tuple(sites),
        regions=tuple(map(describe.region, regions)),
        skipped=found.skipped,
        normalised=found.normalisations,
        measurement=tuning.measurement() if tuning is not None else None,
        notes=(*notes_of(tuning), *found.remarks, *to_fold(found.sandwiches)),
    )
    return run.written(result)


def _target(model: Model, options: CommandOptions) -> TargetReport | None:
    """Return how the target that was named takes the model as it stands in its file; `None` where none was named."""
    if options.scope.target is None:
        return None
    profile = targets.find(options.scope.target)
    shapes = parse_shapes(options.proving.shapes, [value.name for value in fed(model.original)])
    check_names(shapes, (), [value.name for value in model.original.graph.input])
    check_shapes(shapes, model.original)
    return targets.report(profile, targets.judge(model.original, profile, shapes))


def _sizes(options: CommandOptions) -> dict[str, object]:
    """Return the sizes that were given, for the command that comes next."""
    return {"shapes": [*options.proving.shapes]} if options.proving.shapes else {}


def _inspected(region: Site, planner: choose.Planner, found: Found) -> Decision:
    offered, refused = planner.candidates(region)
    inside = tuple(site.key for site in members(region, found.sites))
    entry = Considered(site=region, offered=tuple(offered), refused=tuple(refused), wanted=(), inside=inside)
    return Decision(considered=entry, measured=SiteMeasurement(), why=Why(reason=Reason.INSPECTED))


def _profiled(run: Run, model: Model, found: Found) -> Tuning:
    """Run the model, and return where its time goes."""
    options = run.options
    options.check()
    decider = Decider(options.scope, options.proving, Source(model.proto))
    settings = trial.settings(model, options.proving)
    tuning = whole.tuning(model, found, decider, settings, options.measuring, None, run.progress, run.device)
    with run.clock("profile"):
        try:
            if not tuning.start():
                raise FailedError(f"{model.name}: {failure(tuning)}")
        finally:
            tuning.close()
    return tuning
