"""What was run and found to prove a form, as values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dilrewrite.runtimes import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Errors against float64, the largest over all outputs: as shares of `Conv(|x|, |w|) + |b|`, or for a region of the
    largest value of the output.

    The ceiling is that of Higham, Accuracy and Stability of Numerical Algorithms, section 3.1.
    """

    native_error: float
    """Error of the dilated Conv."""
    new_error: float
    """Error of the new form."""
    limit: float
    """4 times the native error plus one unit in the last place: `new_error` must not be above."""
    ceiling: float | None
    """The bound 2nu/(1-nu) for n terms and unit roundoff u, which `new_error` must not be above either; `None` where nu
    is 1 or more.
    """
    difference: float
    """Largest difference from the dilated Conv, as a share of its largest output."""

    @property
    def passed(self) -> bool:
        """Say whether the new form rounds no worse than it may."""
        return self.new_error <= self.limit and (self.ceiling is None or self.new_error <= self.ceiling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requantised:
    """The error of a Conv on integers that is computed in float32, in integers of its output: quanta, or sums."""

    limit: float
    """The most that an output can be off, whatever the input is: 0 for bit for bit, 1 for one quantum."""
    max_error: float
    """Largest error seen."""
    relative_error: float
    """Largest error seen, as a share of the largest output of its run."""
    differing: int
    """Outputs that differed."""
    elements: int
    """Outputs looked at, of the model's own weights, on data over the whole range of their type."""
    largest_sum: float
    """What no sum can pass; up to 2**24 = 16,777,216 sums are exact in float32."""
    quantum: bool
    """Whether sums are rounded to a quantum (QLinearConv), or are the outputs (ConvInteger)."""
    lowest: int
    """Outputs looked at that were the smallest integer of their type: saturated."""
    highest: int
    """Outputs looked at that were the largest one."""

    @property
    def exact(self) -> bool:
        """Say whether the form gives the same bits for every input."""
        return self.limit == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was run and found on the sub-model of a site. It holds when `failure` is `None`."""

    shapes: tuple[tuple[int, ...], ...]
    """Input shapes of the exact runs."""
    elements: int
    """Output elements compared bit for bit."""
    backend: str
    """Runtimes that ran the form."""
    native_ran: bool
    """Whether the original Conv ran for comparison; an integer convolution in float64 is the ground truth always."""
    rounding: Rounding | None = None
    """Rounding errors; `None` when not measured."""
    requantised: Requantised | None = None
    """Error of a form of integers in float32; `None` for other forms."""
    failure: str | None = None
    """What did not hold."""
    ran: bool = True
    """False when the runtime refused the form, which says nothing about it."""

    @property
    def passed(self) -> bool:
        """Say whether the form is proved."""
        return self.failure is None

    @property
    def difference(self) -> float | None:
        """Return how far outputs may be from the original's, as a share of the largest or in integers; `None`: not."""
        if self.requantised is not None and not self.requantised.exact:
            return self.requantised.limit
        return self.rounding.difference if self.rounding is not None else None

    @property
    def wrong(self) -> bool:
        """Say whether the form was shown to compute something else (not only to round worse, or not to run)."""
        return self.failure is not None and self.ran and self.rounding is None


def differs(got: Array, wanted: Array) -> str | None:
    """Return how an output differs from the exact one, `None` where it does not."""
    if got.shape != wanted.shape:
        return f"output shape {list(got.shape)} instead of {list(wanted.shape)}"
    exact = wanted.astype(got.dtype)
    wrong = got != exact
    if not wrong.any():
        return None
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {got.size} values differ, the first at {list(first)}: "
        f"{float(got[first]):g} instead of {float(exact[first]):g}"
    )
