"""Whether a rewritten model computes what the original does on the runtime that it is timed on, whatever proofs say.

Proofs run on ONNX Runtime and in exact arithmetic; other runtimes do get rewritten models wrong without a word.
"""

from __future__ import annotations

from onnx import ModelProto

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import all_nodes
from dilrewrite.proof.compare import Tolerance, compare, tolerance_of
from dilrewrite.runtimes import Bench, CannotRun


class Differs(CannotRun):
    """The outputs on the timed runtime are not those of the original; the reason is one line."""


def allowed(proto: ModelProto, rounds_to: str, rtol: float | None, atol: float | None) -> Tolerance:
    """Return what outputs on a runtime that computes in `rounds_to` are held to: as for models, or as asked for."""
    asked = tolerance_of(proto, rtol, atol)
    if rtol is not None or atol is not None:
        return asked
    quantized = any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in all_nodes(proto))
    coarsest = FLOATS["bfloat16" if quantized else rounds_to].tolerance
    return max(asked, Tolerance(*coarsest, 0.0), key=lambda tolerance: tolerance.share)


def check(bench: Bench, original: str, other: str, tolerance: Tolerance) -> None:
    """Raise Differs when the floating-point outputs of two models on a bench differ by more than the tolerance.

    The last digit of a float may decide on an integer, so these are left to the proof of the whole model.
    """
    before, after = bench.outputs(original), bench.outputs(other)
    for name, values in before.items():
        if values.dtype.name in FLOATS:
            result = compare(name, values, after.get(name), tolerance)
            if not result.passed:
                raise Differs(f"output {name!r}: {result.note}")
