"""phases_apart: one undilated Conv for each phase, all with the same weights; the batch stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Cut, Tensor
from dilrewrite.forms.geometry import ConvGeometry, Limit, product
from dilrewrite.forms.layout import Layout
from dilrewrite.forms.strategies import Strategy, _phases


@final
@dataclass(frozen=True, slots=True)
class PhasesApart(Strategy):
    """[N, C, H, W] -> b*b times [N, C, M, M], a Conv each, and back. For runtimes without a batch axis.

    Square 2-D blocks go through SpaceToDepth and DepthToSpace, everything else, overlapping phases too, is cut out by
    strided Slices. The weights stay untouched and are shared. `max_dilation`: dilations up to it may remain in the
    Convs. Refuses above `limit_phases` phases. `layout`: see `LAYOUTS`; by `axes` only overlapping phases are cut out.
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
        if not plan.enter.blocks:
            return builder.conv(_phases.thin_axes(builder, x, plan.enter), plan.window)
        if block is not None or (self.layout == "axes" and not overlap):
            parts = self._of_channels(builder, _phases.thin_axes(builder, x, plan.enter), plan.enter, block)
        else:
            split = [(place, axis) for place, axis in enumerate(plan.enter.axes) if not axis.idle]
            together = _phases.at_once(self.layout, plan.leave, geometry.extents)
            axes = dict(split if together else reversed(split))  # as they are joined
            parts = (_phases.phase(builder, x, axes, residues) for residues in _phases.residues(axes))
        done = [builder.conv(part, plan.window) for part in parts]
        y = builder.concat(done, 1)
        return _phases.from_channels(builder, y, plan.leave, builder.extent(done[0], 1), block, self.layout)

    @staticmethod
    def _of_channels(builder: Builder, x: Tensor, layout: Layout, block: int | None) -> Iterator[Tensor]:
        """Bring the phases into the channels, by SpaceToDepth where there is a block, and split them."""
        channels = builder.extent(x, 1)
        if block is not None:
            deep = builder.space_to_depth(x, block)
        else:
            first, lengths = _phases.phases_first(builder, x, layout, "axes", in_batch=False)
            deep = builder.reshape(first, [builder.batch(), channels * layout.phases, *lengths])
        for number in range(layout.phases):
            yield builder.slice(deep, {1: Cut(channels * number, channels * (number + 1))})


STRATEGY = PhasesApart()
