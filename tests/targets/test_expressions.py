"""Expressions of profiles: what they compute, and what they refuse."""

from __future__ import annotations

from fractions import Fraction

import pytest

from dilrewrite.targets.expressions import MOST_CHARACTERS, parse

NAMES = {
    "k": (3, 5),
    "d": (2, 1),
    "Cin": 24,
    "cp": 16,
    "wide": False,
    "text": "NOTSET",
    "open": None,
    "half": (1, None),
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("(k-1)*d+1", (5, 5)),
        ("max(d)*Cin", 48),
        ("prod(k)*ceil(Cin/cp)", 30),
        ("Cin/cp", Fraction(3, 2)),
        ("d//(2-d%2)", (1, 1)),
        ("-min(k)", -3),
        ("abs(1-k)", (2, 4)),
        ("sum(k)", 8),
        ("k == 3", (True, False)),
        ("text == 'NOTSET'", True),
        ("not wide and Cin > 8", True),
        ("k", (3, 5)),
        ("open*2", None),
        ("max(half)", None),
        ("half+1", (2, None)),
        ("open > 1 and wide", False),
        ("open > 1 or not wide", True),
        ("open > 1 or wide", None),
        ("Cin//0", None),
        ("text+1", None),
        ("text*99999999999 == 'a'", None),
        ("'%099999999999d' % Cin == text", None),
        ("text + text == text", None),
        ("k == 3 and Cin == 24", False),
    ],
)
def test_values(text: str, value: object) -> None:
    assert parse(text, NAMES).value(NAMES) == value


@pytest.mark.parametrize(
    ("text", "value"), [("k >= 3", True), ("k > 3", False), ("half > 0", None), ("half > 1", False), ("Cin", True)]
)
def test_it_holds_on_every_axis(text: str, value: bool | None) -> None:
    assert parse(text, NAMES).holds(NAMES) is value


@pytest.mark.parametrize(
    "text",
    [
        *("", "k +", "K", "k[0]", "k.real", "lambda: 1", "__import__('os')", "open('f')", "9**9**9", "1.5", "True"),
        *(
            "max(k, d)",
            "max(*k)",
            "max(k=1)",
            "[k]",
            "k if d else 1",
            "1 < k < 3",
            "k @ d",
            "k << 99",
            "~Cin",
            "f'{k}'",
        ),
        *("1" * 19, "k" + "+k" * MOST_CHARACTERS, "(" * 90 + "k" + ")" * 90 + "(", "k := 1", "exec('')"),
    ],
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text, NAMES)


def test_texts_of_names_are_no_code() -> None:
    assert parse("text == '__import__'", NAMES).value(NAMES) is False
