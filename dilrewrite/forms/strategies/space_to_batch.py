"""space_to_batch: the phases become batch entries by layout operators, one undilated Conv over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import INFER, Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry, Limit
from dilrewrite.forms.strategies import Strategy, _phases


@final
@dataclass(frozen=True, slots=True)
class SpaceToBatch(Strategy):
    """[N, C, H, W] -> [N*b*b, C, M, M], Conv, and back. In the 2016 benchmark: Batchroll DCD.

    Square 2-D blocks go through SpaceToDepth and a free Reshape, everything else through a Transpose for each axis.
    The weights stay untouched. `max_dilation`: dilations up to it may remain in the Conv. `layout`: see `LAYOUTS`.
    """

    max_dilation: Limit = 1
    layout: str = "depth"

    def __post_init__(self) -> None:
        """Check `layout`."""
        _phases.check_layout(self.layout)

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse overlapping phases."""
        return _phases.overlap_refusal(geometry, self.max_dilation)

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, phases into batch, Conv, and the way back."""
        plan = _phases.plan_phases(builder, geometry, self.max_dilation)
        x = _phases.thin_axes(builder, _phases.pad_axes(builder, plan.enter), plan.enter)
        blocks, times = plan.enter.blocks, plan.enter.phases
        block = _phases.by_depth(builder, plan.enter, self.layout)
        if not blocks:
            return builder.conv(x, plan.window)
        channels = builder.extent(x, 1)
        if block is not None:
            deep = builder.space_to_depth(x, block)
            phases = builder.reshape(deep, [builder.batch(times), channels, 0, 0])
        else:
            first, lengths = _phases.phases_first(builder, x, plan.enter, self.layout)
            phases = builder.reshape(first, [builder.batch(times), channels, *lengths])
        y = builder.conv(phases, plan.window)
        outputs = builder.extent(y, 1)
        if block is not None:
            deep = builder.reshape(y, [INFER, outputs * times, 0, 0])
            return _phases.crop(builder, builder.depth_to_space(deep, block), plan.leave)
        lengths = _phases.sizes(builder, y, plan.leave)
        return _phases.join_phases(builder, y, plan.leave, lengths, outputs, self.layout)


STRATEGY = SpaceToBatch()
