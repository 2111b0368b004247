"""The sites as CSV: read back row by row, with every ratio."""

from __future__ import annotations

import csv
import io

import pytest

from dilrewrite.reports import content, units
from dilrewrite.reports.formats import formats, is_report
from dilrewrite.reports.report import SiteReport
from tests.reports.examples import AROUND, ODD, REPORTS, check_golden


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(formats()["csv"].render(REPORTS[name]))))


@pytest.mark.parametrize("name", REPORTS)
def test_one_row_per_site(name):
    sites, skipped, all_rows = REPORTS[name].sites, REPORTS[name].skipped, rows(name)
    regions = REPORTS[name].regions
    for node, row in zip(skipped, all_rows[len(sites) + len(regions) :], strict=True):
        assert row["key"] == units.clean(f"{node.where}/{node.name}")
        assert (row["geometry"], row["chosen"]) == (units.clean(node.op), "keep")
        assert row["reason"] == units.clean(node.reason)
    for site, row in zip((*sites, *regions), all_rows[: len(sites) + len(regions)], strict=True):
        assert None not in row
        assert row["key"] == units.clean(site.key)
        if isinstance(site, SiteReport):
            assert row["geometry"] == units.clean(content.sites.geometry(site.geometry))
            assert row["region"] == units.clean(site.region or "")
        else:
            assert row["geometry"].startswith(content.regions.kind(site))
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


def test_golden():
    check_golden("regions.csv", formats()["csv"].render(REPORTS["regions"]))


def test_sites_name_their_region():
    found = {row["key"]: row["region"] for row in rows("regions")}
    assert [key for key, region in found.items() if region == AROUND] == [s.key for s in REPORTS["regions"].sites[:4]]
    assert found["main/head_out"] == found[AROUND] == ""


def test_a_file_of_before_is_known(tmp_path):
    file = tmp_path / "report.csv"
    for header, known in (("key,geometry,forms,chosen,share,reason\n", True), ("key,geometry,forms\n", False)):
        file.write_text(header)
        assert is_report(file) is known


def test_odd_names_stay_in_their_cell():
    assert rows("odd-names")[0]["reason"] == units.clean(ODD)
    assert len(formats()["csv"].render(REPORTS["odd-names"]).splitlines()) == 1 + len(
        [*REPORTS["odd-names"].sites, *REPORTS["odd-names"].skipped]
    )
