"""Which operators run the same on phases in the batch, and what becomes of the padded cells around the data.

An operator without a row in `ROWS` stays outside. Operators as in ONNX, opsets 7 to 23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from dilrewrite.forms.cells import Axes, Axis, Phased, Space, entered
from dilrewrite.forms.chain import Chain, Link, Size
from dilrewrite.forms.fragment import AttributeValue
from dilrewrite.forms.geometry import MAX_RANK, ConvGeometry, product

Row = Callable[[Link, Mapping[str, Axes], Space], Phased | None]


def _one(link: Link, known: Mapping[str, Axes], space: Space, *, clean: bool) -> Phased | None:
    axes = space.lies(link.inputs[0], known)
    if axes is None or len(link.outputs) != 1:
        return None
    return Phased((axes, *(None for _ in link.inputs[1:])), axes, clean)


def zero_to_zero(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Elementwise, and 0 stays 0; a Dropout that may be one of training draws at random."""
    if link.op == "Dropout" and any(link.inputs[2:]):
        return None
    return _one(link, known, space, clean=True)


def elementwise(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Elementwise; 0 may become anything."""
    return _one(link, known, space, clean=False)


def normalization(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """BatchNormalization by running statistics, one per channel."""
    fixed = not link.attributes.get("training_mode", 0) and link.attributes.get("spatial", 1)
    return _one(link, known, space, clean=False) if fixed else None


def broadcast(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Operands that lie alike, and such as are the same for every sample."""
    kinds = [space.spatial(name) if name else False for name in link.inputs]
    if None in kinds or True not in kinds or len(link.outputs) != 1:
        return None
    wide = [name for name, kind in zip(link.inputs, kinds, strict=True) if kind]
    axes = space.together(wide, known)
    if axes is None:
        return None
    repeated = frozenset(
        place
        for place, (name, kind) in enumerate(zip(link.inputs, kinds, strict=True))
        if not kind and name and space.each_image(name)
    )
    batches = space.chain.batches
    each = {
        (shape[0] if shape else None) or batches.get(name)
        for name in (*wide, *(link.inputs[place] for place in repeated))
        for shape in [space.shape(name)]
    }
    if len(each) > 1:
        return None  # one of them is stretched along the batch
    clean = link.op == "PRelu" or (link.op in ("Add", "Sub", "Mul", "Max", "Min", "Sum", "Mean") and all(kinds))
    return Phased(tuple(axes if kind else None for kind in kinds), axes, clean, repeated=repeated)


def concat(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Along the channels; what stands outside enters beside the others."""
    if link.attributes.get("axis") not in (1, -1 - space.rank):
        return None
    axes = space.together(list(link.inputs), known)
    if axes is None or any(name in space.chain.constants for name in link.inputs):
        return None
    return Phased((axes,) * len(link.inputs), axes, clean=True)


def channels(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Along the channels only: their axis is an attribute, -1 where it is not written."""
    softmax = link.op in ("Softmax", "LogSoftmax", "Hardmax")
    if link.attributes.get("axis", -1) not in (1, -1 - space.rank) or (softmax and space.chain.opset < 13):
        return None
    return _one(link, known, space, clean=False)


def split(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Along the channels; the axis is 0 where it is not written."""
    axes = space.lies(link.inputs[0], known)
    if axes is None or link.attributes.get("axis", 0) not in (1, -1 - space.rank):
        return None
    return Phased((axes, *(None for _ in link.inputs[1:])), axes, clean=True)


def reduction(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Over the channels, or over all of space: in every phase, then over the phases. The axes are kept."""
    given = link.attributes.get("axes")
    axes = given if given is not None else space.chain.integers.get(link.inputs[1]) if len(link.inputs) > 1 else None
    if not isinstance(axes, tuple) or not link.attributes.get("keepdims", 1):
        return None
    over = sorted(axis % (space.rank + 2) for axis in axes if isinstance(axis, int))
    if over == [1]:
        return _one(link, known, space, clean=False)
    return fold(link, known, space) if over == list(range(2, space.rank + 2)) else None


def fold(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """A reduction over all of space: zeros, or the least or greatest value, around the data; a mean by its size."""
    kind, element = _FOLDS.get(link.op, ""), space.chain.elements.get(link.inputs[0], "float32")
    if not kind or element not in ("float32", "float64"):
        return None
    phased = _one(link, known, space, clean=False)
    return phased and replace(phased, needs=True, fold=kind)


def conv(link: Link, known: Mapping[str, Axes], space: Space, geometry: ConvGeometry | None) -> Phased | None:
    """Stride 1 on the axes that are split, and the block divides the dilation; other axes as they are.

    An unknown extent must not become less than the one it comes from: 0 samples would pass as one.
    """
    axes = space.lies(link.inputs[0], known)
    if axes is None or geometry is None or geometry.rank != space.rank:
        return None
    results, begin, end, dilations, cuts, needs = [], [], [], [], [], False
    for place, (axis, block) in enumerate(zip(axes, space.block, strict=True)):
        k, d, s = geometry.kernel[place], geometry.dilations[place], geometry.strides[place]
        p0, p1 = (pads[place] for pads in geometry.static_pads)
        total = axis.extent + p0 + p1 - d * (k - 1)
        if total < (min(axis.extent, 0) if axis.root else 1):
            return None
        if block == 1:
            if s != 1 and axis.root:
                return None
            result = axis.becomes(total, 0)[0] if axis.root else entered((total - 1) // s + 1, 1)
            before, behind, inner = p0, p1, d if k > 1 else 1
        else:
            if s != 1 or (k > 1 and d % block) or (k == 1 and (p0 or p1)):
                return None
            inner = d // block if k > 1 else 1
            left = (axis.front - p0) % block
            before = (p0 - axis.front + left) // block
            result, more = axis.becomes(total, left)
            behind = more - before + inner * (k - 1)
        results.append(result)
        begin.append(before)
        end.append(max(behind, 0))
        cuts.append((0, max(-behind, 0)))
        dilations.append(inner)
        needs = needs or _reads_around(axis, p0, p1)
    attributes: dict[str, AttributeValue] = {"pads": (*begin, *end), "dilations": tuple(dilations)}
    inputs = (axes, *(None for _ in link.inputs[1:]))
    return Phased(inputs, tuple(results), clean=False, needs=needs, attributes=attributes, cuts=tuple(cuts))


def _reads_around(axis: Axis, p0: int, p1: int) -> bool:
    """Say whether an operator with these pads reads cells around the data."""
    return (p1 > 0 and axis.back != 0) or (p0 > 0 and axis.front != 0)


def pads_of(link: Link, chain: Chain) -> tuple[int, ...] | None:
    """Return the pads of a Pad, where they are known."""
    given = link.attributes.get("pads")
    pads = given if given is not None else chain.integers.get(link.inputs[1]) if len(link.inputs) > 1 else None
    return tuple(pad for pad in pads if isinstance(pad, int)) if isinstance(pads, tuple) else None


def pad(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Zeros in front of and behind the data; channels may be padded too."""
    axes, chain = space.lies(link.inputs[0], known), space.chain
    pads = pads_of(link, chain)
    if axes is None or pads is None or len(pads) != 2 * space.rank + 4 or any(link.inputs[3:]):
        return None
    if link.attributes.get("mode", "constant") != "constant" or link.attributes.get("value", 0.0) != 0.0:
        return None
    if len(link.inputs) > 2 and link.inputs[2] and chain.integers.get(link.inputs[2]) != (0,):
        return None
    if pads[0] or pads[space.rank + 2] or min(pads) < 0:
        return None
    results, grows, needs = [], [], False
    for place, axis in enumerate(axes):
        p0, p1 = pads[place + 2], pads[space.rank + 4 + place]
        left = (axis.front - p0) % axis.block
        before = (p0 - axis.front + left) // axis.block
        result, more = axis.becomes(axis.extent + p0 + p1, left)
        if more < before:  # an unknown extent has samples to spare
            result, more = replace(result, cells=result.cells + (before - more) * axis.block), before
        grows.append((before, more - before))
        results.append(result)
        needs = needs or _reads_around(axis, p0, p1)
    inputs = (axes, *(None for _ in link.inputs[1:]))
    return Phased(inputs, tuple(results), clean=True, needs=needs, grows=tuple(grows))


_END = 2**31 - 1
"""An end of a Slice that is at least this means the last element."""


def _part(axis: Axis, start: int, end: int) -> tuple[int, int] | None:
    """Return what a Slice cuts from the front of the data, and the extent of what it leaves, None for nothing."""
    if not axis.root:
        first, last, _ = slice(start, end).indices(axis.extent)
        return (first, last - first) if last > first else None
    left = axis.extent - start - (-end if end < 0 else 0)
    return (start, left) if start >= 0 and (end < 0 or end >= _END) and left >= 0 else None


def cut(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """Slice with step 1 along axes other than the batch."""
    axes, chain, count = space.lies(link.inputs[0], known), space.chain, space.rank + 2
    given = [link.attributes.get(name) for name in ("starts", "ends", "axes")] if "starts" in link.attributes else None
    lists = given or [chain.integers.get(name) if name else () for name in link.inputs[1:]]
    if axes is None or len(lists) < 2 or any(each is None for each in lists[: 2 if given else 4]):
        return None
    starts, ends, named, steps = (
        [value for value in each or () if isinstance(value, int)] if isinstance(each, tuple) else []
        for each in (*lists, (), ())[:4]
    )
    named, steps = named or list(range(len(starts))), steps or [1] * len(starts)
    results, cuts, channel = list(axes), [(0, 0)] * space.rank, False
    for start, end, axis, step in zip(starts, ends, (axis % count for axis in named), steps, strict=True):
        if axis == 1:
            channel = True
            continue
        part = _part(axes[axis - 2], start, end) if axis and step == 1 else None
        if part is None:
            return None
        old = axes[axis - 2]
        before, left = divmod(old.front + part[0], old.block)
        results[axis - 2], more = old.becomes(part[1], left)
        cuts[axis - 2] = (before, -more - before)
    moved = tuple(results) != axes
    if moved and channel:
        return None
    inputs = (axes, *(None for _ in link.inputs[1:]))
    return Phased(inputs, tuple(results), clean=not moved, cuts=tuple(cuts) if moved else ())


def quantization(link: Link, known: Mapping[str, Axes], space: Space) -> Phased | None:
    """QuantizeLinear, and DequantizeLinear of what one made: per tensor or per channel; 0 stays what stands for it."""
    scale = space.shape(link.inputs[1])
    along = link.attributes.get("axis", 1) in (1, -1 - space.rank)
    if scale is None or not (scale in ((), (1,)) or (len(scale) == 1 and along)):
        return None
    if link.attributes.get("block_size", 0):
        return None
    return _one(link, known, space, clean=True)


_ZERO_TO_ZERO = """Abs Asin Asinh Atan Atanh Cast Ceil Dropout Elu Erf Floor Gelu HardSwish Identity LeakyRelu Mish Neg
Relu Round Selu Sign Sin Sinh Softsign Sqrt Tan Tanh ThresholdedRelu"""
_ELEMENTWISE = """Acos Acosh BitwiseNot Celu Clip Cos Cosh Exp HardSigmoid IsInf IsNaN Log Not Reciprocal Shrink Sigmoid
Softplus"""
_BROADCAST = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Or Pow PRelu Sub Sum Where Xor"
_REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
_FOLDS = {
    "GlobalAveragePool": "Mean",
    "GlobalMaxPool": "Max",
    **{f"Reduce{name}": name for name in ("Max", "Mean", "Min", "Sum")},
}

ROWS: Mapping[str, Row] = {
    **dict.fromkeys(_ZERO_TO_ZERO.split(), zero_to_zero),
    **dict.fromkeys(_ELEMENTWISE.split(), elementwise),
    **dict.fromkeys(_BROADCAST.split(), broadcast),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), channels),
    **{f"Reduce{name}": reduction for name in _REDUCTIONS.split()},
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), fold),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), quantization),
    "BatchNormalization": normalization,
    "Concat": concat,
    "Pad": pad,
    "Slice": cut,
    "Split": split,
}
"""{operator: its row}; Convs are known by their geometry."""


@dataclass(frozen=True, slots=True)
class Grid:
    """How each tensor lies, or would, and how each link runs on phases (None: not)."""

    axes: Mapping[str, Axes]
    links: tuple[Phased | None, ...]


def spread(chain: Chain, block: tuple[int, ...]) -> Grid:
    """Return how a chain lies when all of it that can be is in phases."""
    space, links = Space(chain, block), list[Phased | None]()
    known: dict[str, Axes] = {}
    units: dict[str, Link] = {}
    for place, link in enumerate(chain.links):
        row = ROWS.get(link.op)
        if place in chain.convs:
            phased = conv(link, known, space, chain.convs[place])
        else:
            phased = row(link, known, space) if row is not None and _whole(link, units) else None
        links.append(phased)
        if phased is None:
            continue
        if link.op == "QuantizeLinear":
            units[link.outputs[0]] = link
        if not phased.fold:
            known.update((name, phased.axes) for name in link.outputs if name)
        for name, axes in zip(link.inputs, phased.inputs, strict=False):
            if axes is not None:
                known.setdefault(name, axes)
    makers = {name: place for place, link in enumerate(chain.links) for name in link.outputs}
    for link, phased in zip(chain.links, tuple(links), strict=True):
        place = makers.get(link.inputs[0], -1) if phased is not None and phased.needs else -1
        unit = links[place] if place >= 0 and chain.links[place].op == "DequantizeLinear" else None
        if unit is not None:  # zeros are written where it reads them
            links[place] = replace(unit, needs=True)
    return Grid(known, tuple(links))


def _whole(link: Link, units: Mapping[str, Link]) -> bool:
    """Say whether quantised tensors are read by a DequantizeLinear alone, and that with the same zero point."""
    if link.op != "DequantizeLinear":
        return not any(name in units for name in link.inputs)
    unit = units.get(link.inputs[0])
    return unit is not None and tuple(unit.inputs[2:]) == tuple(link.inputs[2:])


def extents(chain: Chain) -> dict[str, tuple[Size, ...]]:
    """Return the extents of the tensors that have unknown ones: two are equal if their names and numbers are."""
    unknown = {name for name, shape in chain.shapes.items() if None in shape[2:]}
    sizes: dict[str, tuple[Size, ...]] = {}
    for rank in range(1, MAX_RANK + 1):
        mine = {name for name in unknown if chain.rank(name) == rank + 2}
        laid = spread(chain, (1,) * rank).axes if mine else {}
        sizes.update((name, tuple(axis.size for axis in laid[name])) for name in sorted(mine & laid.keys()))
    return sizes


def within(chain: Chain, laid: Grid) -> Chain:
    """Return the chain that runs on phases as one of its own, to be split once more: its data are all the cells."""
    shapes, extents, links, convs = dict(chain.shapes), {}, [], {}
    for name, axes in laid.axes.items():
        batch, channels = chain.shapes[name][:2]
        times = product(axis.block for axis in axes)
        shapes[name] = (None if batch is None else batch * times, channels, *(axis.samples for axis in axes))
        if any(axis.root for axis in axes):
            extents[name] = tuple((axis.part, axis.cells // axis.block) for axis in axes)
    for place, (link, phased) in enumerate(zip(chain.links, laid.links, strict=True)):
        moves = phased is not None and (any(map(any, phased.cuts)) if place in chain.convs else phased.cuts)
        changes = phased is None or phased.fold or phased.grows or moves
        links.append(replace(link, op="") if changes else link)
        if phased is None or changes:
            continue
        times = product(axis.block for axis in phased.axes)
        for number in phased.repeated:
            batch, *more = chain.shapes[link.inputs[number]]
            shapes[link.inputs[number]] = (None if batch is None else batch * times, *more)
        if place in chain.convs:
            convs[place] = _inner(chain.convs[place], phased, shapes[link.inputs[0]])
    return replace(chain, links=tuple(links), shapes=shapes, extents=extents, convs=convs)


def _inner(geometry: ConvGeometry, phased: Phased, shape: tuple[int | None, ...]) -> ConvGeometry:
    attributes, rank = phased.attributes or {}, geometry.rank
    pads, dilations = attributes["pads"], attributes["dilations"]
    assert isinstance(pads, tuple)
    assert isinstance(dilations, tuple)
    return replace(
        geometry, batch=shape[0], extents=shape[2:], pads_begin=pads[:rank], pads_end=pads[rank:], dilations=dilations
    )
