"""QLinearConv and ConvInteger: every form gives the same integers as an evaluation of its own, on ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, helper, numpy_helper

import dilrewrite
from dilrewrite.errors import UsageError
from dilrewrite.forms.fragment import Fragment, Refusal, SpreadTaps
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.model.evaluate import Evaluator
from dilrewrite.proof.carve import Source
from dilrewrite.proof.numbers import Numbers
from dilrewrite.proof.prove import Proof, Prover, outline
from dilrewrite.sites.find import find
from dilrewrite.splice.region import Region
from dilrewrite.splice.rewrite import rewrite
from tests.integers import Array, Integers, build, held, images, truth

PHASES = {"slice_to_batch", "space_to_axis", "space_to_batch", "space_to_group"}
KNOWN = {"tap_sum", "tap_zones"}
"""Forms that need to know the extents."""

WIDE: dict[str, Any] = {"kernel": (3, 2), "dilations": (2, 3), "pads": (2, 3, 1, 0)}
DEEP: dict[str, Any] = {
    "kernel": (2, 1, 3),
    "dilations": (2, 1, 2),
    "pads": (1, 0, 2, 1, 0, 2),
    "shape": (1, 2, 5, 4, 6),
}
GRID = (
    Integers(name="plain", shape=(1, 3, 14)),
    Integers(name="many images", shape=(3, 4, 14), outputs=6, group=2, scale=2.0**6),
    Integers(name="unknown", shape=(None, 2, None), zero=5),
    Integers(name="saturates", shape=(2, 8, 200), scale=2.0**7),
    Integers(name="no bias", shape=(1, 3, 14), bias=False, per_channel=False),
    Integers(name="large pads", shape=(1, 3, 4), pads=(9, 11), dilations=(4,)),
    Integers(name="zones of padding", shape=(2, 3, 4), pads=(10, 10), dilations=(8,), zero=200),
    Integers(name="nothing but padding", shape=(2, 3, 2), pads=(16, 1), kernel=(2,), dilations=(14,)),
    Integers(name="strides", shape=(1, 3, 25), strides=(2,), dilations=(4,), pads=(4, 1)),
    Integers(name="overlapping", shape=(1, 3, 26), strides=(2,), dilations=(3,)),
    Integers(name="depthwise", shape=(1, 5, 14), outputs=5, group=5, scale=2.0**2),
    Integers(name="2-D", shape=(1, 3, 9, 10), **WIDE),
    Integers(name="2-D square", shape=(2, 3, 9, 10), kernel=(3, 3), dilations=(2, 2), pads=(2,) * 4, zero=201),
    Integers(name="2-D unknown", shape=(None, 3, None, None), **WIDE),
    Integers(name="3-D", **DEEP),
    Integers(name="opset 11", shape=(1, 3, 14), opset=11),
    Integers(name="opset 21", shape=(1, 3, 14), opset=21),
)
U8 = {"weights": np.uint8, "weight_zero": 117}
S8 = {"data": np.int8, "zero": -31, "out_zero": 9}
SUMS = {"out_zero": None, "bias": False}
MIXED = {**S8, **U8}
CHANNELS = {"weight_zero": "channel"}
KINDS: dict[str, dict[str, Any]] = {
    "u8 x s8": {}, "u8 x u8": U8, "s8 x s8": S8, "sums u8 x s8": SUMS, "sums u8 x u8": U8 | SUMS,
    "sums s8 x s8": S8 | SUMS, "sums s8 x u8": MIXED | SUMS,
    "sums without zero points": {**SUMS, "zero": None, "weight_zero": None},
    "s8 x u8": MIXED, "zero points per channel": U8 | CHANNELS, "sums with zero points per channel": SUMS | CHANNELS,
}  # fmt: skip
LACKING = {"s8 x u8", "sums with zero points per channel"}
"""What ONNX Runtime's CPU provider does not run."""

CASES = [
    pytest.param(replace(q, **kind), word, id=f"{word}: {q.name}")
    for place, q in enumerate(GRID)
    for number, (word, kind) in enumerate(KINDS.items())
    if not (word.startswith("sums") and q.name in ("saturates", "no bias"))
    if q.name in ("plain", "zones of padding", "2-D square") or (place + number) % 3 == 0
]


def planned(q: Integers) -> tuple[ModelProto, Any, dict[str, Fragment | Refusal]]:
    """The model of a case, its site, and what each strategy plans."""
    model = build(q)
    found = find(model)
    (site,) = found.sites
    how = {"storage": site.storage, "fixed_weights": site.fixed_weights}
    return model, found, {name: plan(name, one, site.meaning, site.opset, **how) for name, one in strategies().items()}


def outputs(model: ModelProto, inputs: list[Array], *, runs: bool) -> list[Array]:
    """What a model gives, on ONNX Runtime with graph optimisations off and on, or where that lacks the operator."""
    if not runs:
        return [np.asarray(Evaluator(model).run(None, {"x": x})[0]) for x in inputs] * 2
    found = []
    for level in (
        onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    ):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 4
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        found += [session.run(None, {"x": x})[0] for x in inputs]
    return found


@pytest.mark.parametrize(("q", "word"), CASES)
@pytest.mark.grid(2)
def test_every_form_gives_the_same_integers(q: Integers, word: str) -> None:
    model, found, forms = planned(q)
    emitted = {name: form for name, form in forms.items() if isinstance(form, Fragment)}
    inputs = images(q)
    wanted = [truth(q, x) for x in inputs] * 2
    for name, form in emitted.items():
        after = rewrite(model, [(found.sites[0], form)], found.normalisations, numpy_helper.to_array).proto
        onnx.checker.check_model(after)
        assert name in ("keep", "lift", "tap_prune", "tap_zones") or form.max_dilation == 1
        for got, right in zip(outputs(after, inputs, runs=word not in LACKING), wanted, strict=True):
            assert got.dtype == right.dtype, name
            np.testing.assert_array_equal(got, right, err_msg=name)
    known, rank = None not in q.shape, len(q.kernel)
    if q.name != "nothing but padding":
        missing = {
            *(["im2col"] if q.group == 1 else []),
            "keep",
            "zero_fill",
            *PHASES,
            *(KNOWN if known else ()),
        } - emitted.keys()
        overlap = PHASES - {"slice_to_batch"} if q.name == "overlapping" else set()
        assert missing == overlap | ({"tap_sum"} if q.fused and known else set()) | (
            {"space_to_axis"} if rank == 3 else set()
        )


def test_both_ends_come_up() -> None:
    """What saturates in the grid does so at both ends."""
    for kind in ({}, S8):
        q = replace(next(each for each in GRID if each.name == "saturates"), **kind)
        values, info = truth(q, images(q)[0]), np.iinfo(q.data)
        assert (values == info.min).any()
        assert (values == info.max).any()
        assert len(np.unique(values)) > 20


def test_partial_sums_are_refused_where_each_would_be_rounded() -> None:
    _, _, forms = planned(GRID[0])
    assert (
        getattr(forms["tap_sum"], "reason", "")
        == "each partial sum would be rounded to uint8, and the original rounds once"
    )


@pytest.mark.parametrize("word", KINDS)
@pytest.mark.parametrize("name", ["plain", "2-D unknown", "zones of padding"])
@pytest.mark.grid(2)
def test_every_form_is_proved(name: str, word: str) -> None:
    q = replace(next(each for each in GRID if each.name == name), **KINDS[word])
    model, found, forms = planned(q)
    source, prover = Source(model), Prover()
    proofs = [prover.prove(source, found.sites[0], form) for form in forms.values() if isinstance(form, Fragment)]
    assert [proof.failure for proof in proofs] == [None] * len(proofs)
    assert {proof.backend for proof in proofs} == {"reference" if word in LACKING else "onnxruntime_cpu"}
    assert {proof.native_ran for proof in proofs} == {word not in LACKING}
    assert all(proof.rounding is None for proof in proofs), "integers are not rounded"


def numbers(q: Integers) -> tuple[Source, Numbers]:
    source = Source(build(q))
    (site,) = find(source.proto).sites
    return source, Numbers(source=source, site=site, element=site.geometry.element, rng=np.random.default_rng(0))


def test_a_proof_holds_for_its_zero_points_alone() -> None:
    """What stays in the sub-model as it is decides what is asked."""
    models = [build(replace(GRID[0], zero=zero)) for zero in (3, 3, 0)]
    first, same, other = (outline(Source(proto), find(proto).sites[0]) for proto in models)
    assert first == same
    assert first != other


def test_a_proof_sees_both_ends_and_the_model_s_zero_points(monkeypatch: pytest.MonkeyPatch) -> None:
    q = replace(GRID[-1], name="proved", zero=200, out_zero=100, shape=(1, 8, 200))
    model, found, forms = planned(q)
    seen: list[Array] = []
    from dilrewrite.proof import prove

    right = prove.exact
    monkeypatch.setattr(prove, "exact", lambda model, feeds: seen.append(right(model, feeds)) or seen[-1])
    proof = Prover().prove(Source(model), found.sites[0], forms["space_to_batch"])
    assert proof.passed
    (values,) = seen
    assert {0, 100, 255} <= set(values.ravel().tolist())
    assert len(np.unique(values)) > 200


WRONG = {
    "padding with 0": (Region, "_fill_value", lambda _: "", ("space_to_batch", "space_to_axis", "slice_to_batch")),
    "spreading 0": (SpreadTaps, "apply", None, ("zero_fill",)),
}


@pytest.mark.parametrize("fused", [True, False], ids=["QLinearConv", "ConvInteger"])
@pytest.mark.parametrize(
    ("mutant", "strategy"), [(word, strategy) for word, (*_, names) in WRONG.items() for strategy in names]
)
def test_zero_for_the_zero_point_is_not_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mutant: str, strategy: str, fused: bool
) -> None:
    owner, name, wrong, _ = WRONG[mutant]
    right = SpreadTaps.apply
    monkeypatch.setattr(owner, name, wrong or (lambda self, weight, _: right(self, weight, np.zeros((), weight.dtype))))
    q = replace(GRID[0], **U8, **({} if fused else SUMS))
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(build(q), path)
    report = dilrewrite.optimize(path, output, strategy=strategy, budget=0)
    assert report.exit_code == 3
    assert not output.exists()
    monkeypatch.undo()
    assert dilrewrite.optimize(path, output, strategy=strategy, budget=0).exit_code == 0


@pytest.mark.parametrize("word", ["u8 x s8", "sums u8 x u8", "s8 x u8"])
def test_no_dilation_is_left(tmp_path: Path, word: str) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(build(replace(GRID[0], **KINDS[word])), path)
    report = dilrewrite.optimize(path, output, eliminate=True, budget=0)
    assert (report.status, report.exit_code, report.rewritten) == ("rewritten", 0, 1)
    assert report.verdict is not None
    assert report.verdict.passed
    assert find(onnx.load(output)).sites == ()
    assert "Conv" not in {node.op_type for node in onnx.load(output).graph.node}


def test_a_computed_zero_point_of_the_data() -> None:
    """As dynamic quantisation has it: phases are padded with what comes out at run time."""
    q = replace(GRID[0], **SUMS)
    model = build(q)
    model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == "xz"))
    model.graph.input.append(helper.make_tensor_value_info("xz", onnx.TensorProto.UINT8, []))
    found = find(model)
    (site,) = found.sites
    form = plan("space_to_batch", strategies()["space_to_batch"], site.meaning, site.opset, storage=site.storage)
    assert isinstance(form, Fragment)
    proof = Prover().prove(Source(model), site, form)
    assert isinstance(proof, Proof)
    assert proof.passed
    after = rewrite(model, [(site, form)], found.normalisations, numpy_helper.to_array).proto
    (x,) = images(q)
    for zero in (0, 77, 255):
        got = Evaluator(after).run(None, {"x": x, "xz": np.array(zero, np.uint8)})[0]
        np.testing.assert_array_equal(got, truth(replace(q, zero=zero), x))


@pytest.mark.parametrize("fused", [True, False], ids=["QLinearConv", "ConvInteger"])
@pytest.mark.parametrize("name", ["w", "wz"])
def test_weights_that_are_computed_are_refused(name: str, fused: bool) -> None:
    q = replace(GRID[0], **({} if fused else SUMS))
    model = build(q)
    values = held(q)[name]
    model.graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT8, values.shape))
    (skipped,) = find(model).skipped
    what = "weights" if name == "w" else "zero points of the weights"
    assert skipped.reason == f"its {what} are computed, or a caller may replace them"


def test_real_scales_round_as_the_original_does() -> None:
    """Scales that are no powers of two: bit for bit what ONNX Runtime gives for the dilated operator."""
    q = replace(GRID[0], name="real", shape=(2, 8, 64), scale=0.731 * 2**5)
    model, found, forms = planned(q)
    inputs = images(q)
    for name, form in forms.items():
        if isinstance(form, Fragment):
            after = rewrite(model, [(found.sites[0], form)], found.normalisations, numpy_helper.to_array).proto
            for got, right in zip(outputs(after, inputs, runs=True), outputs(model, inputs, runs=True), strict=True):
                np.testing.assert_array_equal(got, right, err_msg=name)


@pytest.mark.parametrize("fused", [True, False], ids=["QLinearConv", "ConvInteger"])
def test_dilation_up_to_a_limit_stays(tmp_path: Path, fused: bool) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(build(replace(GRID[0], dilations=(4,), pads=(4, 4), **({} if fused else SUMS))), path)
    report = dilrewrite.optimize(path, output, eliminate=True, max_dilation=2, budget=0)
    assert report.exit_code == 0
    (site,) = report.sites
    assert site.max_dilation_left in (1, 2)
    forced = dilrewrite.optimize(path, output, strategy="space_to_batch", max_dilation=2, budget=0, force=True)
    assert [each.max_dilation_left for each in forced.sites] == [2]


@pytest.mark.parametrize("fused", [True, False], ids=["QLinearConv", "ConvInteger"])
def test_decisions_are_replayed(tmp_path: Path, fused: bool) -> None:
    path, saved = tmp_path / "m.onnx", tmp_path / "decisions.json"
    onnx.save(build(replace(GRID[0], **({} if fused else SUMS))), path)
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    assert dilrewrite.optimize(path, first, strategy="space_to_axis", budget=0, save_decisions=saved).exit_code == 0
    assert dilrewrite.optimize(path, second, decisions=saved).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    onnx.save(build(replace(GRID[0], data=np.int8, zero=5, **({"out_zero": 3} if fused else SUMS))), path)
    with pytest.raises(UsageError, match="site"):
        dilrewrite.optimize(path, tmp_path / "c.onnx", decisions=saved)


def test_it_ends_a_region() -> None:
    """An operator on integers is no Conv of a region, and is named as what ends one."""
    weights = {name: np.round(np.random.default_rng(1).normal(size=(4, 4, 3)) * 3).astype(np.float32) for name in "uv"}
    proto = build(replace(GRID[0], shape=(1, 4, 14)))
    (conv,) = proto.graph.node
    conv.input[0] = "xq"
    more = {"dilations": [2], "pads": [2, 2]}
    before = [
        helper.make_node("Conv", ["x", "u"], ["p"], name="first", **more),
        helper.make_node("Conv", ["p", "v"], ["q"], name="second", **more),
        helper.make_node("QuantizeLinear", ["q", "xs", "xz"], ["xq"], name="rounded"),
    ]
    nodes = [*before, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in weights.items())
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    found = find(proto, regions=True)
    assert len(found.sites) == 3
    assert found.regions
    index = next(place for place, node in enumerate(proto.graph.node) if node.op_type == "QLinearConv")
    for region in found.regions:
        assert index not in region.nodes
        assert any("QLinearConv 'site'" in each or "QuantizeLinear 'rounded'" in each for each in region.ends)


def placed(where: str) -> ModelProto:
    """A QLinearConv with zero points of its own, in many places."""
    model = build(replace(GRID[0], **U8, opset=11 if where == "IR 3" else 17))
    graph, (node,) = model.graph, model.graph.node
    held = {tensor.name: tensor for tensor in graph.initializer}
    if where == "scalars of one element":
        for tensor in held.values():
            tensor.dims.extend([] if tensor.dims else [1])
    elif where == "IR 3":
        model.ir_version = 3
        graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in held.values())
    elif where == "branch":
        output = helper.make_tensor_value_info("y", onnx.TensorProto.UINT8, None)
        twin = helper.make_node("Identity", ["x"], ["twin"])
        branches = {
            "then_branch": helper.make_graph([node], "then", [], [output]),
            "else_branch": helper.make_graph(
                [twin], "else", [], [helper.make_tensor_value_info("twin", onnx.TensorProto.UINT8, None)]
            ),
        }
        outer = helper.make_node("If", ["c"], ["out"], **branches)
        node.CopyFrom(outer)
        graph.input.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
        graph.output[0].name = "out"
    elif where == "function":
        constants = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in held.items()]
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        own = [helper.make_opsetid("", 17)]
        model.functions.append(helper.make_function("their", "F", ["x"], ["y"], [*constants, inner], own))
        del graph.initializer[:]
        node.CopyFrom(helper.make_node("F", ["x"], ["y"], domain="their"))
        model.opset_import.append(helper.make_opsetid("their", 1))
    return model


@pytest.mark.parametrize("strategy", ["space_to_group", "zero_fill"])
@pytest.mark.parametrize("where", ["scalars of one element", "IR 3", "branch", "function", "external data"])
def test_wherever_it_stands(tmp_path: Path, where: str, strategy: str) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    more: dict[str, Any] = {"save_as_external_data": True, "size_threshold": 0} if where == "external data" else {}
    onnx.save(placed(where), path, **more)
    report = dilrewrite.optimize(path, output, strategy=strategy, budget=0)
    assert (report.exit_code, report.rewritten) == (0, 1)
    assert report.verdict is not None
    assert report.verdict.passed
    assert report.verdict.skipped is None
