"""Every file imports only from its own room and those below, in the order of docs/way.md, and no two in a circle.

Looked at are the imports of a file wherever they stand, also in functions and under TYPE_CHECKING; for circles those at
module level, under TYPE_CHECKING too.
"""

from __future__ import annotations

import ast
import graphlib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WAY = ROOT / "docs" / "way.md"

NOT_YET: set[str] = set()
"""Imports against the order that are still there: `file -> module`. One that is gone has to go from here."""


def rooms() -> dict[str, int]:
    """The rooms of docs/way.md with their floors, counted from below; rooms in one line stand beside each other."""
    (block,) = re.findall(r"```rooms\n(.*?)```", WAY.read_text(encoding="utf-8"), re.DOTALL)
    lines = [line.split("#")[0].split() for line in block.splitlines()]
    return {room: floor for floor, line in enumerate(reversed(lines)) for room in line}


def files(package: Path) -> dict[str, Path]:
    """Every module of the package by its name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(node: ast.AST, *, deep: bool) -> Iterator[ast.stmt]:
    """The statements of a file: all, or (not `deep`) those outside of functions."""
    for below in ast.iter_child_nodes(node):
        if isinstance(below, ast.stmt):
            yield below
        if not isinstance(below, ast.expr) and (deep or not isinstance(below, ast.FunctionDef)):
            yield from statements(below, deep=deep)


def imports(path: Path, modules: Mapping[str, Path], *, deep: bool) -> Iterator[str]:
    """The package's modules that a file imports: anywhere, or (not `deep`) at module level."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8")), deep=deep):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if name in modules)
            if any(name not in modules for name in names):
                yield str(node.module)


def room(module: str) -> str:
    """The room of a module: its folder, or its own name where it stands at the root; a plug-in runtime has its own."""
    parts = module.split(".")[1:]
    if parts[:1] == ["runtimes"] and len(parts) == 2 and not parts[1].startswith("_"):
        return "runtimes/*"
    return parts[0] if parts else "dilrewrite"


def violations(package: Path) -> set[str]:
    """`file -> module` for every import of a room that is not below the file's own."""
    modules, floors = files(package), rooms()
    return {
        f"{path.relative_to(package).as_posix()} -> {other}"
        for module, path in modules.items()
        for other in imports(path, modules, deep=True)
        if room(other) != room(module) and floors[room(other)] >= floors[room(module)]
    }


def circle(package: Path) -> list[str]:
    """The members of a circle of imports; nothing where there is none."""
    modules = files(package)
    try:
        graphlib.TopologicalSorter(
            {name: set(imports(path, modules, deep=False)) - {name} for name, path in modules.items()}
        ).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_every_file_has_a_room() -> None:
    floors = rooms()
    assert {module for module in files(ROOT / "dilrewrite") if room(module) not in floors} == set()


def test_no_file_imports_a_room_above_its_own() -> None:
    upward = violations(ROOT / "dilrewrite")
    assert upward == NOT_YET, f"a file imports only from its own room and those below it in docs/way.md: {upward}"


def test_no_circle() -> None:
    assert circle(ROOT / "dilrewrite") == []


def drawn() -> list[set[str]]:
    """The rooms in each line of the drawing of docs/architecture.md: a name is followed by two spaces at least."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").partition("## Who may know whom")[2]
    lines = [line for line in text.split("```")[1].splitlines() if "│" in line]
    return [
        {part for cell in line.split("│") for part in re.split(r"\s{2,}", cell.strip())} & {*rooms()} for line in lines
    ]


def test_every_package_is_drawn_on_its_floor() -> None:
    packages = {path.parent.name for path in (ROOT / "dilrewrite").glob("*/__init__.py")}
    assert packages - set.union(*drawn()) == set(), "docs/architecture.md draws every package"
    floors = [{rooms()[room] for room in line} for line in drawn()]
    assert all(min(above) > max(below) for above, below in itertools.pairwise(floors))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small house in order."""
    for name, text in {
        "__init__": "",
        "sites/__init__": "",
        "sites/find": "from dilrewrite.model.walk import graphs\n",
        "model/__init__": "",
        "model/walk": "from dilrewrite import errors\n",
        "errors": "",
        "timing/__init__": "",
        "timing/measure": "from dilrewrite.sites.find import find\n",
    }.items():
        path = tmp_path / "dilrewrite" / f"{name}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    return tmp_path / "dilrewrite"


@pytest.mark.parametrize(
    "line", ["from dilrewrite.timing import measure", "def f():\n    from dilrewrite.timing.measure import Answer"]
)
def test_notices_that_sites_import_timing(package: Path, line: str) -> None:
    assert violations(package) == set()
    with (package / "sites" / "find.py").open("a") as file:
        file.write(f"{line}\n")
    assert violations(package) == {"sites/find.py -> dilrewrite.timing.measure"}


def test_notices_a_circle(package: Path) -> None:
    assert circle(package) == []
    with (package / "model" / "walk.py").open("a") as file:
        file.write("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dilrewrite.model import light\n")
    (package / "model" / "light.py").write_text("from dilrewrite.model.walk import graphs\n")
    assert set(circle(package)) == {"dilrewrite.model.walk", "dilrewrite.model.light"}


def test_a_runtime_may_know_tensorrt_and_the_protocol_may_not(package: Path) -> None:
    for name, text in {
        "tensorrt/__init__": "",
        "tensorrt/cuda": "from dilrewrite.runtimes import Io\n",
        "runtimes/__init__": "",
        "runtimes/tensorrt": "from dilrewrite.tensorrt.cuda import Cuda\n",
    }.items():
        (package / f"{name}.py").parent.mkdir(exist_ok=True)
        (package / f"{name}.py").write_text(text)
    assert violations(package) == set()
    (package / "runtimes" / "_worker.py").write_text("from dilrewrite.tensorrt.cuda import Cuda\n")
    assert violations(package) == {"runtimes/_worker.py -> dilrewrite.tensorrt.cuda"}
