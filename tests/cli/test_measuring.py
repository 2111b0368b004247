"""dilrewrite optimize as it measures: what a report says fits together, whatever the clock says.

No test here asserts that anything is faster or slower; where it matters who wins, the timings are made up.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.choice import tune, whole
from dilrewrite.choice.reason import Reason, not_measured
from dilrewrite.choice.tune import Tuning
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.proof import prove
from dilrewrite.reports import reasons
from dilrewrite.runtimes import CannotRun, backends
from dilrewrite.runtimes._worker import IsolatedBench
from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from dilrewrite.timing import measure
from dilrewrite.timing.measure import Answer, Meter
from dilrewrite.timing.outcome import FormTiming, outcome
from dilrewrite.timing.outcome import Outcome as Became
from dilrewrite.timing.profiling import Profiled, SiteRun
from dilrewrite.timing.speed import speed
from dilrewrite.timing.stopwatch import MARGIN, Comparison, Timing
from tests import models_for_tests as tiny
from tests.choice.test_choose import timed as taking
from tests.models_for_tests import (
    MODELS,
    Outcome,
    build,
    cli,
    conv1d,
    conv_node,
    dilations,
    listing,
    save,
    save_external,
    two_convs,
    values,
)
from tests.mutants import MUTANTS
from tests.words import says, words

pytestmark = [pytest.mark.measures, pytest.mark.usefixtures("in_process", "profiled_in_process")]

Capsys = pytest.CaptureFixture[str]
Make = Callable[[], ModelProto]
Data = dict[str, Any]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Time each form for a moment only, and keep timings for this test alone."""
    tiny.quick(monkeypatch)
    monkeypatch.setattr(tune, "NEGLIGIBLE", -1.0)  # on a busy machine no Conv's share of these models is certain
    monkeypatch.setenv("DILREWRITE_CACHE", str(tmp_path_factory.mktemp("timings") / "timings.sqlite"))


def cache() -> Path:
    return Path(os.environ["DILREWRITE_CACHE"])


def fails(*_: Any, **__: Any) -> Any:
    pytest.fail("something was run")


@pytest.fixture
def _sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured, nor run as a whole."""
    for name in ("profile", "answer", "whole", "worker"):
        monkeypatch.setattr(Meter, name, fails)
    monkeypatch.setattr(OnnxRuntimeCpu, "session", fails)


def optimize(capsys: Capsys, path: Path, *arguments: object) -> Outcome:
    return cli(capsys, "optimize", path, "-o", path.with_name("o.onnx"), "--no-report", "--json", *arguments)


# -- what fits together --------------------------------------------------------------------------------------------


def wins(timing: Data) -> bool:
    return timing["pairs"] >= 6 and timing["high"] < 1 and timing["ratio"] < 1 - max(MARGIN, timing["noise"] or 0)


def ruled_out(timing: Data) -> bool:
    return timing["low"] / (1 + (timing["noise"] or 0)) >= 0.9


def check_timing(timing: Data) -> None:
    assert 0 < timing["low"] <= timing["ratio"] <= timing["high"]
    assert timing["pairs"] >= 6 or timing["pairs"] == 3
    assert timing["mode"] in ("interleaved", "blocks")
    for side in (timing["first"], timing["second"]):
        assert 0 < side["p20_s"] <= side["median_s"] <= side["p80_s"]
        assert side["runs"] == timing["pairs"]


def blind(report: Data) -> bool:
    """A gain of a tenth could have been missed."""
    found = report["measurement"]
    if found is None:
        return False
    noise = found["noise"]
    level = max(noise["high"], 1 / noise["low"]) - 1 if noise is not None else 0.0
    kept = [site for site in report["sites"] if site["action"] == "kept"]
    keys = {site["key"] for site in kept}
    kept += [region for region in report["regions"] if region["action"] == "kept" and keys & {*region["members"]}]
    outcomes = {form["outcome"] for unit in kept for form in unit["candidates"]}
    attempts = [attempt["timing"] for attempt in found["attempts"]]
    missed = any(not wins(timing) and not ruled_out(timing) for timing in attempts)
    unknown = any(timing["noise"] is None for timing in attempts) and found["load"] > len(os.sched_getaffinity(0))
    return "inconclusive" in outcomes or max(level, found["form_noise"] or 0.0) > 0.1 or missed or unknown


def check_forms(site: Data) -> None:
    """Outcomes say what the numbers say."""
    for form in site["candidates"]:
        said, timing = form["outcome"], form["timing"]
        if timing is None:
            assert said in (None, "no time", "not measured", "unproved", "failed", "crashed", "timed out"), said
            continue
        check_timing(timing)
        assert site["question"] is not None
        slower = timing["low"] > 1
        word = "won" if wins(timing) else "inconclusive" if not ruled_out(timing) else "lost" if slower else "tie"
        assert said == ("outrun" if timing["pairs"] < 6 and not slower else word)


def ratios(site: Data) -> dict[str, float]:
    return {form["strategy"]: form["timing"]["ratio"] for form in site["candidates"] if form["timing"] is not None}


def chosen(site: Data) -> Data:
    found = next(form for form in site["candidates"] if form["strategy"] == site["strategy"])
    assert isinstance(found, dict)
    return found


UNTIMED = (Became.NO_TIME, Became.NOT_MEASURED, Became.FAILED, Became.UNPROVED)
"""What became of the forms of a site that none was timed of."""


def check_default(report: Data, site: Data) -> None:
    """A Conv goes only where its form won, there and in the whole model; otherwise the reason is in the numbers."""
    reason = site["reason"]
    timed = [form["timing"] for form in site["candidates"] if form["timing"] is not None]
    best = min(timed, key=lambda timing: timing["ratio"], default=None)
    if site["action"] == "rewritten":
        assert wins(chosen(site)["timing"])
        assert report["measurement"]["final"]["high"] < 1
        assert chosen(site)["timing"]["ratio"] == best["ratio"]
        assert says(reason, Reason.TIMED)
        assert speed(best["ratio"]) in reason
    elif best is None:
        untimed = tuple(reasons.OUTCOMES[became] for became in UNTIMED)
        unasked = any(says(reason, kind) for kind in (Reason.NOT_MEASURED, Reason.CANNOT_MATTER))
        assert unasked or reason.startswith(untimed), reason
    elif wins(best):
        assert any(says(reason, kind) for kind in (Reason.NOT_CONFIRMED, Reason.VERSION_FAILED)), reason
        assert not any(attempt["timing"]["high"] < 1 for attempt in report["measurement"]["attempts"][:1])
    elif best["low"] > 1:
        assert says(reason, Reason.SLOWER)
        assert speed(best["ratio"]) in reason
    else:
        assert says(reason, Reason.TIE)


def check_eliminated(site: Data) -> None:
    """The form with the lowest ratio among those that were timed, leave no dilation, and come first.

    A region is held against its Convs, each in a form of its own, and leaves no dilation either.
    """
    assert site["action"] == "rewritten"
    assert site["max_dilation_left"] == 1
    assert site["proof"]["failure"] is None
    if "geometry" not in site:
        return
    timed = ratios(site)
    last = {"zero_fill", *(["space_to_axis"] if len(site["geometry"]["kernel"]) == 2 else [])}
    if timed:
        assert site["strategy"] == min(timed, key=lambda name: (name in last, timed[name]))
    else:
        assert says(site["reason"], Reason.ESTIMATED)


def units(report: Data) -> list[Data]:
    """What is decided about: regions that are rewritten, and the sites that go with none of them."""
    regions = [region for region in report["regions"] if region["action"] == "rewritten"]
    alone = [site for site in report["sites"] if site["region"] is None]
    inside = {key for region in regions for key in region["members"]}
    assert inside == {site["key"] for site in report["sites"]} - {site["key"] for site in alone}
    return alone + regions


def check_report(report: Data, path: Path, written: Path) -> None:
    """Everything that one part of a measured report says of another."""
    found = report["measurement"]
    assert found["backend"] == "onnxruntime_cpu"
    assert all(found[what] for what in ("device", "settings", "versions"))
    assert found["inputs"].keys() == {value.name for value in onnx.load(path).graph.input}
    assert 0 <= found["floor_s"] <= found["spent_s"] + 0.01
    assert found["profiled_s"] > 0
    assert sum(site["share"] or 0 for site in report["sites"]) <= 1.02
    numbers: dict[int, list[Data]] = {}
    for site in report["sites"]:
        assert site["share"] is None or 0 <= site["share"] <= 1
        assert site["ran"], "every Conv of these models runs"
        check_forms(site)
        if site["question"] is not None:
            numbers.setdefault(site["question"], []).append(site)
        if site["action"] == "kept":
            assert site["predicted_gain"] is None
    assert sorted(numbers) == list(range(1, len(numbers) + 1))
    for group in numbers.values():
        for site in group[1:]:
            assert site["geometry"] == group[0]["geometry"]
            assert site["candidates"] == group[0]["candidates"]
    for attempt in found["attempts"]:
        check_timing(attempt["timing"])
        assert set(attempt["sites"]) <= {unit["key"] for unit in (*report["sites"], *report["regions"])}
    if report["status"] == "rewritten":
        check_timing(found["final"])
        assert found["final"] in [attempt["timing"] for attempt in found["attempts"]]
        done = {unit["key"] for unit in units(report) if unit["action"] == "rewritten"}
        assert done in [set(attempt["sites"]) for attempt in found["attempts"]]
        assert report["verdict"]["passed"]
        assert sorted(dilations(written)) <= sorted(dilations(path))
    else:
        assert report["status"] == ("inconclusive" if blind(report) else "kept")
        assert found["final"] is None
        assert written.read_bytes() == path.read_bytes()


MODES: dict[str, tuple[str, ...]] = {
    "default": (),
    "eliminate": ("--eliminate",),
    "strategy": ("--strategy", "im2col"),
}


def check_mode(report: Data, mode: str) -> None:
    for site in units(report):
        if mode == "default":
            check_default(report, site)
        elif mode == "eliminate":
            check_eliminated(site)
        else:
            done = (site["action"], site["strategy"], site["reason"])
            assert done == ("rewritten", "im2col", words(Reason.FORCED))
            assert ratios(site) == {}, "nothing depends on how the forms do"
            assert site["question"] is None


@pytest.mark.parametrize("mode", MODES)
def test_a_report_fits_together(capsys: Capsys, tmp_path: Path, mode: str) -> None:
    path = save(tiny.aspp(channels=16), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--budget", 3, *MODES[mode])
    assert (outcome.code, outcome.err) == (0, "")
    check_report(outcome.report, path, tmp_path / "o.onnx")
    check_mode(outcome.report, mode)
    found = outcome.report["measurement"]
    assert found["measured"] > 0
    assert found["recalled"] == 0
    if mode != "strategy":
        assert all(any(form["outcome"] for form in site["candidates"]) for site in outcome.report["sites"])


@pytest.mark.parametrize("name", ["aspp_segmentation", "causal_tcn"])
def test_demo_models(capsys: Capsys, tmp_path: Path, name: str) -> None:
    """Each site has an answer that the numbers bear out, and what is kept keeps its bytes."""
    path = MODELS / f"{name}.onnx"
    written = tmp_path / "o.onnx"
    outcome = cli(capsys, "optimize", path, "-o", written, "--budget", 3, "--no-report", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    check_report(outcome.report, path, written)
    check_mode(outcome.report, "default")
    assert all(site["reason"] for site in outcome.report["sites"])
    assert any(site["share"] for site in outcome.report["sites"])
    chosen_by_the_tool = outcome.report["measurement"]["made_up"]
    assert chosen_by_the_tool is (name == "causal_tcn")


def looped() -> ModelProto:
    """A Conv in a Loop's body, one before it, and one in a function."""
    body = helper.make_graph(
        [conv_node("a", "b", dilations=[3], pads=[3, 3]), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 2, 64]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("b", TensorProto.FLOAT, [1, 2, 64]),
        ],
    )
    weight = onnx.numpy_helper.from_array(values(2, 2, 3, seed=41))
    function = helper.make_function(
        "local",
        "Atrous",
        ["a"],
        ["c"],
        [
            helper.make_node("Constant", [], ["b"], value=weight),
            conv_node("a", "c", "b", dilations=[4], pads=[4, 4]),
        ],
        [helper.make_opsetid("", 17)],
    )
    return build(
        [
            conv_node("x", "c"),
            helper.make_node("Loop", ["times", "", "c"], ["d"], body=body),
            helper.make_node("Atrous", ["d"], ["y"], domain="local"),
        ],
        {"x": [1, 2, 64], "times": []},
        {"y": [1, 2, 64]},
        {"w": values(2, 2, 3, seed=40)},
        types={"times": TensorProto.INT64},
        domains=["local"],
        functions=[function],
    )


OTHERS: dict[str, Make] = {
    "subgraphs and functions": looped,
    "SAME pads": lambda: tiny.same_upper(length=64),
    "unknown sizes": lambda: conv1d(batch="batch", length="time"),
    "quantised": tiny.quantized,
    "no name": tiny.unnamed_nodes,
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models(capsys: Capsys, tmp_path: Path, name: str) -> None:
    path = save(OTHERS[name](), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--eliminate", "--budget", 2)
    assert (outcome.code, outcome.err) == (0, "")
    report = outcome.report
    check_mode(report, "eliminate")
    assert report["rewritten"] == len(report["sites"])
    assert report["measurement"]["final"] is not None
    for site in report["sites"]:
        check_forms(site)
        assert any(form["outcome"] for form in site["candidates"])
    assert report["measurement"]["made_up"] is (name == "unknown sizes")
    if name == "unknown sizes":
        (site,) = report["sites"]
        assert site["ran"] == [report["measurement"]["inputs"]["x"]]
        assert None not in site["ran"][0]


def test_external_data(capsys: Capsys, tmp_path: Path) -> None:
    path = save_external(conv1d(channels=8, length=64), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--eliminate", "--budget", 2)
    assert outcome.code == 0
    assert outcome.report["measurement"]["final"] is not None
    check_mode(outcome.report, "eliminate")


def test_given_shapes_are_timed(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(batch="batch", length="time"), tmp_path / "m.onnx")
    report = optimize(capsys, path, "--shape", "x:3x2x17", "--budget", 1).report
    assert report["measurement"]["inputs"] == {"x": [3, 2, 17]}
    assert report["sites"][0]["ran"] == [[3, 2, 17]]
    assert not report["measurement"]["made_up"]


# -- made-up timings -----------------------------------------------------------------------------------------------


def made_up(ratio: float) -> Comparison:
    def timing(seconds: float) -> Timing:
        return Timing(median_s=seconds, p20_s=0.9 * seconds, p80_s=1.1 * seconds, runs=20)

    return Comparison(
        first=timing(0.01),
        second=timing(0.01 * ratio),
        ratio=ratio,
        low=0.98 * ratio,
        high=min(1.02 * ratio, (1 + ratio) / 2) if ratio < 1 else 1.02 * ratio,
        pairs=20,
        noise=0.004,
        mode="interleaved",
    )


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Give every form and every whole model the ratio that is asked for; nothing is timed."""

    def patch(forms: Mapping[str, float], whole: Callable[[set[int]], float]) -> None:
        """`whole` is given the dilations that are left in a version of the model."""

        def profile(_: Meter, __: Any, ___: str, sites: Sequence[Any], ____: Any) -> Profiled:
            runs = {
                s.key: SiteRun(share=0.4, shapes=((1, s.geometry.in_channels, *s.geometry.extents),), times=1)
                for s in sites
                if isinstance(s.meaning, ConvGeometry)
            }
            return Profiled(seconds=0.02, sites=runs, tensors={})

        def answer(_: Meter, __: Any, ___: Any, given: Sequence[measure.Form], *____: Any, **_____: Any) -> Answer:
            found = {}
            for form in given:
                reason = form.prove()
                comparison = made_up(forms.get(form.strategy, 2.0))
                found[form.strategy] = (
                    FormTiming(outcome=outcome(comparison), timing=comparison)
                    if reason is None
                    else FormTiming(outcome=Became.UNPROVED, cause=reason)
                )
            return Answer(forms=found)

        def timed(_: Meter, __: Any, after: Any, *___: Any, **____: Any) -> Comparison:
            model = onnx.ModelProto.FromString(after.model)
            left = {
                attribute.ints[0]
                for node in model.graph.node
                for attribute in node.attribute
                if attribute.name == "dilations" and max(attribute.ints) > 1
            }
            return made_up(whole(left))

        monkeypatch.setattr(Meter, "profile", profile)
        monkeypatch.setattr(Meter, "answer", answer)
        monkeypatch.setattr(Meter, "whole", timed)

    return patch


def test_what_wins_everywhere_is_taken(capsys: Capsys, tmp_path: Path, pretend: Callable[..., None]) -> None:
    pretend({"im2col": 0.5, "space_to_batch": 0.7}, lambda left: 0.6 if not left else 1.0)
    path = save(two_convs(), tmp_path / "m.onnx")
    report = optimize(capsys, path).report
    assert (report["status"], report["rewritten"]) == ("rewritten", 2)
    for site in report["sites"]:
        assert site["strategy"] == "im2col"
        assert site["reason"] == words(Reason.TIMED, timing=taking(0.5).timing)
        assert site["predicted_gain"] is not None
    found = report["measurement"]
    assert found["final"]["ratio"] == 0.6
    assert [set(attempt["sites"]) for attempt in found["attempts"]] == [{"main/a", "main/y"}]
    assert found["predicted_ratio"] == pytest.approx(1 - sum(site["predicted_gain"] for site in report["sites"]))
    check_report(
        report | {"sites": [s | {"ran": s["ran"] or [[1]]} for s in report["sites"]]}, path, tmp_path / "o.onnx"
    )


def test_what_wins_alone_and_not_in_the_model_stays(
    capsys: Capsys, tmp_path: Path, pretend: Callable[..., None]
) -> None:
    pretend({"im2col": 0.5}, lambda _: 1.04)
    path = save(two_convs(), tmp_path / "m.onnx")
    report = optimize(capsys, path).report
    assert (report["status"], report["rewritten"]) == ("kept", 0)
    assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()
    for site in report["sites"]:
        here, whole = taking(0.5).timing, taking(1.04, 1.02, 1.06).timing
        assert site["reason"] == words(Reason.NOT_CONFIRMED, strategy="im2col", timing=here, whole=whole)
        assert site["predicted_gain"] is None
    found = report["measurement"]
    assert found["final"] is found["predicted_ratio"] is None
    assert [set(a["sites"]) for a in found["attempts"]] == [{"main/a", "main/y"}, {"main/a"}, {"main/y"}]


@pytest.mark.parametrize(
    ("whole", "options", "taken"),
    [
        (0.975, (), True),
        (0.9, ("--min-gain", 9.5), True),
        (0.9, ("--min-gain", 12), False),
        (0.975, ("--min-gain", 3), False),
    ],
)
def test_the_least_gain_that_is_worth_it(
    capsys: Capsys, tmp_path: Path, pretend: Callable[..., None], whole: float, options: tuple[object, ...], taken: bool
) -> None:
    pretend({"im2col": 0.5}, lambda _: whole)
    path = save(conv1d(), tmp_path / "m.onnx")
    report = optimize(capsys, path, *options).report
    assert report["status"] == ("rewritten" if taken else "kept")
    assert report["measurement"]["min_gain"] == pytest.approx(options[1] / 100 if options else MARGIN)


@pytest.mark.parametrize("percent", ["-1", "100", "nan", "much"])
@pytest.mark.usefixtures("_sealed")
def test_gains_that_are_none(capsys: Capsys, tmp_path: Path, percent: str) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, f"--min-gain={percent}")
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert "--min-gain" in outcome.err


def test_one_of_two_winners_is_taken(capsys: Capsys, tmp_path: Path, pretend: Callable[..., None]) -> None:
    """Together they are no better than the original; the one with dilation 4 alone is."""
    pretend({"im2col": 0.5}, lambda left: 0.8 if left == {2} else 1.0)
    path = save(two_convs(first=2, second=4), tmp_path / "m.onnx")
    report = optimize(capsys, path).report
    assert [(site["name"], site["action"]) for site in report["sites"]] == [("early", "kept"), ("late", "rewritten")]
    assert "but the whole model is not faster with it" in report["sites"][0]["reason"]
    assert report["measurement"]["final"]["ratio"] == 0.8
    assert dilations(tmp_path / "o.onnx") == [2, 1]


def test_a_whole_model_that_fails_is_not_taken(capsys: Capsys, tmp_path: Path, pretend: Callable[..., None]) -> None:
    def breaks(_: set[int]) -> float:
        raise CannotRun("no memory for that")

    pretend({"im2col": 0.5}, breaks)
    path = save(conv1d(), tmp_path / "m.onnx")
    report = optimize(capsys, path).report
    assert report["status"] == "kept"
    assert "but the whole model failed: no memory for that" in report["sites"][0]["reason"]
    assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("options", [("--eliminate",), ("--strategy", "im2col")], ids=" ".join)
def test_what_has_to_go_goes_and_its_cost_is_told(
    capsys: Capsys, tmp_path: Path, pretend: Callable[..., None], options: tuple[str, ...]
) -> None:
    pretend({"im2col": 1.3}, lambda _: 1.2)
    path = save(two_convs(), tmp_path / "m.onnx")
    report = optimize(capsys, path, *options).report
    assert (report["status"], report["rewritten"]) == ("rewritten", 2)
    assert {site["strategy"] for site in report["sites"]} == {"im2col"}
    assert report["measurement"]["final"]["ratio"] == 1.2
    if options == ("--eliminate",):
        assert all(says(site["reason"], Reason.FASTEST) and "1.30x" in site["reason"] for site in report["sites"])
        assert all(site["predicted_gain"] < 0 for site in report["sites"])


def test_a_whole_model_that_fails_does_not_keep_dilation(
    capsys: Capsys, tmp_path: Path, pretend: Callable[..., None]
) -> None:
    def breaks(_: set[int]) -> float:
        raise CannotRun("no memory for that")

    pretend({"im2col": 0.5}, breaks)
    report = optimize(capsys, save(conv1d(), tmp_path / "m.onnx"), "--eliminate").report
    assert (report["status"], report["measurement"]["final"]) == ("rewritten", None)
    assert any("no memory for that" in note for note in report["notes"])


def test_a_rough_form_gives_way_to_the_next(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretend: Callable[..., None]
) -> None:
    """The fastest would be im2col, which is not proved: it is not even timed, and the report names it."""
    real = prove.Prover.prove

    def rough(self: Any, source: Any, site: Any, fragment: Any) -> Any:
        proof = real(self, source, site, fragment)
        return prove.replace(proof, failure="rounding: much") if fragment.strategy == "im2col" else proof

    monkeypatch.setattr(prove.Prover, "prove", rough)
    pretend({"im2col": 0.4, "space_to_batch": 0.5}, lambda _: 0.6)
    path = save(conv1d(), tmp_path / "m.onnx")
    for options in ((), ("--eliminate",)):
        (site,) = optimize(capsys, path, "--force", *options).report["sites"]
        assert (site["action"], site["strategy"]) == ("rewritten", "space_to_batch")
        assert words(Reason.UNPROVED, strategy="im2col", said="rounding: much") in site["reason"]
        assert {"strategy": "im2col", "reason": "rounding: much"} in site["refused"]
        said = {form["strategy"]: (form["outcome"], form["cause"]) for form in site["candidates"]}
        assert said["im2col"] == ("unproved", "rounding: much")


def test_decisions_of_a_measurement_are_replayed_without_one(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretend: Callable[..., None]
) -> None:
    pretend({"im2col": 0.5}, lambda left: 0.8 if left == {2} else 1.0)
    path = save(two_convs(), tmp_path / "m.onnx")
    kept = tmp_path / "d.json"
    first = optimize(capsys, path, "--save-decisions", kept).report
    one = (tmp_path / "o.onnx").read_bytes()
    data = json.loads(kept.read_text())
    assert [site["strategy"] for site in data["sites"]] == ["keep", "im2col"]
    made_on, found = data["made_on"], first["measurement"]
    for name in ("backend", "device", "versions", "settings", "inputs"):
        assert made_on[name] == found[name]
    for name in ("Meter", "Tuning", "Device"):
        monkeypatch.setattr(whole, name, fails)
    again = optimize(capsys, path, "--decisions", kept, "--force").report
    assert (tmp_path / "o.onnx").read_bytes() == one
    assert again["measurement"] is None
    assert [site["strategy"] for site in again["sites"]] == [site["strategy"] for site in first["sites"]]


def test_what_differs_after_measuring(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretend: Callable[..., None]
) -> None:
    """A fast model that computes something else: no model, no decisions, a report."""

    def double(graph: onnx.GraphProto) -> None:
        tensor = graph.initializer[0]
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))

    tiny.spoil(monkeypatch, double)
    pretend({"im2col": 0.5}, lambda _: 0.6)
    path = save(conv1d(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    outcome = optimize(capsys, path, "--save-decisions", tmp_path / "d.json")
    assert (outcome.code, outcome.report["status"]) == (3, "differs")
    assert listing(tmp_path) == before


# -- the budget ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_sealed")
def test_no_budget_measures_nothing(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "Tuning", fails)
    path = save(two_convs(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--budget", 0)
    assert (outcome.code, outcome.report["status"], outcome.report["measurement"]) == (0, "kept", None)
    assert [site["reason"] for site in outcome.report["sites"]] == [words(Reason.NOT_MEASURED, Reason.NO_BUDGET)] * 2
    assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()
    assert not cache().exists()


def test_no_budget_eliminates_by_estimate(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "Tuning", fails)
    path = save(two_convs(), tmp_path / "m.onnx")
    report = optimize(capsys, path, "--budget", 0, "--eliminate").report
    assert report["rewritten"] == 2
    reason = words(Reason.ESTIMATED, not_measured(Reason.NO_BUDGET))
    assert {site["reason"] for site in report["sites"]} == {reason}


@pytest.mark.parametrize("mode", ["default", "eliminate"])
def test_hardly_any_budget(capsys: Capsys, tmp_path: Path, mode: str) -> None:
    """What the budget does not reach is kept; a result that stands in any case is timed at the least."""
    path = save(two_convs(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--budget", 0.001, *MODES[mode])
    assert outcome.code == 0
    report = outcome.report
    check_report(report, path, tmp_path / "o.onnx")
    check_mode(report, mode)
    for site in report["sites"]:
        unreached = (words(Reason.NOT_MEASURED, Reason.BUDGET), reasons.OUTCOMES[Became.NO_TIME])
        assert site["reason"].endswith(unreached)
        assert ratios(site) == {}
        assert {form["outcome"] for form in site["candidates"]} == {None, "no time"}
    assert (report["measurement"]["final"] is None) is (mode == "default")


@pytest.mark.parametrize("command", ["optimize", "bench"])
@pytest.mark.parametrize("budget", ["-1", "-0.001", "nan", "inf", "-inf", "much", ""])
@pytest.mark.usefixtures("_sealed")
def test_budgets_that_are_none(capsys: Capsys, tmp_path: Path, command: str, budget: str) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, command, path, f"--budget={budget}")
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert "--budget" in outcome.err
    assert list(listing(tmp_path)) == ["m.onnx"]
    with pytest.raises(dilrewrite.UsageError, match="budget"):
        dilrewrite.optimize(path, budget=float("nan"))


# -- the cache -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_second_run_measures_nothing_anew(capsys: Capsys, tmp_path: Path, mode: str) -> None:
    path = save(conv1d(length=64), tmp_path / "m.onnx")
    where = tmp_path / "sub" / "timings.sqlite"
    first = optimize(capsys, path, "--cache", where, "--budget", 20, *MODES[mode])
    one = (tmp_path / "o.onnx").read_bytes()
    assert where.is_file()
    assert not cache().exists()
    second = optimize(capsys, path, "--cache", where, "--budget", 20, "--force", *MODES[mode])
    assert first.code == second.code == 0
    a, b = first.report["measurement"], second.report["measurement"]
    assert a["measured"] > 0
    assert (a["recalled"], b["measured"], b["recalled"]) == (0, 0, a["measured"])
    assert (tmp_path / "o.onnx").read_bytes() == one
    assert first.report["sites"] == second.report["sites"]
    assert mode == "strategy" or ratios(first.report["sites"][0])
    assert a["attempts"] == b["attempts"]
    assert a["final"] == b["final"]


def test_what_the_cache_goes_by(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads, another size, another version of the runtime: nothing is recalled. The place and name: all is."""
    path = save(conv1d(batch="batch", length=64), tmp_path / "m.onnx")

    def counts(*options: object, at: Path = path) -> tuple[bool, bool]:
        found = optimize(capsys, at, "--strategy", "im2col", "--budget", 0.2, "--force", *options).report["measurement"]
        return found["measured"] > 0, found["recalled"] > 0

    assert counts() == (True, False)
    assert counts() == (False, True)
    assert counts("--threads", 1) == (True, False)
    assert counts("--shape", "x:2x2x64") == (True, False)
    (tmp_path / "elsewhere").mkdir()
    assert counts(at=save(conv1d(batch="batch", length=64), tmp_path / "elsewhere" / "other.onnx")) == (False, True)
    monkeypatch.setattr(OnnxRuntimeCpu, "versions", lambda _: {"onnxruntime": "0.0.1"})
    assert counts() == (True, False)


def test_no_cache(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    found = optimize(capsys, path, "--no-cache", "--budget", 0.3).report["measurement"]
    assert found["measured"] > 0
    assert not cache().exists()
    assert sorted(listing(tmp_path)) == ["m.onnx", "o.onnx"]


def at_the_model(folder: Path) -> list[object]:
    return ["--cache", folder / "m.onnx"]


def at_the_output(folder: Path) -> list[object]:
    return ["--cache", folder / "o.onnx"]


def at_the_output_spelled_otherwise(folder: Path) -> list[object]:
    return ["--cache", folder / "sub" / ".." / "o.onnx"]


def behind_a_link(folder: Path) -> list[object]:
    (folder / "link.sqlite").symlink_to(folder / "m.onnx")
    return ["--cache", folder / "link.sqlite"]


def at_a_text(folder: Path) -> list[object]:
    (folder / "notes.txt").write_text("do not touch\n")
    return ["--cache", folder / "notes.txt"]


def at_a_short_text(folder: Path) -> list[object]:
    (folder / "n").write_text("!")
    return ["--cache", folder / "n"]


def twice(folder: Path) -> list[object]:
    return ["--cache", folder / "t.sqlite", "--no-cache"]


@pytest.mark.parametrize(
    "options",
    [
        at_the_model,
        at_the_output,
        at_the_output_spelled_otherwise,
        behind_a_link,
        at_a_text,
        at_a_short_text,
        twice,
    ],
    ids=lambda value: value.__name__,
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["", "dry run"])
@pytest.mark.usefixtures("_sealed")
def test_places_that_are_no_cache(
    capsys: Capsys, tmp_path: Path, options: Callable[[Path], list[object]], more: tuple[str, ...]
) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    (tmp_path / "sub").mkdir()
    arguments = options(tmp_path)
    before = listing(tmp_path)
    if more and options in (at_the_output, at_the_output_spelled_otherwise, behind_a_link):
        return  # a dry run writes neither there
    outcome = optimize(capsys, path, *arguments, *more)
    assert (outcome.code, outcome.out) == (2, "")
    assert "--cache" in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert listing(tmp_path) == before


def test_a_damaged_cache_is_set_aside(capsys: Capsys, tmp_path: Path) -> None:
    path, where = save(conv1d(), tmp_path / "m.onnx"), tmp_path / "t.sqlite"
    garbage = np.random.default_rng(0).bytes(5000)
    where.write_bytes(garbage)
    outcome = optimize(capsys, path, "--cache", where, "--strategy", "im2col", "--budget", 0.2)
    assert (outcome.code, outcome.report["status"]) == (0, "rewritten")
    (note,) = [note for note in outcome.report["notes"] if "t.sqlite" in note]
    assert "is damaged" in note
    (aside,) = tmp_path.glob("t.sqlite.damaged-*")
    assert aside.read_bytes() == garbage
    again = optimize(capsys, path, "--cache", where, "--strategy", "im2col", "--budget", 0.2, "--force").report
    assert (again["measurement"]["measured"], again["notes"]) == (0, [])


def test_a_cache_that_cannot_be_written_is_a_note(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    (tmp_path / "t.sqlite").mkdir()
    outcome = optimize(capsys, path, "--cache", tmp_path / "t.sqlite", "--strategy", "im2col", "--budget", 0.2)
    assert outcome.code == 0
    (note,) = outcome.report["notes"]
    assert "t.sqlite cannot be used" in note
    assert "for this run only" in note


# -- backends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("optimize",), ("bench",), ("inspect", "--profile")], ids=lambda c: c[0])
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("magic", 2, ["no backend 'magic'", "onnxruntime_cpu"]),
        ("reference", 2, ["backend reference times nothing", "onnxruntime_cpu"]),
        ("", 2, ["backend"]),
    ],
)
@pytest.mark.usefixtures("_sealed")
def test_backends_that_are_none(
    capsys: Capsys, tmp_path: Path, command: tuple[str, ...], name: str, code: int, words: list[str]
) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, *command, path, "--backend", name)
    assert (outcome.code, outcome.out) == (code, "")
    assert len(outcome.err.splitlines()) == 1
    for word in words:
        assert word in outcome.err
    assert list(listing(tmp_path)) == ["m.onnx"]


@pytest.mark.parametrize("command", [("optimize",), ("bench",), ("inspect", "--profile")], ids=lambda c: c[0])
@pytest.mark.parametrize("name", ["auto", "onnxruntime_cpu", "onnxruntime_cuda"])
@pytest.mark.usefixtures("_sealed")
def test_backends_that_are_not_installed(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], name: str
) -> None:
    tiny.uninstalled(monkeypatch, "onnxruntime")
    assert all(backends()[known].missing() for known in ("onnxruntime_cpu", "onnxruntime_cuda"))
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, *command, path, "--backend", name)
    assert (outcome.code, outcome.out) == (4, "")
    assert len(outcome.err.splitlines()) == 1
    assert "pip install" in outcome.err
    assert list(listing(tmp_path)) == ["m.onnx"]


# -- dry runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_dry_run_measures_nothing(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    for name in ("start", "measure", "confirm", "compare"):
        monkeypatch.setattr(Tuning, name, fails)
    path = save(two_convs(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    outcome = cli(capsys, "optimize", path, "--dry-run", "--budget", 30, "--json", *MODES[mode])
    assert (outcome.code, outcome.err) == (0, "")
    report = outcome.report
    found = report["measurement"]
    assert (found["measured"], found["recalled"], found["final"], found["profiled_s"]) == (0, 0, None, None)
    assert 0 < found["estimated_s"] <= found["budget_s"] == 30
    assert report["output"] is None
    assert listing(tmp_path) == before
    assert not cache().exists()
    for site in report["sites"]:
        planned = [form["strategy"] for form in site["candidates"] if form["outcome"] == "planned"]
        assert bool(planned) is (mode != "strategy")
        if planned:
            assert words(Reason.PLANNED, number=len(planned)) in site["reason"]
            assert "keep" not in planned
    shown = cli(capsys, "optimize", path, "--dry-run", "--budget", 30, *MODES[mode])
    said = " ".join(shown.out.partition("\n\n")[0].split())
    assert f"{found['estimated_s']:.3g}"[:3] in said
    assert "dry run: nothing written" in said


@pytest.mark.usefixtures("_sealed")
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--skip", "."), words(Reason.SKIPPED)),
        (("--eliminate", "--max-dilation", "4"), words(Reason.SMALL_DILATION, number=4)),
        (("--strategy", "keep"), words(Reason.FORCED)),
        (("--strategy", "tap_prune"), "tap_prune refuses"),
    ],
)
def test_a_dry_run_with_nothing_to_measure(
    capsys: Capsys, tmp_path: Path, options: tuple[str, ...], reason: str
) -> None:
    """It says why the Convs are kept, and not how long anything would take."""
    path = save(two_convs(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--dry-run", *options)
    assert (outcome.code, outcome.report["status"], outcome.report["measurement"]) == (0, "kept", None)
    assert all(reason in site["reason"] for site in outcome.report["sites"])
    assert reason in " ".join(cli(capsys, "optimize", path, "--dry-run", *options).out.partition("\n\n")[0].split())


@pytest.mark.usefixtures("_sealed")
def test_a_dry_run_without_budget(capsys: Capsys, tmp_path: Path) -> None:
    path = save(two_convs(), tmp_path / "m.onnx")
    report = optimize(capsys, path, "--dry-run", "--budget", 0).report
    assert report["measurement"] is None
    assert {site["reason"] for site in report["sites"]} == {words(Reason.NOT_MEASURED, Reason.NO_BUDGET)}


# -- what cannot be measured ---------------------------------------------------------------------------------------


def test_a_form_that_kills_its_process(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded, the next form has a process of its own, and the run goes on to a normal end."""
    crashing: dict[int, bool] = {}
    add, run = IsolatedBench.add, IsolatedBench.run

    def marking(self: IsolatedBench, key: str, artifact: Any, feeds: Any) -> None:
        if key == "form":
            nodes = onnx.ModelProto.FromString(artifact.content()[0]).graph.node
            crashing[id(self)] = any(node.op_type == "Transpose" for node in nodes)
        add(self, key, artifact, feeds)

    def crash(self: IsolatedBench, order: Sequence[str]) -> list[float]:
        if "form" in order and crashing.get(id(self)):
            os.kill(self._child.process.pid, signal.SIGSEGV)
        return run(self, order)

    monkeypatch.setattr(IsolatedBench, "add", marking)
    monkeypatch.setattr(IsolatedBench, "run", crash)
    path = save(conv1d(length=64), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--eliminate", "--budget", 20)
    assert (outcome.code, outcome.err) == (0, "")
    (site,) = outcome.report["sites"]
    check_eliminated(site)
    said = {form["strategy"]: form["outcome"] for form in site["candidates"]}
    assert said["space_to_batch"] == "crashed"
    assert "the process was killed by SIGSEGV" in [form["cause"] for form in site["candidates"]]
    assert "space_to_batch" not in ratios(site)
    assert len(ratios(site)) >= 2, "others were timed before and after"
    order = [form["strategy"] for form in site["candidates"] if form["outcome"]]
    after = order[order.index("space_to_batch") + 1 :]
    assert any(said[name] in ("won", "lost", "tie", "inconclusive", "outrun") for name in after)
    again = optimize(capsys, path, "--eliminate", "--budget", 20, "--force").report
    assert again["measurement"]["measured"] == 0, "what killed a process once is not tried again on the same runtime"
    assert again["sites"] == outcome.report["sites"]


def test_a_wrong_form_is_not_taken(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is proved when it is faster, and then it is not kept quiet."""
    monkeypatch.setattr(measure, "outcome", lambda _: Became.WON)
    path = save(tiny.conv2d(), tmp_path / "m.onnx")
    with MUTANTS["taps_to_inputs_channel_major"]():
        outcome = optimize(capsys, path, "--budget", 20)
    report = outcome.report
    assert (outcome.code, report["status"], report["output"]) == (3, "differs", None)
    assert not (tmp_path / "m.dilrewrite.onnx").exists()
    said = {form["strategy"]: form for form in report["sites"][0]["candidates"]}
    assert said["im2col"]["outcome"] == "unproved"
    assert said["im2col"]["timing"] is None
    assert report["sites"][0]["strategy"] != "im2col"


@pytest.mark.parametrize("mode", MODES)
def test_a_model_that_does_not_run_here(capsys: Capsys, tmp_path: Path, mode: str) -> None:
    path = save(tiny.custom_operator(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--budget", 2, *MODES[mode])
    assert (outcome.code, outcome.err) == (0, "")
    report = outcome.report
    (site,) = report["sites"]
    assert any(says(note, Reason.MODEL_FAILED) and "Mystery" in note for note in report["notes"])
    assert (report["measurement"]["final"], report["measurement"]["measured"]) == (None, 0)
    if mode == "default":
        assert report["status"] == "kept"
        assert says(site["reason"], Reason.NOT_MEASURED, Reason.MODEL_FAILED)
        assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()
    else:
        assert report["status"] == "rewritten"
        unmeasured = says(site["reason"], Reason.ESTIMATED, Reason.NOT_MEASURED, Reason.MODEL_FAILED)
        assert mode == "strategy" or unmeasured


@pytest.mark.parametrize("mode", MODES)
def test_no_random_data_will_do(capsys: Capsys, tmp_path: Path, mode: str) -> None:
    path = save(tiny.gather(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--budget", 1, *MODES[mode])
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert "'index'" in outcome.err
    assert "--inputs" in outcome.err
    assert list(listing(tmp_path)) == ["m.onnx"]


@pytest.mark.parametrize("mode", MODES)
def test_no_random_data_and_nothing_to_run_as_a_whole(capsys: Capsys, tmp_path: Path, mode: str) -> None:
    """--verify sites asks for no data; then the want of them stops the measuring only."""
    path = save(tiny.gather(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--budget", 1, "--verify", "sites", *MODES[mode])
    assert (outcome.code, outcome.err) == (0, "")
    report = outcome.report
    assert report["status"] == ("kept" if mode == "default" else "rewritten")
    assert any("'index'" in note and "--inputs" in note for note in report["notes"])
    if mode == "default":
        assert says(report["sites"][0]["reason"], Reason.NOT_MEASURED)


def test_given_data(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.gather(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", index=np.array([0]), x=values(1, 2, 16))
    outcome = optimize(capsys, path, "--budget", 1, "--inputs", tmp_path / "data.npz")
    assert outcome.code == 0
    check_report(outcome.report, path, tmp_path / "o.onnx")
    assert outcome.report["measurement"]["inputs"] == {"x": [1, 2, 16], "index": [1]}


# -- interrupts ----------------------------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
@pytest.mark.parametrize("group", [True, False], ids=["a terminal's Ctrl-C", "the parent alone"])
def test_interrupt_while_measuring(tmp_path: Path, group: bool) -> None:
    """Its cache has the profile: forms are being timed. Nothing is written, and no process is left."""
    out = tmp_path / "out"
    out.mkdir()
    model, cached = MODELS / "causal_tcn.onnx", tmp_path / "t.sqlite"
    command = [sys.executable, "-m", "dilrewrite", "optimize", model, "-o", out / "o.onnx"]
    process = subprocess.Popen(
        [*command, "--cache", cached, "--budget", "60", "--threads", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        pids: list[int] = []
        while not (pids and cached.exists()):
            assert process.poll() is None, "the command ended too early"
            assert time.monotonic() < deadline, "nothing happened"
            time.sleep(0.02)
            pids = children(process.pid)
        time.sleep(0.3)
        pids = [*pids, *children(process.pid)]
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err.decode()
    assert err.decode() == "dilrewrite: interrupted; nothing was written\n"
    assert listing(out) == {}
    for pid in pids:
        status = Path(f"/proc/{pid}/cmdline")
        assert not status.exists() or b"dilrewrite" not in status.read_bytes(), "a child is left"
