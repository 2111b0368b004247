"""Tells the error of a Conv on integers that is computed in float32: a bound for every input, and what inputs gave.

The bound stands on the model's own weights, scales and zero points, and on the range of the type. The inputs are noise
over all of that range, both of its ends, and those that make the largest sum of both signs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto

from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.model.elements import FLOATS, dtype
from dilrewrite.proof.carve import tensor
from dilrewrite.proof.exact import exact
from dilrewrite.proof.numbers import EXACT_LIMIT, Numbers
from dilrewrite.proof.proof import Requantised
from dilrewrite.runtimes import Array
from dilrewrite.sites import Operand
from dilrewrite.splice import floats

WRAPS = 2**31
"""Sums from here on leave int32, and wrap around there."""

DIVISION = 8
"""Roundings of one quotient: those of scales, of the sum to float32 and of the division, here and in QLinearConv."""

REACHED = 2**10
"""Quotients beyond so many quanta saturate, however they are rounded: there are 256 integers."""

LIMIT_ELEMENTS = 2**20
"""As that of a proof (`sizes.py`): there are many inputs to run."""

OUTPUTS = 2**16
"""At least so many outputs are looked at, or as many as `DRAWS` inputs give."""

DRAWS = 8

Reader = Callable[[TensorProto], Array]


@dataclass(kw_only=True)
class Own(Numbers):
    """The model's own weights, bias, scales and zero points, and data over the whole range of their type."""

    read: Reader

    def __call__(self, word: str, place: int, node: NodeProto) -> ValueInfoProto | TensorProto:
        """Return what a node reads from outside: a constant as it is, anything else as `Numbers` does."""
        operands = (self.part.weight, self.part.bias, *self.part.others.values())
        fixed = {one.name for one in operands if one is not None and one.is_constant}
        if word == "conv" and node.input[place] in fixed:
            return tensor(self.values(node.input[place]))
        return super().__call__(word, place, node)

    def values(self, name: str) -> Array:
        """Return a constant of the model; LookupError where it is none."""
        constant = self.source.constant(self.site.scope, name)
        if constant is None:
            raise LookupError(f"{name!r} has no values to tell the error by")
        return self.read(constant)

    def of(self, operand: Operand) -> Array:
        """Return the values of a constant operand."""
        return self.values(operand.name)

    @property
    def limits(self) -> tuple[int, int]:
        """Return the smallest and the largest integer of the data."""
        info = np.iinfo(dtype(self.input_element))
        return int(info.min), int(info.max)

    @property
    def zeros(self) -> list[int]:
        """Return the zero points that the data may have: its own, or the ends of the range and one in between."""
        fill = self.part.fill
        if fill is None:
            return [0]
        low, high = self.limits
        return [int(self.of(fill).reshape(()))] if fill.is_constant else [low, (low + 3 * high) // 4, high]

    def weights_in_whole(self) -> NDArray[np.int64]:
        """Return the weights less their zero points [O, C // group, *k]."""
        zero = np.int64(0) if self.part.weight_zero is None else self.of(self.part.weight_zero).astype(np.int64)
        whole = self.of(self.part.weight).astype(np.int64)
        return np.asarray(whole - np.reshape(zero, (-1, *(1,) * (whole.ndim - 1))))

    def products(self) -> NDArray[np.float64]:
        """Return what no product, nor the bias, can pass in magnitude [O, terms]: of each channel the largest first."""
        low, high = self.limits
        reach = max(max(zero - low, high - zero) for zero in self.zeros)
        most = reach * np.abs(self.weights_in_whole()).reshape(self.outputs, -1).astype(np.float64)
        if self.part.bias is not None:
            most = np.hstack([most, np.abs(self.of(self.part.bias).astype(np.float64)).reshape(-1, 1)])
        return np.asarray(-np.sort(-most, axis=1))

    def largest_sums(self) -> NDArray[np.float64]:
        """Return for each output channel what no sum, and no part of one, can pass in magnitude."""
        return np.asarray(self.products().sum(axis=1))


def off_by(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far a sum in float32 may be off, for each output channel, of such products in whatever order.

    Only an addition whose result may pass 2**24 rounds: by half a unit in the last place of the largest sum. What is
    added there is more than the m largest products can make, so of n terms at most n - m + 1 additions are such.
    """
    sums, terms, unit = np.cumsum(products, axis=1), products.shape[1], FLOATS["float32"].roundoff
    largest = sums[:, -1] * (1 + 2 * terms * unit)
    half = np.exp2(np.floor(np.log2(np.maximum(largest, 1.0)))) * unit
    exact = (sums <= EXACT_LIMIT).sum(axis=1)
    return np.where(exact == terms, 0.0, (terms - exact) * half)


def bound(own: Own) -> tuple[float, float, str]:
    """Return the largest error that the form may have, in integers of the output, the largest sum, and a refusal.

    Sums of whole numbers up to 2**24 are exact in float32, in whatever order they are added: then ConvInteger is the
    same bit for bit, and QLinearConv rounds the same sum, which a rounding error of the quotient moves by one quantum
    at most. Larger ones may be off (`off_by`): of QLinearConv that, in quanta, has to stay below 1.
    """
    products, unit = own.products(), FLOATS["float32"].roundoff
    largest, errors = float(products.sum(axis=1).max(initial=0.0)), off_by(products)
    if largest >= WRAPS:
        return math.inf, largest, f"its sums may reach {largest:.3g}, beyond int32, where they wrap around"
    if not floats.rounds(own.part):
        return float(errors.max(initial=0.0)), largest, ""
    steps = floats.steps(own.part, own.of)
    if not (np.isfinite(steps).all() and steps.min() > 0):
        return math.inf, largest, "its scales are not all above 0 and finite"
    quanta = float((errors / steps).max(initial=0.0)) + DIVISION * unit * REACHED
    if quanta >= 1:
        return math.inf, largest, f"its sums, up to {largest:.3g}, may be off by {quanta:.3g} quanta in float32"
    return 1.0, largest, ""


def inputs(own: Own, shapes: Sequence[tuple[int, ...]], geometry: ConvGeometry) -> Iterator[Array]:
    """Yield the data to run: noise over the range of the type, its ends, and those of the largest sums."""
    (low, high), kind = own.limits, dtype(own.input_element)
    outputs = product(shapes[0][2:]) * own.outputs * shapes[0][0]
    for shape in shapes:
        for _ in range(min(DRAWS, -(-OUTPUTS // max(1, outputs)))):
            yield own.rng.integers(low, high + 1, shape).astype(kind)
    yield from (np.full(shapes[0], end, kind) for end in (low, high))
    channel = int(np.argmax(own.largest_sums() / (floats.steps(own.part, own.of) if floats.rounds(own.part) else 1.0)))
    for sign in (1, -1):
        yield _extreme(own, shapes[0], geometry, channel, sign).astype(kind)


def _extreme(own: Own, shape: tuple[int, ...], geometry: ConvGeometry, channel: int, sign: int) -> Array:
    """Return data that make the largest sum of a sign, in one output channel, at every place that is a whole span away.

    Along each axis the taps repeat with the period dilation * kernel, so one place in so many sees them all in order.
    """
    low, high = own.limits
    w = sign * own.weights_in_whole()[channel]
    inside = w.shape[0]
    first = channel // (own.outputs // geometry.group) * inside
    begin = [pad or 0 for pad in geometry.explicit().pads_begin]
    tiled = np.where(w > 0, high, low)
    for axis, (dilation, taps, pad) in enumerate(zip(geometry.dilations, geometry.kernel, begin, strict=True)):
        places = (np.arange(shape[axis + 2]) + pad) // dilation % taps
        tiled = np.take(tiled, places, axis=axis + 1)
    data = own.rng.integers(low, high + 1, shape)
    data[:, first : first + inside] = tiled
    return np.asarray(data)


class Errors:
    """Collects how outputs differ from the exact ones."""

    def __init__(self) -> None:
        self.most, self.relative, self.differing, self.elements, self.low, self.high = 0.0, 0.0, 0, 0, 0, 0

    def add(self, got: Array, right: Array) -> str | None:
        """Add outputs; return what is wrong with their shape or type."""
        if (got.shape, got.dtype) != (right.shape, right.dtype):
            return f"output {got.dtype} {list(got.shape)} instead of {right.dtype} {list(right.shape)}"
        off = np.abs(got.astype(np.float64) - right.astype(np.float64))
        largest = float(np.abs(right.astype(np.float64)).max(initial=0.0))
        self.most = max(self.most, float(off.max(initial=0.0)))
        self.relative = max(self.relative, float(off.max(initial=0.0)) / (largest or 1.0))
        self.differing, self.elements = self.differing + int((off > 0).sum()), self.elements + off.size
        info = np.iinfo(right.dtype)
        self.low, self.high = self.low + int((right == info.min).sum()), self.high + int((right == info.max).sum())
        return None


Run = Callable[[Sequence[Array]], Sequence[Array]]


def measured(own: Own, model: object, run: Run, shapes: Sequence[tuple[int, ...]]) -> tuple[Requantised, str | None]:
    """Return the error of a form, which `run` runs, and what is wrong with it. `model`: the original's sub-model."""
    limit, largest, _ = bound(own)
    errors = Errors()
    geometry = own.site.geometry
    fill = next((place for place, each in own.part.others.items() if each is own.part.fill), None)
    problem = None
    for zero in own.zeros:
        if fill is not None and (name := f"other_{fill}") in own.feeds:
            own.feeds[name] = np.asarray(zero, own.feeds[name].dtype).reshape(own.feeds[name].shape)
        data = list(inputs(own, shapes, geometry))
        right = [exact(model, {"x": x, **own.feeds}) for x in data]  # type: ignore[arg-type]
        got = run(data)
        for place, y in enumerate(got):
            problem = problem or errors.add(y, right[place % len(right)])
    told = Requantised(
        limit=limit,
        max_error=errors.most,
        relative_error=errors.relative,
        differing=errors.differing,
        elements=errors.elements,
        largest_sum=largest,
        quantum=floats.rounds(own.part),
        lowest=errors.low,
        highest=errors.high,
    )
    if problem is None and errors.most > limit:
        problem = f"{told.differing} of {told.elements} outputs differ by up to {told.max_error:g}, above {limit:g}"
    return told, problem
