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
from dilrewrite.model.walk import fed
from dilrewrite.options import Proving
from dilrewrite.proof.inputs import check_names, check_shapes, load_inputs, parse_shapes
from dilrewrite.proof.verdict import Settings, Subject, Verdict, verify
from dilrewrite.runtimes import TimedBackend, backend, backends, timed_backends
from dilrewrite.sites import Found, Site
from dilrewrite.sites.find import find
from dilrewrite.splice.plain import plain
from dilrewrite.splice.rewrite import rewrite


def settings(model: Model, proving: Proving) -> Settings:
    """Return how to compare whole models; raises `UsageError` for shapes and data that do not fit the model."""
    shapes = parse_shapes(proving.shapes, [value.name for value in fed(model.proto)])
    data = load_inputs(proving.inputs) if proving.inputs else {}
    check_names(shapes, data, [value.name for value in model.proto.graph.input])
    check_shapes(shapes, model.proto)
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
    found, keep = find(proto), strategies()["keep"]
    refused = [site for site in found.sites if any(runtime.refuses(site.geometry) for runtime in runtimes)]
    planned = [(site, plan("keep", keep, site.geometry, site.opset, storage=site.storage)) for site in refused]
    awkward = [(site, fragment) for site, fragment in planned if isinstance(fragment, Fragment)]
    if not awkward:
        return proto
    return rewrite(proto, awkward, found.normalisations, lambda tensor: read_tensor(model, tensor)).proto


def compare_rewritten(
    model: Model, found: Found, rewritten: ModelProto, errors: Sequence[tuple[Site, float]], options: Settings
) -> Verdict:
    """Compare a rewritten model with the original, and the original with itself disturbed by the sites' `errors`."""
    backend(options.backend.name)  # an error when it is not ready
    before, after = (
        Subject(proto, model.folder, None, _explicit(model, proto), model.proto)
        for proto in (model.original, rewritten)
    )
    return verify(before, after, options, errors=errors, step=_step(found))


def compare_models(first: Model, second: Model, found: Found, options: Settings) -> Verdict:
    """Compare two models; `found`: what is in the first."""
    backend(options.backend.name)  # an error when it is not ready
    explicit = [_explicit(model, model.proto) for model in (first, second)]
    before, after = (
        Subject(model.proto, model.folder, model.path if proto is None else None, proto)
        for model, proto in zip((first, second), explicit, strict=True)
    )
    return verify(before, after, options, step=_step(found))


def _explicit(model: Model, proto: ModelProto) -> ModelProto | None:
    """Return what ONNX Runtime takes in the place of `proto`; `None` where it takes it as it is."""
    written = plain(replace(model, proto=proto, given=None, written_out=())).proto  # calls may say how to pad
    explicit = runnable(model, written)
    return None if explicit is written else explicit


def _step(found: Found) -> int:
    """Return what lengths are a multiple of in one case and not in another: all dilations, within reason."""
    return min(max(math.lcm(*(d for site in found.sites for d in site.geometry.dilations)), 2), 256)


def check_same_inputs(first: ModelProto, second: ModelProto, other: str) -> None:
    """Raise `UsageError` unless what the `first` model takes can be given to the `second`, which is called `other`."""
    ours, theirs = _inputs(first), _inputs(second)
    hint = "only models that take the same inputs can be timed against each other"
    if ours.keys() != theirs.keys():
        said = [", ".join(map(repr, inputs)) or "none" for inputs in (theirs, ours)]
        raise UsageError(f"{other}: its inputs are {said[0]}, not {said[1]}", hint=hint)
    for name, (element, sizes) in ours.items():
        kind, others = theirs[name]
        clash = len(sizes) != len(others) or any(a != b for a, b in zip(sizes, others, strict=False) if a and b)
        if element != kind or (sizes and others and clash):
            said = [
                f"{word.lower()} {'x'.join(str(size or '?') for size in some)}"
                for word, some in ((kind, others), (element, sizes))
            ]
            raise UsageError(f"{other}: its input {name!r} is {said[0]}, not {said[1]}", hint=hint)


def _inputs(proto: ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return element type and sizes (0: not known) of each input that has no value of its own; no sizes: no tensor."""
    tensors = {value.name: value.type.tensor_type for value in fed(proto)}
    return {
        name: (TensorProto.DataType.Name(kind.elem_type), tuple(size.dim_value for size in kind.shape.dim))
        for name, kind in tensors.items()
    }
