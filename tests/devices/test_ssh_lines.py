"""Boards as they are: login shells that print, other clocks, hosts in between, slow lines; and the cache of timings."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import dilrewrite
from dilrewrite import devices
from dilrewrite.devices._line import LOG
from dilrewrite.runtimes import Runnable, artifact
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.ledger import Ledger, OriginalRecord
from tests import models_for_tests as tiny
from tests.devices import slow_line
from tests.devices.board import Board, until
from tests.devices.conftest import known
from tests.devices.test_ssh import FEEDS, OPTIONS, kill, model, works


def test_a_login_shell_that_prints(board: Board) -> None:
    board.shell("echo Welcome to the board; echo and to its errors >&2; cat /etc/passwd")
    with devices.device(board.on) as device:
        works(device.backend("cpu"))


@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_clock_that_is_off(board: Board, minutes: int) -> None:
    """Times are the board's own, and no clock is held against another one."""
    off = f"import time; right = time.time; time.time = lambda: right() + {60 * minutes}"
    with devices.device(board.with_python(board.other_python("off", off))) as device:
        with closing(device.backend("cpu").bench(OPTIONS)) as bench:
            bench.add("m", artifact(Runnable(model=model())), FEEDS)
            bench.open(["m"], 0.0, 1)
            assert all(0 < seconds < 10 for seconds in bench.run(["m"] * 5))
        other = Board(board.folder, board.name)
        with devices.device(other.on) as busy, pytest.raises(dilrewrite.MissingError, match=r"for \d+ s;"):
            busy.backend("cpu")


def test_a_host_in_between(
    board: Board, new_board: Callable[..., Board], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = new_board("gate")
    known(monkeypatch, tmp_path, gate, board, lines=("ProxyJump gate",))
    with devices.device(board.on) as device:
        works(device.backend("cpu"))
        assert gate.sessions()
        gate.stop()
        with pytest.raises(dilrewrite.MissingError, match="refused"):
            works(device.backend("cpu"))
    assert until(lambda: not board.left()), board.left()


def test_a_slow_line_costs_no_time_of_runs(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of 40 ms there and back costs that for each message, and a message is of many runs."""
    python = f"{sys.executable} {slow_line.__file__}"
    known(monkeypatch, tmp_path, board, lines=(f"ProxyCommand {python} %h %p 0.02",))
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    with devices.device(board.on) as device, closing(device.backend("cpu").bench(OPTIONS)) as bench:
        bench.add("m", artifact(Runnable(model=model())), FEEDS)
        bench.open(["m"])
        bench.run(["m"] * 1000)
        for _ in range(5):
            bench.shut()
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line["do"] for line in lines].count("run") == 1
    assert all(line["seconds"] >= 0.04 for line in lines)


def test_no_timing_of_one_board_answers_for_another(
    board: Board, new_board: Callable[..., Board], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file of timings goes from one to the other, and is read by its own only; nor is it this machine's."""
    known(monkeypatch, tmp_path, board, new_board("two"))
    cache = tmp_path / "timings.sqlite"
    found = {}
    for on in (board.on, "ssh://two?python=/mnt/two/my venv/bin/python", None):
        with devices.device(on) as device:
            found[on] = Ledger(device.backend("cpu"), OPTIONS, Cache(cache))
            assert found[on].circumstances
    first = next(iter(found.values()))
    first.keep({"kind": "question"}, OriginalRecord(said="of the first"))
    answers = [ledger.recall({"kind": "question"}, OriginalRecord) for ledger in found.values()]
    assert answers == [OriginalRecord(said="of the first"), None, None]
    same = [dict(ledger.circumstances) for ledger in found.values()][:2]
    for one in same:
        one["device"] = one["device"].partition(", at ")[0]
        one["settings"] = {name: value for name, value in one["settings"].items() if name not in ("on", "machine")}
    assert same[0] == same[1]  # nothing but the machine tells them apart


@pytest.mark.measures
def test_the_whole_way_with_what_can_happen(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process dies, then the connection: the run goes on to its report, and the next one recalls what was kept."""
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    place = tmp_path / "model.onnx"
    place.write_bytes(tiny.two_convs().SerializeToString())
    deeds = [lambda: kill(board.ours()[-1]), lambda: kill(*board.sessions())]

    def disturb() -> None:
        for number, deed in enumerate(deeds, 1):
            until(lambda wanted=number: _opened(tmp_path / "log") >= 3 * wanted)
            deed()

    worker = threading.Thread(target=disturb)
    worker.start()
    options = {"on": board.on, "budget": 4.0, "cache": tmp_path / "t.sqlite", "report": tmp_path / "report"}
    first = dilrewrite.optimize(place, tmp_path / "out.onnx", **options)
    worker.join()
    assert first.exit_code == 0
    assert first.measurement is not None
    assert first.measurement.settings["on"] == "ssh://one"
    assert "was lost" in (text := (tmp_path / "report" / "report.json").read_text()) or "killed" in text
    again = dilrewrite.optimize(place, tmp_path / "out.onnx", force=True, **options)
    assert again.measurement is not None
    assert again.measurement.recalled > 0
    assert until(lambda: not board.left()), board.left()


def _opened(log: Path) -> int:
    return log.read_text().count('"open"') if log.exists() else 0


def test_the_same_model_as_without(board: Board, tmp_path: Path) -> None:
    """Where the form is named, what is written does not depend on where it was timed."""
    place = tmp_path / "model.onnx"
    place.write_bytes(tiny.two_convs().SerializeToString())
    written = []
    for number, on in enumerate((None, board.on)):
        target = tmp_path / f"{number}.onnx"
        report = dilrewrite.optimize(place, target, on=on, strategy="space_to_batch", budget=2.0, no_cache=True)
        assert report.measurement is not None
        assert report.measurement.final is not None
        assert report.measurement.settings.get("on", "") == ("ssh://one" if on else "")
        assert report.verdict is not None
        assert report.verdict.passed
        written.append(target.read_bytes())
    assert written[0] == written[1]
