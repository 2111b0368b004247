"""What the commands share: options, showing a report, progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dilrewrite.reports.report import Report

ModelArgument = Annotated[
    Path, typer.Argument(metavar="MODEL", help="An ONNX model, opset 7 or later.", show_default=False)
]
ShapeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shape", metavar="NAME:1x3xHxW", help="Size of an input with unknown extents. Repeatable.", show_default=False
    ),
]
InputsOption = Annotated[
    Path | None, typer.Option("--inputs", metavar="FILE.npz", help="Data to run on, by input name.", show_default=False)
]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", metavar="DIR", help="Folder for report.json, .md and .html.", show_default=False),
]
RtolOption = Annotated[
    float | None,
    typer.Option("--rtol", min=0, help="Relative tolerance, instead of one by element type.", show_default=False),
]
AtolOption = Annotated[
    float | None,
    typer.Option("--atol", min=0, help="Absolute tolerance, instead of one by element type.", show_default=False),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of all random data.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=4096, help="Threads inside an operator. [default: the runtime's]", show_default=False
    ),
]
LibraryOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--custom-op-library",
        metavar="FILE",
        help="Shared library with custom operators. Repeatable.",
        show_default=False,
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the report as JSON, and nothing else, on standard output.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
BackendOption = Annotated[
    str, typer.Option("--backend", metavar="NAME", help="The runtime to time on; auto is the best that is ready.")
]
MaxDilationOption = Annotated[
    int, typer.Option("--max-dilation", min=1, metavar="N", help="Dilations up to N may stay.")
]


def show(report: Report, *, as_json: bool, quiet: bool) -> int:
    """Print a report in the way asked for and return its exit code."""
    from dilrewrite.reports.formats import formats

    if as_json:
        sys.stdout.write(formats()["json"].render(report))
    elif not quiet:
        from dilrewrite.reports.formats import console

        console.show(report, sys.stdout)
    elif report.exit_code:
        from dilrewrite.errors import printable
        from dilrewrite.reports.words import outcome

        typer.echo(f"dilrewrite: {printable(outcome(report))}", err=True)
    return report.exit_code


@contextmanager
def progress(*, hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on standard error when that is a terminal."""
    if hidden or not sys.stderr.isatty():
        yield lambda _step, _done, _total: None
        return
    import os

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # A descriptor of its own: while an engine is built, what is written to number 2 is kept for error messages.
    screen = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    with screen, Progress(*columns, console=Console(file=screen), transient=True) as bar:
        tasks: dict[str, object] = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            shown = f"{step}: {max(total - done, 0)} s left" if step == "measure" else step
            bar.update(tasks[step], completed=done, total=total, description=shown)  # type: ignore[arg-type]

        yield update
