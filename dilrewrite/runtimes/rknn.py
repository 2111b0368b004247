"""Rockchip's NPUs, as RKNN-Toolkit2 estimates them: cycles, and no operator moved to the CPU. Nothing is run."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from dilrewrite.judges import Judge, versions
from dilrewrite.runtimes import (
    Artifact,
    Bench,
    NodeRun,
    Options,
    Profile,
    Runnable,
    TimedBackend,
    TimeKind,
    TimeUnit,
    artifact,
    fixed,
)
from dilrewrite.runtimes import _rknn as kit
from dilrewrite.runtimes._answers import Answers

TOOLKITS = versions("rknn-toolkit2")

CYCLES = 1e9
"""A time of this runtime is cycles divided by this: where times are shown in milliseconds, it is millions of cycles."""

TIMEOUT_S = 300.0


@final
@dataclass(frozen=True, slots=True)
class Rknn(TimedBackend):
    """A Rockchip NPU by the estimate of RKNN-Toolkit2.

    `platform`: the chip, as the toolkit names it. `dtype`: what float models become: `fp16`, or `int8`, quantised on
    random inputs, which is good for cycles only. `toolkit`: its version.
    """

    name: ClassVar = "rknn"
    source: ClassVar = TimeKind.ESTIMATED
    unit: ClassVar = TimeUnit.CYCLES
    compares: ClassVar = False

    platform: str = "rk3588"
    dtype: str = "fp16"
    toolkit: str = "2.5.0"

    def __post_init__(self) -> None:
        for name, known in (("platform", kit.CYCLES_PER_KB), ("dtype", ("fp16", "int8")), ("toolkit", TOOLKITS)):
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{name}={given} is not one of {', '.join(known)}")

    @property
    def judge(self) -> Judge:
        """Return the toolkit that is asked."""
        return TOOLKITS[self.toolkit]

    def missing(self) -> str | None:
        """Return None when the toolkit's environment is there."""
        return self.judge.missing()

    def versions(self) -> dict[str, str]:
        """Return the version of the toolkit."""
        return {self.judge.package: self.judge.version}

    def device(self) -> str:
        """Return the chip."""
        return f"Rockchip {self.platform.upper()}, not run: RKNN-Toolkit2's estimate"

    def settings(self, options: Options) -> dict[str, str]:  # noqa: ARG002 - no thread runs
        """Return what the estimate depends on."""
        becomes = {"fp16": "float16", "int8": "quantised to int8 on random inputs"}[self.dtype]
        rate = kit.CYCLES_PER_KB[self.platform]
        return {"platform": self.platform, "float models": becomes, "cycles for a KB without cycles": f"{rate:g}"}

    def prepare(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:
        """Return what the toolkit says of the model."""
        known = artifact(model).digest, tuple(sorted(shapes.items()))
        return _asked(self, known, _Asked(model, shapes))

    def bench(self, options: Options) -> Bench:  # noqa: ARG002 - nothing is run
        """Return what gives the toolkit's answers for times."""
        return _Answers(kit.CYCLES_PER_KB[self.platform])


class _Asked:
    """A model and its shapes, left out of the comparison of what was asked before."""

    def __init__(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model, self.shapes = model, shapes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked)

    def __hash__(self) -> int:
        return 0

    def onnx(self, dtype: str) -> bytes:
        """Return the model as it is compiled. Raises CannotLoad."""
        proto = fixed(self.model, self.shapes)
        if dtype == "int8":
            from dilrewrite.tflite import quantize

            proto = proto if quantize.is_quantised(proto) else quantize.quantised(proto)
        return kit.readable(proto)


@functools.lru_cache(maxsize=256)
def _asked(backend: Rknn, known: object, asked: _Asked) -> Artifact:  # noqa: ARG001 - the key
    """Return what the toolkit says of a model that it was not asked about yet. Raises CannotLoad, Crashed, TimedOut."""
    answer = kit.ask(backend.judge, asked.onnx(backend.dtype), backend.platform, TIMEOUT_S)
    return artifact(Runnable(model=answer.text().encode(), engine=True))


@final
class _Answers(Answers[kit.Answer]):
    """The toolkit's answers for models, by key.

    An operator without cycles counts what it moves, at the rate at which the toolkit counts that for a Conv.
    """

    def __init__(self, cycles_per_kb: float) -> None:
        self._rate = cycles_per_kb
        super().__init__("RKNN-Toolkit2", kit.Answer.read)

    def run(self, order: Sequence[str]) -> list[float]:
        return [sum(self._cycles(one) for one in self._held[key].operators) / CYCLES for key in order]

    def _cycles(self, one: kit.Placed) -> float:
        return one.cycles or (one.moved_kb * self._rate if one.target == kit.NPU else 0.0)

    def profile(self, key: str, runs: int) -> Profile:  # noqa: ARG002 - each would be the same
        return Profile(seconds=(self.run([key])[0],), nodes=tuple(self._nodes(key)))

    def _nodes(self, key: str) -> Iterator[NodeRun]:
        """Yield the operators; the toolkit calls them after nodes of ONNX, with more behind it."""
        for one in self._held[key].operators:
            yield NodeRun(name=one.name, op=one.operator, seconds=self._cycles(one) / CYCLES, provider=one.target)

    def objection(self, original: str, other: str) -> str | None:
        before, after = self._held[original], self._held[other]
        added = Counter(after.hosted) - Counter(before.hosted)
        listed = ", ".join(f"{count} {name}" for name, count in sorted(added.items()))
        if added:
            return f"RKNN-Toolkit2 moves operators to the CPU, which has no cycles in its estimate: {listed}"
        doubts = [one for one in after.doubts if one not in before.doubts]
        return f"RKNN-Toolkit2 reports an error, and goes on: {doubts[0]}" if doubts else None

    def peak_bytes(self, key: str) -> int | None:
        return round(self._held[key].memory_kb * 1024)

    def warnings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(text for one in self._held.values() for text in one.doubts))


BACKEND: TimedBackend = Rknn()
