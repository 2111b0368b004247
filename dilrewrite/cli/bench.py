"""dilrewrite bench MODEL [OTHER]: how long a model takes, or another one against it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dilrewrite.cli._common import (
    BackendOption,
    InputsOption,
    JsonOption,
    LibraryOption,
    ModelArgument,
    QuietOption,
    ReportOption,
    SeedOption,
    ShapeOption,
    ThreadsOption,
    progress,
    show,
)


def command(
    model: ModelArgument,
    other: Annotated[
        Path | None, typer.Argument(metavar="[OTHER]", help="A model to time against it.", show_default=False)
    ] = None,
    backend: BackendOption = "auto",
    budget: Annotated[float, typer.Option("--budget", metavar="SECONDS", min=0, help="How long it may take.")] = 20.0,
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    report: ReportOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    custom_op_library: LibraryOption = None,
    export_times: Annotated[
        Path | None,
        typer.Option(
            "--export-times", metavar="FILE", help="Every run's time, as trtexec writes it.", show_default=False
        ),
    ] = None,
    export_profile: Annotated[
        Path | None,
        typer.Option(
            "--export-profile", metavar="FILE", help="Time by layer, as trtexec writes it.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Time a model, or another against it in pairs: ratio with interval, and the noise of the first against itself."""
    import dilrewrite

    with progress(hidden=quiet or as_json) as show_progress:
        result = dilrewrite.bench(
            model,
            other,
            backend=backend,
            budget_s=budget,
            shapes=shape or (),
            inputs=inputs,
            report=report,
            seed=seed,
            threads=threads,
            custom_op_library=custom_op_library or (),
            export_times=export_times,
            export_profile=export_profile,
            progress=show_progress,
        )
    return show(result, as_json=as_json, quiet=quiet)
