"""tap_sum: one Conv with kernel 1 per live tap, on the part of the input it touches, padded back and summed."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Cut, Extent, Tensor
from dilrewrite.forms.fragment import TakeTaps
from dilrewrite.forms.geometry import ConvGeometry, Window, product
from dilrewrite.forms.strategies import Strategy
from dilrewrite.model.elements import FLOATS


@final
@dataclass(frozen=True, slots=True)
class TapSum(Strategy):
    """y[o] = sum over t of w[t] * x[o*s + t*d - p0], each tap only for lo_t <= o < hi_t (docs/maths.md, family 2).

    Refuses above `limit_nodes` nodes.
    """

    skips_padding = True

    limit_nodes: int = 256

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse unknown extents, quantised sites and very many taps."""
        unknown = geometry.unknown
        if unknown:
            return f"the extent of spatial axis {unknown[0]} is not known, so neither is where each tap touches data"
        if geometry.quantized and geometry.element in FLOATS:
            return "partial sums are added in floating point, which would leave the quantised domain"
        if geometry.quantized and geometry.element != "int32":
            return f"each partial sum would be rounded to {geometry.element}, and the original rounds once"
        nodes = 4 * product(geometry.kernel) + 1
        if nodes > self.limit_nodes:
            return f"{product(geometry.kernel)} taps need up to {nodes} nodes, above limit_nodes={self.limit_nodes}"
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit Slice, Conv and Pad per live tap, and add them up."""
        begin, _ = geometry.static_pads
        outs = [out for out in geometry.out_extents if out is not None]
        axis_taps = [taps for axis in geometry.axes if (taps := geometry.taps(axis)) is not None]
        parts = []
        bias_added = not geometry.bias
        for chosen in itertools.product(*map(range, geometry.kernel)):
            if not all(taps.live(t) for taps, t in zip(axis_taps, chosen, strict=True)):
                continue
            cuts: dict[int, Cut] = {}
            sides: dict[int, tuple[Extent, Extent]] = {}
            for axis, t in enumerate(chosen):
                lo, hi, s = axis_taps[axis].lo[t], axis_taps[axis].hi[t], geometry.strides[axis]
                shift = t * geometry.dilations[axis] - begin[axis]
                cuts[axis + 2] = Cut(lo * s + shift, (hi - 1) * s + shift + 1)
                sides[axis + 2] = (lo, outs[axis] - hi)
            whole = not any(map(any, sides.values()))
            y = builder.conv(
                builder.slice(builder.x, cuts),
                Window.point(geometry.strides),
                weight=[TakeTaps(axis, t, t + 1) for axis, t in enumerate(chosen) if geometry.kernel[axis] > 1],
                bias_times=1 if whole and not bias_added else 0,
            )
            bias_added = bias_added or whole
            parts.append(builder.pad(y, sides))
        if not bias_added:
            parts.append(builder.fill(outs))
        return builder.sum(parts)


STRATEGY = TapSum()
