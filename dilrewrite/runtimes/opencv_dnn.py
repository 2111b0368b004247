"""OpenCV's DNN module, 4.14 and later of 4.x, on the CPU. It takes models of fixed sizes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import numpy as np

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

if TYPE_CHECKING:
    from dilrewrite.forms.geometry import ConvGeometry

INSTALL = "pip install 'dilrewrite[opencv]'"

_DISTRIBUTIONS = tuple(f"opencv-{kind}" for kind in ("python-headless", "python", "contrib-python-headless"))


@final
@dataclass(frozen=True, slots=True)
class OpenCvDnn(TimedBackend):
    """OpenCV's DNN module on the CPU. `winograd`: whether 3x3 Convs may run by it, as they may unless told otherwise.

    OpenCV's threads are the process' own.
    """

    name: ClassVar = "opencv_dnn"
    alias: ClassVar = "opencv"

    winograd: str = "on"

    def __post_init__(self) -> None:
        if self.winograd not in ("on", "off"):
            raise ValueError(f"winograd={self.winograd} is neither on nor off")

    def missing(self) -> str | None:
        """Return None when OpenCV is installed in a version that it runs with."""
        if importlib.util.find_spec("cv2") is None:
            return f"opencv-python-headless is not installed: {INSTALL}"
        for name in _DISTRIBUTIONS:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            if not (4, 14) <= tuple(map(int, version.split(".")[:2])) < (5, 0):
                return f"{name} is {version}, and 4.14 or a later 4.x is needed: {INSTALL}"
        return None

    def versions(self) -> dict[str, str]:
        """Return the version of OpenCV."""
        import cv2

        return {"opencv": str(cv2.__version__)}

    def settings(self, options: Options) -> dict[str, str]:
        """Return the threads, and whether Winograd's way is allowed."""
        return {**TimedBackend.settings(self, options), "winograd": self.winograd}

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
            self._net: Any = cv2.dnn.readNetFromONNX(np.frombuffer(proto.SerializeToString(), np.uint8))
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


def _line(error: BaseException) -> str:
    """Return an error of OpenCV in one line, without the place in its sources."""
    return " ".join(str(error).split()).partition("error: ")[2] or str(error)


BACKEND: TimedBackend = OpenCvDnn()
