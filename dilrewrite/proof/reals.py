"""A region on reals: its rounding before and after it is rewritten, against float64."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import copied
from dilrewrite.proof.exact import exactly
from dilrewrite.proof.proof import Rounding
from dilrewrite.proof.region import Feeds, Region, Runs
from dilrewrite.proof.standins import WIDTHS, is_float
from dilrewrite.runtimes import Array, CannotRun
from dilrewrite.splice.rewrite import rewrite

REAL_WORK = 2**28
"""Reals are looked at in the largest case of no more multiplications than this, or in the smallest."""


def measured(runs: Runs, region: Region) -> Rounding:
    """Compare the errors of the fragment and of the original against float64, on the values that were seen."""
    feeds = _reals(runs, region)
    after = rewrite(region.cut.model, [(region.cut.site, region.fragment)], (), numpy_helper.to_array).proto
    runtime = runs.runtime if region.element in ("float32", "float16") else runs.reference
    results = []
    for model in (region.cut.model, after):
        with runs.opened(model, runtime) as session:
            results.append(session.run(feeds))
    finest = np.longdouble if region.element == "float64" else np.float64
    try:
        with np.errstate(all="ignore"):
            truth = exactly(_widened(region.cut.model), feeds, finest)
    except Exception as error:  # the evaluator raises whatever its operators do
        raise CannotRun(f"no float64 result to compare with: {error}") from error
    unit = FLOATS[region.element].roundoff
    found = [
        _errors(native, new, true, unit)
        for native, new, true in zip(results[0].values(), results[1].values(), truth, strict=True)
        if is_float(native)
    ]
    nothing = Rounding(native_error=0.0, new_error=0.0, limit=2 * unit, ceiling=None, difference=0.0)
    return max(found, key=lambda each: each.new_error / each.limit, default=nothing)


def _reals(runs: Runs, region: Region) -> Feeds:
    """Return the largest of the small cases that the original runs on."""
    cases = region.cases()
    fitting = [feeds for feeds in cases if region.work(feeds) <= REAL_WORK]
    why = ""
    with runs.opened(region.cut.model, None if region.element != "float64" else runs.reference) as session:
        for feeds in (*reversed(fitting), *cases[len(fitting) :]):
            try:
                session.run(feeds)
            except CannotRun as error:
                why = str(error)
                continue
            return feeds
    raise CannotRun(f"the original by itself: {why}")


def _widened(model: ModelProto) -> ModelProto:
    """Return a model whose casts to floating point are to float64."""
    wide = copied(model)
    for node in wide.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in (*WIDTHS, TensorProto.FLOAT):
                attribute.i = TensorProto.DOUBLE
    return wide


def _errors(native: Array, new: Array, true: Array, unit: float) -> Rounding:
    """Return the errors of one output as shares of its largest value; what the original does not hold is left out."""
    native, new = (np.asarray(values, true.dtype) for values in (native, new))
    if new.shape != true.shape:
        return Rounding(native_error=0.0, new_error=np.inf, limit=2 * unit, ceiling=None, difference=np.inf)
    held = np.isfinite(true) & np.isfinite(native)
    peak = float(np.max(np.abs(true), where=held, initial=0.0)) or 1.0
    with np.errstate(invalid="ignore"):
        errors = [float(np.max(np.abs(y - true), where=held, initial=0.0)) / peak for y in (native, new)]
        difference = float(np.max(np.abs(new - native), where=held, initial=0.0)) / peak
    if not np.isfinite(new[held]).all():
        errors[1] = np.inf
    limit = 4 * errors[0] + 2 * unit
    return Rounding(native_error=errors[0], new_error=errors[1], limit=limit, ceiling=None, difference=difference)
