"""Whether a rewritten model computes what the original does on the runtime that it is timed on, whatever proofs say.

Proofs run on ONNX Runtime and in exact arithmetic; other runtimes do get rewritten models wrong without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np
from onnx import ModelProto

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import all_nodes
from dilrewrite.proof.compare import Tolerance, compare, tolerance_of
from dilrewrite.runtimes import Array, Bench, CannotRun

DRAWING = frozenset(
    {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that draw at random, Dropout in training."""

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")


class Differs(CannotRun):
    """The outputs on the timed runtime are not those of the original; the reason is one line."""


def allowed(proto: ModelProto, rounds_to: str, rtol: float | None, atol: float | None) -> Tolerance:
    """Return what outputs on a runtime that computes in `rounds_to` are held to: as for models, or as asked for."""
    asked = tolerance_of(proto, rtol, atol)
    if rtol is not None or atol is not None:
        return asked
    coarsest = FLOATS["bfloat16" if quantises(proto) else rounds_to].tolerance
    return max(asked, Tolerance(*coarsest, 0.0), key=lambda tolerance: tolerance.share)


def quantises(proto: ModelProto) -> bool:
    """Say whether a model rounds to integers inside: the last digit of a float may decide on a whole step of these."""
    return any(node.op_type in ("QuantizeLinear", "QLinearConv") for node in all_nodes(proto))


def may_draw(proto: ModelProto) -> bool:
    """Say whether a model may draw at random: an operator of ONNX does, or one of an unknown domain may."""
    own = {(function.domain, function.name) for function in proto.functions}
    return any(
        node.op_type in DRAWING or (node.domain not in DOMAINS and (node.domain, node.op_type) not in own)
        for node in all_nodes(proto)
    )


def check(
    bench: Bench,
    original: str,
    other: str,
    tolerance: Tolerance,
    feeds: Mapping[str, Array],
    anew: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    *,
    rounded: bool = False,
    draws: bool = False,
) -> None:
    """Raise Differs when two models on a bench give other outputs; see `hold`. `anew` runs the original."""
    hold(bench.outputs(original), bench.outputs(other), tolerance, feeds, anew, rounded=rounded, draws=draws)


def hold(
    before: Mapping[str, Array],
    after: Mapping[str, Array],
    tolerance: Tolerance,
    feeds: Mapping[str, Array],
    anew: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    *,
    rounded: bool = False,
    draws: bool = False,
) -> None:
    """Raise Differs when `after` is not what `before` is.

    Floats are held to the tolerance. The last digit of one may decide on an integer, a boolean or a string, and on
    any finite output of a model that is `rounded` to integers inside: these may
    differ at no more places, and by no more, than the original's own do on inputs changed within the tolerance, for
    a change of its inputs passes through the same roundings as one inside of it. `anew` gives once more what `before`
    was on the `feeds`, in a new process: what is otherwise there, in a model that `draws` at random, cannot be judged.
    """
    again = functools.cache(lambda: anew(feeds))

    def random(name: str) -> bool:
        return draws and name in again() and not compare(name, before[name], again()[name], tolerance).passed

    decided: dict[str, Array] = {}
    for name, values in before.items():
        got = after.get(name)
        if values.dtype.name in FLOATS or got is None or (got.shape, got.dtype) != (values.shape, values.dtype):
            result = compare(name, values, got, tolerance)
            if result.passed or random(name):
                continue
            if not rounded or got is None or got.shape != values.shape or not np.isfinite(got).all():
                raise Differs(f"output {name!r}: {result.note}")
            decided[name] = got
        elif (got != values).any() and not random(name):
            decided[name] = got
    own = anew(nudge(feeds, tolerance)) if decided else {}
    for name, got in decided.items():
        (count, most), (own_count, own_most) = _apart(before[name], got), _apart(before[name], own.get(name))
        if count > own_count or most > own_most:
            much, allowed = f"{count} of {got.size} values differ by up to {most:g}", f"{own_count} by {own_most:g}"
            raise Differs(f"output {name!r}: {much}, and on inputs changed a little the original's own only {allowed}")


def _apart(before: Array, after: Array | None) -> tuple[int, float]:
    """Return at how many places two outputs differ, and by how much at most: 1 where they are no numbers."""
    if after is None or after.shape != before.shape:
        return 0, 0.0
    differs = after != before
    if before.dtype.kind in "OSU":
        return int(differs.sum()), float(differs.any())
    return int(differs.sum()), float(np.abs(after.astype(np.float64) - before.astype(np.float64)).max(initial=0.0))


def nudge(feeds: Mapping[str, Array], tolerance: Tolerance) -> dict[str, Array]:
    """Return inputs changed at random: floats by what the tolerance allows, integers of 8 bits, a scale's, by one."""
    rng = np.random.default_rng(0)
    return {name: _nudged(value, tolerance, rng) for name, value in feeds.items()}


def _nudged(value: Array, tolerance: Tolerance, rng: np.random.Generator) -> Array:
    if not isinstance(value, np.ndarray) or value.dtype.name not in (*FLOATS, "int8", "uint8"):
        return value
    numbers = value.astype(np.float64)
    if value.dtype.name not in FLOATS:
        limits = np.iinfo(value.dtype)
        return np.clip(numbers + rng.integers(-1, 2, value.shape), limits.min, limits.max).astype(value.dtype)
    size = np.abs(numbers)
    most = tolerance.rtol * size + tolerance.share * size.max(initial=0.0, where=np.isfinite(size)) + tolerance.atol
    return np.asarray(numbers + most * rng.uniform(-1, 1, value.shape), value.dtype)
