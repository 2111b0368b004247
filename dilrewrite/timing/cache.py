"""Keeps timings on disk, so that a question is measured once. The only file that reads and writes them.

An SQLite file that several processes may use at once. A call opens it, does one short transaction and closes it:
nothing is held that another process could move or that a fork could copy. There is no write-ahead log, because home
folders may lie on network file systems. Whatever is wrong with the file is a warning and never the end of a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar, final

from dilrewrite import machine
from dilrewrite._compat import sqlite_code
from dilrewrite.errors import UsageError, shown
from dilrewrite.staging import is_file

try:
    import sqlite3
except ImportError:  # a Python that was built without it
    sqlite3 = None  # type: ignore[assignment]

VERSION = 1
"""Of the table below; kept as the file's user_version. A changed table needs a higher one."""

BUSY_S = 10.0
"""How long a call waits for another process before the run goes on without the file."""

ERROR, BUSY, IOERR, CORRUPT, FORMAT, NOTADB = 1, 5, 10, 11, 24, 26
"""SQLite's result codes: Python 3.10 has no names for them."""

_TABLE = "CREATE TABLE timings (digest TEXT PRIMARY KEY, key TEXT NOT NULL, value TEXT NOT NULL, date TEXT NOT NULL)"

_ATTEMPTS = 5

T = TypeVar("T")


def default_path() -> Path | None:
    """Return where timings are kept: $DILREWRITE_CACHE, or `dilrewrite/timings.sqlite` in the user's cache folder.

    None when there is no such folder.
    """
    if given := os.environ.get("DILREWRITE_CACHE"):
        return Path(given)
    folder = machine.cache_folder()
    return None if folder is None else folder / "timings.sqlite"


@final
class Cache:
    """What was measured, by what was asked, in the file `path` (None: in memory). For several threads and processes.

    A key is plain JSON data and found again by its canonical form: the order of a mapping does not matter, a tuple is
    a list, and 1, 1.0, "1" and true are four keys. Of two that put the same key, the last wins. The file and its
    folders are made by the first `put`.

    What is wrong with the file becomes one of the `warnings`. A damaged one, or one of an older version, is renamed
    to `<name>.damaged-<UTC time>` and a new one is begun; one of a newer version, a database of something else, and
    what is no file, are left alone. What cannot be written is kept in memory for this run.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = None if path is None else path.absolute()
        self._reads = self._writes = path is not None
        self._memory: dict[str, str] = {}
        self._warnings: dict[str, None] = {}
        if path is not None and sqlite3 is None:
            self._stop("this Python has no sqlite3", reading=True)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What went wrong with the file so far, each in one line."""
        return tuple(self._warnings)

    def get(self, key: Mapping[str, object]) -> dict[str, Any] | None:
        """Return what was put under the key; None when there is nothing that can be read."""
        digest = _digest(_text(key))
        if digest in self._memory:
            return _mapping(self._memory[digest])
        if not self._reads:
            return None
        return _mapping(self._on_file(lambda path, exists: _read(path, digest) if exists else None, reading=True))

    def put(self, key: Mapping[str, object], value: Mapping[str, object]) -> None:
        """Keep a value under the key, in place of what was there. A TypeError when either is not plain JSON data."""
        question, answer = _text(key), _text(value)
        digest = _digest(question)
        row = (digest, question, answer, datetime.now(timezone.utc).isoformat(timespec="seconds"))
        if self._writes and self._on_file(lambda path, _: _write(path, row), reading=False):
            self._memory.pop(digest, None)
        else:
            self._memory[digest] = answer

    def _on_file(self, work: Callable[[Path, bool], T], *, reading: bool) -> T | None:
        """Return what `work` makes of the file and of whether it exists; None, with a warning, when that cannot be."""
        path = self._path
        assert path is not None
        last: Exception | None = None
        for attempt in range(_ATTEMPTS):
            try:
                if attempt == 0:
                    return work(path, _exists(path))
                with _turn(path):  # another may have set it aside meanwhile, so the same is tried once more
                    try:
                        return work(path, _exists(path))
                    except (_DamagedError, sqlite3.Error) as error:
                        last = error
                        if _is_damage(error):
                            aside = _set_aside(path)
                            what = f"{shown(path)} is damaged ({_said(error)})"
                            self._warnings[f"{what}: set aside as {shown(aside)}, and a new one is begun"] = None
            except _AsideError as error:
                self._stop(f"it is damaged ({_said(last or error)}) and cannot be set aside ({error})", reading=True)
                return None
            except (_LeaveAloneError, OSError) as error:
                self._stop(_said(error), reading=True)  # not ours, no way to the file, or no folder for it
                return None
            except (_DamagedError, sqlite3.Error) as error:
                last = error
            assert last is not None
            if not _is_damage(last) and sqlite_code(last) != IOERR:
                self._stop(_said(last), reading=reading or sqlite_code(last) == BUSY)
                return None
        assert last is not None
        self._stop(f"{_said(last)}, {_ATTEMPTS} times in a row", reading=reading or _is_damage(last))
        return None

    def _stop(self, problem: str, *, reading: bool) -> None:
        """Write to the file no more, and when `reading` leave it alone altogether."""
        assert self._path is not None
        what = f"{shown(self._path)} cannot be {'used' if reading else 'written'}: {problem}"
        self._warnings[f"{what}; timings are kept for this run only"] = None
        self._writes = False
        self._reads = self._reads and not reading


def open_cache(path: Path | None, *, none: bool) -> Cache:
    """Return the cache of timings at `path`, or at the usual place; in memory when there shall be none.

    Raises `UsageError` for a file that was never one.
    """
    if none:
        return Cache(None)
    if path is not None and is_file(path) and path.suffix != ".sqlite":
        head = b""
        with contextlib.suppress(OSError), path.open("rb") as file:  # the cache itself says what it cannot read
            head = file.read(16)
        if head and head != b"SQLite format 3\0":
            raise UsageError(f"--cache {shown(path)}: is no cache of timings", hint="name another file")
    return Cache(path if path is not None else default_path())


# -- keys and values ---------------------------------------------------------------------------------------------------


def _text(data: Mapping[str, object]) -> str:
    """Return the canonical JSON of a mapping: one text for equal data, in ASCII."""
    return json.dumps(_plain(data), sort_keys=True, separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):  # JSON would make them strings
            raise TypeError("a mapping in a key or value of the cache has names that are no strings")
        return {name: _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _mapping(text: object) -> dict[str, Any] | None:
    """Return the object that a text holds; None for whatever is none."""
    try:
        found = json.loads(text) if isinstance(text, str | bytes) else None
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


# -- the file ----------------------------------------------------------------------------------------------------------


class _DamagedError(Exception):
    """The file is no database of timings; the reason is a few words."""


class _AsideError(Exception):
    """The damaged file cannot be set aside."""


class _LeaveAloneError(Exception):
    """The file is sound and not for this version, or not for dilrewrite."""


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Open a database; `mode` is `rw`, or `rwc` to create it. What cannot be written is opened to be read."""
    file = sqlite3.connect(f"{path.as_uri()}?mode={mode}", timeout=BUSY_S, isolation_level=None, uri=True)
    file.text_factory = bytes  # damaged text may be no UTF-8
    return file


def _read(path: Path, digest: str) -> object:
    """Return the value under a key, as it stands there; None when there is none."""
    with closing(_connect(path, "rw")) as file:
        file.execute("BEGIN")
        row = file.execute("SELECT value FROM timings WHERE digest = ?", (digest,)).fetchone() if _begun(file) else None
        return None if row is None else row[0]


def _write(path: Path, row: tuple[str, str, str, str]) -> bool:
    """Put a row, in place of one with the same digest; makes the file, and its folders, when there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(_connect(path, "rwc")) as file:
        file.execute("BEGIN IMMEDIATE")
        if not _begun(file):
            file.execute(_TABLE)
            file.execute(f"PRAGMA user_version = {VERSION}")
        file.execute("INSERT OR REPLACE INTO timings VALUES (?, ?, ?, ?)", row)
        file.execute("COMMIT")
    return True


def _begun(file: sqlite3.Connection) -> bool:
    """Say whether the file holds the table, or nothing yet. Raises what stands in the way of using it."""
    (version,) = file.execute("PRAGMA user_version").fetchone()
    tables = dict(file.execute("SELECT name, sql FROM sqlite_master"))
    if version > VERSION and b"timings" in tables:
        raise _LeaveAloneError(f"it is of version {version}, and this dilrewrite knows version {VERSION}")
    if tables and b"timings" not in tables:
        raise _LeaveAloneError("it is a database of something else")
    if not tables and version == 0:
        return False
    if version != VERSION:
        raise _DamagedError(f"it is of version {version}, not {VERSION}")
    if tables.get(b"timings") != _TABLE.encode():
        raise _DamagedError("its table is another one")
    return True


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Hold the lock under which a damaged file is set aside; it ends with its holder.

    The lock's file, which is empty, stays: SQLite does not bear that it vanishes while others wait for it.
    """
    try:
        with closing(_connect(path.with_name(f"{path.name}.lock"), "rwc")) as guard:
            guard.execute("BEGIN EXCLUSIVE")
            yield
    except sqlite3.Error as error:
        raise _AsideError(_said(error)) from error


def _set_aside(path: Path) -> Path:
    """Copy the damaged file to a name of its own, which is returned, and empty it: an empty one is a new database.

    It is not renamed: a journal belongs to a path, so who had the old file open would play the journal of the new one
    back into the old one, and write there.
    """
    name = f"{path.name}.damaged-{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}"
    places = (path.with_name(f"{name}{more}") for more in ("", *(f"-{n}" for n in range(2, 999))))
    aside = next(place for place in places if not os.path.lexists(place))
    try:
        with closing(_connect(path, "rw")) as last:
            try:
                last.execute("BEGIN EXCLUSIVE")  # who is writing gets done
            except sqlite3.Error as error:
                if not _is_damage(error):
                    raise
        shutil.copy2(path, aside)
        os.truncate(path, 0)
    except (OSError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise _AsideError(_said(error)) from error
    return aside


def _is_damage(error: Exception) -> bool:
    """Say whether an error means that the file is no good; a format that it does not know is a plain SQLITE_ERROR."""
    return isinstance(error, _DamagedError) or sqlite_code(error) in (ERROR, CORRUPT, FORMAT, NOTADB)


def _exists(path: Path) -> bool:
    """Say whether there is a file; raises `_LeaveAloneError` where it is something else."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(mode):
        raise _LeaveAloneError("it is no regular file")
    return True


def _said(error: Exception) -> str:
    """Return an error in a few words."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
