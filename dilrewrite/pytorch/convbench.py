"""The 2016 benchmark in PyTorch: every method, forward, backward by input and backward by weight.

Each method runs in a process of its own: what runs out of memory or crashes is a row that says so, and its peak memory
is the process'. A method is timed in pairs with PyTorch's own form.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dilrewrite import machine
from dilrewrite._compat import running
from dilrewrite.errors import MissingError
from dilrewrite.pytorch.configurations import Configuration
from dilrewrite.pytorch.methods import method, methods
from dilrewrite.pytorch.setting import Setting
from dilrewrite.settings import named
from dilrewrite.timing.stopwatch import Comparison, Timing

PASSES = ("forward", "backward by input", "backward by weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A method and a pass of a configuration. `failure`: why there is no time; `refused`: it does not apply.

    `comparison`: the native form (first) and the method (second); `peak_bytes`: memory with input, weight and
    graph, above what there was without. `shares`: of the wall time by kind of operator, when profiled.
    """

    configuration: str
    method: str
    direction: str
    comparison: Comparison | None = None
    peak_bytes: int | None = None
    failure: str = ""
    refused: bool = False
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def timing(self) -> Timing | None:
        """Return the method's own times."""
        return None if self.comparison is None else self.comparison.second


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """All rows, how they were taken, on what, and how long it took.

    `keeps_memory`: what a run frees stays with the process for the next one.
    """

    rows: tuple[Row, ...]
    configurations: tuple[Configuration, ...]
    setting: Setting
    device: str
    versions: Mapping[str, str]
    date: str
    minutes: float
    keeps_memory: bool = False


def skipped(given: Sequence[str]) -> set[str]:
    """Return the methods to leave out: of `--skip`, and of the variable SKIP as in the original, by comma or space."""
    names = {name for text in (*given, os.environ.get("SKIP", "")) for name in text.replace(",", " ").split()}
    known = methods()
    for name in names:
        if named(name, known) is None:
            method(name)  # an error that lists all
    return {named(name, known) or name for name in names}


def run(
    configurations: Sequence[Configuration],
    setting: Setting,
    *,
    skip: Sequence[str] = (),
    progress: Callable[[str, int, int], None] | None = None,
) -> Result:
    """Time every method of every configuration; see `dilrewrite convbench`.

    Raises `MissingError` without torch or the device, `UsageError` for an unknown method.
    """
    import time

    start = time.monotonic()
    left_out = skipped(skip)
    environment = _environment(setting)
    if setting.device.startswith("cuda") and not environment["cuda"]:
        raise MissingError(
            f"--device {setting.device}: torch {environment['torch']} reaches no CUDA device",
            hint="leave --device out, or install a torch with CUDA",
        )
    configurations = list({one.text: one for one in configurations}.values())
    names = [name for name in methods() if name not in left_out]
    rows: list[Row] = []
    total = len(configurations) * len(names)
    for configuration in configurations:
        for name in names:
            if progress is not None:
                progress("convbench", len(rows) // len(PASSES), total)
            rows += _method_rows(configuration, name, setting)
    if progress is not None:
        progress("convbench", total, total)
    return Result(
        rows=tuple(rows),
        configurations=tuple(configurations),
        setting=setting,
        device=str(environment["device"]),
        versions={"torch": str(environment["torch"])},
        date=time.strftime("%Y-%m-%d"),
        minutes=round((time.monotonic() - start) / 60, 2),
        keeps_memory=setting.device == "cpu" and bool(environment.get("keeps_memory")),
    )


def _method_rows(configuration: Configuration, name: str, setting: Setting) -> list[Row]:
    row = functools.partial(Row, configuration=configuration.text, method=name)
    reason = method(name).refusal(configuration.geometry(element=setting.element))
    if reason is not None:
        return [row(direction=one, failure=reason, refused=True) for one in PASSES]
    question = {
        "configuration": dataclasses.asdict(configuration),
        "method": name,
        "setting": dataclasses.asdict(setting),
    }
    timing_s = len(PASSES) * 2 * (setting.seconds + setting.warmup)
    answers, failure = _child("rows", question, setting.timeout_s + timing_s)
    rows = []
    for one in PASSES:
        answer = answers.get(one)
        if not isinstance(answer, dict):
            rows.append(row(direction=one, failure=failure or "no answer"))
            continue
        told = answer.get("comparison")
        rows.append(
            row(
                direction=one,
                comparison=None if told is None else _comparison(told),
                peak_bytes=answer.get("peak_bytes"),
                failure=str(answer.get("failure", "")),
                shares=answer.get("shares") or {},
            )
        )
    return rows


def _comparison(plain: Mapping[str, Any]) -> Comparison:
    return Comparison(**{**plain, "first": Timing(**plain["first"]), "second": Timing(**plain["second"])})


def _environment(setting: Setting) -> dict[str, Any]:
    """Return torch's version and the device, as a process of its own sees them."""
    answers, failure = _child("environment", {"setting": dataclasses.asdict(setting)}, 120)
    if failure:
        if "No module named 'torch'" in failure:
            raise MissingError("torch is not installed", hint="pip install 'dilrewrite[torch]'")
        raise MissingError(f"torch does not start: {failure}", hint="pip install 'dilrewrite[torch]'")
    if setting.device == "cpu":
        count = setting.threads or machine.cores()
        answers["device"] = f"{machine.processor()}, {count} thread{'s' if count > 1 else ''}"
    return answers


def _child(task: str, question: Mapping[str, Any], timeout_s: float) -> tuple[dict[str, Any], str]:
    """Ask a process of its own; return its answers, those up to its death too, and why it died."""
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(str(Path(entry).absolute()) for entry in sys.path))
    threads = question.get("setting", {}).get("threads")
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                [*running("dilrewrite.pytorch._child"), task],
                input=json.dumps(question),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                timeout=timeout_s,
                check=False,
            )
            output, code = done.stdout, done.returncode
        except subprocess.TimeoutExpired as late:
            before = late.stdout or b""
            output, code = before.decode(errors="replace") if isinstance(before, bytes) else before, None
        errors.seek(0)
        said = [line.strip() for line in errors.read().split("\n") if line.strip()]
    answers: dict[str, Any] = {}
    for line in output.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # the last line of a process that died is cut
            told = json.loads(line)
            answers.update(told if isinstance(told, dict) else {})
    if code == 0:
        return answers, ""
    if code is None:
        return answers, f"no answer within {timeout_s:g} s"
    if code == -9:
        return answers, "out of memory (the process was killed)"
    ended = f"killed by {signal.Signals(-code).name}" if code < 0 else f"the process ended with {code}"
    return answers, f"{ended}: {said[-1][:200]}" if said else ended
