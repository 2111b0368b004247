"""The contract check is worth something: it catches every wrong version of the package in `tests.mutants`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from dilrewrite.forms.strategies import every_strategy
from tests.cases import cases
from tests.contract import ContractError, check
from tests.mutants import MUTANTS, TARGETS
from tests.quantized import check_quantized, quantized_cases

QUANTIZED_ONLY = {"zero_instead_of_the_zero_point", "zero_weights_instead_of_their_zero_point"}

Attempt = tuple[str, Callable[[], str]]


def attempts(mutant: str, strategy: str) -> Iterator[Attempt]:
    """(case name, check) over the grid, with the quantised grid for what only shows there."""
    held = every_strategy()[strategy]
    if mutant in QUANTIZED_ONLY:
        for q in quantized_cases():
            yield q.name, lambda q=q: check_quantized(strategy, held, q)
    else:
        for case in cases():
            yield case.name, lambda case=case: check(strategy, held, case)


def passes(attempt: Callable[[], str]) -> bool:
    try:
        attempt()
    except ContractError:
        return False
    return True


def caught(mutant: str, strategy: str) -> tuple[str, Callable[[], str]] | None:
    """The first case that passes as things are and fails with the mutant."""
    for name, attempt in attempts(mutant, strategy):
        with MUTANTS[mutant]():
            failed = not passes(attempt)
        if failed and passes(attempt):
            return name, attempt
    return None


@pytest.mark.parametrize(
    ("mutant", "strategy"), [(mutant, strategy) for mutant, targets in TARGETS.items() for strategy in targets]
)
@pytest.mark.grid(4)
def test_a_mutant_is_caught(mutant: str, strategy: str) -> None:
    found = caught(mutant, strategy)
    assert found is not None, f"{mutant} passes every case of {strategy}"


@pytest.mark.parametrize("strategy", TARGETS["right_only_at_divisible_lengths"])
def test_divisible_lengths_alone_would_let_a_mutant_pass(strategy: str) -> None:
    divisible = [case for case in cases() if "divisible" in case.features and not case.unknown and case.opset >= 10]
    assert len(divisible) > 10
    with MUTANTS["right_only_at_divisible_lengths"]():
        assert all(check(strategy, every_strategy()[strategy], case) for case in divisible)


def test_a_mutant_leaves_nothing_behind() -> None:
    case = next(case for case in cases() if case.topic == "square" and case.opset >= 11)
    for enter in MUTANTS.values():
        with enter():
            pass
    for strategy, held in every_strategy().items():
        check(strategy, held, case)
