"""pad_out: the padding is written out as a Pad, and the dilated Conv has none; for devices with a limit on pads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class PadOut(Strategy):
    """Pad, and the Conv with pads 0, as compilers write it whose device has a limit on pads. The dilation stays."""

    on_request = True

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse a Conv without padding."""
        begin, end = geometry.static_pads
        return None if any((*begin, *end)) else f"its {2 * geometry.rank} pads are 0 already"

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Pad and the Conv."""
        begin, end = geometry.static_pads
        x = builder.pad(builder.x, {axis + 2: (begin[axis], end[axis]) for axis in geometry.axes})
        none = (0,) * geometry.rank
        return builder.conv(x, replace(geometry.window, begin=none, end=none))


STRATEGY = PadOut()
