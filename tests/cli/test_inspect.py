"""dilrewrite inspect: every dilated Conv, the forms that apply, and why others refuse; nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dilrewrite.strategies import strategies
from tests import models_for_tests as tiny
from tests.models_for_tests import DEMOS, MODELS, cli, conv1d, listing, save

DILATED = {"aspp_segmentation": 7, "causal_tcn": 8, "hifigan_vocoder": 18, "meshnet3d": 3}


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
    from dilrewrite.backends.onnxruntime_cpu import OnnxRuntimeCpu

    monkeypatch.setattr(OnnxRuntimeCpu, "session", lambda *_: pytest.fail("a model was run"))
    assert cli(capsys, "inspect", save(conv1d(), tmp_path / "m.onnx"), "--json").code == 0
