"""Runs fragments on torch tensors, so that PyTorch's own autograd differentiates every form: the only file that does.

The forms are those of `strategies/`, planned by the same code as for ONNX; nothing of their maths is here. A fragment
of a geometry whose sizes are all known is turned once into a program: a list of steps, each a function of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dilrewrite.forms.fragment import (
    AddKernelAxis,
    CoreConv,
    CoreFill,
    Fragment,
    Kept,
    Node,
    RepeatOutputs,
    SpreadTaps,
    TakeTaps,
    TapsToInputs,
    WeightEdit,
    X,
    reads,
)

if TYPE_CHECKING:
    from torch import Tensor

OPSET = 18
"""The opset that fragments are spelled for: pads, cuts and shapes are constants beside their node."""

Step = Callable[[dict[str, Any], Any, Any], Any]
"""A step reads tensors by name, the weight and the bias, and returns the tensor that it makes."""


@dataclass(frozen=True, slots=True)
class Program:
    """The steps of a fragment, in order: (name of what it makes, step, names that nothing needs after), the result."""

    steps: tuple[tuple[str, Step, tuple[str, ...]], ...]
    result: str

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the output [N, O, *extents] for the input [N, C, *extents] and the weight [O, C / group, *kernel]."""
        tensors: dict[str, Any] = {X: x}
        for name, step, done in self.steps:
            tensors[name] = step(tensors, weight, bias)
            for other in done:
                del tensors[other]
        result: Tensor = tensors[self.result]
        return result


def program(fragment: Fragment) -> Program:
    """Return the program of a fragment in which every size is a constant.

    Raises `NotImplementedError` naming the operator or the weight edit that is not known here.
    """
    constants = fragment.constants
    steps: list[tuple[str, tuple[str, ...], Step]] = []
    for node in fragment.steps:
        read = tuple(name for name in reads(node) if name not in constants)
        if isinstance(node, CoreConv):
            steps.append((node.output, read, _conv(node)))
        elif isinstance(node, CoreFill):
            steps.append((node.output, read, _fill(constants[node.repeats])))
        elif isinstance(node, Kept):
            raise NotImplementedError("a node of an ONNX model has no form in torch")
        elif node.op == "Add":
            _accumulate(node, steps)
        else:
            if node.op not in _OPERATORS:
                raise NotImplementedError(f"{node.op} has no form in torch here")
            steps.append((node.outputs[0], read, _OPERATORS[node.op](node, constants)))
    last = {name: place for place, (_, read, _) in enumerate(steps) for name in read if name != fragment.result}
    done = [tuple(name for name, place in last.items() if place == number) for number in range(len(steps))]
    return Program(
        tuple((name, step, names) for (name, _, step), names in zip(steps, done, strict=True)), fragment.result
    )


def _accumulate(node: Node, steps: list[tuple[str, tuple[str, ...], Step]]) -> None:
    """Add two tensors as soon as both are there, so that few summands exist at a time."""
    places = {name: place for place, (name, _, _) in enumerate(steps)}
    first, second = node.inputs
    if not {first, second} <= set(places):
        raise NotImplementedError(f"a sum of {node.inputs}")
    step = (node.outputs[0], (first, second), _add(first, second))
    steps.insert(max(places[first], places[second]) + 1, step)


def _add(first: str, second: str) -> Step:
    return lambda tensors, _weight, _bias: tensors[first] + tensors[second]


# -- layout ----------------------------------------------------------------------------------------------------------


def _slice(node: Node, constants: Mapping[str, Sequence[int]]) -> Step:
    source = node.inputs[0]
    starts, stops = constants[node.inputs[1]], constants[node.inputs[2]]
    axes = constants[node.inputs[3]] if len(node.inputs) > 3 and node.inputs[3] else range(len(starts))
    strides = constants[node.inputs[4]] if len(node.inputs) > 4 and node.inputs[4] else [1] * len(starts)
    cuts = {axis: slice(a, b, c) for axis, a, b, c in zip(axes, starts, stops, strides, strict=True)}
    index = tuple(cuts.get(axis, slice(None)) for axis in range(max(cuts) + 1))
    return lambda tensors, _weight, _bias: tensors[source][index]


def _pad(node: Node, constants: Mapping[str, Sequence[int]]) -> Step:
    source, pads = node.inputs[0], constants[node.inputs[1]]
    rank = len(pads) // 2
    # torch counts from the last axis, and takes (begin, end) of each.
    order = [value for axis in reversed(range(rank)) for value in (pads[axis], pads[axis + rank])]
    while len(order) > 2 and not any(order[-2:]):
        del order[-2:]

    def step(tensors: dict[str, Any], _weight: Any, _bias: Any) -> Any:
        from torch.nn import functional

        return functional.pad(tensors[source], order)

    return step


def _reshape(node: Node, constants: Mapping[str, Sequence[int]]) -> Step:
    source, sizes = node.inputs[0], tuple(constants[node.inputs[1]])

    def step(tensors: dict[str, Any], _weight: Any, _bias: Any) -> Any:
        x = tensors[source]
        return x.reshape([x.shape[place] if size == 0 else size for place, size in enumerate(sizes)])

    return step


def _transpose(node: Node, _constants: Mapping[str, Sequence[int]]) -> Step:
    source, order = node.inputs[0], node.attributes["perm"]
    return lambda tensors, _weight, _bias: tensors[source].permute(order)


def _concat(node: Node, _constants: Mapping[str, Sequence[int]]) -> Step:
    sources, axis = node.inputs, node.attributes["axis"]

    def step(tensors: dict[str, Any], _weight: Any, _bias: Any) -> Any:
        import torch

        return torch.cat([tensors[source] for source in sources], dim=int(axis))  # type: ignore[arg-type]

    return step


def _space_to_depth(node: Node, _constants: Mapping[str, Sequence[int]]) -> Step:
    source, block = node.inputs[0], int(node.attributes["blocksize"])  # type: ignore[arg-type]

    def step(tensors: dict[str, Any], _weight: Any, _bias: Any) -> Any:
        x = tensors[source]
        n, c, h, w = x.shape
        split = x.reshape(n, c, h // block, block, w // block, block)
        return split.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)

    return step


def _depth_to_space(node: Node, _constants: Mapping[str, Sequence[int]]) -> Step:
    source, block = node.inputs[0], int(node.attributes["blocksize"])  # type: ignore[arg-type]

    def step(tensors: dict[str, Any], _weight: Any, _bias: Any) -> Any:
        x = tensors[source]
        n, c, h, w = x.shape
        split = x.reshape(n, block, block, c // (block * block), h, w)
        return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (block * block), h * block, w * block)

    return step


def _squeeze(node: Node, constants: Mapping[str, Sequence[int]]) -> Step:
    source = node.inputs[0]
    axes = constants[node.inputs[1]]
    return lambda tensors, _weight, _bias: tensors[source].squeeze(tuple(axes))


def _unsqueeze(node: Node, constants: Mapping[str, Sequence[int]]) -> Step:
    source = node.inputs[0]
    (axis,) = constants[node.inputs[1]]
    return lambda tensors, _weight, _bias: tensors[source].unsqueeze(axis)


_OPERATORS: Mapping[str, Callable[[Node, Mapping[str, Sequence[int]]], Step]] = {
    "Slice": _slice,
    "Pad": _pad,
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Concat": _concat,
    "SpaceToDepth": _space_to_depth,
    "DepthToSpace": _depth_to_space,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
}


# -- the core --------------------------------------------------------------------------------------------------------


def _conv(core: CoreConv) -> Step:
    source, edits = core.source, core.weight
    for edit in edits:
        _known(edit)
    rank = len(core.kernel)
    begin, end = core.pads[:rank], core.pads[rank:]
    even = begin == end
    uneven = [value for axis in reversed(range(rank)) for value in (begin[axis], end[axis])]
    repeats, strides, dilations, group = core.bias_times, core.strides, core.dilations, core.group

    def step(tensors: dict[str, Any], weight: Any, bias: Any) -> Any:
        from torch.nn import functional

        x = tensors[source]
        for edit in edits:
            weight = edited(edit, weight)
        used = None if bias is None or repeats == 0 else bias if repeats == 1 else bias.repeat(repeats)
        if not even:
            x = functional.pad(x, uneven)
        run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
        return run(x, weight, used, strides, begin if even else 0, dilations, group)

    return step


def _fill(repeats: Sequence[int]) -> Step:
    """Return the step for outputs that no tap reaches: the bias, or zeros."""

    def step(_tensors: dict[str, Any], weight: Any, bias: Any) -> Any:
        import torch

        outputs = weight.shape[0]
        size = (repeats[0], outputs, *repeats[2:])
        if bias is None:
            return torch.zeros(size, dtype=weight.dtype, device=weight.device)
        return bias.reshape(1, outputs, *(1,) * (len(repeats) - 2)).expand(size)

    return step


Edit = TakeTaps | RepeatOutputs | AddKernelAxis | TapsToInputs | SpreadTaps


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
        case AddKernelAxis(axis):
            return weight.unsqueeze(axis + 2)
        case TapsToInputs():
            return weight.movedim(1, -1).reshape(weight.shape[0], -1, *(1,) * (weight.dim() - 2))
        case SpreadTaps(dilations):
            kernel = (d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True))
            spread = weight.new_zeros((*weight.shape[:2], *kernel))
            index = (slice(None), slice(None), *(slice(None, None, d) for d in dilations))
            spread[index] = weight
            return spread
