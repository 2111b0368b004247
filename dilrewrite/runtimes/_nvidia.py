"""Whether there is an NVIDIA GPU, and how it is doing: the only file that asks its driver and management library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections.abc import Callable
from typing import Any

from dilrewrite.errors import one_line

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
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            told = pynvml.nvmlSystemGetDriverVersion()
        finally:
            pynvml.nvmlShutdown()
    except (ImportError, OSError, _nvml_error()):
        return ""
    return told.decode() if isinstance(told, bytes) else str(told)


def state(index: int = 0) -> dict[str, float]:
    """Return clocks in MHz, power in W, temperature in °C and throttling of a GPU; what is not told is left out.

    Only read, never set.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except (ImportError, OSError, _nvml_error()):
        return {}
    found: dict[str, float] = {}
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        readings: dict[str, Callable[[], float]] = {
            "sm_clock_mhz": lambda: float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
            "memory_clock_mhz": lambda: float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)),
            "power_w": lambda: float(pynvml.nvmlDeviceGetPowerUsage(handle)) / 1e3,
            "temperature_c": lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
            "throttle_reasons": lambda: float(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
        }
        for name, reading in readings.items():
            with contextlib.suppress(_nvml_error()):
                found[name] = reading()
    except _nvml_error():
        return found
    finally:
        pynvml.nvmlShutdown()
    return found


def _nvml_error() -> type[Exception]:
    try:
        import pynvml
    except ImportError:
        return OSError
    error: type[Exception] = pynvml.NVMLError
    return error
