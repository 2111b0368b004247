"""space_to_batch: the phases become batch entries by layout operators, one undilated Conv over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import INFER, Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.strategies._phases import (
    crop,
    join_phases,
    overlap_refusal,
    pad_axes,
    phases_first,
    plan_axes,
    sizes,
    split_axes,
    thin_axes,
)


@final
@dataclass(frozen=True, slots=True)
class SpaceToBatch:
    """[N, C, H, W] -> [N*b*b, C, M, M], Conv, and back. In the 2016 benchmark: Batchroll DCD.

    Square 2-D blocks go through SpaceToDepth and a free Reshape, everything else through Reshape and Transpose.
    The weights stay untouched. `max_dilation`: dilations up to it may remain in the Conv.
    """

    max_dilation: int = 1

    @property
    def prunes(self) -> bool:
        """Cut dead taps."""
        return True

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse overlapping phases."""
        return overlap_refusal(geometry, self.max_dilation)

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, phases into batch, Conv, and the way back."""
        plans = plan_axes(builder, geometry, self.max_dilation)
        x = thin_axes(builder, pad_axes(builder, plans), plans)
        split = split_axes(plans)
        square = geometry.rank == 2 and len(split) == 2 and split[0].block == split[1].block
        channels = builder.extent(x, 1)
        times = product(tuple(plan.block for plan in split))
        if not split:
            phases = x
        elif square and builder.has_depth_to_space:
            deep = builder.space_to_depth(x, split[0].block)
            phases = builder.reshape(deep, [builder.batch(times), channels, 0, 0])
        else:
            first, lengths = phases_first(builder, x, plans)
            phases = builder.reshape(first, [builder.batch(times), channels, *lengths])
        y = builder.conv(
            phases,
            kernel=geometry.kernel,
            strides=[plan.phases.stride for plan in plans],
            dilations=[plan.phases.dilation for plan in plans],
            pads_begin=[plan.pads[0] for plan in plans],
            pads_end=[plan.pads[1] for plan in plans],
        )
        if not split:
            return y
        outputs = builder.extent(y, 1)
        if square and builder.has_depth_to_space:
            block = split[0].block
            deep = builder.reshape(y, [INFER, builder.mul(outputs, block * block), 0, 0])
            return crop(builder, builder.depth_to_space(deep, block), plans)
        lengths = sizes(builder, y, plans)
        apart = builder.reshape(y, [INFER, *(plan.block for plan in split), outputs, *lengths])
        return join_phases(builder, apart, plans, lengths, batch=0)


STRATEGY = SpaceToBatch()
