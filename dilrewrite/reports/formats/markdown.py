"""The report as GitHub Markdown, complete: every site, every refusal, every figure."""

from __future__ import annotations

import re
from collections.abc import Iterator

from dilrewrite.reports import document as doc
from dilrewrite.reports.content import document
from dilrewrite.reports.formats import Format
from dilrewrite.reports.report import Report
from dilrewrite.reports.units import clean


def render(report: Report) -> str:
    """Return a page that reads from the answer to the details; charts are left out."""
    return page(document(report))


def page(content: doc.Document) -> str:
    """Return a document as a page."""
    return "\n".join(_page(content)).rstrip("\n") + "\n"


REPORT = Format(render=render, filename="report.md", default=True, opening=r"# dilrewrite \w+: ", page=page)


def code(text: str) -> str:
    """Return `text` as code, in a table or outside; what a code span cannot hold there becomes entities."""
    text = clean(text)
    if text and text == text.strip() and not set(text) & set("`|\\"):
        return f"`{text}`"
    return f"<code>{''.join(c if c.isalnum() or c in ' /.' else f'&#{ord(c)};' for c in text)}</code>"


def cell(text: doc.Inline) -> str:
    """Return `text` so that no character of it is taken as markup inside a line or a table."""
    if isinstance(text, doc.Span):
        return code(doc.plain(text.content)) if text.mark in ("code", "copy") else cell(text.content)
    if isinstance(text, tuple):
        return "".join(map(cell, text))
    text = re.sub(r"[\\*\[\]~]", r"\\\g<0>", clean(text))
    text = re.sub(r"[&<>|`$]", lambda match: f"&#{ord(match[0])};", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def prose(text: doc.Inline) -> str:
    """Return `text` as `cell` does, and so that it opens no heading or list at the start of a line."""
    opening = r"^(\s*(?:\d+(?=[.)](?:\s|$)))?)([#+=.)-])"
    return re.sub(opening, lambda match: f"{match[1]}&#{ord(match[2])};", cell(text))


def _heading(level: int, text: doc.Inline) -> list[str]:
    return [f"{'#' * min(level, 6)} {re.sub(r'#(?=[# ]*$)', '&#35;', cell(text)).strip()}", ""]


def _page(page: doc.Document) -> Iterator[str]:
    yield from _heading(1, f"dilrewrite {page.command}: {page.status}")
    yield from (f"**{cell(page.answer).strip()}**", "")
    if page.facts is not None:
        yield from _block(page.facts, 2)
    for section in page.sections:
        yield from _heading(2, section.title)
        for block in section.blocks:
            yield from _block(block, 3)
    yield page.closing


def _block(block: doc.Block, level: int) -> Iterator[str]:
    """Yield the lines of a block; the headings in it are of this level."""
    match block:
        case doc.Paragraph():
            yield from (prose(block.text), "")
        case doc.Bullets():
            yield from (*(f"- {prose(item)}" for item in block.items), "")
        case doc.Facts():
            yield from (*(f"- {cell(what)}: {cell(says)}" for what, says in block.rows), "")
        case doc.Table():
            yield from _table(block)
        case doc.Fold():
            yield from _heading(level, block.title)
            for line in block.about:
                yield from (prose(line), "")
            for part in block.content:
                yield from _block(part, level + 1)
        case doc.Chart() | doc.Drawing() | doc.Change():
            return


def _table(table: doc.Table) -> Iterator[str]:
    yield f"| {' | '.join(cell(column.name) for column in table.columns)} |"
    yield f"|{'|'.join('---:' if column.kind == 'number' else '---' for column in table.columns)}|"
    yield from (f"| {' | '.join(map(cell, row))} |" for row in table.rows)
    yield ""
