"""Conversions are held to what rounding does: what is worse than that is found, and overflow is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dilrewrite.errors import DiffersError, UsageError
from dilrewrite.proof.verdict import Settings
from dilrewrite.runtimes import backend
from dilrewrite.tensorrt.fidelity import SLACK, UNIT_ROUNDOFF, Fidelity, bound, compare
from dilrewrite.tensorrt.precision import Prepared, prepare
from tests import models_for_tests as tiny
from tests.models_for_tests import MODELS, build, conv1d, conv_node, values

pytestmark = pytest.mark.usefixtures("in_process")

Array = np.ndarray[Any, Any]

SMALL = ("causal_tcn", "meshnet3d", "splice_sites")


def compared(
    model: ModelProto,
    prepared: Prepared,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    inputs: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Fidelity:
    settings = Settings(
        backend=backend("onnxruntime_cpu"), shapes=shapes or {}, inputs=inputs or {}, seed=seed, threads=1
    )
    return compare(model, prepared, Path(), settings, "net.onnx")


def convert(model: ModelProto, precision: str) -> Prepared:
    return prepare(model, precision, "net.onnx")


def demo(name: str) -> ModelProto:
    return onnx.load(MODELS / f"{name}.onnx")


every_low = pytest.mark.parametrize("precision", ["fp16", "bf16"])


# -- what rounding does ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@every_low
def test_conversions_are_within_the_bound(name: str, precision: str) -> None:
    model = demo(name)
    found = compared(model, convert(model, precision))
    assert found.reason == ""
    assert found.difference is not None
    assert 0 < found.difference <= found.bound
    (value,) = model.graph.input
    assert found.shapes.keys() == {value.name}


@pytest.mark.parametrize("seed", [1, 2])
def test_on_other_data_too(seed: int) -> None:
    model = demo("splice_sites")
    found = compared(model, convert(model, "fp16"), seed=seed)
    assert found.difference is not None
    assert found.difference != compared(model, convert(model, "fp16")).difference


def test_on_given_shapes_and_data() -> None:
    model = demo("causal_tcn")
    prepared = convert(model, "fp16")
    assert compared(model, prepared, shapes={"roll": (2, 88, 9)}).shapes == {"roll": (2, 88, 9)}
    zeros = np.zeros((1, 88, 5), np.float32)
    assert compared(model, prepared, inputs={"roll": zeros}).shapes == {"roll": (1, 88, 5)}


# -- what it does not do ---------------------------------------------------------------------------------------------


def mutated(prepared: Prepared, conv: int, factor: float) -> Prepared:
    """The conversion with the weights of one Conv (by its place) times `factor`."""
    proto = ModelProto()
    proto.CopyFrom(prepared.proto)
    name = [node.input[1] for node in proto.graph.node if node.op_type == "Conv"][conv]
    (tensor,) = [tensor for tensor in proto.graph.initializer if tensor.name == name]
    weight = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((weight.astype(np.float32) * factor).astype(weight.dtype), name))
    return replace(prepared, proto=proto)


@pytest.mark.parametrize("conv", [0, 3, -1])
@pytest.mark.parametrize(
    ("precision", "factor"),
    [("fp16", 0), ("fp16", -1), ("fp16", 1.1), ("bf16", 0), ("bf16", -1)],  # 1.1: within some bounds of bf16
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_weight_is_found(name: str, precision: str, factor: float, conv: int) -> None:
    model = demo(name)
    wrong = mutated(convert(model, precision), conv, factor)
    with pytest.raises(
        DiffersError, match=rf"net\.onnx: converted to {precision} it differs by .* is allowed; "
    ) as caught:
        compared(model, wrong)
    assert caught.value.exit_code == 3
    assert "build in another precision, or give its own kind of data with --inputs" in caught.value.hint


@every_low
def test_every_output_counts(precision: str) -> None:
    """The larger output is right, the smaller one is not: the error is relative to its own size."""

    def two(weight: Array) -> ModelProto:
        nodes = [conv_node("x", "large", "w"), conv_node("x", "small", "v", name="other")]
        out = [1, 2, 16]
        weights = {"w": values(2, 2, 3) * np.float32(1000), "v": weight}
        return build(nodes, {"x": out}, {"large": out, "small": out}, weights)

    right, wrong = values(2, 2, 3, seed=1), values(2, 2, 3, seed=2)
    compared(two(right), convert(two(right), precision))
    with pytest.raises(DiffersError, match="differs"):
        compared(two(right), convert(two(wrong), precision))


def scaled(factor: float, *more: onnx.NodeProto) -> ModelProto:
    """A Conv, then up by `factor`; with `more`, which makes `y` of `m`, down again."""
    nodes = [conv_node("x", "c"), helper.make_node("Mul", ["c", "up"], ["m" if more else "y"], name="up"), *more]
    weights = {"w": values(2, 2, 3), "up": np.array(factor, np.float32), "down": np.array(1 / factor, np.float32)}
    return build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, weights)


DOWN = helper.make_node("Mul", ["m", "down"], ["y"], name="down")


@pytest.mark.parametrize(
    "model",
    [
        scaled(60000.0),
        scaled(60000.0, DOWN),
        scaled(60000.0, helper.make_node("Softmax", ["m"], ["s"], name="softmax"), conv_node("s", "y", name="last")),
    ],
    ids=["output", "between", "softmax"],
)
def test_overflow_of_float16_advises_bfloat16(model: ModelProto) -> None:
    """Wherever it happens: TensorRT's result is infinite or no number there."""
    with pytest.raises(DiffersError) as caught:
        compared(model, convert(model, "fp16"))
    assert "net.onnx: converted to fp16" in caught.value.message
    assert "of 32 values of output 'y' are not finite any more" in caught.value.message
    assert caught.value.hint == "build with --precision bf16, which has float32's range"


def test_what_overflows_in_float16_is_taken_in_bfloat16() -> None:
    model = scaled(60000.0, DOWN)
    found = compared(model, convert(model, "bf16"))
    assert found.difference is not None


def test_overflow_of_bfloat16_has_no_such_advice() -> None:
    model = build(
        [conv_node("x", "c"), helper.make_node("Add", ["c", "k"], ["y"], name="add")],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3), "k": np.array(np.finfo(np.float32).max, np.float32)},
    )
    with pytest.raises(DiffersError, match="converted to bf16, 32 of 32 values") as caught:
        compared(model, convert(model, "bf16"))
    assert caught.value.hint == ""


@every_low
def test_what_is_not_finite_in_the_original_is_passed_over(precision: str) -> None:
    """Infinity less infinity warns, and warnings are errors here."""
    found = compared(tiny.not_finite(), convert(tiny.not_finite(), precision))
    assert found.difference is not None


def test_sizes_that_are_computed_in_the_low_type() -> None:
    """bfloat16 does not hold the length 2050: the second output has another size."""
    nodes = [
        conv_node("x", "y"),
        helper.make_node("Shape", ["y"], ["shape"], name="shape"),
        helper.make_node("Cast", ["shape"], ["real"], name="to_real", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "one"], ["same"], name="multiply"),
        helper.make_node("Cast", ["same"], ["whole"], name="to_whole", to=TensorProto.INT64),
        helper.make_node("Expand", ["one", "whole"], ["z"], name="expand"),
    ]
    weights = {"w": values(2, 2, 3), "one": np.array(1, np.float32)}
    model = build(nodes, {"x": [1, 2, 2050]}, {"y": [1, 2, 2050], "z": [None] * 3}, weights)
    with pytest.raises(DiffersError, match="'z'"):
        compared(model, convert(model, "bf16"))


def test_what_is_no_float_is_not_compared() -> None:
    """Indices of nearly equal values may differ by rounding."""
    nodes = [conv_node("x", "y"), helper.make_node("ArgMax", ["y"], ["i"], name="arg", axis=2)]
    model = build(
        nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16], "i": None}, {"w": values(2, 2, 3)}, types={"i": TensorProto.INT64}
    )
    assert compared(model, convert(model, "fp16")).difference is not None


def test_an_output_of_nothing_but_zeros() -> None:
    model = conv1d()
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((2, 2, 3), np.float32), "w"))
    assert compared(model, convert(model, "fp16")).difference == 0


# -- what does not run -----------------------------------------------------------------------------------------------


@every_low
def test_a_model_that_does_not_run_gives_a_reason(precision: str) -> None:
    model = tiny.custom_operator()
    prepared = convert(model, precision)
    found = compared(model, prepared)
    assert found == Fidelity(difference=None, bound=bound(prepared.proto, precision), shapes={}, reason=found.reason)
    assert found.reason.startswith("not compared: ")
    assert "Mystery" in found.reason


@every_low
def test_a_conversion_that_does_not_run_gives_a_reason(precision: str) -> None:
    model = tiny.two_convs()
    prepared = convert(model, precision)
    prepared.proto.graph.node[2].op_type = "Mystery"
    found = compared(model, prepared)
    assert found.difference is None
    assert found.reason.startswith("not compared: ")


def test_data_that_a_model_runs_on_may_be_needed() -> None:
    model = tiny.gather()
    with pytest.raises(UsageError, match="--inputs"):
        compared(model, convert(model, "fp16"))
    index = np.zeros(1, np.int64)
    assert compared(model, convert(model, "fp16"), inputs={"index": index}).difference is not None


# -- the bound -------------------------------------------------------------------------------------------------------


def chain(length: int) -> ModelProto:
    """Convs in a row."""
    names = ["x", *(f"c{number}" for number in range(1, length)), "y"]
    nodes = [conv_node(names[n], names[n + 1], name=f"conv{n}") for n in range(length)]
    return build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, {"w": values(2, 2, 3)})


def test_the_bound_grows_with_the_depth() -> None:
    found = [bound(convert(chain(length), "fp16").proto, "fp16") for length in (1, 2, 4, 8, 16, 64)]
    assert found == sorted(found)
    assert found[0] == found[1] == SLACK * UNIT_ROUNDOFF["fp16"] * 2, "no less than four results are allowed for"
    # each Conv, and the Cast in front
    assert found[-1] == pytest.approx(SLACK * UNIT_ROUNDOFF["fp16"] * math.sqrt(65))


def test_the_bound_is_of_the_longest_way() -> None:
    nodes = [
        *chain(8).graph.node,
        conv_node("x", "aside", name="aside"),
        helper.make_node("Add", ["y", "aside"], ["z"]),
    ]
    wide = build(nodes, {"x": [1, 2, 16]}, {"z": [1, 2, 16]}, {"w": values(2, 2, 3)})
    single = bound(convert(chain(9), "fp16").proto, "fp16")
    assert bound(convert(wide, "fp16").proto, "fp16") == pytest.approx(single)


def test_the_bound_is_of_the_precision() -> None:
    low, lower = (bound(convert(chain(8), precision).proto, precision) for precision in ("fp16", "bf16"))
    assert lower == 8 * low, "2^-8 instead of 2^-11"


def test_what_stays_in_float32_does_not_round() -> None:
    """A ConvTranspose in float32, its result rounded once."""
    assert bound(chain(8), "fp16") == SLACK * UNIT_ROUNDOFF["fp16"] * 2
    many = [helper.make_node("Max", [f"m{n}", "k"], [f"m{n + 1}"], name=f"max{n}") for n in range(20)]
    nodes = [conv_node("x", "m0"), *many, helper.make_node("Relu", ["m20"], ["y"], name="relu")]
    weights = {"w": values(2, 2, 3), "k": np.array(0, np.float32)}
    blocked = build(nodes, {"x": [1, 2, 16]}, {"y": [1, 2, 16]}, weights)
    assert bound(convert(blocked, "fp16").proto, "fp16") < bound(convert(chain(42), "fp16").proto, "fp16")
