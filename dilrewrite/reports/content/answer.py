"""The answer in one line, what makes it doubtful, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from dilrewrite import machine
from dilrewrite.errors import FAULTS
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.proof.verdict import Verdict
from dilrewrite.reports import units
from dilrewrite.reports.content import engine as engines
from dilrewrite.reports.content import folds, target
from dilrewrite.reports.content.counted import counted
from dilrewrite.reports.content.models import identical
from dilrewrite.reports.content.regions import taken, within
from dilrewrite.reports.content.sites import in_floats, was_measured, work
from dilrewrite.reports.content.timing import on, own_noise
from dilrewrite.reports.report import RegionReport, Report, SiteReport, inconclusive, loudest, open_regions, unclear
from dilrewrite.reports.units import clean, count, milliseconds, percent, seconds
from dilrewrite.runtimes import TimeKind
from dilrewrite.timing.measurement import Measurement
from dilrewrite.timing.outcome import Outcome
from dilrewrite.timing.speed import SAME
from dilrewrite.timing.stopwatch import VISIBLE, Comparison

TONES = {
    **dict.fromkeys(("rewritten", "kept", "nothing to rewrite", "equal", "built"), "good"),
    **dict.fromkeys(("inconclusive", "dilation left", "does not fit", "not compared"), "warn"),
    **dict.fromkeys(("differs", "not valid"), "bad"),
}
"""The tone of a status; the others have none."""

FOUND_AFTER = "the ONNX checker finds errors that the original does not have"  # it stands over `Verdict.checker_after`
CHOSEN = ("rewritten", "kept", "inconclusive")  # statuses of a model whose sites were looked at one by one


def tone(report: Report) -> str:
    """Return the tone of the answer; a slower model is nothing to be glad of."""
    final = report.measurement.final if report.measurement is not None else None
    slower = report.status == "rewritten" and final is not None and final.slower
    return "warn" if slower else TONES.get(report.status, "")


def why_kept(report: Report, sites: Iterable[SiteReport] | None = None) -> str:
    """Return why `sites` (all, when `None`) were kept, in one sentence, the most common reason first."""
    reasons = [site.reason for site in (report.sites if sites is None else sites) if site.action != "rewritten"]
    names = {one.strategy for site in report.sites for one in site.candidates}
    names |= {one.strategy for site in report.sites for one in site.refused}
    ordered = sorted(units.merged(reasons, names), key=lambda pair: -pair[1])
    if len(ordered) == 1:
        return ordered[0][0]
    shown = [f"{reason} ({number} of {len(reasons)})" for reason, number in ordered[:3]]
    return units.joined(*shown, "other reasons below" if len(ordered) > 3 else "", by="; ")


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
        told = verdict.skipped if verdict.level != "sites" else None
        reason = f": {units.shorten(clean(told), 160)}" if told else ""
        rewritten: list[SiteReport | RegionReport] = [one for one in report.regions if one.action == "rewritten"]
        rewritten += [site for site in report.sites if site.action == "rewritten" and site.region is None]
        proved = bool(rewritten) and all(one.proof is not None and one.proof.passed for one in rewritten)
        return f"{'every form proved, ' if proved else ''}whole model not run{reason}"
    able, total = compared(verdict)
    sets, equal = count(len(verdict.cases), "input set"), f"equal{_within(report)}"
    if not total:
        return f"runs on {sets}, no output to compare"
    if not able:
        return f"no output could be compared on {sets}: two runs of the original differ"
    if able < total:
        return f"{equal} on {sets} in {able} of {total} outputs (the others differ between two runs of the original)"
    return f"{equal} on {sets}"


def _within(report: Report) -> str:
    """Return within what models are equal, where a form computes integers in float32: ` within one quantum`."""
    errors = in_floats(report)
    if not errors:
        return ""
    return " within one quantum" if all(error.quantum for error in errors) else " within the rounding of integer sums"


def _destination(report: Report) -> str:
    return report.output or ("dry run: nothing written" if report.options.get("dry_run") else "no file written")


def _output(report: Report, name: str = "") -> str:
    """Return what the output (called `name`) is of a model without any rewritten Conv."""
    if report.output is None or report.rewritten:
        return _destination(report)
    name = name or report.output
    if identical(report):
        return f"{name} is a byte-identical copy"
    same_nodes = report.after is not None and report.after.operators == report.before.operators
    how = "differs in attributes only" if same_nodes else "differs only in how pads are given"
    return f"{name} {how}; {equality(report)}"


# -- the answer ------------------------------------------------------------------------------------------------------


def verdict(report: Report) -> str:
    """Return the answer for a screen, where paths, intervals and most reasons stand in rows of their own."""
    report = _without_folders(report)
    nothing = "; dry run: nothing written" if report.options.get("dry_run") else ""
    match "" if folds.told(report) else report.status:
        case "rewritten":
            return clean(f"{_rewrote(report, brief=True)}; {equality(report)}{nothing}")
        case "kept" | "inconclusive":
            return clean(f"{_kept(report, _convs(report), brief=True)}{nothing}")
        case "measured":
            return clean(_benched(report, brief=True))
        case "inspected":
            convs = count(_convs(report), "dilated Conv") if _convs(report) else "no dilated Conv"
            return clean(f"{convs} in {report.before.path}{time_of_convs(report)}{_on_target(report)}")
        case "built" if report.engine is not None:
            return clean(f"built {engines.short(report.engine)} in {seconds(report.engine.build_seconds)}")
        case _:
            return clean(_answer(report))


def answer(report: Report) -> str:
    """Return the answer in one line."""
    text, engine = _answer(report), report.engine
    if engine is not None and report.command == "optimize":
        how = f"{engines.library(engine)}, {engine.precision.built}, chosen on {engine.chosen_on}"
        text = f"{text}; engine {engine.file} ({how})"
    return counted(report, clean(text))


def _without_folders(report: Report) -> Report:
    """Return the report with short names for the models that are compared: the rows of a screen have their paths."""
    both = [model for model in (report.before, report.after) if model is not None]
    if report.command not in ("bench", "verify", "inspect"):
        return report
    names = [Path(model.path).name for model in both]
    if len(set(names)) < len(names):
        names = ["the first model", "the second model"]
    before, *after = (replace(model, path=name) for model, name in zip(both, names, strict=True))
    return replace(report, before=before, after=after[0] if after else None)


def _convs(report: Report) -> int:
    """Return how many dilated convolutions there are, with those that are never rewritten."""
    return len(report.sites) + sum(node.convolution for node in report.skipped)


def _noun(report: Report) -> str:
    """Return what is counted: Convs, and poolings where they are to be rewritten."""
    pools = any(isinstance(site.geometry, PoolGeometry) for site in report.sites)
    folded = sum(site.sandwich for site in report.sites)
    if folded and folded == _convs(report):
        return "sandwich site"
    return "dilated operator" if pools or folded else "dilated Conv"


def _on_target(report: Report) -> str:
    """Return how the target takes the model, after a semicolon."""
    return f"; {target.summary(report.target)}" if report.target is not None else ""


def _rewrote(report: Report, *, brief: bool = False) -> str:
    """Return what was rewritten, and what that gained."""
    verb = "would rewrite" if report.options.get("dry_run") else "rewrote"
    speed = f": {_gained(report.measurement, brief=brief)}" if report.measurement is not None else ""
    what = f"{report.rewritten} of {count(_convs(report), _noun(report))}{within(report)}"
    if not report.rewritten and taken(report):
        what = f"{within(report).removeprefix(' in ')}, without dilation"
    return f"{verb} {what}{speed}{_unclear(report)}"


def _answer(report: Report) -> str:
    if folds.told(report):
        return folds.answer(report, equality(report), _output(report, "the output"))
    total = _convs(report)
    convs, before = count(total, _noun(report)), report.before.path
    after = report.after.path if report.after is not None else "the other model"
    match report.status:
        case "rewritten":
            return f"{_rewrote(report)}{_on_target(report)}; {equality(report)}; {_destination(report)}"
        case "kept" | "inconclusive":
            destination = _destination if report.measurement is not None and report.measurement.estimated_s else _output
            return f"{_kept(report, total)}{_on_target(report)}; {destination(report)}"
        case "nothing to rewrite":
            what = "no dilated Conv" if not total else f"none of {convs} can be rewritten"
            return f"nothing to rewrite: {what}; {_output(report, 'the output')}"
        case "differs" if report.command == "verify":
            return f"RESULTS DIFFER: {after} does not compute what {before} does"
        case "differs":
            return "RESULTS DIFFER: no model written"
        case "not valid":
            return f"NOT VALID: {FOUND_AFTER}; {equality(report)}; no model written"
        case "dilation left":
            limit = report.options.get("max_dilation", 1)
            above = f" above {limit}" if isinstance(limit, int) and limit > 1 else ""
            return f"DILATION LEFT: {len(report.remaining)} of {convs} keep a dilation{above}; no model written"
        case "does not fit" if report.target is not None:
            return f"DOES NOT FIT {report.target.name}: {len(report.remaining)} of {convs}; no model written"
        case "equal":
            alone = f"; {FOUND_AFTER}" if report.verdict is not None and report.verdict.checker_after else ""
            return f"{equality(report)}: {before} and {after}{alone}"
        case "not compared":
            return f"NOT COMPARED: {before} and {after} have the same interface; {equality(report)}"
        case "inspected":
            work, share = work_of_convs(report), time_of_convs(report)
            found = convs if total else "no dilated Conv"
            return f"{found} in {before}{share}{work and f'; {work}'}{_on_target(report)}"
        case "measured":
            return _benched(report)
        case "built" if report.engine is not None:
            how = f"{engines.short(report.engine)} in {seconds(report.engine.build_seconds)}"
            return f"built {_destination(report)}: {how}; {units.shorten(clean(report.engine.checked), 160)}"
        case _:
            return report.status


def _kept(report: Report, total: int, *, brief: bool = False) -> str:
    """Return what was kept, and why."""
    measurement, other = report.measurement, total - len(report.sites)
    kept = f"all {total}" if total > 1 else f"the only {_noun(report)}"
    others = f" ({other} of them cannot be rewritten)" if other else ""
    if measurement is None:
        return f"kept {kept}{others}: {why_kept(report)}"
    if measurement.estimated_s:
        about = f"measuring their forms would take about {seconds(measurement.estimated_s)}{on(measurement)}"
        return f"{count(total, _noun(report))}{others}: {about}"
    if report.status == "inconclusive":
        return f"INCONCLUSIVE, kept {kept}{others}: {_unseen(report, measurement)}"
    return f"kept {kept}{others}: {_unbeaten(report, measurement, brief=brief)}"


def on_padding(sites: Sequence[SiteReport]) -> tuple[int, float, int]:
    """Return the multiply-adds of sites of known size, the share of them on padding, and how many sites those are."""
    known = [(adds, share) for adds, share in map(work, sites) if adds is not None and share is not None]
    total = sum(adds for adds, _ in known)
    return total, sum(adds * share for adds, share in known) / (total or 1), len(known)


def time_of_convs(report: Report) -> str:
    """Return how much of the model's time goes to its dilated Convs, as far as profiled, after a semicolon."""
    known, number = [site.share for site in report.sites if site.share is not None], len(report.sites)
    some = "" if len(known) == number else f" for {len(known)} of them"
    return f"; {percent(sum(known))} of its time{some}{on(report.measurement)}" if known else ""


def work_of_convs(report: Report) -> str:
    """Return the work of a model's dilated Convs; empty where no size is known."""
    total, share, sized = on_padding(report.sites)
    where = "" if sized == len(report.sites) else f" in the {sized} of known size"
    return f"{units.amount(total)} multiply-adds{where}, {percent(share)} of them on padding only" if total else ""


def _gained(measurement: Measurement, *, brief: bool = False) -> str:
    """Return what rewriting gained or lost: timed, predicted, or how long it would take to know."""
    if measurement.final is not None and brief:
        return f"{units.difference(measurement.final)} ({units.medians(measurement.final)})"
    if measurement.final is not None:
        return units.versus(measurement.final, on(measurement))
    if measurement.estimated_s:
        return f"measuring would take about {seconds(measurement.estimated_s)}{on(measurement)}"
    if measurement.predicted_ratio is not None:
        return f"{units.speed(measurement.predicted_ratio)} expected{on(measurement)}, not timed as a whole"
    return f"not timed as a whole{on(measurement)}"


def _unbeaten(report: Report, measurement: Measurement, *, brief: bool = False) -> str:
    """Return why every site was kept, by what measuring found."""
    timed, untimed = ([site for site in report.sites if was_measured(site) is asked] for asked in (True, False))
    regions = sum(map(was_measured, report.regions))
    if not timed and not regions:
        return why_kept(report)
    fresh = measurement.measured or not measurement.recalled
    how = f"measured in {seconds(measurement.spent_s)}" if fresh else "measured earlier, recalled from the cache"
    some = count(len(timed), "site") if not untimed else f"{len(timed)} of {len(report.sites)} sites"
    many = units.joined(some if timed else "", count(regions, "region") if regions else "", by=" and ")
    if measurement.attempts:
        versions = count(len(measurement.attempts), "rewritten version")
        text = f"no rewritten model beats the original{on(measurement)} ({versions} timed, {many} {how})"
    else:
        what = "the dilated Conv" if len(report.sites) == 1 else "the dilated Convs"
        nothing = "nothing measured" if untimed else "nothing"
        text = f"{nothing} beats {what}{on(measurement)} ({many} {how})"
    if brief:
        return text
    others = "" if not timed else "the others: " if len(untimed) > 1 else "the other: "
    rest = f"; {others}{why_kept(report, untimed)}" if untimed else ""
    return f"{text}{f'; {units.versus(measurement.final)}' if measurement.final is not None else ''}{rest}"


def _unseen(report: Report, measurement: Measurement) -> str:
    """Return why measuring says nothing."""
    noise = loudest(measurement)
    at, cores = [f"a noise of {percent(noise)}"] if noise else [], report.environment.cores
    if machine.crowded(measurement.load, cores):
        at.append(f"a load of {units.figure(measurement.load)} on {count(cores, 'core')}")
    number, around = _unclear_parts(report)
    some = f"at {number} of {count(len(report.sites), 'site')}" if number else ""
    whole = f"{'in' if not number else 'and'} {count(around, 'region')}" if around else ""
    where = "".join(f" {part}" for part in (some, whole) if part)
    missed = f"a gain of {100 * VISIBLE:g} % could have been missed{where}{on(measurement)}"
    return f"{missed}, at {' and '.join(at)}" if at else missed


def _unclear(report: Report) -> str:
    """Return for how many kept sites measuring says nothing; empty where it did not decide, or says something."""
    asked = any(report.options.get(name) for name in ("strategy", "eliminate", "decisions"))
    if asked or not inconclusive(report.sites, report.measurement, report.environment.cores, report.regions):
        return ""
    parts = zip(_unclear_parts(report), ("site", "region"), strict=True)
    some = " and ".join(count(number, what) for number, what in parts if number)
    return f"; inconclusive for {some or 'what else may be gained'}"


def _unclear_parts(report: Report) -> tuple[int, int]:
    """Return for how many kept sites and regions measuring says nothing."""
    return sum(map(unclear, report.sites)), sum(map(unclear, open_regions(report.regions, report.sites)))


def _benched(report: Report, *, brief: bool = False) -> str:
    """Return what `bench` found: two models against each other, or the time of one."""
    measurement, before = report.measurement, report.before.path
    after = report.after.path if report.after is not None else None
    where = on(measurement)
    if measurement is None or measurement.final is None:
        return f"not timed: {before}{f' and {after}' if after is not None else ''}{where}"
    final, own = measurement.final, own_noise(report)
    if after is not None and brief:
        none = final.low <= 1 <= final.high
        what = f"{before} and {after}: {units.difference(final)}" if none else _compared(after, before, final)
        return f"{what} ({units.medians(final)})"
    if after is not None and final.low <= 1 <= final.high:
        return f"no difference beyond noise between {before} and {after}{where} ({units.figures(final)})"
    if after is not None:
        return f"{_compared(after, before, final)}{where} ({units.figures(final)})"
    spread = f"20 to 80 % of {count(final.first.runs, 'run')}: {units.spread(final.first)} ms"
    noise = f"; noise {percent(own.level)}" if own is not None else ""
    more = "" if brief else f" ({spread}{noise})"
    return f"{before} takes {milliseconds(final.first.median_s)} ms{where}{more}"


def _compared(after: str, before: str, final: Comparison) -> str:
    """Return `AFTER is 1.21x faster than BEFORE`."""
    speed = units.speed(final.ratio)
    return f"{after} is {speed} {'as' if speed == SAME else 'than'} {before}"


def next_steps(report: Report) -> list[str]:
    """Return what a user may do who wants more, most promising first."""
    return [says for _, says in steps(report)]


def steps(report: Report) -> Iterator[tuple[str, str]]:
    """Yield what a user may do: in a few words, and in a sentence."""
    measurement, chosen = report.measurement, report.status in CHOSEN
    if report.command == "optimize" and report.status in ("differs", "not valid"):
        says = f"a fault of dilrewrite or of the runtime, not of the model: {FAULTS} says how to report it"
        yield "report it", says
        return
    if measurement is None:
        unmeasured = chosen and report.options.get("budget") == 0 and report.command != folds.COMMAND
        if unmeasured and report.target is None:
            yield "measure", "nothing was measured: without --budget 0 every form is timed"
        elif unmeasured and report.options.get("backend", "auto") != "auto":  # else a budget changes nothing
            yield "ask the compiler", "nothing was estimated: without --budget 0 the target's compiler is asked"
        return
    if measurement.estimated_s is not None:
        return
    if chosen:
        yield from _to_measure(report, measurement)
        yield from _to_allow(report)
    if measurement.made_up:
        shapes = ", ".join(f"{name}:{units.dims(shape)}" for name, shape in measurement.inputs.items())
        yield "give your sizes", f"the model's sizes are open, and the tool chose {shapes}: give yours with --shape"
    measured = measurement.source is TimeKind.MEASURED
    place = measurement.settings.get("on", "this machine")
    here = f"the choice holds for {measurement.backend}{f' on {place}' if measured else ', by estimate'}"
    if chosen and measurement.others:
        also = units.listed(measurement.others, 4)
        yield "try another runtime", f"{here}; also ready here: {also} (--backend NAME)"
    elif chosen and report.status != "rewritten" and not report.options.get("on"):
        where = "measure where the model will run; `dilrewrite backends` lists the runtimes"
        yield "measure where it will run", f"{here}: {where}"


def _to_measure(report: Report, measurement: Measurement) -> Iterator[tuple[str, str]]:
    if inconclusive(report.sites, measurement, report.environment.cores, report.regions):
        again = "measure again on a quieter machine, with a larger --budget, or with fewer --threads than cores"
        yield "measure again", again
    late = sum(map(_late, open_regions(report.regions, report.sites)))
    number = sum(_late(site) for site in report.sites if site.region is None)
    if number or late:
        needed = measurement.needed_s
        about = f"--budget {math.ceil(needed)} would do, about" if needed else "give a larger --budget"
        some = f"{number} of {count(len(report.sites), 'site')}" if number else ""
        which = units.joined(some, count(late, "region") if late else "", by=" and ")
        yield "give more time", f"{which} {'was' if number + late == 1 else 'were'} not measured to the end: {about}"


def _to_allow(report: Report) -> Iterator[tuple[str, str]]:
    sums = sum(site.action == "kept" and site.geometry.element == "int32" for site in report.sites)
    if sums and not report.options.get("allow_requantised"):
        which = f"{count(sums, 'ConvInteger')}, slow on many runtimes, stayed"
        yield "try float32", f"{which}: --allow-requantised tries a Conv in float32"


def _late(entry: SiteReport | RegionReport) -> bool:
    """Say whether the budget was spent before all forms of it had a time."""
    return any(form.outcome is Outcome.NO_TIME for form in entry.candidates)


def doubts(report: Report, *, noise: bool = False) -> list[str]:
    """Return what makes the timings doubtful; `noise`: that of the original against itself too."""
    measurement, cores = report.measurement, report.environment.cores
    if measurement is None:
        return []
    wanted = f"{units.figure(measurement.load)} processes wanted a core, and there are {count(cores, 'core')}"
    load = machine.crowded(measurement.load, cores) and measurement.measured
    lines = [f"before measuring began, {wanted}"] if load else []
    if noise and loudest(measurement) > VISIBLE:
        lines.append(f"the noise is {percent(loudest(measurement))}: so much equal models differed in time")
    return [*lines, *measurement.doubts]
