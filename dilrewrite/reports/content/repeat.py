"""How to do it again: the options that were set, and the command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dilrewrite.options import BENCH_BUDGET_S, Building, Option, every_option, said
from dilrewrite.reports.report import Report

NAMES = {short: Building.options()[name] for name, short in Building.SHORT.items()}
"""Options that reports call by another name than Python does."""

FOLDERS = {"optimize": ".report"}
"""What commands that write reports unasked call the folder: the end of its name, after the output's stem."""

ENDS = {"optimize": ".dilrewrite.onnx", "build": ".engine"}
"""The end of an output's name that is not given, after the model's stem."""


def given(report: Report) -> dict[str, Any]:
    """Return the options that were set to something else than their defaults, by name."""
    options = dict(report.options)
    building = options.pop("build_engine", None)
    usual = {"budget": BENCH_BUDGET_S} if report.command == "bench" else {}
    changed = {name: value for name, value in options.items() if not _usual(name, value, usual)}
    if building is not None:
        changed["build_engine"] = {name: value for name, value in building.items() if not _usual(name, value, {})}
    return changed


def _option(name: str) -> Option:
    return NAMES.get(name) or every_option().get(name) or Option(f"--{name.replace('_', '-')}")


def _usual(name: str, value: Any, usual: Mapping[str, Any]) -> bool:
    """Say whether an option has its default; lists stand for tuples, and text for paths."""
    default = usual.get(name, _option(name).default)
    return bool(value == default) or not (said(value) or said(default))


def command_line(report: Report) -> str:
    """Return the command line that does the same again; empty where a model has no file.

    It replaces what was written.
    """
    models = [report.before.path]
    if report.after is not None and report.command in ("bench", "verify"):
        models.append(report.after.path)
    if any(path.endswith(" model in memory") for path in models):
        return ""
    options = given(report)
    building = options.pop("build_engine", None)
    words = ["dilrewrite", report.command, *models]
    for name, value in options.items():
        words += _words(name, value)
    if building is not None:
        words += ["--build-engine", *(word for name, value in building.items() for word in _words(name, value))]
    if report.command == "inspect" and "backend" in report.options:
        words.append("--profile")
    return shlex.join([*words, *_places(report)])


def _words(name: str, value: Any) -> Iterator[str]:
    flag = _option(name).flag
    if value is True:
        yield flag
        return
    for one in value if isinstance(value, list | tuple) else [value]:
        yield from (flag, str(one).removesuffix(".0") if isinstance(one, float) else str(one))


def _places(report: Report) -> Iterator[str]:
    """Yield where the output and the reports go, unless they go there unasked."""
    usual = Path(report.before.path)
    usual = usual.with_name(f"{usual.stem}{ENDS.get(report.command, '')}")
    output = Path(report.output) if report.output is not None else usual
    if report.output is not None:
        yield from () if output == usual else ("-o", report.output)
        yield from () if report.options.get("force") else ("--force",)
    folder = Path(report.files[0]).parent if report.files else None
    end = FOLDERS.get(report.command)
    if folder is not None and (end is None or folder != output.with_name(f"{output.stem}{end}")):
        yield from ("--report", str(folder))
