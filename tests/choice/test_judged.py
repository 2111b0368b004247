"""`optimize --target --backend`: the target's compiler decides between forms that fit, and keeps what is not beaten."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import dilrewrite
from dilrewrite.choice import choose, fits
from dilrewrite.errors import UsageError
from dilrewrite.forms.strategies import parse
from dilrewrite.runtimes import CannotLoad, TimeUnit, ethos_u
from dilrewrite.sites.find import find
from dilrewrite.targets import find as find_target
from tests.choice.test_fits import chip, conv, left, optimized, rule
from tests.runtimes import judged

VELA = {"name": "ethos-u-vela", "version_min": "5.0"}
pytestmark = pytest.mark.measures


def asked(model: Any, target: Path | str, **options: Any) -> dilrewrite.Report:
    return optimized(model, target, **{"backend": "ethos_u", "budget": 300, "no_cache": True, **options})


def test_both_kinds_of_phases_are_tried_and_the_judge_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that leave the dilation 2 that costs an Ethos-U nothing, and those that leave none."""
    judged.stand_in(monkeypatch)
    report = asked(conv((4, 4), (16, 16), channels=4), "ethos-u")
    (site,) = report.sites
    tried = {one.strategy: one.max_dilation for one in site.candidates if one.timing is not None}
    assert {tried["phases_apart"], tried["phases_apart:limit_phases=256,layout=reshape"]} == {1, 2}, tried
    assert site.max_dilation_left == 2, site.reason
    assert left(report) == {(2, 2)}
    assert report.measurement is not None
    assert report.measurement.unit is TimeUnit.CYCLES
    assert report.measurement.final is not None
    assert site.fit is not None
    assert (site.fit.before, site.fit.after) == ("native", "native")


def test_a_judge_to_whom_every_dilation_costs_gets_phases_without_any(monkeypatch: pytest.MonkeyPatch) -> None:
    judged.stand_in(monkeypatch, lambda kernel, d: 1 + (kernel - 1) * d**2)
    report = asked(conv((4, 4), (16, 16), channels=4), "ethos-u")
    assert left(report) <= {(), (1, 1)}, report.sites[0].reason


def test_what_the_judge_finds_no_dearer_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the profile's cost model says: without the judge, phases would be taken."""
    judged.stand_in(monkeypatch, lambda kernel, _: kernel)
    model = conv((5, 5), (16, 16), channels=32, pads=(0,) * 4)
    report = asked(model, "ethos-u")
    assert report.status == "kept", report.summary
    assert optimized(model, "ethos-u").status == "rewritten"


def test_of_what_fits_a_target_that_refuses_the_judge_takes_the_cheapest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The Conv goes even where its form costs more."""
    target = chip(tmp_path, {"dilation": rule(max=3)}, toolchain=VELA, SpaceToDepth="host", DepthToSpace="host")
    for work in (judged.zeros, lambda kernel, _: kernel):
        judged.stand_in(monkeypatch, work)
        report = asked(conv((4, 4), (16, 16), channels=4), target)
        (site,) = report.sites
        assert (report.status, site.fit.after if site.fit else "") == ("rewritten", "native")
        assert "dilation 4 is not at most 3 (its list)" in site.reason
        assert "than the dilated Conv" in site.reason
        cycles = {one.strategy: one.timing.ratio for one in site.candidates if one.timing is not None}
        assert cycles[site.strategy] == min(cycles.values())
        assert report.measurement is not None
        assert report.measurement.final is not None


def test_a_judge_without_an_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What has to go goes by the estimate, and the reason says so; else the user is told that the judge fails."""
    judged.stand_in(monkeypatch)

    def prepare(*_: Any) -> Any:
        raise CannotLoad("Vela does not compile it: no")

    monkeypatch.setattr(ethos_u.EthosU, "prepare", prepare)
    report = asked(conv((4, 4), (16, 16)), chip(tmp_path, {"dilation": rule(max=3)}, toolchain=VELA))
    (site,) = report.sites
    assert report.status == "rewritten"
    assert "the cheapest by estimate of " in site.reason
    assert "Vela does not compile it: no" in site.reason
    with pytest.raises(UsageError, match="Vela does not compile it: no"):
        asked(conv((4, 4), (16, 16)), "ethos-u")


def test_a_budget_of_0_is_the_profile_s_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    judged.stand_in(monkeypatch)
    report = asked(conv((4, 4), (16, 16), channels=32), "ethos-u", budget=0)
    assert report.measurement is None
    assert "the target's compiler makes" in report.sites[0].reason


@pytest.mark.parametrize(
    ("target", "backend", "said"),
    [
        ("ethos-u", "onnxruntime_cpu", "onnxruntime_cpu times models, .* its judge is backend ethos_u"),
        ("rdk-x5", "onnxruntime_cpu", "leave backend out: no judge of it is known"),
        ("ethos-u-vela-3.10", "ethos_u", "asks ethos-u-vela 5.2.0, and ethos-u-vela-3.10 is of ethos-u-vela 3.10.0"),
        ("rdk-x5", "ethos_u", "ethos_u asks ethos-u-vela 5.2.0, and rdk-x5 is of hb_mapper"),
    ],
)
def test_a_backend_that_is_no_judge_of_the_target(
    monkeypatch: pytest.MonkeyPatch, target: str, backend: str, said: str
) -> None:
    judged.stand_in(monkeypatch)
    with pytest.raises(UsageError) as error:
        optimized(conv((4, 4)), target, backend=backend)
    assert error.match("target with backend: ")
    assert re.search(said, f"{error.value} {error.value.hint}"), f"{error.value} {error.value.hint}"


def test_which_judge_is_whose() -> None:
    assert fits.judge_of(find_target("ethos-u")) == "ethos_u"
    assert fits.judge_of(find_target("ethos-u-vela-3.10")) == "ethos_u:compiler=3.10.0"
    assert fits.judge_of(find_target("rknn-2.5.0")) == "rknn"
    assert fits.judge_of(find_target("rknn-2.3.2")) == "rknn:toolkit=2.3.2"
    assert fits.judge_of(find_target("coral-edgetpu")) is None


def test_eliminating_for_a_runtime_with_forms_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 phases are too many for `phases_apart` as it is set; what would leave a dilation is none that may be taken."""
    judged.stand_in(monkeypatch)
    report = dilrewrite.optimize(
        conv((8, 8), (16, 16), channels=4), eliminate=True, backend="ethos_u", budget=300, no_cache=True, verify="sites"
    )
    (site,) = report.sites
    tried = {one.strategy: one.max_dilation for one in site.candidates if one.outcome is not None}
    assert tried["phases_apart:limit_phases=256"] == 1
    assert set(tried.values()) == {1}
    assert report.status == "rewritten"
    assert site.max_dilation_left == 1


def test_forms_of_one_name_have_names_of_their_own() -> None:
    (site,) = find(conv((4, 4))).sites
    names = ["phases_apart:max_dilation=2", "phases_apart:limit_phases=99", "phases_apart"]
    found = [choose.candidates(site, dict([parse(name)]))[0][0] for name in names]
    apart = choose.told_apart(found)
    assert [(one.strategy, one.fragment.max_dilation) for one in apart] == [
        ("phases_apart", 2),
        ("phases_apart:limit_phases=99", 1),
    ]
