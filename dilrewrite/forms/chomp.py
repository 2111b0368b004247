"""The chomp: a Slice that cuts no more samples than the Conv before it has by its padding goes into the Conv's pads.

Causal Convs are often exported so: d (k - 1) zeros on both sides, then the end cut off. A Conv with smaller pads makes
those samples and no others, and in phases it needs no mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.lift import integers

FAR = 2**31 - 1
"""An end of a Slice that is as far is the end of the axis."""

Cuts = tuple[tuple[int, int], ...]
"""How many samples go at the begin and at the end of each spatial axis."""


def chomped(chain: Chain, readers: Mapping[int, int]) -> Chain:
    """Return the chain with the cuts of Slices in the pads of the Convs before them; the Slices are `gone`.

    `readers`: of Convs whose output is read once, the place of that reader.
    """
    links, convs, shapes, gone = list(chain.links), dict(chain.convs), dict(chain.shapes), set(chain.gone)
    for place, reader in readers.items():
        link, geometry = links[reader], convs[place]
        cuts = _cuts(link, chain, geometry) if link.op == "Slice" else None
        smaller = _smaller(geometry, cuts) if cuts is not None else None
        if smaller is None:
            continue
        source = link.inputs[0]
        convs[place] = smaller
        links[reader] = Link(op="Identity", inputs=(source,), outputs=link.outputs, attributes={})
        gone.add(reader)
        if source in shapes:
            shapes[source] = (*shapes[source][:2], *smaller.out_extents)
    return replace(chain, links=tuple(links), convs=convs, shapes=shapes, gone=frozenset(gone))


def _cuts(link: Link, chain: Chain, geometry: ConvGeometry) -> Cuts | None:
    """Return what a Slice cuts; None where it does something else, or that is not known."""
    given = [integers(link, chain, name, place) for place, name in enumerate(("starts", "ends", "axes", "steps"), 1)]
    left_out = [values is None and not any(link.inputs[place : place + 1]) for place, values in enumerate(given, 1)]
    starts, ends, axes, steps = given
    if starts is None or ends is None or not all(left_out[place] or given[place] is not None for place in (2, 3)):
        return None
    cuts = [(0, 0)] * geometry.rank
    axes = axes if axes is not None else tuple(range(len(starts)))
    for start, end, axis, step in zip(starts, ends, axes, steps or (1,) * len(starts), strict=True):
        place = axis % (geometry.rank + 2) - 2
        cut = _cut(start, end, geometry.out_extent(place)) if place >= 0 and step == 1 else None
        if cut is None:
            return None
        cuts[place] = cut
    return tuple(cuts)


def _cut(start: int, end: int, size: int | None) -> tuple[int, int] | None:
    if size is not None:
        first, last, _ = slice(start, end).indices(size)
        return (first, size - last) if first < last else None
    if start < 0 or 0 <= end < FAR:
        return None
    return start, -end if end < 0 else 0


def _smaller(geometry: ConvGeometry, cuts: Cuts) -> ConvGeometry | None:
    """Return the Conv without those samples, where its pads allow that, and every input has others."""
    sides = []
    for side, pads in enumerate((geometry.pads_begin, geometry.pads_end)):
        pairs = zip(pads, geometry.strides, cuts, strict=True)
        sides.append(tuple(-1 if pad is None else pad - stride * cut[side] for pad, stride, cut in pairs))
    short = any(
        geometry.extents[axis] is None and sides[0][axis] + sides[1][axis] < geometry.span(axis) - 1
        for axis in geometry.axes
    )
    if short or min(map(min, sides)) < 0:
        return None
    return replace(geometry, pads_begin=sides[0], pads_end=sides[1])
