"""A ConvTranspose as Convs, one for each phase of its outputs, and how these are joined (docs/maths.md)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dilrewrite.forms.builder import END, Builder, Cut, Extent, Tensor
from dilrewrite.forms.fragment import TakeTaps
from dilrewrite.forms.geometry import ConvGeometry, ceil_div, product
from dilrewrite.forms.layout import AxisLayout, Layout
from dilrewrite.forms.strategies import _phases

MOST_PHASES = 64
"""So many Convs are written for one ConvTranspose at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """The outputs r, r + s, r + 2s, ... of a ConvTranspose: the Conv that makes them, and the taps that it has.

    The taps are places in the turned kernel, `cuts` what its outputs are by their axes. Without a geometry no tap
    touches data: the outputs are the bias.
    """

    geometry: ConvGeometry | None
    taps: tuple[TakeTaps, ...] = ()
    cuts: Mapping[int, Cut] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis of such a Conv: its first tap, every which it takes, how many; its dilation, pads and outputs."""

    first: int
    step: int
    kernel: int
    dilation: int
    begin: int
    end: int
    cut: Cut


def output_phases(geometry: ConvGeometry) -> tuple[Phase, ...]:
    """Return the phases of the outputs of a ConvTranspose, those of the last axis in turn; at stride 1 there is one."""
    return tuple(_phase(geometry, numbers) for numbers in itertools.product(*map(range, geometry.spread)))


def _phase(geometry: ConvGeometry, numbers: Sequence[int]) -> Phase:
    axes = [found for axis, r in enumerate(numbers) if (found := _axis(geometry, axis, r)) is not None]
    if len(axes) < geometry.rank:
        return Phase(geometry=None)
    conv = replace(
        geometry,
        kernel=tuple(axis.kernel for axis in axes),
        strides=(1,) * geometry.rank,
        dilations=tuple(axis.dilation if axis.kernel > 1 else 1 for axis in axes),
        pads_begin=tuple(axis.begin for axis in axes),
        pads_end=tuple(axis.end for axis in axes),
        transposed=None,
    )
    taps = (
        TakeTaps(place, axis.first, k, axis.step)
        for place, (axis, k) in enumerate(zip(axes, geometry.kernel, strict=True))
        if axis.step > 1
    )
    return Phase(geometry=conv, taps=tuple(taps), cuts={place + 2: axis.cut for place, axis in enumerate(axes)})


def _axis(geometry: ConvGeometry, axis: int, r: int) -> _Axis | None:
    """Return phase r of one axis, `None` where none of its taps touches data."""
    s, d, k, extent = geometry.spread[axis], geometry.dilations[axis], geometry.kernel[axis], geometry.extents[axis]
    begin = geometry.static_pads[0][axis]
    grain = math.gcd(s, d)
    if (begin - r) % grain:
        return None
    step, dilation = s // grain, d // grain
    first = (begin - r) // grain * pow(dilation, -1, step) % step
    kernel = ceil_div(k - first, step)
    if kernel < 1:
        return None
    front = (begin - r - first * d) // s
    end = longer(geometry, axis) - front + dilation * (kernel - 1)
    if extent is not None and extent + min(front, 0) + min(end, 0) < 1:
        return None
    found = _Axis(first=first, step=step, kernel=kernel, dilation=dilation, begin=front, end=end, cut=Cut())
    if extent is None and _shortest(geometry, axis) == 1 and (front < 0 or end < 0):  # of an input of 1 nothing is left
        outputs = Cut(max(-front, 0), min(end, 0) or END)
        return replace(found, begin=max(front, 0), end=max(end, 0), cut=outputs)
    return found


def _shortest(geometry: ConvGeometry, axis: int) -> int:
    """Return the shortest extent from which an axis has an output."""
    begin, end = (pads[axis] for pads in geometry.static_pads)
    return 1 + max(0, ceil_div(geometry.span(axis) - 1 - begin - end, geometry.spread[axis]))


def longer(geometry: ConvGeometry, axis: int) -> int:
    """Return by how much ceil(Ho / s), the outputs in each phase of an axis, is above the extent of the input."""
    (begin, end), span = (pads[axis] for pads in geometry.static_pads), geometry.span(axis)
    return ceil_div(begin + end - span + 2, geometry.spread[axis]) - 1


def refusal(geometry: ConvGeometry) -> str | None:
    """Return why a ConvTranspose is not written as Convs, in a sentence with the numbers."""
    count = product(geometry.spread)
    if count > MOST_PHASES:
        return f"strides {geometry.spread} make {count} phases of outputs, above {MOST_PHASES}"
    convs = (phase.geometry for phase in output_phases(geometry) if phase.geometry is not None)
    for conv, axis in itertools.product(convs, geometry.unknown):
        crop, shortest = -sum(min(pads[axis], 0) for pads in conv.static_pads), _shortest(geometry, axis)
        if crop >= shortest:
            return f"spatial axis {axis}: its pads crop {crop} values, and an input of {shortest} is long enough"
    return None


def fill(builder: Builder, geometry: ConvGeometry) -> Tensor:
    """Add outputs of one phase that no tap reaches."""
    return builder.fill([builder.extent(builder.x, axis + 2) + longer(geometry, axis) for axis in geometry.axes])


def join(builder: Builder, geometry: ConvGeometry, made: Sequence[Tensor]) -> Tensor:
    """Put the outputs of all phases, each [N, O, *ceil(Ho / s)], in their places: [N, O, *Ho]."""
    if len(made) == 1:
        return made[0]
    layout = Layout(axes=tuple(AxisLayout(extent=None, samples=None, block=s) for s in geometry.spread))
    deep = builder.concat(made, 1)
    lengths = _phases.sizes(builder, deep, layout)
    if layout.square is not None and builder.has_depth_to_space:
        y = builder.depth_to_space(deep, layout.square)
    else:
        y = _phases.join_phases(builder, deep, layout, lengths, builder.extent(made[0], 1))
    cuts: dict[int, Cut] = {}
    for axis, s in enumerate(geometry.spread):
        begin, end = (pads[axis] for pads in geometry.static_pads)
        over = (geometry.span(axis) - 2 - begin - end) % s
        total: Extent | None = geometry.out_extent(axis)
        cuts[axis + 2] = Cut(0, total if total is not None else -over if over else END)
    return builder.slice(y, cuts)
