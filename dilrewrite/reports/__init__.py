"""Describes what was done: the report's data, the words for it, and the formats that it is written in."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from dilrewrite.errors import UsageError, shown
from dilrewrite.reports.formats import formats
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import MEASURED
from dilrewrite.staging import Staging, reason, same_file

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
