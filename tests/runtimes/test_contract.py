"""What every runtime that forms are timed on keeps to; one that is not installed is skipped, with what is missing."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

from dilrewrite.errors import MissingError, UsageError
from dilrewrite.proof.verdict import Subject
from dilrewrite.runtimes import (
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Profile,
    Runnable,
    TimedBackend,
    TimeKind,
    artifact,
    backends,
    prepared,
    profiled,
    spelled,
    timed_backend,
    timed_backends,
)
from dilrewrite.sites.find import find
from dilrewrite.timing import profiling
from tests.models_for_tests import build, conv1d, conv2d, conv_node, values
from tests.plug_ins import EXAMPLES

OPTIONS = Options(threads=1, timeout_s=120)
TOLERANCE = 1e-4

EVERY = pytest.mark.parametrize("name", timed_backends())
VARIANTS = ("opencv_dnn:engine=new",)
"""Settings that make another runtime of one."""
WITH_VARIANTS = pytest.mark.parametrize("name", [*timed_backends(), *VARIANTS])


def ready(name: str) -> TimedBackend:
    try:
        return timed_backend(name)
    except MissingError as error:
        pytest.skip(str(error))


def running(name: str) -> TimedBackend:
    """A runtime that runs models, in a process of its own: a compiler that is asked for estimates does not."""
    found = ready(name)
    if found.source is TimeKind.ESTIMATED:
        pytest.skip(f"{name} estimates, and runs nothing")
    return found


def three_nodes(length: int | None = 40) -> ModelProto:
    """A dilated Conv between two nodes that take time too."""
    return build(
        [
            conv_node("x", "a", "w0", name="first", pads=[1, 1]),
            conv_node("a", "b", "w1", name="site", dilations=[4], pads=[4, 4]),
            helper.make_node("Sigmoid", ["b"], ["y"], name="last"),
        ],
        {"x": [1, 16, length]},
        {"y": [1, 16, length]},
        {"w0": values(16, 16, 3), "w1": values(16, 16, 3)},
    )


def nowhere() -> ModelProto:
    proto = three_nodes()
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def scaled() -> ModelProto:
    """A dilated Conv, and a number that multiplies what it gives."""
    scale = helper.make_node("Mul", ["b", "s"], ["y"], name="last")
    conv = conv_node("x", "b", "w", name="site", dilations=[4], pads=[4, 4])
    return build([conv, scale], {"x": [1, 16, 40], "s": []}, {"y": [1, 16, 40]}, {"w": values(16, 16, 3)})


MODELS: dict[str, tuple[ModelProto, dict[str, Any]]] = {
    "1-D": (conv1d(), {"x": values(1, 2, 16)}),
    "2-D": (conv2d(), {"x": values(1, 2, 12, 12)}),
    "three nodes": (three_nodes(), {"x": values(1, 16, 40)}),
    "a scalar": (scaled(), {"x": values(1, 16, 40), "s": np.array(0.5, np.float32)}),
    "outputs without a shape": (nowhere(), {"x": values(1, 16, 40)}),
    "a size that is not known": (three_nodes(None), {"x": values(1, 16, 52)}),
}


def wanted(model: ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    with backends()["reference"].session(Runnable(model=model.SerializeToString()), Options()) as session:
        return session.run(feeds)


@WITH_VARIANTS
@pytest.mark.parametrize("model", MODELS)
def test_it_computes_what_the_reference_does(name: str, model: str) -> None:
    runtime, (proto, feeds) = running(name), MODELS[model]
    if (name, model) == ("opencv_dnn", "a scalar") and runtime.versions()["opencv"].startswith("5."):
        pytest.skip("OpenCV 5's classic engine takes no scalar")
    with contextlib.closing(runtime.bench(OPTIONS)) as bench:
        bench.add("m", prepared(runtime, Runnable(model=proto.SerializeToString()), feeds), feeds)
        outputs = bench.outputs("m")
        opened = bench.open(["m"], runs=2)
        assert opened[0].run_s > 0
        assert all(seconds > 0 for seconds in bench.run(["m"] * 3))
    expected = wanted(proto, feeds)
    assert outputs.keys() == expected.keys()
    for key, value in expected.items():
        assert outputs[key].shape == value.shape
        assert np.max(np.abs(outputs[key] - value)) <= TOLERANCE * np.max(np.abs(value))


@WITH_VARIANTS
def test_it_finds_the_shares_of_the_nodes(name: str) -> None:
    runtime, proto = ready(name), three_nodes(4000)
    (site,) = find(proto).sites
    found = profiling.profile(runtime, Subject(proto, Path()), [site], OPTIONS, {"x": values(1, 16, 4000)})
    run = found.sites[site.key]
    assert run.share is not None, "it names no node, so that every site may matter"
    assert 0 < run.share < 1
    assert run.shapes == ((1, 16, 4000),)
    assert found.seconds > 0


def fused() -> ModelProto:
    """Two dilated Convs with what runtimes fuse into them: a normalisation, a sum, activations."""
    constants = {name: np.ones(16, np.float32) for name in ("scale", "shift", "mean", "variance")}
    return build(
        [
            conv_node("x", "a", "w0", dilations=[2, 2], pads=[2] * 4),
            helper.make_node("BatchNormalization", ["a", *constants], ["n"]),
            helper.make_node("Relu", ["n"], ["r"]),
            conv_node("r", "b", "w1", dilations=[3, 3], pads=[3] * 4),
            helper.make_node("Add", ["b", "x"], ["s"]),
            helper.make_node("Relu", ["s"], ["y"]),
        ],
        {"x": [1, 16, 48, 48]},
        {"y": None},
        {"w0": values(16, 16, 3, 3), "w1": values(16, 16, 3, 3, seed=1), **constants},
    )


def check_fused(runtime: TimedBackend) -> None:
    """Each of these Convs has its share, and together they have most of the time."""
    proto = fused()
    sites = find(proto).sites
    found = profiling.profile(runtime, Subject(proto, Path()), sites, OPTIONS, {"x": values(1, 16, 48, 48)})
    shares = [found.sites[site.key].share for site in sites]
    assert None not in shares, "a fused node has the name of none of its parts, and stands for none"
    assert sum(filter(None, shares)) > 0.4


@WITH_VARIANTS
def test_a_fused_node_stands_for_its_parts(name: str) -> None:
    check_fused(ready(name))


@pytest.mark.parametrize("name", ["last part", "own name", "left out"])
def test_a_profile_that_loses_what_is_fused_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ready("onnxruntime_cpu")
    profile = profiling.profiled

    def losing(*given: Any) -> Profile:
        found = profile(*given)
        if not given[2].optimize:
            return found
        others = {"last part": "dilrewrite_5_", "own name": "fused_7", "left out": ""}
        nodes = [dataclasses.replace(n, name=others[name], stands_for="") if "Conv" in n.op else n for n in found.nodes]
        return dataclasses.replace(found, nodes=tuple(node for node in nodes if node.name))

    monkeypatch.setattr(profiling, "profiled", losing)
    with pytest.raises(AssertionError, match="a fused node has the name of none of its parts"):
        check_fused(runtime)


def check_own_layers(runtime: TimedBackend) -> None:
    """It tells of layers as no other runtime makes them of these nodes: here ONNX Runtime, whose numbers would pass."""
    feeds = {"x": values(1, 16, 48, 48)}
    runnable = Runnable(model=profiling.traced(fused())[0].SerializeToString())

    def layers(of: TimedBackend) -> list[tuple[str, str]]:
        return sorted({(node.name, node.op) for node in profiled(of, runnable, OPTIONS, feeds, 1).nodes})

    own = layers(runtime)
    assert own
    if not runtime.name.startswith("onnxruntime"):
        assert own != layers(timed_backend("onnxruntime_cpu")), "these are the layers of ONNX Runtime"


@WITH_VARIANTS
def test_a_profile_is_of_the_runtime_s_own_layers(name: str) -> None:
    check_own_layers(ready(name))


def test_onnx_runtime_under_another_name_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = ready("onnxruntime_cpu")
    check_own_layers(runtime)
    monkeypatch.setattr(type(runtime), "name", "swift")
    with pytest.raises(AssertionError, match="these are the layers of ONNX Runtime"):
        check_own_layers(runtime)


@WITH_VARIANTS
def test_what_it_does_not_take_is_a_reason(name: str) -> None:
    runtime = ready(name)
    unknown = build(
        [helper.make_node("Unheard", ["x"], ["y"], domain="nowhere")], {"x": [1, 2]}, {"y": None}, domains=["nowhere"]
    )
    feeds = {"x": np.ones((1, 2), np.float32)}
    with contextlib.closing(runtime.bench(OPTIONS)) as bench:
        for data in (b"no model", unknown.SerializeToString()):

            def load(data: bytes = data) -> None:
                bench.add("m", prepared(runtime, Runnable(model=data), feeds), feeds)
                bench.open(["m"], runs=1)

            with pytest.raises((CannotLoad, CannotRun), match=r"^[^\n]+$"):
                load()


@EVERY
def test_a_crash_is_a_reason(name: str) -> None:
    import signal

    bench = running(name).bench(OPTIONS)
    with contextlib.closing(bench):
        os.kill(bench._child.process.pid, signal.SIGSEGV)  # type: ignore[attr-defined]
        with pytest.raises(Crashed, match="SIGSEGV"):
            bench.run([])


@EVERY
def test_settings_are_read_as_they_are_spelled(name: str) -> None:
    runtime = timed_backends()[name]
    assert spelled(runtime) == name
    assert pickle.loads(pickle.dumps(runtime)) == runtime
    with contextlib.suppress(TypeError, ValueError):  # a setting that takes only some words
        for field in dataclasses.fields(runtime):  # type: ignore[arg-type]
            other = dataclasses.replace(runtime, **{field.name: "f16"})  # type: ignore[type-var]
            assert spelled(other) == f"{name}:{field.name}=f16"
            assert pickle.loads(pickle.dumps(other)) == other
    with pytest.raises(UsageError, match=f"{name} has no setting 'colour'"):
        timed_backend(f"{name}:colour=red")
    ready(name)
    assert timed_backend(name) == runtime


@EVERY
def test_the_words_of_a_report(name: str) -> None:
    runtime = ready(name)
    assert runtime.versions()
    assert runtime.device()
    assert all(isinstance(value, str) for value in runtime.settings(OPTIONS).values())
    assert math.isfinite(runtime.rank)


@EVERY
def test_a_model_is_sent_by_its_content(name: str, tmp_path: Path) -> None:
    """In a process that was started in an empty folder, after everything here is gone but what was sent."""
    runtime, feeds = running(name), MODELS["three nodes"][1]
    here = tmp_path / "here"
    here.mkdir()
    onnx.save_model(three_nodes(), here / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    data, files = prepared(runtime, Runnable(model=here / "m.onnx"), feeds).content()
    for file in here.iterdir():
        file.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for place, content in files.items():
        (elsewhere / place).write_bytes(content)
    sent = artifact(Runnable(model=data, folder=elsewhere if files else None))
    with contextlib.closing(runtime.bench(OPTIONS)) as bench:
        folder = Path(f"/proc/{bench._child.process.pid}/cwd")  # type: ignore[attr-defined]
        assert not {file.name for file in folder.iterdir()} & {"m.onnx", "w.bin"}
        bench.add("m", sent, feeds)
        assert bench.outputs("m").keys() == {"y"}


def test_a_setting_of_a_wrong_value() -> None:
    """Told where the runtime is not installed, too."""
    with pytest.raises(UsageError, match="precision=f8 is not one of f32, bf16, f16"):
        timed_backend("openvino_cpu:precision=f8")


def test_a_runtime_of_another_distribution_is_one_file(tmp_path: Path) -> None:
    """The example of docs/backends.md, installed beside dilrewrite, times a model in its worker process."""
    EXAMPLES["runtime"].install(tmp_path)
    code = """
        import contextlib
        from pathlib import Path
        from dilrewrite.proof.verdict import Subject
        from dilrewrite.runtimes import Runnable, prepared, spelled, timed_backend
        from dilrewrite.sites.find import find
        from dilrewrite.timing import profiling
        from tests.runtimes.test_contract import MODELS, OPTIONS
        runtime = timed_backend("numpy_reference:repeats=2")
        proto, feeds = MODELS["three nodes"]
        with contextlib.closing(runtime.bench(OPTIONS)) as bench:
            bench.add("m", prepared(runtime, Runnable(model=proto.SerializeToString()), feeds), feeds)
            bench.open(["m"], runs=1)
            print(spelled(runtime), len(bench.run(["m", "m"])), list(bench.outputs("m")))
        found = profiling.profile(runtime, Subject(proto, Path()), find(proto).sites, OPTIONS, feeds)
        print([0 < run.share < 1 for run in found.sites.values()])
    """
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "numpy_reference:repeats=2 2 ['y']\n[True]\n", done.stderr
