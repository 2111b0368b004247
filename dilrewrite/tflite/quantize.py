"""Quantises a float ONNX model of fixed sizes with ONNX Runtime's quantiser on random data: for estimates."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dilrewrite.errors import one_line
from dilrewrite.runtimes import Array, CannotLoad
from dilrewrite.tflite.convert import WRITERS
from dilrewrite.tflite.source import DEQUANTIZE, QUANTIZE, attributes

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16}
WHOLE = {TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL}


def is_quantised(proto: ModelProto) -> bool:
    """Say whether a model has quantised tensors already."""
    return any(node.op_type in (QUANTIZE, DEQUANTIZE) for node in proto.graph.node)


def quantised(proto: ModelProto, of: Any = None) -> ModelProto:
    """Return a model with int8 tensors, by scales found on random inputs, and int8 weights by channel.

    `of`: another of ONNX Runtime's QuantType for the tensors.

    Raises CannotLoad where it does not run, or the quantiser does not take it.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    feeds = inputs(proto)

    class Once(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [feeds]

        def get_next(self) -> Any:
            return self.left.pop() if self.left else None

    plain = without_normalisations(proto)
    kinds = sorted({node.op_type for node in plain.graph.node} & (WRITERS.keys() - {QUANTIZE, DEQUANTIZE}))
    with tempfile.TemporaryDirectory() as folder, _silence():
        before, after = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        onnx.save_model(plain, before)
        try:
            quantize_static(
                before, after, Once(), quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=kinds,
                activation_type=of or QuantType.QInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        except Exception as error:  # of many kinds; the reason is one line
            raise CannotLoad(f"ONNX Runtime's quantiser: {one_line(error)}") from error
        return onnx.load_model(after)


@contextlib.contextmanager
def _silence() -> Any:
    """Keep the quantiser's advice from the screen."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def inputs(proto: ModelProto) -> dict[str, Array]:
    """Return random inputs of a model of fixed sizes."""
    rng, constants = np.random.default_rng(0), {tensor.name for tensor in proto.graph.initializer}
    feeds: dict[str, Array] = {}
    for value in proto.graph.input:
        if value.name not in constants:
            kind = value.type.tensor_type
            shape = [size.dim_value for size in kind.shape.dim]
            dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
    return feeds


def folded(proto: ModelProto, feeds: Mapping[str, Array]) -> ModelProto:
    """Return a model whose whole numbers, which are sizes, are constants: as they are in a run on `feeds`.

    Raises CannotLoad where it does not run.
    """
    import onnxruntime

    inferred = onnx.shape_inference.infer_shapes(proto)
    made = {name for node in proto.graph.node for name in node.output}
    kinds = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
    names = [name for name, kind in kinds.items() if name in made and kind in WHOLE]
    if not names:
        return proto
    probe = ModelProto()
    probe.CopyFrom(inferred)
    probe.graph.output.extend(value for value in inferred.graph.value_info if value.name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = session.run(names, dict(feeds))
    except Exception as error:  # of many kinds; the reason is one line
        raise CannotLoad(f"it does not run on ONNX Runtime: {one_line(error)}") from error
    result = ModelProto()
    result.CopyFrom(proto)
    known = dict(zip(names, values, strict=True))
    kept = [node for node in proto.graph.node if not all(name in known for name in node.output)]
    del result.graph.node[:]
    result.graph.node.extend(kept)
    result.graph.initializer.extend(numpy_helper.from_array(np.asarray(known[name]), name) for name in names)
    del result.graph.value_info[:]
    return result


def without_normalisations(proto: ModelProto) -> ModelProto:
    """Return a model with each BatchNormalization inside the Conv before it, or as a Mul and an Add."""
    result = ModelProto()
    result.CopyFrom(proto)
    graph = result.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    readers: dict[str, int] = {}
    for name in [*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)]:
        readers[name] = readers.get(name, 0) + 1
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or any(name not in constants for name in node.input[1:]):
            nodes.append(node)
            continue
        scale, shift, mean, variance = (numpy_helper.to_array(constants[name]) for name in node.input[1:])
        factor = scale / np.sqrt(variance + attributes(node).get("epsilon", 1e-5))
        offset = shift - mean * factor
        conv = made.get(node.input[0])
        weights = conv is not None and conv.op_type == "Conv" and all(name in constants for name in conv.input[1:])
        if conv is not None and weights and readers[node.input[0]] == 1:
            _join(graph, conv, constants, factor, offset)
            conv.output[0] = node.output[0]
            continue
        rank = len(_rank(proto, node.input[0]))
        nodes += _apart(graph, node, factor, offset, rank)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    unused = [tensor for tensor in graph.initializer if tensor.name not in used]
    for tensor in unused:
        graph.initializer.remove(tensor)
    return result


def _rank(proto: ModelProto, name: str) -> list[Any]:
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    for value in (*inferred.value_info, *inferred.input):
        if value.name == name:
            return list(value.type.tensor_type.shape.dim)
    raise CannotLoad(f"the rank of {name!r} is not known")


def _join(graph: Any, conv: NodeProto, constants: Mapping[str, TensorProto], factor: Array, offset: Array) -> None:
    """Put a normalisation into the weights and the bias of a Conv."""
    kernel = numpy_helper.to_array(constants[conv.input[1]])
    bias = numpy_helper.to_array(constants[conv.input[2]]) if len(conv.input) > 2 else 0
    label = conv.output[0]
    weights = (kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))).astype(kernel.dtype)
    sums = (bias * factor + offset).astype(kernel.dtype)
    graph.initializer.extend(
        numpy_helper.from_array(values, f"{label}/{what}") for values, what in ((weights, "weights"), (sums, "bias"))
    )
    del conv.input[1:]
    conv.input.extend([f"{label}/weights", f"{label}/bias"])


def _apart(graph: Any, node: NodeProto, factor: Array, offset: Array, rank: int) -> list[NodeProto]:
    """Return a normalisation as a Mul and an Add."""
    label, size = node.output[0], (1, -1, *[1] * (rank - 2))
    for values, what in ((factor, "factor"), (offset, "offset")):
        graph.initializer.append(numpy_helper.from_array(values.reshape(size), f"{label}/{what}"))
    return [
        helper.make_node("Mul", [node.input[0], f"{label}/factor"], [f"{label}/product"], name=node.name),
        helper.make_node("Add", [f"{label}/product", f"{label}/offset"], [label], name=f"{node.name or label}/sum"),
    ]
