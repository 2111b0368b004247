"""dilrewrite convbench CONFIG...: the 2016 benchmark in PyTorch, forward and backward, every method."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from dilrewrite.cli._common import QuietOption, progress
from dilrewrite.errors import MissingError, UsageError


def command(
    configurations: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG]...",
            help="As i3x64x64,k128x3x3,b128,s1x1,d2x2; or a number or name of --list. [default: 1 2 3]",
            show_default=False,
        ),
    ] = None,
    skip: Annotated[
        list[str] | None,
        typer.Option(
            "--skip", metavar="METHOD", help="Leave a method out. Repeatable; SKIP does the same.", show_default=False
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="cpu|cuda[:N]", help="Where to run.")] = "cpu",
    element: Annotated[
        str, typer.Option("--dtype", metavar="float32|bfloat16|float16", help="Element type.")
    ] = "float32",
    channels_last: Annotated[bool, typer.Option("--channels-last", help="Channels last in memory.")] = False,
    compiled: Annotated[bool, typer.Option("--compile", help="Through torch.compile.")] = False,
    deterministic: Annotated[bool, typer.Option("--deterministic", help="cuDNN's deterministic mode.")] = False,
    seconds: Annotated[float, typer.Option("--seconds", help="How long each method and pass is timed, about.")] = 1.0,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, help="The fewest runs of each method and pass; 6 in any case.")
    ] = 6,
    warmup: Annotated[float, typer.Option("--warmup", help="Seconds that each method and pass runs before.")] = 0.0,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="How often the pass is computed in a run, whose mean counts.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, max=4096, help="Threads. [default: torch's]", show_default=False)
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="Where the time goes, by kind of operator.")] = False,
    form: Annotated[
        str, typer.Option("--format", metavar="table|original|json|markdown", help="How to print.")
    ] = "table",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it to a file instead.", show_default=False),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the built-in configurations.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    quiet: QuietOption = False,
) -> int:
    """Time every method of a dilated convolution in PyTorch: forward, backward by input, backward by weight."""
    from dilrewrite.pytorch import configurations as grammar
    from dilrewrite.pytorch import convbench, formats
    from dilrewrite.staging import Staging, check_destination

    if listed:
        for number, (name, text) in enumerate(grammar.BUILT_IN, 1):
            typer.echo(f"{number:>2} {name:<22} {text}")
        return 0
    if form not in formats.FORMATS:
        raise UsageError(f"--format {form}: not one of {', '.join(formats.FORMATS)}")
    setting = convbench.Setting(
        device=device,
        element=element,
        channels_last=channels_last,
        compiled=compiled,
        deterministic=deterministic,
        seconds=seconds,
        repeats=repeats,
        warmup=warmup,
        steps=steps,
        threads=threads,
        profile=profile,
    )
    convbench.check(setting)
    convbench.skipped(skip or ())
    parsed = [grammar.parse(text) for text in configurations or ("1", "2", "3")]
    if output is not None:
        check_destination(output, force=force, source=None)
    _check_torch()
    with progress(hidden=quiet) as show_progress:
        result = convbench.run(parsed, setting, skip=skip or (), progress=show_progress)
    text = formats.FORMATS[form](result)
    if output is not None:
        with Staging(force=force) as staging:
            staging.add_text(output, text)
            staging.commit()
    elif not quiet:
        sys.stdout.write(text)
    return 0


def _check_torch() -> None:
    import importlib.util

    if importlib.util.find_spec("torch") is None:
        raise MissingError("torch is not installed", hint="pip install 'dilrewrite[torch]'")
