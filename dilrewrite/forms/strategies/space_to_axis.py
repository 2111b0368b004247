"""space_to_axis: the phases become one more spatial axis; a free Reshape wherever a single axis is dilated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from dilrewrite.forms.builder import Builder, Extent, Tensor
from dilrewrite.forms.fragment import AddKernelAxis, SwapKernelAxes
from dilrewrite.forms.geometry import ConvGeometry, Limit, Window
from dilrewrite.forms.layout import Layout
from dilrewrite.forms.strategies import Strategy, _phases


@final
@dataclass(frozen=True, slots=True)
class SpaceToAxis(Strategy):
    """1-D: [N, C, L] -> [N, C, M, b] with kernel (k, 1); 2-D: a Conv of rank 3. In the 2016 benchmark: Subpixel DCD.

    One split axis gets its phases as an axis right behind it, which is a Reshape both ways. Two split axes share one
    phase axis [N, C, b*b, M, M] with kernel (1, k, k). A split axis beside one with a single tap, stride 1 and no pads
    keeps the rank: the phases go into that axis, [N, C, H, W] -> [N, C, H/b, b*W] for kernel (k, 1), and for kernel
    (1, k) [N, C, H*W/b, b], where zeros part the rows. `max_dilation`: dilations up to it may remain in the Conv.
    """

    max_dilation: Limit = 1

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse rank 3, which would need a Conv of rank 4, and overlapping phases."""
        if geometry.rank > 2 and self._beside(geometry) is None:
            return f"a Conv of rank {geometry.rank} with one more axis has rank {geometry.rank + 1}; runtimes stop at 3"
        return _phases.overlap_refusal(geometry, self.max_dilation)

    def _beside(self, geometry: ConvGeometry) -> tuple[int, int] | None:
        """Return the only axis that is split, and the one beside it that takes its phases, where there are such."""
        split = [axis for axis in geometry.axes if geometry.phases(axis, self.max_dilation).block > 1]
        if len(split) != 1:
            return None
        axis, (begin, end) = split[0], geometry.static_pads
        for other in (axis + 1, axis - 1):
            idle = 0 <= other < geometry.rank and geometry.kernel[other] == geometry.strides[other] == 1
            # Rows that lie one behind the other hide an extent too small for the original: so it has to be known.
            if idle and begin[other] == end[other] == 0 and (other > axis or geometry.extents[axis] is not None):
                return axis, other
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, the Reshape, the Conv, and the way back."""
        plan = _phases.plan_phases(builder, geometry, self.max_dilation)
        beside = self._beside(geometry)
        if beside is not None and beside[1] < beside[0]:
            return self._rows(builder, plan, beside[0])
        x = _phases.thin_axes(builder, _phases.pad_axes(builder, plan.enter), plan.enter)
        split, blocks = plan.enter.split, plan.enter.blocks
        if not split:
            return builder.conv(x, plan.window)
        samples = _phases.sizes(builder, x, plan.enter)
        if beside is not None:
            other = beside[1]
            folded = [*samples[:other], samples[other] * blocks[0], *samples[other + 1 :]]
            y = builder.conv(builder.reshape(x, [0, 0, *folded]), plan.window)
            return _phases.merge(builder, y, plan.leave, _lengths(builder, y, plan.leave, {other: samples[other]}))
        apart = builder.reshape(x, [0, 0, *_phases.interleaved(samples, plan.enter)])
        place = split[0] + 1 if len(split) == 1 else 0
        if len(split) > 1:
            turned = builder.transpose(apart, [0, 1, 3, 5, 2, 4])
            apart = builder.reshape(turned, [0, 0, plan.enter.phases, *samples])
        y = builder.conv(apart, plan.window.with_axis(place), weight=[AddKernelAxis(place)])
        lengths = _phases.sizes(builder, y, plan.leave, beside=place)
        if len(split) > 1:
            y = builder.transpose(builder.reshape(y, [0, 0, *blocks, *lengths]), [0, 1, 4, 2, 5, 3])
        return _phases.merge(builder, y, plan.leave, lengths)

    @staticmethod
    def _rows(builder: Builder, plan: _phases.Plan, axis: int) -> Tensor:
        """Lay the rows of the axis before `axis` one behind the other; the pads of each are written between them."""
        window, layout, other = plan.window, plan.enter.axes[axis], axis - 1
        block, before, behind = layout.block, window.begin[axis], window.end[axis]
        rows = builder.x.shape[other + 2]
        enter, one = plan.enter, rows == 1
        if not one:
            assert layout.back is not None, "the input's layout"
            layout = replace(layout, front=layout.front + before * block, back=layout.back + behind * block)
            enter = replace(enter, axes=(*enter.axes[:axis], layout, *enter.axes[axis + 1 :]))
        x = _phases.thin_axes(builder, _phases.pad_axes(builder, enter), enter)
        samples = _phases.sizes(builder, x, enter)
        if not one:
            samples[axis] = samples[axis] + (before + behind)
        reach = window.dilations[axis] * (window.kernel[axis] - 1)
        sides = (before, behind) if one else (0, reach)
        along = [samples[axis] * samples[other], block]
        turned = Window(
            kernel=_turned(window.kernel, other),
            strides=_turned(window.strides, other),
            dilations=_turned(window.dilations, other),
            begin=(*window.begin[:other], sides[0], 0, *window.begin[axis + 1 :]),
            end=(*window.end[:other], sides[1], 0, *window.end[axis + 1 :]),
        )
        folded = builder.reshape(x, [0, 0, *samples[:other], *along, *samples[axis + 1 :]])
        y = builder.conv(folded, turned, weight=[SwapKernelAxes(other, axis)])
        known = {other: samples[other]} if one else {other: samples[other], axis: samples[axis]}
        return _phases.merge(builder, y, plan.leave, _lengths(builder, y, plan.leave, known))


def _lengths(builder: Builder, y: Tensor, layout: Layout, known: Mapping[int, Extent]) -> list[Extent]:
    """Return the samples per phase of every axis, `known` for some."""
    axes = (replace(axis, samples=known.get(place, axis.samples)) for place, axis in enumerate(layout.axes))
    return _phases.sizes(builder, y, Layout(axes=tuple(axes)))


def _turned(sizes: tuple[int, ...], first: int) -> tuple[int, ...]:
    """Return the sizes with those of axis `first` and the next exchanged."""
    return (*sizes[:first], sizes[first + 1], sizes[first], *sizes[first + 2 :])


STRATEGY = SpaceToAxis()
