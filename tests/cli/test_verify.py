"""dilrewrite verify: two models are told equal only when they were run and gave the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from tests import models_for_tests as tiny
from tests.models_for_tests import cli, conv1d, conv2d, listing, save, save_external, values


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.in_process(monkeypatch)


def scaled(model: ModelProto, factor: float) -> ModelProto:
    """A copy with the first weight multiplied."""
    changed = ModelProto()
    changed.CopyFrom(model)
    tensor = changed.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), tensor.name))
    return changed


def test_a_model_equals_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    outcome = cli(capsys, "verify", path, path, "--json")
    assert (outcome.code, outcome.report["status"]) == (0, "equal")
    verdict = outcome.report["verdict"]
    assert verdict["passed"]
    assert verdict["deterministic"]
    assert verdict["cases"][0]["outputs"][0]["max_abs"] == 0
    assert listing(tmp_path) == before


def test_an_optimized_model_equals_its_original(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    assert cli(capsys, "optimize", path, "--strategy", "space_to_batch", "--json").code == 0
    outcome = cli(capsys, "verify", path, tmp_path / "m.dilrewrite.onnx", "--json")
    assert (outcome.code, outcome.report["status"]) == (0, "equal")


def test_other_weights_differ(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a, b = save(conv2d(), tmp_path / "a.onnx"), save(scaled(conv2d(), 1.01), tmp_path / "b.onnx")
    outcome = cli(capsys, "verify", a, b, "--report", tmp_path / "told", "--json")
    assert (outcome.code, outcome.report["status"]) == (3, "differs")
    assert "'y'" in outcome.report["verdict"]["failures"][0]
    assert json.loads((tmp_path / "told" / "report.json").read_text())["exit_code"] == 3


def test_tolerance_can_be_given(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a, b = save(conv2d(), tmp_path / "a.onnx"), save(scaled(conv2d(), 1.01), tmp_path / "b.onnx")
    assert cli(capsys, "verify", a, b, "--rtol", "0.1", "--json").code == 0
    assert cli(capsys, "verify", a, b, "--rtol", "0.001", "--json").code == 3
    assert cli(capsys, "verify", a, b, "--atol", "100", "--json").code == 0


def rename_output(model: ModelProto) -> None:
    model.graph.output[0].name = model.graph.node[-1].output[0] = "z"


def change_shape(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def change_opset(model: ModelProto) -> None:
    model.opset_import[0].version += 1


def change_metadata(model: ModelProto) -> None:
    helper.set_model_props(model, {"author": "someone else"})


@pytest.mark.parametrize("change", [rename_output, change_shape, change_opset, change_metadata])
def test_interface_changes_differ(capsys: pytest.CaptureFixture[str], tmp_path: Path, change: Any) -> None:
    other = conv2d()
    change(other)
    a, b = save(conv2d(), tmp_path / "a.onnx"), save(other, tmp_path / "b.onnx")
    assert cli(capsys, "verify", a, b, "--json").code == 3


def test_a_model_that_does_not_run_differs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    broken = conv2d()
    broken.graph.node[1].op_type = "Flatten"  # another rank than before, and not Relu's values
    a, b = save(conv2d(), tmp_path / "a.onnx"), save(broken, tmp_path / "b.onnx")
    assert cli(capsys, "verify", a, b, "--json").code == 3


def test_what_could_not_be_run_is_not_called_equal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Two models with different weights around an unknown operator: nothing was compared, so nothing is known."""
    a = save(tiny.custom_operator(), tmp_path / "a.onnx")
    b = save(scaled(tiny.custom_operator(), 2.0), tmp_path / "b.onnx")
    outcome = cli(capsys, "verify", a, b, "--json")
    assert outcome.code != 0
    assert outcome.report["status"] != "equal"


def test_user_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(tiny.gather(), tmp_path / "m.onnx")
    np.savez(tmp_path / "data.npz", index=np.array([0]), x=values(1, 2, 16))
    outcome = cli(capsys, "verify", path, path, "--inputs", tmp_path / "data.npz", "--json")
    assert outcome.code == 0
    assert [case["name"] for case in outcome.report["verdict"]["cases"]] == ["user"]


def test_same_padding_is_judged_against_explicit_pads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(tiny.same_upper(), tmp_path / "m.onnx")
    assert cli(capsys, "optimize", path, "--strategy", "space_to_batch", "--json").code == 0
    assert cli(capsys, "verify", path, tmp_path / "m.dilrewrite.onnx", "--json").code == 0


def test_external_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a = save_external(conv1d(channels=8), tmp_path / "a.onnx", files=1)
    b = save(conv1d(channels=8), tmp_path / "b.onnx")
    assert cli(capsys, "verify", a, b, "--json").code == 0
    assert cli(capsys, "verify", b, a, "--json").code == 0


def test_isolated(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as users run it, with every whole model in a process of its own."""
    monkeypatch.undo()
    path = save(conv1d(), tmp_path / "m.onnx")
    verdict = cli(capsys, "verify", path, path, "--json").report["verdict"]
    assert verdict["passed"]
    assert all(peak is None or peak >= 0 for peak in verdict["peak_bytes"])


def test_shapes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(conv1d(length="time", batch="batch"), tmp_path / "m.onnx")
    cases = cli(capsys, "verify", path, path, "--shape", "x:3x2x17", "--json").report["verdict"]["cases"]
    assert [(case["name"], case["shapes"]) for case in cases] == [("given", {"x": [3, 2, 17]})]
