"""Says which unknown sizes of a model's inputs are extents and which are batches: how they reach its convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto

from dilrewrite.model.light import UNKNOWN, Shape, Typed, graph_shapes, without_declarations, without_weights
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


@dataclass(frozen=True, slots=True)
class Convolution:
    """As shape inference sees it: its input's shape and the channels that its weights need, `None` where not known."""

    shape: Shape | None = None
    dilations: tuple[int, ...] = ()
    needs: int | None = None

    @property
    def channels(self) -> int | None:
        """Return the channels of its input."""
        return self.shape[1] if self.shape is not None and len(self.shape) > 1 else None


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
        self._declared = self._inferred()

    def channels(self) -> dict[str, int]:
        """Return the unknown sizes that are the channels of a convolution's input, and how many its weights need."""
        needs = [one.needs if one.channels is None else None for one in self._declared]
        found: dict[str, int] = {}
        for symbol in dict.fromkeys(self._symbols.values()) if any(needs) else ():
            for one, other, need in zip(self._seen({symbol: LONG}), self._seen({symbol: LONGER}), needs, strict=True):
                if need and (one.channels, other.channels) == (LONG, LONGER):
                    found[symbol] = need
        return found

    def roles(self) -> dict[str, bool]:
        """Return which unknown sizes are extents (True) and which are batches (False).

        An extent changes a spatial axis of a convolution's input, a batch the first axis alone. A size is left out
        where inference does not tell.
        """
        found = {}
        first = sorted(self._symbols, key=lambda place: place[1])
        for symbol in list(dict.fromkeys(self._symbols[place] for place in first))[:MANY_SIZES]:
            pairs = zip(self._seen({symbol: LONG}), self._seen({symbol: LONGER}), strict=True)
            shapes = [(one.shape or (None,), other.shape or (None,)) for one, other in pairs]
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
            for one in self._seen(sizes)
            for extent, dilation in zip((one.shape or ())[2:] or [None] * 3, one.dilations, strict=False)
            if dilation > 1
        )

    def _seen(self, sizes: Mapping[str, int]) -> list[Convolution]:
        """Return the convolutions where some unknown sizes are as given and the others as usual."""
        for place, symbol in self._symbols.items():
            self._dims[place].dim_value = sizes.get(symbol, USUAL)
        return self._inferred()

    def _inferred(self) -> list[Convolution]:
        inferred = infer_shapes(self._light)
        hidden = [Convolution()] if inferred.functions else []  # there may be one in them
        return [*_convolutions(inferred.graph, {}), *hidden]


def _convolutions(graph: GraphProto, outer: Mapping[str, Typed]) -> Iterator[Convolution]:
    """Yield the convolutions of a graph and those inside it; names are looked up from the inside out."""
    shapes = {**outer, **graph_shapes(graph)}
    for node in graph.node:
        if node.op_type in CONVOLUTIONS and node.input:
            dilations, _ = dilations_of(node) if operator_of(node) else ((), False)
            yield Convolution(shapes.get(node.input[0], UNKNOWN)[1], dilations, _needs(node, shapes))
        for _, _, inner in subgraphs(node):
            yield from _convolutions(inner, shapes)


def _needs(node: NodeProto, shapes: Mapping[str, Typed]) -> int | None:
    """Return how many channels the weights of a convolution, channels first, need."""
    place = 3 if node.op_type == "QLinearConv" else 1
    weights = shapes.get(node.input[place], UNKNOWN)[1] if len(node.input) > place else None
    if not weights or len(weights) < 3 or node.op_type == "NhwcFusedConv":
        return None
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return weights[0] if node.op_type == "ConvTranspose" else weights[1] and weights[1] * group


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
