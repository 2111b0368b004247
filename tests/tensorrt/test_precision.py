"""In which precision a model is, what TensorRT cannot take of it, and how it is prepared: never in silence."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.errors import UsageError
from dilrewrite.options import PRECISIONS
from dilrewrite.tensorrt.precision import MAX_RANK, Prepared, held, prepare, refuse
from tests.models_for_tests import DEMOS, MODELS, build, conv1d, conv2d, conv_node, function_with_attribute, values

WHERE = "net.onnx"

ELEMENTS = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float64": TensorProto.DOUBLE,
}


def typed(element: str, opset: int = 22) -> ModelProto:
    """A dilated Conv whose input, weights and output are of one type."""
    import ml_dtypes

    return conv1d(dtype=getattr(ml_dtypes, element, element), element=ELEMENTS[element], opset=opset, ir=10)


def quantized(
    *, activation: int = 0, weight: int = 0, unsigned: bool = False, biases: int = 1, convs: int = 1
) -> ModelProto:
    """Convs with Q and DQ around each, int8 weights and an int32 bias. `activation`, `weight`: zero points."""
    make = helper.make_node
    kind = np.uint8 if unsigned else np.int8
    weights: dict[str, Any] = {
        "xs": np.float32(0.03),
        "xz": kind(activation),
        "ws": np.array([0.01, 0.02], np.float32),
        "wz": np.full(2, weight, np.int8),
        "bs": np.array([0.0003, 0.0006], np.float32),
        "w": np.random.default_rng(0).integers(-100, 100, (2, 2, 3)).astype(np.int8),
        "b": np.array([1000, -77], np.int32),
    }
    nodes, last = [], "x"
    for number in range(convs):
        q, f, w, b, c = (f"{letter}{number}" for letter in "qfwbc")
        nodes += [
            make("QuantizeLinear", [last, "xs", "xz"], [q], name=f"quantize_{number}"),
            make("DequantizeLinear", [q, "xs", "xz"], [f], name=f"dequantize_{number}"),
            make("DequantizeLinear", ["w", "ws", "wz"], [w], name=f"weight_{number}", axis=0),
        ]
        if number < biases:
            nodes.append(make("DequantizeLinear", ["b", "bs"], [b], name=f"bias_{number}", axis=0))
        operands = [f, w, b] if number < biases else [f, w]
        nodes.append(make("Conv", operands, [c], name=f"conv_{number}", dilations=[2], pads=[2, 2]))
        last = c
    nodes.append(make("Identity", [last], ["y"], name="out"))
    held_here = {name: np.asarray(value) for name, value in weights.items()}
    return build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, held_here)


# -- what a model holds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "precision"), [("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16"), ("float64", "fp32")]
)
def test_held_by_the_weights_of_convolutions(element: str, precision: str) -> None:
    assert held(typed(element)) == precision


def test_held_by_constant_nodes() -> None:
    model = conv1d(dtype=np.float16, element=TensorProto.FLOAT16)
    (weight,) = model.graph.initializer
    model.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], name="constant", value=weight))
    del model.graph.initializer[:]
    assert held(model) == "fp16"


def test_held_by_what_inference_tells_of_computed_weights() -> None:
    model = conv1d(dtype=np.float16, element=TensorProto.FLOAT16)
    model.graph.node.insert(0, helper.make_node("Mul", ["w", "w"], ["squared"], name="square"))
    model.graph.node[1].input[1] = "squared"
    assert held(model) == "fp16"


def test_the_greater_part_of_the_convolutions_tells() -> None:
    """Large tables in another type, and single layers kept in float32, are no matter."""
    half = {"w": values(2, 2, 3, dtype=np.float16), "table": values(50, 50)}
    cast = [
        helper.make_node("Cast", ["x"], ["h"], name="down", to=TensorProto.FLOAT16),
        conv_node("h", "a", name="first"),
        conv_node("a", "b", name="second"),
        helper.make_node("Cast", ["b"], ["c"], name="up", to=TensorProto.FLOAT),
        conv_node("c", "y", "u", name="third"),
    ]
    model = build(cast, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, half | {"u": values(2, 2, 3)})
    assert held(model) == "fp16"
    del model.graph.node[2]
    model.graph.node[2].input[0] = "a"
    assert held(model) == "fp32", "as many of each"


def test_without_convolutions_all_weights_tell() -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    for dtype, element, precision in (
        (np.float16, TensorProto.FLOAT16, "fp16"),
        (np.float32, TensorProto.FLOAT, "fp32"),
    ):
        weights = {"w": values(4, 4, dtype=dtype)}
        assert held(build([product], {"x": [1, 4]}, {"y": [1, 4]}, weights, element=element)) == precision
    assert held(build([helper.make_node("Relu", ["x"], ["y"])], {"x": [1]}, {"y": [1]})) == "fp32"


def test_held_in_subgraphs() -> None:
    info = helper.make_tensor_value_info
    branch = helper.make_graph([conv_node("x", "b")], "branch", [], [info("b", TensorProto.FLOAT16, None)])
    model = build(
        [helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=branch)],
        {"x": [1, 2, 16], "flag": []},
        {"y": None},
        {"w": values(2, 2, 3, dtype=np.float16)},
        types={"flag": TensorProto.BOOL},
        element=TensorProto.FLOAT16,
    )
    assert held(model) == "fp16"


def test_one_quantize_linear_is_enough() -> None:
    assert held(quantized()) == "int8-qdq"
    other = conv1d()
    other.graph.node.append(helper.make_node("QuantizeLinear", ["y", "s"], ["z"], name="q", domain="my.ops"))
    assert held(other) == "fp32", "of another domain"


# -- what TensorRT cannot take ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEMOS)
def test_the_demos_are_taken(name: str) -> None:
    refuse(onnx.load(MODELS / f"{name}.onnx"), WHERE)


def test_float64_is_named_and_counted() -> None:
    with pytest.raises(
        UsageError, match=r"net\.onnx: 2 float64 tensors, 'x' for one: .* in float32; export .* float32"
    ):
        refuse(typed("float64"), WHERE)


def test_float64_in_between_is_found() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], name="widen", to=TensorProto.DOUBLE),
        helper.make_node("Mul", ["wide", "wide"], ["square"], name="square"),
        helper.make_node("Cast", ["square"], ["narrow"], name="narrow", to=TensorProto.FLOAT),
        conv_node("narrow", "y"),
    ]
    model = build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, {"w": values(2, 2, 3)})
    with pytest.raises(UsageError, match="2 float64 tensors, 'wide' for one"):
        refuse(model, WHERE)


def test_float64_constants_alone_are_no_matter() -> None:
    """A constant that nothing computes with in float64 changes no result."""
    nodes = [
        helper.make_node("Constant", [], ["c"], name="c", value=numpy_helper.from_array(np.array(1.5), "c")),
        helper.make_node("Cast", ["c"], ["f"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("Cast", ["d"], ["g"], name="other", to=TensorProto.FLOAT),
        helper.make_node("Sum", ["x", "f", "g"], ["s"], name="sum"),
        conv_node("s", "y"),
    ]
    refuse(build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, {"w": values(2, 2, 3), "d": np.array(2.5)}), WHERE)


@pytest.mark.parametrize(
    ("operators", "counted"),
    [
        (["QLinearConv"], "1 QLinearConv"),
        (["ConvInteger", "ConvInteger"], "2 ConvInteger"),
        (["QLinearConv", "ConvInteger", "QLinearAdd", "ConvInteger"], "2 ConvInteger, 1 QLinearAdd, 1 QLinearConv"),
        (["MatMulInteger"], "1 MatMulInteger"),
    ],
    ids=["qlinearconv", "convinteger", "several", "matmul"],
)
def test_integer_operators_are_counted(operators: list[str], counted: str) -> None:
    nodes = [helper.make_node(kind, ["x"], [f"o{n}"], name=f"n{n}") for n, kind in enumerate(operators)]
    model = build(nodes, {"x": [1]}, {"o0": [1]})
    with pytest.raises(UsageError, match=rf"net\.onnx: {counted}: .*; quantise it to QDQ first: .*quant_format=QDQ"):
        refuse(model, WHERE)


def test_integer_operators_in_subgraphs_are_counted() -> None:
    info = helper.make_tensor_value_info
    inner = helper.make_graph(
        [helper.make_node("ConvInteger", ["x", "w"], ["b"], name="inner")],
        "branch",
        [],
        [info("b", TensorProto.INT32, None)],
    )
    model = build(
        [helper.make_node("If", ["flag"], ["y"], name="if", then_branch=inner, else_branch=inner)],
        {"x": [1, 2, 16], "flag": []},
        {"y": None},
        {"w": np.ones((2, 2, 3), np.int8)},
        types={"flag": TensorProto.BOOL, "x": TensorProto.INT8, "y": TensorProto.INT32},
    )
    with pytest.raises(UsageError, match="2 ConvInteger"):
        refuse(model, WHERE)


@pytest.mark.parametrize(("rank", "taken"), [(MAX_RANK, True), (MAX_RANK + 1, False)])
def test_rank(rank: int, taken: bool) -> None:
    nodes = [
        conv_node("x", "c"),
        helper.make_node("Reshape", ["c", "shape"], ["high"], name="raise"),
        helper.make_node("Reshape", ["high", "back"], ["y"], name="lower"),
    ]
    shape = np.array([1, 2, 16] + [1] * (rank - 3))
    weights = {"w": values(2, 2, 3), "shape": shape, "back": np.array([1, 2, 16])}
    model = build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, weights)
    if taken:
        refuse(model, WHERE)
        return
    with pytest.raises(UsageError, match=r"net\.onnx: 'high' has 9 dimensions: TensorRT takes at most 8; reshape"):
        refuse(model, WHERE)


REQUANTISE = "TensorRT takes symmetric int8 only; quantise.*QInt8.*ActivationSymmetric and WeightSymmetric"


@pytest.mark.parametrize("zero", [0, 128])
def test_uint8_zero_points_are_counted(zero: int) -> None:
    """TensorRT takes them for int8, with a warning: codes above 127 would saturate."""
    with pytest.raises(UsageError, match=rf"net\.onnx: 4 Q/DQ nodes have a uint8 zero point; {REQUANTISE}") as caught:
        refuse(quantized(unsigned=True, activation=zero, convs=2), WHERE)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", ["uint16", "int16"])
@pytest.mark.parametrize("domain", ["", "com.microsoft"])
def test_zero_points_of_16_bits_are_counted(kind: str, domain: str) -> None:
    """ONNX Runtime's quantiser writes them in its own domain below opset 21."""
    model = quantized(convs=2)
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "xz")
    zero.CopyFrom(numpy_helper.from_array(np.zeros((), kind), "xz"))
    for node in model.graph.node:
        if "QuantizeLinear" in node.op_type or "DequantizeLinear" in node.op_type:
            node.domain = domain
    with pytest.raises(UsageError, match=rf"net\.onnx: 4 Q/DQ nodes have a {kind} zero point; {REQUANTISE}"):
        refuse(model, WHERE)


@pytest.mark.parametrize("place", ["input", "output"])
def test_sequences_at_the_edges_are_refused(place: str) -> None:
    model = conv1d()
    getattr(model.graph, place).append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    with pytest.raises(
        UsageError, match=f"net.onnx: {place} 's' is of type sequence: an engine takes and gives tensors"
    ):
        refuse(model, WHERE)


@pytest.mark.parametrize(("domain", "op"), [("com.microsoft", "FusedConv"), ("com.microsoft.nchwc", "ReorderInput")])
def test_files_that_onnx_runtime_saved_are_refused(domain: str, op: str) -> None:
    model = conv1d()
    model.graph.node[0].domain, model.graph.node[0].op_type = domain, op
    with pytest.raises(UsageError, match=rf"own operators \(1 {domain}:{op}\); start from the exported model"):
        refuse(model, WHERE)


@pytest.mark.parametrize(
    ("activation", "weight", "count"), [(5, 0, 4), (0, -3, 2), (1, 1, 6)], ids=["activation", "weight", "both"]
)
def test_zero_points_other_than_zero_are_counted(activation: int, weight: int, count: int) -> None:
    with pytest.raises(UsageError, match=rf"{count} Q/DQ nodes have a zero point other than 0; {REQUANTISE}"):
        refuse(quantized(activation=activation, weight=weight, convs=2), WHERE)


def test_zero_points_of_zero_are_taken() -> None:
    refuse(quantized(convs=2), WHERE)


def test_zero_points_of_constant_nodes_count() -> None:
    model = quantized(activation=9)
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "xz")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["xz"], name="zero", value=zero))
    model.graph.initializer.remove(zero)
    with pytest.raises(UsageError, match="2 Q/DQ nodes have a zero point other than 0"):
        refuse(model, WHERE)


# -- the way ---------------------------------------------------------------------------------------------------------


def test_an_unknown_precision() -> None:
    with pytest.raises(UsageError, match=rf"--precision int4: not one of {', '.join(PRECISIONS)}"):
        prepare(conv1d(), "int4", WHERE)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_a_quantised_model_stays_so(precision: str) -> None:
    with pytest.raises(
        UsageError, match=rf"is quantised \(QDQ\), and --precision {precision} .*; leave --precision out"
    ):
        prepare(quantized(), precision, WHERE)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize(("element", "holds"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_a_reduced_model_stays_so(element: str, holds: str, precision: str) -> None:
    model = typed(element)
    if precision == holds:
        assert prepare(model, precision, WHERE).proto is model
        return
    with pytest.raises(UsageError, match=rf"is in {holds} already, and --precision {precision} .*; .*float32 model"):
        prepare(model, precision, WHERE)


@pytest.mark.parametrize(("element", "holds"), [("float16", "fp16"), ("bfloat16", "bf16")])
def test_a_reduced_model_is_taken_as_it_is(element: str, holds: str) -> None:
    model = typed(element)
    before = model.SerializeToString()
    assert prepare(model, None, WHERE) == Prepared(proto=model, precision=holds)
    assert prepare(model, None, WHERE).proto is model
    assert model.SerializeToString() == before


@pytest.mark.parametrize("element", ["float32", "float16", "bfloat16"])
def test_int8_of_a_model_that_is_not_quantised(element: str) -> None:
    with pytest.raises(
        UsageError, match=r"holds no QuantizeLinear.*int8-qdq; quantise it to QDQ first: .*quantize_static"
    ):
        prepare(typed(element), "int8-qdq", WHERE)


@pytest.mark.parametrize(("asked", "taken"), [(None, "tf32"), ("tf32", "tf32"), ("fp32", "fp32")])
def test_float32_is_not_changed(asked: str | None, taken: str) -> None:
    model = conv2d()
    assert prepare(model, asked, WHERE) == Prepared(proto=model, precision=taken)
    assert prepare(model, asked, WHERE).proto is model


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_conversion_leaves_the_original_alone(precision: str) -> None:
    model = conv2d()
    before = model.SerializeToString()
    made = prepare(model, precision, WHERE)
    assert model.SerializeToString() == before
    assert (made.precision, made.converted, made.changes) == (precision, True, ())
    assert held(made.proto) == precision


@pytest.mark.parametrize("asked", [None, "int8-qdq"])
def test_biases_are_told(asked: str | None) -> None:
    model = quantized(convs=3, biases=2)
    before = model.SerializeToString()
    made = prepare(model, asked, WHERE)
    assert made.precision == "int8-qdq"
    assert not made.converted
    assert made.changes == ("2 int32 biases dequantised: TensorRT dequantises no int32",)
    assert model.SerializeToString() == before


def test_a_quantised_model_without_biases_is_taken_as_it_is() -> None:
    model = quantized(biases=0)
    assert prepare(model, None, WHERE) == Prepared(proto=model, precision="int8-qdq")
    assert prepare(model, None, WHERE).proto is model


def test_what_stays_in_float32_is_told() -> None:
    model = onnx.load(MODELS / "hifigan_vocoder.onnx")
    assert prepare(model, "bf16", WHERE).changes == ("3 ConvTranspose stay in float32",)
    assert prepare(model, "fp16", WHERE).changes == ()


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
def test_what_cannot_be_taken_is_refused_in_every_precision(precision: str | None) -> None:
    with pytest.raises(UsageError, match="float64"):
        prepare(typed("float64"), precision, WHERE)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_functions_are_converted_too(precision: str) -> None:
    made = prepare(function_with_attribute(), precision, WHERE).proto
    assert not made.functions
    assert held(made) == precision
