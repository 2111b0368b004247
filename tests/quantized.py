"""QDQ models of the grid's geometries, and the contract of a quantised site: `check_quantized`.

x (uint8 or int8) -> DequantizeLinear -> Conv (int8 weights and int32 bias behind DequantizeLinear) -> (Relu ->)
QuantizeLinear -> y. All scales are powers of two, so every number is exact and the result is known in whole numbers.
"""

from __future__ import annotations

import functools
import random
import re
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from dilrewrite.forms.strategies import Refusal, Strategy, plan, with_max_dilation
from dilrewrite.sites import Found
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests import naive
from tests.cases import Case, cases
from tests.contract import (
    OPERATOR,
    PROMISES,
    RUN_ERRORS,
    ContractError,
    check_structure,
    conv_attributes,
    declared,
    equal,
    may_refuse,
    pruned_kernel,
    require,
    run,
    session,
)

Array = NDArray[Any]

LAYOUT = {"Transpose", "SpaceToDepth", "DepthToSpace", "Slice", "Pad", "Concat"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """A quantised Conv: a geometry of the grid, and how its numbers are stored."""

    case: Case
    signed: bool
    zero: int
    weight_zero: int
    per_channel: bool
    relu: bool
    out_zero: int

    @property
    def name(self) -> str:
        parts = ["int8" if self.signed else "uint8", f"z{self.zero}", "perchannel" if self.per_channel else "pertensor"]
        if self.weight_zero:
            parts.append(f"wz{self.weight_zero}")
        if self.relu:
            parts.append("relu")
        return "-".join([*parts, self.case.name])

    @property
    def storage(self) -> type[np.int8] | type[np.uint8]:
        return np.int8 if self.signed else np.uint8


def numbers(q: Quantized) -> dict[str, Array]:
    """Everything that the model holds: w, b, the exponents of the scales, zero points."""
    rng = np.random.default_rng(zlib.crc32(q.name.encode()))
    outputs = q.case.out_channels
    shape = (outputs,) if q.per_channel else ()
    return {
        "x_scale": np.float32(2.0**-4),
        "x_zero": np.array(q.zero, q.storage),
        "w": rng.integers(-127, 128, q.case.weight_shape).astype(np.int8),
        "w_scale": (2.0 ** -rng.integers(5, 8, shape)).astype(np.float32),
        "w_zero": np.full(shape, q.weight_zero, np.int8),
        "b": rng.integers(-3000, 3000, (outputs,)).astype(np.int32),
        "y_scale": np.float32(2.0**-1),
        "y_zero": np.array(q.out_zero, q.storage),
    }


def build(q: Quantized) -> onnx.ModelProto:
    """The QDQ model of a case."""
    case = q.case
    held = {name: np.asarray(value) for name, value in numbers(q).items()}
    held["b_scale"] = held["x_scale"] * held["w_scale"]
    axis = {"axis": 0} if q.per_channel else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "x_scale", "x_zero"], ["x_real"], name="dequantize_x"),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_real"], name="dequantize_w", **axis),
    ]
    operands = ["x_real", "w_real"]
    if case.bias:
        nodes.append(helper.make_node("DequantizeLinear", ["b", "b_scale"], ["b_real"], name="dequantize_b", **axis))
        operands.append("b_real")
    else:
        del held["b"], held["b_scale"]
    nodes.append(helper.make_node("Conv", operands, ["c"], name="site", **conv_attributes(case)))
    last = "c"
    if q.relu:
        nodes.append(helper.make_node("Relu", [last], ["r"], name="relu"))
        last = "r"
    nodes.append(helper.make_node("QuantizeLinear", [last, "y_scale", "y_zero"], ["y"], name="quantize_y"))
    element = TensorProto.INT8 if q.signed else TensorProto.UINT8
    graph = helper.make_graph(
        nodes,
        "quantized",
        [helper.make_tensor_value_info("x", element, declared(case))],
        [helper.make_tensor_value_info("y", element, declared(case, output=True))],
        [numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=case.ir)


def image(q: Quantized, batch: int, extents: tuple[int, ...]) -> Array:
    """An input over the whole range of its type."""
    limits = np.iinfo(q.storage)
    rng = np.random.default_rng([batch, *extents])
    return rng.integers(limits.min, limits.max + 1, (batch, q.case.in_channels, *extents)).astype(q.storage)


def truth(q: Quantized, x: Array) -> Array:
    """The output in whole numbers: sum (x - zx)(w - zw) + b, scaled by powers of two, rounded half to even."""
    held, case = numbers(q), q.case
    weight_zero = held["w_zero"].astype(np.int64).reshape(-1, *(1,) * (case.rank + 1))
    total = naive.conv(
        x.astype(np.int64) - q.zero,
        held["w"].astype(np.int64) - weight_zero,
        held["b"] if case.bias else None,
        strides=case.strides,
        dilations=case.dilations,
        begin=case.begin,
        end=case.end,
        auto_pad=case.auto_pad,
        group=case.group,
    )
    assert int(np.abs(total).max(initial=0)) < 2**24
    if q.relu:
        total = np.maximum(total, 0)
    scale = (held["x_scale"] * held["w_scale"] / held["y_scale"]).astype(np.float64).reshape(-1, *(1,) * case.rank)
    limits = np.iinfo(q.storage)
    return np.clip(np.rint(total * scale) + q.out_zero, limits.min, limits.max).astype(q.storage)


@functools.cache
def original(q: Quantized) -> tuple[onnx.ModelProto, Found]:
    model = build(q)
    onnx.checker.check_model(model)
    found = find(model)
    assert len(found.sites) == 1, found
    return model, found


def _sizes(case: Case) -> list[tuple[int, tuple[int, ...]]]:
    found = [(case.batch, case.extents)]
    if case.unknown or case.unknown_batch:
        more = tuple(h + 3 if axis in case.unknown else h for axis, h in enumerate(case.extents))
        found.append((2 if case.unknown_batch else case.batch, more))
    return found


def refusal_allowed(name: str, strategy: Any, q: Quantized) -> str | None:
    """Why a strategy may refuse a quantised site: the table, its domain, no Pad of integers before opset 11."""
    if name in PROMISES and not PROMISES[name].quantized:
        return "the quantised domain"
    reason = may_refuse(name, strategy, q.case)
    if reason is None and q.case.opset < 11 and not q.signed:
        return "opset 10 has no Pad for integers"
    return reason


def check_elements(after: onnx.ModelProto, *, integers: bool = True) -> None:
    """Layout operators move the integers, reals in the place of int8 before opset 21, or sizes (int64)."""
    inferred = onnx.shape_inference.infer_shapes(after, strict_mode=True)
    kinds = {
        value.name: value.type.tensor_type.elem_type
        for value in (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    }
    kinds |= {tensor.name: tensor.data_type for tensor in inferred.graph.initializer}
    for node in after.graph.node:
        if node.op_type in LAYOUT:
            kind = TensorProto.DataType.Name(kinds[node.input[0]])
            moved = ("INT8", "UINT8") if integers else ("FLOAT",)
            require(kind in (*moved, "INT64"), f"{node.op_type} {node.name} stands on {kind}")


def check_quantized(name: str, strategy: Strategy, q: Quantized) -> str:
    """Hold a strategy to its promise on a quantised site: "emitted" or "refused", or `ContractError`."""
    strategy = with_max_dilation(strategy, q.case.max_dilation)
    model, found = original(q)
    site = found.sites[0]
    fragment = plan(name, strategy, site.geometry, q.case.opset, storage=site.storage)
    if isinstance(fragment, Refusal):
        told = f"a refusal names the numbers or operator that it hangs on (see Strategy.refusal): {fragment.reason!r}"
        require(re.search(r"\d|quantised", fragment.reason) or OPERATOR.search(fragment.reason), told)
        allowed = refusal_allowed(name, strategy, q)
        require(allowed, f"refuses what the table says it takes: {fragment.reason}")
        if "no Pad" in str(allowed):
            require(
                re.search(rf"opset {q.case.opset} has no Pad for u?int8", fragment.reason),
                f"refuses for another reason than a Pad of integers: {fragment.reason}",
            )
        return "refused"
    left = name in PROMISES and not PROMISES[name].quantized and pruned_kernel(q.case) is not None
    require(not left, "it leaves the quantised domain")
    after = rewrite(model, [(site, fragment)], found.normalisations, numpy_helper.to_array).proto
    check_structure(name, strategy, q.case, model, after)
    check_elements(after, integers=not q.signed or q.case.opset >= 21)
    try:
        live = session(after, optimised=False)
    except RUN_ERRORS as error:
        raise ContractError(f"does not load: {' '.join(str(error).split())[:400]}") from error
    for batch, extents in _sizes(q.case):
        x = image(q, batch, extents)
        y = run(live, x)
        equal(y, truth(q, x), f"batch {batch}, extents {extents}")
        # the runtime loads no Conv with negative pads, and none with SAME_* pads and a dilation
        if q.case.auto_pad in ("NOTSET", "VALID") and min(q.case.begin + q.case.end) >= 0:
            equal(y, run(_native(q), x), f"against the original, batch {batch}, extents {extents}")
    return "emitted"


@functools.lru_cache(maxsize=64)
def _native(q: Quantized) -> Any:
    return session(original(q)[0], optimised=False)


@functools.cache
def quantized_cases() -> tuple[Quantized, ...]:
    """Quantised sites over the grid's geometries: every rank, opset and way of storing."""
    dice = random.Random("quantized")
    found = []
    for opset, count in ((10, 5), (11, 7), (13, 9), (17, 9), (21, 9)):
        usable = [c for c in cases() if c.opset == opset and c.weights == "initializer" and c.ir >= 4]
        dice.shuffle(usable)
        for number in range(count):
            rank = number % 3 + 1
            case = next(c for c in usable if c.rank == rank)
            usable.remove(case)
            signed = number % 2 == 1
            found.append(
                Quantized(
                    case=case,
                    signed=signed,
                    zero=dice.choice([-100, -7, 5, 90]) if signed else dice.randint(3, 200),
                    weight_zero=dice.choice([0, 0, 3, -11]),
                    per_channel=opset >= 13 and number % 4 < 2,
                    relu=number % 3 == 0,
                    out_zero=dice.choice([-100, 0, 20]) if signed else dice.choice([10, 128]),
                )
            )
    return tuple(found)
