"""Builds what is timed for a site: its Conv between a producer and its real consumers, up to the next Conv.

A bare Conv misjudges: a runtime fuses a Conv with what follows it, and runs whole stretches of a model in a layout of
its own, which a rewritten form leaves and enters again. So the Conv gets a 1x1 Conv in front, in whose layout its input
comes; the nodes that follow it in the model, as they are there; and 1x1 Convs where the model goes on in that layout.
Values play no part, so sites of equal geometry, type and neighbours give the same model, byte for byte: they are one
question.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.model.elements import FLOATS, NAMED, NUMBERED
from dilrewrite.model.walk import DEFAULT_DOMAINS
from dilrewrite.proof import sandwich
from dilrewrite.proof.carve import Source, carve, tensor
from dilrewrite.proof.inputs import random_values
from dilrewrite.proof.numbers import Numbers, entering, entering_shape, resized
from dilrewrite.runtimes import Array, Io
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.sites.known import BOUNDED, SAME_LAYOUT, THROUGH
from dilrewrite.sites.operators.conv import OPERATOR as CONV
from dilrewrite.splice.editor import Reader
from dilrewrite.timing.profiling import Profiled, Shape

MOST_NODES = 4
"""How many nodes are taken along."""

MOST_OTHERS = 1
"""How many of them may read another computed tensor: a runtime fuses one such sum, and each costs time of its own."""

MOST_ELEMENTS = 2**20
"""A constant larger than this is not taken along."""

CHANNELS = 16
"""Channels on the far side of the 1x1 Convs: few, and a whole block in every runtime's blocked layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is timed for some sites: a model with the Conv as it is, where the Conv stands in it, and what it is fed.

    Two questions with the same `key` are the same. `words`: of a sandwich, what the nodes of a site are called there.
    """

    key: str
    model: ModelProto
    site: Site
    feeds: Mapping[str, Array]
    neighbours: tuple[str, ...]
    words: tuple[str, ...] = ()


def ask(
    source: Source, site: Site, profiled: Profiled, read: Reader, layout_ranks: Collection[int], *, bare: bool = False
) -> Question:
    """Return the question of a site of `source`, whose tensors' values `read` returns.

    Sizes that the site knows at run time only stay unknown in the model; the feeds have those of the profiled run.
    `layout_ranks`: of Convs for which the runtime has a layout of its own. `bare`: without neighbours.
    Raises LookupError when a size is known neither from the model nor from the run.
    """
    behind = _Behind(source, site, profiled)
    behind.shapes["x"] = _input_shape(site, profiled)
    if not bare:
        behind.look()
    model, feeds = _cut(behind, read)
    folds = isinstance(site.meaning, Sandwich)
    if behind.geometry.rank in layout_ranks and not bare and not folds:
        _lead_in(behind, model.graph)
        _lead_out(behind, model.graph)
    for value in model.graph.input:
        if (shape := behind.shapes.get(value.name)) is not None:
            io = Io(name=value.name, element=NUMBERED[value.type.tensor_type.elem_type].name, shape=shape)
            feeds[value.name] = random_values(io, shape, np.random.default_rng(len(feeds)))
    found = find(model, sandwiches=True) if folds else find(model)
    if folds:
        sites = [own for own in found.sandwiches if own.geometry == site.geometry]
    else:
        kind = found.pools if isinstance(site.meaning, PoolGeometry) else found.sites
        sites = [own for own in kind if len(own.nodes) == len(site.nodes)]
    if len(sites) != 1 or (not folds and sites[0].meaning != site.meaning):
        if not bare:
            return ask(source, site, profiled, read, layout_ranks, bare=True)
        raise LookupError("its neighbourhood does not give it the same geometry")
    text = hashlib.sha256(model.SerializeToString(deterministic=True))
    for name in sorted(feeds):
        text.update(f"{name}{feeds[name].shape}{feeds[name].dtype}".encode())
    neighbours = tuple(node.op_type for node in behind.taken.values())
    words = tuple(sandwich.words_of(source, site)) if folds else ()
    return Question(key=text.hexdigest(), model=model, site=sites[0], feeds=feeds, neighbours=neighbours, words=words)


def _input_shape(site: Site, profiled: Profiled) -> Shape:
    """Return the shape of the tensor that a fragment reads, as the site ran with it."""
    run = profiled.sites.get(site.key)
    if run is not None and run.shapes:
        return run.shapes[0]
    geometry = entering(site)
    declared = (geometry.batch, geometry.in_channels, *geometry.extents)
    sizes = tuple(size for size in declared if size is not None)
    if len(sizes) < len(declared):
        raise LookupError("its sizes are not known")
    return entering_shape(site, sizes)


# -- behind the site ---------------------------------------------------------------------------------------------------


@dataclass
class _Behind:
    """What follows a site in its model: the nodes that are taken along, by name, and the tensors after which none is.

    `ends` say of those whether the layout goes on behind them. `names`: of the model's tensors in the question's;
    `shapes`: of the inputs of that.
    """

    source: Source
    site: Site
    profiled: Profiled
    taken: dict[str, NodeProto] = field(default_factory=dict)
    ends: dict[str, bool] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    computed: int = 0

    def __post_init__(self) -> None:
        self.geometry, output = entering(self.site), self.site.output
        if isinstance(self.site.meaning, Sandwich):
            self.nodes = sandwich.nodes_of(self.source, self.site, exact=False)
            self.names[output] = sandwich.output_of(self.site, self.nodes)
        else:
            self.nodes = self.source.parts(self.site)
            self.names[output] = next(word for word, node in self.nodes.items() if output in node.output)
        self.ends[output] = False

    def look(self) -> None:
        """Take along what a runtime may fuse into the site, or run in its layout."""
        here = self.source.scope(self.site.scope)
        self.ends.clear()
        done: set[int] = set()
        pending = list(self.names)
        while pending:
            name = pending.pop(0)
            readers = here.consumers.get(name, [])
            for index in dict.fromkeys(readers):
                node = here.nodes[index]
                if index in done:
                    continue
                if len(done) < MOST_NODES and self._fits(node, follows=index in self.site.follow):
                    word = f"next_{len(done)}"
                    done.add(index)
                    self.computed += list(self._others(node).values()).count(None)
                    self.taken[word] = node
                    self.names[node.output[0]] = word
                    pending.append(node.output[0])
                else:
                    onward = node.domain in DEFAULT_DOMAINS and node.op_type in SAME_LAYOUT
                    self.ends[name] = self.ends.get(name, False) or onward
            if not readers or here.captured[name] or name in here.outputs:
                self.ends.setdefault(name, False)

    def _others(self, node: NodeProto) -> dict[str, TensorProto | None]:
        """Return the tensors from elsewhere that a node reads, with the values of those that are constants."""
        outside = (name for name in node.input if name and name not in self.names)
        return {name: self.source.constant(self.site.scope, name) for name in outside}

    def _fits(self, node: NodeProto, *, follows: bool) -> bool:
        """Say whether a node can be copied: everything else that it reads is a constant or has a known shape."""
        plain = node.domain in DEFAULT_DOMAINS and not any(attribute.ref_attr_name for attribute in node.attribute)
        if not plain or sum(map(bool, node.output)) != 1 or not (follows or node.op_type in THROUGH):
            return False
        others = self._others(node)
        computed = [name for name, constant in others.items() if constant is None]
        if computed and (follows or self.computed + len(computed) > MOST_OTHERS):
            return False
        small = all(product(tuple(each.dims)) <= MOST_ELEMENTS for each in others.values() if each is not None)
        return small and all(self.shape(name) is not None for name in computed)

    def shape(self, name: str) -> Shape | None:
        """Return the shape that a tensor of the model had in the profiled run."""
        return self.profiled.tensors.get((self.site.scope, name))


def _cut(behind: _Behind, read: Reader) -> tuple[ModelProto, dict[str, Array]]:
    """Return the site and what is taken along as a model, and the values of weights and bias that are inputs."""
    site, source, geometry = behind.site, behind.source, behind.geometry
    alone = site
    if len(site.nodes) == 1:  # with channels as it ran, where they are known at run time only
        weight = behind.shape(site.part.weight.name)
        if weight is not None and site.part.turn is not None:
            weight = site.part.turn.shape(weight)
        outputs = site.part.geometry.out_channels or (weight[0] if weight is not None else None)
        channels = behind.shapes["x"][1]
        alone = resized(site, replace(site.part.geometry, in_channels=channels, out_channels=outputs))
    numbers = Numbers(source=source, site=alone, element=geometry.element, rng=np.random.default_rng(0), reals=True)

    def outside(word: str, place: int, node: NodeProto) -> ValueInfoProto | TensorProto:
        if word not in behind.taken:
            return numbers(word, place, node)
        constant, shape = source.constant(site.scope, node.input[place]), behind.shape(node.input[place])
        if constant is not None:
            return tensor(_neutral(constant, node.op_type, read))
        assert shape is not None, "the node would not fit"
        name = f"{word}_{place}"
        behind.shapes[name] = shape
        return helper.make_tensor_value_info(name, NAMED[geometry.element].number, _declared(geometry, name, shape))

    words = [behind.names[name] for name in behind.ends]
    model = carve(source.proto, site.scope, {**behind.nodes, **behind.taken}, outside, words)
    if geometry.in_channels is None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "x1"
    return model, numbers.feeds


def _neutral(constant: TensorProto, op: str, read: Reader) -> Array:
    """Return values of the same type and shape, of no meaning except where a runtime looks at them."""
    if op in BOUNDED:
        return np.asarray(read(constant))
    element = NUMBERED[constant.data_type]
    value = 0.5 if element.name in FLOATS else 128 if element.name == "uint8" else 0
    return np.full(tuple(constant.dims), value).astype(element.dtype)


def _declared(geometry: ConvGeometry, name: str, shape: Shape) -> list[int | str]:
    """Return an input's dims: what the site does not know stays unknown."""
    dynamic = any(size is None for size in geometry.extents)
    if len(shape) != geometry.rank + 2:
        return list(shape)
    return [
        f"{name}_{axis}" if (axis == 0 and geometry.batch is None) or (axis > 1 and dynamic and size > 1) else size
        for axis, size in enumerate(shape)
    ]


# -- the 1x1 Convs at the ends -----------------------------------------------------------------------------------------


def _lead_in(behind: _Behind, graph: GraphProto) -> None:
    """Put a 1x1 Conv before the input, and before the other ones with enough channels and with extents."""
    nodes = [*graph.node]
    del graph.node[:]
    for value in graph.input:
        name, shape = value.name, behind.shapes.get(value.name)
        others = shape is not None and shape[1:2] >= (CHANNELS,) and behind.site.input_quantization is None
        if shape is None or len(shape) != behind.geometry.rank + 2 or not (name == "x" or others):
            continue
        channels = min(CHANNELS, shape[1])
        value.name = "source" if name == "x" else f"{name}_source"
        behind.shapes[value.name] = (shape[0], channels, *shape[2:])
        dim = value.type.tensor_type.shape.dim[1]
        dim.Clear()
        dim.dim_value = channels
        _add(graph, _pointwise(behind, value.name, name, (shape[1], channels), value))
    graph.node.extend(nodes)


def _lead_out(behind: _Behind, graph: GraphProto) -> None:
    """Put a 1x1 Conv behind every output where the layout goes on."""
    for value, (name, onward) in zip(graph.output, behind.ends.items(), strict=True):
        shape, channels = behind.shape(name), behind.site.parts[-1].geometry.out_channels
        if shape is not None:  # a sum with another tensor may have more of them than the Conv makes
            channels = shape[1] if len(shape) == behind.geometry.rank + 2 else None
        floating = NUMBERED[value.type.tensor_type.elem_type].name in FLOATS
        if not onward or channels is None or (floating and behind.site.input_quantization is not None):
            continue
        word, value.name = value.name, f"{value.name}_end"
        _add(graph, _pointwise(behind, word, value.name, (CHANNELS, channels), value))


def _add(graph: GraphProto, other: GraphProto) -> None:
    graph.node.extend(other.node)
    graph.initializer.extend(other.initializer)


def _pointwise(
    behind: _Behind, source: str, result: str, channels: tuple[int, int], value: ValueInfoProto
) -> GraphProto:
    """Return a 1x1 Conv as a graph; on integers between DequantizeLinear and QuantizeLinear.

    `channels`: out and in. `value` has the element type.
    """
    rng, word, shape = np.random.default_rng(1), f"{result}_pointwise", (*channels, *(1,) * behind.geometry.rank)
    kind, attributes = NUMBERED[value.type.tensor_type.elem_type].dtype, {"kernel_shape": shape[2:]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import onnx_graphsurgeon as gs

        x, y = gs.Variable(source, kind), gs.Variable(result, kind)
        if kind.kind not in "iu":
            weight = gs.Constant(word, (rng.standard_normal(shape) / CHANNELS).astype(kind))
            nodes = [gs.Node(CONV.op, word, attributes, [x, weight], [y])]
        else:
            codes = rng.integers(-100, 100, shape).astype(np.int8)
            values = {"scale": np.float32(0.05), "zero": np.array(0 if kind.kind == "i" else 128, kind), "codes": codes}
            values |= {"codes_scale": np.float32(0.01), "codes_zero": np.int8(0)}
            given = {name: gs.Constant(f"{word}_{name}", np.asarray(array)) for name, array in values.items()}
            a, b, c = (gs.Variable(f"{word}_{name}", np.float32) for name in "xwy")
            nodes = [
                gs.Node("DequantizeLinear", "", {}, [x, given["scale"], given["zero"]], [a]),
                gs.Node("DequantizeLinear", "", {}, [given["codes"], given["codes_scale"], given["codes_zero"]], [b]),
                gs.Node(CONV.op, word, attributes, [a, b], [c]),
                gs.Node("QuantizeLinear", "", {}, [c, given["scale"], given["zero"]], [y]),
            ]
        graph: GraphProto = gs.export_onnx(gs.Graph(nodes, inputs=[x], outputs=[y]), do_type_check=False).graph
    return graph
