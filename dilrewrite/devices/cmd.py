"""cmd: any program that prints how long a model takes, measured or estimated, as JSON. No shell is asked."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shlex
import shutil
import signal
import string
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from dilrewrite.devices import Device, Scheme
from dilrewrite.errors import MissingError, UsageError, one_line
from dilrewrite.runtimes import (
    Array,
    Artifact,
    Bench,
    CannotLoad,
    CannotRun,
    NodeRun,
    Opened,
    Options,
    Profile,
    Runnable,
    Session,
    TimedBackend,
    TimedOut,
    TimeKind,
    TimeUnit,
    artifact,
    backend,
    fixed,
)

HINT = "as --on 'cmd:tool --model {model} --runs {runs}', which prints milliseconds as JSON"

FIRST_RUNS, MOST_RUNS, RUNS_S = 3, 100, 0.5
"""`{runs}` of the first call for a model, the most, and how long the runs of one call may take together, about."""

CYCLES = 1e9
"""As for every backend that counts them, see `TimeUnit`."""

LEAST, MOST = 1e-9, 1e18
"""Between them is what can be a time in milliseconds, or a number of cycles."""

SHAPES = "a number, a list of numbers, or an object with `ms` or `cycles`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a program printed: seconds of each run (of cycles: thousands of millions), and what they are."""

    seconds: tuple[float, ...]
    source: TimeKind = TimeKind.MEASURED
    unit: TimeUnit = TimeUnit.SECONDS
    device: str = ""
    version: str = ""

    @property
    def about(self) -> tuple[TimeKind, TimeUnit, str, str]:
        """Return what must be the same in every answer of a program."""
        return self.source, self.unit, self.device, self.version


def read(text: str) -> Answer:
    """Return what a program printed: JSON, as the whole of its output or as its last line. Raises CannotRun."""
    lines = text.strip().splitlines()
    for part in (text, lines[-1] if lines else ""):
        try:
            told = json.loads(part)
        except (ValueError, RecursionError):
            continue
        return _read(told)
    last = f"; its last line is {lines[-1][:100]!r}" if lines else ""
    raise CannotRun(f"it printed no JSON{last}: {SHAPES} is needed")


def _read(told: Any) -> Answer:
    fields: Mapping[str, Any] = told if isinstance(told, dict) else {"ms": told}
    counted = "cycles" in fields
    numbers = fields.get("cycles", fields.get("ms"))
    numbers = numbers if isinstance(numbers, list) else [numbers]
    estimated = fields.get("estimated", counted)
    words = [fields.get(name, "") for name in ("device", "version")]
    if not numbers or not all(map(_is_time, numbers)) or ("ms" in fields and counted):
        raise CannotRun(f"it printed {json.dumps(told)[:100]}: {SHAPES} is needed, above 0")
    if not isinstance(estimated, bool) or (counted and not estimated) or not all(isinstance(one, str) for one in words):
        raise CannotRun(f"it printed {json.dumps(told)[:100]}: `estimated` is true or false, and true of cycles")
    return Answer(
        seconds=tuple(number / (CYCLES if counted else 1000) for number in numbers),
        source=TimeKind.ESTIMATED if estimated else TimeKind.MEASURED,
        unit=TimeUnit.CYCLES if counted else TimeUnit.SECONDS,
        device=one_line(words[0]),
        version=one_line(words[1]),
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and LEAST < value < MOST


@final
@dataclass(frozen=True, slots=True)
class Template:
    """A command whose arguments hold `{model}` and `{runs}`; braces of their own are doubled."""

    text: str
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, on: str) -> Template:
        """Return what a text of `--on` says. Raises UsageError for one that runs nothing for a model."""
        text = on.removeprefix("cmd:").strip()
        try:
            arguments = tuple(shlex.split(text))
            fields = {
                f"{name}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
                for one in arguments
                for _, name, form, conversion in string.Formatter().parse(one)
                if name is not None
            }
        except ValueError as error:
            raise UsageError(f"--on {on}: {one_line(error).lower()}", hint=HINT) from error
        other = fields - {"model", "runs"}
        if other:
            name = f"{{{sorted(other)[0]}}}"
            raise UsageError(f"--on {on}: {name} stands for nothing", hint="write other braces twice: {{ and }}")
        if "model" not in fields:
            raise UsageError(f"--on {on}: no {{model}} is in it", hint=HINT)
        return cls(text, arguments)

    @property
    def program(self) -> str:
        """Return what is run."""
        return self.arguments[0]

    def words(self, model: Path, runs: int) -> list[str]:
        """Return the command for a model, argument by argument: no space or quote in a path makes two of one."""
        return [one.format(model=model, runs=runs) for one in self.arguments]

    def digest(self) -> str:
        """Return a digest of the files that the template names: an edited script is another one."""
        digest = hashlib.sha256()
        for word in (shutil.which(self.program) or self.program, *self.arguments[1:]):
            with suppress(OSError, ValueError):
                if Path(word).is_file():
                    digest.update(Path(word).read_bytes())
        return digest.hexdigest()[:16]


class _Commanded(TimedBackend):
    """What a command runs models on. What it is, its first answer tells, and each later one must tell the same."""

    __slots__ = ()

    name: ClassVar[str] = "cmd"
    trial: ClassVar[str | None] = "onnxruntime_cpu"
    compares: ClassVar[bool] = False
    tells_late: ClassVar[bool] = True
    template: ClassVar[Template]
    first: ClassVar[Answer | None] = None
    estimates: ClassVar[dict[str, Answer]]

    def versions(self) -> dict[str, str]:
        told = self.first.version if self.first is not None else ""
        return {Path(self.template.program).name: told or "of unknown version"}

    def device(self) -> str:
        told = self.first.device if self.first is not None else ""
        estimated = self.first is not None and self.first.source is TimeKind.ESTIMATED
        name = told or f"what {self.template.program} runs models on"
        return f"{name}, by its estimate" if estimated else name

    def settings(self, options: Options) -> dict[str, str]:  # noqa: ARG002 - the template says all
        return {
            "command": self.template.text,
            "files named in it": self.template.digest(),
            "answers": f"{self.source}, in {self.unit}",
            "outputs": "not compared there",
        }

    def prepare(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:
        proto = fixed(model, shapes)
        try:
            return artifact(Runnable(model=proto.SerializeToString()))
        except ValueError as error:
            raise CannotLoad("the model has 2 GB or more, which one file cannot hold") from error

    def session(self, runnable: Runnable, options: Options) -> Session:  # noqa: ARG002 - of the protocol
        raise CannotRun("a command says how long models take, and gives no outputs")

    def bench(self, options: Options) -> Bench:
        if options.custom_op_library:
            raise UsageError("--custom-op-library with --on cmd: the command does not get it", hint="leave one out")
        return _Commands(self, options.timeout_s)

    def learn(self, answer: Answer) -> Answer:
        """Return an answer; it must be of the kind of the first one. Raises CannotRun."""
        kind = type(self)
        if kind.first is None:
            kind.first, kind.source, kind.unit = answer, answer.source, answer.unit
        if answer.about != kind.first.about:
            was, now = (f"{one.source} {one.unit} {one.device} {one.version}".rstrip() for one in (kind.first, answer))
            raise CannotRun(f"its answers are of two kinds: first {was}, then {now}")
        return answer


@final
class _Commands(Bench):
    """Models as files in a temporary folder, and calls of the command for each.

    A time is the median of what one call says. An estimate is asked for once for each model: it does not vary.
    """

    def __init__(self, backend: _Commanded, timeout_s: float | None) -> None:
        self._backend, self._timeout_s = backend, timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="dilrewrite-")
        self._held: dict[str, str] = {}
        self._last: dict[str, tuple[Answer, float]] = {}

    def add(self, key: str, artifact: Artifact, feeds: Mapping[str, Array]) -> None:  # noqa: ARG002 - they make its own
        self._held[key] = artifact.digest
        place = self._place(key)
        if not place.exists():
            place.write_bytes(artifact.content()[0])

    def drop(self, key: str) -> None:
        self._held.pop(key, None)

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:  # noqa: ARG002
        """Return how long a call takes, for that is what a time costs; the command warms up by itself."""
        return [Opened(run_s=self._known(key)[1]) for key in keys]

    def shut(self) -> None:
        """Nothing is loaded between calls."""

    def run(self, order: Sequence[str]) -> list[float]:
        return [_median(self._known(key)[0] if self._estimates() else self._call(key)) for key in order]

    def profile(self, key: str, runs: int) -> Profile:
        try:
            seconds = self._call(key, max(runs, FIRST_RUNS)).seconds
        except TimedOut as error:  # a program that hangs, and no slow profiler
            raise CannotRun(str(error)) from error
        nodes: tuple[NodeRun, ...] = ()
        return Profile(seconds=seconds, nodes=nodes)

    def outputs(self, key: str) -> dict[str, Array]:
        raise CannotRun(f"a command gives no outputs of {key}")

    def warnings(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self._folder.cleanup()

    def _place(self, key: str) -> Path:
        return Path(self._folder.name) / f"{self._held[key]}.onnx"

    def _estimates(self) -> bool:
        return self._backend.source is TimeKind.ESTIMATED

    def _known(self, key: str) -> tuple[Answer, float]:
        """Return the last answer for a model and how long its call took, from a call where there is none."""
        digest = self._held[key]
        if digest in self._backend.estimates:
            return self._backend.estimates[digest], 1e-3
        if digest not in self._last:
            self._call(key)
        return self._last[digest]

    def _call(self, key: str, runs: int | None = None) -> Answer:
        """Run the command for a model. Raises CannotRun and TimedOut."""
        digest, began = self._held[key], time.monotonic()
        if runs is None:
            last = self._last.get(digest)
            each = _median(last[0]) if last is not None else math.inf
            runs = max(FIRST_RUNS, min(int(RUNS_S / each), MOST_RUNS))
        answer = self._backend.learn(
            read(_printed(self._backend.template.words(self._place(key), runs), self._timeout_s))
        )
        self._last[digest] = answer, time.monotonic() - began
        if answer.source is TimeKind.ESTIMATED:
            self._backend.estimates[digest] = answer
        return answer


def _median(answer: Answer) -> float:
    return sorted(answer.seconds)[len(answer.seconds) // 2]


def _printed(command: Sequence[str], timeout_s: float | None) -> str:
    """Return what a command prints on standard output. Raises CannotRun and TimedOut; no process of it is left."""
    pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        process = subprocess.Popen(command, **pipes, text=True, errors="replace", start_new_session=True)
    except OSError as error:
        raise CannotRun(f"{command[0]}: {(error.strerror or str(error)).lower()}") from error
    with process:
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{command[0]} gave no answer within {timeout_s:g} s") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        last = next((line.strip() for line in reversed((err + out).splitlines()) if line.strip()), "")
        raise CannotRun(f"{command[0]} ended with exit code {process.returncode}{f': {last[:300]}' if last else ''}")
    return str(out)


@final
class CmdDevice(Device):
    """What a command runs models on."""

    otherwise: ClassVar[str] = "try the command by hand on the model"

    def __init__(self, on: str, template: Template) -> None:
        self.on, self._template = on, template
        self._backend: TimedBackend | None = None

    def content(self) -> str:
        """Return a digest of the files that the command names."""
        return self._template.digest()

    def backend(self, text: str) -> TimedBackend:
        """Return what stands for it; the command says itself what it runs models on."""
        if text != "auto":
            raise UsageError(f"--backend {text} with --on cmd: the command says what runs", hint="leave it out")
        if self._backend is None:
            backend("onnxruntime_cpu")  # finds data, and proves, on this machine
            program = self._template.program
            if shutil.which(program) is None:
                raise MissingError(f"--on cmd: {program} is no program here", hint="check the name, or give its path")
            self._backend = type("Commanded", (_Commanded,), {"template": self._template, "estimates": {}})()
        return self._backend


@final
class Cmd:
    """`cmd:COMMAND ...` with `{model}` and `{runs}` in its arguments."""

    def open(self, text: str) -> Device:
        """Return the device. Raises UsageError for a command that runs nothing for a model."""
        return CmdDevice(text, Template.of(text))


SCHEME: Scheme = Cmd()
