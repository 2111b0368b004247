"""benchmarks/gpu.py in PyTorch: the time plan whatever breaks, what the dry run writes, and what the writer refuses."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dilrewrite.pytorch.methods import methods

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

WORKER = """
import os, sys, time
sys.path.insert(0, {benchmarks!r})
from _gpu_plan import serve

def begin(options):
    if options.get("absent"):
        raise RuntimeError("no device here")
    def work(item):
        yield {{"runs": 1}}
        if item["name"] == "raises":
            raise ValueError("a kernel | that fails")
        print("noise on standard output")
        yield {{"runs": 2}}
    return {{"device": "d"}}, work

serve(begin)
"""


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    """The files of the benchmark as modules; they are forgotten afterwards."""
    known, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(BENCHMARKS))
    try:
        names = ("_gpu_plan", "_gpu_pages", "_gpu_torch", "_gpu_chains", "_gpu_time", "_gpu_graph", "gpu")
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - known:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
                del sys.modules[name]


# -- the plan ---------------------------------------------------------------------------------------------------------


def worked_off(
    modules: dict[str, ModuleType],
    folder: Path,
    names: list[str],
    *,
    seconds: float = 60,
    script: str = WORKER,
    **more: Any,
) -> Any:
    worker = folder / "worker.py"
    worker.write_text(script.format(benchmarks=str(BENCHMARKS)), encoding="utf-8")
    now = time.monotonic()
    with (folder / "log").open("w", encoding="utf-8") as log:
        return modules["_gpu_plan"].work_off(
            [sys.executable, str(worker)], [{"name": name} for name in names], deadline=now + seconds,
            last=now + seconds + 5, limit_s=more.pop("limit_s", 30.0), options=more, log=log,
        )  # fmt: skip


def test_what_hangs_crashes_and_fails_is_a_row_and_all_else_is_there(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    names = ["a", "hangs", "b", "crashes", "raises", "c"]
    done = worked_off(modules, tmp_path, names, limit_s=3.0, faults=["hang:hangs", "crash:crashes"])
    found: dict[str, list[Any]] = {name: [] for name in names}
    for row in done.rows:
        found[row["name"]].append(row.get("runs") or row["not_run"])
    assert found == {
        "a": [1, 2],
        "hangs": ["no answer within 3 s"],
        "b": [1, 2],
        "crashes": ["crashed: signal 11: noise on standard output"],
        "raises": [1, "a kernel | that fails"],
        "c": [1, 2],
    }
    assert (done.deaths, done.about) == (2, {"device": "d"})


def test_what_the_time_does_not_reach_is_a_row(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    done = worked_off(modules, tmp_path, ["a", "b"], seconds=-1.0)
    assert done.rows == [{"name": "a", "not_run": "budget"}, {"name": "b", "not_run": "budget"}]


def test_a_worker_that_never_starts_is_given_up(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    done = worked_off(modules, tmp_path, ["a"], script="raise SystemExit('no {benchmarks}')")
    (row,) = done.rows
    assert row["not_run"].startswith("the worker does not start: crashed: exit code 1: no ")
    assert done.deaths == modules["_gpu_plan"].STARTS


def test_a_missing_device_is_one_reason(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    done = worked_off(modules, tmp_path, ["a", "b"], absent=True)
    assert (done.rows, done.refused) == ([], "no device here")


# -- the dry run ------------------------------------------------------------------------------------------------------

FORMS = ("keep", "lift", "space_to_axis", "space_to_batch", "(no dilation)")


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, float]:
    """A dry run of a geometry and two chains in which a form crashes and one hangs: results, page, seconds."""
    folder = tmp_path_factory.mktemp("dry")
    start = time.monotonic()
    arguments = [
        "torch",
        "chains",
        "--dry-run",
        "--only",
        "duration,small",
        "--slice",
        "0.0001",
        "--limit",
        "8",
        "--minutes",
        "1.5",
    ]
    first = "tf32, first, 1, False, False"
    faults = ["--fault", f"crash:{first}, lift", "--fault", f"hang:{first}, phases_apart"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py"), *arguments, *faults, "--out", str(folder)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("gpu-dry-run-*.json")
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8")), page, time.monotonic() - start


@pytest.mark.measures
def test_the_plan_ends_in_time_with_every_row(
    dry: tuple[dict[str, Any], str, float], modules: dict[str, ModuleType]
) -> None:
    data, _, seconds = dry
    assert seconds < 1.5 * 60 + 30
    options = {"only": "duration,small", "dry_run": True, "seconds": 0.0, "faults": []}
    items, refused = modules["_gpu_torch"].rounds(options)
    found = [{**row, "form": form} for row in data["rows"] for form in row.get("forms", [row.get("form")])]
    for row in [*items, *refused]:
        assert any(row.items() <= other.items() for other in found), row
    assert {row["model"] for row in data["rows"] if row["part"] == "chains"} == {"TCN, small", "DRN, small"}


@pytest.mark.measures
def test_what_ran_says_on_what_and_how_often(dry: tuple[dict[str, Any], str, float]) -> None:
    data, page, _ = dry
    ran = [row for row in data["rows"] if "not_run" not in row]
    assert ran
    assert {row["source"] for row in ran} == {"cpu"}
    assert all(row["runs"] >= 1 and row["pairs"] >= (0 if row["part"] == "checks" else 6) for row in ran)
    assert all(row["low"] <= row["ratio"] <= row["high"] for row in ran if row["part"] != "checks")
    assert not [row for row in data["rows"] if row.get("passed") is False]
    assert data["dry_run"]
    assert page.startswith("# Dry run: nothing here was measured on a GPU")


@pytest.mark.measures
def test_what_breaks_is_told_and_all_else_ran(
    dry: tuple[dict[str, Any], str, float], modules: dict[str, ModuleType]
) -> None:
    data, page, _ = dry
    late = [row for row in data["rows"] if row.get("not_run", "").startswith("budget")]
    if late or any(row.get("failed") for row in data["rows"] if row["part"] == "chains"):
        pytest.skip("the machine is too busy: not all was reached in the minute and a half that there is")
    failed = {row["forms"][0]: row["not_run"] for row in data["rows"] if row.get("failed")}
    assert set(failed) == {"lift", "phases_apart"}
    assert failed["lift"].startswith("crashed: signal 11")
    assert failed["phases_apart"] == "no answer within 8 s"
    assert data["parts"]["torch"]["deaths"] == 2
    refusals = re.compile("refuses: |PyTorch has no channels last|.* times the Conv's multiply-adds")
    assert all(refusals.match(row["not_run"]) for row in data["rows"] if "not_run" in row and not row.get("failed"))
    rounds = modules["_gpu_torch"].settings({"dry_run": True})
    settings = [one for some in rounds for one in some if one["layout"] == "first"]
    timed = [row for row in data["rows"] if row["part"] == "torch" and "ratio" in row]
    own = [row for row in timed if row["form"] == "space_to_axis"]
    assert len(own) == 3 * len(settings)  # three passes
    gaps = [row for row in timed if row["form"] == "keep, not deterministic"]
    assert len(gaps) == 3 * sum(one["deterministic"] for one in settings)
    assert {row["outcome"] for row in data["rows"] if row["part"] == "checks"} == {"equal"}
    for title in ("Results against float64", "every form on cuDNN", "deterministic mode costs", "Whole chains"):
        assert re.search(f"^## .*{title}", page, re.M)


def test_forty_geometries_every_form_and_every_setting(modules: dict[str, ModuleType]) -> None:
    """What a real run has before it."""
    items, refused = modules["_gpu_torch"].rounds({"only": "", "dry_run": False})
    timed = [item for item in items if item["part"] == "torch"]
    assert len({item["geometry"] for item in timed}) >= 40
    assert {item["form"] for item in items} - {"(no dilation)"} == set(methods())
    combined = {(item["precision"], item["layout"], item["deterministic"]) for item in timed}
    for precision in ("tf32", "fp32", "fp16", "bf16"):
        for layout in ("first", "last"):
            assert {(precision, layout, True), (precision, layout, False)} <= combined
    assert any(item["autotuned"] for item in timed)
    assert all(row["not_run"] for row in refused)


def test_it_needs_nothing_but_pytorch() -> None:
    """The part torch, and the command, without onnx and all that comes with it."""
    absent = ("onnx", "onnxruntime", "onnx_graphsurgeon", "rich", "typer")
    code = f"""
import sys
sys.path.insert(0, {str(BENCHMARKS)!r})
sys.modules.update(dict.fromkeys({absent!r}))
import _gpu_time, _gpu_torch
items, _ = _gpu_torch.rounds({{"only": "U2NetP", "dry_run": True}})
about, work = _gpu_torch.begin({{"only": "U2NetP", "dry_run": True, "seconds": 0.0001}})
form = next(item for item in items if item["part"] == "torch" and item["form"] == "tap_sum")
print(sum("ratio" in row for row in work(form)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("3", 0), done.stderr


# -- chains -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TCN, small", "DRN, small"])
def test_every_version_of_a_chain_is_the_chain(modules: dict[str, ModuleType], name: str) -> None:
    import torch

    from dilrewrite.runtimes import Options, Runnable, backends

    make = modules["_gpu_chains"].models({"only": "", "dry_run": True})[name]
    proto = make()
    versions, _ = modules["_gpu_chains"].versions_of(proto)
    assert any("_region" in version for version in versions)
    x = torch.randn(
        [size.dim_value for size in proto.graph.input[0].type.tensor_type.shape.dim],
        generator=torch.Generator().manual_seed(1),
    )
    graph, apart = modules["_gpu_graph"].Graph, modules["_gpu_time"].apart
    found = {version: graph(made, lambda tensor: tensor.double()).run(x.double()) for version, made in versions.items()}
    for version, y in found.items():
        assert apart(found["original"], y) < 1e-12, version
    with backends()["onnxruntime_cpu"].session(
        Runnable(model=proto.SerializeToString()), Options(isolated=False)
    ) as session:
        (y,) = session.run({proto.graph.input[0].name: x.numpy()}).values()
    assert apart(found["original"], torch.from_numpy(y)) < 1e-5


def test_a_wrong_version_is_told(modules: dict[str, ModuleType]) -> None:
    import torch

    apart = modules["_gpu_time"].apart
    a = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    assert apart(a, a) == 0
    assert apart(a, a * 1.25) == pytest.approx(0.25)
    assert apart(a, a[:2]) == apart(a, a * float("nan")) == float("inf")


# -- JAX --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("modules")
def test_forms_in_jax_are_the_conv() -> None:
    """Where JAX is installed: all three passes."""
    pytest.importorskip("jax")
    part = importlib.import_module("_gpu_jax")
    options = {"only": "duration", "dry_run": True, "seconds": 0.0}
    items, _ = part.rounds(options)
    _, work = part.begin(options)
    some = ("lift", "space_to_axis", "zero_fill")
    forms = [item for item in items if item["precision"] == "tf32" and item["form"] in some]
    assert len(forms) == len(some)
    for item in forms:
        rows = list(work(item))
        assert [row["pass"] for row in rows] == list(part.PASSES)
        assert all(row["source"] == "cpu" and (row["apart"] or 0.0) < 1e-5 for row in rows), item


# -- the clock of a GPU ------------------------------------------------------------------------------------------------


class FakeCuda:
    """What the clock asks of torch.cuda, on the CPU: work takes a known number of milliseconds on this GPU's clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import torch

        self.now, self.capturing, self.flushed, fake = 0.0, False, 0, self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                assert fake.flushed, "the L2 cache is to be flushed before a run"
                self.at = fake.now

            def elapsed_time(self, other: Any) -> float:
                return float(other.at - self.at)

        class Graph:
            def capture_begin(self) -> None:
                fake.capturing, self.ran_ms, self.began = True, 0.0, fake.now

            def capture_end(self) -> None:
                fake.capturing, self.ran_ms, fake.now = False, fake.now - self.began, self.began

            def replay(self) -> None:
                fake.now += self.ran_ms

        class Flush:
            def zero_(self) -> None:
                fake.flushed += 1
                fake.now += 1000.0

        for name, value in {
            "CUDAGraph": Graph, "Event": Event, "Stream": object, "set_stream": lambda _: None,
            "synchronize": lambda: None,
            "get_device_properties": lambda _: type("P", (), {"L2_cache_size": 60 << 20})(),
        }.items():  # fmt: skip
            monkeypatch.setattr(torch.cuda, name, value)
        monkeypatch.setattr(torch, "empty", lambda *_, **__: Flush())

    def work(self, milliseconds: float, *, captures: bool = True) -> Any:
        """Work of so many milliseconds."""

        def run() -> str:
            if self.capturing and not captures:
                raise RuntimeError("operation not permitted | when stream is capturing")
            self.now += milliseconds
            return "output"

        return run


def test_the_clock_of_a_gpu(modules: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeCuda(monkeypatch)
    clock = modules["_gpu_time"].Clock("cuda", 0.001)
    native, form = clock.prepare(fake.work(2.0)), clock.prepare(fake.work(1.0))
    assert (native.how, native.output) == ("graph", "output")
    row = clock.compare(native, form, 0.01)
    assert (row["source"], row["l2"], row["how"]) == ("gpu", "flushed", "graph")
    assert (row["native_ms"], row["form_ms"], row["ratio"]) == pytest.approx((2.0, 1.0, 0.5))
    assert row["faster"]
    assert fake.flushed == row["runs"] == 2 * row["pairs"] >= 20
    slow = clock.prepare(fake.work(4.0, captures=False))
    assert slow.how == "events: operation not permitted | when stream is capturing"
    row = clock.compare(native, slow)
    assert row["ratio"] == pytest.approx(2.0)
    assert row["pairs"] == modules["_gpu_time"].PART  # a form that loses each of the first pairs is not timed further


# -- the writer -------------------------------------------------------------------------------------------------------


def timed(part: str, **more: Any) -> dict[str, Any]:
    numbers = {"ratio": 0.5, "low": 0.45, "high": 0.55, "pairs": 20, "runs": 40, "native_ms": 1.5, "form_ms": 0.75}
    setting = {"precision": "tf32", "layout": "first", "batch": 1, "deterministic": False, "autotuned": False}
    return {"part": part, "source": "gpu", **setting, "faster": True, "apart": 1e-7, **numbers, **more}


def results(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    about = {"device": "NVIDIA L4", "driver": "580.1", "torch": "2.11.0", "cudnn": 91000, "spent_s": 200.0}
    states = {"state": {"sm_clock_mhz": 345.0}, "state_after": {"sm_clock_mhz": 1980.0}}
    return {
        "date": "2026-01-31", "dry_run": False, "minutes": 9.0, "spent_s": 500.0, "processor": "a processor, 16 cores",
        "parts": {"torch": {**about, **states}}, "rows": list(rows), **more,
    }  # fmt: skip


NET = {"network": "Net", "geometry": "1-D k3", "form": "lift", "pass": "forward"}


@pytest.mark.parametrize(
    ("row", "more", "said"),
    [
        (timed("torch", **NET, source="cpu"), {}, "a number of cpu in a table of a GPU"),
        ({**timed("torch", **NET), "source": None}, {}, "a number of nothing known in a table of a GPU"),
        ({"part": "checks", "form": "lift", "outcome": "equal", "source": "cpu"}, {}, "a number of cpu"),
        (timed("torch", **NET), {"parts": {"torch": {"spent_s": 1.0}}}, "no GPU with a driver"),
    ],
    ids=["cpu", "unknown", "checks", "no-device"],
)
def test_no_number_of_a_cpu_stands_in_a_table_of_a_gpu(
    modules: dict[str, ModuleType], tmp_path: Path, row: dict[str, Any], more: dict[str, Any], said: str
) -> None:
    pages = modules["_gpu_pages"]
    fine = timed("torch", **NET)
    with pytest.raises(pages.CpuNumberError, match=said):
        pages.write(tmp_path / "out", results(fine, row, **more))
    assert not (tmp_path / "out").exists()


def test_a_page_that_fails_costs_no_row(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    place = modules["_gpu_pages"].write(
        tmp_path, results({"part": "torch", "precision": "tf32", "ratio": 1.0, "source": "gpu"})
    )
    assert place.read_text(encoding="utf-8").startswith("# There is no page: KeyError: ")
    assert len(json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))["rows"]) == 1


def test_a_dry_run_is_kept_from_the_results(modules: dict[str, ModuleType]) -> None:
    pages = modules["_gpu_pages"]
    before = set(pages.RESULTS.iterdir())
    with pytest.raises(pages.CpuNumberError, match="a dry run does not go into benchmarks/results"):
        pages.write(pages.RESULTS, results(dry_run=True))
    assert set(pages.RESULTS.iterdir()) == before


def test_the_page_of_a_gpu(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    late = {"precision": "bf16", "layout": "first", "batch": 1}
    chain = {"model": "TCN", "precision": "fp16", "layout": "last"}
    rows = [
        timed("torch", **NET),
        timed("torch", **{**NET, "form": "keep"}, faster=False) | {"ratio": 1.0},
        timed("torch", **{**NET, "form": "(no dilation)"}) | {"ratio": 0.25},
        timed("torch", **{**NET, "form": "tap_sum"}, passed=False) | {"ratio": 0.1},
        timed("torch", **{**NET, "form": "keep, not deterministic"}, deterministic=True),
        {"part": "torch", **NET, **late, "not_run": "budget"},
        {"part": "torch", **NET, **late, "form": "im2col", "not_run": "budget"},
        timed("chains", **chain, form="lift_region"),
        {"part": "chains", **chain, "form": "phase_region 2", "not_run": "out | of memory", "failed": True},
    ]
    place = modules["_gpu_pages"].write(tmp_path, results(*rows))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "gpu-nvidia-l4-2026-01-31.json",
        "gpu-nvidia-l4-2026-01-31.md",
    ]
    page = place.read_text(encoding="utf-8")
    assert (
        "| torch | NVIDIA L4 | 580.1 | torch 2.11.0, cudnn 91000 | sm clock 345; sm clock 1980 | 200 | 0 | - |" in page
    )
    assert "| Net | 1-D k3 | 1.5 | 0.25 | `lift` **0.50 (0.45 to 0.55), 20** |" in page  # not tap_sum, which is wrong
    assert "**WRONG**: torch, Net, 1-D k3, tf32, first, forward, tap_sum" in page
    assert "| Net | 1-D k3 | 2.00 (1.82 to 2.22) | - | - |" in page  # determinism costs twice the time
    assert "| TCN | fp16 | `lift_region` | 1.5 | **0.500** | 0.450 to 0.550 | 20 | 1.0e-07 |" in page
    assert "not run: out \\| of memory" in page
    data = json.loads(place.with_suffix(".json").read_text(encoding="utf-8"))
    assert [row["forms"] for row in data["rows"] if row.get("not_run") == "budget"] == [["lift", "im2col"]]
    assert len(data["rows"]) == len(rows) - 1


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA GeForce RTX 4090, driver for CUDA 13.2", "nvidia-geforce-rtx-4090"),
        ("Intel(R) Xeon(R) Processor, 2 cores", "intel-r-xeon-r-processor"),
        (", 2 cores", "unknown"),
    ],
)
def test_devices_as_names_of_files(modules: dict[str, ModuleType], device: str, name: str) -> None:
    assert modules["_gpu_pages"].slug(device) == name
