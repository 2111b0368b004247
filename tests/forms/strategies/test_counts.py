"""How many cases each strategy takes and refuses, per feature: a change of these numbers is a change of behaviour.

`DILREWRITE_WRITE_COUNTS=1 pytest tests/strategies/test_counts.py` writes `counts.json` anew; read the difference.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from dilrewrite.forms.strategies import Refusal, plan, strategies, with_max_dilation
from tests.cases import cases
from tests.contract import original

COUNTS = Path(__file__).with_name("counts.json")


def count() -> dict[str, dict[str, str]]:
    """strategy -> feature -> "emitted/refused"."""
    found: dict[str, dict[str, str]] = {}
    for name, strategy in sorted(strategies().items()):
        emitted: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        for case in cases():
            site = original(case)[1].sites[0]
            made = plan(name, with_max_dilation(strategy, case.max_dilation), site.geometry, case.opset)
            (refused if isinstance(made, Refusal) else emitted).update({"all", *case.features})
        found[name] = {key: f"{emitted[key]}/{refused[key]}" for key in sorted({*emitted, *refused})}
    return found


@pytest.fixture(scope="module")
def counted() -> dict[str, dict[str, str]]:
    found = count()
    if os.environ.get("DILREWRITE_WRITE_COUNTS"):
        COUNTS.write_text(json.dumps(found, indent=1) + "\n")
    return found


def test_every_strategy_is_counted(counted: dict[str, dict[str, str]]) -> None:
    assert set(json.loads(COUNTS.read_text())) == set(counted)


@pytest.mark.parametrize("name", sorted(strategies()))
def test_counts_are_the_committed_ones(name: str, counted: dict[str, dict[str, str]]) -> None:
    assert counted[name] == json.loads(COUNTS.read_text())[name]
