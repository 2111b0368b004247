"""Small models with a region each, in ONNX's text form, and whether a form of the region computes the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as runtime

from dilrewrite.splice.rewrite import rewrite
from tests.sites.test_chains import regions, run

Array = NDArray[Any]
FAILS = (runtime.Fail, runtime.InvalidArgument, runtime.InvalidGraph, runtime.RuntimeException)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


def whole(*shape: int, seed: int = 0) -> Array:
    """Return small whole numbers, neighbours of which differ."""
    return (
        (np.random.default_rng(seed).permutation(np.prod(shape, dtype=int)) % 7 - 3.0).astype(np.float32).reshape(shape)
    )


def between(
    middle: str,
    weights: Mapping[str, Array] | None = None,
    *,
    shape: tuple[int, ...] = (2, 4, 9),
    given: str = "",
    outputs: str = "",
    channels: int = 4,
    opset: int = 17,
    dilation: int = 2,
) -> ModelProto:
    """Return x -> Conv -> a -> `middle` -> b -> Conv -> y, both dilated with kernel 3 and same pads.

    `given` and `outputs`: more inputs and outputs of the model; `channels`: those of b.
    """
    rank = len(shape) - 2
    window = f"<dilations = {[dilation] * rank}, pads = {[dilation] * 2 * rank}>"
    dims, sizes = ", ".join(map(str, shape)), ", ".join(f"y{axis}" for axis in range(len(shape)))
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> tiny (float[{dims}] x{given}) => (float[{sizes}] y{outputs}) {{'
        f" a = Conv {window} (x, w1, b1) {middle} y = Conv {window} (b, w2, b2) }}"
    )
    kernel = (3,) * rank
    made = {"w1": whole(4, shape[1], *kernel), "b1": whole(4, seed=1), "w2": whole(4, channels, *kernel, seed=2)}
    for name, array in {**made, "b2": whole(4, seed=3), **(weights or {})}.items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.checker.check_model(model)
    return model


def feeds(model: ModelProto) -> dict[str, Array]:
    """Return whole numbers for the inputs."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: whole(*(dim.dim_value for dim in value.type.tensor_type.shape.dim), seed=place + 5)
        for place, value in enumerate(model.graph.input)
        if value.name not in constants
    }


def inside(model: ModelProto, form: str, block: tuple[int, ...] = ()) -> list[tuple[str, ...]]:
    """Return the operators of each region that the form takes."""
    sites = [site for site, _ in regions(model, form, block)]
    return [tuple(model.graph.node[place].op_type for place in site.nodes) for site in sites]


def same(model: ModelProto, form: str, block: tuple[int, ...] = ()) -> bool:
    """Say whether the model with its regions in a form runs, and computes the same bit for bit."""
    edits = regions(model, form, block)
    assert edits, "no region"
    rewritten = rewrite(model, edits, (), numpy_helper.to_array).proto
    wanted = run(model, feeds(model))
    try:
        got = run(rewritten, feeds(model))
    except FAILS:
        return False
    return all(np.array_equal(before, after, equal_nan=True) for before, after in zip(wanted, got, strict=True))
