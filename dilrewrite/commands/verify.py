"""Compares two models as wholes, or an engine with the model that it was built from."""

from __future__ import annotations

from pathlib import Path

from dilrewrite.commands.places import Claims
from dilrewrite.commands.run import Run, dilated, files
from dilrewrite.errors import FailedError, shown
from dilrewrite.model.load import load
from dilrewrite.model.tensors import InMemory
from dilrewrite.options import CommandOptions
from dilrewrite.proof import trial
from dilrewrite.reports import describe
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import Runnable, RuntimeFailure
from dilrewrite.sites.find import find
from dilrewrite.splice.plain import plain
from dilrewrite.tensorrt import engines, sidecar


def verify(before: Path | InMemory, after: Path | InMemory, options: CommandOptions) -> Report:
    """Compare two models as wholes; see `dilrewrite.verify`."""
    options.check()
    run = Run("verify", options)
    if isinstance(after, Path) and sidecar.is_engine(after):
        return run.written(_engine(before, after, run))
    first, second = run.load(before), run.load(after)
    Claims(files(before, after)).reports(options.places.report, options.places.report_format)
    found, found_after = (find(plain(model).proto) for model in (first, second))
    settings = trial.settings(first, options.proving)
    with run.clock("verify"):
        verdict = trial.compare_models(first, second, found, settings)
    peaks = verdict.peak_bytes
    result = run.report(
        "differs" if not verdict.passed else "not compared" if verdict.skipped else "equal",
        before=describe.model(first, first.proto, dilated=dilated(found), peak_bytes=peaks[0]),
        after=describe.model(second, second.proto, dilated=dilated(found_after), peak_bytes=peaks[1]),
        skipped=found_after.skipped,
        verdict=verdict,
        notes=tuple(dict.fromkeys((*found.remarks, *found_after.remarks))),
    )
    return run.written(result)


def _engine(before: Path | InMemory, after: Path, run: Run) -> Report:
    """Compare an engine's outputs with those of a model on ONNX Runtime. Needs the GPU that it was built for."""
    engine = sidecar.read(after)
    engines.check_runs(after, engine)
    with run.clock("load"):
        model = load(before)
    Claims(files(before, after)).reports(run.options.places.report, run.options.places.report_format)
    settings = trial.settings(model, run.options.proving)
    found = find(model.proto)
    with run.clock("verify"):
        try:
            verdict = engines.outputs_agree(
                Runnable(model=before.data if isinstance(before, InMemory) else before),
                Runnable(model=after, engine=True),
                engine.flavour,
                engine.precision.built,
                {name: profile.opt for name, profile in engine.profiles.items()},
                settings,
            )
        except engines.NoAnswer as error:
            raise FailedError(f"{model.name}: {error}") from error
        except RuntimeFailure as error:
            raise FailedError(f"{shown(after)}: {error}", hint=engines.built_for(engine)) from error
    return run.report(
        "equal" if verdict.passed else "differs",
        before=describe.model(model, model.proto, dilated=dilated(found)),
        after=describe.engine(engine, shown(after)),
        verdict=verdict,
        engine=engine,
    )
