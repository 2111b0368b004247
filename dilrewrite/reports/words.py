"""The sentences, numbers and groups that the report formats for people share; knows neither boxes nor Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from dilrewrite import machine
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.proof.compare import OutputCheck
from dilrewrite.proof.prove import Proof
from dilrewrite.proof.verdict import CaseCheck, Verdict
from dilrewrite.reports.reasons import OUTCOMES
from dilrewrite.reports.report import CandidateReport, ModelReport, Report, SiteReport, inconclusive, unclear
from dilrewrite.runtimes import MEASURED
from dilrewrite.tensorrt.profiles import Profile
from dilrewrite.tensorrt.sidecar import EngineReport, PrecisionReport
from dilrewrite.timing.measurement import Attempt, LayerComparison, LayerTime, Measurement
from dilrewrite.timing.outcome import Outcome
from dilrewrite.timing.stopwatch import CONFIDENCE, MIN_PAIRS, VISIBLE, Comparison, Noise, Timing

UNKNOWN = "?"
"""Stands for a size that is known at run time only."""

NOTHING = "-"
"""Stands for a figure that there is none of."""

INTERVAL = f"{100 * CONFIDENCE:.0f} % interval"
"""What the intervals of ratios are."""

NUMBER = r"(?<![\w.])\d+(?:\.\d+)?(?=x?(?![\w.]*\w))"
"""A number in a sentence, for `re`; digits in a name are none."""

T = TypeVar("T")

# -- text and numbers ------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Return `text` on one line, with what does not print (control characters, direction marks) as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def shorten(text: str, length: int) -> str:
    """Return `text` with its middle left out when it is longer than `length`."""
    if len(text) <= length:
        return text
    kept = length - 3
    return f"{text[: kept - kept // 2]}...{text[len(text) - kept // 2 :]}"


def count(number: int, noun: str) -> str:
    """Return `1 site`, `2 sites`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits; infinities and NaN by name."""
    if value is None:
        return NOTHING
    if value == 0:
        return "0"
    return f"{value:.{digits}g}"


def amount(number: int | None) -> str:
    """Return a large whole number with a decimal prefix: `21.7 M`; `?` when unknown."""
    if number is None:
        return UNKNOWN
    value = float(number)
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            return f"{number}" if not prefix else f"{value:#.3g}".rstrip(".") + f" {prefix}"
        value /= 1000
    return f"{value:.0f} P"


def size(number: int | None) -> str:
    """Return a number of bytes with a binary prefix."""
    if number is None:
        return NOTHING
    value = float(number)
    for prefix in ("", "Ki", "Mi", "Gi"):
        if abs(value) < 1023.5:
            digits = f"{number}" if not prefix else f"{value:.0f}" if value >= 999.5 else f"{value:#.3g}".rstrip(".")
            return f"{digits} {prefix}B"
        value /= 1024
    return f"{value:.2f} TiB"


def percent(share: float | None) -> str:
    """Return a share as a percentage that reads 0 % or 100 % only when it is."""
    if share is None:
        return UNKNOWN
    if not math.isfinite(share) or share in (0, 1):
        return f"{100 * share:.0f} %"
    if 0 < share < 0.0005:
        return "<0.1 %"
    if 0.9995 <= share < 1:
        return ">99.9 %"
    return f"{100 * share:.1f} %"


def change(before: int, after: int) -> str:
    """Return how much a size grew or shrank."""
    if before == after:
        return "0"
    return f"{after - before:+d}" if not before else f"{100 * (after / before - 1):+.1f} %"


def seconds(value: float) -> str:
    """Return a duration in seconds."""
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def milliseconds(value: float) -> str:
    """Return seconds as a number of milliseconds, with 3 significant digits or whole."""
    return _three(1000 * value)


def _three(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def factors(*ratios: float) -> list[str]:
    """Return ratios with 3 significant digits; with 3 decimals where one of them would read as 1 otherwise."""
    close = any(0.99 < ratio < 1.01 for ratio in ratios) or all(0.95 < ratio < 1.05 for ratio in ratios)
    return [f"{ratio:.3f}" if close and ratio < 10 else _three(ratio) for ratio in ratios]


def dims(shape: Iterable[int | None]) -> str:
    """Return `1x3x224x224`, `scalar` without dimension."""
    return "x".join(UNKNOWN if size is None else str(size) for size in shape) or "scalar"


def listed(items: Sequence[str], most: int) -> str:
    """Return the first `most` items and how many more there are."""
    more = len(items) - most
    return ", ".join(items) if more <= 0 else f"{', '.join(items[:most])} and {more} more"


# -- geometry --------------------------------------------------------------------------------------------------------


def _short(values: Sequence[int | None]) -> str:
    """Return one number when all axes agree, otherwise all of them."""
    return dims(values[:1]) if len(set(values)) == 1 else dims(values)


def geometry(conv: ConvGeometry) -> str:
    """Return a Conv in short: `3x3 d12 s1 g1 256->256 28x28 p12`.

    Kernel, dilation, stride, group, channels, input extents, pads (`begin:end` where they differ); what is not the
    usual case follows: batch, element type, quantised. `?` is known at run time only.
    """
    begin, end = conv.pads_begin, conv.pads_end
    if conv.auto_pad == "NOTSET":
        pads = _short(begin) if begin == end else f"{_short(begin)}:{_short(end)}"
    else:
        pads = f" {conv.auto_pad}"
    parts = [
        dims(conv.kernel),
        f"d{_short(conv.dilations)}",
        f"s{_short(conv.strides)}",
        f"g{conv.group}",
        f"{dims([conv.in_channels])}->{dims([conv.out_channels])}",
        dims(conv.extents),
        f"p{pads}" if not pads.startswith(" ") else pads[1:],
    ]
    if conv.batch != 1:
        parts.append(f"n{dims([conv.batch])}")
    if conv.element != "float32":
        parts.append(conv.element)
    if conv.quantized:
        parts.append("quantised")
    return " ".join(parts)


def ran(site: SiteReport, most: int = 2) -> str:
    """Return the input shapes of a Conv whose sizes are known at run time only: `ran on 1x88x320`; may be empty."""
    unknown = None in (site.geometry.batch, site.geometry.in_channels, *site.geometry.extents)
    return f"ran on {listed([dims(shape) for shape in site.ran], most)}" if site.ran and unknown else ""


def at_run_time(site: SiteReport) -> ConvGeometry:
    """Return a site's geometry, with the sizes it ran on most often where the model does not tell them."""
    if not site.ran or len(site.ran[0]) != site.geometry.rank + 2:
        return site.geometry
    batch, channels, *extents = site.ran[0]
    return replace(site.geometry, batch=batch, in_channels=channels, extents=tuple(extents)).explicit()


def work(site: SiteReport) -> tuple[int | None, float | None]:
    """Return a site's multiply-adds and the share of them on padding only, at the sizes it ran on if need be."""
    if site.multiply_adds is not None or not site.ran:
        return site.multiply_adds, site.padding_share
    known = at_run_time(site)
    share = known.data_share()
    return known.multiply_adds(), site.padding_share if share is None else 1 - share


GEOMETRY_KEY = (
    "kernel, d dilation, s stride, g group, channels in->out, input extents, p pads (begin:end where they differ); "
    "n batch when it is not 1; ? is known at run time only"
)
"""How to read `geometry`."""


# -- sites -----------------------------------------------------------------------------------------------------------


def site_name(site: SiteReport) -> str:
    """Return where a site is, and its node's name."""
    return clean(f"{site.where}/{site.name or site.output}")


def form(site: SiteReport) -> str:
    """Return what was done at a site."""
    if site.action != "rewritten":
        return site.action
    left = f" (leaves d{site.max_dilation_left})" if site.max_dilation_left > 1 else ""
    return f"{site.strategy}{left}"


def rounding_ratio(proof: Proof) -> str:
    """Return the rounding error of the new form against the native one's."""
    rounding = proof.rounding
    if rounding is None:
        return NOTHING
    if rounding.native_error == 0 or not math.isfinite(rounding.native_error):
        return f"{figure(rounding.new_error)} (native {figure(rounding.native_error)})"
    ratio = rounding.new_error / rounding.native_error
    return f"{ratio:.1f}x native" if ratio < 1000 else f"{figure(ratio)}x native"


def proof(site: SiteReport) -> str:
    """Return a site's proof in short: `exact (1 shape), rounding 1.2x native`."""
    found = site.proof
    if found is None:
        return "not proved" if site.action == "rewritten" else NOTHING
    if found.failure is not None:
        return f"FAILED: {clean(found.failure)}"
    parts = [f"exact ({count(len(found.shapes), 'shape')})"]
    if found.rounding is not None:
        parts.append(f"rounding {rounding_ratio(found)}")
    if not found.native_ran:
        parts.append("native not run")
    if "reference" in found.backend:
        parts.append(f"on {found.backend}")
    return ", ".join(parts)


def groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return the items in groups of equal key, in the order of their first members."""
    found: dict[Hashable, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return list(found.values())


def share(site: SiteReport) -> str:
    """Return a site's share of the model's time, and the interval in which it is: `38.2 % (37.9 to 38.6 %)`."""
    if site.share is None:
        return NOTHING
    low, high = map(percent, site.share_interval or (site.share, site.share))
    between = f" ({low.removesuffix(' %')} to {high})" if low != high else ""
    return f"{percent(site.share)}{between}"


def assumed(site: SiteReport) -> bool:
    """Say whether a site's estimates stand on assumed sizes."""
    return site.multiply_adds is None and bool(site.candidates)


# -- reasons ---------------------------------------------------------------------------------------------------------


def merged(reasons: Sequence[str], names: Iterable[str] = ()) -> list[tuple[str, int]]:
    """Return reasons that differ in numbers and in `names` only as one sentence each, and how many they are.

    Numbers become a range, names a choice: "tap_prune or im2col, is estimated at 1.2 to 3.4x".
    """
    words = "|".join(re.escape(name) for name in sorted(set(names), key=len, reverse=True))
    pattern = re.compile(f"({NUMBER}" + (rf"|(?<!\w)(?:{words})(?!\w)" if words else "") + ")")
    found: dict[tuple[str, ...], list[list[str]]] = {}
    for reason in reasons:
        parts = pattern.split(reason)
        kinds = ("number" if part[0].isdigit() else "name" for part in parts[1::2])
        found.setdefault((*parts[::2], *kinds), []).append(parts)
    return [
        ("".join(_spread([parts[i] for parts in some]) for i in range(len(some[0]))), len(some))
        for some in found.values()
    ]


def _spread(values: Sequence[str]) -> str:
    distinct = list(dict.fromkeys(values))
    if len(distinct) == 1:
        return distinct[0]
    if all(value[0].isdigit() for value in distinct):
        ordered = sorted(distinct, key=float)
        return f"{ordered[0]} to {ordered[-1]}"
    return f"{', '.join(distinct[:-1])} or {distinct[-1]}"


def strategy_names(report: Report) -> set[str]:
    """Return the strategies that a report speaks of."""
    names = {candidate.strategy for site in report.sites for candidate in site.candidates}
    return names | {refusal.strategy for site in report.sites for refusal in site.refused}


def numberless(text: str) -> str:
    """Return `text` with a placeholder for each number: equal for what `merged` makes one sentence of."""
    return re.sub(NUMBER, "#", text)


def why_kept(report: Report, sites: Iterable[SiteReport] | None = None) -> str:
    """Return why `sites` (all, when `None`) were kept, in one sentence, the most common reason first."""
    sites = report.sites if sites is None else sites
    reasons = [site.reason for site in sites if site.action != "rewritten"]
    found = sorted(merged(reasons, strategy_names(report)), key=lambda pair: -pair[1])
    if len(found) == 1:
        return clean(found[0][0])
    shown = [f"{clean(reason)} ({number} of {len(reasons)})" for reason, number in found[:3]]
    if len(found) > 3:
        shown.append("other reasons below")
    return "; ".join(shown)


# -- the answer ------------------------------------------------------------------------------------------------------


def compared(verdict: Verdict) -> tuple[int, int]:
    """Return how many outputs could be compared, and how many there are (per case)."""
    checks = [check for case in verdict.cases for check in case.outputs]
    return sum(check.comparable for check in checks), len(checks)


def equality(report: Report) -> str:
    """Return in a few words what is known about the models being equal."""
    verdict = report.verdict
    if verdict is None:
        return "not verified"
    if not verdict.passed:
        return "results differ"
    if verdict.level == "none":
        return "UNVERIFIED"
    if verdict.skipped is not None or not verdict.cases:
        reason = f": {shorten(clean(verdict.skipped), 160)}" if verdict.skipped and verdict.level != "sites" else ""
        rewritten = [site for site in report.sites if site.action == "rewritten"]
        proved = bool(rewritten) and all(site.proof is not None and site.proof.passed for site in rewritten)
        return f"{'every form proved, ' if proved else ''}whole model not run{reason}"
    able, total = compared(verdict)
    sets = count(len(verdict.cases), "input set")
    if not total:
        return f"runs on {sets}, no output to compare"
    if not able:
        return f"no output could be compared on {sets}: two runs of the original differ"
    if able < total:
        return f"equal on {sets} in {able} of {total} outputs (the others differ between two runs of the original)"
    return f"equal on {sets}"


def _dilated_convs(report: Report) -> int:
    return len(report.sites) + sum(node.convolution for node in report.skipped)


def identical(report: Report) -> bool:
    """Say whether the output is the input, byte for byte."""
    return report.after is not None and report.after.sha256 == report.before.sha256


def _destination(report: Report) -> str:
    if report.output is None:
        return "dry run: nothing written" if report.options.get("dry_run") else "nothing written"
    return clean(report.output)


def _output(report: Report) -> str:
    """Return what the output is of a model without any rewritten Conv."""
    if report.output is None:
        return _destination(report)
    if identical(report):
        return f"{_destination(report)} is a byte-identical copy"
    same_nodes = report.after is not None and report.after.operators == report.before.operators
    how = "differs in attributes only" if same_nodes else "differs only in how pads are given"
    return f"{_destination(report)} {how}; {equality(report)}"


def outcome(report: Report) -> str:
    """Return the answer in one line."""
    answer, engine = _answer(report), report.engine
    if engine is None or report.command != "optimize":
        return answer
    how = f"{_library(engine)}, {clean(engine.precision.built)}, chosen on {clean(engine.chosen_on)}"
    return f"{answer}; engine {clean(engine.file)} ({how})"


def _answer(report: Report) -> str:
    """Return what came of the model."""
    total, sites = _dilated_convs(report), len(report.sites)
    convs = count(total, "dilated Conv")
    match report.status:
        case "rewritten":
            verb = "rewrote" if report.output is not None else "would rewrite"
            speed = f": {_gained(report.measurement)}" if report.measurement is not None else ""
            rest = _unclear(report)
            return f"{verb} {report.rewritten} of {convs}{speed}{rest}; {equality(report)}; {_destination(report)}"
        case "kept" | "inconclusive":
            kept = f"all {total}" if total > 1 else "the only dilated Conv"
            others = f" ({total - sites} of them cannot be rewritten)" if total > sites else ""
            if report.measurement is None:
                return f"kept {kept}{others}: {why_kept(report)}; {_output(report)}"
            if report.measurement.estimated_s:
                about = f"about {seconds(report.measurement.estimated_s)}{_on(report.measurement)}"
                return f"{convs}{others}: measuring their forms would take {about}; {_destination(report)}"
            if report.status == "inconclusive":
                return f"INCONCLUSIVE, kept {kept}{others}: {_unseen(report, report.measurement)}; {_output(report)}"
            return f"kept {kept}{others}: {_unbeaten(report, report.measurement)}; {_output(report)}"
        case "nothing to rewrite":
            what = "no dilated Conv" if not total else f"none of {convs} can be rewritten"
            tail = _output(report).replace(f"{_destination(report)} ", "the output ", 1)
            return f"nothing to rewrite: {what}; {tail}"
        case "differs" if report.command == "verify":
            after = report.after.path if report.after is not None else "the other model"
            return f"RESULTS DIFFER: {clean(after)} does not compute what {clean(report.before.path)} does"
        case "differs":
            return "RESULTS DIFFER: no model written"
        case "not valid":
            return f"NOT VALID: {FOUND_AFTER}; {equality(report)}; no model written"
        case "dilation left":
            limit = report.options.get("max_dilation", 1)
            above = f" above {limit}" if isinstance(limit, int) and limit > 1 else ""
            return f"DILATION LEFT: {len(report.remaining)} of {convs} keep a dilation{above}; no model written"
        case "equal":
            after = report.after.path if report.after is not None else "the other model"
            alone = f"; {FOUND_AFTER}" if report.verdict is not None and report.verdict.checker_after else ""
            return f"{equality(report)}: {clean(report.before.path)} and {clean(after)}{alone}"
        case "not compared":
            after = report.after.path if report.after is not None else "the other model"
            both = f"{clean(report.before.path)} and {clean(after)}"
            return f"NOT COMPARED: {both} have the same interface; {equality(report)}"
        case "inspected" if not total:
            return f"no dilated Conv in {clean(report.before.path)}"
        case "inspected":
            return f"{convs} in {clean(report.before.path)}{_shares(report)}{_padding(report)}"
        case "measured":
            return _benched(report)
        case "built" if report.engine is not None:
            how = f"{engine(report.engine)} in {seconds(report.engine.build_seconds)}"
            return f"built {_destination(report)}: {how}; {shorten(clean(report.engine.checked), 160)}"
        case _:
            return clean(report.status)


def _padding(report: Report) -> str:
    """Return how much of the work touches padding only, over the sites of known size."""
    known = [
        (multiply_adds, share)
        for multiply_adds, share in map(work, report.sites)
        if multiply_adds is not None and share is not None
    ]
    total = sum(multiply_adds for multiply_adds, _ in known)
    if not total:
        return ""
    share = sum(multiply_adds * share for multiply_adds, share in known) / total
    where = "" if len(known) == len(report.sites) else f" in the {len(known)} of known size"
    return f"; {amount(total)} multiply-adds{where}, {percent(share)} of them on padding only"


def _shares(report: Report) -> str:
    """Return how much of the model's time goes to its dilated Convs, as far as profiled."""
    known = [site.share for site in report.sites if site.share is not None]
    if not known:
        return ""
    some = "" if len(known) == len(report.sites) else f" for {len(known)} of them"
    return f"; {percent(sum(known))} of its time{some}{_on(report.measurement)}"


def _on(measurement: Measurement | None) -> str:
    return "" if measurement is None else f" on {clean(measurement.backend)}"


def _gained(measurement: Measurement) -> str:
    """Return what rewriting gained or lost: timed, predicted, or how long it would take to know."""
    on = _on(measurement)
    if measurement.final is not None:
        return versus(measurement.final, on)
    if measurement.estimated_s:
        return f"measuring would take about {seconds(measurement.estimated_s)}{on}"
    if measurement.predicted_ratio is not None:
        return f"{expected(measurement.predicted_ratio)} expected{on}, not timed as a whole"
    return f"not timed as a whole{on}"


def was_measured(site: SiteReport) -> bool:
    """Say whether a form of the site was timed."""
    return any(candidate.timing is not None for candidate in site.candidates)


def _unbeaten(report: Report, measurement: Measurement) -> str:
    """Return why every site was kept, by what measuring found."""
    timed, untimed = ([site for site in report.sites if was_measured(site) is wanted] for wanted in (True, False))
    if not timed:
        return why_kept(report)
    fresh = measurement.measured or not measurement.recalled
    how = f"measured in {seconds(measurement.spent_s)}" if fresh else "measured earlier, recalled from the cache"
    many = count(len(timed), "site") if not untimed else f"{len(timed)} of {len(report.sites)} sites"
    if measurement.attempts:
        versions = count(len(measurement.attempts), "rewritten version")
        found = f"no rewritten model beats the original{_on(measurement)} ({versions} timed, {many} {how})"
    else:
        what = "the dilated Conv" if len(report.sites) == 1 else "the dilated Convs"
        nothing = "nothing measured" if untimed else "nothing"
        found = f"{nothing} beats {what}{_on(measurement)} ({many} {how})"
    rest = f"; the {'others' if len(untimed) > 1 else 'other'}: {why_kept(report, untimed)}" if untimed else ""
    return f"{found}{f'; {versus(measurement.final)}' if measurement.final is not None else ''}{rest}"


def _unseen(report: Report, measurement: Measurement) -> str:
    """Return why measuring says nothing."""
    noise = max(measurement.form_noise or 0.0, measurement.noise.level if measurement.noise is not None else 0.0)
    at = [f"a noise of {percent(noise)}"] if noise else []
    if machine.crowded(measurement.load, report.environment.cores):
        at.append(f"a load of {figure(measurement.load)} on {count(report.environment.cores, 'core')}")
    number = sum(map(unclear, report.sites))
    where = f" at {number} of {count(len(report.sites), 'site')}" if number else ""
    missed = f"a gain of {100 * VISIBLE:g} % could have been missed{where}{_on(measurement)}"
    return f"{missed}, at {' and '.join(at)}" if at else missed


def _unclear(report: Report) -> str:
    """Return for how many kept sites measuring says nothing; empty where it did not decide, or says something."""
    asked = any(report.options.get(name) for name in ("strategy", "eliminate", "decisions"))
    if asked or not inconclusive(report.sites, report.measurement, report.environment.cores):
        return ""
    number = sum(map(unclear, report.sites))
    return f"; inconclusive for {count(number, 'other')}" if number else "; inconclusive for what else may be gained"


def next_steps(report: Report) -> list[str]:
    """Return what a user may do who wants more, most promising first."""
    found, chosen = report.measurement, report.status in ("rewritten", "kept", "inconclusive")
    if found is None:
        unmeasured = chosen and report.options.get("budget_s") == 0
        return ["nothing was measured: without --budget 0 every form is timed"] if unmeasured else []
    if found.estimated_s is not None:
        return []
    return [
        *(_to_measure(report, found) if chosen else []),
        *_sizes(found),
        *(_elsewhere(report, found) if chosen else []),
    ]


def _to_measure(report: Report, found: Measurement) -> Iterator[str]:
    if inconclusive(report.sites, found, report.environment.cores):
        yield "measure again on a quieter machine, with a larger --budget, or with fewer --threads than cores"
    untimed = [site for site in report.sites if any(form.outcome is Outcome.NO_TIME for form in site.candidates)]
    if untimed:
        about = f"--budget {math.ceil(found.needed_s)} would do, about" if found.needed_s else "give a larger --budget"
        which = f"{len(untimed)} of {count(len(report.sites), 'site')}"
        yield f"{which} {'was' if len(untimed) == 1 else 'were'} not measured to the end: {about}"


def _sizes(found: Measurement) -> Iterator[str]:
    if found.made_up:
        sizes = ", ".join(f"{clean(name)}:{dims(shape)}" for name, shape in found.inputs.items())
        yield f"the model's sizes are open, and the tool chose {sizes}: give yours with --shape"


def _elsewhere(report: Report, found: Measurement) -> Iterator[str]:
    here = f"the choice holds for {clean(found.backend)} on this machine"
    if found.others:
        yield f"{here}; also ready here: {listed([clean(name) for name in found.others], 4)} (--backend NAME)"
    elif report.status != "rewritten":
        yield f"{here}: measure where the model will run; `dilrewrite backends` lists the runtimes"


def doubts(report: Report) -> list[str]:
    """Return what makes the timings doubtful."""
    found = report.measurement
    if found is None:
        return []
    load = []
    if machine.crowded(found.load, report.environment.cores) and found.measured:
        cores = count(report.environment.cores, "core")
        load = [f"before measuring began, {figure(found.load)} processes wanted a core, and there are {cores}"]
    return [*load, *map(clean, found.doubts)]


def said(form: CandidateReport) -> str:
    """Return what measuring said of a form, in words; empty when nothing was to be measured."""
    if form.outcome is None:
        return ""
    more = f"{form.timing.ratio:.2f}x" if form.timing is not None else clean(form.cause)
    return (" by " if form.outcome is Outcome.LOST else ": ").join(filter(None, (OUTCOMES[form.outcome], more)))


def _benched(report: Report) -> str:
    """Return what `bench` found: two models against each other, or the time of one."""
    found, before = report.measurement, clean(report.before.path)
    final = found.final if found is not None else None
    after = clean(report.after.path) if report.after is not None else None
    if found is None or final is None:
        return f"not timed: {before}{f' and {after}' if after is not None else ''}{_on(found)}"
    if after is not None:
        if final.low <= 1 <= final.high:
            return f"no difference beyond noise between {before} and {after}{_on(found)}: {_same(final)}"
        speed, times = _different(final)
        return f"{after} is {speed} than {before}{_on(found)} ({times})"
    own = own_noise(report)
    noise = f"; noise {percent(own.level)}" if own is not None else ""
    return (
        f"{before} takes {milliseconds(final.first.median_s)} ms{_on(found)} "
        f"(20 to 80 % of {count(final.first.runs, 'run')}: {spread(final.first)} ms{noise})"
    )


# -- measuring -------------------------------------------------------------------------------------------------------


def own_noise(report: Report) -> Noise | None:
    """Return how the original ran against itself; what `bench` found of a single model is just that."""
    found = report.measurement
    if found is None or found.noise is not None:
        return found.noise if found is not None else None
    final = found.final
    if report.command != "bench" or report.after is not None or final is None:
        return None
    return Noise(ratio=final.ratio, low=final.low, high=final.high, pairs=final.pairs)


def spread(found: Timing) -> str:
    """Return the 20th to the 80th percentile in milliseconds."""
    return f"{milliseconds(found.p20_s)} to {milliseconds(found.p80_s)}"


def ratio_of(found: Comparison) -> tuple[str, str]:
    """Return the ratio second / first, and its interval; too few pairs for one are told."""
    centre, low, high = factors(found.ratio, found.low, found.high)
    return centre, f"{low} to {high}{f' ({found.pairs} pairs)' if found.pairs < MIN_PAIRS else ''}"


def difference(found: Comparison) -> str:
    """Return a comparison in one word or a few: `1.21x faster`, `no difference`."""
    return "no difference" if found.low <= 1 <= found.high else _different(found)[0]


def versus(found: Comparison, on: str = "") -> str:
    """Return the second model against the first: `1.21x faster (14.2 ms -> 11.7 ms, 95 % interval 1.18 to 1.24x)`.

    `on` follows what was found.
    """
    if found.low <= 1 <= found.high:
        return f"no difference beyond the interval{on}: {_same(found)}"
    speed, times = _different(found)
    return f"{speed}{on} ({times})"


def _different(found: Comparison) -> tuple[str, str]:
    """Return `1.21x faster`, and the times with the interval of that factor, whose ends swap for a speed-up."""
    ratios = (found.ratio, found.low, found.high)
    if found.high < 1:
        ratios = (_inverse(found.ratio), _inverse(found.high), _inverse(found.low))
    factor, low, high = factors(*ratios)
    return f"{factor}x {'faster' if found.high < 1 else 'slower'}", f"{_times(found)}, {INTERVAL} {low} to {high}x"


def _same(found: Comparison) -> str:
    centre, interval = ratio_of(found)
    return f"{centre}x the time ({_times(found)}, {INTERVAL} {interval}x)"


def _times(found: Comparison) -> str:
    return f"{milliseconds(found.first.median_s)} ms -> {milliseconds(found.second.median_s)} ms"


def _inverse(value: float) -> float:
    return 1 / value if value else math.inf


def expected(predicted: float) -> str:
    """Return a predicted ratio in words: `1.18x faster`."""
    (factor,) = factors(predicted if predicted > 1 else _inverse(predicted))
    return "no difference" if factor == "1.000" else f"{factor}x {'slower' if predicted > 1 else 'faster'}"


def gain(share: float | None) -> str:
    """Return a share of the model's time with its sign, below 0 for a loss."""
    if share is None:
        return NOTHING
    return "about 0" if abs(share) < 0.0005 else f"{100 * share:+.1f} %"


def summed(shares: Iterable[float | None]) -> float | None:
    """Return the sum of what is known; `None` when nothing is."""
    known = [share for share in shares if share is not None]
    return sum(known) if known else None


MODES = {
    "interleaved": "interleaved (both models loaded, runs in turn)",
    "blocks": "in blocks (one model loaded at a time)",
}
"""What the modes of a comparison are."""


def measuring(report: Report) -> list[tuple[str, str]]:
    """Return how timings were taken and what they say of the whole model, as (what, text) rows."""
    found = report.measurement
    if found is None:
        return []
    versions = "".join(f", {clean(name)} {clean(version)}" for name, version in found.versions.items())
    settings = ", ".join(f"{clean(name)} {clean(value)}" for name, value in found.settings.items())
    shapes = ", ".join(f"{clean(name)} {dims(shape)}" for name, shape in found.inputs.items())
    rows = [
        ("runtime", f"{clean(found.backend)}{versions}"),
        ("device", clean(found.device)),
        ("settings", settings),
        ("inputs", shapes or ("none" if found.estimated_s is None else "")),
        ("time", _budget(found, limited=report.command != "inspect")),
        ("timings", _timings(found)),
    ]
    if found.profiled_s is not None:
        rows.append(("profile", f"a run of the original under the profiler takes {milliseconds(found.profiled_s)} ms"))
    if (noise := own_noise(report)) is not None:
        itself = "the model" if report.command == "bench" else "the original"
        rows.append(("noise", f"{percent(noise.level)}: {itself} against itself takes {_noise(noise)}"))
    if modes := _modes(report, found):
        rows.append(("mode", modes))
    if found.load is not None:
        cores = count(report.environment.cores, "core")
        rows.append(("load", f"{figure(found.load)} processes wanted a core in the minute before, on {cores}"))
    if found.predicted_ratio is not None:
        rows.append(("predicted", f"{expected(found.predicted_ratio)}, from the timings of the sites"))
    if found.final is not None and (report.command != "bench" or report.after is not None):
        final = found.final
        both = f"{spread(final.first)} ms -> {spread(final.second)} ms"
        rows.append(("whole model", f"{versus(final)}; {count(final.pairs, 'pair')}, 20 to 80 % of them {both}"))
    rows += [
        ("slowest runs", _slowest_runs(report, found)),
        ("first run", _first_run(found)),
        ("GPU before/after", _states(found)),
        ("source", "" if found.source == MEASURED else f"{clean(found.source)}: NOT MEASURED"),
    ]
    return [(what, text) for what, text in rows if text]


def _noise(found: Noise) -> str:
    centre, low, high = factors(found.ratio, found.low, found.high)
    return f"{centre}x the time ({INTERVAL} {low} to {high}x, {count(found.pairs, 'pair')})"


def _slowest_runs(report: Report, found: Measurement) -> str:
    """Return the 99th percentile of the whole model, and how much its runs vary; may be empty."""
    if found.final is None or found.final.first.p99_s <= 0:
        return ""
    both = [found.final.first, found.final.second]
    both = both[:1] if report.command == "bench" and report.after is None else both
    slowest = " -> ".join(f"{milliseconds(timing.p99_s)} ms" for timing in both)
    varies = " -> ".join(percent(timing.variation) for timing in both)
    return f"99th percentile {slowest}; coefficient of variation {varies}"


def _first_run(found: Measurement) -> str:
    """Return how long the first run of the whole models took; may be empty."""
    times = [seconds(found.first_run_s[key]) for key in ("before", "after") if key in found.first_run_s]
    return f"{' -> '.join(times)}, with loading and all that is done once" if times else ""


READINGS = {
    "sm_clock_mhz": ("", " MHz"),
    "memory_clock_mhz": ("memory ", " MHz"),
    "power_w": ("", " W"),
    "temperature_c": ("", " °C"),
}
"""What stands before and after a reading of a device."""

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


def _states(found: Measurement) -> str:
    """Return a device's readings before and after: `1980/1965 MHz, 231/240 W, 41/47 °C`; may be empty."""
    both = (found.state_before, found.state_after)
    parts = []
    for name, (what, unit) in READINGS.items():
        if any(name in state for state in both):
            values = "/".join(f"{state[name]:.0f}" if name in state else NOTHING for state in both)
            parts.append(f"{what}{values}{unit}")
    reasons = [int(state.get("throttle_reasons", 0)) for state in both]
    names = [name for bit, name in HELD_BACK.items() if any(bits & bit for bits in reasons)]
    return ", ".join([*parts, *([f"held back by {' and '.join(names)}"] if names else [])])


def _modes(report: Report, found: Measurement) -> str:
    """Return in which order models ran, of the whole model and the sites apart where they differ; may be empty."""
    whole = [found.final, *(attempt.timing for attempt in found.attempts)]
    forms = [candidate.timing for site in report.sites for candidate in site.candidates]
    of_whole, of_forms = (
        " or ".join(dict.fromkeys(MODES[timing.mode] for timing in timings if timing is not None))
        for timings in (whole, forms)
    )
    if of_whole and of_forms and of_whole != of_forms:
        return f"the whole model {of_whole}; the forms {of_forms}"
    return of_whole or of_forms


def _budget(found: Measurement, *, limited: bool) -> str:
    """Return how long measuring took, or would take, and why it took longer than it should."""
    limit = f"budget of {seconds(found.budget_s)}" if limited and 0 < found.budget_s < math.inf else ""
    if found.estimated_s == 0:
        return "nothing to measure"
    if found.estimated_s is not None:
        return f"would take about {seconds(found.estimated_s)}{f', with a {limit}' if limit else ''}"
    took = f"took {seconds(found.spent_s)}"
    whole = (
        f"what is always done, the profile and the least confirmation, took {seconds(found.floor_s)}"
        if found.floor_s
        else ""
    )
    if limit and found.spent_s > found.budget_s:
        return f"{took}, more than the {limit}{f': {whole}' if whole else ''}"
    return f"{took}{f', with a {limit}' if limit else ''}{f' ({whole})' if whole else ''}"


def _timings(found: Measurement) -> str:
    """Return how many timings there are, and where from; may be empty."""
    if not found.measured + found.recalled:
        return ""
    return f"{found.measured} taken now, {found.recalled} recalled from the cache"


def attempt(found: Attempt) -> tuple[str, str, str, str, str]:
    """Return (original ms, version ms, ratio, interval, result) of a version of the whole model."""
    timing = found.timing
    return (
        milliseconds(timing.first.median_s),
        milliseconds(timing.second.median_s),
        *ratio_of(timing),
        difference(timing),
    )


def measured_together(report: Report) -> list[list[SiteReport]]:
    """Return the sites with something to say of their forms, in groups that were measured as one."""
    told = [s for s in report.sites if any(c.timing is not None or c.outcome for c in s.candidates)]
    return groups(told, lambda site: (site.question, geometry(site.geometry), site.ran, site.candidates))


def without_time(site: SiteReport) -> list[list[CandidateReport]]:
    """Return the forms that measuring says something of but has no time for, in groups of equal outcome."""
    found = [candidate for candidate in site.candidates if candidate.timing is None and candidate.outcome]
    return groups(found, said)


def native(site: SiteReport) -> Timing | None:
    """Return the time of the Conv as it is, from the comparison with the most pairs."""
    found = [candidate.timing for candidate in site.candidates if candidate.timing is not None]
    return max(found, key=lambda comparison: comparison.pairs).first if found else None


# -- layers ----------------------------------------------------------------------------------------------------------

SLOWEST = 15
"""How many layers of an engine are shown, the slowest."""

ROLES = {
    "convolution": "convolutions",
    "layout": "layout of the rewrite (pads, slices, reshapes)",
    "other": "all others",
}
"""What the roles of layers are."""

ENGINES = ("original", "rewritten")
"""Whose layers are compared."""


def layers_how(found: LayerComparison) -> str:
    """Return how the times of layers were taken, and what they are good for."""
    runs = count(found.runs, "profiled run")
    return f"Medians of {runs}. Profiling slows every layer down: these times are shares of a run, and no timings."


def layer_sums(found: LayerComparison) -> list[tuple[str, ...]]:
    """Return (what, original ms, its share, rewritten ms, its share, difference in ms) by role, and of all layers."""
    sums = {what: (found.seconds(False, role), found.seconds(True, role)) for role, what in ROLES.items()}
    whole = sum(first for first, _ in sums.values()), sum(second for _, second in sums.values())
    return [_layer_sum(what, *ours, *whole) for what, ours in {**sums, "all layers": whole}.items()]


def _layer_sum(what: str, first: float, second: float, first_whole: float, second_whole: float) -> tuple[str, ...]:
    more = second - first
    return (
        what,
        milliseconds(first),
        _share_of(first, first_whole),
        milliseconds(second),
        _share_of(second, second_whole),
        f"{'+' if more > 0 else ''}{milliseconds(more)}",
    )


def slowest_title(name: str, layers: Sequence[LayerTime]) -> str:
    """Return what the slowest layers are the slowest of."""
    return f"slowest layers of the {name} model, of {len(layers)} in all"


def slowest_layers(layers: Sequence[LayerTime], most: int = SLOWEST) -> list[tuple[LayerTime, str, str]]:
    """Return the layers that take longest, each with its milliseconds and its share of all layers' time."""
    whole = sum(layer.seconds for layer in layers)
    found = sorted(layers, key=lambda layer: -layer.seconds)[:most]
    return [(layer, milliseconds(layer.seconds), _share_of(layer.seconds, whole)) for layer in found]


def _share_of(part: float, whole: float) -> str:
    return percent(part / whole) if whole > 0 else NOTHING


# -- engines ---------------------------------------------------------------------------------------------------------

COMMAND = "TensorRT's command"
ENGINE_DIGEST, ONNX_DIGEST, BUILT_DIGEST = "engine's SHA-256", "ONNX file's SHA-256", "SHA-256 as built"
VERBATIM = (COMMAND, ENGINE_DIGEST, ONNX_DIGEST, BUILT_DIGEST)
"""What is in `engine_rows` for programs rather than people."""


def engine(found: EngineReport) -> str:
    """Return an engine in short: `tensorrt-rtx 1.7.1.116, fp16 (19 convolutions in Half), 34 layers, 1.31 MiB`."""
    reads = convolved(found.precision)
    precision = f"{clean(found.precision.built)}{f' ({reads})' if reads else ''}"
    return f"{_library(found)}, {precision}, {count(len(found.layers), 'layer')}, {size(found.bytes)}"


def _library(found: EngineReport) -> str:
    return clean(f"{found.flavour} {found.version}")


def convolved(found: PrecisionReport) -> str:
    """Return what an engine's convolutions read: `19 convolutions in Half`; empty where it has none."""
    total, reads = sum(found.convolutions.values()), _reads(found)
    if len(found.convolutions) == 1:
        return reads.replace(" in ", f" {'convolution' if total == 1 else 'convolutions'} in ", 1)
    return f"{count(total, 'convolution')}: {reads}" if reads else ""


def _reads(found: PrecisionReport) -> str:
    return clean(", ".join(f"{number} in {kind}" for kind, number in found.convolutions.items()))


def engine_rows(found: EngineReport, warnings: int | None = None) -> list[tuple[str, str]]:
    """Return all that is known of an engine but its list of layers, as (what, text) rows; so many `warnings`."""
    asked = found.precision
    types = "converted from float32" if asked.converted else "the model's own types"
    how = f"as asked, {types}" if asked.asked == asked.built else types
    on = [name for name, value in found.flags.items() if value is True]
    limits = [f"{name} {_limit(value)}" for name, value in found.flags.items() if not isinstance(value, bool)]
    memory = [f"{name.removesuffix('_bytes').replace('_', ' ')} {size(n)}" for name, n in found.memory.items()]
    kinds = sorted(found.layer_types.items(), key=lambda item: -item[1])
    layers = ", ".join(f"{number} {kind}" for kind, number in kinds)
    told = found.warnings[:warnings]
    rows = [
        ("file", f"{found.file}, {size(found.bytes)} ({found.bytes} bytes)"),
        ("built by", f"{_library(found)}, dilrewrite {found.dilrewrite}, in {seconds(found.build_seconds)}"),
        ("precision", f"{asked.built}: {how}"),
        ("convolutions", _reads(asked) or "none"),
        ("changed for it", "; ".join(asked.changes)),
        ("conversion", _fidelity(asked)),
        ("forms chosen on", found.chosen_on),
        ("checked", found.checked),
        ("GPU", found.device or "none to run it on"),
        ("inputs", "; ".join(f"{tensor.name} {tensor.datatype} {_open(tensor.shape)}" for tensor in found.inputs)),
        ("outputs", "; ".join(f"{tensor.name} {tensor.datatype} {_open(tensor.shape)}" for tensor in found.outputs)),
        ("profile", "; ".join(f"{name} {_profile(sizes)}" for name, sizes in found.profiles.items())),
        ("flags", f"{', '.join(on)} on" if on else "none on"),
        ("limits", ", ".join(limits)),
        ("memory", ", ".join(memory)),
        ("layers", f"{len(found.layers)}{f': {layers}' if layers else ''} (from the {found.layers_from})"),
        *(("warning", text) for text in told),
        ("warnings", f"{len(found.warnings) - len(told)} more" if len(told) < len(found.warnings) else ""),
        ("ONNX file", found.onnx.file or "none: a model in memory"),
        (ONNX_DIGEST, found.onnx.sha256),
        (BUILT_DIGEST, found.onnx.built_sha256),
        (ENGINE_DIGEST, found.sha256),
        (COMMAND, found.trtexec),
    ]
    return [(what, clean(text)) for what, text in rows if text]


def _fidelity(found: PrecisionReport) -> str:
    """Return how far a conversion is from float32; may be empty."""
    fidelity = found.fidelity
    if fidelity is None:
        return ""
    allowed = f"at most {figure(fidelity.bound)} is allowed"
    if fidelity.difference is None:
        return f"{fidelity.reason or 'not compared'}; {allowed}"
    shapes = ", ".join(f"{name} {dims(shape)}" for name, shape in fidelity.shapes.items())
    on = f", on {shapes}" if shapes else ""
    return f"differs from float32 by {figure(fidelity.difference)} of the outputs' size, {allowed}{on}"


def _profile(found: Profile) -> str:
    if found.min == found.opt == found.max:
        return f"{dims(found.opt)} only"
    return f"min {dims(found.min)}, opt {dims(found.opt)}, max {dims(found.max)}"


def _open(shape: Iterable[int]) -> str:
    return dims(None if extent < 0 else extent for extent in shape)


def _limit(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


# -- models and verdicts ---------------------------------------------------------------------------------------------


def is_engine(found: ModelReport) -> bool:
    """Say whether it is an engine, which is of no version of ONNX."""
    return not found.ir_version


def model(report: ModelReport) -> str:
    """Return a model, or an engine, in one line."""
    opsets = ", ".join(
        f"opset {number}" if domain == "ai.onnx" else f"{clean(domain)} {number}"
        for domain, number in report.opsets.items()
    )
    parts = [count(report.nodes, "node"), opsets or "no opset", f"IR {report.ir_version}", size(report.bytes)]
    if is_engine(report):
        parts = [count(report.nodes, "layer"), size(report.bytes)]
    if report.producer:
        parts.append(f"by {clean(report.producer)}")
    return f"{clean(report.path)}: {', '.join(parts)}"


def model_rows(before: ModelReport, after: ModelReport, *, everything: bool = False) -> list[tuple[str, str, str, str]]:
    """Return (what, before, after, change) rows; operators that did not change only when `everything`."""
    return [*figure_rows(before, after), *operator_rows(before, after, everything=everything)]


def figure_rows(before: ModelReport, after: ModelReport) -> list[tuple[str, str, str, str]]:
    """Return (what, before, after, change) rows of two models, or two engines: of one of each there are none."""
    if is_engine(before) != is_engine(after):
        return []
    rows = [
        ("nodes", str(before.nodes), str(after.nodes), f"{after.nodes - before.nodes:+d}"),
        ("dilated Convs", str(before.dilated), str(after.dilated), f"{after.dilated - before.dilated:+d}"),
        ("file size", size(before.bytes), size(after.bytes), change(before.bytes, after.bytes)),
        (
            "peak memory",
            size(before.peak_bytes),
            size(after.peak_bytes),
            NOTHING
            if before.peak_bytes is None or after.peak_bytes is None
            else change(before.peak_bytes, after.peak_bytes),
        ),
    ]
    if is_engine(before):
        rows = [("layers", *rows[0][1:]), rows[2]]
    return [_unchanged(row) for row in rows]


def operator_rows(
    before: ModelReport, after: ModelReport, *, everything: bool = False
) -> list[tuple[str, str, str, str]]:
    """Return (operator, before, after, change) rows, of engines by type of layer; unchanged ones when `everything`."""
    if is_engine(before) != is_engine(after):
        return []
    rows = []
    for operator in sorted({*before.operators, *after.operators}):
        old, new = before.operators.get(operator, 0), after.operators.get(operator, 0)
        if everything or old != new:
            rows.append((clean(operator), str(old), str(new), f"{new - old:+d}"))
    return [_unchanged(row) for row in rows]


def _unchanged(row: tuple[str, str, str, str]) -> tuple[str, str, str, str]:
    return (*row[:3], "0" if row[3] in ("+0", "+0.0 %", "-0.0 %") else row[3])


def case_name(case: CaseCheck) -> str:
    """Return a set of inputs in one line."""
    shapes = ", ".join(f"{clean(name)} {dims(shape)}" for name, shape in case.shapes.items())
    return f"{clean(case.name)}: {shapes or 'no input'}"


def one_minus(cosine: float | None) -> str:
    """Return a cosine's distance from 1, which its first digits do not show."""
    return NOTHING if cosine is None else figure(1 - cosine)


def nonfinite(pair: tuple[int, int]) -> str:
    """Return a count before and after."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}->{pair[1]}"


def agreement(check: OutputCheck) -> str:
    """Return the share of positions with the same largest channel."""
    return NOTHING if check.argmax_agreement is None else percent(check.argmax_agreement)


def result(check: OutputCheck) -> str:
    """Return what was decided about one output."""
    word = "not compared" if not check.comparable else "equal" if check.passed else "DIFFERS"
    return f"{word}: {clean(check.note)}" if check.note else word


FOUND_AFTER = "the ONNX checker finds errors that the original does not have"
"""What stands over `Verdict.checker_after`."""


def how_verified(verdict: Verdict) -> list[str]:
    """Return how the comparison was made, a sentence each."""
    lines = []
    if verdict.cases:
        on = "on" if verdict.optimized else "off (their fusions move quantised values by a quantum)"
        lines.append(f"ran on {clean(verdict.backend)}, graph optimisations {on}")
        noise = f", or the model's own noise ({'; '.join(map(clean, verdict.noise_sources))})"
        within = f"|difference| <= {clean(verdict.tolerance)}" if verdict.tolerance else "no tolerance"
        lines.append(f"allowed: {within}{noise if verdict.noise_sources else ''}")
    return lines


def notes(report: Report) -> list[str]:
    """Return what a reader should know besides the figures, most important first."""
    found = []
    verdict = report.verdict
    if verdict is not None:
        if verdict.level == "none":
            found.append("UNVERIFIED: nothing was proved or run (--verify none)")
        elif verdict.skipped is not None:
            found.append(f"whole models were not compared: {clean(verdict.skipped)}")
        if verdict.deterministic is False:
            names = {c.name: None for case in verdict.cases for c in case.outputs if not c.comparable}
            which = f": {', '.join(map(clean, names))}" if names else ""
            found.append(f"the original is not deterministic; outputs that differ between two runs of it{which}")
        found += [clean(note) for note in verdict.notes]
    if any(assumed(site) for site in report.sites):
        found.append("some sizes are known at run time only: estimates there stand on typical sizes")
    found += [clean(note) for note in report.notes]
    if verdict is not None:
        found += [f"as delivered, the original has this finding: {clean(text)}" for text in verdict.checker_before]
    return list(dict.fromkeys(found))


def normalised(dilations: Sequence[int] | None, pads: Sequence[int] | None) -> str:
    """Return what changed in a Conv's attributes."""
    parts = []
    if dilations is not None:
        parts.append(f"dilations become {list(dilations)} (an axis with kernel 1 has none)")
    if pads is not None:
        parts.append(f"auto_pad becomes pads {list(pads)}")
    return "; ".join(parts) or "nothing"


def environment(report: Report) -> str:
    """Return what ran where, in one line."""
    here = report.environment
    threads = "default threads" if here.threads is None else count(here.threads, "thread")
    packages = ", ".join(f"{clean(name)} {clean(version)}" for name, version in here.packages.items())
    parts = [f"dilrewrite {here.dilrewrite}, Python {here.python}"]
    parts += [packages] if packages else []
    parts += [f"{clean(here.processor) or 'unknown processor'}, {count(here.cores, 'core')}, {threads}"]
    return "; ".join([*parts, clean(here.system)])


def times(spent: Mapping[str, float]) -> str:
    """Return the seconds per step in one line."""
    if not spent:
        return "not measured"
    steps = ", ".join(f"{clean(step)} {seconds(value)}" for step, value in spent.items())
    return f"{steps}; together {seconds(sum(spent.values()))}"
