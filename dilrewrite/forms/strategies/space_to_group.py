"""space_to_group: the phases become channel groups; the weights are repeated for each phase."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.fragment import RepeatOutputs
from dilrewrite.forms.geometry import ConvGeometry, Limit, product
from dilrewrite.forms.strategies import Strategy, _phases


@final
@dataclass(frozen=True, slots=True)
class SpaceToGroup(Strategy):
    """SpaceToDepth, a Conv with group * b * b and repeated weights, DepthToSpace.

    Square 2-D blocks go through SpaceToDepth, everything else through a Transpose for each axis. Refuses where the
    repeated weights would exceed `limit_mb` MiB. `max_dilation`: dilations up to it may remain in the Conv. `layout`:
    see `LAYOUTS`.
    """

    max_dilation: Limit = 1
    limit_mb: int = 64
    layout: str = "depth"

    def __post_init__(self) -> None:
        """Check `layout`."""
        _phases.check_layout(self.layout)

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse overlapping phases, and weights beyond the limit."""
        reason = _phases.overlap_refusal(geometry, self.max_dilation)
        if reason:
            return reason
        if geometry.weight_bytes is None:
            return "the channel counts are not known, so the size of the repeated weights is not"
        times = product(tuple(geometry.phases(axis, self.max_dilation).block for axis in geometry.axes))
        size = geometry.weight_bytes * times
        if size > self.limit_mb * 2**20:
            return (
                f"{times}-fold weights of {geometry.weight_bytes / 2**20:.1f} MiB would take {size / 2**20:.1f} MiB, "
                f"above limit_mb={self.limit_mb}"
            )
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, phases into channels, the grouped Conv, and the way back."""
        plan = _phases.plan_phases(builder, geometry, self.max_dilation)
        x = _phases.thin_axes(builder, _phases.pad_axes(builder, plan.enter), plan.enter)
        blocks, times = plan.enter.blocks, plan.enter.phases
        block = _phases.by_depth(builder, plan.enter, self.layout)
        if not blocks:
            return builder.conv(x, plan.window)
        if block is not None:
            phases = builder.space_to_depth(x, block)
        else:
            first, lengths = _phases.phases_first(builder, x, plan.enter, self.layout, in_batch=False)
            phases = builder.reshape(first, [builder.batch(), builder.extent(x, 1) * times, *lengths])
        outputs = geometry.out_channels
        assert outputs is not None, "refused above"
        y = builder.conv(
            phases,
            plan.window,
            group=geometry.group * times,
            out_channels=outputs * times,
            weight=[RepeatOutputs(times)],
            bias_times=times,
        )
        return _phases.from_channels(builder, y, plan.leave, outputs, block, self.layout)


STRATEGY = SpaceToGroup()
