"""The HTML page: well-formed, safe, complete, bars as long as the numbers; and what a browser makes of it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from dilrewrite.reports import content, units
from dilrewrite.reports.content.answer import answer as answered
from dilrewrite.reports.document import code
from dilrewrite.reports.formats import formats
from dilrewrite.reports.formats import html as page_format
from dilrewrite.reports.reasons import placed
from dilrewrite.reports.report import Report
from tests.reports.examples import NO_DRIVER, REPORTS, check_golden
from tests.reports.html_examples import EXAMPLES, FINAL, HOSTILE, MANY, MEASURED, STRANGE, WON, comparison, form, timing
from tests.reports.test_markdown import tables as markdown_tables

ALL = {**REPORTS, **EXAMPLES}
VOID = {"meta", "wbr"}
HEADINGS = ("h1", "h2", "h3")
COPIES = (Path(page_format.__file__).parent / "page.js").read_text(encoding="utf-8")


@dataclass
class Node:
    """An element: its attributes and what is in it, text and elements."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    content: list[Node | str] = field(default_factory=list)

    def walk(self) -> Iterator[Node]:
        yield self
        for item in self.content:
            if isinstance(item, Node):
                yield from item.walk()

    def all(self, tag: str, class_: str | None = None) -> list[Node]:
        return [
            node
            for node in self.walk()
            if node.tag == tag and (class_ is None or class_ in node.attributes.get("class", "").split())
        ]

    @property
    def text(self) -> str:
        """What a reader sees, white space as a browser takes it."""
        return " ".join(self._text().split())

    def _text(self) -> str:
        return "".join(item if isinstance(item, str) else item._text() for item in self.content)


class Tree(HTMLParser):
    """Builds the tree; stops at whatever is not balanced."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("")
        self.open = [self.root]
        self.declarations: list[str] = []

    def handle_decl(self, decl: str) -> None:
        self.declarations.append(decl)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), f"an attribute twice: {attrs}"
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].content.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].content.append(data)


def render(report: Report) -> str:
    return formats()["html"].render(report)


def parse(source: str) -> Node:
    parser = Tree()
    parser.feed(source)
    parser.close()
    assert parser.declarations == ["doctype html"]
    assert parser.open == [parser.root], "everything is closed"
    (root,) = (item for item in parser.root.content if isinstance(item, Node))
    return root


@functools.cache
def tree(name: str) -> Node:
    return parse(render(ALL[name]))


def rows(node: Node) -> list[list[str]]:
    """Return every row of every table, as texts."""
    return [[cell.text for cell in row.content if isinstance(cell, Node)] for row in node.all("tr")]


def plain(text: str) -> str:
    return " ".join(units.clean(text).split())


# -- the file --------------------------------------------------------------------------------------------------------


def test_file_name():
    assert formats()["html"].filename == "report.html"


@pytest.mark.parametrize("name", ["charts", "regions"])
def test_golden(name):
    """Without the style sheet, which is a file of its own."""
    check_golden(f"{name}.html", re.sub("(?<=<style>).*(?=</style>)", "", render(ALL[name]), flags=re.DOTALL))


def test_same_text_every_time():
    assert render(MANY) == render(replace(MANY))


@pytest.mark.parametrize("name", ALL)
def test_well_formed(name):
    root = tree(name)
    assert (root.tag, root.attributes) == ("html", {"lang": "en"})
    assert [node.tag for node in root.content if isinstance(node, Node)] == ["head", "body"]
    head = root.all("head")[0]
    assert head.content[0] == Node("meta", {"charset": "utf-8"}), "within the first 1024 bytes"
    (title,) = head.all("title")
    report = ALL[name]
    assert title.text == plain(f"dilrewrite {report.command}: {report.status}: {report.before.path}")
    ids = [node.attributes["id"] for node in root.walk() if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    for node in root.walk():
        if node.tag in ("p", *HEADINGS):
            inside = {inner.tag for inner in node.walk()} - {node.tag}
            assert inside <= {"a", "b", "code", "span", "svg", "path", "rect", "wbr"}, (node.tag, inside)
        if node.tag == "summary":
            assert not node.all("a"), "nothing to click in what is clicked"
        if node.tag == "details":
            first = node.content[0]
            assert isinstance(first, Node)
            assert first.tag == "summary"
            assert [child.tag for child in node.content if isinstance(child, Node)].count("summary") == 1


@pytest.mark.parametrize("name", ALL)
def test_needs_nothing_else_and_runs_nothing(name):
    """No script but the one that copies, no event, no address outside the page, no style that loads anything."""
    allowed = {"html", "head", "meta", "title", "style", "body", "main", "header", "nav", "section", "footer", "p"}
    allowed |= {"h1", "h2", "h3", "a", "b", "code", "span", "wbr", "ul", "li", "div", "details", "summary"}
    allowed |= {"table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "svg", "path", "rect"}
    allowed |= {"dl", "dt", "dd", "text", "script"}
    root = tree(name)
    (script,) = root.all("script")
    assert (script.attributes, script.content) == ({}, [COPIES])
    (policy,) = (node.attributes["content"] for node in root.all("meta") if "http-equiv" in node.attributes)
    digest = base64.b64encode(hashlib.sha256(COPIES.encode()).digest()).decode()
    assert policy.split("; ")[:3] == [
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
    ]
    ids = {node.attributes.get("id") for node in root.walk()}
    for node in root.walk():
        assert node.tag in allowed
        assert not {key for key in node.attributes if key.startswith("on")} | {"src", "xlink:href"} & set(
            node.attributes
        )
        if "href" in node.attributes:
            assert node.attributes["href"].startswith("#")
            assert node.attributes["href"][1:] in ids, "a link leads somewhere"
        assert re.fullmatch(r"(left:[\d.]+%)?", node.attributes.get("style", ""))
    (style,) = root.all("style")
    assert not re.search(r"url|@import|@font-face|expression|javascript", style.text)
    assert style.text.count("{") == style.text.count("}")


@pytest.mark.parametrize("name", ALL)
def test_can_be_read_without_seeing(name):
    root = tree(name)
    levels = [int(node.tag[1]) for node in root.walk() if node.tag in HEADINGS]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(next_ <= level + 1 for level, next_ in pairwise(levels))
    for node in root.all("th"):
        assert node.attributes["scope"] in ("row", "col")
        assert node.text or node.attributes["scope"] == "row"
    for table in root.all("table"):
        lines = [[cell for cell in row.content if isinstance(cell, Node)] for row in table.all("tr")]
        assert len({len(line) for line in lines}) == 1
        assert all(line[0].tag == "th" for line in lines)
    for drawing in (*root.all("svg", "plot"), *root.all("svg", "graph")):
        assert drawing.attributes["role"] == "img"
        assert drawing.attributes["aria-label"]
    hidden = {id(inner) for node in root.walk() if node.attributes.get("aria-hidden") for inner in node.walk()}
    seen = [node for node in root.all("svg") if id(node) not in hidden]
    assert {node.attributes["class"] for node in seen} <= {"plot", "graph"}
    for box in root.all("div", "scroll"):
        assert (box.attributes["role"], box.attributes["tabindex"]) == ("group", "0")
        assert box.attributes["aria-label"]


# -- what it says ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_answer_comes_first(name):
    (heading,) = tree(name).all("h1")
    assert heading.text == plain(answered(ALL[name]))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.grid(3)
def test_every_table_of_the_markdown_is_there(name):
    mine = rows(tree(name))
    for table in markdown_tables(formats()["markdown"].render(ALL[name])):
        for row in table[1:]:
            cells = [" ".join(cell.split()) for cell in row]
            assert any(all(any(own.endswith(cell) for own in other) for cell in cells) for other in mine), cells


@pytest.mark.parametrize("name", ALL)
def test_every_sentence_of_the_markdown_is_there(name):
    report, whole = ALL[name], tree(name).text
    verdict, found = report.verdict, report.measurement
    lines = [*report.remaining, *content.models.notes(report), content.models.environment(report)]
    lines.append(content.models.times(report.seconds))
    lines += [content.models.model_line(model) for model in (report.before, report.after) if model is not None]
    for site in report.sites:
        lines += [f"{refusal.strategy} refuses: {refusal.reason}" for refusal in site.refused]
        for some in content.forms.without_time(site):
            lines.append(f"{', '.join(candidate.strategy for candidate in some)}: {content.forms.said(some[0])}")
    for node in report.skipped:
        dilations = f", dilations {units.dims(node.dilations)}" if node.dilations else ""
        lines.append(f"{placed(node.where, node.name)} ({node.op}{dilations}): {node.reason}")
    for change in report.normalised:
        lines.append(f"{placed(change.where, change.name)}: {content.models.changes(change)}")
    if found is not None:
        lines += found.doubts
    if verdict is not None:
        lines += [*verdict.failures, *content.models.how_verified(verdict)]
        lines += map(content.models.case_name, verdict.cases)
        lines.append(content.answer.equality(report))
    lines.append(f"Report schema {report.schema_version}, exit code {report.exit_code}.")
    for line in lines:
        assert plain(line) in whole
    have = rows(tree(name))
    for what, says in content.timing.measuring(report):
        assert [what, plain(says)] in have
    for what, says in content.engine.rows(report.engine) if report.engine is not None else ():
        assert [what, plain(says)] in have
    if found is not None and found.layers is not None:
        assert plain(content.engine.how(found.layers)) in whole


def headings(name: str) -> list[str]:
    return [node.text for node in tree(name).all("h2")]


def tiles(name: str) -> list[str]:
    return [node.text for node in tree(name).all("div", "tile")]


def test_an_engine_alone_has_no_empty_sections():
    assert headings("built") == ["Engine", "Model", "Options that were set", "Environment", "Time"]
    assert all(
        section.all("table") or section.all("ul") or section.all("p") for section in tree("built").all("section")
    )


def test_an_engine_and_what_it_was_chosen_on_are_seen_first():
    assert tiles("built") == [
        "Engine1.31 MiBtensorrt-rtx 1.7.1.116, 34 layers",
        "Precisionfp1619 convolutions in Half",
        f"Engine's results! not compared{NO_DRIVER}",
        "Dilated Convs242 nodes in all",
    ]
    assert not any("Engine's results" in tile for tile in tiles("built-on-gpu"))
    assert tiles("engine-of-rewritten")[0].startswith("Whole model")
    assert [tile[:6] for tile in tiles("engine-of-rewritten")[-3:]] == ["Engine", "Precis", "Engine"]
    assert "chosen on onnxruntime_cpu, not measured on TensorRT" in tree("engine-of-rewritten").all("h1")[0].text


def test_layers_of_an_engine_are_folded():
    (fold,) = (node for node in tree("built").all("details") if "Layers of the engine" in node.text)
    assert "open" not in fold.attributes
    assert len(rows(fold)) == 1 + 34


def test_slowest_layers_are_in_sight():
    folds = [node for node in tree("measured-layers").all("details") if "Slowest layers" in node.text]
    assert ["open" in node.attributes for node in folds] == [True, True]
    assert [len(rows(node)) for node in folds] == [1 + content.engine.SLOWEST] * 2


def test_engines_have_layers_and_no_nodes():
    assert any(tile.startswith("Layers34 → 33") for tile in tiles("bench-engines"))
    assert not any("Dilated Convs" in tile for tile in (*tiles("bench-engines"), *tiles("verify-engine")))
    assert not any(tile.startswith("File size") for tile in tiles("verify-engine"))
    assert "4 layer types, 4 in another number" in tree("bench-engines").text


def test_sites_with_one_question_are_one_group():
    groups = [node for node in tree("charts").all("details", "group") if "of the time" in node.text]
    assert "Sites 1, 2, 3: aspp.0, aspp.1, aspp.2" in groups[0].text
    assert "69.1 % of the time, space_to_batch: 2.39x faster (3 sites)" in groups[0].text
    assert len(groups) == 3


def test_sites_of_one_question_that_differ_show_all_they_have():
    first, second, *rest = MEASURED.sites
    odd = replace(second, candidates=(form("tap_sum", "not measured: odd"),))
    root = parse(render(replace(MEASURED, sites=(first, odd, *rest))))
    (group,) = (node for node in root.all("details", "group") if "Sites 1, 2, 3:" in node.text)
    assert "Sites 1, 3:" in group.text
    assert "Site 2:" in group.text
    assert "tap_sum: not measured: odd" in group.text


def test_prediction_and_result():
    assert (
        "Predicted from the timings of the sites: 1.68x faster; measured: 1.58x faster: 6.0 % more time than predicted."
        in tree("charts").text
    )
    near = replace(MEASURED, measurement=replace(MEASURED.measurement, predicted_ratio=FINAL.ratio + 0.001))
    assert "measured: 1.58x faster: within the interval." in parse(render(near)).text


@pytest.mark.parametrize("name", ALL)
def test_charts_only_of_what_was_measured(name):
    report, root = ALL[name], tree(name)
    captions = [node.text for node in root.all("figcaption")]
    found = report.measurement
    whole = found is not None and (found.final is not None or (report.status == "kept" and bool(found.attempts)))
    assert any("whole model" in text for text in captions) == whole
    assert any("Share" in text for text in captions) == any(site.share is not None for site in report.sites)
    assert any("neighbours" in text for text in captions) == any(map(content.sites.was_measured, report.sites))


def test_many_sites_are_folded():
    root = tree("charts-many")
    groups = root.all("details", "group")
    assert len([node for node in groups if "Sites" in node.text]) == 60
    assert len([node for node in groups if "open" in node.attributes and "Sites" in node.text]) < 10
    assert "285 sites more" in root.text
    assert "40 groups more" in root.text
    assert len(render(MANY)) < 3_000_000


# -- safety ----------------------------------------------------------------------------------------------------------


def test_names_are_read_back_and_open_nothing():
    root = tree("charts-hostile")
    cells = {cell for row in rows(root) for cell in row}
    assert {plain(STRANGE), plain(f"{STRANGE}/{STRANGE}"), "n" * 500} <= cells
    assert plain(HOSTILE.before.path) in root.text
    source = render(HOSTILE)
    assert "<img" not in source
    assert source.count("<script") == source.count("</script") == 1
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", source)
    source.encode("utf-8")


@pytest.mark.parametrize("value", ["<b>", "a&b", '"', "'", "&lt;", "\x00\x1b\u202e", "a/b_c->d", "日本語", "\ud800"])
def test_escaping(value):
    for markup in (
        page_format.text(value),
        page_format.text(code(value)),
        page_format.element("p", value, title=value),
    ):
        root = parse(f"<!doctype html><div>{markup}</div>")
        assert root.text == plain(value)
        assert all(node.attributes.get("title", units.clean(value)) == units.clean(value) for node in root.walk())


# -- charts ----------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """A row of a chart, read back."""

    label: str
    says: str
    drawing: Node
    end: float

    @property
    def length(self) -> float:
        """The length of the bar in units of its axis."""
        bar = next(node for node in self.drawing.all("rect") if node.attributes["class"] != "gone")
        assert bar.attributes["x"] == "0"
        return float(bar.attributes["width"]) / page_format.WIDTH * self.end

    def path(self, kind: str) -> str:
        return next(node.attributes["d"] for node in self.drawing.all("path", kind))

    @property
    def whisker(self) -> tuple[float, float]:
        found = re.fullmatch(r"M([\d.]+) 12H([\d.]+)M\1 8V16M\2 8V16", self.path("whisker"))
        assert found is not None
        return tuple(float(x) / page_format.WIDTH * self.end for x in found.groups())  # type: ignore[return-value]


def chart(figure: Node) -> list[Row]:
    axis = [float(node.text.split()[0]) for node in figure.all("div", "axis")[0].all("span")]
    assert axis[0] == 0
    steps = {round(b - a, 9) for a, b in pairwise(axis)}
    assert len(steps) == 1, "ticks at equal distances"
    return [
        Row(row.all("div", "label")[0].text, row.all("div", "says")[0].text, row.all("svg", "plot")[0], axis[-1])
        for row in figure.all("div", "row")
        if row.all("svg", "plot")
    ]


def figures(root: Node, caption: str) -> list[list[Row]]:
    return [chart(figure) for figure in root.all("figure") if caption in figure.all("figcaption")[0].text]


def near(end: float) -> float:
    """Return one unit of a plot, which is less than a pixel."""
    return end / page_format.WIDTH


def test_bars_of_the_whole_model():
    before, after, predicted = figures(tree("charts"), "whole model")[0]
    for row, label, timed in ((before, "before", FINAL.first), (after, "after", FINAL.second)):
        assert row.label == label
        assert row.length == pytest.approx(1000 * timed.median_s, abs=near(row.end))
        wanted = (1000 * timed.p20_s, 1000 * timed.p80_s)
        assert row.whisker == pytest.approx(wanted, abs=near(row.end))
        assert f"{units.milliseconds(timed.median_s)} ms" in row.drawing.attributes["aria-label"]
        assert units.spread(timed) in row.says
    assert predicted.length == pytest.approx(1000 * 0.597 * FINAL.first.median_s, abs=near(predicted.end))
    assert units.versus(FINAL) in tree("charts").text


def test_bars_of_the_forms():
    keep, *forms = figures(tree("charts"), "neighbours")[0]
    timed = {candidate.strategy: candidate for candidate in WON if candidate.timing is not None}
    assert keep.label == "keep"
    assert keep.length == pytest.approx(9.85, abs=near(keep.end))
    assert [row.label for row in forms] == list(timed)
    for row in forms:
        candidate = timed[row.label]
        comparison = candidate.timing
        assert comparison is not None
        assert f"{units.speed(comparison.ratio)} [{units.interval_of(comparison)}]" in row.says
        assert content.forms.outcome(candidate) in row.says
        mark = float(row.path("mark").removeprefix("M").split()[0]) / page_format.WIDTH * row.end
        assert mark == pytest.approx(1000 * comparison.first.median_s, abs=near(row.end))
        if row.label == "im2col":
            assert row.length == row.end
            assert "(bar cut)" in row.says
            assert "(bar cut)" in row.drawing.attributes["aria-label"]
            assert row.drawing.all("path", "cut")
            assert not row.drawing.all("path", "whisker")
        else:
            assert row.length == pytest.approx(1000 * comparison.second.median_s, abs=near(row.end))
            wanted = (1000 * comparison.second.p20_s, 1000 * comparison.second.p80_s)
            assert row.whisker == pytest.approx(wanted, abs=near(row.end))
    assert "taken" in forms[0].says
    assert not any("taken" in row.says for row in forms[1:])


def test_bars_of_shares():
    found = figures(tree("charts"), "Share")[0]
    known = {f"{i} {content.sites.site_name(s)}": s for i, s in enumerate(MEASURED.sites, 1) if s.share is not None}
    assert {row.label for row in found} == set(known)
    lengths = [row.length for row in found]
    assert lengths == sorted(lengths, reverse=True)
    for row in found:
        site = known[row.label]
        assert site.share is not None
        assert row.length == pytest.approx(100 * site.share, abs=near(row.end))
        gone = row.drawing.all("rect", "gone")
        assert bool(gone) == bool(site.predicted_gain)
        for part in gone:
            width = float(part.attributes["width"]) / page_format.WIDTH * row.end
            assert site.predicted_gain is not None
            assert width == pytest.approx(100 * site.predicted_gain, abs=2 * near(row.end))
            assert f"predicted gain {units.gain(site.predicted_gain)}" in row.says


def test_lines_far_beyond_the_bars_leave_the_chart():
    """One that leaves has no end on that side; what it says is in words, and bars keep a length."""
    final = replace(FINAL, second=replace(FINAL.second, p80_s=1.0))
    root = parse(render(replace(MEASURED, measurement=replace(MEASURED.measurement, final=final))))
    before, after, _ = figures(root, "whole model")[0]
    assert before.length > 0.5 * before.end
    assert re.fullmatch(r"M([\d.]+) 12H1000M\1 8V16", after.path("whisker"))
    assert units.spread(final.second) in after.says
    assert before.path("whisker").count("V") == 2


def test_folded_bars_have_the_same_axis():
    found = figures(tree("charts-many"), "Share")
    assert [len(rows) for rows in found] == [content.sites.MANY_BARS, 300 - content.sites.MANY_BARS]
    assert len({rows[0].end for rows in found}) == 1


@pytest.mark.parametrize("scale", [1e-7, 1e-3, 1, 1e6])
@pytest.mark.parametrize("ratio", [0.016, 0.5, 0.999, 1.0, 1.7, 62])
def test_bars_are_in_proportion(scale, ratio):
    final = comparison(scale, scale * ratio)
    root = parse(
        render(replace(MEASURED, measurement=replace(MEASURED.measurement, final=final, predicted_ratio=None)))
    )
    before, after = figures(root, "whole model")[0]
    assert after.length / before.length == pytest.approx(ratio, rel=0.001, abs=0.001 / before.length * before.end)
    assert max(before.length, after.length) > 0.5 * before.end, "the axis fits"
    assert max(before.whisker[1], after.whisker[1]) <= before.end


def test_no_time_at_all_is_said_not_drawn():
    nothing = replace(FINAL, first=timing(0), second=timing(0), ratio=1.0, low=1.0, high=1.0)
    root = parse(render(replace(MEASURED, measurement=replace(MEASURED.measurement, final=nothing))))
    assert not [node for node in root.all("figcaption") if "whole model" in node.text]
    assert "before: 0.00 ms" in root.text


@pytest.mark.parametrize("most", [1e-9, 0.0412, 1, 1.01, 4.99, 5, 7, 10, 41.7, 99.9, 12345, 1e12])
def test_ticks(most):
    found = page_format.ticks(most)
    assert found[0] == 0
    assert 2 <= len(found) <= 6
    assert found[-2] < most <= found[-1] * (1 + 1e-9)
