"""The report as one HTML file that needs nothing else: the answer, charts of what was measured, and every figure."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

from dilrewrite.proof.prove import Proof
from dilrewrite.proof.verdict import CaseCheck, Verdict
from dilrewrite.reports import words
from dilrewrite.reports.report import ModelReport, Report, SiteReport
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.measurement import LayerComparison, LayerTime, Measurement
from dilrewrite.timing.stopwatch import Comparison, Timing


@final
class Page:
    """A page that reads from the answer to the details; charts are SVG, long parts fold, and there is no script."""

    filename: str | None = "report.html"

    def render(self, report: Report) -> str:
        """Return the HTML text."""
        head = element(
            "head",
            element("meta", charset="utf-8"),
            element("meta", name="viewport", content="width=device-width, initial-scale=1"),
            element("meta", name="color-scheme", content="light dark"),
            element("title", escape(f"dilrewrite {report.command}: {report.status}: {report.before.path}")),
            element("style", Html(STYLE)),
        )
        body = element("body", element("main", *_page(report)))
        return f"<!doctype html>\n{element('html', head, body, lang='en')}"


REPORT = Page()

MANY_ROWS = 40
"""A table with more rows is folded."""

MANY_BARS = 15
"""So many sites' shares are in sight, the largest; the others are folded."""

OPEN_GROUPS = 5
"""So many groups of equal sites are unfolded, those with most of the time first."""

MANY_GROUPS = 20
"""So many groups of equal sites are in sight; the others are folded together."""

NAME_LENGTH = 60
"""A longer name loses its middle in charts and in the headings of groups, not in tables."""

SITE_NAMES = 3
"""How many sites of a group are named."""

RAN_SHAPES = 8
"""How many of the shapes that a Conv ran on are shown; report.json has all."""

OUT_OF_SCALE = 4
"""A form that takes this much longer than the others matter is cut, so that they can be told apart."""

LONG_LINE = 1.5
"""Lines over the bars that are this much longer than any bar leave the chart, for bars to keep some length."""

STATUS = {
    "rewritten": ("good", "✓"),
    "equal": ("good", "✓"),
    "built": ("good", "✓"),
    "inconclusive": ("warn", "!"),
    "dilation left": ("warn", "!"),
    "not compared": ("warn", "!"),
    "differs": ("bad", "✗"),
    "not valid": ("bad", "✗"),
}
"""The tone and the sign of a status; the others are neutral."""

# -- markup ----------------------------------------------------------------------------------------------------------


class Html(str):
    """Markup. Any other string is text, and is escaped on its way into the page."""

    __slots__ = ()


ARROW = '<span class="arrow">-&gt;</span>'
"""An arrow that no line ends within."""

VOID = frozenset({"meta"})
"""Elements without content."""

INLINE = frozenset({"a", "b", "code", "path", "rect", "span", "td", "th"})
"""Elements that do not end a line of the source."""


def escape(value: str) -> Html:
    """Return `value` as text: nothing in it is markup, and what does not print can be seen."""
    return Html(html.escape(words.clean(value)))


def text(value: str) -> Html:
    """Return `value` as it is when it is markup, otherwise as text whose arrows no line breaks."""
    return value if isinstance(value, Html) else Html(escape(value).replace("-&gt;", ARROW))


def element(tag: str, *content: str, **attributes: str | None) -> Html:
    """Return an element. An attribute's name may end in `_`; one that is `None` is left out."""
    opening = tag
    for name, value in attributes.items():
        if value is not None:
            opening += f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"'
    end = "" if tag in INLINE else "\n"
    return Html(f"<{opening}>{end}" if tag in VOID else f"<{opening}>{join(*content)}</{tag}>{end}")


def join(*parts: str) -> Html:
    """Return the parts one after the other."""
    return Html("".join(map(text, parts)))


def commas(parts: Sequence[str]) -> Html:
    """Return the parts with commas between them."""
    return Html(", ".join(map(text, parts)))


def code(value: str) -> Html:
    """Return a name or value of the model; a line may break inside it."""
    return element("code", Html(re.sub(r"([/_])(?=.)", r"\1<wbr>", escape(value)).replace("-&gt;", ARROW)))


def _short(value: str) -> Html:
    return code(words.shorten(words.clean(value), NAME_LENGTH))


def muted(*content: str) -> Html:
    """Return what is said with less weight."""
    return element("span", *content, class_="muted")


def _scroll(title: str, table: Html) -> Html:
    return element("div", table, class_="scroll", role="region", aria_label=title, tabindex="0")


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], name: str | None = None) -> Html:
    """Return a table in a box that scrolls.

    A column whose name starts with `#` holds numbers (right-aligned), with `~` sentences (wider). The first cell of a
    row is its heading. With a `name`, rows are `name-1`, `name-2`, ... for links.
    """
    kinds = [{"#": "number", "~": "prose"}.get(column[:1]) for column in columns]
    top = [
        element("th", column if kind is None else column[1:], scope="col", class_=kind)
        for column, kind in zip(columns, kinds, strict=True)
    ]
    lines = []
    for i, row in enumerate(rows, 1):
        first = element("th", row[0], scope="row", class_=kinds[0])
        rest = [element("td", cell, class_=kind) for cell, kind in zip(row[1:], kinds[1:], strict=True)]
        lines.append(element("tr", first, *rest, id=None if name is None else f"{name}-{i}"))
    return _scroll(title, element("table", element("thead", element("tr", *top)), element("tbody", *lines)))


def _facts(title: str, rows: Iterable[tuple[str, str]]) -> Html:
    """Return a table whose first column names what the second says."""
    lines = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in rows]
    return _scroll(title, element("table", element("tbody", *lines), class_="facts"))


def _list(lines: Iterable[str]) -> Html:
    return element("ul", *(element("li", line) for line in lines))


def _fold(summary: str, *content: str, shown: bool = False, class_: str | None = None) -> Html:
    """Return a part that unfolds; `shown`: it is unfolded."""
    return element("details", element("summary", summary), *content, open="" if shown else None, class_=class_)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


# -- charts ----------------------------------------------------------------------------------------------------------

WIDTH, HEIGHT = 1000, 24
"""The size of a plot in its own units; it is stretched to the width there is."""

TIME_LEGEND = (("whisker", "20th to 80th percentile"),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of a chart: a bar from 0 to `value`, a line from `low` to `high` over it, a mark at `mark`.

    `kind` is its look (see STYLE), `name` what it says where it cannot be seen, `says` stands beside it. So much of its
    end as `gone` says is drawn hollow.
    """

    kind: str
    name: str
    label: str
    says: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    gone: float = 0.0

    @property
    def drawn(self) -> bool:
        """Say whether there is a length to draw."""
        return 0 <= self.value < math.inf


def reach(bars: Iterable[Bar]) -> float:
    """Return how far an axis has to go: over every bar and mark, and over lines that are not far longer."""
    bars = list(bars)
    most, lines = (
        max((number for number in numbers if number is not None and math.isfinite(number)), default=0.0)
        for numbers in ([n for bar in bars for n in (bar.value, bar.mark)], [bar.high for bar in bars])
    )
    return max(most, min(lines, LONG_LINE * most))


def ticks(most: float) -> list[float]:
    """Return at most six round numbers, from 0 to the first one that is at least `most`."""
    power = 10.0 ** math.floor(math.log10(most / 5))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= most / 5 * (1 - 1e-9))
    return [step * i for i in range(math.ceil(most / step - 1e-9) + 1)]


def _coordinate(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _cut(bar: Bar, end: float) -> bool:
    return bar.drawn and bar.value > end * (1 + 1e-9)


def _plot(bar: Bar, scale: Sequence[float]) -> Html:
    """Return the drawing of one bar, for an axis with these ticks."""

    def x(value: float) -> str:
        return _coordinate(WIDTH * min(max(value / scale[-1], 0.0), 1.0))

    parts = []
    if bar.drawn:
        parts.append(element("rect", class_=bar.kind, x="0", y="4", width=x(bar.value), height="16"))
    if bar.drawn and bar.gone > 0:
        start = x(bar.value - bar.gone)
        width = _coordinate(float(x(bar.value)) - float(start))
        parts.append(element("rect", class_="gone", x=start, y="4", width=width, height="16"))
    if _cut(bar, scale[-1]):
        parts.append(element("path", class_="cut", d=f"M955 {HEIGHT}L967 0M975 {HEIGHT}L987 0"))
    elif bar.low is not None and bar.high is not None and math.isfinite(bar.low + bar.high):
        ends = [x(end) for end in (bar.low, bar.high) if end <= scale[-1] * (1 + 1e-9)]
        line = "".join([f"M{x(bar.low)} 12H{x(bar.high)}", *(f"M{end} 8V16" for end in ends)])
        parts += [element("path", class_="halo", d=line), element("path", class_="whisker", d=line)]
    if bar.mark is not None and bar.mark <= scale[-1] * (1 + 1e-9):
        parts.append(element("path", class_="mark", d=f"M{x(bar.mark)} 0V{HEIGHT}"))
    return element(
        "svg",
        *parts,
        class_="plot",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=f"{bar.name}{' (bar cut)' if _cut(bar, scale[-1]) else ''}",
    )


def _chart(title: str, bars: Sequence[Bar], legend: Sequence[tuple[str, str]], most: float) -> Html:
    """Return bars on one axis from 0 to at least `most`, between labels and numbers; a longer bar is cut."""
    if not 0 < most < math.inf:
        return _list(join(bar.label, ": ", bar.says) for bar in bars)
    scale = ticks(most)
    rows = [
        element(
            "div",
            element("div", bar.label, class_="label"),
            _plot(bar, scale),
            element("div", bar.says, muted(" (bar cut)") if _cut(bar, scale[-1]) else "", class_="says"),
            class_="row",
        )
        for bar in bars
    ]
    last = len(scale) - 1
    names = [element("span", f"{tick:g}", style=f"left:{_coordinate(100 * i / last)}%") for i, tick in enumerate(scale)]
    grid = element("path", d="".join(f"M{_coordinate(WIDTH * i / last)} 0V{HEIGHT}" for i in range(last + 1)))
    lines = element("svg", grid, class_="lines", viewBox=f"0 0 {WIDTH} {HEIGHT}", preserveAspectRatio="none")
    rows.insert(0, element("div", lines, class_="row back", aria_hidden="true"))
    axis = element("div", element("div", *names, class_="axis"), class_="row", aria_hidden="true")
    keys = element("p", *(element("span", _swatch(kind), name) for kind, name in legend), class_="legend")
    return element(
        "figure", element("figcaption", title), element("div", *rows, class_="rows"), axis, keys if legend else ""
    )


def _swatch(kind: str) -> Html:
    """Return a sample of a look, for a legend."""
    lines = {"whisker": "M3 7H21M3 3V11M21 3V11", "mark": "M12 0V14"}
    if kind in lines:
        shape = element("path", class_=kind, d=lines[kind])
    else:
        shape = element("rect", class_=kind, x="1", y="2", width="22", height="10")
    return element("svg", shape, class_="swatch", viewBox="0 0 24 14", aria_hidden="true")


def _time(kind: str, name: str, timing: Timing, *, label: str = "", says: str = "", mark: float | None = None) -> Bar:
    """Return the bar of a timing, in milliseconds."""
    median = f"{words.milliseconds(timing.median_s)} ms"
    return Bar(
        kind=kind,
        name=f"{name}: median {median}, 20 to 80 %: {words.spread(timing)} ms",
        label=label or name,
        says=join(element("b", median), muted(f" ({words.spread(timing)})"), element("span", says, class_="line")),
        value=1000 * timing.median_s,
        low=1000 * timing.p20_s,
        high=1000 * timing.p80_s,
        mark=None if mark is None else 1000 * mark,
    )


# -- the page --------------------------------------------------------------------------------------------------------

Section = tuple[str, Sequence[str]]
"""A heading, and what stands below it; nothing to be shown when that is empty."""


def _page(report: Report) -> Iterator[Html]:
    tone, sign = _tone(report)
    status = element("span", element("span", sign, aria_hidden="true"), f" {report.status}", class_=f"status {tone}")
    yield element(
        "header",
        element("p", status, " ", element("b", f"dilrewrite {report.command}"), " ", code(report.before.path)),
        element("h1", words.outcome(report)),
        element("div", *(element("div", *tile, class_="tile") for tile in _tiles(report)), class_="tiles"),
    )
    sections = [(title, parts) for title, parts in _sections(report) if any(parts)]
    links = [join(element("a", title, href=f"#{_anchor(title)}"), " ") for title, _ in sections]
    yield element("nav", *links, aria_label="Parts of this report")
    for title, parts in sections:
        yield element("section", element("h2", title), *parts, id=_anchor(title))
    yield element("footer", element("p", f"Report schema {report.schema_version}, exit code {report.exit_code}."))


def _tone(report: Report) -> tuple[str, str]:
    """Return the tone and the sign of the status; a slower model is nothing to be glad of."""
    final = report.measurement.final if report.measurement is not None else None
    if report.status == "rewritten" and final is not None and final.slower:
        return "warn", "!"
    return STATUS.get(report.status, ("plain", "●"))


def _sections(report: Report) -> Iterator[Section]:
    verdict, found = report.verdict, report.measurement
    yield "Failures", [_list(verdict.failures)] if verdict is not None and verdict.failures else []
    alone = verdict.checker_after if verdict is not None else ()
    yield words.FOUND_AFTER[0].upper() + words.FOUND_AFTER[1:], [_list(alone)] if alone else []
    yield "Dilation that could not go", [_list(report.remaining)] if report.remaining else []
    for title, lines in (
        ("What makes the timings doubtful", words.doubts(report)),
        ("What next", words.next_steps(report)),
    ):
        yield title, [_list(lines)] if lines else []
    if found is not None:
        yield "Whole model", [*_whole(report, found), *_attempts(report, found)]
    yield "Share of the model's time", list(_shares(report))
    measured = any(words.was_measured(site) for site in report.sites)
    forms: Section = ("Forms, as measured" if measured else "Forms, cheapest by estimate first", list(_forms(report)))
    if measured:
        yield forms
    yield "Dilated Convs", list(_sites(report))
    if not measured:
        yield forms
    yield "Proofs", list(_proofs(report))
    rows = words.measuring(report)
    yield "Measuring", [_facts("How timings were taken", rows)] if rows else []
    layers = found.layers if found is not None else None
    yield "Layers", list(_layers(layers)) if layers is not None else []
    yield "Engine", list(_engine(report.engine)) if report.engine is not None else []
    yield "Left alone", _folded_list(_skipped(report))
    yield "Attributes changed without changing the function", _folded_list(_normalised(report))
    yield "Model" if report.after is None else "Models", list(_models(report))
    yield "Comparison", list(_comparison(report, verdict)) if verdict is not None else []
    yield "Notes", _folded_list(words.notes(report))
    options = [(code(name), code(json.dumps(value, default=str))) for name, value in report.options.items()]
    yield "Options", [_table("Options", ("option", "~value"), options)] if options else []
    yield "Environment", [element("p", words.environment(report))]
    yield "Time", [element("p", words.times(report.seconds))]


def _folded_list(lines: Sequence[str]) -> list[Html]:
    if not lines:
        return []
    return [_fold(f"{len(lines)} entries", _list(lines)) if len(lines) > MANY_ROWS else _list(lines)]


def _skipped(report: Report) -> list[Html]:
    return [
        join(
            code(f"{node.where}/{node.name}"),
            f" ({node.op}{f', dilations {words.dims(node.dilations)}' if node.dilations else ''}): {node.reason}",
        )
        for node in report.skipped
    ]


def _normalised(report: Report) -> list[Html]:
    return [
        join(code(f"{node.where}/{node.name}"), f": {words.normalised(node.dilations, node.pads)}")
        for node in report.normalised
    ]


# -- the figures that tell most --------------------------------------------------------------------------------------


def _tiles(report: Report) -> Iterator[tuple[Html, ...]]:
    found, before, after = report.measurement, report.before, report.after
    if report.engine is not None and report.command == "build":
        yield from _built(report.engine)
    if found is not None and found.final is not None:
        yield _speed(report, found.final)
    elif found is not None and found.estimated_s is not None:
        yield _tile(
            "Measuring would take", f"about {words.seconds(found.estimated_s)}", "dry run, nothing is timed yet"
        )
    elif found is not None and found.predicted_ratio is not None:
        yield _tile("Whole model, predicted", words.expected(found.predicted_ratio), "not timed as a whole")
    share = words.summed(site.share for site in report.sites)
    if share is not None:
        yield _tile("Share of time", words.percent(share), "goes to the dilated Convs")
    if report.status in ("rewritten", "kept", "inconclusive") and (found is None or found.estimated_s is None):
        forms = words.groups((s for s in report.sites if s.action == "rewritten"), lambda site: site.strategy)
        below = ", ".join(f"{some[0].strategy} {len(some)}" for some in forms)
        verb = "Convs rewritten" if report.output is not None else "Convs to rewrite"
        yield _tile(verb, f"{report.rewritten} of {len(report.sites)}", below or "all kept")
    engines = [words.is_engine(model) for model in (before, after) if model is not None]
    if all(engines):
        layers = [str(model.nodes) for model in (before, after) if model is not None]
        yield _tile("Layers", " → ".join(layers), before.producer)
    elif after is None:
        yield _tile("Dilated Convs", str(before.dilated), f"{words.count(before.nodes, 'node')} in all")
    elif not any(engines):
        yield _tile("Dilated Convs", f"{before.dilated} → {after.dilated}", f"nodes {before.nodes} → {after.nodes}")
    if report.command == "inspect" and report.sites:
        yield from _work(report.sites)
    if report.verdict is not None:
        yield _results(report, report.verdict)
    if after is not None and engines[0] == engines[1]:
        change = words.change(before.bytes, after.bytes)
        sizes = f"{words.size(before.bytes)} → {words.size(after.bytes)}"
        yield _tile("File size", "unchanged" if change == "0" else change, sizes)
    if report.engine is not None and report.command == "optimize":
        yield from _built(report.engine)


def _built(engine: EngineReport) -> Iterator[tuple[Html, ...]]:
    """Yield what was built, in what, and whether it was compared with the model."""
    layers = words.count(len(engine.layers), "layer")
    yield _tile("Engine", words.size(engine.bytes), f"{engine.flavour} {engine.version}, {layers}")
    yield _tile("Precision", engine.precision.built, words.convolved(engine.precision) or "no convolution")
    if engine.device is None:
        yield _tile("Engine's results", "! not compared", words.shorten(words.clean(engine.checked), 160), "warn")


def _work(sites: Sequence[SiteReport]) -> Iterator[tuple[Html, ...]]:
    """Yield how much the dilated Convs compute, and how much of that is for nothing."""
    known = [(adds, share) for adds, share in map(words.work, sites) if adds is not None and share is not None]
    total = sum(adds for adds, _ in known)
    if total:
        some = "at all sites" if len(known) == len(sites) else f"at the {len(known)} sites of known size"
        yield _tile("Multiply-adds", words.amount(total), some)
        yield _tile("On padding only", words.percent(sum(adds * share for adds, share in known) / total), "of them")


def _tile(name: str, value: str, below: str, tone: str = "plain") -> tuple[Html, ...]:
    return (muted(name), element("b", value, class_=tone), muted(below))


def _speed(report: Report, timed: Comparison) -> tuple[Html, ...]:
    if report.after is None and report.command == "bench":
        return _tile(
            "One run", f"{words.milliseconds(timed.first.median_s)} ms", f"20 to 80 %: {words.spread(timed.first)} ms"
        )
    what = words.difference(timed)
    ratio, interval = words.ratio_of(timed)
    tone = "good" if what.endswith("faster") else "bad" if what.endswith("slower") else "plain"
    name = "Whole model" if report.command != "bench" else "Second model against the first"
    return _tile(name, what, f"{ratio}x the time ({words.INTERVAL} {interval}x)", tone)


def _results(report: Report, verdict: Verdict) -> tuple[Html, ...]:
    says = words.equality(report)
    able, total = words.compared(verdict)
    if not verdict.passed:
        return _tile("Results", "✗ differ", says, "bad")
    if verdict.level != "none" and verdict.skipped is None and able:
        return _tile("Results", "✓ equal" if able == total else "✓ equal in part", says, "good")
    return _tile("Results", "! not compared", says, "warn")


# -- the whole model -------------------------------------------------------------------------------------------------


def _whole(report: Report, found: Measurement) -> Iterator[Html]:
    """Yield the original against the model written, and what was expected of it."""
    timed = found.final
    if timed is None:
        if found.predicted_ratio is not None:
            says = (
                f"{words.expected(found.predicted_ratio)}, from the timings of the sites; it was not timed as a whole."
            )
            yield element("p", element("b", "Predicted: "), says)
        return
    if report.command == "bench":
        names = ("first model", "second model") if report.after is not None else ("the model", "the model again")
    else:
        names = ("before", "after")
    labels = [element("b", name) for name in names]
    if report.after is not None and report.command == "bench":
        labels = [join(labels[0], " ", _short(report.before.path)), join(labels[1], " ", _short(report.after.path))]
    expected = found.predicted_ratio
    bars = [
        _time("keep", names[0], timed.first, label=labels[0]),
        _time("taken", names[1], timed.second, label=labels[1]),
    ]
    if expected is not None and math.isfinite(expected):
        seconds = expected * timed.first.median_s
        says = f"{words.milliseconds(seconds)} ms"
        bars.append(
            Bar(
                kind="predicted",
                name=f"predicted: {says}",
                label="predicted",
                says=join(says, muted(f" {words.expected(expected)}")),
                value=1000 * seconds,
            )
        )
    if report.after is not None or report.command != "bench":
        yield element("p", words.versus(timed), f", {words.count(timed.pairs, 'pair')}.")
    if expected is not None and 0 < expected < math.inf:
        yield element("p", _against_prediction(expected, timed))
    title = "Time of one run of the whole model, median, in milliseconds"
    yield _chart(title, bars, TIME_LEGEND, reach(bars))


def _against_prediction(expected: float, timed: Comparison) -> str:
    """Return how far the whole model is from what the timings of the sites let expect."""
    measured, _ = words.ratio_of(timed)
    (predicted,) = words.factors(expected)
    if timed.low <= expected <= timed.high:
        how = "within the interval"
    else:
        off = timed.ratio / expected - 1
        how = f"{100 * abs(off):.1f} % {'more' if off > 0 else 'less'} time than predicted"
    return f"Predicted from the timings of the sites: {predicted}x the time; actual: {measured}x: {how}."


def _attempts(report: Report, found: Measurement) -> Iterator[Html]:
    if not found.attempts:
        return
    columns = (
        "##",
        "#sites rewritten",
        "~sites",
        "#original ms",
        "#version ms",
        "#ratio",
        f"#{words.INTERVAL}",
        "#pairs",
        "result",
    )
    rows = []
    for number, attempt in enumerate(found.attempts, 1):
        *figures, result = words.attempt(attempt)
        sites = _codes(attempt.sites)
        if len(attempt.sites) > SITE_NAMES:
            sites = _fold(f"{len(attempt.sites)} of {len(report.sites)}", sites)
        rows.append((str(number), str(len(attempt.sites)), sites, *figures, str(attempt.timing.pairs), result))
    title = "Versions of the model that were timed against the original"
    yield element("p", f"{title}:")
    yield _table(title, columns, rows)


# -- sites -----------------------------------------------------------------------------------------------------------


def _shares(report: Report) -> Iterator[Html]:
    """Yield how much of the time each dilated Conv takes, and what of that is expected to go."""
    known = [(i, s, s.share) for i, s in enumerate(report.sites, 1) if s.share is not None]
    if not known:
        return
    known.sort(key=lambda item: -item[2] if math.isfinite(item[2]) else 0.0)
    total = words.percent(words.summed(share for _, _, share in known))
    some = "" if len(known) == len(report.sites) else f"; {len(known)} of {len(report.sites)} are known"
    yield element("p", element("b", total), f" of the time of one run goes to the dilated Convs{some}.")
    bars = [_share(number, site, share, report) for number, site, share in known]
    most = reach(bars)
    legend = [("taken", "rewritten"), ("keep", "kept"), ("gone", "predicted to go")]
    seen = {kind for bar in bars for kind in (bar.kind, "gone" if bar.gone else "")}
    legend = [(kind, name) for kind, name in legend if kind in seen]
    title = "Share of the time of one run, in percent"
    yield _chart(title, bars[:MANY_BARS], legend, most)
    if len(bars) > MANY_BARS:
        rest = words.summed(share for _, _, share in known[MANY_BARS:])
        summary = f"{words.count(len(bars) - MANY_BARS, 'site')} more, {words.percent(rest)} of the time"
        yield _fold(summary, _chart(title, bars[MANY_BARS:], legend, most))


def _share(number: int, site: SiteReport, share: float, report: Report) -> Bar:
    form = "" if report.command == "inspect" else words.form(site)
    gain = site.predicted_gain
    says = f"{words.percent(share)}{f', {form}' if form else ''}"
    gained = "" if gain is None or abs(gain) < 0.0005 else f"predicted gain {words.gain(gain)}"
    return Bar(
        kind="taken" if site.action == "rewritten" else "keep",
        name=f"site {number}, {words.site_name(site)}: {says}{f', {gained}' if gained else ''}",
        label=join(_link(number), " ", _short(words.site_name(site))),
        says=join(
            element("b", words.percent(share)),
            f" {form}",
            element("span", gained, class_="line muted") if gained else "",
        ),
        value=100 * share,
        gone=100 * min(max(gain, 0.0), share) if gain is not None and math.isfinite(gain) else 0.0,
    )


def _link(number: int) -> Html:
    return element("a", str(number), href=f"#site-{number}")


def _sites(report: Report) -> Iterator[Html]:
    """Yield one row per site; what measuring adds has columns where it is known of a site."""
    if not report.sites:
        return
    done = report.command != "inspect"
    ran = any(words.ran(site) for site in report.sites)
    shares = any(site.share is not None for site in report.sites)
    gains = any(site.predicted_gain is not None for site in report.sites)
    columns: list[tuple[str, Callable[[SiteReport], str], bool]] = [
        ("site", lambda site: code(words.site_name(site)), True),
        ("form", words.form, done),
        ("#share of time", words.share, shares),
        ("#predicted gain", lambda site: words.gain(site.predicted_gain), done and gains),
        ("~why", lambda site: site.reason, done),
        ("~proof", words.proof, done),
        ("geometry", lambda site: code(words.geometry(site.geometry)), True),
        ("ran on", lambda site: words.ran(site, RAN_SHAPES).removeprefix("ran on ") or words.NOTHING, ran),
        ("#multiply-adds", lambda site: words.amount(words.work(site)[0]), True),
        ("#padding only", lambda site: words.percent(words.work(site)[1]), True),
        ("output", lambda site: code(site.output), True),
    ]
    columns = [column for column in columns if column[2]]
    rows = [(str(i), *(cell(site) for _, cell, _ in columns)) for i, site in enumerate(report.sites, 1)]
    table = _table("Dilated Convs", ["##", *(name for name, _, _ in columns)], rows, "site")
    key = element("p", muted(f"Geometry: {words.GEOMETRY_KEY}."))
    if len(rows) > MANY_ROWS:
        yield _fold(f"All {len(rows)} sites", table)
    else:
        yield table
    yield key


# -- forms -----------------------------------------------------------------------------------------------------------

Numbered = tuple[int, SiteReport]


def _forms(report: Report) -> Iterator[Html]:
    """Yield the forms of all sites, once for those that were measured as one or agree in everything."""

    def same(item: Numbered) -> object:
        site = item[1]
        return repr((words.geometry(site.geometry), site.ran, site.candidates, site.refused))

    def together(item: Numbered) -> tuple[int | None, object]:
        question = item[1].question
        return (question, None) if question is not None else (None, same(item))

    said = [item for item in enumerate(report.sites, 1) if item[1].candidates or item[1].refused]
    found = words.groups(said, together)

    def rank(some: list[Numbered]) -> tuple[bool, float]:
        share = words.summed(site.share for _, site in some) or 0.0
        return not any(words.was_measured(site) for _, site in some), -share if math.isfinite(share) else 0.0

    groups = []
    found.sort(key=rank)
    for i, some in enumerate(found):
        parts = words.groups(some, same)
        content = [
            join(element("p", _numbers(part), ":") if len(parts) > 1 else "", *_group(part[0][1], report))
            for part in parts
        ]
        groups.append(_fold(_summary(some, report), *content, shown=i < OPEN_GROUPS, class_="group"))
    yield from groups[:MANY_GROUPS]
    if len(groups) > MANY_GROUPS:
        share = words.summed(site.share for some in found[MANY_GROUPS:] for _, site in some)
        time = f", {words.percent(share)} of the time" if share is not None else ""
        yield _fold(f"{words.count(len(groups) - MANY_GROUPS, 'group')} more{time}", *groups[MANY_GROUPS:])


def _numbers(some: Sequence[Numbered]) -> Html:
    return join("Site " if len(some) == 1 else "Sites ", commas([_link(number) for number, _ in some]))


def _summary(some: Sequence[Numbered], report: Report) -> Html:
    """Return what a group is, and what came of it."""
    site = some[0][1]
    ran = words.ran(site, RAN_SHAPES)
    title = element("h3", code(words.geometry(site.geometry)), muted(f" {ran}") if ran else "")
    names: list[str] = [_short(words.site_name(site)) for _, site in some[:SITE_NAMES]]
    names += [f"{len(some) - SITE_NAMES} more"] if len(some) > SITE_NAMES else []
    says: list[str] = []
    share = words.summed(site.share for _, site in some)
    if share is not None:
        says.append(join(element("b", words.percent(share)), " of the time"))
    if report.command != "inspect":
        says += [_taken(part) for part in words.groups((site for _, site in some), words.form)]
    return join(
        title,
        element("span", _numbers(some), ": ", commas(names), class_="about"),
        element("span", commas(says), class_="about"),
    )


def _taken(sites: Sequence[SiteReport]) -> Html:
    """Return what was done at sites, and what measuring says of it."""
    site = sites[0]
    many = f" ({words.count(len(sites), 'site')})" if len(sites) > 1 else ""
    timed = {c.strategy: (c.timing, words.said(c)) for c in site.candidates if c.timing is not None}
    if site.action == "rewritten":
        measured, _ = timed.get(site.strategy, (None, ""))
        result = f": {words.difference(measured)}" if measured is not None else ""
        return join(element("b", words.form(site)), result, many)
    ratios = [(timing.ratio, name) for name, (timing, _) in timed.items() if name != "keep" and timing.ratio > 0]
    best = ""
    if ratios:
        _, name = min(ratios)
        timing, outcome = timed[name]
        best = f"; best other form: {name}, {outcome or words.difference(timing)}"
    return join(element("b", "kept"), best, many)


def _group(site: SiteReport, report: Report) -> Iterator[Html]:
    """Yield what is known of the forms of one site."""
    measured = words.was_measured(site)
    if measured:
        yield from _timed_forms(site, report)
    untimed = words.without_time(site)
    if untimed:
        yield element("p", "Forms without a time:" if measured else "Forms:")
        lines = [(commas([code(candidate.strategy) for candidate in some]), words.said(some[0])) for some in untimed]
        yield _list(join(names, f": {outcome}") for names, outcome in lines)
    figures = [*_estimates(site), *_timings(site)]
    if site.refused:
        figures.append(_list(join(code(one.strategy), f" refuses: {one.reason}") for one in site.refused))
    if not measured and not untimed:
        yield from figures
        return
    refused = f", {words.count(len(site.refused), 'refusal')}" if site.refused else ""
    yield _fold(f"All figures and estimates{refused}", *figures)


def _timed_forms(site: SiteReport, report: Report) -> Iterator[Html]:
    """Yield the Conv as it is and its timed forms as a chart."""
    taken = site.strategy if site.action == "rewritten" else ""
    timed = [(c, c.timing) for c in site.candidates if c.timing is not None]
    keep = words.native(site)
    bars = []
    if keep is not None and all(candidate.strategy != "keep" for candidate, _ in timed):
        said = _badge("keep", taken, report)
        bars.append(_time("keep", "keep", keep, label=code("keep"), says=said))
    for candidate, timing in timed:
        ratio, interval = words.ratio_of(timing)
        kind = "keep" if candidate.strategy == "keep" else "taken" if candidate.strategy == taken else "other"
        says = join(
            element("b", f"{ratio}x"),
            muted(f" [{interval}] "),
            words.said(candidate) or words.difference(timing),
            _badge(candidate.strategy, taken, report),
        )
        bar = _time(
            kind,
            candidate.strategy,
            timing.second,
            label=_short(candidate.strategy),
            says=says,
            mark=timing.first.median_s,
        )
        bars.append(bar)
    most = reach(bars)
    matter = reach(bar for bar in bars if bar.kind != "other")
    if 0 < matter < most / OUT_OF_SCALE:
        most = OUT_OF_SCALE / 2 * matter
    kinds = {bar.kind for bar in bars}
    legend = [("keep", "the Conv as it is"), ("taken", "the form taken"), ("other", "another form")]
    legend = [(kind, name) for kind, name in legend if kind in kinds]
    legend += [*TIME_LEGEND, ("mark", "the Conv as it is, timed in turn with the form")]
    title = f"Time of the Conv with its neighbours, median, in milliseconds; ratio to keep [{words.INTERVAL}]"
    yield _chart(title, bars, legend, most)


def _badge(strategy: str, taken: str, report: Report) -> Html:
    """Return the sign of the form that was taken."""
    mine = strategy == (taken or "keep") and report.command == "optimize" and not report.options.get("dry_run")
    return element("span", "taken" if taken else "kept", class_="badge") if mine else Html("")


def _estimates(site: SiteReport) -> Iterator[Html]:
    if not site.candidates:
        return
    about = " (assumed sizes)" if words.assumed(site) else ""
    columns = ("form", f"#multiply-adds{about}", f"#elements moved{about}", "#nodes", "#dilation left")
    rows = [
        (
            code(candidate.strategy),
            str(candidate.multiply_adds),
            str(candidate.elements_moved),
            str(candidate.nodes),
            str(candidate.max_dilation) if candidate.max_dilation > 1 else "none",
        )
        for candidate in site.candidates
    ]
    yield _table("Forms by estimate", columns, rows)


def _timings(site: SiteReport) -> Iterator[Html]:
    """Yield every figure of the timings, in milliseconds."""
    rows = [(code(c.strategy), words.said(c) or words.NOTHING, *_timing(c.timing)) for c in site.candidates if c.timing]
    if not rows:
        return
    columns = (
        "form",
        "~outcome",
        "#keep ms",
        "#keep 20 to 80 %",
        "#form ms",
        "#form 20 to 80 %",
        "#ratio",
        f"#{words.INTERVAL}",
        "#pairs",
        "#noise",
        "mode",
    )
    yield _table("Forms by timing", columns, rows)


def _timing(found: Comparison) -> tuple[str, ...]:
    return (
        words.milliseconds(found.first.median_s),
        words.spread(found.first),
        words.milliseconds(found.second.median_s),
        words.spread(found.second),
        *words.ratio_of(found),
        str(found.pairs),
        words.NOTHING if found.noise is None else words.percent(found.noise),
        found.mode,
    )


# -- proofs ----------------------------------------------------------------------------------------------------------


def _proofs(report: Report) -> Iterator[Html]:
    """Yield every figure of every proof."""
    proved = [(number, site.proof) for number, site in enumerate(report.sites, 1) if site.proof is not None]
    if not proved:
        return
    columns = (
        "##",
        "~result",
        "input shapes",
        "#elements",
        "ran on",
        "native ran",
        "#native error",
        "#new error",
        "#limit",
        "#ceiling",
        "#new - native",
    )
    hold = sum(proof.failure is None for _, proof in proved)
    yield element(
        "p",
        element("b", f"{hold} of {len(proved)} hold. "),
        "Exact: bit for bit on whole numbers. Rounding: errors against float64, as shares of ",
        code("Conv(|x|, |w|) + |b|"),
        ".",
    )
    table = _table("Proofs", columns, [(_link(number), *_proof(proof)) for number, proof in proved])
    yield _fold("Figures of every proof", table, shown=hold < len(proved))


def _proof(proof: Proof) -> tuple[str, ...]:
    rounding = proof.rounding
    figures = (words.NOTHING,) * 5
    if rounding is not None:
        figures = (
            words.figure(rounding.native_error),
            words.figure(rounding.new_error),
            words.figure(rounding.limit),
            words.figure(rounding.ceiling),
            words.figure(rounding.difference),
        )
    return (
        "holds" if proof.failure is None else f"FAILED: {proof.failure}",
        ", ".join(words.dims(shape) for shape in proof.shapes) or words.NOTHING,
        str(proof.elements),
        proof.backend,
        "yes" if proof.native_ran else "no",
        *figures,
    )


# -- layers and engines ----------------------------------------------------------------------------------------------


def _layers(found: LayerComparison) -> Iterator[Html]:
    """Yield what the layers of both engines take, by role, and the slowest of each."""
    yield element("p", words.layers_how(found))
    columns = ("layers", "#original ms", "#share", "#rewritten ms", "#share", "#difference ms")
    yield _table("Layers by role", columns, words.layer_sums(found))
    for name, layers in zip(words.ENGINES, (found.first, found.second), strict=True):
        if layers:
            summary = words.slowest_title(name, layers).capitalize()
            yield _fold(summary, _slowest(summary, layers), shown=True)


def _slowest(title: str, layers: Sequence[LayerTime]) -> Html:
    rows = [
        (code(layer.name), layer.kind, layer.role, _codes(layer.nodes), time, share)
        for layer, time, share in words.slowest_layers(layers)
    ]
    return _table(title, ("layer", "type", "role", "~ONNX nodes", "#ms", "#share"), rows)


def _engine(engine: EngineReport) -> Iterator[Html]:
    """Yield what is known of an engine; its layers in their order are folded."""
    rows = [(what, code(says) if what in words.VERBATIM else says) for what, says in words.engine_rows(engine)]
    yield _facts("The engine", rows)
    if engine.layers:
        lines = [
            (
                str(number),
                code(layer.name),
                layer.kind,
                ", ".join(layer.inputs) or words.NOTHING,
                ", ".join(layer.outputs) or words.NOTHING,
                _codes(layer.nodes),
                code(layer.tactic) if layer.tactic else words.NOTHING,
            )
            for number, layer in enumerate(engine.layers, 1)
        ]
        columns = ("##", "layer", "type", "reads", "writes", "~ONNX nodes", "tactic")
        title = "Layers of the engine"
        yield _fold(f"{title}, all {len(lines)} in their order", _table(title, columns, lines))


def _codes(names: Sequence[str]) -> str:
    return commas([code(name) for name in names]) if names else words.NOTHING


# -- models and verdict ----------------------------------------------------------------------------------------------


def _models(report: Report) -> Iterator[Html]:
    before, after = report.before, report.after
    lines = [_model(before)]
    if after is not None:
        lines.append(join(_model(after), "; identical, byte for byte" if words.identical(report) else ""))
    yield _list(lines)
    if after is None:
        return
    columns = ("", "#before", "#after", "#change")
    figures = words.figure_rows(before, after)
    if figures:
        yield _table("Models", ("figure", *columns[1:]), figures)
    rows = words.operator_rows(before, after, everything=True)
    if rows:
        kind = "layer type" if words.is_engine(before) else "operator"
        changed = sum(row[3] != "0" for row in rows)
        summary = f"{words.count(len(rows), kind)}, {changed} in another number"
        yield _fold(
            summary,
            _table("Operators", (kind, *columns[1:]), [(code(row[0]), *row[1:]) for row in rows]),
            shown=0 < changed <= MANY_ROWS,
        )


def _model(model: ModelReport) -> Html:
    return join(f"{words.model(model)}; {model.bytes} bytes, SHA-256 ", code(model.sha256))


def _comparison(report: Report, verdict: Verdict) -> Iterator[Html]:
    passed = "passed" if verdict.passed else "FAILED"
    yield element("p", "Level ", code(verdict.level), ": ", element("b", passed), f": {words.equality(report)}.")
    if lines := words.how_verified(verdict):
        yield _list(lines)
    for case in verdict.cases:
        title = element("h3", words.case_name(case))
        same = sum(check.passed and check.comparable for check in case.outputs)
        about = element("span", f"{same} of {words.count(len(case.outputs), 'output')} equal", class_="about")
        shown = same < len(case.outputs) or len(verdict.cases) * len(case.outputs) <= MANY_ROWS
        yield _fold(join(title, about), _case(case), shown=shown, class_="group")


def _case(case: CaseCheck) -> Html:
    columns = (
        "output",
        "~result",
        "type",
        "shape",
        "#max abs",
        "#max rel",
        "#RMS",
        "#1 - cosine",
        "#ulp",
        "#argmax",
        "#NaN",
        "#Inf",
        "#own noise",
    )
    rows = [
        (
            code(check.name),
            words.result(check),
            check.element,
            words.dims(check.shape),
            words.figure(check.max_abs),
            words.figure(check.max_rel),
            words.figure(check.rms),
            words.one_minus(check.cosine),
            words.figure(check.ulp),
            words.agreement(check),
            words.nonfinite(check.nan),
            words.nonfinite(check.inf),
            words.figure(check.noise),
        )
        for check in case.outputs
    ]
    return _table(words.case_name(case), columns, rows)


# -- looks -----------------------------------------------------------------------------------------------------------

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d0d7de; --box: #f6f8fa; --link: #0550ae;
  --keep: #8c959f; --taken: #0072b2; --other: #cfe3f3; --edge: #4c7ea3;
  --good: #116329; --warn: #7d4e00; --bad: #b3261e;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --ink: #e6e9ed; --soft: #a3acb6; --line: #363d46; --box: #1d232a; --link: #79b8ff;
    --keep: #7b858f; --taken: #2f8fd0; --other: #1f3d56; --edge: #6fa8d3;
    --good: #57c06b; --warn: #e0b04a; --bad: #ff8a80;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: .94rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
  overflow-wrap: anywhere;
}
main { max-width: 1180px; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
h1 { font-size: 1.45rem; line-height: 1.3; margin: .6rem 0 1rem; text-wrap: balance; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0; display: inline; }
p, ul { margin: .5rem 0; }
ul { padding-left: 1.25rem; }
a { color: var(--link); }
header p { margin: 0; }
code {
  font: .92em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; unicode-bidi: isolate;
}
.muted, .about { color: var(--soft); }
.about { display: block; font-weight: normal; }
.about b { color: var(--ink); }
h3 .muted { font-weight: normal; }
.good { color: var(--good); } .warn { color: var(--warn); } .bad { color: var(--bad); } .plain { color: var(--ink); }
.status { border: 1.5px solid; border-radius: 1rem; padding: .1rem .7rem; font-weight: 600; margin-right: .3rem; }
.status, .badge, .arrow { white-space: nowrap; }
.badge { border: 1px solid; border-radius: .8rem; padding: 0 .5rem; margin-left: .4rem; font-size: .85em; }
.line > .badge:first-child { margin-left: 0; }
.tiles { display: flex; flex-wrap: wrap; gap: .6rem; }
.tile { background: var(--box); border: 1px solid var(--line); border-radius: .5rem; padding: .6rem .8rem; }
.tile { flex: 1 1 9.3rem; max-width: 24rem; }
.tile:first-child { flex: 2 1 17rem; max-width: 32rem; }
.tile span { display: block; font-size: .87rem; }
.tile b { display: block; font-size: 1.45rem; line-height: 1.35; font-variant-numeric: tabular-nums; }
nav { margin: 1rem 0 0; font-size: .87rem; line-height: 1.9; }
nav a { display: inline-block; margin-right: .8rem; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem; border: 1px solid var(--line); }
th, td { overflow-wrap: break-word; }
th { font-weight: 600; background: var(--box); }
tbody th { font-weight: normal; }
td:has(> code), th:has(> code), .prose { overflow-wrap: anywhere; min-width: 10.5rem; }
.prose { min-width: 14rem; }
th.number, td.number { text-align: right; white-space: nowrap; }
thead th.number { white-space: normal; }
tr:target > * { background: var(--other); }
details > summary { cursor: pointer; }
details.group { border: 1px solid var(--line); border-radius: .5rem; margin: .6rem 0; padding: .5rem .8rem; }
details.group > summary { list-style-position: outside; margin-left: 1rem; }
figure { margin: .8rem 0; }
.rows { position: relative; }
.back { position: absolute; inset: 0; }
.lines { grid-column: 2; width: 100%; height: 100%; overflow: visible; }
.lines path { vector-effect: non-scaling-stroke; stroke: var(--line); }
figcaption { color: var(--soft); font-size: .87rem; margin-bottom: .3rem; }
.row {
  display: grid; grid-template-columns: minmax(0, 12.5rem) minmax(0, 1fr) minmax(0, 18.5rem); column-gap: .8rem;
  align-items: center; min-height: 1.9rem; font-variant-numeric: tabular-nums; break-inside: avoid;
}
.label { text-align: right; line-height: 1.25; }
.says { line-height: 1.3; font-size: .92rem; padding: .15rem 0; }
.line { display: block; }
.plot { position: relative; display: block; width: 100%; height: 1.9rem; overflow: visible; }
.plot path, .plot rect, .swatch path, .swatch rect { vector-effect: non-scaling-stroke; fill: none; stroke-width: 1.5; }
.plot .keep, .swatch .keep { fill: var(--keep); }
.plot .taken, .swatch .taken { fill: var(--taken); }
.plot .other, .swatch .other { fill: var(--other); stroke: var(--edge); }
.plot .predicted { stroke: var(--ink); stroke-dasharray: 5 4; }
.plot .gone, .swatch .gone { fill: var(--page); stroke: var(--taken); stroke-dasharray: 5 3; }
.plot .whisker, .swatch .whisker { stroke: var(--ink); stroke-width: 2; }
.plot .halo { stroke: var(--page); stroke-width: 4; stroke-opacity: .75; }
.plot .mark, .swatch .mark { stroke: var(--ink); stroke-dasharray: 2 3; }
.plot .cut { stroke: var(--page); stroke-width: 5; }
.axis { grid-column: 2; position: relative; height: 1.3rem; font-size: .8rem; color: var(--soft); }
.axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.axis span:first-child { transform: none; }
.axis span:last-child { transform: translateX(-100%); }
.legend { font-size: .82rem; color: var(--soft); margin: .2rem 0 0; }
.legend span { display: inline-block; margin-right: 1.1rem; }
.swatch { width: 24px; height: 14px; vertical-align: -2px; margin-right: .35rem; }
footer { margin-top: 2.5rem; color: var(--soft); font-size: .87rem; }
@media (max-width: 1000px) {
  .row { grid-template-columns: minmax(0, 9rem) minmax(0, 1fr) minmax(0, 14.5rem); }
}
@media (max-width: 700px) {
  main { padding: .8rem .7rem 2rem; }
  h1 { font-size: 1.2rem; }
  .row { grid-template-columns: minmax(0, 1fr); padding-top: .5rem; }
  .label { text-align: left; }
  .label, .says { position: relative; justify-self: start; background: var(--page); padding: 0 .3rem 0 0; }
  .axis, .lines { grid-column: 1; }
  .back { padding-top: 0; }
}
@media print {
  html { font-size: 12.5px; }
  main { max-width: none; padding: 0; }
  nav { display: none; }
  details::details-content { content-visibility: visible; block-size: auto; }
  h2, h3, figcaption, summary, thead { break-after: avoid; }
  figure, tr, li { break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: .72rem; }
  th, td { padding: .15rem .3rem; min-width: 0 !important; }
  .plot, .swatch { print-color-adjust: exact; }
}
"""
