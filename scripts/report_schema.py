"""Writes docs/report-schema.md from the report's types: `python scripts/report_schema.py > docs/report-schema.md`.

A class's docstring stands over its table, the docstring below a field says what the field means.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Iterator, Mapping
from types import NoneType, UnionType
from typing import Any

from dilrewrite.reports.report import EXIT_CODES, SCHEMA_VERSION, CandidateReport, Report
from dilrewrite.timing.outcome import Outcome
from dilrewrite.timing.stopwatch import VISIBLE

START = f"""# The report as JSON, schema version {SCHEMA_VERSION}

`report.json` in a report folder, and what `--json` prints. One object, strict JSON, UTF-8. This page is made from the
code by `scripts/report_schema.py`: every field is here, and nothing else.

**Compatibility.** `schema_version` is a whole number. Within a version, fields may be *added*, and so may values of
the fields that hold words (`status`, `action`, `strategy`, `outcome`, steps of `seconds`): a reader should pass over
what it does not know. A field that is renamed, removed, or gets another type or unit makes a new version. Version 2
made `outcome` of a form a value, where version 1 had a sentence.

**Conventions.**

- Names of fields say what they count; sizes are in bytes, durations in seconds, shares are 0 to 1, multiply-adds are
  counted once each.
- `null` stands for "unknown", "not measured" or "not applicable", as the field says. A field is never left out.
- Infinities and NaN, which JSON has no numbers for, are the strings `"inf"`, `"-inf"` and `"nan"`, wherever a
  *number* stands below.
- Lists over spatial axes have one entry per axis, outermost first (height before width).
- Names of nodes and tensors are the model's own, unescaped; those of layers and their types are TensorRT's.
- Reasons, failures and notes are sentences for people; their wording may change at any time.
"""

STATUSES = {
    "rewritten": "at least one Conv was rewritten, and nothing was found to differ",
    "kept": "there are dilated Convs, none was rewritten",
    "inconclusive": "none was rewritten, and noise or load were such that a gain of 10 % could have been missed",
    "nothing to rewrite": "there is no dilated Conv that could be rewritten",
    "equal": "`verify`: nothing was found to differ (`verdict.skipped` tells when outputs were not compared)",
    "inspected": "`inspect`: only looked at",
    "measured": "`bench`: timed",
    "built": "`build`: the engine was written; `engine.checked` tells whether its outputs were compared",
    "dilation left": "`--eliminate`: some dilation cannot go; no model was written",
    "does not fit": "`--target`: the device does not take some Convs, and no form of them; no model was written",
    "differs": "the models do not compute the same; `optimize` wrote no model",
    "not valid": "the ONNX checker finds in the rewritten model what it does not find in the original; "
    "no model was written",
    "not compared": "`verify` could not run the models; their interface is the same",
}

DERIVED = (
    "| `exit_code` | integer | what the command line ends with |",
    "| `rewritten` | integer | number of sites rewritten |",
)


def page() -> str:
    """Return the page."""
    return "\n".join([START, *map(_section, classes(Report))])


def classes(kind: Any, known: dict[str, type] | None = None) -> Iterator[type]:
    """Yield the dataclasses below an annotation, each once."""
    known = {} if known is None else known
    for part in typing.get_args(kind):
        yield from classes(part, known)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__name__ not in known:
        known[kind.__name__] = kind
        yield kind
        for hint in typing.get_type_hints(kind).values():
            yield from classes(hint, known)


def said(field: dataclasses.Field[Any]) -> bool:
    """Say whether a field is in the JSON."""
    return not field.name.startswith("_")


def _section(kind: type) -> str:
    hints, meanings = typing.get_type_hints(kind), described(kind)
    lines = [f"## {kind.__name__}", ""]
    lines += [_json(inspect.cleandoc(kind.__doc__ or "")), ""]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    for field in filter(said, dataclasses.fields(kind)):
        lines.append(f"| `{field.name}` | {_type(hints[field.name])} | {_json(meanings[field.name])} |")
    if kind is Report:
        lines += [*DERIVED, "", "The last two fields are derived, and are there for programs.", ""]
        lines += ["## Status values", "", "| `status` | means | `exit_code` |", "|---|---|---|"]
        lines += [f"| `{status}` | {text} | {EXIT_CODES[status]} |" for status, text in STATUSES.items()]
    if kind is CandidateReport:
        lines += ["", "| `outcome` | means |", "|---|---|"]
        meanings = described(Outcome)
        lines += [f"| `{outcome}` | {_json(meanings[outcome.name])} |" for outcome in Outcome]
    return "\n".join([*lines, ""])


def described(kind: type) -> dict[str, str]:
    """Return the docstrings of a dataclass's fields, or of an enumeration's members."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    meanings = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            target = field.targets[0] if isinstance(field, ast.Assign) else getattr(field, "target", None)
            if isinstance(target, ast.Name):
                meanings[target.id] = " ".join(str(below.value.value).split()).removesuffix(".")
    return meanings


def _json(text: str) -> str:
    """Return a docstring in the words of JSON."""
    return text.replace("`None`", "null").replace("`timing.VISIBLE`", f"{100 * VISIBLE:.0f} %")


def _type(hint: Any, many: bool = False) -> str:
    """Return a type in words; `many`: in the plural."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, UnionType):
        return f"{_type(next(part for part in parts if part is not NoneType), many)} or null"
    if origin is tuple and (len(parts) != 2 or parts[1] is not ...):
        same = len(parts) == 2 and parts[0] == parts[1]
        return (
            f"{'pairs' if many else 'pair'} of {_type(parts[0], True)}"
            if same
            else f"[{', '.join(_type(part) for part in parts)}]"
        )
    if origin is tuple:
        return f"{'lists' if many else 'list'} of {_type(parts[0], True)}"
    if origin is Mapping:
        return "object" if parts[1] is Any else f"object: {_type(parts[0])} to {_type(parts[1])}"
    if dataclasses.is_dataclass(hint):
        return str(getattr(hint, "__name__", hint))
    names = {int: "integer", float: "number", bool: "boolean", object: "JSON value"}
    return f"{names.get(hint, 'string')}{'s' if many else ''}"


if __name__ == "__main__":
    sys.stdout.buffer.write(page().encode())
