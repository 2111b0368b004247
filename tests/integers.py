"""Models of QLinearConv and ConvInteger, and what they give in whole numbers: nothing here knows dilrewrite."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from tests import naive

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """A dilated convolution on integers; `None` in `shape`: known at run time only. `out_zero`: None for ConvInteger.

    `weight_zero`: "channel" for one per output channel. `scale`: of the output; powers of two keep everything exact.
    """

    name: str
    shape: tuple[int | None, ...]
    outputs: int = 4
    kernel: tuple[int, ...] = (3,)
    dilations: tuple[int, ...] = (3,)
    pads: tuple[int, ...] = (3, 3)
    strides: tuple[int, ...] = (1,)
    group: int = 1
    data: type[np.generic] = np.uint8
    weights: type[np.generic] = np.int8
    zero: int | None = 77
    weight_zero: int | str | None = 0
    out_zero: int | None = 131
    per_channel: bool = True
    bias: bool = True
    scale: float = 2.0**5
    opset: int = 17

    @property
    def fused(self) -> bool:
        return self.out_zero is not None


def held(q: Integers) -> dict[str, Array]:
    """What the model holds, by the names of its inputs."""
    rng, info = np.random.default_rng(zlib.crc32(q.name.encode())), np.iinfo(q.weights)
    channels = q.shape[1]
    assert channels is not None
    w = rng.integers(info.min, info.max + 1, (q.outputs, channels // q.group, *q.kernel)).astype(q.weights)
    zeros = rng.integers(info.min // 4, info.max // 4, q.outputs) if q.weight_zero == "channel" else q.weight_zero
    found: dict[str, Array] = {"w": w}
    if q.fused:
        shape = (q.outputs,) if q.per_channel else ()
        found |= {"xs": np.array(0.5, np.float32), "ws": (2.0 ** -rng.integers(0, 3, shape)).astype(np.float32)}
        found |= {"ys": np.array(q.scale, np.float32), "yz": np.array(q.out_zero, q.data)}
        if q.bias:
            found["b"] = rng.integers(-9999, 9999, q.outputs).astype(np.int32)
    if q.zero is not None:
        found["xz"] = np.array(q.zero, q.data)
    if zeros is not None:
        found["wz"] = np.broadcast_to(zeros, (q.outputs,) if q.fused and q.per_channel else np.shape(zeros)).astype(
            q.weights
        )
    return found


def build(q: Integers) -> ModelProto:
    """x -> QLinearConv or ConvInteger -> y."""
    values, rank = held(q), len(q.kernel)
    op, names = ("QLinearConv", "x xs xz w ws wz ys yz b") if q.fused else ("ConvInteger", "x w xz wz")
    read = [name if name == "x" or name in values else "" for name in names.split()]
    while not read[-1]:
        read.pop()
    attributes = {"dilations": q.dilations, "pads": q.pads, "strides": q.strides * (rank // len(q.strides))}
    node = helper.make_node(op, read, ["y"], name="site", group=q.group, **attributes)
    kind = TensorProto.UINT8 if q.data is np.uint8 else TensorProto.INT8
    dims = [f"n{axis}" if size is None else size for axis, size in enumerate(q.shape)]
    graph = helper.make_graph(
        [node],
        "integers",
        [helper.make_tensor_value_info("x", kind, dims)],
        [
            helper.make_tensor_value_info(
                "y", kind if q.fused else TensorProto.INT32, [f"o{axis}" for axis in range(rank + 2)]
            )
        ],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", q.opset)], ir_version=8)


def images(q: Integers) -> list[Array]:
    """Inputs over the whole range of their type; what is unknown takes several sizes, a batch of 3 among them."""
    rng, info = np.random.default_rng(5), np.iinfo(q.data)
    sizes = [[size] if size is not None else [3, 1] if axis == 0 else [17, 24] for axis, size in enumerate(q.shape)]
    shapes = {tuple(some[turn % len(some)] for some in sizes) for turn in range(2)}
    return [rng.integers(info.min, info.max + 1, shape).astype(q.data) for shape in sorted(shapes)]


def truth(q: Integers, x: Array) -> Array:
    """The output in whole numbers, rounded half to even."""
    values, rank = held(q), len(q.kernel)
    weight_zero = values.get("wz", np.zeros((), np.int64)).astype(np.int64).reshape(-1, *(1,) * (rank + 1))
    total = naive.conv(
        x.astype(np.int64) - (q.zero or 0),
        values["w"].astype(np.int64) - weight_zero,
        values.get("b"),
        strides=q.strides * (rank // len(q.strides)),
        dilations=q.dilations,
        begin=q.pads[:rank],
        end=q.pads[rank:],
        group=q.group,
    )
    if not q.fused:
        return total.astype(np.int32)
    scale = (values["xs"] * values["ws"] / values["ys"]).astype(np.float64).reshape(-1, *(1,) * rank)
    info = np.iinfo(q.data)
    return np.clip(np.rint(total * scale) + (q.out_zero or 0), info.min, info.max).astype(q.data)
