"""dilrewrite targets, and inspect --target: what devices take, and how a model stands to one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dilrewrite.targets import profiles
from tests.models_for_tests import MODELS, cli, conv1d, save

Capsys = pytest.CaptureFixture[str]


def test_a_line_for_each(capsys: Capsys) -> None:
    lines = cli(capsys, "targets").out.splitlines()
    assert [line.split()[0] for line in lines] == list(profiles())
    told = next(line for line in lines if line.startswith("rknn-2.3.2"))
    assert "Rockchip RKNN; rknn-toolkit2 2.3.2; run, read " in told
    listed = json.loads(cli(capsys, "targets", "--json").out)
    assert [one["name"] for one in listed] == list(profiles())


@pytest.mark.parametrize("name", profiles())
def test_the_rules_of_one_with_their_sources(capsys: Capsys, name: str) -> None:
    profile, shown = profiles()[name], cli(capsys, "targets", "show", name).out
    told = json.loads(cli(capsys, "targets", "show", name, "--json").out)
    assert len(told["rules"]) == len([*profile.rules()])
    for id_, source in profile.sources.items():
        assert f"[{id_}] {source.title}" in shown
        assert source.url in shown
    assert all(rule["source"] in told["sources"] for rule in told["rules"])
    assert all(rule["is"] in shown for rule in told["rules"])


def test_who_can_be_asked_about_one(capsys: Capsys) -> None:
    """The backend that asks the compiler, and what installs it; nothing where nobody can be asked."""
    asked = {one["name"]: one["judge"] for one in json.loads(cli(capsys, "targets", "--json").out) if one["judge"]}
    assert {name: judge["backend"] for name, judge in asked.items()} == {
        "ethos-u-vela-3.10": "ethos_u:compiler=3.10.0",
        "ethos-u-vela-5.2": "ethos_u",
        "rknn-2.3.2": "rknn:toolkit=2.3.2",
        "rknn-2.5.0": "rknn",
    }
    for name in profiles():
        shown = cli(capsys, "targets", "show", name).out
        assert ("judge: " in shown) is (name in asked)
        if name in asked:
            assert "judge: --backend {backend} asks the compiler; {install} installs it".format(**asked[name]) in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rknn"], "did you mean dilrewrite targets show rknn?"),
        (["show"], "dilrewrite targets lists them"),
        (["show", "rkn"], "did you mean rknn?"),
    ],
)
def test_wrong_usage(capsys: Capsys, arguments: list[str], said: str) -> None:
    outcome = cli(capsys, "targets", *arguments)
    assert outcome.code == 2
    assert said in outcome.err


def test_inspect_says_what_a_target_takes(capsys: Capsys) -> None:
    model = MODELS / "aspp_segmentation.onnx"
    report = cli(capsys, "inspect", model, "--target", "rknn-2.3.2", "--json").report
    target = report["target"]
    assert (target["name"], target["convs"]) == ("rknn-2.3.2", {"native": 5, "out of limits": 2})
    refused = {one["name"]: one["reasons"][0] for one in target["nodes"] if one["fit"] == "out of limits"}
    assert sorted(refused.values()) == ["dilation 36 is not at most 31", "pads 24 is not at most 15"]
    assert {one["sources"][0] for one in target["nodes"] if one["fit"] == "out of limits"} == {"pdf"}
    screen = " ".join(cli(capsys, "inspect", model, "--target", "rknn-2.3.2").out.split())
    assert "on rknn-2.3.2 5 native, 2 out of limits" in screen
    assert "1 dilated Conv (aspp.branches.2.0): pads 24 is not at most 15" in screen
    whole = " ".join(cli(capsys, "inspect", model, "--target", "rknn-2.3.2", "-v").out.split())
    assert "pads 36 is not at most 15" in whole


def test_without_a_target_nothing_is_said_of_one(capsys: Capsys) -> None:
    assert cli(capsys, "inspect", MODELS / "resnet_stage_os8.onnx", "--json").report["target"] is None


def test_inspect_asks_for_sizes(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(length="time"), tmp_path / "m.onnx")
    outcome = cli(capsys, "inspect", path, "--target", "rknn-2.3.2")
    assert outcome.code == 2
    assert "give its sizes: --shape x:1x2xSIZE" in outcome.err
    assert cli(capsys, "inspect", path, "--target", "rknn-2.3.2", "--shape", "x:1x2x40").code == 0
    wrong = cli(capsys, "inspect", path, "--target", "rknn-2.3.2", "--shape", "x:1x2")
    assert (wrong.code, "does not fit" in wrong.err) == (2, True)


def test_a_wrong_file_is_exit_code_2(capsys: Capsys, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"title": "Mine", "souces": {}}', encoding="utf-8")
    outcome = cli(capsys, "inspect", MODELS / "resnet_stage_os8.onnx", "--target", path)
    assert outcome.code == 2
    assert "mine.json: souces: there is no such field; did you mean 'sources'?" in outcome.err
