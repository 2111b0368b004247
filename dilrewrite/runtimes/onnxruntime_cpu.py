"""ONNX Runtime on the CPU, in this process or in a child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, final

from dilrewrite.runtimes import Array, Options, Profile, Runnable, Runner, Session, TimedBackend
from dilrewrite.runtimes._onnxruntime import (
    TIMED,
    BoundRunner,
    InProcess,
    conflict,
    missing,
    profile,
    refuses,
)

if TYPE_CHECKING:
    from dilrewrite.forms.geometry import ConvGeometry

INSTALL = "pip install 'dilrewrite[cpu]'"


@final
@dataclass(frozen=True, slots=True)
class OnnxRuntimeCpu(TimedBackend):
    """ONNX Runtime with its CPU execution provider."""

    name: ClassVar = "onnxruntime_cpu"
    rank: ClassVar = 0
    layout_ranks: ClassVar = frozenset({2})
    trial: ClassVar = None

    def conflict(self) -> str | None:
        """Return None, or which distributions overwrite each other."""
        return conflict(INSTALL)

    def missing(self) -> str | None:
        """Return None when ONNX Runtime is ready, else what is missing and the command that installs it."""
        return missing(INSTALL)

    def versions(self) -> dict[str, str]:
        """Return the version of ONNX Runtime."""
        import onnxruntime

        return {"onnxruntime": str(onnxruntime.__version__)}

    def loaded(self, runnable: Runnable, options: Options) -> Session:
        """Load a model in this process."""
        return InProcess(runnable, options)

    def settings(self, options: Options) -> dict[str, str]:
        """Return the session's configuration entries, and its threads."""
        threads = "default" if options.threads is None else str(options.threads)
        return {"intra_op_num_threads": threads, **TIMED}

    def refuses(self, geometry: ConvGeometry) -> str | None:
        """Return why ONNX Runtime does not run a Conv as it is."""
        return refuses(geometry)

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Load a model and bind its inputs."""
        return BoundRunner(runnable, options, feeds)

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run a model with the profiler."""
        return profile(runnable, options, feeds, runs)


BACKEND: TimedBackend = OnnxRuntimeCpu()
