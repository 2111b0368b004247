"""fold: a space-to-batch sandwich as the dilated Conv that it computes. Not among the forms of a Conv."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from dilrewrite.forms.builder import Builder, Tensor, in_pairs
from dilrewrite.forms.fragment import CoreFill, Fragment, Refusal
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.forms.strategies import FOLD, Strategy, plan, strategies


@final
@dataclass(frozen=True, slots=True)
class Fold(Strategy):
    """One dilated Conv."""

    takes: ClassVar[tuple[type, ...]] = (Sandwich,)
    prunes = False

    def fragment(self, meaning: Sandwich, opset: int) -> Fragment | Refusal:
        """Return the Conv with what stands around it."""
        return around(FOLD, strategies()["keep"], meaning, opset)

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse what is no sandwich."""
        return f"a Conv of rank {geometry.rank} by itself is no space-to-batch sandwich"

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the Conv."""
        return builder.plain_conv(geometry)


FORM = Fold()


def around(
    name: str,
    strategy: Strategy,
    meaning: Sandwich,
    opset: int,
    *,
    storage: str | None = None,
    fixed_weights: bool = True,
) -> Fragment | Refusal:
    """Return a form of the Conv that a sandwich is, with what stands around it; see `plan`."""
    if in_pairs(meaning.geometry, storage, opset):
        return Refusal(name, f"a sandwich of {storage} is folded, and its Conv gets other forms then")
    form = plan(name, strategy, meaning.geometry, opset, storage=storage, fixed_weights=fixed_weights)
    if isinstance(form, Refusal):
        return form
    if any(isinstance(step, CoreFill) for step in form.steps) and (meaning.dropped or meaning.repeats > 1):
        return Refusal(name, "no tap touches data, and the Conv of the sandwich has 1 axis or group more")
    whole = meaning.around(form)
    whole.check()
    return whole
