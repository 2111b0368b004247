"""lift_region: a chain of 1-D operators in two dimensions: [N, C, L] -> [N, C, 1, L] once, and back once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite.forms import lift
from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.fragment import (
    AddAxis,
    AddKernelAxis,
    CoreConv,
    Fragment,
    Kept,
    Node,
    Refusal,
    Step,
    WeightEdit,
    entering,
)
from dilrewrite.forms.regions import RegionForm


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
        return _Writer(chain, opset, labels).write()


class _Writer:
    """Writes one region: `names` are those of lifted tensors, `given` of what enters, as it is."""

    def __init__(self, chain: Chain, opset: int, labels: lift.Labels) -> None:
        self.chain, self.opset, self.labels = chain, opset, labels
        self.constants: dict[str, tuple[int, ...]] = {}
        self.given = dict(zip(chain.inputs, entering(len(chain.inputs)), strict=True))
        self.names: dict[str, str] = {}

    def write(self) -> Fragment:
        """Return the fragment."""
        steps: list[Step] = []
        for name, x in self.given.items():
            if name in self.labels.right:
                self.names[name] = f"{x}_lifted"
                steps.append(self._layout("Unsqueeze", name, x, self.names[name]))
        for of, (link, lifted) in enumerate(zip(self.chain.links, self.labels.links, strict=True)):
            assert lifted is not None
            if of in self.chain.gone:
                self.names[link.outputs[0]] = self.names[link.inputs[0]]
            else:
                steps.append(self._link(of, link, lifted))
        results = tuple(f"y{place}" for place in range(len(self.chain.outputs)))
        for name, y in zip(self.chain.outputs, results, strict=True):
            steps.append(self._layout("Squeeze", name, self.names[name], y))
        return Fragment(
            strategy="lift_region", opset=self.opset, steps=tuple(steps), constants=self.constants, results=results
        )

    def _layout(self, op: str, name: str, source: str, output: str) -> Node:
        axis = (self.chain.rank(name) or 0) - self.labels.right[name]
        if self.opset < 13:
            return Node(op, (source,), (output,), {"axes": (axis,)})
        self.constants[f"axis_{axis}"] = (axis,)
        return Node(op, (source, f"axis_{axis}"), (output,), {})

    def _link(self, of: int, link: Link, lifted: lift.Lifted) -> Step:
        sources: dict[int, str] = {}
        edits: dict[int, tuple[WeightEdit, ...]] = {}
        for place, how in enumerate(lifted.inputs):
            name = link.inputs[place] if place < len(link.inputs) else ""
            if how is lift.As.LIFTED:
                sources[place] = self.names[name]
            elif isinstance(how, lift.Insert):
                edits[place] = (AddAxis(how.axis),)
            elif isinstance(how, lift.Entry):
                edits[place] = (how,)
            elif isinstance(how, tuple):
                sources[place] = f"integers_{'_'.join(map(str, how))}".replace("-", "minus")
                self.constants[sources[place]] = how
            elif name in self.given:
                sources[place] = self.given[name]
        outputs = tuple(f"{of}_{place}" if name else "" for place, name in enumerate(link.outputs))
        self.names.update(zip(link.outputs, outputs, strict=True))
        if of in self.chain.convs:
            return _conv(self.chain, of, sources[0], outputs[0])
        return Kept(of=of, sources=sources, outputs=outputs, attributes=lifted.attributes or {}, edits=edits)


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
