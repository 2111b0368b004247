"""dilrewrite optimize MODEL: the whole way from a model to a proved, rewritten one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from dilrewrite.cli._common import (
    AtolOption,
    BackendOption,
    InputsOption,
    JsonOption,
    LibraryOption,
    MaxDilationOption,
    ModelArgument,
    QuietOption,
    ReportOption,
    RtolOption,
    SeedOption,
    ShapeOption,
    ThreadsOption,
    progress,
    show,
)


def command(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="[default: MODEL.dilrewrite.onnx]", show_default=False),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            metavar="NAME[:key=value,...]",
            help="The form to use wherever it applies. [default: the fastest, or none]",
            show_default=False,
        ),
    ] = None,
    eliminate: Annotated[
        bool, typer.Option("--eliminate", help="Leave no dilated Conv; exit code 1 names what cannot go.")
    ] = False,
    max_dilation: MaxDilationOption = 1,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="REGEX", help="Rewrite only nodes whose name matches.", show_default=False),
    ] = None,
    skip: Annotated[
        str | None, typer.Option("--skip", metavar="REGEX", help="Leave nodes whose name matches.", show_default=False)
    ] = None,
    backend: BackendOption = "auto",
    budget: Annotated[
        float | None,
        typer.Option(
            "--budget",
            metavar="SECONDS",
            min=0,
            help="How long measuring may take; 0 measures nothing. [default: 60]",
            show_default=False,
        ),
    ] = None,
    decisions: Annotated[
        Path | None,
        typer.Option(
            "--decisions", metavar="FILE", help="Do what this file says, without measuring.", show_default=False
        ),
    ] = None,
    save_decisions: Annotated[
        Path | None,
        typer.Option("--save-decisions", metavar="FILE", help="Write what was decided.", show_default=False),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="FILE", help="Where timings are kept. [default: the user's cache]", show_default=False
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Measure everything anew, and keep nothing.")] = False,
    shape: ShapeOption = None,
    inputs: InputsOption = None,
    verify: Annotated[
        str, typer.Option("--verify", metavar="full|sites|none", help="How much to prove; none only with --strategy.")
    ] = "full",
    report: ReportOption = None,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report files.")] = False,
    rtol: RtolOption = None,
    atol: AtolOption = None,
    external_data: Annotated[
        str,
        typer.Option("--external-data", metavar="auto|copy|reference", help="What happens to data files of the model."),
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and write nothing: show what would be.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    custom_op_library: LibraryOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Rewrite dilated Convs where that is faster; prove the result, write it and a folder of reports beside it."""
    import dilrewrite

    folder = None if no_report else report or "beside"
    with progress(hidden=quiet or as_json) as show_progress:
        result = dilrewrite.optimize(
            model,
            output,
            strategy=strategy,
            eliminate=eliminate,
            max_dilation=max_dilation,
            only=only,
            skip=skip,
            shapes=shape or (),
            inputs=inputs,
            verify=cast("Literal['full', 'sites', 'none']", verify),
            report=folder,
            rtol=rtol,
            atol=atol,
            dry_run=dry_run,
            force=force,
            seed=seed,
            threads=threads,
            custom_op_library=custom_op_library or (),
            external_data=cast("Literal['auto', 'copy', 'reference']", external_data),
            backend=backend,
            budget_s=budget,
            decisions=decisions,
            save_decisions=save_decisions,
            cache=cache,
            no_cache=no_cache,
            progress=show_progress,
        )
    return show(result, as_json=as_json, quiet=quiet)
