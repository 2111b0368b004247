"""TensorRT for RTX on an NVIDIA GPU: models are built into engines, and timed as such."""

from __future__ import annotations

from dilrewrite.runtimes import TimedBackend
from dilrewrite.tensorrt.backend import TensorRtRtx

BACKEND: TimedBackend = TensorRtRtx()
