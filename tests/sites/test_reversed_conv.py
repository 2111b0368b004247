"""An operator is one new file, CONTRIBUTING's example: every form of its nodes is proved, spliced and verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx import ModelProto, helper

import dilrewrite
from dilrewrite.forms.strategies import strategies
from dilrewrite.sites.find import find
from tests import models_for_tests as tiny
from tests.plug_ins import EXAMPLES

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def reversed_conv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operator's file, where operators are looked for."""
    with EXAMPLES["operator"].dropped(tmp_path / "operators", monkeypatch):
        yield


def model(*, size: int | None = 14, rank: int = 1, pad: int = 2, **attributes: object) -> ModelProto:
    """x -> depthwise ConvTranspose -> Relu -> y."""
    attributes = {"group": 3, "dilations": [3] * rank, "pads": [pad] * rank + [0] * rank, **attributes}
    return tiny.build(
        [
            helper.make_node("ConvTranspose", ["x", "w", "b"], ["c"], name="up", **attributes),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        {"x": [1, 3, *[size or "n"] * rank]},
        {"y": None},
        {"w": tiny.values(3, 1, *[3] * rank), "b": tiny.values(3)},
    )


MODELS = {
    "1-D": model(),
    "2-D": model(rank=2, size=9),
    "dead taps": model(size=4, pad=6),
    "more pads than taps reach": model(pad=7),
    "an unknown size": model(size=None),
}


def test_without_the_file_it_is_the_packages_own() -> None:
    (site,) = find(model()).sites
    assert site.part.operator == "conv"


@pytest.mark.usefixtures("reversed_conv")
def test_is_read_as_a_conv() -> None:
    (site,) = find(model()).sites
    assert (site.geometry.pads_begin, site.geometry.pads_end, site.geometry.group) == ((4,), (6,), 3)
    assert site.geometry.explicit().out_extents == (18,)
    reasons = {
        "one channel per group": model(group=1),
        "with strides": model(strides=[2]),
        "auto_pad": model(auto_pad="SAME_UPPER"),
    }
    for words, proto in reasons.items():
        (skipped,) = find(proto).skipped
        assert words in skipped.reason


@pytest.mark.usefixtures("reversed_conv")
@pytest.mark.parametrize("name", ["1-D", "2-D", "dead taps"])
def test_every_form_is_verified(name: str, tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(MODELS[name], path)
    rewritten = []
    for strategy in strategies():
        report = dilrewrite.optimize(path, output, strategy=strategy, budget=0, force=True)
        if report.rewritten:
            rewritten.append(strategy)
            assert (report.status, report.exit_code) == ("rewritten", 0)
            assert report.verdict is not None
            assert report.verdict.passed
            assert {"ConvTranspose", "Pad", "Tile"} & {node.op_type for node in onnx.load(output).graph.node}
            assert "Conv" not in {node.op_type for node in onnx.load(output).graph.node}
    assert len(rewritten) >= 3


@pytest.mark.usefixtures("reversed_conv")
@pytest.mark.parametrize("name", MODELS)
def test_no_dilation_is_left(name: str, tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(MODELS[name], path)
    report = dilrewrite.optimize(path, output, eliminate=True, budget=0)
    assert (report.status, report.rewritten) == ("rewritten", 1)
    (site,) = report.sites
    assert site.proof is not None
    assert site.proof.passed
    assert site.proof.rounding is not None
    dilations = [a.ints for node in onnx.load(output).graph.node for a in node.attribute if a.name == "dilations"]
    assert all(set(ints) == {1} for ints in dilations)


@pytest.mark.usefixtures("reversed_conv")
def test_wrongly_written_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taps in the order of a Conv compute something else, and the proof says so."""
    from dilrewrite.sites.operators import operators

    operator = type(operators()["reversed_conv"])
    right = operator.write

    def wrong(self, part, core, operands):  # type: ignore[no-untyped-def]
        inputs, attributes = right(self, part, core, operands)
        return [inputs[0], operands.weight(), *inputs[2:]], attributes

    monkeypatch.setattr(operator, "write", wrong)
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="tap_sum", budget=0)
    assert report.exit_code == 3
    assert report.sites[0].proof is None or not report.sites[0].proof.passed
    assert not (tmp_path / "out.onnx").exists()
