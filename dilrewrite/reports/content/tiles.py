"""The figures that tell most, each as a tile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dilrewrite.proof.verdict import Verdict
from dilrewrite.reports import units
from dilrewrite.reports.content import answer
from dilrewrite.reports.content import engine as engines
from dilrewrite.reports.content.models import is_engine
from dilrewrite.reports.content.regions import counted, taken
from dilrewrite.reports.content.sites import in_floats, proved, requantised
from dilrewrite.reports.content.timing import alone
from dilrewrite.reports.document import Tile
from dilrewrite.reports.report import Report
from dilrewrite.reports.units import clean, count, milliseconds, percent, seconds
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.measurement import Measurement


def tiles(report: Report) -> Iterator[Tile]:
    """Yield the figures that tell most."""
    measurement, before, after = report.measurement, report.before, report.after
    if report.engine is not None and report.command == "build":
        yield from _built(report.engine)
    if measurement is not None:
        yield from _speed(report, measurement)
    yield from _next_tile(report)
    share = units.summed(site.share for site in report.sites)
    if share is not None:
        yield Tile("Share of time", percent(share), "goes to the dilated Convs")
    if report.status in answer.CHOSEN and (measurement is None or measurement.estimated_s is None):
        forms = Counter(site.strategy for site in report.sites if site.action == "rewritten")
        verb = "Convs to rewrite" if report.options.get("dry_run") else "Convs rewritten"
        yield Tile(verb, f"{report.rewritten} of {len(report.sites)}", units.pairs(forms.items()) or "all kept")
        regions = [region for _, region in taken(report)]
        if regions:
            yield Tile("Regions", str(len(regions)), units.pairs(counted(regions)))
    both = [model for model in (before, after) if model is not None]
    kinds = list(map(is_engine, both))
    if all(kinds):
        yield Tile("Layers", " → ".join(str(model.nodes) for model in both), before.producer)
    elif after is None:
        yield Tile("Dilated Convs", str(before.dilated), f"{count(before.nodes, 'node')} in all")
    elif not any(kinds):
        yield Tile("Dilated Convs", f"{before.dilated} → {after.dilated}", f"nodes {before.nodes} → {after.nodes}")
    total, padding, number = answer.on_padding(report.sites)
    if report.command == "inspect" and total:
        some = "at all sites" if number == len(report.sites) else f"at the {number} sites of known size"
        yield Tile("Multiply-adds", units.amount(total), some)
        yield Tile("On padding only", percent(padding), "of them")
    if proved(report)[1]:
        yield _trust(report)
    elif report.verdict is not None:
        yield _results(report, report.verdict)
    if after is not None and kinds[0] == kinds[1]:
        change = units.change(before.bytes, after.bytes)
        sizes = f"{units.size(before.bytes)} → {units.size(after.bytes)}"
        yield Tile("File size", "unchanged" if change == "0" else change, sizes)
    if report.engine is not None and report.command == "optimize":
        yield from _built(report.engine)


def _built(engine: EngineReport) -> Iterator[Tile]:
    """Yield what was built, in what, and whether it was compared with the model."""
    yield Tile("Engine", units.size(engine.bytes), f"{engines.library(engine)}, {count(len(engine.layers), 'layer')}")
    yield Tile("Precision", engine.precision.built, engines.convolved(engine.precision) or "no convolution")
    if engine.device is None:
        yield Tile("Engine's results", "! not compared", units.shorten(clean(engine.checked), 160), "warn")


def _speed(report: Report, measurement: Measurement) -> Iterator[Tile]:
    """Yield the speed of the whole model, or what is expected of it."""
    final = measurement.final
    if final is not None and alone(report):
        first = final.first
        yield Tile("One run", f"{milliseconds(first.median_s)} ms", f"20 to 80 %: {units.spread(first)} ms")
    elif final is not None:
        what = units.difference(final)
        name = "Whole model" if report.command != "bench" else "Second model against the first"
        tone = "good" if what.endswith("faster") else "bad" if what.endswith("slower") else ""
        yield Tile(name, what, units.surely(final), tone)
    elif measurement.estimated_s is not None:
        about = f"about {seconds(measurement.estimated_s)}"
        yield Tile("Measuring would take", about, "dry run, nothing is timed yet")
    elif measurement.predicted_ratio is not None:
        yield Tile("Whole model, predicted", units.speed(measurement.predicted_ratio), "not timed as a whole")


def _next_tile(report: Report) -> Iterator[Tile]:
    """Yield what to do first where nothing was rewritten."""
    steps = list(answer.steps(report)) if report.status in ("kept", "inconclusive") else []
    if steps:
        says = "how and why" if len(steps) == 1 else f"how and why, and {count(len(steps) - 1, 'other step')}"
        yield Tile("What next", steps[0][0], says, target="what-next")


def _trust(report: Report) -> Tile:
    """Return how many forms are proved, and what is known of the whole model."""
    (exact, proofs), verdict = proved(report), report.verdict
    how = requantised(errors) if (errors := in_floats(report)) else "bit for bit"
    says = f"{how}; {answer.equality(report)}" if verdict is not None else how
    if exact < proofs or (verdict is not None and not verdict.passed):
        return Tile("Proved", f"✗ {exact} of {proofs}", says, "bad")
    whole = verdict is not None and verdict.skipped is None and bool(answer.compared(verdict)[0])
    return Tile("Proved", f"{'✓ ' if whole else ''}{exact} of {proofs}", says, "good" if whole else "warn")


def _results(report: Report, verdict: Verdict) -> Tile:
    says, (able, total) = answer.equality(report), answer.compared(verdict)
    if not verdict.passed:
        return Tile("Results", "✗ differ", says, "bad")
    if verdict.level != "none" and verdict.skipped is None and able:
        return Tile("Results", "✓ equal" if able == total else "✓ equal in part", says, "good")
    return Tile("Results", "! not compared", says, "warn")
