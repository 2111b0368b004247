"""A wrong form of a region computes something else on the model that is there to show it."""

import numpy as np
import pytest
from onnx import numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.regions import region_forms
from dilrewrite.sites.nests import nested
from dilrewrite.splice.rewrite import rewrite
from tests.mutants import NESTED_MUTANTS, REGION_MUTANTS
from tests.region_models import between, feeds, inside, same
from tests.sites.test_chains import regions, run


@pytest.mark.parametrize("name", REGION_MUTANTS)
def test_a_wrong_form_computes_something_else(name: str) -> None:
    mutant = REGION_MUTANTS[name]
    model = mutant.model()
    before = inside(model, mutant.form, mutant.block)
    assert len(before) == 1
    assert before[0].count("Conv") == 2
    assert same(model, mutant.form, mutant.block)
    with mutant.enter():
        assert inside(model, mutant.form, mutant.block) == before
        assert not same(model, mutant.form, mutant.block)
    assert same(model, mutant.form, mutant.block)


@pytest.mark.parametrize("mutant", ["mask_dropped", "mask_behind_the_conv", "phases_in_reverse", *NESTED_MUTANTS])
def test_nor_do_phases_of_phases(mutant: str) -> None:
    model = between("b = Exp (a)", shape=(2, 4, 9, 9), dilation=4)
    ((site, _),) = regions(model, "phase_region", (2, 2))
    twice = nested(site.meaning)
    assert twice is not None

    def right() -> bool:
        fragment = region_forms()["phase_region"].fragment(twice, site.opset)
        assert isinstance(fragment, Fragment)
        assert fragment.max_dilation == 1
        after = rewrite(model, [(site, fragment)], (), numpy_helper.to_array).proto
        return all(map(np.array_equal, run(model, feeds(model)), run(after, feeds(model))))

    assert right()
    with (REGION_MUTANTS | NESTED_MUTANTS)[mutant].enter():
        assert not right()
