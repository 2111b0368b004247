"""Puts whole models to the test: what to run them on, in which spelling ONNX Runtime takes them, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from onnx import ModelProto, TensorProto

from dilrewrite.errors import UsageError
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.model.tensors import Model, read_tensor
from dilrewrite.options import Proving
from dilrewrite.proof.disturb import disturb
from dilrewrite.proof.inputs import load_inputs, parse_shapes
from dilrewrite.proof.verdict import Settings, Subject, Verdict, verify
from dilrewrite.runtimes import TimedBackend, backend, backends, timed_backends
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite

AWKWARD = (
    "ONNX Runtime does not run some of the original's Convs (SAME_* with dilation, negative pads); "
    "the comparison is with the same Convs behind explicit pads, a Pad or a Slice"
)


def settings(model: Model, proving: Proving) -> Settings:
    """Return how to compare whole models; raises `UsageError` for shapes and data that do not fit the model."""
    shapes = parse_shapes(proving.shapes)
    data = load_inputs(proving.inputs) if proving.inputs else {}
    inputs = [value.name for value in model.proto.graph.input]
    for option, names in (("--shape", shapes), ("--inputs", data)):
        for name in names:
            if name not in inputs:
                raise UsageError(f"{option}: the model has no input {name!r}", hint=f"its inputs: {', '.join(inputs)}")
    return Settings(
        backend=backends()["onnxruntime_cpu"],
        fallback=backends()["reference"],
        rtol=proving.rtol,
        atol=proving.atol,
        shapes=shapes,
        inputs=data,
        seed=proving.seed,
        threads=proving.threads,
        custom_op_library=proving.custom_op_library,
    )


def runnable(model: Model, proto: ModelProto, *others: TimedBackend) -> ModelProto:
    """Return `proto` with the Convs explicit that ONNX Runtime or a backend refuses; itself when there is none."""
    runtimes = (timed_backends()["onnxruntime_cpu"], *others)
    found = find(proto)
    awkward: list[tuple[Site, Fragment]] = []
    for site in found.sites:
        if any(runtime.refuses(site.geometry) for runtime in runtimes):
            fragment = plan("keep", strategies()["keep"], site.geometry, site.opset, storage=site.storage)
            if isinstance(fragment, Fragment):
                awkward.append((site, fragment))
    if not awkward:
        return proto
    return rewrite(proto, awkward, found.normalisations, lambda tensor: read_tensor(model, tensor)).proto


def compare_rewritten(
    model: Model, found: Found, rewritten: ModelProto, errors: Sequence[tuple[Site, float]], options: Settings
) -> Verdict:
    """Compare a rewritten model with the original, and the original with itself disturbed by the sites' `errors`."""
    backend(options.backend.name)  # an error when it is not ready
    baseline = runnable(model, model.proto)
    verdict = verify(
        Subject(model.proto, model.folder, model.path),
        Subject(rewritten, model.folder),
        options,
        runnable_before=Subject(baseline, model.folder),
        runnable_after=Subject(runnable(model, rewritten), model.folder),
        disturbed=Subject(disturb(model.proto, errors, options.seed), model.folder)
        if errors and baseline is model.proto
        else None,
        step=_step(found),
    )
    return _remarked(verdict, baseline is not model.proto)


def compare_models(first: Model, second: Model, found: Found, options: Settings) -> Verdict:
    """Compare two models; `found`: what is in the first."""
    backend(options.backend.name)  # an error when it is not ready
    before, after = _explicit(first), _explicit(second)
    verdict = verify(
        Subject(first.proto, first.folder, first.path),
        Subject(second.proto, second.folder, second.path),
        options,
        runnable_before=before,
        runnable_after=after,
        step=_step(found),
    )
    return _remarked(verdict, before is not None or after is not None)


def _explicit(model: Model) -> Subject | None:
    """Return the model as ONNX Runtime takes it; `None` where it takes it as it is."""
    proto = runnable(model, model.proto)
    return None if proto is model.proto else Subject(proto, model.folder)


def _remarked(verdict: Verdict, awkward: bool) -> Verdict:
    return replace(verdict, notes=(*verdict.notes, AWKWARD)) if awkward else verdict


def _step(found: Found) -> int:
    """Return what lengths are a multiple of in one case and not in another: all dilations, within reason."""
    return min(max(math.lcm(*(d for site in found.sites for d in site.geometry.dilations)), 2), 256)


def check_same_inputs(first: ModelProto, second: ModelProto, other: str) -> None:
    """Raise `UsageError` unless what the `first` model takes can be given to the `second`, which is called `other`."""
    ours, theirs = _inputs(first), _inputs(second)
    hint = "only models that take the same inputs can be timed against each other"
    if ours.keys() != theirs.keys():
        names = [", ".join(map(repr, inputs)) or "none" for inputs in (theirs, ours)]
        raise UsageError(f"{other}: its inputs are {names[0]}, not {names[1]}", hint=hint)
    for name, (element, sizes) in ours.items():
        kind, others = theirs[name]
        clash = len(sizes) != len(others) or any(a != b for a, b in zip(sizes, others, strict=False) if a and b)
        if element != kind or (sizes and others and clash):
            told = [
                f"{word.lower()} {'x'.join(str(size or '?') for size in some)}"
                for word, some in ((kind, others), (element, sizes))
            ]
            raise UsageError(f"{other}: its input {name!r} is {told[0]}, not {told[1]}", hint=hint)


def _inputs(proto: ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return element type and sizes (0: not known) of each input that has no value of its own; no sizes: no tensor."""
    own = {tensor.name for tensor in proto.graph.initializer}
    tensors = {value.name: value.type.tensor_type for value in proto.graph.input if value.name not in own}
    return {
        name: (TensorProto.DataType.Name(kind.elem_type), tuple(size.dim_value for size in kind.shape.dim))
        for name, kind in tensors.items()
    }
