"""Runs the command line with `python -m dilrewrite`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from dilrewrite.cli import main
    except KeyboardInterrupt:  # from the first import on, Ctrl-C is an exit code
        sys.exit(130)
    sys.exit(main())
