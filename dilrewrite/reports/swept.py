"""What became of many models, as frozen, versioned data: one answer for each, and the document of them all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dilrewrite import record
from dilrewrite.errors import UsageError, shown
from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.formats import formats, is_report
from dilrewrite.reports.report import EXIT_CODES, Report
from dilrewrite.runtimes import TimeKind, TimeUnit
from dilrewrite.staging import Staging

SWEEP_VERSION = 1

FAILED = "failed"
"""The status of a model that has no report: its `said` is the reason."""

OPEN = "not answered"
"""The status of a model whose turn has not come."""

STATUSES = {0: "answered", 1: "not all answered", 3: "results differ"}
"""What a sweep is called by its exit code."""

JSON, GREEN = "report.json", ("rewritten", "kept", "nothing to rewrite")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswer:
    """The answer for one model."""

    model: str
    """Its file."""
    key: str
    """A digest of the model's content, the options, the device and the version: what an answer is known by."""
    on: str = ""
    """The device that it was asked for, as it was named; of Dask, the worker. Empty for this machine."""
    status: str = OPEN
    """As of a report of `optimize`; `failed` where there is none, `not answered` where the sweep ended before."""
    exit_code: int = 1
    """What `dilrewrite optimize` of this model alone ends with."""
    said: str = ""
    """The answer in a sentence, or why there is none."""
    sites: int = 0
    """Dilated Convs that could be rewritten."""
    rewritten: int = 0
    """How many of them were."""
    ratio: float | None = None
    """Time of the new model divided by that of the original; `None` where the two were not compared."""
    low: float | None = None
    """Lower end of its 95 % interval."""
    high: float | None = None
    """Upper end of it."""
    source: str = ""
    """`measured` or `estimated`, of `ratio`; empty where there is none."""
    unit: str = ""
    """What was compared: `seconds` or `cycles`; empty likewise."""
    backend: str = ""
    """The runtime that the choice was made on; empty where nothing was timed."""
    seconds: float = 0.0
    """Wall time of the answer."""
    output: str | None = None
    """The new model; `None` where none was written."""
    sha256: str = ""
    """Of the file of the new model."""
    report: str | None = None
    """The folder of this model's own report; `None` for none."""
    before: bool = False
    """Whether an earlier run of this sweep gave the answer."""

    @property
    def answered(self) -> bool:
        """Say whether there is an answer, which another run would give again."""
        return self.status in EXIT_CODES


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """The answers for many models."""

    schema_version: int = SWEEP_VERSION
    """Version of this object."""
    command: str = "sweep"
    """That it is one."""
    folder: str
    """Where everything was written."""
    on: tuple[str, ...] = ()
    """The devices, as they were named; empty for this machine."""
    models: tuple[ModelAnswer, ...]
    """One answer for each model, in the order in which they were named."""
    options: dict[str, Any]
    """The options that were given, by name."""
    version: str
    """Of dilrewrite."""
    machine: str
    """The machine that the sweep was started on."""
    date: str
    """When it ended, in UTC."""
    seconds: float
    """Wall time of the whole sweep."""
    notes: tuple[str, ...] = ()
    """What else there is to know."""

    @property
    def exit_code(self) -> int:
        """Return what the command line ends with: 3 where results differ, else 1 where a model ended with another."""
        codes = {one.exit_code for one in self.models}
        return 3 if 3 in codes else 1 if codes - {0} else 0

    @property
    def status(self) -> str:
        """Return the result in a few words."""
        return STATUSES[self.exit_code]

    @property
    def summary(self) -> str:
        """Return the result in one line."""
        counts = {name: sum(one.status == name for one in self.models) for name in (*EXIT_CODES, FAILED, OPEN)}
        told = [f"{number} {name}" for name, number in counts.items() if number]
        return f"{units.count(len(self.models), 'model')}: {', '.join(told)}"

    def __repr__(self) -> str:
        """Return how it ended."""
        return f"<dilrewrite.SweepReport {self.summary}>"

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, as docs/sweep.md describes them."""
        ended = {"status": self.status, "exit_code": self.exit_code}
        return {"schema_version": self.schema_version, "command": self.command, **ended, **asdict(self)}


def answer_of(made: Report, **more: Any) -> ModelAnswer:
    """Return the answer that a model's report gives, with `more` of its fields."""
    measurement = made.measurement
    final = measurement.final if measurement is not None and made.rewritten else None
    if final is not None and measurement is not None:
        more |= {"ratio": final.ratio, "low": final.low, "high": final.high}
        more |= {"source": str(measurement.source), "unit": str(measurement.unit)}
    if measurement is not None:
        more["backend"] = measurement.backend
    return ModelAnswer(
        status=made.status,
        exit_code=made.exit_code,
        said=made.summary,
        sites=len(made.sites),
        rewritten=made.rewritten,
        output=made.output,
        **more,
    )


def document(sweep: SweepReport) -> doc.Document:
    """Return what the report of a sweep says."""
    failed = [one for one in sweep.models if not one.answered]
    reasons = [doc.Bullets(tuple((doc.code(one.model), f": {one.said}") for one in failed))] if failed else []
    answers = [doc.Bullets(tuple((doc.code(one.model), f": {one.said}") for one in sweep.models if one.answered))]
    given = tuple((doc.code(name), doc.code(json.dumps(value))) for name, value in sweep.options.items())
    sections = [
        doc.Section("Models", (_table(sweep.models),)),
        doc.Section("Without an answer", tuple(reasons)),
        doc.Section("Answers", tuple(answers) if len(failed) < len(sweep.models) else ()),
        doc.Section("Options that were set", (doc.grid("Options", ("option", "~value"), given),) if given else ()),
        doc.Section("Notes", (doc.Bullets(sweep.notes),) if sweep.notes else ()),
    ]
    facts: list[tuple[str, doc.Inline]] = [
        ("date", f"{sweep.date[:16].replace('T', ' ')} UTC"),
        ("machine", sweep.machine),
        ("devices", ", ".join(sweep.on)),
        ("folder", doc.code(sweep.folder)),
        ("took", units.seconds(sweep.seconds)),
    ]
    return doc.Document(
        command=sweep.command,
        status=sweep.status,
        path=sweep.folder,
        tone={0: "good", 1: "warn", 3: "bad"}[sweep.exit_code],
        answer=sweep.summary,
        tiles=(),
        sections=tuple(section for section in sections if section.blocks),
        closing=f"Sweep schema {sweep.schema_version}, exit code {sweep.exit_code}.",
        facts=doc.Facts("About this sweep", tuple(row for row in facts if row[1])),
    )


def _table(models: Sequence[ModelAnswer]) -> doc.Table:
    where, parents = any(one.on for one in models), [os.path.dirname(one.model) for one in models]  # noqa: PTH120
    common = os.path.commonpath(parents) if parents else ""
    return doc.table(
        "Models",
        models,
        ("model", lambda one: doc.code(os.path.relpath(one.model, common))),
        where and ("on", lambda one: one.on or units.NOTHING),
        ("result", lambda one: doc.Span(_tone(one), one.status)),
        ("#Convs", lambda one: f"{one.rewritten} of {one.sites}" if one.answered else units.NOTHING),
        ("speed", _speed),
        ("#took", lambda one: units.seconds(one.seconds) if one.seconds else units.NOTHING),
    )


def _tone(one: ModelAnswer) -> str:
    return "good" if one.status in GREEN else "bad" if one.exit_code == 3 else "warn"


def _speed(one: ModelAnswer) -> str:
    """Return how fast the new model is, and that it is an estimate where it is one."""
    if one.ratio is None:
        return units.NOTHING
    how = "by estimate" if one.source != TimeKind.MEASURED else ""
    return units.joined(units.speed(one.ratio), "in cycles" if one.unit == TimeUnit.CYCLES else "", how)


def rendered(sweep: SweepReport) -> dict[str, str]:
    """Return the report of a sweep by file name: as JSON, and as every usual format that spells documents."""
    page = document(sweep)
    text = json.dumps(sweep.as_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    spelled = {str(form.filename): form.page(page) for form in formats().values() if form.page and form.default}
    return {JSON: text, **spelled}


def check(folder: Path) -> None:
    """Raise `UsageError` where a file stands in the place of a sweep's report that is no report."""
    for name in (JSON, *(form.filename for form in formats().values() if form.page and form.default)):
        place = folder / str(name)
        if place.exists() and not is_report(place):
            raise UsageError(
                f"{shown(place)} exists and is no report of dilrewrite", hint="name another folder with -o"
            )


def stage(sweep: SweepReport, folder: Path, staging: Staging) -> None:
    """Stage the report of a sweep into its folder, in the place of the one before."""
    for name, text in rendered(sweep).items():
        staging.add_text(folder / name, text, force=True)


def read(folder: Path) -> tuple[ModelAnswer, ...]:
    """Return the answers of the sweep whose report is in a folder; none where there is no such report."""
    try:
        held = json.loads((folder / JSON).read_text(encoding="utf-8"))
        if held["command"] != "sweep" or held["schema_version"] != SWEEP_VERSION:
            return ()
        names = {one.name for one in fields(ModelAnswer)}
        known = [{name: value for name, value in one.items() if name in names} for one in held["models"]]
        return tuple(record.read(ModelAnswer, one, "report.json") for one in known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
