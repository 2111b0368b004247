"""The fake GPU itself: a wrong runner fails, each for what is wrong with it, and a right one does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dilrewrite.runtimes import CannotRun, TimeKind
from dilrewrite.tensorrt import cuda as interfaces
from tests.tensorrt import fake_gpu
from tests.tensorrt.fake_gpu import (
    FakeCuda,
    FakeDataType,
    FakeEngine,
    FakeExecutionContext,
    FakeIProfiler,
    FakeMisuse,
    FakeModule,
    FakeTensor,
)

X = np.arange(3, dtype=np.float32).reshape(1, 3)
RECORDED = json.loads((Path(__file__).parent / "trt_bindings.json").read_text())


class Bound:
    """A fake engine with a context whose inputs and outputs have memory: what a runner starts from."""

    def __init__(self, script: FakeEngine | None = None, cuda: FakeCuda | None = None) -> None:
        self.cuda = cuda or FakeCuda()
        self.script = script or FakeEngine()
        module = FakeModule(self.cuda)
        runtime = module.Runtime(module.fake_library().log.handle)
        engine = runtime.deserialize_cuda_engine(module.fake_plan(self.script))
        assert engine is not None
        context = engine.create_execution_context()
        assert context is not None
        self.context: FakeExecutionContext = context
        self.stream = self.cuda.stream()
        self.start, self.end = self.cuda.event(), self.cuda.event()
        self.memory = {"x": self.cuda.upload(X), "y": self.cuda.empty(X.nbytes)}
        for name, buffer in self.memory.items():
            self.context.set_tensor_address(name, buffer.address)

    def execute(self) -> bool:
        return self.context.execute_async_v3(self.stream.cuda_stream)

    def queue(self) -> None:
        self.execute()

    def warm(self) -> None:
        self.execute()
        self.stream.synchronize()


# -- the right way ----------------------------------------------------------------------------------------------------


def test_a_right_runner_is_told_the_scripted_seconds() -> None:
    bound = Bound(FakeEngine(seconds=[5.0, 0.25, 0.5]))
    bound.warm()
    found = []
    for _ in range(3):
        bound.start.record(bound.stream)
        assert bound.execute()
        bound.end.record(bound.stream)
        bound.end.synchronize()
        found.append(bound.end.seconds_since(bound.start))
    assert found == [0.25, 0.5, 0.5]
    assert bound.cuda.now_s == 6.25
    here = np.zeros_like(X)
    bound.cuda.download(bound.memory["y"], here)
    np.testing.assert_array_equal(here, 2 * X)


def test_a_right_runner_replays_a_graph() -> None:
    bound = Bound(FakeEngine(seconds=float))
    bound.warm()
    graph = bound.cuda.capture(bound.stream, bound.queue)
    assert len(bound.cuda.runs) == 1, "nothing runs while it is captured"
    for number in (1, 2):
        bound.start.record(bound.stream)
        graph.replay(bound.stream)
        bound.end.record(bound.stream)
        bound.stream.synchronize()
        assert bound.end.seconds_since(bound.start) == number


def test_waiting_for_the_first_event_does_not_finish_what_is_behind_it() -> None:
    bound = Bound(FakeEngine(seconds=[1.0, 10.0]))
    bound.execute()
    bound.start.record(bound.stream)
    bound.execute()
    bound.start.synchronize()
    assert bound.cuda.now_s == 1
    bound.stream.synchronize()
    assert bound.cuda.now_s == 11


def test_it_never_passes_for_a_measurement() -> None:
    assert FakeCuda().source is TimeKind.ESTIMATED
    assert "Fake" in FakeCuda().name


# -- wrong runners ----------------------------------------------------------------------------------------------------


def reads_the_end_before_it_waits(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.execute()
    bound.end.record(bound.stream)
    bound.end.seconds_since(bound.start)


def reads_the_end_of_the_run_before(bound: Bound) -> None:
    for waits in (True, False):
        bound.start.record(bound.stream)
        bound.execute()
        bound.end.record(bound.stream)
        if waits:
            bound.end.synchronize()
        bound.end.seconds_since(bound.start)


def waits_for_the_wrong_event(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.execute()
    bound.end.record(bound.stream)
    bound.start.synchronize()
    bound.end.seconds_since(bound.start)


def never_records_the_start(bound: Bound) -> None:
    bound.execute()
    bound.end.record(bound.stream)
    bound.end.synchronize()
    bound.end.seconds_since(bound.start)


def waits_for_an_event_that_is_not_recorded(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.execute()
    bound.end.synchronize()


def times_the_copy_to_the_gpu(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.memory["x"] = bound.cuda.upload(X)
    bound.context.set_tensor_address("x", bound.memory["x"].address)
    bound.execute()
    bound.end.record(bound.stream)
    bound.end.synchronize()
    bound.end.seconds_since(bound.start)


def times_the_copy_from_the_gpu(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.execute()
    bound.stream.synchronize()
    bound.cuda.download(bound.memory["y"], np.zeros_like(X))
    bound.end.record(bound.stream)
    bound.end.synchronize()
    bound.end.seconds_since(bound.start)


def times_an_allocation(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.memory["y"] = bound.cuda.empty(X.nbytes)
    bound.context.set_tensor_address("y", bound.memory["y"].address)
    bound.execute()
    bound.end.record(bound.stream)
    bound.end.synchronize()
    bound.end.seconds_since(bound.start)


def times_nothing(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.end.record(bound.stream)
    bound.execute()
    bound.stream.synchronize()
    bound.end.seconds_since(bound.start)


def times_backwards(bound: Bound) -> None:
    bound.end.record(bound.stream)
    bound.execute()
    bound.start.record(bound.stream)
    bound.stream.synchronize()
    bound.end.seconds_since(bound.start)


def times_across_streams(bound: Bound) -> None:
    bound.start.record(bound.cuda.stream())
    bound.execute()
    bound.end.record(bound.stream)
    bound.end.synchronize()
    bound.end.seconds_since(bound.start)


def times_with_a_profiler(bound: Bound) -> None:
    class Profiler(FakeIProfiler):
        def report_layer_time(self, name: str, milliseconds: float) -> None:
            pass

    bound.context.profiler = Profiler()
    bound.warm()
    bound.context.profiler = None
    bound.start.record(bound.stream)
    bound.execute()
    bound.end.record(bound.stream)
    bound.end.synchronize()
    bound.end.seconds_since(bound.start)


def captures_on_the_default_stream(bound: Bound) -> None:
    bound.warm()
    bound.cuda.capture(bound.cuda.default_stream, lambda: None)


def runs_on_the_default_stream(bound: Bound) -> None:
    bound.context.execute_async_v3(0)


def runs_on_no_stream(bound: Bound) -> None:
    bound.context.execute_async_v3(7)


def replays_on_the_default_stream(bound: Bound) -> None:
    bound.warm()
    bound.cuda.capture(bound.stream, bound.queue).replay(bound.cuda.default_stream)


def captures_the_first_run(bound: Bound) -> None:
    bound.cuda.capture(bound.stream, bound.queue)


def captures_nothing(bound: Bound) -> None:
    bound.cuda.capture(bound.stream, lambda: None)


def captures_another_stream(bound: Bound) -> None:
    bound.warm()
    captured, bound.stream = bound.stream, bound.cuda.stream()
    bound.cuda.capture(captured, bound.queue)


def copies_inside_a_capture(bound: Bound) -> None:
    def work() -> None:
        bound.memory["x"] = bound.cuda.upload(X)

    bound.cuda.capture(bound.stream, work)


def waits_inside_a_capture(bound: Bound) -> None:
    bound.warm()
    bound.cuda.capture(bound.stream, bound.warm)


def replays_what_was_freed(bound: Bound) -> None:
    bound.warm()
    graph = bound.cuda.capture(bound.stream, bound.queue)
    del bound.memory["x"]
    graph.replay(bound.stream)


def frees_what_the_gpu_reads(bound: Bound) -> None:
    bound.execute()
    del bound.memory["x"]
    bound.stream.synchronize()


def runs_with_what_was_freed(bound: Bound) -> None:
    bound.warm()
    del bound.memory["y"]
    bound.execute()


def binds_what_was_freed(bound: Bound) -> None:
    bound.context.set_tensor_address("x", bound.cuda.upload(X).address)


def reads_the_output_before_it_waits(bound: Bound) -> None:
    bound.execute()
    bound.cuda.download(bound.memory["y"], np.zeros_like(X))


def binds_too_little_memory(bound: Bound) -> None:
    bound.memory["y"] = bound.cuda.empty(X.nbytes - 1)
    bound.context.set_tensor_address("y", bound.memory["y"].address)
    bound.execute()


WRONG: dict[Callable[[Bound], None], str] = {
    reads_the_end_before_it_waits: "read before it was waited for",
    reads_the_end_of_the_run_before: "read before it was waited for",
    waits_for_the_wrong_event: "read before it was waited for",
    never_records_the_start: "never recorded",
    waits_for_an_event_that_is_not_recorded: "never recorded",
    times_the_copy_to_the_gpu: "between the two events of a time there is: upload",
    times_the_copy_from_the_gpu: "between the two events of a time there is: download",
    times_an_allocation: "between the two events of a time there is: empty",
    times_nothing: "there is no work",
    times_backwards: "not one after the other",
    times_across_streams: "not one after the other in one stream",
    times_with_a_profiler: "what is timed runs with a profiler",
    captures_on_the_default_stream: "a graph is captured on the default stream",
    runs_on_the_default_stream: "a run is queued on the default stream",
    runs_on_no_stream: "which is no stream",
    replays_on_the_default_stream: "a graph is replayed on the default stream",
    captures_the_first_run: "the first run with these sizes is captured",
    captures_nothing: "a graph is empty",
    captures_another_stream: "on another stream while a graph is captured",
    copies_inside_a_capture: "a copy while a graph is captured",
    waits_inside_a_capture: "waiting for a stream while a graph is captured",
    replays_what_was_freed: "'x' was freed",
    frees_what_the_gpu_reads: "'x' was freed",
    runs_with_what_was_freed: "'y' that was freed",
    binds_what_was_freed: "there is no memory",
    reads_the_output_before_it_waits: "before the run that writes it was waited for",
    binds_too_little_memory: "'y' that is too small: 11 bytes",
}


@pytest.mark.parametrize(("runner", "words"), WRONG.items(), ids=[runner.__name__ for runner in WRONG])
def test_a_wrong_runner_fails(runner: Callable[[Bound], None], words: str) -> None:
    with pytest.raises(FakeMisuse, match=words):
        runner(Bound())


# -- runners that ignore False ----------------------------------------------------------------------------------------


def goes_on_to_wait(bound: Bound) -> None:
    bound.execute()
    bound.stream.synchronize()


def goes_on_to_the_end_event(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.execute()
    bound.end.record(bound.stream)


def goes_on_to_read_an_event_of_before(bound: Bound) -> None:
    bound.start.record(bound.stream)
    bound.end.record(bound.stream)
    bound.end.synchronize()
    bound.execute()
    bound.end.seconds_since(bound.start)


def goes_on_to_the_next_run(bound: Bound) -> None:
    bound.execute()
    bound.execute()


def captures_it(bound: Bound) -> None:
    bound.cuda.capture(bound.stream, bound.queue)


@pytest.mark.parametrize(
    "runner",
    [
        goes_on_to_wait,
        goes_on_to_the_end_event,
        goes_on_to_read_an_event_of_before,
        goes_on_to_the_next_run,
        captures_it,
    ],
)
def test_a_runner_that_ignores_false_fails(runner: Callable[[Bound], None]) -> None:
    with pytest.raises(FakeMisuse, match="False was ignored"):
        runner(Bound(FakeEngine(fails={0})))


def test_a_runner_that_heeds_false_in_a_capture_does_not_fail() -> None:
    bound = Bound(FakeEngine(fails={1}))
    bound.warm()

    def work() -> None:
        if not bound.execute():
            raise CannotRun("not queued")

    with pytest.raises(CannotRun, match="not queued"):
        bound.cuda.capture(bound.stream, work)
    bound.warm()


# -- tensors ----------------------------------------------------------------------------------------------------------

DYNAMIC = FakeTensor(name="x", shape=(1, -1), profile=((1, 1), (1, 3), (1, 4)))


def test_a_run_before_the_sizes_are_set_fails() -> None:
    bound = Bound(FakeEngine(inputs=(DYNAMIC,), outputs=(FakeTensor(name="y", shape=(1, -1)),)))
    with pytest.raises(FakeMisuse, match="before the sizes of 'x' are set"):
        bound.execute()
    assert not bound.context.set_input_shape("x", (1, 5))
    assert bound.context.set_input_shape("x", (1, 3))
    assert bound.context.get_tensor_shape("y") == [1, 3]
    assert bound.execute()


def test_a_run_before_all_have_memory_fails() -> None:
    bound = Bound(FakeEngine(outputs=(FakeTensor(name="y"), FakeTensor(name="z"))))
    with pytest.raises(FakeMisuse, match="before 'z' has memory"):
        bound.execute()


def test_memory_of_the_gpu_for_what_lies_on_the_host_fails() -> None:
    with pytest.raises(FakeMisuse, match="'y' lies on the host"):
        Bound(FakeEngine(outputs=(FakeTensor(name="y", type=FakeDataType.INT64, on_host=True),)))


def test_memory_is_counted_and_freed() -> None:
    cuda = FakeCuda(memory_bytes=20)
    kept = cuda.upload(X)
    with pytest.raises(CannotRun, match="out of memory"):
        cuda.empty(9)
    assert cuda.alive_bytes() == kept.nbytes == 12
    del kept
    assert cuda.empty(20).nbytes == 20


def test_a_logger_whose_base_was_not_made_fails() -> None:
    class Logger(FakeModule(FakeCuda()).ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            pass

    with pytest.raises(FakeMisuse, match="__init__ was called"):
        FakeModule(FakeCuda()).Runtime(Logger())


# -- whether it is like what it stands for ----------------------------------------------------------------------------


def public(thing: Any) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}


def test_it_has_what_the_interfaces_want() -> None:
    bound = Bound()
    bound.warm()
    graph = bound.cuda.capture(bound.stream, bound.queue)
    assert public(interfaces.Cuda) <= public(bound.cuda)
    assert public(interfaces.Buffer) - {"tensor"} <= public(bound.memory["x"])
    torch = pytest.importorskip("torch").cuda
    for kind, names, fake in (
        (torch.Stream, {"synchronize"}, bound.stream),
        (torch.Event, {"record", "synchronize", "elapsed_time"}, bound.end),
        (torch.CUDAGraph, {"replay"}, graph),
    ):
        assert names <= public(kind) & public(fake)


STANDS_FOR = {
    "FakeRuntime": "Runtime",
    "FakeCudaEngine": "ICudaEngine",
    "FakeExecutionContext": "IExecutionContext",
    "FakeRuntimeConfig": "IRuntimeConfig",
    "FakeEngineInspector": "EngineInspector",
    "FakeIProfiler": "IProfiler",
    "FakeILogger": "ILogger",
    "FakeDataType": "DataType",
    "FakeTensorIOMode": "TensorIOMode",
    "FakeTensorLocation": "TensorLocation",
    "FakeLayerInformationFormat": "LayerInformationFormat",
}
STANDS_FOR_RTX = {
    "FakeRtxCudaEngine": "ICudaEngine",
    "FakeRtxExecutionContext": "IExecutionContext",
    "FakeRtxRuntimeConfig": "IRuntimeConfig",
    "FakeRuntimeCache": "IRuntimeCache",
    "FakeKernelSpecialization": "DynamicShapesKernelSpecializationStrategy",
}


def names(fake: str) -> set[str]:
    kind = getattr(fake_gpu, fake)
    return set(getattr(kind, "__members__", public(kind))) - {"MAGIC"}


@pytest.mark.parametrize("version", RECORDED)
def test_it_has_no_name_that_tensorrt_lacks(version: str) -> None:
    """A fake that can do more than what it stands for would let wrong code pass."""
    pairs = STANDS_FOR | (STANDS_FOR_RTX if version.startswith("tensorrt_rtx") else {})
    for fake, real in pairs.items():
        assert names(fake) <= set(RECORDED[version]["classes"][real]), fake


def test_only_tensorrt_for_rtx_has_what_is_its_own() -> None:
    assert not hasattr(FakeModule(FakeCuda()), "DynamicShapesKernelSpecializationStrategy")
    assert hasattr(FakeModule(FakeCuda(), rtx=True), "DynamicShapesKernelSpecializationStrategy")
