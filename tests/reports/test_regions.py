"""Regions in reports: counted in the answer, drawn, with what is in them, and never told as sites by themselves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dilrewrite.reports import document as doc
from dilrewrite.reports.content import answer, document, drawing, regions
from dilrewrite.reports.report import RegionNode, Report
from dilrewrite.timing.outcome import Outcome
from tests.reports.examples import AROUND, BLOCKS, LONG, MEMBERS, REPORTS, chained, timed
from tests.reports.test_html import parse, render

REPORT = REPORTS["regions"]


def drawn(*nodes: str) -> str:
    return " > ".join(map(shape, drawing.shapes(chained(*nodes))))


def shape(one: doc.Shape) -> str:
    times = f" x{one.times}" if one.times > 1 else ""
    if isinstance(one, doc.Box):
        return f"{one.label}{times}"
    alike = [f"{number} alike: " if number > 1 else "" for number in one.alike or [1] * len(one.lines)]
    lines = (f"{same}{' > '.join(map(shape, line))}" for same, line in zip(alike, one.lines, strict=True))
    return f"({' | '.join(lines)}){times}"


def boxes(shapes: tuple[doc.Shape, ...]) -> int:
    return sum(1 if isinstance(one, doc.Box) else sum(map(boxes, one.lines)) for one in shapes)


def test_a_chain_is_a_line_and_equal_operators_are_one_box() -> None:
    assert drawn("Conv d2 -1", "Relu 0", "Conv d4 1") == "Conv d2 > Relu > Conv d4"
    assert drawn("Relu -1", "Conv d2 0", "Conv d2 1", "Conv d2 2", "Conv d4 3") == "Relu > Conv d2 x3 > Conv d4"
    assert drawn("Conv d2 -1", "Relu 0", "Conv d2 1", "Relu 2", "Tanh 3") == "(Conv d2 > Relu) x2 > Tanh"


def test_branches_stand_beside_each_other() -> None:
    assert drawn("Conv -1", "Relu 0", "Conv 1", "Add 0 2", "Tanh 3") == "Conv > (Relu > Conv | ) > Add > Tanh"
    assert drawn("Conv -1", "Tanh 0", "Sigmoid 0", "Mul 1 2") == "Conv > (Tanh | Sigmoid) > Mul"
    assert drawn("Conv -1", "Tanh 0", "Relu 1", "Conv d9 0", "Mul 2 3") == "Conv > (Tanh > Relu | Conv d9) > Mul"


def test_branches_inside_of_branches() -> None:
    nodes = ("Relu -1", "Conv 0", "Tanh 1", "Sigmoid 1", "Mul 2 3", "Add 0 4")
    assert drawn(*nodes) == "Relu > (Conv > (Tanh | Sigmoid) > Mul | ) > Add"


def test_equal_branches_are_drawn_once() -> None:
    assert drawn("Slice -1", "Exp 0", "Exp 0", "Tanh 0", "Exp 0", "Concat 1 2 3 4") == (
        "Slice > (3 alike: Exp | Tanh) > Concat"
    )


def test_two_results_that_go_on_side_by_side_are_framed() -> None:
    """As in WaveNet: a sum of what each layer gives, beside what the layers hand on."""
    layers = ("Conv 0", "Add 0 1", "Add 0 1", "Conv 2", "Add 2 4", "Add 3 4", "Mul 5 6")
    assert drawn("Relu -1", *layers).endswith("Mul")
    assert drawn("Relu -1", *layers).count("Conv") == 2


def test_a_long_region_has_few_boxes_and_every_dilation() -> None:
    shapes = drawing.shapes(LONG)
    assert len(LONG) > 600
    assert 3 < boxes(shapes) <= drawing.MOST_BOXES
    said = " ".join(map(shape, shapes))
    assert all(operator in said for operator in ("Conv", "Split", "Tanh", "Sigmoid", "Mul", "Add"))


def test_a_region_without_repeats_is_drawn_coarsely() -> None:
    names = [f"{op}{i} {i - 1}" for i, op in enumerate(["Conv", "Relu", "Exp", "Abs", "Neg"] * 60)]
    shapes = drawing.shapes(chained(*names))
    assert boxes(shapes) == drawing.MOST_BOXES
    parts = [part.split() for one in shapes for part in shape(one).split(", ")]
    counted = sum(int(number.rstrip("×")) if more else 1 for number, *more in parts)
    assert counted == len(names)


def test_ten_thousand_nodes_are_drawn() -> None:
    nodes = tuple(RegionNode(op=f"Op{i % 97}", dilation=1 + i % 3, reads=(i - 1,)) for i in range(10_000))
    assert boxes(drawing.shapes(nodes)) <= drawing.MOST_BOXES


def test_the_answer_counts_regions() -> None:
    assert answer.answer(REPORT).startswith("rewrote 5 of 6 dilated Convs, 4 of them in 1 region lifted to 2-D: 1.21x")
    said = answer.answer(REPORTS["regions-alone"])
    assert said.startswith("rewrote 4 of 4 dilated Convs in 2 regions (1 lifted to 2-D, 1 in phases); ")
    alone = replace(REPORT, sites=(), regions=REPORT.regions[:1], measurement=None)
    assert answer.answer(alone).startswith("rewrote 1 region lifted to 2-D, without dilation; ")


def test_the_proof_of_a_region_holds_for_its_sites() -> None:
    report = REPORT
    assert report.verdict is not None
    skipped = replace(report, verdict=replace(report.verdict, skipped="no kernel for Magic", cases=()))
    assert answer.equality(skipped).startswith("every form proved, ")
    unproved = replace(skipped, regions=(replace(report.regions[0], proof=None),))
    assert answer.equality(unproved).startswith("whole model not run")


def texts(report: Report, brief: bool) -> str:
    page = document(report, brief=brief)
    return "\n".join(str(section) for section in page.sections)


@pytest.mark.parametrize("brief", [True, False])
def test_no_site_of_a_region_is_not_proved_or_not_measured_to_the_end(brief: bool) -> None:
    late = timed({"tap_zones": ("not measured: budget", None)})
    report = replace(REPORT, sites=tuple(replace(site, candidates=late) for site in MEMBERS))
    assert not any("to the end" in step for step in answer.next_steps(report))
    own = replace(report, sites=tuple(replace(site, region=None) for site in report.sites))
    assert any("4 of 4 sites were not measured to the end" in step for step in answer.next_steps(own))
    assert "not proved" not in texts(report, brief)


def test_a_region_whose_forms_are_late_or_unclear_counts_where_its_sites_are_kept() -> None:
    first = REPORT.regions[0]
    kept = replace(first, action="kept", candidates=(replace(first.candidates[0], outcome=Outcome.NO_TIME),))
    sites = tuple(replace(site, action="kept", region=None, candidates=()) for site in MEMBERS)
    report = replace(REPORT, status="kept", sites=sites, regions=(kept,))
    assert any(step.startswith("1 region was not measured to the end") for step in answer.next_steps(report))
    unclear = replace(kept, candidates=(replace(first.candidates[0], outcome=Outcome.INCONCLUSIVE),))
    said = answer.answer(replace(report, status="inconclusive", regions=(unclear,)))
    assert "could have been missed in 1 region on" in said
    assert not any("to the end" in step for step in answer.next_steps(replace(REPORT, sites=MEMBERS, regions=(kept,))))


def test_versions_of_the_model_count_the_sites_in_regions() -> None:
    (versions,) = (
        block
        for section in document(REPORT).sections
        for block in section.blocks
        if isinstance(block, doc.Table) and block.title.startswith("Versions")
    )
    assert [doc.plain(row[1]) for row in versions.rows] == ["5", "4"]
    assert doc.plain(versions.rows[1][2]) == next(region.name for region in REPORT.regions if region.key == AROUND)


def test_every_taken_region_has_one_drawing_with_enter_and_exit() -> None:
    for name in ("regions", "regions-alone"):
        report = REPORTS[name]
        page = parse(render(report))
        flows = [figure for figure in page.all("figure") if figure.all("div", "flow")]
        assert len(flows) == len(regions.taken(report))
        for flow in flows:
            edges = [node.text for node in flow.all("span", "edge")]
            assert edges in (["enter to 2-D", "exit back to 1-D"], ["enter to phases 2", "exit out of phases"])
    assert not parse(render(REPORTS["regions-inspected"])).all("div", "flow")


def test_links_to_sites_lead_into_their_region() -> None:
    page = parse(render(REPORT))
    ids = [node.attributes["id"] for node in page.walk() if "id" in node.attributes]
    assert len(set(ids)) == len(ids)
    assert {f"site-{number}" for number in range(1, 7)} | {f"region-{number}" for number in range(1, 4)} <= set(ids)
    targets = {node.attributes["href"][1:] for node in page.all("a") if node.attributes["href"].startswith("#")}
    assert targets <= set(ids)


def test_nodes_of_the_example_are_read_in_order() -> None:
    assert all(read < place for place, node in enumerate(BLOCKS) for read in node.reads)
