"""dilrewrite inspect MODEL: every dilated Conv, the forms that apply, and why others refuse."""

from __future__ import annotations

from typing import Annotated

import typer

from dilrewrite.cli._common import (
    BackendOption,
    InputsOption,
    JsonOption,
    LibraryOption,
    MaxDilationOption,
    ModelArgument,
    QuietOption,
    ReportOption,
    ShapeOption,
    ThreadsOption,
    show,
)
from dilrewrite.errors import UsageError


def command(
    model: ModelArgument,
    max_dilation: MaxDilationOption = 1,
    profile: Annotated[
        bool, typer.Option("--profile", help="Run the model, and show each Conv's share of its time.")
    ] = False,
    backend: BackendOption = "auto",
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    threads: ThreadsOption = None,
    custom_op_library: LibraryOption = None,
    report: ReportOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """List every dilated Conv, the forms that apply and why others refuse; of an engine, what its side-car says."""
    import dilrewrite
    from dilrewrite.tensorrt import sidecar

    if sidecar.is_engine(model):
        for option, given in (("--profile", profile), ("--report", report is not None)):
            if given:
                raise UsageError(f"{option}: of an engine only the side-car is shown", hint="leave it out")
        found = dilrewrite.inspect_engine(model)
        if as_json:
            typer.echo(sidecar.render(found), nl=False)
        elif not quiet:
            from dilrewrite.reports.formats import console

            console.show_engine(found)
        return 0
    result = dilrewrite.inspect(
        model,
        max_dilation=max_dilation,
        profile=profile,
        backend=backend,
        shapes=shape or (),
        inputs=inputs,
        threads=threads,
        custom_op_library=custom_op_library or (),
        report=report,
    )
    return show(result, as_json=as_json, quiet=quiet)
