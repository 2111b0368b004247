"""ONNX Runtime on the CPU, in this process or in a child."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from dilrewrite.runtimes import TimedBackend
from dilrewrite.runtimes._onnxruntime import OnnxRuntime, missing


@final
@dataclass(frozen=True, slots=True)
class OnnxRuntimeCpu(OnnxRuntime):
    """ONNX Runtime with its CPU execution provider."""

    name: ClassVar = "onnxruntime_cpu"
    alias: ClassVar = "cpu"
    rank: ClassVar = 0
    layout_ranks: ClassVar = frozenset({2})
    dilation_costs: ClassVar = False
    host_memory: ClassVar = True
    install: ClassVar = "pip install 'dilrewrite[cpu]'"

    def missing(self) -> str | None:
        """Return None when ONNX Runtime is ready, else what is missing and the command that installs it."""
        return missing(self.install)

    def versions(self) -> dict[str, str]:
        """Return the version of ONNX Runtime."""
        import onnxruntime

        return {"onnxruntime": str(onnxruntime.__version__)}


BACKEND: TimedBackend = OnnxRuntimeCpu()
