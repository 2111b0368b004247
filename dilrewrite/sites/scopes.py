"""The node lists of a model as finders see them: what each tensor is, who makes it, who reads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from dilrewrite.model.elements import FLOATS, NAMED
from dilrewrite.model.light import Typed, graph_shapes
from dilrewrite.model.walk import DEFAULT_DOMAINS, Container, ScopePath, ends, names_in_training, names_read, subgraphs
from dilrewrite.sites import Dequantized, Operand
from dilrewrite.sites.known import UNARY

ELEMENTS = {NAMED[name].number: name for name in (*FLOATS, "int8", "uint8", "int16", "uint16", "int32")}
"""The types of what a Conv, or the DequantizeLinear before it, reads: {ONNX's number: name}."""


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
    producers: dict[str, int] = field(default_factory=dict)
    consumers: dict[str, list[int]] = field(default_factory=dict)
    captured: Counter[str] = field(default_factory=Counter)
    initializers: dict[str, TensorProto] = field(default_factory=dict)
    sparse: dict[str, Any] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    trained: frozenset[str] = frozenset()
    nodes: Sequence[NodeProto] = field(init=False)

    def __post_init__(self) -> None:
        container = self.container
        self.nodes = container.node
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

    def _home(self, name: str) -> Scope | None:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.producers or name in scope.initializers or name in scope.inputs or name in scope.sparse:
                return scope
            scope = scope.parent
        return None

    def shape_of(self, name: str) -> Typed:
        """Return the element type and shape of a tensor that this scope sees."""
        home = self._home(name)
        return home.shapes.get(name, (0, None)) if home else (0, None)

    def sole_consumer(self, name: str) -> int | None:
        """Return the one node of this scope that reads `name`, when nothing else does."""
        readers = self.consumers.get(name, [])
        if len(readers) != 1 or self.captured[name] or name in self.outputs:
            return None
        return readers[0]

    # -- operands ------------------------------------------------------------------------------------------------

    def operand(self, name: str) -> Operand:
        """Return how a tensor comes to a node of this scope."""
        home = self._home(name)
        if home is None:
            return Operand(kind="computed", name=name, shape=None, element=None, scope=self.path)
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
        value = home.constant(index) if index is not None else None
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
        shape = None if dims is None or None in dims else tuple(size for size in dims if size is not None)
        return Operand(
            kind="computed", name=name, shape=shape, element=ELEMENTS.get(element), scope=home.path, index=index
        )

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
        if node.op_type != "DequantizeLinear" or node.domain not in DEFAULT_DOMAINS or len(node.input) < 2:
            return None
        values = {a.name: a for a in node.attribute}
        if any(a.ref_attr_name for a in node.attribute) or ("block_size" in values and values["block_size"].i):
            return None
        scale = self.operand(node.input[1])
        if scale.shape is None:
            return None
        zero = node.input[2] if len(node.input) > 2 else ""
        return Dequantized(
            index=index,
            output=name,
            source=self.operand(node.input[0]),
            scale=scale,
            zero_point=self.operand(zero) if zero else None,
            axis=(values["axis"].i if "axis" in values else 1) if scale.shape not in ((), (1,)) else None,
        )

    def constant_dequantized(self, name: str) -> Dequantized | None:
        """Return the DequantizeLinear of constants, per tensor or per output channel, that makes `name`."""
        node = self.dequantized(name)
        if node is None or node.axis not in (None, 0) or not node.source.is_constant or node.source.element is None:
            return None
        if not node.scale.is_constant or (node.zero_point is not None and not node.zero_point.is_constant):
            return None
        return node

    def follow(self, output: str, *, quantized: bool) -> tuple[int, ...]:
        """Return the places of what may move into a fragment with the node that makes `output` (see `Site.follow`)."""
        places: list[int] = []
        name = output
        while (reader := self.sole_consumer(name)) is not None:
            node = self.nodes[reader]
            if node.domain not in DEFAULT_DOMAINS or node.input[0] != name or len(node.output) != 1:
                break
            if (
                node.op_type in UNARY
                and not places
                and all(self.operand(other).shape in ((), (1,)) for other in node.input[1:] if other)
            ):
                places.append(reader)
            elif node.op_type == "QuantizeLinear" and quantized:
                scale = self.operand(node.input[1])
                if scale.shape in ((), (1,)) and not any(a.name == "block_size" and a.i for a in node.attribute):
                    places.append(reader)
                break
            else:
                break
            name = node.output[0]
        return tuple(places)


def scopes(proto: ModelProto, inferred: ModelProto) -> Iterator[Scope]:
    """Yield the node lists of a model, each before those inside it, functions last; `inferred` knows their shapes."""
    bindings = [one for info in proto.training_info for one in (*info.initialization_binding, *info.update_binding)]

    def walk(
        graph: GraphProto, twin: GraphProto, path: ScopePath, where: str, parent: Scope | None, opset: int
    ) -> Iterator[Scope]:
        scope = Scope(path, where, graph, parent, opset, proto.ir_version, graph_shapes(twin))
        if parent is None:
            scope.captured.update(names_in_training(proto))
            scope.trained = frozenset(binding.key for binding in bindings)
        yield scope
        yield from below(scope, graph, twin)

    def below(scope: Scope, container: Container, twin: Container) -> Iterator[Scope]:
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
        scope = Scope(ScopePath(number), label, function, None, opset, proto.ir_version, {})
        yield scope
        yield from below(scope, function, inferred.functions[number])
