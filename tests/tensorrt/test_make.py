"""Builds of real engines with TensorRT for RTX, which needs no GPU for it: what builds, in which types, what fails.

Every strategy's form and every model of models/ is built; the layers that the builder tells are held to the precision
that was asked for. What fails does so in one line, with the library's own words.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, helper, numpy_helper

import dilrewrite
from dilrewrite.errors import DilrewriteError, FailedError, UsageError
from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.model.walk import all_nodes
from dilrewrite.options import Building
from dilrewrite.runtimes import CannotLoad
from dilrewrite.sites import Found
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.tensorrt import cuda, make, profiles
from dilrewrite.tensorrt.bindings import Library
from dilrewrite.tensorrt.make import Built
from dilrewrite.tensorrt.precision import DATATYPES, Prepared, prepare
from dilrewrite.tensorrt.profiles import Profile
from dilrewrite.tensorrt.run import Engine
from tests import models_for_tests as tiny
from tests.contract import PROMISES
from tests.models_for_tests import DEMOS, MODELS, conv1d, conv_node, values
from tests.tensorrt import rtx

CHANNELS = 8
PRECISIONS = ("fp32", "fp16", "bf16")


@pytest.fixture(scope="module")
def library() -> Library:
    """TensorRT for RTX, loaded once."""
    if rtx.MISSING is not None:
        pytest.skip(rtx.MISSING)
    return rtx.library()


@pytest.fixture
def no_driver() -> None:
    """For what fails only where there is no GPU."""
    if "driver" not in str(cuda.missing()):
        pytest.skip("there is an NVIDIA driver")


def built(library: Library, prepared: Prepared, sizes: Mapping[str, Profile] | None = None, **options: Any) -> Built:
    """An engine of a prepared model, with nothing to complain of."""
    found = make.build(library, prepared.proto, Building(**options), profiles=sizes, folder=MODELS)
    assert len(found.plan) > 1000
    assert found.warnings == ()
    return found


def datatypes(found: Built, prepared: Prepared) -> dict[str, int]:
    """How many layers that hold a Conv read which element type."""
    names = {node.name for node in all_nodes(prepared.proto) if node.op_type in ("Conv", "ConvTranspose")}
    return found.layers.datatypes(names)


# -- every strategy --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Form:
    """A strategy on the dilated Conv of conv - dilated conv - conv."""

    strategy: str
    rank: int
    dynamic: bool
    quantized: bool = False

    def __str__(self) -> str:
        return f"{self.strategy}-{self.rank}d-{'dynamic' if self.dynamic else 'static'}"

    @property
    def size(self) -> int:
        """Each extent; small enough for dead taps where those are what it is about."""
        return 2 if self.strategy == "tap_prune" else 8

    @property
    def profile(self) -> dict[str, Profile] | None:
        """The sizes that a dynamic one is built for; nothing divides the largest."""
        if not self.dynamic:
            return None
        shapes = [(batch, CHANNELS, *[size] * self.rank) for batch, size in ((1, 4), (1, 8), (3, 9))]
        return {"x": Profile(min=shapes[0], opt=shapes[1], max=shapes[2])}


def chain(form: Form) -> ModelProto:
    """x -> Conv -> dilated Conv -> Conv -> y, of three taps on each axis, with biases."""
    dims = ["N" if form.dynamic else 1, CHANNELS]
    dims += [f"L{axis}" if form.dynamic else form.size for axis in range(form.rank)]
    nodes, weights = [], {}
    for source, output, name, dilation in (("x", "a", "first", 1), ("a", "b", "dilated", 2), ("b", "y", "last", 1)):
        shape = (CHANNELS, CHANNELS, *[3] * form.rank)
        operands = [source, f"{name}_w", f"{name}_b"]
        weights[operands[1]] = values(*shape, seed=len(weights))
        weights[operands[2]] = values(CHANNELS, seed=len(weights))
        if form.quantized:
            nodes += quantized(operands, weights)
        nodes.append(
            helper.make_node(
                "Conv", operands, [output], name=name, dilations=[dilation] * form.rank, pads=[dilation] * 2 * form.rank
            )
        )
    return tiny.build(nodes, {"x": dims}, {"y": dims}, weights)


def quantized(operands: list[str], held: dict[str, Any]) -> list[NodeProto]:
    """Symmetric int8 for a Conv's operands: Q/DQ for the data, DQ for weights (by channel) and the int32 bias.

    Replaces the operands' names and their values by the quantised ones.
    """
    data, weight, bias = operands
    scale = np.float32(2.0**-5)
    w_scale = (np.abs(held[weight]).reshape(CHANNELS, -1).max(axis=1) / 127).astype(np.float32)
    wide = w_scale.reshape(-1, *[1] * (held[weight].ndim - 1))
    held |= {
        "scale": scale,
        "zero": np.int8(0),
        f"{weight}_scale": w_scale,
        f"{weight}_zero": np.zeros(CHANNELS, np.int8),
    }
    held[f"{bias}_scale"] = scale * w_scale
    held[bias] = np.rint(held[bias] / held[f"{bias}_scale"]).astype(np.int32)
    held[weight] = np.rint(held[weight] / wide).astype(np.int8)
    operands[:] = [f"{name}_real" for name in operands]
    return [
        helper.make_node("QuantizeLinear", [data, "scale", "zero"], [f"{data}_q"], name=f"q_{data}"),
        helper.make_node("DequantizeLinear", [f"{data}_q", "scale", "zero"], [operands[0]], name=f"dq_{data}"),
        helper.make_node("DequantizeLinear", [weight, f"{weight}_scale", f"{weight}_zero"], [operands[1]], axis=0),
        helper.make_node("DequantizeLinear", [bias, f"{bias}_scale"], [operands[2]], axis=0),
    ]


@functools.cache
def original(rank: int, dynamic: bool, quantized: bool, small: bool) -> tuple[ModelProto, Found]:
    form = Form("tap_prune" if small else "keep", rank, dynamic, quantized)
    model = chain(form)
    onnx.checker.check_model(model, full_check=True)
    return model, find(model)


def rewritten(form: Form) -> ModelProto | Refusal:
    """The model with the strategy's form in place of its dilated Conv."""
    model, found = original(form.rank, form.dynamic, form.quantized, form.strategy == "tap_prune")
    (site,) = found.sites
    strategy = strategies()[form.strategy]
    fragment = plan(form.strategy, strategy, site.geometry, 17, storage=site.storage)
    if isinstance(fragment, Refusal):
        return fragment
    return rewrite(model, [(site, fragment)], found.normalisations, numpy_helper.to_array).proto


def forms(*, quantized: bool = False) -> list[Form]:
    """All that no strategy refuses."""
    every = [Form(name, r, d, quantized) for name in strategies() for r in (1, 2, 3) for d in (False, True)]
    return [form for form in every if not isinstance(rewritten(form), Refusal)]


def test_enough_forms_are_built() -> None:
    """A strategy that refuses is not built; these are those that may."""
    if set(PROMISES) <= set(strategies()):
        assert len(forms()) >= 51
        assert len(forms(quantized=True)) >= 48
    for form_list in (forms(), forms(quantized=True)):
        unlike = {name: {form.rank for form in form_list if form.strategy == name} for name in strategies()}
        partly = {name: ranks for name, ranks in unlike.items() if ranks != {1, 2, 3}}
        partly.pop("tap_sum", None)  # leaves the quantised domain
        expected = {"lift": {1}, "space_to_axis": {1, 2}}
        assert {name: ranks for name, ranks in partly.items() if name in PROMISES} == {
            name: ranks for name, ranks in expected.items() if name in strategies()
        }


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("form", forms(), ids=str)
@pytest.mark.grid(4)
def test_every_strategy_builds(library: Library, form: Form, precision: str) -> None:
    model = rewritten(form)
    assert isinstance(model, ModelProto)
    prepared = prepare(model, precision, "m")
    found = built(library, prepared, form.profile)
    read = datatypes(found, prepared)
    assert set(read) <= set(DATATYPES[precision]), found.layers.layers
    assert sum(read.values()) >= 3
    assert {tensor.datatype for tensor in (*found.inputs, *found.outputs)} == {"FLOAT"}
    assert [tensor.name for tensor in found.inputs] == ["x"]
    assert -1 in found.inputs[0].shape or not form.dynamic


"""The strategies that pad where an extent is not known; `im2col` always does."""


def quantized_forms() -> list[Any]:
    return list(forms(quantized=True))


@pytest.mark.parametrize("form", quantized_forms(), ids=str)
@pytest.mark.grid(4)
def test_every_strategy_stays_int8(library: Library, form: Form) -> None:
    model = rewritten(form)
    assert isinstance(model, ModelProto)
    prepared = prepare(model, None, "m")
    assert prepared.precision == "int8-qdq"
    found = built(library, prepared, form.profile)
    read = datatypes(found, prepared)
    assert set(read) == {"Int8"}, found.layers.layers
    assert sum(read.values()) >= 3


# -- every model -----------------------------------------------------------------------------------------------------


def sizes_of(proto: ModelProto, *, one: bool = False) -> dict[str, Profile]:
    """A profile over some sizes of every open axis, or one size of each, by the way that options take."""
    asked: dict[str, list[str]] = {kind: [] for kind in profiles.KINDS}
    for name, sizes in profiles.declared(proto).items():
        assert sizes is not None
        if None in sizes:
            for kind, batch, length in (("min", 1, 48), ("opt", 1, 64), ("max", 2, 150)):
                shape = [(length if axis else batch) if size is None else size for axis, size in enumerate(sizes)]
                if not one or kind == "opt":
                    asked[kind].append(f"{name}:{'x'.join(map(str, shape))}")
    found = profiles.settle(proto, profiles.parse(asked["min"], asked["opt"], asked["max"]), "m")
    profiles.check(proto, found, "m")
    return found


@functools.cache
def demo(name: str) -> ModelProto:
    return onnx.load(MODELS / f"{name}.onnx")


@pytest.mark.parametrize("precision", ["tf32", "fp16", "bf16"])
@pytest.mark.parametrize("name", DEMOS)
@pytest.mark.grid(4)
def test_every_model_builds(library: Library, name: str, precision: str) -> None:
    prepared = prepare(demo(name), precision, name)
    assert prepared.converted == (precision != "tf32")
    found = built(library, prepared, sizes_of(prepared.proto))
    read = datatypes(found, prepared)
    operators = Counter(node.op_type for node in all_nodes(prepared.proto))
    stay = operators["ConvTranspose"] if precision == "bf16" else 0
    assert prepared.changes == ((f"{stay} ConvTranspose stay in float32",) if stay else ())
    others = sum(count for kind, count in read.items() if kind not in DATATYPES[precision])
    assert others == read.get("Float", 0) * (precision != "tf32") <= stay
    convolutions = operators["Conv"] + operators["ConvTranspose"]
    assert sum(read.values()) >= convolutions - 1, "two may be merged into one layer"
    assert found.layers.memory["total_weights_memory_bytes"] > 0


APPLY = {
    "aspp_segmentation": set(strategies()) - {"keep", "lift"},
    "causal_tcn": set(strategies()) - {"keep", "tap_prune", "tap_sum", "tap_zones"},
    "hifigan_vocoder": set(strategies()) - {"keep", "tap_prune", "tap_sum", "tap_zones"},
    "meshnet3d": set(strategies()) - {"keep", "lift", "space_to_axis", "tap_prune"},
    "resnet_stage_os8": set(strategies()) - {"keep", "lift", "tap_prune"},
    "splice_sites": set(strategies()) - {"keep", "tap_prune", "tap_sum", "tap_zones"},
}
"""Which strategies rewrite anything of a model; the others refuse all of its sites."""


@pytest.mark.parametrize("strategy", strategies())
@pytest.mark.parametrize("name", DEMOS)
@pytest.mark.grid(4)
def test_every_rewritten_model_builds(library: Library, tmp_path: Path, name: str, strategy: str) -> None:
    output = tmp_path / "o.onnx"
    report = dilrewrite.optimize(
        MODELS / f"{name}.onnx", output, strategy=strategy, verify="none", report=None, budget=0
    )
    assert bool(report.rewritten) == (strategy in APPLY[name]) or strategy not in PROMISES, report.status
    if not report.rewritten:
        return
    prepared = prepare(onnx.load(output), None, strategy)
    one = name == "hifigan_vocoder"  # a build of it for a range of sizes takes 4 s
    found = built(library, prepared, sizes_of(prepared.proto, one=one))
    assert set(datatypes(found, prepared)) == {"Float"}


@pytest.fixture
def quiet() -> Iterator[None]:
    """The quantiser logs and warns at length."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(before)


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("name", DEMOS)
@pytest.mark.grid(2)
def test_every_model_quantised(library: Library, tmp_path: Path, name: str) -> None:
    """As the message of `precision.refuse` tells users to quantise."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    (entry,) = profiles.declared(demo(name)).items()
    shape = [(1 if axis == 0 else 48) if size is None else size for axis, size in enumerate(entry[1] or ())]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.left = [{entry[0]: values(*shape)}]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    output = tmp_path / "q.onnx"
    quantization.quantize_static(
        MODELS / f"{name}.onnx",
        output,
        Reader(),
        quant_format=quantization.QuantFormat.QDQ,
        activation_type=quantization.QuantType.QInt8,
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["Conv"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    prepared = prepare(onnx.load(output), None, name)
    assert prepared.precision == "int8-qdq"
    assert "int32 biases dequantised" in prepared.changes[0]
    read = datatypes(built(library, prepared, sizes_of(prepared.proto)), prepared)
    operators = Counter(node.op_type for node in all_nodes(prepared.proto))
    assert read["Int8"] >= operators["Conv"] - 1
    assert set(read) <= {"Int8", "Float"}
    assert read.get("Float", 0) <= operators["ConvTranspose"], "which were not asked to be quantised"


# -- what a build returns --------------------------------------------------------------------------------------------


def plain() -> Prepared:
    return prepare(conv1d(), None, "m")


def test_a_rebuild_has_the_same_bytes(library: Library) -> None:
    first, second = (
        built(library, prepare(demo("causal_tcn"), "fp16", "m"), sizes_of(demo("causal_tcn"))) for _ in "ab"
    )
    assert first.plan == second.plan
    assert first.layers == second.layers
    assert (first.inputs, first.outputs, first.flags) == (second.inputs, second.outputs, second.flags)
    assert 0 < second.seconds < 60


def test_progress_is_told(library: Library) -> None:
    told: list[tuple[str, int, int]] = []
    make.build(library, conv1d(), Building(), progress=lambda *step: told.append(step))
    assert {step for step, _, _ in told} == {"build"}
    assert len({total for _, _, total in told}) == 1
    done = [number for _, number, _ in told]
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, told[0][2])


def test_flags_tell_what_was_set(library: Library) -> None:
    usual = built(library, plain())
    assert usual.flags == {
        "TF32": True,
        "REFIT": False,
        "STRIP_PLAN": False,
        "VERSION_COMPATIBLE": False,
        "WEIGHT_STREAMING": False,
        "optimization_level": usual.flags["optimization_level"],
    }
    other = built(
        library,
        plain(),
        workspace_mib=32,
        optimization_level=1,
        weight_streaming=True,
        compute_capabilities=("8.6", "12.0"),
    )
    assert dict(other.flags) == {
        **usual.flags,
        "WEIGHT_STREAMING": True,
        "workspace_mib": 32,
        "optimization_level": 1,
        "compute_capabilities": ["SM86", "SM120"],
    }


def test_full_float32_is_asked_for(library: Library) -> None:
    assert make.build(library, conv1d(), Building(), tf32=False).flags["TF32"] is False


@pytest.mark.parametrize("given", [b"", b"rubbish", None], ids=["none", "of something else", "of a build"])
def test_timing_cache(library: Library, given: bytes | None) -> None:
    """TensorRT for RTX has no use for one, and nothing fails of it."""
    options = Building(timing_cache=Path("timing.cache"))
    if given is None:
        given = make.build(library, conv1d(), options).timing_cache
        assert given
    found = make.build(library, conv1d(), options, timing_cache=given)
    assert found.timing_cache is None or isinstance(found.timing_cache, bytes)
    assert make.build(library, conv1d(), Building()).timing_cache is None


def test_a_build_outside_of_the_main_thread(library: Library) -> None:
    found: list[Built] = []
    thread = threading.Thread(target=lambda: found.append(make.build(library, conv1d(), Building())))
    thread.start()
    thread.join()
    assert found[0].plan == make.build(library, conv1d(), Building()).plan


def test_external_data(library: Library, tmp_path: Path) -> None:
    path = tiny.save_external(conv1d(), tmp_path / "m.onnx")
    proto = onnx.load(path, load_external_data=False)
    found = make.build(library, proto, Building(), folder=tmp_path)
    assert found.plan == make.build(library, conv1d(), Building()).plan
    (tmp_path / "m.0.bin").unlink()
    fails(UsageError, lambda: make.build(library, proto, Building(), folder=tmp_path), "m.0.bin")


# -- what fails ------------------------------------------------------------------------------------------------------


def fails(kind: type[Exception], work: Callable[[], object], *words: str) -> str:
    """The one line that a failure says."""
    with pytest.raises(kind) as caught:
        work()
    assert type(caught.value) is kind
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1200
    for own in ("/_src/", "Begin node", "it says nothing"):
        assert own not in said
    for word in words:
        assert word in said, said
    return said


@pytest.fixture
def refused(library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Build something that must fail; nothing is left behind, and the next build succeeds."""
    monkeypatch.chdir(tmp_path)

    def work(kind: type[DilrewriteError], model: ModelProto, *words: str, sizes: Any = None, **options: Any) -> str:
        handler = signal.getsignal(signal.SIGINT)
        said = fails(kind, lambda: make.build(library, model, Building(**options), profiles=sizes), *words)
        assert list(tmp_path.iterdir()) == []
        assert signal.getsignal(signal.SIGINT) == handler
        built(library, plain())
        return said

    return work


def test_negative_pads(refused: Callable[..., str]) -> None:
    model = tiny.build(
        [conv_node(name="late", dilations=[1], pads=[-1, 0])], {"x": [1, 2, 16]}, {"y": None}, {"w": values(2, 2, 3)}
    )
    said = refused(UsageError, model, "tensorrt-rtx 1.", "does not take the model: Conv 'late'", "setPrePadding")
    assert said.count("setPrePadding") == 1, "each reason once"


def test_unknown_operator(refused: Callable[..., str]) -> None:
    node = helper.make_node("DeformConv", ["x", "w", "o"], ["y"], name="deform")
    model = tiny.build(
        [node], {"x": [1, 2, 8, 8], "o": [1, 18, 6, 6]}, {"y": None}, {"w": values(2, 2, 3, 3)}, opset=19, ir=9
    )
    refused(UsageError, model, "DeformConv", "deform")


@pytest.mark.usefixtures("no_driver")
def test_the_gpu_that_is_there(refused: Callable[..., str]) -> None:
    words = ("builds no engine: IBuilder::buildSerializedNetwork", "cudaError 35", "needs a GPU and its driver")
    refused(FailedError, conv1d(), *words, compute_capabilities=("current",))


@pytest.mark.parametrize("capability", ["9.0", "NONE", "", "8", "8.6.1", "1.20", "CURRENT"])
def test_unknown_compute_capability(refused: Callable[..., str], capability: str) -> None:
    words = (f"--compute-capability {capability}: tensorrt-rtx", "7.5, 8.0, 8.6, 8.9, 12.0, 12.1, and current")
    refused(UsageError, conv1d(), *words, compute_capabilities=("8.6", capability))


@pytest.mark.parametrize("capability", ["8.6", "86", "sm86", "SM86"])
def test_ways_to_write_a_compute_capability(library: Library, capability: str) -> None:
    assert built(library, plain(), compute_capabilities=(capability,)).flags["compute_capabilities"] == ["SM86"]


def test_current_stands_alone(refused: Callable[..., str]) -> None:
    refused(UsageError, conv1d(), "stands alone", compute_capabilities=("current", "8.6"))


def test_no_profile(refused: Callable[..., str]) -> None:
    refused(FailedError, conv1d(length="L"), "dynamic or shape inputs, but no optimization profile")


def test_wrong_profile(refused: Callable[..., str]) -> None:
    upside_down = {"x": Profile(min=(1, 2, 9), opt=(1, 2, 8), max=(1, 2, 16))}
    refused(FailedError, conv1d(length="L"), "profile is refused", "MIN<=OPT<=MAX", sizes=upside_down)
    other = {"z": Profile(min=(1, 2, 9), opt=(1, 2, 9), max=(1, 2, 16))}
    refused(FailedError, conv1d(length="L"), "input tensor x is missing", sizes=other)


@pytest.mark.usefixtures("no_driver")
@pytest.mark.parametrize("option", ["strip_plan", "refit"])
def test_what_needs_a_gpu(
    refused: Callable[..., str], library: Library, capfd: pytest.CaptureFixture[str], option: str
) -> None:
    """The engine-maker says it past the log, on file descriptor 2: quoted, and not let through."""
    words = (
        "builds no engine: IBuilder::buildSerializedNetwork",
        "; Internal Error: MyelinCheckException",
        "needs a GPU",
    )
    refused(FailedError, conv1d(), *words, **{option: True})
    assert capfd.readouterr() == ("", "")
    assert library.noise == [], "of the build that succeeded after it"
    with pytest.raises(FailedError):
        make.build(library, conv1d(), Building(refit=True))
    assert any(line.startswith("Internal Error: MyelinCheckException") for line in library.noise)


def test_lean_library_is_missing(refused: Callable[..., str]) -> None:
    refused(FailedError, conv1d(), "libnvinfer_lean.so.1", version_compatible=True)


def test_no_plugins(refused: Callable[..., str]) -> None:
    """Also of a file that is no library: what the flavour never does is said before what is wrong with the file."""
    words = ("--plugins: tensorrt-rtx runs no plugins", "--flavour tensorrt")
    refused(UsageError, conv1d(), *words, plugins=(Path(__file__),))


OUT_OF_RANGE: dict[str, tuple[dict[str, Any], str]] = {
    "workspace": ({"workspace_mib": 0}, "--workspace 0: at least 1 MiB"),
    "level below": ({"optimization_level": -1}, "--optimization-level -1: not one of 0 to 5"),
    "level above": ({"optimization_level": 6}, "--optimization-level 6"),
    "device": ({"device": -1}, "--device -1: at least 0"),
    "plugin": ({"plugins": (Path("no/such.so"),)}, "--plugins no/such.so: no such file"),
}


@pytest.mark.parametrize(("options", "words"), OUT_OF_RANGE.values(), ids=OUT_OF_RANGE.keys())
def test_options_out_of_range(options: dict[str, Any], words: str) -> None:
    fails(UsageError, Building(**options).check, words)


@pytest.mark.parametrize("level", range(6))
def test_options_in_range(level: int) -> None:
    Building(workspace_mib=1, optimization_level=level, device=0, plugins=(Path(__file__),)).check()


def test_a_builder_that_is_not_made(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bindings raise TypeError where the library returns nothing."""

    def builder(logger: Any) -> None:
        logger.log(library.module.ILogger.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    class Module:
        Builder = staticmethod(builder)

    broken = Library(flavour="tensorrt", module=Module(), log=library.log)  # type: ignore[arg-type]
    monkeypatch.setattr(library.log, "errors", [])
    fails(FailedError, lambda: make.build(broken, conv1d(), Building()), "makes no builder: CUDA init")


# -- running it without a GPU ----------------------------------------------------------------------------------------


NO_GPU: Any = SimpleNamespace(name="no GPU")


@pytest.mark.usefixtures("no_driver")
def test_an_engine_is_not_loaded_without_a_driver(library: Library) -> None:
    plan_bytes = built(library, plain()).plan
    words = ("tensorrt-rtx 1.", "does not load the engine on no GPU", "deserializeCudaEngine", "cudaError 35")
    fails(CannotLoad, lambda: Engine(library, NO_GPU, plan_bytes), *words)


@pytest.mark.parametrize("content", [b"", b"no engine", bytes(4096)], ids=["empty", "text", "zeros"])
def test_what_is_no_engine(library: Library, content: bytes) -> None:
    fails(CannotLoad, lambda: Engine(library, NO_GPU, content), "does not load the engine on no GPU: ", "Error")


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 3, "last"])
def test_ctrl_c(library: Library, call: int | str) -> None:
    """At the first step, in the middle, and when the engine is all but done."""
    calls = 0

    def press(step: str, done: int, total: int) -> None:  # noqa: ARG001
        nonlocal calls
        calls += 1
        if calls == call or (call == "last" and done == total):
            os.kill(os.getpid(), signal.SIGINT)

    def handler(number: int, frame: object) -> None:  # noqa: ARG001
        raise AssertionError("the handler from before is not asked during the build")

    before = signal.signal(signal.SIGINT, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            make.build(library, conv1d(), Building(), progress=press)
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert built(library, plain()).plan


def test_an_error_of_the_callers_own(library: Library) -> None:
    """What `progress` raises comes out as it is, and not as something that the library says."""
    calls = 0

    def fail(step: str, done: int, total: int) -> None:  # noqa: ARG001
        nonlocal calls
        calls += 1
        raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        make.build(library, conv1d(), Building(), progress=fail)
    assert calls == 1
    assert built(library, plain()).plan
