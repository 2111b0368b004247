"""The side-car of an engine: written and read again, the precision it vouches for, the command it gives.

What a damaged one says on the command line is in tests/cli/test_engines.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from onnx import ModelProto

from dilrewrite.errors import FailedError, UsageError
from dilrewrite.options import Building
from dilrewrite.tensorrt import sidecar
from dilrewrite.tensorrt.fidelity import Fidelity
from dilrewrite.tensorrt.layers import BUILD_LOG, Layer, Layers, onnx_nodes
from dilrewrite.tensorrt.make import Tensor
from dilrewrite.tensorrt.precision import DATATYPES, Prepared
from dilrewrite.tensorrt.profiles import Profile
from dilrewrite.tensorrt.sidecar import EngineReport, OnnxSource, PrecisionReport, check_precision, trtexec
from tests.models_for_tests import conv1d, save

PLAN = b"ptrt and more"


def layer(name: str, kind: str = "correlation", datatype: str = "Float", *nodes: str) -> Layer:
    return Layer(name=name, kind=kind, inputs=(datatype, datatype), outputs=(datatype,), nodes=nodes, tactic="fast")


def example(**changes: Any) -> EngineReport:
    """Everything that there is to know of an engine."""
    made = EngineReport(
        file="m.engine",
        bytes=len(PLAN),
        sha256=hashlib.sha256(PLAN).hexdigest(),
        flavour="tensorrt",
        version="10.13.0",
        onnx=OnnxSource(file="models/m.onnx", sha256="a" * 64, built_sha256="b" * 64),
        precision=PrecisionReport(
            asked="fp16",
            built="fp16",
            converted=True,
            changes=("1 Resize stay in float32",),
            convolutions={"Half": 2},
            fidelity=Fidelity(difference=0.5, bound=1.0, shapes={"x": (1, 2, 16)}, reason=""),
        ),
        chosen_on="onnxruntime_cpu, not measured on TensorRT",
        checked="not run: there is no GPU",
        device="a GPU",
        inputs=(Tensor(name="x", datatype="FLOAT", shape=(-1, 2, 16)),),
        outputs=(Tensor(name="y", datatype="FLOAT", shape=(-1, 2, 16)), Tensor(name="z", datatype="INT64", shape=())),
        profiles={"x": Profile(min=(1, 2, 16), opt=(2, 2, 16), max=(4, 2, 16))},
        flags={"TF32": False, "workspace_mib": 64, "compute_capabilities": ["SM86"]},
        build_seconds=1.25,
        memory={"total_weights_memory_bytes": 48},
        layers_from=BUILD_LOG,
        layer_types={"correlation": 2},
        layers=(layer("a", "correlation", "Half", "conv", "relu"), layer("b 卷积", "correlation", "Half")),
        warnings=("so it is",),
        trtexec="trtexec --onnx=m.onnx",
    )
    return dataclasses.replace(made, **changes)


def write(folder: Path, report: EngineReport) -> Path:
    engine = folder / "m.engine"
    engine.write_bytes(PLAN)
    sidecar.place(engine).write_text(sidecar.render(report), encoding="utf-8")
    return engine


# -- written and read ----------------------------------------------------------------------------------------------


REPORTS: dict[str, EngineReport] = {
    "everything": example(),
    "no GPU": example(device=None, flavour="tensorrt-rtx"),
    "not converted": example(
        precision=dataclasses.replace(
            example().precision, asked=None, built="tf32", converted=False, changes=(), fidelity=None
        )
    ),
    "not compared": example(
        precision=dataclasses.replace(
            example().precision, fidelity=Fidelity(difference=None, bound=1.0, shapes={}, reason="no kernel")
        )
    ),
    "nothing dynamic": example(profiles={}, flags={}, memory={}, warnings=(), inputs=(), layers=(), layer_types={}),
    "a whole second": example(build_seconds=1),
}


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_what_is_written_is_read(tmp_path: Path, report: EngineReport) -> None:
    assert sidecar.read(write(tmp_path, report)) == report


def test_it_is_json_of_all_fields() -> None:
    text = sidecar.render(example())
    assert text.endswith("}\n")
    assert "卷积" in text
    plain = json.loads(text)
    assert list(plain) == [field.name for field in dataclasses.fields(EngineReport)]
    assert plain["schema_version"] == sidecar.SCHEMA_VERSION
    assert plain["profiles"]["x"] == {"min": [1, 2, 16], "opt": [2, 2, 16], "max": [4, 2, 16]}


def test_a_number_that_is_none_is_not_written() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        sidecar.render(example(build_seconds=float("nan")))


def test_a_field_more_is_not_minded(tmp_path: Path) -> None:
    engine = write(tmp_path, example())
    plain = json.loads(sidecar.render(example()))
    plain["layers"][0]["colour"] = plain["colour"] = "green"
    sidecar.place(engine).write_text(json.dumps(plain), encoding="utf-8")
    assert sidecar.read(engine) == example()


def places(value: Any, place: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Where the values of a side-car are; of a list only the first."""
    found = [place] if place else []
    if isinstance(value, Mapping):
        found += [inner for key, one in value.items() for inner in places(one, (*place, key))]
    elif isinstance(value, list):
        found += [inner for index, one in enumerate(value[:1]) for inner in places(one, (*place, index))]
    return found


def others(value: Any) -> list[Any]:
    return [
        wrong for wrong in ("x", 7, 1.5, None, True, [], ["a"], [[]], {}, {"a": 1}) if type(wrong) is not type(value)
    ]


PLAIN = json.loads(sidecar.render(example()))
NULLS = {("precision", "asked"), ("precision", "fidelity"), ("precision", "fidelity", "difference"), ("device",)}
NUMBERS = {("build_seconds",), ("precision", "fidelity", "difference"), ("precision", "fidelity", "bound")}


@pytest.mark.parametrize("place", [place for place in places(PLAIN) if place[0] != "flags"], ids=str)
def test_a_value_of_another_type_is_damage(tmp_path: Path, place: tuple[str | int, ...]) -> None:
    """Wherever it is: nothing that reads a side-car need look again."""
    engine = write(tmp_path, example())
    for wrong in others(_at(PLAIN, place)):
        if (wrong is None and place in NULLS) or (type(wrong) is int and place in NUMBERS):
            continue
        plain = json.loads(json.dumps(PLAIN))
        _at(plain, place[:-1])[place[-1]] = wrong
        sidecar.place(engine).write_text(json.dumps(plain), encoding="utf-8")
        with pytest.raises(UsageError, match=r"m\.engine\.json is no side-car of an engine") as caught:
            sidecar.read(engine)
        assert "build the engine again" in caught.value.hint


def _at(value: Any, place: Sequence[str | int]) -> Any:
    for key in place:
        value = value[key]
    return value


# -- which files are engines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m.engine", "m.plan", "m.trt"])
def test_an_engine_by_its_name(tmp_path: Path, name: str) -> None:
    """Whether it is there or not."""
    assert sidecar.is_engine(tmp_path / name)
    assert sidecar.place(tmp_path / name) == tmp_path / f"{name}.json"


@pytest.mark.parametrize("magic", [b"ptrt", b"vtrt", b"ftrt"])
def test_an_engine_by_how_it_begins(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(magic + bytes(20))
    assert sidecar.is_engine(path)


def test_what_is_no_engine(tmp_path: Path) -> None:
    path = tmp_path / "m"
    assert not sidecar.is_engine(path)
    for content in (b"", b"ptr", b"xptrt", b"{}"):
        path.write_bytes(content)
        assert not sidecar.is_engine(path)
    assert not sidecar.is_engine(save(conv1d(), tmp_path / "m.onnx"))
    assert not sidecar.is_engine(tmp_path)


# -- the precision of an engine ------------------------------------------------------------------------------------


def prepared(precision: str, *, converted: bool = False) -> Prepared:
    return Prepared(proto=ModelProto(), precision=precision, converted=converted)


def listed(*datatypes: str) -> Layers:
    """A layer list: a convolution for each data type, and a layer that is none."""
    convolutions = [layer(f"l{number}", "correlation", kind, f"c{number}") for number, kind in enumerate(datatypes)]
    return Layers(source=BUILD_LOG, layers=(*convolutions, layer("other", "kgen", "Float", "relu")), memory={})


NAMES = ("c0", "c1", "c2")


@pytest.mark.parametrize("precision", DATATYPES)
def test_an_engine_that_is_as_asked_for(precision: str) -> None:
    for word in DATATYPES[precision]:
        found = check_precision(
            prepared(precision, converted=precision in ("fp16", "bf16")), listed(word, word), NAMES, "m.onnx"
        )
        assert found == {word: 2}


@pytest.mark.parametrize("asked", ["fp16", "bf16"])
@pytest.mark.parametrize("datatypes", [("Float", "Float"), ("Float", "right"), ("right", "Int8"), ("unknown",)])
def test_an_engine_is_never_silently_in_another(asked: str, datatypes: Sequence[str]) -> None:
    """Not even one convolution of a model that was converted."""
    found = [DATATYPES[asked][0] if kind == "right" else kind for kind in datatypes]
    with pytest.raises(FailedError) as caught:
        check_precision(prepared(asked, converted=True), listed(*found), NAMES, "m.onnx")
    assert caught.value.exit_code == 1
    assert caught.value.message.startswith(f"m.onnx: {asked} was asked for, and the engine's convolutions are ")
    for kind in found:
        assert f"{found.count(kind)} in {kind}" in caught.value.message


@pytest.mark.parametrize("held", ["fp32", "tf32", "fp16", "bf16"])
def test_an_engine_of_a_model_as_it_is(held: str) -> None:
    """Mixed as the model may be; but one that has nothing of the model's type is another's."""
    right = DATATYPES[held][0]
    other = "Float" if right != "Float" else "Half"
    assert check_precision(prepared(held), listed(right, other), NAMES, "m.onnx") == {right: 1, other: 1}
    with pytest.raises(FailedError, match=f"the model is in {held}, and the engine's convolutions are 2 in {other}"):
        check_precision(prepared(held), listed(other, other), NAMES, "m.onnx")


def test_an_engine_of_a_quantised_model() -> None:
    """Some convolutions may not be quantised; one at least is."""
    found = check_precision(prepared("int8-qdq"), listed("Int8", "Float"), NAMES, "m.onnx")
    assert found == {"Int8": 1, "Float": 1}
    with pytest.raises(FailedError, match=r"no convolution runs in int8 \(1 in Float, 1 in Half\)") as caught:
        check_precision(prepared("int8-qdq"), listed("Float", "Half"), NAMES, "m.onnx")
    assert "Q/DQ must stand on the inputs" in caught.value.hint


def test_an_engine_without_convolutions() -> None:
    assert check_precision(prepared("fp16", converted=True), listed(), (), "m.onnx") == {}


def test_convolutions_that_no_layer_is_known_for() -> None:
    with pytest.raises(FailedError, match=r"m\.onnx: no layer of the engine is known for a convolution") as caught:
        check_precision(prepared("fp32"), listed(), NAMES, "m.onnx")
    assert "--verbose" in caught.value.hint


def test_a_layer_that_tells_no_types() -> None:
    bare = dataclasses.replace(layer("l", "correlation", "Float", "c0"), inputs=(), outputs=())
    with pytest.raises(FailedError, match="1 in unknown"):
        check_precision(prepared("fp32"), Layers(source=BUILD_LOG, layers=(bare,), memory={}), NAMES, "m.onnx")


def test_a_convolution_of_constants_has_the_type_that_it_makes() -> None:
    constant = dataclasses.replace(layer("l", "correlation", "Half", "c0"), inputs=())
    layers = Layers(source=BUILD_LOG, layers=(constant,), memory={})
    assert check_precision(prepared("fp16", converted=True), layers, NAMES, "m.onnx") == {"Half": 1}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_a_kernel_with_casts_says_nothing_of_the_convolution_in_it(precision: str) -> None:
    """It reads and makes float32, and computes in what the model says; others are held to it all the same."""
    mixed = layer("k", "kgen", "Float", "cast", "c2")
    right, wrong = listed(DATATYPES[precision][0]).layers, listed("Float").layers
    for layers, told in ((right, {DATATYPES[precision][0]: 1, "unknown": 1}), ((), {"unknown": 1})):
        found = Layers(source=BUILD_LOG, layers=(*layers, mixed), memory={})
        assert check_precision(prepared(precision, converted=True), found, NAMES, "m.onnx") == told
    found = Layers(source=BUILD_LOG, layers=(*wrong, mixed), memory={})
    with pytest.raises(FailedError, match="1 in Float, 1 in unknown"):
        check_precision(prepared(precision, converted=True), found, NAMES, "m.onnx")


def test_what_stays_in_float32_inside_of_a_branch() -> None:
    there = layer("t", "deconv", "Float", "c1 | then (then_branch) | if_0 (If)")
    layers = Layers(source=BUILD_LOG, layers=(*listed("BFloat16").layers, there), memory={})
    found = check_precision(prepared("bf16", converted=True), layers, NAMES, "m.onnx", stays=("c1",))
    assert found == {"BFloat16": 1, "Float": 1}
    with pytest.raises(FailedError, match="bf16 was asked for"):
        check_precision(prepared("bf16", converted=True), layers, NAMES, "m.onnx")


# -- the command of TensorRT's own tool ----------------------------------------------------------------------------


def command(
    flavour: str = "tensorrt",
    precision: str = "tf32",
    profiles: Mapping[str, Profile] | None = None,
    onnx: str = "m.onnx",
    **options: Any,
) -> list[str]:
    text = trtexec(flavour, onnx, "m.engine", Building(**options), prepared(precision), profiles or {})
    return shlex.split(text)


PLAINEST = ["trtexec", "--onnx=m.onnx", "--saveEngine=m.engine", "--stronglyTyped", "--profilingVerbosity=detailed"]


def test_the_plainest_command() -> None:
    assert command() == PLAINEST
    rtx = ["tensorrt_rtx", *(word for word in PLAINEST[1:] if word != "--stronglyTyped")]
    assert command("tensorrt-rtx") == rtx


EXTRA: dict[str, tuple[Mapping[str, Any], Sequence[str]]] = {
    "fp32": ({"precision": "fp32"}, ["--noTF32"]),
    "fp16": ({"precision": "fp16"}, []),
    "int8-qdq": ({"precision": "int8-qdq"}, []),
    "workspace": ({"workspace_mib": 256}, ["--memPoolSize=workspace:256M"]),
    "optimization level": ({"optimization_level": 0}, ["--builderOptimizationLevel=0"]),
    "capabilities": ({"compute_capabilities": ("8.6", "12.0")}, ["--computeCapabilities=8.6,12.0"]),
    "device": ({"device": 0}, ["--device=0"]),
    "plugins": ({"plugins": (Path("a/p.so"), Path("q.so"))}, ["--dynamicPlugins=p.so", "--dynamicPlugins=q.so"]),
    "refit": ({"refit": True}, ["--refit"]),
    "strip plan": ({"strip_plan": True}, ["--stripWeights"]),
    "version compatible": ({"version_compatible": True}, ["--versionCompatible"]),
    "weight streaming": ({"weight_streaming": True}, ["--allowWeightStreaming"]),
}


@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(("options", "extra"), EXTRA.values(), ids=EXTRA)
def test_each_option(flavour: str, options: Mapping[str, Any], extra: Sequence[str]) -> None:
    assert command(flavour, **options) == [*command(flavour), *extra]


def test_the_timing_cache_is_of_one_flavour() -> None:
    assert command(timing_cache=Path("a/t.cache")) == [*PLAINEST, "--timingCacheFile=t.cache"]
    assert command("tensorrt-rtx", timing_cache=Path("a/t.cache")) == command("tensorrt-rtx")


def test_profiles() -> None:
    sizes = {
        "x": Profile(min=(1, 3, 8), opt=(2, 3, 16), max=(4, 3, 32)),
        "y": Profile(min=(1,), opt=(1,), max=(1,)),
    }
    assert command(profiles=sizes)[4:7] == [
        "--minShapes=x:1x3x8,y:1",
        "--optShapes=x:2x3x16,y:1",
        "--maxShapes=x:4x3x32,y:1",
    ]


def test_everything_at_once_in_order() -> None:
    every = {key: value for options, _ in EXTRA.values() for key, value in options.items() if key != "precision"}
    extra = [word for name, (_, some) in EXTRA.items() if name != "fp32" for word in some]
    assert command(**every) == [*PLAINEST, *extra]


def test_a_shell_takes_it() -> None:
    assert "'--onnx=my model.onnx'" in trtexec("tensorrt", "my model.onnx", "e", Building(), prepared("tf32"), {})
    assert command(onnx="it's $HOME.onnx")[1] == "--onnx=it's $HOME.onnx"


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_no_text() -> None:
    odd = os.fsdecode(b"\xff.so")
    told = command(timing_cache=Path(odd), plugins=(Path(odd),))
    assert told[-2:] == ["--timingCacheFile=\\xff.so", "--dynamicPlugins=\\xff.so"]


# -- layers as trtexec exports them --------------------------------------------------------------------------------


def test_layer_information() -> None:
    found = json.loads(sidecar.layer_information(example()))
    assert found == {
        "Layers": [
            {
                "Name": "a",
                "LayerType": "correlation",
                "Inputs": [{"Datatype": "Half"}, {"Datatype": "Half"}],
                "Outputs": [{"Datatype": "Half"}],
                "TacticName": "fast",
                "Metadata": "[ONNX Layer: conv]\x1f[ONNX Layer: relu]",
            },
            {
                "Name": "b 卷积",
                "LayerType": "correlation",
                "Inputs": [{"Datatype": "Half"}, {"Datatype": "Half"}],
                "Outputs": [{"Datatype": "Half"}],
                "TacticName": "fast",
                "Metadata": "",
            },
        ],
        "Bindings": ["x", "y", "z"],
    }
    assert onnx_nodes(found["Layers"][0]["Metadata"]) == ("conv", "relu")
    assert sidecar.layer_information(example()).endswith("}\n")
