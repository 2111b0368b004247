"""The JSON format: strict JSON with every field."""

from __future__ import annotations

import dataclasses
import json

import pytest

from dilrewrite.report import SCHEMA_VERSION, Report
from dilrewrite.reports import formats
from tests.reports.examples import ODD, REPORTS, check_golden


def parsed(name: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(formats()["json"].render(REPORTS[name]), parse_constant=refuse)


def test_file_name():
    assert formats()["json"].filename == "report.json"


@pytest.mark.parametrize("name", ["rewritten", "differs", "inspected", "nothing-known", "odd-names"])
def test_golden(name):
    check_golden(f"{name}.json", formats()["json"].render(REPORTS[name]))


@pytest.mark.parametrize("name", REPORTS)
def test_strict_and_complete(name):
    data = parsed(name)
    assert set(data) == {field.name for field in dataclasses.fields(Report)} | {"exit_code", "rewritten"}
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


@pytest.mark.parametrize(("name", "code"), [("rewritten", 0), ("differs", 3), ("dilation-left", 1), ("equal", 0)])
def test_exit_code(name, code):
    assert parsed(name)["exit_code"] == code
