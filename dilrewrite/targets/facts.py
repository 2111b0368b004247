"""Facts of Convs, operators and tensors, as rules of profiles name them (see `vocabulary`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dilrewrite.targets.expressions import Value
from dilrewrite.targets.profile import Facts

Sizes = Sequence[int | None]

AXES = "dhw"


def conv(
    *,
    kernel: Sequence[int],
    dilations: Sequence[int] = (),
    strides: Sequence[int] = (),
    begin: Sequence[int] | None = (),
    end: Sequence[int] | None = (),
    group: int = 1,
    channels: tuple[int | None, int | None] = (None, None),
    batch: int | None = None,
    extents: Sizes = (),
    outputs: Sizes = (),
    **more: Value,
) -> dict[str, Value]:
    """Return the facts of a Conv.

    `channels`: of its input and its output; `outputs`: the extents of its output; `more`: facts by name, such as
    `auto_pad`, `weights`, `input_dtype`. What is left out is 1 (of pads 0) or not known; pads are `None` where they are
    not known.
    """
    rank = len(kernel)
    window = _window(kernel, dilations, strides, begin, end)
    into, out = channels
    facts = {
        **window,
        **_shape((batch, into, *(extents or (None,) * rank))),
        "rank": rank,
        "y": tuple(outputs) or (None,) * rank,
        "Cin": into,
        "Cout": out,
        "group": group,
        "depthwise": None if into is None and group > 1 else group == into and group > 1,
        "grouped": None if into is None and group > 1 else group > 1 and group != into,
    }
    return {**facts, **more}


def _window(
    kernel: Sequence[int],
    dilations: Sequence[int],
    strides: Sequence[int],
    begin: Sequence[int] | None,
    end: Sequence[int] | None,
) -> dict[str, Value]:
    """Return the facts of a window that slides."""
    rank = len(kernel)
    k, d, s = tuple(kernel), tuple(dilations) or (1,) * rank, tuple(strides) or (1,) * rank
    first, last = (None if one is None else tuple(one) or (0,) * rank for one in (begin, end))
    facts: dict[str, Value] = {
        "k": k,
        "d": d,
        "s": s,
        "p": None if first is None or last is None else tuple(map(max, first, last)),
        "p_begin": first,
        "p_end": last,
        "kernel": k,
        "dilated_kernel": tuple((a - 1) * b + 1 for a, b in zip(k, d, strict=False)),
        "dilated": any(a > 1 and b > 1 for a, b in zip(k, d, strict=False)),
    }
    for name, values in (("k", k), ("d", d), ("s", s)):
        facts |= {f"{name}{axis}": 1 for axis in AXES}
        facts |= {f"{name}{axis}": value for axis, value in zip(AXES[-rank:], values[-3:], strict=False)}
    return facts


def _shape(shape: Sizes | None) -> dict[str, Value]:
    """Return the facts of a shape: N, C, extents."""
    if shape is None:
        return {"rank": None}
    extents = tuple(shape[2:])
    sizes = (1,) * (3 - len(extents)) + extents if len(extents) < 3 else extents[-3:]
    return {
        "N": shape[0] if shape else 1,
        "C": shape[1] if len(shape) > 1 else 1,
        "x": extents,
        "rank": len(shape),
        **dict(zip("DHW", sizes, strict=True)),
    }


def tensor(shape: Sizes | None, dtype: str = "", bits: int = 32, batch: int | None = None) -> dict[str, Value]:
    """Return the facts of a tensor. `dtype`: as ONNX names it, in small letters; `batch`: of the model's input."""
    facts = {**_shape(shape), "dtype": dtype or None, "N0": batch}
    known = None if shape is None or None in shape else math.prod(size for size in shape if size is not None)
    single = None if shape is None or None in shape else sum(size != 1 for size in shape)
    return {
        **facts,
        "elements": known,
        "bytes": None if known is None else known * bits // 8,
        "non_singleton": single,
    }


def window(attributes: Mapping[str, Any], shape: Sizes | None) -> dict[str, Value]:
    """Return the facts of a pooling."""
    kernel = attributes.get("kernel_shape")
    if not kernel:
        return {}
    extents = tuple(shape[2:]) if shape is not None else ()
    begin, end = pads(attributes, kernel, extents)
    facts = _window(kernel, attributes.get("dilations", ()), attributes.get("strides", ()), begin, end)
    return {**facts, "auto_pad": attributes.get("auto_pad", "NOTSET")}


def pads(
    attributes: Mapping[str, Any], kernel: Sequence[int], extents: Sizes
) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """Return the pads at the begin and at the end, with those that `auto_pad` stands for; `None`: not known."""
    rank, auto = len(kernel), attributes.get("auto_pad", "NOTSET")
    if auto == "VALID":
        return (0,) * rank, (0,) * rank
    if auto == "NOTSET":
        given = tuple(attributes.get("pads", (0,) * 2 * rank))
        return given[:rank], given[rank:]
    dilations, strides = (attributes.get(name) or (1,) * rank for name in ("dilations", "strides"))
    if len(extents) != rank:
        extents = (None,) * rank
    sums = []
    for k, d, s, extent in zip(kernel, dilations, strides, extents, strict=False):
        if extent is None or s < 1:  # no stride: the model is damaged
            return None, None
        sums.append(max((-(-extent // s) - 1) * s + (k - 1) * d + 1 - extent, 0))
    small, large = [one // 2 for one in sums], [one - one // 2 for one in sums]
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _axis(attributes: Mapping[str, Any], otherwise: int, rank: int | None) -> dict[str, Value]:
    axis = attributes.get("axis", otherwise)
    if rank is None:
        return {"axis": None, "axis_from_end": None}
    return {"axis": axis % rank if rank else 0, "axis_from_end": axis % rank - rank if rank else 0}


def node(
    op: str,
    attributes: Mapping[str, Any],
    shapes: Sequence[Sizes | None],
    outputs: Sequence[Sizes | None] = (),
    integers: Sequence[Sequence[Any] | None] = (),
    inputs: int = 1,
    batch: int | None = None,
) -> Facts:
    """Return the facts of a node that is no Conv.

    `shapes`: of its inputs, and `outputs` of its outputs, `None` where not known; `integers`: the values of those
    inputs that are constants; `inputs`: how many it has; `batch`: of the model's input.
    """
    first = shapes[0] if shapes else None
    made = outputs[0] if outputs else None
    facts: dict[str, Value] = {**_shape(first), "N0": batch, "inputs": inputs}
    ranks = [None if one is None else len(one) for one in (first, made)]
    facts["rank"] = None if None in ranks else max(filter(None, ranks), default=0)
    held = dict(enumerate(integers))
    rank = ranks[0]
    if op in ("Concat", "Split", "Gather", "Softmax"):
        facts |= _axis(attributes, -1 if op == "Softmax" else 0, rank)
    elif op in ("SpaceToDepth", "DepthToSpace"):
        facts |= {"blocks": attributes.get("blocksize"), "mode": attributes.get("mode", "DCR")}
    elif op == "Transpose":
        perm = tuple(attributes.get("perm") or range((rank or 1) - 1, -1, -1))
        facts |= {"perm": perm, "moves_batch": perm[:1] != (0,)}
    elif op == "Reshape":
        facts |= {"rank_in": ranks[0], "rank_out": ranks[1]}
    elif op == "Slice":
        facts |= _slice(attributes, held, rank)
    elif op == "Pad":
        facts |= _pad(attributes, held, rank)
    elif op == "Resize":
        facts["mode"] = attributes.get("mode", "nearest")
    elif op in ("MaxPool", "AveragePool", "LpPool"):
        facts = {**window(attributes, first), **facts}
    return facts


def _slice(attributes: Mapping[str, Any], held: Mapping[int, Any], rank: int | None) -> dict[str, Value]:
    starts = attributes.get("starts", held.get(1))
    count = None if starts is None else len(starts)
    axes = attributes.get("axes", held.get(3))
    steps = held.get(4)
    if count is None or not rank:  # nothing is cut out of a scalar
        return {"steps": None if steps is None else tuple(steps), "axes": None}
    axes = tuple(range(count)) if axes is None else tuple(axis % rank for axis in axes)
    return {"axes": axes, "steps": (1,) * count if steps is None else tuple(steps)}


def _pad(attributes: Mapping[str, Any], held: Mapping[int, Any], rank: int | None) -> dict[str, Value]:
    amounts = attributes.get("pads", held.get(1))
    value = attributes.get("value", (held.get(2) or (0,))[0])
    facts: dict[str, Value] = {
        "mode": attributes.get("mode", "constant"),
        "constant": amounts is not None,
        "value": value,
        "axes_input": held.get(3) is not None,
        "amounts": None if amounts is None else tuple(amounts),
    }
    named = held.get(3)
    if amounts is None or not rank or len(amounts) != 2 * (rank if named is None else len(named)):
        return {**facts, "axes": None}
    axes = range(rank) if named is None else [axis % rank for axis in named]
    half = len(amounts) // 2
    padded = tuple(axis for place, axis in enumerate(axes) if amounts[place] or amounts[place + half])
    return {**facts, "axes": padded}
