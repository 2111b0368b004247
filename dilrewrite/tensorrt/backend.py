"""What the TensorRT backends share: ONNX models are built into engines here, engines are run, both in GPU time.

An engine is built for the shapes that it is run with. Engines and the timing cache of builds are kept, so that neither
worker processes nor later commands build one twice.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from dilrewrite.errors import DilrewriteError, one_line
from dilrewrite.model.elements import element_name
from dilrewrite.model.load import load
from dilrewrite.model.walk import copied
from dilrewrite.options import PRECISIONS, Building
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Io,
    NodeRun,
    Options,
    Pace,
    Profile,
    Runnable,
    Runner,
    Session,
    TimedBackend,
)
from dilrewrite.runtimes._kept import get, place, store
from dilrewrite.runtimes._nvidia import NoGpuError, gpu, state
from dilrewrite.tensorrt import bindings, cuda
from dilrewrite.tensorrt.bindings import Library
from dilrewrite.tensorrt.layers import Layers
from dilrewrite.tensorrt.make import TIMING_CACHE, build
from dilrewrite.tensorrt.precision import OWN, ROUNDS_TO, prepare
from dilrewrite.tensorrt.profiles import Profile as Sizes
from dilrewrite.tensorrt.profiles import declared
from dilrewrite.tensorrt.run import Engine, RunOptions, TimedRun, layer_times, median_layer_times

PACE = Pace(warm_s=0.2, pairs=10, seconds=1.0, unsteady=0.025)
"""As NVIDIA's trtexec has it: 200 ms to warm up, at least 10 runs, a doubt when times vary by more than 2.5 %."""

RUNTIME_CACHE = "runtime.cache"

NO_GRAPH = "no CUDA graph could be captured: small models are timed with what launching their kernels takes"


@dataclass(frozen=True, slots=True)
class TensorRt(TimedBackend):
    """TensorRT on the first GPU. It runs every Conv in layouts of its own. `precision`: what engines compute in."""

    name: ClassVar = "tensorrt"
    flavour: ClassVar[str] = "tensorrt"
    rank: ClassVar = -10
    layout_ranks: ClassVar = frozenset({1, 2, 3})
    doubts: ClassVar = "^no CUDA graph"
    pace: ClassVar = PACE
    tells_layers: ClassVar = True

    precision: str = OWN

    def __post_init__(self) -> None:
        if self.precision not in (OWN, *PRECISIONS):
            raise ValueError(f"precision={self.precision} is not one of {', '.join((OWN, *PRECISIONS))}")

    def building(self, precision: str | None) -> TimedBackend:
        """Return it as it builds engines of a precision."""
        return self if precision is None else replace(self, precision=precision)

    def missing(self) -> str | None:
        """Return None when the library, a driver, a GPU and torch are there, else the first that is not."""
        why = bindings.missing(self.flavour)
        if why is not None:
            return why
        gone = cuda.missing()
        return None if gone is None else f"{self.flavour} builds engines here and runs none: {gone}"

    def versions(self) -> dict[str, str]:
        """Return the versions of TensorRT, of torch and of the driver."""
        found = {self.flavour: bindings.load(self.flavour).version}
        with contextlib.suppress(ImportError):
            import torch

            found["torch"] = str(torch.__version__)
        return found

    def loaded(self, runnable: Runnable, options: Options) -> Session:
        """Load a model or an engine in this process."""
        return EngineSession(self, runnable, options)

    def device(self) -> str:
        """Return the GPU's name and the CUDA version of its driver."""
        try:
            name, (major, minor) = gpu()
        except NoGpuError as error:
            return str(error)
        return f"{name}, driver for CUDA {major}.{minor}"

    def state(self) -> dict[str, float]:
        """Return clocks, power and temperature of the GPU."""
        return state()

    def settings(self, options: Options) -> dict[str, str]:  # noqa: ARG002 - none of them
        """Return what engines are built and run with."""
        eager = {"kernel specialization": "eager"} if self.flavour == "tensorrt-rtx" else {}
        heeded = {name: os.environ[name] for name in ("NVIDIA_TF32_OVERRIDE",) if name in os.environ}
        return {
            "precision": "the model's own" if self.precision == OWN else self.precision,
            "time": "GPU, by CUDA events, transfers excluded",
            "CUDA graph": "where it can be captured",
            **eager,
            **heeded,
        }

    def rounds_to(self, options: Options) -> str:  # noqa: ARG002 - a setting of its own
        """Return the element type whose tolerance the precision has."""
        return ROUNDS_TO.get(self.precision, "float16")

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Build an engine for the shapes of `feeds`, load it and bind its inputs on the GPU."""
        engine = self.load(runnable, options, feeds)
        with _one_line(CannotRun):
            runner = TimedRun(engine, feeds)
        if not runner.captured:
            print(NO_GRAPH, file=sys.stderr)  # as runtimes do: `doubts` finds it
        self._keep_runtime_cache(engine)
        return runner

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run an engine with TensorRT's profiler, layer by layer. A layer has the names of the ONNX nodes in it."""
        engine = self.load(runnable, options, feeds)
        with _one_line(CannotRun):
            timed = TimedRun(engine, feeds)
            for _ in range(3):
                timed.run()
            whole = float(np.median([timed.run() for _ in range(max(runs, 10))]))
            timed.close()
            layers = engine.layers()
            times = median_layer_times(layer_times(engine, feeds, max(runs, 10)))
        return Profile(seconds=(max(whole, sum(times.values())),), nodes=tuple(_node_runs(layers, times)))

    # -- engines -------------------------------------------------------------------------------------------------

    def library(self) -> Library:
        """Load the library. Raises CannotLoad where it cannot be imported."""
        try:
            return bindings.load(self.flavour)
        except (ImportError, OSError, AttributeError) as error:
            raise CannotLoad(f"{self.flavour} cannot be imported: {one_line(error)}") from error

    def load(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Engine:
        """Return an engine on the GPU, of an ONNX model for the shapes of `feeds`, or one that was built before."""
        library = self.library()
        plan = _engine_bytes(runnable) if runnable.engine else self.plan(library, runnable, options, feeds)
        cache = options.scratch / RUNTIME_CACHE if options.scratch is not None else None
        gpu_reached = cuda.Cuda()
        if gpu_reached.source != self.source:
            raise ValueError(f"times would be {gpu_reached.source}, and {self.name} states them as {self.source}")
        with _one_line(CannotLoad):
            return Engine(library, gpu_reached, plan, RunOptions(runtime_cache=cache))

    def plan(self, library: Library, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> bytes:
        """Return the engine of an ONNX model, as it is kept when it was built before."""
        proto, folder = _model(runnable)
        precision = None if self.precision == OWN else self.precision
        shapes = {name: tuple(np.shape(value)) for name, value in feeds.items()}
        kept = cache = None
        timings = b""
        if options.scratch is not None:
            about = [self.name, library.version, precision, sorted(shapes.items())]
            kept, cache = place(options.scratch, runnable, about), options.scratch / TIMING_CACHE
            engine = get(kept)
            if engine is not None:
                return engine
            timings = get(cache) or b""
        proto = _with_values(proto, folder, precision)
        with _one_line(CannotLoad):
            prepared = prepare(proto, precision, "the model")
            profiles = {
                name: Sizes(min=shapes[name], opt=shapes[name], max=shapes[name])
                for name, sizes in declared(prepared.proto).items()
                if (sizes is None or None in sizes) and name in shapes
            }
            built = build(
                library,
                prepared.proto,
                Building(timing_cache=cache),
                profiles=profiles,
                folder=folder,
                tf32=prepared.precision != "fp32",
                timing_cache=timings,
            )
        if kept is not None and cache is not None:
            store(kept, built.plan)
            if built.timing_cache is not None:
                store(cache, built.timing_cache)
        return built.plan

    def _keep_runtime_cache(self, engine: Engine) -> None:
        path, data = engine.options.runtime_cache, engine.runtime_cache()
        if path is not None and data is not None:
            store(path, data)


@final
@dataclass(frozen=True, slots=True)
class TensorRtRtx(TensorRt):
    """TensorRT for RTX on the first GPU."""

    name: ClassVar = "tensorrt_rtx"
    flavour: ClassVar = "tensorrt-rtx"
    rank: ClassVar = -11


@contextlib.contextmanager
def _one_line(kind: type[CannotLoad] | type[CannotRun]) -> Iterator[None]:
    """Turn our own errors into what a backend says of one model."""
    try:
        yield
    except DilrewriteError as error:
        raise kind(error.message) from error


def _engine_bytes(runnable: Runnable) -> bytes:
    return runnable.model.read_bytes() if isinstance(runnable.model, Path) else runnable.model


def _model(runnable: Runnable) -> tuple[ModelProto, Path | None]:
    if isinstance(runnable.model, Path):
        with _one_line(CannotLoad):
            found = load(runnable.model)
        return found.proto, found.folder
    return ModelProto.FromString(runnable.model), runnable.folder


def _with_values(proto: ModelProto, folder: Path | None, precision: str | None) -> ModelProto:
    """Return the model with its external weights in memory where a conversion needs their values."""
    external = any(tensor.data_location == TensorProto.EXTERNAL for tensor in proto.graph.initializer)
    quantized = any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
    if folder is None or not external or not (quantized or precision in ("fp16", "bf16")):
        return proto
    made = copied(proto)
    onnx.external_data_helper.load_external_data_for_model(made, str(folder))
    return made


def _ios(proto: ModelProto) -> tuple[tuple[Io, ...], tuple[Io, ...]]:
    """Return the inputs and outputs that a model declares."""
    own = {tensor.name for tensor in proto.graph.initializer}
    inputs = tuple(_io(value) for value in proto.graph.input if value.name not in own)
    return inputs, tuple(_io(value) for value in proto.graph.output)


def _io(value: ValueInfoProto) -> Io:
    tensor = value.type.tensor_type
    element = element_name(tensor.elem_type) or f"other:{tensor.elem_type}"
    shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim)
    return Io(name=value.name, element=element, shape=shape if tensor.HasField("shape") else None)


def _node_runs(layers: Layers, times: Mapping[str, float]) -> Iterator[NodeRun]:
    """Yield a run for each layer; the inspector's names are those of the profiler."""
    known = {layer.name: layer for layer in layers.layers}
    for name, seconds in times.items():
        layer = known.get(name)
        nodes = " + ".join(layer.nodes) if layer is not None and layer.nodes else name
        yield NodeRun(name=nodes, op=layer.kind if layer is not None else "", seconds=seconds, provider=name)


@final
class EngineSession(Session):
    """An engine that returns its outputs. Of an ONNX model, an engine is built anew for other shapes."""

    def __init__(self, backend: TensorRt, runnable: Runnable, options: Options) -> None:
        self._backend = backend
        self._runnable = runnable
        self._options = options
        self._engine: Engine | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        if runnable.engine:
            self._engine = backend.load(runnable, options, {})
            self.inputs: tuple[Io, ...] = self._engine.inputs
            self.outputs: tuple[Io, ...] = self._engine.outputs
        else:
            proto, _ = _model(runnable)
            self.inputs, self.outputs = _ios(proto)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the named outputs (None: all)."""
        shapes = {name: tuple(np.shape(value)) for name, value in feeds.items()}
        if self._engine is None or (not self._runnable.engine and shapes != self._shapes):
            self._engine = self._backend.load(self._runnable, self._options, feeds)
            self._shapes = shapes
        found = self._engine.run(feeds)
        return found if outputs is None else {name: found[name] for name in outputs}

    def close(self) -> None:
        """Free the engine."""
        self._engine = None
