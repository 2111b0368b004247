"""A wrong form of a region fails its proof, on the model that is there to show it."""

import pytest
from onnx import ModelProto

from dilrewrite.proof.carve import Source
from dilrewrite.proof.proof import Proof
from dilrewrite.proof.prove import Prover
from tests.mutants import REGION_MUTANTS
from tests.sites.test_chains import regions


def proof(model: ModelProto, form: str, block: tuple[int, ...]) -> Proof:
    ((site, fragment),) = regions(model, form, block)
    return Prover().prove(Source(model), site, fragment)


@pytest.mark.parametrize("name", REGION_MUTANTS)
def test_a_wrong_form_is_not_proved(name: str) -> None:
    mutant = REGION_MUTANTS[name]
    model = mutant.model()
    assert proof(model, mutant.form, mutant.block).failure is None
    with mutant.enter():
        found = proof(model, mutant.form, mutant.block)
    assert found.wrong
