"""Estimates: the dilated Conv is kept unless a form costs clearly less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dilrewrite import choose
from dilrewrite.find import Site, find
from dilrewrite.strategies import strategies
from tests import models_for_tests as tiny


def sites(model: Any) -> dict[str, Site]:
    return {site.name: site for site in find(model).sites}


def offered(site: Site, max_dilation: int = 1) -> list[choose.Candidate]:
    return choose.candidates(site, strategies(), max_dilation)[0]


@pytest.mark.parametrize(
    "model",
    [
        tiny.conv1d(length=256, channels=16),
        tiny.conv2d(size=64, channels=16, dilation=2),
        tiny.conv1d(length=None, channels=16),
        tiny.conv2d(size=None, channels=16, dilation=4),
    ],
    ids=["1-D", "2-D", "1-D of unknown length", "2-D of unknown size"],
)
def test_an_ordinary_dilated_conv_is_kept(model: Any) -> None:
    (site,) = sites(model).values()
    found = offered(site)
    wanted, reason = choose.by_estimate(found)
    assert wanted == []
    keep = next(c for c in found if c.strategy == "keep")
    others = [c for c in found if c.strategy not in ("keep", *choose.INEXACT)]
    assert others[0].strategy in reason
    assert f"{others[0].cost / keep.cost:.2f}x" in reason
    assert "not measured" in reason


def test_the_aspp_branch_takes_a_form_without_dead_taps() -> None:
    site = sites(tiny.aspp(size=28, rate=24, channels=64))["far"]
    wanted, reason = choose.by_estimate(offered(site))
    assert wanted[0].strategy in ("tap_sum", "tap_zones", "tap_prune")
    assert "keep" not in {c.strategy for c in wanted}
    assert not {c.strategy for c in wanted} & choose.INEXACT
    assert "estimated 0." in reason
    assert "not measured" in reason


def test_all_dead_taps_but_one() -> None:
    """Rate 36 on 28x28 is a 1x1 kernel."""
    site = sites(tiny.aspp(size=28, rate=36, channels=64))["far"]
    found = {c.strategy: c for c in offered(site)}
    assert found["tap_prune"].multiply_adds * 9 == found["keep"].multiply_adds
    wanted, _ = choose.by_estimate(list(found.values()))
    assert wanted


def test_worth_is_a_clear_gain() -> None:
    (site,) = sites(tiny.conv1d()).values()
    keep = replace(next(c for c in offered(site) if c.strategy == "keep"), multiply_adds=1000, elements_moved=0)
    at_limit = replace(keep, strategy="im2col", multiply_adds=900)
    below = replace(keep, strategy="im2col", multiply_adds=899)
    assert choose.by_estimate([keep, at_limit])[0] == []
    assert choose.by_estimate([keep, below])[0] == [below]


def test_no_other_form() -> None:
    (site,) = sites(tiny.conv1d()).values()
    keep = next(c for c in offered(site) if c.strategy == "keep")
    assert choose.by_estimate([keep]) == ([], "no other form applies")
    inexact = replace(keep, strategy="zero_fill", multiply_adds=0)
    assert choose.by_estimate([keep, inexact]) == ([], "no other form applies")


def test_moving_elements_costs() -> None:
    (site,) = sites(tiny.conv1d()).values()
    keep = next(c for c in offered(site) if c.strategy == "keep")
    moved = replace(keep, elements_moved=keep.elements_moved + 10)
    assert moved.cost == keep.cost + 10 * choose.MULTIPLY_ADDS_PER_ELEMENT


def test_every_form_applies_or_refuses() -> None:
    for model in (tiny.conv1d(), tiny.conv2d(size=None), tiny.quantized(), tiny.aspp()):
        for site in find(model).sites:
            found, refused = choose.candidates(site, strategies())
            names = [c.strategy for c in found] + [r.strategy for r in refused]
            assert sorted(names) == list(strategies())
            assert all(c.multiply_adds >= 0 and c.elements_moved >= 0 for c in found)


@pytest.mark.parametrize("model", [tiny.conv1d(length=64, dilations=[8], pads=[8, 8]), tiny.conv2d(dilation=6)])
def test_without_dilation(model: Any) -> None:
    (site,) = sites(model).values()
    for limit in (1, 2, 3):
        wanted = choose.without_dilation(offered(site, limit), limit)
        assert wanted
        assert all(c.fragment.max_dilation <= limit for c in wanted)
        assert "keep" not in {c.strategy for c in wanted}
        assert [c.order for c in wanted] == sorted(c.order for c in wanted)


def test_forms_that_fewer_devices_run_come_last() -> None:
    (site,) = sites(tiny.conv2d(size=64, channels=16)).values()
    names = [c.strategy for c in choose.without_dilation(offered(site), 1)]
    assert names.index("space_to_axis") > names.index("space_to_batch"), "a 2-D Conv as a 3-D one"
    assert names.index("zero_fill") > names.index("space_to_batch")
    (site,) = sites(tiny.conv1d(length=64, channels=16)).values()
    assert choose.without_dilation(offered(site), 1)[0].strategy == "space_to_axis", "a free Reshape in 1-D"


def test_unknown_sizes_are_assumed() -> None:
    (site,) = sites(tiny.conv1d(length=None, batch=None)).values()
    assumed = choose.assumed(site.geometry)
    assert assumed.extents == (choose.ASSUMED_EXTENTS[1],)
    assert assumed.batch == 1
    (wide,) = sites(tiny.conv1d(length=None, dilations=[1000], pads=[1000, 1000])).values()
    assert choose.assumed(wide.geometry).extents == (4 * wide.geometry.span(0),)
    (known,) = sites(tiny.conv1d(length=64)).values()
    assert choose.assumed(known.geometry) == known.geometry
