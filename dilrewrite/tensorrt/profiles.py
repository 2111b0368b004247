"""The sizes that an engine is built for: what the user gave for inputs with unknown extents, checked before the build.

TensorRT builds a profile whose sizes its graph cannot take, with a warning or none (a SpaceToDepth whose input does not
divide): so every size is tried here first, with ONNX's shape inference on the concrete sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto

from dilrewrite.errors import UsageError, one_line
from dilrewrite.model.light import value_shape, without_weights
from dilrewrite.model.walk import DEFAULT_DOMAINS, copied, fed
from dilrewrite.options import sizes

Shape = tuple[int, ...]

Asked = dict[str, dict[str, Shape]]
"""What `--min`, `--opt` and `--max` say: shapes by input, for each of `KINDS`."""

KINDS = ("min", "opt", "max")

_WINDOWS = ("Conv", "MaxPool", "AveragePool", "LpPool")
"""Operators that move a window over their input, which must fit in."""

REACH = 256
"""How far from a size that does not do a legal one is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The sizes of one input that an engine takes: `min` to `max` on each axis."""

    min: Shape
    """Smallest sizes."""
    opt: Shape
    """The sizes it was built to be fast at."""
    max: Shape
    """Largest sizes."""

    def holds(self, shape: Shape) -> bool:
        """Say whether a size lies between the smallest and the largest."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


def parse(
    minima: Sequence[str], optima: Sequence[str], maxima: Sequence[str], inputs: Sequence[str] | None = None
) -> Asked:
    """Return what the options `NAME:1x3x224x224` say, of the `inputs` where known; raises `UsageError` for others."""
    return {kind: sizes(kind, texts, inputs) for kind, texts in zip(KINDS, (minima, optima, maxima), strict=True)}


def declared(proto: ModelProto) -> dict[str, tuple[int | None, ...] | None]:
    """Return the declared sizes of the inputs that have no value of their own; None: unknown."""
    return {value.name: value_shape(value)[1] for value in fed(proto)}


def settle(proto: ModelProto, asked: Asked, where: str) -> dict[str, Profile]:
    """Return the profile of every input with unknown sizes; none when all are known.

    One of the three alone stands for all; without `opt` the largest is taken. `where` names the model in messages.
    Raises `UsageError` for an input that is unknown, has no profile, or has one that does not fit or is not ordered.
    """
    inputs = declared(proto)
    for kind, given in asked.items():
        for name, shape in given.items():
            if name not in inputs:
                raise UsageError(
                    f"--{kind}: {where} has no input {name!r}", hint=f"its inputs: {', '.join(map(repr, inputs))}"
                )
            sizes = inputs[name]
            declares = shape if sizes is None else sizes
            if len(declares) != len(shape) or any(a not in (None, b) for a, b in zip(declares, shape, strict=True)):
                raise UsageError(f"--{kind}: input {name!r} is {text(sizes)}, which {text(shape)} does not fit")
    unknown = [name for name, sizes in inputs.items() if sizes is None or None in sizes]
    return {name: _profile(name, inputs[name], asked, where) for name in unknown}


def _profile(name: str, sizes: Sequence[int | None] | None, asked: Asked, where: str) -> Profile:
    given = [asked[kind][name] for kind in KINDS if asked[kind].get(name)]
    if not given:
        raise UsageError(
            f"{where}: input {name!r} is {text(sizes)}: an engine needs its sizes",
            hint=f"give --min, --opt and --max {name}:..., or --opt alone for one size",
        )
    low, high = asked["min"].get(name) or given[0], asked["max"].get(name) or given[-1]
    best = asked["opt"].get(name) or high
    for smaller, larger, words in ((low, best, ("--min", "--opt")), (best, high, ("--opt", "--max"))):
        if len(smaller) != len(larger) or any(a > b for a, b in zip(smaller, larger, strict=True)):
            raise UsageError(
                f"input {name!r}: {words[0]} {text(smaller)} is above {words[1]} {text(larger)}",
                hint="each size must be min <= opt <= max",
            )
    return Profile(min=low, opt=best, max=high)


def text(sizes: Sequence[int | None] | None) -> str:
    """Return sizes in words; `?` is an unknown one."""
    return "of unknown rank" if sizes is None else "x".join("?" if size is None else str(size) for size in sizes)


def check(proto: ModelProto, profiles: Mapping[str, Profile], where: str) -> None:
    """Raise `UsageError` when the graph does not take the smallest, best or largest sizes.

    The message names input, axis and size, and the nearest sizes on that axis that do.
    """
    if not profiles:
        return
    light = without_weights(proto)
    if unfit(light, {}) is not None:
        return  # inference does not get through this model whatever the sizes are, so it says nothing of them
    for kind in KINDS:
        shapes = {name: getattr(profile, kind) for name, profile in profiles.items()}
        wrong = unfit(light, shapes)
        if wrong is not None:
            raise UsageError(f"{where}: {_blame(light, shapes, kind, wrong)}")


def unfit(proto: ModelProto, shapes: Mapping[str, Shape]) -> str | None:
    """Return None when the graph takes inputs of these shapes, as far as inference tells, else what does not fit."""
    fixed = copied(proto)
    for value in fixed.graph.input:
        if value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for size in shapes[value.name]:
                value.type.tensor_type.shape.dim.add().dim_value = size
    del fixed.graph.value_info[:]
    for value in fixed.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError, RuntimeError) as error:
        why = one_line(error)
        return why.partition("Inference error(s): ")[2] or why
    known = {  # with negative sizes, which no other reading keeps
        value.name: [
            size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
        ]
        for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    }
    for node in inferred.graph.node:
        if node.domain not in DEFAULT_DOMAINS:
            continue
        if node.op_type == "SpaceToDepth":
            block = next((attribute.i for attribute in node.attribute if attribute.name == "blocksize"), 1)
            for extent in known.get(node.input[0], [])[2:]:
                if extent is not None and extent % block:
                    return f"SpaceToDepth {node.name!r} splits {extent} into blocks of {block}"
        for name in node.output:
            if any(size is not None and size < 0 for size in known.get(name, [])):
                return f"{node.op_type} {node.name!r} makes a negative size"
            if node.op_type in _WINDOWS and 0 in known.get(name, [])[2:]:
                return f"{node.op_type} {node.name!r} makes an empty output"
    return None


def _blame(proto: ModelProto, shapes: Mapping[str, Shape], kind: str, wrong: str) -> str:
    """Return which axis of which input is to blame, and the nearest sizes that do."""
    open_axes = {
        name: [axis for axis in range(len(shapes[name])) if sizes is None or sizes[axis] is None]
        for name, sizes in declared(proto).items()
        if name in shapes
    }
    for name, axes in open_axes.items():
        for axis in reversed(axes):
            near = [_nearest(proto, shapes, name, axis, step) for step in (-1, 1)]
            legal = " and ".join(str(size) for size in near if size is not None)
            if legal:
                here = f"--{kind}: input {name!r}, axis {axis}: {shapes[name][axis]} does not fit"
                return f"{here}: {wrong}; the nearest that do: {legal}"
    told = ", ".join(f"{name}:{text(shape)}" for name, shape in shapes.items())
    return f"--{kind} {told}: does not fit the graph: {wrong}"


def _nearest(proto: ModelProto, shapes: Mapping[str, Shape], name: str, axis: int, step: int) -> int | None:
    shape = shapes[name]
    sizes = range(shape[axis] + step, max(shape[axis] + step * (REACH + 1), 0), step)
    fitting = (s for s in sizes if unfit(proto, {**shapes, name: (*shape[:axis], s, *shape[axis + 1 :])}) is None)
    return next(fitting, None)
