"""Writes output files whole or not at all: the only file that writes outputs."""

from __future__ import annotations

import errno
import filecmp
import os
import re
import secrets
import shutil
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import BinaryIO, final

from dilrewrite._compat import Self
from dilrewrite._start import STOPPING
from dilrewrite.errors import DilrewriteError, FailedError, UsageError

if sys.platform != "win32":
    import fcntl

ELSEWHERE = "give another place with -o"
CHUNK_BYTES = 2**26

_TEMPORARY = re.compile(r"\.dilrewrite-[0-9a-f]{16}\.tmp")
_PATIENCE_S = 1.0  # another run sweeps a folder in much less; a program of another kind may hold it for long
_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_BAD_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP)


def check_destination(path: Path, *, force: bool, source: Path | None, option: str = "-o") -> None:
    """Refuse (UsageError) an output that could not be written at the end: call it before long work.

    The folder must exist and be writable. An existing file, and `source` under whatever spelling or link, need
    `force`; folders and devices are never replaced. `option`: the one that names another place.
    """
    parent, elsewhere = path.parent, f"give another place with {option}"
    try:
        at_parent, at_path = _status(parent), _status(path)
        exists = _status(path, follow_symlinks=False) is not None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {reason(error)}", hint=elsewhere) from error
    if at_parent is None or not stat.S_ISDIR(at_parent.st_mode):
        problem = "does not exist" if at_parent is None else "is not a folder"
        raise UsageError(f"{path} cannot be written: {parent} {problem}", hint=f"make the folder, or {elsewhere}")
    if at_path is not None and stat.S_ISDIR(at_path.st_mode):
        raise UsageError(f"{path} is a folder, not a place for a file", hint=f"name a file in it, or {elsewhere}")
    if at_path is not None and not stat.S_ISREG(at_path.st_mode):
        raise UsageError(f"{path} is not a regular file", hint=elsewhere)
    if parent.resolve() == Path("/dev"):  # /dev/stdout is a link, which a rename would replace for everyone
        raise UsageError(f"{path} cannot be written: {parent} is not a folder for files", hint=elsewhere)
    if exists and not force:
        if source is not None and same_place(path, source):
            raise _stands(f"{path} is the input itself", option)
        raise _stands(f"{path} exists", option)
    if not may(parent, os.W_OK | os.X_OK):
        raise UsageError(f"{path} cannot be written: the folder {parent} is not writable", hint=elsewhere)


@dataclass(frozen=True, slots=True)
class _Staged:
    temporary: Path
    destination: Path
    force: bool = False
    data: bool = False
    """Never replaces a file: one of equal content is as good, another one is a refusal, whatever is forced."""
    last: bool = False
    """Gets its place after all others: what it refers to is then there."""


WRITTEN: list[Path] = []
"""Files that got their place in this process, or in this run of the command line."""


@final
class Staging:
    """Writes several files so that all of them appear, complete, or none does.

    Use it as a context manager: add files, then `commit`. Until then they lie under hidden temporary names in their
    destination folders; leaving the context without a commit, for whatever reason, removes them and every folder
    that was made. A full disk is a FailedError, an unusable place a UsageError. Not for several threads.

    A process that is killed leaves temporary files: the next one that writes into the folder removes them. While a
    staging has files in a folder it holds a shared lock on it (`flock`); who gets it alone knows that all are dead.
    """

    def __init__(self, *, force: bool = False) -> None:
        self._force = force
        self._files: list[_Staged] = []
        self._folders: list[Path] = []
        self._locks: dict[Path, int] = {}
        self._obsolete: list[Callable[[], Iterable[Path]]] = []

    def __enter__(self) -> Self:
        """Return itself: nothing is written yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove all that was not committed."""
        with _signals_deferred():
            for file in self._files:
                with suppress(OSError):
                    file.temporary.unlink()
            for folder in reversed(self._folders):
                with suppress(OSError):
                    folder.rmdir()
            self._files.clear()
            self._folders.clear()
            for handle in self._locks.values():
                os.close(handle)
            self._locks.clear()

    def add_bytes(self, path: Path, data: bytes, *, last: bool = False) -> None:
        """Stage `data` as the file `path`; `last`: it refers to the other files, so they are in their places before."""
        self.add_chunks(path, [data], last=last)

    def add_text(self, path: Path, text: str, *, force: bool = False) -> None:
        """Stage `text` as the file `path`, in UTF-8; `force` replaces this file whatever the staging allows."""
        self.add_chunks(path, [text.encode()], force=force)

    def add_chunks(
        self, path: Path, chunks: Iterable[bytes], *, force: bool = False, data: bool = False, last: bool = False
    ) -> None:
        """Stage the chunks, one after the other, as the file `path`; only one need be in memory.

        `data`: the file replaces none, even by force; when one of equal content is there, that one stays.
        """
        self._write(path, lambda target: target.writelines(chunks), force=force or self._force, data=data, last=last)

    def add_copy(self, path: Path, source: Path) -> None:
        """Stage a copy of the content of `source` as the data file `path`, as a stream; it replaces none."""
        try:
            origin = source.open("rb")
        except OSError as error:
            raise UsageError(f"{source} cannot be read: {reason(error)}", hint="check the file") from error

        def fill(target: BinaryIO) -> None:
            if hasattr(os, "copy_file_range"):
                with suppress(OSError):  # not between these file systems; a full disk shows again below
                    while os.copy_file_range(origin.fileno(), target.fileno(), CHUNK_BYTES):
                        pass
                target.seek(0, os.SEEK_END)
            shutil.copyfileobj(origin, target, 2**20)  # the rest, or nothing

        with origin:
            self._write(path, fill, data=True)

    def remove_afterwards(self, obsolete: Callable[[], Iterable[Path]]) -> None:
        """Remove what `obsolete` names when all is in its place, unless another run is at work in these folders."""
        self._obsolete.append(obsolete)

    def make_folder(self, path: Path) -> None:
        """Make one folder unless it exists; its parent must exist."""
        with _signals_deferred():
            try:
                path.mkdir()
            except FileExistsError as error:
                if not path.is_dir():
                    raise UsageError(f"{path} exists and is not a folder", hint=ELSEWHERE) from error
            except OSError as error:
                raise _write_error(path, error) from error
            else:
                self._folders.append(path.absolute())

    def commit(self) -> None:
        """Rename everything to its place, replacing what `force` allows, or change nothing.

        In the order added, but for the files that come last. A process killed at any moment leaves each file as it
        was or as it shall be. Signals to end that arrive meanwhile take effect when it is done (main thread).
        """
        current = None
        replaced: list[Path] = []
        files = sorted(self._files, key=lambda file: file.last)
        with _signals_deferred():
            try:
                with ExitStack() as undo:
                    for number, file in enumerate(files):
                        current = file.destination
                        if file.last and number and not files[number - 1].last:
                            _sync_folders(files[:number])
                        _place(file, undo, replaced)
                    undo.pop_all()
            except OSError as error:
                assert current is not None
                raise _write_error(current, error) from error
            for old in replaced:
                with suppress(OSError):
                    old.unlink()
            _sync_folders(files)
            WRITTEN.extend(file.destination for file in files)
            self._files.clear()
            self._folders.clear()
            self._remove_obsolete({file.destination.parent for file in files})

    def _remove_obsolete(self, folders: set[Path]) -> None:
        """Remove old data files: alone in the folders, so that no other run counts on one of them."""
        alone = (folder in self._locks and _lock(self._locks[folder], alone=True) for folder in folders)
        if self._obsolete and all(alone):
            for path in (path for obsolete in self._obsolete for path in obsolete()):
                with suppress(OSError):
                    path.unlink()
        self._obsolete.clear()

    def _write(self, path: Path, fill: Callable[[BinaryIO], None], **how: bool) -> None:
        folder = path.absolute().parent
        file = _Staged(_hidden(folder), path.absolute(), **how)
        check_destination(path, force=file.force or file.data, source=None)
        for other in self._files:
            if other.destination.name == path.name and same_place(other.destination.parent, folder):
                raise UsageError(f"{path} would be written twice", hint="give every output a place of its own")
        self._share(folder)
        self._files.append(file)  # before it exists: an interrupt cannot come between
        try:
            with file.temporary.open("xb") as target:
                fill(target)
                target.flush()
                os.fsync(target.fileno())
        except OSError as error:
            with suppress(OSError):
                file.temporary.unlink()
            self._files.remove(file)
            raise _write_error(path, error) from error

    def _share(self, folder: Path) -> None:
        """Lock a folder together with other runs; without any, remove first what dead ones left there."""
        if folder in self._locks:
            return
        try:
            handle = os.open(folder, os.O_RDONLY)
        except OSError:  # a folder that may be written and not read: nothing is swept in it
            return
        self._locks[folder] = handle
        if _lock(handle, alone=True):
            for left in [path for path in folder.iterdir() if _TEMPORARY.fullmatch(path.name)]:
                with suppress(OSError):
                    left.unlink()
        end = time.monotonic() + _PATIENCE_S
        while not _lock(handle, alone=False) and time.monotonic() < end:
            time.sleep(0.01)


def _lock(handle: int, *, alone: bool) -> bool:
    """Say whether this process now holds the lock of an open folder, alone or with others."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(handle, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError:  # held by another, or this file system has no locks
        return False
    return True


def _place(file: _Staged, undo: ExitStack, replaced: list[Path]) -> None:
    """Rename one file to its place. `undo` takes that back; `replaced` gets the second name of an old file."""
    path, old = file.destination, None
    if os.path.lexists(path):
        if file.data and not path.is_symlink() and path.is_file() and filecmp.cmp(file.temporary, path, shallow=False):
            file.temporary.unlink()
            return
        if file.data or not file.force:
            raise _stands(f"{path} exists")
        old = _hidden(path.parent)
        undo.callback(_restore, old, path)
        _keep(path, old)
        replaced.append(old)
    file.temporary.replace(path)
    if old is None:
        undo.callback(path.unlink, missing_ok=True)


def _hidden(folder: Path) -> Path:
    return folder / f".dilrewrite-{secrets.token_hex(8)}.tmp"


def _keep(path: Path, old: Path) -> None:
    """Give `path` the second name `old`, so that it is never missing; where links cannot be, copy it."""
    try:
        os.link(path, old, follow_symlinks=False)
    except (OSError, NotImplementedError):
        try:
            shutil.copy2(path, old, follow_symlinks=False)
        except BaseException:
            old.unlink(missing_ok=True)  # half a copy is nothing to go back to
            raise


def _restore(old: Path, path: Path) -> None:
    if os.path.lexists(old):
        old.replace(path)
        old.unlink(missing_ok=True)  # a rename onto another name of the same file does nothing


def _sync_folders(files: Iterable[_Staged]) -> None:
    """Make the renames of files last through a power cut, where the system can."""
    for folder in dict.fromkeys(file.destination.parent for file in files):
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


@contextmanager
def _signals_deferred() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the block has ended; only the main thread gets them at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def defer(number: int, frame: FrameType | None) -> None:
        del frame
        caught.append(number)

    handlers = {number: signal.getsignal(number) for number in STOPPING}
    # what is None is not Python's, and could not be put back
    handlers = {number: handler for number, handler in handlers.items() if handler is not None}
    try:
        for number in handlers:
            signal.signal(number, defer)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received in dict.fromkeys(caught):
            signal.raise_signal(received)


def _status(path: Path, *, follow_symlinks: bool = True) -> os.stat_result | None:
    try:
        return path.stat(follow_symlinks=follow_symlinks)
    except (FileNotFoundError, NotADirectoryError):
        return None


def may(path: Path, mode: int) -> bool:
    """Say whether this process may access the path so."""
    return os.access(path, mode, effective_ids=os.access in os.supports_effective_ids)


def is_file(path: Path) -> bool:
    """Say whether there is a regular file, to which there is a way. To open something else might wait for ever."""
    try:
        return path.is_file()
    except OSError:
        return False


def same_place(a: Path, b: Path) -> bool:
    """Say whether two paths lead to one file or folder, which need not exist yet."""
    try:
        return a.samefile(b)
    except OSError:
        return a == b or (a.name == b.name and a != a.parent and same_place(a.parent, b.parent))


def reason(error: OSError) -> str:
    """Return why the system refused, in its words."""
    return (error.strerror or str(error)).lower()


def _stands(problem: str, option: str = "-o") -> UsageError:
    return UsageError(problem, hint=f"give --force to replace it or {option} for another place")


def _write_error(path: Path, error: OSError) -> DilrewriteError:
    if error.errno in _FULL:
        problem = f"{path} could not be written ({reason(error)}), and nothing was left of it"
        hint = f"free some space or {ELSEWHERE}"
        return FailedError(f"the disk is full (or a quota or size limit is reached): {problem}", hint=hint)
    kind = UsageError if error.errno in _BAD_PLACE else FailedError
    return kind(f"{path} could not be written: {reason(error)}", hint=ELSEWHERE)
