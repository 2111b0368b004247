"""What models are fed: shapes that they run on, seeded random data, and the user's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from dilrewrite.backends import CannotRun, Crashed, Io
from dilrewrite.errors import UsageError
from dilrewrite.inputs import LENGTHS, MANY_ELEMENTS, Case, Chooser, describe, load_inputs, parse_shapes, random_values

Array = np.ndarray[Any, Any]


def io(name: str, *shape: int | str | None, element: str = "float32") -> Io:
    return Io(name=name, element=element, shape=shape)


def chooser(*inputs: Io, given: Any = None, user: Any = None, seed: int = 0) -> Chooser:
    return Chooser(inputs, given=given or {}, user=user or {}, seed=seed)


def anything(feeds: Mapping[str, Array]) -> None:
    """A model that runs on everything."""


# -- --shape -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "shape"),
    [
        ("x:1x3x224x224", "x", (1, 3, 224, 224)),
        ("x:7", "x", (7,)),
        ("x:0x2", "x", (0, 2)),
        ("scalar:", "scalar", ()),
        ("serving_default_x:0:1x2", "serving_default_x:0", (1, 2)),
        ("a/b c:1", "a/b c", (1,)),
    ],
)
def test_shapes(text: str, name: str, shape: tuple[int, ...]) -> None:
    assert parse_shapes([text]) == {name: shape}


@pytest.mark.parametrize("text", ["", "x", "x:1xa", "x:1x", "x:x1", "x:-1x2", ":1x2", "x:1,2", "x:1.5", "x:1x?x2"])
def test_malformed_shapes(text: str) -> None:
    with pytest.raises(UsageError, match="not NAME:SIZExSIZE"):
        parse_shapes([text])


def test_several_shapes() -> None:
    assert parse_shapes(["x:1x2", "y:3"]) == {"x": (1, 2), "y": (3,)}
    assert parse_shapes([]) == {}


# -- --inputs ------------------------------------------------------------------------------------------------------


def test_load_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.arange(3), y=np.ones((2, 2), np.float16))
    found = load_inputs(tmp_path / "data.npz")
    assert {name: (v.dtype, v.shape) for name, v in found.items()} == {
        "x": (np.int64, (3,)),
        "y": (np.float16, (2, 2)),
    }


def test_user_data_are_fed_as_they_are() -> None:
    data = np.arange(6, dtype=np.float32).reshape(1, 6)
    case, sizes = chooser(io("x", 1, "n"), user={"x": data}).first(anything)
    assert case.name == "user"
    assert case.feeds["x"] is data
    assert sizes == {}


def test_user_data_beside_random_ones() -> None:
    data = {"x": np.ones((1, 6), np.float32)}
    case, sizes = chooser(io("x", 1, 6), io("z", "batch", "time"), user=data).first(anything)
    assert case.shapes == {"x": (1, 6), "z": (1, LENGTHS[0])}
    assert sizes == {"time": LENGTHS[0]}


@pytest.mark.parametrize(
    ("given", "user", "message"),
    [
        ({"z": (1,)}, {}, "--shape: the model has no input 'z'; its inputs: x"),
        ({}, {"z": np.ones(1)}, "--inputs: the model has no input 'z'; its inputs: x"),
        ({"x": (1, 3)}, {}, r"input 'x': shape \[1, 3\] does not fit \[1, 2, \?\]"),
        ({"x": (2, 2, 9)}, {}, r"shape \[2, 2, 9\] does not fit"),
        ({}, {"x": np.ones((1, 3, 9), np.float32)}, r"shape \[1, 3, 9\] does not fit"),
        ({}, {"x": np.ones((1, 2, 9))}, "'x' is float64, the model wants float32"),
    ],
)
def test_what_does_not_fit(given: Any, user: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chooser(io("x", 1, 2, None), given=given, user=user)


def test_unknown_rank_takes_any_shape() -> None:
    free = Io(name="x", element="float32", shape=None)
    case, _ = chooser(free, given={"x": (2, 3, 4)}).first(anything)
    assert case.shapes == {"x": (2, 3, 4)}
    with pytest.raises(UsageError, match=r"'x' .* has no shape to make random data for.*--inputs"):
        chooser(free).first(anything)


def test_what_is_no_tensor_must_be_given() -> None:
    optional = Io(name="o", element="other:optional(tensor(float))", shape=None)
    with pytest.raises(UsageError, match=r"'o' \(other:optional\(tensor\(float\)\)\) has no shape.*--inputs"):
        chooser(optional).first(anything)
    given = np.ones((1, 2), np.float32)
    case, _ = chooser(optional, user={"o": given}).first(anything)
    assert case.feeds["o"] is given


@pytest.mark.parametrize("kind", ["seq(tensor(float))", "optional(seq(tensor(float)))", "map(int64,tensor(float))"])
def test_what_no_array_can_be_is_refused_whatever_is_given(kind: str) -> None:
    odd = Io(name="s", element=f"other:{kind}", shape=None)
    for options in ({}, {"user": {"s": np.ones((1, 2), np.float32)}}):
        with pytest.raises(UsageError) as error:
            chooser(odd, **options).first(anything)  # type: ignore[arg-type]
        assert error.value.message.startswith(f"input 's' is a {kind}: no data can be made for it")
        assert "--verify none --strategy" in error.value.hint


def test_pads_that_the_runtime_does_not_take_are_no_matter_of_data() -> None:
    """ONNX Runtime's words for SAME_* with dilation."""

    def run(_feeds: Any) -> None:
        raise CannotRun("INVALID_ARGUMENT: Dilation not supported for AutoPadType::SAME_UPPER")

    with pytest.raises(UsageError, match="SAME_UPPER") as error:
        chooser(io("x", 1, 2, None)).first(run)
    assert error.value.hint.startswith("convert the model to opset 11 or later")
    assert "--inputs" not in error.value.hint


# -- random data ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("element", "dtype"),
    [
        ("float32", np.float32),
        ("float64", np.float64),
        ("float16", np.float16),
        ("bfloat16", ml_dtypes.bfloat16),
        ("int64", np.int64),
        ("int32", np.int32),
        ("int8", np.int8),
        ("uint8", np.uint8),
        ("bool", np.bool_),
        ("string", np.object_),
        ("int4", ml_dtypes.int4),
        ("complex64", np.complex64),
    ],
)
def test_random_values(element: str, dtype: Any) -> None:
    made = random_values(io("x", element=element), (3, 40), np.random.default_rng(0))
    assert (made.dtype, made.shape) == (np.dtype(dtype), (3, 40))
    if element == "string":
        assert set(made.ravel()) == {"a"}
        return
    again = random_values(io("x", element=element), (3, 40), np.random.default_rng(0))
    assert made.tobytes() == again.tobytes()
    assert len(np.unique(made.astype(np.complex64 if "complex" in element else np.float32))) > 1
    if element in ("int64", "int32"):
        assert set(np.unique(made)) == {0, 1}, "what is valid as an index, a length or a flag"
    if element in ("int8", "uint8"):
        assert made.min() >= 0


def test_random_scalars_and_empty() -> None:
    rng = np.random.default_rng(0)
    for element in ("float32", "int64", "bool", "string", "bfloat16"):
        assert random_values(io("x", element=element), (), rng).shape == ()
        assert random_values(io("x", element=element), (0, 3), rng).shape == (0, 3)


def test_seed() -> None:
    made = [chooser(io("x", 1, 8), seed=seed).first(anything)[0].feeds["x"] for seed in (0, 0, 1)]
    assert np.array_equal(made[0], made[1])
    assert not np.array_equal(made[0], made[2])


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_the_batch_is_one_and_equal_names_have_equal_sizes() -> None:
    case, sizes = chooser(io("x", "batch", "n"), io("y", None, "n", None), io("z", "batch", 5)).first(anything)
    size = LENGTHS[0]
    assert case.shapes == {"x": (1, size), "y": (1, size, size), "z": (1, 5)}
    assert sizes == {"n": size, "y[2]": size}


def test_until_the_model_runs() -> None:
    def run(feeds: Mapping[str, Array]) -> None:
        if feeds["x"].shape[1] > 16:
            raise CannotRun("too long")

    case, sizes = chooser(io("x", 1, "n")).first(run)
    assert (case.name, sizes) == ("first", {"n": 16})


def test_it_gives_up_with_the_first_reason() -> None:
    tried: list[int] = []

    def run(feeds: Mapping[str, Array]) -> None:
        tried.append(feeds["x"].shape[1])
        raise CannotRun(f"no {tried[-1]}")

    with pytest.raises(UsageError, match=rf"'x' \(float32 \[1, n\]\): no {LENGTHS[0]};.*--inputs.*--shape"):
        chooser(io("x", 1, "n")).first(run)
    assert tried == list(LENGTHS)


def test_suspects_are_inputs_of_whole_numbers() -> None:
    def run(_: Mapping[str, Array]) -> None:
        raise CannotRun("index out of range")

    inputs = io("x", 1, 4), io("index", 3, element="int64"), io("flag", element="bool")
    with pytest.raises(UsageError, match=r"for 'index' \(int64 \[3\]\), 'flag' \(bool \[\]\): index out of range"):
        chooser(*inputs).first(run)
    with pytest.raises(UsageError, match="does not run on the inputs given"):
        chooser(inputs[1], user={"index": np.zeros(3, np.int64)}).first(run)


def test_a_crash_is_passed_on() -> None:
    def run(_: Mapping[str, Array]) -> None:
        raise Crashed("SIGSEGV")

    with pytest.raises(Crashed):
        chooser(io("x", 1, 4)).first(run)


def test_given_shapes_are_used() -> None:
    case, sizes = chooser(io("x", "batch", "n"), given={"x": (0, 7)}).first(anything)
    assert (case.name, case.shapes, sizes) == ("given", {"x": (0, 7)}, {})


def test_given_sizes_hold_for_equal_names_too() -> None:
    """`--shape a:2x20` says what batch and time are, for every input."""
    inputs = io("a", "batch", "time"), io("b", "batch", 3, "time")
    case, _ = chooser(*inputs, given={"a": (2, 20)}).first(anything)
    assert case.shapes["b"] == (2, 3, 20)
    case, _ = chooser(*inputs, user={"a": np.ones((2, 20), np.float32)}).first(anything)
    assert case.shapes["b"] == (2, 3, 20)


def test_what_is_too_large_is_not_made() -> None:
    with pytest.raises(UsageError, match="too large"):
        chooser(io("x", 1, MANY_ELEMENTS + 1)).first(anything)


# -- more cases ----------------------------------------------------------------------------------------------------


def more(step: int, run: Any = anything) -> dict[str, tuple[int, ...]]:
    made = chooser(io("x", "batch", 2, "n"))
    _, sizes = made.first(run)
    return {case.name: case.shapes["x"] for case in made.more(sizes, step, run)}


@pytest.mark.parametrize("step", [2, 3, 5, 12, 64, 256])
def test_divisible_not_divisible_and_smallest(step: int) -> None:
    found = {name: shape[2] for name, shape in more(step).items()}
    lengths = {"divisible": LENGTHS[0], **found}  # where the first length is divisible it is not repeated
    assert lengths["divisible"] % step == 0
    assert lengths["not divisible"] % step != 0
    assert lengths["smallest"] == 1


def test_the_smallest_that_runs() -> None:
    def run(feeds: Mapping[str, Array]) -> None:
        if feeds["x"].shape[2] < 5:
            raise CannotRun("too short")

    assert more(2, run)["smallest"] == (1, 2, 5)


def test_a_crash_ends_the_search() -> None:
    def run(feeds: Mapping[str, Array]) -> None:
        if feeds["x"].shape[2] < 5:
            raise Crashed("SIGSEGV")

    assert "smallest" not in more(2, run)


def test_no_more_cases_for_known_sizes() -> None:
    made = chooser(io("x", "batch", 2, 8))
    assert made.more(made.first(anything)[1], 4, anything) == []


def test_describe() -> None:
    case = Case(name="user", feeds={"x": np.ones((1, 2)), "y": np.ones(())})
    assert describe(case) == "user: x [1, 2], y []"
