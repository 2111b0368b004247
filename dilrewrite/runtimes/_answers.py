"""Answers of a vendor's compiler, kept by key in place of models: what the benches of runtimes that estimate share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from dilrewrite.runtimes import Array, Artifact, Bench, CannotRun, Opened

A = TypeVar("A")


class Answers(Bench, Generic[A]):
    """A bench that runs nothing. `who` answers; `read` makes an answer of the bytes of an artifact."""

    def __init__(self, who: str, read: Callable[[bytes], A]) -> None:
        self._who, self._read = who, read
        self._held: dict[str, A] = {}

    def add(self, key: str, artifact: Artifact, feeds: Mapping[str, Array]) -> None:  # noqa: ARG002 - nothing is fed
        self._held[key] = self._read(artifact.content()[0])

    def drop(self, key: str) -> None:
        self._held.pop(key, None)

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:  # noqa: ARG002
        return [Opened(run_s=seconds) for seconds in self.run(keys)]

    def shut(self) -> None:
        """Nothing is loaded."""

    def outputs(self, key: str) -> dict[str, Array]:
        raise CannotRun(f"{self._who} estimates {key}, and runs nothing")

    def warnings(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        self._held.clear()
