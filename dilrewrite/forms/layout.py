"""How a tensor lies in memory between entering and leaving the layout of the Convs (docs/maths.md, family 1).

A layout is made where phases are planned. A Conv carries it on: `AxisLayout.convolved` gives that of its output.
"""

from __future__ import annotations

from dataclasses import dataclass

from dilrewrite.forms.builder import Extent
from dilrewrite.forms.geometry import ceil_div, product


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisLayout:
    """One spatial axis: sample q of phase r is the cell r * step + q * grain * block of `front + extent + back` cells.

    Of those cells, the `extent` behind the first `front` are the valid range, the others are padding: zeros, unless
    `zeros` is false, as behind a Conv, which writes anything there. `block` phases have `samples` samples each; `None`
    where a size is known at run time only and can be asked of the tensor.
    """

    extent: Extent | None
    samples: Extent | None
    block: int = 1
    grain: int = 1
    step: int = 1
    front: Extent = 0
    back: Extent | None = 0
    zeros: bool = True

    @property
    def idle(self) -> bool:
        """Say whether the axis is left as it is."""
        return self.block == 1 and self.grain == 1

    @property
    def clean(self) -> bool:
        """Say whether every padded cell is a zero."""
        return self.zeros or (self.front == 0 and self.back == 0)

    def convolved(self, kernel: int, dilation: int, begin: int, end: int) -> tuple[tuple[int, int], AxisLayout]:
        """Return the pads of a Conv inside the phases, and the layout of its output.

        The layout has a known extent, front and grain 1, the Conv stride 1. `dilation` is the one left inside a phase,
        the pads are those along the whole axis. Raises `ValueError` where they read padded cells that are no zeros.
        """
        extent, samples, front = self.extent, self.samples, self.front
        assert isinstance(extent, int), "known"
        assert isinstance(samples, int), "known"
        assert isinstance(front, int), "known"
        if not self.clean and ((begin > 0 and front != 0) or (end > 0 and self.back != 0)):
            raise ValueError(
                f"pads ({begin}, {end}) read cells around the {extent} valid ones, which are no zeros here"
            )
        left = (front - begin) % self.block
        total = extent + begin + end - self.block * dilation * (kernel - 1)
        before = (begin - front + left) // self.block
        reach = samples + before - dilation * (kernel - 1)
        behind = max(0, ceil_div(total + left, self.block) - reach)
        back = (reach + behind) * self.block - left - total
        convolved = AxisLayout(
            extent=total, samples=reach + behind, block=self.block, front=left, back=back, zeros=False
        )
        return (before, behind), convolved


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All spatial axes of a tensor."""

    axes: tuple[AxisLayout, ...]

    @property
    def split(self) -> tuple[int, ...]:
        """Return the axes that are split into phases."""
        return tuple(place for place, axis in enumerate(self.axes) if axis.block > 1)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Return the number of phases of each axis that is split."""
        return tuple(self.axes[place].block for place in self.split)

    @property
    def phases(self) -> int:
        """Return the number of phases of all axes together."""
        return product(self.blocks)

    @property
    def square(self) -> int | None:
        """Return the block of two axes that are all there are and split alike, or `None`."""
        alike = len(self.axes) == len(self.blocks) == 2 and self.blocks[0] == self.blocks[1]
        return self.blocks[0] if alike else None
