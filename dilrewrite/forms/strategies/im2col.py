"""im2col: one shifted slice per tap, joined on the channels, and a single Conv with kernel 1."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import END, Builder, Cut, Tensor
from dilrewrite.forms.fragment import TapsToInputs
from dilrewrite.forms.geometry import ConvGeometry, Window, product
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class Im2col(Strategy):
    """Tap t reads xp[t*d : t*d + (Ho-1)*s + 1 : s]; with ends counted from the back no size is needed at run time.

    In the 2016 benchmark: im2col DCD. Refuses above `limit_nodes` slices.
    """

    limit_nodes: int = 256

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse groups, whose channels would have to be interleaved, and very many taps."""
        if geometry.group > 1:
            return f"group is {geometry.group}; taps can only join the channels of a Conv with group 1"
        taps = product(geometry.kernel)
        if taps > self.limit_nodes:
            return f"{taps} taps need {taps} slices, above limit_nodes={self.limit_nodes}"
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit padding, one slice per tap, Concat, and the Conv with kernel 1."""
        sides = enumerate(zip(*geometry.static_pads, strict=True))
        x = builder.pad(builder.x, {axis + 2: pads for axis, pads in sides})
        stepped = builder.opset >= 10  # before, the stride stays on the Conv
        parts = []
        for taps in itertools.product(*map(range, geometry.kernel)):
            cuts = {}
            for axis, t in enumerate(taps):
                d, behind = geometry.dilations[axis], geometry.kernel[axis] - 1 - t
                stop = -behind * d or END
                extent = x.shape[axis + 2]
                if isinstance(extent, int) and behind:
                    stop = extent - behind * d
                cuts[axis + 2] = Cut(t * d, stop, geometry.strides[axis] if stepped else 1)
            parts.append(builder.slice(x, cuts))
        return builder.conv(
            builder.concat(parts, 1),
            Window.point((1,) * geometry.rank if stepped else geometry.strides),
            weight=[TapsToInputs()] if product(geometry.kernel) > 1 else [],
        )


STRATEGY = Im2col()
