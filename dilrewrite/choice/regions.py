"""Regions beside the sites of a model: which forms one may get, which sites stand in it, which of those that overlap
are taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from dilrewrite.choice import choose
from dilrewrite.choice.decide import Decider, left_out
from dilrewrite.choice.decision import Considered, Decision
from dilrewrite.choice.reason import Reason, Why
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.forms.regions import region_forms
from dilrewrite.runtimes import TimedBackend
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import too_new


def members(region: Site, sites: Iterable[Site]) -> list[Site]:
    """Return the sites whose nodes all stand in a region, but for poolings, whose dilation a region leaves."""
    inside, convs = set(region.nodes), (site for site in sites if not isinstance(site.meaning, PoolGeometry))
    return [site for site in convs if site.scope == region.scope and inside.issuperset(site.nodes)]


def consider(decider: Decider, found: Found) -> list[Considered]:
    """Return the regions that come into question, each with the forms that it may get; first those without dilation."""
    if decider.forced is not None and not set(decider.forced.offered) & set(region_forms()):
        return []
    entries = (_considered(decider, region, members(region, found.sites)) for region in found.regions)
    kept = (entry for entry in entries if entry is not None)
    return sorted(kept, key=lambda entry: min((one.fragment.max_dilation for one in entry.wanted), default=1))


def _considered(decider: Decider, region: Site, inside: Sequence[Site]) -> Considered | None:
    scope, forced = decider.scope, decider.forced
    if too_new(region.opset) is not None or any(left_out(scope, site) is not None for site in inside):
        return None
    parts = {part.index for part in region.parts}
    above = [site for site in inside if site.geometry.max_dilation > scope.max_dilation]
    if scope.eliminate and not (above and all(site.part.index in parts for site in above)):
        return None
    offered, refused = decider.region_planner.candidates(region)
    considered = Considered(
        site=region, offered=tuple(offered), refused=tuple(refused), wanted=(), inside=tuple(s.key for s in inside)
    )
    if decider.fitter is not None:
        found = decider.fitter.lifted(region, offered, inside)
        if found is None:
            return None
        return replace(considered, own=found[0], why=found[1], wanted=tuple(found[2]), must_go=True)
    if decider.decided is not None:
        decided = decider.decided.get(region.key)
        if decided is None:
            return None
        why, wanted = decider.replayed(region, decided)
        return replace(considered, wanted=tuple(wanted), why=why)
    if forced is not None:
        offered, _ = forced.candidates(region)
        wanted = choose.without_dilation(offered, scope.max_dilation) if scope.eliminate else offered
        return replace(considered, wanted=tuple(wanted), why=Why(reason=Reason.FORCED)) if wanted else None
    wanted = choose.without_dilation(offered, scope.max_dilation) if scope.eliminate else list(offered)
    return replace(considered, wanted=tuple(wanted), measurable=True) if wanted else None


def may_gain(considered: Considered, backend: TimedBackend) -> bool:
    """Say whether a region may be faster on a backend: in phases only where dilation costs something."""
    chain = considered.site.meaning
    return not considered.measurable or backend.dilation_costs or (isinstance(chain, Chain) and not chain.block)


def disjoint(regions: Sequence[Decision], worth: Callable[[Decision], float]) -> list[Decision]:
    """Return of the regions that get a form those that share no node and are worth it, the best first."""
    taken: list[Decision] = []
    covered: set[object] = set()
    values = {region.site.key: worth(region) for region in regions if region.candidate is not None}
    for region in sorted(regions, key=lambda one: -values.get(one.site.key, 0.0)):
        if region.candidate is None or values[region.site.key] <= 0 or covered & region.candidate.covers:
            continue
        taken.append(region)
        covered |= region.candidate.covers
    return taken


def left_in(region: Decision, site: Site) -> int:
    """Return the dilation that a region's form leaves of a site in it."""
    fragment, chain = region.fragment, region.site.meaning
    assert fragment is not None
    assert isinstance(chain, Chain)
    parts = [part.index for part in region.site.parts]
    if site.part.index not in parts:  # it goes along as it is
        return site.geometry.max_dilation
    return fragment.dilation_of(parts.index(site.part.index))


def estimated(region: Decision, inside: Sequence[Considered]) -> float:
    """Return by how much the estimate of a region is below that of its members' cheapest forms and its other Convs.

    Without one a region is taken only where its members cannot go by themselves.
    """
    assert region.candidate is not None
    if any(entry.why is not None and entry.why.reason is Reason.CANNOT_GO for entry in inside):
        return math.inf
    if not region.candidate.multiply_adds:
        return -math.inf
    kept = ([one for one in entry.offered if one.strategy == "keep"] for entry in inside)
    cheapest = [(*entry.wanted, *keep)[:1] for entry, keep in zip(inside, kept, strict=True)]
    chain, own = region.site.meaning, {place for entry in inside for place in entry.site.nodes}
    assert isinstance(chain, Chain)
    convs = zip(region.site.parts, choose.assumed_chain(chain).convs.values(), strict=True)
    others = sum(geometry.multiply_adds() or 0 for part, geometry in convs if part.index not in own)
    return others + sum(one.cost for some in cheapest for one in some) - region.candidate.cost
