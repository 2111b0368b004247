"""space_to_axis: the phases become one more spatial axis; a free Reshape wherever a single axis is dilated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.fragment import AddKernelAxis
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies._phases import (
    crop,
    interleaved,
    overlap_refusal,
    pad_axes,
    plan_axes,
    sizes,
    split_axes,
    thin_axes,
)


@final
@dataclass(frozen=True, slots=True)
class SpaceToAxis:
    """1-D: [N, C, L] -> [N, C, M, b] with kernel (k, 1); 2-D: a Conv of rank 3. In the 2016 benchmark: Subpixel DCD.

    One split axis gets its phases as an axis right behind it, which is a Reshape both ways. Two split axes share one
    phase axis [N, C, b*b, M, M] with kernel (1, k, k). `max_dilation`: dilations up to it may remain in the Conv.
    """

    max_dilation: int = 1

    @property
    def prunes(self) -> bool:
        """Cut dead taps."""
        return True

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse rank 3, which would need a Conv of rank 4, and overlapping phases."""
        if geometry.rank > 2:
            return f"a Conv of rank {geometry.rank} with one more axis has rank {geometry.rank + 1}; runtimes stop at 3"
        return overlap_refusal(geometry, self.max_dilation)

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, the Reshape, the Conv of one more axis, and the way back."""
        plans = plan_axes(builder, geometry, self.max_dilation)
        x = thin_axes(builder, pad_axes(builder, plans), plans)
        split = split_axes(plans)
        kernel = list(geometry.kernel)
        strides = [plan.phases.stride for plan in plans]
        dilations = [plan.phases.dilation for plan in plans]
        begin, end = [plan.pads[0] for plan in plans], [plan.pads[1] for plan in plans]
        if not split:
            return builder.conv(x, kernel=kernel, strides=strides, dilations=dilations, pads_begin=begin, pads_end=end)
        samples = [
            plan.samples if plan.samples is not None else builder.extent(x, axis + 2) for axis, plan in enumerate(plans)
        ]
        apart = builder.reshape(x, [0, 0, *interleaved(samples, plans)])
        if len(split) == 1:
            place = split[0].axis + 1
        else:
            place = 0
            turned = builder.transpose(apart, [0, 1, 3, 5, 2, 4])
            apart = builder.reshape(turned, [0, 0, split[0].block * split[1].block, *samples])
        y = builder.conv(
            apart,
            kernel=self._with(kernel, place, 1),
            strides=self._with(strides, place, 1),
            dilations=self._with(dilations, place, 1),
            pads_begin=self._with(begin, place, 0),
            pads_end=self._with(end, place, 0),
            weight=[AddKernelAxis(place)],
        )
        inner = Tensor(y.name, tuple(size for axis, size in enumerate(y.shape) if axis != place + 2))
        if len(split) == 1:
            lengths = [
                plan.outputs if plan.outputs is not None else builder.extent(y, plan.axis + 2 + (plan.axis >= place))
                for plan in plans
            ]
            joined = y
        else:
            lengths = sizes(builder, inner, plans)
            blocks = builder.reshape(y, [0, 0, split[0].block, split[1].block, *lengths])
            joined = builder.transpose(blocks, [0, 1, 4, 2, 5, 3])
        merged = [builder.mul(length, plan.block) for length, plan in zip(lengths, plans, strict=True)]
        return crop(builder, builder.reshape(joined, [0, 0, *merged]), plans)

    @staticmethod
    def _with(values: Sequence[int], place: int, value: int) -> list[int]:
        return [*values[:place], value, *values[place:]]


STRATEGY = SpaceToAxis()
