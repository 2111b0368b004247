"""What stands in the way of a board: one line that says what to do, exit code 2 or 4, and nothing is left there."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dilrewrite import devices
from dilrewrite.cli import main
from dilrewrite.devices._frames import READY
from dilrewrite.devices._install import lacking
from dilrewrite.devices._line import Address
from dilrewrite.devices.ssh import address
from dilrewrite.errors import DilrewriteError, MissingError, UsageError
from dilrewrite.options import masked
from dilrewrite.runtimes import Runnable, artifact
from tests.devices.board import USERS, Board, free_port, until
from tests.devices.conftest import known
from tests.devices.test_ssh import FEEDS, OPTIONS, model, works

MODEL = Path(__file__).parents[2] / "models" / "splice_sites.onnx"


def refused(on: str, backend: str = "cpu") -> str:
    """Return the line in which a board is refused, where it is something that is missing."""
    with devices.device(on) as device, pytest.raises(DilrewriteError) as caught:
        device.backend(backend)
    assert caught.value.exit_code == 4
    line = str(caught.value)
    assert "\n" not in line
    assert USERS[0] not in line
    return line


# -- the text of --on --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "there"),
    [
        ("ssh://board", Address(host="board", on="ssh://board")),
        ("ssh://me@board:2222", Address(host="board", user="me", port=2222, on="ssh://***@board:2222")),
        ("ssh://[fe80::1%eth0]:22/", Address(host="fe80::1%eth0", port=22, on="ssh://[fe80::1%eth0]:22/")),
        ("ssh://b?python=/a b/python&lock=/l", Address(host="b", python="/a b/python", lock="/l", on="ssh://b")),
    ],
)
def test_what_an_address_says(text: str, there: Address) -> None:
    assert address(text) == there


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ssh://", "not an address"),
        ("ssh://-oProxyCommand=touch x", "not an address"),
        ("ssh://-l@board", "not an address"),
        ("ssh://@board", "not an address"),
        ("ssh://a b", "not an address"),
        ("ssh://board:0", "the port is no number from 1 to 65535"),
        ("ssh://board:99999999999", "the port is no number from 1 to 65535"),
        ("ssh://board?pyton=/x", "no setting 'pyton'"),
        ("ssh://board?python=", "python is no path"),
        ("ssh://board?lock=x", "lock is no path"),
        ("shs://board", "it names no kind of device"),
        ("two words", "it names no kind of device"),
        ("ssh://me:secret@board", "a password stands in it"),
        ("ssh://me:se@cret@board", "a password stands in it"),
    ],
)
def test_a_text_that_names_no_device(text: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        devices.device(text)
    assert "cret" not in str(caught.value)
    assert main(["bench", str(MODEL), "--on", text]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_alias_needs_no_scheme() -> None:
    assert devices.device("board").on == "ssh://board"
    assert devices.device("me@board").on == "ssh://***@board"
    assert devices.device(None).on == ""


def test_reports_show_no_names_of_users() -> None:
    assert masked("ssh://me:pass@board:22?python=/a") == "ssh://***@board:22?python=/a"
    assert masked("me@board") == "***@board"
    assert masked("cmd:ssh me@board {model}") == "cmd:ssh me@board {model}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["optimize", str(MODEL), "--on", "board", "--target", "rknn-2.3.2"],
        ["inspect", str(MODEL), "--on", "board"],
        ["bench", str(MODEL), "--cool-down", "-1"],
    ],
)
def test_options_that_do_not_go_together(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "--on" in (err := capsys.readouterr().err) or "--cool-down" in err


def test_commands_for_a_board_name_no_extra_and_its_own_python() -> None:
    """The one exception is an extra that is not known here."""
    two = "there is none: pip uninstall -y a b, then pip install 'dilrewrite[tensorrt]' or 'dilrewrite[nothing]'"
    assert str(lacking("ssh://b", two, "python3")) == (
        "ssh://b: there is none: python3 -m pip uninstall -y a b, then python3 -m pip install 'tensorrt>=10.13' "
        "or 'dilrewrite[nothing]'; run that there, or name another with ?python=/path"
    )
    assert str(lacking("ssh://b", "there is no NVIDIA driver", "python3")) == "ssh://b: there is no NVIDIA driver"


# -- no way there ------------------------------------------------------------------------------------------------------


def test_no_way_there(board: Board, tmp_path: Path) -> None:
    other = tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", other], check=True)
    changed = tmp_path / "known"
    changed.write_text(f"[127.0.0.1]:{board.port} {' '.join(other.with_suffix('.pub').read_text().split()[:2])}\n")
    section = board.configuration()
    cases = {
        f"Port {free_port()}": "it cannot be reached: .*refused; try `ssh one true`",
        "UserKnownHostsFile /dev/null": "ssh does not know its host key; run `ssh one` once, compare",
        f"UserKnownHostsFile {changed}": "its host key is not the one that ssh knows: .*ssh-keygen -R one",
        f"IdentityFile {other}": "it takes none of your keys; put one there with ssh-copy-id",
        "HostName no-such-host.invalid": "there is no host of this name",
    }
    for line, says in cases.items():
        name = line.split()[0]
        changed_section = "\n".join(old if old.split()[0] != name else f"  {line}" for old in section.splitlines())
        (tmp_path / "ssh_config").write_text(changed_section + "\n  StrictHostKeyChecking no\n")
        assert re.match(f"ssh://one: {says}", said := refused(board.on)), said
    assert until(lambda: not board.left())


# -- what is missing there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/no/such/python", "/no/such/python is not there; name a Python of 3.10 or later"),
        ("/etc/passwd", "/etc/passwd cannot be run there; name a Python"),
        ("/bin/true", "/bin/true ended before it answered"),
        ("{home}/nothing/bin/python", "numpy is not installed there; install it in the Python there"),
        (
            "{home}/numpy only/bin/python",
            "backend onnxruntime_cpu: onnxruntime is not installed: '{home}/numpy only/bin/python' -m pip install "
            "'onnxruntime>=1.23'; run that there, or name another with ?python=/path",
        ),
    ],
)
def test_what_is_not_there(board: Board, path: str, says: str) -> None:
    said = refused(board.with_python(path.format(home=board.home)))
    assert said.startswith(f"ssh://one: {says.format(home=board.home)}")
    assert until(lambda: not board.left()), board.left()


@pytest.mark.parametrize("told", ["5", "None", "{}", "{'folder': 7}"])
def test_a_board_that_says_something_else_of_itself(board: Board, told: str) -> None:
    says = (
        f"import os, json; text = json.dumps({{'kind': 'done', 'answer': {told}, 'sizes': []}}).encode(); "
        f"os.write(1, {READY!r} + len(text).to_bytes(8, 'little') + text); import time; time.sleep(5); os._exit(0)"
    )
    place = board.folder / "home" / "other.py"
    place.write_text(says)
    program = board.folder / "home" / "strange"
    program.write_text(f"#!/bin/sh\nexec '{board.python}' '{board.home}/other.py'\n")
    program.chmod(0o755)
    assert "what it says of itself" in refused(board.with_python(f"{board.home}/strange"))


def test_a_python_that_is_too_old(board: Board) -> None:
    old = "import sys, platform; sys.version_info = (3, 9, 2, 'final', 0); platform.python_version = lambda: '3.9.2'"
    said = refused(board.with_python(board.other_python("old", old)))
    assert said == "ssh://one: Python 3.9.2 is too old: 3.10 is needed; name another with ?python=/path"
    assert until(lambda: not board.left())


def test_a_provider_that_is_not_there(board: Board) -> None:
    assert refused(board.on, "cuda").startswith("ssh://one: backend onnxruntime_cuda: ")
    with devices.device(board.on) as device, pytest.raises(UsageError, match="there can be no 'ethos_u'"):
        device.backend("ethos_u")
    assert until(lambda: not board.left()), board.left()


@pytest.mark.parametrize("size", ["20k", "1m"])
def test_no_space_there(
    new_board: Callable[..., Board], size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = new_board("full", mounts=(f"mount -t tmpfs -o size={size},mode=1777 tmpfs /tmp",))
    known(monkeypatch, tmp_path, full)
    if size == "20k":
        assert "No space left on device" in refused(full.on)
        return
    with devices.device(full.on) as device:
        with closing(device.backend("cpu").bench(OPTIONS)) as bench, pytest.raises(MissingError) as caught:
            bench.add("m", artifact(Runnable(model=model())), FEEDS)
        assert str(caught.value) == "ssh://full: no space in /tmp: 1 MiB are free, 32 MiB are needed"


def test_a_lock_that_may_not_be_used(board: Board) -> None:
    assert "the lock /etc/x cannot be used: Permission denied" in refused(f"{board.on}&lock=/etc/x")
    assert "the lock /mnt cannot be used: Is a directory" in refused(f"{board.on}&lock=/mnt")
    assert until(lambda: not board.left()), board.left()


# -- others there ------------------------------------------------------------------------------------------------------


def test_two_at_once(board: Board, tmp_path: Path) -> None:
    """The second is told who measures; afterwards, and when the first was killed, it gets the board."""
    second = board.configuration().replace("Host one", "Host again").replace(f"User {USERS[0]}", f"User {USERS[1]}")
    place = tmp_path / "ssh_config"
    place.write_text(place.read_text() + second)
    other = board.on.replace("ssh://one", "ssh://again")
    with devices.device(board.on) as device:
        device.backend("cpu")
        with (
            devices.device(other) as busy,
            pytest.raises(MissingError, match=r"has measured there for \d+ s; wait") as caught,
        ):
            busy.backend("cpu")
        assert str(caught.value).startswith(f"ssh://again is busy: {USERS[0]} (from ")
    with devices.device(other) as device:
        backend = device.backend("cpu")
        works(backend)
        for number in reversed(board.ours()):
            os.kill(number, signal.SIGKILL)
        until(lambda: not board.ours())
        with devices.device(board.on) as first:
            works(first.backend("cpu"))  # the lock of who was killed is not one
    assert until(lambda: not board.ours())
    with devices.device(other) as device:
        works(device.backend("cpu"))  # and removes what was left of it, which only its own user can
    assert until(lambda: not board.left()), board.left()


def test_what_only_times_builds_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    target = tmp_path / "no.engine"
    assert main(["build", str(MODEL), "--on", "cmd:true {model}", "-o", str(target)]) == 2
    assert capsys.readouterr().err == "dilrewrite: --on cmd:true {model}: it builds no engines; only ssh:// does\n"
    assert not target.exists()
