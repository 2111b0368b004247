"""CONTRIBUTING's examples: a form of regions is one new file, an operator one more row; both go the whole way."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

import dilrewrite
from dilrewrite.forms import grid
from dilrewrite.forms.regions import region_forms
from dilrewrite.forms.strategies import Refusal
from tests.plug_ins import EXAMPLES, PAGE
from tests.region_models import between, inside, same, whole
from tests.sites.test_chains import regions

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def same_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CONTRIBUTING's example, where forms are looked for."""
    with EXAMPLES["region form"].dropped(tmp_path / "regions", monkeypatch):
        yield


@pytest.mark.usefixtures("same_region")
def test_is_a_form_of_every_region() -> None:
    assert [*region_forms()] == ["lift_region", "phase_region", "same_region"]
    for middle in ("b = Relu (a)", "c = Exp (a) b = Add (a, c)"):
        assert same(between(middle), "same_region")
    ((site, _),) = regions(between("b = Relu (a)"), "same_region", ())
    few = type(region_forms()["same_region"])(most=2)  # type: ignore[call-arg]
    assert few.fragment(site.meaning, site.opset) == Refusal("same_region", "3 operators are above most=2")


@pytest.mark.usefixtures("same_region")
@pytest.mark.parametrize("setting", ["", ":most=9"])
def test_goes_the_whole_way_to_the_report(setting: str, tmp_path: Path) -> None:
    onnx.save(between("b = Relu (a)"), tmp_path / "m.onnx")
    report = dilrewrite.optimize(
        tmp_path / "m.onnx", tmp_path / "out.onnx", strategy=f"same_region{setting}", budget=0, report=tmp_path / "r"
    )
    assert report.status == "rewritten"
    (taken,) = (region for region in report.regions if region.action == "rewritten")
    assert (taken.strategy, taken.max_dilation_left, len(taken.nodes)) == ("same_region", 2, 3)
    assert taken.proof is not None
    assert taken.proof.passed
    written = json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8"))
    assert {site["region"] for site in written["sites"]} == {taken.key}


def test_a_row_puts_an_operator_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = re.findall(r"^```text\n(\".*)\n```$", PAGE, re.MULTILINE)
    ((op, row),) = eval(f"{{{line}}}", dict(vars(grid))).items()
    model = between(f"b = {op} <fmod = 1> (a, c)", {"c": whole(4, 1) + 5})
    assert op not in grid.ROWS
    before = inside(model, "phase_region", (2,))
    monkeypatch.setitem(grid.ROWS, op, row)  # type: ignore[arg-type]
    (after,) = inside(model, "phase_region", (2,))
    assert op in after
    assert (after,) != tuple(before)
    assert same(model, "phase_region", (2,))
