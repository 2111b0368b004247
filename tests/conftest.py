"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _no_measuring(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Measure nothing unless a test says so (marker `measures`), and never touch the user's cache of timings."""
    place: Path = tmp_path_factory.getbasetemp() / "timings" / "timings.sqlite"
    monkeypatch.setenv("DILREWRITE_CACHE", str(place))
    if request.node.get_closest_marker("measures") is None:
        monkeypatch.setattr("dilrewrite.decide.DEFAULT_BUDGET_S", 0.0)
    return
