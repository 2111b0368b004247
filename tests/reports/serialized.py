"""A document as compact text, for golden files: one line per paragraph, item, row or bar."""

from __future__ import annotations

from collections.abc import Iterator

from dilrewrite.reports.document import (
    Block,
    Box,
    Bullets,
    Change,
    Chart,
    Document,
    Drawing,
    Facts,
    Fold,
    Inline,
    Paragraph,
    Shape,
    Table,
)
from dilrewrite.reports.units import clean


def serialized(page: Document) -> str:
    return "".join(f"{line.rstrip()}\n" for line in _document(page))


def _document(page: Document) -> Iterator[str]:
    yield f"{page.command}: {page.status} [{page.tone}] {clean(page.path)}"
    yield clean(page.answer)
    for tile in page.tiles:
        yield clean(f"tile {tile.name}: {tile.value} [{tile.tone}] {tile.below}")
    for what, says in page.facts.rows if page.facts is not None else ():
        yield clean(f"fact {what}: {inline(says)}")
    for section in page.sections:
        yield f"# {section.title}{f' [{section.tone}]' if section.tone else ''}"
        for block in section.blocks:
            yield from _block(block)
    yield page.closing


def inline(text: Inline) -> str:
    if isinstance(text, str):
        return clean(text)
    if isinstance(text, tuple):
        return "".join(map(inline, text))
    mark = {"code": "`", "": ""}.get(text.mark)
    if mark is not None:
        return f"{mark}{inline(text.content)}{mark}"
    target = f" {text.target}" if text.target else ""
    return f"<{text.mark}{target}:{inline(text.content)}>" if text.content else ""


def _block(block: Block) -> Iterator[str]:
    match block:
        case Paragraph():
            yield inline(block.text)
        case Bullets():
            yield from (f"- {inline(item)}" for item in block.items)
        case Facts():
            yield f"facts {block.title}"
            yield from (f"  {what}: {inline(says)}" for what, says in block.rows)
        case Table():
            kinds = {"number": "#", "prose": "~", "": ""}
            heads = [f"{kinds[column.kind]}{'^' if column.below else ''}{column.name}" for column in block.columns]
            anchor = f" ({block.anchors[0].rpartition('-')[0]})" if block.anchors else ""
            yield f"table {block.title}{anchor}: {' | '.join(heads)}"
            yield from (f"  {' | '.join(map(inline, row))}" for row in block.rows)
        case Fold():
            look = f"{'group' if block.group else 'fold'}{' open' if block.shown else ''}"
            yield f"{look} {'; '.join(map(inline, (block.title, *block.about)))}"
            for part in block.content:
                yield from (f"  {line}" for line in _block(part))
        case Chart():
            yield f"chart {block.title} to {block.most:.6g}: {', '.join(': '.join(key) for key in block.legend)}"
            for bar in block.bars:
                numbers = " ".join(f"{n:.6g}" if n is not None else "-" for n in (bar.value, bar.low, bar.high))
                rest = f"mark {bar.mark} gone {bar.gone:.6g}"
                yield f"  {bar.kind} {numbers} {rest} | {inline(bar.label)} | {inline(bar.says)} | {clean(bar.name)}"
        case Drawing():
            yield f"drawing {block.title}: {' > '.join(map(_shape, block.shapes))}"
        case Change():
            yield f"change {block.title}: {', '.join(': '.join(key) for key in block.legend)}"
            yield f"  before {' > '.join(map(_shape, block.before))}"
            yield f"  after {' > '.join(map(_shape, block.after))}"


def _shape(shape: Shape) -> str:
    times = f" x{shape.times}" if shape.times > 1 else ""
    if isinstance(shape, Box):
        return f"[{shape.kind}{':' if shape.kind else ''}{clean(shape.label)}]{times}"
    alike = [f"{number} alike " if number > 1 else "" for number in shape.alike or [1] * len(shape.lines)]
    lines = (f"{same}{' > '.join(map(_shape, line))}" for same, line in zip(alike, shape.lines, strict=True))
    return f"({' | '.join(lines)}){times}"
