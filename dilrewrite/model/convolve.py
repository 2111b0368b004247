"""Conv and ConvTranspose in NumPy, tap by tap and in any precision: the ground truth of every proof."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from dilrewrite._compat import Self

Array = NDArray[Any]

HALVES = (np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
"""The types that are summed in float32 and rounded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """How a Conv or ConvTranspose moves over its axes, one number for each; a negative pad crops."""

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    pads_begin: Sequence[int]
    pads_end: Sequence[int]
    group: int = 1

    @classmethod
    def of(cls, kernel: Sequence[int], attributes: Mapping[str, Any]) -> Self:
        """Return the window of a node: its weights' kernel and its attributes, but for the pads of SAME_*."""
        rank = len(kernel)
        if tuple(attributes.get("kernel_shape") or kernel) != tuple(kernel):
            raise ValueError(f"kernel_shape {attributes['kernel_shape']} differs from the weight's {list(kernel)}")
        pads = attributes.get("pads") if attributes.get("auto_pad") in (None, "", "NOTSET") else None
        pads = pads or [0] * 2 * rank
        return cls(
            kernel=kernel,
            strides=attributes.get("strides") or [1] * rank,
            dilations=attributes.get("dilations") or [1] * rank,
            pads_begin=pads[:rank],
            pads_end=pads[rank:],
            group=attributes.get("group") or 1,
        )

    @property
    def spans(self) -> list[int]:
        """Return the extents that the dilated kernel covers."""
        return [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]

    def same(self, auto_pad: str | None, totals: Sequence[int]) -> Self:
        """Return it with `totals` as pads, halved; the odd one at the end for SAME_UPPER, else at the beginning."""
        small, large = [total // 2 for total in totals], [total - total // 2 for total in totals]
        begin, end = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
        return replace(self, pads_begin=begin, pads_end=end)

    def padded(self, auto_pad: str | None, extents: Sequence[int]) -> Self:
        """Return a Conv's window on an input of these extents, the pads of SAME_* made explicit.

        Raises ValueError for an extent that does not hold the dilated kernel, as runtimes do.
        """
        window = self
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            axes = zip(extents, self.spans, self.strides, strict=True)
            window = self.same(auto_pad, [max(0, (-(-h // s) - 1) * s + span - h) for h, span, s in axes])
        for h, p0, p1, span in zip(extents, window.pads_begin, window.pads_end, self.spans, strict=True):
            if h + p0 + p1 < span:
                raise ValueError(f"extent {h + p0 + p1} of {list(extents)} with its pads does not hold {span} values")
        return window


def conv(x: Array, w: Array, b: Array | None, window: Window, accumulate: DTypeLike | None = None) -> Array:
    """Return the convolution of x [N, C, *extents] with w [O, C // group, *kernel] and bias b [O], tap by tap.

    Computed in `accumulate` and returned in it. Without it: in x's own precision; float16 and bfloat16 are summed in
    float32 and rounded once; integers are exact and come back as int64 (OverflowError beyond it). An extent that does
    not hold the dilated kernel gives an empty output. The zeros of the padding are not multiplied, so an Inf in w meets
    no NaN there.
    """
    extents, kernel, group = x.shape[2:], w.shape[2:], window.group
    rank = len(extents)
    if len(kernel) != rank or len(window.strides) != rank:
        raise ValueError(f"x {x.shape}, w {w.shape} and the attributes have different ranks")
    if w.shape[1] * group != x.shape[1] or w.shape[0] % group:
        raise ValueError(f"x {x.shape} and w {w.shape} do not fit group {group}")
    work, result = _precision(x, w, b, accumulate)
    pads = zip(extents, window.pads_begin, window.pads_end, window.spans, window.strides, strict=True)
    out = tuple(max(0, (h + p0 + p1 - span) // s + 1) for h, p0, p1, span, s in pads)
    images, outs, ins = x.shape[0], w.shape[0] // group, w.shape[1]
    y = np.zeros((images, group, outs, *out), work)
    if y.size:
        xg = x.reshape(images, group, ins, *extents).astype(work, copy=False)
        taps = np.moveaxis(w.reshape(group, outs, ins, -1), -1, 0)
        for tap, (read, write) in zip(taps, _reaches(window, extents, out), strict=True):
            part, target = xg[read], y[write]
            if not part.size:
                continue
            weights = np.ascontiguousarray(tap).astype(work, copy=False)
            if ins == 1:  # depthwise: nothing to sum, and one small product per channel is slow in BLAS
                for o in range(outs):
                    target[:, :, o] += weights[:, o].reshape(1, group, *[1] * rank) * part[:, :, 0]
            else:
                product = weights @ part.reshape(images, group, ins, -1)
                target += product.reshape(target.shape)
    y = y.reshape(images, group * outs, *out)
    if b is not None:
        y += b.astype(work).reshape(-1, *[1] * rank)
    return y.astype(result, copy=False)


def _precision(
    x: Array, w: Array, b: Array | None, accumulate: DTypeLike | None
) -> tuple[np.dtype[Any], np.dtype[Any]]:
    """Return the types to sum in and to return.

    Whole numbers are summed in float64, where BLAS is, as long as no sum can leave the integers that it holds.
    """
    if accumulate is not None:
        return np.dtype(accumulate), np.dtype(accumulate)
    if x.dtype in HALVES:
        return np.dtype(np.float32), x.dtype
    # ml_dtypes' int2 and int4 have kind V
    if x.dtype.kind not in "iu" and x.dtype.name not in ("int2", "uint2", "int4", "uint4"):
        return x.dtype, x.dtype
    terms = int(np.prod(w.shape[1:], dtype=np.int64))
    bound = terms * _magnitude(x) * _magnitude(w) + (0 if b is None else _magnitude(b))
    if bound >= 2**63:
        raise OverflowError(f"a sum of {terms} products may reach {bound}, beyond 64 bits")
    return np.dtype(np.float64 if bound <= 2**53 else np.int64), np.dtype(np.int64)


def _magnitude(values: Array) -> int:
    return max(abs(int(values.max())), abs(int(values.min()))) if values.size else 0


def _reaches(window: Window, extents: Sequence[int], out: Sequence[int]) -> Iterator[tuple[Any, Any]]:
    """Yield for each tap what it reads of the input, and which outputs that is for."""
    axes = list(zip(out, extents, window.strides, window.dilations, window.pads_begin, strict=True))
    for places in itertools.product(*map(range, window.kernel)):
        read: list[Any] = [...]
        write: list[Any] = [...]
        for place, (count, extent, s, d, pad) in zip(places, axes, strict=True):
            first = place * d - pad
            low, high = max(0, -(first // s)), min(count, (extent - 1 - first) // s + 1)
            start = low * s + first
            read.append(slice(start, start + (high - low - 1) * s + 1, s) if low < high else slice(0, 0))
            write.append(slice(low, max(low, high)))
        yield tuple(read), tuple(write)


def conv_transpose(
    x: Array, w: Array, b: Array | None, attributes: Mapping[str, Any], accumulate: DTypeLike | None = None
) -> Array:
    """Return the ConvTranspose of x [N, C, *extents] with w [C, O // group, *kernel], tap by tap.

    `accumulate` is the type to sum in and to return; by default that of x, which is rounded once.
    onnx's visits every element in Python and takes hours for what takes this seconds.
    """
    extents, rank = x.shape[2:], x.ndim - 2
    window = Window.of(w.shape[2:], attributes)
    axes = zip(extents, window.strides, window.spans, attributes.get("output_padding") or [0] * rank, strict=True)
    whole = [s * (h - 1) + span + more for h, s, span, more in axes]
    size, auto_pad = attributes.get("output_shape"), attributes.get("auto_pad")
    if size is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        size = [h * s for h, s in zip(extents, window.strides, strict=True)] if size is None else size[-rank:]
        window = window.same(auto_pad, [have - want for have, want in zip(whole, size, strict=True)])
    if min(*window.pads_begin, *window.pads_end) < 0:
        raise NotImplementedError("ConvTranspose with negative pads, where runtimes differ")
    work, result = (np.dtype(np.float32) if x.dtype in HALVES else x.dtype, x.dtype)
    if accumulate is not None:
        work = result = np.dtype(accumulate)
    images, groups, ins, outs = x.shape[0], window.group, w.shape[0] // window.group, w.shape[1]
    y = np.zeros((images, groups, outs, *whole), work)
    xg = x.reshape(images, groups, ins, -1).astype(work, copy=False)
    taps = w.reshape(groups, ins, outs, -1).transpose(3, 0, 2, 1).astype(work, copy=False)
    for places, tap in zip(itertools.product(*map(range, window.kernel)), taps, strict=True):
        steps = zip(places, window.dilations, window.strides, extents, strict=True)
        target: Any = (..., *(slice(place * d, place * d + s * (h - 1) + 1, s) for place, d, s, h in steps))
        y[target] += (tap @ xg).reshape(images, groups, outs, *extents)
    ends = zip(window.pads_begin, whole, window.pads_end, strict=True)
    inner: Any = (..., *(slice(low, n - high) for low, n, high in ends))
    cut: Array = y.reshape(images, groups * outs, *whole)[inner]
    if b is not None:
        cut = cut + b.astype(work).reshape(-1, *[1] * rank)
    return cut.astype(result, copy=False)
