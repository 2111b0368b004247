"""Timings on disk are found again, by whoever asks, and nothing that happens to the file ends a run."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import random
import re
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from dilrewrite.timing import cache as module
from dilrewrite.timing.cache import VERSION, Cache, default_path
from tests.model.test_load import listing, unprivileged

KEY: dict[str, object] = {"form": "im2col", "shape": [1, 2, 16], "dilation": None}
VALUE: dict[str, object] = {"ratio": 0.5, "pairs": 40}


def rows(path: Path) -> list[tuple[Any, ...]]:
    """Everything in a file, by SQLite alone."""
    with closing(sqlite3.connect(path)) as file:
        return file.execute("SELECT digest, key, value, date FROM timings ORDER BY key").fetchall()


def change(path: Path, *statements: str) -> None:
    """Change a file by SQLite alone."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        for statement in statements:
            file.execute(statement)


@functools.cache
def content(count: int) -> bytes:
    """The bytes of a file with `count` timings."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder, "t.sqlite"))
        for number in range(count):
            cache.put({**KEY, "number": number} if number else KEY, VALUE)
        assert cache.warnings == ()
        return Path(folder, "t.sqlite").read_bytes()


def filled(path: Path, count: int = 1) -> Path:
    """A file with `count` timings."""
    path.write_bytes(content(count))
    return path


def aside(path: Path) -> list[Path]:
    """The files that were set aside."""
    return sorted(path.parent.glob(f"{path.name}.damaged-*"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "timings.sqlite"


# ---- what is kept -------------------------------------------------------------------------------------------------


def test_what_is_put_is_found_again(path: Path) -> None:
    cache = Cache(path)
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE
    assert cache.get({**KEY, "form": "tap_sum"}) is None
    assert cache.warnings == ()
    cache = Cache(path)
    assert cache.get(KEY) == VALUE
    cache.put(KEY, {"ratio": 2})
    assert cache.get(KEY) == {"ratio": 2}
    assert listing(path.parent).keys() == {path.name}


def test_a_row_is_readable_and_dated(path: Path) -> None:
    ((digest, key, value, date),) = rows(filled(path))
    assert key == '{"dilation":null,"form":"im2col","shape":[1,2,16]}'
    assert digest == hashlib.sha256(key.encode()).hexdigest()
    assert json.loads(value) == VALUE
    assert datetime.fromisoformat(date).utcoffset() == timedelta(0)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA user_version").fetchone() == (VERSION,)
        assert file.execute("PRAGMA journal_mode").fetchone() == ("delete",)


@pytest.mark.parametrize("kept_in", ["file", "memory"])
def test_keys_are_canonical(kept_in: str, path: Path) -> None:
    cache = Cache(path if kept_in == "file" else None)

    def put(key: Mapping[str, object], number: int) -> None:
        cache.put(key, {"number": number})

    def got(key: Mapping[str, object]) -> object:
        found = cache.get(key)
        return None if found is None else found["number"]

    put({"a": {"x": [1], "y": None}, "b": "é\udc80"}, 1)
    assert got({"b": "é\udc80", "a": {"y": None, "x": (1,)}}) == 1
    different: list[object] = [1, 1.0, "1", True, None, [], {}, [1], [1.0], [[1]], math.inf, "inf", 0.1 + 0.2]
    for number, value in enumerate(different):
        put({"v": value}, number)
    for number, value in enumerate(different):
        assert got({"v": value}) == number, value
    assert got({"v": 0.3}) is None
    assert got({"v": [1, 1]}) is None
    assert got({}) is None


@pytest.mark.parametrize("bad", [{1: 2}, {"a": {None: 1}}, {"a": {1}}, {"a": b"x"}, {"a": Path("x")}, {"a": 1j}])
def test_what_is_not_json_is_a_mistake(bad: Any, path: Path) -> None:
    for cache in (Cache(path), Cache(None)):
        with pytest.raises(TypeError):
            cache.get(bad)
        with pytest.raises(TypeError):
            cache.put(bad, VALUE)
        with pytest.raises(TypeError):
            cache.put(KEY, bad)
    assert not path.exists()


def test_values_come_back_as_they_were(path: Path) -> None:
    value: dict[str, Any] = {
        "a": 0.1,
        "b": [1, (2.5, None)],
        "c": {"d": True},
        "e": math.inf,
        "f": "größe\n\udcff",
        "g": 10**30,
    }
    wanted = {**value, "b": [1, [2.5, None]]}
    for cache in (Cache(path), Cache(None)):
        cache.put(KEY, value)
        found = cache.get(KEY)
        assert found == wanted
        found["b"].append("changed")
        assert cache.get(KEY) == wanted


@pytest.mark.parametrize(
    "value", ["'[1]'", "'1'", "'null'", "'{'", "''", "7", "x'ff'", "x'7b'", "cast(x'22ff22' as text)", "'[' || hex(0)"]
)
def test_a_value_that_is_no_object_is_absent(value: str, path: Path) -> None:
    change(filled(path, 2), f"UPDATE timings SET value = {value}")
    cache = Cache(path)
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE
    assert cache.get({**KEY, "number": 1}) is None
    assert cache.warnings == ()
    assert listing(path.parent).keys() == {path.name}


def test_a_deep_value_is_absent(path: Path) -> None:
    deep = '{"a":' * 100_000 + "1" + "}" * 100_000
    change(filled(path), f"UPDATE timings SET value = '{deep}'")
    cache = Cache(path)
    assert cache.get(KEY) is None
    assert cache.warnings == ()


def test_nothing_is_made_before_the_first_put(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "timings.sqlite"
    cache = Cache(path)
    assert cache.get(KEY) is None
    assert listing(tmp_path) == {}
    old = os.umask(0o027)
    try:
        cache.put(KEY, VALUE)
    finally:
        os.umask(old)
    assert cache.warnings == ()
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.parent.stat().st_mode & 0o777 == 0o750
    assert rows(path)[0][2] == json.dumps(VALUE, sort_keys=True, separators=(",", ":"))


def test_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cache = Cache(None)
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE
    assert cache.warnings == ()
    assert Cache(None).get(KEY) is None
    assert listing(tmp_path) == {}


def test_a_relative_path_does_not_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = Cache(Path("t.sqlite"))
    monkeypatch.chdir(tmp_path / "there")
    cache.put(KEY, VALUE)
    assert listing(tmp_path).keys() == {"there", "t.sqlite"}


@pytest.mark.parametrize(
    "name", ["a b", "a?mode=ro", "a#b", "50%41", "größe", "a'b\"c", os.fsdecode(b"a\xff"), ":memory:"]
)
def test_any_name_will_do(name: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path / name / name)
    cache.put(KEY, VALUE)
    assert cache.warnings == ()
    assert Cache(tmp_path / name / name).get(KEY) == VALUE
    assert [found.name for found in (tmp_path / name).iterdir()] == [name]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("timings.sqlite")
    Cache(tmp_path / "link").put(KEY, VALUE)
    assert Cache(tmp_path / "timings.sqlite").get(KEY) == VALUE


# ---- where it is kept ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "environment", "wanted"),
    [
        ("linux", {}, "/home/me/.cache/dilrewrite/timings.sqlite"),
        ("linux", {"XDG_CACHE_HOME": "/caches"}, "/caches/dilrewrite/timings.sqlite"),
        ("linux", {"XDG_CACHE_HOME": "not/absolute"}, "/home/me/.cache/dilrewrite/timings.sqlite"),
        ("linux", {"XDG_CACHE_HOME": ""}, "/home/me/.cache/dilrewrite/timings.sqlite"),
        ("linux", {"LOCALAPPDATA": "/local"}, "/home/me/.cache/dilrewrite/timings.sqlite"),
        ("darwin", {}, "/home/me/Library/Caches/dilrewrite/timings.sqlite"),
        ("darwin", {"XDG_CACHE_HOME": "/caches"}, "/caches/dilrewrite/timings.sqlite"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/dilrewrite/timings.sqlite"),
        ("win32", {}, "/home/me/AppData/Local/dilrewrite/timings.sqlite"),
        ("linux", {"DILREWRITE_CACHE": "/there/t.db", "XDG_CACHE_HOME": "/caches"}, "/there/t.db"),
        ("win32", {"DILREWRITE_CACHE": "t.db", "LOCALAPPDATA": "/local"}, "t.db"),
        ("linux", {"DILREWRITE_CACHE": ""}, "/home/me/.cache/dilrewrite/timings.sqlite"),
    ],
)
def test_the_usual_place(
    platform: str, environment: Mapping[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DILREWRITE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert default_path() == Path(wanted)


def test_without_a_home_there_is_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DILREWRITE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert default_path() is None


# ---- a file that cannot be used -----------------------------------------------------------------------------------


def goes_on(path: Path, *words: str, reads: bool = False) -> Cache:
    """A run with a file that cannot be written: one warning that names it, and what is put is there until the end."""
    cache = Cache(path)
    assert cache.get(KEY) == (VALUE if reads else None)
    for number in range(3):
        cache.put({"number": number}, VALUE)
        assert cache.get({"number": number}) == VALUE
    assert cache.get({"number": 7}) is None
    cache.put(KEY, {"new": 1})
    assert cache.get(KEY) == {"new": 1}
    (warning,) = cache.warnings
    for word in (str(path), *words, "kept for this run only"):
        assert word in warning
    assert "\n" not in warning
    return cache


def test_below_a_regular_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    goes_on(tmp_path / "file" / "timings.sqlite", "not a directory")
    goes_on(tmp_path / "file" / "deep" / "timings.sqlite", "not a directory")
    assert listing(tmp_path) == {"file": b"mine"}


def test_a_folder_in_its_place_is_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "mine").write_text("mine")
    goes_on(path, "no regular file")
    assert listing(path.parent) == {path.name: None, f"{path.name}/mine": b"mine"}


def test_devices_are_left_alone(tmp_path: Path) -> None:
    goes_on(Path("/dev/null"), "no regular file")
    os.mkfifo(tmp_path / "pipe")
    goes_on(tmp_path / "pipe", "no regular file")  # and does not wait for a writer
    (tmp_path / "loop").symlink_to("loop")
    goes_on(tmp_path / "loop", "too many levels")
    goes_on(tmp_path / ("n" * 300), "name too long")
    assert listing(tmp_path).keys() == {"pipe", "loop"}


def test_where_no_folder_can_be_made() -> None:
    goes_on(Path("/proc/none/timings.sqlite"), "no such file or directory")


@pytest.mark.parametrize("closed", ["file", "folder", "empty folder", "folder above", "unreadable file"])
def test_without_permission(closed: str) -> None:
    with unprivileged() as top:
        folder = top / "folder"
        folder.mkdir()
        path = folder / "timings.sqlite"
        if closed == "file":
            filled(path).chmod(0o444)
            goes_on(path, "readonly", reads=True)
        elif closed == "folder":
            filled(path)
            folder.chmod(0o555)
            goes_on(path, "readonly", reads=True)
        elif closed == "empty folder":
            folder.chmod(0o555)
            goes_on(path, "unable to open")
        elif closed == "folder above":
            filled(path)
            folder.chmod(0)
            goes_on(path, "permission denied")
        else:
            filled(path).chmod(0)
            goes_on(path, "unable to open")
        folder.chmod(0o755)
        assert not aside(path)


def test_a_read_only_damaged_file_stays() -> None:
    with unprivileged() as top:
        folder = top / "folder"
        folder.mkdir()
        (folder / "timings.sqlite").write_bytes(b"no database" * 100)
        folder.chmod(0o555)
        goes_on(folder / "timings.sqlite", "is damaged (file is not a database) and cannot be set aside")
        assert listing(folder).keys() == {"timings.sqlite"}


def test_a_damaged_file_that_cannot_be_emptied_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object) -> Path:
        raise PermissionError(13, "Permission denied")

    path.write_bytes(b"no database" * 100)
    monkeypatch.setattr(os, "truncate", refuses)
    goes_on(path, "is damaged (file is not a database) and cannot be set aside (permission denied)")
    assert path.read_bytes() == b"no database" * 100
    assert not aside(path)


def test_a_newer_version_is_left_alone(path: Path) -> None:
    change(filled(path), f"PRAGMA user_version = {VERSION + 1}", "ALTER TABLE timings ADD COLUMN more")
    before = path.read_bytes()
    goes_on(path, f"version {VERSION + 1}", f"knows version {VERSION}")
    assert listing(path.parent) == {path.name: before}


@pytest.mark.parametrize("version", [-1, 0, VERSION, VERSION + 1])
def test_a_database_of_something_else_is_left_alone(version: int, path: Path) -> None:
    change(path, "CREATE TABLE mine (a)", f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    goes_on(path, "database of something else")
    assert listing(path.parent) == {path.name: before}


@contextmanager
def locked(path: Path, how: str = "EXCLUSIVE") -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"BEGIN {how}")
        if how == "IMMEDIATE":
            other.execute("DELETE FROM timings")
        yield


def test_a_locked_file_is_not_waited_for_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits = []
    connect = module._connect

    def counted(*arguments: Any) -> sqlite3.Connection:
        waits.append(arguments)
        return connect(*arguments)

    monkeypatch.setattr(module, "BUSY_S", 0.05)
    monkeypatch.setattr(module, "_connect", counted)
    filled(path)
    waits.clear()
    with locked(path):
        goes_on(path, "database is locked")
    assert len(waits) == 1
    with locked(path, "IMMEDIATE"):
        goes_on(path, "database is locked", reads=True)
    assert Cache(path).get(KEY) == VALUE
    assert listing(path.parent).keys() == {path.name}


def test_a_locked_file_is_waited_for(path: Path) -> None:
    filled(path)
    cache = Cache(path)
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        free = threading.Timer(0.3, lambda: other.execute("ROLLBACK"))
        free.start()
        cache.put({"a": 1}, VALUE)
        free.join()
    assert cache.warnings == ()
    assert Cache(path).get({"a": 1}) == VALUE


def test_a_damaged_file_in_use_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_S", 0.05)
    change(filled(path), "PRAGMA user_version = 0")
    with locked(path, "IMMEDIATE"):
        goes_on(path, "is damaged (it is of version 0", "cannot be set aside (database is locked)")
    assert not aside(path)


@pytest.mark.parametrize("limit", [0, 3])
def test_a_full_disk(limit: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a limit on the pages of the file: SQLite says of it what it says of a full disk."""
    connect = module._connect

    def tight(path: Path, mode: str) -> sqlite3.Connection:
        file = connect(path, mode)
        file.execute(f"PRAGMA max_page_count = {limit or 1}")
        return file

    if limit:
        filled(path)
    monkeypatch.setattr(module, "_connect", tight)
    cache = Cache(path)
    big = {"big": "x" * 50_000}
    cache.put({"a": 1}, big)
    assert cache.get({"a": 1}) == big
    assert cache.get(KEY) == (VALUE if limit else None)
    cache.put({"b": 1}, big)
    (warning,) = cache.warnings
    assert "cannot be written: database or disk is full" in warning
    assert Cache(path).get({"a": 1}) is None


def test_a_size_limit_is_like_a_full_disk(path: Path) -> None:
    """A real one, that the system sets."""
    program = f"""
        import resource
        from pathlib import Path
        from dilrewrite.timing.cache import Cache
        cache = Cache(Path({str(path)!r}))
        cache.put({{"a": 1}}, {{"b": 2}})
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for number in range(5):
            cache.put({{"n": number}}, {{"big": "x" * 50_000}})
        assert all(len(cache.get({{"n": number}})["big"]) == 50_000 for number in range(5))
        assert cache.get({{"a": 1}}) == {{"b": 2}}
        print(len(cache.warnings), cache.warnings)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("1 (")
    assert "cannot be written" in done.stdout
    cache = Cache(path)
    assert cache.get({"a": 1}) == {"b": 2}
    assert cache.warnings == ()


def test_a_python_without_sqlite(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "sqlite3", None)
    goes_on(path, "no sqlite3")
    assert Cache(None).warnings == ()
    assert listing(path.parent) == {}


# ---- a damaged file -----------------------------------------------------------------------------------------------


def overwritten(path: Path, start: float, end: float, byte: bytes = b"\xa5") -> None:
    """Overwrite a part of a file, given as shares of it."""
    data = path.read_bytes()
    a, b = int(start * len(data)), int(end * len(data))
    path.write_bytes(data[:a] + byte * (b - a) + data[b:])


def truncated(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def patched(path: Path, offset: int, data: bytes) -> None:
    before = path.read_bytes()
    path.write_bytes(before[:offset] + data + before[offset + len(data) :])


def emptied(path: Path, version: int) -> None:
    path.unlink()
    change(path, f"PRAGMA user_version = {version}")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(10_000)),
    "few random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(50)),
    "two bytes": lambda path: path.write_bytes(b"xy"),
    "text": lambda path: path.write_text("{}\n"),
    "zeros": lambda path: path.write_bytes(bytes(8192)),
    "cut in the header": lambda path: truncated(path, 60),
    "cut in the first page": lambda path: truncated(path, 1500),
    "one page left": lambda path: truncated(path, 4096),
    "cut in the middle": lambda path: truncated(path, 10_000),
    "header overwritten": lambda path: patched(path, 0, b"SQLite format 4\0"),
    "unknown format": lambda path: patched(path, 44, b"\0\0\0\x63"),
    "first page but the header": lambda path: patched(path, 100, b"\xa5" * 3000),
    "all but the first page": lambda path: overwritten(path, 4096 / path.stat().st_size, 1),
    "all but the first page zero": lambda path: overwritten(path, 4096 / path.stat().st_size, 1, b"\0"),
    "an older version": lambda path: change(path, "PRAGMA user_version = 0"),
    "a negative version": lambda path: change(path, "PRAGMA user_version = -1"),
    "another table": lambda path: change(path, "ALTER TABLE timings RENAME COLUMN value TO worth"),
    "a version and no table": lambda path: emptied(path, 1),
    "a later version and no table": lambda path: emptied(path, 7),
}


@pytest.mark.parametrize("first", ["get", "put"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_set_aside(damage: str, first: str, path: Path) -> None:
    DAMAGES[damage](filled(path, 100))
    before = path.read_bytes()
    cache = Cache(path)
    if first == "get":
        assert cache.get(KEY) is None
        assert path.read_bytes() == b""
    for number in range(9):
        cache.put({"number": number}, {"n": number})
    for number in range(9):
        assert cache.get({"number": number}) == {"n": number}
    (warning,) = cache.warnings
    (old,) = aside(path)
    assert re.fullmatch(r"timings\.sqlite\.damaged-\d{8}T\d{6}Z", old.name)
    assert str(path) in warning
    assert str(old) in warning
    assert "\n" not in warning
    assert old.read_bytes() == before
    assert len(rows(path)) == 9
    assert listing(path.parent).keys() == {path.name, old.name, f"{path.name}.lock"}
    assert Cache(path).get({"number": 8}) == {"n": 8}


@pytest.mark.parametrize("kind", ["nothing in it", "database with nothing in it"])
def test_an_empty_file_is_not_damaged(kind: str, path: Path) -> None:
    path.touch()
    if kind != "nothing in it":
        change(path, "CREATE TABLE t (a)", "DROP TABLE t")
        assert path.stat().st_size > 0
    cache = Cache(path)
    assert cache.get(KEY) is None
    cache.put(KEY, VALUE)
    assert Cache(path).get(KEY) == VALUE
    assert cache.warnings == ()
    assert listing(path.parent).keys() == {path.name}


def test_a_corrupt_page_is_found_when_it_is_reached(path: Path) -> None:
    """The first page is fine, and so are most of the others."""
    filled(path, 100)
    with closing(sqlite3.connect(path)) as file:
        (size,) = file.execute("PRAGMA page_size").fetchone()
        roots = {root for (root,) in file.execute("SELECT rootpage FROM sqlite_master")}
    count = path.stat().st_size // size
    assert count > 6
    cache = Cache(path)
    seen = 0
    page = next(page for page in range(count // 2, count) if page not in roots)
    patched(path, (page - 1) * size, b"\xa5" * size)
    for number in range(1, 100):
        found = cache.get({**KEY, "number": number})
        seen += found is not None
        assert found in (None, VALUE)
        if cache.warnings:
            break
    assert seen > 0, "not found at once"
    (old,) = aside(path)
    assert cache.warnings == (
        f"{path} is damaged (database disk image is malformed): set aside as {old}, and a new one is begun",
    )
    cache.put(KEY, VALUE)
    assert Cache(path).get(KEY) == VALUE


@pytest.mark.parametrize("seed", range(25))
def test_whatever_is_overwritten_nothing_is_raised(seed: int, path: Path) -> None:
    """Random places: it is set aside, or unusable, or nobody notices; what is put afterwards is there."""
    random_ = random.Random(seed)
    filled(path, 50)
    for _ in range(random_.randrange(1, 40)):
        end = 120 if random_.random() < 0.3 else path.stat().st_size
        patched(path, random_.randrange(end - 8), random_.randbytes(random_.choice([1, 2, 8])))
    cache = Cache(path)
    for number in range(50):
        cache.get({**KEY, "number": number})
        cache.put({**KEY, "number": number}, {"new": number})
        assert cache.get({**KEY, "number": number}) == {"new": number}
    assert len(cache.warnings) <= 2
    assert len(aside(path)) <= 1


def test_damage_again_and_again(path: Path) -> None:
    """Each in the same second, so that names would clash."""
    for _ in range(3):
        path.write_bytes(b"no database")
        cache = Cache(path)
        cache.put(KEY, VALUE)
        assert len(cache.warnings) == 1
    assert len(aside(path)) == 3
    assert all(old.read_bytes() == b"no database" for old in aside(path))
    assert Cache(path).get(KEY) == VALUE


def test_damage_that_comes_back_at_once_is_given_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"no database")
    monkeypatch.setattr(os, "truncate", lambda *_: None)
    cache = Cache(path)
    cache.put(KEY, VALUE)
    assert cache.get(KEY) == VALUE
    assert "times in a row" in cache.warnings[-1]


def test_a_half_written_file_is_rolled_back(path: Path) -> None:
    """A process that was killed while it wrote leaves its journal: the file is as before, and not damaged."""
    filled(path, 50)
    program = f"""
        import os, sqlite3
        file = sqlite3.connect({str(path)!r}, isolation_level=None)
        file.execute("PRAGMA cache_size = 1")
        file.execute("BEGIN IMMEDIATE")
        file.execute("UPDATE timings SET value = '{{}}' || hex(zeroblob(3000))")
        os._exit(0)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
    assert (path.parent / f"{path.name}-journal").stat().st_size > 0
    cache = Cache(path)
    assert cache.get(KEY) == VALUE
    assert cache.warnings == ()


# ---- several at once ----------------------------------------------------------------------------------------------

CROWD = """
    import json, sys
    from pathlib import Path
    from dilrewrite.timing.cache import Cache
    me, puts = int(sys.argv[1]), int(sys.argv[2])
    for line in sys.stdin:  # all begin together, as far as they can
        cache = Cache(Path(json.loads(line)))
        cache.get({"shared": True})
        for number in range(puts):
            cache.put({"process": me, "number": number}, {"value": [me, number]})
            cache.put({"shared": number % 5}, {"process": me, "number": number})
            assert cache.get({"process": me, "number": number}) in (None, {"value": [me, number]})
        print(json.dumps(cache.warnings), flush=True)
"""


@contextmanager
def crowd(processes: int, puts: int) -> Iterator[Callable[[Path], list[str]]]:
    """Processes that all put into the same file when told, and say what warnings they had."""
    command = [sys.executable, "-c", textwrap.dedent(CROWD)]
    started = [
        subprocess.Popen([*command, str(me), str(puts)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for me in range(processes)
    ]

    def run(path: Path) -> list[str]:
        for process in started:
            assert process.stdin is not None
            process.stdin.write(json.dumps(str(path)) + "\n")
            process.stdin.flush()
        said: list[str] = []
        for process in started:
            assert process.stdout is not None
            said += json.loads(process.stdout.readline())
        return said

    try:
        yield run
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        assert [process.wait(timeout=60) for process in started] == [0] * processes
    finally:
        for process in started:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def test_several_processes(path: Path) -> None:
    with crowd(4, 25) as run:
        assert run(path) == []
    assert len(rows(path)) == 4 * 25 + 5
    cache = Cache(path)
    for me in range(4):
        for number in range(25):
            assert cache.get({"process": me, "number": number}) == {"value": [me, number]}
    for number in range(5):
        found = cache.get({"shared": number})
        assert found is not None
        assert found["number"] >= 20, "the last of some process"
    assert listing(path.parent).keys() == {path.name}
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_several_processes_find_the_same_damage(tmp_path: Path) -> None:
    """One sets it aside, and what any of them puts afterwards is in the new file."""
    with crowd(4, 2) as run:
        for turn in range(12):
            path = tmp_path / str(turn) / "timings.sqlite"
            path.parent.mkdir()
            if turn % 3 == 0:
                path.write_bytes(b"no database" * 1000)
            elif turn % 3 == 1:
                change(path, "CREATE TABLE timings (a)")
            else:
                truncated(filled(path, 50), 6000)
            (warning,) = run(path)
            (old,) = aside(path)
            assert str(old) in warning
            assert len(rows(path)) == 4 * 2 + 2
            assert listing(path.parent).keys() == {path.name, old.name, f"{path.name}.lock"}


def test_who_opened_a_file_before_it_was_set_aside_does_not_write_there(path: Path) -> None:
    """With the old file open, another's journal for the new one must not be played back into the old one."""
    path.write_bytes(b"no database" * 1000)
    early = closing(sqlite3.connect(path, isolation_level=None))
    Cache(path).put({"number": 0}, {})
    with closing(sqlite3.connect(path, isolation_level=None)) as writer, early as old:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM timings")
        assert len(old.execute("SELECT * FROM timings").fetchall()) == 1
        writer.execute("ROLLBACK")
    (damaged,) = aside(path)
    assert damaged.read_bytes() == b"no database" * 1000
    assert len(rows(path)) == 1


def test_several_threads(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    cache = Cache(path)
    wrong: list[object] = []
    begin = threading.Barrier(6)

    def work(me: int) -> None:
        begin.wait()
        for number in range(8):
            cache.put({"thread": me, "number": number}, {"value": number})
            if cache.get({"thread": me, "number": number}) != {"value": number}:
                wrong.append((me, number))

    threads = [threading.Thread(target=work, args=(me,)) for me in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(rows(path)) == 6 * 8
    assert len(cache.warnings) == len(aside(path)) == 1
