"""Sizes and tensors of a fragment as they are written: known integers, and what is known at run time only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

END: Final = 2**63 - 1
"""A Slice's end that means "to the last element"."""


class Computer(Protocol):
    """Writes the nodes that compute with sizes: a builder."""

    def arithmetic(self, op: str, a: Extent, b: Extent) -> Symbol:
        """Return what an operator makes of two sizes."""
        ...


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size known at run time: the name of an int64 tensor of shape [1], and an upper bound when there is one.

    Arithmetic with it adds nodes to its builder; `//` is for dividends of at least 0, since ONNX rounds towards zero.
    """

    name: str
    bound: int | None = None
    builder: Computer | None = field(default=None, repr=False, compare=False)

    def _computed(self, op: str, a: Extent, b: Extent) -> Symbol:
        assert self.builder is not None, "only a builder's sizes are computed with"
        return self.builder.arithmetic(op, a, b)

    def __add__(self, other: Extent) -> Symbol:
        return self if other == 0 else self._computed("Add", self, other)

    def __radd__(self, other: int) -> Symbol:
        return self if other == 0 else self._computed("Add", other, self)

    def __sub__(self, other: Extent) -> Symbol:
        return self if other == 0 else self._computed("Sub", self, other)

    def __rsub__(self, other: int) -> Symbol:
        return self._computed("Sub", other, self)

    def __mul__(self, other: Extent) -> Symbol:
        return self if other == 1 else self._computed("Mul", self, other)

    __rmul__ = __mul__

    def __floordiv__(self, other: int) -> Symbol:
        return self if other == 1 else self._computed("Div", self, other)


Extent = int | Symbol


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the fragment: its name and what is known of its shape (`None`: not asked for yet)."""

    name: str
    shape: tuple[Extent | None, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """The part `start:stop:step` of an axis; a negative int counts from the end."""

    start: Extent = 0
    stop: Extent = END
    step: int = 1


def known(sizes: Sequence[Extent | None]) -> tuple[int, ...] | None:
    """Return the sizes when all are integers."""
    integers = tuple(size for size in sizes if isinstance(size, int))
    return integers if len(integers) == len(sizes) else None


def plus_product(total: int | None, sizes: Sequence[Extent | None]) -> int | None:
    """Return total + product of the sizes, `None` when one is not a known integer."""
    integers = known(sizes)
    return None if total is None or integers is None else total + math.prod(integers)


def times(extent: Extent | None, factor: int, divisor: int = 1) -> int | None:
    """Return a multiple of a size, `None` when that is unknown."""
    return extent * factor // divisor if isinstance(extent, int) else None


def length(extent: Extent | None, cut: Cut) -> Extent | None:
    """Return the size of what is cut out of an axis."""
    if isinstance(cut.stop, Symbol):
        return cut.stop if cut.start == 0 and cut.step == 1 else None
    if isinstance(extent, int) and isinstance(cut.start, int):
        return len(range(*slice(cut.start, cut.stop, cut.step).indices(extent)))
    return None
