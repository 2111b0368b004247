"""MaxPool, AveragePool and LpPool in NumPy, tap by tap and in any precision: the ground truth of their proofs."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from dilrewrite.model.convolve import HALVES, Array, Window


def pool(op: str, x: Array, attributes: Mapping[str, Any], accumulate: DTypeLike | None = None) -> Array:
    """Return what a pooling makes of x [N, C, *extents]; float16 and bfloat16 are summed in float32 and rounded once.

    `accumulate`: the type of sums. Source: ONNX operator specification, MaxPool, AveragePool and LpPool 22; with
    ceil_mode no window begins in the padding at the end, as in ONNX Runtime.
    """
    window = Window.of(attributes["kernel_shape"], attributes).padded(attributes.get("auto_pad"), x.shape[2:])
    work = accumulate or (np.float32 if x.dtype in HALVES else x.dtype)
    values = x if op == "MaxPool" else x.astype(work)
    outs = [_outs(window, axis, extent, bool(attributes.get("ceil_mode"))) for axis, extent in enumerate(x.shape[2:])]
    power, count = int(attributes.get("p", 2)), np.zeros(outs, np.int64)
    lowest = -np.inf if x.dtype.kind not in "iu" else np.iinfo(x.dtype).min
    result = np.full((*x.shape[:2], *outs), lowest if op == "MaxPool" else 0, values.dtype)
    for taps in itertools.product(*map(range, window.kernel)):
        places = [_places(window, axis, tap, outs[axis]) for axis, tap in enumerate(taps)]
        inside = [(at >= 0) & (at < extent) for at, extent in zip(places, x.shape[2:], strict=True)]
        near = (np.clip(at, 0, extent - 1) for at, extent in zip(places, x.shape[2:], strict=True))
        here: tuple[Any, ...] = (slice(None), slice(None), *np.ix_(*near))
        seen, data = _all(inside), values[here]
        if op == "MaxPool":
            result = np.where(seen, np.maximum(result, data), result)
            continue
        result += np.where(seen, np.abs(data) ** power if op == "LpPool" else data, 0).astype(values.dtype)
        if attributes.get("count_include_pad"):
            ends = (extent + end for extent, end in zip(x.shape[2:], window.pads_end, strict=True))
            seen = _all([at < end for at, end in zip(places, ends, strict=True)])
        count += seen
    if op == "AveragePool":
        result = result / count
    if op == "LpPool":
        result = result ** (np.asarray(1, values.dtype) / np.asarray(power, values.dtype))
    return result.astype(values.dtype if accumulate else x.dtype, copy=False)


def _all(along: Sequence[Array]) -> Array:
    """Return where all axes say yes; `np.ix_` would take the places of what says so."""
    rank = len(along)
    grid = (each.reshape([-1 if at == axis else 1 for at in range(rank)]) for axis, each in enumerate(along))
    return functools.reduce(np.logical_and, grid)


def _places(window: Window, axis: int, tap: int, outs: int) -> Array:
    """Return where a tap reads, for each output."""
    return np.arange(outs) * window.strides[axis] - window.pads_begin[axis] + tap * window.dilations[axis]


def _outs(window: Window, axis: int, extent: int, ceil: bool) -> int:
    begin, stride = window.pads_begin[axis], window.strides[axis]
    room = extent + begin + window.pads_end[axis] - window.spans[axis]
    return min(-(-room // stride) + 1, (extent + begin - 1) // stride + 1) if ceil else room // stride + 1
