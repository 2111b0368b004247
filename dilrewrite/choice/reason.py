"""Why a site gets what it gets, as a value; the words for it are made in `reports/`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from dilrewrite._compat import StrEnum
from dilrewrite.forms.strategies import Refusal
from dilrewrite.timing.outcome import FormTiming
from dilrewrite.timing.stopwatch import Comparison


@final
class Reason(StrEnum):
    """A kind of `Why`, with the fields that it fills."""

    INSPECTED = "inspected"
    TOO_NEW = "too new"
    """`said`: what is wrong with its opset."""
    NOT_NAMED = "not named"
    SKIPPED = "skipped"
    SMALL_DILATION = "small dilation"
    """`number`: the dilation that may stay."""
    FOLDED = "folded"
    """It is a sandwich, and what it computes is asked for."""
    FORCED = "forced"
    REFUSED = "refused"
    """The forced form does not apply. `refusals`: it."""
    CANNOT_GO = "cannot go"
    """Every form leaves a dilation. `refusals`: of all that do not apply."""
    NATIVE = "native"
    """The target `said` runs it as it is. `factor`: how many times the work its compiler makes of the dilation."""
    FITS = "fits"
    """It fits the target better than the site, of which `said` says why it does not fit. `number`: how many fit so.
    `because`: why the target's judge does not decide; `factor`: not 1 where the profile says what dilation costs."""
    JUDGED = "judged"
    """As `FITS`. `because`: what the target's judge says of the form, one of those that fit."""
    CHEAPER = "cheaper"
    """It takes less work on the target than what its compiler makes of the dilation: `share` of that."""
    NO_FIT = "no fit"
    """`said`: why the target does not run it; no form fits better. `refusals`: of all that do not apply or not fit."""
    NO_PADS = "no pads"
    """Nothing applies, not even explicit pads. `refusals`: of these."""
    NO_FORM = "no form"
    DECIDED = "decided"
    """By the decisions file."""
    IN_REGION = "in region"
    """It goes with the region that `said` names."""
    NO_REGION = "no region"
    """`strategy`: of regions only, and the site stands in none that it takes."""
    NO_WHOLE_REGION = "no whole region"
    """As `NO_REGION`, and --only or --skip leaves Convs out."""
    LESS_THAN_SITES = "less than sites"
    """Of a region: its sites' own forms gain more, or it shares nodes with a region that does. `timing`: its form's."""
    WRONG = "wrong"
    """A form computes something else."""
    UNPROVED = "unproved"
    """`strategy`; `said`: what the proof said."""
    TIMED = "timed"
    """`timing`: of the form taken."""
    FASTEST = "fastest"
    """As `TIMED`. `number`: how many it is the fastest of."""
    ESTIMATED = "estimated"
    """The cheapest by estimate. `because`: why there are no timings to go by."""
    SLOWER = "slower"
    """The Conv won. `strategy`, `timing`: the best form's; `number` of `total` forms not timed."""
    TIE = "tie"
    """As `SLOWER`, within noise."""
    UNTIMED = "untimed"
    """`forms`: what became of them instead."""
    NOT_CONFIRMED = "not confirmed"
    """`strategy`, `timing`: of the form that won; `whole`: the model with it, which is not faster."""
    VERSION_FAILED = "version failed"
    """As `NOT_CONFIRMED`. `said`: how the model with it failed."""
    ONLY_FORM = "only form"
    CANNOT_MATTER = "cannot matter"
    """`share`: of the model's time."""
    PLANNED = "planned"
    """`number`: of the forms that would be measured."""
    UNKNOWN = "unknown"
    """Not measured."""
    NOT_MEASURED = "not measured"
    """`because`: why."""
    BUDGET = "budget"
    NO_BUDGET = "no budget"
    DID_NOT_RUN = "did not run"
    """On these inputs."""
    NO_QUESTION = "no question"
    """`said`: what stands in the way of timing it in its neighbourhood."""
    CONV_FAILED = "conv failed"
    """The Conv alone does not run. `said`: the runtime's words."""
    MODEL_FAILED = "model failed"
    """The model does not run. `said`: the runtime's words."""
    TRIAL_FAILED = "trial failed"
    """As `MODEL_FAILED`, on the runtime that inputs are tried on. `said`: its name and its words."""
    PROFILE_SLOW = "profile slow"
    """Profiling the model took too long. `said`: how long."""
    NO_DATA = "no data"
    """`said`: why the model's inputs could not be made."""
    DIFFERS = "differs"
    """The rewritten model's outputs are others on the timed runtime. `said`: which."""
    WHOLE_FAILED = "whole failed"
    """The whole models were not timed. `said`: the runtime's words."""


@final
class Condition(StrEnum):
    """What a form's exactness hangs on."""

    FINITE_INPUTS = "finite inputs"
    FINITE_WEIGHTS = "finite weights"
    """Which are no constants."""
    FLOAT16_SUMS = "float16 sums"
    """Partial sums in the range of float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """A reason with the facts of it; which ones, `Reason` tells. `said` is in the words of a runtime or a proof."""

    reason: Reason
    strategy: str = ""
    timing: Comparison | None = None
    whole: Comparison | None = None
    number: int = 0
    total: int = 0
    share: float | None = None
    factor: float = 1.0
    said: str | None = None
    forms: tuple[FormTiming, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    because: Why | None = None


def not_measured(reason: Reason | Why, said: str | None = None) -> Why:
    """Return that a site was not measured, and the reason."""
    because = reason if isinstance(reason, Why) else Why(reason=reason, said=said)
    return Why(reason=Reason.NOT_MEASURED, because=because)
