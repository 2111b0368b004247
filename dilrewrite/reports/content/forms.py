"""The forms of every site: their times or why they have none, their estimates, and why others refuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.content.sites import (
    NAME_LENGTH,
    RAN_SHAPES,
    SITE_NAMES,
    Entry,
    Group,
    assumed,
    first_names,
    form,
    geometry,
    link,
    ran,
    short_name,
    site_name,
    was_measured,
)
from dilrewrite.reports.content.timing import TIME_LEGEND, time_bar
from dilrewrite.reports.reasons import OUTCOMES
from dilrewrite.reports.report import CandidateReport, Report, SiteReport
from dilrewrite.reports.units import NOTHING, count, difference, interval_of, milliseconds, percent, speed, spread
from dilrewrite.timing.stopwatch import Comparison, Timing

OPEN_GROUPS = 5  # so many groups of equal sites are unfolded, those with most of the time first
MANY_GROUPS = 20  # so many groups of equal sites are in sight; the others are folded together
BRIEF_GROUPS = 3  # so many groups of sites show their timed forms in a brief report
OUT_OF_SCALE = 4  # a form that takes this much longer than the others matter is cut, so that they can be told apart


def said(candidate: CandidateReport) -> str:
    """Return what measuring said of a form, in words; empty when nothing was to be measured."""
    if candidate.outcome is None:
        return ""
    more = speed(candidate.timing.ratio) if candidate.timing is not None else candidate.cause
    return units.joined(outcome(candidate), more, by=": ")


def outcome(candidate: CandidateReport) -> str:
    """Return what became of a form in a word or two; empty when nothing was to be measured."""
    return OUTCOMES[candidate.outcome] if candidate.outcome is not None else ""


def without_time(site: Entry) -> list[list[CandidateReport]]:
    """Return the forms that measuring says something of but has no time for, in groups of equal outcome."""
    return units.groups((form for form in site.candidates if form.timing is None and form.outcome), said)


def timed(site: Entry) -> list[tuple[str, str, Comparison]]:
    """Return the forms that have a time: name, what measuring says, comparison."""
    return [(one.strategy, outcome(one), one.timing) for one in site.candidates if one.timing is not None]


def native(site: Entry) -> Timing | None:
    """Return the time of it as it is, by the comparison with the most pairs; None where `keep` has its own."""
    forms = timed(site)
    if not forms or any(name == "keep" for name, *_ in forms):
        return None
    return max((timing for *_, timing in forms), key=lambda timing: timing.pairs).first


def form_blocks(report: Report, brief: bool) -> Iterator[doc.Block]:
    """Yield the forms of all sites, once for those that were measured as one or agree in everything.

    Brief, of a report that is not of `inspect`: those with a time, of the groups that take most of it.
    """

    def together(item: tuple[int, SiteReport]) -> int | str:
        question = item[1].question
        return question if question is not None else _alike(item)

    def rank(some: Group) -> tuple[bool, float]:
        share = _share(some) or 0.0
        return not any(was_measured(site) for _, site in some), -share if math.isfinite(share) else 0.0

    short = brief and report.command != "inspect"
    items = [item for item in enumerate(report.sites, 1) if item[1].candidates or item[1].refused]
    groups = sorted((some for some in units.groups(items, together) if not short or not rank(some)[0]), key=rank)
    if any(map(was_measured, report.sites)):
        yield doc.Paragraph(
            "Times: milliseconds for a run of the Conv with its neighbours. Speed: of the form, against keep."
        )
    entries: tuple[Entry, ...] = (*report.sites, *report.regions)
    if any(form.peak_bytes is not None for entry in entries for form in entry.candidates):
        yield doc.Paragraph("Peak memory: what a session of it alone and two runs take, without the inputs.")
    most = BRIEF_GROUPS if short else MANY_GROUPS
    shown = groups[:most] if short else groups
    folds = [_fold(some, report, brief, i < OPEN_GROUPS) for i, some in enumerate(shown)]
    yield from folds[:most]
    if len(groups) > most:
        rest = groups[most:]
        share = _share([item for some in rest for item in some])
        time = f", {percent(share)} of the time" if share is not None else ""
        title = f"and {count(len(rest), 'group')} more ({count(sum(map(len, rest)), 'site')}{time})"
        yield doc.Paragraph(title) if short else doc.Fold(title, tuple(folds[most:]))


def _alike(item: tuple[int, SiteReport]) -> str:
    """Return what sites with the same forms have in common."""
    site = item[1]
    return repr((geometry(site.geometry), site.ran, site.candidates, site.refused))


def _fold(some: Group, report: Report, brief: bool, shown: bool) -> doc.Fold:
    """Return a group of sites, those alike once."""
    parts, first = units.groups(some, _alike), some[0][1]
    content: list[doc.Block] = []
    for part in parts:
        content += [doc.Paragraph((_numbers(part), ":"))] if len(parts) > 1 else []
        content += one(part[0][1], report, brief)
    sizes = ran(first, 2 if brief else RAN_SHAPES)
    title: doc.Inline = (doc.code(geometry(first.geometry)), doc.muted(f" {sizes}" if sizes else ""))
    return doc.Fold(title, tuple(content), _about(some, report, brief), shown, group=True)


def _share(some: Group) -> float | None:
    return units.summed(site.share for _, site in some)


def _numbers(some: Group) -> doc.Inline:
    return ("Site " if len(some) == 1 else "Sites ", doc.commas([link(number) for number, _ in some]))


def _about(some: Group, report: Report, brief: bool) -> tuple[doc.Inline, ...]:
    """Return which sites a group is, and what came of it."""
    sites, share = [site for _, site in some], _share(some)
    names: list[doc.Inline] = [short_name(site) for site in sites[:SITE_NAMES]]
    names += [f"{len(sites) - SITE_NAMES} more"] if len(sites) > SITE_NAMES else []
    says: list[doc.Inline] = [(doc.strong(percent(share)), " of the time")] if share is not None else []
    if report.command != "inspect":
        says += [_taken(part) for part in units.groups(sites, form)]
    which = _names(sites) if brief else (_numbers(some), ": ", doc.commas(names))
    return (which, *((doc.commas(says),) if says else ()))


def _names(sites: Iterable[SiteReport]) -> doc.Inline:
    return doc.commas(first_names(list(map(site_name, sites))))


def _taken(sites: Sequence[SiteReport]) -> doc.Inline:
    """Return what was done at sites, and what measuring says of it."""
    site, forms = sites[0], timed(sites[0])
    many = f" ({count(len(sites), 'site')})" if len(sites) > 1 else ""
    if site.region is not None:
        return (doc.strong(form(site)), " of its region", many)
    if site.action == "rewritten":
        results = [f": {difference(timing)}" for name, _, timing in forms if name == site.strategy]
        return (doc.strong(form(site)), *results, many)
    others = [(timing.ratio, name, _result(said, timing)) for name, said, timing in forms if name != "keep"]
    best = [f"; best other form: {name}, {result}" for _, name, result in sorted(o for o in others if o[0] > 0)[:1]]
    return (doc.strong("kept"), *best, many)


def _result(said: str, timing: Comparison) -> str:
    return units.joined(said, speed(timing.ratio), by=": ")


def one(site: Entry, report: Report, brief: bool) -> list[doc.Block]:
    """Return what is known of the forms of one site, or of a region."""
    measured, untimed = was_measured(site), without_time(site)
    blocks: list[doc.Block] = []
    if measured and not brief:
        blocks.append(_chart(site, report))
    if untimed and not brief:
        lines = [(doc.codes([c.strategy for c in some]), f": {said(some[0])}") for some in untimed]
        blocks += [doc.Paragraph("Forms without a time:" if measured else "Forms:"), doc.Bullets(tuple(lines))]
    short = brief and report.command != "inspect"
    figures: list[doc.Block] = [_estimates(site, brief)] if site.candidates and not short else []
    figures += [_timings(site, brief)] if measured else []
    if site.refused and not short:
        figures.append(doc.Bullets(tuple((doc.code(one.strategy), f" refuses: {one.reason}") for one in site.refused)))
    if brief or not (measured or untimed):
        return [*blocks, *figures]
    refused = f", {count(len(site.refused), 'refusal')}" if site.refused else ""
    return [*blocks, doc.Fold(f"All figures and estimates, cheapest first{refused}", tuple(figures))]


def _chart(site: Entry, report: Report) -> doc.Chart:
    """Return the Conv or region as it is and its timed forms as a chart."""
    taken = site.strategy if site.action == "rewritten" else ""
    keep, bars = native(site), []
    if keep is not None:
        bars.append(time_bar("keep", "keep", keep, doc.code("keep"), _badge("keep", taken, report)))
    for name, became, timing in timed(site):
        kind = "keep" if name == "keep" else "taken" if name == taken else "other"
        result, interval = became or difference(timing), doc.muted(f" [{interval_of(timing)}] ")
        says = (doc.strong(speed(timing.ratio)), interval, result, _badge(name, taken, report))
        label = doc.code(units.shorten(units.clean(name), NAME_LENGTH))
        bars.append(time_bar(kind, name, timing.second, label, says, timing.first.median_s))
    most, matter = doc.reach(bars), doc.reach(bar for bar in bars if bar.kind != "other")
    if 0 < matter < most / OUT_OF_SCALE:
        most = OUT_OF_SCALE / 2 * matter
    whole = "Conv" if isinstance(site, SiteReport) else "region"
    looks = (("keep", f"the {whole} as it is"), ("taken", "the form taken"), ("other", "another form"))
    legend = tuple((kind, name) for kind, name in looks if kind in {bar.kind for bar in bars})
    title = f"Time of the {whole} with its neighbours, median, in milliseconds; speed against keep [{units.INTERVAL}]"
    mark = ("mark", f"the {whole} as it is, timed in turn with the form")
    return doc.Chart(title, tuple(bars), (*legend, *TIME_LEGEND, mark), most)


def _badge(strategy: str, taken: str, report: Report) -> doc.Inline:
    """Return the sign of the form that was taken."""
    mine = strategy == (taken or "keep") and report.command == "optimize" and not report.options.get("dry_run")
    return doc.Span("badge", "taken" if taken else "kept") if mine else ""


def _estimates(site: Entry, brief: bool) -> doc.Table:
    about = " (assumed sizes)" if assumed(site) else ""
    number = units.amount if brief else str
    return doc.table(
        "Forms by estimate",
        site.candidates,
        ("form", lambda form: doc.code(form.strategy)),
        (f"#multiply-adds{about}", lambda form: number(form.multiply_adds)),
        (f"#elements moved{about}", lambda form: number(form.elements_moved)),
        ("#nodes", lambda form: str(form.nodes)),
        ("#dilation left", lambda form: units.left(form.max_dilation)),
    )


Row = tuple[str, str, Timing, Comparison | None]
"""A form, what is said of it, its times, and how they compare with the Conv as it is."""


def _timings(site: Entry, brief: bool) -> doc.Table:
    """Return every figure of the timings, in milliseconds; in brief the Conv as it is in a row of its own."""
    lines: list[Row] = [(name, became, timing.second, timing) for name, became, timing in timed(site)]
    keep = native(site)
    if brief and keep is not None:
        kept = next((outcome(candidate) for candidate in site.candidates if candidate.strategy == "keep"), "")
        lines.insert(0, ("keep", kept, keep, None))

    def of(says: Callable[[Comparison], str]) -> Callable[[Row], str]:
        return lambda row: says(row[3]) if row[3] is not None else ""

    peaks = {one.strategy: (one.keep_peak_bytes, one.peak_bytes) for one in site.candidates if one.timing is not None}
    keeps = [peak for peak, _ in peaks.values() if peak is not None]

    def memory(row: Row) -> str:
        before, after = peaks[row[0]] if row[3] is not None else (None, keeps[0])
        return units.size(after) if brief else f"{units.size(before)} -> {units.size(after)}"

    return doc.table(
        "Forms by timing",
        lines,
        ("form", lambda row: doc.code(row[0])),
        ("~outcome", lambda row: row[1] or ("" if brief else NOTHING)),
        not brief and ("#keep ms", of(lambda timing: milliseconds(timing.first.median_s))),
        not brief and ("#keep 20 to 80 %", of(lambda timing: spread(timing.first))),
        ("#median ms" if brief else "#form ms", lambda row: milliseconds(row[2].median_s)),
        ("#^20 to 80 %" if brief else "#form 20 to 80 %", lambda row: spread(row[2])),
        ("#speed", of(lambda timing: speed(timing.ratio))),
        (f"#^{units.INTERVAL}", of(interval_of)),
        bool(keeps) and ("#peak memory" if brief else "#peak memory, keep -> form", memory),
        not brief and ("#pairs", of(lambda timing: str(timing.pairs))),
        not brief and ("#noise", of(lambda timing: NOTHING if timing.noise is None else percent(timing.noise))),
        not brief and ("mode", of(lambda timing: timing.mode)),
    )


def untimed(report: Report) -> list[doc.Inline]:
    """Return what measuring says of forms that it has no time for, each with the sites where it says so."""
    places: dict[tuple[str, str], list[SiteReport]] = {}
    for site in report.sites:
        for some in without_time(site):
            names = [form.strategy for form in some if form.strategy != "keep" or not was_measured(site)]
            if names:
                places.setdefault((", ".join(names), said(some[0])), []).append(site)
    return [(_names(sites), f": {names}: {why}") for (names, why), sites in places.items()]


def refusals(report: Report) -> list[str]:
    """Return why strategies refused, over all sites."""
    refused = [refusal for site in report.sites for refusal in site.refused]
    return [
        f"{some[0].strategy} ({count(number, 'site')}): {reason}"
        for some in units.groups(refused, lambda refusal: refusal.strategy)
        for reason, number in units.merged([refusal.reason for refusal in some])
    ]
