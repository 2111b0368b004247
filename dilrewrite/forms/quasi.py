"""Sizes that are known as formulas of unknown extents, and what holds of them for all extents.

A formula is made of whole numbers, unknown extents, sums, multiples, and divisions by whole numbers that round down.
Such a function f of h satisfies f(h + L) = f(h) + c for a period L and a rise c, so what holds on one period and in the
rise holds everywhere. Everything else is refused with `Unproved`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

MOST_POINTS = 20_000
"""A formula with a longer period is not decided."""


class Unproved(Exception):  # noqa: N818 - becomes the reason why something is left alone
    """What could not be shown for all extents, in words."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A size: its value where the extents are known, and by unknown extent the period and the rise in it.

    `first`: by unknown extent the least value that counts.
    """

    value: Callable[[Mapping[str, int]], int]
    periods: Mapping[str, tuple[int, int]]
    first: Mapping[str, int]

    def points(self) -> Iterator[Mapping[str, int]]:
        """Yield the extents of one period."""
        if math.prod(period for period, _ in self.periods.values()) > MOST_POINTS:
            raise Unproved("a size depends on the extents in too many ways")
        ranges = [range(self.first[name], self.first[name] + period) for name, (period, _) in self.periods.items()]
        for point in itertools.product(*ranges):
            yield dict(zip(self.periods, point, strict=True))


Size = int | Formula


def unknown(name: str, first: int = 1) -> Formula:
    """Return an extent that is not known, from `first` on."""
    return Formula(lambda extents: extents[name], {name: (1, 1)}, {name: first})


def at(size: Size, extents: Mapping[str, int]) -> int:
    """Return a size where the extents are known."""
    return size if isinstance(size, int) else size.value(extents)


def plus(a: Size, b: Size) -> Size:
    """Return a + b."""
    if isinstance(a, int) and isinstance(b, int):
        return a + b
    if a == 0 or b == 0:
        return b if a == 0 else a
    one, other = _formula(a), _formula(b)
    periods = {}
    for name in {**one.periods, **other.periods}:
        (p, rise), (q, more) = one.periods.get(name, (1, 0)), other.periods.get(name, (1, 0))
        period = math.lcm(p, q)
        periods[name] = period, rise * (period // p) + more * (period // q)
    return Formula(lambda extents: one.value(extents) + other.value(extents), periods, {**one.first, **other.first})


def times(a: Size, b: Size) -> Size:
    """Return a * b, of which one is known."""
    if isinstance(a, int) and isinstance(b, int):
        return a * b
    if not isinstance(a, int) and not isinstance(b, int):
        raise Unproved("two unknown sizes are multiplied")
    size, factor = (b, a) if isinstance(a, int) else (a, b)
    assert isinstance(factor, int)
    assert isinstance(size, Formula)
    if factor in (0, 1):
        return size if factor else 0
    periods = {name: (period, rise * factor) for name, (period, rise) in size.periods.items()}
    return Formula(lambda extents: size.value(extents) * factor, periods, size.first)


def minus(a: Size, b: Size) -> Size:
    """Return a - b."""
    return plus(a, times(b, -1))


def over(a: Size, b: Size) -> Size:
    """Return a / b rounded down. ONNX rounds towards 0, so b is to be above 0 and a not below it."""
    if not isinstance(b, int) or b < 1:
        raise Unproved("a size is divided by one that is not known")
    if b == 1:
        return a
    if not nonnegative(a):
        raise Unproved("a size that is divided may be negative")
    if isinstance(a, int):
        return a // b
    periods = {}
    for name, (period, rise) in a.periods.items():
        more = b // math.gcd(b, rise)
        periods[name] = period * more, rise * more // b
    return Formula(lambda extents: a.value(extents) // b, periods, a.first)


def rest(a: Size, b: Size) -> Size:
    """Return the rest of a / b, of sizes as in `over`."""
    return minus(a, times(over(a, b), b))


def nonnegative(size: Size) -> bool:
    """Say whether a size is at least 0 for all extents."""
    if isinstance(size, int):
        return size >= 0
    return all(rise >= 0 for _, rise in size.periods.values()) and all(
        size.value(point) >= 0 for point in size.points()
    )


def constant(size: Size) -> int | None:
    """Return the value that a size has for all extents, `None` where it has several."""
    if isinstance(size, int):
        return size
    if any(rise for _, rise in size.periods.values()):
        return None
    values = {size.value(point) for point in size.points()}
    return values.pop() if len(values) == 1 else None


def equal(a: Size, b: Size) -> bool:
    """Say whether two sizes are the same for all extents."""
    return constant(minus(a, b)) == 0


def divisible(a: Size, b: int) -> bool:
    """Say whether b divides a for all extents."""
    return a % b == 0 if isinstance(a, int) else constant(rest(a, b)) == 0


def multiple(a: Size, b: Size) -> int | None:
    """Return the whole number k above 0 for which a = k b for all extents, `None` where there is none."""
    extents = {**_formula(a).first, **_formula(b).first}
    count = at(a, extents) // (at(b, extents) or 1)
    return count if count > 0 and equal(a, times(b, count)) else None


def larger(a: Size, b: Size) -> Size:
    """Return the larger of two sizes, where one is never below the other."""
    difference = minus(a, b)
    if nonnegative(difference):
        return a
    if nonnegative(times(difference, -1)):
        return b
    raise Unproved("which of two sizes is the larger one depends on the extents")


def smaller(a: Size, b: Size) -> Size:
    """Return the smaller of two sizes, where one is never above the other."""
    return a if larger(a, b) is b else b


def _formula(size: Size) -> Formula:
    return Formula(lambda _: size, {}, {}) if isinstance(size, int) else size
