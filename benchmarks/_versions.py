"""Versions of a model: as it is, Conv by Conv with a strategy at all sites at once, and as regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import cast

from onnx import ModelProto

from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.regions import RegionForm, region_forms
from dilrewrite.forms.strategies import Refusal, Strategy, plan, strategies, with_layout
from dilrewrite.model.tensors import Model, read_tensor
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a model: "original", a strategy's name, or that of a region form with its blocks.

    `rewritten`: how many of the sites, or of the dilated Convs in regions; `regions`: in how many of these.
    """

    name: str
    proto: ModelProto
    rewritten: int
    regions: int = 0


AT_ONCE = "reshape"
"""The layout of phases on GPUs."""


def forms_by(layout: str) -> dict[str, Strategy]:
    """Every form of a Conv, with phases made in the way of `layout`."""
    return {name: with_layout(strategy, layout) for name, strategy in strategies().items()}


def versions(model: Model, found: Found, refused: dict[str, str], layout: str = "depth") -> Iterator[Version]:
    """The original, and the model with every site rewritten by each strategy; sites that it refuses stay.

    `layout`: how phases are made.

    Strategies that refuse every site go to `refused`, with the first reason.
    """
    yield Version(name="original", proto=model.proto, rewritten=0)
    for name in strategies():
        edits = _per_site(found, name, refused, layout) if name != "keep" else []
        if edits:
            refused.pop(name, None)
            yield Version(name=name, proto=_written(model, found, edits), rewritten=len(edits))


def _per_site(found: Found, name: str, refused: dict[str, str], layout: str) -> list[tuple[Site, Fragment]]:
    form = forms_by(layout)[name]
    edits: list[tuple[Site, Fragment]] = []
    for site in found.sites:
        planned = plan(name, form, site.geometry, site.opset, storage=site.storage)
        if isinstance(planned, Refusal):
            refused.setdefault(name, planned.reason)
        else:
            edits.append((site, planned))
    return edits


def region_versions(model: Model, refused: dict[str, str], layout: str = "depth") -> Iterator[Version]:
    """The model with its regions lifted, and in phases: of the block that serves most Convs, and of the largest one.

    In phases each once (`2x2`), and until no dilation is left: what is split by two is split inside once more
    (`2x2 + 2x2`), and Convs that no region takes get `space_to_batch`. Forms that refuse every region go to `refused`,
    with the first reason.
    """
    found = find(model.proto, regions=True)
    by_block: dict[tuple[int, ...], list[Site]] = {}
    for site in found.regions:
        by_block.setdefault(_chain(site).block, []).append(site)
    if () in by_block:
        yield from _as_regions(model, found, by_block.pop(()), refused, layout)
    for block in dict.fromkeys((next(iter(by_block)), max(by_block))) if by_block else ():
        once = _apart([site for site in by_block[block] if not _chain(site).nests])
        nodes = {(site.scope, site.nodes): site for site in by_block[block]}  # what is split again comes last
        inside = _apart(list(nodes.values()))
        yield from _as_regions(model, found, once, refused, layout)
        for version in _as_regions(model, found, inside, refused, layout):
            again = dataclasses.replace(model, proto=version.proto, path=None)
            left = find(version.proto)
            rest = _per_site(left, "space_to_batch", {}, layout)
            if rest:
                proto = _written(again, left, rest)
                yield dataclasses.replace(version, name=f"{version.name} + space_to_batch", proto=proto)
            elif inside != once:
                yield version


def _apart(sites: Sequence[Site]) -> list[Site]:
    """The sites that share no node, the longest first taken: a region may end earlier, too."""
    taken: set[tuple[object, int]] = set()
    found: list[Site] = []
    for site in sorted(sites, key=lambda site: -len(site.nodes)):
        places = {(site.scope, node) for node in site.nodes}
        if not places & taken:
            taken |= places
            found.append(site)
    return [site for site in sites if site in found]


def _as_regions(
    model: Model, found: Found, sites: Sequence[Site], refused: dict[str, str], layout: str
) -> Iterator[Version]:
    """The model with the regions of one block that are not refused, if there are any."""
    form = "phase_region" if _chain(sites[0]).block else "lift_region"
    maker = cast("RegionForm", with_layout(cast("Strategy", region_forms()[form]), layout))
    planned = [(site, maker.fragment(_chain(site), site.opset)) for site in sites]
    edits = [(site, fragment) for site, fragment in planned if isinstance(fragment, Fragment)]
    if not edits:
        refused.setdefault(form, next(no.reason for _, no in planned if isinstance(no, Refusal)))
        return
    chains = [_chain(site) for site, _ in edits]
    deepest = max(chains, key=lambda chain: len(chain.nests))
    blocks = (deepest.block, *(block for block, _ in deepest.nests))
    yield Version(
        name=f"{form} {' + '.join('x'.join(map(str, block)) for block in blocks)}".rstrip(),
        proto=_written(model, found, edits),
        rewritten=sum(geometry.dilated for chain in chains for geometry in chain.convs.values()),
        regions=len(edits),
    )


def _chain(site: Site) -> Chain:
    assert isinstance(site.meaning, Chain)
    return site.meaning


def _written(model: Model, found: Found, edits: Sequence[tuple[Site, Fragment]]) -> ModelProto:
    return rewrite(model.proto, edits, found.normalisations, lambda tensor: read_tensor(model, tensor)).proto
