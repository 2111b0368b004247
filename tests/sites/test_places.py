"""Regions wherever a chain may stand: in bodies and functions, with tensors read elsewhere, shared and overridable."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from tests.sites.test_chains import run, spliced

RNG = np.random.default_rng(0)
X = RNG.integers(-2, 3, (2, 4, 19)).astype(np.float32)


def whole(*shape: int) -> NDArray[np.float32]:
    return RNG.integers(-1, 2, shape).astype(np.float32)


WEIGHTS: dict[str, Any] = {"w": whole(4, 4, 3), "v": whole(4, 4, 2), "b": whole(4)}


def conv(x: str, y: str, weights: str = "w", **attributes: Any) -> NodeProto:
    """Return a dilated Conv that keeps the length."""
    known: dict[str, Any] = {"dilations": [2], "pads": [2, 2] if weights != "v" else [2, 0], **attributes}
    return helper.make_node("Conv", [x, weights, "b"], [y], name=f"conv_{y}", **known)


def op(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


def value(name: str, shape: Sequence[Any] = (None,) * 3, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def tensors(weights: dict[str, Any]) -> list[TensorProto]:
    return [numpy_helper.from_array(np.asarray(each), name) for name, each in weights.items()]


def model(
    nodes: list[NodeProto], outputs: str = "y", *, weights: dict[str, Any] | None = None, ir: int = 8, opset: int = 17
) -> ModelProto:
    """Return a model of `x` [N, 4, T]."""
    graph = helper.make_graph(
        nodes, "g", [value("x", ["N", 4, "T"])], [*map(value, outputs.split())], tensors({**WEIGHTS, **(weights or {})})
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)


def lifted(proto: ModelProto, **feeds: Any) -> tuple[Site, ...]:
    """Return the regions to lift of a model that computes the same when they are."""
    sites = tuple(site for site in find(proto, regions=True).regions if not site.meaning.block)  # type: ignore[attr-defined]
    rewritten = spliced(proto, sites)
    pairs = zip(run(proto, {"x": X, **feeds}), run(rewritten, {"x": X, **feeds}), strict=True)
    for before, after in pairs:
        np.testing.assert_array_equal(before, after)
    return sites


def ops(sites: tuple[Site, ...]) -> list[list[str]]:
    return [[link.op for link in site.meaning.links] for site in sites]  # type: ignore[attr-defined]


def chain(x: str = "x", y: str = "y", *, inner: str = "") -> list[NodeProto]:
    return [conv(x, f"{inner}p"), op("Relu", f"{inner}p", f"{inner}q"), conv(f"{inner}q", y, "v")]


def test_in_a_loop_body_of_unknown_ranks() -> None:
    nodes = [op("Add", "state one", "s"), *chain("s", "next"), op("Identity", "go", "on")]
    body = helper.make_graph(
        nodes, "body", [value("i", [], TensorProto.INT64), value("go", [], TensorProto.BOOL), value("state")],
        [value("on", [], TensorProto.BOOL), value("next")], tensors({"one": np.float32(1)}),
    )  # fmt: skip
    proto = model([op("Loop", "count yes x", "y", body=body)], weights={"count": np.int64(2), "yes": np.bool_(True)})
    (site,) = lifted(proto)
    assert site.where == "main/Loop#0.body"
    assert ops((site,)) == [["Conv", "Relu", "Conv"]]


@pytest.mark.parametrize("test", [True, False])
def test_in_the_branches_of_an_if_that_read_tensors_from_outside(test: bool) -> None:
    then = helper.make_graph(chain("outer", "yes"), "then", [], [value("yes")])
    other = helper.make_graph([conv("outer", "k"), op("Add", "k x", "l"), conv("l", "no")], "else", [], [value("no")])
    nodes = [conv("x", "o"), op("Relu", "o", "outer"), op("If", "test", "y", then_branch=then, else_branch=other)]
    sites = lifted(model(nodes, weights={"test": np.bool_(test)}))
    assert ops(sites) == [["Conv", "Add", "Conv"], ["Conv", "Relu", "Conv"]], "one Conv alone is no region to lift"
    assert sites[0].inputs == ("outer", "x")


def test_a_tensor_that_a_branch_reads_leaves_the_region() -> None:
    branch = [helper.make_graph([op("Neg", "q", name)], name, [], [value(name)]) for name in ("yes", "no")]
    nodes = [*chain("x", "z"), op("If", "test", "y", then_branch=branch[0], else_branch=branch[1])]
    (site,) = lifted(model(nodes, "y z", weights={"test": np.bool_(True)}))
    assert site.outputs == ("q", "z")


def test_in_a_function_with_weights_of_its_own() -> None:
    constants = [op("Constant", "", name, value=numpy_helper.from_array(each)) for name, each in WEIGHTS.items()]
    function = helper.make_function("own", "F", ["x"], ["y"], [*constants, *chain()], [helper.make_opsetid("", 17)])
    proto = model([helper.make_node("F", ["x"], ["y"], domain="own")])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    (site,) = lifted(proto)
    assert (site.where, ops((site,))) == ("function own:F", [["Conv", "Relu", "Conv"]])


def test_a_function_whose_weights_are_inputs_keeps_its_chain() -> None:
    function = helper.make_function("own", "F", ["x", "w", "v", "b"], ["y"], chain(), [helper.make_opsetid("", 17)])
    proto = model([helper.make_node("F", ["x", "w", "v", "b"], ["y"], domain="own")])
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("own", 1))
    assert lifted(proto) == ()


def test_with_residuals_and_branches() -> None:
    nodes = [
        *chain("x", "r", inner="a"), op("Add", "x r", "s"), conv("s", "t"), conv("s", "u", "v"),
        op("Mul", "t u", "m"), op("Concat", "m s", "y", axis=1),
    ]  # fmt: skip
    (site,) = lifted(model(nodes))
    assert (len(site.nodes), site.inputs, site.outputs) == (8, ("x",), ("y",))


def test_chains_that_share_an_input_are_one_region() -> None:
    (site,) = lifted(model([*chain("x", "y", inner="a"), *chain("x", "z", inner="b")], "y z"))
    assert (site.inputs, site.outputs) == (("x",), ("y", "z"))


def test_regions_apart_behind_a_tensor_that_neither_makes() -> None:
    middle = [op("Einsum", "m", "n", equation="abc->abc"), op("Relu", "n", "o")]
    nodes = [*chain("x", "m", inner="a"), *middle, *chain("o", "y", inner="b"), *chain("o", "z", inner="c")]
    sites = lifted(model(nodes, "y z"))
    assert [len(site.parts) for site in sites] == [2, 4]


def test_what_is_read_outside_and_what_is_an_output_leaves() -> None:
    outside = [op("Shape", "m", "n"), op("Cast", "n", "o", to=TensorProto.FLOAT), op("Reshape", "o like", "z")]
    nodes = [*chain("x", "m", inner="a"), *chain("m", "y", inner="b"), *outside]
    (site,) = lifted(model(nodes, "y z aq", weights={"like": np.array([1, 1, 3])}))
    assert site.outputs == ("aq", "m", "y")


def test_weights_that_are_also_read_outside_stay() -> None:
    nodes = [*chain("x", "y"), op("Transpose", "w", "z")]
    proto = model(nodes, "y z")
    (site,) = lifted(proto)
    rewritten = spliced(proto, [site])
    assert {tensor.name for tensor in rewritten.graph.initializer} >= {"w", "b"}
    assert "v" not in {tensor.name for tensor in rewritten.graph.initializer}


def test_weights_that_two_convs_share_are_edited_once() -> None:
    nodes = [conv("x", "p"), op("Relu", "p", "q"), conv("q", "r"), op("Relu", "r", "s"), conv("s", "y")]
    proto = model(nodes)
    (site,) = lifted(proto)
    assert len({node.input[1] for node in spliced(proto, [site]).graph.node if node.op_type == "Conv"}) == 1


def test_weights_that_a_conv_of_a_body_shares() -> None:
    then = helper.make_graph(chain("x", "yes"), "then", [], [value("yes")])
    other = helper.make_graph([op("Conv", "w w", "no")], "else", [], [value("no")])
    nodes = [*chain("x", "z", inner="a"), op("If", "test", "y", then_branch=then, else_branch=other)]
    assert [len(site.parts) for site in lifted(model(nodes, "y z", weights={"test": np.bool_(True)}))] == [2, 2]


def test_with_weights_axes_and_pads_in_constant_nodes() -> None:
    constants = {
        **WEIGHTS, "one": np.array([1]), "two": np.array([2]), "ends": np.array([9]),
        "pads": np.array([0, 0, 1, 0, 0, 0]),
    }  # fmt: skip
    nodes = [op("Constant", "", name, value=numpy_helper.from_array(each)) for name, each in constants.items()]
    nodes += [
        conv("x", "p"), op("Pad", "p pads", "q"), op("Slice", "q one ends two", "r"),
        op("ReduceMax", "r", "s", axes=[2]),
        op("Mul", "s r", "t"), conv("t", "y", "v"),
    ]  # fmt: skip
    proto = model(nodes)
    del proto.graph.initializer[:]
    (site,) = lifted(proto)
    assert len(site.nodes) == 6


def test_an_initializer_that_a_caller_may_override_is_no_constant() -> None:
    proto = model([*chain("x", "m", inner="a"), op("Mul", "m g", "n"), conv("n", "y")], weights={"g": whole(4, 1)})
    proto.graph.input.extend([value("g", [4, 1]), value("v", [4, 4, 2])])
    (site,) = lifted(proto, g=whole(4, 1), v=whole(4, 4, 2))
    assert len(site.parts) == 2
    assert site.inputs == ("x", "v", "g")


def test_an_operand_that_a_caller_may_override_enters() -> None:
    proto = model([*chain("x", "m", inner="a"), op("Mul", "m g", "n"), conv("n", "y")], weights={"g": whole(2, 4, 1)})
    proto.graph.input.append(value("g", [2, 4, 1]))
    (site,) = lifted(proto, g=whole(2, 4, 1))
    assert (site.inputs, len(site.parts)) == (("x", "g"), 3)


def test_before_ir_version_4_every_initializer_is_an_input_too() -> None:
    proto = model(chain(), ir=3, opset=8)
    proto.graph.input.extend(value(tensor.name, list(tensor.dims)) for tensor in proto.graph.initializer)
    (site,) = lifted(proto)
    rewritten = spliced(proto, [site])
    assert [value.name for value in rewritten.graph.input] == ["x", "w", "v", "b"]
    assert sum(node.op_type == "Constant" for node in rewritten.graph.node) == 2


def test_computed_weights_and_biases_enter() -> None:
    weights = [op("ReduceSum", "x", "scale", keepdims=0), op("Sub", "scale scale", "nil"), op("Add", "w nil", "u")]
    middle = [op("Add", "b nil", "c"), op("Conv", "p u c", "q", dilations=[2], pads=[2, 2]), op("Relu", "q", "r")]
    (site,) = lifted(model([*weights, conv("x", "p"), *middle, conv("r", "y")]))
    assert site.inputs == ("nil", "x", "c")
    assert (len(site.nodes), len(site.parts)) == (5, 2)


def snake(x: str, y: str) -> list[NodeProto]:
    """x + sin(a x)^2 / a, a of shape [1, C, 1]; on whole numbers Sign stands for what is not exact."""
    return [
        op("Mul", f"{x} a", f"{y}1"), op("Sign", f"{y}1", f"{y}2"), op("Pow", f"{y}2 two", f"{y}3"),
        op("Mul", f"a {y}3", f"{y}4"), op("Add", f"{x} {y}4", y),
    ]  # fmt: skip


def test_snake() -> None:
    nodes = [conv("x", "p"), *snake("p", "q"), conv("q", "y", "v")]
    (site,) = lifted(model(nodes, weights={"a": whole(1, 4, 1), "two": np.float32(2)}))
    assert (len(site.nodes), site.inputs, site.outputs) == (7, ("x",), ("y",))


def test_a_gated_activation() -> None:
    nodes = [
        conv("x", "p"), op("Concat", "p x", "q", axis=1), op("Split", "q", "l r", axis=-2), op("Sign", "l", "t"),
        op("Ceil", "r", "s"), op("Mul", "t s", "m"), conv("m", "y"),
    ]  # fmt: skip
    (site,) = lifted(model(nodes))
    assert len(site.nodes) == 7


def test_something_over_channels_behind_a_transposition() -> None:
    norm = [
        op("Transpose", "p", "t", perm=[0, 2, 1]), op("ReduceMax", "t", "mean", axes=[-1]), op("Sub", "t mean", "u"),
        op("Mul", "u scale", "v1"), op("Add", "v1 b", "w1"), op("Transpose", "w1", "q", perm=[0, 2, 1]),
    ]  # fmt: skip
    (site,) = lifted(model([conv("x", "p"), *norm, conv("q", "y")], weights={"scale": whole(4)}))
    assert (len(site.nodes), site.outputs) == (8, ("y",))


def test_a_layer_norm_behind_a_transposition_is_inside() -> None:
    norm = [
        op("Transpose", "p", "t", perm=[0, 2, 1]), op("LayerNormalization", "t scale b", "u"),
        op("Transpose", "u", "q", perm=[0, 2, 1]), op("Sign", "q", "r"),
    ]  # fmt: skip
    (site,) = lifted(model([conv("x", "p"), *norm, conv("r", "y")], weights={"scale": whole(4)}))
    assert len(site.nodes) == 6


@pytest.mark.parametrize("opset", [11, 17, 18])
def test_resizing_between_convs(opset: int) -> None:
    nodes = [conv("x", "p"), op("Resize", "p none twice", "q", mode="nearest"), conv("q", "y")]
    weights = {"none": np.zeros(0, np.float32), "twice": np.array([1, 1, 2], np.float32)}
    proto = model(nodes, weights=weights, opset=opset)
    (site,) = lifted(proto)
    assert len(site.nodes) == 3
    rewritten = {tensor.name: list(tensor.dims) for tensor in spliced(proto, [site]).graph.initializer}
    assert "twice" not in rewritten
    assert [4] in rewritten.values()


def test_where_casts_and_places() -> None:
    nodes = [
        conv("x", "p"), op("Greater", "p x", "g"), op("Where", "g p x", "q"),
        op("Cast", "q", "i", to=TensorProto.INT32), op("Cast", "i", "f", to=TensorProto.FLOAT),
        op("Gather", "f order", "h", axis=1), conv("h", "y"),
    ]  # fmt: skip
    (site,) = lifted(model(nodes, weights={"order": np.array([3, 1, 0, 0])}))
    assert len(site.nodes) == 7


def test_quantised_units_stay_whole() -> None:
    def pair(x: str, y: str) -> list[NodeProto]:
        return [op("QuantizeLinear", f"{x} one nil", f"{y}_q"), op("DequantizeLinear", f"{y}_q one nil", y)]

    nodes = [
        *pair("x", "p"), conv("p", "q"), *pair("q", "r"), op("Relu", "r", "s"), *pair("s", "t"), conv("t", "u"),
        *pair("u", "y"),
    ]  # fmt: skip
    (site,) = lifted(model(nodes, weights={"one": np.float32(1), "nil": np.int8(0)}))
    assert site.inputs == ("p_q",)
    assert site.outputs == ("y_q",)


def test_a_lone_conv_is_no_region() -> None:
    nodes = [conv("x", "p"), op("Einsum", "p", "q", equation="abc->abc"), conv("q", "y")]
    assert lifted(model(nodes)) == ()
