"""One rewritten place, drawn before and after."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.content import drawing
from dilrewrite.reports.content.sites import Entry, geometry, site_name
from dilrewrite.reports.report import RegionNode, Report, SiteReport

MOST_BOXES = 12  # on each side; a drawing with more of them is drawn more coarsely
LOOKS = (("dilated", "dilated Conv"), ("conv", "Conv without dilation"), ("layout", "any other operator"))


def example_blocks(report: Report) -> Iterator[doc.Block]:
    """Yield the drawing of the place that gains most, and which one it is."""
    example = report.example
    entries: list[Entry] = [*report.regions, *report.sites]
    places = {one.key: one for one in entries}
    if example is None or report.status != "rewritten" or example.key not in places:
        return
    place = places[example.key]
    (before, _), (after, sizes) = map(data, (example.before, example.after))
    if not (before and after):  # no tap touches data: the outputs are made of sizes alone
        return
    if isinstance(place, SiteReport):
        after = summed(after)
    what = doc.code(geometry(place.geometry)) if isinstance(place, SiteReport) else f"{len(example.before)} nodes"
    alone: list[Entry] = [*report.regions, *(site for site in report.sites if site.region is None)]
    rewritten = sum(one.action == "rewritten" for one in alone)
    text: list[doc.Inline] = [doc.code(site_name(place)), " (", what, ") as ", doc.strong(place.strategy), ". "]
    if rewritten > 1:
        text.append(f"It is one of {rewritten} that are rewritten. ")
    if sizes:
        text.append(f"{units.count(sizes, 'node')} that only compute sizes are not drawn.")
    yield doc.Paragraph(tuple(text))
    shapes = [drawing.shapes(nodes, MOST_BOXES) for nodes in (before, after)]
    kinds = {kind or "layout" for line in shapes for kind in drawing.kinds(line)}
    legend = tuple((kind, name) for kind, name in LOOKS if kind in kinds)
    title = "Both take the same input and give the same output; read from top to bottom"
    yield doc.Change(title, shapes[0], shapes[1], legend)


def data(nodes: Sequence[RegionNode]) -> tuple[list[RegionNode], int]:
    """Return the nodes that see data, and how many others there are: those that compute sizes."""
    numbers: dict[int, int] = {}
    kept: list[RegionNode] = []
    for place, node in enumerate(nodes):
        seen = tuple(numbers.get(source, source) for source in node.reads if source < 0 or source in numbers)
        if node.op != "Shape" and seen:
            numbers[place] = len(kept)
            op = units.joined(node.op, units.dims(node.kernel) if node.kernel else "", by=" ")
            kept.append(replace(node, op=op, reads=seen))
    return kept, len(nodes) - len(kept)


def summed(nodes: Sequence[RegionNode]) -> list[RegionNode]:
    """Return the nodes with one Add in place of a chain of them."""
    uses = Counter(source for node in nodes for source in node.reads)
    reads = [node.reads for node in nodes]
    gone: set[int] = set()
    for place, node in enumerate(nodes):
        inner = {s for s in reads[place] if s >= 0 and node.op == nodes[s].op == "Add" and uses[s] == 1}
        reads[place] = tuple(source for s in reads[place] for source in (reads[s] if s in inner else (s,)))
        gone |= inner
    left = [place for place in range(len(nodes)) if place not in gone]
    numbers = {place: number for number, place in enumerate(left)}
    return [replace(nodes[place], reads=tuple(numbers.get(s, s) for s in reads[place])) for place in left]
