"""What the ONNX checker and shape inference say against a model: each error once, by kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper

from dilrewrite.proof.findings import UNSORTED, Finding, findings, fresh
from tests import models_for_tests as tiny
from tests.models_for_tests import build, conv1d, conv2d, conv_node, values


def texts(model: ModelProto) -> list[str]:
    return [finding.text for finding in findings(model)]


def kinds(model: ModelProto) -> list[str]:
    return [finding.kind for finding in findings(model)]


def declare(graph: GraphProto, name: str, *shape: int | None, element: int = TensorProto.FLOAT) -> None:
    graph.value_info.append(helper.make_tensor_value_info(name, element, shape))


def relus(*names: str) -> ModelProto:
    """x -> Relu -> ... -> the last name."""
    nodes = [
        helper.make_node("Relu", [one], [other], name=f"to {other}")
        for one, other in zip(("x", *names), names, strict=False)
    ]
    return build(nodes, {"x": [1, 2, 16]}, {names[-1]: [1, 2, 16]})


def with_attribute(model: ModelProto, *places: int) -> ModelProto:
    """Some nodes get an attribute that the operator does not have."""
    for place in places:
        model.graph.node[place].attribute.append(helper.make_attribute("sharpness", 1))
    return model


def test_a_good_model_has_none() -> None:
    assert findings(conv2d()) == []
    assert findings(conv1d(batch="n", length="t")) == []


@pytest.mark.parametrize("name", tiny.DEMOS)
def test_the_demo_models_have_none(name: str) -> None:
    assert findings(onnx.load(tiny.MODELS / f"{name}.onnx")) == []


def test_external_data_of_an_edited_model(tmp_path: Path) -> None:
    """The model in memory refers to data beside the original."""
    path = tiny.save_external(conv2d(channels=8), tmp_path / "m.onnx", files=1)
    assert findings(onnx.load(path, load_external_data=False)) == []


# -- the checker -----------------------------------------------------------------------------------------------------


def test_nodes_in_another_order_are_one_finding() -> None:
    assert findings(tiny.unsorted()) == [Finding(UNSORTED, UNSORTED)]


def test_what_stands_behind_another_order_is_found_too() -> None:
    assert len(findings(with_attribute(tiny.unsorted(), 0, 1))) == 3


def test_every_node_is_asked() -> None:
    found = findings(with_attribute(relus("a", "b", "c"), 0, 2))
    assert ["sharpness" in finding.text and "\n" not in finding.text for finding in found] == [True, True]
    assert len({finding.kind for finding in found}) == 1, "the same error"


def test_the_kind_has_no_names() -> None:
    """A Relu with two inputs: the checker's words have the node's name."""
    found = []
    for name in ("a node", "input"):
        model = relus("a", "b")
        model.graph.node[0].name = name
        model.graph.node[0].input.append("x")
        found += findings(model)
    assert len({finding.text for finding in found}) == 2
    assert len({finding.kind for finding in found}) == 1


def test_nodes_inside_others_and_in_functions_are_asked() -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"], sharpness=1)],
        "branch",
        [],
        [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)],
    )
    node = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    model = build([node], {"x": [1, 2]}, {"y": None}, {"yes": np.array(True)})
    assert sum("sharpness" in text for text in texts(model)) == 2
    opsets = [helper.make_opsetid("", 17)]
    called = helper.make_function("local", "Called", ["x"], ["r"], inner.node, opsets)
    call = helper.make_node("Called", ["x"], ["y"], domain="local")
    model = build([call], {"x": [1, 2]}, {"y": [1, 2]}, domains=["local"], functions=[called])
    assert sum("sharpness" in text for text in texts(model)) == 1


def test_inputs_and_outputs_are_asked() -> None:
    """Neither has a shape; behind them is a node with another error."""
    model = with_attribute(relus("a"), 0)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    found = kinds(model)
    assert (sum("shape" in kind for kind in found), sum("sharpness" in kind for kind in found)) == (2, 1)
    assert len(set(found)) == 2


def test_tensors_are_asked() -> None:
    model = with_attribute(conv1d(), 0)
    model.graph.initializer[0].raw_data = b"four"
    assert sum("sharpness" in text for text in texts(model)) == 1
    assert len(texts(model)) >= 2


def test_what_concerns_the_whole_graph() -> None:
    model = with_attribute(relus("a"), 0)
    model.graph.name = ""
    assert sum("name" in text and "graph" in text for text in texts(model)) == 1
    assert sum("sharpness" in text for text in texts(model)) == 1


def test_a_newer_ir_version_hides_nothing() -> None:
    model = with_attribute(relus("a"), 0)
    model.ir_version = onnx.IR_VERSION + 1
    assert ["ir_version" in texts(model)[0], "sharpness" in texts(model)[1]] == [True, True]


def test_asking_changes_nothing() -> None:
    model = with_attribute(relus("a", "b"), 0)
    declare(model.graph, "a", 1, 2, 99)
    before = model.SerializeToString(deterministic=True)
    assert len(findings(model)) == 2
    assert model.SerializeToString(deterministic=True) == before


# -- shape inference -------------------------------------------------------------------------------------------------


def test_a_declared_output() -> None:
    model = conv2d()
    model.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 999
    assert texts(model) == ["'y' is declared float [1, 2, 999, ?], and inference says float [1, 2, 12, 12]"]


def test_every_declared_shape_that_is_wrong() -> None:
    """Each is compared with what follows from the inputs: a right one behind a wrong one is no finding."""
    model = relus("a", "b", "c", "d")
    declare(model.graph, "a", 1, 2, 99)
    declare(model.graph, "b", 1, 2, 16)
    declare(model.graph, "c", 1, 2)
    assert texts(model) == [
        "'a' is declared float [1, 2, 99], and inference says float [1, 2, 16]",
        "'c' is declared float [1, 2], and inference says float [1, 2, 16]",
    ]


def test_a_declared_type() -> None:
    model = relus("a", "b")
    declare(model.graph, "a", 1, 2, 16, element=TensorProto.DOUBLE)
    assert "'a' is declared double [1, 2, 16], and inference says float [1, 2, 16]" in texts(model)


def test_a_declared_type_that_nobody_knows() -> None:
    model = relus("a", "b")
    declare(model.graph, "a", 1, 2, 16, element=77)
    assert "'a' is declared element type 77 [1, 2, 16], and inference says float [1, 2, 16]" in texts(model)


def test_what_is_open_contradicts_nothing() -> None:
    model = relus("a", "b")
    declare(model.graph, "a", None, 2, None)
    assert findings(model) == []
    model = conv1d(batch="n", length="t", pads=[1, 1])
    declare(model.graph, "y", 1, 2, 16)
    assert findings(model) == []


def test_a_declared_shape_inside() -> None:
    inner = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Relu", ["r"], ["s"])],
        "branch",
        [],
        [helper.make_tensor_value_info("s", TensorProto.FLOAT, None)],
    )
    declare(inner, "r", 1, 3)
    node = helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner)
    model = build([node], {"x": [1, 2]}, {"y": [1, 2]}, {"yes": np.array(True)})
    assert texts(model) == ["'r' is declared float [1, 3], and inference says float [1, 2]"] * 2


def test_every_node_that_inference_refuses() -> None:
    """Both products have factors that do not fit."""
    nodes = [helper.make_node("MatMul", ["x", name], [f"y{name}"], name=f"at {name}") for name in "ab"]
    weights = {"a": values(5, 5), "b": values(7, 7)}
    model = build(nodes, {"x": [2, 3]}, {"ya": None, "yb": None}, weights)
    for output in model.graph.output:
        output.type.tensor_type.shape.SetInParent()
    found = [finding for finding in findings(model) if "MatMul" in finding.text]
    assert ["at a" in found[0].text, "at b" in found[1].text, len(found)] == [True, True, 2]
    assert found[0].kind == found[1].kind


def test_what_inference_says_against_a_node_without_a_name() -> None:
    branch = helper.make_node("If", ["yes"], ["z"], then_branch=GraphProto(name="a"), else_branch=GraphProto(name="b"))
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    weights = {"yes": np.array(True), "w": values(5, 5)}
    model = build([branch, product], {"x": [2, 3]}, {"y": None}, weights)
    found = [text for text in texts(model) if "ference" in text]
    assert ["If (no name)" in found[0], "MatMul product" in found[1], len(found)] == [True, True, 2]
    del model.graph.node[1]
    assert [text for text in texts(model) if "ference" in text] == found[:1]


def test_what_inference_says_against_no_node() -> None:
    """Two functions have one name: the error has no node in it, and inference stops there."""
    opsets = [helper.make_opsetid("", 17)]
    called = helper.make_function("local", "Called", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], opsets)
    call = helper.make_node("Called", ["x"], ["y"], domain="local", name="call")
    model = build([call], {"x": [1, 2]}, {"y": [1, 2]}, domains=["local"], functions=[called, called])
    assert any("multiple local functions" in text for text in texts(model))
    assert fresh(findings(model), findings(model)) == []


# -- what is new -----------------------------------------------------------------------------------------------------


def of(*kinds: str) -> list[Finding]:
    return [Finding(kind, f"{kind} {place}") for place, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ([], [], []),
        (["a"], ["a"], []),
        (["a", "a", "b"], ["a"], []),
        (["a"], ["b"], ["b 0"]),
        (["a"], ["a", "a"], ["a 1"]),
        (["b", "a"], ["a", "b", "b", "c"], ["b 2", "c 3"]),
    ],
)
def test_more_of_a_kind_is_new(before: list[str], after: list[str], new: list[str]) -> None:
    assert [finding.text for finding in fresh(of(*before), of(*after))] == new


def test_our_own_error_is_seen_behind_one_of_the_original() -> None:
    """The checker alone would stop at the first and call the models alike."""
    before = findings(with_attribute(relus("a", "b", "c"), 0))
    model = with_attribute(relus("a", "b", "c"), 0)
    model.graph.node[2].input.append("x")
    (new,) = fresh(before, findings(model))
    assert "sharpness" not in new.text


def test_an_error_that_the_original_hides_is_not_ours() -> None:
    """Its first faulty node is rewritten: now the checker stops at the second."""
    before = with_attribute(relus("a", "b", "c"), 0)
    before.graph.node[2].input.append("x")
    after: Any = ModelProto()
    after.CopyFrom(before)
    after.graph.node[0].CopyFrom(helper.make_node("Abs", ["x"], ["a"]))
    assert fresh(findings(before), findings(after)) == []


def test_the_same_wrong_shape_at_another_operator_is_not_new() -> None:
    before, after = relus("a", "b"), relus("a", "b")
    for model in (before, after):
        declare(model.graph, "a", 1, 2, 99)
    after.graph.node[0].CopyFrom(helper.make_node("Slice", ["x", "start", "end"], ["a"], name="other"))
    after.graph.initializer.append(helper.make_tensor("start", TensorProto.INT64, [1], [0]))
    after.graph.initializer.append(helper.make_tensor("end", TensorProto.INT64, [1], [1]))
    assert fresh(findings(before), findings(after)) == []


@pytest.mark.parametrize(("last", "declared"), [("Flatten", [1, 4, 16]), ("Relu", [1, 4]), ("Relu", [1, 4, 16])])
def test_what_inference_no_longer_knows_is_not_new(last: str, declared: list[int]) -> None:
    """The output's shape is wrong in both; in the second, inference does not know where its sizes come from."""
    nodes = [conv_node(output="a"), helper.make_node(last, ["a"], ["y"])]
    before = build(nodes, {"x": ["N", 2, "T"]}, {"y": declared}, {"w": values(2, 2, 3)})
    after: Any = ModelProto()
    after.CopyFrom(before)
    after.graph.node[0].output[0] = "c"
    after.graph.node.insert(1, helper.make_node("Reshape", ["c", "sizes"], ["a"]))
    after.graph.input.append(helper.make_tensor_value_info("sizes", TensorProto.INT64, [3]))
    assert len(findings(before)) == 1
    assert fresh(findings(before), findings(after)) == []


def test_another_wrong_size_of_the_same_value_is_new() -> None:
    before, after = relus("a"), relus("a")
    for model in (before, after):
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 3, 16]))
    after.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 17
    (new,) = fresh(findings(before), findings(after))
    assert new.text == "'a' is declared float [1, 3, 16], and inference says float [1, 2, 17]"


def test_the_numbers_that_inference_gives_unknown_sizes_are_not_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its words about a node may have them, and they depend on all nodes before."""

    def says(number: int) -> list[Finding]:
        def infer(*_: object, strict_mode: bool = False, **__: object) -> ModelProto:
            if strict_mode:
                text = f"(op_type:Relu, node name: n): Dimensions differ: (unk__{number}) vs (3)"
                raise onnx.shape_inference.InferenceError(text)
            return relus("a")

        monkeypatch.setattr(onnx.shape_inference, "infer_shapes", infer)
        return findings(relus("a"))

    assert fresh(says(1), says(22)) == []


def test_a_conv_without_a_name() -> None:
    model = with_attribute(build([conv_node(name="")], {"x": [1, 2, 16]}, {"y": None}, {"w": values(2, 2, 3)}), 0)
    assert any("sharpness" in kind for kind in kinds(model))
