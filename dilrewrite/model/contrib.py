"""Knows which operators of com.microsoft, ONNX Runtime's own, make tensors of the sizes that one of ONNX's makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnx import GraphProto, ModelProto, NodeProto, helper

from dilrewrite.model.light import UNKNOWN, Typed, graph_shapes
from dilrewrite.model.walk import graphs

DOMAIN = "com.microsoft"

_FIRST, _OPERANDS = slice(0, 1), slice(0, 4, 3)
"""The places of the tensors of data: the first one, or two with a scale and a zero point each."""

ALIKE: Mapping[str, tuple[str, slice]] = {
    **dict.fromkeys(("BiasGelu", "FastGelu", "Gelu", "QuickGelu"), ("Relu", _FIRST)),
    **dict.fromkeys(("QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax"), ("Relu", _FIRST)),
    "QLinearAdd": ("Add", _OPERANDS),
    "QLinearMul": ("Mul", _OPERANDS),
    "QLinearConcat": ("Concat", slice(2, None, 3)),
    "QLinearAveragePool": ("AveragePool", _FIRST),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", _FIRST),
    "FusedConv": ("Conv", slice(0, 3)),
    "QLinearConv": ("QLinearConv", slice(0, 9)),
    "QuantizeLinear": ("QuantizeLinear", slice(0, 3)),
    "DequantizeLinear": ("Cast", _FIRST),
}
"""An operator of ONNX with the same sizes, and which inputs it reads. Source: ONNX Runtime, ContribOperators.md."""

Replaced = Sequence[tuple[int, int, NodeProto]]
"""The place of a graph, that of a node in it, and the node."""


def stand_in(light: ModelProto) -> Replaced:
    """Put operators of ONNX in the place of those that are alike, for inference; return what stood there."""
    replaced: list[tuple[int, int, NodeProto]] = []
    for number, graph in enumerate(graphs(light.graph)):
        shapes = graph_shapes(graph) if any(node.domain == DOMAIN for node in graph.node) else {}
        for place, node in enumerate(graph.node):
            twin = _twin(node, shapes) if node.domain == DOMAIN else None
            if twin is not None:
                replaced.append((number, place, _copy(node)))
                node.CopyFrom(twin)
    return replaced


def put_back(inferred: ModelProto, replaced: Replaced, hidden: str) -> None:
    """Put the nodes back into a copy, but where one of the domain `hidden` stands now."""
    every: list[GraphProto] = list(graphs(inferred.graph)) if replaced else []
    for number, place, node in replaced:
        if every[number].node[place].domain != hidden:
            every[number].node[place].CopyFrom(node)


def _copy(node: NodeProto) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    return copy


def _twin(node: NodeProto, shapes: Mapping[str, Typed]) -> NodeProto | None:
    """Return the operator of ONNX, `None` where there is none: channels last, a type that is not known."""
    op, places = ALIKE.get(node.op_type, ("", _FIRST))
    last = any(attribute.name == "channels_last" and attribute.i for attribute in node.attribute)
    if not op or last or not node.input:
        return None
    twin = helper.make_node(op, list(node.input[places]), list(node.output), name=node.name)
    if op == "Cast":
        element = shapes.get(node.input[1], UNKNOWN)[0] if len(node.input) > 1 else 0
        twin.attribute.append(helper.make_attribute("to", element))
        return twin if element else None
    twin.attribute.extend(node.attribute)
    return twin
