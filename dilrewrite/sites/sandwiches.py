"""Finds space-to-batch sandwiches: layout operators, a Conv on phases, layout operators: together a dilated Conv.

Whatever the operators are called, and in whatever order they stand: they are followed by what they do (`runs.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dilrewrite.forms.digits import Laid
from dilrewrite.forms.fragment import PerChannel, WeightEdit
from dilrewrite.forms.geometry import product
from dilrewrite.forms.quasi import Unproved
from dilrewrite.forms.sandwich import NEW, Opened, Sandwich, closed, opened, phases
from dilrewrite.model.walk import DEFAULT_DOMAINS
from dilrewrite.sites import Operand, Part, Site, Unfolded
from dilrewrite.sites.known import UNARY
from dilrewrite.sites.operators import Refused, label_of
from dilrewrite.sites.operators.conv import OPERATOR as CONV
from dilrewrite.sites.runs import MOVING, QUANTIZING, Track
from dilrewrite.sites.scopes import Scope

MOST_STEPS = 40
"""How many layout operators are looked at in front of a Conv, and how many behind it."""

MOST_BEYOND = 6
"""How many nodes behind the end of a sandwich are looked at for an order of axes that is better."""

TAKES_APART = frozenset({"Concat", "Reshape", "SpaceToDepth"})
PER_CHANNEL = frozenset({"Add", "Div", "Mul", "PRelu", "Sub"})
POINTWISE = UNARY | PER_CHANNEL | QUANTIZING | {"BatchNormalization"}

FAR = 2**12
"""An extent that is long enough for any Conv in a model."""


def every_sandwich(scope: Scope) -> Iterator[Site | Unfolded]:
    """Yield the sandwiches of a node list as sites, and what looks like one and is none, with the reason.

    No node is in two of them: the first one has it.
    """
    owners: dict[int, str] = {}
    for item in _every(scope):
        shared = [index for index in item.nodes if index in owners] if isinstance(item, Site) else []
        if shared:
            reason = f"{label_of(scope.nodes[shared[0]])!r} is a part of the sandwich around {owners[shared[0]]!r}"
            yield Unfolded(where=item.where, name=item.name, reason=reason)
            continue
        if isinstance(item, Site):
            owners |= dict.fromkeys(item.nodes, item.name)
        yield item


def _every(scope: Scope) -> Iterator[Site | Unfolded]:
    """Yield sandwiches, each of them as if it were the only one."""
    for index, node in enumerate(scope.nodes):
        if node.op_type == CONV.op and node.domain in DEFAULT_DOMAINS and len(node.output) == 1:
            try:
                part = CONV.read(scope, index)
            except (Refused, ValueError):
                continue
            steps = list(_upwards(scope, index))
            if any(scope.nodes[place].op_type in TAKES_APART for step in steps for place in step.nodes):
                yield from _at(scope, part, steps)


@dataclass(frozen=True, slots=True)
class _Step:
    """Nodes in front of a Conv, and the tensor that enters them."""

    nodes: tuple[int, ...]
    tensor: str


def _upwards(scope: Scope, index: int) -> Iterator[_Step]:
    """Yield the layout operators in front of a Conv, the last one first."""
    tensor, moved = scope.nodes[index].input[0], False
    for _ in range(MOST_STEPS):
        place = scope.producers.get(tensor)
        node = scope.nodes[place] if place is not None else None
        if node is None or place is None or node.domain not in DEFAULT_DOMAINS or not node.input:
            return
        if node.op_type == "Concat":
            places = [scope.producers.get(name) for name in node.input]
            known = [one for one in places if one is not None and scope.nodes[one].op_type == "Slice"]
            sources = {scope.nodes[one].input[0] for one in known}
            if len(known) < len(places) or len(sources) != 1:
                return
            tensor = sources.pop()
            yield _Step((*dict.fromkeys(known), place), tensor)
        elif node.op_type in MOVING - {"Split"} or (node.op_type in QUANTIZING and not moved):
            tensor = node.input[0]
            yield _Step((place,), tensor)
        else:
            return
        moved = moved or node.op_type not in QUANTIZING


@dataclass
class _Attempt:
    """One way to see a Conv and what stands around it, from a tensor that enters on."""

    scope: Scope
    part: Part
    track: Track
    before: list[int]
    start: Opened | None = None
    stage: int = 0
    after: list[int] = field(default_factory=list)
    edits: dict[tuple[int, int], tuple[WeightEdit, ...]] = field(default_factory=dict)

    @property
    def channels(self) -> int:
        """Return the axis of the data that the channels of the output count as."""
        assert self.start is not None
        return NEW if self.start.channels is None else self.start.channels

    def open(self) -> None:
        """Follow the data to the Conv and through it. Raises `Unproved`."""
        track, conv = self.track, self.scope.nodes[self.part.index]
        for index in self.before:
            track.through(index)
        laid = track.laid[conv.input[0]]
        if not phases(laid):
            raise LookupError("no phases")
        self.stage = 1
        self.start = opened(self.part.geometry, laid, track.shape)
        if track.fill not in (None, 0.0):
            raise Unproved("what is padded with is no 0")
        track.laid[conv.output[0]] = self.start.made
        self.stage = 2

    def close(self) -> tuple[Sandwich, str, list[int]]:
        """Follow what the Conv makes to where it is whole again: return the meaning, that tensor, the nodes behind.

        Raises `Unproved`.
        """
        assert self.start is not None
        tensor, best, beyond = self.scope.nodes[self.part.index].output[0], None, 0
        reason = Unproved("the phases are not joined again behind the Conv")
        while len(self.after) < MOST_STEPS and beyond <= MOST_BEYOND:
            try:
                meaning = closed(self.start, self.track.laid[tensor])
            except Unproved as no:
                reason = no if self.after else reason
            else:
                if best is None or self._better(meaning, best):
                    best, beyond = (meaning, tensor, list(self.after)), 0
            try:
                tensor = self._next(tensor)
            except Unproved as no:
                reason = no if self.scope.consumers.get(tensor) else reason
                break
            beyond += best is not None
        if best is None:
            raise reason
        return best

    def _better(self, meaning: Sandwich, best: tuple[Sandwich, str, list[int]]) -> bool:
        """Say whether what ends here is better than what ended before: no worse, and with more layout operators."""
        old = _order(self.scope, best[0], best[0].leaves, best[2])
        new = _order(self.scope, meaning, meaning.leaves, self.after)
        moved = all(self.scope.nodes[index].op_type in MOVING for index in self.after[len(best[2]) :])
        return new > old or (new == old and moved)

    def _next(self, tensor: str) -> str:
        """Follow the data through the next node; return the tensor that it makes. Raises `Unproved`."""
        scope = self.scope
        readers = [
            index for index in scope.consumers.get(tensor, ()) if scope.nodes[index].op_type not in ("Shape", "Size")
        ]
        if len(readers) != 1 or scope.captured[tensor] or tensor in scope.outputs:
            names = [repr(label_of(scope.nodes[index])) for index in readers]
            names += ["a graph inside a node"] * bool(scope.captured[tensor]) + ["the model's output"] * (
                tensor in scope.outputs
            )
            raise Unproved(f"the tensor {tensor!r}, between its phases, is read by {' and '.join(names) or 'nothing'}")
        (index,) = readers
        node = scope.nodes[index]
        place = list(node.input).index(tensor)
        if node.domain not in DEFAULT_DOMAINS or node.op_type not in (MOVING - {"Pad"} | POINTWISE):
            raise Unproved(f"{node.op_type} {label_of(node)!r} stands between its phases")
        if node.op_type in POINTWISE:
            self._pointwise(index, place)
            self.track.laid[node.output[0]] = self.track.laid[tensor]
        elif place == 0:
            self.track.through(index)
        else:
            raise Unproved(f"{node.op_type} {label_of(node)!r} takes the phases for sizes")
        self.after.append(index)
        used = [name for name in node.output if name and (scope.consumers.get(name) or name in scope.outputs)]
        if len(used) != 1:
            raise Unproved(f"{node.op_type} {label_of(node)!r} makes {len(used)} tensors that are used")
        return str(used[0])

    def _pointwise(self, index: int, place: int) -> None:
        """Check that a node does the same to all places; note how its constant has to lie elsewhere."""
        node, scope = self.scope.nodes[index], self.scope
        laid = self.track.laid[node.input[place]]
        others = [(number, scope.operand(name)) for number, name in enumerate(node.input) if number != place and name]
        own = [number for number, axis in enumerate(laid.axes) if axis and all(d.axis == self.channels for d in axis)]
        fine = all(operand.is_constant and operand.shape is not None for _, operand in others)
        if node.op_type == "BatchNormalization":
            fine = fine and place == 0 and own == [1] and len(node.output) == 1
        elif node.op_type in PER_CHANNEL:
            fine = fine and len(others) == 1 and (place == 0 or node.op_type in ("Add", "Mul"))
            for number, operand in others if fine else ():
                self._constant(index, number, operand, laid, own)
        else:
            fine = fine and place == 0 and all(product(operand.shape or ()) == 1 for _, operand in others)
        if not fine:
            raise Unproved(f"{node.op_type} {label_of(node)!r} stands between its phases")

    def _constant(self, index: int, number: int, operand: Operand, laid: Laid, own: Sequence[int]) -> None:
        """Check that a constant has one value, or one per channel."""
        assert self.start is not None
        shape, rank = operand.shape or (), len(laid.axes)
        long = [rank - len(shape) + place for place, size in enumerate(shape) if size > 1]
        count = self.part.geometry.out_channels
        if len(shape) > rank or (long and (long != list(own) or product(shape) != count or self.start.repeats > 1)):
            raise Unproved(f"the constant {operand.name!r}, between its phases, has not one value per channel")
        behind, space = rank - 1 - own[0] if long else 0, len(self.start.slides)
        if (long and behind != space) or len(shape) > space + 2:
            self.edits[index, number] = (PerChannel(space if long else 0),)


def _in_order(axes: Sequence[int | None]) -> bool:
    return list(axes) == list(range(len(axes)))


def _at(scope: Scope, part: Part, steps: Sequence[_Step]) -> Iterator[Site | Unfolded]:
    """Yield the sandwich around a Conv, or why it is none; nothing where there are no phases."""
    found: list[tuple[tuple[tuple[bool, int, bool], int], Site]] = []
    reasons: list[tuple[int, str]] = []
    for count in range(len(steps), 0, -1):
        try:
            site = _site(scope, part, steps[:count])
            assert isinstance(site.meaning, Sandwich)
            before = [index for step in steps[:count] for index in step.nodes]
            found.append(((_order(scope, site.meaning, site.meaning.enters, before), len(site.nodes)), site))
        except LookupError:
            continue
        except Unproved as no:
            stage = no.args[1] if len(no.args) > 1 else 0
            reasons.append((stage, str(no.args[0])))
    if found:
        yield max(found, key=lambda pair: pair[0])[1]
    elif any(stage for stage, _ in reasons):
        node = scope.nodes[part.index]
        best = max(stage for stage, _ in reasons)
        reason = next(reason for stage, reason in reasons if stage == best)
        yield Unfolded(where=scope.where, name=label_of(node), reason=reason)


def _order(scope: Scope, meaning: Sandwich, axes: Sequence[int | None], nodes: Sequence[int]) -> tuple[bool, int, bool]:
    """Return how good a way to see a sandwich is: no negative pads, the Pads and crops in it, no Transposes."""
    pads = (*meaning.geometry.pads_begin, *meaning.geometry.pads_end)
    cuts = sum(scope.nodes[index].op_type in ("Pad", "Slice", "Split") for index in nodes)
    return min((pad for pad in pads if pad is not None), default=0) >= 0, cuts, _in_order(axes)


def _site(scope: Scope, part: Part, steps: Sequence[_Step]) -> Site:
    """Return the sandwich whose first nodes are those of the last step.

    Extents that are too short for the Conv do not count. Raises `Unproved` with the reason and how far it got, and
    LookupError where there are no phases.
    """
    try:
        return _sited(scope, part, steps, {})
    except Unproved:
        known = scope.shape_of(steps[-1].tensor)[1] or ()
        open_axes = [axis for axis, size in enumerate(known) if size is None]
        if not open_axes:
            raise
        meaning = _sited(scope, part, steps, dict.fromkeys(open_axes, FAR)).meaning
        assert isinstance(meaning, Sandwich)
        geometry = meaning.geometry
        least = {}
        for place, axis in enumerate(meaning.enters[2:]):
            pads = (geometry.pads_begin[place] or 0) + (geometry.pads_end[place] or 0)
            if axis in open_axes:
                least[axis] = max(1, geometry.span(place) - pads)
        return _sited(scope, part, steps, {axis: size for axis, size in least.items() if axis is not None})


def _sited(scope: Scope, part: Part, steps: Sequence[_Step], least: Mapping[int, int]) -> Site:
    before = [place for step in reversed(steps) for place in step.nodes]
    attempt = None
    try:
        attempt = _Attempt(scope, part, Track(scope, steps[-1].tensor, least), before)
        attempt.open()
        meaning, output, after = attempt.close()
        attempt.stage = 3
        nodes = _inside(attempt, [*before, part.index, *after], output)
    except Unproved as no:
        raise Unproved(str(no.args[0]), attempt.stage if attempt is not None else 0) from no
    return _made(attempt, meaning, output, sorted(nodes), after)


def _inside(attempt: _Attempt, data: Sequence[int], output: str) -> set[int]:
    """Return the nodes that go: those on the way of the data, and what computes sizes for these alone.

    Raises `Unproved` where another node reads a tensor in between.
    """
    scope = attempt.scope
    gone, sizes = {*data}, _computing(scope, attempt.track.sizes.nodes) - {*data}
    while True:
        kept = {index for index in sizes if not _only_for(scope, index, gone | sizes)}
        if not kept:
            break
        sizes -= kept
    gone |= sizes
    for index in data:
        for name in scope.nodes[index].output:
            if name and name != output and not _read_only_by(scope, name, gone):
                others = [scope.nodes[other] for other in scope.consumers.get(name, ()) if other not in gone]
                by = repr(label_of(others[0])) if others else "the model's output or a graph inside a node"
                raise Unproved(f"the tensor {name!r} inside of it is read by {by} too")
    return gone


def _computing(scope: Scope, nodes: set[int]) -> set[int]:
    """Return nodes that compute sizes with all that these hang on, up to the tensors whose sizes they are."""
    found, queue = set(nodes), list(nodes)
    while queue:
        node = scope.nodes[queue.pop()]
        known = [maker for name in node.input if (maker := scope.producers.get(name)) is not None]
        if node.op_type in ("Shape", "Size"):  # of a tensor of data
            known = [maker for maker in known if scope.nodes[maker].op_type == "Shape"]
        new = {*known} - found
        found |= new
        queue += new
    return found


def _only_for(scope: Scope, index: int, nodes: set[int]) -> bool:
    return all(_read_only_by(scope, name, nodes) for name in scope.nodes[index].output if name)


def _read_only_by(scope: Scope, name: str, nodes: set[int]) -> bool:
    inside = all(index in nodes for index in scope.consumers.get(name, ()))
    return inside and not scope.captured[name] and name not in scope.outputs


def _made(attempt: _Attempt, meaning: Sandwich, output: str, nodes: Sequence[int], after: Sequence[int]) -> Site:
    """Return the site. Its Conv has a DequantizeLinear before it as a part, unless another quantises before that."""
    scope, part = attempt.scope, attempt.part
    quantizing = [index for index in attempt.before if scope.nodes[index].op_type in QUANTIZING]
    direct = part.input_quantization is not None and quantizing == [part.input_quantization.index]
    if not direct and part.input_quantization is not None:
        if part.input_quantization.index in attempt.before:
            part = replace(part, input_quantization=None, storage=None, fill=None)
        else:
            raise Unproved("a DequantizeLinear stands in front of it", 3)
    if meaning.repeats > 1:
        _check_repeats(scope, part, meaning.repeats)
    geometry = replace(meaning.geometry, quantized=direct)
    number = {index: of for of, index in enumerate(nodes)}
    pointwise = [index for index in after if scope.nodes[index].op_type in POINTWISE]
    operands = {}
    for index in pointwise:
        for place, name in enumerate(scope.nodes[index].input):
            if (index, place) in attempt.edits:
                operands[number[index], place] = scope.operand(name)
    kept = {index: _data_place(scope, attempt, index) for index in pointwise}
    quantizes = bool(quantizing) or any(scope.nodes[index].op_type in QUANTIZING for index in pointwise)
    last = next((index for index in reversed(pointwise) if scope.nodes[index].op_type in QUANTIZING), None)
    return Site(
        scope=scope.path,
        where=scope.where,
        name=label_of(scope.nodes[part.index]),
        nodes=tuple(nodes),
        inputs=(attempt.track.entered,),
        outputs=(output,),
        meaning=replace(
            meaning,
            geometry=geometry,
            before=tuple((number[index], 0) for index in quantizing if not direct),
            after=tuple((number[index], kept[index]) for index in pointwise),
            edits=tuple(((number[i], place), edits) for (i, place), edits in attempt.edits.items() if i in number),
            quantizes=quantizes,
        ),
        parts=(part,),
        opset=scope.opset,
        ir_version=scope.ir_version,
        operands=operands,
        quantizes_output=last is not None and scope.nodes[last].op_type == "QuantizeLinear",
    )


def _check_repeats(scope: Scope, part: Part, times: int) -> None:
    """Raise `Unproved` unless weights and bias are `times` equal parts."""
    for operand in filter(None, (part.weight, part.bias)):
        values = scope.values(operand) if part.weight_quantization is None else None
        if values is None:
            raise Unproved(f"whether {operand.name!r} is the same for all phases is not known", 3)
        parts = values.reshape(times, -1)
        if not np.array_equal(parts, np.broadcast_to(parts[0], parts.shape)):
            raise Unproved(f"{operand.name!r} is not the same for all phases", 3)


def _data_place(scope: Scope, attempt: _Attempt, index: int) -> int:
    return next(place for place, name in enumerate(scope.nodes[index].input) if name in attempt.track.laid)
