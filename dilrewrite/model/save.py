"""Writes models: the edited copy, its data files, and what becomes of the data files of a replaced one.

External weights are never loaded: data files are copied as streams.
"""

from __future__ import annotations

import copy
import filecmp
import hashlib
import itertools
import mmap
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped, unused-ignore]
from onnx import GraphProto, ModelProto, TensorProto

from dilrewrite._compat import sha256_of
from dilrewrite.errors import FailedError, UsageError, shown
from dilrewrite.model.elements import ELEMENTS
from dilrewrite.model.tensors import (
    LIMIT_BYTES,
    Model,
    byte_count,
    data_file,
    inline_bytes,
    is_external,
    label,
    location_of,
    parts_digest,
    refer,
)
from dilrewrite.model.walk import containers, tensors
from dilrewrite.options import EXTERNAL_DATA_MODES
from dilrewrite.staging import ELSEWHERE, Staging, same_place

_SPILL_BYTES = 1024  # smaller initializers stay inline when a model grows beyond the limit
_ALIGNMENT_BYTES = 4096  # one page: runtimes map the spilled tensors
_STEM_BYTES = 200  # of 255 that a file name can have
_OLD_BYTES = 2**28  # a larger model file holds its weights itself
_DATA_FIELDS = ("raw_data", *sorted({element.field for element in ELEMENTS}))


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
        problem = f'external data mode "{external_data}" is unknown'
        raise UsageError(problem, hint=f"one of {', '.join(EXTERNAL_DATA_MODES)}")
    if any(same_place(path, model.folder / location) for location in model.external_files):
        raise UsageError(f"{path} is a data file of the input", hint=ELSEWHERE)
    here = path.absolute().parent
    own, others = _old_data(model, path)
    places = _places(model, _referenced_files(model, proto), path, external_data, own)
    locations = {location: new for location, (new, _) in places.items() if location != new}
    copies = {new: source for new, source in places.values() if source is not None}
    work, data = proto, None if spill or locations else _serialized(proto)
    if data is None:
        work, data, spilled = _relocated(proto, path, locations, spill, staging)
        copies.pop(spilled, None)  # of the same content
    for new, source in copies.items():
        _make_parents(here, new, staging)
        staging.add_copy(here / new, source)
    staging.add_bytes(path, _original_bytes(model, work) or data, last=True)
    staging.remove_afterwards(lambda: [file for file in own if not _mentioned(file, here)])
    kept = {here / os.path.normpath(new) for new, _ in places.values()}
    remark = "is left: the replaced model referred to it, and something else may too"
    return tuple(f"{shown(file)} {remark}" for file in others if file not in kept)


def _relocated(
    proto: ModelProto, path: Path, locations: Mapping[str, str], spill: Collection[str], staging: Staging
) -> tuple[ModelProto, bytes, str]:
    """Return a copy with new locations, and with a data file where it needs one, its bytes, and the file's name."""
    work, spilled = copy.deepcopy(proto), ""
    for tensor in filter(is_external, tensors(work)):
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = locations.get(entry.value, entry.value)
    data = _serialized(work) if not spill else None
    if data is None:
        chosen = _to_spill(work, spill)
        if chosen:
            digest = hashlib.sha256()
            for _, _, padding, values in _laid_out(chosen):
                digest.update(padding)
                digest.update(values)
            spilled = _data_name(path, digest.hexdigest())
            staging.add_chunks(path.absolute().parent / spilled, _spilled(chosen, spilled), data=True)
        data = _serialized(work)
    if data is None:
        stored = f"even with all initializers of {_SPILL_BYTES} bytes and more in a data file"
        hint = "store the large constants of the model as initializers"
        raise FailedError(f"{path} would exceed 2 GB, which no ONNX file can, {stored}", hint=hint)
    return work, data, spilled


def _serialized(proto: ModelProto) -> bytes | None:
    """Return the bytes of a model, or None when it is beyond the limit of protobuf."""
    try:
        data = proto.SerializeToString()
    except (EncodeError, ValueError):
        return None
    return data if len(data) <= LIMIT_BYTES else None


def _referenced_files(model: Model, proto: ModelProto) -> dict[str, Path]:
    """Return the locations that a model still refers to, in order of first use, and their files."""
    files: dict[str, Path] = {}
    for tensor in filter(is_external, tensors(proto)):
        where = label(model, tensor)
        location = location_of(tensor, where)
        if location not in files:
            files[location] = data_file(model, location, where)
    return files


def _places(
    model: Model, files: dict[str, Path], path: Path, mode: str, own: Collection[Path]
) -> dict[str, tuple[str, Path | None]]:
    """Return for every location the one that the output shall use, and the file to copy there (None: none)."""
    here = path.absolute().parent
    same = same_place(here, model.folder)
    root = here.resolve()
    outside = next((location for location, file in files.items() if not file.resolve().is_relative_to(root)), None)
    if mode == "reference" or (mode == "auto" and same and outside is None):
        if outside is not None:
            problem = f'{path} cannot refer to "{outside}": {files[outside].resolve()} lies outside of its folder'
            raise UsageError(problem, hint="give --external-data copy")
        return {
            location: (location if same else _as_location(file.resolve().relative_to(root), path), None)
            for location, file in files.items()
        }
    used = {path.name}  # names that no data file may get, even by force
    if same:
        used |= {os.path.normpath(location) for location in (*model.external_files, *files)}
        used |= {model.path.name} if model.path is not None else set()
    names: dict[Path, str] = {}  # one copy per file, whatever its spellings
    places: dict[str, tuple[str, Path | None]] = {}
    for location, file in files.items():
        real, source = file.resolve(), None
        if real not in names:
            wanted = f"{_stem(path)}.{Path(location).name}" if same else os.path.normpath(location)
            names[real], source = _copy_name(path, _free_name(wanted, used), real, own), file
            used.add(names[real])
        keeps_spelling = ".." not in Path(location).parts and os.path.normpath(location) == names[real]
        places[location] = (location if keeps_spelling else names[real], source)
    return places


def _free_name(wanted: str, taken: Collection[str]) -> str:
    stem, dot, suffix = wanted.rpartition(".")
    numbered = (f"{stem}.{number}.{suffix}" if dot else f"{wanted}.{number}" for number in itertools.count(1))
    return next(name for name in itertools.chain([wanted], numbered) if name not in taken)


def _copy_name(path: Path, wanted: str, source: Path, own: Collection[Path]) -> str:
    """Return the name of a copy: what a replaced output called it (`own`), the wanted one if free, or a new one."""
    place = path.absolute().parent / wanted
    if place in own and not place.is_symlink() and filecmp.cmp(place, source, shallow=False):
        return wanted
    if own or os.path.lexists(place):
        with source.open("rb") as file:
            by_content = _data_name(path, sha256_of(file).hexdigest())
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


def _data_name(path: Path, digest: str) -> str:
    """Return the name of a data file of `path`, from the SHA-256 of what it holds: no other content ever gets it."""
    return f"{_stem(path)}-{digest[:16]}.data"


# ---- data of a replaced output ------------------------------------------------------------------------------------


def _old_data(model: Model, path: Path) -> tuple[list[Path], list[Path]]:
    """Return the data files of what is at `path`, but for the input's: its own, which can go, and others.

    Its own have a name as this tool gives, and no other model's.
    """
    here = path.absolute().parent
    copies = {os.path.normpath(location) for location in model.external_files}
    own: list[Path] = []
    others: list[Path] = []
    for location in _old_locations(path):
        file = here / location
        if not any(same_place(file, model.folder / data) for data in model.external_files):
            ours = location in copies or file.name.startswith((f"{_stem(path)}-", f"{_stem(path)}."))
            (own if ours and not _mentioned(file, here, path.absolute()) else others).append(file)
    return own, others


def _old_locations(path: Path) -> list[str]:
    """Return where the model at `path` has data files: none of a link, of what is no model, and of links."""
    try:
        if path.is_symlink() or path.stat().st_size > _OLD_BYTES:
            return []
        proto = ModelProto.FromString(path.read_bytes())
    except (OSError, DecodeError):
        return []
    entries = [entry for tensor in filter(is_external, tensors(proto)) for entry in tensor.external_data]
    values = [entry.value for entry in entries if entry.key == "location" and isinstance(entry.value, str)]
    root = path.absolute().parent.resolve()
    names = sorted({os.path.normpath(value) for value in values if "\0" not in value and not value.startswith("/")})
    # A link is another's file, and so is what lies behind one or outside of the folder.
    return [name for name in names if (root / name).is_file() and (root / name).resolve() == root / name]


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
    graph, bodies = work.graph, [body for body in containers(work, training=True) if isinstance(body, GraphProto)]
    held = [tensor for body in bodies for tensor in body.initializer if not is_external(tensor)]
    inline = [(tensor, size) for tensor in held if (size := byte_count(tensor)) is not None]
    missing = set(spill) - {tensor.name for tensor, _ in inline}
    assert not missing, f"not inline initializers: {sorted(missing)}"
    chosen = [tensor for tensor, _ in inline if tensor.name in spill]
    others = [(tensor, size) for tensor, size in inline if tensor.name not in spill and size >= _SPILL_BYTES]
    parts = (graph.initializer, graph.sparse_initializer, graph.node, graph.input, graph.output, graph.value_info)
    try:
        rest = sum(message.ByteSize() + 16 for part in (*parts, work.functions, work.training_info) for message in part)
    except EncodeError:  # one node with more than 2 GB in its bodies
        return chosen + [tensor for tensor, _ in others]
    rest -= sum(size for tensor, size in inline if tensor.name in spill)
    for tensor, size in sorted(others, key=lambda other: -other[1]):
        if rest <= LIMIT_BYTES - LIMIT_BYTES // 64:  # some room for what was not counted
            break
        chosen.append(tensor)
        rest -= size
    return chosen


def _laid_out(chosen: Iterable[TensorProto]) -> Iterator[tuple[TensorProto, int, bytes, bytes]]:
    """Yield, for each tensor of a data file, its place there, the padding before it, and its bytes."""
    end = 0
    for tensor in chosen:
        values, offset = inline_bytes(tensor), end + -end % _ALIGNMENT_BYTES
        yield tensor, offset, bytes(offset - end), values
        end = offset + len(values)


def _spilled(chosen: Sequence[TensorProto], location: str) -> Iterator[bytes]:
    """Yield the content of a data file, turning each tensor into a reference to its part."""
    for tensor, offset, padding, values in _laid_out(chosen):
        yield padding
        yield values
        for field_name in _DATA_FIELDS:
            tensor.ClearField(field_name)  # type: ignore[arg-type, unused-ignore]
        refer(tensor, location, offset, len(values))


def _original_bytes(model: Model, proto: ModelProto) -> bytes | None:
    """Return the model file's bytes when `proto` is what it holds and the file is still the one loaded."""
    if parts_digest(proto) != model.proto_digest:
        return None
    if model.file is None:
        return model.memory.data if model.memory is not None else None
    with suppress(OSError):
        original = model.file.read_bytes()
        if hashlib.sha256(original).hexdigest() == model.file_digest:
            return original
    return None
