"""Engines on a GPU, end to end and small: `pytest -m gpu tests/gpu`. Skipped, with the reason, where none can run."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.runtimes import Options, Runnable, TimedBackend, TimeKind, artifact, backends, timed_backends
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.tensorrt import sidecar
from dilrewrite.timing.stopwatch import Stopwatch
from tests.models_for_tests import Outcome, cli, save

pytestmark = pytest.mark.gpu

Capsys = pytest.CaptureFixture[str]

FLAVOURS = ("tensorrt", "tensorrt-rtx")


def _of(flavour: str) -> Any:
    """The flavour's backend as a parameter, skipped where it is not ready."""
    why = timed_backends()[flavour.replace("-", "_")].missing()
    return pytest.param(flavour, marks=pytest.mark.skipif(why is not None, reason=str(why)))


on_each_flavour = pytest.mark.parametrize("flavour", [_of(flavour) for flavour in FLAVOURS])


def backend_of(flavour: str) -> TimedBackend:
    return timed_backends()[flavour.replace("-", "_")]


@dataclass(frozen=True, kw_only=True)
class Small:
    """A dilated Conv with weights of -1, 0 and 1, so that no sum is above 256: exact in fp16 and TF32 too."""

    extents: tuple[int, ...]
    dilation: int
    channels: int = 4

    def model(self, element: str = "float32") -> ModelProto:
        rng = np.random.default_rng(0)
        rank, size = len(self.extents), (1, self.channels, *self.extents)
        weight = rng.integers(-1, 2, (self.channels, self.channels, *[3] * rank)).astype(element)
        number = helper.np_dtype_to_tensor_dtype(np.dtype(element))
        attributes = {"dilations": [self.dilation] * rank, "pads": [self.dilation] * (2 * rank)}
        graph = helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", **attributes)],
            "small",
            [helper.make_tensor_value_info("x", number, size)],
            [helper.make_tensor_value_info("y", number, size)],
            [numpy_helper.from_array(weight, "w")],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def x(self) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(1)
        return rng.integers(-2, 3, (1, self.channels, *self.extents)).astype(np.float32)


SMALL = {
    "1-D": Small(extents=(30,), dilation=4),
    "2-D": Small(extents=(12, 14), dilation=3),
    "3-D": Small(extents=(8, 8, 9), dilation=2),
    "2-D with dead taps": Small(extents=(10, 10), dilation=12),
}


def rewritten(proto: ModelProto, name: str) -> ModelProto | None:
    """The model with its Conv in this form; None where the strategy refuses it."""
    found = find(proto)
    (site,) = found.sites
    planned = plan(name, strategies()[name], site.geometry, site.opset)
    if isinstance(planned, Refusal):
        return None
    return rewrite(proto, [(site, planned)], found.normalisations, numpy_helper.to_array).proto


APPLYING = [
    (shape, name)
    for shape, small in SMALL.items()
    for name in strategies()
    if rewritten(small.model(), name) is not None
]


def test_every_strategy_applies_somewhere() -> None:
    assert {name for _, name in APPLYING} == set(strategies())


@on_each_flavour
@pytest.mark.parametrize("element", ["float32", "float16"])
@pytest.mark.parametrize(("shape", "name"), APPLYING)
def test_every_strategys_engine_computes_the_conv(flavour: str, element: str, shape: str, name: str) -> None:
    """Whole numbers: a wrong formula is off by one at least, a kernel's rounding by far less than a half."""
    small = SMALL[shape]
    proto, x = small.model(), small.x()
    with backends()["onnxruntime_cpu"].session(Runnable(model=proto.SerializeToString()), Options()) as session:
        wanted = session.run({"x": x})["y"].astype(np.float64)
    made = rewritten(small.model(element), name)
    assert made is not None
    with backend_of(flavour).session(Runnable(model=made.SerializeToString()), Options(timeout_s=300)) as session:
        got = session.run({"x": x.astype(element)})["y"].astype(np.float64)
    assert np.max(np.abs(wanted)) <= 256
    assert got.shape == wanted.shape
    assert np.max(np.abs(got - wanted)) < 0.5


@on_each_flavour
@pytest.mark.measures
def test_two_engines_are_timed_in_pairs_by_the_gpu(flavour: str, tmp_path: Path) -> None:
    """A Conv of sixteen times the size takes longer; equal ones take the same time."""
    backend = backend_of(flavour)
    assert backend.source is TimeKind.MEASURED
    small, large = (Small(extents=(size, size), dilation=4, channels=64) for size in (64, 256))
    options = Options(timeout_s=300, scratch=tmp_path)
    with contextlib.closing(backend.bench(options)) as bench:
        for key, one in (("small", small), ("twin", small), ("large", large)):
            bench.add(key, artifact(Runnable(model=one.model().SerializeToString())), {"x": one.x()})
        watch = Stopwatch(bench, pace=backend.pace)
        noise, mode = watch.noise("small", "twin", 2.0, rounds=2)
        compared = watch.compare("small", "large", 2.0, noise=noise, mode=mode)
    assert compared.pairs >= backend.pace.pairs
    assert compared.slower
    assert compared.ratio > 2
    assert 0.5 < noise.ratio < 2
    assert 0 < compared.first.p20_s <= compared.first.median_s <= compared.first.p80_s < 1


def build(capsys: Capsys, model: Path, flavour: str) -> Outcome:
    return cli(capsys, "build", model, "--flavour", flavour, "--json")


@on_each_flavour
@pytest.mark.measures
def test_bench_of_two_engines(flavour: str, tmp_path: Path, capsys: Capsys) -> None:
    """Built, compared with ONNX Runtime on the way, and timed against each other."""
    proto = Small(extents=(64, 64), dilation=4, channels=64).model()
    other = rewritten(proto, "space_to_batch")
    assert other is not None
    for name, one in (("a", proto), ("b", other)):
        outcome = build(capsys, save(one, tmp_path / f"{name}.onnx"), flavour)
        assert outcome.code == 0, outcome.err
        known = sidecar.read(tmp_path / f"{name}.engine")
        assert known.flavour == flavour
        assert known.device is not None
        assert known.checked.startswith("equal to ONNX Runtime")
    outcome = cli(capsys, "bench", tmp_path / "a.engine", tmp_path / "b.engine", "--budget", 5, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.report["measurement"]
    backend = backend_of(flavour)
    assert (found["backend"], found["device"], found["source"]) == (backend.name, backend.device(), TimeKind.MEASURED)
    assert found["final"]["pairs"] >= backend.pace.pairs
    assert 0 < found["final"]["low"] <= found["final"]["ratio"] <= found["final"]["high"] < math.inf
    assert cli(capsys, "verify", tmp_path / "a.onnx", tmp_path / "b.engine").code == 0


@on_each_flavour
@pytest.mark.measures
def test_optimize_decides_on_the_gpu_and_builds_the_engine(flavour: str, tmp_path: Path, capsys: Capsys) -> None:
    backend = backend_of(flavour)
    path = save(Small(extents=(64, 64), dilation=4, channels=64).model(), tmp_path / "m.onnx")
    out, engine = tmp_path / "out.onnx", tmp_path / "out.engine"
    arguments = ["--backend", backend.name, "--budget", 20, "--no-cache", "--no-report", "--json"]
    outcome = cli(
        capsys, "optimize", path, "-o", out, *arguments, "--build-engine", "--engine", engine, "--flavour", flavour
    )
    assert outcome.code == 0, outcome.err
    found = outcome.report["measurement"]
    assert (found["backend"], found["device"], found["source"]) == (backend.name, backend.device(), TimeKind.MEASURED)
    (site,) = outcome.report["sites"]
    timed = [one["timing"] for one in site["candidates"] if one["timing"] is not None]
    assert timed
    assert all(one["pairs"] >= backend.pace.pairs for one in timed)
    assert outcome.report["status"] in ("rewritten", "kept")
    known = sidecar.read(engine)
    assert known.chosen_on == f"{backend.name} on {backend.device()}"
    assert known.checked.startswith("equal to ONNX Runtime")
