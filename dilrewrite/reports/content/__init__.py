"""Makes the document of a report, once for all formats: brief for a screen, or full."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.content import (
    answer,
    engine,
    example,
    folds,
    forms,
    models,
    regions,
    repeat,
    sites,
    target,
    tiles,
    timing,
)
from dilrewrite.reports.content.counted import counted
from dilrewrite.reports.content.screen import engine_screen as engine_screen
from dilrewrite.reports.content.screen import ran_at, ran_on
from dilrewrite.reports.content.screen import screen as screen
from dilrewrite.reports.report import Report
from dilrewrite.runtimes import TimeKind
from dilrewrite.tensorrt.sidecar import EngineReport

DOUBTS = "What makes the timings doubtful"
FIRST = {DOUBTS: "warn"}  # sections that are to be seen first, with their tone
INPUTS = 4  # so many inputs are named at the top


def document(report: Report, *, brief: bool = False) -> doc.Document:
    """Return what a report says: everything, or in brief what a screen holds."""
    parts = [(title, tuple(blocks)) for title, blocks in _sections(report, brief)]
    whole = doc.Document(
        command=report.command,
        status=report.status,
        path=report.before.path,
        tone=answer.tone(report),
        answer=answer.answer(report),
        tiles=tuple(tiles.tiles(report)),
        sections=tuple(doc.Section(title, blocks, FIRST.get(title, "")) for title, blocks in parts if blocks),
        closing=f"Report schema {report.schema_version}, exit code {report.exit_code}.",
        facts=None if brief else _facts(report),
    )
    return counted(report, whole)


def _facts(report: Report) -> doc.Facts:
    """Return when, where and on what it ran, and how to do it again."""
    day, _, clock = report.date.partition("T")
    known = [f"{value.name} {value.shape}".rstrip() for value in report.before.inputs]
    command = repeat.command_line(report)
    rows: list[tuple[str, doc.Inline]] = [
        ("date", f"{day} {clock[:5]} UTC" if clock else day),
        ("machine", ran_on(report) or report.environment.processor),
        ("size", ran_at(report) or units.listed(known, INPUTS)),
        ("again", doc.Span("copy", command) if command else ""),
    ]
    return doc.Facts("About this report", tuple(row for row in rows if row[1]))


def engine_document(engine_report: EngineReport) -> doc.Document:
    """Return what is known of an engine alone, in brief."""
    says = f"{engine_report.file}: {engine.short(engine_report)}"
    section = doc.Section("Engine", tuple(engine.engine_blocks(engine_report, brief=True)))
    return doc.Document("inspect", "inspected", engine_report.file, "", says, (), (section,))


def _sections(report: Report, brief: bool) -> Iterator[tuple[str, Iterable[doc.Block]]]:
    verdict, measurement = report.verdict, report.measurement
    if verdict is not None:
        yield "Failures", _bullets(verdict.failures, "bad")
        yield answer.FOUND_AFTER[0].upper() + answer.FOUND_AFTER[1:], _bullets(verdict.checker_after, "bad")
    yield "Dilation that could not go", _bullets(report.remaining, "warn")
    yield DOUBTS, _bullets(answer.doubts(report, noise=not brief), "warn")
    yield "What next", _bullets(answer.next_steps(report))
    if not brief:
        yield "Whole model", timing.whole_blocks(report, measurement) if measurement is not None else ()
        yield "Kept against the best other", timing.kept_blocks(report, measurement) if measurement is not None else ()
        yield "One place, before and after", example.example_blocks(report)
        yield "Share of the model's time", sites.share_blocks(report)
    yield "Target", target.blocks(report.target) if report.target is not None else ()
    yield "Regions", regions.region_blocks(report, brief)
    name = "Space-to-batch sandwiches" if report.command == folds.COMMAND else "Dilated Convs"
    dilated = (name, sites.site_blocks(report, brief))
    measured = any(map(sites.was_measured, report.sites))
    estimated = measurement is not None and measurement.source is TimeKind.ESTIMATED
    known = f"as {'estimated' if estimated else 'measured'}" if measured else "cheapest by estimate first"
    by_site = (f"Forms, {known}", forms.form_blocks(report, brief))
    yield from (by_site, dilated) if measured and not brief else (dilated, by_site)
    if brief:
        yield "Forms without a time", _bullets(forms.untimed(report))
    else:
        yield "Proofs", sites.proof_blocks(report)
    yield "Estimating" if estimated else "Measuring", timing.measuring_blocks(report, brief)
    layers = measurement.layers if measurement is not None else None
    yield "Layers", engine.layer_blocks(layers, brief) if layers is not None else ()
    yield "Engine", engine.engine_blocks(report.engine, brief) if report.engine is not None else ()
    if brief and report.command != "inspect" and report.status != "rewritten":
        yield "Forms that refused", _bullets(forms.refusals(report))
    yield "Left alone", _bullets(models.skipped(report.skipped, brief))
    yield "No space-to-batch sandwich", _bullets(folds.unfolded(report, brief=brief))
    changes = models.normalised(report.normalised, brief)
    yield "Attributes changed without changing the function", _bullets(changes)
    yield "Model" if report.after is None else "Models", models.model_blocks(report, brief)
    if verdict is not None:
        yield "Comparison", models.comparison_blocks(verdict, answer.equality(report), brief)
    yield "Notes", _bullets(models.notes(report))
    times = models.times(report.seconds)
    if brief:
        yield "", [doc.Paragraph(doc.muted(line)) for line in (models.environment(report), f"time: {times}")]
        return
    options = repeat.given(report)
    if options:
        rows = [(doc.code(name), doc.code(json.dumps(value, default=str))) for name, value in options.items()]
        yield "Options that were set", [doc.grid("Options", ("option", "~value"), rows)]
    yield "Environment", [doc.Paragraph(models.environment(report))]
    yield "Time", [doc.Paragraph(times)]


def _bullets(lines: Sequence[doc.Inline], tone: str = "") -> list[doc.Block]:
    """Return a list, folded when it is long; nothing for none."""
    items = doc.Bullets(tuple(doc.Span(tone, line) for line in lines) if tone else tuple(lines))
    return [doc.Fold(f"{len(lines)} entries", (items,)) if len(lines) > sites.MANY_ROWS else items] if lines else []
