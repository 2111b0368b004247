"""Runs an engine on a GPU: its outputs, its GPU time, the time of its layers. Over `cuda.Cuda`, so it needs no torch.

GPU time is between two CUDA events around the work alone: inputs lie on the GPU before the first, outputs stay there.
Several sets of input buffers take turns, so that the L2 cache does not hold what the last run read.
"""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from dilrewrite.errors import FailedError
from dilrewrite.model.elements import ELEMENTS, dtype
from dilrewrite.runtimes import Array, CannotLoad, CannotRun, Io
from dilrewrite.tensorrt.bindings import Library, probe, put
from dilrewrite.tensorrt.cuda import Buffer, Cuda
from dilrewrite.tensorrt.layers import Layers, from_inspector
from dilrewrite.tensorrt.protocols import ICudaEngine, IExecutionContext

NAMES = {element.tensorrt: element.name for element in ELEMENTS if element.tensorrt}
"""ONNX's words for TensorRT's element types."""

MOST_SETS = 16
"""How many sets of input buffers take turns at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How an engine runs. `graph`: as a CUDA graph where it can be captured; `runtime_cache`: TensorRT for RTX's file
    of compiled kernels, read when it is there.
    """

    graph: bool = True
    runtime_cache: Path | None = None


@final
class Engine:
    """An engine on the GPU: its inputs and outputs, and one execution context."""

    def __init__(self, library: Library, cuda: Cuda, plan: bytes, options: RunOptions | None = None) -> None:
        """Load an engine. Raises CannotLoad with the library's words when it is of another flavour, version or GPU."""
        self.library = library
        self.cuda = cuda
        self.options = options or RunOptions()
        library.clear()
        with library.listening():
            try:
                self._runtime = library.module.Runtime(library.log.handle)
            except TypeError:  # the bindings' word for a constructor that failed
                engine = None
            else:
                engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise CannotLoad(
                f"{library.flavour} {library.version} does not load the engine on {cuda.name}: {library.reasons()}"
            )
        self.engine: ICudaEngine = engine
        started = time.perf_counter()
        with library.listening():
            self._config, self._cache = self._runtime_config()
        self.context = self._context()
        self.load_s = time.perf_counter() - started
        module = library.module
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        reads = [name for name in names if engine.get_tensor_mode(name) == module.TensorIOMode.INPUT]
        self.inputs = tuple(self._io(name) for name in reads)
        self.outputs = tuple(self._io(name) for name in names if name not in reads)
        self.on_host = {name for name in names if engine.get_tensor_location(name) == module.TensorLocation.HOST}

    def _io(self, name: str) -> Io:
        told = str(self.engine.get_tensor_dtype(name)).rpartition(".")[2]
        sizes = tuple(None if size < 0 else int(size) for size in self.engine.get_tensor_shape(name))
        return Io(name=name, element=NAMES.get(told, f"other:{told}"), shape=sizes)

    def _context(self) -> IExecutionContext:
        """Make the context. TensorRT for RTX compiles its kernels now, for each shape, rather than while it runs."""
        with self.library.listening():
            # The overload with a configuration is not in TensorRT's first ten releases; without one there is none.
            create: Any = self.engine.create_execution_context
            context: IExecutionContext | None = create() if self._config is None else create(self._config)
        if context is None:
            raise CannotLoad(f"{self.library.flavour} makes no execution context: {self.library.reasons()}")
        return context

    def _runtime_config(self) -> tuple[Any, Any]:
        """Return the configuration and the runtime cache that only TensorRT for RTX has a use for; None without."""
        strategies = probe(self.library.module, "Module.DynamicShapesKernelSpecializationStrategy")
        if not strategies:
            return None, None
        config: Any = self.engine.create_runtime_config()
        eager = probe(strategies, "DynamicShapesKernelSpecializationStrategy.EAGER")
        put(config, "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy", eager)
        create, file = probe(config, "IRuntimeConfig.create_runtime_cache"), self.options.runtime_cache
        if not create or file is None:
            return config, None
        cache = create()
        with contextlib.suppress(OSError):
            probe(cache, "IRuntimeCache.deserialize")(file.read_bytes())
        probe(config, "IRuntimeConfig.set_runtime_cache")(cache)
        return config, cache

    def runtime_cache(self) -> bytes | None:
        """Return what TensorRT for RTX compiled, for the next time; None where there is no such thing."""
        if self._cache is None:
            return None
        memory = probe(self._cache, "IRuntimeCache.serialize")()
        return bytes(memory) if memory is not None else None

    def layers(self) -> Layers:
        """Return the engine's layers; raises FailedError when it was built to tell none."""
        inspector = self.engine.create_engine_inspector()
        return from_inspector(inspector.get_engine_information(self.library.module.LayerInformationFormat.JSON))

    # -- buffers -------------------------------------------------------------------------------------------------

    def accept(self, feeds: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
        """Tell the context the inputs' sizes; return those of the outputs.

        Raises CannotRun, naming the input, for sizes outside of the profile that the engine was built for.
        """
        for io in self.inputs:
            if io.name not in feeds:
                raise CannotRun(f"input {io.name!r} is not given")
            shape = tuple(np.shape(feeds[io.name]))
            self._within(io, shape)
            if None not in (io.shape or ()) or tuple(self.context.get_tensor_shape(io.name)) == shape:
                continue
            if not self.context.set_input_shape(io.name, shape):
                raise CannotRun(f"input {io.name!r}: {self.library.flavour} does not take the shape {list(shape)}")
        return {io.name: tuple(int(size) for size in self.context.get_tensor_shape(io.name)) for io in self.outputs}

    def _within(self, io: Io, shape: tuple[int, ...]) -> None:
        if io.shape is None or None not in io.shape:
            if io.shape is not None and io.shape != shape:
                raise CannotRun(f"input {io.name!r} is {list(shape)}, and the engine was built for {list(io.shape)}")
            return
        low, _, high = (tuple(map(int, sizes)) for sizes in self.engine.get_tensor_profile_shape(io.name, 0))
        fits = len(low) == len(shape) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if not fits:
            raise CannotRun(
                f"input {io.name!r} is {list(shape)}, and the engine's profile is {list(low)} to {list(high)}"
            )

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, tuple[Buffer, Array]]) -> None:
        """Give every tensor its memory."""
        for name, buffer in {**inputs, **{name: buffer for name, (buffer, _) in outputs.items()}}.items():
            if not self.context.set_tensor_address(name, buffer.address):
                raise CannotRun(f"{self.library.flavour} does not take the memory of {name!r}")

    def upload(self, feeds: Mapping[str, Array]) -> dict[str, Buffer]:
        """Copy the inputs to the GPU, in the types that the engine reads."""
        buffers: dict[str, Buffer] = {}
        for io in self.inputs:
            value = np.asarray(feeds[io.name])
            if value.dtype != _type(io):
                raise CannotRun(f"input {io.name!r} is {value.dtype}, and the engine wants {io.element}")
            if io.name in self.on_host:
                raise CannotRun(f"input {io.name!r} holds sizes, which is not supported")
            buffers[io.name] = self.cuda.upload(value)
        return buffers

    def allocate(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[Buffer, Array]]:
        """Allocate the outputs, on the GPU and here."""
        buffers: dict[str, tuple[Buffer, Array]] = {}
        for io in self.outputs:
            shape = shapes[io.name]
            if any(size < 0 for size in shape):
                raise CannotRun(f"output {io.name!r} has sizes that depend on data: not supported")
            if io.name in self.on_host:
                raise CannotRun(f"output {io.name!r} holds sizes, which is not supported")
            here = np.zeros(shape, _type(io))
            buffers[io.name] = (self.cuda.empty(here.nbytes), here)
        return buffers

    def enqueue(self, stream: Any) -> None:
        """Queue one run. Raises CannotRun when it cannot be."""
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise CannotRun(f"{self.library.flavour} does not run the engine: {self.library.reasons()}")

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Return all outputs of one run."""
        shapes = self.accept(feeds)
        stream = self.cuda.stream()
        inputs, outputs = self.upload(feeds), self.allocate(shapes)
        self.bind(inputs, outputs)
        self.enqueue(stream)
        stream.synchronize()
        for buffer, here in outputs.values():
            self.cuda.download(buffer, here)
        return {name: here for name, (_, here) in outputs.items()}


def _type(io: Io) -> np.dtype[Any]:
    try:
        return dtype(io.element)
    except KeyError:
        raise CannotRun(f"{io.name!r} is of type {io.element}, which is not supported") from None


@final
class TimedRun:
    """An engine bound to inputs on the GPU; each `run` returns the GPU's seconds of the work alone."""

    def __init__(self, engine: Engine, feeds: Mapping[str, Array]) -> None:
        self.engine = engine
        cuda = engine.cuda
        self._feeds = feeds
        self._stream = cuda.stream()
        self._outputs = engine.allocate(engine.accept(feeds))
        self._sets = [engine.upload(feeds) for _ in range(self._count(feeds))]
        self._start, self._end = cuda.event(), cuda.event()
        self._turn = 0
        started = time.perf_counter()
        self._bind(0)
        engine.enqueue(self._stream)  # allocations and compilation happen in the first run, outside of a graph
        self._stream.synchronize()
        self.first_s = engine.load_s + time.perf_counter() - started
        """Seconds of making the context and of the first run: with TensorRT for RTX, the compiling."""
        self._graphs: list[Any] = []
        if engine.options.graph and self._capturable():
            with contextlib.suppress(CannotRun):
                self._graphs = [self._captured(turn) for turn in range(len(self._sets))]
        self.captured = bool(self._graphs)

    def _count(self, feeds: Mapping[str, Array]) -> int:
        """Return how many sets of inputs are larger than the L2 cache together."""
        nbytes = sum(np.asarray(value).nbytes for value in feeds.values())
        return min(max(2, math.ceil(2 * self.engine.cuda.l2_bytes / max(nbytes, 1))), MOST_SETS)

    def _capturable(self) -> bool:
        asked = probe(self.engine.context, "IExecutionContext.is_stream_capturable")
        return bool(asked(self._stream.cuda_stream)) if asked else True

    def _bind(self, turn: int) -> None:
        """Set sizes and all memory: other runs of the engine, since the last one here, had their own."""
        self.engine.accept(self._feeds)
        self.engine.bind(self._sets[turn], self._outputs)

    def _captured(self, turn: int) -> Any:
        self._bind(turn)
        return self.engine.cuda.capture(self._stream, lambda: self.engine.enqueue(self._stream))

    def run(self) -> float:
        """Run once on the next set of inputs; return the GPU's seconds."""
        turn = self._turn
        self._turn = (turn + 1) % len(self._sets)
        if self._graphs:
            self._start.record(self._stream)
            self.engine.cuda.replay(self._graphs[turn], self._stream)
        else:
            self._bind(turn)
            self._start.record(self._stream)
            self.engine.enqueue(self._stream)
        self._end.record(self._stream)
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1e3

    def outputs(self) -> dict[str, Array]:
        """Return all outputs of one run."""
        return self.engine.run(self._feeds)

    def close(self) -> None:
        """Free the buffers and graphs."""
        self._graphs, self._sets, self._outputs, self._feeds = [], [], {}, {}


def layer_times(engine: Engine, feeds: Mapping[str, Array], runs: int) -> list[tuple[str, float]]:
    """Return (layer, seconds) of each layer in each of `runs` runs, without CUDA graphs, after one run to warm up.

    The library's profiler adds to each layer's time: shares of the whole, not timings. A context keeps its profiler
    for good, so this one runs in a context of its own.
    """
    engine = copy.copy(engine)  # which shares nothing but the runtime cache
    engine.context = engine._context()
    times: list[tuple[str, float]] = []
    base = engine.library.module.IProfiler

    def report_layer_time(_self: Any, name: str, milliseconds: float) -> None:
        times.append((name, milliseconds / 1e3))

    shapes = engine.accept(feeds)
    stream = engine.cuda.stream()
    inputs, outputs = engine.upload(feeds), engine.allocate(shapes)
    engine.bind(inputs, outputs)
    engine.enqueue(stream)
    stream.synchronize()
    engine.context.enqueue_emits_profile = False
    engine.context.profiler = type("DilrewriteProfiler", (base,), {"report_layer_time": report_layer_time})()
    for _ in range(runs):
        engine.enqueue(stream)
        stream.synchronize()
        if not engine.context.report_to_profiler():
            raise FailedError(f"{engine.library.flavour} reports no layer times: {engine.library.reasons()}")
    return times


def median_layer_times(times: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Return the median seconds of each layer over its runs, in the order of the engine."""
    by_name: dict[str, list[float]] = {}
    for name, seconds in times:
        by_name.setdefault(name, []).append(seconds)
    return {name: float(np.median(values)) for name, values in by_name.items()}
