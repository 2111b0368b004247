"""Models as runtimes get them: files or bytes of this host, what a runtime made of them, and their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dilrewrite.errors import one_line
from dilrewrite.runtimes._failures import CannotLoad

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True, slots=True, kw_only=True)
class Runnable:
    """A model to run: serialized, or the path of a file (the only way above 2 GB).

    `folder` is where the external data of a serialized model lie; a path has its own. `engine`: it is no ONNX model
    but an engine that a backend built.
    """

    model: bytes | Path
    folder: Path | None = None
    engine: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What a bench runs: a model, or what a runtime made of it. `digest` names its content.

    `_held` is where this host has it, for the worker process on this host alone: every other bench takes the `content`.
    """

    digest: str
    _held: Runnable

    def content(self) -> tuple[bytes, dict[str, bytes]]:
        """Return the model and its external data by location. Raises OSError."""
        import onnx

        held, folder = self._held.model, self._held.folder
        model, folder = (held.read_bytes(), held.parent) if isinstance(held, Path) else (held, folder)
        if folder is None:
            return model, {}
        places = external_files(onnx.load_model_from_string(model))
        return model, {place: (folder / place).read_bytes() for place in places}


def external_files(proto: ModelProto) -> list[str]:
    """Return where a model's external data lie, from its folder."""
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    tensors = [tensor for tensor in proto.graph.initializer if uses_external_data(tensor)]
    return sorted({str(ExternalDataInfo(tensor).location) for tensor in tensors})


def artifact(runnable: Runnable) -> Artifact:
    """Return a model as it is. A file is known by its place, size and time of change."""
    text = hashlib.sha256(str(runnable.folder).encode())
    if isinstance(runnable.model, Path):
        status = runnable.model.stat() if runnable.model.is_file() else None
        text.update(f"{runnable.model.absolute()} {status and (status.st_size, status.st_mtime_ns)}".encode())
    else:
        text.update(runnable.model)
    return Artifact(digest=text.hexdigest(), _held=runnable)


def fixed(runnable: Runnable, shapes: Mapping[str, tuple[int, ...]]) -> ModelProto:
    """Return a model with the sizes of its inputs fixed and its weights inside. Raises CannotLoad."""
    proto = contained(runnable)
    for value in proto.graph.input:
        for size, extent in zip(value.type.tensor_type.shape.dim, shapes.get(value.name, ()), strict=False):
            size.dim_value = extent
    return proto


def contained(runnable: Runnable) -> ModelProto:
    """Return a model with its external data in memory. Raises CannotLoad."""
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        if isinstance(runnable.model, Path):
            return onnx.load_model(runnable.model)
        proto = onnx.load_model_from_string(runnable.model)
        if runnable.folder is not None:
            onnx.load_external_data_for_model(proto, str(runnable.folder))
        elif external_files(proto):
            raise ValueError("the model has external data and no folder was given for them")
    except (OSError, ValueError, DecodeError, onnx.checker.ValidationError) as error:
        raise CannotLoad(one_line(error)) from error
    return proto
