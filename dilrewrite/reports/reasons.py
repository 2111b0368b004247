"""The words for why a site got what it got, and for what became of its forms."""

from __future__ import annotations

import re

from dilrewrite.choice.decision import Decision
from dilrewrite.choice.reason import Condition, Reason, Why
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.proof.inputs import SPELL_PADS
from dilrewrite.reports.units import between, inverse
from dilrewrite.sites import Skipped
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.speed import SAME
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

NOT_CHEAPER = "by what its compiler makes of it, not timed: no form that is known to run there is cheaper by estimate"

WORDS = {
    Reason.INSPECTED: "inspected only",
    Reason.TOO_NEW: "{why.said}",
    Reason.NOT_NAMED: "not named by --only",
    Reason.SKIPPED: "named by --skip",
    Reason.SMALL_DILATION: "its dilation is at most {why.number}",
    Reason.FOLDED: "the dilated Conv that the sandwich computes",
    Reason.FORCED: "forced by --strategy",
    Reason.REFUSED: "{why.refusals[0].strategy} refuses: {why.refusals[0].reason}",
    Reason.CANNOT_GO: "no form leaves it without such a dilation ({refusals})",
    Reason.NATIVE: "{why.said} runs it as it is{work}",
    Reason.FITS: "{why.said}; the cheapest by {model} of {count} that {fit}{judge}",
    Reason.JUDGED: "{why.said}; {because}",
    Reason.CHEAPER: "the target's compiler makes {ratio:.3g}x the work of the dilation; by that and the estimate it "
    "takes {part} of the Conv's",
    Reason.NO_FIT: "{why.said}; no form fits better{refused}",
    Reason.NO_PADS: "no form applies, nor can its own pads be made explicit ({why.refusals[0].reason}): " + SPELL_PADS,
    Reason.NO_FORM: "no other form applies",
    Reason.DECIDED: "by the decisions file",
    Reason.IN_REGION: "rewritten with the region {why.said}",
    Reason.NO_REGION: "stands in no region that {why.strategy} takes",
    Reason.NO_WHOLE_REGION: "stands in no region that {why.strategy} takes: a region goes with all its dilated Convs "
    "or not at all, and not all Convs are selected",
    Reason.LESS_THAN_SITES: "its Convs' own forms, or those of a region that shares nodes with it, are better",
    Reason.WRONG: "a form is wrong",
    Reason.UNPROVED: "{why.strategy} was not proved: {why.said}",
    Reason.TIMED: "{timing} {than} {whole}{interval}",
    Reason.FASTEST: "the fastest of {why.number} forms timed: {timing} {than} {whole}{interval}",
    Reason.ESTIMATED: "the cheapest by estimate without dilation; {because}",
    Reason.SLOWER: "the best other form, {why.strategy}, is {timing}{interval}{rest}",
    Reason.TIE: "no form is faster beyond noise: in these runs the best, {why.strategy}, is {timing}{interval}{rest}",
    Reason.UNTIMED: "{forms}",
    Reason.NOT_CONFIRMED: "{why.strategy} is {timing} here{interval}, but the whole model is not faster with it beyond "
    "noise: {whole_model}",
    Reason.VERSION_FAILED: "{why.strategy} is {timing} here{interval}, but the whole model failed: {why.said}",
    Reason.ONLY_FORM: "it is the only one",
    Reason.CANNOT_MATTER: "cannot matter: {share} of the time",
    Reason.PLANNED: "would be measured: {count}",
    Reason.UNKNOWN: "not measured",
    Reason.NOT_MEASURED: "not measured: {because}",
    Reason.BUDGET: "budget",
    Reason.NO_BUDGET: "--budget 0",
    Reason.DID_NOT_RUN: "it did not run on these inputs",
    Reason.NO_QUESTION: "{why.said}",
    Reason.CONV_FAILED: "{alone} alone does not run on {backend}: {why.said}",
    Reason.MODEL_FAILED: "the model does not run on {backend}: {why.said}",
    Reason.TRIAL_FAILED: "its inputs cannot be tried: the model does not run on {why.said}",
    Reason.PROFILE_SLOW: "profiling the model on {backend} took too long: {why.said}",
    Reason.NO_DATA: "{why.said}",
    Reason.DIFFERS: "the rewritten model computes something else on {backend}: {why.said}",
    Reason.WHOLE_FAILED: "the whole models were not timed: {why.said}",
}


def speed(comparison: Comparison | None) -> str:
    """Return how a form compares with the original: `1.41x faster`; empty where that is not known."""
    if comparison is None:
        return ""
    slower = comparison.ratio > 1
    factor = f"{comparison.ratio if slower else inverse(comparison.ratio):.2f}"
    return SAME if factor == "1.00" else f"{factor}x {'slower' if slower else 'faster'}"


def interval(comparison: Comparison | None) -> str:
    """Return the interval in which that is, with a space before it: ` (1.37 to 1.45x faster)`; empty where none is."""
    return f" ({between(comparison.low, comparison.high)})" if comparison is not None else ""


def brief(reason: str) -> str:
    """Return a reason without its intervals."""
    return re.sub(r" \([\d.]+(?:x slower)? to (?:[\d.]+|inf)x (?:slower|faster)\)", "", reason)


def small(share: float | None) -> str:
    """Return a share that is next to nothing."""
    share = share or 0.0
    return f"{100 * share:.2f} %" if share >= 0.00005 else "less than 0.01 %"


def conditions(hangs_on: tuple[Condition, ...]) -> str:
    """Return what a form is exact for."""
    return " and ".join(CONDITIONS[condition] for condition in hangs_on)


def cause(form: FormTiming, backend: str, whole: str = "Conv") -> str:
    """Return why a form has no time, besides its outcome; may be empty."""
    if form.outcome is Outcome.NOT_MEASURED:
        return f"the {whole} alone does not run on {backend}: {form.cause}"
    return form.cause


def untimed(form: FormTiming, backend: str = "", whole: str = "Conv") -> str:
    """Return what became of a form that has no time."""
    return ": ".join(filter(None, (OUTCOMES[form.outcome], cause(form, backend, whole))))


def words(why: Why, backend: str = "", whole: str = "Conv") -> str:
    """Return a reason in words; `backend`: what was measured on; `whole`: what it is of, a Conv or a region."""
    refusals = "; ".join(f"{refusal.strategy}: {refusal.reason}" for refusal in why.refusals)
    return WORDS[why.reason].format(
        why=why,
        backend=backend,
        timing=speed(why.timing),
        than="as" if speed(why.timing) == SAME else "than",
        interval=interval(why.timing),
        whole_model=speed(why.whole) + interval(why.whole),
        whole="the dilated Conv" if whole == "Conv" else f"the {whole}",
        alone=f"the {whole}",
        rest=f"; {why.number} of {why.total} forms not timed" if why.number else "",
        count=f"{why.number} form{'s' if why.number != 1 else ''}",
        share=small(why.share),
        part=f"{100 * (why.share or 0.0):.0f} %",
        fit="fits" if why.number == 1 else "fit",
        ratio=why.factor,
        work=f", with {why.factor:.3g}x the work {NOT_CHEAPER}" if why.factor > 1 else "",
        model="estimate" if why.factor == 1 else "the profile's cost model and the estimate",
        judge=f"; {words(why.because, backend, whole)}" if why.because is not None else "",
        refused=f" ({refusals})" if refusals else "",
        forms="; ".join(dict.fromkeys(untimed(form, backend, whole) for form in why.forms)),
        refusals=refusals,
        because=words(why.because, backend, whole) if why.because is not None else "",
    )


def of(decision: Decision, backend: str = "") -> str:
    """Return why a site got what it got."""
    meaning = decision.site.meaning
    whole = "region" if isinstance(meaning, Chain) else "sandwich" if isinstance(meaning, Sandwich) else "Conv"
    parts = [words(decision.why, backend, whole)]
    if decision.candidate is not None:
        holds_for = conditions(decision.candidate.holds_for)
        parts += [f"exact for {holds_for} only"] if holds_for else []
        parts += [
            words(Why(reason=Reason.UNPROVED, strategy=refusal.strategy, said=refusal.reason))
            for refusal in decision.unproved
        ]
    if decision.explicit is not None:
        parts.append("its SAME_* pads are computed by a Pad, as ONNX Runtime takes none with dilation")
    return "; ".join(parts)


def wrong(decision: Decision) -> str:
    """Return what is wrong with a form that is not equal to its site."""
    form = "keep with explicit pads" if decision.wrong == "keep" else decision.wrong
    failure = decision.proof.failure if decision.proof is not None else None
    return f"{decision.site.key}: {form} is wrong: {failure}"


def placed(where: str, name: str) -> str:
    """Return what a node is called in tables and sentences: its name, after the graph's unless that is the main one."""
    return name if where == "main" else f"{where}/{name}"


def left(node: Decision | Skipped, backend: str = "") -> str:
    """Return a node that keeps its dilation, and why."""
    if isinstance(node, Skipped):
        return f"{placed(node.where, node.name)} ({node.op}): {node.reason}"
    return f"{placed(node.site.where, node.site.name)}: {of(node, backend)}"
