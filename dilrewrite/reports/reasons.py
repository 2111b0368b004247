"""The words for why a site got what it got, and for what became of its forms."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dilrewrite.choice.decision import Decision
from dilrewrite.choice.reason import Condition, Reason, Why
from dilrewrite.proof.inputs import SPELL_PADS
from dilrewrite.sites import Skipped
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.stopwatch import Comparison

LARGEST_FLOAT16 = 65504

CONDITIONS = {
    Condition.FINITE_INPUTS: "finite inputs",
    Condition.FINITE_WEIGHTS: "finite weights, which are not constant here",
    Condition.FLOAT16_SUMS: f"partial sums in the range of float16: Conv(|x|, |w|) + |b| up to {LARGEST_FLOAT16:,}",
}

OUTCOMES = {
    Outcome.WON: "won",
    Outcome.LOST: "lost",
    Outcome.TIE: "no faster beyond noise",
    Outcome.INCONCLUSIVE: "inconclusive",
    Outcome.OUTRUN: "given up early, another is faster",
    Outcome.UNPROVED: "not proved",
    Outcome.FAILED: "failed",
    Outcome.WRONG: "wrong",
    Outcome.CRASHED: "failed",
    Outcome.TIMED_OUT: "failed",
    Outcome.NO_TIME: "not measured: budget",
    Outcome.NOT_MEASURED: "not measured",
    Outcome.PLANNED: "would be measured",
}

PLAIN = {
    Reason.INSPECTED: "inspected only",
    Reason.NOT_NAMED: "not named by --only",
    Reason.SKIPPED: "named by --skip",
    Reason.FORCED: "forced by --strategy",
    Reason.NO_FORM: "no other form applies",
    Reason.DECIDED: "by the decisions file",
    Reason.WRONG: "a form is wrong",
    Reason.ONLY_FORM: "it is the only one",
    Reason.BUDGET: "budget",
    Reason.NO_BUDGET: "--budget 0",
    Reason.DID_NOT_RUN: "it did not run on these inputs",
}
"""Reasons without figures."""


def times(ratio: float) -> str:
    """Return a ratio of times."""
    return f"{ratio:.2f}x"


def between(comparison: Comparison | None) -> str:
    """Return a ratio with its interval: `0.71x (0.69 to 0.73)`."""
    assert comparison is not None
    return f"{times(comparison.ratio)} ({comparison.low:.2f} to {comparison.high:.2f})"


def small(share: float | None) -> str:
    """Return a share that is next to nothing."""
    share = share or 0.0
    return f"{100 * share:.2f} %" if share >= 0.00005 else "less than 0.01 %"


def conditions(hangs_on: tuple[Condition, ...]) -> str:
    """Return what a form is exact for."""
    return " and ".join(CONDITIONS[condition] for condition in hangs_on)


def cause(form: FormTiming, backend: str) -> str:
    """Return why a form has no time, besides its outcome; may be empty."""
    if form.outcome is Outcome.NOT_MEASURED:
        return f"the Conv alone does not run on {backend}: {form.cause}"
    return form.cause


def untimed(form: FormTiming, backend: str = "") -> str:
    """Return what became of a form that has no time."""
    return ": ".join(filter(None, (OUTCOMES[form.outcome], cause(form, backend))))


def why(found: Why, backend: str = "") -> str:
    """Return a reason in words; `backend`: what was measured on."""
    return PLAIN[found.reason] if found.reason in PLAIN else _FIGURES[found.reason](found, backend)


def of(decision: Decision, backend: str = "") -> str:
    """Return why a site got what it got."""
    parts = [why(decision.why, backend)]
    if decision.candidate is not None:
        holds_for = conditions(decision.candidate.holds_for)
        parts += [f"exact for {holds_for} only"] if holds_for else []
        parts += [f"{refusal.strategy} was not proved: {refusal.reason}" for refusal in decision.unproved]
    if decision.explicit is not None:
        parts.append("its SAME_* pads are computed by a Pad, as ONNX Runtime takes none with dilation")
    return "; ".join(parts)


def wrong(decision: Decision) -> str:
    """Return what is wrong with a form that is not equal to its site."""
    form = "keep with explicit pads" if decision.wrong == "keep" else decision.wrong
    failure = decision.proof.failure if decision.proof is not None else None
    return f"{decision.site.key}: {form} is wrong: {failure}"


def left(node: Decision | Skipped, backend: str = "") -> str:
    """Return a node that keeps its dilation, and why."""
    if isinstance(node, Skipped):
        return f"{node.where}/{node.name} ({node.op}): {node.reason}"
    return f"{node.site.where}/{node.site.name}: {of(node, backend)}"


def _timed(found: Why, _: str) -> str:
    first = f"the fastest of {found.number} forms timed: " if found.number else ""
    return f"{first}takes {between(found.timing)} of the dilated Conv's time"


def _rest(found: Why) -> str:
    return f"; {found.number} of {found.total} forms not timed" if found.number else ""


def _slower(found: Why, _: str) -> str:
    assert found.timing is not None
    return f"keep won by {times(found.timing.ratio)} over {found.strategy}{_rest(found)}"


def _tie(found: Why, _: str) -> str:
    return f"no form is faster beyond noise: {found.strategy} takes {between(found.timing)} of the time{_rest(found)}"


def _not_confirmed(found: Why, _: str) -> str:
    takes = f"takes {between(found.timing)} of the time" if found.timing is not None else "won"
    alone = f"{found.strategy} {takes} here"
    if found.whole is None:
        return f"{alone}, but the whole model failed: {found.said}"
    return f"{alone}, but the whole model is not faster with it beyond noise; it takes {between(found.whole)}"


def _not_measured(found: Why, backend: str) -> str:
    return "not measured" if found.because is None else f"not measured: {why(found.because, backend)}"


def _refusals(found: Why) -> str:
    return "; ".join(f"{refusal.strategy}: {refusal.reason}" for refusal in found.refusals)


def _no_pads(found: Why, _: str) -> str:
    pads = "".join(refusal.reason for refusal in found.refusals)
    return f"no form applies, nor can its own pads be made explicit ({pads}): {SPELL_PADS}"


def _estimated(found: Why, backend: str) -> str:
    assert found.because is not None
    return f"the cheapest by estimate without dilation; {why(found.because, backend)}"


_FIGURES: Mapping[Reason, Callable[[Why, str], str]] = {
    Reason.TOO_NEW: lambda found, _: found.said or "",
    Reason.SMALL_DILATION: lambda found, _: f"its dilation is at most {found.number}",
    Reason.REFUSED: lambda found, _: f"{found.refusals[0].strategy} refuses: {found.refusals[0].reason}",
    Reason.CANNOT_GO: lambda found, _: f"no form leaves it without such a dilation ({_refusals(found)})",
    Reason.NO_PADS: _no_pads,
    Reason.UNPROVED: lambda found, _: f"{found.strategy} was not proved: {found.said}",
    Reason.TIMED: _timed,
    Reason.ESTIMATED: _estimated,
    Reason.SLOWER: _slower,
    Reason.TIE: _tie,
    Reason.UNTIMED: lambda found, backend: "; ".join(dict.fromkeys(untimed(form, backend) for form in found.forms)),
    Reason.NOT_CONFIRMED: _not_confirmed,
    Reason.CANNOT_MATTER: lambda found, _: f"cannot matter: {small(found.share)} of the time",
    Reason.PLANNED: lambda found, _: f"would be measured: {found.number} form{'s' if found.number != 1 else ''}",
    Reason.NOT_MEASURED: _not_measured,
    Reason.NO_QUESTION: lambda found, _: found.said or "",
    Reason.CONV_FAILED: lambda found, backend: f"the Conv alone does not run on {backend}: {found.said}",
    Reason.MODEL_FAILED: lambda found, backend: f"the model does not run on {backend}: {found.said}",
    Reason.NO_DATA: lambda found, _: found.said or "",
    Reason.WHOLE_FAILED: lambda found, _: f"the whole models were not timed: {found.said}",
}
