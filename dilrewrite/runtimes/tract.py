"""tract, an inference engine in Rust, on the CPU. It runs on one thread, and takes models of fixed sizes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

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
)
from dilrewrite.runtimes._installed import Package

_TRACT = Package(module="tract", distributions=("tract",), install="pip install 'dilrewrite[tract]'", least=(0, 23))


@final
@dataclass(frozen=True, slots=True)
class Tract(TimedBackend):
    """tract on the CPU (https://github.com/sonos/tract), by its Python package of 0.23 or later."""

    name: ClassVar = "tract"

    def missing(self) -> str | None:
        """Return None when tract is installed."""
        return _TRACT.missing()

    def versions(self) -> dict[str, str]:
        """Return the version of tract."""
        return {"tract": importlib.metadata.version("tract")}

    def settings(self, options: Options) -> dict[str, str]:  # noqa: ARG002 - it has no others
        """Return the one thread that its Python package runs on, whatever is asked for."""
        return {"threads": "1"}

    def prepare(self, model: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> Artifact:
        """Return the model with the sizes of its inputs fixed, and no other: tract takes a declared name for a size."""
        proto = fixed(model, shapes)
        del proto.graph.value_info[:]
        for value in proto.graph.output:
            value.type.tensor_type.ClearField("shape")
        return artifact(Runnable(model=proto.SerializeToString()))

    def runner(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array]) -> Runner:  # noqa: ARG002
        """Load a model and set its inputs."""
        return _Plan(runnable, feeds)

    def profile(self, runnable: Runnable, options: Options, feeds: Mapping[str, Array], runs: int) -> Profile:  # noqa: ARG002
        """Have tract time each operator, for five seconds, and return the means as one run: their sum.

        Operators that are fused go by the name of their first one.
        """
        nodes = tuple(_Plan(runnable, feeds).operators())
        return Profile(seconds=(sum(node.seconds for node in nodes),), nodes=nodes)


class _Plan:
    """A model with its inputs."""

    first_s: float | None = None

    def __init__(self, runnable: Runnable, feeds: Mapping[str, Array]) -> None:
        os.environ.setdefault("RUST_BACKTRACE", "0")
        import tract

        proto = contained(runnable)
        self._names = [output.name for output in proto.graph.output]
        self._error = tract.TractError
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.onnx"
                path.write_bytes(proto.SerializeToString())
                model = tract.onnx().load(path)
            names = [model.input_name(place) for place in range(model.input_count())]
            self._plan: Any = model.into_model().into_runnable()
        except tract.TractError as error:
            raise CannotLoad(_line(error)) from error
        self._inputs = [tract.Tensor.from_numpy(np.asarray(feeds[name], order="C")) for name in names]

    def run(self) -> float:
        """Run once; return the seconds."""
        start = time.perf_counter()
        self._forward()
        return time.perf_counter() - start

    def outputs(self) -> dict[str, Array]:
        return {name: value.to_numpy() for name, value in zip(self._names, self._forward(), strict=True)}

    def _forward(self) -> Any:
        try:
            return self._plan.run(self._inputs)
        except self._error as error:
            raise CannotRun(_line(error)) from error

    def operators(self) -> Iterator[NodeRun]:
        """Yield what each operator takes, by tract's own clock."""
        try:
            told = json.loads(self._plan.profile_json(self._inputs))
        except self._error as error:
            raise CannotRun(_line(error)) from error
        for node in told["nodes"]:
            if "secs_per_iter" in node:
                yield NodeRun(name=node["node_name"], op=node["op_name"], seconds=node["secs_per_iter"])

    def close(self) -> None:
        self._plan = None


def _line(error: BaseException) -> str:
    """Return an error of tract and its causes in one line, without the stack."""
    return " ".join(str(error).partition("Stack backtrace:")[0].split()) or type(error).__name__


BACKEND: TimedBackend = Tract()
