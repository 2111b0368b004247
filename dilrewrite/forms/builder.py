"""Builds a Fragment: the only file that knows how each opset spells an operator.

Strategies write one text for known and unknown sizes. An `Extent` is an `int` or a `Symbol` (a tensor that holds the
size at run time); arithmetic on two ints is done at once, otherwise it becomes nodes. Where an opset lacks what is
needed, the builder raises `Unsupported` with the opset and the operator, which `strategies.plan` turns into a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from dilrewrite.forms.extents import END as END
from dilrewrite.forms.extents import Cut as Cut
from dilrewrite.forms.extents import Extent as Extent
from dilrewrite.forms.extents import Symbol as Symbol
from dilrewrite.forms.extents import Tensor as Tensor
from dilrewrite.forms.extents import known, length, plus_product, times
from dilrewrite.forms.fragment import (
    FILL,
    AttributeValue,
    CoreConv,
    CoreFill,
    Fragment,
    Node,
    Step,
    WeightEdit,
    X,
    makes,
)
from dilrewrite.forms.geometry import ConvGeometry, Window
from dilrewrite.model.elements import FLOATS

INFER: Final = -1
"""In a reshape: what is left over. Only for the batch: next to a zero-sized batch any other use is ambiguous."""


class Unsupported(Exception):  # noqa: N818 - it is caught and becomes a refusal, never shown as an error
    """A form cannot be written, for want of an operator in the opset or else; the text says why."""


def in_pairs(geometry: ConvGeometry, storage: str | None, opset: int) -> bool:
    """Say whether a quantised Conv is laid out in real numbers, and each Conv of its forms gets a pair of its own.

    Only uint8 is laid out as it is. ONNX Runtime makes uint8 of int8 where QuantizeLinear and DequantizeLinear are
    neighbours, and fuses nothing where a layout operator parts them; of 16 bits it has no Pad. From opset 21 on, int8
    stays as it is too: where ONNX Runtime moves such a pair past a layout operator, it writes a QuantizeLinear to int8
    with a zero point in uint8, and then refuses it.
    """
    return storage not in (None, "uint8") and geometry.element in FLOATS and (opset < 21 or storage != "int8")


class Builder:
    """Collects the nodes of one fragment for `geometry` at `opset`; `storage` is the element type of the input `X`.

    `storage` is given for a quantised site, whose layout operators stand on the integers, or on reals (`in_pairs`).
    `fills`: the input is padded with what the site says (`FILL`), as that of a quantised one is, not with 0.
    """

    def __init__(self, geometry: ConvGeometry, opset: int, *, storage: str | None = None) -> None:
        self.geometry = geometry
        self.opset = opset
        self.storage = storage or geometry.element
        self.quantized = storage is not None and not in_pairs(geometry, storage, opset)
        self.fills = self.quantized
        self.x = Tensor(X, (geometry.batch, geometry.in_channels, *geometry.extents))
        self.weight_edits: tuple[WeightEdit, ...] = ()
        self._nodes: list[Step] = []
        self._constants: dict[tuple[int, ...], str] = {}
        self._computed: dict[tuple[str, ...], str] = {}
        self._exit: set[str] = set()
        self._count = 0
        self.partial = self.in_floats = False
        self._moved: int | None = 0
        self._multiply_adds: int | None = 0

    # -- plumbing ------------------------------------------------------------------------------------------------

    def fresh(self, word: str) -> str:
        """Return a name that nothing has yet."""
        self._count += 1
        return f"{word}_{self._count}"

    def _add(self, op: str, inputs: Sequence[str], attributes: Mapping[str, AttributeValue] | None = None) -> str:
        output = self.fresh(op.lower())
        node = Node(op, tuple(inputs), (output,), dict(attributes or {}))
        self._nodes.append(node)
        if any(name in self._exit for name in node.inputs):
            self._exit.add(output)
        return output

    def _once(self, op: str, inputs: Sequence[str], attributes: Mapping[str, AttributeValue] | None = None) -> str:
        """Return what a node makes that computes sizes, the same for the same inputs."""
        key = (op, *inputs)
        if key not in self._computed:
            self._computed[key] = self._add(op, inputs, attributes)
        return self._computed[key]

    def _layout(self, name: str, shape: Sequence[Extent | None]) -> Tensor:
        """Return the tensor that a layout operator makes, and count the elements that it writes."""
        self._moved = plus_product(self._moved, shape)
        return Tensor(name, tuple(shape))

    def constant(self, values: Sequence[int]) -> str:
        """Return the name of a 1-D int64 constant."""
        key = tuple(values)
        if key not in self._constants:
            self._constants[key] = self.fresh("const")
        return self._constants[key]

    def _value(self, extent: Extent) -> str:
        return extent.name if isinstance(extent, Symbol) else self.constant([extent])

    def vector(self, extents: Sequence[Extent]) -> str:
        """Return a 1-D tensor of the extents."""
        static = known(extents)
        if static is not None:
            return self.constant(static)
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
        shape = self._once("Shape", [tensor.name])
        return Symbol(self._once("Gather", [shape, self.constant([axis])], {"axis": 0}), builder=self)

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
        return self.extent(self.x, 0) * times

    def arithmetic(self, op: str, a: Extent, b: Extent) -> Symbol:
        """Return the result of an ONNX operator on two sizes."""
        return Symbol(self._once(op, [self._value(a), self._value(b)]), builder=self)

    @staticmethod
    def bounded(extent: Extent, bound: int) -> Extent:
        """Return the extent with an upper bound that the caller knows (a pad needs one where it cannot be computed)."""
        return replace(extent, bound=bound) if isinstance(extent, Symbol) else extent

    def positive(self, a: Extent) -> Extent:
        """Return max(a, 0) as (a + |a|) / 2: Max takes integers only from opset 12 on."""
        if isinstance(a, int):
            return max(a, 0)
        return (a + Symbol(self._add("Abs", [a.name]))) // 2

    # -- layout operators ----------------------------------------------------------------------------------------

    def slice(self, tensor: Tensor, cuts: Mapping[int, Cut]) -> Tensor:
        """Cut `tensor` on the given axes (counted with batch and channels)."""
        cuts = {
            axis: cut
            for axis, cut in sorted(cuts.items())
            if cut.start != 0 or cut.step != 1 or cut.stop not in (END, tensor.shape[axis])
        }
        if not cuts:
            return tensor
        shape = list(tensor.shape)
        for axis, cut in cuts.items():
            shape[axis] = length(shape[axis], cut)
        starts, stops = [cut.start for cut in cuts.values()], [cut.stop for cut in cuts.values()]
        steps = {axis: cut.step for axis, cut in cuts.items() if cut.step != 1}
        if self.opset >= 10:
            inputs = [tensor.name, self.vector(starts), self.vector(stops), self.constant(list(cuts))]
            if steps:
                inputs.append(self.constant([cut.step for cut in cuts.values()]))
            return self._layout(self._add("Slice", inputs), shape)
        static_starts, static_stops = known(starts), known(stops)
        if static_starts is None or static_stops is None:
            raise self._lacks("Slice with ends computed at run time (opset 10)")
        if not steps:
            attributes = {"axes": tuple(cuts), "starts": static_starts, "ends": static_stops}
            return self._layout(self._add("Slice", [tensor.name], attributes), shape)
        tensor = self.slice(tensor, {axis: Cut(cut.start, cut.stop) for axis, cut in cuts.items()})
        for axis, step in steps.items():
            tensor = self._thin(tensor, axis, step)
        return tensor

    def _thin(self, tensor: Tensor, axis: int, step: int) -> Tensor:
        """Take every `step`-th element without a stepped Slice: pad, reshape to [.., n, step, ..], take the first."""
        extent = tensor.shape[axis]
        if not isinstance(extent, int):
            raise self._lacks("Slice with steps (opset 10)")
        count = -(-extent // step)
        tensor = self.pad(tensor, {axis: (0, count * step - extent)})
        head, tail = tensor.shape[:axis], tensor.shape[axis + 1 :]
        before = [extent if isinstance(extent, int) and extent > 0 else 0 for extent in head]
        behind = [self.extent(tensor, place) for place in range(axis + 1, len(tensor.shape))]
        split = self.reshape(tensor, [*before, count, step, *behind])
        merged = self.reshape(self.slice(split, {axis + 1: Cut(0, 1)}), [*before, count, *behind])
        return Tensor(merged.name, (*head, count, *tail))

    def pad(self, tensor: Tensor, sides: Mapping[int, tuple[Extent, Extent]]) -> Tensor:
        """Pad `tensor` at the beginning and end of axes (counted with batch and channels) with zeros.

        A quantised tensor is padded with its zero point.
        """
        axes = range(len(tensor.shape))
        begin, end = ([sides.get(axis, (0, 0))[side] for axis in axes] for side in (0, 1))
        if all(value == 0 for value in (*begin, *end)):
            return tensor
        shape = []
        for extent, b, e in zip(tensor.shape, begin, end, strict=True):
            sizes = known((extent, b, e))
            shape.append(sum(sizes) if sizes is not None else extent if (b, e) == (0, 0) else None)
        filled = self.fills and tensor.name not in self._exit
        if filled and self.opset < 11:
            raise self._lacks(f"Pad for {self.storage} (opset 11)")
        pads, spelled = [*begin, *end], {"mode": "constant"}  # its default: pnnx takes no Pad that leaves it out
        if self.opset >= 11:
            inputs = [tensor.name, self.vector(pads), *([FILL] if filled else [])]
            return self._layout(self._add("Pad", inputs, spelled), shape)
        static = known(pads)
        if static is not None:
            return self._layout(self._add("Pad", [tensor.name], {**spelled, "pads": static}), shape)
        if self.opset < 10:
            raise self._lacks(
                "Pad with amounts computed at run time (opset 11) nor Slice with ends computed at run time (opset 10)"
            )
        # Opset 10: pad by the upper bounds, then cut to the computed length.
        widest = known([value.bound if isinstance(value, Symbol) else value for value in pads])
        assert widest is not None, "a computed pad has an upper bound"
        wide = Tensor(self._add("Pad", [tensor.name], {**spelled, "pads": widest}), tuple(shape))
        cuts = {}
        for axis, (b, e) in enumerate(zip(begin, end, strict=True)):
            if isinstance(b, Symbol) or isinstance(e, Symbol):
                start = widest[axis] - b
                cuts[axis] = Cut(start, start + (self.extent(tensor, axis) + b + e))
        return Tensor(self.slice(wide, cuts).name, tuple(shape))

    def reshape(self, tensor: Tensor, shape: Sequence[Extent]) -> Tensor:
        """Reshape; 0 copies the size at the same place, `INFER` (batch only) takes what is left."""
        dims: list[Extent | None] = [
            tensor.shape[i] if extent == 0 else None if extent == INFER else extent for i, extent in enumerate(shape)
        ]
        sizes, rest = known(tensor.shape), [extent for extent in dims if isinstance(extent, int)]
        if INFER in shape and sizes is not None and len(rest) == len(dims) - 1 and 0 not in rest:
            dims[list(shape).index(INFER)] = math.prod(sizes) // math.prod(rest)
        return Tensor(self._add("Reshape", [tensor.name, self.vector(shape)]), tuple(dims))

    def reverse(self, tensor: Tensor, axis: int) -> Tensor:
        """Reverse the order along an axis of known size, in a way that every opset and runtime has."""
        size = tensor.shape[axis]
        assert isinstance(size, int), "known"
        if size == 1:
            return tensor
        return self.gather(tensor, axis, range(size)[::-1])

    def gather(self, tensor: Tensor, axis: int, places: Sequence[int]) -> Tensor:
        """Take the elements of an axis that stand at `places`, counted from 0."""
        shape = (*tensor.shape[:axis], len(places), *tensor.shape[axis + 1 :])
        return self._layout(self._add("Gather", [tensor.name, self.constant(places)], {"axis": axis}), shape)

    def transpose(self, tensor: Tensor, perm: Sequence[int]) -> Tensor:
        """Permute the axes."""
        name = self._add("Transpose", [tensor.name], {"perm": tuple(perm)})
        return self._layout(name, [tensor.shape[i] for i in perm])

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
            lengths = known(sizes)
            shape[index] = None if lengths is None else sum(lengths)
        return self._layout(self._add("Concat", [tensor.name for tensor in tensors], {"axis": axis}), shape)

    def space_to_depth(self, tensor: Tensor, block: int) -> Tensor:
        """[N, C, H, W] -> [N, block*block*C, H/block, W/block], channel (row phase * block + column phase) * C + c."""
        batch, channels, *extents = tensor.shape
        shape = (batch, times(channels, block * block), *(times(extent, 1, block) for extent in extents))
        return self._layout(self._add("SpaceToDepth", [tensor.name], {"blocksize": block}), shape)

    def depth_to_space(self, tensor: Tensor, block: int) -> Tensor:
        """Undo `space_to_depth` (mode DCR)."""
        batch, channels, *extents = tensor.shape
        shape = (batch, times(channels, 1, block * block), *(times(extent, block) for extent in extents))
        mode: dict[str, AttributeValue] = {"mode": "DCR"} if self.opset >= 11 else {}
        return self._layout(self._add("DepthToSpace", [tensor.name], {"blocksize": block, **mode}), shape)

    @property
    def has_depth_to_space(self) -> bool:
        """Say whether SpaceToDepth and DepthToSpace take the element types: integers from opset 11 on, never int32."""
        return self.geometry.element != "int32" and (self.opset >= 11 or not self.geometry.quantized)

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
        idle_dilation: int = 1,
    ) -> Tensor:
        """Add a Conv to the core; the site's pruning comes before `weight`. Group and outputs default to the site's.

        `idle_dilation`: what is written where an axis of the kernel has one tap, and a dilation means nothing.
        """
        assert min(window.begin + window.end) >= 0, "no emitted Conv has a negative pad"
        group = self.geometry.group if group is None else group
        outputs = self.geometry.out_channels if out_channels is None else out_channels
        dilations = tuple(d if k > 1 else idle_dilation for d, k in zip(window.dilations, window.kernel, strict=True))
        name = self.fresh("conv")
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
        work = (tensor.shape[0], outputs, *spatial, *window.kernel, times(tensor.shape[1], 1, group))
        self._multiply_adds = plus_product(self._multiply_adds, work)
        return Tensor(name, (tensor.shape[0], outputs, *spatial))

    def step(self, step: Step, shape: Sequence[Extent | None], work: Sequence[Extent | None] = ()) -> Tensor:
        """Add a step of a region; return its (first) output. `work`: a Conv's multiply-adds per element of it."""
        self._nodes.append(step)
        if isinstance(step, CoreConv):
            self._multiply_adds = plus_product(self._multiply_adds, (*shape, *work))
        name = makes(step)[0]
        return self._layout(name, shape) if isinstance(step, Node) else Tensor(name, tuple(shape))

    def plain_conv(self, geometry: ConvGeometry) -> Tensor:
        """Add the Conv of a normal geometry as it is."""
        return self.conv(self.x, geometry.window)

    def fill(self, out_extents: Sequence[Extent]) -> Tensor:
        """Add to the core an output that no tap reaches: the bias, repeated to [N, O, *out_extents]."""
        outputs = self.geometry.out_channels
        if outputs is None:
            raise Unsupported("the number of output channels is not known")
        name = self.fresh("fill")
        repeats = self.vector([self.extent(self.x, 0), 1, *out_extents])
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

    def region(self, strategy: str, results: Sequence[str], spelling: str = "") -> Fragment:
        """Return the fragment of a region: the steps as they were added."""
        return Fragment(
            strategy=strategy,
            opset=self.opset,
            steps=tuple(self._nodes),
            constants={name: values for values, name in self._constants.items()},
            results=tuple(results),
            region=True,
            multiply_adds=self._multiply_adds,
            elements_moved=self._moved,
            spelling=spelling,
        )

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
            results=(result.name,),
            partial=self.partial,
            multiply_adds=self._multiply_adds,
            elements_moved=self._moved,
            spelling=spelling,
            in_floats=self.in_floats,
        )
