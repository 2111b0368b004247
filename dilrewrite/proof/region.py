"""A region to prove: its parts, and the sizes at which it can be."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, ValueInfoProto, helper

from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import CoreConv, CoreFill, Fragment, Kept
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.model.elements import ELEMENTS, FLOATS, NUMBERED, dtype
from dilrewrite.model.shapes import infer_shapes
from dilrewrite.model.walk import copied
from dilrewrite.proof.carve import Source
from dilrewrite.proof.cut import Place, cut
from dilrewrite.runtimes import Array, Backend, Options, Runnable, Session, backend
from dilrewrite.sites import Site
from dilrewrite.sites.scopes import scopes

Feeds = Mapping[str, Array]
"""What enters a region, by tensor."""


class Runs:
    """What models of regions are run with, in this process, as they are: without the runtime's optimisations."""

    def __init__(self, *, seed: int, threads: int | None) -> None:
        self.seed, self.threads = seed, threads
        self.runtime: Backend = backend("onnxruntime_cpu")
        self.reference: Backend = backend("reference")

    def opened(self, model: ModelProto, runtime: Backend | None = None) -> Session:
        """Load a model. Raises CannotLoad."""
        options = Options(threads=self.threads, isolated=False, optimize=False)
        return (runtime or self.runtime).session(Runnable(model=model.SerializeToString()), options)


class Region:
    """A region to prove. LookupError where too little is known of it."""

    def __init__(
        self, source: Source, site: Site, fragment: Fragment, constants: Mapping[Place, Array], seen: Sequence[Feeds]
    ) -> None:
        assert isinstance(site.meaning, Chain), "a region"
        self.site, self.chain, self.fragment, self.constants = site, site.meaning, fragment, constants
        nodes = source.scope(site.scope).nodes
        self.nodes = [nodes[place] for place in site.nodes]
        self.element = next(iter(self.chain.convs.values())).element if self.chain.convs else "float32"
        self.kept = self._kept()
        self.seen = [feeds for feeds in seen if set(site.inputs) <= set(feeds)]
        self.elements = (
            {name: _element_of(self.seen[0][name]) for name in site.inputs} if self.seen else _elements(source, site)
        )
        self._work: dict[tuple[tuple[int, ...], ...], int] = {}
        self.cut = cut(site, self.nodes, constants, self.elements)
        inferred = onnx.shape_inference.infer_shapes(self.cut.model)
        known = {value.name: value.type.tensor_type.elem_type for value in inferred.graph.value_info}
        self.floats = [
            all(not known.get(name) or NUMBERED[known[name]].name in FLOATS for name in node.output)
            for node in self.nodes
        ]

    def outline(self) -> tuple[object, ...]:
        """Return what decides how it is proved: all but its names and places."""
        digest = hashlib.blake2b()
        for place, values in sorted(self.constants.items()):
            digest.update(repr((place, values.shape, values.dtype.name)).encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        for feeds in self.seen:
            for name in self.site.inputs:
                digest.update(repr(feeds[name].shape).encode())
                digest.update(np.ascontiguousarray(feeds[name]).tobytes())
        return self.chain, tuple(self.elements.values()), self.fragment.digest(), digest.digest()

    def _kept(self) -> frozenset[int]:
        """Return the places of the nodes that go on in the fragment, each once."""
        convs = list(self.chain.convs)
        steps = self.fragment.steps
        if any(isinstance(step, CoreFill) for step in steps):
            raise LookupError("nothing is known of a region's fill")
        places = Counter(
            step.of if isinstance(step, Kept) else convs[step.of] for step in steps if isinstance(step, Kept | CoreConv)
        )
        if max(places.values(), default=0) > 1:
            raise LookupError("a form that takes an operator apart is not known to the proof of regions")
        return frozenset(places)

    # -- sizes -------------------------------------------------------------------------------------------------------

    def cases(self) -> list[Feeds]:
        """Return what to run on, by size; where nothing was seen, what may be, of which some may not run."""
        if self.seen:
            by_shapes = {tuple(feeds[name].shape for name in self.site.inputs): feeds for feeds in self.seen}
            return sorted(by_shapes.values(), key=self.work)
        rng = np.random.default_rng(0)
        shapes = [self.chain.shapes.get(name) for name in self.chain.inputs]
        if None in shapes:
            raise LookupError("nothing is known of the sizes of what enters it")
        cases = {}
        for length in self._lengths():
            filled = tuple(
                tuple(size if size is not None else length if axis > 1 else 2 for axis, size in enumerate(shape or ()))
                for shape in shapes
            )
            cases[filled] = {
                name: _made(self.elements[name], shape, rng)
                for name, shape in zip(self.site.inputs, filled, strict=True)
            }
        return sorted(cases.values(), key=self.work)

    def work(self, feeds: Feeds) -> int:
        """Return how many multiplications its Convs make, as far as inference tells; and one for each element."""
        shapes = tuple(feeds[name].shape for name in self.site.inputs)
        if shapes not in self._work:
            model = copied(self.cut.model)
            for value in model.graph.input:
                value.CopyFrom(_value(value, feeds[value.name].shape))
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
            known = {value.name: value.type.tensor_type.shape.dim for value in inferred.graph.value_info}
            self._work[shapes] = sum(values.size for values in feeds.values()) + sum(
                math.prod(size.dim_value for size in known.get(self.nodes[place].output[0], ())) * _taps(geometry)
                for place, geometry in self.chain.convs.items()
            )
        return self._work[shapes]

    def _lengths(self) -> list[int]:
        span = max((g.span(axis) for g in self.chain.convs.values() for axis in g.axes), default=1)
        return [2 * span + 2, 2 * span + 1, 64, 128, 256]

    def more(self, feeds: Feeds) -> Iterator[Feeds]:
        """Yield further sizes like those of `feeds`: other batches, other lengths; not all of them need run."""
        shapes = {
            name: self.chain.shapes.get(own) for name, own in zip(self.site.inputs, self.chain.inputs, strict=True)
        }
        if None in shapes.values():
            return
        known = {name: shape for name, shape in shapes.items() if shape is not None}
        if all(shape[0] is None for shape in known.values()):
            for batch in (1, 3):
                yield {name: _resized(values, (batch, *values.shape[1:])) for name, values in feeds.items()}

        def longer(name: str, step: int) -> tuple[int, ...]:
            pairs = enumerate(zip(feeds[name].shape, known[name], strict=True))
            return tuple(size + step if axis > 1 and own is None else size for axis, (size, own) in pairs)

        for step in (1, 2, 3, -1, -2, -3):
            wanted = {name: longer(name, step) for name in feeds}
            if min(min(shape) for shape in wanted.values()) > 0:
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


def _value(value: ValueInfoProto, shape: tuple[int, ...]) -> ValueInfoProto:
    return helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, shape)


def _taps(geometry: ConvGeometry) -> int:
    return math.prod(geometry.kernel) * (geometry.in_channels or geometry.group) // geometry.group


def _made(element: str, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    values = rng.standard_normal(shape) if element in FLOATS else rng.integers(0, 2, shape)
    return np.asarray(values).astype(dtype(element))


def _resized(values: Array, shape: tuple[int, ...]) -> Array:
    return values if values.shape == shape else np.resize(values, shape)
