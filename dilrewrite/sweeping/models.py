"""Which models are meant by files, folders and patterns, what their outputs are called, and what they are known by."""

from __future__ import annotations

import glob
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dilrewrite._version import __version__
from dilrewrite.errors import DilrewriteError, UsageError, shown
from dilrewrite.model.load import load
from dilrewrite.staging import is_file, reason

SUFFIX = ".onnx"
ENDING = ".dilrewrite.onnx"
"""How the outputs end; in folders such files are taken for outputs."""


def named(texts: Sequence[str | Path]) -> list[Path]:
    """Return the models that are meant, each once, in the order in which they are named.

    A folder means the files in it and below it that end in `.onnx`, without those that dilrewrite wrote; a pattern as
    `exports/**/*.onnx` means what it matches. Raises `UsageError` for what is not there, or holds no model.
    """
    models: dict[Path, Path] = {}
    for text in texts:
        place = Path(text)
        try:
            found = _meant(place)
        except OSError as error:
            raise UsageError(f"{shown(place)} cannot be read: {reason(error)}", hint="check the path") from error
        for model in found:
            models.setdefault(model.resolve(), model.absolute())
    return list(models.values())


def _meant(place: Path) -> list[Path]:
    if place.is_dir():
        inside = (path for path in place.rglob("*") if path.suffix.lower() == SUFFIX and is_file(path))
        found = sorted(path for path in inside if not path.name.endswith(ENDING))
        if not found:
            raise UsageError(f"{shown(place)}: no {SUFFIX} file is in this folder or below", hint="name another one")
        return found
    if is_file(place):
        return [place]
    if glob.has_magic(str(place)):
        matching = glob.glob(str(place), recursive=True)  # noqa: PTH207 - a pattern may be absolute
        found = [path for path in map(Path, sorted(matching)) if is_file(path)]
        if found:
            return found
        raise UsageError(f"{shown(place)}: matches no file", hint="check the pattern")
    raise UsageError(f"{shown(place)}: no such file or folder", hint="check the path")


def names(models: Sequence[Path]) -> list[str]:
    """Return a name for each model, and no two alike: its file's, with as many folders before it as that takes."""
    depths = [1] * len(models)

    def name(place: int) -> str:
        return "-".join(models[place].with_suffix("").parts[-depths[place] :])

    while True:
        counts = Counter(name(place).casefold() for place in range(len(models)))
        twice = [place for place in range(len(models)) if counts[name(place).casefold()] > 1]
        longer = [place for place in twice if depths[place] < len(models[place].parts) - 1]
        if not longer:
            break
        for place in longer:
            depths[place] += 1
    last = [name(place) for place in range(len(models))]
    return [f"{text}-{place}" if place in twice else text for place, text in enumerate(last)]


def files(model: Path) -> dict[str, bytes]:
    """Return a model and its data files by their places from its folder. Raises what `load` does, and OSError."""
    external = load(model).external_files
    return {model.name: model.read_bytes(), **{place: (model.parent / place).read_bytes() for place in external}}


def key(model: Path, options: Mapping[str, Any], on: Sequence[str]) -> str:
    """Return what an answer is known by: the content of the model's files, the options, the devices and the version."""
    digest = hashlib.sha256(json.dumps([__version__, dict(options), list(on)], sort_keys=True, default=str).encode())
    try:
        external = load(model).external_files
    except DilrewriteError:
        external = ()  # its answer says what is wrong
    for place in (model, *(model.parent / location for location in sorted(external))):
        try:
            digest.update(f"{place.name} {_sha256(place)} ".encode("utf-8", "surrogateescape"))
        except OSError as error:
            digest.update(reason(error).encode())
    return digest.hexdigest()


def _sha256(place: Path) -> str:
    with place.open("rb") as file:
        from dilrewrite._compat import sha256_of

        return sha256_of(file).hexdigest()


def content(place: Path | None) -> str:
    """Return the SHA-256 of a file; empty where there is none."""
    try:
        return "" if place is None else _sha256(place)
    except OSError:
        return ""
