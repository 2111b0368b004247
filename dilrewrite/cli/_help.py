"""What `--help` shows: options by group, whole summaries, examples; and what is said of wrong usage."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from dilrewrite.cli._options import SCREEN, Example
from dilrewrite.errors import UsageError, choices, meant, printable

ENGINES = (".engine", ".plan", ".trt")


def epilog(examples: Iterable[Example]) -> str:
    """Return examples as lines: what each is for, and the command."""
    return "\n".join(line for purpose, arguments in examples for line in (f"# {purpose}", f"dilrewrite {arguments}"))


class Command(TyperCommand):
    """A command whose options stand in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, and the options by group."""
        _groups(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the examples, a line each."""
        _examples(self, formatter)


class Group(TyperGroup):
    """The commands, each with its whole summary."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands, and then the options."""
        self.format_commands(ctx, formatter)
        _groups(self, ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write every command with all of its summary."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, " ".join((one.help or "").split())) for name, one in self.commands.items()])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the examples, a line each."""
        _examples(self, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the command; raises `UsageError` that says what was probably meant."""
        name = args[0]
        if name in self.commands or name.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if Path(name).suffix.lower() in (".onnx", *ENGINES):
            command = "inspect" if Path(name).suffix.lower() in ENGINES else "optimize"
            raise UsageError(f"{name} is no command", hint=f"for a model: dilrewrite {command} {shlex.join(args)}")
        raise UsageError(f"there is no command {name!r}", hint=f"{choices(name, self.commands)}; see dilrewrite --help")


def _groups(command: Any, ctx: Any, formatter: Any) -> None:
    groups: dict[str, list[Any]] = {}
    for param in command.get_params(ctx):
        if (record := param.get_help_record(ctx)) is not None:
            own = SCREEN if param.param_type_name == "option" else "Arguments"
            groups.setdefault(getattr(param, "rich_help_panel", None) or own, []).append(record)
    for name, records in groups.items():
        with formatter.section(name):
            formatter.write_dl(records)


def _examples(command: Any, formatter: Any) -> None:
    if command.epilog:
        with formatter.section("Examples"):
            for line in command.epilog.splitlines():
                formatter.write(f"  {line}\n")


def wording(error: Any, command: str) -> str:
    """Return in one line what click says of arguments of `command`: what is wrong, and whose help applies."""
    context, option = error.ctx, getattr(error, "option_name", "")
    page = f"see {' '.join(['dilrewrite', *filter(None, [command])])} --help"
    if hasattr(error.__cause__, "errors"):  # a value of the wrong kind, in the words of typer's library
        return f"{printable(_no_value(error.param.opts[0], error.__cause__.errors()[0]))}; {page}"
    if context is None or not any(kind.__name__ == "NoSuchOption" for kind in type(error).__mro__):
        return f"{printable(error.format_message()).removesuffix('.')}; {page}"
    root = context.find_root().command
    others = [name for name, other in root.commands.items() if option in _flags(other)]
    near = meant(option, _flags(context.command))
    have = f"{' and '.join(others[:2])} {'have' if others[1:] else 'has'}"
    hint = f"dilrewrite {have} it; " if others else f"did you mean {near}? " if near else ""
    return f"{printable(f'there is no option {option}')}; {hint}{page}"


def _no_value(flag: str, fault: Mapping[str, Any]) -> str:
    """Return in the words of all other messages that an option cannot have a value."""
    low, high = (fault.get("ctx", {}).get(bound) for bound in ("ge", "le"))
    words = {
        "float_parsing": "a number is needed",
        "int_parsing": "a whole number is needed",
        "greater_than_equal": f"at least {low} is needed",
        "less_than_equal": f"at most {high} is needed",
    }
    return f"{flag} {fault['input']}: {words.get(fault['type'], fault['msg'])}"


def _flags(command: Any) -> list[str]:
    return [flag for param in command.params for flag in param.opts if flag.startswith("-")]
