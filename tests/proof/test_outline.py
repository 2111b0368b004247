"""Sites whose forms are proved alike share one proof; every single thing that changes what is run parts them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from dilrewrite.proof.carve import Source
from dilrewrite.proof.prove import outline
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from tests.models_for_tests import conv2d
from tests.proof.test_prove import sub_models
from tests.timing.test_neighbourhood import (
    CHAINED,
    CLIPPED,
    HALF,
    OTHER,
    ZEROS,
    as_constants,
    changed,
    described,
    inside,
    other_codes,
    other_names,
    other_values,
    qdq,
)

Edit = Callable[[ModelProto], None]


def taken(model: ModelProto) -> tuple[Source, Site]:
    """The one site of a model."""
    (site,) = find(model).sites
    return Source(model), site


def later_ir(model: ModelProto) -> None:
    """Nodes of this version carry metadata."""
    model.ir_version = 10


ACTIVATIONS = ("bound", "another activation")
"""What is told apart when timed, and proved as one: a proof puts an exact activation in their place."""

APART: dict[str, Edit] = {name: edit for name, edit in OTHER.items() if name not in ACTIVATIONS}
APART["IR version alone"] = later_ir

ALIKE: list[tuple[Callable[[], ModelProto], Edit]] = [
    (made, edit) for made in (CHAINED, CLIPPED) for edit in (other_values, other_names, as_constants, inside, described)
]


@pytest.mark.parametrize(("made", "edit"), [*ALIKE, *((CLIPPED, OTHER[name]) for name in ACTIVATIONS)])
def test_what_changes_nothing_is_no_part_of_the_key(made: Callable[[], ModelProto], edit: Edit) -> None:
    """Names, values, places and the kind of activation."""
    model = made()
    one, other = taken(model), taken(changed(model, edit))
    assert outline(*one) == outline(*other)
    assert sub_models(*one) == sub_models(*other), "the same is run"


@pytest.mark.parametrize("edit", [other_codes, other_names, as_constants, inside, described])
def test_what_changes_nothing_of_a_quantised_site(edit: Edit) -> None:
    model = qdq(ZEROS["int8"], ZEROS["uint8"])
    assert outline(*taken(changed(model, edit))) == outline(*taken(model))


@pytest.mark.parametrize("name", APART)
def test_any_other_change_makes_another_key(name: str) -> None:
    model = CLIPPED()
    assert outline(*taken(changed(model, APART[name]))) != outline(*taken(model))


def test_every_change_makes_a_key_of_its_own() -> None:
    """But that all weights from outside are one: what they are computed from is not proved."""
    model = CLIPPED()
    keys = {name: outline(*taken(changed(model, edit))) for name, edit in APART.items()}
    assert keys.pop("computed weights") == keys["weights that may be given"]
    assert len(set(keys.values())) == len(keys)


@pytest.mark.parametrize(
    "other",
    [
        lambda: conv2d(**HALF),
        lambda: conv2d(dtype=np.float64, element=TensorProto.DOUBLE),
        lambda: conv2d(size=13),
        lambda: conv2d(batch=2),
        lambda: conv2d(channels=4),
    ],
    ids=["float16", "float64", "size", "batch", "channels"],
)
def test_types_and_shapes_make_another_key(other: Callable[[], ModelProto]) -> None:
    assert outline(*taken(other())) != outline(*taken(conv2d()))


@pytest.mark.parametrize(("one", "other"), [("int8", "uint8"), ("int8", "none")])
def test_other_ways_of_storing_make_another_key(one: str, other: str) -> None:
    usual = outline(*taken(qdq(ZEROS[one], ZEROS[one])))
    assert outline(*taken(qdq(ZEROS[other], ZEROS[one]))) != usual
    assert outline(*taken(qdq(ZEROS[one], ZEROS[other]))) != usual
    assert outline(*taken(qdq(ZEROS[one], ZEROS[one], per_channel=False, weight_zero=False))) != usual
