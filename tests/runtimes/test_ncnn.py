"""ncnn behind pnnx: what is missing, what pnnx does wrong, and where ncnn computes something else without a word."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.choice import decide
from dilrewrite.errors import MissingError, UsageError
from dilrewrite.forms.strategies import strategies
from dilrewrite.runtimes import CannotLoad, CannotRun, Options, Runnable, prepared, timed_backend
from dilrewrite.runtimes import ncnn as runtime
from dilrewrite.timing.outcome import Outcome
from dilrewrite.timing.stopwatch import Comparison
from tests.models_for_tests import build, conv1d, conv_node, values
from tests.runtimes.test_contract import OPTIONS, TOLERANCE, ready, wanted

NEW = {"ncnn": "1.0.20261020", "pnnx": "20261020"}


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        (
            {},
            r"^backend ncnn: ncnn is not installed: pip install 'dilrewrite\[ncnn\]' && pip install --no-deps 'pnnx>=",
        ),
        ({"ncnn": NEW["ncnn"]}, "pnnx is not installed: pip install"),
        (
            {**NEW, "ncnn": "1.0.20260526"},
            r"ncnn is 1\.0\.20260526, and 1\.0\.20261020 or later is needed: pip install",
        ),
        ({**NEW, "pnnx": "20260526"}, "pnnx is 20260526, and 20261020 or later is needed: pip install"),
        (NEW, "pnnx has no program for this system in /nowhere"),
    ],
)
def test_what_is_missing(installed: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.util, "find_spec", installed.get)
    monkeypatch.setattr(runtime, "_program", lambda: Path("/nowhere/pnnx"))
    with pytest.raises(MissingError, match=said) as raised:
        timed_backend("ncnn")
    assert raised.value.exit_code == 4


@pytest.mark.parametrize("setting", ["precision=f8", "winograd=true", "sgemm=1"])
def test_a_setting_of_a_wrong_value(setting: str) -> None:
    with pytest.raises(UsageError, match=f"{setting} is n"):
        timed_backend(f"ncnn:{setting}")


# -- pnnx, with a stand-in for its program ---------------------------------------------------------------------------


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have pnnx be a shell script; whatever it does, no file of its own or of ours is left."""
    script, temporary = tmp_path / "pnnx", tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(runtime, "_program", lambda: script)

    def write(text: str) -> None:
        runtime._converted.cache_clear()
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)

    yield write
    assert list(temporary.iterdir()) == []
    runtime._converted.cache_clear()


def prepare(proto: ModelProto) -> dict[str, Any]:
    """Have a model converted; return the line of JSON."""
    feeds = {value.name: np.zeros([size.dim_value for size in value.type.tensor_type.shape.dim], np.float32)
             for value in proto.graph.input}  # fmt: skip
    data, files = prepared(runtime.BACKEND, Runnable(model=proto.SerializeToString()), feeds).content()
    assert not files
    return dict(runtime.json.loads(data.partition(b"\n")[0]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("echo a > left; echo a > $TMPDIR/left; printf 'one\\n\\033[0;93mboom\\033[0m\\n\\n' >&2; exit 3",
         "^pnnx ended with exit code 3: boom$"),
        ("kill -SEGV $$", "^pnnx was killed by SIGSEGV: it says nothing$"),
        ("exec sleep 60", r"^pnnx converts for more than 0\.5 s, and was stopped$"),
        ("echo no graph", "^pnnx makes no ncnn model of it: no graph$"),
        ("touch model.ncnn.param model.ncnn.bin model_ncnn.py", "^pnnx kept 0 of 1 inputs$"),
    ],
)  # fmt: skip
def test_what_pnnx_fails_with(
    text: str, said: str, program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "CONVERT_S", 0.5 if "sleep" in text else 60.0)
    program(text)
    with pytest.raises(CannotLoad, match=said):
        prepare(conv1d())


def test_a_program_that_does_not_start(program: Callable[[str], None], tmp_path: Path) -> None:
    program("")
    (tmp_path / "pnnx").chmod(0o644)
    with pytest.raises(CannotLoad, match=r"^pnnx does not start: .*Permission denied"):
        prepare(conv1d())


def test_a_model_of_integers_is_refused(program: Callable[[str], None]) -> None:
    program("exit 1")
    proto = conv1d()
    proto.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(CannotLoad, match=r"^ncnn runs here on float32 inputs and outputs only, and 'y' is none$"):
        prepare(proto)


PARAM = """7767517
5 5
Input                    in0                      0 1 in0
Padding                  pad_0                    1 1 in0 1 0=0 1=0 2=2 3=0 4=0 5=0.0 6=0
Convolution1D            conv1drelu_0             1 1 1 2 0=8 1=3 2=2 3=1 4=0 5=1 6=192 9=1
Convolution1D            conv1d_7                 1 1 2 3 0=8 1=3 2=2 3=1 4=2 5=1 6=192
Convolution1D            conv1d_5                 1 1 3 out0 0=8 1=3 2=4 3=1 4=4 5=1 6=192
"""

WIDE = """7767517
4 4
Convolution              conv_0                   1 1 in0 1 0=8 1=3 11=5 2=2 12=1 6=1
ConvolutionDepthWise     convdw_1                 1 1 1 2 0=8 1=3 2=2 6=1 7=8
Convolution3D            conv3d_2                 1 1 2 3 0=8 1=3 2=1 22=2 6=1
Deconvolution            deconv_3                 1 1 3 out0 0=6 1=3 2=2 6=1
"""


def convs(*sizes: tuple[str, tuple[int, ...], tuple[int, ...], dict[str, int]]) -> ModelProto:
    """Nodes that nothing has to run: operator, shape of the weight, dilations, further attributes."""
    weights = {f"w{place}": np.zeros(shape, np.float32) for place, (_, shape, _, _) in enumerate(sizes)}
    nodes = [
        helper.make_node(
            op, ["x", f"w{place}"], [f"y{place}"], name=f"dilrewrite_{place}_", dilations=dilations, **more
        )
        for place, (op, _, dilations, more) in enumerate(sizes)
    ]
    return build(nodes, {"x": None}, {"y0": None}, weights)


def test_a_conv_of_ncnn_goes_by_the_node_it_stands_for() -> None:
    """In their order among those of one size and dilation; where their numbers differ, none is told."""
    line = ("Conv", (8, 8, 3), (2,), {})
    assert runtime._nodes(convs(line, ("Conv", (8, 8, 3), (4,), {}), line), PARAM) == {
        "conv1drelu_0": "dilrewrite_0_",
        "conv1d_7": "dilrewrite_2_",
        "conv1d_5": "dilrewrite_1_",
    }
    assert runtime._nodes(convs(line, line, line), PARAM) == {}
    others = convs(
        ("ConvTranspose", (8, 3, 3, 3), (2, 2), {"group": 2}),
        ("Conv", (8, 8, 3, 3, 3), (2, 1, 1), {}),
        ("Conv", (8, 1, 3, 3), (2, 2), {"group": 8}),
        ("Conv", (8, 8, 5, 3), (1, 2), {}),
    )
    names = ("conv_0", "convdw_1", "conv3d_2", "deconv_3")
    assert runtime._nodes(others, WIDE) == {name: f"dilrewrite_{3 - place}_" for place, name in enumerate(names)}


# -- ncnn and pnnx themselves, where they are installed --------------------------------------------------------------


def outputs(proto: ModelProto, feeds: dict[str, Any], options: Options = OPTIONS, name: str = "ncnn") -> dict[str, Any]:
    ready("ncnn")
    backend = timed_backend(name)
    with contextlib.closing(backend.bench(options)) as bench:
        bench.add("m", prepared(backend, Runnable(model=proto.SerializeToString()), feeds), feeds)
        return bench.outputs("m")


def plane(*nodes: onnx.NodeProto, made: str, batch: int = 1, channels: int = 8) -> ModelProto:
    """A dilated Conv `s` from x to a, and what follows."""
    conv = conv_node("x", "a", name="s", dilations=[2, 2], pads=[2] * 4)
    return build([conv, *nodes], {"x": [batch, 8, 12, 12]}, {made: None}, {"w": values(channels, 8, 3, 3)})


X = {"x": values(1, 8, 12, 12, seed=1)}


def test_operators_that_ncnn_does_not_take_are_named() -> None:
    back = helper.make_node("DepthToSpace", ["a"], ["t"], blocksize=2, mode="DCR")
    with pytest.raises(CannotLoad, match=r"^ncnn has no layer for what pnnx leaves of it: DepthToSpace$"):
        outputs(plane(back, made="t"), X)


def test_phases_run_each_in_a_conv_of_its_own(tmp_path: Path) -> None:
    """By Transposes of four axes, the batch in front: it is of one image, and ncnn has no axis for it."""
    given, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(plane(made="a"), given)
    dilrewrite.optimize(given, out, strategy="phases_apart:layout=axes", budget=0)
    written = onnx.load(out)
    assert [node.op_type for node in written.graph.node].count("Conv") == 4
    got, expected = outputs(written, X)["a"], wanted(plane(made="a"), X)["a"]
    assert np.max(np.abs(got - expected)) <= TOLERANCE * np.max(np.abs(expected))


def test_a_batch() -> None:
    feeds = {"x": values(3, 8, 12, 12)}
    proto = plane(made="a", batch=3)
    got, expected = outputs(proto, feeds)["a"], wanted(proto, feeds)["a"]
    assert got.shape == expected.shape
    assert np.max(np.abs(got - expected)) <= TOLERANCE * np.max(np.abs(expected))


def test_more_axes_than_ncnn_has() -> None:
    proto = build([helper.make_node("Relu", ["x"], ["y"])], {"x": [2, 2, 2, 2, 2, 2, 2]}, {"y": [2] * 7})
    with pytest.raises((CannotLoad, CannotRun), match=r"^[^\n]+$"):
        outputs(proto, {"x": values(*[2] * 7)})


def test_precision_is_what_is_set() -> None:
    """f32, as the tests above hold it to, unless it is asked for less."""
    plain, coarse = (outputs(plane(made="a"), X, name=name)["a"] for name in ("ncnn", "ncnn:precision=bf16"))
    assert 1e-4 < np.max(np.abs(coarse - plain)) / np.max(np.abs(plain)) < 2e-2


def test_a_profile_is_of_its_own_layers() -> None:
    backend, proto = ready("ncnn"), plane(helper.make_node("Sigmoid", ["a"], ["t"]), made="t")
    with contextlib.closing(backend.bench(OPTIONS)) as bench:
        bench.add("m", prepared(backend, Runnable(model=proto.SerializeToString()), X), X)
        found = bench.profile("m", 3)
    assert {node.op for node in found.nodes} <= {"Convolution", "Sigmoid"}
    assert {node.name for node in found.nodes if node.op == "Convolution"} == {"s"}
    assert found.runs == 3


def back_in_columns(proto: ModelProto) -> ModelProto:
    """The same with DepthToSpace in the mode that ncnn has: CRD, behind channels that are put into its order."""
    nodes = []
    for node in proto.graph.node:
        if node.op_type != "DepthToSpace":
            nodes.append(node)
            continue
        d, (source,) = helper.get_node_attr_value(node, "blocksize"), node.input
        sizes = {
            f"{source}_{way}": np.array(size)
            for way, size in (("apart", (1, d * d, 8, -1)), ("joined", (1, 8 * d * d, 6, 6)))
        }
        proto.graph.initializer.extend(onnx.numpy_helper.from_array(size, name) for name, size in sizes.items())
        apart, joined = sizes
        nodes += [
            helper.make_node("Reshape", [source, apart], [f"{source}_1"]),
            helper.make_node("Transpose", [f"{source}_1"], [f"{source}_2"], perm=[0, 2, 1, 3]),
            helper.make_node("Reshape", [f"{source}_2", joined], [f"{source}_3"]),
            helper.make_node("DepthToSpace", [f"{source}_3"], list(node.output), blocksize=d, mode="CRD"),
        ]  # fmt: skip
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


@pytest.fixture
def turned(monkeypatch: pytest.MonkeyPatch) -> None:
    """pnnx makes the other order of channels of a SpaceToDepth. Without DepthToSpace, which ncnn lacks, it loads so."""
    ready("ncnn")
    convert = runtime._converted

    def respelled(model: bytes) -> bytes:
        return convert(back_in_columns(onnx.load_model_from_string(model)).SerializeToString())

    monkeypatch.setattr(runtime, "_converted", respelled)


@pytest.mark.usefixtures("turned")
def test_a_form_that_pnnx_gets_wrong_is_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As fast as it may seem: the model is right, and what else there is stays to be chosen from."""
    monkeypatch.setattr(Comparison, "faster", property(lambda _: True))
    monkeypatch.setattr(runtime.Ncnn, "layout", "depth")
    monkeypatch.setattr(decide, "strategies", lambda: {name: strategies()[name] for name in ("keep", "space_to_group")})
    given, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(plane(made="a"), given)
    report = dilrewrite.optimize(given, out, backend="ncnn", no_cache=True, budget=60)
    (site,) = report.sites
    (wrong,) = (each for each in site.candidates if each.strategy == "space_to_group")
    assert (wrong.outcome, wrong.timing) == (Outcome.WRONG, None)
    assert "values differ by up to" in wrong.cause
    assert report.exit_code == 0
    assert out.read_bytes() == given.read_bytes()


@pytest.mark.usefixtures("turned")
def test_a_form_that_was_asked_for_and_is_wrong_there_is_not_written(tmp_path: Path) -> None:
    given, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(plane(made="a"), given)
    report = dilrewrite.optimize(
        given, out, backend="ncnn", strategy="space_to_group:layout=depth", no_cache=True, budget=2
    )
    assert (report.status, report.exit_code) == ("differs", 3)
    assert not out.exists()


def test_an_original_that_pnnx_gets_wrong_is_told_of(tmp_path: Path) -> None:
    ready("ncnn")
    enter = helper.make_node("SpaceToDepth", ["x"], ["c"], blocksize=2)
    conv = conv_node("c", "y", name="s", dilations=[2, 2], pads=[2] * 4)
    proto = build([enter, conv], {"x": [1, 2, 24, 24]}, {"y": [1, 8, 12, 12]}, {"w": values(8, 8, 3, 3)})
    onnx.save(proto, tmp_path / "m.onnx")
    report = dilrewrite.optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", backend="ncnn", no_cache=True, budget=1)
    assert report.exit_code == 0
    assert report.measurement is not None
    (said,) = (doubt for doubt in report.measurement.doubts if "something else on ncnn" in doubt)
    assert "output 'y': " in said
