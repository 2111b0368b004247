"""Confirms on the whole model what won at single sites: all at once, or else the halves that win."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dilrewrite.runtimes import Array, Runnable, RuntimeFailure
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.measurement import Attempt
from dilrewrite.timing.stopwatch import MARGIN, Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """What the whole model said: the sites to rewrite (none: keep), all that was tried, the time of the best.

    `failure`: the runtime's words for the last version that did not run.
    """

    sites: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    final: Comparison | None = None
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """What versions of a model are timed against: the model and its digest, on `feeds`, taking about `run_s` a run.

    `min_gain`: the share of its time that a version must save to be taken.
    """

    meter: Meter
    before: Runnable
    digest: str
    feeds: Mapping[str, Array]
    run_s: float
    min_gain: float = MARGIN

    def timed(self, after: tuple[Runnable, str], share: float = 1.0) -> Comparison:
        """Time a version, given with its digest, in a share of the time left. Raises what `Meter.whole` does."""
        digests = (self.digest, after[1])
        try:
            return self.meter.whole(self.before, after[0], digests, self.feeds, run_s=self.run_s, share=share)
        except RuntimeFailure:
            self.meter.close()
            raise

    def search(
        self, groups: Sequence[Sequence[str]], make: Callable[[Sequence[str]], tuple[Runnable, str]]
    ) -> Confirmed:
        """Find the groups of sites, of those given, whose rewriting makes the whole model faster.

        All at once; only when that does not win, halves of them, until the budget ends. `make` rewrites some sites.
        """
        budget = self.meter.budget
        attempts: list[Attempt] = []
        best: Attempt | None = None
        pending = [groups]
        failure: str | None = None
        while pending:
            some = pending.pop(0)
            sites = tuple(itertools.chain.from_iterable(some))
            gains = False
            try:
                timing = self.timed(make(sites), 0.8 if len(groups) > 1 else 1.0)
            except RuntimeFailure as error:
                failure = str(error)
            else:
                attempts.append(Attempt(sites=sites, timing=timing))
                gains = timing.gains(self.min_gain)
                if gains and (best is None or timing.ratio < best.timing.ratio):
                    best = attempts[-1]
                if gains and some is groups:
                    break
            if not gains and len(some) > 1:
                half = (len(some) + 1) // 2
                pending += [some[:half], some[half:]]
            if budget.now() + budget.whole_s(self.run_s) > budget.until_s:
                break
        taken, final = (best.sites, best.timing) if best is not None else ((), None)
        return Confirmed(sites=taken, attempts=tuple(attempts), final=final, failure=failure)
