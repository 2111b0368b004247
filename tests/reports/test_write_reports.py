"""Writing a report folder: every format that has a file, and never times that were not measured."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dilrewrite.errors import UsageError
from dilrewrite.reports import check_report_folder, content, write_reports
from dilrewrite.reports.formats import console, formats, written
from dilrewrite.runtimes import TimeKind, TimeUnit
from dilrewrite.staging import Staging
from tests.reports.examples import REPORTS

MEASURED = [name for name, report in REPORTS.items() if report.measurement is not None]


@pytest.mark.parametrize("name", ["built", "measured-layers", "bench-engines"])
def test_every_usual_format_is_written(tmp_path, name):
    with Staging() as staging:
        files = write_reports(REPORTS[name], tmp_path / "reports", staging).files
        staging.commit()
    report = replace(REPORTS[name], files=files)
    contents = {place.name: place.read_text(encoding="utf-8") for place in (tmp_path / "reports").iterdir()}
    assert contents == {file: form.render(report) for file, form in written().items()}
    assert {form.filename for form in formats().values() if form.default} == set(contents)
    assert files[0] == str(tmp_path / "reports" / "report.html")
    assert {Path(file).name for file in files} == set(contents)


@pytest.mark.parametrize("unit", TimeUnit)
@pytest.mark.parametrize("name", MEASURED)
def test_an_estimate_is_nowhere_called_measured(name, unit):
    """Neither on a screen nor in a file for people; what says that nothing was measured says it in capitals."""
    report = REPORTS[name]
    assert report.measurement is not None
    estimate = replace(report, measurement=replace(report.measurement, source=TimeKind.ESTIMATED, unit=unit))
    spells = [console.to_text, *(formats()[form].render for form in ("markdown", "html"))]
    assert name != "measured" or all(re.search("timed|measured", spell(report)) for spell in spells)
    assert all("NOT MEASURED" in spell(estimate) for spell in spells)
    for spell in (console.on_screen, *spells):
        text = re.sub(r"<(style|script)>.*?</\1>|<code>.*?</code>|`[^`]*`", "", spell(estimate), flags=re.DOTALL)
        text = " ".join(text.split())
        assert re.findall(r"(?<![\w/.-])(?:[Mm]easured|[Mm]easuring|[Tt]imed|[Tt]imings?)(?![\w/-])", text) == []
        assert not re.search(r"\d ms\b(?! by estimate)", text)


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_shown_says_that_times_were_not_measured(name):
    report = REPORTS[name]
    assert report.measurement is not None
    assert "source" not in dict(content.timing.measuring(report))
    report = replace(report, measurement=replace(report.measurement, source=TimeKind.ESTIMATED, unit=TimeUnit.CYCLES))
    assert dict(content.timing.measuring(report))["source"] == "estimated, in cycles: NOT MEASURED"
    assert "NOT MEASURED: estimated, in cycles" in console.on_screen(report)
    shown = console.to_text(report)
    assert "estimated, in cycles: NOT MEASURED" in shown
    assert not re.search("^(measuring|forms, as measured)", shown, re.MULTILINE | re.IGNORECASE)
    assert content.timing.on(report.measurement).endswith(", by estimate")


FILES = {name: form for name, form in formats().items() if form.filename is not None}


@pytest.mark.parametrize("asked", [[name] for name in FILES] + [list(FILES), list(FILES)[-2:] * 2])
def test_the_formats_asked_for_are_written(tmp_path, asked):
    with Staging() as staging:
        write_reports(REPORTS["measured"], tmp_path / "reports", staging, asked)
        staging.commit()
    assert {place.name for place in (tmp_path / "reports").iterdir()} == {FILES[name].filename for name in asked}


@pytest.mark.parametrize("unknown", ["pdf", "", "console"])
def test_an_unknown_format_is_refused_with_the_names(tmp_path, unknown):
    for refused in (written, lambda names: check_report_folder(tmp_path / "reports", others=[], formats=names)):
        with pytest.raises(UsageError, match="there is no such format") as error:
            refused(["json", unknown])
        assert all(name in str(error.value.hint) for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_report_of_before_is_known_and_replaced_and_another_file_is_not(tmp_path, name):
    place = tmp_path / str(FILES[name].filename)
    for report in (REPORTS["measured"], REPORTS["odd-names"], REPORTS["built"]):
        place.write_text(FILES[name].render(report), encoding="utf-8")
        check_report_folder(tmp_path, others=[], formats=[name])
    place.write_text("# a page of mine about dilrewrite\n")
    with pytest.raises(UsageError, match="is no report of dilrewrite"):
        check_report_folder(tmp_path, others=[], formats=[name])
    check_report_folder(tmp_path, others=[], formats=[other for other in FILES if other != name])
