"""What of a model may be rewritten: sites, and what is said of nodes that are left alone. `find` finds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dilrewrite.errors import FailedError
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment, Turn
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.model.walk import ScopePath
from dilrewrite.sites.known import CONVOLUTIONS

Place = tuple[ScopePath, int]
"""A node: the node list that it stands in, and its index there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A weight, bias, scale or zero point: how it comes to the node.

    `kind`: `initializer` (a constant of a graph), `constant` (a Constant node), `computed` (anything else, an
    initializer that a caller may override or training updates among it). `scope` is where it is defined; `index` its
    node there, if any.
    """

    kind: Literal["initializer", "constant", "computed"]
    name: str
    shape: tuple[int, ...] | None
    element: str | None
    scope: ScopePath
    index: int | None = None

    @property
    def is_constant(self) -> bool:
        """Say whether the values are known and stay."""
        return self.kind != "computed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dequantized:
    """A DequantizeLinear before an operator's input, weight or bias, which makes the tensor `output`.

    `axis` is `None` for one scale per tensor. `zero_point` is `None` when the node has none.
    """

    index: int
    output: str
    source: Operand
    scale: Operand
    zero_point: Operand | None
    axis: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """An operator of a site that computes with weights: its node's index, how it is read and written, its operands.

    `operator` is the file of `sites/operators/` that writes it; `geometry` what the node computes by itself. `turn`
    brings its weights into the layout of a Conv's, where they lie in that of a ConvTranspose. `storage` is the element
    type of the data where it is not that of the geometry, `fill` what their padding holds (`None`: 0).
    `weight_quantization`/`bias_quantization` are set when the operand stands behind a DequantizeLinear of constants
    (`weight`/`bias` is then the quantised tensor), `input_quantization` when the input does. `weight_zero`: what stands
    for 0 in weights that are integers by themselves; `others`: what else such a node reads, by place.
    """

    index: int
    operator: str
    geometry: ConvGeometry
    weight: Operand
    bias: Operand | None
    weight_quantization: Dequantized | None = None
    bias_quantization: Dequantized | None = None
    input_quantization: Dequantized | None = None
    storage: str | None = None
    fill: Operand | None = None
    weight_zero: Operand | None = None
    others: Mapping[int, Operand] = field(default_factory=dict)
    turn: Turn | None = None

    @property
    def on_integers(self) -> bool:
        """Say whether the operator itself computes on integers, with no DequantizeLinear in front."""
        return self.storage is not None and self.input_quantization is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Nodes that can be rewritten together: which, the tensors that enter and leave, and what is computed in between.

    `nodes` are places in the node list at `scope`, in its order (the last makes the output); all of them go, so no
    tensor between them is read elsewhere. `inputs` are the tensors that a fragment reads, `outputs` those that it
    makes; weights are operands of the `parts`, which a fragment's Convs are numbered by. `meaning` is what strategies
    see. `follow` are the places of what comes right after and may stand between a fragment's core and exit: at most one
    unary operator, and the QuantizeLinear of a quantised site (`quantizes_output` when it is there). Sites may overlap.
    `name` is what people read: the module's path where the exporter wrote it, else the node's own (`node`), or the
    output.
    `ends`: of a region, what stands around it and why it did not go along, in words; of a quantised Conv that no
    QuantizeLinear follows, what reads its real numbers.
    """

    scope: ScopePath
    where: str
    name: str
    nodes: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    meaning: object
    parts: tuple[Part, ...]
    opset: int
    ir_version: int
    operands: Mapping[tuple[int, int], Operand] = field(default_factory=dict)
    follow: tuple[int, ...] = ()
    quantizes_output: bool = False
    node: str = ""
    ends: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Return what names the site in files: scope and output tensor; of several nodes, the input too.

        Of a region, also what is done to it: `@lift`, or the block of its phases and of those inside, `@2x2+2x2`.
        """
        begin = f"{self.inputs[0]}:" if len(self.nodes) > 1 else ""
        return f"{self.where}/{begin}{self.output}{_layout(self.meaning)}"

    @property
    def output(self) -> str:
        """Return the (first) tensor that leaves."""
        return self.outputs[0]

    @property
    def geometry(self) -> ConvGeometry:
        """Return the meaning, which is a Conv's geometry, or that of a sandwich; `FailedError` for another one."""
        if isinstance(self.meaning, Sandwich):
            return self.meaning.geometry
        if not isinstance(self.meaning, ConvGeometry):
            raise FailedError(f"{self.key}: a ConvGeometry is needed, its meaning is a {type(self.meaning).__name__}")
        return self.meaning

    @property
    def part(self) -> Part:
        """Return the (first) operator that computes with weights."""
        return self.parts[0]

    @property
    def input_quantization(self) -> Dequantized | None:
        """Return the DequantizeLinear before the (first) operator's input."""
        return self.part.input_quantization

    @property
    def fixed_weights(self) -> bool:
        """Say whether all weights are constants."""
        return all(part.weight.is_constant for part in self.parts)

    @property
    def storage(self) -> str | None:
        """Return the element type of the tensor that a fragment reads, when it is quantised."""
        return self.part.storage

    def absorbed(self, fragment: Fragment) -> tuple[int, ...]:
        """Return the places of the nodes that a fragment replaces: the site's, and what follows if it takes that in."""
        taken = fragment.keeping(len(self.follow), len(self.nodes)) is not fragment
        return (*self.nodes, *(self.follow if taken else ()))

    def covers(self, fragment: Fragment) -> frozenset[Place]:
        """Return all nodes that a fragment replaces: no other rewrite may touch them."""
        return frozenset((self.scope, index) for index in self.absorbed(fragment))


def _layout(meaning: object) -> str:
    """Return what is done to a chain, as its key ends."""
    if not isinstance(meaning, Chain):
        return ""
    blocks = (meaning.block, *(block for block, _ in meaning.nests))
    return f"@{'+'.join('x'.join(map(str, block)) for block in blocks) or 'lift'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """A Conv whose attributes change without changing its function. `None` leaves an attribute as it is."""

    scope: ScopePath
    """The graph it is in, for programs."""
    where: str
    """The graph it is in, in words."""
    index: int
    """Its place in that graph's node list, from 0."""
    name: str
    """Its module's path where the exporter wrote it, else the node's name, or its output's."""
    dilations: tuple[int, ...] | None = None
    """New dilations: 1 on axes with kernel 1."""
    pads: tuple[int, ...] | None = None
    """Explicit pads in place of auto_pad: all begins, then all ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A dilated node that is not rewritten, and why."""

    where: str
    """The graph it is in."""
    name: str
    """Its module's path where the exporter wrote it, else the node's name, or its output's."""
    op: str
    """Operator."""
    dilations: tuple[int, ...]
    """Its dilations; empty when the attribute refers to a function's."""
    reason: str
    """Why it is left alone."""
    node: str = ""
    """The node's own name in the file."""

    @property
    def convolution(self) -> bool:
        """Say whether the node counts as a dilated convolution (a pooling does not)."""
        return self.op in CONVOLUTIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class Unfolded:
    """A Conv between layout operators that looks like a space-to-batch sandwich and is left alone, and why."""

    where: str
    """The graph it is in."""
    name: str
    """The Conv's name, or its output's."""
    reason: str
    """Why it is no sandwich."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a model holds: sites to rewrite, attribute changes for kept Convs, and nodes that are left alone.

    `pools`: dilated poolings that have a form; they are among the `skipped` too, for only some runs rewrite them.
    `regions`: chains that hang together around dilated Convs, as sites whose meaning is a `Chain`; they overlap with
    sites and with each other. `sandwiches`: sites whose meaning is a `Sandwich`; `unfolded`: what is none.
    """

    sites: tuple[Site, ...] = ()
    pools: tuple[Site, ...] = ()
    regions: tuple[Site, ...] = ()
    normalisations: tuple[Normalisation, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    remarks: tuple[str, ...] = ()
    sandwiches: tuple[Site, ...] = ()
    unfolded: tuple[Unfolded, ...] = ()
