"""Strategies see what a site means, and take only what they say they take."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from dilrewrite.forms.fragment import Fragment, Node, X
from dilrewrite.forms.strategies import Refusal, every_strategy, plan
from tests.forms.test_builder import KNOWN


@dataclass(frozen=True)
class Pooling:
    kernel: tuple[int, ...]


@dataclass(frozen=True)
class ByReshape:
    """A strategy for another meaning than a Conv."""

    takes = (Pooling,)
    prunes = False

    def fragment(self, meaning: Pooling, opset: int) -> Fragment | Refusal:
        if len(meaning.kernel) > 1:
            return Refusal("by_reshape", f"it has {len(meaning.kernel)} axes")
        step = Node(op="MaxPool", inputs=(X,), outputs=("y",), attributes={"kernel_shape": meaning.kernel})
        return Fragment(strategy="by_reshape", opset=opset, steps=(step,), constants={}, results=("y",))


@pytest.mark.parametrize("name", every_strategy())
def test_every_strategy_refuses_another_meaning(name: str) -> None:
    assert plan(name, every_strategy()[name], Pooling((3,)), 17) == Refusal(name, "it takes ConvGeometry, not Pooling")


def test_a_strategy_for_another_meaning_plans_it_itself() -> None:
    strategy = ByReshape()
    made = plan("by_reshape", strategy, Pooling((3,)), 17)  # type: ignore[arg-type]
    assert isinstance(made, Fragment)
    made.check()
    assert plan("by_reshape", strategy, Pooling((3, 3)), 17) == Refusal("by_reshape", "it has 2 axes")  # type: ignore[arg-type]
    refusal = plan("by_reshape", strategy, KNOWN, 17)  # type: ignore[arg-type]
    assert refusal == Refusal("by_reshape", "it takes Pooling, not ConvGeometry")
