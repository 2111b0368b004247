"""Cuts nodes out of a model as a model of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from dilrewrite.model.elements import ELEMENTS, pack
from dilrewrite.model.walk import DEFAULT_DOMAINS, ScopePath, resolve, sorted_places, subgraphs
from dilrewrite.sites import Site
from dilrewrite.sites.scopes import Scope

NEWEST_IR = 10
"""Later ones change nothing in a sub-model, and an older runtime refuses them."""

Outside = Callable[[str, int, NodeProto], ValueInfoProto | TensorProto]
"""What stands for the tensor that a node, named in the sub-model, reads at some place of its inputs: an input, or a
constant, whose name is made."""


class Source:
    """A model that sub-models are cut from; each of its node lists is looked through when it is first needed."""

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self._scopes: dict[ScopePath, Scope] = {}

    def scope(self, path: ScopePath) -> Scope:
        """Return the node list at `path`."""
        if path not in self._scopes:
            around = self.scope(ScopePath(path.function, path.steps[:-1])) if path.steps else None
            here = resolve(self.proto, path)
            self._scopes[path] = Scope(path, "", here, around, opset=0, ir_version=self.proto.ir_version, shapes={})
        return self._scopes[path]

    def constant(self, path: ScopePath, name: str) -> TensorProto | None:
        """Return the constant of that name that the node list at `path` sees."""
        operand = self.scope(path).operand(name)
        home = self.scope(operand.scope)
        if operand.kind == "initializer":
            return home.initializers[name]
        return home.constant(operand.index) if operand.kind == "constant" and operand.index is not None else None

    def parts(self, site: Site) -> dict[str, NodeProto]:
        """Return the nodes of a site, makers before readers, by the names that they get in a sub-model.

        Those of its first operator are "conv" and, if it reads quantised tensors, "x_f", "w_f" and "b_f"; of the next
        one "conv.1" and so on.
        """
        nodes = self.scope(site.scope).nodes
        words: dict[int, str] = {}
        for number, part in enumerate(site.parts):
            end = f".{number}" if number else ""
            before = {"x_f": part.input_quantization, "w_f": part.weight_quantization, "b_f": part.bias_quantization}
            words |= {given.index: word + end for word, given in before.items() if given is not None}
            words[part.index] = f"conv{end}"
        words = {**words, **{index: f"node_{place}" for place, index in enumerate(site.nodes) if index not in words}}
        named = [(word, nodes[index]) for index, word in words.items()]
        return dict(named[place] for place in sorted_places([node for _, node in named]))


def carve(
    proto: ModelProto, path: ScopePath, nodes: Mapping[str, NodeProto], outside: Outside, outputs: Iterable[str]
) -> ModelProto:
    """Return a model of nodes of the node list at `path`: as they are, without comments and metadata.

    `nodes`: by their names in the sub-model, makers before readers; the first output of each gets that name. `outside`:
    asked for every tensor that none of them makes. `outputs`: names in the sub-model. Equal nodes give the same bytes.
    Raises ValueError for a node that holds graphs.
    """
    own = () if path.function is None else proto.functions[path.function].opset_import
    versions = {_domain(entry.domain): entry.version for entry in (*proto.opset_import, *own)}
    sub = ModelProto(ir_version=min(proto.ir_version, NEWEST_IR), graph=GraphProto(name="carved"))
    for domain in sorted({_domain(node.domain) for node in nodes.values()}):
        sub.opset_import.add(domain=domain, version=versions[domain])
    names = {"": ""}
    for word, node in nodes.items():
        if any(subgraphs(node)):
            raise ValueError(f"{node.op_type} {node.name!r} holds graphs")
        copy = sub.graph.node.add(op_type=node.op_type, domain=_domain(node.domain), name=word)
        copy.attribute.extend(sorted(node.attribute, key=lambda attribute: attribute.name))
        for attribute in copy.attribute:
            attribute.ClearField("doc_string")
        for place, name in enumerate(node.input):
            known = name in names
            copy.input.append(names[name] if known else _taken(sub, outside(word, place, node), f"{word}_{place}"))
        for place, name in enumerate(node.output):
            names[name] = name and (f"{word}_out{place}" if place else word)
            copy.output.append(names[name])
    types = _element_types(sub)
    sub.graph.output.extend(helper.make_tensor_value_info(name, types[name], None) for name in outputs)
    return sub


def _domain(name: str) -> str:
    return "" if name in DEFAULT_DOMAINS else name


def _taken(sub: ModelProto, given: ValueInfoProto | TensorProto, word: str) -> str:
    """Put an input (once) or a constant into a model; return its name."""
    graph = sub.graph
    if isinstance(given, TensorProto):
        given.name = word
        graph.initializer.append(given)
        if sub.ir_version < 4:
            graph.input.append(helper.make_tensor_value_info(word, given.data_type, given.dims))
    elif all(value.name != given.name for value in graph.input):
        graph.input.append(given)
    return given.name


def _element_types(sub: ModelProto) -> dict[str, int]:
    """Return the element types of a sub-model's tensors: an operator makes that of an input, or the only one it has."""
    opsets = {entry.domain: entry.version for entry in sub.opset_import}
    types = {value.name: value.type.tensor_type.elem_type for value in sub.graph.input}
    types |= {tensor.name: tensor.data_type for tensor in sub.graph.initializer}
    for node in sub.graph.node:
        contrib = node.domain == "com.microsoft"  # QuantizeLinear and DequantizeLinear, as ONNX has them from 21 on
        schema = onnx.defs.get_schema(
            node.op_type, 21 if contrib else opsets[node.domain], "" if contrib else node.domain
        )
        made, pairs = schema.outputs[0], zip(node.input, schema.inputs, strict=False)
        alike = [types[name] for name, formal in pairs if name and formal.type_str == made.type_str]
        named = [a.i for a in node.attribute if a.name == "output_dtype" and a.i]
        only = sorted(made.types)[-1]  # QuantizeLinear makes uint8 where nothing says so
        kind = TensorProto.DataType.Value(only.removeprefix("tensor(").rstrip(")").upper())
        types.update(dict.fromkeys(node.output, [*alike, *named, kind][0]))
    return types


def tensor(values: NDArray[np.generic]) -> TensorProto:
    """Return a constant without a name."""
    element = next(element for element in ELEMENTS if element.dtype == values.dtype)
    raw = pack(np.ascontiguousarray(values), element).tobytes()
    return TensorProto(data_type=element.number, dims=values.shape, raw_data=raw)
