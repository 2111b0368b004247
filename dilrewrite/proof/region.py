"""A region to prove: its parts, and the sizes at which it can be."""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, TypeProto, ValueInfoProto, helper

from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import CoreConv, CoreFill, Fragment, Kept
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.lift import BROADCAST, ELEMENTWISE
from dilrewrite.model.elements import ELEMENTS, FLOATS, NUMBERED, dtype
from dilrewrite.model.light import without_weights
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.model.walk import copied
from dilrewrite.proof.carve import Source
from dilrewrite.proof.cut import Place, cut
from dilrewrite.proof.standins import SUMMING
from dilrewrite.runtimes import Array, Backend, CannotRun, Options, Runnable, Session, backend
from dilrewrite.sites import Site
from dilrewrite.sites.scopes import scopes

Feeds = Mapping[str, Array]
"""What enters a region, by tensor."""
Constants = Mapping[Place, Array]
"""What the nodes of a region read besides."""

SHORT_WORK = 2**26
"""A case of more multiplications is shortened for those runs that are slow."""
TINY = (1, 2, 3, 5)
"""Lengths that may be below the dilation."""
MOST_STEPS = 8
"""So many lengths are tried above the smallest: every remainder of most blocks."""
MOST_BYTES = 2**30
"""A region with larger weights is not proved: as a model of its own it would be too large for a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """What the original gives on reals: in its own precision, and in float64."""

    feeds: Feeds
    native: Mapping[str, Array]
    truth: Sequence[Array]


class Runs:
    """What models of regions are run with, in this process, as they are: without the runtime's optimisations."""

    def __init__(self, *, seed: int, threads: int | None) -> None:
        self._last: tuple[object, Own] | None = None
        self.seed, self.threads = seed, threads
        self.runtime: Backend = backend("onnxruntime_cpu")
        self.reference: Backend = backend("reference")

    def once(self, key: object, make: Callable[[], Own]) -> Own:
        """Return what `make` returns, from memory where the key is the last one."""
        if self._last is None or self._last[0] != key:
            self._last = key, make()
        return self._last[1]

    def opened(self, model: ModelProto, runtime: Backend | None = None) -> Session:
        """Load a model. Raises CannotLoad."""
        options = Options(threads=self.threads, isolated=False, optimize=False)
        return (runtime or self.runtime).session(Runnable(model=model.SerializeToString()), options)


class Region:
    """A region to prove. LookupError where too little is known of it."""

    def __init__(
        self, runs: Runs, source: Source, site: Site, fragment: Fragment, constants: Constants, seen: Sequence[Feeds]
    ) -> None:
        assert isinstance(site.meaning, Chain), "a region"
        self.runs, self.site, self.chain = runs, site, site.meaning
        self.fragment, self.constants = fragment, constants
        nodes = source.scope(site.scope).nodes
        self.nodes = [nodes[place] for place in site.nodes]
        self.element = next(iter(self.chain.convs.values())).element if self.chain.convs else "float32"
        self.runtime = runs.runtime if self.element in ("float32", "float16") else runs.reference
        self.kept = self._kept()
        self.seen = [feeds for feeds in seen if set(site.inputs) <= set(feeds)]
        self.elements = (
            {name: _element_of(self.seen[0][name]) for name in site.inputs} if self.seen else _elements(source, site)
        )
        if sum(values.nbytes for values in constants.values()) > MOST_BYTES:
            raise LookupError("its weights are too large to prove it")
        self.cut = cut(site, self.nodes, constants, self.elements)
        self._light = without_weights(self.cut.model)
        known = _types(self._light)
        self.floats = [
            all(name not in known or NUMBERED[known[name].elem_type].name in FLOATS for name in node.output)
            for node in self.nodes
        ]

    @property
    def outline(self) -> tuple[object, ...]:
        """Return what decides how it is proved."""
        return self.chain, self.fragment.digest(), self.about

    @functools.cached_property
    def about(self) -> bytes:
        """Return a digest of what the original does, and of what was seen of it."""
        digest = hashlib.blake2b(self._light.SerializeToString(deterministic=True))
        for _, values in sorted(self.constants.items()):
            digest.update(np.ascontiguousarray(values).tobytes())
        for values in (feeds[name] for feeds in self.seen for name in self.site.inputs):
            digest.update(repr(values.shape).encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        return digest.digest()

    def _kept(self) -> frozenset[int]:
        """Return the places of the nodes that go on in the fragment, each once."""
        convs = list(self.chain.convs)
        steps = self.fragment.steps
        if any(isinstance(step, CoreFill) for step in steps):
            raise LookupError("nothing is known of a region's fill")
        places = Counter(
            step.of if isinstance(step, Kept) else convs[step.of] for step in steps if isinstance(step, Kept | CoreConv)
        )
        if any(count > 1 and self.nodes[place].op_type in SUMMING for place, count in places.items()):
            raise LookupError("a form that takes an operator apart is not known to the proof of regions")
        return frozenset(places)

    # -- sizes -------------------------------------------------------------------------------------------------------

    def cases(self) -> list[Feeds]:
        """Return what to run on, by size, of which some may not run: what was seen, or else what may be.

        Where all that was seen is large, its beginning comes first.
        """
        cases = self._smallest_first()
        return [*self._shortened(cases[0]), *cases]

    def _smallest_first(self) -> list[Feeds]:
        by_shapes = {
            tuple(feeds[name].shape for name in self.site.inputs): feeds for feeds in self.seen or self._made()
        }
        return sorted(by_shapes.values(), key=_size)

    def _made(self) -> list[Feeds]:
        rng = np.random.default_rng(0)
        if any(name not in self.chain.shapes for name in self.chain.inputs):
            raise LookupError("nothing is known of the sizes of what enters it")
        span = max((g.span(axis) for g in self.chain.convs.values() for axis in g.axes), default=1)
        cases: list[Feeds] = []
        for length in (2 * span + 2, 2 * span + 1, 64, 128, 256):
            named = [
                (site, self._filled(own, length)) for site, own in zip(self.site.inputs, self.chain.inputs, strict=True)
            ]
            cases.append({name: _random(self.elements[name], shape, rng) for name, shape in named})
        return cases

    def _filled(self, name: str, length: int) -> tuple[int, ...]:
        """Return a shape for what enters: two images, the channels that a Conv needs, `length` for unknown extents."""
        shape = self.chain.shapes[name]
        numbers = [number for _, number in self.chain.extents.get(name, ())]
        more = [0] * (len(shape) - len(numbers)) + numbers
        filled = [size or max(1, length + number) for size, number in zip(shape, more, strict=True)]
        for axis, size in enumerate((2, self._channels(name))):
            if axis < len(shape) and shape[axis] is None and size:
                filled[axis] = size
        return tuple(filled)

    def _channels(self, name: str) -> int | None:
        """Return the channels of what enters: those of the first Conv that reads it, or something of its shape."""
        alike = {name}
        for place, link in enumerate(self.chain.links):
            if link.inputs and link.inputs[0] in alike and place in self.chain.convs:
                return self.chain.convs[place].in_channels
            if alike.intersection(link.inputs) and (link.op in ELEMENTWISE or link.op in BROADCAST):
                alike.update(link.outputs)
        return None

    def _shortened(self, feeds: Feeds) -> list[Feeds]:
        """Return the beginning of a case that is much work."""
        work, base = self.work(feeds), self._base(feeds)
        if work <= SHORT_WORK or not base:
            return []
        return self._beginnings(feeds, [max(1, base * SHORT_WORK // work)])

    def _base(self, feeds: Feeds) -> int:
        """Return the smallest of the unknown extents, 0 where all are known."""
        return min((feeds[name].shape[axis] for name, axes in self._unknown().items() for axis in axes), default=0)

    def _beginnings(self, feeds: Feeds, lengths: Sequence[int]) -> list[Feeds]:
        """Return the beginnings of a case along the axes of unknown extent, by the length of the smallest of these."""
        unknown, base = self._unknown(), self._base(feeds)

        def cut(name: str, values: Array, length: int) -> Array:
            parts = [slice(None)] * values.ndim
            for axis in unknown[name]:
                parts[axis] = slice(-(-values.shape[axis] * length // base))
            return values[tuple(parts)]

        short = [length for length in lengths if length < base]
        return [{name: cut(name, values, length) for name, values in feeds.items()} for length in short]

    def _unknown(self) -> dict[str, list[int]]:
        """Return the axes of unknown extent of what enters."""
        shapes = [self.chain.shapes.get(own, ()) for own in self.chain.inputs]
        return {
            name: [axis for axis, size in enumerate(shape) if axis and size is None]
            for name, shape in zip(self.site.inputs, shapes, strict=True)
        }

    def work(self, feeds: Feeds) -> int:
        """Return about how many multiplications its Convs make: as many for each element as in the smallest case."""
        return int(_size(feeds) * self._density)

    @functools.cached_property
    def _density(self) -> float:
        """Return the multiplications for each element that enters, from a run of the original; 1 if there is none.

        Shape inference would end this process where a size comes out negative.
        """
        model = copied(self.cut.model)
        del model.graph.output[:]
        for place in self.chain.convs:
            told = f"sizes/{place}"
            model.graph.node.append(helper.make_node("Shape", self.nodes[place].output[:1], [told]))
            model.graph.output.append(ValueInfoProto(name=told))
        with self.runs.opened(model, self.runtime) as session:
            for feeds in self._smallest_first():
                try:
                    sizes = session.run(feeds).values()
                except CannotRun:
                    continue
                pairs = zip(sizes, self.chain.convs.values(), strict=True)
                work = sum(int(np.prod(shape)) * _taps(geometry) for shape, geometry in pairs)
                return 1 + work / max(_size(feeds), 1)
        return 1.0

    def more(self, feeds: Feeds) -> Iterator[Feeds]:
        """Yield further sizes like those of `feeds`: other batches, other lengths; not all of them need run."""
        shapes = [self.chain.shapes.get(own, (0,)) for own in self.chain.inputs]
        if all(shape and shape[0] is None for shape in shapes):
            for batch in (1, 3):
                yield {name: _resized(values, (batch, *values.shape[1:])) for name, values in feeds.items()}
        unknown = self._unknown()
        if not any(unknown.values()):
            return
        yield from self._beginnings(feeds, TINY)
        blocks = [self.chain.block, *(block for block, _ in self.chain.nests)] if self.chain.block else [(3,)]
        for step in range(1, min(math.prod(map(max, blocks)), MOST_STEPS) + 1):
            wanted = {
                name: tuple(size + step if axis in unknown[name] else size for axis, size in enumerate(values.shape))
                for name, values in feeds.items()
            }
            yield {name: _resized(values, wanted[name]) for name, values in feeds.items()}


def _element_of(values: Array) -> str:
    return next(element.name for element in ELEMENTS if element.dtype == values.dtype)


def _elements(source: Source, site: Site) -> dict[str, str]:
    """Return the element types of what enters a region, by shape inference."""
    for scope in scopes(source.proto, infer_shapes(source.proto)):
        if scope.path == site.scope:
            numbers = {name: scope.shape_of(name)[0] for name in site.inputs}
            default = next((part.geometry.element for part in site.parts), "float32")
            return {name: NUMBERED[number].name if number else default for name, number in numbers.items()}
    raise LookupError("its node list is not there")


def _types(model: ModelProto) -> dict[str, TypeProto.Tensor]:
    """Return the types that are known of what the nodes of a model make."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.output)}
    return {name: kind for name, kind in kinds.items() if kind.elem_type}


def _size(feeds: Feeds) -> int:
    return sum(values.size for values in feeds.values())


def _taps(geometry: ConvGeometry) -> int:
    return math.prod(geometry.kernel) * (geometry.in_channels or geometry.group) // geometry.group


def _random(element: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape) if element in FLOATS else rng.integers(0, 2, shape)
    return np.asarray(values).astype(dtype(element))


def _resized(values: Array, shape: tuple[int, ...]) -> Array:
    return values if values.shape == shape else np.resize(values, shape)
