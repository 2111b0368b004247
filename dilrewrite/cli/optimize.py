"""dilrewrite optimize MODEL: the whole way from a model to a proved, rewritten one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dilrewrite.cli._common import progress, show
from dilrewrite.cli._options import ENGINE, MODEL, command
from dilrewrite.errors import UsageError
from dilrewrite.options import Building, Option, Places, said

OWN = {
    "model": MODEL,
    "build_engine": Option("--build-engine", "Also build the TensorRT engine of the result.", group=Building.GROUP),
    "no_report": Option("--no-report", "Write no report files.", group=Places.GROUP),
}
EXAMPLES = [
    ("whatever is fastest here, at the size that you deploy", "optimize model.onnx --shape 1x3x512x512"),
    ("no dilated Conv is left", "optimize model.onnx --eliminate -o undilated.onnx"),
    ("what a device does not take is rewritten, and nothing else", "optimize model.onnx --target rknn-2.3.2"),
    ("one form, in some Convs", "optimize model.onnx --strategy space-to-batch --only aspp"),
    ("show what would be measured", "optimize model.onnx --dry-run"),
    ("measured on the board that it is for", "optimize model.onnx --on ssh://board"),
    ("measured on TensorRT, with an engine of the result", "optimize model.onnx --backend trt --build-engine"),
]


@command(
    "model strategy eliminate max_dilation target allow_requantised lift_all only skip decisions backend on budget "
    "cool_down_s min_gain_percent threads cache no_cache shapes inputs seed custom_op_library verify rtol atol output "
    "force dry_run report report_format "
    f"no_report save_decisions keep_micro external_data build_engine engine {ENGINE} as_json verbose quiet",
    EXAMPLES,
    OWN,
)
def run(model: Path, output: Path | None, *, as_json: bool, verbose: bool, quiet: bool, **options: Any) -> int:
    """Rewrite dilated Convs where that is faster; prove the result, write it and a folder of reports beside it."""
    import dilrewrite

    building = {option: options.pop(name) for name, option in Building.options().items()}
    given = {option: value for option, value in building.items() if said(value) and value != option.default}
    if options.pop("build_engine"):
        options["build_engine"] = {option.name: value for option, value in given.items()}
    elif given:
        names = ", ".join(option.flag for option in given)
        raise UsageError(f"{names}: options of building an engine", hint="ask for one with --build-engine")
    options["report"] = None if options.pop("no_report") else options["report"] or "beside"
    with progress(hidden=quiet or as_json) as show_progress:
        report = dilrewrite.optimize(model, output, progress=show_progress, **options)
    return show(report, as_json=as_json, verbose=verbose, quiet=quiet)
