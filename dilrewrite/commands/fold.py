"""Folds space-to-batch sandwiches back into dilated Convs: the way of `optimize`, with one form and no timing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dilrewrite.commands.optimize import optimize
from dilrewrite.forms.strategies import FOLD
from dilrewrite.keywords import Progress, silent
from dilrewrite.model.tensors import InMemory
from dilrewrite.options import CommandOptions, Measuring
from dilrewrite.reports.report import Report


def fold(
    place: Path | InMemory, options: CommandOptions, *, beside: bool = False, progress: Progress = silent
) -> Report:
    """Fold the sandwiches of the model at `place`, prove them, and write the result; see `optimize`."""
    scope = replace(options.scope, strategy=FOLD)
    wanted = replace(options, scope=scope, measuring=Measuring(budget=0, no_cache=True))
    return optimize(place, wanted, beside=beside, progress=progress, command="fold")
