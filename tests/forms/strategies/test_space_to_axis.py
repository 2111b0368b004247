"""space_to_axis where a kernel lies along one axis: the phases go into the axis beside it, and the rank stays."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from dilrewrite.forms.fragment import CoreConv, SwapKernelAxes
from dilrewrite.forms.strategies import Refusal, plan, strategies, with_max_dilation
from tests.cases import Case
from tests.contract import check, original

SHAPES = [(0, 1), (1, 0), (0, 1, 2), (1, 0, 2), (2, 1, 0), (2, 0, 1)]
"""The axis that is dilated first, then the one beside it."""


def drawn(seed: int) -> Case:
    """One axis is dilated, the one beside it has a single tap, and a third one is convolved as it comes."""
    rng = random.Random(seed)
    axis, _, *rest = SHAPES[seed % len(SHAPES)]
    rank = 2 + len(rest)
    kernel, strides, dilations, begin, end, extents = (
        [1] * rank,
        [1] * rank,
        [1] * rank,
        [0] * rank,
        [0] * rank,
        [0] * rank,
    )
    for place in range(rank):
        extents[place] = rng.choice([1, 1, 2, 3, 5])
    kernel[axis], dilations[axis] = rng.choice([2, 3, 4]), rng.choice([2, 3, 4, 6])
    strides[axis] = rng.choice([1, 1, 1, 2])
    begin[axis], end[axis] = rng.choice([0, 1, 2, 3, 4, 5, 8, 13]), rng.choice([0, 1, 2, 3, 4, 5, 8, 13])
    extents[axis] = rng.randint(1, 19)
    for place in rest:
        kernel[place], extents[place] = 2, rng.randint(2, 4)
        begin[place] = rng.choice([0, 1])
    return Case(
        topic="beside",
        extents=tuple(extents),
        kernel=tuple(kernel),
        strides=tuple(strides),
        dilations=tuple(dilations),
        begin=tuple(begin),
        end=tuple(end),
        batch=rng.choice([1, 2]),
        group=rng.choice([1, 2]),
        channels=rng.choice([1, 2]),
        outputs=rng.choice([1, 2]),
        bias=rng.choice([True, False]),
        activation=rng.choice([True, False]),
        unknown_batch=rng.choice([True, False]),
        unknown=tuple(place for place in range(rank) if rng.random() < 0.2),
        max_dilation=rng.choice([1, 1, 2]),
        opset=rng.choice([9, 11, 13, 17]),
        weights=rng.choice(["initializer", "computed"]),
    )


CASES = [case for case in map(drawn, range(1200)) if case.valid]


def outcome(case: Case) -> str:
    """How the phases lie: "refused", or in an axis "behind", "before" (rows), "before, one row", or in a "new" one."""
    site = original(case)[1].sites[0]
    strategy = with_max_dilation(strategies()["space_to_axis"], case.max_dilation)
    made = plan("space_to_axis", strategy, site.geometry, case.opset, fixed_weights=site.fixed_weights)
    if isinstance(made, Refusal):
        return "refused"
    core = made.core[0]
    if not isinstance(core, CoreConv) or not made.enter:
        return "no phases"
    if len(core.kernel) > case.rank:
        return "new"
    if not any(isinstance(edit, SwapKernelAxes) for edit in core.weight):
        return "behind"
    return "before, one row" if case.extents[case.dilations.index(max(case.dilations)) - 1] == 1 else "before"


def test_cases_reach_every_way() -> None:
    ways = Counter(map(outcome, CASES))
    assert min(ways[way] for way in ("behind", "before", "before, one row", "new")) >= 20, ways


@pytest.mark.parametrize("part", range(12))
def test_a_kernel_along_one_axis(part: int) -> None:
    strategy = strategies()["space_to_axis"]
    for case in CASES[part::12]:
        check("space_to_axis", strategy, case)
