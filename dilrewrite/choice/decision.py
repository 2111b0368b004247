"""What is considered, measured and decided about a site, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dilrewrite.choice.choose import Candidate
from dilrewrite.choice.fitted import Fitted
from dilrewrite.choice.reason import Why
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import Refusal
from dilrewrite.proof.prove import Proof
from dilrewrite.sites import Site
from dilrewrite.timing.outcome import FormTiming
from dilrewrite.timing.profiling import UNSEEN, SiteRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """A site before anything is measured.

    `offered` are the forms that apply, `refused` the others; `wanted` those of which it may get one, the first to try
    in front: none, when it stays as it is. `why`: why it does, or why the wanted ones are wanted, `None` where
    measuring tells. `measurable`: timings decide between the wanted ones. `inside`: keys of the sites in a region.
    `own`: how the site as it stands fits the target, where there is one. `must_go`: the target does not take it, and
    one of the wanted fits better.
    """

    site: Site
    offered: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]
    wanted: tuple[Candidate, ...]
    why: Why | None = None
    measurable: bool = False
    inside: tuple[str, ...] = ()
    own: Fitted | None = None
    must_go: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteMeasurement:
    """What measuring says of a site.

    `timings`: forms by strategy; `why`: why they decide nothing, `None` where they do. `run`: how it ran in the model.
    `question`: sites with the same number were measured as one. `wrong`: a form that was to be timed and was shown to
    compute something else, with the proof.
    """

    timings: Mapping[str, FormTiming] = field(default_factory=dict)
    why: Why | None = None
    run: SiteRun = UNSEEN
    question: int | None = None
    wrong: tuple[str, Proof] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of a site.

    `candidate`: the form that it gets (`None`: kept). `explicit` makes a kept Conv one that runtimes take: its SAME_*
    pads, which depend on an unknown extent, become a computed Pad. `unproved`: forms that were to be used, with what
    the proof said. `wrong`: one of them that is not equal to the site, by `proof`. `gain`: of the model's time, by its
    timing. `region`: it goes with that region, which leaves the `dilation_left`.
    """

    considered: Considered
    measured: SiteMeasurement
    why: Why
    candidate: Candidate | None = None
    explicit: Fragment | None = None
    proof: Proof | None = None
    unproved: tuple[Refusal, ...] = ()
    wrong: str | None = None
    gain: float | None = None
    region: Decision | None = None
    dilation_left: int = 1

    @property
    def site(self) -> Site:
        """Return the site."""
        return self.considered.site

    @property
    def fragment(self) -> Fragment | None:
        """Return what replaces the site; `None`: nothing."""
        return self.candidate.fragment if self.candidate is not None else None

    @property
    def fitted(self) -> Fitted | None:
        """Return how what stands there now fits the target; `None` without one."""
        taken = self.candidate or (self.region.candidate if self.region is not None else None)
        return taken.fitted if taken is not None else self.considered.own

    @property
    def strategy(self) -> str:
        """Return the name of the form."""
        if self.region is not None:
            return self.region.strategy
        return self.candidate.strategy if self.candidate is not None else "keep"

    @property
    def spelling(self) -> str:
        """Return the name of the form with its settings."""
        return self.candidate.spelling if self.candidate is not None else "keep"

    @property
    def max_dilation(self) -> int:
        """Return the dilation that is left."""
        if self.region is not None:
            return self.dilation_left
        if self.fragment is not None:
            return self.fragment.max_dilation
        return max(part.geometry.max_dilation for part in self.site.parts)
