"""Rewrites dilated convolutions of ONNX models into exactly equal undilated subgraphs, and proves it.

>>> import dilrewrite
>>> report = dilrewrite.optimize("model.onnx", "undilated.onnx", eliminate=True)  # doctest: +SKIP
>>> report.status, report.rewritten  # doctest: +SKIP
('rewritten', 7)

Importing this package loads no runtime, and neither onnx nor NumPy; the functions load what they need.
"""

from __future__ import annotations

import dilrewrite._start  # noqa: F401 isort: skip

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from dilrewrite import keywords
from dilrewrite._version import __version__
from dilrewrite.errors import DiffersError, DilrewriteError, FailedError, MissingError, UsageError
from dilrewrite.keywords import StrPath, listed, silent
from dilrewrite.options import BENCH_BUDGET_S, Building, CommandOptions

if TYPE_CHECKING:
    from dilrewrite.reports.report import Report
    from dilrewrite.tensorrt.sidecar import EngineReport

_LAZY = {
    "Report": "dilrewrite.reports.report",
    "SiteReport": "dilrewrite.reports.report",
    "ModelReport": "dilrewrite.reports.report",
    "ConvGeometry": "dilrewrite.forms.geometry",
    "Measurement": "dilrewrite.timing.measurement",
    "Comparison": "dilrewrite.timing.stopwatch",
    "EngineReport": "dilrewrite.tensorrt.sidecar",
    "Proof": "dilrewrite.proof.prove",
    "Verdict": "dilrewrite.proof.verdict",
}


def __getattr__(name: str) -> object:
    """Load the types that the functions return when they are asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@listed(keywords.Inspect)
def inspect(model: StrPath, **options: Unpack[keywords.Inspect]) -> Report:
    """Describe every dilated Conv of an ONNX model, the forms that apply to it, and why others refuse.

    `max_dilation`: plan for a device that runs dilations up to it. Needs no runtime without `profile`.
    Raises `UsageError` when the file is no usable ONNX model or holds an invalid dilated Conv.
    """
    from dilrewrite.commands.inspect import inspect as command

    return command(Path(model), CommandOptions.of(**options, no_cache=True))


def inspect_engine(engine: StrPath) -> EngineReport:
    """Return what is known of a TensorRT engine, from the side-car that `build` wrote beside it. Needs no GPU.

    Raises `UsageError` when there is no side-car, or it is of another engine.
    """
    from dilrewrite.tensorrt import sidecar

    return sidecar.read(Path(engine))


@listed(keywords.Optimize, build_engine=False)
def optimize(model: StrPath, output: StrPath | None = None, **options: Unpack[keywords.Optimize]) -> Report:
    """Rewrite the dilated Convs of an ONNX model where that is faster, prove the result equal, and write it.

    By default every form is timed, and the fastest taken where it beats the Conv, there and in the whole model.
    `output`: `<stem>.dilrewrite.onnx` beside the model by default. `budget_s`: proofs included, a third for the whole
    model. `only` and `skip` are searched in a node's name, `where/name` and output. `verify`: `full` proves every
    site and compares the whole models, `sites` only the former. `rtol`, `atol`: |difference| <= atol + rtol * |value|.
    `report`: "beside" is `<output stem>.report` beside the output, which stays away when dilation is left.
    `external_data`: see docs/way.md. `build_engine`: a mapping holds arguments of `build`; where that TensorRT can run
    here, it is what `auto` times on.

    Returns the report. Where results differ, the result is not valid ONNX, or dilation is left that `eliminate` should
    remove, no model is written: `report.status` and `report.exit_code` say so. Raises `UsageError`, `MissingError` or
    `FailedError` for everything that ends the work without a result; nothing is left behind then.
    """
    from dilrewrite.commands.optimize import optimize as command

    given: dict[str, Any] = {"output": output, **options}
    progress, engine = given.pop("progress", None) or silent, given.pop("build_engine")
    beside = given.get("report") == "beside"
    wanted = CommandOptions.of(**{**given, "report": None} if beside else given)
    if not isinstance(engine, bool) and not hasattr(engine, "items"):
        raise TypeError(f"build_engine is {engine!r}, no bool and no mapping of the arguments of build()")
    if engine is not False:
        wanted = replace(wanted, building=Building.of({} if engine is True else engine))
    return command(Path(model), wanted, beside=beside, progress=progress)


@listed(keywords.Build)
def build(model: StrPath, output: StrPath | None = None, **options: Unpack[keywords.Build]) -> Report:
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


@listed(keywords.Verify)
def verify(before: StrPath, after: StrPath, **options: Unpack[keywords.Verify]) -> Report:
    """Compare two ONNX models as wholes: interface, checker findings, outputs on several inputs.

    Returns a report with status `equal` or `differs`.
    """
    from dilrewrite.commands.verify import verify as command

    return command(Path(before), Path(after), CommandOptions.of(**options))


@listed(keywords.Bench, budget_s=BENCH_BUDGET_S)
def bench(model: StrPath, other: StrPath | None = None, **options: Unpack[keywords.Bench]) -> Report:
    """Time an ONNX model on a runtime, or another one against it, in pairs and for about `budget_s` seconds.

    In the report, `measurement.final` has `model` as the first and `other` as the second; `measurement.noise` is
    `model` against itself. Nothing is taken from the cache of timings. Both may be TensorRT engines that `build` wrote,
    of one flavour, on the GPU that they were built for. What is exported of `other` goes to `<stem>.other<suffix>`
    beside `export_times` and `export_profile`.
    """
    from dilrewrite.commands.bench import bench as command

    progress = options.pop("progress", None) or silent
    second = Path(other) if other is not None else None
    return command(Path(model), second, CommandOptions.of(**options), progress=progress)


__all__ = ["DiffersError", "DilrewriteError", "FailedError", "MissingError", "UsageError", "__version__"]
__all__ += ["bench", "build", "inspect", "inspect_engine", "optimize", "verify"]
