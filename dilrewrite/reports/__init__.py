"""Describes what was done: the report's data, the document made of it, and the formats that it is written in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dilrewrite.errors import UsageError, shown
from dilrewrite.reports.formats import is_report, written
from dilrewrite.reports.report import Report
from dilrewrite.staging import Staging, reason, same_place


def check_report_folder(
    folder: Path, *, others: Sequence[Path], force: bool = False, formats: Sequence[str] = ()
) -> None:
    """Raise `UsageError` unless the folder can be made or exists, and its reports would replace none of `others`.

    They replace reports of before; other files of these names only by `force`. `formats`: those asked for.
    """

    def unusable(why: str, hint: str = "name another folder") -> UsageError:
        return UsageError(f"--report {shown(folder)}: {why}", hint=hint)

    files = written(formats)
    try:
        if folder.exists() and not folder.is_dir():
            raise unusable("is not a folder")
        if not folder.parent.is_dir():
            raise unusable(f"{shown(folder.parent)} is not a folder", "make it first")
        strangers = [name for name in files if os.path.lexists(folder / name) and not is_report(folder / name)]
    except OSError as error:
        raise unusable(f"cannot be reached: {reason(error)}") from error
    if strangers and not force:
        hint = "name another folder, or give --force where the command has it"
        raise unusable(f"{strangers[0]} exists and is no report of dilrewrite", hint)
    for other in others:
        if other.absolute() == folder.absolute():
            raise unusable("is a place for a model too")
        for name in files:
            if same_place(folder / name, other):
                raise unusable(f"{name} would replace {shown(other)}")


def write_reports(report: Report, folder: Path, staging: Staging, formats: Sequence[str] = ()) -> Report:
    """Stage the formats of these names, the usual ones when there is none, into `folder`, which is made when need be.

    Returns the report with the paths of its files. A report of before is replaced, another file only if the staging
    replaces files. Raises `UsageError` for an unknown format.
    """
    files = written(formats)
    staging.make_folder(folder)
    places = sorted((folder / name for name in files), key=lambda place: place.suffix != ".html")
    report = replace(report, files=tuple(map(shown, places)))
    for name, form in files.items():
        staging.add_text(folder / name, form.render(report), force=is_report(folder / name))
    return report
