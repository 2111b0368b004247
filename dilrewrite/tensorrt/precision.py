"""What TensorRT shall compute in: the model's own types, or those it is converted to. Refuses what it cannot take.

Engines are built strongly typed, so the ONNX model alone says what is computed in which type. float16 comes from ONNX
Runtime's converter; bfloat16 is what it makes with every float16 replaced, the weights rounded once from float32.
Nothing is converted in silence: what a model holds already is taken as it is, or refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from dilrewrite.errors import UsageError
from dilrewrite.model.walk import DEFAULT_DOMAINS, all_nodes
from dilrewrite.options import PRECISIONS
from dilrewrite.sites.known import CONVOLVES, SAVED, saved_by_runtime
from dilrewrite.tensorrt.convert import BF16_STAYS, constants, fold_biases, inferred, to_bfloat16, to_float16

MAX_RANK = 8
"""TensorRT's largest number of dimensions (`Dims::MAX_DIMS`)."""

DATATYPES = {
    "fp32": ("Float",),
    "tf32": ("Float",),
    "fp16": ("Half",),
    "bf16": ("BFloat16", "Bfloat16", "BF16"),
    "int8-qdq": ("Int8",),
}
"""What convolution layers read in an engine of each precision, in TensorRT's words."""

OWN = "own"
"""The precision of a runtime that computes in the model's own types."""

ROUNDS_TO = {"fp32": "float32", "tf32": "float16", "fp16": "float16", "bf16": "bfloat16", "int8-qdq": "bfloat16"}
"""The element type whose tolerance an engine's outputs are held to: TF32 has a fraction of 10 bits, as float16 has."""

_QDQ = (
    "quantise it to QDQ first: onnxruntime.quantization.quantize_static with quant_format=QDQ, activation_type and "
    "weight_type QInt8, and extra_options ActivationSymmetric and WeightSymmetric"
)

_NEVER_QUANTISED = (TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.UINT4)
"""Types of zero points that TensorRT does not take; int32 is that of biases, which are dequantised before."""

_INTEGER_OPERATORS = (
    "QLinearConv",
    "ConvInteger",
    "QLinearMatMul",
    "MatMulInteger",
    "QLinearAdd",
    "QLinearMul",
    "QLinearConcat",
    "QGemm",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A model as TensorRT gets it: `precision` that it is in, whether it was `converted` for that, and `changes`."""

    proto: ModelProto
    precision: str
    converted: bool = False
    changes: tuple[str, ...] = ()


def held(proto: ModelProto) -> str:
    """Return the precision that a model is in: `int8-qdq`, `fp16`, `bf16`, or `fp32` (also where no Conv tells)."""
    nodes = list(all_nodes(proto))
    if any(node.op_type == "QuantizeLinear" and node.domain in DEFAULT_DOMAINS for node in nodes):
        return "int8-qdq"
    types = _weight_types(proto)
    lower = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
    return next((name for name, kind in lower.items() if types[kind] > types[TensorProto.FLOAT]), "fp32")


def _weight_types(proto: ModelProto) -> Counter[int]:
    """Count the element types of the weights of convolutions; of all initializers where there are none."""
    stored = {name: tensor.data_type for name, tensor in constants(proto).items()}
    kinds = {name: kind for name, (kind, _) in inferred(proto).items() if kind} | stored
    convolutions = [node for node in all_nodes(proto) if node.op_type in CONVOLVES and len(node.input) > 1]
    of_weights = Counter(kinds.get(node.input[1]) or kinds.get(node.output[0], 0) for node in convolutions)
    return of_weights or Counter(stored.values())


def needs_values(proto: ModelProto, precision: str | None) -> bool:
    """Say whether weights are converted: those of a quantised model, and all for a lower precision."""
    return precision in ("fp16", "bf16") or any(node.op_type == "DequantizeLinear" for node in all_nodes(proto))


# -- what TensorRT cannot take ---------------------------------------------------------------------------------------


def refuse(proto: ModelProto, where: str) -> None:
    """Raise `UsageError`, naming the model as `where`, for what no flavour computes as ONNX defines it."""
    nodes = list(all_nodes(proto))
    saved = saved_by_runtime(proto)
    if saved:
        raise UsageError(f"{where}: {SAVED} ({saved})", hint="start from the exported model")
    for what, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in (None, "tensor_type"):
                raise UsageError(
                    f"{where}: {what} {value.name!r} is of type {str(kind).removesuffix('_type')}: an engine takes and "
                    "gives tensors only",
                    hint="export the model with tensors in its place",
                )
    integer = Counter(node.op_type for node in nodes if node.op_type in _INTEGER_OPERATORS)
    if integer:
        counted = ", ".join(f"{count} {name}" for name, count in sorted(integer.items()))
        raise UsageError(f"{where}: {counted}: TensorRT has no such operators", hint=_QDQ)
    known, values = inferred(proto), constants(proto)
    double = [name for name, (kind, _) in known.items() if kind == TensorProto.DOUBLE and name not in values]
    if double:
        raise UsageError(
            f"{where}: {len(double)} float64 tensors, {double[0]!r} for one: TensorRT would compute them in float32",
            hint="export the model in float32",
        )
    for name, (_, rank) in known.items():
        if rank > MAX_RANK:
            raise UsageError(
                f"{where}: {name!r} has {rank} dimensions: TensorRT takes at most {MAX_RANK}",
                hint="reshape in steps of fewer dimensions",
            )
    quantising = [node for node in nodes if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    _refuse_zero_points([values[n.input[2]] for n in quantising if len(n.input) > 2 and n.input[2] in values], where)


def _refuse_zero_points(zeros: Sequence[TensorProto], where: str) -> None:
    kinds = Counter(zero.data_type for zero in zeros if zero.data_type in _NEVER_QUANTISED)
    others = {TensorProto.DataType.Name(kind).lower(): count for kind, count in kinds.items()}
    shifted = sum(zero.data_type == TensorProto.INT8 and bool(np.any(numpy_helper.to_array(zero))) for zero in zeros)
    symmetric = f"TensorRT takes symmetric int8 only; {_QDQ}"
    if others:
        told = " and ".join(f"{count} Q/DQ nodes have a {kind} zero point" for kind, count in sorted(others.items()))
        raise UsageError(f"{where}: {told}", hint=symmetric)
    if shifted:
        raise UsageError(f"{where}: {shifted} Q/DQ nodes have a zero point other than 0", hint=symmetric)


def prepare(proto: ModelProto, precision: str | None, where: str) -> Prepared:
    """Return a model in `precision` (None: what it holds), its weights in memory where it is converted.

    Raises `UsageError` for what TensorRT cannot take and for a precision that the model cannot be brought to.
    """
    if precision is not None and precision not in PRECISIONS:
        raise UsageError(f"--precision {precision}: not one of {', '.join(PRECISIONS)}")
    refuse(proto, where)
    holds = held(proto)
    if holds == "int8-qdq":
        folded, count = fold_biases(proto)
        folds = (f"{count} int32 biases dequantised: TensorRT dequantises no int32",) if count else ()
        if precision not in (None, "int8-qdq"):
            raise UsageError(
                f"{where}: is quantised (QDQ), and --precision {precision} was asked for",
                hint="leave --precision out, or build from the model before quantisation",
            )
        return Prepared(proto=folded, precision="int8-qdq", changes=folds)
    if precision == "int8-qdq":
        raise UsageError(f"{where}: holds no QuantizeLinear, so it cannot be built as int8-qdq", hint=_QDQ)
    if holds in ("fp16", "bf16"):
        if precision not in (None, holds):
            raise UsageError(
                f"{where}: is in {holds} already, and --precision {precision} was asked for",
                hint="leave --precision out, or build from the float32 model",
            )
        return Prepared(proto=proto, precision=holds)
    if precision in ("fp16", "bf16"):
        made = to_float16(proto, BF16_STAYS if precision == "bf16" else ())
        if precision == "bf16":
            made = to_bfloat16(proto, made)
        left = Counter(n.op_type for n in all_nodes(made) if precision == "bf16" and n.op_type in BF16_STAYS)
        changes = tuple(f"{count} {name} stay in float32" for name, count in sorted(left.items()))
        return Prepared(proto=made, precision=precision, converted=True, changes=changes)
    return Prepared(proto=proto, precision=precision or "tf32")
