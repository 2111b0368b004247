"""Conversions: what they make is sorted, named, valid and computes the same; weights are rounded once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dilrewrite.errors import FailedError, MissingError
from dilrewrite.model.walk import all_nodes, graphs, subgraphs
from dilrewrite.proof.verdict import Settings
from dilrewrite.runtimes import Options, Runnable, backend
from dilrewrite.tensorrt.convert import BF16_OPSET, constants, fold_biases, inferred, to_float16, twin
from dilrewrite.tensorrt.fidelity import Fidelity, compare
from dilrewrite.tensorrt.precision import held, prepare
from tests import models_for_tests as tiny
from tests.models_for_tests import DEMOS, MODELS, build, conv1d, conv_node, values

pytestmark = pytest.mark.usefixtures("in_process")

Array = np.ndarray[Any, Any]

BF16 = ml_dtypes.bfloat16

every_demo = pytest.mark.parametrize("name", DEMOS)
every_low = pytest.mark.parametrize("precision", ["fp16", "bf16"])


def demo(name: str) -> ModelProto:
    return onnx.load(MODELS / f"{name}.onnx")


def run(model: ModelProto, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Run a model without optimisations."""
    options = Options(isolated=False, optimize=False)
    with backend("onnxruntime_cpu").session(Runnable(model=model.SerializeToString()), options) as session:
        found = session.run(feeds)
    return {name: np.asarray(value) for name, value in found.items()}


def bits(array: Array) -> Array:
    return np.asarray(array).view(f"u{array.dtype.itemsize}")


# -- what every conversion holds -------------------------------------------------------------------------------------


def misplaced(graph: GraphProto, outside: frozenset[str] = frozenset()) -> Iterator[str]:
    """Yield what is read before it is made."""
    made = set(outside) | {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    for node in graph.node:
        yield from (f"{node.name} reads {name}" for name in node.input if name not in made)
        for _, _, below in subgraphs(node):
            yield from misplaced(below, frozenset(made))
        made.update(node.output)
    yield from (f"{value.name} is never made" for value in graph.output if value.name not in made)


def interface(model: ModelProto) -> list[tuple[str, int, int]]:
    values = (*model.graph.input, *model.graph.output)
    return [(v.name, v.type.tensor_type.elem_type, len(v.type.tensor_type.shape.dim)) for v in values]


def check_sound(original: ModelProto, made: ModelProto) -> None:
    assert list(misplaced(made.graph)) == []
    names = [node.name for node in all_nodes(made)]
    assert all(names)
    assert len(set(names)) == len(names)
    onnx.checker.check_model(made, full_check=True)
    assert interface(made) == interface(original)


def converted(model: ModelProto, precision: str, inputs: Mapping[str, Array] | None = None) -> Fidelity:
    """Convert a model, hold the result to all that is promised of it, and compare it."""
    before = model.SerializeToString()
    prepared = prepare(model, precision, "net.onnx")
    assert model.SerializeToString() == before
    check_sound(model, prepared.proto)
    settings = Settings(backend=backend("onnxruntime_cpu"), shapes={}, inputs=inputs or {}, threads=1)
    found = compare(model, prepared, Path(), settings, "net.onnx")
    assert found.reason == ""
    assert found.difference is not None
    assert found.difference <= found.bound
    return found


@every_demo
@every_low
def test_demos(name: str, precision: str) -> None:
    model = demo(name)
    prepared = prepare(model, precision, name)
    check_sound(model, prepared.proto)
    assert {value.type.tensor_type.elem_type for value in prepared.proto.graph.input} == {TensorProto.FLOAT}
    assert {value.type.tensor_type.elem_type for value in prepared.proto.graph.output} == {TensorProto.FLOAT}
    kinds = inferred(prepared.proto)
    low = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.BFLOAT16
    convs = [node for node in prepared.proto.graph.node if node.op_type == "Conv"]
    assert {kinds[name][0] for node in convs for name in (*node.input, *node.output)} == {low}


@every_demo
@every_low
def test_demos_keep_their_nodes(name: str, precision: str) -> None:
    """Nodes keep their names, so that layers can be told by them; what comes in are Casts."""
    before = {node.name: node.op_type for node in demo(name).graph.node}
    after = {node.name: node.op_type for node in prepare(demo(name), precision, name).proto.graph.node}
    assert {name: after[name] for name in before} == before
    assert {kind for name, kind in after.items() if name not in before} == {"Cast"}


SITUATIONS = [
    tiny.asymmetric,
    tiny.aspp,
    tiny.two_convs,
    tiny.plain,
    tiny.transposed,
    tiny.unnamed_nodes,
    tiny.unsorted,
    tiny.shared_symbols,
    tiny.function_with_attribute,
    tiny.no_inputs,
    tiny.no_samples,
    tiny.no_batch,
    tiny.string_input,
]


@pytest.mark.parametrize("make", SITUATIONS, ids=lambda make: make.__name__)
@every_low
def test_situations(make: Callable[[], ModelProto], precision: str) -> None:
    converted(make(), precision)


# -- operators that the converter leaves in float32 ------------------------------------------------------------------


WEIGHTS = {
    "w": values(2, 2, 3),
    "low": np.array(0.1, np.float32),
    "half": np.array(0.5, np.float32),
    "axis": np.array(2),
    "first": np.array(0, np.float32),
    "last": np.array(16, np.float32),
    "step": np.array(1, np.float32),
    "trips": np.array(3),
    "yes": np.array(True),
}

info = helper.make_tensor_value_info
node = helper.make_node


def maximum(source: str, output: str) -> list[NodeProto]:
    return [node("Max", [source, "low"], [output], name="max")]


def minimum_of_maximum(source: str, output: str) -> list[NodeProto]:
    """Two of them in a row."""
    return [*maximum(source, "between"), node("Min", ["between", "last"], [output], name="min")]


def sums(source: str, output: str) -> list[NodeProto]:
    return [node("CumSum", [source, "axis"], [output], name="sums")]


def ramp(source: str, output: str) -> list[NodeProto]:
    made = node("Range", ["first", "last", "step"], ["ramp"], name="range")
    return [made, node("Add", [source, "ramp"], [output], name="add")]


def from_outside(source: str, output: str) -> list[NodeProto]:
    """It reads the model's own input."""
    return [node("Max", [source, "x"], [output], name="max")]


def constant(source: str, output: str) -> list[NodeProto]:
    number = numpy_helper.from_array(np.array(0.25, np.float32))
    made = node("Constant", [], ["number"], name="number", value=number)
    return [made, node("Max", [source, "number"], [output], name="max")]


def branch(output: str, *nodes: NodeProto, weights: Sequence[TensorProto] = ()) -> GraphProto:
    return helper.make_graph(nodes, "branch", [], [info(output, TensorProto.FLOAT, [1, 2, 16])], weights)


def branches(source: str, output: str) -> list[NodeProto]:
    """Their results are made by such an operator, and what that reads is made a graph further out."""
    return [
        node(
            "If",
            ["yes"],
            [output],
            name="if",
            then_branch=branch("t", node("Max", [source, "low"], ["t"], name="then")),
            else_branch=branch("e", node("Min", [source, "low"], ["e"], name="else")),
        )
    ]


def branches_alike(source: str, output: str) -> list[NodeProto]:
    """The same names of nodes and values in both branches, for different things."""
    return [
        node(
            "If",
            ["yes"],
            [output],
            name="if",
            then_branch=branch(
                "out", node("Max", [source, "low"], ["t"], name="one"), node("Relu", ["t"], ["out"], name="two")
            ),
            else_branch=branch(
                "out", node("Abs", [source], ["t"], name="one"), node("Min", ["t", "low"], ["out"], name="two")
            ),
        )
    ]


BLOCKED = [maximum, minimum_of_maximum, sums, ramp, from_outside, constant, branches, branches_alike]


def loop(block: Callable[[str, str], list[NodeProto]], *, outside: bool, at_the_end: bool) -> ModelProto:
    """A Loop whose body holds a dilated Conv and `block`; `outside`: such operators before and behind the Loop too.

    `at_the_end`: the body's results are made by `block`.
    """
    inside = [conv_node("state", "c", name="inner"), node("Identity", ["go"], ["go_on"], name="keep")]
    if at_the_end:
        inside += [node("Mul", ["c", "half"], ["d"], name="halve"), *block("d", "next")]
    else:
        inside += [*block("c", "d"), node("Mul", ["d", "half"], ["next"], name="halve")]
    body = helper.make_graph(
        inside,
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("go", TensorProto.BOOL, []),
            info("state", TensorProto.FLOAT, [1, 2, 16]),
        ],
        [info("go_on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, [1, 2, 16])],
    )
    before = (
        [node("Max", ["x", "low"], ["a"], name="before")] if outside else [node("Relu", ["x"], ["a"], name="before")]
    )
    last = node("Min", ["b", "last"], ["y"], name="after") if outside else node("Neg", ["b"], ["y"], name="after")
    nodes = [*before, node("Loop", ["trips", "yes", "a"], ["b"], name="loop", body=body), last]
    return build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, WEIGHTS)


@pytest.mark.parametrize("at_the_end", [False, True], ids=["between", "last"])
@pytest.mark.parametrize("outside", [False, True], ids=["inside", "everywhere"])
@pytest.mark.parametrize("block", BLOCKED, ids=lambda block: block.__name__)
@every_low
def test_loops(block: Callable[[str, str], list[NodeProto]], outside: bool, at_the_end: bool, precision: str) -> None:
    model = loop(block, outside=outside, at_the_end=at_the_end)
    onnx.checker.check_model(model, full_check=True)
    converted(model, precision)


@pytest.mark.parametrize("block", BLOCKED, ids=lambda block: block.__name__)
@every_low
def test_in_the_main_graph(block: Callable[[str, str], list[NodeProto]], precision: str) -> None:
    nodes = [conv_node("x", "c"), *block("c", "d"), conv_node("d", "y", name="again")]
    converted(build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, WEIGHTS), precision)


@pytest.mark.parametrize("outputs", [["c"], ["c", "m"], ["m", "y"]], ids="-".join)
@every_low
def test_values_that_are_read_and_put_out(outputs: list[str], precision: str) -> None:
    nodes = [conv_node("x", "c"), *maximum("c", "m"), conv_node("m", "y", name="again")]
    converted(build(nodes, {"x": [1, 2, 16]}, {name: [1, 2, 16] for name in outputs}, WEIGHTS), precision)


@every_low
def test_a_weight_of_both_types(precision: str) -> None:
    """The converter keeps it in the low type, and casts for the operator that stays in float32."""
    nodes = [node("Mul", ["x", "low"], ["s"], name="scale"), conv_node("s", "c"), *maximum("c", "y")]
    converted(build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, WEIGHTS), precision)


@every_low
def test_a_declared_weight_that_stays(precision: str) -> None:
    """As torch exports: weights are among the declared values, and the converter would call them all float16."""
    model = build([conv_node("x", "c"), *maximum("c", "y")], {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, WEIGHTS)
    model.graph.value_info.extend([info("low", TensorProto.FLOAT, []), info("w", TensorProto.FLOAT, [2, 2, 3])])
    converted(model, precision)


def forked(then: GraphProto, other: GraphProto) -> ModelProto:
    fork = node("If", ["flag"], ["y"], name="if", then_branch=then, else_branch=other)
    return build(
        [conv_node("x", "c"), fork],
        {"x": [1, 2, 16], "flag": []},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3)},
        types={"flag": TensorProto.BOOL},
    )


def number_k(value: float) -> TensorProto:
    return numpy_helper.from_array(np.array(value, np.float32), "k")


@pytest.mark.parametrize("flag", [True, False])
@every_low
def test_equal_names_of_unequal_weights(flag: bool, precision: str) -> None:
    """The branches of an If may call different weights the same."""
    multiply = node("Mul", ["c", "k"], ["o"], name="multiply")
    model = forked(
        branch("o", multiply, weights=[number_k(0.1)]),
        branch("o", multiply, weights=[number_k(7)]),
    )
    converted(model, precision, {"flag": np.array(flag)})


@pytest.mark.parametrize("flag", [True, False])
@every_low
def test_equal_names_of_unequal_constants(flag: bool, precision: str) -> None:
    multiply = node("Mul", ["c", "k"], ["o"], name="multiply")
    model = forked(
        branch("o", node("Constant", [], ["k"], name="k", value=number_k(0.1)), multiply),
        branch("o", node("Constant", [], ["k"], name="k", value=number_k(7)), multiply),
    )
    converted(model, precision, {"flag": np.array(flag)})


@pytest.mark.parametrize("attribute", [{"value_float": 0.3}, {"value_floats": [0.3] * 16}], ids=lambda a: next(iter(a)))
@every_low
def test_constants_without_a_tensor(attribute: dict[str, Any], precision: str) -> None:
    nodes = [node("Constant", [], ["k"], name="k", **attribute), conv_node("x", "c"), node("Mul", ["c", "k"], ["y"])]
    converted(build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, {"w": values(2, 2, 3)}), precision)


def test_equal_node_names_are_told_apart() -> None:
    model = tiny.two_convs()
    for entry in model.graph.node:
        entry.name = "same"
    made = prepare(model, "fp16", "net.onnx").proto
    named = [entry.name for entry in made.graph.node if entry.op_type != "Cast"]
    assert named == ["same", "same_1", "same_2"]


@every_low
def test_names_of_the_converters_own_nodes_may_be_taken(precision: str) -> None:
    nodes = [conv_node("x", "c", name="c_cast_to_fp32_node"), *maximum("c", "y")]
    converted(build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, WEIGHTS), precision)


def test_without_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.transformers", None)
    with pytest.raises(MissingError, match=r"float16 needs ONNX Runtime: .*; pip install 'dilrewrite\[cpu\]'"):
        to_float16(conv1d())


def test_a_converter_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.transformers import float16

    def fails(*_: object, **__: object) -> None:
        raise AssertionError("of its own")

    monkeypatch.setattr(float16, "convert_float_to_float16", fails)
    with pytest.raises(FailedError, match="converter to float16 fails: AssertionError: of its own; convert the model"):
        to_float16(conv1d())


# -- bfloat16 --------------------------------------------------------------------------------------------------------


EDGES = np.array(
    [1 + 2**-8 + 2**-13, -1 - 2**-8 - 2**-13, 1e6, -1e30, 1e-9, 70000, np.inf, -np.inf, np.nan, 0, -0.0, 1 / 3],
    np.float32,
)
"""Float32 numbers that float16 in between would change: by rounding twice, and by its range."""


def rounded(array: Array) -> Array:
    return array.astype(np.float32).astype(BF16)


@every_demo
def test_weights_of_the_demos_are_rounded_once(name: str) -> None:
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in demo(name).graph.initializer}
    made = {tensor.name: tensor for tensor in prepare(demo(name), "bf16", name).proto.graph.initializer}
    low = {name: tensor for name, tensor in made.items() if tensor.data_type == TensorProto.BFLOAT16}
    assert low
    for name, tensor in low.items():
        assert np.array_equal(bits(numpy_helper.to_array(tensor)), bits(rounded(original[name]))), name
    for name in original.keys() & made.keys() - low.keys():
        assert np.array_equal(bits(numpy_helper.to_array(made[name])), bits(original[name])), name


def weight(model: ModelProto, op_type: str, operand: int | None = None) -> Array:
    """What the only node of a type holds, or reads at a place."""
    (found,) = [entry for entry in all_nodes(model) if entry.op_type == op_type]
    if operand is None:
        return numpy_helper.to_array(next(a.t for a in found.attribute if a.HasField("t")))
    return numpy_helper.to_array(constants(model)[found.input[operand]])


def edges(kind: str) -> ModelProto:
    """x + EDGES, these held in one way or another, or twelve times each of them as what fills a tensor."""
    number = numpy_helper.from_array(EDGES, "k")
    nodes = [node("Add", ["x", "k"], ["y"], name="add")]
    weights: dict[str, Array] = {}
    if kind == "initializer":
        weights["k"] = EDGES
    elif kind == "constant":
        nodes.insert(0, node("Constant", [], ["k"], name="k", value=number))
    elif kind == "floats":
        nodes.insert(0, node("Constant", [], ["k"], name="k", value_floats=EDGES.tolist()))
    elif kind == "branch":
        inner = node("Constant", [], ["i"], name="inner", value=number)
        other = node("Identity", ["x"], ["j"], name="other")
        weights["yes"] = np.array(True)
        fork = node("If", ["yes"], ["k"], name="if", then_branch=branch("i", inner), else_branch=branch("j", other))
        for graph in (attribute.g for attribute in fork.attribute):
            graph.output[0].type.tensor_type.shape.ClearField("dim")
            graph.output[0].type.tensor_type.shape.dim.add().dim_value = EDGES.size
        nodes.insert(0, fork)
    return build(nodes, {"x": [EDGES.size]}, {"y": [EDGES.size]}, weights)


@pytest.mark.parametrize("kind", ["initializer", "constant", "floats", "branch"])
def test_every_kind_of_weight_is_rounded_once(kind: str) -> None:
    made = prepare(edges(kind), "bf16", "net.onnx").proto
    found = weight(made, "Add", 1) if kind == "initializer" else weight(made, "Constant")
    assert found.dtype == BF16
    assert np.array_equal(bits(found), bits(rounded(EDGES)))
    with np.errstate(over="ignore"):
        twice = rounded(EDGES.astype(np.float16))
    assert not np.array_equal(bits(found), bits(twice))


@pytest.mark.parametrize("value", [1e6, 1 + 2**-8 + 2**-13, -1e9], ids=["range", "twice", "mask"])
def test_what_fills_a_tensor_is_rounded_once(value: float) -> None:
    filling = numpy_helper.from_array(np.array([value], np.float32))
    nodes = [
        node("ConstantOfShape", ["s"], ["k"], name="fill", value=filling),
        node("Add", ["x", "k"], ["y"], name="add"),
    ]
    model = build(nodes, {"x": [4]}, {"y": [4]}, {"s": np.array([4])})
    found = weight(prepare(model, "bf16", "net.onnx").proto, "ConstantOfShape")
    assert np.array_equal(bits(found), bits(rounded(np.array([value]))))


def test_operators_that_stay() -> None:
    """TensorRT for RTX 1.7 has no ConvTranspose in bfloat16."""
    made = prepare(tiny.transposed(), "bf16", "net.onnx").proto
    kinds = inferred(made)
    (spread,) = [entry for entry in made.graph.node if entry.op_type == "ConvTranspose"]
    assert {kinds[name][0] for name in (*spread.input, *spread.output)} == {TensorProto.FLOAT}
    assert np.array_equal(weight(made, "ConvTranspose", 1), weight(tiny.transposed(), "ConvTranspose", 1))
    assert held(made) == "fp32", "one of each"


# -- twins -----------------------------------------------------------------------------------------------------------


LOW = {"fp16": np.float16, "bf16": BF16}


@every_low
def test_a_twin_computes_what_the_low_type_does(precision: str) -> None:
    """Operands in the low type, sums in float32, results rounded: each step by hand."""
    model = tiny.two_convs()
    x = values(1, 2, 20, seed=5)
    made = twin(prepare(model, precision, "net.onnx").proto)
    assert interface(made) == interface(model)
    assert all(tensor.data_type == TensorProto.FLOAT for tensor in made.graph.initializer)
    onnx.checker.check_model(made, full_check=True)

    def low(array: Array) -> Array:
        return array.astype(LOW[precision]).astype(np.float32)

    kernel = low(numpy_helper.to_array(model.graph.initializer[0]))
    wanted = x
    for entry in model.graph.node:
        if entry.op_type == "Relu":
            wanted = np.maximum(wanted, 0)
            continue
        step = onnx.NodeProto.FromString(entry.SerializeToString())
        step.input[0], step.output[0] = "x", "y"
        shape = list(wanted.shape)
        wanted = low(run(build([step], {"x": shape}, {"y": shape}, {"w": kernel}), {"x": low(wanted)})["y"])
    assert np.array_equal(bits(run(made, {"x": x})["y"]), bits(wanted))


@every_low
def test_a_twin_rounds_inside_of_loops(precision: str) -> None:
    """A body that doubles and halves again changes nothing but by its own rounding and range."""
    nodes = [node("Mul", ["state", "up"], ["m"], name="up"), node("Mul", ["m", "down"], ["next"], name="down")]
    body = helper.make_graph(
        [*nodes, node("Identity", ["go"], ["go_on"], name="keep")],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, [4])],
        [info("go_on", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, [4])],
    )
    factors = {"up": np.array(1.1, np.float32), "down": np.array(1 / 1.1, np.float32)}
    trips = {"trips": np.array(5), "yes": np.array(True)}
    model = build([node("Loop", ["trips", "yes", "x"], ["y"], body=body)], {"x": [4]}, {"y": [4]}, factors | trips)

    def low(array: Array) -> Array:
        return array.astype(LOW[precision]).astype(np.float32)

    x = values(4)
    wanted = low(x)
    for _ in range(5):
        wanted = low(low(wanted * low(factors["up"])) * low(factors["down"]))
    found = run(twin(prepare(model, precision, "net.onnx").proto), {"x": x})["y"]
    assert np.array_equal(bits(found), bits(wanted))


def test_a_twin_of_float16_overflows() -> None:
    """ONNX Runtime's own float16 on the CPU does not."""
    nodes = [node("Mul", ["x", "up"], ["m"], name="up"), node("Mul", ["m", "down"], ["y"], name="down")]
    factors = {"up": np.array(60000, np.float32), "down": np.array(1 / 60000, np.float32)}
    model = build(nodes, {"x": [2]}, {"y": [2]}, factors)
    feeds = {"x": np.array([1, 2], np.float32)}
    assert np.isfinite(run(twin(prepare(model, "fp16", "net.onnx").proto), feeds)["y"]).tolist() == [True, False]
    assert np.isfinite(run(twin(prepare(model, "bf16", "net.onnx").proto), feeds)["y"]).all()


# -- bfloat16's opset ------------------------------------------------------------------------------------------------


EMPTY = np.array([], np.float32)
TWICE = np.array([1, 1, 2, 2], np.float32)
SIZES = np.array([1, 2, 16, 16])
ROI = np.array([0, 0, 0, 0, 1, 1, 1, 1], np.float32)


def resize(
    opset: int, weights: Mapping[str, Array], *operands: str, kind: str = "Resize", mode: str = "linear"
) -> ModelProto:
    """A dilated Conv and a Resize of it."""
    nodes = [
        conv_node("x", "c", dilations=[2, 2], pads=[2] * 4),
        node(kind, ["c", *operands], ["y"], name="resize", mode=mode),
    ]
    held_here = {"w": values(2, 2, 3, 3), **weights}
    return build(nodes, {"x": [1, 2, 8, 8]}, {"y": [1, 2, None, None]}, held_here, opset=opset)


RESIZES = {
    "11-roi": resize(11, {"roi": ROI, "scales": TWICE}, "roi", "scales"),
    "11-empty-roi": resize(11, {"roi": EMPTY, "scales": TWICE}, "roi", "scales"),
    "11-empty-scales-sizes": resize(11, {"roi": EMPTY, "scales": EMPTY, "sizes": SIZES}, "roi", "scales", "sizes"),
    "13-roi": resize(13, {"roi": ROI, "scales": TWICE}, "roi", "scales"),
    "13-sizes": resize(13, {"sizes": SIZES}, "", "", "sizes"),
    "13-empty-scales-sizes": resize(13, {"roi": EMPTY, "scales": EMPTY, "sizes": SIZES}, "roi", "scales", "sizes"),
    "17-nearest": resize(17, {"scales": TWICE}, "", "scales", mode="nearest"),
    "19-roi": resize(19, {"roi": ROI, "scales": TWICE}, "roi", "scales"),
    "22-roi": resize(22, {"roi": ROI, "scales": TWICE}, "roi", "scales"),
}


@pytest.mark.parametrize("name", RESIZES)
def test_resize(name: str) -> None:
    """A roi may not be in bfloat16, and later opsets take no scales beside sizes."""
    converted(RESIZES[name], "bf16")
    made = prepare(RESIZES[name], "bf16", "net.onnx").proto
    (found,) = [entry for entry in made.graph.node if entry.op_type == "Resize"]
    assert found.input[1] == ""
    sizes = len(found.input) > 3 and found.input[3] != ""
    assert (found.input[2] == "") is sizes
    assert sizes is ("sizes" in name)


@pytest.mark.parametrize("factor", [2, 1.5])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize(("opset", "kind"), [(9, "Upsample"), (10, "Resize")])
def test_resize_before_it_had_modes(opset: int, kind: str, mode: str, factor: float) -> None:
    """It was asymmetric and rounded down; ONNX's converter leaves it to the later defaults."""
    scales = np.array([1, 1, factor, factor], np.float32)
    model = resize(opset, {"scales": scales}, "scales", kind=kind, mode=mode)
    converted(model, "bf16")


def test_the_opset_is_raised_and_no_further() -> None:
    def opset(model: ModelProto) -> int:
        return next(entry.version for entry in model.opset_import if entry.domain == "")

    for version, ir, wanted in ((11, 6, BF16_OPSET), (17, 8, BF16_OPSET), (22, 10, 22), (23, 10, 23)):
        model = conv1d(opset=version, ir=ir)
        made = prepare(model, "bf16", "net.onnx").proto
        assert opset(made) == wanted
        assert made.ir_version == 10
        assert opset(prepare(model, "fp16", "net.onnx").proto) == version, "float16 needs no later one"


def test_the_opset_is_raised_in_loops_too() -> None:
    """ReduceMean's axes were an attribute until opset 18."""

    def without_mean(source: str, output: str) -> list[NodeProto]:
        mean = node("ReduceMean", [source], ["mean"], name="mean", axes=[2], keepdims=1)
        return [mean, node("Sub", [source, "mean"], [output], name="sub")]

    converted(loop(without_mean, outside=False, at_the_end=False), "bf16")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("no adapter"),
        onnx.version_converter.ConvertError("no adapter"),
        onnx.shape_inference.InferenceError("no adapter"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_opset_that_cannot_be_raised(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(onnx.version_converter, "convert_version", fails)
    with pytest.raises(
        FailedError, match=r"bfloat16 needs opset 22.*no adapter; export the model with opset 22 or later"
    ):
        prepare(conv1d(), "bf16", "net.onnx")


# -- int32 biases ----------------------------------------------------------------------------------------------------


CODES = np.array([2**31 - 1, -(2**31), 2**24 + 1, -3, 0, 12345], np.int32)
"""Some of which float32 does not hold."""
SCALES = np.array([3e-7, 1 / 3, 0.1, 1e-39, 2.0, 7e-5], np.float32)


def biased(
    scale: Array, codes: Array = CODES, *, zero: Array | None = None, opset: int = 21, **axis: int
) -> ModelProto:
    """x -> Conv -> y with weights and an int32 bias behind DequantizeLinear."""
    operands = ["b", "bs"] if zero is None else ["b", "bs", "bz"]
    nodes = [
        node("DequantizeLinear", ["w", "ws"], ["w_real"], name="dequantize_w"),
        node("DequantizeLinear", operands, ["b_real"], name="dequantize_b", **axis),
        node("Conv", ["x", "w_real", "b_real"], ["y"], name="conv", dilations=[2], pads=[2, 2]),
    ]
    count = codes.shape[0]
    weights = {
        "w": np.random.default_rng(0).integers(-100, 100, (count, 2, 3)).astype(np.int8),
        "ws": np.array(0.01, np.float32),
        "b": codes,
        "bs": scale,
    } | ({} if zero is None else {"bz": zero})
    return build(nodes, {"x": [1, 2, 16]}, {"y": [1, count, 16]}, weights, opset=opset, ir=10)


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize(
    ("scale", "zero", "axis"),
    [
        (np.array(0.1, np.float32), None, {}),
        (np.array([0.1], np.float32), None, {}),
        (np.array(0.1, np.float32), np.array(0, np.int32), {}),
        (SCALES, None, {"axis": 0}),
        (SCALES, None, {"axis": -1}),
        (SCALES, np.zeros(6, np.int32), {"axis": 0}),
    ],
    ids=["tensor", "tensor-of-1", "tensor-zero", "channel", "channel-negative", "channel-zero"],
)
def test_biases_are_the_same_bits(scale: Array, zero: Array | None, axis: dict[str, int], opset: int) -> None:
    model = biased(scale, zero=zero, opset=opset, **axis)
    before = model.SerializeToString()
    made, count = fold_biases(model)
    assert count == 1
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert [entry.name for entry in made.graph.node] == ["dequantize_w", "conv"]
    feeds = {"x": np.zeros((1, 2, 16), np.float32)}  # the bias alone
    for feed in (feeds, {"x": values(1, 2, 16)}):
        assert np.array_equal(bits(run(made, feed)["y"]), bits(run(model, feed)["y"]))


def test_axes_are_the_weights_own() -> None:
    """Two axes, and per-channel scales of one or the other."""
    codes = CODES.reshape(2, 3)
    for axis, scale in ((0, SCALES[:2]), (1, SCALES[:3]), (-1, SCALES[:3]), (-2, SCALES[:2])):
        nodes = [
            node("DequantizeLinear", ["b", "s"], ["r"], name="dequantize", axis=axis),
            node("Add", ["x", "r"], ["y"], name="add"),
        ]
        model = build(nodes, {"x": [2, 3]}, {"y": [2, 3]}, {"b": codes, "s": scale})
        made, count = fold_biases(model)
        assert count == 1
        feed = {"x": np.zeros((2, 3), np.float32)}
        assert np.array_equal(bits(run(made, feed)["y"]), bits(run(model, feed)["y"]))


@pytest.mark.parametrize(
    ("scale", "codes", "zero", "axis"),
    [
        (np.array(0.1, np.float32), CODES.astype(np.int8), None, {}),
        (np.array(0.1, np.float32), CODES, np.array(3, np.int32), {}),
        (np.array(0.1, np.float16), CODES, None, {}),
        (np.full((3,), 0.1, np.float32).reshape(3, 1), CODES.reshape(6, 1), None, {"axis": 0, "block_size": 2}),
    ],
    ids=["int8", "zero point", "float16", "blocks"],
)
def test_what_is_no_such_bias_stays(scale: Array, codes: Array, zero: Array | None, axis: dict[str, int]) -> None:
    model = biased(scale, codes, zero=zero, **axis)
    made, count = fold_biases(model)
    assert made is model
    assert count == 0


def test_biases_of_constant_nodes_and_branches() -> None:
    """The branches call different biases the same."""

    def biased_branch(*codes: int) -> GraphProto:
        code = numpy_helper.from_array(np.array(codes, np.int32), "b")
        return branch(
            "o",
            node("Constant", [], ["b"], name="b", value=code),
            node("DequantizeLinear", ["b", "s"], ["r"], name="dequantize"),
            conv_node("x", "m", name="inner"),
            node("Conv", ["m", "w", "r"], ["o"], name="biased", dilations=[2], pads=[2, 2]),
        )

    fork = node(
        "If", ["flag"], ["y"], name="if", then_branch=biased_branch(1000, -3), else_branch=biased_branch(-70000, 55)
    )
    weights = {"w": values(2, 2, 3), "s": np.array(0.001, np.float32)}
    model = build([fork], {"x": [1, 2, 16], "flag": []}, {"y": [1, 2, 16]}, weights, types={"flag": TensorProto.BOOL})
    made, count = fold_biases(model)
    assert count == 2
    onnx.checker.check_model(made, full_check=True)
    for flag in (True, False):
        feed = {"x": values(1, 2, 16, seed=1), "flag": np.array(flag)}
        assert np.array_equal(bits(run(made, feed)["y"]), bits(run(model, feed)["y"]))


# -- reading ---------------------------------------------------------------------------------------------------------


def test_graphs_and_what_is_known_in_them() -> None:
    model = loop(branches, outside=False, at_the_end=False)
    assert [graph.name for graph in graphs(model.graph)] == ["tiny", "body", "branch", "branch"]
    kinds = inferred(model)
    assert kinds["y"] == (TensorProto.FLOAT, 3)
    assert kinds["c"] == (TensorProto.FLOAT, 3), "in the body"
    assert kinds["trips"] == (TensorProto.INT64, 0)


def test_what_cannot_be_inferred_is_what_is_declared() -> None:
    model = tiny.custom_operator()
    assert inferred(model)["x"] == (TensorProto.FLOAT, 3)
    model.graph.node[0].attribute[0].ints[:] = [2, 2, 2]  # no such Conv
    assert inferred(model)["w"] == (TensorProto.FLOAT, 3)
