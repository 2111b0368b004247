"""Says in cycles what times say that count cycles: the only file that knows that they are no milliseconds.

A time in cycles is a number of thousands of millions (see `TimeUnit`), so that what stands before "ms" is millions.
It is an estimate, which is the same each time: no interval, noise or pair of runs is told of it.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, TypeVar, cast

from dilrewrite.reports import document as doc
from dilrewrite.reports.report import Report
from dilrewrite.reports.units import estimated
from dilrewrite.runtimes import TimeUnit

T = TypeVar("T")

WORDS = {r"(?<=[\d\w]) ms\b": " M cycles", r"\bmilliseconds\b": "millions of cycles"}

OF_RUNS = re.compile(r"% interval|20 to 80 %|^(own )?noise$|^pairs$|^mode$")
"""Columns and rows about runs."""


def counted(report: Report, said: T) -> T:
    """Return what is said of a report, text or a tree of it, in what its times count."""
    measurement = report.measurement
    return said if measurement is None or measurement.unit is not TimeUnit.CYCLES else cast("T", _in_cycles(said))


def _in_cycles(said: Any) -> Any:
    if isinstance(said, str):
        for pattern, word in WORDS.items():
            said = re.sub(pattern, word, said)
        return estimated(said)
    if isinstance(said, tuple):
        return tuple(map(_in_cycles, said))
    if isinstance(said, doc.Table):
        kept = [place for place, column in enumerate(said.columns) if not OF_RUNS.search(column.name)]
        rows = tuple(tuple(row[place] for place in kept) for row in said.rows)
        said = dataclasses.replace(said, columns=tuple(said.columns[place] for place in kept), rows=rows)
    if isinstance(said, doc.Facts):
        said = dataclasses.replace(said, rows=tuple(row for row in said.rows if not OF_RUNS.search(row[0])))
    if dataclasses.is_dataclass(said) and not isinstance(said, type):
        fields = ((field.name, getattr(said, field.name)) for field in dataclasses.fields(said) if field.init)
        return dataclasses.replace(said, **{name: _in_cycles(value) for name, value in fields})
    return said
