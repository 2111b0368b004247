"""Writes times as trtexec does: `--exportTimes` and `--exportProfile`."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from dilrewrite.options import Places
from dilrewrite.runtimes import Profile
from dilrewrite.staging import Staging

PROFILE_RUNS = 20


def places(exports: Places, count: int) -> list[tuple[str, Path]]:
    """Return option and file of everything that is exported of `count` models."""
    asked = (("--export-times", exports.export_times), ("--export-profile", exports.export_profile))
    return [(option, _other(place, n)) for n in range(count) for option, place in asked if place is not None]


def write(exports: Places, samples: Sequence[Sequence[float]], profile: Callable[[int], Profile], count: int) -> None:
    """Write what was asked for of `count` models; `samples`: seconds of their runs, `profile` makes a profile now."""
    with Staging(force=True) as staging:
        for number in range(count):
            for option, place in places(exports, 1):
                if option == "--export-profile":
                    entries = _layers(profile(number))
                else:
                    entries = [{"computeMs": seconds * 1e3} for seconds in samples[number]]
                staging.add_text(_other(place, number), json.dumps(entries, indent=1) + "\n")
        staging.commit()


def _other(place: Path, number: int) -> Path:
    return place if number == 0 else place.with_name(f"{place.stem}.other{place.suffix}")


def _layers(profile: Profile) -> list[dict[str, object]]:
    """Return a profile as trtexec's --exportProfile has it."""
    by_name: dict[str, list[float]] = {}
    for run in profile.nodes:
        by_name.setdefault(run.name, []).append(run.seconds * 1e3)
    whole = sum(map(sum, by_name.values())) or 1.0
    layers: list[dict[str, object]] = [
        {
            "name": name,
            "timeMs": sum(values),
            "averageMs": sum(values) / len(values),
            "medianMs": statistics.median(values),
            "percentage": 100 * sum(values) / whole,
        }
        for name, values in by_name.items()
    ]
    return [{"count": profile.runs}, *layers]
