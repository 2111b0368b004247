"""Compares two models as wholes: interface, checker, outputs on several inputs, and the original's own noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from dilrewrite.model.walk import all_nodes
from dilrewrite.proof.compare import OutputCheck, compare, tolerance_of
from dilrewrite.proof.findings import Finding, findings, fresh
from dilrewrite.proof.hurried import Hurried, HurriedSession, OutOfTime
from dilrewrite.proof.inputs import LENGTHS, LENGTHS_3D, Case, Chooser, describe
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
    """A model to verify: its proto, and the folder of its external data."""

    proto: ModelProto
    folder: Path
    path: Path | None = None

    def runnable(self) -> Runnable:
        """Return it for a backend; only a model on disk may be larger than a serialized message can be."""
        if self.path is not None:
            return Runnable(model=self.path)
        return Runnable(model=self.proto.SerializeToString(), folder=self.folder)


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
    before: Subject,
    after: Subject,
    settings: Settings,
    *,
    runnable_before: Subject | None = None,
    runnable_after: Subject | None = None,
    disturbed: Subject | None = None,
    step: int = 2,
) -> Verdict:
    """Return the verdict on `after` against `before`.

    `runnable_before`, `runnable_after` stand for models that cannot be run as they are (SAME_* with dilation, negative
    pads); `disturbed` is the original with every rewritten Conv's output disturbed by its per-site error; extents are a
    multiple of `step` in one case and no multiple in another.
    Raises `UsageError` when the original runs on no input that can be made up.
    """
    failures = interface_changes(before.proto, after.proto)
    known, found = findings(before.proto), findings(after.proto)
    verdict = Verdict(
        level="full",
        passed=not failures,
        failures=tuple(failures),
        checker_before=_texts(known),
        checker_after=_texts(fresh(known, found)),
        backend=settings.backend.name,
    )
    return _run(verdict, runnable_before or before, runnable_after or after, settings, disturbed, step)


def _texts(found: Sequence[Finding]) -> tuple[str, ...]:
    return tuple(finding.text[:400] for finding in found)


# -- interface --------------------------------------------------------------------------------------------


def interface_changes(before: ModelProto, after: ModelProto) -> list[str]:
    """Return what differs in inputs, outputs, opsets, IR version or metadata."""
    changes = []
    for kind in ("input", "output"):
        old = {value.name: value for value in getattr(before.graph, kind)}
        new = {value.name: value for value in getattr(after.graph, kind)}
        if list(old) != list(new):
            changes.append(f"{kind}s are {list(new)}, were {list(old)}")
            continue
        changes += [f"{kind} {name!r} changed its type or shape" for name in old if old[name].type != new[name].type]
    if before.ir_version != after.ir_version:
        changes.append(f"IR version is {after.ir_version}, was {before.ir_version}")
    old_sets = {entry.domain: entry.version for entry in before.opset_import}
    new_sets = {entry.domain: entry.version for entry in after.opset_import}
    if old_sets != new_sets:
        changes.append(f"opsets are {new_sets}, were {old_sets}")
    old_meta = {entry.key: entry.value for entry in before.metadata_props}
    new_meta = {entry.key: entry.value for entry in after.metadata_props if not entry.key.startswith("dilrewrite.")}
    if {key: value for key, value in old_meta.items() if not key.startswith("dilrewrite.")} != new_meta:
        changes.append("metadata differ")
    return changes


# -- running ---------------------------------------------------------------------------------------------------------


def _run(
    verdict: Verdict, before: Subject, after: Subject, settings: Settings, disturbed: Subject | None, step: int
) -> Verdict:
    quantized = any(node.op_type == "DequantizeLinear" for node in all_nodes(before.proto))
    options = Options(
        threads=settings.threads,
        optimize=not quantized,
        custom_op_library=settings.custom_op_library,
        timeout_s=settings.timeout_s,
    )
    tolerance = tolerance_of(before.proto, settings.rtol, settings.atol)
    verdict = replace(verdict, optimized=not quantized, tolerance=str(tolerance))
    try:
        backend, session, notes = _opened(before, options, settings)
        verdict = replace(verdict, backend=backend.name, notes=notes)
        with session:
            original = _original(session, before, after, settings, step)
            peak_before = session.peak_bytes()
        verdict = replace(verdict, notes=(*notes, *original.notes))
        rewritten = _rewritten(backend, after, options, original)
    except _SkippedError as error:
        return replace(verdict, skipped=str(error))
    failures = [*verdict.failures, *rewritten.failures]
    verdict = replace(verdict, peak_bytes=(peak_before, rewritten.peak_bytes))
    if rewritten.failures:
        return replace(verdict, passed=False, failures=tuple(failures))
    if rewritten.runs_on_more and original.refused is not None:
        more = f"the rewritten model runs on {describe(original.refused)}, where the original does not"
        if after.path is None:  # made here, of the original: that it runs on more takes nothing away
            verdict = replace(verdict, notes=(*verdict.notes, more))
        else:
            failures.append(more)
    again = _again(backend, before, options, original.cases[0])
    noise, sources = _noise(backend, before, disturbed, options, original)
    steady = {name: again is None or _same(values, again.get(name)) for name, values in original.outputs[0].items()}
    checks = []
    for number, case in enumerate(original.cases):
        outputs = []
        for name, values in original.outputs[number].items():
            other = rewritten.outputs[number].get(name)
            check = compare(name, values, other, tolerance, noise=noise[number].get(name))
            if not steady.get(name, True) and _excusable(values, other, (again or {}).get(name)):
                check = replace(check, comparable=False, passed=True, note="two runs of the original differ")
            if not check.passed:
                failures.append(f"output {name!r} on {describe(case)}: {check.note}")
            outputs.append(check)
        checks.append(CaseCheck(name=case.name, shapes=case.shapes, outputs=tuple(outputs)))
    return replace(
        verdict,
        notes=(*verdict.notes, *_empty_comparisons(checks)),
        passed=not failures,
        failures=tuple(failures),
        cases=tuple(checks),
        deterministic=None if again is None else all(steady.values()),
        noise_sources=tuple(sources),
    )


class _SkippedError(Exception):
    """Why whole models are not compared."""


def _opened(
    before: Subject, options: Options, settings: Settings
) -> tuple[Backend | Hurried, Session, tuple[str, ...]]:
    """Return the backend that loads the original, or the fallback, the session, and a note about the fallback."""
    backend = settings.backend
    try:
        return backend, backend.session(before.runnable(), options), ()
    except (CannotLoad, Crashed, TimedOut) as error:
        if settings.fallback is None or unknown_operators(before.proto):
            raise _SkippedError(f"{backend.name} does not load the original: {error}") from error
        hurried = Hurried(settings.fallback)
        try:
            return hurried, hurried.session(before.runnable(), options), (f"{backend.name}: {error}",)
        except RuntimeFailure as second:
            raise _SkippedError(f"{backend.name}: {error}; {hurried.name}: {second}") from second


@dataclass(slots=True)
class _Rewritten:
    """What the rewritten model gave, case by case, and whether it runs on what the original refused."""

    outputs: list[dict[str, Array]] = field(default_factory=list)
    peak_bytes: int | None = None
    failures: tuple[str, ...] = ()
    runs_on_more: bool = False


def _rewritten(backend: Backend | Hurried, after: Subject, options: Options, original: _Original) -> _Rewritten:
    """Run the rewritten model. Raises `_SkippedError` when the time does not allow it."""
    rewritten, cases, does = _Rewritten(), original.cases, "load"
    try:
        with backend.session(after.runnable(), options) as session:
            for case in cases:
                does = f"run on {describe(case)}"
                rewritten.outputs.append(session.run(case.feeds))
            does = "load"
            rewritten.peak_bytes = session.peak_bytes()
            rewritten.runs_on_more = original.refused is not None and bool(_runs(session, original.refused))
    except OutOfTime as error:
        raise _SkippedError(f"the rewritten model: {error}") from error
    except RuntimeFailure as error:
        rewritten.failures = (f"the rewritten model does not {does}: {error}",)
    return rewritten


NARROW = "on the sizes tried, a dilated Conv reads little but padding: give larger ones with --shape"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Original:
    """What the original was run on, what it gave, and a batch that it does not run on."""

    cases: Sequence[Case]
    outputs: Sequence[Mapping[str, Array]]
    refused: Case | None
    notes: Sequence[str]


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


def _original(session: Session, before: Subject, after: Subject, settings: Settings, step: int) -> _Original:
    """Choose what to run on, and run the original.

    Raises `_SkippedError` when it crashes or takes too long, and `UsageError` when it runs on nothing.
    """
    convolutions = [Convolutions(subject.proto) for subject in (before, after)]
    roles: dict[str, bool] = {}
    for some in convolutions:  # what is an extent in one of the models is an extent
        for symbol, extent in some.roles().items():
            roles[symbol] = roles.get(symbol, False) or extent
    chooser = Chooser(
        session.inputs,
        given=settings.shapes,
        user=settings.inputs,
        seed=settings.seed,
        lengths=FALLBACK_LENGTHS if isinstance(session, HurriedSession) else None,
        roles=roles,
    )
    ran: dict[int, dict[str, Array]] = {}

    def run(feeds: Mapping[str, Array]) -> None:
        if isinstance(session, HurriedSession) and ran and session.clock.spent_s > session.clock.limit_s / 4:
            raise TimedOut("the other runs need the time")  # so that there is something to compare
        ran[id(feeds)] = session.run(feeds)

    def reached(shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(some.reached(shapes) for some in convolutions)

    try:
        first, sizes = chooser.first(run)
        cases = [first, *chooser.more(sizes, step, run, reached)]
        refused, notes = None, []
        if chooser.batches and not any(case.name in ("batch", "long") for case in cases):
            refused = _refused(chooser, sizes, session)
    except (Crashed, TimedOut) as error:
        raise _SkippedError(f"the original does not run: {error}") from error
    if refused is not None:
        notes.append(f"the original does not run on {describe(refused)}")
    if chooser.extents and not any(reached(case.shapes) for case in cases):
        notes.append(NARROW)
    return _Original(cases=cases, outputs=[ran[id(case.feeds)] for case in cases], refused=refused, notes=notes)


def _refused(chooser: Chooser, sizes: Mapping[str, int], session: Session) -> Case | None:
    """Return a larger batch on which the model does not run, to see that the other does not either."""
    larger = {batch: sizes.get(batch, 1) + 1 for batch in chooser.batches}
    try:
        case = Case(name="batch", feeds=chooser.feeds({**sizes, **larger}))
    except CannotRun:  # too large to try
        return None
    return None if _runs(session, case) is not False else case


def _runs(session: Session, case: Case) -> bool | None:
    """Say whether a model runs on a case; `None` where its process ends."""
    try:
        session.run(case.feeds)
    except CannotRun:
        return False
    except (Crashed, TimedOut):
        return None
    return True


def unknown_operators(proto: ModelProto) -> list[str]:
    """Return the domains of operators that neither ONNX nor a function of the model defines."""
    own = {(function.domain, function.name) for function in proto.functions}
    standard = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.preview.training", "ai.onnx.training", "com.microsoft")
    found: dict[str, None] = {}
    for node in all_nodes(proto):
        if node.domain not in standard and (node.domain, node.op_type) not in own:
            found[f"{node.domain}.{node.op_type}"] = None
    return list(found)


def _again(backend: Backend | Hurried, before: Subject, options: Options, case: Case) -> dict[str, Array] | None:
    """Run the original once more, in a session of its own; `None` when that fails, which excuses nothing."""
    try:
        with backend.session(before.runnable(), options) as session:
            return session.run(case.feeds)
    except RuntimeFailure:
        return None


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


def _noise(
    backend: Backend | Hurried,
    before: Subject,
    disturbed: Subject | None,
    options: Options,
    original: _Original,
) -> tuple[list[dict[str, float]], list[str]]:
    """Return per case and output how far the original is from itself: other optimisations, disturbed Convs."""
    noise: list[dict[str, float]] = [{} for _ in original.cases]
    sources = []
    variants: list[tuple[str, Subject, Options]] = [
        ("graph optimisations on/off", before, replace(options, optimize=not options.optimize))
    ]
    if disturbed is not None and options.optimize:
        variants.append(("rewritten Convs disturbed by their per-site error", disturbed, options))
    for name, subject, chosen in variants:
        try:
            with backend.session(subject.runnable(), chosen) as session:
                for number, case in enumerate(original.cases):
                    for output, values in session.run(case.feeds).items():
                        old = original.outputs[number].get(output)
                        if isinstance(old, np.ndarray) and old.shape == values.shape and old.dtype.kind != "O":
                            with np.errstate(invalid="ignore"):  # Inf - Inf
                                change = np.asarray(values, np.float64) - np.asarray(old, np.float64)
                            largest = _largest(change)
                            noise[number][output] = max(noise[number].get(output, 0.0), largest)
        except RuntimeFailure:
            continue
        sources.append(name)
    return noise, sources


def _largest(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.max(np.abs(finite), initial=0.0))
