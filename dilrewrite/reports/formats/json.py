"""The report as JSON, for programs; docs/report-schema.md describes it."""

from __future__ import annotations

import json
from typing import final

from dilrewrite.reports.report import Report


@final
class Json:
    """Every field of `Report`, indented, with a newline at the end."""

    filename: str | None = "report.json"
    default = True
    opening = r'\{\s*"schema_version": \d+,\s*"command": '

    def render(self, report: Report) -> str:
        """Return the JSON text."""
        return json.dumps(report.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


REPORT = Json()
