"""Times on a GPU through PyTorch: CUDA graphs where they capture, events around them, the L2 cache flushed before each.

In a dry run the same code runs on the CPU, by the clock; every row says which it was (`source`).
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from _gpu_plan import Row
from _gpu_rows import compared

from dilrewrite.runtimes._nvidia import driver_version, state
from dilrewrite.timing.stopwatch import HOPELESS, MIN_PAIRS, turns

PRECISIONS = {"tf32": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

PART = 10
"""Pairs between two looks at the clock."""

MAX_PAIRS = 100
WARM_RUNS = 3
USUAL_L2 = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How convolutions run: `layout` is first or last (of the channels in memory), `autotuned` is cudnn.benchmark."""

    precision: str
    layout: str = "first"
    deterministic: bool = False
    autotuned: bool = False
    batch: int = 1

    @property
    def name(self) -> str:
        """In words, as rows have it."""
        more = [", deterministic"] * self.deterministic + [", autotuned"] * self.autotuned
        return f"{self.precision}, channels {self.layout}, batch {self.batch}{''.join(more)}"

    def put(self, tensor: Any, device: str) -> Any:
        """A tensor in this element type and layout, on a device."""
        tensor = tensor.to(device, PRECISIONS[self.precision])
        return tensor.contiguous(memory_format=self.format(tensor.dim()))

    def format(self, dimensions: int) -> Any:
        """How a tensor of so many axes lies in memory."""
        last = {4: torch.channels_last, 5: torch.channels_last_3d}
        return last.get(dimensions, torch.contiguous_format) if self.layout == "last" else torch.contiguous_format


@contextmanager
def cudnn(setting: Setting) -> Iterator[None]:
    """Set what cuDNN heeds."""
    torch.backends.cudnn.deterministic = setting.deterministic
    torch.backends.cudnn.benchmark = setting.autotuned
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = setting.precision == "tf32"
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, False


def begin(dry_run: bool) -> tuple[str, Row]:
    """The device to run on, and what it is. Raises RuntimeError where there is no GPU and it is no dry run."""
    warnings.simplefilter("ignore")
    found: Row = {"torch": torch.__version__}
    if dry_run:
        torch.set_num_threads(1)
        return "cpu", {**found, "device": "no GPU: a dry run on the CPU"}
    if not torch.cuda.is_available():
        raise RuntimeError(f"torch {torch.__version__} reaches no CUDA device")
    properties = torch.cuda.get_device_properties(0)
    found |= {
        "device": properties.name,
        "driver": driver_version() or "not told",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "state": state(),
    }
    return "cuda", found


def healthy() -> bool:
    """Say whether the device still answers; after an illegal access it does not, in this process."""
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        return False
    return True


@dataclass(frozen=True)
class Run:
    """Something to time, warmed up: `launch` starts it, `output` is what it makes, `how` it is launched."""

    launch: Callable[[], Any]
    output: Any
    how: str


class Clock:
    """Times runs in pairs on one device; what is launched there goes to one stream."""

    def __init__(self, device: str, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.gpu = device == "cuda"
        self.about = {"source": "gpu" if self.gpu else "cpu", "l2": "flushed" if self.gpu else "as it is"}
        if self.gpu:
            self._stream = torch.cuda.Stream()
            torch.cuda.set_stream(self._stream)
            bytes_ = 2 * (getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or USUAL_L2)
            self._flush = torch.empty(bytes_, dtype=torch.int8, device=device)

    def prepare(self, work: Callable[[], Any]) -> Run:
        """Warm up, and capture as a CUDA graph where that goes."""
        for _ in range(WARM_RUNS if self.gpu else 1):
            output = work()
        if not self.gpu:
            return Run(work, output, "clock")
        torch.cuda.synchronize()
        graph: Any = torch.cuda.CUDAGraph()
        try:
            # Not `torch.cuda.graph`: it collects garbage and empties the allocator's cache before each capture.
            graph.capture_begin()
            try:
                output = work()
            finally:
                graph.capture_end()
            graph.replay()
            torch.cuda.synchronize()
        except Exception as error:  # whatever cannot be captured: it can still be launched
            torch.cuda.synchronize()
            return Run(work, work(), f"events: {' '.join(str(error).split())[:80]}")
        return Run(graph.replay, output, "graph")

    def compare(self, first: Run, second: Run, noise: float | None = None) -> Row:
        """Time `second` against `first` in pairs, and give the columns of a row."""
        samples: tuple[list[float], list[float]] = ([], [])
        start = time.monotonic()
        least = max(MIN_PAIRS, PART if self.gpu else 0)
        while len(samples[0]) < MAX_PAIRS:
            for who, seconds in self._timed((first, second), turns(PART if self.gpu else 2)):
                samples[who].append(seconds)
            if len(samples[0]) < least:
                continue
            lost = min(b / a for a, b in zip(*samples, strict=True)) > HOPELESS
            if lost or time.monotonic() - start > self.seconds:
                break
        return {**self.about, "how": second.how, **compared(samples, noise)}

    def _timed(self, runs: Sequence[Run], order: Sequence[tuple[int, int]]) -> list[tuple[int, float]]:
        places = [who for turn in order for who in turn]
        if not self.gpu:
            found = []
            for who in places:
                start = time.perf_counter()
                runs[who].launch()
                found.append((who, max(time.perf_counter() - start, 1e-9)))
            return found
        events: list[tuple[int, Any, Any]] = []
        for who in places:
            before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._flush.zero_()
            before.record()
            runs[who].launch()
            after.record()
            events.append((who, before, after))
        torch.cuda.synchronize()
        return [(who, max(before.elapsed_time(after) / 1e3, 1e-9)) for who, before, after in events]


def apart(first: Any, second: Any) -> float:
    """The distance of two tensors as a share of the first one's norm; infinite where it is no number."""
    if first.shape != second.shape:
        return math.inf
    a, b = first.detach().double(), second.detach().double()
    found = float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(a).clamp_min(1e-30))
    return found if math.isfinite(found) else math.inf
