"""keep: the convolution as PyTorch has it, with its dilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.pytorch.methods import Form, Method

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class Keep:
    """`torch.nn.functional.conv1d`, `conv2d` or `conv3d`. Pads that differ at the two ends are written before."""

    def refusal(self, geometry: ConvGeometry) -> str | None:  # noqa: ARG002
        """Refuse nothing."""
        return None

    def form(self, geometry: ConvGeometry) -> Form:
        """Return the native convolution."""
        from torch.nn import functional

        run = (functional.conv1d, functional.conv2d, functional.conv3d)[geometry.rank - 1]
        begin, end = geometry.static_pads
        even = begin == end and min(begin) >= 0
        pads = [value for axis in reversed(geometry.axes) for value in (begin[axis], end[axis])]

        def keep(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if not even:
                x = functional.pad(x, pads)
            return run(x, weight, bias, geometry.strides, begin if even else 0, geometry.dilations, geometry.group)

        return keep


METHOD: Method = Keep()
