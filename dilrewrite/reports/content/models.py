"""Both models and how they were compared; nodes left alone; notes; where and how long it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from dilrewrite.proof.compare import OutputCheck
from dilrewrite.proof.verdict import CaseCheck, Verdict
from dilrewrite.reports import document as doc
from dilrewrite.reports import units
from dilrewrite.reports.content.sites import MANY_ROWS, assumed, first_names
from dilrewrite.reports.reasons import placed
from dilrewrite.reports.report import ModelReport, Report
from dilrewrite.reports.units import NOTHING, count, dims, figure, pairs, seconds, size
from dilrewrite.sites import Normalisation, Skipped

BRIEF_OUTPUTS = 24  # so many outputs of one set of inputs are shown in a brief report, those that differ first


def is_engine(model: ModelReport) -> bool:
    """Say whether it is an engine, which is of no version of ONNX."""
    return not model.ir_version


def identical(report: Report) -> bool:
    """Say whether the output is the input, byte for byte."""
    return report.after is not None and report.after.sha256 == report.before.sha256


def model_line(model: ModelReport) -> str:
    """Return a model, or an engine, in one line."""
    opsets = pairs(("opset" if domain == "ai.onnx" else domain, number) for domain, number in model.opsets.items())
    nodes = count(model.nodes, "layer" if is_engine(model) else "node")
    onnx = () if is_engine(model) else (opsets or "no opset", f"IR {model.ir_version}")
    maker = f"by {model.producer}" if model.producer else ""
    return f"{model.path}: {units.joined(nodes, *onnx, size(model.bytes), maker)}"


Row = tuple[str, str, str, str]
"""What, before, after, change."""


def figure_rows(before: ModelReport, after: ModelReport) -> list[Row]:
    """Return the figures of two models, or two engines: of one of each there are none."""
    if is_engine(before) != is_engine(after):
        return []
    nodes, file_size = (before.nodes, after.nodes), _sizes("file size", before.bytes, after.bytes)
    if is_engine(before):
        return [_numbers("layers", *nodes), file_size]
    dilated = _numbers("dilated Convs", before.dilated, after.dilated)
    return [_numbers("nodes", *nodes), dilated, file_size, _sizes("peak memory", before.peak_bytes, after.peak_bytes)]


def peak_memory(report: Report) -> str:
    """Return the peak memory of the models that were timed; empty where it was not measured."""
    before = report.before.peak_bytes
    if before is None or report.after is None:
        return size(before) if before is not None else ""
    after = report.after.peak_bytes
    return f"{size(before)} -> " + (f"{size(after)} ({units.change(before, after)})" if after else "not measured")


def operator_rows(before: ModelReport, after: ModelReport) -> list[Row]:
    """Return how many nodes there are by operator, of engines by type of layer."""
    if is_engine(before) != is_engine(after):
        return []
    old, new = before.operators, after.operators
    return [_numbers(operator, old.get(operator, 0), new.get(operator, 0)) for operator in sorted({*old, *new})]


def _numbers(what: str, before: int, after: int) -> Row:
    return what, str(before), str(after), f"{after - before:+d}" if after != before else "0"


def _sizes(what: str, before: int | None, after: int | None) -> Row:
    change = NOTHING if before is None or after is None else units.change(before, after)
    return what, size(before), size(after), "0" if change in ("+0.0 %", "-0.0 %") else change


def model_blocks(report: Report, brief: bool) -> Iterator[doc.Block]:
    """Yield both models, and how their figures changed; in brief, only operators whose number did."""
    before, after = report.before, report.after
    copied = "; identical, byte for byte" if identical(report) else ""
    yield doc.Bullets((_model(before, brief), *([(_model(after, brief), copied)] if after is not None else [])))
    if after is None and before.peak_bytes is not None and report.command == "bench":
        yield doc.Paragraph(f"Peak memory: {peak_memory(report)}.")
    if after is None or (brief and copied):
        return
    columns = ("", "#before", "#after", "#change")
    figures, operators = figure_rows(before, after), operator_rows(before, after)
    changed = [row for row in operators if row[3] != "0"]
    if brief:
        figures = [*figures, *changed]
    if figures:
        yield doc.grid("Models", ("figure", *columns[1:]), figures)
    if operators and not brief:
        kind = "layer type" if is_engine(before) else "operator"
        summary = f"{count(len(operators), kind)}, {len(changed)} in another number"
        whole = doc.grid("Operators", (kind, *columns[1:]), [(doc.code(row[0]), *row[1:]) for row in operators])
        yield doc.Fold(summary, (whole,), shown=0 < len(changed) <= MANY_ROWS)


def _model(model: ModelReport, brief: bool) -> doc.Inline:
    text = model_line(model)
    return text if brief else (f"{text}; {model.bytes} bytes, SHA-256 ", doc.code(model.sha256))


def case_name(case: CaseCheck) -> str:
    """Return a set of inputs in one line."""
    return f"{case.name}: {pairs((name, dims(shape)) for name, shape in case.shapes.items()) or 'no input'}"


def nonfinite(pair: tuple[int, int]) -> str:
    """Return a count before and after."""
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]}->{pair[1]}"


def result(check: OutputCheck) -> str:
    """Return what was decided about one output."""
    word = "not compared" if not check.comparable else "equal" if check.passed else "DIFFERS"
    return units.joined(word, check.note, by=": ")


def how_verified(verdict: Verdict) -> list[str]:
    """Return how the comparison was made, a sentence each."""
    if not verdict.cases:
        return []
    on = "on" if verdict.optimized else "off (their fusions move quantised values by a quantum)"
    noise = f", or the model's own noise ({'; '.join(verdict.noise_sources)})" if verdict.noise_sources else ""
    within = f"|difference| <= {verdict.tolerance}" if verdict.tolerance else "no tolerance"
    return [f"ran on {verdict.backend}, graph optimisations {on}", f"allowed: {within}{noise}"]


def comparison_blocks(verdict: Verdict, equality: str, brief: bool) -> Iterator[doc.Block]:
    """Yield what was compared and how; a table of outputs for every set of inputs."""
    if not brief:
        passed = doc.strong("passed" if verdict.passed else "FAILED")
        yield doc.Paragraph(("Level ", doc.code(verdict.level), ": ", passed, f": {equality}."))
    how = doc.Bullets(tuple(how_verified(verdict)))
    if how.items and not brief:
        yield how
    for case in verdict.cases:
        equal, number = sum(check.passed and check.comparable for check in case.outputs), len(case.outputs)
        shown = equal < number or len(verdict.cases) * number <= MANY_ROWS
        ordered = sorted(case.outputs, key=lambda check: (check.passed, check.comparable)) if brief else case.outputs
        rows = ordered[:BRIEF_OUTPUTS] if brief else ordered
        content: list[doc.Block] = [_outputs(case_name(case), rows)] if rows else []
        if rest := ordered[len(rows) :]:
            all_equal = all(check.passed and check.comparable for check in rest)
            content.append(doc.Paragraph(f"and {len(rest)} more{', all equal' if all_equal else ''}"))
        about = f"{equal} of {count(number, 'output')} equal"
        yield doc.Fold(case_name(case), tuple(content), (about,), shown, group=True)
    if how.items and brief:
        yield how


def _outputs(title: str, checks: Sequence[OutputCheck]) -> doc.Table:
    def number(field: str) -> Callable[[OutputCheck], str]:
        return lambda check: figure(getattr(check, field))

    def judged(check: OutputCheck) -> doc.Inline:
        return doc.Span("warn" if not check.comparable else "good" if check.passed else "bad", result(check))

    return doc.table(
        title,
        checks,
        ("output", lambda check: doc.code(check.name)),
        ("^type", lambda check: check.element),
        ("^shape", lambda check: dims(check.shape)),
        ("#max abs", number("max_abs")),
        ("#^max rel", number("max_rel")),
        ("#RMS", number("rms")),
        ("#^1 - cosine", lambda check: NOTHING if check.cosine is None else figure(1 - check.cosine)),
        ("#ulp", number("ulp")),
        ("#^argmax", lambda c: NOTHING if c.argmax_agreement is None else units.percent(c.argmax_agreement)),
        ("#NaN", lambda check: nonfinite(check.nan)),
        ("#^Inf", lambda check: nonfinite(check.inf)),
        ("#own noise", number("noise")),
        ("~result", judged),
    )


def skipped(nodes: Sequence[Skipped], brief: bool) -> list[doc.Inline]:
    """Return the dilated nodes that are never rewritten, in brief those alike together."""

    def says(node: Skipped) -> str:
        return f" ({node.op}{f', dilations {dims(node.dilations)}' if node.dilations else ''}): {node.reason}"

    return [(_names(some), says(some[0])) for some in (units.groups(nodes, says) if brief else [[n] for n in nodes])]


def normalised(nodes: Sequence[Normalisation], brief: bool) -> list[doc.Inline]:
    """Return the Convs whose attributes change without changing the function, in brief those alike together."""
    groups = units.groups(nodes, changes) if brief else [[node] for node in nodes]
    return [(_names(some), f": {changes(some[0])}") for some in groups]


def _names(nodes: Sequence[Skipped | Normalisation]) -> doc.Inline:
    return doc.commas(first_names([placed(node.where, node.name) for node in nodes]))


def changes(node: Normalisation) -> str:
    """Return what changed in a Conv's attributes."""
    dilations, pads = node.dilations, node.pads
    parts = (
        f"dilations become {list(dilations)} (an axis with kernel 1 has none)" if dilations is not None else "",
        f"auto_pad becomes pads {list(pads)}" if pads is not None else "",
    )
    return units.joined(*parts, by="; ") or "nothing"


def notes(report: Report) -> list[str]:
    """Return what a reader should know besides the figures, most important first."""
    lines, verdict = [], report.verdict
    if verdict is not None:
        if verdict.level == "none":
            lines.append("UNVERIFIED: nothing was proved or run (--verify none)")
        elif verdict.skipped is not None:
            lines.append(f"whole models were not compared: {verdict.skipped}")
        if verdict.deterministic is False:
            names = dict.fromkeys(c.name for case in verdict.cases for c in case.outputs if not c.comparable)
            which = f": {', '.join(names)}" if names else ""
            lines.append(f"the original is not deterministic; outputs that differ between two runs of it{which}")
        lines += verdict.notes
    if any(map(assumed, report.sites)):
        lines.append("some sizes are known at run time only: estimates there stand on typical sizes")
    lines += report.notes
    if verdict is not None:
        lines += [f"as delivered, the original has this finding: {text}" for text in verdict.checker_before]
    return list(dict.fromkeys(lines))


def environment(report: Report) -> str:
    """Return what ran where, in one line."""
    here = report.environment
    threads = "default threads" if here.threads is None else count(here.threads, "thread")
    versions = f"dilrewrite {here.dilrewrite}, Python {here.python}"
    processor = f"{here.processor or 'unknown processor'}, {count(here.cores, 'core')}, {threads}"
    return units.joined(versions, pairs(here.packages.items()), processor, here.system, by="; ")


def times(spent: Mapping[str, float]) -> str:
    """Return the seconds per step in one line."""
    steps = pairs((step, seconds(value)) for step, value in spent.items())
    return f"{steps}; together {seconds(sum(spent.values()))}" if spent else "not measured"
