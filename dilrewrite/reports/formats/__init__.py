"""The report formats, one file each; a format turns a `Report` into text."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from dilrewrite.discover import discover
from dilrewrite.errors import UsageError, choices
from dilrewrite.reports.document import Document
from dilrewrite.reports.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A report format.

    `render` makes the whole text; `filename` is its file in a report folder, `None` for one that is only shown;
    `default`: it is written when no format is asked for; `opening`: a regular expression that its files, and no others,
    begin with. `page`: makes the text of any document; `None` for a format that has something of its own to say.
    """

    render: Callable[[Report], str]
    filename: str | None = None
    default: bool = False
    opening: str = ""
    page: Callable[[Document], str] | None = None


@functools.cache
def formats() -> dict[str, Format]:
    """Return every format by name, in sorted order."""
    return cast(
        "dict[str, Format]",
        discover(sys.modules[__name__], "REPORT", "dilrewrite.reports", ("render", "filename", "default", "opening")),
    )


def written(names: Iterable[str] = ()) -> dict[str, Format]:
    """Return the formats of these names, the usual ones for no name, by file name; raises `UsageError` for others."""
    files = {name: form for name, form in formats().items() if form.filename is not None}
    names = list(names) or [name for name, form in files.items() if form.default]
    for name in names:
        if name not in files:
            raise UsageError(f"--report-format {name}: there is no such format", hint=choices(name, files, "one of"))
    return {str(files[name].filename): files[name] for name in names}


def is_report(file: Path) -> bool:
    """Say whether a file is a report of before, in whatever format."""
    try:
        with file.open("rb") as content:
            start = content.read(1000)
    except OSError:
        return False
    openings = [form.opening.encode() for form in formats().values() if form.opening]
    return any(re.match(opening, start, re.DOTALL) for opening in openings)
