"""A GPU by way of torch, the only file that uses it: memory, streams, events and CUDA graphs.

Running an engine asks `Cuda` alone, so that tests can put a fake in its place. `source` travels with every number that
is measured: only measured ones may reach a report.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from dilrewrite.errors import one_line
from dilrewrite.runtimes import Array, CannotRun, TimeKind
from dilrewrite.runtimes._nvidia import NoGpuError, gpu

TORCH = "pip install torch"


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory on the GPU: where it begins, its size, and torch's tensor, with which it is freed."""

    address: int
    nbytes: int
    tensor: Any


def missing() -> str | None:
    """Return None when there are a driver, a GPU, and torch to reach it, else what is not there. Loads no torch."""
    try:
        gpu()
    except NoGpuError as error:
        return str(error)
    with contextlib.suppress(ImportError, ValueError):
        if importlib.util.find_spec("torch") is not None:
            return None
    return f"torch, which reaches the GPU, is not installed: {TORCH}"


@final
class Cuda:
    """A GPU: its `name`, its L2 cache in bytes, and what it does; its streams, events and graphs are torch's own.

    Raises CannotRun where torch does not reach it, and for what it does not do, out of memory above all.
    """

    source: ClassVar = TimeKind.MEASURED

    def __init__(self, index: int = 0) -> None:
        import torch

        self._torch: Any = torch
        if not torch.cuda.is_available():
            raise CannotRun("torch is installed without CUDA, or does not reach the GPU")
        if index >= torch.cuda.device_count():
            raise CannotRun(f"there is no GPU {index}: torch sees {torch.cuda.device_count()}")
        self._index = index
        torch.cuda.set_device(index)
        properties = torch.cuda.get_device_properties(index)
        self.name, self.l2_bytes = str(properties.name), int(getattr(properties, "L2_cache_size", 0))

    def stream(self) -> Any:
        """Make a queue of work that is not the default one."""
        return self._torch.cuda.Stream(self._index)

    def event(self) -> Any:
        """Make a mark to record in streams, which tells time in milliseconds."""
        return self._torch.cuda.Event(enable_timing=True)

    def upload(self, values: Array) -> Buffer:
        """Copy values to the GPU as bytes, since torch has no word for some types, and wait for it."""
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        with self._memory():
            tensor = self._torch.from_numpy(raw.copy()).to(f"cuda:{self._index}")
            self._torch.cuda.synchronize(self._index)
        return Buffer(int(tensor.data_ptr()), int(raw.nbytes), tensor)

    def empty(self, nbytes: int) -> Buffer:
        """Allocate memory."""
        with self._memory():
            tensor = self._torch.empty(max(nbytes, 1), dtype=self._torch.uint8, device=f"cuda:{self._index}")
        return Buffer(int(tensor.data_ptr()), nbytes, tensor)

    def download(self, buffer: Buffer, like: Array) -> None:
        """Copy memory of the GPU into an array, and wait for it."""
        like.reshape(-1).view(np.uint8)[:] = buffer.tensor[: like.nbytes].cpu().numpy()

    def capture(self, stream: Any, work: Callable[[], None]) -> Any:
        """Record what `work` queues on the stream instead of running it; return the graph."""
        graph = self._torch.cuda.CUDAGraph()
        try:
            with self._torch.cuda.graph(graph, stream=stream):
                work()
        except RuntimeError as error:
            raise CannotRun(f"no CUDA graph: {one_line(error)[:200]}") from error
        return graph

    def replay(self, graph: Any, stream: Any) -> None:
        """Queue captured work."""
        with self._torch.cuda.stream(stream):
            graph.replay()

    @contextlib.contextmanager
    def _memory(self) -> Iterator[None]:
        try:
            yield
        except self._torch.cuda.OutOfMemoryError as error:
            raise CannotRun(f"the GPU is out of memory: {one_line(error)[:160]}") from error
