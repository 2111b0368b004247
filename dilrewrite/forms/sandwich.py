"""A space-to-batch sandwich as data: the dilated Conv that it computes, and what stands around that.

An axis of the data enters the inner Conv as phases r and samples j, the place base + sum(u r) + U j of it; what the
Conv makes leaves as the outputs o = sum(v r) + B q. With u = s v for every phase and B s = U s', the inner Conv of
stride s', dilation d' and pads p' is one of stride s, dilation U d' and pads U p' - base on the whole axis
(docs/maths.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dilrewrite.forms.digits import Axis, Digit, Laid
from dilrewrite.forms.fragment import (
    CoreConv,
    CoreFill,
    DropKernelAxes,
    Fragment,
    Kept,
    Node,
    Step,
    TakeOutputs,
    WeightEdit,
    X,
)
from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.quasi import (
    Formula,
    Size,
    Unproved,
    at,
    constant,
    equal,
    minus,
    nonnegative,
    over,
    plus,
    times,
)

NEW = -1
"""The channels of the output, where no axis of the data holds those of the input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandwich:
    """What a sandwich means: `geometry` is the Conv, in the order of axes [N, C, *space].

    `enters`, `leaves`: which axes of the tensor that enters and of the one that leaves these are (`None`: of size 1 and
    not there). `dropped`: the spatial axes of the inner Conv that only hold phases. `repeats`: how often its weights
    stand one after the other. `before`, `after`: the nodes of the site that go on around the Conv, in their order, and
    which of their inputs are the data; `edits`: of their constants, by node and input. `quantizes`: whether one of them
    does.
    """

    geometry: ConvGeometry
    enters: tuple[int | None, ...]
    leaves: tuple[int | None, ...]
    dropped: tuple[int, ...] = ()
    repeats: int = 1
    before: tuple[tuple[int, int], ...] = ()
    after: tuple[tuple[int, int], ...] = ()
    edits: tuple[tuple[tuple[int, int], tuple[WeightEdit, ...]], ...] = ()
    quantizes: bool = False

    def shape(self, sizes: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the sizes of the tensor that enters, of those of [N, C, *space]."""
        known = {place: size for place, size in zip(self.enters, sizes, strict=True) if place is not None}
        return tuple(known[place] for place in range(len(known)))

    @property
    def makes(self) -> tuple[int | None, ...]:
        """Return the sizes of the tensor that leaves."""
        geometry = self.geometry
        sizes = (geometry.batch, geometry.out_channels, *geometry.out_extents)
        known = {place: size for place, size in zip(self.leaves, sizes, strict=True) if place is not None}
        return tuple(known[place] for place in range(len(known)))

    def sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes of [N, C, *space], of those of the tensor that enters."""
        return tuple(1 if place is None else shape[place] for place in self.enters)

    def around(self, form: Fragment) -> Fragment:
        """Return a form of the Conv with what stands around it in the model."""
        start, before = _entered(self.enters, form.opset)
        last = before[-1].outputs[0] if before else X
        steps: list[Step] = [*before]
        kept = [self._kept(of, place) for of, place in (*self.before, *self.after)]
        for step in kept[: len(self.before)]:
            steps.append(replace(step, sources=dict.fromkeys(step.sources, last)))
            last = step.outputs[0]
        drop: tuple[WeightEdit, ...] = (DropKernelAxes(self.dropped),) if self.dropped else ()
        take: tuple[WeightEdit, ...] = (TakeOutputs(self.repeats),) if self.repeats > 1 else ()
        steps += [_renamed(step, last, (*take, *drop)) for step in form.steps]
        last = form.results[0]
        for step in kept[len(self.before) :]:
            steps.append(replace(step, sources=dict.fromkeys(step.sources, last)))
            last = step.outputs[0]
        end, behind = _left(self.leaves, last, form.opset)
        steps += behind
        last = behind[-1].outputs[0] if behind else last
        constants = {**form.constants, **start, **end}
        return replace(form, steps=tuple(steps), constants=constants, results=(last,), region=True)

    def _kept(self, of: int, place: int) -> Kept:
        edits = {number: edits for (node, number), edits in self.edits if node == of}
        return Kept(of=of, sources={place: X}, outputs=(f"kept_{of}",), edits=edits)


def _renamed(step: Step, source: str, edits: tuple[WeightEdit, ...]) -> Step:
    """Return a step of a form that reads `source` where it read what enters, with weights edited before."""
    if isinstance(step, Node):
        return replace(step, inputs=tuple(source if name == X else name for name in step.inputs))
    if isinstance(step, CoreConv):
        return replace(step, source=source if step.source == X else step.source, weight=(*edits, *step.weight))
    assert isinstance(step, CoreFill)
    return step


def _entered(enters: Sequence[int | None], opset: int) -> tuple[dict[str, tuple[int, ...]], list[Node]]:
    """Return the nodes that put the axes of what enters in the order of a Conv, and their constants."""
    present = tuple(place for place in enters if place is not None)
    missing = tuple(place for place, axis in enumerate(enters) if axis is None)
    nodes, last = [], X
    if present != tuple(range(len(present))):
        nodes.append(Node("Transpose", (last,), ("entering",), {"perm": present}))
        last = "entering"
    return _with_axes("Unsqueeze", last, missing, opset, nodes)


def _left(leaves: Sequence[int | None], last: str, opset: int) -> tuple[dict[str, tuple[int, ...]], list[Node]]:
    """Return the nodes that put the axes of a Conv in the order of what leaves, and their constants."""
    missing = tuple(place for place, axis in enumerate(leaves) if axis is None)
    present = [axis for axis in leaves if axis is not None]
    constants, nodes = _with_axes("Squeeze", last, missing, opset, [])
    last = nodes[-1].outputs[0] if nodes else last
    if present != sorted(present):
        order = tuple(present.index(axis) for axis in range(len(present)))
        nodes.append(Node("Transpose", (last,), ("leaving",), {"perm": order}))
    return constants, nodes


def _with_axes(
    op: str, last: str, axes: tuple[int, ...], opset: int, nodes: list[Node]
) -> tuple[dict[str, tuple[int, ...]], list[Node]]:
    if not axes:
        return {}, nodes
    name = op.lower()
    if opset < 13:
        return {}, [*nodes, Node(op, (last,), (name,), {"axes": axes})]
    return {f"{name}_axes": axes}, [*nodes, Node(op, (last, f"{name}_axes"), (name,), {})]


# -- what a Conv between layout operators computes ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Slid:
    """An axis of the data that the Conv slides over: which of its spatial axes that is, and the numbers of the Conv on
    the whole axis: `begin` its pads in front, `reach` the places between first and last tap, `block` the phases.
    """

    place: int
    axis: int
    extent: Size
    kernel: int
    stride: int
    dilation: int
    begin: Size
    block: int

    @property
    def reach(self) -> int:
        """Return how far the last tap is from the first."""
        return self.dilation * (self.kernel - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A Conv behind layout operators: which axes of the data it takes as batch and channels and slides over, and how
    what it makes lies.
    """

    inner: ConvGeometry
    batch: int | None
    channels: int | None
    slides: tuple[Slid, ...]
    dropped: tuple[int, ...]
    repeats: int
    made: Laid
    shape: tuple[Size, ...]


def phases(laid: Laid) -> set[int]:
    """Return the axes of the data that a tensor holds in phases: digits that do not stand together."""
    digits = [digit for axis in laid.axes for digit in axis if digit.size != 1]
    return {digit.axis for digit in digits if sum(other.axis == digit.axis for other in digits) > 1}


def opened(inner: ConvGeometry, laid: Laid, shape: Sequence[Size]) -> Opened:
    """Return what a Conv of `inner` is to the data of `shape` that enters it as `laid`. Raises `Unproved`."""
    explicit = inner.explicit()
    begins, ends = (
        [pad if pad is not None else -1 for pad in pads] for pads in (explicit.pads_begin, explicit.pads_end)
    )
    if len(laid.axes) != inner.rank + 2 or min(*begins, *ends) < 0:
        raise Unproved("the Conv has pads or axes that are not known, or negative pads")
    held: dict[int, list[Digit]] = {}
    for digit in (digit for axis in laid.axes for digit in axis):
        held.setdefault(digit.axis, []).append(digit)
    slid = {id(axis[0]) for axis in laid.axes[2:] if len(axis) == 1}
    top = {axis: max(digits, key=lambda digit: (id(digit) in slid, digit.weight)) for axis, digits in held.items()}
    whole = {axis: len(digits) == 1 and _untouched(laid, digits[0], shape) for axis, digits in held.items()}

    channels, repeats = _channels(laid.axes[1], whole)
    batches = [digit.axis for digit in laid.axes[0] if whole[digit.axis]]
    if len(batches) > 1:
        raise Unproved("several axes go into the batch")
    batch = batches[0] if batches else None
    over_axes, empty = _spatial(explicit, laid.axes[2:], top)
    split = {axis for axis, digits in held.items() if len(digits) > 1}
    if split - set(over_axes.values()):
        raise Unproved("an axis is split into phases that the Conv does not slide over")
    unused = [axis for axis in range(len(shape)) if axis not in held]
    roles: list[tuple[str, int]] = [("batch", 0)] * (batch is None) + [("channels", 0)] * (channels is None)
    roles += [("space", place) for place in empty if not _point(explicit, place)]
    optional = [("space", place) for place in empty if _point(explicit, place)]
    if len(unused) > len(roles):
        roles = sorted([*roles, *optional[: len(unused) - len(roles)]], key=lambda role: (role[0] == "space", role[1]))
    if len(unused) > len(roles):
        raise Unproved("what enters has an axis of size 1 that the Conv has no place for")
    for (role, place), axis in zip(roles, unused, strict=False):
        batch, channels = (axis if role == "batch" else batch), (axis if role == "channels" else channels)
        if role == "space":
            over_axes[place] = axis
            top[axis] = Digit(axis, 1, 1)
            held[axis] = [top[axis]]
    dropped = tuple(place for place in range(inner.rank) if place not in over_axes)
    if any(not _point(explicit, place) for place in dropped):
        raise Unproved("the Conv slides over an axis that what enters does not have")
    slides = [
        _slid(explicit, place, top[axis], laid, held[axis], shape[axis]) for place, axis in sorted(over_axes.items())
    ]
    by_axis = {slide.axis: slide for slide in slides}
    outs = None if inner.out_channels is None else inner.out_channels // repeats
    if outs is None or inner.group % repeats or inner.out_channels != outs * repeats:
        raise Unproved("the number of output channels is not known, or not that of whole phases")

    def leaving(axis: Axis) -> Axis:
        return tuple(
            digit if digit.axis not in by_axis else replace(digit, weight=digit.weight // by_axis[digit.axis].stride)
            for digit in axis
        )

    made = [*map(leaving, laid.axes)]
    made[1] = (
        *(digit for digit in made[1] if digit.axis != channels),
        Digit(NEW if channels is None else channels, 1, outs),
    )
    for slide in slides:
        held_here = laid.size(slide.place + 2)
        made[slide.place + 2] = (Digit(slide.axis, slide.block, _outputs(explicit, slide.place, held_here)),)
    base: dict[int, Size] = dict.fromkeys((NEW, *range(len(shape))), 0)
    return Opened(
        inner=inner, batch=batch, channels=channels, slides=tuple(slides), dropped=dropped, repeats=repeats,
        made=Laid(axes=tuple(made), base=base), shape=tuple(shape),
    )  # fmt: skip


def _untouched(laid: Laid, digit: Digit, shape: Sequence[Size]) -> bool:
    """Say whether a digit is a whole axis of the data, without pads and cuts."""
    plain = digit.weight == 1 and laid.base[digit.axis] == 0 and digit.axis not in laid.cut
    return plain and equal(digit.size, shape[digit.axis])


def _channels(axis: Axis, whole: Mapping[int, bool]) -> tuple[int | None, int]:
    """Return the axis of the data that the channels are, and how many phases stand before it."""
    own = axis[-1].axis if axis and whole[axis[-1].axis] else None
    sizes = [digit.size for digit in (axis if own is None else axis[:-1])]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) != len(sizes):
        raise Unproved("an axis of unknown size goes into the channels")
    return own, product(known)


def _spatial(inner: ConvGeometry, axes: Sequence[Axis], top: Mapping[int, Digit]) -> tuple[dict[int, int], list[int]]:
    """Return which axis of the data each spatial axis of a Conv is, and which of them hold nothing; others: phases."""
    over_axes: dict[int, int] = {}
    empty = []
    for place, axis in enumerate(axes):
        if len(axis) == 1 and top[axis[0].axis] == axis[0]:
            over_axes[place] = axis[0].axis
        elif not axis:
            empty.append(place)
        elif not _point(inner, place) or any(top[digit.axis] == digit for digit in axis):
            raise Unproved("the Conv slides over an axis that is joined of others")
    if len(set(over_axes.values())) < len(over_axes):
        raise Unproved("the Conv slides twice over an axis")
    return over_axes, empty


def _point(inner: ConvGeometry, place: int) -> bool:
    """Say whether a Conv leaves an axis as it is."""
    pads = inner.pads_begin[place], inner.pads_end[place]
    return inner.kernel[place] == inner.strides[place] == 1 and pads == (0, 0)


def _slid(inner: ConvGeometry, place: int, major: Digit, laid: Laid, digits: Sequence[Digit], extent: Size) -> Slid:
    """Return the Conv on a whole axis of the data, whose samples `major` counts. Raises `Unproved`."""
    axis = major.axis
    minors = sorted((digit for digit in digits if digit is not major), key=lambda digit: digit.weight)
    stride = minors[0].weight if minors else major.weight * inner.strides[place]
    block = 1
    for digit in minors:
        if digit.weight != stride * block or not isinstance(digit.size, int):
            raise Unproved(f"the phases of spatial axis {place} are not all there, or overlap")
        block *= digit.size
    if block * stride != major.weight * inner.strides[place]:
        raise Unproved(f"the phases of spatial axis {place} are not all there, or overlap")
    base, step = laid.base.get(axis, 0), major.weight
    begin, end = inner.pads_begin[place], inner.pads_end[place]
    last = plus(base, sum(digit.weight * (digit.size - 1) for digit in minors if isinstance(digit.size, int)) - step)
    inside = nonnegative(minus(-1, last)), nonnegative(minus(plus(base, times(major.size, step)), extent))
    if (begin and not inside[0]) or (end and not inside[1]):
        raise Unproved(f"the Conv pads spatial axis {place} with zeros where there are data")
    kernel = inner.kernel[place]
    return Slid(
        place=place, axis=axis, extent=extent, kernel=kernel, stride=stride, block=block,
        dilation=step * inner.dilations[place] if kernel > 1 else 1, begin=minus(step * (begin or 0), base),
    )  # fmt: skip


def _outputs(inner: ConvGeometry, place: int, samples: Size) -> Size:
    """Return how many outputs a Conv makes of so many samples."""
    padded = plus(samples, (inner.pads_begin[place] or 0) + (inner.pads_end[place] or 0) - inner.span(place))
    return plus(over(padded, inner.strides[place]), 1)


def closed(start: Opened, laid: Laid) -> Sandwich:
    """Return what the Conv and the layout operators behind it compute, where its output leaves as `laid`.

    Raises `Unproved` where that is no Conv.
    """
    places: dict[int, int] = {}
    lost: list[int] = []
    for place, axis in enumerate(laid.axes):
        if not axis:
            lost.append(place)
        elif len(axis) > 1 or axis[0].weight != 1 or axis[0].axis in places:
            raise Unproved("the phases are joined in another order than they were split in")
        else:
            places[axis[0].axis] = place
    new = NEW if start.channels is None else start.channels
    order = [start.batch, new, *(slide.axis for slide in start.slides)]
    hidden = [axis for axis in order if axis is not None and axis not in places]
    if len(lost) > len(hidden) or any(axis not in order for axis in places):
        raise Unproved("what leaves has an axis that the Conv does not make")
    places |= dict(zip(hidden, lost, strict=False))
    if any(axis in laid.cut or laid.base[axis] != 0 for axis in (start.batch, new) if axis is not None):
        raise Unproved("what leaves is cut in its batch or channels")
    pads = [_pads(slide, laid, places) for slide in start.slides]
    inner, many = start.inner, start.repeats

    def sized(size: Size) -> int | None:
        return size if isinstance(size, int) else None

    def unless_one(axis: int | None) -> int | None:
        return 1 if axis is None else sized(start.shape[axis])

    geometry = ConvGeometry(
        batch=unless_one(start.batch),
        in_channels=None if inner.in_channels is None else inner.in_channels // many,
        out_channels=None if inner.out_channels is None else inner.out_channels // many,
        group=inner.group // many,
        extents=tuple(sized(slide.extent) for slide in start.slides),
        kernel=tuple(slide.kernel for slide in start.slides),
        strides=tuple(slide.stride for slide in start.slides),
        dilations=tuple(slide.dilation for slide in start.slides),
        pads_begin=tuple(begin for begin, _ in pads),
        pads_end=tuple(end for _, end in pads),
        bias=inner.bias,
        element=inner.element,
        quantized=inner.quantized,
    )
    reason = geometry.malformed() or geometry.invalid() or ("it has no spatial axis" if not geometry.rank else None)
    if reason:
        raise Unproved(f"it would be no valid Conv: {reason}")
    enters = (start.batch, start.channels, *(slide.axis for slide in start.slides))
    gone = None if start.batch is None else places.get(start.batch)
    leaves = (gone, places.get(new), *(places.get(slide.axis) for slide in start.slides))
    return Sandwich(geometry=geometry, enters=enters, leaves=leaves, dropped=start.dropped, repeats=many)


def _pads(slide: Slid, laid: Laid, places: Mapping[int, int]) -> tuple[int, int]:
    """Return the pads of the Conv on a whole axis: those of all extents. Raises `Unproved`."""
    crop = laid.base[slide.axis]
    begin = constant(minus(slide.begin, times(crop, slide.stride)))
    if begin is None:
        raise Unproved(f"what is padded and cropped in front of spatial axis {slide.place} depends on its extent")
    place = places.get(slide.axis)
    count = 1 if place is None else laid.size(place)
    # the least pads behind: (count - 1) s + d(k-1) + 1 = H + begin + end, and up to s - 1 more
    needed = minus(plus(times(minus(count, 1), slide.stride), slide.reach + 1 - begin), slide.extent)
    values = {needed} if isinstance(needed, int) else _values(needed)
    least, most = (max(values), min(values) + slide.stride - 1) if values else (1, 0)
    if least > most:
        raise Unproved(f"what is padded and cropped behind spatial axis {slide.place} depends on its extent")
    return begin, begin if least <= begin <= most else least


def _values(size: Formula) -> set[int]:
    """Return the values of a size that is the same for all extents, but for their remainders; none for any other."""
    if any(rise for _, rise in size.periods.values()):
        return set()
    return {at(size, point) for point in size.points()}
