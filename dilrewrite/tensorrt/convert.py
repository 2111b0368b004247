"""Brings a model to another precision: float16 by ONNX Runtime's converter, bfloat16 from it, biases to float32.

Nothing here decides; `precision` does.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np
import onnx
import onnx.inliner
import onnx.version_converter
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dilrewrite._compat import warnings_ignored
from dilrewrite.errors import FailedError, MissingError, one_line
from dilrewrite.model.light import graph_shapes
from dilrewrite.model.walk import (
    DEFAULT_DOMAINS,
    all_nodes,
    copied,
    graphs,
    graphs_in,
    permute,
    sorted_places,
    subgraphs,
)

BF16_OPSET = 22
"""The first opset whose Conv and ConvTranspose take bfloat16."""


LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)

_CONVERTER_FAILURES = (
    RuntimeError,
    ValueError,
    onnx.version_converter.ConvertError,
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
)


# -- reading a model -------------------------------------------------------------------------------------------------


def inferred(proto: ModelProto) -> dict[str, tuple[int, int]]:
    """Return element type and rank (-1: unknown) of tensors by name, of all graphs, as far as shape inference tells."""
    # Where inference fails, what the file itself declares is all there is to know.
    with contextlib.suppress(onnx.shape_inference.InferenceError, ValueError, RuntimeError):
        proto = onnx.shape_inference.infer_shapes(proto)
    shapes = [item for graph in graphs(proto.graph) for item in graph_shapes(graph).items()]
    return {name: (element, -1 if shape is None else len(shape)) for name, (element, shape) in shapes}


def constants(proto: ModelProto) -> dict[str, TensorProto]:
    """Return the constant tensors by name: initializers, and values of Constant nodes."""
    found = {tensor.name: tensor for graph in graphs(proto.graph) for tensor in graph.initializer}
    for node in all_nodes(proto):
        if node.op_type == "Constant" and node.output:
            found.update((node.output[0], a.t) for a in node.attribute if a.name == "value")
    return found


def _plain(proto: ModelProto) -> ModelProto:
    """Return a copy in which names suffice: no functions, and nodes and values named once in the whole model.

    The branches of an If may share names. The numbers of Constant nodes become tensors, which the converter knows, and
    initializers are told by themselves alone: the converter would declare those that stay in float32 as float16.
    """
    made = copied(proto)
    if made.functions:
        made = onnx.inliner.inline_local_functions(made)
    _name_nodes(made)
    _name_values(made.graph, {}, set())
    for node in all_nodes(made):
        for attribute in node.attribute if node.op_type == "Constant" and node.domain in DEFAULT_DOMAINS else ():
            if attribute.name in ("value_float", "value_floats"):
                number = np.array(helper.get_attribute_value(attribute), np.float32)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(number)))
    return made


def _name_values(graph: GraphProto, outside: Mapping[str, str], taken: set[str]) -> None:
    """Give every value of a graph, and of those in it, a name of its own; `outside`: the names seen from there.

    What is said of initializers elsewhere is left out.
    """
    declared = [entry.name for entry in (*graph.input, *graph.initializer)]
    declared += [name for node in graph.node for name in node.output if name]
    names = {**outside, **{name: _fresh(name, taken) for name in dict.fromkeys(declared)}}
    own = {tensor.name for tensor in graph.initializer}
    for value in [value for value in graph.value_info if value.name in own]:
        graph.value_info.remove(value)
    for entry in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        entry.name = names.get(entry.name, entry.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for _, _, below in subgraphs(node):
            _name_values(below, names, taken)


# -- int32 biases ----------------------------------------------------------------------------------------------------


def fold_biases(proto: ModelProto) -> tuple[ModelProto, int]:
    """Return a model whose int32 constants behind DequantizeLinear are float32 constants, and how many they are.

    The product is the same float32 product that the runtime would form, bit for bit.
    """
    plain = _plain(proto)
    values, count = constants(plain), 0
    for graph in graphs(plain.graph):
        for node in list(graph.node):
            if node.op_type == "DequantizeLinear" and node.domain in DEFAULT_DOMAINS:
                product = _dequantised(node, values)
                if product is not None:
                    graph.node.remove(node)
                    graph.initializer.append(numpy_helper.from_array(product, node.output[0]))
                    count += 1
    return (plain, count) if count else (proto, 0)


def _dequantised(node: NodeProto, values: Mapping[str, TensorProto]) -> NDArray[np.float32] | None:
    """Return what a DequantizeLinear makes of int32 constants; None for any other."""
    stored, scale, zero = (values.get(name) for name in [*node.input, ""][:3])
    if stored is None or scale is None or stored.data_type != TensorProto.INT32:
        return None
    if scale.data_type != TensorProto.FLOAT or len(scale.dims) > 1:  # another result type, or blocks
        return None
    if zero is not None and np.any(numpy_helper.to_array(zero)):
        return None
    codes, factors = numpy_helper.to_array(stored), numpy_helper.to_array(scale)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    axis = min(axis + codes.ndim if axis < 0 else axis, codes.ndim - 1)
    shape = [-1 if place == axis else 1 for place in range(codes.ndim)] if factors.size > 1 else ()
    return np.ascontiguousarray(codes.astype(np.float32) * factors.reshape(shape), np.float32)


# -- float16 ---------------------------------------------------------------------------------------------------------


BF16_STAYS = ("ConvTranspose", "GRU", "LSTM", "RNN")
"""What TensorRT for RTX 1.7 builds in float16 and not in bfloat16: there it stays in float32, between Casts."""


def to_float16(proto: ModelProto, stays: Collection[str] = ()) -> ModelProto:
    """Return a float32 model converted to float16 by ONNX Runtime's converter; inputs and outputs stay float32.

    `stays`: operators that are left in float32 besides those on the converter's own block list. It leaves nodes without
    names and out of order: both are mended here. Raises MissingError without ONNX Runtime, FailedError where it fails.
    """
    try:
        from onnxruntime.transformers import float16
    except ImportError as error:
        why = f"converting to float16 needs ONNX Runtime: {error}"
        raise MissingError(why, hint="pip install 'dilrewrite[cpu]'") from error
    source = _plain(proto)
    try:
        # It warns of values that float16 rounds to 0: the result is verified as a whole.
        with warnings_ignored(), contextlib.redirect_stdout(io.StringIO()):
            blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *stays]
            made: ModelProto = float16.convert_float_to_float16(source, keep_io_types=True, op_block_list=blocked)
    except Exception as error:
        raise FailedError(
            f"ONNX Runtime's converter to float16 fails: {type(error).__name__}: {error}",
            hint="convert the model with another tool, and build from that",
        ) from error
    _mend_casts(made)
    _name_nodes(made)
    for graph in graphs(made.graph):
        permute(graph.node, sorted_places(graph.node))
    return made


def _name_nodes(proto: ModelProto) -> None:
    """Give every node a name of its own."""
    taken = {node.name for node in all_nodes(proto)}
    seen = {""}
    for number, node in enumerate(all_nodes(proto)):
        if node.name in seen:
            node.name = _fresh(node.name or f"{node.op_type}_{number}", taken)
        seen.add(node.name)


def _mend_casts(proto: ModelProto) -> None:
    """Bring the Casts that the converter puts into the main graph to the graph in which their input is made, once."""
    main = proto.graph
    casts: dict[str, NodeProto] = {}
    for node in [node for node in main.node if node.op_type == "Cast"]:
        if casts.setdefault(node.output[0], node) is not node:  # the same Cast for a second reader
            main.node.remove(node)
    homes: dict[str, GraphProto] = {}
    for graph in graphs_in(main.node):
        homes |= {name: graph for node in graph.node for name in node.output}
        homes |= {entry.name: graph for entry in (*graph.input, *graph.initializer)}
    for node in casts.values():
        source = node.input[0]
        while source in casts:  # from one operator that stays in float32 to the next
            source = casts[source].input[0]
        if source in homes:
            homes[source].node.append(copied(node))
            main.node.remove(node)


# -- bfloat16 --------------------------------------------------------------------------------------------------------


def to_bfloat16(original: ModelProto, half: ModelProto) -> ModelProto:
    """Return `half`, which `to_float16` made of `original`, with every float16 of its making replaced by bfloat16.

    Weights are rounded once, from the float32 of `original`. The opset is raised to one whose Conv takes bfloat16.
    """
    made, source = copied(half), _plain(original)
    named = {tensor.name: tensor for graph in graphs(source.graph) for tensor in graph.initializer}
    twins = {node.name: node for node in all_nodes(source)}
    for graph in graphs(made.graph):
        for tensor in graph.initializer:
            _to_bfloat16(tensor, named.get(tensor.name))
        for node in graph.node:
            exact = {a.name: a.t for a in twins[node.name].attribute} if node.name in twins else {}
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    _to_bfloat16(attribute.t, exact.get(attribute.name))
        _retype(graph, (TensorProto.FLOAT16,), TensorProto.BFLOAT16)
    return _raise_opset(made)


def _to_bfloat16(tensor: TensorProto, source: TensorProto | None) -> None:
    if tensor.data_type == TensorProto.FLOAT16:
        given = source if source is not None and source.data_type == TensorProto.FLOAT else tensor
        rounded = numpy_helper.to_array(given).astype(np.float32).astype(ml_dtypes.bfloat16)
        tensor.data_type = TensorProto.BFLOAT16
        tensor.ClearField("int32_data")
        tensor.raw_data = rounded.tobytes()


def _retype(graph: GraphProto, old: Collection[int], new: int) -> None:
    """Have a graph declare, and its nodes make, values of one element type in place of others."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for tensor in (value.type.tensor_type, value.type.sequence_type.elem_type.tensor_type):
            if tensor.elem_type in old:
                tensor.elem_type = new
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in old:
                attribute.i = new


def _raise_opset(proto: ModelProto) -> ModelProto:
    """Return the model at an opset whose Conv takes bfloat16, where ONNX's own converter gets there."""
    version = max((entry.version for entry in proto.opset_import if entry.domain in DEFAULT_DOMAINS), default=0)
    if version >= BF16_OPSET:
        return _mend_resizes(proto, version)
    for graph in graphs(proto.graph):
        del graph.value_info[:]  # the float16 converter's are not all right, and the next one insists on them
    try:
        with warnings_ignored():
            raised: ModelProto = onnx.version_converter.convert_version(proto, BF16_OPSET)
    except _CONVERTER_FAILURES as error:
        why = f"bfloat16 needs opset {BF16_OPSET}, and ONNX's version converter fails on the model: "
        hint = f"export the model with opset {BF16_OPSET} or later"
        raise FailedError(why + one_line(error)[:200], hint=hint) from error
    raised.ir_version = max(raised.ir_version, 10)  # the one that came with opset 22
    _name_nodes(raised)
    return _mend_resizes(raised, version)


def _mend_resizes(proto: ModelProto, opset: int) -> ModelProto:
    """Leave out what a Resize does not use: a roi it may not have in bfloat16, and scales beside sizes (opset 11).

    Before `opset` 11, which brought the modes, every Resize and Upsample was what ONNX's converter does not say.
    """
    for node in all_nodes(proto):
        if node.op_type != "Resize":
            continue
        if opset < 11:
            old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            node.attribute.extend(helper.make_attribute(name, mode) for name, mode in old.items())
        mode = next((a.s for a in node.attribute if a.name == "coordinate_transformation_mode"), b"half_pixel")
        if len(node.input) > 1 and mode != b"tf_crop_and_resize":
            node.input[1] = ""
        if len(node.input) > 3 and node.input[3]:
            node.input[2] = ""
    return proto


def twin(proto: ModelProto) -> ModelProto:
    """Return a float32 model that computes what one in float16 or bfloat16 does, each result rounded to that type.

    ONNX Runtime has no bfloat16 Conv on the CPU, and float16 it neither rounds nor lets overflow between operators
    that it computes in float32, with optimisations or without. Sums inside an operator are float32 here, as they are on
    a GPU.
    """
    made = copied(proto)
    kinds = {name: kind for name, (kind, _) in inferred(proto).items()}
    taken = set(kinds) | {name for node in all_nodes(proto) for name in (*node.input, *node.output)}
    for graph in graphs(made.graph):
        held = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
        for tensor in (*graph.initializer, *held):
            if tensor.data_type in LOW:
                values = numpy_helper.to_array(tensor).astype(np.float32)
                tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
        _retype(graph, LOW, TensorProto.FLOAT)
        for node in list(graph.node):
            for place, name in enumerate(node.output):
                if kinds.get(name) in LOW and node.op_type not in ("Constant", "Loop", "If", "Scan"):
                    exact, low = _fresh(f"{name}_exact", taken), _fresh(f"{name}_low", taken)
                    node.output[place] = exact
                    graph.node.append(helper.make_node("Cast", [exact], [low], name=low, to=kinds[name]))
                    graph.node.append(helper.make_node("Cast", [low], [name], name=f"{low}_up", to=TensorProto.FLOAT))
        permute(graph.node, sorted_places(graph.node))
    return made


def _fresh(name: str, taken: set[str]) -> str:
    made, number = name, 0
    while made in taken:
        number += 1
        made = f"{name}_{number}"
    taken.add(made)
    return made
