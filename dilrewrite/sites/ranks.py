"""How many axes tensors have where shape inference knows nothing: in Loop bodies, functions, behind custom operators.

What a Conv reads and makes has as many axes as its weights; from there the number goes through the operators that keep
it, both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from dilrewrite.forms.chain import Link
from dilrewrite.forms.lift import BROADCAST, ELEMENTWISE, ROWS
from dilrewrite.model.light import Shape
from dilrewrite.sites import Part

_SAME = """AveragePool BatchNormalization ConvTranspose CumSum DequantizeLinear GlobalAveragePool GlobalLpPool
GlobalMaxPool GroupNormalization Hardmax InstanceNormalization LayerNormalization LogSoftmax LpNormalization LpPool LRN
MaxPool MeanVarianceNormalization Pad QuantizeLinear Resize RMSNormalization Slice Softmax Split Tile Upsample"""

SAME = frozenset(_SAME.split())
"""Operators whose first output has as many axes as their first input."""

LOSING = frozenset({"Squeeze", *(op for op in ROWS if op.startswith("Reduce"))})
"""Operators that lose the axes which they name."""

Integers = Mapping[str, tuple[int, ...]]
"""The values of constants that hold a few integers."""


def spread_ranks(
    links: Sequence[Link], parts: Mapping[int, Part], shapes: dict[str, Shape], integers: Integers
) -> None:
    """Add to `shapes` those of the tensors that follow from others, with unknown sizes (`None`)."""
    for link in links:
        if link.op == "Shape" and shapes.get(link.outputs[0]) == (None,):
            del shapes[link.outputs[0]]  # how long it is may follow
    open_links = [place for place, link in enumerate(links) if _unknown(link, shapes)]
    while open_links:
        count = len(shapes)
        for places in (open_links, reversed(open_links)):
            for place in places:
                link = links[place]
                found = _conv(link, parts[place]) if place in parts else _known(link, shapes, integers)
                for name, shape in found:
                    if name:
                        shapes.setdefault(name, shape)
        if len(shapes) == count:
            return
        open_links = [place for place in open_links if _unknown(links[place], shapes)]


def _unknown(link: Link, shapes: Mapping[str, Shape]) -> bool:
    return link.op != "" and any(name and name not in shapes for name in (*link.inputs, *link.outputs))


def _conv(link: Link, part: Part) -> Iterator[tuple[str, Shape]]:
    geometry = part.geometry
    free = (None,) * geometry.rank
    yield link.inputs[0], (geometry.batch, geometry.in_channels, *free)
    yield link.outputs[0], (geometry.batch, geometry.out_channels, *free)


def _known(link: Link, shapes: Mapping[str, Shape], integers: Integers) -> Iterator[tuple[str, Shape]]:
    """Yield what one operator tells of its tensors."""
    given = [shapes.get(name) for name in link.inputs]
    made = shapes.get(link.outputs[0]) if link.outputs else None
    first = given[0] if given else None
    if link.op in ELEMENTWISE:
        yield from ((name, first) for name in link.outputs[:1] if first is not None)
        if made is not None:
            yield link.inputs[0], made
    elif link.op in SAME:
        outputs = link.outputs if link.op == "Split" else link.outputs[:1]
        yield from ((name, _free(len(first))) for name in outputs if first is not None)
        if made is not None:
            yield link.inputs[0], _free(len(made))
    elif link.op in BROADCAST:
        yield from _broadcast(link, given, made)
    elif link.op == "Concat":
        yield from _joined(link, given, made)
    elif link.op == "Shape" and first is not None and not link.attributes:
        yield link.outputs[0], (len(first),)
    elif link.op == "Gemm":
        yield link.outputs[0], _free(2)
    elif link.op == "Unsqueeze" and first is not None:
        axes = _axes(link, integers)
        if axes:
            yield link.outputs[0], _unsqueezed(first, axes)
    elif first is not None:
        rank = _rank(link, first, given[1] if len(given) > 1 else None, integers)
        if rank is not None and rank >= 0:
            yield link.outputs[0], _free(rank)


def _free(rank: int) -> Shape:
    return (None,) * rank


def _unsqueezed(shape: Shape, axes: Sequence[int]) -> Shape:
    rank, sizes = len(shape) + len(axes), iter(shape)
    new = {axis % rank for axis in axes}
    return tuple(1 if axis in new else next(sizes) for axis in range(rank))


def _broadcast(link: Link, given: Sequence[Shape | None], made: Shape | None) -> Iterator[tuple[str, Shape]]:
    shapes = [shape for shape in given if shape is not None]
    rank = max(map(len, shapes), default=0)
    lacking = [name for name, shape in zip(link.inputs, given, strict=True) if shape is None]
    if not lacking:
        columns = zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True)
        yield link.outputs[0], tuple(map(_size, columns))
    elif len(set(lacking)) == 1 and made is not None and rank < len(made):
        yield lacking[0], _free(len(made))


def _size(sizes: Sequence[int | None]) -> int | None:
    """Return the size of an axis of what is broadcast."""
    known = [size for size in sizes if size is not None]
    return next((size for size in known if size != 1), 1 if len(known) == len(sizes) else None)


def _joined(link: Link, given: Sequence[Shape | None], made: Shape | None) -> Iterator[tuple[str, Shape]]:
    rank = next((len(shape) for shape in (*given, made) if shape is not None), None)
    if rank == 1:
        sizes = [shape[0] if shape else None for shape in given]
        yield link.outputs[0], (None if None in sizes else sum(filter(None, sizes)),)
    elif rank is not None:
        yield from ((name, _free(rank)) for name in (*link.inputs, *link.outputs))


def _rank(link: Link, first: Shape, second: Shape | None, integers: Integers) -> int | None:
    """Return how many axes the output has, from the shapes of the first two inputs."""
    rank, size = len(first), (second or (None,))[0]
    if link.op == "Transpose":
        return rank
    if link.op == "ConstantOfShape":
        return first[0] if rank == 1 else None
    if link.op == "Reshape":
        return size
    if link.op == "Expand":
        return None if size is None else max(rank, size)
    if link.op == "Gather":
        return None if second is None else rank - 1 + len(second)
    if link.op == "MatMul":
        return max(rank, len(second)) if second is not None and min(rank, len(second)) > 1 else None
    if link.op.startswith("Reduce") and link.attributes.get("keepdims", 1):
        return rank
    axes = _axes(link, integers) if link.op in LOSING else ()
    return rank - len(axes) if axes else None


def _axes(link: Link, integers: Integers) -> tuple[int, ...]:
    axes = link.attributes.get("axes", integers.get(link.inputs[1]) if len(link.inputs) > 1 else None)
    return tuple(axis for axis in axes if isinstance(axis, int)) if isinstance(axes, tuple) else ()
