"""Adds noise to a model where it was rewritten, which shows how far the model itself carries rounding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from dilrewrite.model.elements import FLOATS, NAMED
from dilrewrite.model.walk import Container, ScopePath, copied, rearrange, resolve
from dilrewrite.sites import Site
from dilrewrite.splice.names import Names

make = onnx.helper.make_node


def disturb(proto: ModelProto, errors: Sequence[tuple[Site, float]], seed: int) -> ModelProto:
    """Return a copy of `proto` in which the sites of `errors` have noise added to their output.

    The noise is uniform, of the given share of the output's largest magnitude. It shows how far the model itself
    carries rounding of that size. Of an operator on integers it is a whole number up to the error, of either sign.
    """
    edited, names = copied(proto), Names(proto)
    containers = {site.scope: resolve(edited, site.scope) for site, _ in errors}
    orders: dict[ScopePath, list[int | None]] = {
        scope: [index << 20 for index in range(len(container.node))] for scope, container in containers.items()
    }
    noisy = [(site, error, *pair) for site, error in errors for pair in _makers(site, containers[site.scope])]
    for number, (site, error, index, output) in enumerate(noisy):
        container = containers[site.scope]
        node = container.node[index]
        clean = names.make(f"{output}/clean")
        node.output[list(node.output).index(output)] = clean
        noise = _real_noise if site.part.geometry.element in FLOATS else _whole_noise
        fresh = noise(names, site, error, clean, output, seed + number)
        container.node.extend(fresh)
        orders[site.scope] += [(index << 20) + place for place in range(1, len(fresh) + 1)]
    for scope, container in containers.items():
        rearrange(container.node, orders[scope])
    return edited


def _real_noise(names: Names, site: Site, error: float, clean: str, output: str, seed: int) -> list[NodeProto]:
    """Return nodes that add noise of a share of the largest magnitude to real numbers."""
    kind = FLOATS[site.part.geometry.element]
    words = ("abs", "peak", "share", "scale", "wave", "typed", "noise")
    size, peak, share, scale, wave, typed, noise = (names.make(f"{output}/{word}") for word in words)
    value = TensorProto(data_type=kind.number, raw_data=np.array(error, kind.dtype).tobytes())
    return [
        make("Constant", [], [share], value=value),
        make("Abs", [clean], [size]),
        make("ReduceMax", [size], [peak], keepdims=0),
        make("Mul", [peak, share], [scale]),
        make("RandomUniformLike", [clean], [wave], dtype=1, low=-1.0, high=1.0, seed=float(seed)),
        make("Cast", [wave], [typed], to=kind.number),
        make("Mul", [typed, scale], [noise]),
        make("Add", [clean, noise], [output]),
    ]


def _whole_noise(names: Names, site: Site, error: float, clean: str, output: str, seed: int) -> list[NodeProto]:
    """Return nodes that add whole numbers up to `error` to integers, which stay in the range of their type."""
    kind = NAMED[site.part.geometry.element]
    words = ("wide", "wave", "whole", "moved", "low", "high", "above", "within")
    wide, wave, whole, moved, low, high, above, within = (names.make(f"{output}/{word}") for word in words)
    real, info = TensorProto.DOUBLE, np.iinfo(kind.dtype)
    ends = {
        name: numpy_helper.from_array(np.array(end, np.float64)) for name, end in ((low, info.min), (high, info.max))
    }
    return [
        *(make("Constant", [], [name], value=value) for name, value in ends.items()),
        make("Cast", [clean], [wide], to=real),
        make("RandomUniformLike", [wide], [wave], dtype=real, low=-error, high=error + 1, seed=float(seed)),
        make("Floor", [wave], [whole]),
        make("Add", [wide, whole], [moved]),
        make("Max", [moved, low], [above]),
        make("Min", [above, high], [within]),
        make("Cast", [within], [output], to=kind.number),
    ]


EXACT = """And ArgMax ArgMin Cast Equal Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual Not Or QuantizeLinear Xor"""
"""Operators that make no real numbers."""


def _makers(site: Site, container: Container) -> Iterator[tuple[int, str]]:
    """Yield the real outputs of a site with the nodes that make them."""
    for index in site.nodes:
        node = container.node[index]
        if node.op_type not in EXACT.split():
            yield from ((index, name) for name in node.output if name in site.outputs)
