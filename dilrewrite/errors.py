"""The errors a user can cause: a message, what to do about it, and the exit code.

Every other exception is a bug and shows its traceback, with a last line that names the page to go on from.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import ClassVar


def shown(path: Path) -> str:
    """Return a path as text that every UTF-8 file and terminal takes; bytes that are no UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def one_line(said: object) -> str:
    """Return an error, or what a library says, in one line."""
    return " ".join(str(said).split())


def clean(text: str) -> str:
    """Return the text with what does not print (line ends, control characters, direction marks) as escapes.

    A name in a file must not steer a terminal.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def printable(text: str) -> str:
    """Return the text in one line, with what does not print as escapes."""
    return clean(one_line(text))


def folded(name: str) -> str:
    """Return a name as names are compared: `Space-To-Batch` is `space_to_batch`."""
    return name.lower().replace("-", "_")


def meant(word: str, names: Iterable[str]) -> str | None:
    """Return the name that a word was probably meant to be, `None` where none is near it."""
    import difflib

    known = {folded(name): name for name in names}
    near = difflib.get_close_matches(folded(word), known, n=1)
    return known[near[0]] if near else None


def choices(word: str, names: Iterable[str], listed: str = "choose one of") -> str:
    """Return the hint for a name that is unknown: the one that was probably meant, and all that there are."""
    known = list(names)
    near, every = meant(word, known), f"{listed} {', '.join(known)}"
    return every if near is None else f"did you mean {near}? {every[:1].upper()}{every[1:]}"


FAULTS = "docs/faults.md"
"""The page that says how to report a fault of the tool, and what to do until it is mended."""

FAULT = f"This is a fault of dilrewrite. {FAULTS} says how to report it, and what to do until then."


def own_fault(error: BaseException) -> None:
    """Let the traceback of an exception that is a bug end with where to go from there; for Python 3.11 and later."""
    add = getattr(error, "add_note", None)
    if add is not None and FAULT not in getattr(error, "__notes__", ()):
        add(FAULT)


class DilrewriteError(Exception):
    """What went wrong and where (`message`), and what to do about it (`hint`), in one line.

    `exit_code` is what the command line ends with: 1 failed, 2 wrong usage or unusable model,
    3 results differ or the result is not valid ONNX, 4 something is missing.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = printable(message)
        self.hint = printable(hint)
        self.typed = str(self)
        """What the command line says: it names options, where `message` and `hint` may name keywords of Python."""

    def reword(self, words: Callable[[str], str]) -> None:
        """Say it to callers from Python: in `words`, which turns options into keywords."""
        self.message, self.hint = words(self.message), words(self.hint)
        self.args = (self.message,)

    def __str__(self) -> str:
        """Return message and hint in one line."""
        return f"{self.message}; {self.hint}" if self.hint else self.message


class FailedError(DilrewriteError):
    """The work was possible to start and could not be done (exit code 1)."""


class UsageError(DilrewriteError):
    """A wrong option, an unusable model or an unusable place for the output (exit code 2)."""

    exit_code: ClassVar[int] = 2


class DiffersError(DilrewriteError):
    """Two models that should compute the same function do not (exit code 3)."""

    exit_code: ClassVar[int] = 3


class MissingError(DilrewriteError):
    """A package that the work needs is not installed (exit code 4)."""

    exit_code: ClassVar[int] = 4
