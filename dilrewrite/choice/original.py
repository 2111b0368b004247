"""The model that is measured: what it runs on, and where its time goes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnx import ModelProto

from dilrewrite.model.shapes import infer_shapes
from dilrewrite.model.tensors import Model
from dilrewrite.model.walk import scopes
from dilrewrite.proof.inputs import Case, Chooser
from dilrewrite.proof.roles import Convolutions
from dilrewrite.proof.verdict import Settings, Subject
from dilrewrite.runtimes import Array, Backend, Runnable, RuntimeFailure, Session, backends, profiled, timed_backends
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import find
from dilrewrite.sites.known import CONVOLVES
from dilrewrite.sites.scopes import scopes as scopes_of
from dilrewrite.timing.measure import Meter
from dilrewrite.timing.profiling import UNSEEN, Profiled, SiteRun
from dilrewrite.timing.stretch import Types

TIMED_LENGTHS = {
    1: (1000, 4000, 16000, 512, 256, 128, 100, 64, 32, 16, 8, 4, 2, 1),
    2: (256, 512, 224, 128, 64, 320, 32, 16, 100, 8, 4, 2, 1),
    3: (32, 64, 48, 24, 16, 96, 8, 4, 2, 1, 128),
}
"""What unknown extents are timed with where nobody says better, by their number in an input: the first that runs."""

FEW = 4
"""Of so many sizes that shape inference does not know the role of, a profile is asked."""


@dataclass
class Original:
    """A model with its sites; `baseline` is it with the Convs explicit that do not run as they are.

    `feeds`: what it runs on; `made_up`: the tool chose their sizes. `outputs`: what it gives on them where they were
    tried, if that is another runtime than the one that times.
    """

    model: Model
    found: Found
    baseline: ModelProto
    settings: Settings
    feeds: Mapping[str, Array] = field(default_factory=dict)
    made_up: bool = False
    outputs: Mapping[str, Array] = field(default_factory=dict)
    profiled: Profiled | None = None

    @functools.cached_property
    def types(self) -> Types:
        """Return the types of its tensors."""
        lists = scopes_of(self.model.proto, infer_shapes(self.model.proto))
        return {(scope.path, name): typed for scope in lists for name, typed in scope.shapes.items()}

    @functools.cached_property
    def digest(self) -> str:
        """Return what names the original in the cache: its content, and where and how large its data files are."""
        text = hashlib.sha256(self.baseline.SerializeToString())
        if self.model.given is not None:
            text.update(self.model.given.SerializeToString())
        for location in self.model.external_files:
            status = (self.model.folder / location).stat()
            text.update(f"{location} {status.st_size} {status.st_mtime_ns}".encode())
        return text.hexdigest()

    def subject(self) -> Subject:
        """Return the original in a form that runs, with the nodes that are looked at."""
        path = self.model.path if self.baseline is self.model.original else None
        return Subject(self.baseline, self.model.folder, path)

    def runnable(self) -> Runnable:
        """Return the original for the worker, as it was given."""
        if self.model.given is None or self.baseline is not self.model.proto:
            return self.subject().runnable()
        return Subject(self.model.given, self.model.folder, self.model.path).runnable()

    def version(self, proto: ModelProto) -> tuple[Runnable, str]:
        """Return a version of it for the worker, and its digest."""
        serialized = proto.SerializeToString()
        return Runnable(model=serialized, folder=self.model.folder), hashlib.sha256(serialized).hexdigest()

    def choose_inputs(self, meter: Meter) -> None:
        """Find data that it runs on. Raises `UsageError` when none can be made up, and what a session raises."""
        budget = meter.budget
        start = budget.clock()
        trial = _trial(meter)
        with trial.session(self.runnable(), meter.options) as session:
            budget.load_s = budget.clock() - start
            convolutions = Convolutions(self.baseline)
            chooser = Chooser(
                session.inputs,
                given=self.settings.shapes,
                user=self.settings.inputs,
                seed=self.settings.seed,
                lengths=TIMED_LENGTHS,
                roles=convolutions.roles(),
                channels=convolutions.channels(),
            )
            case, sizes = chooser.first(session.run)
            longer = self._longer(meter, chooser, case, sizes, session)
            if longer:
                chooser.roles.update(longer)
                case, sizes = chooser.first(session.run)
            start = budget.clock()
            outputs = session.run(case.feeds)
            budget.run_s = budget.clock() - start
        self.feeds, self.made_up = case.feeds, bool(sizes)
        self.outputs = outputs if trial.name != meter.backend.name else {}

    def compare_runtimes(self, meter: Meter) -> None:
        """Note where the runtime that times computes something else of the original than the one of the trial does."""
        trial = _trial(meter)
        if trial.name == meter.backend.name:
            return

        said = meter.disagreement(trial, self.outputs, self.runnable(), self.digest, self.feeds)
        if said is not None:
            here = meter.backend.name
            meter.doubts[
                f"the original itself computes something else on {here} than on {trial.name}: {said}; "
                f"rewritten models are compared with what {here} makes of the original"
            ] = None

    def _longer(
        self, meter: Meter, chooser: Chooser, case: Case, sizes: Mapping[str, int], session: Session
    ) -> dict[str, bool]:
        """Return the sizes taken for batches that are extents: they change a convolution's, as a profile tells."""
        longer = {}
        for symbol in [batch for batch in chooser.batches if batch not in chooser.roles][:FEW]:
            other = chooser.attempt("long", chooser.longer([symbol], sizes), session.run)
            with contextlib.suppress(RuntimeFailure):
                if other is not None and self._convolved(meter, case) != self._convolved(meter, other):
                    longer[symbol] = True
        return longer

    def _convolved(self, meter: Meter, case: Case) -> set[tuple[int, ...]]:
        """Return the spatial extents that convolutions run on."""
        options = replace(meter.options, optimize=False)
        profile = profiled(timed_backends()["onnxruntime_cpu"], self.runnable(), options, case.feeds, 1)
        return {run.inputs[0][2:] for run in profile.nodes if run.op in CONVOLVES and run.inputs and run.inputs[0]}

    def profile(self, meter: Meter) -> None:
        """Profile it on its data. Raises what `profiling.profile` raises."""
        sites = self.found.sites if self.baseline is self.model.proto else find(self.baseline).sites
        if self.baseline is self.model.proto:
            sites = (*sites, *self.found.regions)
        self.profiled = self._translated(meter.profile(self.subject(), self.digest, sites, self.feeds), sites)

    def _translated(self, profiled: Profiled, sites: Sequence[Site]) -> Profiled:
        """Return a profile of the model that runs as one of the original.

        Explicit pads are further nodes, but no further graphs or functions: scopes are in the same order in both.
        """
        if self.baseline is self.model.proto:
            return profiled
        paths = zip(scopes(self.baseline), scopes(self.model.proto), strict=True)
        original = {there: here for (there, _), (here, _) in paths}
        tensors = {(original[scope], name): shape for (scope, name), shape in profiled.tensors.items()}
        twins = {(original[site.scope], site.output, len(site.nodes)): site for site in sites}
        runs: dict[str, SiteRun] = {}
        for site in self.found.sites:
            twin = twins.get((site.scope, site.output, len(site.nodes)))
            run = profiled.sites.get(twin.key) if twin is not None else None
            if run is None or twin is None:
                run = SiteRun(share=None, shapes=(), times=1)
            elif run.shapes and twin.inputs != site.inputs:  # the shape before its pads
                quantization = site.input_quantization
                shape = tensors.get((site.scope, quantization.source.name if quantization else site.inputs[0]))
                run = replace(run, shapes=() if shape is None else (shape,))
            runs[site.key] = run
        return Profiled(seconds=profiled.seconds, sites=runs, tensors=tensors)

    def run_of(self, site: Site) -> SiteRun:
        """Return how a site ran."""
        return self.profiled.sites.get(site.key, UNSEEN) if self.profiled is not None else UNSEEN


def _trial(meter: Meter) -> Backend:
    """Return the runtime on which inputs are tried."""
    return backends()[meter.backend.trial] if meter.backend.trial is not None else meter.backend
