"""The machine that timings are taken on, as far as the system tells, and where it keeps what can be made again."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path


def processor() -> str:
    """Return the processor's name; may be empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load() -> float | None:
    """Return how many processes wanted a core during the last minute, on average; None where it is not told."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def crowded(load: float | None, cores: int) -> bool:
    """Say whether more processes wanted a core than there are."""
    return load is not None and load > cores


def cache_folder() -> Path | None:
    """Return the folder `dilrewrite` in the user's cache folder, which need not be there.

    That is $XDG_CACHE_HOME, or else what the platform has for it; None when there is neither it nor a home folder.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if caches.is_absolute():  # a relative one is to be ignored, says its specification
        return caches / "dilrewrite"
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "dilrewrite"
    usual = {"win32": "AppData/Local", "darwin": "Library/Caches"}.get(sys.platform, ".cache")
    try:
        return Path.home() / usual / "dilrewrite"
    except RuntimeError:  # a user without a home
        return None
