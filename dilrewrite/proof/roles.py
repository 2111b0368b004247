"""Says which unknown sizes of a model's inputs are extents and which are batches: how they reach its convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import onnx.inliner
from onnx import GraphProto, ModelProto

from dilrewrite.model.light import Shape, Typed, graph_shapes, without_declarations, without_weights
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.model.walk import fed, subgraphs, written_out
from dilrewrite.sites.known import CONVOLUTIONS
from dilrewrite.sites.operators import dilations_of, operator_of

USUAL, LONG, LONGER = 240, 5040, 10080
"""What shapes are inferred with: divisible by what networks divide by. One size is long, then longer."""
MANY_SIZES = 16
"""Of this many unknown sizes it is asked whether they are extents or batches."""
MANY_NODES = 2**14
"""Functions that come to more nodes are not looked into."""


Convolution = tuple[Shape | None, tuple[int, ...]]
"""As shape inference sees it: its input's shape, with `None` for what is not known, and its dilations."""


class Convolutions:
    """Tells how the sizes of a model's inputs reach its convolutions, by shape inference from the inputs alone."""

    def __init__(self, proto: ModelProto) -> None:
        self._light = without_declarations(_inlined(without_weights(proto)))
        self._dims = {
            (value.name, axis): dim
            for value in fed(self._light)
            for axis, dim in enumerate(value.type.tensor_type.shape.dim)
            if not dim.HasField("dim_value")
        }
        self._symbols = {place: symbol_of(*place, dim.dim_param) for place, dim in self._dims.items()}

    def roles(self) -> dict[str, bool]:
        """Return which unknown sizes are extents (True) and which are batches (False).

        An extent changes a spatial axis of a convolution's input, a batch the first axis alone. A size is left out
        where inference does not tell.
        """
        found = {}
        first = sorted(self._symbols, key=lambda place: place[1])
        for symbol in list(dict.fromkeys(self._symbols[place] for place in first))[:MANY_SIZES]:
            pairs = zip(self._seen({symbol: LONG}), self._seen({symbol: LONGER}), strict=True)
            shapes = [(one[0] or (None,), other[0] or (None,)) for one, other in pairs]
            if any(a != b for one, other in shapes for a, b in zip(one[2:], other[2:], strict=False)):
                found[symbol] = True
            elif None not in itertools.chain(*itertools.chain(*shapes)) and any(a[0] != b[0] for a, b in shapes):
                found[symbol] = False
        return found

    def reached(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Say whether on inputs of these shapes every dilated Conv reads two values that are a dilation apart.

        On shorter ones it does not matter what the dilation is: all taps but one read padding.
        """
        largest = max(itertools.chain(*shapes.values()), default=0)
        sizes = {symbol: shapes[name][axis] for (name, axis), symbol in self._symbols.items() if name in shapes}
        return all(
            (extent or largest) > dilation
            for shape, dilations in self._seen(sizes)
            for extent, dilation in zip((shape or ())[2:] or [None] * 3, dilations, strict=False)
            if dilation > 1
        )

    def _seen(self, sizes: Mapping[str, int]) -> list[Convolution]:
        """Return the convolutions where some unknown sizes are as given and the others as usual."""
        for place, symbol in self._symbols.items():
            self._dims[place].dim_value = sizes.get(symbol, USUAL)
        inferred = infer_shapes(self._light)
        hidden: list[Convolution] = [(None, ())] if inferred.functions else []  # there may be one in them
        return [*_convolutions(inferred.graph, {}), *hidden]


def _convolutions(graph: GraphProto, outer: Mapping[str, Typed]) -> Iterator[Convolution]:
    """Yield the convolutions of a graph and those inside it; names are looked up from the inside out."""
    shapes = {**outer, **graph_shapes(graph)}
    for node in graph.node:
        if node.op_type in CONVOLUTIONS and node.input:
            dilations, _ = dilations_of(node) if operator_of(node) else ((), False)
            yield shapes.get(node.input[0], (0, None))[1], dilations
        for _, _, inner in subgraphs(node):
            yield from _convolutions(inner, shapes)


def _inlined(proto: ModelProto) -> ModelProto:
    """Return a model with its functions' nodes in their place, unless they are too many; inference sees no function."""
    if not proto.functions or written_out(proto) > MANY_NODES:
        return proto
    try:
        return onnx.inliner.inline_local_functions(proto)
    except (onnx.checker.ValidationError, RuntimeError, ValueError):  # one name for two, a call with too many values
        return proto


def symbol_of(name: str, axis: int, size: int | str | None) -> str:
    """Return what stands for an unknown size: its own name, or its place."""
    return size if isinstance(size, str) and size else f"{name}[{axis}]"
