"""Puts fragments into a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto

from dilrewrite.errors import UsageError
from dilrewrite.forms.fragment import Fragment
from dilrewrite.model.shapes import declares, forget_unbelieved, infer_shapes
from dilrewrite.model.walk import ScopePath, copied, permute, rearrange, resolve, sorted_places
from dilrewrite.sites import Normalisation, Place, Site
from dilrewrite.splice.clean import clean
from dilrewrite.splice.editor import Editor, Reader
from dilrewrite.splice.region import Region
from dilrewrite.splice.writer import write_metadata

VERIFICATION_KEY = "dilrewrite.verification"


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An edited copy of a model: the proto, the names of tensors made anew, and of weights that went."""

    proto: ModelProto
    added_tensors: tuple[str, ...]
    removed_tensors: tuple[str, ...]


def _normalise_node(node: NodeProto, change: Normalisation) -> None:
    known = {attribute.name: attribute for attribute in node.attribute}
    if change.dilations is not None:
        known["dilations"].ints[:] = change.dilations
    if change.pads is not None:
        known["auto_pad"].s = b"NOTSET"
        if "pads" in known:
            known["pads"].ints[:] = change.pads
        else:
            node.attribute.append(onnx.helper.make_attribute("pads", list(change.pads)))


def mark(proto: ModelProto, verification: str) -> None:
    """Write how far the model was verified into its metadata."""
    write_metadata(proto, VERIFICATION_KEY, verification)


def rewrite(
    proto: ModelProto, edits: Sequence[tuple[Site, Fragment]], normalisations: Iterable[Normalisation], read: Reader
) -> Rewritten:
    """Return a copy of `proto` in which every site of `edits` is replaced by its fragment.

    Convs that are not replaced get the changes of `normalisations`. `read` returns the values of one tensor of `proto`
    (external ones too); it is called only for weights that a fragment edits. Declared sizes inside the model that
    cannot be believed go. Everything else stays byte for byte. Raises `UsageError` when two sites share a node.
    """
    edited = copied(proto)
    replaced = _replaced(proto, edits)
    for change in normalisations:
        if (change.scope, change.index) not in replaced:
            _normalise_node(resolve(edited, change.scope).node[change.index], change)
    if not edits:
        return Rewritten(edited, (), ())
    if declares(proto):
        forget_unbelieved(edited, infer_shapes(proto))
    editor = Editor(proto, edited, read)
    by_scope: dict[ScopePath, list[tuple[Site, Fragment]]] = defaultdict(list)
    for site, fragment in edits:
        by_scope[site.scope].append((site, fragment))
    editor.open(by_scope)
    for path, pairs in by_scope.items():
        _rewrite_scope(editor, path, pairs)
    return Rewritten(edited, tuple(editor.added), clean(editor))


def _replaced(proto: ModelProto, edits: Sequence[tuple[Site, Fragment]]) -> dict[Place, Site]:
    """Return which site replaces which nodes; no node goes twice."""
    owners: dict[Place, Site] = {}
    for site, fragment in edits:
        for place in sorted(site.covers(fragment), key=lambda place: place[1]):
            other = owners.setdefault(place, site)
            if other is not site:
                node = resolve(proto, site.scope).node[place[1]]
                problem = f"{other.name!r} and {site.name!r} both cover the node {node.name or node.output[0]!r}"
                raise UsageError(f"{site.where}: {problem}", hint="rewrite one of them: leave the other with --skip")
    return owners


def _rewrite_scope(editor: Editor, path: ScopePath, edits: Sequence[tuple[Site, Fragment]]) -> None:
    """Replace the sites of one node list."""
    container = editor.containers[path]
    order: list[int | None] = [index << 20 for index in range(len(container.node))]
    fresh: list[NodeProto] = []
    for site, fragment in edits:
        region = Region(editor, site, fragment)
        nodes = region.build()
        for index in region.indices:
            order[index] = None
        order += ((place << 20) + number for number, place in enumerate(region.places))
        fresh += nodes
    container.node.extend(fresh)
    rearrange(container.node, order)
    if any(len(site.nodes) > 1 for site, _ in edits):  # what one region makes another may read
        permute(container.node, sorted_places(container.node))
