"""The Markdown page: complete, and read back by a Markdown parser with names as they are."""

from __future__ import annotations

import json

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from dilrewrite.reports import content, units
from dilrewrite.reports.content.answer import answer as answered
from dilrewrite.reports.formats import formats, markdown
from dilrewrite.reports.reasons import placed
from tests.reports.examples import LAYERS, ODD, REPORTS, check_golden

PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def page(name: str) -> str:
    return formats()["markdown"].render(REPORTS[name])


def plain(token: Token) -> str:
    """Return what a reader sees of an inline token."""
    assert token.children is not None
    return "".join(child.content for child in token.children if child.type in ("text", "code_inline"))


def tables(text: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = []
    for before, token in zip([None, *PARSER.parse(text)], PARSER.parse(text), strict=False):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and before is not None and before.type in ("td_open", "th_open"):
            found[-1][-1].append(plain(token))
    return found


def table(text: str, *columns: str) -> list[list[str]]:
    """Return the rows of the first table that has the columns."""
    return next(rows[1:] for rows in tables(text) if set(columns) <= set(rows[0]))


def everything(text: str) -> str:
    return "\n".join(plain(token) for token in PARSER.parse(text) if token.type == "inline")


def test_file_name():
    assert formats()["markdown"].filename == "report.md"


@pytest.mark.parametrize("name", ["measured-loop", "built-odd-names", "regions"])
def test_golden(name):
    check_golden(f"{name}.md", page(name))


@pytest.mark.parametrize("name", REPORTS)
def test_answer_comes_first(name):
    assert everything(page(name)).splitlines()[1] == answered(REPORTS[name])


@pytest.mark.parametrize("name", REPORTS)
def test_every_table_is_read_as_one(name):
    text = page(name)
    found = tables(text)
    assert len(found) == text.count("\n|-") and all(len({len(row) for row in rows}) == 1 for rows in found)  # noqa: PT018
    assert sum(map(len, found)) == sum(line.startswith("|") for line in text.splitlines()) - len(found)


@pytest.mark.parametrize("name", REPORTS)
def test_every_site_and_refusal_and_proof_is_there(name):
    report, text = REPORTS[name], page(name)
    whole = everything(text)
    if report.sites:
        rows = [row for found in tables(text) if {"site", "geometry"} <= set(found[0]) for row in found[1:]]
        names = [units.clean(content.sites.site_name(site)) for site in report.sites]
        assert sorted((int(row[0]), row[1]) for row in rows) == list(enumerate(names, 1))
    for site in report.sites:
        for refusal in site.refused:
            assert f"{refusal.strategy} refuses: {units.clean(refusal.reason)}" in whole
        for candidate in site.candidates:
            assert str(candidate.multiply_adds) in whole
    proved = [f"region {number}" for number, region in enumerate(report.regions, 1) if region.proof is not None]
    proved += [str(number) for number, site in enumerate(report.sites, 1) if site.proof is not None]
    if proved:
        assert [row[0] for row in table(text, "error of keep")] == proved
    for node in report.skipped:
        assert f"{units.clean(placed(node.where, node.name))} ({units.clean(node.op)}" in whole
    for line in (*report.remaining, *content.models.notes(report)):
        assert units.clean(line) in whole


def test_odd_names_are_read_back_and_open_nothing():
    text = page("odd-names")
    rows = table(text, "site", "output")
    assert [rows[0][1], rows[0][-1]] == [units.clean(f"{ODD}/{ODD}"), units.clean(ODD)]
    assert rows[1][1] == "n" * 500
    assert table(text, "option") == [[units.clean(ODD), units.clean(json.dumps(ODD))]]
    check_opens_nothing(text)


def test_odd_names_of_a_measured_report():
    text = page("measured-odd-names")
    assert table(text, "outcome", "speed")[0][:2] == [units.clean(ODD), "won"]
    assert table(text, "sites rewritten")[0][2] == f"{units.clean(ODD)}, "
    assert f"tap_zones: not measured: {units.clean(ODD)}" in everything(text)
    check_opens_nothing(text)


@pytest.mark.parametrize("name", ["built-odd-names", "measured-layers-odd-names"])
def test_odd_names_of_engines(name):
    text = page(name)
    assert table(text, "layer", "ONNX nodes")[0][-1] in (units.clean(ODD), units.NOTHING)
    check_opens_nothing(text)


def check_opens_nothing(text: str) -> None:
    kinds = {child.type for token in PARSER.parse(text) for child in token.children or ()}
    assert kinds <= {"text", "code_inline", "strong_open", "strong_close", "softbreak", "html_inline"}
    html = {c.content for token in PARSER.parse(text) for c in token.children or () if c.type == "html_inline"}
    assert html <= {"<code>", "</code>"}
    assert not [token for token in PARSER.parse(text) if token.type in ("html_block", "ordered_list_open", "hr")]
    headings = [token for token in PARSER.parse(text) if token.type == "heading_open"]
    assert len(headings) == sum(line.startswith("#") for line in text.splitlines())


@pytest.mark.parametrize(
    "text",
    [
        ODD,
        "# heading",
        "- item",
        "+ item",
        "* item",
        "-",
        "---",
        "===",
        "1. item",
        "1) item",
        "12.",
        "> quote",
        "    code",
        "``` fence",
        "~~~ fence",
        "<!-- comment -->",
        "a\\|b",
        "a\\",
        "&amp;",
        "![a](b)",
        "|a|b|",
        "__init__",
        "_a_",
        "snake_case_name",
    ],
)
def test_escaping(text):
    """What is escaped reads as itself: as prose and as code, alone, in an item, and in a table."""
    wanted = units.clean(text).strip()
    for form in (markdown.prose, markdown.code):
        escaped = form(text)
        (row,) = tables(f"| a | b |\n|---|---|\n| {escaped} | end |\n")[0][1:]
        assert [cell.strip() for cell in row] == [wanted, "end"]
        assert everything(f"- {escaped.strip()}\n- end").strip() == f"{wanted}\nend"
        assert everything(f"x {escaped} end").split() == f"x {wanted} end".split()


def test_plain_names_stay_readable():
    assert markdown.code("main/conv_1[0]") == "`main/conv_1[0]`"
    assert markdown.prose("space_to_batch at 0.51x; not measured") == "space_to_batch at 0.51x; not measured"


def test_figures_of_an_output():
    (row, _labels) = table(page("rewritten"), "max abs")
    assert row[3:] == ["7.63e-06", "0.35", "1.51e-06", "3.7e-14", "5.19e+03", ">99.9 %", "0", "0", "1.14e-05", "equal"]


def test_every_timing_is_there():
    text = page("measured")
    rows = table(text, "outcome", "speed")
    assert rows[0] == [
        *["tap_zones", "won", "2.31", "2.26 to 2.38", "1.52", "1.49 to 1.57", "1.52x faster", "1.50 to 1.54x faster"],
        *["6.02 MiB -> 8.96 MiB", "40", "0.9 %", "interleaved"],
    ]
    assert [row[0] for row in rows] == ["tap_zones", "space_to_batch"]
    assert "im2col: failed: the process was killed by SIGSEGV" in everything(text)
    assert "tap_sum, slice_to_batch: not measured: budget" in everything(text)
    attempts = table(text, "sites rewritten", "result")
    assert [row[1] for row in attempts] == ["6", "5"]
    assert attempts[1][-1] == "1.21x faster"
    assert attempts[0][2].count("stage") == 6


@pytest.mark.parametrize("name", [name for name, report in REPORTS.items() if report.measurement is not None])
def test_everything_measured_is_there(name):
    report, whole = REPORTS[name], everything(page(name))
    assert report.measurement is not None
    for what, text in content.timing.measuring(report):
        assert units.clean(f"{what}: {text}") in whole
    for site in report.sites:
        for candidate in site.candidates:
            said = content.forms.said if candidate.timing is None else content.forms.outcome
            assert units.clean(said(candidate)) in whole
        for shape in site.ran:
            assert units.dims(shape) in whole
    for doubt in report.measurement.doubts:
        assert units.clean(doubt) in whole


@pytest.mark.parametrize("name", [name for name, report in REPORTS.items() if report.engine is not None])
def test_every_engine_is_there_with_all_its_layers(name):
    report, text = REPORTS[name], page(name)
    assert report.engine is not None
    whole = everything(text)
    for what, says in content.engine.rows(report.engine):
        assert units.clean(f"{what}: {says}") in whole
    rows = table(text, "layer", "tactic")
    assert [row[:3] for row in rows] == [
        [str(number), units.clean(layer.name), units.clean(layer.kind)]
        for number, layer in enumerate(report.engine.layers, 1)
    ]


def test_an_engine_alone_has_no_empty_sections():
    headings = [line for line in page("built").splitlines() if line.startswith("#")]
    assert headings == [
        *["# dilrewrite build: built", "## Engine", "### Layers of the engine", "## Model", "## Options that were set"],
        *["## Environment", "## Time"],
    ]


def test_layers_of_both_engines():
    text = page("measured-layers")
    assert content.engine.how(LAYERS) in everything(text)
    assert [tuple(row) for row in table(text, "difference ms")] == content.engine.sums(LAYERS)
    found = [rows for rows in tables(text) if rows[0] == ["layer", "type", "role", "ONNX nodes", "ms", "share"]]
    assert [len(rows) - 1 for rows in found] == [content.engine.SLOWEST] * 2
    assert found[0][1] == ["stage19_myl0_19", "correlation", "convolution", "stage19, relu_19", "2.90", "7.4 %"]


def test_shares_of_time_have_columns_where_they_are_known():
    rows = table(page("measured"), "share of time", "predicted gain")
    assert [row[3] for row in rows] == [*["10.1 %"] * 5, "1.2 %", "1.2 %"]
    (first, second) = table(page("measured-inspected"), "ran on", "share of time")
    assert first[3:5] == ["1x88x64x64, 1x88x32x32, 1x88x16x16", "10.1 %"]
    assert second[3:-1] == ["2x88x40x40", "10.1 %", "223 M", "12.9 %"]
    assert "predicted gain" not in page("measured-inspected")


@pytest.mark.parametrize("name", [name for name, report in REPORTS.items() if report.measurement is None])
def test_nothing_of_measuring_without_a_measurement(name):
    assert not [word for word in ("## Measuring", "share of time", "95 % interval") if word in page(name)]


def test_infinities_and_nan():
    (_logits, row) = table(page("differs"), "max abs")
    assert row[3:12] == ["inf", "nan", "inf", "nan", "inf", "25.0 %", "0->7", "1->0", "nan"]
