"""What one screen says of a report: the answer, what became of the Convs and why, where it ran, doubts, what next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.keywords import in_python
from dilrewrite.reports import document as doc
from dilrewrite.reports import reasons, units
from dilrewrite.reports.content import answer, engine, folds, models, regions, sites, target, timing
from dilrewrite.reports.content.counted import counted
from dilrewrite.reports.report import ModelReport, Report, SiteReport, ValueReport
from dilrewrite.reports.units import count, dims, joined, percent, size
from dilrewrite.runtimes import TimeKind
from dilrewrite.targets.report import TargetReport
from dilrewrite.tensorrt.sidecar import EngineReport

NAMES = 2  # so many nodes of a group are named
NAME_LENGTH = 40  # a longer name loses its middle
ENGINE_ROWS = (
    "inputs",
    "outputs",
    "profile",
    "precision",
    "conversion",
    "GPU",
    "checked",
    "memory",
    "layers",
    "ONNX file",
)
BUILDERS = ("optimize", "build")  # commands that make an engine
IN_MEMORY = "model in memory"  # so ends what stands for the path of one
WRITERS = ("optimize", "fold")  # commands that rewrite a model
VALUES = 4  # so many inputs are named beside a runtime


def screen(report: Report) -> doc.Screen:
    """Return what one screen says of a report."""
    parts = _inspected(report) if report.command == "inspect" else _done(report)
    rows, said = [*parts, *_around(report)], answer.verdict(report)
    if _in_memory(report):
        rows = [row if row.whole else replace(row, items=tuple(map(in_python, row.items))) for row in rows]
        said = in_python(said)
    return counted(report, doc.Screen(answer.tone(report), said, tuple(row for row in rows if row.items)))


def _in_memory(report: Report) -> bool:
    """Say whether a model was given in memory, so by a caller from Python."""
    return any(
        model is not None and str(model.path).endswith(f" {IN_MEMORY}") for model in (report.before, report.after)
    )


def engine_screen(known: EngineReport) -> doc.Screen:
    """Return what one screen says of an engine alone: what a person asks for, without digests and commands."""
    told = dict(engine.rows(known, warnings=0))
    rows = [doc.Rows(name, (told[name],)) for name in ENGINE_ROWS if name in told]
    rows += [doc.Rows("!", tuple(known.warnings), "warn")] if known.warnings else []
    rows += [doc.Rows("more", ("-v shows flags, digests and the command of TensorRT",))]
    return doc.Screen("", f"{known.file}: {engine.short(known)}", tuple(rows))


def _row(name: str, *items: str, tone: str = "", whole: bool = False) -> doc.Rows:
    return doc.Rows(name, tuple(filter(None, items)), tone, whole)


# -- what was found, and what was done -------------------------------------------------------------------------------


def _inspected(report: Report) -> Iterator[doc.Rows]:
    """Yield what a model takes and gives, its size, and its dilated Convs, equal ones together."""
    model = report.before
    yield _row("inputs", *map(_value, model.inputs))
    if report.target is not None:  # that is what was asked for
        yield from target.rows(report.target)
        return
    yield _row("outputs", *map(_value, model.outputs))
    yield _row("model", models.model_line(model).removeprefix(f"{model.path}: "))
    yield _row("work", answer.work_of_convs(report))
    alike = units.groups(report.sites, sites.shape)
    yield _row("Convs", *map(_kind, alike))
    kinds = units.groups(report.regions, regions.kind)
    yield _row("regions", "; ".join(f"{len(some)} {regions.kind(some[0])}" for some in kinds))


def _value(value: ValueReport) -> str:
    return joined(units.shorten(value.name, NAME_LENGTH), value.element, value.shape, by=" ")


def _kind(some: Sequence[SiteReport]) -> str:
    """Return equal Convs: `4x 3x3 d12 s1 g1 256->256 28x28 p12: a, b and 2 more; 12.1 % of the time; 9 forms apply`."""
    share, forms = units.summed(site.share for site in some), some[0].candidates
    padding = sites.work(some[0])[1]
    on_padding = padding is not None and padding > 0 and bool(share)
    return joined(
        f"{len(some)}x {sites.shape(some[0], 1)}: {_names(some)}",
        f"{percent(share)} of the time" if share is not None else "",
        f"{percent(padding)} of the work on padding" if on_padding else "",
        count(len(forms), "form"),
        by="; ",
    )


def _names(some: Sequence[sites.Entry]) -> str:
    names = [units.shorten(units.clean(sites.site_name(site)), NAME_LENGTH) for site in some]
    return units.listed(names, NAMES)


def _together(nodes: Sequence[str]) -> Iterator[str]:
    """Yield `name: reason` of nodes, those with a reason in common on one line."""
    named: dict[str, list[str]] = {}
    for node in nodes:
        name, _, reason = node.partition(": ")
        named.setdefault(reason, []).append(name)
    yield from (f"{', '.join(names)}: {reason}" for reason, names in named.items())


def _done(report: Report) -> Iterator[doc.Rows]:
    """Yield what went wrong, what became of the Convs and regions, why, and how it was proved."""
    verdict = report.verdict
    if report.command in ("bench", "verify"):
        both = [model.path for model in (report.before, report.after) if model is not None]
        yield _row("models", *map(units.clean, both), whole=True)
    if verdict is not None:
        yield _row("!", *verdict.failures, *verdict.checker_after, tone="bad")
    yield _row("!", *_together(report.remaining), tone="warn")
    yield _row(
        "rewritten" if report.status == "rewritten" else "tried", *_regions(report), *_sites(report, "rewritten")
    )
    yield _row("kept", *_sites(report, "kept"))
    if report.target is not None:
        yield from target.rows(report.target, found=False)
    compared = answer.equality(report) if verdict is not None and report.command in WRITERS else ""
    yield _row("proved", joined(*_proved(report), f"whole model: {compared}" if compared else "", by="; "))
    if report.engine is not None and report.command == "optimize":
        yield _row("engine", f"{report.engine.file}: {engine.short(report.engine)}")
    if report.engine is not None and report.command in BUILDERS:
        yield _row("checked", report.engine.checked, tone="warn" if report.engine.device is None else "")
    yield _row("timed", _timed(report))
    peak = models.peak_memory(report) if report.command == "bench" else ""
    yield _row("memory", peak and f"peak {peak}")


def _proved(report: Report) -> Iterator[str]:
    """Yield how many forms are proved bit for bit, and how many within a bound."""
    (hold, proofs), errors = sites.proved(report), sites.in_floats(report)
    if hold > len(errors) or (proofs and not errors):
        yield f"{hold - len(errors)} of {count(proofs, 'form')} bit for bit"
    if errors:
        yield f"{len(errors)} of {count(proofs, 'form')} {sites.requantised(errors)}"


def _timed(report: Report) -> str:
    """Return what timing the whole model says, besides the ratio in the answer."""
    final = report.measurement.final if report.measurement is not None else None
    if final is None or (report.measurement is not None and report.measurement.source is TimeKind.ESTIMATED):
        return ""
    own = timing.own_noise(report)
    noise = f"noise {percent(own.level)}" if own is not None else ""
    if timing.alone(report):
        return joined(count(final.first.runs, "run"), f"20 to 80 % of them {units.spread(final.first)} ms", noise)
    return joined(units.surely(final), count(final.pairs, "pair"), noise)


def _regions(report: Report) -> Iterator[str]:
    """Yield the regions that are rewritten, those together that are rewritten alike."""
    taken = [region for _, region in regions.taken(report)]
    for some in units.groups(taken, lambda one: (one.strategy, regions.how(one), units.numberless(one.reason))):
        inside = sum(len(region.members) for region in some)
        what = f"{some[0].strategy}: {count(len(some), 'region')} of {count(inside, 'dilated Conv')}"
        yield f"{what} {regions.how(some[0])} ({_names(some)}): {_why(some, report)}"


def _sites(report: Report, action: str) -> Iterator[str]:
    """Yield the Convs that were rewritten, or kept, those together that have a form and a reason in common."""
    alone = [site for site in report.sites if site.action == action and site.region is None]
    names = _strategies(report)

    def key(site: SiteReport) -> tuple[str, str]:
        reason = units.numberless(reasons.brief(site.reason))
        if action == "rewritten":
            return sites.form(site), reason
        return "", " ".join("#" if word.strip(",;:") in names else word for word in reason.split())

    for some in sorted(units.groups(alone, key), key=_weight, reverse=True):
        form = f"{sites.form(some[0])}: " if action == "rewritten" else ""
        share = units.summed(site.share for site in some)
        time = f", {percent(share)} of the time" if share else ""
        pools = sum(isinstance(site.geometry, PoolGeometry) for site in some)
        what = "Conv" if not pools else "pooling" if pools == len(some) else "operator"
        yield f"{form}{count(len(some), what)} ({_names(some)}{time}): {_why(some, report)}"


def _weight(some: Sequence[SiteReport]) -> tuple[float, int]:
    return (units.summed(site.share for site in some) or 0.0, len(some))


def _strategies(report: Report) -> set[str]:
    of_forms = {form.strategy for one in _entries(report) for form in one.candidates}
    return of_forms | {refusal.strategy for one in _entries(report) for refusal in one.refused}


def _entries(report: Report) -> list[sites.Entry]:
    return [*report.regions, *report.sites]


def _why(some: Iterable[sites.Entry], report: Report) -> str:
    """Return the reasons of entries that are alike, as one."""
    texts = units.merged([reasons.brief(one.reason) for one in some], _strategies(report))
    return "; ".join(dict.fromkeys(text for text, _ in texts))


# -- where, doubts, what next ----------------------------------------------------------------------------------------


def _around(report: Report) -> Iterator[doc.Rows]:
    """Yield what was left alone, where it ran, the model written, what is doubtful, what to do next, the reports."""
    left = [f"{units.shorten(node.name, NAME_LENGTH)} ({node.op})" for node in report.skipped]
    yield _row(
        "left alone", f"{units.listed(left, 3)}: {report.skipped[0].reason}" if left and not report.remaining else ""
    )
    yield _row("no sandwich", *map(units.clean, folds.unfolded(report, brief=True)[:3]))
    yield _row("ran on", joined(ran_on(report), ran_at(report)))
    if report.output is not None:
        yield _row("written", units.clean(report.output) + _grown(report.before, report.after), whole=True)
    warnings = report.engine.warnings if report.engine is not None and report.command in BUILDERS else ()
    remarks = report.target.remarks if report.target is not None else ()
    yield _row("!", *remarks, *answer.doubts(report), *warnings, *models.notes(report), tone="warn")
    yield _row("next", *_next(report))
    yield _row("report", _reports(report), whole=True)


def _grown(before: ModelReport, after: ModelReport | None) -> str:
    if after is None:
        return ""
    return f" ({size(after.bytes)}, {'the same' if after.sha256 == before.sha256 else f'was {size(before.bytes)}'})"


def ran_on(report: Report) -> str:
    """Return the runtime and the device."""
    measurement, verdict, here = report.measurement, report.verdict, report.environment
    if measurement is not None:
        runtime = f"{measurement.backend} ({units.pairs(measurement.versions.items())})"
        settings = [f"{name} {value}" for name, value in measurement.settings.items() if name == "threads"]
        estimated = measurement.source is not TimeKind.MEASURED
        source = f"NOT MEASURED: {measurement.source}, in {measurement.unit}" if estimated else ""
        return joined(source, runtime, measurement.device, *settings)
    return joined(verdict.backend, here.processor) if verdict is not None and verdict.cases else ""


def ran_at(report: Report) -> str:
    """Return the sizes that it ran on."""
    measurement, verdict = report.measurement, report.verdict
    cases = verdict.cases if verdict is not None else ()
    sizes = measurement.inputs if measurement is not None else cases[0].shapes if cases else {}
    more = f"and {count(len(cases) - 1, 'further set')} of inputs" if measurement is None and len(cases) > 1 else ""
    shapes = [f"{name}:{dims(shape)}" for name, shape in sizes.items()]
    return joined(units.listed(shapes, VALUES), more, by=" ")


def _next(report: Report) -> Iterator[str]:
    """Yield what to do next: what the full report says, else the command that follows."""
    steps, path = answer.next_steps(report), report.before.path
    yield from steps
    match report.status:
        case "inspected" if report.sites and not _fits_as_it_is(report.target):
            opened = [value.name for value in report.before.inputs if re.search(r"[^\d\[\], ]", value.shape)]
            sizes = report.options.get("shapes") or [f"{name}:SIZES" for name in opened[:1]]
            fastest = f"times every form, and {'makes' if _in_memory(report) else 'writes'} the fastest model"
            does = "makes a model that it takes" if report.target is not None else fastest
            yield f"{_call(report, 'optimize', path, sizes=sizes)}: {does}"
        case "rewritten" if report.options.get("dry_run"):
            yield "without --dry-run the model is written"
        case "rewritten" if report.target is not None:
            yield f"compile it with {report.target.toolchain}: only its answer is final"
        case "rewritten" if not steps and report.output is not None:
            where = "with the same --on" if report.options.get("on") else "on the machine that will run it"
            yield f"{_call(report, 'bench', path, report.output)}: {where}"
        case "dilation left":
            yield "--max-dilation N lets dilations up to N stay; without --eliminate the fastest forms are taken"
        case "does not fit":
            yield "--skip REGEX leaves a node as it is; `dilrewrite targets show NAME` prints the rules with sources"
        case "differs" | "not valid" if report.command in WRITERS:
            yield "--skip REGEX leaves a node as it is; the reports name those that differ"
        case "equal" if report.command == "verify" and report.engine is None and report.after is not None:
            yield f"{_call(report, 'bench', path, report.after.path)}: which one is faster"
        case _:
            return


def _fits_as_it_is(target: TargetReport | None) -> bool:
    """Say whether there is a target that runs every node, at no more work than there is in it."""
    return target is not None and set(target.fits) <= {"native"} and all(node.cost is None for node in target.nodes)


def _call(report: Report, command: str, *models: str, sizes: Sequence[str] = ()) -> str:
    """Return a command to type, or where a model is in memory, a function to call."""
    target = report.options.get("target") if command == "optimize" else None
    if not _in_memory(report):
        given = [*(("--target", str(target)) if target else ()), *(word for one in sizes for word in ("--shape", one))]
        return shlex.join(["dilrewrite", command, *models, *given])
    names = [path.split()[1] if path.endswith(f" {IN_MEMORY}") else repr(path) for path in models]
    words = [*([f"target={str(target)!r}"] if target else []), *([f"shapes={[*sizes]}"] if sizes else [])]
    return f"dilrewrite.{command}({', '.join([*names, *words])})"


def _reports(report: Report) -> str:
    typed = not _in_memory(report)
    if report.files:
        return f"{units.clean(report.files[0])}{' (-v prints all of it)' if typed else ''}"
    text = f"none written: --report DIR writes one{', -v shows all of it here' if typed else ''}"
    return text if typed else in_python(text)
