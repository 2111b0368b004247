"""Proves a fragment against the Conv it replaces: bit for bit on whole numbers, and its rounding against float64.

The proof runs on a micro-model: the site's Conv alone (between DequantizeLinear and QuantizeLinear when it is there),
rewritten by `substitute.rewrite` as the user's model will be. No form is used unproved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, numpy_helper

from dilrewrite.forms.builder import END
from dilrewrite.forms.fragment import CoreConv, CoreFill, Fragment, Node
from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.strategies import Refusal, parse, plan, strategies
from dilrewrite.model.convolve import Window, conv
from dilrewrite.model.elements import FLOATS, dtype
from dilrewrite.model.walk import ScopePath
from dilrewrite.proof.micro import Micro, build, concrete, footprint, input_shape, sample_extents, smaller, whole_input
from dilrewrite.runtimes import Array, Backend, CannotLoad, CannotRun, Options, Runnable, Session, backend
from dilrewrite.sites import Dequantized, Operand, Site
from dilrewrite.sites.find import find
from dilrewrite.splice.substitute import rewrite

PART_ELEMENTS = 2**20
"""How many weights are converted to the type of the ground truth at a time."""


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


KEPT_BYTES = 3 * 2**26
"""How much of the inputs and results of sites is kept between the proofs of their forms."""

Made = TypeVar("Made", bound="_Whole | _Reals")


class Prover:
    """Proves fragments, each distinct question once, and makes the data of a site once for all its forms."""

    def __init__(self, *, seed: int = 0, threads: int | None = None) -> None:
        self.seed = seed
        self.options = Options(threads=threads, isolated=False)
        self.runtime: Backend = backend("onnxruntime_cpu")
        self.reference: Backend = backend("reference")
        self._known: dict[tuple[object, ...], Proof] = {}
        self._kept: dict[tuple[object, ...], _Whole | _Reals] = {}

    def prove(self, site: Site, fragment: Fragment) -> Proof:
        """Return the proof of `fragment` for `site`; equal sites (but for their names) and fragments are asked once."""
        key = (anonymous(site), fragment.digest())
        if key not in self._known:
            sized = _sized(anonymous(site), fragment)
            if isinstance(sized, str):
                self._known[key] = _unproved(sized)
            else:
                self._known[key] = _prove(self, *sized)
        return self._known[key]

    def once(self, key: tuple[object, ...], make: Callable[[], Made]) -> Made:
        """Return what `make` returns, from memory where the key was asked shortly before."""
        found = cast("Made | None", self._kept.pop(key, None))
        made = make() if found is None else found
        self._kept[key] = made
        while sum(each.bytes for each in self._kept.values()) > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        return made


def anonymous(site: Site) -> Site:
    """Return the site without its names and places: what is left decides how its forms are proved."""

    def operand(given: Operand | None) -> Operand | None:
        kind: Literal["initializer", "computed"] = "initializer" if given and given.is_constant else "computed"
        return given and replace(given, kind=kind, name="", scope=ScopePath(), index=None)

    def quantization(given: Dequantized | None) -> Dequantized | None:
        return given and Dequantized(
            index=0,
            output="",
            source=cast("Operand", operand(given.source)),
            scale=cast("Operand", operand(given.scale)),
            zero_point=operand(given.zero_point),
            axis=given.axis,
        )

    part = replace(
        site.part,
        index=0,
        weight=cast("Operand", operand(site.weight)),
        bias=operand(site.bias),
        weight_quantization=quantization(site.weight_quantization),
        bias_quantization=quantization(site.bias_quantization),
        input_quantization=quantization(site.input_quantization),
    )
    return replace(
        site,
        scope=ScopePath(),
        where="",
        name="",
        nodes=tuple(range(len(site.nodes))),
        inputs=("",) * len(site.inputs),
        outputs=("",) * len(site.outputs),
        parts=(part,),
        follow=tuple(range(len(site.follow))),
        ir_version=min(site.ir_version, 10),  # newer ones change nothing here
    )


# -- sizes ----------------------------------------------------------------------------------------------------------


MOST_ELEMENTS = 3 * 2**27
"""A proof that would hold more numbers at once is not attempted: 1.5 GiB of them in float32."""


def _unproved(failure: str) -> Proof:
    return Proof(shapes=(), elements=0, backend="none", native_ran=False, rounding=None, failure=failure, ran=False)


def _sized(site: Site, fragment: Fragment) -> tuple[Site, Fragment] | str:
    """Return what to prove: site and form as they are, or both smaller, or why that cannot be."""
    geometry = smaller(site.geometry)
    if geometry != site.geometry:
        found = _replanned(site, geometry, fragment)
        if found is not None:
            site, fragment = _resized(site, geometry), found
    elements = max(
        footprint(concrete(site.geometry, extents)) // max(product(site.geometry.kernel), 4)
        for extents in sample_extents(site.geometry)
    )
    held = max(16 * elements, 6 * elements + (fragment.elements_moved or 0))  # the truth in float64, or the form
    if held > MOST_ELEMENTS:
        return f"its proof would hold {held / 2**20:,.0f} Mi numbers at once, above {MOST_ELEMENTS // 2**20} Mi"
    return site, fragment


def _replanned(site: Site, geometry: ConvGeometry, fragment: Fragment) -> Fragment | None:
    """Return the form planned for `geometry`, `None` where it is not the same form with other sizes."""
    if not fragment.spelling:
        return None
    name, strategy = parse(fragment.spelling)
    fixed, storage = site.weight.is_constant, site.storage
    same, other = (
        plan(name, strategy, each, fragment.opset, storage=storage, fixed_weights=fixed)
        for each in (site.geometry, geometry)
    )
    if isinstance(same, Refusal) or isinstance(other, Refusal) or same.digest() != fragment.digest():
        return None
    alike = _structure(fragment, site.geometry.group) == _structure(other, geometry.group)
    return other if alike else None


def _resized(site: Site, geometry: ConvGeometry) -> Site:
    outputs, group = geometry.out_channels, geometry.group
    weight, bias = site.weight, site.bias
    if weight.shape is not None and geometry.in_channels is not None and outputs is not None:
        weight = replace(weight, shape=(outputs, geometry.in_channels // group, *geometry.kernel))
        bias = bias and replace(bias, shape=bias.shape and (outputs,))
    return replace(site, meaning=geometry, parts=(replace(site.part, geometry=geometry, weight=weight, bias=bias),))


SIZES = {"Reshape": (1,), "Slice": (1, 2), "Concat": tuple(range(16))}
"""Which inputs of an operator hold sizes, of which only sign and END are compared; everything else must be equal."""


def _structure(fragment: Fragment, group: int) -> tuple[object, ...]:
    """Return the form but for its names and sizes: operators, what they read, pads, steps, Convs, weight edits."""
    names: dict[str, int] = {}

    def kinds(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(value if value == END else (value > 0) - (value < 0) for value in values)

    def read(name: str, sizes: bool) -> object:
        values = fragment.constants.get(name)
        if values is None:
            return names.setdefault(name, len(names))
        return kinds(values) if sizes else values

    def node(given: Node) -> tuple[object, ...]:
        sizes = SIZES.get(given.op, ())
        inputs = tuple(read(name, place in sizes) for place, name in enumerate(given.inputs))
        attributes = {
            key: kinds(value) if key in ("starts", "ends") and isinstance(value, tuple) else value
            for key, value in given.attributes.items()
        }
        return given.op, inputs, tuple(read(name, False) for name in given.outputs), tuple(sorted(attributes.items()))

    def core(given: CoreConv | CoreFill) -> tuple[object, ...]:
        if isinstance(given, CoreFill):
            return read(given.repeats, True), read(given.output, False)
        conv = replace(given, source="", output="", group=1)
        return read(given.source, False), read(given.output, False), Fraction(given.group, group), conv

    return (
        *map(node, fragment.enter),
        *map(core, fragment.core),
        *map(node, fragment.exit),
        read(fragment.result, False),
        fragment.partial,
    )


# -- truth -----------------------------------------------------------------------------------------------------------


def truth(
    geometry: ConvGeometry, x: Array, w: Array, b: Array | None, precise: type[np.floating[Any]] = np.float64
) -> NDArray[np.floating[Any]]:
    """Return the Conv in float64: exact for whole numbers below 2**53, the yardstick for rounding otherwise.

    `precise` is the type to compute in; NumPy's long double is finer where the machine has it, and slow.
    """
    spelled = {
        "auto_pad": geometry.auto_pad,
        "dilations": geometry.dilations,
        "group": geometry.group,
        "pads": [pad or 0 for pad in (*geometry.pads_begin, *geometry.pads_end)],
        "strides": geometry.strides,
    }
    # SAME_* from the specification, not from the code that is being proved
    window = Window.of(geometry.kernel, spelled).padded(geometry.auto_pad, x.shape[2:])
    exact_x = np.asarray(x, precise)
    # Weights in this type may be large: without groups, some output channels at a time.
    outputs = len(w) if geometry.group > 1 else max(1, PART_ELEMENTS * len(w) // max(1, w.size))
    parts = [
        conv(
            exact_x,
            np.asarray(w[start : start + outputs], precise),
            None if b is None else np.asarray(b[start : start + outputs], precise),
            window,
            precise,
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


def _prove(prover: Prover, site: Site, fragment: Fragment) -> Proof:
    geometry = site.geometry
    exact = _exact(prover, site, fragment, prover.runtime, "float32")
    if not exact.passed or site.input_quantization is not None:
        return exact
    if geometry.element == "float64":  # bfloat16 cannot hold the whole numbers; its rounding is measured below
        on_reference = _exact(prover, site, fragment, prover.reference, geometry.element)
        if not on_reference.passed:
            return on_reference
        exact = replace(exact, backend=f"{exact.backend}, {on_reference.backend}")
    elif _rounds_on(prover, site, fragment) is prover.reference:
        exact = replace(exact, backend=f"{exact.backend}, {prover.reference.name}")
    try:
        rounding = _rounding(prover, site, fragment)
        if geometry.element == "float16" and not fragment.partial and _overflows(prover, site, fragment):
            return replace(exact, failure="partial sums leave the range of float16, and the form does not say so")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    """Whole numbers for a site: inputs, exact results, and the original's own (`None`: it does not run)."""

    inputs: Sequence[Array]
    results: Sequence[Array]
    native: Sequence[Array] | None

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in (*self.inputs, *self.results, *(self.native or ())))


def _whole(
    prover: Prover, micro: Micro, geometry: ConvGeometry, rng: np.random.Generator, runtime: Backend, element: str
) -> _Whole:
    inputs, results = [], []
    for extents in sample_extents(geometry):
        sized = concrete(geometry, extents)
        x = whole_input(micro, sized, rng, element)
        inputs.append(x)
        exact = _expected(micro, sized, x)
        results.append(exact if micro.site.quantizes_output else exact.astype(dtype(element), copy=False))
    native = None
    if runs_natively(geometry):
        feeds = [{"x": x, **micro.feeds} for x in inputs]
        native = _outputs(runtime, micro.model, _options(prover, micro.site), feeds)
        native = [same if _differs(same, exact) else exact for same, exact in zip(native, results, strict=True)]
    return _Whole(inputs=inputs, results=results, native=native)


def _options(prover: Prover, site: Site) -> Options:
    return replace(prover.options, optimize=site.input_quantization is None)


def _exact(prover: Prover, site: Site, fragment: Fragment, runtime: Backend, element: str) -> Proof:
    """Run fragment and original on whole numbers; equal bit for bit to the exact result."""
    rng = np.random.default_rng(prover.seed)
    micro = build(site, rng, element)
    geometry = site.geometry
    name = f"{runtime.name} ({element} twin)" if element != geometry.element else runtime.name
    natively = runs_natively(geometry)
    shapes = tuple(input_shape(concrete(geometry, extents)) for extents in sample_extents(geometry))
    done = functools.partial(Proof, shapes=shapes, backend=name, rounding=None)
    try:  # one session at a time: each holds the weights
        data = prover.once(
            (site, runtime.name, element),
            lambda: _whole(prover, micro, geometry, rng, runtime, element),
        )
        new = rewrite(micro.model, [(micro.site, fragment)], find(micro.model).normalisations, _read).proto
        outputs = _outputs(runtime, new, _options(prover, site), [{"x": x, **micro.feeds} for x in data.inputs])
    except (CannotLoad, CannotRun) as error:
        return done(elements=0, native_ran=False, failure=str(error), ran=False)
    elements = sum(got.size for got in outputs)
    for x, exact, got, same in zip(data.inputs, data.results, outputs, data.native or outputs, strict=True):
        problem = _differs(got, exact)
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


def _expected(micro: Micro, geometry: ConvGeometry, x: Array) -> Array:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reals:
    """Random reals for a site: the input, the exact result with the size of its sums, and the original's own."""

    x: Array
    exact: NDArray[np.floating[Any]]
    size: NDArray[np.floating[Any]]
    native: Array

    @property
    def bytes(self) -> int:
        return self.x.nbytes + self.exact.nbytes + self.size.nbytes + self.native.nbytes

    def error(self, y: Array) -> float:
        """Return the largest error of `y` as a share of the size of its sum."""
        return float(np.max(np.abs(np.asarray(y, np.float64) - self.exact) / self.size, initial=0.0))


def _run(prover: Prover, runtime: Backend, model: ModelProto, x: Array, micro: Micro) -> Array:
    with _session(runtime, model, prover.options) as session:
        return next(iter(session.run({"x": x, **micro.feeds}).values()))


def _reals(prover: Prover, micro: Micro, site: Site, rng: np.random.Generator, runtime: Backend) -> _Reals:
    element = site.geometry.element
    extents = sample_extents(site.geometry)
    geometry = concrete(site.geometry, extents[1 % len(extents)])
    x = rng.standard_normal(input_shape(geometry)).astype(dtype(element))
    if runs_natively(site.geometry):
        native_model = micro.model
    else:  # the same Conv with its pads made explicit
        kept = plan("keep", strategies()["keep"], site.geometry, site.opset)
        if isinstance(kept, Refusal):
            raise CannotRun(f"the original has no runnable form: {kept.reason}")
        native_model = rewrite(micro.model, [(micro.site, kept)], (), _read).proto
    w = np.asarray(micro.weight, np.float64)
    if site.weight_quantization is not None:
        per_output = (-1, *(1,) * (w.ndim - 1)) if micro.w_scale.ndim else ()
        w = (w - micro.w_zero.reshape(per_output)) * micro.w_scale.reshape(per_output)
    # the yardstick must be finer than what it measures
    precise: type[np.floating[Any]] = np.longdouble if element == "float64" else np.float64
    bias = None if micro.bias is None else np.abs(micro.bias)
    size = truth(geometry, np.abs(np.asarray(x, np.float64)), np.abs(w), bias)
    size[size <= 0] = 1.0
    return _Reals(
        x=x,
        exact=truth(geometry, x, w, micro.bias, precise),
        size=size,
        native=_run(prover, runtime, native_model, x, micro),
    )


def _rounds_on(prover: Prover, site: Site, fragment: Fragment) -> Backend:
    """Return the runtime that tells a form's rounding: one that rounds each partial sum where there are some.

    ONNX Runtime's CPU provider keeps what lies between operators of float16 in float32.
    """
    element = site.geometry.element
    return prover.runtime if element == "float32" or (element == "float16" and not fragment.adds) else prover.reference


def _rounding(prover: Prover, site: Site, fragment: Fragment) -> Rounding:
    """Compare the errors of the new and the native form against float64, on random reals."""
    element = site.geometry.element
    runtime = _rounds_on(prover, site, fragment)
    rng = np.random.default_rng(prover.seed + 1)
    bare = replace(site, follow=())
    micro = build(bare, rng, element, reals=True)
    data = prover.once((bare, runtime.name), lambda: _reals(prover, micro, bare, rng, runtime))
    new_model = rewrite(micro.model, [(micro.site, fragment)], find(micro.model).normalisations, _read).proto
    new = _run(prover, runtime, new_model, data.x, micro)
    u = FLOATS[element].roundoff
    terms = product(micro.weight.shape[1:]) + 1
    native_error = data.error(data.native)
    native = np.asarray(data.native, np.float64)
    peak = float(np.max(np.abs(native), initial=0.0))
    difference = float(np.max(np.abs(np.asarray(new, np.float64) - native), initial=0.0))
    return Rounding(
        native_error=native_error,
        new_error=data.error(new),
        limit=4 * native_error + 2 * u,
        ceiling=2 * terms * u / (1 - terms * u) if terms * u < 1 else None,
        difference=difference / peak if peak else 0.0,
    )


def _overflows(prover: Prover, site: Site, fragment: Fragment) -> bool:
    """Say whether the form gives Inf or NaN where the original gives a number, on a runtime that rounds each operator.

    Two neighbouring taps see the same large input with opposite weights: each alone leaves the range of float16,
    together they are 0.
    """
    geometry = site.geometry
    if not fragment.adds:
        return False  # every output is that of one Conv
    part = replace(site.part, weight=replace(site.weight, kind="computed"), weight_quantization=None)
    given = replace(site, follow=(), parts=(part,))
    micro = build(given, np.random.default_rng(prover.seed), "float16", reals=True)
    keep = plan("keep", strategies()["keep"], geometry, site.opset)
    assert isinstance(keep, Fragment), "its pads could be made explicit, or there were no rounding"
    x = np.full(input_shape(concrete(geometry, sample_extents(geometry)[0])), 2.0**8, np.float16)

    def run(form: Fragment, w: Array) -> Array:
        model = rewrite(micro.model, [(micro.site, form)], (), _read).proto
        return _run(prover, prover.reference, model, x, replace(micro, feeds={**micro.feeds, "w": w}))

    with np.errstate(over="ignore", invalid="ignore"):
        for taps in _neighbours(geometry):
            w = np.zeros(micro.weight.shape, np.float16)
            for tap, value in zip(taps, (2.0**9, -(2.0**9)), strict=True):
                np.moveaxis(w, (0, 1), (-2, -1))[tap][:, 0] = value
            if np.any(np.isfinite(run(keep, w)) & ~np.isfinite(run(fragment, w))):
                return True
    return False


def _neighbours(geometry: ConvGeometry) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield pairs of taps that stand side by side on one axis, and in the middle of the others."""
    middle = tuple(k // 2 for k in geometry.kernel)
    for axis in geometry.axes:
        for first in range(geometry.kernel[axis] - 1):
            yield (
                (*middle[:axis], first, *middle[axis + 1 :]),
                (*middle[:axis], first + 1, *middle[axis + 1 :]),
            )
