"""tap_zones: the output is cut into zones with a constant set of live taps, each a small Conv without padding."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from dilrewrite.forms.builder import Builder, Cut, Tensor
from dilrewrite.forms.fragment import TakeTaps
from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.strategies import Strategy

AXES = ("all", "last")


@final
@dataclass(frozen=True, slots=True)
class TapZones(Strategy):
    """No multiply-add touches padding on the zoned axes; `axes` is "all" or "last" (docs/maths.md, family 2).

    A zone in which several taps are live keeps the dilation. Refuses above `limit_nodes` nodes.
    """

    skips_padding = True

    axes: str = "all"
    limit_nodes: int = 256

    def __post_init__(self) -> None:
        """Check `axes`."""
        if self.axes not in AXES:
            raise ValueError(f"axes={self.axes!r} is not one of {', '.join(AXES)}")

    def _zoned(self, geometry: ConvGeometry) -> list[int]:
        return list(geometry.axes) if self.axes == "all" else [geometry.rank - 1]

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse unknown extents, a single zone and very many zones."""
        unknown = geometry.unknown
        if unknown:
            return f"the extent of spatial axis {unknown[0]} is not known, so neither are the zones"
        zones = product(tuple(len(geometry.zones(axis)) for axis in self._zoned(geometry)))
        nodes = 3 * zones
        if nodes > self.limit_nodes:
            return f"{zones} zones need up to {nodes} nodes, above limit_nodes={self.limit_nodes}"
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit Slice and Conv per zone, and a Concat per zoned axis."""
        return self._axis(geometry, builder, self._zoned(geometry), {})

    def _axis(
        self, geometry: ConvGeometry, builder: Builder, rest: list[int], chosen: dict[int, tuple[int, int, int, int]]
    ) -> Tensor:
        if not rest:
            return self._zone(geometry, builder, chosen)
        axis, *others = rest
        parts = [self._axis(geometry, builder, others, {**chosen, axis: zone}) for zone in geometry.zones(axis)]
        return builder.concat(parts, axis + 2)

    @staticmethod
    def _zone(geometry: ConvGeometry, builder: Builder, chosen: dict[int, tuple[int, int, int, int]]) -> Tensor:
        begin, end = (list(side) for side in geometry.static_pads)
        outs = [out for out in geometry.out_extents if out is not None]
        kernel, cuts, weight = list(geometry.kernel), {}, []
        for axis, (start, stop, first, after) in chosen.items():
            outs[axis] = stop - start
            s, d = geometry.strides[axis], geometry.dilations[axis]
            cuts[axis + 2] = Cut(
                start * s + first * d - begin[axis], (stop - 1) * s + (after - 1) * d - begin[axis] + 1
            )
            if after - first < geometry.kernel[axis]:
                weight.append(TakeTaps(axis, first, after))
            kernel[axis] = after - first
            begin[axis] = end[axis] = 0
        if min(kernel) == 0:
            return builder.fill(outs)
        return builder.conv(
            builder.slice(builder.x, cuts),
            replace(geometry.window, kernel=tuple(kernel), begin=tuple(begin), end=tuple(end)),
            weight=weight,
        )


STRATEGY = TapZones()
