"""Old opsets with unknown extents: every strategy emits and is right, or names the opset and the operator it lacks."""

from __future__ import annotations

import re

import pytest

from dilrewrite.forms.strategies import Refusal, every_strategy
from tests.cases import Case
from tests.contract import PROMISES, check, emit, may_refuse


def dynamic(opset: int, rank: int, unknown: tuple[int, ...], **changes: object) -> Case:
    values: dict[str, object] = {
        "topic": "opset",
        "extents": (9, 8, 7)[:rank],
        "kernel": (3, 3, 2)[:rank],
        "strides": (1,) * rank,
        "dilations": (2,) * rank,
        "begin": (2,) * rank,
        "end": (1,) * rank,
        "channels": 2,
        "outputs": 2,
        "batch": 2,
        "unknown": unknown,
        "unknown_batch": True,
        "opset": opset,
        "ir": 4,
        "activation": opset % 2 == 0,
    }
    return Case(**{**values, **changes})  # type: ignore[arg-type]


SHAPES = {
    "1d": (1, (0,), {}),
    "2d_square": (2, (0, 1), {}),
    "2d_unequal": (2, (0, 1), {"dilations": (2, 3)}),
    "2d_one_axis_known": (2, (1,), {}),
    "3d": (3, (0, 1, 2), {}),
    "2d_stride_equals_dilation": (2, (0, 1), {"strides": (2, 2)}),
    "1d_grain": (1, (0,), {"strides": (2,), "dilations": (4,), "begin": (4,), "end": (4,)}),
    "1d_overlap": (1, (0,), {"strides": (2,), "dilations": (3,), "begin": (3,)}),
    "1d_negative_pads": (1, (0,), {"begin": (-1,), "end": (3,)}),
    "1d_same_upper": (1, (0,), {"auto_pad": "SAME_UPPER", "begin": (0,), "end": (0,)}),
    "1d_same_lower_strided": (
        1, (0,), {"auto_pad": "SAME_LOWER", "begin": (0,), "end": (0,), "strides": (2,), "dilations": (4,)},
    ),
    "2d_same_upper_strided": (
        2, (0, 1), {"auto_pad": "SAME_UPPER", "begin": (0, 0), "end": (0, 0), "strides": (2, 2)},
    ),
    "2d_depthwise": (2, (0, 1), {"group": 3, "channels": 1, "outputs": 1}),
    "batch_only": (2, (), {}),
    "1d_leave_2": (1, (0,), {"dilations": (4,), "max_dilation": 2, "begin": (4,), "end": (4,)}),
}  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("opset", range(7, 12))
@pytest.mark.parametrize("name", sorted(every_strategy()))
@pytest.mark.grid(4)
def test_emits_and_is_right_or_names_what_the_opset_lacks(name: str, opset: int, shape: str) -> None:
    rank, unknown, changes = SHAPES[shape]
    case = dynamic(opset, rank, unknown, **changes)
    strategy = every_strategy()[name]
    if check(name, strategy, case) == "emitted" or name not in PROMISES:
        return
    made = emit(name, strategy, case)
    assert isinstance(made, Refusal)
    allowed = may_refuse(name, strategy, case)
    assert allowed is not None
    if allowed.startswith("opset"):
        assert f"opset {opset} has no " in made.reason
        assert re.search(r"has no (Pad|Slice)\b.*\(opset 1[01]\)", made.reason)
    else:
        assert "opset" not in made.reason


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("opset", [10, 11])
def test_from_opset_10_on_nothing_is_lacking(opset: int, shape: str) -> None:
    rank, unknown, changes = SHAPES[shape]
    case = dynamic(opset, rank, unknown, **changes)
    assert check("slice_to_batch", every_strategy()["slice_to_batch"], case) == "emitted"
