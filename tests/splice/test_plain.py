"""FusedConv and calls that say how to dilate are written out, rewritten, proved, and put back where nothing changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, helper

import dilrewrite
from dilrewrite.model.load import load
from dilrewrite.model.tensors import InMemory, Model
from dilrewrite.proof.fused import unequal
from dilrewrite.sites.find import find
from dilrewrite.splice import fused, inline, plain
from tests import models_for_tests as tiny

pytestmark = pytest.mark.usefixtures("in_process")

ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "": (),
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": (0.1,),
    "HardSigmoid": (0.3, 0.4),
    "Clip": (-0.5, 0.75),
}


def fused_conv(source: str, output: str, activation: str, *, rank: int, added: str = "", **more: Any) -> NodeProto:
    """A FusedConv as ONNX Runtime writes it: three taps, so padded that the size stays."""
    inputs = [source, "w", "b", *([added] if added else [])]
    given = {"dilations": [2] * rank, "pads": [2] * 2 * rank, "kernel_shape": [3] * rank, **more}
    if activation:
        given |= {"activation": activation}
    if ACTIVATIONS[activation]:
        given |= {"activation_params": list(ACTIVATIONS[activation])}
    return helper.make_node("FusedConv", inputs, [output], name=f"{output}_conv", domain="com.microsoft", **given)


def saved(activation: str, *, rank: int = 1, added: bool = False, group: int = 1, opset: int = 17) -> ModelProto:
    """x -> FusedConv (+ x) -> FusedConv -> y, both dilated."""
    channels, shape = 4, [2, 4, *[9] * rank]
    nodes = [
        fused_conv("x", "a", activation, rank=rank, added="x" if added else "", group=group),
        fused_conv("a", "y", activation, rank=rank, group=group),
    ]
    weights = {"w": tiny.values(channels, channels // group, *[3] * rank), "b": tiny.values(channels, seed=1)}
    return tiny.build(nodes, {"x": shape}, {"y": shape}, weights, opset=opset, domains=["com.microsoft"])


def loaded(proto: ModelProto) -> Model:
    return load(InMemory(proto.SerializeToString(), "m"))


def eliminated(proto: ModelProto, tmp_path: Path, **options: Any) -> tuple[dilrewrite.Report, ModelProto | None]:
    onnx.save(proto, tmp_path / "m.onnx")
    output = tmp_path / "out.onnx"
    report = dilrewrite.optimize(tmp_path / "m.onnx", output, eliminate=True, budget=0, **options)
    return report, onnx.load(output) if output.exists() else None


# -- FusedConv ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("added", [False, True], ids=["", "added"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_no_dilation_is_left_in_a_fused_conv(activation: str, added: bool, tmp_path: Path) -> None:
    report, after = eliminated(saved(activation, added=added), tmp_path)
    assert (report.status, report.rewritten, report.notes) == ("rewritten", 2, ())
    assert report.verdict is not None
    assert report.verdict.passed
    assert not report.verdict.skipped
    assert after is not None
    assert "FusedConv" not in {node.op_type for node in after.graph.node}


@pytest.mark.parametrize("opset", [10, 11, 17])
@pytest.mark.parametrize(("rank", "group"), [(1, 1), (2, 2), (2, 4), (3, 1)])
@pytest.mark.parametrize("added", [False, True], ids=["", "added"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_parts_are_the_operator(activation: str, added: bool, rank: int, group: int, opset: int) -> None:
    model = plain.plain(loaded(saved(activation, added=added, rank=rank, group=group, opset=opset)))
    assert [len(written.nodes) > 1 or not activation for written in model.written_out] == [True, True]
    assert list(unequal(model)) == []


@pytest.mark.parametrize("activation", ["HardSigmoid", "Clip", "LeakyRelu", "Relu"])
@pytest.mark.parametrize("verify", ["full", "sites"])
def test_a_wrong_activation_is_not_written(
    activation: str, verify: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parameters in another order, another slope, or none of it: exit code 3."""
    right = fused.parts

    def wrong(node: NodeProto, *more: Any) -> Iterator[NodeProto]:
        for part in right(node, *more):
            if part.op_type == activation == "Clip":
                part.input[1], part.input[2] = part.input[2], part.input[1]
            elif part.op_type == activation == "HardSigmoid":
                alpha, beta = part.attribute
                alpha.f, beta.f = beta.f, alpha.f
            elif part.op_type == activation == "LeakyRelu":
                del part.attribute[:]
            elif part.op_type == activation:
                part.op_type = "Identity"
            yield part

    monkeypatch.setattr(plain, "parts", wrong)
    report, after = eliminated(saved(activation), tmp_path, verify=verify)
    assert (report.exit_code, after) == (3, None)
    assert report.verdict is not None
    assert report.verdict.failures[0].startswith("FusedConv 'a_conv' is not Conv, ")


@pytest.mark.parametrize("verify", ["full", "sites"])
def test_what_it_adds_is_not_forgotten(verify: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = fused.parts

    def wrong(node: NodeProto, *more: Any) -> Iterator[NodeProto]:
        for part in right(node, *more):
            if part.op_type == "Add":
                part.op_type = "Sub"
            yield part

    monkeypatch.setattr(plain, "parts", wrong)
    report, after = eliminated(saved("Relu", added=True), tmp_path, verify=verify)
    assert (report.exit_code, after) == (3, None)


def test_what_is_not_rewritten_is_put_back(tmp_path: Path) -> None:
    before = saved("Sigmoid", added=True)
    report, after = eliminated(before, tmp_path, only="y_conv")
    assert report.rewritten == 1
    assert after is not None
    assert after.graph.node[0] == before.graph.node[0]
    assert [node.op_type for node in after.graph.node].count("FusedConv") == 1


def test_a_model_that_is_kept_is_copied(tmp_path: Path) -> None:
    onnx.save(saved("Relu"), tmp_path / "m.onnx")
    report = dilrewrite.optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", budget=0)
    assert report.status == "kept"
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()


def test_an_activation_that_is_not_known_stays() -> None:
    proto = saved("Relu")
    for node in proto.graph.node:
        next(a for a in node.attribute if a.name == "activation").s = b"Softsign"
    assert plain.plain(loaded(proto)).written_out == ()
    (skipped, _) = find(proto).skipped
    assert "start from the exported model" in skipped.reason


def test_a_file_without_dilation_stays() -> None:
    proto = saved("Relu")
    for node in proto.graph.node:
        next(a for a in node.attribute if a.name == "dilations").ints[:] = [1]
    model = loaded(proto)
    assert plain.plain(model) is model


# -- functions ---------------------------------------------------------------------------------------------------------


def reference(node: NodeProto, **given: str) -> NodeProto:
    """The node with attributes of its function."""
    for name, of in given.items():
        node.attribute.append(AttributeProto(name=name, type=AttributeProto.INTS, ref_attr_name=of))
    return node


def function(name: str, nodes: list[NodeProto], *, opset: int = 17, defaults: Any = (), **more: Any) -> Any:
    inputs, outputs = more.pop("inputs", ["X", "W"]), more.pop("outputs", ["Y"])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    made = helper.make_function("local", name, inputs, outputs, nodes, imports, **more)
    made.attribute_proto.extend(defaults)
    return made


def calls(*nodes: NodeProto, functions: list[Any], same: bool = True) -> ModelProto:
    """A model of calls from x to y, which is of the same shape, with weights w of its own."""
    shape = (2, 4, 20)
    weights = {"w": tiny.values(4, 4, 3)}
    return tiny.build(
        nodes, {"x": shape}, {"y": shape if same else None}, weights, domains=["local"], functions=functions
    )


def call(name: str, source: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(name, [source, "w"], [output], name=f"{output}_call", domain="local", **attributes)


def atrous() -> Any:
    """Y = Conv(X, W), whose dilations and pads come with the call."""
    conv = reference(helper.make_node("Conv", ["X", "W"], ["Y"], name="conv"), dilations="rate", pads="pad")
    return function("Atrous", [conv], attributes=["rate", "pad"])


def fixed() -> Any:
    """Relu(Conv(X, W)), dilated by 3; only the weights come with the call."""
    conv = helper.make_node("Conv", ["X", "W"], ["c"], name="conv", dilations=[3], pads=[3, 3])
    return function("Fixed", [conv, helper.make_node("Relu", ["c"], ["Y"], name="relu")])


def two_rates() -> ModelProto:
    return calls(
        call("Atrous", "x", "a", rate=[2], pad=[2, 2]),
        call("Fixed", "a", "f"),
        call("Atrous", "f", "y", rate=[4], pad=[4, 4]),
        functions=[atrous(), fixed()],
    )


def nested() -> ModelProto:
    """Calls in calls: the outer one gives its own attribute on, and the default of the inner one's pads."""
    inner = reference(helper.make_node("Conv", ["X", "W"], ["Y"], name="conv"), dilations="rate", pads="pad")
    pads = AttributeProto(name="pad", type=AttributeProto.INTS, ints=[2, 2])
    outer = [
        reference(helper.make_node("Inner", ["X", "W"], ["h"], name="one", domain="local"), rate="speed"),
        reference(helper.make_node("Inner", ["h", "W"], ["Y"], name="two", domain="local", pad=[3, 3]), rate="speed"),
    ]
    functions = [
        function("Inner", [inner], attributes=["rate"], defaults=[pads]),
        function("Outer", outer, attributes=["speed"]),
    ]
    return calls(call("Outer", "x", "h", speed=[2]), call("Outer", "h", "y", speed=[3]), functions=functions)


def in_a_branch() -> ModelProto:
    """The Conv stands in a graph inside the function, which reads the function's tensors."""
    conv = reference(helper.make_node("Conv", ["X", "W"], ["c"], name="conv"), dilations="rate", pads="pad")
    graphs = {
        "then_branch": helper.make_graph([conv], "then", [], [helper.make_empty_tensor_value_info("c")]),
        "else_branch": helper.make_graph(
            [helper.make_node("Identity", ["X"], ["e"])], "else", [], [helper.make_empty_tensor_value_info("e")]
        ),
    }
    yes = helper.make_node("Constant", [], ["yes"], value=onnx.numpy_helper.from_array(np.array(True)))
    nodes = [yes, helper.make_node("If", ["yes"], ["Y"], name="if", **graphs)]
    branch = function("Branch", nodes, attributes=["rate", "pad"])
    return calls(
        call("Branch", "x", "a", rate=[2], pad=[2, 2]), call("Branch", "a", "y", rate=[3], pad=[3, 3]),
        functions=[branch],
    )  # fmt: skip


def left_out() -> ModelProto:
    """Optional inputs that are left out, an output that is an input, and one that nothing reads."""
    conv = reference(helper.make_node("Conv", ["X", "W", "B"], ["Y"], name="conv"), dilations="rate", pads="pad")
    relu = helper.make_node("Relu", ["Y"], ["Z"], name="relu")
    more = {"inputs": ["X", "W", "B"], "outputs": ["Y", "X", "Z"], "attributes": ["rate", "pad"]}
    node = helper.make_node(
        "Three", ["x", "w", ""], ["a", "same"], name="call", domain="local", rate=[2], pad=[2, 2]
    )  # fmt: skip
    add = helper.make_node("Add", ["a", "same"], ["y"], name="add")
    return calls(node, add, functions=[function("Three", [conv, relu], **more)])


CALLS = {
    "two rates": (two_rates, 3),
    "nested": (nested, 4),
    "in a branch": (in_a_branch, 2),
    "left out": (left_out, 1),
    "unknown sizes": (lambda: _open(two_rates()), 3),
}


def _open(proto: ModelProto) -> ModelProto:
    for axis in (0, 2):
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[axis].dim_param = f"n{axis}"
    return proto


@pytest.mark.parametrize("name", CALLS)
def test_each_call_is_rewritten(name: str, tmp_path: Path) -> None:
    make, count = CALLS[name]
    onnx.checker.check_model(make())
    report, after = eliminated(make(), tmp_path)
    assert (report.status, report.rewritten) == ("rewritten", count)
    assert report.verdict is not None
    assert report.verdict.passed
    assert not report.verdict.skipped
    assert after is not None
    assert list(after.functions) == []
    assert find(after).sites == find(after).skipped == ()
    onnx.checker.check_model(after, full_check=True)


def test_branches_without_sizes_are_no_error_in_a_model_that_has_one(tmp_path: Path) -> None:
    """The model's output lacks its shape, which is an error; in outputs of branches, one for each call, it is none."""
    before = in_a_branch()
    for attribute in before.functions[0].node[1].attribute:
        attribute.g.output[0].type.tensor_type.elem_type = 1
    before.graph.output[0].type.tensor_type.ClearField("shape")
    report, _ = eliminated(before, tmp_path)
    assert (report.status, report.rewritten) == ("rewritten", 2)
    assert report.verdict is not None
    assert len(report.verdict.checker_before) == 1


def test_a_call_that_is_not_rewritten_stays(tmp_path: Path) -> None:
    before = two_rates()
    report, after = eliminated(before, tmp_path, only="y_call")
    assert report.rewritten == 1
    assert after is not None
    assert list(after.graph.node[:2]) == list(before.graph.node[:2])
    assert list(after.functions) == list(before.functions)
    report, after = eliminated(before, tmp_path, only="f_call", force=True)
    assert after is not None
    assert [each.name for each in after.functions] == ["Atrous"]


@pytest.mark.parametrize("options", [{"eliminate": True}, {"strategy": "space_to_batch", "skip": "second"}])
def test_calls_that_say_same_upper_run_although_onnx_runtime_refuses_them(
    options: dict[str, Any], tmp_path: Path
) -> None:
    body = helper.make_node("Conv", ["a", "k"], ["o"], name="inner")
    for name, kind in (("auto_pad", AttributeProto.STRING), ("dilations", AttributeProto.INTS)):
        body.attribute.add(name=name, ref_attr_name=f"my_{name}", type=kind)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("my", 1)]
    function = helper.make_function("my", "F", ["a", "k"], ["o"], [body], imports[:1], ["my_auto_pad", "my_dilations"])
    said: dict[str, Any] = {"domain": "my", "my_auto_pad": "SAME_UPPER", "my_dilations": [2]}
    calls = [helper.make_node("F", ["x", "w"], ["m"], name="first", **said)]
    calls += [helper.make_node("F", ["m", "w"], ["y"], name="second", **said)]
    model = tiny.build(calls, {"x": [1, 4, 9]}, {"y": [1, 4, 9]}, {"w": tiny.values(4, 4, 3)})
    del model.opset_import[:]
    model.opset_import.extend(imports)
    model.functions.append(function)
    onnx.save(model, tmp_path / "m.onnx")
    report = dilrewrite.optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", budget=0, **options)
    assert report.status == "rewritten"
    assert dilrewrite.verify(tmp_path / "m.onnx", tmp_path / "out.onnx").status == "equal"


def test_the_fixed_function_by_itself_is_shared(tmp_path: Path) -> None:
    """Nothing of it comes with the call: it is rewritten once, for all calls."""
    conv = helper.make_node("Conv", ["X", "k"], ["Y"], name="conv", dilations=[3], pads=[3, 3])
    constant = helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(tiny.values(4, 4, 3)))
    proto = calls(call("Own", "x", "a"), call("Own", "a", "y"), functions=[function("Own", [constant, conv])])
    assert plain.plain(loaded(proto)).written_out == ()
    report, after = eliminated(proto, tmp_path)
    assert report.rewritten == 1
    assert after is not None
    assert [node.op_type for node in after.graph.node] == ["Own", "Own"]


def test_what_cannot_be_written_out_says_what_to_do() -> None:
    """A function of another operator version than the model's, whose graph cannot hold its nodes."""
    proto = two_rates()
    for one in proto.functions:
        next(entry for entry in one.opset_import if not entry.domain).version = 16
    assert plain.plain(loaded(proto)).written_out == ()
    reasons = [skipped.reason for skipped in find(proto).skipped]
    assert len(reasons) == 2
    assert all("inline it first, by onnx.inliner.inline_local_functions" in reason for reason in reasons)


def test_too_many_nodes_are_not_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline, "MOST_NODES", 3)
    assert plain.plain(loaded(two_rates())).written_out == ()


@pytest.mark.parametrize("mutant", ["the first call's", "another rate", "names shared"])
def test_a_wrong_copy_is_not_written(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, first = inline._Copy, {}
    if mutant == "names shared":
        monkeypatch.setattr(kind, "_value", lambda self, name: self.values.get(name, name))
    else:
        right = kind._attribute

        def wrong(self: Any, attribute: AttributeProto) -> AttributeProto | None:
            given = right(self, attribute)
            if mutant == "another rate" and attribute.ref_attr_name == "rate":
                given.ints[0] += 1
                return given
            return first.setdefault(attribute.ref_attr_name, given) if attribute.ref_attr_name == "rate" else given

        monkeypatch.setattr(kind, "_attribute", wrong)
    conv = reference(helper.make_node("Conv", ["X", "W"], ["c"], name="conv"), dilations="rate")
    end = helper.make_node("Abs", ["c"], ["Y"], name="abs")
    proto = calls(
        call("Two", "x", "a", rate=[2]), call("Two", "a", "y", rate=[3]),
        functions=[function("Two", [conv, end], attributes=["rate"])], same=False,
    )  # fmt: skip
    report, after = eliminated(proto, tmp_path)
    assert (report.exit_code, after) == (3, None)
