"""What is copied to a board: a zip of the files of dilrewrite that are imported there, as their text says."""

from __future__ import annotations

import ast
import functools
import importlib.util
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

NEEDED = ("devices._keeper", "devices._runner", "devices._arrays", "runtimes._worker")

EMPTY = ("dilrewrite", "dilrewrite.devices")
"""Packages whose own file is for this machine."""


@functools.cache
def bundle(runtimes: Sequence[str]) -> bytes:
    """Return the zip, with these modules of `dilrewrite.runtimes`."""
    more = ["devices._builder"] if "tensorrt" in runtimes else []
    waiting = [f"dilrewrite.{name}" for name in (*NEEDED, *more, *(f"runtimes.{name}" for name in runtimes))]
    texts: dict[str, tuple[str, str]] = {}
    while waiting:
        module = waiting.pop()
        if module in texts:
            continue
        path, package = _file(module)
        text = "" if module in EMPTY else path.read_text(encoding="utf-8")
        texts[module] = f"{module.replace('.', '/')}{'/__init__' if package else ''}.py", text
        waiting += [*_imported(text), *([parent] if (parent := module.rpartition(".")[0]) else [])]
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in sorted(texts.values()):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, zipfile.ZIP_DEFLATED)
    return held.getvalue()


def _file(module: str) -> tuple[Path, bool]:
    """Return the file of a module, and whether that is a package."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return Path(spec.origin), spec.submodule_search_locations is not None


def _imported(text: str) -> Iterator[str]:
    """Yield the modules of dilrewrite that a file imports, anywhere but for type checkers."""
    waiting: list[ast.AST] = [ast.parse(text)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dilrewrite":
            yield str(node.module)
            for alias in node.names:
                if importlib.util.find_spec(str(node.module)) is not None and _is_module(f"{node.module}.{alias.name}"):
                    yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "dilrewrite")
        waiting += ast.iter_child_nodes(node)


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
