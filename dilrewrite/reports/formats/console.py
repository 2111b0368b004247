"""The report as the command line shows it: the answer first, then tables; colour on a terminal only."""

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
from dilrewrite.reports.content import document, engine_document
from dilrewrite.reports.formats import Format
from dilrewrite.reports.report import Report
from dilrewrite.reports.units import NOTHING, clean, shorten
from dilrewrite.tensorrt.sidecar import EngineReport

WIDTH = 100  # columns where there is no terminal to ask
MIN_WIDTH = 72  # columns that the tables need; a narrower terminal wraps them
NAME_LENGTH = 120  # a longer node name loses its middle here (never in the other formats)
HEAD_WIDTH = 8  # columns that the names over numbers have at least before they are wrapped
TONES = {"good": "green", "warn": "yellow", "bad": "red"}
STYLES = {**TONES, "muted": "dim"}  # the looks of marks; those of a name, a link and the rest are plain


def render(report: Report) -> str:
    """Return the brief report as the plain text that the command line prints; see `show` for colour."""
    return to_text(report, _width(sys.stdout))


REPORT = Format(render=render)


def to_text(report: Report | EngineReport, width: int = WIDTH) -> str:
    """Return a report, or what is known of an engine, as plain text for `width` columns."""
    return _printed(report, _console(io.StringIO(), width, colour=False))


def show(report: Report | EngineReport, file: TextIO | None = None) -> None:
    """Print a report, or what is known of an engine, in colour when `file` (standard output by default) is a terminal.

    What the encoding of `file` cannot hold is printed as escapes.
    """
    file = sys.stdout if file is None else file
    console = _console(file, _width(file), colour=file.isatty())
    if console.legacy_windows:
        console = _console(file, _width(file), colour=False)
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(_printed(report, console).encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def _console(file: TextIO, width: int, *, colour: bool) -> Console:
    """Return a rich Console that takes no text for markup."""
    system: Literal["auto"] | None = "auto" if colour else None
    plain = functools.partial(Console, force_jupyter=False, markup=False, highlight=False, emoji=False)
    return plain(file=file, width=max(width, MIN_WIDTH), force_terminal=colour, color_system=system)


def _width(file: TextIO) -> int:
    return max(shutil.get_terminal_size((WIDTH, 24)).columns, MIN_WIDTH) if file.isatty() else WIDTH


def _printed(report: Report | EngineReport, console: Console) -> str:
    page = engine_document(report) if isinstance(report, EngineReport) else document(report, brief=True)
    with console.capture() as captured:
        console.print(Text(clean(page.answer), style=f"bold {TONES.get(page.tone, '')}".rstrip()), soft_wrap=True)
        for section in page.sections:
            console.print()
            if section.title:
                console.print(Text(f"{section.title[0].lower()}{section.title[1:]}", style="bold"))
            for block in section.blocks:
                for part in _block(block, console.width):
                    console.print(part)
    return "".join(line.rstrip() + "\n" for line in captured.get().split("\n")[:-1])


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
