"""What the phase forms share (docs/maths.md, family 1): the plan of an axis, splitting and joining it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dilrewrite.forms.builder import END, Builder, Cut, Extent, Tensor, axis_pads
from dilrewrite.forms.geometry import ConvGeometry, Phases, ceil_div


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisPlan:
    """One axis of the phase form: zeros to write, samples per phase, and the Conv over them.

    `front`, `back`: explicit zeros (f, e); `samples`: per phase (M); `pads`: of the Conv inside a phase (c0, c1);
    `outputs`: per phase (Q); `total`: outputs to keep (Ho). `grain`, `block`, `stride`, `dilation` as in `Phases`.
    """

    axis: int
    phases: Phases
    front: Extent
    back: Extent
    samples: Extent | None
    pads: tuple[int, int]
    outputs: Extent | None
    total: Extent | None

    @property
    def block(self) -> int:
        """Return the number of phases."""
        return self.phases.block


def overlap_refusal(geometry: ConvGeometry, max_dilation: int) -> str | None:
    """Return why layout operators cannot form the phases: they overlap (s' > 1)."""
    axis = geometry.overlapping(max_dilation)
    if axis is None:
        return None
    stride, dilation = geometry.strides[axis], geometry.dilations[axis]
    return (
        f"stride {stride} and dilation {dilation} on spatial axis {axis} give overlapping phases "
        f"(the dilation is no multiple of the stride)"
    )


def plan_axis(builder: Builder, geometry: ConvGeometry, axis: int, max_dilation: int) -> AxisPlan:
    """Return how `axis` of `builder.x` is split; sizes that depend on an unknown extent become nodes."""
    phases = geometry.phases(axis, max_dilation)
    begin, end = geometry.static_pads
    p0, p1, k = begin[axis], end[axis], geometry.kernel[axis]
    extent = geometry.extents[axis]
    if phases.idle:
        return AxisPlan(
            axis=axis,
            phases=phases,
            front=0,
            back=0,
            samples=extent,
            pads=(p0, p1),
            outputs=geometry.out_extent(axis),
            total=geometry.out_extent(axis),
        )
    g, b, reach = phases.grain, phases.block, phases.dilation * (k - 1)
    # Zeros that would break the grid must be real. With g > 1 or overlapping phases that is all of them.
    inside = p0 // b if g == 1 and phases.stride == 1 else 0
    front = p0 - inside * b
    if extent is not None:
        total = geometry.out_extent(axis)
        assert total is not None
        outputs = ceil_div(total, b)
        if g == 1 and phases.stride == 1:
            samples = ceil_div(extent + front, b)
            after = max(0, outputs - (samples + inside - reach))
        else:
            samples, after = (outputs - 1) * phases.stride + reach + 1, 0
        back = max(0, _needed(phases, samples, geometry.strides[axis]) - front - extent)
        return AxisPlan(
            axis=axis,
            phases=phases,
            front=front,
            back=back,
            samples=samples,
            pads=(inside, after),
            outputs=samples + inside + after - reach if phases.stride == 1 else outputs,
            total=total,
        )
    # Unknown extent: pad the end so that every phase has exactly Q outputs. An input too small for the original then
    # leaves the Conv too small as well, so it fails as the original does.
    # Pads in front beyond the kernel's reach become explicit too: every phase then has at least one sample.
    h = builder.extent(builder.x, axis + 2)
    s = geometry.strides[axis]
    inside = min(inside, reach)
    front = p0 - inside * b
    # floor((H + p0 + p1 - span) / s) + 1, written so that it is at most 0 for an input that is too small
    total_ = builder.div(builder.add(h, p0 + p1 - geometry.span(axis) + s), s)
    outputs_ = builder.ceil_div(total_, b)
    samples_: Extent
    if phases.stride == 1:
        samples_ = builder.add(outputs_, reach - inside)
        needed = builder.mul(samples_, g * b)
    else:
        samples_ = builder.add(builder.mul(builder.sub(outputs_, 1), phases.stride), reach + 1)
        # the last sample of the last phase, and up to s - 1 more so that the difference below is never negative
        needed = builder.add(builder.mul(builder.sub(samples_, 1), g * b), (b - 1) * s + s)
    back_ = builder.bounded(builder.sub(builder.sub(needed, h), front), p1 + b * s + s)
    return AxisPlan(
        axis=axis,
        phases=phases,
        front=front,
        back=back_,
        samples=samples_ if b > 1 else None,
        pads=(inside, 0),
        outputs=outputs_,
        total=total_,
    )


def _needed(phases: Phases, samples: int, stride: int) -> int:
    """Return the padded extent from which every phase takes `samples` samples."""
    step = phases.grain * phases.block
    if phases.stride == 1 and phases.block > 1:
        return samples * step
    return (phases.block - 1) * stride + (samples - 1) * step + 1


def plan_axes(builder: Builder, geometry: ConvGeometry, max_dilation: int) -> tuple[AxisPlan, ...]:
    """Return the plan of every spatial axis."""
    return tuple(plan_axis(builder, geometry, axis, max_dilation) for axis in geometry.axes)


def pad_axes(builder: Builder, plans: Sequence[AxisPlan]) -> Tensor:
    """Write the explicit zeros."""
    rank = len(plans)
    begin = axis_pads(rank, {plan.axis: plan.front for plan in plans})
    end = axis_pads(rank, {plan.axis: plan.back for plan in plans})
    return builder.pad(builder.x, begin, end)


def thin_axes(builder: Builder, x: Tensor, plans: Sequence[AxisPlan]) -> Tensor:
    """Take every g-th sample of the padded input, for disjoint phases: leaves `samples * block` on each such axis."""
    cuts = {}
    for plan in plans:
        if plan.phases.grain > 1:
            step = plan.phases.grain
            stop = plan.samples * plan.block * step if isinstance(plan.samples, int) else END
            cuts[plan.axis + 2] = Cut(0, stop, step)
    return builder.slice(x, cuts)


def split_axes(plans: Sequence[AxisPlan]) -> list[AxisPlan]:
    """Return the plans of the axes that are split."""
    return [plan for plan in plans if plan.block > 1]


def sizes(builder: Builder, y: Tensor, plans: Sequence[AxisPlan]) -> list[Extent]:
    """Return the outputs per phase of every spatial axis of the Conv's output `y`, read at run time where unknown."""
    return [
        plan.outputs if plan.outputs is not None else builder.extent(y, axis + 2) for axis, plan in enumerate(plans)
    ]


def interleaved(lengths: Sequence[Extent], plans: Sequence[AxisPlan]) -> list[Extent]:
    """Return the spatial sizes with the phase of each split axis as an axis of its own behind it: M1, b1, M2, b2, .."""
    found: list[Extent] = []
    for length, plan in zip(lengths, plans, strict=True):
        found.append(length)
        if plan.block > 1:
            found.append(plan.block)
    return found


def _places(plans: Sequence[AxisPlan]) -> tuple[list[int], list[int]]:
    """Return where [N, C, M1, b1, M2, ..] holds the phases and the samples."""
    phases, samples, place = [], [], 2
    for plan in plans:
        samples.append(place)
        place += 1
        if plan.block > 1:
            phases.append(place)
            place += 1
    return phases, samples


def phases_first(builder: Builder, x: Tensor, plans: Sequence[AxisPlan]) -> tuple[Tensor, list[Extent]]:
    """[N, C, M1*b1, ..] -> [N, b1, .., C, M1, ..]; also returns the samples per phase."""
    lengths = [
        plan.samples if plan.samples is not None else builder.extent(x, axis + 2) for axis, plan in enumerate(plans)
    ]
    split = builder.reshape(x, [0, 0, *interleaved(lengths, plans)])
    phases, samples = _places(plans)
    return builder.transpose(split, [0, *phases, 1, *samples]), lengths


def join_phases(
    builder: Builder, y: Tensor, plans: Sequence[AxisPlan], lengths: Sequence[Extent], *, batch: int
) -> Tensor:
    """[N, b1, .., O, Q1, ..] -> [N, O, Ho1, ..]; `batch` is the place of N among the phases (0: before, else after)."""
    phases, samples = _places(plans)
    count = len(phases)
    # where the joined order [N, O, Q1, b1, Q2, ..] finds its axes in the tensor
    first = 1 if batch == 0 else 0
    source = {0: 0 if batch == 0 else count, 1: count + 1}
    source |= {place: first + i for i, place in enumerate(phases)}
    source |= {place: count + 2 + i for i, place in enumerate(samples)}
    apart = builder.transpose(y, [source[place] for place in range(len(y.shape))])
    merged = [builder.mul(length, plan.block) for length, plan in zip(lengths, plans, strict=True)]
    return crop(builder, builder.reshape(apart, [0, 0, *merged]), plans)


def crop(builder: Builder, y: Tensor, plans: Sequence[AxisPlan]) -> Tensor:
    """Cut the joined outputs to Ho."""
    return builder.slice(
        y, {plan.axis + 2: Cut(0, plan.total) for plan in plans if plan.block > 1 and plan.total is not None}
    )
