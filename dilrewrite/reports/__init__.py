"""Describes what was done: the report's data, the document made of it, and the formats that it is written in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dilrewrite.errors import UsageError, shown
from dilrewrite.reports.formats import is_report, written
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import TimeKind
from dilrewrite.staging import Staging, reason, same_place


def check_report_folder(
    folder: Path, *, others: Sequence[Path], force: bool = False, formats: Sequence[str] = ()
) -> None:
    """Raise `UsageError` unless the folder can be made or exists, and its reports would replace none of `others`.

    They replace reports of before; other files of these names only by `force`. `formats`: those asked for.
    """
    another = "name another folder"
    files = written(formats)
    try:
        if folder.exists() and not folder.is_dir():
            raise UsageError(f"--report {shown(folder)}: is not a folder", hint=another)
        if not folder.parent.is_dir():
            raise UsageError(f"--report {shown(folder)}: {shown(folder.parent)} is not a folder", hint="make it first")
        strangers = [name for name in files if os.path.lexists(folder / name) and not is_report(folder / name)]
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
        for name in files:
            place = folder / name
            if same_place(place, other):
                raise UsageError(f"--report {shown(folder)}: {name} would replace {shown(other)}", hint=another)


def write_reports(report: Report, folder: Path, staging: Staging, formats: Sequence[str] = ()) -> None:
    """Stage the formats of these names, the usual ones when there is none, into `folder`, which is made when need be.

    A report of before is replaced, another file only if the staging replaces files.
    Raises ValueError for times that were not measured, `UsageError` for an unknown format.
    """
    measurement = report.measurement
    if measurement is not None and measurement.source is not TimeKind.MEASURED:
        raise ValueError(f"times that are {measurement.source}, not measured, are in no report")
    files = written(formats)
    staging.make_folder(folder)
    for name, form in files.items():
        staging.add_text(folder / name, form.render(report), force=is_report(folder / name))
