"""Measures the sites of one model: which of them matter, how their forms do, and the model with what won."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from onnx import ModelProto

from dilrewrite import machine
from dilrewrite.choice import choose
from dilrewrite.choice.confirm import search
from dilrewrite.choice.decide import Decider
from dilrewrite.choice.decision import Considered, Decision, SiteMeasurement
from dilrewrite.choice.layers import compare_layers
from dilrewrite.choice.original import Original
from dilrewrite.choice.reason import Condition, Reason, Why, not_measured
from dilrewrite.errors import UsageError
from dilrewrite.forms.chain import Chain
from dilrewrite.model.tensors import read_tensor
from dilrewrite.proof.prove import Proof
from dilrewrite.proof.verdict import Subject
from dilrewrite.runtimes import Lost, RuntimeFailure, TimedOut, timed_backends
from dilrewrite.sites import Site
from dilrewrite.sites.find import too_new
from dilrewrite.timing import neighbourhood, stretch
from dilrewrite.timing.agreement import Differs, allowed, may_draw, quantises
from dilrewrite.timing.budget import CONFIRMATION, REGION_S, estimated_s
from dilrewrite.timing.measure import Answer, Form, Meter
from dilrewrite.timing.measurement import Attempt, LayerComparison, Measurement
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.profiling import SiteRun
from dilrewrite.timing.stopwatch import MARGIN, Comparison

NEGLIGIBLE = 0.01
"""Sites that together take no more than this share of the model's time cannot matter."""


@dataclass
class Tuning:
    """The measuring of one model. Made when something is to be measured; `close` ends its worker.

    `min_gain`: the share of its time that the whole model must save. `sites`: what was measured, or why nothing was, by
    the site's key. `answers`, `of_regions`: of the questions that they came to. `untimed`: how many forms the budget
    did not reach.
    """

    original: Original
    meter: Meter
    decider: Decider
    min_gain: float = MARGIN
    forget: Callable[[], None] = lambda: None
    load: float | None = field(default_factory=machine.load)
    here: bool = True
    """Whether models are timed on this machine."""
    failure: Why | None = None
    differs: Why | None = None
    """What the model computes otherwise on the timed runtime that has to be rewritten as it is."""
    sites: dict[str, SiteMeasurement] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    of_regions: dict[str, Answer] = field(default_factory=dict)
    untimed: int = 0
    attempts: tuple[Attempt, ...] = ()
    final: Comparison | None = None
    layers: LayerComparison | None = None

    def close(self) -> None:
        """End the worker, and `forget` what was built for it and is not kept."""
        self.meter.close()
        self.forget()

    def start(self) -> bool:
        """Find data that the original runs on, and profile it. False: nothing can be measured, `failure` says why.

        Raises `UsageError` when no data can be made up for it.
        """
        meter = self.meter
        meter.budget.progress("measure", 0, 1)
        meter.begin()
        try:
            self.original.choose_inputs(meter)
            settings = self.original.settings
            rounds_to = meter.backend.rounds_to(meter.options)
            meter.tolerance = allowed(self.original.baseline, rounds_to, settings.rtol, settings.atol)
            meter.rounded = quantises(self.original.baseline)
            meter.draws = may_draw(self.original.baseline)
            meter.budget.tick()
        except RuntimeFailure as error:
            trial = meter.backend.trial
            here = trial is None or (self.here and trial == meter.backend.name)
            said = str(error) if here else f"{trial}{'' if self.here else ' here'}: {error}"
            self.failure = Why(reason=Reason.MODEL_FAILED if here else Reason.TRIAL_FAILED, said=said)
            return False
        try:
            try:
                self.original.profile(meter)
            except Lost:
                self.original.profile(meter)  # over a connection that is made again
        except RuntimeFailure as error:
            slow = isinstance(error, TimedOut)
            self.failure = Why(reason=Reason.PROFILE_SLOW if slow else Reason.MODEL_FAILED, said=str(error))
            return False
        self.original.compare_runtimes(meter)
        return True

    def measure(self, considered: Sequence[Considered], *, needed: bool = True) -> None:
        """Time the forms of the sites that timings decide about, the ones that take most time first.

        `needed`: what the budget does not reach is missing.
        """
        entries = [entry for entry in considered if entry.measurable]
        if self.failure is not None:
            for entry in entries:
                self._leave(entry, not_measured(self.failure))
            return
        groups = self._that_matter([entry for entry in entries if self._may_be_asked(entry)])
        for number, group in enumerate(groups):
            for entry in group:
                if self.meter.budget.now() < self.meter.budget.forms_until_s:  # else not even its question is made
                    self._measure(entry, self._slice_s(groups[number:]))
        missed = [group[0] for group in groups if any(entry.site.key not in self.sites for entry in group)]
        timings = [f for group in groups if group[0] not in missed for f in self.of(group[0]).timings.values()]
        if needed:
            self.untimed += sum(len(entry.wanted) for entry in missed)
            self.untimed += sum(form.outcome is Outcome.NO_TIME for form in timings)

    def _leave(self, entry: Considered, why: Why) -> None:
        """Note why a site is not measured."""
        self.sites[entry.site.key] = SiteMeasurement(why=why, run=self.run_of(entry.site))

    def _slice_s(self, groups: Sequence[Sequence[Considered]]) -> float:
        """Return how long a form of the first of these groups may be timed, where the others are to come.

        Regions get half of the time, by their shares: the larger it is, the longer it runs and the more depends on it.
        """
        asked = [1.5 + len(group[0].wanted) for group in groups]
        if not isinstance(groups[0][0].site.meaning, Chain):
            return self.meter.budget.slice_s(round(sum(asked)))
        weights = [min(sum(_most(self.run_of(entry.site)) for entry in group), 1.0) for group in groups]
        weighted = sum(number * weight for number, weight in zip(asked, weights, strict=True))
        return self.meter.budget.slice_s(2 * weighted / weights[0], most_s=REGION_S)

    def _measure(self, entry: Considered, slice_s: float) -> None:
        """Time the forms of a site for about `slice_s` seconds each, unless its question is answered."""
        site = entry.site
        try:
            question = self.question(site, bare=False)
        except LookupError as error:
            self._leave(entry, not_measured(Reason.NO_QUESTION, str(error.args[0])))
            return
        disproofs: list[tuple[str, Proof]] = []
        answers = self.answers if not isinstance(site.meaning, Chain) else self.of_regions
        if question.key not in answers:
            answers[question.key] = self.meter.answer(
                question,
                lambda: self.question(site, bare=True),
                [self._form(site, candidate, disproofs) for candidate in _timed(entry)],
                slice_s,
                must_go=self._must_go(entry),
            )
        answer = answers[question.key]
        self.sites[site.key] = SiteMeasurement(
            timings=answer.forms,
            why=None if answer.failure is None else not_measured(Reason.CONV_FAILED, answer.failure),
            run=self.run_of(site),
            question=list(answers).index(question.key) + 1,
            wrong=disproofs[-1] if disproofs else None,
        )
        self.meter.budget.tick()

    def _may_be_asked(self, entry: Considered) -> bool:
        """Say whether there is something to measure at a site; note why not."""
        run = self.run_of(entry.site)
        if self._must_go(entry) and len(_timed(entry)) == 1 and not isinstance(entry.site.meaning, Chain):
            self._leave(entry, Why(reason=Reason.ONLY_FORM))
        elif run.share == 0.0 and not run.shapes:
            self._leave(entry, not_measured(Reason.DID_NOT_RUN))
        return entry.site.key not in self.sites

    def _must_go(self, entry: Considered) -> bool:
        """Say whether a site gets a form in any case."""
        return self.decider.scope.eliminate or entry.must_go

    def question(self, site: Site, *, bare: bool) -> Question:
        """Return what is timed for a site, without neighbours when `bare`. Raises LookupError where it cannot be."""
        profiled, read = self.original.profiled, functools.partial(read_tensor, self.original.model)
        assert profiled is not None
        if isinstance(site.meaning, Chain):
            return stretch.ask(self.decider.source, site, profiled, self.original.types, read)
        ranks = self.meter.backend.layout_ranks
        return neighbourhood.ask(self.decider.source, site, profiled, read, ranks, bare=bare)

    def was_bare(self, decision: Decision) -> bool:
        """Say whether the site of a decision was measured without its neighbours."""
        answers = self.of_regions if isinstance(decision.site.meaning, Chain) else self.answers
        number = decision.measured.question
        return number is not None and list(answers.values())[number - 1].bare

    def _form(self, site: Site, candidate: choose.Candidate, disproofs: list[tuple[str, Proof]]) -> Form:
        def prove() -> str | None:
            proof = self.decider.prove(site, candidate.fragment)
            if proof is not None and proof.wrong:
                disproofs.append((candidate.strategy, proof))
            return proof.failure if proof is not None else None

        return Form(strategy=candidate.strategy, fragment=candidate.fragment, prove=prove)

    def _that_matter(self, entries: Sequence[Considered]) -> list[list[Considered]]:
        """Return the sites to measure in groups alike, those that take most time first; note that others cannot matter.

        These are the ones that together take too little time even if each takes the most that its share may be. Sites
        of unknown share may matter most.
        """
        groups: dict[object, list[Considered]] = {}
        for entry in entries:
            site = entry.site
            groups.setdefault((site.meaning, site.opset, site.storage, self.run_of(site).shapes), []).append(entry)
        most = {key: sum(_most(self.run_of(entry.site)) for entry in group) for key, group in groups.items()}
        order = sorted(groups, key=lambda key: -most[key])
        together = 0.0
        while order and (together := together + most[order[-1]]) <= NEGLIGIBLE:
            for entry in groups[order.pop()]:
                self._leave(entry, Why(reason=Reason.CANNOT_MATTER, share=self.run_of(entry.site).share))
        return [groups[key] for key in order]

    def planned(self, considered: Sequence[Considered]) -> Measurement:
        """Return what would be measured, without measuring: nothing is run, so every site counts."""
        kinds: dict[object, int] = {}
        for entry in considered:
            if entry.measurable:
                timings = {one.strategy: FormTiming(outcome=Outcome.PLANNED) for one in _timed(entry)}
                kinds[entry.site.meaning, entry.site.opset, entry.site.storage] = len(timings)
                why = Why(reason=Reason.PLANNED, number=len(timings))
                self.sites[entry.site.key] = SiteMeasurement(timings=timings, why=why)
        return self.measurement(estimated_s=round(estimated_s(kinds.values(), self.meter.budget.seconds), 1))

    def run_of(self, site: Site) -> SiteRun:
        """Return how a site ran."""
        return self.original.run_of(site)

    def of(self, considered: Considered) -> SiteMeasurement:
        """Return what measuring says of a site."""
        run = self.run_of(considered.site)
        if not considered.measurable:
            return SiteMeasurement(run=run)
        if considered.site.key in self.sites:
            return self.sites[considered.site.key]
        timings = {candidate.strategy: FormTiming(outcome=Outcome.NO_TIME) for candidate in considered.wanted}
        return SiteMeasurement(timings=timings, why=not_measured(self.failure or Reason.BUDGET), run=run)

    def gain(self, site: Site, strategy: str) -> float | None:
        """Return the share of the model's time that a form saves at a site, by its timings."""
        form = self.sites[site.key].timings.get(strategy) if site.key in self.sites else None
        if form is None or form.timing is None or self.original.profiled is None:
            return None
        saved = form.timing.first.median_s * (1 - form.timing.ratio) * max(self.run_of(site).times, 1)
        return saved / self.run_s if self.run_s > 0 else None

    @property
    def run_s(self) -> float:
        """Return the seconds of one run of the original: as timed, or else as profiled."""
        timed = self.final or next((attempt.timing for attempt in self.attempts), None)
        if timed is not None:
            return timed.first.median_s
        return self.original.profiled.seconds if self.original.profiled is not None else 0.0

    def _against(self, proto: ModelProto, share: float) -> Comparison:
        """Time the original against a version of it. Raises what `Meter.whole` does."""
        original, (after, digest) = self.original, self.original.version(proto)
        models, digests = (original.runnable(), after), (original.digest, digest)
        return self.meter.whole(*models, digests, original.feeds, run_s=self.run_s, share=share)

    def confirm(self, winners: Sequence[Decision], make: Callable[[set[str]], ModelProto]) -> dict[str, Why]:
        """Return why winners stay as they are, by site: the whole model is not faster with them; `make` rewrites some.

        Sites of one question go together, those that gain most first.
        """
        groups: dict[object, list[str]] = {}
        gains: dict[object, float] = {}
        for winner in winners:
            question = isinstance(winner.site.meaning, Chain), self.sites[winner.site.key].question
            groups.setdefault(question, []).append(winner.site.key)
            gains[question] = gains.get(question, 0.0) + (self.gain(winner.site, winner.strategy) or 0.0)
        ordered = [groups[question] for question in sorted(groups, key=lambda question: -gains[question])]

        def timed(sites: Sequence[str], share: float) -> Comparison:
            return self._against(make(set(sites)), share)

        confirmed = search(ordered, timed, self.meter.budget, run_s=self.run_s, min_gain=self.min_gain)
        self.attempts += confirmed.attempts
        self.final = confirmed.final or self.final

        def unconfirmed(winner: Decision) -> Why:
            key = winner.site.key
            whole = next((attempt.timing for attempt in confirmed.attempts if key in attempt.sites), None)
            return Why(
                reason=Reason.VERSION_FAILED if whole is None else Reason.NOT_CONFIRMED,
                strategy=winner.strategy,
                timing=self.sites[key].timings[winner.strategy].timing,
                whole=whole,
                said=confirmed.failure,
            )

        return {one.site.key: unconfirmed(one) for one in winners if one.site.key not in confirmed.sites}

    def compare(self, proto: ModelProto, sites: Sequence[str]) -> None:
        """Time a version that stands in any case, in a third of the time that is left; a failure is noted."""
        if self.failure is not None:
            return
        try:
            self.final = self._against(proto, CONFIRMATION)
            self.attempts += (Attempt(sites=tuple(sites), timing=self.final),)
        except Differs as error:
            self.differs = Why(reason=Reason.DIFFERS, said=str(error))
        except RuntimeFailure as error:
            self.failure = Why(reason=Reason.WHOLE_FAILED, said=str(error))

    def time_against(self, other: Subject) -> None:
        """Time another model against this one, in all the time there is.

        Raises UsageError when one of them does not run.
        """
        meter, original = self.meter, self.original
        meter.begin()
        try:
            original.choose_inputs(meter)
            models, run_s = (original.runnable(), other.runnable()), meter.budget.run_s
            self.final = meter.whole(*models, ("", ""), original.feeds, run_s=run_s, memory=True)
        except RuntimeFailure as error:
            hint = "give sizes that both take with --shape" if original.made_up else ""
            why = too_new(original.model.opset) or "; ".join((str(error), *original.found.remarks))
            raise UsageError(f"{meter.backend.name} cannot time the models: {why}", hint=hint) from error

    def compare_layers(self, proto: ModelProto) -> None:
        """Profile the original and a version of it layer by layer, where the backend tells them; a failure is noted."""
        if not self.meter.backend.tells_layers or self.failure is not None:
            return
        try:
            self.layers = compare_layers(self.meter, self.original, proto)
        except RuntimeFailure as error:
            self.meter.doubts[f"the layers were not timed: {error}"] = None

    def measurement(self, *, predicted_ratio: float | None = None, estimated_s: float | None = None) -> Measurement:
        """Return what the report says of measuring."""
        meter, original = self.meter, self.original
        known = timed_backends() if self.here else {}
        others = (name for name, one in known.items() if name != meter.backend.name and not one.missing())
        return meter.measurement(
            original.feeds,
            estimated_s=estimated_s,
            profiled_s=original.profiled.seconds if original.profiled is not None else None,
            attempts=self.attempts,
            final=self.final,
            predicted_ratio=predicted_ratio,
            load=self.load,
            min_gain=self.min_gain,
            needed_s=meter.budget.needed_s(self.untimed) if self.untimed else None,
            made_up=original.made_up,
            others=tuple(others),
            layers=self.layers,
        )


def _timed(entry: Considered) -> list[choose.Candidate]:
    """Return the forms of a site that are timed; those for finite inputs only are taken last, however fast.

    Of those for a target, the ones that fit it best.
    """
    best = entry.wanted[0].fitted if entry.wanted else None
    alike = [one for one in entry.wanted if one.fitted is None or best is None or one.fitted.order == best.order]
    return [one for one in alike if one.strategy != "keep" and Condition.FINITE_INPUTS not in one.holds_for]


def _most(run: SiteRun) -> float:
    """Return the most that a site's share of the time may be."""
    return run.interval[1] if run.interval is not None else run.share if run.share is not None else math.inf
