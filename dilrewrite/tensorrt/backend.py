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
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto, ValueInfoProto

from dilrewrite.errors import DilrewriteError, one_line
from dilrewrite.model.elements import element_name
from dilrewrite.model.load import load
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
    contained,
)
from dilrewrite.runtimes._artifact import external_files
from dilrewrite.runtimes._kept import get, place, store
from dilrewrite.runtimes._nvidia import NoGpuError, gpu, state
from dilrewrite.tensorrt import bindings, cuda
from dilrewrite.tensorrt.bindings import Library
from dilrewrite.tensorrt.layers import Layers
from dilrewrite.tensorrt.make import TIMING_CACHE, Built, build
from dilrewrite.tensorrt.precision import OWN, ROUNDS_TO, needs_values, prepare
from dilrewrite.tensorrt.profiles import Profile as Sizes
from dilrewrite.tensorrt.profiles import declared
from dilrewrite.tensorrt.run import Engine, RunOptions, TimedRun, layer_times, median_layer_times

PACE = Pace(warm_s=0.2, pairs=10, seconds=1.0, unsteady=0.025)
"""As NVIDIA's trtexec has it: 200 ms to warm up, at least 10 runs, a doubt when times vary by more than 2.5 %."""

RUNTIME_CACHE = "runtime.cache"

NO_GRAPH = "no CUDA graph could be captured: small models are timed with what launching their kernels takes"


@dataclass(frozen=True, slots=True)
class EngineBuilder(TimedBackend):
    """A runtime that builds engines. They run every Conv in layouts of their own, and compute in `precision`."""

    layout_ranks: ClassVar = frozenset({1, 2, 3})
    layout: ClassVar = "reshape"

    precision: str = OWN

    def __post_init__(self) -> None:
        if self.precision not in (OWN, *PRECISIONS):
            raise ValueError(f"precision={self.precision} is not one of {', '.join((OWN, *PRECISIONS))}")

    def building(self, precision: str | None) -> TimedBackend:
        """Return it as it builds engines of a precision."""
        return self if precision is None else replace(self, precision=precision)

    @property
    def told(self) -> str | None:
        """The precision that was asked for; None for the model's own."""
        return None if self.precision == OWN else self.precision

    def rounds_to(self, options: Options) -> str:  # noqa: ARG002 - a setting of its own
        """Return the element type whose tolerance the precision has."""
        return ROUNDS_TO.get(self.precision, "float16")


@dataclass(frozen=True, slots=True)
class TensorRt(EngineBuilder):
    """TensorRT on the first GPU."""

    name: ClassVar = "tensorrt"
    alias: ClassVar = "trt"
    flavour: ClassVar[str] = "tensorrt"
    rank: ClassVar = -10
    doubts: ClassVar = "^no CUDA graph"
    pace: ClassVar = PACE
    tells_layers: ClassVar = True

    def missing(self) -> str | None:
        """Return None when the library, a driver, a GPU and torch are there, else the first that is not."""
        why = bindings.missing(self.flavour)
        if why is None and (gone := cuda.missing()) is not None:
            why = f"{self.flavour} builds engines here and runs none: {gone}"
        return why

    def versions(self) -> dict[str, str]:
        """Return the versions of TensorRT, of torch and of the driver."""
        versions = {self.flavour: bindings.load(self.flavour).version}
        with contextlib.suppress(ImportError):
            import torch

            versions["torch"] = str(torch.__version__)
        return versions

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
            "precision": self.told or "the model's own",
            "time": "GPU, by CUDA events, transfers excluded",
            "CUDA graph": "where it can be captured",
            **eager,
            **heeded,
        }

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Build an engine for the shapes of `feeds`, load it and bind its inputs on the GPU."""
        engine = self.load(runnable, options, feeds)
        runner = TimedRun(engine, feeds)
        if not runner.captured:
            print(NO_GRAPH, file=sys.stderr)  # as runtimes do: `doubts` finds it
        path, data = engine.options.runtime_cache, engine.runtime_cache()
        if path is not None and data is not None:
            store(path, data)
        return runner

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run an engine with TensorRT's profiler, layer by layer. A layer has the names of the ONNX nodes in it."""
        engine = self.load(runnable, options, feeds)
        timed = TimedRun(engine, feeds)
        for _ in range(3):
            timed.run()
        whole = float(np.median([timed.run() for _ in range(max(runs, 10))]))
        timed.close()
        with _one_line(CannotRun):
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
        if not runnable.engine:
            plan = self.plan(library, runnable, options, feeds)
        else:
            plan = runnable.model if isinstance(runnable.model, bytes) else runnable.model.read_bytes()
        cache = options.scratch / RUNTIME_CACHE if options.scratch is not None else None
        device = cuda.Cuda()
        if device.source != self.source:
            raise ValueError(f"times would be {device.source}, and {self.name} states them as {self.source}")
        return Engine(library, device, plan, RunOptions(runtime_cache=cache))

    def plan(self, library: Library, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> bytes:
        """Return the engine of an ONNX model, as it is kept when it was built before."""
        shapes = {name: tuple(np.shape(value)) for name, value in feeds.items()}
        if options.scratch is None:
            return self._built(library, runnable, shapes, None).plan
        about = [self.name, library.version, self.told, sorted(shapes.items())]
        kept, cache = place(options.scratch, runnable, about), options.scratch / TIMING_CACHE
        plan = get(kept)
        if plan is None:
            built = self._built(library, runnable, shapes, cache)
            plan = built.plan
            store(kept, plan)
            if built.timing_cache is not None:
                store(cache, built.timing_cache)
        return plan

    def _built(
        self, library: Library, runnable: Runnable, shapes: Mapping[str, tuple[int, ...]], cache: Path | None
    ) -> Built:
        """Build an engine; `cache`: the file that holds timings of earlier builds."""
        proto, folder = _model(runnable)
        if folder is not None and external_files(proto) and needs_values(proto, self.told):
            proto = contained(runnable)
        with _one_line(CannotLoad):
            prepared = prepare(proto, self.told, "the model")
            return build(
                library,
                prepared.proto,
                Building(timing_cache=cache),
                profiles={
                    name: Sizes(min=shapes[name], opt=shapes[name], max=shapes[name])
                    for name, sizes in declared(prepared.proto).items()
                    if (sizes is None or None in sizes) and name in shapes
                },
                folder=folder,
                tf32=prepared.precision != "fp32",
                timing_cache=(get(cache) if cache is not None else None) or b"",
            )


@final
@dataclass(frozen=True, slots=True)
class TensorRtRtx(TensorRt):
    """TensorRT for RTX on the first GPU."""

    name: ClassVar = "tensorrt_rtx"
    alias: ClassVar = "trt_rtx"
    flavour: ClassVar = "tensorrt-rtx"
    rank: ClassVar = -11


@contextlib.contextmanager
def _one_line(kind: type[CannotLoad] | type[CannotRun]) -> Iterator[None]:
    """Turn our own errors into what a backend says of one model."""
    try:
        yield
    except DilrewriteError as error:
        raise kind(error.message) from error


def _model(runnable: Runnable) -> tuple[ModelProto, Path | None]:
    if isinstance(runnable.model, Path):
        with _one_line(CannotLoad):
            model = load(runnable.model)
        return model.proto, model.folder
    try:
        return ModelProto.FromString(runnable.model), runnable.folder
    except DecodeError as error:
        raise CannotLoad(f"it is no ONNX model: {one_line(error)}") from error


def _io(value: ValueInfoProto) -> Io:
    tensor = value.type.tensor_type
    element = element_name(tensor.elem_type) or f"other:{tensor.elem_type}"
    shape = tuple(size.dim_value if size.HasField("dim_value") else size.dim_param or None for size in tensor.shape.dim)
    return Io(name=value.name, element=element, shape=shape if tensor.HasField("shape") else None)


def _node_runs(layers: Layers, times: Mapping[str, float]) -> Iterator[NodeRun]:
    """Yield a run for each layer; the inspector's names are those of the profiler."""
    named = {layer.name: (" + ".join(layer.nodes) or layer.name, layer.kind) for layer in layers.layers}
    for name, seconds in times.items():
        nodes, kind = named.get(name, (name, ""))
        yield NodeRun(name=nodes, op=kind, seconds=seconds, provider=name)


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
            self.inputs, self.outputs = self._engine.inputs, self._engine.outputs
        else:
            proto, _ = _model(runnable)
            known = declared(proto)
            self.inputs = tuple(_io(value) for value in proto.graph.input if value.name in known)
            self.outputs = tuple(map(_io, proto.graph.output))

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the named outputs (None: all)."""
        shapes = {name: tuple(np.shape(value)) for name, value in feeds.items()}
        if self._engine is None or (not self._runnable.engine and shapes != self._shapes):
            self._engine = self._backend.load(self._runnable, self._options, feeds)
            self._shapes = shapes
        values = self._engine.run(feeds)
        return values if outputs is None else {name: values[name] for name in outputs}

    def close(self) -> None:
        """Free the engine."""
        self._engine = None
