"""Space-to-batch sandwiches: which are found, what they mean, that folding is proved, and what is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from dilrewrite.choice import choose
from dilrewrite.forms.fragment import CoreConv, Fragment
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.sandwich import Sandwich as Meaning
from dilrewrite.forms.strategies import FOLD, Refusal, parse, plan, strategies
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Prover
from dilrewrite.sites import Site, Unfolded, sandwiches
from dilrewrite.sites.find import find
from dilrewrite.sites.sandwiches import every_sandwich
from dilrewrite.sites.scopes import scopes
from dilrewrite.splice.rewrite import rewrite
from tests import contract, quantized
from tests.cases import Case, cases
from tests.forms_for_tests import needs
from tests.sandwiches import Sandwich, build, disguised, image, run

PHASES = ("space_to_batch", "slice_to_batch", "space_to_axis", "space_to_group")

ONE: dict[str, Any] = {"extents": (11,), "kernel": (3,), "block": (2,), "begin": (2,), "end": (2,)}
THREE: dict[str, Any] = {
    "extents": (5, 6, 7), "kernel": (2, 3, 1), "block": (2, 3, 1), "begin": (1, 3, 0), "end": (1, 3, 0)
}  # fmt: skip
OPEN: dict[str, Any] = {"how": "computed", "known": False}

EXPORTED = {
    "reshape": Sandwich(),
    "depth": Sandwich(how="depth"),
    "computed": Sandwich(how="computed"),
    "channels last": Sandwich(last=True),
    "depth, channels last": Sandwich(how="depth", last=True),
    "computed, channels last": Sandwich(how="computed", last=True),
    "unknown": Sandwich(**OPEN),
    "unknown, channels last": Sandwich(**OPEN, last=True),
    "counted": Sandwich(**OPEN, counted=True),
    "3-D, counted, channels last": Sandwich(**THREE, **OPEN, counted=True, last=True),
    "1-D": Sandwich(**ONE),
    "1-D, unknown, channels last": Sandwich(**ONE, **OPEN, last=True),
    "1-D, causal": Sandwich(**{**ONE, "begin": (4,), "end": (0,)}),
    "3-D": Sandwich(**THREE),
    "3-D, unknown": Sandwich(**THREE, **OPEN),
    "unequal blocks": Sandwich(block=(2, 3), begin=(2, 3), end=(2, 3)),
    "unequal blocks, unknown": Sandwich(block=(2, 5), begin=(2, 3), end=(1, 3), **OPEN),
    "one axis only": Sandwich(block=(1, 3), begin=(1, 3), end=(1, 3)),
    "without pads": Sandwich(begin=(0, 0), end=(0, 0)),
    "without pads, unknown": Sandwich(begin=(0, 0), end=(0, 0), **OPEN),
    "split": Sandwich(crop="split"),
    "split, channels last": Sandwich(crop="split", last=True),
    "depthwise": Sandwich(group=4, outputs=4),
    "grouped": Sandwich(group=2),
    "one image": Sandwich(batch=1),
    "one channel": Sandwich(channels=1, batch=1),
    "no bias": Sandwich(bias=False),
    "normalised": Sandwich(chain=("BatchNormalization", "Relu")),
    "scaled, channels last": Sandwich(chain=("Mul", "AddFirst", "LeakyRelu"), last=True),
    "quantised": Sandwich(chain=("Relu", "Quantize")),
    "quantised, unknown": Sandwich(chain=("Quantize",), **OPEN),
    "opset 11": Sandwich(opset=11),
}


def the_one(model: ModelProto) -> Site:
    found = find(model, sandwiches=True)
    assert [one.reason for one in found.unfolded] == []
    (site,) = found.sandwiches
    return site


def folded(model: ModelProto, site: Site) -> tuple[Fragment, ModelProto]:
    name, strategy = parse(FOLD)
    fragment = plan(name, strategy, site.meaning, site.opset)
    assert isinstance(fragment, Fragment)
    return fragment, rewrite(model, [(site, fragment)], (), numpy_helper.to_array).proto


def numbers(geometry: ConvGeometry) -> tuple[object, ...]:
    """What a folded Conv has in common with the original; on an axis with one tap a dilation means nothing."""
    dilations = tuple(d if k > 1 else 1 for d, k in zip(geometry.dilations, geometry.kernel, strict=True))
    pads = geometry.pads_begin, geometry.pads_end
    return geometry.kernel, dilations, pads, geometry.strides, geometry.group, geometry.bias, geometry.extents


def the_conv(model: ModelProto) -> dict[str, Any]:
    (conv,) = [node for node in model.graph.node if node.op_type == "Conv"]
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in conv.attribute}


@pytest.mark.parametrize("name", EXPORTED)
def test_what_exporters_write_is_found_and_proved(name: str) -> None:
    s = EXPORTED[name]
    model = build(s)
    site = the_one(model)
    geometry = site.geometry
    blocks = tuple(b if k > 1 else 1 for b, k in zip(s.block, s.kernel, strict=True))
    assert (geometry.kernel, geometry.dilations) == (s.kernel, blocks)
    assert (geometry.pads_begin, geometry.pads_end, geometry.group) == (s.begin, s.end, s.group)
    assert geometry.extents == (s.extents if s.known else (None,) * s.rank)
    fragment, after = folded(model, site)
    proof = Prover().prove(Source(model), site, fragment)
    assert proof.passed, proof.failure
    assert len(proof.shapes) >= (1 if s.known else 3)
    operators = {node.op_type for node in after.graph.node}
    assert not operators & {"Pad", "Reshape", "Slice", "Split", "SpaceToDepth", "DepthToSpace", "Shape", "Concat"}
    assert ("Transpose" in operators) == s.last
    assert the_conv(after)["dilations"] == list(geometry.dilations)
    for more in (0,) if s.known else (0, 3, 8):
        x = image(s, [extent + more for extent in s.extents], s.batch + (more > 0))
        np.testing.assert_array_equal(run(after, x), run(model, x), strict=True)


@pytest.mark.parametrize("name", ["reshape", "depth, channels last", "unknown", "1-D, unknown, channels last"])
@pytest.mark.parametrize("seed", range(3))
def test_names_and_order_do_not_matter(name: str, seed: int) -> None:
    s = EXPORTED[name]
    model = build(s)
    other = disguised(model, seed)
    assert the_one(other).meaning is not None
    assert numbers(the_one(other).geometry) == numbers(the_one(model).geometry)
    site = the_one(other)
    fragment, after = folded(other, site)
    assert Prover().prove(Source(other), site, fragment).passed
    for more in (0,) if s.known else (0, 3, 8):
        x = image(s, [extent + more for extent in s.extents], s.batch + (more > 0))
        np.testing.assert_array_equal(run(after, x), run(model, x))


def comparable(case: Case, geometry: ConvGeometry) -> bool:
    """Whether nothing of the original's attributes is lost in a form: no tap, no crop, no pad that no output reads.

    Where a phase has a single sample, nothing tells the axis from a batch.
    """
    explicit = geometry.explicit()
    single = [e is not None and e <= d for e, d, k in zip(explicit.extents, explicit.dilations, explicit.kernel,
                                                          strict=True) if k > 1]  # fmt: skip
    if any(single) or explicit.dead:
        return False
    if explicit.auto_pad != "NOTSET" or min(*filter(None, (*explicit.pads_begin, *explicit.pads_end)), 0, 0) < 0:
        return False
    slack = [  # pads behind that a stride leaves out
        stride > 1 for axis, stride in enumerate(explicit.strides) if explicit.kernel[axis] > 1
    ]
    splits = [explicit.phases(axis).block > 1 for axis in explicit.axes]
    return not any(map(any, explicit.pruned().cut)) and not any(slack) and any(splits) and case.opset >= 10


GRID = [case for case in cases() if case.weights == "initializer" and min(case.extents) > 1]


@needs(*PHASES)
@pytest.mark.parametrize("form", PHASES)
def test_the_tools_own_phases_give_the_original_back(form: str) -> None:
    """Kernel, dilations, pads, strides, groups, bias and weights are those of the model that was rewritten."""
    count = 0
    for case in GRID[:: 2 if form == "space_to_axis" else 4]:
        before, found = contract.original(case)
        (original,) = found.sites or (None,)
        if original is None or not comparable(case, original.geometry):
            continue
        if form == "space_to_axis" and case.rank > 1 and 1 in case.kernel:
            continue  # it lays rows behind each other, where the kernel does not reach
        after = contract.emit(form, strategies()[form], case)
        if isinstance(after, Refusal):
            continue
        site = the_one(after)
        assert numbers(site.geometry) == numbers(original.geometry.explicit()), case
        _, back = folded(after, site)
        conv = next(node for node in before.graph.node if node.op_type == "Conv")
        own = next(node for node in back.graph.node if node.op_type == "Conv")
        assert len(back.graph.node) == len(before.graph.node)
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in back.graph.initializer}
        given = {tensor.name: numpy_helper.to_array(tensor) for tensor in before.graph.initializer}
        for mine, yours in zip(own.input[1:], conv.input[1:], strict=True):
            np.testing.assert_array_equal(weights[mine], given[yours], strict=True)
        count += 1
    assert count >= 15


@needs(*PHASES)
@pytest.mark.parametrize("form", PHASES)
def test_folding_the_tools_own_phases_is_proved(form: str) -> None:
    prover, count = Prover(), 0
    for case in GRID[5::40]:
        after = contract.emit(form, strategies()[form], case)
        sites = () if isinstance(after, Refusal) else find(after, sandwiches=True).sandwiches
        for site in sites:
            assert isinstance(after, ModelProto)
            proof = prover.prove(Source(after), site, folded(after, site)[0])
            assert proof.passed, (case, proof.failure)
            count += 1
    assert count >= 2


@needs("space_to_batch")
def test_a_quantised_site_is_folded_on_its_integers() -> None:
    count = 0
    for q in quantized.quantized_cases()[::3]:
        before, found = quantized.original(q)
        form = plan("space_to_batch", strategies()["space_to_batch"], found.sites[0].meaning, found.sites[0].opset,
                    storage=found.sites[0].storage)  # fmt: skip
        if isinstance(form, Refusal):
            continue
        after = rewrite(before, [(found.sites[0], form)], found.normalisations, numpy_helper.to_array).proto
        for site in find(after, sandwiches=True).sandwiches:
            assert isinstance(site.meaning, Meaning)
            assert site.meaning.quantizes
            fragment, back = folded(after, site)
            assert Prover().prove(Source(after), site, fragment).passed
            conv = next(node for node in back.graph.node if node.op_type == "Conv")
            makers = {name: node.op_type for node in back.graph.node for name in node.output}
            assert makers[conv.input[0]] == "DequantizeLinear", "the pair stays at the Conv"
            count += 1
    assert count >= 5


def reasons(s: Sandwich) -> list[str]:
    found = find(build(s), sandwiches=True)
    assert found.sandwiches == ()
    return [one.reason for one in found.unfolded]


def test_crd_for_dcr_is_none() -> None:
    (reason,) = reasons(Sandwich(how="depth", wrong="CRD"))
    assert "joined of them in another order" in reason


def test_blocks_exchanged_are_none() -> None:
    (reason,) = reasons(Sandwich(wrong="exchanged", extents=(10, 10)))
    assert reason == "the phases are joined in another order than they were split in"


def test_a_tensor_inside_that_is_read_elsewhere_stays() -> None:
    (reason,) = reasons(Sandwich(wrong="read inside"))
    assert reason == "the tensor 'reshape_3' inside of it is read by 'reducemax_4' too"


def test_a_crop_that_does_not_follow_the_extent_is_none() -> None:
    """It fits for some extents only."""
    (reason,) = reasons(Sandwich(**OPEN, wrong="crop of a constant"))
    assert reason == "what is padded and cropped behind spatial axis 0 depends on its extent"


def test_a_constant_per_place_between_the_phases_is_none() -> None:
    s = Sandwich(extents=(10, 10), chain=("PerRow",))
    (reason,) = reasons(s)
    assert reason.endswith("has not one value per channel")


@pytest.mark.parametrize(("wrong", "begin", "end"), [("crop in front", 1, 2), ("crop behind", 2, 1)])
def test_a_crop_one_off_is_a_conv_with_other_pads(wrong: str, begin: int, end: int) -> None:
    """It is not the Conv that the exporter meant, but a Conv: what is written computes what the model computes."""
    s = Sandwich(wrong=wrong)
    model = build(s)
    site = the_one(model)
    assert (site.geometry.pads_begin, site.geometry.pads_end) == ((begin,) * 2, (end,) * 2)
    fragment, after = folded(model, site)
    assert Prover().prove(Source(model), site, fragment).passed
    np.testing.assert_array_equal(run(after, image(s)), run(model, image(s)), strict=True)


def test_pads_that_do_not_cover_are_a_conv_with_fewer_pads() -> None:
    s = Sandwich(begin=(1, 2), end=(2, 0))
    model = build(s)
    site = the_one(model)
    assert (site.geometry.pads_begin, site.geometry.pads_end) == ((1, 2), (2, 0))
    np.testing.assert_array_equal(run(folded(model, site)[1], image(s)), run(model, image(s)), strict=True)


@needs("space_to_group")
def test_weights_that_differ_between_phases_are_none() -> None:
    case = next(case for case in GRID if case.strides == (1,) and case.begin == case.end and case.opset >= 10)
    model = contract.emit("space_to_group", strategies()["space_to_group"], case)
    assert isinstance(model, ModelProto)
    assert the_one(model).meaning is not None
    conv = next(node for node in model.graph.node if node.op_type == "Conv")
    weights = next(tensor for tensor in model.graph.initializer if tensor.name == conv.input[1])
    values = numpy_helper.to_array(weights).copy()
    values.ravel()[-1] += 1
    weights.CopyFrom(numpy_helper.from_array(values, weights.name))
    found = find(model, sandwiches=True)
    assert found.sandwiches == ()
    assert "is not the same for all phases" in found.unfolded[0].reason


def mutants(fragment: Fragment) -> Sequence[Fragment]:
    """Folds that compute something else."""
    (place,) = [place for place, step in enumerate(fragment.steps) if isinstance(step, CoreConv)]
    conv = fragment.steps[place]
    assert isinstance(conv, CoreConv)
    rank = len(conv.kernel)
    changed = [
        replace(conv, dilations=tuple(d + 1 for d in conv.dilations), pads=tuple(pad + 1 for pad in conv.pads)),
        replace(conv, pads=(*(pad + 1 for pad in conv.pads[:rank]), *(pad - 1 for pad in conv.pads[rank:]))),
        replace(conv, dilations=conv.dilations[::-1], pads=tuple(conv.pads[place] for place in (1, 0, 3, 2))),
        replace(conv, bias_times=0),
    ]
    return [replace(fragment, steps=(*fragment.steps[:place], one, *fragment.steps[place + 1 :])) for one in changed]


def test_mutants_are_noticed() -> None:
    model = build(Sandwich(block=(2, 3), begin=(2, 3), end=(2, 3)))
    site = the_one(model)
    for wrong in mutants(folded(model, site)[0]):
        proof = Prover().prove(Source(model), site, wrong)
        assert not proof.passed
        assert proof.wrong, proof.failure


def test_every_form_of_the_conv_is_a_form_of_the_sandwich() -> None:
    for s in (Sandwich(last=True), Sandwich(**ONE, how="computed", last=True, chain=("Mul", "Relu"))):
        model = build(s)
        site = the_one(model)
        offered, _ = choose.sandwich_planner().candidates(site)
        names = {one.strategy for one in offered}
        assert FOLD in names
        assert "keep" not in names
        assert len(names) >= 6
        for one in offered:
            assert Prover().prove(Source(model), site, one.fragment).passed, one.strategy


def test_a_pad_behind_a_sandwich_is_none_of_its_crops() -> None:
    """The zeros that it writes are not what the Conv computes there."""
    s = Sandwich()
    model = build(s)
    model.graph.node[-1].CopyFrom(helper.make_node("Pad", [model.graph.node[-1].input[0], "more"], ["y"]))
    more = np.array([0, 0, 1, 1, 0, 0, 1, 1])
    model.graph.initializer.append(numpy_helper.from_array(more, "more"))
    site = the_one(model)
    assert (site.geometry.pads_begin, site.geometry.pads_end) == (s.begin, s.end)
    after = folded(model, site)[1]
    assert "Pad" in {node.op_type for node in after.graph.node}
    np.testing.assert_array_equal(run(after, image(s)), run(model, image(s)), strict=True)


def test_a_conv_without_phases_is_left_in_peace() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["r"]),
        helper.make_node("Conv", ["r", "w"], ["y"], pads=[1, 1]),
    ]
    weights = {"shape": np.array([2, 4, 9]), "w": np.ones((3, 4, 3), np.float32)}
    from tests import models_for_tests as tiny

    found = find(tiny.build(nodes, {"x": [2, 9, 4]}, {"y": None}, weights), sandwiches=True)
    assert (found.sandwiches, found.unfolded) == ((), ())


def test_phases_of_a_single_sample_are_left_in_peace() -> None:
    """Nothing tells an axis that is all phases from a batch, and one tap alone touches data there."""
    from tests import models_for_tests as tiny

    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c", dilations=[3, 1], pads=[3, 0, 3, 0])
    model = tiny.build([node], {"x": [2, 2, 3, 9], "w": [2, 2, 3, 1]}, {"y": None}, {})
    (site,) = find(model).sites
    form = plan("space_to_batch", strategies()["space_to_batch"], site.meaning, site.opset, fixed_weights=False)
    assert isinstance(form, Fragment)
    after = rewrite(model, [(site, form)], (), numpy_helper.to_array).proto
    assert {"Reshape", "Transpose", "Conv"} <= {each.op_type for each in after.graph.node}
    found = find(after, sandwiches=True)
    assert (found.sandwiches, found.unfolded) == ((), ())


def test_sandwiches_behind_each_other_are_found_although_shapes_are_lost_between_them() -> None:
    """Shape inference gives up inside of a sandwich with computed shapes, and the next one stands behind it."""
    first, second = (build(Sandwich(**ONE, how="computed", outputs=4)) for _ in range(2))
    names = {name for node in second.graph.node for name in (*node.input, *node.output)} | {"w", "b"}
    new = {name: f"second_{name}" for name in names if name} | {"x": "y"}
    for node in second.graph.node:
        node.input[:] = [new[name] for name in node.input]
        node.output[:] = [new[name] for name in node.output]
    for tensor in second.graph.initializer:
        tensor.name = new[tensor.name]
    both = onnx.ModelProto()
    both.CopyFrom(first)
    both.graph.node.extend(second.graph.node)
    both.graph.initializer.extend(second.graph.initializer)
    del both.graph.output[:]
    both.graph.output.extend([onnx.ValueInfoProto(name="second_y")])
    both.graph.output[0].type.tensor_type.elem_type = 1
    found = find(both, sandwiches=True)
    assert [site.geometry.extents for site in found.sandwiches] == [(11,), (11,)]
    assert all(isinstance(site.meaning, Meaning) for site in found.sandwiches)


def test_no_node_is_in_two_sandwiches(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one has it, and the other stays, with the reason."""
    scope = next(scopes(model := build(Sandwich()), infer_shapes(model)))
    one = the_one(model)
    monkeypatch.setattr(sandwiches, "_every", lambda _: iter([one, replace(one, name="other")]))
    first, second = every_sandwich(scope)
    assert first is one
    assert isinstance(second, Unfolded)
    assert second.name == "other"
    assert second.reason == f"'pad_0' is a part of the sandwich around {one.name!r}"
