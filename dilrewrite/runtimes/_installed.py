"""What is installed of a runtime's package: of which distributions, in which versions, and what to do about it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """A package by the name that it is imported by, and the distributions that have it, the usual one first.

    `install`: the command that installs it. `least`, `below`: the versions that are taken (`below`: none is too new).
    """

    module: str
    distributions: tuple[str, ...]
    install: str
    least: Version = ()
    below: Version = ()

    def installed(self) -> dict[str, str]:
        """Return the distributions that are installed, with their versions."""
        found = {}
        for name in self.distributions:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        return found

    def conflict(self) -> str | None:
        """Return None, or which distributions overwrite each other, and how to keep one."""
        return overwritten(list(self.installed()), self.install)

    def missing(self) -> str | None:
        """Return None when it is there once, in a version that is taken; else what is wrong. Loads nothing."""
        if (twice := self.conflict()) is not None:
            return twice
        if importlib.util.find_spec(self.module) is None:
            return f"{self.distributions[0]} is not installed: {self.install}"
        told = (self.refused(name, version) for name, version in self.installed().items())
        return next(filter(None, told), None)

    def refused(self, name: str, version: str) -> str | None:
        """Return None, or why a version is not taken."""
        if self.least <= numbers(version) and (not self.below or numbers(version) < self.below):
            return None
        wanted = f"{spelled(self.least)} or later" + (f", below {spelled(self.below)}," if self.below else "")
        return f"{name} is {version}, and {wanted} is needed: {self.install}"


def overwritten(installed: Sequence[str], install: str) -> str | None:
    """Return None, or that these distributions of one package overwrite each other, and how to `install` one."""
    if len(installed) < 2:
        return None
    return (
        f"{' and '.join(installed)} are installed and overwrite each other: "
        f"pip uninstall -y {' '.join(installed)}, then only one of them: {install}"
    )


def numbers(version: str) -> Version:
    """Return the numbers that a version begins with: (5, 0, 0) of 5.0.0rc1."""
    begins = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, begins.group().split("."))) if begins else ()


def spelled(version: Version) -> str:
    """Return a version as it is written."""
    return ".".join(map(str, version))
