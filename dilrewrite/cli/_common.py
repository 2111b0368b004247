"""What the commands share: showing a report, progress on a terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

import typer

if TYPE_CHECKING:
    from dilrewrite.reports.report import Report


def show(report: Report, *, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Print a report in the way asked for, by default on one screen, and return its exit code."""
    from dilrewrite.reports.formats import formats

    if as_json:
        sys.stdout.write(formats()["json"].render(report))
    elif not quiet:
        from dilrewrite.reports.formats import console

        console.show(report, sys.stdout, verbose=verbose)
    elif report.exit_code:
        from dilrewrite.errors import printable
        from dilrewrite.reports.content.answer import answer

        typer.echo(f"dilrewrite: {printable(answer(report))}", err=True)
    return report.exit_code


EVERY_S = 10.0  # without a terminal, a line of progress is printed so often


@contextmanager
def progress(*, hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on standard error: bars on a terminal, elsewhere a line every `EVERY_S` seconds."""
    if hidden:
        yield lambda _step, _done, _total: None
        return
    # A descriptor of its own: while an engine is built, what is written to number 2 is kept for error messages.
    screen = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    with screen, (_bars if sys.stderr.isatty() else _lines)(screen) as update:
        yield update


@contextmanager
def _bars(screen: TextIO) -> Iterator[Callable[[str, int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=screen), transient=True) as bar:
        tasks: dict[str, object] = {}

        def update(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            shown = _said(step, done, total)
            bar.update(tasks[step], completed=done, total=total, description=shown)  # type: ignore[arg-type]

        yield update


def _said(step: str, done: int, total: int) -> str:
    return f"{step}: {max(total - done, 0)} s left" if step == "measure" else step


@contextmanager
def _lines(screen: TextIO) -> Iterator[Callable[[str, int, int], None]]:
    """Print the step that a command is at every `EVERY_S` seconds, as long as it is at work."""
    start, ended = time.monotonic(), threading.Event()
    at = ""

    def update(step: str, done: int, total: int) -> None:
        nonlocal at
        parts = f", {done} of {total}" if step != "measure" and total > 1 else ""
        at = f": {_said(step, done, total)}{parts}"

    def tell() -> None:
        while not ended.wait(EVERY_S):
            line = f"dilrewrite: at work, {time.monotonic() - start:.0f} s{at}\n"
            with suppress(OSError):  # nothing reads it any more, say
                os.write(screen.fileno(), line.encode("utf-8", "backslashreplace"))

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield update
    finally:
        ended.set()
        teller.join()
