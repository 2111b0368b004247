"""Asks Vela, Arm's compiler for Ethos-U, what it makes of a TFLite model: the only file that reads its tables."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dilrewrite.judges import Judge
from dilrewrite.runtimes import CannotLoad, TimedOut

NPU = "NPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An operator as Vela has it: the name of what it makes, where it runs, and its cycles (0 on the CPU)."""

    name: str
    operator: str
    target: str
    cycles: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What Vela says of a model, by its own estimate.

    `cycles`: of one run, of what runs on the NPU. `clock_hz`: of the accelerator. `memory_bytes`: the most that tensors
    take at a time. `operators`: in their order. `command`, `version`, `digest`: what was asked, of whom, of what.
    """

    cycles: float
    clock_hz: float
    memory_bytes: int
    operators: tuple[Placed, ...]
    command: str
    version: str
    digest: str

    @property
    def hosted(self) -> tuple[str, ...]:
        """Return the operators that run on the CPU, which has no cycles."""
        return tuple(one.operator for one in self.operators if one.target != NPU)

    def text(self) -> str:
        """Return it as it is kept."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str | bytes) -> Answer:
        """Return what `text` keeps."""
        plain: dict[str, Any] = json.loads(text)
        operators = tuple(Placed(**one) for one in plain.pop("operators"))
        return cls(**plain, operators=operators)


def options(accelerator: str, version: str) -> list[str]:
    """Return what Vela is called with, besides its files. What is on the CPU is not in the tables of version 3."""
    told = ["--show-cpu-operations"] if version.startswith("3.") else []
    return ["--accelerator-config", accelerator, "--verbose-performance", *told]


def digest(model: bytes) -> str:
    """Return what names a TFLite model."""
    return hashlib.sha256(model).hexdigest()


def ask(judge: Judge, model: bytes, accelerator: str, timeout_s: float) -> Answer:
    """Return what Vela says of a TFLite model. Raises CannotLoad with its words where it does not compile."""
    with tempfile.TemporaryDirectory(prefix="dilrewrite-") as folder:
        place = Path(folder)
        (place / "model.tflite").write_bytes(model)
        asked = ["model.tflite", *options(accelerator, judge.version)]
        call = [str(judge.python), "-m", "ethosu.vela", *asked, "--output-dir", "out"]
        try:
            done = subprocess.run(call, cwd=place, capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise TimedOut(f"Vela has no answer within {timeout_s:g} s") from error
        except OSError as error:
            raise CannotLoad(f"Vela cannot be started: {error}") from error
        summaries, layers = (list((place / "out").glob(f"*{part}*.csv")) for part in ("_summary_", "_per-layer"))
        if done.returncode or len(summaries) != 1 or len(layers) != 1:
            raise CannotLoad(f"Vela does not compile it: {_words(done.stdout + done.stderr)}")
        (summary,) = _rows(summaries[0])
        operators = (*map(_placed, _rows(layers[0])), *_on_the_cpu(done.stdout))
        return told(summary, operators, " ".join(["vela", *asked]), judge.version, digest(model))


def _placed(row: Mapping[str, str]) -> Placed:
    """Return an operator as a row of the table of layers says; in version 3 all of them are on the NPU."""
    operator = row["Original Operator"] if "Original Operator" in row else row["TFLite_operator"]
    return Placed(name=row["Name"], operator=operator, target=row.get("Target", NPU), cycles=float(row["Op Cycles"]))


def _on_the_cpu(said: str) -> Iterator[Placed]:
    """Yield the operators that version 3 lists as on the CPU; later ones say so in the table of layers."""
    for operator, name in re.findall(r"^ +CPU: (\w+) = (.+) \(inputs ", said, re.MULTILINE):
        yield Placed(name=name, operator=operator, target="CPU", cycles=0.0)


def told(summary: Mapping[str, str], operators: tuple[Placed, ...], command: str, version: str, of: str) -> Answer:
    """Return what the row of Vela's summary says, with what it says of operators."""
    memory = sum(float(summary[f"{area}_memory_used"]) for area in ("sram", "dram"))
    return Answer(
        cycles=float(summary["cycles_total"]),
        clock_hz=float(summary["core_clock"]),
        memory_bytes=round(memory * 1024),
        operators=operators,
        command=command,
        version=version,
        digest=of,
    )


def _rows(path: Path) -> Sequence[Mapping[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return [row for row in rows if [*row] != [*row.values()]]  # version 3 has the head once more for each part


def _words(text: str) -> str:
    """Return the line in which Vela says why, in short."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip() and not line.startswith("Warning")]
    said = next((line for line in lines if "rror" in line), lines[-1] if lines else "no word")
    return said[:300]
