"""Builds micro-models: one site alone, with whole numbers or reals to feed it. Made with onnx-graphsurgeon.

A micro-model has the site's Conv with its geometry, as unknown as the site's, between DequantizeLinear and
QuantizeLinear where it stands between them, and an exact activation (LeakyRelu by one half) where one follows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.model.elements import FLOATS, dtype
from dilrewrite.runtimes import Array
from dilrewrite.sites import Site
from dilrewrite.sites.find import find

EXACT_LIMIT = 2**24
"""Whole numbers up to here are exact in float32, in whatever order they are added."""


LIMIT_ELEMENTS = 2**26
"""Up to so many elements times taps of the kernel a site is proved at its own size, above at a smaller one.

Elements are those of the input or the output, whichever has more; a form that copies the input for every tap holds so
many numbers.
"""

FEW = 2
"""Images, groups, and channels in a group that a smaller size keeps at least, where there are as many."""


# -- sizes -----------------------------------------------------------------------------------------------------------


def sample_extents(geometry: ConvGeometry) -> tuple[tuple[int, ...], ...]:
    """Return concrete extents to prove at: the given ones, and for unknown axes several lengths.

    Unknown axes take the smallest length the Conv accepts, one that the phases divide, one that they do not, and one
    below the dilation where the pads allow it.
    """
    choices: list[list[int]] = []
    for axis in geometry.axes:
        known = geometry.extents[axis]
        if known is not None:
            choices.append([known])
            continue
        begin, end = geometry.pads_begin[axis] or 0, geometry.pads_end[axis] or 0
        smallest = max(1, geometry.span(axis) - begin - end, 1 - min(begin, 0) - min(end, 0))
        if geometry.auto_pad.startswith("SAME"):
            smallest = 1
        step = math.lcm(geometry.strides[axis], geometry.dilations[axis])
        even = max(-(-(smallest + 1) // step), 2) * step
        choices.append([even, even + step - 1 + (step == 1), smallest, max(smallest, geometry.dilations[axis] - 1)])
    count = max(map(len, choices))
    found = [tuple(options[i % len(options)] for options in choices) for i in range(count)]
    if sum(extent is None for extent in geometry.extents) > 1:  # not the same kind of length on every axis
        found.append(tuple(options[(axis + 1) % len(options)] for axis, options in enumerate(choices)))
    open_axes = [axis for axis in geometry.axes if geometry.extents[axis] is None]
    bounded: list[tuple[int, ...]] = []
    for extents in found:
        if len(open_axes) < 2 or footprint(concrete(geometry, extents)) <= LIMIT_ELEMENTS:
            bounded.append(extents)
            continue
        for axis in open_axes:  # too large together: one axis after the other takes its length, the others are short
            short = {other: min(choices[other]) for other in open_axes if other != axis}
            bounded.append(tuple(short.get(other, extent) for other, extent in enumerate(extents)))
    return tuple(dict.fromkeys(bounded))


def concrete(geometry: ConvGeometry, extents: tuple[int, ...]) -> ConvGeometry:
    """Return the geometry with these extents, and small numbers for what else is unknown."""
    channels = geometry.in_channels or 2 * geometry.group
    return replace(
        geometry,
        batch=2 if geometry.batch is None else geometry.batch,
        in_channels=channels,
        out_channels=geometry.out_channels or 2 * geometry.group,
        extents=extents,
    )


def footprint(geometry: ConvGeometry) -> int:
    """Return taps (at least 4) times elements of the input or output, of a geometry in which everything is known."""
    outs = tuple(out for out in geometry.explicit().out_extents if out is not None)
    outputs = (geometry.batch or 1) * (geometry.out_channels or 1) * product(outs)
    return max(product(geometry.kernel), 4) * max(product(input_shape(geometry)), outputs)


def smaller(geometry: ConvGeometry) -> ConvGeometry:
    """Return the geometry to prove at: the given one, or where that is too large a smaller one of the same structure.

    First there are fewer images, then shorter extents: by whole multiples of lcm(stride, dilation), so that every
    remainder stays, and only as far as each tap begins and ends to touch data in the same order. If that is not enough,
    there are fewer channels and groups. What is unknown stays unknown.
    """

    def too_large() -> bool:
        return any(footprint(concrete(geometry, e)) > LIMIT_ELEMENTS for e in sample_extents(geometry))

    if too_large() and geometry.batch is not None:
        geometry = replace(geometry, batch=min(geometry.batch, FEW))
    while too_large():
        shorter = [other for axis in geometry.axes if (other := _shorter(geometry, axis)) is not None]
        if not shorter:
            break
        geometry = min(shorter, key=lambda other: sorted((extent or 0 for extent in other.extents), reverse=True))
    if too_large():
        group = min(geometry.group, FEW)

        def fewer(channels: int | None) -> int | None:
            return None if channels is None else group * min(channels // geometry.group, FEW)

        ins, outs = fewer(geometry.in_channels), fewer(geometry.out_channels)
        geometry = replace(geometry, group=group, in_channels=ins, out_channels=outs)
    return geometry


def _shorter(geometry: ConvGeometry, axis: int) -> ConvGeometry | None:
    """Return the geometry with a shorter extent of the same kind on one axis, `None` where there is none."""
    extent = geometry.extents[axis]
    if extent is None:
        return None
    step = math.lcm(geometry.strides[axis], geometry.dilations[axis])
    for cut in (max(1, extent // step // 8) * step, step):
        extents = tuple(e if other != axis else extent - cut for other, e in enumerate(geometry.extents))
        other = replace(geometry, extents=extents)
        if extent > cut and _order(other, axis) == _order(geometry, axis):
            return other
    return None


def _order(geometry: ConvGeometry, axis: int) -> tuple[int, ...]:
    """Return how the places compare where taps begin and end to touch data, and that every phase has outputs."""
    explicit = geometry.explicit()
    taps, out = explicit.taps(axis), explicit.out_extent(axis)
    assert taps is not None, "known"
    assert out is not None
    phases = explicit.dilations[axis] // math.gcd(explicit.strides[axis], explicit.dilations[axis])
    pairs = [(hi, lo) for hi in (*taps.hi, out) for lo in (*taps.lo, 0)]
    return *((hi > lo) - (hi < lo) for hi, lo in pairs), min(out // phases, 2)


# -- numbers ---------------------------------------------------------------------------------------------------------


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


# -- micro-models ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Micro:
    """A micro-model, its one site, its weights and bias, what to feed besides the input, and its quantisation."""

    model: ModelProto
    site: Site
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    feeds: Mapping[str, Array]
    x_zero: int
    x_scale: float
    w_zero: NDArray[np.float64]
    w_scale: NDArray[np.float64]
    y_scale: float
    y_zero: int


def _gs() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx_graphsurgeon

    return onnx_graphsurgeon


def build(site: Site, rng: np.random.Generator, element: str, *, reals: bool = False) -> Micro:
    """Build the micro-model of `site` in float32 and retype it to `element`.

    Shapes of inputs are declared as unknown as the site knows them; weights and bias are whole numbers, or `reals`
    that `element` holds.
    """
    gs = _gs()
    ir_version = min(site.ir_version, 10)  # newer ones change nothing here, and an older runtime refuses them
    geometry = site.geometry
    channels = geometry.in_channels or 2 * geometry.group
    outputs = geometry.out_channels or 2 * geometry.group
    w_shape = (outputs, channels // geometry.group, *geometry.kernel)
    terms = product(w_shape[1:])
    quantized, w_dq, b_dq = site.input_quantization, site.weight_quantization, site.bias_quantization
    small = {"float16": 15, "bfloat16": 7}.get(geometry.element, 2**20)
    low_bits = 127 if w_dq is not None else small
    _, w_high = exact_ranges(terms, weights=product(w_shape), highest_weight=low_bits)
    weight = whole_numbers(rng, w_shape, -w_high, w_high).astype(np.float32)
    bias = whole_numbers(rng, (outputs,), -1000, 1000).astype(np.float32) if geometry.bias else None
    if reals and w_dq is None:
        scale = 1 / math.sqrt(terms)
        weight = rng.standard_normal(w_shape, dtype=np.float32) * np.float32(scale)
        if element != "float32":
            weight = weight.astype(dtype(element)).astype(np.float32)
        bias = rng.standard_normal(outputs).astype(dtype(element)).astype(np.float32) if geometry.bias else None
    nodes: list[Any] = []
    feeds: dict[str, Array] = {}
    inputs: list[Any] = []

    def dequantize(name: str, source: Any, scale: Array, zero: Array | None, axis: int | None) -> Any:
        made = gs.Variable(f"{name}_f", dtype=np.float32)
        parts = [source, gs.Constant(f"{name}_scale", np.asarray(scale, np.float32))]
        if zero is not None:
            parts.append(gs.Constant(f"{name}_zero", np.asarray(zero)))
        nodes.append(
            gs.Node("DequantizeLinear", inputs=parts, outputs=[made], attrs={"axis": axis} if axis is not None else {})
        )
        return made

    x_scale, x_zero = 1.0, 0
    declared = (geometry.batch, geometry.in_channels, *geometry.extents)
    shape = [size if size is not None else f"x{i}" for i, size in enumerate(declared)]
    if quantized is None:
        x = gs.Variable("x", dtype=np.float32, shape=shape)
        inputs.append(x)
    else:
        storage = dtype(site.storage or "")
        x_scale = 0.25
        x_zero = (3 if storage == np.int8 else 130) if quantized.zero_point is not None else 0
        raw = gs.Variable("x", dtype=storage, shape=shape)
        inputs.append(raw)
        zero = np.array(x_zero, storage) if quantized.zero_point is not None else None
        x = dequantize("x", raw, np.array(x_scale), zero, None)
    w_zero: NDArray[np.float64] = np.zeros(())
    w_scale: NDArray[np.float64] = np.ones(())
    w: Any
    if w_dq is not None:
        stored = dtype(site.weight.element or "")
        middle = 128 if stored == np.uint8 else 0
        w_scale = 2.0 ** -rng.integers(0, 3, size=outputs).astype(np.float64) if w_dq.axis == 0 else np.array(0.5)
        w_zero = np.zeros(w_scale.shape)
        if w_dq.zero_point is not None:
            w_zero = middle + rng.integers(-3, 4, size=w_scale.shape).astype(np.float64)
        zero = w_zero.astype(stored) if w_dq.zero_point is not None else None
        codes = (np.clip(weight, -120, 120) + (middle if w_dq.zero_point is not None else 0)).astype(stored)
        weight = codes.astype(np.float32)
        w = dequantize("w", gs.Constant("w", codes), w_scale, zero, 0 if w_dq.axis == 0 else None)
    elif site.weight.is_constant:
        w = gs.Constant("w", weight)
    else:
        known = site.weight.shape or (None,) * len(w_shape)
        w = gs.Variable(
            "w", dtype=np.float32, shape=[size if size is not None else f"w{i}" for i, size in enumerate(known)]
        )
        inputs.append(w)
        feeds["w"] = weight
    parts = [x, w]
    if bias is not None:
        b: Any
        if b_dq is not None:
            b_scale = x_scale * (w_scale if b_dq.axis == 0 else np.array(0.5))
            b_scale = np.broadcast_to(b_scale, (outputs,)) if b_dq.axis == 0 else b_scale
            b = dequantize("b", gs.Constant("b", bias.astype(np.int32)), b_scale, None, 0 if b_dq.axis == 0 else None)
            bias = bias * np.asarray(b_scale, np.float32)
        elif site.bias is not None and site.bias.is_constant:
            b = gs.Constant("b", bias)
        else:
            b = gs.Variable("b", dtype=np.float32, shape=[outputs])
            inputs.append(b)
            feeds["b"] = bias
        parts.append(b)
    attributes: dict[str, Any] = {
        "kernel_shape": list(geometry.kernel),
        "strides": list(geometry.strides),
        "dilations": list(geometry.dilations),
        "group": geometry.group,
    }
    if geometry.auto_pad == "NOTSET":
        attributes["pads"] = [pad or 0 for pad in (*geometry.pads_begin, *geometry.pads_end)]
    else:
        attributes["auto_pad"] = geometry.auto_pad
    result = gs.Variable("conv", dtype=np.float32)
    nodes.append(gs.Node("Conv", name="conv", inputs=parts, outputs=[result], attrs=attributes))
    follow = len(site.follow) - site.quantizes_output
    if follow:
        active = gs.Variable("active", dtype=np.float32)
        nodes.append(gs.Node("LeakyRelu", name="active", inputs=[result], outputs=[active], attrs={"alpha": 0.5}))
        result = active
    y_scale, y_zero = 1.0, 0
    if site.quantizes_output:
        storage = dtype(site.storage or "")
        y_scale = 2.0 ** round(math.log2(max(terms, 2)) / 2 + 4)
        y_zero = 7 if storage == np.int8 else 121
        stored_y = gs.Variable("y", dtype=storage, shape=None)
        nodes.append(
            gs.Node(
                "QuantizeLinear",
                inputs=[
                    result,
                    gs.Constant("y_scale", np.array(y_scale, np.float32)),
                    gs.Constant("y_zero", np.array(y_zero, storage)),
                ],
                outputs=[stored_y],
            )
        )
        result = stored_y
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = gs.Graph(nodes=nodes, inputs=inputs, outputs=[result], opset=site.opset, name="micro")
        model: ModelProto = gs.export_onnx(graph, do_type_check=False, ir_version=ir_version)
    if ir_version < 4:
        for tensor in model.graph.initializer:
            model.graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )
    if element != "float32":
        model = retyped(model, element)
        feeds = {name: values.astype(dtype(element)) for name, values in feeds.items()}
    found = find(model).sites
    assert len(found) == 1, "a micro-model holds the one site"
    return Micro(
        model=model,
        site=found[0],
        weight=weight,
        bias=bias,
        feeds=feeds,
        x_zero=x_zero,
        x_scale=x_scale,
        w_zero=w_zero,
        w_scale=w_scale,
        y_scale=y_scale,
        y_zero=y_zero,
    )


def retyped(model: ModelProto, element: str) -> ModelProto:
    """Return a copy of a model of our own with float32 replaced by `element` in values, constants and declarations."""
    twin = ModelProto()
    twin.CopyFrom(model)
    kind = FLOATS[element].number
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).astype(dtype(element))
            tensor.CopyFrom(TensorProto(name=tensor.name, data_type=kind, dims=values.shape, raw_data=values.tobytes()))
    for value in (*twin.graph.input, *twin.graph.output, *twin.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = kind
    for node in twin.graph.node:
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
                values = numpy_helper.to_array(attribute.t).astype(dtype(element))
                attribute.t.CopyFrom(TensorProto(data_type=kind, dims=values.shape, raw_data=values.tobytes()))
    return twin


# -- inputs ---------------------------------------------------------------------------------------------------------


def input_shape(geometry: ConvGeometry) -> tuple[int, ...]:
    """Return the input's shape of a geometry in which everything is known."""
    shape = (geometry.batch, geometry.in_channels, *geometry.extents)
    return tuple(size for size in shape if size is not None)


def whole_input(micro: Micro, geometry: ConvGeometry, rng: np.random.Generator, element: str) -> Array:
    """Return whole numbers for the input, in a range in which every partial sum is exact."""
    shape = input_shape(geometry)
    terms = product(micro.weight.shape[1:])
    if micro.site.input_quantization is not None:
        storage = dtype(micro.site.storage or "")
        info = np.iinfo(storage.name)
        w_high = int(
            np.max(np.abs(micro.weight - micro.w_zero.reshape(-1, *(1,) * (micro.weight.ndim - 1))), initial=1)
        )
        # scales are powers of two, at most 4 apart: in units of the smallest, products and sums stay exact
        reach = max(1, min(127, (EXACT_LIMIT // 8) // max(1, terms * w_high)))
        low, high = max(int(info.min), micro.x_zero - reach), min(int(info.max), micro.x_zero + reach)
        return whole_numbers(rng, shape, low, high).astype(storage)
    w_high = int(np.max(np.abs(micro.weight), initial=1))
    high = max(1, (EXACT_LIMIT - 2**12) // max(1, terms * w_high))
    high = min(high, {"float16": 2**11, "bfloat16": 2**8}.get(element, 2**20))
    return whole_numbers(rng, shape, -high, high).astype(dtype(element))
