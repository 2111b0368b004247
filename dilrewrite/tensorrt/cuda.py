"""Buffers, streams, events and CUDA graphs, by way of torch: the only file that uses torch to reach a GPU.

`Cuda` is what running an engine needs of a GPU, so that its order of calls can be tested without one. `source` travels
with every number that is measured: only "measured" may reach a report.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, final

import numpy as np

from dilrewrite.errors import one_line
from dilrewrite.runtimes import Array, CannotRun, TimeKind
from dilrewrite.runtimes._nvidia import NoGpuError, driver_version, gpu

TORCH = "pip install torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU: its name, compute capability, L2 cache and memory in bytes, and the version of its driver."""

    name: str
    capability: str
    l2_bytes: int
    memory_bytes: int
    driver: str


class Buffer(Protocol):
    """Memory on the GPU."""

    @property
    def address(self) -> int:
        """Return where it begins."""
        ...

    @property
    def nbytes(self) -> int:
        """Return its size."""
        ...


class Stream(Protocol):
    """A queue of work on the GPU that is not the default one."""

    @property
    def handle(self) -> int:
        """Return what the CUDA interface calls it by."""
        ...

    def synchronize(self) -> None:
        """Wait until all work of the queue is done."""
        ...


class Event(Protocol):
    """A mark in a stream."""

    def record(self, stream: Stream) -> None:
        """Put the mark behind the work that is queued."""
        ...

    def synchronize(self) -> None:
        """Wait until the mark is passed."""
        ...

    def seconds_since(self, start: Event) -> float:
        """Return the GPU's seconds between two marks, both of which were passed."""
        ...


class Graph(Protocol):
    """Captured work."""

    def replay(self, stream: Stream) -> None:
        """Queue the work."""
        ...


class Cuda(Protocol):
    """A GPU. Raises CannotRun for what it does not do, out of memory above all."""

    @property
    def source(self) -> TimeKind:
        """Return that times are measured on a real GPU, or estimated on what only looks like one."""
        ...

    def device(self) -> Device:
        """Return what it is."""
        ...

    def stream(self) -> Stream:
        """Make a stream."""
        ...

    def event(self) -> Event:
        """Make an event that tells time."""
        ...

    def upload(self, values: Array) -> Buffer:
        """Copy values to the GPU, and wait for it."""
        ...

    def empty(self, nbytes: int) -> Buffer:
        """Allocate memory."""
        ...

    def download(self, buffer: Buffer, like: Array) -> None:
        """Copy memory of the GPU into an array, and wait for it."""
        ...

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` queues on the stream instead of running it."""
        ...


# -- whether there is one --------------------------------------------------------------------------------------------


def missing() -> str | None:
    """Return None when there are a driver, a GPU, and torch to reach it, else what is not there. Loads no torch."""
    try:
        gpu()
    except NoGpuError as error:
        return str(error)
    try:
        found = importlib.util.find_spec("torch")
    except (ImportError, ValueError):
        found = None
    if found is None:
        return f"torch, which reaches the GPU, is not installed: {TORCH}"
    return None


# -- torch -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _TorchBuffer:
    tensor: Any
    address: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class _TorchStream:
    stream: Any
    handle: int

    def synchronize(self) -> None:
        self.stream.synchronize()


@dataclass(frozen=True, slots=True)
class _TorchEvent:
    event: Any

    def record(self, stream: Stream) -> None:
        assert isinstance(stream, _TorchStream)
        self.event.record(stream.stream)

    def synchronize(self) -> None:
        self.event.synchronize()

    def seconds_since(self, start: Event) -> float:
        assert isinstance(start, _TorchEvent)
        return float(start.event.elapsed_time(self.event)) / 1e3


@dataclass(frozen=True, slots=True)
class _TorchGraph:
    torch: Any
    graph: Any

    def replay(self, stream: Stream) -> None:
        assert isinstance(stream, _TorchStream)
        with self.torch.cuda.stream(stream.stream):
            self.graph.replay()


@final
class TorchCuda:
    """A GPU by way of torch; raises CannotRun where torch does not reach it."""

    @property
    def source(self) -> TimeKind:
        """Return that its times are measured."""
        return TimeKind.MEASURED

    def __init__(self, index: int = 0) -> None:
        import torch

        self._torch: Any = torch
        if not torch.cuda.is_available():
            raise CannotRun("torch is installed without CUDA, or does not reach the GPU")
        if index >= torch.cuda.device_count():
            raise CannotRun(f"there is no GPU {index}: torch sees {torch.cuda.device_count()}")
        self._index = index
        torch.cuda.set_device(index)

    def device(self) -> Device:
        """Return what it is."""
        found = self._torch.cuda.get_device_properties(self._index)
        return Device(
            name=str(found.name),
            capability=f"{found.major}.{found.minor}",
            l2_bytes=int(getattr(found, "L2_cache_size", 0)),
            memory_bytes=int(found.total_memory),
            driver=driver_version(),
        )

    def stream(self) -> Stream:
        """Make a stream."""
        made = self._torch.cuda.Stream(self._index)
        return _TorchStream(made, int(made.cuda_stream))

    def event(self) -> Event:
        """Make an event that tells time."""
        return _TorchEvent(self._torch.cuda.Event(enable_timing=True))

    def upload(self, values: Array) -> Buffer:
        """Copy values to the GPU as bytes: torch has no word for some types."""
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        with self._memory():
            tensor = self._torch.from_numpy(raw.copy()).to(f"cuda:{self._index}")
            self._torch.cuda.synchronize(self._index)
        return _TorchBuffer(tensor, int(tensor.data_ptr()), int(raw.nbytes))

    def empty(self, nbytes: int) -> Buffer:
        """Allocate memory."""
        with self._memory():
            tensor = self._torch.empty(max(nbytes, 1), dtype=self._torch.uint8, device=f"cuda:{self._index}")
        return _TorchBuffer(tensor, int(tensor.data_ptr()), nbytes)

    def download(self, buffer: Buffer, like: Array) -> None:
        """Copy memory of the GPU into an array."""
        assert isinstance(buffer, _TorchBuffer)
        raw = buffer.tensor[: like.nbytes].cpu().numpy()
        like.reshape(-1).view(np.uint8)[:] = raw

    def capture(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """Record what `work` queues."""
        assert isinstance(stream, _TorchStream)
        graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.cuda.graph(graph, stream=stream.stream):
                work()
        except RuntimeError as error:
            raise CannotRun(f"no CUDA graph: {one_line(error)[:200]}") from error
        return _TorchGraph(self._torch, graph)

    @contextlib.contextmanager
    def _memory(self) -> Any:
        try:
            yield
        except self._torch.cuda.OutOfMemoryError as error:
            raise CannotRun(f"the GPU is out of memory: {one_line(error)[:160]}") from error
