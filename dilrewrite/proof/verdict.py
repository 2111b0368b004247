"""Compares two models as wholes: interface, checker, outputs on several inputs, and the original's own noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import all_nodes
from dilrewrite.proof.compare import OutputCheck, Tolerance, compare, tolerance_of
from dilrewrite.proof.disturb import disturb
from dilrewrite.proof.findings import Finding, findings, fresh
from dilrewrite.proof.hurried import Hurried, HurriedSession, OutOfTime
from dilrewrite.proof.inputs import LENGTHS, LENGTHS_3D, USUAL_LENGTHS, Case, Chooser, describe
from dilrewrite.proof.roles import Convolutions
from dilrewrite.runtimes import (
    Array,
    Backend,
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Runnable,
    RuntimeFailure,
    Session,
    TimedOut,
)
from dilrewrite.sites import Site

AWKWARD = (
    "ONNX Runtime does not run some of the original's Convs (SAME_* with dilation, negative pads); "
    "the comparison is with the same Convs behind explicit pads, a Pad or a Slice"
)
NARROW = "on the sizes tried, a dilated Conv reads little but padding: give larger ones with --shape"

FALLBACK_LENGTHS = {1: (32, 16, *LENGTHS), 2: (32, 16, *LENGTHS), 3: (16, 8, *LENGTHS_3D)}
"""What unknown extents are tried with there (see `Chooser`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseCheck:
    """All outputs on one set of inputs."""

    name: str
    """What kind of inputs."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape by input."""
    outputs: tuple[OutputCheck, ...]
    """One per output of the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether two models compute the same function, and what was looked at."""

    level: str
    """`full` (whole models run), `sites` (only the proofs of each site), `none`."""
    passed: bool
    """Whether nothing was found to differ."""
    backend: str = ""
    """Runtime that ran the models; empty when none did."""
    cases: tuple[CaseCheck, ...] = ()
    """One per set of inputs."""
    failures: tuple[str, ...] = ()
    """What differs."""
    skipped: str | None = None
    """Why whole models were not run; `None` when they were."""
    deterministic: bool | None = None
    """Whether a second run of the original gave the same outputs; `None` when not tried."""
    optimized: bool = True
    """Whether the runtime's graph optimisations were on (off for quantised models)."""
    tolerance: str = ""
    """The formula of the allowed difference; empty when nothing was compared."""
    noise_sources: tuple[str, ...] = ()
    """What the original's own noise was measured from."""
    checker_before: tuple[str, ...] = ()
    """What the ONNX checker and strict shape inference say against the original as delivered."""
    checker_after: tuple[str, ...] = ()
    """What they say against the rewritten (or second) model alone; no difference of results."""
    peak_bytes: tuple[int | None, int | None] = (None, None)
    """Peak memory of both runs, in bytes; `None` when not measured."""
    notes: tuple[str, ...] = ()
    """How the comparison had to be made."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to verify: its proto, the folder of its external data, the file that it is read from.

    `explicit`: what runs in its place, the same model with the Convs explicit that ONNX Runtime refuses. `written_out`:
    the original in which sites are told by their places, where that is not the proto itself.
    """

    proto: ModelProto
    folder: Path
    path: Path | None = None
    explicit: ModelProto | None = None
    written_out: ModelProto | None = None

    @property
    def runs(self) -> ModelProto:
        """Return the model that is run."""
        return self.proto if self.explicit is None else self.explicit

    def runnable(self) -> Runnable:
        """Return it for a backend; only a model on disk may be larger than a serialized message can be."""
        if self.path is not None:
            return Runnable(model=self.path)
        return Runnable(model=self.runs.SerializeToString(), folder=self.folder)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How to verify: runtime, tolerances (None: by element type; `atol` is absolute), data, seed, threads."""

    backend: Backend
    fallback: Backend | None = None
    rtol: float | None = None
    atol: float | None = None
    shapes: Mapping[str, tuple[int, ...]]
    inputs: Mapping[str, Array]
    seed: int = 0
    threads: int | None = None
    custom_op_library: tuple[Path, ...] = ()
    timeout_s: float = 1800.0


def verify(
    before: Subject, after: Subject, settings: Settings, *, errors: Sequence[tuple[Site, float]] = (), step: int = 2
) -> Verdict:
    """Return the verdict on `after` against `before`.

    `errors`: of the sites that were rewritten, by which the original is disturbed to see what it makes of them; extents
    are a multiple of `step` in one case and no multiple in another.
    Raises `UsageError` when the original runs on no input that can be made up.
    """
    runs = _Runs(before, after, settings)
    tolerance = tolerance_of(before.runs, settings.rtol, settings.atol)
    known, found = findings(before.proto), findings(after.proto)
    verdict = Verdict(
        level="full",
        passed=True,
        checker_before=_texts(known),
        checker_after=_texts(fresh(known, found)),
        optimized=runs.options.optimize,
        tolerance=str(tolerance),
    )
    try:
        runs.run_original(step)
        if runs.run_rewritten():
            verdict = runs.compared(verdict, tolerance, errors)
    except _SkippedError as error:
        verdict = replace(verdict, skipped=str(error))
    return replace(
        verdict,
        passed=not runs.failures,
        failures=tuple(runs.failures),
        backend=runs.backend.name,
        notes=(*runs.notes, *(() if before.explicit is after.explicit is None else (AWKWARD,))),
        peak_bytes=(None, None) if verdict.skipped else (runs.peaks[0], runs.peaks[1]),
    )


def _texts(found: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(finding.text[:400] for finding in found)


# -- interface --------------------------------------------------------------------------------------------


def interface_changes(before: ModelProto, after: ModelProto) -> list[str]:
    """Return what differs in inputs, outputs, opsets, IR version or metadata."""
    changes = []
    for kind in ("input", "output"):
        old, new = ({value.name: value for value in getattr(model.graph, kind)} for model in (before, after))
        if list(old) != list(new):
            changes.append(f"{kind}s are {list(new)}, were {list(old)}")
            continue
        changes += [f"{kind} {name!r} changed its type or shape" for name in old if old[name].type != new[name].type]
    if before.ir_version != after.ir_version:
        changes.append(f"IR version is {after.ir_version}, was {before.ir_version}")
    was, now = ({entry.domain: entry.version for entry in model.opset_import} for model in (before, after))
    if was != now:
        changes.append(f"opsets are {now}, were {was}")
    if _metadata(before) != _metadata(after):
        changes.append("metadata differ")
    return changes


def _metadata(model: ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props if not entry.key.startswith("dilrewrite.")}


# -- running ---------------------------------------------------------------------------------------------------------


class _SkippedError(Exception):
    """Why whole models are not compared."""


class _Runs:
    """Both models on the same inputs: `cases`, what they gave, and a batch that the original does not run on."""

    def __init__(self, before: Subject, after: Subject, settings: Settings) -> None:
        self.before, self.after, self.settings = before, after, settings
        self.options = Options(
            threads=settings.threads,
            optimize=not any(node.op_type == "DequantizeLinear" for node in all_nodes(before.runs)),
            custom_op_library=settings.custom_op_library,
            timeout_s=settings.timeout_s,
        )
        self.backend: Backend | Hurried = settings.backend
        self.cases: Sequence[Case] = ()
        self.original: list[dict[str, Array]] = []
        self.rewritten: list[dict[str, Array]] = []
        self.refused: Case | None = None
        self.peaks: list[int | None] = [None, None]
        self.failures = interface_changes(before.proto, after.proto)
        self.notes: list[str] = []

    def session(self, subject: Subject, options: Options | None = None) -> Session:
        """Load a model."""
        return self.backend.session(subject.runnable(), options or self.options)

    def run_original(self, step: int) -> None:
        """Choose what to run on, and run the original.

        Raises `_SkippedError` when it crashes or takes too long, and `UsageError` when it runs on nothing.
        """
        with self._opened() as session:
            self._choose(session, step)
            self.peaks[0] = session.peak_bytes()

    def _opened(self) -> Session:
        """Return the original in the backend that loads it, or in the fallback, which is noted."""
        backend, fallback = self.backend, self.settings.fallback
        try:
            return self.session(self.before)
        except (CannotLoad, Crashed, TimedOut) as error:
            if fallback is None or unknown_operators(self.before.runs):
                raise _SkippedError(f"{backend.name} does not load the original: {error}") from error
            hurried = Hurried(fallback)
            try:
                session = hurried.session(self.before.runnable(), self.options)
            except RuntimeFailure as second:
                raise _SkippedError(f"{backend.name}: {error}; {hurried.name}: {second}") from second
            self.backend = hurried
            self.notes.append(f"{backend.name}: {error}")
            return session

    def _choose(self, session: Session, step: int) -> None:
        convolutions = [Convolutions(subject.runs) for subject in (self.before, self.after)]
        roles: dict[str, bool] = {}
        for symbol, extent in (role for some in convolutions for role in some.roles().items()):
            roles[symbol] = roles.get(symbol, False) or extent  # what is an extent in one of the models is an extent
        chooser = Chooser(
            session.inputs,
            given=self.settings.shapes,
            user=self.settings.inputs,
            seed=self.settings.seed,
            lengths=FALLBACK_LENGTHS if isinstance(session, HurriedSession) else USUAL_LENGTHS,
            roles=roles,
            channels={symbol: size for some in convolutions for symbol, size in some.channels().items()},
        )
        ran: dict[int, dict[str, Array]] = {}

        def run(feeds: Mapping[str, Array]) -> None:
            if isinstance(session, HurriedSession) and ran and session.backend.spent_s > session.backend.limit_s / 4:
                raise TimedOut("the other runs need the time")  # so that there is something to compare
            ran[id(feeds)] = session.run(feeds)

        def reached(shapes: Mapping[str, tuple[int, ...]]) -> bool:
            return all(some.reached(shapes) for some in convolutions)

        try:
            first, sizes = chooser.first(run)
            self.cases = [first, *chooser.more(sizes, step, run, reached)]
            if chooser.batches and not any(case.name in ("batch", "long") for case in self.cases):
                self.refused = _refused(chooser, sizes, session)
        except (Crashed, TimedOut) as error:
            raise _SkippedError(f"the original does not run: {error}") from error
        self.original = [ran[id(case.feeds)] for case in self.cases]
        if self.refused is not None:
            self.notes.append(f"the original does not run on {describe(self.refused)}")
        if chooser.extents and not any(reached(case.shapes) for case in self.cases):
            self.notes.append(NARROW)

    def run_rewritten(self) -> bool:
        """Run the rewritten model, and say whether it runs. Raises `_SkippedError` when the time does not allow it."""
        does = "load"
        try:
            with self.session(self.after) as session:
                for case in self.cases:
                    does = f"run on {describe(case)}"
                    self.rewritten.append(session.run(case.feeds))
                does = "load"
                self.peaks[1] = session.peak_bytes()
                if self.refused is not None and _runs_on(session, self.refused):
                    more = f"the rewritten model runs on {describe(self.refused)}, where the original does not"
                    # of a model made here, of the original, that takes nothing away
                    (self.notes if self.after.path is None else self.failures).append(more)
        except OutOfTime as error:
            raise _SkippedError(f"the rewritten model: {error}") from error
        except RuntimeFailure as error:
            self.failures.append(f"the rewritten model does not {does}: {error}")
            return False
        return self._loads_optimised()

    def _loads_optimised(self) -> bool:
        """Say whether the rewritten model loads with graph optimisations on too, where the original does."""
        if self.options.optimize:
            return True
        reason = self._unloadable(self.after)
        if not reason or self._unloadable(self.before):
            return True
        self.failures.append(f"the rewritten model does not load with graph optimisations on: {reason}")
        return False

    def _unloadable(self, subject: Subject) -> str:
        try:
            self.session(subject, replace(self.options, optimize=True)).close()
        except RuntimeFailure as error:
            return str(error)
        return ""

    def compared(self, verdict: Verdict, tolerance: Tolerance, errors: Sequence[tuple[Site, float]]) -> Verdict:
        """Return the verdict with all outputs compared; those that differ in two runs of the original are excused."""
        again, moving = self._again(), set()
        if again is not None:
            moving = {name for name, values in self.original[0].items() if not _same(values, again.get(name))}
        noise, sources = self._noise(errors)
        checks = []
        for case, old, new, own in zip(self.cases, self.original, self.rewritten, noise, strict=True):
            found = []
            for name, values in old.items():
                check = compare(name, values, new.get(name), tolerance, noise=own.get(name))
                if again is not None and name in moving and _excusable(values, new.get(name), again.get(name)):
                    check = replace(check, comparable=False, passed=True, note="two runs of the original differ")
                if not check.passed:
                    self.failures.append(f"output {name!r} on {describe(case)}: {check.note}")
                found.append(check)
            checks.append(CaseCheck(name=case.name, shapes=case.shapes, outputs=tuple(found)))
        self.notes += _empty_comparisons(checks)
        steady = None if again is None else not moving
        return replace(verdict, cases=tuple(checks), deterministic=steady, noise_sources=tuple(sources))

    def _again(self) -> dict[str, Array] | None:
        """Run the original once more, in a session of its own; `None` when that fails, which excuses nothing."""
        try:
            with self.session(self.before) as session:
                return session.run(self.cases[0].feeds)
        except RuntimeFailure:
            return None

    def _noise(self, errors: Sequence[tuple[Site, float]]) -> tuple[list[dict[str, float]], list[str]]:
        """Return per case and output how far the original is from itself: other optimisations, disturbed Convs."""
        noise: list[dict[str, float]] = [{} for _ in self.cases]
        optimize = self.options.optimize
        variants = {"graph optimisations on/off": (self.before, replace(self.options, optimize=not optimize))}
        if not optimize:  # what real numbers are rounded to is no other then
            errors = [(site, error) for site, error in errors if site.part.geometry.element not in FLOATS]
        if errors and self.before.explicit is None:
            proto = self.before.written_out or self.before.proto
            disturbed = Subject(disturb(proto, errors, self.settings.seed), self.before.folder)
            variants["rewritten Convs disturbed by their per-site error"] = disturbed, self.options
        sources = []
        for name, variant in variants.items():
            try:
                with self.session(*variant) as session:
                    for case, outputs, own in zip(self.cases, self.original, noise, strict=True):
                        for output, values in session.run(case.feeds).items():
                            old = outputs.get(output)
                            if isinstance(old, np.ndarray) and old.shape == values.shape and old.dtype.kind != "O":
                                own[output] = max(own.get(output, 0.0), _largest_change(old, values))
            except RuntimeFailure:
                continue
            sources.append(name)
        return noise, sources


def _refused(chooser: Chooser, sizes: Mapping[str, int], session: Session) -> Case | None:
    """Return a larger batch on which the model does not run, to see that the other does not either."""
    larger = {batch: sizes.get(batch, 1) + 1 for batch in chooser.batches}
    try:
        case = Case(name="batch", feeds=chooser.feeds({**sizes, **larger}))
    except CannotRun:  # too large to try
        return None
    return None if _runs_on(session, case) is not False else case


def _runs_on(session: Session, case: Case) -> bool | None:
    """Say whether a model runs on a case; `None` where its process ends."""
    try:
        session.run(case.feeds)
    except CannotRun:
        return False
    except (Crashed, TimedOut):
        return None
    return True


def _empty_comparisons(checks: Sequence[CaseCheck]) -> list[str]:
    """Return a note for each output that has not one number in any case: it is equal whatever is computed."""
    by_name: dict[str, list[OutputCheck]] = {}
    for case in checks:
        for check in case.outputs:
            by_name.setdefault(check.name, []).append(check)
    return [
        f"output {name!r} is NaN or Inf throughout on every input set: nothing is known of its values"
        for name, some in by_name.items()
        if all(math.prod(c.shape) and sum(c.nan[:1] + c.inf[:1]) == math.prod(c.shape) for c in some)
    ]


def unknown_operators(proto: ModelProto) -> list[str]:
    """Return the domains of operators that neither ONNX nor a function of the model defines."""
    own = {(function.domain, function.name) for function in proto.functions}
    standard = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training", "com.microsoft")
    nodes = (node for node in all_nodes(proto) if (node.domain, node.op_type) not in own)
    return list(dict.fromkeys(f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in standard))


def _excusable(before: Any, after: Any, again: Any) -> bool:
    """Say whether a random output may differ as it does: type always stays, shape unless the original's own moves."""
    if after is None or type(before) is not type(after):
        return False
    if not isinstance(before, np.ndarray):
        return True
    shape_moves = isinstance(again, np.ndarray) and again.shape != before.shape
    return bool(before.dtype == after.dtype) and bool(shape_moves or before.shape == after.shape)


def _same(a: Array, b: Array | None) -> bool:
    """Say whether two runs gave the same, NaN for NaN; what is no array is compared as a list."""
    if b is None:
        return False
    if not isinstance(a, np.ndarray) or not isinstance(b, np.ndarray):
        return len(a) == len(b) and all(_same(np.asarray(x), np.asarray(y)) for x, y in zip(a, b, strict=True))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return a.tobytes() == b.tobytes() if a.dtype != object else bool((a == b).all())


def _largest_change(before: Array, after: Array) -> float:
    with np.errstate(invalid="ignore"):  # Inf - Inf
        change = np.abs(np.asarray(after, np.float64) - np.asarray(before, np.float64))
    return float(np.max(change[np.isfinite(change)], initial=0.0))
