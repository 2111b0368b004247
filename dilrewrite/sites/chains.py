"""A node list as a chain of operators, and the regions of it that can be lifted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import AttributeProto, GraphProto, NodeProto, helper

from dilrewrite.forms import grid, lift
from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.chomp import chomped
from dilrewrite.forms.fragment import AttributeValue
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.model.elements import NAMED, element_name
from dilrewrite.model.light import Shape
from dilrewrite.model.walk import DEFAULT_DOMAINS, subgraphs
from dilrewrite.sites import Part, Site
from dilrewrite.sites.cut import ENDLESS, OUTSIDE, Flow, inside
from dilrewrite.sites.ends import ends
from dilrewrite.sites.nests import leaves, nested
from dilrewrite.sites.operators import Refused, operator_of, operators
from dilrewrite.sites.ranks import spread_ranks
from dilrewrite.sites.scopes import Scope

MOST_INTEGERS = 64
"""A constant with more integers is no list of axes, pads or sizes."""

MOST_BLOCKS = 6
"""So many ways to split into phases are looked at: those that serve most Convs."""

UNKNOWN, NODE = 256, 4096
"""Estimates for the cut: an unknown extent, and what one more layout operator costs, in bytes."""


UNIT = 64
"""By so much dearer is an entry between the operators of a quantised unit, which runtimes fuse."""


def parts_of(scope: Scope) -> dict[int, Part]:
    """Return the Convs of a node list that can be parts of a region, by place."""
    parts = {place: part for place in range(len(scope.nodes)) if (part := _part(scope, place)) is not None}
    return {place: part for place, part in parts.items() if _edits_alone(scope, part, parts)}


def _edits_alone(scope: Scope, part: Part, parts: Mapping[int, Part]) -> bool:
    """Say whether only Convs read what a DequantizeLinear of constants makes: others could not read it edited."""
    made = [each.output for each in (part.weight_quantization, part.bias_quantization) if each is not None]
    return all(reader in parts for name in made for reader in scope.consumers[name])


def chain_of(scope: Scope, parts: Mapping[int, Part]) -> Chain:
    """Return the whole node list as a chain; an operator that is not plain data is named ""."""
    links = tuple(map(_link, scope.nodes))
    names = {name for link in links for name in (*link.inputs, *link.outputs) if name}
    shapes: dict[str, Shape] = {}
    integers, constants, elements = {}, set(), {}
    for name in names:
        operand = scope.operand(name)
        shape = operand.shape if operand.shape is not None else scope.shape_of(name)[1]
        element = element_name(scope.shape_of(name)[0] or 0)
        if element is not None:
            elements[name] = element
        if shape is not None:
            shapes[name] = tuple(shape)
        if operand.is_constant:
            constants.add(name)
            if operand.element is None and len(operand.shape or ()) <= 1:
                value = scope.small_integers(name, MOST_INTEGERS)
                if value is not None:
                    integers[name] = value
            elif len(operand.shape or ()) <= 1 and scope.is_zero(name):
                integers[name] = (0,)
    for place, part in parts.items():
        constants.update(scope.nodes[place].input[1 : 3 if part.bias is not None and part.bias.is_constant else 2])
    spread_ranks(links, parts, shapes, integers)
    chain = Chain(
        links=links, inputs=(), outputs=(), shapes=shapes, constants=frozenset(constants), integers=integers,
        opset=scope.opset, convs={place: part.geometry for place, part in parts.items()}, elements=elements,
        batches=_batches(scope, links),
    )  # fmt: skip
    readers = {place: scope.sole_consumer(link.outputs[0]) for place, link in enumerate(links) if place in parts}
    chain = chomped(chain, {place: reader for place, reader in readers.items() if reader is not None})
    return replace(chain, extents=grid.extents(chain))


def _batches(scope: Scope, links: Sequence[Link]) -> dict[str, tuple[str, ...]]:
    """Return which unknown batches of the graph's inputs each tensor's stands for, where they may differ."""
    batches: dict[str, tuple[str, ...]] = {}
    for value in scope.container.input if isinstance(scope.container, GraphProto) else ():
        first = next(iter(value.type.tensor_type.shape.dim), None)
        if first is not None and not first.HasField("dim_value") and not scope.operand(value.name).is_constant:
            batches[value.name] = (first.dim_param or f"of {value.name}",)
    if len(set(batches.values())) < 2:
        return {}
    for link in links:
        found = tuple(sorted({batch for name in link.inputs for batch in batches.get(name, ())}))
        if found:
            batches.update((name, found) for name in link.outputs)
    return batches


def _part(scope: Scope, place: int) -> Part | None:
    """Return a convolution with constant weights and pads that are known, as a part of a site."""
    name = operator_of(scope.nodes[place])
    if name is None:
        return None
    try:
        part = operators()[name].read(scope, place)
    except (Refused, ValueError):
        return None
    if part.on_integers or isinstance(part.geometry, PoolGeometry) or max(part.geometry.spread) > 1:
        return None  # regions end there, or take it along as it is
    geometry = replace(part.geometry.explicit(), transposed=None)  # at stride 1 it is a Conv
    part = replace(part, geometry=geometry, input_quantization=None)
    pads = (*part.geometry.pads_begin, *part.geometry.pads_end)
    return part if part.weight.is_constant and all(pad is not None and pad >= 0 for pad in pads) else None


def _link(node: NodeProto) -> Link:
    values: dict[str, AttributeValue] = {}
    plain = node.domain in DEFAULT_DOMAINS and not any(subgraphs(node))
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            plain = False
        elif attribute.type in (AttributeProto.INT, AttributeProto.FLOAT):
            values[attribute.name] = helper.get_attribute_value(attribute)
        elif attribute.type == AttributeProto.INTS:
            values[attribute.name] = tuple(attribute.ints)
        elif attribute.type == AttributeProto.STRING:
            values[attribute.name] = attribute.s.decode(errors="backslashreplace")
    return Link(
        op=node.op_type if plain else "", inputs=tuple(node.input), outputs=tuple(node.output), attributes=values
    )


@dataclass(frozen=True, slots=True)
class View:
    """What a layout is to the cut: the tensors that may lie in it, and which inputs each link would read so (None: it
    cannot be inside).
    """

    tensors: frozenset[str]
    reads: tuple[tuple[bool, ...] | None, ...]
    wanted: frozenset[int]


def lifted_view(chain: Chain) -> View:
    """Return the view of lifting a chain; every 1-D convolution with constant weights is wanted."""
    labels = lift.spread(chain)
    reads = tuple(
        None if each is None else tuple(how is lift.As.LIFTED for how in each.inputs) for each in labels.links
    )
    wanted = frozenset(
        place
        for place, (link, each) in enumerate(zip(chain.links, reads, strict=True))
        if each is not None and link.op in lift.SEEDS and link.inputs[1] in chain.constants
    )
    return View(frozenset(labels.right), reads, wanted)


def phased_view(chain: Chain, block: tuple[int, ...]) -> View:
    """Return the view of splitting a chain into phases; Convs with taps along a split axis are wanted."""
    laid = grid.spread(chain, block)
    reads = tuple(None if each is None else tuple(axes is not None for axes in each.inputs) for each in laid.links)
    wanted = {
        place
        for place, geometry in chain.convs.items()
        if reads[place] is not None and any(b > 1 and k > 1 for b, k in zip(block, geometry.kernel, strict=True))
    }
    return View(frozenset(laid.axes), reads, frozenset(wanted))


def undilated_view(chain: Chain, view: View) -> View | None:
    """Return a view of phases with the Convs outside that they leave dilated, None where they leave none."""
    out = {place for place in view.wanted if leaves(chain.convs[place], chain.block)}
    if not out:
        return None
    reads = tuple(None if place in out else each for place, each in enumerate(view.reads))
    return replace(view, reads=reads, wanted=view.wanted - out)


def regions(scope: Scope, chain: Chain, view: View) -> Iterator[tuple[int, ...]]:
    """Yield the places of the nodes that hang together inside the best cut, in their order."""
    allowed = {place for place, each in enumerate(view.reads) if each is not None}
    if not view.wanted:
        return
    flows = []
    readers: dict[str, list[int]] = {name: [] for name in view.tensors}
    for place, (link, reads) in enumerate(zip(chain.links, view.reads, strict=True)):
        for number, name in enumerate(link.inputs):
            if name in readers:
                readers[name].append(place if reads is not None and reads[number] else OUTSIDE)
    for name, places in readers.items():
        if name in chain.constants:
            continue
        if name in scope.outputs or scope.captured[name]:
            places.append(OUTSIDE)
        maker = scope.producers.get(name, OUTSIDE)
        nodes = 2 if maker in chain.convs else 1  # runtimes fuse a Conv with what follows, unless that is cut off
        weight = (_bytes(chain, name) + nodes * NODE) * (UNIT if _within_unit(chain, maker, places) else 1)
        flows.append(Flow(maker, tuple(places), ENDLESS if chain.gone.intersection(places) else weight))
    chosen = inside(flows, view.wanted, allowed)
    group = {place: place for place in chosen}

    def root(place: int) -> int:
        while group[place] != place:
            group[place] = place = group[group[place]]
        return place

    for flow in flows:
        members = [place for place in (flow.maker, *flow.readers) if place in group]
        for place in members[1:]:
            group[root(place)] = root(members[0])
    parts: dict[int, list[int]] = {}
    for place in sorted(chosen):
        parts.setdefault(root(place), []).append(place)
    yield from map(tuple, parts.values())


def _bytes(chain: Chain, name: str) -> int:
    shape, element = chain.shapes.get(name, ()), NAMED[chain.elements.get(name, "float32")]
    return math.prod(UNKNOWN if size is None else size for size in shape[1:]) * element.bits // 8


def _within_unit(chain: Chain, maker: int, readers: Sequence[int]) -> bool:
    """Say whether a tensor is one inside a quantised unit; phases, which write a zero point, need the integers too."""
    made = chain.links[maker].op if maker != OUTSIDE else ""
    if chain.block:
        return made in ("QuantizeLinear", "DequantizeLinear")
    read = {chain.links[place].op for place in readers if place != OUTSIDE}
    return made == "DequantizeLinear" or "QuantizeLinear" in read


def blocks(chain: Chain) -> list[tuple[int, ...]]:
    """Return the blocks of phases that come into question: dilations and what they share, of two Convs or more."""
    dilations = [
        tuple(d if k > 1 else 1 for k, d in zip(geometry.kernel, geometry.dilations, strict=True))
        for geometry in chain.convs.values()
        if geometry.dilated
    ]
    own = dict.fromkeys(dilations)
    pairs = itertools.combinations(own, 2)
    shared = (tuple(map(math.gcd, *pair)) for pair in pairs if len(pair[0]) == len(pair[1]))
    served = {
        block: sum(
            len(each) == len(block) and not any(d % b for d, b in zip(each, block, strict=True)) for each in dilations
        )
        for block in (*own, *shared)
        if max(block) > 1
    }
    best = sorted(served, key=lambda block: (-served[block], block))
    return [block for block in best if served[block] > 1][:MOST_BLOCKS]


def every_region(scope: Scope, *, lift_all: bool = False) -> Iterator[Site]:
    """Yield the regions of a node list that hold a dilated Conv: to lift, and to split into phases.

    `lift_all`: to lift also those that hold none.
    """
    parts = parts_of(scope)
    if not any(part.geometry.dilated or (lift_all and part.geometry.rank == 1) for part in parts.values()):
        return
    whole = chain_of(scope, parts)
    for block in ((), *blocks(whole)):
        yield from region_sites(scope, whole, parts, block, lift_all=lift_all and not block)


def region_sites(
    scope: Scope, whole: Chain, parts: Mapping[int, Part], block: tuple[int, ...] = (), *, lift_all: bool = False
) -> Iterator[Site]:
    """Yield the regions of a node list as sites: to lift, or to split into phases (see `every_region`).

    A region to lift holds two Convs or more: the forms of one are those of its site. A region of phases that leaves
    dilation comes once more, with what is split again inside, and without the Convs that are left dilated: their own
    forms, or other phases, may serve them better.
    """
    view = phased_view(whole, block) if block else lifted_view(whole)
    whole = replace(whole, block=block)
    keys: set[str] = set()
    for each in (view, undilated_view(whole, view) if block else None):
        for site in _seen(scope, whole, each, parts, lift_all=lift_all) if each is not None else ():
            if each is view or site.key not in keys:
                keys.add(site.key)
                yield site
                if isinstance(site.meaning, Chain) and block and (full := nested(site.meaning)) is not None:
                    yield replace(site, meaning=full)


def _seen(scope: Scope, whole: Chain, view: View, parts: Mapping[int, Part], *, lift_all: bool) -> Iterator[Site]:
    """Yield the regions of one view as sites, those with too few Convs left out."""
    pairs = [(scope.producers[whole.links[place].inputs[0]], place) for place in whole.gone]
    for places in regions(scope, whole, view):
        members = set(places)
        if any((maker in members) != (place in members) for maker, place in pairs):
            continue  # no layout has room for both
        own = {number: parts[place] for number, place in enumerate(places) if place in parts}
        dilated = sum(part.geometry.dilated for part in own.values())
        if dilated > 1 if whole.block else len(members & view.wanted) > 1 and (lift_all or dilated > 0):
            yield _site(scope, whole, view, places, own)


def _site(scope: Scope, whole: Chain, view: View, places: tuple[int, ...], parts: Mapping[int, Part]) -> Site:
    """Return the nodes at `places` as a site; `parts` are its Convs, by their number among the nodes."""
    links = tuple(whole.links[place] for place in places)
    made = dict.fromkeys(name for link in links for name in link.outputs if name)
    read = dict.fromkeys(name for link in links for name in link.inputs if name)
    plainly, members = set(_read_plainly(links, [view.reads[place] for place in places])), set(places)
    inputs = tuple(name for name in read if name not in made and name not in whole.constants)
    outputs = tuple(
        name
        for name in made
        if name in scope.outputs
        or scope.captured[name]
        or name in plainly
        or any(reader not in members for reader in scope.consumers.get(name, ()))
    )
    chain = replace(
        whole, links=links, inputs=inputs, outputs=outputs,
        convs={number: whole.convs[places[number]] for number in parts},
        gone=frozenset(number for number, place in enumerate(places) if place in whole.gone),
    )  # fmt: skip
    operands = {
        (number, place): scope.operand(name)
        for number, link in enumerate(links)
        for place, name in enumerate(link.inputs)
        if name in whole.constants
    }
    borders = ([name for name in names if name in view.tensors] for names in (inputs, outputs))
    first = scope.nodes[places[0]]
    return Site(
        scope=scope.path, where=scope.where, name=scope.label(first), nodes=places,
        inputs=inputs, outputs=outputs, meaning=chain.renamed(),
        parts=tuple(parts.values()), opset=scope.opset, ir_version=scope.ir_version, operands=operands,
        ends=tuple(dict.fromkeys(ends(scope, whole, view.reads, members, *borders))),
    )  # fmt: skip


def _read_plainly(links: Sequence[Link], reads: Sequence[tuple[bool, ...] | None]) -> Iterator[str]:
    """Yield the tensors that a link reads as they are."""
    for link, each in zip(links, reads, strict=True):
        assert each is not None
        yield from (name for name, in_layout in zip(link.inputs, each, strict=False) if not in_layout)
