"""Writes out ONNX Runtime's FusedConv: a Conv, the Add of a tensor that it adds, and an activation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from dilrewrite.sites.operators import label_of
from dilrewrite.splice.names import Names

DOMAIN, FUSED = "com.microsoft", "FusedConv"

ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "": (),
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "Clip": ("min", "max"),
}
"""The activations that ONNX Runtime fuses into a Conv, and what their `activation_params` are, in this order.

Source: ONNX Runtime, contrib operator FusedConv version 1, and core/providers/common.h/fused_activation.cc."""

OWN = ("activation", "activation_params")


def is_fused(node: NodeProto) -> bool:
    """Say whether a node is a FusedConv that `parts` writes out."""
    if node.domain != DOMAIN or node.op_type != FUSED or any(a.ref_attr_name for a in node.attribute):
        return False
    activation, params = _activation(node)
    return len(ACTIVATIONS.get(activation, (0,) * (len(params) + 1))) == len(params)


def _activation(node: NodeProto) -> tuple[str, tuple[float, ...]]:
    values = {attribute.name: attribute for attribute in node.attribute}
    name = values["activation"].s.decode(errors="replace") if "activation" in values else ""
    return name, tuple(values["activation_params"].floats) if "activation_params" in values else ()


def parts(node: NodeProto, opset: int, names: Names) -> Iterator[NodeProto]:
    """Yield what a FusedConv computes: activation(Conv(X, W, B) + Z). The Conv keeps its name, the last one its output.

    `opset`: from 11 on Clip has its bounds as inputs. FusedConv: X, W, B (may be left out), Z (the same).
    """
    (activation, params), label = _activation(node), label_of(node)
    added = node.input[3] if len(node.input) > 3 else ""
    operators = ["Conv", *(["Add"] if added else []), *([activation] if activation else [])]
    outputs = [*(names.make(f"{label}/{op}_output") for op in operators[:-1]), node.output[0]]
    given: dict[str, float] = dict(zip(ACTIVATIONS[activation], params, strict=True))
    bounds = [names.make(f"{label}/{bound}") for bound in given] if activation == "Clip" and opset >= 11 else []
    for bound, value in zip(bounds, given.values(), strict=False):
        tensor = numpy_helper.from_array(np.array(value, np.float32))
        yield helper.make_node("Constant", [], [bound], name=bound, value=tensor)
    inputs = [*node.input[:3]] if node.input[2:3] != [""] else [*node.input[:2]]
    conv = helper.make_node("Conv", inputs, outputs[:1], name=node.name)
    conv.attribute.extend(attribute for attribute in node.attribute if attribute.name not in OWN)
    yield conv
    if added:
        yield helper.make_node("Add", [outputs[0], added], outputs[1:2], name=names.make(f"{label}/Add"))
    if activation:
        last = helper.make_node(
            activation, [outputs[-2], *bounds], outputs[-1:], name=names.make(f"{label}/{activation}")
        )
        last.attribute.extend(helper.make_attribute(key, value) for key, value in given.items() if not bounds)
        yield last
