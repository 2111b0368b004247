"""What every command does: it counts seconds by step, describes what it did, and writes the reports."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dilrewrite.choice.tune import Tuning
from dilrewrite.devices import Device
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.keywords import Progress, silent
from dilrewrite.model.load import load
from dilrewrite.model.tensors import InMemory, Model
from dilrewrite.model.valid import check_calls
from dilrewrite.options import CommandOptions
from dilrewrite.reports import reasons, report, write_reports
from dilrewrite.reports.report import Report
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import find
from dilrewrite.staging import Staging


@dataclass
class Clock:
    """Seconds by step; what a step inside another takes is not the other's."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner: list[float] = field(default_factory=lambda: [0.0])

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Count what is done within as a step."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = time.perf_counter() - start
            own = spent - self._inner.pop()
            self._inner[-1] += spent
            self.seconds[step] = round(self.seconds.get(step, 0.0) + own, 3)


@dataclass(frozen=True, slots=True)
class Run:
    """A command at work. `device`: where it times."""

    command: str
    options: CommandOptions
    progress: Progress = silent
    clock: Clock = field(default_factory=Clock)
    device: Device = field(default_factory=Device)

    def load(self, place: Path | InMemory) -> Model:
        """Return the model at `place`, which is to be run."""
        with self.clock("load"):
            model = load(place)
        check_calls(model.proto, model.name)
        return model

    def find(self, model: Model, *, regions: bool = False, sandwiches: bool = False) -> Found:
        """Return what is dilated in a model, with its regions and its sandwiches where these are asked for."""
        with self.clock("find"):
            lift_all = self.options.scope.lift_all or self.options.scope.target is not None
            return find(model.proto, regions=regions, lift_all=lift_all, sandwiches=sandwiches)

    def report(self, status: str, **more: Any) -> Report:
        """Return the report; `more` are further fields of it."""
        return Report(
            command=self.command,
            status=status,
            environment=report.environment(self.options.proving.threads),
            date=f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%SZ}",
            seconds=self.clock.seconds,
            **{"options": self.options.plain(), **more},
        )

    def written(self, result: Report) -> Report:
        """Write a report where it is asked for, and return it."""
        places = self.options.places
        if places.report is not None:
            with Staging() as staging:
                result = write_reports(result, places.report, staging, places.report_format)
                staging.commit()
        return result


def files(*places: Path | InMemory | None) -> list[Path]:
    """Return the files among the places of models."""
    return [place for place in places if isinstance(place, Path)]


def dilated(found: Found) -> int:
    """Return how many dilated convolutions a model has."""
    convs = sum(not isinstance(site.meaning, PoolGeometry | Sandwich) for site in found.sites)
    return report.dilated_convolutions(convs, found.skipped)


def to_fold(sandwiches: Sequence[Site]) -> list[str]:
    """Return what to know of a model's space-to-batch sandwiches where nothing becomes of them."""
    some = f"{len(sandwiches)} space-to-batch {'sandwiches hold' if len(sandwiches) > 1 else 'sandwich holds'}"
    return [f"{some} no dilated Conv: `dilrewrite fold` makes dilated Convs of them"] if sandwiches else []


def failure(tuning: Tuning) -> str:
    """Return why a model was not measured, in words; empty when it was."""
    return reasons.words(tuning.failure, tuning.meter.backend.name) if tuning.failure is not None else ""


def notes_of(tuning: Tuning | None) -> list[str]:
    """Return what a reader should know of measuring besides its figures."""
    return [*tuning.meter.ledger.cache.warnings, *filter(None, [failure(tuning)])] if tuning is not None else []
