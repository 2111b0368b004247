"""Plain data become dataclasses again, and what is something else is named."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from dilrewrite import record
from dilrewrite._compat import StrEnum


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Point:
    x: float
    label: str | None


@dataclass(frozen=True)
class Shape:
    points: tuple[Point, ...]
    interval: tuple[float, float] | None
    names: Mapping[str, int]
    colour: Colour
    mode: Literal["blocks", "interleaved"]
    other: Any = None


SHAPE = Shape((Point(1.5, "a"), Point(2.0, None)), (0.5, 1.5), {"n": 3}, Colour.RED, "blocks", [1])


def plain() -> Any:
    return json.loads(json.dumps(dataclasses.asdict(SHAPE)))


def test_round_trip() -> None:
    assert record.read(Shape, plain(), "the file") == SHAPE
    assert record.read(Shape, plain() | {"interval": None}, "the file") == dataclasses.replace(SHAPE, interval=None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"points": [{"x": 1}]}, "points[0] has no 'label'"),
        ({"points": {}}, "points is {}"),
        ({"interval": [1, 2, 3]}, "interval is [1, 2, 3]"),
        ({"names": {"n": "3"}}, 'names.n is "3"'),
        ({"names": {"n": True}}, "names.n is true"),
        ({"colour": "blue"}, 'colour is "blue"'),
        ({"colour": ["red"]}, 'colour is ["red"]'),
        ({"mode": "other"}, 'mode is "other"'),
    ],
)
def test_names_what_is_wrong(change: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError) as caught:
        record.read(Shape, plain() | change, "the file")
    assert str(caught.value) == said


def test_names_what_is_missing() -> None:
    with pytest.raises(TypeError, match="the file has no 'points'"):
        record.read(Shape, {}, "the file")
