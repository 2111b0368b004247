"""The parts of TensorRT's Python interface that are used, as types: nothing of TensorRT is used that is not here.

A class has the name that it has there, and holds what all flavours have (`tensorrt` 10 and 11, `tensorrt_rtx` 1). What
only some have is asked for by `bindings.probe`. The bindings bring no type information of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


class IHostMemory(Protocol):
    """Memory of the library; `bytes(memory)` copies it."""

    nbytes: int

    def __buffer__(self, flags: int, /) -> memoryview: ...


class ILogger(Protocol):
    """The base class of loggers; messages come by `log`."""

    INTERNAL_ERROR: Any
    ERROR: Any
    WARNING: Any


class ParserError(Protocol):
    """What the parser refuses."""

    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...


class OnnxParser(Protocol):
    """Reads ONNX into a network; False is a failure."""

    num_errors: int

    def parse(self, model: bytes, path: str | None = None) -> bool: ...
    def get_error(self, index: int) -> ParserError: ...


class ITensor(Protocol):
    """A tensor of a network; unknown extents are -1."""

    name: str
    shape: Sequence[int]
    dtype: Any


class INetworkDefinition(Protocol):
    """A parsed model."""

    num_inputs: int
    num_outputs: int

    def get_input(self, index: int) -> ITensor: ...
    def get_output(self, index: int) -> ITensor: ...


class IOptimizationProfile(Protocol):
    """The sizes that an engine is built for."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None: ...


class ITimingCache(Protocol):
    """Timings of kernels, kept between builds."""

    def serialize(self) -> IHostMemory | None: ...


class IBuilderConfig(Protocol):
    """How to build."""

    profiling_verbosity: Any
    progress_monitor: Any
    builder_optimization_level: int
    plugins_to_serialize: list[str]

    def set_flag(self, flag: Any) -> None: ...
    def clear_flag(self, flag: Any) -> None: ...
    def get_flag(self, flag: Any) -> bool: ...
    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None: ...
    def add_optimization_profile(self, profile: IOptimizationProfile) -> int: ...
    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None: ...
    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool: ...
    def get_timing_cache(self) -> ITimingCache | None: ...


class Builder(Protocol):
    """Builds engines; None is a failure."""

    def create_network(self, flags: int) -> INetworkDefinition: ...
    def create_builder_config(self) -> IBuilderConfig: ...
    def create_optimization_profile(self) -> IOptimizationProfile: ...
    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory | None: ...
    def get_plugin_registry(self) -> Any: ...


class EngineInspector(Protocol):
    """Tells an engine's layers."""

    def get_engine_information(self, format: Any) -> str: ...


class IExecutionContext(Protocol):
    """A running engine; False is a failure."""

    profiler: Any
    enqueue_emits_profile: bool

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def set_tensor_address(self, name: str, memory: int) -> bool: ...
    def execute_async_v3(self, stream_handle: int) -> bool: ...
    def report_to_profiler(self) -> bool: ...


class IRuntimeConfig(Protocol):
    """How an execution context is made; its useful parts are of TensorRT for RTX only."""


class ICudaEngine(Protocol):
    """An engine on a GPU."""

    num_io_tensors: int

    def get_tensor_name(self, index: int) -> str: ...
    def get_tensor_mode(self, name: str) -> Any: ...
    def get_tensor_dtype(self, name: str) -> Any: ...
    def get_tensor_shape(self, name: str) -> Sequence[int]: ...
    def get_tensor_location(self, name: str) -> Any: ...
    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]: ...
    def create_execution_context(self) -> IExecutionContext | None: ...
    def create_runtime_config(self) -> IRuntimeConfig: ...
    def create_engine_inspector(self) -> EngineInspector: ...


class Runtime(Protocol):
    """Loads engines; None is a failure."""

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None: ...


class BuilderFlag(Protocol):
    """Switches of a build."""

    TF32: Any
    REFIT: Any
    STRIP_PLAN: Any
    VERSION_COMPATIBLE: Any
    WEIGHT_STREAMING: Any


class MemoryPoolType(Protocol):
    """Memory that a build may use."""

    WORKSPACE: Any


class ProfilingVerbosity(Protocol):
    """How much an engine tells of its layers."""

    DETAILED: Any


class LayerInformationFormat(Protocol):
    """How the inspector writes."""

    JSON: Any


class TensorIOMode(Protocol):
    """Input or output."""

    INPUT: Any


class TensorLocation(Protocol):
    """Where a tensor lies."""

    HOST: Any


class Module(Protocol):
    """The module `tensorrt` or `tensorrt_rtx`."""

    __version__: str
    BuilderFlag: BuilderFlag
    MemoryPoolType: MemoryPoolType
    ProfilingVerbosity: ProfilingVerbosity
    LayerInformationFormat: LayerInformationFormat
    TensorIOMode: TensorIOMode
    TensorLocation: TensorLocation
    ILogger: Any
    IProgressMonitor: Any
    IProfiler: Any

    def Builder(self, logger: Any) -> Builder: ...
    def OnnxParser(self, network: INetworkDefinition, logger: Any) -> OnnxParser: ...
    def Runtime(self, logger: Any) -> Runtime: ...
