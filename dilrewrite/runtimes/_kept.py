"""Where runtimes keep what they built of models, within a command and between commands, by digest and up to a size."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import ModelProto

from dilrewrite.runtimes import Runnable, TimedBackend
from dilrewrite.runtimes._artifact import external_files

MOST_BYTES = 4 * 2**30
"""How much is kept of all that was built; what was used last stays."""


def folder(root: Path, backend: TimedBackend) -> Path:
    """Return the part of a folder that is of a runtime as it is installed and of the device that it runs on."""
    about = json.dumps([sorted(backend.versions().items()), backend.device()])
    return root / f"{backend.name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}"


def place(folder: Path, runnable: Runnable, about: object) -> Path:
    """Return where what is made of a model lies: `about` is all else that it depends on, as plain data.

    Files, the model's own and those of its weights, are known by place, size and time of change.
    """
    data, files = runnable.model, []
    if isinstance(data, Path):
        files.append(data)
        with contextlib.suppress(OSError):
            data = data.read_bytes()
    beside = files[0].parent if files else runnable.folder
    if isinstance(data, bytes) and beside is not None:
        proto = ModelProto()
        with contextlib.suppress(DecodeError):  # for the runtime to refuse
            proto.ParseFromString(data)
        files += [beside / location for location in external_files(proto)]
    text = hashlib.sha256(b"" if isinstance(data, Path) or isinstance(runnable.model, Path) else data)
    text.update(json.dumps([[_status(file) for file in files], about]).encode())
    return folder / text.hexdigest()[:32]


def _status(file: Path) -> tuple[Any, ...]:
    with contextlib.suppress(OSError):
        status = file.stat()
        return str(file.absolute()), status.st_size, status.st_mtime_ns
    return (str(file.absolute()),)


def store(path: Path, data: bytes) -> None:
    """Write a file that is kept; another process sees all of it or nothing. Without it, work is done twice."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)


def get(path: Path) -> bytes | None:
    """Return a file that is kept, which counts as used now; `None` when it is not there."""
    with contextlib.suppress(OSError):
        data = path.read_bytes()
        os.utime(path)
        return data
    return None


def trim(root: Path, most_bytes: int = MOST_BYTES) -> None:
    """Remove the files that were not used for longest, until the others take no more than `most_bytes`."""
    files = []
    for path in root.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file():
                files.append((path.stat().st_mtime, path.stat().st_size, path))
    held = 0
    for _, size, path in sorted(files, key=lambda entry: -entry[0]):
        held += size
        if held > most_bytes:
            with contextlib.suppress(OSError):
                path.unlink()
