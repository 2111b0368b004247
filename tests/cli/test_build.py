"""dilrewrite build without a GPU: the engine and what its side-car says; everything else is one line and no file.

TensorRT for RTX builds engines without a GPU, so they are real; what a GPU would add is in tests/test_engines.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
import dilrewrite.cli.build as command
from dilrewrite.cli import main
from dilrewrite.options import Building
from dilrewrite.runtimes import _nvidia
from dilrewrite.tensorrt import bindings, fidelity, layers, make, precision
from tests import models_for_tests as tiny
from tests.models_for_tests import MODELS, cli, conv1d, conv2d, conv_node, listing, save, save_external, values
from tests.tensorrt.rtx import FLAVOUR as RTX
from tests.tensorrt.rtx import NO_GPU, needs_rtx, only, without_gpu

Capsys = pytest.CaptureFixture[str]
Data = dict[str, Any]


def driver() -> bool:
    """Whether this machine has a driver, which lets TensorRT build what it cannot without one."""
    try:
        _nvidia.driver()
    except OSError:
        return False
    return True


needs_no_driver = pytest.mark.skipif(driver(), reason="an NVIDIA driver is installed")


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)


def side_car(engine: Path) -> Data:
    found = json.loads(Path(f"{engine}.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def symmetric(zero: int = 0) -> ModelProto:
    """A quantised Conv as TensorRT takes it, where `zero` is 0: int8, symmetric, weights per channel."""
    node = helper.make_node
    weight = np.random.default_rng(1).integers(-127, 128, size=(4, 4, 3, 3)).astype(np.int8)
    return tiny.build(
        [
            node("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="q_in"),
            node("DequantizeLinear", ["xq", "xs", "xz"], ["xf"], name="dq_in"),
            node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], name="dq_w", axis=0),
            conv_node("xf", "y", "wf", dilations=[2, 2], pads=[2] * 4),
        ],
        {"x": [1, 4, 16, 16]},
        {"y": [1, 4, 16, 16]},
        {
            "w": weight,
            "ws": np.full(4, 0.01, np.float32),
            "wz": np.zeros(4, np.int8),
            "xs": np.array(0.03, np.float32),
            "xz": np.array(zero, np.int8),
        },
    )


def to_depth() -> ModelProto:
    """As other tools write dilated convolutions: a SpaceToDepth, which an odd width does not pass."""
    return tiny.build(
        [
            helper.make_node("SpaceToDepth", ["x"], ["d"], name="to_depth", blocksize=2),
            conv_node("d", "y", dilations=[1, 1], pads=[1] * 4),
        ],
        {"x": [1, 2, 8, "width"]},
        {"y": [1, 8, 4, None]},
        {"w": values(8, 8, 3, 3)},
    )


# -- the engine, and what is said of it ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """A build that was run once for several tests: the engine, what was printed, and the side-car."""

    model: Path
    engine: Path
    out: str
    err: str

    @property
    def side_car(self) -> Data:
        return side_car(self.engine)


def run_once(model: Path, engine: Path, *arguments: object) -> Command:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        without_gpu(patch)
        code = main(["build", str(model), "-o", str(engine), *map(str, arguments)])
    assert code == 0, err.getvalue()
    return Command(model, engine, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """An engine of the model as it is."""
    folder = tmp_path_factory.mktemp("built")
    return run_once(MODELS / "aspp_segmentation.onnx", folder / "E", "--flavour", RTX, "--json")


OPTIONS = ("--workspace", 256, "--optimization-level", 2, "--compute-capability", "8.6", "--compute-capability", "12.0")


@pytest.fixture(scope="module")
def configured(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """An engine with everything asked for that is built without a GPU."""
    folder = tmp_path_factory.mktemp("configured")
    places = ("--timing-cache", folder / "timings", "--export-layer-info", folder / "layers.json")
    reports = ("--report", folder / "report")
    return run_once(MODELS / "meshnet3d.onnx", folder / "E", *OPTIONS, *places, *reports, "--precision", "fp32")


@needs_rtx
def test_an_engine_and_a_side_car(built: Command) -> None:
    assert sorted(listing(built.engine.parent)) == ["E", "E.json"]
    assert built.err == ""
    found, plan = built.side_car, built.engine.read_bytes()
    assert found["file"] == "E"
    assert (found["bytes"], found["sha256"]) == (len(plan), hashlib.sha256(plan).hexdigest())
    assert (found["flavour"], found["version"]) == (RTX, bindings.load(RTX).version)
    assert found["dilrewrite"] == dilrewrite.__version__
    digest = hashlib.sha256(built.model.read_bytes()).hexdigest()
    assert found["onnx"]["file"] == str(built.model)
    assert found["onnx"]["sha256"] == found["onnx"]["built_sha256"] == digest
    assert found["chosen_on"] == "the model as it was given, not measured on TensorRT"
    assert found["checked"].startswith("not run: ")
    assert NO_GPU in found["checked"]
    assert found["device"] is None
    assert found["build_seconds"] > 0
    assert found["inputs"] == [{"name": "image", "datatype": "FLOAT", "shape": [1, 3, 224, 224]}]
    assert found["outputs"] == [{"name": "logits", "datatype": "FLOAT", "shape": [1, 21, 224, 224]}]
    assert found["profiles"] == {}
    assert found["flags"]["TF32"] is True
    assert not any(found["flags"][name] for name in ("REFIT", "STRIP_PLAN", "VERSION_COMPATIBLE", "WEIGHT_STREAMING"))
    assert found["memory"]
    assert all(size > 0 for size in found["memory"].values())
    told = "tensorrt_rtx --onnx=aspp_segmentation.onnx --saveEngine=E --profilingVerbosity=detailed"
    assert found["trtexec"] == told


@needs_rtx
def test_the_precision_is_what_a_build_logs(built: Command) -> None:
    """Read from the layers, and not from what was asked for: the same build done here logs the same."""
    library = bindings.load(RTX)
    proto = onnx.load(built.model)
    make.build(library, proto, Building())
    logged = layers.from_log(library.log.messages)
    found = built.side_car
    told = [(layer["kind"], layer["inputs"], layer["outputs"], layer["nodes"]) for layer in found["layers"]]
    assert told == [(one.kind, list(one.inputs), list(one.outputs), list(one.nodes)) for one in logged.layers]
    assert found["layers_from"] == logged.source == "build log"
    assert found["layer_types"] == logged.kinds()
    names = [node.name for node in proto.graph.node if node.op_type == "Conv"]
    assert found["precision"] == {
        "asked": None,
        "built": "tf32",
        "converted": False,
        "changes": [],
        "convolutions": logged.datatypes(names),
        "fidelity": None,
    }
    assert set(found["precision"]["convolutions"]) == {"Float"}


@needs_rtx
def test_the_report_holds_the_side_car(built: Command) -> None:
    report = json.loads(built.out)
    assert (report["command"], report["status"], report["exit_code"]) == ("build", "built", 0)
    assert report["engine"] == built.side_car
    assert report["output"] == str(built.engine)
    assert report["before"]["sha256"] == built.side_car["onnx"]["sha256"]
    assert report["options"]["flavour"] == RTX
    assert report["verdict"] is report["measurement"] is None
    assert set(report["seconds"]) >= {"load", "build"}


@needs_rtx
def test_everything_asked_for_is_told(configured: Command) -> None:
    found = configured.side_car
    flags = found["flags"]
    assert (flags["workspace_mib"], flags["optimization_level"], flags["TF32"]) == (256, 2, False)
    assert flags["compute_capabilities"] == ["SM86", "SM120"]
    assert (found["precision"]["asked"], found["precision"]["built"]) == ("fp32", "fp32")
    assert found["trtexec"].split()[1:] == [
        "--onnx=meshnet3d.onnx",
        "--saveEngine=E",
        "--profilingVerbosity=detailed",
        "--noTF32",
        "--memPoolSize=workspace:256M",
        "--builderOptimizationLevel=2",
        "--computeCapabilities=8.6,12.0",
    ]
    report = json.loads((configured.engine.parent / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["engine"] == found
    assert (
        report["options"]
        | {
            "flavour": "auto",
            "precision": "fp32",
            "workspace_mib": 256,
            "optimization_level": 2,
            "compute_capabilities": ["8.6", "12.0"],
            "timing_cache": str(configured.engine.parent / "timings"),
        }
        == report["options"]
    )
    assert configured.out.strip()


@needs_rtx
def test_layers_as_trtexec_exports_them(configured: Command) -> None:
    found = json.loads((configured.engine.parent / "layers.json").read_text(encoding="utf-8"))
    assert set(found) == {"Layers", "Bindings"}
    assert found["Bindings"] == ["volume", "logits"]
    told = configured.side_car["layers"]
    assert [layer["Name"] for layer in found["Layers"]] == [layer["name"] for layer in told]
    for layer, ours in zip(found["Layers"], told, strict=True):
        assert set(layer) == {"Name", "LayerType", "Inputs", "Outputs", "TacticName", "Metadata"}
        assert [tensor["Datatype"] for tensor in layer["Inputs"]] == ours["inputs"]
        assert list(layers.onnx_nodes(layer["Metadata"])) == ours["nodes"]


@needs_rtx
def test_a_timing_cache_is_kept(configured: Command, capsys: Capsys, tmp_path: Path) -> None:
    """It is written, read by the next build, and written anew; what is in there is the library's business."""
    cache = tmp_path / "timings"
    cache.write_bytes((configured.engine.parent / "timings").read_bytes())
    assert cache.stat().st_size > 0
    model = save(conv2d(), tmp_path / "m.onnx")
    whole = cache.read_bytes()
    for content in (whole, whole[:8] + b"another version's timings", b""):
        cache.write_bytes(content)
        outcome = cli(capsys, "build", model, "--timing-cache", cache, "--force", "--quiet")
        assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
        assert cache.read_bytes()[:4] == whole[:4]
        assert len(cache.read_bytes()) >= len(whole)


@needs_rtx
def test_what_is_no_timing_cache_is_left_alone(capsys: Capsys, tmp_path: Path) -> None:
    """A mistyped name costs nobody a file."""
    notes = tmp_path / "notes.txt"
    notes.write_text("do not touch\n")
    outcome = cli(capsys, "build", save(conv2d(), tmp_path / "m.onnx"), "--timing-cache", notes)
    assert outcome.code == 0
    assert notes.read_text() == "do not touch\n"
    said = "--timing-cache notes.txt: holds no timings of this TensorRT and was left as it is; name another file"
    assert said in side_car(tmp_path / "m.engine")["warnings"]
    assert said in " ".join(outcome.out.split())


DEMOS = {
    "aspp_segmentation": (),
    "causal_tcn": ("roll:1x88x32",),
    "hifigan_vocoder": ("mel:1x80x8",),
    "meshnet3d": (),
    "resnet_stage_os8": (),
    "splice_sites": ("sequence:1x4x256",),
}


@needs_rtx
@pytest.mark.parametrize(("asked", "word"), [("fp16", "Half"), ("bf16", "BFloat16")])
@pytest.mark.parametrize("name", DEMOS)
def test_no_convolution_stays_in_float32(capsys: Capsys, tmp_path: Path, name: str, asked: str, word: str) -> None:
    engine = tmp_path / "E.engine"
    sizes = [part for text in DEMOS[name] for part in ("--opt", text)]
    outcome = cli(capsys, "build", MODELS / f"{name}.onnx", "-o", engine, "--precision", asked, *sizes, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    found = side_car(engine)
    told = found["precision"]
    assert (told["asked"], told["built"], told["converted"]) == (asked, asked, True)
    assert set(told["convolutions"]) == {word}
    assert 0 < told["fidelity"]["difference"] <= told["fidelity"]["bound"]
    for text in DEMOS[name]:
        given, _, dims = text.partition(":")
        shape = [int(size) for size in dims.split("x")]
        assert found["profiles"] == {given: {"min": shape, "opt": shape, "max": shape}}
        assert told["fidelity"]["shapes"] == {given: shape}
        assert [f"--{kind}Shapes={text}" for kind in ("min", "opt", "max")] == found["trtexec"].split()[3:6]
    assert found["onnx"]["sha256"] == hashlib.sha256((MODELS / f"{name}.onnx").read_bytes()).hexdigest()
    assert found["onnx"]["built_sha256"] != found["onnx"]["sha256"]


@needs_rtx
def test_a_quantised_model(capsys: Capsys, tmp_path: Path) -> None:
    model = save(symmetric(), tmp_path / "m.onnx")
    for options in ((), ("--precision", "int8-qdq", "--force")):
        assert cli(capsys, "build", model, *options, "--quiet").code == 0
        told = side_car(tmp_path / "m.engine")["precision"]
        assert (told["built"], told["converted"], told["convolutions"]) == ("int8-qdq", False, {"Int8": 1})


@needs_rtx
def test_sizes(capsys: Capsys, tmp_path: Path) -> None:
    model = save(conv1d(batch="batch", length="time"), tmp_path / "m.onnx")
    sizes = ("--min", "x:1x2x8", "--opt", "x:2x2x16", "--max", "x:4x2x64")
    outcome = cli(capsys, "build", model, *sizes, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = side_car(tmp_path / "m.engine")
    assert found["profiles"] == {"x": {"min": [1, 2, 8], "opt": [2, 2, 16], "max": [4, 2, 64]}}
    assert found["inputs"][0]["shape"] == [-1, 2, -1]
    assert {"min": ["x:1x2x8"], "opt": ["x:2x2x16"], "max": ["x:4x2x64"]}.items() <= outcome.report["options"].items()


@needs_rtx
def test_the_log_is_shown(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """On standard error, which TensorRT's own writing is kept from otherwise; standard output is the report's."""
    model = save(conv2d(), tmp_path / "m.onnx")
    assert main(["build", str(model), "--verbose", "--json"]) == 0
    told = capfd.readouterr()
    assert json.loads(told.out)["status"] == "built"
    assert "Adding network input: x" in told.err
    assert len(told.err.splitlines()) > 50
    assert main(["build", str(model), "--force"]) == 0
    assert capfd.readouterr().err == ""


@needs_rtx
def test_from_python(tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    lines: list[str] = []
    model = save(conv2d(), tmp_path / "m.onnx")
    report = dilrewrite.build(
        model, precision="fp16", progress=lambda *step: steps.append(step), tell=lines.append, optimization_level=0
    )
    assert report.status == "built"
    assert report.engine == dilrewrite.inspect_engine(tmp_path / "m.engine")
    assert report.options["optimization_level"] == 0
    assert [step for step in steps if step[0] != "build"] == [("compare with float32", done, 1) for done in (0, 1)]
    built = [step for step in steps if step[0] == "build"]
    assert len(built) > 2
    assert built[-1][1] == built[-1][2]
    assert all(0 <= done <= total for _, done, total in built)
    assert any("Adding network input: x" in line for line in lines)


@needs_rtx
def test_a_conversion_that_was_not_compared_says_why(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime lacks kernels that TensorRT has; here it lacks all of them."""
    from dilrewrite.runtimes import CannotLoad
    from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu

    def refuses(*_: Any) -> Any:
        raise CannotLoad("no kernel")

    monkeypatch.setattr(OnnxRuntimeCpu, "session", refuses)
    assert cli(capsys, "build", save(conv2d(), tmp_path / "m.onnx"), "--precision", "fp16", "--quiet").code == 0
    told = side_car(tmp_path / "m.engine")["precision"]
    assert told["fidelity"]["difference"] is None
    assert told["fidelity"]["reason"] == "not compared: no kernel"


@needs_rtx
def test_names_that_a_shell_would_split(capsys: Capsys, tmp_path: Path) -> None:
    model = save(conv2d(), tmp_path / "my model.onnx")
    assert cli(capsys, "build", model, "--quiet").code == 0
    told = side_car(tmp_path / "my model.engine")["trtexec"]
    assert shlex.split(told)[1:3] == ["--onnx=my model.onnx", "--saveEngine=my model.engine"]


@needs_rtx
@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_path_that_is_no_text(capsys: Capsys, tmp_path: Path) -> None:
    model = save(conv2d(), tmp_path / os.fsdecode(b"m\xff.onnx"))
    cache = tmp_path / os.fsdecode(b"t\xff")
    outcome = cli(capsys, "build", model, "--timing-cache", cache, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.report["engine"]["file"] == "m\\xff.engine"
    assert cli(capsys, "inspect", tmp_path / os.fsdecode(b"m\xff.engine"), "--json").code == 0


# -- places --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """A command line that must fail, and words that its message must hold."""

    arguments: Sequence[object]
    words: Sequence[object]
    code: int = 2


Case = Callable[[Path], Bad]


def check(capsys: Capsys, folder: Path, bad: Bad) -> str:
    """One line that says what is wrong, the exit code, and a folder as it was."""
    before = listing(folder)
    outcome = cli(capsys, *bad.arguments)
    assert outcome.out == ""
    assert outcome.err.endswith("\n"), outcome
    line = outcome.err[:-1]
    assert "\n" not in line, line
    assert line.startswith("dilrewrite: ")
    assert outcome.code == bad.code, line
    for word in bad.words:
        assert str(word) in line
    assert listing(folder) == before
    return line


def cases(found: dict[str, Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", found.values(), ids=found.keys())


def model(folder: Path) -> Path:
    return save(conv2d(), folder / "m.onnx")


def written(path: Path, text: str = "mine") -> Path:
    path.write_text(text)
    return path


def engine_exists(folder: Path) -> Bad:
    path = model(folder)
    return Bad(["build", path], [written(folder / "m.engine"), "exists", "--force"])


def side_car_exists(folder: Path) -> Bad:
    path = model(folder)
    return Bad(["build", path], [written(folder / "m.engine.json"), "exists", "--force"])


def engine_is_the_model(folder: Path) -> Bad:
    path = model(folder)
    return Bad(["build", path, "-o", path, "--force"], [path, "is a place for something else"])


def engine_is_the_model_by_another_name(folder: Path) -> Bad:
    path = model(folder)
    (folder / "sub").mkdir()
    return Bad(["build", path, "-o", folder / "sub" / ".." / "m.onnx", "--force"], ["is a place for something else"])


def side_car_is_the_model(folder: Path) -> Bad:
    path = save(conv2d(), folder / "m.engine.json")
    return Bad(["build", path, "-o", folder / "m.engine", "--force"], [path, "is a place for something else"])


def engine_is_data_of_the_model(folder: Path) -> Bad:
    path = save_external(conv2d(), folder / "m.onnx")
    return Bad(["build", path, "-o", folder / "m.0.bin", "--force"], ["m.0.bin", "is a place for something else"])


def engine_is_a_folder(folder: Path) -> Bad:
    return Bad(["build", model(folder), "-o", folder], ["is a folder"])


def folder_is_not_there(folder: Path) -> Bad:
    return Bad(["build", model(folder), "-o", folder / "sub" / "E.engine"], [folder / "sub", "does not exist"])


def timings_over_the_model(folder: Path) -> Bad:
    path = model(folder)
    (folder / "sub").mkdir()
    place = folder / "sub" / ".." / "m.onnx"
    return Bad(["build", path, "--timing-cache", place], ["--timing-cache", "is a place for something else"])


def timings_over_a_link_to_the_model(folder: Path) -> Bad:
    path = model(folder)
    (folder / "t").symlink_to(path)
    return Bad(["build", path, "--timing-cache", folder / "t"], ["--timing-cache", "is a place for something else"])


def timings_over_the_engine(folder: Path) -> Bad:
    place = folder / "m.engine"
    return Bad(["build", model(folder), "--timing-cache", place], ["--timing-cache", "is a place for something else"])


def timings_in_a_folder(folder: Path) -> Bad:
    return Bad(["build", model(folder), "--timing-cache", folder], ["is a folder"])


def layers_over_the_model(folder: Path) -> Bad:
    path = model(folder)
    given = ["build", path, "--export-layer-info", path, "--force"]
    return Bad(given, ["--export-layer-info", "is a place for something else"])


def layers_over_the_side_car(folder: Path) -> Bad:
    given = ["build", model(folder), "--export-layer-info", folder / "m.engine.json"]
    return Bad(given, ["--export-layer-info", "is a place for something else"])


def layers_over_the_timings(folder: Path) -> Bad:
    places = ["--export-layer-info", folder / "t", "--timing-cache", folder / "t"]
    return Bad(["build", model(folder), *places], ["--export-layer-info", "is a place for something else"])


def layers_exist(folder: Path) -> Bad:
    place = written(folder / "layers.json")
    return Bad(["build", model(folder), "--export-layer-info", place], [place, "--force"])


def report_over_the_side_car(folder: Path) -> Bad:
    given = ["build", model(folder), "-o", folder / "report", "--report", folder]
    return Bad(given, ["--report", "report.json"])


def report_is_a_file(folder: Path) -> Bad:
    return Bad(["build", model(folder), "--report", written(folder / "r")], ["--report", "is not a folder"])


PLACES: tuple[Case, ...] = (
    engine_exists,
    side_car_exists,
    engine_is_the_model,
    engine_is_the_model_by_another_name,
    side_car_is_the_model,
    engine_is_data_of_the_model,
    engine_is_a_folder,
    folder_is_not_there,
    timings_over_the_model,
    timings_over_a_link_to_the_model,
    timings_over_the_engine,
    timings_in_a_folder,
    layers_over_the_model,
    layers_over_the_side_car,
    layers_over_the_timings,
    layers_exist,
    report_over_the_side_car,
    report_is_a_file,
)


@pytest.fixture
def _unbuilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built; the flavour is there, whatever is installed."""

    def fails(*_: Any, **__: Any) -> Any:
        pytest.fail("an engine was begun")

    monkeypatch.setattr("dilrewrite.tensorrt.engines.build", fails)
    only(monkeypatch, RTX)


@pytest.mark.usefixtures("_unbuilt")
@pytest.mark.parametrize("case", PLACES, ids=lambda case: case.__name__)
def test_unusable_place(capsys: Capsys, tmp_path: Path, case: Case) -> None:
    """Known before anything is built."""
    check(capsys, tmp_path, case(tmp_path))


@needs_rtx
def test_force_replaces(capsys: Capsys, tmp_path: Path) -> None:
    path = model(tmp_path)
    for name in ("m.engine", "m.engine.json", "layers.json"):
        written(tmp_path / name)
    outcome = cli(capsys, "build", path, "--force", "--export-layer-info", tmp_path / "layers.json", "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert set(listing(tmp_path)) == {"m.onnx", "m.engine", "m.engine.json", "layers.json"}
    assert "mine" not in {(tmp_path / name).read_bytes()[:4].decode("latin1") for name in ("m.engine", "layers.json")}
    assert dilrewrite.inspect_engine(tmp_path / "m.engine").file == "m.engine"


# -- sizes that do not fit -----------------------------------------------------------------------------------------


def sizes(*options: object, words: Sequence[object], made: Callable[[], ModelProto] | None = None) -> Case:
    """`build` of a model with unknown sizes."""

    def case(folder: Path) -> Bad:
        proto = made() if made is not None else conv1d(batch="batch", length="time")
        return Bad(["build", save(proto, folder / "m.onnx"), *options], words)

    return case


SIZES: dict[str, Case] = {
    "none given": sizes(words=["m.onnx", "'x'", "?x2x?", "--opt"]),
    "another input's": sizes("--opt", "z:1x2x16", words=["'z'", "its inputs: 'x'"]),
    "min above opt": sizes("--min", "x:1x2x32", "--opt", "x:1x2x16", words=["'x'", "--min 1x2x32", "--opt 1x2x16"]),
    "opt above max": sizes("--opt", "x:1x2x32", "--max", "x:1x2x16", words=["'x'", "--opt 1x2x32", "--max 1x2x16"]),
    "of another rank": sizes("--opt", "x:1x2", words=["'x'", "?x2x?", "1x2"]),
    "of a known extent": sizes("--opt", "x:1x3x16", words=["'x'", "?x2x?", "1x3x16"]),
    "malformed": sizes("--opt", "x=1x2x16", words=["--opt x=1x2x16", "--opt x:1x3x224x224"]),
    "zero": sizes("--min", "x:0x2x16", words=["--min x:0x2x16"]),
    "twice": sizes("--max", "x:1x2x16", "--max", "x:1x2x32", words=["--max x:1x2x32", "given before"]),
    "blocks that do not divide": sizes(
        *("--min", "x:1x2x8x7", "--opt", "x:1x2x8x8", "--max", "x:1x2x8x16"),
        made=to_depth,
        words=["--min", "input 'x'", "axis 3", "7 does not fit", "6 and 8"],
    ),
}


@pytest.mark.usefixtures("_unbuilt")
@cases(SIZES)
def test_sizes_that_do_not_fit(capsys: Capsys, tmp_path: Path, case: Case) -> None:
    check(capsys, tmp_path, case(tmp_path))


# -- models, options, and what is not there ------------------------------------------------------------------------


def of(made: Callable[[], ModelProto], *options: object, words: Sequence[object], code: int = 2) -> Case:
    """`build` of a model, and what is wrong about it."""

    def case(folder: Path) -> Bad:
        return Bad(["build", save(made(), folder / "m.onnx"), *options], words, code)

    return case


def integer_operator() -> ModelProto:
    node = helper.make_node("QLinearConv", ["x", "s", "z", "w", "s", "z", "s", "z"], ["y"], name="q")
    weights = {"w": np.ones((2, 2, 3), np.int8), "s": np.array(1, np.float32), "z": np.array(0, np.int8)}
    return tiny.build([node], {"x": [1, 2, 16]}, {"y": [1, 2, 14]}, weights, element=TensorProto.INT8)


def nine_dimensions() -> ModelProto:
    return tiny.build([helper.make_node("Relu", ["x"], ["y"], name="relu")], {"x": [1] * 9}, {"y": [1] * 9})


def double() -> ModelProto:
    return conv1d(dtype=np.float64, element=TensorProto.DOUBLE)


def half() -> ModelProto:
    return conv1d(dtype=np.float16, element=TensorProto.FLOAT16)


def damaged(folder: Path) -> Bad:
    path = folder / "m.onnx"
    path.write_bytes((MODELS / "meshnet3d.onnx").read_bytes()[:-500])
    return Bad(["build", path], [path, "cut off"])


def no_model(folder: Path) -> Bad:
    return Bad(["build", folder / "m.onnx"], [folder / "m.onnx", "does not exist"])


def not_a_model(folder: Path) -> Bad:
    return Bad(["build", written(folder / "m.onnx", "a letter\n" * 20)], ["is not a whole ONNX model"])


def model_is_an_engine(folder: Path) -> Bad:
    path = folder / "m.onnx"
    path.write_bytes(b"ptrt" + bytes(100))
    return Bad(["build", path], [path, "is not an ONNX model"])


BAD: dict[str, Case] = {
    "--flavour nonsense": of(conv2d, "--flavour", "nonsense", words=["nonsense", "auto, tensorrt, tensorrt-rtx"]),
    "--precision nonsense": of(conv2d, "--precision", "nonsense", words=["nonsense", "fp32, tf32, fp16, bf16"]),
    "--precision int8-qdq of a float model": of(
        conv2d, "--precision", "int8-qdq", words=["m.onnx", "QuantizeLinear", "quantize_static", "QInt8"]
    ),
    "--precision fp16 of a quantised model": of(symmetric, "--precision", "fp16", words=["quantised", "fp16"]),
    "--precision bf16 of a float16 model": of(half, "--precision", "bf16", words=["is in fp16 already", "bf16"]),
    "zero points of uint8": of(tiny.quantized, words=["m.onnx", "uint8", "symmetric"]),
    "zero points other than 0": of(lambda: symmetric(3), words=["m.onnx", "other than 0", "symmetric"]),
    "QLinearConv": of(integer_operator, words=["m.onnx", "1 QLinearConv", "QDQ"]),
    "float64": of(double, words=["m.onnx", "float64", "float32"]),
    "nine dimensions": of(nine_dimensions, words=["m.onnx", "'x' has 9 dimensions", "8"]),
    "--workspace 0": of(conv2d, "--workspace", 0, words=["--workspace"]),
    "--optimization-level 6": of(conv2d, "--optimization-level", 6, words=["--optimization-level"]),
    "--device -1": of(conv2d, "--device", -1, words=["--device"]),
    "--device 0 without a GPU": of(conv2d, "--device", 0, words=["--device 0", NO_GPU, "nvidia-smi"], code=4),
    "--plugins of a missing file": of(conv2d, "--plugins", "/no/p.so", words=["--plugins /no/p.so", "no such file"]),
    "--inputs of a missing file": of(conv2d, "--inputs", "/no.npz", words=["--inputs /no.npz", "no such file"]),
    "damaged": damaged,
    "no model": no_model,
    "not a model": not_a_model,
    "an engine": model_is_an_engine,
}


@pytest.mark.usefixtures("_unbuilt")
@cases(BAD)
def test_what_no_engine_is_begun_for(capsys: Capsys, tmp_path: Path, case: Case) -> None:
    check(capsys, tmp_path, case(tmp_path))


REFUSED: dict[str, Case] = {
    "pads below 0": of(
        lambda: conv1d(dilations=[2], pads=[-1, 3]), words=["does not take the model", "Conv 'conv'", "Padding"]
    ),
    "a custom operator": of(tiny.custom_operator, words=["does not take the model"]),
    "a capability without kernels": of(
        conv2d, "--compute-capability", "9.0", words=["--compute-capability 9.0", "8.6", "12.0", "current"]
    ),
    "no capability": of(conv2d, "--compute-capability", "many", words=["--compute-capability many", "8.6"]),
    "the GPU that is there, and another": of(
        conv2d, "--compute-capability", "current", "--compute-capability", "8.6", words=["current", "stands alone"]
    ),
}
"""What TensorRT says, or what depends on which one it is."""


@needs_rtx
@cases(REFUSED)
def test_what_the_flavour_refuses(capsys: Capsys, tmp_path: Path, case: Case) -> None:
    check(capsys, tmp_path, case(tmp_path))


@needs_rtx
def test_plugins_are_of_another_flavour(capsys: Capsys, tmp_path: Path) -> None:
    plugin = written(tmp_path / "plugin.so")
    words = ["--plugins", "runs no plugins", "--flavour tensorrt"]
    check(capsys, tmp_path, Bad(["build", model(tmp_path), "--flavour", RTX, "--plugins", plugin], words))


@needs_rtx
@needs_no_driver
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--compute-capability", "current"), ["CUDA driver version is insufficient", "needs a GPU"]),
        (("--strip-plan",), ["CUDA_SUCCESS"]),
        (("--refit",), ["CUDA_SUCCESS"]),
        (("--version-compatible",), ["libnvinfer_lean"]),
    ],
    ids=lambda found: found[0],
)
def test_what_is_not_built_without_a_gpu(
    capsys: Capsys, tmp_path: Path, options: Sequence[str], words: Sequence[str]
) -> None:
    """In the library's own words, wherever it writes them."""
    command = ["build", model(tmp_path), "--flavour", RTX, *options]
    check(capsys, tmp_path, Bad(command, [RTX, "builds no engine", *words], 1))


@needs_rtx
def test_weight_streaming(capsys: Capsys, tmp_path: Path) -> None:
    assert cli(capsys, "build", model(tmp_path), "--flavour", RTX, "--weight-streaming", "--quiet").code == 0
    found = side_car(tmp_path / "m.engine")
    assert found["flags"]["WEIGHT_STREAMING"] is True
    assert found["trtexec"].split()[-1] == "--allowWeightStreaming"


def test_no_tensorrt_is_installed(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    words = ["no TensorRT is installed", "pip install 'dilrewrite[tensorrt]'", "pip install 'dilrewrite[tensorrt-rtx]'"]
    check(capsys, tmp_path, Bad(["build", model(tmp_path)], words, 4))


@pytest.mark.parametrize("flavour", bindings.FLAVOURS)
def test_the_flavour_is_not_installed(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flavour: str
) -> None:
    monkeypatch.setitem(sys.modules, bindings.module_name(flavour), None)
    words = [f"{flavour} is not installed", f"pip install 'dilrewrite[{flavour}]'"]
    check(capsys, tmp_path, Bad(["build", model(tmp_path), "--flavour", flavour], words, 4))


def test_the_flavour_cannot_be_imported(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(flavour: str) -> Any:
        raise OSError(f"lib{flavour}.so.1: cannot open\nshared object file")

    monkeypatch.setattr(bindings, "installed", lambda flavour: True)  # noqa: ARG005
    monkeypatch.setattr(bindings, "_import", broken)
    path = model(tmp_path)
    words = ["tensorrt is installed and cannot be imported", "libtensorrt.so.1: cannot open shared object file"]
    check(capsys, tmp_path, Bad(["build", path, "--flavour", "tensorrt"], words, 4))
    check(capsys, tmp_path, Bad(["build", path], ["no TensorRT is installed"], 4))


# -- engines that are not what was asked for -----------------------------------------------------------------------


@needs_rtx
def test_a_conversion_that_differs(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "bound", lambda *_: 1e-9)
    words = ["m.onnx", "converted to fp16", "1e-09 is allowed"]
    check(capsys, tmp_path, Bad(["build", model(tmp_path), "--precision", "fp16"], words, 3))


@needs_rtx
def test_an_engine_in_another_precision(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(precision.DATATYPES, "bf16", ("Nothing",))
    words = ["m.onnx", "bf16 was asked for", "1 in BFloat16"]
    check(capsys, tmp_path, Bad(["build", model(tmp_path), "--precision", "bf16"], words, 1))


# -- interrupts and full disks -------------------------------------------------------------------------------------


@pytest.fixture
def _interrupting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C when the builder has done two steps."""

    @contextlib.contextmanager
    def progress(*, hidden: bool) -> Iterator[Callable[[str, int, int], None]]:
        assert hidden in (True, False)
        pressed = []

        def tell(step: str, done: int, _total: int) -> None:
            if step == "build" and done == 2 and not pressed:
                pressed.append(done)
                signal.raise_signal(signal.SIGINT)

        yield tell

    monkeypatch.setattr(command, "progress", progress)


@needs_rtx
@pytest.mark.usefixtures("_interrupting")
@pytest.mark.parametrize("force", [False, True], ids=["new", "over another"])
def test_interrupt_while_building(capsys: Capsys, tmp_path: Path, force: bool) -> None:
    """The build ends at its next step; an engine of before stays."""
    handler = signal.getsignal(signal.SIGINT)
    given: list[object] = ["build", MODELS / "meshnet3d.onnx", "-o", tmp_path / "E.engine"]
    if force:
        written(tmp_path / "E.engine")
        given.append("--force")
    line = check(capsys, tmp_path, Bad(given, [], 130))
    assert line == "dilrewrite: interrupted; nothing was written"
    assert signal.getsignal(signal.SIGINT) is handler


@needs_rtx
@pytest.mark.parametrize(("step", "file"), [("engines.stage", "E.engine"), ("sidecar.render", "E.engine.json")])
def test_full_disk(tmp_path: Path, step: str, file: str) -> None:
    """From the beginning of a step on, no file gets more than a kilobyte."""
    pytest.importorskip("resource")
    program = (
        "import resource, sys\n"
        "from dilrewrite.tensorrt import engines\n"
        "from dilrewrite.cli import main\n"
        "from dilrewrite.tensorrt import sidecar\n"
        f"real = {step}\n"
        "def full(*given):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "    return real(*given)\n"
        f"{step} = full\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    (tmp_path / ".kept").touch()
    before = listing(tmp_path)
    given = ["build", str(MODELS / "meshnet3d.onnx"), "-o", str(tmp_path / "E.engine"), "--quiet"]
    run = [sys.executable, "-c", program, *given]
    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "disk is full" in done.stderr
    assert f"{tmp_path / file} could not be written" in done.stderr
    assert listing(tmp_path) == before
