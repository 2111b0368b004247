"""Timed runs and profiles of real sessions in a child process: what is asked for is run, and what fails is said."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import pickle
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from dilrewrite import runtimes as backends
from dilrewrite.errors import MissingError, UsageError
from dilrewrite.runtimes import (
    Artifact,
    CannotLoad,
    CannotRun,
    Crashed,
    NodeRun,
    Options,
    Profile,
    Runnable,
    TimedBackend,
    TimedOut,
    _worker,
    artifact,
    profiled,
    timed_backend,
    timed_backends,
)
from dilrewrite.runtimes._worker import IsolatedBench, _Server
from dilrewrite.runtimes.onnxruntime_cpu import BACKEND, OnnxRuntimeCpu
from dilrewrite.timing.stopwatch import MIN_PAIRS, Stopwatch
from tests.models_for_tests import build, conv1d, conv_node, sequence_output, string_input, two_convs, values
from tests.runtimes.test_onnxruntime_cpu import crashing_model, gone, slow_model

NAME = "onnxruntime_cpu"
OPTIONS = Options(threads=1, timeout_s=60)
X = values(1, 2, 16)
FLOAT = TensorProto.FLOAT


def runnable(proto: ModelProto) -> Runnable:
    return Runnable(model=proto.SerializeToString())


def whole(proto: ModelProto) -> Artifact:
    return artifact(runnable(proto))


@contextlib.contextmanager
def opened(options: Options = OPTIONS) -> Iterator[IsolatedBench]:
    with contextlib.closing(IsolatedBench(BACKEND, options)) as bench:
        yield bench


@pytest.fixture(scope="module")
def shared() -> Iterator[IsolatedBench]:
    """One child for the tests that leave it whole."""
    with opened() as bench:
        yield bench


@pytest.fixture
def bench(shared: IsolatedBench) -> Iterator[IsolatedBench]:
    yield shared
    for key in ("a", "b", "c"):
        shared.drop(key)


def pid(bench: IsolatedBench) -> int:
    return bench._child.process.pid


# ---- memory -------------------------------------------------------------------------------------------------------

MIB = 2**20


def expanded(mib: int) -> tuple[ModelProto, dict[str, Any]]:
    """A model that holds so many MiB at once, a power of two, as ONNX Runtime asks for memory, and its feeds."""
    nodes = [helper.make_node("Expand", ["x", "s"], ["e"]), helper.make_node("ReduceSum", ["e"], ["y"])]
    inputs = {"x": [1]}
    proto = build(nodes, inputs, {"y": None}, {"s": np.array([mib * MIB // 4])})
    return proto, {"x": np.ones(1, np.float32)}


def test_peak_memory_is_that_of_one_model(bench: IsolatedBench) -> None:
    """Whatever ran before in the process, and as often as it is asked."""
    for key, mib in (("a", 128), ("b", 16)):
        proto, feeds = expanded(mib)
        bench.add(key, whole(proto), feeds)
    bench.open(["a", "b"])
    bench.run(["a", "b"])
    found = {key: [bench.peak_bytes(key) for _ in range(2)] for key in ("b", "a")}
    found["b"].append(bench.peak_bytes("b"))
    for key, mib in (("a", 128), ("b", 16)):
        for peak in found[key]:
            assert peak is not None
            assert mib * MIB * 0.98 < peak < mib * MIB * 1.1 + 4 * MIB, found


def test_peak_memory_counts_weights_and_outputs(bench: IsolatedBench) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    weight = np.ones((2048, 4096), np.float32)
    proto = build(nodes, {"x": [2048, 2048]}, {"y": None}, {"w": weight})
    bench.add("a", whole(proto), {"x": np.ones((2048, 2048), np.float32)})
    peak = bench.peak_bytes("a")
    assert peak is not None
    assert (32 + 32) * MIB * 0.98 < peak < (32 + 32 + 8) * MIB, "weights and output; the input was there"


def test_the_first_that_is_asked_for_counts_nothing_that_is_loaded_once() -> None:
    proto, feeds = expanded(16)
    with opened() as bench:
        bench.add("a", whole(proto), feeds)
        first, again = bench.peak_bytes("a"), bench.peak_bytes("a")
    assert first is not None
    assert again is not None
    assert abs(first - again) < 2 * MIB


def test_peak_memory_where_it_cannot_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has memory of its own, the mark cannot be set, or freed memory cannot be given back."""
    server = _Server()
    server.backend = BACKEND
    feeds = {"x": X}
    server.on_add("a", runnable(conv1d()), OPTIONS, feeds)
    assert server.on_peak_of("a") is not None
    with monkeypatch.context() as patch:
        patch.setattr(OnnxRuntimeCpu, "host_memory", False)
        assert server.on_peak_of("a") is None
    with monkeypatch.context() as patch:
        patch.setattr(_worker, "_forget_peak", lambda: None)
        assert np.ones(8 * MIB).sum() > 0, "the mark is now far above what is resident"
        assert server.on_peak_of("a") is None
    with monkeypatch.context() as patch:
        patch.setattr(_worker.ctypes, "CDLL", lambda _: object())
        assert server.on_peak_of("a") is None
    server.on_drop("a")


def test_a_model_that_does_not_run_has_no_peak(bench: IsolatedBench) -> None:
    bench.add("a", whole(conv1d(length=None)), {"x": values(1, 3, 16)})
    with pytest.raises(CannotRun):
        bench.peak_bytes("a")


# ---- runs ---------------------------------------------------------------------------------------------------------


class Recorder:
    """A loaded model that notes its runs."""

    def __init__(self, key: str, ran: list[str]) -> None:
        self.key = key
        self.ran = ran

    def run(self) -> None:
        assert not gc.isenabled(), "a collection would count as a run's time"
        self.ran.append(self.key)
        if self.key == "bad":
            raise CannotRun("bad")

    def close(self) -> None:
        self.ran.append(f"{self.key} closed")


def test_runs_come_in_the_order_asked_for() -> None:
    """In the child, seen from inside."""
    server, ran = _Server(), list[str]()
    server.runners = {key: Recorder(key, ran) for key in ("a", "b", "bad")}
    assert len(server.on_run(["a", "b", "b", "a", "a"])) == 5
    assert ran == ["a", "b", "b", "a", "a"]
    assert gc.isenabled()
    with pytest.raises(CannotRun):
        server.on_run(["a", "bad", "b"])
    assert ran[5:] == ["a", "bad"]
    assert gc.isenabled()
    server.on_drop("b")
    server.on_drop("c")
    server.on_shut()
    assert ran[7:] == ["b closed", "a closed", "bad closed"]


def test_each_run_has_its_seconds(bench: IsolatedBench) -> None:
    for key in ("a", "b"):
        bench.add(key, whole(conv1d()), {"x": X})
    bench.open(["a", "b"])
    seconds = bench.run(["a", "b", "b", "a", "a"])
    assert len(seconds) == 5
    assert all(isinstance(value, float) and value > 0 for value in seconds)
    assert bench.run([]) == []
    assert len(bench.run(["a"] * 100)) == 100
    assert bench.warnings() == ()


def test_a_model_can_be_shut_and_opened_again(bench: IsolatedBench) -> None:
    bench.add("a", whole(conv1d()), {"x": X})
    for _ in range(3):
        bench.open(["a"])
        assert len(bench.run(["a", "a"])) == 2
        bench.shut()
        bench.shut()
        with pytest.raises(RuntimeError, match="KeyError: 'a'"):
            bench.run(["a"])
    bench.open(["a"])
    bench.open(["a"])
    assert len(bench.run(["a"])) == 1


def test_a_key_that_was_not_added(bench: IsolatedBench) -> None:
    """A mistake of the caller, with the child's traceback; the child lives on."""
    for ask in (lambda: bench.open(["c"]), lambda: bench.run(["c"])):
        with pytest.raises(RuntimeError, match=r"(?s)in the worker process:.*KeyError: 'c'"):
            ask()
    bench.shut()
    bench.drop("c")
    bench.add("a", whole(conv1d()), {"x": X})
    bench.open(["a"])
    assert len(bench.run(["a"])) == 1
    with pytest.raises(RuntimeError, match="KeyError: 'c'"):
        bench.run(["a", "c"])
    assert len(bench.run(["a"])) == 1


def test_what_is_dropped_is_forgotten(bench: IsolatedBench) -> None:
    bench.add("a", whole(conv1d()), {"x": X})
    bench.open(["a"])
    bench.drop("a")
    for ask in (lambda: bench.run(["a"]), lambda: bench.open(["a"])):
        with pytest.raises(RuntimeError, match="KeyError: 'a'"):
            ask()


def test_what_is_added_replaces_what_was_there(bench: IsolatedBench) -> None:
    bench.add("a", whole(conv1d()), {"x": X})
    bench.open(["a"])
    bench.add("a", whole(conv1d(channels=3)), {"x": values(1, 3, 16)})
    with pytest.raises(RuntimeError, match="KeyError: 'a'"):
        bench.run(["a"])  # the old one is no longer loaded
    bench.open(["a"])
    assert len(bench.run(["a"])) == 1


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (b"no model", "INVALID_PROTOBUF"),
        (Path("/no/such.onnx"), "NO_SUCHFILE"),
        (conv1d(dtype=np.float64, element=TensorProto.DOUBLE).SerializeToString(), "NOT_IMPLEMENTED.*Conv"),
    ],
    ids=["bytes", "path", "type"],
)
def test_a_bad_model_cannot_load(model: bytes | Path, words: str, bench: IsolatedBench) -> None:
    bench.add("b", artifact(Runnable(model=model)), {"x": X})
    for _ in range(2):
        with pytest.raises(CannotLoad, match=f"^{words}"):
            bench.open(["b"])
    bench.shut()
    bench.add("a", whole(conv1d()), {"x": X})
    bench.open(["a"])
    assert len(bench.run(["a"])) == 1


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, "[Mm]issing|x"),
        ({"x": values(1, 3, 16)}, "Got: 3 Expected: 2"),
        ({"x": values(1, 2, 16, dtype=np.float64)}, "data type.*double"),
        ({"x": X, "z": X}, "input.*: z"),
    ],
    ids=["missing", "extent", "type", "unknown"],
)
def test_bad_inputs_cannot_run(feeds: Mapping[str, Any], words: str, bench: IsolatedBench) -> None:
    def work() -> None:
        bench.open(["b"])
        bench.run(["b"])

    bench.add("b", whole(conv1d()), feeds)
    bench.add("a", whole(conv1d()), {"x": X})
    bench.open(["a"])
    with pytest.raises(CannotRun, match=words):
        work()
    bench.open(["a"])
    assert len(bench.run(["a"])) == 1


def identity(kind: Any, shape: tuple[int, ...] = (2, 3)) -> tuple[ModelProto, dict[str, Any]]:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    proto = build(
        [helper.make_node("Identity", ["x"], ["y"])], {"x": shape}, {"y": shape}, element=element, opset=19, ir=9
    )
    return proto, {"x": np.ones(shape).astype(kind)}


def sequence_input() -> tuple[ModelProto, dict[str, Any]]:
    proto = build([helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=0)], {}, {"y": None})
    proto.graph.input.append(helper.make_tensor_sequence_value_info("s", FLOAT, None))
    return proto, {"s": [values(2, 3), values(1, 3)]}


FEEDS: dict[str, tuple[ModelProto, dict[str, Any]]] = {
    "float16": identity(np.float16),
    "float64": identity(np.float64),
    "bfloat16": identity(ml_dtypes.bfloat16),
    "float8": identity(ml_dtypes.float8_e4m3fn),
    "int64": identity(np.int64),
    "bool": identity(np.bool_),
    "scalar": identity(np.float32, ()),
    "nothing": identity(np.float32, (0, 3)),
    "foreign byte order": (conv1d(), {"x": X.astype(">f4")}),
    "not contiguous": (conv1d(), {"x": values(1, 16, 2).transpose(0, 2, 1)}),
    "list": (conv1d(), {"x": np.asarray(X)[:, ::-1]}),
    "strings": (string_input(), {"x": X, "s": np.array(["a", "é"], object)}),
    "sequence out": (sequence_output(), {"x": X}),
    "sequence in": sequence_input(),
    "no inputs": (build([conv_node()], {}, {"y": None}, {"x": X, "w": values(2, 2, 3)}), {}),
}


@pytest.mark.parametrize("kind", FEEDS)
def test_any_kind_of_input_is_run_and_profiled(kind: str, bench: IsolatedBench) -> None:
    proto, feeds = FEEDS[kind]
    bench.add("a", whole(proto), feeds)
    bench.open(["a"])
    assert all(value > 0 for value in bench.run(["a"] * 3))
    found = BACKEND.profile(runnable(proto), Options(threads=1), feeds, 2)
    assert found.runs == 2
    names = Counter(node.op for node in found.nodes)
    assert names.total() % 2 == 0


@pytest.mark.parametrize("declared", [[1, 2, 16], ["n", 2, 7]])
def test_outputs_of_another_shape_than_declared_are_timed(declared: list[Any], bench: IsolatedBench) -> None:
    """Files made dynamic by hand declare such; ONNX Runtime warns, and refuses a second run into the same output."""
    proto = conv1d(length=None)
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", FLOAT, declared))
    bench.add("m", whole(proto), {"x": values(1, 2, 30)})
    bench.open(["m"])
    assert len(bench.run(["m"] * 5)) == 5


def test_paths_do_not_move_with_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bench: IsolatedBench
) -> None:
    """Neither that of a model nor that of its external data, wherever the child was started."""
    onnx.save_model(conv1d(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    data = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    bench.add("a", artifact(Runnable(model=Path("m.onnx"))), {"x": X})
    bench.add("b", artifact(Runnable(model=data, folder=Path())), {"x": X})
    monkeypatch.chdir(tmp_path / "elsewhere")
    for key in ("a", "b"):
        bench.open([key])
        assert len(bench.run([key])) == 1
    monkeypatch.chdir(tmp_path)
    with opened() as other:
        monkeypatch.chdir(tmp_path / "elsewhere")
        other.add("a", artifact(Runnable(model=Path("../m.onnx"))), {"x": X})
        other.open(["a"])
    assert profiled(BACKEND, Runnable(model=Path("../m.onnx")), OPTIONS, {"x": X}, 1).runs == 1


def test_a_bench_is_one_process_and_ends_with_close() -> None:
    with opened() as bench:
        child = pid(bench)
        assert child != os.getpid()
        assert not gone(child)
        bench.add("a", whole(conv1d()), {"x": X})
        bench.open(["a"])
    assert gone(child)
    bench.close()
    bench.shut()
    assert bench.warnings() == ()
    for ask in (
        lambda: bench.run(["a"]),
        lambda: bench.open(["a"]),
        lambda: bench.add("a", whole(conv1d()), {"x": X}),
        lambda: bench.drop("a"),
    ):
        with pytest.raises(Crashed, match="closed"):
            ask()


def test_an_answer_that_breaks_off_is_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    send = _worker.send

    def killing(stream: Any, message: object) -> None:
        send(stream, message)
        broken = io.BytesIO(pickle.dumps(("done", b"x" * 100))[:-20])
        monkeypatch.setattr(bench._child, "_answers", broken)
        os.kill(pid(bench), signal.SIGKILL)

    with opened() as bench:
        bench.run([])
        monkeypatch.setattr(_worker, "send", killing)
        with pytest.raises(Crashed, match="SIGKILL"):
            bench.run([])


def test_what_is_said_by_the_child_is_a_warning_when_it_matters(
    bench: IsolatedBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of the child's standard error, each once; nothing when the backend has no doubts."""
    monkeypatch.setattr(OnnxRuntimeCpu, "doubts", "^doubtful")
    with opened() as other:
        other._child._noise.write(b"doubtful: one\nfine\ndoubtful:   two\ndoubtful: one\n")
        other._child._noise.flush()
        assert other.warnings() == ("doubtful: one", "doubtful: two")
    assert other.warnings() == ()
    bench._child._noise.write(b"doubtful: one\n")
    bench._child._noise.flush()
    assert bench.warnings() == ()


def test_a_crash_is_said_and_the_end_of_the_bench() -> None:
    with opened() as bench:
        bench.add("a", whole(conv1d()), {"x": X})
        bench.add("b", whole(crashing_model()), {"x": np.ones((1, 16, 33, 33), np.float32)})
        bench.open(["a", "b"])
        with pytest.raises(Crashed, match="killed by SIGSEGV"):
            bench.run(["a", "b", "a"])
        assert gone(pid(bench))
        bench.shut()
        bench.shut()
        with pytest.raises(Crashed, match="closed"):
            bench.run(["a"])


def test_a_killed_child_is_a_crash() -> None:
    with opened() as bench:
        os.kill(pid(bench), signal.SIGKILL)
        with pytest.raises(Crashed, match="killed by SIGKILL"):
            bench.add("a", whole(conv1d()), {"x": X})


def test_a_stopwatch_shuts_what_crashed() -> None:
    """The crash comes through, whatever is cleared up after it."""
    with opened() as bench:
        bench.add("a", whole(conv1d()), {"x": X})
        bench.add("b", whole(crashing_model()), {"x": np.ones((1, 16, 33, 33), np.float32)})
        with pytest.raises(Crashed, match="SIGSEGV"):
            Stopwatch(bench).compare("a", "b", 1)


def test_a_stopwatch_on_a_real_bench(bench: IsolatedBench) -> None:
    bench.add("a", whole(conv1d()), {"x": X})
    bench.add("b", whole(conv1d(kernel=5)), {"x": X})
    found = Stopwatch(bench, deadline_s=0.0).compare("a", "b", 60)
    assert found.pairs == MIN_PAIRS == found.first.runs == found.second.runs
    assert 0 < found.low <= found.ratio <= found.high
    with pytest.raises(RuntimeError, match="KeyError"):
        bench.run(["a"])  # shut again


def test_a_run_that_takes_too_long_is_stopped() -> None:
    with opened() as bench:
        bench.add("a", whole(slow_model(10**9)), {"x": X})
        bench.open(["a"])
        bench._child.timeout_s = 0.5  # from here on: a busy machine may be late with what came before
        with pytest.raises(TimedOut, match=r"0\.5 s"):
            bench.run(["a"])
        assert gone(pid(bench))
        bench.shut()
        with pytest.raises(Crashed, match="closed"):
            bench.open(["a"])


def test_a_profile_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(TimedOut, match="1 s"):
        profiled(BACKEND, runnable(slow_model(10**9)), Options(threads=1, timeout_s=1), {"x": X}, 1)


def test_an_interrupted_run_leaves_no_child() -> None:
    with opened() as bench:
        bench.add("a", whole(slow_model(10**9)), {"x": X})
        bench.open(["a"])
        previous = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(KeyboardInterrupt):
                bench.run(["a"])
        finally:
            signal.signal(signal.SIGALRM, previous)
        assert gone(pid(bench))


def test_the_clocks_are_alike(bench: IsolatedBench) -> None:
    """What the child says that runs took is part of what the parent waited."""
    bench.add("a", whole(slow_model(2000)), {"x": X})
    bench.open(["a"])
    start = time.monotonic()
    seconds = bench.run(["a"] * 3)
    assert 0 < sum(seconds) <= time.monotonic() - start


class Foreign(OnnxRuntimeCpu):
    """One whose module the child does not find."""

    __slots__ = ()

    def __reduce__(self) -> Any:
        return importlib.import_module, ("dilrewrite.no_such_runtime",)


def test_a_backend_that_the_child_does_not_find() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in the worker process:.*ModuleNotFoundError"):
        IsolatedBench(Foreign(), OPTIONS)


# ---- profiles -----------------------------------------------------------------------------------------------------


def looping(count: int) -> ModelProto:
    """A dilated Conv after a Loop that runs a Conv `count` times."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"], name="on"), conv_node("v", "next", "w", name="inner")],
        "body",
        [info("i", TensorProto.INT64, []), info("going", TensorProto.BOOL, []), info("v", FLOAT, None)],
        [info("on", TensorProto.BOOL, []), info("next", FLOAT, None)],
    )
    return build(
        [
            helper.make_node("Loop", ["n", "", "x"], ["z"], name="loop", body=body),
            conv_node("z", "y", "w", name="outer", dilations=[4], pads=[4, 4]),
        ],
        {"x": [1, 2, 16]},
        {"y": None},
        {"w": values(2, 2, 3), "n": np.array(count, np.int64)},
    )


def profile(proto: ModelProto, runs: int, *, isolated: bool, feeds: Mapping[str, Any] | None = None) -> Profile:
    feeds = {"x": X} if feeds is None else feeds
    if isolated:
        return profiled(BACKEND, runnable(proto), OPTIONS, feeds, runs)
    return BACKEND.profile(runnable(proto), Options(threads=1), feeds, runs)


def counts(found: Profile) -> Counter[str]:
    return Counter(node.name for node in found.nodes)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files, for children too; and an empty working directory."""
    folder, work = tmp_path / "temporary", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.chdir(work)
    return folder


def left(folder: Path) -> list[str]:
    """What lies there, besides what ONNX Runtime itself writes whenever it is loaded."""
    return [path.name for path in folder.iterdir() if path.name != ".ses"]


BOTH = pytest.mark.parametrize("isolated", [False, True], ids=["in process", "isolated"])


@BOTH
def test_a_profile_names_nodes_and_shapes(isolated: bool, temporary: Path) -> None:
    found = profile(two_convs(), 3, isolated=isolated, feeds={"x": values(1, 2, 20)})
    assert found.runs == 3
    assert counts(found) == {"early": 3, "late": 3}, "Relu is fused, and the warm-up run is left out"
    early = next(node for node in found.nodes if node.name == "early")
    assert early.op in ("Conv", "FusedConv")
    assert early.inputs[:2] == ((1, 2, 20), (2, 2, 3)) or early.inputs == ((1, 2, 20),)
    assert early.outputs == ((1, 2, 20),)
    assert [node.name for node in found.nodes] == ["early", "late"] * 3
    assert all(node.seconds >= 0 for node in found.nodes)
    for number, seconds in enumerate(found.seconds):
        assert [node.name for node in found.nodes if node.run == number] == ["early", "late"]
        assert sum(node.seconds for node in found.nodes if node.run == number) <= seconds + 1e-5
    assert left(temporary) == []
    assert list(Path().iterdir()) == []


@BOTH
@pytest.mark.parametrize("runs", [0, 1, 2])
def test_nodes_of_a_loop_come_as_often_as_they_ran(isolated: bool, runs: int, temporary: Path) -> None:
    """`runs` 0: the one run that there is."""
    found = profile(looping(5), runs, isolated=isolated)
    runs = max(runs, 1)
    assert found.runs == runs
    assert counts(found)["inner"] == 5 * runs
    assert counts(found)["outer"] == runs
    assert counts(found)["loop"] == runs
    assert {node.inputs[0] for node in found.nodes if node.name == "inner"} == {(1, 2, 16)}
    assert left(temporary) == []


def test_a_loop_that_never_runs(temporary: Path) -> None:
    found = profile(looping(0), 2, isolated=False)
    assert counts(found)["inner"] == 0
    assert counts(found)["outer"] == 2
    assert left(temporary) == []


def test_shapes_are_those_of_the_inputs() -> None:
    proto = conv1d(length="length", batch="batch")
    for batch, length in ((1, 16), (3, 40)):
        (node,) = profile(proto, 1, isolated=False, feeds={"x": values(batch, 2, length)}).nodes
        assert isinstance(node, NodeRun)
        assert node.inputs[0] == (batch, 2, length) == node.outputs[0]


@BOTH
def test_what_cannot_be_profiled_leaves_nothing(isolated: bool, temporary: Path) -> None:
    with pytest.raises(CannotLoad, match="NOT_IMPLEMENTED"):
        profile(conv1d(dtype=np.float64, element=TensorProto.DOUBLE), 1, isolated=isolated)
    with pytest.raises(CannotRun, match="Got: 3 Expected: 2"):
        profile(conv1d(), 1, isolated=isolated, feeds={"x": values(1, 3, 16)})
    assert left(temporary) == []
    assert list(Path().iterdir()) == []


def test_a_profile_of_a_model_that_crashes(temporary: Path) -> None:
    """The child's own temporary folder is what it leaves, as it had no time to remove it."""
    with pytest.raises(Crashed, match="SIGSEGV"):
        profiled(BACKEND, runnable(crashing_model()), OPTIONS, {"x": np.ones((1, 16, 33, 33), np.float32)}, 1)
    assert len(left(temporary)) <= 1


# ---- which backends -----------------------------------------------------------------------------------------------


def test_backends_to_time_on() -> None:
    found = timed_backends()
    assert NAME in found
    assert "reference" not in found
    ranks = [backend.rank for backend in found.values()]
    assert ranks == sorted(ranks, reverse=True)
    asked = [rank for rank in ranks if rank >= 0]
    assert len(set(asked)) == len(asked)
    assert all(backend.name == name for name, backend in found.items())
    assert [backend.name for backend in found.values() if backend.rank >= 0][-1] == NAME, "the last resort"


def test_a_named_backend() -> None:
    assert timed_backend(NAME) is BACKEND


class Known(TimedBackend):
    """A backend that says whether it is ready."""

    def __init__(self, name: str, rank: int, missing: str | None) -> None:
        self.name = name
        self.rank = rank
        self._missing = missing

    def missing(self) -> str | None:
        return self._missing

    def conflict(self) -> str | None:
        return None


@pytest.mark.parametrize(
    ("missing", "wanted"),
    [([None, None, None], "best"), (["no", None, None], "middle"), (["no", "no", None], "last")],
)
def test_auto_is_the_best_that_is_ready(
    missing: list[str | None], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [Known("last", 0, missing[2]), Known("best", 9, missing[0]), Known("middle", 5, missing[1])]
    monkeypatch.setattr(backends, "backends", lambda: {known.name: known for known in made})
    assert list(timed_backends()) == ["best", "middle", "last"]
    assert timed_backend("auto").name == wanted


def test_auto_without_any_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how to install the one that runs everywhere."""
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match=r"onnxruntime_cpu: onnxruntime is not installed: pip install"):
        timed_backend("auto")
    with pytest.raises(MissingError, match="onnxruntime_cpu"):
        timed_backend(NAME)


def test_auto_takes_no_settings() -> None:
    with pytest.raises(UsageError, match=r"--backend auto:precision=f16: auto takes no settings; name one of "):
        timed_backend("auto:precision=f16")


def test_auto_here_is_ready() -> None:
    found: TimedBackend = timed_backend("auto")
    assert found.missing() is None


def test_backends_that_cannot_be_timed_on() -> None:
    with pytest.raises(UsageError, match=r"reference times nothing; choose one of auto, .*onnxruntime_cpu"):
        timed_backend("reference")
    with pytest.raises(UsageError, match=r"no backend 'tpu'; known are .*onnxruntime_cpu"):
        timed_backend("tpu")


def test_what_timings_depend_on() -> None:
    for options, threads, spinning in (
        (Options(), "default", "1"),
        (Options(threads=3), "3", "1"),
    ):
        settings = BACKEND.settings(options)
        assert settings["intra_op_num_threads"] == threads
        assert settings["session.intra_op.allow_spinning"] == spinning
        assert settings["session.force_spinning_stop"] == "1"
    assert "core" in BACKEND.device()


def test_spinning_sessions_run(bench: IsolatedBench) -> None:
    """With the settings that timings are taken with."""
    with opened(Options(threads=2, timeout_s=60)) as other:
        for key in ("a", "b"):
            other.add(key, whole(conv1d()), {"x": X})
        other.open(["a", "b"])
        assert len(other.run(["a", "b", "b", "a"])) == 4
    assert bench.run([]) == []
