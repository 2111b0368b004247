"""benchmarks/gpu.py with runtimes: that nothing is made up where there is no GPU, and the rows of a dry run.

The stand-in is the CPU backend under its own name: what is tested is the script, and the results say what they are of.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.runtimes import CannotRun, Options, TimeKind, timed_backends
from dilrewrite.runtimes.onnxruntime_cpu import BACKEND as CPU
from dilrewrite.runtimes.onnxruntime_cuda import BACKEND as CUDA
from dilrewrite.sites.find import find
from dilrewrite.timing.stopwatch import SCREEN_PAIRS

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.py"
RESULTS = ROOT / "benchmarks" / "results"

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def gpu() -> Iterator[ModuleType]:
    """The part of it as a module; it and those beside it are forgotten afterwards."""
    known, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        yield importlib.import_module("_gpu_runtimes")
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(SCRIPT.parent)):
                del sys.modules[name]


@pytest.fixture(scope="module")
def driver(gpu: ModuleType) -> ModuleType:  # noqa: ARG001 - which forgets it
    """The command as a module."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        return importlib.import_module("gpu")
    finally:
        sys.path.remove(str(SCRIPT.parent))


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script on a machine without a GPU."""
    return subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def written(folder: Path) -> tuple[dict[str, Any], str]:
    """The results in a folder: the JSON, and the page of the same name."""
    (file,) = folder.glob("gpu-*-*.json")
    return json.loads(file.read_text(encoding="utf-8")), file.with_suffix(".md").read_text(encoding="utf-8")


# -- without a GPU ----------------------------------------------------------------------------------------------------


def test_without_a_gpu_it_exits_with_4_and_reasons_and_writes_nothing() -> None:
    before = set(RESULTS.glob("gpu-*"))
    done = command("torch", "jax", "runtimes")
    assert done.returncode == 4, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["torch", "jax", "runtimes"]
    for line in lines:
        assert re.search(r": 0 of \d+ rows measured, \d+ s: not run: .+", line)
    assert "reaches no CUDA device" in lines[0]
    for name in ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_tensorrt"):
        assert f"{name}: " in lines[2]
    assert done.stderr == "nothing was measured\n"
    assert set(RESULTS.glob("gpu-*")) == before


def test_with_a_folder_it_says_so_there(tmp_path: Path) -> None:
    done = command("runtimes", "--out", tmp_path / "out", "--backends", "tensorrt_rtx")
    assert done.returncode == 4, done.stderr
    data, page = written(tmp_path / "out")
    assert data["parts"]["runtimes"]["backends"] == []
    assert {row["part"] for row in data["rows"]} == {"correctness", "geometries", "models", "runtimes"}
    reason = data["parts"]["runtimes"]["not_ready"]["tensorrt_rtx"]
    assert {row["not_run"] for row in data["rows"]} == {reason, f"tensorrt_rtx: {reason}"}
    assert f"`tensorrt_rtx`: not run: {reason}" in page


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--backends", "warp_drive"], "onnxruntime_cuda"),
        (["--backends", "onnxruntime_cpu"], "no number of a processor goes into a table of a GPU"),
        (["gears"], "there is no part 'gears'; there are torch, chains, jax, runtimes"),
        (["--dry-run"], "--dry-run writes into a folder of its own: add --out DIR"),
        (["--dry-run", "--out", RESULTS], "--dry-run writes into a folder of its own: add --out DIR"),
        (["--fault", "crash:x"], "--fault is for dry runs: add --dry-run"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_wrong_usage(
    driver: ModuleType, arguments: list[object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        driver.main(list(map(str, arguments)))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_times_that_are_not_measured_are_refused(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else is done."""
    monkeypatch.setattr(gpu, "_on", lambda *_, **__: pytest.fail("it was run"))
    monkeypatch.setattr(type(CPU), "source", TimeKind.ESTIMATED)
    with pytest.raises(ValueError, match="onnxruntime_cpu: its times are estimated, not measured: refused"):
        gpu.collect({"onnxruntime_cpu": CPU}, 1.0)


# -- on a stand-in ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The results of a short dry run on the CPU backend."""
    folder = tmp_path_factory.mktemp("stand-in")
    start = time.monotonic()
    arguments = ("runtimes", "--dry-run", "--seconds", 0.1, "--minutes", 0.25, "--only", "U2NetP")
    done = command(*arguments, "--out", folder)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 180
    return written(folder)


@pytest.mark.measures
def test_every_row_says_what_it_is_of_and_how_often_it_ran(stand_in: tuple[dict[str, Any], str]) -> None:
    data, _ = stand_in
    assert data["dry_run"]
    assert {row["part"] for row in data["rows"]} == {"correctness", "geometries", "models"}
    for row in data["rows"]:
        assert row["backend"] == "onnxruntime_cpu"
        if row.get("not_run") in ("not reached", "budget: cut off"):
            continue  # the machine is too busy
        assert row["device"] == CPU.device()
        assert row["driver"] == "none: a processor"
        if "not_run" in row:
            assert isinstance(row["not_run"], str)
            assert row["not_run"]
            assert not {"runs", "pairs", "ratio", "difference"} & set(row)
        else:
            assert row["source"] == "cpu"
            assert row["runs"] >= 1
            assert row["pairs"] >= (0 if row["part"] == "correctness" else SCREEN_PAIRS)


@pytest.mark.measures
def test_every_form_that_ran_is_right(stand_in: tuple[dict[str, Any], str], gpu: ModuleType) -> None:
    data, _ = stand_in
    given = [row for row in data["rows"] if row["part"] == "correctness"]
    rows = [row for row in given if "not_run" not in row]
    assert [row["not_run"] for row in given if row.get("failed")] == []
    if not rows and any(row["not_run"].startswith(gpu.BUDGET) for row in given):
        pytest.skip("the machine is too busy: none was reached in the seconds that it has")
    assert rows
    assert {(row["outcome"], row["difference"], row["passed"]) for row in rows} == {("equal", 0.0, True)}
    assert {row["not_run"] for row in data["rows"] if row.get("precision") == "tf32"} == {"onnxruntime_cpu has no TF32"}


@pytest.mark.measures
def test_the_page_names_the_stand_in(stand_in: tuple[dict[str, Any], str]) -> None:
    data, page = stand_in
    assert "## onnxruntime_cpu" in page
    assert f"Device: {CPU.device()}; driver: none: a processor; onnxruntime " in page
    assert "Clocks, power and temperature: not told." in page
    assert page.startswith("# Dry run: nothing here was measured on a GPU")
    assert [about["backend"] for about in data["parts"]["runtimes"]["backends"]] == ["onnxruntime_cpu"]
    assert len(data["date"]) == len("2026-01-31")


# -- time -------------------------------------------------------------------------------------------------------------


def test_what_is_not_reached_is_a_row(gpu: ModuleType) -> None:
    rows: Rows = []
    tasks = [gpu.Task(common={"task": number}, run=lambda _, made: made.append({"runs": 1})) for number in range(2)]
    gpu.work_off(tasks, time.monotonic() + 60, time.monotonic() + 60, rows, fair=False)
    gpu.work_off(tasks, time.monotonic() - 1, time.monotonic() + 60, rows, fair=False)
    assert rows == [
        {"task": 0, "runs": 1},
        {"task": 1, "runs": 1},
        {"task": 0, "not_run": "budget"},
        {"task": 1, "not_run": "budget"},
    ]


@pytest.mark.measures
def test_what_takes_too_long_is_cut_off(gpu: ModuleType) -> None:
    """What it had is kept, and the next task begins afresh."""
    rows: Rows = []
    reset: list[str] = []

    def slow(_: float, made: Rows) -> None:
        made.append({"runs": 1})
        time.sleep(30)

    task = gpu.Task(common={}, run=slow, reset=lambda: reset.append("reset"))
    start = time.monotonic()
    gpu.work_off([task], start + 0.1, start + 0.2, rows, fair=False)
    assert time.monotonic() - start < 10
    assert rows == [{"runs": 1}, {"not_run": "budget: cut off"}]
    assert reset == ["reset"]


def test_fair_shares(gpu: ModuleType) -> None:
    """The first of two tasks has half of the time, the last all that is left."""
    ends: list[float] = []
    tasks = [gpu.Task(common={}, run=lambda until, _: ends.append(until))] * 2
    start = time.monotonic()
    gpu.work_off(tasks, start + 100, start + 100, [], fair=True)
    gpu.work_off(tasks, start + 100, start + 100, [], fair=False)
    assert [end - start for end in ends] == pytest.approx([50, 100, 100, 100], abs=2)


def test_every_geometry_has_its_turn_and_every_network_early(gpu: ModuleType) -> None:
    turns = gpu.in_turn(gpu.CONVS)
    assert sorted(map(id, turns)) == sorted(map(id, gpu.CONVS))
    assert {len(conv.extents) for conv in turns[:15]} == {1, 2, 3}


# -- precision --------------------------------------------------------------------------------------------------------


def test_precisions_are_set_where_each_backend_heeds_them(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpu.TF32_OVERRIDE, "1")
    found = {}
    for backend in (timed_backends()["tensorrt_rtx"], CUDA):
        for precision in gpu.PRECISIONS:
            with gpu.precision_set(backend, precision) as asked:
                found[backend.name, precision] = asked, os.environ[gpu.TF32_OVERRIDE]
            assert os.environ[gpu.TF32_OVERRIDE] == "1"
    assert found == {
        ("tensorrt_rtx", "tf32"): ("tf32", "1"),
        ("tensorrt_rtx", "fp16"): (None, "1"),  # the model is in it
        ("tensorrt_rtx", "fp32"): ("fp32", "1"),
        ("onnxruntime_cuda", "tf32"): (None, "1"),
        ("onnxruntime_cuda", "fp16"): (None, "1"),
        ("onnxruntime_cuda", "fp32"): (None, "0"),
    }


# -- results ----------------------------------------------------------------------------------------------------------


def test_the_small_geometries_try_every_strategy(gpu: ModuleType) -> None:
    tried = set()
    for small in gpu.SMALL:
        (site,) = find(small.model()).sites
        tried |= {
            name
            for name, strategy in strategies().items()
            if not isinstance(plan(name, strategy, site.geometry, site.opset), Refusal)
        }
    assert tried == set(strategies())
    assert {len(small.extents) for small in gpu.SMALL} == {1, 2, 3}


class OffBy:
    """Sessions whose results are off by something."""

    def __init__(self, wanted: np.ndarray[Any, Any], by: float) -> None:
        self.wanted = wanted
        self.by = by

    def run(self, proto: ModelProto, _options: Options, _feeds: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        if any(node.op_type == "Pad" for node in proto.graph.node):
            raise CannotRun("no Pad here")
        return {"y": self.wanted + np.float32(self.by)}


@pytest.mark.parametrize(("by", "outcome"), [(0, "equal"), (0.25, "rounds"), (1, "WRONG"), (float("nan"), "WRONG")])
def test_wrong_is_told_from_rounding(gpu: ModuleType, by: float, outcome: str) -> None:
    small = gpu.SMALL[0]
    runnable = gpu.Runnable(model=small.model().SerializeToString())
    with CPU.session(runnable, Options(isolated=False)) as session:
        wanted = session.run({"x": small.x()})["y"]
    rows: Rows = []
    gpu.check(small, "fp32", OffBy(wanted, by).run, Options(), time.monotonic() + 60, rows)
    assert {row["form"] for row in rows} == set(strategies())
    ran = [row for row in rows if "not_run" not in row]
    assert ran
    assert {(row["outcome"], row["passed"]) for row in ran} == {(outcome, outcome != "WRONG")}
    assert {row["not_run"] for row in rows if row.get("failed")} == {"no Pad here"}


def row(part: str, **more: Any) -> dict[str, Any]:
    return {"part": part, "backend": "b", "device": "NVIDIA L4, driver for CUDA 13.2", "driver": "580.1", **more}


def results(*rows: dict[str, Any]) -> dict[str, Any]:
    """Results as `collect` returns them."""
    return {
        "backends": [
            {
                "backend": "b",
                "device": "NVIDIA L4, driver for CUDA 13.2",
                "driver": "580.1",
                "versions": {"tensorrt": "10.13"},
                "settings": {},
                "pace": {},
                "states": [
                    {"part": "models", "when": "before", "sm_clock_mhz": 2040.0, "power_w": 30.5},
                    {"part": "models", "when": "after", "sm_clock_mhz": 1410.0},
                ],
                "doubts": ["splice_sites: times vary"],
            }
        ],
        "not_ready": {},
        "rows": list(rows),
    }


def test_the_page_has_a_place_for_everything(gpu: ModuleType) -> None:
    timed = {
        "runs": 40,
        "pairs": 20,
        "ratio": 0.8,
        "low": 0.78,
        "high": 0.82,
        "noise": 0.01,
        "faster": True,
        "native_ms": 1.5,
    }
    net = {"precision": "fp16", "network": "Net", "geometry": "1-D"}
    page = "\n".join(
        gpu.page(
            results(
                row("geometries", **net, form="lift", **timed),
                row("geometries", **net, form="im2col", not_run="failed: too large", failed=True),
                row("geometries", **net, form="tap_sum", not_run="refuses: rank"),
                row("geometries", **net, form="zero_fill", not_run="budget"),
                row("geometries", **{**net, "precision": "tf32", "geometry": "2-D"}, not_run="budget"),
                row("geometries", **{**net, "geometry": "2-D"}, not_run="budget"),
                row("models", model="tcn", form="optimize", chosen=["lift"], sites=8, rewritten=4, **timed),
                row("models", model="tcn", form="im2col", sites=8, rewritten=8, not_run="out | of memory"),
                {"part": "models", "backend": "b", "not_run": "not reached"},
                row("placement", model="tcn", form="original", placed={"TensorRT": 3, "CUDA": 1}, runs=1, pairs=0),
            )
        )
    )
    assert "| models | before | 2040.0 | 30.5 |" in page
    assert "| models | after | 1410.0 | - |" in page
    assert "Doubts: splice_sites: times vary." in page
    assert "Not run: models: not reached." in page
    columns, row_of_net = (re.findall(rf"^\| {start} \| .*$", page, re.M)[0] for start in ("precision", "fp16 \\| Net"))
    cells = dict(
        zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (columns, row_of_net)), strict=True)
    )
    assert [*cells.values()][:6] == ["fp16", "Net", "1-D", "1.5", "1.0", "20"]
    told = {"im2col": "fails", "lift": "**0.80**", "tap_sum": "-", "zero_fill": "?"}
    others = [name for name in strategies() if name != "keep"]
    assert {name: cells[name] for name in others} == {name: told.get(name, "-") for name in others}
    assert "| Net | 2-D | tf32, fp16 | not run: budget |" in page
    assert "| tcn | optimize: lift | 4 of 8 | 1.5 | **0.800** | 0.780 to 0.820 | 20 | 40 |" in page
    assert "not run: out \\| of memory" in page
    assert "| tcn | original | 3 TensorRT, 1 CUDA | 1 |" in page
    assert "Results against" not in page
