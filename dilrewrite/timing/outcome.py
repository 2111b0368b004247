"""What measuring a form came to, as a value; the words for it are made in `reports/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite._compat import StrEnum
from dilrewrite.timing.stopwatch import Comparison


@final
class Outcome(StrEnum):
    """What became of a form that was to be timed."""

    WON = "won"
    """Faster than the Conv beyond noise, and proved."""
    LOST = "lost"
    """Slower than the Conv."""
    TIE = "tie"
    """Neither, and a gain of `timing.VISIBLE` is ruled out."""
    INCONCLUSIVE = "inconclusive"
    """A gain of `timing.VISIBLE` could have been missed."""
    OUTRUN = "outrun"
    """Given up after its first pairs: another form is faster."""
    UNPROVED = "unproved"
    """Faster, but the proof did not hold."""
    FAILED = "failed"
    """The runtime refused it."""
    WRONG = "wrong"
    """Its outputs on the timed runtime are not the original's."""
    CRASHED = "crashed"
    """The runtime died."""
    TIMED_OUT = "timed out"
    """The runtime did not answer."""
    NO_TIME = "no time"
    """The budget was spent before it was timed."""
    NOT_MEASURED = "not measured"
    """It could not be timed, as `cause` says."""
    PLANNED = "planned"
    """Of a dry run: it would be timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormTiming:
    """What measuring said of a form: its outcome, and the comparison with the Conv as it is when there is one.

    `cause`: why there is none, in the words of the runtime or the proof. `keep_peak_bytes`, `peak_bytes`: the memory of
    the Conv as it is and of the form, as `Bench.peak_bytes` tells it.
    """

    outcome: Outcome
    timing: Comparison | None = None
    cause: str = ""
    keep_peak_bytes: int | None = None
    peak_bytes: int | None = None


def outcome(comparison: Comparison) -> Outcome:
    """Return what a comparison with the Conv as it is says of a form."""
    if comparison.faster:
        return Outcome.WON
    if not comparison.conclusive:
        return Outcome.INCONCLUSIVE
    return Outcome.LOST if comparison.slower else Outcome.TIE
