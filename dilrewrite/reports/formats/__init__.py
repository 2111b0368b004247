"""The report formats, one file each; a format turns a `Report` into text."""

from __future__ import annotations

import functools
import sys
from typing import Protocol, cast

from dilrewrite.discover import discover
from dilrewrite.reports.report import Report


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
