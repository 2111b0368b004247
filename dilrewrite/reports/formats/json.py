"""The report as JSON, for programs; docs/report-schema.md describes it."""

from __future__ import annotations

import json

from dilrewrite.reports.formats import Format
from dilrewrite.reports.report import Report


def render(report: Report) -> str:
    """Return every field of a report, indented, with a newline at the end."""
    return json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


OPENING = r'\{\s*"schema_version": \d+,\s*"command": '
REPORT = Format(render=render, filename="report.json", default=True, opening=OPENING)
