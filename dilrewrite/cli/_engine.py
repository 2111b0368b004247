"""The options of building engines, which `build` and `optimize --build-engine` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FlavourOption = Annotated[
    str,
    typer.Option("--flavour", metavar="auto|tensorrt|tensorrt-rtx", help="Which TensorRT builds the engine."),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="fp32|tf32|fp16|bf16|int8-qdq",
        help="What the engine computes in. [default: what the model holds]",
        show_default=False,
    ),
]
MinOption = Annotated[
    list[str] | None,
    typer.Option("--min", metavar="NAME:1x3xHxW", help="Smallest size of an input. Repeatable.", show_default=False),
]
OptOption = Annotated[
    list[str] | None,
    typer.Option("--opt", metavar="NAME:1x3xHxW", help="Size to be fast at. Repeatable.", show_default=False),
]
MaxOption = Annotated[
    list[str] | None,
    typer.Option("--max", metavar="NAME:1x3xHxW", help="Largest size of an input. Repeatable.", show_default=False),
]
WorkspaceOption = Annotated[
    int | None,
    typer.Option("--workspace", metavar="MIB", min=1, help="Memory for scratch data, in MiB.", show_default=False),
]
TimingCacheOption = Annotated[
    Path | None,
    typer.Option(
        "--timing-cache", metavar="FILE", help="Where TensorRT keeps kernel timings between builds.", show_default=False
    ),
]
LevelOption = Annotated[
    int | None,
    typer.Option(
        "--optimization-level", metavar="0-5", min=0, max=5, help="How long TensorRT searches.", show_default=False
    ),
]
CapabilityOption = Annotated[
    list[str] | None,
    typer.Option(
        "--compute-capability",
        metavar="8.6|12.0|current",
        help="A GPU to build for (tensorrt-rtx). Repeatable.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    int | None, typer.Option("--device", metavar="N", min=0, help="The GPU to build on.", show_default=False)
]
PluginsOption = Annotated[
    list[Path] | None,
    typer.Option("--plugins", metavar="FILE", help="Library of TensorRT plugins. Repeatable.", show_default=False),
]
RefitOption = Annotated[bool, typer.Option("--refit", help="Weights can be replaced later.")]
StripOption = Annotated[bool, typer.Option("--strip-plan", help="Leave the weights out of the engine.")]
CompatibleOption = Annotated[
    bool, typer.Option("--version-compatible", help="The engine runs in later versions of TensorRT too.")
]
StreamingOption = Annotated[
    bool, typer.Option("--weight-streaming", help="Weights may stay in host memory and be streamed.")
]
