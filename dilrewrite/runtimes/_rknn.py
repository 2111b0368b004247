"""Asks RKNN-Toolkit2, Rockchip's compiler, what it makes of a model: the only file that reads its tables."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import re
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from onnx import ModelProto

from dilrewrite.errors import one_line
from dilrewrite.judges import Judge
from dilrewrite.runtimes import CannotLoad, Crashed, TimedOut

NPU = "NPU"
ENDS = ("InputOperator", "OutputOperator")
"""Rows of the table that are no operators, but the model's inputs and outputs."""

CYCLES_PER_KB = {
    "rk3588": 43.29,
    **dict.fromkeys(("rk3566", "rk3568"), 155.83),
    **dict.fromkeys(("rk3562", "rk3576", "rv1126b", "rk2118", "rv1103b", "rv1106b"), 137.17),
    **dict.fromkeys(("rv1103", "rv1106"), 166.32),
}
"""Platforms, and how many cycles the toolkit counts for a KB that a Conv reads or writes there."""

NEWEST_OPSET, NEWEST_IR = 19, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """An operator as the toolkit has it: its own name for it, where it runs, its cycles, and the KB that it moves.

    `cycles`: 0 on the CPU, and of operators that only move or add elements; `memory_cycles`: those that it counts for
    the memory alone.
    """

    name: str
    operator: str
    target: str
    cycles: int
    memory_cycles: int
    moved_kb: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the toolkit says of a model, by its own estimate.

    `operators`: in their order. `memory_kb`: of tensors and of weights. `doubts`: errors that it reports and goes on.
    `command`, `version`, `digest`: what was asked, of whom, of what.
    """

    operators: tuple[Placed, ...]
    memory_kb: float
    command: str
    version: str
    digest: str
    doubts: tuple[str, ...] = ()

    @property
    def cycles(self) -> int:
        """Return the cycles that the toolkit counts."""
        return sum(one.cycles for one in self.operators)

    @property
    def uncounted_kb(self) -> float:
        """Return the KB that operators of the NPU move for which it counts no cycles."""
        return sum(one.moved_kb for one in self.operators if not one.cycles and one.target == NPU)

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
        operators, doubts = tuple(Placed(**one) for one in plain.pop("operators")), tuple(plain.pop("doubts"))
        return cls(**plain, operators=operators, doubts=doubts)


def command(platform: str) -> str:
    """Return what the toolkit is called with, in its own words."""
    return (
        f'RKNN(verbose=True): config(target_platform="{platform}"), load_onnx("model.onnx"), '
        "build(do_quantization=False)"
    )


def digest(model: bytes) -> str:
    """Return what names a model."""
    return hashlib.sha256(model).hexdigest()


def readable(proto: ModelProto) -> bytes:
    """Return a model as the toolkit reads it: of an opset and an IR that are not too new. Raises CannotLoad."""
    from onnx import version_converter

    newest = max((one.version for one in proto.opset_import if not one.domain), default=0)
    if newest > NEWEST_OPSET:
        try:
            proto = version_converter.convert_version(proto, NEWEST_OPSET)
        except (RuntimeError, ValueError) as error:  # a node that the older opset does not have
            raise CannotLoad(f"it takes opset {NEWEST_OPSET}, this model has {newest}: {one_line(error)}") from error
    copy = ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = min(copy.ir_version, NEWEST_IR)
    return bytes(copy.SerializeToString(deterministic=True))


def ask(judge: Judge, model: bytes, platform: str, timeout_s: float) -> Answer:
    """Return what the toolkit says of an ONNX model, in a process of its own.

    Raises CannotLoad with its words where it does not compile, Crashed and TimedOut.
    """
    with tempfile.TemporaryDirectory(prefix="dilrewrite-") as folder:
        (Path(folder) / "model.onnx").write_bytes(model)
        code = _compiler(judge.python).code(platform, folder, timeout_s)
        file = Path(folder) / "said.txt"
        said = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    lines = list(map(_plain, said.splitlines()))
    if code < 0:
        raise Crashed(f"RKNN-Toolkit2 ended with {signal.Signals(-code).name}")
    operators = tuple(_operators(lines))
    if code or not operators:
        raise CannotLoad(f"RKNN-Toolkit2 does not compile it: {_words(lines)}")
    return told(lines, operators, platform, judge.version, digest(model))


class _Compiler:
    """A process of the toolkit's Python, which compiles in processes that it makes: it is loaded once."""

    def __init__(self, python: Path) -> None:
        call = [str(python), "-I", str(Path(__file__).with_name("_rknn_child.py"))]
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            self._process = subprocess.Popen(call, start_new_session=True, text=True, **pipes)  # type: ignore[call-overload]
        except OSError as error:
            raise CannotLoad(f"RKNN-Toolkit2 cannot be started: {error}") from error
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Say whether it answers no more."""
        return self._process.poll() is not None

    def code(self, platform: str, folder: str, timeout_s: float) -> int:
        """Return the exit code for the model of a folder. Raises CannotLoad, Crashed and TimedOut."""
        with self._lock:
            with contextlib.suppress(BrokenPipeError):  # it ended: why comes below
                self._process.stdin.write(f"{platform} {folder}\n")
                self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], timeout_s)[0]:
                self.close()
                raise TimedOut(f"RKNN-Toolkit2 has no answer within {timeout_s:g} s")
            answer = self._process.stdout.readline()
            if answer:
                return int(answer)
            code, said = self._process.wait(), self._process.stderr.read().splitlines()
            self.close()
        if code < 0:
            return int(code)
        raise CannotLoad(f"RKNN-Toolkit2 cannot be started: {_words(said[::-1])}")

    def close(self) -> None:
        """End it, and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


_COMPILERS: dict[Path, _Compiler] = {}


def _compiler(python: Path) -> _Compiler:
    """Return the process of a toolkit, which is started anew where it ended."""
    found = _COMPILERS.get(python)
    if found is None or found.ended:
        found = _COMPILERS[python] = _Compiler(python)
    return found


@atexit.register
def _close() -> None:
    while _COMPILERS:
        _COMPILERS.popitem()[1].close()


def _plain(line: str) -> str:
    """Return a line of the toolkit's without colours and times."""
    return re.sub(r"^([A-Z]) RKNN: \[[\d:.]+\] ", r"\1 ", re.sub(r"\x1b\[[\d;]*m", "", line)).rstrip()


def told(said: Iterable[str], operators: tuple[Placed, ...], platform: str, version: str, of: str) -> Answer:
    """Return what the lines of the toolkit's say."""
    lines = list(said)
    sizes = re.findall(r"Total \w+ Memory Size: ([\d.]+)KB", "\n".join(lines))
    doubts = dict.fromkeys(line[2:] for line in lines if line.startswith("E ") and line[2:].strip())
    return Answer(
        operators=operators, memory_kb=sum(map(float, sizes)), doubts=tuple(doubts), command=command(platform),
        version=version, digest=of,
    )  # fmt: skip


_ROW = re.compile(
    r"^D \d+ +(?P<operator>\S+) +(?P<type>\S+) +(?P<target>[A-Z]+) +(?P<into>\S+) +(?P<out>\S+) +"
    r"(?P<memory>\d+)/\d+/(?P<cycles>\d+) +(?:[\d.]+% +)?(?P<kb>\d+) *(?P<name>.*)$"
)
_BITS = re.compile(r"\d+")


def _operators(lines: Iterable[str]) -> Iterable[Placed]:
    """Yield the rows of the toolkit's table of layers; what it moves are the KB that it reads and those it writes."""
    for line in lines:
        row = _ROW.match(line)
        if row is None or row["operator"] in ENDS:
            continue
        read = float(row["kb"])
        yield Placed(
            name=row["name"].partition(":")[2].strip() or row["name"].strip(),
            operator=row["operator"],
            target=row["target"],
            cycles=int(row["cycles"]),
            memory_cycles=int(row["memory"]),
            moved_kb=round(read + _kb(row["out"], row["type"], read), 1),
        )


def _kb(shapes: str, element: str, otherwise: float) -> float:
    """Return the KB of a tensor; `otherwise` of several, of which the table names the first: they are parts."""
    if "..." in shapes:
        return otherwise
    elements = 1
    for size in _BITS.findall(shapes):
        elements *= int(size)
    bits = _BITS.search(element)
    return elements * (int(bits[0]) if bits else 8) / 8 / 1024


_CAUSE = re.compile(r"(\w+\.)+\w+: |\w+(Error|Exception): (?!Traceback)")
"""The last line of what Python says of an exception; the toolkit says it several times, each in the next."""


def _words(lines: Iterable[str]) -> str:
    """Return the line in which the toolkit says why, in short."""
    said = [" ".join(line.split()) for line in lines if line.strip()]
    causes = [line for line in said if _CAUSE.match(line)]
    errors = [line[2:] for line in said if line.startswith("E ") and "Traceback" not in line and "version" not in line]
    others = [line for line in said if not line.startswith(("D ", "I ", "W "))]
    return (causes or errors or others or ["no word"])[0][:300]
