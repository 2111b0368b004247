"""A slow runtime on a clock: what all its sessions together may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from dilrewrite.runtimes import Array, Backend, Options, Runnable, Session, TimedOut, backends

T = TypeVar("T")

FALLBACK_S = 20.0
"""How long the runs on the fallback may take together; it is slow."""


class OutOfTime(TimedOut):
    """The runs on the fallback took too long together."""


@dataclass(slots=True)
class _Clock:
    """How long calls took together, of `limit_s` that they may."""

    limit_s: float
    spent_s: float = 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        """Make a call. Raises `OutOfTime` when the time is over, before it or in it."""
        if self.spent_s >= self.limit_s:
            raise OutOfTime(self.reason())
        start = time.monotonic()
        try:
            return call()
        except TimedOut as error:
            raise OutOfTime(self.reason()) from error
        finally:
            self.spent_s += time.monotonic() - start

    def reason(self) -> str:
        """Say why no more is run."""
        return f"runs take more than {self.limit_s:g} s"


class Hurried:
    """A slow backend whose sessions share one clock; each is a process of its own, which can be stopped."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.clock = _Clock(FALLBACK_S)
        self.backend = backend

    def session(self, runnable: Runnable, options: Options) -> Session:
        """Load a model."""
        options = replace(options, timeout_s=max(self.clock.limit_s - self.clock.spent_s, 1.0))

        def load() -> Session:
            from dilrewrite.runtimes._worker import IsolatedSession

            if backends().get(self.name) is self.backend:  # one that a child can be given
                return IsolatedSession(self.backend, runnable, options)
            return self.backend.session(runnable, options)

        return HurriedSession(self.clock(load), self.clock)


class HurriedSession(Session):
    """A session on a clock."""

    def __init__(self, session: Session, clock: _Clock) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.session, self.clock = session, clock

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the named outputs (None: all)."""
        return self.clock(lambda: self.session.run(feeds, outputs))

    def peak_bytes(self) -> int | None:
        """Return what the session tells."""
        return self.session.peak_bytes()

    def close(self) -> None:
        """End the session."""
        self.session.close()
