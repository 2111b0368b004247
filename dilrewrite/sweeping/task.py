"""The work on one model, as data that go to another process or machine, and what comes back; and the process for it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dilrewrite._compat import running
from dilrewrite.errors import FailedError
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import Crashed
from dilrewrite.runtimes._worker import Child

PATIENCE_S = 10.0
"""How long a process may take to leave nothing behind, before it is killed."""

FOLDER, OUT = "model", "out"
"""Where another machine has the model, and where it writes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A model to answer for.

    `options`: keywords of `dilrewrite.optimize`; `replaces`: the output may be there already. `typed`: messages name
    options, as the command line does. `files`: the model and its data files by their places from its folder, for a
    machine that does not have them; `None`: this one writes to the output itself. `within`: the folder that relative
    paths of the options start from; `None` on another machine.
    """

    sweep: str
    version: str
    model: Path
    output: Path
    report: Path | None
    options: Mapping[str, Any]
    on: str = ""
    replaces: bool = False
    typed: bool = True
    files: Mapping[str, bytes] | None = None
    within: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of it: a report, or why there is none.

    `files`: what was written, by name, where another machine did. `on`: who answered.
    """

    report: Report | None = None
    said: str = ""
    exit_code: int = 0
    seconds: float = 0.0
    on: str = ""
    files: Mapping[str, bytes] = field(default_factory=dict)


def failed(error: Exception, code: int = FailedError.exit_code, *, on: str = "", seconds: float = 0.0) -> Answer:
    """Return the answer that there is none, in one line."""
    return Answer(said=" ".join(str(error).split()), exit_code=code, on=on, seconds=seconds)


def stop(children: Iterable[Child]) -> None:
    """Let processes end soon, and what they hold with them: connections to devices, files that are half written."""
    for child in children:
        child.process.terminate()
        timer = threading.Timer(PATIENCE_S, child.process.kill)
        timer.daemon = True
        timer.start()


def ask(task: Task, started: Callable[[Child], object], within: Path | None = None) -> Answer:
    """Answer for a model in a process of its own, whose end is a reason and not the end of the sweep.

    `started` gets the process, which is killed to give up. `within`: where its temporary files are.
    """
    began = time.monotonic()
    try:
        child = Child(None, "ready", command=running("dilrewrite.sweeping._child"), home=within)
        try:
            started(child)
            answer: Answer = child.ask("answer", task)
        finally:
            child.close()
    except Crashed as error:
        return failed(error, on=task.on, seconds=time.monotonic() - began)
    return replace(answer, seconds=round(time.monotonic() - began, 3), on=answer.on or task.on)


def ask_elsewhere(task: Task, started: Callable[[Child], object], within: Path) -> Answer:
    """Answer on a machine that has only what is sent; the files that are written come back. Nothing stays here.

    `within`: a folder for temporary files.
    """
    assert task.files is not None
    folder = Path(tempfile.mkdtemp(prefix="dilrewrite-sweep-", dir=within))
    try:
        models, out = folder / FOLDER, folder / OUT
        beside = task.output.parent == task.model.parent
        out = models if beside else out
        for place in (models, out):
            place.mkdir(exist_ok=True)
        for name, content in task.files.items():
            place = models / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        moved = replace(
            task, model=models / task.model.name, output=out / task.output.name, report=None, replaces=False,
            files=None, within=None,
        )  # fmt: skip
        answer = ask(moved, started, folder)
        written = {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}
        files = {name: path.read_bytes() for name, path in written.items() if not (beside and name in task.files)}
        return replace(answer, files=files, report=_named(answer.report, moved, task))
    except OSError as error:
        where = f"{folder}: {(error.strerror or str(error)).lower()}"
        return failed(FailedError(where, hint="the machine needs space for its models"), on=task.on)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _named(report: Report | None, moved: Task, task: Task) -> Report | None:
    """Return a report with the places of the files as they are on the machine that asked."""
    if report is None:
        return None
    before = replace(report.before, path=os.fspath(task.model))
    output = None if report.output is None else os.fspath(task.output)
    after = None if report.after is None else replace(report.after, path=os.fspath(task.output))
    texts = {os.fspath(moved.model): os.fspath(task.model), os.fspath(moved.output): os.fspath(task.output)}
    notes = tuple(_renamed(note, texts) for note in report.notes)
    return replace(report, before=before, after=after, output=output, notes=notes)


def _renamed(text: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text
