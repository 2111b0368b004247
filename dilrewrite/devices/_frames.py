"""Messages between this machine and a board: a line of JSON and blobs of bytes. Both ends, with nothing but Python.

Nothing that comes from a board is unpickled or executed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import IO, Any

READY = b"\0dilrewrite board\0"
"""What the board writes before its first message: a login shell may have printed something."""

MOST_JSON, MOST_BLOB = 2**28, 2**34
"""Bytes of a message that are believed."""


def write(stream: Any, message: dict[str, Any], blobs: Sequence[bytes | memoryview] = ()) -> int:
    """Write a message; return its bytes."""
    text = json.dumps({**message, "sizes": [len(blob) for blob in blobs]}).encode()
    head = len(text).to_bytes(8, "little") + text
    for part in (head, *blobs):
        view = memoryview(part)
        while len(view):
            view = view[stream.write(view) :]
    return len(head) + sum(map(len, blobs))


def read(stream: IO[bytes]) -> tuple[dict[str, Any], list[bytes], int]:
    """Return a message, its blobs and its bytes. Raises EOFError where it ends early, or is none."""
    size = int.from_bytes(_exactly(stream, 8), "little")
    if size > MOST_JSON:
        raise EOFError("it is no message")
    try:
        message = json.loads(_exactly(stream, size))
        sizes = message["sizes"]
        if not all(type(one) is int and 0 <= one <= MOST_BLOB for one in sizes):
            raise EOFError("it is no message")
    except (ValueError, TypeError, KeyError, RecursionError):
        raise EOFError("it is no message") from None
    return message, [_exactly(stream, one) for one in sizes], 8 + size + sum(sizes)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    parts = []
    while size:
        part = stream.read(min(size, 2**24))
        if not part:
            raise EOFError("it ends early")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
