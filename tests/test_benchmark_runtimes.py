"""benchmarks/runtimes.py writes after each row, goes on where it stopped, and says what is missing or failed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "runtimes.py"
KEY = "HiFi-GAN: 1-D k3 d3 256->256 at 2752"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(SCRIPT.parent), *sys.path])
    for name in ("_common", "geometries", "models", "_versions", "_chains"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("benchmarks_runtimes", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(sys.modules["_common"], "RESULTS", tmp_path)
    monkeypatch.setattr(sys.modules["_common"], "DOCS", tmp_path)
    (tmp_path / "performance.md").write_text(
        "before\n<!-- runtimes -->\nold\n<!-- /runtimes -->\nafter\n", encoding="utf-8"
    )
    return module


def found(ratio: float | None, **more: Any) -> dict[str, Any]:
    """What models.py says of a model."""
    final = (
        None if ratio is None else {"ratio": ratio, "low": ratio - 0.01, "high": ratio + 0.01, "first": {"median_s": 1}}
    )
    status = "kept" if ratio is None else "rewritten"
    told = {"status": status, "strategies": ["lift"], "sites": 1, "rewritten": 1, "share": 0.9, "reasons": [], **more}
    return {"measuring": {"doubts": []}, "fresh": {"final": final}, **told}


def test_it_goes_on_where_it_stopped(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def run(entry: Mapping[str, Any], mode: str, threads: str, options: argparse.Namespace, _: Path) -> dict[str, Any]:
        assert (mode, threads, options.backend) == ("default", "1", "onnxruntime_cpu")
        assert Path(entry["path"]).is_file()
        ran.append(entry["key"])
        if len(ran) == 2:
            raise RuntimeError(f"optimize {entry['path']}: dilrewrite: {entry['path']}: the model does not run")
        return found({1: 0.5, 3: 1.2}.get(len(ran)))

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["runtimes.py", *arguments])
        code: int = script.main()
        return code

    monkeypatch.setattr(script, "run", run)
    assert call("onnxruntime_cpu", "--only", KEY) == 0
    assert ran == [KEY]
    for _ in range(2):
        assert call("onnxruntime_cpu", "no_such_runtime", "--only", "HiFi-GAN") == 2
        said = capsys.readouterr()
        assert "no_such_runtime: not measured: --backend no_such_runtime: no backend" in said.err
        assert ran[0] == KEY
        assert len(ran) == len(set(ran)) == 4, "no row is measured twice"
    rows = json.loads((tmp_path / "runtimes-onnxruntime_cpu.json").read_text(encoding="utf-8"))["rows"]
    assert [script.said(row) for row in rows] == [
        "**0.50 (0.49 to 0.51)** `lift`",
        "fails",
        "1.20 (1.19 to 1.21) slower `lift`",
        "kept",
    ]
    assert rows[1]["error"] == "geometry: the model does not run"
    assert "4 rows: 1 faster, 0.50 in the middle, 0.50 at best; slower: HiFi-GAN" in said.out
    assert call("--table") == 0
    for page in ("runtimes.md", "performance.md"):
        shown = (tmp_path / page).read_text(encoding="utf-8")
        assert f"| {KEY} | **0.50 (0.49 to 0.51)** `lift` |" in shown
    assert "old" not in shown
    assert shown.startswith("before\n")
    with pytest.raises(SystemExit, match="was measured with other budgets"):
        call("onnxruntime_cpu", "--seconds", "9")


def test_rows_without_an_answer_get_more_budget(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Those whose budget was over before anything was compared, those that noise hid, and no others."""
    budgets: list[tuple[str, float]] = []

    def run(entry: Mapping[str, Any], _: str, __: str, options: argparse.Namespace, ___: Path) -> dict[str, Any]:
        budgets.append((entry["key"], options.budget))
        reasons = ["not measured: budget"] if len(budgets) in (2, 3) else ["the best other form, lift, is slower"]
        status = "inconclusive" if len(budgets) == 4 else "kept"
        return found(None, status=status, reasons=[*reasons, *(["cannot matter"] if len(budgets) == 3 else [])])

    def call(*arguments: str) -> list[Any]:
        monkeypatch.setattr(sys, "argv", ["runtimes.py", "onnxruntime_cpu", "--only", "HiFi-GAN", *arguments])
        assert script.main() == 0
        rows = json.loads((tmp_path / "runtimes-onnxruntime_cpu.json").read_text(encoding="utf-8"))["rows"]
        return [script.said(row) + script.marks(row) for row in rows]

    monkeypatch.setattr(script, "run", run)
    assert call() == ["kept", "budget too short", "kept", "inconclusive"]
    assert call("--more", "4") == ["kept", "kept (4 x budget)", "kept", "kept (4 x budget)"]
    assert budgets[4:] == [(budgets[1][0], 48.0), (budgets[3][0], 48.0)]
