"""Measures within a budget: where the model's time goes, every form of a site in its neighbourhood, whole models.

Nothing is decided here. Timings go through the cache. A form gets three pairs of runs first, all of them if it may win,
and a proof when it has won.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from onnx import ModelProto, numpy_helper

from dilrewrite._compat import Self
from dilrewrite.forms.chain import Chain
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.proof import sandwich
from dilrewrite.proof.compare import Tolerance
from dilrewrite.proof.verdict import Subject
from dilrewrite.runtimes import (
    Array,
    Backend,
    Bench,
    CannotLoad,
    CannotRun,
    Crashed,
    Lost,
    Options,
    Runnable,
    RuntimeFailure,
    TimedBackend,
    TimedOut,
    prepared,
)
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.timing import agreement, profiling
from dilrewrite.timing.budget import OVERHEAD_S, Budget
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.ledger import Ledger, OriginalRecord, ProfileRecord, WholeRecord, feeds_digest
from dilrewrite.timing.measurement import Measurement
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.outcome import FormTiming, Outcome, outcome
from dilrewrite.timing.profiling import Profiled
from dilrewrite.timing.stopwatch import HOPELESS, MIN_PAIRS, VISIBLE, Comparison, Mode, Noise, OutOfTime, Stopwatch
from dilrewrite.timing.warmth import compared

FORM_ROUNDS = 2
WHOLE_ROUNDS = 4
"""How often sessions are made anew within a comparison, of a site's form and of whole models.

Where memory lies gives each session its own luck, and the one that is made first is slower by up to a percent: an even
number gives both models the first place equally often.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form to time: the strategy's name, its fragment, and the proof of it (a reason when it does not hold)."""

    strategy: str
    fragment: Fragment
    prove: Callable[[], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was measured for a question: forms by strategy; `failure`: the runtime's words for the Conv alone.

    `bare`: without neighbours, with which the runtime did not take it.
    """

    forms: Mapping[str, FormTiming]
    failure: str | None = None
    bare: bool = False


PLACED = (Outcome.WON, Outcome.LOST, Outcome.TIE, Outcome.INCONCLUSIVE)
"""Outcomes of forms that another one has to beat."""

FAILURES: Mapping[type[Exception], Outcome] = {
    Crashed: Outcome.CRASHED,
    Lost: Outcome.NOT_MEASURED,
    TimedOut: Outcome.TIMED_OUT,
    agreement.Differs: Outcome.WRONG,
}

PASSING = (Outcome.UNPROVED, Outcome.TIMED_OUT, Outcome.NO_TIME, Outcome.NOT_MEASURED)
"""Outcomes that are not kept: perhaps they are another day's no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Native:
    """A question's Conv as it is: the model, how it ran against itself, and the memory that it took."""

    question: Question
    model: Runnable
    noise: Noise
    mode: Mode
    peak_bytes: int | None


@dataclass
class Meter:
    """Measures on one backend within a budget. Made by `Meter.on`; `close` ends its worker."""

    backend: TimedBackend
    options: Options
    budget: Budget
    ledger: Ledger
    noise: Noise | None = None
    """The original against itself, as wholes."""
    form_noise: float = 0.0
    """The largest noise of a Conv against itself."""
    tolerance: Tolerance | None = None
    """What outputs on the backend are held to against the original's; `None`: they are not compared."""
    rounded: bool = False
    """Whether the model rounds to integers inside."""
    draws: bool = False
    """Whether the model may draw at random."""
    samples: tuple[Sequence[float], Sequence[float]] = ((), ())
    """Seconds of all samples of both models in the last comparison of whole models that was not recalled."""
    first_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds until the first run of a model was done there, "before" and "after"; see `Bench.open`."""
    peak_bytes: Mapping[str, int | None] = field(default_factory=dict)
    """Memory that each of these took, where it was asked for; see `Bench.peak_bytes`."""
    state_before: Mapping[str, float] = field(default_factory=dict)
    """Readings of the device before measuring."""
    cool_down_s: float = 0.0
    """A pause before each question, beside the budget."""
    doubts: dict[str, None] = field(default_factory=dict)
    """What makes timings doubtful, in the order in which it was seen."""
    _bench: Bench | None = None

    @classmethod
    def on(cls, backend: TimedBackend, cache: Cache, budget: Budget, options: Options | None = None) -> Self:
        """Return a meter whose sessions run with `options`, as timed ones do."""
        timeout_s = max(60.0, 2 * budget.seconds)
        options = replace(options or Options(), timeout_s=timeout_s)
        budget.pairs = max(MIN_PAIRS, backend.pace.pairs)
        return cls(backend=backend, options=options, budget=budget, ledger=Ledger(backend, options, cache))

    def begin(self) -> None:
        """Start the clock."""
        self.state_before = self.backend.state()
        self.budget.begin()

    def worker(self) -> Bench:
        """Return the worker, started when it is first needed."""
        if self._bench is None:
            self._bench = self.backend.bench(self.options)
        return self._bench

    def close(self) -> None:
        """End the worker."""
        if self._bench is not None:
            self.doubts.update(dict.fromkeys(self._bench.warnings()))
            self._bench.close()
            self._bench = None

    def watch(self, deadline_s: float, *, strict: bool = False) -> Stopwatch:
        """Return a stopwatch for what stands on the worker."""
        budget, pace = self.budget, self.backend.pace
        return Stopwatch(self.worker(), deadline_s, strict, clock=budget.now, tick=budget.tick, pace=pace)

    def profile(self, subject: Subject, digest: str, sites: Sequence[Site], feeds: Mapping[str, Array]) -> Profiled:
        """Profile the model on `feeds`; `digest` names the model. Raises what `profiling.profile` raises."""
        key = {"kind": "profile", "model": digest, "inputs": feeds_digest(feeds)}
        late = self.backend.tells_late
        recalled = None if late else self.ledger.recall(key, ProfileRecord, lambda record: record.fits(sites))
        if recalled is not None:
            profiled = recalled.profile(sites)
        else:
            seconds = self.budget.seconds
            options = replace(self.options, timeout_s=max(60.0, seconds))
            profiled = profiling.profile(self.backend, subject, sites, options, feeds, seconds)
            self.ledger.keep(key, ProfileRecord.of(profiled, sites))
        if sites and all(run.share is None for run in profiled.sites.values()):
            self.doubts[f"the profile of {self.backend.name} names no node of the model: every site may matter"] = None
        self.budget.profiled(profiled.seconds)
        return profiled

    def answer(
        self, question: Question, plain: Callable[[], Question], forms: Sequence[Form], slice_s: float, *, must_go: bool
    ) -> Answer:
        """Time the forms of a question, first the one that is given first; `plain` makes it without neighbours.

        A form that clearly loses in its first pairs is left at that: against the best so far, and against the Conv as
        it is unless that `must_go`. What is left when the budget ends is not timed.
        """
        budget = self.budget
        began, before = budget.now(), self.ledger.measured
        try:
            try:
                return self._answer(question, forms, slice_s, must_go)
            except (CannotLoad, CannotRun) as error:
                failure = str(error)
            if question.neighbours:
                try:
                    return replace(self._answer(plain(), forms, slice_s, must_go), bare=True)
                except (CannotLoad, CannotRun, LookupError) as error:
                    failure = str(error)
        finally:
            budget.forms_s += budget.now() - began
            budget.forms_timed += self.ledger.measured - before
        unmeasured = FormTiming(outcome=Outcome.NOT_MEASURED, cause=failure)
        return Answer(forms={form.strategy: unmeasured for form in forms}, failure=failure)

    def _answer(self, question: Question, forms: Sequence[Form], slice_s: float, must_go: bool) -> Answer:
        """Raises CannotLoad or CannotRun when the Conv as it is does not run."""
        budget = self.budget
        results: dict[str, FormTiming] = {}
        pending: list[tuple[Form, dict[str, Any]]] = []
        for form in forms:
            key = {"kind": "form", "question": question.key, "form": form.fragment.digest()}
            recalled = self.ledger.recall(key, FormTiming)
            if recalled is None:
                pending.append((form, key))
                continue
            results[form.strategy] = recalled
            self.form_noise = max(self.form_noise, (recalled.timing.noise if recalled.timing else None) or 0.0)
            budget.winner = budget.winner or recalled.outcome is Outcome.WON
        native: _Native | None = None
        for form, key in pending:
            results[form.strategy] = result = FormTiming(outcome=Outcome.NO_TIME)
            if budget.now() + budget.overhead_s >= budget.forms_until_s:
                continue
            bar = min((t.timing.ratio for t in results.values() if t.outcome in PLACED and t.timing), default=math.inf)
            with contextlib.suppress(OutOfTime):
                native = native or self._calibrated(question, slice_s)
                if budget.now() < budget.forms_until_s:
                    result = self._timed(native, form, slice_s, bar if must_go else min(bar, 1.0))
            results[form.strategy] = result
            budget.winner = budget.winner or result.outcome is Outcome.WON
            if result.outcome not in PASSING:
                self.ledger.keep(key, result, result.timing)
            budget.tick()
        return Answer(forms={form.strategy: results[form.strategy] for form in forms})

    def _timed(self, native: _Native, form: Form, slice_s: float, bar: float) -> FormTiming:
        """Time a form against the Conv as it is, and prove it if it is faster.

        It is given up after the first pairs if it is hopeless against the ratio `bar`.
        """
        question, began = native.question, self.budget.now()
        self._cool_down()
        try:
            self._stand(question.feeds, keep=native.model, form=_runnable(rewritten(question, form.fragment)))
            watch = self.watch(self.budget.forms_until_s, strict=True)
            how: dict[str, Any] = {"noise": native.noise, "mode": native.mode, "rounds": FORM_ROUNDS}
            comparison = compared(self.backend, watch, "keep", "form", slice_s, **how, hopeless=HOPELESS * bar)
            if comparison.faster:
                self._agree("keep", "form", native.model, question.feeds)
            peak_bytes = self._peak_bytes("form", self.budget.forms_until_s - watch.opening_s)
        except RuntimeFailure as error:
            if isinstance(error, Crashed | TimedOut):
                self.close()
            return FormTiming(outcome=FAILURES.get(type(error), Outcome.FAILED), cause=str(error))
        self.budget.overhead_s = max(OVERHEAD_S, self.budget.now() - began - slice_s)
        self._doubt(comparison)
        result = outcome(comparison)
        if result is Outcome.WON and (reason := form.prove()) is not None:
            return FormTiming(outcome=Outcome.UNPROVED, cause=reason)
        if comparison.pairs < MIN_PAIRS:
            if min(y / x for x, y in zip(*watch.samples, strict=True)) <= HOPELESS * bar:
                return FormTiming(outcome=Outcome.NO_TIME)  # time was up after the first pairs
            result = result if comparison.slower else Outcome.OUTRUN
        return FormTiming(outcome=result, timing=comparison, keep_peak_bytes=native.peak_bytes, peak_bytes=peak_bytes)

    def _calibrated(self, question: Question, slice_s: float) -> _Native:
        """Time the Conv as it is against itself, longer where that is too noisy to see anything by."""
        model = _runnable(baseline(question, self.backend))
        self._cool_down()
        try:
            self._stand(question.feeds, keep=model, twin=model)
            watch = self.watch(self.budget.forms_until_s, strict=True)
            noise, mode = watch.noise("keep", "twin", slice_s, rounds=FORM_ROUNDS, enough=VISIBLE)
            peak_bytes = self._peak_bytes("keep", self.budget.forms_until_s - watch.opening_s)
        except (Crashed, TimedOut) as error:
            self.close()
            raise CannotRun(str(error)) from error
        self.form_noise = max(self.form_noise, noise.level)
        return _Native(question=question, model=model, noise=noise, mode=mode, peak_bytes=peak_bytes)

    def _peak_bytes(self, key: str, until_s: float) -> int | None:
        """Return the memory that a model on the worker takes; None where that is not told, or `until_s` is over."""
        return self.worker().peak_bytes(key) if self.budget.now() < until_s else None

    def _cool_down(self) -> None:
        if self.cool_down_s:
            self.budget.pause(self.cool_down_s)

    def _doubt(self, comparison: Comparison) -> None:
        """Note that times vary by more than the backend's limit."""
        limit = self.backend.pace.unsteady
        variation = max(comparison.first.variation, comparison.second.variation)
        if limit is not None and variation > limit:
            words = f"times vary by more than {100 * limit:g} % (their coefficient of variation)"
            self.doubts[f"{words}: the device's clocks change; lock them, or rely on the ratios' intervals only"] = None

    def _agree(self, original: str, other: str, model: Runnable, feeds: Mapping[str, Array]) -> None:
        """Raise Differs when a version of a model computes something else here than the original, `model`, does.

        Where no outputs are compared, CannotRun when a version may not take its place, whatever it takes.
        """
        worker, tolerance = self.worker(), self.tolerance
        if not self.backend.compares:
            if (why := worker.objection(original, other)) is not None:
                raise CannotRun(why)
            return
        if tolerance is None:
            return

        def anew(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            try:
                with contextlib.closing(self.backend.bench(self.options)) as bench:
                    bench.add("anew", prepared(self.backend, model, inputs), inputs)
                    return bench.outputs("anew")
            except RuntimeFailure:
                return {}

        agreement.check(worker, original, other, tolerance, feeds, anew, rounded=self.rounded, draws=self.draws)

    def disagreement(
        self, trial: Backend, outputs: Mapping[str, Array], model: Runnable, digest: str, feeds: Mapping[str, Array]
    ) -> str | None:
        """Return None, or what a model computes here otherwise than its `outputs` on the runtime of the trial.

        `digest` names the model. None, too, where it does not run here.
        """
        if self.tolerance is None or not self.backend.compares:
            return None
        key: dict[str, Any] = {"kind": "original", "model": digest, "inputs": feeds_digest(feeds)}
        key |= {"trial": trial.name, "trial_versions": trial.versions(), "tolerance": repr(self.tolerance)}
        recalled = self.ledger.recall(key, OriginalRecord)
        if recalled is not None:
            return recalled.said

        def anew(inputs: Mapping[str, Array]) -> Mapping[str, Array]:
            with contextlib.suppress(RuntimeFailure), trial.session(model, self.options) as session:
                return _tensors(session.run(inputs))
            return {}

        said = None
        try:
            self._stand(feeds, keep=model)
            here = self.worker().outputs("keep")
            agreement.hold(_tensors(outputs), here, self.tolerance, feeds, anew, rounded=self.rounded, draws=self.draws)
        except agreement.Differs as error:
            said = str(error)
        except RuntimeFailure as error:
            if isinstance(error, Crashed | TimedOut):
                self.close()
            return None
        self.ledger.keep(key, OriginalRecord(said=said))
        return said

    def _stand(self, feeds: Mapping[str, Array], **models: Runnable) -> None:
        """Bring models to the worker, and nothing else."""
        worker = self.worker()
        for key in ("keep", "twin", "form", "before", "after"):
            if key not in models:
                worker.drop(key)
        for key, model in models.items():
            worker.add(key, prepared(self.backend, model, feeds), feeds)

    def whole(
        self,
        before: Runnable,
        after: Runnable,
        digests: tuple[str, str],
        feeds: Mapping[str, Array],
        *,
        run_s: float,
        share: float = 1.0,
        memory: bool = False,
    ) -> Comparison:
        """Time a model (`after`) against another as wholes, within `share` of the time that is left.

        `run_s`: what a run takes, about. `memory`: measure that too, into `peak_bytes`. At least two sessions and
        `MIN_PAIRS` pairs run, whatever the budget.
        Raises CannotLoad, CannotRun (Differs where its outputs do), Crashed or TimedOut, and ends the worker.
        """
        key = {"kind": "model", "before": digests[0], "after": digests[1], "inputs": feeds_digest(feeds)}
        recalled = self.ledger.recall(key, WholeRecord)
        if recalled is not None:
            self.noise = self.noise or recalled.noise
            return recalled.timing
        try:
            comparison = self._whole(before, after, feeds, run_s, share, memory)
        except RuntimeFailure:
            self.close()
            raise
        self._doubt(comparison)
        self.ledger.keep(key, WholeRecord(timing=comparison, noise=self.noise), comparison)
        return comparison

    def _whole(
        self, before: Runnable, after: Runnable, feeds: Mapping[str, Array], run_s: float, share: float, memory: bool
    ) -> Comparison:
        self._cool_down()
        budget, started = self.budget, self.budget.now()
        watch = self.watch(budget.until_s)
        ends_s = started + max(budget.until_s - started, 0.0) * share
        opening_s, mode = self._calibrated_whole(watch, before, feeds, ends_s - started, run_s)
        least = opening_s + budget.pairs * (watch.pair_s or 2 * run_s)
        self._stand(feeds, before=before, after=after)
        if memory:
            self.peak_bytes = {key: self._peak_bytes(key, ends_s) for key in ("before", "after")}
        left = max(ends_s - budget.now(), 0.0)
        rounds = _rounds(opening_s, left)
        self._agree("before", "after", before, feeds)
        how: dict[str, Any] = {"noise": self.noise, "mode": mode, "rounds": rounds}
        comparison = compared(self.backend, watch, "before", "after", left * 0.9, **how)
        self.samples = watch.samples
        self.first_s = {key: watch.first_s[key] for key in ("before", "after") if key in watch.first_s}
        if budget.now() > budget.until_s:
            fewest = watch.opening_s + 2 * budget.pairs * watch.pair_s + least
            budget.floor_s += min(budget.now() - started, fewest)
        return comparison

    def _calibrated_whole(
        self, watch: Stopwatch, model: Runnable, feeds: Mapping[str, Array], left_s: float, run_s: float
    ) -> tuple[float, Mode]:
        """Time the original against itself once, where there is time; return what opening takes, and how to time."""
        opening_s = self.budget.opening_s(run_s)
        if self.noise is not None or left_s <= 3 * (2 * self.budget.pairs * run_s) + 2 * opening_s:
            return opening_s, "interleaved"
        self._stand(feeds, before=model, twin=model)
        slice_s = left_s * 0.35
        self.noise, mode = watch.noise("before", "twin", slice_s, rounds=_rounds(opening_s, slice_s))
        return watch.opening_s, mode

    def measurement(self, feeds: Mapping[str, Array], **more: Any) -> Measurement:
        """Return what a report says of measuring on `feeds`, with `more` of its fields."""
        backend, budget = self.backend, self.budget
        return Measurement(
            backend=backend.name,
            device=backend.device(),
            versions=backend.versions(),
            settings=backend.settings(self.options),
            inputs={name: tuple(getattr(value, "shape", ())) for name, value in feeds.items()},
            budget_s=budget.seconds,
            spent_s=round(budget.now(), 3),
            floor_s=round(budget.floor_s, 3),
            measured=self.ledger.measured,
            recalled=self.ledger.recalled,
            noise=self.noise,
            form_noise=self.form_noise or None,
            doubts=tuple(self.doubts),
            source=backend.source,
            unit=backend.unit,
            first_run_s=self.first_s,
            state_before=self.state_before,
            state_after=backend.state(),
            **more,
        )


def _rounds(opening_s: float, slice_s: float) -> int:
    """Return how often sessions are made anew in a slice: loading shall take less than half of it."""
    return next((rounds for rounds in (WHOLE_ROUNDS, 2) if rounds * opening_s < slice_s / 2), 1)


def rewritten(question: Question, fragment: Fragment) -> ModelProto:
    """Return the question's model with a form in the place of the Conv."""
    normalised = find(question.model).normalisations
    if question.words:
        names = {place: node.name for place, node in enumerate(question.model.graph.node)}
        fragment = sandwich.fitted(fragment, question.words, question.site, names)
    return rewrite(question.model, [(question.site, fragment)], normalised, numpy_helper.to_array).proto


def baseline(question: Question, backend: TimedBackend) -> ModelProto:
    """Return the question's model, with explicit pads where a runtime does not take the Conv as it is.

    Raises CannotRun when there is no such form.
    """
    site = question.site
    if isinstance(site.meaning, Chain) or backend.refuses(site.geometry) is None:
        return question.model
    keep = plan("keep", strategies()["keep"], site.geometry, site.opset, storage=site.storage)
    if isinstance(keep, Refusal):
        raise CannotRun(f"it has no runnable form: {keep.reason}")
    return rewritten(question, keep)


def _tensors(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {name: value for name, value in outputs.items() if isinstance(value, np.ndarray)}


def _runnable(model: ModelProto) -> Runnable:
    return Runnable(model=model.SerializeToString())
