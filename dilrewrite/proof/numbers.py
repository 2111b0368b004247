"""Neutral numbers for a site's sub-model: of the model's types, and so small that every sum of them is exact."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.model.elements import FLOATS, NAMED, NUMBERED, dtype
from dilrewrite.model.walk import copied
from dilrewrite.proof.carve import Source, tensor
from dilrewrite.runtimes import Array
from dilrewrite.sites import Operand, Site

EXACT_LIMIT = 2**24
"""Whole numbers up to here are exact in float32, in whatever order they are added."""


def whole_numbers(rng: np.random.Generator, shape: tuple[int, ...], low: int, high: int) -> NDArray[np.int32]:
    """Return random whole numbers of [low, high], all different where there are enough of them."""
    size = product(shape)
    if 0 < size <= high - low + 1:
        return rng.permutation(np.arange(low, high + 1, dtype=np.int32))[:size].reshape(shape)
    return rng.integers(low, high + 1, size=shape, dtype=np.int32)


def exact_ranges(
    terms: int, *, weights: int, highest_weight: int = 2**20, highest_input: int = 2**20
) -> tuple[int, int]:
    """Return (largest |x|, largest |w|) so that `terms` products and a bias stay below 2**24.

    `weights` is the number of weights: their range is just wide enough to make them differ, the inputs get the rest.
    """
    budget = (EXACT_LIMIT - 2**12) // max(terms, 1)
    w = max(1, min(weights, highest_weight, math.isqrt(budget)))
    return max(1, min(budget // w, highest_input)), w


QUANTIZING = ("x_f", "w_f", "b_f", "quantized")
"""What nodes are called whose integers are made up; other constants that are no floats are settings, and stay."""


def is_setting(constant: TensorProto) -> bool:
    """Say whether a constant of a node, not of one that quantises, stays as it is."""
    return NUMBERED[constant.data_type].name not in FLOATS


def entering(site: Site) -> ConvGeometry:
    """Return the geometry whose input enters a site: its meaning, where that is a Conv, or its first operator's."""
    return site.geometry if isinstance(site.meaning, ConvGeometry | Sandwich) else site.part.geometry


def entering_shape(site: Site, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the tensor that enters, of the [N, C, *space] of its geometry."""
    return tuple(size or 0 for size in site.meaning.shape(shape)) if isinstance(site.meaning, Sandwich) else shape


def resized(site: Site, geometry: ConvGeometry) -> Site:
    """Return a site of one Conv with other sizes."""
    return replace(site, meaning=geometry, parts=(replace(site.part, geometry=geometry),))


@dataclass(kw_only=True)
class Numbers:
    """What the constants and inputs of one site's sub-model hold; called by `carve` for each.

    Whole numbers, or `reals` that `element`, the type to compute in, holds; scales are powers of two. Input shapes are
    declared as unknown as the site knows them. `given`: weights are an input whatever they are in the model. `feeds`:
    the values of weights and bias that are inputs, once the sub-model is cut. `number`: of the site's operator that
    `weights` (their shape as a Conv's; `stored`: as they lie) and `terms` are of; `additions`: of products and biases
    in all of them.
    """

    source: Source
    site: Site
    element: str
    rng: np.random.Generator
    reals: bool = False
    given: bool = False
    feeds: dict[str, Array] = field(default_factory=dict)
    number: int = 0

    def __post_init__(self) -> None:
        shapes = [_weights(part.geometry) for part in self.site.parts]
        self.part, self.weights = self.site.parts[self.number], shapes[self.number]
        turn = self.part.turn
        self.stored = self.weights if turn is None else turn.shape(self.weights)
        self.outputs, self.terms = self.weights[0], product(self.weights[1:])
        self.additions = sum(product(shape[1:]) + 1 for shape in shapes)
        self.zero = 0
        self.integers = self.part.weight.element not in (None, *FLOATS)
        small = {"float16": 15, "bfloat16": 7}.get(self.part.geometry.element, 2**20)
        self.highest_input, highest = exact_ranges(
            math.prod(product(shape[1:]) for shape in shapes),
            weights=product(self.weights),
            highest_weight=63 if self.part.on_integers else 127 if self.integers else small,
            highest_input={"float16": 2**11, "bfloat16": 2**8}.get(self.element, 2**20),
        )
        self.highest_weight = max(1, int(highest ** (1 / len(shapes))))
        self._settings = {place: self._setting(place) for place in self.part.others}
        if (fill := next((at for at, each in self.part.others.items() if each is self.part.fill), None)) is not None:
            self.zero = int(self._settings[fill].reshape(()))

    def __call__(self, word: str, place: int, node: NodeProto) -> ValueInfoProto | TensorProto:
        """Return what stands for a tensor that a node reads from outside; LookupError where that cannot be told."""
        kind, _, end = word.partition(".")
        number = int(end or 0)
        if number != self.number:
            return replace(self, number=number)(word, place, node)
        if place == 0 and (kind == "x_f" or node.input[0] == self.site.inputs[0]):
            geometry = entering(self.site)
            sizes = (geometry.batch, geometry.in_channels, *geometry.extents)
            sizes = self.site.meaning.shape(sizes) if isinstance(self.site.meaning, Sandwich) else sizes
            return self._input("x", self.input_element, sizes)
        for name, operand in (("w", self.part.weight), ("b", self.part.bias)):
            if kind == "conv" and operand is not None and operand.name == node.input[place]:
                return self._operand(name, operand)
        known = self.source.constant(self.site.scope, node.input[place])
        if kind == "conv" and place in self.part.others:
            return self._other_operand(place)
        if kind not in QUANTIZING:
            return self._other(node, place, known)
        if place == 0:
            return tensor(self._codes(kind))
        shape = () if known is None else tuple(known.dims)
        channels = self.stored[1] if kind == "w_f" and self.part.turn is not None else self.outputs
        shape = (channels,) if product(shape) > 1 else shape
        if place == 2:
            return tensor(self._zero_point(kind, known, shape))
        power: NDArray[np.int64] | int = -2 if kind == "x_f" else -1
        if kind == "quantized":
            power = round(math.log2(max(self.terms, 2)) / 2 + 4)
        elif shape and kind != "x_f":
            power = -self.rng.integers(0, 3, size=shape)
        return tensor(np.full(shape, np.float64(2) ** power).astype(dtype(self.element)))

    @property
    def input_element(self) -> str:
        """Return the type of the tensor that enters."""
        return self.site.storage or self.element

    def _input(self, name: str, element: str, shape: tuple[int | None, ...]) -> ValueInfoProto:
        dims = [size if size is not None else f"{name}{axis}" for axis, size in enumerate(shape)]
        return helper.make_tensor_value_info(name, NAMED[element].number, dims)

    def _operand(self, name: str, operand: Operand) -> ValueInfoProto | TensorProto:
        """Return the weights or bias of a Conv, that are not dequantised."""
        shape, element = self.stored if name == "w" else (self.outputs,), self.element
        if self.integers:
            element = operand.element or element
        if self.part.on_integers and name == "w":
            values: Array = self._integer_weights()
        elif self.reals and not self.part.on_integers:
            values = self.rng.standard_normal(shape, dtype=np.float32)
            values *= np.float32(1 / math.sqrt(self.terms) if name == "w" else 1.0)
        else:
            high = self.highest_weight if name == "w" else 1000 if len(self.site.parts) == 1 else 3
            values = whole_numbers(self.rng, shape, -high, high)
        values = self._repeated(values.astype(dtype(element), copy=False))
        if operand.is_constant and not (self.given and name == "w"):
            return tensor(values)
        name += f".{self.number}" if self.number else ""
        self.feeds[name] = values
        return self._input(name, element, (None,) * len(shape) if operand.shape is None else shape)

    def _repeated(self, values: Array) -> Array:
        """Return weights or biases that repeat their first part, where those of the site do."""
        times = self.site.meaning.repeats if isinstance(self.site.meaning, Sandwich) else 1
        return np.concatenate([values[: len(values) // times]] * times) if times > 1 else values

    def _other(self, node: NodeProto, place: int, known: TensorProto | None) -> TensorProto:
        """Return small whole numbers for a constant of another node; what is no float is a setting, and stays."""
        name = node.input[place]
        if known is None or known.data_location == TensorProto.EXTERNAL:
            raise LookupError(f"nothing is known of {name!r}, which enters it too")
        if is_setting(known) or node.op_type == "Pad":
            return copied(known)
        return tensor(self.rng.integers(1, 3, tuple(known.dims)).astype(dtype(self.element)))

    def _setting(self, place: int) -> Array:
        """Return a scale, a power of two, or a zero point of an operator on integers: the model's own if it is known.

        The scale of the output, which is the last one, is such that the smallest and the largest integer come up.
        """
        operand, rng = self.part.others[place], self.rng
        shape, kind = operand.shape or (), dtype(operand.element or self.site.storage or "")
        if kind.kind == "f":
            last = place == max(at for at, each in self.part.others.items() if each.element in FLOATS)
            spread = math.sqrt(max(self.terms, 1)) * self._reach() * self.highest_weight / 3
            power = round(math.log2(spread / 128)) - 2 if last else -rng.integers(0, 3, size=shape)
            return np.full(shape, np.float64(2) ** power).astype(kind)
        own = self.source.constant(self.site.scope, operand.name)
        if operand.is_constant and own is not None and own.data_location != TensorProto.EXTERNAL:
            return numpy_helper.to_array(own)
        return np.asarray((100 if kind.kind == "u" else -50) + rng.integers(1, 50, size=shape)).astype(kind)

    def _other_operand(self, place: int) -> ValueInfoProto | TensorProto:
        """Return what else an operator on integers reads: a scale or a zero point."""
        operand, values = self.part.others[place], self._settings[place]
        if operand.is_constant:
            return tensor(values)
        name = f"other_{place}"
        self.feeds[name] = values
        return helper.make_tensor_value_info(name, NAMED[values.dtype.name].number, values.shape)

    def _integer_weights(self) -> Array:
        """Return weights of an operator on integers, on both sides of their zero point.

        Two products with data of 8 bits stay within 16 bits: older processors saturate there, and so do runtimes.
        """
        zero = next(
            (self._settings[at] for at, each in self.part.others.items() if each is self.part.weight_zero), None
        )
        kind = dtype(self.part.weight.element or "")
        codes = whole_numbers(self.rng, self.weights, -self.highest_weight, self.highest_weight)
        if zero is not None:
            codes = codes + zero.astype(np.int32).reshape(-1 if zero.size > 1 else 1, *[1] * (codes.ndim - 1))
        return np.clip(codes, np.iinfo(kind).min, np.iinfo(kind).max).astype(kind)

    def _reach(self) -> int:
        """Return how far integers that enter lie from their zero point, so that float32 holds every sum."""
        if self.part.on_integers:
            return max(1, min(127, EXACT_LIMIT // (256 * max(1, self.terms))))
        # scales are powers of two, at most 4 apart: in units of the smallest, products and sums stay exact
        return max(1, min(127, EXACT_LIMIT // 8 // max(1, self.terms * (self.highest_weight + 3))))

    def _codes(self, word: str) -> Array:
        """Return weights or bias as integers; without a zero point, unsigned ones are no less than 0."""
        if word == "b_f":
            return whole_numbers(self.rng, (self.outputs,), -1000, 1000)
        quantization = self.part.weight_quantization
        assert quantization is not None, "the weights are quantised"
        kind = dtype(quantization.source.element or "")
        codes = np.clip(whole_numbers(self.rng, self.stored, -self.highest_weight, self.highest_weight), -120, 120)
        if kind.kind == "u":
            codes = codes + 128 if quantization.zero_point is not None else np.abs(codes)
        return codes.astype(kind)

    def _zero_point(self, word: str, known: TensorProto | None, shape: tuple[int, ...]) -> Array:
        own = NUMBERED[known.data_type].name if known is not None else ""
        kind = dtype(own if own in ("int8", "uint8", "int16", "uint16", "int32") else self.site.storage or "int8")
        if kind.itemsize > 2:
            return np.zeros(shape, kind)
        zero = (128 if kind.kind == "u" else 0) + self.rng.integers(1, 4, size=shape)
        if word == "x_f" and known is not None and isinstance(self.site.meaning, Sandwich):  # its Pad holds it too
            zero = numpy_helper.to_array(known).astype(np.int64).reshape(shape)
        if word == "w_f" and self.reals:  # to be timed: for weights around 0 runtimes have a path
            zero = np.full(shape, 128 if kind.kind == "u" else 0)
        if word == "x_f":
            self.zero = int(zero.reshape(()))
        return np.asarray(zero).astype(kind)

    def input(self, shape: tuple[int, ...]) -> Array:
        """Return whole numbers for the input, in a range in which every partial sum is exact; or reals."""
        kind = dtype(self.input_element)
        if self.site.storage is not None:
            reach, info = self._reach(), np.iinfo(kind)
            low, high = max(int(info.min), self.zero - reach), min(int(info.max), self.zero + reach)
            return whole_numbers(self.rng, shape, low, high).astype(kind)
        if self.reals:
            return self.rng.standard_normal(shape).astype(kind)
        high = self.highest_input if self.part.weight_quantization is None else max(1, self.highest_input // 8)
        return whole_numbers(self.rng, shape, -high, high).astype(kind)


def _weights(geometry: ConvGeometry) -> tuple[int, ...]:
    """Return the shape of a Conv's weights, with few channels where they are not known."""
    outs, ins = (channels or 2 * geometry.group for channels in (geometry.out_channels, geometry.in_channels))
    return outs, ins // geometry.group, *geometry.kernel
