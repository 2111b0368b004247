"""equal_dilations: axes with one tap get the dilation of the others, for devices that want the same one on all axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.fragment import AddKernelAxis
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class EqualDilations(Strategy):
    """The same Conv: a dilation means nothing where the kernel has one tap. A 1-D Conv becomes one of height 1."""

    on_request = True

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse a kernel without an axis of one tap, and dilations that differ elsewhere."""
        acting = {d for k, d in zip(geometry.kernel, geometry.dilations, strict=True) if k > 1}
        if len(acting) > 1:
            return f"the dilations {geometry.dilations} differ on axes with several taps"
        if geometry.rank > 1 and 1 not in geometry.kernel:
            return f"no axis of the kernel {geometry.kernel} has one tap"
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Conv."""
        dilation = geometry.max_dilation
        if geometry.rank > 1:
            return builder.conv(builder.x, geometry.window, idle_dilation=dilation)
        x = builder.reshape(builder.x, [0, 0, 1, builder.extent(builder.x, 2)])
        y = builder.conv(x, geometry.window.with_axis(0), weight=[AddKernelAxis(0)], idle_dilation=dilation)
        return builder.reshape(y, [0, 0, builder.extent(y, 3)])


STRATEGY = EqualDilations()
