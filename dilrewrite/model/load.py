"""From a path, or what is in memory, to a `Model`: the only file that reads models. External weights stay in place."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, Protocol

from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped, unused-ignore]
from google.protobuf.message import DecodeError, EncodeError, Message  # type: ignore[import-untyped, unused-ignore]
from onnx import ModelProto, TensorProto

from dilrewrite.errors import UsageError
from dilrewrite.model.tensors import (
    LIMIT_BYTES,
    InMemory,
    Model,
    byte_count,
    check_external_data,
    is_external,
    parts_digest,
    refer,
)
from dilrewrite.model.valid import check
from dilrewrite.model.walk import tensors
from dilrewrite.staging import reason

MIN_OPSET = 7
MIN_IR_VERSION = 3

_LARGE_BYTES = 2**24  # larger files are read in parts
_PART_BYTES = 2**20  # larger fields are parsed by themselves then


class Exported(Protocol):
    """What holds a model, as torch's `ONNXProgram` does."""

    @property
    def model_proto(self) -> ModelProto:
        """The model."""


AnyModel = str | os.PathLike[str] | bytes | ModelProto | Exported | InMemory
"""A model as the Python functions take it: its path, its bytes, the message, or what an exporter of torch returned.

`InMemory` is for the passes in `dilrewrite.integrations`.
"""


def source(model: AnyModel, name: str = "the model in memory") -> Path | InMemory:
    """Return where a model is: its path, or the content of one in memory, which no later change reaches.

    `name`: what messages call one in memory. Raises TypeError for what is no model, `UsageError` for one in memory
    that has 2 GB or more.
    """
    if isinstance(model, InMemory):
        return model
    if isinstance(model, str | os.PathLike):
        return Path(model)
    content = model if isinstance(model, bytes) else _content(getattr(model, "model_proto", model))
    if content is None or len(content) > LIMIT_BYTES:
        hint = "save it with external data (onnx.save_model, ONNXProgram.save) and give the path of its file"
        raise UsageError(f"{name} has 2 GB or more, which cannot be held in one piece", hint=hint)
    return InMemory(content, name)


def _content(proto: object) -> bytes | None:
    """Return the bytes of a message; `None` when they are too many."""
    if not isinstance(proto, ModelProto):
        kinds = "a path, bytes, an onnx.ModelProto or a torch ONNXProgram"
        raise TypeError(f"a model is {kinds}, not {type(proto).__name__}")
    inline = sum(byte_count(tensor) or 0 for tensor in tensors(proto) if not is_external(tensor))
    if inline <= LIMIT_BYTES:  # else there is no need to try
        with suppress(EncodeError, ValueError):
            return bytes(proto.SerializeToString())
    return None


def load(path: str | os.PathLike[str] | InMemory, *, weights: bool = True) -> Model:
    """Read a model file, leaving external weights where they are but checking that they are there; or one in memory.

    Without `weights`, large values of a large file stay in it and are read like external ones, when asked for.

    Everything that makes a model unusable (not there, not ONNX, cut off, too old, external data missing, too short
    or outside of the model's folder) is a UsageError. So is external data of a model in memory that has no folder.
    """
    place, held = (Path(), path) if isinstance(path, InMemory) else (Path(path), None)
    where = held or place
    parts = _read_in_parts(place, weights=weights) if held is None else None
    if parts is None:
        data = _read_model_file(place) if held is None else held.data
        parts = _parse(where, data), hashlib.sha256(data).hexdigest(), len(data)
        del data
    proto, file_digest, model_bytes = parts
    check(proto, str(where))
    outside = next(filter(is_external, tensors(proto)), None) if held is not None and held.folder is None else None
    if outside is not None:
        problem = f'{where}: the values of tensor "{outside.name}" are in another file'
        raise UsageError(problem, hint="load the model with its external data, or give the path of its file")
    model = Model(
        path=place if held is None else None,
        memory=held,
        proto=proto,
        folder=place.absolute().parent if held is None else held.folder or Path.cwd(),
        external_files=(),
        file_bytes=model_bytes,
        file_digest=file_digest,
        proto_digest=parts_digest(proto),
    )
    if model.ir_version < MIN_IR_VERSION:
        problem = f"{where}: IR version {model.ir_version} is not supported, the oldest is {MIN_IR_VERSION}"
        raise UsageError(problem, hint="export the model again with a current exporter")
    if model.opset == 0:
        problem = f"{where}: the model imports no ai.onnx opset, so its operators have no meaning"
        raise UsageError(problem, hint="the file is damaged or not a whole model: fetch or export it again")
    if model.opset < MIN_OPSET:
        hint = "convert the model with onnx.version_converter, or export it again with a newer opset"
        raise UsageError(f"{where}: opset {model.opset} is not supported, the oldest is {MIN_OPSET}", hint=hint)
    locations, data_bytes = check_external_data(model)
    if place.name in locations:  # its own large values, left in it
        locations, data_bytes = tuple(name for name in locations if name != place.name), data_bytes - model_bytes
    return replace(model, external_files=locations, file_bytes=model_bytes + data_bytes)


def _read_model_file(path: Path) -> bytes:
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise UsageError(f"{path} is a folder, not a model", hint="name the .onnx file in it")
        if not stat.S_ISREG(info.st_mode):
            raise UsageError(f"{path} is not a regular file", hint="save the model to a file and name that")
        if info.st_size == 0:
            raise UsageError(f"{path} is empty", hint="fetch or export the model again")
        if info.st_size > LIMIT_BYTES:
            problem = f"{path} has {info.st_size} bytes: an ONNX file cannot be larger than 2 GB"
            raise UsageError(problem, hint="export the model with external data")
        return path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise UsageError(f"{path} does not exist", hint="check the path") from error
        raise UsageError(f"{path} cannot be read: {reason(error)}", hint="check its permissions") from error


def _parse(path: Path | InMemory, data: bytes) -> ModelProto:
    again = "fetch or export the model again"
    try:
        proto: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        problem, hint = "is not an ONNX model", "name a binary .onnx file, or export one"
        if data.startswith(b"version https://git-lfs"):
            problem, hint = "is a git-lfs pointer, not the model", "run `git lfs pull`"
        elif data[4:8] == b"ORTM":
            problem, hint = "is in ORT format, not ONNX", "name the .onnx file it was made from"
        elif data[:1] == b"\x08":  # the tag of ir_version, with which every writer begins
            problem, hint = "is damaged or cut off: it begins like ONNX, then fails", again
        raise UsageError(f"{path} {problem}", hint=hint) from error
    if not proto.HasField("graph"):
        raise UsageError(f"{path} is not a whole ONNX model: it has no graph", hint=again)
    return proto


# ---- large files --------------------------------------------------------------------------------------------------


class _OddError(Exception):
    """A file is not made as a model is. It is then read as a whole, which tells what it is."""


def _read_in_parts(path: Path, *, weights: bool) -> tuple[ModelProto, str, int] | None:
    """Return the model of a large file, the file's SHA-256 and size; `None` where it has to be read as a whole.

    No more than one tensor is in memory twice; without `weights`, large ones refer to their place in the file.
    """
    proto = ModelProto()
    with suppress(OSError, UnicodeError, DecodeError, _OddError):
        count = path.stat().st_size
        if _LARGE_BYTES < count <= LIMIT_BYTES:
            with path.open("rb") as file:
                reader = _Reader(file, None if weights else path.name)
                _merge(reader, proto, count)
            return (proto, reader.digest.hexdigest(), count) if proto.HasField("graph") else None
    return None


class _Reader:
    """Reads a file from front to back and takes its digest. `location`: what large tensors refer to, if they shall."""

    def __init__(self, file: BinaryIO, location: str | None) -> None:
        self.file = file
        self.location = location
        self.place = 0
        self.digest = hashlib.sha256()

    def read(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        data = self.file.read(count)
        if len(data) != count:
            raise _OddError
        self.place += count
        self.digest.update(data)
        return data

    def varint(self) -> tuple[bytes, int]:
        """Return the next number, its bytes first."""
        data, value = b"", 0
        while not data or data[-1] & 0x80:
            if len(data) == 10:
                raise _OddError
            data += self.read(1)
            value |= (data[-1] & 0x7F) << 7 * (len(data) - 1)
        return data, value


_WIRE_VARINT, _WIRE_LENGTH = 0, 2
_WIRE_FIXED = {1: 8, 5: 4}


def _merge(reader: _Reader, message: Message, count: int) -> None:
    """Parse the next `count` bytes into `message`, its large fields one after the other.

    Protocol Buffers guarantee that parts merged in order are the same message as the whole.
    """
    end = reader.place + count
    small = bytearray()

    def flush() -> None:
        message.MergeFromString(bytes(small))
        small.clear()

    while reader.place < end:
        tag, value = reader.varint()
        number, wire = value >> 3, value & 7
        small += tag
        if wire == _WIRE_VARINT:
            small += reader.varint()[0]
        elif wire in _WIRE_FIXED:
            small += reader.read(_WIRE_FIXED[wire])
        elif wire == _WIRE_LENGTH:
            length, size = reader.varint()
            if size > end - reader.place:
                raise _OddError
            field = message.DESCRIPTOR.fields_by_number.get(number)
            if size <= _PART_BYTES or field is None or not (field.message_type or field.name == "raw_data"):
                small += length + reader.read(size)
            else:
                del small[-len(tag) :]
                flush()
                _merge_large(reader, message, field, size)
        else:
            raise _OddError
        if len(small) > _PART_BYTES:
            flush()
    if reader.place != end:
        raise _OddError
    flush()


def _merge_large(reader: _Reader, message: Message, field: FieldDescriptor, size: int) -> None:
    here = getattr(message, field.name)
    if field.message_type is None:
        assert isinstance(message, TensorProto), "its raw_data"
        if reader.location is None:
            message.raw_data = reader.read(size)
            return
        refer(message, reader.location, reader.place, size)
        for start in range(0, size, _PART_BYTES):
            reader.read(min(_PART_BYTES, size - start))
    elif isinstance(here, Message):
        _merge(reader, here, size)
    else:
        _merge(reader, here.add(), size)
