"""A convolution written straight from the ONNX specification, in whole numbers; it knows nothing of dilrewrite."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Whole = NDArray[np.int64]


def explicit_pads(
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    auto_pad: str = "NOTSET",
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The (begin, end) pads that a Conv uses: its own, none (VALID), or what makes the output ceil(H / s) (SAME_*)."""
    if auto_pad == "NOTSET":
        return tuple(begin), tuple(end)
    front, back = [], []
    for h, k, s, d in zip(extents, kernel, strides, dilations, strict=True):
        if auto_pad == "VALID":
            total = 0
        else:
            assert auto_pad in ("SAME_UPPER", "SAME_LOWER"), auto_pad
            out = (h + s - 1) // s
            total = max((out - 1) * s + ((k - 1) * d + 1) - h, 0)
        small = total // 2
        front.append(total - small if auto_pad == "SAME_LOWER" else small)
        back.append(total - front[-1])
    return tuple(front), tuple(back)


def out_extents(
    extents: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
) -> tuple[int, ...]:
    """Ho of every axis for explicit pads; below 1 where the input is too small."""
    return tuple(
        (h + p0 + p1 - ((k - 1) * d + 1)) // s + 1
        for h, k, s, d, p0, p1 in zip(extents, kernel, strides, dilations, begin, end, strict=True)
    )


def conv(
    x: ArrayLike,
    w: ArrayLike,
    b: ArrayLike | None = None,
    *,
    strides: Sequence[int],
    dilations: Sequence[int],
    begin: Sequence[int],
    end: Sequence[int],
    auto_pad: str = "NOTSET",
    group: int = 1,
) -> Whole:
    """y[n, o, *out] = b[o] + sum over c, *t of w[o, c, *t] * x[n, group's c, *(out * s + t * d - p0)], zero outside x.

    `x` is [N, C, *H], `w` [O, C // group, *k]; raises `ValueError` where no output is left.
    """
    x, w = np.asarray(x).astype(np.int64), np.asarray(w).astype(np.int64)
    extents, kernel = x.shape[2:], w.shape[2:]
    begin, end = explicit_pads(extents, kernel, strides, dilations, begin, end, auto_pad)
    outs = out_extents(extents, kernel, strides, dilations, begin, end)
    if min(outs) < 1:
        raise ValueError(f"output extents {outs}")
    batch, out_channels = x.shape[0], w.shape[0]
    # One gather per axis: [.., H, ..] -> [.., Ho, k, ..]; index H reads a zero.
    for axis in reversed(range(len(outs))):
        places = (
            np.arange(outs[axis])[:, None] * strides[axis]
            + np.arange(kernel[axis])[None, :] * dilations[axis]
            - begin[axis]
        )
        places = np.where((places >= 0) & (places < extents[axis]), places, extents[axis])
        widths = [(0, 0)] * x.ndim
        widths[axis + 2] = (0, 1)
        x = np.take(np.pad(x, widths), places, axis=axis + 2)
    rank = len(outs)
    x = x.reshape(batch, group, w.shape[1], *x.shape[2:])
    # [N, G, C, Ho1, k1, Ho2, k2, ..] -> [G, N * Ho1 * .., C * k1 * ..]
    order = [1, 0, *(3 + 2 * a for a in range(rank)), 2, *(4 + 2 * a for a in range(rank))]
    columns = x.transpose(order).reshape(group, batch * int(np.prod(outs)), -1)
    rows = w.reshape(group, out_channels // group, -1)
    y = np.einsum("gpi,goi->gop", columns, rows)
    y = y.reshape(out_channels, batch, *outs).swapaxes(0, 1)
    if b is not None:
        y = y + np.asarray(b).astype(np.int64).reshape(1, -1, *(1,) * rank)
    return y


def conv_transpose(x: Whole, w: Whole, b: Whole | None, attributes: Mapping[str, Any]) -> Whole:
    """ConvTranspose of x [N, C, *H] with w [C, O // group, *k]: each input times each tap is added to an output."""
    rank, group = x.ndim - 2, attributes.get("group", 1)
    strides, dilations, more = (
        attributes.get(name, [default] * rank)
        for name, default in (("strides", 1), ("dilations", 1), ("output_padding", 0))
    )
    axes = zip(strides, x.shape[2:], dilations, w.shape[2:], more, strict=True)
    whole = [s * (h - 1) + d * (k - 1) + 1 + a for s, h, d, k, a in axes]
    y = np.zeros((len(x), w.shape[1] * group, *whole), np.int64)
    ins, outs = len(w) // group, w.shape[1]
    for place, tap in itertools.product(np.ndindex(*x.shape[2:]), np.ndindex(*w.shape[2:])):
        at = tuple(i * s + t * d for i, s, t, d in zip(place, strides, tap, dilations, strict=True))
        for g in range(group):
            values = x[(slice(None), slice(g * ins, (g + 1) * ins), *place)]
            taps = w[(slice(g * ins, (g + 1) * ins), slice(None), *tap)]
            y[(slice(None), slice(g * outs, (g + 1) * outs), *at)] += values @ taps
    auto_pad, size = attributes.get("auto_pad", "NOTSET"), attributes.get("output_shape")
    if auto_pad.startswith("SAME") or size:
        size = size or [h * s for h, s in zip(x.shape[2:], strides, strict=True)]
        totals = [n - wanted for n, wanted in zip(whole, size, strict=True)]
        halves = [(total // 2, total - total // 2) for total in totals]
        begin, end = zip(*(half if auto_pad == "SAME_UPPER" else half[::-1] for half in halves), strict=True)
    else:
        pads = attributes.get("pads", [0] * 2 * rank) if auto_pad == "NOTSET" else [0] * 2 * rank
        begin, end = pads[:rank], pads[rank:]
    inner = tuple(slice(p, n - q) for p, n, q in zip(begin, whole, end, strict=True))
    cut: Whole = y[(slice(None), slice(None), *inner)]
    return cut if b is None else cut + b.reshape(-1, *[1] * rank)
