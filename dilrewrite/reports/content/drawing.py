"""The nodes of a region as a drawing: what follows each other in a line, branches beside each other, repeats once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.report import RegionNode

MOST_BOXES = 40  # a drawing with more of them is drawn more coarsely
MOST_OPERATORS = 4  # so many operators of a box are named, those with most nodes
DEEPEST = 4  # groups are not drawn at this depth where there are too many boxes
LONGEST_REPEAT = 64  # so many shapes in a row are looked for once more


@dataclass(frozen=True, slots=True)
class _Node:
    """Equal nodes in a row: how many of which operators, and their dilations above 1."""

    operators: tuple[tuple[str, int], ...]
    dilations: frozenset[int] = frozenset()
    times: int = 1


@dataclass(frozen=True, slots=True)
class _Group:
    """Branches that begin at one place and meet in the next shape, or one line that belongs together."""

    lines: tuple[tuple[_Shape, ...], ...]
    times: int = 1


_Shape = _Node | _Group


def shapes(nodes: Sequence[RegionNode], most: int = MOST_BOXES) -> tuple[doc.Shape, ...]:
    """Return at most about so many boxes of a region, from what enters to what leaves."""
    exact = tuple(_Drawer(nodes).shapes(range(len(nodes))))
    return tuple(map(_drawn, next(drawing for drawing in _drawings(exact, most) if _boxes(drawing) <= most)))


def kinds(line: Sequence[doc.Shape]) -> Iterator[str]:
    """Yield the looks of all boxes."""
    for shape in line:
        if isinstance(shape, doc.Box):
            yield shape.kind
        else:
            yield from (kind for inner in shape.lines for kind in kinds(inner))


def _drawings(exact: Sequence[_Shape], most: int) -> Iterator[tuple[_Shape, ...]]:
    """Yield drawings, each coarser than the one before, the last one coarse enough."""
    yield _folded(exact, lambda shape: shape)
    flat = _folded(exact, _kind)
    yield flat
    for depth in reversed(range(DEEPEST)):
        flat = _folded([_flat(shape, depth) for shape in flat], _kind)
        yield flat
    yield _coarse(flat, most)


class _Drawer:
    """Takes a list of nodes apart: where one tensor alone goes on, and into branches in between."""

    def __init__(self, nodes: Sequence[RegionNode]) -> None:
        self.nodes = nodes

    def shapes(self, places: Sequence[int]) -> Iterator[_Shape]:
        """Yield the shapes of nodes at these places, in their order."""
        for piece in self._cut(places, 1):
            yield from [self._node(piece[0])] if len(piece) == 1 else self._branches(piece)

    def _node(self, place: int) -> _Node:
        node = self.nodes[place]
        return _Node(((node.op, 1),), frozenset({node.dilation} - {1}))

    def _cut(self, places: Sequence[int], most: int) -> Iterator[Sequence[int]]:
        """Yield the pieces between which at most so many results go on."""
        begin = 0
        for end, width in enumerate(self._widths(places), 1):
            if width <= most:
                yield places[begin:end]
                begin = end
        yield places[begin:]

    def _widths(self, places: Sequence[int]) -> list[int]:
        """Return for each gap between places how many results are read on both of its sides, or made before it."""
        numbers = {place: number for number, place in enumerate(places)}
        spans: dict[int, list[int]] = {}
        for place in places:
            for source in self.nodes[place].reads:
                spans.setdefault(source, [numbers[source]] if source in numbers else []).append(numbers[place])
        steps = Counter[int]()
        for span in spans.values():
            steps[min(span)] += 1
            steps[max(span)] -= 1
        widths, width = [], 0
        for number in range(len(places) - 1):
            width += steps[number]
            widths.append(width)
        return widths

    def _branches(self, piece: Sequence[int]) -> Iterator[_Shape]:
        """Yield the branches before the last node of a piece, and that one; a frame where they do not come apart."""
        *body, last = piece
        parts = self._parts(body)
        around = {source for place in body for source in self.nodes[place].reads} - set(body)
        past = bool(around.intersection(self.nodes[last].reads))
        if len(parts) + past > 1:
            lines = [tuple(self.shapes(part)) for part in parts]
            yield _Group((*lines, *([()] if past else [])))
            yield self._node(last)
            return
        for part in self._cut(piece, min(self._widths(piece))):
            line = tuple(map(self._node, part))
            yield line[0] if len(line) == 1 else _Group((line,))

    def _parts(self, places: Sequence[int]) -> list[list[int]]:
        """Return the places in groups that hang together."""
        above = {place: place for place in places}

        def root(place: int) -> int:
            while above[place] != place:
                above[place] = place = above[above[place]]
            return place

        for place in places:
            for source in self.nodes[place].reads:
                if source in above:
                    above[root(place)] = root(source)
        return units.groups(places, root)


def _kind(shape: _Shape) -> Hashable:
    """Return what shapes have in common that differ in dilations only."""
    if isinstance(shape, _Group):
        return (shape.times, *(tuple(map(_kind, line)) for line in shape.lines))
    return (shape.times, shape.operators, bool(shape.dilations))


def _folded(line: Sequence[_Shape], key: Callable[[_Shape], Hashable]) -> tuple[_Shape, ...]:
    """Return the shapes with those once that come several times in a row, alone or as a group."""
    inner = [
        replace(shape, lines=tuple(_folded(each, key) for each in shape.lines)) if isinstance(shape, _Group) else shape
        for shape in line
    ]
    keys, folded, begin = [key(shape) for shape in inner], list[_Shape](), 0
    while begin < len(inner):
        best, times = 1, 1
        for length in range(1, min(LONGEST_REPEAT, (len(inner) - begin) // 2) + 1):
            found = 1
            while keys[begin : begin + length] == keys[begin + found * length : begin + (found + 1) * length]:
                found += 1
            if length * (found - 1) > best * (times - 1):
                best, times = length, found
        repeats = [inner[start : start + best] for start in range(begin, begin + best * times, best)]
        first = [_merged(same) for same in zip(*repeats, strict=True)]
        whole: _Shape = first[0] if best == 1 else _Group((tuple(first),))
        if times > 1 and whole.times > 1:
            whole = _Group(((whole,),))
        folded.append(replace(whole, times=whole.times * times))
        begin += best * times
    return tuple(folded)


def _merged(same: Sequence[_Shape]) -> _Shape:
    """Return shapes that differ in dilations at most as one with all of these."""
    first = same[0]
    if isinstance(first, _Node):
        return replace(first, dilations=frozenset().union(*(s.dilations for s in same if isinstance(s, _Node))))
    groups = [shape.lines for shape in same if isinstance(shape, _Group)]
    return replace(
        first, lines=tuple(tuple(map(_merged, zip(*some, strict=True))) for some in zip(*groups, strict=True))
    )


def _counted(shape: _Shape) -> tuple[Counter[str], frozenset[int]]:
    """Return how many nodes of which operators a shape is, and their dilations."""
    if isinstance(shape, _Node):
        return Counter({op: number * shape.times for op, number in shape.operators}), shape.dilations
    total, dilations = Counter[str](), frozenset[int]()
    for operators, some in (_counted(inner) for line in shape.lines for inner in line):
        total.update({op: number * shape.times for op, number in operators.items()})
        dilations |= some
    return total, dilations


def _together(line: Sequence[_Shape]) -> _Node:
    total, dilations = _counted(_Group((tuple(line),)))
    return _Node(tuple(total.most_common()), dilations)


def _flat(shape: _Shape, depth: int) -> _Shape:
    """Return a shape with the groups at a depth as one box each, those around it as they are."""
    if isinstance(shape, _Node):
        return shape
    if not depth:
        return _together([shape])
    return replace(shape, lines=tuple(tuple(_flat(inner, depth - 1) for inner in line) for line in shape.lines))


def _coarse(line: Sequence[_Shape], most: int) -> tuple[_Shape, ...]:
    """Return as many boxes as there may be, each for about as many shapes."""
    ends = [round(number * len(line) / most) for number in range(most + 1)]
    return tuple(_together(line[begin:end]) for begin, end in pairwise(ends) if begin < end)


def _boxes(line: Sequence[_Shape]) -> int:
    """Return how many boxes are drawn: one for those of equal lines."""
    return sum(_inside(shape) if isinstance(shape, _Group) else 1 for shape in line)


def _inside(group: _Group) -> int:
    return sum(max(_boxes(line), 1) for line in dict.fromkeys(group.lines))


def _drawn(shape: _Shape) -> doc.Shape:
    if isinstance(shape, _Group):
        alike = Counter(shape.lines)
        counts = tuple(alike.values()) if max(alike.values()) > 1 else ()
        return doc.Lines(tuple(tuple(map(_drawn, line)) for line in alike), shape.times, counts)
    names = [f"{number}× {op}" if number > 1 else op for op, number in shape.operators]
    if len(names) > MOST_OPERATORS:
        names[MOST_OPERATORS:] = [f"{sum(number for _, number in shape.operators[MOST_OPERATORS:])} others"]
    dilations = f" d{','.join(map(str, sorted(shape.dilations)))}" if shape.dilations else ""
    conv = "conv" if any(re.match(r"Conv\b", op) for op, _ in shape.operators) else ""
    return doc.Box("dilated" if shape.dilations else conv, f"{units.joined(*names)}{dilations}", shape.times)
