"""The report as the command line shows it: the answer first, then tables; colour on a terminal only."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO, final

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dilrewrite.proof.compare import OutputCheck
from dilrewrite.proof.verdict import CaseCheck
from dilrewrite.reports import words
from dilrewrite.reports.report import Report, SiteReport
from dilrewrite.tensorrt.sidecar import EngineReport
from dilrewrite.timing.measurement import LayerTime

WIDTH = 100
"""Columns where there is no terminal to ask."""

MIN_WIDTH = 72
"""Columns that the tables need; a narrower terminal wraps them."""

NAME_LENGTH = 120
"""A longer node name loses its middle here (never in the other formats)."""

SITE_WIDTH = 40
"""Columns that names of sites get before they are folded."""

SITE_NAMES = 3
"""How many sites of a group are named."""

FORM_GROUPS = 3
"""How many groups of sites have a table of their timed forms, those with most of the model's time first."""

OUTPUT_ROWS = 24
"""How many outputs are shown of one set of inputs, those that differ first."""

LAYERS = 5
"""How many layers of an engine are shown, the slowest; the other formats show more."""

LAYER_NODES = 2
"""How many ONNX nodes of a layer are named."""

WARNINGS = 3
"""How many warnings of an engine's builder are shown."""

COLOURS = {
    "rewritten": "bold green",
    "kept": "bold green",
    "inconclusive": "bold yellow",
    "nothing to rewrite": "bold green",
    "equal": "bold green",
    "inspected": "bold",
    "measured": "bold",
    "built": "bold green",
    "dilation left": "bold yellow",
    "differs": "bold red",
    "not valid": "bold red",
}


@final
class Terminal:
    """The whole report as plain text; see `show` for colour."""

    filename: str | None = None

    def render(self, report: Report) -> str:
        """Return the plain text that the command line prints."""
        return to_text(report, _width(sys.stdout))


REPORT = Terminal()


def to_text(report: Report, width: int = WIDTH) -> str:
    """Return the report as plain text for `width` columns."""
    return _printed(report, _console(io.StringIO(), width, colour=False))


def engine_to_text(engine: EngineReport, width: int = WIDTH) -> str:
    """Return what is known of an engine as plain text for `width` columns."""
    return _printed(engine, _console(io.StringIO(), width, colour=False))


def show(report: Report, file: TextIO | None = None) -> None:
    """Print the report, in colour when `file` (standard output when `None`) is a terminal.

    What the encoding of `file` cannot hold is printed as escapes.
    """
    _show(report, sys.stdout if file is None else file)


def show_engine(engine: EngineReport, file: TextIO | None = None) -> None:
    """Print what is known of an engine, as `show` prints a report."""
    _show(engine, sys.stdout if file is None else file)


def _show(what: Report | EngineReport, file: TextIO) -> None:
    console = _console(file, _width(file), colour=file.isatty())
    if console.legacy_windows:
        console = _console(file, _width(file), colour=False)
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(_printed(what, console).encode(encoding, "backslashreplace").decode(encoding))
    file.flush()


def _console(file: TextIO, width: int, *, colour: bool) -> Console:
    """Return a rich Console that takes no text for markup."""
    return Console(
        file=file,
        width=max(width, MIN_WIDTH),
        force_terminal=colour,
        color_system="auto" if colour else None,
        force_jupyter=False,
        markup=False,
        highlight=False,
        emoji=False,
    )


def _width(file: TextIO) -> int:
    return max(shutil.get_terminal_size((WIDTH, 24)).columns, MIN_WIDTH) if file.isatty() else WIDTH


def _printed(what: Report | EngineReport, console: Console) -> str:
    if isinstance(what, EngineReport):
        answer, parts = Text(f"{words.clean(what.file)}: {words.engine(what)}", style="bold"), _engine(what)
    else:
        answer, parts = Text(words.outcome(what), style=_colour(what)), _parts(what, console.width)
    with console.capture() as captured:
        console.print(answer, soft_wrap=True)
        for part in parts:
            console.print(part)
    return "".join(line.rstrip() + "\n" for line in captured.get().split("\n")[:-1])


def _colour(report: Report) -> str:
    final = report.measurement.final if report.measurement is not None else None
    slower = report.status == "rewritten" and final is not None and final.slower
    return "bold yellow" if slower else COLOURS.get(report.status, "bold")


# -- what is shown ---------------------------------------------------------------------------------------------------


def _parts(report: Report, width: int) -> Iterator[RenderableType]:
    if report.verdict is not None and report.verdict.failures:
        yield from _list("failures", report.verdict.failures, "red")
    if report.verdict is not None and report.verdict.checker_after:
        yield from _list(words.FOUND_AFTER, report.verdict.checker_after, "red")
    if report.remaining:
        yield from _list("dilation that could not go", report.remaining, "yellow")
    yield from _list("what makes the timings doubtful", words.doubts(report), "yellow")
    yield from _list("what next", words.next_steps(report))
    if report.sites:
        yield _heading("dilated Convs")
        yield _sites(report, width)
        yield Text(f"({words.GEOMETRY_KEY})", style="dim")
        yield from _timed_forms(report)
    if report.command == "inspect":
        yield from _forms(report)
    yield from _measuring(report)
    yield from _layers(report)
    if report.engine is not None:
        yield from _engine(report.engine)
    if report.command != "inspect" and report.status != "rewritten":
        yield from _refusals(report)
    nodes = words.groups(report.skipped, lambda node: (node.op, node.dilations, node.reason))
    lines = [
        f"{_named([f'{node.where}/{node.name}' for node in some])} ({some[0].op}"
        f"{', dilations ' + words.dims(some[0].dilations) if some[0].dilations else ''}): {some[0].reason}"
        for some in nodes
    ]
    yield from _list("left alone", lines)
    changes = words.groups(report.normalised, lambda node: words.normalised(node.dilations, node.pads))
    lines = [
        f"{_named([f'{node.where}/{node.name}' for node in some])}: {words.normalised(some[0].dilations, some[0].pads)}"
        for some in changes
    ]
    yield from _list("attributes changed without changing the function", lines)
    yield _heading("models" if report.after is not None else "model")
    yield from _models(report)
    if report.verdict is not None and report.verdict.cases:
        yield _heading("outputs")
        for case in report.verdict.cases:
            yield Text(words.case_name(case))
            yield from _outputs(case)
        yield from (Text(line, style="dim") for line in words.how_verified(report.verdict))
    yield from _list("notes", words.notes(report))
    yield Text()
    yield Text(words.environment(report), style="dim")
    yield Text(f"time: {words.times(report.seconds)}", style="dim")


def _heading(title: str) -> Text:
    return Text(f"\n{title}", style="bold")


def _list(title: str, lines: Sequence[str], style: str = "") -> Iterator[RenderableType]:
    if lines:
        yield _heading(title)
    for line in lines:
        row = Table.grid(padding=(0, 1))
        row.add_column(width=1)
        row.add_column(overflow="fold")
        row.add_row(Text("-"), Text(words.clean(line), style=style))
        yield row


def _table(*columns: str, lines: bool = False) -> Table:
    """Return a table whose columns are numbers (right-aligned, kept whole) where the name starts with `#`."""
    table = Table(box=box.ROUNDED, show_lines=lines, header_style="", border_style="dim")
    for name in columns:
        number = name.startswith("#")
        table.add_column(
            Text(name.removeprefix("#")), justify="right" if number else "left", no_wrap=number, overflow="fold"
        )
    return table


def _named(names: Sequence[str]) -> str:
    return words.listed([words.shorten(words.clean(name), NAME_LENGTH) for name in names], SITE_NAMES)


def _group_name(some: Sequence[SiteReport]) -> str:
    names = [words.shorten(words.site_name(site), NAME_LENGTH) for site in some]
    more = [f"and {len(names) - SITE_NAMES} more"] if len(names) > SITE_NAMES else []
    return "\n".join([*names[:SITE_NAMES], *more])


def _sites(report: Report, width: int) -> Table:
    """Return one row per group of sites that read the same; figures known for no site have no column.

    With a measurement, sites that differ only in the numbers of their reason or proof, and in shares, are one row.
    """
    inspected = report.command == "inspect"
    shares = any(site.share is not None for site in report.sites)
    gains = any(site.predicted_gain is not None for site in report.sites)

    def row(site: SiteReport) -> tuple[str, ...]:
        multiply_adds, on_padding = words.work(site)
        work = (_shape(site), words.amount(multiply_adds), words.percent(on_padding))
        if inspected:
            return (*work, ", ".join(c.strategy for c in site.candidates) or "none", repr(site.refused), "")
        return (*work, words.form(site), words.clean(site.reason), words.proof(site))

    def key(site: SiteReport) -> tuple[object, ...]:
        if report.measurement is None:
            return row(site)
        question = site.question if words.was_measured(site) else None
        return (question, *row(site)[:4], *map(words.numberless, row(site)[4:]))

    groups = words.groups(report.sites, key)
    work = any(words.work(site)[0] is not None for site in report.sites)
    padding = any(words.work(site)[1] is not None for site in report.sites)
    together = shares and work and padding  # one column for both, for want of room
    table = _table(
        "##",
        "site, geometry",
        *(["#share of\ntime,\ngain" if gains else "#share of\ntime"] if shares else []),
        *(["#multiply-\nadds,\npadding"] if together else []),
        *(["#multiply-\nadds"] if work and not together else []),
        *(["#padding\nonly"] if padding and not together else []),
        "forms that apply" if inspected else "form, why, proof",
        lines=True,
    )
    rows = []
    for some in groups:
        shape, multiply_adds, on_padding, done, *_ = row(some[0])
        why, proof = (_merged([row(site)[place] for site in some]) for place in (4, 5))
        name = Text(_group_name(some))
        name.append(f"\n{shape}", style="dim")
        cells = [Text(str(len(some))), name]
        cells += [Text("\n".join(_shares(some, gains)))] if shares else []
        cells += [Text(f"{multiply_adds}\n{on_padding}")] if together else []
        cells += [Text(multiply_adds)] if work and not together else []
        cells += [Text(on_padding)] if padding and not together else []
        what = Text(done, style="green" if some[0].action == "rewritten" and not inspected else "")
        if not inspected:
            what.append(f": {why}" if why else "", style="not bold dim")
            if proof != words.NOTHING:
                what.append(f"\n{proof}", style="red" if proof.startswith("FAILED") else "default")
        rows.append([*cells, what])
        table.add_row(*rows[-1])
    names = [line for some in groups for line in _group_name(some).split("\n")]
    _share_room(table, rows, width, min(max(map(cell_len, names)), SITE_WIDTH))
    return table


def _share_room(table: Table, rows: Sequence[Sequence[Text]], width: int, wanted: int) -> None:
    """Give names (the second column) the `wanted` columns where there is room, and the last column what is left.

    Without a limit for the last column, rich would make the table wider than `width` and cut its right side off.
    """
    headers = [column.header for column in table.columns]
    texts = [[str(header), *map(str, cells)] for header, cells in zip(headers, zip(*rows, strict=True), strict=True)]
    widths = [max(cell_len(line) for text in column for line in text.split("\n")) for column in texts]
    room = width - 3 * len(widths) - 1 - widths[0] - sum(widths[2:-1])
    least = min(wanted, room * 3 // 5)
    table.columns[1].min_width, table.columns[-1].max_width = least, room - least


def _shape(site: SiteReport) -> str:
    """Return a site's geometry, and the sizes it ran on where the model does not tell them."""
    return ", ".join(filter(None, (words.geometry(site.geometry), words.ran(site))))


def _merged(texts: Sequence[str]) -> str:
    """Return texts that differ in numbers only as one."""
    ((text, _number),) = words.merged(texts)
    return text


def _shares(some: Sequence[SiteReport], gains: bool) -> list[str]:
    """Return the share of the model's time of sites together, and what is gained there."""
    share = words.summed(site.share for site in some)
    gain = words.summed(site.predicted_gain for site in some)
    return [words.NOTHING if share is None else words.percent(share), *([words.gain(gain)] if gains else [])]


def _timed_forms(report: Report) -> Iterator[RenderableType]:
    """Yield a table per group of sites of the forms that were timed, then what is said of forms without a time."""
    groups = sorted(
        words.measured_together(report), key=lambda some: -(words.summed(site.share for site in some) or 0.0)
    )
    timed = [some for some in groups if words.was_measured(some[0])]
    if timed:
        yield _heading("timed forms: milliseconds for a run of the Conv with its neighbours")
    for some in timed[:FORM_GROUPS]:
        yield Text(f"{_named([words.site_name(site) for site in some])}: {_shape(some[0])}")
        yield _timed(some[0])
    if len(timed) > FORM_GROUPS:
        rest = timed[FORM_GROUPS:]
        share = words.summed(site.share for some in rest for site in some)
        time = f", {words.percent(share)} of the time" if share is not None else ""
        yield Text(f"and {words.count(len(rest), 'group')} more ({words.count(sum(map(len, rest)), 'site')}{time})")
    found: dict[tuple[str, str], list[str]] = {}
    for some in groups:
        for forms in words.without_time(some[0]):
            names = [c.strategy for c in forms if c.strategy != "keep" or not words.was_measured(some[0])]
            if names:
                places = found.setdefault((", ".join(names), words.said(forms[0])), [])
                places.extend(words.site_name(site) for site in some)
    lines = [f"{_named(sites)}: {names}: {why}" for (names, why), sites in found.items()]
    yield from _list("forms without a time", lines)


def _timed(site: SiteReport) -> Table:
    """Return the timed forms of a site, the Conv as it is first."""
    table = _table("form", "#median", "#20 to 80 %", "#ratio to\nkeep", f"#{words.INTERVAL}", "outcome")
    keep = words.native(site)
    kept = next((candidate for candidate in site.candidates if candidate.strategy == "keep"), None)
    if keep is not None and (kept is None or kept.timing is None):
        said = Text(words.said(kept) if kept is not None else "")
        table.add_row(Text("keep"), Text(words.milliseconds(keep.median_s)), Text(words.spread(keep)), "", "", said)
    for candidate in site.candidates:
        if candidate.timing is not None:
            time = candidate.timing.second
            table.add_row(
                Text(words.clean(candidate.strategy)),
                Text(words.milliseconds(time.median_s)),
                Text(words.spread(time)),
                *map(Text, words.ratio_of(candidate.timing)),
                Text(words.said(candidate)),
            )
    return table


def _measuring(report: Report) -> Iterator[RenderableType]:
    """Yield how timings were taken, and the versions of the whole model that were timed."""
    rows = words.measuring(report)
    if report.measurement is None or not rows:
        return
    yield _heading("measuring")
    yield _grid(rows)
    if report.measurement.attempts:
        yield Text("versions of the model that were timed against the original:")
        table = _table("sites rewritten", "#original\nms", "#version\nms", "#ratio", f"#{words.INTERVAL}", "result")
        for attempt in report.measurement.attempts:
            sites = f"{len(attempt.sites)}: {_named(attempt.sites)}"
            table.add_row(Text(sites), *map(Text, words.attempt(attempt)))
        yield table


def _grid(rows: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for what, text in rows:
        grid.add_row(Text(what, style="dim"), Text(text))
    return grid


def _layers(report: Report) -> Iterator[RenderableType]:
    """Yield what the layers of both engines take, by role, and the slowest of each."""
    found = report.measurement.layers if report.measurement is not None else None
    if found is None:
        return
    yield _heading("layers")
    yield Text(words.layers_how(found), style="dim")
    table = _table("", "#original\nms", "#share", "#rewritten\nms", "#share", "#difference\nms")
    for row in words.layer_sums(found):
        table.add_row(*map(Text, row))
    yield table
    for name, layers in zip(words.ENGINES, (found.first, found.second), strict=True):
        if layers:
            yield Text(f"{words.slowest_title(name, layers)}:")
            yield _slowest(layers)


def _slowest(layers: Sequence[LayerTime]) -> Table:
    table = _table("layer, type", "role", "ONNX nodes", "#ms", "#share")
    for layer, time, share in words.slowest_layers(layers, LAYERS):
        name = Text(words.shorten(words.clean(layer.name), NAME_LENGTH))
        name.append(f"\n{words.clean(layer.kind)}", style="dim")
        nodes = [words.shorten(words.clean(node), NAME_LENGTH) for node in layer.nodes]
        texts = (words.clean(layer.role), words.listed(nodes, LAYER_NODES) or words.NOTHING, time, share)
        table.add_row(name, *map(Text, texts))
    return table


def _engine(engine: EngineReport) -> Iterator[RenderableType]:
    """Yield what is known of an engine; of its layers how many there are of each type."""
    yield _heading("engine")
    yield _grid(words.engine_rows(engine, WARNINGS))


def _forms(report: Report) -> Iterator[RenderableType]:
    """Yield per group of equal sites the forms that apply with their estimates, and the refusals of the others."""
    for some in words.groups(report.sites, lambda s: (_shape(s), s.candidates, s.refused)):
        site = some[0]
        yield _heading(f"{_named([words.site_name(s) for s in some])}: {_shape(site)}")
        if site.candidates:
            about = "\n(assumed sizes)" if words.assumed(site) else ""
            table = _table(
                "form, cheapest first", f"#multiply-adds{about}", f"#elements moved{about}", "#nodes", "#dilation left"
            )
            for candidate in site.candidates:
                left = str(candidate.max_dilation) if candidate.max_dilation > 1 else "none"
                table.add_row(
                    Text(candidate.strategy),
                    Text(words.amount(candidate.multiply_adds)),
                    Text(words.amount(candidate.elements_moved)),
                    Text(str(candidate.nodes)),
                    Text(left),
                )
            yield table
        for refusal in site.refused:
            yield Padding(Text(words.clean(f"{refusal.strategy} refuses: {refusal.reason}")), (0, 0, 0, 2))


def _refusals(report: Report) -> Iterator[RenderableType]:
    """Yield why strategies refused, over all sites."""
    refused = [refusal for site in report.sites for refusal in site.refused]
    lines = []
    for some in words.groups(refused, lambda refusal: refusal.strategy):
        for reason, number in words.merged([refusal.reason for refusal in some]):
            lines.append(f"{some[0].strategy} ({words.count(number, 'site')}): {reason}")
    yield from _list("forms that refused", lines)


def _models(report: Report) -> Iterator[RenderableType]:
    yield Text(words.model(report.before))
    after = report.after
    if after is None:
        return
    yield Text(
        f"{words.clean(after.path)}: identical, byte for byte" if words.identical(report) else words.model(after)
    )
    rows = words.model_rows(report.before, after)
    if words.identical(report) or not rows:
        return
    table = _table("", "#before", "#after", "#change")
    for row in rows:
        table.add_row(*map(Text, row))
    yield table


def _outputs(case: CaseCheck) -> Iterator[RenderableType]:
    """Yield one set of inputs as a table, two figures a cell."""
    table = _table(
        "output",
        "#max abs\nmax rel",
        "#RMS\nulp",
        "#1-cosine\nargmax",
        "#NaN\nInf",
        "#own\nnoise",
        "result",
        lines=True,
    )
    if not case.outputs:
        yield Text("  no output")
        return
    ordered = sorted(case.outputs, key=lambda check: (check.passed, check.comparable))
    shown, rest = ordered[:OUTPUT_ROWS], ordered[OUTPUT_ROWS:]
    for check in shown:
        name = Text(words.shorten(words.clean(check.name), NAME_LENGTH))
        name.append(f"\n{check.element} {words.dims(check.shape)}", style="dim")
        table.add_row(name, *map(Text, _figures(check)), Text(words.result(check), style=_style(check)))
    yield table
    if rest:
        equal = all(check.passed and check.comparable for check in rest)
        yield Text(f"  and {len(rest)} more{', all equal' if equal else ''}")


def _figures(check: OutputCheck) -> list[str]:
    return [
        f"{words.figure(check.max_abs)}\n{words.figure(check.max_rel)}",
        f"{words.figure(check.rms)}\n{words.figure(check.ulp)}",
        f"{words.one_minus(check.cosine)}\n{words.agreement(check)}",
        f"{words.nonfinite(check.nan)}\n{words.nonfinite(check.inf)}",
        words.figure(check.noise),
    ]


def _style(check: OutputCheck) -> str:
    return "yellow" if not check.comparable else "green" if check.passed else "red"
