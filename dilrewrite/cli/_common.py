"""What the commands share: showing a report, progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from dilrewrite.reports.report import Report


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
        from dilrewrite.reports.content.answer import answer

        typer.echo(f"dilrewrite: {printable(answer(report))}", err=True)
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
