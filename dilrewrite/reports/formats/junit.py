"""What was checked as JUnit XML, for continuous integration: a test case per output, per check and per proved site."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from dilrewrite.reports.content.answer import FOUND_AFTER, answer
from dilrewrite.reports.content.models import case_name, result
from dilrewrite.reports.content.sites import proof
from dilrewrite.reports.formats import Format
from dilrewrite.reports.report import RegionReport, Report, SiteReport
from dilrewrite.reports.units import clean

Case = tuple[str, str, str, str]
"""Class, name, `failure`, `skipped` or nothing, and what is said of it."""


def render(report: Report) -> str:
    """Return one suite; what could not be compared is skipped, what differs has failed."""
    cases = [*_sites(report), *_checks(report), *_outputs(report)]
    name = f"dilrewrite {report.command}"
    failures, skipped = (str(sum(case[2] == kind for case in cases)) for kind in ("failure", "skipped"))
    counts = {"tests": str(len(cases)), "failures": failures, "skipped": skipped}
    root = ElementTree.Element("testsuites", name=name)
    time = f"{sum(report.seconds.values()):.3f}"
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, "time": time, **counts})
    for owner, title, outcome, text in cases:
        case = ElementTree.SubElement(suite, "testcase", classname=clean(owner), name=clean(title))
        if outcome:
            ElementTree.SubElement(case, outcome, message=clean(text))
    ElementTree.SubElement(suite, "system-out").text = answer(report)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


REPORT = Format(render=render, filename="report.junit.xml", opening=r'<\?xml [^>]*>\s*<testsuites name="dilrewrite ')


def _sites(report: Report) -> Iterator[Case]:
    """Yield the proofs of the forms; a form that was taken unproved is skipped. A site's may be that of its region."""
    regions = {region.key: region for region in report.regions}
    entries: list[RegionReport | SiteReport] = [*report.regions, *report.sites]
    for entry in entries:
        around = regions.get(entry.region or "") if isinstance(entry, SiteReport) else None
        proved = entry if around is None else around
        if proved.proof is not None or entry.action == "rewritten":
            outcome = "skipped" if proved.proof is None else "" if proved.proof.passed else "failure"
            yield "proof", entry.key, outcome, f"{proof(proved)}{f', with the region {around.key}' if around else ''}"


def _checks(report: Report) -> Iterator[Case]:
    """Yield whether nothing differs, whether the checker finds nothing, and whether a dilation was left."""
    verdict = report.verdict
    if verdict is not None:
        skipped = verdict.skipped or ("nothing was compared" if verdict.level == "none" else "")
        outcome = "failure" if not verdict.passed else "skipped" if skipped else ""
        yield "models", "compute the same", outcome, "; ".join(verdict.failures) or skipped
        alone = f"{FOUND_AFTER}: {'; '.join(verdict.checker_after)}" if verdict.checker_after else ""
        bad = "failure" if report.status == "not valid" else "skipped" if alone else ""
        yield "models", "ONNX checker", bad, alone
    for node in report.remaining:
        name, _, why = node.partition(": ")
        yield "dilation", name, "failure", why or "keeps a dilation above the limit"


def _outputs(report: Report) -> Iterator[Case]:
    for case in report.verdict.cases if report.verdict is not None else ():
        for check in case.outputs:
            outcome = "skipped" if not check.comparable else "" if check.passed else "failure"
            yield case_name(case), check.name, outcome, result(check)
