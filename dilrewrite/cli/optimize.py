"""dilrewrite optimize MODEL: the whole way from a model to a proved, rewritten one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dilrewrite.cli._common import progress, show
from dilrewrite.cli._options import ENGINE, MODEL, command
from dilrewrite.errors import UsageError
from dilrewrite.options import Building, Option, said

OWN = {
    "model": MODEL,
    "build_engine": Option("--build-engine", "Also build the TensorRT engine of the result."),
    "no_report": Option("--no-report", "Write no report files."),
}


@command(
    "model output strategy eliminate max_dilation lift_all only skip backend budget min_gain_percent decisions "
    f"save_decisions keep_micro cache no_cache build_engine engine {ENGINE} shapes inputs verify report report_format "
    "no_report rtol atol external_data dry_run force seed threads custom_op_library as_json verbose quiet",
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
