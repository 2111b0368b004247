"""From a model to an engine and what is said of it: with a builder and a GPU that are made up.

What TensorRT really builds, without a GPU, is in tests/cli/test_build.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import dilrewrite
from dilrewrite.errors import DiffersError, FailedError, MissingError, UsageError
from dilrewrite.model.elements import FLOATS
from dilrewrite.model.load import load
from dilrewrite.model.tensors import Model
from dilrewrite.options import Building
from dilrewrite.proof.verdict import Settings
from dilrewrite.runtimes import Array, CannotLoad, CannotRun, Crashed, Io, Options, Runnable, TimedOut, backends
from dilrewrite.staging import Staging
from dilrewrite.tensorrt import bindings, cuda, engines, sidecar
from dilrewrite.tensorrt.engines import Engine, Started, make, measured_sizes, on_device, start
from dilrewrite.tensorrt.layers import BUILD_LOG, Layer, Layers
from dilrewrite.tensorrt.make import Built, Tensor
from dilrewrite.tensorrt.precision import DATATYPES, ROUNDS_TO, prepare
from tests import models_for_tests as tiny
from tests.models_for_tests import conv1d, conv2d, conv_node, listing, save, save_external, values
from tests.tensorrt.rtx import FLAVOUR as RTX
from tests.tensorrt.rtx import NO_GPU, needs_rtx, only, without_gpu

PLAN = b"ptrt: made up"
GPU = "a GPU, driver for CUDA 13.0"

Change = Callable[[dict[str, Array]], dict[str, Array]]
Answer = Callable[[Mapping[str, Array]], dict[str, Array]]


# -- a made-up builder and GPU -------------------------------------------------------------------------------------


@dataclass
class Gpu:
    """Stands for a TensorRT backend: its sessions answer what ONNX Runtime does of `model`, after `change`."""

    model: ModelProto
    change: Change = dict
    absent: str | None = None
    refuses: Exception | None = None
    fails: Exception | None = None
    inputs: tuple[Io, ...] = (Io(name="x", element="float32", shape=None),)
    name: str = "tensorrt"
    loaded: list[tuple[Runnable, Options]] = field(default_factory=list)
    fed: dict[str, Array] = field(default_factory=dict)

    def missing(self) -> str | None:
        return self.absent

    def device(self) -> str:
        return GPU

    @contextmanager
    def session(self, runnable: Runnable, options: Options) -> Iterator[SimpleNamespace]:
        self.loaded.append((runnable, options))
        if self.refuses is not None:
            raise self.refuses
        yield SimpleNamespace(inputs=self.inputs, outputs=(), run=self.run)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        import onnxruntime

        if self.fails is not None:
            raise self.fails
        self.fed = dict(feeds)
        session = onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])
        taken = {one.name: np.asarray(feeds[one.name]) for one in session.get_inputs()}
        kinds = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
        taken = {one.name: taken[one.name].astype(kinds[one.type]) for one in session.get_inputs()}
        names = [one.name for one in session.get_outputs()]
        return self.change(dict(zip(names, session.run(names, taken), strict=True)))


@dataclass
class Bench:
    """What `make` was given on the way, and what it gets: a builder, and a GPU or none."""

    monkeypatch: pytest.MonkeyPatch
    datatype: str | None = None
    built: list[tuple[ModelProto, dict[str, Any]]] = field(default_factory=list)

    def build(self, _library: Any, proto: ModelProto, options: Any, **more: Any) -> Built:
        self.built.append((proto, {"options": options, **more}))
        holds = prepare(proto, None, "m").precision
        kind = self.datatype or DATATYPES[holds][0]
        nodes = [node.name for node in proto.graph.node if node.op_type == "Conv"]
        layers = [
            Layer(name=f"l{name}", kind="correlation", inputs=(kind,), outputs=(kind,), nodes=(name,)) for name in nodes
        ]
        return Built(
            plan=PLAN,
            layers=Layers(source=BUILD_LOG, layers=tuple(layers), memory={"bytes": 1}),
            inputs=tuple(Tensor(name=one.name, datatype="FLOAT", shape=()) for one in proto.graph.input),
            outputs=(),
            flags={"TF32": more["tf32"]},
            seconds=0.25,
            warnings=("careful",),
            timing_cache=b"timings" if options.timing_cache is not None else None,
        )

    def gpu(self, **more: Any) -> Gpu:
        """Put a GPU into the machine."""
        made = Gpu(**more)
        self.monkeypatch.setattr(engines, "backends", lambda: {made.name: made})
        return made


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """TensorRT 10.13 without a GPU; whole models run in this process."""
    without_gpu(monkeypatch)
    found = Bench(monkeypatch)
    monkeypatch.setattr(engines, "build", found.build)
    only(monkeypatch, "tensorrt")
    monkeypatch.setattr(bindings, "load", lambda flavour, **_: SimpleNamespace(flavour=flavour, version="10.13"))
    return found


def settings(**more: Any) -> Settings:
    return Settings(**{"backend": backends()["onnxruntime_cpu"], "shapes": {}, "inputs": {}, **more})


def made(
    model: Model,
    *,
    proto: ModelProto | None = None,
    source: Path | None = None,
    more: Mapping[str, Any] | None = None,
    progress: Any = None,
    **options: Any,
) -> Engine:
    """The engine of a model with the options of `dilrewrite.build`."""
    return make(
        start(model, Building.of(options)),
        proto if proto is not None else model.proto,
        Path("E.engine"),
        settings(**(more or {})),
        chosen_on="somebody",
        source=source,
        progress=progress,
    )


def saved(folder: Path, proto: ModelProto | None = None) -> Model:
    return load(save(proto if proto is not None else conv2d(), folder / "m.onnx"))


# -- what is said of an engine -------------------------------------------------------------------------------------


def test_what_is_said(bench: Bench, tmp_path: Path) -> None:
    model = saved(tmp_path)
    found = made(model).report
    assert (found.file, found.bytes, found.sha256) == ("E.engine", len(PLAN), hashlib.sha256(PLAN).hexdigest())
    assert (found.flavour, found.version, found.chosen_on) == ("tensorrt", "10.13", "somebody")
    assert found.onnx.file == str(tmp_path / "m.onnx")
    assert found.onnx.sha256 == model.file_digest == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert found.precision == sidecar.PrecisionReport(
        asked=None, built="tf32", converted=False, changes=(), convolutions={"Float": 1}, fidelity=None
    )
    assert found.checked.startswith("not run: ")
    assert found.device is None
    assert (found.flags, found.build_seconds, found.warnings) == ({"TF32": True}, 0.25, ("careful",))
    assert found.trtexec.startswith("trtexec --onnx=m.onnx --saveEngine=E.engine --stronglyTyped")
    assert bench.built[0][1]["folder"] == tmp_path


@pytest.mark.parametrize(("precision", "tf32"), [(None, True), ("tf32", True), ("fp32", False), ("fp16", True)])
def test_tf32_is_off_only_when_float32_is_asked_for(
    bench: Bench, tmp_path: Path, precision: str | None, tf32: bool
) -> None:
    made(saved(tmp_path), precision=precision)
    assert bench.built[0][1]["tf32"] is tf32


def test_an_engine_of_what_became_of_a_model(bench: Bench, tmp_path: Path) -> None:
    """The file is the one that will be written, and its digest that of what will be in it."""
    after = conv2d(dilation=1)
    found = made(saved(tmp_path), proto=after, source=tmp_path / "o.onnx").report
    assert found.onnx.file == str(tmp_path / "o.onnx")
    assert found.onnx.sha256 == hashlib.sha256(after.SerializeToString()).hexdigest() == found.onnx.built_sha256
    assert "--onnx=o.onnx" in found.trtexec
    assert bench.built[0][0] is after


def test_sizes_reach_the_builder(bench: Bench, tmp_path: Path) -> None:
    sizes = {"minima": ["x:1x2x8"], "optima": ["x:1x2x16"], "maxima": ["x:1x2x32"]}
    found = made(saved(tmp_path, conv1d(length="time")), **sizes)
    assert bench.built[0][1]["profiles"] == found.report.profiles
    assert found.report.profiles["x"].min == (1, 2, 8)


def test_progress_and_the_comparison_with_float32(bench: Bench, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    made(saved(tmp_path), precision="bf16", progress=lambda *step: steps.append(step))
    assert steps == [("compare with float32", 0, 1), ("compare with float32", 1, 1)]
    assert bench.built[0][1]["progress"] is not None


def test_the_comparison_is_on_given_data(bench: Bench, tmp_path: Path) -> None:
    """And at the sizes that the engine is to be fast at, where none are given."""
    model = saved(tmp_path, conv1d(length="time"))
    found = made(model, precision="fp16", optima=["x:1x2x24"]).report.precision.fidelity
    assert found is not None
    assert found.shapes == {"x": (1, 2, 24)}
    data = {"x": values(1, 2, 20)}
    found = made(model, precision="fp16", optima=["x:1x2x24"], more={"inputs": data}).report.precision.fidelity
    assert found is not None
    assert found.shapes == {"x": (1, 2, 20)}
    assert bench.built


def test_an_engine_in_another_precision_is_an_error(bench: Bench, tmp_path: Path) -> None:
    bench.datatype = "Float"
    with pytest.raises(FailedError, match="fp16 was asked for, and the engine's convolutions are 1 in Float"):
        made(saved(tmp_path), precision="fp16")


# -- on the GPU ----------------------------------------------------------------------------------------------------


def test_outputs_that_are_equal(bench: Bench, tmp_path: Path) -> None:
    model = saved(tmp_path)
    gpu = bench.gpu(model=model.proto)
    found = made(model)
    assert found.report.checked.startswith("equal to ONNX Runtime within ")
    assert found.report.checked.endswith(f" on {GPU}")
    assert found.report.device == GPU
    assert found.check is not None
    assert found.check.passed
    assert found.check.backend == "onnxruntime_cpu, tensorrt"
    assert [check.name for case in found.check.cases for check in case.outputs] == ["y"]
    runnable, options = gpu.loaded[0]
    assert (runnable.model, runnable.engine, options.optimize) == (PLAN, True, True)


def test_an_engine_runs_at_the_sizes_it_is_to_be_fast_at(bench: Bench, tmp_path: Path) -> None:
    model = saved(tmp_path, conv1d(length="time"))
    gpu = bench.gpu(model=model.proto)
    made(model, minima=["x:1x2x8"], optima=["x:1x2x24"], maxima=["x:1x2x32"])
    assert gpu.fed["x"].shape == (1, 2, 24)
    data = {"x": values(1, 2, 20)}
    made(model, minima=["x:1x2x8"], optima=["x:1x2x24"], maxima=["x:1x2x32"], more={"inputs": data})
    assert np.array_equal(gpu.fed["x"], data["x"])


def off(by: float) -> Change:
    """Every output is off by a share of its largest value."""
    return lambda found: {name: (y + by * np.abs(y).max()).astype(y.dtype) for name, y in found.items()}


def without(found: dict[str, Array]) -> dict[str, Array]:
    del found["y"]
    return found


def not_finite(found: dict[str, Array]) -> dict[str, Array]:
    found["y"].flat[0] = np.nan
    return found


def longer(found: dict[str, Array]) -> dict[str, Array]:
    return {"y": np.concatenate([found["y"], found["y"]])}


WRONG: dict[str, tuple[Change, str]] = {
    "off": (off(0.1), "values differ"),
    "missing": (without, "is missing"),
    "not finite": (not_finite, "NaN or Inf in other places"),
    "longer": (longer, "is float32"),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_outputs_that_differ(bench: Bench, tmp_path: Path, change: Change, words: str) -> None:
    model = saved(tmp_path)
    bench.gpu(model=model.proto, change=change)
    with pytest.raises(DiffersError) as caught:
        made(model)
    assert caught.value.exit_code == 3
    assert f"{tmp_path / 'm.onnx'}: the engine does not compute what the model does" in caught.value.message
    assert "output 'y': " in caught.value.message
    assert words in caught.value.message
    assert "--precision fp32" in caught.value.hint


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_tolerances_go_by_precision(bench: Bench, tmp_path: Path, precision: str) -> None:
    """What one precision allows another does not."""
    model = saved(tmp_path)
    rtol, share = FLOATS[ROUNDS_TO[precision]].tolerance
    bench.gpu(model=model.proto, change=off(share * 0.9))
    assert made(model, precision=precision).check is not None
    bench.gpu(model=model.proto, change=off((rtol + share) * 1.1))
    with pytest.raises(DiffersError):
        made(model, precision=precision)


def test_tolerances_that_were_given(bench: Bench, tmp_path: Path) -> None:
    model = saved(tmp_path)
    bench.gpu(model=model.proto, change=off(0.5))
    assert "on a GPU" in made(model, more={"atol": 100.0}).report.checked
    bench.gpu(model=model.proto, change=off(1e-6))
    with pytest.raises(DiffersError):
        made(model, more={"rtol": 0.0, "atol": 0.0})


@pytest.mark.parametrize("error", [CannotLoad, CannotRun, Crashed, TimedOut])
def test_an_engine_that_does_not_run(bench: Bench, tmp_path: Path, error: type[Exception]) -> None:
    model = saved(tmp_path)
    bench.gpu(model=model.proto, refuses=error("no such kernel"))
    with pytest.raises(FailedError, match="the engine was built and does not run: no such kernel"):
        made(model)
    bench.gpu(model=model.proto, fails=error("out of memory"))
    with pytest.raises(FailedError, match="the engine was built and does not run: out of memory"):
        made(model)


def test_an_engine_for_another_gpu(bench: Bench, tmp_path: Path) -> None:
    """It need not load on this one; where it does, it must compute what the model does."""
    model = saved(tmp_path)
    bench.gpu(model=model.proto, refuses=CannotLoad("no kernel image"))
    found = made(model, compute_capabilities=["8.6", "12.0"])
    assert found.report.checked == f"not run: it is for 8.6, 12.0, and {GPU} does not load it: no kernel image"
    assert (found.report.device, found.check) == (GPU, None)
    with pytest.raises(FailedError, match="no kernel image"):
        made(model, compute_capabilities=["current"])
    bench.gpu(model=model.proto, fails=CannotRun("out of memory"))
    with pytest.raises(FailedError, match="out of memory"):
        made(model, compute_capabilities=["8.6"])
    bench.gpu(model=model.proto, change=off(0.1))
    with pytest.raises(DiffersError):
        made(model, compute_capabilities=["8.6"])


def test_an_engine_without_weights_is_not_run(bench: Bench, tmp_path: Path) -> None:
    model = saved(tmp_path)
    gpu = bench.gpu(model=model.proto, change=off(1.0))
    found = made(model, strip_plan=True).report
    assert (found.checked, found.device) == ("not run: it has no weights (--strip-plan)", GPU)
    assert gpu.loaded == []


def test_a_model_that_onnx_runtime_does_not_run(bench: Bench, tmp_path: Path) -> None:
    """The engine may be right, and there is nothing to compare it with."""
    model = saved(tmp_path, tiny.custom_operator())
    bench.gpu(model=model.proto)
    found = made(model)
    assert found.report.checked.startswith("not run: onnxruntime_cpu does not run the model: ")
    assert (found.report.device, found.check) == (GPU, None)


def test_the_gpu_is_not_there(bench: Bench, tmp_path: Path) -> None:
    model = saved(tmp_path)
    bench.gpu(model=model.proto, absent=f"tensorrt builds engines here and runs none: {NO_GPU}")
    found = made(model).report
    assert found.checked == f"not run: tensorrt builds engines here and runs none: {NO_GPU}"
    assert found.device is None


def two_types() -> ModelProto:
    """int64 in and out beside a Conv."""
    return tiny.build(
        [conv_node(), helper.make_node("Add", ["i", "i"], ["j"], name="add")],
        {"x": [1, 2, 16], "i": [3]},
        {"y": [1, 2, None], "j": [3]},
        {"w": values(2, 2, 3)},
        types={"i": TensorProto.INT64, "j": TensorProto.INT64},
    )


def test_types_that_an_engine_has_instead(bench: Bench, tmp_path: Path) -> None:
    """TensorRT may take and give other types than the model: only the values count."""
    model = saved(tmp_path, two_types())

    def others(found: dict[str, Array]) -> dict[str, Array]:
        return {"y": found["y"].astype(np.float64), "j": found["j"].astype(np.int32)}

    inputs = (Io(name="x", element="float32", shape=None), Io(name="i", element="int32", shape=None))
    gpu = bench.gpu(model=model.proto, change=others, inputs=inputs)
    assert made(model).check is not None
    assert gpu.fed["i"].dtype == np.int32
    bench.gpu(model=model.proto, change=lambda found: {**found, "j": found["j"] + 1}, inputs=inputs)
    with pytest.raises(DiffersError, match="output 'j'"):
        made(model)


def test_libraries_and_limits_reach_the_sessions(bench: Bench, tmp_path: Path) -> None:
    model = saved(tmp_path)
    gpu = bench.gpu(model=model.proto)
    more = {"threads": 3, "timeout_s": 7.0, "custom_op_library": (tmp_path / "o.so",)}
    (tmp_path / "o.so").touch()
    seen: list[Options] = []
    cpu = settings().backend

    def session(runnable: Runnable, options: Options) -> Any:
        seen.append(options)
        return cpu.session(runnable, dataclasses.replace(options, custom_op_library=()))

    made(model, more={**more, "backend": SimpleNamespace(name="cpu", session=session)})
    assert seen == [gpu.loaded[0][1]]
    assert (seen[0].threads, seen[0].timeout_s, seen[0].custom_op_library) == (3, 7.0, (tmp_path / "o.so",))


@pytest.mark.parametrize(
    ("more", "error"), [({"change": off(0.1)}, DiffersError), ({"refuses": CannotLoad("no")}, FailedError)]
)
def test_nothing_is_written_of_an_engine_that_is_wrong(
    bench: Bench, tmp_path: Path, more: dict[str, Any], error: type[Exception]
) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    bench.gpu(model=onnx.load(path), **more)
    before = listing(tmp_path)
    with pytest.raises(error):
        dilrewrite.build(path, export_layer_info=tmp_path / "layers.json", report=tmp_path / "report")
    with pytest.raises(error):
        dilrewrite.optimize(path, strategy="im2col", build_engine=True, budget=0)
    assert listing(tmp_path) == before


def test_what_was_compared_is_in_the_report(bench: Bench, tmp_path: Path) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    bench.gpu(model=onnx.load(path))
    report = dilrewrite.build(path)
    assert report.verdict is not None
    assert report.verdict.passed
    assert report.engine is not None
    assert report.engine.device == GPU
    assert sorted(listing(tmp_path)) == ["m.engine", "m.engine.json", "m.onnx"]
    assert (tmp_path / "m.engine").read_bytes() == PLAN


# -- weights outside -----------------------------------------------------------------------------------------------


def outside(folder: Path, proto: ModelProto | None = None) -> Model:
    return load(save_external(proto if proto is not None else conv2d(), folder / "m.onnx"))


def weights(proto: ModelProto) -> dict[str, bool]:
    """Initializers by name, and whether they are in memory."""
    return {one.name: one.data_location != TensorProto.EXTERNAL for one in proto.graph.initializer}


@pytest.mark.parametrize("precision", [None, "fp32", "tf32"])
def test_what_is_not_converted_is_built_from_its_files(bench: Bench, tmp_path: Path, precision: str | None) -> None:
    model = outside(tmp_path)
    found = made(model, precision=precision).report
    proto, given = bench.built[0]
    assert weights(proto) == {"w": False}
    assert given["folder"] == tmp_path
    assert found.onnx.sha256 == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_converted_is_converted_in_memory(bench: Bench, tmp_path: Path, precision: str) -> None:
    model = outside(tmp_path)
    inside = tmp_path / "inside"
    inside.mkdir()
    found = made(model, precision=precision).report
    assert all(weights(bench.built[0][0]).values())
    assert found.precision.fidelity is not None
    assert found.precision.fidelity.difference is not None
    assert weights(model.proto) == {"w": False}
    made(saved(inside), precision=precision)
    first, second = (numpy_helper.to_array(proto.graph.initializer[0]) for proto, _ in bench.built)
    assert first.dtype == second.dtype
    assert first.tobytes() == second.tobytes()


def symmetric(zero: int = 0) -> ModelProto:
    node = helper.make_node
    return tiny.build(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="q"),
            node("DequantizeLinear", ["xq", "s", "z"], ["xf"], name="dq"),
            node("DequantizeLinear", ["w", "s", "z"], ["wf"], name="dq_w"),
            conv_node("xf", "y", "wf"),
        ],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {
            "w": np.ones((2, 2, 3), np.int8),
            "s": np.array(0.1, np.float32),
            "z": np.array(zero, np.int8),
        },
    )


def test_a_quantised_model_is_read_whole(bench: Bench, tmp_path: Path) -> None:
    """Its zero points decide whether TensorRT takes it."""
    model = outside(tmp_path, symmetric())
    assert made(model).report.precision.built == "int8-qdq"
    assert set(weights(bench.built[0][0]).values()) == {True}
    assert set(weights(model.proto).values()) == {False}
    with pytest.raises(UsageError, match="Q/DQ nodes have a zero point other than 0"):
        made(outside(tmp_path, symmetric(zero=3)))


def test_a_comparison_with_a_quantised_model_runs_it_as_it_is(bench: Bench, tmp_path: Path) -> None:
    """Without the optimisations of ONNX Runtime, which compute quantised Convs in another way."""
    model = saved(tmp_path, symmetric())
    gpu = bench.gpu(model=model.proto)
    assert made(model).check is not None
    assert gpu.loaded[0][1].optimize is False


def test_what_is_too_large_is_not_converted(bench: Bench, tmp_path: Path) -> None:
    model = dataclasses.replace(outside(tmp_path), file_bytes=3 * 2**30)
    for precision in ("fp16", "bf16"):
        with pytest.raises(UsageError, match=r"m\.onnx: has 3\.0 GiB of weights: it is wanted in memory"):
            made(model, precision=precision)
    assert bench.built == []
    made(model, precision="fp32")
    assert weights(bench.built[0][0]) == {"w": False}


@needs_rtx
@pytest.mark.parametrize(("precision", "word"), [("fp32", "Float"), ("fp16", "Half"), ("bf16", "BFloat16")])
def test_tensorrt_finds_weights_outside(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: Any, word: str
) -> None:
    """Engines of the same weights, wherever they were, have the same layers and take the same memory."""
    without_gpu(monkeypatch)
    (tmp_path / "in").mkdir()
    paths = [
        save_external(conv2d(channels=8), tmp_path / "m.onnx"),
        save(conv2d(channels=8), tmp_path / "in" / "m.onnx"),
    ]
    found = [dilrewrite.build(path, flavour="tensorrt-rtx", precision=precision).engine for path in paths]
    assert found[0] is not None
    assert found[1] is not None
    assert found[0].flavour == RTX
    assert found[0].precision.convolutions == found[1].precision.convolutions == {word: 1}
    assert found[0].layer_types == found[1].layer_types
    assert found[0].memory == found[1].memory


# -- before any long work ------------------------------------------------------------------------------------------


def begun(folder: Path, shapes: Mapping[str, tuple[int, ...]] | None = None, **options: Any) -> tuple[Model, Started]:
    model = saved(folder, conv1d(length="time"))
    return model, start(model, Building.of(options), shapes)


@pytest.mark.usefixtures("bench")
def test_shapes_stand_for_sizes(tmp_path: Path) -> None:
    """Where no sizes of an engine are given for an input."""
    _, started = begun(tmp_path, {"x": (1, 2, 20)})
    assert (started.flavour, started.asked["opt"]) == ("tensorrt", {"x": (1, 2, 20)})
    _, started = begun(tmp_path, {"x": (1, 2, 20)}, maxima=["x:1x2x32"])
    assert (started.asked["opt"], started.asked["max"]) == ({}, {"x": (1, 2, 32)})
    with pytest.raises(UsageError, match="an engine needs its sizes"):
        begun(tmp_path)


@pytest.mark.usefixtures("bench")
def test_what_a_model_is_timed_with(tmp_path: Path) -> None:
    """The sizes that the engine is to be fast at, or what is given, within what it takes."""
    sizes = {"minima": ["x:1x2x8"], "optima": ["x:1x2x16"], "maxima": ["x:1x2x32"]}
    _, started = begun(tmp_path, **sizes)
    assert measured_sizes(started, settings()) == {"x": (1, 2, 16)}
    assert measured_sizes(started, settings(shapes={"x": (1, 2, 24)})) == {"x": (1, 2, 24)}
    assert measured_sizes(started, settings(inputs={"x": values(1, 2, 24)})) == {}
    for more in ({"shapes": {"x": (1, 2, 40)}}, {"inputs": {"x": values(1, 2, 4)}}, {"shapes": {"x": (1, 2)}}):
        with pytest.raises(UsageError, match=r"input 'x': .* is outside of the engine's profile, 1x2x8 to 1x2x32"):
            measured_sizes(started, settings(**more))


@pytest.mark.usefixtures("bench")
def test_a_flavour_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="gone"):
        begun(tmp_path, flavour="tensorrt-rtx", optima=["x:1x2x16"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workspace_mib": 0}, "--workspace 0"),
        ({"optimization_level": 6}, "--optimization-level 6"),
        ({"device": -1}, "--device -1"),
        ({"plugins": ["/no/p.so"]}, "--plugins /no/p.so"),
        ({"precision": "fp8"}, "--precision fp8"),
        ({"minima": ["x"]}, "--min x"),
    ],
    ids=str,
)
def test_an_order_that_is_wrong_whatever_the_model(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Building.of(options).check()


def test_an_order_in_a_report() -> None:
    """What was said and nothing else; 0 was said."""
    assert Building().plain() == {"flavour": "auto"}
    found = Building.of(
        {
            "flavour": RTX,
            "precision": "fp16",
            "minima": ["x:1"],
            "timing_cache": "t",
            "compute_capabilities": ["8.6"],
            "plugins": ["p.so"],
            "optimization_level": 0,
            "device": 0,
            "refit": True,
        }
    ).plain()
    assert found == {
        "flavour": RTX,
        "precision": "fp16",
        "min": ["x:1"],
        "timing_cache": Path("t"),
        "compute_capabilities": ["8.6"],
        "plugins": ["p.so"],
        "optimization_level": 0,
        "device": 0,
        "refit": True,
    }


# -- the device ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "device", "during"),
    [
        (None, 0, "0"),
        (None, 3, "3"),
        ("2,3", 1, "3"),
        (" 5 , GPU-1a2b ", 1, "GPU-1a2b"),
        ("7", 0, "7"),
    ],
)
def test_one_gpu_is_seen(monkeypatch: pytest.MonkeyPatch, before: str | None, device: int, during: str) -> None:
    """The one that is meant among those that are shown; afterwards all is as it was."""
    monkeypatch.setattr(cuda, "missing", lambda: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    with on_device(device):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == during
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before
    with pytest.raises(ZeroDivisionError), on_device(device):
        raise ZeroDivisionError
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_no_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "missing", lambda: pytest.fail("the driver was asked"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    with on_device(None):
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"


@pytest.mark.parametrize("before", [None, "2,3"])
def test_the_gpu_that_is_named_is_not_there(monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if before is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    monkeypatch.setattr(cuda, "missing", lambda: "there is no CUDA device")
    with pytest.raises(MissingError, match="--device 1: there is no CUDA device") as caught, on_device(1):
        pytest.fail("it went on")
    assert "nvidia-smi" in caught.value.hint
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


@pytest.mark.parametrize("before", ["", "3", "2,3"])
def test_a_gpu_that_is_hidden_stays_hidden(monkeypatch: pytest.MonkeyPatch, before: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", before)
    monkeypatch.setattr(cuda, "missing", lambda: None)
    with pytest.raises(MissingError, match="--device 2: CUDA_VISIBLE_DEVICES is") as caught, on_device(2):
        pytest.fail("it went on")
    assert repr(before) in caught.value.message
    assert os.environ["CUDA_VISIBLE_DEVICES"] == before


# -- what is staged ------------------------------------------------------------------------------------------------


def staged(engine: Engine, folder: Path) -> list[str]:
    with Staging() as staging:
        engines.stage(engine, folder / "E.engine", staging)
        staging.commit()
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("bench")
def test_what_is_staged(tmp_path: Path) -> None:
    for name in ("plain", "kept"):
        (tmp_path / name).mkdir()
    model = saved(tmp_path)
    assert staged(made(model), tmp_path / "plain") == ["E.engine", "E.engine.json"]
    found = made(model, timing_cache=tmp_path / "kept" / "t")
    (tmp_path / "kept" / "t").write_bytes(b"of before")
    assert staged(found, tmp_path / "kept") == ["E.engine", "E.engine.json", "t"]
    assert (tmp_path / "kept" / "t").read_bytes() == b"timings"
    assert sidecar.read(tmp_path / "kept" / "E.engine") == found.report


def test_timings_of_before_reach_the_builder(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"of before")
    model = saved(tmp_path)
    made(model, timing_cache=tmp_path / "t")
    made(model, timing_cache=tmp_path / "none yet")
    assert [given["timing_cache"] for _, given in bench.built] == [b"of before", b""]
