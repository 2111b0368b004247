"""ONNX's reference evaluator, in this process: runs what ONNX Runtime cannot (Conv in float64 and bfloat16), slowly."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import ClassVar, final

import numpy as np
import onnx

from dilrewrite.errors import one_line
from dilrewrite.model.elements import dtype, element_name
from dilrewrite.model.evaluate import Evaluator
from dilrewrite.model.walk import put_in_order
from dilrewrite.runtimes import Array, Backend, CannotLoad, CannotRun, Io, Options, Runnable, Session, contained, fits


@final
class ReferenceSession(Session):
    """A model in the reference evaluator."""

    def __init__(self, runnable: Runnable) -> None:
        try:
            model = contained(runnable)
            put_in_order(model)
            self._evaluator: Evaluator | None = Evaluator(model)
            fixed = {tensor.name for tensor in model.graph.initializer}
            self.inputs: tuple[Io, ...] = tuple(_io(v) for v in model.graph.input if v.name not in fixed)
            self.outputs: tuple[Io, ...] = tuple(_io(v) for v in model.graph.output)
        except Exception as error:  # the evaluator raises whatever its operators do
            raise CannotLoad(_reason(error)) from error
        self._overridable = {value.name: _io(value) for value in model.graph.input if value.name in fixed}

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the named outputs (None: all)."""
        assert self._evaluator is not None, "the session is closed"
        names = [output.name for output in self.outputs] if outputs is None else list(outputs)
        unknown = set(names) - {output.name for output in self.outputs}
        if unknown:
            raise CannotRun(f"the model has no output {', '.join(sorted(unknown))}")
        self._check(feeds)
        plain = {name: value if isinstance(value, list) else np.asarray(value) for name, value in feeds.items()}
        try:
            with np.errstate(all="ignore"):
                results = self._evaluator.run(names, plain)
        except Exception as error:
            raise CannotRun(_reason(error)) from error
        return dict(zip(names, results, strict=True))

    def _check(self, feeds: Mapping[str, Array]) -> None:
        known = {value.name: value for value in self.inputs}
        missing, extra = known.keys() - feeds.keys(), feeds.keys() - known.keys() - self._overridable.keys()
        if missing or extra:
            named = ", ".join(sorted(missing or extra))
            raise CannotRun(f"input {named} is missing" if missing else f"the model has no input {named}")
        for name, value in feeds.items():
            declared = known.get(name) or self._overridable[name]
            if isinstance(value, list):
                continue
            wanted, given = declared.element, np.shape(value)
            with contextlib.suppress(KeyError):
                if wanted != "string" and value.dtype != dtype(wanted):
                    raise CannotRun(f"input {name} is {value.dtype} instead of {wanted}")
            if declared.shape is not None and not fits(given, declared.shape):
                sizes = ["?" if size is None else size for size in declared.shape]
                raise CannotRun(f"input {name} is {list(given)} instead of {sizes}")

    def close(self) -> None:
        """Free the model."""
        self._evaluator = None


def _reason(error: BaseException) -> str:
    cause = error.__cause__ or error  # the evaluator wraps what an operator raised
    return f"{type(cause).__name__}: {one_line(cause)}"[:500]


def _io(value: onnx.ValueInfoProto) -> Io:
    if value.type.WhichOneof("value") != "tensor_type":
        return Io(name=value.name, element=f"other:{value.type.WhichOneof('value')}", shape=None)
    tensor = value.type.tensor_type
    element = element_name(tensor.elem_type) or f"other:{tensor.elem_type}"
    sizes = (dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or None) for dim in tensor.shape.dim)
    return Io(name=value.name, element=element, shape=tuple(sizes) if tensor.HasField("shape") else None)


@final
@dataclass(frozen=True, slots=True)
class Reference(Backend):
    """ONNX's reference evaluator, which is always installed."""

    name: ClassVar = "reference"

    def versions(self) -> dict[str, str]:
        """Return the versions of onnx and NumPy."""
        return {"onnx": str(onnx.__version__), "numpy": version("numpy")}

    def session(self, runnable: Runnable, options: Options) -> Session:  # noqa: ARG002 - it has no options
        """Load a model; the options change nothing."""
        return ReferenceSession(runnable)


BACKEND: Backend = Reference()
