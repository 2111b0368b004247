"""The sites as CSV, one row each: for spreadsheets, and to compare runs."""

from __future__ import annotations

import csv
import io

from dilrewrite.reports.content.forms import said
from dilrewrite.reports.content.sites import geometry
from dilrewrite.reports.formats import Format
from dilrewrite.reports.report import CandidateReport, Report, SiteReport
from dilrewrite.reports.units import clean, ratio_of

COLUMNS = ("key", "geometry", "forms", "chosen", "share", "reason")


def render(report: Report) -> str:
    """Return a header, then a row per site: forms with ratio and interval, the one chosen, share of time, reason.

    Dilated nodes that no form takes come last, with their operator as geometry.

    Ratios are times of a form divided by those of the Conv as it is; a form without a time says why; forms stand
    cheapest first by estimate, with semicolons between them. A share that is not known is empty.
    """
    file = io.StringIO()
    left = (["/".join((node.where, node.name)), node.op, "", "keep", "", node.reason] for node in report.skipped)
    rows = [COLUMNS, *map(_row, report.sites), *(list(map(clean, row)) for row in left)]
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


REPORT = Format(render=render, filename="report.csv", opening=f"{','.join(COLUMNS)}\n")


def _row(site: SiteReport) -> list[str]:
    share = "" if site.share is None else f"{site.share:.6g}"
    forms = "; ".join(map(_form, site.candidates))
    return [*map(clean, (site.key, geometry(site.geometry), forms, site.strategy)), share, clean(site.reason)]


def _form(candidate: CandidateReport) -> str:
    if candidate.timing is not None:
        ratio, interval = ratio_of(candidate.timing)
        return f"{candidate.strategy} {ratio} ({interval})"
    return f"{candidate.strategy} {said(candidate)}".rstrip()
