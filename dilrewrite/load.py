"""From a path to a Model and back: the only file that reads models and knows external data.

External weights are never loaded: a tensor is read when it is asked for, and data files are copied as streams.
"""

from __future__ import annotations

import copy
import errno
import hashlib
import math
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx.numpy_helper
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from dilrewrite.errors import FailedError, UsageError
from dilrewrite.staging import ELSEWHERE, Staging, may, reason, same_file
from dilrewrite.valid import check

MIN_OPSET = 7
MIN_IR_VERSION = 3
EXTERNAL_DATA_MODES = ("auto", "reference", "copy")

_LIMIT_BYTES = 2**31 - 1  # what protobuf can parse and serialize
_SPILL_BYTES = 1024  # smaller initializers stay inline when a model grows beyond the limit
_COUNTED_BYTES = 2**26  # larger inline values are not counted: that would copy them
_MOST_DIGITS = 19  # of a place in a file
_DAMAGED = "the model is damaged: export it again"
_ALIGNMENT_BYTES = 4096  # one page: runtimes map the spilled tensors

# Element type -> NumPy type, and the field that holds the values when raw_data does not. Written out because
# onnx.numpy_helper gives other types for the small floats from version to version.
_TYPES: dict[str, tuple[Any, str]] = {
    "FLOAT": (np.float32, "float_data"),
    "COMPLEX64": (np.complex64, "float_data"),
    "DOUBLE": (np.float64, "double_data"),
    "COMPLEX128": (np.complex128, "double_data"),
    "INT64": (np.int64, "int64_data"),
    "UINT32": (np.uint32, "uint64_data"),
    "UINT64": (np.uint64, "uint64_data"),
    "INT32": (np.int32, "int32_data"),
    "INT16": (np.int16, "int32_data"),
    "INT8": (np.int8, "int32_data"),
    "UINT16": (np.uint16, "int32_data"),
    "UINT8": (np.uint8, "int32_data"),
    "BOOL": (np.bool_, "int32_data"),
    "FLOAT16": (np.float16, "int32_data"),
    "BFLOAT16": (ml_dtypes.bfloat16, "int32_data"),
    "FLOAT8E4M3FN": (ml_dtypes.float8_e4m3fn, "int32_data"),
    "FLOAT8E4M3FNUZ": (ml_dtypes.float8_e4m3fnuz, "int32_data"),
    "FLOAT8E5M2": (ml_dtypes.float8_e5m2, "int32_data"),
    "FLOAT8E5M2FNUZ": (ml_dtypes.float8_e5m2fnuz, "int32_data"),
    "FLOAT8E8M0": (ml_dtypes.float8_e8m0fnu, "int32_data"),
    "FLOAT4E2M1": (ml_dtypes.float4_e2m1fn, "int32_data"),
    "INT4": (ml_dtypes.int4, "int32_data"),
    "UINT4": (ml_dtypes.uint4, "int32_data"),
    "INT2": (ml_dtypes.int2, "int32_data"),
    "UINT2": (ml_dtypes.uint2, "int32_data"),
}
_PACKED_BITS = {"FLOAT4E2M1": 4, "INT4": 4, "UINT4": 4, "INT2": 2, "UINT2": 2}  # several values per byte, lowest first
_DATA_FIELDS = ("raw_data", *sorted({field_name for _, field_name in _TYPES.values()}))


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
    """SHA-256 of the file. Files of other writers may differ from their own re-serialization (`proto_digest`)."""
    proto_digest: str = field(default="", repr=False)
    """SHA-256 of `proto` as loaded and serialized again."""

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


def load(path: str | os.PathLike[str]) -> Model:
    """Read a model file, leaving external weights where they are but checking that they are there.

    Everything that makes a model unusable (not there, not ONNX, cut off, too old, external data missing, too short
    or outside of the model's folder) is a UsageError.
    """
    path = Path(path)
    data = _read_model_file(path)
    proto = _parse(path, data)
    check(proto, str(path))
    file_digest, model_bytes = hashlib.sha256(data).hexdigest(), len(data)
    del data  # before serializing: a model of 2 GB is in memory twice, not three times
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
    serialized = _serialized(proto)
    folder = path.absolute().parent
    model = Model(
        path=path,
        proto=proto,
        folder=folder,
        external_files=(),
        file_bytes=model_bytes,
        file_digest=file_digest,
        proto_digest=hashlib.sha256(serialized).hexdigest() if serialized is not None else "",
    )
    locations, data_bytes = _check_external_data(model)
    object.__setattr__(model, "external_files", locations)
    object.__setattr__(model, "file_bytes", model_bytes + data_bytes)
    return model


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model: (sparse) initializers of all graphs at any depth, attributes, functions, training."""
    return (tensor for tensor, _ in _scan(proto))


def read_tensor(model: Model, tensor: TensorProto) -> npt.NDArray[Any]:
    """Read the values of one tensor of `model`, inline or external, and nothing else; the array is read-only.

    The small types are ml_dtypes arrays, one element per value. A tensor whose data do not fit its dims, or whose
    external data have gone, is a UsageError.
    """
    where = _where(model, tensor)
    type_name = _type_name(tensor)
    if type_name not in _TYPES:
        if _is_external(tensor):
            inline = TensorProto(data_type=tensor.data_type, dims=tensor.dims, name=tensor.name)
            inline.raw_data = _read_external(model, tensor, where).tobytes()
            tensor = inline
        try:
            return np.asarray(onnx.numpy_helper.to_array(tensor))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"{where}: element type {type_name} cannot be read", hint="a newer onnx may know it: upgrade onnx"
            ) from error
    if _is_external(tensor):
        raw = _read_external(model, tensor, where)
    else:
        raw = np.frombuffer(_inline_bytes(tensor), np.uint8)
        if raw.size != _byte_count(tensor):
            raise UsageError(
                f"{where}: dims {list(tensor.dims)} of {type_name} need {_byte_count(tensor)} bytes, it has {raw.size}",
                hint=_DAMAGED,
            )
    array = _decode(raw, type_name, tuple(tensor.dims))
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


# ---- tensors ------------------------------------------------------------------------------------------------------


def _scan(proto: ModelProto) -> Iterator[tuple[TensorProto, bool]]:
    """Yield every tensor, and whether it is a dense initializer of a graph."""
    yield from _scan_graph(proto.graph)
    for function in proto.functions:
        yield from _scan_function(function)
    for training in proto.training_info:
        yield from _scan_graph(training.initialization)
        yield from _scan_graph(training.algorithm)


def _scan_graph(graph: GraphProto) -> Iterator[tuple[TensorProto, bool]]:
    for tensor in graph.initializer:
        yield tensor, True
    for sparse in graph.sparse_initializer:
        yield from _scan_sparse(sparse)
    yield from _scan_nodes(graph.node)


def _scan_function(function: FunctionProto) -> Iterator[tuple[TensorProto, bool]]:
    yield from _scan_attributes(function.attribute_proto)
    yield from _scan_nodes(function.node)


def _scan_nodes(nodes: Iterable[NodeProto]) -> Iterator[tuple[TensorProto, bool]]:
    for node in nodes:
        yield from _scan_attributes(node.attribute)


def _scan_attributes(attributes: Iterable[AttributeProto]) -> Iterator[tuple[TensorProto, bool]]:
    for attribute in attributes:
        if attribute.HasField("t"):
            yield attribute.t, False
        for tensor in attribute.tensors:
            yield tensor, False
        if attribute.HasField("sparse_tensor"):
            yield from _scan_sparse(attribute.sparse_tensor)
        for sparse in attribute.sparse_tensors:
            yield from _scan_sparse(sparse)
        if attribute.HasField("g"):
            yield from _scan_graph(attribute.g)
        for graph in attribute.graphs:
            yield from _scan_graph(graph)


def _scan_sparse(sparse: SparseTensorProto) -> Iterator[tuple[TensorProto, bool]]:
    if sparse.HasField("values"):
        yield sparse.values, False
    if sparse.HasField("indices"):
        yield sparse.indices, False


def _is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def _where(model: Model, tensor: TensorProto) -> str:
    return f"{model.path or 'model'}: " + (f'tensor "{tensor.name}"' if tensor.name else "an unnamed tensor")


def _type_name(tensor: TensorProto) -> str:
    try:
        return str(TensorProto.DataType.Name(tensor.data_type))
    except ValueError:
        return f"{tensor.data_type} (unknown)"


def _byte_count(tensor: TensorProto) -> int | None:
    """Bytes that dims and element type need, packed; None for strings and types this file does not know."""
    name = _type_name(tensor)
    if name not in _TYPES:
        return None
    bits = _PACKED_BITS.get(name, 8 * np.dtype(_TYPES[name][0]).itemsize)
    return int(math.prod(tensor.dims) * bits + 7) // 8


def _inline_bytes(tensor: TensorProto) -> bytes:
    """Return the values as raw_data would hold them, from whichever field holds them."""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    dtype, field_name = _TYPES[_type_name(tensor)]
    itemsize = np.dtype(dtype).itemsize
    values = getattr(tensor, field_name)
    if field_name == "float_data":
        return np.array(values, np.float32).tobytes()
    if field_name == "double_data":
        return np.array(values, np.float64).tobytes()
    if field_name == "int64_data":
        return np.array(values, np.int64).tobytes()
    if field_name == "uint64_data":
        return np.array(values, np.uint64).astype(f"u{itemsize}").tobytes()
    return np.array(values, np.int32).astype(f"u{itemsize}").tobytes()  # the bits, not the value, of small floats


def _inline_count(tensor: TensorProto) -> int:
    """Return the number of bytes that `_inline_bytes` would return."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    dtype, field_name = _TYPES[_type_name(tensor)]
    width = {"float_data": 4, "double_data": 8}.get(field_name, np.dtype(dtype).itemsize)
    return int(width * len(getattr(tensor, field_name)))


def _decode(raw: npt.NDArray[np.uint8], type_name: str, dims: tuple[int, ...]) -> npt.NDArray[Any]:
    dtype: np.dtype[Any] = np.dtype(_TYPES[type_name][0])
    bits = _PACKED_BITS.get(type_name)
    if bits is None:
        return raw.view(dtype).reshape(dims)
    codes = (raw[:, None] >> np.arange(0, 8, bits, dtype=np.uint8)) & np.uint8(2**bits - 1)
    codes = codes.reshape(-1)[: math.prod(dims)]
    if type_name.startswith("FLOAT"):
        return codes.view(dtype).reshape(dims)
    if type_name.startswith("INT"):
        sign = np.uint8(2 ** (bits - 1))
        return ((codes ^ sign).astype(np.int8) - sign.astype(np.int8)).astype(dtype).reshape(dims)
    return codes.astype(dtype).reshape(dims)


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
) -> None:
    """Stage `proto`, an edited version of `model.proto`, as `path`, so that it opens from its own folder.

    `external_data`: "reference" leaves data files where they are and refuses where the result could not reach them;
    "copy" gives the result its own copies; "auto" refers in the model's own folder and copies elsewhere. The inline
    initializers named by `spill` go to `<path>.data`, and so do large ones when the model would exceed 2 GB; beyond
    that it is a FailedError. `proto` is not changed; what equals the loaded model is written as the original's bytes.
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
    places = _places(model, files, path, external_data, taken)
    new_locations = {old: new for old, (new, _) in places.items() if old != new}
    copies = {new: source for new, source in places.values() if source is not None}

    work = proto
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
            name = _free_name(f"{path.name}.data", taken | set(copies))
            staging.add_chunks(here / name, _spilled(chosen, name))
        data = _serialized(work)
    if data is None:
        raise FailedError(
            f"{path} would exceed 2 GB, which no ONNX file can, even with all initializers of {_SPILL_BYTES} bytes "
            "and more in a data file",
            hint="store the large constants of the model as initializers",
        )
    for new, source in copies.items():
        _make_parents(here, new, staging)
        staging.add_copy(here / new, source)
    staging.add_bytes(path, _original_bytes(model, data) or data)


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
    model: Model, files: dict[str, Path], path: Path, mode: str, taken: set[str]
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
            location: (location if same else file.resolve().relative_to(root).as_posix(), None)
            for location, file in files.items()
        }
    used = set(taken)
    names: dict[Path, str] = {}  # one copy per file, whatever its spellings
    places: dict[str, tuple[str, Path | None]] = {}
    for location, file in files.items():
        real = file.resolve()
        if real not in names:
            wanted = f"{path.stem}.{Path(location).name}" if same else os.path.normpath(location)
            names[real] = _free_name(wanted, used)
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


def _make_parents(here: Path, location: str, staging: Staging) -> None:
    for parent in reversed(Path(location).parents[:-1]):
        staging.make_folder(here / parent)
        if not (here / parent).resolve().is_relative_to(here.resolve()):
            raise UsageError(f"{here / parent} is a link that leaves {here}", hint=ELSEWHERE)


def _to_spill(work: ModelProto, spill: Collection[str]) -> list[TensorProto]:
    """Return the initializers named by `spill`, and the largest others until what stays can be serialized."""
    inline = [
        tensor
        for tensor, is_initializer in _scan(work)
        if is_initializer and not _is_external(tensor) and _byte_count(tensor) is not None
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


def _spilled(chosen: Iterable[TensorProto], location: str) -> Iterator[bytes]:
    """Yield the content of a data file, turning each tensor into a reference to its part."""
    offset = 0
    for tensor in chosen:
        data = _inline_bytes(tensor)
        padding = -offset % _ALIGNMENT_BYTES
        yield bytes(padding)
        yield data
        for field_name in _DATA_FIELDS:
            tensor.ClearField(field_name)  # type: ignore[arg-type, unused-ignore]
        tensor.data_location = TensorProto.EXTERNAL
        del tensor.external_data[:]
        for key, value in (("location", location), ("offset", offset + padding), ("length", len(data))):
            tensor.external_data.add(key=key, value=str(value))
        offset += padding + len(data)


def _original_bytes(model: Model, data: bytes) -> bytes | None:
    """Return the model file's bytes when `data` says the same in other bytes and the file is still the one loaded."""
    if model.file is None or not model.proto_digest or model.file_digest == model.proto_digest:
        return None
    if hashlib.sha256(data).hexdigest() != model.proto_digest:
        return None
    with suppress(OSError):
        original = model.file.read_bytes()
        if hashlib.sha256(original).hexdigest() == model.file_digest:
            return original
    return None
