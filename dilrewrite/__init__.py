"""Rewrites dilated convolutions of ONNX models into exactly equal undilated subgraphs, and proves it.

>>> import dilrewrite
>>> report = dilrewrite.optimize("model.onnx", "faster.onnx")  # doctest: +SKIP
>>> report.status, report.rewritten, report.speedup  # doctest: +SKIP
('rewritten', 7, 1.26)

A model is a path, bytes, an `onnx.ModelProto` or a torch `ONNXProgram`. For one in memory no file is written unless an
output is named: `report.model` is the result. The model that was given stays as it is.

Importing this package loads no runtime, and neither onnx nor NumPy; the functions load what they need.
"""

from __future__ import annotations

import dilrewrite._start  # isort: skip

import importlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dilrewrite import keywords
from dilrewrite._version import __version__
from dilrewrite.errors import DiffersError, DilrewriteError, FailedError, MissingError, UsageError
from dilrewrite.keywords import StrPath, listed, silent
from dilrewrite.options import BENCH_BUDGET_S, Building, CommandOptions

if sys.version_info >= (3, 11):
    from typing import Unpack
else:  # here and not in `_compat`: documentation tools look for it
    from typing_extensions import Unpack

if TYPE_CHECKING:
    from dilrewrite.forms.geometry import ConvGeometry
    from dilrewrite.model.load import AnyModel
    from dilrewrite.proof.prove import Proof
    from dilrewrite.proof.verdict import Verdict
    from dilrewrite.reports.report import ModelReport, Report, SiteReport
    from dilrewrite.reports.swept import SweepReport
    from dilrewrite.tensorrt.sidecar import EngineReport
    from dilrewrite.timing.measurement import Measurement
    from dilrewrite.timing.stopwatch import Comparison

_LAZY = {
    "AnyModel": "dilrewrite.model.load",
    "Report": "dilrewrite.reports.report",
    "SiteReport": "dilrewrite.reports.report",
    "SweepReport": "dilrewrite.reports.swept",
    "ModelReport": "dilrewrite.reports.report",
    "ConvGeometry": "dilrewrite.forms.geometry",
    "Measurement": "dilrewrite.timing.measurement",
    "Comparison": "dilrewrite.timing.stopwatch",
    "EngineReport": "dilrewrite.tensorrt.sidecar",
    "Proof": "dilrewrite.proof.prove",
    "Verdict": "dilrewrite.proof.verdict",
}


if not TYPE_CHECKING:  # a type checker would take every name for one of them

    def __getattr__(name: str) -> object:
        """Load the types that the functions take and return when they are asked for."""
        if name in _LAZY:
            return getattr(importlib.import_module(_LAZY[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names for users, with those that are loaded when they are asked for."""
    return sorted({*__all__, *_LAZY})


@listed(keywords.Inspect)
def inspect(model: dilrewrite.AnyModel, **options: Unpack[keywords.Inspect]) -> dilrewrite.Report:
    """Describe every dilated Conv of an ONNX model, the forms that apply to it, and why others refuse.

    `max_dilation`: plan for a device that runs dilations up to it. Needs no runtime without `profile`.
    Raises `UsageError` when it is no usable ONNX model or holds an invalid dilated Conv.
    """
    from dilrewrite.commands.inspect import inspect as command
    from dilrewrite.model.load import source

    return command(source(model), CommandOptions.of(**options, no_cache=True))


def inspect_engine(engine: StrPath) -> dilrewrite.EngineReport:
    """Return what is known of a TensorRT engine, from the side-car that `build` wrote beside it. Needs no GPU.

    Raises `UsageError` when there is no side-car, or it is of another engine.
    """
    from dilrewrite.tensorrt import sidecar

    return sidecar.read(Path(engine))


@listed(keywords.Optimize, build_engine=False)
def optimize(
    model: dilrewrite.AnyModel, output: StrPath | None = None, **options: Unpack[keywords.Optimize]
) -> dilrewrite.Report:
    """Rewrite the dilated Convs of an ONNX model where that is faster, prove the result equal, and write it.

    By default every form is timed, and the fastest taken where it beats the Conv, there and in the whole model.
    `output`: `<stem>.dilrewrite.onnx` beside the model by default. Without one, a model in memory is written nowhere,
    and its timings are kept only in a `cache` that is named. `budget`: seconds, proofs included, a third for the whole
    model. `only` and `skip` are searched in a node's name, `where/name` and output. `verify`: `full` proves every
    site and compares the whole models, `sites` only the former. `rtol`, `atol`: |difference| <= atol + rtol * |value|.
    `report`: "beside" is `<output stem>.report` beside the output, which stays away when dilation is left.
    `external_data`: see docs/way.md. `build_engine`: a mapping holds arguments of `build`; where that TensorRT can run
    here, it is what `auto` times on.

    Returns the report; its `model` is the result. Where results differ, the result is not valid ONNX, or dilation is
    left that `eliminate` should remove, there is none: `report.status` and `report.exit_code` say so. Raises
    `UsageError`, `MissingError` or `FailedError` for everything that ends the work without a result; nothing is left
    behind then.
    """
    from dilrewrite.commands.optimize import optimize as command
    from dilrewrite.model.load import source

    given: dict[str, Any] = {"output": output, **options}
    progress, engine = given.pop("progress", None) or silent, given.pop("build_engine")
    beside = given.get("report") == "beside"
    wanted = CommandOptions.of(**{**given, "report": None} if beside else given)
    if not isinstance(engine, bool) and not hasattr(engine, "items"):
        raise TypeError(f"build_engine is {engine!r}, no bool and no mapping of the arguments of build()")
    if engine is not False:
        wanted = replace(wanted, building=Building.of({} if engine is True else engine))
    return command(source(model), wanted, beside=beside, progress=progress)


@listed(keywords.Fold)
def fold(
    model: dilrewrite.AnyModel, output: StrPath | None = None, **options: Unpack[keywords.Fold]
) -> dilrewrite.Report:
    """Fold space-to-batch sandwiches of an ONNX model back into dilated Convs, prove the result equal, and write it.

    A sandwich: layout operators that bring phases of spatial axes into the batch, a Conv, and the way back, as exports
    of TensorFlow and Keras have them. `output`: `<stem>.folded.onnx` beside the model by default; without one, a model
    in memory is written nowhere. `only` and `skip` are searched in the Conv's name, `where/name` and the output.
    Otherwise as `optimize`. Nothing is timed: `bench` compares the two.

    Returns the report; its `model` is the result, `sites` are the sandwiches, and `unfolded` says of what looks like
    one and is left alone why.
    """
    from dilrewrite.commands.fold import fold as command
    from dilrewrite.model.load import source

    given: dict[str, Any] = {"output": output, **options}
    progress, beside = given.pop("progress", None) or silent, given.get("report") == "beside"
    wanted = CommandOptions.of(**{**given, "report": None} if beside else given)
    return command(source(model), wanted, beside=beside, progress=progress)


@listed(keywords.Build)
def build(model: StrPath, output: StrPath | None = None, **options: Unpack[keywords.Build]) -> dilrewrite.Report:
    """Build the TensorRT engine of an ONNX model, and write it with a side-car JSON of all that is known of it.

    `output`: `<stem>.engine` beside the model by default; the side-car is `<output>.json`. `flavour`: TensorRT, or
    TensorRT for RTX, which builds without a GPU; `auto` is the one that is installed. `precision`: None is what the
    model holds (float32 with TF32); `fp16` and `bf16` convert a float32 model and hold the result to it, on `inputs`;
    `int8-qdq` takes a symmetric QDQ model. What the engine's convolutions really compute in is read from its layer
    list, and an engine in another precision than asked for is an error. `minima`, `optima` or `maxima` alone stands for
    all. `tell` gets every line of TensorRT's log.

    Returns a report whose `engine` is the side-car's content. Raises `UsageError` for a model or sizes that TensorRT
    cannot take, `MissingError` without TensorRT, `FailedError` when the build fails, `DiffersError` when the conversion
    or the engine does not compute what the model does; no file is left then.
    """
    from dilrewrite.commands.build import build as command

    given: dict[str, Any] = {"output": output, **options}
    progress, tell = given.pop("progress", None) or silent, given.pop("tell", None)
    wanted = CommandOptions.of(**given, no_cache=True)
    wanted = replace(wanted, building=wanted.building or Building())
    return command(Path(model), wanted, progress=progress, tell=tell)


@listed(keywords.Sweep)
def sweep(
    models: StrPath | Sequence[StrPath],
    output: StrPath | None = None,
    *,
    on: str | Sequence[str] = (),
    **options: Unpack[keywords.Sweep],
) -> dilrewrite.SweepReport:
    """Rewrite many ONNX models, each as `optimize` does, and write one report for all.

    `models`: files, folders (with all below) and patterns; a file counts once however often it is meant. `output`: the
    folder of the new models and the reports, `dilrewrite-sweep` by default. `on`: who answers, one model at a time
    each: hosts, or `dask://HOST:PORT`, a scheduler whose workers have this version of dilrewrite; this machine by
    default. Every model has a process of its own.

    Returns the report: `models` has an answer for each, and what went wrong with one is its answer. What an earlier run
    with these options answered is not asked again. Raises `UsageError` and `MissingError` for what is wrong before any
    work.
    """
    from dilrewrite.sweeping.sweep import sweep as command

    given: dict[str, Any] = dict(options)
    progress = given.pop("progress", None) or silent
    places = [models] if isinstance(models, str | PathLike) else list(models)
    devices = [on] if isinstance(on, str) else list(on)
    folder = None if output is None else Path(output)
    return command(
        list(map(Path, places)), folder, devices, options=given, progress=progress, typed=keywords.is_typed()
    )


@listed(keywords.Verify)
def verify(
    before: dilrewrite.AnyModel, after: dilrewrite.AnyModel, **options: Unpack[keywords.Verify]
) -> dilrewrite.Report:
    """Compare two ONNX models as wholes: interface, checker findings, outputs on several inputs.

    Returns a report with status `equal` or `differs`.
    """
    from dilrewrite.commands.verify import verify as command
    from dilrewrite.model.load import source

    first, second = source(before, "the first model in memory"), source(after, "the second model in memory")
    return command(first, second, CommandOptions.of(**options))


@listed(keywords.Bench, budget=BENCH_BUDGET_S)
def bench(
    model: dilrewrite.AnyModel, other: dilrewrite.AnyModel | None = None, **options: Unpack[keywords.Bench]
) -> dilrewrite.Report:
    """Time an ONNX model on a runtime, or another one against it, in pairs and for about `budget` seconds.

    In the report, `measurement.final` has `model` as the first and `other` as the second; `measurement.noise` is
    `model` against itself. Nothing is taken from the cache of timings. Both may be TensorRT engines that `build` wrote,
    of one flavour, on the GPU that they were built for. What is exported of `other` goes to `<stem>.other<suffix>`
    beside `export_times` and `export_profile`.
    """
    from dilrewrite.commands.bench import bench as command
    from dilrewrite.model.load import source

    progress = options.pop("progress", None) or silent
    if other is None:
        first, second = source(model), None
    else:
        first, second = source(model, "the first model in memory"), source(other, "the second model in memory")
    return command(first, second, CommandOptions.of(**options), progress=progress)


__all__ = ["DiffersError", "DilrewriteError", "FailedError", "MissingError", "UsageError", "__version__"]
__all__ += ["bench", "build", "fold", "inspect", "inspect_engine", "optimize", "sweep", "verify"]
__all__ += ["AnyModel", "Comparison", "ConvGeometry", "EngineReport", "Measurement", "ModelReport", "Proof", "Report"]
__all__ += ["SiteReport", "SweepReport", "Verdict"]
