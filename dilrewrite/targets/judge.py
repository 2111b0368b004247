"""Holds a whole model to a profile: per node native, on the host, unknown or out of limits, and by which rule.

It reads the profile and the model, and knows nothing of the forms that the tool writes: so it is the independent check
of what was written.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dilrewrite.errors import UsageError
from dilrewrite.model.elements import NUMBERED
from dilrewrite.model.light import UNKNOWN, Shape, Typed, graph_shapes, value_shape, with_sizes, without_weights
from dilrewrite.model.shapes import believed
from dilrewrite.model.walk import DEFAULT_DOMAINS, fed, subgraphs, written_out
from dilrewrite.targets import facts as facts_of
from dilrewrite.targets.profile import Facts, Finding, Fit, Profile, worst
from dilrewrite.targets.vocabulary import LATER

WEIGHTS_AT = {"Conv": 1, "ConvTranspose": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Where the weights of convolutions are among their inputs."""
CONVS = ("Conv", "ConvInteger", "QLinearConv")
QUANTISING = ("QuantizeLinear", "DequantizeLinear", *(one for one in CONVS if one != "Conv"))
PASSING = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid", "Tanh")
"""Operators that a runtime fuses between a Conv and its QuantizeLinear."""
MOVING = (
    *("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose", "Slice", "Split", "Concat", "Pad", "Gather"),
    *("SpaceToDepth", "DepthToSpace", "Expand", "Tile", "Identity", "MaxPool"),
)
"""Operators whose outputs hold values of their inputs, and zeros: they have no scale of their own."""
MANY_NODES = 2**17
"""Functions that come to more nodes are not looked into."""
MOST_VALUES = 64
"""Longer constants are no axes, steps or pads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFit:
    """How a target takes a node, and by which rules where it is not native.

    `output`: the first tensor that it makes, which names it in its graph (`where`); `dilation`: the largest that acts,
    1 for none. `lowered`: what the target's own compiler makes of a Conv with dilation, such as `zero_fill`, and
    `cost`: how many times the work of the same Conv without dilation; both empty where it does nothing.
    """

    where: str
    name: str
    op: str
    output: str
    fit: Fit
    findings: tuple[Finding, ...] = ()
    facts: Facts | None = None
    lowered: str = ""
    cost: float | None = None

    @property
    def key(self) -> str:
        """Return what names it in a model, as the key of a site does."""
        return f"{self.where}/{self.output}"

    @property
    def is_conv(self) -> bool:
        """Say whether it is a convolution."""
        return self.op in CONVS

    @property
    def dilation(self) -> int:
        """Return the largest dilation that acts; 1 for none, and for what is no convolution."""
        known = self.facts or {}
        pairs = zip(known.get("k") or (), known.get("d") or (), strict=False)
        return max((d for k, d in pairs if k > 1), default=1)

    @property
    def because(self) -> Finding | None:
        """Return the first of the findings that decide."""
        return next((one for one in self.findings if one.fit is self.fit), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """How a target takes a model. `folded`: nodes of constants and known sizes, which no target runs."""

    target: str
    nodes: tuple[NodeFit, ...]
    folded: int
    remarks: tuple[str, ...] = ()

    def at(self, fit: Fit, *, convs: bool | None = None) -> list[NodeFit]:
        """Return the nodes that fit so: all, only Convs, or only others."""
        return [one for one in self.nodes if one.fit is fit and convs in (None, one.is_conv)]

    @property
    def fit(self) -> Fit:
        """Return how the worst of its nodes fits."""
        return worst(one.fit for one in self.nodes)


def judge(proto: ModelProto, profile: Profile, shapes: Mapping[str, Sequence[int]] | None = None) -> Judgement:
    """Return how a target takes every node of a model; no weights are read.

    `shapes`: the sizes of inputs, by name. Nodes that only compute constants or sizes that are known are not judged.
    Raises `UsageError` where the target takes static sizes only and a size of an input is not known.
    """
    light = _inlined(without_weights(proto))
    with_sizes(light, shapes or {})
    _check_static(light, profile)
    inferred = believed(light)
    quantised = any(node.op_type in QUANTISING for node in _all(inferred.graph))
    first = next((shape for one in fed(inferred) if (shape := value_shape(one)[1]) and len(shape) > 1), None)
    judging = _Judging(profile, None if first is None else first[0], quantised)
    nodes = tuple(judging.graph(inferred.graph, {}, set(), {}, "main"))
    return Judgement(target=profile.name, nodes=nodes, folded=judging.folded, remarks=_remarks(profile, quantised))


def _inlined(light: ModelProto) -> ModelProto:
    """Return a model with its functions' nodes in their place, unless they are too many."""
    if not light.functions or written_out(light) > MANY_NODES:
        return light
    try:
        return onnx.inliner.inline_local_functions(light)
    except (onnx.checker.ValidationError, RuntimeError, ValueError):
        return light


def _check_static(light: ModelProto, profile: Profile) -> None:
    (rule, *_) = profile.tensors.get("static", (None,))
    if rule is None or rule.limit not in ("required", "batch_may_vary"):
        return
    for value in fed(light):
        shape = value_shape(value)[1]
        if value.type.HasField("tensor_type") and (
            shape is None or None in shape[1 if rule.limit == "batch_may_vary" else 0 :]
        ):
            dims = [one.dim_param or (str(one.dim_value) if one.HasField("dim_value") else "?")
                    for one in value.type.tensor_type.shape.dim]  # fmt: skip
            sizes = "x".join(one if one.isdigit() and int(one) else "SIZE" for one in dims) or "SIZES"
            raise UsageError(
                f"the target {profile.name} takes fixed sizes only, and input {value.name!r} has "
                f"{', '.join(dims) or 'none'}",
                hint=f"give its sizes: --shape {value.name}:{sizes}",
            )


def _remarks(profile: Profile, quantised: bool) -> tuple[str, ...]:
    (rule, *_) = profile.tensors.get("quantised", (None,))
    if rule is None or rule.limit != "required" or quantised:
        return ()
    return (f"{profile.name} runs quantised models only: quantise this one; it is judged as if it were",)


def _all(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for _, _, inner in subgraphs(node):
            yield from _all(inner)


Values = MutableMapping[str, Any]


class _Judging:
    """A judgement at work: counts what is folded."""

    def __init__(self, profile: Profile, batch: int | None, quantised: bool) -> None:
        self._profile, self._batch, self._quantised = profile, batch, quantised
        self.folded = 0

    def graph(
        self, graph: GraphProto, outer: Mapping[str, Typed], constants: set[str], around: Mapping[str, Any], where: str
    ) -> Iterator[NodeFit]:
        """Yield the nodes of a graph and of those inside it, each before those in it."""
        shapes = ChainMap(graph_shapes(graph), dict(outer))
        constants = {*constants, *(one.name for one in graph.initializer)}
        constants |= {one.values.name for one in graph.sparse_initializer}
        values: Values = ChainMap({one.name: one for one in graph.initializer}, dict(around))
        storage = _storage(graph, shapes)
        names = [node.name for node in graph.node]
        for place, node in enumerate(graph.node):
            if _folds(node, constants, shapes):
                self.folded += 1
                constants.update(filter(None, node.output))
                if node.op_type == "Constant" and node.output:
                    values[node.output[0]] = node
                continue
            yield self._judged(node, where, shapes, constants, values, storage)
            own = node.name if node.name and names.count(node.name) == 1 else f"{node.name or node.op_type}#{place}"
            for attribute, number, inner in subgraphs(node):
                below = f"{where}/{own}.{attribute}" + (f"[{number}]" if number else "")
                yield from self.graph(inner, shapes, constants, values, below)

    def _judged(
        self,
        node: NodeProto,
        where: str,
        shapes: Mapping[str, Typed],
        constants: set[str],
        values: Values,
        storage: Mapping[str, int],
    ) -> NodeFit:
        op = node.op_type if node.domain in DEFAULT_DOMAINS or node.op_type in QUANTISING else (
            f"{node.domain}.{node.op_type}")  # fmt: skip
        profile, findings = self._profile, list[Finding]()
        known: Facts
        if op in WEIGHTS_AT:
            known = self._conv(node, op, shapes, constants, storage)
        else:
            known = self._other(node, op, shapes, constants, values)
        if op in CONVS and known:
            findings += profile.conv_findings(known)
        if op != "Conv" or op in profile.operators:
            findings += profile.operator_findings(op, known)
        elif not known:
            findings.append(Finding(fit=Fit.UNKNOWN, text="the sizes of its kernel are not known"))
        seen = [name for name in (*node.input, *node.output) if name and name not in constants]
        for name in dict.fromkeys(seen):
            findings += profile.tensor_findings(self._tensor(name, shapes, storage))
        told: dict[tuple[str, Fit], Finding] = {}  # a tensor's rule may say what the Conv's own said
        for one in findings:
            told.setdefault((one.text, one.fit), one)
        lowered = profile.lowering(known) if op in CONVS and known else None
        return NodeFit(
            where=where, name=node.name or (node.output[0] if node.output else op), op=op,
            output=node.output[0] if node.output else "", fit=worst(one.fit for one in findings),
            findings=tuple(told.values()), facts=known,
            lowered=lowered[0].to if lowered else "", cost=lowered[1] if lowered else None,
        )  # fmt: skip

    def _dtype(self, name: str, shapes: Mapping[str, Typed], storage: Mapping[str, int]) -> tuple[str, int]:
        """Return the element type of a tensor as it is stored, and its bits; `LATER` of a float before quantising."""
        number = storage.get(name, shapes.get(name, UNKNOWN)[0])
        element = NUMBERED.get(number)
        floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
        text = LATER if number in floats and not self._quantised else element.name if element else ""
        return text, (element.bits if element else 32) or 32

    def _tensor(self, name: str, shapes: Mapping[str, Typed], storage: Mapping[str, int]) -> Facts:
        dtype, bits = self._dtype(name, shapes, storage)
        return facts_of.tensor(shapes.get(name, UNKNOWN)[1], dtype, bits, self._batch)

    def _conv(
        self,
        node: NodeProto,
        op: str,
        shapes: Mapping[str, Typed],
        constants: set[str],
        storage: Mapping[str, int],
    ) -> dict[str, Any]:
        """Return the facts of a convolution; none where its kernel is not known."""
        attributes = _attributes(node)
        weight = node.input[WEIGHTS_AT[op]] if len(node.input) > WEIGHTS_AT[op] else ""
        form = shapes.get(weight, UNKNOWN)[1]
        given, made = (shapes.get(name, UNKNOWN)[1] for name in (node.input[0], node.output[0]))
        kernel = tuple(attributes.get("kernel_shape") or (form or ())[2:])
        if not kernel or None in kernel:
            return {}
        group = int(attributes.get("group", 1))
        into, out = _channels(op, form, given, group)
        extents = tuple(given[2:]) if given is not None else ()
        begin, end = facts_of.pads(attributes, kernel, extents)
        return facts_of.conv(
            kernel=kernel, dilations=attributes.get("dilations", ()), strides=attributes.get("strides", ()),
            begin=begin, end=end, group=group, channels=(into, out), batch=given[0] if given else None,
            extents=extents, outputs=tuple(made[2:]) if made is not None else (), N0=self._batch,
            auto_pad=attributes.get("auto_pad", "NOTSET"), weights="constant" if weight in constants else "computed",
            input_dtype=self._dtype(node.input[0], shapes, storage)[0] or None,
            output_dtype=self._dtype(node.output[0], shapes, storage)[0] or None,
        )  # fmt: skip

    def _other(
        self, node: NodeProto, op: str, shapes: Mapping[str, Typed], constants: set[str], values: Values
    ) -> Facts:
        given = [shapes.get(name, UNKNOWN)[1] if name else () for name in node.input]
        made = [shapes.get(name, UNKNOWN)[1] for name in node.output]
        if op not in ("Concat", "Sum"):
            lively = [place for place, name in enumerate(node.input) if name and name not in constants]
            given = [given[lively[0]], *given] if lively and lively[0] else given
        held = [_numbers(values.get(name)) if name in constants else None for name in node.input]
        return facts_of.node(op, _attributes(node), given, made, held, len(node.input), self._batch)


def _channels(op: str, form: Shape | None, given: Shape | None, group: int) -> tuple[int | None, int | None]:
    """Return the channels of a convolution's input and output."""
    if form is None or len(form) < 2:
        return (given[1] if given is not None and len(given) > 1 else None), None
    first, second = form[:2]
    many = None if second is None else second * group
    return (first, many) if op == "ConvTranspose" else (many, first)


def _attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node that are numbers or texts; what refers to a function's is left out."""
    found = {}
    for one in node.attribute:
        if one.ref_attr_name or one.type in (one.GRAPH, one.GRAPHS, one.TENSOR, one.SPARSE_TENSOR):
            continue
        value = helper.get_attribute_value(one)
        found[one.name] = value.decode(errors="replace") if isinstance(value, bytes) else value
    return found


def _numbers(value: Any) -> list[Any] | None:
    """Return the values of a constant of a few numbers."""
    if isinstance(value, NodeProto):
        for one in value.attribute:
            if one.name in ("value_ints", "value_int", "value_floats", "value_float"):
                plain = helper.get_attribute_value(one)
                return list(plain) if not isinstance(plain, int | float) else [plain]
            if one.name == "value":
                return _numbers(one.t)
        return None
    if value is None or value.data_location == TensorProto.EXTERNAL or len(value.dims) > 1:
        return None
    if (value.dims and value.dims[0] > MOST_VALUES) or value.data_type == TensorProto.STRING:
        return None
    return list(numpy_helper.to_array(value).ravel().tolist())


def _folds(node: NodeProto, constants: set[str], shapes: Mapping[str, Typed]) -> bool:
    """Say whether a node computes what is known before the model runs."""
    if node.op_type in ("Shape", "Size") and node.domain in DEFAULT_DOMAINS:
        shape = shapes.get(node.input[0], UNKNOWN)[1]
        return shape is not None and None not in shape
    if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
        return True
    inputs = [name for name in node.input if name]
    return bool(inputs) and constants.issuperset(inputs) and not any(True for _ in subgraphs(node))


def _storage(graph: GraphProto, shapes: Mapping[str, Typed]) -> dict[str, int]:
    """Return the element type in which tensors of real numbers are stored, where a graph quantises them.

    Operators that only move values keep the scale: what lies between them and a DequantizeLinear or QuantizeLinear is
    stored as what that reads or writes.
    """
    read: dict[str, int] = {}
    written: dict[str, int] = {}
    for node in reversed(graph.node):
        if not node.output or not node.input:
            continue
        if node.op_type == "QuantizeLinear":
            zero = node.input[2] if len(node.input) > 2 else ""
            written[node.input[0]] = shapes.get(zero or node.output[0], UNKNOWN)[0] or TensorProto.UINT8
        elif node.op_type in (*PASSING, *MOVING) and node.output[0] in written:
            written.setdefault(node.input[0], written[node.output[0]])
            for name in node.input[1:] if node.op_type == "Concat" else ():
                written.setdefault(name, written[node.output[0]])
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.output:
            read[node.output[0]] = shapes.get(node.input[0], UNKNOWN)[0]
        elif node.op_type in MOVING and node.output:
            kinds = {read.get(name) for name in (node.input if node.op_type == "Concat" else node.input[:1])}
            if len(kinds) == 1 and None not in kinds:
                read |= dict.fromkeys(node.output, kinds.pop() or 0)
    return {**written, **read}
