"""Sizes for engines: what may be asked for, what stands for the rest, and which sizes the graph takes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import dilrewrite
from dilrewrite.errors import UsageError
from dilrewrite.tensorrt.profiles import REACH, Asked, Profile, check, declared, parse, settle, unfit
from tests.models_for_tests import DEMOS, MODELS, Dims, build, conv1d, conv2d, conv_node, custom_operator, save, values
from tests.tensorrt.rtx import built, needs_rtx

WHERE = "net.onnx"


def asked(minima: Sequence[str] = (), optima: Sequence[str] = (), maxima: Sequence[str] = ()) -> Asked:
    return parse(minima, optima, maxima)


def profile(low: str, best: str, high: str) -> Profile:
    shapes = [tuple(map(int, text.split("x"))) for text in (low, best, high)]
    return Profile(min=shapes[0], opt=shapes[1], max=shapes[2])


# -- the options -----------------------------------------------------------------------------------------------------


def test_parse() -> None:
    found = parse(["x:1x3x224x224", "y:1"], ["a:b:2x3"], [])
    assert found == {"min": {"x": (1, 3, 224, 224), "y": (1,)}, "opt": {"a:b": (2, 3)}, "max": {}}
    assert parse([], [], []) == {"min": {}, "opt": {}, "max": {}}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "x:",
        ":1x2",
        "x:1xa",
        "x:1x",
        "x:x1",
        "x:1xx2",
        "x:-1x2",
        "x:0x2",
        "x:1.5",
        "x:1,,2",
        "x:1x?",
        "x:²",
    ],
)
@pytest.mark.parametrize("kind", ["min", "opt", "max"])
def test_malformed(kind: str, text: str) -> None:
    texts = {name: [text] if name == kind else [] for name in ("min", "opt", "max")}
    with pytest.raises(
        UsageError, match=rf"--{kind} .*: not NAME:SIZExSIZE\.\.\. .*; for example --{kind} x:1x3x224x224"
    ):
        parse(texts["min"], texts["opt"], texts["max"])


def test_an_input_given_twice() -> None:
    with pytest.raises(UsageError, match="--opt x:1x3: input 'x' was given before; give each input once"):
        parse(["x:1x2"], ["x:1x2", "x:1x3"], [])
    parse(["x:1x2"], ["x:1x2"], ["x:1x2"])


# -- the profile of each input ---------------------------------------------------------------------------------------


def two_inputs(first: Dims = (1, 2, "h"), second: Dims = (1, 2, "h")) -> ModelProto:
    join = helper.make_node("Concat", ["x", "z"], ["j"], name="join", axis=1)
    return build([join, conv_node("j", "y")], {"x": first, "z": second}, {"y": [1, 2, None]}, {"w": values(2, 4, 3)})


def test_declared() -> None:
    model = two_inputs(("batch", 2, None), (1, 2, 16))
    model.graph.input.append(helper.make_tensor_value_info("free", TensorProto.FLOAT, None))
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 4, 3]))
    assert declared(model) == {"x": (None, 2, None), "z": (1, 2, 16), "free": None}, "and not the weights"


def test_known_sizes_need_no_profile() -> None:
    assert settle(conv2d(), asked(), WHERE) == {}
    assert settle(conv2d(), asked(["x:1x2x12x12"]), WHERE) == {}, "told again"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((["x:1x2x8"], ["x:1x2x16"], ["x:1x2x32"]), ("1x2x8", "1x2x16", "1x2x32")),
        (([], ["x:1x2x16"], []), ("1x2x16",) * 3),
        ((["x:1x2x8"], [], []), ("1x2x8",) * 3),
        (([], [], ["x:1x2x32"]), ("1x2x32",) * 3),
        ((["x:1x2x8"], [], ["x:1x2x32"]), ("1x2x8", "1x2x32", "1x2x32")),
        ((["x:1x2x8"], ["x:1x2x16"], []), ("1x2x8", "1x2x16", "1x2x16")),
        (([], ["x:1x2x16"], ["x:1x2x32"]), ("1x2x16", "1x2x16", "1x2x32")),
    ],
    ids=["all", "opt", "min", "max", "min-max", "min-opt", "opt-max"],
)
def test_one_stands_for_all(given: tuple[list[str], list[str], list[str]], wanted: tuple[str, str, str]) -> None:
    model = conv1d(length="time")
    found = settle(model, parse(*given), WHERE)
    assert found == {"x": profile(*wanted)}


def test_each_input_has_its_own() -> None:
    found = settle(two_inputs(), asked(["x:1x2x8"], ["z:1x2x16"], ["x:1x2x32"]), WHERE)
    assert found == {"x": profile("1x2x8", "1x2x32", "1x2x32"), "z": profile("1x2x16", "1x2x16", "1x2x16")}


def test_inputs_of_known_sizes_have_none() -> None:
    found = settle(two_inputs((1, 2, "h"), (1, 2, 16)), asked([], ["x:1x2x16", "z:1x2x16"]), WHERE)
    assert list(found) == ["x"]


def test_an_unknown_rank_takes_any() -> None:
    model = two_inputs()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    found = settle(model, asked([], ["x:1x2x9", "z:1x2x9"]), WHERE)
    assert found["x"] == profile("1x2x9", "1x2x9", "1x2x9")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["q:1x2x8"], [], []), r"--min: net\.onnx has no input 'q'; its inputs: 'x', 'z'"),
        (([], [], ["w:1x2x8"]), r"--max: net\.onnx has no input 'w'"),
        (([], [], []), r"net\.onnx: input 'x' is 1x2x\?: an engine needs its sizes; give --min, --opt and --max x:"),
        (([], ["x:1x2x8"], []), r"input 'z' is 1x2x\?: an engine needs its sizes"),
        (([], ["x:1x2"], []), r"--opt: input 'x' is 1x2x\?, which 1x2 does not fit"),
        ((["x:1x2x8x1"], [], []), r"--min: input 'x' is 1x2x\?, which 1x2x8x1 does not fit"),
        (([], [], ["x:1x3x8"]), r"--max: input 'x' is 1x2x\?, which 1x3x8 does not fit"),
        (
            (["x:1x2x9"], ["x:1x2x8"], []),
            "input 'x': --min 1x2x9 is above --opt 1x2x8; each size must be min <= opt <= max",
        ),
        (([], ["x:1x2x9"], ["x:1x2x8"]), "input 'x': --opt 1x2x9 is above --max 1x2x8"),
        ((["x:1x2x9"], [], ["x:1x2x8"]), "input 'x': --min 1x2x9 is above --opt 1x2x8"),
    ],
    ids=[
        "no input",
        "a weight",
        "nothing",
        "the other one",
        "rank below",
        "rank above",
        "another size",
        "min above opt",
        "opt above max",
        "min above max",
    ],
)
def test_what_does_not_fit(given: tuple[list[str], list[str], list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        settle(two_inputs(), parse(*given), WHERE)


def test_static_sizes_contradicted() -> None:
    with pytest.raises(UsageError, match="--opt: input 'x' is 1x2x12x12, which 1x2x24x24 does not fit"):
        settle(conv2d(), asked([], ["x:1x2x24x24"]), WHERE)


def test_ranks_of_a_free_input_must_agree() -> None:
    model = two_inputs()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UsageError, match="--min 1x2 is above --opt 1x2x9"):
        settle(model, asked(["x:1x2"], ["x:1x2x9", "z:1x2x9"]), WHERE)
    with pytest.raises(UsageError, match="input 'x' is of unknown rank: an engine needs its sizes"):
        settle(model, asked([], ["z:1x2x9"]), WHERE)


# -- whether the graph takes the sizes -------------------------------------------------------------------------------


def space_to_depth(height: int | str | None = "h", width: int | str | None = 8) -> ModelProto:
    """A model of others that splits its input into blocks of 2, with no Pad."""
    nodes = [
        helper.make_node("SpaceToDepth", ["x"], ["s"], name="split", blocksize=2),
        conv_node("s", "y", dilations=[1, 1], pads=[1] * 4),
    ]
    shape = [1, 2, height, width]
    return build(nodes, {"x": shape}, {"y": [1, 2, None, None]}, {"w": values(2, 8, 3, 3)})


def checked(model: ModelProto, low: str, best: str, high: str, name: str = "x") -> None:
    profiles = settle(model, asked([f"{name}:{low}"], [f"{name}:{best}"], [f"{name}:{high}"]), WHERE)
    check(model, profiles, WHERE)


@pytest.mark.parametrize(
    ("heights", "kind", "wrong", "legal"),
    [
        ((7, 16, 32), "min", 7, "6 and 8"),
        ((1, 16, 32), "min", 1, "2"),
        ((8, 15, 32), "opt", 15, "14 and 16"),
        ((8, 16, 33), "max", 33, "32 and 34"),
        ((7, 15, 33), "min", 7, "6 and 8"),
    ],
    ids=["min", "one", "opt", "max", "all"],
)
def test_blocks_that_do_not_divide(heights: tuple[int, int, int], kind: str, wrong: int, legal: str) -> None:
    """TensorRT builds this with a warning."""
    sizes = [f"1x2x{height}x8" for height in heights]
    message = (
        rf"net\.onnx: --{kind}: input 'x', axis 2: {wrong} does not fit: SpaceToDepth 'split' splits {wrong} into "
        rf"blocks of 2; the nearest that do: {legal}$"
    )
    with pytest.raises(UsageError, match=message) as caught:
        checked(space_to_depth(), *sizes)
    assert caught.value.exit_code == 2


def test_blocks_that_divide() -> None:
    checked(space_to_depth(), "1x2x2x8", "1x2x16x8", "1x2x100x8")
    checked(space_to_depth("h", "w"), "1x2x2x4", "1x2x16x8", "1x2x100x8")


def test_what_is_declared_of_outputs_is_passed_over() -> None:
    """Exporters leave the sizes of their example there."""
    model = space_to_depth()
    for axis, size in enumerate((1, 2, 8, 4)):
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = size
    checked(model, "1x2x4x8", "1x2x16x8", "1x2x32x8")


def test_the_axis_that_is_to_blame() -> None:
    with pytest.raises(UsageError, match=r"input 'x', axis 2: 7 does not fit: .*: 6 and 8"):
        checked(space_to_depth("h", "w"), "1x2x7x8", "1x2x16x16", "1x2x16x16")
    with pytest.raises(UsageError, match=r"input 'x', axis 3: 9 does not fit: .*: 8 and 10"):
        checked(space_to_depth("h", "w"), "1x2x8x9", "1x2x16x16", "1x2x16x16")


def test_two_axes_that_are_to_blame_together() -> None:
    """No change of a single one helps."""
    with pytest.raises(UsageError, match=r"net\.onnx: --min x:1x2x7x7: does not fit the graph: SpaceToDepth 'split'"):
        checked(space_to_depth("h", "w"), "1x2x7x7", "1x2x16x16", "1x2x16x16")


def reshaped(shape: list[int]) -> ModelProto:
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["r"], name="reshape"),
        helper.make_node("Relu", ["r"], ["y"], name="relu"),
    ]
    return build(nodes, {"x": [1, 2, "time"]}, {"y": None}, {"shape": np.array(shape)})


def test_a_reshape_that_does_not_divide() -> None:
    with pytest.raises(
        UsageError, match=r"--min: input 'x', axis 2: 7 does not fit: .*reshape.*the nearest.*: 6 and 8"
    ):
        checked(reshaped([0, 4, -1]), "1x2x7", "1x2x16", "1x2x32")
    checked(reshaped([0, 4, -1]), "1x2x6", "1x2x16", "1x2x32")


def test_two_inputs_that_do_not_fit_each_other() -> None:
    nodes = [helper.make_node("Add", ["x", "z"], ["a"], name="add"), conv_node("a", "y")]
    model = build(nodes, {"x": [1, 2, "s"], "z": [1, 2, "t"]}, {"y": [1, 2, None]}, {"w": values(2, 2, 3)})
    fits = settle(model, asked(["x:1x2x8", "z:1x2x8"], [], ["x:1x2x16", "z:1x2x16"]), WHERE)
    check(model, fits, WHERE)
    unequal = settle(model, asked(["x:1x2x8", "z:1x2x9"], [], ["x:1x2x16", "z:1x2x16"]), WHERE)
    with pytest.raises(UsageError, match=r"--min: input 'x', axis 2: 8 does not fit: .*the nearest that do: 1 and 9"):
        check(model, unequal, WHERE)


def narrow(kernel: int) -> ModelProto:
    """A Conv without pads."""
    conv = conv_node(dilations=[1], pads=[0, 0])
    return build([conv], {"x": [1, 2, "time"]}, {"y": None}, {"w": values(2, 2, kernel)})


def test_a_conv_on_too_little() -> None:
    with pytest.raises(UsageError, match="--min: input 'x', axis 2: 3 does not fit: Conv 'conv' makes a negative size"):
        checked(narrow(5), "1x2x3", "1x2x16", "1x2x16")
    checked(narrow(5), "1x2x5", "1x2x16", "1x2x16")


def test_a_conv_on_nearly_too_little() -> None:
    """Its output is empty; and such a size is no advice."""
    with pytest.raises(UsageError, match="4 does not fit"):
        checked(narrow(5), "1x2x4", "1x2x16", "1x2x16")


def test_no_legal_size_in_reach() -> None:
    far = REACH + 10
    add = helper.make_node("Add", ["x", "k"], ["y"], name="add")
    model = build([add], {"x": [1, 2, "time"]}, {"y": None}, {"k": values(1, 2, far * 3)})
    with pytest.raises(UsageError, match=rf"--min x:1x2x{far}: does not fit the graph: "):
        checked(model, f"1x2x{far}", f"1x2x{far * 3}", f"1x2x{far * 3}")


# -- what inference does not get through -----------------------------------------------------------------------------


def test_a_custom_operator_is_passed_over() -> None:
    model = custom_operator()
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "time"
    checked(model, "1x2x7", "1x2x16", "1x2x32")


def test_beside_a_custom_operator_it_is_told() -> None:
    model = space_to_depth()
    model.graph.node.append(helper.make_node("Mystery", ["x"], ["m"], name="mystery", domain="my.ops"))
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    with pytest.raises(UsageError, match="axis 2: 7 does not fit"):
        checked(model, "1x2x7x8", "1x2x16x8", "1x2x16x8")


def test_what_inference_refuses_in_any_size_is_passed_over() -> None:
    """Another library's model, which the library may take all the same."""
    model = space_to_depth()
    model.graph.node.append(helper.make_node("Add", ["bad", "worse"], ["m"], name="never"))
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(values(size), name) for size, name in ((3, "bad"), (4, "worse"))
    )
    assert unfit(model, {}) is not None
    checked(model, "1x2x7x8", "1x2x16x8", "1x2x16x8")


def test_nothing_is_checked_without_profiles() -> None:
    check(space_to_depth(7), {}, WHERE)


def test_a_check_changes_nothing() -> None:
    model = space_to_depth()
    before = model.SerializeToString()
    checked(model, "1x2x8x8", "1x2x16x8", "1x2x32x8")
    assert model.SerializeToString() == before


# -- models that dilrewrite makes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["space_to_batch", "slice_to_batch", "space_to_axis", "space_to_group"])
def test_rewritten_models_take_sizes_that_nothing_divides(strategy: str, tmp_path: Path) -> None:
    """They pad at run time."""
    source = save(conv2d(size=None, batch="batch", dilation=3), tmp_path / "model.onnx")
    report = dilrewrite.optimize(source, tmp_path / "out.onnx", strategy=strategy, verify="none", budget=0)
    assert report.status == "rewritten"
    model = onnx.load(tmp_path / "out.onnx")
    assert {node.op_type for node in model.graph.node} & {"SpaceToDepth", "Reshape", "Slice"}
    checked(model, "1x2x7x8", "2x2x16x17", "3x2x100x101")


@needs_rtx
def test_and_engines_of_them_are_built(tmp_path: Path) -> None:
    source = save(conv2d(size=None, batch="batch", dilation=3), tmp_path / "model.onnx")
    dilrewrite.optimize(source, tmp_path / "out.onnx", strategy="space_to_batch", verify="none", budget=0)
    model = onnx.load(tmp_path / "out.onnx")
    made = built(model, settle(model, asked(["x:1x2x7x8"], ["x:2x2x16x17"], ["x:3x2x100x101"]), WHERE))
    assert not [text for text in made.warnings if "profile" in text.lower()]
    assert made.inputs[0].shape == (-1, 2, -1, -1)


@needs_rtx
def test_the_library_only_warns_of_blocks_that_do_not_divide() -> None:
    """Why sizes are checked here."""
    model = space_to_depth()
    made = built(model, settle(model, asked(["x:1x2x7x8"], [], ["x:1x2x32x8"]), WHERE))
    assert len(made.plan) > 0
    assert any("not self-consistent" in text for text in made.warnings)


@pytest.mark.parametrize("name", DEMOS)
def test_demos(name: str) -> None:
    model = onnx.load(MODELS / f"{name}.onnx")
    shapes = {
        key: "x".join(str(size or (1 if axis == 0 else 61)) for axis, size in enumerate(sizes or ()))
        for key, sizes in declared(model).items()
    }
    profiles = settle(model, asked([], [f"{key}:{shape}" for key, shape in shapes.items()]), WHERE)
    check(model, profiles, WHERE)
