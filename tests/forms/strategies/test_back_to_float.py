"""back_to_float: a QLinearConv or ConvInteger in float32, only where it is asked for, with its error."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import dilrewrite
from dilrewrite import cli
from dilrewrite.errors import UsageError
from dilrewrite.forms.fragment import Fragment, Refusal
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import BACK_TO_FLOAT, parse, plan, strategies
from dilrewrite.reports.content.answer import next_steps
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests.integers import Integers, build, images, truth
from tests.mutants import INTEGER_MUTANTS
from tests.sites.test_integers import CASES, GRID, KINDS, LACKING, S8, SUMS, U8, outputs

ALLOWED: dict[str, Any] = {"strategy": BACK_TO_FLOAT, "allow_requantised": True, "budget": 0, "verify": "sites"}
REAL = replace(GRID[0], name="real", shape=(2, 8, 64), scale=0.731 * 2**5, zero=201, out_zero=7)
"""Scales that are no powers of two, and zero points that are neither 0 nor 128."""


def rewritten(model: ModelProto, spelling: str = BACK_TO_FLOAT) -> ModelProto:
    found = find(model)
    (site,) = found.sites
    form = plan(*parse(spelling), site.meaning, site.opset, storage=site.storage)
    assert isinstance(form, Fragment), form
    return rewrite(model, [(site, form)], found.normalisations, numpy_helper.to_array).proto


def operators(model: ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(("q", "word"), CASES)
@pytest.mark.parametrize("form", ["keep", "undilated", "im2col"])
@pytest.mark.grid(4)
def test_powers_of_two_give_the_same_integers(q: Integers, word: str, form: str) -> None:
    """Such sums and quotients are exact in float32, so every case of the grid is the same bit for bit."""
    if form == "im2col" and q.group > 1:
        form = "zero_fill"
    model, inputs = build(q), images(q)
    after = rewritten(model, f"{BACK_TO_FLOAT}:form={form}")
    onnx.checker.check_model(after)
    assert q.name == "nothing but padding" or {"QLinearConv", "ConvInteger"}.isdisjoint(operators(after))
    if form != "keep":
        assert not find(after).sites
    wanted = [truth(q, x) for x in inputs] * 2
    for got, right in zip(outputs(after, inputs, runs=word not in LACKING), wanted, strict=True):
        assert got.dtype == right.dtype
        np.testing.assert_array_equal(got, right)


@pytest.mark.parametrize("kind", [{}, U8, S8], ids=["u8 x s8", "u8 x u8", "s8 x s8"])
@pytest.mark.parametrize("per_channel", [True, False], ids=["scale per channel", "one scale"])
def test_real_scales_are_within_one_quantum(kind: dict[str, Any], per_channel: bool) -> None:
    """With both ends of the type in the outputs, and inputs over all of it."""
    q = replace(REAL, per_channel=per_channel, **{**kind, **({"zero": -101, "out_zero": -90} if kind is S8 else {})})
    model, (x,) = build(q), images(q)
    before, after = ([outputs(one, [x], runs=True)[level] for level in (0, 1)] for one in (model, rewritten(model)))
    info = np.iinfo(q.data)
    for was, now in zip(before, after, strict=True):
        assert {info.min, info.max} <= set(was.ravel().tolist())
        assert int(np.abs(was.astype(int) - now.astype(int)).max()) <= 1


def ties() -> Integers:
    """A Conv whose quotients lie halfway between two integers now and then: sums are divided by 100."""
    return replace(GRID[0], name="ties", shape=(2, 8, 400), per_channel=False, scale=0.05, zero=120, out_zero=120)


def of_ties() -> ModelProto:
    model = build(ties())
    for tensor in model.graph.initializer:
        values = {"xs": 0.05, "ws": 0.01}
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(np.float32(values[tensor.name]), tensor.name))
        elif tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) // 4, "w"))
    return model


def test_the_error_is_in_the_report_and_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where outputs do differ: by one quantum, and every place says how many; no place says bit for bit."""
    path = tmp_path / "m.onnx"
    onnx.save(of_ties(), path)
    given = ["optimize", str(path), "--strategy", BACK_TO_FLOAT, "--budget", "0", "--allow-requantised"]
    assert cli.main([*given, "--report-format", "json", "--report-format", "markdown", "--report-format", "html"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    files = {file.suffix: file.read_text() for file in (tmp_path / "m.dilrewrite.report").iterdir()}
    (site,) = json.loads(files[".json"])["sites"]
    error = site["proof"]["requantised"]
    assert error["differing"] > 0
    assert (error["max_error"], error["limit"], error["quantum"]) == (1.0, 1.0, True)
    told = f"within one quantum ({error['differing']:,} of {error['elements']:,} outputs differ by up to 1)"
    for text in (screen, files[".md"], files[".html"]):
        assert told in text
        assert "bit for bit" not in text.replace("Exact: bit for bit", "")
    assert "rewrote 1 of 1 dilated Conv; equal within one quantum on 1 input set" in screen
    assert "equal on" not in screen


def test_exact_sums_are_equal_bit_for_bit(tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(build(replace(REAL, **SUMS)), path)
    report = dilrewrite.optimize(path, output, **{**ALLOWED, "verify": "full"})
    assert "; equal on 1 input set" in report.summary
    assert operators(onnx.load(output)) == ["DequantizeLinear", "Conv", "Cast"]
    (site,) = report.sites
    assert site.proof is not None
    assert site.proof.requantised is not None
    assert site.proof.requantised.exact


@pytest.mark.parametrize("fused", [True, False], ids=["QLinearConv", "ConvInteger"])
def test_it_is_never_taken_unasked(tmp_path: Path, fused: bool) -> None:
    """Neither by default, nor to eliminate dilation, by name or by a file of decisions."""
    path, saved, output = tmp_path / "m.onnx", tmp_path / "decisions.json", tmp_path / "out.onnx"
    onnx.save(build(replace(GRID[0], **({} if fused else SUMS))), path)
    for more in ({}, {"eliminate": True}):
        (site,) = dilrewrite.optimize(path, dry_run=True, budget=0, verify="sites", **more).sites
        assert BACK_TO_FLOAT not in {one.strategy for one in (*site.candidates, *site.refused)}
        (site,) = dilrewrite.optimize(
            path, dry_run=True, budget=0, verify="sites", allow_requantised=True, **more
        ).sites
        assert BACK_TO_FLOAT in {one.strategy for one in site.candidates}
    with pytest.raises(UsageError, match="strategy: back_to_float is not equal bit for bit") as told:
        dilrewrite.optimize(path, output, strategy=BACK_TO_FLOAT, budget=0)
    assert "allow_requantised=True" in str(told.value)
    assert dilrewrite.optimize(path, output, save_decisions=saved, **ALLOWED).exit_code == 0
    first = output.read_bytes()
    with pytest.raises(UsageError, match=r"decisions.*: back_to_float is not equal"):
        dilrewrite.optimize(path, output, decisions=saved, force=True, verify="sites")
    assert (
        dilrewrite.optimize(path, output, decisions=saved, allow_requantised=True, force=True, verify="sites").exit_code
        == 0
    )
    assert output.read_bytes() == first


@pytest.mark.measures
def test_a_kept_convinteger_has_a_hint(tmp_path: Path) -> None:
    """Until it is allowed, where a measured report says what a user may do."""
    path = tmp_path / "m.onnx"
    onnx.save(build(replace(GRID[0], **SUMS)), path)
    report = dilrewrite.optimize(path, dry_run=True)
    kept = replace(report, status="kept", measurement=replace(report.measurement, estimated_s=None))
    hint = "1 ConvInteger, slow on many runtimes, stayed: --allow-requantised tries a Conv in float32"
    assert hint in next_steps(kept)
    assert hint not in next_steps(replace(kept, options={**kept.options, "allow_requantised": True}))


@pytest.mark.parametrize("strategy", [BACK_TO_FLOAT, f"{BACK_TO_FLOAT}:form=space_to_axis"])
@pytest.mark.parametrize("fused", [True, False], ids=["QLinearConv", "ConvInteger"])
def test_elimination_leaves_no_dilation(tmp_path: Path, fused: bool, strategy: str) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(build(replace(GRID[0], **({} if fused else SUMS))), path)
    report = dilrewrite.optimize(path, output, eliminate=True, **{**ALLOWED, "strategy": strategy})
    (site,) = report.sites
    assert (report.exit_code, site.strategy, site.max_dilation_left) == (0, BACK_TO_FLOAT, 1)
    assert find(onnx.load(output)).sites == ()
    assert "Conv" in operators(onnx.load(output))


def test_what_cannot_go_back_stays(tmp_path: Path) -> None:
    """A Conv on real numbers, a scale that a caller gives, and a form that does not exist."""
    real = ConvGeometry(
        batch=1, in_channels=2, out_channels=2, group=1, extents=(9,), kernel=(3,), strides=(1,), dilations=(2,),
        pads_begin=(2,), pads_end=(2,),
    )  # fmt: skip
    refusal = plan(*parse(BACK_TO_FLOAT), real, 17)
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "a Conv in float32 computes on real numbers already"
    with pytest.raises(UsageError, match="form=nothing is not one of undilated, im2col"):
        parse(f"{BACK_TO_FLOAT}:form=nothing")
    model = build(GRID[0])
    model.graph.initializer.remove(next(tensor for tensor in model.graph.initializer if tensor.name == "ys"))
    model.graph.input.append(onnx.helper.make_tensor_value_info("ys", onnx.TensorProto.FLOAT, []))
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model, path)
    (site,) = dilrewrite.optimize(path, output, **ALLOWED).sites
    assert site.action == "kept"
    assert site.reason.startswith("back_to_float refuses: 'ys': computed, or a caller may replace it")
    assert BACK_TO_FLOAT not in strategies()


@pytest.mark.parametrize("where", ["scalars of one element", "IR 3", "branch", "function", "external data"])
def test_wherever_it_stands(tmp_path: Path, where: str) -> None:
    from tests.sites.test_integers import placed

    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    more: dict[str, Any] = {"save_as_external_data": True, "size_threshold": 0} if where == "external data" else {}
    onnx.save(placed(where), path, **more)
    report = dilrewrite.optimize(path, output, **ALLOWED)
    assert (report.exit_code, report.rewritten) == (0, 1)
    assert report.sites[0].proof is not None
    assert report.sites[0].proof.passed


@pytest.mark.parametrize("strategy", [BACK_TO_FLOAT, f"{BACK_TO_FLOAT}:form=slice_to_batch"])
@pytest.mark.parametrize("name", INTEGER_MUTANTS)
def test_mutants_write_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, strategy: str) -> None:
    """From the command line: exit code 3, and no model; without the mutant a model is written."""
    mutant, path, output = INTEGER_MUTANTS[name], tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(build(replace(GRID[0], **KINDS[mutant.kind])), path)
    given = ["optimize", str(path), "-o", str(output), "--strategy", strategy, "--allow-requantised", "--no-report"]
    given += ["--verify", "sites", "--budget", "0"]
    with mutant.enter():
        assert cli.main(given) == 3
    assert not output.exists()
    assert "back_to_float is wrong" in " ".join(capsys.readouterr().out.split())
    assert cli.main(given) == 0
