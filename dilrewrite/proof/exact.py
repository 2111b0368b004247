"""Runs a sub-model in exact arithmetic: the ground truth of a proof, apart from the runtimes and from the forms.

Whole numbers below 2**53 come out exact in float64; of reals it is the yardstick of rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from onnx import ModelProto

from dilrewrite.model.convolve import Array
from dilrewrite.model.elements import FLOATS
from dilrewrite.model.evaluate import OPERATORS, Evaluator
from dilrewrite.sites.operators import operators


def exact(
    model: ModelProto,
    feeds: Mapping[str, Array],
    precise: type[np.floating[Any]] = np.float64,
    *,
    magnitudes: bool = False,
) -> Array:
    """Return the output of a sub-model of one output, as `exactly` does."""
    (result,) = exactly(model, feeds, precise, magnitudes=magnitudes)
    return result


def exactly(
    model: ModelProto,
    feeds: Mapping[str, Array],
    precise: type[np.floating[Any]] = np.float64,
    *,
    magnitudes: bool = False,
) -> list[Array]:
    """Return the outputs of a sub-model: integers as they are, anything else in `precise`.

    NumPy's long double is finer than float64 where the machine has it, and slow. `magnitudes`: of Conv(|x|, |w|) + |b|
    in place of each Conv, which is how large the sums are that are rounded; the same of every operator of a site.
    """
    summing = {operator.op for operator in operators().values()}
    before = (_Magnitudes,) if magnitudes else ()
    own = {op: type(op.__name__, (*before, op), {"accumulate": precise}) for op in OPERATORS if op.__name__ in summing}
    evaluator = Evaluator(model, new_ops=[own.get(op, op) for op in OPERATORS])
    # weights stay narrow, and so do scales: whole numbers times powers of two are exact
    narrow = {*summing, "DequantizeLinear", "QuantizeLinear"}
    held = {name for node in model.graph.node if node.op_type in narrow for name in node.input}
    constants = evaluator.rt_inits_
    constants |= {name: _wide(values, precise) for name, values in constants.items() if name not in held}
    results = evaluator.run(None, {name: _wide(values, precise) for name, values in feeds.items()})
    return cast("list[Array]", results)


def _wide(values: Array, precise: type[np.floating[Any]]) -> Array:
    return values.astype(precise) if values.dtype.name in FLOATS else values


class _Magnitudes:
    """Before an operator's class: it takes the magnitudes of what it reads."""

    def _run(self, *given: Array | None, **attributes: Any) -> tuple[Array]:
        inputs = (None if each is None else np.abs(each) for each in given)
        return cast("tuple[Array]", super()._run(*inputs, **attributes))  # type: ignore[misc]
