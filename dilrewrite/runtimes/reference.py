"""ONNX's reference evaluator, in this process: runs what ONNX Runtime cannot (Conv in float64 and bfloat16), slowly.

Its operators that are wrong or too coarse for a proof are replaced by the ones here. `conv` is the ground truth.
"""

from __future__ import annotations

import contextlib
import graphlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast, final

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx.external_data_helper import load_external_data_for_model, uses_external_data
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import load_op

from dilrewrite.model.elements import dtype, element_name
from dilrewrite.runtimes import Array, Backend, CannotLoad, CannotRun, Io, Options, Runnable, Session

_HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))


def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    pads_begin: Sequence[int],
    pads_end: Sequence[int],
    group: int = 1,
    accumulate: DTypeLike | None = None,
) -> Array:
    """Return the convolution of x [N, C, *extents] with w [O, C // group, *kernel] and bias b [O], tap by tap.

    Computed in `accumulate` and returned in it. Without it: in x's own precision; float16 and bfloat16 are summed in
    float32 and rounded once; integers are exact and come back as int64 (OverflowError beyond it). A negative pad
    crops. An extent that does not hold the dilated kernel gives an empty output. The zeros of the padding are not
    multiplied, so an Inf in w meets no NaN there.
    """
    extents, kernel = x.shape[2:], w.shape[2:]
    rank = len(extents)
    if len(kernel) != rank or not all(len(v) == rank for v in (strides, dilations, pads_begin, pads_end)):
        raise ValueError(f"x {x.shape}, w {w.shape} and the attributes have different ranks")
    if w.shape[1] * group != x.shape[1] or w.shape[0] % group:
        raise ValueError(f"x {x.shape} and w {w.shape} do not fit group {group}")
    if accumulate is not None:
        work = result = np.dtype(accumulate)
    elif x.dtype in _HALVES:
        work, result = np.dtype(np.float32), x.dtype
    else:
        work = result = np.dtype(np.int64) if _integer(x) else x.dtype
    if work.kind in "iu":
        # Whole numbers in float64, where BLAS is, as long as no sum can leave the integers that it holds.
        terms = int(np.prod(w.shape[1:], dtype=np.int64))
        bound = terms * _magnitude(x) * _magnitude(w) + (0 if b is None else _magnitude(b))
        if bound >= 2**63:
            raise OverflowError(f"a sum of {terms} products may reach {bound}, beyond 64 bits")
        work = np.dtype(np.float64 if bound <= 2**53 else np.int64)
    elif work in _HALVES:
        work = np.dtype(np.float32)

    axes = list(zip(extents, kernel, strides, dilations, pads_begin, pads_end, strict=True))
    out = tuple(max(0, (h + p0 + p1 - d * (k - 1) - 1) // s + 1) for h, k, s, d, p0, p1 in axes)
    images, outs, ins = x.shape[0], w.shape[0] // group, w.shape[1]
    y = np.zeros((images, group, outs, *out), work)
    if y.size:
        xg = x.reshape(images, group, ins, *extents).astype(work, copy=False)
        taps = w.reshape(group, outs, ins, -1)
        taps = np.ascontiguousarray(np.moveaxis(taps, -1, 0)).astype(work, copy=False)
        for t, tap in zip(itertools.product(*map(range, kernel)), taps, strict=True):
            read: list[Any] = [...]
            write: list[Any] = [...]
            for ho, ti, (h, _, s, d, p0, _) in zip(out, t, axes, strict=True):
                low = max(0, -((ti * d - p0) // s))
                high = min(ho, (h - 1 + p0 - ti * d) // s + 1)
                start = low * s + ti * d - p0
                read.append(slice(start, start + (high - low - 1) * s + 1, s) if low < high else slice(0, 0))
                write.append(slice(low, max(low, high)))
            part = xg[tuple(read)]
            if not part.size:
                continue
            target = y[tuple(write)]
            if ins == 1:  # depthwise: nothing to sum, and one small product per channel is slow in BLAS
                for o in range(outs):
                    target[:, :, o] += tap[:, o].reshape(1, group, *[1] * rank) * part[:, :, 0]
            else:
                product = tap @ part.reshape(images, group, ins, -1)
                target += product.reshape(target.shape)
    y = y.reshape(images, group * outs, *out)
    if b is not None:
        y += b.astype(work).reshape(-1, *[1] * rank)
    return y.astype(result, copy=False)


def _integer(values: Array) -> bool:
    # ml_dtypes' int2 and int4 have kind V
    return values.dtype.kind in "iu" or values.dtype.name in ("int2", "uint2", "int4", "uint4")


def _magnitude(values: Array) -> int:
    return max(abs(int(values.max())), abs(int(values.min()))) if values.size else 0


def same_pads(
    auto_pad: str, extents: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Return the begin and end pads of auto_pad SAME_UPPER or SAME_LOWER; a span is a dilated kernel's, d*(k-1)+1."""
    sums = [max(0, (-(-h // s) - 1) * s + span - h) for h, span, s in zip(extents, spans, strides, strict=True)]
    small, large = [total // 2 for total in sums], [total - total // 2 for total in sums]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)


class Conv(OpRun):
    """Conv of every rank, with all pads and auto_pads; float16 and bfloat16 rounded once.

    An extent that does not hold the dilated kernel is an error, as it is for runtimes.
    """

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank = x.ndim - 2
        if kernel_shape is not None and tuple(kernel_shape) != w.shape[2:]:
            raise ValueError(f"kernel_shape {list(kernel_shape)} differs from the weight's {list(w.shape[2:])}")
        strides, dilations = strides or [1] * rank, dilations or [1] * rank
        spans = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            begin, end = same_pads(auto_pad, x.shape[2:], spans, strides)
        else:
            pads = [0] * 2 * rank if pads is None or auto_pad == "VALID" else pads
            begin, end = list(pads[:rank]), list(pads[rank:])
        for axis, extent in enumerate(x.shape[2:]):
            padded = extent + begin[axis] + end[axis]
            if padded < spans[axis]:
                raise ValueError(f"extent {padded} of {list(x.shape)} with its pads does not hold {spans[axis]} values")
        y = conv(
            x, w, b, strides=strides, dilations=dilations, pads_begin=begin, pads_end=end, group=group or 1
        )  # fmt: skip
        return (y,)


class ConvTranspose(OpRun):
    """ConvTranspose tap by tap; onnx's visits every element in Python and takes hours for what takes this seconds."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        auto_pad: str | None = None,
        dilations: Sequence[int] | None = None,
        group: int | None = None,
        kernel_shape: Sequence[int] | None = None,  # noqa: ARG002 - the weights have it
        output_padding: Sequence[int] | None = None,
        output_shape: Sequence[int] | None = None,
        pads: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
    ) -> tuple[Array]:
        rank, groups = x.ndim - 2, group or 1
        extents, kernel, longer = x.shape[2:], w.shape[2:], output_padding or [0] * rank
        steps, spread = strides or [1] * rank, dilations or [1] * rank
        axes = list(zip(extents, kernel, steps, spread, longer, strict=True))
        whole = [s * (h - 1) + d * (k - 1) + 1 + more for h, k, s, d, more in axes]
        begin, end = list((pads or [0] * 2 * rank)[:rank]), list((pads or [0] * 2 * rank)[rank:])
        if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = output_shape[-rank:] if output_shape is not None else [h * s for h, _, s, _, _ in axes]
            sums = [size - asked for size, asked in zip(whole, wanted, strict=True)]
            small, large = [total // 2 for total in sums], [total - total // 2 for total in sums]
            begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        elif auto_pad == "VALID":
            begin = end = [0] * rank
        if min(*begin, *end) < 0:
            raise NotImplementedError("ConvTranspose with negative pads, where runtimes differ")
        work = np.dtype(np.float32) if x.dtype in _HALVES else x.dtype
        outs, ins = w.shape[1], w.shape[0] // groups
        y = np.zeros((x.shape[0], groups, outs, *whole), work)
        xg = x.reshape(x.shape[0], groups, ins, -1).astype(work, copy=False)
        wg = w.reshape(groups, ins, outs, -1).transpose(3, 0, 2, 1).astype(work, copy=False)
        for tap, taps in zip(itertools.product(*map(range, kernel)), wg, strict=True):
            places: list[Any] = [...]
            for t, (h, _, s, d, _) in zip(tap, axes, strict=True):
                places.append(slice(t * d, t * d + s * (h - 1) + 1, s))
            product = taps @ xg
            y[tuple(places)] += product.reshape(*product.shape[:3], *extents)
        cuts: list[Any] = [...]
        cuts += [slice(low, size - high) for low, size, high in zip(begin, whole, end, strict=True)]
        cut: Array = y.reshape(x.shape[0], groups * outs, *whole)[tuple(cuts)]
        if b is not None:
            cut = cut + b.astype(work).reshape(-1, *[1] * rank)
        return (cut.astype(x.dtype, copy=False),)


class Pad(OpRun):
    """Pad whose negative pads crop; onnx's refuses them."""

    op_domain = ""

    def _run(
        self,
        data: Array,
        pads: Sequence[int] | Array,
        constant_value: Array | None = None,
        axes: Array | None = None,
        mode: str | None = None,
        value: float | None = None,
    ) -> tuple[Array]:
        where = range(data.ndim) if axes is None else [int(axis) % data.ndim for axis in axes]
        widths = [(0, 0)] * data.ndim
        for place, axis in enumerate(where):
            widths[axis] = (int(pads[place]), int(pads[place + len(where)]))
        crop = tuple(
            slice(max(0, -begin), max(0, extent + min(0, end)))
            for extent, (begin, end) in zip(data.shape, widths, strict=True)
        )
        grow = [(max(0, begin), max(0, end)) for begin, end in widths]
        how: Any = mode or "constant"
        if how != "constant":
            return (np.pad(data[crop], grow, mode=how),)
        fill: Any = constant_value if constant_value is not None else (value or 0)
        return (np.pad(data[crop], grow, constant_values=np.asarray(fill, data.dtype).reshape(())),)


class BatchNormalization(OpRun):
    """BatchNormalization for inference; onnx's is wrong before opset 14."""

    op_domain = ""

    def _run(
        self,
        x: Array,
        scale: Array,
        bias: Array,
        mean: Array,
        variance: Array,
        epsilon: float = 1e-5,
        training_mode: int | None = 0,
        spatial: int | None = 1,
        **_: object,
    ) -> tuple[Array]:
        if training_mode or spatial == 0 or len(self.onnx_node.output) > 1:
            raise NotImplementedError("BatchNormalization for training, or with spatial 0")
        work = np.float32 if x.dtype in _HALVES else x.dtype
        s, b, m, v = (p.astype(work).reshape(-1, *[1] * (x.ndim - 2)) for p in (scale, bias, mean, variance))
        y = (x.astype(work) - m) / np.sqrt(v + np.asarray(epsilon, work)) * s + b
        return (y.astype(x.dtype),)


class _AlongAxis(OpRun):
    """Softmax and its like: before opset 13 over all axes from `axis` (1 unless given) on; onnx's knows one axis."""

    op_domain = ""

    def _run(self, x: Array, axis: int | None = None) -> tuple[Array]:
        if not x.size:
            return (x,)
        values = x.astype(np.float32) if x.dtype in _HALVES else x
        given = any(attribute.name == "axis" for attribute in self.onnx_node.attribute)
        if self.run_params["opsets"][""] >= 13:
            y = self._along(values, axis if given and axis is not None else -1)
        else:
            first = (axis if given and axis is not None else 1) % max(1, x.ndim)
            rows = int(np.prod(x.shape[:first], dtype=np.int64))
            y = self._along(values.reshape(rows, -1), 1).reshape(x.shape)
        return (y.astype(x.dtype, copy=False),)

    def _along(self, x: Array, axis: int) -> Array:
        raise NotImplementedError


class Softmax(_AlongAxis):
    """exp(x) / sum(exp(x))."""

    def _along(self, x: Any, axis: int) -> Array:
        powers = np.exp(x - x.max(axis=axis, keepdims=True))
        return cast("Array", powers / powers.sum(axis=axis, keepdims=True))


class LogSoftmax(_AlongAxis):
    """The logarithm of Softmax."""

    def _along(self, x: Any, axis: int) -> Array:
        below = x - x.max(axis=axis, keepdims=True)
        return cast("Array", below - np.log(np.exp(below).sum(axis=axis, keepdims=True)))


class Hardmax(_AlongAxis):
    """One at the first largest value, else zero."""

    def _along(self, x: Any, axis: int) -> Array:
        y = np.zeros_like(x)
        np.put_along_axis(y, np.expand_dims(x.argmax(axis=axis), axis), 1, axis)
        return cast("Array", y)


class Loop(OpRun):
    """Loop; onnx's does not run without a condition, and joins scan outputs instead of stacking them."""

    op_domain = ""
    body: Evaluator
    _run_body: Any

    def need_context(self) -> bool:
        """Return True: the body reads outer values."""
        return True

    def _run(
        self,
        count: Array | None = None,
        condition: Array | None = None,
        *carried: Array,
        body: Any = None,
        context: Mapping[str, Array] | None = None,
        attributes: Mapping[str, object] | None = None,
        bindings: object = None,
    ) -> tuple[Array, ...]:
        states: list[Array] = list(carried)
        body = body or self.body
        names = body.input_names
        scans: list[list[Array]] = [[] for _ in range(len(body.output_names) - 1 - len(states))]
        iteration = 0
        while (condition is None or bool(condition)) and (count is None or iteration < int(count)):
            feeds = dict(context or {})
            going = np.array(True) if condition is None else condition
            feeds |= zip(names, [np.array(iteration, np.int64), going, *states], strict=True)
            condition, *results = self._run_body(feeds, attributes=attributes, bindings=bindings)
            states = results[: len(states)]
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


class QuantizeLinear(OpRun):
    """QuantizeLinear that saturates whatever comes; onnx's wraps around beyond 32 bits."""

    op_domain = ""

    def __init__(self, node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        super().__init__(node, run_params)
        self._inner: Any = load_op("", node.op_type, run_params["opsets"][""])(node, run_params)

    def _run(
        self, x: Array, scale: Array, zero: Array | None = None, axis: int = 1, block_size: int = 0, **others: Any
    ) -> tuple[Any, ...]:
        if x.dtype in _HALVES:
            x, scale = x.astype(np.float32), scale.astype(np.float32)
        if x.dtype.kind == "f":
            # within 2**24 steps, more than any integer that is made of it
            limit = np.float32(2**24) * np.abs(scale)
            if scale.ndim and block_size:
                limit = np.repeat(limit, block_size, axis).take(range(x.shape[axis]), axis)
            elif scale.size > 1:
                limit = limit.reshape([-1 if at == axis % x.ndim else 1 for at in range(x.ndim)])
            x = np.clip(x, -limit, limit)
        attributes = {"axis": axis, "block_size": block_size, **others}
        known = {name: value for name, value in attributes.items() if name in self._inner.attributes_names_}
        return cast("tuple[Any, ...]", self._inner._run(x, scale, *([] if zero is None else [zero]), **known))


class DequantizeLinear(OpRun):
    """DequantizeLinear of every opset; onnx has none before 19."""

    op_domain = ""

    def __init__(self, node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        super().__init__(node, run_params)
        self._inner: Any = load_op("", node.op_type, max(19, run_params["opsets"][""]))(node, run_params)

    def run(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        """Run the implementation of opset 19 or later."""
        return cast("tuple[Any, ...]", self._inner.run(*inputs, **options))

    def _run(self, *_: object, **__: object) -> tuple[Any, ...]:
        raise NotImplementedError


class _InFloat32(OpRun):
    """An operator of onnx that sums: float16 and bfloat16 in float32, rounded once. NumPy's mean of 4096 ones is 1/16.

    One subclass per operator, made below: the evaluator finds an operator by its class' name.
    """

    op_domain = ""

    def __init__(self, node: onnx.NodeProto, run_params: dict[str, Any]) -> None:
        super().__init__(node, run_params)
        implementation = load_op("", node.op_type, run_params["opsets"][""], evaluator_cls=Evaluator)
        self._inner: Any = implementation(node, run_params)

    def run(self, *inputs: Any, **options: Any) -> tuple[Any, ...]:
        """Run onnx's implementation on float32 inputs when the first one is float16 or bfloat16."""
        half = inputs[0].dtype if isinstance(inputs[0], np.ndarray) and inputs[0].dtype in _HALVES else None
        if half is None:
            return cast("tuple[Any, ...]", self._inner.run(*inputs, **options))
        wide = (v.astype(np.float32) if isinstance(v, np.ndarray) and v.dtype in _HALVES else v for v in inputs)
        results = self._inner.run(*wide, **options)
        # the mean and deviation that LayerNormalization also gives stay as they are
        rounded = 1 if self.onnx_node.op_type == "LayerNormalization" else len(results)
        return tuple(
            v.astype(half) if place < rounded and isinstance(v, np.ndarray) and v.dtype == np.float32 else v
            for place, v in enumerate(results)
        )

    def _run(self, *_: object, **__: object) -> tuple[Any, ...]:
        raise NotImplementedError


# fmt: off
_SUMMING = (
    "AveragePool", "CumSum", "Einsum", "Gemm", "GlobalAveragePool", "GlobalLpPool",
    "GroupNormalization", "InstanceNormalization", "LRN", "LayerNormalization", "LpNormalization", "LpPool", "MatMul",
    "MeanVarianceNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMean", "ReduceProd",
    "ReduceSum", "ReduceSumSquare", "Resize", "Upsample",
)
# fmt: on

OPERATORS: tuple[type[OpRun], ...] = (
    Conv,
    ConvTranspose,
    Pad,
    BatchNormalization,
    Softmax,
    LogSoftmax,
    Hardmax,
    Loop,
    QuantizeLinear,
    DequantizeLinear,
    *(type(name, (_InFloat32,), {}) for name in _SUMMING),
)
"""The operators that stand in for onnx's."""


class Evaluator(ReferenceEvaluator):
    """onnx's evaluator with our operators, in every subgraph and function too; onnx gives functions none."""

    def __init__(self, proto: Any, *positional: Any, **named: Any) -> None:
        named["new_ops"] = list(named.get("new_ops") or OPERATORS)
        super().__init__(proto, *positional, **named)


@final
class ReferenceSession:
    """A model in the reference evaluator."""

    def __init__(self, runnable: Runnable) -> None:
        try:
            model = _load(runnable)
            self._evaluator: Evaluator | None = Evaluator(model)
            fixed = {tensor.name for tensor in model.graph.initializer}
            self.inputs: tuple[Io, ...] = tuple(_io(v) for v in model.graph.input if v.name not in fixed)
            self.outputs: tuple[Io, ...] = tuple(_io(v) for v in model.graph.output)
        except Exception as error:  # the evaluator raises whatever its operators do
            raise CannotLoad(_reason(error)) from error
        self._overridable = {value.name: _io(value) for value in model.graph.input if value.name in fixed}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the named outputs (None: all)."""
        assert self._evaluator is not None, "the session is closed"
        names = [output.name for output in self.outputs] if outputs is None else list(outputs)
        unknown = set(names) - {output.name for output in self.outputs}
        if unknown:
            raise CannotRun(f"the model has no output {', '.join(sorted(unknown))}")
        self._check(feeds)
        plain = {name: value if isinstance(value, list) else np.asarray(value) for name, value in feeds.items()}
        try:
            with np.errstate(all="ignore"):
                results = self._evaluator.run(names, plain)
        except Exception as error:
            raise CannotRun(_reason(error)) from error
        return dict(zip(names, results, strict=True))

    def _check(self, feeds: Mapping[str, Array]) -> None:
        known = {value.name: value for value in self.inputs}
        missing, extra = known.keys() - feeds.keys(), feeds.keys() - known.keys() - self._overridable.keys()
        if missing or extra:
            named = ", ".join(sorted(missing or extra))
            raise CannotRun(f"input {named} is missing" if missing else f"the model has no input {named}")
        for name, value in feeds.items():
            declared = known.get(name) or self._overridable[name]
            if isinstance(value, list):
                continue
            wanted, given = declared.element, np.shape(value)
            with contextlib.suppress(KeyError):
                if wanted != "string" and value.dtype != dtype(wanted):
                    raise CannotRun(f"input {name} is {value.dtype} instead of {wanted}")
            if declared.shape is not None and not _fits(given, declared.shape):
                sizes = ["?" if size is None else size for size in declared.shape]
                raise CannotRun(f"input {name} is {list(given)} instead of {sizes}")

    def peak_bytes(self) -> int | None:
        """Return None: this process has other things in memory."""
        return None

    def close(self) -> None:
        """Free the model."""
        self._evaluator = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _fits(given: Sequence[int], declared: Sequence[int | str | None]) -> bool:
    """Say whether a shape is a declared one; a size that is no number fits all."""
    return len(given) == len(declared) and all(
        not isinstance(size, int) or size == own for size, own in zip(declared, given, strict=True)
    )


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error  # the evaluator wraps what an operator raised
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text}"[:500]


def _io(value: onnx.ValueInfoProto) -> Io:
    if value.type.WhichOneof("value") != "tensor_type":
        return Io(name=value.name, element=f"other:{value.type.WhichOneof('value')}", shape=None)
    tensor = value.type.tensor_type
    element = element_name(tensor.elem_type) or f"other:{tensor.elem_type}"
    if not tensor.HasField("shape"):
        return Io(name=value.name, element=element, shape=None)
    shape = tuple(dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim)
    return Io(name=value.name, element=element, shape=shape)


def _load(runnable: Runnable) -> onnx.ModelProto:
    if isinstance(runnable.model, Path):
        model = onnx.load(runnable.model)
    else:
        model = onnx.load_model_from_string(runnable.model)
        if runnable.folder is not None:
            load_external_data_for_model(model, str(runnable.folder))
        elif any(uses_external_data(tensor) for tensor in model.graph.initializer):
            raise ValueError("the model has external data and no folder was given for them")
    put_in_order(model)
    return model


def put_in_order(model: onnx.ModelProto) -> None:
    """Sort nodes and functions in place, makers before readers: real files are not sorted."""
    for import_ in model.opset_import:
        import_.domain = _domain(import_.domain)
    for body in [model.graph, *model.functions]:
        for graph in _graphs(body):
            for node in graph.node:
                node.domain = _domain(node.domain)
            makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
            needs = {
                place: {makers[name] for name in _reads(node) if name in makers}
                for place, node in enumerate(graph.node)
            }
            if any(need >= place for place, needed in needs.items() for need in needed):
                turn = {place: turn for turn, place in enumerate(graphlib.TopologicalSorter(needs).static_order())}
                names = {tuple(node.output): turn[place] for place, node in enumerate(graph.node)}
                graph.node.sort(key=lambda node, names=names: names[tuple(node.output)])
    calls = {
        (f.domain, f.name): {(node.domain, node.op_type) for graph in _graphs(f) for node in graph.node}
        for f in model.functions
    }
    order = list(graphlib.TopologicalSorter({f: called & calls.keys() for f, called in calls.items()}).static_order())
    model.functions.sort(key=lambda f: order.index((f.domain, f.name)))


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _graphs(body: Any) -> Iterator[Any]:
    """Yield a graph or function and every graph inside it."""
    yield body
    for node in body.node:
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(graph)


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, and the graphs inside it from outside of them."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
            own |= {name for inner in graph.node for name in inner.output}
            yield from (output.name for output in graph.output if output.name not in own)
            yield from (name for inner in graph.node for name in _reads(inner) if name not in own)


@final
@dataclass(frozen=True, slots=True)
class Reference:
    """ONNX's reference evaluator."""

    name: str = "reference"

    def conflict(self) -> str | None:
        """Return None."""
        return None

    def missing(self) -> str | None:
        """Return None: onnx is always installed."""
        return None

    def versions(self) -> dict[str, str]:
        """Return the versions of onnx and NumPy."""
        return {"onnx": str(onnx.__version__), "numpy": version("numpy")}

    def session(self, runnable: Runnable, options: Options) -> Session:  # noqa: ARG002 - it has no options
        """Load a model; the options change nothing."""
        return ReferenceSession(runnable)


BACKEND: Backend = Reference()
