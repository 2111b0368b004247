"""OpenCV's DNN module, 4.14 and later, on the CPU. It takes models of fixed sizes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

from dilrewrite.errors import one_line
from dilrewrite.runtimes import (
    Array,
    Artifact,
    CannotLoad,
    CannotRun,
    NodeRun,
    Options,
    Profile,
    Runnable,
    Runner,
    TimedBackend,
    artifact,
    contained,
    fixed,
    repeated,
)
from dilrewrite.runtimes._installed import Package

if TYPE_CHECKING:
    from dilrewrite.forms.geometry import ConvGeometry

INSTALL = "pip install 'dilrewrite[opencv]'"

_CONTRIB = ("contrib-python-headless", "contrib-python")

_CV2 = Package(
    module="cv2",
    distributions=tuple(f"opencv-{kind}" for kind in ("python-headless", "python", *_CONTRIB)),
    install=INSTALL,
    least=(4, 14),
    below=(6,),
)

_LAYERS = {"classic": "Conv2", "new": "Convolution"}
"""Engines of 5.x, and what the other one calls a Conv."""

_FORCED = "OPENCV_FORCE_DNN_ENGINE"
"""A variable that decides on the engine, whatever a program asks for."""


@final
@dataclass(frozen=True, slots=True)
class OpenCvDnn(TimedBackend):
    """OpenCV's DNN module on the CPU. `winograd`: whether 3x3 Convs may run by it, as they may unless told otherwise.

    `engine`: which of the two of OpenCV 5 runs a model: the classic one, which is the one of 4.x, or the new one.
    OpenCV's threads are the process' own.
    """

    name: ClassVar = "opencv_dnn"
    alias: ClassVar = "opencv"
    layout: ClassVar = "axes"  # its Transpose of other than four axes, of which it makes SpaceToDepth too, is slow

    winograd: str = "on"
    engine: str = "classic"

    def __post_init__(self) -> None:
        if self.winograd not in ("on", "off"):
            raise ValueError(f"winograd={self.winograd} is neither on nor off")
        if self.engine not in _LAYERS:
            raise ValueError(f"engine={self.engine} is neither classic nor new")

    def conflict(self) -> str | None:
        """Return None, or which distributions of OpenCV are installed side by side."""
        return _CV2.conflict()

    def missing(self) -> str | None:
        """Return None when OpenCV is installed in a version that it runs with, and has its DNN module. Loads it."""
        if (told := _CV2.missing()) is not None:
            return told
        try:
            import cv2
        except ImportError as error:
            return f"cv2 cannot be imported: {one_line(error)}: pip uninstall -y {_named()}, then {INSTALL}"
        version = str(getattr(cv2, "__version__", ""))
        if (told := _CV2.refused("cv2", version)) is not None:  # of no distribution, or one that is broken
            return told
        if not hasattr(cv2, "dnn"):
            return f"cv2 {version} was built without its dnn module: pip uninstall -y {_named()}, then {INSTALL}"
        if self.engine == "new" and not hasattr(cv2.dnn, "ENGINE_NEW"):
            return f"OpenCV {version} has no engine=new: pip install 'opencv-python-headless>=5,<6'"
        return None

    def versions(self) -> dict[str, str]:
        """Return the version of OpenCV."""
        import cv2

        return {"opencv": str(cv2.__version__)}

    def settings(self, options: Options) -> dict[str, str]:
        """Return the threads, whether Winograd's way is allowed, and the engine."""
        return {**TimedBackend.settings(self, options), "winograd": self.winograd, "engine": self.engine}

    def refuses(self, geometry: ConvGeometry) -> str | None:
        """Return why OpenCV does not run a Conv as it is."""
        if geometry.auto_pad.startswith("SAME") or min(p or 0 for p in (*geometry.pads_begin, *geometry.pads_end)) < 0:
            return "OpenCV runs neither SAME_* pads with dilation nor negative pads"
        return None

    def prepare(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:
        """Return the model with the sizes of its inputs fixed, and its weights inside."""
        proto = fixed(model, shapes)
        for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
            value.type.tensor_type.shape.SetInParent()  # OpenCV takes no value without a shape, and infers its own
        return artifact(Runnable(model=proto.SerializeToString()))

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Load a model and set its inputs."""
        return _Net(self, runnable, options, feeds)

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run a model, and read after each run what each layer took; one that is fused into another takes nothing."""
        net = _Net(self, runnable, options, feeds)
        return repeated(net.run, net.layers, runs)


class _Net:
    """A model with its inputs."""

    first_s: float | None = None

    def __init__(self, backend: OpenCvDnn, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> None:
        import cv2

        self._cv2: Any = cv2
        if options.threads is not None:
            cv2.setNumThreads(options.threads)
        proto = contained(runnable)
        self._names = [output.name for output in proto.graph.output]
        try:
            self._net: Any = _read(cv2, proto.SerializeToString(), backend.engine)
            self._net.enableWinograd(backend.winograd == "on")
        except cv2.error as error:
            raise CannotLoad(_line(error)) from error
        try:
            for name, value in feeds.items():
                self._net.setInput(np.asarray(value, order="C"), name)
        except cv2.error as error:
            raise CannotRun(_line(error)) from error

    def run(self) -> float:
        """Run once; return the seconds."""
        start = time.perf_counter()
        self._forward()
        return time.perf_counter() - start

    def outputs(self) -> dict[str, Array]:
        return dict(zip(self._names, self._forward(), strict=True))

    def _forward(self) -> Any:
        try:
            return self._net.forward(self._names)
        except self._cv2.error as error:
            raise CannotRun(_line(error)) from error

    def layers(self, run: int) -> Iterator[NodeRun]:
        """Yield what each layer took in the last run."""
        _, ticks = self._net.getPerfProfile()
        for name, took in zip(self._net.getLayerNames(), np.ravel(ticks).tolist(), strict=True):
            kind = str(self._net.getLayer(name).type)
            plain = str(name).removeprefix("onnx_node!")
            yield NodeRun(name=plain, op=kind, seconds=took / self._cv2.getTickFrequency(), run=run)

    def close(self) -> None:
        self._net = None


def _read(cv2: Any, model: bytes, engine: str) -> Any:
    """Return a model as one of the engines has it. Raises CannotLoad when that engine leaves it to the other one.

    From a file: OpenCV 5.0 does not heed the engine for a model in memory. What is forced is no setting of the user's
    here, and would hold for all.
    """
    os.environ.pop(_FORCED, None)
    both = hasattr(cv2.dnn, "ENGINE_NEW")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model)
        which = (getattr(cv2.dnn, f"ENGINE_{engine.upper()}"),) if both else ()
        net = cv2.dnn.readNetFromONNX(str(path), *which)
    if net.empty() or (both and _LAYERS[engine] in net.getLayerTypes()):
        raise CannotLoad(f"OpenCV's {engine} engine does not take the model")
    return net


def _named() -> str:
    """Return the distributions of OpenCV to uninstall."""
    return " ".join(_CV2.installed()) or _CV2.distributions[0]


def _line(error: BaseException) -> str:
    """Return an error of OpenCV in one line, without the place in its sources."""
    return " ".join(str(error).split()).partition("error: ")[2] or str(error)


BACKEND: TimedBackend = OpenCvDnn()
