"""Dilated poolings: their geometry, and the form that leaves none of the dilation, one pooling for each phase."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass, replace
from typing import ClassVar, final

from dilrewrite.forms.builder import END, Builder, Cut, Extent, Tensor
from dilrewrite.forms.geometry import ConvGeometry, Limit, Window, ceil_div, product
from dilrewrite.forms.layout import AxisLayout, Layout
from dilrewrite.forms.strategies import Strategy, _phases

MOST_BLIND = 4096
"""Up to so large a dilation unknown extents are looked through for a window without data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolGeometry(ConvGeometry):
    """A pooling: a window over each channel. In the place of weights it has what is made of the values in the window.

    Source: ONNX operator specification, MaxPool 10 to 22, AveragePool 19 and 22, LpPool 18 and 22.
    """

    kind: str = "max"
    """`max`, `mean` or `norm`."""
    include_pad: bool = False
    """Whether a mean counts the padding (count_include_pad)."""
    power: int = 2
    """The p of a norm."""
    ceil: bool = False
    """Whether the last window may go beyond the padding (ceil_mode), as long as it begins in front of that."""

    @property
    def op(self) -> str:
        """Return the operator's name in ONNX."""
        return {"max": "MaxPool", "mean": "AveragePool", "norm": "LpPool"}[self.kind]

    def out_extent(self, axis: int) -> int | None:
        """Return Ho, as ONNX Runtime counts it: with `ceil` no window begins in the padding at the end."""
        padded, begin, extent = self.padded(axis), self.pads_begin[axis], self.extents[axis]
        if padded is None or begin is None or extent is None:
            return None
        stride = self.strides[axis]
        outs = (padded - self.span(axis)) // stride + 1
        if not self.ceil:
            return outs
        return min(ceil_div(padded - self.span(axis), stride) + 1, (extent + begin - 1) // stride + 1)

    def blind(self, axis: int) -> bool:
        """Say whether some window of a known extent sees nothing but padding."""
        taps, out = self.taps(axis), self.out_extent(axis)
        assert taps is not None, "the extent is known"
        assert out is not None
        seen = 0
        for first, after in sorted(zip(taps.lo, taps.hi, strict=True)):
            if first < after and first <= seen:
                seen = max(seen, after)
        return seen < out

    def smallest(self, axis: int) -> int:
        """Return the smallest extent that holds the window."""
        begin, end = self.static_pads
        return max(1, self.span(axis) - begin[axis] - end[axis])

    def ever_blind(self, axis: int) -> int | None:
        """Return an extent, the one that it has if that is known, at which a window sees nothing but padding."""
        begin, end = self.static_pads
        reach, known = self.span(axis) - 1, self.extents[axis]
        if known is None and max(begin[axis], end[axis]) > reach:
            return self.smallest(axis)
        extents = range(self.smallest(axis), self.dilations[axis]) if known is None else (known,)
        sized = ((extent, self._with(axis, extent)) for extent in extents)
        return next((extent for extent, geometry in sized if geometry.blind(axis)), None)

    def _with(self, axis: int, extent: int) -> PoolGeometry:
        return replace(self, extents=tuple(extent if at == axis else own for at, own in enumerate(self.extents)))


@final
@dataclass(frozen=True, slots=True)
class KeepPool(Strategy):
    """The pooling as it is."""

    takes: ClassVar[tuple[type, ...]] = (PoolGeometry,)
    prunes: ClassVar[bool] = False

    def refusal(self, geometry: ConvGeometry) -> str | None:  # noqa: ARG002
        """Never refuse."""
        return None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the pooling."""
        return builder.plain_conv(geometry)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One phase of an axis: the samples `start`, `start + step`, .., and the padding of the pooling around them.

    `empty`: there is none, so it gets one. `far`: how many cells it gets at its end in place of padding, of which its
    own outputs need more than a pooling takes. `short`: how many outputs it lacks of those that every phase is to have,
    below 0 how many it has too many; `None`: that depends on the extent.
    """

    start: int
    begin: int
    end: int
    empty: bool = False
    far: int = 0
    short: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """The phases of an axis: samples `step` apart, `outs` outputs in all, `each` in a phase; `None`: as they come."""

    step: int
    outs: Extent | None
    each: Extent | None
    window: tuple[int, int, int]
    parts: tuple[_Part, ...]

    @property
    def open(self) -> bool:
        """Say whether it depends on an unknown extent how many outputs a phase makes."""
        return any(part.short is None for part in self.parts)


@final
@dataclass(frozen=True, slots=True)
class PhasePools(Strategy):
    """A strided Slice and a pooling for each phase, joined again (docs/maths.md, family 1).

    `max_dilation`: dilations up to it may remain. Refuses above `limit_nodes` poolings.
    """

    takes: ClassVar[tuple[type, ...]] = (PoolGeometry,)
    prunes: ClassVar[bool] = False

    max_dilation: Limit = 1
    limit_nodes: int = 256

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Refuse very many phases, and windows of which it is not said what they hold."""
        assert isinstance(geometry, PoolGeometry)
        blocks = tuple(geometry.phases(axis, self.max_dilation).block for axis in geometry.axes)
        if product(blocks) > self.limit_nodes:
            return f"{product(blocks)} phases need as many poolings, above limit_nodes={self.limit_nodes}"
        reasons = ((axis, self._of_axis(geometry, axis, self.max_dilation)) for axis in geometry.axes)
        return next((f"spatial axis {axis}: {reason}" for axis, reason in reasons if reason), None)

    @staticmethod
    def _of_axis(geometry: PoolGeometry, axis: int, limit: Limit) -> str | None:
        known, stride = geometry.extents[axis] is not None, geometry.strides[axis]
        if not known and geometry.dilations[axis] > MOST_BLIND:
            return f"the extent is not known, and dilation {geometry.dilations[axis]} is above {MOST_BLIND}"
        blind = geometry.ever_blind(axis)
        if blind is not None:
            return f"at an extent of {blind} a window sees nothing but padding"
        if geometry.kind != "mean" or stride == 1:
            return None
        if not known:
            smallest = geometry.smallest(axis)
            return f"stride {stride}: at extents below {smallest} ONNX Runtime takes the mean of a part of the window"
        if geometry.out_extent(axis) == replace(geometry, ceil=False).out_extent(axis):
            return None
        if geometry.include_pad:
            return "count_include_pad=1 and ceil_mode=1: the last window goes beyond the padding, and counts less"
        far = any(part.far for part in _known_parts(geometry, axis, limit))
        return "ceil_mode=1: the last window goes further beyond the padding than a pooling takes" if far else None

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit Slices, poolings, Concat, and the way back."""
        assert isinstance(geometry, PoolGeometry)
        builder.fills = geometry.kind == "max"
        axes = [_axis(builder, geometry, axis, self.max_dilation) for axis in geometry.axes]
        x = _long_enough(builder, geometry, axes)
        every = [_pool(builder, x, axes, parts) for parts in itertools.product(*(axis.parts for axis in axes))]
        y = builder.concat(every, 0)
        leave = Layout(
            axes=tuple(
                AxisLayout(extent=axis.outs, samples=axis.each, block=len(axis.parts), back=None, zeros=False)
                for axis in axes
            )
        )
        if leave.blocks:
            lengths = _phases.sizes(builder, y, leave)
            y = _phases.join_phases(builder, y, leave, lengths, builder.extent(y, 1), batch_last=True)
        ends = ((place + 2, axis.outs) for place, axis in enumerate(axes) if axis.open)
        return builder.slice(y, {place: Cut(0, outs) for place, outs in ends if outs is not None})


def _first(place: int, step: int) -> tuple[int, int]:
    """Return the first sample of a phase whose first window begins at `place`, and the padding in front of it."""
    return (place % step, -(place // step)) if place < 0 else (place, 0)


def _axis(builder: Builder, geometry: PoolGeometry, axis: int, limit: Limit) -> _Axis:
    """Return how an axis is split. Phase r, sample j is x[start + j * step]; each pads as the pooling does."""
    phases, (begins, ends) = geometry.phases(axis, limit), geometry.static_pads
    k, s, step = geometry.kernel[axis], geometry.strides[axis], phases.grain * phases.block
    firsts = [_first(r * s - begins[axis], step) for r in range(phases.block)]
    outs = geometry.out_extent(axis)
    window = (k, phases.stride, phases.dilation)
    if outs is not None:
        known = _known_parts(geometry, axis, limit)
        return _Axis(step=step, outs=outs, each=ceil_div(outs, phases.block), window=window, parts=known)
    if step == 1 and not (geometry.ceil and s > 1):  # it stays as it is
        part = _Part(start=0, begin=begins[axis], end=ends[axis], short=0)
        return _Axis(step=1, outs=None, each=None, window=window, parts=(part,))
    end = ceil_div(ends[axis], step) if geometry.kind == "mean" else 0
    many = _outs(builder, geometry, axis)
    per_phase = builder.positive((many + (phases.block - 1)) // phases.block - 1) + 1  # none has no output at all
    parts = [_Part(start=start, begin=begin, end=end) for start, begin in firsts]
    return _Axis(step=step, outs=many, each=per_phase, window=window, parts=tuple(parts))


def _known_parts(geometry: PoolGeometry, axis: int, limit: Limit) -> tuple[_Part, ...]:
    """Return the phases of a known extent, so padded that each has as many outputs, if a pooling takes that padding."""
    phases, outs, extent = geometry.phases(axis, limit), geometry.out_extent(axis), geometry.extents[axis]
    assert outs is not None
    assert extent is not None
    step, most, parts = phases.grain * phases.block, geometry.kernel[axis] - 1, list[_Part]()
    for r in range(phases.block):
        start, begin = _first(r * geometry.strides[axis] - geometry.static_pads[0][axis], step)
        samples = max(0, ceil_div(extent - start, step))
        room = max(samples, 1) + begin - phases.dilation * most - 1
        own, every = (ceil_div(outs - skipped, phases.block) for skipped in (r, 0))
        far = max(0, (own - 1) * phases.stride - room - most)
        end = min(max(0, (every - 1) * phases.stride - room - far), most)
        made = (room + far + end) // phases.stride + 1
        parts.append(_Part(start=start, begin=begin, end=end, empty=not samples, far=far, short=every - made))
    return tuple(parts)


def _long_enough(builder: Builder, geometry: PoolGeometry, axes: list[_Axis]) -> Tensor:
    """Pad axes of unknown extents at their ends.

    For a maximum or a norm, so far that every phase has all outputs, with what changes neither. For a mean, up to an
    extent with an output and a sample in every phase: no output that counts sees these cells.
    """
    sides: dict[int, tuple[Extent, Extent]] = {}
    for place, axis in enumerate(axes):
        if not axis.open:
            continue
        if geometry.kind == "mean":
            least = max(geometry.smallest(place), axis.step)
            sides[place + 2] = (0, builder.positive(least - builder.extent(builder.x, place + 2)))
        else:
            sides[place + 2] = (0, geometry.span(place) + len(axis.parts) * geometry.strides[place])
    bounded = {place: (front, builder.bounded(back, 2**30)) for place, (front, back) in sides.items()}
    return builder.pad(builder.x, bounded)


def _outs(builder: Builder, geometry: PoolGeometry, axis: int) -> Extent:
    """Return the outputs of an unknown extent as ONNX Runtime counts them, which rounds towards 0."""
    begin, end = (pads[axis] for pads in geometry.static_pads)
    s, cells = geometry.strides[axis], builder.extent(builder.x, axis + 2)
    room = begin + end - geometry.span(axis)
    if not geometry.ceil or s == 1:
        return (cells + room) // s + 1
    outs = (cells + (room + 2 * s - 1)) // s
    return outs - builder.positive(outs - (cells + (begin - 1 + s)) // s)


def _pool(builder: Builder, x: Tensor, axes: list[_Axis], parts: tuple[_Part, ...]) -> Tensor:
    """Cut out a phase of all axes and pool it, to as many outputs as every phase has."""
    paired = list(zip(range(2, len(axes) + 2), axes, parts, strict=True))
    x = builder.slice(x, {place: Cut(part.start, END, axis.step) for place, axis, part in paired if axis.step > 1})
    x = builder.pad(x, {place: (0, part.empty + part.far) for place, _, part in paired})
    kernel, strides, dilations = zip(*(axis.window for axis in axes), strict=True)
    window = Window(
        kernel=kernel, strides=strides, dilations=dilations,
        begin=tuple(part.begin for part in parts), end=tuple(part.end for part in parts),
    )  # fmt: skip
    y = builder.conv(x, window)
    lacking = {place: 1 if part.short is None else max(0, part.short) for place, _, part in paired}
    y = builder.pad(y, {place: (0, missing) for place, missing in lacking.items()})
    long = [(place, axis.each) for place, axis, part in paired if part.short is None or part.short < 0]
    cuts = {place: Cut(0, each) for place, each in long if each is not None}
    cut = builder.slice(y, cuts)
    sizes = [axis.each if part.short is None or isinstance(axis.each, int) else None for _, axis, part in paired]
    return Tensor(cut.name, (*cut.shape[:2], *sizes))


@functools.cache
def pool_forms() -> dict[str, Strategy]:
    """Return the forms of a pooling by their names."""
    return {"keep": KeepPool(), "phase_pools": PhasePools()}
