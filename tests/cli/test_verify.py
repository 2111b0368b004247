"""dilrewrite verify: two models are told equal only when they were run and gave the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from tests import models_for_tests as tiny
from tests.models_for_tests import cli, conv1d, conv2d, listing, save, save_external, values

pytestmark = pytest.mark.usefixtures("in_process")


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


def waveform(dilation: int) -> ModelProto:
    """A dilated Conv on a bare waveform: time is the first axis."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "axes"], ["a"]),
        tiny.conv_node("a", "y", dilations=[dilation], pads=[dilation] * 2),
    ]
    return tiny.build(nodes, {"x": ["t"]}, {"y": None}, {"axes": np.array([0, 1]), "w": values(1, 1, 3)})


def in_function(model: ModelProto) -> ModelProto:
    """The same, in a function."""
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "Net", ["x", "axes", "w"], ["y"], model.graph.node, opsets)
    call = helper.make_node("Net", ["x", "axes", "w"], ["y"], domain="local")
    made = tiny.build([call], {"x": ["t"]}, {"y": None}, domains=["local"], functions=[function])
    made.graph.initializer.extend(model.graph.initializer)
    return made


def first_sample(*, alone: bool) -> ModelProto:
    """A dilated Conv; with `alone`, all samples get the first one's result."""
    first = [helper.make_node("Gather", ["c", "zero"], ["g"], axis=0), helper.make_node("Sub", ["c", "c"], ["d"])]
    nodes = [tiny.conv_node("x", "c"), *first, helper.make_node("Add", ["d", "g" if alone else "c"], ["y"])]
    return tiny.build(nodes, {"x": ["n", 2, 16]}, {"y": None}, {"w": values(2, 2, 3), "zero": np.array([0])})


def of_one_sample(*, fixed: bool) -> ModelProto:
    """A dilated Conv behind a Reshape, which is of one sample or of all."""
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["a"]), tiny.conv_node("a", "y")]
    shape = np.array([1 if fixed else -1, 2, 16])
    return tiny.build(nodes, {"x": ["n", 2, 16]}, {"y": None}, {"w": values(2, 2, 3), "shape": shape})


def scaled_samples(first: int, factor: float, length: int | str = 16) -> ModelProto:
    """A dilated Conv; the samples from `first` on are multiplied."""
    ends = {"zero": np.array([0]), "first": np.array([first]), "all": np.array([2**40]), "k": np.float32(factor)}
    nodes = [
        tiny.conv_node("x", "c"),
        helper.make_node("Slice", ["c", "zero", "first", "zero"], ["h"]),
        helper.make_node("Slice", ["c", "first", "all", "zero"], ["t"]),
        helper.make_node("Mul", ["t", "k"], ["u"]),
        helper.make_node("Concat", ["h", "u"], ["y"], axis=0),
    ]
    return tiny.build(nodes, {"x": ["n", 2, length]}, {"y": None}, {"w": values(2, 2, 3), **ends})


def together(samples: int, factor: float) -> ModelProto:
    """A dilated Conv over so many samples at once."""
    nodes = [helper.make_node("Reshape", ["x", "s"], ["a"]), tiny.conv_node("a", "y")]
    weights = {"w": values(2 * samples, 2 * samples, 3) * np.float32(factor), "s": np.array([-1, 2 * samples, 16])}
    return tiny.build(nodes, {"x": ["n", 2, 16]}, {"y": None}, weights)


def clipped(most: int) -> ModelProto:
    """A dilated Conv on whole numbers up to `most`."""
    nodes = [
        helper.make_node("Clip", ["x", "", "most"], ["a"]),
        helper.make_node("Cast", ["a"], ["f"], to=onnx.TensorProto.FLOAT),
        tiny.conv_node("f", "y"),
    ]
    model = tiny.build(nodes, {"x": ["n", 2, 16]}, {"y": None}, {"w": values(2, 2, 3), "most": np.array(most)})
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


def of_size(*, transposed: bool) -> ModelProto:
    """A dilated Conv, of height and width or of width and height."""
    nodes = [helper.make_node("Transpose", ["x"], ["a"], perm=[0, 1, 3, 2] if transposed else [0, 1, 2, 3])]
    nodes += [tiny.conv_node("a", "c", dilations=[2] * 2, pads=[2] * 4), helper.make_node("Shape", ["c"], ["y"])]
    model = tiny.build(nodes, {"x": [1, 1, "h", "w"]}, {"y": None}, {"w": values(1, 1, 3, 3)})
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    return model


def far_apart(dilation: int) -> ModelProto:
    """A Conv whose dilation is larger than what comes of a small image."""
    nodes = [
        helper.make_node("AveragePool", ["x"], ["a"], kernel_shape=[8, 8], strides=[8, 8]),
        tiny.conv_node("a", "y", dilations=[dilation] * 2, pads=[dilation] * 4),
    ]
    return tiny.build(nodes, {"x": [1, 1, "h", "w"]}, {"y": None}, {"w": values(1, 1, 3, 3)})


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (waveform(16), waveform(64)),
        (waveform(16), waveform(300)),
        (waveform(300), waveform(500)),
        (in_function(waveform(16)), in_function(waveform(64))),
        (in_function(waveform(300)), waveform(500)),
        (first_sample(alone=False), first_sample(alone=True)),
        (of_one_sample(fixed=True), of_one_sample(fixed=False)),
        (scaled_samples(2, 1), scaled_samples(2, 2)),
        (scaled_samples(4, 1), scaled_samples(4, 2)),
        (scaled_samples(4, 1, "t"), scaled_samples(4, 2, "t")),
        (together(9, 1), together(9, 2)),
        (together(48, 1), together(48, 2)),
        (clipped(1), clipped(100)),
        (of_size(transposed=False), of_size(transposed=True)),
        (far_apart(12), far_apart(18)),
    ],
    ids=[
        "waveform",
        "far",
        "both far",
        "function",
        "of both kinds",
        "samples",
        "one sample",
        "third sample",
        "fifth sample",
        "fifth sample, any length",
        "nine",
        "48",
        "clipped",
        "height",
        "wide",
    ],
)
def test_what_differs_at_some_sizes_differs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, a: ModelProto, b: ModelProto
) -> None:
    first, second = save(a, tmp_path / "a.onnx"), save(b, tmp_path / "b.onnx")
    for pair, code in (((first, second), 3), ((second, first), 3), ((first, first), 0), ((second, second), 0)):
        outcome = cli(capsys, "verify", *pair, "--json")
        assert outcome.code == code, outcome.report["verdict"]


def test_time_may_be_the_first_axis(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(waveform(2), tmp_path / "m.onnx")
    cases = cli(capsys, "verify", path, path, "--json").report["verdict"]["cases"]
    assert [case["name"] for case in cases] == ["first", "not divisible", "smallest"]
    assert [case["shapes"]["x"] for case in cases] == [[64], [65], [1]]


def test_a_batch_that_does_not_run_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(of_one_sample(fixed=True), tmp_path / "m.onnx")
    outcome = cli(capsys, "verify", path, path, "--json")
    assert (outcome.code, outcome.report["status"]) == (0, "equal")
    assert outcome.report["verdict"]["notes"] == ["the original does not run on batch: x [2, 2, 16]"]


def test_a_finding_is_no_difference(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One of two equal models says something wrong of a tensor: that is told, in its own words."""
    model = conv2d()
    model.graph.value_info.append(helper.make_tensor_value_info("c", onnx.TensorProto.FLOAT, [1, 2, 99, 99]))
    a, b = save(conv2d(), tmp_path / "a.onnx"), save(model, tmp_path / "b.onnx")
    outcome = cli(capsys, "verify", a, b)
    assert outcome.code == 0
    assert "equal on 1 input set" in outcome.out
    assert "the ONNX checker finds errors that the original does not have" in " ".join(outcome.out.split())
    assert "99" in outcome.out
    assert "DIFFER" not in outcome.out
    outcome = cli(capsys, "verify", b, a)
    assert outcome.code == 0
    assert "as delivered, the original has this finding" in " ".join(outcome.out.split())


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
