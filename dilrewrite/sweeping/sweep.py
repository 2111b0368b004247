"""The sweep: every model once, on this machine, on hosts or on a Dask scheduler's workers; outputs and one report."""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dilrewrite import devices, machine
from dilrewrite._version import __version__
from dilrewrite.errors import DilrewriteError, MissingError, UsageError, shown
from dilrewrite.keywords import Progress, silent
from dilrewrite.options import CommandOptions, every_option, masked, said
from dilrewrite.reports import check_report_folder, swept, write_reports
from dilrewrite.reports.swept import ModelAnswer, SweepReport
from dilrewrite.staging import Staging, may, reason, same_place
from dilrewrite.sweeping import local, models
from dilrewrite.sweeping.task import Answer, Task, failed

DASK = "dask://"
FOLDER = Path("dilrewrite-sweep")
STEP = "models"


def sweep(
    places: Sequence[str | Path],
    folder: Path | None = None,
    on: Sequence[str] = (),
    *,
    options: Mapping[str, Any],
    progress: Progress = silent,
    typed: bool = True,
) -> SweepReport:
    """Answer for every model that `places` mean, write the new ones and a report for all into `folder`.

    `options`: keywords of `dilrewrite.optimize`. An answer that an earlier run of this sweep gave, with these options,
    is taken from its report. Raises `UsageError` or `MissingError` for everything that is known before any work; what
    becomes of a model, an error too, is its answer.
    """
    usual = {name: option.default for name, option in every_option().items()} | {"force": options.get("force")}
    given = {name: value for name, value in options.items() if said(value) and value != usual[name]}
    CommandOptions.of(**given).check()
    scheduler = _scheduler(on, given)
    if not places:
        raise UsageError("no model was named", hint="name files, folders or patterns")
    job = _job(models.named(places), folder or FOLDER, tuple(on), given, force=bool(options.get("force")), typed=typed)
    try:
        return _answered(job, scheduler, progress)
    finally:
        job.leave()


@dataclass
class _Job:
    """A sweep at work. `answers`: of each model, in order. `made`: the folder is new."""

    sweep: str
    folder: Path
    on: tuple[str, ...]
    options: Mapping[str, Any]
    tasks: list[Task]
    answers: list[ModelAnswer]
    made: bool
    began: float = field(default_factory=time.monotonic)
    notes: list[str] = field(default_factory=list)

    def report(self) -> SweepReport:
        """Return the report as it is now."""
        return SweepReport(
            folder=shown(self.folder),
            on=tuple(map(masked, self.on)),
            models=tuple(self.answers),
            options={name: _plain(value) for name, value in self.options.items()},
            version=__version__,
            machine=machine.processor(),
            date=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
            seconds=round(time.monotonic() - self.began, 3),
            notes=tuple(self.notes),
        )

    def keep(self) -> SweepReport:
        """Write the report as it is now: what is answered is not asked again, whatever ends the sweep."""
        report = self.report()
        with Staging() as staging:
            swept.stage(report, self.folder, staging)
            staging.commit()
        return report

    def leave(self) -> None:
        """Remove a new folder that nothing was written to."""
        if self.made and self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _plain(value: Any) -> Any:
    return (
        [*map(str, value)]
        if isinstance(value, list | tuple)
        else value
        if isinstance(value, int | float)
        else str(value)
    )


def _scheduler(on: Sequence[str], options: Mapping[str, Any]) -> str | None:
    """Return the Dask scheduler among the devices, or `None`. Raises `UsageError` for what does not go together."""
    some = [text for text in on if text.startswith(DASK)]
    if not some:
        if len(set(on)) < len(on):
            raise UsageError("--on names a device twice", hint="name each once")
        for text in on:
            devices.device(text)
        return None
    if len(on) > 1:
        raise UsageError(f"--on {some[0]}: a scheduler has its own machines", hint="name it alone")
    place = re.fullmatch(r"(\[[^\]/@]+\]|[^\[\]:/?@\s]+)(?::([0-9]{1,5}))?", some[0].removeprefix(DASK))
    if place is None or not 0 < int(place[2] or 1) < 65536:
        raise UsageError(f"--on {some[0]}: names no scheduler", hint="as --on dask://scheduler:8786")
    target = options.get("target")
    if target is not None and Path(str(target).partition(":")[0]).is_file():
        raise UsageError(f"--target {target}: a file of this machine is not on the workers", hint="name a profile")
    if options.get("external_data") == "reference":
        raise UsageError("--external-data reference: results come back from another machine", hint="leave it out")
    if importlib.util.find_spec("distributed") is None:
        raise MissingError(f"--on {some[0]} needs distributed", hint="pip install 'dilrewrite[dask]'")
    return some[0]


def _job(
    found: list[Path], folder: Path, on: tuple[str, ...], options: Mapping[str, Any], *, force: bool, typed: bool
) -> _Job:
    """Return what there is to do. Raises `UsageError` where a place is taken."""
    folder = folder.absolute()
    made = not folder.exists()
    _check_folder(folder)
    swept.check(folder)
    known = {(one.model, one.key): one for one in swept.read(folder)}
    unfinished = {one.model for one in known.values() if not one.answered}
    sweep, tasks, answers = secrets.token_hex(8), [], []
    known_by = _known_by(on, options)
    for model, name in zip(found, models.names(found), strict=True):
        output, reports = folder / f"{name}{models.ENDING}", folder / f"{name}.report"
        key = models.key(model, options, known_by)
        earlier = known.get((shown(model), key))
        answer = ModelAnswer(model=shown(model), key=key)
        if earlier is not None and earlier.answered and _stands(earlier) and not force:
            answer = replace(earlier, before=True)
        else:
            replaces = force or shown(model) in unfinished
            _check_places(output, reports, found, force=replaces)
            tasks.append(
                Task(
                    sweep=sweep, version=__version__, model=model, output=output, report=reports,
                    options=options, replaces=replaces, typed=typed, within=Path.cwd(),
                )
            )  # fmt: skip
        answers.append(answer)
    return _Job(sweep, folder, on, options, tasks, answers, made)


def _known_by(on: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Return what an answer depends on besides the model and the options: the devices, and files that are named."""
    known = [
        part for text in on if not text.startswith(DASK) for part in (text, devices.device(text).content()) if part
    ]
    target = Path(str(options.get("target", "")).partition(":")[0])
    return [*known, models.content(target)] if target.is_file() else known


def _check_folder(folder: Path) -> None:
    where = folder if folder.exists() else folder.parent
    if not where.is_dir():
        problem = "is not a folder" if folder.exists() else f"cannot be made: {shown(where)} is not a folder"
        raise UsageError(f"-o {shown(folder)} {problem}", hint="name another folder")
    if not may(where, os.W_OK | os.X_OK):
        raise UsageError(f"-o {shown(folder)}: {shown(where)} is not writable", hint="name another folder")


def _check_places(output: Path, reports: Path, found: Sequence[Path], *, force: bool) -> None:
    if os.path.lexists(output) and not force:
        hint = "give --force to replace it, or -o for another folder"
        raise UsageError(f"{shown(output)} exists, and no report here says that this sweep wrote it", hint=hint)
    if any(same_place(output, model) for model in found):
        raise UsageError(f"{shown(output)} is one of the models", hint="name another folder with -o")
    if output.parent.is_dir():
        check_report_folder(reports, others=[output], force=force)


def _stands(answer: ModelAnswer) -> bool:
    """Say whether what an answer wrote is still there as it was."""
    return answer.output is None or models.content(Path(answer.output)) == answer.sha256 != ""


def _answered(job: _Job, scheduler: str | None, progress: Progress) -> SweepReport:
    """Ask for the answers, and write what comes."""
    total = len(job.answers)
    if job.made:
        try:
            job.folder.mkdir()
        except OSError as error:
            raise UsageError(f"-o {shown(job.folder)}: {reason(error)}", hint="name another folder") from error
    place = {shown(task.model): number for number, task in enumerate(job.tasks)}
    numbers = {answer.model: number for number, answer in enumerate(job.answers)}
    progress(STEP, total - len(place), total)
    done = total - len(place)

    def dropped(device: str, why: str) -> None:
        job.notes.append(f"{masked(device)} was asked no more: {why}")

    stream = _from_dask(job.tasks, scheduler) if scheduler is not None else local.answers(job.tasks, job.on, dropped)
    with closing(stream):
        for task, answer in stream:
            number = numbers[shown(task.model)]
            job.answers[number] = _taken(task, answer, job.answers[number])
            done += 1
            job.keep()
            progress(STEP, done, total)
    return job.keep()


def _from_dask(tasks: Sequence[Task], scheduler: str) -> Generator[tuple[Task, Answer], None, None]:
    """Yield the answers of a scheduler's workers, which get models as bytes; of one that cannot be read, why."""
    from dilrewrite.sweeping import dask

    unread: list[tuple[Task, Answer]] = []

    def loaded() -> Iterator[Task]:
        for task in tasks:
            try:
                yield replace(task, files=models.files(task.model))
            except DilrewriteError as error:
                unread.append((task, failed(error, error.exit_code)))
            except OSError as error:
                unread.append((task, failed(UsageError(f"{task.model}: {reason(error)}"), UsageError.exit_code)))

    yield from dask.answers(loaded(), scheduler)
    yield from unread


def _taken(task: Task, answer: Answer, known: ModelAnswer) -> ModelAnswer:
    """Write what another machine made of a model, and return the answer as it stands in the report."""
    more: dict[str, Any] = {"model": known.model, "key": known.key}
    more |= {"on": masked(answer.on), "seconds": answer.seconds}
    report = answer.report
    if report is not None and task.files is not None:
        try:
            with Staging(force=task.replaces) as staging:
                for name, content in answer.files.items():
                    staging.add_bytes(task.output.parent / name, content, last=name == task.output.name)
                if task.report is not None:
                    report = write_reports(report, task.report, staging)
                staging.commit()
        except DilrewriteError as error:
            report, answer = None, failed(error, error.exit_code)
    if report is None:
        return ModelAnswer(status=swept.FAILED, exit_code=answer.exit_code or 1, said=answer.said, **more)
    written = None if report.output is None else Path(report.output)
    folder = shown(task.report) if task.report is not None and task.report.is_dir() else None
    return swept.answer_of(report, sha256=models.content(written), report=folder, **more)
