"""Regions are chosen by the default run: asked before their members, beside them, and confirmed on the whole model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, helper

import dilrewrite
from dilrewrite.choice.regions import members
from dilrewrite.choice.tune import Tuning
from dilrewrite.errors import UsageError
from dilrewrite.forms.chain import Chain
from dilrewrite.proof.prove import Proof, Prover
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import Runnable
from dilrewrite.runtimes.onnxruntime_cpu import OnnxRuntimeCpu
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.timing.budget import MOST_S, REGION_S
from dilrewrite.timing.measure import Answer, Form, Meter
from dilrewrite.timing.neighbourhood import Question
from dilrewrite.timing.outcome import FormTiming, Outcome
from dilrewrite.timing.profiling import SiteRun
from dilrewrite.timing.stopwatch import Comparison
from tests import models_for_tests as tiny
from tests.choice.test_tune import chain, compared

pytestmark = [pytest.mark.usefixtures("in_process", "profiled_in_process"), pytest.mark.measures]

Ask = Callable[..., Report]


def flat(*rates: int) -> ModelProto:
    """2-D dilated Convs one after the other, a Relu behind each."""
    nodes = []
    for number, rate in enumerate(rates):
        names = [f"x{number}" if number else "x", f"c{number}"]
        nodes.append(tiny.conv_node(*names, name=f"conv{number}", dilations=[rate] * 2, pads=[rate] * 4))
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"x{number + 1}"]))
    return tiny.build(nodes, {"x": [1, 2, 12, 12]}, {f"x{len(rates)}": None}, {"w": tiny.values(2, 2, 3, 3)})


def operators(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ask:
    """Optimise a model where every form and whole model takes what the script says; nothing is timed."""

    def ask(
        model: ModelProto,
        *,
        slices: list[tuple[int, float]] | None = None,
        region: float = 1.5,
        sites: float = 1.5,
        whole: Callable[[Counter[str]], float] = lambda _: 0.7,
        **options: Any,
    ) -> Report:
        def answer(
            _: Meter, question: Question, __: object, forms: Sequence[Form], slice_s: float, *, must_go: bool
        ) -> Answer:
            chained = isinstance(question.site.meaning, Chain)
            if slices is not None and chained:
                slices.append((question.site.parts[0].geometry.max_dilation, slice_s))
            seconds, ratio = (0.9, region) if chained else (0.3, sites)
            timings = {}
            for number, form in enumerate(forms):
                timing = compared(ratio + 0.01 * number, seconds=seconds)
                faster = timing.ratio < 1
                assert must_go or not faster or form.prove() is None
                timings[form.strategy] = FormTiming(outcome=Outcome.WON if faster else Outcome.LOST, timing=timing)
            return Answer(forms=timings)

        def timed(_: Meter, __: Runnable, after: Runnable, *___: object, **____: object) -> Comparison:
            return compared(whole(operators(onnx.load_from_string(after.model))), seconds=1.0)

        monkeypatch.setattr(Meter, "answer", answer)
        monkeypatch.setattr(Meter, "whole", timed)
        path, output = tiny.save(model, tmp_path / "m.onnx"), tmp_path / "out.onnx"
        options = {"budget": 30, "no_cache": True, "force": True, **options}
        return dilrewrite.optimize(path, output, **options)

    return ask


def taken(report: Report) -> dict[str, str]:
    """What stands where, by site; the regions that were taken among them."""
    forms = {site.name: site.strategy for site in report.sites}
    return forms | {region.key: region.strategy for region in report.regions if region.action == "rewritten"}


LIFTED = "main/x:x3@lift"


# -- what the script says decides ------------------------------------------------------------------------------------


def test_a_region_that_wins_takes_its_sites_along(scripted: Ask, tmp_path: Path) -> None:
    report = scripted(chain(2, 4, 2), region=0.6)
    assert taken(report) == {**dict.fromkeys(("conv0", "conv1", "conv2"), "lift_region"), LIFTED: "lift_region"}
    assert (report.status, report.rewritten) == ("rewritten", 3)
    assert {site.region for site in report.sites} == {LIFTED}
    assert {site.max_dilation_left for site in report.sites} == {2, 4}, "a lift leaves the dilation"
    (region,) = report.regions
    assert (region.members, region.operators) == (
        ("main/c0", "main/c1", "main/c2"),
        {"Conv": 3, "Relu": 3},
    )
    assert region.proof is not None
    assert region.proof.passed
    assert operators(onnx.load(tmp_path / "out.onnx")) == {"Conv": 3, "Relu": 3, "Unsqueeze": 1, "Squeeze": 1}


def test_a_region_that_loses_leaves_its_sites_to_their_own_forms(scripted: Ask) -> None:
    report = scripted(chain(2, 4, 2), region=1.1, sites=0.5)
    forms = taken(report)
    assert LIFTED not in forms
    assert set(forms.values()) not in ({"keep"}, {"lift_region"})
    assert "keep" not in forms.values()


@pytest.mark.parametrize(("other", "least"), [(0.85, MOST_S), (0.1, 1.5 * MOST_S)])
def test_the_larger_region_is_timed_longer(
    scripted: Ask, monkeypatch: pytest.MonkeyPatch, other: float, least: float
) -> None:
    """A run of it takes longer, and more depends on it."""
    shares = {"x": other, "y": 0.86}
    slices: list[tuple[int, float]] = []

    def run_of(_: Tuning, site: Site) -> SiteRun:
        return SiteRun(share=shares[site.inputs[0][-1]], shapes=((1, 2, 20),), times=1)

    monkeypatch.setattr(Tuning, "run_of", run_of)
    steps = [("x", "cx", 2), ("cx", "endx", 2), ("y", "cy", 4), ("cy", "endy", 4)]
    nodes = [tiny.conv_node(a, b, name=b, dilations=[rate], pads=[rate] * 2) for a, b, rate in steps]
    sizes: dict[str, Any] = {key: [1, 2, 20] for key in shares}
    model = tiny.build(nodes, sizes, {"endx": None, "endy": None}, {"w": tiny.values(2, 2, 3)})
    scripted(model, slices=slices, budget=15)
    (first, slice_s), (second, _) = slices
    assert (first, second) == (4, 2)
    assert least < slice_s < REGION_S


def test_where_nothing_wins_the_model_stays(scripted: Ask) -> None:
    report = scripted(chain(2, 4, 2))
    assert report.status == "kept"
    assert set(taken(report).values()) == {"keep"}
    assert [region.action for region in report.regions] == ["kept"]


def test_phases_win_where_dilation_costs(scripted: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntimeCpu, "dilation_costs", True)
    report = scripted(flat(2, 4, 2), region=0.4)
    (region,) = [region for region in report.regions if region.action == "rewritten"]
    assert (region.block, region.strategy) == ((2, 2), "phase_region")
    assert region.key.endswith("@2x2+2x2"), "what leaves no dilation is asked about first"
    assert [site.max_dilation_left for site in report.sites] == [1, 1, 1]


def test_phases_are_not_timed_where_dilation_costs_nothing(scripted: Ask) -> None:
    report = scripted(flat(2, 4, 2), region=0.4)
    assert report.regions == ()
    assert report.status == "kept"


def test_sites_that_gain_more_by_themselves_have_their_own_forms(scripted: Ask) -> None:
    report = scripted(chain(2, 4, 2), region=0.9, sites=0.2)
    assert LIFTED not in taken(report)
    assert "keep" not in taken(report).values()
    assert "own forms" in report.regions[0].reason


def test_a_region_that_is_not_confirmed_leaves_its_sites_to_theirs(scripted: Ask) -> None:
    def whole(found: Counter[str]) -> float:
        return 1.2 if found["Unsqueeze"] else 0.9

    report = scripted(chain(2, 4, 2), region=0.5, sites=0.8, whole=whole)
    assert "keep" not in taken(report).values()
    assert LIFTED not in taken(report)
    assert "whole model is not faster" in report.regions[0].reason
    assert report.measurement is not None
    assert [attempt.timing.ratio for attempt in report.measurement.attempts] == [1.2, 0.9]
    assert report.measurement.final is not None
    assert report.measurement.final.ratio == 0.9


def test_a_region_that_is_not_confirmed_leaves_the_model_as_it_is(scripted: Ask) -> None:
    report = scripted(chain(2, 4, 2), region=0.5, whole=lambda _: 1.01)
    assert report.status == "kept"
    assert set(taken(report).values()) == {"keep"}


# -- what the user says ----------------------------------------------------------------------------------------------


def test_a_region_form_can_be_asked_for(scripted: Ask, tmp_path: Path) -> None:
    report = scripted(chain(2, 4, 2), strategy="lift_region")
    assert taken(report)[LIFTED] == "lift_region"
    assert "Unsqueeze" in operators(onnx.load(tmp_path / "out.onnx"))
    report = scripted(flat(2, 4, 2), strategy="phase_region:block=2")
    assert [(region.block, region.action) for region in report.regions[:1]] == [((2, 2), "rewritten")]
    report = scripted(flat(2, 4, 2), strategy="lift_region")
    assert {site.reason for site in report.sites} == {"stands in no region that lift_region takes"}
    report = scripted(chain(2, 4, 2), strategy="lift_region", skip="conv1")
    assert "a region goes with all its dilated Convs or not at all" in report.sites[0].reason
    with pytest.raises(UsageError, match="block='0' is no whole number above 0"):
        scripted(flat(2, 4, 2), strategy="phase_region:block=0")


def test_a_form_of_a_conv_that_is_asked_for_leaves_regions_alone(scripted: Ask) -> None:
    report = scripted(chain(2, 4, 2), strategy="lift", region=0.1)
    assert report.regions == ()
    assert set(taken(report).values()) == {"lift"}


@pytest.mark.parametrize("options", [{"skip": "conv1"}, {"only": "conv0"}], ids=str)
def test_a_region_with_a_site_that_is_to_stay_is_not_rewritten(scripted: Ask, options: dict[str, str]) -> None:
    report = scripted(chain(2, 4, 2), region=0.1, **options)
    assert report.regions == ()


def test_decisions_hold_regions(scripted: Ask, tmp_path: Path) -> None:
    saved = tmp_path / "decisions.json"
    first = scripted(chain(2, 4, 2), region=0.6, save_decisions=saved)
    data = json.loads(saved.read_text())
    assert [entry["strategy"] for entry in data["sites"]] == ["keep"] * 3 + ["lift_region"]
    path = tmp_path / "m.onnx"
    again = dilrewrite.optimize(path, tmp_path / "again.onnx", decisions=saved)
    assert taken(again) == taken(first)
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "out.onnx").read_bytes()
    onnx.save(chain(2, 4, 3), path)
    with pytest.raises(UsageError, match="is not what was decided about"):
        dilrewrite.optimize(path, tmp_path / "other.onnx", decisions=saved)


KNOWN_AGAIN = """
import sys
from types import SimpleNamespace
import onnx
from onnx.numpy_helper import to_array
from dilrewrite.choice.decisions import digest
from dilrewrite.proof.carve import Source
from dilrewrite.sites.find import find
from dilrewrite.timing import stretch

model = onnx.load(sys.argv[1])
for site in find(model, regions=True).regions:
    names = {(site.scope, name): (1, 2, 20) for name in site.inputs}
    profiled, types = SimpleNamespace(tensors=names), dict.fromkeys(names, (1, None))
    print(site.key, digest(site), stretch.ask(Source(model), site, profiled, types, to_array).key)
"""


def test_regions_are_known_again_in_another_process() -> None:
    """Decisions and timings are kept under what a region is, not under the order in which a process holds its sets."""
    told = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", KNOWN_AGAIN, str(tiny.MODELS / "causal_tcn.onnx")]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        told.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert told[0] == told[1]
    assert len(told[0].splitlines()) > 1


def test_lifting_without_dilation_is_asked_for(scripted: Ask) -> None:
    assert scripted(chain(1, 1, 1), region=0.5).regions == ()
    report = scripted(chain(1, 1, 1), region=0.5, lift_all=True)
    assert [region.action for region in report.regions] == ["rewritten"]
    assert report.status == "rewritten"


# -- elimination -----------------------------------------------------------------------------------------------------


def test_dilation_goes_by_the_cheaper_of_region_and_sites(scripted: Ask) -> None:
    cheap = scripted(flat(2, 2, 2), eliminate=True, region=1.1, sites=1.5)
    assert [region.action for region in cheap.regions] == ["rewritten"]
    assert {site.max_dilation_left for site in cheap.sites} == {1}
    dear = scripted(flat(2, 2, 2), eliminate=True, region=2.0, sites=1.1)
    assert [(region.action, region.max_dilation_left) for region in dear.regions] == [("kept", 1)]
    assert {site.max_dilation_left for site in dear.sites} == {1}


def test_dilation_goes_without_a_region_where_the_whole_model_is_faster_so(scripted: Ask) -> None:
    one = [1.3]
    report = scripted(flat(2, 2, 2), eliminate=True, region=1.1, sites=1.5, whole=lambda _: one.pop() if one else 1.1)
    assert [region.action for region in report.regions] == ["kept"]
    assert {site.max_dilation_left for site in report.sites} == {1}
    assert report.measurement is not None
    assert report.measurement.final is not None
    assert report.measurement.final.ratio == 1.1


def test_the_whole_model_is_timed_without_any_region_too(scripted: Ask) -> None:
    """Not with the regions that were less good than those that were taken: Conv by Conv."""
    report = scripted(flat(2, 4, 4, 2), eliminate=True, region=1.1, sites=1.5)
    assert len(report.regions) > 1
    assert report.measurement is not None
    first, second = (attempt.sites for attempt in report.measurement.attempts)
    assert any("@" in site for site in first)
    assert second == ("main/c0", "main/c1", "main/c2", "main/c3")


# -- proofs ----------------------------------------------------------------------------------------------------------


def test_a_wrong_region_ends_the_run(scripted: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    proof = Proof(shapes=(), elements=9, backend="", native_ran=True, failure="3 of 9 elements differ")
    monkeypatch.setattr(Prover, "prove", lambda *_, **__: proof)
    report = scripted(chain(2, 4, 2), strategy="lift_region")
    assert (report.status, report.exit_code) == ("differs", 3)
    assert not (tmp_path / "out.onnx").exists()


def test_a_region_that_cannot_be_proved_is_not_taken(scripted: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Prover.prove

    def prove(self: Prover, source: Any, site: Any, fragment: Any, **more: Any) -> Proof:
        if isinstance(site.meaning, Chain):
            return Proof(shapes=(), elements=0, backend="", native_ran=False, failure="no data", ran=False)
        return own(self, source, site, fragment, **more)

    monkeypatch.setattr(Prover, "prove", prove)
    report = scripted(chain(2, 4, 2), strategy="lift_region")
    assert report.status == "kept"
    assert "no data" in report.regions[0].reason


def test_members_are_the_sites_in_a_region() -> None:
    found = find(chain(2, 4, 2), regions=True)
    assert [site.name for site in members(found.regions[0], found.sites)] == ["conv0", "conv1", "conv2"]
