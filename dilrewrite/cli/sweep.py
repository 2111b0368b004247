"""dilrewrite sweep MODELS...: one answer for each of many models, here or on other machines, and one report for all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dilrewrite.cli._common import progress
from dilrewrite.cli._options import command
from dilrewrite.options import Measuring, Option

OWN = {
    "models": Option("", "Models, folders of them, or patterns.", "MODEL", kind=tuple[str, ...]),
    "on": Option(
        "--on",
        "Who answers: ssh://HOST, cmd:TEMPLATE, or dask://SCHEDULER:PORT. Repeatable. [default: this machine]",
        "DEVICE",
        kind=tuple[str, ...],
        group=Measuring.GROUP,
    ),
}
EXAMPLES = [
    ("every model in a folder, on this machine", "sweep exports -o faster"),
    ("no dilated Conv is left in any", "sweep exports/*.onnx --eliminate --budget 0"),
    ("two boards, a model at a time on each", "sweep exports --on ssh://board-a --on ssh://board-b"),
    ("the workers of a Dask scheduler", "sweep exports --on dask://scheduler:8786"),
]


@command(
    "models strategy eliminate max_dilation target allow_requantised lift_all only skip on backend budget "
    "cool_down_s min_gain_percent threads cache no_cache shapes seed verify rtol atol output force external_data "
    "as_json quiet",
    EXAMPLES,
    OWN,
    output={"help": "Folder of the new models and reports. [default: dilrewrite-sweep]", "metavar": "DIR"},
)
def run(
    models: tuple[str, ...], output: Path | None, on: tuple[str, ...], *, as_json: bool, quiet: bool, **options: Any
) -> int:
    """Rewrite many models where that is faster, each once, here or on other machines; write one report for all."""
    import dilrewrite
    from dilrewrite.reports import swept
    from dilrewrite.reports.formats import console

    with progress(hidden=quiet or as_json) as show_progress:
        report = dilrewrite.sweep(models, output, on=on, progress=show_progress, **options)
    if as_json:
        sys.stdout.write(swept.rendered(report)[swept.JSON])
    elif not quiet:
        console.show_page(swept.document(report))
    elif report.exit_code:
        print(f"dilrewrite: {report.summary}", file=sys.stderr)
    return report.exit_code
