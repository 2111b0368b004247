"""dilrewrite inspect MODEL: every dilated Conv, the forms that apply, and why others refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from dilrewrite.cli._common import progress, show
from dilrewrite.cli._options import MODEL, command
from dilrewrite.errors import UsageError

EXAMPLES = [
    ("every dilated Conv, and which forms apply", "inspect model.onnx"),
    ("with each Conv's share of the time", "inspect model.onnx --profile --shape 1x3x512x512"),
    ("which nodes a device takes, and by which rule", "inspect model.onnx --target rknn-2.3.2"),
    ("what a TensorRT engine holds", "inspect model.engine"),
]


@command(
    "model max_dilation target profile backend on threads shapes inputs custom_op_library report report_format as_json "
    "verbose quiet",
    EXAMPLES,
    {"model": MODEL},
)
def run(model: Path, *, as_json: bool, verbose: bool, quiet: bool, **options: Any) -> int:
    """List every dilated Conv, the forms that apply and why others refuse; of an engine, what its side-car says."""
    import dilrewrite
    from dilrewrite.tensorrt import sidecar

    if not sidecar.is_engine(model):
        with progress(hidden=quiet or as_json):
            report = dilrewrite.inspect(model, **options)
        return show(report, as_json=as_json, verbose=verbose, quiet=quiet)
    for option in ("profile", "report", "report_format", "target"):
        if options[option]:
            flag = f"--{option.replace('_', '-')}"
            raise UsageError(f"{flag}: of an engine only the side-car is shown", hint="leave it out")
    engine = dilrewrite.inspect_engine(model)
    if as_json:
        typer.echo(sidecar.render(engine), nl=False)
    elif not quiet:
        from dilrewrite.reports.formats import console

        console.show(engine, verbose=verbose)
    return 0
