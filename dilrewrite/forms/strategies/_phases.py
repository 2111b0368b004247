"""What the phase forms share (docs/maths.md, family 1): their plan, splitting and joining the phases."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dilrewrite.forms.builder import END, INFER, Builder, Cut, Extent, Tensor
from dilrewrite.forms.extents import known
from dilrewrite.forms.geometry import ConvGeometry, Limit, Window, ceil_div, product
from dilrewrite.forms.layout import AxisLayout, Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A phase form: the layout of the Conv's input, the Conv over the phases, and the layout of its output."""

    enter: Layout
    window: Window
    leave: Layout


LAYOUTS = ("depth", "axes", "reshape")
"""How phases are made: square 2-D blocks by SpaceToDepth and all others of known extents as `axes`, one axis after the
other by a Transpose of four axes each, or all axes at once by one Transpose.
"""


def check_layout(layout: str) -> None:
    """Raise ValueError for a layout that is none."""
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout!r} is not one of {', '.join(LAYOUTS)}")


def by_depth(builder: Builder, enter: Layout, layout: str) -> int | None:
    """Return the block for SpaceToDepth where the phases are made by it."""
    return enter.square if builder.has_depth_to_space and layout == "depth" else None


def overlap_refusal(geometry: ConvGeometry, limit: Limit) -> str | None:
    """Return why layout operators cannot form the phases: they overlap (s' > 1)."""
    axis = geometry.overlapping(limit)
    if axis is None:
        return None
    stride, dilation = geometry.strides[axis], geometry.dilations[axis]
    return (
        f"stride {stride} and dilation {dilation} on spatial axis {axis} give overlapping phases "
        f"(the dilation is no multiple of the stride)"
    )


def plan_phases(builder: Builder, geometry: ConvGeometry, limit: Limit) -> Plan:
    """Return how `builder.x` is split; sizes that depend on an unknown extent become nodes."""
    axes = [plan_axis(builder, geometry, axis, limit) for axis in geometry.axes]
    enter, pads, leave = zip(*axes, strict=True)
    phases = [geometry.phases(axis, limit) for axis in geometry.axes]
    window = Window(
        kernel=geometry.kernel,
        strides=tuple(phase.stride for phase in phases),
        dilations=tuple(phase.dilation for phase in phases),
        begin=tuple(begin for begin, _ in pads),
        end=tuple(end for _, end in pads),
    )
    return Plan(enter=Layout(axes=enter), window=window, leave=Layout(axes=leave))


def plan_axis(
    builder: Builder, geometry: ConvGeometry, axis: int, limit: Limit
) -> tuple[AxisLayout, tuple[int, int], AxisLayout]:
    """Return how an axis enters, the pads of the Conv inside its phases, and how it leaves."""
    phases = geometry.phases(axis, limit)
    g, b, k, s = phases.grain, phases.block, geometry.kernel[axis], geometry.strides[axis]
    p0, p1 = (pads[axis] for pads in geometry.static_pads)
    extent, total = geometry.extents[axis], geometry.out_extent(axis)
    if g == b == 1:
        return AxisLayout(extent=extent, samples=extent), (p0, p1), AxisLayout(extent=total, samples=total)
    if extent is not None and g == 1 and phases.stride == 1:
        front, samples = p0 % b, ceil_div(extent + p0 % b, b)
        back = max(0, samples * b - front - extent)
        enter = AxisLayout(extent=extent, samples=samples, block=b, front=front, back=back)
        return enter, *enter.convolved(k, phases.dilation, p0, p1)
    # Zeros that would break the grid must be real. With g > 1 or overlapping phases that is all of them, and with an
    # unknown extent those beyond the kernel's reach too: every phase then has at least one sample.
    reach = phases.dilation * (k - 1)
    inside = min(p0 // b, reach) if g == 1 and phases.stride == 1 else 0
    front = p0 - inside * b
    # The end is padded so that every phase has exactly Q outputs. An unknown extent too small for the original then
    # leaves the Conv too small as well, so it fails as the original does: floor((H + p0 + p1 - span) / s) + 1 is
    # written so that it is at most 0 there.
    cells = builder.extent(builder.x, axis + 2)
    outs = (cells + (p0 + p1 - geometry.span(axis) + s)) // s
    outputs = (outs + (b - 1)) // b
    static = isinstance(cells, int)
    per_phase = outputs + (reach - inside) if phases.stride == 1 else (outputs - 1) * phases.stride + (reach + 1)
    if phases.stride == 1 and (b > 1 or not static):
        padded = per_phase * (g * b)
    else:  # the last sample of the last phase, and up to s - 1 more so that the difference below is never negative
        padded = (per_phase - 1) * (g * b) + ((b - 1) * s + (1 if static else s))
    behind = builder.bounded(padded - cells - front, p1 + b * s + s)
    enter = AxisLayout(
        extent=extent,
        samples=per_phase if b > 1 or static else None,
        block=b,
        grain=g,
        step=s,
        front=front,
        back=max(0, behind) if isinstance(behind, int) else behind,
    )
    return enter, (inside, 0), AxisLayout(extent=outs, samples=outputs, block=b, back=None, zeros=False)


def pad_axes(builder: Builder, layout: Layout) -> Tensor:
    """Write the explicit zeros."""
    sides = {place + 2: (axis.front, 0 if axis.back is None else axis.back) for place, axis in enumerate(layout.axes)}
    return builder.pad(builder.x, sides)


def thin_axes(builder: Builder, x: Tensor, layout: Layout) -> Tensor:
    """Take every g-th sample of the padded input, for disjoint phases: leaves `samples * block` on each such axis."""
    cuts = {}
    for place, axis in enumerate(layout.axes):
        if axis.grain > 1:
            stop = axis.samples * axis.block * axis.grain if isinstance(axis.samples, int) else END
            cuts[place + 2] = Cut(0, stop, axis.grain)
    return builder.slice(x, cuts)


def residues(axes: Mapping[int, AxisLayout]) -> Iterator[tuple[int, ...]]:
    """Return the phases of the given axes, each as its place on every axis, the first axis outermost."""
    return itertools.product(*(range(axis.block) for axis in axes.values()))


def phase(builder: Builder, x: Tensor, axes: Mapping[int, AxisLayout], places: Sequence[int]) -> Tensor:
    """Cut one phase of the given spatial axes out of the padded input, overlapping phases too."""
    shape, cuts = list(x.shape), {}
    for (place, axis), residue in zip(axes.items(), places, strict=True):
        cuts[place + 2] = _cut(axis, residue * axis.step)
        shape[place + 2] = axis.samples
    return Tensor(builder.slice(x, cuts).name, tuple(shape))


def _cut(axis: AxisLayout, start: int) -> Cut:
    step = axis.grain * axis.block
    if isinstance(axis.samples, int):
        return Cut(start, start + (axis.samples - 1) * step + 1, step)
    if axis.samples is None or axis.step == axis.grain:
        return Cut(start, END, step)  # the padded extent ends where the last phase does
    return Cut(start, (axis.samples - 1) * step + (start + 1), step)


def sizes(builder: Builder, tensor: Tensor, layout: Layout, *, beside: int | None = None) -> list[Extent]:
    """Return the samples per phase of every axis, asked of `tensor` where unknown; `beside`: one more axis of it."""
    return [
        axis.samples
        if axis.samples is not None
        else builder.extent(tensor, place + 2 + (beside is not None and place >= beside))
        for place, axis in enumerate(layout.axes)
    ]


def interleaved(lengths: Sequence[Extent], layout: Layout) -> list[Extent]:
    """Return the spatial sizes with the phase of each split axis as an axis of its own behind it: M1, b1, M2, b2, .."""
    pairs = zip(lengths, layout.axes, strict=True)
    return [size for length, axis in pairs for size in ((length, axis.block) if axis.block > 1 else (length,))]


def _places(layout: Layout) -> tuple[list[int], list[int]]:
    """Return where [N, C, M1, b1, M2, ..] holds the phases and the samples."""
    samples = [place + 2 + sum(other < place for other in layout.split) for place in range(len(layout.axes))]
    return [samples[place] + 1 for place in layout.split], samples


def at_once(how: str, layout: Layout, lengths: Sequence[Extent | None]) -> bool:
    """Say whether one Transpose moves all axes. By `depth` so do unknown extents, of which no products are computed."""
    return how == "reshape" or len(layout.axes) == 1 or (how == "depth" and known(lengths) is None)


def phases_first(
    builder: Builder, x: Tensor, layout: Layout, how: str = "depth", *, in_batch: bool = True
) -> tuple[Tensor, list[Extent]]:
    """[N, C, M1*b1, ..] -> [N, b1, .., C, M1, ..] in memory, in whatever shape; also returns the samples per phase.

    `in_batch`: the phases are to be batch entries. Else each runtime takes the batch for what it is, as some have none,
    and the order of the phases is any that `from_channels` takes.
    """
    lengths = sizes(builder, x, layout)
    if at_once(how, layout, lengths):
        apart = builder.reshape(x, [0, 0, *interleaved(lengths, layout)])
        phases, samples = _places(layout)
        return builder.transpose(apart, [0, *phases, 1, *samples]), lengths
    outer, inner = _outer(builder, x), builder.extent(x, 1)
    for place, axis in enumerate(layout.axes):
        if axis.block > 1:
            behind = _cells(layout, lengths, place + 1)
            split = [inner, lengths[place], axis.block] if behind == 1 else [inner * lengths[place], axis.block, behind]
            x = builder.transpose(builder.reshape(x, [outer, *split]), [0, 3, 1, 2] if behind == 1 else [0, 2, 1, 3])
            outer, inner = (_times(outer, axis.block), inner) if in_batch else (outer, inner * axis.block)
        inner = inner * lengths[place]
    return x, lengths


def join_phases(
    builder: Builder,
    y: Tensor,
    layout: Layout,
    lengths: Sequence[Extent],
    outputs: Extent,
    how: str = "depth",
    *,
    batch_last: bool = False,
    in_batch: bool = True,
) -> Tensor:
    """[N, b1, .., O, Q1, ..] in memory, in whatever shape -> [N, O, Ho1, ..]; `batch_last`: from [b1, .., N, O, ..].

    `in_batch`: as in `phases_first`.
    """
    if at_once(how, layout, lengths):
        phases, samples = _places(layout)
        count, front = len(phases), [INFER, *layout.blocks]
        apart = builder.reshape(y, [*(front[1:] + front[:1] if batch_last else front), outputs, *lengths])
        # where the joined order [N, O, Q1, b1, Q2, ..] finds its axes in the tensor
        source = {0: count if batch_last else 0, 1: count + 1}
        source |= {place: i + (not batch_last) for i, place in enumerate(phases)}
        source |= {place: count + 2 + i for i, place in enumerate(samples)}
        y = builder.transpose(apart, [source[place] for place in range(len(apart.shape))])
        return merge(builder, y, layout, lengths)
    for place in reversed(layout.split):
        block, behind = layout.axes[place].block, _cells(layout, lengths, place + 1)
        outer: Extent = product(axis.block for axis in layout.axes[:place]) if batch_last else INFER
        inner: Extent = INFER if batch_last else outputs
        if not in_batch:
            inner = inner * product(axis.block for axis in layout.axes[:place])
        for length in lengths[: place + (behind != 1)]:
            inner = _times(inner, length)
        apart = builder.reshape(y, [outer, block, inner, lengths[place] if behind == 1 else behind])
        y = builder.transpose(apart, [0, 2, 3, 1] if behind == 1 else [0, 2, 1, 3])
    return merge(builder, y, layout, lengths, [INFER, outputs])


def _outer(builder: Builder, x: Tensor) -> Extent:
    """Return the batch of a tensor, `INFER` where it is the only size that is not known."""
    return INFER if x.shape[0] is None and known(x.shape[1:]) is not None else builder.extent(x, 0)


def _times(one: Extent, other: Extent) -> Extent:
    return INFER if INFER in (one, other) else one * other


def _cells(layout: Layout, lengths: Sequence[Extent], start: int) -> Extent:
    """Return how many cells the axes from `start` on have together."""
    cells: Extent = 1
    for length, axis in zip(lengths[start:], layout.axes[start:], strict=True):
        cells = length * axis.block * cells
    return cells


def from_channels(builder: Builder, y: Tensor, layout: Layout, outputs: Extent, block: int | None, how: str) -> Tensor:
    """[N, b1*..*O, Q1, ..] -> [N, O, Ho1, ..]; `block`: that of SpaceToDepth, where the phases were made by it."""
    if block is not None:
        return crop(builder, builder.depth_to_space(y, block), layout)
    return join_phases(builder, y, layout, sizes(builder, y, layout), outputs, how, in_batch=False)


def merge(
    builder: Builder, apart: Tensor, layout: Layout, lengths: Sequence[Extent], front: Sequence[Extent] = (0, 0)
) -> Tensor:
    """[N, O, Q1, b1, ..] -> [N, O, Ho1, ..]; `front`: the sizes of batch and channels where they stand otherwise."""
    merged = [length * axis.block for length, axis in zip(lengths, layout.axes, strict=True)]
    return crop(builder, builder.reshape(apart, [*front, *merged]), layout)


def crop(builder: Builder, y: Tensor, layout: Layout) -> Tensor:
    """Cut the joined outputs to the valid range."""
    return builder.slice(
        y,
        {
            place + 2: Cut(0, axis.extent)
            for place, axis in enumerate(layout.axes)
            if axis.block > 1 and axis.extent is not None
        },
    )
