"""Proves a fragment against the site it replaces: bit for bit on whole numbers, and its rounding against float64.

The proof runs on a sub-model: the nodes of the site, cut out of the user's model, before and after
`splice.rewrite` put the fragment in their place. No form is used unproved.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from dilrewrite.forms.builder import END
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import CoreConv, CoreFill, Fragment, Node
from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.forms.strategies import Refusal, parse, plan, strategies
from dilrewrite.model.elements import FLOATS, dtype
from dilrewrite.model.walk import copied
from dilrewrite.proof import requantised, sandwich
from dilrewrite.proof.carve import Source, carve
from dilrewrite.proof.chains import ChainProver
from dilrewrite.proof.exact import exact
from dilrewrite.proof.numbers import EXACT_LIMIT, QUANTIZING, Numbers, entering, entering_shape, is_setting, resized
from dilrewrite.proof.proof import Proof as Proof
from dilrewrite.proof.proof import Rounding as Rounding
from dilrewrite.proof.proof import differs
from dilrewrite.proof.sizes import LIMIT_ELEMENTS, concrete, footprint, input_shape, sample_extents, smaller
from dilrewrite.runtimes import Array, Backend, CannotLoad, CannotRun, Options, Runnable, backend, timed_backends
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite

KEPT_BYTES = 3 * 2**26
"""How much of the inputs and results of sites is kept between the proofs of their forms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Data:
    """What the forms of a site are held to: inputs, exact results, and the original's own (`None`: it does not run).

    `sizes`: of the sums that results in real numbers are rounded from. `unrunnable`: why ONNX Runtime does not run an
    operator on integers, whose forms then run where it does.
    """

    inputs: Sequence[Array]
    results: Sequence[Array]
    native: Sequence[Array] | None
    sizes: Sequence[Array] = ()
    unrunnable: str = ""

    @property
    def bytes(self) -> int:
        return sum(array.nbytes for array in (*self.inputs, *self.results, *(self.native or ()), *self.sizes))


class Prover:
    """Proves fragments, each distinct question once, and makes the data of a site once for all its forms.

    `read` gives the values of a constant of the model, external ones too; they are asked for regions.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        threads: int | None = None,
        read: Callable[[TensorProto], Array] = numpy_helper.to_array,
    ) -> None:
        self.seed, self.threads, self.read = seed, threads, read
        self._chains = ChainProver(seed=seed, threads=threads, read=read)
        self.runtime: Backend = backend("onnxruntime_cpu")
        self.reference: Backend = backend("reference")
        self._known: dict[tuple[object, ...], Proof] = {}
        self._kept: dict[tuple[object, ...], _Data] = {}

    def prove(
        self, source: Source, site: Site, fragment: Fragment, *, seen: Sequence[Mapping[str, Array]] = ()
    ) -> Proof:
        """Return the proof of `fragment` for a site of `source`; equal questions, but for names, are asked once.

        `seen`: what entered a region in runs of the whole model (see `observe.py`), by tensor.
        """
        if isinstance(site.meaning, Chain):
            return self._chains.prove(source, site, fragment, seen)
        key = (outline(source, site), fragment.digest(), site.key if fragment.in_floats else "")
        if key not in self._known:
            try:
                self._known[key] = _prove(self, source, *_sized(site, fragment, all_channels=fragment.in_floats))
            except LookupError as error:
                self._known[key] = Proof(
                    shapes=(), elements=0, backend="none", native_ran=False, failure=str(error), ran=False
                )
        return self._known[key]

    def once(self, key: tuple[object, ...], make: Callable[[], _Data]) -> _Data:
        """Return what `make` returns, from memory where the key was asked shortly before."""
        data = self._kept.pop(key, None) or make()
        self._kept[key] = data
        while sum(each.bytes for each in self._kept.values()) > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]
        return data


def outline(source: Source, site: Site) -> tuple[object, ...]:
    """Return what decides how the forms of a site are proved: all but its names, places and numbers."""
    operands = [operand for part in site.parts for operand in (part.weight, part.bias) if operand is not None]
    constant = {operand.name: operand.is_constant for operand in operands}

    def outside(word: str, place: int, node: NodeProto) -> ValueInfoProto | TensorProto:
        name = node.input[place]
        given = source.constant(site.scope, name)
        if given is None or not constant.get(name, True):
            return ValueInfoProto(name=f"{word}_{place}")
        own = name not in constant and word.partition(".")[0] not in QUANTIZING
        if own and (is_setting(given) or node.op_type == "Pad"):
            return copied(given)
        return TensorProto(data_type=given.data_type, dims=given.dims)

    cut = carve(source.proto, site.scope, _nodes(source, site), outside, ())
    shapes = tuple(operand.shape for operand in operands)
    return cut.SerializeToString(deterministic=True), site.meaning, site.storage, shapes


def _nodes(source: Source, site: Site) -> dict[str, NodeProto]:
    """Return the nodes to prove a site with: its own, and an exact activation, LeakyRelu by one half, for any other."""
    if isinstance(site.meaning, Sandwich):
        return sandwich.nodes_of(source, site)
    nodes = source.parts(site)
    for index in site.follow:
        given = source.scope(site.scope).nodes[index]
        if given.op_type == "QuantizeLinear":
            kept = [attribute for attribute in given.attribute if attribute.name == "output_dtype"]
            nodes["quantized"] = NodeProto(
                op_type=given.op_type, domain=given.domain, input=given.input, output=given.output, attribute=kept
            )
        else:
            nodes["active"] = helper.make_node("LeakyRelu", given.input[:1], given.output, alpha=0.5)
    return nodes


def _exactly(node: NodeProto) -> NodeProto:
    """Return a node that gives whole numbers for whole numbers, like the given one: LpPool without powers."""
    if node.op_type != "LpPool":
        return node
    copy = copied(node)
    kept = [attribute for attribute in node.attribute if attribute.name != "p"]
    del copy.attribute[:]
    copy.attribute.extend((*kept, helper.make_attribute("p", 1)))
    return copy


def quantises(site: Site) -> bool:
    """Say whether a site computes with integers: it is proved as it is, with graph optimisations off."""
    return site.storage is not None or (isinstance(site.meaning, Sandwich) and site.meaning.quantizes)


class Trial:
    """A site's sub-model with numbers in it, and the site as it stands there. LookupError: by itself it is none."""

    def __init__(self, numbers: Numbers) -> None:
        nodes = _nodes(numbers.source, numbers.site)
        if not numbers.reals:
            nodes = {word: _exactly(node) for word, node in nodes.items()}
        self.numbers, folds = numbers, isinstance(numbers.site.meaning, Sandwich)
        output = sandwich.output_of(numbers.site, nodes) if folds else list(nodes)[-1]
        self.model = carve(numbers.source.proto, numbers.site.scope, nodes, numbers, [output])
        self.found = find(self.model, sandwiches=folds)
        if folds:
            alike = [own for own in self.found.sandwiches if own.output == output]
        else:
            every = (*self.found.sites, *self.found.pools)
            alike = [own for own in every if len(own.nodes) == len(numbers.site.nodes)]
        if not alike or (folds and alike[0].geometry != numbers.site.geometry):
            raise LookupError("its nodes by themselves are no site")
        self.site = alike[0]

    @property
    def runs_natively(self) -> bool:
        """Say whether ONNX Runtime on the CPU, which proofs run on, takes the Convs as they are."""
        return not any(timed_backends()["onnxruntime_cpu"].refuses(part.geometry) for part in self.site.parts)

    def rewritten(self, fragment: Fragment) -> ModelProto:
        """Return the sub-model with the fragment in place of the site."""
        if isinstance(self.site.meaning, Sandwich):
            names = {place: node.name for place, node in enumerate(self.model.graph.node)}
            words = sandwich.words_of(self.numbers.source, self.numbers.site)
            fragment = sandwich.fitted(fragment, words, self.site, names)
        return rewrite(self.model, [(self.site, fragment)], self.found.normalisations, numpy_helper.to_array).proto

    @property
    def on_integers(self) -> bool:
        """Say whether the operator itself computes on integers."""
        return self.numbers.site.part.on_integers

    def run(self, runtime: Backend, model: ModelProto, inputs: Sequence[Array], threads: int | None) -> list[Array]:
        """Return the output of the sub-model, or its rewritten form, for each input.

        Graph optimisations are on, and off for quantised sites; of an operator on integers all outputs come twice: with
        them off and with them on.
        """
        site, outputs = self.numbers.site, []
        for optimize in (False, True) if self.on_integers else (not quantises(site),):
            options = Options(threads=threads, isolated=False, optimize=optimize)
            with runtime.session(Runnable(model=model.SerializeToString()), options) as session:
                outputs += [next(iter(session.run({"x": x, **self.numbers.feeds}).values())) for x in inputs]
        return outputs

    def unloadable(self, runtime: Backend, model: ModelProto) -> str:
        """Return why the sub-model of a quantised site, or its rewritten form, does not load with optimisations on."""
        try:
            runtime.session(Runnable(model=model.SerializeToString()), Options(isolated=False)).close()
        except CannotLoad as error:
            return str(error)
        return ""


# -- sizes ----------------------------------------------------------------------------------------------------------

MOST_ELEMENTS = 3 * 2**27
"""A proof that would hold more numbers at once is not attempted: 1.5 GiB of them in float32."""


def _sized(site: Site, fragment: Fragment, *, all_channels: bool = False) -> tuple[Site, Fragment]:
    """Return what to prove: site and form as they are, or both smaller; LookupError says why that cannot be.

    `all_channels`: none goes, for the weights count.
    """
    geometry = entering(site)
    small = _shorter(geometry) if all_channels else smaller(geometry)
    if small != geometry and len(site.nodes) == 1 and (other := _replanned(site, small, fragment)) is not None:
        geometry, site, fragment = small, resized(site, small), other
    sizes = (concrete(geometry, extents) for extents in sample_extents(geometry))
    elements = max(map(footprint, sizes)) // max(product(geometry.kernel), 4)
    held = max(16 * elements, 6 * elements + (fragment.elements_moved or 0))  # the truth in float64, or the form
    if held > MOST_ELEMENTS:
        most = MOST_ELEMENTS // 2**20
        raise LookupError(f"its proof would hold {held / 2**20:,.0f} Mi numbers at once, above {most} Mi")
    return site, fragment


def _shorter(geometry: ConvGeometry, limit: int = LIMIT_ELEMENTS) -> ConvGeometry:
    """Return a smaller geometry with all of its channels."""
    channels = {name: getattr(geometry, name) for name in ("group", "in_channels", "out_channels")}
    return replace(smaller(geometry, limit), **channels)


def _replanned(site: Site, geometry: ConvGeometry, fragment: Fragment) -> Fragment | None:
    """Return the form planned for `geometry`, `None` where it is not the same form with other sizes."""
    if not fragment.spelling:
        return None
    name, strategy = parse(fragment.spelling)
    how = functools.partial(plan, opset=fragment.opset, storage=site.storage, fixed_weights=site.fixed_weights)
    same, other = (how(name, strategy, each) for each in (site.geometry, geometry))
    if isinstance(same, Refusal) or isinstance(other, Refusal) or same.digest() != fragment.digest():
        return None
    return other if _structure(fragment, site.geometry.group) == _structure(other, geometry.group) else None


SIZES = {"Reshape": (1,), "Slice": (1, 2), "Concat": tuple(range(16))}
"""Which inputs of an operator hold sizes, of which only sign and END are compared; everything else must be equal."""


def _structure(fragment: Fragment, group: int) -> object:
    """Return the form but for its names and sizes: operators, what they read, pads, steps, Convs, weight edits."""
    names: dict[str, int] = {}
    steps: list[object] = []

    def signs(values: Sequence[int]) -> tuple[int, ...]:
        return tuple(value if value == END else (value > 0) - (value < 0) for value in values)

    def read(name: str, *, sizes: bool = False) -> object:
        values = fragment.constants.get(name)
        if values is None:
            return names.setdefault(name, len(names))
        return signs(values) if sizes else values

    for step in fragment.steps:
        if isinstance(step, Node):
            sizes = SIZES.get(step.op, ())
            inputs = [read(name, sizes=place in sizes) for place, name in enumerate(step.inputs)]
            if step.op == "Gather" and (places := fragment.constants.get(step.inputs[1])):
                inputs[1] = places[0], sorted({b - a for a, b in itertools.pairwise(places)})
            attributes = {
                key: signs(value) if key in ("starts", "ends") and isinstance(value, tuple) else value
                for key, value in step.attributes.items()
            }
            steps.append((step.op, inputs, [read(name) for name in step.outputs], attributes))
        elif isinstance(step, CoreFill):
            steps.append((read(step.repeats, sizes=True), read(step.output)))
        elif isinstance(step, CoreConv):
            conv = replace(step, source="", output="", group=1)
            steps.append((read(step.source), read(step.output), Fraction(step.group, group), conv))
    return steps, read(fragment.results[0]), fragment.partial


# -- the proof -------------------------------------------------------------------------------------------------------


def _prove(prover: Prover, source: Source, site: Site, fragment: Fragment) -> Proof:
    geometry = entering(site)
    whole = _exact(prover, source, site, fragment, "float32" if geometry.element in FLOATS else geometry.element)
    if whole.passed and fragment.in_floats:
        return _requantised(prover, source, site, fragment, whole)
    if not whole.passed or quantises(site):
        return whole
    if geometry.element == "float64":  # bfloat16 cannot hold the whole numbers; its rounding is measured below
        own = _exact(prover, source, site, fragment, geometry.element)
        if not own.passed:
            return own
        whole = replace(whole, backend=f"{whole.backend}, {own.backend}")
    elif _rounds_on(prover, site, fragment) is prover.reference:
        whole = replace(whole, backend=f"{whole.backend}, {prover.reference.name}")
    try:
        rounding = _rounding(prover, source, site, fragment)
        if geometry.element == "float16" and not fragment.partial and _overflows(prover, source, site, fragment):
            return replace(whole, failure="partial sums leave the range of float16, and the form does not say so")
    except (CannotLoad, CannotRun) as error:
        return replace(whole, failure=f"rounding: {error}", ran=False)
    failure = None
    if not rounding.passed:
        share, native, limit = rounding.new_error, rounding.native_error, rounding.limit
        limit = min(limit, rounding.ceiling or limit)
        failure = f"rounding: error {share:.3g} of Conv(|x|,|w|), native {native:.3g}, limit {limit:.3g}"
    return replace(whole, rounding=rounding, failure=failure)


def _whole(prover: Prover, trial: Trial, runtime: Backend, shapes: Sequence[tuple[int, ...]]) -> _Data:
    """Make whole numbers for a site."""
    numbers, results = trial.numbers, []
    inputs = [numbers.input(entering_shape(numbers.site, shape)) for shape in shapes]
    for x in inputs:
        feeds = {"x": x, **numbers.feeds}
        y = exact(trial.model, feeds)
        results.append(y if trial.site.quantizes_output else y.astype(dtype(numbers.element), copy=False))
        if len(trial.site.parts) > 1 and exact(trial.model, feeds, magnitudes=True).max(initial=0) > EXACT_LIMIT:
            raise CannotRun("its sums leave the whole numbers that float32 holds")
    inputs, results = (each * (2 if trial.on_integers else 1) for each in (inputs, results))  # see `Trial.run`
    native, unrunnable = None, ""
    if trial.runs_natively:
        try:
            outputs = trial.run(runtime, trial.model, inputs[: len(shapes)], prover.threads)
            native = [same if differs(same, y) else y for same, y in zip(outputs, results, strict=True)]
        except (CannotLoad, CannotRun) as error:
            if not trial.on_integers:
                raise
            unrunnable = str(error)
    return _Data(inputs=inputs, results=results, native=native, unrunnable=unrunnable)


def _exact(prover: Prover, source: Source, site: Site, fragment: Fragment, element: str) -> Proof:
    """Run fragment and original on whole numbers of `element`; equal bit for bit to the exact result."""
    runtime, geometry = prover.reference if element == "float64" else prover.runtime, entering(site)
    trial = Trial(Numbers(source=source, site=site, element=element, rng=np.random.default_rng(prover.seed)))
    shapes = tuple(input_shape(concrete(geometry, extents)) for extents in sample_extents(geometry))
    twin = f" ({element} twin)" if element != geometry.element else ""
    done = functools.partial(Proof, shapes=shapes, backend=f"{runtime.name}{twin}")
    try:  # one session at a time: each holds the weights
        key = outline(source, site), runtime.name, element
        data = prover.once(key, lambda: _whole(prover, trial, runtime, shapes))
        if data.unrunnable:
            runtime = prover.reference
            done = functools.partial(done, backend=runtime.name)
        rewritten = trial.rewritten(fragment)
        outputs = trial.run(runtime, rewritten, data.inputs[: len(shapes)], prover.threads)
        quantised = trial.site.storage is not None and not trial.on_integers
        if (
            quantised
            and (reason := trial.unloadable(runtime, rewritten))
            and not trial.unloadable(runtime, trial.model)
        ):
            raise CannotLoad(f"with graph optimisations on: {reason}")
    except (CannotLoad, CannotRun) as error:
        return done(elements=0, native_ran=False, failure=str(error), ran=False)
    failure = None
    for x, y, got, same in zip(data.inputs, data.results, outputs, data.native or outputs, strict=True):
        problem, against = differs(got, y), differs(got, same)
        if problem or against:
            failure = f"input {list(x.shape)}: {problem or f'against the original: {against}'}"
            break
    elements = sum(got.size for got in outputs)
    return done(elements=elements, native_ran=data.native is not None, failure=failure)


def _requantised(prover: Prover, source: Source, site: Site, fragment: Fragment, whole: Proof) -> Proof:
    """Return the proof of a form of integers in float32 with its error, of the model's own weights and scales."""
    small = _shorter(entering(site), requantised.LIMIT_ELEMENTS)
    if small != entering(site) and (other := _replanned(site, small, fragment)) is not None:
        site, fragment = resized(site, small), other
    rng, element = np.random.default_rng(prover.seed + 2), entering(site).element
    trial = Trial(own := requantised.Own(source=source, site=site, element=element, rng=rng, read=prover.read))
    _, _, refused = requantised.bound(own)
    if refused:
        return replace(whole, failure=refused, ran=False)
    runtime = prover.runtime if whole.native_ran else prover.reference
    after = trial.rewritten(fragment)
    shapes = [input_shape(concrete(entering(site), extents)) for extents in sample_extents(entering(site))[:2]]
    try:
        error, problem = requantised.measured(
            own, trial.model, lambda data: trial.run(runtime, after, data, prover.threads), shapes
        )
    except (CannotLoad, CannotRun) as failure:
        return replace(whole, failure=str(failure), ran=False)
    return replace(whole, requantised=error, failure=problem)


def _reals(prover: Prover, trial: Trial, runtime: Backend) -> _Data:
    """Make random reals for a site, and what it gives in numbers finer than those that are measured."""
    geometry, native = entering(trial.numbers.site), trial.model
    extents = sample_extents(geometry)
    x = trial.numbers.input(
        entering_shape(trial.numbers.site, input_shape(concrete(geometry, extents[1 % len(extents)])))
    )
    if not trial.runs_natively:  # the same Conv with its pads made explicit
        kept = plan("keep", strategies()["keep"], geometry, trial.site.opset)
        if isinstance(kept, Refusal):
            raise CannotRun(f"the original has no runnable form: {kept.reason}")
        native = trial.rewritten(kept)
    feeds = {"x": x, **trial.numbers.feeds}
    size = exact(trial.model, feeds, magnitudes=True)
    size[size <= 0] = 1.0
    result = exact(trial.model, feeds, np.longdouble if geometry.element == "float64" else np.float64)
    return _Data(inputs=[x], results=[result], native=trial.run(runtime, native, [x], prover.threads), sizes=[size])


def _rounds_on(prover: Prover, site: Site, fragment: Fragment) -> Backend:
    """Return the runtime that tells a form's rounding: one that rounds each partial sum where there are some.

    ONNX Runtime's CPU provider keeps what lies between operators of float16 in float32.
    """
    element = entering(site).element
    return prover.runtime if element == "float32" or (element == "float16" and not fragment.adds) else prover.reference


def _rounding(prover: Prover, source: Source, site: Site, fragment: Fragment) -> Rounding:
    """Compare the errors of the new and the native form against float64, on random reals."""
    element, runtime = entering(site).element, _rounds_on(prover, site, fragment)
    bare = replace(site, follow=())
    rng = np.random.default_rng(prover.seed + 1)
    trial = Trial(Numbers(source=source, site=bare, element=element, rng=rng, reals=True))
    data = prover.once((outline(source, bare), runtime.name), lambda: _reals(prover, trial, runtime))
    outputs = *(data.native or ()), *trial.run(runtime, trial.rewritten(fragment), data.inputs, prover.threads)
    native, new = (np.asarray(y, np.float64) for y in outputs)
    errors = [float(np.max(np.abs(y - data.results[0]) / data.sizes[0], initial=0.0)) for y in (native, new)]
    u, terms = FLOATS[element].roundoff, trial.numbers.additions
    peak = float(np.max(np.abs(native), initial=0.0))
    return Rounding(
        native_error=errors[0],
        new_error=errors[1],
        limit=4 * errors[0] + 2 * u,
        ceiling=2 * terms * u / (1 - terms * u) if terms * u < 1 else None,
        difference=float(np.max(np.abs(new - native), initial=0.0)) / peak if peak else 0.0,
    )


def _overflows(prover: Prover, source: Source, site: Site, fragment: Fragment) -> bool:
    """Say whether the form gives Inf or NaN where the original gives a number, on a runtime that rounds each operator.

    Two neighbouring taps, in the middle of the other axes, see the same large input with opposite weights: each alone
    leaves the range of float16, together they are 0.
    """
    if not fragment.adds:
        return False  # every output is that of one Conv
    bare = replace(site, follow=(), parts=(replace(site.part, weight_quantization=None), *site.parts[1:]))
    rng = np.random.default_rng(prover.seed)
    trial = Trial(Numbers(source=source, site=bare, element="float16", rng=rng, reals=True, given=True))
    geometry, models = entering(site), (trial.model, trial.rewritten(fragment))
    shape = entering_shape(site, input_shape(concrete(geometry, sample_extents(geometry)[0])))
    x = np.full(shape, 2.0**8, np.float16)
    kernel = site.part.geometry.kernel
    middle = tuple(k // 2 for k in kernel)
    with np.errstate(over="ignore", invalid="ignore"):
        for axis, first in ((axis, first) for axis, k in enumerate(kernel) for first in range(k - 1)):
            w = trial.numbers.feeds["w"] = np.zeros(trial.numbers.stored, np.float16)
            taps: list[int | slice] = [*middle[:axis], slice(first, first + 2), *middle[axis + 1 :]]
            places = (slice(None), 0, *taps)
            w[places] = 2.0**9, -(2.0**9)
            before, after = (trial.run(prover.reference, model, [x], prover.threads)[0] for model in models)
            if np.any(np.isfinite(before) & ~np.isfinite(after)):
                return True
    return False
