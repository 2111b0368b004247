"""The ways in which phases are made: each as exact as the usual one, and what each of them is for."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import pytest

from dilrewrite.forms.fragment import Fragment, Node
from dilrewrite.forms.strategies import Strategy, every_strategy, plan, with_max_dilation
from dilrewrite.forms.strategies._phases import LAYOUTS
from tests.cases import Case, cases
from tests.contract import check, original

OTHERS = [layout for layout in LAYOUTS if layout != "depth"]
MAKERS = sorted(name for name, strategy in every_strategy().items() if hasattr(strategy, "layout"))
STATIC = [case for case in cases() if not case.unknown]
SPLIT = [case for case in cases() if case.rank > 1]


def laid(name: str, layout: str) -> Strategy:
    return cast("Strategy", replace(cast("Any", every_strategy()[name]), layout=layout))


@pytest.mark.grid(4)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in SPLIT[::3]])
@pytest.mark.parametrize("layout", OTHERS)
@pytest.mark.parametrize("name", MAKERS)
def test_contract(name: str, layout: str, case: Case) -> None:
    check(name, laid(name, layout), case)


def moves(strategy: Strategy, name: str) -> set[tuple[str, int]]:
    """The operators that move elements, and of a Transpose its axes, in fragments of a form at known extents."""
    found: set[tuple[str, int]] = set()
    for case in STATIC:
        planned = plan(
            name, with_max_dilation(strategy, case.max_dilation), original(case)[1].sites[0].geometry, case.opset
        )
        nodes = [step for step in planned.steps if isinstance(step, Node)] if isinstance(planned, Fragment) else []
        found |= {(node.op, len(cast("Any", node.attributes.get("perm", ())))) for node in nodes}
    return {(op, axes) for op, axes in found if op in ("Transpose", "SpaceToDepth", "DepthToSpace")}


@pytest.mark.parametrize("name", MAKERS)
def test_axis_by_axis_every_transpose_has_four_axes(name: str) -> None:
    assert moves(laid(name, "axes"), name) == {("Transpose", 4)}


@pytest.mark.parametrize("name", MAKERS)
def test_by_depth_what_is_not_square_goes_axis_by_axis(name: str) -> None:
    assert moves(laid(name, "depth"), name) == {("SpaceToDepth", 0), ("DepthToSpace", 0), ("Transpose", 4)}


@pytest.mark.parametrize("name", MAKERS)
def test_at_once_there_is_one_transpose_of_up_to_eight_axes(name: str) -> None:
    kinds = moves(laid(name, "reshape"), name)
    assert {op for op, _ in kinds} == {"Transpose"}
    assert max(axes for _, axes in kinds) == 8


@pytest.mark.parametrize("name", MAKERS)
def test_by_depth_what_is_unknown_goes_at_once(name: str) -> None:
    """Products of unknown extents would be computed at run time, and no sandwich of them is folded back."""
    some = [one for one in SPLIT if one.unknown and one.opset >= 13 and max(one.strides) == 1]
    case = next(one for one in some if one.rank == 3 and math.prod(one.dilations) <= 16)
    site = original(case)[1].sites[0]
    usual, once = (plan(name, laid(name, layout), site.geometry, case.opset) for layout in ("depth", "reshape"))
    assert isinstance(usual, Fragment)
    assert isinstance(once, Fragment)
    assert usual.digest() == once.digest()


def test_slices_are_joined_axis_by_axis() -> None:
    assert moves(every_strategy()["slice_to_batch"], "slice_to_batch") == {("Transpose", 4)}


def test_a_layout_that_is_none() -> None:
    with pytest.raises(ValueError, match="layout='columns' is not one of depth, axes, reshape"):
        laid("space_to_batch", "columns")
