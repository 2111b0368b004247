"""The report formats, one file each; a format turns a `Report` into text."""

from __future__ import annotations

import functools
import os
import re
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


_OURS = re.compile(rb'\A\{\s*"schema_version": \d+,\s*"command": |\A# dilrewrite \w+: |<title>dilrewrite \w+: ')
"""What a report has in its first lines, in one of the formats."""


def check_report_folder(folder: Path, *, others: Sequence[Path], force: bool = False) -> None:
    """Raise `UsageError` unless the folder can be made or exists, and its reports would replace none of `others`.

    They replace reports of before; other files of these names only by `force`.
    """
    another = "name another folder"
    names = [form.filename for form in formats().values() if form.filename is not None]
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--report {shown(folder)}: is not a folder", hint=another)
        if not folder.parent.is_dir():
            raise UsageError(f"--report {shown(folder)}: {shown(folder.parent)} is not a folder", hint="make it first")
        strangers = [name for name in names if os.path.lexists(folder / name) and not _is_report(folder / name)]
    except OSError as error:
        raise UsageError(f"--report {shown(folder)}: cannot be reached: {reason(error)}", hint=another) from error
    if strangers and not force:
        raise UsageError(
            f"--report {shown(folder)}: {strangers[0]} exists and is no report of dilrewrite",
            hint=f"{another}, or give --force where the command has it",
        )
    for other in others:
        if other.absolute() == folder.absolute():
            raise UsageError(f"--report {shown(folder)}: is a place for a model too", hint=another)
        for name in names:
            place = folder / name
            if place.absolute() == other.absolute() or same_file(place, other):
                raise UsageError(f"--report {shown(folder)}: {name} would replace {shown(other)}", hint=another)


def _is_report(file: Path) -> bool:
    """Say whether there is a report of before."""
    try:
        with file.open("rb") as content:
            return _OURS.search(content.read(1000)) is not None
    except OSError:
        return False


def write_reports(report: Report, folder: Path, staging: Staging) -> None:
    """Stage every format that has a file name into `folder`, which is made when it does not exist.

    A report of before is replaced, another file only if the staging replaces files.
    Raises ValueError for times that were not measured.
    """
    measurement = report.measurement
    if measurement is not None and measurement.source != MEASURED:
        raise ValueError(f"times that are {measurement.source}, not measured, are in no report")
    staging.make_folder(folder)
    for form in formats().values():
        if form.filename is not None:
            place = folder / form.filename
            staging.add_text(place, form.render(report), force=_is_report(place))
