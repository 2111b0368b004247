"""Which element of a tensor stands where after layout operators: every axis is a row of digits of places in the data.

A place p on an axis of the data is written with digits, p = base + sum(weight * digit). Reshape, Transpose and their
like only take digits apart and put them together, so any run of them is told by what it does to the digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dilrewrite.forms.quasi import (
    Size,
    Unproved,
    constant,
    divisible,
    equal,
    larger,
    minus,
    multiple,
    nonnegative,
    over,
    plus,
    smaller,
    times,
)

FAR = 2**31 - 1
"""A Slice's end from here on means "to the last element"."""


@dataclass(frozen=True, slots=True)
class Digit:
    """A digit of the places on an axis of the data: that axis, what one step counts there, how many values it has."""

    axis: int
    weight: int
    size: Size

    def split(self, minor: int) -> tuple[Digit, Digit]:
        """Return the digit as two, of which the second has `minor` values."""
        major = Digit(self.axis, self.weight * minor, over(self.size, minor))
        return major, Digit(self.axis, self.weight, minor)


Axis = tuple[Digit, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """How a tensor lies: the digits of its axes, the first one counting most, and by axis of the data the place where
    it begins (below 0: in padding). `cut`: the axes of the data that a Slice has left something out of.
    """

    axes: tuple[Axis, ...]
    base: Mapping[int, Size]
    cut: frozenset[int] = frozenset()

    @staticmethod
    def plain(sizes: Sequence[Size]) -> Laid:
        """Return how the data lie themselves."""
        axes = tuple((Digit(axis, 1, size),) for axis, size in enumerate(sizes))
        return Laid(axes=axes, base=dict.fromkeys(range(len(sizes)), 0))

    def size(self, place: int) -> Size:
        """Return the size of an axis."""
        return _count(self.axes[place])

    @property
    def shape(self) -> tuple[Size, ...]:
        """Return the sizes of all axes."""
        return tuple(map(_count, self.axes))

    def _with(self, axes: Sequence[Axis]) -> Laid:
        return replace(self, axes=tuple(map(_joined, axes)))

    def transposed(self, order: Sequence[int]) -> Laid:
        """Return it behind a Transpose."""
        return self._with([self.axes[place] for place in order])

    def reshaped(self, sizes: Sequence[Size]) -> Laid:
        """Return it behind a Reshape to `sizes`, of which one may be -1."""
        left, right = [*sizes], list[Axis]()
        digits = [digit for axis in self.axes for digit in axis if digit.size != 1]
        while left and left[-1] != -1:
            right.insert(0, _taken(digits, left.pop(), back=True))
        front = [_taken(digits, size, back=False) for size in left[:-1]]
        if not left and digits:
            raise Unproved("a Reshape does not keep the number of elements")
        return self._with([*front, *([tuple(digits)] if left else []), *right])

    def squeezed(self, places: Sequence[int] | None) -> Laid:
        """Return it without axes of size 1."""
        gone = [p for p, _ in enumerate(self.axes) if self.size(p) == 1] if places is None else places
        if any(constant(self.size(place)) != 1 for place in gone):
            raise Unproved("an axis that is squeezed may be longer than 1")
        return self._with([axis for place, axis in enumerate(self.axes) if place not in gone])

    def unsqueezed(self, places: Sequence[int]) -> Laid:
        """Return it with further axes of size 1."""
        axes = [*self.axes]
        for place in sorted(places):
            axes.insert(place, ())
        return self._with(axes)

    def _whole(self, place: int, what: str) -> Digit:
        """Return the only digit of an axis."""
        axis = self.axes[place]
        if len(axis) != 1:
            raise Unproved(f"a {what} acts on an axis that is split into phases, or joined of them in another order")
        return axis[0]

    def _on(self, place: int, digit: Digit, base: Size, *, cut: bool) -> Laid:
        axes = (*self.axes[:place], (digit,), *self.axes[place + 1 :])
        here = {**self.base, digit.axis: base}
        return replace(self, axes=axes, base=here, cut=self.cut | {digit.axis} if cut else self.cut)

    def padded(self, place: int, begin: Size, end: Size) -> Laid:
        """Return it behind a Pad of an axis."""
        if begin == end == 0:
            return self
        digit = self._whole(place, "Pad")
        if digit.weight != 1 or digit.axis in self.cut:
            raise Unproved("a Pad stands behind a Slice of the same axis")
        if not nonnegative(begin) or not nonnegative(end):
            raise Unproved("a Pad may be negative")
        size = plus(plus(digit.size, begin), end)
        return self._on(place, replace(digit, size=size), minus(self.base[digit.axis], begin), cut=False)

    def sliced(self, place: int, start: Size, stop: Size, step: Size) -> Laid:
        """Return it behind a Slice of an axis; `start` and `stop` as ONNX counts them."""
        size = self.size(place)
        if not isinstance(step, int) or step < 1:
            raise Unproved("a Slice runs backwards, or its step is not known")
        start, stop = _place(start, size), _place(stop, size)
        if start == 0 and step == 1 and equal(stop, size):
            return self
        digit = self._whole(place, "Slice")
        if not nonnegative(minus(stop, plus(start, 1))):
            raise Unproved("a Slice may leave nothing")
        count = over(plus(minus(stop, start), step - 1), step)
        base = plus(self.base[digit.axis], times(start, digit.weight))
        return self._on(place, Digit(digit.axis, digit.weight * step, count), base, cut=True)

    def to_depth(self, block: int) -> Laid:
        """Return it behind a SpaceToDepth."""
        n, c, h, w = self._four("SpaceToDepth")
        apart = self.reshaped([n, c, over(h, block), block, over(w, block), block]).transposed([0, 3, 5, 1, 2, 4])
        return apart.reshaped([n, times(c, block * block), over(h, block), over(w, block)])

    def to_space(self, block: int, *, crd: bool) -> Laid:
        """Return it behind a DepthToSpace."""
        n, c, h, w = self._four("DepthToSpace")
        rest = over(c, block * block)
        if not isinstance(c, int) or c % (block * block):
            raise Unproved("a DepthToSpace has channels that its block does not divide")
        if crd:
            apart = self.reshaped([n, rest, block, block, h, w]).transposed([0, 1, 4, 2, 5, 3])
        else:
            apart = self.reshaped([n, block, block, rest, h, w]).transposed([0, 3, 4, 1, 5, 2])
        return apart.reshaped([n, rest, times(h, block), times(w, block)])

    def _four(self, what: str) -> tuple[Size, ...]:
        if len(self.axes) != 4:
            raise Unproved(f"a {what} has {len(self.axes)} axes")
        return self.shape

    def stacked(self, others: Sequence[Laid], place: int) -> Laid:
        """Return it and `others` behind a Concat: phases that begin one after the other become digits."""
        apart = [{axis: minus(other.base[axis], base) for axis, base in self.base.items()} for other in others]
        found = [{axis: step for axis, size in each.items() if (step := constant(size)) != 0} for each in apart]
        steps = [{axis: step for axis, step in each.items() if step is not None} for each in found]
        if steps != found or not steps or not all(_alike(self.axes, other.axes) for other in others):
            raise Unproved("a Concat joins parts that are not alike")
        digits, known = list[Digit](), [dict[int, int]()]
        while len(known) <= len(steps):
            new, count, below = steps[len(known) - 1], 1, known
            axis, weight = next(iter(new.items()), (0, 0))
            while steps[len(known) - 1 :][: len(below)] == [_moved(each, axis, weight * count) for each in below]:
                known, count = [*known, *(_moved(each, axis, weight * count) for each in below)], count + 1
            if len(new) != 1 or count == 1:
                raise Unproved("a Concat joins phases that do not follow one another")
            digits.insert(0, Digit(axis, weight, count))
        cut = self.cut | {digit.axis for digit in digits}
        axes = [(*digits, *axis) if other == place else axis for other, axis in enumerate(self.axes)]
        return replace(self, axes=tuple(map(_joined, axes)), cut=cut)


def _moved(steps: Mapping[int, int], axis: int, by: int) -> dict[int, int]:
    return {**steps, axis: steps.get(axis, 0) + by}


def _alike(some: Sequence[Axis], others: Sequence[Axis]) -> bool:
    pairs = [(a, b) for one, other in zip(some, others, strict=True) for a, b in zip(one, other, strict=False)]
    return [*map(len, some)] == [*map(len, others)] and all(
        (a.axis, a.weight) == (b.axis, b.weight) and equal(a.size, b.size) for a, b in pairs
    )


def _count(axis: Axis) -> Size:
    size: Size = 1
    for digit in axis:
        size = times(size, digit.size)
    return size


def _joined(axis: Axis) -> Axis:
    """Return an axis with neighbouring digits of one axis of the data as one."""
    digits: list[Digit] = []
    for digit in axis:
        before = digits[-1] if digits else None
        if (
            before
            and before.axis == digit.axis
            and constant(minus(times(digit.size, digit.weight), before.weight)) == 0
        ):
            digits[-1] = Digit(digit.axis, digit.weight, times(before.size, digit.size))
        elif digit.size != 1 or len(axis) == 1:
            digits.append(digit)
    return tuple(digits)


def _taken(digits: list[Digit], size: Size, *, back: bool) -> Axis:
    """Take the digits of an axis of `size` from the front or the back of `digits`."""
    taken: list[Digit] = []
    wanted = size
    while wanted != 1:
        if not digits:
            raise Unproved("a Reshape does not keep the number of elements")
        digit = digits.pop() if back else digits.pop(0)
        if isinstance(digit.size, int) and divisible(wanted, digit.size):
            wanted = over(wanted, digit.size)
        elif not isinstance(digit.size, int) and not isinstance(wanted, int) and (k := multiple(wanted, digit.size)):
            wanted = k
        elif isinstance(wanted, int) and divisible(digit.size, wanted) and (back or isinstance(digit.size, int)):
            minor = wanted if back else constant(over(digit.size, wanted))
            assert minor is not None
            pair = digit.split(minor)
            digits.insert(len(digits) if back else 0, pair[0] if back else pair[1])
            digit, wanted = pair[1] if back else pair[0], 1
        else:
            raise Unproved("a Reshape takes an axis apart in a way that is no whole number of phases for all extents")
        taken.insert(0 if back else len(taken), digit)
    return tuple(taken)


def _place(place: Size, size: Size) -> Size:
    """Return where a Slice begins or ends, counted from the front."""
    if isinstance(place, int) and place >= FAR:
        return size
    if isinstance(place, int) and place < 0:
        return larger(plus(size, place), 0)
    if not isinstance(place, int) and not nonnegative(place):
        if not nonnegative(minus(-1, place)):
            raise Unproved("a Slice begins or ends at a place that is below 0 for some extents only")
        return larger(plus(size, place), 0)
    return smaller(place, size)
