"""What all tests share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Take interrupts, as tests send some: what a shell runs in the background starts out ignoring them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _no_measuring(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Measure nothing unless a test says so (marker `measures`), and never touch the user's cache of timings."""
    place: Path = tmp_path_factory.getbasetemp() / "timings" / "timings.sqlite"
    monkeypatch.setenv("DILREWRITE_CACHE", str(place))
    if request.node.get_closest_marker("measures") is None:
        monkeypatch.setattr("dilrewrite.options.DEFAULT_BUDGET_S", 0.0)
    return
