"""What a report says, made once: sections of text, lists, tables, charts and folds. Formats only spell them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar, Union

T = TypeVar("T")

Inline = Union[str, "Span", tuple["Inline", ...]]
"""Text in a line, plain or marked."""


@dataclass(frozen=True, slots=True)
class Span:
    """A marked piece of text.

    `mark`: `code` (a name or value of the model), `copy` (code that is copied whole), `strong`, `muted`, `line` (starts
    a line where there is room for one), `badge`, `link` (to the anchor `target`), `fold` (`target` says what it is), or
    a tone: `good`, `warn`, `bad`.
    """

    mark: str
    content: Inline
    target: str = ""


code, strong, muted, line = (functools.partial(Span, mark) for mark in ("code", "strong", "muted", "line"))


def codes(names: Sequence[str]) -> Inline:
    """Return names with commas between them."""
    return commas([code(name) for name in names])


def commas(parts: Sequence[Inline]) -> Inline:
    """Return the parts with commas between them."""
    return tuple(piece for part in parts for piece in (", ", part))[1:]


def plain(text: Inline) -> str:
    """Return the text without marks."""
    if isinstance(text, str):
        return text
    return plain(text.content) if isinstance(text, Span) else "".join(map(plain, text))


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or more."""

    text: Inline


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list."""

    items: tuple[Inline, ...]


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of something, as (what, text) rows."""

    title: str
    rows: tuple[tuple[str, Inline], ...]


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `kind`: `number` (right-aligned), `prose` (wide) or none; `below` the one before if room is scarce."""

    name: str
    kind: str = ""
    below: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows whose first cell is their heading. Links lead to rows by their `anchors`, where there are any."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Inline, ...], ...]
    anchors: tuple[str, ...] = ()


Cells = tuple[str, Callable[[T], Inline]] | bool
"""A column's name and what it says of an item; False for a column that is left out.

A name starts with `#` for numbers or `~` for prose, and then with `^` for a column that may stand below the one before.
"""


def grid(title: str, names: Iterable[str], rows: Iterable[Sequence[Inline]], anchors: Sequence[str] = ()) -> Table:
    """Return a table of rows, with columns of these names (see `Cells`)."""
    columns = []
    for name in names:
        kind = {"#": "number", "~": "prose"}.get(name[:1], "")
        rest = name[1:] if kind else name
        columns.append(Column(rest.removeprefix("^"), kind, rest.startswith("^")))
    return Table(title, tuple(columns), tuple(map(tuple, rows)), tuple(anchors))


def table(title: str, items: Iterable[T], *columns: Cells[T], anchors: Sequence[str] = ()) -> Table:
    """Return a table with a row per item."""
    shown = [column for column in columns if not isinstance(column, bool)]
    rows = [[cell(item) for _, cell in shown] for item in items]
    return grid(title, [name for name, _ in shown], rows, anchors)


@dataclass(frozen=True, slots=True)
class Fold:
    """A part that unfolds, with a title and lines `about` it. `shown`: it is unfolded. `group`: one of several."""

    title: Inline
    content: tuple[Block, ...]
    about: tuple[Inline, ...] = ()
    shown: bool = False
    group: bool = False


LONG_LINE = 1.5  # lines over the bars that are this much longer than any bar leave the chart, for bars to keep length


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of a chart: a bar from 0 to `value`, a line from `low` to `high` over it, a mark at `mark`.

    `kind` is its look (`keep`, `taken`, `other`, `predicted`), `name` what it says where it cannot be seen, `says`
    stands beside it. So much of its end as `gone` says is drawn hollow.
    """

    kind: str
    name: str
    label: Inline
    says: Inline
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    gone: float = 0.0

    @property
    def drawn(self) -> bool:
        """Say whether there is a length to draw."""
        return 0 <= self.value < math.inf


def reach(bars: Iterable[Bar]) -> float:
    """Return how far an axis has to go: over every bar and mark, and over lines that are not far longer."""
    bars = list(bars)
    numbers = ([n for bar in bars for n in (bar.value, bar.mark)], [bar.high for bar in bars])
    most, lines = (max((n for n in some if n is not None and math.isfinite(n)), default=0.0) for some in numbers)
    return max(most, min(lines, LONG_LINE * most))


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars on one axis from 0 to at least `most`; a longer bar is cut. `legend`: (look, what it is).

    Every number of a chart is in a table or a sentence too: a format that does not draw leaves it out.
    """

    title: str
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...]
    most: float


@dataclass(frozen=True, slots=True)
class Box:
    """One box of a drawing, `times` in a row. `kind` is its look: `edge` (enter, exit), `dilated`, `conv` or none."""

    kind: str
    label: str
    times: int = 1


@dataclass(frozen=True, slots=True)
class Lines:
    """Shapes in lines beside each other, which meet in what follows; one line is a frame. `times` in a row.

    A line without shapes passes on what enters. `alike`: of each line, how many equal ones there are; empty: one each.
    """

    lines: tuple[tuple[Shape, ...], ...]
    times: int = 1
    alike: tuple[int, ...] = ()


Shape = Box | Lines


@dataclass(frozen=True, slots=True)
class Drawing:
    """Shapes from left to right. What it says is in tables too: a format that does not draw leaves it out."""

    title: str
    shapes: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Change:
    """One place `before` and `after`, beside each other: shapes from top to bottom. `legend`: (look, what it is).

    What it says is in tables too: a format that does not draw leaves it out.
    """

    title: str
    before: tuple[Shape, ...]
    after: tuple[Shape, ...]
    legend: tuple[tuple[str, str], ...]


Block = Paragraph | Bullets | Facts | Table | Fold | Chart | Drawing | Change


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, which may be empty, and what stands below it. `tone`: of one that is to be seen first."""

    title: str
    blocks: tuple[Block, ...]
    tone: str = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One of the figures that tell most. `target`: where more is said of it."""

    name: str
    value: str
    below: str
    tone: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report: the answer in a sentence, with its tone (`good`, `warn`, `bad` or none), then everything else.

    `facts`: when, where and on what it ran, and how to do it again.
    """

    command: str
    status: str
    path: str
    tone: str
    answer: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]
    closing: str = ""
    facts: Facts | None = None


@dataclass(frozen=True, slots=True)
class Rows:
    """Lines of a screen under one name, what matters most first. Those that find no room are counted.

    `tone`: of all of them; `whole`: none is shortened, or left out (a path, say).
    """

    name: str
    items: tuple[str, ...]
    tone: str = ""
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Screen:
    """What one screen says of a report: the answer, which is short here, and rows."""

    tone: str
    answer: str
    rows: tuple[Rows, ...]
