"""Confirms on the whole model what won at single sites: all at once, or else the halves that win."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dilrewrite.runtimes import RuntimeFailure
from dilrewrite.timing.budget import Budget
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


def search(
    groups: Sequence[Sequence[str]],
    timed: Callable[[Sequence[str], float], Comparison],
    budget: Budget,
    *,
    run_s: float,
    min_gain: float = MARGIN,
) -> Confirmed:
    """Find the groups of sites, of those given, whose rewriting makes the whole model faster.

    All at once; only when that does not win, halves of them, until the budget ends. `timed` times the original, which
    takes about `run_s` a run, against it with some sites rewritten, in a share of the time that is left. `min_gain`:
    the share of its time that a version must save to be taken.
    """
    attempts: list[Attempt] = []
    best: Attempt | None = None
    failure: str | None = None
    pending = [groups]
    while pending:
        some = pending.pop(0)
        sites = tuple(itertools.chain.from_iterable(some))
        gains = False
        try:
            timing = timed(sites, 0.8 if len(groups) > 1 else 1.0)
        except RuntimeFailure as error:
            failure = str(error)
        else:
            attempts.append(Attempt(sites=sites, timing=timing))
            gains = timing.gains(min_gain)
            if gains and (best is None or timing.ratio < best.timing.ratio):
                best = attempts[-1]
            if gains and some is groups:
                break
        if not gains and len(some) > 1:
            half = (len(some) + 1) // 2
            pending += [some[:half], some[half:]]
        if budget.now() + budget.whole_s(run_s) > budget.until_s:
            break
    taken, final = (best.sites, best.timing) if best is not None else ((), None)
    return Confirmed(sites=taken, attempts=tuple(attempts), final=final, failure=failure)
