"""dilrewrite fold: sandwiches become dilated Convs, and what is none stays, through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import dilrewrite
from dilrewrite.forms import sandwich
from tests.models_for_tests import cli, conv2d, listing, save
from tests.sandwiches import Sandwich, build, image, run

pytestmark = pytest.mark.usefixtures("in_process")


def test_folds_and_says_so_on_one_screen(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    s = Sandwich(how="computed", last=True, chain=("BatchNormalization", "Relu"))
    path = save(build(s), tmp_path / "m.onnx")
    outcome = cli(capsys, "fold", path)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith("folded 1 of 1 space-to-batch sandwich into a dilated Conv; equal on")
    assert len(lines) <= 24
    output = tmp_path / "m.folded.onnx"
    assert {"m.folded.onnx", "m.folded.report"} <= set(listing(tmp_path))
    after = onnx.load(output)
    (conv,) = [node for node in after.graph.node if node.op_type == "Conv"]
    assert next(list(a.ints) for a in conv.attribute if a.name == "dilations") == [2, 2]
    np.testing.assert_array_equal(run(after, image(s)), run(build(s), image(s)), strict=True)


def test_the_report_tells_the_sandwich_its_proof_and_the_models(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = save(build(Sandwich(how="computed", known=False)), tmp_path / "m.onnx")
    outcome = cli(capsys, "fold", path, "-o", tmp_path / "out.onnx", "--no-report", "--json")
    assert (outcome.code, outcome.report["command"], outcome.report["status"]) == (0, "fold", "rewritten")
    (site,) = outcome.report["sites"]
    assert (site["sandwich"], site["strategy"], site["action"]) == (True, "fold", "rewritten")
    assert (site["geometry"]["dilations"], site["geometry"]["pads_begin"]) == ([2, 2], [2, 2])
    assert site["max_dilation_left"] == 2
    assert site["proof"]["failure"] is None
    assert len(site["proof"]["shapes"]) >= 3
    assert (outcome.report["before"]["dilated"], outcome.report["after"]["dilated"]) == (0, 1)
    assert outcome.report["verdict"]["passed"]
    assert outcome.report["measurement"] is None


WRONG = {
    "crd_for_dcr": (Sandwich(how="depth", wrong="CRD"), "in another order"),
    "blocks_exchanged": (Sandwich(wrong="exchanged", extents=(10, 10)), "in another order than they were split in"),
    "inner_tensor_read_elsewhere": (Sandwich(wrong="read inside"), "inside of it is read by 'reducemax_4' too"),
    "crop_of_a_constant": (Sandwich(how="computed", known=False, wrong="crop of a constant"), "depends on its extent"),
}


COMMANDS = {"fold": ["fold"], "optimize": ["optimize", "--strategy", "fold", "--budget", "0"]}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_none_is_copied_with_the_reason(
    name: str, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    s, reason = WRONG[name]
    path = save(build(s), tmp_path / "m.onnx")
    outcome = cli(capsys, *COMMANDS[command], path, "-o", tmp_path / "out.onnx", "--no-report", "--json")
    assert (outcome.code, outcome.report["status"]) == (0, "nothing to rewrite")
    assert reason in outcome.report["unfolded"][0]["reason"]
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    shown = cli(capsys, "fold", path, "--dry-run")
    assert "nothing to fold: no space-to-batch sandwich; 1 looks like one and is left alone" in shown.out
    assert reason.split("'")[0] in " ".join(shown.out.split())


OTHER_PADS = {
    "a crop one off in front": Sandwich(wrong="crop in front"),
    "a crop one off behind": Sandwich(wrong="crop behind"),
    "pads that do not cover": Sandwich(begin=(1, 2), end=(2, 0)),
    "pads that do not cover, unknown": Sandwich(begin=(1, 2), end=(2, 0), how="computed", known=False),
}
"""No sandwich of the Conv that was meant, but a Conv with other pads."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", OTHER_PADS)
def test_other_pads_give_no_wrong_model(
    name: str, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    s = OTHER_PADS[name]
    path = save(build(s), tmp_path / "m.onnx")
    assert cli(capsys, *COMMANDS[command], path, "-o", tmp_path / "out.onnx", "--no-report").code == 0
    after = onnx.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(run(after, image(s)), run(build(s), image(s)), strict=True)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
def test_a_wrong_fold_writes_no_model(
    known: bool, command: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Conv has its pads one place on."""
    right = sandwich._pads

    def wrong(*given: Any) -> tuple[int, int]:
        begin, end = right(*given)
        return begin - 1, end + 1

    monkeypatch.setattr(sandwich, "_pads", wrong)
    path = save(build(Sandwich(how="reshape" if known else "computed", known=known)), tmp_path / "m.onnx")
    outcome = cli(capsys, *COMMANDS[command], path, "-o", tmp_path / "out.onnx", "--no-report", "--json")
    assert (outcome.code, outcome.report["status"]) == (3, "differs")
    assert listing(tmp_path).keys() == {"m.onnx"}


def test_a_model_without_sandwich_is_copied(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    outcome = cli(capsys, "fold", path, "-o", tmp_path / "out.onnx", "--no-report", "--json")
    assert (outcome.code, outcome.report["status"], outcome.report["sites"]) == (0, "nothing to rewrite", [])
    assert outcome.report["before"]["dilated"] == outcome.report["after"]["dilated"] == 1
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_inspect_says_what_to_fold(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for model, wanted in ((build(Sandwich()), True), (conv2d(), False)):
        outcome = cli(capsys, "inspect", save(model, tmp_path / "m.onnx"))
        assert ("1 space-to-batch sandwich holds no dilated Conv" in " ".join(outcome.out.split())) is wanted


def test_skip_and_only_name_its_conv(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(build(Sandwich()), tmp_path / "m.onnx")
    name = next(node.name for node in onnx.load(path).graph.node if node.op_type == "Conv")
    outcome = cli(capsys, "fold", path, "-o", tmp_path / "out.onnx", "--no-report", "--json", "--skip", name)
    assert (outcome.code, outcome.report["status"]) == (0, "kept")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
    wrong = cli(capsys, "fold", path, "--only", "nothing")
    assert wrong.code == 2
    assert wrong.err.startswith("dilrewrite: --only nothing: matches no")


def test_folded_by_python_in_memory() -> None:
    report = dilrewrite.fold(build(Sandwich(batch=1)))
    assert (report.status, report.rewritten, report.output) == ("rewritten", 1, None)
    assert report.model is not None
    assert [node.op_type for node in report.model.graph.node] == ["Conv"]
