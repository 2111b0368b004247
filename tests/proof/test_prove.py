"""Proofs: what is equal passes, what is not is told apart, and nothing is asked twice."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

import dilrewrite
from dilrewrite.choice import choose
from dilrewrite.forms.fragment import CoreConv, Fragment, X
from dilrewrite.forms.strategies import every_strategy, plan
from dilrewrite.proof.carve import Source
from dilrewrite.proof.numbers import Numbers
from dilrewrite.proof.prove import Prover, Rounding
from dilrewrite.proof.sizes import sample_extents, smaller
from dilrewrite.reports import reasons
from dilrewrite.runtimes import CannotLoad, _onnxruntime
from dilrewrite.sites import Dequantized, Operand, Site
from dilrewrite.sites.find import find
from dilrewrite.sites.finders.dilated_conv import site_of
from dilrewrite.sites.operators import operators
from dilrewrite.sites.scopes import Scope
from tests import models_for_tests as tiny
from tests.models_for_tests import conv1d, conv2d

prove = importlib.import_module("dilrewrite.proof.prove")


def only(model: ModelProto) -> Site:
    (site,) = find(model).sites
    return site


def taken(model: ModelProto) -> tuple[Source, Site]:
    """A model to cut its one site from, and the site."""
    return Source(model), only(model)


def form(site: Site, name: str = "space_to_batch") -> Fragment:
    fragment = plan(name, every_strategy()[name], site.geometry, site.opset, storage=site.storage)
    assert isinstance(fragment, Fragment), fragment.reason
    return fragment


def forms(site: Site) -> dict[str, Fragment]:
    found = {}
    for name, strategy in every_strategy().items():
        fragment = plan(name, strategy, site.geometry, site.opset, storage=site.storage)
        if isinstance(fragment, Fragment):
            found[name] = fragment
    return found


def overridable_weights() -> ModelProto:
    """The weights are an input with a default."""
    model = conv1d()
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2, 3]))
    return model


# -- what is proved ------------------------------------------------------------------------------------------------

BFLOAT16 = {"dtype": ml_dtypes.bfloat16, "element": TensorProto.BFLOAT16, "opset": 22, "ir": 10}
FLOAT64 = {"dtype": np.float64, "element": TensorProto.DOUBLE}
FLOAT16 = {"dtype": np.float16, "element": TensorProto.FLOAT16}


def quantised_input_alone() -> ModelProto:
    """The quantised model without its QuantizeLinear: the Conv's output stays in float."""
    model = tiny.quantized()
    graph = model.graph
    kept = [node for node in graph.node if node.name not in ("q_out", "dq_out")]
    next(node for node in kept if node.op_type == "Conv").output[0] = "y"
    del graph.node[:]
    graph.node.extend(kept)
    return model


RIGHT: dict[str, Any] = {
    "quantised input alone": quantised_input_alone,
    "1-D": conv1d,
    "2-D": conv2d,
    "unknown sizes": lambda: conv2d(size=None, batch=None),
    "strided": lambda: conv1d(length=None, strides=[2], dilations=[3], pads=[1, 0]),
    "SAME": lambda: tiny.same_upper(length="length", stride=2),
    "negative pads": lambda: conv1d(pads=[-1, 2], dilations=[2]),
    "grouped": lambda: conv1d(channels=2, group=1, dilations=[2], pads=[2, 2]),
    "weights that may be given": overridable_weights,
    "quantised": tiny.quantized,
    "float16": lambda: conv2d(**FLOAT16),
    "float64": lambda: conv2d(**FLOAT64),
    "bfloat16": lambda: conv2d(**BFLOAT16),
    "old IR": lambda: conv1d(ir=3, opset=8),
}


@pytest.mark.parametrize("name", every_strategy())
@pytest.mark.parametrize("made", RIGHT.values(), ids=RIGHT.keys())
@pytest.mark.grid(2)
def test_every_right_form_is_proved(made: Any, name: str) -> None:
    model = made()
    source, site = taken(model)
    fragment = forms(site).get(name)
    if fragment is None:
        pytest.skip("refuses")
    proof = Prover().prove(source, site, fragment)
    assert proof.failure is None
    assert proof.passed
    assert proof.elements > 0
    assert len(proof.shapes) == len(sample_extents(site.geometry))


def test_a_proof_says_what_ran() -> None:
    proof = Prover().prove(Source(conv1d()), only(conv1d()), form(only(conv1d())))
    assert (proof.backend, proof.native_ran, proof.shapes) == ("onnxruntime_cpu", True, ((1, 2, 16),))
    assert proof.elements == 32
    assert proof.rounding is not None
    assert proof.rounding.ceiling is not None


def test_what_onnx_runtime_does_not_run_natively() -> None:
    for model in (tiny.same_upper(), conv1d(pads=[-1, 2], dilations=[2])):
        proof = Prover().prove(Source(model), only(model), form(only(model)))
        assert proof.passed
        assert not proof.native_ran
        assert proof.rounding is not None, "against the same Conv behind explicit pads"


@pytest.mark.parametrize(
    ("options", "backend"),
    [
        (FLOAT64, "onnxruntime_cpu (float32 twin), reference"),
        (BFLOAT16, "onnxruntime_cpu (float32 twin), reference"),
        (FLOAT16, "onnxruntime_cpu (float32 twin)"),
    ],
    ids=["float64", "bfloat16", "float16"],
)
def test_other_types_are_proved_on_a_twin(options: Any, backend: str) -> None:
    source, site = taken(conv2d(**options))
    proof = Prover().prove(source, site, form(site))
    assert proof.passed
    assert proof.backend == backend
    assert proof.rounding is not None


def test_quantised_sites_have_no_rounding() -> None:
    source, site = taken(tiny.quantized())
    proof = Prover().prove(source, site, form(site))
    assert proof.passed
    assert proof.rounding is None


# -- what is not ---------------------------------------------------------------------------------------------------


def broken(fragment: Fragment, **changes: Any) -> Fragment:
    """The fragment with changes of its first Conv."""
    first, *others = fragment.core
    assert isinstance(first, CoreConv)
    return replace(fragment, steps=(*fragment.enter, replace(first, **changes), *others, *fragment.exit))


@pytest.mark.parametrize(
    "changes",
    [{"bias_times": 0}, {"dilations": (1,)}, {"strides": (2,)}, {"pads": (3, 1)}, {"pads": (0, 0)}],
    ids=lambda changes: "-".join(map(str, next(iter(changes.items())))),
)
def test_a_wrong_form_is_told(changes: dict[str, Any]) -> None:
    model = conv1d(length=15)
    bias = numpy_helper.from_array(np.ones(2, np.float32), "b")
    model.graph.initializer.append(bias)
    model.graph.node[0].input.append("b")
    source, site = taken(model)
    proof = Prover().prove(source, site, broken(form(site, "keep"), **changes))
    assert not proof.passed
    assert proof.rounding is None, "it is wrong, not rough"
    assert "input [1, 2, 15]: " in str(proof.failure)


def test_a_form_right_only_at_the_declared_length_is_told() -> None:
    """A form made for length 16 stands at a site of unknown length."""
    unknown, known = only(conv1d(length=None)), only(conv1d(length=16))
    proof = Prover().prove(Source(conv1d(length=None)), unknown, form(known))
    assert not proof.passed


def test_a_permuted_weight_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights differ, so that no exchange of two of them goes unnoticed."""
    (source, site), made = taken(conv2d()), prove.rewrite

    def swapped(*arguments: Any) -> Any:
        result = made(*arguments)
        tensor = result.proto.graph.initializer[0]
        array = numpy_helper.to_array(tensor).copy()
        array[0, 0, 0, 0], array[1, 1, 2, 1] = array[1, 1, 2, 1], array[0, 0, 0, 0]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return result

    monkeypatch.setattr(prove, "rewrite", swapped)
    proof = Prover().prove(source, site, form(site))
    assert not proof.passed
    assert "values differ, the first at" in str(proof.failure)


def test_what_cannot_be_run_is_not_called_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A runtime that refuses the micro-model says nothing about the form: `rewritten` must not become `differs`."""

    def refuse(*_: Any) -> None:
        raise CannotLoad("opset 99 is not supported")

    monkeypatch.setattr(_onnxruntime, "InProcess", refuse)
    source, site = taken(conv1d())
    proof = Prover().prove(source, site, form(site))
    assert not proof.passed
    assert "opset 99" in str(proof.failure)
    path = tiny.save(conv1d(), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, strategy="space_to_batch", verify="sites")
    assert report.status != "differs"


# -- rounding ------------------------------------------------------------------------------------------------------


def rounding(**changes: Any) -> Rounding:
    return replace(Rounding(native_error=1.0, new_error=1.0, limit=4.0, ceiling=8.0, difference=0.0), **changes)


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({}, True),
        ({"new_error": 4.0}, True),
        ({"new_error": 4.1}, False),
        ({"limit": 9.0, "new_error": 8.0}, True),
        ({"limit": 9.0, "new_error": 8.5}, False),
        ({"limit": 9.0, "new_error": 8.5, "ceiling": None}, True),
        ({"new_error": math.nan}, False),
        ({"new_error": math.inf}, False),
    ],
)
def test_limit_and_ceiling(changes: dict[str, Any], passed: bool) -> None:
    assert rounding(**changes).passed is passed


def test_the_native_form_rounds_like_itself() -> None:
    for model in (conv1d(), conv2d(), conv2d(**FLOAT16)):
        source, site = taken(model)
        found = prove._rounding(Prover(), source, site, form(site, "keep"))
        assert found.new_error == found.native_error
        assert found.difference == 0
        assert found.passed


def test_the_limit_is_four_times_the_native_error() -> None:
    source, site = taken(conv2d(channels=8))
    found = prove._rounding(Prover(), source, site, form(site))
    u = 2.0**-24
    terms = 8 * 9 + 1
    assert found.limit == pytest.approx(4 * found.native_error + 2 * u)
    assert found.ceiling == pytest.approx(2 * terms * u / (1 - terms * u))
    assert 0 < found.native_error < found.ceiling


def roughly(model: ModelProto, what: str) -> ModelProto:
    """A copy that passes its input or its weights through bfloat16, as hardware with a fast mode does."""
    rough = ModelProto()
    rough.CopyFrom(model)
    for tensor in rough.graph.initializer:
        if what == "weights" and tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    if what == "input":
        casts = [
            helper.make_node("Cast", ["x"], ["x_small"], to=TensorProto.BFLOAT16),
            helper.make_node("Cast", ["x_small"], ["x_rough"], to=TensorProto.FLOAT),
        ]
        for node in rough.graph.node:
            node.input[:] = ["x_rough" if name == "x" else name for name in node.input]
        nodes = [*casts, *rough.graph.node]
        del rough.graph.node[:]
        rough.graph.node.extend(nodes)
    return rough


@pytest.mark.parametrize("what", ["input", "weights"])
@pytest.mark.parametrize("channels", [2, 16, 64])
def test_a_rough_form_is_rejected(monkeypatch: pytest.MonkeyPatch, what: str, channels: int) -> None:
    """Exact on whole numbers it may be; on real ones it loses 16 bits. Weights count as much as the input."""
    (source, site), made = taken(conv2d(channels=channels)), prove.rewrite
    fragment = form(site)
    assert prove._rounding(Prover(), source, site, fragment).passed

    def rough(*arguments: Any) -> Any:
        result = made(*arguments)
        return replace(result, proto=roughly(result.proto, what))

    monkeypatch.setattr(prove, "rewrite", rough)
    found = prove._rounding(Prover(), source, site, fragment)
    assert not found.passed
    assert found.new_error > 10 * found.native_error


def test_a_rough_form_is_no_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof keeps the figures, so that the caller can tell rough from wrong."""
    source, site = taken(conv2d())
    bad = rounding(new_error=5.0)
    monkeypatch.setattr(prove, "_rounding", lambda *_: bad)
    proof = Prover().prove(source, site, form(site))
    assert not proof.passed
    assert proof.rounding is bad
    assert str(proof.failure).startswith("rounding: error 5 ")


# -- once ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the sites that were really proved."""
    found: list[str] = []
    real = prove._prove

    def counted(prover: Prover, source: Source, site: Site, fragment: Fragment) -> Any:
        found.append(site.geometry.element)
        return real(prover, source, site, fragment)

    monkeypatch.setattr(prove, "_prove", counted)
    return found


def test_equal_questions_are_asked_once(asked: list[str]) -> None:
    model = tiny.two_convs(first=2, second=2)
    model.graph.node[1].op_type = "Identity"  # no activation to move: the same question twice
    prover, sites, source = Prover(), find(model).sites, Source(model)
    proofs = [prover.prove(source, site, form(site)) for site in sites]
    assert asked == ["float32"]
    assert proofs[0] is proofs[1]
    again = []
    for version in (10, 13):
        model.ir_version = version
        again.append(prover.prove(Source(model), find(model).sites[0], form(sites[0])))
    assert again[0] is not proofs[0], "another IR version"
    assert again[1] is again[0]
    assert asked == ["float32", "float32"]


def test_other_questions_are_asked_again(asked: list[str]) -> None:
    prover = Prover()
    models = [
        conv1d(),
        conv1d(length=17),
        conv1d(opset=13),
        conv1d(dilations=[4], pads=[4, 4]),
        conv1d(**FLOAT16),
        overridable_weights(),
    ]
    for model in models:
        source, site = taken(model)
        prover.prove(source, site, form(site))
        prover.prove(source, site, form(site, "im2col"))
    assert len(asked) == 2 * len(models)


def test_a_new_prover_forgets(asked: list[str]) -> None:
    source, site = taken(conv1d())
    first, second = (Prover(seed=3).prove(source, site, form(site)) for _ in range(2))
    assert len(asked) == 2
    assert first == second, "the same seed gives the same proof"


# -- what tells questions apart ------------------------------------------------------------------------------------


def with_bias(kind: str) -> ModelProto:
    """A Conv with a bias: a constant, one that may be given, or a computed one."""
    model = conv1d()
    bias = numpy_helper.from_array(np.ones(2, np.float32), "b0" if kind == "computed" else "b")
    model.graph.initializer.append(bias)
    if kind == "computed":
        model.graph.node.insert(0, helper.make_node("Neg", ["b0"], ["b"]))
    if kind == "given":
        model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    model.graph.node[-1].input.append("b")
    return model


def one_scale_of_weights() -> ModelProto:
    """The quantised model with one scale for all weights."""
    model = tiny.quantized()
    for tensor in model.graph.initializer:
        if tensor.name in ("ws", "wz"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[0], tensor.name))
    return model


def quantised_bias(*, scales: int) -> ModelProto:
    """The quantised model with a bias in int32, of one scale or one for each output."""
    model = tiny.quantized()
    scale = np.full((scales,) if scales > 1 else (), 0.001, np.float32)
    for name, values in (("bq", np.array([5, -9], np.int32)), ("bs", scale)):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["bq", "bs"], ["b"], name="dq_b", axis=0))
    next(node for node in model.graph.node if node.op_type == "Conv").input.append("b")
    return model


def without_zero_point(node: str) -> ModelProto:
    """The quantised model where one DequantizeLinear has no zero point."""
    model = tiny.quantized()
    del next(found for found in model.graph.node if found.name == node).input[2]
    return model


KINDS: dict[str, Any] = {
    **RIGHT,
    "constant bias": lambda: with_bias("constant"),
    "bias that may be given": lambda: with_bias("given"),
    "computed bias": lambda: with_bias("computed"),
    "one scale of weights": one_scale_of_weights,
    "quantised bias": lambda: quantised_bias(scales=1),
    "quantised bias, a scale per output": lambda: quantised_bias(scales=2),
    "no zero point": lambda: without_zero_point("dq_in"),
    "no zero point of weights": lambda: without_zero_point("dq_w"),
}
TAKEN = {name: taken(made()) for name, made in KINDS.items()}


def fields(thing: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every field of a site and of the dataclasses in it, but for its geometry's own."""
    found = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if field.name == "parts":
            found |= fields(value[0], path)
            continue
        found[(*path, field.name)] = value
        if isinstance(value, Operand | Dequantized):
            found |= fields(value, (*path, field.name))
    return found


def sub_models(source: Source, site: Site) -> list[bytes]:
    """What is run for a site: the sub-model, and the rewritten one."""
    rng = np.random.default_rng(0)
    trial = prove.Trial(Numbers(source=source, site=site, element=site.geometry.element, rng=rng))
    pair = trial.model, trial.rewritten(form(trial.site, "keep"))
    return [model.SerializeToString(deterministic=True) for model in pair]


MATTERS = [
    ("bias", "kind"),
    ("weight", "kind"),
    ("weight_quantization", "axis"),
    ("weight_quantization", "zero_point"),
    ("bias_quantization",),
    ("bias_quantization", "axis"),
    ("input_quantization", "zero_point"),
    ("follow",),
    ("quantizes_output",),
    ("opset",),
    ("meaning",),
]


def test_all_that_changes_a_sub_model_changes_the_key() -> None:
    models: dict[object, list[bytes]] = {}
    for source, site in TAKEN.values():
        model = sub_models(source, site)
        assert models.setdefault(prove.outline(source, site), model) == model
    assert len(models) == len({tuple(model) for model in models.values()}) > 15


@pytest.mark.parametrize("path", MATTERS, ids=".".join)
def test_sites_that_differ_in_what_matters_have_other_keys(path: tuple[str, ...]) -> None:
    pairs = [
        (one, other)
        for one, other in itertools.combinations(TAKEN.values(), 2)
        if path in fields(one[1]) and path in fields(other[1]) and fields(one[1])[path] != fields(other[1])[path]
    ]
    assert pairs
    assert all(prove.outline(*one) != prove.outline(*other) for one, other in pairs)
    assert all(sub_models(*one) != sub_models(*other) for one, other in pairs)


def test_names_and_places_are_no_part_of_the_key() -> None:
    model = tiny.two_convs(first=2, second=2)
    source, (first, second) = Source(model), find(model).sites
    assert prove.outline(source, first) != prove.outline(source, second), "a Relu follows one"
    assert prove.outline(source, replace(first, follow=())) == prove.outline(source, second)
    model = conv1d()
    (weight,) = model.graph.initializer
    model.graph.node.insert(0, helper.make_node("Constant", [], [weight.name], value=weight))
    model.graph.node[1].name = "another"
    del model.graph.initializer[:]
    assert only(model).part.weight.kind == "constant"
    assert prove.outline(*taken(model)) == prove.outline(*taken(conv1d()))


# -- once for all forms --------------------------------------------------------------------------------------------


def test_the_truth_of_a_site_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    real = prove.exact

    def counted(model: ModelProto, feeds: Any, *arguments: Any, **more: Any) -> Any:
        sizes.append(feeds["x"].shape)
        return real(model, feeds, *arguments, **more)

    monkeypatch.setattr(prove, "exact", counted)
    (source, site), prover = taken(conv2d(size=None)), Prover()
    for fragment in forms(site).values():
        assert prover.prove(source, site, fragment).passed
    assert len(forms(site)) > 4
    assert len(sizes) == len(sample_extents(site.geometry)) + 2, "each size; the result and its sums for the rounding"


def test_the_original_runs_once_for_all_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[bytes] = []
    real = prove.Trial.run

    def counted(self: Any, runtime: Any, model: ModelProto, *arguments: Any) -> Any:
        models.append(model.SerializeToString(deterministic=True))
        return real(self, runtime, model, *arguments)

    monkeypatch.setattr(prove.Trial, "run", counted)
    (source, site), prover = taken(conv2d()), Prover()
    for fragment in forms(site).values():
        assert prover.prove(source, site, fragment).passed
    assert len(models) == 2 * len(forms(site)) + 2


def test_a_remembered_truth_gives_the_same_proof() -> None:
    for made in (conv2d, lambda: conv2d(size=None), tiny.quantized, lambda: conv2d(**FLOAT64), tiny.same_upper):
        (source, site), prover = taken(made()), Prover()
        for name, fragment in forms(site).items():
            assert prover.prove(source, site, fragment) == Prover().prove(source, site, fragment), name


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "KEPT_BYTES", 30_000)
    prover = Prover()
    for length in range(100, 130):
        source, site = taken(conv1d(length=length))
        assert prover.prove(source, site, form(site)).passed
        assert sum(kept.bytes for kept in prover._kept.values()) <= 30_000
    assert prover._kept


# -- large sites ---------------------------------------------------------------------------------------------------


def conv3d(
    *extents: int, channels: int = 4, dilation: int = 2, pad: int = 2, kernel: int = 3, **more: Any
) -> ModelProto:
    rank = len(extents)
    return tiny.build(
        [tiny.conv_node(dilations=[dilation] * rank, pads=[pad] * (2 * rank), **more)],
        {"x": [1, channels, *extents]},
        {"y": [1, None, *[None] * rank]},
        {"w": tiny.values(channels, channels // more.get("group", 1), *[kernel] * rank)},
    )


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sites of some thousand numbers are large."""
    monkeypatch.setattr("dilrewrite.proof.sizes.LIMIT_ELEMENTS", 2**19)


LARGE: dict[str, Any] = {
    "3-D": lambda: conv3d(33, 34, 35),
    "no pads": lambda: conv3d(33, 34, 35, pad=0, dilation=3),
    "pads that the dilation does not divide": lambda: conv3d(32, 37, 41, pad=5, dilation=4),
    "strides": lambda: conv3d(33, 34, 35, strides=[2, 2, 2], dilation=3, pad=4),
    "even kernel": lambda: conv3d(40, 41, 42, kernel=2, dilation=5, pad=3),
    "groups": lambda: conv3d(33, 34, 35, group=2),
    "depthwise": lambda: conv3d(33, 34, 35, group=4),
    "2-D": lambda: conv3d(250, 251, dilation=7, pad=7),
    "1-D": lambda: conv3d(100_001, dilation=8, pad=8),
    "negative pads": lambda: conv3d(100_001, dilation=8, pad=-3),
    "SAME": lambda: tiny.same_upper(length=200_001, stride=3, dilation=2),
    "old opset": lambda: conv1d(length=200_001, opset=9, dilations=[4], pads=[4, 4]),
    "float16": lambda: conv2d(size=400, **FLOAT16),
}


@pytest.mark.parametrize("made", LARGE.values(), ids=LARGE.keys())
def test_a_large_site_is_proved_at_a_smaller_size_of_the_same_kind(made: Any, low_limit: None) -> None:  # noqa: ARG001
    source, site = taken(made())
    prover = Prover()
    small = smaller(site.geometry)
    assert small.extents != site.geometry.extents
    for axis in small.axes:
        step = math.lcm(small.strides[axis], small.dilations[axis])
        extent, before = small.extents[axis], site.geometry.extents[axis]
        assert extent is not None
        assert before is not None
        assert (before - extent) % step == 0
    assert (small.kernel, small.strides, small.dilations, small.explicit().pads_begin, small.explicit().pads_end) == (
        site.geometry.kernel, site.geometry.strides, site.geometry.dilations,
        site.geometry.explicit().pads_begin, site.geometry.explicit().pads_end,
    )  # fmt: skip
    for name, fragment in forms(site).items():
        proof = prover.prove(source, site, fragment)
        assert proof.passed, (name, proof.failure)
        assert proof.shapes == ((small.batch, small.in_channels, *small.extents),), name


def test_dead_taps_stay_dead_and_live_ones_live(low_limit: None) -> None:  # noqa: ARG001
    """Of 5 taps, two see padding only at extent 100; a shorter extent of the same kind has the same ones."""
    site = only(conv3d(100, 600, kernel=5, dilation=60, pad=120))
    small = smaller(site.geometry)
    assert small != site.geometry
    assert [[small.taps(a).live(t) for t in range(5)] for a in small.axes] == [  # type: ignore[union-attr]
        [site.geometry.taps(a).live(t) for t in range(5)]
        for a in site.geometry.axes  # type: ignore[union-attr]
    ]
    for name, fragment in forms(site).items():
        sized = prove._sized(site, fragment)
        assert isinstance(sized, str) or sized[0].geometry == small, name


def test_a_small_site_is_proved_as_it_is() -> None:
    for made in KINDS.values():
        site = only(made())
        assert smaller(site.geometry) is site.geometry


def test_channels_go_last(low_limit: None) -> None:  # noqa: ARG001
    """A kernel so wide that no extent can be shorter."""
    source, site = taken(conv3d(24, 24, 24, channels=32, dilation=10, pad=10))
    small = smaller(site.geometry)
    assert small.extents == (24, 24, 24)
    assert (small.in_channels, small.out_channels, small.group) == (2, 2, 1)
    for name, fragment in forms(site).items():
        proof = Prover().prove(source, site, fragment)
        assert proof.passed, name
        assert proof.shapes == ((1, 2, 24, 24, 24),)


def test_another_form_at_the_smaller_size_is_no_proof(low_limit: None) -> None:  # noqa: ARG001
    """A fragment that is not what its strategy makes is proved at its own size, and told wrong there."""
    source, site = taken(conv3d(33, 34, 35))
    wrong = broken(form(site, "keep"), pads=(3, 2, 2, 1, 2, 2))
    proof = Prover().prove(source, site, wrong)
    assert proof.wrong
    assert proof.shapes == ((1, 4, 33, 34, 35),)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: replace(f, steps=f.steps[:-1]),
        lambda f: replace(f, steps=(replace(f.enter[0], op="Identity"), *f.steps[1:])),
        lambda f: replace(f, constants={name: tuple(v + 1 for v in values) for name, values in f.constants.items()}),
        lambda f: broken(f, group=2),
    ],
    ids=["a node less", "another operator", "other pads", "another group"],
)
def test_forms_of_another_structure_are_told_apart(change: Any) -> None:
    fragment = form(only(conv3d(33, 34, 35)))
    assert prove._structure(change(fragment), 1) != prove._structure(fragment, 1)


def test_what_is_too_large_even_so_is_refused_and_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove, "MOST_ELEMENTS", 1000)
    source, site = taken(conv3d(9, 9, 9))
    proof = Prover().prove(source, site, form(site))
    assert not proof.passed
    assert not proof.wrong
    assert "its proof would hold" in str(proof.failure)


MEMORY = """
from dilrewrite.proof.prove import Prover
from tests.proof.test_prove import conv3d, forms, taken
(source, site), prover = taken(conv3d(256, 256, 256, channels=16)), Prover()
for name, fragment in forms(site).items():
    proof = prover.prove(source, site, fragment)
    assert proof.passed, proof.failure
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak of a process")
def test_the_proofs_of_a_large_volume_stay_below_2_gib() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2]
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 2**20, "KiB"


# -- float16: partial sums -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", [lambda: conv2d(**FLOAT16), lambda: conv1d(**FLOAT16)], ids=["2-D", "1-D"])
def test_the_proof_sees_partial_sums_that_leave_the_range(made: Any) -> None:
    """Exactly the forms that add in float16 do so, and those say what they hold for."""
    source, site = taken(made())
    for name, fragment in forms(site).items():
        overflows = prove._overflows(Prover(), source, site, fragment)
        assert overflows == (name == "tap_sum"), name
        assert (
            "65,504" in reasons.conditions(choose.holds_for(site, every_strategy()[name], fragment))
        ) == overflows, name


def test_a_form_that_does_not_say_so_is_not_proved() -> None:
    source, site = taken(conv1d(**FLOAT16))
    proof = Prover().prove(source, site, replace(form(site, "tap_sum"), partial=False))
    assert not proof.passed
    assert "range of float16" in str(proof.failure)


def test_float16_partial_sums_are_rounded_one_by_one() -> None:
    """On the reference evaluator: ONNX Runtime's CPU provider keeps them in float32, which hides their rounding."""
    source, site = taken(conv2d(**FLOAT16))
    proof = Prover().prove(source, site, form(site, "tap_sum"))
    assert proof.passed
    assert "reference" in proof.backend
    assert proof.rounding is not None
    assert proof.rounding.new_error > 1.5 * proof.rounding.native_error


# -- weights alone behind DequantizeLinear -------------------------------------------------------------------------


@pytest.mark.parametrize("scales", [1, 2], ids=["one scale", "a scale per output"])
@pytest.mark.parametrize("zero_point", [False, True], ids=["no zero point", "zero point"])
def test_quantised_weights_and_an_input_in_float(scales: int, zero_point: bool) -> None:
    rng = np.random.default_rng(0)
    zeros = [numpy_helper.from_array(np.zeros((scales,) if scales > 1 else (), np.int8), "zero")] if zero_point else []
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["codes", "scale", *(tensor.name for tensor in zeros)], ["w"], axis=0),
            helper.make_node("Conv", ["x", "w"], ["y"], name="conv", dilations=[3], pads=[3, 3]),
        ],
        "weights",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 16])],
        [
            numpy_helper.from_array(rng.integers(-100, 100, (2, 2, 3)).astype(np.int8), "codes"),
            numpy_helper.from_array(np.full((scales,) if scales > 1 else (), 0.01, np.float32), "scale"),
            *zeros,
        ],
    )
    source, site = taken(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert site.part.weight_quantization is not None
    assert site.input_quantization is None
    proof = Prover().prove(source, site, form(site))
    assert proof.failure is None
    assert proof.rounding is not None
    assert proof.rounding.native_error < 1e-5


# -- sites of several nodes ----------------------------------------------------------------------------------------


class Pairs:
    """Finds what stands before a dilated Conv together with it, and pairs of them: `Chain` is no Conv."""

    def at(self, scope: Scope, index: int) -> Iterator[Site]:
        node = scope.nodes[index]
        before = next((place for place, other in enumerate(scope.nodes) if node.input[0] in other.output), None)
        if node.op_type != "Conv" or before is None:
            return
        first, part = scope.nodes[before], operators()["conv"].read(scope, index)
        single = replace(site_of(scope, part, node), nodes=(before, index), inputs=(first.input[0],))
        if first.op_type == "Conv":
            yield replace(single, meaning="chain", parts=(operators()["conv"].read(scope, before), part))
        else:
            yield single


def beside(*before: NodeProto, source: str, **weights: Any) -> ModelProto:
    nodes = [*before, tiny.conv_node(source, "y", dilations=[3], pads=[3, 3])]
    held = {"w": tiny.values(2, 2, 3, seed=1), **weights}
    return tiny.build(nodes, {"x": [1, 2, 16]}, {"y": None}, held)


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dilrewrite.sites.find.finders", lambda: {"pairs": Pairs()})


@pytest.mark.parametrize("name", every_strategy())
@pytest.mark.parametrize(
    ("made", "passed"),
    [
        (lambda: beside(helper.make_node("Identity", ["x"], ["i"]), source="i"), True),
        (lambda: beside(helper.make_node("Relu", ["x"], ["r"]), source="r"), False),
        (lambda: beside(helper.make_node("Mul", ["x", "k"], ["r"]), source="r", k=np.float32([2])), False),
    ],
    ids=["Identity", "Relu", "Mul"],
)
def test_a_site_of_two_nodes(pairs: None, made: Any, passed: bool, name: str) -> None:  # noqa: ARG001
    """The form of its Conv is that of both where the other node changes nothing, and is told wrong elsewhere."""
    source, site = taken(made())
    fragment = forms(site).get(name)
    if fragment is None:
        pytest.skip("refuses")
    proof = Prover().prove(source, site, fragment)
    assert (proof.passed, proof.wrong) == (passed, not passed), proof.failure
    assert proof.shapes == ((1, 2, 16),)


def chain(seed: int = 1) -> ModelProto:
    first = tiny.conv_node("x", "c", "v", dilations=[2], pads=[2, 2])
    return beside(first, source="c", v=tiny.values(2, 2, 3, seed=seed))


def test_a_chain_of_two_convs(pairs: None) -> None:  # noqa: ARG001
    """Both stay Convs of their own: that is proved, and where they stand the wrong way round it is not."""
    source, site = taken(chain())
    assert len(site.parts) == 2
    proofs = []
    for dilations in ((2, 3), (3, 2)):
        cores = tuple(
            CoreConv(
                source=(X, "c")[number],
                output="cd"[number],
                kernel=(3,),
                strides=(1,),
                dilations=(d,),
                pads=(d, d),
                group=1,
                weight=(),
                bias_times=0,
                of=number,
            )
            for number, d in enumerate(dilations)
        )
        fragment = Fragment(strategy="chain", opset=site.opset, steps=cores, results=("d",), constants={})
        proofs.append(Prover().prove(source, site, fragment))
    assert proofs[0].failure is None
    assert proofs[0].rounding is not None
    assert proofs[1].wrong


def test_what_enters_beside_the_input_is_not_proved(pairs: None) -> None:  # noqa: ARG001
    model = beside(helper.make_node("Add", ["x", "z"], ["a"]), source="a")
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 2, 16]))
    source, site = taken(model)
    proof = Prover().prove(source, site, form(site, "keep"))
    assert not proof.passed
    assert not proof.wrong
    assert "'z'" in str(proof.failure)
