"""space_to_group: the phases become channel groups; the weights are repeated for each phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import INFER, Builder, Tensor
from dilrewrite.forms.fragment import RepeatOutputs
from dilrewrite.forms.geometry import ConvGeometry
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
class SpaceToGroup:
    """SpaceToDepth, a Conv with group * b * b and repeated weights, DepthToSpace.

    Square 2-D blocks go through SpaceToDepth, everything else through Reshape and Transpose. Refuses where the repeated
    weights would exceed `limit_mb` MiB. `max_dilation`: dilations up to it may remain in the Conv.
    """

    max_dilation: int = 1
    limit_mb: int = 64

    @property
    def prunes(self) -> bool:
        """Cut dead taps."""
        return True

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse overlapping phases, and weights beyond the limit."""
        reason = overlap_refusal(geometry, self.max_dilation)
        if reason:
            return reason
        if geometry.weight_bytes is None:
            return "the channel counts are not known, so the size of the repeated weights is not"
        times = 1
        for axis in geometry.axes:
            times *= geometry.phases(axis, self.max_dilation).block
        size = geometry.weight_bytes * times
        if size > self.limit_mb * 2**20:
            return (
                f"{times}-fold weights of {geometry.weight_bytes / 2**20:.1f} MiB would take {size / 2**20:.1f} MiB, "
                f"above limit_mb={self.limit_mb}"
            )
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, phases into channels, the grouped Conv, and the way back."""
        plans = plan_axes(builder, geometry, self.max_dilation)
        x = thin_axes(builder, pad_axes(builder, plans), plans)
        split = split_axes(plans)
        times = 1
        for plan in split:
            times *= plan.block
        square = geometry.rank == 2 and len(split) == 2 and split[0].block == split[1].block
        deep = square and builder.has_depth_to_space
        if not split:
            phases = x
        elif deep:
            phases = builder.space_to_depth(x, split[0].block)
        else:
            first, lengths = phases_first(builder, x, plans)
            phases = builder.reshape(first, [builder.batch(), builder.mul(builder.extent(x, 1), times), *lengths])
        outputs = geometry.out_channels
        y = builder.conv(
            phases,
            kernel=geometry.kernel,
            strides=[plan.phases.stride for plan in plans],
            dilations=[plan.phases.dilation for plan in plans],
            pads_begin=[plan.pads[0] for plan in plans],
            pads_end=[plan.pads[1] for plan in plans],
            group=geometry.group * times,
            out_channels=None if outputs is None else outputs * times,
            weight=[RepeatOutputs(times)] if times > 1 else [],
            bias_times=times,
        )
        if not split:
            return y
        if deep:
            return crop(builder, builder.depth_to_space(y, split[0].block), plans)
        assert outputs is not None, "refused above"
        lengths = sizes(builder, y, plans)
        apart = builder.reshape(y, [INFER, *(plan.block for plan in split), outputs, *lengths])
        return join_phases(builder, apart, plans, lengths, batch=0)


STRATEGY = SpaceToGroup()
