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


def installed(folder: Path, name: str, group: str, entries: dict[str, str]) -> None:
    """Put a distribution into a folder of sys.path, with nothing but its entry points."""
    info = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    lines = "\n".join(f"{entry} = {value}" for entry, value in entries.items())
    (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")


def test_entry_points_come_after_the_folder(package: Make, tmp_path: Path) -> None:
    made = package(zebra="THING = 1")
    (tmp_path / "their_code.py").write_text("ONE, TWO = 2, 3")
    installed(tmp_path, "their-things", "dilrewrite.things", {"cat": "their_code:TWO", "ant": "their_code:ONE"})
    found = discover(made, "THING", "dilrewrite.things")
    assert list(found.items()) == [("zebra", 1), ("ant", 2), ("cat", 3)]
    assert discover(made, "THING", "dilrewrite.others") == discover(made, "THING") == {"zebra": 1}


def test_a_broken_entry_point_is_a_line_and_not_the_end(
    package: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = package(zebra="THING = 1")
    (tmp_path / "bad_code.py").write_text("1 / 0")
    (tmp_path / "exits_code.py").write_text("raise SystemExit(3)")
    (tmp_path / "odd_code.py").write_text("ONE = 1")
    codes = {"ant": "bad_code:ONE", "bee": "no_such_code:ONE", "cow": "exits_code:ONE", "dog": "odd_code:ONE"}
    installed(tmp_path, "their-broken", "dilrewrite.broken", codes)
    for _ in range(2):
        assert discover(made, "THING", "dilrewrite.broken", ("real", "at")) == {"zebra": 1}
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(": it cannot")[0] for line in lines] == [
        "dilrewrite: bad_code:ONE, a plug-in of their-broken 1.2, is left out",
        "dilrewrite: no_such_code:ONE, a plug-in of their-broken 1.2, is left out",
        "dilrewrite: exits_code:ONE, a plug-in of their-broken 1.2, is left out",
        "dilrewrite: odd_code:ONE, a plug-in of their-broken 1.2, is left out",
    ]
    assert "ZeroDivisionError: division by zero" in lines[0]
    assert "ModuleNotFoundError: No module named 'no_such_code'" in lines[1]
    assert lines[2].endswith("SystemExit: 3")
    assert lines[3].endswith("TypeError: 1 has no at")


def test_a_name_that_is_taken_names_both(package: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = package(zebra="THING = 1")
    (tmp_path / "more_code.py").write_text("ONE, TWO = 2, 3")
    for name in ("first", "second"):
        entries = {"zebra": "more_code:ONE", "cat": "more_code:TWO"} if name == "first" else {"cat": "more_code:ZZZ"}
        installed(tmp_path, name, "dilrewrite.taken", entries)
    assert discover(made, "THING", "dilrewrite.taken") == {"zebra": 1, "cat": 3}
    lines = capsys.readouterr().err.splitlines()
    assert "more_code:ZZZ, a plug-in of second 1.2," in lines[0]
    assert lines[0].endswith("dilrewrite.taken has 'cat' of first 1.2 already")
    assert "more_code:ONE, a plug-in of first 1.2," in lines[1]
    assert lines[1].endswith("dilrewrite.taken has 'zebra' of dilrewrite itself already")


@pytest.mark.parametrize(
    ("module", "function", "some"),
    [
        ("dilrewrite.forms.strategies", "every_strategy", {"keep", "space_to_batch", "tap_sum"}),
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
