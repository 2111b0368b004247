"""Makes commands: typer reads a signature that is written at run time, from the options of `dilrewrite.options`."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from dilrewrite.options import Building, Option, every_option

SCREEN = "Screen"
"""The group of what is said of the output on the screen, and of the command itself."""

ENGINE = " ".join(Building.options())
"""The options of building engines, which `build` and `optimize --build-engine` share."""

REQUIRED = inspect.Parameter.empty

MODEL = Option("", "An ONNX model, opset 7 or later.", "MODEL", kind=Path, default=REQUIRED)

SHOWN = {
    "as_json": Option("--json", "Print the report as JSON, and nothing else, on standard output.", group=SCREEN),
    "verbose": Option("--verbose -v", "Print every table, not one screen.", group=SCREEN),
    "quiet": Option("--quiet -q", "Print nothing but errors.", group=SCREEN),
}

Example = tuple[str, str]
"""What it is for, and the arguments of `dilrewrite`."""


def _strategies() -> Iterable[str]:
    from dilrewrite.forms.regions import region_forms
    from dilrewrite.forms.strategies import every_strategy

    return [*every_strategy(), *region_forms()]


def _backends() -> Iterable[str]:
    from dilrewrite.runtimes import timed_backends

    return ["auto", *(name for known in timed_backends().values() for name in (known.alias, known.name) if name)]


def _formats() -> Iterable[str]:
    from dilrewrite.reports.formats import formats

    return [name for name, form in formats().items() if form.filename is not None]


NAMES = {"strategy": _strategies, "backend": _backends, "report_format": _formats}
"""The names that an option takes, for the completion of shells."""


def command(
    names: str, examples: Sequence[Example], options: Mapping[str, Option] | None = None, **changes: Mapping[str, Any]
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Make a command of a function that takes the options that are named, in this order in their groups on `--help`.

    `examples` stand below them. `options` are the command's own, `changes` what is said of others in this command.
    Where one that can be given several times is not given, the function gets ().
    """
    known = {**every_option(), **SHOWN, **(options or {})}
    known |= {name: replace(known[name], **change) for name, change in changes.items()}
    chosen = {name: known[name] for name in names.split()}
    several = [name for name, option in chosen.items() if typing.get_origin(option.kind) is tuple]

    def make(run: Callable[..., int]) -> Callable[..., int]:
        def call(**given: Any) -> int:
            return run(**given | {name: tuple(given[name] or ()) for name in several})

        parameters = [_parameter(name, option) for name, option in chosen.items()]
        call.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
        call.__annotations__ = {one.name: one.annotation for one in parameters}
        call.__doc__ = run.__doc__
        call.examples, call.options = examples, chosen  # type: ignore[attr-defined]
        return call

    return make


def _completion(name: str, option: Option) -> Callable[[str], list[str]] | None:
    """Return what completes the option's value in a shell, where it is one of several names."""
    names = NAMES.get(name, (lambda: option.choices) if option.choices else None)

    def complete(incomplete: str) -> list[str]:
        assert names is not None
        return [one for one in names() if one.startswith(incomplete)]

    return complete if names is not None else None


def _parameter(name: str, option: Option) -> inspect.Parameter:
    """Return an option as typer reads it. A default that is a value is shown."""
    kind, default = option.kind, option.default
    if typing.get_origin(kind) is tuple:
        kind, default = list[typing.get_args(kind)[0]] | None, None  # type: ignore[misc]
    shown: dict[str, Any] = {"help": option.help, "metavar": option.metavar, "show_default": False}
    if option.flags:
        shown |= {"show_default": default is not None}
        shown |= {"min": option.low, "max": option.high} if option.high is not None else {}
        shown |= {"rich_help_panel": option.group, "autocompletion": _completion(name, option)}
    flags: Any = option.flags.split()
    spelled = typer.Option(*flags, **shown) if flags else typer.Argument(**shown)
    annotation: Any = Annotated[kind, spelled]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
