"""Running an engine: what it answers, the order of what the GPU is asked for, and what is refused. On a fake GPU."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dilrewrite.errors import FailedError
from dilrewrite.runtimes import Array, CannotLoad, CannotRun, Io, TimeKind
from dilrewrite.tensorrt import cuda as torch_cuda
from dilrewrite.tensorrt import run
from dilrewrite.tensorrt.cuda import Cuda
from dilrewrite.tensorrt.run import MOST_SETS, Engine, RunOptions, TimedRun, layer_times, median_layer_times
from tests.tensorrt.fake_gpu import (
    FakeCuda,
    FakeDataType,
    FakeEngine,
    FakeKernelSpecialization,
    FakeModule,
    FakeRuntimeCache,
    FakeTensor,
)

X = np.arange(3, dtype=np.float32).reshape(1, 3)
FEEDS = {"x": X}
PLAIN = RunOptions(graph=False)

DYNAMIC = FakeTensor(name="x", shape=(1, -1), profile=((1, 2), (1, 3), (1, 4)))
DYNAMIC_Y = FakeTensor(name="y", shape=(1, -1))


def dynamic(**changes: Any) -> FakeEngine:
    return FakeEngine(inputs=(DYNAMIC,), outputs=(DYNAMIC_Y,), **changes)


def loaded(
    script: FakeEngine | None = None,
    options: RunOptions | None = None,
    *,
    cuda: FakeCuda | None = None,
    rtx: bool = False,
) -> tuple[Engine, FakeCuda]:
    cuda = cuda or FakeCuda()
    module = FakeModule(cuda, rtx=rtx)
    return Engine(module.fake_library(), cuda, module.fake_plan(script or FakeEngine()), options), cuda


# -- loading ----------------------------------------------------------------------------------------------------------


def test_an_engine_tells_its_inputs_and_outputs() -> None:
    script = FakeEngine(
        inputs=(DYNAMIC, FakeTensor(name="b", type=FakeDataType.BF16, shape=())),
        outputs=(DYNAMIC_Y, FakeTensor(name="n", type=FakeDataType.INT4)),
    )
    engine, _ = loaded(script)
    assert engine.inputs == (
        Io(name="x", element="float32", shape=(1, None)),
        Io(name="b", element="bfloat16", shape=()),
    )
    assert engine.outputs == (
        Io(name="y", element="float32", shape=(1, None)),
        Io(name="n", element="other:INT4", shape=(1, 3)),
    )


@pytest.mark.parametrize("rtx", [False, True])
def test_an_engine_of_another_flavour_is_refused_in_the_words_of_the_library(rtx: bool) -> None:
    cuda = FakeCuda()
    plan = FakeModule(cuda, rtx=not rtx).fake_plan(FakeEngine())
    library = FakeModule(cuda, rtx=rtx).fake_library()
    wanted = (
        f"^{library.flavour} {library.version} does not load the engine on Fake GPU: "
        "Serialization assertion failed: Version tag does not match; fake_runtime: the plan is of another world$"
    )
    for _ in range(2):
        with pytest.raises(CannotLoad, match=wanted):
            Engine(library, cuda, plan)


def test_what_the_library_said_before_is_no_reason() -> None:
    library = FakeModule(FakeCuda()).fake_library()
    library.log.handle.log(library.module.ILogger.ERROR, "of another engine")
    library.noise.append("of another engine")
    with pytest.raises(CannotLoad) as caught:
        Engine(library, FakeCuda(), b"")
    assert "of another engine" not in str(caught.value)


def test_a_library_that_does_not_start_is_no_traceback() -> None:
    cuda = FakeCuda()
    module = FakeModule(cuda, makes_runtime=False)
    with pytest.raises(CannotLoad, match="does not load the engine on Fake GPU: CUDA initialization failure"):
        Engine(module.fake_library(), cuda, module.fake_plan(FakeEngine()))


@pytest.mark.parametrize("rtx", [False, True])
def test_no_context_is_an_error(rtx: bool) -> None:
    with pytest.raises(CannotLoad, match="makes no execution context: Requested amount of GPU memory"):
        loaded(FakeEngine(makes_context=False), rtx=rtx)


def test_layers_are_those_of_the_inspector() -> None:
    engine, _ = loaded()
    assert [layer.name for layer in engine.layers().layers] == ["conv", "relu"]
    engine, _ = loaded(FakeEngine(inspected="{}"))
    with pytest.raises(FailedError, match="no layers"):
        engine.layers()


# -- one run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rtx", [False, True])
@pytest.mark.parametrize(
    ("element", "dtype"),
    [(FakeDataType.FLOAT, np.float32), (FakeDataType.HALF, np.float16), (FakeDataType.BF16, ml_dtypes.bfloat16)],
)
def test_a_run_returns_the_outputs(element: FakeDataType, dtype: Any, rtx: bool) -> None:
    tensors = [FakeTensor(name=name, type=element, shape=(2, 3)) for name in "xyz"]
    script = FakeEngine(
        inputs=(tensors[0],),
        outputs=(*tensors[1:], FakeTensor(name="n", shape=())),
        computes=lambda given: {"y": given["x"] * 2, "z": -given["x"], "n": given["x"].sum()},
    )
    x = np.arange(6).reshape(3, 2).astype(dtype).T
    engine, cuda = loaded(script, rtx=rtx)
    found = engine.run({"x": x, "further": X})
    assert list(found) == ["y", "z", "n"]
    for name, wanted in (("y", x * 2), ("z", -x), ("n", np.float32(15))):
        np.testing.assert_array_equal(found[name], wanted)
    assert (found["y"].dtype, found["n"].dtype, found["n"].shape) == (np.dtype(dtype), np.dtype(np.float32), ())
    assert cuda.alive_bytes() == 0


def test_a_run_waits_before_it_reads() -> None:
    engine, cuda = loaded()
    del cuda.calls[:]
    engine.run(FEEDS)
    bound = ["set_tensor_address"] * 2
    assert cuda.names() == ["stream", "upload", "empty", *bound, "execute", "synchronize_stream", "download"]


def test_sizes_are_set_and_those_of_the_outputs_follow() -> None:
    engine, cuda = loaded(dynamic())
    for size in (2, 4, 4, 3):
        x = np.ones((1, size), np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], 2 * x)
    assert cuda.the("set_input_shape") == [("x", (1, 2)), ("x", (1, 4)), ("x", (1, 3))]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (2, 3), (3,), (1, 1, 3), ()])
def test_sizes_outside_of_the_profile_are_refused(shape: tuple[int, ...]) -> None:
    engine, cuda = loaded(dynamic())
    wanted = f"input 'x' is {list(shape)}, and the engine's profile is [1, 2] to [1, 4]"
    for start in (engine.run, lambda feeds: TimedRun(engine, feeds), lambda feeds: layer_times(engine, feeds, 1)):
        with pytest.raises(CannotRun) as caught:
            start({"x": np.ones(shape, np.float32)})
        assert str(caught.value) == wanted
    assert not cuda.the("set_input_shape")


@pytest.mark.parametrize("shape", [(1, 4), (3,), ()])
def test_other_sizes_than_the_only_ones_are_refused(shape: tuple[int, ...]) -> None:
    engine, _ = loaded()
    with pytest.raises(CannotRun) as caught:
        engine.run({"x": np.ones(shape, np.float32)})
    assert str(caught.value) == f"input 'x' is {list(shape)}, and the engine was built for [1, 3]"


def test_what_the_library_refuses_is_an_error() -> None:
    with pytest.raises(CannotRun, match=r"^input 'x': tensorrt does not take the shape \[1, 3\]$"):
        loaded(dynamic(refuses_sizes=True))[0].run(FEEDS)
    for name in "xy":
        with pytest.raises(CannotRun, match=f"^tensorrt does not take the memory of '{name}'$"):
            loaded(FakeEngine(refuses_memory_of=name))[0].run(FEEDS)


@pytest.mark.parametrize("given", [np.float64, np.float16, np.int32, ml_dtypes.bfloat16])
def test_another_type_is_refused(given: Any) -> None:
    engine, cuda = loaded()
    with pytest.raises(CannotRun, match=rf"^input 'x' is {np.dtype(given).name}, and the engine wants float32$"):
        engine.run({"x": X.astype(given)})
    assert not cuda.runs


def test_a_missing_input_is_refused() -> None:
    script = FakeEngine(inputs=(FakeTensor(name="x"), FakeTensor(name="z")))
    with pytest.raises(CannotRun, match=r"^input 'z' is not given$"):
        loaded(script)[0].run(FEEDS)


UNSUPPORTED = {
    "output-depends-on-data": (FakeTensor(name="y", shape=(-1,), depends_on_data=True), "sizes that depend on data"),
    "output-on-host": (FakeTensor(name="y", type=FakeDataType.INT64, on_host=True), "output 'y' holds sizes"),
    "output-type": (FakeTensor(name="y", type=FakeDataType.INT4), "'y' is of type other:INT4"),
    "input-on-host": (FakeTensor(name="x", on_host=True), "input 'x' holds sizes"),
    "input-type": (FakeTensor(name="x", type=FakeDataType.INT4), "'x' is of type other:INT4"),
}


@pytest.mark.parametrize(("tensor", "words"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_is_not_supported_is_refused_in_one_line(tensor: FakeTensor, words: str) -> None:
    script = FakeEngine(inputs=(tensor,)) if tensor.name == "x" else FakeEngine(outputs=(tensor,))
    engine, cuda = loaded(script)
    for start in (engine.run, lambda feeds: TimedRun(engine, feeds), lambda feeds: layer_times(engine, feeds, 1)):
        with pytest.raises(CannotRun, match=words):
            start(FEEDS)
    assert not cuda.runs


def test_a_run_that_is_not_queued_is_an_error() -> None:
    engine, cuda = loaded(FakeEngine(fails={0}))
    with pytest.raises(CannotRun, match=r"^tensorrt does not run the engine: Cask convolution execution: out of"):
        engine.run(FEEDS)
    assert cuda.names()[-1] == "execute"
    np.testing.assert_array_equal(engine.run(FEEDS)["y"], 2 * X)


@pytest.mark.parametrize("memory_bytes", [X.nbytes - 1, 2 * X.nbytes - 1])
def test_too_little_memory_is_an_error(memory_bytes: int) -> None:
    engine, cuda = loaded(cuda=FakeCuda(memory_bytes=memory_bytes))
    for start in (engine.run, lambda feeds: TimedRun(engine, feeds)):
        with pytest.raises(CannotRun, match="out of memory"):
            start(FEEDS)
    assert cuda.alive_bytes() == 0


# -- timing -----------------------------------------------------------------------------------------------------------

TIMED = ["record", "execute", "record", "synchronize_event", "seconds_since"]
REPLAYED = ["record", "replay", "record", "synchronize_event", "seconds_since"]


def since(cuda: FakeCuda, count: int) -> list[str]:
    return [name for name in cuda.names()[count:] if name != "set_tensor_address"]


def test_a_timed_run_returns_the_seconds_of_the_gpu() -> None:
    engine, _ = loaded(FakeEngine(seconds=[9.0, 0.5, 0.25, 0.125]))
    timed = TimedRun(engine, FEEDS)
    assert [timed.run() for _ in range(3)] == [0.5, 0.25, 0.125]


@pytest.mark.parametrize(("options", "wanted"), [(PLAIN, TIMED), (RunOptions(), REPLAYED)], ids=["plain", "graph"])
@pytest.mark.parametrize("script", [FakeEngine, dynamic], ids=["fixed", "dynamic"])
def test_only_the_work_is_between_the_events(
    options: RunOptions, wanted: list[str], script: Callable[[], FakeEngine]
) -> None:
    engine, cuda = loaded(script(), options)
    timed = TimedRun(engine, FEEDS)
    assert "record" not in cuda.names(), "inputs are on the GPU, and a first run is done, before anything is timed"
    assert cuda.names().index("upload") < cuda.names().index("execute") < cuda.names().index("synchronize_stream")
    for _ in range(3):
        before = len(cuda.calls)
        timed.run()
        assert since(cuda, before) == wanted
        records = cuda.names().index("record", before)
        assert cuda.names()[records : records + 3] == wanted[:3], "what binds memory is before the first event"


def test_start_and_end_are_two_events_on_the_stream_of_the_run() -> None:
    engine, cuda = loaded()
    TimedRun(engine, FEEDS).run()
    (start, handle), (end, same) = cuda.the("record")
    assert (start != end, handle) == (True, same)
    assert {handle} == {stream for (stream,) in cuda.the("execute")} == {stream for _, stream in cuda.the("replay")}
    assert cuda.the("seconds_since") == [(end, start)]


def test_outputs_stay_where_they_are() -> None:
    engine, cuda = loaded()
    timed = TimedRun(engine, FEEDS)
    timed.run()
    assert not cuda.the("download")
    assert len({addresses["y"] for addresses in cuda.runs}) == 1
    timed.close()
    assert cuda.alive_bytes() == 0


def test_a_timed_run_that_is_not_queued_is_an_error() -> None:
    with pytest.raises(CannotRun, match="does not run the engine: Cask convolution"):
        TimedRun(loaded(FakeEngine(fails={0}))[0], FEEDS)
    engine, cuda = loaded(FakeEngine(fails={2}), PLAIN)
    timed = TimedRun(engine, FEEDS)
    timed.run()
    with pytest.raises(CannotRun, match="does not run the engine: Cask convolution"):
        timed.run()
    assert len(cuda.the("seconds_since")) == 1


# -- CUDA graphs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rtx", [False, True])
def test_a_graph_is_captured_for_each_set_of_inputs_after_a_first_run(rtx: bool) -> None:
    engine, cuda = loaded(cuda=FakeCuda(l2_bytes=2 * X.nbytes), rtx=rtx)
    timed = TimedRun(engine, FEEDS)
    assert timed.captured
    assert [handle for _, handle in cuda.the("capture")] == [0x1001] * 4
    assert cuda.names().index("execute") < cuda.names().index("synchronize_stream") < cuda.names().index("capture")
    assert len(cuda.runs) == 1
    for _ in range(5):
        timed.run()
    assert [graph for graph, _ in cuda.the("replay")] == [0, 1, 2, 3, 0]
    assert len(cuda.the("execute")) == 1 + 4, "a graph is replayed without the library"


def test_without_a_graph_nothing_is_captured() -> None:
    engine, cuda = loaded(options=PLAIN)
    assert not TimedRun(engine, FEEDS).captured
    assert not cuda.the("capture")


@pytest.mark.parametrize("captures", [0, 1])
def test_what_cannot_be_captured_runs_without_a_graph(captures: int) -> None:
    engine, cuda = loaded(FakeEngine(seconds=[9.0, 0.5, 0.25]), cuda=FakeCuda(captures=captures))
    timed = TimedRun(engine, FEEDS)
    assert not timed.captured
    assert [timed.run(), timed.run()] == [0.5, 0.25]
    assert not cuda.the("replay")
    assert len({addresses["x"] for addresses in cuda.runs[1:]}) == 2


def test_a_run_that_fails_in_the_capture_only_runs_without_a_graph() -> None:
    engine, cuda = loaded(FakeEngine(fails={2}))
    timed = TimedRun(engine, FEEDS)
    assert not timed.captured
    timed.run()
    assert [name for name in cuda.names() if name in ("capture", "replay")] == ["capture"] * 2


def test_what_the_library_says_cannot_be_captured_is_not() -> None:
    engine, cuda = loaded(FakeEngine(capturable=False), rtx=True)
    timed = TimedRun(engine, FEEDS)
    assert not timed.captured
    timed.run()
    assert not cuda.the("capture")
    assert cuda.the("is_stream_capturable") == [(0x1001,)]


# -- buffers that take turns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [PLAIN, RunOptions()], ids=["plain", "graph"])
@pytest.mark.parametrize(
    ("l2_bytes", "sets"),
    [
        (0, 2),
        (X.nbytes, 2),
        (X.nbytes + 1, 3),
        (3 * X.nbytes, 6),
        (8 * X.nbytes, MOST_SETS),
        (1 << 20, MOST_SETS),
    ],
)
def test_sets_of_inputs_take_turns(options: RunOptions, l2_bytes: int, sets: int) -> None:
    engine, cuda = loaded(options=options, cuda=FakeCuda(l2_bytes=l2_bytes))
    timed = TimedRun(engine, FEEDS)
    for _ in range(2 * sets):
        timed.run()
    read = [addresses["x"] for addresses in cuda.runs[1:]]
    assert len(cuda.the("upload")) == len(set(read)) == sets
    assert read == read[:sets] * 2
    assert all(first != second for first, second in itertools.pairwise(read))


def test_an_input_without_elements_can_be_timed() -> None:
    script = FakeEngine(
        inputs=(FakeTensor(name="x", shape=(0, 3)),), outputs=(FakeTensor(name="y"),), computes=lambda _: {"y": X}
    )
    engine, cuda = loaded(script, cuda=FakeCuda(l2_bytes=4))
    assert TimedRun(engine, {"x": np.zeros((0, 3), np.float32)}).run() == 1e-3
    assert len(cuda.the("upload")) == 8


# -- others on the same engine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [PLAIN, RunOptions()], ids=["plain", "graph"])
def test_other_runs_of_the_engine_do_not_get_into_a_timed_one(options: RunOptions) -> None:
    """The memory of `Engine.run` is freed when it returns, and it sets other sizes."""
    engine, cuda = loaded(dynamic(), options)
    timed = TimedRun(engine, FEEDS)
    timed.run()
    output = cuda.runs[-1]["y"]
    large = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(engine.run({"x": large})["y"], 2 * large)
    second = TimedRun(engine, {"x": large})
    for _ in range(3):
        timed.run()
        assert cuda.runs[-1]["y"] == output
        second.run()
        assert cuda.runs[-1]["y"] != output


# -- first runs -------------------------------------------------------------------------------------------------------


def test_the_first_run_counts_its_compiling_and_the_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(run, "time", SimpleNamespace(perf_counter=lambda: cuda.now_s))
    options = RunOptions(runtime_cache=tmp_path / "runtime.cache")
    script = FakeEngine(seconds=0.5, compile_s=8.0)
    engine, _ = loaded(script, options, cuda=cuda, rtx=True)
    engine.load_s = 0.25
    assert TimedRun(engine, FEEDS).first_s == 8.75
    compiled = engine.runtime_cache()
    assert compiled is not None
    (tmp_path / "runtime.cache").write_bytes(compiled)
    again, _ = loaded(script, options, cuda=cuda, rtx=True)
    assert TimedRun(again, FEEDS).first_s == 0.5


# -- TensorRT for RTX -------------------------------------------------------------------------------------------------


def test_rtx_compiles_each_shape_and_ahead() -> None:
    _, cuda = loaded(rtx=True)
    assert cuda.the("create_execution_context") == [(FakeKernelSpecialization.EAGER,)]


def test_the_others_get_no_configuration() -> None:
    _, cuda = loaded()
    assert cuda.the("create_execution_context") == [()]


def test_the_runtime_cache_is_read_and_returned(tmp_path: Path) -> None:
    place = tmp_path / "runtime.cache"
    options = RunOptions(runtime_cache=place)
    place.write_bytes(FakeRuntimeCache.MAGIC + b"of before,")
    engine, _ = loaded(options=options, rtx=True)
    assert engine.runtime_cache() == place.read_bytes()
    engine.run(FEEDS)
    grown = engine.runtime_cache()
    assert grown is not None
    assert grown.startswith(place.read_bytes())
    assert len(grown) > len(place.read_bytes())


@pytest.mark.parametrize("content", [None, b"of another GPU"], ids=["none", "another"])
def test_a_runtime_cache_that_cannot_be_used_is_none(content: bytes | None, tmp_path: Path) -> None:
    place = tmp_path / "runtime.cache"
    if content is not None:
        place.write_bytes(content)
    engine, _ = loaded(options=RunOptions(runtime_cache=place), rtx=True)
    assert engine.runtime_cache() == FakeRuntimeCache.MAGIC


def test_there_is_no_runtime_cache_where_none_is_wanted_or_known(tmp_path: Path) -> None:
    assert loaded(rtx=True)[0].runtime_cache() is None
    assert loaded(options=RunOptions(runtime_cache=tmp_path / "runtime.cache"))[0].runtime_cache() is None


# -- times of layers --------------------------------------------------------------------------------------------------


def test_layer_times_are_of_each_run_but_the_first() -> None:
    engine, cuda = loaded(FakeEngine(layers=lambda number: (("conv", 1.0 + number), ("relu", 0.5))), rtx=True)
    assert layer_times(engine, FEEDS, 2) == [("conv", 1e-3), ("relu", 0.5e-3), ("conv", 2e-3), ("relu", 0.5e-3)]
    order = [name for name in cuda.names() if name in ("execute", "profiler", "synchronize_stream")]
    assert order == ["execute", "synchronize_stream", "profiler", *["execute", "synchronize_stream"] * 2]
    assert len(cuda.the("report_to_profiler")) == 2, "it reports when it is asked to, not while it runs"
    assert not cuda.the("capture")


def test_layer_times_with_dynamic_sizes() -> None:
    engine, _ = loaded(dynamic())
    assert len(layer_times(engine, {"x": np.ones((1, 4), np.float32)}, 3)) == 6


@pytest.mark.parametrize("options", [PLAIN, RunOptions()], ids=["plain", "graph"])
@pytest.mark.parametrize("rtx", [False, True])
def test_the_profiler_stays_out_of_timings(options: RunOptions, rtx: bool, tmp_path: Path) -> None:
    """A context keeps its profiler, as TensorRT does, and the fake tells no time of a run with one."""
    place = tmp_path / "runtime.cache"
    engine, cuda = loaded(dynamic(), RunOptions(graph=options.graph, runtime_cache=place), rtx=rtx)
    timed = TimedRun(engine, FEEDS)
    compiled = engine.runtime_cache()
    layer_times(engine, {"x": np.ones((1, 4), np.float32)}, 2)
    assert timed.run() == TimedRun(engine, FEEDS).run() == 1e-3
    assert len(cuda.the("create_execution_context")) == 2
    assert len(set(cuda.the("create_execution_context"))) == 1
    now = engine.runtime_cache()
    assert (now is None) == (compiled is None) == (not rtx)
    assert now is None or compiled is None or len(now) > len(compiled), "both contexts compile into one cache"


def test_a_profiler_that_is_told_nothing_is_an_error() -> None:
    engine, _ = loaded(FakeEngine(reports_layers=False))
    with pytest.raises(FailedError, match="tensorrt reports no layer times: Profiler: nothing to report"):
        layer_times(engine, FEEDS, 1)


def test_layer_times_of_a_run_that_is_not_queued_are_an_error() -> None:
    for fails in (0, 2):
        engine, _ = loaded(FakeEngine(fails={fails}))
        with pytest.raises(CannotRun, match="does not run the engine"):
            layer_times(engine, FEEDS, 5)


def test_median_layer_times() -> None:
    times = [("b", 1.0), ("a", 3.0), ("b", 9.0), ("a", 3.5), ("b", 2.0)]
    assert list(median_layer_times(times).items()) == [("b", 2.0), ("a", 3.25)]
    assert median_layer_times([]) == {}


# -- torch ------------------------------------------------------------------------------------------------------------


def test_only_torch_measures() -> None:
    assert object.__new__(Cuda).source is TimeKind.MEASURED is not FakeCuda().source


def test_without_a_gpu_something_is_missing() -> None:
    """For real: here there is no driver or no GPU, or this says nothing."""
    why = torch_cuda.missing()
    if why is None:
        pytest.skip("there is a GPU")
    assert why
    assert "\n" not in why


def test_a_torch_without_cuda_is_refused_in_one_line() -> None:
    """For real: with torch as it is installed here."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("torch reaches a GPU")
    with pytest.raises(CannotRun) as caught:
        Cuda()
    assert str(caught.value) == "torch is installed without CUDA, or does not reach the GPU"


class FakeOutOfMemoryError(RuntimeError):
    """Stands for torch.cuda.OutOfMemoryError."""


@dataclass
class FakeTorch:
    """Stands for a torch that reaches a GPU: its tensors are those of the real one, and stay on the CPU."""

    real: Any
    memory_bytes: int = 1 << 20
    captures: bool = True
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.uint8 = self.real.uint8
        self.cuda = SimpleNamespace(
            is_available=lambda: True,
            device_count=lambda: 1,
            set_device=lambda index: self.calls.append(f"set_device {index}"),
            synchronize=lambda index: self.calls.append(f"synchronize {index}"),
            OutOfMemoryError=FakeOutOfMemoryError,
            CUDAGraph=lambda: SimpleNamespace(replay=lambda: self.calls.append("replay")),
            Stream=lambda _: SimpleNamespace(cuda_stream=77, synchronize=lambda: self.calls.append("wait")),
            Event=self.event,
            graph=self.entered("capture"),
            stream=self.entered("stream"),
            get_device_properties=lambda _: SimpleNamespace(
                name="Fake GPU", major=9, minor=0, L2_cache_size=5, total_memory=self.memory_bytes
            ),
        )

    def event(self, enable_timing: bool) -> Any:
        assert enable_timing
        return SimpleNamespace(elapsed_time=lambda end: 250.0 if end is not None else None)

    def entered(self, what: str) -> Callable[..., Any]:
        calls, captures = self.calls, self.captures

        class Entered:
            def __init__(self, *given: Any, stream: Any = None) -> None:
                calls.append(f"{what} on {(stream or given[0]).cuda_stream}")

            def __enter__(self) -> None:
                pass

            def __exit__(self, *_: object) -> None:
                if what == "capture" and not captures:
                    raise RuntimeError("CUDA error: operation not permitted\nwhen stream is capturing")

        return Entered

    def _allocate(self, tensor: Any, device: str) -> Any:
        assert device == "cuda:0"
        if tensor.nbytes > self.memory_bytes:
            raise FakeOutOfMemoryError("CUDA out of memory.\nTried to allocate")
        return tensor

    def from_numpy(self, values: Array) -> Any:
        return SimpleNamespace(to=lambda device: self._allocate(self.real.from_numpy(values), device))

    def empty(self, nbytes: int, *, dtype: Any, device: str) -> Any:
        return self._allocate(self.real.empty(nbytes, dtype=dtype), device)


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> FakeTorch:
    fake = FakeTorch(pytest.importorskip("torch"))
    monkeypatch.setitem(sys.modules, "torch", fake)
    return fake


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.bool_, np.int64])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3)])
def test_what_torch_uploads_comes_back(torch: FakeTorch, dtype: Any, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, 9, shape[::-1]).astype(dtype).T
    values.flags.writeable = False
    cuda = Cuda()
    buffer = cuda.upload(values)
    assert buffer.nbytes == values.nbytes
    assert torch.calls == ["set_device 0", "synchronize 0"], "it waits for the copy"
    here = np.zeros(shape, dtype)
    cuda.download(buffer, here)
    np.testing.assert_array_equal(here, values)


@pytest.mark.usefixtures("torch")
def test_torch_has_no_such_gpu() -> None:
    with pytest.raises(CannotRun, match=r"^there is no GPU 1: torch sees 1$"):
        Cuda(1)


def test_torch_out_of_memory_is_one_line(torch: FakeTorch) -> None:
    torch.memory_bytes = 8
    cuda = Cuda()
    for asks in (lambda: cuda.upload(X), lambda: cuda.empty(9)):
        with pytest.raises(CannotRun, match=r"^the GPU is out of memory: CUDA out of memory\. Tried to allocate$"):
            asks()
    assert cuda.empty(0).nbytes == 0


def test_torch_captures_and_replays_on_the_stream(torch: FakeTorch) -> None:
    cuda = Cuda()
    stream = cuda.stream()
    assert stream.cuda_stream == 77
    cuda.replay(cuda.capture(stream, lambda: torch.calls.append("work")), stream)
    assert torch.calls[1:] == ["capture on 77", "work", "stream on 77", "replay"]


def test_a_capture_that_torch_ends_is_one_line(torch: FakeTorch) -> None:
    torch.captures = False
    torch.__post_init__()
    cuda = Cuda()
    wanted = "^no CUDA graph: CUDA error: operation not permitted when stream is capturing$"

    def refuses() -> None:
        raise CannotRun("the library's own words")

    for work in (lambda: None, refuses):
        with pytest.raises(CannotRun, match=wanted):
            cuda.capture(cuda.stream(), work)


@pytest.mark.usefixtures("torch")
def test_torch_tells_time_and_the_device() -> None:
    cuda = Cuda()
    assert cuda.event().elapsed_time(cuda.event()) == 250.0
    assert (cuda.name, cuda.l2_bytes) == ("Fake GPU", 5)


# -- a driver, without a GPU ------------------------------------------------------------------------------------------


def test_torch_is_missing_where_all_else_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_cuda, "gpu", lambda: ("Fake GPU", (13, 0)))
    looks: Mapping[str, Any] = {"torch": None}
    monkeypatch.setattr(importlib.util, "find_spec", looks.get)
    assert torch_cuda.missing() == "torch, which reaches the GPU, is not installed: pip install torch"
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: SimpleNamespace())
    assert torch_cuda.missing() is None
