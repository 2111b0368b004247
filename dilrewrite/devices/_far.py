"""A backend whose benches stand on a board: all that it says of itself is read there, once, when it is opened."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Protocol, TypeVar, cast, final

from dilrewrite import record
from dilrewrite.devices._arrays import blobs_of, pack, unpack
from dilrewrite.devices._line import Line
from dilrewrite.errors import MissingError, UsageError
from dilrewrite.runtimes import (
    Array,
    Artifact,
    Bench,
    CannotRun,
    Crashed,
    Lost,
    Opened,
    Options,
    Profile,
    Runnable,
    RuntimeFailure,
    Session,
    TimedBackend,
    TimedOut,
)
from dilrewrite.runtimes._worker import LOG_PREFIX

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What a runtime on a board says of itself: see `TimedBackend`."""

    process: int
    versions: Mapping[str, str]
    device: str


class Board(Protocol):
    """A device that a connection leads to."""

    on: str

    def line(self) -> Line:
        """Return the connection, made again where it was lost. Raises MissingError where it cannot be."""


class _Far(TimedBackend):
    """What a backend on a board does otherwise than the same one here. Inputs are tried, and proofs made, here."""

    __slots__ = ()

    trial: ClassVar[str | None] = "onnxruntime_cpu"
    board: ClassVar[Board]
    told: ClassVar[Told]
    facts: ClassVar[Mapping[str, Any]]

    def conflict(self) -> str | None:
        return None

    def missing(self) -> str | None:
        return None

    def versions(self) -> dict[str, str]:
        return {**self.told.versions, "python": str(self.facts["python"]), "kernel": str(self.facts["kernel"])}

    def device(self) -> str:
        model = str(self.facts["model"])
        return f"{f'{model}: ' if model else ''}{self.told.device}, at {self.board.on}"

    def state(self) -> dict[str, float]:
        with suppress(Lost, MissingError):
            told = self.board.line().ask({"do": "state"})
            return dict(record.read(Mapping[str, float], told, "the board's state"))
        return {}

    def settings(self, options: Options) -> dict[str, str]:
        names = {"governor": "governor", "max_mhz": "clock limit in MHz", "online": "cores", "machine": "machine"}
        told = {words: str(self.facts[name]) for name, words in names.items() if self.facts[name]}
        return {**super().settings(options), "on": self.board.on, **told}

    def session(self, runnable: Runnable, options: Options) -> Session:  # noqa: ARG002 - of the protocol
        raise CannotRun(f"{self.name} on {self.board.on} times, and nothing else")

    def bench(self, options: Options) -> Bench:
        if options.custom_op_library:
            raise UsageError("--custom-op-library with --on: libraries are of one machine", hint="leave one out")
        with suppress(Lost):
            return FarBench(self, self.board.line(), options)
        return FarBench(self, self.board.line(), options)  # over a connection that is made again


def far(inner: TimedBackend, board: Board, line: Line) -> TimedBackend:
    """Return a backend as it is on a board. Raises MissingError where it cannot be loaded there."""
    worker = line.session(60.0)
    try:
        answer, _ = worker.ask(beginning(inner))
        told = record.read(Told, answer, "the board")
    except (RuntimeFailure, TypeError) as error:
        raise MissingError(f"{board.on}: {error}") from None
    finally:
        worker.close()
    own = {"board": board, "told": told, "facts": line.facts, "__slots__": ()}
    kind = cast("Callable[..., TimedBackend]", type(f"Far{type(inner).__name__}", (_Far, type(inner)), own))
    return kind(**_fields(inner))


def _fields(backend: TimedBackend) -> dict[str, Any]:
    fields: Sequence[dataclasses.Field[Any]] = (
        dataclasses.fields(cast("Any", backend)) if dataclasses.is_dataclass(backend) else ()
    )
    return {field.name: getattr(backend, field.name) for field in fields}


def beginning(backend: TimedBackend) -> dict[str, Any]:
    """Return the request that loads a backend on a board."""
    return {"do": "begin", "name": backend.name, "settings": _fields(backend)}


@final
class FarBench(Bench):
    """A bench on a board, seen from this machine. Each method is one message, besides the files that a model needs."""

    def __init__(self, backend: TimedBackend, line: Line, options: Options) -> None:
        self._line, self._doubts = line, backend.doubts
        self._options = {"threads": options.threads, "optimize": options.optimize, "timeout_s": options.timeout_s}
        self._held: dict[str, tuple[str, Mapping[str, Array]]] = {}
        self._files: dict[str, tuple[str, dict[str, str]]] = {}
        self._worker = line.session(options.timeout_s)
        try:
            told, _ = self._worker.ask(beginning(backend))
            self._worker.process = self._read(Told, told).process
        except BaseException:
            self.close()
            raise

    def _read(self, kind: Any, answer: Any) -> Any:
        """Return an answer as what it should be; a board that says something else has failed."""
        try:
            return record.read(kind, answer, "the board's answer")
        except TypeError as error:
            self.close()
            raise Crashed(f"{self._line.address.on}: {error}") from None

    def _ask(self, what: str, kind: Any, **more: Any) -> Any:
        return self._read(kind, self._worker.ask({"do": what, **more})[0])

    def add(self, key: str, artifact: Artifact, feeds: Mapping[str, Array]) -> None:
        held = self._held.get(key)
        if held is not None and held[0] == artifact.digest and held[1] is feeds:
            return
        put = self._line.put
        if artifact.digest not in self._files:
            try:
                model, data = artifact.content()
            except OSError as error:
                raise CannotRun(f"the model cannot be read: {error}") from error
            self._files[artifact.digest] = put(model), {place: put(content) for place, content in data.items()}
        name, files = self._files[artifact.digest]
        self._worker.ask(
            {"do": "add", "key": key, "model": name, "data": files, "options": self._options, "feeds": pack(feeds, put)}
        )
        self._held[key] = artifact.digest, feeds

    def drop(self, key: str) -> None:
        if self._held.pop(key, None) is not None:
            self._worker.ask({"do": "drop", "key": key})

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:
        return list(self._ask("open", tuple[Opened, ...], keys=list(keys), warm_s=warm_s, runs=runs))

    def shut(self) -> None:
        with suppress(Crashed, TimedOut):  # what has ended has freed its models
            self._worker.ask({"do": "shut"})

    def run(self, order: Sequence[str]) -> list[float]:
        seconds = self._ask("run", tuple[float, ...], order=list(order))
        return list(self._read_times(seconds, len(order)))

    def _read_times(self, seconds: Sequence[float], number: int) -> Sequence[float]:
        if len(seconds) != number or not all(0 <= one < 1e9 for one in seconds):
            self.close()
            raise Crashed(f"{self._line.address.on}: it answers with times that are none")
        return seconds

    def profile(self, key: str, runs: int) -> Profile:
        return cast("Profile", self._ask("profile", Profile, key=key, runs=runs))

    def outputs(self, key: str) -> dict[str, Array]:
        answer, blobs = self._worker.ask({"do": "outputs", "key": key})
        try:
            return unpack(answer, blobs_of(blobs))
        except TypeError as error:
            self.close()
            raise Crashed(f"{self._line.address.on}: {error}") from None

    def peak_bytes(self, key: str) -> int | None:
        return cast("int | None", self._ask("peak_of", int | None, key=key))

    def warnings(self) -> tuple[str, ...]:
        if not self._doubts:
            return ()
        said = (LOG_PREFIX.sub("", line) for line in self._worker.said() if re.search(self._doubts, line))
        return tuple(dict.fromkeys(line[:300] for line in said))

    def close(self) -> None:
        self._worker.close()
