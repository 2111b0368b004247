"""Proves a fragment against the Conv it replaces: bit for bit on whole numbers, and its rounding against float64.

The proof runs on a micro-model: the site's Conv alone (between DequantizeLinear and QuantizeLinear when it is there),
rewritten by `substitute.rewrite` as the user's model will be. No form is used unproved.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from dilrewrite.backends import Array, Backend, CannotLoad, CannotRun, Options, Runnable, Session, backend, dtype
from dilrewrite.find import Site, find
from dilrewrite.fragment import Fragment
from dilrewrite.geometry import ConvGeometry, product
from dilrewrite.substitute import DATA_TYPES, rewrite

EXACT_LIMIT = 2**24
"""Whole numbers up to here are exact in float32, in whatever order they are added."""

PART_ELEMENTS = 2**20
"""How many weights are converted to the type of the ground truth at a time."""

UNIT_ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 2.0**-53}

ON_RUNTIME = frozenset({"float32", "float16"})
"""Element types whose Conv ONNX Runtime's CPU provider runs; the others are proved on `reference` as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounding:
    """Errors against float64, as shares of Conv(|x|, |w|) + |b| (the largest over all outputs).

    `limit` is 4 times the native error plus one unit in the last place; `ceiling` is 2nu/(1-nu) for n terms and unit
    roundoff u (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), `None` where nu >= 1.
    `difference` is max |new - native| / max |native|.
    """

    native_error: float
    new_error: float
    limit: float
    ceiling: float | None
    difference: float

    @property
    def passed(self) -> bool:
        """Say whether the new form rounds no worse than it may."""
        return self.new_error <= self.limit and (self.ceiling is None or self.new_error <= self.ceiling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was run and found; `failure` is `None` when everything held.

    `shapes` are the input shapes of the exact runs, `elements` the outputs compared bit for bit, `backend` the runtimes
    that ran the fragment. `native_ran` says whether the original Conv could be run for comparison (ONNX Runtime
    refuses SAME_* with dilation and negative pads; a float64 integer convolution is the ground truth always). `ran` is
    false when the runtime refused the fragment, which says nothing about it.
    """

    shapes: tuple[tuple[int, ...], ...]
    elements: int
    backend: str
    native_ran: bool
    rounding: Rounding | None
    failure: str | None = None
    ran: bool = True

    @property
    def passed(self) -> bool:
        """Say whether the form is proved."""
        return self.failure is None

    @property
    def wrong(self) -> bool:
        """Say whether the form was shown to compute something else (not only to round worse, or not to run)."""
        return self.failure is not None and self.ran and self.rounding is None


class Prover:
    """Proves fragments, each distinct question once."""

    def __init__(self, *, seed: int = 0, threads: int | None = None) -> None:
        self.seed = seed
        self.options = Options(threads=threads, isolated=False)
        self.runtime: Backend = backend("onnxruntime_cpu")
        self.reference: Backend = backend("reference")
        self._known: dict[tuple[object, ...], Proof] = {}

    def prove(self, site: Site, fragment: Fragment, ir_version: int) -> Proof:
        """Return the proof of `fragment` for `site`; equal geometry and fragment are asked once."""
        ir_version = min(ir_version, 10)  # newer ones change nothing here, and an older runtime refuses them
        key = (_Question.of(site), fragment.digest(), ir_version)
        if key not in self._known:
            self._known[key] = _prove(self, site, fragment, ir_version)
        return self._known[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What of a site a micro-model takes over."""

    geometry: ConvGeometry
    opset: int
    storage: str | None
    weight: tuple[object, ...]
    bias: tuple[object, ...]
    unary: bool
    quantize: bool

    @classmethod
    def of(cls, site: Site) -> _Question:
        weight_dq, bias_dq = site.weight_quantization, site.bias_quantization
        return cls(
            geometry=site.geometry,
            opset=site.opset,
            storage=site.storage,
            weight=(
                site.weight.is_constant,
                site.weight.element,
                weight_dq and (weight_dq.axis, bool(weight_dq.zero_point)),
            ),
            bias=(site.bias is not None and site.bias.is_constant, bias_dq and bias_dq.axis),
            unary=len(site.follow) > site.quantizes_output,
            quantize=site.quantizes_output,
        )


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
    return tuple(dict.fromkeys(found))


def _concrete(geometry: ConvGeometry, extents: tuple[int, ...]) -> ConvGeometry:
    channels = geometry.in_channels or 2 * geometry.group
    return replace(
        geometry,
        batch=2 if geometry.batch is None else geometry.batch,
        in_channels=channels,
        out_channels=geometry.out_channels or 2 * geometry.group,
        extents=extents,
    )


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
class _Micro:
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


def _micro(site: Site, ir_version: int, rng: np.random.Generator, element: str, *, reals: bool = False) -> _Micro:
    """Build the micro-model of `site` in float32 and retype it to `element`.

    Shapes of inputs are declared as unknown as the site knows them; weights and bias are whole numbers, or `reals`
    that `element` holds.
    """
    gs = _gs()
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
    if reals:
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
        parts = [source, gs.Constant(f"{name}_scale", scale.astype(np.float32))]
        if zero is not None:
            parts.append(gs.Constant(f"{name}_zero", zero))
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
    return _Micro(
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
    kind = DATA_TYPES[element]
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


# -- truth -----------------------------------------------------------------------------------------------------------


def truth(
    geometry: ConvGeometry, x: Array, w: Array, b: Array | None, precise: type[np.floating[Any]] = np.float64
) -> NDArray[np.floating[Any]]:
    """Return the Conv in float64: exact for whole numbers below 2**53, the yardstick for rounding otherwise.

    `precise` is the type to compute in; NumPy's long double is finer where the machine has it, and slow.
    """
    from dilrewrite.backends.reference import conv, same_pads

    begin: Sequence[int | None] = geometry.pads_begin
    end: Sequence[int | None] = geometry.pads_end
    if geometry.auto_pad.startswith("SAME"):  # from the specification, not from the code that is being proved
        spans = [d * (k - 1) + 1 for d, k in zip(geometry.dilations, geometry.kernel, strict=True)]
        begin, end = same_pads(geometry.auto_pad, x.shape[2:], spans, geometry.strides)
    exact_x = np.asarray(x, precise)
    # Weights in this type may be large: without groups, some output channels at a time.
    outputs = len(w) if geometry.group > 1 else max(1, PART_ELEMENTS * len(w) // max(1, w.size))
    parts = [
        conv(
            exact_x,
            np.asarray(w[start : start + outputs], precise),
            None if b is None else np.asarray(b[start : start + outputs], precise),
            strides=geometry.strides,
            dilations=geometry.dilations,
            pads_begin=[pad or 0 for pad in begin],
            pads_end=[pad or 0 for pad in end],
            group=geometry.group,
            accumulate=precise,
        )
        for start in range(0, len(w), outputs)
    ]
    return np.asarray(np.concatenate(parts, axis=1), precise)


def runs_natively(geometry: ConvGeometry) -> bool:
    """Say whether ONNX Runtime runs the Conv as it is: not with SAME_* and dilation, nor with negative pads."""
    return (
        not geometry.auto_pad.startswith("SAME")
        and min(p or 0 for p in (*geometry.pads_begin, *geometry.pads_end)) >= 0
    )


# -- the proof -------------------------------------------------------------------------------------------------------


def _prove(prover: Prover, site: Site, fragment: Fragment, ir_version: int) -> Proof:
    geometry = site.geometry
    exact = _exact(prover, site, fragment, ir_version, prover.runtime, "float32")
    if not exact.passed or site.input_quantization is not None:
        return exact
    if geometry.element == "float64":  # bfloat16 cannot hold the whole numbers; its rounding is measured below
        on_reference = _exact(prover, site, fragment, ir_version, prover.reference, geometry.element)
        if not on_reference.passed:
            return on_reference
        exact = replace(exact, backend=f"{exact.backend}, {on_reference.backend}")
    elif geometry.element not in ON_RUNTIME:
        exact = replace(exact, backend=f"{exact.backend}, {prover.reference.name}")
    try:
        rounding = _rounding(prover, site, fragment, ir_version)
    except (CannotLoad, CannotRun) as error:
        return replace(exact, failure=f"rounding: {error}", ran=False)
    failure = None
    if not rounding.passed:
        failure = (
            f"rounding: error {rounding.new_error:.3g} of Conv(|x|,|w|), native {rounding.native_error:.3g}, "
            f"limit {min(rounding.limit, rounding.ceiling or rounding.limit):.3g}"
        )
    return replace(exact, rounding=rounding, failure=failure)


def _session(runtime: Backend, model: ModelProto, options: Options) -> Session:
    return runtime.session(Runnable(model=model.SerializeToString()), options)


def _read(tensor: TensorProto) -> Array:
    return numpy_helper.to_array(tensor)


def _exact(prover: Prover, site: Site, fragment: Fragment, ir_version: int, runtime: Backend, element: str) -> Proof:
    """Run fragment and original on whole numbers; equal bit for bit to the exact result."""
    rng = np.random.default_rng(prover.seed)
    quantized = site.input_quantization is not None
    micro = _micro(site, ir_version, rng, element)
    geometry = site.geometry
    new = rewrite(micro.model, [(micro.site, fragment)], find(micro.model).normalisations, _read).proto
    options = replace(prover.options, optimize=not quantized)
    name = f"{runtime.name} ({element} twin)" if element != geometry.element else runtime.name
    inputs = []
    for extents in sample_extents(geometry):
        concrete = _concrete(geometry, extents)
        x = _whole_input(micro, concrete, rng, element)
        inputs.append((x, _wanted(micro, concrete, x)))
    feeds = [{"x": x, **micro.feeds} for x, _ in inputs]
    done = functools.partial(Proof, shapes=tuple(x.shape for x, _ in inputs), backend=name, rounding=None)
    natively = runs_natively(geometry)
    try:  # one session at a time: each holds the weights
        found = _outputs(runtime, new, options, feeds)
        native = _outputs(runtime, micro.model, options, feeds) if natively else found
    except (CannotLoad, CannotRun) as error:
        return done(elements=0, native_ran=False, failure=str(error), ran=False)
    elements = sum(got.size for got in found)
    for (x, wanted), got, same in zip(inputs, found, native, strict=True):
        problem = _differs(got, wanted)
        against = _differs(got, same)
        if problem or against:
            failure = f"input {list(x.shape)}: {problem or f'against the original: {against}'}"
            return done(elements=elements, native_ran=natively, failure=failure)
    return done(elements=elements, native_ran=natively)


def _outputs(
    runtime: Backend, model: ModelProto, options: Options, feeds: Sequence[Mapping[str, Array]]
) -> list[Array]:
    with _session(runtime, model, options) as session:
        return [next(iter(session.run(each).values())) for each in feeds]


def _input_shape(geometry: ConvGeometry) -> tuple[int, ...]:
    """Return the input's shape of a geometry in which everything is known."""
    shape = (geometry.batch, geometry.in_channels, *geometry.extents)
    return tuple(size for size in shape if size is not None)


def _whole_input(micro: _Micro, geometry: ConvGeometry, rng: np.random.Generator, element: str) -> Array:
    shape = _input_shape(geometry)
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


def _wanted(micro: _Micro, geometry: ConvGeometry, x: Array) -> Array:
    """Return what the micro-model must give, from exact arithmetic."""
    site = micro.site
    w: NDArray[np.floating[Any]] = micro.weight
    if site.weight_quantization is not None:
        broadcast = (-1, *(1,) * (w.ndim - 1))
        w = (w - micro.w_zero.reshape(broadcast)) * micro.w_scale.reshape(broadcast)
    values = (np.asarray(x, np.float64) - micro.x_zero) * micro.x_scale
    y = truth(geometry, values, w, micro.bias)
    if len(site.follow) > site.quantizes_output:
        y = np.where(y < 0, y * 0.5, y)
    if site.quantizes_output:
        storage = dtype(site.storage or "")
        info = np.iinfo(storage.name)
        codes: Array = np.clip(np.rint(y / micro.y_scale) + micro.y_zero, info.min, info.max).astype(storage)
        return codes
    return y


def _differs(got: Array, wanted: Array) -> str | None:
    if got.shape != wanted.shape:
        return f"output shape {list(got.shape)} instead of {list(wanted.shape)}"
    exact = wanted.astype(got.dtype)
    wrong = got != exact
    if not wrong.any():
        return None
    first = tuple(int(i) for i in np.argwhere(wrong)[0])
    return (
        f"{int(wrong.sum())} of {got.size} values differ, the first at {list(first)}: "
        f"{float(got[first]):g} instead of {float(exact[first]):g}"
    )


def _rounding(prover: Prover, site: Site, fragment: Fragment, ir_version: int) -> Rounding:
    """Compare the errors of the new and the native form against float64, on random reals."""
    element = site.geometry.element
    runtime = prover.runtime if element in ON_RUNTIME else prover.reference
    rng = np.random.default_rng(prover.seed + 1)
    bare = replace(site, follow=())
    micro = _micro(bare, ir_version, rng, element, reals=True)
    extents = sample_extents(site.geometry)
    geometry = _concrete(site.geometry, extents[1 % len(extents)])
    shape = _input_shape(geometry)
    x = rng.standard_normal(shape).astype(dtype(element))
    new_model = rewrite(micro.model, [(micro.site, fragment)], find(micro.model).normalisations, _read).proto
    with _session(runtime, new_model, prover.options) as session:
        new = np.asarray(next(iter(session.run({"x": x, **micro.feeds}).values())), np.float64)
    if runs_natively(site.geometry):
        native_model = micro.model
    else:  # the same Conv with its pads made explicit
        from dilrewrite.strategies import Refusal, plan, strategies

        kept = plan("keep", strategies()["keep"], site.geometry, site.opset)
        if isinstance(kept, Refusal):
            raise CannotRun(f"the original has no runnable form: {kept.reason}")
        native_model = rewrite(micro.model, [(micro.site, kept)], (), _read).proto
    with _session(runtime, native_model, prover.options) as session:
        native = np.asarray(next(iter(session.run({"x": x, **micro.feeds}).values())), np.float64)
    w = np.asarray(micro.weight, np.float64)
    precise: type[np.floating[Any]] = np.float64
    if element == "float64":  # the yardstick must be finer than what it measures
        precise = np.longdouble
    exact = truth(geometry, x, w, micro.bias, precise)
    size = truth(
        geometry, np.abs(np.asarray(x, np.float64)), np.abs(w), None if micro.bias is None else np.abs(micro.bias)
    )
    u = UNIT_ROUNDOFF[element]
    terms = product(w.shape[1:]) + 1
    safe = np.where(size > 0, size, 1.0)
    native_error = float(np.max(np.abs(native - exact) / safe, initial=0.0))
    new_error = float(np.max(np.abs(new - exact) / safe, initial=0.0))
    peak = float(np.max(np.abs(native), initial=0.0))
    return Rounding(
        native_error=native_error,
        new_error=new_error,
        limit=4 * native_error + 2 * u,
        ceiling=2 * terms * u / (1 - terms * u) if terms * u < 1 else None,
        difference=float(np.max(np.abs(new - native), initial=0.0)) / peak if peak else 0.0,
    )
