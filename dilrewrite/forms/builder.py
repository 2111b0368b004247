"""Builds a Fragment: the only file that knows how each opset spells an operator.

Strategies write one text for known and unknown sizes. An `Extent` is an `int` or a `Symbol` (a tensor that holds the
size at run time); arithmetic on two ints is done at once, otherwise it becomes nodes. Where an opset lacks what is
needed, the builder raises `Unsupported` with the opset and the operator, which `strategies.plan` turns into a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dilrewrite.forms.fragment import FILL, AttributeValue, Core, CoreConv, CoreFill, Fragment, Node, WeightEdit, X
from dilrewrite.forms.geometry import ConvGeometry, Window

END: Final = 2**63 - 1
"""A Slice's end that means "to the last element"."""

INFER: Final = -1
"""In a reshape: what is left over. Only for the batch: next to a zero-sized batch any other use is ambiguous."""


class Unsupported(Exception):  # noqa: N818 - it is caught and becomes a refusal, never shown as an error
    """The opset lacks an operator that this form needs; the text says which."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A size known at run time: the name of an int64 tensor of shape [1], and an upper bound when there is one."""

    name: str
    bound: int | None = None


Extent = int | Symbol


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the fragment: its name and what is known of its shape (`None`: not asked for yet)."""

    name: str
    shape: tuple[Extent | None, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """The part `start:stop:step` of an axis; a negative int counts from the end."""

    start: Extent = 0
    stop: Extent = END
    step: int = 1


class Builder:
    """Collects the nodes of one fragment for `geometry` at `opset`; `storage` is the element type of the input `X`.

    `storage` differs from the geometry's element for a quantised site, whose layout operators stand on the integers.
    """

    def __init__(self, geometry: ConvGeometry, opset: int, *, storage: str | None = None) -> None:
        self.geometry = geometry
        self.opset = opset
        self.storage = storage or geometry.element
        self.quantized = self.storage != geometry.element
        self.x = Tensor(X, (geometry.batch, geometry.in_channels, *geometry.extents))
        self.weight_edits: tuple[WeightEdit, ...] = ()
        self._nodes: list[Node | Core] = []
        self._constants: dict[tuple[int, ...], str] = {}
        self._shapes: dict[str, str] = {}
        self._extents: dict[tuple[str, int], Symbol] = {}
        self._computed: dict[tuple[object, ...], str] = {}
        self._exit: set[str] = set()
        self._count = 0
        self.partial = False
        self._moved: int | None = 0
        self._multiply_adds: int | None = 0

    # -- plumbing ------------------------------------------------------------------------------------------------

    def _name(self, word: str) -> str:
        self._count += 1
        return f"{word}_{self._count}"

    def _add(self, op: str, inputs: Sequence[str], attributes: Mapping[str, AttributeValue] | None = None) -> str:
        output = self._name(op.lower())
        node = Node(op, tuple(inputs), (output,), dict(attributes or {}))
        self._nodes.append(node)
        if any(name in self._exit for name in node.inputs):
            self._exit.add(output)
        return output

    def _layout(self, name: str, shape: Sequence[Extent | None]) -> Tensor:
        """Return the tensor that a layout operator makes, and count the elements that it writes."""
        self._moved = _plus_product(self._moved, shape)
        return Tensor(name, tuple(shape))

    def constant(self, values: Sequence[int]) -> str:
        """Return the name of a 1-D int64 constant."""
        key = tuple(values)
        if key not in self._constants:
            self._constants[key] = self._name("const")
        return self._constants[key]

    def _value(self, extent: Extent) -> str:
        return extent.name if isinstance(extent, Symbol) else self.constant([extent])

    def _vector(self, extents: Sequence[Extent]) -> str:
        """Return a 1-D tensor of the extents."""
        if all(isinstance(extent, int) for extent in extents):
            return self.constant([extent for extent in extents if isinstance(extent, int)])
        if len(extents) == 1:
            return self._value(extents[0])
        return self._add("Concat", [self._value(extent) for extent in extents], {"axis": 0})

    def _lacks(self, what: str) -> Unsupported:
        return Unsupported(f"opset {self.opset} has no {what}")

    # -- integers at run time ------------------------------------------------------------------------------------

    def extent(self, tensor: Tensor, axis: int) -> Extent:
        """Return the size of an axis, read at run time when it is not known."""
        size = tensor.shape[axis]
        if size is not None:
            return size
        if (tensor.name, axis) not in self._extents:
            if tensor.name not in self._shapes:
                self._shapes[tensor.name] = self._add("Shape", [tensor.name])
            name = self._add("Gather", [self._shapes[tensor.name], self.constant([axis])], {"axis": 0})
            self._extents[tensor.name, axis] = Symbol(name)
        return self._extents[tensor.name, axis]

    def batch(self, times: int = 1) -> Extent:
        """Return the batch of the input times `times`, as the first size of a reshape before the core.

        `INFER` where that cannot be mistaken: an input with an extent of 0 would make it 0 whatever the batch is, and
        the Conv would pass where the original fails. So with unknown extents it is computed.
        """
        batch = self.x.shape[0]
        if isinstance(batch, int):
            return batch * times
        if all(extent is not None for extent in self.geometry.extents):
            return INFER
        return self.mul(self.extent(self.x, 0), times)

    def _arithmetic(self, op: str, a: Extent, b: Extent) -> Symbol:
        key = (op, a, b)
        if key not in self._computed:
            self._computed[key] = self._add(op, [self._value(a), self._value(b)])
        return Symbol(self._computed[key])

    def add(self, a: Extent, b: Extent) -> Extent:
        """Return a + b."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return a if b == 0 else b if a == 0 else self._arithmetic("Add", a, b)

    def sub(self, a: Extent, b: Extent) -> Extent:
        """Return a - b."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self._arithmetic("Sub", a, b)

    @staticmethod
    def bounded(extent: Extent, bound: int) -> Extent:
        """Return the extent with an upper bound that the caller knows (a pad needs one where it cannot be computed)."""
        return Symbol(extent.name, bound) if isinstance(extent, Symbol) else extent

    def mul(self, a: Extent, b: int) -> Extent:
        """Return a * b."""
        if isinstance(a, int):
            return a * b
        return a if b == 1 else self._arithmetic("Mul", a, b)

    def div(self, a: Extent, b: int) -> Extent:
        """Return a / b rounded down, for a >= 0 (ONNX rounds towards zero)."""
        if isinstance(a, int):
            return a // b
        return a if b == 1 else self._arithmetic("Div", a, b)

    def ceil_div(self, a: Extent, b: int) -> Extent:
        """Return a / b rounded up, for a > -b."""
        return self.div(self.add(a, b - 1), b)

    def positive(self, a: Extent) -> Extent:
        """Return max(a, 0) as (a + |a|) / 2: Max takes integers only from opset 12 on."""
        if isinstance(a, int):
            return max(a, 0)
        return self.div(self.add(a, Symbol(self._add("Abs", [a.name]))), 2)

    # -- layout operators ----------------------------------------------------------------------------------------

    def slice(self, tensor: Tensor, cuts: Mapping[int, Cut]) -> Tensor:
        """Cut `tensor` on the given axes (counted with batch and channels)."""
        cuts = {
            axis: cut
            for axis, cut in cuts.items()
            if cut.start != 0 or cut.step != 1 or cut.stop not in (END, tensor.shape[axis])
        }
        if not cuts:
            return tensor
        axes = sorted(cuts)
        shape = list(tensor.shape)
        for axis in axes:
            shape[axis] = self._length(tensor.shape[axis], cuts[axis])
        starts, stops = [cuts[axis].start for axis in axes], [cuts[axis].stop for axis in axes]
        steps = [cuts[axis].step for axis in axes]
        if self.opset >= 10:
            inputs = [tensor.name, self._vector(starts), self._vector(stops), self.constant(axes)]
            if any(step != 1 for step in steps):
                inputs.append(self.constant(steps))
            return self._layout(self._add("Slice", inputs), tuple(shape))
        if any(isinstance(value, Symbol) for value in (*starts, *stops)):
            raise self._lacks("Slice with ends computed at run time (opset 10)")
        stepped = [axis for axis in axes if cuts[axis].step != 1]
        if not stepped:
            attributes: dict[str, AttributeValue] = {
                "axes": tuple(axes),
                "starts": tuple(value for value in starts if isinstance(value, int)),
                "ends": tuple(value for value in stops if isinstance(value, int)),
            }
            return self._layout(self._add("Slice", [tensor.name], attributes), tuple(shape))
        tensor = self.slice(tensor, {axis: Cut(cuts[axis].start, cuts[axis].stop) for axis in axes})
        for axis in stepped:
            tensor = self._thin(tensor, axis, cuts[axis].step)
        return tensor

    def _thin(self, tensor: Tensor, axis: int, step: int) -> Tensor:
        """Take every `step`-th element without a stepped Slice: pad, reshape to [.., n, step, ..], take the first."""
        extent = tensor.shape[axis]
        if not isinstance(extent, int):
            raise self._lacks("Slice with steps (opset 10)")
        count = -(-extent // step)
        pads: list[Extent] = [0] * len(tensor.shape)
        pads[axis] = count * step - extent
        tensor = self.pad(tensor, [0] * len(tensor.shape), pads)
        head, tail = tensor.shape[:axis], tensor.shape[axis + 1 :]
        split = self.reshape(tensor, [*self._copied(head), count, step, *self._sizes(tensor, axis + 1)])
        first = self.slice(split, {axis + 1: Cut(0, 1)})
        merged = self.reshape(first, [*self._copied(head), count, *self._sizes(tensor, axis + 1)])
        return Tensor(merged.name, (*head, count, *tail))

    @staticmethod
    def _copied(shape: Sequence[Extent | None]) -> list[Extent]:
        return [extent if isinstance(extent, int) and extent > 0 else 0 for extent in shape]

    def _sizes(self, tensor: Tensor, start: int) -> list[Extent]:
        return [self.extent(tensor, axis) for axis in range(start, len(tensor.shape))]

    @staticmethod
    def _length(extent: Extent | None, cut: Cut) -> Extent | None:
        if isinstance(cut.start, Symbol):
            return None
        if isinstance(cut.stop, Symbol):
            return cut.stop if cut.start == 0 and cut.step == 1 else None
        if isinstance(extent, int):
            start, stop, step = slice(cut.start, cut.stop, cut.step).indices(extent)
            return max(0, -((start - stop) // step))
        return None

    def pad(self, tensor: Tensor, begin: Sequence[Extent], end: Sequence[Extent]) -> Tensor:
        """Pad every axis of `tensor` (batch and channels too) with zeros: the zero point of a quantised tensor."""
        if all(value == 0 for value in (*begin, *end)):
            return tensor
        shape = tuple(
            None if extent is None or not all(isinstance(v, int) for v in (b, e)) else self._plus(extent, b, e)
            for extent, b, e in zip(tensor.shape, begin, end, strict=True)
        )
        on_integers = self.quantized and tensor.name not in self._exit
        if on_integers and self.opset < 11:
            raise self._lacks(f"Pad for {self.storage} (opset 11)")
        pads = [*begin, *end]
        static = [value for value in pads if isinstance(value, int)]
        if self.opset >= 11:
            inputs = [tensor.name, self._vector(pads), *([FILL] if on_integers else [])]
            return self._layout(self._add("Pad", inputs), shape)
        if len(static) == len(pads):
            return self._layout(self._add("Pad", [tensor.name], {"pads": tuple(static)}), shape)
        if self.opset < 10:
            raise self._lacks(
                "Pad with amounts computed at run time (opset 11) nor Slice with ends computed at run time (opset 10)"
            )
        # Opset 10: pad by the upper bounds, then cut to the computed length.
        widest = [value.bound if isinstance(value, Symbol) else value for value in pads]
        assert None not in widest, "a computed pad has an upper bound"
        wide = Tensor(self._add("Pad", [tensor.name], {"pads": tuple(v for v in widest if v is not None)}), shape)
        cuts = {}
        for axis, (b, e) in enumerate(zip(begin, end, strict=True)):
            if isinstance(b, Symbol) or isinstance(e, Symbol):
                bound = b.bound if isinstance(b, Symbol) else b
                assert bound is not None
                start = self.sub(bound, b)
                length = self.add(self.add(self.extent(tensor, axis), b), e)
                cuts[axis] = Cut(start, self.add(start, length))
        return Tensor(self.slice(wide, cuts).name, shape)

    @staticmethod
    def _plus(extent: Extent, begin: Extent, end: Extent) -> Extent | None:
        if isinstance(extent, int) and isinstance(begin, int) and isinstance(end, int):
            return extent + begin + end
        return extent if begin == 0 and end == 0 else None

    def reshape(self, tensor: Tensor, shape: Sequence[Extent]) -> Tensor:
        """Reshape; 0 copies the size at the same place, `INFER` (batch only) takes what is left."""
        dims: list[Extent | None] = [
            tensor.shape[i] if extent == 0 else None if extent == INFER else extent for i, extent in enumerate(shape)
        ]
        sizes = [extent for extent in tensor.shape if isinstance(extent, int)]
        rest = [extent for extent in dims if isinstance(extent, int)]
        if INFER in shape and len(sizes) == len(tensor.shape) and len(rest) == len(dims) - 1 and 0 not in rest:
            dims[list(shape).index(INFER)] = math.prod(sizes) // math.prod(rest)
        return Tensor(self._add("Reshape", [tensor.name, self._vector(shape)]), tuple(dims))

    def transpose(self, tensor: Tensor, perm: Sequence[int]) -> Tensor:
        """Permute the axes."""
        name = self._add("Transpose", [tensor.name], {"perm": tuple(perm)})
        return self._layout(name, tuple(tensor.shape[i] for i in perm))

    def concat(self, tensors: Sequence[Tensor], axis: int) -> Tensor:
        """Join tensors along `axis`."""
        if len(tensors) == 1:
            return tensors[0]
        shape = list(tensors[0].shape)
        for index in range(len(shape)):
            sizes = [tensor.shape[index] for tensor in tensors]
            if index != axis:
                shape[index] = next((size for size in sizes if isinstance(size, int)), sizes[0])
                continue
            ints = [size for size in sizes if isinstance(size, int)]
            shape[index] = sum(ints) if len(ints) == len(sizes) else None
        return self._layout(self._add("Concat", [tensor.name for tensor in tensors], {"axis": axis}), tuple(shape))

    def space_to_depth(self, tensor: Tensor, block: int) -> Tensor:
        """[N, C, H, W] -> [N, block*block*C, H/block, W/block], channel (row phase * block + column phase) * C + c."""
        batch, channels, height, width = tensor.shape
        shape = (
            batch,
            channels * block * block if isinstance(channels, int) else None,
            height // block if isinstance(height, int) else None,
            width // block if isinstance(width, int) else None,
        )
        return self._layout(self._add("SpaceToDepth", [tensor.name], {"blocksize": block}), shape)

    def depth_to_space(self, tensor: Tensor, block: int) -> Tensor:
        """Undo `space_to_depth` (mode DCR)."""
        batch, channels, height, width = tensor.shape
        shape = (
            batch,
            channels // (block * block) if isinstance(channels, int) else None,
            height * block if isinstance(height, int) else None,
            width * block if isinstance(width, int) else None,
        )
        attributes: dict[str, AttributeValue] = {"blocksize": block}
        if self.opset >= 11:
            attributes["mode"] = "DCR"
        return self._layout(self._add("DepthToSpace", [tensor.name], attributes), shape)

    @property
    def has_depth_to_space(self) -> bool:
        """Say whether SpaceToDepth and DepthToSpace take the input's element type (integers: opset 11 on)."""
        return self.opset >= 11 or not self.geometry.quantized

    # -- the core ------------------------------------------------------------------------------------------------

    def conv(
        self,
        tensor: Tensor,
        window: Window,
        *,
        group: int | None = None,
        out_channels: Extent | None = None,
        weight: Sequence[WeightEdit] = (),
        bias_times: int = 1,
    ) -> Tensor:
        """Add a Conv to the core; the site's pruning comes before `weight`. Group and outputs default to the site's."""
        assert min(window.begin + window.end) >= 0, "no emitted Conv has a negative pad"
        group = self.geometry.group if group is None else group
        outputs = self.geometry.out_channels if out_channels is None else out_channels
        dilations = tuple(d if k > 1 else 1 for d, k in zip(window.dilations, window.kernel, strict=True))
        name = self._name("conv")
        self._nodes.append(
            CoreConv(
                source=tensor.name,
                output=name,
                kernel=window.kernel,
                strides=window.strides,
                dilations=dilations,
                pads=window.begin + window.end,
                group=group,
                weight=(*self.weight_edits, *weight),
                bias_times=bias_times if self.geometry.bias else 0,
            )
        )
        self._exit.add(name)
        slides = zip(tensor.shape[2:], window.begin, window.end, dilations, window.kernel, window.strides, strict=True)
        spatial = tuple(
            (extent + b + e - d * (k - 1) - 1) // s + 1 if isinstance(extent, int) else None
            for extent, b, e, d, k, s in slides
        )
        work = (tensor.shape[0], outputs, *spatial, *window.kernel, self._group_inputs(tensor.shape[1], group))
        self._multiply_adds = _plus_product(self._multiply_adds, work)
        return Tensor(name, (tensor.shape[0], outputs, *spatial))

    @staticmethod
    def _group_inputs(channels: Extent | None, group: int) -> int | None:
        return channels // group if isinstance(channels, int) else None

    def plain_conv(self, geometry: ConvGeometry) -> Tensor:
        """Add the Conv of a normal geometry as it is."""
        return self.conv(self.x, geometry.window)

    def fill(self, out_extents: Sequence[Extent]) -> Tensor:
        """Add to the core an output that no tap reaches: the bias, repeated to [N, O, *out_extents]."""
        outputs = self.geometry.out_channels
        if outputs is None:
            raise Unsupported("the number of output channels is not known")
        name = self._name("fill")
        repeats = self._vector([self.extent(self.x, 0), 1, *out_extents])
        self._nodes.append(CoreFill(repeats=repeats, output=name))
        self._exit.add(name)
        return Tensor(name, (self.x.shape[0], outputs, *out_extents))

    def sum(self, tensors: Sequence[Tensor]) -> Tensor:
        """Add partial sums of equal shape, one after the other.

        Not by one Sum: a compiler dies on nine inputs, and runtimes fuse a Conv with the Add that follows it.
        """
        self.partial = True
        total = tensors[0]
        for other in tensors[1:]:
            total = self._layout(self._add("Add", [total.name, other.name]), total.shape)
        return total

    def finish(self, strategy: str, result: Tensor, spelling: str = "") -> Fragment:
        """Return the fragment whose output is `result`."""
        places = [
            1 if not isinstance(step, Node) else 2 if step.outputs[0] in self._exit else 0 for step in self._nodes
        ]
        return Fragment(
            strategy=strategy,
            opset=self.opset,
            steps=tuple(step for part in range(3) for step, at in zip(self._nodes, places, strict=True) if at == part),
            constants={name: values for values, name in self._constants.items()},
            result=result.name,
            partial=self.partial,
            multiply_adds=self._multiply_adds,
            elements_moved=self._moved,
            spelling=spelling,
        )


def _plus_product(total: int | None, sizes: Sequence[Extent | None]) -> int | None:
    """Return total + product of the sizes, `None` when one is not a known integer."""
    for size in sizes:
        if not isinstance(size, int):
            return None
    return None if total is None else total + math.prod(size for size in sizes if isinstance(size, int))


def axis_pads(rank: int, axis_values: Mapping[int, Extent]) -> list[Extent]:
    """Return pads for batch, channels and `rank` spatial axes from the values of some spatial axes."""
    return [0, 0, *(axis_values.get(axis, 0) for axis in range(rank))]
