"""slice_to_batch: the phases are cut out by strided Slices and joined on the batch, overlapping ones too."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import END, INFER, Builder, Cut, Tensor
from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.strategies._phases import AxisPlan, join_phases, pad_axes, plan_axes, sizes, split_axes

SLICES_AT_ONCE = 16
"""Up to so many phases are cut out in one step, by a Slice for each."""


@final
@dataclass(frozen=True, slots=True)
class SliceToBatch:
    """One strided Slice per phase, Concat on the batch, Conv, and back. In the 2016 benchmark: BatchStack DCD.

    The only phase form for overlapping phases (s' > 1). The weights stay untouched. `max_dilation`: dilations up to it
    may remain in the Conv. Refuses above `limit_nodes` Slices.
    """

    max_dilation: int = 1
    limit_nodes: int = 4096

    @property
    def prunes(self) -> bool:
        """Cut dead taps."""
        return True

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse very many phases."""
        blocks = [geometry.phases(axis, self.max_dilation).block for axis in geometry.axes]
        slices = min(product(tuple(blocks)), max(sum(blocks), SLICES_AT_ONCE))
        if slices > self.limit_nodes:
            return f"{product(tuple(blocks))} phases need {slices} slices, above limit_nodes={self.limit_nodes}"
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, Slices, Concat, Conv, and the way back."""
        plans = plan_axes(builder, geometry, self.max_dilation)
        x = pad_axes(builder, plans)
        split = split_axes(plans)
        blocks = product(tuple(plan.block for plan in plans))
        # All axes at once move the data once; with many phases, one axis after the other needs far fewer nodes.
        together = [plan for plan in plans if not plan.phases.idle]
        steps = [together] if blocks <= SLICES_AT_ONCE else [[plan] for plan in reversed(together)]
        for step in steps:
            x = self._split(builder, geometry, x, step)
        y = builder.conv(
            x,
            kernel=geometry.kernel,
            strides=[plan.phases.stride for plan in plans],
            dilations=[plan.phases.dilation for plan in plans],
            pads_begin=[plan.pads[0] for plan in plans],
            pads_end=[plan.pads[1] for plan in plans],
        )
        if not split:
            return y
        lengths = sizes(builder, y, plans)
        apart = builder.reshape(y, [*(plan.block for plan in split), INFER, builder.extent(y, 1), *lengths])
        return join_phases(builder, apart, plans, lengths, batch=len(split))

    def _split(self, builder: Builder, geometry: ConvGeometry, x: Tensor, plans: Sequence[AxisPlan]) -> Tensor:
        """Cut out every phase of the given axes and join them on the batch, the first axis outermost."""
        parts = []
        for residues in itertools.product(*(range(plan.block) for plan in plans)):
            shape = list(x.shape)
            cuts = {}
            for plan, r in zip(plans, residues, strict=True):
                cuts[plan.axis + 2] = self._cut(builder, plan, r * geometry.strides[plan.axis])
                shape[plan.axis + 2] = plan.samples
            parts.append(Tensor(builder.slice(x, cuts).name, tuple(shape)))
        return builder.concat(parts, 0)

    @staticmethod
    def _cut(builder: Builder, plan: AxisPlan, start: int) -> Cut:
        step = plan.phases.grain * plan.block
        if isinstance(plan.samples, int):
            return Cut(start, start + (plan.samples - 1) * step + 1, step)
        if plan.samples is None or plan.phases.stride == 1:
            return Cut(start, END, step)  # the padded extent ends where the last phase does
        return Cut(start, builder.add(builder.mul(builder.sub(plan.samples, 1), step), start + 1), step)


STRATEGY = SliceToBatch()
