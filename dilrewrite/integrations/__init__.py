"""Passes for the pipelines of other tools: a file for each tool, which needs that tool and nothing else does.

What they share: the options of `dilrewrite.optimize`, checked before any model is there, and what ends a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dilrewrite.errors import DiffersError, DilrewriteError, FailedError, UsageError
from dilrewrite.keywords import in_python
from dilrewrite.options import CommandOptions
from dilrewrite.reports.report import Report


def check(options: Mapping[str, Any]) -> None:
    """Raise `UsageError` for options that no model could make right."""
    CommandOptions.of(**options).check()
    if options.get("report") == "beside":
        raise UsageError("--report beside: a pass has no output that a report could be beside", hint="name a folder")


def failure(report: Report) -> DilrewriteError | None:
    """Return the error of a run that made no model: results differ, or dilation is left. `None` where it made one."""
    if report.exit_code == 0:
        return None
    kind = DiffersError if report.exit_code == DiffersError.exit_code else FailedError
    failures = report.verdict.failures if report.verdict is not None else ()
    error = kind(report.summary, hint="; ".join([*failures, *report.remaining]))
    error.reword(in_python)
    return error
