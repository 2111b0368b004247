"""Regions: what stands in them, how they are rewritten, drawn, and those that were considered and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.content import drawing, forms
from dilrewrite.reports.content.sites import (
    GEOMETRY_KEY,
    MANY_ROWS,
    done,
    first_names,
    proof,
    site_name,
    site_table,
    toned,
    was_measured,
)
from dilrewrite.reports.report import RegionReport, Report
from dilrewrite.reports.units import NOTHING, count, dims, percent
from dilrewrite.timing.stopwatch import Comparison

OPEN_REGIONS = 5  # so many regions are unfolded
BRIEF_REASONS = 4  # so many reasons why regions are kept are told in brief

Item = tuple[int, RegionReport]
"""A region with its number."""


def kind(region: RegionReport) -> str:
    """Return what can be done to a region: `lift`, `phases 2x2`, `phases 2x2, inside 3x3`."""
    inside = "".join(f", inside {dims(block)}" for block in region.nested)
    return f"phases {dims(region.block)}{inside}" if region.block else "lift"


def how(region: RegionReport) -> str:
    """Return in words what is done to a region."""
    return f"in {kind(region)}" if region.block else "lifted to 2-D"


def taken(report: Report) -> list[Item]:
    """Return the regions that are rewritten."""
    return [item for item in enumerate(report.regions, 1) if item[1].action == "rewritten"]


def within(report: Report) -> str:
    """Return in how many regions Convs are rewritten: ` in 1 region lifted to 2-D`; empty for none."""
    regions = [region for _, region in taken(report)]
    if not regions:
        return ""
    inside = sum(site.region is not None for site in report.sites)
    some = "" if inside == report.rewritten else f", {inside} of them"
    kinds = counted(regions)
    if len(kinds) == 1:
        return f"{some} in {count(len(regions), 'region')} {kinds[0][1]}"
    return f"{some} in {len(regions)} regions ({units.pairs(kinds)})"


def counted(regions: Iterable[RegionReport]) -> list[tuple[str, str]]:
    """Return how many regions are lifted, and how many are in phases, as (number, what)."""
    kinds = units.groups(("in phases" if region.block else "lifted to 2-D" for region in regions), str)
    return [(str(len(some)), some[0]) for some in kinds]


def region_blocks(report: Report, brief: bool) -> Iterator[doc.Block]:
    """Yield the regions: of `inspect` a row each; else those taken with what is in them, and the others in short."""
    items, chosen = list(enumerate(report.regions, 1)), taken(report)
    if report.command == "inspect":
        if items:
            table = _found(items, brief)
            yield doc.Fold(f"All {len(items)} regions", (table,)) if len(items) > MANY_ROWS else table
        return
    if chosen:
        yield _chosen(chosen, report, brief)
        if not brief:
            yield from (_fold(*item, report, place < OPEN_REGIONS) for place, item in enumerate(chosen))
            yield doc.Paragraph(doc.muted(f"Geometry: {GEOMETRY_KEY}."))
    others = [item for item in items if item not in chosen]
    if others:
        yield from [_reasons(others)] if brief else [_others(others)]


def _names(keys: Iterable[str], report: Report) -> list[str]:
    sites = {site.key: site for site in report.sites}
    return [site_name(sites[key]) if key in sites else key for key in keys]


def _size(region: RegionReport) -> int:
    return sum(region.operators.values())


def _operators(region: RegionReport) -> str:
    ordered = sorted(region.operators.items(), key=lambda pair: -pair[1])
    return units.listed([f"{number} {op}" for op, number in ordered], 6)


def _found(items: Sequence[Item], brief: bool) -> doc.Table:
    """Return what `inspect` tells of regions."""
    most = 2 if brief else MANY_ROWS

    def some(names: Sequence[str]) -> doc.Inline:
        more = [f"{len(names) - most} more"] if len(names) > most else []
        return doc.commas([*map(doc.code, names[:most]), *more]) if names else NOTHING

    return doc.table(
        "Regions",
        items,
        ("##", lambda item: str(item[0])),
        ("region", lambda item: doc.code(site_name(item[1]))),
        ("^kind", lambda item: kind(item[1])),
        brief and ("^enters -> leaves", lambda item: (some(item[1].inputs), " -> ", some(item[1].outputs))),
        ("#nodes", lambda item: str(_size(item[1]))),
        ("#^dilated Convs", lambda item: str(len(item[1].members))),
        not brief and ("enters", lambda item: some(item[1].inputs)),
        not brief and ("leaves", lambda item: some(item[1].outputs)),
        ("~ends at", lambda item: _ends(item[1], most)),
        not brief and ("key", lambda item: doc.code(item[1].key)),
        anchors=() if brief else [f"region-{number}" for number, _ in items],
    )


def _ends(region: RegionReport, most: int) -> str:
    more = f"{len(region.ends) - most} more" if len(region.ends) > most else ""
    return units.joined(*region.ends[:most], more, by="; ") or NOTHING


def _chosen(items: Sequence[Item], report: Report, brief: bool) -> doc.Table:
    """Return the regions that are rewritten, a row each."""
    shares = any(region.share is not None for _, region in items)
    gains = any(region.predicted_gain is not None for _, region in items)

    def convs(item: Item) -> doc.Inline:
        names = _names(item[1].members, report)
        return (f"{len(names)} dilated: ", doc.commas(first_names(names))) if names else "no dilated Conv"

    def of_timing(name: str, says: Callable[[Comparison], str]) -> doc.Cells[Item]:
        def said(item: Item) -> str:
            timing = next((one.timing for one in item[1].candidates if one.strategy == item[1].strategy), None)
            return says(timing) if timing is not None else NOTHING

        return (name, said)

    timed = not brief and any(was_measured(region) for _, region in items)
    return doc.table(
        "Regions that are rewritten",
        items,
        ("##", lambda item: str(item[0])),
        ("region", lambda item: doc.code(site_name(item[1]))),
        ("^what", lambda item: f"{how(item[1])}, {count(_size(item[1]), 'node')}: {_operators(item[1])}"),
        ("^dilated Convs", convs),
        shares and ("#share of time", lambda item: NOTHING if item[1].share is None else percent(item[1].share)),
        gains and ("#^gain" if brief else "#^predicted gain", lambda item: units.gain(item[1].predicted_gain)),
        timed and of_timing("#speed", lambda timing: units.speed(timing.ratio)),
        timed and of_timing(f"#^{units.INTERVAL}", units.interval_of),
        ("form", lambda item: done(item[1])),
        ("~^why", lambda item: item[1].reason),
        ("~^proof", lambda item: toned(proof(item[1]))),
        not brief and ("key", lambda item: doc.code(item[1].key)),
        anchors=() if brief else [f"region-{number}" for number, _ in items],
    )


def _fold(number: int, region: RegionReport, report: Report, shown: bool) -> doc.Fold:
    """Return a region with its drawing, the Convs in it, and its forms."""
    rows: list[tuple[str, doc.Inline]] = [
        ("enters", doc.codes(region.inputs)),
        ("leaves", doc.codes(region.outputs)),
        ("ends at", "; ".join(region.ends)),
    ]
    inside = [[item] for item in enumerate(report.sites, 1) if item[1].region == region.key]
    content: list[doc.Block] = [_drawing(region), doc.Facts("Region", tuple(row for row in rows if row[1]))]
    content += [site_table(inside, report, brief=False, inside=True)] if inside else []
    title = (f"Region {number}: ", doc.code(site_name(region)), doc.muted(f" {how(region)}"))
    content += forms.one(region, report, brief=False)
    return doc.Fold(title, tuple(content), shown=shown, group=True)


def _drawing(region: RegionReport) -> doc.Drawing:
    """Return the chain from enter to exit."""
    into, out = (f"to phases {dims(region.block)}", "out of phases") if region.block else ("to 2-D", "back to 1-D")
    enter = doc.Box("edge", f"enter {into}", max(len(region.inputs), 1))
    leave = doc.Box("edge", f"exit {out}", max(len(region.outputs), 1))
    return doc.Drawing("What is computed inside, from enter to exit", (enter, *drawing.shapes(region.nodes), leave))


def _short(region: RegionReport) -> doc.Inline:
    """Return a region in short."""
    inside = f" ({kind(region)}, {count(_size(region), 'node')}, {count(len(region.members), 'dilated Conv')})"
    return (doc.code(site_name(region)), inside)


def _reasons(items: Sequence[Item]) -> doc.Block:
    """Return why regions are kept, those together that have the same reason."""
    alike = units.groups((region for _, region in items), lambda region: units.numberless(region.reason))
    lines: list[doc.Inline] = []
    for some in alike[:BRIEF_REASONS]:
        ((reason, number),) = units.merged([region.reason for region in some])
        more = f" and {number - 1} more" if number > 1 else ""
        lines.append(("kept: ", _short(some[0]), more, f": {reason}"))
    rest = sum(map(len, alike[BRIEF_REASONS:]))
    return doc.Bullets((*lines, *([f"kept for other reasons: {rest} more"] if rest else [])))


def _others(items: Sequence[Item]) -> doc.Fold:
    """Return the regions that are kept, a row each."""

    def timed(item: Item) -> str:
        return "; ".join(f"{one.strategy} {forms.said(one)}".rstrip() for one in item[1].candidates) or NOTHING

    rows = doc.table(
        "Regions that are kept",
        items,
        ("##", lambda item: str(item[0])),
        ("region", lambda item: doc.code(site_name(item[1]))),
        ("kind", lambda item: kind(item[1])),
        ("#nodes", lambda item: str(_size(item[1]))),
        ("#dilated Convs", lambda item: str(len(item[1].members))),
        ("~forms", timed),
        ("~why", lambda item: item[1].reason),
        ("key", lambda item: doc.code(item[1].key)),
        anchors=[f"region-{number}" for number, _ in items],
    )
    return doc.Fold(f"{count(len(items), 'region')} considered and kept", (rows,))
