"""JUnit XML: a case per output, check and proof; what differs has failed."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from dilrewrite.reports import units
from dilrewrite.reports.formats import formats
from dilrewrite.reports.report import Report
from tests.reports.examples import AROUND, MEMBERS, ODD, PROOF, REPORTS, check_golden


def suite(report: Report) -> ElementTree.Element:
    root = ElementTree.fromstring(formats()["junit"].render(report))
    assert root.tag == "testsuites"
    (only,) = root
    return only


def outcomes(report: Report) -> dict[tuple[str, str], tuple[str, str]]:
    """Return (outcome, message) by class and name."""
    return {
        (case.attrib["classname"], case.attrib["name"]): (case[0].tag, case[0].attrib["message"])
        if len(case)
        else ("passed", "")
        for case in suite(report).iter("testcase")
    }


@pytest.mark.parametrize("name", REPORTS)
def test_a_case_per_output_and_proof(name):
    report, element = REPORTS[name], suite(REPORTS[name])
    cases = list(element.iter("testcase"))
    names = [case.attrib["name"] for case in cases]
    for entry in (*report.sites, *report.regions):
        assert (units.clean(entry.key) in names) == (entry.proof is not None or entry.action == "rewritten")
    checks = [check for case in report.verdict.cases for check in case.outputs] if report.verdict is not None else []
    assert all(units.clean(check.name) in names for check in checks)
    tags = {"failures": "failure", "skipped": "skipped"}
    counts = {kind: len(element.findall(f"testcase/{tag}")) for kind, tag in tags.items()}
    assert {kind: int(element.attrib[kind]) for kind in counts} == counts
    assert int(element.attrib["tests"]) == len(cases)
    bad = report.exit_code in (1, 3) and report.status != "not compared"
    assert (int(element.attrib["failures"]) > 0) >= bad


def test_golden():
    check_golden("regions.junit.xml", formats()["junit"].render(REPORTS["regions"]))


def test_the_proof_of_a_region_is_that_of_its_sites():
    report = REPORTS["regions"]
    assert {outcomes(report)["proof", key] for key in (AROUND, *(site.key for site in MEMBERS))} == {("passed", "")}
    wrong = replace(report.regions[0], proof=replace(PROOF, failure="7 of 7 elements differ"))
    found = outcomes(replace(report, regions=(wrong,)))
    assert found["proof", AROUND] == ("failure", "FAILED: 7 of 7 elements differ")
    for site in MEMBERS:
        assert found["proof", site.key] == ("failure", f"FAILED: 7 of 7 elements differ, with the region {AROUND}")
    assert found["proof", "main/head_out"] == ("passed", "")
    unproved = replace(report, regions=(replace(wrong, proof=None),))
    assert outcomes(unproved)["proof", MEMBERS[0].key] == ("skipped", f"not proved, with the region {AROUND}")


def test_equal():
    assert set(outcomes(REPORTS["equal"]).values()) == {("passed", "")}
    assert ("first: image 1x3x224x224", "logits") in outcomes(REPORTS["equal"])


def test_what_differs_has_failed():
    found = outcomes(REPORTS["differs"])
    assert found["models", "compute the same"][0] == "failure"
    assert found["first: image 1x3x224x224", "logits"] == ("passed", "")
    assert found["first: image 1x3x224x224", "scores"] == (
        "failure",
        "DIFFERS: NaN or Inf in other places: 0 NaN and 1 Inf before, 7 and 0 after",
    )
    assert found["proof", "main/b_out"] == ("failure", "FAILED: 3 of 7 elements differ by up to 12")
    assert found["proof", "main/a_out"] == ("passed", "")


def test_what_was_not_compared_is_skipped():
    found = outcomes(REPORTS["not-deterministic"])
    assert found["first: image 1x3x224x224", "sample"] == ("skipped", "not compared: two runs of it differ")
    found = outcomes(REPORTS["unverified"])
    assert found["models", "compute the same"][0] == found["proof", "main/a_out"][0] == "skipped"
    assert outcomes(REPORTS["whole-model-skipped"])["models", "compute the same"][0] == "skipped"


def test_findings_of_the_checker():
    assert outcomes(REPORTS["not-valid"])["models", "ONNX checker"][0] == "failure"
    assert outcomes(REPORTS["verify-not-valid"])["models", "ONNX checker"][0] == "skipped"


def test_odd_names_are_read_back():
    report = REPORTS["odd-names"]
    assert ("proof", units.clean(report.sites[0].key)) in outcomes(report)
    low = replace(report, notes=(), sites=(replace(report.sites[0], key="\x00\ud800]]>&<"),))
    assert ("proof", "\\x00\\ud800]]>&<") in outcomes(low)
    assert any(units.clean(ODD) in name for _, name in outcomes(report))
