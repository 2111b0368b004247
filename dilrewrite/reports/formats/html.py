"""The report as one HTML file that needs nothing else: the answer, charts of what was measured, and every figure.

Its one script only adds a button that copies; nothing else runs, and nothing is loaded, which its policy holds.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import importlib.resources
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import starmap

from dilrewrite.reports import document as doc
from dilrewrite.reports.content import document
from dilrewrite.reports.formats import Format
from dilrewrite.reports.formats import _graph as graph
from dilrewrite.reports.report import Report
from dilrewrite.reports.units import clean

SIGNS = {"good": "✓", "warn": "!", "bad": "✗"}  # of a status by its tone
ARROW = '<span class="arrow">-&gt;</span>'  # no line ends within it
INLINE = frozenset({"a", "b", "code", "path", "rect", "span", "td", "text", "th"})  # they end no line of the source
LINES = {"whisker": "M3 7H21M3 3V11M21 3V11", "mark": "M12 0V14"}  # looks in a legend that are no box
SHORT = 16  # a value of fewer characters stands in one line
WIDTH, HEIGHT = 1000, 24  # the size of a plot in its own units; it is stretched to the width there is


def render(report: Report) -> str:
    """Return a page from the answer to the details; charts are SVG, long parts fold, and all of it needs no script."""
    return whole(document(report))


def whole(page: doc.Document) -> str:
    """Return a document as a page."""
    style, script = _file("page.css"), _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", escape(f"dilrewrite {page.command}: {page.status}: {page.path}")),
        element("style", Html(style)),
    )
    body = element("body", element("main", *_page(page)), Html(f"<script>{script}</script>\n"))
    return f"<!doctype html>\n{element('html', head, body, lang='en')}"


OPENING = r"<!doctype html>\s*<html[^>]*>\s*<head>.*<title>dilrewrite \w+: "
REPORT = Format(render=render, filename="report.html", default=True, opening=OPENING, page=whole)


@functools.cache
def _file(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


class Html(str):
    """Markup. Any other string is text, and is escaped on its way into the page."""

    __slots__ = ()


def escape(value: str) -> Html:
    """Return `value` as text: nothing in it is markup, and what does not print can be seen."""
    return Html(html.escape(clean(value)))


def text(value: doc.Inline) -> Html:
    """Return `value` as it is when it is markup, otherwise as text whose arrows no line breaks."""
    if isinstance(value, Html):
        return value
    if isinstance(value, str):
        return Html(escape(value).replace("-&gt;", ARROW))
    if isinstance(value, tuple):
        return Html("".join(map(text, value)))
    content = value.content
    match value.mark:
        case "":
            return text(content)
        case "code" | "copy" as mark:  # a line may break inside it
            name = re.sub(r"([/_])(?=.)", r"\1<wbr>", escape(doc.plain(content)))
            return element("code", Html(name.replace("-&gt;", ARROW)), class_="copy" if mark == "copy" else None)
        case "strong":
            return element("b", content)
        case "link":
            return element("a", content, href=f"#{value.target}")
        case "fold":
            return element("details", element("summary", value.target), content)
        case mark:
            return element("span", content, class_=mark) if doc.plain(content) else Html("")


def element(tag: str, *content: doc.Inline, **attributes: str | None) -> Html:
    """Return an element. An attribute's name may end in `_`; one that is `None` is left out."""
    opening = tag
    for name, value in attributes.items():
        if value is not None:
            opening += f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
    end = "" if tag in INLINE else "\n"
    return Html(f"<{opening}>{end}" if tag == "meta" else f"<{opening}>{text(content)}</{tag}>{end}")


def _page(page: doc.Document) -> Iterator[Html]:
    sign = element("span", SIGNS.get(page.tone, "●"), aria_hidden="true")
    status = element("span", sign, f" {page.status}", class_=f"status {page.tone or 'plain'}")
    facts = page.facts.rows if page.facts is not None else ()
    about = [element("div", element("dt", what), element("dd", says)) for what, says in facts]
    yield element(
        "header",
        element("p", status, " ", element("b", f"dilrewrite {page.command}"), " ", doc.Span("code", page.path)),
        element("h1", page.answer),
        *(_banner(section) for section in page.sections if section.tone),
        element("div", *map(_tile, page.tiles), class_="tiles") if page.tiles else "",
        element("dl", *about) if about else "",
    )
    parts = [(_anchor(section), section) for section in page.sections if not section.tone]
    links = [Html(f"{element('a', part.title, href=f'#{anchor}')} ") for anchor, part in parts]
    yield element("nav", *links, aria_label="Parts of this report")
    for anchor, part in parts:
        yield element("section", element("h2", part.title), *map(_block, part.blocks), id=anchor)
    yield element("footer", element("p", page.closing))


def _anchor(section: doc.Section) -> str:
    return re.sub(r"\W+", "-", section.title.lower())


def _banner(section: doc.Section) -> Html:
    """Return a section that is to be seen before any figure."""
    title = element("p", element("b", section.title))
    return element("div", title, *map(_block, section.blocks), class_=f"banner {section.tone}", role="note")


def _tile(tile: doc.Tile) -> Html:
    name, below = element("span", tile.name, class_="muted"), doc.muted(tile.below)
    if tile.target:
        below = doc.Span("link", tile.below, tile.target)
    value = element("b", tile.value, class_=f"{tile.tone or 'plain'}{' short' if len(tile.value) < SHORT else ''}")
    return element("div", name, value, element("span", below), class_=f"tile{' words' if tile.target else ''}")


def _links(part: doc.Inline) -> Iterator[doc.Span]:
    if isinstance(part, tuple):
        for inner in part:
            yield from _links(inner)
    elif isinstance(part, doc.Span):
        yield from [part] if part.mark == "link" else _links(part.content)


def _unlinked(part: doc.Inline) -> doc.Inline:
    """Return a part without links, which may not stand where a click opens a fold."""
    if isinstance(part, tuple):
        return tuple(map(_unlinked, part))
    if isinstance(part, doc.Span):
        return part.content if part.mark == "link" else replace(part, content=_unlinked(part.content))
    return part


def _fold(fold: doc.Fold) -> Html:
    about = [element("span", _unlinked(line), class_="about") for line in fold.about]
    title = _unlinked(fold.title)
    summary = element("summary", element("h3", title) if fold.group else title, *about)
    links = [*_links(fold.title), *(link for line in fold.about for link in _links(line))]
    rows = [element("p", "To its row: " if len(links) == 1 else "To the rows: ", doc.commas(links), class_="about")]
    shown, group = "" if fold.shown else None, "group" if fold.group else None
    content = [*(rows if links else []), *map(_block, fold.content)]
    return element("details", summary, *content, open=shown, class_=group)


def _block(block: doc.Block) -> Html:
    match block:
        case doc.Paragraph():
            return element("p", block.text)
        case doc.Bullets():
            return element("ul", *(element("li", item) for item in block.items))
        case doc.Facts():
            lines = [element("tr", element("th", what, scope="row"), element("td", says)) for what, says in block.rows]
            return _scroll(block.title, element("table", element("tbody", *lines), class_="facts"))
        case doc.Table():
            return _table(block)
        case doc.Fold():
            return _fold(block)
        case doc.Chart():
            return _chart(block)
        case doc.Drawing():
            drawn = element("div", *_line(block.shapes), class_="flow")
            return element("figure", element("figcaption", block.title), drawn)
        case doc.Change():
            both = [_side(*side) for side in (("before", block.before), ("after", block.after))]
            legend = element("p", *starmap(_key, block.legend), class_="legend")
            return element("figure", element("figcaption", block.title), element("div", *both, class_="change"), legend)


def _line(shapes: Sequence[doc.Shape]) -> list[Html]:
    """Return shapes with arrows between them; what passes by has an arrow alone."""
    arrow = element("span", "→", class_="to")
    drawn = [part for shape in shapes for part in (arrow, _shape(shape))]
    return drawn[1:] or [arrow]


def _shape(shape: doc.Shape) -> Html:
    times = element("b", f" ×{shape.times}", class_="times") if shape.times > 1 else ""
    if isinstance(shape, doc.Box):
        return element("span", shape.label, times, class_=f"node {shape.kind}".rstrip())
    lines = [element("div", *_line(line), _alike(shape, i), class_="flow") for i, line in enumerate(shape.lines)]
    return element("div", *lines, times, class_="fork")


def _alike(fork: doc.Lines, place: int) -> doc.Inline:
    number = fork.alike[place] if fork.alike else 1
    return element("span", f"{number} alike", class_="times") if number > 1 else ""


def _side(name: str, shapes: Sequence[doc.Shape]) -> Html:
    """Return the drawing of one side of a change, below its name."""
    width, height, parts = graph.column(shapes)
    drawn = [element(tag, escape(label), **attributes) for tag, label, attributes in parts]
    says = f"{name}: {', then '.join(graph.words(shape) for shape in shapes)}"
    size = {"width": f"{width:.0f}", "height": f"{height:.0f}", "viewBox": f"0 0 {width:.0f} {height:.0f}"}
    picture = element("svg", *drawn, class_="graph", role="img", aria_label=says, **size)
    return element("div", element("b", name), _scroll(name, picture))


def _scroll(title: str, table: Html) -> Html:
    return element("div", table, class_="scroll", role="group", aria_label=title, tabindex="0")


def _table(table: doc.Table) -> Html:
    """Return a table in a box that scrolls. The first cell of a row is its heading."""
    kinds = [column.kind or None for column in table.columns]
    top = [element("th", column.name, scope="col", class_=column.kind or None) for column in table.columns]
    lines = []
    for i, row in enumerate(table.rows):
        first = element("th", row[0], scope="row", class_=kinds[0])
        rest = [element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)]
        lines.append(element("tr", first, *rest, id=table.anchors[i] if table.anchors else None))
    head = element("thead", element("tr", *top))
    return _scroll(table.title, element("table", head, element("tbody", *lines)))


def ticks(most: float) -> list[float]:
    """Return at most six round numbers, from 0 to the first one that is at least `most`."""
    power = 10.0 ** math.floor(math.log10(most / 5))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= most / 5 * (1 - 1e-9))
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def _coordinate(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _cut(bar: doc.Bar, end: float) -> bool:
    return bar.drawn and bar.value > end * (1 + 1e-9)


def _plot(bar: doc.Bar, end: float) -> Html:
    """Return the drawing of one bar, for an axis that ends there."""

    def x(value: float) -> str:
        return _coordinate(WIDTH * min(max(value / end, 0.0), 1.0))

    def box(kind: str, start: str, width: str) -> Html:
        return element("rect", class_=kind, x=start, y="4", width=width, height="16")

    parts = [box(bar.kind, "0", x(bar.value))] if bar.drawn else []
    if bar.drawn and bar.gone > 0:
        start = x(bar.value - bar.gone)
        parts.append(box("gone", start, _coordinate(float(x(bar.value)) - float(start))))
    if _cut(bar, end):
        parts.append(element("path", class_="cut", d=f"M955 {HEIGHT}L967 0M975 {HEIGHT}L987 0"))
    elif bar.low is not None and bar.high is not None and math.isfinite(bar.low + bar.high):
        ends = [x(place) for place in (bar.low, bar.high) if place <= end * (1 + 1e-9)]
        line = "".join([f"M{x(bar.low)} 12H{x(bar.high)}", *(f"M{place} 8V16" for place in ends)])
        parts += [element("path", class_="halo", d=line), element("path", class_="whisker", d=line)]
    if bar.mark is not None and bar.mark <= end * (1 + 1e-9):
        parts.append(element("path", class_="mark", d=f"M{x(bar.mark)} 0V{HEIGHT}"))
    label = f"{bar.name}{' (bar cut)' if _cut(bar, end) else ''}"
    return _svg("plot", HEIGHT, parts, preserveAspectRatio="none", role="img", aria_label=label)


def _svg(kind: str, height: int, parts: Iterable[Html], width: int = WIDTH, **attributes: str) -> Html:
    return element("svg", *parts, class_=kind, viewBox=f"0 0 {width} {height}", **attributes)


def _chart(chart: doc.Chart) -> Html:
    """Return bars on one axis, between labels and numbers; a list where there is no length to draw."""
    if not 0 < chart.most < math.inf:
        return _block(doc.Bullets(tuple((bar.label, ": ", bar.says) for bar in chart.bars)))
    scale = ticks(chart.most)
    last = len(scale) - 1
    grid = element("path", d="".join(f"M{_coordinate(WIDTH * i / last)} 0V{HEIGHT}" for i in range(last + 1)))
    lines = _svg("lines", HEIGHT, [grid], preserveAspectRatio="none")
    rows = [element("div", lines, class_="row back", aria_hidden="true")]
    for bar in chart.bars:
        cut = element("span", " (bar cut)", class_="muted") if _cut(bar, scale[-1]) else ""
        label, says = element("div", bar.label, class_="label"), element("div", bar.says, cut, class_="says")
        rows.append(element("div", label, _plot(bar, scale[-1]), says, class_="row"))
    names = [element("span", f"{tick:g}", style=f"left:{_coordinate(100 * i / last)}%") for i, tick in enumerate(scale)]
    axis = element("div", element("div", *names, class_="axis"), class_="row", aria_hidden="true")
    legend = element("p", *starmap(_key, chart.legend), class_="legend") if chart.legend else ""
    return element("figure", element("figcaption", chart.title), element("div", *rows, class_="rows"), axis, legend)


def _key(kind: str, name: str) -> Html:
    shape = element("rect", class_=kind, x="1", y="2", width="22", height="10")
    if kind in LINES:
        shape = element("path", class_=kind, d=LINES[kind])
    return element("span", _svg("swatch", 14, [shape], 24, aria_hidden="true"), name)
