"""slice_to_batch: the phases are cut out by strided Slices and joined on the batch, overlapping ones too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry, Limit, product
from dilrewrite.forms.strategies import Strategy, _phases

SLICES_AT_ONCE = 16
"""Up to so many phases are cut out in one step, by a Slice for each."""


@final
@dataclass(frozen=True, slots=True)
class SliceToBatch(Strategy):
    """One strided Slice per phase, Concat on the batch, Conv, and back. In the 2016 benchmark: BatchStack DCD.

    The only phase form for overlapping phases (s' > 1). The weights stay untouched. `max_dilation`: dilations up to it
    may remain in the Conv. Refuses above `limit_nodes` Slices.
    """

    max_dilation: Limit = 1
    limit_nodes: int = 4096

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse very many phases."""
        blocks = [geometry.phases(axis, self.max_dilation).block for axis in geometry.axes]
        slices = min(product(tuple(blocks)), max(sum(blocks), SLICES_AT_ONCE))
        if slices > self.limit_nodes:
            return f"{product(tuple(blocks))} phases need {slices} slices, above limit_nodes={self.limit_nodes}"
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, Slices, Concat, Conv, and the way back."""
        plan = _phases.plan_phases(builder, geometry, self.max_dilation)
        x = _phases.pad_axes(builder, plan.enter)
        # All axes at once move the data once; with many phases, one axis after the other needs far fewer nodes.
        together = {place: axis for place, axis in enumerate(plan.enter.axes) if not axis.idle}
        few = plan.enter.phases <= SLICES_AT_ONCE
        for step in [together] if few else [{place: together[place]} for place in reversed(together)]:
            x = builder.concat([_phases.phase(builder, x, step, each) for each in _phases.residues(step)], 0)
        y = builder.conv(x, plan.window)
        if not plan.leave.blocks:
            return y
        lengths = _phases.sizes(builder, y, plan.leave)
        return _phases.join_phases(builder, y, plan.leave, lengths, builder.extent(y, 1), batch_last=True)


STRATEGY = SliceToBatch()
