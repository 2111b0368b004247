"""Formats of other distributions: found through entry points, written when asked for and known again."""

from __future__ import annotations

from pathlib import Path

import pytest

from dilrewrite.reports import check_report_folder, write_reports
from dilrewrite.reports import formats as package
from dilrewrite.reports.formats import formats, written
from dilrewrite.staging import Staging
from tests.plug_ins import EXAMPLES, forget
from tests.reports.examples import REPORTS

EQUAL = '{"schemaVersion": 1, "label": "dilrewrite", "message": "equal", "color": "green"}\n'


def test_a_format_of_another_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRIBUTING's example."""
    EXAMPLES["report format"].install(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget(package)
    try:
        assert "badge" in formats()
        assert "report.badge.json" not in written()
        for _ in range(2):
            check_report_folder(tmp_path / "told", others=[], formats=["badge"])
            with Staging() as staging:
                write_reports(REPORTS["equal"], tmp_path / "told", staging, ["badge"])
                staging.commit()
        assert [place.name for place in (tmp_path / "told").iterdir()] == ["report.badge.json"]
        assert (tmp_path / "told" / "report.badge.json").read_text() == EQUAL
    finally:
        monkeypatch.undo()
        forget(package)
