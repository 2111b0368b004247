"""Chooses a form for each site by estimate: multiply-adds on data and elements moved. Nothing is measured here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from dilrewrite.find import Site
from dilrewrite.fragment import CoreConv, Fragment
from dilrewrite.geometry import ConvGeometry
from dilrewrite.strategies import Refusal, Strategy, plan, with_max_dilation

MULTIPLY_ADDS_PER_ELEMENT = 16
"""How many multiply-adds are taken to cost as much as writing one element: an assumption, not a measurement."""

WORTH = 0.9
"""A form is taken by estimate only below this share of what keeping the Conv costs."""

INEXACT = frozenset({"zero_fill"})
"""Forms that are exact for finite inputs only: never taken by estimate except to eliminate dilation."""

ASSUMED_EXTENTS = {1: 1024, 2: 64, 3: 32}
"""Extents that stand for unknown ones in an estimate, by rank (or four times the kernel's span, if more)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A form that applies to a site, and its estimated cost in multiply-adds."""

    strategy: str
    fragment: Fragment
    multiply_adds: int
    elements_moved: int

    @property
    def cost(self) -> float:
        """Return the estimate."""
        return self.multiply_adds + MULTIPLY_ADDS_PER_ELEMENT * self.elements_moved

    @property
    def order(self) -> tuple[bool, bool, float]:
        """Return the sorting key: the estimate, but forms last that fewer devices run or that hold for less input.

        A 2-D Conv as a 3-D one is of no use to a device without 3-D convolution; `zero_fill` holds for finite inputs.
        """
        convs = [core for core in self.fragment.core if isinstance(core, CoreConv)]
        lifted = self.strategy == "space_to_axis" and any(len(core.kernel) > 2 for core in convs)
        return lifted, self.strategy in INEXACT, self.cost


def assumed(geometry: ConvGeometry) -> ConvGeometry:
    """Return the geometry with typical sizes for everything unknown."""
    extents = tuple(
        extent if extent is not None else max(ASSUMED_EXTENTS[geometry.rank], 4 * geometry.span(axis))
        for axis, extent in enumerate(geometry.extents)
    )
    channels = geometry.in_channels or 16 * geometry.group
    return replace(
        geometry,
        batch=geometry.batch or 1,
        in_channels=channels,
        out_channels=geometry.out_channels or 16 * geometry.group,
        extents=extents,
    )


def candidates(
    site: Site, offered: Mapping[str, Strategy], max_dilation: int = 1
) -> tuple[list[Candidate], list[Refusal]]:
    """Return the forms that apply to a site, the one to try first in front, and the refusals of the others."""
    found: list[Candidate] = []
    refused: list[Refusal] = []
    for name, strategy in offered.items():
        chosen = with_max_dilation(strategy, max_dilation) if max_dilation > 1 else strategy
        fragment = plan(name, chosen, site.geometry, site.opset, storage=site.storage)
        if isinstance(fragment, Refusal):
            refused.append(fragment)
            continue
        sized: Fragment | Refusal = fragment
        if fragment.multiply_adds is None or fragment.elements_moved is None:
            sized = plan(name, chosen, assumed(site.geometry), site.opset, storage=site.storage)
        if isinstance(sized, Refusal):
            refused.append(sized)
            continue
        assert sized.multiply_adds is not None, "every size is known or assumed"
        assert sized.elements_moved is not None
        found.append(
            Candidate(
                strategy=name,
                fragment=fragment,
                multiply_adds=sized.multiply_adds,
                elements_moved=sized.elements_moved,
            )
        )
    return sorted(found, key=lambda candidate: candidate.order), refused


class Planner:
    """Plans sites with the given strategies, each distinct geometry once."""

    def __init__(self, offered: Mapping[str, Strategy], max_dilation: int = 1) -> None:
        self.offered = offered
        self.max_dilation = max_dilation
        self._known: dict[tuple[object, ...], tuple[list[Candidate], list[Refusal]]] = {}

    def candidates(self, site: Site) -> tuple[list[Candidate], list[Refusal]]:
        """Return what `candidates` returns for the site."""
        key = (site.geometry, site.opset, site.storage)
        if key not in self._known:
            self._known[key] = candidates(site, self.offered, self.max_dilation)
        found, refused = self._known[key]
        return list(found), list(refused)


def by_estimate(found: list[Candidate]) -> tuple[list[Candidate], str]:
    """Return the forms worth trying before keeping, best first, and the reason in words; none: keep."""
    keep = next((candidate for candidate in found if candidate.strategy == "keep"), None)
    if keep is None:  # the opset cannot even spell its pads
        return [], "no form applies, nor can its own pads be made explicit"
    better = [c for c in found if c.strategy != "keep" and c.strategy not in INEXACT and c.cost < WORTH * keep.cost]
    if better:
        share = better[0].cost / max(keep.cost, 1)
        return better, f"estimated {share:.2f}x of the dilated Conv by multiply-adds and elements moved; not measured"
    others = [c for c in found if c.strategy not in INEXACT and c.strategy != "keep"]
    if not others:
        return [], "no other form applies"
    share = others[0].cost / max(keep.cost, 1)
    return [], f"the cheapest other form, {others[0].strategy}, is estimated at {share:.2f}x; not measured"


def without_dilation(found: list[Candidate], max_dilation: int) -> list[Candidate]:
    """Return the forms that leave no dilation above `max_dilation`, cheapest first."""
    return [candidate for candidate in found if candidate.fragment.max_dilation <= max_dilation]
