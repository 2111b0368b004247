"""Checks the places that a command writes to, before long work: each can be written, and is no other's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dilrewrite.errors import UsageError, shown
from dilrewrite.model.tensors import Model
from dilrewrite.reports import check_report_folder
from dilrewrite.staging import ELSEWHERE, check_destination, may, reason, same_place
from dilrewrite.tensorrt import sidecar


@dataclass
class Claims:
    """Places that are taken; `force`: files there may be replaced."""

    taken: list[Path]
    force: bool = False

    def claim(self, place: Path | None, option: str = "", *, kind: str = "something else") -> None:
        """Take a place for a new file, named by `option`; raises `UsageError` for one that is taken, or unusable."""
        if place is not None:
            self.keep(place, option, kind=kind)
            check_destination(place, force=self.force, source=None, option=option or "-o")

    def keep(self, place: Path, option: str = "", *, kind: str = "something else") -> None:
        """Take a place for a file that may be there already."""
        if any(same_place(place, other) for other in self.taken):
            raise UsageError(f"{option} {shown(place)}: is a place for {kind}".lstrip(), hint="name another file")
        self.taken.append(place)

    def model(self, target: Path, model: Model) -> None:
        """Take a place for what a model becomes."""
        if any(same_place(target, file) for file in data_files(model)):
            raise UsageError(f"{shown(target)} is a data file of the input", hint=ELSEWHERE)
        check_destination(target, force=self.force, source=model.path)
        self.taken.append(target)

    def engine(self, engine: Path, timing_cache: Path | None) -> None:
        """Take the places of an engine, its side-car, and TensorRT's cache of timings, which is written again."""
        self.claim(engine)
        self.claim(sidecar.place(engine))
        if timing_cache is not None:
            self.keep(timing_cache, "--timing-cache")
            check_destination(timing_cache, force=True, source=None, option="--timing-cache")

    def folder(self, folder: Path | None, option: str) -> None:
        """Take a folder that is made, or is there and empty; raises `UsageError` for any other."""
        if folder is None:
            return
        problem = f"{option} {shown(folder)}"
        try:
            if folder.exists() and not folder.is_dir():
                raise UsageError(f"{problem}: is not a folder", hint="name another place")
            if folder.is_dir() and any(folder.iterdir()):
                raise UsageError(f"{problem}: holds files already", hint="name a new folder, or empty this one")
            if not folder.parent.is_dir():
                raise UsageError(f"{problem}: {shown(folder.parent)} is not a folder", hint="make it first")
            if not may(folder if folder.is_dir() else folder.parent, os.W_OK | os.X_OK):
                raise UsageError(f"{problem}: is not writable", hint="name another place")
        except OSError as error:
            raise UsageError(f"{problem}: cannot be reached: {reason(error)}", hint="name another place") from error
        self.keep(folder, option)
        if any(same_place(folder, other.parent) for other in self.taken):
            raise UsageError(f"{problem}: another file goes into it", hint="name another folder")

    def reports(self, folder: Path | None, formats: Sequence[str]) -> None:
        """Check the folder for reports, where there is one, and their formats."""
        if folder is not None:
            check_report_folder(folder, others=self.taken, force=self.force, formats=formats)
        elif formats:
            raise UsageError("--report-format says what to write, and nothing says where", hint="name --report DIR")


def data_files(model: Model) -> list[Path]:
    """Return the files that hold a model's external data."""
    return [model.folder / location for location in model.external_files]
