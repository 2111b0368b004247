"""Builds the TensorRT engine of a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dilrewrite import devices
from dilrewrite.commands.places import Claims, data_files
from dilrewrite.commands.run import Run, dilated
from dilrewrite.errors import shown
from dilrewrite.keywords import Progress, silent
from dilrewrite.model.save import stage_model
from dilrewrite.model.tensors import Model
from dilrewrite.model.walk import fed
from dilrewrite.options import Building, CommandOptions
from dilrewrite.proof import trial
from dilrewrite.proof.inputs import parse_shapes
from dilrewrite.reports import describe, write_reports
from dilrewrite.reports.report import Report
from dilrewrite.staging import Staging
from dilrewrite.tensorrt import engines, sidecar


def build(
    path: Path, options: CommandOptions, *, progress: Progress = silent, tell: Callable[[str], None] | None = None
) -> Report:
    """Build the engine of the model at `path`; see `dilrewrite.build`."""
    options.check()
    building = options.building or Building()
    with engines.on_device(building.device), devices.device(options.measuring.on) as device:
        return _build(path, building, Run("build", options, progress, device=device), tell)


def _build(path: Path, building: Building, run: Run, tell: Callable[[str], None] | None) -> Report:
    options = run.options
    model = run.load(path)
    target = options.places.output or path.with_suffix(".engine")
    sizes = parse_shapes(options.proving.shapes, [value.name for value in fed(model.proto)])
    started = engines.start(model, building, sizes, run.device.builder(building))
    claims = Claims([path, *data_files(model)], force=options.places.force)
    claims.engine(target, building.timing_cache)
    claims.claim(options.places.save_onnx, "--save-onnx")
    claims.claim(options.places.export_layer_info, "--export-layer-info")
    claims.reports(options.places.report, options.places.report_format)
    settings = trial.settings(model, options.proving)
    found = run.find(model)
    with run.clock("build"):
        engine = engines.make(
            started,
            model.proto,
            target,
            settings,
            chosen_on="the model as it was given, not measured on TensorRT",
            progress=run.progress,
            tell=tell,
        )
    result = run.report(
        "built",
        before=describe.model(model, model.proto, dilated=dilated(found)),
        output=shown(target),
        options={**options.plain(), **building.plain()},
        skipped=found.skipped,
        verdict=engine.check,
        engine=engine.report,
    )
    return _written(model, engine, target, result, options)


def _written(model: Model, engine: engines.Engine, target: Path, result: Report, options: CommandOptions) -> Report:
    """Write the engine and all that was asked for beside it; return the report with what there is to say of that."""
    places = options.places
    with Staging(force=places.force) as staging:
        engines.stage(engine, target, staging)
        if places.save_onnx is not None:
            proto = engine.prepared.proto
            remarks = stage_model(model, proto, places.save_onnx, staging, external_data="auto", spill=[])
            result = replace(result, notes=(*result.notes, *remarks))
        if places.export_layer_info is not None:
            staging.add_text(places.export_layer_info, sidecar.layer_information(engine.report))
        if places.report is not None:
            result = write_reports(result, places.report, staging, places.report_format)
        staging.commit()
    return result
