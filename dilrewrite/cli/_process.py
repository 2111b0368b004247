"""What the command line does to its process: signals and standard streams. All is put back when it ends."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from dilrewrite._start import STOPPING, leave
from dilrewrite.errors import FailedError

_AGAIN_S = 0.02
_PATIENCE_S = 5.0  # then it interrupts whatever is loaded
_TEXT = ("<string>", "<module>")


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP interrupt as Ctrl-C does, and none an import: half a module is worse than a late answer.

    Other handlers than Python's stay: a program started with `nohup` or `&` ignores what it was told to ignore.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = (signal.default_int_handler, signal.SIG_DFL, leave)
    before = {number: signal.getsignal(number) for number in STOPPING}
    since: list[float] = []
    hook = sys.unraisablehook

    def again_if_lost(lost: sys.UnraisableHookArgs) -> None:
        if isinstance(lost.exc_value, KeyboardInterrupt):  # in a destructor, say, where nothing can be raised
            _thread.start_new_thread(_again, (signal.SIGINT,))
        else:
            hook(lost)

    def interrupt(number: int, frame: FrameType | None) -> None:
        since.append(time.monotonic())
        if since[-1] - since[0] < _PATIENCE_S and _loading(frame):
            _thread.start_new_thread(_again, (number,))
            return
        since.clear()
        raise KeyboardInterrupt

    try:
        sys.unraisablehook = again_if_lost
        for number, handler in before.items():
            if handler in usual:
                signal.signal(number, interrupt)
        yield
    finally:
        sys.unraisablehook = hook
        for number, handler in before.items():
            if handler in usual:
                signal.signal(number, handler)


def _loading(frame: FrameType | None) -> bool:
    """Say whether a module is being imported or a text evaluated: Python dies of an interrupt there, caught or not."""
    while frame is not None and frame.f_back is not None:
        code = frame.f_code
        if code.co_filename.startswith("<frozen importlib") or (code.co_filename, code.co_name) == _TEXT:
            return True
        frame = frame.f_back
    return False


def _again(number: int) -> None:
    time.sleep(_AGAIN_S)
    signal.raise_signal(number)


@contextmanager
def streams() -> Iterator[None]:
    """Make standard output say in one line (`FailedError`) when it is closed or full; a lost standard error is silent.

    A closed descriptor is filled: an output file would get it, and whatever a library prints.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # reading from it gives nothing, writing to number 1 fails as if it were still closed
            os.open(os.devnull, os.O_WRONLY if number == 2 else os.O_RDONLY)
    before = sys.stdout, sys.stderr
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    stdout = sys.stdout if sys.stdout is not None else open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _Output(stdout)
    try:
        yield
        sys.stdout.flush()
    finally:
        sys.stdout, sys.stderr = before
        _forget_unwritten(stdout)


class _Output:
    """A text stream whose failures are errors of the user's: closed, or full."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _lost(error) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise _lost(error) from error

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _lost(error: OSError) -> FailedError:
    return FailedError(
        f"standard output cannot be written ({(error.strerror or str(error)).lower()}): what was to be shown is lost, "
        "files that were asked for are written",
        hint="give it a place that can be written, or --quiet",
    )


def _forget_unwritten(stream: TextIO) -> None:
    """Let Python drop what it cannot write, at its end too: that would be a traceback and another exit code."""
    try:
        stream.flush()
    except OSError:
        with suppress(OSError, ValueError):
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, stream.fileno())
            os.close(handle)
            stream.flush()
