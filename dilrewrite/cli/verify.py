"""dilrewrite verify BEFORE AFTER: whether two models compute the same function."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dilrewrite.cli._common import (
    AtolOption,
    InputsOption,
    JsonOption,
    LibraryOption,
    QuietOption,
    ReportOption,
    RtolOption,
    SeedOption,
    ShapeOption,
    ThreadsOption,
    show,
)


def command(
    before: Annotated[Path, typer.Argument(metavar="BEFORE", help="The original model.", show_default=False)],
    after: Annotated[Path, typer.Argument(metavar="AFTER", help="The model to compare.", show_default=False)],
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    report: ReportOption = None,
    rtol: RtolOption = None,
    atol: AtolOption = None,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    custom_op_library: LibraryOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Compare two models: interface, checker findings, outputs on several inputs. Exit code 3 when they differ."""
    import dilrewrite

    result = dilrewrite.verify(
        before,
        after,
        shapes=shape or (),
        inputs=inputs,
        report=report,
        rtol=rtol,
        atol=atol,
        seed=seed,
        threads=threads,
        custom_op_library=custom_op_library or (),
    )
    return show(result, as_json=as_json, quiet=quiet)
