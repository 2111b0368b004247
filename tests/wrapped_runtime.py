"""A runtime for tests: another one on a made-up clock that likes every form, some of which it computes wrongly."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, final

import pytest
from onnx import ModelProto, helper

from dilrewrite import runtimes
from dilrewrite.runtimes import (
    Array,
    Artifact,
    CannotLoad,
    Options,
    Profile,
    Runnable,
    Runner,
    TimedBackend,
    TimeKind,
    contained,
    timed_backend,
)
from tests.plug_ins import forget
from tests.test_discover import installed

if TYPE_CHECKING:
    from dilrewrite.forms.geometry import ConvGeometry


@final
@dataclass(frozen=True, slots=True)
class Wrapped(TimedBackend):
    """The runtime `of`, whose models take 1 ms with dilation and 0.5 ms without.

    `wrong`: models with a node whose name has this word in it take 0.4 ms, and twice as large values come out of them;
    "dilated" ones, or "all", in their own time. `fails`: no model loads, for "sizes", or a "crash" ends the process.
    """

    name: ClassVar = "wrapped"
    source: ClassVar = TimeKind.ESTIMATED

    of: str = "onnxruntime_cpu"
    wrong: str = "nothing"
    fails: str = ""

    @property
    def inner(self) -> TimedBackend:
        return timed_backend(self.of)

    def missing(self) -> str | None:
        return self.inner.missing()

    def versions(self) -> dict[str, str]:
        return self.inner.versions()

    def settings(self, options: Options) -> dict[str, str]:
        return self.inner.settings(options)

    def refuses(self, geometry: ConvGeometry) -> str | None:
        return self.inner.refuses(geometry)

    def prepare(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:
        return self.inner.prepare(model, shapes)

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        self._fail()
        return self.inner.profile(runnable, options, feeds, runs)

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        self._fail()
        return _Runner(self, contained(runnable), self.inner.runner(runnable, options, feeds))

    def _fail(self) -> None:
        if self.fails == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if self.fails == "sizes":
            raise CannotLoad("it takes no more than 2 channels")


class _Runner:
    first_s: float | None = None

    def __init__(self, backend: Wrapped, proto: ModelProto, inner: Runner) -> None:
        self._inner = inner
        dilated = any(
            attribute.name == "dilations" and max(helper.get_attribute_value(attribute)) > 1
            for node in proto.graph.node
            for attribute in node.attribute
        )
        named = any(backend.wrong in node.name for node in proto.graph.node)
        self._seconds = 1e-3 if dilated else 0.4e-3 if named else 0.5e-3
        self._times = 2 if named or backend.wrong == "all" or (dilated and backend.wrong == "dilated") else 1

    def run(self) -> float:
        return self._seconds

    def outputs(self) -> dict[str, Array]:
        return {name: self._times * value for name, value in self._inner.outputs().items()}

    def close(self) -> None:
        self._inner.close()


BACKEND: TimedBackend = Wrapped()


@contextmanager
def plugged(place: Path) -> Iterator[None]:
    """Have it installed in a new folder, as `wrapped`."""
    place.mkdir()
    installed(place, "wrapped-runtime", "dilrewrite.runtimes", {BACKEND.name: f"{__name__}:BACKEND"})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        forget(runtimes)
        yield
    forget(runtimes)
