"""OpenVINO on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np

from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    NodeRun,
    Options,
    Profile,
    Runnable,
    Runner,
    TimedBackend,
    contained,
    repeated,
)
from dilrewrite.runtimes._installed import Package

_OPENVINO = Package(
    module="openvino", distributions=("openvino",), install="pip install 'dilrewrite[openvino]'", least=(2025, 4)
)

PRECISIONS = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}


@final
@dataclass(frozen=True, slots=True)
class OpenVinoCpu(TimedBackend):
    """OpenVINO's CPU plug-in. `precision`: what it may compute float32 in; its own default is bf16 where that is fast.

    It runs every Conv in layouts of its own.
    """

    name: ClassVar = "openvino_cpu"
    alias: ClassVar = "openvino"
    layout_ranks: ClassVar = frozenset({1, 2, 3})
    dilation_costs: ClassVar = False

    precision: str = "f32"

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision={self.precision} is not one of {', '.join(PRECISIONS)}")

    def missing(self) -> str | None:
        """Return None when OpenVINO is installed."""
        return _OPENVINO.missing()

    def versions(self) -> dict[str, str]:
        """Return the version of OpenVINO."""
        import openvino

        return {"openvino": str(openvino.__version__).partition("-")[0]}

    def settings(self, options: Options) -> dict[str, str]:
        """Return the plug-in's settings."""
        threads = {} if options.threads is None else {"INFERENCE_NUM_THREADS": str(options.threads)}
        return {"INFERENCE_PRECISION_HINT": self.precision, "PERFORMANCE_HINT": "LATENCY", **threads}

    def rounds_to(self, options: Options) -> str:  # noqa: ARG002 - a setting of its own
        """Return the element type of the precision."""
        return PRECISIONS[self.precision]

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:
        """Compile a model for the sizes of its inputs, and set them."""
        return _Request(self, runnable, options, feeds)

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:
        """Run a model with the plug-in's counters: what a node that is fused takes is its neighbour's."""
        request = _Request(self, runnable, options, feeds, PERF_COUNT=True)
        return repeated(request.run, request.counters, runs)


class _Request:
    """A compiled model with its inputs."""

    first_s: float | None = None

    def __init__(
        self, backend: OpenVinoCpu, runnable: Runnable, options: Options, feeds: Mapping[str, Array], **more: object
    ) -> None:
        import openvino

        proto = contained(runnable)
        self._names = [output.name for output in proto.graph.output]
        try:
            core = openvino.Core()
            for library in options.custom_op_library:
                core.add_extension(str(library))
            model = core.read_model(proto.SerializeToString(), b"")
            model.reshape({name: list(np.shape(value)) for name, value in feeds.items()})
            self._tensors = {op.get_friendly_name(): sorted(op.output(0).get_names()) for op in model.get_ops()}
            self._compiled: Any = core.compile_model(model, "CPU", {**backend.settings(options), **more})
            runs_in = str(self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
            self._request: Any = self._compiled.create_infer_request()
        except Exception as error:  # it raises whatever its parts do
            raise CannotLoad(_line(error)) from error
        if runs_in != backend.precision:  # it does not say so by itself
            raise CannotLoad(f"precision={backend.precision} is not run on this processor: OpenVINO takes {runs_in}")
        try:
            for name, value in feeds.items():
                self._request.set_tensor(name, openvino.Tensor(np.asarray(value, order="C")))
        except Exception as error:
            raise CannotRun(_line(error)) from error

    def run(self) -> float:
        """Run once; return the seconds, as OpenVINO counts them."""
        try:
            self._request.infer()
        except Exception as error:
            raise CannotRun(_line(error)) from error
        return float(self._request.latency) / 1e3

    def outputs(self) -> dict[str, Array]:
        self.run()
        results = [self._request.get_output_tensor(place).data for place in range(len(self._names))]
        return dict(zip(self._names, map(np.array, results), strict=True))

    def counters(self, run: int) -> Iterator[NodeRun]:
        """Yield what each node that ran took in the last run.

        A Conv may have the name of a constant that was folded into it: it stands for the last node that it holds.
        """
        holds = {
            op.get_friendly_name(): str(op.get_rt_info()["originalLayersNames"].astype(str)).split(",")
            for op in self._compiled.get_runtime_model().get_ops()
        }
        for node in self._request.get_profiling_info():
            name, kind, seconds = str(node.node_name), str(node.node_type), node.real_time.total_seconds()
            tensors = self._tensors.get(holds.get(name, [name])[-1], []) if kind == "Convolution" else []
            if seconds > 0:
                yield NodeRun(name=name, op=kind, seconds=seconds, stands_for="".join(tensors[:1]), run=run)

    def close(self) -> None:
        self._request = self._compiled = None


def _line(error: BaseException) -> str:
    """Return the last of an error's lines that says what is wrong: others name places in sources, and pages to read."""
    lines = [line.strip().removeprefix("-- ") for line in str(error).splitlines()]
    lines = [line for line in lines if line and "https://" not in line]
    return lines[-1] if lines else type(error).__name__


BACKEND: TimedBackend = OpenVinoCpu()
