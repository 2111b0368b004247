"""pad_to_multiple: the extents grow to multiples of the dilation, and what that adds to the output is cut off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Cut, Tensor
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class PadToMultiple(Strategy):
    """Zeros behind each dilated axis up to a multiple of its dilation, the Conv as it is, and a Slice to its outputs.

    What stands behind the input are zeros before and after, so the outputs that stay are the same. The pads stay, too:
    a device may want them symmetric.
    """

    on_request = True

    def _missing(self, geometry: ConvGeometry) -> dict[int, int]:
        """Return how much each axis of known extent lacks, where that is something."""
        known = ((axis, extent) for axis, extent in enumerate(geometry.extents) if extent is not None)
        lacks = {axis: -extent % geometry.dilations[axis] for axis, extent in known if geometry.kernel[axis] > 1}
        return {axis: lack for axis, lack in lacks.items() if lack}

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse unknown extents, and those that are multiples already."""
        unknown = geometry.unknown
        if unknown:
            return f"the extent of spatial axis {unknown[0]} is not known, so neither is what it lacks to a multiple"
        if self._missing(geometry):
            return None
        return f"the extents {geometry.extents} are multiples of the dilations {geometry.dilations} already"

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Pad, the Conv, and the Slice."""
        missing = self._missing(geometry)
        x = builder.pad(builder.x, {axis + 2: (0, lack) for axis, lack in missing.items()})
        outs = geometry.out_extents
        y = builder.conv(x, geometry.window)
        return builder.slice(y, {axis + 2: Cut(0, out) for axis in missing if (out := outs[axis]) is not None})


STRATEGY = PadToMultiple()
