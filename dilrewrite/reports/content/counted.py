"""Says of estimates that they are, and in cycles what counts cycles: everything else speaks of measured milliseconds.

A time in cycles is a number of thousands of millions (see `TimeUnit`), so that what stands before "ms" is millions.
An estimate is the same each time: no interval, noise or pair of runs is told of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from dilrewrite.reports import document as doc
from dilrewrite.reports.report import Report
from dilrewrite.reports.units import estimated
from dilrewrite.runtimes import TimeKind, TimeUnit

T = TypeVar("T")

IN_CYCLES = {r"(?<=[\d\w]) ms\b": " M cycles", r"\bmilliseconds\b": "millions of cycles"}
IN_SECONDS = {r"(?<=[\d\w]) ms\b(?! by estimate)": " ms by estimate", r"\bmilliseconds\b": "milliseconds by estimate"}
AS_ESTIMATES = {
    "measured": "estimated",
    "timed": "estimated",
    "measuring": "estimating",
    "Measuring": "Estimating",
    "timings": "estimates",
    "Timings": "Estimates",
    "timing": "estimate",
}
"""Words that are of no use where nothing was measured; in a path or a longer name they are left."""

NAMES = ("code", "copy")
"""Marks of names and values of the model."""

OF_RUNS = re.compile(r"% interval|20 to 80 %|^(own )?noise$|^pairs$|^mode$")
"""Columns and rows about runs."""


def counted(report: Report, said: T) -> T:
    """Return what is said of a report, text or a tree of it, in what its times count, and as what they are."""
    measurement = report.measurement
    if measurement is None or measurement.source is not TimeKind.ESTIMATED:
        return said
    words = {rf"(?<![\w/.\\-]){word}(?![\w/\\-]|\.\w)": other for word, other in AS_ESTIMATES.items()}
    words |= IN_CYCLES if measurement.unit is TimeUnit.CYCLES else IN_SECONDS
    return cast("T", _said(said, words))


def _said(said: Any, words: Mapping[str, str]) -> Any:
    if isinstance(said, str):
        said = estimated(said)
        for pattern, word in words.items():
            said = re.sub(pattern, word, said)
        return said
    if isinstance(said, tuple):
        return tuple(_said(part, words) for part in said)
    if isinstance(said, doc.Table):
        kept = [place for place, column in enumerate(said.columns) if not OF_RUNS.search(column.name)]
        rows = tuple(tuple(row[place] for place in kept) for row in said.rows)
        said = dataclasses.replace(said, columns=tuple(said.columns[place] for place in kept), rows=rows)
    if isinstance(said, doc.Facts):
        said = dataclasses.replace(said, rows=tuple(row for row in said.rows if not OF_RUNS.search(row[0])))
    if dataclasses.is_dataclass(said) and not isinstance(said, type) and getattr(said, "mark", "") not in NAMES:
        fields = ((field.name, getattr(said, field.name)) for field in dataclasses.fields(said) if field.init)
        return dataclasses.replace(said, **{name: _said(value, words) for name, value in fields})
    return said
