"""Boards for the tests of this folder; skipped with the reason where there can be none, unless they must be there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.devices.board import NEEDED, Board, configure, lacking, until


def _ready() -> None:
    why = lacking()
    if why is not None and os.environ.get(NEEDED):
        pytest.fail(f"{NEEDED} is set, and {why}")
    if why is not None:
        pytest.skip(why)


@pytest.fixture(scope="session")
def _one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    _ready()
    board = Board(tmp_path_factory.mktemp("board") / "one", "one")
    board.make()
    board.start()
    yield board
    board.stop()


@pytest.fixture
def board(_one: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Board]:
    """A board, which is as it was afterwards: nothing of a connection is left there."""
    known(monkeypatch, tmp_path, _one)
    yield _one
    if _one.process is None or _one.process.poll() is not None:
        _one.start()
    _one.shell("")
    assert until(lambda: not _one.left()), _one.left()


@pytest.fixture
def new_board(tmp_path: Path) -> Iterator[Callable[..., Board]]:
    """Start a board of a name, with further fields."""
    _ready()
    with ExitStack() as stack:

        def make(name: str, **fields: Any) -> Board:
            made = Board(tmp_path / name, name, **fields)
            made.make()
            made.start()
            stack.callback(made.stop)
            return made

        yield make


def known(monkeypatch: pytest.MonkeyPatch, folder: Path, *boards: Board, lines: tuple[str, ...] = ()) -> None:
    """Let ssh know boards, and nothing of the user's own configuration; `lines` are of the last one."""
    sections = [board.configuration(*(lines if board is boards[-1] else ())) for board in boards]
    for name, value in configure(folder / "ssh_config", *sections).items():
        monkeypatch.setenv(name, value)
