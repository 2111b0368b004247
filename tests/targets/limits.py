"""Small models at the limits of profiles and beyond them, and what the vendors' compilers said of each.

`scripts/record_judges.py` asks anew. A case is a rule of a profile with a model that keeps it, or one that breaks it
and as little else as can be; a rule that says where an operator runs has one model.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dilrewrite.judges import Judge
from dilrewrite.runtimes import CannotLoad, RuntimeFailure
from dilrewrite.runtimes import _rknn as kit
from dilrewrite.runtimes import _vela as vela
from dilrewrite.targets import Profile, Rule, profiles
from tests.models_for_tests import build, values
from tests.runtimes.judged import tflite

RECORDED = Path(__file__).parent / "judged"
ACCELERATOR, PLATFORM, TIMEOUT_S = "ethos-u55-128", "rk3588", 120.0
JUDGED: Mapping[str, Judge] = {
    name: profile.toolchain.judge for name, profile in profiles().items() if profile.toolchain.judge is not None
}
"""The profiles that have a judge."""

WITHIN, BEYOND, IS = "within", "beyond", "is"
Make = Callable[[], ModelProto]
SHAPE = (1, 16, 8, 8)


@dataclass(frozen=True, slots=True)
class Case:
    """A rule by its words, on which side of it the model lies, and the model."""

    rule: str
    side: str
    make: Make

    @property
    def name(self) -> str:
        return f"{self.rule} [{self.side}]"


def words(rule: Rule) -> str:
    """What names a rule in its profile."""
    expr = f" {rule.fact.text}" if rule.field == "products" and rule.test != "holds" else ""
    return f"{rule.place}{expr}: {rule.text()}" + (f" ({rule.when.text})" if rule.when else "")


def single(
    op: str,
    others: Sequence[Any] = (),
    *,
    shape: Sequence[Any] = SHAPE,
    element: int = TensorProto.FLOAT,
    into: int | None = None,
    made: int | None = None,
    outputs: int = 1,
    ahead: bool = True,
    domain: str = "",
    **attributes: Any,
) -> ModelProto:
    """Relu -> op -> Relu; `others`: arrays, or the names of tensors ("a" is the first Relu's, "" none).

    `into`: an element type to Cast to in front; `made`: that of the result, which no Relu reads then.
    """
    constants = {f"k{place}": each for place, each in enumerate(others) if not isinstance(each, str)}
    names = [each if isinstance(each, str) else f"k{place}" for place, each in enumerate(others)]
    nodes = [helper.make_node("Relu", ["x"], ["a"])] if ahead else []
    first = "a" if ahead else "x"
    if into is not None:
        nodes.append(helper.make_node("Cast", [first], ["c"], to=into))
        first, names = "c", ["c" if name == "a" else name for name in names]
    results = ["b", *(f"b{place}" for place in range(1, outputs))]
    nodes.append(helper.make_node(op, [first, *names], results, domain=domain, **attributes))
    if made is None:
        nodes.append(helper.make_node("Relu", ["b"], ["y"]))
    else:
        nodes[-1].output[0] = "y"
    return build(
        nodes, {"x": shape}, {"y": None}, constants, element=element, types={} if made is None else {"y": made},
        opset=18, domains=[domain] if domain else [],
    )  # fmt: skip


def conv(
    extents: Sequence[int] = (40, 40),
    *,
    k: int | Sequence[int] = 3,
    d: int = 1,
    s: int = 1,
    p: int = 0,
    group: int = 1,
    channels: int = 8,
    out: int | None = None,
    batch: Any = 1,
    op: str = "Conv",
) -> ModelProto:
    """A Conv of any size, alone."""
    rank = len(extents)
    kernel = [k] * rank if isinstance(k, int) else [*k]
    out = out or channels
    form = (out, channels // group) if op == "Conv" else (channels, out // group)
    node = helper.make_node(
        op, ["x", "w"], ["y"], kernel_shape=kernel, dilations=[d] * rank, strides=[s] * rank, pads=[p] * 2 * rank,
        group=group,
    )  # fmt: skip
    weight = values(*form, *kernel) / 8
    return build([node], {"x": (batch, channels, *extents)}, {"y": None}, {"w": weight}, opset=18)


def ints(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, np.int64)


def loop() -> ModelProto:
    """A Loop that runs a Relu twice."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Relu", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info(name, kind, [])
            for name, kind in (("i", TensorProto.INT64), ("go", TensorProto.BOOL))
        ]
        + [helper.make_tensor_value_info("v", TensorProto.FLOAT, SHAPE)],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, SHAPE),
        ],
    )
    node = helper.make_node("Loop", ["n", "true", "x"], ["y"], body=body)
    return build([node], {"x": SHAPE}, {"y": SHAPE}, {"n": ints(2)[0], "true": np.array(True)}, opset=18)


def scan() -> ModelProto:
    """A Scan along the channels."""
    part = SHAPE[2:]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, part) for name in ("s", "v", "t", "w")]
    nodes = [helper.make_node("Add", ["s", "v"], ["t"]), helper.make_node("Relu", ["t"], ["w"])]
    body = helper.make_graph(nodes, "body", ends[:2], ends[2:])
    node = helper.make_node("Scan", ["z", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    return build([node], {"x": (4, *part)}, {"y": (4, *part)}, {"z": np.zeros(part, np.float32)}, opset=18)


def integers(op: str) -> ModelProto:
    """A Conv or MatMul on integers, quantised as the operator wants it."""
    scale, zero = np.float32(0.5), np.uint8(0)
    square = op.endswith(("MatMul", "MatMulInteger"))
    weight = np.ones((8, 8) if square else (16, 16, 3, 3), np.uint8)
    held = {"s": np.array(scale), "z": np.array(zero), "w": weight}
    names = {"QLinearConv": ["x", "s", "z", "w", "s", "z", "s", "z"], "ConvInteger": ["x", "w"],
             "QLinearMatMul": ["x", "s", "z", "w", "s", "z", "s", "z"], "MatMulInteger": ["x", "w"]}[op]  # fmt: skip
    made = TensorProto.INT32 if op.endswith("Integer") else TensorProto.UINT8
    used = {name: array for name, array in held.items() if name in names}
    types = {"x": TensorProto.UINT8, "y": made}
    return build([helper.make_node(op, names, ["y"])], {"x": SHAPE}, {"y": None}, used, types=types, opset=18)


def quantize() -> ModelProto:
    """A pair of QuantizeLinear and DequantizeLinear."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    held = {"s": np.array(0.5, np.float32), "z": np.array(0, np.int8)}
    return build(nodes, {"x": SHAPE}, {"y": SHAPE}, held, opset=18)


def lstm() -> ModelProto:
    """An LSTM of 8 cells on 16 steps."""
    held = {"w": values(1, 32, 8), "r": values(1, 32, 8)}
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)
    return build([node], {"x": (16, 1, 8)}, {"y": None}, held, opset=18)


FLOAT, INT32, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
ONE = np.ones((1, 16, 1, 1), np.float32)
UNARY = (
    *(
        "Relu",
        "Sigmoid",
        "Tanh",
        "HardSwish",
        "HardSigmoid",
        "Elu",
        "Exp",
        "Log",
        "Softplus",
        "Mish",
        "Erf",
        "Sqrt",
        "Sin",
    ),
    *("Cos", "Abs", "Neg", "Reciprocal", "Identity", "Dropout", "GlobalAveragePool", "GlobalMaxPool", "LeakyRelu"),
)
BINARY = ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean")


def operator(op: str, batch: int = 1) -> ModelProto:
    """A plain use of an operator, with `batch` images."""
    shape = (batch, *SHAPE[1:])
    one = functools.partial(single, shape=shape)
    if op in UNARY:
        return one(op)
    if op in BINARY:
        return one(op, ["x"])
    if op in ("QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger"):
        return integers(op)
    if op in ("QuantizeLinear", "DequantizeLinear"):
        return quantize()
    channels = np.ones(16, np.float32)
    makers: Mapping[str, Callable[[], ModelProto]] = {
        "SpaceToDepth": lambda: one(op, blocksize=2),
        "DepthToSpace": lambda: one(op, blocksize=2),
        "Reshape": lambda: one(op, [ints(batch, 4, 16, 16)]),
        "Transpose": lambda: one(op, perm=[0, 1, 3, 2]),
        "Slice": lambda: one(op, [ints(1), ints(7), ints(2)]),
        "Concat": lambda: one(op, ["x"], axis=1),
        "Split": lambda: one(op, [ints(8, 8)], axis=1, outputs=2),
        "Pad": lambda: one(op, [ints(0, 0, 1, 1, 0, 0, 1, 1)]),
        "Gather": lambda: one(op, [ints(0, 3, 5)], axis=3),
        "ConvTranspose": lambda: conv((8, 8), op=op, batch=batch),
        "DynamicQuantizeLinear": lambda: one(op, outputs=3, made=TensorProto.UINT8),
        "Loop": loop,
        "Scan": scan,
        "LSTM": lstm,
        "LpPool": lambda: one(op, kernel_shape=[2, 2]),
        "MaxPool": lambda: one(op, kernel_shape=[2, 2]),
        "AveragePool": lambda: one(op, kernel_shape=[2, 2]),
        "Einsum": lambda: one(op, [values(8, 8)], equation="abcd,de->abce"),
        "ScatterElements": lambda: one(op, [np.zeros((1, 1, 1, 1), np.int64), np.ones((1, 1, 1, 1), np.float32)]),
        "GatherND": lambda: one(op, [np.array([[0, 1], [0, 2]], np.int64)]),
        "GridSample": lambda: one(op, [values(1, 4, 4, 2)]),
        "CumSum": lambda: one(op, [np.array(3)]),
        "TopK": lambda: one(op, [ints(2)], outputs=2),
        "Not": lambda: one(op, into=BOOL, made=BOOL),
        "Or": lambda: one(op, ["a"], into=BOOL, made=BOOL),
        "Clip": lambda: one(op, [np.array(0.0, np.float32), np.array(6.0, np.float32)]),
        "PRelu": lambda: one(op, [ONE[0] / 4]),
        "Pow": lambda: one(op, [np.array(2.0, np.float32)]),
        "Gelu": lambda: _newer(one(op)),
        "BatchNormalization": lambda: one(op, [channels] * 4),
        "InstanceNormalization": lambda: one(op, [channels] * 2),
        "LayerNormalization": lambda: one(op, [np.ones(8, np.float32)] * 2),
        "MatMul": lambda: one(op, [values(8, 8)]),
        "Gemm": lambda: single(op, [values(16, 8)], shape=(batch, 16)),
        "ReduceMean": lambda: one(op, [ints(2, 3)], keepdims=1),
        "ReduceMax": lambda: one(op, [ints(2, 3)], keepdims=1),
        "ReduceMin": lambda: one(op, [ints(2, 3)], keepdims=1),
        "ReduceSum": lambda: one(op, [ints(2, 3)], keepdims=1),
        "ArgMax": lambda: one(op, axis=1, made=INT64),
        "ArgMin": lambda: one(op, axis=1, made=INT64),
        "Expand": lambda: single(op, [ints(batch, 16, 8, 8)], shape=(batch, 16, 1, 1)),
        "Where": lambda: _where(shape),
        "Cast": lambda: one(op, to=INT32, made=INT32),
        "Flatten": lambda: one(op),
        "Squeeze": lambda: single(op, [ints(2)], shape=(batch, 16, 1, 8)),
        "Unsqueeze": lambda: single(op, [ints(2)], shape=(batch, 16, 8)),
        "Softmax": lambda: one(op, axis=1),
        "Tile": lambda: one(op, [ints(1, 2, 1, 1)]),
        "Resize": lambda: resize("nearest", batch),
    }
    return makers[op]()


def _newer(proto: ModelProto) -> ModelProto:
    proto.opset_import[0].version = 20
    return proto


def _where(shape: Sequence[int]) -> ModelProto:
    inputs = dict.fromkeys(("x", "z", "c"), shape)
    return build([helper.make_node("Where", ["c", "x", "z"], ["y"])], inputs, {"y": None}, types={"c": BOOL}, opset=18)


def resize(mode: str, batch: int = 1) -> ModelProto:
    half = {} if mode == "nearest" else {"coordinate_transformation_mode": "half_pixel"}
    asked = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"} if mode == "nearest" else half
    return single("Resize", ["", np.array([1, 1, 2, 2], np.float32)], shape=(batch, *SHAPE[1:]), mode=mode, **asked)


def typed(element: int) -> ModelProto:
    """An Add of an element type."""
    return build(
        [helper.make_node("Add", ["x", "z"], ["y"])], {"x": SHAPE, "z": SHAPE}, {"y": SHAPE}, element=element, opset=18
    )


def both(rule: str, within: Make, beyond: Make) -> Iterator[Case]:
    """The two sides of a rule."""
    yield Case(rule, WITHIN, within)
    yield Case(rule, BEYOND, beyond)


def rknn(profile: Profile) -> Iterator[Case]:
    """RKNN's rules."""
    yield from both(
        "tensors.max_rank: at most 4", lambda: single("Add", ["x"]), lambda: single("Add", ["x"], shape=(1, 2, 4, 8, 8))
    )
    yield from both("tensors.static: required", conv, lambda: conv(batch="n"))
    listed = "tensors.dtypes: one of int8, float16, float32, int32, int64, bool"
    yield from both(listed, lambda: typed(TensorProto.FLOAT16), lambda: typed(TensorProto.UINT8))
    yield from both("conv.ranks: one of 1, 2", lambda: conv((64,), d=2, p=2), lambda: conv((8, 8, 8)))
    yield from both("conv.kernel: at most 31 (not depthwise)", lambda: conv(k=31), lambda: conv(k=32))
    yield from both("conv.kernel: at most 8 (depthwise)", lambda: conv(k=8, group=8), lambda: conv(k=9, group=8))
    large = (80, 80)
    if profile.name == "rknn-2.3.2":
        dense, depthwise = "conv.dilation: at most 31 (not depthwise)", "conv.dilation: at most 32 (depthwise)"
        yield from both(dense, lambda: conv(large, d=31), lambda: conv(large, d=32))
        yield from both(depthwise, lambda: conv(large, d=32, group=8), lambda: conv(large, d=33, group=8))
        yield from both("conv.pads: at most 15", lambda: conv(d=15, p=15), lambda: conv(d=16, p=16))
    else:
        yield Case("conv.dilation: unlimited", IS, lambda: conv((220, 220), d=100))
        yield Case("conv.pads: unlimited", IS, lambda: conv((80, 80), d=40, p=40))
    yield from both("conv.stride: at most 7", lambda: conv(k=3, s=7), lambda: conv(k=3, s=8))
    yield from both("conv.pads: at least 0", conv, lambda: conv(p=-1))
    yield Case("conv.groups: unlimited", IS, lambda: conv(group=4))
    yield Case("conv.batch: unlimited", IS, lambda: conv((16, 16), d=2, batch=36))
    wide = "conv.extents: a width below 16383 where the kernel is dilated along the height (dh > 1 and kh > 1)"
    yield from both(wide, lambda: conv((8, 16382), d=2, channels=4), lambda: conv((8, 16383), d=2, channels=4))
    yield from both(
        "operators.Reshape.rank_out: at most 4",
        lambda: operator("Reshape"),
        lambda: single("Reshape", [ints(1, 4, 4, 8, 8)]),
    )
    if profile.name == "rknn-2.3.2":
        multiple = "operators.Transpose.products: height times width is a multiple of 16"
        turned = functools.partial(single, "Transpose", perm=[0, 2, 3, 1])
        yield from both(multiple, lambda: turned(shape=(1, 16, 4, 8)), lambda: turned(shape=(1, 16, 3, 5)))
    for bound in ("at most 1", "at least 1"):
        step = 2 if bound == "at most 1" else -1
        first, last = (0, 8) if step > 0 else (7, -9)
        stepped = functools.partial(single, "Slice")
        yield from both(
            f"operators.Slice.steps: {bound}",
            lambda: operator("Slice"),
            functools.partial(stepped, [ints(first), ints(last), ints(2), ints(step)]),
        )
    transposed = functools.partial(conv, (8, 8), op="ConvTranspose")
    yield from both("operators.ConvTranspose.dilation: at most 1 (max(k) > 1)", transposed, lambda: transposed(d=2))
    for op in ("MaxPool", "AveragePool"):
        yield from both(
            f"operators.{op}.dilation: at most 1",
            lambda op=op: operator(op),
            lambda op=op: _opset(single(op, kernel_shape=[2, 2], dilations=[2, 2]), 19),
        )
    yield from both("operators.Resize.mode: one of nearest, linear", lambda: resize("linear"), lambda: resize("cubic"))


def _opset(proto: ModelProto, version: int) -> ModelProto:
    proto.opset_import[0].version = version
    return proto


def bare(op: str, batch: int) -> ModelProto:
    """A plain use of an operator without the Relus around it."""
    proto = operator(op, batch)
    first, *rest = proto.graph.node
    if op != "Relu" and first.op_type == "Relu":
        proto.graph.node.remove(first)
        for node in rest:
            node.input[:] = ["x" if name == "a" else name for name in node.input]
    if len(proto.graph.node) > 1 and (last := proto.graph.node[-1]).op_type == "Relu":
        proto.graph.node.remove(last)
        proto.graph.node[-1].output[0] = "y"
    return proto


def vela_3(profile: Profile) -> Iterator[Case]:
    """The rules of Vela 3.10."""
    yield from both(
        "tensors.max_rank: at most 4", lambda: single("Add", ["x"]), lambda: single("Add", ["x"], shape=(1, 2, 4, 8, 8))
    )
    most = 65535
    for rule, shape in (("extents", (1, 1, 1)), ("channels", (1,))):
        more = (1,) * (3 - len(shape))
        yield from both(
            f"tensors.{rule}: at most {most}",
            lambda shape=shape, more=more: single("Add", ["x"], shape=(*shape, most, *more)),
            lambda shape=shape, more=more: single("Add", ["x"], shape=(*shape, most + 1, *more)),
        )
    tall = functools.partial(conv, (140, 140))
    height, area = "conv.products (kh-1)*dh+1: at most 64", "conv.products ((kh-1)*dh+1)*((kw-1)*dw+1): at most 4096"
    yield from both(height, lambda: tall(k=(2, 1), d=63), lambda: tall(k=(2, 1), d=64))
    yield from both(area, lambda: tall(k=(2, 3), d=44), lambda: tall(k=(2, 3), d=45))
    yield from both("conv.stride: at most 3 (not depthwise)", lambda: conv(s=3), lambda: conv(s=4))
    yield Case("conv.groups: unlimited", IS, lambda: conv(group=4))
    yield from both("conv.batch: at most 1", conv, lambda: conv(batch=2))
    for rule in profile.rules():
        op = rule.place.split(".")[1]
        if rule.field == "batch" and rule.place.startswith("operators."):
            yield from both(words(rule), lambda op=op: bare(op, 1), lambda op=op: bare(op, 2))
    turn = functools.partial(single, "Transpose")
    named = "operators.Transpose.perm: only permutations of two neighbouring axes are named, by the layout of TFLite"
    yield from both(named, lambda: turn(shape=(1, 8, 16), perm=[0, 2, 1]), lambda: turn(perm=[0, 1, 3, 2]))
    batch = "operators.Transpose.moves_batch: only False"
    yield from both(batch, lambda: turn(shape=(1, 8, 16), perm=[0, 2, 1]), lambda: turn(perm=[1, 0, 2, 3]))
    for bound, step, last in (("at most 1", 3, 8), ("at least 1", -1, -9)):
        first = 0 if step > 0 else 7
        yield from both(
            f"operators.Slice.steps: {bound}",
            lambda: operator("Slice"),
            functools.partial(single, "Slice", [ints(first), ints(last), ints(2), ints(step)]),
        )
    only = "operators.Pad.axes: height and width only"
    yield from both(only, lambda: operator("Pad"), lambda: single("Pad", [ints(0, 1, 0, 0, 0, 0, 0, 0)]))
    yield from both("operators.Pad.mode: only constant", lambda: operator("Pad"), lambda: _padded("edge"))
    for op in ("MaxPool", "AveragePool"):
        pool = functools.partial(single, op, kernel_shape=[2, 2])
        strided = f"operators.{op}.stride: at most 3"
        yield from both(strided, lambda pool=pool: pool(strides=[3, 3]), lambda pool=pool: pool(strides=[4, 4]))


def ethos_u(profile: Profile) -> Iterator[Case]:
    """The rules of Vela 5.2, and those that 3.10 has, too."""
    own = [*vela_3(profile)] if profile.name == "ethos-u-vela-3.10" else []
    left = {words(rule) for rule in profile.rules()} - {case.rule for case in own}
    yield from (*own, *(case for case in vela_5() if case.rule in left))


def vela_5() -> Iterator[Case]:
    """The rules of Vela 5.2."""
    yield Case("conv.kernel: unlimited", IS, lambda: conv((64, 64), k=40))
    yield Case("conv.dilation: unlimited", IS, lambda: conv((220, 220), d=100))
    yield Case("conv.pads: unlimited", IS, lambda: conv(d=20, p=20))
    yield from both("conv.ranks: one of 1, 2", lambda: conv((64,), d=2), lambda: conv((8, 8, 8)))
    free = "conv.stride: strides above 3 only without dilation and without pads (not depthwise)"
    yield from both(free, lambda: conv(s=4), lambda: conv(s=4, d=2))
    one_or_depthwise = "conv.groups: CONV_2D with one group, or DEPTHWISE_CONV_2D"
    yield from both(one_or_depthwise, lambda: conv(group=8), lambda: conv(group=4))
    yield Case("conv.batch: unlimited", IS, lambda: conv((16, 16), d=2, batch=36))
    yield from both("conv.stride: at most 3 (depthwise)", lambda: conv(s=3, group=8), lambda: conv(s=4, group=8))
    sums = "conv.products 127*prod(k)*Cin//group: at most 8323072"
    large = functools.partial(conv, (16, 16), k=16, out=8)
    yield from both(sums, lambda: large(channels=256), lambda: large(channels=257))
    deep, turn = (1, 2, 2, 2, 2, 2, 2, 2), functools.partial(single, "Transpose")
    yield from both(
        "operators.Transpose.max_rank: at most 8",
        lambda: turn(shape=deep, perm=[*range(8)][::-1]),
        lambda: turn(shape=(*deep, 2), perm=[*range(9)][::-1]),
    )
    yield from both(
        "operators.Slice.axes: steps only along height and width",
        lambda: single("Slice", [ints(0), ints(8), ints(2), ints(3)]),
        lambda: single("Slice", [ints(0), ints(16), ints(1), ints(3)]),
    )
    modes = "operators.Pad.mode: one of constant, reflect"
    yield from both(modes, lambda: _padded("reflect"), lambda: _padded("edge"))
    for op in ("GlobalAveragePool", "ReduceMean"):
        yield from both(f"operators.{op}.batch: at most 1", lambda op=op: operator(op), lambda op=op: operator(op, 2))
    for op in ("MaxPool", "AveragePool"):
        yield from both(
            f"operators.{op}.dilation: at most 1",
            lambda op=op: operator(op),
            lambda op=op: _opset(single(op, kernel_shape=[2, 2], dilations=[2, 2]), 19),
        )
    transposed = functools.partial(conv, (8, 8), op="ConvTranspose", s=2)
    yield from both("operators.ConvTranspose.dilation: at most 1", transposed, lambda: transposed(d=2))
    yield from both("operators.Resize.mode: one of nearest, linear", lambda: resize("linear"), lambda: resize("cubic"))


def _padded(mode: str) -> ModelProto:
    return single("Pad", [ints(0, 0, 1, 1, 0, 0, 1, 1)], mode=mode)


def cases(profile: Profile) -> list[Case]:
    """Every case of a profile: its limits, then where each operator runs."""
    limits = [*(rknn if profile.family == "rknn" else ethos_u)(profile)]
    plain = (
        {"QuantizeLinear": "Relu", "DequantizeLinear": "Relu"} if profile.family == "ethos-u" else {}
    )  # all have them
    wheres = [
        Case(words(rule), IS, functools.partial(operator, plain.get(op, op)))
        for rule in profile.rules()
        if rule.field == "where"
        for op in [rule.place.split(".")[1]]
    ]
    return limits + wheres


def quantised(proto: ModelProto) -> ModelProto:
    """A float model whose tensors are all int8, with scales that no machine rounds otherwise."""
    real = {each.name for each in proto.graph.input if each.type.tensor_type.elem_type == FLOAT}
    held = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    copy = ModelProto()
    copy.CopyFrom(proto)
    del copy.graph.node[:]
    constants: dict[str, np.ndarray[Any, Any]] = {"s": np.array(0.0625, np.float32), "z": np.array(0, np.int8)}
    nodes: list[NodeProto] = [
        helper.make_node("DequantizeLinear", [name, "s", "z"], [f"{name}_r"]) for name in sorted(real)
    ]
    for node in proto.graph.node:
        names = []
        for name in node.input:
            weight = node.op_type in ("Conv", "ConvTranspose", "Gemm", "PRelu", "MatMul") and name in held
            if weight and f"{name}_r" not in constants:
                array = held.pop(name)
                constants[name] = np.clip(np.round(array * 64), -127, 127).astype(np.int8)
                constants[f"{name}_s"] = np.array(0.015625, np.float32)
                nodes.append(helper.make_node("DequantizeLinear", [name, f"{name}_s", "z"], [f"{name}_r"]))
            names.append(f"{name}_r" if name in real or weight else name)
        results = [f"{name}_f" for name in node.output]
        again = helper.make_node(node.op_type, names, results, domain=node.domain)
        again.attribute.extend(node.attribute)
        nodes.append(again)
        for name in node.output:
            nodes.append(helper.make_node("QuantizeLinear", [f"{name}_f", "s", "z"], [name]))
            nodes.append(helper.make_node("DequantizeLinear", [name, "s", "z"], [f"{name}_r"]))
            real.add(name)
    ends = {each.name for each in proto.graph.output}
    copy.graph.node.extend(node for node in nodes if not (node.op_type == "DequantizeLinear" and node.input[0] in ends))
    for each in (*copy.graph.input, *copy.graph.output):
        if each.type.tensor_type.elem_type == FLOAT:
            each.type.tensor_type.elem_type = TensorProto.INT8
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in {**held, **constants}.items())
    return copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a judge said of a case: `native`, `host` or `refused`, or `not asked` where the file cannot be written.

    `why`: its words, or the operators on the host. `cycles`: by its estimate.
    """

    case: str
    fit: str
    why: str = ""
    cycles: float = 0.0
    command: str = ""
    version: str = ""
    digest: str = ""


def model(profile: Profile, case: Case) -> ModelProto:
    """The model of a case, as the profile wants it: Ethos-U takes int8."""
    return case.make() if profile.family == "rknn" else quantised(case.make())


def written(profile: Profile, case: Case) -> bytes:
    """The file that the judge of a profile is asked about. Raises CannotLoad."""
    proto = model(profile, case)
    return kit.readable(proto) if profile.family == "rknn" else tflite(proto)


def ask(profile: Profile, case: Case) -> Said:
    """What the judge of a profile says of a case."""
    judge = JUDGED[profile.name]
    try:
        file = written(profile, case)
    except CannotLoad as error:
        return Said(case=case.name, fit="not asked", why=str(error))
    rknn_kit = profile.family == "rknn"
    asked = ["vela", "model.tflite", *vela.options(ACCELERATOR, judge.version)]
    command = kit.command(PLATFORM) if rknn_kit else " ".join(asked)
    said = Said(case=case.name, fit="refused", command=command, version=judge.version, digest=kit.digest(file))
    try:
        answer = (
            kit.ask(judge, file, PLATFORM, TIMEOUT_S) if rknn_kit else vela.ask(judge, file, ACCELERATOR, TIMEOUT_S)
        )
    except RuntimeFailure as error:
        return replace(said, why=str(error))
    hosted = ", ".join(sorted(set(answer.hosted)))
    return replace(said, fit="host" if hosted else "native", why=hosted, cycles=float(answer.cycles))


@functools.cache
def recorded(name: str) -> dict[str, Said]:
    """What the judge of a profile said, by case."""
    plain = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
    return {one["case"]: Said(**one) for one in plain}
