"""Every strategy, found by discovery, on every case of the grid: one test for each pair."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dilrewrite.forms.strategies import Refusal, Strategy, every_strategy
from tests.cases import Case, cases, counts
from tests.contract import ContractError, check, emit, may_refuse, run, session

GRID = [pytest.param(case, id=case.name) for case in cases()]

LEAST = {
    "rank1": 60,
    "rank2": 60,
    "rank3": 60,
    "dynamic": 60,
    "unknown batch": 40,
    "unknown extents": 60,
    "computed SAME pads": 10,
    "group": 60,
    "depthwise": 60,
    "strided": 40,
    "s'>1": 40,
    "s'=1 with g>1": 40,
    "unequal dilations": 40,
    "extent<dilation": 20,
    "pads>extent": 20,
    "negative pads": 20,
    "SAME_UPPER": 20,
    "SAME_LOWER": 20,
    "VALID": 20,
    "NOTSET": 20,
    "even kernel": 20,
    "kernel axis 1": 20,
    "all taps dead": 10,
    "some taps dead": 20,
    "Ho=1": 20,
    "fewer outputs than phases": 20,
    "block<d": 20,
    "divisible": 20,
    "batch1": 20,
    "batch2": 20,
    "batch3": 20,
    "constant": 4,
    "overridable": 4,
    "computed": 4,
    **{f"opset{opset}": 20 for opset in range(7, 23)},
}


def test_the_grid_covers_what_it_should() -> None:
    found = counts()
    assert len(cases()) >= 400
    assert {feature: found[feature] for feature, least in LEAST.items() if found[feature] < least} == {}
    assert {case.max_dilation for case in cases()} == {1, 2, 3, 4}
    assert 0.4 < sum(case.activation for case in cases()) / len(cases()) < 0.6


def test_the_grid_covers_every_auto_pad_at_unknown_extents_and_strides() -> None:
    for mode in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        assert sum({mode, "strided", "unknown extents"} <= case.features for case in cases()) >= 8, mode


def test_cases_are_valid_and_have_their_own_names() -> None:
    assert all(case.valid for case in cases())
    assert len({case.name for case in cases()}) == len(cases())


@pytest.mark.parametrize("case", GRID)
@pytest.mark.parametrize("name", sorted(every_strategy()))
@pytest.mark.grid(16)
def test_contract(name: str, case: Case) -> None:
    check(name, every_strategy()[name], case)


def plain(**changes: object) -> Case:
    case = Case(
        topic="plain",
        extents=(9, 9),
        kernel=(3, 3),
        strides=(1, 1),
        dilations=(2, 2),
        begin=(2, 2),
        end=(2, 2),
        channels=2,
        outputs=2,
    )
    return dataclasses.replace(case, **changes)


KNOWN_REFUSALS: list[tuple[str, dict[str, object]]] = [
    ("im2col", {"group": 2}),
    ("tap_sum", {"unknown": (0,)}),
    ("tap_zones", {"unknown": (1,)}),
    ("tap_prune", {}),
    ("space_to_batch", {"strides": (1, 2), "dilations": (2, 3)}),
    ("space_to_group", {"strides": (2, 2), "dilations": (3, 3)}),
    ("space_to_axis", {"strides": (2, 1), "dilations": (3, 2)}),
    ("slice_to_batch", {"unknown": (0, 1), "opset": 9}),
    (
        "tap_sum",
        {
            "extents": (9, 9, 9), "kernel": (5, 5, 5), "strides": (1, 1, 1), "dilations": (2, 2, 2),
            "begin": (4, 4, 4), "end": (4, 4, 4), "channels": 1, "outputs": 1,
        },
    ),
    (
        "tap_zones",
        {
            "extents": (9, 9, 9), "kernel": (5, 5, 5), "strides": (1, 1, 1), "dilations": (2, 2, 2),
            "begin": (4, 4, 4), "end": (4, 4, 4), "channels": 1, "outputs": 1,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changes"), [each for each in KNOWN_REFUSALS if each[0] in every_strategy()])
def test_refusals_that_users_know(name: str, changes: dict[str, object]) -> None:
    case = plain(**changes)
    assert may_refuse(name, every_strategy()[name], case)
    assert check(name, every_strategy()[name], case) == "refused"


def test_a_refusal_that_the_table_does_not_allow_fails() -> None:
    class Shy(Strategy):
        prunes = True

        def refusal(self, _: object) -> str:
            return "no 1"

    with pytest.raises(ContractError, match="takes"):
        check("keep", Shy(), plain())


@pytest.mark.xfail(
    strict=True,
    reason="ONNX Runtime's ReshapeFusion turns the computed size into -1, which is ambiguous beside a zero batch",
)
def test_a_zero_batch_runs_optimised_too_where_one_extent_is_computed() -> None:
    one_axis = {"extents": (9,), "kernel": (3,), "strides": (1,), "dilations": (2,), "begin": (2,), "end": (2,)}
    case = plain(**one_axis, unknown=(0,), unknown_batch=True)
    after = emit("space_to_axis", every_strategy()["space_to_axis"], case)
    assert not isinstance(after, Refusal)
    assert run(session(after), np.ones((0, 2, 9), np.float32)).shape == (0, 2, 9)
