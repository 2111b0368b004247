"""Sessions and timed runs in a child process, so that a crash of the runtime is a reason and not the end: both ends.

The child is `python -m dilrewrite.runtimes._worker`, not a fork or multiprocessing's spawn: it works from notebooks
and from scripts without a `__main__` guard. A message is a pickle, of protocol 5, which copies no array.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, cast, final

import numpy as np

from dilrewrite._compat import running
from dilrewrite.errors import one_line
from dilrewrite.runtimes import (
    Array,
    Artifact,
    Backend,
    Bench,
    CannotLoad,
    CannotRun,
    Crashed,
    Io,
    Opened,
    Options,
    Profile,
    Runnable,
    Runner,
    Session,
    TimedBackend,
    TimedOut,
    warmed,
)
from dilrewrite.runtimes._soil import soiled

READY = b"\0dilrewrite worker\0"  # before it, start-up code of the child's Python may have printed something
LOG_PREFIX = re.compile(r"(\x1b\[[0-9;]*m)|^(\x1b\[[0-9;]*m)?[\d-]+ [\d:.]+ ")
"""A log line's colours and time."""

_REASONS = {kind.__name__: kind for kind in (CannotLoad, CannotRun)}

MOST_OFF = 2**20
"""Bytes that the high-water mark may be above what is resident right after it was set to that."""

_GONE = (EOFError, OSError, pickle.UnpicklingError)  # the other end is gone, before a message or in the middle of one


class Whole:
    """A stream without a buffer, on which a write is a whole one."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        while view.nbytes:
            view = view[self.stream.write(view) :]


def send(stream: IO[bytes], message: object) -> None:
    """Write one message."""
    pickle.dump(message, Whole(stream), protocol=5)  # type: ignore[arg-type]


class Child:
    """A child process that answers requests, seen from the parent. It starts in an empty folder of its own.

    Its temporary files lie there too, and are gone afterwards even when it crashed. `told`: its answer to `greeting`,
    the first request; without one there is no child. `command`: what runs in place of Python, and a subclass talks to.
    `home`: where its folder is made, unless it is where the system's temporary files are.
    """

    patience_s = 0.2
    """How long it may take to leave once its pipe is closed."""

    starts_others = False
    """Whether it starts processes of its own, which are killed when it has ended, however it did."""

    def __init__(
        self, timeout_s: float | None, *greeting: object, command: Sequence[str] | None = None, home: Path | None = None
    ) -> None:
        self.timeout_s = timeout_s
        self._late = False
        self._greeted = False
        self._noise = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(str(Path(entry).absolute()) for entry in sys.path))
        folder = tempfile.TemporaryDirectory(prefix="dilrewrite-", dir=home, ignore_cleanup_errors=True)
        environment.update(dict.fromkeys(("TMPDIR", "TEMP", "TMP"), folder.name))
        try:
            self.process = subprocess.Popen(
                running(__name__) if command is None else command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._noise,
                bufsize=0,  # nothing is left to be flushed into the pipe of a child that hangs
                env=environment,
                cwd=folder.name,
                start_new_session=self.starts_others,
            )
        except BaseException:
            self._noise.close()
            folder.cleanup()
            raise
        self._answers = io.BufferedReader(self.process.stdout)  # type: ignore[type-var]
        group = self.process.pid if self.starts_others and os.name != "nt" else None
        self.close = weakref.finalize(self, _end, self.process, self._noise, folder, self.patience_s, group)
        try:
            self.told = self.ask(*greeting)
        except BaseException:
            self.close()
            raise

    def ask(self, *request: object) -> Any:
        """Send a request and return the answer; an interrupted request leaves no child behind."""
        if not self.close.alive:
            raise Crashed("the session is closed")
        timer = threading.Timer(self.timeout_s or 0.0, self._stop)
        timer.daemon = True
        try:
            if self.timeout_s is not None:
                timer.start()
            kind, answer = self._exchange(request)
        except _GONE:
            crashed = self._obituary()
            self.close()
            if self._late:
                raise TimedOut(f"no answer within {self.timeout_s:g} s") from None
            raise Crashed(crashed) from None
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
        if kind in _REASONS:
            raise _REASONS[kind](answer)
        if kind == "bug":
            raise RuntimeError(f"in the worker process:\n{answer}")
        return answer

    def said(self) -> list[str]:
        """Return the lines that the child wrote so far besides its answers."""
        if not self.close.alive:
            return []
        # Not through the shared file position, at which the child writes.
        text = os.pread(self._noise.fileno(), 2**20, 0) if hasattr(os, "pread") else b""
        return [" ".join(line.split()) for line in text.decode(errors="replace").split("\n") if line.strip()]

    def _exchange(self, request: tuple[object, ...]) -> tuple[str, Any]:
        assert self.process.stdin is not None
        seen = READY if self._greeted else b""
        while not seen.endswith(READY):
            byte = self._answers.read(1)
            if not byte:
                raise EOFError
            seen = (seen + byte)[-len(READY) :]
        self._greeted = True
        send(self.process.stdin, request)
        kind, answer = pickle.load(self._answers)
        return kind, answer

    def _stop(self) -> None:
        self._late = True
        self.process.kill()

    def _obituary(self) -> str:
        """Say how the child died: the signal or exit code, and the last line it wrote."""
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "the process closed its pipe and hangs"
        if code < 0:
            try:
                how = f"was killed by {signal.Signals(-code).name}"
            except ValueError:
                how = f"was killed by signal {-code}"
            if -code == getattr(signal, "SIGKILL", None):
                how += " (perhaps out of memory)"
        else:
            how = f"ended with exit code {code}"
        size = self._noise.seek(0, os.SEEK_END)
        self._noise.seek(max(0, size - 4000))
        lines = self._noise.read().decode(errors="replace").split("\n")
        last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
        return f"the process {how}: {last[-300:]}" if last else f"the process {how}"


def _anywhere(runnable: Runnable, options: Options) -> tuple[Runnable, Options]:
    """Return both without paths that depend on the working directory, to be used inside the child."""
    model = runnable.model.absolute() if isinstance(runnable.model, Path) else runnable.model
    folder = None if runnable.folder is None else runnable.folder.absolute()
    libraries = tuple(library.absolute() for library in options.custom_op_library)
    return replace(runnable, model=model, folder=folder), replace(options, isolated=False, custom_op_library=libraries)


def _plain(feeds: Mapping[str, Array]) -> dict[str, Any]:
    return {name: value if isinstance(value, list) else np.asarray(value) for name, value in feeds.items()}


@final
class IsolatedSession(Session):
    """The parent's end: a session of a backend in a child process."""

    inputs: tuple[Io, ...]
    outputs: tuple[Io, ...]

    def __init__(self, backend: Backend, runnable: Runnable, options: Options) -> None:
        self._child = Child(options.timeout_s, "load", pickle.dumps(backend), *_anywhere(runnable, options))
        self.inputs, self.outputs = self._child.told

    @property
    def pid(self) -> int:
        return self._child.process.pid

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        wanted = None if outputs is None else list(outputs)
        return cast("dict[str, Array]", self._child.ask("infer", _plain(feeds), wanted))

    def peak_bytes(self) -> int | None:
        with contextlib.suppress(Crashed, TimedOut):
            return cast("int | None", self._child.ask("peak"))
        return None

    def close(self) -> None:
        self._child.close()


@final
class IsolatedBench(Bench):
    """The parent's end: a backend in a child process of this host."""

    def __init__(self, backend: TimedBackend, options: Options) -> None:
        self._options = options
        self._doubts = backend.doubts
        self._held: dict[str, tuple[str, Mapping[str, Array]]] = {}
        self._child = Child(options.timeout_s, "bench", pickle.dumps(backend))

    def add(self, key: str, artifact: Artifact, feeds: Mapping[str, Array]) -> None:
        held = self._held.get(key)
        if held is None or held[0] != artifact.digest or held[1] is not feeds:
            self._child.ask("add", key, *_anywhere(artifact._held, self._options), _plain(feeds))
            self._held[key] = artifact.digest, feeds

    def drop(self, key: str) -> None:
        if self._held.pop(key, None) is not None:
            self._child.ask("drop", key)

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:
        return cast("list[Opened]", self._child.ask("open", list(keys), warm_s, runs))

    def shut(self) -> None:
        with contextlib.suppress(Crashed, TimedOut):  # a dead child has freed its models
            self._child.ask("shut")

    def run(self, order: Sequence[str]) -> list[float]:
        return cast("list[float]", self._child.ask("run", list(order)))

    def profile(self, key: str, runs: int) -> Profile:
        return cast("Profile", self._child.ask("profile", key, runs))

    def outputs(self, key: str) -> dict[str, Array]:
        return cast("dict[str, Array]", self._child.ask("outputs", key))

    def peak_bytes(self, key: str) -> int | None:
        return cast("int | None", self._child.ask("peak_of", key))

    def warnings(self) -> tuple[str, ...]:
        if not self._doubts:
            return ()
        said = (LOG_PREFIX.sub("", line) for line in self._child.said() if re.search(self._doubts, line))
        return tuple(dict.fromkeys(line[:300] for line in said))

    def close(self) -> None:
        self._child.close()


def _end(process: subprocess.Popen[bytes], noise: IO[bytes], folder: Any, patience_s: float, group: int | None) -> None:
    """Close the pipe, on which the child leaves, and kill it when it is busy, and what is left of its `group`."""
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if group is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)
    process.stdout.close()
    noise.close()
    folder.cleanup()
    until = time.monotonic() + patience_s
    while Path(folder.name).exists() and time.monotonic() < until:  # a process of the child's own still writes there
        time.sleep(0.02)
        shutil.rmtree(folder.name, ignore_errors=True)


def main() -> None:
    """Be the child: answer requests until the pipe closes."""
    # Ctrl-C reaches the whole process group: the parent decides, and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb", 0)
    # Whatever prints to standard output goes to standard error from here on; nobody else reads the requests.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    with contextlib.suppress(*_GONE):
        replies.write(READY)
        _serve(requests, replies)
    os._exit(0)  # at once: runtimes take their time to leave


def _serve(requests: IO[bytes], replies: IO[bytes]) -> None:
    server = _Server()
    while True:
        request, *arguments = pickle.load(requests)
        try:
            answer: object = getattr(server, f"on_{request}")(*arguments)
            kind = "done"
        except (CannotLoad, CannotRun) as error:
            kind, answer = type(error).__name__, str(error)
        except Exception:
            kind, answer = "bug", traceback.format_exc()
        send(replies, (kind, answer))
        del arguments, answer  # not kept until the next request


def _loaded(pickled: bytes) -> Any:
    """Return a backend whose runtime is loaded: its own memory does not count as a model's."""
    backend = pickle.loads(pickled)
    try:
        backend.versions()
    except (ImportError, OSError) as error:
        raise CannotLoad(f"{backend.name} cannot be imported: {one_line(error)}") from error
    return backend


class _Server:
    """The child's state, and a method for each request."""

    session: Session
    before: int | None
    backend: TimedBackend

    def __init__(self) -> None:
        self.models: dict[str, tuple[Runnable, Options, Mapping[str, Array]]] = {}
        self.runners: dict[str, Runner] = {}
        self.seen: set[str] = set()  # models that ran before: what is loaded once for their operators is there

    def on_load(self, pickled: bytes, runnable: Runnable, options: Options) -> object:
        backend: Backend = _loaded(pickled)
        self.before = _forget_peak()
        self.session = backend.session(runnable, options)
        return self.session.inputs, self.session.outputs

    def on_infer(self, feeds: Mapping[str, Array], outputs: list[str] | None) -> object:
        return self.session.run(feeds, outputs)

    def on_peak(self) -> object:
        peak = _peak()
        return None if self.before is None or peak is None else max(0, peak - self.before)

    def on_bench(self, pickled: bytes) -> None:
        self.backend = _loaded(pickled)

    def on_add(self, key: str, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> None:
        self._free(key)
        self.seen.discard(key)
        self.models[key] = runnable, options, feeds

    def on_drop(self, key: str) -> None:
        self._free(key)
        self.models.pop(key, None)

    def on_open(self, keys: list[str], warm_s: float, runs: int) -> list[Opened]:
        self._free(*self.runners)
        for key in keys:
            self.runners[key] = self.backend.runner(*self.models[key])

        def opened(key: str) -> Opened:
            run_s = warmed(lambda times: self.on_run([key] * times), warm_s, runs)
            return Opened(run_s=run_s, first_s=self.runners[key].first_s)

        return list(map(opened, keys))

    def on_shut(self) -> None:
        self._free(*self.runners)

    def on_run(self, order: list[str]) -> list[float]:
        clock, seconds = time.perf_counter_ns, []
        steps = [self.runners[key].run for key in order]
        gc.disable()
        try:
            for step in steps:
                start = clock()
                told = step()
                seconds.append((clock() - start) / 1e9 if told is None else told)
        finally:
            gc.enable()
        self.seen.update(order)
        return seconds

    def on_profile(self, key: str, runs: int) -> object:
        return self.backend.profile(*self.models[key], runs)

    def on_peak_of(self, key: str) -> int | None:
        self._free(*self.runners)
        if not self.backend.host_memory:
            return None
        if key not in self.seen:
            self._ran(key)
        before = _settle()
        if before is None:
            return None
        peak = self._ran(key)
        return None if peak is None else max(0, peak - before)

    def _ran(self, key: str) -> int | None:
        """Load a model and run it: the second time it knows what memory it needs. Return the peak until then."""
        with contextlib.closing(self.backend.runner(*self.models[key])) as runner:
            runner.run()
            runner.run()
            self.seen.add(key)
            return _peak()

    def on_outputs(self, key: str) -> dict[str, Array]:
        with soiled(), contextlib.closing(self.backend.runner(*self.models[key])) as runner:
            return {name: np.array(value) for name, value in runner.outputs().items()}

    def _free(self, *keys: str) -> None:
        for key in keys:
            if key in self.runners:
                self.runners.pop(key).close()


def _forget_peak() -> int | None:
    """Make the high-water mark of the resident memory what is resident now, where the system can, and return it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _settle() -> int | None:
    """Give freed memory back to the system and forget the high-water mark; return what is resident, in bytes.

    Memory that is kept for later would not count when a session takes it again. None where this cannot be done: not
    Linux with glibc, or the system does not let the mark be set.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return None
    _forget_peak()
    peak, resident = _status("VmHWM"), _status("VmRSS")
    return resident if peak is not None and resident is not None and peak - resident < MOST_OFF else None


def _status(name: str) -> int | None:
    """Return a size that Linux tells of this process, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return None


def _peak() -> int | None:
    """Return the high-water mark of this process' resident memory in bytes."""
    if (peak := _status("VmHWM")) is not None:
        return peak
    try:
        import resource
    except ImportError:
        return None
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
