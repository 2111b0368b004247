"""The command line. One file per command; each parses, calls the library, prints, and returns the exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage or unusable model, 3 results differ, 4 something is missing,
130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from dilrewrite._version import __version__
from dilrewrite.cli import backends, bench, build, convbench, inspect, optimize, verify
from dilrewrite.errors import DilrewriteError, FailedError

INTERRUPTED = 130

app = typer.Typer(
    name="dilrewrite",
    help="Rewrite dilated convolutions of ONNX models into exactly equal undilated subgraphs, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("inspect")(inspect.command)
app.command("optimize")(optimize.command)
app.command("verify")(verify.command)
app.command("bench")(bench.command)
app.command("build")(build.command)
app.command("convbench")(convbench.command)
app.command("backends")(backends.command)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"dilrewrite {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    """Rewrite dilated convolutions of ONNX models into exactly equal undilated subgraphs, and prove it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; errors a user can cause are one line on standard error."""
    try:
        result = app(args=list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False)
    except DilrewriteError as error:
        typer.echo(f"dilrewrite: {error}", err=True)
        pointer = getattr(error, "pointer", None)
        if pointer is not None:  # of a text that cannot be read: where
            typer.echo(pointer, err=True)
        return error.exit_code
    except MemoryError:
        typer.echo("dilrewrite: out of memory; give smaller inputs with --shape, or use a larger machine", err=True)
        return FailedError.exit_code
    except KeyboardInterrupt:
        typer.echo("dilrewrite: interrupted; nothing was written", err=True)
        return INTERRUPTED
    except BaseException as error:  # click's own: wrong usage, --help, --version, abort
        return _click_exit(error)
    if result == INTERRUPTED:  # what typer makes of Ctrl-C
        typer.echo("dilrewrite: interrupted; nothing was written", err=True)
    return result if isinstance(result, int) else 0


def _click_exit(error: BaseException) -> int:
    """Turn what click raises into an exit code; anything else is a bug and goes on."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "Abort" in kinds:
        typer.echo("dilrewrite: interrupted; nothing was written", err=True)
        return INTERRUPTED
    if "NoArgsIsHelpError" in kinds:
        typer.echo(str(error), err=True)
        return 2
    if "ClickException" in kinds:
        message = " ".join(error.format_message().split())  # type: ignore[attr-defined]
        typer.echo(f"dilrewrite: {message}; see dilrewrite --help", err=True)
        return 2
    if "Exit" in kinds:
        return int(getattr(error, "exit_code", 0))
    raise error
