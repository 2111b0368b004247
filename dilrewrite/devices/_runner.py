"""The process on a board that times: `dilrewrite.runtimes._worker` there, which speaks JSON instead of pickles.

It needs Python, NumPy and the runtime, and nothing else of what dilrewrite needs.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from dilrewrite.devices import _frames, _keeper

if TYPE_CHECKING:
    from dilrewrite.runtimes import Profile, TimedBackend

DIED = "dilrewrite: the process that timed was killed by signal "
"""A line on standard error; what follows is the signal's number."""

KNOWN = {"CannotLoad", "CannotRun", "UsageError", "FailedError", "MissingError"}
"""Exceptions whose words are an answer."""

_BITS = (
    *("bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu", "int4"),
    *("uint4", "float4_e2m1fn", "int2", "uint2", "float6_e2m3fn", "float6_e3m2fn"),
)
"""The types of ml_dtypes."""


def main(folder: str, requests: IO[bytes]) -> NoReturn:
    """Answer requests until the connection ends; that ends a run, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = os.fork()
    if child:  # it says how the other one ended, which ssh does not
        for number in (0, 1):
            os.dup2(os.open(os.devnull, os.O_RDWR), number)

        def clear() -> None:
            _keeper.outlive(Path(folder))
            os.kill(child, signal.SIGKILL)
            _keeper.remove(Path(folder))

        threading.Thread(target=clear, daemon=True).start()
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            os.write(2, f"\n{DIED}{os.WTERMSIG(status)}\n".encode())
        os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1)
    replies = os.fdopen(os.dup(1), "wb", 0)
    os.dup2(2, 1)  # what a runtime prints
    place = Path(folder) / "work" / str(os.getpid())
    try:
        place.mkdir()  # no parents: the folder may be gone by now
    except OSError:
        os._exit(0)
    (Path(folder) / "workers" / str(os.getpid())).touch()
    os.chdir(place)
    os.environ.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(place)))
    waiting: queue.SimpleQueue[tuple[dict[str, Any], list[bytes]]] = queue.SimpleQueue()

    def receive() -> None:
        try:
            while True:
                message, blobs, _ = _frames.read(requests)
                waiting.put((message, blobs))
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    try:
        replies.write(_frames.READY)
        _serve(Path(folder), waiting, replies)
    finally:
        os._exit(0)


def _serve(folder: Path, waiting: Any, replies: IO[bytes]) -> None:
    board: _Board | None = None
    while True:
        message, _ = waiting.get()
        blobs: Sequence[bytes] = ()
        try:
            if board is None:
                stand_in()
                board = _Board(folder)
            answer, blobs = board.answer(message)
            kind = "done"
        except ImportError as error:
            kind, answer = "CannotLoad", f"{error.name or error} is not installed there"
        except Exception as error:
            known = KNOWN & {type(error).__name__}
            kind, answer = (known.pop(), str(error)) if known else ("bug", traceback.format_exc())
        _frames.write(replies, {"kind": kind, "answer": answer}, blobs)


def stand_in() -> None:
    """Put something in place of the packages that dilrewrite needs and a board may not have.

    Of ml_dtypes' types arrays have the bits: a runtime takes and gives them as such.
    """
    for name in ("ml_dtypes", "typing_extensions"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = module = ModuleType(name)
            if name == "typing_extensions":
                module.Self = module.Unpack = Any  # type: ignore[attr-defined]
                continue
            np = importlib.import_module("numpy")
            for one in _BITS:
                setattr(module, one, np.dtype([(one, "u2" if one == "bfloat16" else "u1")]))


class _Board:
    """What a connection has here: a method for each request, that returns plain data and blobs."""

    def __init__(self, folder: Path) -> None:
        from dilrewrite.runtimes import _worker

        self.folder = folder
        self.server = _worker._Server()

    def answer(self, message: dict[str, Any]) -> tuple[Any, Sequence[bytes]]:
        given = {name: value for name, value in message.items() if name not in ("do", "sizes")}
        where: Any = self
        more: tuple[Path, ...] = ()
        if message["do"] in ("flavour", "build"):  # of a file that goes along only where it is asked for
            where, more = importlib.import_module("dilrewrite.devices._builder"), (self.folder,)
        told = getattr(where, f"on_{message['do']}")(*more, **given)
        return told if isinstance(told, tuple) else (told, ())

    def on_offer(self, name: str) -> str | None:
        """Return None where a runtime is ready, else what is missing."""
        try:
            backend = _backend(name)
            if (why := backend.conflict() or backend.missing()) is not None:
                return why
            lacks = [one for one in backend.needs if importlib.util.find_spec(one) is None]
            return f"{lacks[0]} is not installed: pip install {lacks[0]}" if lacks else None
        except ImportError as error:
            return f"{error.name or error} is not installed"

    def on_begin(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Load a runtime; what it is, and where it runs."""
        import numpy as np

        from dilrewrite.errors import one_line
        from dilrewrite.runtimes import CannotLoad

        backend = dataclasses.replace(_backend(name), **settings)  # type: ignore[type-var]
        try:
            versions = backend.versions()
        except (ImportError, OSError) as error:
            raise CannotLoad(f"{name} cannot be imported: {one_line(error)}") from error
        self.server.backend = backend
        return {
            "process": os.getpid(),
            "versions": {**versions, "numpy": np.__version__},
            "device": backend.device(),
        }

    def on_add(self, key: str, model: str, data: dict[str, str], options: dict[str, Any], feeds: Any) -> None:
        """Keep a model and its inputs, of files that are here."""
        from dilrewrite.devices._arrays import unpack
        from dilrewrite.runtimes import Options, Runnable

        values = unpack(feeds, lambda name: self._blob(name).read_bytes())
        runnable = Runnable(model=self._blob(model).read_bytes())
        if data:
            place = self.folder / "models" / model
            for location, name in data.items():
                target = place / location
                if not target.resolve().is_relative_to(place.resolve()):
                    raise ValueError(location)
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.link(self._blob(name), target)
            runnable = dataclasses.replace(runnable, folder=place)
        scratch = self.folder / "scratch"
        scratch.mkdir(exist_ok=True)
        self.server.on_add(key, runnable, Options(isolated=False, scratch=scratch, **options), values)

    def _blob(self, name: str) -> Path:
        return self.folder / "blobs" / name

    def on_drop(self, key: str) -> None:
        self.server.on_drop(key)

    def on_open(self, keys: list[str], warm_s: float, runs: int) -> list[dict[str, Any]]:
        return [dataclasses.asdict(one) for one in self.server.on_open(keys, warm_s, runs)]

    def on_shut(self) -> None:
        self.server.on_shut()

    def on_run(self, order: list[str]) -> list[float]:
        return self.server.on_run(order)

    def on_profile(self, key: str, runs: int) -> dict[str, Any]:
        told: Profile = self.server.on_profile(key, runs)  # type: ignore[assignment]
        return dataclasses.asdict(told)

    def on_peak_of(self, key: str) -> int | None:
        return self.server.on_peak_of(key)

    def on_outputs(self, key: str) -> tuple[dict[str, Any], Sequence[bytes]]:
        from dilrewrite.devices._arrays import pack

        blobs: list[bytes] = []

        def keep(data: bytes) -> int:
            blobs.append(data)
            return len(blobs) - 1

        return pack(self.server.on_outputs(key), keep), blobs


def _backend(name: str) -> TimedBackend:
    found: TimedBackend = importlib.import_module(f"dilrewrite.runtimes.{name}").BACKEND
    return found
