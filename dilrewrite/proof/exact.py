"""Runs a sub-model in exact arithmetic: the ground truth of a proof, apart from the runtimes and from the forms.

Whole numbers below 2**53 come out exact in float64; of reals it is the yardstick of rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper
from onnx.reference.op_run import OpRun

from dilrewrite.model.convolve import Array
from dilrewrite.model.elements import FLOATS
from dilrewrite.model.evaluate import OPERATORS, Conv, Evaluator


def exact(
    model: ModelProto,
    feeds: Mapping[str, Array],
    precise: type[np.floating[Any]] = np.float64,
    *,
    magnitudes: bool = False,
) -> Array:
    """Return the output of a sub-model of one output: integers as they are, anything else in `precise`.

    NumPy's long double is finer than float64 where the machine has it, and slow. `magnitudes`: of Conv(|x|, |w|) + |b|
    in place of each Conv, which is how large the sums are that are rounded.
    """
    own = {
        "Conv": _Magnitudes if magnitudes else Conv,
        "DequantizeLinear": _DequantizeLinear,
        "QuantizeLinear": _QuantizeLinear,
    }
    operators = [type(name, (op,), {"accumulate": precise}) for name, op in own.items()]
    evaluator = Evaluator(model, new_ops=[*operators, *(op for op in OPERATORS if op.__name__ not in own)])
    held = {name for node in model.graph.node if node.op_type in own for name in node.input}  # weights stay narrow
    constants = evaluator.rt_inits_
    constants |= {name: _wide(values, precise) for name, values in constants.items() if name not in held}
    (result,) = evaluator.run(None, {name: _wide(values, precise) for name, values in feeds.items()})
    return cast("Array", result)


def _wide(values: Array, precise: type[np.floating[Any]]) -> Array:
    return values.astype(precise) if values.dtype.name in FLOATS else values


class _Magnitudes(Conv):
    def _run(self, x: Array, w: Array, b: Array | None = None, **attributes: Any) -> tuple[Array]:
        return super()._run(np.abs(x), np.abs(w), None if b is None else np.abs(b), **attributes)


class _Exact(OpRun):
    op_domain = ""
    accumulate: type[np.floating[Any]]

    def along(self, values: Array, x: Array, attributes: Mapping[str, Any]) -> NDArray[np.floating[Any]]:
        """Return scales or zero points so that they stand along their axis of x."""
        if attributes.get("block_size"):
            raise NotImplementedError(f"{self.onnx_node.op_type} in blocks")
        axis = attributes.get("axis", 1) % max(1, x.ndim)
        return values.astype(self.accumulate).reshape(
            [-1 if at == axis else 1 for at in range(x.ndim)] if values.size > 1 else ()
        )


class _DequantizeLinear(_Exact):
    """(x - zero) * scale."""

    def _run(self, x: Array, scale: Array, zero: Array | None = None, **attributes: Any) -> tuple[Array]:
        y = x.astype(self.accumulate)
        if zero is not None:
            y -= self.along(zero, x, attributes)
        return (y * self.along(scale, x, attributes),)


class _QuantizeLinear(_Exact):
    """x / scale, rounded to the nearest, ties to even, + zero, within the range of the type."""

    def _run(self, x: Array, scale: Array, zero: Array | None = None, **attributes: Any) -> tuple[Array]:
        number = attributes.get("output_dtype")
        kind = helper.tensor_dtype_to_np_dtype(number) if number else np.dtype(np.uint8)
        kind = kind if zero is None else zero.dtype
        y = np.rint(x / self.along(scale, x, attributes))
        if zero is not None:
            y += self.along(zero, x, attributes)
        info = np.iinfo(kind)
        return (np.clip(y, info.min, info.max).astype(kind),)
