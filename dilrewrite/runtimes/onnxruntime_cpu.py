"""ONNX Runtime on the CPU, in this process or in a child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from dilrewrite import machine
from dilrewrite.runtimes import MEASURED, Array, Options, Pace, Profile, Runnable, Runner, Session, TimedBackend
from dilrewrite.runtimes._onnxruntime import BoundRunner, InProcess, conflict, missing, profile, session_settings
from dilrewrite.runtimes._worker import IsolatedSession

INSTALL = "pip install 'dilrewrite[cpu]'"


@final
@dataclass(frozen=True, slots=True)
class OnnxRuntimeCpu:
    """ONNX Runtime with its CPU execution provider."""

    name: str = "onnxruntime_cpu"
    rank: int = 0
    layout_ranks: frozenset[int] = frozenset({2})
    doubts: str = ""
    source: str = MEASURED
    pace: Pace = field(default_factory=Pace)
    tells_layers: bool = False
    trial: str | None = None

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

    def session(self, runnable: Runnable, options: Options) -> Session:
        """Load a model, in a child process when `options.isolated`."""
        if options.isolated:
            return IsolatedSession(self.name, runnable, options)
        return InProcess(runnable, options)

    def device(self) -> str:
        """Return the processor and the number of its cores that this process may use."""
        count = machine.cores()
        return f"{machine.processor()}, {count} core{'s' if count > 1 else ''}"

    def state(self) -> dict[str, float]:
        """Return nothing: processors do not tell."""
        return {}

    def settings(self, options: Options) -> dict[str, str]:
        """Return the session's configuration entries, and its threads."""
        threads = "default" if options.threads is None else str(options.threads)
        return {"intra_op_num_threads": threads, **session_settings(options)}

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Load a model and bind its inputs."""
        return BoundRunner(runnable, options, feeds)

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run a model with the profiler."""
        return profile(runnable, options, feeds, runs)


BACKEND: TimedBackend = OnnxRuntimeCpu()
