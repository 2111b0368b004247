"""The sites as CSV: read back row by row, with every ratio."""

from __future__ import annotations

import csv
import io

import pytest

from dilrewrite.reports import content, units
from dilrewrite.reports.formats import formats
from tests.reports.examples import ODD, REPORTS


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(formats()["csv"].render(REPORTS[name]))))


@pytest.mark.parametrize("name", REPORTS)
def test_one_row_per_site(name):
    sites, skipped, all_rows = REPORTS[name].sites, REPORTS[name].skipped, rows(name)
    for node, row in zip(skipped, all_rows[len(sites) :], strict=True):
        assert row["key"] == units.clean(f"{node.where}/{node.name}")
        assert (row["geometry"], row["chosen"]) == (units.clean(node.op), "keep")
        assert row["reason"] == units.clean(node.reason)
    for site, row in zip(sites, all_rows[: len(sites)], strict=True):
        assert None not in row
        assert row["key"] == units.clean(site.key)
        assert row["geometry"] == units.clean(content.sites.geometry(site.geometry))
        assert (row["chosen"], row["reason"]) == (units.clean(site.strategy), units.clean(site.reason))
        assert row["share"] == ("" if site.share is None else f"{site.share:.6g}")
        for candidate in site.candidates:
            assert units.clean(candidate.strategy) in row["forms"]


def test_forms_have_a_ratio_or_a_reason():
    row = rows("measured")[0]
    assert row["forms"].split("; ") == [
        "tap_zones 0.658 (0.650 to 0.666)",
        "keep",
        "space_to_batch 1.31 (1.30 to 1.31)",
        "im2col failed: the process was killed by SIGSEGV",
        "tap_sum not measured: budget",
        "slice_to_batch not measured: budget",
    ]
    assert float(row["share"]) == 0.101


def test_odd_names_stay_in_their_cell():
    assert rows("odd-names")[0]["reason"] == units.clean(ODD)
    assert len(formats()["csv"].render(REPORTS["odd-names"]).splitlines()) == 1 + len(
        [*REPORTS["odd-names"].sites, *REPORTS["odd-names"].skipped]
    )
