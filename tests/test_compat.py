"""What stands in for later Pythons' names does the same."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from dilrewrite import _compat


def _locked(path: Path) -> None:
    with closing(sqlite3.connect(path)) as one, closing(sqlite3.connect(path, timeout=0)) as other:
        one.execute("BEGIN EXCLUSIVE")
        other.execute("CREATE TABLE t (x)")


def _no_database(path: Path) -> None:
    path.write_bytes(b"no database" * 100)
    _run(path, "SELECT * FROM sqlite_master")


def _malformed(path: Path) -> None:
    _run(path, "CREATE TABLE t (x)")
    path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 4096)
    _run(path, "SELECT * FROM t")


def _read_only(path: Path) -> None:
    _run(path, "CREATE TABLE t (x)")
    _run(path, "PRAGMA query_only = 1", "INSERT INTO t VALUES (1)")


def _run(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as file:
        for statement in statements:
            file.execute(statement).fetchall()


CAUSES: dict[str, tuple[Callable[[Path], None], set[int]]] = {
    "locked": (_locked, {5}),
    "read only": (_read_only, {8}),
    "no folder": (lambda path: _run(path / "none", "SELECT 1"), {14}),
    "no database": (_no_database, {11, 26}),
    "malformed": (_malformed, {11}),
    "no table": (lambda path: _run(path, "SELECT * FROM t"), {1}),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_the_code_of_an_error_follows_from_its_words(cause: str, tmp_path: Path) -> None:
    fail, codes = CAUSES[cause]
    with pytest.raises(sqlite3.Error) as caught:
        fail(tmp_path / "file")
    assert {_compat.sqlite_code(caught.value), _compat.sqlite_code_by_words(caught.value)} <= codes


def test_other_errors_have_no_code() -> None:
    assert (
        _compat.sqlite_code(OSError("disk I/O error")) == _compat.sqlite_code_by_words(OSError("disk I/O error")) == 0
    )


def test_a_member_is_its_text() -> None:
    class Colour(_compat.StrEnum):
        RED = "red"

    assert (str(Colour.RED), f"{Colour.RED:>4}", "%s" % Colour.RED, Colour("red")) == ("red", " red", "red", Colour.RED)  # noqa: UP031


def test_a_file_is_hashed_from_where_it_stands(tmp_path: Path) -> None:
    data = bytes(range(256)) * 2**13  # two chunks
    (tmp_path / "f").write_bytes(data)
    with (tmp_path / "f").open("rb") as file:
        file.seek(1)
        assert _compat.sha256_of(file).hexdigest() == hashlib.sha256(data[1:]).hexdigest()
