"""Proofs of regions: right forms pass, wrong ones fail, and what cannot be told is said."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment, Node, Step
from dilrewrite.forms.regions import region_forms
from dilrewrite.forms.strategies import Refusal
from dilrewrite.model.walk import ScopePath
from dilrewrite.proof import whole as whole_runs
from dilrewrite.proof.carve import Source
from dilrewrite.proof.chains import ChainProver
from dilrewrite.proof.proof import Proof
from dilrewrite.proof.prove import Prover
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from tests.forms.regions.test_lift_region import quantised
from tests.forms.regions.test_phase_cases import quantised as quantised_units
from tests.models_for_tests import MODELS
from tests.random_chains import Flat, Net
from tests.region_models import between, ints, whole
from tests.sites.test_chains import regions

ONE = np.float32(1)


def forms(model: ModelProto) -> list[tuple[Site, Fragment]]:
    """Return the regions of a model, each with its fragment."""
    found = []
    for site in find(model, regions=True).regions:
        assert isinstance(site.meaning, Chain)
        name = "phase_region" if site.meaning.block else "lift_region"
        fragment = region_forms()[name].fragment(site.meaning, site.opset)
        if not isinstance(fragment, Refusal):
            found.append((site, fragment))
    return found


def proofs(model: ModelProto) -> list[Proof]:
    source, prover = Source(model), Prover()
    return [prover.prove(source, site, fragment) for site, fragment in forms(model)]


@pytest.mark.parametrize(
    "name", ["causal_tcn", "hifigan_vocoder", "splice_sites", "aspp_segmentation", "meshnet3d", "resnet_stage_os8"]
)
def test_right_forms_are_proved(name: str) -> None:
    found = proofs(onnx.load(MODELS / f"{name}.onnx"))
    assert found
    assert [proof.failure for proof in found] == [None] * len(found)
    assert all(proof.elements > 500 and proof.rounding is not None for proof in found)


FUNCTIONS = "Sigmoid Tanh Elu Softplus Erf Exp Cos Sqrt Reciprocal HardSwish"
MIDDLES: dict[str, tuple[str, dict[str, Any]]] = {
    **{op: (f"b = {op} (a)", {}) for op in FUNCTIONS.split()},
    "softmax": ("b = Softmax <axis = 1> (a)", {}),
    "log_softmax": ("b = LogSoftmax <axis = -2> (a)", {}),
    "gate": ("s = Sigmoid (a) t = Tanh (a) b = Mul (s, t)", {}),
    "snake": ("s = Sin (a) p = Pow (s, two) d = Div (p, c) b = Add (a, d)", {"two": np.float32(2), "c": whole(4, 1)}),
    "slope": ("b = PRelu (a, c)", {"c": whole(4, 1)}),
    "batch_norm": (
        "b = BatchNormalization (a, c, m, m, v)",
        {"c": whole(4) + 4, "m": whole(4), "v": np.arange(1, 5, dtype=np.float32)},
    ),
    "instance_norm": ("b = InstanceNormalization (a, c, m)", {"c": whole(4) + 4, "m": whole(4)}),
    "adaptive_norm": (
        "s = ReduceMean <axes = [0, 2], keepdims = 0> (a) b = InstanceNormalization (a, s, m)", {"m": whole(4)},
    ),
    "layer_norm": (
        "p = Transpose <perm = [0, 2, 1]> (a) n = LayerNormalization (p, c, m) b = Transpose <perm = [0, 2, 1]> (n)",
        {"c": whole(4) + 4, "m": whole(4)},
    ),
    "lp_norm": ("b = LpNormalization <axis = 1> (a)", {}),
    "average": ("b = AveragePool <kernel_shape = [3], pads = [1, 1], count_include_pad = 1> (a)", {}),
    "global": ("g = GlobalAveragePool (a) s = Sigmoid (g) b = Mul (a, s)", {}),
    "mean": ("m = ReduceMean <axes = [1]> (a) d = Sub (a, m) q = ReduceL2 <axes = [1]> (d) b = Div (d, q)", {}),
    "mean_over_time": ("m = ReduceMean <axes = [2]> (a) b = Sub (a, m)", {}),
    "clip": ("b = Clip (a, low, high)", {"low": np.float32(0.5), "high": np.float32(1e9)}),
    "cast": ("h = Cast <to = 10> (a) r = Relu (h) b = Cast <to = 1> (r)", {}),
    "choice": ("g = Greater (a, z) b = Where (g, a, s)", {"z": np.float32(0.25), "s": np.float32(-0.5)}),
    "joined": ("s = Sigmoid (a) t = Relu (a) c = Concat <axis = 1> (s, t) b, q = Split <axis = 1> (c)", {}),
    "pad": ("p = Pad (a, pads) b = Slice (p, one, end, two)", {"pads": ints(0, 0, 1, 0, 0, 2), "one": ints(1),
                                                              "end": ints(-1), "two": ints(2)}),
    "resize": ('b = Resize <mode = "linear"> (a, , factors)', {"factors": np.array([1, 1, 2], np.float32)}),
    "repeats": ("t = Tile (a, times) g = Gather <axis = 2> (t, places) r = Reshape (g, sizes) b = Sigmoid (r)",
                {"times": ints(1, 1, 2), "places": ints(*range(1, 16, 2)), "sizes": ints(0, 4, -1)}),
    "mean_and_variance": ("b = MeanVarianceNormalization <axes = [0, 2]> (a)", {}),
    "integers": (
        "q = QuantizeLinear (a, s, z) r = MaxPool <kernel_shape = [3], pads = [1, 1]> (q)"
        "b = DequantizeLinear (r, s, z)",
        {"s": np.float32(0.02), "z": np.uint8(128)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("middle", MIDDLES)
def test_what_stands_for_an_operator_lies_like_it(middle: str) -> None:
    text, weights = MIDDLES[middle]
    found = proofs(between(text, {name: np.asarray(values) for name, values in weights.items()}))
    assert found
    assert [proof.failure for proof in found] == [None] * len(found)


def test_limits_that_are_attributes() -> None:
    """Before opset 11; they are no whole numbers, and sums of such depend on their order."""
    found = proofs(between("b = Clip <min = 0.1, max = 2.3> (a)", shape=(2, 4, 19), opset=10))
    assert found
    assert [proof.failure for proof in found] == [None] * len(found)


@pytest.mark.parametrize(
    ("middle", "ran"),
    [
        ("m = GlobalAveragePool (a) b = Add (a, m)", True),
        ("m = GlobalAveragePool (a) s = Add (a, m) b = Round (s)", False),
    ],
)
def test_a_difference_behind_a_mean_and_a_step_proves_nothing(
    monkeypatch: pytest.MonkeyPatch, middle: str, ran: bool
) -> None:
    model, site, fragment = phased(middle)
    assert Prover().prove(Source(model), site, fragment).passed
    monkeypatch.setattr(whole_runs, "_differs_much", lambda *_: "it differs")
    proof = Prover().prove(Source(model), site, fragment)
    assert not proof.passed
    assert proof.ran is ran


@pytest.mark.parametrize("name", ["Sigmoid", "Tanh", "Exp", "Mish", "Softplus"])
def test_functions_in_phases_in_two_dimensions(name: str) -> None:
    found = proofs(between(f"b = {name} (a)", shape=(3, 4, 7, 9), opset=18))
    assert found
    assert [proof.failure for proof in found] == [None] * len(found)


@pytest.mark.parametrize("element", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("rank", [1, 2])
def test_other_element_types(element: str, rank: int) -> None:
    model = between("t = Tanh (a) b = Mul (t, c)", {"c": np.float32(0.5)}, shape=(2, 4, *(9, 11)[:rank]), opset=20)
    number = TensorProto.DataType.Value({"float64": "DOUBLE"}.get(element, element.upper()))
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor) / 3
        tensor.CopyFrom(helper.make_tensor(tensor.name, number, values.shape, values.ravel()))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = number
    found = proofs(model)
    assert found
    assert [proof.failure for proof in found] == [None] * len(found)
    assert all("float32 twin" in proof.backend and proof.rounding is not None for proof in found)


def test_quantised_weights() -> None:
    for axis in (None, 0):
        found = proofs(quantised("b = Relu (a)", axis))
        assert found
        assert [proof.failure for proof in found] == [None] * len(found)


@pytest.mark.parametrize("signed", [True, False])
def test_quantised_units_in_phases(signed: bool) -> None:
    found = proofs(quantised_units(signed))
    assert found
    assert [proof.failure for proof in found] == [None] * len(found)


def test_a_region_in_a_loop() -> None:
    body = between("b = Tanh (a)").graph
    loop = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> outer (float[2, 4, 9] v) => (float[2, 4, 9] w) '
        "{ n = Constant <value = int64 {2}> () }"
    )
    x = body.input[0].name
    body.input.insert(0, helper.make_tensor_value_info("i", TensorProto.INT64, []))
    body.input.insert(1, helper.make_tensor_value_info("go", TensorProto.BOOL, []))
    body.node.append(helper.make_node("Identity", ["go"], ["on"]))
    body.output.insert(0, helper.make_tensor_value_info("on", TensorProto.BOOL, []))
    del body.output[1].type.tensor_type.shape.dim[:]
    body.output[1].CopyFrom(helper.make_tensor_value_info(body.output[1].name, TensorProto.FLOAT, [2, 4, 9]))
    assert x == "x"
    loop.graph.node.append(helper.make_node("Loop", ["n", "", "v"], ["w"], body=body))
    found = forms(loop)
    assert any(site.scope != ScopePath() for site, _ in found)
    assert [proof.failure for proof in proofs(loop)] == [None] * len(found)


@pytest.mark.parametrize("start", [pytest.param(start, marks=pytest.mark.grid(5)) for start in range(0, 400, 40)])
def test_random_networks(start: int) -> None:
    total: Counter[str] = Counter()
    for seed in range(start, start + 40):
        model = (Net, Flat)[seed % 2](seed).model(6 + seed % 25, unknown=seed % 6 == 0)
        for proof in proofs(model):
            total["passed" if proof.passed else "ran" if proof.ran else "not run"] += 1
    assert total["ran"] == 0
    assert total["passed"] > 9 * total["not run"]


# -- what is noticed -------------------------------------------------------------------------------------------------


def changed(made: Fragment, change: Mapping[str, Any]) -> Fragment:
    """Return a fragment with some of its layout operators replaced: {type: function of the step}."""
    steps: list[Step] = []
    for step in made.steps:
        steps += change[step.op](step) if isinstance(step, Node) and step.op in change else [step]
    return replace(made, steps=tuple(steps))


def phased(middle: str = "b = Exp (a)") -> tuple[ModelProto, Site, Fragment]:
    model = between(middle, shape=(2, 4, 9, 9))
    ((site, fragment),) = regions(model, "phase_region", (2, 2))
    return model, site, fragment


def multiplied(step: Node) -> list[Step]:
    mask, x, _ = step.inputs
    return [
        Node("Cast", (mask,), (f"{step.outputs[0]}_mask",), {"to": int(TensorProto.FLOAT)}),
        Node("Mul", (x, f"{step.outputs[0]}_mask"), step.outputs, {}),
    ]


def test_a_mask_that_multiplies_lets_infinity_through() -> None:
    model, site, fragment = phased()
    proof = Prover().prove(Source(model), site, changed(fragment, {"Where": multiplied}))
    assert proof.wrong
    assert "nan around the data" in str(proof.failure)


def test_spoiled_samples_show_a_missing_mask_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    model, site, fragment = phased("b = Relu (a)")
    bare = changed(fragment, {"Where": lambda step: [Node("Identity", (step.inputs[1],), step.outputs, {})]})
    own = whole_runs.Exact._compared
    calls: list[int] = []

    def later(self: Any, *given: Any) -> str | None:
        calls.append(1)
        return None if len(calls) == 1 else own(self, *given)

    monkeypatch.setattr(whole_runs.Exact, "_compared", later)
    for value in whole_runs.SPOILS:
        calls.clear()
        monkeypatch.setattr(whole_runs, "SPOILS", (value,))
        proof = Prover().prove(Source(model), site, bare)
        assert proof.wrong
        assert f"with {value:g} around the data" in str(proof.failure)


def test_what_a_stand_in_hides_shows_on_reals() -> None:
    """The axis of a norm over channels: whole numbers only tell where its operands are."""
    model = between(MIDDLES["layer_norm"][0], MIDDLES["layer_norm"][1])
    ((site, fragment),) = regions(model, "lift_region", ())
    steps = [
        replace(step, attributes={**step.attributes, "epsilon": 1.0}) if place == len(fragment.enter) + 2 else step
        for place, step in enumerate(fragment.steps)
    ]
    proof = Prover().prove(Source(model), site, replace(fragment, steps=tuple(steps)))
    assert proof.failure is not None
    assert proof.failure.startswith("rounding")
    assert not proof.wrong


# -- what is asked ---------------------------------------------------------------------------------------------------


def test_what_was_seen_is_what_it_runs_on() -> None:
    model = onnx.load(MODELS / "causal_tcn.onnx")
    site, fragment = forms(model)[0]
    channels = site.meaning.shapes[site.meaning.inputs[0]][1]  # type: ignore[attr-defined]
    (name,) = site.inputs
    seen = [{name: np.ones((batch, channels, length), np.float32)} for batch, length in ((2, 30), (1, 17))]
    proof = Prover().prove(Source(model), site, fragment, seen=seen)
    assert proof.passed
    assert proof.shapes[:2] == ((1, channels, 17), (2, channels, 30))
    lengths = {shape[2] for shape in proof.shapes}
    assert {1, 2, 3, 17, 18, 19, 20, 30} <= lengths
    assert {shape[0] for shape in proof.shapes} == {1, 2, 3}


def test_every_remainder_of_the_block_is_tried() -> None:
    model = onnx.load(MODELS / "splice_sites.onnx")
    site, fragment = next(pair for pair in forms(model) if getattr(pair[0].meaning, "block", ()) == (5,))
    proof = Prover().prove(Source(model), site, fragment)
    assert {shape[2] % 5 for shape in proof.shapes} == {0, 1, 2, 3, 4}


def test_a_question_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    own = ChainProver._prove
    monkeypatch.setattr(ChainProver, "_prove", lambda self, region: asked.append(region) or own(self, region))
    model = between("b = Relu (a)")
    ((site, fragment),) = regions(model, "lift_region", ())
    prover, source = Prover(), Source(model)
    first = prover.prove(source, site, fragment)
    assert prover.prove(source, site, fragment) is first
    assert len(asked) == 1
    seen = [{"x": whole(2, 4, 9)}]
    prover.prove(source, site, fragment, seen=seen)
    assert len(asked) == 2


def test_weights_are_read_with_what_reads_the_model() -> None:
    read: list[str] = []

    def reader(tensor: TensorProto) -> Any:
        read.append(tensor.name)
        return numpy_helper.to_array(tensor)

    model = between("b = Mul (a, c)", {"c": whole(4, 1)})
    ((site, fragment),) = regions(model, "lift_region", ())
    assert Prover(read=reader).prove(Source(model), site, fragment).passed
    assert sorted(read) == ["b1", "b2", "c", "w1", "w2"]


def test_unknown_channels_are_those_of_a_conv() -> None:
    model = between("b = Relu (a)", shape=(2, 4, 9))
    for axis in range(3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].Clear()
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"x{axis}"
    ((site, fragment),) = regions(model, "lift_region", ())
    assert isinstance(site.meaning, Chain)
    shapes = {**site.meaning.shapes, site.meaning.inputs[0]: (None, None, None)}
    site = replace(site, meaning=replace(site.meaning, shapes=shapes))
    proof = Prover().prove(Source(model), site, fragment)
    assert proof.passed
    assert {shape[1] for shape in proof.shapes} == {4}


def test_sizes_of_which_nothing_is_known_are_said() -> None:
    model = between("b = Add (a, z)", given=", float z", shape=(2, 4, 9))
    ((site, fragment),) = regions(model, "lift_region", ())
    assert isinstance(site.meaning, Chain)
    shapes = {name: shape for name, shape in site.meaning.shapes.items() if name != site.meaning.inputs[0]}
    site = replace(site, meaning=replace(site.meaning, shapes=shapes))
    proof = Prover().prove(Source(model), site, fragment)
    assert not proof.passed
    assert not proof.ran
    assert "sizes" in str(proof.failure)
