"""Help and wrong usage: whole summaries, groups, completion, and what was probably meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dilrewrite.cli import COMMANDS
from tests.models_for_tests import cli, conv1d, save


def test_summaries_are_whole(capsys: pytest.CaptureFixture[str]) -> None:
    page = " ".join(cli(capsys, "-h").out.split())
    assert "..." not in page.replace("COMMAND [ARGS]...", "")
    assert page.endswith("Examples: # whatever is fastest, in a new model dilrewrite optimize model.onnx")
    for command in COMMANDS:
        own = cli(capsys, command, "-h").out
        assert own == cli(capsys, command, "--help").out
        summary = " ".join(own.split("\n\n")[1].split())
        assert f"{command} {summary}" in page


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert max(map(len, cli(capsys, command, "--help").out.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimise", "m.onnx"], "there is no command 'optimise'; did you mean optimize? Choose one of inspect, "),
        (["transmogrify"], "there is no command 'transmogrify'; choose one of inspect, "),
        (["m.onnx"], "m.onnx is no command; for a model: dilrewrite optimize m.onnx"),
        (
            ["a b.ONNX", "--eliminate"],
            "a b.ONNX is no command; for a model: dilrewrite optimize 'a b.ONNX' --eliminate",
        ),
        (["m.engine"], "m.engine is no command; for a model: dilrewrite inspect m.engine"),
        (
            ["optimize", "m.onnx", "--budgte", "1"],
            "no option --budgte; did you mean --budget? see dilrewrite optimize -",
        ),
        (
            ["inspect", "m.onnx", "--strategy", "x"],
            "--strategy; dilrewrite optimize and sweep have it; see dilrewrite inspect -",
        ),
        (
            ["--eliminate", "m.onnx"],
            "there is no option --eliminate; dilrewrite optimize and sweep have it; see dilrewrite --help",
        ),
        (["verify", "m.onnx"], "Missing argument 'AFTER'; see dilrewrite verify --help"),
        (["build", "m.onnx", "-o"], "Option '-o' requires an argument; see dilrewrite build --help"),
        (["backends", "--quiet"], "dilrewrite inspect and optimize have it; see dilrewrite backends --help"),
        (["bench", "m.onnx", "--backend", "gpu"], "--backend gpu: no backend 'gpu'; known are "),
        (["bench", "m.onnx", "--threads", "0"], "see dilrewrite bench --help"),
        (["bench", "a.onnx", "b.onnx", "c.onnx"], "(c.onnx); see dilrewrite bench --help"),
        (
            ["convbench", "--format", "jsno"],
            "--format jsno: not one of table, original, json, markdown; did you mean j",
        ),
    ],
)
def test_wrong_usage_says_what_helps(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli(capsys, *arguments)
    assert (outcome.code, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
    assert words in outcome.err


def completed(*words: str) -> list[str]:
    """What a shell is offered for the last word."""
    environment = {
        **os.environ,
        "_DILREWRITE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(("dilrewrite", *words)),
        "COMP_CWORD": str(len(words)),
    }
    command = [sys.executable, "-m", "dilrewrite"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_a_shell_completes() -> None:
    assert completed("b") == ["bench", "build", "backends"]
    assert completed("optimize", "--elim") == ["--eliminate"]
    assert completed("optimize", "--verify", "s") == ["sites"]
    assert completed("optimize", "--strategy", "tap_") == ["tap_prune", "tap_sum", "tap_zones"]
    assert "cpu" in completed("bench", "--backend", "c")
    assert completed("verify", "--report-format", "ju") == ["junit"]


def test_completion_can_be_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.completion._get_shell_name", lambda: "bash")
    outcome = cli(capsys, "--show-completion")
    assert outcome.code == 0
    assert "_DILREWRITE_COMPLETE" in outcome.out


def test_short_names_and_sizes_of_the_only_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    options = ["--strategy", "space-to-batch", "--backend", "cpu", "--shape", "1,2,16", "--budget", 0]
    report = cli(capsys, "optimize", path, *options, "--json").report
    assert report["status"] == "rewritten"
    assert [site["strategy"] for site in report["sites"]] == ["space_to_batch"]
    outcome = cli(capsys, "optimize", path, "-o", tmp_path / "o.onnx", "--shape", "1x2x17")
    assert (outcome.code, "[1, 2, 17] does not fit [1, 2, 16]" in outcome.err) == (2, True)
