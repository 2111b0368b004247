"""dilrewrite fold MODEL: space-to-batch sandwiches become dilated Convs again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dilrewrite.cli._common import progress, show
from dilrewrite.cli._options import command
from dilrewrite.cli.optimize import OWN

EXAMPLES = [
    ("an export of TensorFlow or Keras, with its dilated Convs again", "fold model.onnx"),
    ("which sandwiches there are, and why others are none", "fold model.onnx --dry-run"),
    ("only some of them", "fold model.onnx --only aspp -o some.onnx"),
]


@command(
    "model only skip shapes inputs seed custom_op_library verify rtol atol threads output force dry_run report "
    "report_format no_report external_data as_json verbose quiet",
    EXAMPLES,
    {name: OWN[name] for name in ("model", "no_report")},
    output={"help": "The new model. [default: MODEL.folded.onnx]"},
    verify={"help": "How much to prove."},
    only={"help": "Fold only sandwiches whose Conv's name matches."},
    skip={"help": "Leave sandwiches whose Conv's name matches."},
)
def run(model: Path, output: Path | None, *, as_json: bool, verbose: bool, quiet: bool, **options: Any) -> int:
    """Fold space-to-batch sandwiches back into dilated Convs; prove the result, and write it beside the model."""
    import dilrewrite

    options["report"] = None if options.pop("no_report") else options["report"] or "beside"
    with progress(hidden=quiet or as_json) as show_progress:
        report = dilrewrite.fold(model, output, progress=show_progress, **options)
    return show(report, as_json=as_json, verbose=verbose, quiet=quiet)
