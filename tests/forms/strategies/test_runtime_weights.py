"""Weights that are known at run time only may be NaN or Inf: dead taps stay, and forms give what the Conv gives."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import dilrewrite
from dilrewrite.choice import choose
from dilrewrite.forms.fragment import CoreConv, Fragment
from dilrewrite.forms.strategies import every_strategy, plan, with_max_dilation
from dilrewrite.reports import reasons
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from tests import models_for_tests as tiny
from tests.cases import Case, cases
from tests.contract import image, original, session, truth, weights
from tests.forms_for_tests import INEXACT

DEAD = [
    dataclasses.replace(case, weights="overridable", ir=max(case.ir, 4))
    for case in cases()
    if case.features & {"some taps dead", "all taps dead"} and case.auto_pad == "NOTSET" and not case.unknown
]
SKIPPING = {name for name, strategy in every_strategy().items() if strategy.skips_padding}
OTHERS = sorted(set(every_strategy()) - SKIPPING)


@functools.lru_cache(maxsize=64)
def site_of(case: Case) -> Site:
    (site,) = find(original(case)[0]).sites
    return site


@pytest.mark.parametrize("case", DEAD, ids=lambda case: case.name)
@pytest.mark.grid(3)
def test_every_form_gives_what_the_conv_gives_with_nan_in_any_tap(case: Case) -> None:
    model, site = original(case)[0], site_of(case)
    assert not site.part.weight.is_constant
    x = image(case, case.batch, case.extents)
    w = weights(case)[0].astype(np.float32)
    exact = truth(case, x).astype(np.float32)
    if case.activation:
        exact = np.where(exact < 0, exact * np.float32(0.5), exact)
    native = session(model) if min(case.begin + case.end) >= 0 else None
    emitted = 0
    for name in OTHERS:
        strategy = with_max_dilation(every_strategy()[name], case.max_dilation)
        fragment = plan(name, strategy, site.geometry, case.opset, fixed_weights=False)
        if not isinstance(fragment, Fragment):
            continue
        emitted += 1
        after = session(rewrite(model, [(site, fragment)], (), numpy_helper.to_array).proto)
        feeds = {"x": x.astype(np.float32)}
        assert np.array_equal(after.run(None, feeds)[0], exact), name
        if native is None:
            continue
        for place in np.ndindex(*case.kernel):
            bad = w.copy()
            bad[(slice(None), slice(None), *place)] = np.nan
            mine, theirs = (np.isnan(each.run(None, {**feeds, "w": bad})[0]) for each in (after, native))
            assert np.array_equal(mine, theirs), (name, place)
    assert emitted >= 3


def dead_taps(*, constant: bool = False, pads: int = 24) -> ModelProto:
    """A 3x3 Conv of which only the middle tap touches data; its weights are an input, unless constant."""
    return tiny.build(
        [tiny.conv_node(dilations=[24, 24], pads=[pads] * 4)],
        {"x": [1, 2, 20 + 2 * (24 - pads), 20 + 2 * (24 - pads)], **({} if constant else {"w": [2, 2, 3, 3]})},
        {"y": [1, 2, None, None]},
        {"w": tiny.values(2, 2, 3, 3)} if constant else {},
    )


def candidates(model: ModelProto) -> dict[str, choose.Candidate]:
    (site,) = find(model).sites
    found, _ = choose.candidates(site, every_strategy())
    return {candidate.strategy: candidate for candidate in found}


def test_with_constant_weights_dead_taps_go() -> None:
    found = candidates(dead_taps(constant=True))
    assert {name: found[name].holds_for for name in SKIPPING} == dict.fromkeys(SKIPPING, ())
    assert {core.kernel for core in found["space_to_batch"].fragment.core if isinstance(core, CoreConv)} == {(1, 1)}


def test_with_weights_of_run_time_forms_that_leave_out_padding_say_so_and_come_last() -> None:
    found = candidates(dead_taps())
    for name in SKIPPING:
        assert reasons.conditions(found[name].holds_for) == "finite weights, which are not constant here"
    assert {core.kernel for core in found["space_to_batch"].fragment.core if isinstance(core, CoreConv)} == {(3, 3)}
    assert not SKIPPING & {c.strategy for c in choose.worth_timing(list(found.values()))}
    order = [c.strategy for c in choose.without_dilation(sorted(found.values(), key=lambda c: c.order), 1)]
    assert SKIPPING & set(order)
    first = [name for name in order if name not in (*INEXACT, "space_to_axis")]  # these are last in any case
    assert set(first[-len(SKIPPING & set(order)) :]) == SKIPPING & set(order)


def test_without_padding_nothing_is_left_out() -> None:
    assert candidates(dead_taps(pads=0))["tap_sum"].holds_for == ()


@pytest.mark.parametrize("options", [{"strategy": "space_to_batch"}, {"eliminate": True, "budget": 0}, {"budget": 0}])
def test_a_rewritten_model_gives_nan_where_the_original_does(options: dict[str, Any], tmp_path: Path) -> None:
    path = tiny.save(dead_taps(), tmp_path / "m.onnx")
    dilrewrite.optimize(path, tmp_path / "out.onnx", verify="sites", **options)
    feeds = {"x": tiny.values(1, 2, 20, 20), "w": tiny.values(2, 2, 3, 3)}
    feeds["w"][0, 1, 0, 2] = np.nan
    before, after = (tiny.run(each, feeds)["y"] for each in (path, tmp_path / "out.onnx"))
    assert np.isnan(before).any()
    assert np.array_equal(np.isnan(before), np.isnan(after))


@pytest.mark.parametrize("name", sorted(SKIPPING))
def test_asked_for_by_name_such_a_form_is_taken_and_its_condition_told(name: str, tmp_path: Path) -> None:
    path = tiny.save(dead_taps(), tmp_path / "m.onnx")
    report = dilrewrite.optimize(path, tmp_path / "out.onnx", strategy=name, verify="sites")
    (site,) = report.sites
    assert (site.action, site.strategy) == ("rewritten", name)
    assert "exact for finite weights" in site.reason
