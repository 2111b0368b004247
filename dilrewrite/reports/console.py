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

from dilrewrite.report import Report, SiteReport
from dilrewrite.reports import _words as words
from dilrewrite.verdict import CaseCheck, OutputCheck

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

OUTPUT_ROWS = 24
"""How many outputs are shown of one set of inputs, those that differ first."""

COLOURS = {
    "rewritten": "bold green",
    "kept": "bold green",
    "nothing to rewrite": "bold green",
    "equal": "bold green",
    "inspected": "bold",
    "dilation left": "bold yellow",
    "differs": "bold red",
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


def show(report: Report, file: TextIO | None = None) -> None:
    """Print the report, in colour when `file` (standard output when `None`) is a terminal.

    What the encoding of `file` cannot hold is printed as escapes.
    """
    file = sys.stdout if file is None else file
    console = _console(file, _width(file), colour=file.isatty())
    if console.legacy_windows:
        console = _console(file, _width(file), colour=False)
    encoding = getattr(file, "encoding", None) or "utf-8"
    file.write(_printed(report, console).encode(encoding, "backslashreplace").decode(encoding))
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


def _printed(report: Report, console: Console) -> str:
    with console.capture() as captured:
        console.print(Text(words.outcome(report), style=COLOURS.get(report.status, "bold")), soft_wrap=True)
        for part in _parts(report):
            console.print(part)
    return "".join(line.rstrip() + "\n" for line in captured.get().split("\n")[:-1])


# -- what is shown ---------------------------------------------------------------------------------------------------


def _parts(report: Report) -> Iterator[RenderableType]:
    if report.verdict is not None and report.verdict.failures:
        yield from _list("failures", report.verdict.failures, "red")
    if report.remaining:
        yield from _list("dilation that could not go", report.remaining, "yellow")
    if report.sites:
        yield _heading("dilated Convs")
        yield _sites(report)
        yield Text(f"({words.GEOMETRY_KEY})", style="dim")
    if report.command == "inspect":
        yield from _forms(report)
    elif report.status != "rewritten":
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


def _sites(report: Report) -> Table:
    """Return one row per group of sites that read the same; figures known for no site have no column."""
    inspected = report.command == "inspect"

    def row(site: SiteReport) -> tuple[str, ...]:
        work = (words.geometry(site.geometry), words.amount(site.multiply_adds), words.percent(site.padding_share))
        if inspected:
            return (*work, ", ".join(c.strategy for c in site.candidates) or "none", repr(site.refused), "")
        return (*work, words.form(site), words.clean(site.reason), words.proof(site))

    work = any(site.multiply_adds is not None for site in report.sites)
    padding = any(site.padding_share is not None for site in report.sites)
    table = _table(
        "##",
        "site, geometry",
        *(["#multiply-\nadds"] if work else []),
        *(["#padding\nonly"] if padding else []),
        "forms that apply" if inspected else "form, why, proof",
        lines=True,
    )
    names = [line for some in words.groups(report.sites, row) for line in _group_name(some).split("\n")]
    table.columns[1].min_width = min(max(map(cell_len, names)), SITE_WIDTH)
    for some in words.groups(report.sites, row):
        shape, multiply_adds, on_padding, done, why, proof = row(some[0])
        name = Text(_group_name(some))
        name.append(f"\n{shape}", style="dim")
        cells = [Text(str(len(some))), name]
        cells += [Text(multiply_adds)] if work else []
        cells += [Text(on_padding)] if padding else []
        what = Text(done, style="green" if some[0].action == "rewritten" and not inspected else "")
        if not inspected:
            what.append(f": {why}" if why else "", style="not bold dim")
            if proof != words.NOTHING:
                what.append(f"\n{proof}", style="red" if proof.startswith("FAILED") else "default")
        table.add_row(*cells, what)
    return table


def _forms(report: Report) -> Iterator[RenderableType]:
    """Yield per group of equal sites the forms that apply with their estimates, and the refusals of the others."""
    for some in words.groups(report.sites, lambda s: (words.geometry(s.geometry), s.candidates, s.refused)):
        site = some[0]
        yield _heading(f"{_named([words.site_name(s) for s in some])}: {words.geometry(site.geometry)}")
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
    if words.identical(report):
        return
    table = _table("", "#before", "#after", "#change")
    for row in words.model_rows(report.before, after):
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
