"""Writes operators that only move elements: what comes out is quantised as what goes in."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from dilrewrite.runtimes import CannotLoad
from dilrewrite.tflite.source import Constant, attributes, called, shifted
from dilrewrite.tflite.values import UNIT, Order, Shape, Value, long, transposed, usual
from dilrewrite.tflite.writer import LEAST, MOST, Later, Writer, ints


def same(writer: Writer, node: NodeProto) -> None:
    """Let the result be what goes in."""
    if node.input[0] in writer.later:
        writer.later[node.output[0]] = writer.later[node.input[0]]
    else:
        writer.values[node.output[0]] = writer.value(node.input[0])


def reshape(writer: Writer, node: NodeProto) -> None:
    """Write what changes the shape only: Reshape, Squeeze, Unsqueeze, Flatten; of phases by what it means."""
    (source, *_), shape = node.input, writer.source.shape(node.output[0])
    later = writer.later.get(source)
    apart, image = (None, None) if later is None else (_apart(writer, later, shape), _woven(writer, later, shape))
    if apart is not None:
        whole = functools.partial(_reshaped, writer, source, shape)
        writer.later[node.output[0]] = replace(apart, whole=whole)
    else:
        writer.values[node.output[0]] = image or _reshaped(writer, source, shape)


def _reshaped(writer: Writer, name: str, shape: Shape) -> Value:
    return writer.layouts.reshape(writer.value(name), shape)


def transpose(writer: Writer, node: NodeProto) -> None:
    """Note that axes have other places."""
    (source, *_), later = node.input, writer.later.get(node.input[0])
    default = tuple(reversed(range(len(writer.source.shape(source)))))
    permutation = tuple(attributes(node).get("perm", default))
    if later is not None and later.blocks:
        turned = _turned(later, permutation)
        writer.later[node.output[0]] = replace(turned, whole=lambda: transposed(writer.value(source), permutation))
    else:
        writer.values[node.output[0]] = transposed(writer.value(source), permutation)


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
    values = [writer.requantised(value, quantum) for value in values]
    if axis == 1 and len({value.shape for value in values}) == 1:  # perhaps the phases of a DepthToSpace
        label = writer.layouts.name

        def whole() -> Value:
            writer.layouts.name = label
            return joined(writer, values, order, axis)

        writer.later[node.output[0]] = Later(quantum=quantum, whole=whole, parts=values)
    else:
        writer.values[node.output[0]] = joined(writer, values, order, axis)


def joined(writer: Writer, values: Sequence[Value], order: Order, axis: int) -> Value:
    """Write what joins values along an axis of ONNX, with all of them in an order."""
    quantum, place = values[0].quantum, order.index(axis)
    sizes = list(values[0].shape)
    sizes[axis] = sum(value.shape[axis] for value in values)
    shape = tuple(sizes)
    held = [list(value.stored(order)) for value in values]
    if len(order) > len(usual(4)):
        place, held = _flat(held, place)
    parts = [writer.layouts.shaped(value, order, tuple(own)) for value, own in zip(values, held, strict=True)]
    whole = list(held[0])
    whole[place] = sum(each[place] for each in held)
    tensor = writer.graph.tensor(writer.layouts.name, whole, quantum)
    writer.graph.add("CONCATENATION", parts, tensor, "ConcatenationOptions", axis=place)
    return replace(values[0], tensor=tensor, held=tuple(whole), shape=shape, order=long(order, shape))


def _flat(held: Sequence[Sequence[int]], place: int) -> tuple[int, list[list[int]]]:
    """Return the shapes of parts with at most four axes, and which one of these joins them.

    The axis that joins stands with the long one behind it.
    """
    outer = [size for size in held[0][:place] if size > 1]
    inner = [size for size in held[0][place + 1 :] if size > 1]
    behind, inside = math.prod(inner[:1]), [math.prod(inner[1:])] if len(inner) > 1 else []
    room = 3 - len(inside)
    outer = [1] * (room - len(outer)) + outer
    merged = len(outer) - room + 1
    lead = [math.prod(outer[:merged]), *outer[merged:]]
    return room, [[*lead, each[place] * behind, *inside] for each in held]


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
    shape, given = writer.source.shape(node.input[0]), attributes(node)
    if "starts" in given:
        starts, ends = list(given["starts"]), list(given["ends"])
        axes, steps = list(given.get("axes", range(len(starts)))), [1] * len(starts)
    else:
        starts, ends = (writer.source.numbers(node, place) or [] for place in (1, 2))
        axes = writer.source.numbers(node, 3) or list(range(len(starts)))
        steps = writer.source.numbers(node, 4) or [1] * len(starts)
    rank = len(shape)
    cuts = [range(size) for size in shape]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step < 1:
            raise CannotLoad(f"{called(node)}: step {step} is below 1")
        cuts[axis % rank] = range(shape[axis % rank])[start:end:step]
    later = writer.later.get(node.input[0])
    whole = [len(own) == size for own, size in zip(cuts, shape, strict=True)]
    phase = later.phase(cuts[1]) if later is not None and whole.count(False) == 1 and not whole[1] else None
    if phase is not None:
        writer.values[node.output[0]] = phase
        return
    writer.values[node.output[0]] = cut(writer, writer.value(node.input[0]), cuts)


def cut(writer: Writer, value: Value, cuts: Sequence[range]) -> Value:
    """Write what takes a range of each axis of a value; steps by a Reshape where they divide, else by STRIDED_SLICE.

    One phase of an axis, every `step`-th element, is one column of that axis as rows of `step` elements. NPUs run that
    where they do not run steps.
    """
    stepped = [axis for axis, own in enumerate(cuts) if own.step > 1 and len(own) > 1]
    dividing = [axis for axis in stepped if value.shape[axis] % cuts[axis].step == 0]
    if dividing:
        shape: list[int] = []
        inside: list[range] = []
        for axis, (own, size) in enumerate(zip(cuts, value.shape, strict=True)):
            if axis in dividing:
                row, column = divmod(own.start, own.step)
                shape += [size // own.step, own.step]
                inside += [range(row, row + len(own)), range(column, column + 1)]
            else:
                shape.append(size)
                inside.append(own)
        made = cut(writer, writer.layouts.reshape(value, tuple(shape)), inside)
        return writer.layouts.reshape(made, tuple(map(len, cuts)))
    for axis in stepped[1:]:  # STRIDED_SLICE of one axis after the other
        value = cut(writer, value, [own if at == axis else range(value.shape[at]) for at, own in enumerate(cuts)])
    cuts = [range(len(own)) if axis in stepped[1:] else own for axis, own in enumerate(cuts)]
    if all(len(own) == size for own, size in zip(cuts, value.shape, strict=True)):
        return value
    return _strided(writer, value, cuts) if stepped else _sliced(writer, value, cuts)


def _strided(writer: Writer, value: Value, cuts: Sequence[range]) -> Value:
    order = order_of(value)
    made = writer.new(tuple(map(len, cuts)), value.quantum, order)
    chosen = [range(1) if axis < 0 else cuts[axis] for axis in order]
    ends = [own.start + (len(own) - 1) * own.step + 1 for own in chosen]
    places = [[own.start for own in chosen], ends, [own.step for own in chosen]]
    inputs = [writer.layouts.at(value, order), *(_numbers(writer, each) for each in places)]
    writer.graph.add("STRIDED_SLICE", inputs, made.tensor, "StridedSliceOptions")
    return made


def _sliced(writer: Writer, value: Value, cuts: Sequence[range]) -> Value:
    """Write a SLICE; of more than four axes one that is cut is taken together with what lies inside of it."""
    order = order_of(value)
    chosen = [range(1) if axis < 0 else cuts[axis] for axis in order]
    sizes, starts, counts = list(value.stored(order)), [own.start for own in chosen], [len(own) for own in chosen]
    if len(order) > len(usual(4)):
        for place in reversed(range(1, len(order))):
            if sizes[place] == counts[place]:
                inside = sizes[place]
                for each in (sizes, starts, counts):
                    each[place - 1] *= inside
                    del each[place]
        lead = [1] * (4 - len(sizes))
        sizes, starts, counts = lead + sizes, [0] * len(lead) + starts, lead + counts
    source = writer.layouts.shaped(value, order, tuple(sizes))
    tensor = writer.graph.tensor(writer.layouts.name, counts, value.quantum)
    writer.graph.add("SLICE", [source, _numbers(writer, starts), _numbers(writer, counts)], tensor)
    shape = tuple(map(len, cuts))
    return replace(value, tensor=tensor, held=tuple(counts), shape=shape, order=long(order, shape))


def _numbers(writer: Writer, values: Sequence[int]) -> int:
    return writer.graph.constant(f"{writer.layouts.name}/at", ints(values))


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
    """Write a SpaceToDepth, both put the channels innermost; or phase by phase where it is cut into its phases."""
    value, block, label = writer.value(node.input[0]), attributes(node)["blocksize"], writer.layouts.name
    channels = value.shape[1]

    def phase(cut_out: range) -> Value | None:
        if len(cut_out) != channels or cut_out.start % channels:
            return None
        row, column = divmod(cut_out.start // channels, block)
        batch, of, height, width = map(range, value.shape)
        return cut(writer, value, [batch, of, height[row::block], width[column::block]])

    def whole() -> Value:
        writer.layouts.name = label
        return _blocks(writer, node, "SPACE_TO_DEPTH")

    writer.later[node.output[0]] = Later(quantum=value.quantum, whole=whole, phase=phase)


def depth_to_space(writer: Writer, node: NodeProto) -> None:
    """Write a DepthToSpace; of phases that were joined for it, and in mode CRD, by what it means."""
    given, later = attributes(node), writer.later.get(node.input[0])
    if given.get("mode", "DCR") == "DCR":
        shape = writer.source.shape(node.output[0])
        image = None if later is None else _interleaved(writer, later, given["blocksize"], shape)
        writer.values[node.output[0]] = image or _blocks(writer, node, "DEPTH_TO_SPACE")
        return
    value = writer.value(node.input[0])
    batch, channels, height, width = value.shape
    block = given["blocksize"]
    apart = writer.layouts.reshape(value, (batch, channels // block**2, block, block, height, width))
    turned = transposed(apart, (0, 1, 4, 2, 5, 3))
    shape = (batch, channels // block**2, height * block, width * block)
    writer.values[node.output[0]] = writer.layouts.reshape(turned, shape)


def _interleaved(writer: Writer, later: Later, block: int, shape: Shape) -> Value | None:
    """Write what a DepthToSpace makes of phases that were joined for it, by the Reshapes and the Transpose it means."""
    if not later.parts:
        return None
    batch, channels, height, width = later.parts[0].shape
    apart = _apart(writer, later, (batch, block, block, channels, height, width))
    return None if apart is None else _woven(writer, _turned(apart, (0, 3, 4, 1, 5, 2)), shape)


def _apart(writer: Writer, later: Later, shape: Shape) -> Later | None:
    """Return phases that are joined along the channels, [N, b1*..*C, ..], as those along axes of their own."""
    if not later.parts or later.blocks:
        return None
    batch, *behind = later.parts[0].shape
    blocks = shape[1 : len(shape) - len(behind)]
    if shape != (batch, *blocks, *behind) or math.prod(blocks) != len(later.parts):
        return None
    parts = [writer.layouts.reshape(each, (batch, *[1] * len(blocks), *behind)) for each in later.parts]
    return replace(later, parts=parts, blocks=dict(enumerate(blocks, 1)))


def _turned(later: Later, permutation: Sequence[int]) -> Later:
    """Return phases along axes of their own with axis `permutation[i]` as axis `i`."""
    parts = [transposed(each, permutation) for each in later.parts]
    return replace(later, parts=parts, blocks={permutation.index(at): size for at, size in later.blocks.items()})


def _woven(writer: Writer, later: Later, shape: Shape) -> Value | None:
    """Write the image of phases along spatial axes, joined axis by axis. Nothing moves.

    [N, M, M, C] becomes [N, M, M, b*C], b columns each, and [N, M, b*M, b*C], b rows each: [N, M*b, M*b, C].
    """
    sizes = [later.blocks.get(axis, size) for axis, size in enumerate(later.parts[0].shape)] if later.blocks else []
    groups: list[range] = []  # the axes that become one
    for size in shape:
        first = groups[-1].stop if groups else 0
        ends = (end for end in range(first + 1, len(sizes) + 1) if math.prod(sizes[first:end]) == size)
        groups.append(range(first, next(ends, first)))
    if sum(map(len, groups)) != len(sizes) or [*map(len, groups[:2])] != [1, 1]:
        return None
    order = tuple(at for axis in usual(len(shape)) for at in ([UNIT] if axis == UNIT else groups[axis]))
    parts = list(later.parts)
    for axis, size in [*later.blocks.items()][::-1]:
        parts = [joined(writer, parts[at : at + size], order, axis) for at in range(0, len(parts), size)]
    return writer.layouts.reshape(parts[0], shape)


def _blocks(writer: Writer, node: NodeProto, operator: str) -> Value:
    value = writer.value(node.input[0])
    made = writer.new(writer.source.shape(node.output[0]), value.quantum)
    options = {"SPACE_TO_DEPTH": "SpaceToDepthOptions", "DEPTH_TO_SPACE": "DepthToSpaceOptions"}[operator]
    source = writer.layouts.at(value, usual(4))
    writer.graph.add(operator, [source], made.tensor, options, block_size=attributes(node)["blocksize"])
    return made


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
