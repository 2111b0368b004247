"""Memory that holds large numbers when it is new: what a runtime reads and never wrote shows in its results."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections.abc import Iterator

M_PERTURB = -6
"""Of glibc's mallopt: the byte whose complement fills memory when it is given."""

_fills = itertools.cycle((0x81, 0x82, 0x83, 0x84))
"""Bytes of 0x7e to 0x7b: from 8e37 down to 1e36 in float32, NaN or 6e4 in float16."""


@contextlib.contextmanager
def soiled() -> Iterator[None]:
    """Fill what this process is given, each time with other numbers, where glibc does that; elsewhere do nothing.

    By luck such memory holds zeros, and results are right: not here, and not twice the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        yield
        return
    mallopt(M_PERTURB, next(_fills))
    try:
        yield
    finally:
        mallopt(M_PERTURB, 0)
