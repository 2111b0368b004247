import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from dilrewrite.model.convolve import Window, conv
from dilrewrite.runtimes import CannotLoad, CannotRun, Io, Options, Runnable
from dilrewrite.runtimes import onnxruntime_cpu as ort
from dilrewrite.runtimes.reference import BACKEND

pytestmark = pytest.mark.filterwarnings("error")

BF16 = np.dtype(ml_dtypes.bfloat16)


def convolved(x, w, b=None, accumulate=None, **settings):
    return conv(x, w, b, Window(kernel=w.shape[2:], **settings), accumulate)


def naive(x, w, b, strides, dilations, pads_begin, pads_end, group):
    """Seven loops (in 2-D), straight from the definition: a negative pad crops first."""
    for axis, (p0, p1) in enumerate(zip(pads_begin, pads_end, strict=True)):
        x = x.take(range(max(0, -p0), x.shape[axis + 2] + min(0, p1)), axis + 2)
    begin, end = [max(0, p) for p in pads_begin], [max(0, p) for p in pads_end]
    axes = zip(x.shape[2:], w.shape[2:], strides, dilations, begin, end, strict=True)
    out = [max(0, (h + p0 + p1 - d * (k - 1) - 1) // s + 1) for h, k, s, d, p0, p1 in axes]
    y = np.zeros((x.shape[0], w.shape[0], *out), np.int64)
    per_in, per_out = w.shape[1], w.shape[0] // group
    for n, o, *at in itertools.product(*map(range, y.shape)):
        total = 0 if b is None else int(b[o])
        for c, *tap in itertools.product(*map(range, w.shape[1:])):
            read = [a * s + t * d - p for a, s, t, d, p in zip(at, strides, tap, dilations, begin, strict=True)]
            if all(0 <= i < h for i, h in zip(read, x.shape[2:], strict=True)):
                total += int(x[(n, o // per_out * per_in + c, *read)]) * int(w[(o, c, *tap)])
        y[(n, o, *at)] = total
    return y


def geometry(seed, lowest_pad):
    """A random Conv that has an output; small whole numbers."""
    draw = np.random.default_rng(seed)
    rank = 1 + seed % 3
    group = int(draw.choice([1, 1, 2, 3]))
    per_in, per_out = (1, int(draw.integers(1, 3))) if draw.random() < 0.3 else draw.integers(1, 4, 2).tolist()
    while True:
        extents = draw.integers(1, 10 if rank < 3 else 6, rank).tolist()
        kernel = draw.integers(1, 4, rank).tolist()
        strides = draw.integers(1, 4, rank).tolist()
        dilations = draw.integers(1, 5, rank).tolist()
        begin = draw.integers(lowest_pad, 9 if rank < 3 else 4, rank).tolist()
        end = draw.integers(lowest_pad, 9 if rank < 3 else 4, rank).tolist()
        axes = zip(extents, kernel, dilations, begin, end, strict=True)
        fits = all(
            h + p0 + p1 > d * (k - 1) and h + min(0, p0) + min(0, p1) > 0 and h + p0 + p1 < 16
            for h, k, d, p0, p1 in axes
        )
        if fits:
            break
    x = draw.integers(-7, 8, (int(draw.integers(1, 3)), group * per_in, *extents))
    w = draw.integers(-7, 8, (group * per_out, per_in, *kernel))
    b = draw.integers(-7, 8, group * per_out) if draw.random() < 0.5 else None
    attributes = {"strides": strides, "dilations": dilations, "pads_begin": begin, "pads_end": end, "group": group}
    return x, w, b, attributes


@pytest.mark.parametrize("seed", range(60))
def test_conv_is_the_definition(seed):
    x, w, b, attributes = geometry(seed, -2)
    wanted = naive(x, w, b, **attributes)
    for kind, result in [
        (np.int8, np.int64),
        (np.int64, np.int64),
        (np.float64, np.float64),
        (np.float32, np.float32),
        (np.float16, np.float16),
    ]:
        y = convolved(x.astype(kind), w.astype(kind), None if b is None else b.astype(kind), **attributes)
        assert y.dtype == result
        assert y.shape == wanted.shape
        np.testing.assert_array_equal(y, wanted.astype(result))


def conv_model(x, w, b, attributes, opset=17, number=TensorProto.FLOAT, auto_pad="NOTSET"):
    named = {"strides": attributes["strides"], "dilations": attributes["dilations"], "group": attributes["group"]}
    pads = {"pads": attributes["pads_begin"] + attributes["pads_end"]} if auto_pad == "NOTSET" else {}
    inputs = {"x": x, "w": w} if b is None else {"x": x, "w": w, "b": b}
    node = helper.make_node("Conv", list(inputs), ["y"], auto_pad=auto_pad, **named, **pads)
    values = [helper.make_tensor_value_info(name, number, None) for name in [*inputs, "y"]]
    graph = helper.make_graph([node], "g", values[:-1], values[-1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), inputs


def run(proto, feeds, backend=BACKEND, outputs=None):
    with backend.session(Runnable(model=proto.SerializeToString()), Options(isolated=False, threads=1)) as session:
        return session.run(feeds, outputs)


@pytest.mark.parametrize("seed", range(60, 100))
def test_conv_is_onnx_runtimes(seed):
    draw = np.random.default_rng(seed)
    x, w, b, attributes = geometry(seed, 0)
    x, w = draw.standard_normal(x.shape).astype(np.float32), draw.standard_normal(w.shape).astype(np.float32)
    b = None if b is None else b.astype(np.float32)
    proto, feeds = conv_model(x, w, b, attributes)
    np.testing.assert_allclose(run(proto, feeds)["y"], run(proto, feeds, ort.BACKEND)["y"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(40))
def test_conv_transpose_is_onnx_runtimes(seed):
    draw = np.random.default_rng(seed)
    rank, group = int(draw.integers(1, 4)), int(draw.choice([1, 1, 2]))
    kernel, strides, dilations = (draw.integers(1, 4, rank).tolist() for _ in range(3))
    extents = draw.integers(2, 6, rank).tolist()
    attributes = {"strides": strides, "dilations": dilations, "group": group}
    kind = str(draw.choice(["pads", "VALID", "SAME_UPPER", "SAME_LOWER", "output_shape"]))
    if kind == "pads":
        attributes["pads"] = draw.integers(0, 2, 2 * rank).tolist()
        attributes["output_padding"] = [int(draw.integers(0, s)) for s in strides]
    elif kind == "output_shape":
        attributes["output_shape"] = [s * (h - 1) + 1 for h, s in zip(extents, strides, strict=True)]
    else:
        attributes["auto_pad"] = kind
    x = draw.standard_normal((2, 2 * group, *extents)).astype(np.float32)
    w = draw.standard_normal((2 * group, 3, *kernel)).astype(np.float32)
    feeds = {"x": x, "w": w, "b": draw.standard_normal(3 * group).astype(np.float32)}
    if draw.random() < 0.5:
        del feeds["b"]
    node = helper.make_node("ConvTranspose", list(feeds), ["y"], **attributes)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in [*feeds, "y"]]
    graph = helper.make_graph([node], "g", values[:-1], values[-1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    try:
        wanted = run(proto, feeds, ort.BACKEND)["y"]
    except (CannotLoad, CannotRun) as error:
        pytest.skip(f"ONNX Runtime does not run it: {error}")
    if kind.startswith("SAME") and any(d * (k - 1) + 1 < s for k, s, d in zip(kernel, strides, dilations, strict=True)):
        with pytest.raises(CannotRun, match="negative pads"):
            run(proto, feeds)
        return
    np.testing.assert_allclose(run(proto, feeds)["y"], wanted, rtol=1e-5, atol=1e-5)


def has_valid_output(seed):
    x, w, _, attributes = geometry(seed, 0)
    axes = zip(x.shape[2:], w.shape[2:], attributes["dilations"], strict=True)
    return all(h > d * (k - 1) for h, k, d in axes)


@pytest.mark.parametrize(
    ("auto_pad", "seed"),
    [(auto_pad, seed) for auto_pad in ("SAME_UPPER", "SAME_LOWER") for seed in range(100, 112)]
    + [("VALID", seed) for seed in range(100, 115) if has_valid_output(seed)],
)
def test_auto_pad_is_onnx_runtimes_and_knows_dilation(auto_pad, seed):
    x, w, b, attributes = geometry(seed, 0)
    x, w = x.astype(np.float32), w.astype(np.float32)
    b = None if b is None else b.astype(np.float32)
    proto, feeds = conv_model(x, w, b, attributes, auto_pad=auto_pad)
    # ONNX Runtime runs SAME_* without dilation only: give it the kernel with the zeros written in
    dense = np.zeros(
        (*w.shape[:2], *(d * (k - 1) + 1 for k, d in zip(w.shape[2:], attributes["dilations"], strict=True)))
    )
    dense[(..., *(slice(None, None, d) for d in attributes["dilations"]))] = w
    plain = attributes | {"dilations": [1] * len(attributes["dilations"])}
    proto_dense, feeds_dense = conv_model(x, dense.astype(np.float32), b, plain, auto_pad=auto_pad)
    np.testing.assert_array_equal(run(proto, feeds)["y"], run(proto_dense, feeds_dense, ort.BACKEND)["y"])


def test_precision():
    draw = np.random.default_rng(0)
    x, w = draw.standard_normal((1, 64, 20, 20)), draw.standard_normal((32, 64, 3, 3))
    settings = {"strides": [1, 1], "dilations": [2, 2], "pads_begin": [2, 2], "pads_end": [2, 2]}
    exact = convolved(x, w, **settings)
    assert exact.dtype == np.float64
    for half in (np.dtype(np.float16), BF16):
        rounded_x, rounded_w = x.astype(half), w.astype(half)
        exact = convolved(rounded_x, rounded_w, **settings, accumulate=np.float64)
        y = convolved(rounded_x, rounded_w, **settings)
        assert (exact.dtype, y.dtype) == (np.float64, half)
        # summed in float32, rounded once: nearly all are the exact value's nearest
        assert np.mean(y == exact.astype(half)) > 0.99
    single = convolved(x.astype(np.float32), w.astype(np.float32), **settings)
    wide = convolved(x.astype(np.float32), w.astype(np.float32), **settings, accumulate=np.float64)
    assert 0 < np.abs(single - wide).max() < 1e-4


def test_integers_beyond_float64_are_exact_and_beyond_64_bits_refused():
    settings = {"strides": [1], "dilations": [1], "pads_begin": [0], "pads_end": [0]}
    x, w = np.full((1, 2, 1), 2**40 + 1), np.full((1, 2, 1), 2**20 + 1)
    assert convolved(x, w, **settings).item() == 2 * (2**40 + 1) * (2**20 + 1)
    with pytest.raises(OverflowError, match="beyond 64 bits"):
        convolved(x, w * 8, **settings)


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (2, 4, 0, 8), (2, 4, 1, 1)])
def test_nothing_comes_of_nothing(shape):
    settings = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [0, 0], "pads_end": [0, 0]}
    y = convolved(np.ones(shape, np.float32), np.ones((6, 2, 3, 3), np.float32), group=2, **settings)
    assert y.size == 0
    assert y.shape[:2] == (shape[0], 6)


def test_no_live_tap_leaves_the_bias():
    settings = {"strides": [1], "dilations": [1], "pads_begin": [9], "pads_end": [-2]}
    y = convolved(np.ones((1, 1, 2)), np.ones((2, 1, 3)), np.array([1.0, 2.0]), **settings)
    assert y.tolist() == [[[1] * 7, [2] * 7]]


@pytest.mark.parametrize(
    ("w", "group", "words"), [((4, 3, 3), 1, "group 1"), ((3, 2, 3), 2, "group 2"), ((4, 4, 3, 3), 1, "ranks")]
)
def test_shapes_that_do_not_fit(w, group, words):
    with pytest.raises(ValueError, match=words):
        convolved(np.ones((1, 4, 9)), np.ones(w), strides=[1], dilations=[1], pads_begin=[0], pads_end=[0], group=group)


@pytest.mark.parametrize("kind", [np.dtype(np.float64), BF16], ids=str)
@pytest.mark.parametrize("opset", [7, 11, 22])
def test_conv_in_types_that_onnx_runtime_lacks(kind, opset):
    x, w, b, attributes = geometry(4, -2)
    number = helper.np_dtype_to_tensor_dtype(kind)
    proto, feeds = conv_model(
        x.astype(kind), w.astype(kind), None if b is None else b.astype(kind), attributes, opset, number
    )
    y = run(proto, feeds)["y"]
    assert y.dtype == kind
    np.testing.assert_array_equal(y, naive(x, w, b, **attributes).astype(kind))


HEAD = '<ir_version: 8, opset_import: ["":17, "f":1]>\n'
WEIGHT = "float[2,2,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}"
CONV = "Conv<dilations=[2], pads=[3,1]>"
X = np.arange(20, dtype=np.float32).reshape(1, 2, 10)
BODIES = {
    "then": f"""agraph (float[1,2,10] x, bool c) => (float[N,M,K] y) <{WEIGHT}> {{ y = If(c) <
        then_branch = a () => (float[N,M,K] u) {{ u = {CONV}(x, w) }},
        else_branch = b () => (float[N,M,K] v) {{ v = Neg(x) }}> }}""",
    "loop": f"""agraph (float[1,2,10] x, int64 n) => (float[N,M,K] y, float[A,N,M,K] s) <{WEIGHT}, bool go = {{1}}> {{
        y, s = Loop(n, go, x) <body = b (int64 i, bool g, float[1,2,10] v) => (bool h, float[1,2,10] u, float[1,2,10] t)
        {{ h = Identity(g)
           u = {CONV}(v, w)
           t = Neg(u) }}> }}""",
    "loop_without_condition": f"""agraph (float[1,2,10] x, int64 n) => (float[N,M,K] y) <{WEIGHT}> {{
        y = Loop(n, "", x) <body = b (int64 i, bool g, float[1,2,10] v) => (bool h, float[1,2,10] u)
        {{ h = Identity(g)
           u = {CONV}(v, w) }}> }}""",
    "scan": f"""agraph (float[1,2,10] x, float[3,1,2,10] q) => (float[N,M,K] y, float[A,N,M,K] s) <{WEIGHT}> {{
        y, s = Scan(x, q) <num_scan_inputs=1, body = b (float[1,2,10] v, float[1,2,10] e) =>
        (float[1,2,10] u, float[1,2,10] t) {{ t = {CONV}(e, w)
           u = Add(t, v) }}> }}""",
    "functions_out_of_order": f"""agraph (float[1,2,10] x) => (float[N,M,K] y) <{WEIGHT}> {{
        y = f.outer<rate=[2]>(x, w) }}
        <domain: "f", opset_import: ["":17, "f":1]> outer <rate>(x, w) => (y) {{ y = f.inner<d=@rate>(x, w) }}
        <domain: "f", opset_import: ["":17]> inner <d>(x, w) => (y) {{
        y = Conv<dilations: ints = @d, pads=[3,1]>(x, w) }}""",
    "nodes_out_of_order": f"""agraph (float[1,2,10] x) => (float[N,M,K] y) <{WEIGHT}> {{ y = Neg(t)
        t = {CONV}(x, w) }}""",
}


@pytest.mark.parametrize("name", BODIES)
def test_bodies_and_functions_use_our_conv(name, monkeypatch: pytest.MonkeyPatch):
    proto = parser.parse_model(HEAD + BODIES[name])
    feeds = {"x": X, "c": np.array(True), "n": np.array(2), "q": np.stack([X, -X, X])}
    feeds = {value.name: feeds[value.name] for value in proto.graph.input}
    wanted = run(proto, feeds, ort.BACKEND)
    calls = []
    monkeypatch.setattr("dilrewrite.model.evaluate.conv", lambda *a, **k: calls.append(1) or conv(*a, **k))
    result = run(proto, feeds)
    assert calls
    for key, value in wanted.items():
        np.testing.assert_array_equal(result[key], value)


def single(op, inputs, opset, outputs=1, **attributes):
    """A model of one operator, with all inputs as graph inputs (None: left out)."""
    names = ["" if value is None else f"i{place}" for place, value in enumerate(inputs)]
    feeds = {name: value for name, value in zip(names, inputs, strict=True) if name}
    node = helper.make_node(op, names, [f"o{place}" for place in range(outputs)], **attributes)
    declared = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()
    ]
    results = [helper.make_empty_tensor_value_info(f"o{place}") for place in range(outputs)]
    graph = helper.make_graph([node], "g", declared, results)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), feeds


def cases(opset):
    x = np.random.default_rng(opset).integers(-9, 10, (2, 16, 6, 6)).astype(np.float32)
    row = x[:, :, :1] + np.float32(10)
    whole = np.arange(-6, 6).reshape(3, 4)

    def vector(*values):
        return np.array(values, np.int64)

    pads = (0, 0, 1, -2, 0, 0, -1, 3)
    if opset < 11:
        yield "Pad", [x], {"pads": pads}
        yield "Pad", [x], {"pads": pads, "value": 2.0}
        yield "Clip", [x], {"min": 0.0, "max": 6.0}
    else:
        yield "Pad", [x, vector(*pads)], {}
        yield "Pad", [x, vector(*pads), np.array(2, np.float32)], {}
        yield "Pad", [x, vector(*pads)], {"mode": "edge"}
        yield "Clip", [x, np.array(0, np.float32), None], {}
    if opset >= 18:
        yield "Pad", [x, vector(1, -2, -3, 0), None, vector(-2, 3)], {}
    if opset < 10:
        yield "Slice", [x], {"axes": [2, 3], "starts": [1, 0], "ends": [2**31 - 1, -1]}
    else:
        yield "Slice", [x, vector(1, 0), vector(2**63 - 1, 5), vector(-2, 3), vector(2, 2)], {}
        yield "Slice", [x, vector(-1), vector(-(2**63)), vector(-1), vector(-1)], {}
        yield "Mod", [whole, vector(4)], {}
    if opset < 13:
        yield "Split", [x], {"axis": 1, "split": [4, 12]}
        yield "Squeeze", [x[:1]], {"axes": [0]}
        yield "Unsqueeze", [x], {"axes": [0, 4]}
    else:
        yield "Split", [x, vector(4, 12)], {"axis": 1}
        yield "Squeeze", [x[:1], vector(0)], {}
        yield "Unsqueeze", [x, vector(0, -1)], {}
    if opset >= 8:
        yield "Expand", [row, vector(2, 16, 6, 6)], {}
        yield "Max", [x, row, x], {}
        yield "Sum", [x, row, x], {}
    if opset >= 11:
        yield "DepthToSpace", [x], {"blocksize": 2, "mode": "CRD"}
    if opset >= 15:
        yield "Shape", [x], {"start": 2}
    yield "DepthToSpace", [x], {"blocksize": 2}
    yield "SpaceToDepth", [x], {"blocksize": 2}
    yield "Reshape", [x, vector(0, 0, 3, 2, 3, 2)], {}
    yield "Reshape", [x, vector(-1, 4, 0, 0)], {}
    yield "Transpose", [x], {"perm": [0, 2, 1, 3]}
    yield "Concat", [x, x], {"axis": 0}
    yield "Shape", [x], {}
    yield "Gather", [x, vector(1, 0, 3)], {"axis": 2}
    yield "Tile", [x, vector(1, 2, 1, 3)], {}
    for op in ("Add", "Sub", "Mul", "Div"):
        yield op, [x, row], {}
        yield op, [whole, vector(4)], {}
    for op in ("Relu", "LeakyRelu", "Sigmoid", "Tanh", "Elu", "Abs", "Neg"):
        yield op, [x], {}
    for op in ("Softmax", "LogSoftmax", "Hardmax"):
        yield op, [x / 4], {}
        yield op, [x / 4], {"axis": 2}
    yield "PRelu", [x, x[0, :, :1, :1]], {}
    yield "AveragePool", [x], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    yield "AveragePool", [x], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    yield "MaxPool", [x], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [2, 2]}
    yield "GlobalAveragePool", [x], {}
    yield "BatchNormalization", [x, *(row[0, :, 0, 0] * f for f in np.float32([1, 2, 3, 4]))], {}
    yield "InstanceNormalization", [x, x[0, :, 0, 0], x[0, :, 0, 1]], {}
    yield "MatMul", [x, x], {}


@pytest.mark.parametrize("opset", range(7, 23))
def test_operators_in_every_type(opset):
    for op, inputs, attributes in cases(opset):
        outputs = 2 if op == "Split" else 1
        truth = run(*single(op, inputs, opset, outputs, **attributes), ort.BACKEND)
        for kind, tolerance in ((np.dtype(np.float64), 1e-5), (BF16, 2**-7), (np.dtype(np.float16), 2**-9)):
            given = [v.astype(kind) if v is not None and v.dtype == np.float32 else v for v in inputs]
            result = run(*single(op, given, opset, outputs, **attributes))
            for name, wanted in truth.items():
                y = result[name]
                where = f"{op} {attributes} {kind} opset {opset}"
                assert y.dtype == (kind if wanted.dtype == np.float32 else wanted.dtype), where
                y, exact = y.astype(np.float64), wanted.astype(np.float64)
                np.testing.assert_allclose(y, exact, rtol=tolerance, atol=tolerance * 2, err_msg=where)


@pytest.mark.parametrize("kind", [np.dtype(np.float16), BF16], ids=str)
@pytest.mark.parametrize("op", ["GlobalAveragePool", "ReduceMean"])
def test_long_sums_do_not_stick(op, kind):
    result = run(*single(op, [np.ones((1, 1, 64, 64), kind)], 17))
    assert (result["o0"].ravel() == 1).all()


@pytest.mark.parametrize(
    ("opset", "axis"), [(10, None)] + [(opset, axis) for opset in (13, 19, 21) for axis in (None, 0, 1)]
)
def test_quantised(opset, axis):
    x = np.random.default_rng(0).standard_normal((3, 2, 10)).astype(np.float32) * 20
    x[0, 0, :2] = 1e30, -1e12
    count = 1 if axis is None else x.shape[axis]
    scale, zero = np.float32([0.1, 0.2, 1e-9])[:count], np.int8([3, -2, 0])[:count]
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    attributes = {} if axis is None else {"axis": axis}
    quantised = single("QuantizeLinear", [x, scale, zero], opset, **attributes)
    q = run(*quantised)["o0"]
    np.testing.assert_array_equal(q, run(*quantised, ort.BACKEND)["o0"])
    back = single("DequantizeLinear", [q, scale, zero], opset, **attributes)
    np.testing.assert_array_equal(run(*back)["o0"], run(*back, ort.BACKEND)["o0"])


@pytest.mark.parametrize("kind", [np.float32, np.float64, BF16])
@pytest.mark.parametrize("attributes", [{}, {"pads": [1, 2]}, {"strides": [2]}, {"auto_pad": "VALID"}])
def test_an_extent_that_does_not_hold_the_kernel_is_refused(kind, attributes):
    """As ONNX Runtime does in the types that it runs."""
    w = np.ones((1, 1, 3), kind)
    least = 7 - sum(attributes.get("pads", []))
    for length in range(least + 2):
        proto, feeds = single("Conv", [np.ones((1, 1, length), kind), w], 17, dilations=[3], **attributes)
        for backend in [BACKEND, ort.BACKEND] if kind == np.float32 else [BACKEND]:
            if length < least:
                with pytest.raises(CannotRun):
                    run(proto, feeds, backend)
            else:
                assert run(proto, feeds, backend)["o0"].size


def test_interface():
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["":17]> g (float[N,2,?] x, double[] s, bfloat16 u) => (float[N,2,?] y) '
        "<float[1] w = {1}> { y = Mul(x, w) }"
    )
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [1]))
    x = np.ones((1, 2, 3), np.float32)
    rest = {"s": np.array(1.0), "u": np.array(1, BF16)}
    with BACKEND.session(Runnable(model=proto.SerializeToString()), Options()) as session:
        assert session.inputs[0] == Io(name="x", element="float32", shape=("N", 2, None))
        assert [(i.name, i.element) for i in session.inputs[1:]] == [("s", "float64"), ("u", "bfloat16")]
        assert session.peak_bytes() is None
        assert session.run({"x": x, **rest})["y"].tolist() == x.tolist()
        override = {"x": x, "w": np.array([2], np.float32), **rest}
        assert session.run(override, ["y"])["y"].max() == 2
        for feeds, words in [
            (rest, "input x is missing"),
            ({"x": x, "q": x, **rest}, "no input q"),
            ({"x": x.astype(np.float64), **rest}, "x is float64 instead of float32"),
            ({"x": np.ones((1, 3, 3), np.float32), **rest}, r"x is \[1, 3, 3\] instead of \['N', 2, '\?'\]"),
            ({"x": x[0], **rest}, r"x is \[2, 3\] instead of"),
        ]:
            with pytest.raises(CannotRun, match=words):
                session.run(feeds)
        with pytest.raises(CannotRun, match="no output z"):
            session.run({"x": x, **rest}, ["z"])
    session.close()


def test_cannot_load_and_run_say_why(tmp_path: Path):
    unknown = parser.parse_model('<ir_version: 8, opset_import: ["":17]> g (float x) => (float y) { y = Foo(x) }')
    for runnable, words in [
        (Runnable(model=unknown.SerializeToString()), "Foo"),
        (Runnable(model=b"no model"), "DecodeError"),
        (Runnable(model=tmp_path / "none.onnx"), "No such file"),
    ]:
        with pytest.raises(CannotLoad, match=words) as caught:
            BACKEND.session(runnable, Options())
        assert "\n" not in str(caught.value)
    proto, feeds = single("Reshape", [np.ones(5, np.float32), np.array([2, 2])], 17)
    with pytest.raises(CannotRun, match="cannot reshape array of size 5"):
        run(proto, feeds)


def test_external_data(tmp_path: Path):
    proto = parser.parse_model(HEAD + f"g (float[1,2,10] x) => (float[N,M,K] y) <{WEIGHT}> {{ y = {CONV}(x, w) }}")
    del proto.graph.initializer[:]
    weight = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    proto.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    wanted = run(proto, {"x": X})["y"]
    onnx.save_model(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    saved = (tmp_path / "m.onnx").read_bytes()
    for runnable in (Runnable(model=tmp_path / "m.onnx"), Runnable(model=saved, folder=tmp_path)):
        with BACKEND.session(runnable, Options()) as session:
            np.testing.assert_array_equal(session.run({"x": X})["y"], wanted)
    with pytest.raises(CannotLoad, match="no folder was given"):
        BACKEND.session(Runnable(model=saved), Options())
