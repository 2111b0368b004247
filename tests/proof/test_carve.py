"""Sub-models: what is cut out of a model stays what it is, whatever stands around it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from dilrewrite.model.walk import ScopePath
from dilrewrite.proof.carve import Source, carve, tensor
from tests.models_for_tests import build

make = helper.make_node
MAIN = ScopePath()


def parts(source: Source, path: ScopePath, ops: Sequence[str]) -> dict[str, NodeProto]:
    """The nodes of these operators, named a, b, ... in the sub-model."""
    nodes = source.scope(path).nodes
    return {"abcdef"[place]: next(node for node in nodes if node.op_type == op) for place, op in enumerate(ops)}


def cut(model: ModelProto, *ops: str, path: ScopePath = MAIN, outputs: Sequence[str] = ("a",)) -> ModelProto:
    """A sub-model whose constants are those of the model, and everything else an input of float32."""
    source = Source(model)

    def outside(word: str, place: int, node: NodeProto) -> ValueInfoProto | TensorProto:
        constant = source.constant(path, node.input[place])
        if constant is not None:
            return tensor(numpy_helper.to_array(constant))
        return helper.make_tensor_value_info(f"{word}{place}", TensorProto.FLOAT, None)

    before = model.SerializeToString()
    sub = carve(model, path, parts(source, path, ops), outside, outputs)
    assert model.SerializeToString() == before
    onnx.shape_inference.infer_shapes(sub, check_type=True, strict_mode=True)
    return sub


def chain(rename: Callable[[str], str] = str, **options: Any) -> ModelProto:
    """Relu, Clip with an upper bound alone, Mul by a constant: with texts that say nothing."""
    nodes = [
        make("Relu", ["x"], [rename("r")], name=rename("relu"), doc_string=rename("doc")),
        make("Clip", [rename("r"), "", "high"], [rename("c")]),
        make("Mul", [rename("c"), "k"], ["y"]),
    ]
    return build(nodes, {"x": [2, 3]}, {"y": None}, {"high": np.float32(0.5), "k": np.float32([1, 2, 3])}, **options)


def test_equal_nodes_give_equal_bytes() -> None:
    plain, renamed = chain(), chain(lambda name: f"other/{name}")
    renamed.graph.node[0].attribute.extend([])
    renamed.metadata_props.add(key="a", value="b")
    renamed.graph.node.append(make("Neg", ["x"], ["unused"]))
    ops = "Relu", "Clip", "Mul"
    one, other = (cut(model, *ops, outputs=("c", "b")).SerializeToString() for model in (plain, renamed))
    assert one == other
    assert b"other/" not in other


def test_a_sub_model_computes_what_the_model_does() -> None:
    sub = cut(chain(), "Relu", "Clip", "Mul", outputs=("c",))
    assert [list(node.input) for node in sub.graph.node] == [["a0"], ["a", "", "b_2"], ["b", "c_1"]]
    x = np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)
    results = [
        onnxruntime.InferenceSession(model.SerializeToString()).run(None, {model.graph.input[0].name: x})[0]
        for model in (chain(), sub)
    ]
    np.testing.assert_array_equal(*results)


def test_before_ir_4_constants_are_inputs_too() -> None:
    old = cut(chain(opset=11, ir=3), "Relu", "Clip", "Mul", outputs=("c",))
    assert {value.name for value in old.graph.input} == {"a0", "b_2", "c_1"}
    onnxruntime.InferenceSession(old.SerializeToString())
    assert cut(chain(ir=12), "Relu").ir_version == 10


def test_opsets_are_those_of_the_scope_and_no_other() -> None:
    function = helper.make_function(
        "local", "F", ["p"], ["q"], [make("Relu", ["p"], ["q"])], [helper.make_opsetid("", 13)]
    )
    model = build(
        [make("F", ["x"], ["y"], domain="local")], {"x": [2]}, {"y": None}, domains=["local"], functions=[function]
    )
    sub = cut(model, "Relu", path=ScopePath(0))
    assert [(entry.domain, entry.version) for entry in sub.opset_import] == [("", 13)]
    function.opset_import[0].domain = "ai.onnx"
    model.functions[0].CopyFrom(function)
    assert cut(model, "Relu", path=ScopePath(0)) == sub


def test_a_branch_sees_the_constants_around_it() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        return helper.make_graph(
            [make(op, ["x", "k"], [name])], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    model = build(
        [make("If", ["go"], ["y"], name="if", then_branch=branch("t", "Mul"), else_branch=branch("e", "Add"))],
        {"x": [3], "go": []},
        {"y": None},
        {"k": np.float32([1, 2, 3])},
        types={"go": TensorProto.BOOL},
    )
    names = [attribute.name for attribute in model.graph.node[0].attribute]
    for name, op in (("then_branch", "Mul"), ("else_branch", "Add")):
        assert name in names
        sub = cut(model, op, path=ScopePath(None, ((0, name, 0),)))
        assert [held.name for held in sub.graph.initializer] == ["a_1"]
        assert [value.name for value in sub.graph.input] == ["a0"]
    with pytest.raises(ValueError, match="If 'if' holds graphs"):
        cut(model, "If")


@pytest.mark.parametrize("overridable", [True, False])
def test_what_a_caller_may_replace_is_no_constant(overridable: bool) -> None:
    model = chain()
    if overridable:
        model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.FLOAT, [3]))
    assert (Source(model).constant(MAIN, "k") is None) == overridable
    model.ir_version = 3
    assert Source(model).constant(MAIN, "k") is not None


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.int8, ml_dtypes.int4, ml_dtypes.uint4, np.bool_])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 5)])
def test_constants_of_every_type(kind: Any, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    held = numpy_helper.to_array(tensor(values))
    assert (held.dtype, held.shape) == (values.dtype, shape)
    assert (held == values).all()


@pytest.mark.parametrize(("zero", "element"), [(np.int8(3), TensorProto.INT8), (None, TensorProto.UINT8)])
def test_the_types_of_outputs(zero: Any, element: int) -> None:
    held = {"s": np.float32(0.5)} | ({} if zero is None else {"z": zero})
    model = build(
        [make("QuantizeLinear", ["x", *held], ["q"]), make("DequantizeLinear", ["q", *held], ["y"])],
        {"x": [3]},
        {"y": None},
        held,
    )
    sub = cut(model, "QuantizeLinear", "DequantizeLinear", outputs=("a", "b"))
    assert [value.type.tensor_type.elem_type for value in sub.graph.output] == [element, TensorProto.FLOAT]
