"""A node list as a chain of operators, and the regions of it that can be lifted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from onnx import AttributeProto, NodeProto, helper

from dilrewrite.forms import grid, lift
from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.fragment import AttributeValue
from dilrewrite.model.walk import DEFAULT_DOMAINS, subgraphs
from dilrewrite.sites import Part, Site
from dilrewrite.sites.cut import OUTSIDE, Flow, inside
from dilrewrite.sites.operators import Refused, operator_of, operators
from dilrewrite.sites.scopes import Scope

MOST_INTEGERS = 64
"""A constant with more integers is no list of axes, pads or sizes."""

MOST_BLOCKS = 6
"""So many ways to split into phases are looked at: those that serve most Convs."""

UNKNOWN, NODE = 256, 1024
"""Estimates for the cut: an unknown extent, and what one more layout operator costs, both in elements."""


def chain_of(scope: Scope) -> tuple[Chain, dict[int, Part]]:
    """Return the whole node list as a chain, and its Convs by place; an operator that is not plain data is named ""."""
    parts = {place: part for place in range(len(scope.nodes)) if (part := _part(scope, place)) is not None}
    links = tuple(
        _link(node, plain=place in parts or operator_of(node) is None) for place, node in enumerate(scope.nodes)
    )
    names = {name for link in links for name in (*link.inputs, *link.outputs) if name}
    shapes, integers, constants = {}, {}, set()
    for name in names:
        operand = scope.operand(name)
        shape = operand.shape if operand.shape is not None else scope.shape_of(name)[1]
        if shape is not None:
            shapes[name] = tuple(shape)
        if operand.is_constant:
            constants.add(name)
            if operand.element is None and len(operand.shape or ()) <= 1:
                value = scope.small_integers(name, MOST_INTEGERS)
                if value is not None:
                    integers[name] = value
    for place, part in parts.items():
        constants.update(scope.nodes[place].input[1 : 3 if part.bias is not None and part.bias.is_constant else 2])
    chain = Chain(
        links=links, inputs=(), outputs=(), shapes=shapes, constants=frozenset(constants), integers=integers,
        opset=scope.opset, convs={place: part.geometry for place, part in parts.items()},
    )  # fmt: skip
    return chain, parts


def _part(scope: Scope, place: int) -> Part | None:
    """Return a convolution with constant weights and pads that are known, as a part of a site."""
    name = operator_of(scope.nodes[place])
    if name is None:
        return None
    try:
        part = operators()[name].read(scope, place)
    except (Refused, ValueError):
        return None
    part = replace(part, geometry=part.geometry.explicit(), input_quantization=None)
    pads = (*part.geometry.pads_begin, *part.geometry.pads_end)
    return part if part.weight.is_constant and all(pad is not None and pad >= 0 for pad in pads) else None


def _link(node: NodeProto, *, plain: bool) -> Link:
    values: dict[str, AttributeValue] = {}
    plain = plain and node.domain in DEFAULT_DOMAINS and not any(subgraphs(node))
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
    """Return the view of lifting a chain; every 1-D convolution is wanted."""
    labels = lift.spread(chain)
    reads = tuple(
        None if each is None else tuple(how is lift.As.LIFTED for how in each.inputs) for each in labels.links
    )
    wanted = {place for place, each in enumerate(reads) if each is not None and chain.links[place].op in lift.SEEDS}
    return View(frozenset(labels.right), reads, frozenset(wanted))


def phased_view(chain: Chain, block: tuple[int, ...]) -> View:
    """Return the view of splitting a chain into phases; every dilated Conv that can be is wanted."""
    laid = grid.spread(chain, block)
    reads = tuple(None if each is None else tuple(axes is not None for axes in each.inputs) for each in laid.links)
    wanted = {place for place, geometry in chain.convs.items() if geometry.dilated and reads[place] is not None}
    return View(frozenset(laid.axes), reads, frozenset(wanted))


def regions(scope: Scope, chain: Chain, view: View) -> Iterator[frozenset[int]]:
    """Yield the places of each set of nodes that hang together inside the best cut."""
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
        flows.append(Flow(scope.producers.get(name, OUTSIDE), tuple(places), _elements(scope, name) + NODE))
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
    parts: dict[int, set[int]] = {}
    for place in sorted(chosen):
        parts.setdefault(root(place), set()).add(place)
    for part in parts.values():
        yield frozenset(part)


def _elements(scope: Scope, name: str) -> int:
    _, shape = scope.shape_of(name)
    count = 1
    for axis, size in enumerate(shape or ()):
        count *= size if isinstance(size, int) else UNKNOWN if axis else 1
    return count


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


def every_region(scope: Scope) -> Iterator[Site]:
    """Yield the regions of a node list with two dilated Convs or more: to lift, and to split into phases."""
    whole, _ = chain_of(scope)
    for block in ((), *blocks(whole)):
        yield from region_sites(scope, block)


def region_sites(scope: Scope, block: tuple[int, ...] = ()) -> Iterator[Site]:
    """Yield the regions with a dilated Conv in them as sites: to lift, or to split into phases."""
    whole, whole_parts = chain_of(scope)
    view = phased_view(whole, block) if block else lifted_view(whole)
    for places in regions(scope, whole, view):
        nodes = tuple(sorted(places))
        links = tuple(whole.links[place] for place in nodes)
        if len(nodes) < 2 or not any(place in whole_parts and whole.convs[place].dilated for place in nodes):
            continue
        made = {name for link in links for name in link.outputs if name}
        inputs = dict.fromkeys(
            name for link in links for name in link.inputs if name and name not in made and name not in whole.constants
        )
        outputs = [
            name
            for name in dict.fromkeys(name for link in links for name in link.outputs if name)
            if name in scope.outputs
            or scope.captured[name]
            or any(reader not in places for reader in scope.consumers.get(name, ()))
            or _read_plainly(name, links, view, nodes)
        ]
        if set(inputs) & made:
            continue
        parts = {number: whole_parts[place] for number, place in enumerate(nodes) if place in whole_parts}
        chain = replace(
            whole, links=links, inputs=tuple(inputs), outputs=tuple(outputs),
            convs={number: part.geometry for number, part in parts.items()},
            block=block,
        )  # fmt: skip
        operands = {
            (number, place): scope.operand(name)
            for number, link in enumerate(links)
            for place, name in enumerate(link.inputs)
            if name in whole.constants
        }
        first = scope.nodes[nodes[0]]
        yield Site(
            scope=scope.path, where=scope.where, name=first.name or first.output[0], nodes=nodes,
            inputs=tuple(inputs), outputs=tuple(outputs), meaning=chain.renamed(),
            parts=tuple(parts.values()), opset=scope.opset, ir_version=scope.ir_version, operands=operands,
        )  # fmt: skip


def _read_plainly(name: str, links: Sequence[Link], view: View, nodes: Sequence[int]) -> bool:
    """Say whether a link reads a tensor as it is."""
    for link, place in zip(links, nodes, strict=True):
        reads = view.reads[place]
        assert reads is not None
        if any(read == name and not in_layout for read, in_layout in zip(link.inputs, reads, strict=True)):
            return True
    return False
