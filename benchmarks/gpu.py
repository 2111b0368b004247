"""Everything that needs a GPU, in one command and a few minutes, with results whatever breaks.

Run `python benchmarks/gpu.py [PART ...] [--minutes 9]` on a machine with an NVIDIA GPU; results go to
benchmarks/results/gpu-DEVICE-DATE.json and .md. The parts, each skipped with a reason where it lacks something:

torch: every form on cuDNN, forward and both gradients, in four precisions, both layouts, deterministic or not
chains: whole chains of dilated Convs, Conv by Conv, lifted and as regions, on cuDNN
jax: every form through XLA
runtimes: TensorRT, TensorRT for RTX, ONNX Runtime with CUDA and with TensorRT

The minutes are shared out, and each part runs in processes of its own: what hangs or crashes is a row that says so, and
so is what the time did not reach. `--dry-run` goes the same way on the CPU, with small sizes, into a folder of its own.
Exits with 4 when nothing was measured, saying why, and with 1 when a result is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.util
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).parent))

import _gpu_chains
import _gpu_jax
import _gpu_pages
import _gpu_torch
from _gpu_pages import RESULTS, CpuNumberError, write
from _gpu_plan import BUDGET, Row, work_off

from dilrewrite import machine
from dilrewrite.runtimes._nvidia import state

HERE = Path(__file__).parent

GPU_BACKENDS = ("tensorrt", "tensorrt_rtx", "onnxruntime_cuda", "onnxruntime_tensorrt")

SHARES = {"torch": 0.42, "chains": 0.13, "jax": 0.2, "runtimes": 0.25}
"""Of the time. What a part leaves goes to those after it."""

MOST_S = {"torch": 240.0, "chains": 90.0, "jax": 120.0}
"""The most seconds that a part has."""

SPARE = 0.95
"""The share of the minutes that is planned with: something always takes longer."""

GRACE = 0.05
"""How far a part may run over its time before it is cut off, as a share of it."""


PATIENCE = {"chains": 3, "jax": 3}
"""How many times the usual limit an item has: one of all versions of a chain, one that is compiled three times."""

LATE_S = 15.0
"""How far the runtimes may run over their time: the sessions of the last one are ended first."""


class Stopped(BaseException):
    """Somebody ended this process: what there is gets written."""


def units(part: str, options: Row) -> tuple[list[Row], list[Row], str | None]:
    """The items of a part, the rows of what does not apply, and why it cannot be run at all."""
    lacks: Callable[[], str | None] = {
        "torch": lambda: None if importlib.util.find_spec("torch") else "PyTorch is not installed",
        "chains": _gpu_chains.unready,
        "jax": _gpu_jax.unready,
    }[part]
    if (why := lacks()) is not None:
        return [], [], why
    if part == "chains":
        return _gpu_chains.items(options), [], None
    items, refused = (_gpu_torch if part == "torch" else _gpu_jax).rounds(options)
    return items, refused, None


class Plan:
    """The parts of a run, one after the other; `data` is what there is at any time, and is written after each."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder, self.start = given, folder, time.monotonic()
        self.end = self.start + given.minutes * 60 * SPARE
        self.options: Row = {
            "only": given.only, "dry_run": given.dry_run, "seconds": given.slice, "faults": given.fault,
        }  # fmt: skip
        self.rows: list[Row] = []
        self.about: dict[str, Row] = {}
        self.log: IO[str] = (folder / "gpu-log.txt").open("w", encoding="utf-8")
        self.journal: IO[str] = (folder / "gpu-rows.jsonl").open("w", encoding="utf-8")

    def data(self) -> dict[str, Any]:
        """All that there is to write."""
        late = [part for part in self.given.parts if part not in self.about]
        return {
            "date": datetime.datetime.now(tz=datetime.timezone.utc).date().isoformat(),
            "dry_run": self.given.dry_run,
            "minutes": round(self.given.minutes, 2),
            "spent_s": round(time.monotonic() - self.start, 1),
            "processor": f"{machine.processor()}, {machine.cores()} cores",
            "parts": {**self.about, **{part: {"spent_s": 0.0, "not_run": "not reached"} for part in late}},
            "rows": [*self.rows, *({"part": part, "not_run": "not reached"} for part in late)],
        }

    def keep(self, row: Row) -> None:
        """Have a row on the disk at once, in case that nothing else gets there."""
        self.journal.write(json.dumps(row) + "\n")
        self.journal.flush()

    def run(self) -> None:
        """Run all parts."""
        for place, part in enumerate(self.given.parts):
            later = sum(SHARES[other] for other in self.given.parts[place:])
            now = time.monotonic()
            seconds = min(max(self.end - now, 0.0) * SHARES[part] / later, MOST_S.get(part, self.end))
            about = {"state": state()} if not self.given.dry_run else {}
            if part == "runtimes":
                about |= self._runtimes(seconds)
            else:
                about |= self._part(part, now + seconds, now + seconds * (1 + GRACE))
            about |= {"state_after": state()} if not self.given.dry_run else {}
            self.about[part] = {**about, "spent_s": round(time.monotonic() - now, 1)}
            if "not_run" in about:
                self.rows.append({"part": part, "not_run": about["not_run"]})
            own = [row for row in self.rows if row["part"] == part or (part == "runtimes" and "backend" in row)]
            ran = sum("not_run" not in row for row in own)
            why = f": not run: {about['not_run']}" if "not_run" in about else ""
            print(f"{part}: {ran} of {len(own)} rows measured, {time.monotonic() - now:.0f} s{why}", flush=True)
            if self.given.out is not None:
                write(self.folder, self.data())

    def _part(self, part: str, deadline: float, last: float) -> Row:
        items, refused, why = units(part, self.options)
        if why is not None:
            return {"not_run": why}
        command = [sys.executable, str(HERE / f"_gpu_{part}.py")]
        done = work_off(
            command,
            items,
            deadline=deadline,
            last=last,
            limit_s=self.given.limit * PATIENCE.get(part, 1),
            options=self.options,
            log=self.log,
            keep=self.keep,
        )
        if done.refused is not None:
            return {"not_run": done.refused}
        self.rows += [*done.rows, *refused]
        return {**done.about, "deaths": done.deaths}

    def _runtimes(self, seconds: float) -> Row:
        place = self.folder / "gpu-runtimes.json"
        command = [
            *(sys.executable, HERE / "_gpu_runtimes.py", "--backends", ",".join(self.given.backends)),
            *("--until", time.monotonic() + seconds, "--seconds", self.given.seconds, "--only", self.given.only),
            *("--keep", place),
        ]
        process = subprocess.Popen(list(map(str, command)), stdout=self.log, stderr=self.log, start_new_session=True)
        ended: str | int | None = None
        try:
            ended = process.wait(seconds + LATE_S)
        except subprocess.TimeoutExpired:
            ended = f"{BUDGET}: cut off"
        finally:
            with contextlib.suppress(ProcessLookupError):
                _killed(process)
        found = json.loads(place.read_text(encoding="utf-8")) if place.exists() else {}
        place.unlink(missing_ok=True)
        for row in found.get("rows", ()):
            self.rows.append({**row, "not_run": str(ended)} if ended and row.get("not_run") == "not reached" else row)
            self.keep(row)
        about = {name: found[name] for name in ("backends", "not_ready") if name in found}
        first = next(iter(found.get("backends", ())), {})
        about |= {name: first[name] for name in ("device", "driver") if name in first}
        if not found or (ended and not found["backends"]):
            about["not_run"] = f"ended with {ended}"
        elif not found["backends"]:
            about["not_run"] = "; ".join(f"{name}: {why}" for name, why in found["not_ready"].items())
        return about


def _killed(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    import os

    os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Raise Stopped where this process is asked to end."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(SHARES)}; all by default")
    parser.add_argument("--minutes", type=float, default=9.0, help="shared out over all parts")
    parser.add_argument("--backends", help=f"of the part runtimes, by commas; default: {','.join(GPU_BACKENDS)}")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go, also when nothing was measured")
    parser.add_argument("--only", default="", help="geometries and chains whose name contains this")
    parser.add_argument("--seconds", type=float, default=0.3, help="for a form on a runtime; it may want more")
    parser.add_argument("--slice", type=float, default=0.02, help="seconds for one pass of a form in PyTorch and JAX")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds after which a form counts as hanging")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, small; with --out")
    fault = "of a dry run: break where the values of a row, by commas, have these words"
    parser.add_argument("--fault", action="append", default=[], metavar="hang|crash:WORDS", help=fault)
    given = parser.parse_args(arguments)
    unknown = [part for part in given.parts if part not in SHARES]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(SHARES)}")
    given.parts = [part for part in SHARES if part in given.parts or not given.parts]
    if given.dry_run and (given.out is None or given.out.resolve() == RESULTS.resolve()):
        parser.error("--dry-run writes into a folder of its own: add --out DIR")
    if given.fault and not given.dry_run:
        parser.error("--fault is for dry runs: add --dry-run")
    given.backends = (given.backends or ("onnxruntime_cpu" if given.dry_run else ",".join(GPU_BACKENDS))).split(",")
    _check_backends(parser, given)
    with contextlib.ExitStack() as stack:
        if given.out is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dilrewrite-")))
        else:
            folder = given.out
            folder.mkdir(parents=True, exist_ok=True)
        plan = Plan(given, folder)
        try:
            with stoppable():
                plan.run()
        except (Stopped, KeyboardInterrupt):
            print("stopped: what there is gets written", file=sys.stderr)
        return finish(plan)


def _check_backends(parser: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    if "runtimes" not in given.parts:
        return
    if importlib.util.find_spec("onnx") is None:
        given.backends = []
        return
    from dilrewrite.runtimes import timed_backends

    known = timed_backends()
    unknown = [name for name in given.backends if name not in known]
    if unknown:
        parser.error(f"--backends {','.join(unknown)}: known are {', '.join(known)}")
    foreign = [name for name in given.backends if name not in GPU_BACKENDS]
    if foreign and not given.dry_run:
        parser.error(
            f"--backends {','.join(foreign)}: no number of a processor goes into a table of a GPU; add --dry-run"
        )


def finish(plan: Plan) -> int:
    """Write the results, say what was wrong, and return the exit code."""
    data = plan.data()
    measured = any("not_run" not in row for row in data["rows"])
    if measured or plan.given.out is not None:
        try:
            place = write(plan.given.out or RESULTS, data)
        except CpuNumberError as error:
            print(f"not written: {error}", file=sys.stderr)
            return 1
        print(f"{place.name} and {place.with_suffix('.json').name} written", flush=True)
        plan.journal.close()
        (plan.folder / "gpu-rows.jsonl").unlink(missing_ok=True)  # all of it is in the results
    if not measured:
        print("nothing was measured", file=sys.stderr)
        return 4
    if not data["dry_run"]:
        met = {about["device"] for about in data["parts"].values() if about.get("driver")}
        ran = {row["backend"] for row in data["rows"] if "backend" in row and "not_run" not in row}
        for name in sorted(ran):
            print(f"docs/backends.md: `{name}` met hardware on {data['date']}: {', '.join(sorted(met))}")
    wrong = [row for row in data["rows"] if row.get("passed") is False]
    for row in wrong:
        print(f"WRONG: {_gpu_pages._label(row)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
