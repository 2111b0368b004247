"""dilrewrite inspect: every dilated Conv, the forms that apply, why others refuse; nothing is run without --profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dilrewrite.choice.reason import Reason
from dilrewrite.forms.strategies import strategies
from tests import models_for_tests as tiny
from tests.models_for_tests import DEMOS, MODELS, cli, conv1d, listing, save
from tests.words import words

Capsys = pytest.CaptureFixture[str]

DILATED = {
    "aspp_segmentation": 7,
    "causal_tcn": 8,
    "hifigan_vocoder": 18,
    "meshnet3d": 3,
    "resnet_stage_os8": 8,
    "splice_sites": 6,
}


@pytest.mark.parametrize("name", DEMOS)
def test_demo_models(capsys: pytest.CaptureFixture[str], name: str) -> None:
    report = cli(capsys, "inspect", MODELS / f"{name}.onnx", "--json").report
    assert report["status"] == "inspected"
    assert len(report["sites"]) == report["before"]["dilated"] == DILATED[name]
    assert report["after"] is report["output"] is report["verdict"] is None
    for site in report["sites"]:
        told = {c["strategy"] for c in site["candidates"]} | {r["strategy"] for r in site["refused"]}
        assert told == set(strategies()), "every form applies or says why not"
        assert all(refusal["reason"].strip() for refusal in site["refused"])
        assert len(site["candidates"]) + len(site["refused"]) == len(strategies())
        assert 0 <= (site["padding_share"] or 0) < 1


def test_the_next_command_has_the_sizes_that_were_given(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save(conv1d(batch="batch", length="time"), Path("m.onnx"))
    outcome = cli(capsys, "inspect", path, "--shape", "x:3x2x40")
    told = "".join(outcome.out.split())
    assert "dilrewriteoptimizem.onnx--shapex:3x2x40:times" in told
    assert "SIZES" not in told
    assert cli(capsys, "inspect", path, "--shape", "x:3x2x40", "--json").report["options"]["shapes"] == ["x:3x2x40"]


def test_says_why_not(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = save(conv1d(length=64, strides=[2], dilations=[3], pads=[3, 3]), tmp_path / "m.onnx")
    site = cli(capsys, "inspect", model, "--json").report["sites"][0]
    refused = {refusal["strategy"]: refusal["reason"] for refusal in site["refused"]}
    assert "stride 2 and dilation 3" in refused["space_to_batch"]


def test_tells_what_it_leaves_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = cli(capsys, "inspect", save(tiny.transposed(), tmp_path / "m.onnx"), "--json").report
    assert [(node["name"], node["op"], node["dilations"]) for node in report["skipped"]] == [
        ("spread", "ConvTranspose", [3])
    ]
    assert report["before"]["dilated"] == 2


def test_padding_waste(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Rate 36 on 28x28: only the centre tap of nine sees data."""
    path = save(tiny.aspp(rate=36), tmp_path / "m.onnx")
    far = next(s for s in cli(capsys, "inspect", path, "--json").report["sites"] if s["name"] == "far")
    assert far["padding_share"] == pytest.approx(8 / 9)


def test_max_dilation_changes_the_plan(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(conv1d(length=64, dilations=[8], pads=[8, 8]), tmp_path / "m.onnx")
    left = {}
    for limit in (1, 4):
        site = cli(capsys, "inspect", path, "--max-dilation", limit, "--json").report["sites"][0]
        left[limit] = {c["strategy"]: c["max_dilation"] for c in site["candidates"]}
    assert left[1]["space_to_batch"] == 1
    assert left[4]["space_to_batch"] == 4
    assert left[1]["keep"] == left[4]["keep"] == 8


def test_writes_nothing_unless_asked(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    assert cli(capsys, "inspect", path, "--json").code == 0
    assert listing(tmp_path) == before
    outcome = cli(capsys, "inspect", path, "--report", tmp_path / "told", "--json")
    written = json.loads((tmp_path / "told" / "report.json").read_text())
    assert written == outcome.report


def test_unknown_operators_are_no_problem(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert len(cli(capsys, "inspect", save(tiny.custom_operator(), tmp_path / "m.onnx"), "--json").report["sites"]) == 1


def test_runs_no_runtime(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

    monkeypatch.setattr(OnnxRuntimeCpu, "session", lambda *_: pytest.fail("a model was run"))
    assert cli(capsys, "inspect", save(conv1d(), tmp_path / "m.onnx"), "--json").code == 0


# -- --profile -----------------------------------------------------------------------------------------------------


@pytest.fixture
def _profiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No form is timed, and nothing is kept."""
    from dilrewrite.timing.measure import Meter

    tiny.in_process(monkeypatch)
    for name in ("answer", "whole", "worker"):
        monkeypatch.setattr(Meter, name, lambda *_, **__: pytest.fail("a form was timed"))


def check_profile(report: dict[str, Any]) -> None:
    found = report["measurement"]
    assert (found["backend"], found["measured"], found["recalled"]) == ("onnxruntime_cpu", 1, 0)
    assert found["profiled_s"] > 0
    assert found["final"] is found["noise"] is None
    assert found["attempts"] == []
    shares = [site["share"] for site in report["sites"] if site["share"] is not None]
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) <= 1.02
    for site in report["sites"]:
        assert (site["action"], site["reason"], site["question"]) == ("kept", words(Reason.INSPECTED), None)
        assert all((form["outcome"], form["timing"]) == (None, None) for form in site["candidates"])


@pytest.mark.measures
@pytest.mark.usefixtures("_profiled")
@pytest.mark.parametrize("name", ["aspp_segmentation", "causal_tcn"])
def test_profile_of_a_demo_model(capsys: Capsys, name: str) -> None:
    outcome = cli(capsys, "inspect", MODELS / f"{name}.onnx", "--profile", "--json")
    assert (outcome.code, outcome.err, outcome.report["status"]) == (0, "", "inspected")
    check_profile(outcome.report)
    for site in outcome.report["sites"]:
        assert site["share"] is None or site["share"] > 0
        (shape,) = site["ran"]
        known = [site["geometry"][what] for what in ("batch", "in_channels")] + site["geometry"]["extents"]
        assert len(shape) == len(known)
        assert all(a == b for a, b in zip(shape, known, strict=True) if b is not None)
    assert any(site["share"] is not None for site in outcome.report["sites"])
    for site in outcome.report["sites"]:
        low, high = site["share_interval"] or (0, 1)
        assert (site["share"] is None) == (site["share_interval"] is None)
        assert low <= (site["share"] or 0) <= high
    assert outcome.report["measurement"]["made_up"] is (name == "causal_tcn")


@pytest.mark.measures
@pytest.mark.usefixtures("_profiled")
def test_profile_on_given_sizes(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DILREWRITE_CACHE", str(tmp_path / "timings.sqlite"))
    path = save(conv1d(batch="batch", length="time"), tmp_path / "m.onnx")
    options = ["--profile", "--shape", "x:3x2x40", "--threads", 1, "--report", tmp_path / "told"]
    outcome = cli(capsys, "inspect", path, *options, "--json")
    check_profile(outcome.report)
    assert outcome.report["sites"][0]["ran"] == [[3, 2, 40]]
    assert outcome.report["measurement"]["inputs"] == {"x": [3, 2, 40]}
    assert outcome.report["measurement"]["settings"]["intra_op_num_threads"] == "1"
    assert outcome.report["notes"] == []
    assert json.loads((tmp_path / "told" / "report.json").read_text()) == outcome.report
    files = {"m.onnx", "told", *(f"told/report.{kind}" for kind in ("html", "json", "md"))}
    assert set(listing(tmp_path)) == files


@pytest.mark.measures
@pytest.mark.usefixtures("_profiled")
def test_profile_for_people(capsys: Capsys, tmp_path: Path) -> None:
    outcome = cli(capsys, "inspect", save(tiny.aspp(), tmp_path / "m.onnx"), "--profile")
    assert (outcome.code, outcome.err) == (0, "")
    assert "% of its time on onnxruntime_cpu" in outcome.out.splitlines()[0]
    assert "% of the time" in outcome.out
    assert "share of" in cli(capsys, "inspect", tmp_path / "m.onnx", "--profile", "--verbose").out


@pytest.mark.measures
@pytest.mark.usefixtures("_profiled")
def test_profile_of_a_model_without_dilation(capsys: Capsys, tmp_path: Path) -> None:
    outcome = cli(capsys, "inspect", save(tiny.plain(), tmp_path / "m.onnx"), "--profile", "--json")
    assert (outcome.code, outcome.report["sites"]) == (0, [])


@pytest.mark.measures
@pytest.mark.usefixtures("_profiled")
def test_profile_of_a_model_that_does_not_run(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.custom_operator(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    outcome = cli(capsys, "inspect", path, "--profile", "--report", tmp_path / "told", "--json")
    assert (outcome.code, outcome.out) == (1, "")
    assert len(outcome.err.splitlines()) == 1
    for word in (str(path), "does not run on onnxruntime_cpu", "Mystery"):
        assert word in outcome.err
    assert listing(tmp_path) == before


@pytest.mark.measures
@pytest.mark.usefixtures("_profiled")
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ((), "--inputs"),
        (("--shape", "z:1"), "no input 'z'"),
        (("--inputs", "nowhere.npz"), "no such file"),
        (("--backend", "reference"), "times nothing"),
    ],
)
def test_profile_needs_data(capsys: Capsys, tmp_path: Path, options: tuple[str, ...], word: str) -> None:
    outcome = cli(capsys, "inspect", save(tiny.gather(), tmp_path / "m.onnx"), "--profile", *options)
    assert (outcome.code, outcome.out) == (2, "")
    assert len(outcome.err.splitlines()) == 1
    assert word in outcome.err
