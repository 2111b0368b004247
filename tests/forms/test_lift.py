"""Every row of the lift table commutes with a new axis of size 1: per operator, opset that changed it, and place."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.lift import ROWS, As, Entry, Insert, Lifted

Array = NDArray[Any]
X = (2, 4, 6)
FIRST, LAST = 7, 24


@dataclass(frozen=True)
class Spec:
    """A node: shapes (data), arrays (constants), "" (left out) for its inputs; its attributes; opsets it holds for.

    `rights`: where the new axis is, counted from the right; `refused`: the row has to refuse it.
    """

    inputs: Sequence[tuple[int, ...] | Array | str] = (X,)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    opsets: tuple[int, int] = (FIRST, LAST)
    outputs: int = 1
    dtype: Any = np.float32
    rights: tuple[int, ...] = (1,)
    refused: bool = False


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def floats(*shape: int) -> Array:
    return (np.arange(np.prod(shape)) % 5 - 2.0).astype(np.float32).reshape(shape)


CHANNELS = [floats(4) + 3, floats(4)]
ALL = (0, 1, 2, 3)
PER_CHANNEL = floats(4, 1)
BITS = Spec((X, X), dtype=np.uint8, opsets=(18, LAST))
LOGIC = Spec((X, X), dtype=np.bool_, rights=ALL)
PAIRS = [
    Spec((X, X), rights=ALL),
    Spec((X, PER_CHANNEL)),
    Spec((X, (1, 4, 1))),
    Spec((X, (6,))),
    Spec((PER_CHANNEL, X)),
    Spec((X, floats(6)), rights=(0, 1, 2)),
    Spec((X, floats(1, 4, 6)), rights=(0, 1, 2)),
    Spec((X, floats()), rights=ALL),
]
INTEGERS = [Spec((X, X), dtype=np.int32, rights=ALL)]
REDUCED = [
    Spec(attributes={"axes": axes, "keepdims": keep}, opsets=(FIRST, 12), rights=ALL)
    for axes in ([1], [-1], [0, 2])
    for keep in (0, 1)
] + [
    Spec((X, ints(*axes)), {"keepdims": keep}, (18, LAST), rights=ALL)
    for axes in ([1], [-1], [0, 2])
    for keep in (0, 1)
]
POOLED = [
    Spec(attributes={"kernel_shape": [3], "strides": [2], "pads": [1, 0]}),
    Spec(attributes={"kernel_shape": [2]}),
]
ALONG = [Spec(attributes={"axis": axis}, rights=ALL) for axis in (0, 1, 2)] + [
    Spec(attributes={"axis": -1}, opsets=(13, LAST), rights=ALL),
    Spec(rights=ALL),
]
EXTREME = [Spec(attributes={"axis": axis, "keepdims": keep}, rights=ALL) for axis in (0, 2) for keep in (0, 1)]
KERNEL = floats(8, 2, 3)


def factors(*values: float) -> Array:
    return np.array(values, np.float32)


SPECS: dict[str, list[Spec]] = {
    **{key: [Spec(rights=ALL)] for key in ["Acos", "Asin", "Atanh", "Log", "Sqrt", "Reciprocal", "Acosh"]},
    **dict.fromkeys(["Add", "Sub", "Mul", "Div", "Pow"], PAIRS),
    **{
        key: [*(replace(pair, opsets=(8, LAST)) for pair in PAIRS), Spec((X, (4, 1), (6,)), opsets=(8, LAST))]
        for key in ["Max", "Min", "Sum", "Mean"]
    },
    "PRelu": [Spec((X, PER_CHANNEL)), Spec((X, floats(1)), rights=ALL), Spec((X, floats(6)))],
    **{key: [LOGIC] for key in ["And", "Or", "Xor"]},
    **{key: [BITS] for key in ["BitwiseAnd", "BitwiseOr", "BitwiseXor"]},
    "BitwiseNot": [Spec(dtype=np.uint8, opsets=(18, LAST))],
    "BitShift": [Spec((X, X), {"direction": "LEFT"}, (11, LAST), dtype=np.uint8)],
    "Not": [Spec(dtype=np.bool_)],
    "Mod": [Spec((X, X), dtype=np.int32, opsets=(10, LAST))],
    **{
        key: [Spec((X, X), opsets=(9, LAST)), Spec((X, PER_CHANNEL), opsets=(9, LAST))]
        for key in ["Equal", "Greater", "Less"]
    },
    **{key: [Spec((X, X), opsets=(12, LAST))] for key in ["GreaterOrEqual", "LessOrEqual"]},
    "Where": [
        Spec((floats(4, 1) > 0, X, X), opsets=(9, LAST)),
        Spec((floats(1, 4, 6) > 0, X, floats()), opsets=(9, LAST)),
    ],
    "Cast": [Spec(attributes={"to": TensorProto.INT32}, opsets=(9, LAST))],
    "Clip": [
        Spec(attributes={"min": -1.0, "max": 1.0}, opsets=(FIRST, 10)),
        Spec((X, floats(), floats() + 3), {}, (12, LAST)),
    ],
    "Conv": [
        Spec((X, KERNEL), {"group": 2, "pads": [2, 1], "dilations": [2], "strides": [2], "kernel_shape": [3]}),
        Spec((X, floats(5, 4, 2), floats(5)), {}),
        Spec((X, floats(5, 4, 2)), {"auto_pad": "SAME_LOWER"}),
        Spec((X, floats(5, 4, 2)), {"auto_pad": "SAME_UPPER", "strides": [2]}),
    ],
    "ConvTranspose": [
        Spec((X, floats(4, 3, 4), floats(3)), {"strides": [3], "pads": [1, 2], "output_padding": [1]}),
        Spec((X, floats(4, 3, 4)), {"strides": [2], "output_shape": [13]}),
        Spec((X, floats(4, 1, 3)), {"group": 4, "dilations": [2]}),
    ],
    "AveragePool": [
        *POOLED,
        Spec(attributes={"kernel_shape": [3], "pads": [1, 1], "count_include_pad": 1}),
        Spec(attributes={"kernel_shape": [3], "strides": [2], "ceil_mode": 1}, opsets=(10, LAST)),
    ],
    "MaxPool": [*POOLED, Spec(attributes={"kernel_shape": [2], "dilations": [3]}, opsets=(10, LAST))],
    "LpPool": POOLED,
    "BatchNormalization": [Spec((X, *CHANNELS, floats(4), abs(floats(4))), opsets=(9, LAST))],
    "InstanceNormalization": [Spec((X, *CHANNELS))],
    "GroupNormalization": [Spec((X, *CHANNELS), {"num_groups": 2}, (21, LAST))],
    "LayerNormalization": [
        Spec((X, floats(6)), {}, (17, LAST), rights=ALL),
        Spec((X, floats(4, 6), floats(4, 6)), {"axis": 1}, (17, LAST), rights=ALL),
        Spec((X, floats(4, 6), floats(6)), {"axis": -2}, (17, LAST), rights=ALL),
    ],
    "LpNormalization": [Spec(attributes={"axis": axis, "p": 2}, rights=ALL) for axis in (0, 1, -1)],
    "Concat": [Spec((X, X), {"axis": axis}, rights=(0, 1, 2)) for axis in (0, 1, 2)]
    + [Spec((X, floats(2, 3, 6)), {"axis": 1})],
    "Split": [
        Spec(attributes={"axis": axis, "split": split}, opsets=(FIRST, 12), outputs=2, rights=ALL)
        for axis, split in ((1, [1, 3]), (2, [4, 2]))
    ]
    + [
        Spec((X, ints(1, 3)), {"axis": 1}, (13, LAST), 2, rights=ALL),
        Spec((X, ints(4, 2)), {"axis": -1}, (13, LAST), 2, rights=ALL),
    ],
    "CumSum": [Spec((X, np.array(axis, np.int64)), {}, (11, LAST), rights=ALL) for axis in (0, 1, -1)],
    **{key: [Spec()] for key in ("GlobalAveragePool", "GlobalMaxPool")},
    "MatMul": [Spec((X, floats(6, 5)), rights=(2, 3)), Spec((X, floats(6, 5)), refused=True)],
    "Pad": [
        Spec(attributes={"pads": [0, 1, 2, 0, 0, 3]}, opsets=(FIRST, 10), rights=ALL),
        *(Spec((X, ints(0, 1, 2, 1, 0, 3)), {"mode": mode}, (11, LAST), rights=ALL) for mode in ("constant", "edge")),
        Spec((X, ints(0, 0, 2, 0, 0, 3)), {"mode": "reflect"}, (11, LAST)),
        Spec((X, ints(0, 0, -2, 0, 0, 3), floats() + 5), {}, (11, LAST), rights=ALL),
        Spec((X, ints(1, 2), "", ints(-1)), {}, (18, LAST), rights=ALL),
    ],
    "Slice": [
        Spec(attributes={"starts": [1, 1], "ends": [3, 9], "axes": [1, 2]}, opsets=(FIRST, 9), rights=ALL),
        Spec(attributes={"starts": [1, 1], "ends": [2, 3]}, opsets=(FIRST, 9), rights=ALL),
        Spec((X, ints(0, 1), ints(1, 3)), {}, (10, LAST), rights=ALL),
        Spec((X, ints(-1), ints(-9), ints(-1), ints(-2)), {}, (10, LAST), rights=ALL),
        Spec((X, ints(1), ints(3), ints(1)), {}, (10, LAST), rights=ALL),
    ],
    "Squeeze": [
        Spec(((2, 1, 6),), {"axes": [1]}, (FIRST, 12), rights=ALL),
        Spec(((2, 6, 1), ints(-1)), {}, (13, LAST), rights=ALL),
        Spec(((1, 6, 1), ints(0, 2)), {}, (13, LAST), rights=ALL),
    ],
    "Unsqueeze": [
        Spec((X,), {"axes": [1]}, (FIRST, 12), rights=ALL),
        *(Spec((X, ints(*axes)), {}, (13, LAST), rights=ALL) for axes in ([0], [-1], [1, 3], [2, 0])),
    ],
    "Transpose": [Spec(attributes={"perm": perm}, rights=ALL) for perm in ([0, 2, 1], [2, 0, 1], [1, 2, 0])]
    + [Spec(rights=ALL)],
    "QuantizeLinear": [
        Spec((X, floats() + 1.5, np.array(3, np.uint8)), {}, (10, LAST), rights=ALL),
        Spec((X, floats(4) + 3, np.zeros(4, np.int8)), {"axis": 1}, (13, LAST), rights=ALL),
        Spec((X, floats(6) + 3, np.zeros(6, np.int8)), {"axis": -1}, (13, LAST), rights=ALL),
    ],
    "DequantizeLinear": [
        Spec((X, floats() + 1.5, np.array(3, np.uint8)), {}, (10, LAST), dtype=np.uint8, rights=ALL),
        Spec((X, floats(4) + 3), {}, (13, LAST), dtype=np.int8, rights=ALL),
    ],
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), ALONG),
    "CastLike": [Spec((X, np.zeros(1, np.int32)), opsets=(15, LAST), rights=ALL)],
    "Swish": [Spec(attributes={"alpha": 0.5}, opsets=(24, LAST), rights=ALL)],
    "RMSNormalization": [
        Spec((X, floats(6)), {}, (23, LAST), rights=ALL),
        Spec((X, floats(4, 6)), {"axis": 1}, (23, LAST), rights=ALL),
    ],
    "MeanVarianceNormalization": [
        Spec(attributes={"axes": axes}, opsets=(9, LAST), rights=ALL) for axes in ([0, 2], [2], [-1, 1])
    ],
    "GlobalLpPool": [Spec(opsets=(FIRST, 21)), Spec(attributes={"p": 1}, opsets=(FIRST, 21))],
    "Gather": [
        Spec((X, places), {"axis": axis}, rights=ALL)
        for axis in (0, 1, -1)
        for places in (np.array(1, np.int64), ints(1, 0), np.array([[0, 1, 1], [1, 0, 0]], np.int64))
    ],
    "Expand": [
        Spec((shape, ints(*sizes)), {}, (8, LAST), rights=ALL)
        for shape, sizes in (
            ((2, 1, 6), (4, 6)),
            ((2, 4, 1), (6,)),
            ((1, 4, 1), (2, 1, 6)),
            ((4, 1, 6), (2, 4, 3, 6)),
            (X, (3, 1, 1, 1, 1)),
        )
    ],
    "Tile": [Spec((X, ints(*times)), {}, rights=ALL) for times in ((1, 2, 3), (2, 1, 1))],
    "Reshape": [
        *(
            Spec((X, ints(*sizes)), {}, rights=(1,))
            for sizes in ((2, 2, 2, -1), (0, 2, 2, 6), (0, 0, 0), (8, -1), (4, 2, 6))
        ),
        *(Spec((X, ints(*sizes)), {}, rights=(0,)) for sizes in ((2, 24), (0, 2, 2, 6), (0, 0, 3, 2), (48,))),
        *(Spec((X, ints(*sizes)), {}, rights=(2,)) for sizes in ((2, 4, 6), (0, 4, 6), (2, 1, 4, 6))),
        Spec((X, ints(1, 2, 4, 6)), {}, rights=(3,)),
        *(Spec((X, ints(*sizes)), refused=True) for sizes in ((2, 4, 2, 3), (2, -1, 6), (24, 2))),
    ],
    "Resize": [
        *(Spec((X, factors(1, 1, 2)), {"mode": mode}, (10, 10)) for mode in ("nearest", "linear")),
        *(
            Spec(
                (X, np.zeros(0, np.float32), factors(1, 1, 1.5)),
                {"mode": mode, "coordinate_transformation_mode": how},
                (11, LAST),
            )
            for mode in ("nearest", "linear")
            for how in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        ),
        *(Spec((X, "", "", ints(2, 4, 9)), {"mode": mode}, (13, LAST)) for mode in ("nearest", "linear")),
        Spec((X, np.zeros(0, np.float32), np.zeros(0, np.float32), ints(2, 4, 3)), {}, (11, LAST)),
        Spec((X, "", factors(2.5)), {"axes": [2]}, (18, LAST)),
        Spec((X, "", "", ints(8, 9)), {"axes": [1, -1]}, (18, LAST)),
        Spec((X, "", "", ints(4, 8, 9)), {"keep_aspect_ratio_policy": "not_larger"}, (18, LAST)),
    ],
    "Upsample": [Spec((X, factors(1, 1, 2)), {"mode": mode}, (9, 9)) for mode in ("nearest", "linear")],
    **dict.fromkeys(("ArgMax", "ArgMin"), EXTREME),
    **dict.fromkeys([op for op in ROWS if op.startswith("Reduce")], REDUCED),
}


def opsets(op: str) -> list[int]:
    """Return the first opset of every version of an operator."""
    versions = {s.since_version for s in onnx.defs.get_all_schemas_with_history() if s.name == op and s.domain == ""}
    return sorted({max(version, FIRST) for version in versions if version <= LAST})


def cases() -> Iterator[Any]:
    for op in ROWS:
        for number, spec in enumerate(SPECS.get(op, [Spec(rights=ALL)])):
            for opset in [each for each in opsets(op) if spec.opsets[0] <= each <= spec.opsets[1]] or [spec.opsets[0]]:
                for right in spec.rights:
                    yield pytest.param(op, spec, opset, right, id=f"{op}-{number}-opset{opset}-{right}")


def data(shape: tuple[int, ...], dtype: Any, seed: int) -> Array:
    rng = np.random.default_rng(seed)
    values = (
        rng.uniform(0.5, 1.0, shape)
        if np.dtype(dtype).kind == "f"
        else rng.integers(1, 5, shape) % 3 + (dtype != np.bool_)
    )
    return np.asarray(values).astype(dtype)


def run(
    op: str, inputs: Sequence[Array | str], attributes: Mapping[str, Any], opset: int, outputs: int, fed: Sequence[bool]
) -> list[Array]:
    """Return the outputs of one node on ONNX Runtime."""
    names = ["" if isinstance(each, str) else f"i{place}" for place, each in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{place}" for place in range(outputs)], **attributes)
    arrays = {name: each for name, each in zip(names, inputs, strict=True) if not isinstance(each, str)}
    given = {name: arrays[name] for name, feed in zip(names, fed, strict=True) if feed}
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


def plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in attributes.items()}


@pytest.mark.parametrize(("op", "spec", "opset", "right"), list(cases()))
def test_a_row_commutes(op: str, spec: Spec, opset: int, right: int) -> None:
    shift = 2.0 if op == "Acosh" else 0.0
    arrays = [
        data(each, spec.dtype, place) if isinstance(each, tuple) else each for place, each in enumerate(spec.inputs)
    ]
    arrays = [each + np.float32(shift) if shift and not isinstance(each, str) else each for each in arrays]
    fed = [isinstance(each, tuple) for each in spec.inputs]
    names = tuple("" if isinstance(each, str) else f"i{place}" for place, each in enumerate(arrays))
    known = {name: each for name, each in zip(names, arrays, strict=True) if not isinstance(each, str)}
    fixed = {
        name: each
        for name, each, feed in zip(names, arrays, fed, strict=True)
        if not feed and not isinstance(each, str)
    }
    chain = Chain(
        links=(),
        inputs=(),
        outputs=(),
        shapes={name: each.shape for name, each in known.items()},
        constants=frozenset(fixed),
        integers={name: tuple(each.ravel().tolist()) for name, each in fixed.items() if each.dtype == np.int64},
        opset=opset,
    )
    outputs = tuple(f"o{place}" for place in range(spec.outputs))
    lifted = ROWS[op](Link(op=op, inputs=names, outputs=outputs, attributes=plain(spec.attributes)), right, chain)
    assert (lifted is None) == spec.refused
    if lifted is None:
        return
    wanted = run(op, arrays, spec.attributes, opset, spec.outputs, fed)
    got = run(
        op,
        read(lifted, arrays, right),
        {**spec.attributes, **(lifted.attributes or {})},
        opset,
        spec.outputs,
        fed + [False] * (len(lifted.inputs) - len(fed)),
    )
    for before, after in zip(wanted, got, strict=True):
        expected = np.expand_dims(before, before.ndim - lifted.right)
        assert after.shape == expected.shape
        np.testing.assert_allclose(after, expected, rtol=2e-6, atol=1e-7)


def read(lifted: Lifted, arrays: Sequence[Array | str], right: int) -> list[Array | str]:
    """Return what the lifted operator reads."""
    given: list[Array | str] = []
    for place, how in enumerate(lifted.inputs):
        each = arrays[place] if place < len(arrays) else ""
        if isinstance(how, tuple):
            like = each if not isinstance(each, str) else np.zeros(1, np.int64)
            given.append(np.array(how, np.int64).reshape(like.shape if like.ndim == 0 else -1))
        elif isinstance(how, Entry):
            assert not isinstance(each, str)
            given.append(how.apply(each, each))
        elif isinstance(each, str) or how is As.IS:
            given.append(each)
        else:
            given.append(np.expand_dims(each, how.axis if isinstance(how, Insert) else each.ndim - right))
    return given


def test_every_row_has_a_node() -> None:
    assert not SPECS.keys() - ROWS.keys()
