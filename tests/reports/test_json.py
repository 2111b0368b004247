"""The JSON format: strict JSON with every field."""

from __future__ import annotations

import dataclasses
import json

import pytest

from dilrewrite.reports.formats import formats
from dilrewrite.reports.report import SCHEMA_VERSION, Report
from dilrewrite.tensorrt import sidecar
from tests.reports.examples import ODD, REPORTS, check_golden

GOLDENS = ("rewritten", "bench", "built", "regions")


def parsed(name: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(formats()["json"].render(REPORTS[name]), parse_constant=refuse)


def test_file_name():
    assert formats()["json"].filename == "report.json"


@pytest.mark.parametrize("name", [*GOLDENS])
def test_golden(name):
    check_golden(f"{name}.json", formats()["json"].render(REPORTS[name]))


@pytest.mark.parametrize("name", REPORTS)
def test_strict_and_complete(name):
    data = parsed(name)
    assert set(data) == {one.name for one in dataclasses.fields(Report)} - {"_held"} | {"exit_code", "rewritten"}
    assert data["schema_version"] == SCHEMA_VERSION
    assert len(data["sites"]) == len(REPORTS[name].sites)
    for site, reported in zip(REPORTS[name].sites, data["sites"], strict=True):
        assert [(r["strategy"], r["reason"]) for r in reported["refused"]] == [
            (refusal.strategy, refusal.reason) for refusal in site.refused
        ]


def test_infinities_and_nan_are_strings():
    check = parsed("differs")["verdict"]["cases"][0]["outputs"][1]
    assert (check["max_abs"], check["max_rel"], check["cosine"]) == ("inf", "nan", "nan")


def test_names_are_unescaped():
    assert parsed("odd-names")["sites"][0]["name"] == ODD


def test_unknown_is_null():
    site = parsed("nothing-known")["sites"][0]
    assert site["multiply_adds"] is site["padding_share"] is site["proof"] is None
    assert site["geometry"]["extents"] == [None, None]


def test_durations_are_seconds_and_shares_are_shares():
    data = parsed("measured")
    assert data["measurement"]["final"]["first"]["median_s"] == pytest.approx(0.0142)
    assert data["measurement"]["noise"] == {"ratio": 1.001, "low": 0.994, "high": 1.009, "pairs": 40}
    assert (data["sites"][0]["share"], data["sites"][0]["candidates"][0]["outcome"]) == (0.101, "won")
    assert data["sites"][0]["candidates"][0]["timing"]["mode"] == "interleaved"


def test_nothing_measured_is_null():
    data = parsed("rewritten")
    site, candidate = data["sites"][0], data["sites"][0]["candidates"][0]
    assert data["measurement"] is candidate["timing"] is None
    assert site["share"] is site["question"] is site["predicted_gain"] is None
    assert (site["ran"], candidate["outcome"]) == ([], None)


@pytest.mark.parametrize("name", [name for name, report in REPORTS.items() if report.engine and "odd" not in name])
def test_an_engine_is_what_its_side_car_says(name):
    engine = REPORTS[name].engine
    assert engine is not None
    assert parsed(name)["engine"] == json.loads(sidecar.render(engine))


def test_what_a_gpu_tells():
    found = parsed("measured-layers")["measurement"]
    assert found["source"] == "measured"
    assert found["first_run_s"] == {"before": 2.31, "after": 11.4}
    assert (found["state_before"]["sm_clock_mhz"], found["state_after"]["temperature_c"]) == (1980, 47)
    assert found["final"]["first"]["p99_s"] == pytest.approx(0.01704)
    assert found["final"]["second"]["variation"] == 0.0345
    assert found["layers"]["second"][0]["role"] == "layout"


def test_no_limit_is_a_string():
    assert parsed("bench-same")["measurement"]["budget_s"] == "inf"


@pytest.mark.parametrize(("name", "code"), [("rewritten", 0), ("differs", 3), ("dilation-left", 1), ("bench", 0)])
def test_exit_code(name, code):
    assert parsed(name)["exit_code"] == code
