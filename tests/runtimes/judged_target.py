"""What `optimize --target ... --backend ethos_u` asks Vela, and what it answered: cycles, and what is on the CPU.

`scripts/record_judges.py ethos_u_target` asks it anew.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx
import pytest

import dilrewrite
from dilrewrite.judges import Judge
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import _vela as vela
from dilrewrite.runtimes import ethos_u
from dilrewrite.tflite import convert
from tests.runtimes import judged

RECORDED = Path(__file__).parent / "judges" / "ethos_u_target.json"
TARGET, BACKEND, DILATIONS = "ethos-u-vela-5.2", "ethos_u:accelerator=ethos-u55-128", (5, 12, 24, 31)
Ask = Callable[[Judge, bytes, str, float], vela.Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """An answer in short: `hosted` are the operators on the CPU. `asked_for`: the dilation of the Conv."""

    asked_for: int
    cycles: float
    hosted: tuple[str, ...]
    command: str
    version: str
    digest: str

    def answer(self) -> vela.Answer:
        """As an answer whose other operators are left out."""
        hosted = tuple(vela.Placed(name="", operator=one, target="CPU", cycles=0.0) for one in self.hosted)
        return vela.Answer(
            cycles=self.cycles, clock_hz=1.0, memory_bytes=0, operators=hosted, command=self.command,
            version=self.version, digest=self.digest,
        )  # fmt: skip


def brief(answer: vela.Answer, d: int) -> Brief:
    """Leave out what runs on the NPU."""
    return Brief(
        asked_for=d, cycles=answer.cycles, hosted=answer.hosted, command=answer.command, version=answer.version,
        digest=answer.digest,
    )  # fmt: skip


@functools.cache
def recorded() -> dict[str, Brief]:
    """What Vela answered, by the digest of the model."""
    rows = json.loads(RECORDED.read_text(encoding="utf-8"))
    return {row["digest"]: Brief(**{**row, "hosted": tuple(row["hosted"])}) for row in rows}


def replayed(judge: Judge, model: bytes, accelerator: str, timeout_s: float) -> vela.Answer:
    """In the place of Vela: what it answered."""
    assert (accelerator, timeout_s > 0) == ("ethos-u55-128", True)
    known = recorded().get(vela.digest(model))
    assert known is not None, "Vela was not asked about this form: scripts/record_judges.py ethos_u_target asks it anew"
    assert known.version == judge.version
    return known.answer()


@contextlib.contextmanager
def asking(ask: Ask) -> Iterator[None]:
    """Let `ask` answer, about files whose names hold nothing of the nodes' names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vela, "ask", ask)
        patch.setattr(convert, "tflite", judged.tflite)
        patch.setattr(Judge, "missing", lambda _: None)
        ethos_u._asked.cache_clear()
        yield
    ethos_u._asked.cache_clear()


def optimized(d: int, folder: Path, ask: Ask) -> tuple[Report, vela.Answer, vela.Answer]:
    """A dense 3x3 Conv of 32 channels on 64x64 for its target: the report, and what is said of it before and after."""
    before, after = folder / "before.onnx", folder / "after.onnx"
    onnx.save(judged.dilated(d, channels=32, size=64), before)
    with asking(ask):
        report = dilrewrite.optimize(
            before, after, target=TARGET, backend=BACKEND, budget=600, no_cache=True, force=True
        )
        said = [
            ask(ethos_u.COMPILERS["5.2.0"], judged.tflite(onnx.load(path)), "ethos-u55-128", 60.0)
            for path in (before, after)
        ]
    return report, *said


def answers(folder: Path) -> Iterator[dict[str, object]]:
    """Ask Vela all that is asked on the way."""
    said: dict[str, Brief] = {}
    for d in DILATIONS:

        def ask(judge: Judge, model: bytes, accelerator: str, timeout_s: float, d: int = d) -> vela.Answer:
            answer = real(judge, model, accelerator, timeout_s)
            said.setdefault(answer.digest, brief(answer, d))
            return answer

        optimized(d, folder, ask)
    yield from map(asdict, said.values())


real = vela.ask
