"""shapes: a size is believed where it follows from the inputs, nothing contradicts it, and runtimes compute it so."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dilrewrite.cli import main
from dilrewrite.errors import UsageError
from dilrewrite.model.doubts import MAX_EXPANDED, UNKNOWN_DOMAIN
from dilrewrite.model.light import Shape, graph_shapes
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.model.valid import check_calls
from dilrewrite.model.walk import expanded

FLOAT = TensorProto.FLOAT


def parsed(body: str, *, inputs: str = "float[1,2,12] x", values: str = "", more: str = "") -> ModelProto:
    own = ', "local": 1' if more else ""
    text = f'<ir_version: 8, opset_import: ["": 18{own}]> g ({inputs}) => (float[] y) <{values}> {{ {body} }} {more}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def shape(model: ModelProto, name: str = "y") -> Shape | None:
    return graph_shapes(infer_shapes(model).graph)[name][1]


def inner(model: ModelProto, name: str) -> Shape | None:
    """The shape of a tensor of the first subgraph."""
    twin = infer_shapes(model)
    graph = next(attribute.g for node in twin.graph.node for attribute in node.attribute if attribute.HasField("g"))
    return graph_shapes(graph).get(name, (0, None))[1]


# -- against the runtime -------------------------------------------------------------------------------------------


def pool(rng: np.random.Generator) -> tuple[NodeProto, list[int], list[np.ndarray]]:
    rank = int(rng.integers(1, 4))
    kernel = rng.integers(1, 5, rank)
    attributes: dict[str, Any] = {"kernel_shape": kernel.tolist(), "ceil_mode": int(rng.integers(0, 2))}
    if rng.random() < 0.8:
        attributes["strides"] = rng.integers(1, 5, rank).tolist()
    if rng.random() < 0.4:
        attributes["dilations"] = rng.integers(1, 4, rank).tolist()
    padding = str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding != "NOTSET":
        attributes["auto_pad"] = padding
    elif rng.random() < 0.7:
        attributes["pads"] = rng.integers(0, np.concatenate([kernel, kernel])).tolist()
    op = str(rng.choice(["MaxPool", "AveragePool", "LpPool"]))
    return helper.make_node(op, ["x"], ["y"], **attributes), [1, 2, *rng.integers(4, 14, rank).tolist()], []


def transpose(rng: np.random.Generator) -> tuple[NodeProto, list[int], list[np.ndarray]]:
    rank = int(rng.integers(1, 3))
    extents, strides = rng.integers(3, 10, rank), rng.integers(1, 4, rank)
    attributes: dict[str, Any] = {"strides": strides.tolist()}
    padding = str(rng.choice(["NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if padding != "NOTSET":
        attributes["auto_pad"] = padding
    if rng.random() < 0.4:
        attributes["output_padding"] = rng.integers(0, strides).tolist()
    if rng.random() < 0.5:
        attributes["output_shape"] = (extents * strides + rng.integers(-1, 3, rank)).tolist()
    weights = np.ones([2, 3, *rng.integers(1, 5, rank)], np.float32)
    return helper.make_node("ConvTranspose", ["x", "k0"], ["y"], **attributes), [1, 2, *extents.tolist()], [weights]


def cut(rng: np.random.Generator) -> tuple[NodeProto, list[int], list[np.ndarray]]:
    ends = [int(rng.choice([int(rng.integers(-12, 13)), 2**31 - 1, -(2**31), 2**63 - 1])) for _ in range(2)]
    steps = rng.choice([1, 2, -1, -2], 2)
    values = [rng.integers(-12, 13, 2), np.array(ends), np.array([2, -1]), steps]
    return (
        helper.make_node("Slice", ["x", "k0", "k1", "k2", "k3"], ["y"]),
        [1, 2, *rng.integers(3, 10, 2).tolist()],
        values,
    )


def resize(rng: np.random.Generator) -> tuple[NodeProto, list[int], list[np.ndarray]]:
    dims = [1, 2, *rng.integers(5, 60, 2).tolist()]
    if rng.random() < 0.3:
        policy = str(rng.choice(["stretch", "not_larger", "not_smaller"]))
        node = helper.make_node(
            "Resize", ["x", "", "", "k0"], ["y"], mode="nearest", axes=[2, 3], keep_aspect_ratio_policy=policy
        )
        return node, dims, [rng.integers(5, 60, 2)]
    scales = rng.choice([0.3, 0.5, 0.6, 0.7, 1.1, 1.3, 1 / 3, 0.9, 2.0, 3.0], 2).astype(np.float32)
    if rng.random() < 0.5:
        return helper.make_node("Resize", ["x", "", "k0"], ["y"], mode="nearest", axes=[-1, 2]), dims, [scales]
    whole = np.concatenate([np.ones(2, np.float32), scales])
    return helper.make_node("Resize", ["x", "", "k0"], ["y"], mode="nearest"), dims, [whole]


@pytest.mark.parametrize("make", [pool, transpose, cut, resize])
def test_believed_sizes_are_those_of_the_runtime(make: Any) -> None:
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    rng = np.random.default_rng(11)
    counts: Counter[str] = Counter()
    for _ in range(200):
        node, dims, values = make(rng)
        opset = int(rng.choice([13, 18, 19, 22]))
        constants = [numpy_helper.from_array(value, f"k{place}") for place, value in enumerate(values)]
        given, result = helper.make_tensor_value_info("x", FLOAT, dims), helper.make_empty_tensor_value_info("y")
        graph = helper.make_graph([node], "g", [given], [result], constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        try:
            session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
            (ran,) = session.run(None, {"x": np.ones(dims, np.float32)})
        except Exception:  # whatever it refuses has no sizes
            counts["refused"] += 1
            continue
        found = shape(model)
        assert found is None or len(found) == ran.ndim, (node, dims)
        assert all(a in (None, b) for a, b in zip(found or (), ran.shape, strict=False)), (node, dims, found, ran.shape)
        counts["known" if found is not None and None not in found else "unknown"] += 1
    assert counts["known"] > counts["unknown"] > 0, counts


def test_pools_that_need_no_rounding_keep_their_sizes() -> None:
    body = "y = MaxPool <kernel_shape=[3], strides=[2], ceil_mode=1> (x)"
    assert shape(parsed(body, inputs="float[1,2,13] x")) == (1, 2, 6)
    assert shape(parsed(body, inputs="float[1,2,12] x")) == (1, 2, 6)
    assert shape(parsed(body, inputs="float[1,2,n] x")) == (1, 2, None)


OLD = {
    7: "y = Upsample <scales=[1.0, 1.0, %s]> (x)",
    9: "k = Constant <value = float[3] {1, 1, %s}> () y = Upsample (x, k)",
    10: "k = Constant <value = float[3] {1, 1, %s}> () y = Resize (x, k)",
    13: "k = Constant <value = float[3] {1, 1, %s}> () y = Resize (x, , k)",
    18: "k = Constant <value = float[1] {%s}> () y = Resize <axes=[-1]> (x, , k)",
}


@pytest.mark.parametrize("opset", OLD)
def test_sizes_that_hang_on_the_rounding_of_a_scale_are_unknown(opset: int) -> None:
    for extent, scale, found in (
        (20, "0.7", None),
        (60, "1.3", None),
        (20, "2.0", 40),
        (20, "0.5", 10),
        (21, "1.3", 27),
    ):
        if opset in (7, 9) and float(scale) < 1:
            continue
        model = parsed(OLD[opset] % scale, inputs=f"float[1,2,{extent}] x")
        model.opset_import[0].version = opset
        assert shape(model) == ((1, 2, found) if found else (None, None, None)), (extent, scale)


def test_functions_believe_scales_that_need_no_rounding() -> None:
    body = "K = Constant <value = float[3] {1, 1, %s}> () Y = Resize (X, , K)"
    function = f'<domain: "local", opset_import: ["": 18]> f (X) => (Y) {{ {body} }}'
    assert shape(parsed("y = local.f (x)", more=function % "2.0")) == (1, 2, 24)
    assert shape(parsed("y = local.f (x)", more=function % "1.3")) is None


def test_what_follows_from_a_doubtful_size_is_unknown() -> None:
    pool = "p = MaxPool <kernel_shape=[2], strides=[2], pads=[1,1], ceil_mode=%s> (x)"
    body = f"{pool} q = Neg (p) y = Concat <axis=2> (q, q)"
    assert shape(parsed(body % 1, inputs="float[1,2,21] x")) == (None, None, None)
    assert shape(parsed(body % 0, inputs="float[1,2,21] x")) == (1, 2, 22)


def test_functions_with_a_doubtful_pool_are_not_believed() -> None:
    call = "y = local.f (x)"
    function = '<domain: "local", opset_import: ["": 18]> f (X) => (Y) { Y = MaxPool <kernel_shape=[2], %s> (X) }'
    assert shape(parsed(call, more=function % "ceil_mode=0")) == (1, 2, 11)
    assert shape(parsed(call, more=function % "ceil_mode=1")) is None


# -- claims --------------------------------------------------------------------------------------------------------


def test_claims_of_a_loop_body_are_not_believed() -> None:
    body = (
        "y = Loop (n, , x) <body = b (int64 i, bool c, float[1,2,5] v) => (bool d, float[1,2,5] w) "
        "{ d = Identity (c) t = Neg (v) w = Concat <axis=2> (t, v) }>"
    )
    model = parsed(body, values="int64 n = {2}")
    assert inner(model, "t") is None
    assert shape(model) is None


def test_inputs_of_a_scan_body_follow_from_outside_or_are_unknown() -> None:
    body = "y = Scan (x) <num_scan_inputs = 1, body = b (float[%s] v) => (float[] s) { s = Neg (v) }>"
    model = parsed(body % "2,12")
    model.graph.node[0].attribute[1].g.output[0].type.tensor_type.ClearField("shape")
    assert inner(model, "s") == (2, 12)
    assert shape(model) == (1, 2, 12)
    model = parsed(body % "2,5")
    model.graph.node[0].attribute[1].g.output[0].type.tensor_type.ClearField("shape")
    assert inner(model, "s") is None
    assert shape(model) is None


def test_claims_about_the_tensors_of_a_sequence_are_not_believed() -> None:
    model = parsed("y = SequenceAt (s, at)", inputs="float[1,2,12] x", values="int64 at = {0}")
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [1, 2, 12]))
    model.graph.input.append(helper.make_value_info("s", kind))
    assert shape(model) in (None, (None, None, None))


def test_open_sizes_of_an_overridable_initializer_are_open() -> None:
    model = parsed("y = Neg (w)", inputs="float[1,2,12] x, float[n,3] w", values="")
    model.graph.initializer.append(helper.make_tensor("w", FLOAT, [2, 3], [0.0] * 6))
    assert shape(model) == (None, 3)


@pytest.mark.parametrize(
    ("body", "name", "values", "known"),
    [
        ("y = Pad (x, k)", "int64[6] k", [0, 0, 1, 0, 0, 1], (1, 2, 14)),
        ("y = Resize (x, , k)", "float[3] k", [1, 1, 2], (1, 2, 24)),
        ("y = Resize (x, , , k)", "int64[3] k", [1, 2, 20], (1, 2, 20)),
        ("y = Reshape (x, k)", "int64[3] k", [1, 4, 6], (1, 4, 6)),
        ("z = Constant <value = int64[3] {0, 0, 0}> () y = Slice (x, z, k)", "int64[3] k", [1, 2, 9], (1, 2, 9)),
        ("y = Tile (x, k)", "int64[3] k", [1, 1, 2], (1, 2, 24)),
    ],
)
def test_values_that_a_caller_may_replace_say_no_size(
    body: str, name: str, values: list[int], known: tuple[int, ...]
) -> None:
    model = parsed(body, inputs=f"float[1,2,12] x, {name}")
    kind = model.graph.input[-1].type.tensor_type.elem_type
    model.graph.initializer.append(helper.make_tensor("k", kind, [len(values)], values))
    found = shape(model)
    assert found is None or set(found) == {None}
    model.ir_version = 3  # every initializer is an input, and none can be replaced
    assert shape(model) == known
    model.ir_version = 8
    del model.graph.input[-1]
    assert shape(model) == known


CASTS = {
    "plain": "s = Shape (x) c = Cast <to=%s> (s) e = Cast <to=7> (c) y = ConstantOfShape (e)",
    "branch": "s = Shape (x) c = Cast <to=%s> (s) e = Cast <to=7> (c) y = If (t) <"
    "then_branch = a () => (float[i,j,k] p) { p = ConstantOfShape (e) }, "
    "else_branch = b () => (float[i,j,k] q) { q = ConstantOfShape (e) }>",
    "inside": "y = local.f (x) | S = Shape (X) C = Cast <to=%s> (S) E = Cast <to=7> (C) Y = ConstantOfShape (E)",
    "into": "s = Shape (x) y = local.f (s) | C = Cast <to=%s> (X) E = Cast <to=7> (C) Y = ConstantOfShape (E)",
    "out-of": "c = local.f (x) e = Cast <to=7> (c) y = ConstantOfShape (e) | S = Shape (X) Y = Cast <to=%s> (S)",
}


@pytest.mark.parametrize("place", CASTS)
def test_sizes_are_not_followed_through_a_cast_that_may_change_them(place: str) -> None:
    body, _, inside = CASTS[place].partition("|")
    head = '<domain: "local", opset_import: ["": 18]> f (X) => (Y) '
    for kind in ("INT64", "INT32", "BOOL", "INT8", "UINT8", "FLOAT16", "FLOAT"):
        text = body if inside else body % TensorProto.DataType.Value(kind)
        more = f"{head} {{ {inside % TensorProto.DataType.Value(kind)} }}" if inside else ""
        found = shape(parsed(text, values="bool t = {1}", more=more))
        if kind in ("INT64", "INT32"):
            assert found == (1, 2, 12)
        else:
            assert found is None or set(found) == {None}, kind


def test_casts_keep_the_sizes_of_what_they_cast() -> None:
    assert shape(parsed("s = Shape (x) c = Cast <to=9> (s) y = Cast <to=1> (c)")) == (3,)
    function = '<domain: "local", opset_import: ["": 18]> f (X) => (Y) { Y = Cast <to=10> (X) }'
    assert shape(parsed("c = local.f (x) y = Cast <to=1> (c)", more=function)) == (1, 2, 12)


def test_nodes_in_any_order_are_understood() -> None:
    model = parsed(
        "a = Neg (x) b = If (c) <then_branch = t () => (float[] p) { p = Neg (a) }, "
        "else_branch = e () => (float[] q) { q = Relu (a) }> y = Neg (b)",
        values="bool c = {1}",
    )
    for attribute in model.graph.node[1].attribute:
        attribute.g.output[0].type.tensor_type.ClearField("shape")
    assert shape(model) == (1, 2, 12)
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    twin = infer_shapes(model)
    assert graph_shapes(twin.graph)["y"][1] == (1, 2, 12)
    assert [node.output[0] for node in twin.graph.node] == ["y", "b", "a"]


# -- functions -----------------------------------------------------------------------------------------------------


def nested(depth: int, *, calls: int = 2) -> ModelProto:
    """A model whose functions call the next one `calls` times each."""
    functions = []
    for place in range(depth):
        names = ["X", *(f"t{number}" for number in range(1, calls)), "Y"]
        op, domain = (f"f{place + 1}", "local") if place < depth - 1 else ("Relu", "")
        nodes = [helper.make_node(op, [a], [b], domain=domain) for a, b in itertools.pairwise(names)]
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
        functions.append(helper.make_function("local", f"f{place}", ["X"], ["Y"], nodes, imports))
    model = parsed(
        "a = local.f0 (x) y = Neg (a)", more='<domain: "local", opset_import: ["": 18]> g (X) => (Y) { Y = Neg (X) }'
    )
    del model.functions[:]
    model.functions.extend(functions)
    return model


def test_calls_are_counted_and_followed_up_to_a_limit() -> None:
    few, many = nested(10), nested(24)
    assert expanded(few)["local", "f0", ""] == 2**10
    assert expanded(many)["local", "f0", ""] == 2**24 > MAX_EXPANDED
    assert shape(few) == (1, 2, 12)
    start = time.monotonic()
    assert shape(many) is None
    assert time.monotonic() - start < 5  # 16 million nodes take minutes
    check_calls(few, "m.onnx")
    with pytest.raises(UsageError, match=r"m\.onnx: its functions stand for 16,777,217 nodes"):
        check_calls(many, "m.onnx")


def test_many_calls_together_have_the_same_limit() -> None:
    model = nested(16)
    for place in range(5):
        model.graph.node.add(op_type="f0", domain="local", input=["x"], output=[f"z{place}"])
    twin = infer_shapes(model)
    followed = [node.op_type for node in twin.graph.node if node.domain != UNKNOWN_DOMAIN]
    assert followed == ["f0", "Neg"]
    assert graph_shapes(twin.graph)["y"][1] == (1, 2, 12)


def test_functions_that_call_themselves_are_left_alone() -> None:
    model = nested(3)
    model.functions[2].node[0].op_type, model.functions[2].node[0].domain = "f0", "local"
    assert expanded(model) == {}
    assert shape(model) is None


@pytest.mark.parametrize("command", ["optimize", "verify", "bench", "build"])
def test_models_that_no_runtime_could_expand_are_refused(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(nested(24), path)
    more = [str(path)] if command in ("verify", "bench") else []
    assert main([command, str(path), *more]) == 2
    assert "its functions stand for" in capsys.readouterr().err
    assert main(["inspect", str(path)]) == 0


@pytest.mark.parametrize("op", ['ai.onnx.ml.DictVectorizer <string_vocabulary=["a"]>', 'RegexFullMatch <pattern="a">'])
def test_operators_whose_inference_ends_the_process(op: str) -> None:
    """The type of what they read is not known, behind an operator that nobody knows. In a process of its own."""
    text = (
        '<ir_version: 8, opset_import: ["": 20, "ai.onnx.ml": 3, "far": 1]> g (float[1,2,9] x) => (y) '
        f"{{ u = far.Unknown (x) y = {op} (u) }}"
    )
    code = (
        "from onnx import parser; from dilrewrite.sites.find import find; "
        f"print(find(parser.parse_model({text!r})).sites)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "()\n"), ended.stderr[-500:]
