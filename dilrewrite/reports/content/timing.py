"""How timings were taken, and what they say of the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.content.sites import NAME_LENGTH, SITE_NAMES, site_name
from dilrewrite.reports.report import Report, SiteReport
from dilrewrite.runtimes import TimeKind
from dilrewrite.timing.measurement import Attempt, Measurement
from dilrewrite.timing.stopwatch import Comparison, Noise, Timing

TIME_TITLE = "Time of one run of the whole model, median, in milliseconds"
TIME_LEGEND = (("whisker", "20th to 80th percentile"),)

MODES = {
    "interleaved": "interleaved (both models loaded, runs in turn)",
    "blocks": "in blocks (one model loaded at a time)",
}
READINGS = {"sm_clock_mhz": "# MHz", "memory_clock_mhz": "memory # MHz", "power_w": "# W", "temperature_c": "# °C"}
"""How the readings of a device are told."""

HELD_BACK = {
    0x2: "application clocks",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
}
"""Why a GPU runs slower than it could, by NVML's bits; 0x1 is that it has nothing to do."""


def on(measurement: Measurement | None) -> str:
    """Return ` on BACKEND`, and `, by estimate` where nothing was measured there."""
    estimated = measurement is not None and measurement.source is TimeKind.ESTIMATED
    return "" if measurement is None else f" on {measurement.backend}{', by estimate' if estimated else ''}"


def own_noise(report: Report) -> Noise | None:
    """Return how the original ran against itself; what `bench` found of a single model is just that."""
    measurement = report.measurement
    if measurement is None:
        return None
    final = measurement.final
    if measurement.noise is not None or final is None or not alone(report):
        return measurement.noise
    return Noise(ratio=final.ratio, low=final.low, high=final.high, pairs=final.pairs)


def alone(report: Report) -> bool:
    """Say whether `bench` timed a single model, against itself."""
    return report.command == "bench" and report.after is None


def measuring(report: Report) -> list[tuple[str, str]]:
    """Return how timings were taken and what they say of the whole model, as (what, text) rows."""
    measurement = report.measurement
    if measurement is None:
        return []
    shapes = units.pairs((name, units.dims(shape)) for name, shape in measurement.inputs.items())
    timings = f"{measurement.measured} taken now, {measurement.recalled} recalled from the cache"
    profiled, load, cores = measurement.profiled_s, measurement.load, units.count(report.environment.cores, "core")
    slowed = "a run of the original under the profiler takes"
    wanted = f"processes wanted a core in the minute before, on {cores}"
    measured = measurement.source is TimeKind.MEASURED
    firsts = [measurement.first_run_s[key] for key in ("before", "after") if key in measurement.first_run_s]
    first = f"{' -> '.join(map(units.seconds, firsts))}, with loading and all that is done once"
    rows = [
        ("runtime", units.joined(measurement.backend, units.pairs(measurement.versions.items()))),
        ("device", measurement.device),
        ("settings", units.pairs(measurement.settings.items())),
        ("inputs", shapes or ("none" if measurement.estimated_s is None else "")),
        ("time", _budget(measurement, limited=report.command != "inspect")),
        ("timings", timings if measurement.measured + measurement.recalled else ""),
        ("profile", f"{slowed} {units.milliseconds(profiled)} ms" if profiled is not None else ""),
        ("noise", _noise(report)),
        ("mode", _modes(report, measurement)),
        ("load", f"{units.figure(load)} {wanted}" if load is not None else ""),
        *_whole(report, measurement),
        ("first run", first if firsts else ""),
        ("GPU before/after", _states(measurement)),
        ("source", "" if measured else f"{measurement.source}, in {measurement.unit}: NOT MEASURED"),
    ]
    return [(what, text) for what, text in rows if text]


def _noise(report: Report) -> str:
    noise = own_noise(report)
    if noise is None:
        return ""
    itself = "the model" if report.command == "bench" else "the original"
    interval = f"{units.INTERVAL} {units.between(noise.low, noise.high)}, {units.count(noise.pairs, 'pair')}"
    return f"{units.percent(noise.level)}: {itself} against itself is {units.speed(noise.ratio)} ({interval})"


def _whole(report: Report, measurement: Measurement) -> Iterator[tuple[str, str]]:
    """Yield what was predicted of the whole model, what it takes, and how much its runs vary."""
    final = measurement.final
    if measurement.predicted_ratio is not None:
        yield "predicted", f"{units.speed(measurement.predicted_ratio)}, from the timings of the sites"
    if final is None:
        return
    if measurement.source is TimeKind.ESTIMATED:
        yield "whole model", units.versus(final)
        return
    if not alone(report):
        both = f"{units.spread(final.first)} ms -> {units.spread(final.second)} ms"
        yield "whole model", f"{units.versus(final)}; {units.count(final.pairs, 'pair')}, 20 to 80 % of them {both}"
    if final.first.p99_s > 0:
        timings = [final.first] if alone(report) else [final.first, final.second]
        slowest = " -> ".join(f"{units.milliseconds(timing.p99_s)} ms" for timing in timings)
        varies = " -> ".join(units.percent(timing.variation) for timing in timings)
        yield "slowest runs", f"99th percentile {slowest}; coefficient of variation {varies}"


def _states(measurement: Measurement) -> str:
    """Return a device's readings before and after: `1980/1965 MHz, 231/240 W, 41/47 °C`; may be empty."""
    both = (measurement.state_before, measurement.state_after)
    parts = []
    for name, told in READINGS.items():
        if any(name in state for state in both):
            values = (f"{state[name]:.0f}" if name in state else units.NOTHING for state in both)
            parts.append(told.replace("#", "/".join(values)))
    reasons = [int(state.get("throttle_reasons", 0)) for state in both]
    names = [name for bit, name in HELD_BACK.items() if any(bits & bit for bits in reasons)]
    return units.joined(*parts, f"held back by {' and '.join(names)}" if names else "")


def _modes(report: Report, measurement: Measurement) -> str:
    """Return in which order models ran, of the whole model and the sites apart where they differ; may be empty."""
    whole = [measurement.final, *(attempt.timing for attempt in measurement.attempts)]
    forms = [candidate.timing for site in report.sites for candidate in site.candidates]
    of_whole, of_forms = (
        " or ".join(dict.fromkeys(MODES[timing.mode] for timing in timings if timing is not None))
        for timings in (whole, forms)
    )
    if of_whole and of_forms and of_whole != of_forms:
        return f"the whole model {of_whole}; the forms {of_forms}"
    return of_whole or of_forms


def _budget(measurement: Measurement, *, limited: bool) -> str:
    """Return how long measuring took, or would take, and why it took longer than it should."""
    budget = measurement.budget_s
    limit = f"budget of {units.seconds(budget)}" if limited and 0 < budget < math.inf else ""
    within = f", with a {limit}" if limit else ""
    if measurement.estimated_s is not None:
        about = f"would take about {units.seconds(measurement.estimated_s)}{within}"
        return about if measurement.estimated_s else "nothing to measure"
    took, floor = f"took {units.seconds(measurement.spent_s)}", measurement.floor_s
    least = f"what is always done, the profile and the least confirmation, took {units.seconds(floor)}" if floor else ""
    if limit and measurement.spent_s > budget:
        return f"{took}, more than the {limit}{f': {least}' if least else ''}"
    return f"{took}{within}{f' ({least})' if least else ''}"


def measuring_blocks(report: Report, brief: bool) -> Iterator[doc.Block]:
    """Yield how timings were taken, and the versions of the whole model that were timed."""
    rows = measuring(report)
    if rows:
        yield doc.Facts("How timings were taken", tuple(rows))
    if report.measurement is None or not report.measurement.attempts:
        return

    inside = {region.key: len(region.members) for region in report.regions}
    names = {site.key: site_name(site) for site in report.sites}
    names |= {region.key: site_name(region) for region in report.regions}

    def sites(attempt: Attempt) -> doc.Inline:
        own = [names.get(key, key) for key in attempt.sites]
        if brief:
            return units.listed(own, SITE_NAMES)
        whole = f"{number(attempt)} of {len(report.sites)}"
        return doc.codes(own) if len(own) <= SITE_NAMES else doc.Span("fold", doc.codes(own), whole)

    def number(attempt: Attempt) -> int:
        return sum(inside.get(key, 1) for key in attempt.sites)

    title = "Versions of the model that were timed against the original"
    yield doc.Paragraph(f"{title}:")
    yield doc.table(
        title,
        enumerate(report.measurement.attempts, 1),
        ("##", lambda item: str(item[0])),
        ("#sites rewritten", lambda item: str(number(item[1]))),
        ("~sites" if not inside else "~sites and regions", lambda item: sites(item[1]) or units.NOTHING),
        ("#original ms", lambda item: units.milliseconds(item[1].timing.first.median_s)),
        ("#version ms", lambda item: units.milliseconds(item[1].timing.second.median_s)),
        ("#speed", lambda item: units.speed(item[1].timing.ratio)),
        (f"#^{units.INTERVAL}", lambda item: units.interval_of(item[1].timing)),
        not brief and ("#pairs", lambda item: str(item[1].timing.pairs)),
        ("result", lambda item: units.difference(item[1].timing)),
    )


def time_bar(
    kind: str, name: str, timing: Timing, label: doc.Inline, says: doc.Inline = "", mark: float | None = None
) -> doc.Bar:
    """Return the bar of a timing, in milliseconds."""
    median = f"{units.milliseconds(timing.median_s)} ms"
    return doc.Bar(
        kind=kind,
        name=f"{name}: median {median}, 20 to 80 %: {units.spread(timing)} ms",
        label=label,
        says=(doc.strong(median), doc.muted(f" ({units.spread(timing)})"), doc.line(says)),
        value=1000 * timing.median_s,
        low=1000 * timing.p20_s,
        high=1000 * timing.p80_s,
        mark=None if mark is None else 1000 * mark,
    )


def whole_blocks(report: Report, measurement: Measurement) -> Iterator[doc.Block]:
    """Yield the original against the model written, and what was expected of it."""
    final, predicted = measurement.final, measurement.predicted_ratio
    if final is None:
        if predicted is not None:
            says = f"{units.speed(predicted)}, from the timings of the sites; it was not timed as a whole."
            yield doc.Paragraph((doc.strong("Predicted: "), says))
        return
    names, labels = _names(report)
    bars = list(map(time_bar, ("keep", "taken"), names, (final.first, final.second), labels))
    if predicted is not None and math.isfinite(predicted):
        time = 1000 * predicted * final.first.median_s
        says = f"{units.milliseconds(time / 1000)} ms"
        beside = (says, doc.muted(f" {units.speed(predicted)}"))
        bars.append(doc.Bar(kind="predicted", name=f"predicted: {says}", label="predicted", says=beside, value=time))
    if not alone(report):
        yield doc.Paragraph(f"{units.versus(final)}, {units.count(final.pairs, 'pair')}.")
    if predicted is not None and 0 < predicted < math.inf:
        yield doc.Paragraph(_against_prediction(predicted, final))
    yield doc.Chart(TIME_TITLE, tuple(bars), TIME_LEGEND, doc.reach(bars))


def kept_blocks(report: Report, measurement: Measurement) -> Iterator[doc.Block]:
    """Yield what was kept against the best that was tried: a version of the model, else the Convs' other forms."""
    if report.status not in ("kept", "inconclusive") or measurement.final is not None:
        return
    if measurement.attempts:
        best = min((attempt.timing for attempt in measurement.attempts), key=lambda timing: timing.ratio)
        bars = [
            time_bar("keep", "kept", best.first, doc.strong("kept")),
            time_bar("other", "best rewritten version", best.second, "best rewritten version"),
        ]
        yield doc.Paragraph(f"The best rewritten version: {units.versus(best)}.")
        yield doc.Chart(TIME_TITLE, tuple(bars), TIME_LEGEND, doc.reach(bars))
        return
    tried = [min(timings, key=lambda timing: timing.ratio) for site in report.sites if (timings := _timings(site))]
    if not tried:
        return
    kept, other = sum(one.first.median_s for one in tried), sum(one.second.median_s for one in tried)
    some = f"{len(tried)} of {len(report.sites)}" if len(tried) < len(report.sites) else str(len(tried))
    what = f"{some} dilated Conv{'' if len(report.sites) == 1 else 's'}"
    both = f"{units.milliseconds(kept)} ms as they are, {units.milliseconds(other)} ms in their fastest other forms"
    yield doc.Paragraph(f"{what}, each with its neighbours, take together {both}.")
    bars = [_sum_bar("keep", "kept", kept), _sum_bar("other", "fastest other forms", other)]
    yield doc.Chart(f"Time of {what}, sum of medians, in milliseconds", tuple(bars), (), doc.reach(bars))


def _timings(site: SiteReport) -> list[Comparison]:
    return [one.timing for one in site.candidates if one.timing is not None and math.isfinite(one.timing.ratio)]


def _sum_bar(kind: str, name: str, seconds: float) -> doc.Bar:
    time = f"{units.milliseconds(seconds)} ms"
    return doc.Bar(
        kind=kind, name=f"{name}: {time}", label=doc.strong(name), says=doc.strong(time), value=1000 * seconds
    )


def _names(report: Report) -> tuple[list[str], Sequence[doc.Inline]]:
    """Return the names of the two models, and what stands beside their bars."""
    names = ["the model", "the model again"] if alone(report) else ["before", "after"]
    if report.after is None or report.command != "bench":
        return names, [doc.strong(name) for name in names]
    names = ["first model", "second model"]
    paths = (units.shorten(units.clean(model.path), NAME_LENGTH) for model in (report.before, report.after))
    return names, [(doc.strong(name), " ", doc.code(path)) for name, path in zip(names, paths, strict=True)]


def _against_prediction(predicted: float, final: Comparison) -> str:
    """Return how far the whole model is from what the timings of the sites let expect."""
    how = "within the interval"
    if not final.low <= predicted <= final.high:
        off = final.ratio / predicted - 1
        how = f"{100 * abs(off):.1f} % {'more' if off > 0 else 'less'} time than predicted"
    both = f"{units.speed(predicted)}; measured: {units.speed(final.ratio)}"
    return f"Predicted from the timings of the sites: {both}: {how}."
