"""Says in cycles what times say that count cycles: the only file that knows that they are no milliseconds.

A time in cycles is a number of thousands of millions (see `TimeUnit`), so that what stands before "ms" is millions.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, TypeVar, cast

from dilrewrite.reports.report import Report
from dilrewrite.runtimes import TimeUnit

T = TypeVar("T")

WORDS = {r"(?<=[\d\w]) ms\b": " M cycles", r"\bmilliseconds\b": "millions of cycles"}


def counted(report: Report, said: T) -> T:
    """Return what is said of a report, text or a tree of it, in what its times count."""
    measurement = report.measurement
    return said if measurement is None or measurement.unit is not TimeUnit.CYCLES else cast("T", _in_cycles(said))


def _in_cycles(said: Any) -> Any:
    if isinstance(said, str):
        for pattern, word in WORDS.items():
            said = re.sub(pattern, word, said)
        return said
    if isinstance(said, tuple):
        return tuple(map(_in_cycles, said))
    if dataclasses.is_dataclass(said) and not isinstance(said, type):
        fields = ((field.name, getattr(said, field.name)) for field in dataclasses.fields(said) if field.init)
        return dataclasses.replace(said, **{name: _in_cycles(value) for name, value in fields})
    return said
