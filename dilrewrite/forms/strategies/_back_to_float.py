"""back_to_float: a QLinearConv or ConvInteger as a Conv in float32, which rounds otherwise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.builder import Builder, Tensor
from dilrewrite.forms.geometry import ConvGeometry, Limit
from dilrewrite.forms.strategies import Strategy, strategies, with_max_dilation
from dilrewrite.model.elements import FLOATS

UNDILATED = "undilated"
"""Stands for the first form of `TRIED` that applies."""

TRIED = ("space_to_batch", "slice_to_batch", "zero_fill")


@final
@dataclass(frozen=True, slots=True)
class BackToFloat(Strategy):
    """DequantizeLinear, Conv in float32, and back to integers (docs/maths.md, family 5).

    `form`: the one that the float Conv has; `undilated`, which elimination takes, is the first phase form that applies.
    """

    form: str = "keep"
    max_dilation: Limit = 1

    def __post_init__(self) -> None:
        """Raise ValueError for a form that does not exist."""
        if self.form not in (UNDILATED, *strategies()):
            raise ValueError(f"form={self.form} is not one of {', '.join([UNDILATED, *strategies()])}")

    def _inside(self, geometry: ConvGeometry) -> tuple[Strategy, str | None]:
        """Return the form of the float Conv, and why it does not apply."""
        names = TRIED if self.form == UNDILATED else (self.form,)
        each = [with_max_dilation(strategies()[name], self.max_dilation) for name in names]
        asked = [(one, one.refusal(geometry)) for one in each]
        return next((pair for pair in asked if pair[1] is None), asked[0])

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse what computes on real numbers already, and what the form inside refuses."""
        if not geometry.quantized or geometry.element in FLOATS:
            return f"a Conv in {geometry.element} computes on real numbers already"
        return self._inside(geometry)[1]

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the form inside, whose Convs are written in float32."""
        builder.in_floats = True
        return self._inside(geometry)[0].emit(geometry, builder)


FORM = BackToFloat()


def undilated() -> BackToFloat:
    """Return the form where no dilation may be left."""
    return dataclasses.replace(FORM, form=UNDILATED)
