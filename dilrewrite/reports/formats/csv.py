"""The sites as CSV, one row each: for spreadsheets, and to compare runs."""

from __future__ import annotations

import csv
import io
from typing import final

from dilrewrite.reports.content.forms import said
from dilrewrite.reports.content.sites import geometry
from dilrewrite.reports.report import CandidateReport, Report, SiteReport
from dilrewrite.reports.units import clean, ratio_of

COLUMNS = ("key", "geometry", "forms", "chosen", "share", "reason")


@final
class Csv:
    """A header, then key, geometry, forms with ratio and interval, the form chosen, share of time and reason of a site.

    Ratios are times of a form divided by those of the Conv as it is; a form without a time says why; forms stand
    cheapest first by estimate, with semicolons between them. A share that is not known is empty.
    """

    filename: str | None = "report.csv"
    default = False
    opening = f"{','.join(COLUMNS)}\n"

    def render(self, report: Report) -> str:
        """Return the CSV text."""
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(map(_row, report.sites))
        return file.getvalue()


REPORT = Csv()


def _row(site: SiteReport) -> list[str]:
    share = "" if site.share is None else f"{site.share:.6g}"
    forms = "; ".join(map(_form, site.candidates))
    return [*map(clean, (site.key, geometry(site.geometry), forms, site.strategy)), share, clean(site.reason)]


def _form(candidate: CandidateReport) -> str:
    if candidate.timing is not None:
        ratio, interval = ratio_of(candidate.timing)
        return f"{candidate.strategy} {ratio} ({interval})"
    return f"{candidate.strategy} {said(candidate)}".rstrip()
