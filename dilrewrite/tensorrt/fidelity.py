"""How far a model converted to float16 or bfloat16 is from the one in float32: run both, and hold it to a bound.

The bound is of the conversion itself: each of the n results on the longest way through the model is rounded by at most
u (2^-11 for float16, 2^-8 for bfloat16); independent roundings add up like a random walk, to sqrt(n) u, relative to the
root mean square of the output. Twice that is allowed. A weight that went lost, or a Cast in the wrong place, is far
beyond it; what a net makes of small errors may be too, and then the message says so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto

from dilrewrite.errors import DiffersError
from dilrewrite.model.elements import FLOATS
from dilrewrite.proof.inputs import Case, Chooser
from dilrewrite.proof.verdict import Settings
from dilrewrite.runtimes import Array, Options, Runnable, RuntimeFailure, Session
from dilrewrite.tensorrt.convert import LOW, inferred, twin
from dilrewrite.tensorrt.precision import Prepared

UNIT_ROUNDOFF = {"fp16": FLOATS["float16"].roundoff, "bf16": FLOATS["bfloat16"].roundoff}

SLACK = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """The converted model against the float32 one, both on ONNX Runtime."""

    difference: float | None
    """Root mean square of the difference divided by that of the output, the largest over the outputs; `None` when they
    could not be compared.
    """
    bound: float
    """What it must not be above: twice √n units of rounding, for n results on the longest way through the model."""
    shapes: Mapping[str, tuple[int, ...]]
    """Shape by input of that run."""
    reason: str = ""
    """Why they could not be compared; empty otherwise."""


def bound(proto: ModelProto, precision: str) -> float:
    """Return what the relative difference of a converted model is held to."""
    kinds = inferred(proto)
    depth: dict[str, int] = {}
    for node in proto.graph.node:  # in topological order
        before = max((depth.get(name, 0) for name in node.input), default=0)
        rounds = any(kinds.get(name, (TensorProto.FLOAT16, 0))[0] in LOW for name in node.output)
        inside = [len(attribute.g.node) for attribute in node.attribute if attribute.HasField("g")]
        depth.update(dict.fromkeys(node.output, before + rounds * max([1, *inside])))
    longest = max(depth.values(), default=1)
    return SLACK * UNIT_ROUNDOFF[precision] * math.sqrt(max(longest, 4))


def compare(original: ModelProto, prepared: Prepared, folder: Path, settings: Settings, where: str) -> Fidelity:
    """Run a model and its conversion on the same data, as `settings` say; both are in `folder`.

    Raises DiffersError, which begins with `where`, when they differ by more than the bound, or one overflows where the
    other does not. Where the original or the conversion does not run, the result says so.
    """
    assert prepared.precision in UNIT_ROUNDOFF
    allowed = bound(prepared.proto, prepared.precision)
    runs = twin(prepared.proto)  # on the CPU float16 is computed in float32, and overflows nowhere
    # Without optimisations: a runtime may drop a pair of Casts that rounds.
    options = Options(threads=settings.threads, optimize=False)
    session_of = settings.backend.session
    try:
        with session_of(Runnable(model=original.SerializeToString(), folder=folder), options) as session:
            case = first_case(session, settings)
            before = session.run(case.feeds)
        with session_of(Runnable(model=runs.SerializeToString(), folder=folder), options) as session:
            after = session.run(case.feeds)
    except RuntimeFailure as error:
        return Fidelity(difference=None, bound=allowed, shapes={}, reason=f"not compared: {error}")
    label = f"{where}: converted to {prepared.precision}"
    hint = "build with --precision bf16, which has float32's range" if prepared.precision == "fp16" else ""
    worst = 0.0
    for name, first in before.items():
        if isinstance(first, np.ndarray) and first.dtype.kind in "f" and first.size:
            worst = max(worst, _difference(f"output {name!r}", first, np.asarray(after[name]), label, hint))
    if worst > allowed:
        raise DiffersError(
            f"{label} it differs by {worst:.2g} of the output's size, and {allowed:.2g} is allowed",
            hint="the net amplifies rounding: build in another precision, or give its own kind of data with --inputs",
        )
    return Fidelity(difference=worst, bound=allowed, shapes=case.shapes)


def first_case(session: Session, settings: Settings) -> Case:
    """Return data that a model runs on: the user's, and made-up values of the sizes that are given."""
    given = {name: shape for name, shape in settings.shapes.items() if name not in settings.inputs}
    return Chooser(session.inputs, given=given, user=settings.inputs, seed=settings.seed).first(session.run)[0]


def _difference(output: str, first: Array, second: Array, label: str, hint: str) -> float:
    """Return the root mean square of the difference, relative to that of the output; `hint`: against overflow."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    if a.shape != b.shape:
        raise DiffersError(
            f"{label}, {output} is {list(b.shape)} instead of {list(a.shape)}",
            hint="its sizes are computed in floating point: build in another precision",
        )
    overflown = int(np.sum(np.isfinite(a) & ~np.isfinite(b)))
    if overflown:
        raise DiffersError(f"{label}, {overflown} of {b.size} values of {output} are not finite any more", hint=hint)
    size = math.sqrt(float(np.mean(np.square(a, where=np.isfinite(a), out=np.zeros_like(a)))))
    change = np.subtract(b, a, where=np.isfinite(a), out=np.zeros_like(a))
    return math.sqrt(float(np.mean(change**2))) / size if size > 0 else 0.0
