"""lift: a 1-D Conv as a 2-D one of height 1, dilation and all: the same work in the runtime's 2-D kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.fragment import AddKernelAxis
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class Lift(Strategy):
    """[N, C, L] -> [N, C, 1, L], kernel (1, k), and back: two free Reshapes. The dilation stays.

    ONNX Runtime's CPU provider runs 1-D Convs by im2col and a matrix product, 2-D ones directly in a blocked layout.
    """

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse all but rank 1."""
        rank = geometry.rank
        return f"only a 1-D Conv gets another axis here, this one has rank {rank}" if rank > 1 else None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Reshape, the 2-D Conv, and the Reshape back."""
        x = builder.reshape(builder.x, [0, 0, 1, builder.extent(builder.x, 2)])
        y = builder.conv(x, geometry.window.with_axis(0), weight=[AddKernelAxis(0)])
        return builder.reshape(y, [0, 0, builder.extent(y, 3)])


STRATEGY = Lift()
