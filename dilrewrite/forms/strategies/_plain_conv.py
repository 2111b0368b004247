"""plain_conv: a ConvTranspose as the dilated Convs that it equals. Not among the forms of a Conv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class PlainConv(Strategy):
    """One Conv at stride 1, one for each phase of the outputs at others; they dilate as the ConvTranspose does."""

    prunes = False
    only_transposed = True

    def refusal(self, geometry: ConvGeometry) -> str | None:  # noqa: ARG002 - `plan` refuses what is no ConvTranspose
        """Never refuse."""
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Conv."""
        return builder.plain_conv(geometry)


FORM = PlainConv()
