"""dilrewrite convbench CONFIG...: the 2016 benchmark in PyTorch, forward and backward, every method."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import typer

from dilrewrite.cli._common import progress
from dilrewrite.cli._options import SCREEN, command
from dilrewrite.errors import MissingError, UsageError, meant
from dilrewrite.options import Option
from dilrewrite.pytorch.setting import Setting

FORMATS = ("table", "original", "json", "markdown")
OWN = {
    **Setting.options(),
    "configurations": Option(
        "",
        "As i3x64x64,k128x3x3,b128,s1x1,d2x2; or a number or name of --list. [default: 1 2 3]",
        "[CONFIG]...",
        kind=tuple[str, ...],
    ),
    "skip": Option(
        "--skip",
        "Leave a method out. Repeatable; SKIP does the same.",
        "METHOD",
        kind=tuple[str, ...],
        group=Setting.GROUP,
    ),
    "form": Option(
        "--format", "How to print.", "|".join(FORMATS), kind=str, default="table", choices=FORMATS, group=SCREEN
    ),
    "listed": Option("--list", "List the built-in configurations.", group=SCREEN),
}
EXAMPLES = [
    ("the 2016 benchmark, every method, forward and backward", "convbench 1 2 3"),
    ("a convolution of your own", "convbench i32x48x48x48,k32x3x3x3,b1,d2x2x2 --profile"),
]


@command(
    f"configurations skip {' '.join(Setting.options())} output force form listed quiet",
    EXAMPLES,
    OWN,
    output={"help": "Write it to a file instead."},
)
def run(configurations: tuple[str, ...], *, listed: bool, quiet: bool, **options: Any) -> int:
    """Time every method of a dilated convolution in PyTorch: forward, backward by input, backward by weight."""
    from dilrewrite.pytorch import configurations as grammar
    from dilrewrite.pytorch import convbench, formats
    from dilrewrite.staging import Staging, check_destination

    if listed:
        for number, (name, text) in enumerate(grammar.BUILT_IN, 1):
            typer.echo(f"{number:>2} {name:<22} {text}")
        return 0
    skip, form, output, force = (options.pop(name) for name in ("skip", "form", "output", "force"))
    if form not in formats.FORMATS:
        near = meant(form, FORMATS)
        problem = f"--format {form}: not one of {', '.join(formats.FORMATS)}"
        raise UsageError(problem, hint=f"did you mean {near}?" if near else "")
    setting = Setting(**options)
    setting.check()
    convbench.skipped(skip)
    parsed = [grammar.parse(text) for text in configurations or ("1", "2", "3")]
    if output is not None:
        check_destination(output, force=force, source=None)
    if importlib.util.find_spec("torch") is None:
        raise MissingError("torch is not installed", hint="pip install 'dilrewrite[torch]'")
    with progress(hidden=quiet) as show_progress:
        result = convbench.run(parsed, setting, skip=skip, progress=show_progress)
    text = formats.FORMATS[form](result)
    if output is not None:
        with Staging(force=force) as staging:
            staging.add_text(output, text)
            staging.commit()
    elif not quiet:
        sys.stdout.write(text)
    return 0
