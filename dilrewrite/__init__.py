"""Rewrites dilated convolutions of ONNX models into exactly equal undilated subgraphs, and proves it.

>>> import dilrewrite
>>> report = dilrewrite.optimize("model.onnx", "undilated.onnx", eliminate=True)  # doctest: +SKIP
>>> report.status, report.rewritten  # doctest: +SKIP
('rewritten', 7)

Importing this package loads no runtime, and neither onnx nor NumPy; the functions load what they need.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dilrewrite._version import __version__
from dilrewrite.errors import DiffersError, DilrewriteError, FailedError, MissingError, UsageError

if TYPE_CHECKING:
    from dilrewrite.pipeline import Progress
    from dilrewrite.report import Report

_LAZY = {
    "Report": "dilrewrite.report",
    "SiteReport": "dilrewrite.report",
    "ModelReport": "dilrewrite.report",
    "ConvGeometry": "dilrewrite.geometry",
    "Proof": "dilrewrite.prove",
    "Verdict": "dilrewrite.verdict",
}

StrPath = str | os.PathLike[str]


def __getattr__(name: str) -> object:
    """Load the types that the functions return when they are asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def inspect(model: StrPath, *, max_dilation: int = 1, report: StrPath | None = None) -> Report:
    """Describe every dilated Conv of an ONNX model, the forms that apply to it, and why others refuse.

    `max_dilation`: plan for a device that runs dilations up to it. `report`: a folder for report.json and report.md.
    Needs no runtime.
    Raises `UsageError` when the file is no usable ONNX model or holds an invalid dilated Conv.
    """
    from dilrewrite import pipeline

    return pipeline.inspect(
        Path(model), max_dilation=max_dilation, report_folder=Path(report) if report is not None else None
    )


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
    progress: Progress | None = None,
) -> Report:
    """Rewrite the dilated Convs of an ONNX model, prove the result equal, and write it.

    `output`: the file to write, `<stem>.dilrewrite.onnx` beside the model by default; `force` replaces an existing one.
    `strategy`: `NAME[:key=value,...]`, the form to use wherever it applies; by default the one with the lowest estimate
    of multiply-adds and elements moved, the Conv itself included. `eliminate`: leave no dilation above `max_dilation`.
    `only`, `skip`: regular expressions searched in a node's name, `where/name` and output.
    `shapes`: `NAME:1x3x224x224` for inputs with unknown sizes; `inputs`: an .npz with data by input name.
    `verify`: `full` proves every site and compares the whole models, `sites` only the former, `none` (with `strategy`
    only) neither. `rtol`, `atol`: |difference| <= atol + rtol * |value| instead of the tolerance by element type.
    `report`: a folder for report.json and report.md; "beside" is `<output stem>.report` beside the output, which stays
    away when dilation is left. `dry_run`: write nothing. `external_data`: see docs/way.md.

    Returns the report. Where results differ or dilation is left that `eliminate` should remove, no model is written:
    `report.status` and `report.exit_code` say so. Raises `UsageError`, `MissingError` or `FailedError` for everything
    that ends the work without a result; nothing is left behind then.
    """
    from dilrewrite import decide, pipeline

    options = decide.OptimizeOptions(
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
    )
    return pipeline.optimize(
        Path(model),
        Path(output) if output is not None else None,
        options,
        report_folder=Path(report) if report not in (None, "beside") else None,
        report_beside=report == "beside",
        progress=progress or pipeline.silent,
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
    from dilrewrite import decide, pipeline

    options = decide.OptimizeOptions(
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


__all__ = [
    "DiffersError",
    "DilrewriteError",
    "FailedError",
    "MissingError",
    "UsageError",
    "__version__",
    "inspect",
    "optimize",
    "verify",
]
