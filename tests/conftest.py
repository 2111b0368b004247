"""What all tests share."""

from __future__ import annotations

import signal
import zlib
from pathlib import Path

import pytest


def pytest_configure() -> None:
    """Take interrupts, as tests send some: what a shell runs in the background starts out ignoring them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every case of the large grids, not a sample")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take one case in n of a test marked `grid(n)`, and at least the first, unless `--full` asks for all."""
    if config.option.full:
        return
    begun: set[str] = set()
    kept, left = [], []
    for item in items:
        grid = item.get_closest_marker("grid")
        function = item.nodeid.partition("[")[0]
        first = function not in begun
        begun.add(function)
        sampled = grid is None or first or zlib.crc32(item.nodeid.encode()) % grid.args[0] == 0
        (kept if sampled else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


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
