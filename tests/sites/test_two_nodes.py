"""A finder is one new file, CONTRIBUTING's example here: its sites of two nodes go the whole way to the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

import dilrewrite
from dilrewrite.errors import FailedError, UsageError
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.model.walk import ScopePath
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Prover
from dilrewrite.sites import finders
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests import models_for_tests as tiny
from tests.plug_ins import EXAMPLES

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def padded_conv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CONTRIBUTING's example, where finders are looked for."""
    with EXAMPLES["finder"].dropped(tmp_path / "finders", monkeypatch):
        assert "padded_conv" in finders.finders()
        yield


def model(*, size: int | None = 14) -> ModelProto:
    """x -> Pad -> dilated Conv -> Relu -> y."""
    return tiny.build(
        [
            helper.make_node("Pad", ["x", "pads"], ["wide"], name="pad"),
            helper.make_node("Conv", ["wide", "w", "b"], ["c"], name="conv", dilations=[3]),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        {"x": [1, 2, size or "n"]},
        {"y": [1, 4, size or "n"]},
        {"w": tiny.values(4, 2, 3), "b": tiny.values(4), "pads": np.array([0, 0, 4, 0, 0, 2])},
    )


@pytest.mark.usefixtures("padded_conv")
def test_is_found_with_its_boundary_and_meaning() -> None:
    alone, site = find(model()).sites
    assert (site.nodes, site.inputs, site.outputs, site.follow) == ((0, 1), ("x",), ("c",), (2,))
    assert (site.geometry.pads_begin, site.geometry.pads_end, site.geometry.extents) == ((4,), (2,), (14,))
    assert (alone.nodes, alone.geometry.pads_begin, alone.geometry.extents) == ((1,), (0,), (20,))
    assert (site.key, alone.key) == ("main/x:c", "main/c")


@pytest.mark.usefixtures("padded_conv")
@pytest.mark.parametrize("size", [14, None])
@pytest.mark.parametrize("budget_s", [0, 6], ids=["estimated", "timed"])
def test_goes_the_whole_way(size: int | None, budget_s: float, tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model(size=size), path)
    report = dilrewrite.optimize(
        path, output, eliminate=True, skip="main/conv$", budget=budget_s, report=tmp_path / "report", no_cache=True
    )
    assert (report.status, report.exit_code, report.rewritten) == ("rewritten", 0, 1)
    assert report.verdict is not None
    assert report.verdict.passed
    both = next(site for site in report.sites if site.name == "pad+conv")
    assert (both.key, both.geometry.pads_begin, both.max_dilation_left) == ("main/x:c", (4,), 1)
    assert both.proof is not None
    assert both.proof.passed
    assert both.proof.elements > 0
    if budget_s:
        assert any(form.timing for form in both.candidates), "its nodes were timed together"
        assert size is None or both.ran == ((1, 2, size),), "what enters, not what the Conv reads"
    after = onnx.load(output).graph
    assert "pad" not in {node.name for node in after.node}
    assert all(set(a.ints) == {1} for node in after.node for a in node.attribute if a.name == "dilations")
    assert not {"pads", "wide"} & {value.name for value in (*after.initializer, *after.value_info)}
    assert "pad+conv" in next((tmp_path / "report").glob("*.md")).read_text()


@pytest.mark.usefixtures("padded_conv")
def test_a_form_that_forgets_a_node_is_wrong() -> None:
    alone, site = find(model()).sites
    form = strategies()["space_to_batch"]
    right, wrong = (plan("space_to_batch", form, meaning, site.opset) for meaning in (site.meaning, alone.meaning))
    assert isinstance(right, Fragment)
    assert isinstance(wrong, Fragment)
    prover, source = Prover(), Source(model())
    assert prover.prove(source, site, right).passed
    assert not prover.prove(source, site, wrong).passed


def test_a_site_of_another_meaning_has_no_geometry() -> None:
    site = find(model()).sites[0]
    assert site.geometry == site.meaning
    with pytest.raises(FailedError, match=r"^main/c: a ConvGeometry is needed, its meaning is a str$"):
        _ = replace(site, meaning="a chain").geometry


@pytest.mark.usefixtures("padded_conv")
def test_a_site_and_a_member_of_it_are_refused_in_one_line(tmp_path: Path) -> None:
    proto, form = model(), strategies()["space_to_batch"]
    edits = []
    for site in find(proto).sites:
        fragment = plan("space_to_batch", form, site.meaning, site.opset)
        assert isinstance(fragment, Fragment)
        edits.append((site, fragment))
    member, both = (site.covers(fragment) for site, fragment in edits)
    assert both - member == {(ScopePath(), 0)}
    assert member < both
    line = "main: 'conv' and 'pad+conv' both cover the node 'conv'; rewrite one of them: leave the other with --skip"
    with pytest.raises(UsageError) as refused:
        rewrite(proto, edits, (), numpy_helper.to_array)
    assert str(refused.value) == line
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(proto, path)
    with pytest.raises(UsageError) as refused:
        dilrewrite.optimize(path, output, eliminate=True, budget=0)
    assert str(refused.value) == line.replace("--skip", "skip"), "as Python has it"
    assert not output.exists()
