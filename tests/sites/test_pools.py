"""Dilated poolings: read, rewritten in phases when asked for, proved, and left alone where nobody asks."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.forms import pools
from dilrewrite.forms.fragment import CoreConv, Fragment
from dilrewrite.forms.pools import PoolGeometry, pool_forms
from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.model.evaluate import Evaluator
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Proof, Prover
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.sites.operators import _pooling
from dilrewrite.splice.region import Region
from tests import models_for_tests as tiny

pytestmark = pytest.mark.usefixtures("in_process")

OPERATORS = ("MaxPool", "AveragePool", "LpPool")
KINDS = {name: TensorProto.DataType.Value(name.upper()) for name in ("float", "float16", "int8", "uint8")}


def model(op: str, shape: Any, *, element: int = TensorProto.FLOAT, opset: int = 21, **attributes: Any) -> ModelProto:
    """x -> pooling -> y."""
    node = helper.make_node(op, ["x"], ["y"], name="pool", **attributes)
    return tiny.build([node], {"x": shape}, {"y": None}, element=element, opset=opset, ir=9)


def site_of(proto: ModelProto) -> Site:
    found = find(proto)
    (site,) = found.pools
    assert found.sites == ()
    return site


def planned(site: Site, **settings: int) -> Fragment | Refusal:
    form = pools.PhasePools(**settings)
    return plan("phase_pools", form, site.meaning, site.opset, storage=site.storage)


def proof_of(proto: ModelProto, **settings: int) -> Proof:
    site = site_of(proto)
    fragment = planned(site, **settings)
    assert isinstance(fragment, Fragment), fragment
    assert fragment.max_dilation <= settings.get("max_dilation", 1)
    return Prover().prove(Source(proto), site, fragment)


# -- the truth ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_the_truth_is_what_onnx_runtime_computes(seed: int) -> None:
    """In every rank, with pads, strides, ceil_mode, both counts and all powers."""
    runtime = pytest.importorskip("onnxruntime")
    op, shape, attributes = drawn(random.Random(seed))
    proto = model(op, shape, **attributes)
    x = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    (got,) = Evaluator(proto).run(None, {"x": x})
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (wanted,) = session.run(None, {"x": x})
    assert got.shape == wanted.shape
    wanted[wanted == np.finfo(np.float32).min] = -np.inf  # a window without data
    np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6)


def drawn(rng: random.Random) -> tuple[str, list[int], dict[str, Any]]:
    """A pooling that ONNX Runtime takes: pads are smaller than the kernel."""
    op, rank = rng.choice(OPERATORS), rng.choice((1, 1, 2, 2, 3))
    kernel = [rng.choice((1, 2, 3, 4)) for _ in range(rank)]
    dilations = [rng.choice((1, 2, 3, 4)) for _ in range(rank)]
    kernel[0], dilations[0] = max(kernel[0], 2), max(dilations[0], 2)
    pads = [rng.randrange(k) for _ in range(2) for k in kernel]
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    sizes = [max(1, span - pads[at] - pads[at + rank]) + rng.randrange(8) for at, span in enumerate(spans)]
    attributes: dict[str, Any] = {"kernel_shape": kernel, "dilations": dilations, "pads": pads}
    attributes["strides"] = [rng.choice((1, 1, 2, 3)) for _ in range(rank)]
    attributes["ceil_mode"] = int(rng.random() < 0.3)
    if op == "AveragePool":
        attributes["count_include_pad"] = int(rng.random() < 0.5)
    if op == "LpPool":
        attributes["p"] = rng.choice((1, 2, 3))
    return op, [2, 3, *sizes], attributes


def test_random_poolings_are_equal_bit_for_bit() -> None:
    """With known and unknown sizes: at least 100 of 150 are rewritten, and all of these are proved."""
    rng, told = random.Random(14), Counter[str]()
    for number in range(150):
        op, shape, attributes = drawn(rng)
        extents = [f"h{at}" if rng.random() < 0.4 else extent for at, extent in enumerate(shape[2:])]
        sizes = ["n" if rng.random() < 0.5 else 2, 3, *extents]
        element = rng.choice(list(KINDS.values())) if op == "MaxPool" else TensorProto.FLOAT
        proto = model(op, sizes, element=element, **attributes)
        site = site_of(proto)
        fragment = planned(site)
        if isinstance(fragment, Refusal):
            told[fragment.reason.partition(": ")[2][:20]] += 1
            continue
        proof = Prover().prove(Source(proto), site, fragment)
        assert proof.passed, (number, op, sizes, attributes, proof.failure)
        assert proof.native_ran
        told[op] += 1
    assert sum(told[op] for op in OPERATORS) >= 100, told
    assert min(told[op] for op in OPERATORS) >= 20, told


# -- one by one --------------------------------------------------------------------------------------------------------


CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "1-D": ("MaxPool", [2, 3, 17], {"kernel_shape": [3], "dilations": [2], "pads": [2, 2]}),
    "3-D": ("MaxPool", [2, 3, 9, 8, 7], {"kernel_shape": [2, 2, 3], "dilations": [2, 3, 1],
                                         "pads": [1, 0, 2, 0, 1, 0]}),
    "batch": ("LpPool", ["n", 3, 16, 13], {"kernel_shape": [3, 2], "dilations": [2, 4], "p": 3}),
    "overlapping phases": ("MaxPool", [2, 3, 23], {"kernel_shape": [3], "dilations": [4], "strides": [6]}),
    "one phase": ("AveragePool", [2, 3, 23], {"kernel_shape": [3], "dilations": [2], "strides": [4], "pads": [2, 1]}),
    "ceil": ("MaxPool", [2, 3, 14], {"kernel_shape": [3], "dilations": [2], "strides": [4], "ceil_mode": 1}),
    "ceil, unknown": ("MaxPool", [2, 3, "h"], {"kernel_shape": [3], "dilations": [2], "strides": [3], "ceil_mode": 1,
                                               "pads": [1, 2]}),
    "valid": ("AveragePool", [2, 3, 14], {"kernel_shape": [3], "dilations": [2], "auto_pad": "VALID"}),
    "counted": ("AveragePool", [2, 3, "h", 11], {"kernel_shape": [3, 3], "dilations": [2, 3], "pads": [2, 1, 1, 2],
                                                 "count_include_pad": 1}),
    "not counted": ("AveragePool", [2, 3, "h", 11], {"kernel_shape": [3, 3], "dilations": [2, 3],
                                                     "pads": [2, 1, 1, 2]}),
    "shorter than the phases": ("MaxPool", [2, 3, 4], {"kernel_shape": [2], "dilations": [4], "strides": [6],
                                                       "pads": [1, 0]}),
    "unknown channels": ("MaxPool", [2, "c", "h", "w"], {"kernel_shape": [3, 3], "dilations": [2, 2], "pads": [1] * 4}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_proved(name: str) -> None:
    op, shape, attributes = CASES[name]
    proof = proof_of(model(op, shape, **attributes))
    assert proof.failure is None
    assert proof.native_ran


@pytest.mark.parametrize("element", KINDS)
def test_every_element_type_is_proved(element: str) -> None:
    proto = model(
        "MaxPool", [2, 3, "h", 9], element=KINDS[element], kernel_shape=[3, 2], dilations=[2, 3], pads=[1] * 4
    )
    proof = proof_of(proto)
    assert proof.failure is None
    assert (proof.rounding is None) == (element in ("int8", "uint8"))


@pytest.mark.parametrize("op", OPERATORS)
def test_a_dilation_may_remain(op: str) -> None:
    proof = proof_of(model(op, [1, 2, 40], kernel_shape=[3], dilations=[6], pads=[2, 2]), max_dilation=3)
    assert proof.failure is None


@pytest.mark.parametrize("op", ["MaxPool", "LpPool"])
@pytest.mark.parametrize("shape", [[1, 2, 23, 7], [1, 2, "h", 7]], ids=["known", "unknown"])
def test_where_a_dilation_remains_the_last_window_may_go_far_beyond_the_padding(op: str, shape: list[Any]) -> None:
    """Further than a pooling pads: the phases get cells of their own there."""
    given = {"kernel_shape": [3, 2], "strides": [4, 2], "dilations": [6, 2], "pads": [1, 0, 2, 1], "ceil_mode": 1}
    assert proof_of(model(op, shape, **given), max_dilation=2).failure is None
    both = {**given, "kernel_shape": [3, 4], "strides": [1, 3], "dilations": [6, 6], "pads": [2, 0, 2, 0]}
    assert proof_of(model(op, [*shape[:3], 30], **both), max_dilation=3).failure is None


def test_where_the_last_values_of_a_type_are_all_there_is() -> None:
    """What is written behind the data is below every value: a window of the lowest value gives that value."""
    runtime = pytest.importorskip("onnxruntime")
    for element, kind in ((TensorProto.INT8, np.int8), (TensorProto.UINT8, np.uint8), (TensorProto.FLOAT, np.float32)):
        lowest = np.iinfo(kind).min if kind != np.float32 else np.finfo(kind).min
        proto = model("MaxPool", [1, 1, "h"], element=element, kernel_shape=[3], dilations=[2], pads=[2, 2])
        report = dilrewrite.optimize(proto, eliminate=True, budget=0)
        assert report.rewritten == 1
        assert isinstance(report.model, ModelProto)
        x = np.full((1, 1, 9), lowest, kind)
        results = [
            runtime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[
                0
            ]
            for each in (proto, report.model)
        ]
        assert results[0].tolist() == results[1].tolist() == x.tolist()


# -- refusals ----------------------------------------------------------------------------------------------------------


SKIPPED: dict[str, tuple[dict[str, Any], str]] = {
    "same": ({"auto_pad": "SAME_UPPER"}, "SAME_UPPER: ONNX Runtime pads by the kernel without its dilation"),
    "pads": ({"pads": [3, 0]}, "pads [3, 0] and kernel [3]: ONNX Runtime pads by 0 to less than the kernel"),
    "rank": ({"kernel_shape": [2] * 4, "dilations": [2] * 4}, "it has 4 spatial axes"),
    "empty": ({"kernel_shape": [2], "dilations": [17]}, "extent 17"),
}


@pytest.mark.parametrize("name", SKIPPED)
def test_is_left_alone(name: str) -> None:
    attributes, reason = SKIPPED[name]
    given = {"kernel_shape": [3], "dilations": [2], **attributes}
    found = find(model("MaxPool", [2, 3, *[17] * len(given["kernel_shape"])], **given))
    assert found.pools == ()
    assert reason in found.skipped[0].reason


def test_indices_are_refused() -> None:
    node = helper.make_node("MaxPool", ["x"], ["y", "i"], name="pool", kernel_shape=[3], dilations=[2])
    proto = tiny.build([node], {"x": [2, 3, 9]}, {"y": None, "i": None}, types={"i": TensorProto.INT64})
    (skipped,) = find(proto).skipped
    assert "Indices" in skipped.reason


@pytest.mark.parametrize(("op", "opset"), [("AveragePool", 18), ("LpPool", 17), ("MaxPool", 9)])
def test_before_an_opset_it_has_no_dilations(op: str, opset: int) -> None:
    (skipped,) = find(model(op, [2, 3, 9], opset=opset, kernel_shape=[3], dilations=[2])).skipped
    assert f"{op} has dilations from opset {opset + 1} on, not at {opset}" in skipped.reason


REFUSED: dict[str, tuple[str, Any, dict[str, Any], str]] = {
    "blind": ("MaxPool", [1, 1, 2], {"kernel_shape": [2], "dilations": [3], "pads": [1, 1]}, "extent of 2 a window"),
    "blind if short": ("MaxPool", [1, 1, "h"], {"kernel_shape": [2], "dilations": [3], "pads": [1, 1]}, "extent of 2"),
    "many": ("MaxPool", [1, 1, 99, 99], {"kernel_shape": [2, 2], "dilations": [17, 17]}, "289 phases"),
    "a part of it": ("AveragePool", [1, 1, "h"], {"kernel_shape": [2], "dilations": [2], "strides": [3]}, "below 3"),
    "counts less": ("AveragePool", [1, 1, 9], {"kernel_shape": [2], "dilations": [2], "strides": [4], "ceil_mode": 1,
                                               "count_include_pad": 1}, "counts less"),
    "far": ("AveragePool", [1, 1, 23, 7], {"kernel_shape": [3, 2], "strides": [1, 2], "dilations": [6, 2],
                                           "ceil_mode": 1, "pads": [0, 0, 0, 1]}, "further beyond the padding"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused(name: str) -> None:
    op, shape, attributes, reason = REFUSED[name]
    fragment = planned(site_of(model(op, shape, **attributes)), max_dilation=2)
    assert isinstance(fragment, Refusal)
    assert reason in fragment.reason


def test_forms_of_a_conv_take_no_pooling() -> None:
    geometry = site_of(model("MaxPool", [2, 3, 17], kernel_shape=[3], dilations=[2])).meaning
    for name, strategy in strategies().items():
        assert plan(name, strategy, geometry, 21) == Refusal(name, "it takes ConvGeometry, not PoolGeometry")
    conv = find(tiny.conv1d(length=64, dilations=[2])).sites[0].meaning
    assert isinstance(plan("phase_pools", pool_forms()["phase_pools"], conv, 21), Refusal)


# -- from the model to the report --------------------------------------------------------------------------------------


def mixed(**of_pool: Any) -> ModelProto:
    """x -> dilated Conv -> dilated MaxPool -> Relu -> y."""
    given = {"kernel_shape": [3, 3], "dilations": [2, 2], **(of_pool or {"pads": [1] * 4})}
    nodes = [
        tiny.conv_node("x", "c", "w", name="conv", dilations=[2, 2], pads=[2] * 4),
        helper.make_node("MaxPool", ["c"], ["p"], name="pool", **given),
        helper.make_node("Relu", ["p"], ["y"], name="relu"),
    ]
    return tiny.build(nodes, {"x": ["n", 3, "h", 12]}, {"y": None}, {"w": tiny.values(4, 3, 3, 3)}, ir=9)


def optimized(proto: ModelProto, tmp_path: Path, **options: Any) -> tuple[dilrewrite.Report, ModelProto | None]:
    onnx.save(proto, tmp_path / "m.onnx")
    output = tmp_path / "out.onnx"
    report = dilrewrite.optimize(tmp_path / "m.onnx", output, **{"budget": 0, "force": True, **options})
    return report, onnx.load(output) if output.exists() else None


def dilations(proto: ModelProto | None) -> dict[str, list[int]]:
    assert proto is not None
    found = {node.op_type: a.ints for node in proto.graph.node for a in node.attribute if a.name == "dilations"}
    return {op: list(ints) for op, ints in found.items() if max(ints) > 1}


def test_elimination_takes_poolings_along(tmp_path: Path) -> None:
    report, after = optimized(mixed(), tmp_path, eliminate=True)
    assert (report.status, report.exit_code, report.rewritten) == ("rewritten", 0, 2)
    assert dilations(after) == {}
    assert [site.strategy for site in report.sites][1] == "phase_pools"
    assert "exact for finite inputs only" in report.sites[1].reason
    assert (report.before.dilated, report.after.dilated if report.after else None) == (1, 0)
    assert "2 of 2 dilated operators" in report.summary
    assert report.verdict is not None
    assert report.verdict.passed


def test_by_default_a_pooling_stays(tmp_path: Path) -> None:
    report, after = optimized(mixed(), tmp_path)
    assert len(report.sites) == 1
    assert dilations(after).keys() == {"Conv", "MaxPool"}
    (skipped,) = report.skipped
    assert (
        skipped.reason
        == "a dilated MaxPool stays as it is; --eliminate rewrites it, and so does --strategy phase_pools"
    )


def test_a_pooling_that_stays_is_no_dilation_that_is_left(tmp_path: Path) -> None:
    narrow: dict[str, Any] = {"kernel_shape": [2, 2], "dilations": [3, 3], "pads": [1] * 4}
    for of_pool in (narrow, {"auto_pad": "SAME_LOWER"}):
        report, after = optimized(mixed(**of_pool), tmp_path, eliminate=True)
        assert (report.status, report.rewritten, report.remaining) == ("rewritten", 1, ())
        assert dilations(after).keys() == {"MaxPool"}


def test_for_tensorrt_it_is_dilation_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes no dilated pooling."""
    monkeypatch.setattr("dilrewrite.commands.optimize._for_tensorrt", lambda _: True)
    narrow: dict[str, Any] = {"kernel_shape": [2, 2], "dilations": [3, 3], "pads": [1] * 4}
    for of_pool in (narrow, {"auto_pad": "SAME_LOWER"}):
        report, after = optimized(mixed(**of_pool), tmp_path, eliminate=True)
        assert (report.status, report.exit_code, after) == ("dilation left", 1, None)
        assert "pool" in report.remaining[0]
        assert optimized(mixed(**of_pool), tmp_path, eliminate=True, skip="pool")[0].exit_code == 0
        (tmp_path / "out.onnx").unlink()


def test_its_form_can_be_asked_for(tmp_path: Path) -> None:
    report, after = optimized(mixed(), tmp_path, strategy="phase_pools")
    assert report.rewritten == 1
    assert dilations(after).keys() == {"Conv"}
    report, _ = optimized(mixed(), tmp_path, strategy="phase_pools:limit_nodes=3")
    assert report.rewritten == 0


def test_it_can_be_left(tmp_path: Path) -> None:
    report, after = optimized(mixed(), tmp_path, eliminate=True, skip="pool")
    assert report.rewritten == 1
    assert dilations(after).keys() == {"MaxPool"}


def test_its_models_are_kept_for_a_bug_report(tmp_path: Path) -> None:
    proto, folder = mixed(), tmp_path / "micro"
    optimized(proto, tmp_path, eliminate=True, keep_micro=folder, shapes=["x:1x3x14x12"])
    (place,) = folder.glob("site-*-pool")
    before, after = sorted(place.glob("*.onnx"))
    assert (before.name, after.name) == ("00-before.onnx", "01-phase_pools.onnx")
    assert dilations(onnx.load(before)).keys() == {"MaxPool"}
    assert dilations(onnx.load(after)) == {}


def test_decisions_are_replayed(tmp_path: Path) -> None:
    decided = tmp_path / "decided.json"
    _, first = optimized(mixed(), tmp_path, eliminate=True, save_decisions=decided)
    _, second = optimized(mixed(), tmp_path, decisions=decided)
    assert first == second


# -- mutants -----------------------------------------------------------------------------------------------------------


def _attributes(change: dict[str, Any]) -> Any:
    right = _pooling.write

    def wrong(part: Any, core: CoreConv, operands: Any) -> Any:
        inputs, given = right(part, core, operands)
        return inputs, {**given, **change}

    return wrong


def _first(place: int, step: int) -> tuple[int, int]:
    return place % step, 0


def _reversed(*given: Any, right: Any = pools._axis) -> Any:
    axis = right(*given)
    return replace(axis, parts=axis.parts[::-1])


MUTANTS: dict[str, tuple[str, dict[str, Any], Any, str, Any]] = {
    "padding is counted": ("AveragePool", {}, _pooling, "write", _attributes({"count_include_pad": 1})),
    "padding is not counted": (
        "AveragePool", {"count_include_pad": 1}, _pooling, "write", _attributes({"count_include_pad": 0}),
    ),
    "another power": ("LpPool", {"p": 3}, _pooling, "write", _attributes({"p": 2})),
    "no padding in front": ("MaxPool", {}, pools, "_first", _first),
    "filled with 0": ("MaxPool", {}, Region, "_fill_value", lambda _: ""),
    "phases in another order": ("MaxPool", {"dilations": [3]}, pools, "_axis", _reversed),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_form_is_not_written(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op, attributes, *wrong = MUTANTS[name]
    given = {"kernel_shape": [3], "dilations": [2], "pads": [1, 2], **attributes}
    proto = model(op, [2, 3, "h"], **given)
    assert optimized(proto, tmp_path, eliminate=True)[0].exit_code == 0
    (tmp_path / "out.onnx").unlink()
    monkeypatch.setattr(*wrong)
    report, after = optimized(proto, tmp_path, eliminate=True)
    assert (report.exit_code, after) == (3, None)


def test_the_geometry_counts_as_onnx_runtime_does() -> None:
    site = site_of(model("MaxPool", [1, 1, 14], kernel_shape=[3], dilations=[2], strides=[4], ceil_mode=1))
    assert isinstance(site.meaning, PoolGeometry)
    assert site.meaning.out_extents == (4,)
