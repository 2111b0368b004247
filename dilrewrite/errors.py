"""The errors a user can cause: a message, what to do about it, and the exit code.

Every other exception is a bug and shows its traceback.
"""

from __future__ import annotations

import os
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
