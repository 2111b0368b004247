"""Measures the sites of one model: what to run it on, where its time goes, which sites matter, how their forms do."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx import ModelProto

from dilrewrite import machine
from dilrewrite.choice import choose
from dilrewrite.choice.decide import Decider
from dilrewrite.choice.decision import Considered, SiteMeasurement
from dilrewrite.choice.reason import Reason, Why, not_measured
from dilrewrite.errors import FailedError, UsageError, shown
from dilrewrite.model.tensors import Model, read_tensor
from dilrewrite.model.walk import all_nodes, resolve, scopes
from dilrewrite.proof.inputs import Case, Chooser
from dilrewrite.proof.prove import Proof
from dilrewrite.proof.roles import Convolutions
from dilrewrite.proof.verdict import Settings, Subject
from dilrewrite.runtimes import (
    Array,
    CannotLoad,
    CannotRun,
    Crashed,
    NodeRun,
    Runnable,
    Session,
    TimedOut,
    backends,
    profiled,
    timed_backends,
)
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import find, too_new
from dilrewrite.staging import is_file
from dilrewrite.tensorrt.layers import entry_of, parsed_name
from dilrewrite.timing import neighbourhood
from dilrewrite.timing.cache import Cache, default_path
from dilrewrite.timing.measure import CONFIRMATION, NEGLIGIBLE, Answer, Confirmed, Form, Meter, estimated_s
from dilrewrite.timing.measurement import Attempt, LayerComparison, LayerTime, Measurement
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.profiling import UNSEEN, Place, Profiled, SiteRun
from dilrewrite.timing.stopwatch import Comparison

TIMED_LENGTHS = {
    1: (1000, 4000, 16000, 512, 256, 128, 100, 64, 32, 16, 8, 4, 2, 1),
    2: (256, 512, 224, 128, 64, 320, 32, 16, 100, 8, 4, 2, 1),
    3: (32, 64, 48, 24, 16, 96, 8, 4, 2, 1, 128),
}
"""What unknown extents are timed with where nobody says better, by their number in an input: the first that runs."""


LAYER_RUNS = 20
"""How many runs the times of layers are the medians of."""

FEW = 4
"""Of so many sizes that shape inference does not know the role of, a profile is asked."""

CONVOLVES = ("Conv", "ConvTranspose")


@dataclass
class Tuning:
    """The measuring of one model. Made when something is to be measured; `close` ends its worker."""

    model: Model
    found: Found
    baseline: ModelProto
    meter: Meter
    settings: Settings
    decider: Decider
    feeds: Mapping[str, Array] = field(default_factory=dict)
    made_up: bool = False
    profiled: Profiled | None = None
    failure: Why | None = None
    load: float | None = field(default_factory=machine.load)
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    untimed: int = 0
    """How many forms the budget did not reach."""
    instead: dict[str, Why] = field(default_factory=dict)
    wrong: dict[str, tuple[str, Proof]] = field(default_factory=dict)
    confirmed: Confirmed | None = None
    final: Comparison | None = None
    attempts: list[Attempt] = field(default_factory=list)
    state_before: Mapping[str, float] = field(default_factory=dict)
    layers: LayerComparison | None = None
    scratch: tempfile.TemporaryDirectory[str] | None = None

    def close(self) -> None:
        """End the worker, and forget the engines that were built for it."""
        self.meter.close()
        if self.scratch is not None:
            self.scratch.cleanup()

    # -- the original --------------------------------------------------------------------------------------------

    @functools.cached_property
    def digest(self) -> str:
        """Return what names the original in the cache: its content, and where and how large its data files are."""
        text = hashlib.sha256(self.baseline.SerializeToString())
        for location in self.model.external_files:
            status = (self.model.folder / location).stat()
            text.update(f"{location} {status.st_size} {status.st_mtime_ns}".encode())
        return text.hexdigest()

    def subject(self) -> Subject:
        """Return the original in a form that runs."""
        path = self.model.path if self.baseline is self.model.proto else None
        return Subject(self.baseline, self.model.folder, path)

    def start(self) -> bool:
        """Find data that the original runs on, and profile it. False: it does not run here, `failure` says why.

        Raises `UsageError` when no data can be made up for it.
        """
        meter = self.meter
        meter.progress("measure", 0, 1)
        self.state_before = meter.backend.state()
        meter.begin()
        try:
            self._choose_inputs()
            meter.tick()
            sites = self._baseline_sites()
            profiled = meter.profile(self.subject(), self.digest, sites, self.feeds)
            self.profiled = self._translated(profiled, sites)
        except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
            self.failure = Why(reason=Reason.MODEL_FAILED, said=str(error))
            return False
        return True

    def _choose_inputs(self) -> None:
        meter = self.meter
        runnable = self.subject().runnable()
        start = meter.clock()
        trial = backends()[meter.backend.trial] if meter.backend.trial is not None else meter.backend
        with trial.session(runnable, meter.options) as session:
            meter.load_s = meter.clock() - start
            chooser = Chooser(
                session.inputs,
                given=self.settings.shapes,
                user=self.settings.inputs,
                seed=self.settings.seed,
                lengths=TIMED_LENGTHS,
                roles=Convolutions(self.baseline).roles(),
            )
            case, sizes = chooser.first(session.run)
            longer = self._longer(chooser, case, sizes, session)
            if longer:
                chooser.roles.update(longer)
                case, sizes = chooser.first(session.run)
            start = meter.clock()
            session.run(case.feeds)
            meter.run_s = meter.clock() - start
        self.feeds, self.made_up = case.feeds, bool(sizes)

    def _longer(self, chooser: Chooser, case: Case, sizes: Mapping[str, int], session: Session) -> dict[str, bool]:
        """Return the sizes taken for batches that are extents: they change a convolution's, as a profile tells."""
        found = {}
        for symbol in [batch for batch in chooser.batches if batch not in chooser.roles][:FEW]:
            other = chooser.attempt("long", chooser.longer([symbol], sizes), session.run)
            if other is not None:
                with contextlib.suppress(CannotLoad, CannotRun, Crashed, TimedOut):
                    if self._convolved(case) != self._convolved(other):
                        found[symbol] = True
        return found

    def _convolved(self, case: Case) -> set[tuple[int, ...]]:
        """Return the spatial extents that convolutions run on."""
        options = replace(self.meter.options, optimize=False)
        profile = profiled(timed_backends()["onnxruntime_cpu"], self.before(), options, case.feeds, 1)
        return {run.inputs[0][2:] for run in profile.nodes if run.op in CONVOLVES and run.inputs and run.inputs[0]}

    def _baseline_sites(self) -> list[Site]:
        """Return the sites as they stand in the model that runs."""
        if self.baseline is self.model.proto:
            return list(self.found.sites)
        return list(find(self.baseline).sites)

    def _translated(self, profiled: Profiled, sites: Sequence[Site]) -> Profiled:
        """Return a profile of the model that runs as one of the original.

        Explicit pads are further nodes, but no further graphs or functions: scopes are in the same order in both.
        """
        if self.baseline is self.model.proto:
            return profiled
        paths = zip(scopes(self.baseline), scopes(self.model.proto), strict=True)
        original = {there: here for (there, _), (here, _) in paths}
        tensors = {(original[scope], name): shape for (scope, name), shape in profiled.tensors.items()}
        there = {(original[site.scope], site.output): site for site in sites}
        runs: dict[Place, SiteRun] = {}
        for site in self.found.sites:
            twin = there.get((site.scope, site.output))
            run = profiled.sites.get((twin.scope, twin.index)) if twin is not None else None
            if run is None or twin is None:
                run = SiteRun(share=None, shapes=(), times=1)
            elif run.shapes and _input(self.baseline, twin) != _input(self.model.proto, site):
                shape = tensors.get((site.scope, _source(self.model.proto, site)))  # before its pads
                run = replace(run, shapes=() if shape is None else (shape,))
            runs[site.scope, site.index] = run
        return Profiled(seconds=profiled.seconds, sites=runs, tensors=tensors)

    # -- sites ---------------------------------------------------------------------------------------------------

    def run_of(self, site: Site) -> SiteRun:
        """Return how a site ran."""
        return self.profiled.sites.get((site.scope, site.index), UNSEEN) if self.profiled is not None else UNSEEN

    def measure(self, considered: Sequence[Considered]) -> None:
        """Time the forms of the sites that timings decide about, the ones that take most time first."""
        wanted = [entry for entry in considered if entry.measurable]
        if self.failure is not None:
            self.instead.update((entry.site.key, not_measured(self.failure)) for entry in wanted)
            return
        groups = self._that_matter([entry for entry in wanted if self._may_be_asked(entry)])
        for number, group in enumerate(groups):
            comparisons = sum(1.5 + len(entries[0].wanted) for entries in groups[number:])
            for entry in group:
                if self.meter.now() < self.meter.forms_until_s:  # else not even its question is made
                    self._measure(entry, round(comparisons))
        reached = {*self.asked, *self.instead}
        missed = [entries[0] for entries in groups if any(entry.site.key not in reached for entry in entries)]
        timings = [form for answer in self.answers.values() for form in answer.forms.values()]
        self.untimed = sum(len(entry.wanted) for entry in missed)
        self.untimed += sum(form.outcome is Outcome.NO_TIME for form in timings)

    def _measure(self, entry: Considered, comparisons: int) -> None:
        """Time the forms of a site, unless its question is answered; so many `comparisons` are to come, about."""
        site = entry.site
        try:
            question = self._question(site, bare=False)
        except LookupError as error:
            self.instead[site.key] = not_measured(Reason.NO_QUESTION, str(error.args[0]))
            return
        self.asked[site.key] = question.key
        if question.key not in self.answers:
            forms = [
                self._form(site, candidate)
                for candidate in entry.wanted
                if candidate.strategy not in ("keep", *choose.INEXACT)  # taken last, however fast
            ]
            self.answers[question.key] = self.meter.answer(
                question,
                lambda: self._question(site, bare=True),
                forms,
                self.meter.slice_s(comparisons),
                must_go=self.decider.scope.eliminate,
            )
        self.numbers[site.key] = list(self.answers).index(question.key) + 1
        self.meter.tick()

    def _may_be_asked(self, entry: Considered) -> bool:
        """Say whether there is something to measure at a site; note why not."""
        site, run = entry.site, self.run_of(entry.site)
        if self.decider.scope.eliminate and len(entry.wanted) == 1:
            self.instead[site.key] = Why(reason=Reason.ONLY_FORM)
        elif run.share == 0.0 and not run.shapes:
            self.instead[site.key] = not_measured(Reason.DID_NOT_RUN)
        return site.key not in self.instead

    def _question(self, site: Site, *, bare: bool) -> Question:
        assert self.profiled is not None
        return neighbourhood.ask(
            self.decider.source,
            site,
            self.profiled,
            lambda tensor: read_tensor(self.model, tensor),
            self.meter.backend.layout_ranks,
            bare=bare,
        )

    def _form(self, site: Site, candidate: choose.Candidate) -> Form:
        def prove() -> str | None:
            proof = self.decider.prove(site, candidate.fragment)
            if proof is not None and proof.wrong:
                self.wrong[site.key] = candidate.strategy, proof
            return proof.failure if proof is not None else None

        return Form(strategy=candidate.strategy, fragment=candidate.fragment, prove=prove)

    def _that_matter(self, wanted: Sequence[Considered]) -> list[list[Considered]]:
        """Return the sites to measure in groups alike, those that take most time first; note that others cannot matter.

        These are the ones that together take too little time even if each takes the most that its share may be. Sites
        of unknown share may matter most.
        """
        groups: dict[object, list[Considered]] = {}
        for entry in wanted:
            site = entry.site
            groups.setdefault((site.geometry, site.opset, site.storage, self.run_of(site).shapes), []).append(entry)
        most = {key: sum(_most(self.run_of(entry.site)) for entry in some) for key, some in groups.items()}
        order = sorted(groups, key=lambda key: -most[key])
        together = 0.0
        while order and (together := together + most[order[-1]]) <= NEGLIGIBLE:
            for entry in groups[order.pop()]:
                share = self.run_of(entry.site).share
                self.instead[entry.site.key] = Why(reason=Reason.CANNOT_MATTER, share=share)
        return [groups[key] for key in order]

    def planned(self, considered: Sequence[Considered]) -> Measurement:
        """Return what would be measured, without measuring: nothing is run, so every site counts."""
        wanted = [entry for entry in considered if entry.measurable]
        kinds: dict[object, int] = {}
        for entry in wanted:
            names = [c.strategy for c in entry.wanted if c.strategy not in ("keep", *choose.INEXACT)]
            kinds[entry.site.geometry, entry.site.opset, entry.site.storage] = len(names)
            self.instead[entry.site.key] = Why(reason=Reason.PLANNED, number=len(names))
            planned = {name: FormTiming(outcome=Outcome.PLANNED) for name in names}
            self.answers[entry.site.key] = Answer(forms=planned)
            self.asked[entry.site.key] = entry.site.key
        return self.measurement(estimated_s=round(estimated_s(kinds.values(), self.meter.budget_s), 1))

    def of(self, considered: Considered) -> SiteMeasurement:
        """Return what measuring says of a site."""
        site = considered.site
        run = self.run_of(site)
        if not considered.measurable:
            return SiteMeasurement(run=run)
        key = self.asked.get(site.key)
        answer = self.answers.get(key) if key is not None else None
        why = self.instead.get(site.key)
        timings: Mapping[str, FormTiming] = answer.forms if answer is not None else {}
        if answer is None and why is None:
            timings = {candidate.strategy: FormTiming(outcome=Outcome.NO_TIME) for candidate in considered.wanted}
            why = not_measured(self.failure or Reason.BUDGET)
        if answer is not None and answer.failure is not None:
            why = not_measured(Reason.CONV_FAILED, answer.failure)
        return SiteMeasurement(
            timings=timings,
            why=why,
            run=run,
            question=self.numbers.get(site.key),
            wrong=self.wrong.get(site.key),
        )

    # -- the whole model -----------------------------------------------------------------------------------------

    def gain(self, site: Site, strategy: str) -> float | None:
        """Return the share of the model's time that a form saves at a site, by its timings."""
        key = self.asked.get(site.key)
        found = self.answers[key].forms.get(strategy) if key in self.answers else None
        if found is None or found.timing is None or self.profiled is None:
            return None
        saved = found.timing.first.median_s * (1 - found.timing.ratio) * max(self.run_of(site).times, 1)
        whole = self.run_s
        return saved / whole if whole > 0 else None

    @property
    def run_s(self) -> float:
        """Return the seconds of one run of the original: as timed, or else as profiled."""
        timed = self.final or (self.attempts[0].timing if self.attempts else None)
        if timed is not None:
            return timed.first.median_s
        return self.profiled.seconds if self.profiled is not None else 0.0

    def before(self) -> Runnable:
        """Return the original for the worker."""
        return self.subject().runnable()

    def after(self, proto: ModelProto) -> tuple[Runnable, str]:
        """Return a version for the worker, and its digest."""
        serialized = proto.SerializeToString()
        return Runnable(model=serialized, folder=self.model.folder), hashlib.sha256(serialized).hexdigest()

    def confirm(
        self, winners: Sequence[Site], strategies: Mapping[str, str], make: Callable[[set[str]], ModelProto]
    ) -> set[str]:
        """Return the keys of the sites whose rewriting makes the whole model faster; `make` rewrites some sites."""
        grouped: dict[str, list[str]] = {}
        gains: dict[str, float] = {}
        for site in winners:
            key = self.asked[site.key]
            grouped.setdefault(key, []).append(site.key)
            gains[key] = gains.get(key, 0.0) + (self.gain(site, strategies[site.key]) or 0.0)
        order = sorted(grouped, key=lambda key: -gains[key])
        members = {number: grouped[key] for number, key in enumerate(order)}

        def keys(numbers: Sequence[int]) -> list[str]:
            return [key for number in numbers for key in members[number]]

        def version(numbers: Sequence[int]) -> tuple[Runnable, str]:
            return self.after(make(set(keys(numbers))))

        found = self.meter.confirm(self.before(), self.digest, range(len(order)), version, self.feeds, self.run_s)
        self.confirmed = found
        self.final = found.final
        self.attempts = [Attempt(sites=tuple(keys(a.groups)), timing=a.timing) for a in found.attempts]
        return set(keys(found.groups))

    def compare(self, proto: ModelProto, sites: Sequence[str]) -> None:
        """Time a version that stands in any case, in a third of the time that is left; a failure is noted."""
        if self.failure is not None:
            return
        after, digest = self.after(proto)
        try:
            self.final = self.meter.whole(
                self.before(), after, (self.digest, digest), self.feeds, run_s=self.run_s, share=CONFIRMATION
            )
            self.attempts = [Attempt(sites=tuple(sites), timing=self.final)]
        except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
            self.meter.close()
            self.failure = Why(reason=Reason.WHOLE_FAILED, said=str(error))

    def time_against(self, other: Subject) -> None:
        """Time another model against this one, in all the time there is.

        Raises FailedError when one of them does not run.
        """
        meter = self.meter
        self.state_before = meter.backend.state()
        meter.begin()
        try:
            self._choose_inputs()
            self.final = meter.whole(self.before(), other.runnable(), ("", ""), self.feeds, run_s=meter.run_s)
        except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
            hint = "give sizes that both take with --shape" if self.made_up else ""
            why = too_new(self.model.opset) or "; ".join((str(error), *self.found.remarks))
            raise FailedError(f"{meter.backend.name} cannot time the models: {why}", hint=hint) from error

    def compare_layers(self, proto: ModelProto) -> None:
        """Profile the original and a version of it layer by layer, where the backend tells them.

        In a pass of its own: profiling slows an engine down. A failure is noted, and no more.
        """
        backend = self.meter.backend
        if not backend.tells_layers or self.failure is not None:
            return
        try:
            found = [
                profiled(backend, runnable, self.meter.options, self.feeds, LAYER_RUNS)
                for runnable in (self.before(), self.after(proto)[0])
            ]
        except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
            self.meter.doubts[f"the layers were not timed: {error}"] = None
            return
        known = {parsed_name(node) for node in all_nodes(self.baseline)}
        both = (*all_nodes(self.baseline), *all_nodes(proto))
        convolutions = {parsed_name(node) for node in both if node.op_type in CONVOLVES}
        first, second = ([_layer_time(run, known, convolutions) for run in profile.nodes] for profile in found)
        self.layers = LayerComparison(runs=LAYER_RUNS, first=tuple(first), second=tuple(second))

    # -- the report ----------------------------------------------------------------------------------------------

    def measurement(self, *, predicted_ratio: float | None = None, estimated_s: float | None = None) -> Measurement:
        """Return what the report says of measuring."""
        meter = self.meter
        return Measurement(
            backend=meter.backend.name,
            device=meter.backend.device(),
            versions=meter.backend.versions(),
            settings=meter.backend.settings(meter.options),
            inputs={name: tuple(getattr(value, "shape", ())) for name, value in self.feeds.items()},
            budget_s=meter.budget_s,
            spent_s=round(meter.now(), 3),
            floor_s=round(meter.floor_s, 3),
            estimated_s=estimated_s,
            measured=meter.measured,
            recalled=meter.recalled,
            profiled_s=self.profiled.seconds if self.profiled is not None else None,
            noise=meter.noise,
            attempts=tuple(self.attempts),
            final=self.final,
            predicted_ratio=predicted_ratio,
            load=self.load,
            form_noise=meter.form_noise or None,
            min_gain=meter.min_gain,
            needed_s=meter.needed_s(self.untimed) if self.untimed else None,
            made_up=self.made_up,
            others=others(meter.backend.name),
            doubts=tuple(meter.doubts),
            source=meter.backend.source,
            layers=self.layers,
            first_run_s=meter.first_s,
            state_before=self.state_before,
            state_after=meter.backend.state(),
        )


def open_cache(path: Path | None, *, none: bool) -> Cache:
    """Return the cache of timings at `path`, or at the usual place; in memory when there shall be none.

    Raises `UsageError` for a file that was never one.
    """
    if none:
        return Cache.open(None)
    if path is not None and is_file(path) and path.suffix != ".sqlite":
        head = b""
        with contextlib.suppress(OSError), path.open("rb") as file:  # the cache itself says what it cannot read
            head = file.read(16)
        if head and head != b"SQLite format 3\0":
            raise UsageError(f"--cache {shown(path)}: is no cache of timings", hint="name another file")
    return Cache.open(path if path is not None else default_path())


def others(name: str) -> tuple[str, ...]:
    """Return the backends besides `name` that are ready to time on."""
    return tuple(other for other, found in timed_backends().items() if other != name and found.missing() is None)


def _layer_time(run: NodeRun, known: Collection[str], convolutions: Collection[str]) -> LayerTime:
    """Return a layer's time and role. What stands for nodes of which the original has none is layout of the rewrite."""
    nodes = tuple(run.name.split(" + "))
    named = [node for node in nodes if node != run.provider]
    if any(entry_of(node, convolutions) for node in named):
        role = "convolution"
    elif named and not any(entry_of(node, known) for node in named):
        role = "layout"
    else:
        role = "other"
    return LayerTime(name=run.provider or run.name, kind=run.op, nodes=tuple(named), seconds=run.seconds, role=role)


def _input(proto: ModelProto, site: Site) -> str:
    return str(resolve(proto, site.scope).node[site.index].input[0])


def _source(proto: ModelProto, site: Site) -> str:
    """Return the tensor that a fragment reads."""
    return site.input_quantization.source.name if site.input_quantization is not None else _input(proto, site)


def _most(run: SiteRun) -> float:
    """Return the most that a site's share of the time may be."""
    return run.interval[1] if run.interval is not None else run.share if run.share is not None else math.inf
