"""Space-to-batch sandwiches as exporters write them, built operator by operator, apart from the tool's own forms."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, NodeProto, helper

from tests import models_for_tests as tiny

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandwich:
    """Pad to whole blocks, phases into the batch, Conv without pads, and back; the Conv that it is has pads `begin`
    and `end`.

    `how`: `depth` (SpaceToDepth on [C, N, H, W]), `reshape` (constant shapes) or `computed` (shapes of the batch and
    extents at run time; the batch only where `counted`, otherwise it is -1). `last`: channels stand last. `crop`: by
    `slice` or `split`. `chain`: operators behind the Conv. `wrong`: what is spoilt.
    """

    extents: tuple[int, ...] = (9, 11)
    kernel: tuple[int, ...] = (3, 3)
    block: tuple[int, ...] = (2, 2)
    begin: tuple[int, ...] = (2, 2)
    end: tuple[int, ...] = (2, 2)
    batch: int = 2
    counted: bool = False
    channels: int = 4
    outputs: int = 6
    group: int = 1
    bias: bool = True
    how: str = "reshape"
    last: bool = False
    crop: str = "slice"
    chain: tuple[str, ...] = ()
    known: bool = True
    opset: int = 17
    wrong: str = ""

    @property
    def rank(self) -> int:
        return len(self.kernel)


@dataclass
class _Graph:
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, Array] = field(default_factory=dict)

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"{op.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def ints(self, *values: int) -> str:
        name = f"ints_{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def constant(self, values: Array) -> str:
        name = f"constant_{len(self.weights)}"
        self.weights[name] = values
        return name

    def vector(self, *parts: str | int) -> str:
        names = [part if isinstance(part, str) else self.ints(part) for part in parts]
        return self.add("Concat", *names, axis=0)


def build(s: Sandwich) -> ModelProto:
    """Return x -> sandwich -> y."""
    g, rank = _Graph(), s.rank
    space = [1 + axis if s.last else 2 + axis for axis in range(rank)]
    begin, blocks = list(s.begin), list(s.block)
    whole = [e + a + b for e, a, b in zip(s.extents, s.begin, s.end, strict=True)]
    extra: list[int | str] = [-w % b for w, b in zip(whole, s.block, strict=True)]
    if s.how == "computed":
        extra = [_extra(g, space[axis], s, axis) for axis in range(rank)]
    x = _padded(g, s, space, begin, extra)
    order = [0, rank + 1, *range(1, rank + 1)]
    if s.last:  # what follows is written for channels first
        x = g.add("Transpose", x, perm=order)
    x = {"depth": _depth, "reshape": _split, "computed": _split}[s.how](g, s, x, [0 if isinstance(e, str) else
        (w + e) // b for w, e, b in zip(whole, extra, blocks, strict=True)])  # fmt: skip
    if s.wrong == "read inside":
        g.add("ReduceMax", x, keepdims=0)
    g.weights["w"] = whole_numbers(s.outputs, s.channels // s.group, *s.kernel)
    g.weights["b"] = whole_numbers(s.outputs, seed=1)
    y = g.add("Conv", x, "w", *(["b"] if s.bias else []), group=s.group, kernel_shape=s.kernel)
    for op in s.chain:
        y = _chained(g, op, y, s)
    y = {"depth": _space, "reshape": _joined, "computed": _joined}[s.how](g, s, y, [
        0 if isinstance(e, str) else (w + e) // b - k + 1
        for w, e, b, k in zip(whole, extra, blocks, s.kernel, strict=True)])  # fmt: skip
    sizes = [w - b * (k - 1) for w, b, k in zip(whole, blocks, s.kernel, strict=True)]
    if s.last:
        y = g.add("Transpose", y, perm=[0, *range(2, rank + 2), 1])
    y = _cropped(g, s, y, space, extra, sizes)
    g.add("Identity", y)
    g.nodes[-1].output[0] = "y"
    free = ["n", *[f"h{axis}" for axis in range(rank)]]
    dims = [s.batch, *s.extents] if s.known else free
    shape = [dims[0], *dims[1:], s.channels] if s.last else [dims[0], s.channels, *dims[1:]]
    outputs = {"y": None} if s.wrong != "read inside" else {"y": None, next(
        node.output[0] for node in g.nodes if node.op_type == "ReduceMax"): None}  # fmt: skip
    return tiny.build(g.nodes, {"x": shape}, outputs, g.weights, opset=s.opset)


def whole_numbers(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(np.float32)


def _extra(g: _Graph, place: int, s: Sandwich, axis: int) -> str:
    """(-(H + begin + end)) mod block, as nodes."""
    extent = g.add("Slice", g.add("Shape", "x"), g.ints(place), g.ints(place + 1))
    whole = g.add("Add", extent, g.ints(s.begin[axis] + s.end[axis] + s.block[axis] - 1))
    blocks = g.add("Mul", g.add("Div", whole, g.ints(s.block[axis])), g.ints(s.block[axis]))
    return g.add("Sub", g.add("Add", blocks, g.ints(s.block[axis] - 1)), whole)


def _padded(g: _Graph, s: Sandwich, space: Sequence[int], begin: Sequence[int], extra: Sequence[int | str]) -> str:
    zeros = [0] * (s.rank + 2)
    front: list[int | str] = [*zeros]
    back: list[int | str] = [*zeros]
    for axis, place in enumerate(space):
        front[place] = begin[axis]
        given = extra[axis]
        back[place] = g.add("Add", given, g.ints(s.end[axis])) if isinstance(given, str) else s.end[axis] + given
    every = [*front, *back]
    if not any(every):
        return "x"
    numbers = [part for part in every if isinstance(part, int)]
    return g.add("Pad", "x", g.ints(*numbers) if len(numbers) == len(every) else g.vector(*every))


def _depth(g: _Graph, s: Sandwich, x: str, _: Sequence[int]) -> str:
    turned = g.add("Transpose", x, perm=[1, 0, 2, 3])
    return g.add("Transpose", g.add("SpaceToDepth", turned, blocksize=s.block[0]), perm=[1, 0, 2, 3])


def _space(g: _Graph, s: Sandwich, y: str, _: Sequence[int]) -> str:
    mode = {"mode": "CRD"} if s.wrong == "CRD" else {}
    turned = g.add("Transpose", y, perm=[1, 0, 2, 3])
    return g.add("Transpose", g.add("DepthToSpace", turned, blocksize=s.block[0], **mode), perm=[1, 0, 2, 3])


def _sizes(g: _Graph, s: Sandwich, x: str, samples: Sequence[int]) -> list[int | str]:
    """The sizes of the spatial axes of x, [N, C, *space], where they are computed."""
    if s.how != "computed":
        return list(samples)
    shape = g.add("Shape", x)
    return [g.add("Slice", shape, g.ints(axis + 2), g.ints(axis + 3)) for axis in range(s.rank)]


def _split(g: _Graph, s: Sandwich, x: str, samples: Sequence[int]) -> str:
    rank, computed = s.rank, s.how == "computed"
    sizes = _sizes(g, s, x, samples)
    if computed:
        sizes = [g.add("Div", str(size), g.ints(b)) for size, b in zip(sizes, s.block, strict=True)]
    n: int | str = -1 if computed else s.batch
    if s.counted:
        n = g.add("Slice", g.add("Shape", x), g.ints(0), g.ints(1))
    apart: list[int | str] = [n, s.channels]
    for size, b in zip(sizes, s.block, strict=True):
        apart += [size, b]
    x = g.add("Reshape", x, g.vector(*apart) if computed else g.ints(*map(int, apart)))
    phases = [3 + 2 * axis for axis in range(rank)]
    x = g.add("Transpose", x, perm=[*phases, 0, 1, *[2 + 2 * axis for axis in range(rank)]])
    phased = g.add("Mul", str(n), g.ints(math.prod(s.block))) if s.counted else -1
    together: list[int | str] = [phased, s.channels, *sizes]
    return g.add("Reshape", x, g.vector(*together) if computed else g.ints(*map(int, together)))


def _joined(g: _Graph, s: Sandwich, y: str, samples: Sequence[int]) -> str:
    rank, computed = s.rank, s.how == "computed"
    sizes, blocks = _sizes(g, s, y, samples), list(s.block)
    apart: list[int | str] = [*blocks, -1, s.outputs, *sizes]
    y = g.add("Reshape", y, g.vector(*apart) if computed else g.ints(*map(int, apart)))
    perm = [rank, rank + 1]
    for axis in range(rank):
        perm += [rank + 2 + axis, axis if s.wrong != "exchanged" else rank - 1 - axis]
    y = g.add("Transpose", y, perm=perm)
    if computed:
        whole: list[int | str] = [g.add("Mul", str(size), g.ints(b)) for size, b in zip(sizes, s.block, strict=True)]
        return g.add("Reshape", y, g.vector(-1, s.outputs, *whole))
    return g.add("Reshape", y, g.ints(-1, s.outputs, *[int(q) * b for q, b in zip(sizes, s.block, strict=True)]))


def _cropped(
    g: _Graph, s: Sandwich, y: str, space: Sequence[int], extra: Sequence[int | str], sizes: Sequence[int]
) -> str:
    first = 1 if s.wrong == "crop in front" else 0
    for axis, place in enumerate(space):
        given, less = extra[axis], int(s.wrong == "crop behind")
        if s.crop == "split":
            assert isinstance(given, int)
            if given:
                parts = g.ints(sizes[axis], given)
                g.nodes.append(helper.make_node("Split", [y, parts], [f"part_{axis}", f"rest_{axis}"], axis=place))
                y = f"part_{axis}"
        elif isinstance(given, str):
            extent = g.add("Slice", g.add("Shape", y), g.ints(place), g.ints(place + 1))
            end = g.add("Sub", extent, given) if s.wrong != "crop of a constant" else g.add("Sub", extent, g.ints(1))
            y = g.add("Slice", y, g.ints(first), end, g.ints(place))
        elif given or first or less:
            y = g.add("Slice", y, g.ints(first), g.ints(sizes[axis] - less), g.ints(place))
    return y


def _chained(g: _Graph, op: str, y: str, s: Sandwich) -> str:
    ones = (1,) * s.rank
    if op == "Mul":
        return g.add("Mul", y, g.constant(whole_numbers(1, s.outputs, *ones, seed=2)))
    if op == "AddFirst":
        return g.add("Add", g.constant(whole_numbers(s.outputs, *ones, seed=3)), y)
    if op == "BatchNormalization":
        values = [np.abs(whole_numbers(s.outputs, seed=seed)) + 1 for seed in range(4)]
        return g.add("BatchNormalization", y, *map(g.constant, values), epsilon=0.0)
    if op == "Quantize":
        scale, zero = g.constant(np.array(4, np.float32)), g.constant(np.array(3, np.int8))
        return g.add("DequantizeLinear", g.add("QuantizeLinear", y, scale, zero), scale, zero)
    if op == "PerRow":  # not the same for all places
        return g.add("Mul", y, g.constant(np.arange(1, 3, dtype=np.float32).repeat(9)[: int(s.extents[-1])]))
    return g.add(op, y)


def image(s: Sandwich, extents: Sequence[int] | None = None, batch: int | None = None) -> Array:
    """Whole numbers for x."""
    here = [batch or s.batch, *(extents or s.extents)]
    shape = [*here, s.channels] if s.last else [here[0], s.channels, *here[1:]]
    return whole_numbers(*shape, seed=7)


def run(model: ModelProto, x: Array) -> Array:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["y"], {"x": x})[0])


def disguised(model: ModelProto, seed: int) -> ModelProto:
    """The same model with all names inside replaced and its nodes in another order that runs."""
    dice, copy = random.Random(seed), onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    inside = {name for node in graph.node for name in (*node.input, *node.output)} - {"x", "y", ""}
    inside -= {value.name for value in graph.output}
    new = {name: f"t{number}" for number, name in enumerate(dice.sample(sorted(inside), len(inside)))}
    for tensor in graph.initializer:
        tensor.name = new.get(tensor.name, tensor.name)
    waiting = list(graph.node)
    for number, node in enumerate(waiting):
        node.name = f"n{number * 7 % 101}_{number}"
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
    made = {"x", "", *(tensor.name for tensor in graph.initializer)}
    order: list[NodeProto] = []
    while waiting:
        ready = [node for node in waiting if made.issuperset(node.input)]
        node = dice.choice(ready)
        waiting.remove(node)
        order.append(node)
        made.update(node.output)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in order]
    del graph.node[:]
    graph.node.extend(nodes)
    return copy
