"""zero_fill: the zeros of the dilated kernel are written into the weights, for devices without dilation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.fragment import SpreadTaps
from dilrewrite.forms.geometry import ConvGeometry, Limit, least_divisor, product
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class ZeroFill(Strategy):
    """A dense kernel of d(k-1) + 1 taps (docs/maths.md, family 3).

    Exact for finite inputs only: one Inf spreads NaN over the zeros. Refuses where the spread weights would exceed
    `limit_mb` MiB. `max_dilation`: the smallest spreading is chosen that leaves dilations up to it.
    """

    finite_inputs_only = True

    max_dilation: Limit = 1
    limit_mb: int = 64

    def _spread(self, geometry: ConvGeometry, axis: int) -> int:
        d = geometry.dilations[axis]
        if geometry.kernel[axis] == 1:
            return 1
        return least_divisor(d, self.max_dilation)

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse weights beyond the limit."""
        if geometry.weight_bytes is None:
            return "the channel counts are not known, so the size of the spread weights is not"
        kernel = tuple(self._spread(geometry, axis) * (geometry.kernel[axis] - 1) + 1 for axis in geometry.axes)
        size = geometry.weight_bytes // product(geometry.kernel) * product(kernel)
        if size > self.limit_mb * 2**20:
            return f"a dense {kernel} kernel would take {size / 2**20:.1f} MiB, above limit_mb={self.limit_mb}"
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit one Conv with the spread kernel."""
        spread = tuple(self._spread(geometry, axis) for axis in geometry.axes)
        return builder.conv(
            builder.x,
            replace(
                geometry.window,
                kernel=tuple(q * (k - 1) + 1 for q, k in zip(spread, geometry.kernel, strict=True)),
                dilations=tuple(d // q for d, q in zip(geometry.dilations, spread, strict=True)),
            ),
            weight=[SpreadTaps(spread)] if max(spread) > 1 else [],
        )


STRATEGY = ZeroFill()
