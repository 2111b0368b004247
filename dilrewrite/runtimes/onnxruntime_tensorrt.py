"""ONNX Runtime on an NVIDIA GPU by TensorRT. The only file that knows its TensorRT provider.

What the provider takes of a graph becomes engines, each a node of the graph that runs. What it does not take runs by
CUDA or on the CPU, and ONNX Runtime says nothing of it: here it is counted.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Profile,
    Runnable,
    Runner,
    Session,
    TimedBackend,
    TimedOut,
)
from dilrewrite.runtimes._kept import place
from dilrewrite.runtimes._onnxruntime import BoundRunner, InProcess, OnnxRuntime, Provider, profile, profiled
from dilrewrite.runtimes.onnxruntime_cuda import BACKEND as CUDA
from dilrewrite.runtimes.onnxruntime_cuda import (
    INSTALL,
    PROVIDERS,
    explained,
    provider_library,
    unloadable,
    unready,
    wait_for_kernels,
)
from dilrewrite.tensorrt import bindings
from dilrewrite.tensorrt.backend import EngineBuilder
from dilrewrite.tensorrt.precision import held

PROVIDER = "TensorrtExecutionProvider"

_PRECISIONS = {"trt_fp16_enable": "fp16", "trt_bf16_enable": "bf16", "trt_int8_enable": "int8-qdq"}
"""What TensorRT may compute in besides float32, and must be allowed to where a model holds it.

The engines are weakly typed: a layer stays in float32 where that is faster. Q/DQ nodes need no calibration table.
"""

PROVIDER_OPTIONS = {"trt_cuda_graph_enable": "False", "trt_detailed_build_log": "False"}
"""ONNX Runtime's defaults, stated so that they can be reported. It takes "True" and "False", not "1" and "0".

A CUDA graph is captured only where every node is TensorRT's, so with it forms would not be compared alike.
"""

_WORDS = f"{PROVIDER}|install TensorRT libraries"
"""What ONNX Runtime says when it cannot load the provider."""


@final
@dataclass(frozen=True, slots=True)
class OnnxRuntimeTensorRt(EngineBuilder, OnnxRuntime):
    """ONNX Runtime with its TensorRT execution provider, and CUDA's for what TensorRT does not take.

    `doubts`: those of CUDA's provider, and nodes outside TensorRT's engines.
    """

    name: ClassVar = "onnxruntime_tensorrt"
    rank: ClassVar = -5
    layout: ClassVar = "reshape"
    doubts: ClassVar = f"run outside TensorRT|{CUDA.doubts}"
    install: ClassVar = INSTALL
    trial: ClassVar = "onnxruntime_cpu"

    def missing(self) -> str | None:
        """Return None when ONNX Runtime, a GPU, CUDA's and TensorRT's libraries are there, else the first that is not.

        Loads no runtime in this process, and none at all where there is no GPU.
        """
        wanted = unready("cuda", "tensorrt")
        if wanted is not None:
            return wanted
        try:
            self.bench(Options(timeout_s=60)).close()
        except (CannotLoad, Crashed, TimedOut) as error:
            why = str(error).removeprefix(f"{self.name} cannot be imported: ")
            return _unloadable(why) if re.search("nvinfer|nvonnxparser", why) else unloadable(why)
        return None

    def versions(self) -> dict[str, str]:
        """Return the versions of ONNX Runtime, CUDA and cuDNN, and TensorRT's.

        Loads their libraries; an OSError names the one that is not there.
        """
        import onnxruntime as ort

        if PROVIDER not in ort.get_available_providers():
            raise ImportError(f"the installed onnxruntime has no {PROVIDER}")
        found = CUDA.versions()
        inference, _, parser = _libraries()
        number = int(_load(inference).getInferLibVersion())
        _load(parser)
        return {**found, "TensorRT": f"{number // 10000}.{number // 100 % 100}.{number % 100}"}

    def loaded(self, runnable: Runnable, options: Options) -> Session:
        """Load a model in this process."""
        with _explained():
            return InProcess(runnable, options, _providers(runnable, self.told, options, {}))

    def device(self) -> str:
        """Return the GPU's name and the CUDA version of its driver."""
        return CUDA.device()

    def state(self) -> dict[str, float]:
        """Return what NVIDIA's management library tells of the GPU, where it is installed."""
        return CUDA.state()

    def settings(self, options: Options) -> dict[str, str]:
        """Return both providers' options, and what else CUDA's depends on; no path, which is another each time."""
        own = _provider_options(self.told, options.scratch, options.scratch)
        if self.told is None:
            own.update(dict.fromkeys(_PRECISIONS, "as the model's types need it"))
        if options.scratch is not None:
            own["trt_timing_cache_path"] = "where built engines are kept"
            own["trt_engine_cache_path"] = "in it, a folder for each model and its shapes"
        return {
            "precision": self.told or "the model's own",
            "TF32": "as the provider has it: allowed in float32, and no option forbids it",
            **own,
            **CUDA.settings(options),
        }

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Load a model, bind its inputs and outputs on the GPU, and run it once with the profiler to see where it runs.

        Raises CannotRun where no node ran by TensorRT, and says on standard error when some did not.
        """
        with tempfile.TemporaryDirectory(prefix="dilrewrite-") as folder, _explained():
            providers = _providers(runnable, self.told, options, feeds)
            runner = BoundRunner(runnable, options, feeds, providers, "cuda", str(Path(folder) / "profile"))
            try:
                _judge(profiled(runner, 0))
            except BaseException:
                runner.close()
                raise
        return runner

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run a model with the profiler, as the CUDA backend does: an engine is one node.

        The engines are built apart from those that are timed: the driver waits for each kernel, which changes what is
        chosen.
        """
        apart = replace(options, scratch=None if options.scratch is None else options.scratch / "profiled")
        waits = wait_for_kernels()
        with _explained():
            found = profile(runnable, options, feeds, runs, _providers(runnable, self.told, apart, feeds), "cuda")
        return found if waits else replace(found, seconds=(0.0,) * found.runs)


# -- where nodes run -------------------------------------------------------------------------------------------------


def placement(profile: Profile) -> dict[str, int]:
    """Return how many node runs of a profile each provider had; an engine of TensorRT is one node."""
    return dict(Counter(node.provider for node in profile.nodes))


def _judge(profile: Profile) -> None:
    """Raise CannotRun when no node ran by TensorRT; say on standard error, where `doubts` looks, when some did not."""
    ran = placement(profile)
    if PROVIDER not in ran:
        counts = ", ".join(f"{name} ran {count}" for name, count in ran.items())
        raise CannotRun(f"TensorRT runs no node of the model: {counts or 'no node ran at all'}")
    outside = [f"{node.op} {node.name!r} ({node.provider})" for node in profile.nodes if node.provider != PROVIDER]
    if outside:
        these = ", ".join([*outside[:3], *(["..."] if len(outside) > 3 else [])])
        counts = f"{len(outside)} of {len(profile.nodes)} nodes run outside TensorRT"
        print(f"[W:dilrewrite] {counts}: {these}", file=sys.stderr, flush=True)


# -- the provider's options ------------------------------------------------------------------------------------------


def _providers(
    runnable: Runnable, precision: str | None, options: Options, feeds: Mapping[str, Array]
) -> tuple[Provider, ...]:
    """Return the providers of a session in order, with their options."""
    timings = None if options.scratch is None else options.scratch.absolute()
    engines = _engines(runnable, precision, options, feeds)
    own = _provider_options(precision or _held(runnable), timings, engines)
    return ((PROVIDER, own), *PROVIDERS)


def _provider_options(precision: str | None, timings: Path | None, engines: Path | None) -> dict[str, str]:
    """Return the provider's options; `timings` and `engines` are the folders of its caches."""
    own = {option: str(precision == name) for option, name in _PRECISIONS.items()} | PROVIDER_OPTIONS
    for cache, folder in (("trt_timing_cache", timings), ("trt_engine_cache", engines)):
        own |= {f"{cache}_enable": str(folder is not None)}
        own |= {f"{cache}_path": str(folder)} if folder is not None else {}
    return own


def _engines(runnable: Runnable, precision: str | None, options: Options, feeds: Mapping[str, Array]) -> Path | None:
    """Return the folder for the engines of a model and its shapes, made where it is not there.

    The provider knows an engine again by the names of the graph's tensors, and by no attribute, weight or shape: two
    forms of a Conv in one folder would run the same engine.
    """
    if options.scratch is None:
        return None
    shapes = sorted((name, list(getattr(value, "shape", ()))) for name, value in feeds.items())
    folder = place(options.scratch.absolute(), runnable, [shapes, precision, options.optimize])
    with contextlib.suppress(OSError):  # the provider says it
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def _held(runnable: Runnable) -> str:
    """Return the precision that a model is in; what cannot be read is for ONNX Runtime to refuse."""
    proto = ModelProto()
    with contextlib.suppress(OSError, DecodeError):
        proto.ParseFromString(runnable.model.read_bytes() if isinstance(runnable.model, Path) else runnable.model)
        return held(proto)
    return "fp32"


# -- TensorRT's libraries --------------------------------------------------------------------------------------------


def _linked() -> int:
    """Return the major version of TensorRT that the provider's library is linked with."""
    library = provider_library("tensorrt")
    if library is not None:
        with contextlib.suppress(OSError):
            found = re.search(rb"libnvinfer\.so\.(\d+)|nvinfer_(\d+)\.dll", library.read_bytes())
            if found is not None:
                return int(found[1] or found[2])
    return 10


def _libraries() -> tuple[str, str, str]:
    """Return TensorRT's libraries in the order to load them: the second is opened late, and only for plugins."""
    major = _linked()
    if sys.platform == "win32":
        return f"nvinfer_{major}.dll", f"nvinfer_plugin_{major}.dll", f"nvonnxparser_{major}.dll"
    return f"libnvinfer.so.{major}", f"libnvinfer_plugin.so.{major}", f"libnvonnxparser.so.{major}"


def _load(library: str) -> ctypes.CDLL:
    """Load a library from the package that pip installed, where the dynamic loader does not look, or from elsewhere."""
    with contextlib.suppress(ImportError, ValueError):  # None in sys.modules
        spec = importlib.util.find_spec("tensorrt_libs")
        if spec is not None and spec.origin is not None and (path := Path(spec.origin).with_name(library)).is_file():
            return ctypes.CDLL(str(path))
    return ctypes.CDLL(library)


def _unloadable(why: str) -> str:
    """Return that TensorRT's libraries cannot be loaded, and how to install them."""
    major, found = _linked(), bindings.version("tensorrt")
    installed = f"; installed is TensorRT {found}" if found else ""
    install = f"pip install 'tensorrt>={major},<{major + 1}'"
    return f"TensorRT {major}, which onnxruntime-gpu is linked with, cannot be loaded ({why}{installed}): {install}"


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Load CUDA's and TensorRT's libraries, and add to a CannotLoad why the provider cannot be loaded."""
    with explained(_WORDS, "tensorrt", "cuda"):
        for library in _libraries():
            with contextlib.suppress(OSError):  # making the session says it
                _load(library)
        yield


BACKEND: TimedBackend = OnnxRuntimeTensorRt()
