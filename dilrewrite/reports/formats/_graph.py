"""Places the boxes of a drawing below each other, as SVG elements: plain data, which `html` spells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dilrewrite.reports import document as doc
from dilrewrite.reports.units import clean, shorten

CHARACTER = 7.2  # width of a character of the drawing's font
LENGTH = 60  # a longer label loses its middle
BOX, GAP, PAD = 26.0, 20.0, 12.0  # height of a box, of an arrow, and room inside a frame and beside a label
HEAD = 4.0  # half the width of an arrow's head

Part = tuple[str, str, dict[str, str]]
"""An element: tag, text, attributes."""


def column(line: Sequence[doc.Shape]) -> tuple[float, float, list[Part]]:
    """Return width, height and elements of a drawing with an arrow into the first shape and out of the last."""
    width, height = _size(line)
    whole = height + 2 * GAP
    return width + 4, whole, list(_column(line, width / 2 + 2, 0, whole))


def words(shape: doc.Shape) -> str:
    """Return a shape in words, for those who do not see it."""
    times = f" ({shape.times} times)" if shape.times > 1 else ""
    if isinstance(shape, doc.Box):
        return f"{shape.label}{times}"
    lines = []
    for place, line in enumerate(shape.lines):
        count = f"{number} times " if (number := _alike(shape, place)) > 1 else ""
        lines.append(count + (", then ".join(map(words, line)) or "what enters"))
    return f"[{'; '.join(lines)}]{times}"


def _alike(fork: doc.Lines, place: int) -> int:
    return fork.alike[place] if fork.alike else 1


def _label(box: doc.Box) -> str:
    label = shorten(clean(box.label), LENGTH)
    return f"{label} ×{box.times}" if box.times > 1 else label


def _note(shape: doc.Lines, place: int) -> str:
    number = _alike(shape, place)
    return f"{number} alike" if number > 1 else ""


def _size(line: Sequence[doc.Shape]) -> tuple[float, float]:
    """Return width and height of shapes below each other, with arrows in between."""
    sizes = [_extent(shape) for shape in line]
    height = sum(height for _, height in sizes) + GAP * max(len(sizes) - 1, 0)
    return max((width for width, _ in sizes), default=2 * PAD), height


def _extent(shape: doc.Shape) -> tuple[float, float]:
    if isinstance(shape, doc.Box):
        return CHARACTER * len(_label(shape)) + 2 * PAD, BOX
    widths = list(_widths(shape))
    height = max(_size(line)[1] for line in shape.lines) + 2 * GAP
    notes = BOX * (bool(shape.alike) + (shape.times > 1))
    return sum(widths) + PAD * (len(widths) + 1), height + notes


def _widths(shape: doc.Lines) -> Iterator[float]:
    for place, line in enumerate(shape.lines):
        yield max(_size(line)[0], CHARACTER * len(_note(shape, place)))


def _column(line: Sequence[doc.Shape], x: float, top: float, bottom: float) -> Iterator[Part]:
    """Yield shapes around `x`, an arrow in front of each, and a line from the last to the bottom."""
    y = top
    for shape in line:
        yield _arrow(x, y, y + GAP)
        yield from _shape(shape, x, y + GAP)
        y += GAP + _extent(shape)[1]
    yield _arrow(x, y, bottom)


def _shape(shape: doc.Shape, x: float, y: float) -> Iterator[Part]:
    width, height = _extent(shape)
    size = {"x": _number(x - width / 2), "y": _number(y), "width": _number(width), "height": _number(height)}
    if isinstance(shape, doc.Box):
        yield "rect", "", {"class_": shape.kind or "layout", "rx": "4", **size}
        yield _text(_label(shape), x, y + BOX / 2)
        return
    yield "rect", "", {"class_": "frame", "rx": "6", **size}
    notes = y + height - BOX * (bool(shape.alike) + (shape.times > 1))
    left = x - width / 2 + PAD
    for place, (line, wide) in enumerate(zip(shape.lines, _widths(shape), strict=True)):
        middle = left + wide / 2
        yield from _column(line, middle, y, notes)
        if note := _note(shape, place):
            yield _text(note, middle, notes + BOX / 2)
        left += wide + PAD
    if shape.times > 1:
        yield _text(f"×{shape.times} in a row", x, y + height - BOX / 2)


def _text(label: str, x: float, y: float) -> Part:
    """Return a text of the width that it was counted with, whatever the font makes of it."""
    return "text", label, {"x": _number(x), "y": _number(y + 4), "textLength": _number(CHARACTER * len(label))}


def _arrow(x: float, top: float, bottom: float) -> Part:
    across, end, neck = _number(x), _number(bottom), _number(bottom - 1.5 * HEAD)
    head = f"M{_number(x - HEAD)} {neck}L{across} {end}L{_number(x + HEAD)} {neck}"
    return "path", "", {"d": f"M{across} {_number(top)}V{end}{head}"}


def _number(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
