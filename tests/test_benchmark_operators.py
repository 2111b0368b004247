"""benchmarks/operators.py: its results are about all of its models, and what they say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "operators.json"
DATA: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
ROWS: list[dict[str, Any]] = DATA["rows"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("operators_script", ROOT / "benchmarks" / "operators.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runs(row: dict[str, Any]) -> list[dict[str, Any]]:
    """What came of each form, and of --eliminate, where that rewrote something."""
    return [one for one in (*row["forms"].values(), row.get("eliminate")) if one and one["rewritten"]]


def test_every_model_has_a_row_and_the_page_is_that_of_the_data(script: ModuleType) -> None:
    assert {name for name, _ in script.models()} <= {row["model"] for row in ROWS}
    made = "\n".join(script.page(DATA["about"], ROWS)).rstrip("\n") + "\n"
    assert RESULTS.with_suffix(".md").read_text(encoding="utf-8") == made


def test_integers_are_equal_bit_for_bit() -> None:
    rows = [row for row in ROWS if row["operator"] in ("QLinearConv", "ConvInteger") and row["sites"]]
    assert len(rows) >= 7
    assert {one["difference"] for row in rows for one in runs(row)} == {0.0}


def test_nothing_dilated_is_left_and_every_proof_passed() -> None:
    for row in ROWS:
        assert all(one["proofs"] == one["passed"] > 0 for one in runs(row)), row["model"]
        assert all(one["exit"] == 0 for one in runs(row)) or row["operator"] == "Conv in QDQ", row["model"]
        if row.get("eliminate"):
            gone = row["eliminate"]
            assert (gone["exit"], gone["rewritten"], row["left"]) == (0, row["sites"], ""), row["model"]
    found = {row["operator"] for row in ROWS if row["sites"]}
    assert found >= {"Conv", "Conv in QDQ", "QLinearConv", "ConvInteger", "ConvTranspose", "MaxPool", "sandwich"}
    assert found >= {"AveragePool", "LpPool", "FusedConv of com.microsoft"}
