"""Whether there is an NVIDIA GPU, and how it is doing: the only file that asks its driver and management library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from dilrewrite.errors import one_line

T = TypeVar("T")

_NO_DEVICE = 100


class NoGpuError(Exception):
    """There is no GPU to run on; the reason is one line."""


def driver() -> Any:
    """Return the driver's library. Raises OSError."""
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def gpu() -> tuple[str, tuple[int, int]]:
    """Return the first GPU's name and the CUDA version that its driver supports. Raises NoGpuError."""
    try:
        library = driver()
    except OSError as error:
        raise NoGpuError(f"there is no NVIDIA driver: {one_line(error)}") from error
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    status = (
        library.cuInit(0)
        or library.cuDeviceGetCount(ctypes.byref(count))
        or (_NO_DEVICE if count.value < 1 else 0)
        or library.cuDeviceGet(ctypes.byref(device), 0)
        or library.cuDeviceGetName(name, len(name), device)
        or library.cuDriverGetVersion(ctypes.byref(version))
    )
    if status == _NO_DEVICE:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}"
        raise NoGpuError(f"there is no CUDA device{hidden}")
    if status:
        word = ctypes.c_char_p()
        library.cuGetErrorName(status, ctypes.byref(word))
        raise NoGpuError(f"the NVIDIA driver does not work: {(word.value or b'error %d' % status).decode()}")
    return name.value.decode(errors="replace"), (version.value // 1000, version.value % 1000 // 10)


def driver_version() -> str:
    """Return the version of the NVIDIA driver; empty when nothing tells it."""
    told = _asked(lambda nvml: nvml.nvmlSystemGetDriverVersion(), "")
    return told.decode() if isinstance(told, bytes) else str(told)


def state(index: int = 0) -> dict[str, float]:
    """Return clocks in MHz, power in W, temperature in °C and throttling of a GPU; what is not told is left out.

    Only read, never set.
    """

    def readings(nvml: Any) -> dict[str, float]:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        asked: dict[str, Callable[[], float]] = {
            "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
            "temperature_c": lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "throttle_reasons": lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
        }
        told: dict[str, float] = {}
        for name, reading in asked.items():
            with contextlib.suppress(nvml.NVMLError):
                told[name] = float(reading())
        return told

    return _asked(readings, {})


def _asked(ask: Callable[[Any], T], otherwise: T) -> T:
    """Return what NVIDIA's management library tells, or `otherwise` where it is not there or does not work."""
    try:
        import pynvml
    except (ImportError, OSError):
        return otherwise
    try:
        pynvml.nvmlInit()
        try:
            return ask(pynvml)
        finally:
            pynvml.nvmlShutdown()
    except (OSError, pynvml.NVMLError):
        return otherwise
