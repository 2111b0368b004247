"""Versions of a model: as it is, Conv by Conv with a strategy at all sites at once, and as regions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from onnx import ModelProto

from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.regions import region_forms
from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.model.tensors import Model, read_tensor
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite

ROUNDS = 6
"""So often regions are looked for in what regions have made."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Version:
    """A version of a model: "original", a strategy's name, or that of a region form with its blocks.

    `rewritten`: how many of the sites, or of the dilated Convs in regions; `regions`: in how many of these.
    """

    name: str
    proto: ModelProto
    rewritten: int
    regions: int = 0


def versions(model: Model, found: Found, refused: dict[str, str]) -> Iterator[Version]:
    """The original, and the model with every site rewritten by each strategy; sites that it refuses stay.

    Strategies that refuse every site go to `refused`, with the first reason.
    """
    yield Version(name="original", proto=model.proto, rewritten=0)
    for name in strategies():
        edits = _per_site(found, name, refused) if name != "keep" else []
        if edits:
            refused.pop(name, None)
            yield Version(name=name, proto=_written(model, found, edits), rewritten=len(edits))


def _per_site(found: Found, name: str, refused: dict[str, str]) -> list[tuple[Site, Fragment]]:
    edits: list[tuple[Site, Fragment]] = []
    for site in found.sites:
        planned = plan(name, strategies()[name], site.geometry, site.opset, storage=site.storage)
        if isinstance(planned, Refusal):
            refused.setdefault(name, planned.reason)
        else:
            edits.append((site, planned))
    return edits


Block = tuple[int, ...]
Choose = Callable[[Sequence[Block]], Block]


def region_versions(model: Model, refused: dict[str, str]) -> Iterator[Version]:
    """The model with its regions lifted; in phases once; and in phases until no dilation is left, in two ways.

    Once and the first way: by the block that serves most Convs (`2x2 + 2x2`: what was split by two is split by two once
    more); the second way: by the largest block first. Convs that no region takes get `space_to_batch` in the end. Forms
    that refuse every region go to `refused`, with the first reason.
    """
    blocks = _regions(find(model.proto, regions=True))
    ways: list[tuple[Choose, int]] = [(min, 1)] if () in blocks else []
    if any(blocks):
        ways += [(_most, 1), (_most, ROUNDS), (max, ROUNDS)]
    known: set[str] = set()
    for choose, rounds in ways:
        version = _in_rounds(model, choose, rounds, refused)
        if version is not None and version.name not in known:
            known.add(version.name)
            yield version


def _most(blocks: Sequence[Block]) -> Block:
    return next(block for block in blocks if block)


def _in_rounds(model: Model, choose: Choose, rounds: int, refused: dict[str, str]) -> Version | None:
    """The model after so many rounds of regions, each of the block that is chosen from those that there are."""
    taken: list[Block] = []
    convs = regions = 0
    form = ""
    for _ in range(rounds):
        found = find(model.proto, regions=True)
        there = _regions(found)
        if not any(there) and (taken or () not in there):
            break
        block = choose([*there])
        form = "phase_region" if block else "lift_region"
        planned = [(site, region_forms()[form].fragment(_chain(site), site.opset)) for site in there[block]]
        edits = [(site, fragment) for site, fragment in planned if isinstance(fragment, Fragment)]
        if not edits:
            refused.setdefault(form, next(no.reason for _, no in planned if isinstance(no, Refusal)))
            break
        if not taken:
            regions = len(edits)
            convs = sum(geometry.dilated for site, _ in edits for geometry in _chain(site).convs.values())
        taken.append(block)
        model = dataclasses.replace(model, proto=_written(model, found, edits), path=None)
    if not taken:
        return None
    refused.pop(form, None)
    name = f"{form} {' + '.join('x'.join(map(str, block)) for block in taken)}".rstrip()
    if rounds > 1:
        found = find(model.proto)
        rest = _per_site(found, "space_to_batch", {})
        if rest:
            name += " + space_to_batch"
            model = dataclasses.replace(model, proto=_written(model, found, rest), path=None)
    return Version(name=name, proto=model.proto, rewritten=convs, regions=regions)


def _regions(found: Found) -> dict[Block, list[Site]]:
    """Regions by block; the empty one is that of lifting."""
    some: dict[Block, list[Site]] = {}
    for site in found.regions:
        some.setdefault(_chain(site).block, []).append(site)
    return some


def _chain(site: Site) -> Chain:
    assert isinstance(site.meaning, Chain)
    return site.meaning


def _written(model: Model, found: Found, edits: Sequence[tuple[Site, Fragment]]) -> ModelProto:
    return rewrite(model.proto, edits, found.normalisations, lambda tensor: read_tensor(model, tensor)).proto
