"""A model whose weights stay in their files, and its tensors: read one at a time, inline or external.

Everything wrong with a tensor's data (missing, too short, outside of the model's folder) is a UsageError.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.numpy_helper
from google.protobuf.message import Message  # type: ignore[import-untyped, unused-ignore]
from onnx import ModelProto, NodeProto, TensorProto

from dilrewrite.errors import UsageError, shown
from dilrewrite.model.elements import NUMBERED, Element, pack, unpack
from dilrewrite.model.walk import DEFAULT_DOMAINS, tensors
from dilrewrite.staging import may, reason

LIMIT_BYTES = 2**31 - 1  # what protobuf can parse and serialize
_COUNTED_BYTES = 2**26  # larger inline values are not counted: that would copy them
_MOST_DIGITS = 19  # of a place in a file
_DAMAGED = "the model is damaged: export it again"


@dataclass(frozen=True, slots=True)
class InMemory:
    """A model that has no file: its bytes, what messages call it, and the folder of its external data, if any."""

    data: bytes = field(repr=False)
    name: str
    folder: Path | None = None

    def __str__(self) -> str:
        """Return what stands where a file's model has its path."""
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenOut:
    """A node of a model as it was given, and the nodes that stand for it; `opset`: of these, where it is no call."""

    node: NodeProto
    nodes: tuple[NodeProto, ...]
    opset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An ONNX model without its external weights in memory, and where those lie.

    `path`: as the user named it, None for a model made in memory; `memory`: what the user gave instead of a path;
    `folder`: absolute, external locations are relative to it; `external_files`: the distinct ones in order of first
    use; `file_bytes`: of the model and those together.
    `file_digest`: SHA-256 of the file (its re-serialization may differ); `proto_digest`: of the parts as loaded.
    `given`: what was loaded, where `proto` is that with nodes `written_out`.
    """

    path: Path | None
    proto: ModelProto
    folder: Path
    external_files: tuple[str, ...]
    file_bytes: int
    file_digest: str = field(default="", repr=False)
    proto_digest: str = field(default="", repr=False)
    memory: InMemory | None = None
    given: ModelProto | None = field(default=None, repr=False)
    written_out: tuple[WrittenOut, ...] = field(default=(), repr=False)

    @property
    def original(self) -> ModelProto:
        """The model as it was loaded."""
        return self.proto if self.given is None else self.given

    @property
    def name(self) -> str:
        """What messages and reports call it: its path, or what stands for one."""
        return shown(self.path) if self.path is not None else str(self.memory or "")

    @property
    def opset(self) -> int:
        """Version of the standard operators; of several imports the last counts, 0 without any."""
        versions = [entry.version for entry in self.proto.opset_import if entry.domain in DEFAULT_DOMAINS]
        return int(versions[-1]) if versions else 0

    @property
    def ir_version(self) -> int:
        """Version of the file format."""
        return int(self.proto.ir_version)

    @property
    def file(self) -> Path | None:
        """The model file's absolute path, the same whatever the working directory is now."""
        return None if self.path is None else self.folder / self.path.name


def parts_digest(proto: ModelProto) -> str:
    """Return the SHA-256 of a model's fields, serialized one by one: the whole would be another copy of all weights."""
    digest = hashlib.sha256()

    def take(part: object) -> None:
        data = part.SerializeToString() if isinstance(part, Message) else repr(part).encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)

    for message in (proto, proto.graph):
        for descriptor, value in message.ListFields():
            if descriptor.name == "graph":
                continue
            take(descriptor.number)
            for part in value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,):
                take(part)
    return digest.hexdigest()


def read_tensor(model: Model, tensor: TensorProto) -> npt.NDArray[Any]:
    """Read the values of one tensor of `model`, inline or external, and nothing else; the array is read-only.

    The small types are ml_dtypes arrays, one element per value. A tensor whose data do not fit its dims, or whose
    external data have gone, is a UsageError.
    """
    where, element = label(model, tensor), _element(tensor)
    if element is not None and is_external(tensor):
        array = unpack(_read_external(model, tensor, where), element, tuple(tensor.dims))
    elif element is not None and _inline_count(tensor) != byte_count(tensor):
        raise _misfit(tensor, where, "it has", _inline_count(tensor))
    else:
        try:
            array = np.asarray(onnx.numpy_helper.to_array(tensor, str(model.folder)))
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{where}: element type {_type_name(tensor)} cannot be read"
            raise UsageError(problem, hint="a newer onnx may know it: upgrade onnx") from error
    array.flags.writeable = False
    return array


def is_external(tensor: TensorProto) -> bool:
    """Say whether the values lie in another file."""
    return tensor.data_location == TensorProto.EXTERNAL


def label(model: Model, tensor: TensorProto) -> str:
    """Return how an error names a tensor: by its file and its name."""
    return f"{model.path or model.memory or 'model'}: " + (
        f'tensor "{tensor.name}"' if tensor.name else "an unnamed tensor"
    )


def _misfit(tensor: TensorProto, where: str, what: str, count: object) -> UsageError:
    """Return that `what` of a tensor is another number of bytes than its dims need."""
    needed = f"dims {list(tensor.dims)} of {_type_name(tensor)} need {byte_count(tensor)} bytes"
    return UsageError(f"{where}: {needed}, {what} {count}", hint=_DAMAGED)


def _type_name(tensor: TensorProto) -> str:
    try:
        return str(TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return f"{tensor.data_type} (unknown)"


def _element(tensor: TensorProto) -> Element | None:
    """Return the element type; None for strings and types that the table lacks."""
    element = NUMBERED.get(tensor.data_type)
    return element if element is not None and element.bits else None


def byte_count(tensor: TensorProto) -> int | None:
    """Bytes that dims and element type need, packed; None for strings and types that the table lacks."""
    element = _element(tensor)
    return None if element is None else int(math.prod(tensor.dims) * element.bits + 7) // 8


def inline_bytes(tensor: TensorProto) -> bytes:
    """Return the values as raw_data would hold them, from whichever field holds them."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return pack(onnx.numpy_helper.to_array(tensor), NUMBERED[tensor.data_type]).tobytes()


def _inline_count(tensor: TensorProto) -> int:
    """Return the number of bytes that `inline_bytes` would return."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    element = NUMBERED[tensor.data_type]
    width = {"float_data": 4, "double_data": 8}.get(element.field, element.dtype.itemsize)
    return int(width * len(getattr(tensor, element.field)))


# ---- external data ------------------------------------------------------------------------------------------------


def check_external_data(model: Model) -> tuple[tuple[str, ...], int]:
    """Check every external tensor of a model; return the locations and the size of the distinct files."""
    files: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors(model.proto):
        where = label(model, tensor)
        _check_values(tensor, where)
        if is_external(tensor):
            location = location_of(tensor, where)
            if location not in files:
                files[location] = data_file(model, location, where)
                sizes[location] = files[location].stat().st_size
            _span(tensor, sizes[location], where)
    return tuple(files), sum({file.resolve(): sizes[location] for location, file in files.items()}.values())


def refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Make a tensor say where its values are."""
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def _check_values(tensor: TensorProto, where: str) -> None:
    """Refuse a name that is not UTF-8, negative sizes, and inline values that do not fit the sizes."""
    if not isinstance(tensor.name, str):
        raise UsageError(f"{where}: its name is not UTF-8", hint=_DAMAGED)
    if any(size < 0 for size in tensor.dims):
        raise UsageError(f"{where} has dims {list(tensor.dims)}", hint=_DAMAGED)
    needed = byte_count(tensor)
    if needed is None or is_external(tensor) or _COUNTED_BYTES < needed <= LIMIT_BYTES:
        return
    count = _inline_count(tensor) if needed <= LIMIT_BYTES else LIMIT_BYTES
    if count != needed:
        raise _misfit(tensor, where, "it has", "fewer" if needed > LIMIT_BYTES else count)


def location_of(tensor: TensorProto, where: str) -> str:
    """Return the location entry of an external tensor; refuse what could lead out of the folder by its spelling."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    said = f"{where}: external data location {location!r}"
    if not location:
        problem = f"{where} is external and names no location"
    elif not isinstance(location, str):  # protobuf gives bytes where a text is not UTF-8
        problem = f"{said} is not UTF-8"
    elif "\0" in location:
        problem = f"{said} is not a file name"
    elif location.startswith("/") or PureWindowsPath(location).drive:
        problem = f'{where}: external data location "{location}" is an absolute path'
    elif Path(os.path.normpath(location)).parts[:1] == (os.pardir,):
        problem = f'{where}: external data location "{location}" leaves the model\'s folder'
    else:
        return location
    raise UsageError(problem, hint="save the model again with all external data beside it")


def data_file(model: Model, location: str, where: str) -> Path:
    """Return the file of a location, which must be readable and really lie in the model's folder.

    When the model itself is a link (the cache of Hugging Face), the folder of its target counts too, as in ONNX
    Runtime.
    """
    file = model.folder / location
    name = f'{where}: its external data file "{location}"'
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        problem = f"{name} does not exist in {model.folder}"
        raise UsageError(problem, hint="put the file there, it belongs to the model") from error
    homes = [model.folder.resolve()] + ([model.file.resolve().parent] if model.file is not None else [])
    if not any(real.is_relative_to(home) for home in homes):
        problem = f"{name} is a link to {real}, outside of the model's folder"
        raise UsageError(problem, hint="put the file itself beside the model")
    if not real.is_file():
        raise UsageError(f"{name} is not a regular file", hint="put the data file there, it belongs to the model")
    if not may(real, os.R_OK):
        raise UsageError(f"{name} cannot be read: permission denied", hint="check its permissions")
    return file


def _span(tensor: TensorProto, file_bytes: int, where: str) -> tuple[int, int]:
    """Return offset and length of an external tensor in its file of `file_bytes`, or refuse."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    for key in ("offset", "length"):
        text = entries.get(key, "0")
        if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
            problem = f"{where}: external data {key} {text[:_MOST_DIGITS]!r} is not a byte count"
            raise UsageError(problem, hint=_DAMAGED)
    offset, needed = int(entries.get("offset", 0)), byte_count(tensor)
    length = int(entries.get("length", max(0, file_bytes - offset) if needed is None else needed))
    if needed is not None and length != needed:
        raise _misfit(tensor, where, "its external data have", length)
    if offset + length > file_bytes:
        place = f'bytes {offset} to {offset + length} of "{entries["location"]}", which has only {file_bytes} bytes'
        hint = "fetch the data file again: it is cut off, only a git-lfs pointer, or of another model"
        raise UsageError(f"{where} is at {place}", hint=hint)
    return offset, length


def _read_external(model: Model, tensor: TensorProto, where: str) -> npt.NDArray[np.uint8]:
    location = location_of(tensor, where)
    file = data_file(model, location, where)
    try:
        offset, length = _span(tensor, file.stat().st_size, where)
        raw = np.fromfile(file, np.uint8, count=length, offset=offset)
    except OSError as error:
        problem = f'{where}: "{location}" cannot be read: {reason(error)}'
        raise UsageError(problem, hint="check the data file") from error
    if raw.size != length:
        raise UsageError(f'{where}: "{location}" was cut off while it was read', hint="leave it alone and try again")
    return raw
