"""What Python 3.11 brought, for Python 3.10 too."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if sys.version_info >= (3, 11):
    from enum import StrEnum as StrEnum
    from typing import Self as Self
else:
    from enum import Enum

    from typing_extensions import Self as Self

    class StrEnum(str, Enum):
        """An enumeration whose members are texts."""

        __str__ = str.__str__


if TYPE_CHECKING:
    import hashlib


def sha256_of(file: BinaryIO) -> hashlib._Hash:
    """Return the SHA-256 of an open file, which is read from where it stands, in chunks."""
    import hashlib

    digest = hashlib.sha256()
    while chunk := file.read(2**20):
        digest.update(chunk)
    return digest


def running(module: str) -> list[str]:
    """Return the command that runs a module in a Python of its own, which imports nothing from the current folder."""
    if sys.version_info >= (3, 11):
        return [sys.executable, "-P", "-m", module]
    run = f"import sys; del sys.path[0]; import runpy; runpy.run_module({module!r}, None, '__main__', True)"
    return [sys.executable, "-c", run]


@contextmanager
def warnings_ignored() -> Iterator[None]:
    """Show no warnings, and raise none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


_SQLITE_CODES = {
    "database is locked": 5,
    "attempt to write a readonly database": 8,
    "disk I/O error": 10,
    "database or disk is full": 13,
    "unable to open database file": 14,
}


def sqlite_code(error: Exception) -> int:
    """Return SQLite's result code of an error, without what extends it; 0 when it has none."""
    if sys.version_info >= (3, 11):
        return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF
    return sqlite_code_by_words(error)


def sqlite_code_by_words(error: Exception) -> int:
    """Return the code for Python 3.10, whose errors have none: it follows from the class and the first words."""
    kind, text = type(error).__name__, str(error)
    if kind == "DatabaseError":
        return 11  # or 24, or 26: the file is damaged, or no database
    if kind != "OperationalError":
        return 0
    return next((code for words, code in _SQLITE_CODES.items() if text.startswith(words)), 1)
