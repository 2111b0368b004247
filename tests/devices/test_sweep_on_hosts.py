"""A sweep on two hosts that ssh reaches, under two users: every model once, the same bytes, and a host that is gone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dilrewrite
from dilrewrite.reports.swept import SweepReport
from tests.devices.board import USERS, Board
from tests.devices.conftest import known
from tests.models_for_tests import cli, conv1d, plain, save, two_convs

HOW: dict[str, Any] = {"eliminate": True, "budget": 0, "backend": "cpu"}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    for name, model in {"one": conv1d(), "plain": plain(), "two": two_convs()}.items():
        save(model, folder / f"{name}.onnx")
    return folder


def contents(report: SweepReport) -> dict[str, bytes]:
    return {Path(one.model).name: Path(one.output).read_bytes() for one in report.models if one.output}


def test_two_hosts_of_two_users(
    models: Path, tmp_path: Path, new_board: Callable[..., Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has one model at a time. When one is gone, the other answers; when both are, every model says so."""
    boards = [new_board(name, user=user) for name, user in zip(("alpha", "beta"), USERS, strict=True)]
    known(monkeypatch, tmp_path, *boards)
    there = dilrewrite.sweep([models], tmp_path / "there", on=[board.on for board in boards], **HOW)
    assert (there.exit_code, len(there.models)) == (0, 3)
    assert {one.on.partition("?")[0] for one in there.models} == {"ssh://alpha", "ssh://beta"}
    assert [board.left() for board in boards] == [[], []]
    here = dilrewrite.sweep([models], tmp_path / "here", **HOW)
    assert contents(there) == contents(here)
    assert len(contents(here)) == 3

    boards[0].stop()
    left = dilrewrite.sweep([models], tmp_path / "left", on=[board.on for board in boards], **HOW)
    assert left.exit_code == 0
    assert {one.on.partition("?")[0] for one in left.models} == {"ssh://beta"}
    assert contents(left) == contents(here)
    assert (there.notes, len(left.notes)) == ((), 1)
    assert left.notes[0].startswith(f"{boards[0].on} was asked no more: ssh://alpha: it cannot be reached")

    boards[1].stop()
    two = [models / "one.onnx", models / "plain.onnx"]
    gone = dilrewrite.sweep(two, tmp_path / "gone", on=[board.on for board in boards], **HOW)
    assert [(one.status, one.exit_code) for one in gone.models] == [("failed", 4)] * 2
    assert all("ssh://" in one.said for one in gone.models)


@pytest.mark.measures
def test_a_sweep_by_a_program(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What estimates answers for many models: the table says that it does."""
    tool = tmp_path / "tool.sh"
    tool.write_text('grep -q Transpose "$1" && ms=5 || ms=20; echo "{\\"ms\\": $ms, \\"estimated\\": true}"')
    on = f"cmd:sh '{tool}' {{model}}"
    (models / "two.onnx").unlink()
    outcome = cli(capsys, "sweep", models, "--on", on, "--budget", 10, "--no-cache", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["on"] == [on]
    taken = [one for one in report["models"] if one["ratio"] is not None]
    assert {one["source"] for one in taken} == {"estimated"}
    assert [one["status"] for one in report["models"]] == ["rewritten", "nothing to rewrite"]
    for text in (outcome.out, *((tmp_path / "out" / name).read_text() for name in ("report.md", "report.html"))):
        assert "4.00x faster, by estimate" in " ".join(text.split())
        assert "measured" not in text
