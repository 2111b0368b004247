"""Where the elements of ONNX tensors lie in the tensors of a TFLite model: the only file that lays them out anew.

A tensor is written in any order of its axes, and a Reshape or Transpose of ONNX changes what is known of that order
only. An operator that needs its axes in one order asks for it; then, and only if the elements lie otherwise, a
TRANSPOSE is written. Axes of extent 1 lie everywhere.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dilrewrite.tflite.graph import Graph, Quantum

Shape = tuple[int, ...]
Order = tuple[int, ...]

UNIT = -1
"""In an order: one more axis of extent 1."""

ORDERS: dict[int, Order] = {3: (0, UNIT, 2, 1), 4: (0, 2, 3, 1), 5: (0, 2, 3, 4, 1)}
"""Channels last, by the rank that the tensor has in ONNX; 1-D data get a height of 1."""


def usual(rank: int) -> Order:
    """Return the order in which operators take tensors of a rank."""
    return ORDERS.get(rank, tuple(range(rank)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A tensor of ONNX of `shape` as it lies in a `tensor` of shape `held`.

    `order`: its axes of more than one element in the order in which they lie, outermost first.
    """

    tensor: int
    held: Shape
    shape: Shape
    order: Order
    quantum: Quantum

    def stored(self, order: Order) -> Shape:
        """Return the shape of a tensor with the axes in an order."""
        return tuple(1 if axis == UNIT else self.shape[axis] for axis in order)


def long(order: Order, shape: Shape) -> Order:
    """Return the axes of an order that have more than one element."""
    return tuple(axis for axis in order if axis != UNIT and shape[axis] > 1)


def transposed(value: Value, permutation: Sequence[int]) -> Value:
    """Return the value whose axis `i` is axis `permutation[i]`: nothing moves."""
    return replace(
        value,
        shape=tuple(value.shape[axis] for axis in permutation),
        order=tuple(permutation.index(axis) for axis in value.order),
    )


@dataclass
class Layouts:
    """Lays values out in the order that is asked for, each only once."""

    graph: Graph
    name: str = ""
    """What new tensors are called."""
    seen: dict[tuple[int, str, Shape, Shape], int] = field(default_factory=dict)

    def at(self, value: Value, order: Order) -> int:
        """Return a tensor that holds the value with its axes in an order, which names every long one."""
        return self.shaped(value, order, value.stored(order))

    def shaped(self, value: Value, order: Order, shape: Shape) -> int:
        """Return a tensor of a shape that holds a value with its axes in an order."""
        wanted = long(order, value.shape)
        tensor, held = value.tensor, value.held
        if wanted != value.order:
            tensor, held = self._turned(value, wanted)
        return self._shaped(tensor, held, shape, value.quantum)

    def _shaped(self, tensor: int, held: Shape, shape: Shape, quantum: Quantum) -> int:
        """Return a tensor of the same elements and another shape."""
        if held == shape:
            return tensor
        key = tensor, "RESHAPE", shape, ()
        if key not in self.seen:
            sizes = self.graph.constant(f"{self.name}/shape", np.asarray(shape, np.int32))
            self.seen[key] = self.graph.tensor(f"{self.name}/reshape", shape, quantum)
            self.graph.add("RESHAPE", [tensor, sizes], self.seen[key], "ReshapeOptions", new_shape=list(shape))
        return self.seen[key]

    def _turned(self, value: Value, wanted: Order) -> tuple[int, Shape]:
        """Write a TRANSPOSE of as few axes as will do; return its tensor and shape."""
        runs = _runs(value.order, wanted)
        sizes = [math.prod(value.shape[axis] for axis in run) for run in runs]
        turn = sorted(range(len(runs)), key=lambda number: wanted.index(runs[number][0]))
        shape, held = tuple(sizes[number] for number in turn), tuple(sizes)
        source = self._shaped(value.tensor, value.held, held, value.quantum)
        key = source, "TRANSPOSE", held, tuple(turn)
        if key not in self.seen:
            permutation = self.graph.constant(f"{self.name}/permutation", np.asarray(turn, np.int32))
            self.seen[key] = self.graph.tensor(f"{self.name}/transpose", shape, value.quantum)
            self.graph.add("TRANSPOSE", [source, permutation], self.seen[key])
        return self.seen[key], shape

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Return the elements of a value, in ONNX's order, as a tensor of another shape."""
        groups = _groups(value.shape, shape)
        order = _kept(value.order, groups)
        if order is None:
            blocks = _blocks(value, shape, groups)
            wanted = tuple(itertools.chain.from_iterable(axes for axes, _ in blocks))
            tensor, held = self._turned(value, wanted)
            order = tuple(itertools.chain.from_iterable(made for _, made in blocks))
            value = replace(value, tensor=tensor, held=held)
        return replace(value, shape=shape, order=order)


def _runs(order: Order, wanted: Order) -> list[list[int]]:
    """Return the axes in the order in which they lie, as runs that stay together."""
    runs: list[list[int]] = []
    for axis in order:
        place = wanted.index(axis)
        if runs and place and wanted[place - 1] == runs[-1][-1]:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


Group = tuple[Order, Order]
"""Long axes before and after a Reshape that hold the same elements."""


def _groups(before: Shape, after: Shape) -> list[Group]:
    """Return the smallest groups of axes that a Reshape makes of one another."""
    groups: list[Group] = []
    taken, made = [], []
    old, new = ([axis for axis, size in enumerate(shape) if size > 1] for shape in (before, after))
    inside = outside = 1
    while old or new:
        if inside <= outside and old:
            taken.append(old.pop(0))
            inside *= before[taken[-1]]
        else:
            made.append(new.pop(0))
            outside *= after[made[-1]]
        if inside == outside:
            groups.append((tuple(taken), tuple(made)))
            taken, made, inside, outside = [], [], 1, 1
    return groups


def _kept(order: Order, groups: Sequence[Group]) -> Order | None:
    """Return in which order the new axes lie where nothing moves; None where something must."""
    found: list[int] = []
    rest = list(order)
    while rest:
        taken, made = next(group for group in groups if rest[0] in group[0])
        if tuple(rest[: len(taken)]) != taken:
            return None
        found += made
        del rest[: len(taken)]
    return tuple(found)


def _blocks(value: Value, shape: Shape, groups: Sequence[Group]) -> list[Group]:
    """Return the groups in the order in which they shall lie: channels last, or near to where they are."""
    wanted = long(usual(len(shape)), shape)
    starts = [wanted.index(made[0]) if made else 0 for _, made in groups]
    whole = all(wanted[at : at + len(made)] == made for at, (_, made) in zip(starts, groups, strict=True))
    keys = starts if whole else [value.order.index(taken[0]) for taken, _ in groups]
    return [group for _, group in sorted(zip(keys, groups, strict=True), key=lambda each: each[0])]
