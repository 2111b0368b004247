"""Sizes that a file declares and its inputs contradict: what is rewritten computes what the original computes.

The seeded generator makes value_info and declared outputs wrong in every way, on the demo models and on small ones.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.model.walk import all_nodes, subgraphs
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests.contract import PROMISES

Array = np.ndarray
MODELS = Path(__file__).resolve().parents[2] / "models"


def given(name: str, *dims: int) -> str:
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = ", ".join(f"{value:.3f}" for value in rng.standard_normal(int(np.prod(dims))))
    return f"float[{','.join(map(str, dims))}] {name} = {{{values}}}"


def small(body: str, values: str, inputs: str, outputs: str = "float[] y", more: str = "", ir: int = 8) -> ModelProto:
    own = ', "local": 1' if more else ""
    text = f'<ir_version: {ir}, opset_import: ["": 18{own}]> g ({inputs}) => ({outputs}) <{values}> {{ {body} }} {more}'
    model = onnx.parser.parse_model(text)
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return model


X1, X2, X3 = "float[N,4,T] x", "float[N,4,H,W] x", "float[N,2,D,H,W] x"
W1, W2, W3 = given("w", 4, 4, 3), given("w", 4, 4, 3, 3), given("w", 2, 2, 3, 3, 3)
BIAS = given("b", 4)
CONV = "Conv <dilations=[5], pads=[5,5]>"
CONV2 = "Conv <dilations=[2,2], pads=[2,2,2,2]>"
INT8 = ", ".join(str(value % 255 - 127) for value in range(0, 480, 10))

SMALL: dict[str, Callable[[], ModelProto]] = {
    "chain": lambda: small(f"r = Relu (x) c = {CONV} (r, w) s = Sigmoid (c) y = {CONV} (s, w)", W1, X1),
    "bias-and-relu": lambda: small(f"r = Neg (x) c = {CONV2} (r, w, b) y = Relu (c)", f"{W2}, {BIAS}", X2),
    "no-tap-reaches": lambda: small(
        "r = Relu (x) c = Conv <dilations=[64], pads=[24,24]> (r, w, b) y = Relu (c)",
        f"{given('w', 4, 4, 2)}, {BIAS}",
        "float[N,4,32] x",
    ),
    "strided": lambda: small(
        "r = Neg (x) c = Conv <dilations=[3,2], strides=[2,1], pads=[3,1,2,2]> (r, w) y = Relu (c)", W2, X2
    ),
    "volume": lambda: small("r = Neg (x) c = Conv <dilations=[2,1,3], pads=[2,1,3,2,1,3]> (r, w) y = Relu (c)", W3, X3),
    "pool-that-rounds-up": lambda: small(
        f"p = MaxPool <kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1], ceil_mode=1> (x) c = {CONV2} (p, w) "
        "q = AveragePool <kernel_shape=[2,3], strides=[3,2], pads=[1,0,0,2], ceil_mode=1> (c) "
        f"d = {CONV2} (q, w) y = Relu (d)",
        W2,
        "float[N,4,21,20] x",
    ),
    "branches": lambda: small(
        f"r = Relu (x) a = If (f) <then_branch = t () => (float[] p) {{ q = Neg (r) p = {CONV} (q, w) }}, "
        f"else_branch = e () => (float[] u) {{ v = {CONV} (r, w) u = Neg (v) }}> y = {CONV} (a, w)",
        f"{W1}, bool f = {{1}}",
        X1,
    ),
    "loop": lambda: small(
        "a = Loop (trips, , x) <body = l (int64 i, bool k, float[] v) => (bool k2, float[] v2) "
        f"{{ k2 = Identity (k) t = Tanh (v) v2 = {CONV} (t, w) }}> y = {CONV} (a, w)",
        f"{W1}, int64 trips = {{2}}",
        X1,
    ),
    "function": lambda: small(
        f"r = Relu (x) a = local.f (r, w) y = {CONV} (a, w)",
        W1,
        X1,
        more=f'<domain: "local", opset_import: ["": 18]> f (X, K) => (Y) {{ n = Tanh (X) Y = {CONV} (n, K) }}',
    ),
    "output-on-the-way": lambda: small(
        f"r = Relu (x) c = {CONV} (r, w) s = Tanh (c) y = {CONV} (s, w)", W1, X1, "float[] y, float[] r, float[] c"
    ),
    "reshaped": lambda: small(
        f"t = Transpose <perm=[0,2,1]> (x) r = Reshape (t, s) u = Transpose <perm=[0,2,1]> (r) c = {CONV} (u, w) "
        f"e = Concat <axis=2> (c, c) y = {CONV} (e, w)",
        f"{W1}, int64[3] s = {{0, -1, 4}}",
        "float[N,2,T] x",
    ),
    "quantised": lambda: small(
        "q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, s, z) k = DequantizeLinear (wq, s, z) "
        f"c = {CONV} (d, k) r = Relu (c) e = QuantizeLinear (r, s, z) y = DequantizeLinear (e, s, z)",
        f"float s = {{0.0625}}, int8 z = {{0}}, int8[4,4,3] wq = {{{INT8}}}",
        X1,
    ),
}
DEMOS = ("aspp_segmentation", "causal_tcn", "hifigan_vocoder", "meshnet3d", "resnet_stage_os8", "splice_sites")
SIZES = {
    "hifigan_vocoder": ((4,), (7,), (2,)),
    "reshaped": ((16,), (20,), (38,)),
    "meshnet3d": ((9, 8, 10), (12, 12, 12), (7, 11, 9)),
}
BATCHES = (1, 3)


def opened(name: str) -> ModelProto:
    """Return a model of `models/` with batch and extents made open by its inputs alone: the usual way."""
    model = onnx.load(MODELS / f"{name}.onnx")
    if name != "aspp_segmentation":  # resizes to sizes that its exporter wrote down
        for place, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
            if place != 1:
                dim.dim_param = f"axis{place}"
    return model


def source(name: str) -> ModelProto:
    return opened(name) if name in DEMOS else SMALL[name]()


def feeds(name: str, model: ModelProto) -> list[dict[str, Array]]:
    """Return inputs of three sizes and two batches, the sizes that the generator declares first."""
    (value,) = model.graph.input
    dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    if all(dims):
        return [{value.name: np.random.default_rng(1).standard_normal(dims).astype(np.float32)}]
    rank = len(dims) - 2
    sizes = SIZES.get(name, ((16, 14, 12)[:rank], (19, 17, 9)[:rank], (40, 9, 11)[:rank]))
    found = []
    for extents, batch in itertools.product(sizes, BATCHES):
        shape = [batch, *dims[1:2], *(known or size for known, size in zip(dims[2:], extents, strict=True))]
        rng = np.random.default_rng(sum(shape))
        found.append({value.name: rng.standard_normal(shape).astype(np.float32)})
    return found


def run(model: ModelProto, given: Mapping[str, Array]) -> list[Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(given)))


# -- the generator -------------------------------------------------------------------------------------------------

WAYS = ("batch", "extents", "rank", "missing", "undilated", "outputs", "subgraphs", "everything", "type")


def graphs(graph: GraphProto) -> Iterator[tuple[GraphProto, bool]]:
    yield graph, False
    for node in graph.node:
        for _, _, below in subgraphs(node):
            for inner, _ in graphs(below):
                yield inner, True


def declared_at(model: ModelProto, given: Mapping[str, Array]) -> ModelProto:
    """Return the model with all that inference says at the shapes of `given`."""
    sized = ModelProto()
    sized.CopyFrom(model)
    for value in sized.graph.input:
        for dim, size in zip(value.type.tensor_type.shape.dim, given[value.name].shape, strict=True):
            dim.dim_value = size
    del sized.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(sized, data_prop=True)


def spoil(model: ModelProto, given: Mapping[str, Array], way: str, rng: np.random.Generator) -> ModelProto:
    """Return the model with declarations that were right at the shapes of `given`, or never."""
    spoiled = ModelProto()
    spoiled.CopyFrom(model)
    dilated = {node.output[0] for node in all_nodes(model) if any(max(a.ints, default=0) > 1 for a in node.attribute)}
    for (graph, inner), (twin, _) in zip(graphs(spoiled.graph), graphs(declared_at(model, given).graph), strict=True):
        del graph.value_info[:]
        graph.value_info.extend(twin.value_info)
        if way in ("outputs", "everything") or inner:
            for value, known in zip(graph.output, twin.output, strict=True):
                value.CopyFrom(known)
        if way in ("subgraphs", "everything") and inner:
            for value in graph.input[2:]:
                value.type.CopyFrom(helper.make_tensor_type_proto(TensorProto.FLOAT, [1, 4, 16]))
        kept: list[ValueInfoProto] = []
        for value in graph.value_info:
            one = str(rng.choice(WAYS[:5])) if way == "everything" else way
            if change(value, one, value.name in dilated, rng):
                kept.append(value)
        del graph.value_info[:]
        graph.value_info.extend(kept)
    return spoiled


def change(value: ValueInfoProto, way: str, dilated: bool, rng: np.random.Generator) -> bool:
    """Make one declaration wrong in one way; say whether it stays."""
    dims = value.type.tensor_type.shape.dim
    if way == "missing":
        return bool(rng.random() < 0.5)
    if way == "batch" and dims:
        dims[0].dim_value = 7
    elif way == "extents":
        for dim in dims[2:]:
            dim.dim_value += int(rng.integers(1, 4))
    elif way == "rank" and dims:
        del dims[-1]
    elif way == "type":
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    elif way == "undilated" and dilated:
        for dim in dims[2:]:
            dim.dim_value = max(1, dim.dim_value - 2)
    return True


# -- agreement -----------------------------------------------------------------------------------------------------


def forms(model: ModelProto) -> dict[str, dict[str, Fragment]]:
    """Return every form of every site."""
    found: dict[str, dict[str, Fragment]] = {}
    for site in find(model).sites:
        planned = {
            name: plan(name, chosen, site.geometry, site.opset, storage=site.storage)
            for name, chosen in strategies().items()
        }
        found[site.key] = {name: form for name, form in planned.items() if isinstance(form, Fragment)}
    return found


def rewritten(model: ModelProto, wanted: str) -> ModelProto:
    """Return the model with the form `wanted` wherever there is one."""
    found, offered = find(model), forms(model)
    edits = [(site, offered[site.key][wanted]) for site in found.sites if wanted in offered[site.key]]
    return rewrite(model, edits, found.normalisations, numpy_helper.to_array).proto


FORMS = tuple(sorted(strategies()))
CASES = [
    *(pytest.param(name, way, FORMS, id=f"{name}-{way}") for name in SMALL for way in WAYS),
    *(
        pytest.param(name, way, FORMS[number % 4 :: 4], id=f"{name}-{way}")
        for number, (name, way) in enumerate(itertools.product(DEMOS, WAYS))
    ),
]


@pytest.mark.parametrize(("name", "way", "wanted"), CASES)
@pytest.mark.grid(8)
def test_result_agrees_with_the_original_at_every_size(name: str, way: str, wanted: tuple[str, ...]) -> None:
    pytest.importorskip("onnxruntime")
    model = source(name)
    data = feeds(name, model)
    spoiled = spoil(model, data[0], way, np.random.default_rng(zlib.crc32(f"{name} {way}".encode())))
    truth = [run(model, one) for one in data]
    runs = [works(spoiled, one) for one in data]
    for form in wanted:
        result = rewritten(spoiled, form)
        for one, before, needed in zip(data, truth, runs, strict=True):
            if not needed and not works(result, one):
                continue
            for a, b in zip(before, run(result, one), strict=True):
                assert a.shape == b.shape, (form, one)
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(np.abs(a).max(initial=1)), err_msg=form)


def works(model: ModelProto, given: Mapping[str, Array]) -> bool:
    """Say whether ONNX Runtime runs the model: it believes some declarations, and refuses some sizes for them."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    try:
        run(model, given)
    except (state.Fail, state.InvalidArgument, state.InvalidGraph, state.RuntimeException):
        return False
    return True


# -- what is believed still counts ---------------------------------------------------------------------------------

ALWAYS = "im2col keep slice_to_batch space_to_batch space_to_group zero_fill"
OPEN_1D = f"{ALWAYS} lift space_to_axis"
IN_2D = f"{ALWAYS} space_to_axis tap_sum tap_zones"
IN_3D = f"{ALWAYS} tap_sum tap_zones"
FEW = "phases_apart"  # at most 16 phases
OFFERED = {
    "aspp_segmentation": [f"{IN_2D} {FEW}"] * 4 + [IN_2D] * 2 + [f"{IN_2D} {FEW} tap_prune"],
    "causal_tcn": [f"{OPEN_1D} {FEW}"] * 8,
    "hifigan_vocoder": [f"{OPEN_1D} {FEW}"] * 18,
    "meshnet3d": [f"{IN_3D} {FEW}"] + [IN_3D] * 2,
    "resnet_stage_os8": [f"{IN_2D} {FEW}"] * 8,
    "splice_sites": [f"{OPEN_1D} {FEW}"] * 4 + [OPEN_1D] * 2,
}
"""The forms of every dilated Conv of the demo models, in the models' order."""


@pytest.mark.parametrize("declared", [True, False], ids=["as-exported", "nothing-declared"])
@pytest.mark.parametrize("name", DEMOS)
def test_demo_models_keep_their_forms(name: str, declared: bool) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    if not declared:
        del model.graph.value_info[:]
    expected = [set(line.split()) & set(strategies()) for line in OFFERED[name]]
    assert [set(offered) & set(PROMISES) for offered in forms(model).values()] == expected


@pytest.mark.parametrize("name", DEMOS)
def test_true_declarations_stay_byte_for_byte(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    before = {value.name: value.SerializeToString() for value in model.graph.value_info}
    after = {value.name: value.SerializeToString() for value in rewritten(model, "space_to_batch").graph.value_info}
    assert after.items() <= before.items()
    assert len(after) > len(before) // 2


def test_false_declarations_go() -> None:
    model = SMALL["chain"]()
    for name, dims in (("r", ["N", 4, "T"]), ("c", [1, 4, 16]), ("s", [1, 4])):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, dims))
    left = {value.name: value for value in rewritten(model, "keep").graph.value_info}
    assert left["r"] == model.graph.value_info[0]
    assert [dim.dim_value for dim in left["c"].type.tensor_type.shape.dim] == [0, 4, 0]
    assert not left["s"].type.tensor_type.HasField("shape")


@pytest.mark.parametrize("declared", [(1, 4, 16), ("N", 4, "T"), (1, 4, "T")])
@pytest.mark.parametrize("wanted", ["keep", "space_to_batch"])
def test_loops_that_grow_keep_a_shape_that_claims_no_size(declared: tuple[int | str, ...], wanted: str) -> None:
    pytest.importorskip("onnxruntime")
    dims = ",".join(map(str, declared))
    model = small(
        f"y = Loop (trips, , x) <body = l (int64 i, bool k, float[{dims}] v) => (bool k2, float[{dims}] v2) "
        f"{{ k2 = Identity (k) t = Pad (v, p) v2 = {CONV2.replace('2,2', '2')} (t, w) }}>",
        f"{W1}, int64[6] p = {{0, 0, 1, 0, 0, 2}}",
        "float[1,4,16] x, int64 trips",
    )
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * 3))
    onnx.checker.check_model(model)
    result = rewritten(model, wanted)
    onnx.checker.check_model(result)
    body = next(a.g for node in result.graph.node for a in node.attribute if a.HasField("g"))
    for value in (body.input[2], body.output[1]):
        assert [dim.WhichOneof("value") for dim in value.type.tensor_type.shape.dim] == [None] * 3
    x = np.random.default_rng(1).standard_normal((1, 4, 16)).astype(np.float32)
    for trips in (1, 3):
        given = {"x": x, "trips": np.array(trips, np.int64)}
        for a, b in zip(run(model, given), run(result, given), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
