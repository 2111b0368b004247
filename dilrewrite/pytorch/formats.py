"""The convolution benchmark's result as text: the original's lines, a table for the terminal, JSON, Markdown."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from dilrewrite.pytorch.convbench import PASSES, Result, Row
from dilrewrite.timing.speed import between, speed

ORIGINAL_PASSES = {"forward": "fprop", "backward by input": "bprop inputs", "backward by weight": "bprop weights"}
"""The passes in the words of the 2016 script."""

ORIGINAL_NAMES = {
    "im2col": "im2col DCD",
    "slice_to_batch": "BatchStack DCD",
    "space_to_axis": "Subpixel DCD",
    "space_to_batch": "Batchroll DCD",
    "weight_gradient": "Normal DCD",
}
"""The methods in the words of the 2016 benchmark, "Situationally faster dilated convolutions"; the others are new."""


def figure(value: float) -> str:
    """Return a number with three significant digits, never in powers of ten."""
    if not value or not math.isfinite(value):
        return f"{value:.0f}"
    value = float(f"{value:.3g}")
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def rows_of(result: Result) -> Iterator[tuple[str, list[Row]]]:
    """Yield each configuration's text, with its name, and its rows."""
    for configuration in result.configurations:
        title = f"{configuration.name}: {configuration.text}" if configuration.name else configuration.text
        yield title, [row for row in result.rows if row.configuration == configuration.text]


def original(result: Result) -> str:
    """Return lines in the columns of the 2016 script: name, pass, whole milliseconds or why there are none."""
    lines = []
    for title, rows in rows_of(result):
        lines += ["", f"CONFIG: {title}"]
        for row in rows:
            name = ORIGINAL_NAMES.get(row.method, row.method)
            value = f"{round(row.timing.median_s * 1e3)} ms" if row.timing is not None else f"FAILED {row.failure}"
            lines.append(f"{name:<20} ==> {ORIGINAL_PASSES[row.direction]:<14} ==> {value}")
    return "\n".join(lines[1:]) + "\n"


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """Return milliseconds, their spread, speed against keep, its interval, and peak memory in MiB of a row."""
    peak = figure(row.peak_bytes / 2**20) if row.peak_bytes is not None else ""
    if row.comparison is None or row.timing is None:
        return ("does not apply" if row.refused else "FAILED", "", "", "", peak)
    timing, comparison = row.timing, row.comparison
    spread = f"{figure(timing.p20_s * 1e3)} to {figure(timing.p80_s * 1e3)}"
    interval = between(comparison.low, comparison.high)
    return figure(timing.median_s * 1e3), spread, speed(comparison.ratio), interval, peak


def reasons(rows: Sequence[Row]) -> list[str]:
    """Return a line for each reason why a method has no time, with the passes unless it is all."""
    failures: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.comparison is None:
            failures.setdefault((row.method, row.failure), []).append(row.direction)
    lines = []
    for (name, reason), passes in failures.items():
        which = "" if len(passes) == len(PASSES) else f", {' and '.join(passes)}"
        lines.append(f"{name}{which}: {reason}")
    return lines


COLUMNS = ("method", "pass", "ms", "20 to 80 %", "speed", "interval", "peak MiB")


def table(result: Result, width: int = 120) -> str:
    """Return tables for a terminal of so many columns."""
    from rich.console import Console
    from rich.table import Table

    file = io.StringIO()
    console = Console(file=file, width=width, markup=False, highlight=False, emoji=False)
    for title, rows in rows_of(result):
        grid = Table(title=title, title_justify="left")
        for number, column in enumerate(COLUMNS):
            grid.add_column(column, justify="left" if number < 2 else "right", overflow="fold")
        for row in rows:
            grid.add_row(row.method, row.direction, *cells(row))
        console.print(grid)
        for reason in reasons(rows):
            console.print(reason, soft_wrap=True)
        shares = [row for row in rows if row.shares]
        if shares:
            breakdown = Table(title="where the time goes", title_justify="left")
            kinds = list(shares[0].shares)
            for column in ("method", "pass", *kinds):
                breakdown.add_column(column)
            for row in shares:
                breakdown.add_row(row.method, row.direction, *(percent(row.shares[kind]) for kind in kinds))
            console.print(breakdown)
    console.print(footer(result), soft_wrap=True)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def percent(share: float) -> str:
    """Return a share as a percentage."""
    return f"{100 * share:.0f} %"


def footer(result: Result) -> str:
    """Return on what, how and how long it was measured."""
    setting = result.setting
    told = [
        result.device,
        f"torch {result.versions['torch']}",
        setting.element,
        "channels last" if setting.channels_last else "channels first",
        *(["torch.compile"] if setting.compiled else []),
        *(["deterministic"] if setting.deterministic else []),
        *(["freed memory kept for the next run"] if result.keeps_memory else []),
        result.date,
        f"{figure(result.minutes)} minutes",
    ]
    return ", ".join(told)


LEGEND = (
    "Speed: against PyTorch's own form, from times taken in pairs, with its 95 % interval. Peak: "
    "input, weight, graph and one run, above the process without them."
)


def markdown(result: Result, *, heading: bool = True) -> str:
    """Return Markdown tables, below a `heading` with the legend or by themselves."""
    lines = ["# convbench", "", footer(result), "", LEGEND, ""] if heading else [footer(result), ""]
    for title, rows in rows_of(result):
        lines += [f"## {title}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        lines += ["| " + " | ".join((row.method, row.direction, *cells(row))) + " |" for row in rows]
        told = reasons(rows)
        lines += ["", *(f"- {reason}" for reason in told)] if told else []
        shares = [row for row in rows if row.shares]
        if shares:
            kinds = list(shares[0].shares)
            lines += ["", "Where the time goes:", "", "| method | pass | " + " | ".join(kinds) + " |"]
            lines.append("|" + "---|" * (2 + len(kinds)))
            lines += [
                f"| {row.method} | {row.direction} | " + " | ".join(percent(row.shares[kind]) for kind in kinds) + " |"
                for row in shares
            ]
        lines.append("")
    return "\n".join(lines)


def as_json(result: Result) -> str:
    """Return everything as JSON."""
    return json.dumps(dataclasses.asdict(result), indent=1, ensure_ascii=False) + "\n"


FORMATS: Mapping[str, Callable[[Result], str]] = {
    "table": table,
    "original": original,
    "json": as_json,
    "markdown": markdown,
}

assert tuple(ORIGINAL_PASSES) == PASSES
