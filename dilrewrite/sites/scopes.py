"""The node lists of a model as finders see them: what each tensor is, who makes it, who reads it."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from dilrewrite.model import walk
from dilrewrite.model.elements import FLOATS, NAMED
from dilrewrite.model.light import UNKNOWN, Typed, graph_shapes
from dilrewrite.model.walk import DEFAULT_DOMAINS, Container, ScopePath, ends, names_in_training, names_read, subgraphs
from dilrewrite.sites import Dequantized, Operand
from dilrewrite.sites.known import QUANTIZING_DOMAINS, UNARY

ELEMENTS = {NAMED[name].number: name for name in (*FLOATS, "int8", "uint8", "int16", "uint16", "int32")}
"""The types of what a Conv, or the DequantizeLinear before it, reads: {ONNX's number: name}."""


def module_of(node: NodeProto) -> str:
    """Return the path of the PyTorch module that a node comes from, as `torch.onnx.export` wrote it; may be empty.

    `pkg.torch.onnx.name_scopes` is `['', 'layers', 'layers.1.conv', 'conv1d_2']`: modules from outside in, then the
    call. `namespace` is `: Net/layers: Sequential/layers.1.conv: Conv1d/conv1d_2: aten.conv1d.default`.
    """
    told = {entry.key: entry.value for entry in node.metadata_props}
    scopes = [part.strip("[]'\" ") for part in told.get("pkg.torch.onnx.name_scopes", "").split(",")]
    if len(scopes) < 2:
        scopes = [part.partition(": ")[0] for part in told.get("namespace", "").split("/")]
    return scopes[-2] if len(scopes) > 1 else ""


@dataclass
class Scope:
    """A node list with an index. `captured`: names that the graphs inside its nodes read; `trained`: that change."""

    path: ScopePath
    where: str
    container: Container
    parent: Scope | None
    opset: int
    ir_version: int
    shapes: Mapping[str, Typed]
    trained: frozenset[str] = frozenset()
    nodes: Sequence[NodeProto] = field(init=False)
    producers: dict[str, int] = field(init=False)
    consumers: dict[str, list[int]] = field(init=False, default_factory=dict)
    captured: Counter[str] = field(init=False, default_factory=Counter)
    initializers: dict[str, TensorProto] = field(init=False, default_factory=dict)
    inputs: set[str] = field(init=False)
    outputs: set[str] = field(init=False)
    names: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = self.container.node
        self.producers = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                self.consumers.setdefault(name, []).append(index)
            for _, _, graph in subgraphs(node):
                self.captured.update(names_read(graph))
        self.inputs, self.outputs = ends(self.container)
        self.names = {*self.producers, *self.inputs}
        if isinstance(self.container, GraphProto):
            self.initializers = {tensor.name: tensor for tensor in self.container.initializer}
            self.names.update(self.initializers, (one.values.name for one in self.container.sparse_initializer))

    @functools.cached_property
    def labels(self) -> list[str]:
        """Return what names the nodes in `where`: their names, with their places where these are not unique."""
        counts = Counter(node.name for node in self.nodes)
        return [
            node.name if node.name and counts[node.name] == 1 else f"{node.name or node.op_type}#{index}"
            for index, node in enumerate(self.nodes)
        ]

    @functools.cached_property
    def _exported(self) -> Counter[tuple[str, str]]:
        return Counter((module_of(node), node.op_type) for node in self.nodes)

    def label(self, node: NodeProto) -> str:
        """Return what a node of this scope is called: its module's path, else its own name, or its output's.

        Where a module holds several of its kind, or runs several times, the node's own name follows the path.
        """
        own = node.name or (node.output[0] if node.output else node.op_type)
        path = module_of(node)
        if not path:
            return own
        return path if self._exported[path, node.op_type] == 1 else f"{path}/{own}"

    def _home(self, name: str) -> Scope | None:
        scope: Scope | None = self
        while scope is not None and name not in scope.names:
            scope = scope.parent
        return scope

    def shape_of(self, name: str) -> Typed:
        """Return the element type and shape of a tensor that this scope sees."""
        home = self._home(name)
        return home.shapes.get(name, UNKNOWN) if home else UNKNOWN

    def sole_consumer(self, name: str) -> int | None:
        """Return the one node of this scope that reads `name`, when nothing else does."""
        readers = self.consumers.get(name, [])
        return readers[0] if len(readers) == 1 and not self.captured[name] and name not in self.outputs else None

    # -- operands ------------------------------------------------------------------------------------------------

    def operand(self, name: str) -> Operand:
        """Return how a tensor comes to a node of this scope."""
        home = self._home(name) or self
        index = home.producers.get(name)
        tensor = home.initializers.get(name) if index is None else home.constant(index)
        kind: Literal["initializer", "constant", "computed"] = "initializer" if index is None else "constant"
        if tensor is None:
            kind, (element, dims) = "computed", self.shape_of(name)
            shape = None if dims is None or None in dims else tuple(size for size in dims if size is not None)
        else:
            element, shape = tensor.data_type, tuple(tensor.dims)
            if index is None and ((name in home.inputs and home.ir_version >= 4) or name in home.trained):
                kind = "computed"
        return Operand(kind=kind, name=name, shape=shape, element=ELEMENTS.get(element), scope=home.path, index=index)

    def small_integers(self, name: str, most: int) -> tuple[int, ...] | None:
        """Return the values of a constant of up to `most` int64 or int32 elements."""
        home = self._home(name) or self
        index = home.producers.get(name)
        tensor = home.initializers.get(name) if index is None else home.constant(index)
        if tensor is None and index is not None and home.nodes[index].op_type == "Constant":
            values = {a.name: a for a in home.nodes[index].attribute}
            ints = values.get("value_ints") or values.get("value_int")
            return None if ints is None else tuple(ints.ints) if ints.name == "value_ints" else (ints.i,)
        small = tensor is not None and math.prod(tensor.dims) <= most and not tensor.external_data
        if tensor is None or not small or tensor.data_type not in (TensorProto.INT64, TensorProto.INT32):
            return None
        return tuple(numpy_helper.to_array(tensor).ravel().tolist())

    def is_zero(self, name: str) -> bool:
        """Say whether a tensor is the constant 0, a single number."""
        home = self._home(name) or self
        index = home.producers.get(name)
        tensor = home.initializers.get(name) if index is None else home.constant(index)
        single = tensor is not None and math.prod(tensor.dims) == 1 and not tensor.external_data
        return tensor is not None and single and not numpy_helper.to_array(tensor).any()

    def values(self, operand: Operand) -> NDArray[np.generic] | None:
        """Return what a constant of a file holds; `None` where it is no constant, or its values are not at hand."""
        home: Scope | None = self
        while home is not None and home.path != operand.scope:
            home = home.parent
        if home is None or not operand.is_constant:
            return None
        tensor = home.initializers.get(operand.name) if operand.index is None else home.constant(operand.index)
        if tensor is None or tensor.external_data:
            return None
        try:
            return numpy_helper.to_array(tensor)
        except (TypeError, ValueError):  # the values were left in the file
            return None

    def constant(self, index: int) -> TensorProto | None:
        """Return the tensor of a Constant node."""
        node = self.nodes[index]
        if node.op_type != "Constant" or node.domain not in DEFAULT_DOMAINS:
            return None
        return next((a.t for a in node.attribute if a.name == "value" and not a.ref_attr_name), None)

    def dequantized(self, name: str) -> Dequantized | None:
        """Return the DequantizeLinear of this scope that makes `name`, unless it is blocked."""
        index = self.producers.get(name)
        if index is None:
            return None
        node = self.nodes[index]
        if node.op_type != "DequantizeLinear" or node.domain not in QUANTIZING_DOMAINS or len(node.input) < 2:
            return None
        values = {a.name: a for a in node.attribute}
        if any(a.ref_attr_name for a in node.attribute) or ("block_size" in values and values["block_size"].i):
            return None
        scale = self.operand(node.input[1])
        if scale.shape is None:
            return None
        zero = self.operand(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        source = self.operand(node.input[0])
        if source.element is None and zero is not None:  # onnx infers nothing of another domain
            source = replace(source, element=zero.element)
        return Dequantized(
            index=index,
            output=name,
            source=source,
            scale=scale,
            zero_point=zero,
            axis=(values["axis"].i if "axis" in values else 1) if scale.shape not in ((), (1,)) else None,
        )

    def constant_dequantized(self, name: str, axis: int = 0) -> Dequantized | None:
        """Return the DequantizeLinear of constants, per tensor or per output channel (`axis`), that makes `name`."""
        node = self.dequantized(name)
        if node is None or node.axis not in (None, axis) or node.source.element is None:
            return None
        operands = filter(None, (node.source, node.scale, node.zero_point))
        return node if all(operand.is_constant for operand in operands) else None

    def follow(self, output: str, *, quantized: bool) -> tuple[int, ...]:
        """Return the places of what may move into a fragment with the node that makes `output` (see `Site.follow`)."""
        places: list[int] = []
        while (reader := self.sole_consumer(output)) is not None:
            node = self.nodes[reader]
            domains = QUANTIZING_DOMAINS if node.op_type == "QuantizeLinear" else DEFAULT_DOMAINS
            if node.domain not in domains or node.input[0] != output or len(node.output) != 1:
                break
            scalars = [self.operand(other).shape in ((), (1,)) for other in node.input[1:] if other]
            if node.op_type in UNARY and not places and all(scalars):
                places.append(reader)
                output = node.output[0]
                continue
            blocked = any(a.name == "block_size" and a.i for a in node.attribute)
            if node.op_type == "QuantizeLinear" and quantized and any(scalars[:1]) and not blocked:
                places.append(reader)
            break
        return tuple(places)


def scopes(proto: ModelProto, inferred: ModelProto) -> Iterator[Scope]:
    """Yield the node lists of a model, each before those inside it, functions last; `inferred` knows their shapes."""
    opset, ir_version = _opset(proto.opset_import, 0), proto.ir_version
    bindings = [one for info in proto.training_info for one in (*info.initialization_binding, *info.update_binding)]
    above: dict[ScopePath, Scope] = {}
    for (path, container), (_, twin) in zip(walk.scopes(proto), walk.scopes(inferred), strict=True):
        shapes = graph_shapes(twin) if isinstance(twin, GraphProto) else {}
        if path.steps:
            index, attribute, place = path.steps[-1]
            parent = above[ScopePath(path.function, path.steps[:-1])]
            where = f"{parent.where}/{parent.labels[index]}.{attribute}" + (f"[{place}]" if place else "")
            scope = Scope(path, where, container, parent, parent.opset, ir_version, shapes)
        elif isinstance(container, FunctionProto):
            where = f"function {container.domain + ':' if container.domain else ''}{container.name}"
            where += f"[{container.overload}]" if container.overload else ""
            scope = Scope(path, where, container, None, _opset(container.opset_import, opset), ir_version, shapes)
        else:
            trained = frozenset(binding.key for binding in bindings)
            scope = Scope(path, "main", container, None, opset, ir_version, shapes, trained)
            scope.captured.update(names_in_training(proto))
        above[path] = scope
        yield scope


def _opset(imports: Sequence[onnx.OperatorSetIdProto], default: int) -> int:
    return next((entry.version for entry in imports if entry.domain in DEFAULT_DOMAINS), default)
