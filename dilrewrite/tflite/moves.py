"""Writes operators that only move elements: what comes out is quantised as what goes in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from dilrewrite.runtimes import CannotLoad
from dilrewrite.tflite.source import Constant, attributes, called, shifted
from dilrewrite.tflite.values import Order, Value, transposed, usual
from dilrewrite.tflite.writer import LEAST, MOST, Writer, ints


def same(writer: Writer, node: NodeProto) -> None:
    """Let the result be what goes in."""
    writer.values[node.output[0]] = writer.value(node.input[0])


def reshape(writer: Writer, node: NodeProto) -> None:
    """Write what changes the shape only: Reshape, Squeeze, Unsqueeze, Flatten."""
    value = writer.value(node.input[0])
    writer.values[node.output[0]] = writer.layouts.reshape(value, writer.source.shape(node.output[0]))


def transpose(writer: Writer, node: NodeProto) -> None:
    """Note that axes have other places."""
    value = writer.value(node.input[0])
    default = tuple(reversed(range(len(value.shape))))
    writer.values[node.output[0]] = transposed(value, tuple(attributes(node).get("perm", default)))


def order_of(value: Value) -> Order:
    """Return an order that names all axes: the usual one up to rank 4, else the one in which they lie."""
    rank = len(value.shape)
    if rank in (3, 4):
        return usual(rank)
    return (*value.order, *(axis for axis in range(rank) if axis not in value.order))


def concat(writer: Writer, node: NodeProto) -> None:
    """Write a Concat; its parts get the scale of the whole."""
    values = _parts(writer, node)
    order, rank = order_of(values[0]), len(values[0].shape)
    axis = attributes(node)["axis"] % rank
    quantum = writer.source.quantum(node.output[0]) or values[0].quantum
    parts = [writer.layouts.at(writer.requantised(value, quantum), order) for value in values]
    sizes = list(values[0].shape)
    sizes[axis] = sum(value.shape[axis] for value in values)
    made = writer.new(tuple(sizes), quantum, order)
    writer.graph.add("CONCATENATION", parts, made.tensor, "ConcatenationOptions", axis=order.index(axis))
    writer.values[node.output[0]] = made


def _parts(writer: Writer, node: NodeProto) -> list[Value]:
    """Return what a Concat joins; constants that are integers already are so by the scale of what is computed."""
    known = writer.source.constants
    computed = next((writer.value(name) for name in node.input if name not in known), None)
    for name in node.input:
        given = known.get(name)
        if computed and given and given.scales is None and given.values.dtype in (np.int8, np.uint8):
            scales, zeros = np.asarray([computed.quantum.scale]), np.asarray([computed.quantum.zero])
            integers = Constant(values=shifted(given.values), scales=scales, zeros=zeros)
            writer.values[name] = writer.constant(name, integers)
    return [writer.value(name) for name in node.input]


def slice_(writer: Writer, node: NodeProto) -> None:
    """Write a Slice forwards."""
    value, given = writer.value(node.input[0]), attributes(node)
    if "starts" in given:
        starts, ends = list(given["starts"]), list(given["ends"])
        axes, steps = list(given.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = (writer.source.numbers(node, place) or [] for place in (1, 2))
        axes = writer.source.numbers(node, 3) or list(range(len(starts)))
        steps = writer.source.numbers(node, 4) or [1] * len(starts)
    rank = len(value.shape)
    cuts = [range(size) for size in value.shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise CannotLoad(f"{called(node)}: step {step} is below 1")
        cuts[axis % rank] = range(value.shape[axis % rank])[start:end:step]
    writer.values[node.output[0]] = cut(writer, value, cuts)


def cut(writer: Writer, value: Value, cuts: Sequence[range]) -> Value:
    """Write what takes a range of each axis of a value: steps along one axis by a Reshape, along two by STRIDED_SLICE.

    One phase of an axis, every `step`-th element, is one column of that axis as rows of `step` elements. NPUs run that
    where they do not run steps.
    """
    stepped = [axis for axis, own in enumerate(cuts) if own.step > 1 and len(own) > 1]
    if len(stepped) > 1:
        for axis in stepped:
            value = cut(writer, value, [own if at == axis else range(value.shape[at]) for at, own in enumerate(cuts)])
        return cut(writer, value, [range(value.shape[at]) if at in stepped else own for at, own in enumerate(cuts)])
    if stepped:
        (axis,) = stepped
        step, rows = cuts[axis].step, value.shape[axis] // cuts[axis].step
        row, column = divmod(cuts[axis].start, step)
        if value.shape[axis] % step == 0:
            shape = (*value.shape[:axis], rows, step, *value.shape[axis + 1 :])
            inside = [range(row, row + len(cuts[axis])), range(column, column + 1)]
            made = cut(writer, writer.layouts.reshape(value, shape), [*cuts[:axis], *inside, *cuts[axis + 1 :]])
            return writer.layouts.reshape(made, tuple(map(len, cuts)))
    if all(len(own) == size for own, size in zip(cuts, value.shape, strict=True)):
        return value
    order = order_of(value)
    source = writer.layouts.at(value, order)
    made = writer.new(tuple(map(len, cuts)), value.quantum, order)
    chosen = [range(1) if axis < 0 else cuts[axis] for axis in order]
    if stepped:
        ends = [own.start + (len(own) - 1) * own.step + 1 for own in chosen]
        places = [[own.start for own in chosen], ends, [own.step for own in chosen]]
        kind, options = "STRIDED_SLICE", "StridedSliceOptions"
    else:
        places = [[own.start for own in chosen], [len(own) for own in chosen]]
        kind, options = "SLICE", ""
    constants = [writer.graph.constant(f"{writer.layouts.name}/at", ints(each)) for each in places]
    writer.graph.add(kind, [source, *constants], made.tensor, options)
    return made


def split(writer: Writer, node: NodeProto) -> None:
    """Write a Split as slices."""
    value = writer.value(node.input[0])
    axis, begin = attributes(node).get("axis", 0) % len(value.shape), 0
    for name in node.output:
        size = writer.source.shape(name)[axis]
        own = [range(begin, begin + size) if at == axis else range(of) for at, of in enumerate(value.shape)]
        writer.values[name] = cut(writer, value, own)
        begin += size


def pad(writer: Writer, node: NodeProto) -> None:
    """Write a Pad with a constant; negative pads are cut off."""
    value, given = writer.value(node.input[0]), attributes(node)
    rank = len(value.shape)
    if given.get("mode", "constant") != "constant":
        raise CannotLoad(f"{called(node)}: mode {given['mode']}; constant is written")
    pads = list(given["pads"]) if "pads" in given else writer.source.numbers(node, 1) or []
    axes = [axis % rank for axis in writer.source.numbers(node, 3) or range(rank)]
    amounts = [(0, 0)] * rank
    for place, axis in enumerate(axes):
        amounts[axis] = pads[place], pads[place + len(axes)]
    kept = [range(max(0, -a), size - max(0, -b)) for size, (a, b) in zip(value.shape, amounts, strict=True)]
    value = cut(writer, value, kept)
    amounts = [(max(0, a), max(0, b)) for a, b in amounts]
    if not any(map(any, amounts)):
        writer.values[node.output[0]] = value
        return
    order = order_of(value)
    shape = tuple(size + sum(own) for size, own in zip(value.shape, amounts, strict=True))
    made = writer.new(shape, value.quantum, order)
    laid = np.asarray([(0, 0) if axis < 0 else amounts[axis] for axis in order], np.int32)
    inputs = [writer.layouts.at(value, order), writer.graph.constant(f"{writer.layouts.name}/pads", laid)]
    fill = filled(writer, node, value)
    if fill != value.quantum.zero:
        scale = [value.quantum.scale]
        inputs.append(
            writer.graph.constant(
                f"{writer.layouts.name}/fill", np.asarray([fill], np.int8), scale, zero=value.quantum.zero
            )
        )
    writer.graph.add("PADV2" if len(inputs) > 2 else "PAD", inputs, made.tensor)
    writer.values[node.output[0]] = made


def filled(writer: Writer, node: NodeProto, value: Value) -> int:
    """Return the integer that a Pad fills with."""
    name = node.input[2] if len(node.input) > 2 else ""
    if not name:
        real = float(attributes(node).get("value", 0.0))
    elif name not in writer.source.constants:
        raise CannotLoad(f"{called(node)}: what it fills with is no constant")
    else:
        given = writer.source.constants[name]
        if given.scales is None and given.values.dtype in (np.uint8, np.int8):  # a Pad of integers
            return int(given.values.item()) - (128 if given.values.dtype == np.uint8 else 0)
        real = float(given.real.item())
    return int(np.clip(np.rint(real / value.quantum.scale) + value.quantum.zero, LEAST, MOST))


def space_to_depth(writer: Writer, node: NodeProto) -> None:
    """Write a SpaceToDepth: both put the channels innermost."""
    _blocks(writer, node, "SPACE_TO_DEPTH")


def depth_to_space(writer: Writer, node: NodeProto) -> None:
    """Write a DepthToSpace; in mode CRD, which TFLite has not, by what it means."""
    value, given = writer.value(node.input[0]), attributes(node)
    if given.get("mode", "DCR") == "DCR":
        _blocks(writer, node, "DEPTH_TO_SPACE")
        return
    batch, channels, height, width = value.shape
    block = given["blocksize"]
    apart = writer.layouts.reshape(value, (batch, channels // block**2, block, block, height, width))
    turned = transposed(apart, (0, 1, 4, 2, 5, 3))
    shape = (batch, channels // block**2, height * block, width * block)
    writer.values[node.output[0]] = writer.layouts.reshape(turned, shape)


def _blocks(writer: Writer, node: NodeProto, operator: str) -> None:
    value = writer.value(node.input[0])
    made = writer.new(writer.source.shape(node.output[0]), value.quantum)
    options = {"SPACE_TO_DEPTH": "SpaceToDepthOptions", "DEPTH_TO_SPACE": "DepthToSpaceOptions"}[operator]
    source = writer.layouts.at(value, usual(4))
    writer.graph.add(operator, [source], made.tensor, options, block_size=attributes(node)["blocksize"])
    writer.values[node.output[0]] = made


def gather(writer: Writer, node: NodeProto) -> None:
    """Write a Gather by constant indices along one axis."""
    value = writer.value(node.input[0])
    rank = len(value.shape)
    axis = attributes(node).get("axis", 0) % rank
    indices = [index % value.shape[axis] for index in writer.source.numbers(node, 1) or []]
    if len(writer.source.shape(node.input[1])) != 1:
        raise CannotLoad(f"{called(node)}: indices that are no list")
    order = order_of(value)
    shape = (*value.shape[:axis], len(indices), *value.shape[axis + 1 :])
    made = writer.new(shape, value.quantum, order)
    places = writer.graph.constant(f"{writer.layouts.name}/indices", ints(indices))
    inputs = [writer.layouts.at(value, order), places]
    writer.graph.add("GATHER", inputs, made.tensor, "GatherOptions", axis=order.index(axis))
    writer.values[node.output[0]] = replace(made)
