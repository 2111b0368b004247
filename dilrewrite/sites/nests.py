"""Which links of a region in phases are split into phases again, for the dilations that its block leaves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from dilrewrite.forms import grid
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.grid import Grid
from dilrewrite.sites.cut import OUTSIDE, Flow, inside

MOST_LAYERS = 4
"""So often is a chain split again."""

UNKNOWN = 64
"""An estimate for the cut: the samples of an axis of unknown extent."""


def nested(chain: Chain) -> Chain | None:
    """Return a chain of phases with the links that are split again, None where its block leaves no dilation.

    Each time it is by what the dilations that are left have in common, or else by the one of most Convs, and around the
    Convs that are dilated still by the cut that moves least.
    """
    if not any(leaves(geometry, chain.block) for geometry in chain.convs.values()):
        return None
    nests: list[tuple[tuple[int, ...], frozenset[int]]] = []
    places = frozenset(range(len(chain.links)))
    inner = grid.within(chain, grid.spread(chain, chain.block))
    while len(nests) < MOST_LAYERS:
        inner = _only(inner, places)
        block = _block(inner)
        laid = grid.spread(inner, block) if block else None
        places = _cut(inner, laid) if laid is not None else frozenset()
        if laid is None or not places:
            break
        nests.append((block, places))
        inner = grid.within(inner, laid)
    return replace(chain, nests=tuple(nests)) if nests else None


def leaves(geometry: ConvGeometry, block: tuple[int, ...]) -> bool:
    """Say whether a Conv is dilated still where a block splits its input into phases."""
    return any(k > 1 and d > b for k, d, b in zip(geometry.kernel, geometry.dilations, block, strict=True))


def _only(chain: Chain, places: Collection[int]) -> Chain:
    links = tuple(link if place in places else replace(link, op="") for place, link in enumerate(chain.links))
    return replace(chain, links=links, convs={place: each for place, each in chain.convs.items() if place in places})


def _block(chain: Chain) -> tuple[int, ...]:
    left = Counter(
        tuple(d if k > 1 else 1 for k, d in zip(geometry.kernel, geometry.dilations, strict=True))
        for geometry in chain.convs.values()
        if geometry.dilated
    )
    if not left:
        return ()
    shared = tuple(math.gcd(*axis) for axis in zip(*left, strict=True))
    return shared if max(shared) > 1 else max(left, key=lambda block: (left[block], block))


def _cut(chain: Chain, laid: Grid) -> frozenset[int]:
    """Return the links that are split again."""
    makers = {name: place for place, link in enumerate(chain.links) for name in link.outputs}
    readers: dict[str, list[int]] = {name: [] for name in laid.axes}
    for place, (link, phased) in enumerate(zip(chain.links, laid.links, strict=True)):
        for number, name in enumerate(link.inputs):
            if name in readers:
                within = phased is not None and phased.inputs[number] is not None
                readers[name].append(place if within else OUTSIDE)
    flows = []
    for name, places in readers.items():
        sizes = [size if size is not None else UNKNOWN for size in chain.shapes[name][1:]]
        ends = (*places, OUTSIDE) if name in chain.outputs else tuple(places)
        flows.append(Flow(makers.get(name, OUTSIDE), ends, math.prod(sizes)))
    allowed = {place for place, phased in enumerate(laid.links) if phased is not None}
    wanted = {place for place in allowed if place in chain.convs and chain.convs[place].dilated}
    return inside(flows, wanted, allowed) if wanted else frozenset()
