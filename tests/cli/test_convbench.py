"""dilrewrite convbench: what it refuses before anything runs, in one line, and with which exit code."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from dilrewrite.cli.convbench import run
from dilrewrite.pytorch import convbench
from dilrewrite.pytorch.configurations import BUILT_IN
from dilrewrite.timing.stopwatch import MIN_PAIRS
from tests.models_for_tests import cli, listing, uninstalled

Capsys = pytest.CaptureFixture[str]

CONFIGURATION = "i2x40,k2x3,b1,s1,d4"


@pytest.fixture
def _nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convbench, "run", lambda *_, **__: pytest.fail("something was timed"))


def test_list(capsys: Capsys) -> None:
    """Names that can be given as they are, without torch."""
    outcome = cli(capsys, "convbench", "--list")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split() for line in outcome.out.splitlines()] == [
        [str(number), name, text] for number, (name, text) in enumerate(BUILT_IN, 1)
    ]


def test_the_default_of_repeats() -> None:
    """Written out in the command, which does not load NumPy for it."""
    assert inspect.signature(run).parameters["repeats"].default == MIN_PAIRS


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize(
    ("text", "under", "words"),
    [
        ("i3x64y64,k128x3x3,b128,s1x1", "     ^", "'y' is neither a digit nor x"),
        ("i3x64x64", "        ^", "the kernel, as k128x3x3, is missing"),
        ("i3x64x64,k128x3x3,b128x2", "                  ^", "b is one number"),
        ("original-128", "^", "'o' is none of i, k, b, s, d, p, g"),
    ],
)
def test_a_malformed_configuration(capsys: Capsys, text: str, under: str, words: str) -> None:
    """What is wrong, the text, and a caret under the place."""
    outcome = cli(capsys, "convbench", CONFIGURATION, text)
    assert (outcome.code, outcome.out) == (2, "")
    first, shown, caret = outcome.err.splitlines()
    assert first.startswith(f"dilrewrite: {text!r}: {words}")
    assert shown == f"  {text}"
    assert caret == f"  {under}"


@pytest.mark.usefixtures("_nothing_runs")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["i3x8x8,k4x9x9,d1,pvalid"], "is 8, less than the dilated kernel's 9; a larger input, a smaller kernel"),
        (["99"], "there is no built-in configuration 99; there are 1: original-64"),
        ([CONFIGURATION, "--skip", "magic"], "there is no method 'magic'; known are keep, "),
        ([CONFIGURATION, "--format", "csv"], "--format csv: not one of table, original, json, markdown"),
        ([CONFIGURATION, "--dtype", "int8"], "--dtype int8: not one of float32, bfloat16, float16"),
        ([CONFIGURATION, "--device", "tpu"], "--device tpu: not one of cpu, cuda, cuda:N"),
        ([CONFIGURATION, "--seconds", "0"], "--seconds 0.0: more than 0 is needed"),
        ([CONFIGURATION, "--seconds", "long"], "--seconds"),
        ([CONFIGURATION, "--warmup", "-1"], "--warmup -1.0: 0 or more is needed"),
        ([CONFIGURATION, "--repeats", "0"], "--repeats"),
        ([CONFIGURATION, "--threads", "0"], "--threads"),
        ([CONFIGURATION, "--output", "nowhere/told.txt"], "nowhere"),
        ([CONFIGURATION, "--colour"], "--colour"),
    ],
)
def test_wrong_usage(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = cli(capsys, "convbench", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("dilrewrite: ")
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert listing(tmp_path) == {}


@pytest.mark.usefixtures("_nothing_runs")
def test_an_unknown_method_in_the_variable(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIP", "im2col,magic")
    outcome = cli(capsys, "convbench", CONFIGURATION)
    assert (outcome.code, outcome.out) == (2, "")
    assert "there is no method 'magic'" in outcome.err


@pytest.mark.usefixtures("_nothing_runs")
def test_an_output_that_exists(capsys: Capsys, tmp_path: Path) -> None:
    place = tmp_path / "told.txt"
    place.write_text("a letter\n")
    outcome = cli(capsys, "convbench", CONFIGURATION, "-o", place)
    assert (outcome.code, outcome.out) == (2, "")
    assert str(place) in outcome.err
    assert place.read_text() == "a letter\n"


@pytest.mark.usefixtures("_nothing_runs")
def test_without_torch(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for a list, and after what is wrong with the arguments."""
    uninstalled(monkeypatch, "torch")
    outcome = cli(capsys, "convbench", CONFIGURATION)
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err == "dilrewrite: torch is not installed; pip install 'dilrewrite[torch]'\n"
    assert cli(capsys, "convbench", "--list").code == 0
    assert cli(capsys, "convbench", "i3").code == 2


def test_without_cuda(capsys: Capsys) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    outcome = cli(capsys, "convbench", CONFIGURATION, "--device", "cuda")
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.startswith(f"dilrewrite: --device cuda: torch {torch.__version__} reaches no CUDA device; ")
    assert len(outcome.err.splitlines()) == 1
