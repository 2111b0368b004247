"""The report formats, one file each; a format turns a `Report` into text."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from dilrewrite.backends import MEASURED
from dilrewrite.discover import discover
from dilrewrite.errors import UsageError, shown
from dilrewrite.report import Report
from dilrewrite.staging import Staging, reason, same_file


class Format(Protocol):
    """A report format. `filename` is its file in a report folder, `None` for one that is only shown."""

    filename: str | None

    def render(self, report: Report) -> str:
        """Return the whole report as text."""
        ...


@functools.cache
def formats() -> dict[str, Format]:
    """Return every format by name, in sorted order."""
    return cast("dict[str, Format]", discover(sys.modules[__name__], "REPORT"))


def check_report_folder(folder: Path, *, others: Sequence[Path]) -> None:
    """Raise `UsageError` unless the folder can be made or exists, and its reports would replace none of `others`."""
    another = "name another folder"
    names = [form.filename for form in formats().values() if form.filename is not None]
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--report {shown(folder)}: is not a folder", hint=another)
        if not folder.parent.is_dir():
            raise UsageError(f"--report {shown(folder)}: {shown(folder.parent)} is not a folder", hint="make it first")
    except OSError as error:
        raise UsageError(f"--report {shown(folder)}: cannot be reached: {reason(error)}", hint=another) from error
    for other in others:
        if other.absolute() == folder.absolute():
            raise UsageError(f"--report {shown(folder)}: is a place for a model too", hint=another)
        for name in names:
            place = folder / name
            if place.absolute() == other.absolute() or same_file(place, other):
                raise UsageError(f"--report {shown(folder)}: {name} would replace {shown(other)}", hint=another)


def write_reports(report: Report, folder: Path, staging: Staging) -> None:
    """Stage every format that has a file name into `folder`, which is made when it does not exist.

    Raises ValueError for times that were not measured.
    """
    measurement = report.measurement
    if measurement is not None and measurement.source != MEASURED:
        raise ValueError(f"times that are {measurement.source}, not measured, are in no report")
    staging.make_folder(folder)
    for form in formats().values():
        if form.filename is not None:
            staging.add_text(folder / form.filename, form.render(report), force=True)
