"""Compares two outputs number by number, and says how much they may differ."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import nodes_in
from dilrewrite.runtimes import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputCheck:
    """One output on one case. Differences are `after - before`, over the elements that are finite in both."""

    name: str
    """Output."""
    element: str
    """Element type."""
    shape: tuple[int, ...]
    """Shape."""
    max_abs: float
    """Largest absolute difference; `"inf"` when outputs cannot be subtracted and differ."""
    max_rel: float
    """Largest difference relative to the original's value, where that is not 0."""
    rms: float
    """Root mean square of the differences."""
    cosine: float | None = None
    """Cosine between both outputs; `None` when one is all zeros or no number."""
    ulp: float | None = None
    """Largest difference in units in the last place of the original; `None` for other than floats of 16 to 64 bits."""
    argmax_agreement: float | None = None
    """Share of positions whose largest channel (axis 1) is the same, 0 to 1; `None` without such an axis."""
    nan: tuple[int, int] = (0, 0)
    """NaN before and after."""
    inf: tuple[int, int] = (0, 0)
    """Infinities before and after."""
    noise: float | None = None
    """Largest difference of the original from itself (`noise_sources`); `None` when not measured."""
    comparable: bool = True
    """False when two runs of the original differ here, which makes a comparison void."""
    passed: bool
    """Whether the difference is allowed; true when not comparable."""
    note: str = ""
    """What is wrong, or why it was not compared; may be empty."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """|difference| <= `rtol` * |value| + `share` * max|values| + `atol`."""

    rtol: float
    share: float
    atol: float

    def __str__(self) -> str:
        """Return the formula with its numbers."""
        share = f"{self.share:g} max|values|" if self.share else ""
        parts = (f"{self.rtol:g} |value|", share, f"{self.atol:g}" if self.atol else "")
        return " + ".join(filter(None, parts))


def tolerance_of(proto: ModelProto, rtol: float | None = None, atol: float | None = None) -> Tolerance:
    """Return what the outputs of a model are held to: as asked for, or that of the coarsest type they depend on."""
    if rtol is not None or atol is not None:
        return Tolerance(rtol or 0.0, 0.0, atol or 0.0)
    kinds = _types(proto)
    present = [element for element in FLOATS.values() if element.number in kinds] or [FLOATS["float32"]]
    rtol, share = max(present, key=lambda element: element.roundoff).tolerance
    return Tolerance(rtol, share, 0.0)


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
    if after is None or before.shape != after.shape or before.dtype != after.dtype:
        got = "missing" if after is None else f"{after.dtype} {list(after.shape)}"
        return _plain(name, str(before.dtype), f"is {got}, was {before.dtype} {list(before.shape)}", before.shape)
    if before.dtype == object or before.dtype.kind in "US":
        return _plain(name, "string", "" if (before == after).all() else "the strings differ", before.shape)
    return _numbers(name, before, after, tolerance, noise)


def _numbers(name: str, before: Array, after: Array, tolerance: Tolerance, noise: float | None) -> OutputCheck:
    """Compare two arrays of numbers of one shape and type."""
    element, shape = str(before.dtype), tuple(before.shape)
    if before.dtype.kind == "c":
        before, after = (np.stack([values.real, values.imag]) for values in (before, after))
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    nan = int(np.isnan(a).sum()), int(np.isnan(b).sum())
    inf = int(np.isinf(a).sum()), int(np.isinf(b).sum())
    first, second = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    diff, size = second - first, np.abs(first)
    change, scale = np.abs(diff), float(size.max(initial=0.0))
    largest, nonzero = float(change.max(initial=0.0)), size > 0
    floating = before.dtype.kind == "f" or element == "bfloat16"
    differs = before != after
    # A value that is rounded to an integer may fall to either side, by one, where the original's own does.
    excused = "int" in element and noise is not None and noise >= 1 and scale < 2**53
    if floating:
        allowed = np.maximum(tolerance.rtol * size + tolerance.share * scale + tolerance.atol, noise or 0.0)
        exceeded = ~(change <= allowed)
    else:
        exceeded = differs & ~(change <= 1) if excused else differs
    strays, others = (np.where(np.isfinite(values), 0, values) for values in (a, b))
    misplaced = not np.array_equal(strays, others, equal_nan=True)
    note, wrong, changed = "", int(exceeded.sum()), int(differs.sum())
    if misplaced:
        note = f"NaN or Inf in other places: {nan[0]} NaN and {inf[0]} Inf before, {nan[1]} and {inf[1]} after"
    elif wrong:
        note = f"{wrong} of {a.size} values differ by up to {largest:.3g} where {scale:.3g} is the largest"
    elif excused and changed:
        note = f"{changed} of {a.size} integers differ by one, and the original from itself by up to {noise:g}"
    elif a.size and nan[0] == a.size:
        note = "NaN throughout, in both models"
    return OutputCheck(
        name=name,
        element=element,
        shape=shape,
        max_abs=largest,
        max_rel=float((change[nonzero] / size[nonzero]).max(initial=0.0)),
        rms=float(np.sqrt(np.mean(diff**2))) if diff.size else 0.0,
        cosine=_cosine(first, second),
        ulp=_ulp(before, diff) if floating else None,
        argmax_agreement=_argmax(before, after) if floating else None,
        nan=nan,
        inf=inf,
        noise=noise,
        passed=not misplaced and not wrong,
        note=note,
    )


def _sequence(name: str, before: Any, after: Any, tolerance: Tolerance, noise: float | None) -> OutputCheck:
    """Compare sequences element by element; the worst element stands for all."""
    if not isinstance(before, list) or not isinstance(after, list) or len(before) != len(after):
        same = type(before) is type(after) and not isinstance(before, list) and before == after
        return _plain(name, type(before).__name__, "" if same else "the sequence differs")
    if any(isinstance(old, dict) != isinstance(new, dict) for old, new in zip(before, after, strict=True)):
        return _plain(name, "sequence", "the sequence differs")
    checks = [
        compare(f"{name}[{place}]", *_arrays(old, new), tolerance, noise=noise)
        for place, (old, new) in enumerate(zip(before, after, strict=True))
    ]
    if not checks:
        return _plain(name, "sequence", "")
    worst = max(checks, key=lambda check: (not check.passed, check.max_abs))
    note = f"element {worst.name}: {worst.note}" if worst.note else ""
    return replace(worst, name=name, element=f"sequence of {worst.element}", note=note)


def _arrays(old: Any, new: Any) -> tuple[Array, Array | None]:
    """Return two elements as arrays; of two maps with the same keys, the values in the same order."""
    if not isinstance(old, dict):
        return np.asarray(old), np.asarray(new)
    values = np.asarray(list(old.values()))
    return values, np.asarray([new[key] for key in old]) if old.keys() == new.keys() else None


def _plain(name: str, element: str, problem: str, shape: tuple[int, ...] = ()) -> OutputCheck:
    """Return the check of what cannot be subtracted: no `problem` where both are the same."""
    error, passed = math.inf if problem else 0.0, not problem
    return OutputCheck(
        name=name, element=element, shape=shape, max_abs=error, max_rel=error, rms=error, passed=passed, note=problem
    )


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.vdot(a, b)) / norm if norm > 0 else None


def _ulp(before: Array, diff: NDArray[np.float64]) -> float | None:
    if before.dtype.kind != "f":
        return None
    with np.errstate(all="ignore"):
        steps = np.abs(diff) / np.asarray(np.spacing(np.abs(before)), np.float64)
    return float(np.max(steps[np.isfinite(steps)], initial=0.0))


def _argmax(before: Array, after: Array) -> float | None:
    if before.ndim < 2 or before.shape[1] < 2 or before.size == 0:
        return None
    a, b = np.asarray(before, np.float64), np.asarray(after, np.float64)
    return float(np.mean(np.argmax(a, axis=1) == np.argmax(b, axis=1)))
