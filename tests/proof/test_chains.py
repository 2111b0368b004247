"""Proofs of regions: right forms pass, wrong ones fail, and what cannot be told is said."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.regions import region_forms
from dilrewrite.forms.strategies import Refusal
from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import Prover
from dilrewrite.sites import Site
from dilrewrite.sites.find import find

MODELS = Path(__file__).parents[2] / "models"
Seen = Sequence[Mapping[str, Any]]


def forms(model: ModelProto) -> list[tuple[Site, Fragment]]:
    """Return the regions of a model, each with its fragment."""
    found = []
    for site in find(model, regions=True).regions:
        name = "phase_region" if getattr(site.meaning, "block", ()) else "lift_region"
        fragment = region_forms()[name].fragment(site.meaning, site.opset)  # type: ignore[arg-type]
        if not isinstance(fragment, Refusal):
            found.append((site, fragment))
    return found


@pytest.mark.parametrize(
    ("name", "regions"),
    [("causal_tcn", 1), ("hifigan_vocoder", 1), ("splice_sites", 1), ("aspp_segmentation", 2), ("meshnet3d", 2)],
)
def test_right_forms_are_proved(name: str, regions: int) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    source, prover = Source(model), Prover()
    proofs = [prover.prove(source, site, fragment) for site, fragment in forms(model)]
    assert len(proofs) >= regions
    assert [proof.failure for proof in proofs] == [None] * len(proofs)
    assert all(proof.elements > 500 and proof.rounding is not None for proof in proofs)
