"""The report as GitHub Markdown, complete: every site, every refusal, every figure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import final

from dilrewrite.proof.prove import Proof
from dilrewrite.proof.verdict import CaseCheck
from dilrewrite.reports import words
from dilrewrite.reports.report import ModelReport, Report, SiteReport
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.stopwatch import Comparison


@final
class Markdown:
    """A page that reads from the answer to the details."""

    filename: str | None = "report.md"

    def render(self, report: Report) -> str:
        """Return the Markdown text."""
        return "\n".join(_page(report)).rstrip("\n") + "\n"


REPORT = Markdown()

RAN_SHAPES = 8
"""How many of the shapes that a Conv ran on are shown; report.json has all."""

# -- escaping --------------------------------------------------------------------------------------------------------


def code(text: str) -> str:
    """Return `text` as code, in a table or outside; what a code span cannot hold there becomes entities."""
    text = words.clean(text)
    if text and text == text.strip() and not set(text) & set("`|\\"):
        return f"`{text}`"
    return f"<code>{''.join(c if c.isalnum() or c in ' /.' else f'&#{ord(c)};' for c in text)}</code>"


def cell(text: str) -> str:
    """Return `text` so that no character of it is taken as markup inside a line or a table."""
    text = re.sub(r"[\\*\[\]~]", r"\\\g<0>", words.clean(text))
    text = re.sub(r"[&<>|`$]", lambda found: f"&#{ord(found[0])};", text)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)


def prose(text: str) -> str:
    """Return `text` as `cell` does, and so that it opens no heading or list at the start of a line."""
    opening = r"^(\s*(?:\d+(?=[.)](?:\s|$)))?)([#+=.)-])"
    return re.sub(opening, lambda found: f"{found[1]}&#{ord(found[2])};", cell(text))


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Yield a table; a column whose name starts with `#` holds numbers (right-aligned)."""
    yield f"| {' | '.join(name.removeprefix('#') for name in columns)} |"
    yield f"|{'|'.join('---:' if name.startswith('#') else '---' for name in columns)}|"
    for row in rows:
        assert len(row) == len(columns)
        yield f"| {' | '.join(row)} |"
    yield ""


def _bullets(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield from (f"## {title}", "", *(f"- {line}" for line in lines), "")


# -- the page --------------------------------------------------------------------------------------------------------


def _page(report: Report) -> Iterator[str]:
    yield from (f"# dilrewrite {cell(report.command)}: {cell(report.status)}", "")
    yield from (f"**{cell(words.outcome(report)).strip()}**", "")
    if report.verdict is not None:
        yield from _bullets("Failures", [prose(failure) for failure in report.verdict.failures])
        yield from _bullets(
            words.FOUND_AFTER[0].upper() + words.FOUND_AFTER[1:],
            [prose(finding) for finding in report.verdict.checker_after],
        )
    yield from _bullets("Dilation that could not go", [prose(node) for node in report.remaining])
    yield from _bullets("What makes the timings doubtful", [prose(doubt) for doubt in words.doubts(report)])
    yield from _bullets("What next", [prose(step) for step in words.next_steps(report)])
    if report.sites:
        yield from ("## Dilated Convs", "")
        yield from _sites(report)
        yield from _proofs(report)
        yield from _forms(report)
    yield from _measuring(report)
    yield from _layers(report)
    if report.engine is not None:
        yield from _engine(report.engine)
    yield from _bullets("Left alone", [_skipped(report, number) for number in range(len(report.skipped))])
    changes = [
        f"{code(f'{node.where}/{node.name}')}: {cell(words.normalised(node.dilations, node.pads))}"
        for node in report.normalised
    ]
    yield from _bullets("Attributes changed without changing the function", changes)
    yield from _models(report)
    yield from _verdict(report)
    yield from _bullets("Notes", [prose(note) for note in words.notes(report)])
    if report.options:
        yield from ("## Options", "")
        rows = [(code(name), code(json.dumps(value, default=str))) for name, value in report.options.items()]
        yield from _table(("option", "value"), rows)
    yield from ("## Environment", "", prose(words.environment(report)), "")
    yield from ("## Time", "", prose(words.times(report.seconds)), "")
    yield f"Report schema {report.schema_version}, exit code {report.exit_code}."


def _skipped(report: Report, number: int) -> str:
    node = report.skipped[number]
    dilations = f", dilations {words.dims(node.dilations)}" if node.dilations else ""
    return f"{code(f'{node.where}/{node.name}')} ({cell(node.op)}{dilations}): {cell(node.reason)}"


# -- sites -----------------------------------------------------------------------------------------------------------


def _sites(report: Report) -> Iterator[str]:
    """Yield one row per site; what measuring adds has columns where it is known of a site."""
    inspected = report.command == "inspect"
    ran = any(words.ran(site) for site in report.sites)
    shares = any(site.share is not None for site in report.sites)
    gains = any(site.predicted_gain is not None for site in report.sites)
    columns = [
        "##",
        "site",
        "output",
        "geometry",
        *(["ran on"] if ran else []),
        *(["#share of time"] if shares else []),
        "#multiply-adds",
        "#padding only",
        *([] if inspected else ["form", *(["#predicted gain"] if gains else []), "why", "proof"]),
    ]
    rows = []
    for number, site in enumerate(report.sites, 1):
        multiply_adds, padding = words.work(site)
        row = [str(number), code(words.site_name(site)), code(site.output), code(words.geometry(site.geometry))]
        row += [words.ran(site, RAN_SHAPES).removeprefix("ran on ") or words.NOTHING] if ran else []
        row += [cell(words.share(site))] if shares else []
        row += [words.amount(multiply_adds), cell(words.percent(padding))]
        if not inspected:
            row.append(cell(words.form(site)))
            row += [words.gain(site.predicted_gain)] if gains else []
            row += [cell(site.reason), cell(words.proof(site))]
        rows.append(row)
    yield from _table(columns, rows)
    yield from (f"Geometry: {cell(words.GEOMETRY_KEY)}.", "")


def _proofs(report: Report) -> Iterator[str]:
    """Yield every figure of every proof."""
    proved = [(number, site.proof) for number, site in enumerate(report.sites, 1) if site.proof is not None]
    if not proved:
        return
    yield from ("### Proofs", "")
    yield "Exact: bit for bit on whole numbers. Rounding: errors against float64, as shares of `Conv(|x|, |w|) + |b|`."
    yield ""
    columns = (
        "##",
        "input shapes",
        "#elements",
        "ran on",
        "native ran",
        "#native error",
        "#new error",
        "#limit",
        "#ceiling",
        "#new - native",
        "result",
    )
    yield from _table(columns, [(str(number), *_proof(proof)) for number, proof in proved])


def _proof(proof: Proof) -> tuple[str, ...]:
    rounding = proof.rounding
    figures = (words.NOTHING,) * 5
    if rounding is not None:
        figures = (
            words.figure(rounding.native_error),
            words.figure(rounding.new_error),
            words.figure(rounding.limit),
            words.figure(rounding.ceiling),
            words.figure(rounding.difference),
        )
    return (
        ", ".join(words.dims(shape) for shape in proof.shapes) or words.NOTHING,
        str(proof.elements),
        cell(proof.backend),
        "yes" if proof.native_ran else "no",
        *figures,
        "holds" if proof.failure is None else f"FAILED: {cell(proof.failure)}",
    )


def _forms(report: Report) -> Iterator[str]:
    """Yield the forms that apply and the refusals, once for all sites that agree in them."""
    numbered = list(enumerate(report.sites, 1))

    def key(item: tuple[int, SiteReport]) -> object:
        site = item[1]
        return (words.geometry(site.geometry), site.question, site.ran, site.candidates, site.refused)

    found = words.groups(
        [item for item in numbered if item[1].candidates or item[1].refused], lambda item: repr(key(item))
    )
    if not found:
        return
    yield from ("### Forms, cheapest by estimate first", "")
    if any(words.was_measured(site) for site in report.sites):
        yield "Times: milliseconds for a run of the Conv with its neighbours. Ratio: form / keep, below 1 is faster."
        yield ""
    for some in found:
        site = some[0][1]
        numbers = ", ".join(str(number) for number, _ in some)
        ran = f", {words.ran(site, RAN_SHAPES)}" if words.ran(site) else ""
        yield f"**{'Site' if len(some) == 1 else 'Sites'} {numbers}**: {code(words.geometry(site.geometry))}{ran}"
        yield ""
        if site.candidates:
            about = " (assumed sizes)" if words.assumed(site) else ""
            columns = ("form", f"#multiply-adds{about}", f"#elements moved{about}", "#nodes", "#dilation left")
            rows = [
                (
                    code(candidate.strategy),
                    str(candidate.multiply_adds),
                    str(candidate.elements_moved),
                    str(candidate.nodes),
                    str(candidate.max_dilation) if candidate.max_dilation > 1 else "none",
                )
                for candidate in site.candidates
            ]
            yield from _table(columns, rows)
            yield from _timed(site)
        if site.refused:
            yield from (f"- {code(refusal.strategy)} refuses: {cell(refusal.reason)}" for refusal in site.refused)
            yield ""


def _timed(site: SiteReport) -> Iterator[str]:
    """Yield the times of a site's forms in milliseconds, then what measuring said of the others."""
    columns = (
        "form",
        "outcome",
        "#keep ms",
        "#keep 20 to 80 %",
        "#form ms",
        "#form 20 to 80 %",
        "#ratio",
        f"#{words.INTERVAL}",
        "#pairs",
        "#noise",
        "mode",
    )
    rows = [
        (code(candidate.strategy), cell(words.said(candidate)) or words.NOTHING, *_timing(candidate.timing))
        for candidate in site.candidates
        if candidate.timing is not None
    ]
    if rows:
        yield from _table(columns, rows)
    others = words.without_time(site)
    for some in others:
        yield f"- {', '.join(code(candidate.strategy) for candidate in some)}: {cell(words.said(some[0]))}"
    if others:
        yield ""


def _timing(found: Comparison) -> tuple[str, ...]:
    return (
        words.milliseconds(found.first.median_s),
        words.spread(found.first),
        words.milliseconds(found.second.median_s),
        words.spread(found.second),
        *words.ratio_of(found),
        str(found.pairs),
        words.NOTHING if found.noise is None else cell(words.percent(found.noise)),
        found.mode,
    )


# -- measuring -------------------------------------------------------------------------------------------------------


def _measuring(report: Report) -> Iterator[str]:
    """Yield how timings were taken, and the versions of the whole model that were timed."""
    rows = words.measuring(report)
    if report.measurement is None or not rows:
        return
    yield from ("## Measuring", "")
    yield from (f"- {cell(what)}: {cell(text)}" for what, text in rows)
    yield ""
    if report.measurement.attempts:
        yield from ("Versions of the model that were timed against the original:", "")
        columns = (
            "##",
            "#sites rewritten",
            "sites",
            "#original ms",
            "#version ms",
            "#ratio",
            f"#{words.INTERVAL}",
            "#pairs",
            "result",
        )
        numbered = enumerate(report.measurement.attempts, 1)
        yield from _table(
            columns,
            [
                (
                    str(number),
                    str(len(attempt.sites)),
                    _codes(attempt.sites),
                    *(figures := words.attempt(attempt))[:-1],
                    str(attempt.timing.pairs),
                    figures[-1],
                )
                for number, attempt in numbered
            ],
        )


# -- layers and engines ----------------------------------------------------------------------------------------------


def _layers(report: Report) -> Iterator[str]:
    """Yield what the layers of both engines take, by role, and the slowest of each."""
    found = report.measurement.layers if report.measurement is not None else None
    if found is None:
        return
    yield from ("## Layers", "", words.layers_how(found), "")
    yield from _table(
        ("", "#original ms", "#share", "#rewritten ms", "#share", "#difference ms"),
        [tuple(map(cell, row)) for row in words.layer_sums(found)],
    )
    for name, layers in zip(words.ENGINES, (found.first, found.second), strict=True):
        if layers:
            yield from (f"{words.slowest_title(name, layers).capitalize()}:", "")
            rows = [
                (code(layer.name), cell(layer.kind), cell(layer.role), _codes(layer.nodes), time, cell(share))
                for layer, time, share in words.slowest_layers(layers)
            ]
            yield from _table(("layer", "type", "role", "ONNX nodes", "#ms", "#share"), rows)


def _engine(engine: EngineReport) -> Iterator[str]:
    """Yield what is known of an engine, and its layers in their order."""
    yield from ("## Engine", "")
    for what, text in words.engine_rows(engine):
        yield f"- {cell(what)}: {code(text) if what in words.VERBATIM else cell(text)}"
    yield ""
    if engine.layers:
        yield from ("### Layers of the engine", "")
        rows = [
            (
                str(number),
                code(layer.name),
                cell(layer.kind),
                cell(", ".join(layer.inputs)) or words.NOTHING,
                cell(", ".join(layer.outputs)) or words.NOTHING,
                _codes(layer.nodes),
                code(layer.tactic) if layer.tactic else words.NOTHING,
            )
            for number, layer in enumerate(engine.layers, 1)
        ]
        yield from _table(("##", "layer", "type", "reads", "writes", "ONNX nodes", "tactic"), rows)


def _codes(names: Sequence[str]) -> str:
    return ", ".join(map(code, names)) or words.NOTHING


# -- models and verdict ----------------------------------------------------------------------------------------------


def _models(report: Report) -> Iterator[str]:
    before, after = report.before, report.after
    yield from (f"## {'Model' if after is None else 'Models'}", "", f"- {_model(before)}")
    if after is None:
        yield ""
        return
    yield from (f"- {_model(after)}{'; identical, byte for byte' if words.identical(report) else ''}", "")
    rows = [tuple(map(cell, row)) for row in words.model_rows(before, after, everything=True)]
    if rows:
        yield from _table(("", "#before", "#after", "#change"), rows)


def _model(model: ModelReport) -> str:
    return f"{prose(words.model(model))}; {model.bytes} bytes, SHA-256 {code(model.sha256)}"


def _verdict(report: Report) -> Iterator[str]:
    verdict = report.verdict
    if verdict is None:
        return
    yield from ("## Comparison", "")
    yield f"Level {code(verdict.level)}: {'passed' if verdict.passed else 'FAILED'}: {cell(words.equality(report))}."
    yield ""
    for line in words.how_verified(verdict):
        yield f"- {prose(line)}"
    if verdict.cases:
        yield ""
    for case in verdict.cases:
        yield from (f"**{cell(words.case_name(case)).strip()}**", "")
        yield from _case(case)


def _case(case: CaseCheck) -> Iterator[str]:
    columns = (
        "output",
        "type",
        "shape",
        "#max abs",
        "#max rel",
        "#RMS",
        "#1 - cosine",
        "#ulp",
        "#argmax",
        "#NaN",
        "#Inf",
        "#own noise",
        "result",
    )
    rows = [
        (
            code(check.name),
            cell(check.element),
            words.dims(check.shape),
            words.figure(check.max_abs),
            words.figure(check.max_rel),
            words.figure(check.rms),
            words.one_minus(check.cosine),
            words.figure(check.ulp),
            cell(words.agreement(check)),
            cell(words.nonfinite(check.nan)),
            cell(words.nonfinite(check.inf)),
            words.figure(check.noise),
            cell(words.result(check)),
        )
        for check in case.outputs
    ]
    yield from _table(columns, rows)
