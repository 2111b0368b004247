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
    DropKernelAxes,
    RepeatOutputs,
    SpreadTaps,
    SwapKernelAxes,
    TakeOutputs,
    TakeTaps,
    TapsToInputs,
    Turn,
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
        edits = self._core.weight if edits is None else edits
        if self._part.turn is not None:
            edits = (self._part.turn, *edits)
        return self._edited(self._part.weight, self._part.weight_quantization, edits, self._word)

    def bias(self) -> str:
        """Return the bias, repeated."""
        operand, times = self._part.bias, self._core.bias_times
        if operand is None or not times:
            return ""
        taken = [edit for edit in self._core.weight if isinstance(edit, TakeOutputs)]
        return self._edited(operand, self._part.bias_quantization, [*taken, *_repeats(times)], "bias")

    def repeated(self, operand: Operand, times: int, word: str) -> str:
        """Return a constant with one value per output channel, repeated."""
        return self._edited(operand, None, _repeats(times), word)

    def in_floats(self) -> list[str]:
        """Return weights and bias of an operator on integers in float32, the weights less their zero points."""
        part, core = self._part, self._core
        names = [self._float(part.weight, part.weight_zero, core.weight, self._word)]
        if part.bias is not None and core.bias_times:
            names.append(self._float(part.bias, None, _repeats(core.bias_times), "bias"))
        return names

    def _float(self, operand: Operand, zero: Operand | None, edits: Sequence[WeightEdit], word: str) -> str:
        def values() -> tuple[NDArray[np.generic], int]:
            whole = self._whole(operand)
            if zero is not None:
                whole = whole - self._whole(zero).reshape(-1, *(1,) * (whole.ndim - 1))
            array: NDArray[np.generic] = whole.astype(np.float32)
            for edit in edits:
                array = edit.apply(array, np.zeros((), np.float32))
            return array, TensorProto.FLOAT

        return self._writer.shared_constant(("float", zero and zero.name, *edits), operand, word, values)

    def _whole(self, operand: Operand) -> NDArray[np.int64]:
        editor = self._writer.editor
        return editor.read(editor.tensor(operand)).astype(np.int64)

    def _edited(
        self, operand: Operand, quantization: Dequantized | None, edits: Sequence[WeightEdit], word: str
    ) -> str:
        """Return the name of an operand after the edits, behind a DequantizeLinear if it stands behind one."""
        given = quantization.output if quantization else operand.name
        if not edits:
            return given
        if not operand.is_constant:
            unknown = (None, None, *self._part.geometry.kernel) if operand is self._part.weight else (None,)
            return self._lowered(given, unknown if operand.shape is None else operand.shape, edits, word)
        zero, axis = (quantization.zero_point, quantization.axis) if quantization else (None, None)
        if operand is self._part.weight and self._part.weight_zero is not None:
            zero = self._part.weight_zero
            axis = 0 if math.prod(zero.shape or ()) > 1 else None
        key = *edits, zero and zero.name, axis
        fresh = self._writer.shared_constant(key, operand, word, lambda: self._values(operand, zero, axis, edits))
        if quantization is None:
            return fresh
        turn = next((edit for edit in edits if isinstance(edit, Turn)), None)
        times = math.prod(edit.times for edit in edits if isinstance(edit, RepeatOutputs)) if axis is not None else 1
        if turn is not None and axis is not None:
            times *= turn.group
        inputs = [fresh, self.repeated(quantization.scale, times, f"{word}_scale")]
        if zero is not None:
            inputs.append(self.repeated(zero, times, f"{word}_zero_point"))
        original = self._writer.original(quantization.index)
        output = self._writer.name(f"{word}_dequantized")
        made = self._writer.like(original, inputs, [output])
        if turn is not None and axis is not None:  # output channels come first now
            next(attribute for attribute in made.attribute if attribute.name == "axis").i = 0
        return output

    def _values(
        self, operand: Operand, zero_point: Operand | None, axis: int | None, edits: Sequence[WeightEdit]
    ) -> tuple[NDArray[np.generic], int]:
        """Return the values of an operand after the edits, and their element type."""
        editor = self._writer.editor
        tensor = editor.tensor(operand)
        values = editor.read(tensor)
        zero: NDArray[np.generic] = np.zeros((), values.dtype)
        if zero_point is not None:
            zero = editor.read(editor.tensor(zero_point))
            zero = zero.reshape(()) if axis is None else zero.reshape(-1, *(1,) * (values.ndim - 1))
        for edit in edits:
            if zero.ndim > 0 and not isinstance(edit, Turn):
                zero = np.concatenate([zero] * (len(values) // len(zero)))
            values = edit.apply(values, zero)
        return values, tensor.data_type

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


def _repeats(times: int) -> list[WeightEdit]:
    return [RepeatOutputs(times)] if times > 1 else []


def _turned(builder: Builder, tensor: Tensor, group: int) -> Tensor:
    """Emit `Turn`: [C, O // group, *k] -> [O, C // group, *k] in each group, and all taps in reversed order."""
    axes = range(2, len(tensor.shape))
    if group == 1:
        tensor = builder.transpose(tensor, [1, 0, *axes])
    else:
        ins, outs, kernel = builder.extent(tensor, 0) // group, builder.extent(tensor, 1), tensor.shape[2:]
        sizes = [extent for extent in kernel if isinstance(extent, int)]
        apart = builder.reshape(tensor, [group, ins, outs, *sizes])
        exchanged = builder.transpose(apart, [0, 2, 1, *(axis + 1 for axis in axes)])
        tensor = builder.reshape(exchanged, [outs * group, ins, *sizes])
    for axis in axes:
        tensor = builder.reverse(tensor, axis)
    return tensor


def _lower(builder: Builder, tensor: Tensor, edit: WeightEdit) -> Tensor:
    """Emit a weight edit as graph operators, for weights that are known at run time only."""
    rank = len(tensor.shape) - 2
    kernel = [extent for extent in tensor.shape[2:] if isinstance(extent, int)]
    if isinstance(edit, TakeTaps):
        return builder.slice(tensor, {edit.axis + 2: Cut(edit.start, edit.stop, edit.step)})
    if isinstance(edit, Turn):
        return _turned(builder, tensor, edit.group)
    if isinstance(edit, RepeatOutputs):
        return builder.concat([tensor] * edit.times, 0)
    if isinstance(edit, AddKernelAxis):
        return builder.reshape(tensor, [0, 0, *kernel[: edit.axis], 1, *kernel[edit.axis :]])
    if isinstance(edit, SwapKernelAxes):
        places = {edit.first: edit.second, edit.second: edit.first}
        return builder.transpose(tensor, [0, 1, *(places.get(axis, axis) + 2 for axis in range(rank))])
    if isinstance(edit, DropKernelAxes):
        return builder.reshape(tensor, [0, 0, *(k for axis, k in enumerate(kernel) if axis not in edit.axes)])
    if isinstance(edit, TapsToInputs):
        turned = builder.transpose(tensor, [0, *range(2, rank + 2), 1])
        return builder.reshape(turned, [0, INFER, *(1,) * rank])
    if isinstance(edit, SpreadTaps):
        for axis, d in enumerate(edit.dilations):
            k = kernel[axis]
            if d == 1 or k == 1:
                continue
            apart = builder.reshape(tensor, [0, 0, *kernel[: axis + 1], 1, *kernel[axis + 1 :]])
            padded = builder.pad(apart, {axis + 3: (0, d - 1)})
            kernel[axis] = k * d
            joined = builder.reshape(padded, [0, 0, *kernel])
            kernel[axis] = d * (k - 1) + 1
            tensor = builder.slice(joined, {axis + 2: Cut(0, kernel[axis])})
        return tensor
    raise TypeError(f"no graph form of {edit!r}")
