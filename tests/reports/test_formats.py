"""Formats of other distributions: found through entry points, written when asked for and known again."""

from __future__ import annotations

from pathlib import Path

import pytest

from dilrewrite import discover
from dilrewrite.reports import check_report_folder, write_reports
from dilrewrite.reports.formats import formats, written
from dilrewrite.staging import Staging
from tests.reports.examples import REPORTS
from tests.test_discover import installed

THEIRS = """
class Lines:
    filename = "report.lines"
    default = False
    opening = "status: "

    def render(self, report):
        return f"status: {report.status}\\n"

REPORT = Lines()
"""


def test_a_format_of_another_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "their_lines.py").write_text(THEIRS)
    installed(tmp_path, "their-lines", "dilrewrite.reports", {"lines": "their_lines:REPORT"})
    _forget()
    try:
        assert "lines" in formats()
        assert "report.lines" not in written()
        for _ in range(2):
            check_report_folder(tmp_path / "told", others=[], formats=["lines"])
            with Staging() as staging:
                write_reports(REPORTS["equal"], tmp_path / "told", staging, ["lines"])
                staging.commit()
        assert [place.name for place in (tmp_path / "told").iterdir()] == ["report.lines"]
        assert (tmp_path / "told" / "report.lines").read_text() == "status: equal\n"
    finally:
        monkeypatch.undo()
        _forget()


def _forget() -> None:
    formats.cache_clear()
    discover._foreign.cache_clear()
