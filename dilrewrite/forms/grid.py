"""Which operators run the same on phases in the batch, and what becomes of the padded cells around the data.

A tensor [N, C, *H] lies as [N * P, C, *M]: P phases, `block` on each axis. Sample q of phase r is the cell
r + q * block of an axis; the data stand in the cells `front <= cell < front + extent`. The cells around them are zeros
behind the enter and behind a mask, and anything behind a Conv (docs/maths.md). An operator without a row in `ROWS`
stays outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.fragment import AttributeValue
from dilrewrite.forms.geometry import ConvGeometry, ceil_div
from dilrewrite.forms.layout import AxisLayout

Axes = tuple[AxisLayout, ...]


def entered(extent: int, block: int, front: int = 0) -> AxisLayout:
    """Return how an axis lies behind the enter."""
    samples = ceil_div(extent + front, block)
    return AxisLayout(extent=extent, samples=samples, block=block, front=front, back=samples * block - front - extent)


def data(axis: AxisLayout) -> tuple[int, int, int]:
    """Return front, extent and samples of an axis that are known."""
    assert isinstance(axis.front, int)
    assert isinstance(axis.extent, int)
    assert isinstance(axis.samples, int)
    return axis.front, axis.extent, axis.samples


def alike(axes: Axes, others: Axes) -> bool:
    """Say whether two tensors lie alike, whatever is in the cells around the data."""
    return [data(axis) for axis in axes] == [data(axis) for axis in others]


@dataclass(frozen=True, slots=True)
class Phased:
    """An operator on phases.

    `inputs`: how its inputs must lie (None: as they are, outside of the layout). `axes`: how its outputs lie. `clean`:
    whether the cells around its data are zeros if those of its inputs are; `needs`: whether it has to read zeros there.
    `attributes`: in place of its own. `cuts`: what to cut first from each split axis of the first input, in samples at
    the begin and the end; `grows`: what to pad.
    """

    inputs: tuple[Axes | None, ...]
    axes: Axes
    clean: bool
    needs: bool = False
    attributes: Mapping[str, AttributeValue] | None = None
    cuts: tuple[tuple[int, int], ...] = ()
    grows: tuple[tuple[int, int], ...] = ()


Row = Callable[[Link, Mapping[str, Axes], "Space"], Phased | None]


@dataclass(frozen=True, slots=True)
class Space:
    """What rows ask: the chain, the block of each spatial axis, and the shapes that are known."""

    chain: Chain
    block: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Return the number of spatial axes."""
        return len(self.block)

    def shape(self, name: str) -> tuple[int | None, ...] | None:
        """Return the shape of a tensor."""
        return self.chain.shapes.get(name)

    def spatial(self, name: str) -> bool | None:
        """Say whether a tensor has the spatial axes (True), is constant along them (False), or something else."""
        shape = self.shape(name)
        if shape is None:
            return None
        if all(size == 1 for size in shape[-self.rank :] if len(shape) >= self.rank) and len(shape) <= self.rank + 2:
            return False if len(shape) < self.rank + 2 or shape[0] == 1 or name in self.chain.constants else None
        return True if len(shape) == self.rank + 2 and name not in self.chain.constants else None

    def natural(self, name: str) -> Axes | None:
        """Return how a tensor lies when it enters here."""
        shape = self.shape(name)
        if shape is None or len(shape) != self.rank + 2 or not all(isinstance(size, int) for size in shape[2:]):
            return None
        return tuple(entered(size or 0, block) for size, block in zip(shape[2:], self.block, strict=True))

    def lies(self, name: str, known: Mapping[str, Axes]) -> Axes | None:
        """Return how a tensor lies, or would."""
        return known.get(name) or self.natural(name)


def _one(link: Link, known: Mapping[str, Axes], space: Space, *, clean: bool) -> Phased | None:
    axes = space.lies(link.inputs[0], known)
    if axes is None or len(link.outputs) != 1:
        return None
    return Phased((axes, *(None for _ in link.inputs[1:])), axes, clean)


def zero_to_zero(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Elementwise, and 0 stays 0."""
    return _one(link, known, space, clean=True)


def elementwise(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Elementwise; 0 may become anything."""
    return _one(link, known, space, clean=False)


def broadcast(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Operands that lie alike, and such as are the same for every sample."""
    kinds = [space.spatial(name) if name else False for name in link.inputs]
    if None in kinds or True not in kinds:
        return None
    spread = [name for name, kind in zip(link.inputs, kinds, strict=True) if kind]
    axes = next((known[name] for name in spread if name in known), None) or space.natural(spread[0])
    if axes is None or any(not alike(space.lies(name, known) or (), axes) for name in spread if name in known):
        return None
    if any(
        (space.natural(name) is None) or [a.extent for a in space.natural(name) or ()] != [a.extent for a in axes]
        for name in spread
    ):
        return None  # one of them is stretched along an axis
    alone = len(spread) == 1
    clean = link.op in ("Mul", "PRelu") or (link.op in ("Add", "Sub", "Max", "Min", "Sum", "Mean") and not alone)
    return Phased(tuple(axes if kind else None for kind in kinds), axes, clean)


def channels(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Along the channels only: their axis is an attribute."""
    axis = link.attributes.get("axis", {"Concat": None, "Split": 0}.get(link.op, -1 if space.chain.opset >= 13 else 1))
    if not isinstance(axis, int) or axis not in (1, -1 - space.rank):
        return None
    if link.op == "Concat":
        spread = [name for name in link.inputs if name in known]
        axes = known[spread[0]] if spread else space.natural(link.inputs[0])
        if axes is None or any(not alike(known[name], axes) for name in spread):
            return None
        if any(name in space.chain.constants or space.natural(name) is None for name in link.inputs):
            return None
        return Phased((axes,) * len(link.inputs), axes, clean=True)
    axes = space.lies(link.inputs[0], known)
    if axes is None or (link.op in ("Softmax", "LogSoftmax", "Hardmax") and space.chain.opset < 13):
        return None
    return Phased((axes, *(None for _ in link.inputs[1:])), axes, clean=link.op == "Split")


def over_channels(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """A reduction over the channels that keeps the axis."""
    given = link.attributes.get("axes")
    axes = given if given is not None else space.chain.integers.get(link.inputs[1]) if len(link.inputs) > 1 else None
    if axes not in ((1,), (-1 - space.rank,)) or not link.attributes.get("keepdims", 1):
        return None
    return _one(link, known, space, clean=False)


def conv(link: Link, known: Mapping[str, Axes], space: Space, geometry: ConvGeometry | None) -> Phased | None:
    """Stride 1 on the axes that are split, and the block divides the dilation; other axes as they are."""
    axes = space.lies(link.inputs[0], known)
    if axes is None or geometry is None or geometry.rank != space.rank:
        return None
    results, begin, end, dilations, cuts, needs = [], [], [], [], [], False
    for place, (axis, block) in enumerate(zip(axes, space.block, strict=True)):
        k, d, s = geometry.kernel[place], geometry.dilations[place], geometry.strides[place]
        p0, p1 = (pads[place] for pads in geometry.static_pads)
        if block == 1:
            total = geometry.out_extent(place)
            if total is None:
                return None
            results.append(replace(entered(total, 1), zeros=False))
            begin.append(p0)
            end.append(p1)
            dilations.append(d if k > 1 else 1)
            cuts.append((0, 0))
            continue
        if s != 1 or (k > 1 and d % block) or (k == 1 and (p0 or p1)):
            return None
        front, extent, samples = data(axis)
        inner = d // block if k > 1 else 1
        left = (front - p0) % block
        total = extent + p0 + p1 - d * (k - 1)
        if total < 1:
            return None
        before = (p0 - front + left) // block
        behind = ceil_div(total + left, block) - (samples + before - inner * (k - 1))
        results.append(replace(entered(total, block, left), zeros=False))
        begin.append(before)
        end.append(max(behind, 0))
        cuts.append((0, max(-behind, 0)))
        dilations.append(inner)
        needs = needs or (p1 > 0 and axis.back != 0) or (p0 > 0 and front != 0)
    attributes: dict[str, AttributeValue] = {"pads": (*begin, *end), "dilations": tuple(dilations)}
    inputs = (axes, *(None for _ in link.inputs[1:]))
    return Phased(inputs, tuple(results), clean=False, needs=needs, attributes=attributes, cuts=tuple(cuts))


def pad(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Zeros in front of and behind the data; channels may be padded too."""
    axes, chain = space.lies(link.inputs[0], known), space.chain
    given = link.attributes.get("pads")
    pads = given if given is not None else chain.integers.get(link.inputs[1]) if len(link.inputs) > 1 else None
    if axes is None or not isinstance(pads, tuple) or len(pads) != 2 * space.rank + 4 or len(link.inputs) > 3:
        return None
    if link.attributes.get("mode", "constant") != "constant" or link.attributes.get("value", 0.0) != 0.0:
        return None
    if (len(link.inputs) > 2 and link.inputs[2]) or pads[0] or pads[space.rank + 2] or min(pads) < 0:
        return None
    results, grows, needs = [], [], False
    for place, axis in enumerate(axes):
        p0, p1 = pads[place + 2], pads[space.rank + 4 + place]
        front, extent, samples = data(axis)
        left = (front - p0) % axis.block
        before = (p0 - front + left) // axis.block
        result = entered(extent + p0 + p1, axis.block, left)
        grows.append((before, data(result)[2] - samples - before))
        results.append(result)
        needs = needs or (p1 > 0 and axis.back != 0) or (p0 > 0 and front != 0)
    inputs = (axes, *(None for _ in link.inputs[1:]))
    return Phased(inputs, tuple(results), clean=True, needs=needs, grows=tuple(grows))


def cut(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Slice with step 1 along axes other than the batch."""
    axes, chain, count = space.lies(link.inputs[0], known), space.chain, space.rank + 2
    if axes is None or "starts" in link.attributes or len(link.inputs) < 3:
        return None
    lists = [chain.integers.get(name) if name else () for name in link.inputs[1:]]
    if any(each is None for each in lists):
        return None
    starts, ends, *more = [each or () for each in lists]
    named = more[0] if more and more[0] else tuple(range(len(starts)))
    steps = more[1] if len(more) > 1 and more[1] else (1,) * len(starts)
    shape = space.shape(link.inputs[0]) or ()
    results, cuts, channel = list(axes), [(0, 0)] * space.rank, False
    for start, end, axis, step in zip(starts, ends, (axis % count for axis in named), steps, strict=True):
        if axis == 0:
            return None
        if axis == 1:
            channel = True
            continue
        size = shape[axis]
        if step != 1 or not isinstance(size, int):
            return None
        first, last, _ = slice(start, end).indices(size)
        if last <= first:
            return None
        old = axes[axis - 2]
        front, _, samples = data(old)
        before, left = divmod(front + first, old.block)
        result = replace(entered(last - first, old.block, left), zeros=False)
        results[axis - 2] = result
        cuts[axis - 2] = (before, samples - before - data(result)[2])
    moved = tuple(results) != axes
    if moved and channel:
        return None
    inputs = (axes, *(None for _ in link.inputs[1:]))
    return Phased(inputs, tuple(results), clean=not moved, cuts=tuple(cuts) if moved else ())


_ZERO_TO_ZERO = """Abs Asin Asinh Atan Atanh Cast Ceil Celu Dropout Elu Erf Floor Gelu HardSwish Identity LeakyRelu Mish
Neg Relu Round Selu Shrink Sign Sin Sinh Softsign Sqrt Tan Tanh ThresholdedRelu"""
_ELEMENTWISE = "Acos Acosh BitwiseNot Clip Cos Cosh Exp HardSigmoid IsInf IsNaN Log Not Reciprocal Sigmoid Softplus"
_BROADCAST = "Add And Div Equal Greater Less Max Mean Min Mul Or Pow PRelu Sub Sum Where Xor"
_CHANNELS = "Concat Split Softmax LogSoftmax Hardmax"
_REDUCTIONS = "L1 L2 LogSumExp Max Mean Min Prod Sum SumSquare"

ROWS: Mapping[str, Row] = {
    **dict.fromkeys(_ZERO_TO_ZERO.split(), zero_to_zero),
    **dict.fromkeys([*_ELEMENTWISE.split(), "BatchNormalization"], elementwise),
    **dict.fromkeys(_BROADCAST.split(), broadcast),
    **dict.fromkeys(_CHANNELS.split(), channels),
    **{f"Reduce{name}": over_channels for name in _REDUCTIONS.split()},
    "Pad": pad,
    "Slice": cut,
}
"""{operator: its row}; Convs are known by their geometry."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How each tensor lies, or would, and how each link runs on phases (None: not)."""

    axes: Mapping[str, Axes]
    links: tuple[Phased | None, ...]


def spread(chain: Chain, block: tuple[int, ...]) -> Grid:
    """Return how a chain lies when all of it that can be is in phases."""
    space, links = Space(chain, block), []
    known: dict[str, Axes] = {}
    for place, link in enumerate(chain.links):
        row = ROWS.get(link.op)
        if place in chain.convs:
            phased = conv(link, known, space, chain.convs[place])
        else:
            phased = row(link, known, space) if row is not None else None
        links.append(phased)
        if phased is not None:
            known.update((name, phased.axes) for name in link.outputs if name)
            for name, axes in zip(link.inputs, phased.inputs, strict=False):
                if axes is not None:
                    known.setdefault(name, axes)
    return Grid(known, tuple(links))
