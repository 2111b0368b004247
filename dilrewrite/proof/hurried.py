"""A slow runtime on a clock: what all its sessions together may take."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from dilrewrite.runtimes import Array, Backend, Options, Runnable, Session, TimedOut, backends

T = TypeVar("T")

FALLBACK_S = 20.0
"""How long the runs on the fallback may take together; it is slow."""


class OutOfTime(TimedOut):
    """The runs on the fallback took too long together."""


class Hurried:
    """A slow backend whose sessions share one clock; each is a process of its own, which can be stopped."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.name = backend, backend.name
        self.limit_s, self.spent_s = FALLBACK_S, 0.0

    def timed(self, call: Callable[[], T]) -> T:
        """Make a call. Raises `OutOfTime` when the time is over, before it or in it."""
        problem = f"runs take more than {self.limit_s:g} s"
        if self.spent_s >= self.limit_s:
            raise OutOfTime(problem)
        start = time.monotonic()
        try:
            return call()
        except TimedOut as error:
            raise OutOfTime(problem) from error
        finally:
            self.spent_s += time.monotonic() - start

    def session(self, runnable: Runnable, options: Options) -> Session:
        """Load a model."""
        from dilrewrite.runtimes._worker import IsolatedSession

        options = replace(options, timeout_s=max(self.limit_s - self.spent_s, 1.0))
        known = backends().get(self.name) is self.backend  # one that a child can be given
        load = functools.partial(IsolatedSession, self.backend) if known else self.backend.session
        return HurriedSession(self.timed(lambda: load(runnable, options)), self)


class HurriedSession(Session):
    """A session on the clock of its backend."""

    def __init__(self, session: Session, backend: Hurried) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.session, self.backend = session, backend

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the named outputs (None: all)."""
        return self.backend.timed(lambda: self.session.run(feeds, outputs))

    def peak_bytes(self) -> int | None:
        """Return what the session tells."""
        return self.session.peak_bytes()

    def close(self) -> None:
        """End the session."""
        self.session.close()
