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
from dilrewrite.cli._engine import (
    CapabilityOption,
    CompatibleOption,
    DeviceOption,
    FlavourOption,
    LevelOption,
    MaxOption,
    MinOption,
    OptOption,
    PluginsOption,
    PrecisionOption,
    RefitOption,
    StreamingOption,
    StripOption,
    TimingCacheOption,
    WorkspaceOption,
)
from dilrewrite.errors import UsageError


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
    min_gain: Annotated[
        float,
        typer.Option(
            "--min-gain", metavar="PERCENT", help="What the whole model must save of its time to be rewritten."
        ),
    ] = 2.0,
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
    build_engine: Annotated[
        bool, typer.Option("--build-engine", help="Also build the TensorRT engine of the result.")
    ] = False,
    engine: Annotated[
        Path | None,
        typer.Option("--engine", metavar="FILE", help="[default: OUTPUT.engine]", show_default=False),
    ] = None,
    flavour: FlavourOption = "auto",
    precision: PrecisionOption = None,
    minima: MinOption = None,
    optima: OptOption = None,
    maxima: MaxOption = None,
    workspace: WorkspaceOption = None,
    timing_cache: TimingCacheOption = None,
    optimization_level: LevelOption = None,
    compute_capability: CapabilityOption = None,
    device: DeviceOption = None,
    plugins: PluginsOption = None,
    refit: RefitOption = False,
    strip_plan: StripOption = False,
    version_compatible: CompatibleOption = False,
    weight_streaming: StreamingOption = False,
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
    from dilrewrite.tensorrt import engines

    folder = None if no_report else report or "beside"
    order = {
        "flavour": flavour if flavour != "auto" else None,
        "precision": precision,
        "minima": minima,
        "optima": optima,
        "maxima": maxima,
        "workspace_mib": workspace,
        "timing_cache": timing_cache,
        "optimization_level": optimization_level,
        "compute_capabilities": compute_capability,
        "device": device,
        "plugins": plugins,
        "refit": refit,
        "strip_plan": strip_plan,
        "version_compatible": version_compatible,
        "weight_streaming": weight_streaming,
    }
    given = {name: value for name, value in order.items() if engines.said(value)}
    if given and not build_engine:
        words = {"minima": "--min", "optima": "--opt", "maxima": "--max", "workspace_mib": "--workspace"}
        words["compute_capabilities"] = "--compute-capability"
        names = ", ".join(words.get(name, "--" + name.replace("_", "-")) for name in given)
        raise UsageError(f"{names}: options of building an engine", hint="ask for one with --build-engine")
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
            min_gain_percent=min_gain,
            decisions=decisions,
            save_decisions=save_decisions,
            cache=cache,
            no_cache=no_cache,
            build_engine=given if build_engine else False,
            engine=engine,
            progress=show_progress,
        )
    return show(result, as_json=as_json, quiet=quiet)
