"""The tensors of a region in their layouts: plain, in phases, in phases of phases; how one becomes another.

A tensor [N, C, *H] in a layer is [N * P, C, *M], and phase r of image n stands at n * P + r. The next layer takes that
as [N', C, *M], so the zeros that it needs are the enter of the enter of ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dilrewrite.forms.builder import INFER, Builder, Cut, Extent, Tensor, Unsupported
from dilrewrite.forms.cells import FLOATS, Axes, Axis, Space
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.extents import known
from dilrewrite.forms.fragment import AttributeValue, Node
from dilrewrite.forms.geometry import product
from dilrewrite.forms.grid import Grid, spread, within
from dilrewrite.forms.layout import AxisLayout, Layout
from dilrewrite.forms.strategies._phases import join_phases, pad_axes, phases_first, sizes
from dilrewrite.model.elements import NAMED

STORED = 2**16
"""How many values a factor of a mask has at most where it is stored."""


@dataclass(frozen=True, slots=True)
class Held:
    """A tensor in a layer; `clean`: whether the cells around the data are zeros."""

    tensor: Tensor
    clean: bool = True


@dataclass(slots=True)
class Layer:
    """What lies in one layout: the block, how each tensor lies, those that do already."""

    block: tuple[int, ...] = ()
    grid: Grid = field(default_factory=lambda: Grid({}, ()))
    held: dict[str, Held] = field(default_factory=dict)


class Layers:
    """All layers of a region, the plain one first. Raises `Unsupported` where an opset lacks what is needed."""

    def __init__(self, chain: Chain, builder: Builder, plain: Mapping[str, Tensor], how: str) -> None:
        self.chain, self.builder, self.how = chain, builder, how
        self.layers = [Layer(held={name: Held(tensor) for name, tensor in plain.items()})]
        self.known: dict[str, Extent] = {}
        self.parts: dict[str, tuple[Axis, int]] = {}
        self.masks: dict[object, Tensor] = {}
        self.numbers: dict[tuple[int, str], Tensor] = {}
        self.masked: dict[tuple[str, int, str], Tensor] = {}
        space, inner = Space(chain, chain.block), chain
        self.given: dict[str, tuple[Tensor, int, int]] = {}
        for name, tensor in plain.items():
            for place, (root, more) in enumerate(space.sizes(name) or ()):
                self.given.setdefault(root, (tensor, place + 2, more))
        for block in (chain.block, *(block for block, _ in chain.nests)):
            grid = spread(inner, block)
            self.layers.append(Layer(block, grid))
            inner = within(inner, grid)
            for axis in (axis for axes in grid.axes.values() for axis in axes if axis.root):
                self.parts[axis.part] = axis, axis.cells % axis.block

    # -- sizes ---------------------------------------------------------------------------------------------------

    def _root(self, name: str) -> Extent:
        """Return an unknown size: of a tensor that enters, or of the phases that it is split into."""
        if name not in self.known:
            if name in self.given:
                tensor, axis, more = self.given[name]
                self.known[name] = self.builder.extent(tensor, axis) - more
            else:
                self.known[name] = self._samples(*self.parts[name])
        return self.known[name]

    def extent(self, axis: Axis) -> Extent:
        """Return the size of the data along an axis."""
        return self._root(axis.root) + axis.extent if axis.root else axis.extent

    def _samples(self, axis: Axis, cells: int) -> Extent:
        return (self._root(axis.root) + (cells + axis.block - 1)) // axis.block if axis.root else axis.samples or 0

    def layout(self, axes: Axes) -> Layout:
        """Return a layout with sizes that the builder computes with."""
        made = []
        for axis in axes:
            extent, samples = self.extent(axis), self._samples(axis, axis.cells)
            back = samples * axis.block - extent - axis.front
            if axis.root:
                back = self.builder.bounded(back, axis.cells - axis.front - axis.extent + axis.block - 1)
            back = 0 if axis.full else back
            made.append(AxisLayout(extent=extent, samples=samples, block=axis.block, front=axis.front, back=back))
        return Layout(axes=tuple(made))

    def shape(self, name: str, level: int) -> tuple[Extent | None, ...]:
        """Return the shape of a tensor in a layer, as far as it is known."""
        known, axes = self.chain.shapes.get(name, (None, None)), self.axes(name, level)
        phases = product(axis.block for layer in self.layers[1 : level + 1] for axis in layer.grid.axes[name])
        batch = None if known[0] is None else known[0] * phases
        return batch, known[1], *(axis.samples for axis in axes)

    def axes(self, name: str, level: int) -> Axes:
        """Return how a tensor lies in a layer."""
        return self.layers[level].grid.axes[name]

    def full(self, name: str, level: int) -> bool:
        """Say whether a tensor has no cells around its data in any layer."""
        return all(axis.full for layer in self.layers[1 : level + 1] for axis in layer.grid.axes[name])

    def element(self, name: str) -> str:
        """Return the element type of a tensor; what is not known of a region of Convs is theirs."""
        return self.chain.elements.get(name, self.builder.geometry.element)

    # -- from layer to layer -------------------------------------------------------------------------------------

    def at(self, name: str, level: int) -> Held:
        """Return a tensor in a layer; it is brought there once."""
        held = self.layers[level].held
        if name not in held:
            if any(name in layer.held for layer in self.layers[level + 1 :]):
                inner = self.at(name, level + 1)
                held[name] = Held(self._leave(name, inner.tensor, self.axes(name, level + 1)), inner.clean)
            else:
                outer = self.at(name, level - 1)
                held[name] = Held(self.enter(outer.tensor, self.axes(name, level)), outer.clean)
        return held[name]

    def put(self, name: str, level: int, tensor: Tensor, *, clean: bool) -> None:
        """Note what an operator made."""
        self.layers[level].held[name] = Held(tensor, clean)

    def enter(self, tensor: Tensor, axes: Axes) -> Tensor:
        """Split a tensor into phases."""
        builder, layout = self.builder, self.layout(axes)
        builder.x = tensor
        padded = pad_axes(builder, layout)
        batch, channels = tensor.shape[0], builder.extent(tensor, 1)
        known = all(isinstance(axis.samples, int) for axis in layout.axes) and isinstance(channels, int)
        first: Extent = INFER if batch is None and known else builder.extent(tensor, 0) * layout.phases
        if self.how == "depth" and layout.square is not None and builder.has_depth_to_space:
            deep = builder.space_to_depth(padded, layout.square)
            return builder.reshape(deep, [first, channels, 0, 0])
        apart, lengths = phases_first(builder, padded, layout, self.how)
        return builder.reshape(apart, [first, channels, *lengths])

    def _leave(self, name: str, tensor: Tensor, axes: Axes) -> Tensor:
        builder, layout = self.builder, self.layout(axes)
        channels = builder.extent(tensor, 1)
        if (
            self.how == "depth"
            and layout.square is not None
            and builder.has_depth_to_space
            and self.element(name) in FLOATS
        ):
            deep = builder.reshape(tensor, [INFER, channels * layout.phases, 0, 0])
            joined = builder.depth_to_space(deep, layout.square)
        else:
            lengths = sizes(builder, tensor, layout)
            uncut = Layout(
                axes=tuple(AxisLayout(extent=None, samples=axis.samples, block=axis.block) for axis in layout.axes)
            )
            joined = join_phases(builder, tensor, uncut, lengths, channels, self.how)
        return builder.slice(
            joined,
            {
                place + 2: Cut(axis.front, axis.extent + axis.front)
                for place, axis in enumerate(layout.axes)
                if axis.extent is not None and not axes[place].full
            },
        )

    def repeated(self, name: str, level: int) -> Tensor:
        """Return a plain tensor with one value per image and channel, repeated for the phases of each image."""
        builder, tensor = self.builder, self.at(name, 0).tensor
        times = product(block for layer in self.layers[1 : level + 1] for block in layer.block)
        ones = [1] * (len(tensor.shape) - 2)
        channels = builder.extent(tensor, 1)
        shape = tensor.shape[0], channels * times, *ones
        tiled = self.node("Tile", [tensor.name, builder.constant([1, times, *ones])], shape)
        return builder.reshape(tiled, [INFER, channels, *ones])

    # -- zeros ---------------------------------------------------------------------------------------------------

    def node(
        self, op: str, inputs: Sequence[str], shape: Sequence[Extent | None], **attributes: AttributeValue
    ) -> Tensor:
        """Add an operator that is no part of the user's model."""
        name = self.builder.fresh(op.lower())
        return self.builder.step(Node(op, tuple(inputs), (name,), attributes), shape)

    def number(self, value: int, element: str) -> Tensor:
        """Return a whole number as a tensor [1] of floats."""
        if (value, element) not in self.numbers:
            made = self.node("Cast", [self.builder.constant([value])], (1,), to=NAMED[element].number)
            self.numbers[value, element] = made
        return self.numbers[value, element]

    def mask(self, name: str, level: int) -> Tensor:
        """Return where the data of a tensor are: ones, laid like it, as booleans."""
        key = tuple(self.axes(name, each) for each in range(1, level + 1))
        if key not in self.masks:
            size = self._batch(), 1, *(self.extent(axis) for axis in key[0])
            ones = self._stored(size, key) or self._computed(size, key)
            self.masks[key] = self.node("Cast", [ones.name], ones.shape, to=NAMED["bool"].number)
        return self.masks[key]

    def _computed(self, size: Sequence[Extent], layouts: Sequence[Axes]) -> Tensor:
        """Return ones [N, 1, *H], brought into one layout after the other at run time."""
        one = self.number(1, self.builder.geometry.element)
        ones = self.node("Expand", [one.name, self.builder.vector(size)], size)
        for axes in layouts:
            ones = self.enter(ones, axes)
        return ones

    def _stored(self, size: Sequence[Extent], layouts: Sequence[Axes]) -> Tensor | None:
        """Return the same as a product of one factor for each axis, or `None` where one is too large to be stored.

        For runtimes that compute with no constants.
        """
        static = known(size)
        blocks = [axis.block for axes in layouts for axis in axes]
        samples = [axis.samples or 0 for axis in layouts[-1]]
        if static is None or static[0] * product(blocks) * max(samples) > STORED:
            return None
        factors = []
        for place, length in enumerate(samples):
            _, *phases, cell = np.indices((static[0], *blocks, length))
            inside = np.ones_like(cell)
            for axes, at in reversed([*zip(layouts, phases[place :: len(samples)], strict=True)]):
                cell = cell * axes[place].block + at - axes[place].front
                inside &= (cell >= 0) & (cell < axes[place].extent)
            stored = Tensor(self.builder.constant(inside.ravel().tolist()), (inside.size,))
            shape = [length if axis == place else 1 for axis in range(len(samples))]
            factor = self.builder.reshape(stored, [static[0] * product(blocks), 1, *shape])
            factors.append(self.node("Cast", [factor.name], factor.shape, to=NAMED["float32"].number))
        made = factors[0]
        for factor in factors[1:]:
            made = self.node("Mul", [made.name, factor.name], (*made.shape[:2], *samples))
        return made

    def _batch(self) -> Extent:
        """Return the number of images."""
        inside = self.layers[1].grid.axes
        name = next(name for name in self.chain.inputs if name in inside)
        return self.builder.extent(self.layers[0].held[name].tensor, 0)

    def filled(self, name: str, level: int, value: Tensor) -> Tensor:
        """Return a tensor with a value around its data."""
        element, key = self.element(name), (name, level, value.name)
        least = 16 if element == "bfloat16" else 9
        if self.builder.opset < least:
            raise Unsupported(f"opset {self.builder.opset} has no Where for {element} (opset {least})")
        if key not in self.masked:
            tensor, mask = self.at(name, level).tensor, self.mask(name, level)
            self.masked[key] = self.node("Where", [mask.name, tensor.name, value.name], tensor.shape)
        return self.masked[key]
