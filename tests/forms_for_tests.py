"""Strategies as tests speak of them. One that is gone takes along the tests that tell their story with it."""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from dilrewrite.forms.strategies import every_strategy

ROOT = Path(__file__).parents[1]
RECORDED = ROOT / "tests" / "forms" / "strategies" / "counts.json"

INEXACT = {name for name, strategy in every_strategy().items() if strategy.finite_inputs_only}
"""Forms that are exact for finite inputs only."""

GONE = {name for name in json.loads(RECORDED.read_text()) if name not in every_strategy()}
"""Strategies of which something is recorded, and whose file is not there."""


def needs(*names: str) -> pytest.MarkDecorator:
    """Mark tests that cannot do without the forms of these names, and do not name them."""
    gone = ", ".join(name for name in names if name not in every_strategy())
    return pytest.mark.skipif(bool(gone), reason=f"it tells of {gone}, which is gone")


def skip_what_names_one_that_is_gone(items: list[pytest.Item]) -> None:
    """A test needs the forms that it, its parameters, or what it uses of its own file name as a word."""
    for item in items if GONE else ():
        assert isinstance(item, pytest.Function)
        words = set(re.findall(r"\w+", str(item.callspec.params))) if hasattr(item, "callspec") else set()
        parts, todo = _words(item.module), [item.originalname, *item.fixturenames]
        if item.cls is not None:
            todo.append(item.cls.__name__)
        seen: set[str] = set()
        while todo:
            name = todo.pop()
            if name not in seen and name in parts:
                seen.add(name)
                words |= parts[name]
                todo += parts[name]
        if words & GONE:
            item.add_marker(needs(*sorted(words & GONE)))


@functools.cache
def _words(module: ModuleType) -> dict[str, set[str]]:
    """The words of each function (not of its decorators), class and constant of a module, by its name."""
    source = Path(str(module.__file__)).read_text()
    words = {}
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        for target in targets:
            name = getattr(target, "name", getattr(target, "id", None))
            if name is not None:
                words[name] = set(re.findall(r"\w+", str(ast.get_source_segment(source, node))))
    return words
