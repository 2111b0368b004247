"""Reads the small arithmetic of profiles, such as `(k-1)*d+1` or `max(d)*Cin`; never `eval`.

Values are whole numbers, fractions, texts, and tuples with a value for each axis. A value that is not known is `None`,
and so is what hangs on it.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Value = Any
"""A number, a text, a tuple of numbers, or `None`."""

MOST_CHARACTERS = 200
"""A longer text is no rule."""
MOST_DIGITS = 18

_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: Fraction,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_FUNCTIONS: dict[str, Callable[[Any], Any]] = {"max": max, "min": min, "sum": sum, "prod": math.prod}
_EACH: dict[str, Callable[[Any], Any]] = {"ceil": math.ceil, "abs": abs}
FUNCTIONS = (*_FUNCTIONS, *_EACH)


@dataclass(frozen=True, slots=True)
class Expression:
    """A text that was checked; `value` computes it."""

    text: str
    tree: ast.expr

    def value(self, names: Mapping[str, Value]) -> Value:
        """Return what it is with these values of its names; `None` where that is not known."""
        try:
            return _value(self.tree, names)
        except (ZeroDivisionError, TypeError):  # an axis more or less, a text among numbers
            return None

    def holds(self, names: Mapping[str, Value]) -> bool | None:
        """Say whether it is true, on every axis; `None` where that is not known."""
        return truth(self.value(names))


def parse(text: str, names: Collection[str]) -> Expression:
    """Return the expression that a text is; raises `ValueError` with the reason where it is none over these names."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it has more than {MOST_CHARACTERS} characters")
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError("it is no expression") from error
    _check(tree, names)
    return Expression(text, tree)


def truth(value: Value) -> bool | None:
    """Return whether a value is true, on every axis."""
    if isinstance(value, tuple):
        return False if any(one is not None and not one for one in value) else None if None in value else True
    return None if value is None else bool(value)


def _check(tree: ast.expr, names: Collection[str]) -> None:
    """Raise `ValueError` for anything that is not listed here."""
    match tree:
        case ast.Constant(value=int() as value) if not isinstance(value, bool) and len(str(value)) <= MOST_DIGITS:
            return
        case ast.Constant(value=str()):
            return
        case ast.Name(id=name) if name in names:
            return
        case ast.Name(id=name):
            raise ValueError(f"it has {name!r}, which is none of {', '.join(sorted(names))}")
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            parts = [left, right]
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            parts = [operand]
        case ast.BoolOp(_, values):
            parts = values
        case ast.Compare(left, [op], [right]) if type(op) in _BINARY:
            parts = [left, right]
        case ast.Call(ast.Name(id=name), [argument], []) if name in FUNCTIONS:
            parts = [argument]
        case _:
            raise ValueError(f"{ast.unparse(tree)!r} is not arithmetic of + - * / // %, a comparison, and, or, not, "
                             f"or {', '.join(FUNCTIONS)} of one value")  # fmt: skip
    for part in parts:
        _check(part, names)


def _value(tree: ast.expr, names: Mapping[str, Value]) -> Value:
    match tree:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names.get(name)
        case ast.BinOp(left, op, right):
            return _spread(_of_numbers(_BINARY[type(op)]), _value(left, names), _value(right, names))
        case ast.Compare(left, [op], [right]):
            return _spread(_BINARY[type(op)], _value(left, names), _value(right, names))
        case ast.UnaryOp(ast.Not(), operand):
            known = truth(_value(operand, names))
            return None if known is None else not known
        case ast.UnaryOp(_, operand):
            return _spread(operator.sub, 0, _value(operand, names))
        case ast.BoolOp(op, values):
            found = [truth(_value(one, names)) for one in values]
            decided = isinstance(op, ast.Or)
            return decided if decided in found else None if None in found else not decided
        case ast.Call(ast.Name(id=name), [argument]):
            value = _value(argument, names)
            if value is None or (isinstance(value, tuple) and None in value):
                return None
            if name in _EACH:
                return _spread(lambda one, _: _EACH[name](one), value, 0)
            return _FUNCTIONS[name](value if isinstance(value, tuple) else (value,)) if value != () else None
    raise AssertionError(tree)


def _of_numbers(act: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return an operator that takes no texts: Python would repeat one (`'a'*9`), or fill numbers into it."""

    def acted(left: Any, right: Any) -> Any:
        if isinstance(left, str) or isinstance(right, str):
            raise TypeError("a text among numbers")
        return act(left, right)

    return acted


def _spread(act: Callable[[Any, Any], Any], left: Value, right: Value) -> Value:
    """Apply an operator to two values, axis by axis where one of them has axes."""
    if isinstance(left, tuple) or isinstance(right, tuple):
        length = len(left if isinstance(left, tuple) else right)
        pair = [one if isinstance(one, tuple) else (one,) * length for one in (left, right)]
        if len(pair[0]) != len(pair[1]):
            return None
        return tuple(_spread(act, a, b) for a, b in zip(*pair, strict=True))
    return None if left is None or right is None else act(left, right)
