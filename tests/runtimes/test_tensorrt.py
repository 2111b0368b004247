"""The TensorRT backends: models become engines once, runs tell the GPU's seconds, and fakes never pass for measured.

Engines are built by the real TensorRT for RTX, which needs no GPU; they run on a fake GPU.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, parser

from dilrewrite.errors import MissingError
from dilrewrite.runtimes import (
    Array,
    Artifact,
    CannotLoad,
    CannotRun,
    Opened,
    Options,
    Runnable,
    TimeKind,
    backends,
    timed_backend,
    warmed,
)
from dilrewrite.runtimes._worker import _Server
from dilrewrite.tensorrt import backend as module
from dilrewrite.tensorrt import bindings
from dilrewrite.tensorrt.backend import TensorRtRtx
from dilrewrite.timing.budget import Budget
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.stopwatch import MAX_PAIRS, Stopwatch
from tests.tensorrt.fake_gpu import FakeCuda, FakeEngine, FakeModule


class StandIn(TensorRtRtx):
    """One that may run on a fake GPU."""

    __slots__ = ()
    source = TimeKind.ESTIMATED


RTX, STAND_IN = TensorRtRtx(), StandIn()
FEEDS = {"x": np.arange(3, dtype=np.float32).reshape(1, 3)}

needs_rtx = pytest.mark.skipif(bindings.missing("tensorrt-rtx") is not None, reason="tensorrt-rtx is not installed")


def model(height: str = "8") -> ModelProto:
    return parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]>'
        f"g (float[1,2,{height},8] x) => (float[1,2,{height},8] y) {{ y = LeakyRelu <alpha = 0.5> (x) }}"
    )


def image(height: int = 8) -> dict[str, Array]:
    return {"x": np.ones((1, 2, height, 8), np.float32)}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeCuda, FakeModule]:
    """A fake GPU, and the fake library that runs on it."""
    cuda = FakeCuda()
    library = FakeModule(cuda, rtx=True)
    monkeypatch.setattr(module.cuda, "Cuda", lambda: cuda)
    monkeypatch.setattr(bindings, "load", lambda _flavour, **_: library.fake_library())
    return cuda, library


# -- whether it is ready ----------------------------------------------------------------------------------------------


def test_auto_never_takes_one() -> None:
    assert timed_backend("auto").name not in ("tensorrt", "tensorrt_rtx")
    assert all(backends()[name].rank < 0 for name in ("tensorrt", "tensorrt_rtx"))  # type: ignore[attr-defined]


def test_a_flavour_that_is_not_installed_says_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bindings, "installed", lambda _flavour: False)
    assert RTX.missing() == "tensorrt-rtx is not installed: pip install 'dilrewrite[tensorrt-rtx]'"
    with pytest.raises(MissingError, match=r"^backend tensorrt: tensorrt is not installed: pip install"):
        timed_backend("tensorrt")


@needs_rtx
def test_without_a_gpu_it_builds_and_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.cuda, "missing", lambda: "there is no NVIDIA driver")
    assert RTX.missing() == "tensorrt-rtx builds engines here and runs none: there is no NVIDIA driver"


# -- from a model to an engine, with the real library -----------------------------------------------------------------


@needs_rtx
def test_an_engine_is_built_once_in_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = RTX.library()
    runnable, options = Runnable(model=model("H").SerializeToString()), Options(scratch=tmp_path)
    built = RTX.plan(library, runnable, options, image(8))
    other_size = RTX.plan(library, runnable, options, image(12))
    half = TensorRtRtx(precision="fp16").plan(library, runnable, options, image(8))
    assert len({built, other_size, half}) == 3
    monkeypatch.setattr(module, "build", None)  # whoever builds now, fails
    assert RTX.plan(library, runnable, options, image(8)) == built
    with pytest.raises(TypeError):
        RTX.plan(library, runnable, options, image(16))


@needs_rtx
def test_builds_of_a_command_share_their_timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[bytes] = []
    build = module.build

    def seen(*arguments: Any, timing_cache: bytes, **more: Any) -> Any:
        given.append(timing_cache)
        return build(*arguments, timing_cache=timing_cache, **more)

    monkeypatch.setattr(module, "build", seen)
    library, options = RTX.library(), Options(scratch=tmp_path)
    for height in (8, 12):
        RTX.plan(library, Runnable(model=model("H").SerializeToString()), options, image(height))
    assert given[0] == b""
    assert given[1] == (tmp_path / module.TIMING_CACHE).read_bytes() != b""


@needs_rtx
def test_what_tensorrt_does_not_take_cannot_be_loaded() -> None:
    pads = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,1,8] x, float[1,1,1] w) => (float[1,1,6] y)'
        "{ y = Conv <pads = [-1, -1]> (x, w) }"
    )
    with pytest.raises(CannotLoad, match=r"tensorrt-rtx .* does not take the model"):
        RTX.plan(RTX.library(), Runnable(model=pads.SerializeToString()), Options(), {})
    with pytest.raises(CannotLoad, match="it is no ONNX model"):
        RTX.plan(RTX.library(), Runnable(model=b"no model"), Options(), {})


# -- runs, on a fake GPU ----------------------------------------------------------------------------------------------


def test_a_fake_gpu_never_passes_for_a_measured_one(gpu: tuple[FakeCuda, FakeModule]) -> None:
    plan = gpu[1].fake_plan(FakeEngine())
    assert RTX.source is TimeKind.MEASURED
    with pytest.raises(ValueError, match="times would be estimated"):
        RTX.runner(Runnable(model=plan, engine=True), Options(), FEEDS)


def test_a_run_tells_the_seconds_of_the_gpu_and_not_of_the_host(gpu: tuple[FakeCuda, FakeModule]) -> None:
    server, plan = served(gpu, {"a": FakeEngine(seconds=(9.0, 60.0))}), "a"
    started = time.perf_counter()
    assert server.on_run([plan] * 3) == [60.0] * 3
    assert time.perf_counter() - started < 60


def test_outputs_of_an_engine(gpu: tuple[FakeCuda, FakeModule]) -> None:
    plan = gpu[1].fake_plan(FakeEngine())
    with STAND_IN.session(Runnable(model=plan, engine=True), Options(isolated=False)) as session:
        assert [io.name for io in session.inputs] == ["x"]
        assert session.run(FEEDS)["y"].tolist() == (2 * FEEDS["x"]).tolist()
        with pytest.raises(CannotRun, match="input 'x'"):
            session.run({"x": np.ones((2, 3), np.float32)})


def test_a_profile_has_the_layers_with_the_nodes_in_them(gpu: tuple[FakeCuda, FakeModule]) -> None:
    script = FakeEngine(layers=lambda _: (("conv", 3.0), ("relu", 1.0)))
    found = STAND_IN.profile(Runnable(model=gpu[1].fake_plan(script), engine=True), Options(), FEEDS, 5)
    assert [(run.provider, run.seconds) for run in found.nodes] == [("conv", 3e-3), ("relu", 1e-3)]
    assert found.seconds == pytest.approx((4e-3,)), "never less than its layers"


def test_a_run_without_a_graph_is_doubted(gpu: tuple[FakeCuda, FakeModule], capsys: pytest.CaptureFixture[str]) -> None:
    for capturable in (True, False):
        plan = gpu[1].fake_plan(FakeEngine(capturable=capturable))
        STAND_IN.runner(Runnable(model=plan, engine=True), Options(), FEEDS)
        assert bool(re.search(STAND_IN.doubts, capsys.readouterr().err)) is not capturable


# -- pairs, on a fake GPU ---------------------------------------------------------------------------------------------


def served(gpu: tuple[FakeCuda, FakeModule], scripts: Mapping[str, FakeEngine]) -> _Server:
    """The worker's server with engines loaded, in this process."""
    server = _Server()
    server.backend = STAND_IN
    for key, script in scripts.items():
        plan = gpu[1].fake_plan(script)
        server.on_add(key, Runnable(model=plan, engine=True), Options(isolated=False), FEEDS)
    server.on_open(list(scripts), 0.0, 0)
    return server


class InProcess:
    """A bench without a process."""

    def __init__(self, server: _Server) -> None:
        self.server = server
        self.orders: list[str] = []
        self.clock = Clock()

    def add(self, key: str, artifact: Artifact, feeds: Mapping[str, Array]) -> None:
        self.server.on_add(key, artifact._held, Options(isolated=False), feeds)

    def drop(self, key: str) -> None:
        self.server.on_drop(key)

    def open(self, keys: Sequence[str], warm_s: float = 0.0, runs: int = 0) -> list[Opened]:
        opened = self.server.on_open(list(keys), warm_s, 0)
        seconds = (warmed(lambda times, key=key: self.run([key] * times), warm_s, runs, self.clock) for key in keys)  # type: ignore[misc]
        return [replace(one, run_s=run_s) for one, run_s in zip(opened, seconds, strict=True)]

    def shut(self) -> None:
        self.server.on_shut()

    def run(self, order: Sequence[str]) -> list[float]:
        self.orders += order
        return self.server.on_run(list(order))

    def peak_bytes(self, key: str) -> int | None:
        del key
        return None

    def warnings(self) -> tuple[str, ...]:
        return ()

    def close(self) -> None:
        pass


class Clock:
    """A clock that goes on by itself, a little with every look."""

    def __init__(self, step_s: float = 0.01) -> None:
        self.now_s = 0.0
        self.step_s = step_s

    def __call__(self) -> float:
        self.now_s += self.step_s
        return self.now_s


def test_two_engines_run_in_turn_after_a_warm_up_that_is_not_counted(gpu: tuple[FakeCuda, FakeModule]) -> None:
    def cold(number: int) -> float:
        return 1.0 if number < 4 else 2e-3  # what the first runs take would be seen in every percentile

    bench = InProcess(served(gpu, {"a": FakeEngine(seconds=cold), "b": FakeEngine(seconds=lambda n: 1.5 * cold(n))}))
    watch = Stopwatch(bench, clock=Clock(), pace=STAND_IN.pace)
    found = watch.compare("a", "b", 0.1)
    assert found.ratio == pytest.approx(1.5)
    assert found.first.p99_s == pytest.approx(2e-3)
    assert found.first.variation == pytest.approx(0.0, abs=1e-9), "only what the clock rounds away"
    assert STAND_IN.pace.pairs <= found.pairs <= MAX_PAIRS
    repeats = max(1, round(1.0 / (MAX_PAIRS * 5e-3)))
    timed = bench.orders[-2 * found.pairs * repeats :]
    blocks = [timed[i * repeats] for i in range(2 * found.pairs)]
    assert blocks[:8] == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert set(watch.first_s) == {"a", "b"}
    assert sum(found.first.median_s * repeats for _ in range(found.pairs)) >= 0.35, "about a second of both together"


@pytest.mark.parametrize(("variation", "doubted"), [(0.02, False), (0.026, True), (0.2, True)])
def test_times_that_vary_by_more_than_a_limit_are_doubted(
    gpu: tuple[FakeCuda, FakeModule], monkeypatch: pytest.MonkeyPatch, variation: float, doubted: bool
) -> None:
    """Above a coefficient of variation of 2.5 %, as NVIDIA's own tool has it."""

    # Runs of 20 ms are samples by themselves.
    def seconds(number: int) -> float:
        return 0.02 * (1 + variation * (1 if number % 2 else -1))

    scripts = {"before": FakeEngine(seconds=seconds), "after": FakeEngine(seconds=seconds)}
    bench = InProcess(served(gpu, scripts))
    plans = {key: gpu[1].fake_plan(script) for key, script in scripts.items()}
    monkeypatch.setattr(Meter, "worker", lambda _self: bench)
    monkeypatch.setattr(TensorRtRtx, "device", lambda _self: "Fake GPU")
    meter = Meter.on(STAND_IN, Cache(None), Budget(3, clock=Clock(0.05)))
    meter.budget.begin()
    before, after = (Runnable(model=plans[key], engine=True) for key in ("before", "after"))
    found = meter.whole(before, after, ("1", "2"), FEEDS, run_s=0.02)
    assert found.first.variation == pytest.approx(variation, rel=0.1)
    assert bool(meter.doubts) == doubted
    assert all("2.5 %" in doubt for doubt in meter.doubts)
