"""Cuts a space-to-batch sandwich out of a model, for a proof: its nodes, and what else computes its sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import NodeProto, helper

from dilrewrite.forms.fragment import Fragment, Kept
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.model.walk import DEFAULT_DOMAINS, sorted_places
from dilrewrite.proof.carve import Source
from dilrewrite.sites import Site

EXACT = frozenset({"Add", "DequantizeLinear", "Mul", "PRelu", "QuantizeLinear", "Sub"})
"""Operators that stay between the phases: whole numbers stay so, but for halves. Others are as good as any other."""

MOST_OUTSIDE = 200
"""How many nodes outside of a sandwich may compute its sizes."""


def nodes_of(source: Source, site: Site, *, exact: bool = True) -> dict[str, NodeProto]:
    """Return the nodes to prove a sandwich with, by their names, makers before readers; `exact`: with stand-ins.

    Raises LookupError where a size hangs on something else than what enters.
    """
    meaning = site.meaning
    assert isinstance(meaning, Sandwich)
    nodes, words = source.parts(site), words_of(source, site)
    given = source.scope(site.scope).nodes
    for of, place in meaning.after:
        node, word = given[site.nodes[of]], f"node_{of}"
        if words[of] != word:
            nodes[words[of]] = nodes.pop(word)
        elif exact and node.op_type not in EXACT:
            nodes[word] = helper.make_node("LeakyRelu", [node.input[place]], [node.output[0]], alpha=0.5)
    outside = _outside(source, site, nodes)
    every = [*outside.items(), *nodes.items()]
    return dict(every[place] for place in sorted_places([node for _, node in every]))


def words_of(source: Source, site: Site) -> list[str]:
    """Return what the nodes of a sandwich are called in a proof; the first QuantizeLinear gets a scale that fits."""
    meaning, quantized, given = site.meaning, site.part.input_quantization, source.scope(site.scope).nodes
    assert isinstance(meaning, Sandwich)
    words = [f"node_{of}" for of, _ in enumerate(site.nodes)]
    for of, index in enumerate(site.nodes):
        if index == site.part.index or (quantized is not None and index == quantized.index):
            words[of] = "conv" if index == site.part.index else "x_f"
    first = next((of for of, _ in meaning.after if given[site.nodes[of]].op_type == "QuantizeLinear"), None)
    if first is not None:
        words[first] = "quantized"
    return words


def _outside(source: Source, site: Site, nodes: Mapping[str, NodeProto]) -> dict[str, NodeProto]:
    """Return the nodes that compute sizes for a sandwich and for others too."""
    scope, found = source.scope(site.scope), dict[int, NodeProto]()
    made = {name for node in nodes.values() for name in node.output}
    queue = [name for node in nodes.values() for name in node.input]
    while queue:
        name = queue.pop()
        place = scope.producers.get(name)
        if not name or name in made or name in site.inputs or place is None or place in found:
            continue
        if source.constant(site.scope, name) is not None:
            continue
        node = scope.nodes[place]
        if node.domain not in DEFAULT_DOMAINS or len(found) >= MOST_OUTSIDE:
            raise LookupError(f"nothing is known of {name!r}, which enters it too")
        found[place] = node
        queue += node.input
    return {f"size_{number}": found[place] for number, place in enumerate(sorted(found))}


def output_of(site: Site, nodes: Mapping[str, NodeProto]) -> str:
    """Return the tensor that leaves a sandwich, by its name among these nodes."""
    for word, node in nodes.items():
        if site.output in node.output:
            place = list(node.output).index(site.output)
            return f"{word}_out{place}" if place else word
    raise LookupError("what it makes is not there")


def fitted(fragment: Fragment, words: Sequence[str], own: Site, names: Mapping[int, str]) -> Fragment:
    """Return a form of a sandwich whose nodes are called `words` for the same one cut out, `own`.

    `names`: what the nodes there are called, by their places.
    """
    places = {names[index]: of for of, index in enumerate(own.nodes)}
    steps = (replace(step, of=places[words[step.of]]) if isinstance(step, Kept) else step for step in fragment.steps)
    return replace(fragment, steps=tuple(steps))
