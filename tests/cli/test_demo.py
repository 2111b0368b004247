"""dilrewrite demo: every model can be written and used, and no file is replaced unasked."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from dilrewrite.cli.demo import DEMOS, FIRST, models
from tests.models_for_tests import MODELS, cli

pytestmark = pytest.mark.usefixtures("in_process")


def test_the_models_are_those_of_the_folder() -> None:
    assert (
        set(DEMOS) == {path.stem for path in MODELS.glob("*.onnx")} == {path.stem for path in models().glob("*.onnx")}
    )


def test_without_a_name_it_writes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli(capsys, "demo").code == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"{FIRST}.onnx"]
    assert (tmp_path / f"{FIRST}.onnx").read_bytes() == (MODELS / f"{FIRST}.onnx").read_bytes()


@pytest.mark.parametrize("name", DEMOS)
def test_the_next_command_works(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A dry run, which checks the model and the sizes."""
    folder = tmp_path / "a new one"
    outcome = cli(capsys, "demo", name, "-o", folder)
    assert outcome.code == 0
    following = shlex.split(outcome.out.splitlines()[-1].removeprefix("next: dilrewrite "))
    assert str(folder / f"{name}.onnx") in following
    assert cli(capsys, *following, "--dry-run", "--budget", "0").code == 0


def test_a_file_that_is_there_needs_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "meshnet3d.onnx"
    there.write_text("mine")
    outcome = cli(capsys, "demo", "meshnet3d", "-o", tmp_path)
    assert (outcome.code, there.read_text()) == (2, "mine")
    assert "--force" in outcome.err
    assert cli(capsys, "demo", "meshnet3d", "-o", tmp_path, "--force", "--quiet").out == ""
    assert there.read_bytes() == (MODELS / there.name).read_bytes()


def test_the_list_names_each_and_so_does_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = cli(capsys, "demo", "--list").out.splitlines()
    assert [line.split()[0] for line in listed] == list(DEMOS)
    outcome = cli(capsys, "demo", "vocoder", "-o", tmp_path)
    assert outcome.code == 2
    hint = f"did you mean hifigan_vocoder? Give one of {', '.join(DEMOS)}"
    assert outcome.err == f"dilrewrite: vocoder: no demo model; {hint}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = cli(capsys, "demo", "-o", tmp_path / "no" / "where")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
