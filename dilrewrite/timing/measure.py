"""Measures within a budget: where the model's time goes, every form of a site in its neighbourhood, whole models.

Nothing is decided here. Timings go through the cache. A form gets three pairs of runs first, all of them if it may win,
and a proof when it has won.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.proof.verdict import Subject
from dilrewrite.runtimes import (
    Array,
    Bench,
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Runnable,
    TimedBackend,
    TimedOut,
    prepared,
    spelled,
)
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.timing import profiling
from dilrewrite.timing import stopwatch as timing
from dilrewrite.timing.cache import Cache
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.outcome import FormTiming, Outcome, outcome
from dilrewrite.timing.profiling import Place, Profiled, SiteRun
from dilrewrite.timing.stopwatch import MARGIN, MIN_PAIRS, VISIBLE, Comparison, Noise, Stopwatch, Timing

CONFIRMATION = 1 / 3
"""The share of the budget that is kept for timing the whole model."""

FEWEST_S, MOST_S = 0.15, 1.0
"""How long one form is timed at least and at most, about."""

OVERHEAD_S = 0.25
"""What a form costs besides its runs, about: loading two sessions and warming them up."""

FORM_ROUNDS = 2
WHOLE_ROUNDS = 4
"""How often sessions are made anew within a comparison, of a site's form and of whole models.

Where memory lies gives each session its own luck, and the one that is made first is slower by up to a percent: an even
number gives both models the first place equally often.
"""

NEGLIGIBLE = 0.01
"""Sites that together take no more than this share of the model's time cannot matter."""

CACHE_VERSION = 4
"""Of what is kept in the cache; raised when timings are taken in another way."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form to time: the strategy's name, its fragment, and the proof of it (a reason when it does not hold)."""

    strategy: str
    fragment: Fragment
    prove: Callable[[], str | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was measured for a question: forms by strategy; `failure`: the runtime's words for the Conv alone."""

    forms: Mapping[str, FormTiming]
    failure: str | None = None


PLACED = (Outcome.WON, Outcome.LOST, Outcome.TIE, Outcome.INCONCLUSIVE)
"""Outcomes of forms that another one has to beat."""

FAILURES: Mapping[type[Exception], Outcome] = {Crashed: Outcome.CRASHED, TimedOut: Outcome.TIMED_OUT}

PASSING = (Outcome.UNPROVED, Outcome.TIMED_OUT, Outcome.NO_TIME)
"""Outcomes that are not kept: perhaps they are another day's no more."""


def lasting(comparison: Comparison | None) -> bool:
    """Say whether a result is kept: what a noisy machine told, or could not tell, is measured again another day."""
    return comparison is None or (comparison.conclusive and (comparison.noise or 0.0) <= VISIBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Native:
    """A question's Conv as it is: the model, and how it ran against itself."""

    question: Question
    model: bytes
    noise: Noise
    mode: timing.Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A version of the whole model and its time: the groups of sites (by number) that were rewritten in it."""

    groups: tuple[int, ...]
    timing: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """What the whole model said: the groups to rewrite (none: keep), all that was tried, the time of the best.

    `failure`: what the last version failed with that did not run.
    """

    groups: tuple[int, ...]
    attempts: tuple[Attempt, ...]
    final: Comparison | None = None
    failure: str | None = None


@dataclass
class Meter:
    """Measures on one backend. `begin` starts the clock of the budget: all that a user waits for counts on it.

    `min_gain`: the share of the whole model's time that a version of it must save to be taken.
    """

    backend: TimedBackend
    cache: Cache
    budget_s: float
    min_gain: float = MARGIN
    threads: int | None = None
    custom_op_library: tuple[Path, ...] = ()
    precision: str | None = None
    scratch: Path | None = None
    progress: Callable[[str, int, int], None] = lambda *_: None
    clock: Callable[[], float] = time.monotonic
    measured: int = 0
    recalled: int = 0
    floor_s: float = 0.0
    noise: Noise | None = None
    winner: bool = False
    """Whether some form was faster: then a third of the budget stays for the whole model."""
    run_s: float = 0.0
    """Seconds of one run of the whole model, about; 0 when unknown."""
    profiled_s: float = 0.0
    """When the profile was done, on the clock of `now`: what comes before is always done."""
    load_s: float = 0.0
    """Seconds that loading the whole model takes, about; 0 when unknown."""
    overhead_s: float = OVERHEAD_S
    """What a form costs besides its runs, about; where engines are built, as long as the last ones took."""
    samples: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    """Seconds of every sample of the last comparison of whole models that was not recalled."""
    first_s: dict[str, float] = field(default_factory=dict)
    """Seconds until the first run of the whole models was done, "before" and "after"; see `Bench.open`."""
    doubts: dict[str, None] = field(default_factory=dict)
    form_noise: float = 0.0
    """The largest noise of a Conv against itself."""
    forms_s: float = 0.0
    """Seconds that were spent on `forms_timed` forms, with all that is done for them."""
    forms_timed: int = 0
    _began: float | None = None
    _bench: Bench | None = None
    _circumstances: dict[str, Any] = field(default_factory=dict)

    # -- the budget ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the clock."""
        self._began = self.clock()

    def now(self) -> float:
        """Return the seconds spent on measuring."""
        return 0.0 if self._began is None else self.clock() - self._began

    @property
    def until_s(self) -> float:
        """Return when measuring ends, on the clock of `now`: the budget is for what comes after the profile."""
        return self.profiled_s + self.budget_s

    @property
    def forms_until_s(self) -> float:
        """Return when timing forms ends, on the clock of `now`.

        Without a winner so far, only what the least confirmation takes is kept back.
        """
        early = self.until_s - self.budget_s * CONFIRMATION
        return early if self.winner else max(early, self.until_s - 4 * self._fewest * self.run_s - 1.0)

    @property
    def _fewest(self) -> int:
        return max(MIN_PAIRS, self.backend.pace.pairs)

    def tick(self) -> None:
        """Show progress."""
        total = max(1, math.ceil(self.until_s))
        self.progress("measure", min(int(self.now()), total), total)

    # -- circumstances and cache ---------------------------------------------------------------------------------

    @property
    def options(self) -> Options:
        """Return how sessions run while they are timed."""
        return Options(
            threads=self.threads,
            spin=True,
            stop_spinning=True,
            custom_op_library=self.custom_op_library,
            timeout_s=max(60.0, 2 * self.budget_s),
            precision=self.precision,
            scratch=self.scratch,
        )

    @property
    def circumstances(self) -> Mapping[str, Any]:
        """Return everything besides the question that a timing depends on, as plain data."""
        if not self._circumstances:
            self._circumstances = {
                "cache_version": CACHE_VERSION,
                "backend": spelled(self.backend),
                "versions": self.backend.versions(),
                "device": self.backend.device(),
                "settings": self.backend.settings(self.options),
                "libraries": [_file_digest(path) for path in self.custom_op_library],
            }
        return self._circumstances

    def _cached(self, key: Mapping[str, Any], read: Callable[[Mapping[str, Any]], T]) -> T | None:
        """Return what the cache holds under `key`, when `read` makes sense of it."""
        found = self.cache.get({**key, **self.circumstances})
        if found is None:
            return None
        try:
            value = read(found)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            return None
        self.recalled += 1
        return value

    def _keep(self, key: Mapping[str, Any], value: Mapping[str, Any], timing: Comparison | None = None) -> None:
        self.measured += 1
        if lasting(timing):
            self.cache.put({**key, **self.circumstances}, value)

    # -- the worker ----------------------------------------------------------------------------------------------

    def _worker(self) -> Bench:
        if self._bench is None:
            self._bench = self.backend.bench(self.options)
        return self._bench

    def close(self) -> None:
        """End the worker."""
        if self._bench is not None:
            self.doubts.update(dict.fromkeys(self._bench.warnings()))
            self._bench.close()
            self._bench = None

    def _watch(self, deadline_s: float) -> Stopwatch:
        return Stopwatch(self._worker(), deadline_s=deadline_s, clock=self.now, tick=self.tick, pace=self.backend.pace)

    # -- where the time goes -------------------------------------------------------------------------------------

    def profile(self, subject: Subject, digest: str, sites: Sequence[Site], feeds: Mapping[str, Array]) -> Profiled:
        """Profile the model on `feeds`; `digest` names the model. Raises what `profiling.profile` raises."""
        key = {"kind": "profile", "model": digest, "inputs": feeds_digest(feeds)}
        found = self._cached(key, lambda value: _profiled(value, sites))
        if found is None:
            found = profiling.profile(self.backend, subject, sites, self.options, feeds, self.run_s)
            self._keep(key, _profiled_data(found, sites))
        self.run_s = found.seconds
        self.profiled_s = self.floor_s = self.now()
        return found

    def needed_s(self, untimed: int) -> float:
        """Return about the budget that would have done for all forms, of which so many are `untimed`."""
        each = self.forms_s / self.forms_timed if self.forms_timed else MOST_S / 2 + OVERHEAD_S
        return (self.forms_s + untimed * each) / (1 - CONFIRMATION)

    # -- forms of a site -----------------------------------------------------------------------------------------

    def slice_s(self, comparisons: int) -> float:
        """Return how long one of `comparisons` may take in the time that is left for forms."""
        left = max(self.forms_until_s - self.now(), 0.0)
        return min(max(left / max(comparisons, 1) - self.overhead_s, FEWEST_S), MOST_S)

    def answer(
        self, question: Question, plain: Callable[[], Question], forms: Sequence[Form], slice_s: float, *, must_go: bool
    ) -> Answer:
        """Time the forms of a question, first the one that is given first; `plain` makes it without neighbours.

        A form that clearly loses in its first pairs is left at that: against the best so far, and against the Conv as
        it is unless that `must_go`. What is left when the budget ends is not timed.
        """
        began, before = self.now(), self.measured
        try:
            try:
                return self._answer(question, forms, slice_s, must_go)
            except (CannotLoad, CannotRun) as error:
                failure = str(error)
            if question.neighbours:
                try:
                    return self._answer(plain(), forms, slice_s, must_go)
                except (CannotLoad, CannotRun, LookupError) as error:
                    failure = str(error)
        finally:
            self.forms_s += self.now() - began
            self.forms_timed += self.measured - before
        unmeasured = FormTiming(outcome=Outcome.NOT_MEASURED, cause=failure)
        return Answer(forms={form.strategy: unmeasured for form in forms}, failure=failure)

    def _answer(self, question: Question, forms: Sequence[Form], slice_s: float, must_go: bool) -> Answer:
        """Raises CannotLoad or CannotRun when the Conv as it is does not run."""
        results: dict[str, FormTiming] = {}
        pending: list[tuple[Form, dict[str, Any]]] = []
        for form in forms:
            key = {"kind": "form", "question": question.key, "form": form.fragment.digest()}
            known = self._cached(key, _form_timing)
            if known is None:
                pending.append((form, key))
                continue
            results[form.strategy] = known
            self.form_noise = max(self.form_noise, (known.timing.noise if known.timing else None) or 0.0)
            self.winner = self.winner or known.outcome is Outcome.WON
        native: _Native | None = None
        for form, key in pending:
            if self.now() + self.overhead_s >= self.forms_until_s:
                results[form.strategy] = FormTiming(outcome=Outcome.NO_TIME)
                continue
            if native is None:
                native = self._calibrated(question, slice_s)
            bar = min((t.timing.ratio for t in results.values() if t.outcome in PLACED and t.timing), default=math.inf)
            result = self._timed(native, form, slice_s, bar if must_go else min(bar, 1.0))
            results[form.strategy] = result
            self.winner = self.winner or result.outcome is Outcome.WON
            if result.outcome not in PASSING:
                self._keep(key, _form_data(result), result.timing)
            self.tick()
        return Answer(forms={form.strategy: results[form.strategy] for form in forms})

    def _timed(self, native: _Native, form: Form, slice_s: float, bar: float) -> FormTiming:
        """Time a form against the Conv as it is, and prove it if it is faster.

        It is given up after the first pairs if it is hopeless against the ratio `bar`.
        """
        question, began = native.question, self.now()
        try:
            normalised = find(question.model).normalisations
            rewritten = rewrite(question.model, [(question.site, form.fragment)], normalised, _own).proto
            models = {"keep": (native.model, question.feeds), "form": (rewritten.SerializeToString(), question.feeds)}
            self._stand(self._worker(), models)
            watch = self._watch(self.forms_until_s)
            comparison = watch.compare(
                "keep",
                "form",
                slice_s,
                noise=native.noise,
                mode=native.mode,
                rounds=FORM_ROUNDS,
                hopeless=timing.HOPELESS * bar,
            )
        except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
            if isinstance(error, Crashed | TimedOut):
                self.close()
            return FormTiming(outcome=FAILURES.get(type(error), Outcome.FAILED), cause=str(error))
        self.overhead_s = max(OVERHEAD_S, self.now() - began - slice_s)
        self._doubt(comparison)
        result = outcome(comparison)
        if result is Outcome.WON and (reason := form.prove()) is not None:
            return FormTiming(outcome=Outcome.UNPROVED, cause=reason)
        if comparison.pairs < MIN_PAIRS:
            if min(y / x for x, y in zip(*watch.samples, strict=True)) <= timing.HOPELESS * bar:
                return FormTiming(outcome=Outcome.NO_TIME)  # time was up after the first pairs
            result = result if comparison.slower else Outcome.OUTRUN
        return FormTiming(outcome=result, timing=comparison)

    def _calibrated(self, question: Question, slice_s: float) -> _Native:
        """Time the Conv as it is against itself; once more where that is too noisy to see anything by."""
        model = _baseline(question, self.backend)
        noise, mode = self._against_itself(question, model, slice_s)
        if noise.level > VISIBLE and self.now() + 2 * slice_s < self.forms_until_s:
            again = self._against_itself(question, model, slice_s)
            noise, mode = min((noise, mode), again, key=lambda found: found[0].level)
        self.form_noise = max(self.form_noise, noise.level)
        return _Native(question=question, model=model, noise=noise, mode=mode)

    def _against_itself(self, question: Question, model: bytes, slice_s: float) -> tuple[Noise, timing.Mode]:
        try:
            self._stand(self._worker(), {"keep": (model, question.feeds), "twin": (model, question.feeds)})
            return self._watch(self.forms_until_s).noise("keep", "twin", slice_s, rounds=FORM_ROUNDS)
        except (Crashed, TimedOut) as error:
            self.close()
            raise CannotRun(str(error)) from error

    def _doubt(self, comparison: Comparison) -> None:
        """Note that times vary by more than the backend's limit."""
        limit = self.backend.pace.unsteady
        variation = max(comparison.first.variation, comparison.second.variation)
        if limit is not None and variation > limit:
            words = f"times vary by more than {100 * limit:g} % (their coefficient of variation)"
            self.doubts[f"{words}: the device's clocks change; lock them, or rely on the ratios' intervals only"] = None

    def _stand(self, worker: Bench, models: Mapping[str, tuple[bytes | Runnable, Mapping[str, Array]]]) -> None:
        """Bring models to the worker, and nothing else."""
        for key in ("keep", "twin", "form", "before", "after"):
            if key not in models:
                worker.drop(key)
        for key, (model, feeds) in models.items():
            runnable = model if isinstance(model, Runnable) else Runnable(model=model)
            worker.add(key, prepared(self.backend, runnable, feeds), feeds)

    # -- whole models --------------------------------------------------------------------------------------------

    def whole(
        self,
        before: Runnable,
        after: Runnable,
        digests: tuple[str, str],
        feeds: Mapping[str, Array],
        *,
        run_s: float,
        share: float = 1.0,
    ) -> Comparison:
        """Time a model (`after`) against another as wholes, within `share` of the time that is left.

        `run_s`: what a run takes, about. At least two sessions and `MIN_PAIRS` pairs run, whatever the budget.
        Raises CannotLoad, CannotRun, Crashed or TimedOut.
        """
        inputs = feeds_digest(feeds)
        key = {"kind": "model", "before": digests[0], "after": digests[1], "inputs": inputs}
        known = self._cached(key, lambda value: (_comparison(value["timing"]), _noise(value["noise"])))
        if known is not None:
            self.noise = self.noise or known[1]
            return known[0]
        worker = self._worker()
        models: dict[str, tuple[bytes | Runnable, Mapping[str, Array]]] = {"before": (before, feeds)}
        ends_s = self.now() + max(self.until_s - self.now(), 0.0) * share
        left = ends_s - self.now()
        watch = self._watch(self.until_s)
        mode: timing.Mode = "interleaved"
        started = self.now()
        opening_s = 2 * self.load_s + 6 * run_s
        if self.noise is None and left > 3 * (2 * self._fewest * run_s) + 2 * opening_s:
            self._stand(worker, {**models, "twin": (before, feeds)})
            rounds = _rounds(opening_s, left * 0.35)
            self.noise, mode = watch.noise("before", "twin", left * 0.35, rounds=rounds)
            opening_s = watch.opening_s
        least = opening_s + self._fewest * (watch.pair_s or 2 * run_s)
        left = max(ends_s - self.now(), 0.0)
        rounds = _rounds(opening_s, left)
        self._stand(worker, {**models, "after": (after, feeds)})
        comparison = watch.compare("before", "after", left * 0.9, noise=self.noise, mode=mode, rounds=rounds)
        self.samples = watch.samples
        self.first_s = {key: watch.first_s[key] for key in ("before", "after") if key in watch.first_s}
        self._doubt(comparison)
        if self.now() > self.until_s:
            self.floor_s += min(self.now() - started, watch.opening_s + 2 * self._fewest * watch.pair_s + least)
        self._keep(
            key,
            {
                "timing": dataclasses.asdict(comparison),
                "noise": None if self.noise is None else dataclasses.asdict(self.noise),
            },
            comparison,
        )
        return comparison

    def confirm(
        self,
        before: Runnable,
        digest: str,
        groups: Sequence[int],
        make: Callable[[Sequence[int]], tuple[Runnable, str]],
        feeds: Mapping[str, Array],
        run_s: float,
    ) -> Confirmed:
        """Find the groups of sites, of those given, whose rewriting makes the whole model faster.

        All at once; only when that does not win, halves of them, until the budget ends. `make` builds a version.
        """
        attempts: list[Attempt] = []
        best: Attempt | None = None
        pending: list[tuple[int, ...]] = [tuple(groups)]
        failure: str | None = None
        while pending:
            some = pending.pop(0)
            after, after_digest = make(some)
            try:
                share = 0.8 if len(groups) > 1 else 1.0
                found = self.whole(before, after, (digest, after_digest), feeds, run_s=run_s, share=share)
            except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
                self.close()
                failure = str(error)
                found = None
            if found is not None:
                attempts.append(Attempt(groups=some, timing=found))
                if found.gains(self.min_gain) and (best is None or found.ratio < best.timing.ratio):
                    best = attempts[-1]
                    if len(some) == len(groups):
                        break
            if (found is None or not found.gains(self.min_gain)) and len(some) > 1:
                half = (len(some) + 1) // 2
                pending += [some[:half], some[half:]]
            if self.now() + 2 * self._fewest * run_s > self.until_s:
                break
        if best is None:
            return Confirmed(groups=(), attempts=tuple(attempts), failure=failure)
        return Confirmed(groups=best.groups, attempts=tuple(attempts), final=best.timing, failure=failure)


def _rounds(opening_s: float, slice_s: float) -> int:
    """Return how often sessions are made anew in a slice: loading shall take less than half of it."""
    return next((rounds for rounds in (WHOLE_ROUNDS, 2) if rounds * opening_s < slice_s / 2), 1)


def estimated_s(questions: Iterable[int], budget_s: float) -> float:
    """Return about how long measuring takes, for questions with so many forms each."""
    forms = sum(1.5 * (MOST_S + OVERHEAD_S) + number * (MOST_S / 2 + OVERHEAD_S) for number in questions)
    return min(forms + 3.0, budget_s * (1 - CONFIRMATION)) + min(forms, budget_s * CONFIRMATION)


# -- models and data ---------------------------------------------------------------------------------------------------


def _own(tensor: TensorProto) -> NDArray[np.generic]:
    return numpy_helper.to_array(tensor)


def _baseline(question: Question, backend: TimedBackend) -> bytes:
    """Return the question's model, with explicit pads where a runtime does not take the Conv as it is."""
    if backend.refuses(question.site.geometry) is None:
        return cast("bytes", question.model.SerializeToString())
    site = question.site
    keep = plan("keep", strategies()["keep"], site.geometry, site.opset, storage=site.storage)
    if isinstance(keep, Refusal):
        raise CannotRun(f"it has no runnable form: {keep.reason}")
    return cast("bytes", rewrite(question.model, [(site, keep)], (), _own).proto.SerializeToString())


def feeds_digest(feeds: Mapping[str, Array]) -> str:
    """Return a digest of names, types, shapes and values."""
    text = hashlib.sha256()
    for name in sorted(feeds):
        value = feeds[name]
        if isinstance(value, np.ndarray) and value.dtype.kind != "O":
            text.update(f"{name} {value.dtype} {value.shape}".encode())
            text.update(np.ascontiguousarray(value).tobytes())
        else:
            text.update(f"{name} {value!r}".encode())
    return text.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _timing(value: Mapping[str, Any]) -> Timing:
    return Timing(
        median_s=float(value["median_s"]),
        p20_s=float(value["p20_s"]),
        p80_s=float(value["p80_s"]),
        runs=int(value["runs"]),
        p99_s=float(value["p99_s"]),
        variation=float(value["variation"]),
    )


def _comparison(value: Mapping[str, Any]) -> Comparison:
    return Comparison(
        first=_timing(value["first"]),
        second=_timing(value["second"]),
        ratio=float(value["ratio"]),
        low=float(value["low"]),
        high=float(value["high"]),
        pairs=int(value["pairs"]),
        noise=None if value["noise"] is None else float(value["noise"]),
        mode="blocks" if value["mode"] == "blocks" else "interleaved",
    )


def _noise(value: Mapping[str, Any] | None) -> Noise | None:
    if value is None:
        return None
    return Noise(
        ratio=float(value["ratio"]), low=float(value["low"]), high=float(value["high"]), pairs=int(value["pairs"])
    )


def _form_data(form: FormTiming) -> dict[str, Any]:
    found = form.timing
    return {
        "outcome": str(form.outcome),
        "timing": None if found is None else dataclasses.asdict(found),
        "cause": form.cause,
    }


def _form_timing(value: Mapping[str, Any]) -> FormTiming:
    found = value["timing"]
    compared = None if found is None else _comparison(found)
    return FormTiming(outcome=Outcome(value["outcome"]), timing=compared, cause=str(value["cause"]))


def _profiled_data(profiled: Profiled, sites: Sequence[Site]) -> dict[str, Any]:
    wanted = {site.scope for site in sites}
    runs = [profiled.sites[site.scope, site.index] for site in sites]
    numbered = {scope: number for number, scope in enumerate(dict.fromkeys(site.scope for site in sites))}
    return {
        "seconds": profiled.seconds,
        "sites": [dataclasses.asdict(run) for run in runs],
        "tensors": [
            [numbered[scope], name, shape] for (scope, name), shape in profiled.tensors.items() if scope in wanted
        ],
    }


def _profiled(value: Mapping[str, Any], sites: Sequence[Site]) -> Profiled:
    scopes = list(dict.fromkeys(site.scope for site in sites))
    runs: dict[Place, SiteRun] = {
        (site.scope, site.index): SiteRun(
            share=None if run["share"] is None else float(run["share"]),
            shapes=tuple(tuple(map(int, shape)) for shape in run["shapes"]),
            times=int(run["times"]),
            interval=None if run["interval"] is None else (float(run["interval"][0]), float(run["interval"][1])),
        )
        for site, run in zip(sites, value["sites"], strict=True)
    }
    return Profiled(
        seconds=float(value["seconds"]),
        sites=runs,
        tensors={(scopes[number], str(name)): tuple(map(int, shape)) for number, name, shape in value["tensors"]},
    )
