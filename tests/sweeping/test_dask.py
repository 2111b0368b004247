"""A sweep on Dask: a real scheduler and two workers on the loopback, one of which is killed in mid-model."""

from __future__ import annotations

import _thread
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import dilrewrite
from dilrewrite.errors import MissingError
from dilrewrite.reports.swept import SweepReport
from tests.models_for_tests import conv1d, listing, plain, save, save_external, two_convs

pytest.importorskip("distributed", reason="the extra dask is not installed")

import psutil  # it comes with distributed

from dilrewrite.sweeping import dask

HOW: dict[str, Any] = {"eliminate": True, "budget": 0, "backend": "cpu"}
START_S = 120.0


class Cluster:
    """A scheduler and its workers, each a process of its own without a nanny: one that is killed stays away."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.workers = folder, {}
        self.file = folder / "scheduler.json"
        self.scheduler = self._start("dask_scheduler", "--port", "0", "--host", "127.0.0.1")
        self.address = ""
        self.wait(lambda: self.file.exists() and self.file.stat().st_size)
        self.address = json.loads(self.file.read_text())["address"].replace("tcp://", "dask://")

    def _start(self, program: str, *more: str, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"distributed.cli.{program}", "--scheduler-file", str(self.file)]
        log = (self.folder / f"{program}.log").open("ab")
        variables = {**os.environ, "TMPDIR": str(self.folder), **environment}
        flags = ["--no-dashboard", *more]
        with log:
            return subprocess.Popen([*command, *flags], cwd=self.folder, stdout=log, stderr=log, env=variables)

    def add(self, *names: str, **environment: str) -> None:
        """Start workers of two threads each."""
        from distributed import Client

        for name in names:
            place = ["--local-directory", str(self.folder / name)]
            flags = ["--no-nanny", "--nthreads", "2", "--name", name, "--host", "127.0.0.1", *place]
            self.workers[name] = self._start("dask_worker", *flags, **environment)
        with Client(self.address.replace("dask://", "tcp://"), set_as_default=False) as client:
            client.wait_for_workers(len(self.workers), timeout=START_S)

    def wait(self, ready: Any) -> None:
        until = time.monotonic() + START_S
        while not ready():
            assert time.monotonic() < until, "it did not start"
            time.sleep(0.05)

    def children(self, name: str) -> list[psutil.Process]:
        """The processes that answer for a model on a worker."""
        try:
            return [
                one
                for one in psutil.Process(self.workers[name].pid).children(recursive=True)
                if any("sweeping._child" in word for word in one.cmdline())
            ]
        except psutil.NoSuchProcess:
            return []

    def close(self) -> None:
        for process in (*self.workers.values(), self.scheduler):
            process.kill()
            process.wait()


@contextmanager
def running(folder: Path, *names: str, **environment: str) -> Iterator[Cluster]:
    cluster = Cluster(folder)
    try:
        cluster.add(*names, **environment) if names else None
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    save(conv1d(), folder / "one.onnx")
    save_external(two_convs(), folder / "outside.onnx")
    save(plain(), folder / "plain.onnx")
    (folder / "broken.onnx").write_bytes(b"no model")
    return folder


def contents(report: SweepReport) -> Mapping[str, bytes]:
    return {Path(one.model).name: Path(one.output).read_bytes() for one in report.models if one.output}


def watched(cluster: Cluster, cue: Any, act: Any) -> threading.Thread:
    """A thread that acts on the first worker that is seen at work."""

    def watch() -> None:
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            busy = [name for name in cluster.workers if cluster.children(name)]
            if busy and cue(busy):
                act(busy[0])
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_two_workers_and_one_is_lost_in_mid_model(models: Path, tmp_path: Path) -> None:
    """Every model once, with the bytes of this machine; what the killed worker was at, the other answers."""
    (tmp_path / "cluster").mkdir()
    killed: list[str] = []
    family: list[psutil.Process] = []
    most: dict[str, int] = {"one": 0, "two": 0}
    with running(tmp_path / "cluster", "one", "two") as cluster:

        def both(busy: list[str]) -> bool:
            for name in busy:
                most[name] = max(most[name], len(cluster.children(name)))
            return len(busy) == 2

        def kill(name: str) -> None:
            family.extend(cluster.children(name))
            killed.append(name)
            cluster.workers[name].kill()

        thread = watched(cluster, both, kill)
        there = dilrewrite.sweep([models], tmp_path / "there", on=cluster.address, **HOW)
        thread.join()
        (other,) = {"one", "two"} - set(killed)
        assert [one.status for one in there.models] == ["failed", "rewritten", "rewritten", "nothing to rewrite"]
        assert [one.on for one in there.models if one.output] == [other] * 3
        assert most == {"one": 1, "two": 1}  # each has two threads
        psutil.wait_procs(family, timeout=20)
        assert [one for one in family if one.is_running()] == []
        assert [name for name in listing(tmp_path / "cluster" / other) if "dilrewrite" in name] == []
    here = dilrewrite.sweep([models], tmp_path / "here", **HOW)
    assert contents(here) == contents(there)
    assert len(contents(here)) == 3
    assert "broken.onnx" in there.models[0].said

    def plainly(folder: Path) -> dict[str, bytes | None]:
        return {name: held for name, held in listing(folder).items() if "report" not in name}

    assert plainly(tmp_path / "here") == plainly(tmp_path / "there")  # the data file too
    report = json.loads((tmp_path / "there" / "outside.report" / "report.json").read_text())
    assert report["output"] == str(tmp_path / "there" / "outside.dilrewrite.onnx")
    assert report["before"]["path"] == str(models / "outside.onnx")
    assert "dilrewrite-sweep-" not in (tmp_path / "there" / "outside.report" / "report.md").read_text()


def test_who_cannot_answer(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler without workers; a worker of another version; then all workers lost, and then the scheduler."""
    (tmp_path / "cluster").mkdir()
    with running(tmp_path / "cluster") as cluster:
        with pytest.raises(MissingError, match="has no workers; start some: dask worker"):
            dilrewrite.sweep([models], tmp_path / "out", on=cluster.address, **HOW)
        assert not (tmp_path / "out").exists()
        cluster.add("one")
        monkeypatch.setattr("dilrewrite.sweeping.dask.__version__", "9.9")
        with pytest.raises(MissingError, match=r"has dilrewrite \S+; install dilrewrite 9.9 there"):
            dilrewrite.sweep([models], tmp_path / "out", on=cluster.address, **HOW)
        monkeypatch.undo()
        monkeypatch.setattr(dask, "PATIENCE_S", 2.0)
        thread = watched(cluster, bool, lambda name: cluster.workers[name].kill())
        lost = dilrewrite.sweep(
            [models / "one.onnx", models / "plain.onnx"], tmp_path / "out", on=cluster.address, **HOW
        )
        thread.join()
        assert [(one.status, one.exit_code) for one in lost.models] == [("failed", 4)] * 2
        assert {one.said for one in lost.models} == {
            f"{cluster.address} had no worker for 2 s; start some: dask worker HOST:PORT"
        }
        cluster.workers.pop("one").wait()
        cluster.add("two")
        thread = watched(cluster, bool, lambda _: _thread.interrupt_main())
        with pytest.raises(KeyboardInterrupt):
            dilrewrite.sweep([models / "one.onnx"], tmp_path / "out", on=cluster.address, **HOW)
        thread.join()
        cluster.wait(lambda: not cluster.children("two"))
        cluster.wait(lambda: not [name for name in listing(tmp_path / "cluster" / "two") if "dilrewrite-" in name])
        thread = watched(cluster, bool, lambda _: cluster.scheduler.kill())
        gone = dilrewrite.sweep(
            [models / "one.onnx", models / "plain.onnx"], tmp_path / "out", on=cluster.address, **HOW
        )
        thread.join()
        assert [(one.status, one.exit_code) for one in gone.models] == [("failed", 4)] * 2
        assert [name for name in listing(tmp_path / "out") if name.endswith(".onnx")] == []


def test_a_worker_without_dilrewrite(models: Path, tmp_path: Path) -> None:
    """Its Python has Dask and a folder without the package in front of the one with it."""
    (tmp_path / "cluster").mkdir()
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    block = "import sys\nsys.modules['dilrewrite'] = None\n"
    (hidden / "sitecustomize.py").write_text(block)
    wanted = pytest.raises(MissingError, match="does not have dilrewrite; install dilrewrite")
    with running(tmp_path / "cluster", "bare", PYTHONPATH=str(hidden)) as cluster, wanted:
        dilrewrite.sweep([models], tmp_path / "out", on=cluster.address, **HOW)
    assert not (tmp_path / "out").exists()
