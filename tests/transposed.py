"""Models of one dilated ConvTranspose, its weights whole numbers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, helper

from tests import models_for_tests as tiny


def model(
    extents: Sequence[int | str] = (9,),
    kernel: Sequence[int] = (3,),
    *,
    ins: int = 2,
    outs: int = 2,
    group: int = 1,
    bias: bool = True,
    opset: int = 17,
    seed: int = 0,
    batch: int | str = 1,
    **attributes: Any,
) -> ModelProto:
    """x -> ConvTranspose -> Relu -> y, its weights whole numbers; dilations of 2 unless told otherwise."""
    rng = np.random.default_rng(seed)
    weights = {"w": rng.integers(-9, 10, (ins, outs // group, *kernel)).astype(np.float32)}
    weights |= {"b": rng.integers(-9, 10, outs).astype(np.float32)} if bias else {}
    attributes = {"dilations": [2] * len(kernel), "group": group, **attributes}
    return tiny.build(
        [
            helper.make_node("ConvTranspose", ["x", *weights], ["c"], name="up", **attributes),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        {"x": [batch, ins, *extents]},
        {"y": None},
        weights,
        opset=opset,
    )


def drawn(seed: int) -> tuple[ModelProto, tuple[int, ...]]:
    """Return a ConvTranspose of random attributes, and the shape to run it on; extents may be unknown to the model."""
    rng = random.Random(seed)
    rank, group = rng.choice((1, 1, 2, 2, 3)), rng.choice((1, 1, 2, 3))
    kernel = [rng.randint(1, 4 if rank < 3 else 3) for _ in range(rank)]
    dilations, strides = ([rng.choice(some) for _ in range(rank)] for some in ((1, 2, 3, 4), (1, 1, 2, 3, 4)))
    axis = rng.randrange(rank)
    kernel[axis], dilations[axis] = rng.randint(2, 4), rng.randint(2, 5)
    more = [rng.randint(0, max(s, d) - 1) for s, d in zip(strides, dilations, strict=True)]
    extents = [rng.randint(1, 7 if rank < 3 else 4) for _ in range(rank)]
    axes = zip(extents, kernel, dilations, strides, more, strict=True)
    whole = [s * (h - 1) + d * (k - 1) + 1 + a for h, k, d, s, a in axes]
    attributes: dict[str, Any] = {"dilations": dilations, "strides": strides, "output_padding": more}
    kind = rng.choice(("pads", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID", "output_shape"))
    if kind == "pads":
        attributes["pads"] = [rng.randint(0, (n - 1) // 2) for n in (*whole, *whole)]
    elif kind == "output_shape":
        attributes[kind] = [rng.randint(1, n) for n in whole]
    else:
        attributes["auto_pad"] = kind
    unknown = kind != "output_shape" and rng.random() < 0.3
    batch, (ins, outs) = rng.randint(1, 2), (group * rng.randint(1, 3) for _ in range(2))
    sizes: list[int | str] = [f"n{place}" if unknown else extent for place, extent in enumerate(extents)]
    bias = rng.random() < 0.5
    proto = model(sizes, kernel, ins=ins, outs=outs, group=group, bias=bias, seed=seed, batch=batch, **attributes)
    return proto, (batch, ins, *extents)
