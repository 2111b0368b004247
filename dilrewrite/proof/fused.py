"""Proves what stands for ONNX Runtime's FusedConv against that operator itself: bit for bit, each kind of it once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from dilrewrite.model.tensors import Model, WrittenOut
from dilrewrite.model.walk import copied, graphs
from dilrewrite.proof.numbers import whole_numbers
from dilrewrite.proof.proof import differs
from dilrewrite.runtimes import Array, CannotLoad, CannotRun, Options, Runnable, backend
from dilrewrite.sites.operators import label_of
from dilrewrite.splice.fused import DOMAIN

EXTRA = 5
"""How many strides an input is longer on each axis than the smallest one."""

STEP = np.float32(1 / 64)
"""Numbers are whole multiples of it: activations then see values on both sides of 0 and of their bounds."""


def unequal(model: Model, *, threads: int | None = None, seed: int = 0) -> Iterator[str]:
    """Yield what is wrong with the nodes that stand for a FusedConv of `model`, in a sentence each; nothing: all equal.

    A node runs by itself, without optimisations, on numbers of which every sum is exact, so the activation sees the
    same in both. One that ONNX Runtime does not run has nothing to be held to.
    """
    kernels = {
        tensor.name: tuple(tensor.dims[2:]) for graph in graphs(model.proto.graph) for tensor in graph.initializer
    }
    known: dict[bytes, str | None] = {}
    for written in model.written_out:
        if written.opset:
            case = _case(written, kernels, np.random.default_rng(seed))
            key = case[0].SerializeToString(deterministic=True)
            if key not in known:
                known[key] = _difference(*case, threads)
            if known[key]:
                parts = ", ".join(node.op_type for node in written.nodes if node.op_type != "Constant")
                yield f"FusedConv {label_of(written.node)!r} is not {parts}: {known[key]}"


def _difference(given: ModelProto, parts: ModelProto, feeds: dict[str, Array], threads: int | None) -> str | None:
    options = Options(threads=threads, isolated=False, optimize=False)
    results = []
    try:
        for proto in (given, parts):
            with backend("onnxruntime_cpu").session(Runnable(model=proto.SerializeToString()), options) as session:
                results.append(session.run(feeds)["y"])
    except (CannotLoad, CannotRun) as error:
        return f"it does not run: {error}" if results else None
    return differs(results[1], results[0])


def _case(
    written: WrittenOut, kernels: dict[str, tuple[int, ...]], rng: np.random.Generator
) -> tuple[ModelProto, ModelProto, dict[str, Array]]:
    """Return the node and its parts as models of the same inputs, and numbers for these."""
    node = written.node
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    rank = len(values.get("dilations") or values.get("kernel_shape") or kernels.get(node.input[1]) or (1,))
    kernel = values.get("kernel_shape") or kernels.get(node.input[1]) or (3,) * rank
    pads, ones = values.get("pads") or (0,) * 2 * rank, (1,) * rank
    strides, dilations = values.get("strides") or ones, values.get("dilations") or ones
    extents, outs = [], []
    for k, s, d, begin, end in zip(kernel, strides, dilations, pads[:rank], pads[rank:], strict=True):
        extents.append(max(1, d * (k - 1) + 1 - begin - end) + EXTRA * s)
        outs.append((extents[-1] + begin + end - d * (k - 1) - 1) // s + 1)
    if values.get("auto_pad", b"").startswith(b"SAME"):
        outs = [-(-extent // s) for extent, s in zip(extents, strides, strict=True)]
    channels = 2 * values.get("group", 1)
    shapes = ((2, channels, *extents), (channels, 2, *kernel), (channels,), (2, channels, *outs))
    names = {name: f"v{place}" for place, name in enumerate(node.input) if name} | {node.output[0]: "y"}
    feeds: dict[str, Array] = {}
    for place, name in enumerate(node.input):
        if name:
            whole = (
                whole_numbers(rng, shapes[place], -3, 3) if place == 1 else whole_numbers(rng, shapes[place], -50, 50)
            )
            feeds[names[name]] = whole.astype(np.float32) * (1 if place == 1 else STEP)
    given, parts = (_model(nodes, names, feeds, written.opset) for nodes in ((node,), written.nodes))
    return given, parts, feeds


def _model(nodes: Sequence[NodeProto], names: Mapping[str, str], feeds: Mapping[str, Array], opset: int) -> ModelProto:
    """Return a model of nodes that reads `feeds`, in neutral names."""
    copies, own = [copied(node) for node in nodes], dict(names)
    for number, node in enumerate(copies):
        node.name = str(number)
        node.input[:] = [own[name] if name else "" for name in node.input]
        node.output[:] = [own.setdefault(name, f"t{number}") for name in node.output]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, values.shape) for name, values in feeds.items()]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(copies, "fused", inputs, outputs)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)
