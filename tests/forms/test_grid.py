"""Every row of the grid table commutes with the phases: per operator, opset that changed it, and number of axes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dilrewrite.forms import grid
from dilrewrite.forms.cells import Axes, Phased, Space, entered
from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.geometry import ConvGeometry

Array = NDArray[Any]
FIRST, LAST = 7, 23
N, C, H = 2, 4, (5, 4, 3)
LAID = tuple(entered(size, block, front) for size, block, front in zip(H, (2, 3, 2), (1, 0, 1), strict=True))
WIDE, IMAGE = "a tensor with the spatial axes", "a tensor with one value for each image and channel"
Input = str | Array | Callable[[int], Array]


@dataclass(frozen=True)
class Spec:
    """A node: `WIDE` and `IMAGE` (data), arrays (constants), "" (left out) for its inputs; its attributes; opsets."""

    inputs: Sequence[Input] = (WIDE,)
    attributes: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] = field(default_factory=dict)
    opsets: tuple[int, int] = (FIRST, LAST)
    outputs: int = 1
    dtype: Any = np.float32
    clean: bool | None = None


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*shape: int) -> Array:
    return (np.arange(np.prod(shape)) % 5 - 2.0).astype(np.float32).reshape(shape)


def per_channel(rank: int) -> Array:
    return floats(C, *(1,) * rank)


def pads(rank: int, channel: tuple[int, int] = (0, 0)) -> list[int]:
    return [0, channel[0], 3, 1, 0][: rank + 2] + [0, channel[1], 2, 4, 1][: rank + 2]


def kernel(rank: int) -> Array:
    return floats(3, C // 2, *(2, 3, 1)[:rank])


CHANNELS = [floats(C) + 3, floats(C)]
SCALES = [np.float32(0.25), np.array(3, np.uint8)]
PER_CHANNEL = [abs(floats(C)) + 0.5, np.full(C, 3, np.uint8)]
ADDED = [
    Spec((WIDE, WIDE), clean=True),
    Spec((WIDE, per_channel), clean=False),
    Spec((per_channel, WIDE)),
    Spec((WIDE, IMAGE), clean=False),
    Spec((floats(1), WIDE)),
    Spec((WIDE, floats())),
]
COMPARED = [Spec((WIDE, WIDE), opsets=(9, LAST), clean=False), Spec((WIDE, per_channel), opsets=(9, LAST))]
LOGIC = [Spec((WIDE, WIDE), dtype=np.bool_, clean=False)]
MANY = [
    Spec((WIDE, WIDE, WIDE), opsets=(8, LAST), clean=True),
    Spec((WIDE, WIDE, per_channel), opsets=(8, LAST), clean=False),
    Spec((WIDE, IMAGE), opsets=(8, LAST), clean=False),
]


def over_channels(by_input: int) -> list[Spec]:
    """Return reductions whose axes are an attribute before an opset and an input from it on."""
    return [
        Spec(attributes={"axes": [1]}, opsets=(FIRST, by_input - 1), clean=False),
        Spec(attributes=lambda rank: {"axes": [-1 - rank]}, opsets=(11, by_input - 1)),
        Spec((WIDE, ints(1)), {"keepdims": 1}, (by_input, LAST), clean=False),
    ]


ALONG = [
    Spec(attributes={"axis": 1}, opsets=(13, LAST), clean=False),
    Spec(attributes=lambda rank: {"axis": -1 - rank}, opsets=(13, LAST)),
]

SPECS: dict[str, list[Spec]] = {
    **dict.fromkeys(["Add", "Sub"], ADDED),
    "Mul": ADDED,
    **{key: [Spec((WIDE, WIDE), clean=False), Spec((IMAGE, WIDE))] for key in ("Div", "Pow")},
    **dict.fromkeys(["Max", "Min", "Sum", "Mean"], MANY),
    **dict.fromkeys(["And", "Or", "Xor"], LOGIC),
    **dict.fromkeys(["Equal", "Greater", "Less"], COMPARED),
    **{key: [Spec((WIDE, WIDE), opsets=(12, LAST))] for key in ("GreaterOrEqual", "LessOrEqual")},
    "Where": [Spec((lambda rank: per_channel(rank) > 0, WIDE, WIDE), opsets=(9, LAST), clean=False)],
    "PRelu": [Spec((WIDE, per_channel), clean=True), Spec((WIDE, floats(1)))],
    "Not": [Spec(dtype=np.bool_, clean=False)],
    "BitwiseNot": [Spec(dtype=np.uint8, opsets=(18, LAST), clean=False)],
    "Cast": [Spec(attributes={"to": TensorProto.INT32}, opsets=(9, LAST), clean=True)],
    "Clip": [
        Spec(attributes={"min": 0.7, "max": 0.9}, opsets=(FIRST, 10), clean=False),
        Spec((WIDE, np.float32(0.7), np.float32(0.9)), {}, (12, LAST), clean=False),
    ],
    **{key: [Spec(clean=False)] for key in ("Sigmoid", "Exp", "HardSigmoid", "Softplus", "Cos", "Celu", "Shrink")},
    "BatchNormalization": [Spec((WIDE, *CHANNELS, floats(C), abs(floats(C))), opsets=(9, LAST), clean=False)],
    "Concat": [
        Spec((WIDE, WIDE), {"axis": 1}, clean=True),
        Spec((WIDE, WIDE), lambda rank: {"axis": -1 - rank}, (11, LAST)),
    ],
    "Split": [
        Spec(attributes={"axis": 1, "split": [1, 3]}, opsets=(FIRST, 12), outputs=2, clean=True),
        Spec((WIDE, ints(1, 3)), lambda rank: {"axis": -1 - rank}, (13, LAST), 2, clean=True),
        Spec((WIDE,), {"axis": 1, "num_outputs": 2}, (18, LAST), 2, clean=True),
    ],
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), ALONG),
    "LpNormalization": [Spec(attributes={"axis": 1, "p": 2}, clean=False)],
    **{op: over_channels(13 if op == "ReduceSum" else 18) for op in grid.ROWS if op.startswith("Reduce")},
    "Pad": [
        Spec(attributes=lambda rank: {"pads": pads(rank)}, opsets=(FIRST, 10), clean=True),
        Spec((WIDE, lambda rank: ints(*pads(rank, (1, 2)))), {}, (11, LAST), clean=True),
        Spec((WIDE, lambda rank: ints(*pads(rank, (1, 2))), ""), {"mode": "constant"}, (18, LAST)),
    ],
    "Slice": [
        Spec(attributes={"starts": [1], "ends": [4], "axes": [2]}, opsets=(FIRST, 9), clean=False),
        Spec((WIDE, ints(2), ints(-1), ints(2)), {}, (10, LAST), clean=False),
        Spec((WIDE, ints(2), ints(2**40), ints(2), ints(1)), {}, (10, LAST)),
        Spec((WIDE, ints(3, -4), ints(0, 9), ints(1, 2), ints(-1, 1)), {}, (10, LAST)),
        Spec((WIDE, ints(1), ints(3), ints(1)), {}, (10, LAST), clean=True),
        Spec((WIDE, ints(0, 1), ints(2, 3)), {}, (10, LAST)),
    ],
    "QuantizeLinear": [
        Spec((WIDE, *SCALES), {}, (10, LAST), clean=True),
        Spec((WIDE, *PER_CHANNEL), {"axis": 1}, (13, LAST), clean=True),
    ],
    "DequantizeLinear": [
        Spec((WIDE, *SCALES), {}, (10, LAST), dtype=np.uint8, clean=True),
        Spec((WIDE, *PER_CHANNEL), {"axis": 1}, (13, LAST), dtype=np.uint8, clean=True),
    ],
}
REFUSED = {("Slice", 3): "a channel and space at once", ("Slice", 5): "the batch"}
FOLDED = {"GlobalAveragePool", "GlobalMaxPool"}
ZERO_POINT = 3


def opsets(op: str) -> list[int]:
    """Return the first opset of every version of an operator."""
    versions = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and s.domain == ""}
    return sorted({max(version, FIRST) for version in versions if version <= LAST})


def cases() -> Iterator[Any]:
    for op in grid.ROWS:
        for number, spec in enumerate(SPECS.get(op, [Spec()])):
            for opset in [each for each in opsets(op) if spec.opsets[0] <= each <= spec.opsets[1]] or [spec.opsets[0]]:
                for rank in (1, 2, 3):
                    if op not in FOLDED:
                        yield pytest.param(op, number, spec, opset, rank, id=f"{op}-{number}-opset{opset}-{rank}")


def data(shape: Sequence[int], dtype: Any, rng: np.random.Generator) -> Array:
    kind = np.dtype(dtype).kind
    values = rng.uniform(0.5, 1.0, shape) if kind == "f" else rng.integers(0, 2 if kind == "b" else 9, shape)
    return np.asarray(values).astype(dtype)


def run(op: str, inputs: Sequence[Array | str], attributes: Mapping[str, Any], opset: int, outputs: int) -> list[Array]:
    """Return the outputs of one node on ONNX Runtime; arrays with a batch are fed, others are constants."""
    names = ["" if isinstance(each, str) else f"i{place}" for place, each in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{place}" for place in range(outputs)], **attributes)
    arrays = {name: each for name, each in zip(names, inputs, strict=True) if not isinstance(each, str)}
    given = {name: each for name, each in arrays.items() if each.ndim > 2 and each.shape[0] % N == 0}
    graph = helper.make_graph(
        [node],
        op,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(each.dtype), each.shape)
            for name, each in given.items()
        ],
        [onnx.ValueInfoProto(name=name) for name in node.output],
        [numpy_helper.from_array(each, name) for name, each in arrays.items() if name not in given],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [np.asarray(each) for each in session.run(None, given)]


# -- phases in NumPy, from the definition ------------------------------------------------------------------------------


def samples(axes: Axes) -> list[int]:
    return [axis.samples or 0 for axis in axes]


def split(x: Array, axes: Axes, around: Array) -> Array:
    """[N, C, *H] -> [N * P, C, *M]: phase r of an axis holds the cells r, r + block, ...; `around`: the other cells."""
    cells = around.copy()
    cells[(..., *(slice(axis.front, axis.front + axis.extent) for axis in axes))] = x
    phases = [
        cells[(..., *(slice(r, None, axis.block) for r, axis in zip(place, axes, strict=True)))]
        for place in np.ndindex(*(axis.block for axis in axes))
    ]
    return np.stack(phases, 1).reshape(-1, *phases[0].shape[1:])


def cells_of(y: Array, axes: Axes) -> Array:
    """[N * P, C, *M] -> [N, C, *(M * block)]."""
    blocks = [axis.block for axis in axes]
    phases = y.reshape(-1, int(np.prod(blocks)), *y.shape[1:])
    cells = np.empty((len(phases), y.shape[1], *(m * b for m, b in zip(y.shape[2:], blocks, strict=True))), y.dtype)
    for number, place in enumerate(np.ndindex(*blocks)):
        cells[(..., *(slice(r, None, b) for r, b in zip(place, blocks, strict=True)))] = phases[:, number]
    return cells


def inner(cells: Array, axes: Axes) -> Array:
    return cells[(..., *(slice(axis.front, axis.front + axis.extent) for axis in axes))]


def around(cells: Array, axes: Axes) -> Array:
    """Return the cells around the data."""
    edge = np.ones(cells.shape, bool)
    edge[(..., *(slice(axis.front, axis.front + axis.extent) for axis in axes))] = False
    return cells[edge]


@dataclass(frozen=True)
class Call:
    """A node with what it reads."""

    op: str
    inputs: Sequence[Array | str]
    attributes: Mapping[str, Any]
    opset: int
    outputs: int = 1

    def __call__(self) -> list[Array]:
        return run(self.op, self.inputs, self.attributes, self.opset, self.outputs)


def on_phases(call: Call, phased: Phased, fill: Callable[..., Array]) -> list[Array]:
    """Return what the operator makes of phases; `fill` makes what is around the data."""
    given: list[Array | str] = []
    for place, each in enumerate(call.inputs):
        axes = phased.inputs[place]
        if isinstance(each, str) or (axes is None and place not in phased.repeated):
            given.append(each)
        elif axes is None:
            given.append(np.repeat(each, int(np.prod([axis.block for axis in phased.axes])), axis=0))
        else:
            shape = (*each.shape[:2], *(m * axis.block for m, axis in zip(samples(axes), axes, strict=True)))
            given.append(split(each, axes, fill(shape, each.dtype)))
    first = given[0]
    if phased.grows and not isinstance(first, str):
        whole = call.attributes.get("pads", call.inputs[1] if len(call.inputs) > 1 else ())
        channel = int(whole[1]), int(whole[len(whole) // 2 + 1])
        return [np.pad(first, [(0, 0), channel, *phased.grows])]
    if phased.cuts and not isinstance(first, str):
        parts = [slice(a, m - b) for (a, b), m in zip(phased.cuts, first.shape[2:], strict=True)]
        given[0] = first[(..., *parts)]
        if call.op == "Slice":
            return [given[0]]
    return replace(call, inputs=given, attributes={**call.attributes, **(phased.attributes or {})})()


def known(op: str, spec: Spec, opset: int, rank: int) -> tuple[list[Array | str], dict[str, Any], Link, Space]:
    """Return what a node reads, its attributes, and what the table is asked about it."""
    rng, shapes = np.random.default_rng(rank), {WIDE: (N, C, *H[:rank]), IMAGE: (N, C, *(1,) * rank)}
    attributes = dict(spec.attributes(rank) if callable(spec.attributes) else spec.attributes)
    arrays: list[Array | str] = []
    for each in spec.inputs:
        if isinstance(each, str):
            arrays.append(data(shapes[each], spec.dtype, rng) + np.array(op == "Acosh", spec.dtype) if each else "")
        else:
            arrays.append(np.asarray(each(rank) if callable(each) else each))
    names = tuple("" if isinstance(each, str) else f"i{place}" for place, each in enumerate(arrays))
    fixed = {
        name: each
        for name, each, kind in zip(names, arrays, spec.inputs, strict=True)
        if not isinstance(kind, str) and not isinstance(each, str)
    }
    link = Link(
        op=op,
        inputs=names,
        outputs=tuple(f"o{place}" for place in range(spec.outputs)),
        attributes={key: tuple(value) if isinstance(value, list) else value for key, value in attributes.items()},
    )
    chain = Chain(
        links=(),
        inputs=(),
        outputs=(),
        shapes={name: each.shape for name, each in zip(names, arrays, strict=True) if not isinstance(each, str)},
        constants=frozenset(fixed),
        integers={name: tuple(each.ravel().tolist()) for name, each in fixed.items() if each.dtype == np.int64},
        opset=opset,
    )
    return arrays, attributes, link, Space(chain, tuple(axis.block for axis in LAID[:rank]))


@pytest.mark.parametrize(("op", "number", "spec", "opset", "rank"), list(cases()))
def test_a_row_commutes(op: str, number: int, spec: Spec, opset: int, rank: int) -> None:
    """Whatever is around the data, and with zeros there where it asks for them; if it says so, they stay zeros."""
    arrays, attributes, link, space = known(op, spec, opset, rank)
    axes, rng = LAID[:rank], np.random.default_rng(9)
    wide = {name: axes for name, kind in zip(link.inputs, spec.inputs, strict=True) if kind is WIDE}
    phased = grid.ROWS[op](link, wide, space)
    if (op, number) in REFUSED:
        assert phased is None
        return
    assert phased is not None, f"{op} refuses"
    assert phased.clean == spec.clean or spec.clean is None
    call = Call(op, arrays, attributes, opset, spec.outputs)
    wanted = call()
    zero = ZERO_POINT if op == "DequantizeLinear" else 0

    def zeros(shape: Sequence[int], dtype: Any) -> Array:
        return np.full(shape, zero, dtype)

    def anything(shape: Sequence[int], dtype: Any) -> Array:
        return data(shape, dtype, rng) + np.array(op == "Acosh", dtype)

    for fill in (zeros, zeros if phased.needs else anything):
        got = on_phases(call, phased, fill)
        for before, after in zip(wanted, got, strict=True):
            assert after.shape[2:] == tuple(samples(phased.axes))
            cells = cells_of(after, phased.axes)
            np.testing.assert_allclose(inner(cells, phased.axes), before, rtol=2e-6, atol=1e-7)
            if phased.clean and fill is zeros:
                kept = ZERO_POINT if op == "QuantizeLinear" else 0
                assert np.all(around(cells, phased.axes) == kept)


def test_every_row_has_a_node() -> None:
    assert not SPECS.keys() - grid.ROWS.keys()
    assert {"Sigmoid", "Clip"} <= SPECS.keys()


@pytest.mark.parametrize("op", ["Asin", "Cast", "Elu", "Erf", "HardSwish", "Mish", "Round", "Sign", "Sqrt", "Tanh"])
def test_zero_stays_zero(op: str) -> None:
    """These are among the rows that say so; `test_a_row_commutes` holds all of them to it."""
    _, _, link, space = known(op, Spec(), 22, 2)
    phased = grid.ROWS[op](link, {"i0": LAID[:2]}, space)
    assert phased is not None
    assert phased.clean


# -- Convs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("opset", opsets("Conv"))
@pytest.mark.parametrize("kind", ["same", "causal", "valid", "even", "any", "depthwise", "strided beside", "1x1"])
def test_a_conv_commutes(kind: str, opset: int, rank: int) -> None:
    """All pads, unequal dilations, even kernels; axes that are not split keep stride and dilation."""
    rng, axes = np.random.default_rng(rank), LAID[:rank]
    k, strides = [(3, 2, 3), (2, 2, 2)][kind == "even"][:rank], (1,) * rank
    k = (1,) * rank if kind == "1x1" else k
    if kind == "strided beside":
        axes = (*axes[:-1], entered(axes[-1].extent, 1))
        strides = (*strides[:-1], 2)
    d = tuple(2 if axis.block == 1 else axis.block * (1 + (place == 1)) for place, axis in enumerate(axes))
    reach = [dilation * (size - 1) for dilation, size in zip(d, k, strict=True)]
    begin, end = {
        "causal": (reach, [0] * rank),
        "valid": ([0] * rank, [0] * rank),
        "any": ([1, 5, 2][:rank], [7, 2, 4][:rank]),
    }.get(kind, ([each // 2 for each in reach], [each - each // 2 for each in reach]))
    sizes = tuple(axis.extent + (max(reach) if kind in ("valid", "even") else 0) for axis in axes)
    axes = tuple(entered(size, axis.block, axis.front) for size, axis in zip(sizes, axes, strict=True))
    group = C if kind == "depthwise" else 1
    x, w = data((N, C, *sizes), np.float32, rng), floats(C if group > 1 else 3, C // group, *k)
    geometry = ConvGeometry(
        batch=N, in_channels=C, out_channels=len(w), group=group, extents=sizes, kernel=k, strides=strides,
        dilations=d, pads_begin=tuple(begin), pads_end=tuple(end),
    )  # fmt: skip
    attributes = {"pads": [*begin, *end], "dilations": d, "strides": strides, "group": group}
    link = Link(op="Conv", inputs=("i0", "i1"), outputs=("o0",), attributes={})
    chain = Chain(
        links=(), inputs=(), outputs=(), shapes={"i0": x.shape, "i1": w.shape}, constants=frozenset({"i1"}),
        integers={}, opset=opset,
    )  # fmt: skip
    space = Space(chain, tuple(axis.block for axis in axes))
    phased = grid.conv(link, {"i0": axes}, space, geometry)
    assert phased is not None
    call = Call("Conv", [x, w], attributes, opset)
    (wanted,) = call()

    def fill(shape: Sequence[int], dtype: Any) -> Array:
        return np.zeros(shape, dtype) if phased.needs else data(shape, dtype, rng)

    (got,) = on_phases(call, phased, fill)
    assert got.shape[2:] == tuple(samples(phased.axes))
    np.testing.assert_allclose(inner(cells_of(got, phased.axes), phased.axes), wanted, rtol=2e-6, atol=1e-5)
