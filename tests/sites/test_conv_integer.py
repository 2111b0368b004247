"""An operator on integers is one file too: its types, and what its padding holds, come from the part that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Prover, outline
from dilrewrite.sites.find import find
from dilrewrite.splice.region import Region
from tests import models_for_tests as tiny
from tests.plug_ins import EXAMPLES, Example


@pytest.fixture(autouse=True)
def conv_integer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operator's file, where operators are looked for."""
    example, source = EXAMPLES["operator"], Path(__file__).with_name("conv_integer.py").read_text(encoding="utf-8")
    dropped = Example(example.folder, "conv_integer", example.constant, example.group, source)
    with dropped.dropped(tmp_path / "operators", monkeypatch):
        yield


def model(rank: int = 1, *, size: int = 14, zero: int | None = 3, pad: int = 2) -> ModelProto:
    """x -> ConvInteger -> y, uint8 to int32."""
    constants = {"w": np.round(tiny.values(2, 3, *[3] * rank) * 9).astype(np.int8)}
    constants |= {} if zero is None else {"z": np.array(zero, np.uint8)}
    attributes = {"dilations": [3] * rank, "pads": [pad] * rank + [1] * rank}
    return tiny.build(
        [helper.make_node("ConvInteger", ["x", *constants], ["y"], name="sums", **attributes)],
        {"x": [1, 3, *[size] * rank]},
        {"y": None},
        constants,
        types={"x": TensorProto.UINT8, "y": TensorProto.INT32},
    )


MODELS = {
    "1-D": model(),
    "2-D": model(rank=2, size=9),
    "no zero point": model(zero=None),
    "dead taps": model(size=4, pad=6),
}


def test_its_types_are_those_of_the_operator() -> None:
    (site,) = find(model()).sites
    assert (site.storage, site.geometry.element) == ("uint8", "int32")
    assert site.part.fill is not None
    assert site.part.fill.name == "z"


@pytest.mark.parametrize("name", MODELS)
def test_every_form_is_proved(name: str) -> None:
    source, (site,) = Source(MODELS[name]), find(MODELS[name]).sites
    planned = [plan(*form, site.geometry, site.opset, storage=site.storage) for form in strategies().items()]
    proofs = [Prover().prove(source, site, form) for form in planned if isinstance(form, Fragment)]
    proofs = [proof for proof in proofs if proof.ran]  # not every runtime has DepthToSpace of int32
    assert len(proofs) >= 4
    assert [proof.failure for proof in proofs if not proof.passed] == []
    assert all(proof.rounding is None for proof in proofs), "integers are not rounded"


def test_a_proof_holds_for_its_zero_point_alone() -> None:
    """What stays in the sub-model as it is decides what is asked."""
    models = [model(zero=3), model(zero=3), model(zero=0)]
    first, same, other = (outline(Source(proto), find(proto).sites[0]) for proto in models)
    assert first == same
    assert first != other


def test_no_dilation_is_left(tmp_path: Path) -> None:
    path, output = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(model(), path)
    report = dilrewrite.optimize(path, output, eliminate=True, budget=0)
    assert (report.status, report.exit_code, report.rewritten) == ("rewritten", 0, 1)
    assert report.verdict is not None
    assert report.verdict.passed
    assert find(onnx.load(output)).sites == ()
    assert "Conv" not in {node.op_type for node in onnx.load(output).graph.node}


def test_padding_with_another_value_is_not_proved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in front of the phases must be the zero point, and the proof says so."""
    monkeypatch.setattr(Region, "_fill_value", lambda _: "")
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy="space_to_batch", budget=0)
    assert report.exit_code == 3
    assert not (tmp_path / "out.onnx").exists()
