"""Writes Conv, ConvTranspose and poolings: 1-D and 2-D, pads by PAD where neither SAME nor VALID says them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from onnx import NodeProto

from dilrewrite.runtimes import CannotLoad
from dilrewrite.tflite.graph import Array
from dilrewrite.tflite.schema import PADDING
from dilrewrite.tflite.source import Constant, attributes, called
from dilrewrite.tflite.values import Shape, Value, usual
from dilrewrite.tflite.writer import Writer, ints

MOST_GROUPS = 1024
"""A Conv of more groups is not written: each is an operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A window over height and width: its size, steps, and the pads in front and behind."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    begin: tuple[int, int]
    end: tuple[int, int]

    def padding(self, extents: Sequence[int]) -> str | None:
        """Return how TFLite says the pads; None where it cannot."""
        if not any((*self.begin, *self.end)):
            return "VALID"
        for axis, extent in enumerate(extents):
            stride, span = self.strides[axis], self.dilations[axis] * (self.kernel[axis] - 1) + 1
            total = max((-(-extent // stride) - 1) * stride + span - extent, 0)
            if (self.begin[axis], self.end[axis]) != (total // 2, total - total // 2):
                return None
        return "SAME"


def window(node: NodeProto, kernel: Sequence[int], extents: Sequence[int]) -> Window:
    """Return the window of a node; one axis is the width."""
    given, rank = attributes(node), len(kernel)
    if rank > 2:
        raise CannotLoad(f"{called(node)}: {rank} spatial axes; Ethos-U and TFLite's int8 operators take 2")
    strides, dilations = (list(given.get(name, [1] * rank)) for name in ("strides", "dilations"))
    pads = list(given.get("pads", [0] * 2 * rank))
    auto = given.get("auto_pad", "NOTSET")
    if auto.startswith("SAME"):
        for axis in range(rank):
            stride, span = strides[axis], dilations[axis] * (kernel[axis] - 1) + 1
            total = max((-(-extents[axis] // stride) - 1) * stride + span - extents[axis], 0)
            few, many = total // 2, total - total // 2
            pads[axis], pads[axis + rank] = (few, many) if auto == "SAME_UPPER" else (many, few)
    elif auto == "VALID":
        pads = [0] * 2 * rank
    if min(pads) < 0:
        raise CannotLoad(f"{called(node)}: pads {pads} below 0")

    def two(values: Sequence[int], filled: int) -> tuple[int, int]:
        first, second = (filled, *values)[-2:]
        return first, second

    return Window(
        kernel=two(kernel, 1), strides=two(strides, 1), dilations=two(dilations, 1),
        begin=two(pads[:rank], 0), end=two(pads[rank:], 0),
    )  # fmt: skip


def padded(writer: Writer, value: Value, over: Window) -> tuple[int, str]:
    """Return a tensor of a value with its axes in the usual order and pads as TFLite can say them, and how it does."""
    order = usual(len(value.shape))
    tensor, stored = writer.layouts.at(value, order), value.stored(order)
    padding = over.padding(stored[1:3])
    if padding is not None:
        return tensor, padding
    pads = [(0, 0), *zip(over.begin, over.end, strict=True), (0, 0)]
    shape = tuple(size + sum(pad) for size, pad in zip(stored, pads, strict=True))
    made = writer.graph.tensor(f"{writer.layouts.name}/pad", shape, value.quantum)
    amounts = writer.graph.constant(f"{writer.layouts.name}/pads", np.asarray(pads, np.int32))
    writer.graph.add("PAD", [tensor, amounts], made)
    return made, "VALID"


def weights(writer: Writer, node: NodeProto, outputs: int) -> tuple[Array, Array]:
    """Return the weights of a Conv as int8 whose zero is 0, and the scale of each entry of axis `outputs`."""
    given = writer.source.constants.get(node.input[1])
    if given is None:
        raise CannotLoad(f"{called(node)}: its weights are no constant")
    values, scales, zeros = given.values, given.scales, given.zeros
    if scales is None or zeros is None or values.dtype != np.int8:
        raise CannotLoad(f"{called(node)}: its weights are not quantised to 8 bits")
    if zeros.any():
        raise CannotLoad(f"{called(node)}: weights with zero point {int(zeros.ravel()[zeros.ravel() != 0][0])}; 0 fits")
    if scales.size > 1 and given.axis != outputs:
        raise CannotLoad(f"{called(node)}: weights with a scale for each entry of axis {given.axis}")
    return values, np.broadcast_to(scales.ravel(), values.shape[outputs])


def bias(writer: Writer, node: NodeProto, count: int, scales: Array) -> Array:
    """Return the bias of a Conv by the scales that its sums have; zeros where there is none."""
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        return np.zeros(count, np.int32)
    if name not in writer.source.constants:
        raise CannotLoad(f"{called(node)}: its bias is no constant")
    steps = np.rint(writer.source.constants[name].real.astype(np.float64) / scales)
    return np.clip(steps, -(2**31), 2**31 - 1).astype(np.int32)


def conv(writer: Writer, node: NodeProto) -> None:
    """Write a Conv: dense, depthwise, or one operator for each group."""
    value = writer.value(node.input[0])
    kernels, scales = weights(writer, node, 0)
    over = window(node, kernels.shape[2:], value.shape[2:])
    kernels = kernels.reshape((*kernels.shape[:2], *over.kernel))
    group, channels = attributes(node).get("group", 1), value.shape[1]
    quantised = Constant(values=bias(writer, node, len(kernels), scales * value.quantum.scale)).values
    source, padding = padded(writer, value, over)
    name, clamp = writer.activation(node)
    made = writer.new(writer.source.shape(name), writer.quantum(name))
    how: dict[str, Any] = {
        "padding": PADDING[padding],
        "stride_h": over.strides[0], "stride_w": over.strides[1],
        "dilation_h_factor": over.dilations[0], "dilation_w_factor": over.dilations[1],
        "fused_activation_function": clamp,
    }  # fmt: skip

    def operands(own: slice, laid: Array, axis: int) -> list[int]:
        label, of = writer.layouts.name, scales[own] * value.quantum.scale
        return [
            writer.graph.constant(f"{label}/weights", laid, scales[own].tolist(), axis=axis),
            writer.graph.constant(f"{label}/bias", quantised[own], of.tolist()),
        ]

    if group == channels and group > 1:
        laid = kernels.transpose(1, 2, 3, 0)
        inputs = [source, *operands(slice(None), laid, 3)]
        multiplier = len(kernels) // channels
        writer.graph.add(
            "DEPTHWISE_CONV_2D", inputs, made.tensor, "DepthwiseConv2DOptions", depth_multiplier=multiplier, **how
        )
    elif group == 1:
        inputs = [source, *operands(slice(None), kernels.transpose(0, 2, 3, 1), 0)]
        writer.graph.add("CONV_2D", inputs, made.tensor, "Conv2DOptions", **how)
    else:
        _groups(writer, node, replace(made), source, kernels, group, operands, how)
    writer.values[name] = made


def _groups(
    writer: Writer, node: NodeProto, made: Value, source: int, kernels: Array, group: int, operands: Any, how: Any
) -> None:
    """Write a Conv of several groups: channels apart, a Conv for each, and their results joined."""
    if group > MOST_GROUPS:
        raise CannotLoad(f"{called(node)}: {group} groups; up to {MOST_GROUPS} are written, each as an operator")
    label, outputs, inputs = writer.layouts.name, len(kernels) // group, kernels.shape[1]
    shape = tuple(writer.graph.tensors[source].fields["shape"])
    quantum = writer.value(node.input[0]).quantum
    parts = []
    for number in range(group):
        begin = (0, 0, 0, number * inputs)
        part = writer.graph.tensor(f"{label}/slice", (*shape[:3], inputs), quantum)
        places = [writer.graph.constant(f"{label}/at", ints(each)) for each in (begin, (*shape[:3], inputs))]
        writer.graph.add("SLICE", [source, *places], part)
        own = slice(number * outputs, (number + 1) * outputs)
        parts.append(writer.graph.tensor(f"{label}/group", (*made.held[:3], outputs), made.quantum))
        wanted = [part, *operands(own, kernels[own].transpose(0, 2, 3, 1), 0)]
        writer.graph.add("CONV_2D", wanted, parts[-1], "Conv2DOptions", **how)
    writer.graph.add("CONCATENATION", parts, made.tensor, "ConcatenationOptions", axis=3)


def conv_transpose(writer: Writer, node: NodeProto) -> None:
    """Write a ConvTranspose of one group without dilation; pads are cut off behind it."""
    value = writer.value(node.input[0])
    kernels, scales = weights(writer, node, 1)
    given = attributes(node)
    over = window(node, kernels.shape[2:], value.shape[2:])
    if given.get("group", 1) != 1 or over.dilations != (1, 1) or given.get("auto_pad", "NOTSET") != "NOTSET":
        raise CannotLoad(f"{called(node)}: groups, dilation or auto_pad; TFLite's TRANSPOSE_CONV has none of these")
    kernels = kernels.reshape((*kernels.shape[:2], *over.kernel))
    order = usual(len(value.shape))
    stored = value.stored(order)
    full = tuple((size - 1) * s + k for size, s, k in zip(stored[1:3], over.strides, over.kernel, strict=True))
    result = writer.source.shape(node.output[0])
    quantum, label = writer.quantum(node.output[0]), writer.layouts.name
    wanted: Shape = tuple(1 if axis < 0 else result[axis] for axis in order)
    if any(b + w > f for b, w, f in zip(over.begin, wanted[1:3], full, strict=True)):
        raise CannotLoad(f"{called(node)}: output_padding beyond the last tap")
    whole = (stored[0], *full, kernels.shape[1])
    tensor = writer.graph.tensor(label, whole, quantum)
    of = scales * value.quantum.scale
    operands = [
        writer.graph.constant(f"{label}/shape", ints(whole)),
        writer.graph.constant(f"{label}/weights", kernels.transpose(1, 2, 3, 0), scales.tolist()),
        writer.layouts.at(value, order),
        writer.graph.constant(f"{label}/bias", bias(writer, node, kernels.shape[1], of), of.tolist()),
    ]
    options = {"padding": PADDING["VALID"], "stride_h": over.strides[0], "stride_w": over.strides[1]}
    writer.graph.add("TRANSPOSE_CONV", operands, tensor, "TransposeConvOptions", **options)
    made = writer.new(result, quantum)
    if made.held != whole:
        places = [writer.graph.constant(f"{label}/at", ints(each)) for each in ((0, *over.begin, 0), made.held)]
        writer.graph.add("SLICE", [tensor, *places], made.tensor)
    else:
        made = replace(made, tensor=tensor)
    writer.values[node.output[0]] = made


def pool(writer: Writer, node: NodeProto) -> None:
    """Write a MaxPool or AveragePool; the result is by the scale of what goes in."""
    value, given = writer.value(node.input[0]), attributes(node)
    over = window(node, given["kernel_shape"], value.shape[2:])
    if over.dilations != (1, 1) or given.get("ceil_mode", 0) or len(node.output) > 1:
        raise CannotLoad(f"{called(node)}: dilation, ceil_mode or indices; TFLite's poolings have none of these")
    order = usual(len(value.shape))
    source, padding = writer.layouts.at(value, order), over.padding(value.stored(order)[1:3])
    counts = node.op_type == "AveragePool" and given.get("count_include_pad", 0)
    if padding == "SAME" and counts:
        padding = None
    if padding is None and not counts:
        raise CannotLoad(f"{called(node)}: pads that are neither SAME nor VALID")
    if padding is None:
        source, padding = padded(writer, value, over)
        if padding == "SAME":
            raise CannotLoad(f"{called(node)}: count_include_pad")
    made = writer.new(writer.source.shape(node.output[0]), value.quantum)
    operator = "MAX_POOL_2D" if node.op_type == "MaxPool" else "AVERAGE_POOL_2D"
    writer.graph.add(
        operator, [source], made.tensor, "Pool2DOptions", padding=PADDING[padding],
        stride_h=over.strides[0], stride_w=over.strides[1], filter_height=over.kernel[0], filter_width=over.kernel[1],
    )  # fmt: skip
    writer.values[node.output[0]] = made


def mean(writer: Writer, node: NodeProto) -> None:
    """Write a GlobalAveragePool, or a ReduceMean over all spatial axes."""
    value = writer.value(node.input[0])
    rank, given = len(value.shape), attributes(node)
    spatial = list(range(2, rank))
    axes, keep = spatial, True
    if node.op_type == "ReduceMean":
        named = given["axes"] if "axes" in given else writer.source.numbers(node, 1) or range(rank)
        axes, keep = sorted(axis % rank for axis in named), bool(given.get("keepdims", 1))
    if axes != spatial or rank not in (3, 4):
        raise CannotLoad(f"{called(node)}: a mean over axes {axes}; over all spatial axes it is written")
    order = usual(rank)
    result = (*value.shape[:2], *([1] * len(spatial)))
    made = writer.new(result, writer.quantum(node.output[0]))
    places = writer.graph.constant(f"{writer.layouts.name}/axes", ints([1, 2]))
    writer.graph.add("MEAN", [writer.layouts.at(value, order), places], made.tensor, "ReducerOptions", keep_dims=True)
    writer.values[node.output[0]] = made if keep else writer.layouts.reshape(made, value.shape[:2])
