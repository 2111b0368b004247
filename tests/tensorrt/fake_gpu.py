# ruff: noqa: ARG002, N802 - stand-ins with another library's names
"""Fakes of a GPU and of TensorRT: nothing here runs on a GPU, and no time of it is measured.

`FakeCuda` has a clock that only scripted work moves. It writes down what is asked of it (`calls`), and it is strict:
what a real GPU answers with a wrong number or wrong data, and mostly without an error, raises `FakeMisuse`.
"""

from __future__ import annotations

import enum
import itertools
import json
import os
import weakref
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import ml_dtypes
import numpy as np

from dilrewrite.runtimes import Array, CannotRun, TimeKind
from dilrewrite.tensorrt.bindings import Library, Log
from dilrewrite.tensorrt.protocols import Module

Shape = tuple[int, ...]
Seconds = float | Sequence[float] | Callable[[int], float]

DEFAULT_STREAM = 0
TRANSFERS = ("upload", "download", "empty")


class FakeMisuse(AssertionError):  # noqa: N818 - it reads as what it says
    """What a GPU must not be asked for."""


# -- the GPU ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)  # slots leave no room for weak references before Python 3.11
class FakeBuffer:
    """Memory. It is freed with its last reference, as torch does it."""

    address: int
    values: Array

    @property
    def nbytes(self) -> int:
        return int(self.values.nbytes)


@dataclass(eq=False)
class FakeWork:
    """One run of an engine. It keeps no memory alive: a GPU knows addresses only."""

    engine: FakeEngine
    memory: dict[str, weakref.ref[FakeBuffer]]
    shapes: dict[str, Shape]
    profiled: bool

    @property
    def addresses(self) -> dict[str, int]:
        return {name: self.buffer(name).address for name in self.memory}

    def buffer(self, name: str) -> FakeBuffer:
        found = self.memory[name]()
        if found is None:
            raise FakeMisuse(f"the memory of {name!r} was freed, and a run needs it")
        return found

    def compute(self) -> None:
        def view(tensor: FakeTensor) -> Array:
            count = int(np.prod(self.shapes[tensor.name])) * tensor.dtype.itemsize
            return self.buffer(tensor.name).values[:count].view(tensor.dtype).reshape(self.shapes[tensor.name])

        found = self.engine.compute({tensor.name: view(tensor) for tensor in self.engine.inputs})
        for tensor in self.engine.outputs:
            view(tensor)[...] = found[tensor.name].astype(tensor.dtype)


@dataclass(eq=False)
class FakeStream:
    """A queue. What is in it happens when someone waits for it."""

    cuda: FakeCuda
    cuda_stream: int
    queue: list[FakeWork] = field(default_factory=list)
    done: int = 0
    idle_at_s: float = 0.0
    failed: bool = False
    events: list[FakeEvent] = field(default_factory=list)

    def synchronize(self) -> None:
        self.cuda.check_no_capture("waiting for a stream")
        self.check_no_failure("waiting for")
        self.cuda.note("synchronize_stream", self.cuda_stream)
        self.finish(len(self.queue), self.idle_at_s)
        for event in self.events:
            event.waited = True

    def check_no_failure(self, what: str) -> None:
        if self.failed:
            raise FakeMisuse(f"{what} stream {self.cuda_stream}, where the last run was not queued: False was ignored")

    def push(self, work: FakeWork) -> None:
        self.cuda.runs.append(work.addresses)
        self.queue.append(work)
        self.idle_at_s = max(self.idle_at_s, self.cuda.now_s) + work.engine.next_seconds()

    def finish(self, count: int, at_s: float) -> None:
        for work in self.queue[self.done : count]:
            work.compute()
        self.done = max(self.done, count)
        self.cuda.now_s = max(self.cuda.now_s, at_s)


@dataclass(eq=False)
class FakeEvent:
    """A mark in a stream."""

    cuda: FakeCuda
    number: int
    stream: FakeStream | None = None
    place: int = 0
    said: int = 0
    at_s: float = 0.0
    waited: bool = False

    def record(self, stream: FakeStream) -> None:
        self.cuda.check_no_capture("recording an event that tells time")
        stream.check_no_failure("an event in")
        self.cuda.note("record", self.number, stream.cuda_stream)
        self.stream, self.place, self.said = stream, len(stream.queue), len(self.cuda.calls)
        self.at_s = max(stream.idle_at_s, self.cuda.now_s)
        self.waited = False
        stream.events.append(self)

    def synchronize(self) -> None:
        self.cuda.check_no_capture("waiting for an event")
        self.cuda.note("synchronize_event", self.number)
        if self.stream is None:
            raise FakeMisuse(f"event {self.number} was never recorded")
        self.stream.check_no_failure("waiting for an event in")
        self.stream.finish(self.place, self.at_s)
        self.waited = True

    def elapsed_time(self, end: FakeEvent) -> float:
        return 1e3 * end.seconds_since(self)

    def seconds_since(self, start: FakeEvent) -> float:
        self.cuda.note("seconds_since", self.number, start.number)
        for event in (start, self):
            if event.stream is None:
                raise FakeMisuse(f"event {event.number} was never recorded")
        assert self.stream is not None
        self.stream.check_no_failure("a time of")
        if not self.waited:
            raise FakeMisuse(f"event {self.number} is read before it was waited for")
        if start.stream is not self.stream or start.said > self.said:
            raise FakeMisuse("the two events are not one after the other in one stream")
        between = [call[0] for call in self.cuda.calls[start.said : self.said] if call[0] in TRANSFERS]
        if between:
            raise FakeMisuse(f"between the two events of a time there is: {', '.join(between)}")
        timed = self.stream.queue[start.place : self.place]
        if not timed:
            raise FakeMisuse("between the two events of a time there is no work")
        if any(work.profiled for work in timed):
            raise FakeMisuse("what is timed runs with a profiler")
        return self.at_s - start.at_s


@dataclass(eq=False)
class FakeGraph:
    """Captured work."""

    cuda: FakeCuda
    number: int
    works: list[FakeWork]

    def replay(self, stream: FakeStream) -> None:
        self.cuda.check_no_capture("replaying a graph")
        self.cuda.own_stream(stream.cuda_stream, "a graph is replayed")
        stream.check_no_failure("replaying in")
        self.cuda.note("replay", self.number, stream.cuda_stream)
        for work in self.works:
            stream.push(work)


@dataclass(eq=False)
class FakeCapture:
    """A graph that is being captured."""

    stream: FakeStream
    works: list[FakeWork] = field(default_factory=list)
    failed: bool = False


@dataclass(eq=False, kw_only=True)
class FakeCuda:
    """Stands for a GPU; `calls` is what happened, in order, and `runs` the addresses that each run was given.

    `captures`: how many graphs can be captured before it fails. `memory_bytes` is kept to: what is alive counts.
    """

    name: str = "Fake GPU"
    l2_bytes: int = 0
    memory_bytes: int = 1 << 20
    captures: int = 1 << 20
    now_s: float = 0.0
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    runs: list[dict[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.default_stream = FakeStream(self, DEFAULT_STREAM)
        self.streams = {DEFAULT_STREAM: self.default_stream}
        self.capturing: FakeCapture | None = None
        self._alive: weakref.WeakValueDictionary[int, FakeBuffer] = weakref.WeakValueDictionary()
        self._address = 0x7F00_0000_0000
        self._events = itertools.count()
        self._graphs = itertools.count()

    @property
    def source(self) -> TimeKind:
        return TimeKind.ESTIMATED

    def stream(self) -> FakeStream:
        made = FakeStream(self, 0x1000 + len(self.streams))
        self.streams[made.cuda_stream] = made
        self.note("stream", made.cuda_stream)
        return made

    def event(self) -> FakeEvent:
        return FakeEvent(self, next(self._events))

    def upload(self, values: Array) -> FakeBuffer:
        self.check_no_capture("a copy")
        raw = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        return self._allocate("upload", raw.copy())

    def empty(self, nbytes: int) -> FakeBuffer:
        self.check_no_capture("an allocation")
        return self._allocate("empty", np.full(nbytes, 0xAA, np.uint8))

    def download(self, buffer: FakeBuffer, like: Array) -> None:
        self.check_no_capture("a copy")
        self.note("download", buffer.address)
        for stream in self.streams.values():
            if any(ref() is buffer for work in stream.queue[stream.done :] for ref in work.memory.values()):
                raise FakeMisuse("memory is read before the run that writes it was waited for")
        like.reshape(-1).view(np.uint8)[:] = buffer.values[: like.nbytes]

    def capture(self, stream: FakeStream, work: Callable[[], None]) -> FakeGraph:
        self.check_no_capture("another capture")
        self.own_stream(stream.cuda_stream, "a graph is captured")
        number = next(self._graphs)
        self.note("capture", number, stream.cuda_stream)
        if number >= self.captures:
            raise CannotRun("no CUDA graph: operation not permitted when stream is capturing")
        self.capturing = found = FakeCapture(stream)
        try:
            work()
        finally:
            self.capturing = None
            self.note("captured", number)
        if found.failed:
            raise FakeMisuse("a graph lacks a run that was not queued: False was ignored")
        if not found.works:
            raise FakeMisuse("a graph is empty")
        return FakeGraph(self, number, found.works)

    def replay(self, graph: FakeGraph, stream: FakeStream) -> None:
        graph.replay(stream)

    # -- for those who look at it --------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Return the names of all calls."""
        return [call[0] for call in self.calls]

    def the(self, name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of all calls of one name."""
        return [call[1:] for call in self.calls if call[0] == name]

    def alive_bytes(self) -> int:
        """Return the size of the memory that is not freed."""
        return sum(buffer.nbytes for buffer in self._alive.values())

    # -- for the other fakes -------------------------------------------------------------------------------------

    def note(self, *call: Any) -> None:
        self.calls.append(call)

    def check_no_capture(self, what: str) -> None:
        if self.capturing is not None:
            raise FakeMisuse(f"{what} while a graph is captured")

    def own_stream(self, handle: int, what: str) -> FakeStream:
        if handle == DEFAULT_STREAM:
            raise FakeMisuse(f"{what} on the default stream")
        if handle not in self.streams:
            raise FakeMisuse(f"{what} on {handle}, which is no stream")
        return self.streams[handle]

    def at(self, address: int) -> FakeBuffer | None:
        return self._alive.get(address)

    def _allocate(self, call: str, values: Array) -> FakeBuffer:
        if self.alive_bytes() + values.nbytes > self.memory_bytes:
            raise CannotRun(f"the GPU is out of memory: {values.nbytes} bytes more than {self.alive_bytes()}")
        made = FakeBuffer(self._address, values)
        self._address += (values.nbytes // 512 + 1) * 512
        self._alive[made.address] = made
        self.note(call, made.address, values.nbytes)
        return made


# -- what an engine does ----------------------------------------------------------------------------------------------


class FakeDataType(enum.Enum):
    FLOAT = "float32"
    HALF = "float16"
    BF16 = "bfloat16"
    INT64 = "int64"
    BOOL = "bool"
    INT4 = "int4"


class FakeTensorIOMode(enum.Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class FakeTensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class FakeLayerInformationFormat(enum.Enum):
    ONELINE = 0
    JSON = 1


class FakeKernelSpecialization(enum.Enum):
    """Stands for DynamicShapesKernelSpecializationStrategy."""

    LAZY = 0
    EAGER = 1
    NONE = 2


@dataclass(frozen=True, kw_only=True)
class FakeTensor:
    """An input or output: -1 is an unknown extent, `profile` are its smallest, best and largest sizes.

    The unknown sizes of an output are those of the first input, unless they depend on data.
    """

    name: str
    type: FakeDataType = FakeDataType.FLOAT
    shape: Shape = (1, 3)
    profile: tuple[Shape, Shape, Shape] | None = None
    on_host: bool = False
    depends_on_data: bool = False

    @property
    def dtype(self) -> np.dtype[Any]:
        found: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16 if self.type is FakeDataType.BF16 else self.type.value)
        return found

    @property
    def dynamic(self) -> bool:
        return -1 in self.shape


LAYERS = {"Layers": [{"Name": "conv", "LayerType": "CaskConvolution"}, {"Name": "relu", "LayerType": "PointWise"}]}


@dataclass(eq=False, kw_only=True)
class FakeEngine:
    """The script of an engine.

    `compute`: outputs by name of inputs by name; without it, outputs are twice the first input.
    `seconds`: what its runs take on the GPU: always the same, one after the other (the last one stays), or by number.
    `compile_s`: what the host waits in the first run of TensorRT for RTX, unless the runtime cache knows it.
    `fails`: the calls of execute_async_v3, by number, that return False.
    `layers`: layers and milliseconds of a run with a profiler, by number.
    """

    inputs: tuple[FakeTensor, ...] = (FakeTensor(name="x"),)
    outputs: tuple[FakeTensor, ...] = (FakeTensor(name="y"),)
    computes: Callable[[dict[str, Array]], dict[str, Array]] | None = None
    seconds: Seconds = 1e-3
    compile_s: float = 0.0
    fails: Container[int] = ()
    makes_context: bool = True
    capturable: bool = True
    refuses_sizes: bool = False
    refuses_memory_of: str = ""
    layers: Callable[[int], Sequence[tuple[str, float]]] = lambda _: (("conv", 1.0), ("relu", 0.25))
    reports_layers: bool = True
    inspected: str = json.dumps(LAYERS)

    def __post_init__(self) -> None:
        self._runs = itertools.count()
        self.executions = itertools.count()

    def tensor(self, name: str) -> FakeTensor:
        return next(tensor for tensor in (*self.inputs, *self.outputs) if tensor.name == name)

    def compute(self, inputs: dict[str, Array]) -> dict[str, Array]:
        if self.computes is not None:
            return self.computes(inputs)
        doubled = inputs[self.inputs[0].name] * 2
        return {tensor.name: doubled for tensor in self.outputs}

    def next_seconds(self) -> float:
        number = next(self._runs)
        if callable(self.seconds):
            return self.seconds(number)
        return self.seconds[min(number, len(self.seconds) - 1)] if isinstance(self.seconds, Sequence) else self.seconds


# -- TensorRT ---------------------------------------------------------------------------------------------------------


class FakeILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.made = True

    def log(self, severity: int, message: str) -> None:
        raise FakeMisuse("a logger must have a log of its own")


class FakeIProfiler:
    def __init__(self) -> None:
        self.made = True

    def report_layer_time(self, name: str, milliseconds: float) -> None:
        raise FakeMisuse("a profiler must have a report_layer_time of its own")


def check_made(thing: Any, kind: type) -> None:
    if not isinstance(thing, kind) or not getattr(thing, "made", False):
        raise FakeMisuse(f"{thing!r} is no {kind.__name__} whose __init__ was called")


class FakeHostMemory:
    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def nbytes(self) -> int:
        return len(self._content)

    def __bytes__(self) -> bytes:
        return self._content


class FakeEngineInspector:
    def __init__(self, engine: FakeCudaEngine) -> None:
        self._engine = engine

    def get_engine_information(self, format: FakeLayerInformationFormat) -> str:  # noqa: A002
        assert format is FakeLayerInformationFormat.JSON
        return self._engine._script.inspected


class FakeExecutionContext:
    def __init__(self, engine: FakeCudaEngine, cache: FakeRuntimeCache | None = None) -> None:
        self.enqueue_emits_profile = True
        self._engine, self._script, self._cuda = engine, engine._script, engine._cuda
        self._cache = cache
        self._profiler: FakeIProfiler | None = None
        self._sizes: dict[str, Shape] = {}
        self._memory: dict[str, int] = {}
        self._ran: set[tuple[Shape, ...]] = set()
        self._profiled = itertools.count()
        self._unreported = False

    @property
    def profiler(self) -> FakeIProfiler | None:
        return self._profiler

    @profiler.setter
    def profiler(self, profiler: FakeIProfiler | None) -> None:
        if profiler is None:  # TensorRT keeps the one that it has
            self._engine._complain("API Usage Error (Parameter check failed, condition: (profiler) != nullptr)")
            return
        check_made(profiler, FakeIProfiler)
        self._cuda.note("profiler")
        self._profiler = profiler

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._cuda.note("set_input_shape", name, tuple(shape))
        tensor = self._script.tensor(name)
        low, _, high = tensor.profile or (tensor.shape,) * 3
        inside = len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))
        if self._script.refuses_sizes or not inside:
            self._engine._complain(f"Set dimension {list(shape)} for tensor {name} does not satisfy any profile")
            return False
        self._sizes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name: str) -> list[int]:
        tensor = self._script.tensor(name)
        if tensor in self._script.inputs or tensor.depends_on_data:
            return list(self._sizes.get(name, tensor.shape))
        first = self._script.inputs[0].name
        return self.get_tensor_shape(first) if tensor.dynamic else list(tensor.shape)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._cuda.note("set_tensor_address", name, memory)
        if name == self._script.refuses_memory_of:
            self._engine._complain(f"Given invalid tensor address for {name}")
            return False
        if self._script.tensor(name).on_host:
            raise FakeMisuse(f"{name!r} lies on the host, and is given memory of the GPU")
        if self._cuda.at(memory) is None:
            raise FakeMisuse(f"{name!r} is given the address {memory}, where there is no memory")
        self._memory[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        stream = self._cuda.own_stream(stream_handle, "a run is queued")
        self._cuda.note("execute", stream_handle)
        work = self._work()
        capture = self._cuda.capturing
        if capture is not None and capture.stream is not stream:
            raise FakeMisuse("a run is queued on another stream while a graph is captured")
        if next(self._script.executions) in self._script.fails:
            self._engine._complain("Cask convolution execution: out of memory")
            (stream if capture is None else capture).failed = True
            return False
        key = tuple(work.shapes.values())
        if capture is not None:
            if key not in self._ran:
                raise FakeMisuse("the first run with these sizes is captured: what it prepares cannot be")
            capture.works.append(work)
            return True
        stream.check_no_failure("a run in")
        if key not in self._ran:
            self._compile(str(key).encode())
            self._ran.add(key)
        stream.push(work)
        self._unreported = work.profiled
        if work.profiled and self.enqueue_emits_profile:
            self._report()
        return True

    def report_to_profiler(self) -> bool:
        self._cuda.note("report_to_profiler")
        if self._profiler is None or not self._unreported or not self._script.reports_layers:
            self._engine._complain("Profiler: nothing to report")
            return False
        self._report()
        return True

    def _report(self) -> None:
        assert self._profiler is not None
        for name, milliseconds in self._script.layers(next(self._profiled)):
            self._profiler.report_layer_time(name, milliseconds)
        self._unreported = False

    def _compile(self, kernel: bytes) -> None:
        if self._cache is not None and kernel in self._cache._content:
            return
        self._cuda.now_s += self._script.compile_s
        if self._cache is not None:
            self._cache._content += kernel

    def _work(self) -> FakeWork:
        shapes: dict[str, Shape] = {}
        memory: dict[str, weakref.ref[FakeBuffer]] = {}
        for tensor in (*self._script.inputs, *self._script.outputs):
            shapes[tensor.name] = shape = tuple(self.get_tensor_shape(tensor.name))
            if any(size < 0 for size in shape):
                raise FakeMisuse(f"a run before the sizes of {tensor.name!r} are set")
            if tensor.name not in self._memory:
                raise FakeMisuse(f"a run before {tensor.name!r} has memory")
            buffer = self._cuda.at(self._memory[tensor.name])
            if buffer is None:
                raise FakeMisuse(f"a run with memory of {tensor.name!r} that was freed")
            if buffer.nbytes < np.prod(shape) * tensor.dtype.itemsize:
                raise FakeMisuse(f"a run with memory of {tensor.name!r} that is too small: {buffer.nbytes} bytes")
            memory[tensor.name] = weakref.ref(buffer)
        return FakeWork(self._script, memory, shapes, self._profiler is not None)


class FakeRtxExecutionContext(FakeExecutionContext):
    def is_stream_capturable(self, stream: int) -> bool:
        self._cuda.note("is_stream_capturable", stream)
        return self._script.capturable


class FakeRuntimeConfig:
    """What all flavours have of IRuntimeConfig and the product uses: nothing."""


class FakeRuntimeCache:
    MAGIC = b"fake kernels:"

    def __init__(self) -> None:
        self._content = self.MAGIC

    def deserialize(self, blob: bytes) -> bool:
        if not blob.startswith(self.MAGIC):
            return False
        self._content = bytes(blob)
        return True

    def serialize(self) -> FakeHostMemory:
        return FakeHostMemory(self._content)


class FakeRtxRuntimeConfig(FakeRuntimeConfig):
    def __init__(self) -> None:
        self.dynamic_shapes_kernel_specialization_strategy = FakeKernelSpecialization.LAZY
        self._cache: FakeRuntimeCache | None = None

    def create_runtime_cache(self) -> FakeRuntimeCache:
        return FakeRuntimeCache()

    def set_runtime_cache(self, cache: FakeRuntimeCache) -> bool:
        self._cache = cache
        return True


class FakeCudaEngine:
    device_memory_size_v2 = 0

    def __init__(self, script: FakeEngine, cuda: FakeCuda, logger: FakeILogger) -> None:
        self._script, self._cuda, self._logger = script, cuda, logger
        self._names = [tensor.name for tensor in (*script.outputs, *script.inputs)]

    @property
    def num_io_tensors(self) -> int:
        return len(self._names)

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> FakeTensorIOMode:
        reads = any(tensor.name == name for tensor in self._script.inputs)
        return FakeTensorIOMode.INPUT if reads else FakeTensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> FakeDataType:
        return self._script.tensor(name).type

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self._script.tensor(name).shape)

    def get_tensor_location(self, name: str) -> FakeTensorLocation:
        return FakeTensorLocation.HOST if self._script.tensor(name).on_host else FakeTensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        assert profile_index == 0
        profile = self._script.tensor(name).profile
        if profile is None or name in {tensor.name for tensor in self._script.outputs}:
            raise FakeMisuse(f"{name!r} has no profile")
        return [list(sizes) for sizes in profile]

    def create_execution_context(self) -> FakeExecutionContext | None:
        self._cuda.note("create_execution_context")
        return FakeExecutionContext(self) if self._makes_context() else None

    def create_runtime_config(self) -> FakeRuntimeConfig:
        return FakeRuntimeConfig()

    def create_engine_inspector(self) -> FakeEngineInspector:
        return FakeEngineInspector(self)

    def _makes_context(self) -> bool:
        if not self._script.makes_context:
            self._complain("Requested amount of GPU memory (9876543210 bytes) could not be allocated.")
        return self._script.makes_context

    def _complain(self, message: str) -> None:
        self._logger.log(FakeILogger.ERROR, message)


class FakeRtxCudaEngine(FakeCudaEngine):
    def create_execution_context(self, config: FakeRtxRuntimeConfig | None = None) -> FakeExecutionContext | None:
        made = config or FakeRtxRuntimeConfig()
        self._cuda.note("create_execution_context", made.dynamic_shapes_kernel_specialization_strategy)
        return FakeRtxExecutionContext(self, made._cache) if self._makes_context() else None

    def create_runtime_config(self) -> FakeRtxRuntimeConfig:
        return FakeRtxRuntimeConfig()


class FakeRuntime:
    def __init__(self, module: FakeModule, logger: FakeILogger) -> None:
        self._module, self._logger = module, logger

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> FakeCudaEngine | None:
        script = self._module._engines.get(serialized_engine)
        if script is None:
            self._logger.log(FakeILogger.INFO, "Loaded engine size: 0 MiB")
            self._logger.log(FakeILogger.ERROR, "Serialization assertion failed: Version tag does not match")
            os.write(2, b"fake_runtime: the plan is of another world\n")
            return None
        kind = FakeRtxCudaEngine if self._module._rtx else FakeCudaEngine
        return kind(script, self._module._cuda, self._logger)


class FakeModule:
    """Stands for the module `tensorrt`, or `tensorrt_rtx`, on a fake GPU."""

    def __init__(self, cuda: FakeCuda, *, rtx: bool = False, makes_runtime: bool = True) -> None:
        self._cuda, self._rtx, self._makes_runtime = cuda, rtx, makes_runtime
        self._engines: dict[bytes, FakeEngine] = {}
        self.__version__ = "1.0.fake" if rtx else "10.0.fake"
        self.ILogger, self.IProfiler = FakeILogger, FakeIProfiler
        self.TensorIOMode, self.TensorLocation = FakeTensorIOMode, FakeTensorLocation
        self.LayerInformationFormat = FakeLayerInformationFormat
        if rtx:
            self.DynamicShapesKernelSpecializationStrategy = FakeKernelSpecialization

    def Runtime(self, logger: FakeILogger) -> FakeRuntime:
        check_made(logger, FakeILogger)
        if not self._makes_runtime:
            logger.log(FakeILogger.ERROR, "CUDA initialization failure with error: 35")
            raise TypeError("pybind11::init(): factory function returned nullptr")
        return FakeRuntime(self, logger)

    def fake_plan(self, script: FakeEngine) -> bytes:
        """Return bytes that this module, and no other, loads as an engine."""
        plan = f"fake engine {len(self._engines)} of {self.__version__}".encode()
        self._engines[plan] = script
        return plan

    def fake_library(self) -> Library:
        """Return this module as the product loads it."""
        module = cast("Module", self)
        return Library(flavour="tensorrt-rtx" if self._rtx else "tensorrt", module=module, log=Log(module))
