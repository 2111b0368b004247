"""The commands with --on: their answers, and what is left on either side when something ends them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dilrewrite.cli import main
from dilrewrite.devices._line import LOG
from tests import models_for_tests as tiny
from tests.devices.board import Board, until
from tests.devices.test_ssh_lines import _opened
from tests.tensorrt.rtx import needs_rtx


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A model with two dilated Convs."""
    return tiny.save(tiny.two_convs(), tmp_path / "model.onnx")


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """Return the report that a command prints."""
    assert main([*map(str, arguments), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_bench_and_inspect_measure_there(board: Board, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = answer(capsys, "bench", place, "--on", board.on, "--budget", 1)
    assert told["measurement"]["settings"]["on"] == "ssh://one"
    assert told["measurement"]["device"].endswith(", at ssh://one")
    assert told["measurement"]["versions"].keys() == {"onnxruntime", "numpy", "python", "kernel"}
    assert told["measurement"]["final"]["state_before"].keys() >= {"load"}
    told = answer(capsys, "inspect", place, "--profile", "--on", board.on)
    assert told["measurement"]["settings"]["on"] == "ssh://one"
    assert all(site["share"] is not None for site in told["sites"])
    assert until(lambda: not board.left()), board.left()


def test_a_name_of_a_user_is_in_no_report(
    board: Board, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on = board.on.replace("ssh://", f"ssh://{board.user}@")
    arguments = ["optimize", place, "--on", on, "--budget", 0, "--report", tmp_path / "report", "--eliminate"]
    told = answer(capsys, *arguments)
    assert told["options"]["on"].startswith("ssh://***@one?python=")
    texts = [file.read_text(encoding="utf-8") for file in (tmp_path / "report").iterdir()]
    assert texts
    assert not any(board.user in text for text in texts)


@pytest.mark.measures
def test_a_host_that_goes_in_mid_run(
    board: Board, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LOG, str(tmp_path / "log"))

    def leave() -> None:
        until(lambda: _opened(tmp_path / "log") >= 2)
        board.stop()

    worker = threading.Thread(target=leave)
    worker.start()
    code = main(["optimize", str(place), "--on", board.on, "--budget", "20", "--no-cache", "--quiet"])
    worker.join()
    assert code == 4
    said = capsys.readouterr().err
    assert said.startswith("dilrewrite: ssh://one: it cannot be reached: ")
    assert said.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "log", "ssh_config"}


@pytest.mark.measures
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_who_is_stopped_here_leaves_nothing_there(
    board: Board, place: Path, tmp_path: Path, kind: signal.Signals
) -> None:
    arguments = ["optimize", str(place), "--on", board.on, "--budget", "60", "--no-cache", "--quiet"]
    environment = {**os.environ, LOG: str(tmp_path / "log")}
    process = subprocess.Popen([sys.executable, "-m", "dilrewrite", *arguments], env=environment)
    assert until(lambda: _opened(tmp_path / "log") >= 2, 60)
    assert board.ours()
    process.send_signal(kind)
    assert process.wait(30) != 0
    assert until(lambda: not board.left()), board.left()
    assert until(lambda: not board.ours())
    assert until(lambda: not board.sessions())


@needs_rtx
def test_an_engine_is_built_there(
    board: Board, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on = board.with_python(f"{board.home}/rtx/bin/python")
    told = answer(capsys, "build", place, "--on", on, "--flavour", "tensorrt-rtx", "-o", tmp_path / "there.engine")
    here = answer(capsys, "build", place, "--flavour", "tensorrt-rtx", "-o", tmp_path / "here.engine")
    assert told["engine"]["layers"] == here["engine"]["layers"]
    assert told["engine"]["version"] == here["engine"]["version"]
    assert "built on ssh://one" in told["engine"]["checked"]
    assert (tmp_path / "there.engine").stat().st_size > 0
    assert main(["inspect", str(tmp_path / "there.engine")]) == 0
    assert main(["build", str(place), "--on", on, "-o", str(tmp_path / "no.engine"), "--timing-cache", "t"]) == 2
    assert "--timing-cache with --on" in capsys.readouterr().err
    assert until(lambda: not board.left()), board.left()


@needs_rtx
def test_what_was_chosen_is_built_there(
    board: Board, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on = board.with_python(f"{board.home}/rtx/bin/python")
    arguments = ["--on", on, "--flavour", "tensorrt-rtx", "--eliminate", "--budget", 0, "--no-report"]
    told = answer(capsys, "optimize", place, "--build-engine", *arguments, "-o", tmp_path / "there.onnx")
    assert (told["status"], told["after"]["dilated"]) == ("rewritten", 0)
    assert "built on ssh://one" in told["engine"]["checked"]
    assert (tmp_path / "there.engine").stat().st_size > 0
    assert until(lambda: not board.left()), board.left()


@pytest.mark.parametrize("flavour", ["auto", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("command", [("build",), ("optimize", "--build-engine", "--no-report")])
def test_no_tensorrt_there(
    board: Board, place: Path, flavour: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, before any work, with what is to be typed there; nothing is left on either side."""
    assert main([*command[:1], str(place), *command[1:], "--on", board.on, "--flavour", flavour]) == 4
    said, name = capsys.readouterr().err, "tensorrt" if flavour == "auto" else flavour
    what = "no TensorRT is installed; " if flavour == "auto" else f"{flavour} is not installed: "
    assert said.startswith(f"dilrewrite: ssh://one: {what}'{board.python}' -m pip install '{name}>="), said
    assert said.endswith("; run that there, or name another with ?python=/path\n")
    assert "dilrewrite[" not in said
    assert [path.name for path in place.parent.iterdir() if path.name != "ssh_config"] == ["model.onnx"]
    assert until(lambda: not board.left()), board.left()
