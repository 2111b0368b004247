"""The pass for ONNX IR, in its own pipelines, and with ONNX Script's optimizer."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, helper

import dilrewrite
from dilrewrite.errors import DiffersError, FailedError, UsageError
from dilrewrite.model import load
from tests import models_for_tests as tiny

ir = pytest.importorskip("onnx_ir", reason="onnx-ir is not installed")

from onnx_ir.passes import common  # noqa: E402

from dilrewrite.integrations.onnx_ir import DilatedConvPass  # noqa: E402

pytestmark = pytest.mark.usefixtures("in_process")


def in_function() -> ModelProto:
    """A dilated Conv in a function of the model."""
    conv = tiny.conv_node("a", "c", "b", kernel_shape=[3], dilations=[2], pads=[2, 2])
    function = helper.make_function("local", "Atrous", ["a", "b"], ["c"], [conv], [helper.make_opsetid("", 17)])
    return tiny.build(
        [helper.make_node("Atrous", ["x", "w"], ["y"], domain="local")],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": tiny.values(2, 2, 3)},
        domains=["local"],
        functions=[function],
    )


MODELS = {
    "1-D": tiny.conv1d,
    "2-D": tiny.conv2d,
    "two": tiny.two_convs,
    "function": in_function,
    "unnamed": tiny.unnamed_nodes,
    "quantised": tiny.quantized,
}


def data(model: Any) -> bytes:
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def wide() -> ModelProto:
    """Two Convs with weights of 972 bytes each, of which `im2col` edits the first's."""
    return tiny.build(
        [tiny.conv_node("x", "a", dilations=[2]), tiny.conv_node("a", "y", "v", name="plain", pads=[0, 0])],
        {"x": [1, 9, 20]},
        {"y": [1, 9, 14]},
        {"w": tiny.values(9, 9, 3, seed=1), "v": tiny.values(9, 9, 3, seed=2)},
    )


@pytest.mark.parametrize("name", MODELS)
def test_it_becomes_in_place_what_optimize_makes(name: str) -> None:
    proto = MODELS[name]()
    model = ir.from_proto(proto)
    first = data(model)
    run = DilatedConvPass(strategy="slice_to_batch", max_dilation=1)
    result = run(model)
    assert result.model is model
    assert result.modified
    assert run.report is not None
    assert (run.report.status, run.report.model) == ("rewritten", None)
    direct = dilrewrite.optimize(ModelProto.FromString(first), strategy="slice_to_batch")
    assert direct.model is not None
    assert data(model) == data(ir.from_proto(direct.model))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert dilrewrite.verify(proto, ir.to_proto(model)).status == "equal"


@pytest.mark.parametrize("made", [tiny.conv1d, tiny.plain, tiny.transposed], ids=["kept", "nothing", "left alone"])
def test_a_model_that_is_kept_is_not_touched(made: Callable[[], ModelProto]) -> None:
    model = ir.from_proto(made())
    graph, first, tensors = model.graph, data(model), [*model.graph.initializers.values()]
    result = DilatedConvPass(budget=0)(model)
    assert (result.model, result.modified) == (model, False)
    assert model.graph is graph
    assert data(model) == first
    assert all(one.const_value is value.const_value for one, value in zip(tensors, tensors, strict=True))


def test_in_sequences() -> None:
    proto = tiny.two_convs()
    model = ir.from_proto(proto)
    run = DilatedConvPass(eliminate=True)
    sequence = ir.passes.Sequential(
        common.ClearMetadataAndDocStringPass(), run, common.CommonSubexpressionEliminationPass()
    )
    assert sequence.in_place
    manager = ir.passes.PassManager([sequence], steps=3)
    assert manager(model).modified
    assert run.report is not None
    assert run.report.status == "nothing to rewrite", "of the second step, after which there was no third"
    assert run.report.sites == (), "what the first step made holds no dilated Conv"
    assert dilrewrite.inspect(ir.to_proto(model)).sites == ()
    assert dilrewrite.verify(proto, ir.to_proto(model)).status == "equal"
    functional = ir.passes.functionalize(run)
    other = ir.from_proto(proto)
    assert functional(other).model is not other
    assert len(dilrewrite.inspect(ir.to_proto(other)).sites) == 2


def test_options_choose_the_nodes() -> None:
    model = ir.from_proto(tiny.two_convs(first=2, second=4))
    DilatedConvPass(eliminate=True, max_dilation=2)(model)
    assert {max(site.geometry.dilations) for site in dilrewrite.inspect(ir.to_proto(model)).sites} == {2}
    names = [site.name for site in dilrewrite.inspect(tiny.two_convs()).sites]
    for more in ({"only": f"^{names[0]}$"}, {"skip": f"^{names[1]}$"}):
        model = ir.from_proto(tiny.two_convs())
        DilatedConvPass(strategy="im2col", **more)(model)
        assert [site.name for site in dilrewrite.inspect(ir.to_proto(model)).sites] == names[1:]


@pytest.mark.parametrize("order", ["before", "after", "both"])
def test_with_the_optimizer_of_onnx_script(order: str) -> None:
    optimizer = pytest.importorskip("onnxscript.optimizer", reason="onnxscript is not installed")
    proto = tiny.two_convs()
    model = ir.from_proto(proto)
    if order != "after":
        optimizer.optimize(model)
    DilatedConvPass(eliminate=True)(model)
    if order != "before":
        optimizer.optimize(model)
    assert dilrewrite.inspect(ir.to_proto(model)).sites == ()
    assert dilrewrite.verify(proto, ir.to_proto(model)).status == "equal"


# -- weights ---------------------------------------------------------------------------------------------------------


def weights(model: Any) -> dict[str, Any]:
    return {value.name: value.const_value for graph in model.graphs() for value in graph.initializers.values()}


@pytest.mark.parametrize("where", ["in memory", "in files"])
def test_weights_that_no_form_edits_stay_what_they_are(where: str, tmp_path: Path) -> None:
    """Also where they are: after the pass, those in files are in the same files, and nothing needs its own."""
    proto = wide()
    path = tiny.save_external(proto, tmp_path / "m.onnx", files=2)
    model = ir.load(path) if where == "in files" else ir.from_proto(proto)
    before = weights(model)
    assert all(isinstance(tensor, ir.ExternalTensor) == (where == "in files") for tensor in before.values())
    DilatedConvPass(strategy="im2col")(model)
    after = weights(model)
    same = [name for name, tensor in after.items() if before.get(name) is tensor]
    assert len(same) == 1
    edited = [tensor for name, tensor in after.items() if name not in before]
    assert edited
    assert not any(isinstance(tensor, ir.ExternalTensor) for tensor in edited)
    ir.save(model, tmp_path / "out.onnx", external_data="out.data")
    assert dilrewrite.verify(proto, tmp_path / "out.onnx").status == "equal"


def test_models_above_the_limit_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if 2 GB were 1,500 bytes: the weights have more."""
    proto = wide()
    monkeypatch.setattr(load, "LIMIT_BYTES", 1500)
    assert proto.ByteSize() > 1500
    with pytest.raises(UsageError, match="2 GB or more"):
        dilrewrite.optimize(proto)
    model = ir.from_proto(proto)
    assert DilatedConvPass(strategy="im2col")(model).modified


def test_what_is_only_in_memory_stays() -> None:
    """`meta` of nodes, values and graphs, and the model's metadata."""
    model = ir.from_proto(tiny.two_convs(first=2, second=1))
    model.metadata_props["author"] = "me"
    model.graph.meta["graph"] = 1
    model.meta["model"] = 2
    kept = next(node for node in model.graph if node.outputs[0].name == "y")
    kept.meta["node"], kept.outputs[0].meta["value"] = 3, 4
    DilatedConvPass(strategy="im2col")(model)
    (same,) = (node for node in model.graph if node.outputs[0].name == "y")
    assert same is not kept
    assert (model.graph.meta["graph"], model.meta["model"]) == (1, 2)
    assert (same.meta["node"], same.outputs[0].meta["value"]) == (3, 4)
    assert model.metadata_props["author"] == "me"


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"strateggy": "im2col"}, TypeError, "unexpected keyword argument 'strateggy'; did you mean 'strategy'?"),
        ({"output": "m.onnx"}, TypeError, "unexpected keyword argument 'output'"),
        ({"budget": -1}, UsageError, "budget=-1: a finite number of seconds"),
        ({"only": "("}, UsageError, 'only="\\(": not a regular expression'),
        ({"report": "beside"}, UsageError, 'report="beside": a pass has no output'),
    ],
    ids=str,
)
def test_wrong_options_are_told_before_there_is_a_model(wrong: dict[str, Any], error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        DilatedConvPass(**wrong)


def fails(run: Any, model: Any) -> Exception:
    """The error of a pass within a sequence, which leaves the model as it was."""
    first, graph = data(model), model.graph
    with pytest.raises(ir.passes.PassError, match="An error occurred when running the 'DilatedConvPass") as caught:
        ir.passes.Sequential(run)(model)
    assert (data(model), model.graph) == (first, graph)
    inner = caught.value.__cause__
    assert isinstance(inner, ir.passes.PassError)
    assert isinstance(inner.__cause__, dilrewrite.DilrewriteError)
    assert str(inner) == str(inner.__cause__)
    return inner.__cause__


def test_a_model_that_cannot_be_used() -> None:
    old = tiny.conv1d()
    old.opset_import[0].version = 6
    error = fails(DilatedConvPass(), ir.from_proto(old))
    assert isinstance(error, UsageError)
    assert str(error).startswith("the model in memory: opset 6 is not supported")


def test_dilation_that_is_left() -> None:
    run = DilatedConvPass(eliminate=True)
    error = fails(run, ir.from_proto(tiny.transposed()))
    assert isinstance(error, FailedError)
    assert "ConvTranspose" in str(error)
    assert "--" not in str(error)
    assert run.report is not None
    assert run.report.status == "dilation left"


def test_results_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    def double(graph: onnx.GraphProto) -> None:
        tensor = graph.initializer[0]
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))

    tiny.spoil(monkeypatch, double)
    error = fails(DilatedConvPass(strategy="im2col"), ir.from_proto(tiny.conv1d()))
    assert isinstance(error, DiffersError)


def test_options_and_defaults_are_those_of_optimize() -> None:
    own = dict(inspect.signature(DilatedConvPass).parameters)
    theirs = inspect.signature(dilrewrite.optimize).parameters
    assert own == {name: theirs[name] for name in own}
    assert set(theirs) - set(own) == {
        *("model", "output"),  # the pass has its model
        *("dry_run", "external_data", "build_engine", "engine"),  # of files
        "progress",
    }
    assert repr(DilatedConvPass(eliminate=True, only="a")) == "DilatedConvPass(eliminate=True, only='a')"
    assert copy.copy(DilatedConvPass(seed=3))(ir.from_proto(tiny.plain())).modified is False
