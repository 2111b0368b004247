"""Ranks that follow from weights and operators, where shape inference knows nothing."""

from dataclasses import replace

import pytest
from onnx import ModelProto

from dilrewrite.model.shapes import infer_shapes
from dilrewrite.sites.chains import chain_of, parts_of
from dilrewrite.sites.ranks import spread_ranks
from dilrewrite.sites.scopes import Scope, scopes
from tests.random_chains import Net


def scope_of(model: ModelProto) -> Scope:
    return next(scopes(model, infer_shapes(model)))


@pytest.mark.parametrize("seed", range(40))
def test_ranks_from_the_weights_alone_are_those_of_shape_inference(seed: int) -> None:
    scope = scope_of(Net(seed).model(30, unknown=False))
    parts = parts_of(scope)
    chain = chain_of(scope, parts)
    shapes = {name: shape for name, shape in chain.shapes.items() if name in chain.constants}
    blind = {
        place: replace(part, geometry=replace(part.geometry, batch=None, extents=(None,)))
        for place, part in parts.items()
    }
    spread_ranks(chain.links, blind, shapes, chain.integers)
    for name, shape in shapes.items():
        assert len(shape) == len(chain.shapes[name]), name
        assert all(size in (None, true) for size, true in zip(shape, chain.shapes[name], strict=True)), name
    made = [name for link in chain.links for name in link.outputs]
    assert sum(name in shapes for name in made) > 0.4 * len(made)


def test_without_a_conv_nothing_follows() -> None:
    net = Net(0)
    net.live = {"x": (4, 20)}
    net.node("Relu", ["x"], 4, 20)
    chain = chain_of(scope_of(net.finished(["x"], unknown=False)), {})
    shapes: dict[str, tuple[int | None, ...]] = {}
    spread_ranks(chain.links, {}, shapes, {})
    assert shapes == {}
