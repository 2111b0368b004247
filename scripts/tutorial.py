"""Does what docs/tutorial.md shows, and records its reports: `python scripts/tutorial.py`, on a quiet machine.

The page shows them as the tool spells them today: `DILREWRITE_UPDATE_GOLDEN=1 pytest tests/test_docs.py` writes them
into it.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import typing
from pathlib import Path
from typing import Any

from dilrewrite import record
from dilrewrite.cli import main
from dilrewrite.reports.report import Report

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "docs" / "tutorial"
MODEL, SHAPE = "models/splice_sites.onnx", "sequence:1x4x10000"
RECORDED = {
    "inspect": ["inspect", MODEL],
    "report": ["optimize", MODEL, "--shape", SHAPE, "--threads", "1", "-o", "faster.onnx", "--force", "--no-cache"],
    "bench": ["bench", MODEL, "faster.onnx", "--shape", SHAPE, "--threads", "1"],
}
FILES = {"report": ("faster.report/report.html",)}  # what is written without --report


def recorded(name: str) -> Report:
    """A report as it was recorded; fields that are newer have their defaults."""
    plain = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    report: Report = record.read(Report, complete(Report, plain), name)
    return dataclasses.replace(report, files=FILES.get(name, ()))


def complete(kind: Any, value: Any) -> Any:
    """Plain data of a type, with the defaults of the fields that it lacks."""
    if isinstance(value, list):
        inner = [part for part in typing.get_args(kind) if part is not Ellipsis]
        return [complete(inner[0] if inner else Any, part) for part in value]
    kinds = [kind, *typing.get_args(kind)]
    (made, *_) = [*filter(dataclasses.is_dataclass, kinds), None]
    if made is None or not isinstance(value, dict):
        return value
    hints, missing = typing.get_type_hints(made), dataclasses.MISSING
    for field in dataclasses.fields(made):
        if field.name in value:
            value[field.name] = complete(hints[field.name], value[field.name])
        elif field.default is not missing:
            value[field.name] = field.default
        elif field.default_factory is not missing:
            value[field.name] = field.default_factory()
    return value


if __name__ == "__main__":
    for name, command in RECORDED.items():
        with tempfile.TemporaryDirectory() as folder:
            code = main([*command, "--report", folder, "--report-format", "json"])
            assert code == 0, f"{' '.join(command)}: exit code {code}"
            (RECORDS / f"{name}.json").write_bytes((Path(folder) / "report.json").read_bytes())
    sys.exit(
        "now run DILREWRITE_UPDATE_GOLDEN=1 pytest tests/test_docs.py, and read what the page says beside the figures"
    )
