"""Judges: what is installed where, what is said of it, and what a failure is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dilrewrite import judges
from dilrewrite.cli import main
from dilrewrite.errors import FailedError, UsageError
from dilrewrite.runtimes import timed_backend


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """The commands that were called, in the place of the calls; pip lists two packages."""
    called: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        called.append(command)
        if "venv" in command:
            Path(command[-1]).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "ethos-u-vela==5.2.0\nnumpy==2.4.6\n", "")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("DILREWRITE_JUDGES", str(tmp_path / "judges"))
    return called


def test_a_judge_is_installed_into_an_environment_of_its_own(
    commands: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vela, folder = judges.judge("ethos-u-vela"), tmp_path / "judges" / "ethos-u-vela-5.2.0"
    assert vela.missing() == "ethos-u-vela 5.2.0 is not installed: dilrewrite targets install-judge ethos-u-vela"
    assert main(["targets", "install-judge", "ethos-u-vela"]) == 0
    assert vela.missing() is None
    assert commands[0] == [sys.executable, "-m", "venv", "--clear", str(folder)]
    assert commands[1][0] == str(folder / "bin" / "python")
    assert commands[1][-1] == "ethos-u-vela==5.2.0"
    said = capsys.readouterr().out
    assert f"installs ethos-u-vela==5.2.0, about 110 MB, into {folder}" in said
    assert "Apache-2.0" in said
    assert said.endswith("installed: ethos-u-vela==5.2.0, numpy==2.4.6\n")


def test_what_a_judge_asks_for_and_does_not_need_is_left_out(commands: list[list[str]], tmp_path: Path) -> None:
    """RKNN-Toolkit2 asks for PyTorch, gigabytes of it; an older one has a folder of its own."""
    judges.install("rknn-toolkit2-2.3.2", lambda _: None)
    toolkit, beside = commands[1][5:], commands[2][5:]
    assert toolkit == ["--quiet", "--no-deps", "rknn-toolkit2==2.3.2"]
    assert beside[0] == "--quiet"
    assert not [one for one in beside if one.startswith(("torch", "rknn"))]
    assert commands[0][-1] == str(tmp_path / "judges" / "rknn-toolkit2-2.3.2")
    assert judges.judge("rknn-toolkit2").missing() is not None
    assert judges.judge("rknn-toolkit2-2.3.2").missing() is None


@pytest.mark.parametrize("judge", judges.JUDGES.values(), ids=judges.JUDGES)
def test_the_backend_of_a_judge_asks_it(monkeypatch: pytest.MonkeyPatch, judge: judges.Judge) -> None:
    monkeypatch.setattr(judges.Judge, "missing", lambda _: None)
    backend = timed_backend(judge.backend)
    assert backend.versions() == {judge.package: judge.version}
    assert judges.versions(judge.package)[judge.version] == judge


def test_the_usual_place_is_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("DILREWRITE_JUDGES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert judges.judge("ethos-u-vela").folder == tmp_path / "dilrewrite" / "judges" / "ethos-u-vela-5.2.0"


def test_what_pip_says_is_the_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment that was not finished does not count as installed."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        Path(command[-1]).mkdir(parents=True, exist_ok=True) if "venv" in command else None
        return subprocess.CompletedProcess(command, int("install" in command), "", "ERROR: no such version\n")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setenv("DILREWRITE_JUDGES", str(tmp_path))
    with pytest.raises(FailedError, match="ethos-u-vela cannot be installed: ERROR: no such version"):
        judges.install("ethos-u-vela", lambda _: None)
    assert judges.judge("ethos-u-vela").missing() is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["install-judge"], "targets install-judge needs a name"),
        (["install-judge", "vella"], "there is no judge 'vella'"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["targets", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_an_unknown_judge() -> None:
    with pytest.raises(UsageError, match="there is no judge 'vela'"):
        judges.judge("vela")
