"""lift_region: a chain of 1-D operators in two dimensions: [N, C, L] -> [N, C, 1, L] once, and back once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms import lift
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import AddAxis, AddKernelAxis, CoreConv, Fragment, Kept, Node, Step, WeightEdit, entering
from dilrewrite.forms.regions import RegionForm
from dilrewrite.forms.strategies import Refusal


@final
@dataclass(frozen=True, slots=True)
class LiftRegion(RegionForm):
    """One Unsqueeze for each tensor that enters, one Squeeze for each that leaves; every operator gets one more axis.

    ONNX Runtime's CPU provider has a blocked layout for two spatial axes only, and stays in it from Conv to Conv.
    """

    def fragment(self, chain: Chain, opset: int) -> Fragment | Refusal:
        """Return the lifted chain."""
        if chain.block:
            return Refusal("lift_region", "this region is one of phases")
        labels = lift.spread(chain)
        alone = [link.op for link, lifted in zip(chain.links, labels.links, strict=True) if lifted is None]
        if alone:
            return Refusal("lift_region", f"{alone[0]} cannot be lifted here")
        constants: dict[str, tuple[int, ...]] = {}
        names: dict[str, str] = {}
        enter: list[Step] = []
        core: list[Step] = []
        leave: list[Step] = []

        def axes(axis: int) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
            if opset < 13:
                return (), {"axes": (axis,)}
            constants[f"axis_{axis}"] = (axis,)
            return (f"axis_{axis}",), {}

        given = dict(zip(chain.inputs, entering(len(chain.inputs)), strict=True))
        for name, x in given.items():
            names[name] = x
            if name in labels.right:
                names[name] = f"{x}_lifted"
                more, attributes = axes((chain.rank(name) or 0) - labels.right[name])
                enter.append(Node("Unsqueeze", (x, *more), (names[name],), attributes))
        for of, (link, lifted) in enumerate(zip(chain.links, labels.links, strict=True)):
            assert lifted is not None
            if of in chain.convs:
                (names[link.outputs[0]],) = made = (f"{of}_0",)
                core.append(_conv(chain, of, names[link.inputs[0]], *made))
                continue
            sources: dict[int, str] = {}
            edits: dict[int, tuple[WeightEdit, ...]] = {}
            for place, how in enumerate(lifted.inputs):
                name = link.inputs[place] if place < len(link.inputs) else ""
                if how is lift.As.LIFTED:
                    sources[place] = names[name]
                elif isinstance(how, lift.Insert):
                    edits[place] = (AddAxis(how.axis),)
                elif isinstance(how, tuple):
                    sources[place] = f"integers_{'_'.join(map(str, how))}".replace("-", "minus")
                    constants[sources[place]] = how
                elif name in given:
                    sources[place] = given[name]
            outputs = tuple(f"{of}_{place}" if name else "" for place, name in enumerate(link.outputs))
            names.update(zip(link.outputs, outputs, strict=True))
            core.append(Kept(of=of, sources=sources, outputs=outputs, attributes=lifted.attributes or {}, edits=edits))
        results = []
        for place, name in enumerate(chain.outputs):
            lifted_rank = chain.rank(name) or 0
            more, attributes = axes(lifted_rank - labels.right[name])
            results.append(f"y{place}")
            leave.append(Node("Squeeze", (names[name], *more), (f"y{place}",), attributes))
        return Fragment(
            strategy="lift_region", opset=opset, steps=(*enter, *core, *leave), constants=constants,
            results=tuple(results),
        )  # fmt: skip


def _conv(chain: Chain, of: int, source: str, output: str) -> CoreConv:
    """Return a Conv of the chain in two dimensions; its dilation stays."""
    geometry = chain.convs[of]
    window = geometry.window.with_axis(0)
    return CoreConv(
        source=source, output=output, kernel=window.kernel, strides=window.strides, dilations=window.dilations,
        pads=(*window.begin, *window.end), group=geometry.group, weight=(AddKernelAxis(0),),
        bias_times=int(geometry.bias), of=list(chain.convs).index(of),
    )  # fmt: skip


FORM = LiftRegion()
