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
    failure: str | None = None
    """What did not hold."""
    ran: bool = True
    """False when the runtime refused the form, which says nothing about it."""

    @property
    def passed(self) -> bool:
        """Say whether the form is proved."""
        return self.failure is None

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
