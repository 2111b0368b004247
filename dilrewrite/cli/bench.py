"""dilrewrite bench MODEL [OTHER]: how long a model takes, or another one against it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dilrewrite.cli._common import progress, show
from dilrewrite.cli._options import MODEL, command
from dilrewrite.options import BENCH_BUDGET_S

OTHER = replace(MODEL, help="A model to time against it.", metavar="[OTHER]", kind=Path | None, default=None)


EXAMPLES = [
    ("how long a model takes, and how noisy this machine is", "bench model.onnx --shape 1x3x512x512"),
    ("which is faster, in pairs, with an interval", "bench model.onnx model.dilrewrite.onnx"),
    ("on a GPU, for a minute", "bench model.onnx model.dilrewrite.onnx --backend cuda --budget 60"),
]


@command(
    "model other backend on budget cool_down_s threads shapes inputs seed custom_op_library report report_format "
    "export_times export_profile as_json verbose quiet",
    EXAMPLES,
    {"model": MODEL, "other": OTHER},
    budget={"help": "How long it may take.", "default": BENCH_BUDGET_S},
)
def run(model: Path, other: Path | None, *, as_json: bool, verbose: bool, quiet: bool, **options: Any) -> int:
    """Time a model, or another against it in pairs: ratio with interval, and the noise of the first against itself."""
    import dilrewrite

    with progress(hidden=quiet or as_json) as show_progress:
        report = dilrewrite.bench(model, other, progress=show_progress, **options)
    return show(report, as_json=as_json, verbose=verbose, quiet=quiet)
