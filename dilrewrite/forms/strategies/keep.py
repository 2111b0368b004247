"""keep: the dilated Conv as it is, the baseline that every other form has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Strategy


@final
@dataclass(frozen=True, slots=True)
class Keep(Strategy):
    """One Conv, dilated as before. In the 2016 benchmark: Normal DCD."""

    prunes = False

    def refusal(self, geometry: ConvGeometry) -> str | None:  # noqa: ARG002
        """Never refuse."""
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Conv."""
        return builder.plain_conv(geometry)


STRATEGY = Keep()
