"""How many cases each strategy takes and refuses, per feature: a change of these numbers is a change of behaviour.

`DILREWRITE_WRITE_COUNTS=1 pytest tests/forms/strategies/test_counts.py` writes `counts.json` anew; read the difference.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from dilrewrite.forms.strategies import Refusal, every_strategy, plan, with_max_dilation
from tests.cases import cases
from tests.contract import original

COUNTS = Path(__file__).with_name("counts.json")


RECORD = "DILREWRITE_WRITE_COUNTS=1 pytest tests/forms/strategies/test_counts.py"


def count(name: str) -> dict[str, str]:
    """feature -> "emitted/refused" of a strategy."""
    emitted: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for case in cases():
        site = original(case)[1].sites[0]
        strategy = with_max_dilation(every_strategy()[name], case.max_dilation)
        planned = plan(name, strategy, site.geometry, case.opset)
        (refused if isinstance(planned, Refusal) else emitted).update({"all", *case.features})
    return {key: f"{emitted[key]}/{refused[key]}" for key in sorted({*emitted, *refused})}


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, str]]:
    if os.environ.get("DILREWRITE_WRITE_COUNTS"):
        COUNTS.write_text(json.dumps({name: count(name) for name in sorted(every_strategy())}, indent=1) + "\n")
    counts: dict[str, dict[str, str]] = json.loads(COUNTS.read_text())
    return counts


@pytest.mark.parametrize("name", sorted(every_strategy()))
def test_counts_are_the_committed_ones(name: str, recorded: dict[str, dict[str, str]]) -> None:
    counts = count(name)
    if name not in recorded:
        pytest.skip(f"nothing is recorded of {name}: {RECORD} does it, {counts['all']} cases")
    assert counts == recorded[name]
