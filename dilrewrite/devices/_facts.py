"""What a board says of itself: what timings depend on, and how warm it is. Runs there, with nothing but Python."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dilrewrite import machine

ROOT = Path("/")
CPUS = "sys/devices/system/cpu"
ZONES = "sys/class/thermal"


def facts(folder: Path, root: Path = ROOT) -> dict[str, Any]:
    """Return a board's model, kernel, Python, governors, cores, the limit of its clocks (MHz), free bytes in a folder.

    `machine`: a digest of what no other machine has. What the system does not tell is empty, or 0.
    """
    governors = {text for text in _texts(root, f"{CPUS}/cpu[0-9]*/cpufreq/scaling_governor") if text}
    limits = _numbers(root, f"{CPUS}/cpu[0-9]*/cpufreq/scaling_max_freq")
    own = [_text(root / name) for name in ("etc/machine-id", "proc/device-tree/serial-number")]
    return {
        "model": _text(root / "proc/device-tree/model"),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "governor": ", ".join(sorted(governors)),
        "cores": machine.cores(),
        "online": os.cpu_count() or 1,
        "max_mhz": round(max(limits, default=0) / 1e3),
        "machine": hashlib.sha256("\n".join([*own, platform.node()]).encode()).hexdigest()[:16],
        "free": shutil.disk_usage(folder).free,
    }


def state(root: Path = ROOT) -> dict[str, float]:
    """Return the mean of the cores' clocks (MHz), the highest temperature (°C) and the load, as they are now."""
    told: dict[str, float] = {}
    clocks = list(_numbers(root, f"{CPUS}/cpu[0-9]*/cpufreq/scaling_cur_freq"))
    if clocks:
        told["clock_mhz"] = round(sum(clocks) / len(clocks) / 1e3, 1)
    warm = [one / 1e3 for one in _numbers(root, f"{ZONES}/thermal_zone*/temp") if 0 < one < 150_000]
    if warm:
        told["temperature_c"] = max(warm)
    load = machine.load()
    if load is not None:
        told["load"] = round(load, 2)
    return told


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes().decode(errors="replace").strip("\0 \n")
    return ""


def _texts(root: Path, pattern: str) -> Iterator[str]:
    return map(_text, sorted(root.glob(pattern)))


def _numbers(root: Path, pattern: str) -> Iterator[float]:
    for text in _texts(root, pattern):
        with contextlib.suppress(ValueError):
            yield float(text)
