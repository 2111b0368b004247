"""What all tests share."""

from __future__ import annotations

import os
import signal
import sys
import zlib
from pathlib import Path

import pytest

from tests import models_for_tests as tiny
from tests.forms_for_tests import skip_what_names_one_that_is_gone


def pytest_configure() -> None:
    """Take interrupts and hang-ups, as tests send some: what a shell or nohup runs may start out ignoring them."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of the processes that tests start compiles the package
    sys.dont_write_bytecode = False


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="every case of the large grids, not a sample")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Take one case in n of a test marked `grid(n)`, or the first where that is none, unless `--full` asks for all."""
    skip_what_names_one_that_is_gone(items)
    if config.option.full:
        return

    def function(item: pytest.Item) -> str:
        return item.nodeid.partition("[")[0]

    def sampled(item: pytest.Item) -> bool:
        grid = item.get_closest_marker("grid")
        return grid is None or zlib.crc32(item.nodeid.encode()) % grid.args[0] == 0

    sample = set(filter(sampled, items))
    reached = set(map(function, sample))
    sample.update({function(item): item for item in reversed(items) if function(item) not in reached}.values())
    config.hook.pytest_deselected(items=[item for item in items if item not in sample])
    items[:] = [item for item in items if item in sample]


@pytest.fixture(autouse=True)
def _no_measuring(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Measure nothing unless a test says so (marker `measures`), and never touch the user's cache of timings."""
    place: Path = tmp_path_factory.getbasetemp() / "timings" / "timings.sqlite"
    monkeypatch.setenv("DILREWRITE_CACHE", str(place))
    if request.node.get_closest_marker("measures") is None:
        monkeypatch.setattr("dilrewrite.options.DEFAULT_BUDGET_S", 0.0)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run whole models in this process: a child each takes most of a test's time, and is tested elsewhere."""
    tiny.in_process(monkeypatch)


@pytest.fixture
def profiled_in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profile in this process, likewise."""
    for module in ("timing.profiling", "choice.original"):
        monkeypatch.setattr(f"dilrewrite.{module}.profiled", lambda backend, *given: backend.profile(*given))
