"""ONNX Runtime on an NVIDIA GPU. The only file that knows its CUDA provider and the CUDA driver."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

from dilrewrite.errors import one_line
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    Crashed,
    Options,
    Profile,
    Runnable,
    TimedBackend,
    TimedOut,
)
from dilrewrite.runtimes._nvidia import NoGpuError, driver, gpu, state
from dilrewrite.runtimes._onnxruntime import (
    CPU,
    OnnxRuntime,
    Provider,
    distributions,
    missing,
)

INSTALL = "pip install 'dilrewrite[gpu]'"
INSTALL_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"

PROVIDER = "CUDAExecutionProvider"

PROVIDER_OPTIONS = {
    "cudnn_conv_algo_search": "EXHAUSTIVE",
    "cudnn_conv_use_max_workspace": "1",
    "cudnn_conv1d_pad_to_nc1d": "0",
    "prefer_nhwc": "0",
    "use_tf32": "1",
}
"""ONNX Runtime's defaults, stated so that they can be reported: timed is what a user's session does, on the first GPU.

With cuDNN 9 EXHAUSTIVE asks cuDNN's better heuristic and measures nothing. TF32 rounds what enters a float32 Conv to 10
bits of fraction; without it ONNX Runtime goes back to it, and does not say so, where cuDNN has no other kernel.
"""

PROVIDERS: tuple[Provider, ...] = ((PROVIDER, PROVIDER_OPTIONS), *CPU)
"""What CUDA lacks runs on the CPU, as it does for a user."""

_ENVIRONMENT = ("CUDA_LAUNCH_BLOCKING", "NVIDIA_TF32_OVERRIDE")
"""Variables that CUDA's libraries heed whatever the provider's options say, and that change timings."""

_CALLED = {"cuda": "CUDA", "tensorrt": "TensorRT"}

_NOT_INITIALIZED = 3


@final
@dataclass(frozen=True, slots=True)
class OnnxRuntimeCuda(OnnxRuntime):
    """ONNX Runtime with its CUDA execution provider.

    `layout_ranks` is empty because `prefer_nhwc` is off. `doubts`: a Conv for which cuDNN's last resort was taken, and
    values that go to the host and back during a run because a node runs there.
    """

    name: ClassVar = "onnxruntime_cuda"
    alias: ClassVar = "cuda"
    rank: ClassVar = 10
    doubts: ClassVar = "running in Fallback mode|Memcpy nodes are added"
    install: ClassVar = INSTALL
    providers: ClassVar = PROVIDERS
    on: ClassVar = "cuda"
    layout: ClassVar = "reshape"

    def missing(self) -> str | None:
        """Return None when ONNX Runtime, the driver, a GPU and CUDA's libraries are there, else the first that is not.

        Loads no runtime in this process, and none at all where there is no GPU.
        """
        if (gone := unready("cuda")) is not None:
            return gone
        try:
            self.bench(Options(timeout_s=60)).close()
        except (CannotLoad, Crashed, TimedOut) as error:
            return unloadable(str(error).removeprefix(f"{self.name} cannot be imported: "))
        return None

    def versions(self) -> dict[str, str]:
        """Return the versions of ONNX Runtime, of the CUDA that it is built for, and of cuDNN.

        Loads CUDA's libraries; an OSError names the one that is not there.
        """
        import onnxruntime as ort

        if PROVIDER not in ort.get_available_providers():
            raise ImportError(f"the installed onnxruntime has no {PROVIDER}")
        preload()
        built = str(getattr(ort, "cuda_version", None) or "")
        for library in _libraries(built):
            loaded = ctypes.CDLL(library)
        loaded.cudnnGetVersion.restype = ctypes.c_size_t
        number = int(loaded.cudnnGetVersion())
        cudnn = f"{number // 10000}.{number // 100 % 100}.{number % 100}"
        found = {"onnxruntime-gpu": str(ort.__version__), "CUDA": built, "cuDNN": cudnn}
        return {package: version for package, version in found.items() if version}

    def explained(self) -> contextlib.AbstractContextManager[None]:
        """Load CUDA's libraries, and say in a CannotLoad which cannot be loaded."""
        return explained(PROVIDER, "cuda")

    def device(self) -> str:
        """Return the GPU's name and the CUDA version of its driver."""
        name, (major, minor) = gpu()
        return f"{name}, driver for CUDA {major}.{minor}"

    def state(self) -> dict[str, float]:
        """Return what NVIDIA's management library tells of the GPU, where it is installed."""
        return state()

    def settings(self, options: Options) -> dict[str, str]:
        """Return the provider's options, the session's configuration entries, threads, and CUDA's own variables."""
        heeded = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        return {**PROVIDER_OPTIONS, **OnnxRuntime.settings(self, options), **heeded}

    def rounds_to(self, options: Options) -> str:  # noqa: ARG002 - by TF32
        """Return float16, which has TF32's fraction of 10 bits."""
        return "float16"

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run a model with the profiler, in a process of its own if the seconds are to mean anything.

        ONNX Runtime notes how long the host was busy with a node, which only queues kernels. So the driver is made to
        wait for each: shares of the whole, no timings. It asks for that once, when CUDA starts; where CUDA runs already
        the seconds of the profile are 0, and only its shapes are of use.
        """
        waits = wait_for_kernels()
        found = OnnxRuntime.profile(self, runnable, options, feeds, runs)
        return found if waits else replace(found, seconds=(0.0,) * found.runs)


# -- what is installed -----------------------------------------------------------------------------------------------


def _package() -> Path | None:
    """Return the folder of the installed onnxruntime, without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def provider_library(provider: str) -> Path | None:
    """Return where the library of a provider ("cuda", ...) lies, or would lie."""
    name = f"onnxruntime_providers_{provider}"
    folder = _package()
    return None if folder is None else folder / "capi" / (f"{name}.dll" if sys.platform == "win32" else f"lib{name}.so")


def unready(*providers: str) -> str | None:
    """Return None when onnxruntime-gpu with the libraries of these providers, a driver and a GPU are there.

    Else the first that is not, and how to change that. Loads no runtime.
    """
    wanted = missing(INSTALL, "onnxruntime-gpu") or next(filter(None, map(_provider_missing, providers)), None)
    if wanted is not None:
        return wanted
    try:
        _, supported = gpu()
    except NoGpuError as error:
        return str(error)
    built = _built_for()
    if built is not None and supported[0] < int(built.split(".")[0]):
        has = f"the NVIDIA driver supports CUDA {supported[0]}.{supported[1]}"
        return f"{has}, and the installed onnxruntime-gpu needs CUDA {built}: update the driver"
    return None


def unloadable(why: str) -> str:
    """Return that CUDA's libraries cannot be loaded, and how to install them."""
    return f"CUDA's libraries cannot be loaded ({why}): {INSTALL_LIBRARIES}"


def _provider_missing(provider: str) -> str | None:
    """Return None, or that the installed onnxruntime lacks a provider, and how to change that.

    Not by its list of providers: for that it would have to be loaded.
    """
    library = provider_library(provider)
    if library is not None and library.is_file():
        return None
    installed = distributions()
    remove = f"pip uninstall -y {' '.join(installed or ['onnxruntime'])}, then {INSTALL}"
    if "onnxruntime-gpu" in installed:
        return f"the installed onnxruntime-gpu is one without {_CALLED.get(provider, provider)}: {remove}"
    return f"onnxruntime-gpu is not installed: {remove}"


def _built_for() -> str | None:
    """Return the version of CUDA that the installed onnxruntime is built for, as far as it tells, without importing."""
    folder = _package()
    if folder is None:
        return None
    with contextlib.suppress(OSError):
        text = (folder / "capi" / "build_and_package_info.py").read_text(encoding="utf-8")
        found = re.search(r"^cuda_version = '(\d+(?:\.\d+)*)'", text, flags=re.MULTILINE)
        return found[1] if found else None
    return None


# -- CUDA's libraries ------------------------------------------------------------------------------------------------


def _libraries(cuda: str) -> tuple[str, ...]:
    """Return the libraries that no Conv runs without, cuDNN last: the provider may load it only with its first Conv."""
    major = cuda.split(".")[0]
    if sys.platform == "win32":
        names = (f"cudart64_{major}.dll", f"cublasLt64_{major}.dll", f"cublas64_{major}.dll") if major else ()
        return (*names, "cudnn64_9.dll")
    names = (f"libcudart.so.{major}", f"libcublasLt.so.{major}", f"libcublas.so.{major}") if major else ()
    return (*names, "libcudnn.so.9")


def preload() -> None:
    """Load CUDA's libraries from the packages that pip installed; the dynamic loader alone does not look there."""
    try:
        import onnxruntime as ort
    except (ImportError, OSError):
        return  # making the session says it
    if hasattr(ort, "preload_dlls"):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            ort.preload_dlls()


@contextlib.contextmanager
def explained(words: str, *providers: str) -> Iterator[None]:
    """Load CUDA's libraries, and add to a CannotLoad why one of `providers` ("cuda", ...) cannot be loaded.

    ONNX Runtime only logs that. `words`: the regular expression of what it says then.
    """
    preload()
    try:
        yield
    except CannotLoad as error:
        if not re.search(words, str(error)):
            raise
        for library in filter(None, map(provider_library, providers)):
            try:
                ctypes.CDLL(str(library))
            except OSError as why:
                raise CannotLoad(f"{str(error).rstrip('.')}: {one_line(why)}") from error
        raise


# -- the driver ------------------------------------------------------------------------------------------------------


def wait_for_kernels() -> bool:
    """Have the driver wait for every kernel, and say whether it will: it must not have been started yet."""
    if os.environ.get("CUDA_LAUNCH_BLOCKING") == "1":
        return True
    before = os.environ.get("CUDA_LAUNCH_BLOCKING")
    os.environ["CUDA_LAUNCH_BLOCKING"] = "1"  # before the driver's library is loaded too
    with contextlib.suppress(OSError):  # without a driver the model cannot be loaded either
        # Asked for its answer when the driver is not started; this call does not start it.
        state = driver().cuDevicePrimaryCtxGetState(0, ctypes.byref(ctypes.c_uint()), ctypes.byref(ctypes.c_int()))
        if state != _NOT_INITIALIZED:
            del os.environ["CUDA_LAUNCH_BLOCKING"]
            os.environ.update({} if before is None else {"CUDA_LAUNCH_BLOCKING": before})
            return False
    return True


BACKEND: TimedBackend = OnnxRuntimeCuda()
