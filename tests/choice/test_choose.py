"""Which form a site gets: by its timings, or in the order of an estimate."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from dilrewrite.choice import choose
from dilrewrite.choice.decide import Decider
from dilrewrite.choice.reason import Reason, Why
from dilrewrite.forms.strategies import parse, strategies
from dilrewrite.options import CommandOptions
from dilrewrite.proof.carve import Source
from dilrewrite.runtimes import TimedBackend
from dilrewrite.runtimes.ncnn import Ncnn
from dilrewrite.runtimes.opencv_dnn import OpenCvDnn
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.tensorrt.backend import TensorRt
from dilrewrite.timing.outcome import FormTiming, Outcome, outcome
from dilrewrite.timing.stopwatch import Comparison, Timing
from tests import models_for_tests as tiny
from tests.forms_for_tests import INEXACT


def sites(model: Any) -> dict[str, Site]:
    return {site.name: site for site in find(model).sites}


def offered(site: Site, max_dilation: int = 1) -> list[choose.Candidate]:
    return choose.candidates(site, strategies(), max_dilation)[0]


def timed(ratio: float, low: float | None = None, high: float | None = None, *, noise: float | None = 0.005) -> Any:
    """A form that takes `ratio` of the Conv's time, give or take a hundredth unless told."""
    comparison = Comparison(
        first=Timing(median_s=0.01, p20_s=0.009, p80_s=0.011, runs=20),
        second=Timing(median_s=0.01 * ratio, p20_s=0.009 * ratio, p80_s=0.011 * ratio, runs=20),
        ratio=ratio,
        low=ratio - 0.01 if low is None else low,
        high=ratio + 0.01 if high is None else high,
        pairs=20,
        noise=noise,
        mode="interleaved",
    )
    return FormTiming(outcome=outcome(comparison), timing=comparison)


BUDGET = FormTiming(outcome=Outcome.NO_TIME)
CRASHED = FormTiming(outcome=Outcome.CRASHED, cause="the process was killed by SIGSEGV")
ROUGH = FormTiming(outcome=Outcome.UNPROVED, cause="rounding: much")


@pytest.fixture
def wanted() -> list[choose.Candidate]:
    """Three forms, in the order of the estimate: space_to_axis, space_to_batch, im2col."""
    (site,) = sites(tiny.conv1d(length=64, channels=16)).values()
    found = {c.strategy: c for c in offered(site)}
    return [found[name] for name in ("space_to_axis", "space_to_batch", "im2col")]


def names(found: Any) -> list[str]:
    return [candidate.strategy for candidate in found]


# -- by time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timings", "taken", "reason"),
    [
        (
            {"space_to_axis": timed(1.4), "space_to_batch": timed(0.71), "im2col": timed(1.1)},
            ["space_to_batch"],
            Why(reason=Reason.TIMED, timing=timed(0.71).timing),
        ),
        (
            {"space_to_axis": timed(0.9), "space_to_batch": timed(0.97), "im2col": timed(0.5, 0.4, 0.6)},
            ["im2col", "space_to_axis", "space_to_batch"],
            Why(reason=Reason.TIMED, timing=timed(0.5, 0.4, 0.6).timing),
        ),
        (
            {"space_to_axis": timed(1.31), "space_to_batch": timed(1.5), "im2col": timed(1.4)},
            [],
            Why(reason=Reason.SLOWER, strategy="space_to_axis", timing=timed(1.31).timing, total=3),
        ),
        (
            {"space_to_axis": timed(1.0), "space_to_batch": timed(1.5), "im2col": timed(1.4)},
            [],
            Why(reason=Reason.TIE, strategy="space_to_axis", timing=timed(1.0).timing, total=3),
        ),
        (
            {"space_to_axis": BUDGET, "space_to_batch": timed(1.31), "im2col": CRASHED},
            [],
            Why(reason=Reason.SLOWER, strategy="space_to_batch", timing=timed(1.31).timing, number=2, total=3),
        ),
        (
            {"space_to_axis": ROUGH, "space_to_batch": timed(0.995), "im2col": timed(1.2)},
            [],
            Why(reason=Reason.TIE, strategy="space_to_batch", timing=timed(0.995).timing, number=1, total=3),
        ),
        (
            {"space_to_axis": CRASHED, "space_to_batch": BUDGET, "im2col": timed(0.6)},
            ["im2col"],
            Why(reason=Reason.TIMED, timing=timed(0.6).timing),
        ),
        ({"space_to_axis": timed(0.6)}, ["space_to_axis"], Why(reason=Reason.TIMED, timing=timed(0.6).timing)),
        (
            {"im2col": timed(2.0)},
            [],
            Why(reason=Reason.SLOWER, strategy="im2col", timing=timed(2.0).timing, number=2, total=3),
        ),
        (
            dict.fromkeys(("space_to_axis", "space_to_batch", "im2col"), BUDGET),
            [],
            Why(reason=Reason.UNTIMED, forms=(BUDGET, BUDGET, BUDGET)),
        ),
        (
            {"space_to_axis": CRASHED, "space_to_batch": ROUGH, "im2col": CRASHED},
            [],
            Why(reason=Reason.UNTIMED, forms=(CRASHED, ROUGH, CRASHED)),
        ),
        ({}, [], Why(reason=Reason.UNKNOWN)),
    ],
    ids=[
        "one wins",
        "all win, the fastest in front",
        "all lose",
        "a tie",
        "slower, or not measured",
        "a tie, or not proved",
        "a win is a win",
        "a win, others unknown",
        "a loss, others unknown",
        "none measured",
        "none could be",
        "nothing known",
    ],
)
def test_by_time(wanted: list[choose.Candidate], timings: Any, taken: list[str], reason: Why) -> None:
    found, why = choose.by_time(wanted, timings)
    assert names(found) == taken
    assert why == reason


@pytest.mark.parametrize(
    ("timing", "wins"),
    [
        (timed(0.97), True),
        (timed(0.985, 0.98, 0.99), False),  # within the margin
        (timed(0.9, 0.8, 1.0), False),  # its interval reaches 1
        (timed(0.9, 0.85, 0.95, noise=0.15), False),  # the original differs as much from itself
        (timed(0.9, 0.85, 0.95, noise=0.05), True),
        (timed(0.97, noise=None), True),
        (timed(0.985, 0.98, 0.99, noise=None), False),
    ],
    ids=["clear", "margin", "interval", "noise", "less noise", "noise unknown", "noise unknown, margin"],
)
def test_a_win_is_beyond_margin_noise_and_interval(wanted: list[choose.Candidate], timing: Any, wins: bool) -> None:
    found, why = choose.by_time(wanted[:1], {"space_to_axis": timing})
    assert bool(found) is wins
    told = Why(reason=Reason.TIMED) if wins else Why(reason=Reason.TIE, strategy="space_to_axis", total=1)
    assert why == replace(told, timing=timing.timing)


def test_timings_of_other_forms_are_no_business(wanted: list[choose.Candidate]) -> None:
    """A site of the same question may have had more forms."""
    found, why = choose.by_time(wanted[:1], {"tap_sum": timed(0.1)})
    assert (found, why) == ([], Why(reason=Reason.UNKNOWN))
    assert names(choose.by_time(wanted[:1], {"tap_sum": timed(0.1), "space_to_axis": timed(0.5)})[0]) == [
        "space_to_axis"
    ]


# -- the fastest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timings", "order", "reason"),
    [
        (
            {"space_to_axis": timed(1.4), "space_to_batch": timed(1.2), "im2col": timed(3.0)},
            ["space_to_batch", "space_to_axis", "im2col"],
            Why(reason=Reason.FASTEST, timing=timed(1.2).timing, number=3),
        ),
        (
            {"space_to_axis": BUDGET, "space_to_batch": BUDGET, "im2col": timed(3.0)},
            ["im2col", "space_to_axis", "space_to_batch"],
            Why(reason=Reason.TIMED, timing=timed(3.0).timing),
        ),
        (
            {"space_to_axis": CRASHED, "space_to_batch": timed(0.8), "im2col": timed(0.5)},
            ["im2col", "space_to_batch", "space_to_axis"],
            Why(reason=Reason.FASTEST, timing=timed(0.5).timing, number=2),
        ),
        (
            {"space_to_axis": CRASHED, "space_to_batch": BUDGET, "im2col": BUDGET},
            ["space_to_batch", "im2col", "space_to_axis"],
            Why(reason=Reason.ESTIMATED, because=Why(reason=Reason.UNTIMED, forms=(BUDGET,))),
        ),
        (
            dict.fromkeys(("space_to_axis", "space_to_batch", "im2col"), CRASHED),
            ["space_to_axis", "space_to_batch", "im2col"],
            Why(reason=Reason.ESTIMATED, because=Why(reason=Reason.UNTIMED, forms=(CRASHED,))),
        ),
        (
            {},
            ["space_to_axis", "space_to_batch", "im2col"],
            Why(reason=Reason.ESTIMATED, because=Why(reason=Reason.UNKNOWN)),
        ),
    ],
    ids=["all timed", "one timed", "a crash", "none timed", "all crashed", "nothing known"],
)
def test_fastest(wanted: list[choose.Candidate], timings: Any, order: list[str], reason: Why) -> None:
    """Where the Conv has to go, every form is there, and a slower one than the Conv is taken too."""
    found = choose.fastest(wanted, timings)
    assert names(candidate for candidate, _ in found) == order
    assert found[0][1] == reason


def test_every_form_of_the_fastest_says_its_own_figures(wanted: list[choose.Candidate]) -> None:
    found = choose.fastest(wanted, {"space_to_axis": timed(1.4), "space_to_batch": timed(1.2)})
    assert [why.timing for _, why in found] == [timed(1.2).timing, timed(1.4).timing, None]


# -- what is timed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [tiny.conv1d(length=64), tiny.conv2d(), tiny.conv2d(size=None), tiny.quantized()])
def test_worth_timing(model: Any) -> None:
    """Neither the Conv itself nor what is exact for finite inputs only; the cheapest by estimate first."""
    (site,) = sites(model).values()
    found = choose.worth_timing(offered(site))
    assert found
    assert not {"keep", *INEXACT} & set(names(found))
    assert [c.order for c in found] == sorted(c.order for c in found)
    digests = [c.fragment.digest() for c in found]
    assert len(set(digests)) == len(digests)


def test_nothing_is_worth_timing() -> None:
    (site,) = sites(tiny.conv1d()).values()
    assert choose.worth_timing([c for c in offered(site) if c.strategy in ("keep", *INEXACT)]) == []
    assert choose.worth_timing([]) == []


def test_all_dead_taps_but_one() -> None:
    """Rate 36 on 28x28 is a 1x1 kernel: several forms come to the same, which goes by the name of the pruning."""
    site = sites(tiny.aspp(size=28, rate=36, channels=64))["far"]
    found = {c.strategy: c for c in offered(site)}
    assert found["tap_prune"].multiply_adds * 9 == found["keep"].multiply_adds
    same = [name for name, c in found.items() if c.fragment.digest() == found["tap_prune"].fragment.digest()]
    assert len(same) > 1
    kept = names(choose.worth_timing(list(found.values())))
    assert [name for name in kept if name in same] == ["tap_prune"]
    assert names(choose.distinct([found[name] for name in same])) == ["tap_prune"]


def test_equal_forms_without_pruning_go_by_the_first_name() -> None:
    (site,) = sites(tiny.conv1d()).values()
    found = next(c for c in offered(site) if c.strategy == "im2col")
    again = replace(found, strategy="again", spelling="again")
    assert choose.distinct([found, again]) == [found]
    assert choose.distinct([again, found]) == [again]
    assert choose.distinct([]) == []


@pytest.mark.parametrize("limit", [1, 2, 4])
def test_a_spelling_gives_the_form_again(limit: int) -> None:
    """What a decisions file holds is planned again without the options that were given then."""
    (site,) = sites(tiny.conv1d(length=64, dilations=[8], pads=[8, 8])).values()
    found = offered(site, limit)
    assert {c.strategy: c.spelling for c in found}["space_to_batch"] == (
        "space_to_batch" if limit == 1 else f"space_to_batch:max_dilation={limit}"
    )
    for candidate in found:
        name, strategy = parse(candidate.spelling)
        (again,) = choose.candidates(site, {name: strategy})[0]
        assert name == candidate.strategy
        assert again.spelling == candidate.spelling
        assert again.fragment.digest() == candidate.fragment.digest()


# -- the estimate --------------------------------------------------------------------------------------------------


def test_moving_elements_costs() -> None:
    (site,) = sites(tiny.conv1d()).values()
    keep = next(c for c in offered(site) if c.strategy == "keep")
    moved = replace(keep, elements_moved=keep.elements_moved + 10)
    assert moved.cost == keep.cost + 10 * choose.MULTIPLY_ADDS_PER_ELEMENT


def test_every_form_applies_or_refuses() -> None:
    for model in (tiny.conv1d(), tiny.conv2d(size=None), tiny.quantized(), tiny.aspp()):
        for site in find(model).sites:
            found, refused = choose.candidates(site, strategies())
            told = [c.strategy for c in found] + [r.strategy for r in refused]
            assert sorted(told) == sorted(strategies())
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
    order = names(choose.without_dilation(offered(site), 1))
    assert order.index("space_to_axis") > order.index("space_to_batch"), "a 2-D Conv as a 3-D one"
    assert order.index("zero_fill") > order.index("space_to_batch")
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


@pytest.mark.parametrize(
    ("backend", "layout"), [(OpenCvDnn(), "axes"), (Ncnn(), "axes"), (TensorRt(), "reshape")], ids=["cv", "ncnn", "trt"]
)
def test_phases_are_made_as_the_runtime_likes_them(backend: TimedBackend, layout: str) -> None:
    """SpaceToDepth is slow on OpenCV, and ncnn has none; a GPU moves all axes at once."""
    model = tiny.build(
        [
            tiny.conv_node("x", "a", dilations=[2, 2], pads=[2] * 4, name="c"),
            tiny.helper.make_node("Relu", ["a"], ["b"]),
            tiny.conv_node("b", "y", dilations=[2, 2], pads=[2] * 4, name="d"),
        ],
        {"x": [1, 8, 12, 12]},
        {"y": [1, 8, 12, 12]},
        {"w": tiny.values(8, 8, 3, 3)},
    )
    options = CommandOptions.of()
    decider = Decider(options.scope, options.proving, Source(model), runtime=backend)
    found = find(model, regions=True)
    region = next(one for one in found.regions if one.meaning.block)
    made = [*decider.planner.candidates(found.sites[0])[0], *decider.region_planner.candidates(region)[0]]
    spelled = {one.strategy: one.spelling for one in made}
    for name in ("space_to_batch", "space_to_group", "phases_apart", "phase_region"):
        assert f"layout={layout}" in spelled[name]
    assert not [one.strategy for one in made if re.search("SpaceToDepth|DepthToSpace", repr(one.fragment.steps))]


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ("phases_apart", "phases_apart:layout=axes"),
        ("phases-apart:limit_phases=4", "phases_apart:limit_phases=4,layout=axes"),
        ("phases_apart:limit_phases=4,layout=depth", "phases_apart:limit_phases=4"),
        ("phases_apart:layout=reshape", "phases_apart:layout=reshape"),
        ("im2col", "im2col"),
    ],
)
def test_a_form_by_hand_is_the_one_that_goes_by_its_name_there(asked: str, written: str) -> None:
    """Unless the user says how phases are made."""
    model = tiny.conv2d(dilation=2)
    options = CommandOptions.of(strategy=asked)
    decider = Decider(options.scope, options.proving, Source(model), runtime=Ncnn())
    (site,) = find(model).sites
    assert [one.spelling for one in decider.consider(site).wanted] == [written]
