"""Ctrl-C while the command line is still loading is exit code 130 and no traceback.

The package imports this first. In any other program it does nothing: signals are the program's own.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` takes a while to load
import os
import sys

STOPPING = tuple(getattr(_signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(_signal, name))
"""Signals that ask a program to end, by their numbers: Ctrl-C, `kill`, and a terminal that was closed."""


def leave(*_: object) -> None:
    """Be the handler of SIGINT until `dilrewrite.cli.main` takes over: nothing has begun that needs an end."""
    os._exit(130)


_arguments = getattr(sys, "argv", None) or [""]
_runs_module = _arguments[0] == "-m" and "dilrewrite" in sys.orig_argv  # so while Python looks for the module
_runs_script = os.path.basename(_arguments[0]) == "dilrewrite"  # noqa: PTH119 - pathlib takes a while too
if (_runs_module or _runs_script) and _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, leave)
