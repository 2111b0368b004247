"""How the tensors of a chain lie in phases, whether their extents are known or not, and what an operator does to that.

A tensor [N, C, *H] lies as [N * P, C, *M]: P phases, `block` on each axis. Sample q of phase r is the cell
r + q * block of an axis; the data stand in the cells `front <= cell < front + extent`. The cells around them are zeros
behind the enter and behind a mask, and anything behind a Conv (docs/maths.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dilrewrite.forms.chain import Chain, Size
from dilrewrite.forms.fragment import AttributeValue
from dilrewrite.forms.geometry import ceil_div

FLOATS = ("float32", "float16", "bfloat16", "float64")
"""The element types that may enter: what pads and layout operators take everywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One spatial axis. Where `root` names an unknown size, that is to be added to `extent` and to `cells`.

    Each phase has ceil(cells / block) samples.
    """

    block: int
    extent: int
    front: int
    cells: int
    root: str = ""

    @property
    def samples(self) -> int | None:
        """Return the samples of a phase, `None` where the extent is unknown."""
        return None if self.root else ceil_div(self.cells, self.block)

    @property
    def back(self) -> int | None:
        """Return the cells behind the data, `None` where their number is unknown."""
        if self.root:
            return 0 if self.block == 1 and self.cells == self.front + self.extent else None
        return ceil_div(self.cells, self.block) * self.block - self.front - self.extent

    @property
    def full(self) -> bool:
        """Say whether there are no cells around the data."""
        return self.front == 0 and self.back == 0

    @property
    def size(self) -> Size:
        """Return the extent."""
        return self.root, self.extent

    @property
    def part(self) -> str:
        """Return the name of ceil((root + cells % block) / block), from which the number of samples follows."""
        return f"{self.root}+{self.cells % self.block}/{self.block}" if self.root else ""

    def becomes(self, extent: int, front: int) -> tuple[Axis, int]:
        """Return the axis with other data, and how many samples more each phase has.

        Of an unknown extent only the number of samples more is known, so there may be more than are needed.
        """
        more = ceil_div(front + extent - self.cells, self.block)
        cells = self.cells + more * self.block
        return Axis(block=self.block, extent=extent, front=front, cells=cells, root=self.root), more


Axes = tuple[Axis, ...]


def entered(extent: int, block: int, front: int = 0, root: str = "") -> Axis:
    """Return how an axis lies behind the enter."""
    cells = front + extent if root else ceil_div(front + extent, block) * block
    return Axis(block=block, extent=extent, front=front, cells=cells, root=root)


def data(axis: Axis) -> tuple[int, int, int]:
    """Return front, extent and samples of an axis that are known."""
    assert axis.samples is not None
    return axis.front, axis.extent, axis.samples


@dataclass(frozen=True, slots=True)
class Phased:
    """An operator on phases.

    `inputs`: how its inputs must lie (None: as they are, outside of the layout). `axes`: how its outputs lie. `clean`:
    whether the cells around its data are zeros if those of its inputs are; `needs`: whether it has to read zeros there.
    `attributes`: in place of its own. `cuts`: what to cut first from each split axis of the first input, in samples at
    the begin and the end; `grows`: what to pad. `repeated`: inputs with one value for each image, which are to be
    repeated for its phases. `fold`: a reduction over space, of the phases too; its output is out of the layout.
    """

    inputs: tuple[Axes | None, ...]
    axes: Axes
    clean: bool
    needs: bool = False
    attributes: Mapping[str, AttributeValue] | None = None
    cuts: tuple[tuple[int, int], ...] = ()
    grows: tuple[tuple[int, int], ...] = ()
    repeated: frozenset[int] = frozenset()
    fold: str = ""


@dataclass(frozen=True, slots=True)
class Space:
    """What rows ask: the chain, the block of each spatial axis, and the shapes that are known."""

    chain: Chain
    block: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Return the number of spatial axes."""
        return len(self.block)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Return the shape of a tensor."""
        return self.chain.shapes.get(name)

    def spatial(self, name: str) -> bool | None:
        """Say whether a tensor has the spatial axes (True), is constant along them (False), or something else."""
        shape, constant = self.shape(name), name in self.chain.constants
        if shape is None or len(shape) > self.rank + 2:
            return None
        if all(size == 1 for size in shape[-self.rank :]):
            return None if constant and self.each_image(name) else False
        return True if len(shape) == self.rank + 2 and not constant else None

    def each_image(self, name: str) -> bool:
        """Say whether a tensor may have values of its own for each image."""
        shape = self.shape(name) or ()
        return len(shape) == self.rank + 2 and shape[0] != 1

    def sizes(self, name: str) -> tuple[Size, ...] | None:
        """Return the extents of a tensor with the spatial axes."""
        shape = self.shape(name)
        if shape is None or len(shape) != self.rank + 2:
            return None
        unknown = self.chain.extents.get(name) or tuple((f"{name}:{axis}", 0) for axis in range(self.rank))
        return tuple(known if size is None else ("", size) for size, known in zip(shape[2:], unknown, strict=True))

    def natural(self, name: str, like: Axes = ()) -> Axes | None:
        """Return how a tensor of floats lies when it enters, or when it enters beside one that lies `like` this.

        A constant does not enter.
        """
        sizes = self.sizes(name)
        if sizes is None or name in self.chain.constants or self.chain.elements.get(name, FLOATS[0]) not in FLOATS:
            return None
        if like:
            return like if sizes == tuple(axis.size for axis in like) else None
        return tuple(entered(more, block, root=root) for (root, more), block in zip(sizes, self.block, strict=True))

    def lies(self, name: str, known: Mapping[str, Axes]) -> Axes | None:
        """Return how a tensor lies, or would."""
        return known.get(name) or self.natural(name)

    def together(self, names: list[str], known: Mapping[str, Axes]) -> Axes | None:
        """Return how tensors of equal extents lie when all of them lie alike, None where they cannot."""
        axes = next((known[name] for name in names if name in known), None) or self.natural(names[0])
        fits = axes is not None and all((known.get(name) or self.natural(name, axes)) == axes for name in names)
        return axes if fits else None
