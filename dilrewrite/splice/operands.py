"""What a fragment's Convs read: data, edited weights, repeated biases and scales."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from dilrewrite.forms.builder import INFER, Builder, Cut, Tensor
from dilrewrite.forms.fragment import (
    AddKernelAxis,
    CoreConv,
    RepeatOutputs,
    SpreadTaps,
    TakeTaps,
    TapsToInputs,
    WeightEdit,
)
from dilrewrite.sites import Dequantized, Operand, Part
from dilrewrite.splice.writer import Writer


@dataclass(frozen=True, slots=True)
class StepOperands:
    """The operands of one Conv of a fragment (`sites.operators.Operands`); `word` starts the names of its weights."""

    _writer: Writer
    _part: Part
    _core: CoreConv
    _data: str
    _word: str

    def source(self) -> str:
        """Return the data."""
        return self._data

    def weight(self, edits: Sequence[WeightEdit] | None = None) -> str:
        """Return the edited weights; `edits`: those to make in place of the step's."""
        part, edits = self._part, self._core.weight if edits is None else edits
        operand, quantization = part.weight, part.weight_quantization
        given = quantization.output if quantization else operand.name
        if not edits:
            return given
        if not operand.is_constant:
            shape = operand.shape if operand.shape is not None else (None, None, *part.geometry.kernel)
            return self._lowered(given, shape, edits, self._word)
        zero_name = quantization.zero_point.name if quantization and quantization.zero_point else None
        axis = quantization.axis if quantization else None
        key = "edit", *edits, zero_name, axis
        fresh = self._writer.shared_constant(key, operand, self._word, lambda: self._edited(edits))
        if quantization is None:
            return fresh
        times = math.prod(edit.times for edit in edits if isinstance(edit, RepeatOutputs))
        return self._requantized(quantization, fresh, times, self._word)

    def _edited(self, edits: Sequence[WeightEdit]) -> tuple[NDArray[np.generic], int]:
        """Return the values of the weights after the edits, and their element type."""
        editor, quantization = self._writer.editor, self._part.weight_quantization
        tensor = editor.tensor(self._part.weight)
        values = editor.read(tensor)
        zero: NDArray[np.generic] = np.zeros((), values.dtype)
        if quantization is not None and quantization.zero_point is not None:
            zero = editor.read(editor.tensor(quantization.zero_point))
            zero = zero.reshape(-1, *(1,) * (values.ndim - 1)) if quantization.axis == 0 else zero.reshape(())
        for edit in edits:
            if zero.ndim > 0:
                zero = np.concatenate([zero] * (len(values) // len(zero)))
            values = edit.apply(values, zero)
        return values, tensor.data_type

    def bias(self) -> str:
        """Return the bias, repeated."""
        times, operand, quantization = self._core.bias_times, self._part.bias, self._part.bias_quantization
        if operand is None or times == 0:
            return ""
        given = quantization.output if quantization else operand.name
        if times == 1:
            return given
        if not operand.is_constant:
            return self._lowered(given, operand.shape or (None,), [RepeatOutputs(times)], "bias")
        values = self.repeated(operand, times, "bias")
        return values if quantization is None else self._requantized(quantization, values, times, "bias")

    def repeated(self, operand: Operand, times: int, word: str) -> str:
        """Return a constant with one value per output channel, repeated."""
        if times == 1:
            return operand.name

        def values() -> tuple[NDArray[np.generic], int]:
            tensor = self._writer.editor.tensor(operand)
            return np.concatenate([self._writer.editor.read(tensor)] * times), tensor.data_type

        return self._writer.shared_constant(("repeat", times), operand, word, values)

    def _requantized(self, quantization: Dequantized, values: str, times: int, word: str) -> str:
        """Return the name of `values` behind a DequantizeLinear like the given one, its scales repeated."""
        per_channel = times if quantization.axis == 0 else 1
        inputs = [values, self.repeated(quantization.scale, per_channel, f"{word}_scale")]
        if quantization.zero_point is not None:
            inputs.append(self.repeated(quantization.zero_point, per_channel, f"{word}_zero_point"))
        original = self._writer.original(quantization.index)
        return self._writer.like(original, inputs, self._writer.name(f"{word}_dequantized"))

    def _lowered(self, source: str, shape: tuple[int | None, ...], edits: Sequence[WeightEdit], prefix: str) -> str:
        """Return the name of computed weights after `edits`, made by graph operators."""
        writer = self._writer
        builder = Builder(self._part.geometry, writer.site.opset)
        tensor = Tensor(source, shape)
        for edit in edits:
            tensor = _lower(builder, tensor, edit)
        emitted = builder.finish(prefix, tensor)
        local = {source: source}
        for word, values in emitted.constants.items():
            local[word] = writer.constant(f"{prefix}/{word}", np.array(values, np.int64), TensorProto.INT64)
        for node in emitted.enter:
            writer.emit(node, local, prefix)
        return local[tensor.name]


def _lower(builder: Builder, tensor: Tensor, edit: WeightEdit) -> Tensor:
    """Emit a weight edit as graph operators, for weights that are known at run time only."""
    rank = len(tensor.shape) - 2
    kernel = [extent for extent in tensor.shape[2:] if isinstance(extent, int)]
    if isinstance(edit, TakeTaps):
        return builder.slice(tensor, {edit.axis + 2: Cut(edit.start, edit.stop)})
    if isinstance(edit, RepeatOutputs):
        return builder.concat([tensor] * edit.times, 0)
    if isinstance(edit, AddKernelAxis):
        return builder.reshape(tensor, [0, 0, *kernel[: edit.axis], 1, *kernel[edit.axis :]])
    if isinstance(edit, TapsToInputs):
        turned = builder.transpose(tensor, [0, *range(2, rank + 2), 1])
        return builder.reshape(turned, [0, INFER, *(1,) * rank])
    if isinstance(edit, SpreadTaps):
        for axis, d in enumerate(edit.dilations):
            k = kernel[axis]
            if d == 1 or k == 1:
                continue
            apart = builder.reshape(tensor, [0, 0, *kernel[: axis + 1], 1, *kernel[axis + 1 :]])
            ends = [0] * (rank + 3)
            ends[axis + 3] = d - 1
            padded = builder.pad(apart, [0] * (rank + 3), ends)
            kernel[axis] = k * d
            joined = builder.reshape(padded, [0, 0, *kernel])
            kernel[axis] = d * (k - 1) + 1
            tensor = builder.slice(joined, {axis + 2: Cut(0, kernel[axis])})
        return tensor
    raise TypeError(f"no graph form of {edit!r}")
