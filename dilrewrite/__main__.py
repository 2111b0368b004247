"""Runs the command line with `python -m dilrewrite`."""

from __future__ import annotations

import sys

from dilrewrite.cli import main

if __name__ == "__main__":
    sys.exit(main())
