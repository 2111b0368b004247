"""A dilated ConvTranspose: what it is read as, and every form of it against sums written out, in whole numbers."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

import dilrewrite
from dilrewrite.choice import choose
from dilrewrite.forms.fragment import Fragment, Turn
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Prover
from dilrewrite.proof.sizes import smaller
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.sites.operators import conv_transpose
from dilrewrite.splice.rewrite import rewrite
from tests import models_for_tests as tiny
from tests import naive
from tests.models_for_tests import cli, save
from tests.transposed import drawn, model

pytestmark = pytest.mark.usefixtures("in_process")


def run(proto: ModelProto, **feeds: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def attributes_of(proto: ModelProto) -> dict[str, Any]:
    found = {a.name: helper.get_attribute_value(a) for a in proto.graph.node[0].attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in found.items()}


def only(proto: ModelProto) -> Site:
    (site,) = find(proto).sites
    return site


def forms(site: Site) -> dict[str, Fragment]:
    planned = {
        name: plan(name, each, site.meaning, site.opset, storage=site.storage, fixed_weights=site.fixed_weights)
        for name, each in strategies().items()
    }
    return {name: each for name, each in planned.items() if isinstance(each, Fragment)}


def reason(proto: ModelProto) -> str:
    (skipped,) = find(proto).skipped
    return skipped.reason


# -- what it is read as ----------------------------------------------------------------------------------------------


def test_at_stride_1_it_is_a_conv_with_other_pads() -> None:
    site = only(model((9, 8), (3, 4), dilations=[5, 2], pads=[1, 2, 3, 4], output_padding=[0, 1]))
    geometry = site.geometry
    assert (geometry.pads_begin, geometry.pads_end) == ((9, 4), (7, 3))
    assert geometry.out_extents == (9 - 1 + 10 + 1 - 1 - 3, 8 - 1 + 6 + 1 - 2 - 4 + 1)
    assert geometry.own_pads == ((1, 2), (3, 4))
    assert (geometry.strides, geometry.spread, geometry.max_dilation) == ((1, 1), (1, 1), 5)
    assert site.part.turn == Turn(1)


def test_weights_are_turned_in_each_group_and_back() -> None:
    """[C, O // group, *k] -> [O, C // group, *k]: group g has the inputs of group g."""
    rng, turn = np.random.default_rng(0), Turn(2)
    w = rng.integers(-9, 10, (4, 3, 5, 2))
    turned = turn.apply(w, np.zeros(()))
    assert turned.shape == turn.shape(w.shape) == (6, 2, 5, 2)
    for g, c, o, i, j in itertools.product(range(2), range(2), range(3), range(5), range(2)):
        assert turned[g * 3 + o, c, i, j] == w[g * 2 + c, o, 4 - i, 1 - j]
    assert (turn.apply(turned, np.zeros(())) == w).all()


REFUSED = {
    "negative pads": (model(pads=[-1, 0]), "its pads [-1, 0] are negative"),
    "an output_shape that is too large": (model(output_shape=[14]), "output_shape [14] asks for 1 outputs more than"),
    "SAME with a stride above its kernel": (
        model(kernel=(2,), strides=[4], auto_pad="SAME_UPPER"),
        "SAME_UPPER asks for 1 outputs more than spatial axis 0",
    ),
    "an output_shape of an unknown extent": (model(("n",), output_shape=[9]), "the extent of spatial axis 0 is not"),
    "integers": (
        tiny.build(
            [helper.make_node("ConvTranspose", ["x", "w"], ["y"], dilations=[2])],
            {"x": [1, 1, 9]},
            {"y": None},
            {"w": np.zeros((1, 1, 3), np.int32)},
            element=TensorProto.INT32,
        ),
        "its element type is int32",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_alone_says_why(name: str) -> None:
    proto, words = REFUSED[name]
    assert words in reason(proto)


INVALID = {
    "no outputs": (model((2,), pads=[3, 3]), "pads (3, 3) and output_padding 0 has 0 outputs"),
    "a stride of 0": (model(strides=[0]), "strides (0,) must be at least 1"),
    "two strides": (model(strides=[1, 1]), "strides has 2 values, not 1"),
    "an output_padding below 0": (model(output_padding=[-1]), "output_padding (-1,) at least 0"),
    "a group that does not divide": (model(ins=3, group=2, outs=2), "input channels that group 2 does not divide"),
    "an auto_pad that is none": (model(auto_pad="SAME"), "auto_pad is 'SAME'"),
    "strides that are a number": (model(strides=2), "strides is of type INT, not INTS"),
}


@pytest.mark.parametrize("name", INVALID)
def test_what_nothing_can_run_is_one_line(name: str) -> None:
    proto, words = INVALID[name]
    with pytest.raises(dilrewrite.UsageError, match="main: ConvTranspose 'up' is invalid") as caught:
        find(proto)
    assert words in caught.value.message


def test_other_channels_than_the_weights_have() -> None:
    proto = model(ins=4)
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 3
    with pytest.raises(dilrewrite.UsageError, match="its input has 3 channels, its weights"):
        find(proto)


def test_more_phases_than_there_is_room_for() -> None:
    site = only(model(strides=[65]))
    refused = plan("keep", strategies()["keep"], site.meaning, site.opset)
    assert "strides (65,) make 65 phases of outputs, above 64" in str(refused)


def test_undilated_it_is_no_finding() -> None:
    assert not find(model(dilations=[1], strides=[2])).sites
    with pytest.raises(dilrewrite.UsageError, match="strides has 2 values"):
        find(model(dilations=[1], strides=[2, 2]))


# -- 300 of them -----------------------------------------------------------------------------------------------------

RANDOM, PART = 300, 25


def test_enough_of_them_have_forms() -> None:
    sites = [(site, forms(site)) for seed in range(RANDOM) for site in find(drawn(seed)[0]).sites]
    assert sum(bool(some) for _, some in sites) >= 200
    assert sum(bool(some) and max(site.geometry.spread) > 1 for site, some in sites) >= 50
    assert {site.geometry.rank for site, some in sites if some} == {1, 2, 3}


@pytest.mark.parametrize("first", range(0, RANDOM, PART))
def test_every_form_gives_the_sums(first: int) -> None:
    """All forms of one geometry in four, one form in turn of the others."""
    done = 0
    for seed in range(first, first + PART):
        proto, shape = drawn(seed)
        for site in find(proto).sites:
            weights = {
                tensor.name: numpy_helper.to_array(tensor).astype(np.int64) for tensor in proto.graph.initializer
            }
            x = np.random.default_rng(seed).integers(-9, 10, shape)
            right = naive.conv_transpose(x, weights["w"], weights.get("b"), attributes_of(proto)).clip(0)
            found = list(forms(site).items())
            for name, form in found if seed % 4 == 0 else found[seed % len(found) :][:1] if found else ():
                made = rewrite(proto, [(site, form)], (), numpy_helper.to_array).proto
                y = run(made, x=x.astype(np.float32))
                assert y.shape == right.shape, (seed, name)
                assert (y == right).all(), (seed, name)
                assert not any(node.op_type == "ConvTranspose" for node in made.graph.node)
                done += 1
    assert done >= PART


# -- proofs and whole runs -------------------------------------------------------------------------------------------

TWICE = [1, 1]
MODELS: dict[str, Callable[[], ModelProto]] = {
    "depthwise 2-D": lambda: model((1, 9), (3, 3), ins=4, outs=4, group=4, dilations=[5, 1], pads=[10, 1, 0, 1]),
    "1-D": lambda: model(pads=[1, 3]),
    "3-D": lambda: model((4, 5, 3), (2, 3, 2), dilations=[2, 1, 3]),
    "groups": lambda: model((9,), (3,), ins=4, outs=6, group=2, dilations=[3], pads=[2, 1]),
    "strides": lambda: model((7, 6), (3, 4), dilations=[3, 2], strides=[2, 3], pads=[1, 2, 3, 0], output_padding=TWICE),
    "a stride that shares a factor": lambda: model((9,), (4,), dilations=[4], strides=[2], pads=[1, 2]),
    "unknown extents": lambda: model(("h", "w"), (3, 3), dilations=[2, 3], pads=[1, 2, 0, 3], batch="n"),
    "unknown extents and strides": lambda: model(("h", "w"), (3, 3), dilations=[3, 2], strides=[2, 2], batch="n"),
    "pads above the reach": lambda: model((12,), (2,), dilations=[2], pads=[4, 3]),
    "one input": lambda: model((1,), (3,), dilations=[3], pads=[2, 2]),
    "opset 8": lambda: model((9,), (3,), opset=8, pads=[1, 1]),
    "opset 12, strides": lambda: model((6, 6), (3, 3), opset=12, strides=[2, 2], dilations=[3, 3]),
    "output_shape": lambda: model((8,), (3,), strides=[2], output_shape=[17], dilations=[3]),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_every_form_is_proved(name: str) -> None:
    proto = MODELS[name]()
    site, prover = only(proto), Prover()
    proofs = {form: prover.prove(Source(proto), site, fragment) for form, fragment in forms(site).items()}
    assert all(proof.passed and proof.native_ran for proof in proofs.values()), proofs
    assert len(proofs) >= 4


@pytest.mark.parametrize("name", MODELS)
def test_no_dilation_is_left(name: str, tmp_path: Path) -> None:
    save(MODELS[name](), tmp_path / "m.onnx")
    report = dilrewrite.optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", eliminate=True, budget=0)
    assert (report.status, report.exit_code, report.rewritten) == ("rewritten", 0, 1)
    assert report.verdict is not None
    assert report.verdict.passed
    nodes = onnx.load(tmp_path / "out.onnx").graph.node
    assert not any(node.op_type == "ConvTranspose" for node in nodes)
    assert {d for node in nodes for a in node.attribute if a.name == "dilations" for d in a.ints} == {1}


def names(some: Sequence[choose.Candidate]) -> set[str]:
    return {candidate.strategy for candidate in some}


def test_the_convs_themselves_are_timed_and_leave_the_dilation() -> None:
    """In its place, as any other form; not where the dilation has to go, and not in the place of a Conv."""
    planner = choose.Planner(strategies())
    found, _ = planner.candidates(only(model()))
    assert names(choose.worth_timing(found)) >= {"plain_conv", "im2col", "space_to_batch"}
    assert names(choose.without_dilation(found, 1)).isdisjoint({"plain_conv", "keep"})
    halved, _ = planner.candidates(only(model((9,), (4,), dilations=[4], strides=[4])))
    assert "plain_conv" in names(choose.without_dilation(halved, 1)), "each phase of its outputs is an undilated Conv"
    conv, _ = planner.candidates(only(tiny.conv1d()))
    assert "plain_conv" not in names(conv)


@pytest.mark.parametrize("name", MODELS)
def test_the_convs_themselves(name: str, tmp_path: Path) -> None:
    path = save(MODELS[name](), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="plain_conv", budget=0)
    assert (report.status, report.exit_code, report.rewritten) == ("rewritten", 0, 1)
    assert report.verdict is not None
    assert report.verdict.passed
    nodes = onnx.load(tmp_path / "out.onnx").graph.node
    assert {node.op_type for node in nodes} >= {"Conv", "Relu"}
    assert not any(node.op_type == "ConvTranspose" for node in nodes)


def test_a_conv_is_no_conv_transpose(tmp_path: Path) -> None:
    path = save(tiny.conv1d(), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="plain_conv", budget=0)
    assert report.status == "kept"
    assert "plain_conv refuses: a Conv of dilations (2,) is no ConvTranspose" in report.sites[0].reason
    folded = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="fold", budget=0, force=True)
    assert "fold refuses: it takes Sandwich, not ConvGeometry" in folded.sites[0].reason


def test_an_output_padding_that_onnx_runtime_does_not_run(tmp_path: Path) -> None:
    """ONNX and PyTorch allow it at stride 1; the Conv takes the place of what does not run."""
    proto = model(pads=[1, 3], output_padding=[1])
    x = np.random.default_rng(1).integers(-9, 10, (1, 2, 9))
    with pytest.raises(Exception, match="output_padding"):
        run(proto, x=x.astype(np.float32))
    save(proto, tmp_path / "m.onnx")
    report = dilrewrite.optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", eliminate=True, budget=0)
    assert (report.status, report.exit_code) == ("rewritten", 0)
    weights = [numpy_helper.to_array(tensor).astype(np.int64) for tensor in proto.graph.initializer]
    right = naive.conv_transpose(x, weights[0], weights[1], attributes_of(proto)).clip(0)
    assert (run(onnx.load(tmp_path / "out.onnx"), x=x.astype(np.float32)) == right).all()


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("opset", [8, 17])
def test_computed_weights_are_turned_in_the_graph(group: int, opset: int, tmp_path: Path) -> None:
    proto = model(ins=4, outs=6, group=group, dilations=[3], pads=[2, 1], opset=opset)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name != "w"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 6 // group, 3]))
    save(proto, tmp_path / "m.onnx")
    report = dilrewrite.optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", eliminate=True, budget=0)
    assert (report.status, report.exit_code) == ("rewritten", 0)
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 10, (1, 4, 9)), rng.integers(-9, 10, (4, 6 // group, 3))
    right = naive.conv_transpose(x, w, numpy_helper.to_array(kept[0]).astype(np.int64), attributes_of(proto)).clip(0)
    y = run(onnx.load(tmp_path / "out.onnx"), x=x.astype(np.float32), w=w.astype(np.float32))
    assert (y == right).all()


def test_weights_that_may_be_infinite() -> None:
    """A ConvTranspose multiplies no padding: a form that does holds for finite weights, one that does not for all."""
    from dilrewrite.choice.choose import holds_for
    from dilrewrite.choice.reason import Condition

    proto = model(pads=[0, 0])
    del proto.graph.initializer[0]
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2, 3]))
    site = only(proto)
    found = forms(site)
    for name in ("space_to_batch", "tap_sum"):
        held = Condition.FINITE_WEIGHTS in holds_for(site, strategies()[name], found[name])
        assert held == (name == "space_to_batch")
    x, w = np.ones((1, 2, 9), np.float32), np.full((2, 2, 3), np.inf, np.float32)
    before, after, lone = (
        run(each, x=x, w=w)
        for each in (
            proto,
            rewrite(proto, [(site, found["tap_sum"])], (), numpy_helper.to_array).proto,
            rewrite(proto, [(site, found["space_to_batch"])], (), numpy_helper.to_array).proto,
        )
    )
    assert np.array_equal(before, after)
    assert np.isnan(lone).any()


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("axis", [None, 1])
def test_quantised_per_output_channel(group: int, axis: int | None, tmp_path: Path) -> None:
    """The scales of a ConvTranspose stand along axis 1, for each group the same; those of a Conv along axis 0."""
    rng, count = np.random.default_rng(0), 6 // group
    scales = np.float32(2.0) ** -rng.integers(3, 6, count) if axis is not None else np.float32(0.125)
    zeros = np.zeros(count if axis is not None else (), np.int8)
    along = {"axis": axis} if axis is not None else {}
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], **along),
        helper.make_node("ConvTranspose", ["xf", "wf"], ["c"], name="up", group=group, dilations=[3], pads=[1, 2]),
        helper.make_node("QuantizeLinear", ["c", "s2", "z"], ["y"]),
    ]
    weights = {
        "s": np.float32(0.25), "z": np.uint8(120), "s2": np.float32(4), "ws": scales.astype(np.float32), "wz": zeros,
        "w": rng.integers(-100, 100, (4, count, 3)).astype(np.int8),
    }  # fmt: skip
    kinds = {"x": TensorProto.UINT8, "y": TensorProto.UINT8}
    proto = tiny.build(
        nodes, {"x": [1, 4, 9]}, {"y": None}, {k: np.asarray(v) for k, v in weights.items()}, types=kinds
    )
    site = only(proto)
    assert site.part.weight_quantization is not None
    save(proto, tmp_path / "m.onnx")
    x = rng.integers(0, 256, (1, 4, 9)).astype(np.uint8)
    for strategy in ("space_to_batch", "zero_fill", "space_to_group"):
        report = dilrewrite.optimize(
            tmp_path / "m.onnx", tmp_path / "out.onnx", strategy=strategy, budget=0, force=True
        )
        assert (report.status, report.exit_code) == ("rewritten", 0)
        assert (run(proto, x=x) == run(onnx.load(tmp_path / "out.onnx"), x=x)).all()


@pytest.mark.parametrize("element", [TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16])
def test_other_element_types(element: int, tmp_path: Path) -> None:
    kind, proto = helper.tensor_dtype_to_np_dtype(element), model(("n",), dilations=[3], strides=[2], opset=22)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = element
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(kind), tensor.name))
    save(proto, tmp_path / "m.onnx")
    report = dilrewrite.optimize(tmp_path / "m.onnx", tmp_path / "out.onnx", eliminate=True, budget=0)
    assert (report.status, report.exit_code) == ("rewritten", 0)


def test_a_large_one_is_proved_at_a_smaller_size() -> None:
    geometry = only(model((3000, 2000), (3, 3), dilations=[3, 2], strides=[2, 1], ins=8, outs=8, group=8)).geometry
    small = smaller(geometry)
    assert max(extent or 0 for extent in small.extents) < 1000
    assert small.transposed == geometry.transposed


def test_inspect_and_decisions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = save(MODELS["strides"](), tmp_path / "m.onnx")
    text = cli(capsys, "inspect", path, "-v").out
    assert "3x4 d3x2 s2x3 g1 2->2 7x6 p1x2:3x0 transposed output_padding 1" in " ".join(text.split())
    options = ["--strategy", "space_to_batch", "--budget", 0, "--no-report"]
    assert (
        cli(capsys, "optimize", path, "-o", tmp_path / "a.onnx", *options, "--save-decisions", tmp_path / "d.json").code
        == 0
    )
    again = cli(capsys, "optimize", path, "-o", tmp_path / "b.onnx", "--decisions", tmp_path / "d.json", "--no-report")
    assert again.code == 0
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_dilations_that_a_device_runs_are_left(tmp_path: Path) -> None:
    save(model(dilations=[2]), tmp_path / "m.onnx")
    report = dilrewrite.optimize(tmp_path / "m.onnx", eliminate=True, max_dilation=2, budget=0)
    assert report.rewritten == 0
    save(model(dilations=[4]), tmp_path / "n.onnx")
    report = dilrewrite.optimize(tmp_path / "n.onnx", tmp_path / "o.onnx", eliminate=True, max_dilation=2, budget=0)
    assert (report.rewritten, report.exit_code) == (1, 0)
    assert {site.max_dilation_left for site in report.sites} <= {1, 2}


def chain(rank: int, sizes: Sequence[int | str], **attributes: Any) -> ModelProto:
    """Conv, Relu, ConvTranspose and Relu, both are added, Conv: all of dilation 2, of the same sizes."""
    rng, more = np.random.default_rng(0), {"dilations": [2] * rank, "pads": [2] * 2 * rank}
    group = attributes.get("group", 1)
    weights = {name: rng.integers(-3, 4, (4, 4, *[3] * rank)).astype(np.float32) for name in ("w", "v")}
    weights["u"] = rng.integers(-3, 4, (4, 4 // group, *[3] * rank)).astype(np.float32)
    weights["b"] = rng.integers(-3, 4, 4).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one", **more),
        helper.make_node("Relu", ["a"], ["b0"], name="relu"),
        helper.make_node("ConvTranspose", ["b0", "u", "b"], ["c"], name="up", **{**more, **attributes}),
        helper.make_node("Relu", ["c"], ["d"], name="again"),
        helper.make_node("Add", ["d", "b0"], ["e"], name="sum"),
        helper.make_node("Conv", ["e", "v"], ["y"], name="two", **more),
    ]
    return tiny.build(nodes, {"x": [1, 4, *sizes]}, {"y": None}, weights)


CHAINS: dict[str, tuple[ModelProto, tuple[str, ...]]] = {
    "1-D": (chain(1, [32]), ("phase_region", "lift_region")),
    "1-D, unknown, groups": (chain(1, ["t"], group=2), ("phase_region", "lift_region")),
    "2-D": (chain(2, [12, 14]), ("phase_region",)),
    "2-D, unknown, depthwise": (chain(2, ["h", "w"], group=4), ("phase_region",)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_at_stride_1_it_stands_in_a_region(name: str, tmp_path: Path) -> None:
    proto, regions = CHAINS[name]
    path = save(proto, tmp_path / "m.onnx")
    for strategy in regions:
        report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy=strategy, budget=0, force=True)
        (region,) = [one for one in report.regions if one.action == "rewritten"]
        assert (report.exit_code, report.rewritten, len(region.members)) == (0, 3, 3)
        assert region.proof is not None
        assert region.proof.passed
        after = onnx.load(tmp_path / "out.onnx")
        assert "ConvTranspose" not in {node.op_type for node in after.graph.node}
        sizes = [
            dim.dim_value or 17 + 3 * axis for axis, dim in enumerate(proto.graph.input[0].type.tensor_type.shape.dim)
        ]
        x = np.random.default_rng(1).integers(-3, 4, sizes).astype(np.float32)
        assert (run(after, x=x) == run(proto, x=x)).all()
    with kernel_not_flipped():
        report = dilrewrite.optimize(path, tmp_path / "no.onnx", strategy="phase_region", budget=0)
    assert (report.exit_code, (tmp_path / "no.onnx").exists()) == (3, False)


@pytest.mark.parametrize("group", [1, 2])
def test_quantised_per_output_channel_in_a_region(group: int, tmp_path: Path) -> None:
    """Between quantised Convs: its scales stand along axis 1, theirs along axis 0."""
    rng, more = np.random.default_rng(0), {"dilations": [2], "pads": [2, 2]}
    weights: dict[str, Any] = {"s": np.float32(0.25), "z": np.uint8(120), "t": np.float32(4)}
    nodes, last = [helper.make_node("DequantizeLinear", ["x", "s", "z"], ["x0"])], "x0"
    for number, (op, outs, axis) in enumerate((("Conv", 4, 0), ("ConvTranspose", 4 // group, 1), ("Conv", 4, 0))):
        w, made = f"w{number}", f"y{number}"
        shape = (4, outs, 3) if axis else (outs, 4, 3)
        weights |= {w: rng.integers(-9, 9, shape).astype(np.int8), f"{w}z": np.zeros(outs, np.int8)}
        weights[f"{w}s"] = (2.0 ** -rng.integers(1, 4, outs)).astype(np.float32)
        attributes = more | ({"group": group} if axis else {})
        nodes += [
            helper.make_node("DequantizeLinear", [w, f"{w}s", f"{w}z"], [f"{w}f"], axis=axis),
            helper.make_node(op, [last, f"{w}f"], [f"{made}f"], name=made, **attributes),
            helper.make_node("QuantizeLinear", [f"{made}f", "t", "z"], [f"{made}q" if number < 2 else "y"]),
        ]
        if number < 2:
            nodes.append(helper.make_node("DequantizeLinear", [f"{made}q", "t", "z"], [last := f"{made}d"]))
    kinds = {"x": TensorProto.UINT8, "y": TensorProto.UINT8}
    held = {name: np.asarray(value) for name, value in weights.items()}
    proto = tiny.build(nodes, {"x": [1, 4, 24]}, {"y": None}, held, types=kinds)
    path = save(proto, tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="phase_region", budget=0)
    (region,) = report.regions
    assert (report.exit_code, region.action, len(region.members)) == (0, "rewritten", 3)
    x = rng.integers(0, 256, (1, 4, 24)).astype(np.uint8)
    y = run(proto, x=x)
    assert len(np.unique(y)) > 9
    assert (run(onnx.load(tmp_path / "out.onnx"), x=x) == y).all()


def test_at_a_larger_stride_it_goes_along_where_a_chain_is_lifted(tmp_path: Path) -> None:
    """As it is, with its dilation; so where that has to go it gets a form of its own."""
    proto = chain(1, [32], strides=[2], pads=[2, 2], output_padding=[1])
    proto.graph.node[4].CopyFrom(helper.make_node("Relu", ["d"], ["e"], name="sum"))
    path = save(proto, tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="lift_region", budget=0)
    (region,) = report.regions
    assert (report.exit_code, region.action, len(region.members)) == (0, "rewritten", 3)
    assert [site.max_dilation_left for site in report.sites] == [2, 2, 2]
    (up,) = [node for node in onnx.load(tmp_path / "out.onnx").graph.node if node.op_type == "ConvTranspose"]
    assert next(list(a.ints) for a in up.attribute if a.name == "dilations")[-1] == 2
    for more in ({"strategy": "lift_region"}, {}):
        gone = dilrewrite.optimize(path, tmp_path / "gone.onnx", eliminate=True, budget=0, force=True, **more)
        assert (gone.exit_code, gone.rewritten, {site.max_dilation_left for site in gone.sites}) == (0, 3, {1})


def test_a_region_ends_at_a_larger_stride() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="one", dilations=[2], pads=[2, 2]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w"], ["c"], name="two", dilations=[2], pads=[2, 2]),
        helper.make_node("ConvTranspose", ["c", "w"], ["y"], name="up", dilations=[2], strides=[2]),
    ]
    proto = tiny.build(nodes, {"x": [1, 2, 16]}, {"y": None}, {"w": tiny.values(2, 2, 3)})
    found = find(proto, regions=True)
    (region,) = [region for region in found.regions if "@2" in region.key]
    assert len(region.parts) == 2
    assert any("ConvTranspose 'up'" in end for end in region.ends)
    assert len(found.sites) == 3


# -- wrong ones ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def channels_exchanged_across_groups() -> Iterator[None]:
    """Input and output channels trade places as if there were one group."""

    def wrong(self: Turn, weight: Any, _: Any) -> Any:
        whole = np.moveaxis(weight, 0, 1)
        return np.flip(whole.reshape(self.shape(weight.shape)), tuple(range(2, weight.ndim)))

    with mock.patch.object(Turn, "apply", wrong):
        yield


@contextlib.contextmanager
def kernel_not_flipped() -> Iterator[None]:
    """The taps keep their order."""
    right = Turn.apply

    def wrong(self: Turn, weight: Any, zero: Any) -> Any:
        return np.flip(right(self, weight, zero), tuple(range(2, weight.ndim)))

    with mock.patch.object(Turn, "apply", wrong):
        yield


@contextlib.contextmanager
def output_padding_in_front() -> Iterator[None]:
    """The outputs that output_padding adds come first."""
    right = conv_transpose._padded

    def wrong(geometry: ConvGeometry, values: Mapping[str, Any]) -> ConvGeometry:
        made = right(geometry, values)
        assert made.transposed is not None
        (more,), (begin,), (end,) = made.transposed.output_padding, *made.static_pads
        return replace(made, pads_begin=(begin + more,), pads_end=(end - more,))

    with mock.patch.object(conv_transpose, "_padded", wrong):
        yield


@contextlib.contextmanager
def phases_of_outputs_in_reverse() -> Iterator[None]:
    """The outputs between the strides stand in the wrong order."""
    from dilrewrite.forms import transposed

    right = transposed.join
    with mock.patch.object(transposed, "join", lambda builder, geometry, made: right(builder, geometry, made[::-1])):
        yield


WRONG = (channels_exchanged_across_groups, kernel_not_flipped, output_padding_in_front, phases_of_outputs_in_reverse)


@pytest.mark.parametrize("strategy", ["space_to_batch", "zero_fill", "tap_sum"])
@pytest.mark.parametrize("mutant", WRONG, ids=lambda mutant: mutant.__name__)
def test_a_wrong_one_writes_no_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mutant: Callable[[], Any], strategy: str
) -> None:
    proto = model((9,), (3,), ins=4, outs=6, group=2, dilations=[3], strides=[2], pads=[2, 1], output_padding=[1])
    path = save(proto, tmp_path / "m.onnx")
    arguments = ["-o", tmp_path / "out.onnx", "--strategy", strategy, "--budget", 0, "--no-report", "--json"]
    with mutant():
        outcome = cli(capsys, "optimize", path, *arguments)
    assert (outcome.code, outcome.report["status"]) == (3, "differs")
    assert tiny.listing(tmp_path).keys() == {"m.onnx"}
    assert cli(capsys, "optimize", path, *arguments).code == 0
