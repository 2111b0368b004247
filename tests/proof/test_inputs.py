"""What models are fed: shapes that they run on, seeded random data, and the user's own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.errors import UsageError
from dilrewrite.model.walk import fed
from dilrewrite.proof.inputs import (
    LENGTHS,
    MANY_ELEMENTS,
    Case,
    Chooser,
    describe,
    load_inputs,
    parse_shapes,
    random_values,
)
from dilrewrite.proof.roles import MANY_NODES, Convolutions
from dilrewrite.runtimes import CannotRun, Crashed, Io
from tests import models_for_tests as tiny
from tests.models_for_tests import build, conv1d, conv2d, conv_node, save, values

Array = np.ndarray[Any, Any]


def io(name: str, *shape: int | str | None, element: str = "float32") -> Io:
    return Io(name=name, element=element, shape=shape)


def chooser(*inputs: Io, given: Any = None, user: Any = None, seed: int = 0, **more: Any) -> Chooser:
    return Chooser(inputs, given=given or {}, user=user or {}, seed=seed, **more)


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
        ("x:1,3,64,64", "x", (1, 3, 64, 64)),
        ("1x3x64x64", "only", (1, 3, 64, 64)),
        ("7", "only", (7,)),
    ],
)
def test_shapes(text: str, name: str, shape: tuple[int, ...]) -> None:
    assert parse_shapes([text], ["only"]) == {name: shape}


def test_sizes_alone_are_of_the_only_input() -> None:
    hint = "the model has 2 inputs; name one of a, b, as --shape a:1x3"
    with pytest.raises(UsageError, match=f"^--shape 1x3: {hint}$"):
        parse_shapes(["1x3"], ["a", "b"])
    with pytest.raises(UsageError, match="input 'a' was given before; give each input once"):
        parse_shapes(["1x3", "a:1x3"], ["a"])


def test_inputs_with_a_value_of_their_own_are_not_fed() -> None:
    proto = conv1d()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2, 3]))
    assert [value.name for value in fed(proto)] == ["x"]


@pytest.mark.parametrize(
    "text", ["", "x", "x:1xa", "x:1x", "x:x1", "x:-1x2", ":1x2", "x:1,,2", "x:1.5", "1x", "one", "x:1x?x2"]
)
def test_malformed_shapes(text: str) -> None:
    with pytest.raises(UsageError, match="not NAME:SIZExSIZE"):
        parse_shapes([text], ["only"])


def test_several_shapes() -> None:
    assert parse_shapes(["x:1x2", "y:3"], ["x", "y"]) == {"x": (1, 2), "y": (3,)}
    assert parse_shapes([], []) == {}


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
    made = chooser(io("x", 1, 2, 8))
    assert made.more(made.first(anything)[1], 4, anything) == []


def cases(*inputs: Io, run: Any = anything, step: int = 2, reached: Any = None, **more: Any) -> dict[str, Any]:
    """The shapes of all cases by name, one input's alone where there is one."""
    made = chooser(*inputs, **more)
    first, sizes = made.first(run)
    found = [first, *made.more(sizes, step, run, *([] if reached is None else [reached]))]
    assert len({case.name for case in found}) == len(found)
    return {case.name: case.shapes if len(inputs) > 1 else case.shapes[inputs[0].name] for case in found}


# -- batches -------------------------------------------------------------------------------------------------------


def refusing(*refused: int, name: str = "x", axis: int = 0) -> Any:
    def run(feeds: Mapping[str, Array]) -> None:
        if feeds[name].shape[axis] in refused:
            raise CannotRun("not that many")

    return run


BATCH = {"n": False}


def test_a_batch_above_one() -> None:
    found = cases(io("x", "n", 2, 8), roles=BATCH)
    assert found == {"first": (1, 2, 8), "batch": (2, 2, 8), "larger batch": (7, 2, 8)}
    assert cases(io("x", "n", 2, "t"), roles=BATCH)["batch"] == (2, 2, LENGTHS[0])


def test_another_batch_where_two_does_not_run() -> None:
    assert cases(io("x", "n", 2, 8), roles=BATCH, run=refusing(2))["batch"] == (3, 2, 8)


def test_a_batch_that_does_not_run_is_given_up() -> None:
    assert cases(io("x", "n", 2, 8), roles=BATCH, run=refusing(*range(2, 99))) == {"first": (1, 2, 8)}


@pytest.mark.parametrize("least", [2, 4, 9, 33])
def test_a_model_that_needs_more_than_one_sample(least: int) -> None:
    found = cases(io("x", "n", 2, 8), roles=BATCH, run=refusing(*range(least)))
    assert found["first"][0] >= least
    assert found["batch"][0] > found["first"][0]
    if least <= 4:
        assert found["first"][0] == least, "the smallest that runs"


def test_a_model_of_one_batch_alone() -> None:
    """A Reshape in it has the batch of the export."""
    found = cases(io("x", "n", 2, "t"), roles=BATCH, run=refusing(*{*range(99)} - {6}), step=5)
    assert set(found) >= {"first", "divisible", "not divisible", "smallest"}
    assert {shape[0] for shape in found.values()} == {6}


def test_a_larger_batch_is_one_that_fits_and_runs() -> None:
    assert cases(io("x", "n", 3, 256, 256), roles=BATCH)["larger batch"][0] == 5
    assert "larger batch" not in cases(io("x", "n", 2**19), roles=BATCH)
    assert cases(io("x", "n", 2, 8), roles=BATCH, run=refusing(5, 7))["larger batch"][0] == 4
    assert cases(io("x", "n", 2, 8), roles=BATCH, run=refusing(*{*range(99)} - {6, 12, 24}))["larger batch"][0] == 24


@pytest.mark.parametrize("multiple", [9, 20, 37, 48, 64])
def test_a_batch_of_a_multiple_is_found(multiple: int) -> None:
    def run(feeds: Mapping[str, Array]) -> None:
        if feeds["x"].shape[0] % multiple:
            raise CannotRun("not that many")

    found = cases(io("x", "n", 4, 16), roles=BATCH, run=run)
    assert found["first"][0] % multiple == 0
    assert found["batch"][0] == 2 * found["first"][0]


def test_batches_to_the_last_are_not_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dilrewrite.proof.inputs.MORE_ELEMENTS", 33 * 2)
    tried: list[int] = []

    def run(feeds: Mapping[str, Array]) -> None:
        tried.append(feeds["x"].shape[0])
        raise CannotRun("none")

    with pytest.raises(UsageError, match="none"):
        chooser(io("x", "n", 2), roles=BATCH).first(run)
    assert 33 in tried
    assert 34 not in tried


# -- integers ------------------------------------------------------------------------------------------------------


def integers(*inputs: Io, run: Any = anything) -> dict[str, int] | None:
    """The largest value in each input of the case of large integers."""
    made = chooser(*inputs)
    found = made.more(made.first(run)[1], 2, run)
    case = next((case for case in found if case.name == "integers"), None)
    return None if case is None else {name: int(values.max(initial=0)) for name, values in case.feeds.items()}


def below(**limits: int) -> Any:
    """A model with tables: it runs on integers less than these alone."""

    def run(feeds: Mapping[str, Array]) -> None:
        if any(feeds[name].max(initial=0) >= limit for name, limit in limits.items()):
            raise CannotRun("out of range")

    return run


def test_integers_are_not_only_0_and_1() -> None:
    tokens, flags = io("t", 1, 500, element="int64"), io("f", 1, 500, element="int32")
    assert integers(tokens) == {"t": 100}
    assert integers(tokens, flags, run=below(f=2)) == {"t": 100, "f": 1}
    assert integers(flags, tokens, run=below(f=2)) == {"f": 1, "t": 100}
    assert integers(tokens, run=below(t=20)) == {"t": 10}
    assert integers(tokens, run=below(t=2)) is None
    assert chooser(tokens).first(anything)[0].feeds["t"].max() == 1, "at first they are small"


@pytest.mark.parametrize(
    ("shape", "element"), [((), "int64"), ((1, 1), "int64"), ((4,), "int64"), ((1, 500), "float32"), ((1, 500), "int8")]
)
def test_what_may_be_a_count_or_a_shape_stays_small(shape: Any, element: str) -> None:
    assert integers(io("t", *shape, element=element)) is None


def test_equal_names_are_one_batch() -> None:
    found = cases(io("x", "n", 8), io("z", "n", 4), roles=BATCH)
    assert found["batch"] == {"x": (2, 8), "z": (2, 4)}
    assert "unequal" not in found


def test_given_batches_stay() -> None:
    """--shape and --inputs say what the batch is, for the other inputs of that name too."""
    assert cases(io("x", "n", 8), io("z", "n", 4), given={"x": (3, 8)}) == {"given": {"x": (3, 8), "z": (3, 4)}}
    data = np.ones((3, 8), np.float32)
    assert cases(io("x", "n", 8), io("z", "n", 4), user={"x": data}) == {"user": {"x": (3, 8), "z": (3, 4)}}
    others = cases(io("x", "n", 8), io("z", "m", 4), given={"x": (3, 8)}, roles={"m": False})
    assert others["batch"] == {"x": (3, 8), "z": (2, 4)}


def test_a_first_axis_that_is_an_extent() -> None:
    found = cases(io("x", "t", 8), roles={"t": True})
    assert found["first"] == (LENGTHS[0], 8)
    assert found["smallest"] == (1, 8)
    assert "batch" not in found


def test_a_batch_in_another_place() -> None:
    """[time, batch, channels]."""
    found = cases(io("x", "t", "n", 8), roles={"t": True, "n": False})
    assert found["first"] == (LENGTHS[0], 1, 8)
    assert found["batch"] == (LENGTHS[0], 2, 8)


def test_what_may_be_an_extent_is_made_long_too() -> None:
    found = cases(io("x", "n"))
    assert (found["first"], found["batch"]) == ((1,), (2,))
    assert found["long"][0] >= 16000
    assert "long" not in cases(io("x", "n"), roles=BATCH)
    assert cases(io("x", "n", 3, 64, 64))["long"][0] * 3 * 64 * 64 <= 2**18


# -- sizes that differ ---------------------------------------------------------------------------------------------


def test_height_is_not_always_width() -> None:
    found = cases(io("x", 1, 3, "h", "w"))["unequal"]
    assert found[2] != found[3]


def test_inputs_vary_alone() -> None:
    found = cases(io("x", None, 3, None), io("z", None, 3, None))["unequal"]
    assert found["x"][0] != found["z"][0]
    assert found["x"][2] != found["z"][2]


def test_where_all_differ_it_does_not_run() -> None:
    """The inputs are added: only their axes may differ. Then: only the inputs may."""

    def alike(feeds: Mapping[str, Array]) -> None:
        if feeds["x"].shape != feeds["z"].shape:
            raise CannotRun("not alike")

    def square(feeds: Mapping[str, Array]) -> None:
        if any(value.shape[2] != value.shape[3] for value in feeds.values()):
            raise CannotRun("not square")

    inputs = io("x", 1, 3, None, None), io("z", 1, 3, None, None)
    found = cases(*inputs, run=alike)["unequal"]
    assert found["x"] == found["z"]
    assert found["x"][2] != found["x"][3]
    found = cases(*inputs, run=square)["unequal"]
    assert found["x"][2] != found["z"][2]

    def both(feeds: Mapping[str, Array]) -> None:
        alike(feeds)
        square(feeds)

    assert "unequal" not in cases(*inputs, run=both)


def test_sizes_that_differ_are_what_networks_halve() -> None:
    def run(feeds: Mapping[str, Array]) -> None:
        if any(size % 32 for size in feeds["x"].shape[2:]):
            raise CannotRun("not a multiple")

    found = cases(io("x", 1, 3, "h", "w"), run=run)["unequal"]
    assert found[2] != found[3]


def test_batches_stay_alike_where_they_must() -> None:
    def run(feeds: Mapping[str, Array]) -> None:
        if feeds["x"].shape[0] != feeds["z"].shape[0]:
            raise CannotRun("not alike")

    found = cases(io("x", None, 3, None), io("z", None, 3, None), run=run)["unequal"]
    assert found["x"][0] == found["z"][0]
    assert found["x"][2] != found["z"][2]


# -- sizes at which a dilation matters -----------------------------------------------------------------------------


def test_wide_enough_for_the_dilation() -> None:
    def reached(shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return shapes["x"][2] > 300

    assert cases(io("x", 1, 3, "t"), reached=reached)["wide"] == (1, 3, 512)
    assert "wide" not in cases(io("x", 1, 3, "t"), reached=lambda shapes: shapes["x"][2] > 64)
    assert "wide" not in cases(io("x", 1, 3, "t"), reached=lambda _: False)
    assert "wide" not in cases(io("x", 1, 3, 64), reached=lambda _: False)


# -- what reaches a convolution ------------------------------------------------------------------------------------


def waveform(*inside: Any, shape: Any = ("t",), axes: Any = (0, 1), **more: Any) -> ModelProto:
    """An input with more axes -> dilated Conv, or what is `inside`."""
    nodes = [helper.make_node("Unsqueeze", ["x", "axes"], ["a"]), *(inside or [conv_node("a")])]
    weights = {"axes": np.array(axes), "w": values(1, 1, 3)}
    return build(nodes, {"x": shape}, {"y": None}, weights, **more)


def of_functions(body: Any, depth: int, calls: int = 1, **more: Any) -> ModelProto:
    """Functions that call the next one, so many times."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    functions = []
    for level in range(depth):
        last = level == depth - 1
        names = ["a", *(f"t{turn}" for turn in range(calls - 1)), "y"]
        nodes = [
            helper.make_node(f"f{level + 1}", [one, "w"], [next_], domain="local")
            for one, next_ in itertools.pairwise(names)
        ]
        functions.append(helper.make_function("local", f"f{level}", ["a", "w"], ["y"], body if last else nodes, opsets))
    call = helper.make_node("f0", ["a", "w"], ["y"], domain="local")
    return waveform(call, domains=["local"], functions=functions, **more)


def transposed() -> ModelProto:
    """[time, batch, channels] -> [batch, channels, time] -> dilated Conv."""
    return build(
        [helper.make_node("Transpose", ["x"], ["a"], perm=[1, 2, 0]), conv_node("a")],
        {"x": ["t", "n", 2]},
        {"y": None},
        {"w": values(2, 2, 3)},
    )


def frames() -> ModelProto:
    """[1, frames, 2, 16] whose frames become samples."""
    return build(
        [helper.make_node("Reshape", ["x", "shape"], ["a"]), conv_node("a")],
        {"x": [1, "k", 2, 16]},
        {"y": None},
        {"w": values(2, 2, 3), "shape": np.array([-1, 2, 16])},
    )


def computed() -> ModelProto:
    """The shape of the Conv's input is computed from the input's."""
    return build(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Concat", ["one", "one", "shape"], ["new"], axis=0),
            helper.make_node("Reshape", ["x", "new"], ["a"]),
            conv_node("a"),
        ],
        {"x": ["t"]},
        {"y": None},
        {"w": values(1, 1, 3), "one": np.array([1])},
    )


def branch() -> ModelProto:
    """The Conv is in a branch."""
    output = [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)]
    graph = helper.make_graph([conv_node("a", "b")], "branch", [], output)
    return waveform(helper.make_node("If", ["yes"], ["y"], then_branch=graph, else_branch=graph))


def stale() -> ModelProto:
    """The length was made open afterwards: inside it is still declared as 16."""
    model = waveform()
    model.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 1, 16]))
    return model


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (waveform(), {"t": True}),
        (waveform(shape=[None]), {"x[0]": True}),
        (conv2d(batch="n", size="s"), {"n": False, "s": True}),
        (conv1d(batch=None, length=16), {"x[0]": False}),
        (transposed(), {"t": True, "n": False}),
        (frames(), {"k": False}),
        (computed(), {"t": True}),
        (branch(), {"yes": None, "t": True}),
        (stale(), {"t": True}),
        (of_functions([conv_node("a")], 3), {"t": True}),
        (of_functions([conv_node("a")], 3, shape=["n", 16], axes=(1,)), {"n": False}),
        (waveform(helper.make_node("Relu", ["a"], ["y"])), {}),
        (conv1d(), {}),
    ],
    ids=[
        *("first", "unnamed", "image", "batch", "time-first", "frames", "computed", "branch", "stale", "function"),
        *("batch of a function", "none", "known"),
    ],
)
def test_roles(model: ModelProto, wanted: dict[str, bool | None]) -> None:
    if wanted.pop("yes", True) is None:
        model.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    assert Convolutions(model).roles() == wanted


def test_what_inference_cannot_tell_has_no_role() -> None:
    """An operator that nobody knows stands before the Conv."""
    model = waveform(helper.make_node("Mystery", ["a"], ["b"], domain="my.ops"), conv_node("b"), domains=["my.ops"])
    assert Convolutions(model).roles() == {}


def test_functions_that_come_to_too_much_are_not_looked_into() -> None:
    depth = MANY_NODES.bit_length()
    assert Convolutions(of_functions([conv_node("a")], depth, calls=2)).roles() == {}


@pytest.mark.parametrize("fault", ["one name", "no inputs"])
def test_functions_that_onnx_refuses_are_not_looked_into(fault: str) -> None:
    model = of_functions([conv_node("a")], 1)
    if fault == "one name":
        model.functions.append(model.functions[0])
    else:
        del model.functions[0].input[:]
    assert Convolutions(model).roles() == {}


def test_functions_that_call_each_other_are_not_looked_into() -> None:
    model = of_functions([helper.make_node("f0", ["a", "w"], ["y"], domain="local")], 1)
    assert Convolutions(model).roles() == {}


@pytest.mark.parametrize(("length", "reached"), [(2, False), (3, True)])
def test_a_dilation_is_reached(length: int, reached: bool) -> None:
    assert Convolutions(conv1d(length="t", batch="n")).reached({"x": (1, 2, length)}) is reached
    assert Convolutions(tiny.two_convs(second=1)).reached({}), "known sizes"


def test_a_dilation_behind_a_pool() -> None:
    pool = helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[4], strides=[4])
    model = waveform(pool, conv_node("b"))
    assert not Convolutions(model).reached({"x": (8,)})
    assert Convolutions(model).reached({"x": (12,)})


def test_describe() -> None:
    case = Case(name="user", feeds={"x": np.ones((1, 2)), "y": np.ones(())})
    assert describe(case) == "user: x [1, 2], y []"


def undeclared(op: str, *, name: str | None = "c", weights: str = "constant") -> ModelProto:
    """A dilated convolution of data whose channels, 3 or 6, nothing but its weights tells."""
    group = 2 if op == "Conv" else 1
    shape = (6, 5, 3) if op == "ConvTranspose" else (4, 3, 3)
    node = helper.make_node(op, ["r", "w"], ["y"], dilations=[2], pads=[2, 2], group=group)
    inputs: dict[str, Sequence[int | str | None]] = {"x": [1, name, 9]}
    inputs |= {} if weights == "constant" else {"w": shape if weights == "input" else ["o", "i", 3]}
    held = {"w": np.ones(shape, np.float32)} if weights == "constant" else {}
    return build([helper.make_node("Relu", ["x"], ["r"]), node], inputs, {"y": None}, held)


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("weights", ["constant", "input"])
@pytest.mark.parametrize("name", ["c", None])
def test_channels_that_only_the_weights_tell(tmp_path: Path, op: str, weights: str, name: str | None) -> None:
    """None of the sizes that are tried is 6."""
    model = undeclared(op, name=name, weights=weights)
    assert Convolutions(model).channels() == {name or "x[1]": 6}
    report = dilrewrite.optimize(save(model, tmp_path / "m.onnx"), tmp_path / "o.onnx", eliminate=True, budget=0)
    assert (report.exit_code, report.rewritten) == (0, 1)
    assert report.verdict is not None
    assert {case.shapes["x"][1] for case in report.verdict.cases} == {6}


def test_channels_that_nothing_tells() -> None:
    assert Convolutions(undeclared("Conv", weights="open")).channels() == {}
    joined = undeclared("Conv")
    joined.graph.node[0].CopyFrom(helper.make_node("Concat", ["x", "x"], ["r"], axis=1))
    assert Convolutions(joined).channels() == {}
    assert Convolutions(conv2d(batch="n", size="s")).channels() == {}
