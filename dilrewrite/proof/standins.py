"""What stands for an operator in an exact proof of a region: one of the same kind that is exact on whole numbers.

An elementwise function is as good as any other: that its true operator is elementwise is the table's word
(`forms/lift.py`, `forms/grid.py`), which has its own tests, and the run on reals holds the true operators to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TensorProto, helper

from dilrewrite.forms.fragment import AttributeValue
from dilrewrite.proof.numbers import whole_numbers
from dilrewrite.runtimes import Array

REACH = 6
"""The whole numbers of a proof are of [-6, 6], but for sums on their way."""

_ODD = """Asin Asinh Atan Atanh Celu Elu Erf Gelu HardSwish LeakyRelu Mish Selu Shrink Sin Sinh Softsign Sqrt Swish Tan
Tanh ThresholdedRelu"""
_DIRTY = "Acos Acosh Cos Cosh Exp HardSigmoid Log Reciprocal Sigmoid Softplus"
_MEANS = "L2 LogSum LogSumExp Mean Prod"


@dataclass(frozen=True, slots=True)
class StandIn:
    """An exact operator: its type, how many inputs of the true one it has too, bounds of a Clip, further attributes.

    `more`: inputs behind those, per channel.
    """

    op: str
    inputs: int | None = None
    bounds: tuple[int, int] | None = None
    more: tuple[int, ...] = ()
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


STAND_INS: Mapping[str, StandIn] = {
    **dict.fromkeys(_ODD.split(), StandIn("Clip", 1, (-3, 3))),
    **dict.fromkeys(_DIRTY.split(), StandIn("Clip", 1, (1, REACH))),
    **{f"Reduce{name}": StandIn("ReduceMax") for name in _MEANS.split()},
    **dict.fromkeys(("Div", "Mod"), StandIn("Sub")),
    "Pow": StandIn("Add"),
    "Mean": StandIn("Sum"),
    "PRelu": StandIn("Mul"),
    **dict.fromkeys(("Softmax", "LogSoftmax"), StandIn("Hardmax")),
    "LpNormalization": StandIn("Hardmax", attributes={"axis": -1}),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), StandIn("Sum")),
    "BatchNormalization": StandIn("BatchNormalization", attributes={"epsilon": 0.0}),
    "InstanceNormalization": StandIn("BatchNormalization", 3, None, (0, 1), {"epsilon": 0.0}),
    **dict.fromkeys(("GroupNormalization", "MeanVarianceNormalization"), StandIn("Clip", 1, (-3, 3))),
    **dict.fromkeys(("AveragePool", "LpPool"), StandIn("MaxPool")),
    **dict.fromkeys(("GlobalAveragePool", "GlobalLpPool"), StandIn("GlobalMaxPool")),
    **dict.fromkeys(("Resize", "Upsample"), StandIn("", attributes={"mode": "nearest"})),
}
"""{operator: what stands for it}; where the operator is "" it is the same one. Any other one is exact."""

_SUMMING = """Add BatchNormalization Cast CastLike Conv ConvTranspose CumSum DequantizeLinear MatMul MaxPool Mul
ReduceL1 ReduceSum ReduceSumSquare Sub Sum"""
SUMMING = frozenset(_SUMMING.split())
"""What makes larger numbers of small ones: its outputs are made small again."""

_STEPPING = """ArgMax ArgMin Cast Ceil Equal Floor Greater GreaterOrEqual Hardmax Less LessOrEqual LogSoftmax Mod
QuantizeLinear Round Sign Softmax LpNormalization"""
STEPPING = frozenset(_STEPPING.split())
"""What may make much of a rounding, or has a stand-in that does."""

SETTINGS = {"Clip": (1, 2), "Pad": (2,), "Resize": (1, 2), "Upsample": (1,), "Dropout": (1,)}
"""Which inputs are settings: their values stay, made whole where they are compared with data or put among it."""

_OVER_SPACE = """AveragePool GlobalAveragePool GlobalLpPool GroupNormalization InstanceNormalization
LayerNormalization LpPool MeanVarianceNormalization RMSNormalization"""
OVER_SPACE = frozenset(_OVER_SPACE.split())
"""What sums over the places that phases take apart: a form may split it, so nothing stands for it there."""


@dataclass
class Twin:
    """Nodes of a region as they stand in an exact proof, and the constants that they read, by node and input.

    `as_they_are`: the nodes whose operators stay. `floats` says whether a node computes on floating-point numbers.
    Whole numbers are dense where sums are taken modulo, and few where they are clipped.
    """

    opset: int
    rng: np.random.Generator
    as_they_are: frozenset[int]
    dense: bool
    nodes: list[NodeProto] = field(default_factory=list)
    constants: dict[tuple[int, int], Array] = field(default_factory=dict)

    def add(self, node: NodeProto, constants: Mapping[int, Array], *, floats: bool) -> None:
        """Append what stands for a node, with constants of its own."""
        number = len(self.nodes)
        given = STAND_INS.get(node.op_type) if floats and number not in self.as_they_are else None
        inputs = list(node.input)
        values = {place: self._values(node.op_type, place, each) for place, each in constants.items()}
        attributes = [_single(attribute) for attribute in node.attribute]
        if given is not None and given.more and 1 not in values:  # a scale that is computed
            given = STAND_INS["GroupNormalization"]
        if given is not None:
            count = len(inputs) if given.inputs is None else given.inputs
            inputs = inputs[:count]
            values = {place: each.astype(np.float32) if given.op == "Add" else each
                      for place, each in values.items() if place < count}  # fmt: skip
            for more in given.more:
                values[len(inputs)] = np.full(np.shape(values[1]), more, np.float32)
                inputs.append("constant")
            own = {attribute.name for attribute in attributes}
            new = {key: value for key, value in given.attributes.items() if key != "axis" or key not in own}
            if given.bounds is not None:
                new |= self._bounded(inputs, values, given.bounds)
            attributes = [attribute for attribute in attributes if attribute.name not in new]
            attributes += [helper.make_attribute(key, value) for key, value in new.items()]
            node = NodeProto(op_type=given.op or node.op_type, output=node.output)
        else:
            node = NodeProto(op_type=node.op_type, output=node.output)
        known = attributes_of(node.op_type, self.opset)
        node.input.extend(inputs)
        node.attribute.extend(attribute for attribute in attributes if attribute.name in known)
        self.nodes.append(node)
        self.constants |= {(number, place): each for place, each in values.items()}

    def _bounded(
        self, inputs: list[str], values: dict[int, Array], bounds: tuple[int, int]
    ) -> dict[str, AttributeValue]:
        if self.opset < 11:
            return {"min": float(bounds[0]), "max": float(bounds[1])}
        for place, bound in enumerate(bounds, start=1):
            values[place] = np.array(bound, np.float32)
            inputs.append("constant")
        return {}

    def _values(self, op: str, place: int, true: Array) -> Array:
        """Return whole numbers in place of a constant; what is no float is a setting and stays."""
        if not is_float(true):
            return true
        if op in ("Resize", "Upsample", "Dropout"):
            return true.astype(np.float32) if place in SETTINGS[op] else self._random(true.shape)
        if place in SETTINGS.get(op, ()) or true.size == 1:
            return whole(true)
        if op in ("Conv", "ConvTranspose", "MatMul") and place == 1:
            return self._weights(op, true.shape)
        if op == "BatchNormalization" and place == 4:
            return np.ones(true.shape, np.float32)
        if op in ("QuantizeLinear", "DequantizeLinear"):
            return np.abs(self._random(true.shape))
        return self._random(true.shape)

    def _weights(self, op: str, shape: tuple[int, ...]) -> Array:
        values = self._random(shape, 2)
        if self.dense:
            return values
        rows = values.reshape(shape[0], -1) if op == "Conv" else values
        return np.asarray(rows * (self.rng.random(rows.shape) < 2 / max(rows[0].size, 2))).reshape(shape)

    def _random(self, shape: tuple[int, ...], high: int = 3) -> Array:
        values = whole_numbers(self.rng, shape, 1, high) * self.rng.choice((-1, 1), shape)
        return np.asarray(values, np.float32)


def is_float(values: Array) -> bool:
    """Say whether an array holds floating-point numbers of any width."""
    return values.dtype.kind == "f" or values.dtype.name == "bfloat16"


def whole(values: Array) -> Array:
    """Return small whole numbers of the same signs; 0 stays 0."""
    wide = np.nan_to_num(values.astype(np.float64), posinf=REACH, neginf=-REACH)
    return np.asarray(np.sign(wide) * np.clip(np.round(np.abs(wide)), 1, REACH), np.float32)


def attributes_of(op: str, opset: int) -> frozenset[str]:
    """Return the names of the attributes that an operator has in an opset."""
    return frozenset(onnx.defs.get_schema(op, opset, "").attributes)


def _single(attribute: AttributeProto) -> AttributeProto:
    """Return an attribute as the twin in float32 has it."""
    copy = AttributeProto()
    copy.CopyFrom(attribute)
    if copy.name in ("to", "output_dtype") and copy.i in WIDTHS:
        copy.i = TensorProto.FLOAT
    if copy.name in ("min", "max", "value"):
        copy.f = float(whole(np.array(copy.f)))
    return copy


WIDTHS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
"""The types that a proof on whole numbers computes in float32."""
