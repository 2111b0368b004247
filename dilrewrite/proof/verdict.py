"""Compares two models as wholes: interface, checker, outputs on several inputs, and the original's own noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import all_nodes, nodes_in
from dilrewrite.proof.findings import Finding, findings, fresh
from dilrewrite.proof.inputs import LENGTHS, LENGTHS_3D, Case, Chooser, Convolutions, describe
from dilrewrite.runtimes import (
    Array,
    Backend,
    CannotLoad,
    CannotRun,
    Crashed,
    Options,
    Runnable,
    Session,
    TimedOut,
    backends,
)

T = TypeVar("T")

FALLBACK_S = 20.0
"""How long the runs on the fallback may take together; it is slow."""

FALLBACK_LENGTHS = {1: (32, 16, *LENGTHS), 2: (32, 16, *LENGTHS), 3: (16, 8, *LENGTHS_3D)}
"""What unknown extents are tried with there (see `Chooser`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """One output on one case. Differences are `after - before` over the elements that are finite in both.

    `max_rel` is relative to |before| where that is not 0; `rms` and `cosine` are over all elements; `ulp` counts in
    units in the last place of `before` (floats of 16 to 64 bits); `argmax_agreement` is the share of positions whose
    largest channel (axis 1) is the same. `noise` is the largest difference of the original from itself (see `Verdict`).
    """

    name: str
    element: str
    shape: tuple[int, ...]
    max_abs: float
    max_rel: float
    rms: float
    cosine: float | None
    ulp: float | None
    argmax_agreement: float | None
    nan: tuple[int, int]
    inf: tuple[int, int]
    noise: float | None
    comparable: bool
    passed: bool
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseCheck:
    """All outputs on one set of inputs."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    outputs: tuple[OutputCheck, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether two models compute the same function, and what was looked at.

    `level`: `full` (whole models run), `sites` (per-site proofs only), `none`. `skipped` says why whole models were not
    run. `deterministic`: a second run of the original gave the same outputs (`None`: there was none). `optimized`:
    graph optimisations were on (off for quantised models, whose fusions move values by a quantum). `noise_sources`
    names what the noise was measured from. `checker_before` are what the ONNX checker finds in the original,
    `checker_after` what it finds in the rewritten model alone: no difference of results.
    """

    level: str
    passed: bool
    backend: str = ""
    cases: tuple[CaseCheck, ...] = ()
    failures: tuple[str, ...] = ()
    skipped: str | None = None
    deterministic: bool | None = None
    optimized: bool = True
    tolerance: str = ""
    noise_sources: tuple[str, ...] = ()
    checker_before: tuple[str, ...] = ()
    checker_after: tuple[str, ...] = ()
    peak_bytes: tuple[int | None, int | None] = (None, None)
    notes: tuple[str, ...] = ()


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
    tolerance = _tolerance(before.proto, settings)
    verdict = replace(verdict, optimized=not quantized, tolerance=str(tolerance))
    backend: Backend | _Hurried = settings.backend
    try:
        session = backend.session(before.runnable(), options)
    except (CannotLoad, Crashed, TimedOut) as error:
        if settings.fallback is None or unknown_operators(before.proto):
            return replace(verdict, skipped=f"{backend.name} does not load the original: {error}")
        backend = _Hurried(settings.fallback)
        try:
            session = backend.session(before.runnable(), options)
        except (CannotLoad, CannotRun, Crashed, TimedOut) as second:
            return replace(verdict, skipped=f"{settings.backend.name}: {error}; {backend.name}: {second}")
        verdict = replace(verdict, backend=backend.name, notes=(f"{settings.backend.name}: {error}",))
    with session:
        try:
            original = _original(session, before, after, settings, step)
        except (Crashed, TimedOut) as error:
            return replace(verdict, skipped=f"the original does not run: {error}")
        peak_before = session.peak_bytes()
    verdict = replace(verdict, notes=(*verdict.notes, *original.notes))
    cases, wanted, refused = original.cases, original.outputs, original.refused
    failures = list(verdict.failures)
    outputs: list[dict[str, Array]] = []
    peak_after = None
    loaded = False
    try:
        with backend.session(after.runnable(), options) as session:
            loaded = True
            for case in cases:
                outputs.append(session.run(case.feeds))
            peak_after = session.peak_bytes()
            if refused is not None and _runs(session, refused):
                more = f"the rewritten model runs on {describe(refused)}, where the original does not"
                if after.path is None:  # made here, of the original: that it runs on more takes nothing away
                    verdict = replace(verdict, notes=(*verdict.notes, more))
                else:
                    failures.append(more)
    except OutOfTime as error:
        return replace(verdict, skipped=f"the rewritten model: {error}")
    except (CannotLoad, CannotRun, Crashed, TimedOut) as error:
        does = f"run on {describe(cases[len(outputs)])}" if loaded and len(outputs) < len(cases) else "load"
        failures.append(f"the rewritten model does not {does}: {error}")
        return replace(verdict, passed=False, failures=tuple(failures), peak_bytes=(peak_before, peak_after))
    again = _again(backend, before, options, cases[0])
    noise, sources = _noise(backend, before, disturbed, options, cases, wanted)
    steady = {name: again is None or _same(values, again.get(name)) for name, values in wanted[0].items()}
    checks = []
    for number, case in enumerate(cases):
        found = []
        for name, values in wanted[number].items():
            check = compare(
                name,
                values,
                outputs[number].get(name),
                tolerance,
                noise=noise[number].get(name) if noise else None,
            )
            if not steady.get(name, True) and _excusable(values, outputs[number].get(name), (again or {}).get(name)):
                check = replace(check, comparable=False, passed=True, note="two runs of the original differ")
            if not check.passed:
                failures.append(f"output {name!r} on {describe(case)}: {check.note}")
            found.append(check)
        checks.append(CaseCheck(name=case.name, shapes=case.shapes, outputs=tuple(found)))
    return replace(
        verdict,
        notes=(*verdict.notes, *_empty_comparisons(checks)),
        passed=not failures,
        failures=tuple(failures),
        cases=tuple(checks),
        deterministic=None if again is None else all(steady.values()),
        noise_sources=tuple(sources),
        peak_bytes=(peak_before, peak_after),
    )


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


class OutOfTime(TimedOut):
    """The runs on the fallback took too long together."""


@dataclass(slots=True)
class _Clock:
    """How long calls took together, of `limit_s` that they may."""

    limit_s: float
    spent_s: float = 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        """Make a call. Raises `OutOfTime` when the time is over, before it or in it."""
        if self.spent_s >= self.limit_s:
            raise OutOfTime(self.reason())
        start = time.monotonic()
        try:
            return call()
        except TimedOut as error:
            raise OutOfTime(self.reason()) from error
        finally:
            self.spent_s += time.monotonic() - start

    def reason(self) -> str:
        """Say why no more is run."""
        return f"runs take more than {self.limit_s:g} s"


class _Hurried:
    """A slow backend whose sessions share one clock; each is a process of its own, which can be stopped."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.clock = _Clock(FALLBACK_S)
        self.backend = backend

    def session(self, runnable: Runnable, options: Options) -> Session:
        """Load a model."""
        options = replace(options, timeout_s=max(self.clock.limit_s - self.clock.spent_s, 1.0))

        def load() -> Session:
            from dilrewrite.runtimes._worker import IsolatedSession

            if backends().get(self.name) is self.backend:  # one that a child can be given
                return IsolatedSession(self.backend, runnable, options)
            return self.backend.session(runnable, options)

        return _HurriedSession(self.clock(load), self.clock)


class _HurriedSession:
    """A session on a clock."""

    def __init__(self, session: Session, clock: _Clock) -> None:
        self.inputs, self.outputs = session.inputs, session.outputs
        self.session, self.clock = session, clock
        self.peak_bytes, self.close = session.peak_bytes, session.close

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Return the named outputs (None: all)."""
        return self.clock(lambda: self.session.run(feeds, outputs))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _original(session: Session, before: Subject, after: Subject, settings: Settings, step: int) -> _Original:
    """Choose what to run on, and run the original. Raises `Crashed`, `TimedOut`, and `UsageError` when nothing runs."""
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
        lengths=FALLBACK_LENGTHS if isinstance(session, _HurriedSession) else None,
        roles=roles,
    )
    ran: dict[int, dict[str, Array]] = {}

    def run(feeds: Mapping[str, Array]) -> None:
        if isinstance(session, _HurriedSession) and ran and session.clock.spent_s > FALLBACK_S / 4:
            raise TimedOut("the other runs need the time")  # so that there is something to compare
        ran[id(feeds)] = session.run(feeds)

    def reached(shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return all(some.reached(shapes) for some in convolutions)

    first, sizes = chooser.first(run)
    cases = [first, *chooser.more(sizes, step, run, reached)]
    refused, notes = None, []
    if chooser.batches and not any(case.name in ("batch", "long") for case in cases):
        refused = _refused(chooser, sizes, session)
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


def _again(backend: Backend | _Hurried, before: Subject, options: Options, case: Case) -> dict[str, Array] | None:
    """Run the original once more, in a session of its own; `None` when that fails, which excuses nothing."""
    try:
        with backend.session(before.runnable(), options) as session:
            return session.run(case.feeds)
    except (CannotLoad, CannotRun, Crashed, TimedOut):
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
    backend: Backend | _Hurried,
    before: Subject,
    disturbed: Subject | None,
    options: Options,
    cases: Sequence[Case],
    wanted: Sequence[Mapping[str, Array]],
) -> tuple[list[dict[str, float]], list[str]]:
    """Return per case and output how far the original is from itself: other optimisations, disturbed Convs."""
    noise: list[dict[str, float]] = [{} for _ in cases]
    sources = []
    variants: list[tuple[str, Subject, Options]] = [
        ("graph optimisations on/off", before, replace(options, optimize=not options.optimize))
    ]
    if disturbed is not None and options.optimize:
        variants.append(("rewritten Convs disturbed by their per-site error", disturbed, options))
    for name, subject, chosen in variants:
        try:
            with backend.session(subject.runnable(), chosen) as session:
                for number, case in enumerate(cases):
                    for output, values in session.run(case.feeds).items():
                        old = wanted[number].get(output)
                        if isinstance(old, np.ndarray) and old.shape == values.shape and old.dtype.kind != "O":
                            with np.errstate(invalid="ignore"):  # Inf - Inf
                                change = np.asarray(values, np.float64) - np.asarray(old, np.float64)
                            largest = _largest(change)
                            noise[number][output] = max(noise[number].get(output, 0.0), largest)
        except (CannotLoad, CannotRun, Crashed, TimedOut):
            continue
        sources.append(name)
    return noise, sources


def _largest(values: NDArray[np.float64]) -> float:
    finite = values[np.isfinite(values)]
    return float(np.max(np.abs(finite), initial=0.0))


# -- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|difference| <= `rtol` * |value| + `share` * max|values| + `atol`."""

    rtol: float
    share: float
    atol: float

    def __str__(self) -> str:
        """Return the formula with its numbers."""
        parts = [f"{self.rtol:g} |value|"]
        if self.share:
            parts.append(f"{self.share:g} max|values|")
        if self.atol:
            parts.append(f"{self.atol:g}")
        return " + ".join(parts)


def _tolerance(proto: ModelProto, settings: Settings) -> Tolerance:
    kinds = _types(proto)
    present = [element for element in FLOATS.values() if element.number in kinds] or [FLOATS["float32"]]
    rtol, share = max(present, key=lambda element: element.roundoff).tolerance
    if settings.rtol is None and settings.atol is None:
        return Tolerance(rtol, share, 0.0)
    return Tolerance(settings.rtol or 0.0, 0.0, settings.atol or 0.0)


def _types(proto: ModelProto) -> set[int]:
    """Return the element types of the outputs, and of the weights and constants that they depend on."""
    wanted = {output.name for output in proto.graph.output}
    kinds = {output.type.tensor_type.elem_type for output in proto.graph.output}
    for node in reversed(proto.graph.node):  # in topological order, as every valid model is
        if wanted.isdisjoint(node.output):
            continue
        kinds |= {a.t.data_type for a in node.attribute if a.name == "value"}
        for inner in nodes_in([node]):
            wanted.update(inner.input)
    return kinds | {tensor.data_type for tensor in proto.graph.initializer if tensor.name in wanted}


def compare(
    name: str, before: Array, after: Array | None, tolerance: Tolerance, *, noise: float | None = None
) -> OutputCheck:
    """Compare one output. Passes when every |after - before| is within the tolerance or within the measured noise.

    NaN and Inf must stand in the same places. Integers must be equal, or within the noise: where a float is rounded to
    one, its last digits decide. Booleans and strings must be equal.
    """
    if not isinstance(before, np.ndarray) or (after is not None and not isinstance(after, np.ndarray)):
        return _sequence(name, before, after, tolerance, noise)
    element, shape = str(before.dtype), tuple(before.shape)
    if after is None or before.shape != after.shape or before.dtype != after.dtype:
        got = "missing" if after is None else f"{after.dtype} {list(after.shape)}"
        return _plain(name, element, before.shape, passed=False, note=f"is {got}, was {element} {list(before.shape)}")
    if before.dtype == object or before.dtype.kind in "US":
        same = bool((before == after).all())
        return _plain(name, "string", before.shape, passed=same, note="" if same else "the strings differ")
    if before.dtype.kind == "c":
        before, after = (np.stack([values.real, values.imag]) for values in (before, after))
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    nan = int(np.isnan(a).sum()), int(np.isnan(b).sum())
    inf = int(np.isinf(a).sum()), int(np.isinf(b).sum())
    diff = np.where(finite, b, 0.0) - np.where(finite, a, 0.0)
    size = np.abs(np.where(finite, a, 0.0))
    scale = float(size.max(initial=0.0))
    largest = float(np.abs(diff).max(initial=0.0))
    nonzero = size > 0
    relative = float((np.abs(diff)[nonzero] / size[nonzero]).max(initial=0.0))
    floating = before.dtype.kind == "f" or element in ("bfloat16",)
    allowed = (
        np.maximum(tolerance.rtol * size + tolerance.share * scale + tolerance.atol, noise or 0.0)
        if floating
        else np.zeros_like(size)
    )
    differs = before != after
    exceeded = ~(np.abs(diff) <= allowed) if floating else differs
    # A value that is rounded to an integer may fall to either side, by one, where the original's own does.
    excused = "int" in element and noise is not None and noise >= 1 and scale < 2**53
    if excused:
        exceeded = differs & ~(np.abs(diff) <= 1)
    misplaced = not np.array_equal(np.isnan(a), np.isnan(b)) or not np.array_equal(
        np.where(np.isinf(a), a, 0), np.where(np.isinf(b), b, 0)
    )
    note = ""
    if misplaced:
        note = f"NaN or Inf in other places: {nan[0]} NaN and {inf[0]} Inf before, {nan[1]} and {inf[1]} after"
    elif exceeded.any():
        note = (
            f"{int(exceeded.sum())} of {a.size} values differ by up to {largest:.3g} where {scale:.3g} is the largest"
        )
    elif excused and differs.any():
        count = int(differs.sum())
        note = f"{count} of {a.size} integers differ by one, and the original from itself by up to {noise:g}"
    elif a.size and nan[0] == a.size:
        note = "NaN throughout, in both models"
    return OutputCheck(
        name=name,
        element=element,
        shape=shape,
        max_abs=largest,
        max_rel=relative,
        rms=float(np.sqrt(np.mean(diff**2))) if diff.size else 0.0,
        cosine=_cosine(np.where(finite, a, 0.0), np.where(finite, b, 0.0)),
        ulp=_ulp(before, diff) if floating else None,
        argmax_agreement=_argmax(before, after) if floating else None,
        nan=nan,
        inf=inf,
        noise=noise,
        comparable=True,
        passed=not misplaced and not bool(exceeded.any()),
        note=note,
    )


def _sequence(name: str, before: Any, after: Any, tolerance: Tolerance, noise: float | None) -> OutputCheck:
    """Compare sequences element by element; the worst element stands for all."""
    if not isinstance(before, list) or not isinstance(after, list) or len(before) != len(after):
        same = type(before) is type(after) and not isinstance(before, list) and before == after
        return _plain(name, type(before).__name__, (), passed=bool(same), note="" if same else "the sequence differs")
    if any(isinstance(old, dict) != isinstance(new, dict) for old, new in zip(before, after, strict=True)):
        return _plain(name, "sequence", (), passed=False, note="the sequence differs")
    checks = [
        compare(f"{name}[{place}]", *_arrays(old, new), tolerance, noise=noise)
        for place, (old, new) in enumerate(zip(before, after, strict=True))
    ]
    if not checks:
        return _plain(name, "sequence", (), passed=True, note="")
    worst = max(checks, key=lambda check: (not check.passed, check.max_abs))
    note = f"element {worst.name}: {worst.note}" if worst.note else ""
    return replace(worst, name=name, element=f"sequence of {worst.element}", note=note)


def _arrays(old: Any, new: Any) -> tuple[Array, Array | None]:
    """Return two elements as arrays; of two maps with the same keys, the values in the same order."""
    if not isinstance(old, dict):
        return np.asarray(old), np.asarray(new)
    if old.keys() != new.keys():
        return np.asarray(list(old.values())), None
    return np.asarray(list(old.values())), np.asarray([new[key] for key in old])


def _plain(name: str, element: str, shape: tuple[int, ...], *, passed: bool, note: str) -> OutputCheck:
    return OutputCheck(
        name=name,
        element=element,
        shape=tuple(shape),
        max_abs=0.0 if passed else math.inf,
        max_rel=0.0 if passed else math.inf,
        rms=0.0 if passed else math.inf,
        cosine=None,
        ulp=None,
        argmax_agreement=None,
        nan=(0, 0),
        inf=(0, 0),
        noise=None,
        comparable=True,
        passed=passed,
        note=note,
    )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / norm if norm > 0 else None


def _ulp(before: Array, diff: NDArray[np.float64]) -> float | None:
    if before.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        spacing = np.asarray(np.spacing(np.abs(before)), np.float64)
        steps = np.abs(diff) / spacing
    return float(np.max(steps[np.isfinite(steps)], initial=0.0))


def _argmax(before: Array, after: Array) -> float | None:
    if before.ndim < 2 or before.shape[1] < 2 or before.size == 0:
        return None
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return float(np.mean(np.argmax(a, axis=1) == np.argmax(b, axis=1)))
