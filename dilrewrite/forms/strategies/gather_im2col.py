"""gather_im2col: a Gather lays the inputs of each output side by side, and the Conv steps from one to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy

MOST_PLACES = 2**20
"""So many places are written into the model for an axis: 8 MiB."""


@final
@dataclass(frozen=True, slots=True)
class GatherIm2col(Strategy):
    """Along each dilated axis place o*k + t holds xp[o*s + t*d]; the Conv has stride k, no dilation and its weights.

    For devices that slice with steps on the host and gather by themselves. Any group: channels stay where they are.
    """

    on_request = True

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse unknown extents, and too many places."""
        unknown = geometry.unknown
        if unknown:
            return f"the extent of spatial axis {unknown[0]} is not known, so neither are the places"
        places = max((out or 0) * k for out, k in zip(geometry.out_extents, geometry.kernel, strict=True))
        return f"{places:,} places to gather from, more than {MOST_PLACES:,}" if places > MOST_PLACES else None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit for each dilated axis a Pad and a Gather, and the Conv."""
        window, x = geometry.window, builder.x
        kernel, strides, dilations = window.kernel, list(window.strides), list(window.dilations)
        begin, end = list(window.begin), list(window.end)
        for axis, out in enumerate(geometry.out_extents):
            k, s, d = kernel[axis], strides[axis], dilations[axis]
            if k == 1 or d == 1:
                continue
            assert out is not None, "refused above"
            x = builder.pad(x, {axis + 2: (begin[axis], end[axis])})
            x = builder.gather(x, axis + 2, [o * s + t * d for o in range(out) for t in range(k)])
            strides[axis], dilations[axis], begin[axis], end[axis] = k, 1, 0, 0
        return builder.conv(
            x,
            replace(window, strides=tuple(strides), dilations=tuple(dilations), begin=tuple(begin), end=tuple(end)),
        )


STRATEGY = GatherIm2col()
