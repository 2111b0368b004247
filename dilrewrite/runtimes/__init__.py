"""What a runtime must offer to be measured and to prove with. One file per runtime; this file loads none of them.

A backend is a module of this folder that defines `BACKEND`. It makes a `Session` of a `Runnable`, and is timed on a
`Bench`. What goes wrong with a model is a `RuntimeFailure`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, cast

from numpy.typing import NDArray

from dilrewrite import machine, settings
from dilrewrite._compat import Self, StrEnum
from dilrewrite.discover import discover
from dilrewrite.errors import MissingError, UsageError, choices
from dilrewrite.runtimes._artifact import Artifact as Artifact
from dilrewrite.runtimes._artifact import Runnable as Runnable
from dilrewrite.runtimes._artifact import artifact as artifact
from dilrewrite.runtimes._artifact import contained as contained
from dilrewrite.runtimes._artifact import fixed as fixed
from dilrewrite.runtimes._failures import CannotLoad as CannotLoad
from dilrewrite.runtimes._failures import CannotRun as CannotRun
from dilrewrite.runtimes._failures import Crashed as Crashed
from dilrewrite.runtimes._failures import Lost as Lost
from dilrewrite.runtimes._failures import RuntimeFailure as RuntimeFailure
from dilrewrite.runtimes._failures import TimedOut as TimedOut

if TYPE_CHECKING:
    from dilrewrite.forms.geometry import ConvGeometry

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a session runs.

    `threads` is the number of threads inside one operator (None: the runtime's choice), `optimize` turns the runtime's
    graph optimisations on, `isolated` runs in a child process that may crash. `timeout_s` bounds making the session and
    each run; only an isolated session can be stopped, another one ignores it. `scratch`: a folder in which a backend
    that builds engines keeps what it built, for later commands too.
    """

    threads: int | None = None
    optimize: bool = True
    custom_op_library: tuple[Path, ...] = ()
    isolated: bool = True
    timeout_s: float | None = None
    scratch: Path | None = None


class TimeKind(StrEnum):
    """Where times come from. A report of estimates says that they are, and calls none a timing."""

    MEASURED = "measured"
    ESTIMATED = "estimated"
    """By a model of the device, such as its compiler's. Nothing is run, so outputs are not compared there."""


class TimeUnit(StrEnum):
    """What times count: seconds, or thousands of millions of cycles."""

    SECONDS = "seconds"
    CYCLES = "cycles"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long a backend is timed at least: seconds to warm up, pairs, and seconds of one model in a comparison.

    `unsteady`: the coefficient of variation above which a timing is doubtful; `None` where it says nothing.
    """

    warm_s: float = 0.0
    pairs: int = 6
    seconds: float = 0.0
    unsteady: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Io:
    """An input or output: its name, its element type in ONNX's words, its shape (None: unknown rank or extent).

    `element` is "float32", "bfloat16", "int64", "bool", "string", "float8e4m3fn", ...; what is no tensor is
    "other:" and the runtime's own word for it. `dtype(element)` is the NumPy type.
    """

    name: str
    element: str
    shape: tuple[int | str | None, ...] | None


def fits(shape: Sequence[int], declared: Sequence[int | str | None]) -> bool:
    """Say whether a shape is the declared one; a size that is no number fits all."""
    sizes = zip(declared, shape, strict=False)
    return len(shape) == len(declared) and all(size == own for size, own in sizes if isinstance(size, int))


class Session(Protocol):
    """A loaded model. One call at a time; closed by `close()` or by leaving its `with` block."""

    inputs: tuple[Io, ...]
    outputs: tuple[Io, ...]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the named outputs (None: all); what is no tensor comes as the runtime gives it, a sequence as a list.

        Raises CannotRun, and in an isolated session Crashed and TimedOut; after these two the session is of no use.
        """

    def peak_bytes(self) -> int | None:
        """Return how far the process' resident memory rose above what it was before the session was made.

        None when the session is not isolated, or the system does not tell.
        """
        return None

    def close(self) -> None:
        """End the session and its process; a second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend:
    """A runtime that models are proved on."""

    __slots__ = ()

    name: ClassVar[str]
    """That of its file."""
    alias: ClassVar[str] = ""
    """A shorter name that users may give."""

    def conflict(self) -> str | None:
        """Return None, or what is installed twice and the commands that mend it."""
        return None

    def missing(self) -> str | None:
        """Return None when the runtime is ready, else what is missing and the command that installs it."""
        return None

    def versions(self) -> dict[str, str]:
        """Return what the timings and results depend on: {package: version}. Loads the runtime."""
        raise NotImplementedError

    def session(self, runnable: Runnable, options: Options) -> Session:
        """Load a model. Raises CannotLoad, and when isolated Crashed and TimedOut."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRun:
    """One run of one node: its name, operator, seconds, and shapes (None: no tensor, or not told).

    `stands_for`: the node, or the tensor that it makes, where `name` is the runtime's own. `provider`: the part of the
    runtime that ran it, where it has several. `run`: the run of the model, from 0.
    """

    name: str
    op: str
    seconds: float
    stands_for: str = ""
    inputs: tuple[tuple[int, ...] | None, ...] = ()
    outputs: tuple[tuple[int, ...] | None, ...] = ()
    provider: str = ""
    run: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a runtime says of some runs: seconds of each (0: not known), and every node that ran, in order."""

    seconds: tuple[float, ...]
    nodes: tuple[NodeRun, ...]

    @property
    def runs(self) -> int:
        """Return how many runs there were."""
        return len(self.seconds)


def repeated(run: Callable[[], float], nodes: Callable[[int], Iterable[NodeRun]], runs: int) -> Profile:
    """Return a `profile`: `run` runs a model once and returns the seconds, `nodes` tells of the last one, by number."""
    if runs:
        run()
    seconds: list[float] = []
    told: list[NodeRun] = []
    for number in range(max(runs, 1)):
        seconds.append(run())
        told += nodes(number)
    return Profile(seconds=tuple(seconds), nodes=tuple(told))


class Runner(Protocol):
    """A loaded model bound to its inputs, in this process."""

    @property
    def first_s(self) -> float | None:
        """Return the seconds until its first run was done, where the runtime tells what it compiles."""

    def run(self) -> float | None:
        """Run once to the end; return the seconds where the runtime knows them better. Raises CannotRun."""

    def outputs(self) -> dict[str, Array]:
        """Run once and return all outputs that are tensors. Raises CannotRun."""

    def close(self) -> None:
        """Free the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model that was loaded: seconds of its last run of warming up, and until its first run was done, where told."""

    run_s: float
    first_s: float | None = None


def warmed(
    run: Callable[[int], Sequence[float]], warm_s: float, runs: int, clock: Callable[[], float] = time.monotonic
) -> float:
    """Warm a model up, `runs` times and for `warm_s` seconds at least; return the seconds of its last run.

    `run` runs it so many times. Of runs above 0.1 seconds two are enough, above a second one, but for `warm_s`. Without
    runs it is 0.
    """
    until, seconds = clock() + warm_s, 0.0
    for done in range(runs):
        if seconds > (1.0 if done == 1 else 0.1):
            break
        (seconds,) = run(1)
    while clock() < until:
        seconds = min(run(8))
    return seconds


class Bench(Protocol):
    """Several models on one runtime, where the clock is read too: each method is one message to it.

    Raises CannotLoad, CannotRun, Crashed and TimedOut; after the last two it is of no use.
    """

    def add(self, key: str, artifact: Artifact, feeds: Mapping[str, Array]) -> None:
        """Keep a model and its inputs under `key`; replaces what was there."""

    def drop(self, key: str) -> None:
        """Forget a model; nothing happens when there is none."""

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:
        """Load these models in this order, and free all others; then warm each up as `warmed` does."""

    def shut(self) -> None:
        """Free all loaded models; nothing happens after a crash."""

    def run(self, order: Sequence[str]) -> list[float]:
        """Run loaded models by key, one after the other; return the seconds of each run."""

    def profile(self, key: str, runs: int) -> Profile:
        """Load a model apart, run it once to warm up and then `runs` times (0: the profile is of that one run)."""

    def outputs(self, key: str) -> dict[str, Array]:
        """Load a model apart, run it once and return its outputs."""

    def objection(self, original: str, other: str) -> str | None:  # noqa: ARG002 - a bench may know
        """Return why a version may not take the original's place however fast it is; asked of one that is estimated."""
        return None

    def peak_bytes(self, key: str) -> int | None:  # noqa: ARG002 - a bench may know
        """Free all loaded models, load one apart, run it twice, and return the most memory that it took, in bytes.

        That is how far the resident memory of the process rose above what it was: by the session, its weights, and the
        runs, outputs included. Inputs are there before. None where the runtime's memory is not, or not only, in the
        process (see `host_memory`), or the system does not tell.
        """
        return None

    def warnings(self) -> tuple[str, ...]:
        """Return what the runtime said that makes timings doubtful, each once."""

    def close(self) -> None:
        """End it; a second call does nothing."""


class TimedBackend(Backend):
    """A runtime that forms are timed on: the base of a frozen dataclass whose fields are its settings.

    What most runtimes have in common is here. A setting is part of the report and of what the cache knows timings by.

    `rank`: its place in the order in which `auto` asks; the highest that is ready is taken, none below 0. `doubts`: the
    regular expression of log lines that make timings doubtful. `layout_ranks`: the numbers of spatial axes of the Convs
    that it runs in a layout of its own, not in N, C, extents. `dilation_costs`: whether it runs a dilated kernel slower
    than an undilated one of its size (docs/performance.md), so that phases may gain time. `source`, `unit`: where its
    times come from, and what they count. `forms`: forms with settings, as `--strategy` takes them, that are tried on it
    in place of the usual ones. `layout`: how the others make phases there (LAYOUTS of forms/strategies). `pace`: how
    long it is timed at least. `tells_layers`: whether `profile` is of an engine's layers, to be compared with those of
    another engine. `host_memory`: all that its sessions hold is memory of their process, and is freed with them.
    `trial`: the backend that looks for inputs that a model runs on; `None`: this one. `portable`: its benches may stand
    on another machine than this one. `needs`: what its benches import besides the runtime and NumPy. `compares`:
    outputs are compared there. `tells_late`: its first answer says what `source`, `unit`, `versions()` and `device()`
    are, so in each run it is asked first for a time of the original.
    """

    __slots__ = ()

    rank: ClassVar[int] = -100
    doubts: ClassVar[str] = ""
    layout_ranks: ClassVar[frozenset[int]] = frozenset()
    dilation_costs: ClassVar[bool] = True
    source: ClassVar[TimeKind] = TimeKind.MEASURED
    unit: ClassVar[TimeUnit] = TimeUnit.SECONDS
    forms: ClassVar[tuple[str, ...]] = ()
    layout: ClassVar[str] = "depth"
    pace: ClassVar[Pace] = Pace()
    tells_layers: ClassVar[bool] = False
    host_memory: ClassVar[bool] = False
    trial: ClassVar[str | None] = "onnxruntime_cpu"
    compares: ClassVar[bool] = True
    tells_late: ClassVar[bool] = False
    portable: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ("onnx",)

    def device(self) -> str:
        """Return the device that it runs on, in words: unless told otherwise, the processor and the cores to use."""
        count = machine.cores()
        return f"{machine.processor()}, {count} core{'s' if count > 1 else ''}"

    def state(self) -> dict[str, float]:
        """Return the device's clocks, power and temperature as they are now; empty where nothing tells them."""
        return {}

    def settings(self, options: Options) -> dict[str, str]:
        """Return the settings that timings depend on, as they are set, by the runtime's own names."""
        return {"threads": "default" if options.threads is None else str(options.threads)}

    def rounds_to(self, options: Options) -> str:  # noqa: ARG002 - a runtime may be told
        """Return the element type in which it may compute float32: outputs are held to its tolerance."""
        return "float32"

    def building(self, precision: str | None) -> TimedBackend:  # noqa: ARG002 - a runtime may build engines
        """Return it as it builds engines of a precision (`None`: the model's own); unless told otherwise, itself."""
        return self

    def refuses(self, geometry: ConvGeometry) -> str | None:  # noqa: ARG002 - a runtime may refuse some
        """Return why it does not run a Conv as it is, to be made explicit before; None when it does."""
        return None

    def prepare(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:  # noqa: ARG002
        """Return what a bench runs in place of a model on inputs of these shapes. Raises CannotLoad."""
        return artifact(model)

    def session(self, runnable: Runnable, options: Options) -> Session:
        """Load a model, in a child process when `options.isolated`. Raises CannotLoad, Crashed and TimedOut."""
        if not options.isolated:
            return self.loaded(runnable, options)
        from dilrewrite.runtimes._worker import IsolatedSession

        return IsolatedSession(self, runnable, options)

    def loaded(self, runnable: Runnable, options: Options) -> Session:
        """Load a model in this process. Raises CannotLoad."""
        raise NotImplementedError

    def bench(self, options: Options) -> Bench:
        """Return where it is timed: unless told otherwise, a process of this host that may crash."""
        from dilrewrite.runtimes._worker import IsolatedBench

        return IsolatedBench(self, options)

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Load a model in this process and bind its inputs. Raises CannotLoad and CannotRun."""
        raise NotImplementedError

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run a model in this process, once to warm up and then `runs` times (0: the profile is of that one run).

        Raises CannotLoad and CannotRun.
        """
        raise NotImplementedError


def prepared(backend: TimedBackend, runnable: Runnable, feeds: Mapping[str, Array]) -> Artifact:
    """Return what a bench of the backend runs in place of a model on these inputs. Raises CannotLoad."""
    return backend.prepare(runnable, {name: tuple(getattr(value, "shape", ())) for name, value in feeds.items()})


def profiled(
    backend: TimedBackend, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int
) -> Profile:
    """Return the profile of a model on a bench of its own. Raises what a `Bench` does."""
    with closing(backend.bench(options)) as bench:
        bench.add("model", prepared(backend, runnable, feeds), feeds)
        return bench.profile("model", runs)


def backends() -> dict[str, Backend]:
    """Return every backend by its name, ready or not."""
    return cast(
        "dict[str, Backend]",
        discover(sys.modules[__name__], "BACKEND", "dilrewrite.runtimes", ("name", "missing", "session")),
    )


def backend(name: str) -> Backend:
    """Return a backend that is ready.

    Raises UsageError when there is none of that name or its packages are in each other's way, MissingError when it is
    not installed.
    """
    known = backends()
    if name not in known:
        raise UsageError(f"there is no backend {name!r}", hint=choices(name, known, "known are"))
    _check(known[name])
    return known[name]


def _check(found: Backend) -> None:
    for error, why in ((UsageError, found.conflict), (MissingError, found.missing)):
        if (text := why()) is not None:
            raise error(f"backend {found.name}: {text}")


def timed_backends() -> dict[str, TimedBackend]:
    """Return the backends that forms are timed on, the one that `auto` prefers first."""
    timed = {name: found for name, found in backends().items() if isinstance(found, TimedBackend)}
    return dict(sorted(timed.items(), key=lambda item: -item[1].rank))


def timed_backend(text: str) -> TimedBackend:
    """Return a ready backend to time on, `NAME[:key=value,...]`; `auto` is the best that is ready.

    Raises UsageError for one that is unknown or times nothing, MissingError when it, or for `auto` none, is ready.
    """
    known = timed_backends()
    given = text.partition(":")[0]
    name = settings.named(given, backends()) or given
    if name == "auto":
        if text != name:
            raise UsageError(f"--backend {text}: auto takes no settings", hint=f"name one of {', '.join(known)}")
        for found in known.values():
            if found.rank >= 0:
                text = name = found.name
                if found.missing() is None:
                    return found
    if name in known:  # what is wrong with a setting is told where the runtime is not installed, too
        chosen = settings.parse(text, known, "--backend", f"--backend {text}: no backend")[1]
        _check(chosen)  # with its settings, which may name a place
        return chosen
    if name not in backends():
        raise UsageError(f"--backend {text}: no backend {given!r}", hint=choices(given, backends(), "known are"))
    backend(name)
    raise UsageError(f"backend {name} times nothing", hint=f"choose one of auto, {', '.join(known)}")


def spelled(backend: TimedBackend) -> str:
    """Return what `timed_backend` makes this one of: its name, and the settings that are not the default ones."""
    return settings.spelled(backend.name, backend, timed_backends().get(backend.name, backend))
