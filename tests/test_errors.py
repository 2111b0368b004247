"""Errors say what, where and what to do in one line, and carry the exit code."""

from __future__ import annotations

import pytest

from dilrewrite.errors import DiffersError, DilrewriteError, FailedError, MissingError, UsageError, choices, meant


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


def test_what_was_meant() -> None:
    names = ["space_to_batch", "im2col", "int8-qdq"]
    assert [meant(word, names) for word in ("Space-to-bach", "im2coll", "int8_qd")] == names
    assert meant("magic", names) is None
    assert choices("im2co", names) == "did you mean im2col? Choose one of space_to_batch, im2col, int8-qdq"
    assert choices("magic", names) == "choose one of space_to_batch, im2col, int8-qdq"


def test_other_words_for_python_leave_those_of_the_command_line() -> None:
    error = UsageError("--seed -1: too low", hint="leave --seed out")
    error.reword(lambda text: text.replace("--seed", "seed"))
    assert str(error) == "seed -1: too low; leave seed out"
    assert error.args == ("seed -1: too low",)
    assert error.typed == "--seed -1: too low; leave --seed out"
