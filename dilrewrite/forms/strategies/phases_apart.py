"""phases_apart: one undilated Conv for each phase, all with the same weights; the batch stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Cut, Tensor
from dilrewrite.forms.geometry import ConvGeometry, Limit, product
from dilrewrite.forms.strategies import Strategy, _phases


@final
@dataclass(frozen=True, slots=True)
class PhasesApart(Strategy):
    """[N, C, H, W] -> b*b times [N, C, M, M], a Conv each, and back. For runtimes without a batch axis.

    Square 2-D blocks go through SpaceToDepth and DepthToSpace, everything else, overlapping phases too, is cut out by
    strided Slices. The weights stay untouched and are shared. `max_dilation`: dilations up to it may remain in the
    Convs. Refuses above `limit_phases` phases.
    """

    max_dilation: Limit = 1
    limit_phases: int = 16
    layout: str = "depth"

    def __post_init__(self) -> None:
        """Check `layout`."""
        _phases.check_layout(self.layout)

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse very many phases, each of which needs a Conv of its own."""
        count = product(tuple(geometry.phases(axis, self.max_dilation).block for axis in geometry.axes))
        if count > self.limit_phases:
            return f"{count} phases need {count} Convs, above limit_phases={self.limit_phases}"
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, the phases, a Conv for each, and the way back."""
        plan = _phases.plan_phases(builder, geometry, self.max_dilation)
        x = _phases.pad_axes(builder, plan.enter)
        overlap = geometry.overlapping(self.max_dilation) is not None
        block = None if overlap else _phases.by_depth(builder, plan.enter, self.layout)
        if block is not None:
            parts = self._of_channels(builder, _phases.thin_axes(builder, x, plan.enter), block)
        else:
            axes = {place: axis for place, axis in enumerate(plan.enter.axes) if not axis.idle}
            parts = (_phases.phase(builder, x, axes, residues) for residues in _phases.residues(axes))
        done = [builder.conv(part, plan.window) for part in parts]
        if not plan.leave.blocks:
            return done[0]
        y = builder.concat(done, 1)
        return _phases.from_channels(builder, y, plan.leave, builder.extent(done[0], 1), block, self.layout)

    @staticmethod
    def _of_channels(builder: Builder, x: Tensor, block: int) -> Iterator[Tensor]:
        """Split what SpaceToDepth makes into its phases, each a run of channels."""
        channels = builder.extent(x, 1)
        deep = builder.space_to_depth(x, block)
        for number in range(block * block):
            yield builder.slice(deep, {1: Cut(channels * number, channels * (number + 1))})


STRATEGY = PhasesApart()
