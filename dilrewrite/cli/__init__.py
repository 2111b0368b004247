"""The command line. One file per command; each parses, calls the library, prints, and returns the exit code."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from dilrewrite._version import __version__
from dilrewrite.cli._process import interruptible, streams
from dilrewrite.errors import FAULT, DilrewriteError, FailedError, own_fault
from dilrewrite.keywords import typed

if TYPE_CHECKING:
    from pathlib import Path

    import typer

INTERRUPTED = 130

COMMANDS = (
    *("inspect", "optimize", "sweep", "fold", "verify", "bench", "build", "convbench", "backends", "targets", "demo"),
)
"""Each has a file of its name, in this order on `--help`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; errors a user can cause are one line on standard error."""
    _written().clear()
    given = list(sys.argv[1:] if arguments is None else arguments)
    with interruptible():
        try:
            with streams(), typed():
                result = _app()(args=given, prog_name="dilrewrite", standalone_mode=False)
        except DilrewriteError as error:
            _say(error.typed)
            pointer = getattr(error, "pointer", None)
            if pointer is not None:  # of a text that cannot be read: where
                _write(pointer)
            return error.exit_code
        except MemoryError:
            _say("out of memory; give smaller inputs with --shape, or use a larger machine")
            return FailedError.exit_code
        except KeyboardInterrupt:
            return _interrupted()
        except BaseException as error:  # click's own: wrong usage, --help, --version, abort
            return _click_exit(error, given)
    if result == INTERRUPTED:  # what typer makes of Ctrl-C
        return _interrupted()
    return result if isinstance(result, int) else 0


@functools.cache
def _app() -> typer.Typer:
    """Return the commands. Imported here, where Ctrl-C is one line already."""
    import typer

    from dilrewrite.cli import _help

    app = typer.Typer(
        name="dilrewrite",
        help="Rewrite dilated convolutions of ONNX models into exactly equal undilated subgraphs, and prove it.",
        cls=_help.Group,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=_help.epilog([("whatever is fastest, in a new model", "optimize model.onnx")]),
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for name in COMMANDS:
        run = importlib.import_module(f"dilrewrite.cli.{name}").run
        app.command(name, cls=_help.Command, epilog=_help.epilog(run.examples))(run)

    def show_version(value: bool) -> None:
        if value:
            typer.echo(f"dilrewrite {__version__}")
            raise typer.Exit

    @app.callback()
    def common(
        version: bool = typer.Option(
            False, "--version", callback=show_version, is_eager=True, help="Show the version and exit."
        ),
    ) -> None:
        """Rewrite dilated convolutions of ONNX models into exactly equal undilated subgraphs, and prove it."""

    return app


def _write(text: str) -> None:
    """Print on standard error, where that can be written: the exit code says it too."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)


def _say(text: str) -> None:
    _write(f"dilrewrite: {text}")


def _written() -> list[Path]:
    """Return the files that were written; without the module that writes them there are none."""
    module = sys.modules.get("dilrewrite.staging")
    return module.WRITTEN if module is not None else []


def _interrupted() -> int:
    written = _written()
    _say(f"interrupted; {f'{written[-1]} was already written' if written else 'nothing was written'}")
    return INTERRUPTED


def _click_exit(error: BaseException, given: Sequence[str]) -> int:
    """Turn what click raises into an exit code; anything else is a bug and goes on."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "Abort" in kinds:
        return _interrupted()
    if "NoArgsIsHelpError" in kinds:
        _write(str(error))
        return 2
    if "ClickException" in kinds:
        from dilrewrite.cli._help import wording

        _say(wording(error, given[0] if given and given[0] in COMMANDS else ""))
        return 2
    if isinstance(error, SystemExit):  # what completes in a shell ends so
        return int(error.code or 0)
    if "Exit" in kinds:
        return int(getattr(error, "exit_code", 0))
    own_fault(error)
    if FAULT not in getattr(error, "__notes__", ()):  # Python 3.10 has no notes
        _say(FAULT)
    raise error
