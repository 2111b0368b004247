"""The whole way through the library: what comes of models of every kind, and what the report says of it."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.choice.reason import Reason
from dilrewrite.errors import UsageError
from dilrewrite.reports.report import ModelReport, Report, SiteReport
from dilrewrite.runtimes import CannotLoad
from tests import models_for_tests as tiny
from tests.contract import there
from tests.models_for_tests import (
    aspp,
    build,
    cli,
    conv1d,
    conv2d,
    conv_node,
    dilations,
    listing,
    save,
    two_convs,
    values,
)
from tests.mutants import MUTANTS, NESTED_MUTANTS, REGION_MUTANTS, TARGETS
from tests.proto_diff import diff
from tests.words import says, words

pytestmark = pytest.mark.usefixtures("in_process")

prove = importlib.import_module("dilrewrite.proof.prove")


def optimized(model: ModelProto, folder: Path, **options: Any) -> tuple[Report, Path]:
    """The report, and the file that was (or would have been) written."""
    path = save(model, folder / "m.onnx")
    options.setdefault("strategy", "space_to_batch")
    return dilrewrite.optimize(path, **options), folder / "m.dilrewrite.onnx"


def attributes_changed(before: ModelProto, after: Path) -> set[tuple[str, str]]:
    """The (node, attribute) pairs that differ; fails when anything else does."""
    written = onnx.load(after)
    stripped = []
    found = set()
    assert [node.name for node in before.graph.node] == [node.name for node in written.graph.node]
    for old, new in zip(before.graph.node, written.graph.node, strict=True):
        a = {attribute.name: attribute.SerializeToString() for attribute in old.attribute}
        b = {attribute.name: attribute.SerializeToString() for attribute in new.attribute}
        found |= {(old.name, name) for name in a.keys() | b.keys() if a.get(name) != b.get(name)}
    for model in (before, written):
        bare = ModelProto()
        bare.CopyFrom(model)
        for node in bare.graph.node:
            del node.attribute[:]
        stripped.append(bare)
    assert diff(*stripped) == []
    return found


# -- operators nobody knows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [tiny.custom_operator, tiny.custom_operator_inside], ids=lambda made: made.__name__)
def test_unknown_operator(tmp_path: Path, made: Callable[[], ModelProto]) -> None:
    report, written = optimized(made(), tmp_path)
    assert (report.status, report.exit_code, report.rewritten) == ("rewritten", 0, 1)
    assert report.sites[0].proof is not None
    assert report.sites[0].proof.passed
    assert report.verdict is not None
    assert report.verdict.skipped is not None
    assert "my.ops" in report.verdict.skipped
    assert "Mystery" in report.verdict.skipped
    assert report.verdict.cases == ()
    before = [node for node in tiny.every_node(made().graph) if node.op_type == "Mystery"]
    after = [node for node in tiny.every_node(onnx.load(written).graph) if node.op_type == "Mystery"]
    assert [node.SerializeToString() for node in after] == [node.SerializeToString() for node in before]


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_dynamic_sizes_are_chosen_and_reported(tmp_path: Path) -> None:
    report, _ = optimized(conv1d(batch="batch", length="time", dilations=[6], pads=[6, 6]), tmp_path)
    assert report.verdict is not None
    lengths = {case.name: case.shapes["x"] for case in report.verdict.cases}
    assert set(lengths) == {"first", "divisible", "not divisible", "smallest", "batch", "larger batch"}
    assert (lengths.pop("batch")[0], lengths.pop("larger batch")[0]) == (2, 7)
    assert {shape[:2] for shape in lengths.values()} == {(1, 2)}, "one sample"
    assert lengths["divisible"][2] % 6 == 0
    assert lengths["not divisible"][2] % 6 != 0
    assert lengths["smallest"][2] == 1


def test_static_sizes_are_one_case(tmp_path: Path) -> None:
    report, _ = optimized(conv1d(), tmp_path)
    assert report.verdict is not None
    assert [(case.name, dict(case.shapes)) for case in report.verdict.cases] == [("first", {"x": (1, 2, 16)})]


@pytest.mark.parametrize(
    "strategy", ["space_to_batch", "slice_to_batch", "space_to_axis", "space_to_group", "im2col", "zero_fill"]
)
@pytest.mark.parametrize("size", ["known", "unknown"])
def test_an_empty_batch_behaves_as_before(tmp_path: Path, strategy: str, size: str) -> None:
    model = conv2d(batch="batch", size=12 if size == "known" else None)
    report, written = optimized(model, tmp_path, strategy=strategy, shapes=["x:0x2x12x12"])
    assert report.exit_code == 0
    assert report.verdict is not None
    assert report.verdict.cases[0].outputs[0].shape == (0, 2, 12, 12)
    feeds = {"x": np.zeros((0, 2, 12, 12), np.float32)}
    assert tiny.run(written, feeds)["y"].shape == (0, 2, 12, 12)


def test_equal_names_get_the_sizes_that_were_given(tmp_path: Path) -> None:
    report, _ = optimized(tiny.shared_symbols(), tmp_path, shapes=["a:2x1x20"])
    assert report.verdict is not None
    assert dict(report.verdict.cases[0].shapes) == {"a": (2, 1, 20), "b": (2, 1, 20)}


def test_user_data(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", index=np.array([0]), x=values(1, 2, 16))
    report, _ = optimized(tiny.gather(), tmp_path, inputs=tmp_path / "data.npz")
    assert report.exit_code == 0
    assert report.verdict is not None
    assert [case.name for case in report.verdict.cases] == ["user"]


# -- element types -------------------------------------------------------------------------------------------------

FLOAT64 = {"dtype": np.float64, "element": TensorProto.DOUBLE}
FLOAT16 = {"dtype": np.float16, "element": TensorProto.FLOAT16}
BFLOAT16 = {"dtype": ml_dtypes.bfloat16, "element": TensorProto.BFLOAT16, "opset": 22, "ir": 10}


@pytest.mark.parametrize("element", [FLOAT64, BFLOAT16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("strategy", ["space_to_batch", "slice_to_batch", "im2col"])
@pytest.mark.grid(3)
def test_sizes_of_a_type_that_the_runtime_lacks(
    element: Any, strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pads the kernel needs seven values: no smaller size is tried, on which the original does not run."""
    monkeypatch.setattr("dilrewrite.proof.hurried.FALLBACK_S", 600.0)  # no size is left out on a busy machine
    model = conv1d(batch="batch", length="time", dilations=[3], **element)
    report, _ = optimized(model, tmp_path, strategy=strategy)
    assert report.verdict is not None
    assert report.status == "rewritten", report.verdict.failures
    assert {case.name: case.shapes["x"] for case in report.verdict.cases}["smallest"] == (1, 2, 7)


@pytest.mark.parametrize("strategy", ["space_to_batch", "im2col", "tap_sum"])
@pytest.mark.parametrize(
    ("options", "site_backends", "backend"),
    [
        (FLOAT64, ["onnxruntime_cpu (float32 twin)", "reference"], "reference"),
        (BFLOAT16, ["onnxruntime_cpu (float32 twin)", "reference"], "reference"),
        (FLOAT16, ["onnxruntime_cpu (float32 twin)"], "onnxruntime_cpu"),
    ],
    ids=["float64", "bfloat16", "float16"],
)
@pytest.mark.grid(3)
def test_element_types(
    tmp_path: Path, options: dict[str, Any], site_backends: list[str], backend: str, strategy: str
) -> None:
    report, written = optimized(conv2d(**options), tmp_path, strategy=strategy)
    assert (report.exit_code, report.status) == (0, "rewritten"), report.sites[0].reason
    proof, verdict = report.sites[0].proof, report.verdict
    assert proof is not None
    assert verdict is not None
    assert all(name in proof.backend for name in site_backends)
    rounds_sums = strategy == "tap_sum"  # in float16 the reference evaluator, which rounds each partial sum
    assert ("reference" in proof.backend) == ("reference" in site_backends or rounds_sums)
    assert proof.rounding is not None
    assert verdict.backend == backend
    assert verdict.cases
    assert bool(verdict.notes) == (backend == "reference"), "it says why not the usual one"
    assert {tensor.data_type for tensor in onnx.load(written).graph.initializer} >= {options["element"]}


def test_quantized(tmp_path: Path) -> None:
    report, written = optimized(tiny.quantized(), tmp_path)
    assert (report.exit_code, report.status) == (0, "rewritten")
    assert report.verdict is not None
    assert report.verdict.optimized is False, "fusions of quantised models move values by a quantum"
    assert "graph optimisations on/off" in report.verdict.noise_sources
    assert report.verdict.cases[0].outputs[0].max_abs == 0
    assert report.sites[0].proof is not None
    assert report.sites[0].proof.rounding is None
    x = {"x": values(1, 2, 16)}
    step = 0.05  # the scale of the output
    assert np.abs(tiny.run(written, x)["y"] - tiny.run(tmp_path / "m.onnx", x)["y"]).max() <= step + 1e-6


# -- outputs that are not plain ------------------------------------------------------------------------------------


def test_random_outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own: within one, ONNX Runtime gives every session the same random numbers."""
    monkeypatch.undo()
    report, _ = optimized(tiny.random_branch(), tmp_path)
    assert (report.exit_code, report.status) == (0, "rewritten")
    assert report.verdict is not None
    assert report.verdict.deterministic is False
    found = {check.name: check for check in report.verdict.cases[0].outputs}
    assert (found["steady"].comparable, found["steady"].note) == (True, "")
    assert (found["shaky"].comparable, found["shaky"].note) == (False, "two runs of the original differ")


def test_outputs_with_nan_and_inf(tmp_path: Path) -> None:
    report, _ = optimized(tiny.not_finite(), tmp_path)
    assert (report.exit_code, report.status) == (0, "rewritten")
    assert report.verdict is not None
    found = {check.name: check for check in report.verdict.cases[0].outputs}
    assert found["nan"].nan[0] == found["nan"].nan[1] > 0
    assert found["inf"].inf[0] == found["inf"].inf[1] > 0
    json.dumps(report.as_dict(), allow_nan=False)


# -- attributes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"eliminate": True}, {"strategy": "space_to_batch"}], ids=str)
def test_dilation_without_effect(tmp_path: Path, options: dict[str, Any]) -> None:
    model = tiny.no_op_dilation()
    report, written = optimized(model, tmp_path, **{"strategy": None, **options})
    assert (report.status, report.exit_code, report.sites) == ("nothing to rewrite", 0, ())
    assert [(change.name, change.dilations, change.pads) for change in report.normalised] == [("idle", (1, 1), None)]
    assert attributes_changed(model, written) == {("idle", "dilations")}
    assert report.before.dilated == 0
    assert report.after is not None
    assert report.after.sha256 != report.before.sha256


def test_dilation_without_effect_beside_one_that_acts(tmp_path: Path) -> None:
    model = tiny.no_op_dilation(beside=True)
    report, written = optimized(model, tmp_path, strategy=None)
    assert report.status == "kept"
    assert attributes_changed(model, written) == {("idle", "dilations")}


@pytest.mark.parametrize("length", [15, 16])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_that_no_runtime_takes(tmp_path: Path, length: int, stride: int) -> None:
    """The kept Conv gets explicit pads and nothing else: a dead model runs."""
    model = tiny.same_upper(length=length, stride=stride)
    with pytest.raises(Exception, match=r"(?i)auto_?pad|dilation|SAME"):
        tiny.run(save(model, tmp_path / "dead.onnx"), {"x": values(1, 2, length)})
    report, written = optimized(model, tmp_path, strategy=None)
    assert report.exit_code == 0
    assert attributes_changed(model, written) == {("conv", "auto_pad"), ("conv", "pads")}
    assert tiny.run(written, {"x": values(1, 2, length)})["y"].shape[2] == -(-length // stride)
    assert report.verdict is not None
    assert report.verdict.cases, "compared with the same Conv behind explicit pads"
    assert any("SAME_*" in note for note in report.verdict.notes)


@pytest.mark.parametrize("strategy", ["keep", "slice_to_batch"])
@pytest.mark.parametrize("stride", [1, 2])
def test_same_padding_of_unknown_length(tmp_path: Path, strategy: str, stride: int) -> None:
    report, written = optimized(tiny.same_upper(length="length", stride=stride), tmp_path, strategy=strategy)
    assert report.exit_code == 0
    for length in (1, 7, 8, 15):
        assert tiny.run(written, {"x": values(1, 2, length)})["y"].shape[2] == -(-length // stride)


# -- models that the checker refuses -------------------------------------------------------------------------------


def test_findings_as_delivered(tmp_path: Path) -> None:
    """A model that fails the checker, yet runs, is judged by what is new."""
    model = conv2d()
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2
    model.graph.value_info.append(helper.make_tensor_value_info("c", TensorProto.FLOAT, [1, 2, 5, 5]))
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(model, strict_mode=True)
    report, _ = optimized(model, tmp_path)
    assert report.exit_code == 0, report.verdict and report.verdict.failures
    assert report.verdict is not None
    assert report.verdict.checker_before


def test_duplicate_metadata_is_a_finding_as_delivered(tmp_path: Path) -> None:
    model = conv2d()
    model.metadata_props.add(key="a", value="1")
    model.metadata_props.add(key="a", value="1")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    report, _ = optimized(model, tmp_path)
    assert (report.exit_code, report.status) == (0, "rewritten"), report.verdict and report.verdict.failures
    assert report.verdict is not None
    assert report.verdict.checker_before


def test_unsorted_nodes(tmp_path: Path) -> None:
    """The checker stops at the first node that comes too early: the Conv before, one of its successors after."""
    path = save(tiny.unsorted(), tmp_path / "unsorted.onnx")
    assert tiny.run(path, {"x": values(1, 2, 16)})
    report, _ = optimized(tiny.unsorted(), tmp_path)
    assert (report.exit_code, report.status) == (0, "rewritten"), report.verdict and report.verdict.failures


def test_an_opset_newer_than_the_runtime(tmp_path: Path) -> None:
    """No runtime here loads it: that says nothing about the forms. Anything but `differs` will do."""
    newest = onnx.defs.onnx_opset_version()
    try:
        tiny.run(save(conv1d(opset=newest, ir=10), tmp_path / "new.onnx"), {"x": values(1, 2, 16)})
    except Exception:
        pass
    else:
        pytest.skip("the runtime knows every opset of this onnx")
    try:
        report, _ = optimized(conv1d(opset=newest, ir=10), tmp_path)
    except dilrewrite.DilrewriteError:
        return
    assert report.status != "differs"


def test_an_opset_newer_than_onnx_is_named_once_and_the_model_copied(tmp_path: Path) -> None:
    newest = onnx.defs.onnx_opset_version()
    for options in ({}, {"strategy": None, "budget": 2.0}):
        report, out = optimized(conv1d(opset=newest + 2, ir=15), tmp_path, force=True, **options)
        assert report.status == "kept"
        assert report.sites[0].reason.startswith(f"opset {newest + 2} is newer than {newest}, the newest that onnx ")
        assert not report.notes
        assert out.read_bytes() == (tmp_path / "m.onnx").read_bytes()
    report, _ = optimized(conv1d(opset=newest + 2, ir=15), tmp_path, eliminate=True, force=True)
    assert report.status == "dilation left"
    with pytest.raises(UsageError, match=rf"cannot time the models: opset {newest + 2} is newer than {newest}, "):
        dilrewrite.bench(tmp_path / "m.onnx", budget=1.0)


@pytest.mark.parametrize("opset", [7, 9])
def test_same_pads_that_no_opset_operator_spells_are_copied_with_advice(opset: int, tmp_path: Path) -> None:
    model = tiny.same_upper(length="length", stride=2, dilation=4, opset=opset, ir=8 if opset > 8 else 4)
    report, out = optimized(model, tmp_path, strategy=None, budget=2.0)
    assert report.status == "kept"
    assert f"(opset {opset} has no Pad" in report.sites[0].reason
    assert "convert the model to opset 11 or later" in report.sites[0].reason
    assert out.read_bytes() == (tmp_path / "m.onnx").read_bytes()
    for run in (lambda: dilrewrite.bench(out, budget=1.0), lambda: dilrewrite.verify(out, out)):
        with pytest.raises(UsageError) as error:
            run()
        assert error.value.hint.startswith("convert the model to opset 11 or later")


@pytest.mark.parametrize("level", ["DISABLE_ALL", "ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_LAYOUT", "ENABLE_ALL"])
def test_files_that_onnx_runtime_saved(level: str, tmp_path: Path) -> None:
    """FusedConv is written out; of its other layouts every command says so, and what to do."""
    runtime = pytest.importorskip("onnxruntime")
    image = [1, 8, 16, 16]
    nodes = [
        tiny.conv_node("x", "a", "w", name="c", dilations=[2, 2], pads=[2] * 4),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, f"ORT_{level}")
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "m.onnx"), 4
    source = tiny.build(nodes, {"x": image}, {"y": image}, {"w": values(8, 8, 3, 3)})
    runtime.InferenceSession(source.SerializeToString(), options, providers=["CPUExecutionProvider"])
    path = tmp_path / "m.onnx"
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert ("FusedConv" in operators) or level in ("DISABLE_ALL", "ENABLE_BASIC", "ENABLE_LAYOUT", "ENABLE_ALL")
    if "ReorderOutput" not in operators:
        report = dilrewrite.optimize(path, tmp_path / "out.onnx", eliminate=True, budget=0)
        assert (report.status, report.rewritten, report.notes) == ("rewritten", 1, ())
        assert dilrewrite.verify(path, tmp_path / "out.onnx").status == "equal"
        return
    reports = [
        dilrewrite.inspect(path),
        dilrewrite.optimize(path, tmp_path / "out.onnx", budget=0),
        dilrewrite.verify(path, path),
        dilrewrite.bench(path, budget=1.0),
    ]
    for report in reports:
        (told,) = [
            note for note in report.notes if note.startswith("ONNX Runtime saved this file with its own operators")
        ]
        assert told.endswith("start from the exported model")
        assert "start from the exported model" in report.skipped[0].reason


# -- wrong results -------------------------------------------------------------------------------------------------


def test_a_wrong_form_writes_a_report_and_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: Any) -> Any:
        return prove.Proof(
            shapes=(), elements=0, backend="onnxruntime_cpu", native_ran=True, rounding=None, failure="9 differ"
        )

    monkeypatch.setattr(prove.Prover, "prove", wrong)
    report, _ = optimized(two_convs(), tmp_path, report=tmp_path / "told", only="late")
    assert (report.status, report.exit_code, report.output, report.after) == ("differs", 3, None, None)
    assert report.verdict is not None
    assert report.verdict.failures == ("main/y: space_to_batch is wrong: 9 differ",)
    assert {path for path in listing(tmp_path) if path.endswith(".onnx")} == {"m.onnx"}
    written = json.loads((tmp_path / "told" / "report.json").read_text())
    assert (written["status"], written["exit_code"]) == ("differs", 3)
    assert [site["reason"] for site in written["sites"]] == [words(Reason.NOT_NAMED), words(Reason.WRONG)]


def test_a_rough_form_gives_way_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not wrong: with --eliminate the next one is taken, and the report names the first."""
    real = prove.Prover.prove

    def rough(self: Any, source: Any, site: Any, fragment: Any) -> Any:
        proof = real(self, source, site, fragment)
        return replace(proof, failure="rounding: much") if fragment.strategy == "space_to_axis" else proof

    monkeypatch.setattr(prove.Prover, "prove", rough)
    report, _ = optimized(conv1d(), tmp_path, strategy=None, eliminate=True)
    assert (report.status, report.exit_code) == ("rewritten", 0)
    (site,) = report.sites
    assert site.strategy != "space_to_axis"
    assert words(Reason.UNPROVED, strategy="space_to_axis", said="rounding: much") in site.reason
    assert ("space_to_axis", "rounding: much") in {(r.strategy, r.reason) for r in site.refused}


def test_only_the_whole_model_can_tell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every site is called proved, and one weight is not what it was: the comparison of the whole finds it."""

    def slip(graph: onnx.GraphProto) -> None:
        weight = onnx.numpy_helper.to_array(graph.initializer[0]).copy()
        weight[0, 0, 0] += 0.01
        graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))

    def passed(*_: Any) -> Any:
        return prove.Proof(shapes=(), elements=0, backend="", native_ran=True, rounding=None)

    monkeypatch.setattr(prove.Prover, "prove", passed)
    tiny.spoil(monkeypatch, slip)
    path = save(two_convs(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--strategy", "space_to_batch", "--json")
    assert (outcome.code, outcome.report["status"]) == (3, "differs")
    assert "output 'y'" in outcome.report["verdict"]["failures"][0]
    assert {name for name in listing(tmp_path) if name.endswith(".onnx")} == {"m.onnx"}
    assert json.loads((tmp_path / "m.dilrewrite.report" / "report.json").read_text())["status"] == "differs"


def wrongly_declared() -> ModelProto:
    """The Convs' outputs and one of the model's are declared as if nothing were dilated."""
    model = tiny.build(
        [
            tiny.conv_node("x", "a", dilations=[5], pads=[4, 4]),
            helper.make_node("GlobalMaxPool", ["a"], ["p"]),
            tiny.conv_node("x", "b", dilations=[3], strides=[2], name="second"),
            helper.make_node("GlobalMaxPool", ["b"], ["q"]),
            helper.make_node("Concat", ["p", "q"], ["y"], axis=1),
            tiny.conv_node("x", "z", dilations=[5], pads=[4, 4], name="third"),
        ],
        {"x": [1, 2, 16]},
        {"y": [1, 4, 1], "z": [1, 2, 16]},
        {"w": tiny.values(2, 2, 3)},
    )
    for name, length in (("a", 16), ("b", 7)):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, length]))
    return model


@pytest.mark.parametrize(
    "options",
    [{"strategy": name} for name in there("space_to_batch", "tap_sum", "tap_zones", "im2col", "slice_to_batch")]
    + [{"strategy": None, "eliminate": True}],
    ids=lambda options: options["strategy"] or "eliminate",
)
def test_findings_of_the_original_are_no_difference(options: dict[str, Any], tmp_path: Path) -> None:
    """A declared shape that was wrong before is wrong at another operator afterwards."""
    report, written = optimized(wrongly_declared(), tmp_path, **options)
    assert (report.status, report.exit_code) == ("rewritten", 0), report.verdict
    assert report.verdict is not None
    assert report.verdict.checker_after == ()
    assert len(report.verdict.checker_before) == 3
    feeds = {"x": tiny.values(1, 2, 16)}
    first, second = tiny.run(tmp_path / "m.onnx", feeds), tiny.run(written, feeds)
    for name, wanted in first.items():
        np.testing.assert_allclose(second[name], wanted, rtol=1e-4, atol=1e-5)


def test_what_the_checker_finds_in_the_result_alone_is_not_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result runs and computes the same; it says something wrong of a tensor."""

    def slip(graph: onnx.GraphProto) -> None:
        (name,) = (output.name for output in graph.output)
        inner = next(each for node in graph.node for each in node.output if each != name)
        graph.value_info.append(helper.make_tensor_value_info(inner, TensorProto.FLOAT, [1, 1, 999]))

    tiny.spoil(monkeypatch, slip)
    path = save(conv1d(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", path, "--strategy", "slice_to_batch", "--json")
    assert (outcome.code, outcome.report["status"]) == (3, "not valid")
    verdict = outcome.report["verdict"]
    assert (verdict["passed"], verdict["failures"]) == (True, [])
    assert "999" in verdict["checker_after"][0]
    assert {name for name in listing(tmp_path) if name.endswith(".onnx")} == {"m.onnx"}
    assert "DIFFER" not in (tmp_path / "m.dilrewrite.report" / "report.md").read_text()


def test_a_rewritten_model_that_does_not_load_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dilrewrite.runtimes import onnxruntime_cpu

    loaded = []

    def session(self: Any, runnable: Any, options: Any) -> Any:
        if options.isolated:  # whole models; sub-models are proved in this process
            loaded.append(runnable)
        if len(loaded) == 2:
            raise CannotLoad("no kernel")
        return self.loaded(runnable, options)

    monkeypatch.setattr(onnxruntime_cpu.OnnxRuntimeCpu, "session", session)
    report, written = optimized(conv1d(), tmp_path)
    assert report.status == "differs"
    assert report.verdict is not None
    assert "the rewritten model does not " in report.verdict.failures[0]
    assert "no kernel" in report.verdict.failures[0]
    assert not written.exists()


# -- another runtime ----------------------------------------------------------------------------------------------


def wrong_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that computes rewritten models otherwise, quickly, and says nothing."""
    from dilrewrite.runtimes import _worker

    outputs = _worker.IsolatedBench.outputs

    def other(self: Any, key: str) -> dict[str, Any]:
        found = outputs(self, key)
        if key in ("keep", "before", "anew"):
            return found
        return {name: 2 * value + (value.dtype.kind == "i") for name, value in found.items()}

    monkeypatch.setattr(_worker.IsolatedBench, "outputs", other)


@pytest.mark.measures
def test_what_a_runtime_computes_otherwise_is_not_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_here(monkeypatch)
    report, written = optimized(conv1d(), tmp_path, strategy=None, budget=4)
    assert report.exit_code == 0
    assert report.status in ("kept", "inconclusive")
    assert written.read_bytes() == (tmp_path / "m.onnx").read_bytes()


def classes() -> ModelProto:
    """A model that has no output but integers."""
    proto = conv1d()
    proto.graph.node.append(helper.make_node("ArgMax", ["y"], ["classes"], axis=1))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("classes", TensorProto.INT64, None))
    return proto


@pytest.mark.measures
@pytest.mark.parametrize("model", [conv1d, classes])
def test_what_a_runtime_computes_otherwise_and_was_asked_for_differs(
    model: Callable[[], ModelProto], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong_here(monkeypatch)
    report, written = optimized(model(), tmp_path, budget=2)
    assert report.exit_code == 3
    assert report.verdict is not None
    assert says(report.verdict.failures[0], Reason.DIFFERS)
    assert not written.exists()


# -- mutants -------------------------------------------------------------------------------------------------------

SHOWN_BY: tuple[Callable[[], ModelProto], ...] = (
    tiny.asymmetric,
    tiny.unequal_dilations,
    conv2d,
    tiny.dead_taps_in_front,
    tiny.tap_with_one_value,
    tiny.tap_with_one_value_behind,
    tiny.quantized,
    tiny.quantized_of_odd_length,
    tiny.same_upper,
    tiny.same_upper_of_unknown_length,
)
"""Models on one of which at least a mutant computes something else."""


@pytest.mark.parametrize(
    ("mutant", "strategy"),
    [(mutant, strategy) for mutant in MUTANTS for strategy in TARGETS[mutant] if strategy != "keep"],
)
@pytest.mark.grid(4)
def test_mutants_write_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, mutant: str, strategy: str) -> None:
    """From the command line: exit code 3, a report that names the site, and no model."""
    for made in SHOWN_BY:
        folder = tmp_path / made.__name__
        folder.mkdir()
        path = save(made(), folder / "m.onnx")
        with MUTANTS[mutant]():
            outcome = cli(capsys, "optimize", path, "--strategy", strategy, "--json")
        if outcome.code == 0:
            continue
        assert outcome.code == 3
        report = json.loads((folder / "m.dilrewrite.report" / "report.json").read_text())
        assert (report["status"], report["exit_code"]) == ("differs", 3)
        (site,) = report["sites"]
        named = (f": {strategy} is wrong", ": keep with explicit pads is wrong")
        failures = report["verdict"]["failures"]
        assert any(failure.startswith(site["key"]) and any(form in failure for form in named) for failure in failures)
        assert {name for name in listing(folder) if name.endswith(".onnx")} == {"m.onnx"}
        return
    pytest.fail("no model shows the mutant: it would be written")


@pytest.mark.parametrize("name", [*REGION_MUTANTS, *NESTED_MUTANTS])
def test_mutants_of_regions_write_no_model(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    mutant = (REGION_MUTANTS | NESTED_MUTANTS)[name]
    path = save(mutant.model(), tmp_path / "m.onnx")
    form = f"{mutant.form}:block={mutant.block[0]}" if mutant.block else mutant.form
    with mutant.enter():
        outcome = cli(capsys, "optimize", path, "--strategy", form, "--json")
    assert outcome.code == 3
    report = json.loads((tmp_path / "m.dilrewrite.report" / "report.json").read_text())
    assert (report["status"], report["exit_code"]) == ("differs", 3)
    assert any(f"{mutant.form} is wrong" in failure for failure in report["verdict"]["failures"])
    assert {place for place in listing(tmp_path) if place.endswith(".onnx")} == {"m.onnx"}


@pytest.mark.parametrize("strategy", ["keep", "space_to_batch", "im2col"])
def test_same_pads_are_proved_by_something_else(tmp_path: Path, strategy: str) -> None:
    """The form, the truth of its proof and the model it is compared with must not all rest on one function."""
    path = save(tiny.same_upper(), tmp_path / "m.onnx")
    with MUTANTS["same_pads_the_other_way"]():
        report = dilrewrite.optimize(path, strategy=strategy)
    assert report.status == "differs"


def test_a_kept_conv_made_explicit_is_proved_too(tmp_path: Path) -> None:
    """The Conv stays, but its SAME_* pads are computed in the graph from now on: new nodes, which may be wrong."""
    path = save(tiny.same_upper(length="length", stride=2, dilation=3), tmp_path / "m.onnx")
    with MUTANTS["computed_same_pads_the_other_way"]():
        report = dilrewrite.optimize(path, strategy="keep")
    assert report.status == "differs"


# -- the Python interface ------------------------------------------------------------------------------------------


def test_typed_reports(tmp_path: Path) -> None:
    report, written = optimized(aspp(size=14, rate=6), tmp_path)
    assert isinstance(report, dilrewrite.Report)
    assert isinstance(report.before, ModelReport)
    assert all(isinstance(site, SiteReport) for site in report.sites)
    assert isinstance(report.sites[0].geometry, dilrewrite.ConvGeometry)
    assert isinstance(report.sites[0].proof, dilrewrite.Proof)
    assert isinstance(report.verdict, dilrewrite.Verdict)
    assert report.output == str(written)
    assert report.rewritten == 2
    assert dilations(written) == [1, 1, 1]
    inspected = dilrewrite.inspect(str(tmp_path / "m.onnx"))
    assert (inspected.status, len(inspected.sites), inspected.output) == ("inspected", 2, None)
    with pytest.raises(AttributeError):
        report.status = "kept"  # type: ignore[misc]


def test_verify_after_optimize(tmp_path: Path) -> None:
    """The three functions in one program."""
    report, written = optimized(conv1d(), tmp_path)
    assert report.output is not None
    judged = dilrewrite.verify(tmp_path / "m.onnx", written)
    assert (judged.command, judged.status, judged.exit_code) == ("verify", "equal", 0)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"strategy": "space_to_group"}, ["--strategy", "space_to_group"]),
        ({"eliminate": True}, ["--eliminate"]),
        ({"eliminate": True, "max_dilation": 2}, ["--eliminate", "--max-dilation", "2"]),
        ({"strategy": "im2col", "only": "far"}, ["--strategy", "im2col", "--only", "far"]),
        ({"strategy": "im2col", "verify": "none"}, ["--strategy", "im2col", "--verify", "none"]),
        ({}, []),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_same_bytes_as_from_the_command_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: dict[str, Any], arguments: list[str]
) -> None:
    path = save(aspp(size=14, rate=6), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "api.onnx", **options)
    outcome = cli(capsys, "optimize", path, "-o", tmp_path / "cli.onnx", *arguments, "--no-report", "--json")
    assert (tmp_path / "api.onnx").read_bytes() == (tmp_path / "cli.onnx").read_bytes()
    assert (report.status, report.exit_code) == (outcome.report["status"], outcome.code)
    plain = json.loads(json.dumps(report.as_dict()))
    for key in ("sites", "skipped", "verdict", "before"):
        assert plain[key] == outcome.report[key]


def test_no_reports_unless_asked(tmp_path: Path) -> None:
    optimized(conv1d(), tmp_path)
    assert sorted(listing(tmp_path)) == ["m.dilrewrite.onnx", "m.onnx"]


def test_dry_run_with_a_report_folder_writes_nothing(tmp_path: Path) -> None:
    report, _ = optimized(conv1d(), tmp_path, dry_run=True, report=tmp_path / "told")
    assert (report.status, report.output) == ("rewritten", None)
    assert list(listing(tmp_path)) == ["m.onnx"]


def test_progress(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    optimized(two_convs(), tmp_path, progress=lambda *step: seen.append(step))
    assert seen == [("prove", 0, 2), ("prove", 1, 2), ("prove", 2, 2), ("verify", 0, 1), ("verify", 1, 1)]


@pytest.mark.parametrize(
    "options",
    [
        {"verify": "bogus"},
        {"verify": "none", "strategy": None},
        {"max_dilation": 0},
        {"only": "("},
        {"strategy": "magic"},
        {"shapes": ["x"]},
        {"external_data": "bogus"},
        {"rtol": float("nan")},
        {"atol": -1.0},
        {"seed": -1},
        {"threads": 0},
        {"budget": -1.0},
        {"budget": float("nan")},
        {"budget": float("inf")},
        {"backend": "magic", "budget": 1.0},
        {"cache": "t.sqlite", "no_cache": True},
        {"decisions": "d.json"},
        {"decisions": "d.json", "strategy": None, "eliminate": True},
        {"decisions": "nowhere.json", "strategy": None},
        {"save_decisions": "nowhere/d.json"},
    ],
    ids=str,
)
def test_wrong_options_raise(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(dilrewrite.UsageError):
        optimized(conv1d(), tmp_path, **options)
    assert list(listing(tmp_path)) == ["m.onnx"]


def test_an_interrupt_goes_through(tmp_path: Path) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimized(conv1d(), tmp_path, progress=interrupt)
    assert list(listing(tmp_path)) == ["m.onnx"]


def test_a_relative_path_and_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(conv1d(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    report = dilrewrite.optimize("m.onnx", strategy="im2col")
    assert report.output == "m.dilrewrite.onnx"
    assert Path(report.output).exists()


def test_counts(tmp_path: Path) -> None:
    report, written = optimized(aspp(size=14, rate=6), tmp_path, strategy="space_to_batch", only="near")
    assert report.after is not None
    assert (report.before.dilated, report.after.dilated) == (2, 1)
    assert report.before.operators == {"Conv": 3, "Sum": 1}
    nodes = onnx.load(written).graph.node
    assert report.after.nodes == len(nodes) == sum(report.after.operators.values())
    assert report.after.opsets == report.before.opsets == {"ai.onnx": 17}


UNUSUAL = (
    tiny.sequence_output,
    tiny.map_output,
    tiny.string_input,
    tiny.no_inputs,
    tiny.no_samples,
    tiny.no_batch,
    tiny.unnamed_nodes,
)


@pytest.mark.parametrize("made", UNUSUAL, ids=lambda made: made.__name__)
@pytest.mark.parametrize("options", [{"strategy": "space_to_batch"}, {"eliminate": True, "strategy": None}], ids=str)
def test_unusual_models(tmp_path: Path, made: Callable[[], ModelProto], options: dict[str, Any]) -> None:
    report, written = optimized(made(), tmp_path, **options)
    assert (report.exit_code, report.status) == (0, "rewritten"), report.verdict and report.verdict.failures
    assert report.verdict is not None
    assert report.verdict.cases
    assert max(dilations(written), default=1) == 1


def test_a_subgraph_is_reached(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [conv_node("x", "b", name="deep")], "branch", [], [helper.make_tensor_value_info("b", 1, None)]
    )
    model = build(
        [helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=branch)],
        {"x": [1, 2, 16], "flag": []},
        {"y": None},
        {"w": values(2, 2, 3)},
        types={"flag": TensorProto.BOOL},
    )
    report, written = optimized(model, tmp_path)
    assert (report.exit_code, report.rewritten) == (0, 2)
    assert dilations(written) == [1, 1]
    assert {site.where for site in report.sites} == {"main/if.then_branch", "main/if.else_branch"}


@pytest.mark.parametrize(
    ("asked", "first"), [("space_to_batch", "Reshape"), ("space_to_batch:layout=depth", "SpaceToDepth")]
)
@pytest.mark.parametrize("budget", [0, 1])
def test_a_form_by_hand_makes_phases_as_the_runtime_named_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, first: str, budget: int
) -> None:
    monkeypatch.setattr("dilrewrite.runtimes.onnxruntime_cpu.OnnxRuntimeCpu.layout", "axes")
    given, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(tiny.conv2d(dilation=2), given)
    dilrewrite.optimize(given, out, strategy=asked, backend="onnxruntime_cpu", budget=budget)
    operators = [node.op_type for node in onnx.load(out).graph.node]
    assert next(op for op in operators if op in ("Reshape", "SpaceToDepth")) == first
