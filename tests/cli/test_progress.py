"""Progress without a terminal: a line now and then, for as long as a command is at work."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from dilrewrite.cli import _common
from dilrewrite.cli._common import progress
from tests.models_for_tests import cli, conv1d, save


def test_a_line_says_the_step_and_what_is_left(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_common, "EVERY_S", 0.02)
    with progress(hidden=False) as update:
        time.sleep(0.1)
        update("measure", 15, 60)
        time.sleep(0.1)
        update("prove", 2, 7)
        time.sleep(0.1)
    lines = capfd.readouterr().err.splitlines()
    assert all(re.fullmatch(r"dilrewrite: at work, \d+ s(: .*)?", line) for line in lines)
    told = [line.partition(" s: ")[2] for line in lines]
    assert {"", "measure: 45 s left", "prove, 2 of 7"} <= set(told)
    time.sleep(0.1)
    assert not capfd.readouterr().err


def test_a_command_prints_it_unless_it_is_quiet_or_quick(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    assert cli(capfd, "verify", path, path).err == ""
    monkeypatch.setattr(_common, "EVERY_S", 0.001)
    assert cli(capfd, "verify", path, path).err.startswith("dilrewrite: at work, 0 s\n")
    assert cli(capfd, "verify", path, path, "--quiet").err == ""
    assert cli(capfd, "verify", path, path, "--json").err == ""
