"""Engines as arguments of inspect, bench, verify and optimize, on a machine without a GPU."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest

import dilrewrite
from dilrewrite.cli import main
from dilrewrite.commands import run as commands_run
from dilrewrite.errors import DiffersError, FailedError
from dilrewrite.tensorrt import bindings, exports
from tests import models_for_tests as tiny
from tests.models_for_tests import Outcome, cli, conv1d, conv2d, listing, save, save_external
from tests.tensorrt.rtx import FLAVOUR as RTX
from tests.tensorrt.rtx import NO_GPU, needs_rtx, only, without_gpu

Capsys = pytest.CaptureFixture[str]
Data = dict[str, Any]


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpu(monkeypatch)


@pytest.fixture(scope="module")
def _built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its engine, and the engine's side-car."""
    folder = tmp_path_factory.mktemp("built")
    path = save(conv2d(), folder / "m.onnx")
    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
        without_gpu(patch)
        code = main(["build", str(path), "--precision", "fp16", "--quiet"])
    assert code == 0, err.getvalue()
    return folder


@dataclass(frozen=True)
class Place:
    """A test's own copy of a model, its engine and its side-car."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "m.onnx"

    @property
    def engine(self) -> Path:
        return self.folder / "m.engine"

    @property
    def side_car(self) -> Path:
        return self.folder / "m.engine.json"

    def edit(self, **fields: Any) -> None:
        """Change fields of the side-car."""
        plain = json.loads(self.side_car.read_text(encoding="utf-8"))
        self.side_car.write_text(json.dumps({**plain, **fields}), encoding="utf-8")


@pytest.fixture
def place(_built: Path, tmp_path: Path) -> Place:
    for path in _built.iterdir():
        shutil.copy(path, tmp_path)
    return Place(tmp_path)


def fails(capsys: Capsys, folder: Path, code: int, words: Sequence[object], *arguments: object) -> str:
    """One line that says what is wrong, the exit code, and a folder as it was."""
    before = listing(folder)
    outcome = cli(capsys, *arguments)
    assert outcome.out == ""
    assert outcome.err.endswith("\n"), outcome
    line = outcome.err[:-1]
    assert "\n" not in line, line
    assert line.startswith("dilrewrite: ")
    assert outcome.code == code, line
    for word in words:
        assert str(word) in line
    assert listing(folder) == before
    return line


# -- inspect -------------------------------------------------------------------------------------------------------


@needs_rtx
def test_what_is_known_of_an_engine(capsys: Capsys, place: Place) -> None:
    """All of it from the side-car."""
    before = listing(place.folder)
    outcome = cli(capsys, "inspect", place.engine, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == place.side_car.read_text(encoding="utf-8")
    assert outcome.report["precision"]["convolutions"] == {"Half": 1}
    outcome = cli(capsys, "inspect", place.engine)
    assert (outcome.code, outcome.err) == (0, "")
    for word in (RTX, "fp16", "m.onnx"):
        assert word in " ".join(outcome.out.split())
    outcome = cli(capsys, "inspect", place.engine, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert listing(place.folder) == before


@needs_rtx
def test_an_engine_by_another_name(capsys: Capsys, place: Place) -> None:
    """It is known by how it begins."""
    place.engine.rename(place.folder / "E")
    place.side_car.rename(place.folder / "E.json")
    outcome = cli(capsys, "inspect", place.folder / "E", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.report["sha256"] == hashlib.sha256((place.folder / "E").read_bytes()).hexdigest()


@needs_rtx
@pytest.mark.parametrize("options", [("--profile",), ("--report", "told")], ids=lambda found: found[0])
def test_an_engine_is_only_shown(capsys: Capsys, place: Place, options: Sequence[str]) -> None:
    given = [place.folder / option if option == "told" else option for option in options]
    fails(capsys, place.folder, 2, [options[0], "side-car"], "inspect", place.engine, *given)


# -- side-cars that are none ---------------------------------------------------------------------------------------


def edited(**fields: Any) -> Callable[[Place], None]:
    return lambda place: place.edit(**fields)


def replaced(text: str) -> Callable[[Place], None]:
    return lambda place: place.side_car.write_text(text, encoding="utf-8") and None


def missing(place: Place) -> None:
    place.side_car.unlink()


def folder(place: Place) -> None:
    place.side_car.unlink()
    place.side_car.mkdir()


def cut_off(place: Place) -> None:
    place.side_car.write_bytes(place.side_car.read_bytes()[:-100])


def no_text(place: Place) -> None:
    place.side_car.write_bytes(b"\xff\xfe\x00")


def without(*names: str) -> Callable[[Place], None]:
    def make(place: Place) -> None:
        plain = found = json.loads(place.side_car.read_text(encoding="utf-8"))
        for name in names[:-1]:
            found = found[name]
        del found[names[-1]]
        place.side_car.write_text(json.dumps(plain), encoding="utf-8")

    return make


def of_no_precision(place: Place) -> None:
    plain = json.loads(place.side_car.read_text(encoding="utf-8"))
    place.edit(precision={**plain["precision"], "built": "int4"})


def report(place: Place) -> None:
    """Another file of this tool, with a version of its own."""
    place.side_car.write_text(json.dumps({"schema_version": 1, "command": "optimize", "sites": []}), encoding="utf-8")


def engine_changed(place: Place) -> None:
    plan = bytearray(place.engine.read_bytes())
    plan[-1] ^= 1
    place.engine.write_bytes(plan)


def engine_cut_off(place: Place) -> None:
    place.engine.write_bytes(place.engine.read_bytes()[:-1])


def engine_missing(place: Place) -> None:
    place.engine.unlink()


def engine_is_a_folder(place: Place) -> None:
    place.engine.unlink()
    place.engine.mkdir()


SIDE_CARS: dict[str, tuple[Callable[[Place], None], Sequence[str]]] = {
    "missing": (missing, ["m.engine.json is not there", "dilrewrite build"]),
    "a folder": (folder, ["m.engine.json is not a regular file"]),
    "empty": (replaced(""), ["m.engine.json cannot be read"]),
    "cut off": (cut_off, ["m.engine.json cannot be read"]),
    "not text": (no_text, ["m.engine.json cannot be read"]),
    "nested too deep": (replaced("[" * 100_000), ["m.engine.json cannot be read"]),
    "a list": (replaced("[]"), ["is no side-car of an engine that this version knows"]),
    "of a later version": (edited(schema_version=2), ["is no side-car of an engine that this version knows"]),
    "a report": (report, ["is no side-car of an engine: the file has no 'dilrewrite'"]),
    "without a field": (without("trtexec"), ["the file has no 'trtexec'"]),
    "without a part": (without("precision", "built"), ["precision has no 'built'"]),
    "a number for a word": (edited(checked=7), ["checked is 7"]),
    "a word for a number": (edited(build_seconds="long"), ['build_seconds is "long"']),
    "a word for a list": (edited(layers="many"), ['layers is "many"']),
    "a list with something else": (edited(warnings=["a", 3]), ["warnings[1] is 3"]),
    "a word for sizes": (edited(profiles={"x": {"min": [1], "opt": ["1"], "max": [1]}}), ['opt[0] is "1"']),
    "true for a number": (edited(bytes=True), ["bytes is true"]),
    "no number": (edited(build_seconds=float("nan")), ["m.engine.json cannot be read"]),
    "half a character": (edited(trtexec="\ud800"), ["m.engine.json cannot be read"]),
    "of no flavour": (edited(flavour="tensorrt-lean"), ["'tensorrt-lean'", "tensorrt, tensorrt-rtx"]),
    "of no precision": (of_no_precision, ["'int4'", "fp32, tf32"]),
    "of another engine": (edited(sha256="0" * 64), ["m.engine.json is of another engine than"]),
    "engine changed": (engine_changed, ["m.engine.json is of another engine than"]),
    "engine cut off": (engine_cut_off, ["m.engine.json is of another engine than"]),
    "engine missing": (engine_missing, ["m.engine does not exist"]),
    "engine is a folder": (engine_is_a_folder, ["m.engine does not exist"]),
}


@needs_rtx
@pytest.mark.parametrize(("make", "words"), SIDE_CARS.values(), ids=SIDE_CARS)
def test_unusable_side_car(capsys: Capsys, place: Place, make: Callable[[Place], None], words: Sequence[str]) -> None:
    make(place)
    lines = {
        fails(capsys, place.folder, 2, [place.engine, *words], *arguments)
        for arguments in (
            ("inspect", place.engine),
            ("bench", place.engine),
            ("verify", place.model, place.engine),
        )
    }
    assert len(lines) == 1


@needs_rtx
def test_an_engine_that_cannot_be_read(capsys: Capsys, place: Place) -> None:
    place.engine.chmod(0)
    if os.access(place.engine, os.R_OK):
        pytest.skip("chmod does not bind this user")
    outcome = cli(capsys, "inspect", place.engine)
    assert outcome.code == 2
    assert "cannot be read" in outcome.err
    assert len(outcome.err.splitlines()) == 1


@needs_rtx
def test_an_engine_is_no_model(capsys: Capsys, place: Place) -> None:
    words = [place.engine, "is not an ONNX model"]
    fails(capsys, place.folder, 2, words, "optimize", place.engine)
    fails(capsys, place.folder, 2, words, "build", place.engine, "-o", place.folder / "other.engine")
    fails(capsys, place.folder, 2, words, "verify", place.engine, place.model)


# -- what needs the GPU --------------------------------------------------------------------------------------------


@needs_rtx
def test_engines_do_not_run_here(capsys: Capsys, place: Place) -> None:
    other = shutil.copy(place.engine, place.folder / "n.engine")
    shutil.copy(place.side_car, place.folder / "n.engine.json")
    words = [place.engine, "cannot run here", NO_GPU]
    fails(capsys, place.folder, 4, words, "bench", place.engine)
    fails(capsys, place.folder, 4, words, "bench", place.engine, other)
    fails(capsys, place.folder, 4, words, "verify", place.model, place.engine)


@needs_rtx
def test_a_model_and_an_engine_are_not_timed(capsys: Capsys, place: Place) -> None:
    words = [place.model, "is a model, and the other an engine", "dilrewrite build"]
    fails(capsys, place.folder, 2, words, "bench", place.model, place.engine)
    fails(capsys, place.folder, 2, words, "bench", place.engine, place.model)


@needs_rtx
def test_engines_of_two_flavours_are_not_timed(capsys: Capsys, place: Place) -> None:
    """Whatever is installed here."""
    other = shutil.copy(place.engine, place.folder / "n.engine")
    shutil.copy(place.side_car, place.folder / "n.engine.json")
    place.edit(flavour="tensorrt")
    words = ["tensorrt and tensorrt-rtx", "do not run in one library"]
    fails(capsys, place.folder, 2, words, "bench", place.engine, other)
    fails(capsys, place.folder, 2, words, "bench", other, place.engine)


@needs_rtx
def test_engines_with_other_inputs_are_not_timed(capsys: Capsys, place: Place) -> None:
    other = shutil.copy(place.engine, place.folder / "n.engine")
    shutil.copy(place.side_car, place.folder / "n.engine.json")
    place.edit(inputs=[{"name": "z", "datatype": "FLOAT", "shape": [1]}])
    fails(capsys, place.folder, 2, [place.engine, "z (FLOAT)", "x (FLOAT)"], "bench", other, place.engine)


@needs_rtx
def test_an_engine_has_its_own_backend(capsys: Capsys, place: Place) -> None:
    words = ["--backend onnxruntime_cpu", RTX, "leave it out"]
    fails(capsys, place.folder, 2, words, "bench", place.engine, "--backend", "onnxruntime_cpu")


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
@pytest.mark.parametrize("command", ["optimize", "bench"])
def test_a_backend_without_a_gpu_is_told_before_any_work(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, backend: str
) -> None:
    """Not even the model is read."""

    def read(*_: Any) -> Any:
        pytest.fail("the model was read")

    monkeypatch.setattr(commands_run, "load", read)
    path = tmp_path / "m.onnx"
    path.write_text("not even a model")
    fails(capsys, tmp_path, 4, [f"backend {backend}: "], command, path, "--backend", backend)


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt_rtx"])
def test_no_profile_without_a_gpu(capsys: Capsys, tmp_path: Path, backend: str) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    fails(capsys, tmp_path, 4, [f"backend {backend}: "], "inspect", path, "--profile", "--backend", backend)


def test_backends_say_what_they_lack(capsys: Capsys) -> None:
    outcome = cli(capsys, "backends", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    found = {entry["name"]: json.dumps(entry) for entry in json.loads(outcome.out)}
    for flavour in bindings.FLAVOURS:
        lacks = NO_GPU if bindings.missing(flavour) is None else "not installed"
        assert lacks in found[bindings.module_name(flavour)]


# -- optimize --build-engine ---------------------------------------------------------------------------------------


def optimize(capsys: Capsys, path: Path, *arguments: object) -> Outcome:
    return cli(capsys, "optimize", path, "-o", path.with_name("o.onnx"), "--build-engine", *arguments)


def check_engine(folder: Path, chosen_on: str, file: str) -> Data:
    """What side-car and report say of an engine, and that it is of the model that is told."""
    found: Data = json.loads((folder / "o.engine.json").read_text(encoding="utf-8"))
    told = json.loads((folder / "o.report" / "report.json").read_text(encoding="utf-8"))
    assert told["engine"] == found
    assert found["chosen_on"] == chosen_on
    assert found["onnx"]["file"] == str(folder / file)
    assert found["onnx"]["sha256"] == hashlib.sha256((folder / file).read_bytes()).hexdigest()
    assert found["sha256"] == hashlib.sha256((folder / "o.engine").read_bytes()).hexdigest()
    assert f"--onnx={file} --saveEngine=o.engine" in found["trtexec"]
    assert "build" in told["seconds"]
    return found


WRITTEN = {"m.onnx", "o.onnx", "o.engine", "o.engine.json", "o.report"}


@needs_rtx
def test_an_engine_of_a_rewritten_model(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--strategy", "space_to_batch", "--budget", 0, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.report["status"] == "rewritten"
    assert {name.split("/")[0] for name in listing(tmp_path)} == WRITTEN
    found = check_engine(tmp_path, "--strategy space_to_batch, not measured on TensorRT", "o.onnx")
    assert found == outcome.report["engine"]
    assert outcome.report["options"]["build_engine"]["flavour"] == "auto"
    nodes = {node.name for node in onnx.load(tmp_path / "o.onnx").graph.node}
    assert {name for layer in found["layers"] for name in layer["nodes"]} <= nodes


@needs_rtx
def test_an_engine_of_a_model_that_stays(capsys: Capsys, tmp_path: Path) -> None:
    """Its engine is of the file that was given; what was written is a copy of it."""
    path = save(conv2d(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--budget", 0, "--quiet")
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert (tmp_path / "o.onnx").read_bytes() == path.read_bytes()
    check_engine(tmp_path, "nothing, not measured on TensorRT", "m.onnx")


@needs_rtx
@pytest.mark.measures
def test_an_engine_of_what_another_runtime_chose(capsys: Capsys, tmp_path: Path) -> None:
    """Timings of ONNX Runtime on a CPU chose; both places say so."""
    path = save(conv2d(), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--budget", 0.5, "--no-cache", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.report["measurement"]["backend"] == "onnxruntime_cpu"
    file = "o.onnx" if outcome.report["status"] == "rewritten" else "m.onnx"
    check_engine(tmp_path, "onnxruntime_cpu, not measured on TensorRT", file)


@needs_rtx
def test_the_options_of_building(capsys: Capsys, tmp_path: Path) -> None:
    """0 is a level too."""
    path = save(conv1d(length="time"), tmp_path / "m.onnx")
    given: dict[str, object] = {
        "--flavour": RTX,
        "--precision": "bf16",
        "--min": "x:1x2x8",
        "--opt": "x:1x2x16",
        "--max": "x:1x2x32",
        "--workspace": 64,
        "--optimization-level": 0,
        "--compute-capability": "8.6",
        "--timing-cache": tmp_path / "timings",
        "--engine": tmp_path / "E",
    }
    options = [part for option in given.items() for part in option]
    outcome = optimize(capsys, path, "--strategy", "space_to_batch", "--no-report", "--json", *options)
    assert (outcome.code, outcome.err) == (0, "")
    assert set(listing(tmp_path)) == {"m.onnx", "o.onnx", "E", "E.json", "timings"}
    found = json.loads((tmp_path / "E.json").read_text(encoding="utf-8"))
    assert found == outcome.report["engine"]
    assert found["flags"]["optimization_level"] == 0
    assert found["flags"]["workspace_mib"] == 64
    assert found["precision"]["built"] == "bf16"
    assert found["profiles"] == {"x": {"min": [1, 2, 8], "opt": [1, 2, 16], "max": [1, 2, 32]}}
    assert outcome.report["options"]["build_engine"] == {
        "flavour": RTX,
        "precision": "bf16",
        "workspace_mib": 64,
        "timing_cache": str(tmp_path / "timings"),
        "optimization_level": 0,
        "compute_capabilities": ["8.6"],
        "min": ["x:1x2x8"],
        "opt": ["x:1x2x16"],
        "max": ["x:1x2x32"],
    }


@needs_rtx
def test_given_shapes_are_sizes_too(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(length="time"), tmp_path / "m.onnx")
    outcome = optimize(capsys, path, "--shape", "x:1x2x24", "--strategy", "im2col", "--budget", 0, "--quiet")
    assert (outcome.code, outcome.err) == (0, "")
    found = json.loads((tmp_path / "o.engine.json").read_text(encoding="utf-8"))
    assert found["profiles"] == {"x": {"min": [1, 2, 24], "opt": [1, 2, 24], "max": [1, 2, 24]}}


@needs_rtx
def test_from_python(tmp_path: Path) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    made = dilrewrite.optimize(path, strategy="im2col", budget=0, build_engine={"precision": "fp16"})
    assert made.engine == dilrewrite.inspect_engine(tmp_path / "m.dilrewrite.engine")
    assert made.engine is not None
    assert made.engine.precision.built == "fp16"


@needs_rtx
def test_a_dry_run_builds_nothing(capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    monkeypatch.setattr("dilrewrite.tensorrt.engines.make", lambda *_, **__: pytest.fail("an engine was begun"))
    before = listing(tmp_path)
    outcome = optimize(capsys, path, "--dry-run", "--strategy", "im2col", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.report["engine"] is None
    assert listing(tmp_path) == before


@needs_rtx
def test_no_engine_where_dilation_is_left(capsys: Capsys, tmp_path: Path) -> None:
    path = save(tiny.transposed(), tmp_path / "m.onnx")
    before = listing(tmp_path)
    outcome = optimize(capsys, path, "--eliminate", "--json")
    assert (outcome.code, outcome.report["status"], outcome.report["engine"]) == (1, "dilation left", None)
    assert listing(tmp_path) == before


# -- nothing is written --------------------------------------------------------------------------------------------


@pytest.fixture
def _any_flavour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flavour is there, whatever is installed."""
    only(monkeypatch, RTX)


@pytest.mark.usefixtures("_any_flavour")
@pytest.mark.parametrize(("error", "code"), [(FailedError, 1), (DiffersError, 3), (KeyboardInterrupt, 130)])
def test_no_model_without_its_engine(
    capsys: Capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    def make(*_: Any, **__: Any) -> Any:
        raise error("no engine")

    monkeypatch.setattr("dilrewrite.tensorrt.engines.make", make)
    path = save(conv2d(), tmp_path / "m.onnx")
    words = ["nothing was written" if error is KeyboardInterrupt else "no engine"]
    given = ("optimize", path, "--build-engine", "--strategy", "im2col", "--save-decisions", tmp_path / "d.json")
    fails(capsys, tmp_path, code, words, *given)


@needs_rtx
def test_no_model_when_the_builder_refuses(capsys: Capsys, tmp_path: Path) -> None:
    """Known only after all other work."""
    path = save(conv2d(), tmp_path / "m.onnx")
    given = ("--build-engine", "--strategy", "im2col", "--compute-capability", "9.0")
    fails(capsys, tmp_path, 2, ["--compute-capability 9.0"], "optimize", path, *given)


UNREADY: dict[str, tuple[Callable[[Path], Sequence[object]], Sequence[object]]] = {
    "no sizes": (lambda _: (), ["m.onnx", "'x'", "1x2x?", "--opt"]),
    "sizes that the profile does not hold": (
        lambda _: ("--shape", "x:1x2x64", "--opt", "x:1x2x16"),
        ["'x'", "1x2x64", "outside", "1x2x16"],
    ),
    "malformed sizes": (lambda _: ("--opt", "x=3"), ["--opt x=3"]),
    "no such precision": (lambda _: ("--precision", "fp8", "--opt", "x:1x2x16"), ["--precision fp8"]),
    "no such flavour": (lambda _: ("--flavour", "lean", "--opt", "x:1x2x16"), ["--flavour lean"]),
    "engine over the model": (lambda place: ("--engine", place / "m.onnx"), ["m.onnx: is a place for something else"]),
    "engine over the output": (lambda place: ("--engine", place / "o.onnx"), ["o.onnx: is a place for something else"]),
    "engine over the data": (lambda place: ("--engine", place / "m.0.bin"), ["is a place for something else"]),
    "engine over the decisions": (
        lambda place: ("--engine", place / "d", "--save-decisions", place / "d"),
        ["d: is a place for something else"],
    ),
    "engine over the timings of forms": (
        lambda place: ("--engine", place / "c", "--cache", place / "c"),
        ["c: is a place for something else"],
    ),
    "timings of kernels over the model": (
        lambda place: ("--timing-cache", place / "sub" / ".." / "m.onnx"),
        ["--timing-cache", "is a place for something else"],
    ),
    "reports over the side-car": (
        lambda place: ("--engine", place / "report", "--report", place),
        ["--report", "report.json"],
    ),
    "engine exists": (lambda place: ("--engine", place / "kept"), ["kept exists", "--force"]),
}
"""Options, and words of the message."""


@pytest.mark.usefixtures("_any_flavour")
@pytest.mark.parametrize(("options", "words"), UNREADY.values(), ids=UNREADY)
def test_what_is_known_before_any_work(
    capsys: Capsys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: Callable[[Path], Sequence[object]],
    words: Sequence[object],
) -> None:
    monkeypatch.setattr(commands_run, "find", lambda *_: pytest.fail("work was begun"))
    path = save_external(conv1d(length="time"), tmp_path / "m.onnx")
    (tmp_path / "kept").write_text("mine")
    (tmp_path / "sub").mkdir()
    given = options(tmp_path)
    if "--engine" in given or "--timing-cache" in given:
        given = (*given, "--opt", "x:1x2x16")
    force = ["--force"] if "exists" not in str(words) else []
    command = ("optimize", path, "-o", tmp_path / "o.onnx", "--build-engine", *force, *given)
    fails(capsys, tmp_path, 2, words, *command)


OPTIONS: dict[str, Sequence[object]] = {
    "--flavour": ("tensorrt",),
    "--precision": ("fp16",),
    "--min": ("x:1x2x16",),
    "--opt": ("x:1x2x16",),
    "--max": ("x:1x2x16",),
    "--workspace": (64,),
    "--timing-cache": ("t",),
    "--optimization-level": (0,),
    "--compute-capability": ("8.6",),
    "--device": (0,),
    "--plugins": ("p.so",),
    "--refit": (),
    "--strip-plan": (),
    "--version-compatible": (),
    "--weight-streaming": (),
    "--engine": ("E.engine",),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_an_engine_that_nobody_asked_for(capsys: Capsys, tmp_path: Path, option: str) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    line = fails(capsys, tmp_path, 2, ["--build-engine"], "optimize", path, option, *OPTIONS[option])
    assert line.startswith(f"dilrewrite: {option}")


def test_all_of_them_are_named(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv2d(), tmp_path / "m.onnx")
    asked = {option: values for option, values in OPTIONS.items() if option != "--engine"}
    given = [part for option, values in asked.items() for part in (option, *values)]
    line = fails(capsys, tmp_path, 2, [], "optimize", path, *given)
    assert line.partition(": options of")[0] == f"dilrewrite: {', '.join(asked)}"


# -- exports of bench ----------------------------------------------------------------------------------------------


@pytest.fixture
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exports, "PROFILE_RUNS", 3)


def check_times(path: Path) -> None:
    """As trtexec's --exportTimes: a list of runs."""
    runs = json.loads(path.read_text(encoding="utf-8"))
    assert len(runs) >= 6
    assert all(set(run) == {"computeMs"} and run["computeMs"] > 0 for run in runs)


def check_profile(path: Path, names: set[str]) -> None:
    """As trtexec's --exportProfile: how many runs, then the layers."""
    count, *found = json.loads(path.read_text(encoding="utf-8"))
    assert count.keys() == {"count"}
    assert {entry["name"] for entry in found} == names
    for entry in found:
        assert set(entry) == {"name", "timeMs", "averageMs", "medianMs", "percentage"}
        assert 0 < entry["averageMs"] <= entry["timeMs"]
    assert sum(entry["percentage"] for entry in found) == pytest.approx(100)


@pytest.mark.measures
@pytest.mark.usefixtures("_fast")
def test_exports(capsys: Capsys, tmp_path: Path) -> None:
    path = save(conv1d(), tmp_path / "m.onnx")
    other = save(conv1d(dilations=[1], pads=[1, 1], name="other"), tmp_path / "n.onnx")
    times, profile = tmp_path / "t.json", tmp_path / "p.json"
    times.write_text("of before")
    given = ("--budget", 0, "--export-times", times, "--export-profile", profile, "--quiet")
    outcome = cli(capsys, "bench", path, *given)
    assert (outcome.code, outcome.err) == (0, "")
    assert set(listing(tmp_path)) == {"m.onnx", "n.onnx", "t.json", "p.json"}
    check_times(times)
    check_profile(profile, {"conv"})
    outcome = cli(capsys, "bench", path, other, *given)
    assert (outcome.code, outcome.err) == (0, "")
    assert set(listing(tmp_path)) == {"m.onnx", "n.onnx", "t.json", "p.json", "t.other.json", "p.other.json"}
    check_times(tmp_path / "t.other.json")
    check_profile(tmp_path / "p.other.json", {"other"})


EXPORTS: dict[str, tuple[str, str]] = {
    "the model": ("m.onnx", "m.onnx"),
    "the model by another name": ("sub/../m.onnx", "m.onnx"),
    "the other model": ("n.other.onnx", "n.other.onnx"),
    "the other model, by the name that its export gets": ("n.onnx", "n.other.onnx"),
    "a folder": ("sub", "is a folder"),
    "a folder that is not there": ("none/t.json", "does not exist"),
}


@pytest.mark.parametrize("option", ["--export-times", "--export-profile"])
@pytest.mark.parametrize(("file", "word"), EXPORTS.values(), ids=EXPORTS)
def test_exports_replace_no_model(capsys: Capsys, tmp_path: Path, option: str, file: str, word: str) -> None:
    models = [save(conv1d(), tmp_path / name) for name in ("m.onnx", "n.other.onnx")]
    (tmp_path / "sub").mkdir()
    fails(capsys, tmp_path, 2, [word], "bench", *models, option, tmp_path / file)


def test_exports_have_places_of_their_own(capsys: Capsys, tmp_path: Path) -> None:
    path, place = save(conv1d(), tmp_path / "m.onnx"), tmp_path / "t.json"
    words = ["--export-profile", "is a place for something else"]
    fails(capsys, tmp_path, 2, words, "bench", path, "--export-times", place, "--export-profile", place)
