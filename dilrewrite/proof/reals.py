"""A region on reals: its rounding before and after it is rewritten, against float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from dilrewrite.model.elements import FLOATS
from dilrewrite.model.walk import copied
from dilrewrite.proof.exact import exactly
from dilrewrite.proof.proof import Rounding
from dilrewrite.proof.region import Feeds, Own, Region, Runs
from dilrewrite.proof.standins import WIDTHS, is_float
from dilrewrite.runtimes import Array, CannotRun
from dilrewrite.splice.rewrite import rewrite

REAL_WORK = 2**28
"""Reals are looked at in the largest case of no more multiplications than this, or in the smallest."""

STEPS = 2.0**-4
"""The share of the largest output that the error may be where a region quantises: any rounding may become a step."""


def measured(runs: Runs, region: Region) -> Rounding:
    """Compare the errors of the fragment and of the original against float64, on the values that were seen.

    Where nothing computes the original in float64, the original itself is what the fragment is held to.
    """
    own = runs.once(region.about, lambda: _own(runs, region))
    after = rewrite(region.cut.model, [(region.cut.site, region.fragment)], (), numpy_helper.to_array).proto
    with runs.opened(after, region.runtime) as session:
        new = session.run(own.feeds)
    unit = FLOATS[region.element].roundoff
    found = [
        _errors(native, new[name], true, unit)
        for (name, native), true in zip(own.native.items(), own.truth, strict=True)
        if is_float(native)
    ]
    if any(node.op_type == "QuantizeLinear" for node in region.nodes):
        found = [replace(each, limit=max(each.limit, STEPS)) for each in found]
    nothing = Rounding(native_error=0.0, new_error=0.0, limit=2 * unit, ceiling=None, difference=0.0)
    return max(found, key=lambda each: each.new_error / each.limit, default=nothing)


def _own(runs: Runs, region: Region) -> Own:
    """Run the original on the largest of the small cases that it runs on."""
    cases = region.cases()
    fitting = [feeds for feeds in cases if region.work(feeds) <= REAL_WORK]
    why = ""
    with runs.opened(region.cut.model, region.runtime) as session:
        for feeds in (*reversed(fitting), *cases[len(fitting) :]):
            try:
                native = session.run(feeds)
            except CannotRun as error:
                why = str(error)
                continue
            return Own(feeds=feeds, native=native, truth=_truth(region, feeds) or list(native.values()))
    raise CannotRun(f"the original by itself: {why}")


def _truth(region: Region, feeds: Feeds) -> list[Array] | None:
    """Return what the original gives in float64, or finer; None where the evaluator lacks an operator."""
    try:
        with np.errstate(all="ignore"):
            finest = np.longdouble if region.element == "float64" else np.float64
            return exactly(_widened(region.cut.model), feeds, finest)
    except Exception:  # it raises whatever its operators do
        return None


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
    wide = np.result_type(true.dtype, np.float64)
    native, new, true = (np.asarray(values, wide) for values in (native, new, true))
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
