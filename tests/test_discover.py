"""Plug-ins are found by their file name, in sorted order, and none disappears quietly."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dilrewrite.discover import discover

Make = Callable[..., ModuleType]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """A function that makes a package of the given files: name -> source."""
    monkeypatch.syspath_prepend(tmp_path)
    name = f"plugins_{tmp_path.name}"

    def make(**files: str) -> ModuleType:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "__init__.py").touch()
        for file, source in files.items():
            (folder / f"{file}.py").write_text(source)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield make
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_by_name_in_sorted_order(package: Make) -> None:
    found = discover(package(zebra="THING = 1", ant="THING = 2", _helper="raise SystemExit", _also="x = 1"), "THING")
    assert list(found.items()) == [("ant", 2), ("zebra", 1)]


def test_empty(package: Make) -> None:
    assert discover(package(_helper=""), "THING") == {}


def test_without_the_constant(package: Make) -> None:
    made = package(good="THING = 1", odd="THINGS = 1")
    with pytest.raises(AttributeError, match=r"odd\.py defines no THING"):
        discover(made, "THING")


@pytest.mark.parametrize(
    ("source", "error"),
    [("import no_such_module_here", ModuleNotFoundError), ("1 / 0", ZeroDivisionError), ("def", SyntaxError)],
)
def test_broken_files_raise(package: Make, source: str, error: type[Exception]) -> None:
    made = package(good="THING = 1", odd=source)
    with pytest.raises(error):
        discover(made, "THING")


def test_a_constant_that_is_false(package: Make) -> None:
    assert discover(package(none="THING = None"), "THING") == {"none": None}


@pytest.mark.parametrize(
    ("module", "function", "some"),
    [
        ("dilrewrite.forms.strategies", "strategies", {"keep", "space_to_batch", "tap_sum"}),
        ("dilrewrite.runtimes", "backends", {"onnxruntime_cpu", "reference"}),
        ("dilrewrite.reports.formats", "formats", {"json"}),
    ],
)
def test_the_real_folders(module: str, function: str, some: set[str]) -> None:
    owner = importlib.import_module(module)
    found = getattr(owner, function)()
    files = {path.stem for path in Path(str(owner.__file__)).parent.glob("*.py") if not path.stem.startswith("_")}
    assert list(found) == sorted(files)
    assert some <= files
