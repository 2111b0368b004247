"""The sites as CSV, one row each: for spreadsheets, and to compare runs."""

from __future__ import annotations

import csv
import io

from dilrewrite.reports.content.forms import said
from dilrewrite.reports.content.regions import kind
from dilrewrite.reports.content.sites import geometry
from dilrewrite.reports.formats import Format
from dilrewrite.reports.report import CandidateReport, RegionReport, Report, SiteReport
from dilrewrite.reports.units import clean, factors
from dilrewrite.timing.stopwatch import MIN_PAIRS

COLUMNS = ("key", "geometry", "forms", "chosen", "share", "reason", "region")


def render(report: Report) -> str:
    """Return a header, then a row per site: forms with ratio and interval, the one chosen, share of time, reason.

    `region` is the key of the region that a site is rewritten with. Regions follow, a row each, with what can be done
    and their operators as geometry. Dilated nodes that no form takes come last, with their operator as geometry.

    Ratios are times of a form divided by those of the Conv as it is; a form without a time says why; forms stand
    cheapest first by estimate, with semicolons between them. A share that is not known is empty.
    """
    file = io.StringIO()
    left = (["/".join((node.where, node.name)), node.op, "", "keep", "", node.reason, ""] for node in report.skipped)
    rows = [COLUMNS, *map(_row, report.sites), *map(_region, report.regions), *(list(map(clean, row)) for row in left)]
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


OPENING = f"{','.join(COLUMNS[:-1])}(,{COLUMNS[-1]})?\n"  # reports of before had no regions
REPORT = Format(render=render, filename="report.csv", opening=OPENING)


def _row(site: SiteReport) -> list[str]:
    return [*_cells(site, geometry(site.geometry)), clean(site.region or "")]


def _region(region: RegionReport) -> list[str]:
    operators = " ".join(f"{number} {op}" for op, number in region.operators.items())
    return [*_cells(region, f"{kind(region)}: {operators}"), ""]


def _cells(entry: SiteReport | RegionReport, geometry: str) -> list[str]:
    share = "" if entry.share is None else f"{entry.share:.6g}"
    forms = "; ".join(map(_form, entry.candidates))
    return [*map(clean, (entry.key, geometry, forms, entry.strategy)), share, clean(entry.reason)]


def _form(candidate: CandidateReport) -> str:
    if candidate.timing is not None:
        timing = candidate.timing
        ratio, low, high = factors(timing.ratio, timing.low, timing.high)
        few = f" ({timing.pairs} pairs)" if timing.pairs < MIN_PAIRS else ""
        return f"{candidate.strategy} {ratio} ({low} to {high}{few})"
    return f"{candidate.strategy} {said(candidate)}".rstrip()
