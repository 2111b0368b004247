"""Confirms on the whole model what won at single sites: all at once, or else the halves that win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dilrewrite.runtimes import Array, Runnable, RuntimeFailure
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.stopwatch import MARGIN, Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A version of the whole model and its time: the groups of sites (by number) that were rewritten in it."""

    groups: tuple[int, ...]
    timing: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """What the whole model said: the groups to rewrite (none: keep), all that was tried, the time of the best.

    `failure`: the runtime's words for the last version that did not run.
    """

    groups: tuple[int, ...]
    trials: tuple[Trial, ...]
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
        runnable, digest = after
        try:
            return self.meter.whole(
                self.before, runnable, (self.digest, digest), self.feeds, run_s=self.run_s, share=share
            )
        except RuntimeFailure:
            self.meter.close()
            raise

    def search(self, groups: Sequence[int], make: Callable[[Sequence[int]], tuple[Runnable, str]]) -> Confirmed:
        """Find the groups of sites, of those given, whose rewriting makes the whole model faster.

        All at once; only when that does not win, halves of them, until the budget ends. `make` builds a version.
        """
        budget = self.meter.budget
        trials: list[Trial] = []
        best: Trial | None = None
        pending: list[tuple[int, ...]] = [tuple(groups)]
        failure: str | None = None
        while pending:
            some = pending.pop(0)
            gains = False
            try:
                timing = self.timed(make(some), 0.8 if len(groups) > 1 else 1.0)
            except RuntimeFailure as error:
                failure = str(error)
            else:
                trials.append(Trial(groups=some, timing=timing))
                gains = timing.gains(self.min_gain)
                if gains and (best is None or timing.ratio < best.timing.ratio):
                    best = trials[-1]
                    if len(some) == len(groups):
                        break
            if not gains and len(some) > 1:
                half = (len(some) + 1) // 2
                pending += [some[:half], some[half:]]
            if budget.now() + 2 * budget.pairs * self.run_s > budget.until_s:
                break
        if best is None:
            return Confirmed(groups=(), trials=tuple(trials), failure=failure)
        return Confirmed(groups=best.groups, trials=tuple(trials), final=best.timing, failure=failure)
