"""`--report-format` on every command: exactly the formats asked for are written, others are refused with the names."""

from __future__ import annotations

from pathlib import Path

import pytest

import dilrewrite
from dilrewrite.errors import UsageError
from dilrewrite.reports.formats import formats, written
from tests.models_for_tests import cli, conv1d, save

pytestmark = pytest.mark.usefixtures("in_process")

Capsys = pytest.CaptureFixture[str]
FILES = {name: form.filename for name, form in formats().items() if form.filename is not None}
QUICK = ["--strategy", "im2col", "--budget", "0"]


def command(name: str, folder: Path) -> list[object]:
    path = save(conv1d(), folder / "m.onnx")
    return {
        "optimize": ["optimize", path, *QUICK],
        "inspect": ["inspect", path],
        "verify": ["verify", path, path],
    }[name]


@pytest.mark.parametrize("name", ["optimize", "inspect", "verify"])
@pytest.mark.parametrize("asked", [["csv"], ["junit", "json"], ["html", "html"]])
def test_exactly_what_was_asked_for(capsys: Capsys, tmp_path: Path, name: str, asked: list[str]) -> None:
    options = [part for one in asked for part in ("--report-format", one)]
    assert cli(capsys, *command(name, tmp_path), "--report", tmp_path / "told", *options).code == 0
    assert {place.name for place in (tmp_path / "told").iterdir()} == {FILES[one] for one in asked}


def test_beside_the_output(capsys: Capsys, tmp_path: Path) -> None:
    assert cli(capsys, *command("optimize", tmp_path), "--report-format", "csv").code == 0
    assert [place.name for place in (tmp_path / "m.dilrewrite.report").iterdir()] == [FILES["csv"]]


@pytest.mark.parametrize("name", ["optimize", "inspect", "verify"])
def test_unknown(capsys: Capsys, tmp_path: Path, name: str) -> None:
    given = command(name, tmp_path)
    before = sorted(tmp_path.iterdir())
    outcome = cli(capsys, *given, "--report", tmp_path / "told", "--report-format", "pdf")
    assert outcome.code == 2
    assert all(word in outcome.err for word in ("--report-format pdf", *FILES))
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("options", [["inspect"], ["verify"], ["optimize", "--no-report"]])
def test_nowhere_to_write(capsys: Capsys, tmp_path: Path, options: list[str]) -> None:
    outcome = cli(capsys, *command(options[0], tmp_path), *options[1:], "--report-format", "csv")
    assert outcome.code == 2
    assert "--report DIR" in outcome.err


def test_in_python(tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    dilrewrite.inspect(path, report=tmp_path / "told", report_format=["csv"])
    assert [place.name for place in (tmp_path / "told").iterdir()] == [FILES["csv"]]
    dilrewrite.inspect(path, report=tmp_path / "all")
    assert {place.name for place in (tmp_path / "all").iterdir()} == set(written())
    with pytest.raises(UsageError, match=r'^report_format=\["pdf"\]: there is no such'):
        dilrewrite.inspect(path, report=tmp_path / "told", report_format=("pdf",))
