"""tap_prune: taps at the ends of the kernel that see nothing but padding are cut off; the Conv stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class TapPrune(Strategy):
    """A Conv with a smaller kernel (docs/maths.md, family 2). Pruning itself happens before every strategy."""

    only_prunes = True
    skips_padding = True

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse where no tap is dead."""
        if any(front or back for front, back in geometry.cut):
            return None
        unknown = geometry.unknown
        if geometry.dead:
            return f"no tap sees data, but the extent of spatial axis {unknown[0]} and so the output's is not known"
        if len(unknown) == geometry.rank:
            return f"0 of {geometry.rank} extents are known, so no tap can be proved to see only padding"
        return f"no tap at either end of the kernel {geometry.kernel} sees only padding"

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Conv over the live taps."""
        return builder.plain_conv(geometry)


STRATEGY = TapPrune()
