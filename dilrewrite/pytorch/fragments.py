"""Runs fragments on torch tensors, so that PyTorch's own autograd differentiates every form: the only file that does.

The forms are those of `strategies/`, planned by the same code as for ONNX; nothing of their maths is here. A fragment
of a geometry whose sizes are all known is turned once into a program: a list of steps, each a function of tensors.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from dilrewrite.forms.fragment import (
    AddAxis,
    AddKernelAxis,
    CoreConv,
    CoreFill,
    DropKernelAxes,
    Fragment,
    Kept,
    Node,
    PerChannel,
    RepeatOutputs,
    SpreadTaps,
    SwapKernelAxes,
    TakeOutputs,
    TakeTaps,
    TapsToInputs,
    Turn,
    WeightEdit,
    X,
    reads,
)

if TYPE_CHECKING:
    from torch import Tensor

OPSET = 18
"""The opset that fragments are spelled for: pads, cuts and shapes are constants beside their node."""

Step = Callable[..., Any]
"""A step returns the tensor that it makes from those that it reads and, in the core, the weight and the bias."""

WEIGHT, BIAS = "weight", "bias"
"""The names under which the core reads the site's weight and bias."""

Constants = Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of a fragment, in order, and the name of the result.

    A step stands with the name of what it makes, the names that it reads, and those of them that nothing needs after.
    """

    steps: tuple[tuple[str, Step, tuple[str, ...], tuple[str, ...]], ...]
    result: str

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output [N, O, *extents] for the input [N, C, *extents] and the weight [O, C / group, *kernel]."""
        tensors: dict[str, Any] = {X: x, WEIGHT: weight, BIAS: bias}
        for name, step, read, done in self.steps:
            tensors[name] = step(*[tensors[each] for each in read])
            for other in done:
                del tensors[other]
        result: Tensor = tensors[self.result]
        return result


def program(fragment: Fragment) -> Program:
    """Return the program of a fragment in which every size is a constant.

    Raises `NotImplementedError` naming the operator or the weight edit that is not known here.
    """
    steps: list[tuple[str, Step, tuple[str, ...]]] = []
    for node in fragment.steps:
        read = tuple(name for name in reads(node) if name not in fragment.constants)
        if isinstance(node, CoreConv):
            steps.append((node.output, _conv(node), (*read, WEIGHT, BIAS)))
        elif isinstance(node, CoreFill):
            steps.append((node.output, _fill(fragment.constants[node.repeats]), (WEIGHT, BIAS)))
        elif isinstance(node, Kept):
            raise NotImplementedError("a node of an ONNX model has no form in torch")
        elif node.op == "Add":
            _accumulate(node, steps)
        elif node.op not in _OPERATORS:
            raise NotImplementedError(f"{node.op} has no form in torch here")
        else:
            steps.append((node.outputs[0], _OPERATORS[node.op](node, fragment.constants), read))
    last = {name: place for place, (_, _, read) in enumerate(steps) for name in read}
    for name in (fragment.results[0], WEIGHT, BIAS):
        last.pop(name, None)
    done = [tuple(name for name, place in last.items() if place == number) for number in range(len(steps))]
    return Program(tuple((*step, names) for step, names in zip(steps, done, strict=True)), fragment.results[0])


def _accumulate(node: Node, steps: list[tuple[str, Step, tuple[str, ...]]]) -> None:
    """Add two tensors as soon as both are there, so that few summands exist at a time."""
    places = {name: place for place, (name, _, _) in enumerate(steps)}
    if not set(node.inputs) <= set(places):
        raise NotImplementedError(f"a sum of {node.inputs}")
    steps.insert(max(places[name] for name in node.inputs) + 1, (node.outputs[0], operator.add, node.inputs))


# -- layout ----------------------------------------------------------------------------------------------------------


def _slice(node: Node, constants: Constants) -> Step:
    starts, stops, axes, *steps = (constants[name] for name in node.inputs[1:])
    strides = steps[0] if steps else [1] * len(starts)
    cuts = {axis: slice(a, b, c) for axis, a, b, c in zip(axes, starts, stops, strides, strict=True)}
    index = tuple(cuts.get(axis, slice(None)) for axis in range(max(cuts) + 1))
    return lambda x: x[index]


def _functional() -> Any:
    """Return torch's functions, when a step runs: a program can be made without torch."""
    from torch.nn import functional

    return functional


def _pad(node: Node, constants: Constants) -> Step:
    pads = constants[node.inputs[1]]
    order = _from_last(pads[: len(pads) // 2], pads[len(pads) // 2 :])
    while len(order) > 2 and not any(order[-2:]):
        del order[-2:]
    return lambda x: _functional().pad(x, order)


def _from_last(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Return pads as torch takes them: (begin, end) of each axis, counted from the last."""
    return [pad for pair in reversed([*zip(begin, end, strict=True)]) for pad in pair]


def _reshape(node: Node, constants: Constants) -> Step:
    sizes = tuple(constants[node.inputs[1]])
    return lambda x: x.reshape([x.shape[place] if size == 0 else size for place, size in enumerate(sizes)])


def _transpose(node: Node, _constants: Constants) -> Step:
    order = node.attributes["perm"]
    return lambda x: x.permute(order)


def _concat(node: Node, _constants: Constants) -> Step:
    axis = cast("int", node.attributes["axis"])

    def step(*parts: Any) -> Any:
        import torch

        return torch.cat(parts, dim=axis)

    return step


def _space_to_depth(node: Node, _constants: Constants) -> Step:
    block = cast("int", node.attributes["blocksize"])

    def step(x: Any) -> Any:
        n, c, h, w = x.shape
        split = x.reshape(n, c, h // block, block, w // block, block)
        return split.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)

    return step


def _depth_to_space(node: Node, _constants: Constants) -> Step:
    block = cast("int", node.attributes["blocksize"])

    def step(x: Any) -> Any:
        n, c, h, w = x.shape
        split = x.reshape(n, block, block, c // (block * block), h, w)
        return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (block * block), h * block, w * block)

    return step


_OPERATORS: Mapping[str, Callable[[Node, Constants], Step]] = {
    "Slice": _slice,
    "Pad": _pad,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "SpaceToDepth": _space_to_depth,
    "DepthToSpace": _depth_to_space,
}


# -- the core --------------------------------------------------------------------------------------------------------


def _conv(core: CoreConv) -> Step:
    for edit in core.weight:
        _known(edit)
    rank, times = len(core.kernel), core.bias_times
    begin, end = core.pads[:rank], core.pads[rank:]
    even, uneven = begin == end, _from_last(begin, end)

    def step(x: Any, weight: Any, bias: Any) -> Any:
        functional = _functional()
        for edit in core.weight:
            weight = edited(edit, weight)
        if bias is not None and times != 1:
            bias = bias.repeat(times) if times else None
        if not even:
            x = functional.pad(x, uneven)
        run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
        return run(x, weight, bias, core.strides, begin if even else 0, core.dilations, core.group)

    return step


def _fill(repeats: Sequence[int]) -> Step:
    """Return the step for outputs that no tap reaches: the bias, or zeros."""

    def step(weight: Any, bias: Any) -> Any:
        outputs = weight.shape[0]
        size = (repeats[0], outputs, *repeats[2:])
        if bias is None:
            return weight.new_zeros(size)
        return bias.reshape(1, outputs, *(1,) * (len(repeats) - 2)).expand(size)

    return step


Edit = (
    TakeTaps | Turn | RepeatOutputs | TakeOutputs | DropKernelAxes | PerChannel
    | AddAxis | AddKernelAxis | SwapKernelAxes | TapsToInputs | SpreadTaps
)  # fmt: skip


def _known(edit: WeightEdit) -> Edit:
    if not isinstance(edit, Edit):
        raise NotImplementedError(f"a weight edit {type(edit).__name__} is not known here")
    return edit


def edited(edit: WeightEdit, weight: Tensor) -> Tensor:
    """Return the edited weight; what `edit.apply` does, differentiable."""
    match _known(edit):
        case TakeTaps(axis, start, stop):
            return weight.narrow(axis + 2, start, stop - start)
        case RepeatOutputs(times):
            return weight.repeat(times, *(1,) * (weight.dim() - 1))
        case Turn(group) as turn:
            groups = weight.reshape(group, -1, *weight.shape[1:]).transpose(1, 2)
            return groups.reshape(turn.shape(tuple(weight.shape))).flip(tuple(range(2, weight.dim())))
        case TakeOutputs(times):
            return weight[: weight.shape[0] // times]
        case DropKernelAxes(axes):
            return weight.squeeze(tuple(axis + 2 for axis in axes))
        case PerChannel(rank):
            return weight.reshape(-1, *(1,) * rank)
        case AddAxis(axis):
            return weight.unsqueeze(axis)
        case AddKernelAxis(axis):
            return weight.unsqueeze(axis + 2)
        case SwapKernelAxes(first, second):
            return weight.transpose(first + 2, second + 2)
        case TapsToInputs():
            return weight.movedim(1, -1).reshape(weight.shape[0], -1, *(1,) * (weight.dim() - 2))
        case SpreadTaps(dilations):
            kernel = (d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True))
            spread = weight.new_zeros((*weight.shape[:2], *kernel))
            index = (slice(None), slice(None), *(slice(None, None, d) for d in dilations))
            spread[index] = weight
            return spread
