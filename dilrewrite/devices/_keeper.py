"""The board's end of a connection: it keeps the folder, the lock and the models there, with nothing but Python.

When the connection ends, however that happens, the processes that time are killed and the folder is removed: by the
process that serves, or by the one that waits for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import hashlib
import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path
from typing import IO, Any, NoReturn

from dilrewrite.devices import _facts, _frames

SPARE = 2**25
"""Bytes that stay free beside a file that is written."""

PREFIX = "dilrewrite-board-"

ALIVE = "alive"
"""A file in the folder that is locked for as long as one of its keepers lives."""


class FailedThereError(Exception):
    """What cannot be done on the board, in one line."""


def main(folder: str, requests: IO[bytes]) -> NoReturn:
    """Serve a connection until it ends, in a process of its own, and remove the folder."""
    for kind in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)
    place = Path(folder)
    fcntl.flock(os.open(place / ALIVE, os.O_RDWR | os.O_CREAT, 0o600), fcntl.LOCK_EX)  # until both have ended
    serving = os.fork()
    if serving:
        for number in (0, 1, 2):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        os.waitpid(serving, 0)
        remove(place)
        os._exit(0)
    try:
        for other in place.parent.glob(f"{PREFIX}*"):
            if other != place:
                _abandoned(other)
        _serve(place, requests)
    finally:
        remove(place)
        os._exit(0)


def remove(place: Path) -> None:
    """Kill the processes that time in a folder, and remove it."""
    for number in _numbers(place, "workers/*"):
        if _is_ours(number, place):
            with contextlib.suppress(OSError):
                os.kill(number, signal.SIGKILL)
    for _ in range(500):  # a process that is being killed still writes
        shutil.rmtree(place, ignore_errors=True)
        if not place.exists():
            return
        time.sleep(0.02)


def _numbers(place: Path, pattern: str) -> list[int]:
    return [int(one.name) for one in place.glob(pattern) if one.name.isdigit()]


def _is_ours(process: int, place: Path) -> bool:
    """Say whether a process still is the one that works in the folder: numbers are given anew."""
    try:
        return str(Path(f"/proc/{process}/cwd").readlink()).startswith(f"{place}/")
    except OSError:
        return not Path("/proc/self").exists()


def outlive(place: Path) -> None:
    """Wait until the keepers of a folder have ended."""
    with contextlib.suppress(OSError):
        fcntl.flock(os.open(place / ALIVE, os.O_RDWR), fcntl.LOCK_EX)


def _abandoned(place: Path) -> None:
    """Remove a folder of this user whose keepers were both killed."""
    with contextlib.suppress(OSError):
        held = os.open(place / ALIVE, os.O_RDWR)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove(place)
        finally:
            os.close(held)


def lock(path: str, client: str) -> dict[str, Any] | None:
    """Take the lock at `path` for as long as this process lives; else return who holds it: `user`, `client`, `age_s`.

    The kernel frees it with its holder, however that ended. Raises FailedThereError where it cannot be used.
    """
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(100):
        try:
            try:
                held = os.open(path, flags)
            except FileNotFoundError:
                held = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
                os.fchmod(held, 0o666)  # other users of the board wait here, too
        except FileExistsError:
            continue
        except OSError as error:
            raise FailedThereError(f"the lock {path} cannot be used: {error.strerror}") from error
        about = os.fstat(held)
        if not stat.S_ISREG(about.st_mode) or about.st_nlink > 1:
            raise FailedThereError(f"the lock {path} is no file of its own")
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            told = _holder(os.pread(held, 4096, 0))
            os.close(held)
            return told
        try:
            same = Path(path).lstat().st_ino == about.st_ino
        except OSError:
            same = False
        if not same:  # its last holder removed it meanwhile
            os.close(held)
            continue
        os.ftruncate(held, 0)
        os.pwrite(held, json.dumps({"user": _user(), "client": client, "since": time.monotonic()}).encode(), 0)
        return None
    raise FailedThereError(f"the lock {path} cannot be taken")


def _holder(text: bytes) -> dict[str, Any]:
    told: dict[str, Any] = {"user": "?", "client": "?", "age_s": 0.0}
    with contextlib.suppress(ValueError, TypeError, KeyError):
        known = json.loads(text)
        told["user"], told["client"] = str(known["user"])[:100], str(known["client"])[:100]
        told["age_s"] = round(time.monotonic() - float(known["since"]), 1)
    return told


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def put(place: Path, name: str, content: bytes) -> None:
    """Keep a file under its SHA-256. Raises FailedThereError where it does not fit, or is not what was sent."""
    if hashlib.sha256(content).hexdigest() != name:
        raise FailedThereError("a file did not arrive as it was sent")
    free = shutil.disk_usage(place).free
    if free < len(content) + SPARE:
        need = (len(content) + SPARE) / 2**20
        raise FailedThereError(
            f"no space in {place.parent}: {free / 2**20:.0f} MiB are free, {need:.0f} MiB are needed"
        )
    target = place / "blobs" / name
    try:
        target.with_suffix(".part").write_bytes(content)
        target.with_suffix(".part").replace(target)
    except OSError as error:
        raise FailedThereError(f"{place.parent} cannot be written: {error.strerror}") from error


def _serve(place: Path, requests: IO[bytes]) -> None:
    os.write(1, _frames.READY)
    held = ""
    with os.fdopen(os.dup(1), "wb", 0) as replies, contextlib.suppress(EOFError, OSError):
        while True:
            message, blobs, _ = _frames.read(requests)
            kind, what = "done", message["do"]
            answer: Any = None
            try:
                if what == "facts":
                    answer = _facts.facts(place) | {"folder": str(place), "user": _user()}
                elif what == "state":
                    answer = _facts.state()
                elif what == "lock":
                    answer = lock(message["path"], message["client"])
                    held = message["path"] if answer is None else ""
                elif what == "put":
                    put(place, message["name"], blobs[0])
                elif what == "kill":
                    for number in _numbers(place, "workers/*"):
                        if number == message["process"] and _is_ours(number, place):
                            with contextlib.suppress(ProcessLookupError):
                                os.kill(number, signal.SIGKILL)
            except FailedThereError as error:
                kind, answer = "failed", str(error)
            except OSError as error:
                kind, answer = "failed", f"{error.strerror}: {error.filename or what}"
            _frames.write(replies, {"kind": kind, "answer": answer})
    if held:
        with contextlib.suppress(OSError):  # else it is another user's file, and stays
            Path(held).unlink()
