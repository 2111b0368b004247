"""Proofs: what is equal passes, what is not is told apart, and nothing is asked twice."""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import dilrewrite
from dilrewrite.backends import CannotLoad, onnxruntime_cpu
from dilrewrite.find import Site, find
from dilrewrite.fragment import CoreConv, Fragment
from dilrewrite.micro import sample_extents
from dilrewrite.prove import Prover, Rounding
from dilrewrite.strategies import plan, strategies
from tests import models_for_tests as tiny
from tests.models_for_tests import conv1d, conv2d

prove = importlib.import_module("dilrewrite.prove")


def only(model: ModelProto) -> Site:
    (site,) = find(model).sites
    return site


def form(site: Site, name: str = "space_to_batch") -> Fragment:
    fragment = plan(name, strategies()[name], site.geometry, site.opset, storage=site.storage)
    assert isinstance(fragment, Fragment), fragment.reason
    return fragment


def forms(site: Site) -> dict[str, Fragment]:
    found = {}
    for name, strategy in strategies().items():
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

RIGHT: dict[str, Any] = {
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


@pytest.mark.parametrize("name", strategies())
@pytest.mark.parametrize("made", RIGHT.values(), ids=RIGHT.keys())
def test_every_right_form_is_proved(made: Any, name: str) -> None:
    model = made()
    site = only(model)
    fragment = forms(site).get(name)
    if fragment is None:
        pytest.skip("refuses")
    proof = Prover().prove(site, fragment, model.ir_version)
    assert proof.failure is None
    assert proof.passed
    assert proof.elements > 0
    assert len(proof.shapes) == len(sample_extents(site.geometry))


def test_a_proof_says_what_ran() -> None:
    proof = Prover().prove(only(conv1d()), form(only(conv1d())), 8)
    assert (proof.backend, proof.native_ran, proof.shapes) == ("onnxruntime_cpu", True, ((1, 2, 16),))
    assert proof.elements == 32
    assert proof.rounding is not None
    assert proof.rounding.ceiling is not None


def test_what_onnx_runtime_does_not_run_natively() -> None:
    for model in (tiny.same_upper(), conv1d(pads=[-1, 2], dilations=[2])):
        proof = Prover().prove(only(model), form(only(model)), 8)
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
    site = only(conv2d(**options))
    proof = Prover().prove(site, form(site), options.get("ir", 8))
    assert proof.passed
    assert proof.backend == backend
    assert proof.rounding is not None


def test_quantised_sites_have_no_rounding() -> None:
    site = only(tiny.quantized())
    proof = Prover().prove(site, form(site), 8)
    assert proof.passed
    assert proof.rounding is None


# -- what is not ---------------------------------------------------------------------------------------------------


def broken(fragment: Fragment, **changes: Any) -> Fragment:
    """The fragment with changes of its first Conv."""
    first, *others = fragment.core
    assert isinstance(first, CoreConv)
    return replace(fragment, core=(replace(first, **changes), *others))


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
    site = only(model)
    proof = Prover().prove(site, broken(form(site, "keep"), **changes), 8)
    assert not proof.passed
    assert proof.rounding is None, "it is wrong, not rough"
    assert "input [1, 2, 15]: " in str(proof.failure)


def test_a_form_right_only_at_the_declared_length_is_told() -> None:
    """A form made for length 16 stands at a site of unknown length."""
    unknown, known = only(conv1d(length=None)), only(conv1d(length=16))
    proof = Prover().prove(unknown, form(known), 8)
    assert not proof.passed


def test_a_permuted_weight_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """All weights differ, so that no exchange of two of them goes unnoticed."""
    site, made = only(conv2d()), prove.rewrite

    def swapped(*arguments: Any) -> Any:
        result = made(*arguments)
        tensor = result.proto.graph.initializer[0]
        array = numpy_helper.to_array(tensor).copy()
        array[0, 0, 0, 0], array[1, 1, 2, 1] = array[1, 1, 2, 1], array[0, 0, 0, 0]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return result

    monkeypatch.setattr(prove, "rewrite", swapped)
    proof = Prover().prove(site, form(site), 8)
    assert not proof.passed
    assert "values differ, the first at" in str(proof.failure)


def test_what_cannot_be_run_is_not_called_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A runtime that refuses the micro-model says nothing about the form: `rewritten` must not become `differs`."""

    def refuse(*_: Any) -> None:
        raise CannotLoad("opset 99 is not supported")

    monkeypatch.setattr(onnxruntime_cpu, "InProcess", refuse)
    site = only(conv1d())
    proof = Prover().prove(site, form(site), 8)
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
        site = only(model)
        found = prove._rounding(Prover(), site, form(site, "keep"), 8)
        assert found.new_error == found.native_error
        assert found.difference == 0
        assert found.passed


def test_the_limit_is_four_times_the_native_error() -> None:
    site = only(conv2d(channels=8))
    found = prove._rounding(Prover(), site, form(site), 8)
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
    site, made = only(conv2d(channels=channels)), prove.rewrite
    fragment = form(site)
    assert prove._rounding(Prover(), site, fragment, 8).passed

    def rough(*arguments: Any) -> Any:
        result = made(*arguments)
        return replace(result, proto=roughly(result.proto, what))

    monkeypatch.setattr(prove, "rewrite", rough)
    found = prove._rounding(Prover(), site, fragment, 8)
    assert not found.passed
    assert found.new_error > 10 * found.native_error


def test_a_rough_form_is_no_wrong_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof keeps the figures, so that the caller can tell rough from wrong."""
    site = only(conv2d())
    bad = rounding(new_error=5.0)
    monkeypatch.setattr(prove, "_rounding", lambda *_: bad)
    proof = Prover().prove(site, form(site), 8)
    assert not proof.passed
    assert proof.rounding is bad
    assert str(proof.failure).startswith("rounding: error 5 ")


# -- once ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sites that were really proved."""
    found: list[str] = []
    real = prove._prove

    def counted(prover: Prover, site: Site, fragment: Fragment, ir_version: int) -> Any:
        found.append(site.name)
        return real(prover, site, fragment, ir_version)

    monkeypatch.setattr(prove, "_prove", counted)
    return found


def test_equal_questions_are_asked_once(asked: list[str]) -> None:
    model = tiny.two_convs(first=2, second=2)
    model.graph.node[1].op_type = "Identity"  # no activation to move: the same question twice
    prover, sites = Prover(), find(model).sites
    proofs = [prover.prove(site, form(site), 8) for site in sites]
    assert asked == ["early"]
    assert proofs[0] is proofs[1]
    assert prover.prove(sites[0], form(sites[0]), 10) is not proofs[0], "another IR version"
    assert prover.prove(sites[0], form(sites[0]), 13) is prover.prove(sites[0], form(sites[0]), 10)
    assert asked == ["early", "early"]


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
        site = only(model)
        prover.prove(site, form(site), 8)
        prover.prove(site, form(site, "im2col"), 8)
    assert len(asked) == 2 * len(models)


def test_a_new_prover_forgets(asked: list[str]) -> None:
    site = only(conv1d())
    first, second = (Prover(seed=3).prove(site, form(site), 8) for _ in range(2))
    assert len(asked) == 2
    assert first == second, "the same seed gives the same proof"


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
    site = only(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert site.weight_quantization is not None
    assert site.input_quantization is None
    proof = Prover().prove(site, form(site), 8)
    assert proof.failure is None
    assert proof.rounding is not None
    assert proof.rounding.native_error < 1e-5
