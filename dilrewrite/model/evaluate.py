"""Runs a model operator by operator: onnx's reference evaluator, with operators of our own.

Those of onnx that are wrong or too coarse for a proof are replaced by the ones here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op
from onnx.reference.ops.op_loop import Loop as OnnxLoop

from dilrewrite.model.convolve import HALVES, Array, Window, conv, conv_transpose
from dilrewrite.model.pool import pool


class Conv(OpRun):
    """Conv of every rank, with all pads and auto_pads; float16 and bfloat16 rounded once."""

    accumulate: DTypeLike | None = None

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        window = Window.of(w.shape[2:], attributes).padded(attributes.get("auto_pad"), x.shape[2:])
        return (conv(x, w, b, window, self.accumulate),)


class ConvInteger(OpRun):
    """ConvInteger: sums in int32, which wrap around; onnx's has no zero point per channel and one rank."""

    def _run(
        self, x: Array, w: Array, zero: Array | None = None, weight_zero: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        return (_sums(x, w, zero, weight_zero, None, attributes),)


class QLinearConv(OpRun):
    """QLinearConv: sums in int32, scaled in float32 as runtimes do, rounded half to even; onnx's knows 2 axes."""

    def _run(self, *inputs: Any, **attributes: Any) -> tuple[Array]:
        x, scale, zero, w, weight_scale, weight_zero, out_scale, out_zero, *bias = inputs
        sums = _sums(x, w, zero, weight_zero, bias[0] if bias else None, attributes)
        factor = (scale.reshape(()) * weight_scale / out_scale.reshape(())).astype(np.float32)
        limits = np.iinfo(out_zero.dtype)
        whole = np.rint(sums.astype(np.float32) * _channels(factor, sums.ndim, 1)).astype(np.float64)
        return (np.clip(whole + int(out_zero.reshape(())), limits.min, limits.max).astype(out_zero.dtype),)


def _channels(values: Array, rank: int, axis: int) -> Array:
    """Return one value, or one for each channel, so that it stands along `axis` of a tensor."""
    return values.reshape([-1 if at == axis else 1 for at in range(rank)]) if values.size > 1 else values.reshape(())


def _sums(
    x: Array, w: Array, zero: Array | None, weight_zero: Array | None, bias: Array | None, attributes: Mapping[str, Any]
) -> Array:
    """Return sum (x - zero)(w - weight_zero) + bias in int32, modulo 2**32; nothing of the padding counts."""
    whole = x.astype(np.int64) - (0 if zero is None else int(zero.reshape(())))
    taps = w.astype(np.int64) - (0 if weight_zero is None else _channels(weight_zero.astype(np.int64), w.ndim, 0))
    window = Window.of(w.shape[2:], attributes).padded(attributes.get("auto_pad"), x.shape[2:])
    return conv(whole, taps, bias, window).astype(np.int32)


class ConvTranspose(OpRun):
    """ConvTranspose of every rank."""

    accumulate: DTypeLike | None = None

    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        return (conv_transpose(x, w, b, attributes, self.accumulate),)


class Pad(OpRun):
    """Pad whose negative pads crop; onnx's refuses them."""

    def _run(
        self, data: Array, pads: Array, fill: Array | None = None, axes: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        where = range(data.ndim) if axes is None else [int(axis) % data.ndim for axis in axes]
        widths = [(0, 0)] * data.ndim
        for place, axis in enumerate(where):
            widths[axis] = (int(pads[place]), int(pads[place + len(where)]))
        ends = zip(data.shape, widths, strict=True)
        inner = data[tuple(slice(max(0, -begin), max(0, extent + min(0, end))) for extent, (begin, end) in ends)]
        grow, mode = np.maximum(widths, 0), cast("Any", attributes.get("mode") or "constant")
        if mode != "constant":
            return (np.pad(inner, grow, mode=mode),)
        value = fill if fill is not None else attributes.get("value") or 0
        return (np.pad(inner, grow, constant_values=np.asarray(value, data.dtype).reshape(())),)


class BatchNormalization(OpRun):
    """BatchNormalization for inference; onnx's is wrong before opset 14."""

    def _run(
        self, x: Array, scale: Array, bias: Array, mean: Array, variance: Array, **attributes: Any
    ) -> tuple[Array]:
        if attributes.get("training_mode") or attributes.get("spatial") == 0 or len(self.onnx_node.output) > 1:
            raise NotImplementedError("BatchNormalization for training, or with spatial 0")
        work = np.float32 if x.dtype in HALVES else x.dtype
        s, b, m, v = (p.astype(work).reshape(-1, *[1] * (x.ndim - 2)) for p in (scale, bias, mean, variance))
        y = (x.astype(work) - m) / np.sqrt(v + np.asarray(attributes.get("epsilon", 1e-5), work)) * s + b
        return (y.astype(x.dtype),)


class _AlongAxis(OpRun):
    """Softmax and its like: before opset 13 over all axes from `axis` (1 unless given) on; onnx's knows one axis."""

    along: ClassVar[Callable[[Any, int], Any]]

    def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
        if not x.size:
            return (x,)
        values, joins = x.astype(np.float32) if x.dtype in HALVES else x, self.run_params["opsets"][""] < 13
        if axis is None or all(attribute.name != "axis" for attribute in self.onnx_node.attribute):
            axis = 1 if joins else -1
        if joins:
            rows = math.prod(x.shape[: axis % max(1, x.ndim)])
            values, axis = values.reshape(rows, -1), 1
        return (type(self).along(values, axis).reshape(x.shape).astype(x.dtype, copy=False),)


def _softmax(x: Any, axis: int) -> Any:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def _log_softmax(x: Any, axis: int) -> Any:
    below = x - x.max(axis=axis, keepdims=True)
    return below - np.log(np.exp(below).sum(axis=axis, keepdims=True))


def _hardmax(x: Any, axis: int) -> Any:
    y = np.zeros_like(x)
    np.put_along_axis(y, np.expand_dims(x.argmax(axis=axis), axis), 1, axis)
    return y


class Loop(OnnxLoop):
    """Loop; onnx's does not run without a condition, and joins scan outputs instead of stacking them."""

    _run_body: Any

    def _run(  # type: ignore[override]
        self,
        count: Array | None = None,
        condition: Array | None = None,
        *states: Array,
        body: Any,
        context: Mapping[str, Array] | None = None,
        **around: Any,
    ) -> tuple[Array, ...]:
        scans: list[list[Array]] = [[] for _ in range(len(body.output_names) - 1 - len(states))]
        iteration = 0
        while (condition is None or bool(condition)) and (count is None or iteration < int(count)):
            given = np.array(iteration, np.int64), np.array(True) if condition is None else condition, *states
            feeds = {**(context or {}), **dict(zip(body.input_names, given, strict=True))}
            condition, *results = self._run_body(feeds, **around)
            states = tuple(results[: len(states)])
            for scan, value in zip(scans, results[len(states) :], strict=True):
                scan.append(value)
            iteration += 1
        kinds = body.output_types[1 + len(states) :] if body.output_types else [None] * len(scans)
        return (*states, *(_stacked(scan, kind) for scan, kind in zip(scans, kinds, strict=True)))


def _stacked(values: Sequence[Array], kind: onnx.TypeProto | None) -> Array:
    if values:
        return np.stack(values)
    if kind is None or not kind.tensor_type.elem_type:
        return np.empty((0,), np.float32)
    extents = [dim.dim_value for dim in kind.tensor_type.shape.dim]
    return np.empty((0, *extents), onnx.helper.tensor_dtype_to_np_dtype(kind.tensor_type.elem_type))


class _Wrapped(OpRun):
    """An operator of onnx, `inner`, of the model's opset or a later one."""

    oldest = 1

    def __init__(self, node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        super().__init__(node, run_params)
        opset = max(self.oldest, run_params["opsets"][""])
        self.inner: Any = load_op("", node.op_type, opset, evaluator_cls=Evaluator)(node, run_params)

    def run(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        """Run onnx's implementation."""
        return cast("tuple[Any, ...]", self.inner.run(*inputs, **options))

    def _run(self, *_: Any, **__: Any) -> tuple[Any, ...]:
        raise NotImplementedError


class DequantizeLinear(_Wrapped):
    """DequantizeLinear of every opset; onnx has none before 19."""

    oldest = 19


class QuantizeLinear(_Wrapped):
    """QuantizeLinear that saturates whatever comes; onnx's wraps around beyond 32 bits."""

    def run(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        """Run onnx's implementation on what it can hold."""
        x, scale, *zero = inputs
        linked = options.get("linked_attributes") or {}
        attributes = {a.name: linked.get(a.ref_attr_name, a.i) for a in self.onnx_node.attribute}
        axis, block_size = attributes.get("axis", 1), attributes.get("block_size", 0)
        if x.dtype in HALVES:
            x, scale = x.astype(np.float32), scale.astype(np.float32)
        if x.dtype.kind == "f":
            # within 2**24 steps, more than any integer that is made of it
            limit = np.float32(2**24) * np.abs(scale)
            if scale.ndim and block_size:
                limit = np.repeat(limit, block_size, axis).take(range(x.shape[axis]), axis)
            elif scale.size > 1:
                limit = limit.reshape([-1 if at == axis % x.ndim else 1 for at in range(x.ndim)])
            x = np.clip(x, -limit, limit)
        return super().run(x, scale, *zero, **options)


class MaxPool(_Wrapped):
    """MaxPool of every rank and dilation; with Indices it is onnx's."""

    accumulate: DTypeLike | None = None

    def run(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        """Run onnx's implementation where it makes indices."""
        if len(self.onnx_node.output) > 1:
            return super().run(*inputs, **options)
        return cast("tuple[Any, ...]", OpRun.run(self, *inputs, **options))  # type: ignore[no-untyped-call]

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        return (pool("MaxPool", x, attributes),)


class AveragePool(OpRun):
    """AveragePool of every rank and dilation."""

    accumulate: DTypeLike | None = None

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        return (pool("AveragePool", x, attributes, self.accumulate),)


class LpPool(OpRun):
    """LpPool of every rank and dilation."""

    accumulate: DTypeLike | None = None

    def _run(self, x: Array, **attributes: Any) -> tuple[Array]:
        return (pool("LpPool", x, attributes, self.accumulate),)


class _InFloat32(_Wrapped):
    """An operator of onnx that sums: float16 and bfloat16 in float32, rounded once. NumPy's mean of 4096 ones is 1/16.

    One subclass per operator, made below: the evaluator finds an operator by its class' name.
    """

    def run(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        """Run onnx's implementation on float32 inputs when the first one is float16 or bfloat16."""
        half = inputs[0].dtype if isinstance(inputs[0], np.ndarray) and inputs[0].dtype in HALVES else None
        if half is None:
            return super().run(*inputs, **options)
        wide = (v.astype(np.float32) if isinstance(v, np.ndarray) and v.dtype in HALVES else v for v in inputs)
        results = super().run(*wide, **options)
        # the mean and deviation that LayerNormalization also gives stay as they are
        rounded = 1 if self.onnx_node.op_type == "LayerNormalization" else len(results)
        return tuple(
            v.astype(half) if place < rounded and isinstance(v, np.ndarray) and v.dtype == np.float32 else v
            for place, v in enumerate(results)
        )


# fmt: off
_SUMMING = (
    "CumSum", "Einsum", "Gemm", "GlobalAveragePool", "GlobalLpPool",
    "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization", "LpNormalization", "MatMul",
    "MeanVarianceNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Resize", "Upsample",
)
# fmt: on

_ALONG = {"Softmax": _softmax, "LogSoftmax": _log_softmax, "Hardmax": _hardmax}

_CONVS = (Conv, ConvInteger, QLinearConv, ConvTranspose)
_POOLS = (MaxPool, AveragePool, LpPool)
_OWN = (*_CONVS, *_POOLS, Pad, BatchNormalization, Loop, QuantizeLinear, DequantizeLinear)
_CONTRIB = {"op_domain": "com.microsoft", "oldest": 21}
OPERATORS: tuple[type[OpRun], ...] = (
    *_OWN,
    *(type(each.__name__, (each,), dict(_CONTRIB)) for each in (QuantizeLinear, DequantizeLinear)),
    *(type(name, (_InFloat32,), {}) for name in _SUMMING),
    *(type(name, (_AlongAxis,), {"along": staticmethod(along)}) for name, along in _ALONG.items()),
)
"""The operators that stand in for onnx's."""


class Evaluator(ReferenceEvaluator):
    """onnx's evaluator with our operators, in every subgraph and function too; onnx gives functions none."""

    def __init__(self, proto: Any, *positional: Any, **named: Any) -> None:
        named["new_ops"] = list(named.get("new_ops") or OPERATORS)
        super().__init__(proto, *positional, **named)
