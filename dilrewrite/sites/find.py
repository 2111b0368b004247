"""Finds every dilated Conv of a model, in subgraphs and functions too, and says why others are left alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from dilrewrite.errors import UsageError
from dilrewrite.forms.geometry import AUTO_PADS, MAX_RANK, ConvGeometry, product
from dilrewrite.model.elements import FLOATS, NAMED
from dilrewrite.model.light import Typed, graph_shapes, value_shape
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.model.walk import (
    DEFAULT_DOMAINS,
    Container,
    ScopePath,
    all_nodes,
    ends,
    names_in_training,
    names_read,
    subgraphs,
)

ELEMENTS = {NAMED[name].number: name for name in (*FLOATS, "int8", "uint8", "int16", "uint16", "int32")}
"""The types of what a Conv, or the DequantizeLinear before it, reads: {ONNX's number: name}."""

UNARY = frozenset(
    {
        "Relu",
        "LeakyRelu",
        "Clip",
        "Sigmoid",
        "Tanh",
        "Elu",
        "Selu",
        "Celu",
        "Gelu",
        "Mish",
        "Softplus",
        "Softsign",
        "HardSigmoid",
        "HardSwish",
        "Swish",
        "ThresholdedRelu",
    }
)
"""Elementwise operators with one tensor input (Clip's bounds are scalars), which runtimes fuse into a Conv."""

SKIP_REASONS: dict[str, str] = {
    "ConvTranspose": "a dilated ConvTranspose spreads its outputs, which phases and taps of a Conv do not cover",
    "QLinearConv": "QLinearConv rounds inside the operator; a model with QuantizeLinear/DequantizeLinear is rewritten",
    "ConvInteger": "ConvInteger accumulates in int32; a model with QuantizeLinear/DequantizeLinear is rewritten",
    "MaxPool": "a dilated MaxPool is no convolution",
    "AveragePool": "a dilated AveragePool is no convolution",
    "LpPool": "a dilated LpPool is no convolution",
}
SAVED = "ONNX Runtime saved this file with its own operators"
RUNTIME_DOMAINS = frozenset({"com.microsoft.nchwc", "com.ms.internal.nhwc"})
RUNTIME_CONVOLUTIONS = frozenset({"FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv"})
"""Operators that ONNX Runtime's optimiser puts in the place of exported ones: all of two domains, some of
com.microsoft."""
CONVOLUTIONS = frozenset(
    {"Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "DeformConv", "FusedConv", "NhwcFusedConv"}
)

MOST_TAPS = 2**16
"""A kernel axis with more taps is not rewritten: where each of them touches data could not be told in time."""

MOST_WEIGHTS = 2**31
"""More weights fit into no model; only computed ones can have a shape that says so."""


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
    """A DequantizeLinear before a Conv's input, weight or bias.

    `axis` is `None` for one scale per tensor. `zero_point` is `None` when the node has none.
    """

    index: int
    source: Operand
    scale: Operand
    zero_point: Operand | None
    axis: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A dilated Conv that can be rewritten.

    `index` is the node's place in its scope's node list. `follow` are the places of what comes right after it and may
    stand between a fragment's core and exit: at most one unary operator, and the QuantizeLinear of a quantised site
    (`quantizes_output` when it is there).
    `weight_quantization`/`bias_quantization` are set when the operand stands behind a DequantizeLinear of constants
    (`weight`/`bias` is then the quantised tensor).
    """

    scope: ScopePath
    where: str
    index: int
    name: str
    output: str
    geometry: ConvGeometry
    opset: int
    ir_version: int
    weight: Operand
    bias: Operand | None
    weight_quantization: Dequantized | None = None
    bias_quantization: Dequantized | None = None
    input_quantization: Dequantized | None = None
    follow: tuple[int, ...] = ()
    quantizes_output: bool = False

    @property
    def key(self) -> str:
        """Return what names the site in files: scope and output tensor."""
        return f"{self.where}/{self.output}"

    @property
    def storage(self) -> str | None:
        """Return the element type of the tensor that a fragment reads, when it is quantised."""
        return self.input_quantization.source.element if self.input_quantization else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Normalisation:
    """Attributes of a Conv that change without changing its function.

    `dilations` of axes with kernel 1 become 1, SAME_* becomes explicit `pads` (begins, then ends).
    """

    scope: ScopePath
    where: str
    index: int
    name: str
    dilations: tuple[int, ...] | None = None
    pads: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A dilated node that is not rewritten, and why."""

    where: str
    name: str
    op: str
    dilations: tuple[int, ...]
    reason: str

    @property
    def convolution(self) -> bool:
        """Say whether the node counts as a dilated convolution (a pooling does not)."""
        return self.op in CONVOLUTIONS


@dataclass(frozen=True, slots=True)
class Found:
    """What a model holds: sites to rewrite, attribute changes for kept Convs, and nodes that are left alone."""

    sites: tuple[Site, ...] = ()
    normalisations: tuple[Normalisation, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    remarks: tuple[str, ...] = ()


class _Refused(Exception):  # noqa: N818 - becomes a Skipped
    pass


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return a Conv's attributes; one of its function raises `_Refused`, one of another type ValueError."""
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            raise _Refused(f"its {attribute.name} is an attribute of the function ({attribute.ref_attr_name})")
        wanted = _ATTRIBUTE_TYPES.get(attribute.name, attribute.type)
        if attribute.type != wanted:
            raise ValueError(f"{attribute.name} is of type {_type(attribute.type)}, not {_type(wanted)}")
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


_ATTRIBUTE_TYPES = {
    "auto_pad": AttributeProto.STRING,
    "dilations": AttributeProto.INTS,
    "group": AttributeProto.INT,
    "kernel_shape": AttributeProto.INTS,
    "pads": AttributeProto.INTS,
    "strides": AttributeProto.INTS,
}


def _type(number: int) -> str:
    return str(AttributeProto.AttributeType.Name(number))


@dataclass
class _Scope:
    path: ScopePath
    where: str
    container: Container
    parent: _Scope | None
    opset: int
    ir_version: int
    shapes: Mapping[str, Typed]
    producers: dict[str, int] = field(default_factory=dict)
    consumers: dict[str, list[int]] = field(default_factory=dict)
    captured: Counter[str] = field(default_factory=Counter)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    sparse: dict[str, Any] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    trained: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        container = self.container
        for index, node in enumerate(container.node):
            for name in node.output:
                if name:
                    self.producers[name] = index
            for name in node.input:
                self.consumers.setdefault(name, []).append(index)
            for _, _, graph in subgraphs(node):
                self.captured.update(names_read(graph))
        if isinstance(container, GraphProto):
            self.initializers = {tensor.name: tensor for tensor in container.initializer}
            self.sparse = {sparse.values.name: sparse for sparse in container.sparse_initializer}
        self.inputs, self.outputs = ends(container)

    def home(self, name: str) -> _Scope | None:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.producers or name in scope.initializers or name in scope.inputs or name in scope.sparse:
                return scope
            scope = scope.parent
        return None

    def shape_of(self, name: str) -> Typed:
        home = self.home(name)
        return home.shapes.get(name, (0, None)) if home else (0, None)

    def sole_consumer(self, name: str) -> int | None:
        """Return the one node of this scope that reads `name`, when nothing else does."""
        readers = self.consumers.get(name, [])
        if len(readers) != 1 or self.captured[name] or name in self.outputs:
            return None
        return readers[0]


# -- operands ------------------------------------------------------------------------------------------------------


def _operand(scope: _Scope, name: str) -> Operand:
    home = scope.home(name)
    if home is None:
        return Operand(kind="computed", name=name, shape=None, element=None, scope=scope.path)
    if name in home.initializers and name not in home.producers:
        tensor = home.initializers[name]
        changes = (name in home.inputs and home.ir_version >= 4) or name in home.trained
        return Operand(
            kind="computed" if changes else "initializer",
            name=name,
            shape=tuple(tensor.dims),
            element=ELEMENTS.get(tensor.data_type),
            scope=home.path,
        )
    index = home.producers.get(name)
    if index is not None:
        node = home.container.node[index]
        if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS:
            value = next((a.t for a in node.attribute if a.name == "value" and not a.ref_attr_name), None)
            if value is not None:
                return Operand(
                    kind="constant",
                    name=name,
                    shape=tuple(value.dims),
                    element=ELEMENTS.get(value.data_type),
                    scope=home.path,
                    index=index,
                )
    element, dims = home.shapes.get(name, (0, None))
    shape = tuple(d for d in dims if d is not None) if dims is not None else None
    if dims is not None and shape is not None and len(shape) != len(dims):
        shape = None
    return Operand(kind="computed", name=name, shape=shape, element=ELEMENTS.get(element), scope=home.path, index=index)


def _dequantized(scope: _Scope, name: str) -> Dequantized | None:
    """Return the DequantizeLinear of this scope that makes `name`, unless it is blocked."""
    index = scope.producers.get(name)
    if index is None:
        return None
    node = scope.container.node[index]
    if node.op_type != "DequantizeLinear" or node.domain not in DEFAULT_DOMAINS or len(node.input) < 2:
        return None
    values = {a.name: a for a in node.attribute}
    if any(a.ref_attr_name for a in node.attribute) or ("block_size" in values and values["block_size"].i):
        return None
    scale = _operand(scope, node.input[1])
    if scale.shape is None:
        return None
    zero = node.input[2] if len(node.input) > 2 else ""
    return Dequantized(
        index=index,
        source=_operand(scope, node.input[0]),
        scale=scale,
        zero_point=_operand(scope, zero) if zero else None,
        axis=(values["axis"].i if "axis" in values else 1) if scale.shape not in ((), (1,)) else None,
    )


def _constant_dequantized(scope: _Scope, name: str) -> Dequantized | None:
    """Return the DequantizeLinear of constants, per tensor or per output channel, that makes `name`."""
    found = _dequantized(scope, name)
    if found is None or found.axis not in (None, 0) or not found.source.is_constant or found.source.element is None:
        return None
    if not found.scale.is_constant or (found.zero_point is not None and not found.zero_point.is_constant):
        return None
    return found


# -- nodes ---------------------------------------------------------------------------------------------------------


def _ints(values: Mapping[str, Any], name: str, count: int, default: int) -> tuple[int, ...]:
    found = tuple(values.get(name) or (default,) * count)
    if len(found) != count:
        raise ValueError(f"{name} has {len(found)} values, not {count} (Attribute {name} has incorrect size)")
    return found


def _check_lengths(node: NodeProto, kernel: Sequence[int]) -> None:
    """Raise ValueError when a list of a Conv that is not dilated has another length than its kernel asks for."""
    values = {a.name: a.ints for a in node.attribute if a.type == AttributeProto.INTS and not a.ref_attr_name}
    for name, count in (("dilations", len(kernel)), ("strides", len(kernel)), ("pads", 2 * len(kernel))):
        _ints(values, name, count, 1)


def _follow(scope: _Scope, output: str, quantized: bool) -> tuple[int, ...]:
    found: list[int] = []
    name = output
    while (reader := scope.sole_consumer(name)) is not None:
        node = scope.container.node[reader]
        if node.domain not in DEFAULT_DOMAINS or node.input[0] != name or len(node.output) != 1:
            break
        if (
            node.op_type in UNARY
            and not found
            and all(_operand(scope, other).shape in ((), (1,)) for other in node.input[1:] if other)
        ):
            found.append(reader)
        elif node.op_type == "QuantizeLinear" and quantized:
            scale = _operand(scope, node.input[1])
            if scale.shape in ((), (1,)) and not any(a.name == "block_size" and a.i for a in node.attribute):
                found.append(reader)
            break
        else:
            break
        name = node.output[0]
    return tuple(found)


def _geometry(
    scope: _Scope, node: NodeProto, values: Mapping[str, Any], weight: Operand, element: str, quantized: bool
) -> ConvGeometry:
    _, x_shape = scope.shape_of(node.input[0])
    kernel = tuple(values["kernel_shape"]) if "kernel_shape" in values else None
    if weight.shape is not None:
        if kernel is not None and kernel != weight.shape[2:]:
            raise ValueError(f"kernel_shape {list(kernel)} does not fit the weights {list(weight.shape)}")
        kernel = weight.shape[2:]
    if kernel is None:
        known = scope.shape_of(node.input[1])[1]
        spatial = tuple(size for size in known[2:] if size is not None) if known is not None else ()
        if known is None or len(spatial) != len(known) - 2:
            raise _Refused("its weights are computed and have no known shape, and it has no kernel_shape")
        kernel = spatial
    rank = len(kernel)
    if rank < 1 or rank > MAX_RANK:
        raise _Refused(f"it has {rank} spatial axes; 1 to {MAX_RANK} are covered")
    if max(kernel) > MOST_TAPS:
        raise _Refused(f"its kernel has {max(kernel)} taps on an axis; up to {MOST_TAPS} are covered")
    if x_shape is not None and len(x_shape) != rank + 2:
        raise ValueError(f"its input has {len(x_shape)} axes, its kernel {list(kernel)} needs {rank + 2}")
    auto_pad = values.get("auto_pad", b"NOTSET").decode(errors="backslashreplace") or "NOTSET"
    if auto_pad not in AUTO_PADS:
        raise ValueError(f"auto_pad is {auto_pad!r}, not one of {', '.join(AUTO_PADS)}")
    pads = _ints(values, "pads", 2 * rank, 0) if auto_pad == "NOTSET" else (0,) * (2 * rank)
    group = int(values.get("group", 1))
    channels = x_shape[1] if x_shape is not None else None
    if weight.shape is not None:
        fitting = weight.shape[1] * group
        if channels is not None and channels != fitting:
            raise ValueError(
                f"its input has {channels} channels, its weights {list(weight.shape)} with group {group} need {fitting}"
            )
        channels = fitting
    unknown = (None,) * rank
    return ConvGeometry(
        batch=x_shape[0] if x_shape is not None else None,
        in_channels=channels,
        out_channels=weight.shape[0] if weight.shape is not None else None,
        group=group,
        extents=x_shape[2:] if x_shape is not None else unknown,
        kernel=kernel,
        strides=_ints(values, "strides", rank, 1),
        dilations=_ints(values, "dilations", rank, 1),
        pads_begin=pads[:rank],
        pads_end=pads[rank:],
        auto_pad=auto_pad,
        bias=len(node.input) > 2 and bool(node.input[2]),
        element=element,
        quantized=quantized,
    )


def _site(scope: _Scope, index: int, node: NodeProto) -> Site | None:
    """Return the site of a Conv with a dilation above 1, `None` when the dilation has no effect."""
    values = attributes(node)
    weight_name = node.input[1]
    weight_dq = _constant_dequantized(scope, weight_name)
    weight = weight_dq.source if weight_dq else _operand(scope, weight_name)
    x_dq = _dequantized(scope, node.input[0])
    if x_dq is not None and (x_dq.axis is not None or x_dq.source.element is None):
        x_dq = None
    element = None if weight_dq else weight.element
    if element is None:
        number = scope.shape_of(node.input[0])[0]
        element = ELEMENTS.get(number)
        if number and element is None:
            raise _Refused(f"its element type is {TensorProto.DataType.Name(number).lower()}")
    if element is None and weight_dq is not None:
        element = weight_dq.scale.element
    element = element or "float32"
    if element not in FLOATS:
        raise _Refused(f"its element type is {element}")
    geometry = _geometry(scope, node, values, weight, element, x_dq is not None)
    problem = geometry.malformed() or geometry.explicit().invalid()
    if problem:
        raise ValueError(problem)
    if not geometry.dilated:
        return None
    outputs, inputs = geometry.out_channels or geometry.group, geometry.in_channels or geometry.group
    elements = outputs * (inputs // geometry.group) * product(geometry.kernel)
    if elements > MOST_WEIGHTS:
        raise _Refused(f"its weights have {elements} elements; up to {MOST_WEIGHTS} are covered")
    bias_name = node.input[2] if geometry.bias else ""
    bias_dq = _constant_dequantized(scope, bias_name) if bias_name else None
    bias = (bias_dq.source if bias_dq else _operand(scope, bias_name)) if bias_name else None
    follow = _follow(scope, node.output[0], x_dq is not None)
    return Site(
        scope=scope.path,
        where=scope.where,
        index=index,
        name=node.name or node.output[0],
        output=node.output[0],
        geometry=geometry,
        opset=scope.opset,
        ir_version=scope.ir_version,
        weight=weight,
        bias=bias,
        weight_quantization=weight_dq,
        bias_quantization=bias_dq,
        input_quantization=x_dq,
        follow=follow,
        quantizes_output=bool(follow) and scope.container.node[follow[-1]].op_type == "QuantizeLinear",
    )


def _normalisation(node: NodeProto, weight_kernel: Sequence[int] | None) -> tuple[int, ...] | None:
    """Return the dilations with 1 wherever the kernel is 1, `None` when they are so already."""
    dilations = next((tuple(a.ints) for a in node.attribute if a.name == "dilations" and not a.ref_attr_name), ())
    if weight_kernel is None or len(weight_kernel) != len(dilations):
        return None
    wanted = tuple(1 if k == 1 else d for k, d in zip(weight_kernel, dilations, strict=True))
    return wanted if wanted != dilations else None


def _check_sizes(inferred: ModelProto) -> None:
    """Raise `UsageError` when inference finds a negative size: a model that nothing can run.

    onnx's own inference dies of such a size where a Slice reads it, and rewritten models have Slices.
    """
    for value in inferred.graph.value_info:
        sizes = [size.dim_value for size in value.type.tensor_type.shape.dim]
        if min(sizes, default=0) < 0:
            raise UsageError(
                f"main: the tensor {value.name!r} would have the sizes {sizes}",
                hint="the node that makes it does not fit its input: export the model again or correct the node",
            )


def _scopes(proto: ModelProto, inferred: ModelProto) -> Iterator[_Scope]:
    bindings = [one for info in proto.training_info for one in (*info.initialization_binding, *info.update_binding)]

    def walk(
        graph: GraphProto, twin: GraphProto, path: ScopePath, where: str, parent: _Scope | None, opset: int
    ) -> Iterator[_Scope]:
        scope = _Scope(path, where, graph, parent, opset, proto.ir_version, graph_shapes(twin))
        if parent is None:
            scope.captured.update(names_in_training(proto))
            scope.trained = frozenset(binding.key for binding in bindings)
        yield scope
        yield from below(scope, graph, twin)

    def below(scope: _Scope, container: Container, twin: Container) -> Iterator[_Scope]:
        names = Counter(node.name for node in container.node)
        for index, (node, twin_node) in enumerate(zip(container.node, twin.node, strict=True)):
            for (name, place, graph), (_, _, twin_graph) in zip(subgraphs(node), subgraphs(twin_node), strict=True):
                path = ScopePath(scope.path.function, (*scope.path.steps, (index, name, place)))
                unique = node.name if names[node.name] == 1 and node.name else f"{node.name or node.op_type}#{index}"
                label = f"{scope.where}/{unique}.{name}" + (f"[{place}]" if place else "")
                yield from walk(graph, twin_graph, path, label, scope, scope.opset)

    def opset_of(imports: Sequence[onnx.OperatorSetIdProto], default: int) -> int:
        return next((entry.version for entry in imports if entry.domain in DEFAULT_DOMAINS), default)

    main_opset = opset_of(proto.opset_import, 0)
    yield from walk(proto.graph, inferred.graph, ScopePath(), "main", None, main_opset)
    for number, function in enumerate(proto.functions):
        label = f"function {function.domain + ':' if function.domain else ''}{function.name}"
        if function.overload:
            label += f"[{function.overload}]"
        opset = opset_of(function.opset_import, main_opset)
        scope = _Scope(ScopePath(number), label, function, None, opset, proto.ir_version, {})
        yield scope
        yield from below(scope, function, inferred.functions[number])


def find(proto: ModelProto) -> Found:
    """Return every dilated Conv of `proto` as a site or with the reason why not, and the attribute changes.

    Sites are in the order of the node lists, subgraphs after the graph that holds them, functions last.
    Raises `UsageError` naming the node for an invalid dilated Conv.
    """
    sites: list[Site] = []
    normalisations: list[Normalisation] = []
    skipped: list[Skipped] = []
    inferred = infer_shapes(proto)
    misled = _misled(proto.graph, inferred.graph)
    for scope in _scopes(proto, inferred):
        for index, node in enumerate(scope.container.node):
            dilations: tuple[int, ...] = ()
            reference = False
            for attribute in node.attribute:
                if attribute.name == "dilations":
                    dilations, reference = tuple(attribute.ints), bool(attribute.ref_attr_name)
            conv = node.op_type == "Conv" and node.domain in DEFAULT_DOMAINS
            label = {"where": scope.where, "name": node.name or (node.output[0] if node.output else node.op_type)}
            if max(dilations, default=1) <= 1 and not (conv and (reference or min(dilations, default=1) < 1)):
                kernel = _kernel(scope, node) if conv and len(node.input) > 1 else None
                try:
                    if kernel is not None:
                        _check_lengths(node, kernel)
                except ValueError as error:
                    raise _invalid(label, error) from error
                continue
            if not conv:
                if not _acts(node, dilations):
                    continue
                reason = _skip_reason(node)
                skipped.append(Skipped(**label, op=node.op_type, dilations=dilations, reason=reason))
                continue
            try:
                for what, names in (
                    ("input", node.input[:1]),
                    ("weights", node.input[1:2]),
                    ("output", node.output[:1]),
                ):
                    if not names or not names[0]:
                        raise ValueError(f"it has no {what}")
                site = _site(scope, index, node)
            except _Refused as refused:
                skipped.append(Skipped(**label, op="Conv", dilations=dilations, reason=str(refused)))
                continue
            except ValueError as error:
                raise _invalid(label, error) from error
            kernel = site.geometry.kernel if site else _kernel(scope, node)
            fixed = _normalisation(node, kernel)
            pads = _static_pads(site.geometry) if site else None
            if fixed or pads:
                normalisations.append(
                    Normalisation(
                        scope=scope.path, where=scope.where, index=index, name=label["name"], dilations=fixed, pads=pads
                    )
                )
            if site and (source := _misleading(misled, scope.path, index)):
                reason = (
                    f"it follows from the output {source!r}, whose declared shape is not known to be right; runtimes "
                    "would believe it: correct or remove that shape"
                )
                skipped.append(Skipped(**label, op="Conv", dilations=dilations, reason=reason))
            elif site:
                sites.append(site)
    _check_sizes(inferred)
    return Found(tuple(sites), tuple(normalisations), tuple(skipped), _remarks(proto))


def _remarks(proto: ModelProto) -> tuple[str, ...]:
    """Return what a reader should know of the file as a whole."""
    newest = too_new(next((entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS), 0))
    saved = saved_by_runtime(proto)
    remarks = (newest, f"{SAVED} ({saved}): start from the exported model" if saved else None)
    return tuple(remark for remark in remarks if remark)


def too_new(opset: int) -> str | None:
    """Return why nothing is known of an opset, None for one that the installed onnx knows."""
    newest = onnx.defs.onnx_opset_version()
    if opset <= newest:
        return None
    return (
        f"opset {opset} is newer than {newest}, the newest that onnx {onnx.__version__} knows: update onnx and "
        "onnxruntime, or export the model with an older opset"
    )


def saved_by_runtime(proto: ModelProto) -> str:
    """Return the operators, counted, by which one sees that ONNX Runtime wrote the file; "" for any other file."""
    own = Counter(f"{node.domain}:{node.op_type}" for node in all_nodes(proto) if _is_runtimes_own(node))
    return ", ".join(f"{count} {name}" for name, count in sorted(own.items()))


def _is_runtimes_own(node: NodeProto) -> bool:
    own = node.domain == "com.microsoft" and node.op_type in RUNTIME_CONVOLUTIONS
    return own or node.domain in RUNTIME_DOMAINS


def _skip_reason(node: NodeProto) -> str:
    if _is_runtimes_own(node):
        return f"{SAVED}, {node.op_type} among them; start from the exported model"
    if node.domain in DEFAULT_DOMAINS:
        return SKIP_REASONS.get(node.op_type, f"{node.op_type} is not rewritten")
    return f"{node.op_type} of {node.domain} is not ONNX's and is not rewritten"


def _misled(graph: GraphProto, twin: GraphProto) -> dict[int, str]:
    """Return the main graph's nodes that follow from an output of it with a size that is not believed: {place: output}.

    A fragment asks for sizes at run time. ONNX Runtime answers from the declared shape of an output where its own
    inference does not contradict, and the declaration is the model's interface: it is not for us to change.
    """
    shapes = graph_shapes(twin)
    doubtful = [value for value in graph.output if not _holds(value_shape(value), shapes.get(value.name, (0, None)))]
    readers: dict[str, list[int]] = {}
    for index, node in enumerate(graph.node) if doubtful else ():
        for name in {*node.input, *(name for _, _, below in subgraphs(node) for name in names_read(below))}:
            readers.setdefault(name, []).append(index)
    found: dict[int, str] = {}
    for value in doubtful:
        queue = [value.name]
        while queue:
            for index in readers.get(queue.pop(), ()):
                if index not in found:
                    found[index] = value.name
                    queue.extend(name for name in graph.node[index].output if name)
    return found


def _holds(declared: Typed, known: Typed) -> bool:
    """Say whether every size that is declared is known to be so."""
    sizes, shape = declared[1], known[1]
    if sizes is None or all(size is None for size in sizes):
        return True
    return (
        shape is not None
        and len(shape) == len(sizes)
        and all(b in (None, a) for a, b in zip(shape, sizes, strict=True))
    )


def _misleading(misled: Mapping[int, str], path: ScopePath, index: int) -> str | None:
    """Return the output that a node of a scope follows from, if any; a function's nodes may be called from anywhere."""
    if path.function is not None:
        return next(iter(misled.values()), None)
    return misled.get(path.steps[0][0] if path.steps else index)


def _invalid(label: Mapping[str, str], error: ValueError) -> UsageError:
    problem = f"{label['where']}: Conv {label['name']!r} is invalid: {error}"
    return UsageError(problem, hint="export the model again or correct the node")


def _acts(node: NodeProto, dilations: Sequence[int]) -> bool:
    kernel = next((tuple(a.ints) for a in node.attribute if a.name == "kernel_shape"), None)
    if kernel is None or len(kernel) != len(dilations):
        return True
    return any(d > 1 and k > 1 for d, k in zip(dilations, kernel, strict=True))


def _kernel(scope: _Scope, node: NodeProto) -> tuple[int, ...] | None:
    dq = _constant_dequantized(scope, node.input[1])
    weight = dq.source if dq else _operand(scope, node.input[1])
    if weight.shape is not None:
        return weight.shape[2:]
    return next((tuple(a.ints) for a in node.attribute if a.name == "kernel_shape"), None)


def _static_pads(geometry: ConvGeometry) -> tuple[int, ...] | None:
    """Return the explicit pads of a SAME_* Conv, `None` when it has none or they depend on an unknown extent."""
    if not geometry.auto_pad.startswith("SAME"):
        return None
    explicit = geometry.explicit()
    if explicit.auto_pad != "NOTSET":
        return None
    begin, end = explicit.static_pads
    return *begin, *end
