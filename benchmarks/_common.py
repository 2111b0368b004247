"""What the benchmarks of timings share: where results go, the machine, and Markdown tables."""

from __future__ import annotations

import dataclasses
import datetime
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dilrewrite import machine
from dilrewrite.reports.report import environment
from dilrewrite.runtimes import TimedBackend

RESULTS = Path(__file__).parent / "results"


def circumstances(backend: TimedBackend, threads: int | None) -> dict[str, Any]:
    """The machine, the runtime and the date."""
    load = machine.load()
    return {
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "backend": backend.name,
        "device": backend.device(),
        "versions": backend.versions(),
        "load_before": None if load is None else round(load, 2),
        "environment": dataclasses.asdict(environment(threads)),
    }


def heading(title: str, about: dict[str, Any]) -> list[str]:
    """The first lines of a page of results."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    load = f"; load before: {about['load_before']}" if about["load_before"] is not None else ""
    return [f"# {title}", "", f"{about['date']}; {about['device']}; {about['backend']}, {versions}{load}.", ""]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table; a column whose name starts with # holds numbers."""
    lines = [
        f"| {' | '.join(name.removeprefix('#') for name in columns)} |",
        f"|{'|'.join('---:' if name.startswith('#') else '---' for name in columns)}|",
    ]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def write(name: str, data: dict[str, Any], page: Sequence[str]) -> None:
    """Write results as JSON and Markdown."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / f"{name}.md").write_text("\n".join(page).rstrip("\n") + "\n", encoding="utf-8")
