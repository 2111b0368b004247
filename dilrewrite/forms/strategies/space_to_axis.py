"""space_to_axis: the phases become one more spatial axis; a free Reshape wherever a single axis is dilated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.fragment import AddKernelAxis
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy, _phases


@final
@dataclass(frozen=True, slots=True)
class SpaceToAxis(Strategy):
    """1-D: [N, C, L] -> [N, C, M, b] with kernel (k, 1); 2-D: a Conv of rank 3. In the 2016 benchmark: Subpixel DCD.

    One split axis gets its phases as an axis right behind it, which is a Reshape both ways. Two split axes share one
    phase axis [N, C, b*b, M, M] with kernel (1, k, k). `max_dilation`: dilations up to it may remain in the Conv.
    """

    max_dilation: int = 1

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse rank 3, which would need a Conv of rank 4, and overlapping phases."""
        if geometry.rank > 2:
            return f"a Conv of rank {geometry.rank} with one more axis has rank {geometry.rank + 1}; runtimes stop at 3"
        return _phases.overlap_refusal(geometry, self.max_dilation)

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, the Reshape, the Conv of one more axis, and the way back."""
        plan = _phases.plan_phases(builder, geometry, self.max_dilation)
        x = _phases.thin_axes(builder, _phases.pad_axes(builder, plan.enter), plan.enter)
        split, blocks = plan.enter.split, plan.enter.blocks
        if not split:
            return builder.conv(x, plan.window)
        samples = _phases.sizes(builder, x, plan.enter)
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


STRATEGY = SpaceToAxis()
