"""Sizes to prove a site at: several lengths for what is unknown, smaller ones of the same kind for what is large."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

from dilrewrite.forms.geometry import ConvGeometry, ceil_div, product
from dilrewrite.forms.transposed import output_phases

LIMIT_ELEMENTS = 2**26
"""Up to so many elements times taps of the kernel a site is proved at its own size, above at a smaller one.

Elements are those of the input or the output, whichever has more; a form that copies the input for every tap holds so
many numbers.
"""

FEW = 2
"""Images, groups, and channels in a group that a smaller size keeps at least, where there are as many."""


def sample_extents(geometry: ConvGeometry) -> tuple[tuple[int, ...], ...]:
    """Return concrete extents to prove at: the given ones, and for unknown axes several lengths.

    Unknown axes take the smallest length the Conv accepts, one that the phases divide, one that they do not, and one
    below the dilation where the pads allow it.
    """
    choices: list[list[int]] = []
    for axis, known in enumerate(geometry.extents):
        if known is not None:
            choices.append([known])
            continue
        begin, end = geometry.pads_begin[axis] or 0, geometry.pads_end[axis] or 0
        fitting = 1 + ceil_div(geometry.span(axis) - 1 - begin - end, geometry.spread[axis])
        crop = 0 if geometry.transposed is not None else -min(begin, 0) - min(end, 0)
        smallest = max(1, fitting, 1 + crop)
        if geometry.auto_pad.startswith("SAME"):
            smallest = 1
        step = math.lcm(geometry.strides[axis], geometry.dilations[axis])
        even = max(-(-(smallest + 1) // step), 2) * step
        choices.append([even, even + step - 1 + (step == 1), smallest, max(smallest, geometry.dilations[axis] - 1)])
    found = [tuple(some[i % len(some)] for some in choices) for i in range(max(map(len, choices)))]
    open_axes = geometry.unknown
    if len(open_axes) < 2:
        return tuple(dict.fromkeys(found))
    found.append(tuple(some[(axis + 1) % len(some)] for axis, some in enumerate(choices)))  # each of another kind
    bounded: list[tuple[int, ...]] = []
    for extents in found:
        if footprint(concrete(geometry, extents)) <= LIMIT_ELEMENTS:
            bounded.append(extents)
            continue
        for axis in open_axes:  # too large together: one axis after the other takes its length, the others are short
            short = {other: min(choices[other]) for other in open_axes if other != axis}
            bounded.append(tuple(short.get(other, extent) for other, extent in enumerate(extents)))
    return tuple(dict.fromkeys(bounded))


def concrete(geometry: ConvGeometry, extents: tuple[int, ...]) -> ConvGeometry:
    """Return the geometry with these extents, and small numbers for what else is unknown."""
    return replace(
        geometry,
        batch=2 if geometry.batch is None else geometry.batch,
        in_channels=geometry.in_channels or 2 * geometry.group,
        out_channels=geometry.out_channels or 2 * geometry.group,
        extents=extents,
    )


def input_shape(geometry: ConvGeometry) -> tuple[int, ...]:
    """Return the input's shape of a geometry in which everything is known."""
    shape = (geometry.batch, geometry.in_channels, *geometry.extents)
    return tuple(size for size in shape if size is not None)


def footprint(geometry: ConvGeometry) -> int:
    """Return taps (at least 4) times elements of the input or output, of a geometry in which everything is known."""
    outs = tuple(out for out in geometry.explicit().out_extents if out is not None)
    outputs = (geometry.batch or 1) * (geometry.out_channels or 1) * product(outs)
    return max(product(geometry.kernel), 4) * max(product(input_shape(geometry)), outputs)


def smaller(geometry: ConvGeometry, limit: int | None = None) -> ConvGeometry:
    """Return the geometry to prove at: the given one, or where that is too large a smaller one of the same structure.

    First there are fewer images, then shorter extents: by whole multiples of lcm(stride, dilation), so that every
    remainder stays, and only as far as each tap begins and ends to touch data in the same order. If that is not enough,
    there are fewer channels and groups. What is unknown stays unknown. `limit`: of taps times elements,
    `LIMIT_ELEMENTS` where none is given.
    """
    most = LIMIT_ELEMENTS if limit is None else limit

    def too_large() -> bool:
        return any(footprint(concrete(geometry, e)) > most for e in sample_extents(geometry))

    if too_large() and geometry.batch is not None:
        geometry = replace(geometry, batch=min(geometry.batch, FEW))
    while too_large():
        shorter = [other for axis in geometry.axes if (other := _shorter(geometry, axis)) is not None]
        if not shorter:
            break
        geometry = min(shorter, key=lambda other: sorted((extent or 0 for extent in other.extents), reverse=True))
    if too_large():
        group, given = min(geometry.group, FEW), (geometry.in_channels, geometry.out_channels)
        ins, outs = (None if count is None else group * min(count // geometry.group, FEW) for count in given)
        geometry = replace(geometry, group=group, in_channels=ins, out_channels=outs)
    return geometry


def _shorter(geometry: ConvGeometry, axis: int) -> ConvGeometry | None:
    """Return the geometry with a shorter extent of the same kind on one axis, `None` where there is none."""
    extent = geometry.extents[axis]
    if extent is None:
        return None
    step = math.lcm(geometry.strides[axis], geometry.dilations[axis])
    for cut in (max(1, extent // step // 8) * step, step):
        extents = tuple(e if other != axis else extent - cut for other, e in enumerate(geometry.extents))
        other = replace(geometry, extents=extents)
        if extent > cut and _order(other, axis) == _order(geometry, axis):
            return other
    return None


def _order(geometry: ConvGeometry, axis: int) -> tuple[int, ...]:
    """Return how the places compare where taps begin and end to touch data, and that every phase has outputs."""
    if geometry.transposed is not None:
        convs = (phase.geometry for phase in output_phases(geometry) if phase.geometry is not None)
        return tuple(itertools.chain(*(_order(conv, axis) for conv in convs)))
    explicit = geometry.explicit()
    taps, out = explicit.taps(axis), explicit.out_extent(axis)
    assert taps is not None, "known"
    assert out is not None
    phases = explicit.dilations[axis] // math.gcd(explicit.strides[axis], explicit.dilations[axis])
    pairs = [(hi, lo) for hi in (*taps.hi, out) for lo in (*taps.lo, 0)]
    return *((hi > lo) - (hi < lo) for hi, lo in pairs), min(out // phases, 2)
