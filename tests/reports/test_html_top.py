"""What stands first on the HTML page: date, machine, size, command, doubts, proofs, what next; and the drawing."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from dilrewrite.reports import content
from tests.reports.html_examples import MEASURED
from tests.reports.test_html import ALL, Node, figures, headings, near, parse, plain, render, rows, tiles, tree

NO_KERNEL = "onnxruntime_cpu does not load the original: no kernel for com.example.Magic"


def facts(root: Node) -> dict[str, str]:
    return {node.all("dt")[0].text: node.all("dd")[0].text for node in root.all("dl")[0].all("div")}


def test_date_machine_size_and_command_stand_at_the_top():
    assert facts(tree("charts")) == {
        "date": "2026-01-31 12:34 UTC",
        "machine": "onnxruntime_cpu (onnxruntime 1.24.0), Some Processor 9000, threads 8",
        "size": "image:1x3x224x224, scale:scalar",
        "again": "dilrewrite optimize models/x.onnx --shape x:1x3xHxW --force",
    }
    assert facts(tree("inspected"))["size"] == "image [1, 3, H, W]"
    assert tree("charts").all("header")[0].all("dl")


def test_the_command_is_selected_by_one_click():
    (command,) = tree("charts").all("code", "copy")
    assert command.text.startswith("dilrewrite optimize ")
    assert re.search(r"\.copy \{[^}]*\buser-select: all;", tree("charts").all("style")[0].text)


@pytest.mark.parametrize("name", ALL)
def test_load_and_noise_are_a_banner_before_any_figure(name):
    doubts = content.answer.doubts(ALL[name], noise=True)
    banners = tree(name).all("div", "banner")
    assert [[item.text for item in one.all("li")] for one in banners] == (
        [[plain(d) for d in doubts]] if doubts else []
    )
    if doubts:
        assert banners[0] in tree(name).all("header")[0].content


def test_noise_is_in_the_banner():
    (banner,) = tree("measured-inconclusive").all("div", "banner")
    assert "20 processes wanted a core" in banner.text
    assert "the noise is 52.0 %" in banner.text
    assert not tree("measured").all("div", "banner")


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        ("charts", "Proved✓ 3 of 3bit for bit; equal on 1 input set"),
        ("measured", "Proved✓ 5 of 5bit for bit; equal on 1 input set"),
        ("whole-model-skipped", "Proved2 of 2bit for bit; every form proved, whole model not run: " + NO_KERNEL),
        ("differs", "Proved✗ 1 of 2bit for bit; results differ"),
    ],
)
def test_trust_is_how_many_forms_are_proved(name, tile):
    assert [one for one in tiles(name) if one.startswith("Proved")] == [tile]


def test_what_next_is_a_tile_where_nothing_was_rewritten():
    asked = {name for name in ALL for tile in tree(name).all("div", "tile") if tile.text.startswith("What next")}
    kept = {name for name, report in ALL.items() if report.status in ("kept", "inconclusive")}
    assert asked == {name for name in kept if content.answer.next_steps(ALL[name])}
    (tile,) = (tile for tile in tree("measured-inconclusive").all("div", "tile") if "What next" in tile.text)
    assert tile.text == "What nextmeasure againhow and why, and 3 other steps"
    assert tile.all("a")[0].attributes["href"] == "#what-next"


def test_only_options_that_were_set_are_shown():
    report = replace(
        MEASURED, options={"strategy": None, "budget": 0.0, "seed": 0, "min_gain_percent": 2.0, "only": "a"}
    )
    (section,) = (
        one for one in parse(render(report)).all("section") if one.all("h2")[0].text == "Options that were set"
    )
    assert rows(section)[1:] == [["budget", "0.0"], ["only", '"a"']]
    assert "Options that were set" not in headings("nothing-known")


def test_a_kept_page_has_its_bars():
    kept, other = figures(tree("measured-kept"), "Time of 3 of 10 dilated Convs")[0]
    assert (kept.label, other.label) == ("kept", "fastest other forms")
    sites = [site for site in ALL["measured-kept"].sites if content.sites.was_measured(site)]
    best = [min((c.timing for c in s.candidates if c.timing), key=lambda timing: timing.ratio) for s in sites]
    assert kept.length == pytest.approx(sum(1000 * one.first.median_s for one in best), abs=near(kept.end))
    assert other.length == pytest.approx(sum(1000 * one.second.median_s for one in best), abs=near(other.end))
    versions = figures(tree("measured-no-version-wins"), "whole model")[0]
    assert [row.label for row in versions] == ["kept", "best rewritten version"]


def test_a_rewritten_place_is_drawn_before_and_after():
    before, after = tree("charts").all("svg", "graph")
    assert [node.text for node in before.all("text")] == ["Conv 3x3 d12"]
    assert [node.text for node in after.all("text")] == ["Slice", "4 alike", "Concat", "Conv 3x3", "Reshape"]
    assert [node.attributes["class"] for node in before.all("rect")] == ["dilated"]
    assert [node.attributes["class"] for node in after.all("rect")] == ["frame", "layout", "layout", "conv", "layout"]
    assert after.attributes["aria-label"] == "after: [4 times Slice], then Concat, then Conv 3x3, then Reshape"
    assert "aspp.1 (3x3 d12 s1 g1 256->256 28x28 p12) as space_to_batch. It is one of 3" in tree("charts").text
    assert "2 nodes that only compute sizes are not drawn." in tree("charts").text
    assert len(tree("regions").all("svg", "graph")) == 2
    assert not any(tree(name).all("svg", "graph") for name in ("measured-kept", "differs", "inspected", "bench"))


@pytest.mark.parametrize("name", ["charts", "regions"])
def test_boxes_of_a_drawing_are_inside_and_apart(name):
    for drawing in tree(name).all("svg", "graph"):
        width, height = (float(drawing.attributes[side]) for side in ("width", "height"))
        boxes = [
            tuple(float(node.attributes[key]) for key in ("x", "y", "width", "height")) for node in drawing.all("rect")
        ]
        assert all(x >= 0 and y >= 0 and x + w <= width and y + h <= height for x, y, w, h in boxes)
        plain_boxes = [
            box for box, node in zip(boxes, drawing.all("rect"), strict=True) if node.attributes["class"] != "frame"
        ]
        for i, (x, y, w, h) in enumerate(plain_boxes):
            assert not any(x < a + c and a < x + w and y < b + d and b < y + h for a, b, c, d in plain_boxes[i + 1 :])
