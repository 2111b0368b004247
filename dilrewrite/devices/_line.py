"""A connection to a board: the system's ssh, once, and further sessions over it. The only file that calls ssh.

The first session is of the board's keeper (`_keeper`), each further one of a process that times (`_runner`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, final

from dilrewrite import record
from dilrewrite.devices import _frames
from dilrewrite.devices._bundle import bundle
from dilrewrite.devices._runner import DIED
from dilrewrite.errors import DilrewriteError, FailedError, MissingError, UsageError, one_line, printable
from dilrewrite.runtimes import Crashed, Lost, TimedOut
from dilrewrite.runtimes._worker import Child

CONFIGURATION = "DILREWRITE_SSH_CONFIG"
"""The variable with the configuration file of ssh that is read in place of the user's own."""

LOG = "DILREWRITE_ON_LOG"
"""The variable with the file that gets a line of JSON for each message: what, its bytes there and back, seconds."""

PATIENCE_S = 60.0
"""How long a board may take for anything but to run models and to take files."""

OPTIONS = {
    "BatchMode": "yes",  # it never asks for anything
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "NumberOfPasswordPrompts": "0",
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlPersist": "no",
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
    "LogLevel": "ERROR",
}

LOADER = "import sys;i=sys.stdin.buffer;exec(i.read(int(i.readline())))"
"""What Python there is called with, which every shell takes in quotes: it reads the rest."""

BOOT = """
import json, os, platform, shutil, sys, tempfile
def say(kind, answer):
    text = json.dumps({"kind": kind, "answer": answer, "sizes": []}).encode()
    os.write(1, READY + len(text).to_bytes(8, "little") + text)
    os._exit(0)
if sys.version_info < (3, 10):
    say("old", platform.python_version())
folder = None
try:
    folder = tempfile.mkdtemp(prefix="dilrewrite-board-")
    with open(os.path.join(folder, "runner.zip"), "wb") as file:
        if file.write(i.read(SIZE)) != SIZE:
            raise OSError(0, "the connection ended")
    for name in ("blobs", "work", "workers"):
        os.mkdir(os.path.join(folder, name))
    sys.path.insert(0, file.name)
    from dilrewrite.devices import _keeper
except BaseException as error:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    about = getattr(error, "strerror", None) or error
    say("place", "no folder for files there: %s: %s" % (folder or tempfile.tempdir or "temporary folders", about))
_keeper.main(folder, i)
"""

CANNOT = {"failed": "{}", "place": "{}", "old": "Python {} is too old: 3.10 is needed; name another with ?python=/path"}
"""Kinds of answers that end the work, and the words for them."""

ERRORS: Mapping[str, type[DilrewriteError]] = {one.__name__: one for one in (UsageError, FailedError, MissingError)}

SAID: Sequence[tuple[str, str, str]] = (
    (
        "IDENTIFICATION HAS CHANGED",
        "its host key is not the one that ssh knows: another machine answers, or it was set up anew",
        "ask its owner; if that is right, `ssh-keygen -R HOST`, then `ssh HOST` once to compare and take the new key",
    ),
    (
        "Host key verification failed",
        "ssh does not know its host key",
        "run `ssh HOST` once, compare the key's fingerprint with the board's, and take it",
    ),
    (
        "Permission denied",
        "it takes none of your keys",
        "put one there with ssh-copy-id, or load it with ssh-add: passwords are never asked for",
    ),
    (
        "Could not resolve hostname",
        "there is no host of this name",
        "correct the name, or add it to ssh's configuration",
    ),
    ("", "it cannot be reached: {last}", "try `ssh HOST true`"),
)
"""What ssh says, what that means, and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What a text of `--on` says: the host or an alias, and which Python and which lock file there."""

    host: str
    user: str = ""
    port: int | None = None
    python: str = "python3"
    lock: str = "/tmp/dilrewrite.lock"
    on: str = ""

    def destination(self) -> list[str]:
        """Return the arguments of ssh that name it."""
        port = [] if self.port is None else ["-p", str(self.port)]
        return [*port, *(["-l", self.user] if self.user else []), "--", self.host]


class _DiedError(Exception):
    """A session that ended: its exit code, and what it said."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(code)
        self.code, self.text = code, text


@final
class _Session(Child):
    """A session over the connection; a request is a message with blobs, and so is an answer.

    Where there is no answer, `_DiedError` is raised, and MissingError where the board cannot do what is asked.
    """

    starts_others = True
    patience_s = 3.0

    def __init__(
        self, on: str, timeout_s: float | None, boot: bytes, command: Sequence[str], request: dict[str, Any]
    ) -> None:
        self._on, self._boot = on, boot
        super().__init__(timeout_s, request, command=command)

    def _exchange(self, request: tuple[object, ...]) -> tuple[str, Any]:
        message, *blobs = request
        assert isinstance(message, dict)
        assert self.process.stdin is not None
        start, sent = time.monotonic(), 0
        if not self._greeted:
            sent = len(self._boot)
            view = memoryview(self._boot)
            while len(view):
                view = view[self.process.stdin.write(view) :]
        sent += _frames.write(self.process.stdin, message, [one for one in blobs if isinstance(one, bytes)])
        if not self._greeted:
            _skip(self._answers)
            self._greeted = True
        answer, answered, received = _frames.read(self._answers)
        _note(message["do"], sent, received, time.monotonic() - start)
        kind, told = str(answer.get("kind")), answer.get("answer")
        if kind in ERRORS:
            raise ERRORS[kind](f"{self._on}: {one_line(told)}")
        if kind in CANNOT:
            raise MissingError(f"{self._on}: {CANNOT[kind].format(one_line(told))}")
        return kind, (told, answered) if kind == "done" else printable(str(told)) if kind != "bug" else told

    def _obituary(self) -> str:
        if self._late:
            return ""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=self.patience_s)
        text = os.pread(self._noise.fileno(), 2**20, 0).decode(errors="replace")
        code = self.process.poll() or 0
        self.close()
        raise _DiedError(code, text)


def _skip(stream: IO[bytes]) -> None:
    """Read until the board begins; what its login shell prints stands before. Raises EOFError where it does not."""
    seen = b""
    while not seen.endswith(_frames.READY):
        byte = stream.read(1)
        if not byte:
            raise EOFError
        seen = (seen + byte)[-len(_frames.READY) :]


def _note(what: str, sent: int, received: int, seconds: float) -> None:
    if place := os.environ.get(LOG):
        with contextlib.suppress(OSError), Path(place).open("a", encoding="utf-8") as file:
            line = {"do": what, "sent": sent, "received": received, "seconds": round(seconds, 6)}
            file.write(json.dumps(line) + "\n")


def _sized(text: str) -> bytes:
    code = text.encode()
    return f"{len(code)}\n".encode() + code


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a board says of itself: see `_facts.facts`, and where its folder is and whose."""

    folder: str
    user: str
    model: str
    kernel: str
    python: str
    governor: str
    machine: str
    cores: int
    online: int
    max_mhz: int
    free: int


@final
class Line:
    """An open connection with a folder and the lock on the board. Raises MissingError where there is none to be had."""

    def __init__(self, address: Address, runtimes: Sequence[str]) -> None:
        self.address, self.runtimes = address, tuple(runtimes)
        self.sent: set[str] = set()
        short = tempfile.gettempdir() if len(tempfile.gettempdir()) < 60 else "/tmp"  # a socket's path is short
        self._folder = tempfile.TemporaryDirectory(prefix="dlr-", dir=short, ignore_cleanup_errors=True)
        self._socket = str(Path(self._folder.name) / "s")
        if shutil.which("ssh") is None:
            raise MissingError(f"{address.on}: there is no ssh here", hint="install OpenSSH's client")
        zipped = bundle(tuple(runtimes))
        boot = _sized(f"READY, SIZE = {_frames.READY!r}, {len(zipped)}\n{BOOT}") + zipped
        command = [*self._ssh("-M", "-o", "ControlMaster=yes"), *address.destination(), self._python()]
        self._keeper: _Session | None = None
        try:
            self._keeper = self._opened(boot, command)
            self.facts = self._believed(self._keeper.told[0])
            self._lock()
        except BaseException:
            self.close()
            raise

    def _ssh(self, *options: str) -> list[str]:
        told = [part for name, value in OPTIONS.items() for part in ("-o", f"{name}={value}")]
        configuration = os.environ.get(CONFIGURATION)
        return ["ssh", *(["-F", configuration] if configuration else []), *told, "-T", "-S", self._socket, *options]

    def _python(self) -> str:
        return f"exec {shlex.quote(self.address.python)} -c {shlex.quote(LOADER)}"

    def _opened(self, boot: bytes, command: Sequence[str]) -> _Session:
        on = self.address.on
        try:
            return _Session(on, PATIENCE_S, boot, command, {"do": "facts"})
        except TimedOut:
            raise MissingError(f"{on}: no answer within {PATIENCE_S:g} s", hint="try `ssh HOST true`") from None
        except _DiedError as died:
            raise self._no_board(died.code, died.text) from None

    def _believed(self, told: Any) -> dict[str, Any]:
        """Return what the board says of itself. Raises MissingError where that is nothing that a keeper says."""
        try:
            return dataclasses.asdict(record.read(Facts, told, "what it says of itself"))
        except TypeError as error:
            raise MissingError(
                f"{self.address.on}: {self.address.python} answers as no board does: {one_line(error)}"
            ) from None

    def _no_board(self, code: int, text: str) -> MissingError:
        on, python = self.address.on, self.address.python
        if code == 255:
            lines = [line for line in text.splitlines() if line.strip()]
            lines = [
                line for line in lines if not line.startswith("kex_exchange")
            ] or lines  # a host in between says why
            last = _without_user(lines[-1]) if lines else "the connection was closed"
            _, meaning, hint = next(one for one in SAID if one[0] in text)
            return MissingError(f"{on}: {meaning.format(last=last)}", hint=hint.replace("HOST", self.address.host))
        if code in (126, 127):
            what = "cannot be run there" if code == 126 else "is not there"
            hint = "name a Python of 3.10 or later that has NumPy and the runtime: --on 'ssh://HOST?python=/path/to/python'"
            return MissingError(f"{on}: {python} {what}", hint=hint.replace("HOST", self.address.host))
        last = next((line for line in reversed(text.splitlines()) if line.strip()), f"exit code {code}")
        return MissingError(f"{on}: {python} ended before it answered: {last}")

    def _lock(self) -> None:
        held = self.ask({"do": "lock", "path": self.address.lock, "client": os.uname().nodename})
        if held is not None:
            who = f"{held['user']} (from {held['client']}) has measured there for {_spoken(float(held['age_s']))}"
            raise MissingError(f"{self.address.on} is busy: {who}", hint="wait, or ask them")

    def ask(self, message: dict[str, Any], *blobs: bytes) -> Any:
        """Ask the keeper. Raises Lost where the connection has ended, MissingError where the board cannot do it."""
        assert self._keeper is not None
        try:
            self._keeper.timeout_s = None if blobs else PATIENCE_S
            return self._keeper.ask(message, *blobs)[0]
        except (_DiedError, Crashed, TimedOut):
            raise self.lost() from None

    def lost(self) -> Lost:
        """Return the failure of a connection that has ended."""
        return Lost(f"the connection to {self.address.on} was lost")

    @property
    def alive(self) -> bool:
        """Say whether it stands."""
        return self._keeper is not None and self._keeper.close.alive and self._keeper.process.poll() is None

    def put(self, content: bytes) -> str:
        """Bring a file there, unless it is there; return its name."""
        name = hashlib.sha256(content).hexdigest()
        if name not in self.sent:
            self.ask({"do": "put", "name": name}, content)
            self.sent.add(name)
        return name

    def session(self, timeout_s: float | None) -> Worker:
        """Return a new process that times. Raises Lost and MissingError."""
        folder = str(self.facts["folder"])
        boot = _sized(
            f"import sys\nsys.path.insert(0, {folder + '/runner.zip'!r})\n"
            f"from dilrewrite.devices import _runner\n_runner.main({folder!r}, i)"
        )
        # Where the connection is gone, ssh would make one of its own.
        options = self._ssh("-o", "ControlMaster=no", "-o", "ProxyCommand=exit 255")
        return Worker(self, timeout_s, boot, [*options, *self.address.destination(), self._python()])

    def close(self) -> None:
        """End it; what there is on the board goes. A second call does nothing."""
        if self._keeper is not None:
            self._keeper.close()
        self._folder.cleanup()


@final
class Worker:
    """A process on the board that times."""

    def __init__(self, line: Line, timeout_s: float | None, boot: bytes, command: Sequence[str]) -> None:
        self._line = line
        self._open = functools.partial(_Session, line.address.on, timeout_s, boot, command)
        self._session: _Session | None = None
        self.process = 0

    def ask(self, message: dict[str, Any]) -> tuple[Any, list[bytes]]:
        """Ask it. Raises what a `Bench` does, and Lost."""
        try:
            if self._session is None:
                self._session = self._open(message)
                answer, blobs = self._session.told
            else:
                answer, blobs = self._session.ask(message)
        except TimedOut:
            self._kill()
            raise
        except _DiedError as died:
            raise self._end(died.code, died.text) from None
        return answer, blobs

    def _kill(self) -> None:
        if self.process:
            with contextlib.suppress(Lost, MissingError):
                self._line.ask({"do": "kill", "process": self.process})

    def _end(self, code: int, text: str) -> Crashed:
        """Return why there is no answer."""
        try:
            self._line.ask({"do": "state"})
        except (Lost, MissingError):
            return self._line.lost()
        signals = re.findall(re.escape(DIED) + r"(\d+)", text)
        if signals:
            number = int(signals[-1])
            name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
            more = " (perhaps out of memory)" if name == "SIGKILL" else ""
            return Crashed(f"the process on {self._line.address.on} was killed by {name}{more}")
        last = next((one_line(line) for line in reversed(text.splitlines()) if line.strip()), "")
        return Crashed(f"the process on {self._line.address.on} ended with exit code {code}: {last[-300:]}")

    def said(self) -> list[str]:
        """Return the lines that it wrote so far besides its answers."""
        return self._session.said() if self._session is not None else []

    def close(self) -> None:
        """End it; a second call does nothing."""
        if self._session is not None:
            self._session.close()


def _without_user(line: str) -> str:
    return re.sub(r"[^\s@]+@(?=\S)", "***@", line)


def _spoken(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
