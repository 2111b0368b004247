"""Recalls and keeps what was measured, under all that it depends on: numbers, shapes, and what a runtime said."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from dilrewrite.runtimes import Array, Options, TimedBackend, spelled
from dilrewrite.sites import Site
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.profiling import Profiled, SiteRun
from dilrewrite.timing.stopwatch import VISIBLE, Comparison, Noise, Timing

CACHE_VERSION = 4
"""Of what is kept in the cache; raised when timings are taken in another way."""

T = TypeVar("T")


@dataclass
class Ledger:
    """The cache as one backend sees it with the options of its sessions; counts what was measured and recalled."""

    backend: TimedBackend
    options: Options
    cache: Cache
    measured: int = 0
    recalled: int = 0

    @functools.cached_property
    def circumstances(self) -> Mapping[str, Any]:
        """Return everything besides the question that a timing depends on, as plain data."""
        return {
            "cache_version": CACHE_VERSION,
            "backend": spelled(self.backend),
            "versions": self.backend.versions(),
            "device": self.backend.device(),
            "settings": self.backend.settings(self.options),
            "libraries": [_file_digest(path) for path in self.options.custom_op_library],
        }

    def recall(self, key: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T | None:
        """Return what the cache holds under `key`, when `read` makes sense of it."""
        kept = self.cache.get({**key, **self.circumstances})
        if kept is None:
            return None
        try:
            value = read(kept)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            return None
        self.recalled += 1
        return value

    def keep(self, key: Mapping[str, Any], value: Mapping[str, Any], timing: Comparison | None = None) -> None:
        """Count what was measured, and put it into the cache if it lasts."""
        self.measured += 1
        if lasting(timing):
            self.cache.put({**key, **self.circumstances}, value)


def lasting(comparison: Comparison | None) -> bool:
    """Say whether a result is kept: what a noisy machine told, or could not tell, is measured again another day."""
    return comparison is None or (comparison.conclusive and (comparison.noise or 0.0) <= VISIBLE)


def feeds_digest(feeds: Mapping[str, Array]) -> str:
    """Return a digest of names, types, shapes and values."""
    text = hashlib.sha256()
    for name in sorted(feeds):
        value = feeds[name]
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            text.update(f"{name} {value.dtype} {value.shape}".encode())
            text.update(np.ascontiguousarray(value).tobytes())
        else:
            text.update(f"{name} {value!r}".encode())
    return text.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_timing(value: Mapping[str, Any]) -> Timing:
    names = ("median_s", "p20_s", "p80_s", "p99_s", "variation")
    return Timing(runs=int(value["runs"]), **{name: float(value[name]) for name in names})


def read_comparison(value: Mapping[str, Any]) -> Comparison:
    """Return a comparison from plain data; errors as of `Ledger.recall`."""
    return Comparison(
        first=_read_timing(value["first"]),
        second=_read_timing(value["second"]),
        ratio=float(value["ratio"]),
        low=float(value["low"]),
        high=float(value["high"]),
        pairs=int(value["pairs"]),
        noise=None if value["noise"] is None else float(value["noise"]),
        mode="blocks" if value["mode"] == "blocks" else "interleaved",
    )


def read_noise(value: Mapping[str, Any] | None) -> Noise | None:
    """Return noise from plain data; errors as of `Ledger.recall`."""
    if value is None:
        return None
    return Noise(
        ratio=float(value["ratio"]), low=float(value["low"]), high=float(value["high"]), pairs=int(value["pairs"])
    )


def form_data(form: FormTiming) -> dict[str, Any]:
    """Return a form's timing as plain data."""
    timing = None if form.timing is None else dataclasses.asdict(form.timing)
    return {"outcome": str(form.outcome), "timing": timing, "cause": form.cause}


def read_form(value: Mapping[str, Any]) -> FormTiming:
    """Return a form's timing from plain data; errors as of `Ledger.recall`."""
    timing = None if value["timing"] is None else read_comparison(value["timing"])
    return FormTiming(outcome=Outcome(value["outcome"]), timing=timing, cause=str(value["cause"]))


def profile_data(profiled: Profiled, sites: Sequence[Site]) -> dict[str, Any]:
    """Return a profile as plain data: of the sites, and of the tensors in their scopes."""
    runs = [profiled.sites[site.key] for site in sites]
    numbered = {scope: number for number, scope in enumerate(dict.fromkeys(site.scope for site in sites))}
    return {
        "seconds": profiled.seconds,
        "sites": [dataclasses.asdict(run) for run in runs],
        "tensors": [
            [numbered[scope], name, shape] for (scope, name), shape in profiled.tensors.items() if scope in numbered
        ],
    }


def read_profile(value: Mapping[str, Any], sites: Sequence[Site]) -> Profiled:
    """Return a profile of the same sites from plain data; errors as of `Ledger.recall`."""
    scopes = list(dict.fromkeys(site.scope for site in sites))
    runs = {
        site.key: SiteRun(
            share=None if run["share"] is None else float(run["share"]),
            shapes=tuple(tuple(map(int, shape)) for shape in run["shapes"]),
            times=int(run["times"]),
            interval=None if run["interval"] is None else (float(run["interval"][0]), float(run["interval"][1])),
        )
        for site, run in zip(sites, value["sites"], strict=True)
    }
    return Profiled(
        seconds=float(value["seconds"]),
        sites=runs,
        tensors={(scopes[number], str(name)): tuple(map(int, shape)) for number, name, shape in value["tensors"]},
    )
