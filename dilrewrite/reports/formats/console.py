"""The report as the command line shows it: on one screen, or with every table; colour on a terminal only."""

from __future__ import annotations

import functools
import io
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
    console.print(Text(clean(page.answer), style=f"bold {TONES.get(page.tone, '')}".rstrip()), soft_wrap=True)
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
            yield text(block.text)
        case doc.Bullets():
            for item in block.items:
                yield _grid([(Text("-"), text(item))], 1)
        case doc.Facts():
            yield _grid([(text(what, "dim"), text(says)) for what, says in block.rows], 2)
        case doc.Table():
            yield _table(block, width)
        case doc.Fold():
            about = [text(line) for line in block.about]
            yield Text(": ").join([text(block.title), Text("; ").join(about)] if about else [text(block.title)])
            for part in block.content:
                yield from _block(part, width)
        case doc.Chart() | doc.Drawing():
            return


def _grid(rows: Sequence[tuple[Text, Text]], gap: int) -> Grid:
    grid = Grid.grid(padding=(0, gap))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*row)
    return grid


def _table(table: doc.Table, width: int) -> Grid:
    """Return a table in which some columns stand below the one before."""
    stacks: list[list[int]] = []
    for i, column in enumerate(table.columns):
        stacks[-1].append(i) if column.below else stacks.append([i])
    numbers = [table.columns[stack[0]].kind == "number" for stack in stacks]
    rows = [
        [_stack([row[i] for i in stack], number) for stack, number in zip(stacks, numbers, strict=True)]
        for row in table.rows
    ]
    heads, widths = [], []
    for place, (stack, number) in enumerate(zip(stacks, numbers, strict=True)):
        names = [table.columns[i].name for i in stack]
        words = [word for name in names for word in re.split(r"(?<=-)(?=\w)|\s", name)]
        widest = max([*map(len, words), *(_widest(row[place]) for row in rows)])
        wrapped = [textwrap.fill(name, max(widest, HEAD_WIDTH)) for name in names] if number else [", ".join(names)]
        heads.append(Text("\n".join(wrapped)))
        widths.append(max(widest, _widest(heads[place])) if number else widest)
    room = width - 3 * len(stacks) - 1 - sum(size for size, number in zip(widths, numbers, strict=True) if number)
    prose = [any(table.columns[i].kind == "prose" for i in stack) for stack in stacks]
    texts = sorted((prose[place], size, place) for place, size in enumerate(widths) if not numbers[place])
    for i, (last, size, place) in enumerate(texts):  # names come first, the widest share what the others leave
        part = room // (len(texts) - i)
        widths[place] = max(min(size, part if last else max(part, room * 3 // 5)), 1)
        room -= widths[place]
    grid = Grid(box=box.ROUNDED, show_lines=len(stacks) < len(table.columns), header_style="", border_style="dim")
    for head, size, number in zip(heads, widths, numbers, strict=True):
        justify: Literal["left", "right"] = "right" if number else "left"
        grid.add_column(head, justify=justify, no_wrap=number, overflow="fold", width=size)
    for row in rows:
        grid.add_row(*row)
    return grid


def _stack(cells: Sequence[doc.Inline], number: bool) -> Text:
    """Return cells below each other; of texts, those that say something."""
    first, *rest = (text(cell) for cell in cells)
    if not number:
        rest = [Text.assemble(cell, style="dim") for cell in rest if cell.plain not in ("", NOTHING)]
    return Text("\n").join([first, *rest])


def _widest(cell: Text) -> int:
    return max(cell_len(line) for line in cell.plain.split("\n"))
