"""`optimize --target`: what a device refuses is rewritten into what it runs, and nothing else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest
from onnx import ModelProto, helper

import dilrewrite
from dilrewrite.choice.fits import Fitter
from dilrewrite.choice.fitted import Fitted
from dilrewrite.cli import main
from dilrewrite.errors import UsageError
from dilrewrite.forms.fragment import CoreConv, Fragment, Node
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.regions import _inner
from dilrewrite.forms.strategies import lift, parse
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.targets import Fit, find, judge, profiles
from tests import models_for_tests as tiny
from tests.cases import Case, cases
from tests.contract import original

SAID = {"source": "list"}
NATIVE = {"where": {"is": "native", **SAID}}
OPERATORS = [
    "Conv",
    "Pad",
    "Concat",
    "Add",
    "Reshape",
    "Transpose",
    "Slice",
    "Gather",
    "SpaceToDepth",
    "DepthToSpace",
    "Relu",
]
UNLIMITED = {
    name: {"is": "unlimited", **SAID} for name in ("ranks", "kernel", "dilation", "stride", "pads", "groups", "batch")
}


def chip(
    folder: Path,
    conv: Any = None,
    without: Sequence[str] = (),
    tensors: Any = None,
    toolchain: Any = None,
    compiler: Any = None,
    **operators: Any,
) -> Path:
    """The file of a device that runs all but what is said."""
    content = {
        "title": "My chip",
        **({"toolchain": toolchain} if toolchain else {}),
        **({"compiler": compiler} if compiler else {}),
        "sources": {"list": {"url": "https://example.org", "title": "its list", "read_on": "2026-11-28"}},
        "tensors": tensors or {},
        "conv": {key: value for key, value in {**UNLIMITED, **(conv or {})}.items() if value is not None},
        "operators": {
            **{name: NATIVE for name in OPERATORS if name not in without},
            **{name: {"where": {"is": where, **SAID}} for name, where in operators.items()},
        },
    }
    path = folder / "mychip.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def rule(**facts: Any) -> Any:
    return {**facts, **SAID}


def conv(
    dilations: Sequence[int], extents: Sequence[int | str] = (32, 32), kernel: Sequence[int] = (3, 3), group: int = 1,
    channels: int = 2, pads: Sequence[int] | None = None,
) -> ModelProto:  # fmt: skip
    """A dilated Conv with SAME pads, and a Relu."""
    same = [d * (k - 1) // 2 for d, k in zip(dilations, kernel, strict=True)] * 2
    sizes = {"kernel_shape": [*kernel], "dilations": [*dilations], "pads": [*(pads or same)], "group": group}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "the_conv", **sizes), helper.make_node("Relu", ["c"], ["y"])]
    weights = {"w": tiny.values(channels, channels // group, *kernel)}
    return tiny.build(nodes, {"x": (1, channels, *extents)}, {"y": None}, weights)


def optimized(model: ModelProto, target: Path | str, **options: Any) -> dilrewrite.Report:
    return dilrewrite.optimize(model, target=str(target), **{"verify": "sites", **options})


def left(report: dilrewrite.Report) -> set[tuple[int, ...]]:
    """The dilations in the written model."""
    assert report.model is not None
    every = (node for node in report.model.graph.node if node.op_type == "Conv")
    return {tuple(a.ints) for node in every for a in node.attribute if a.name == "dilations"}


FOUR = {"dilation": rule(set=[1, 2, 4, 8])}
POWERS = {"dilation": rule(power_of_two=True)}


@pytest.mark.parametrize("rules", [FOUR, POWERS], ids=["set", "powers of two"])
@pytest.mark.parametrize(("dilation", "stays"), [(12, 4), (7, 1), (24, 8), (6, 2)])
def test_dilations_are_reduced_to_what_is_allowed(tmp_path: Path, rules: Any, dilation: int, stays: int) -> None:
    """12 is 3 x 4, and not 2 x 6. SpaceToDepth and Slice are not there, so phases are a matter of Reshape."""
    path = chip(tmp_path, rules, ("Slice",), SpaceToDepth="none", Slice="none", Concat="none")
    report = optimized(conv((dilation,) * 2, (dilation * 4,) * 2), path)
    (site,) = report.sites
    assert (report.status, site.strategy, site.max_dilation_left) == ("rewritten", "space_to_batch", stays)
    assert report.verdict is not None
    assert report.verdict.passed
    assert site.fit is not None
    assert (site.fit.before, site.fit.after) == ("out of limits", "native")
    assert f"dilation {dilation} is not" in site.fit.because
    assert "(its list)" in site.fit.because


def test_axes_with_other_dilations_keep_what_each_may(tmp_path: Path) -> None:
    path = chip(tmp_path, FOUR, Slice="none", Concat="none", SpaceToDepth="none")
    assert left(optimized(conv((12, 7), (48, 49)), path)) == {(4, 1)}


def test_a_product_of_dilation_and_channels(tmp_path: Path) -> None:
    """d * C at most 16: of dilation 12 on 4 channels 4 may stay."""
    product = {
        "dilation": None,
        "products": [{"expr": "max(d)*Cin", "max": 16, **SAID}],
    }
    path = chip(tmp_path, {**product, "dilation": rule(max=64)}, Slice="none", Concat="none", SpaceToDepth="none")
    report = optimized(conv((12, 12), (48, 48), channels=4), path)
    assert left(report) == {(4, 4)}


def test_what_is_native_comes_back_byte_for_byte(tmp_path: Path) -> None:
    """Pads by SAME and a dilation on an axis with one tap stay as they are, too."""
    odd = conv((4, 4), (32, 32), (3, 1), pads=(4, 0, 4, 0))
    for name, model in {"plain": conv((4, 4)), "odd": odd}.items():
        place, out = tmp_path / f"{name}.onnx", tmp_path / f"{name}.out.onnx"
        onnx.save(model, place)
        report = dilrewrite.optimize(place, out, target=str(chip(tmp_path)))
        assert (report.status, report.exit_code) == ("kept", 0)
        assert out.read_bytes() == place.read_bytes()
        assert "mychip runs it as it is" in report.sites[0].reason


def test_forms_that_are_native_come_before_those_that_the_host_helps(tmp_path: Path) -> None:
    rules = {"dilation": rule(max=1)}
    host = chip(tmp_path, rules, SpaceToDepth="host", DepthToSpace="host", Transpose="host", Slice="host", Pad="host")
    report = optimized(conv((4, 4)), host)
    fit = report.sites[0].fit
    assert fit is not None
    assert fit.after == "native"
    assert fit.host == 0
    hosts = dict.fromkeys(("SpaceToDepth", "DepthToSpace", "Transpose", "Slice", "Pad", "Concat", "Gather"), "host")
    narrow = chip(tmp_path, {**rules, "kernel": rule(max=3)}, **hosts)
    fit = optimized(conv((4, 4)), narrow).sites[0].fit
    assert fit is not None
    assert fit.after == "host"
    assert fit.host >= 1


def test_what_is_not_known_comes_after_the_host_with_a_doubt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"dilation": rule(max=1), "kernel": rule(max=3), "batch": rule(max=1)}
    away = dict.fromkeys(("SpaceToDepth", "DepthToSpace", "Transpose", "Slice", "Gather", "Concat"), "none")
    place = tmp_path / "m.onnx"
    onnx.save(conv((2, 2)), place)
    unknown = chip(tmp_path, rules, **{**away, "Slice": "unknown", "Concat": "unknown"})
    assert main(["optimize", str(place), "--target", str(unknown), "--no-report"]) == 0
    said = capsys.readouterr().out
    assert "unknown" in said
    (fit,) = [site.fit for site in optimized(conv((2, 2)), unknown).sites]
    assert fit is not None
    assert fit.after == "unknown"
    some = chip(tmp_path, rules, **{**away, "Slice": "host", "Concat": "host"})
    (fit,) = [site.fit for site in optimized(conv((2, 2)), some).sites]
    assert fit is not None
    assert fit.after == "host"


def test_where_nothing_fits_the_node_and_the_rule_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = dict.fromkeys(OPERATORS[:-1], "none")
    path = chip(tmp_path, {"dilation": rule(max=1), "kernel": rule(max=3)}, **away)
    place, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(conv((4, 4)), place)
    assert main(["optimize", str(place), "--target", str(path), "-o", str(out), "-v"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "DOES NOT FIT mychip: 1 of 1 dilated Conv" in said
    assert "the_conv" in said
    assert "dilation 4 is not at most 1 (its list)" in said
    assert "im2col: " in said
    assert "keep: " not in said.partition("the_conv: ")[2].partition("target ")[0]
    assert not out.exists()
    assert optimized(conv((4, 4)), path, skip="the_conv").exit_code == 0


def test_pads_below_the_kernel(tmp_path: Path) -> None:
    """Causal pads are written out; the dilation stays."""
    path = chip(tmp_path, {"pads": rule(less_than="kernel")}, tensors={"max_rank": rule(max=4)})
    report = optimized(conv((4,), (40,), (3,), pads=(8, 0)), path)
    assert report.sites[0].strategy in ("pad_out", "tap_zones", "space_to_axis")
    assert left(optimized(conv((4, 4)), chip(tmp_path, {"pads": rule(max=0)}, Slice="none"))) == {(4, 4)}


def test_extents_that_the_dilation_divides(tmp_path: Path) -> None:
    rules = {"extents": {"multiple_of": "d", "when": "dilated", **SAID}}
    path = chip(tmp_path, rules, Reshape="none", Concat="none", SpaceToDepth="none", Gather="none", Add="none")
    report = optimized(conv((4, 4), (30, 33)), path)
    assert report.sites[0].strategy == "pad_to_multiple"
    assert left(report) == {(4, 4)}


@pytest.mark.parametrize("rules", [
    {"extents": {"multiple_of": "d", "when": "dilated", **SAID}},
    {"dilation": {"holds": "dh <= dw", "note": "no taller than wide", **SAID}},
], ids=["extents", "height above width"])  # fmt: skip
@pytest.mark.parametrize("without", [(), ("Gather",), OPERATORS[:-1]], ids=["all forms", "no Gather", "no form"])
def test_a_form_that_leaves_the_conv_as_it_is_does_not_mend_it(
    tmp_path: Path, rules: Any, without: Sequence[str]
) -> None:
    """Phases that may leave a dilation of 5 leave this Conv whole: its height of 11 makes one row."""
    path = chip(tmp_path, rules, **dict.fromkeys(without, "none"))
    model = conv((5, 1), (11, 33), pads=(0, 1, 0, 1))
    report = optimized(model, path)
    if without == OPERATORS[:-1]:
        assert (report.status, report.exit_code) == ("does not fit", 1)
        return
    assert report.status == "rewritten"
    assert report.model is not None
    assert judge(report.model, find(str(path))).fit is Fit.NATIVE


def test_depthwise_has_limits_of_its_own(tmp_path: Path) -> None:
    limits = [{"max": 8, "when": "not depthwise", **SAID}, {"max": 2, "when": "depthwise", **SAID}]
    path = chip(tmp_path, {"dilation": limits}, Concat="none", SpaceToDepth="none")
    assert optimized(conv((4, 4)), path).status == "kept"
    assert max(map(max, left(optimized(conv((4, 4), group=2), path)))) <= 2


@pytest.mark.parametrize("extents", [(33,), (16, 33)], ids=["1-D", "2-D"])
def test_equal_dilations_on_all_axes(tmp_path: Path, extents: tuple[int, ...]) -> None:
    path = chip(tmp_path, {"dilation": rule(equal_axes=True), "ranks": rule(set=[2])}, Pad="none", Slice="none")
    rank = len(extents)
    kernel, dilations, pads = (3,), (4,), (4, 4)
    if rank == 2:
        kernel, dilations, pads = (1, 3), (1, 4), (0, 4, 0, 4)
    report = optimized(conv(dilations, extents, kernel, pads=pads), path)
    assert report.sites[0].strategy == "equal_dilations"
    assert left(report) == {(4, 4)}


def test_a_1d_conv_on_a_device_for_two_dimensions_is_lifted(tmp_path: Path) -> None:
    report = optimized(conv((4,), (40,), (3,)), chip(tmp_path, {"ranks": rule(set=[2])}))
    fit = report.sites[0].fit
    assert fit is not None
    assert (fit.before, fit.after) == ("out of limits", "native")
    assert report.model is not None
    assert all(len(a.ints) == 2 for n in report.model.graph.node for a in n.attribute if a.name == "dilations")


def test_open_sizes_on_a_target_that_takes_none(tmp_path: Path) -> None:
    path = chip(tmp_path, {"dilation": rule(max=2)}, tensors={"static": rule(**{"is": "required"})})
    model = conv((4, 4), ("h", 32))
    with pytest.raises(UsageError, match="takes fixed sizes only, and input 'x' has"):
        optimized(model, path)
    assert optimized(model, path, shapes=["x:1x2x40x32"]).status == "rewritten"


def test_open_sizes_on_a_target_that_takes_them(tmp_path: Path) -> None:
    report = optimized(conv((4, 4), ("h", "w")), chip(tmp_path, {"dilation": rule(max=2)}))
    assert report.status == "rewritten"
    assert max(map(max, left(report))) <= 2


@pytest.mark.parametrize("same", [False, True], ids=["other nodes", "the same Conv"])
def test_a_fault_of_a_form_is_found_by_the_judgement_of_what_was_written(tmp_path: Path, same: bool) -> None:
    """Where the choice is wrong, no model is written; nor where it leaves what was out of limits."""
    path = chip(tmp_path, {"dilation": rule(max=1)}, **dict.fromkeys(OPERATORS[:-1], "none"))
    offered = {"of": mock.Mock(return_value=Fitted(fit=Fit.NATIVE))}
    if same:
        offered["_limits"] = mock.Mock(return_value=[4])
    with mock.patch.multiple(Fitter, **offered):
        report = optimized(conv((4, 4)), path)
    assert (report.status, report.exit_code, report.model) == ("differs", 3, None)
    assert report.verdict is not None
    assert "is out of the limits of mychip" in report.verdict.failures[0]


@pytest.mark.parametrize("other", [{"strategy": "keep"}, {"eliminate": True}, {"max_dilation": 2}])
def test_options_that_say_something_else(tmp_path: Path, other: Any) -> None:
    with pytest.raises(UsageError, match="target"):
        optimized(conv((4, 4)), chip(tmp_path), **other)


def test_the_report_tells_the_target_and_each_rule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "m.onnx"
    onnx.save(conv((4, 4)), place)
    path = chip(tmp_path, {"dilation": rule(max=2)})
    assert main(["optimize", str(place), "--target", str(path), "--json", "--no-report"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["target"]["name"] == "mychip"
    assert told["options"]["target"] == str(path)
    assert told["sites"][0]["fit"]["before"] == "out of limits"
    assert told["sites"][0]["fit"]["after"] == "native"
    assert told["measurement"] is None


def test_less_work_than_the_zeros_of_its_compiler() -> None:
    """A dilation that the compiler fills with zeros costs more than phases: 12 splits so far that 2 stays."""
    report = optimized(conv((12, 12), (48, 48), channels=32), "ethos-u-vela-5.2")
    (site,) = report.sites
    assert site.fit is not None
    assert (site.fit.before, site.fit.after, site.max_dilation_left) == ("native", "native", 2)
    assert "the target's compiler makes" in site.reason


# -- every profile, every geometry -----------------------------------------------------------------------------------

STATIC = [case for case in cases() if not case.unknown and not case.unknown_batch and case.opset >= 13]


@pytest.mark.parametrize(
    ("target", "case"),
    [
        pytest.param(target, case, id=f"{target}-{case.name}")
        for place, target in enumerate(sorted(profiles()))
        for case in STATIC[place % 3 :: 3]  # a third of the cases for each target, all of them in any three
    ],
)
@pytest.mark.grid(53)
def test_no_form_that_is_offered_writes_what_the_target_has_not(target: str, case: Case) -> None:
    """Each is written into the whole model, and judged by what reads the profile alone."""
    model, found = original(case)
    profile = profiles()[target]
    (site,) = found.sites
    fitter = Fitter(profile, model, {}, onnx.numpy_helper.to_array)
    own = {name for index in site.nodes for name in model.graph.node[index].output}
    before = {node.output: node for node in judge(model, profile).nodes if node.output not in own}
    offered, refused = fitter.candidates(site)
    assert offered or refused
    for one in offered:
        assert one.fitted is not None
        if one.strategy == "keep":
            continue
        after = judge(rewrite(model, [(site, one.fragment)], (), onnx.numpy_helper.to_array).proto, profile).nodes
        new = [node for node in after if before.get(node.output) != node]
        assert all(node.fit is not Fit.OUT for node in new), (one.spelling, [n for n in new if n.fit is Fit.OUT])
        assert max((node.fit.rank for node in new), default=0) == one.fitted.fit.rank, one.spelling
        assert any(isinstance(step, CoreConv) for step in one.fragment.steps) or site.geometry.explicit().dead


def test_1d_convs_without_dilation_are_lifted_too(tmp_path: Path) -> None:
    """On a device for two dimensions the whole chain goes, in one region; nothing is out of limits afterwards."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "w"], ["y"], "second", kernel_shape=[3], dilations=[2], pads=[2, 2]),
    ]
    model = tiny.build(nodes, {"x": (1, 2, 40)}, {"y": None}, {"w": tiny.values(2, 2, 3)})
    report = optimized(model, chip(tmp_path, {"ranks": rule(set=[2])}, Unsqueeze="native", Squeeze="native"))
    assert (report.status, report.sites[0].strategy) == ("rewritten", "lift_region")
    assert report.target is not None
    assert "out of limits" not in report.target.fits
    fit = report.sites[0].fit
    assert fit is not None
    assert (fit.before, fit.after) == ("out of limits", "native")


def test_a_rewritten_model_has_the_sizes_that_were_given(tmp_path: Path) -> None:
    """Of Convs one behind the other, too: no node has to compute a size. What fits stays open, byte for byte."""
    pads = {"kernel_shape": [3, 3], "dilations": [3, 3], "pads": [3] * 4}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", **pads),
        helper.make_node("Conv", ["a", "w"], ["y"], "second", **pads),
    ]
    model = tiny.build(nodes, {"x": ("n", 2, "h", "w")}, {"y": None}, {"w": tiny.values(2, 2, 3, 3)})
    path = chip(tmp_path, {"dilation": rule(max=2)}, tensors={"dtypes": rule(set=["float32"])})
    report = optimized(model, path, shapes=["x:1x2x20x22"])
    assert report.status == "rewritten"
    assert report.model is not None
    assert [dim.dim_value for dim in report.model.graph.input[0].type.tensor_type.shape.dim] == [1, 2, 20, 22]
    assert "Shape" not in {node.op_type for node in report.model.graph.node}
    assert "the written model takes the sizes that were given, and no others: x:1x2x20x22" in report.notes
    place, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model, place)
    dilrewrite.optimize(place, out, target=str(chip(tmp_path)), shapes=["x:1x2x20x22"])
    assert out.read_bytes() == place.read_bytes()


def lowers(cost: str, *patterns: str) -> Any:
    """What a compiler makes of dilation, and what it folds back."""
    return {
        "lowers": [{"when": "dilated", "to": "zero_fill", "cost": cost, **SAID}],
        "refolds": [{"pattern": one, **SAID} for one in patterns],
    }


def test_a_form_that_the_compiler_folds_back_saves_nothing(tmp_path: Path) -> None:
    """Phases in the batch would be the same dilated Conv again."""
    away = dict.fromkeys(("Concat", "Add", "Slice", "Gather"), "none")
    model = conv((4, 4), (16, 16), channels=32)
    one = {"groups": rule(max=1)}
    taken = optimized(model, chip(tmp_path, one, compiler=lowers("9"), **away)).sites[0]
    assert taken.strategy == "space_to_batch"
    other = optimized(model, chip(tmp_path, one, compiler=lowers("9", "space_to_batch"), **away)).sites[0]
    assert other.strategy != "space_to_batch"


@pytest.mark.parametrize(
    ("target", "dilation", "fit", "lowered", "cost"),
    [
        ("intel-npu", 5, "native", "zero_fill", 121 / 9),
        ("intel-npu", 6, "native", "taps", 1.0),  # a kernel of 13
        ("amd-ryzen-ai", 4, "unknown", "zero_fill", 9.0),
        ("amd-ryzen-ai", 5, "unknown", "", None),
    ],
)
def test_what_compilers_make_of_dilation_is_told_and_changes_nothing_by_itself(
    target: str, dilation: int, fit: str, lowered: str, cost: float | None
) -> None:
    """No source says which operators of a form run there, so the Conv stays, with its cost."""
    model = conv((dilation,) * 2, (32, 32), channels=32)
    report = optimized(model, target)
    assert (report.status, report.exit_code) == ("kept", 0)
    assert report.target is not None
    (node,) = (one for one in report.target.nodes if one.op == "Conv")
    assert (node.fit, node.lowered) == (fit, lowered)
    assert node.cost == pytest.approx(cost) if cost is not None else node.cost is None
    if fit == "native" and cost != 1:
        assert f"runs it as it is, with {cost:.3g}x the work" in report.sites[0].reason
        assert "not timed" in report.sites[0].reason


def test_a_dilated_1d_conv_on_coral_is_not_known_until_it_has_two_dimensions() -> None:
    (site,) = optimized(conv((4,), (40,), (3,)), "coral-edgetpu").sites
    assert site.fit is not None
    assert (site.fit.before, site.fit.after) == ("unknown", "native")
    assert "is not known to run until it is written in two dimensions" in site.fit.because


@pytest.mark.parametrize("most", [7, 6], ids=["limit", "limit + 1"])
def test_a_node_without_dilation_that_is_out_of_limits_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], most: int
) -> None:
    """With its rule and source; the exit code is 0, for that node is no worse than it was."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "wide", kernel_shape=[7, 7], pads=[3] * 4),
        helper.make_node("Conv", ["a", "v"], ["y"], "dilated", kernel_shape=[3, 3], dilations=[4, 4], pads=[4] * 4),
    ]
    weights = {"w": tiny.values(2, 2, 7, 7), "v": tiny.values(2, 2, 3, 3)}
    place = tmp_path / "m.onnx"
    onnx.save(tiny.build(nodes, {"x": (1, 2, 16, 16)}, {"y": None}, weights), place)
    path = chip(tmp_path, {"kernel": rule(max=most), "dilation": rule(max=2)})
    assert main(["optimize", str(place), "--target", str(path), "-o", str(tmp_path / "out.onnx"), "--no-report"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert ("1 Conv (wide): kernel 7 is not at most 6" in said) == (most == 6)
    assert (tmp_path / "out.onnx").exists()


TWO = {"ranks": rule(set=[2])}


def strided() -> ModelProto:
    """A 1-D Conv whose phases overlap: no form of one axis makes it a 2-D one without dilation."""
    sizes = {"kernel_shape": [3], "dilations": [8], "pads": [8, 8], "strides": [3]}
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], "the_conv", **sizes)]
    weights = {"w": tiny.values(4, 2, 3), "b": tiny.values(4)}
    return tiny.build(nodes, {"x": (1, 2, 61)}, {"y": None}, weights)


@pytest.mark.parametrize("most", [8, 7], ids=["limit", "limit + 1"])
@pytest.mark.parametrize("away", [(), ("Slice",), ("Slice", "Gather")], ids=["slices", "gathers", "neither"])
def test_a_1d_conv_is_lifted_and_gets_another_form_there(tmp_path: Path, most: int, away: Sequence[str]) -> None:
    """On a device for two dimensions that takes the dilation of the 2-D Conv, or does not: one form in another."""
    path = chip(tmp_path, {**TWO, "dilation": rule(max=most)}, away, **dict.fromkeys(away, "none"))
    report = optimized(strided(), path, verify="full")
    (site,) = report.sites
    if most < 8 and len(away) > 1:
        assert (report.status, report.exit_code) == ("does not fit", 1)
        return
    assert (report.status, report.exit_code) == ("rewritten", 0), site.reason
    assert site.max_dilation_left <= most
    assert site.strategy == "lift" if most == 8 else parse(site.strategy)[0] == "lift"
    assert site.proof is not None
    assert site.proof.passed
    assert most == 8 or "on mychip every node is native" in report.summary
    assert report.model is not None
    assert not judge(report.model, find(str(path))).at(Fit.OUT), "by what knows no form"


@pytest.mark.parametrize("wrong", ["dilations", "pads_begin"])
def test_the_proof_finds_a_lifted_form_that_is_wrong(tmp_path: Path, wrong: str) -> None:
    right = lift.lifted

    def mutant(geometry: ConvGeometry) -> ConvGeometry:
        good = right(geometry)
        values = {"dilations": (1, 7), "pads_begin": (0, 7), "pads_end": (0, 9)}
        return dataclasses.replace(good, **{n: v for n, v in values.items() if n[:4] == wrong[:4]})

    with mock.patch.object(lift, "lifted", mutant):
        report = optimized(strided(), chip(tmp_path, {**TWO, "dilation": rule(max=4)}))
    assert (report.status, report.exit_code, report.model) == ("differs", 3, None)


def chain_of_two(dilation: int = 8) -> ModelProto:
    """1-D Convs one behind the other, of which the second is dilated."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "first", kernel_shape=[3], pads=[1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "relu"),
        helper.make_node(
            "Conv", ["r", "w", "b"], ["c"], "second", kernel_shape=[3], dilations=[dilation], pads=[dilation] * 2
        ),
        helper.make_node("Add", ["c", "r"], ["y"], "residual"),
    ]
    return tiny.build(nodes, {"x": (1, 2, 41)}, {"y": None}, {"w": tiny.values(2, 2, 3), "b": tiny.values(2)})


@pytest.mark.parametrize("away", [(), ("Slice", "Concat")], ids=["all operators", "by Reshape"])
@pytest.mark.parametrize("most", [8, 7], ids=["limit", "limit + 1"])
def test_a_chain_is_lifted_and_a_conv_in_it_gets_another_form(tmp_path: Path, most: int, away: Sequence[str]) -> None:
    """What is left of one dimension after it is nothing, by what knows no form."""
    path = chip(
        tmp_path, {**TWO, "dilation": rule(max=most)}, away, Unsqueeze="native", Squeeze="native",
        **dict.fromkeys(away, "none"),
    )  # fmt: skip
    report = optimized(chain_of_two(), path, verify="full")
    assert (report.status, report.exit_code) == ("rewritten", 0), report.summary
    (region,) = report.regions
    assert region.action == "rewritten", region.reason
    assert region.max_dilation_left <= most
    assert region.proof is not None
    assert region.proof.passed
    assert report.model is not None
    assert not judge(report.model, find(str(path))).at(Fit.OUT)


@pytest.mark.parametrize("wrong", ["bias", "order"])
def test_the_proof_finds_a_wrong_form_in_a_lifted_chain(tmp_path: Path, wrong: str) -> None:
    right = _inner._renamed

    def mutant(inner: Fragment, conv: CoreConv) -> Iterator[Any]:
        for step in right(inner, conv):
            if isinstance(step, CoreConv) and wrong == "bias":
                yield dataclasses.replace(step, bias_times=0)
            elif isinstance(step, Node) and step.op == "Concat" and wrong == "order":
                yield dataclasses.replace(step, inputs=step.inputs[::-1])
            else:
                yield step

    away = dict.fromkeys(("Transpose", "SpaceToDepth", "Gather"), "none")
    rules = {**TWO, "dilation": rule(max=7), "extents": rule(holds="H == 1", note="a row")}
    path = chip(tmp_path, rules, [*away], Unsqueeze="native", Squeeze="native", **away)
    assert optimized(chain_of_two(), path).status == "rewritten"
    with mock.patch.object(_inner, "_renamed", mutant):
        report = optimized(chain_of_two(), path)
    assert (report.status, report.exit_code) == ("differs", 3)


def sandwich() -> ModelProto:
    """Phases in the batch by SpaceToDepth and DepthToSpace, as converters write them: together a Conv of dilation 4."""
    made = dilrewrite.optimize(conv((4, 4), (16, 16)), strategy="space_to_batch", verify="sites").model
    assert made is not None
    assert "SpaceToDepth" in {node.op_type for node in made.graph.node}
    return made


def test_a_sandwich_that_the_device_runs_stays_byte_for_byte(tmp_path: Path) -> None:
    place, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(sandwich(), place)
    report = dilrewrite.optimize(place, out, target=str(chip(tmp_path)))
    assert (report.status, report.exit_code, len(report.sites)) == ("kept", 0, 1)
    assert report.sites[0].sandwich
    assert out.read_bytes() == place.read_bytes()


@pytest.mark.parametrize("most", [4, 3], ids=["limit", "limit + 1"])
@pytest.mark.parametrize("where", ["host", "none"])
def test_a_sandwich_that_the_device_does_not_run_is_folded_or_gets_another_form(
    tmp_path: Path, where: str, most: int
) -> None:
    path = chip(tmp_path, {"dilation": rule(max=most)}, SpaceToDepth=where, DepthToSpace=where)
    report = optimized(sandwich(), path, verify="full")
    (site,) = report.sites
    assert (report.status, report.exit_code) == ("rewritten", 0), report.summary
    assert (site.strategy == "fold") == (most == 4), site.strategy
    assert site.fit is not None
    assert site.fit.after == "native"
    assert site.max_dilation_left <= most
    assert report.model is not None
    after = judge(report.model, find(str(path)))
    assert not after.at(Fit.OUT)
    assert not after.at(Fit.HOST)


def test_a_sandwich_that_fits_in_no_form_is_named(tmp_path: Path) -> None:
    away = dict.fromkeys(("SpaceToDepth", "DepthToSpace", "Slice", "Reshape", "Gather", "Concat", "Add"), "none")
    path = chip(tmp_path, {"dilation": rule(max=1), "kernel": rule(max=3)}, [*away], **away)
    report = optimized(sandwich(), path)
    assert (report.status, report.exit_code, report.model) == ("does not fit", 1, None)
