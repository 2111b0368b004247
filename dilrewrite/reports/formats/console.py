"""The report as the command line shows it: on one screen, or with every table; colour on a terminal only."""

from __future__ import annotations

import functools
import io
import itertools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import Literal, TextIO

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from dilrewrite.reports import document as doc
from dilrewrite.reports.content import document, engine_document, engine_screen, screen
from dilrewrite.reports.formats import Format
from dilrewrite.reports.report import Report
from dilrewrite.reports.units import NOTHING, clean, shorten
from dilrewrite.tensorrt.sidecar import EngineReport

LINES, SCREEN_WIDTH = 24, 80  # of a screen, also where there is no terminal
ANSWER_LINES = 2  # so many lines at most has an answer on a screen
WIDTH = 100  # columns of every table where there is no terminal to ask
MIN_WIDTH = 72  # columns that the tables need; a narrower terminal wraps them
NAME_LENGTH = 120  # a longer node name loses its middle here (never in the other formats)
HEAD_WIDTH = 8  # columns that the names over numbers have at least before they are wrapped
TONES = {"good": "green", "warn": "yellow", "bad": "red"}
STYLES = {**TONES, "muted": "dim"}  # the looks of marks; those of a name, a link and the rest are plain


def render(report: Report) -> str:
    """Return the report on one screen as the plain text that the command line prints; see `show` for colour."""
    return on_screen(report, _width(sys.stdout, SCREEN_WIDTH))


REPORT = Format(render=render)


def to_text(report: Report | EngineReport, width: int = WIDTH) -> str:
    """Return a report, or what is known of an engine, with every table as plain text for `width` columns."""
    return _printed(report, _console(io.StringIO(), width, colour=False), verbose=True)


def on_screen(report: Report | EngineReport, width: int = SCREEN_WIDTH) -> str:
    """Return what one screen says of a report, or of an engine: plain text, 24 lines at most from 80 columns on."""
    return _printed(report, _console(io.StringIO(), width, colour=False), verbose=False)


def show(report: Report | EngineReport, file: TextIO | None = None, *, verbose: bool = False) -> None:
    """Print a report, or what is known of an engine, in colour when `file` (standard output by default) is a terminal.

    `verbose`: every table, not one screen. What the encoding of `file` cannot hold is printed as escapes.
    """
    file = sys.stdout if file is None else file
    width = _width(file, WIDTH if verbose else SCREEN_WIDTH)
    console = _console(file, width, colour=file.isatty())
    if console.legacy_windows:
        console = _console(file, width, colour=False)
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(_printed(report, console, verbose=verbose).encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def show_page(page: doc.Document, file: TextIO | None = None) -> None:
    """Print a document, tables and all; otherwise as `show`."""
    file = sys.stdout if file is None else file
    console = _console(file, _width(file, WIDTH), colour=file.isatty())
    with console.capture() as captured:
        _print_page(page, console)
    encoding = getattr(file, "encoding", None) or "utf-8"
    text = "".join(line.rstrip() + "\n" for line in captured.get().split("\n")[:-1])
    file.write(text.encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def _console(file: TextIO, width: int, *, colour: bool) -> Console:
    """Return a rich Console that takes no text for markup."""
    system: Literal["auto"] | None = "auto" if colour else None
    plain = functools.partial(Console, force_jupyter=False, markup=False, highlight=False, emoji=False)
    return plain(file=file, width=max(width, MIN_WIDTH), force_terminal=colour, color_system=system)


def _width(file: TextIO, otherwise: int) -> int:
    return max(shutil.get_terminal_size((otherwise, LINES)).columns, MIN_WIDTH) if file.isatty() else otherwise


def _printed(report: Report | EngineReport, console: Console, *, verbose: bool) -> str:
    with console.capture() as captured:
        if verbose:
            _print_page(
                engine_document(report) if isinstance(report, EngineReport) else document(report, brief=True), console
            )
        else:
            page = engine_screen(report) if isinstance(report, EngineReport) else screen(report)
            for line in _screen(page, console.width):
                console.print(line, soft_wrap=True)
    return "".join(line.rstrip() + "\n" for line in captured.get().split("\n")[:-1])


def _print_page(page: doc.Document, console: Console) -> None:
    answer = Text(clean(page.answer), style=f"bold {TONES.get(page.tone, '')}".rstrip())
    console.print(_fitting(answer, console.width))
    for section in page.sections:
        console.print()
        if section.title:
            console.print(Text(f"{section.title[0].lower()}{section.title[1:]}", style="bold"))
        for block in section.blocks:
            for part in _block(block, console.width):
                console.print(part)


# -- one screen ------------------------------------------------------------------------------------------------------


def _screen(page: doc.Screen, width: int) -> Iterator[Text]:
    """Yield the lines of a screen: the answer, the rows as far as there is room, and the answer again."""
    style = f"bold {TONES.get(page.tone, '')}".rstrip()
    answer = _cut(_wrapped(clean(page.answer), width), ANSWER_LINES, width)
    if not page.rows:
        yield from (Text(line, style=style) for line in answer)
        return
    margin = max(len(rows.name) for rows in page.rows) + 2
    room = width - margin
    parts = [
        [[clean(item)] if rows.whole else _wrapped(clean(item), room) for item in rows.items] for rows in page.rows
    ]
    height = LINES - 1 - 2 * len(answer)
    hidden = _fit(parts, [rows.whole for rows in page.rows], height, room)
    if _height(parts, hidden, room) > height:
        answer = _cut(answer, 1, width)
    yield from (Text(line, style=style) for line in answer)
    yield Text()
    for rows, items, more in zip(page.rows, parts, hidden, strict=True):
        told = [*items, *([[f"and {more} more (-v shows all)"]] if more else [])]
        for number, item in enumerate(told):
            each = rows.name == "!" and number < len(items)
            for place, line in enumerate(item):
                name = rows.name if not place and (not number or each) else ""
                yield Text.assemble(
                    (name.ljust(margin), "dim" if name != "!" else ""), (line, TONES.get(rows.tone, ""))
                )
    yield from (Text(line, style=style) for line in answer)


def _fit(parts: Sequence[list[list[str]]], whole: Sequence[bool], height: int, room: int) -> list[int]:
    """Shorten items, the longest first, and then leave out the last of the longest rows; return how many of each."""
    hidden = [0] * len(parts)
    while _height(parts, hidden, room) > height:
        cut = [place for place, fixed in enumerate(whole) if not fixed]
        longest = max((item for place in cut for item in parts[place]), key=len, default=[])
        if len(longest) > 1:
            longest[:] = _cut(longest, len(longest) - 1, room)
            continue
        most = max(cut, key=lambda place: len(parts[place]))
        if len(parts[most]) < 2:
            break
        parts[most].pop()
        hidden[most] += 1
    return hidden


def _height(parts: Sequence[list[list[str]]], hidden: Sequence[int], room: int) -> int:
    """Return how many lines a terminal shows; one that is too long goes on in the next."""
    lines = [line for items in parts for item in items for line in item]
    return sum(-(-max(cell_len(line), 1) // room) for line in lines) + sum(map(bool, hidden))


def _cut(lines: Sequence[str], most: int, width: int) -> list[str]:
    """Return the first lines; the last of them says when there is more."""
    if len(lines) <= most:
        return list(lines)
    last = lines[most - 1]
    if cell_len(last) > width - 4:
        last = last.rpartition(" ")[0] or shorten(last, width - 4)
    return [*lines[: most - 1], f"{last.rstrip(',;:(')} ..."]


def _wrapped(words: str, width: int) -> list[str]:
    """Return text in lines; no word is broken, one that is too long for a line loses its middle."""
    lines = [""]
    for word in words.split():
        word = shorten(word, width)
        if lines[-1] and cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines


def text(inline: doc.Inline, style: str = "") -> Text:
    """Return text in a line, or in several where a mark starts one."""
    if isinstance(inline, str):
        return Text(clean(inline), style=style)
    if isinstance(inline, tuple):
        return Text.assemble(*(text(part) for part in inline), style=style)
    if inline.mark == "code":
        return Text(shorten(clean(doc.plain(inline.content)), NAME_LENGTH), style=style)
    whole = text(inline.content, STYLES.get(inline.mark, style))
    return Text.assemble("\n", whole) if inline.mark == "line" and whole else whole


def _block(block: doc.Block, width: int) -> Iterator[RenderableType]:
    match block:
        case doc.Paragraph():
            yield _fitting(text(block.text), width)
        case doc.Bullets():
            for item in block.items:
                yield _grid([(Text("-"), _fitting(text(item), width - 2))], 1)
        case doc.Facts():
            yield from _facts([(text(what, "dim"), text(says)) for what, says in block.rows], width)
        case doc.Table():
            yield from _table(block, width)
        case doc.Fold():
            about = [text(line) for line in block.about]
            title = Text(": ").join([text(block.title), Text("; ").join(about)] if about else [text(block.title)])
            yield _fitting(title, width)
            for part in block.content:
                yield from _block(part, width)
        case doc.Chart() | doc.Drawing() | doc.Change():
            return


def _fitting(content: Text, width: int) -> Text:
    """Return text whose words fit into so many columns: a longer one loses its middle."""
    while long := next((word for word in re.finditer(r"\S+", content.plain) if cell_len(word[0]) > width), None):
        content = content[: long.start()] + Text(shorten(long[0], width)) + content[long.end() :]
    return content


def _facts(rows: Sequence[tuple[Text, Text]], width: int) -> Iterator[RenderableType]:
    """Yield what is known, names in a column; text with a word too long for the rest of the line is below its name."""
    margin = max(cell_len(what.plain) for what, _ in rows) + 2
    for below, some in itertools.groupby(rows, lambda row: _longest_word(row[1]) > width - margin):
        if not below:
            yield _grid([(what + Text(" " * (margin - 2 - cell_len(what.plain))), says) for what, says in some], 2)
            continue
        for what, says in some:
            yield what
            yield _grid([(Text(""), _fitting(says, width - 2))], 2)


def _grid(rows: Sequence[tuple[Text, Text]], gap: int) -> Grid:
    grid = Grid.grid(padding=(0, gap))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _table(table: doc.Table, width: int) -> Iterator[RenderableType]:
    """Yield a table in which some columns stand below the one before, or a list where its words do not fit."""
    stacks: list[list[int]] = []
    for i, column in enumerate(table.columns):
        stacks[-1].append(i) if column.below else stacks.append([i])
    numbers = [table.columns[stack[0]].kind == "number" for stack in stacks]
    rows = [
        [_stack([row[i] for i in stack], number) for stack, number in zip(stacks, numbers, strict=True)]
        for row in table.rows
    ]
    heads, columns = [], []
    for place, (stack, number) in enumerate(zip(stacks, numbers, strict=True)):
        cells = [row[place] for row in rows]
        heads.append(
            _head([table.columns[i].name for i in stack], max(map(_widest, cells), default=0) if number else None)
        )
        columns.append([heads[-1], *cells])
    ranks = [
        0 if number else 2 if any(table.columns[i].kind == "prose" for i in stack) else 1
        for stack, number in zip(stacks, numbers, strict=True)
    ]
    widths = _widths(columns, ranks, width - 3 * len(stacks) - 1)
    if widths is None:
        yield from (_grid([(Text("-"), _fitting(row, width - 2))], 1) for row in _listed(table))
        return
    grid = Grid(box=box.ROUNDED, show_lines=len(stacks) < len(table.columns), header_style="", border_style="dim")
    for head, size, number in zip(heads, widths, numbers, strict=True):
        justify: Literal["left", "right"] = "right" if number else "left"
        grid.add_column(head, justify=justify, overflow="fold", width=size)
    for row in rows:
        grid.add_row(*row)
    yield grid


def _head(names: Sequence[str], widest: int | None) -> Text:
    """Return the head of a column: over numbers, which are so wide, each name in lines of its own."""
    if widest is None:
        return Text(", ".join(names))
    width = max(widest, HEAD_WIDTH)
    return Text("\n".join(textwrap.fill(name, width, break_long_words=False) for name in names))


def _widths(columns: Sequence[Sequence[Text]], ranks: Sequence[int], room: int) -> list[int] | None:
    """Return the width of every column, or None where no width holds the longest word of each.

    What is left goes to numbers (rank 0) first, then to names (1), of which the widest share, and last to prose (2).
    """
    widths = [max(map(_longest_word, column)) for column in columns]
    wanted = [max(map(_widest, column)) for column in columns]
    room -= sum(widths)
    if room < 0:
        return None
    order = sorted(range(len(columns)), key=lambda place: (ranks[place], wanted[place]))
    for i, place in enumerate(order):
        last = i == len(order) - 1
        most = room if last or ranks[place] == 0 else max(room // (len(order) - i), room * 3 // 5)
        grown = min(wanted[place] - widths[place], most)
        widths[place], room = widths[place] + grown, room - grown
    return widths


def _listed(table: doc.Table) -> Iterator[Text]:
    """Yield the rows of a table as sentences: `tap_zones: outcome won; median ms 1.52`."""
    for row in table.rows:
        first, *rest = (text(cell) for cell in row)
        names = [column.name for column in table.columns[1:]]
        says = [Text.assemble((f"{name} ", "dim"), cell) for name, cell in zip(names, rest, strict=True) if cell.plain]
        yield Text.assemble(first, ": ", Text("; ").join(_line(each) for each in says))


def _line(content: Text) -> Text:
    return Text(" ").join(content.split("\n"))


def _stack(cells: Sequence[doc.Inline], number: bool) -> Text:
    """Return cells below each other; of texts, those that say something."""
    first, *rest = (text(cell) for cell in cells)
    if not number:
        rest = [Text.assemble(cell, style="dim") for cell in rest if cell.plain not in ("", NOTHING)]
    return Text("\n").join([first, *rest])


def _widest(cell: Text) -> int:
    return max(cell_len(line) for line in cell.plain.split("\n"))


def _longest_word(cell: Text) -> int:
    return max((cell_len(word) for word in cell.plain.split()), default=0)
