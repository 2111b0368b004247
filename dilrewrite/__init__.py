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
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dilrewrite._version import __version__
from dilrewrite.errors import DiffersError, DilrewriteError, FailedError, MissingError, UsageError

if TYPE_CHECKING:
    from dilrewrite.commands.pipeline import Progress
    from dilrewrite.reports.report import Report
    from dilrewrite.tensorrt.engines import Order
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

StrPath = str | os.PathLike[str]


def __getattr__(name: str) -> object:
    """Load the types that the functions return when they are asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def inspect(
    model: StrPath,
    *,
    max_dilation: int = 1,
    profile: bool = False,
    backend: str = "auto",
    shapes: Sequence[str] = (),
    inputs: StrPath | None = None,
    threads: int | None = None,
    custom_op_library: Sequence[StrPath] = (),
    report: StrPath | None = None,
) -> Report:
    """Describe every dilated Conv of an ONNX model, the forms that apply to it, and why others refuse.

    `max_dilation`: plan for a device that runs dilations up to it. `report`: a folder for the report files.
    `profile`: also run the model on `backend`, and tell each Conv's share of its time; the other arguments are those
    of `optimize`. Needs no runtime without it.
    Raises `UsageError` when the file is no usable ONNX model or holds an invalid dilated Conv.
    """
    from dilrewrite.commands import pipeline
    from dilrewrite.options import OptimizeOptions

    options = None
    if profile:
        options = OptimizeOptions(
            backend=backend,
            shapes=tuple(shapes),
            inputs=Path(inputs) if inputs is not None else None,
            threads=threads,
            custom_op_library=tuple(Path(library) for library in custom_op_library),
            no_cache=True,
        )
    return pipeline.inspect(
        Path(model),
        max_dilation=max_dilation,
        report_folder=Path(report) if report is not None else None,
        profile=options,
    )


def _order(wanted: bool | Mapping[str, Any]) -> Order | None:
    if wanted is False:
        return None
    from dilrewrite.tensorrt import engines

    return engines.order(**({} if wanted is True else wanted))


def inspect_engine(engine: StrPath) -> EngineReport:
    """Return what is known of a TensorRT engine, from the side-car that `build` wrote beside it. Needs no GPU.

    Raises `UsageError` when there is no side-car, or it is of another engine.
    """
    from dilrewrite.tensorrt import sidecar

    return sidecar.read(Path(engine))


def optimize(
    model: StrPath,
    output: StrPath | None = None,
    *,
    strategy: str | None = None,
    eliminate: bool = False,
    max_dilation: int = 1,
    only: str | None = None,
    skip: str | None = None,
    shapes: Sequence[str] = (),
    inputs: StrPath | None = None,
    verify: Literal["full", "sites", "none"] = "full",
    report: StrPath | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    dry_run: bool = False,
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    custom_op_library: Sequence[StrPath] = (),
    external_data: Literal["auto", "copy", "reference"] = "auto",
    backend: str = "auto",
    budget_s: float | None = None,
    min_gain_percent: float = 2.0,
    decisions: StrPath | None = None,
    save_decisions: StrPath | None = None,
    cache: StrPath | None = None,
    no_cache: bool = False,
    build_engine: bool | Mapping[str, Any] = False,
    engine: StrPath | None = None,
    progress: Progress | None = None,
) -> Report:
    """Rewrite the dilated Convs of an ONNX model where that is faster, prove the result equal, and write it.

    `output`: the file to write, `<stem>.dilrewrite.onnx` beside the model by default; `force` replaces an existing one.
    `strategy`: `NAME[:key=value,...]`, the form to use wherever it applies; by default every form is timed, and the
    fastest taken where it beats the Conv, there and in the whole model. `eliminate`: leave no dilation above
    `max_dilation`, with the fastest forms.
    `backend`: the runtime to time on; `auto` is the best that is ready. `budget_s`: seconds that measuring may take
    (60 by default, proofs included, a third of them for the whole model; 0 measures nothing and keeps every Conv).
    `min_gain_percent`: what the whole model must save of its time to be rewritten. `decisions`: a file that
    `save_decisions` wrote, to be followed without measuring. `cache`: the file that keeps timings, by default in
    the user's cache folder; `no_cache`: none.
    `only`, `skip`: regular expressions searched in a node's name, `where/name` and output.
    `shapes`: `NAME:1x3x224x224` for inputs with unknown sizes; `inputs`: an .npz with data by input name.
    `verify`: `full` proves every site and compares the whole models, `sites` only the former, `none` (with `strategy`
    only) neither. `rtol`, `atol`: |difference| <= atol + rtol * |value| instead of the tolerance by element type.
    `report`: a folder for the report files; "beside" is `<output stem>.report` beside the output, which stays
    away when dilation is left. `dry_run`: measure and write nothing, tell what would be measured.
    `external_data`: see docs/way.md. `build_engine`: also build the TensorRT engine of the result, into the file
    `engine` (`<output stem>.engine` by default); a mapping holds arguments of `build`. Where that TensorRT can run
    here, it is what `auto` times on.

    Returns the report. Where results differ, the result is not valid ONNX, or dilation is left that `eliminate` should
    remove, no model is written: `report.status` and `report.exit_code` say so. Raises `UsageError`, `MissingError` or
    `FailedError` for everything that ends the work without a result; nothing is left behind then.
    """
    from dilrewrite.commands import pipeline
    from dilrewrite.options import OptimizeOptions
    from dilrewrite.tensorrt import engines

    options = OptimizeOptions(
        strategy=strategy,
        eliminate=eliminate,
        max_dilation=max_dilation,
        only=only,
        skip=skip,
        shapes=tuple(shapes),
        inputs=Path(inputs) if inputs is not None else None,
        verify=verify,
        rtol=rtol,
        atol=atol,
        dry_run=dry_run,
        force=force,
        seed=seed,
        threads=threads,
        custom_op_library=tuple(Path(library) for library in custom_op_library),
        external_data=external_data,
        backend=backend,
        budget_s=budget_s,
        min_gain_percent=min_gain_percent,
        decisions=Path(decisions) if decisions is not None else None,
        save_decisions=Path(save_decisions) if save_decisions is not None else None,
        cache=Path(cache) if cache is not None else None,
        no_cache=no_cache,
        order=_order(build_engine),
        engine=Path(engine) if engine is not None else None,
    )
    with engines.on_device(options.order.build.device if options.order is not None else None):
        return pipeline.optimize(
            Path(model),
            Path(output) if output is not None else None,
            options,
            report_folder=Path(report) if report not in (None, "beside") else None,
            report_beside=report == "beside",
            progress=progress or pipeline.silent,
        )


def build(
    model: StrPath,
    output: StrPath | None = None,
    *,
    flavour: Literal["auto", "tensorrt", "tensorrt-rtx"] = "auto",
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8-qdq"] | None = None,
    minima: Sequence[str] = (),
    optima: Sequence[str] = (),
    maxima: Sequence[str] = (),
    workspace_mib: int | None = None,
    timing_cache: StrPath | None = None,
    optimization_level: int | None = None,
    compute_capabilities: Sequence[str] = (),
    device: int | None = None,
    plugins: Sequence[StrPath] = (),
    refit: bool = False,
    strip_plan: bool = False,
    version_compatible: bool = False,
    weight_streaming: bool = False,
    inputs: StrPath | None = None,
    save_onnx: StrPath | None = None,
    export_layer_info: StrPath | None = None,
    report: StrPath | None = None,
    force: bool = False,
    seed: int = 0,
    threads: int | None = None,
    progress: Progress | None = None,
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Build the TensorRT engine of an ONNX model, and write it with a side-car JSON of all that is known of it.

    `output`: the engine's file, `<stem>.engine` beside the model by default; the side-car is `<output>.json`.
    `flavour`: TensorRT, or TensorRT for RTX, which builds without a GPU; `auto` is the one that is installed.
    `precision`: None is what the model holds (float32 with TF32); `fp16` and `bf16` convert a float32 model and hold
    the result to it; `int8-qdq` takes a symmetric QDQ model. What the engine's convolutions really compute in is read
    from its layer list, and an engine in another precision than asked for is an error.
    `minima`, `optima`, `maxima`: `NAME:1x3x224x224`, the sizes of inputs with unknown ones; one alone stands for all.
    `workspace_mib`: memory for scratch data, in MiB. `timing_cache`: a file that keeps kernel timings between builds.
    `optimization_level`: 0 to 5. `compute_capabilities`: GPUs to build for, as "8.6" (TensorRT for RTX). `device`: the
    GPU to build on. `plugins`: libraries of plugins. `refit`, `strip_plan`, `version_compatible`, `weight_streaming`:
    as TensorRT has them. `inputs`: an .npz to compare a conversion on. `save_onnx`: a file for the ONNX model
    as TensorRT gets it. `export_layer_info`: a file for the layers, as trtexec writes them. `tell` gets every line of
    TensorRT's log.

    Returns a report whose `engine` is the side-car's content. Raises `UsageError` for a model or sizes that TensorRT
    cannot take, `MissingError` without TensorRT, `FailedError` when the build fails, `DiffersError` when the conversion
    or the engine does not compute what the model does; no file is left then.
    """
    from dilrewrite.commands import pipeline
    from dilrewrite.options import OptimizeOptions
    from dilrewrite.tensorrt import engines

    order = engines.order(
        flavour=flavour,
        precision=precision,
        minima=minima,
        optima=optima,
        maxima=maxima,
        workspace_mib=workspace_mib,
        timing_cache=timing_cache,
        optimization_level=optimization_level,
        compute_capabilities=compute_capabilities,
        device=device,
        plugins=plugins,
        refit=refit,
        strip_plan=strip_plan,
        version_compatible=version_compatible,
        weight_streaming=weight_streaming,
    )
    options = OptimizeOptions(
        inputs=Path(inputs) if inputs is not None else None, force=force, seed=seed, threads=threads, no_cache=True
    )
    with engines.on_device(device):
        return pipeline.build_file(
            Path(model),
            Path(output) if output is not None else None,
            order,
            options,
            save_onnx=Path(save_onnx) if save_onnx is not None else None,
            export_layers=Path(export_layer_info) if export_layer_info is not None else None,
            report_folder=Path(report) if report is not None else None,
            progress=progress or pipeline.silent,
            tell=tell,
        )


def verify(
    before: StrPath,
    after: StrPath,
    *,
    shapes: Sequence[str] = (),
    inputs: StrPath | None = None,
    report: StrPath | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    threads: int | None = None,
    custom_op_library: Sequence[StrPath] = (),
) -> Report:
    """Compare two ONNX models as wholes: interface, checker findings, outputs on several inputs.

    The arguments are those of `optimize`. Returns a report with status `equal` or `differs`.
    """
    from dilrewrite.commands import pipeline
    from dilrewrite.options import OptimizeOptions

    options = OptimizeOptions(
        shapes=tuple(shapes),
        inputs=Path(inputs) if inputs is not None else None,
        rtol=rtol,
        atol=atol,
        seed=seed,
        threads=threads,
        custom_op_library=tuple(Path(library) for library in custom_op_library),
    )
    return pipeline.verify_files(
        Path(before), Path(after), options, report_folder=Path(report) if report is not None else None
    )


def bench(
    model: StrPath,
    other: StrPath | None = None,
    *,
    backend: str = "auto",
    budget_s: float = 20.0,
    shapes: Sequence[str] = (),
    inputs: StrPath | None = None,
    report: StrPath | None = None,
    seed: int = 0,
    threads: int | None = None,
    custom_op_library: Sequence[StrPath] = (),
    export_times: StrPath | None = None,
    export_profile: StrPath | None = None,
    progress: Progress | None = None,
) -> Report:
    """Time an ONNX model on a runtime, or another one against it, in pairs and for about `budget_s` seconds.

    The arguments are those of `optimize`. In the report, `measurement.final` has `model` as the first and `other` as
    the second; `measurement.noise` is `model` against itself. Nothing is taken from the cache of timings.
    Both may be TensorRT engines that `build` wrote, of one flavour, on the GPU that they were built for.
    `export_times`, `export_profile`: files for every run's time and for the time by layer, as trtexec writes them;
    those of `other` go to `<stem>.other<suffix>` beside them.
    """
    from dilrewrite.commands import pipeline
    from dilrewrite.options import OptimizeOptions

    options = OptimizeOptions(
        backend=backend,
        budget_s=budget_s,
        shapes=tuple(shapes),
        inputs=Path(inputs) if inputs is not None else None,
        seed=seed,
        threads=threads,
        custom_op_library=tuple(Path(library) for library in custom_op_library),
    )
    return pipeline.time_files(
        Path(model),
        Path(other) if other is not None else None,
        options,
        exports=pipeline.Exports(
            times=Path(export_times) if export_times is not None else None,
            profile=Path(export_profile) if export_profile is not None else None,
        ),
        report_folder=Path(report) if report is not None else None,
        progress=progress or pipeline.silent,
    )


__all__ = [
    "DiffersError",
    "DilrewriteError",
    "FailedError",
    "MissingError",
    "UsageError",
    "__version__",
    "bench",
    "build",
    "inspect",
    "inspect_engine",
    "optimize",
    "verify",
]
