"""dilrewrite inspect MODEL: every dilated Conv, the forms that apply, and why others refuse."""

from __future__ import annotations

from dilrewrite.cli._common import JsonOption, MaxDilationOption, ModelArgument, QuietOption, ReportOption, show


def command(
    model: ModelArgument,
    max_dilation: MaxDilationOption = 1,
    report: ReportOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """List every dilated Conv: where, geometry, work on padding, which forms apply and why others refuse."""
    import dilrewrite

    return show(dilrewrite.inspect(model, max_dilation=max_dilation, report=report), as_json=as_json, quiet=quiet)
