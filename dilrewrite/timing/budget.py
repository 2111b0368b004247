"""The seconds that measuring may take, and how they are shared out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dilrewrite.timing.stopwatch import MIN_PAIRS

CONFIRMATION = 1 / 3
"""The share of the budget that is kept for timing the whole model."""

FEWEST_S, MOST_S = 0.15, 1.0
"""How long one form is timed at least and at most, about."""

REGION_S = 8.0
"""How long one form of a region is timed at most, about: there are few, and a run may take as long as the model's."""

OVERHEAD_S = 0.25
"""What a form costs besides its runs, about: loading two sessions and warming them up."""


@dataclass
class Budget:
    """What a user waits for: `begin` starts the clock, and everything from then on counts.

    The `seconds` are for what comes after the profile, which is always done. `pairs`: the fewest runs of two models
    that give a ratio. `now` and all times below are on the budget's clock.
    """

    seconds: float
    pairs: int = MIN_PAIRS
    progress: Callable[[str, int, int], None] = lambda *_: None
    clock: Callable[[], float] = time.monotonic
    run_s: float = 0.0
    """Seconds of one run of the whole model, about; 0 when unknown."""
    load_s: float = 0.0
    """Seconds that loading the whole model takes, about; 0 when unknown."""
    overhead_s: float = OVERHEAD_S
    """What a form costs besides its runs, about; where engines are built, as long as the last ones took."""
    profiled_s: float = 0.0
    """When the profile was done."""
    floor_s: float = 0.0
    """How much is always done: data, the profile, the least confirmation."""
    winner: bool = False
    """Whether some form was faster: then a third of the budget stays for the whole model."""
    forms_s: float = 0.0
    """Seconds that were spent on `forms_timed` forms, with all that is done for them."""
    forms_timed: int = 0
    _began: float | None = None

    def begin(self) -> None:
        """Start the clock."""
        self._began = self.clock()

    def pause(self, seconds: float) -> None:
        """Wait, which costs nothing of the budget."""
        start = self.clock()
        time.sleep(seconds)
        if self._began is not None:
            self._began += self.clock() - start

    def now(self) -> float:
        """Return the seconds spent on measuring."""
        return 0.0 if self._began is None else self.clock() - self._began

    def profiled(self, run_s: float) -> None:
        """Note that the model was profiled, and what a run of it takes."""
        self.run_s = run_s
        self.profiled_s = self.floor_s = self.now()

    @property
    def until_s(self) -> float:
        """Return when measuring ends."""
        return self.profiled_s + self.seconds

    @property
    def forms_until_s(self) -> float:
        """Return when timing forms ends: without a winner so far, only the least confirmation is kept back."""
        early = self.until_s - self.seconds * CONFIRMATION
        return early if self.winner else max(early, self.until_s - 4 * self.pairs * self.run_s - 1.0)

    def opening_s(self, run_s: float) -> float:
        """Return how long two sessions of the whole model, of which a run takes `run_s`, take to load and warm up."""
        return 2 * self.load_s + 6 * run_s

    def whole_s(self, run_s: float) -> float:
        """Return how long the least comparison of whole models takes, about."""
        return self.opening_s(run_s) + 2 * self.pairs * run_s

    def slice_s(self, comparisons: float, *, most_s: float = MOST_S) -> float:
        """Return how long one of `comparisons` may take in the time that is left for forms."""
        left = max(self.forms_until_s - self.now(), 0.0)
        return min(max(left / max(comparisons, 1) - self.overhead_s, FEWEST_S), most_s)

    def needed_s(self, untimed: int) -> float:
        """Return about the budget that would have done for all forms, of which so many are `untimed`."""
        each = self.forms_s / self.forms_timed if self.forms_timed else MOST_S / 2 + OVERHEAD_S
        return (self.forms_s + untimed * each) / (1 - CONFIRMATION)

    def tick(self) -> None:
        """Show progress."""
        total = max(1, math.ceil(self.until_s))
        self.progress("measure", min(int(self.now()), total), total)


def estimated_s(questions: Iterable[int], budget_s: float) -> float:
    """Return about how long measuring takes, for questions with so many forms each."""
    forms = sum(1.5 * (MOST_S + OVERHEAD_S) + number * (MOST_S / 2 + OVERHEAD_S) for number in questions)
    return min(forms + 3.0, budget_s * (1 - CONFIRMATION)) + min(forms, budget_s * CONFIRMATION)
