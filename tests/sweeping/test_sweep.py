"""A sweep on this machine: one answer for each model, outputs and one report, and what an earlier run answered."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import dilrewrite
from dilrewrite.errors import UsageError
from dilrewrite.reports import swept
from tests.models_for_tests import cli, conv1d, dilations, listing, plain, save, two_convs

HOW: dict[str, Any] = {"eliminate": True, "budget": 0, "backend": "cpu"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Two models of one file name, one without dilation, and a file that is no model."""
    folder = tmp_path / "mo dels"
    for name, model in {"a/net.onnx": conv1d(), "b/net.onnx": two_convs(), "plain.onnx": plain()}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(model, folder / name)
    (folder / "broken.onnx").write_bytes(b"no model")
    return folder


def test_every_model_has_one_answer(models: Path, tmp_path: Path) -> None:
    """An error of one is its answer; each output is what `optimize` alone makes; a second run asks nothing again."""
    out, steps = tmp_path / "out", []

    def progress(step: str, done: int, total: int) -> None:
        steps.append((step, done, total))

    report = dilrewrite.sweep([models, models / "plain.onnx"], out, progress=progress, **HOW)
    assert [Path(one.model).relative_to(models).as_posix() for one in report.models] == [
        *("a/net.onnx", "b/net.onnx", "broken.onnx", "plain.onnx")
    ]
    assert [one.status for one in report.models] == ["rewritten", "rewritten", "failed", "nothing to rewrite"]
    assert (report.exit_code, report.status) == (1, "not all answered")
    assert report.models[2].exit_code == 2
    assert "broken.onnx" in report.models[2].said
    assert steps == [("models", done, 4) for done in range(5)]
    names = ["a-net", "b-net", "plain"]
    assert sorted(listing(out)) == sorted(
        [
            *(f"{name}.dilrewrite.onnx" for name in names),
            *(f"{name}.report" for name in names),
            *(f"{name}.report/report.{kind}" for name in names for kind in ("html", "json", "md")),
            *("report.html", "report.json", "report.md"),
        ]
    )
    alone = dilrewrite.optimize(models / "b" / "net.onnx", tmp_path / "alone.onnx", **HOW)
    made = out / "b-net.dilrewrite.onnx"
    assert made.read_bytes() == (tmp_path / "alone.onnx").read_bytes()
    assert (alone.status, set(dilations(made))) == ("rewritten", {1})
    assert report.models[1].said == alone.summary.replace(str(tmp_path / "alone.onnx"), str(made))

    before = {name: (out / name).stat().st_mtime_ns for name in listing(out) if name.endswith(".onnx")}
    save(conv1d(), models / "broken.onnx")
    again = dilrewrite.sweep([models], out, **HOW)
    assert [one.before for one in again.models] == [True, True, False, True]
    assert again.exit_code == 0
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before


def test_another_question_in_the_same_folder_replaces_nothing(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dilrewrite.sweep([models / "plain.onnx"], out, **HOW)
    held = listing(out)
    with pytest.raises(UsageError, match=r"plain\.dilrewrite\.onnx exists, and no report here says"):
        dilrewrite.sweep([models / "plain.onnx"], out, **{**HOW, "max_dilation": 2})
    assert listing(out) == held
    forced = dilrewrite.sweep([models / "plain.onnx"], out, **{**HOW, "max_dilation": 2}, force=True)
    assert (forced.exit_code, forced.options["max_dilation"]) == (0, 2)


def test_an_output_that_changed_is_made_again(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (first,) = dilrewrite.sweep([models / "plain.onnx"], out, **HOW).models
    (out / "plain.dilrewrite.onnx").unlink()
    (second,) = dilrewrite.sweep([models / "plain.onnx"], out, **HOW).models
    assert (second.before, second.sha256) == (False, first.sha256)


def test_the_command_line(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--eliminate", "--budget", 0, "--backend", "cpu", "-o", out]
    shown = cli(capsys, "sweep", models / "*.onnx", *options)
    assert shown.code == 1
    assert "2 models: 1 nothing to rewrite, 1 failed" in shown.out
    assert "broken.onnx" in shown.out
    report = json.loads((out / "report.json").read_text())
    assert report == cli(capsys, "sweep", models / "*.onnx", *options, "--json").report | {
        "date": report["date"],
        "seconds": report["seconds"],
        "models": report["models"],
    }
    assert (report["command"], report["exit_code"], report["status"]) == ("sweep", 1, "not all answered")
    quiet = cli(capsys, "sweep", models / "broken.onnx", *options, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (1, "", "dilrewrite: 1 model: 1 failed\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "no model was named"),
        (["no.onnx"], 2, "no such file or folder"),
        (["m.onnx", "--max-dilation", "0"], 2, "--max-dilation"),
        (["m.onnx", "-o", "m.onnx"], 2, "is not a folder"),
        (["m.onnx", "-o", "no/where"], 2, "cannot be made"),
        (["m.onnx", "--on", "dask://h:1", "--on", "ssh://b"], 2, "a scheduler has its own machines"),
        (["m.onnx", "--on", "dask://"], 2, "names no scheduler"),
        (["m.onnx", "--on", "dask://h:port"], 2, "names no scheduler"),
        (["m.onnx", "--on", "dask://h:99999"], 2, "names no scheduler"),
        (["m.onnx", "--on", "dask://[::1"], 2, "names no scheduler"),
        (["m.onnx", "--on", "dask://h:22/x?y"], 2, "names no scheduler"),
        (["m.onnx", "--on", "ssh://b", "--on", "ssh://b"], 2, "names a device twice"),
        (["m.onnx", "--on", "ftp://b"], 2, "it names no kind of device"),
        (["m.onnx", "--on", ""], 2, "it names no kind of device"),
        (["m.onnx", "--on", "dask:h:1"], 2, "a scheduler of Dask is for `dilrewrite sweep`: --on dask://HOST:PORT"),
        (["m.onnx", "--on", "ssh://b:x"], 2, "the port is no number"),
        (["m.onnx", "--on", "ssh://b", "--on", "cmd:tool"], 2, "no {model} is in it"),
        (["m.onnx", "--on", "dask://127.0.0.1:9"], 4, "no scheduler answers there"),
        (["m.onnx", "--on", "dask://h:1", "--external-data", "reference"], 2, "come back from another machine"),
    ],
)
def test_what_is_wrong_before_any_work(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(conv1d(), tmp_path / "m.onnx")
    monkeypatch.setattr("dilrewrite.sweeping.dask.CONNECT_S", 1.0)
    outcome = cli(capsys, "sweep", *arguments, "--eliminate", "--budget", 0)
    assert (outcome.code, outcome.out) == (code, "")
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert sorted(listing(tmp_path)) == ["m.onnx"]


def test_relative_paths_of_options_start_where_the_sweep_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each model has a process of its own, and `./time.sh` and `--cache` are found from it too.

    What such a file says is a part of the question: an edited one is another question.
    """
    monkeypatch.chdir(tmp_path)
    save(conv1d(), tmp_path / "m.onnx")
    tool = tmp_path / "time.sh"
    tool.write_text("#!/bin/sh\necho 12.5\n")
    tool.chmod(0o755)
    command = ["sweep", "m.onnx", "--budget", 1, "--on", "cmd:./time.sh {model} {runs}", "--cache", "kept", "-o", "out"]
    told = json.loads(cli(capsys, *command, "--json").out)
    assert (told["exit_code"], told["models"][0]["backend"], told["models"][0]["before"]) == (0, "cmd", False)
    assert (tmp_path / "kept").exists()
    again = json.loads(cli(capsys, *command, "--json").out)
    assert again["models"][0]["before"]
    tool.write_text("#!/bin/sh\necho 12.6\n")
    edited = cli(capsys, *command)
    assert (edited.code, "no report here says" in edited.err) == (2, True)
    changed = json.loads(cli(capsys, *command, "--json", "--force").out)
    assert (changed["exit_code"], changed["models"][0]["before"]) == (0, False)


def test_an_edited_target_is_another_question(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    held = (Path(dilrewrite.__file__).parent / "targets" / "profiles" / "amd-dpu.json").read_text()
    (tmp_path / "mine.json").write_text(held)
    asked: dict[str, Any] = {"budget": 0, "target": "mine.json"}
    (first,) = dilrewrite.sweep([models / "a"], tmp_path / "out", **asked).models
    assert first.exit_code == 0, first.said
    assert dilrewrite.sweep([models / "a"], tmp_path / "out", **asked).models[0].before
    (tmp_path / "mine.json").write_text(held + "\n")
    with pytest.raises(UsageError, match="no report here says"):
        dilrewrite.sweep([models / "a"], tmp_path / "out", **asked)


def test_a_report_that_is_none_is_not_replaced(models: Path, tmp_path: Path) -> None:
    (tmp_path / "report.md").write_text("notes of mine")
    with pytest.raises(UsageError, match=r"report\.md exists and is no report"):
        dilrewrite.sweep([models], tmp_path, **HOW)


def test_ctrl_c_ends_what_is_at_work_and_keeps_what_is_answered(tmp_path: Path) -> None:
    """Models of which the second takes long; the same command then asks for the second alone."""
    psutil = pytest.importorskip("psutil", reason="it comes with the extra dask")

    save(plain(), tmp_path / "a.onnx")
    save(conv1d(), tmp_path / "b.onnx")
    command = [sys.executable, "-m", "dilrewrite", "sweep", "a.onnx", "b.onnx", "-o", "out", "--backend", "cpu"]
    process = subprocess.Popen([*command, "--budget", "600", "--min-gain", "99"], cwd=tmp_path, stderr=subprocess.PIPE)
    until, begun = time.monotonic() + 120, 0.0
    while time.monotonic() < until and not begun:
        first = (tmp_path / "out" / "a.dilrewrite.onnx").exists() and swept.read(tmp_path / "out")
        if first and first[0].answered and psutil.Process(process.pid).children(recursive=True):
            begun = time.monotonic()
        time.sleep(0.05)
    assert begun, "the first model was not answered"
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.decode().count("interrupted; ")) == (130, 1)
    psutil.wait_procs(family, timeout=20)
    assert [one for one in family if one.is_running()] == []
    assert [one.status for one in swept.read(tmp_path / "out")] == ["nothing to rewrite", "not answered"]
    assert "b.dilrewrite.onnx" not in listing(tmp_path / "out")


def test_a_model_that_kills_its_process_is_an_answer(models: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("dilrewrite.sweeping.task.running", lambda _: [sys.executable, "-c", "import os; os.abort()"])
    report = dilrewrite.sweep([models / "plain.onnx"], tmp_path / "out", **HOW)
    assert report.models[0].said.startswith("the process was killed by SIGABRT")
    assert (report.models[0].status, report.exit_code) == ("failed", 1)


def test_the_exit_code_is_of_the_gravest() -> None:
    def of(*codes: int) -> int:
        answers = tuple(swept.ModelAnswer(model="m", key="", exit_code=code) for code in codes)
        return swept.SweepReport(
            folder="", models=answers, options={}, version="", machine="", date="", seconds=0.0
        ).exit_code

    assert [of(0, 0), of(0, 2), of(4, 1), of(1, 3, 4)] == [0, 1, 1, 3]


def test_the_report_of_an_estimate_says_so() -> None:
    row = {"model": "m.onnx", "key": "", "status": "rewritten", "ratio": 0.5, "low": 0.5, "high": 0.5}
    cycles = swept.ModelAnswer(**row, source="estimated", unit="cycles")  # type: ignore[arg-type]
    assert swept._speed(cycles) == "2.00x faster, in cycles, by estimate"
    assert swept._speed(swept.ModelAnswer(**row, source="measured", unit="seconds")) == "2.00x faster"  # type: ignore[arg-type]
