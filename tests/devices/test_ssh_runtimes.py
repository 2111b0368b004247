"""Other runtimes than ONNX Runtime on a board, where they are installed: scripts/runtimes.sh runs this."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dilrewrite import devices
from dilrewrite.cli import main
from dilrewrite.runtimes import Runnable, prepared, timed_backend, timed_backends
from tests import models_for_tests as tiny
from tests.devices.board import Board, until
from tests.devices.test_ssh import OPTIONS
from tests.devices.test_ssh_commands import answer
from tests.devices.test_ssh_errors import refused

NAMES = ("opencv_dnn", "openvino_cpu", "tract")


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    """A runtime that is installed here: the board's virtual environment has what this one has."""
    found = str(request.param)
    if why := timed_backends()[found].missing():
        pytest.skip(why)
    return found


def test_it_computes_there_what_it_does_here(board: Board, name: str) -> None:
    model, feeds = Runnable(model=tiny.conv1d().SerializeToString()), {"x": tiny.values(1, 2, 16)}
    with devices.device(board.with_python(f"{board.home}/others/bin/python")) as device:
        backend = device.backend(name)
        assert set(timed_backend(name).versions().items()) <= set(backend.versions().items())
        with closing(backend.bench(OPTIONS)) as there, closing(timed_backend(name).bench(OPTIONS)) as here:
            for one in (there, here):
                one.add("m", prepared(backend, model, feeds), feeds)
            (found,), (expected,) = there.outputs("m").values(), here.outputs("m").values()
            np.testing.assert_array_equal(found, expected)
            there.open(["m"], 0.0, 2)
            assert len(there.run(["m"] * 5)) == 5
            assert there.profile("m", 3).nodes
    assert until(lambda: not board.left()), board.left()


@pytest.mark.measures
def test_it_decides_there(board: Board, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.save(tiny.two_convs(), tmp_path / "model.onnx")
    on = board.with_python(f"{board.home}/others/bin/python")
    given = ["--backend", name, "--on", on, "--budget", 6, "--no-cache", "--no-report"]
    told = answer(capsys, "optimize", path, *given, "-o", tmp_path / "after.onnx")
    measurement = told["measurement"]
    assert (measurement["backend"], measurement["settings"]["on"]) == (name, "ssh://one")
    assert measurement["measured"] > 0
    assert {form["timing"] is not None for site in told["sites"] for form in site["candidates"]} >= {True}
    assert until(lambda: not board.left()), board.left()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_not_there(board: Board, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny.save(tiny.two_convs(), tmp_path / "model.onnx")
    assert main(["optimize", str(path), "--backend", name, "--on", board.on, "--quiet"]) == 4
    said = capsys.readouterr().err
    assert said.startswith(f"dilrewrite: ssh://one: backend {name}: ")
    assert f" is not installed: '{board.python}' -m pip install '" in said
    assert said.count("\n") == 1
    assert "dilrewrite[" not in said
    assert until(lambda: not board.left()), board.left()


def test_onnx_is_not_there(board: Board, name: str) -> None:
    """Unlike ONNX Runtime, they are given their models by it; that is asked for before any work."""
    python = board.other_python("no-onnx", "import sys; sys.modules['onnx'] = None", "others")
    said = refused(board.with_python(python), name)
    assert said == (
        f"ssh://one: backend {name}: onnx is not installed: {python} -m pip install onnx; "
        "run that there, or name another with ?python=/path"
    )
    assert until(lambda: not board.left()), board.left()
