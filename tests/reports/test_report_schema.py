"""docs/report-schema.md is what scripts/report_schema.py makes of the dataclasses, and says the same as they do."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

import pytest

from dilrewrite.reports.report import EXIT_CODES, SCHEMA_VERSION, Report

PAGE = (Path(__file__).parents[2] / "docs" / "report-schema.md").read_text(encoding="utf-8")
SCRIPT = Path(__file__).parents[2] / "scripts" / "report_schema.py"
SECTIONS = {
    title: dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \| \S.* \|$", text, re.MULTILINE))
    for title, text in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
}
DERIVED = {"Report": {"exit_code", "rewritten"}}


def classes(kind: Any, found: dict[str, type]) -> None:
    """Collect the dataclasses below an annotation."""
    for part in typing.get_args(kind):
        classes(part, found)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__name__ not in found:
        found[kind.__name__] = kind
        for hint in typing.get_type_hints(kind).values():
            classes(hint, found)


FOUND: dict[str, type] = {}
classes(Report, FOUND)


def fields() -> Iterator[tuple[str, str]]:
    for name, kind in FOUND.items():
        for field in dataclasses.fields(kind):
            if not field.name.startswith("_"):
                yield name, field.name


def test_the_page_is_made_from_the_types():
    """Run `python scripts/report_schema.py > docs/report-schema.md` when it differs."""
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, check=True)
    assert done.stdout.decode() == PAGE


def test_the_walk_reaches_every_level():
    assert {"SiteReport", "ConvGeometry", "Rounding", "OutputCheck", "ScopePath", "Timing", "Noise"} <= set(FOUND)


def test_sections_are_the_dataclasses():
    assert set(SECTIONS) == set(FOUND)


@pytest.mark.parametrize(("name", "field"), list(fields()), ids=lambda value: value)
def test_field_is_documented(name, field):
    assert field in SECTIONS[name]


@pytest.mark.parametrize("name", list(FOUND))
def test_nothing_else_is_documented_and_the_order_is_the_same(name):
    wanted = [field for kind, field in fields() if kind == name]
    assert [field for field in SECTIONS[name] if field not in DERIVED.get(name, ())] == wanted


@pytest.mark.parametrize(("name", "field"), list(fields()), ids=lambda value: value)
def test_type_agrees(name, field):
    """null is documented exactly where `None` is allowed; the kind of value agrees."""
    documented = SECTIONS[name][field]
    hint = typing.get_type_hints(FOUND[name])[field]
    assert ("null" in documented) == allows_none(hint), documented
    assert word(hint) in documented


def allows_none(hint: Any) -> bool:
    return hint is NoneType or any(allows_none(part) for part in typing.get_args(hint))


def word(hint: Any) -> str:
    """Return a word of the page for a type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return word(next(part for part in parts if part is not NoneType))
    if origin is typing.Literal:
        return "string"
    if origin is tuple:
        return "pair" if len(parts) == 2 and parts[1] is not ... else "list"
    if origin is Mapping:
        return "object"
    if dataclasses.is_dataclass(hint):
        return hint.__name__
    if isinstance(hint, type) and issubclass(hint, str):
        return "string"
    return {int: "integer", float: "number", bool: "boolean"}[hint]


def test_every_status_is_documented_with_its_exit_code():
    assert dict(re.findall(r"^\| `([a-z ]+)` \| [^|]+ \| (\d) \|$", PAGE, re.MULTILINE)) == {
        status: str(code) for status, code in EXIT_CODES.items()
    }


def test_every_value_of_a_word_is_documented():
    for name, kind in FOUND.items():
        for field, hint in typing.get_type_hints(kind).items():
            if typing.get_origin(hint) is typing.Literal:
                meaning = next(line for line in PAGE.splitlines() if line.startswith(f"| `{field}` |"))
                assert all(f"`{value}`" in meaning for value in typing.get_args(hint)), f"{name}.{field}"


def test_version():
    assert f"schema version {SCHEMA_VERSION}" in PAGE.splitlines()[0]


def test_derived_fields_are_in_the_json_and_documented():
    assert DERIVED["Report"] <= set(SECTIONS["Report"])
