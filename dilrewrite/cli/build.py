"""dilrewrite build MODEL: the TensorRT engine of a model, with a side-car of all that is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from dilrewrite.cli._common import (
    InputsOption,
    JsonOption,
    ModelArgument,
    QuietOption,
    ReportOption,
    SeedOption,
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
from dilrewrite.errors import printable


def command(
    model: ModelArgument,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="ENGINE", help="[default: MODEL.engine]", show_default=False),
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
    inputs: InputsOption = None,
    save_onnx: Annotated[
        Path | None,
        typer.Option("--save-onnx", metavar="FILE", help="The ONNX model as TensorRT gets it.", show_default=False),
    ] = None,
    export_layer_info: Annotated[
        Path | None,
        typer.Option(
            "--export-layer-info",
            metavar="FILE",
            help="The layers as JSON, as trtexec writes them.",
            show_default=False,
        ),
    ] = None,
    report: ReportOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show TensorRT's log on standard error.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing engine.")] = False,
    seed: SeedOption = 0,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Build a TensorRT engine; ENGINE.json beside it tells flavour, precision as built, profiles, layers, sizes."""
    import dilrewrite

    with progress(hidden=quiet or as_json or verbose) as show_progress, _told(shown=verbose) as tell:
        result = dilrewrite.build(
            model,
            output,
            flavour=cast("Literal['auto', 'tensorrt', 'tensorrt-rtx']", flavour),
            precision=cast("Literal['fp32', 'tf32', 'fp16', 'bf16', 'int8-qdq']", precision),
            minima=minima or (),
            optima=optima or (),
            maxima=maxima or (),
            workspace_mib=workspace,
            timing_cache=timing_cache,
            optimization_level=optimization_level,
            compute_capabilities=compute_capability or (),
            device=device,
            plugins=plugins or (),
            refit=refit,
            strip_plan=strip_plan,
            version_compatible=version_compatible,
            weight_streaming=weight_streaming,
            inputs=inputs,
            save_onnx=save_onnx,
            export_layer_info=export_layer_info,
            report=report,
            force=force,
            seed=seed,
            threads=threads,
            progress=show_progress,
            tell=tell,
        )
    return show(result, as_json=as_json, quiet=quiet)


@contextmanager
def _told(*, shown: bool) -> Iterator[Callable[[str], None] | None]:
    """Yield what prints a line of TensorRT's log where standard error was when the command began."""
    if not shown:
        yield None
        return
    import os

    with os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace") as stream:

        def tell(message: str) -> None:
            stream.write(f"{printable(message)}\n")
            stream.flush()

        yield tell
