"""dilrewrite build MODEL: the TensorRT engine of a model, with a side-car of all that is known of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dilrewrite.cli._common import progress, show
from dilrewrite.cli._options import ENGINE, MODEL, command
from dilrewrite.errors import printable

EXAMPLES = [
    ("an engine in float16, with all that is known of it beside it", "build model.onnx --precision fp16"),
    ("for 16 to 256 frames", "build model.onnx --min 1x80x16 --opt 1x80x64 --max 1x80x256"),
    ("with TensorRT for RTX, which needs no GPU to build", "build model.onnx --flavour tensorrt-rtx"),
]


@command(
    f"model {ENGINE} on inputs seed threads output force save_onnx export_layer_info report report_format as_json "
    "verbose quiet",
    EXAMPLES,
    {"model": MODEL},
    verbose={"help": "Print every table, and TensorRT's log on standard error."},
    output={"help": "The engine. [default: MODEL.engine]", "metavar": "ENGINE"},
    force={"help": "Replace an existing engine."},
    on={"help": "Build on another machine: ssh://[user@]host[:port], or a host of ssh's configuration."},
)
def run(model: Path, output: Path | None, *, as_json: bool, quiet: bool, verbose: bool, **options: Any) -> int:
    """Build a TensorRT engine; ENGINE.json beside it tells flavour, precision as built, profiles, layers, sizes."""
    import dilrewrite

    with progress(hidden=quiet or as_json or verbose) as show_progress, _told(shown=verbose) as tell:
        report = dilrewrite.build(model, output, progress=show_progress, tell=tell, **options)
    return show(report, as_json=as_json, verbose=verbose, quiet=quiet)


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
