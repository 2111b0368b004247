"""The command line as a whole: help, version, JSON and quiet, exit codes, interrupts, full disks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import dilrewrite
from dilrewrite._start import STOPPING
from dilrewrite.errors import FAULT, FAULTS
from tests import models_for_tests as tiny
from tests.models_for_tests import MODELS, cli, conv1d, listing, save

pytestmark = pytest.mark.usefixtures("in_process")

NOTES = hasattr(BaseException, "add_note")
"""Python 3.10 has none."""

COMMANDS = ("backends", "bench", "fold", "inspect", "optimize", "verify")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(conv1d(), tmp_path / "m.onnx")


def arguments(command: str, model: Path) -> list[object]:
    """A command line of `command` that ends well."""
    return {
        "backends": ["backends"],
        "bench": ["bench", model, "--budget", 0],
        "fold": ["fold", model],
        "inspect": ["inspect", model],
        "optimize": ["optimize", model, "--strategy", "im2col"],
        "verify": ["verify", model, model],
    }[command]


# -- what is said --------------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = cli(capsys, "--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"dilrewrite {dilrewrite.__version__}\n", "")


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help(capsys: pytest.CaptureFixture[str], command: str | None) -> None:
    outcome = cli(capsys, *([command] if command else []), "--help")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.startswith("Usage: ")
    assert all(name in outcome.out for name in ([command, "--json"] if command else COMMANDS))


def test_without_a_command_it_helps(capsys: pytest.CaptureFixture[str]) -> None:
    outcome = cli(capsys)
    assert outcome.code == 2
    assert all(name in outcome.out + outcome.err for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_json_is_all_of_standard_output(capsys: pytest.CaptureFixture[str], model: Path, command: str) -> None:
    outcome = cli(capsys, *arguments(command, model), "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads(outcome.out)
    if command == "backends":
        assert {entry["name"] for entry in found} >= {"onnxruntime_cpu", "reference"}
    else:
        assert found["command"] == command
        assert found["exit_code"] == 0
        assert found["schema_version"] == 2


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "backends"])
def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str], model: Path, command: str) -> None:
    outcome = cli(capsys, *arguments(command, model), "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_person_reads_something(capsys: pytest.CaptureFixture[str], model: Path, command: str) -> None:
    outcome = cli(capsys, *arguments(command, model))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.strip()
    with pytest.raises(json.JSONDecodeError):
        json.loads(outcome.out)


def test_quiet_still_says_what_went_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = save(tiny.transposed(), tmp_path / "m.onnx")
    outcome = cli(capsys, "optimize", model, "--eliminate", "--quiet")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("dilrewrite: ")
    assert len(outcome.err.splitlines()) == 1


def test_output_is_json_whatever_the_names(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    proto = conv1d()
    proto.graph.node[0].name = 'Faltung "ü"\n\\ 卷积'
    outcome = cli(capsys, "inspect", save(proto, tmp_path / "mödel 卷.onnx"), "--json")
    assert outcome.report["sites"][0]["name"] == proto.graph.node[0].name


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_path_that_is_no_text(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / os.fsdecode(b"m\xff.onnx"))
    outcome = cli(capsys, "optimize", path, "--strategy", "im2col", "--quiet")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / os.fsdecode(b"m\xff.dilrewrite.onnx")).exists()
    assert cli(capsys, "inspect", path, "--json").code == 0


def test_a_bug_shows_its_traceback(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(dilrewrite, "inspect", broken)
    with pytest.raises(ZeroDivisionError) as error:
        cli(capsys, "inspect", model)
    assert capsys.readouterr().err == ("" if NOTES else f"dilrewrite: {FAULT}\n")
    assert getattr(error.value, "__notes__", []) == ([FAULT] if NOTES else [])


@pytest.mark.skipif(not NOTES, reason="exceptions have notes from Python 3.11 on")
def test_the_last_line_of_a_bug_names_the_page() -> None:
    """Once, though it comes from a function of the package, and as the terminal shows it."""
    program = (
        "import sys, dilrewrite.commands.inspect as command\n"
        "def broken(*_, **__): 1 / 0\n"
        "command.inspect = broken\n"
        "from dilrewrite.cli import main\n"
        "main(['inspect', sys.argv[1]])\n"
    )
    path = MODELS / "causal_tcn.onnx"
    run = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-2:] == ["ZeroDivisionError: division by zero", FAULT]


@pytest.mark.skipif(not NOTES, reason="exceptions have notes from Python 3.11 on")
def test_a_bug_in_python_names_the_page(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was given wrongly is no bug."""
    from dilrewrite.commands import inspect

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(inspect, "inspect", broken)
    with pytest.raises(ZeroDivisionError) as error:
        dilrewrite.inspect(model)
    assert error.value.__notes__ == [FAULT]
    monkeypatch.undo()
    for wrong in (TypeError, dilrewrite.UsageError):
        with pytest.raises(wrong) as other:
            dilrewrite.inspect(*([3.5] if wrong is TypeError else ["nowhere.onnx"]))  # type: ignore[list-item]
        assert not hasattr(other.value, "__notes__")


def test_the_page_of_faults_is_there() -> None:
    page = Path(__file__).parents[2] / FAULTS
    assert FAULTS in FAULT
    assert "--keep-micro" in page.read_text(encoding="utf-8")


# -- exit codes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (dilrewrite.FailedError, 1),
        (dilrewrite.UsageError, 2),
        (dilrewrite.DiffersError, 3),
        (dilrewrite.MissingError, 4),
    ],
)
def test_every_error_is_one_line_with_its_code(
    capsys: pytest.CaptureFixture[str],
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: type[dilrewrite.DilrewriteError],
    code: int,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error("what\nand where", hint="what\tto do")

    monkeypatch.setattr(dilrewrite, "inspect", fail)
    outcome = cli(capsys, "inspect", model)
    assert (outcome.code, outcome.out, outcome.err) == (code, "", "dilrewrite: what and where; what to do\n")


# -- interrupts ----------------------------------------------------------------------------------------------------


def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dilrewrite.proof.prove import Prover

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Prover, "prove", interrupted)
    before = listing(tmp_path)
    outcome = cli(capsys, "optimize", model, "--strategy", "im2col")
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == "dilrewrite: interrupted; nothing was written\n"
    assert listing(tmp_path) == before


def test_an_interrupt_when_all_is_written_says_so(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dilrewrite.staging import Staging

    real = Staging.commit

    def committed(self: Any) -> None:
        real(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(Staging, "commit", committed)
    outcome = cli(
        capsys, "optimize", model, "-o", tmp_path / "o.onnx", "--strategy", "im2col", "--budget", 0, "--no-report"
    )
    assert (outcome.code, outcome.out) == (130, "")
    assert outcome.err == f"dilrewrite: interrupted; {tmp_path / 'o.onnx'} was already written\n"
    assert (tmp_path / "o.onnx").is_file()


def start(folder: Path, name: str, *options: str) -> subprocess.Popen[bytes]:
    """The real command line on a demo model, in a process group of its own."""
    command = [sys.executable, "-m", "dilrewrite", "optimize", str(MODELS / f"{name}.onnx")]
    command += ["-o", str(folder / "o.onnx"), "--budget", "0", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def wait_for(process: subprocess.Popen[bytes], what: Any) -> Any:
    """Poll until `what()` says something."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, "the command ended too early"
        found = what()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("nothing happened")


def children(process: subprocess.Popen[bytes]) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in found.read_text().split()]


def interrupt(process: subprocess.Popen[bytes], *, group: bool) -> str:
    """Press Ctrl-C; return what was written to standard error."""
    if group:
        os.killpg(process.pid, signal.SIGINT)
    else:
        process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    return err.decode()


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")


@needs_proc
def test_interrupt_while_proving(tmp_path: Path) -> None:
    (tmp_path / ".kept").touch()
    before = listing(tmp_path)
    process = start(tmp_path, "meshnet3d", "--strategy", "space_to_batch")
    wait_for(process, lambda: "onnxruntime" in Path(f"/proc/{process.pid}/maps").read_text())
    time.sleep(0.3)
    err = interrupt(process, group=False)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert listing(tmp_path) == before


@needs_proc
def test_interrupt_while_a_whole_model_runs(tmp_path: Path) -> None:
    before = listing(tmp_path)
    process = start(tmp_path, "causal_tcn", "--strategy", "space_to_axis")
    pids = wait_for(process, lambda: children(process))
    time.sleep(0.1)
    err = interrupt(process, group=True)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert listing(tmp_path) == before
    for pid in pids:
        status = Path(f"/proc/{pid}/cmdline")
        assert not status.exists() or b"dilrewrite" not in status.read_bytes(), "a child is left"


@needs_proc
@pytest.mark.parametrize("number", STOPPING)
@pytest.mark.parametrize("after_s", [0.15, 0.6])
def test_signals_in_the_first_second(tmp_path: Path, number: int, after_s: float) -> None:
    process = start(tmp_path, "meshnet3d", "--strategy", "space_to_batch")
    time.sleep(after_s)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert b"Traceback" not in err
    assert process.returncode in (130, -number), err  # the latter before our code has begun
    assert listing(tmp_path) == {}


def test_a_signal_waits_for_an_import_and_what_swallows_it(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import signal\nsignal.raise_signal(signal.SIGTERM)\nloaded = True\n")
    program = """
import signal, sys, time
from dilrewrite.cli import _process

class Late:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

with _process.interruptible():
    try:
        import slow
        time.sleep(10)
    except KeyboardInterrupt:
        print(slow.loaded)
    try:
        eval("signal.raise_signal(signal.SIGTERM)")
        time.sleep(10)
    except KeyboardInterrupt:
        print("evaluated")
    try:
        late = Late()
        del late
        time.sleep(10)
    except KeyboardInterrupt:
        print("not swallowed")
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and sys.unraisablehook is sys.__unraisablehook__
"""
    (tmp_path / "main.py").write_text(program)
    done = subprocess.run([sys.executable, str(tmp_path / "main.py")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nevaluated\nnot swallowed\n", "")


# -- standard streams ----------------------------------------------------------------------------------------------


def without_progress(text: str) -> list[str]:
    """The lines of standard error but those that a slow machine sees."""
    return [line for line in text.splitlines() if not line.startswith("dilrewrite: at work, ")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("to", [">&-", ">/dev/full", "<&- >&-", ">&- 2>&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("command", ["--version", "inspect m.onnx", "inspect m.onnx --json", "optimize m.onnx --quiet"])
@pytest.mark.grid(3)
def test_standard_output_is_closed_or_full(model: Path, command: str, to: str) -> None:
    line = f'exec "{sys.executable}" -m dilrewrite {command} {to}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, cwd=model.parent)
    quiet = "--quiet" in command
    assert (done.returncode, done.stdout) == (0 if quiet else 1, "")
    if quiet or "2>" in to:
        assert done.stderr == ""
    else:
        (line,) = without_progress(done.stderr)
        assert line.startswith("dilrewrite: standard output cannot be written (")


def test_a_model_is_written_though_its_report_is_lost(model: Path) -> None:
    line = f'exec "{sys.executable}" -m dilrewrite optimize m.onnx --strategy im2col --budget 0 >&-'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False, cwd=model.parent)
    assert (done.returncode, len(without_progress(done.stderr))) == (1, 1)
    assert dilrewrite.inspect(model.with_name("m.dilrewrite.onnx")).sites == ()


# -- full disks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "limit"), [("causal_tcn", 100_000), ("tiny", 2_000)], ids=["model", "report"])
def test_full_disk(tmp_path: Path, name: str, limit: int) -> None:
    resource = pytest.importorskip("resource")
    assert hasattr(resource, "RLIMIT_FSIZE")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".kept").touch()
    path = MODELS / "causal_tcn.onnx" if name == "causal_tcn" else save(conv1d(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    program = (
        "import resource, sys; from dilrewrite.cli import main\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    options = ["--strategy", "im2col", "--budget", "0", "--verify", "sites", "--quiet"]
    command = [sys.executable, "-c", program, "optimize", str(path), "-o", str(folder / "o.onnx"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "disk is full" in done.stderr
    assert str(folder / "o.onnx" if name == "causal_tcn" else folder / "o.report") in done.stderr
    assert listing(tmp_path) == before
