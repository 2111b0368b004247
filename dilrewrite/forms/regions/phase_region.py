"""phase_region: a chain of operators on phases in the batch: split once on the way in, joined once on the way out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from dilrewrite.forms import grid
from dilrewrite.forms.builder import INFER, Builder, Cut, Extent, Tensor, Unsupported
from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.fragment import CoreConv, Fragment, Kept, Node, entering
from dilrewrite.forms.grid import Axes, Phased, data
from dilrewrite.forms.layout import Layout
from dilrewrite.forms.regions import RegionForm
from dilrewrite.forms.strategies import Refusal
from dilrewrite.forms.strategies._phases import join_phases, pad_axes, phases_first, sizes
from dilrewrite.model.elements import NAMED


@final
@dataclass(frozen=True, slots=True)
class PhaseRegion(RegionForm):
    """[N, C, *H] -> [N*P, C, *M] for every tensor that enters, back for every one that leaves, zeros where they matter.

    Inside, a Conv whose dilation the block divides has that much less of it. `masks`: write zeros around the data where
    a Conv has to read them (docs/maths.md); without them the form is wrong, which the proofs notice.
    """

    def fragment(self, chain: Chain, opset: int) -> Fragment | Refusal:
        """Return the chain on phases."""
        if not chain.block:
            return Refusal("phase_region", "this region is one to lift")
        laid = grid.spread(chain, chain.block)
        alone = [link.op for link, phased in zip(chain.links, laid.links, strict=True) if phased is None]
        if alone:
            return Refusal("phase_region", f"{alone[0]} cannot run on phases here")
        try:
            return _Writer(chain, opset).write([phased for phased in laid.links if phased is not None])
        except Unsupported as lack:
            return Refusal("phase_region", str(lack))


class _Writer:
    """Writes one region: `lies` holds how each tensor inside lies, `plain` the tensors as they enter."""

    def __init__(self, chain: Chain, opset: int) -> None:
        self.chain = chain
        self.geometry = next(iter(chain.convs.values()))
        self.builder = Builder(self.geometry, opset)
        given = zip(chain.inputs, entering(len(chain.inputs)), strict=True)
        self.plain = {name: Tensor(x, chain.shapes.get(name, ())) for name, x in given}
        self.lies: dict[tuple[str, tuple[tuple[int, int, int], ...]], tuple[Tensor, Axes]] = {}
        self.masks: dict[object, Tensor] = {}
        self.masked: dict[object, Tensor] = {}

    def write(self, phased: list[Phased]) -> Fragment:
        """Return the fragment."""
        for of, (link, how) in enumerate(zip(self.chain.links, phased, strict=True)):
            self._link(of, link, how)
        results = []
        for name in self.chain.outputs:
            ((tensor, axes),) = [each for (own, _), each in self.lies.items() if own == name]
            results.append(self._leave(tensor, axes).name)
        return self.builder.region("phase_region", results)

    # -- links ---------------------------------------------------------------------------------------------------

    def _link(self, of: int, link: Link, how: Phased) -> None:
        sources: dict[int, Tensor] = {}
        clean = how.clean
        for place, axes in enumerate(how.inputs):
            name = link.inputs[place] if place < len(link.inputs) else ""
            if axes is None:
                if name in self.plain:
                    sources[place] = self.plain[name]
                continue
            tensor, own = self._in_phases(name, axes)
            if how.needs and not _clean(own):
                tensor = self._masked(tensor, own)
            elif not _clean(own):
                clean = False
            sources[place] = tensor
        axes = tuple(replace(axis, zeros=clean) for axis in how.axes)
        first = sources.get(0)
        outputs = [f"{link.op.lower()}_{of}_{place}" if name else "" for place, name in enumerate(link.outputs)]
        shape = self._shape(link.outputs[0], axes)
        if how.grows and first is not None:
            pads = _pads(self.chain, link)
            sides: dict[int, tuple[Extent, Extent]] = {1: (pads[1], pads[len(axes) + 3])}
            made = self.builder.pad(first, {**sides, **{place + 2: pair for place, pair in enumerate(how.grows)}})
            outputs[0] = made.name
        elif first is not None and (how.cuts if link.op == "Slice" else any(pair != (0, 0) for pair in how.cuts)):
            size = first.shape
            cuts = {place + 2: Cut(front, _int(size[place + 2]) - back) for place, (front, back) in enumerate(how.cuts)}
            cut = self.builder.slice(first, cuts)
            if of in self.chain.convs:
                self._conv(of, cut, outputs[0], how, shape)
            else:
                outputs[0] = cut.name
        elif of in self.chain.convs and first is not None:
            self._conv(of, first, outputs[0], how, shape)
        else:
            step = Kept(
                of=of,
                sources={place: each.name for place, each in sources.items()},
                outputs=tuple(outputs),
                attributes=how.attributes or {},
            )
            self.builder.step(step, shape)
        for name, output in zip(link.outputs, outputs, strict=True):
            if name:
                self.lies[name, _key(axes)] = Tensor(output, self._shape(name, axes)), axes

    def _conv(self, of: int, source: Tensor, output: str, how: Phased, shape: tuple[Extent | None, ...]) -> None:
        geometry, attributes = self.chain.convs[of], how.attributes or {}
        pads, dilations = attributes["pads"], attributes["dilations"]
        assert isinstance(pads, tuple)
        assert isinstance(dilations, tuple)
        core = CoreConv(
            source=source.name, output=output, kernel=geometry.kernel, strides=geometry.strides,
            dilations=dilations, pads=pads, group=geometry.group, weight=(), bias_times=int(geometry.bias),
            of=list(self.chain.convs).index(of),
        )  # fmt: skip
        self.builder.step(core, shape)

    def _shape(self, name: str, axes: Axes) -> tuple[Extent | None, ...]:
        known = self.chain.shapes.get(name, (None, None))
        batch = known[0] * math.prod(axis.block for axis in axes) if known[0] is not None else None
        return batch, known[1], *(axis.samples for axis in axes)

    # -- in, out, zeros ------------------------------------------------------------------------------------------

    def _in_phases(self, name: str, axes: Axes) -> tuple[Tensor, Axes]:
        known = self.lies.get((name, _key(axes)))
        if known is None:
            axes = tuple(grid.entered(data(axis)[1], axis.block, data(axis)[0]) for axis in axes)
            known = self.lies[name, _key(axes)] = self._enter(self.plain[name], axes), axes
        return known

    def _enter(self, tensor: Tensor, axes: Axes) -> Tensor:
        builder, layout = self.builder, Layout(axes=axes)
        builder.x = tensor
        padded = pad_axes(builder, layout)
        batch = builder.extent(tensor, 0) * layout.phases
        channels = builder.extent(tensor, 1)
        if layout.square is not None and builder.has_depth_to_space:
            deep = builder.space_to_depth(padded, layout.square)
            return builder.reshape(deep, [batch, channels, 0, 0])
        first, lengths = phases_first(builder, padded, layout)
        return builder.reshape(first, [batch, channels, *lengths])

    def _leave(self, tensor: Tensor, axes: Axes) -> Tensor:
        builder, layout = self.builder, Layout(axes=axes)
        channels = builder.extent(tensor, 1)
        if layout.square is not None and builder.has_depth_to_space:
            deep = builder.reshape(tensor, [INFER, channels * layout.phases, 0, 0])
            joined = builder.depth_to_space(deep, layout.square)
        else:
            lengths = sizes(builder, tensor, layout)
            apart = builder.reshape(tensor, [INFER, *layout.blocks, channels, *lengths])
            uncut = Layout(axes=tuple(replace(axis, extent=None) for axis in axes))
            joined = join_phases(builder, apart, uncut, lengths, batch=0)
        return builder.slice(
            joined, {place + 2: Cut(data(axis)[0], data(axis)[0] + data(axis)[1]) for place, axis in enumerate(axes)}
        )

    def _masked(self, tensor: Tensor, axes: Axes) -> Tensor:
        """Return the tensor with zeros around its data: where ones, laid like it, say so."""
        if (tensor.name, _key(axes)) in self.masked:
            return self.masked[tensor.name, _key(axes)]
        builder, _chain = self.builder, self.chain
        if builder.opset < 9:
            raise Unsupported(f"opset {builder.opset} has no Where (opset 9)")
        element = NAMED[self.geometry.element].number
        batch = self._batch()
        key = batch, _key(axes)
        if key not in self.masks:
            one = builder.step(_node("Cast", builder, [builder.constant([1])], {"to": element}), (1,))
            extents = [data(axis)[1] for axis in axes]
            size = builder._vector([batch, 1, *extents])
            ones = builder.step(_node("Expand", builder, [one.name, size]), (None, 1, *extents))
            laid = self._enter(Tensor(ones.name, (batch if isinstance(batch, int) else None, 1, *extents)), axes)
            self.masks[key] = builder.step(
                _node("Cast", builder, [laid.name], {"to": NAMED["bool"].number}), laid.shape
            )
        zero = builder.step(_node("Cast", builder, [builder.constant([0])], {"to": element}), (1,))
        masked = builder.step(_node("Where", builder, [self.masks[key].name, tensor.name, zero.name]), tensor.shape)
        self.masked[tensor.name, _key(axes)] = masked
        return masked

    def _batch(self) -> Extent:
        return self.builder.extent(next(iter(self.plain.values())), 0)


def _node(op: str, builder: Builder, inputs: list[str], attributes: Mapping[str, int] | None = None) -> Node:
    return Node(op, tuple(inputs), (builder._name(op.lower()),), dict(attributes or {}))


def _clean(axes: Axes) -> bool:
    return all(axis.clean for axis in axes)


def _key(axes: Axes) -> tuple[tuple[int, int, int], ...]:
    return tuple(data(axis) for axis in axes)


def _int(extent: Extent | None) -> int:
    assert isinstance(extent, int)
    return extent


def _pads(chain: Chain, link: Link) -> tuple[int, ...]:
    given = link.attributes.get("pads")
    pads = given if given is not None else chain.integers[link.inputs[1]]
    assert isinstance(pads, tuple)
    return pads


FORM = PhaseRegion()
