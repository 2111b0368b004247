"""Operators by name: what is a convolution, what runtimes fuse behind one, and why other dilated operators stay."""

from __future__ import annotations

from collections import Counter

from onnx import ModelProto, NodeProto

from dilrewrite.model.walk import DEFAULT_DOMAINS, all_nodes

_BENDS = {"Clip", "Elu", "Selu", "Celu", "Relu", "LeakyRelu", "ThresholdedRelu", "Gelu", "Mish"}
_SATURATES = {"Sigmoid", "HardSigmoid", "Swish", "HardSwish", "Tanh", "Softplus", "Softsign"}
UNARY = frozenset(_BENDS | _SATURATES)
"""Elementwise operators with one tensor input (Clip's bounds are scalars), which runtimes fuse into a Conv."""

THROUGH = UNARY | {"Add", "BatchNormalization", "Div", "Identity", "Mul", "PRelu", "Sub"}
"""What is taken along behind a Conv: operators that a runtime may fuse into it, or run in its layout."""

BOUNDED = frozenset({"Clip"})
"""Those of which runtimes look at the constants' values."""

_WINDOWS = {"AveragePool", "Conv", "ConvTranspose", "GlobalAveragePool", "MaxPool", "Resize"}
SAME_LAYOUT = THROUGH | _WINDOWS | {"Concat", "DequantizeLinear"}
"""Where one of these reads the last tensor, the model goes on in the layout of a Conv."""

QUANTIZING_DOMAINS = (*DEFAULT_DOMAINS, "com.microsoft")
"""Where QuantizeLinear and DequantizeLinear come from; those of ONNX Runtime take 16 bits before opset 21."""

SAVED = "ONNX Runtime saved this file with its own operators"
RUNTIME_DOMAINS = frozenset({"com.microsoft.nchwc", "com.ms.internal.nhwc"})
RUNTIME_CONVOLUTIONS = frozenset({"FusedConv", "NhwcConv", "NhwcFusedConv", "QLinearConv"})
"""Operators that ONNX Runtime's optimiser puts in the place of exported ones: all of two domains, some of
com.microsoft."""
CONVOLUTIONS = frozenset(
    {"Conv", "ConvTranspose", "QLinearConv", "ConvInteger", "DeformConv", "FusedConv", "NhwcFusedConv"}
)
CONVOLVES = ("Conv", "ConvTranspose")
"""Those of ONNX that TensorRT makes layers of."""


def saved_by_runtime(proto: ModelProto) -> str:
    """Return the operators, counted, by which one sees that ONNX Runtime wrote the file; "" for any other file."""
    own = Counter(f"{node.domain}:{node.op_type}" for node in all_nodes(proto) if _is_runtimes_own(node))
    return ", ".join(f"{count} {name}" for name, count in sorted(own.items()))


def _is_runtimes_own(node: NodeProto) -> bool:
    own = node.domain == "com.microsoft" and node.op_type in RUNTIME_CONVOLUTIONS
    return own or node.domain in RUNTIME_DOMAINS


def skip_reason(node: NodeProto) -> str:
    """Return why a dilated node that no finder knows is left alone."""
    if _is_runtimes_own(node):
        return f"{SAVED}, {node.op_type} among them; start from the exported model"
    if node.domain in DEFAULT_DOMAINS:
        return f"{node.op_type} is not rewritten"
    return f"{node.op_type} of {node.domain} is not ONNX's and is not rewritten"
