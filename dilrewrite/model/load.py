"""From a path to a Model and back: the only file that reads models and knows external data.

External weights are never loaded: a tensor is read when it is asked for, and data files are copied as streams.
"""

from __future__ import annotations

import copy
import errno
import filecmp
import hashlib
import math
import mmap
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped, unused-ignore]
from google.protobuf.message import DecodeError, EncodeError, Message  # type: ignore[import-untyped, unused-ignore]
from onnx import GraphProto, ModelProto, TensorProto

from dilrewrite.errors import FailedError, UsageError, shown
from dilrewrite.model.elements import ELEMENTS, NUMBERED, Element, unpack
from dilrewrite.model.valid import check
from dilrewrite.model.walk import containers, tensors
from dilrewrite.options import EXTERNAL_DATA_MODES
from dilrewrite.staging import ELSEWHERE, Staging, may, reason, same_file

MIN_OPSET = 7
MIN_IR_VERSION = 3

_LIMIT_BYTES = 2**31 - 1  # what protobuf can parse and serialize
_LARGE_BYTES = 2**24  # larger files are read in parts
_PART_BYTES = 2**20  # larger fields are parsed by themselves then
_SPILL_BYTES = 1024  # smaller initializers stay inline when a model grows beyond the limit
_COUNTED_BYTES = 2**26  # larger inline values are not counted: that would copy them
_MOST_DIGITS = 19  # of a place in a file
_DAMAGED = "the model is damaged: export it again"
_ALIGNMENT_BYTES = 4096  # one page: runtimes map the spilled tensors
_STEM_BYTES = 200  # of 255 that a file name can have
_OLD_BYTES = 2**28  # a larger model file holds its weights itself

_DATA_FIELDS = ("raw_data", *sorted({element.field for element in ELEMENTS}))


# ---- the model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An ONNX model without its external weights in memory, and where those lie."""

    path: Path | None
    """The file as the user named it; None for a model that was made in memory."""
    proto: ModelProto
    folder: Path
    """The folder that external-data locations are relative to; absolute, so no working directory matters."""
    external_files: tuple[str, ...]
    """The distinct external-data locations, in order of first use."""
    file_bytes: int
    """Size of the model file and its distinct external data files."""
    file_digest: str = field(default="", repr=False)
    """SHA-256 of the file. Files of other writers may differ from their own re-serialization."""
    proto_digest: str = field(default="", repr=False)
    """SHA-256 of the parts of `proto` as loaded, which tells whether it was edited."""

    @property
    def opset(self) -> int:
        """Version of the standard operators; of several imports the last counts."""
        return _opset(self.proto)

    @property
    def ir_version(self) -> int:
        """Version of the file format."""
        return int(self.proto.ir_version)

    @property
    def file(self) -> Path | None:
        """The model file's absolute path, the same whatever the working directory is now."""
        return None if self.path is None else self.folder / self.path.name


def load(path: str | os.PathLike[str], *, weights: bool = True) -> Model:
    """Read a model file, leaving external weights where they are but checking that they are there.

    Without `weights`, large values of a large file stay in it and are read like external ones, when asked for.

    Everything that makes a model unusable (not there, not ONNX, cut off, too old, external data missing, too short
    or outside of the model's folder) is a UsageError.
    """
    path = Path(path)
    read = _read_in_parts(path, weights=weights)
    if read is None:
        data = _read_model_file(path)
        read = _parse(path, data), hashlib.sha256(data).hexdigest(), len(data)
        del data
    proto, file_digest, model_bytes = read
    check(proto, str(path))
    if proto.ir_version < MIN_IR_VERSION:
        raise UsageError(
            f"{path}: IR version {proto.ir_version} is not supported, the oldest is {MIN_IR_VERSION}",
            hint="export the model again with a current exporter",
        )
    opset = _opset(proto)
    if opset == 0:
        raise UsageError(
            f"{path}: the model imports no ai.onnx opset, so its operators have no meaning",
            hint="the file is damaged or not a whole model: fetch or export it again",
        )
    if opset < MIN_OPSET:
        raise UsageError(
            f"{path}: opset {opset} is not supported, the oldest is {MIN_OPSET}",
            hint="convert the model with onnx.version_converter, or export it again with a newer opset",
        )
    folder = path.absolute().parent
    model = Model(
        path=path,
        proto=proto,
        folder=folder,
        external_files=(),
        file_bytes=model_bytes,
        file_digest=file_digest,
        proto_digest=_parts_digest(proto),
    )
    locations, data_bytes = _check_external_data(model)
    if path.name in locations:  # its own large values, left in it
        locations, data_bytes = tuple(name for name in locations if name != path.name), data_bytes - model_bytes
    object.__setattr__(model, "external_files", locations)
    object.__setattr__(model, "file_bytes", model_bytes + data_bytes)
    return model


def read_tensor(model: Model, tensor: TensorProto) -> npt.NDArray[Any]:
    """Read the values of one tensor of `model`, inline or external, and nothing else; the array is read-only.

    The small types are ml_dtypes arrays, one element per value. A tensor whose data do not fit its dims, or whose
    external data have gone, is a UsageError.
    """
    where = _where(model, tensor)
    element = _element(tensor)
    if element is None:
        if _is_external(tensor):
            inline = TensorProto(data_type=tensor.data_type, dims=tensor.dims, name=tensor.name)
            inline.raw_data = _read_external(model, tensor, where).tobytes()
            tensor = inline
        try:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{where}: element type {_type_name(tensor)} cannot be read",
                hint="a newer onnx may know it: upgrade onnx",
            ) from error
    if _is_external(tensor):
        raw = _read_external(model, tensor, where)
    else:
        raw = np.frombuffer(_inline_bytes(tensor), np.uint8)
        if raw.size != _byte_count(tensor):
            raise UsageError(
                f"{where}: dims {list(tensor.dims)} of {_type_name(tensor)} need {_byte_count(tensor)} bytes, "
                f"it has {raw.size}",
                hint=_DAMAGED,
            )
    array = unpack(raw, element, tuple(tensor.dims))
    array.flags.writeable = False
    return array


def _read_model_file(path: Path) -> bytes:
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise UsageError(f"{path} is a folder, not a model", hint="name the .onnx file in it")
        if not stat.S_ISREG(info.st_mode):
            raise UsageError(f"{path} is not a regular file", hint="save the model to a file and name that")
        if info.st_size == 0:
            raise UsageError(f"{path} is empty", hint="fetch or export the model again")
        if info.st_size > _LIMIT_BYTES:
            raise UsageError(
                f"{path} has {info.st_size} bytes: an ONNX file cannot be larger than 2 GB",
                hint="export the model with external data",
            )
        return path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise UsageError(f"{path} does not exist", hint="check the path") from error
        raise UsageError(f"{path} cannot be read: {reason(error)}", hint="check its permissions") from error


def _parse(path: Path, data: bytes) -> ModelProto:
    again = "fetch or export the model again"
    try:
        proto: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        if data.startswith(b"version https://git-lfs"):
            raise UsageError(f"{path} is a git-lfs pointer, not the model", hint="run `git lfs pull`") from error
        if data[4:8] == b"ORTM":
            raise UsageError(
                f"{path} is in ORT format, not ONNX", hint="name the .onnx file it was made from"
            ) from error
        if data[:1] == b"\x08":  # the tag of ir_version, with which every writer begins
            raise UsageError(f"{path} is damaged or cut off: it begins like ONNX, then fails", hint=again) from error
        raise UsageError(f"{path} is not an ONNX model", hint="name a binary .onnx file, or export one") from error
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
    with suppress(OSError, UnicodeError, DecodeError, _OddError):
        count = path.stat().st_size
        if not _LARGE_BYTES < count <= _LIMIT_BYTES:
            return None
        proto = ModelProto()
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
        found, value = b"", 0
        while not found or found[-1] & 0x80:
            if len(found) == 10:
                raise _OddError
            found += self.read(1)
            value |= (found[-1] & 0x7F) << 7 * (len(found) - 1)
        return found, value


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
        _refer(message, reader.location, reader.place, size)
        for start in range(0, size, _PART_BYTES):
            reader.read(min(_PART_BYTES, size - start))
    elif isinstance(here, Message):
        _merge(reader, here, size)
    else:
        _merge(reader, here.add(), size)


def _opset(proto: ModelProto) -> int:
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    return int(versions[-1]) if versions else 0


def _serialized(proto: ModelProto) -> bytes | None:
    """Return the bytes of a model, or None when it is beyond the limit of protobuf."""
    try:
        data = proto.SerializeToString()
    except (EncodeError, ValueError):
        return None
    return data if len(data) <= _LIMIT_BYTES else None


def _parts_digest(proto: ModelProto) -> str:
    """Return the SHA-256 of a model's fields, serialized one by one: the whole would be another copy of all weights."""
    digest = hashlib.sha256()

    def take(part: object) -> None:
        data = part.SerializeToString() if isinstance(part, Message) else repr(part).encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8))
        digest.update(data)

    for message in (proto, proto.graph):
        for descriptor, value in message.ListFields():
            if descriptor.name == "graph":
                continue
            take(descriptor.number)
            for part in value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else (value,):
                take(part)
    return digest.hexdigest()


# ---- tensors ------------------------------------------------------------------------------------------------------


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _where(model: Model, tensor: TensorProto) -> str:
    return f"{model.path or 'model'}: " + (f'tensor "{tensor.name}"' if tensor.name else "an unnamed tensor")


def _type_name(tensor: TensorProto) -> str:
    try:
        return str(TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return f"{tensor.data_type} (unknown)"


def _element(tensor: TensorProto) -> Element | None:
    """Return the element type; None for strings and types that the table lacks."""
    element = NUMBERED.get(tensor.data_type)
    return element if element is not None and element.bits else None


def _byte_count(tensor: TensorProto) -> int | None:
    """Bytes that dims and element type need, packed; None for strings and types that the table lacks."""
    element = _element(tensor)
    return None if element is None else int(math.prod(tensor.dims) * element.bits + 7) // 8


def _inline_bytes(tensor: TensorProto) -> bytes:
    """Return the values as raw_data would hold them, from whichever field holds them."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    element = NUMBERED[tensor.data_type]
    values = getattr(tensor, element.field)
    if element.field in ("float_data", "double_data", "int64_data"):
        return np.array(values, {"f": np.float32, "d": np.float64, "i": np.int64}[element.field[0]]).tobytes()
    # The bits of small floats stand there, not their values.
    held = np.array(values, np.uint64 if element.field == "uint64_data" else np.int32)
    return held.astype(f"u{element.dtype.itemsize}").tobytes()


def _inline_count(tensor: TensorProto) -> int:
    """Return the number of bytes that `_inline_bytes` would return."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    element = NUMBERED[tensor.data_type]
    width = {"float_data": 4, "double_data": 8}.get(element.field, element.dtype.itemsize)
    return int(width * len(getattr(tensor, element.field)))


# ---- external data ------------------------------------------------------------------------------------------------


def _check_external_data(model: Model) -> tuple[tuple[str, ...], int]:
    """Check every external tensor of a model; return the locations and the size of the distinct files."""
    files: dict[str, Path] = {}
    sizes: dict[str, int] = {}
    for tensor in tensors(model.proto):
        where = _where(model, tensor)
        _check_values(tensor, where)
        if not _is_external(tensor):
            continue
        location = _location(tensor, where)
        if location not in files:
            files[location] = _data_file(model, location, where)
            sizes[location] = files[location].stat().st_size
        _span(tensor, sizes[location], where)
    distinct = {file.resolve(): sizes[location] for location, file in files.items()}
    return tuple(files), sum(distinct.values())


def _refer(tensor: TensorProto, location: str, offset: int, length: int) -> None:
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
    needed = _byte_count(tensor)
    if needed is None or _is_external(tensor) or _COUNTED_BYTES < needed <= _LIMIT_BYTES:
        return
    found = _inline_count(tensor) if needed <= _LIMIT_BYTES else _LIMIT_BYTES
    if found != needed:
        raise UsageError(
            f"{where}: dims {list(tensor.dims)} of {_type_name(tensor)} need {needed} bytes, it has "
            f"{'fewer' if needed > _LIMIT_BYTES else found}",
            hint=_DAMAGED,
        )


def _location(tensor: TensorProto, where: str) -> str:
    """Return the location entry of an external tensor; refuse what could lead out of the folder by its spelling."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    hint = "save the model again with all external data beside it"
    if not location:
        raise UsageError(f"{where} is external and names no location", hint=hint)
    if not isinstance(location, str):  # protobuf gives bytes where a text is not UTF-8
        raise UsageError(f"{where}: external data location {location!r} is not UTF-8", hint=hint)
    if "\0" in location:
        raise UsageError(f"{where}: external data location {location!r} is not a file name", hint=hint)
    if location.startswith("/") or PureWindowsPath(location).drive:
        raise UsageError(f'{where}: external data location "{location}" is an absolute path', hint=hint)
    if Path(os.path.normpath(location)).parts[:1] == (os.pardir,):
        raise UsageError(f'{where}: external data location "{location}" leaves the model\'s folder', hint=hint)
    return location


def _data_file(model: Model, location: str, where: str) -> Path:
    """Return the file of a location, which must be readable and really lie in the model's folder.

    When the model itself is a link (the cache of Hugging Face), the folder of its target counts too, as in ONNX
    Runtime.
    """
    file = model.folder / location
    name = f'{where}: its external data file "{location}"'
    try:
        real = file.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise UsageError(
            f"{name} does not exist in {model.folder}", hint="put the file there, it belongs to the model"
        ) from error
    homes = [model.folder.resolve()] + ([model.file.resolve().parent] if model.file is not None else [])
    if not any(real.is_relative_to(home) for home in homes):
        raise UsageError(
            f"{name} is a link to {real}, outside of the model's folder", hint="put the file itself beside the model"
        )
    if not real.is_file():
        raise UsageError(f"{name} is not a regular file", hint="put the data file there, it belongs to the model")
    if not may(real, os.R_OK):
        raise UsageError(f"{name} cannot be read: permission denied", hint="check its permissions")
    return file


def _span(tensor: TensorProto, file_bytes: int, where: str) -> tuple[int, int]:
    """Return offset and length of an external tensor in its file of `file_bytes`, or refuse."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    numbers: dict[str, int | None] = {"offset": None, "length": None}
    for key in numbers:
        if key in entries:
            text = entries[key]
            if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > _MOST_DIGITS:
                raise UsageError(
                    f"{where}: external data {key} {text[:_MOST_DIGITS]!r} is not a byte count",
                    hint=_DAMAGED,
                )
            numbers[key] = int(text)
    offset, length, needed = numbers["offset"] or 0, numbers["length"], _byte_count(tensor)
    if length is None:
        length = needed if needed is not None else max(0, file_bytes - offset)
    if needed is not None and length != needed:
        raise UsageError(
            f"{where}: dims {list(tensor.dims)} of {_type_name(tensor)} need {needed} bytes, "
            f"its external data have {length}",
            hint=_DAMAGED,
        )
    if offset + length > file_bytes:
        raise UsageError(
            f'{where} is at bytes {offset} to {offset + length} of "{entries["location"]}", '
            f"which has only {file_bytes} bytes",
            hint="fetch the data file again: it is cut off, only a git-lfs pointer, or of another model",
        )
    return offset, length


def _read_external(model: Model, tensor: TensorProto, where: str) -> npt.NDArray[np.uint8]:
    location = _location(tensor, where)
    file = _data_file(model, location, where)
    try:
        offset, length = _span(tensor, file.stat().st_size, where)
        raw = np.fromfile(file, np.uint8, count=length, offset=offset)
    except OSError as error:
        raise UsageError(
            f'{where}: "{location}" cannot be read: {reason(error)}', hint="check the data file"
        ) from error
    if raw.size != length:
        raise UsageError(f'{where}: "{location}" was cut off while it was read', hint="leave it alone and try again")
    return raw


# ---- writing models -----------------------------------------------------------------------------------------------


def stage_model(
    model: Model,
    proto: ModelProto,
    path: Path,
    staging: Staging,
    *,
    external_data: str = "auto",
    spill: Collection[str] = (),
) -> tuple[str, ...]:
    """Stage `proto`, an edited version of `model.proto`, as `path`, so that it opens from its own folder.

    `external_data`: "reference" leaves data files where they are and refuses where the result could not reach them;
    "copy" gives the result its own copies; "auto" refers in the model's own folder and copies elsewhere. The inline
    initializers named by `spill` go to a data file, and so do large ones when the model would exceed 2 GB; beyond
    that it is a FailedError. `proto` is not changed; what equals the loaded model is written as the original's bytes.

    A data file replaces none: its name is free, or says what it holds. The model comes last, then the data files go
    that only the replaced `path` referred to. Returns a line for each that is left.
    """
    if external_data not in EXTERNAL_DATA_MODES:
        raise UsageError(
            f'external data mode "{external_data}" is unknown', hint=f"one of {', '.join(EXTERNAL_DATA_MODES)}"
        )
    for location in model.external_files:
        if same_file(path, model.folder / location):
            raise UsageError(f"{path} is a data file of the input", hint=ELSEWHERE)
    here = path.absolute().parent
    files = _referenced_files(model, proto)
    taken = {path.name}  # names in `here` that no data file may get, even by force
    if same_file(here, model.folder):
        taken |= {os.path.normpath(location) for location in (*model.external_files, *files)}
        taken |= {model.path.name} if model.path is not None else set()
    old = _old_data(model, path)
    places = _places(model, files, path, external_data, taken, old.own)
    new_locations = {old: new for old, (new, _) in places.items() if old != new}
    copies = {new: source for new, source in places.values() if source is not None}

    work, spilled = proto, ""
    data = _serialized(proto) if not spill and not new_locations else None
    if data is None:
        work = copy.deepcopy(proto)
        for tensor in filter(_is_external, tensors(work)):
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = new_locations.get(entry.value, entry.value)
        data = _serialized(work) if not spill else None
    if data is None:
        chosen = _to_spill(work, spill)
        if chosen:
            spilled = _data_name(path, _data_parts(chosen))
            staging.add_chunks(here / spilled, _spilled(chosen, spilled), data=True)
        data = _serialized(work)
    if data is None:
        raise FailedError(
            f"{path} would exceed 2 GB, which no ONNX file can, even with all initializers of {_SPILL_BYTES} bytes "
            "and more in a data file",
            hint="store the large constants of the model as initializers",
        )
    copies.pop(spilled, None)  # of the same content
    for new, source in copies.items():
        _make_parents(here, new, staging)
        staging.add_copy(here / new, source)
    staging.add_bytes(path, _original_bytes(model, work) or data, last=True)
    staging.remove_afterwards(lambda: [file for file in old.own if not _mentioned(file, here)])
    kept = {here / os.path.normpath(new) for new, _ in places.values()}
    return tuple(
        f"{shown(file)} is left: the replaced model referred to it, and something else may too"
        for file in old.left
        if file not in kept
    )


def _referenced_files(model: Model, proto: ModelProto) -> dict[str, Path]:
    """Return the locations that a model still refers to, in order of first use, and their files."""
    files: dict[str, Path] = {}
    for tensor in filter(_is_external, tensors(proto)):
        where = _where(model, tensor)
        location = _location(tensor, where)
        if location not in files:
            files[location] = _data_file(model, location, where)
    return files


def _places(
    model: Model, files: dict[str, Path], path: Path, mode: str, taken: set[str], own: tuple[Path, ...]
) -> dict[str, tuple[str, Path | None]]:
    """Return for every location the one that the output shall use, and the file to copy there (None: none)."""
    here = path.absolute().parent
    same = same_file(here, model.folder)
    root = here.resolve()
    outside = next((location for location, file in files.items() if not file.resolve().is_relative_to(root)), None)
    if mode == "reference" or (mode == "auto" and same and outside is None):
        if outside is not None:
            raise UsageError(
                f'{path} cannot refer to "{outside}": {files[outside].resolve()} lies outside of its folder',
                hint="give --external-data copy",
            )
        return {
            location: (location if same else _as_location(file.resolve().relative_to(root), path), None)
            for location, file in files.items()
        }
    used = set(taken)
    names: dict[Path, str] = {}  # one copy per file, whatever its spellings
    places: dict[str, tuple[str, Path | None]] = {}
    for location, file in files.items():
        real = file.resolve()
        if real not in names:
            wanted = f"{_stem(path)}.{Path(location).name}" if same else os.path.normpath(location)
            names[real] = _copy_name(path, _free_name(wanted, used), real, own)
            used.add(names[real])
        keeps_spelling = ".." not in Path(location).parts and os.path.normpath(location) == names[real]
        places[location] = (location if keeps_spelling else names[real], file)
    # Two spellings that both stay lead to one file: copy it once.
    first: dict[str, str] = {}
    for location, (new, _) in places.items():
        if first.setdefault(os.path.normpath(new), location) != location:
            places[location] = (new, None)
    return places


def _free_name(wanted: str, taken: Collection[str]) -> str:
    stem, dot, suffix = wanted.rpartition(".")
    candidate, number = wanted, 1
    while candidate in taken:
        candidate = f"{stem}.{number}.{suffix}" if dot else f"{wanted}.{number}"
        number += 1
    return candidate


def _copy_name(path: Path, wanted: str, source: Path, own: Collection[Path]) -> str:
    """Return the name of a copy: what a replaced output called it (`own`), the wanted one if free, or a new one."""
    place = path.absolute().parent / wanted
    if place in own and _equal(place, source):
        return wanted
    if own or os.path.lexists(place):
        by_content = _data_name(path, _chunks(source))
        if os.path.lexists(place) or path.absolute().with_name(by_content) in own:
            return by_content
    return wanted


def _as_location(relative: Path, path: Path) -> str:
    try:
        relative.as_posix().encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path} cannot refer to {relative}: the name is not UTF-8", hint=ELSEWHERE) from error
    return relative.as_posix()


def _stem(path: Path) -> str:
    """Return the stem of an output as its data files begin with it: UTF-8, and short enough for a digest behind it."""
    return os.fsencode(path.stem)[:_STEM_BYTES].decode("utf-8", "ignore")


def _data_name(path: Path, parts: Iterable[bytes]) -> str:
    """Return the name of a data file of the output `path`, from what it holds: no other content ever gets it."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return f"{_stem(path)}-{digest.hexdigest()[:16]}.data"


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as source:
        while chunk := source.read(2**20):
            yield chunk


def _equal(a: Path, b: Path) -> bool:
    return not a.is_symlink() and filecmp.cmp(a, b, shallow=False)


# ---- data of a replaced output ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _OldData:
    """The data files of a model that an output replaces, but for those of the input: `own` can go, `left` cannot."""

    own: tuple[Path, ...]
    left: tuple[Path, ...]


def _old_data(model: Model, path: Path) -> _OldData:
    """Return the data files of what is at `path`. Its own have a name as this tool gives, and no other model's."""
    here = path.absolute().parent
    copied = {os.path.normpath(location) for location in model.external_files}
    own: list[Path] = []
    left: list[Path] = []
    for location in _old_locations(path):
        file = here / location
        if any(same_file(file, model.folder / data) for data in model.external_files):
            continue
        ours = location in copied or file.name.startswith((f"{_stem(path)}-", f"{_stem(path)}."))
        (own if ours and not _mentioned(file, here, path.absolute()) else left).append(file)
    return _OldData(tuple(own), tuple(left))


def _old_locations(path: Path) -> list[str]:
    """Return where the model at `path` has data files: none of a link, of what is no model, and of links."""
    try:
        if path.is_symlink() or path.stat().st_size > _OLD_BYTES:
            return []
        proto = ModelProto.FromString(path.read_bytes())
    except (OSError, DecodeError):
        return []
    values = {
        entry.value
        for tensor in filter(_is_external, tensors(proto))
        for entry in tensor.external_data
        if entry.key == "location" and isinstance(entry.value, str) and "\0" not in entry.value
    }
    root = path.absolute().parent.resolve()
    found = sorted({os.path.normpath(value) for value in values if not value.startswith("/")})
    # A link is another's file, and so is what lies behind one or outside of the folder.
    return [name for name in found if (root / name).is_file() and (root / name).resolve() == root / name]


def _mentioned(file: Path, here: Path, replaced: Path | None = None) -> bool:
    """Say whether a model other than `replaced` that could refer to a data file holds its name, or cannot be read.

    Models beside the file count and those in the folders above, whatever they are called in the output's (`here`). So
    does a link to the file there: a model may name that.
    """
    name = os.fsencode(file.name)
    for folder in file.parents:
        near = folder.is_relative_to(here)
        with suppress(PermissionError, FileNotFoundError):
            for other in folder.iterdir():
                if other in (file, replaced) or not other.is_file():
                    continue
                if (other.is_symlink() and other.samefile(file)) or _holds(other, name, near=near):
                    return True
    return False


def _holds(other: Path, name: bytes, *, near: bool) -> bool:
    named = other.suffix.lower() == ".onnx"
    if not named and not near:
        return False
    try:
        with other.open("rb") as source:
            if not named and source.read(1) != b"\x08":  # as every writer of models begins
                return False
            if not os.fstat(source.fileno()).st_size:
                return False
            with mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return content.find(name) >= 0
    except OSError:
        return True


def _make_parents(here: Path, location: str, staging: Staging) -> None:
    for parent in reversed(Path(location).parents[:-1]):
        staging.make_folder(here / parent)
        if not (here / parent).resolve().is_relative_to(here.resolve()):
            raise UsageError(f"{here / parent} is a link that leaves {here}", hint=ELSEWHERE)


def _to_spill(work: ModelProto, spill: Collection[str]) -> list[TensorProto]:
    """Return the initializers named by `spill`, and the largest others until what stays can be serialized."""
    inline = [
        tensor
        for body in containers(work, training=True)
        for tensor in (body.initializer if isinstance(body, GraphProto) else ())
        if not _is_external(tensor) and _byte_count(tensor) is not None
    ]
    missing = set(spill) - {tensor.name for tensor in inline}
    assert not missing, f"not inline initializers: {sorted(missing)}"
    chosen = [tensor for tensor in inline if tensor.name in spill]
    others = [tensor for tensor in inline if tensor.name not in spill and (_byte_count(tensor) or 0) >= _SPILL_BYTES]
    graph = work.graph
    parts = (graph.initializer, graph.sparse_initializer, graph.node, graph.input, graph.output, graph.value_info)
    try:
        rest = sum(message.ByteSize() + 16 for part in (*parts, work.functions, work.training_info) for message in part)
    except EncodeError:  # one node with more than 2 GB in its bodies
        return chosen + others
    rest -= sum(_byte_count(tensor) or 0 for tensor in chosen)
    for tensor in sorted(others, key=lambda tensor: -(_byte_count(tensor) or 0)):
        if rest <= _LIMIT_BYTES - _LIMIT_BYTES // 64:  # some room for what was not counted
            break
        chosen.append(tensor)
        rest -= _byte_count(tensor) or 0
    return chosen


def _data_parts(chosen: Iterable[TensorProto]) -> Iterator[bytes]:
    """Yield the content of a data file: for each tensor the padding before it, and its bytes."""
    offset = 0
    for tensor in chosen:
        data = _inline_bytes(tensor)
        padding = bytes(-offset % _ALIGNMENT_BYTES)
        yield padding
        yield data
        offset += len(padding) + len(data)


def _spilled(chosen: Sequence[TensorProto], location: str) -> Iterator[bytes]:
    """Yield the content of a data file, turning each tensor into a reference to its part."""
    parts, offset = _data_parts(chosen), 0
    for tensor in chosen:
        padding, data = next(parts), next(parts)
        offset += len(padding)
        yield padding
        yield data
        for field_name in _DATA_FIELDS:
            tensor.ClearField(field_name)  # type: ignore[arg-type, unused-ignore]
        _refer(tensor, location, offset, len(data))
        offset += len(data)


def _original_bytes(model: Model, proto: ModelProto) -> bytes | None:
    """Return the model file's bytes when `proto` is what it holds and the file is still the one loaded."""
    if model.file is None or _parts_digest(proto) != model.proto_digest:
        return None
    with suppress(OSError):
        original = model.file.read_bytes()
        if hashlib.sha256(original).hexdigest() == model.file_digest:
            return original
    return None
