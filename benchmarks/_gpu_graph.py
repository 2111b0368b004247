"""Runs ONNX models in PyTorch: the operators that chains of dilated Convs have, and what regions write around them.

For timing whole chains on cuDNN where no ONNX runtime with a GPU is installed. Shapes are constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

Step = tuple[Callable[..., Any], tuple[str, ...], str, tuple[str, ...]]

OPSETS = {"": 17}


class Graph:
    """A model on a device: `put` gives its constants their element type and layout."""

    def __init__(self, proto: ModelProto, put: Callable[[Any], Any]) -> None:
        """Raises NotImplementedError for an operator that is not known here."""
        graph = proto.graph
        self.input, self.output = graph.input[0].name, graph.output[0].name
        arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        steps: list[tuple[NodeProto, tuple[str, ...]]] = []
        for node in graph.node:
            names = [name for name in node.input if name]
            if all(name in arrays for name in names) and len(node.output) == 1:  # as runtimes do: masks, shapes
                values = {name: arrays[name] for name in names}
                arrays[node.output[0]] = np.asarray(ReferenceEvaluator(node, opsets=OPSETS).run(None, values)[0])
                continue
            if node.op_type not in OPERATORS or len(node.output) > 1:
                raise NotImplementedError(f"{node.op_type} is not known here")
            steps.append((node, tuple(names)))
        plain = {name: value.reshape(-1).tolist() for name, value in arrays.items() if value.dtype.kind == "i"}
        device = put(torch.zeros(1)).device
        self._held = {}
        for name in {name for _, read in steps for name in read if name in arrays and name not in plain}:
            tensor = torch.from_numpy(np.array(arrays[name]))
            self._held[name] = put(tensor) if tensor.is_floating_point() else tensor.to(device)
        made = [
            (
                OPERATORS[node.op_type](node, _attributes(node), plain),
                tuple(name for name in read if name not in plain),
                node.output[0],
            )
            for node, read in steps
        ]
        last = {name: place for place, (_, read, _) in enumerate(made) for name in read}
        self._steps: list[Step] = [
            (*step, tuple(name for name in dict.fromkeys(step[1]) if last[name] == place and name not in self._held))
            for place, step in enumerate(made)
        ]

    def run(self, x: Any) -> Any:
        """The output for an input."""
        tensors = {**self._held, self.input: x}
        with torch.no_grad():
            for step, read, made, done in self._steps:
                tensors[made] = step(*[tensors[name] for name in read])
                for name in done:
                    if name != self.output:
                        del tensors[name]
        return tensors[self.output]


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


Attributes = Mapping[str, Any]
Plain = Mapping[str, list[int]]


def _conv(_node: NodeProto, values: Attributes, _: Plain) -> Callable[..., Any]:
    kernel = values["kernel_shape"]
    rank = len(kernel)
    pads, ones = values.get("pads", [0] * 2 * rank), [1] * rank
    begin, end = pads[:rank], pads[rank:]
    even = begin == end
    uneven = [pad for pair in reversed([*zip(begin, end, strict=True)]) for pad in pair]
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    if values.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("auto_pad is not known here")

    def step(x: Any, weight: Any, bias: Any = None) -> Any:
        x = x if even else functional.pad(x, uneven)
        strides, dilations = values.get("strides", ones), values.get("dilations", ones)
        return run(x, weight, bias, strides, begin if even else 0, dilations, values.get("group", 1))

    return step


def _reshape(node: NodeProto, _: Attributes, plain: Plain) -> Callable[..., Any]:
    sizes = plain[node.input[1]]
    return lambda x: x.reshape([x.shape[place] if size == 0 else size for place, size in enumerate(sizes)])


def _slice(node: NodeProto, _: Attributes, plain: Plain) -> Callable[..., Any]:
    starts, ends = plain[node.input[1]], plain[node.input[2]]
    axes = plain[node.input[3]] if len(node.input) > 3 and node.input[3] else list(range(len(starts)))
    steps = plain[node.input[4]] if len(node.input) > 4 and node.input[4] else [1] * len(starts)
    if min(steps) < 1:
        raise NotImplementedError("a Slice from the end is not known here")

    def step(x: Any) -> Any:
        cuts = {axis % x.dim(): slice(a, b, c) for axis, a, b, c in zip(axes, starts, ends, steps, strict=True)}
        return x[tuple(cuts.get(axis, slice(None)) for axis in range(x.dim()))]

    return step


def _pad(node: NodeProto, values: Attributes, plain: Plain) -> Callable[..., Any]:
    if values.get("mode", b"constant") != b"constant":
        raise NotImplementedError("only Pads with a constant are known here")
    pads = plain[node.input[1]]
    half = len(pads) // 2
    order = [pad for pair in reversed([*zip(pads[:half], pads[half:], strict=True)]) for pad in pair]
    return lambda x, *_: functional.pad(x, order)


def _space_to_depth(_: NodeProto, values: Attributes, __: Plain) -> Callable[..., Any]:
    block = values["blocksize"]

    def step(x: Any) -> Any:
        n, c, h, w = x.shape
        split = x.reshape(n, c, h // block, block, w // block, block)
        return split.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)

    return step


def _depth_to_space(_: NodeProto, values: Attributes, __: Plain) -> Callable[..., Any]:
    block = values["blocksize"]
    if values.get("mode", b"DCR") != b"DCR":
        raise NotImplementedError("only DepthToSpace of mode DCR is known here")

    def step(x: Any) -> Any:
        n, c, h, w = x.shape
        split = x.reshape(n, block, block, c // (block * block), h, w)
        return split.permute(0, 3, 4, 1, 5, 2).reshape(n, c // (block * block), h * block, w * block)

    return step


def _axes(x: Any, axes: Sequence[int], *, more: int = 0) -> list[int]:
    return sorted(axis % (x.dim() + more) for axis in axes)


def _unsqueeze(node: NodeProto, _: Attributes, plain: Plain) -> Callable[..., Any]:
    axes = plain[node.input[1]]

    def step(x: Any) -> Any:
        for axis in _axes(x, axes, more=len(axes)):
            x = x.unsqueeze(axis)
        return x

    return step


def _squeeze(node: NodeProto, _: Attributes, plain: Plain) -> Callable[..., Any]:
    axes = plain[node.input[1]]
    return lambda x: x.squeeze(tuple(_axes(x, axes)))


def _normal(_: NodeProto, values: Attributes, __: Plain) -> Callable[..., Any]:
    small = values.get("epsilon", 1e-5)
    return lambda x, scale, bias, mean, var: functional.batch_norm(x, mean, var, scale, bias, False, 0.0, small)


def _prelu(_: NodeProto, __: Attributes, ___: Plain) -> Callable[..., Any]:
    return lambda x, slope: torch.where(x < 0, x * slope, x)


def _simple(function: Callable[..., Any]) -> Callable[[NodeProto, Attributes, Plain], Callable[..., Any]]:
    return lambda _node, _values, _plain: function


OPERATORS: Mapping[str, Callable[[NodeProto, Attributes, Plain], Callable[..., Any]]] = {
    "Add": _simple(torch.add),
    "BatchNormalization": _normal,
    "Concat": lambda _, values, __: lambda *parts: torch.cat(parts, dim=values["axis"]),
    "Conv": _conv,
    "DepthToSpace": _depth_to_space,
    "Div": _simple(torch.div),
    "HardSwish": _simple(functional.hardswish),
    "Identity": _simple(lambda x: x),
    "InstanceNormalization": lambda _, values, __: (
        lambda x, scale, bias: functional.instance_norm(
            x, weight=scale, bias=bias, use_input_stats=True, eps=values.get("epsilon", 1e-5)
        )
    ),
    "LeakyRelu": lambda _, values, __: lambda x: functional.leaky_relu(x, values.get("alpha", 0.01)),
    "Mul": _simple(torch.mul),
    "PRelu": _prelu,
    "Pad": _pad,
    "Relu": _simple(functional.relu),
    "Reshape": _reshape,
    "Sigmoid": _simple(torch.sigmoid),
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Squeeze": _squeeze,
    "Sub": _simple(torch.sub),
    "Tanh": _simple(torch.tanh),
    "Transpose": lambda _, values, __: lambda x: x.permute(values["perm"]),
    "Unsqueeze": _unsqueeze,
    "Where": _simple(torch.where),
}
"""What each operator is in torch, made from its node, its attributes and the integers that the model holds."""
