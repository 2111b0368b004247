"""Arm Ethos-U, as its compiler Vela estimates it: cycles, and no operator moved to the CPU. Nothing is run."""

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
from dilrewrite.runtimes import _vela as vela
from dilrewrite.runtimes._answers import Answers

COMPILERS = versions("ethos-u-vela")

ACCELERATORS = tuple(
    f"ethos-u{kind}-{macs}"
    for kind, sizes in (("55", (32, 64, 128, 256)), ("65", (256, 512)), ("85", (128, 256, 512, 1024, 2048)))
    for macs in sizes
)
"""Vela's `--accelerator-config`."""

UNTIL_3 = tuple(one for one in ACCELERATORS if "u85" not in one)
"""Those that Vela 3 knows."""

CYCLES = 1e9
"""A time of this runtime is cycles divided by this: where times are shown in milliseconds, it is millions of cycles."""

TIMEOUT_S = 600.0


@final
@dataclass(frozen=True, slots=True)
class EthosU(TimedBackend):
    """An Ethos-U of Arm by the estimate of Vela, which takes TFLite models of int8.

    `accelerator`: which one, as Vela names it. `compiler`: Vela's version. Float models are quantised on random inputs:
    good for cycles only.
    """

    name: ClassVar = "ethos_u"
    portable: ClassVar = False
    source: ClassVar = TimeKind.ESTIMATED
    unit: ClassVar = TimeUnit.CYCLES
    compares: ClassVar = False
    forms: ClassVar = (
        "phases_apart:max_dilation=2,limit_phases=256",
        "phases_apart:limit_phases=256",
        "space_to_group:max_dilation=2,layout=reshape",
        "space_to_group:layout=reshape",
        "slice_to_batch:max_dilation=2",
        "slice_to_batch",
        "space_to_batch:max_dilation=2,layout=reshape",
        "space_to_batch:layout=reshape",
    )  # d=2 costs the NPU nothing; SpaceToDepth would go to the CPU

    accelerator: str = "ethos-u55-128"
    compiler: str = "5.2.0"

    def __post_init__(self) -> None:
        accelerators = UNTIL_3 if self.compiler.startswith("3.") else ACCELERATORS
        for name, known in (("compiler", tuple(COMPILERS)), ("accelerator", accelerators)):
            if (given := getattr(self, name)) not in known:
                raise ValueError(f"{name}={given} is not one of {', '.join(known)}")

    @property
    def judge(self) -> Judge:
        """Return the compiler that is asked."""
        return COMPILERS[self.compiler]

    def missing(self) -> str | None:
        """Return None when Vela's environment is there."""
        return self.judge.missing()

    def versions(self) -> dict[str, str]:
        """Return the version of Vela."""
        return {self.judge.package: self.judge.version}

    def device(self) -> str:
        """Return the accelerator."""
        return f"Arm {self.accelerator.replace('ethos-u', 'Ethos-U')}, not run: Vela's estimate"

    def settings(self, options: Options) -> dict[str, str]:  # noqa: ARG002 - no thread runs
        """Return what the estimate depends on."""
        return {"accelerator": self.accelerator, "float models": "quantised to int8 on random inputs"}

    def prepare(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:
        """Return what Vela says of the model as TFLite."""
        known = artifact(model).digest, tuple(sorted(shapes.items()))
        return _asked(self, known, _Asked(model, shapes))

    def bench(self, options: Options) -> Bench:  # noqa: ARG002 - nothing is run
        """Return what gives Vela's answers for times."""
        return _Answers()


class _Asked:
    """A model and its shapes, left out of the comparison of what was asked before."""

    def __init__(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.model, self.shapes = model, shapes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Asked)

    def __hash__(self) -> int:
        return 0

    def tflite(self) -> bytes:
        """Return the model as TFLite. Raises CannotLoad."""
        from dilrewrite.tflite import convert, quantize

        proto = fixed(self.model, self.shapes)
        proto = quantize.folded(proto, quantize.inputs(proto))
        return convert.tflite(proto if quantize.is_quantised(proto) else quantize.quantised(proto))


@functools.lru_cache(maxsize=256)
def _asked(backend: EthosU, known: object, asked: _Asked) -> Artifact:  # noqa: ARG001 - the key
    """Return what Vela says of a model that it was not asked about yet. Raises CannotLoad and TimedOut."""
    answer = vela.ask(backend.judge, asked.tflite(), backend.accelerator, TIMEOUT_S)
    return artifact(Runnable(model=answer.text().encode(), engine=True))


@final
class _Answers(Answers[vela.Answer]):
    """Vela's answers for models, by key."""

    def __init__(self) -> None:
        super().__init__("Vela", vela.Answer.read)

    def run(self, order: Sequence[str]) -> list[float]:
        return [self._held[key].cycles / CYCLES for key in order]

    def profile(self, key: str, runs: int) -> Profile:  # noqa: ARG002 - each would be the same
        return Profile(seconds=(self._held[key].cycles / CYCLES,), nodes=tuple(self._nodes(key)))

    def _nodes(self, key: str) -> Iterator[NodeRun]:
        """Yield the operators; tensors are called after the nodes of ONNX that make them."""
        for one in self._held[key].operators:
            yield NodeRun(name=one.name, op=one.operator, seconds=one.cycles / CYCLES, provider=one.target)

    def objection(self, original: str, other: str) -> str | None:
        added = Counter(self._held[other].hosted) - Counter(self._held[original].hosted)
        listed = ", ".join(f"{count} {name}" for name, count in sorted(added.items()))
        return f"Vela moves operators to the CPU, which has no cycles in its estimate: {listed}" if added else None

    def peak_bytes(self, key: str) -> int | None:
        return self._held[key].memory_bytes


BACKEND: TimedBackend = EthosU()
