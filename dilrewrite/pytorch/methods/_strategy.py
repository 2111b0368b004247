"""Methods that are forms of `strategies/`, run in torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.pytorch.fragments import OPSET, program
from dilrewrite.pytorch.methods import Form


@final
@dataclass(frozen=True, slots=True)
class FromStrategy:
    """The strategy of the same name; `original`: its name in the 2016 benchmark."""

    name: str
    original: str = ""

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Return the strategy's refusal, or that nothing depends on input and weight."""
        if geometry.dead:
            return (
                f"no tap of kernel {geometry.kernel} touches data of extents {geometry.extents}: it is the bias alone"
            )
        found = self._plan(geometry)
        return found.reason if isinstance(found, Refusal) else None

    def form(self, geometry: ConvGeometry) -> Form:
        """Return the fragment's program."""
        found = self._plan(geometry)
        assert isinstance(found, Fragment), "refused before"
        return program(found).run

    def _plan(self, geometry: ConvGeometry) -> Fragment | Refusal:
        return plan(self.name, strategies()[self.name], geometry, OPSET)
