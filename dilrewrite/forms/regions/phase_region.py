"""phase_region: a chain of operators on phases in the batch: split once on the way in, joined once on the way out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from dilrewrite.forms import grid
from dilrewrite.forms.builder import END, INFER, Builder, Cut, Extent, Tensor, Unsupported
from dilrewrite.forms.cells import Phased
from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.fragment import CoreConv, Fragment, Kept, Refusal, entering
from dilrewrite.forms.geometry import product
from dilrewrite.forms.regions import RegionForm
from dilrewrite.forms.regions._layers import Layers
from dilrewrite.forms.strategies._phases import check_layout
from dilrewrite.model.elements import NAMED


@final
@dataclass(frozen=True, slots=True)
class PhaseRegion(RegionForm):
    """[N, C, *H] -> [N*P, C, *M] for every tensor that enters, back for every one that leaves, zeros where they matter.

    Inside, a Conv whose dilation the block divides has that much less of it; links of the chain's `nests` are split
    again. Without the zeros the form is wrong (docs/maths.md), which the proofs notice.

    `block`: the largest phases along an axis that are asked for; 1 for any. `layout`: how phases are made, see
    `LAYOUTS` of `space_to_batch`.
    """

    block: int = 1
    layout: str = "depth"

    def __post_init__(self) -> None:
        """Check `layout`."""
        check_layout(self.layout)

    def fragment(self, chain: Chain, opset: int) -> Fragment | Refusal:
        """Return the chain on phases."""
        if not chain.block:
            return Refusal("phase_region", "this region is one to lift")
        if self.block not in (1, max(chain.block)):
            return Refusal("phase_region", f"its block is {'x'.join(map(str, chain.block))}, not {self.block}")
        alone = [
            link.op
            for link, phased in zip(chain.links, grid.spread(chain, chain.block).links, strict=True)
            if phased is None
        ]
        if alone:
            return Refusal("phase_region", f"{alone[0]} cannot run on phases here")
        try:
            return _Writer(chain, opset, self.layout).write()
        except Unsupported as lack:
            return Refusal("phase_region", str(lack))


class _Writer:
    """Writes one region, link by link, each in the innermost layer that it belongs to."""

    def __init__(self, chain: Chain, opset: int, layout: str) -> None:
        self.chain = chain
        self.builder = Builder(next(iter(chain.convs.values())), opset)
        given = zip(chain.inputs, entering(len(chain.inputs)), strict=True)
        plain = {name: Tensor(x, chain.shapes.get(name, ())) for name, x in given}
        self.layers = Layers(chain, self.builder, plain, layout)
        self.makers = {name: of for of, link in enumerate(chain.links) for name in link.outputs}

    def write(self) -> Fragment:
        """Return the fragment."""
        for of, link in enumerate(self.chain.links):
            self._link(of, link, 1 + sum(of in places for _, places in self.chain.nests))
        results = [self.layers.at(name, 0).tensor.name for name in self.chain.outputs]
        return self.builder.region("phase_region", results)

    def _link(self, of: int, link: Link, level: int) -> None:
        rows = [layer.grid.links[of] for layer in self.layers.layers[1 : level + 1]]
        how = rows[-1]
        if how is None:
            raise Unsupported(f"{link.op} cannot run on phases of phases here")
        if of in self.chain.gone:
            held = self.layers.at(link.inputs[0], level)
            self.layers.put(link.outputs[0], level, held.tensor, clean=held.clean)
            return
        needs = any(row is not None and row.needs for row in rows)
        clean, sources = how.clean, dict[int, Tensor]()
        for place, axes in enumerate(how.inputs):
            name = link.inputs[place]
            if not name or name in self.chain.constants:
                continue
            if axes is None:
                each = place in how.repeated
                sources[place] = self.layers.repeated(name, level) if each else self.layers.at(name, 0).tensor
                continue
            held = self.layers.at(name, level)
            sound = held.clean or self.layers.full(name, level)
            if how.fold:
                sources[place] = self._bordered(name, level, how.fold)
            elif needs and not sound:
                sources[place] = self.layers.filled(name, level, self._zero(name))
            else:
                sources[place], clean = held.tensor, clean and sound
        if how.fold:
            self.layers.put(link.outputs[0], 0, self._folded(link, how, sources[0]), clean=True)
            return
        outputs = self._emit(of, link, how, sources, level)
        for name, output in zip(link.outputs, outputs, strict=True):
            if name:
                self.layers.put(name, level, Tensor(output, self.layers.shape(name, level)), clean=clean)

    def _emit(self, of: int, link: Link, how: Phased, sources: dict[int, Tensor], level: int) -> Sequence[str]:
        """Add a link on phases; return the names of its outputs."""
        first = sources[0] if 0 in sources else next(iter(sources.values()))
        if how.grows:
            pads, rank = grid.pads_of(link, self.chain) or (), len(how.grows)
            sides: dict[int, tuple[Extent, Extent]] = {1: (pads[1], pads[rank + 3])}
            sides |= {place + 2: pair for place, pair in enumerate(how.grows)}
            return [self.builder.pad(first, sides).name]
        if any(map(any, how.cuts)):
            first = self.builder.slice(
                first, {place + 2: _cut(first.shape[place + 2], *pair) for place, pair in enumerate(how.cuts)}
            )
        if how.cuts and of not in self.chain.convs:
            return [first.name]
        outputs = [f"{link.op.lower()}_{of}_{place}" if name else "" for place, name in enumerate(link.outputs)]
        shape = self.layers.shape(link.outputs[0], level)
        if of in self.chain.convs:
            self._conv(of, first, outputs[0], how, shape)
        else:
            names = {place: each.name for place, each in sources.items()}
            step = Kept(of=of, sources=names, outputs=tuple(outputs), attributes=how.attributes or {})
            self.builder.step(step, shape)
        return outputs

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
        inputs = geometry.in_channels
        self.builder.step(core, shape, work=(inputs and inputs // geometry.group, *geometry.kernel))

    # -- around the data -----------------------------------------------------------------------------------------

    def _zero(self, name: str) -> Tensor:
        """Return what stands for zero in a tensor: what its QuantizeLinear makes of 0, if one made it."""
        of = self.makers.get(name, -1)
        link = self.chain.links[of]
        if of < 0 or link.op != "QuantizeLinear":
            return self.layers.number(0, self.layers.element(name))
        if self.chain.shapes.get(link.inputs[1]) not in ((), (1,)):
            raise Unsupported("zeros in a tensor that is quantised per channel")
        zero = self.layers.number(0, self.layers.element(link.inputs[0]))
        point = self.builder.fresh("zero_point")
        return self.builder.step(Kept(of=of, sources={0: zero.name}, outputs=(point,)), (1,))

    def _bordered(self, name: str, level: int, fold: str) -> Tensor:
        """Return a tensor with what does not count in a reduction around its data."""
        held, element = self.layers.at(name, level), self.layers.element(name)
        if self.layers.full(name, level) or (held.clean and fold in ("Sum", "Mean")):
            return held.tensor
        value = self.layers.number(0, element)
        if fold in ("Max", "Min"):
            sign = self.layers.number(-1 if fold == "Max" else 1, element)
            value = self.layers.node("Div", [sign.name, value.name], (1,))
        return self.layers.filled(name, level, value)

    def _folded(self, link: Link, how: Phased, tensor: Tensor) -> Tensor:
        """Return a reduction over space and phases: [N * P, C, *M] -> [N, C, 1, ...]."""
        axes = how.inputs[0] or ()
        builder, ones, op = self.builder, [1] * len(axes), f"Reduce{'Sum' if how.fold == 'Mean' else how.fold}"
        channels, batch = builder.extent(tensor, 1), self.chain.shapes.get(link.outputs[0], (None,))[0]
        small = self._reduced(op, tensor, list(range(2, len(axes) + 2)), keep=True)
        phases = product(axis.block for axis in axes)
        apart = builder.reshape(small, [INFER, phases, channels, *ones])
        folded = self._reduced(op, apart, [1], keep=False)
        folded = Tensor(folded.name, (batch, channels, *ones))
        if how.fold != "Mean":
            return folded
        element = self.layers.element(link.inputs[0])
        count: Extent = 1
        for axis in axes:
            extent = self.layers.extent(axis)
            count = extent * count if isinstance(count, int) else builder.arithmetic("Mul", count, extent)
        number = self.layers.node("Cast", [builder.vector([count])], (1,), to=NAMED[element].number)
        return self.layers.node("Div", [folded.name, number.name], folded.shape)

    def _reduced(self, op: str, tensor: Tensor, axes: list[int], *, keep: bool) -> Tensor:
        shape = [1 if place in axes else size for place, size in enumerate(tensor.shape) if keep or place not in axes]
        if self.builder.opset >= (13 if op == "ReduceSum" else 18):
            return self.layers.node(op, [tensor.name, self.builder.constant(axes)], shape, keepdims=int(keep))
        return self.layers.node(op, [tensor.name], shape, axes=tuple(axes), keepdims=int(keep))


def _cut(size: Extent | None, front: int, back: int) -> Cut:
    """Return what is left of an axis."""
    if isinstance(size, int):
        return Cut(front, size - back)
    return Cut(front, -back if back else END)


FORM = PhaseRegion()
