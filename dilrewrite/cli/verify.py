"""dilrewrite verify BEFORE AFTER: whether two models compute the same function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from dilrewrite.cli._common import progress, show
from dilrewrite.cli._options import MODEL, command

MODELS = {
    "before": replace(MODEL, help="The original model.", metavar="BEFORE"),
    "after": replace(MODEL, help="The model to compare.", metavar="AFTER"),
}


EXAMPLES = [
    ("do two models compute the same?", "verify model.onnx other.onnx"),
    ("on your own data, within a tolerance", "verify model.onnx other.onnx --inputs data.npz --rtol 1e-3"),
    ("in CI, as test cases", "verify model.onnx other.onnx --report out --report-format junit"),
]


@command(
    "before after shapes inputs seed custom_op_library rtol atol threads report report_format as_json verbose quiet",
    EXAMPLES,
    MODELS,
)
def run(before: Path, after: Path, *, as_json: bool, verbose: bool, quiet: bool, **options: Any) -> int:
    """Compare two models: interface, checker findings, outputs on several inputs. Exit code 3 when they differ."""
    import dilrewrite

    with progress(hidden=quiet or as_json):
        report = dilrewrite.verify(before, after, **options)
    return show(report, as_json=as_json, verbose=verbose, quiet=quiet)
