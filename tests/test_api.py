"""The Python interface: models from memory, what the result offers, and what a user's type checker sees."""

from __future__ import annotations

import copy
import html
import inspect
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from onnx import ModelProto, TensorProto

import dilrewrite
from dilrewrite.model import load
from dilrewrite.reports.formats import console
from dilrewrite.reports.formats.html import render
from dilrewrite.runtimes import TimeKind
from tests.models_for_tests import conv1d, listing, plain, save, save_external, transposed, two_convs
from tests.reports.examples import REPORTS

ROOT = Path(__file__).resolve().parents[1]

IN_MEMORY: dict[str, Callable[[ModelProto], Any]] = {
    "bytes": lambda proto: proto.SerializeToString(),
    "ModelProto": lambda proto: proto,
    "ONNXProgram": lambda proto: SimpleNamespace(model_proto=proto),
}
CALLS: dict[str, Callable[..., Any]] = {
    "optimize": lambda model: dilrewrite.optimize(model, strategy="space_to_batch"),
    "optimize, kept": lambda model: dilrewrite.optimize(model),
    "inspect": lambda model: dilrewrite.inspect(model),
    "verify": lambda model: dilrewrite.verify(model, model),
    "bench": lambda model: dilrewrite.bench(model, model, budget=0),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is working directory, home, cache and place for temporary files."""
    monkeypatch.chdir(tmp_path)
    for name in ("HOME", "XDG_CACHE_HOME", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.delenv("DILREWRITE_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def left(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder but what ONNX Runtime's own telemetry keeps there."""
    return {name: data for name, data in listing(folder).items() if not name.startswith(("Microsoft", ".ses"))}


# -- models in memory ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("kind", IN_MEMORY)
@pytest.mark.parametrize("call", CALLS)
def test_a_model_in_memory_is_taken_as_its_file_is_and_stays_as_it_is(call: str, kind: str, home: Path) -> None:
    proto = conv1d()
    before = proto.SerializeToString()
    report = CALLS[call](IN_MEMORY[kind](proto))
    assert left(home) == {}
    assert proto.SerializeToString() == before
    assert report.output is None
    same = CALLS[call](save(proto, home / "m.onnx"))
    assert (report.command, report.status, report.exit_code) == (same.command, same.status, same.exit_code)
    assert (report.before.sha256, report.before.bytes) == (same.before.sha256, same.before.bytes)
    assert report.sites == same.sites
    assert "in memory" in report.before.path
    assert "Convs to rewrite" not in render(report), "it was done, not planned"
    if call.startswith("optimize"):
        assert report.model.SerializeToString() == Path(same.output).read_bytes()
        report.model.graph.Clear()
        assert proto.SerializeToString() == before


@pytest.mark.measures
def test_measuring_a_model_in_memory_leaves_no_file(home: Path) -> None:
    """Neither timings nor profiles stay; they would with a path."""
    report = dilrewrite.optimize(conv1d(length=4000), budget=2)
    assert report.measurement is not None
    assert report.measurement.measured > 0
    assert left(home) == {}
    dilrewrite.optimize(save(conv1d(length=4000), home / "m.onnx"), budget=2)
    assert "dilrewrite/timings.sqlite" in left(home)


@pytest.mark.usefixtures("in_process")
def test_what_is_named_is_written(home: Path) -> None:
    report = dilrewrite.optimize(
        conv1d(), "out.onnx", strategy="im2col", report="told", save_decisions="decisions.json", cache="timings.sqlite"
    )
    assert report.output == "out.onnx"
    assert report.model == onnx.load("out.onnx")
    assert {"out.onnx", "decisions.json", "told/report.html"} <= set(listing(home))
    beside = dilrewrite.optimize(conv1d(), "other.onnx", decisions="decisions.json", report="beside")
    assert (home / "other.onnx").read_bytes() == (home / "out.onnx").read_bytes()
    assert (home / "other.report" / "report.md").is_file()
    assert beside.status == "rewritten"
    told = dilrewrite.optimize(conv1d(), strategy="im2col", report="again")
    assert told.output is None
    assert (home / "again" / "report.json").is_file()


@pytest.mark.parametrize("more", [{"report": "beside"}, {"build_engine": True}], ids=str)
def test_files_without_a_name(home: Path, more: dict[str, Any]) -> None:
    with pytest.raises(dilrewrite.UsageError, match="nothing says where files go; name an output"):
        dilrewrite.optimize(conv1d(), **more)
    assert left(home) == {}


def test_bytes_that_are_kept_are_written_as_they_are(tmp_path: Path) -> None:
    """Fields in an order that no writer has: parsed and written again, they would be other bytes."""
    proto = plain()
    first = ModelProto(ir_version=proto.ir_version)
    proto.ClearField("ir_version")
    odd = proto.SerializeToString() + first.SerializeToString()
    assert ModelProto.FromString(odd).SerializeToString() != odd
    report = dilrewrite.optimize(odd, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == odd
    assert report.after is not None
    assert report.before.sha256 == report.after.sha256


def test_a_dry_run_makes_no_model(home: Path) -> None:
    report = dilrewrite.optimize(conv1d(), strategy="im2col", dry_run=True)
    assert (report.model, report.speedup) == (None, None)
    assert left(home) == {}


# -- models that cannot be taken -------------------------------------------------------------------------------------


def huge() -> ModelProto:
    """A model that says it has 2 GiB of weights."""
    proto = conv1d()
    proto.graph.initializer.append(TensorProto(name="huge", dims=[2**29], data_type=TensorProto.FLOAT))
    return proto


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("made", [lambda: bytes(2**31), huge], ids=["bytes", "ModelProto"])
def test_2_gb_in_memory_ask_for_a_path(call: str, made: Callable[[], Any]) -> None:
    with pytest.raises(dilrewrite.UsageError, match=r"in memory has 2 GB or more, which .* give the path of its file"):
        CALLS[call](made())


def test_what_is_too_large_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(load, "LIMIT_BYTES", 100)
    with pytest.raises(dilrewrite.UsageError, match="2 GB or more"):
        dilrewrite.inspect(conv1d())
    with pytest.raises(dilrewrite.UsageError, match="2 GB or more"):
        dilrewrite.inspect(conv1d().SerializeToString())


def test_values_in_other_files_are_refused(tmp_path: Path) -> None:
    path = save_external(conv1d(), tmp_path / "m.onnx")
    without = onnx.load(path, load_external_data=False)
    for model in (without, without.SerializeToString()):
        with pytest.raises(dilrewrite.UsageError, match="are in another file; load the model with its external data"):
            dilrewrite.optimize(model)
    assert dilrewrite.optimize(onnx.load(path), strategy="im2col").status == "rewritten"


@pytest.mark.parametrize("wrong", [None, 3, ["m.onnx"], conv1d().graph], ids=lambda wrong: type(wrong).__name__)
def test_what_is_no_model(wrong: Any) -> None:
    kinds = "a model is a path, bytes, an onnx.ModelProto or a torch ONNXProgram"
    with pytest.raises(TypeError, match=f"^{kinds}, not {type(wrong).__name__}$"):
        dilrewrite.optimize(wrong)


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"no model", "is not an ONNX model"), (b"", "it has no graph"), (conv1d().SerializeToString()[:-9], "cut off")],
    ids=["text", "empty", "cut off"],
)
def test_bytes_that_are_no_model(data: bytes, said: str) -> None:
    with pytest.raises(dilrewrite.UsageError, match=f"^the model in memory .*{said}"):
        dilrewrite.inspect(data)
    with pytest.raises(dilrewrite.UsageError, match=f"^the second model in memory .*{said}"):
        dilrewrite.verify(conv1d(), data)


# -- torch -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("in_process")
@pytest.mark.filterwarnings("ignore")
def test_what_torch_exports(home: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    module = torch.nn.Sequential(torch.nn.Conv1d(2, 2, 3, dilation=4), torch.nn.ReLU()).eval()
    program = torch.onnx.export(module, (torch.ones(1, 2, 32),), dynamo=True, verbose=False)
    before, files = program.model_proto.SerializeToString(), left(home)
    report = dilrewrite.optimize(program, strategy="space_to_batch")
    assert (report.status, report.rewritten, report.output) == ("rewritten", 1, None)
    assert report.model is not None
    onnx.checker.check_model(report.model)
    assert dilrewrite.verify(program, report.model).status == "equal"
    assert len(dilrewrite.inspect(program).sites) == 1
    assert dilrewrite.bench(program, report.model, budget=0).status == "measured"
    assert program.model_proto.SerializeToString() == before
    assert left(home) == files


# -- the result ------------------------------------------------------------------------------------------------------


def test_the_model_of_a_path_is_loaded_when_it_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "sub").mkdir()
    save_external(conv1d(), home / "sub" / "m.onnx")
    report = dilrewrite.optimize("sub/m.onnx", strategy="space_to_batch")
    monkeypatch.chdir(home / "sub")
    wanted = onnx.load("m.dilrewrite.onnx")
    assert report.model == wanted
    assert not any(tensor.external_data for tensor in wanted.graph.initializer)
    (home / "sub" / "m.dilrewrite.onnx").unlink()
    assert report.model == wanted


@pytest.mark.usefixtures("in_process")
def test_only_optimize_makes_a_model() -> None:
    for call in ("inspect", "verify", "bench"):
        assert CALLS[call](conv1d()).model is None
    none = dilrewrite.optimize(transposed(), eliminate=True, budget=0)
    assert (none.status, none.model, none.speedup) == ("dilation left", None, None)


def test_copies_of_a_report_hold_its_model() -> None:
    report = dilrewrite.optimize(conv1d(), strategy="im2col")
    for other in (copy.copy(report), copy.deepcopy(report), pickle.loads(pickle.dumps(report)), replace(report)):
        assert other.model == report.model
        assert other == report
    assert "_held" not in report.as_dict()


SPEEDUPS = {
    "kept": 1.0,
    "nothing-to-rewrite": 1.0,
    "measured-inconclusive": 1.0,
    "rewritten": None,
    "dry-run": None,
    "differs": None,
    "dilation-left": None,
    "inspected": None,
    "equal": None,
    "bench-one": None,
}


@pytest.mark.parametrize("name", SPEEDUPS)
def test_speedup(name: str) -> None:
    assert REPORTS[name].speedup == SPEEDUPS[name]


def test_speedup_is_how_many_times_faster() -> None:
    measured = [one for one in REPORTS.values() if one.measurement is not None and one.measurement.final is not None]
    changed = [one for one in measured if one.after is not None and one.status in ("rewritten", "measured")]
    assert {one.command for one in changed} == {"optimize", "bench"}
    for one in changed:
        assert one.measurement is not None
        assert one.measurement.final is not None
        assert one.speedup == 1 / one.measurement.final.ratio
        assert replace(one, measurement=replace(one.measurement, source=TimeKind.ESTIMATED)).speedup is None
    assert any(one.speedup is not None and one.speedup > 1 for one in changed)


@pytest.mark.parametrize("name", REPORTS)
def test_summary_is_the_first_line_of_the_console(name: str) -> None:
    report = REPORTS[name]
    assert console.to_text(report, 10_000).split("\n")[0] == report.summary


@pytest.mark.parametrize("name", REPORTS)
def test_repr_is_short(name: str) -> None:
    report = REPORTS[name]
    said = repr(report)
    assert re.fullmatch(r"<dilrewrite\.Report [^\n]{1,80}>", said)
    assert f"{report.command}: {report.status}" in said


def test_repr_says_what_was_gained() -> None:
    assert re.search(r"rewritten, \d+ of \d+ sites, speedup \d", repr(REPORTS["measured"]))


@pytest.mark.parametrize("name", REPORTS)
def test_a_notebook_shows_the_answer_and_the_whole_report_below(name: str) -> None:
    report = REPORTS[name]
    shown = re.fullmatch(
        r'<details><summary>(.*)</summary><iframe srcdoc="([^"]*)"[^>]*></iframe></details>',
        report._repr_html_(),
        flags=re.DOTALL,
    )
    assert shown is not None
    assert html.unescape(shown[1]) == report.summary
    assert html.unescape(shown[2]) == render(report)


# -- types -----------------------------------------------------------------------------------------------------------

SCRIPT = """
import os
from pathlib import Path

import onnx
from onnx import ModelProto

import dilrewrite
from dilrewrite import Report


class Program:
    @property
    def model_proto(self) -> ModelProto:
        return ModelProto()


def best(model: dilrewrite.AnyModel) -> ModelProto | None:
    report: dilrewrite.Report = dilrewrite.optimize(model, budget=5, only="conv", no_cache=True)
    speedup: float | None = report.speedup
    summary: str = report.summary
    sites: tuple[dilrewrite.SiteReport, ...] = report.sites
    again: Report = dilrewrite.verify(model, report.model or model)
    timed: Report = dilrewrite.bench(model, Program(), budget=1)
    print(speedup, summary, sites, again, timed, dilrewrite.inspect(model))
    return report.model


best("m.onnx")
best(Path("m.onnx"))
best(b"")
best(onnx.load("m.onnx"))
best(Program())
best(3)  # error: arg-type
dilrewrite.optimize("m.onnx", bugdet=1)  # error: call-arg
dilrewrite.optimize("m.onnx", budget="1")  # error: arg-type
dilrewrite.Reprot  # error: attr-defined
"""


def test_a_script_of_a_user_passes_a_strict_type_checker(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    script, settings = tmp_path / "script.py", tmp_path / "mypy.ini"
    script.write_text(SCRIPT)
    settings.write_text(f"[mypy]\nstrict = true\nmypy_path = {ROOT}\nfollow_imports = silent\n[mypy-torch.*]\n")
    with settings.open("a") as file:
        file.write("follow_imports = skip\nignore_missing_imports = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", settings, "--cache-dir", ROOT / ".mypy_cache/api", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    wanted = [
        (number, line.partition("# error: ")[2])
        for number, line in enumerate(SCRIPT.splitlines(), 1)
        if "# error: " in line
    ]
    found = re.findall(r"^script\.py:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, flags=re.MULTILINE)
    assert [(int(number), code) for number, code in found] == wanted, done.stdout + done.stderr
    assert f"Found {len(wanted)} errors in 1 file" in done.stdout


def test_type_hints_can_be_evaluated_at_run_time() -> None:
    """In a Python that has loaded nothing yet."""
    program = """
        import typing
        import dilrewrite
        for name in ("inspect", "inspect_engine", "optimize", "build", "verify", "bench"):
            hints = typing.get_type_hints(getattr(dilrewrite, name))
            assert hints["return"] in (dilrewrite.Report, dilrewrite.EngineReport), hints
            if name in ("inspect", "optimize", "bench"):
                assert hints["model"] == dilrewrite.AnyModel, hints
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_names_can_be_seen() -> None:
    assert dir(dilrewrite) == sorted(dilrewrite.__all__)
    assert {"AnyModel", "Report", "SiteReport", "optimize"} <= set(dir(dilrewrite))
    assert len(set(dilrewrite.__all__)) == len(dilrewrite.__all__)


def test_one_name_for_the_budget() -> None:
    """What the command line calls it; what it was called before still works."""
    for function in (dilrewrite.optimize, dilrewrite.bench):
        names = set(inspect.signature(function).parameters)
        assert "budget" in names
        assert "budget_s" not in names
    report = dilrewrite.optimize(conv1d(), budget_s=0)  # type: ignore[call-arg]
    assert report.options["budget"] == 0


# -- docs/python.md --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_the_examples_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch, onnxruntime = pytest.importorskip("torch"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    save(two_convs(), home / "model.onnx")
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    first, second, third = re.findall(r"^```python\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    exec(first, {})
    assert capsys.readouterr().out.endswith("\n1.0\n")
    module = torch.nn.Conv1d(2, 2, 3, dilation=4)
    names = {"torch": torch, "dilrewrite": dilrewrite, "onnxruntime": onnxruntime, "module": module}
    exec(second, names | {"x": torch.ones(1, 2, 32)})

    class Masked(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.conv = module

        def forward(self, x: Any, lengths: Any, *, mask: Any) -> Any:
            return self.conv(x * mask) / lengths

    tensors = {"x": torch.ones(1, 2, 32), "lengths": torch.ones(1), "mask": torch.ones(32)}
    capsys.readouterr()
    exec(third.replace("budget=10", "budget=0.1"), {"module": Masked(), **tensors})
    assert capsys.readouterr().out.startswith("conv ")
