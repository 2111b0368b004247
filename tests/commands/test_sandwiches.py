"""optimize and sandwiches: each is timed against the dilated Conv and its forms, and replaced by what is fastest."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import dilrewrite
from tests.models_for_tests import cli, conv1d, save
from tests.sandwiches import Sandwich, build, image, run

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.mark.parametrize("s", [Sandwich(), Sandwich(how="computed", known=False, last=True, chain=("Mul", "Relu"))])
def test_every_form_is_timed_against_the_sandwich(s: Sandwich, tmp_path: Path) -> None:
    path = save(build(s), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", budget=8, no_cache=True)
    assert report.exit_code == 0
    (site,) = report.sites
    assert site.sandwich
    timed = {form.strategy for form in site.candidates if form.timing is not None}
    assert "fold" in timed
    assert "keep" not in {form.strategy for form in site.candidates}
    assert report.before.dilated == 0
    after = onnx.load(tmp_path / "out.onnx")
    np.testing.assert_array_equal(run(after, image(s)), run(build(s), image(s)), strict=True)


def test_fold_by_name_leaves_the_dilated_conv(tmp_path: Path) -> None:
    path = save(build(Sandwich()), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="fold", budget=0)
    (site,) = report.sites
    assert (report.status, site.strategy, site.max_dilation_left) == ("rewritten", "fold", 2)
    assert report.after is not None
    assert report.after.dilated == 1


@pytest.mark.parametrize("asked", [{"eliminate": True}, {"strategy": "space_to_batch"}])
def test_a_sandwich_holds_no_dilation_that_could_go(asked: dict[str, object], tmp_path: Path) -> None:
    path = save(build(Sandwich()), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", budget=0, **asked)  # type: ignore[arg-type]
    assert (report.exit_code, report.status, report.sites) == (0, "nothing to rewrite", ())
    assert "1 space-to-batch sandwich holds no dilated Conv: `dilrewrite fold` makes dilated Convs" in report.notes[-1]
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()


def test_dilated_convs_beside_a_sandwich_are_told_alone(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What is left of dilation is counted in dilated Convs: the sandwich is none."""
    model = build(Sandwich())
    model.graph.node[-1].output[0] = "inside"
    conv = onnx.helper.make_node("Conv", ["inside", "v"], ["y"], name="dilated", dilations=[2, 2], pads=[2, 2, 2, 2])
    model.graph.node.append(conv)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((1, 6, 3, 3), np.float32), "v"))
    outcome = cli(capsys, "optimize", save(model, tmp_path / "m.onnx"), "--eliminate", "--budget", "0", "--no-report")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1].startswith("rewrote 1 of 1 dilated Conv; equal")
    assert "1 space-to-batch sandwich holds no dilated Conv" in " ".join(outcome.out.split())


def test_decisions_are_replayed_and_older_ones_know_no_sandwich(tmp_path: Path) -> None:
    path, decisions = save(build(Sandwich()), tmp_path / "m.onnx"), tmp_path / "decisions.json"
    dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="fold", budget=0, save_decisions=decisions)
    again = dilrewrite.optimize(path, tmp_path / "again.onnx", decisions=decisions)
    assert (again.status, again.rewritten) == ("rewritten", 1)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    other = tmp_path / "other.json"
    plain = save(conv1d(), tmp_path / "plain.onnx")
    dilrewrite.optimize(plain, tmp_path / "plain.out.onnx", budget=0, save_decisions=other)
    kept = dilrewrite.optimize(plain, tmp_path / "plain.again.onnx", decisions=other)
    assert kept.exit_code == 0
