"""Adds noise to a model where it was rewritten, which shows how far the model itself carries rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import Container, ScopePath, copied, rearrange, resolve
from dilrewrite.sites import Site
from dilrewrite.splice.names import Names


def disturb(proto: ModelProto, errors: Sequence[tuple[Site, float]], seed: int) -> ModelProto:
    """Return a copy of `proto` in which the sites of `errors` have noise added to their output.

    The noise is uniform, of the given share of the output's largest magnitude. It shows how far the model itself
    carries rounding of that size.
    """
    edited, names = copied(proto), Names(proto)
    containers = {site.scope: resolve(edited, site.scope) for site, _ in errors}
    orders: dict[ScopePath, list[int | None]] = {
        scope: [index << 20 for index in range(len(container.node))] for scope, container in containers.items()
    }
    make = onnx.helper.make_node
    noisy = [(site, error, *pair) for site, error in errors for pair in _makers(site, containers[site.scope])]
    for number, (site, error, index, output) in enumerate(noisy):
        container, kind = containers[site.scope], FLOATS[site.part.geometry.element]
        node = container.node[index]
        clean, *words = (
            names.make(f"{output}/{word}")
            for word in ("clean", "abs", "peak", "share", "scale", "wave", "typed", "noise")
        )
        node.output[list(node.output).index(output)] = clean
        size, peak, share, scale, wave, typed, noise = words
        value = TensorProto(data_type=kind.number, raw_data=np.array(error, kind.dtype).tobytes())
        fresh = [
            make("Constant", [], [share], value=value),
            make("Abs", [clean], [size]),
            make("ReduceMax", [size], [peak], keepdims=0),
            make("Mul", [peak, share], [scale]),
            make("RandomUniformLike", [clean], [wave], dtype=1, low=-1.0, high=1.0, seed=float(seed + number)),
            make("Cast", [wave], [typed], to=kind.number),
            make("Mul", [typed, scale], [noise]),
            make("Add", [clean, noise], [output]),
        ]
        container.node.extend(fresh)
        orders[site.scope] += [(index << 20) + place for place in range(1, len(fresh) + 1)]
    for scope, container in containers.items():
        rearrange(container.node, orders[scope])
    return edited


EXACT = """And ArgMax ArgMin Cast Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or QuantizeLinear Xor"""
"""Operators that make no real numbers."""


def _makers(site: Site, container: Container) -> Iterator[tuple[int, str]]:
    """Yield the real outputs of a site with the nodes that make them."""
    for index in site.nodes:
        node = container.node[index]
        if node.op_type not in EXACT.split():
            yield from ((index, name) for name in node.output if name in site.outputs)
