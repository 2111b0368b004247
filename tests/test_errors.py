"""Errors say what, where and what to do in one line, and carry the exit code."""

from __future__ import annotations

import pytest

from dilrewrite.errors import DiffersError, DilrewriteError, FailedError, MissingError, UsageError


@pytest.mark.parametrize(
    ("kind", "code"),
    [(DilrewriteError, 1), (FailedError, 1), (UsageError, 2), (DiffersError, 3), (MissingError, 4)],
)
def test_exit_codes(kind: type[DilrewriteError], code: int) -> None:
    assert kind("what").exit_code == code
    assert issubclass(kind, DilrewriteError)


@pytest.mark.parametrize("space", ["\n", "\r\n", "\t", "  ", "\u2028", "\x85", "\x0c"])
def test_always_one_line(space: str) -> None:
    error = UsageError(f"{space}what{space}and where{space}", hint=f"what{space}to do")
    assert str(error) == "what and where; what to do"
    assert (error.message, error.hint) == ("what and where", "what to do")


def test_without_a_hint() -> None:
    assert str(FailedError("what")) == "what"
    assert str(FailedError("what", hint=" \n")) == "what"
