"""Writes a Conv on integers in float32: DequantizeLinear, Conv, and what makes integers of its sums."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from dilrewrite.forms.fragment import CoreConv, RepeatOutputs
from dilrewrite.sites import Operand, Part
from dilrewrite.sites.operators.conv import written
from dilrewrite.sites.operators.qlinear_conv import SCALED
from dilrewrite.splice.operands import StepOperands
from dilrewrite.splice.writer import Writer

DATA_SCALE, _, WEIGHT_SCALE, _, SCALE, ZERO = SCALED


def refusal(part: Part) -> str | None:
    """Return why an operator on integers cannot be written in floats with a bound for the error; `None`: it can."""
    needed = [operand for operand in (part.bias, *part.others.values()) if operand not in (None, part.fill)]
    computed = [operand.name for operand in needed if operand is not None and not operand.is_constant]
    if computed:
        names = ", ".join(map(repr, computed))
        return f"{names}: computed, or a caller may replace it, so the error of a Conv in float32 has no bound"
    return None


def steps(part: Part, read: Callable[[Operand], NDArray[np.generic]]) -> NDArray[np.float64]:
    """Return what one quantum of the output is in sums, one number or one for each channel: s_y / (s_x s_w)."""
    y, x, w = (read(part.others[place]).astype(np.float64).reshape(-1) for place in (SCALE, DATA_SCALE, WEIGHT_SCALE))
    with np.errstate(divide="ignore", invalid="ignore"):  # where scales stand for others they are 0
        return np.asarray(y / (x * w))


def rounds(part: Part) -> bool:
    """Say whether the operator rounds its sums to a quantum: QLinearConv does, ConvInteger gives the sums."""
    return part.geometry.element != "int32"


def write(
    writer: Writer, part: Part, core: CoreConv, operands: StepOperands, zero: str, output: str, name: str
) -> NodeProto:
    """Append a step of a fragment in floats; return its Conv. `zero`: the zero point of the data, a scalar; "" for 0.

    The data are dequantised with the scale 1, and the weights are integers in float32, so sums up to 2**24 are exact.
    Those of QLinearConv are divided by `steps` before they are rounded. By Div: as weights of a Conv right in front of
    a QuantizeLinear, ONNX Runtime would round the numbers of the weights to 8 bits again.
    """
    one = writer.shared_constant(("one",), part.weight, "one", lambda: (np.ones((), np.float32), TensorProto.FLOAT))
    reals, sums = writer.name("reals"), writer.name("sums")
    writer.node("DequantizeLinear", [operands.source(), one, *filter(None, [zero])], [reals], {})
    conv = writer.node("Conv", [reals, *operands.in_floats()], [sums], written(core), name=name)
    if not rounds(part):
        writer.node("Cast", [sums], [output], {"to": int(TensorProto.INT32)})
        return conv
    quotient, editor = writer.name("quotient"), writer.editor

    def read(operand: Operand) -> NDArray[np.generic]:
        return editor.read(editor.tensor(operand))

    times = math.prod(edit.times for edit in core.weight if isinstance(edit, RepeatOutputs))

    def divisors() -> tuple[NDArray[np.generic], int]:
        each = steps(part, read).astype(np.float32)
        shape = (-1, *(1,) * len(core.kernel)) if each.size > 1 else ()
        return np.concatenate([each] * (times if each.size > 1 else 1)).reshape(shape), TensorProto.FLOAT

    def zero_point() -> tuple[NDArray[np.generic], int]:
        tensor = editor.tensor(part.others[ZERO])
        return editor.read(tensor).reshape(()), tensor.data_type

    names = [part.others[place].name for place in (DATA_SCALE, SCALE)]
    divisor = writer.shared_constant(
        ("steps", *names, times, len(core.kernel)), part.others[WEIGHT_SCALE], "steps", divisors
    )
    behind = writer.shared_constant(("scalar",), part.others[ZERO], "out_zero_point", zero_point)
    writer.node("Div", [sums, divisor], [quotient], {})
    writer.node("QuantizeLinear", [quotient, one, behind], [output], {})
    return conv
