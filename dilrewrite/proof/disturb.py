"""Adds noise to a model where it was rewritten, which shows how far the model itself carries rounding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import copied, rearrange, resolve
from dilrewrite.sites import Site
from dilrewrite.splice.names import Names


def disturb(proto: ModelProto, errors: Sequence[tuple[Site, float]], seed: int) -> ModelProto:
    """Return a copy of `proto` in which the sites of `errors` have noise added to their output.

    The noise is uniform, of the given share of the output's largest magnitude. It shows how far the model itself
    carries rounding of that size.
    """
    edited = copied(proto)
    names = Names(proto)
    containers = {site.scope: resolve(edited, site.scope) for site, _ in errors}
    for number, (site, error) in enumerate(errors):
        container = containers[site.scope]
        node = container.node[site.nodes[-1]]
        output = node.output[0]
        clean = names.make(f"{output}/clean")
        node.output[0] = clean
        word = {
            word: names.make(f"{output}/{word}") for word in ("abs", "peak", "share", "scale", "wave", "typed", "noise")
        }
        kind = FLOATS[site.geometry.element]
        share = TensorProto(data_type=kind.number, raw_data=np.array(error, kind.dtype).tobytes())
        make = onnx.helper.make_node
        fresh = [
            make("Constant", [], [word["share"]], value=share),
            make("Abs", [clean], [word["abs"]]),
            make("ReduceMax", [word["abs"]], [word["peak"]], keepdims=0),
            make("Mul", [word["peak"], word["share"]], [word["scale"]]),
            make("RandomUniformLike", [clean], [word["wave"]], dtype=1, low=-1.0, high=1.0, seed=float(seed + number)),
            make("Cast", [word["wave"]], [word["typed"]], to=kind.number),
            make("Mul", [word["typed"], word["scale"]], [word["noise"]]),
            make("Add", [clean, word["noise"]], [output]),
        ]
        container.node.extend(fresh)
    # the new nodes stand at the end of their lists; bring each behind its site
    for scope in containers:
        container = containers[scope]
        count = len(container.node) - 8 * sum(site.scope == scope for site, _ in errors)
        order: list[int | None] = [index << 20 for index in range(count)]
        for site, _ in errors:
            if site.scope == scope:
                order.extend((site.nodes[-1] << 20) + place for place in range(1, 9))
        rearrange(container.node, order)
    return edited
