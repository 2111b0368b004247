"""A board that ssh reaches, for real: OpenSSH's server on the loopback, under another user."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dilrewrite import devices
from dilrewrite.devices._line import LOG
from dilrewrite.errors import DilrewriteError, MissingError
from dilrewrite.runtimes import (
    CannotLoad,
    Crashed,
    Lost,
    Options,
    Runnable,
    TimedBackend,
    TimedOut,
    artifact,
    timed_backend,
)
from tests.devices.board import Board, until

OPTIONS = Options(threads=1, timeout_s=60.0)


def model(operator: str = "Relu", **more: Any) -> bytes:
    """A model of one operator, x to y."""
    element = more.pop("element", TensorProto.FLOAT)
    x, y = (helper.make_tensor_value_info(name, element, [2, 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node(operator, ["x"], ["y"], **more)], "g", [x], [y])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    return bytes(made.SerializeToString())


FEEDS = {"x": np.array([[-1, 2, -3], [4, -5, 6]], np.float32)}


def test_a_bench_there_computes_what_one_here_does(board: Board) -> None:
    with devices.device(board.on) as device:
        backend = device.backend("cpu")
        with closing(backend.bench(OPTIONS)) as bench, closing(timed_backend("cpu").bench(OPTIONS)) as here:
            for one in (bench, here):
                one.add("m", artifact(Runnable(model=model())), FEEDS)
            there = bench.outputs("m")
            np.testing.assert_array_equal(there["y"], here.outputs("m")["y"])
            assert [opened.first_s for opened in bench.open(["m", "m"], 0.0, 2)] == [None, None]
            assert len(bench.run(["m"] * 7)) == 7
            told = bench.profile("m", 3)
            assert told.runs == 3
            assert [node.op for node in told.nodes] == ["Relu"] * 3
            assert bench.peak_bytes("m") is not None
            bench.shut()
    assert until(lambda: not board.left()), board.left()
    assert until(lambda: not board.ours())


def test_what_it_says_of_itself(board: Board) -> None:
    with devices.device(board.on) as device:
        backend = device.backend("auto")
        assert (backend.name, device.on) == ("onnxruntime_cpu", "ssh://one")
        assert set(backend.versions()) == {"onnxruntime", "numpy", "python", "kernel"}
        settings = backend.settings(OPTIONS)
        assert settings["intra_op_num_threads"] == "1"
        assert settings["on"] == "ssh://one"
        assert settings["machine"]
        assert backend.state()["load"] >= 0


@pytest.mark.parametrize("operator", ["Shape", "NoSuchOperator"])
def test_a_model_that_it_refuses(board: Board, operator: str) -> None:
    with devices.device(board.on) as device, closing(device.backend("cpu").bench(OPTIONS)) as bench:
        bench.add("m", artifact(Runnable(model=model(operator))), FEEDS)
        with pytest.raises(CannotLoad, match=r"Type Error|NoSuchOperator"):
            bench.open(["m"])
        bench.add("m", artifact(Runnable(model=model())), FEEDS)
        assert len(bench.open(["m"])) == 1


@pytest.mark.parametrize("element", ["bfloat16", "string", "float16", "int64"])
def test_values_of_every_kind_come_back(board: Board, element: str) -> None:
    """A board without ml_dtypes takes and gives their bits."""
    import ml_dtypes

    values: Any = FEEDS["x"].astype(getattr(ml_dtypes, element, "O" if element == "string" else element))
    if element == "string":
        values = np.array([["a", "é"], ["", "\n"], ["b", "c"]], object).reshape(2, 3)
    kind = TensorProto.DataType.Value(element.upper())
    with devices.device(board.on) as device, closing(device.backend("cpu").bench(OPTIONS)) as bench:
        bench.add("m", artifact(Runnable(model=model("Identity", element=kind))), {"x": values})
        got = bench.outputs("m")["y"]
        assert got.dtype == values.dtype
        assert got.tolist() == values.tolist()


def test_files_go_once_and_no_message_is_of_one_run(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    big = {"x": np.ones((2, 3), np.float32)}
    with devices.device(board.on) as device:
        backend = device.backend("cpu")
        for _ in range(2):  # the second process finds the files there
            with closing(backend.bench(OPTIONS)) as bench:
                for key in ("a", "b"):
                    bench.add(key, artifact(Runnable(model=model())), big)
                bench.open(["a", "b"], 0.0, 2)
                bench.run(["a", "b", "b", "a"] * 100)
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    sent = Counter(line["do"] for line in lines)
    assert (sent["put"], sent["run"], sent["open"], sent["add"]) == (2, 2, 2, 4)
    assert sum(line["sent"] for line in lines if line["do"] == "put") < 2 * len(model()) + 24 + 400
    assert max(line["sent"] for line in lines if line["do"] == "add") < 500


# -- what ends in the middle -------------------------------------------------------------------------------------------


def waiting(bench: Any) -> None:
    """Run until something ends it: for hours, say."""
    bench.add("m", artifact(Runnable(model=model())), FEEDS)
    bench.open(["m"], 3600.0, 1)


def interrupted(bench: Any, deed: Any, kind: type[Exception]) -> str:
    """Do something in the middle of a question; return the words of the failure."""
    import threading
    import time

    worker = threading.Thread(target=lambda: (time.sleep(1.0), deed()))
    worker.start()
    try:
        with pytest.raises(kind) as caught:
            waiting(bench)
    finally:
        worker.join()
    assert type(caught.value) is kind
    return str(caught.value)


def kill(*numbers: int) -> None:
    for number in numbers:
        os.kill(number, signal.SIGKILL)


def works(backend: TimedBackend) -> None:
    """Time something there."""
    with closing(backend.bench(OPTIONS)) as bench:
        bench.add("m", artifact(Runnable(model=model())), FEEDS)
        bench.open(["m"])
        assert len(bench.run(["m"])) == 1


def test_a_process_that_dies_is_a_failure_and_the_next_one_works(board: Board) -> None:
    with devices.device(board.on) as device:
        backend = device.backend("cpu")
        with closing(backend.bench(OPTIONS)) as bench:
            said = interrupted(bench, lambda: kill(board.ours()[-1]), Crashed)
        assert said == "the process on ssh://one was killed by SIGKILL (perhaps out of memory)"
        works(backend)
    assert until(lambda: not board.left()), board.left()


@pytest.mark.parametrize("what", ["keeper", "both keepers", "sshd"])
def test_a_connection_that_is_lost_is_a_failure_and_is_made_again(board: Board, what: str) -> None:
    def deed() -> None:
        keepers = board.ours()[:2]
        kill(*{"keeper": keepers[1:], "both keepers": keepers, "sshd": board.sessions()}[what])

    with devices.device(board.on) as device:
        backend = device.backend("cpu")
        with closing(backend.bench(OPTIONS)) as bench:
            said = interrupted(bench, deed, Lost)
        assert said == "the connection to ssh://one was lost"
        works(backend)
        assert len(board.left()) == 2  # a folder and the lock: none of the connection before
    assert until(lambda: not board.left()), board.left()
    assert until(lambda: not board.ours())


def test_a_board_that_does_not_come_back_ends_the_run(board: Board) -> None:
    with devices.device(board.on) as device:
        backend = device.backend("cpu")
        with closing(backend.bench(OPTIONS)) as bench:
            interrupted(bench, board.stop, Lost)
        with pytest.raises(MissingError, match=r"ssh://one: it cannot be reached: .*refused"):
            backend.bench(OPTIONS)


def test_a_run_that_takes_too_long_is_stopped_there(board: Board) -> None:
    with devices.device(board.on) as device:
        backend = device.backend("cpu")
        with closing(backend.bench(Options(threads=1, timeout_s=3.0))) as bench:
            with pytest.raises(TimedOut):
                waiting(bench)
            assert until(lambda: len(board.ours()) == 2)
        works(backend)


def test_nothing_here_takes_the_place_of_ssh(board: Board) -> None:
    board.stop()
    with devices.device(board.on) as device, pytest.raises(DilrewriteError, match="refused") as caught:
        device.backend("cpu")
    assert caught.value.exit_code == 4
