"""Questions: a site's Conv between its neighbours, as a model of its own that runs and takes every form."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.strategies import plan, strategies
from dilrewrite.proof.carve import Source
from dilrewrite.runtimes import Array, CannotLoad, CannotRun, Options, Profile, Runnable, timed_backend
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.splice.rewrite import rewrite
from dilrewrite.timing import neighbourhood
from dilrewrite.timing.neighbourhood import CHANNELS, MOST_NODES, Question, ask
from dilrewrite.timing.profiling import Profiled, SiteRun, digest, traced
from tests import contract, quantized
from tests import models_for_tests as tiny
from tests.cases import Case, cases
from tests.models_for_tests import build, conv1d, conv2d, conv_node, every_node, values
from tests.proof.test_prove import Pairs
from tests.splice.test_rewrite import KINDS
from tests.splice.test_rewrite import feeds as feeds_of_kind

Weights = Mapping[str, NDArray[Any]]

ON_CPU = frozenset({2})
EVERY = frozenset({1, 2, 3})
UNSEEN = Profiled(seconds=1.0, sites={}, tensors={})
make = helper.make_node


# -- asking --------------------------------------------------------------------------------------------------------


def random_feeds(model: ModelProto, **sizes: int) -> dict[str, Array]:
    """Values for every input; `sizes` of what is unknown, 9 unless told."""
    rng = np.random.default_rng(3)
    found: dict[str, Array] = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        shape = [
            dim.dim_value if dim.HasField("dim_value") else sizes.get(dim.dim_param, 9) for dim in tensor.shape.dim
        ]
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        found[value.name] = np.asarray(np.abs(rng.standard_normal(shape)) + 0.1, kind)
    return found


def profiled(model: ModelProto, feeds: Mapping[str, Array] | None = None, **sizes: int) -> Profiled:
    """What a run of the model says of its shapes; nothing where the runtime does not take the Conv."""
    copy, places = traced(model)
    runnable = Runnable(model=copy.SerializeToString())
    given = random_feeds(model, **sizes) if feeds is None else feeds
    try:
        plain = timed_backend("onnxruntime_cpu").profile(runnable, Options(threads=1, optimize=False), given, 0)
    except (CannotLoad, CannotRun):
        return UNSEEN
    return digest(copy, places, find(model).sites, plain, Profile(seconds=(1.0,), nodes=()))


def ran_with(site: Site, *shape: int) -> Profiled:
    """A profile by hand: the site ran with this input."""
    return replace(UNSEEN, sites={site.key: SiteRun(share=None, shapes=(shape,), times=1)})


def questions(
    model: ModelProto,
    found: Profiled | None = None,
    ranks: Collection[int] = ON_CPU,
    *,
    bare: bool = False,
    **sizes: int,
) -> list[Question]:
    """The questions of all sites, in order; the model is profiled unless `found` is given."""
    found = profiled(model, **sizes) if found is None else found
    before = model.SerializeToString()
    asked = [ask(Source(model), site, found, numpy_helper.to_array, ranks, bare=bare) for site in find(model).sites]
    assert model.SerializeToString() == before, "the user's model stays"
    return asked


def question(
    model: ModelProto, found: Profiled | None = None, ranks: Collection[int] = ON_CPU, **more: Any
) -> Question:
    (one,) = questions(model, found, ranks, **more)
    return one


# -- what every question holds -------------------------------------------------------------------------------------


def run(model: ModelProto, feeds: Mapping[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(feeds)
    return list(session.run(None, dict(feeds)))


def form(site: Site, name: str) -> Fragment | None:
    fragment = plan(name, strategies()[name], site.geometry, site.opset, storage=site.storage)
    return fragment if isinstance(fragment, Fragment) else None


def with_form(asked: Question, fragment: Fragment) -> ModelProto:
    normalised = find(asked.model).normalisations
    return rewrite(asked.model, [(asked.site, fragment)], normalised, numpy_helper.to_array).proto


def close(before: Array, after: Array) -> None:
    assert (after.dtype, after.shape) == (before.dtype, before.shape)
    old, new = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if before.dtype.kind in "iu":  # a value between two codes may go to either, and a 1x1 Conv adds some of them up
        assert np.abs(old - new).max(initial=0) <= 8
        assert np.mean(old != new) < 0.05
        return
    assert np.isfinite(old).all()
    tolerance = {np.dtype(np.float16): 2e-2}.get(before.dtype, 1e-4)
    np.testing.assert_allclose(new, old, rtol=tolerance, atol=tolerance * max(np.abs(old).max(initial=0), 1e-3))


def attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def check(asked: Question, site: Site) -> None:
    """The question's model is sound, holds the site and no other, and computes the same in every form."""
    constants = [tensor.name for tensor in asked.model.graph.initializer]
    inputs = [value.name for value in asked.model.graph.input if value.name not in constants]
    names = [*constants, *inputs, *(name for node in asked.model.graph.node for name in node.output)]
    assert len(set(names)) == len(names)
    held = find(asked.model).sites
    assert held == (asked.site,)
    assert asked.site.geometry == site.geometry
    assert (asked.site.opset, asked.site.storage) == (site.opset, site.storage)
    assert sum(max(attributes(node).get("dilations", [1])) > 1 for node in asked.model.graph.node) == 1
    native = asked.model
    if timed_backend("onnxruntime_cpu").refuses(site.geometry):
        explicit = form(asked.site, "keep")
        assert explicit is not None
        native = with_form(asked, explicit)
    before = run(native, asked.feeds)
    for name in strategies():
        applies, fragment = form(site, name), form(asked.site, name)
        assert (applies is None) == (fragment is None), "what applies to the site applies here"
        if applies is not None and fragment is not None:
            assert fragment.digest() == applies.digest()
            for old, new in zip(before, run(with_form(asked, fragment), asked.feeds), strict=True):
                close(old, new)


GRID = cases()[::6]


@pytest.mark.parametrize("number", range(len(GRID)), ids=[case.name for case in GRID])
@pytest.mark.grid(8)
def test_the_grid(number: int) -> None:
    case: Case = GRID[number]
    model, found = contract.original(case)
    site = found.sites[0]
    ran = ran_with(site, case.batch, case.in_channels, *case.extents)
    check(question(model, ran, ON_CPU if number % 2 else EVERY), site)
    check(question(model, ran, bare=True), site)


@pytest.mark.parametrize("q", quantized.quantized_cases(), ids=lambda q: q.name)
@pytest.mark.grid(4)
def test_the_quantised_grid(q: quantized.Quantized) -> None:
    model, found = quantized.original(q)
    site = found.sites[0]
    ran = ran_with(site, q.case.batch, q.case.in_channels, *q.case.extents)
    asked = question(model, ran, EVERY)
    check(asked, site)
    assert asked.neighbours == (("Relu",) if q.relu else ()) + ("QuantizeLinear",)
    check(question(model, ran, bare=True), site)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.grid(8)
def test_wherever_the_site_stands(kind: str) -> None:
    """In branches, bodies and functions; with operands of every kind, named in any way."""
    model = KINDS[kind]()
    found = profiled(model, feeds_of_kind(model, True))
    idle = {site.key for site in find(model).sites} - found.sites.keys()
    for ranks, bare in ((ON_CPU, False), (EVERY, False), (ON_CPU, True)):
        for asked, site in zip(questions(model, found, ranks, bare=bare), find(model).sites, strict=True):
            check(asked, site)
            place = site.key
            if place not in idle and found.sites[place].shapes:
                read = asked.feeds["source" if "source" in asked.feeds else "x"].shape
                wanted = found.sites[place].shapes[0]
                assert (read[0], *read[2:]) == (wanted[0], *wanted[2:])


HALF = {"dtype": np.float16, "element": TensorProto.FLOAT16}


@pytest.mark.parametrize(
    "made",
    [
        lambda: conv1d(**HALF),
        lambda: conv2d(channels=16, **HALF),
        lambda: conv2d(channels=16, size=None, batch=None, **HALF),
    ],
    ids=["1-D", "2-D", "unknown sizes"],
)
def test_half_precision(made: Callable[[], ModelProto]) -> None:
    model = made()
    asked = question(model)
    assert {values.dtype for values in asked.feeds.values()} == {np.dtype(np.float16)}
    check(asked, find(model).sites[0])


@pytest.mark.parametrize(
    ("dtype", "element", "options"),
    [
        (np.float64, TensorProto.DOUBLE, {}),
        (ml_dtypes.bfloat16, TensorProto.BFLOAT16, {"opset": 22, "ir": 10}),
    ],
    ids=["float64", "bfloat16"],
)
def test_types_that_the_runtime_has_no_conv_for(dtype: Any, element: int, options: dict[str, Any]) -> None:
    """The question is asked all the same; that its Conv does not run is found when it is timed."""
    model = conv2d(channels=16, dtype=dtype, element=element, **options)
    asked = question(model, ran_with(find(model).sites[0], 1, 16, 12, 12))
    assert asked.site.geometry == find(model).sites[0].geometry
    assert {tensor.data_type for tensor in asked.model.graph.initializer} == {element}
    assert {value.type.tensor_type.elem_type for value in asked.model.graph.output} == {element}
    assert {values.dtype for values in asked.feeds.values()} == {np.dtype(dtype)}
    onnx.shape_inference.infer_shapes(asked.model, strict_mode=True)


# -- neighbours ----------------------------------------------------------------------------------------------------


def after(
    *nodes: NodeProto,
    weights: Weights | None = None,
    channels: int = 16,
    outputs: Sequence[str] = ("y",),
    rank: int = 2,
    size: int | str = 12,
    inputs: Mapping[str, Sequence[int | str]] | None = None,
    types: Mapping[str, int] | None = None,
    opset: int = 17,
    before: Sequence[NodeProto] = (),
    source: str = "x",
) -> ModelProto:
    """A dilated Conv `c` of `x`, and what comes after it."""
    return build(
        [
            *before,
            conv_node(source, "c", name="site", dilations=[2] * rank, pads=[2] * (2 * rank), kernel_shape=[3] * rank),
            *nodes,
        ],
        {"x": [1, channels, *(size,) * rank], **(inputs or {})},
        dict.fromkeys(outputs),
        {"w": values(channels, channels, *(3,) * rank, seed=1), **(weights or {})},
        types=types,
        opset=opset,
    )


def last(source: str = "z") -> NodeProto:
    """An undilated Conv, with the weights `point`."""
    return make("Conv", [source, "point"], ["y"], name="last")


POINT = {"point": values(8, 16, 1, 1, seed=2)}
NORM = {name: np.abs(values(16, seed=5)) + 0.5 for name in ("scale", "shift", "mean", "variance")}
QUANTA = {"ys": np.array(0.05, np.float32), "yz": np.array(3, np.int8)}


def normed(source: str, output: str) -> NodeProto:
    return make("BatchNormalization", [source, *NORM], [output])


Made = Callable[[], ModelProto]

TAKEN: dict[str, tuple[Made, tuple[str, ...]]] = {
    "nothing": (lambda: after(make("Identity", ["x"], ["y"]), outputs=("c", "y")), ()),
    "Relu": (lambda: after(make("Relu", ["c"], ["z"]), last(), weights=POINT), ("Relu",)),
    "Clip": (
        lambda: after(
            make("Clip", ["c", "low", "high"], ["z"]),
            last(),
            weights={**POINT, "low": np.array(0, np.float32), "high": np.array(6, np.float32)},
        ),
        ("Clip",),
    ),
    "Clip without a lower bound": (
        lambda: after(
            make("Clip", ["c", "", "high"], ["z"]), last(), weights={**POINT, "high": np.array(6, np.float32)}
        ),
        ("Clip",),
    ),
    "Clip of attributes": (
        lambda: after(make("Clip", ["c"], ["z"], min=0.0, max=6.0), last(), weights=POINT, opset=10),
        ("Clip",),
    ),
    "BatchNormalization": (
        lambda: after(normed("c", "n"), make("Relu", ["n"], ["z"]), last(), weights={**POINT, **NORM}),
        ("BatchNormalization", "Relu"),
    ),
    "PRelu": (
        lambda: after(
            make("PRelu", ["c", "slope"], ["z"]), last(), weights={**POINT, "slope": values(16, 1, 1, seed=6)}
        ),
        ("PRelu",),
    ),
    "a bias of its own": (
        lambda: after(
            make("Mul", ["c", "a"], ["d"]),
            make("Add", ["d", "b"], ["z"]),
            last(),
            weights={**POINT, "a": values(1, 16, 1, 1), "b": values(1, 16, 1, 1)},
        ),
        ("Mul", "Add"),
    ),
    "constants as nodes": (
        lambda: after(
            make("Constant", [], ["k"], value=numpy_helper.from_array(values(16, 1, 1, seed=6), "k")),
            make("PRelu", ["c", "k"], ["z"]),
            last(),
            weights=POINT,
        ),
        ("PRelu",),
    ),
    "residual": (
        lambda: after(make("Add", ["c", "x"], ["a"]), make("Relu", ["a"], ["z"]), last(), weights=POINT),
        ("Add", "Relu"),
    ),
    "residual, the other way round": (
        lambda: after(make("Add", ["x", "c"], ["z"]), last(), weights=POINT),
        ("Add",),
    ),
    "swish": (
        lambda: after(make("Sigmoid", ["c"], ["s"]), make("Mul", ["c", "s"], ["z"]), last(), weights=POINT),
        ("Sigmoid", "Mul"),
    ),
    "square": (lambda: after(make("Mul", ["c", "c"], ["z"]), last(), weights=POINT), ("Mul",)),
    "gate": (
        lambda: after(make("Mul", ["c", "gate"], ["z"]), last(), weights=POINT, inputs={"gate": [1, 16, 1, 1]}),
        ("Mul",),
    ),
    "a chain": (
        lambda: after(
            normed("c", "n"),
            make("Add", ["n", "x"], ["a"]),
            make("HardSigmoid", ["a"], ["h"]),
            make("Mul", ["a", "h"], ["z"]),
            last(),
            weights={**POINT, **NORM},
        ),
        ("BatchNormalization", "Add", "HardSigmoid", "Mul"),
    ),
    "1-D": (
        lambda: after(make("Relu", ["c"], ["z"]), make("Add", ["z", "x"], ["y"]), rank=1),
        ("Relu", "Add"),
    ),
    "3-D": (lambda: after(make("Relu", ["c"], ["z"]), make("Add", ["z", "x"], ["y"]), rank=3, size=5), ("Relu", "Add")),
    "more channels than the Conv has": (
        lambda: build(
            [
                conv_node("x", "c", dilations=[2, 2], pads=[2] * 4),
                make("Sigmoid", ["c"], ["s"]),
                make("Mul", ["s", "features"], ["z"]),
                last(),
            ],
            {"x": [1, 2, 12, 12], "features": [1, 16, 12, 12]},
            {"y": None},
            {**POINT, "w": values(1, 2, 3, 3)},
        ),
        ("Sigmoid", "Mul"),
    ),
    "one axis more": (
        lambda: after(make("Add", ["c", "stack"], ["y"]), inputs={"stack": [3, 1, 16, 12, 12]}),
        ("Add",),
    ),
}


@pytest.mark.parametrize("ranks", [ON_CPU, EVERY, ()], ids=["2-D in blocks", "all in blocks", "no blocks"])
@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.grid(3)
def test_what_follows_is_taken_along(name: str, ranks: Collection[int]) -> None:
    made, wanted = TAKEN[name]
    model = made()
    asked = question(model, ranks=ranks)
    assert asked.neighbours == wanted
    copied = {node.op_type: node for node in model.graph.node if node.op_type in wanted}
    for node in asked.model.graph.node:
        if node.op_type in wanted and node.name.startswith("next_"):
            assert attributes(node) == attributes(copied[node.op_type])
            assert len(node.input) == len(copied[node.op_type].input)
            assert [not name for name in node.input] == [not name for name in copied[node.op_type].input]
    check(asked, find(model).sites[0])


def test_the_bounds_of_a_clip_are_kept() -> None:
    """They say what a runtime may fuse. Of other constants only the shape matters."""
    held = {tensor.name: tensor for tensor in question(TAKEN["Clip"][0]()).model.graph.initializer}
    low, high = held["next_0_1"], held["next_0_2"]
    assert (numpy_helper.to_array(low), numpy_helper.to_array(high)) == (0, 6)


def branch(name: str, *nodes: NodeProto) -> onnx.GraphProto:
    return helper.make_graph(
        list(nodes), name, [], [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)]
    )


def choice(output: str, then: onnx.GraphProto, otherwise: onnx.GraphProto) -> NodeProto:
    return make("If", ["go"], [output], then_branch=then, else_branch=otherwise)


GO: dict[str, Any] = {"inputs": {"go": []}, "types": {"go": TensorProto.BOOL}}
CHAIN = [make("Relu", [f"r{i}" if i else "c"], [f"r{i + 1}"]) for i in range(MOST_NODES)]

STOPS: dict[str, tuple[Made, tuple[str, ...], tuple[str, ...]]] = {
    "enough": (
        lambda: after(*CHAIN, make("Relu", [f"r{MOST_NODES}"], ["y"])),
        ("Relu",) * MOST_NODES,
        (f"next_{MOST_NODES - 1}_end",),
    ),
    "a second computed tensor": (
        lambda: after(make("Add", ["c", "x"], ["a"]), make("Add", ["a", "x"], ["y"])),
        ("Add",),
        ("next_0_end",),
    ),
    "many computed tensors at once": (
        lambda: after(normed("c", "y"), inputs={name: [16] for name in NORM}),
        (),
        ("conv_end",),
    ),
    "the next Conv": (lambda: after(last(source="c"), weights=POINT), (), ("conv_end",)),
    "a Concat": (lambda: after(make("Concat", ["c", "x"], ["y"], axis=1)), (), ("conv_end",)),
    "a Softmax": (lambda: after(make("Softmax", ["c"], ["y"], axis=1)), (), ("conv",)),
    "a Reshape": (
        lambda: after(make("Reshape", ["c", "to"], ["y"]), weights={"to": np.array([1, -1])}),
        (),
        ("conv",),
    ),
    "several outputs": (
        lambda: after(make("Split", ["c"], ["p", "q"], axis=1), make("Add", ["p", "q"], ["y"]), opset=13),
        (),
        ("conv",),
    ),
    "an unknown domain": (
        lambda: after(make("Gelu", ["c"], ["y"], domain="com.microsoft")),
        (),
        ("conv",),
    ),
    "a graph output": (
        lambda: after(make("Relu", ["c"], ["y"]), outputs=("c", "y")),
        ("Relu",),
        ("conv", "next_0"),
    ),
    "a graph output that goes on": (
        lambda: after(make("Relu", ["c"], ["z"]), last(), weights=POINT, outputs=("z", "y")),
        ("Relu",),
        ("next_0_end",),
    ),
    "two that go on": (
        lambda: after(
            make("Relu", ["c"], ["z"]),
            last(),
            make("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
            weights=POINT,
            outputs=("y", "p"),
        ),
        ("Relu",),
        ("conv_end", "next_0_end"),
    ),
    "one that goes on and one that does not": (
        lambda: after(
            make("Relu", ["c"], ["z"]), last(), make("Softmax", ["z"], ["p"]), weights=POINT, outputs=("y", "p")
        ),
        ("Relu",),
        ("next_0_end",),
    ),
    "read by a branch": (
        lambda: after(
            make("Relu", ["c"], ["r"]),
            choice("z", branch("t", make("Neg", ["c"], ["n"])), branch("e", make("Abs", ["x"], ["m"]))),
            make("Neg", ["r"], ["y"]),
            outputs=("y", "z"),
            **GO,
        ),
        ("Relu",),
        ("conv", "next_0"),
    ),
    "read by a branch of a branch": (
        lambda: after(
            make("Relu", ["c"], ["r"]),
            choice(
                "z",
                branch(
                    "t",
                    choice("o", branch("tt", make("Neg", ["c"], ["n"])), branch("te", make("Abs", ["x"], ["m"]))),
                ),
                branch("e", make("Abs", ["x"], ["p"])),
            ),
            make("Neg", ["r"], ["y"]),
            outputs=("y", "z"),
            **GO,
        ),
        ("Relu",),
        ("conv", "next_0"),
    ),
    "read by nobody": (lambda: after(make("Neg", ["x"], ["y"])), (), ("conv",)),
}


@pytest.mark.parametrize("name", STOPS)
def test_where_it_stops(name: str) -> None:
    made, taken, outputs = STOPS[name]
    model = made()
    asked = question(model)
    assert asked.neighbours == taken
    assert {value.name for value in asked.model.graph.output} == set(outputs)
    check(asked, find(model).sites[0])


def test_a_large_constant_is_not_taken_along(monkeypatch: pytest.MonkeyPatch) -> None:
    model = after(make("Add", ["c", "k"], ["z"]), last(), weights={**POINT, "k": values(1, 16, 12, 12)})
    assert question(model).neighbours == ("Add",)
    monkeypatch.setattr(neighbourhood, "MOST_ELEMENTS", 16 * 12 * 12 - 1)
    assert question(model).neighbours == ()


def test_a_tensor_of_unknown_shape_is_not_taken_along() -> None:
    model = after(make("Add", ["c", "x"], ["z"]), last(), weights=POINT)
    asked = question(model, ran_with(find(model).sites[0], 1, 16, 12, 12))
    assert asked.neighbours == ()
    check(asked, find(model).sites[0])


def test_attributes_of_a_function_are_not_taken_along() -> None:
    relu = make("LeakyRelu", ["t"], ["r"])
    relu.attribute.append(AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope"))
    function = helper.make_function(
        "local",
        "F",
        ["p", "q"],
        ["r"],
        [conv_node("p", "t", "q", dilations=[2], pads=[2, 2], kernel_shape=[3]), relu],
        [helper.make_opsetid("", 17)],
        attributes=["slope"],
    )
    model = build(
        [make("F", ["x", "w"], ["y"], domain="local", slope=0.5)],
        {"x": [1, 2, 12]},
        {"y": None},
        {"w": values(2, 2, 3)},
        domains=["local"],
        functions=[function],
    )
    asked = question(model)
    assert asked.neighbours == ()
    check(asked, find(model).sites[0])


def test_only_what_has_to_be_read_is_read() -> None:
    """Weights may lie in gigabytes of data files; bounds and whole numbers are all that counts."""
    model = TAKEN["BatchNormalization"][0]()
    model.graph.node[-2].op_type = "Clip"
    model.graph.node[-2].input.append("low")
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "low"))
    read: list[str] = []

    def reader(tensor: TensorProto) -> NDArray[np.generic]:
        read.append(tensor.name)
        return numpy_helper.to_array(tensor)

    asked = ask(Source(model), find(model).sites[0], profiled(model), reader, ON_CPU)
    assert asked.neighbours == ("BatchNormalization", "Clip")
    assert read == ["low"]


# -- the 1x1 Convs at the ends -------------------------------------------------------------------------------------


def pointwise(asked: Question) -> list[str]:
    """What the 1x1 Convs of the question read."""
    weights = {tensor.name: tuple(tensor.dims) for tensor in asked.model.graph.initializer}
    return [
        node.input[0]
        for node in asked.model.graph.node
        if node.op_type == "Conv" and set(weights.get(node.input[1], (0, 0, 0))[2:]) == {1}
    ]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ranks", [(), {1}, {2}, {3}, {1, 2, 3}])
def test_the_layout_is_entered_and_left_where_there_is_one(rank: int, ranks: Collection[int]) -> None:
    model = after(
        make("Add", ["c", "x"], ["z"]),
        make("Conv", ["z", "point"], ["y"]),
        weights={"point": values(8, 16, *(1,) * rank)},
        rank=rank,
        size=6,
    )
    asked = question(model, ranks=ranks)
    wanted = ["next_0_1_source", "source", "next_0"] if rank in ranks else []
    assert sorted(pointwise(asked)) == sorted(wanted)
    assert set(asked.feeds) == ({"source", "next_0_1_source"} if rank in ranks else {"x", "next_0_1"})
    assert {values.shape for values in asked.feeds.values()} == {(1, 16, *(6,) * rank)}


@pytest.mark.parametrize(("channels", "source"), [(2, 2), (16, 16), (40, CHANNELS)])
def test_the_producer_has_few_channels(channels: int, source: int) -> None:
    asked = question(after(channels=channels, outputs=("c",)))
    assert {name: values.shape for name, values in asked.feeds.items()} == {"source": (1, source, 12, 12)}
    check(asked, asked.site)


def test_a_narrow_tensor_comes_as_it_is() -> None:
    asked = question(after(make("Add", ["c", "x"], ["y"]), channels=2))
    assert {name: values.shape for name, values in asked.feeds.items()} == {
        "source": (1, 2, 12, 12),
        "next_0_1": (1, 2, 12, 12),
    }


@pytest.mark.parametrize("made", [after, TAKEN["residual"][0], lambda: after(rank=1)], ids=["2-D", "residual", "1-D"])
def test_bare(made: Made) -> None:
    model = made()
    asked = question(model, ranks=EVERY, bare=True)
    assert [node.op_type for node in asked.model.graph.node] == ["Conv"]
    assert asked.neighbours == ()
    assert list(asked.feeds) == ["x"]
    check(asked, find(model).sites[0])


# -- quantised -----------------------------------------------------------------------------------------------------


def qdq(
    x_zero: NDArray[Any] | None, y_zero: NDArray[Any] | None, *, per_channel: bool = True, weight_zero: bool = True
) -> ModelProto:
    """QuantizeLinear, Conv, QuantizeLinear, Conv; the zero points may be left out."""
    codes = np.random.default_rng(1).integers(-100, 100, (16, 16, 3, 3)).astype(np.int8)
    held: dict[str, NDArray[Any]] = {
        "w": codes,
        "ws": np.full(16, 0.01, np.float32) if per_channel else np.array(0.01, np.float32),
        "xs": np.array(0.03, np.float32),
        "ys": np.array(0.05, np.float32),
    }
    weight, entry, result = ["w", "ws"], ["xs"], ["ys"]
    if weight_zero:
        held["wz"] = np.zeros(held["ws"].shape, np.int8)
        weight.append("wz")
    for name, zero, names in (("xz", x_zero, entry), ("yz", y_zero, result)):
        if zero is not None:
            held[name] = zero
            names.append(name)
    axis = {"axis": 0} if per_channel else {}
    return build(
        [
            make("QuantizeLinear", ["x", *entry], ["xq"]),
            make("DequantizeLinear", ["xq", *entry], ["xf"]),
            make("DequantizeLinear", weight, ["wf"], **axis),
            conv_node("xf", "c", "wf", dilations=[2, 2], pads=[2] * 4),
            make("Relu", ["c"], ["r"]),
            make("QuantizeLinear", ["r", *result], ["yq"]),
            make("DequantizeLinear", ["yq", *result], ["yf"]),
            last(source="yf"),
        ],
        {"x": [1, 16, 12, 12]},
        {"y": None},
        {**held, **POINT},
    )


ZEROS = {"int8": np.array(3, np.int8), "uint8": np.array(120, np.uint8), "none": None}


@pytest.mark.parametrize("y_zero", ZEROS)
@pytest.mark.parametrize("x_zero", ZEROS)
def test_types_before_and_after_a_quantised_conv(x_zero: str, y_zero: str) -> None:
    """They may differ, and are uint8 without a zero point."""
    model = qdq(ZEROS[x_zero], ZEROS[y_zero])
    (asked,) = questions(model)
    assert asked.neighbours == ("Relu", "QuantizeLinear")
    assert {str(values.dtype) for values in asked.feeds.values()} == {"uint8" if x_zero == "none" else x_zero}
    (output,) = asked.model.graph.output
    assert output.type.tensor_type.elem_type == (TensorProto.INT8 if y_zero == "int8" else TensorProto.UINT8)
    check(asked, find(model).sites[0])


@pytest.mark.parametrize("weight_zero", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_of_quantised_weights(per_channel: bool, weight_zero: bool) -> None:
    model = qdq(ZEROS["uint8"], ZEROS["uint8"], per_channel=per_channel, weight_zero=weight_zero)
    (asked,) = questions(model)
    check(asked, find(model).sites[0])
    dequantized = asked.site.part.weight_quantization
    assert dequantized is not None
    assert (dequantized.axis == 0, dequantized.zero_point is not None) == (per_channel, weight_zero)


def test_the_tensor_in_front_keeps_its_own_scale() -> None:
    """The 1x1 Conv's names are not those of the site's DequantizeLinear."""
    asked = questions(qdq(ZEROS["int8"], ZEROS["int8"]))[0]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in asked.model.graph.initializer}
    entry = next(node for node in asked.model.graph.node if node.output[0] == "x_f")
    producer = next(node for node in asked.model.graph.node if node.output[0] == "x")
    assert entry.op_type == "DequantizeLinear"
    assert producer.op_type == "QuantizeLinear"
    assert not set(entry.input[1:]) & set(producer.input[1:])
    assert held[entry.input[1]] > 0


# -- equal questions -----------------------------------------------------------------------------------------------


def key(model: ModelProto, found: Profiled | None = None, ranks: Collection[int] = ON_CPU, **sizes: int) -> str:
    return questions(model, found, ranks, **sizes)[0].key


def changed(model: ModelProto, *edits: Callable[[ModelProto], object]) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    for edit in edits:
        edit(copy)
    return copy


def other_values(model: ModelProto) -> None:
    """Change every float; integers stay."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f":
            tensor.CopyFrom(numpy_helper.from_array(array * 2 + 1, tensor.name))


def other_codes(model: ModelProto) -> None:
    """Change weights, zero points and scales of a quantised model."""
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        more = array + 1 if array.dtype.kind == "f" else array // 2 + 1
        tensor.CopyFrom(numpy_helper.from_array(more.astype(array.dtype), tensor.name))


def other_names(model: ModelProto) -> None:
    """Rename every node and every tensor between them."""
    inner = {name for node in model.graph.node for name in node.output} - {v.name for v in model.graph.output}
    renamed = {name: f"other/{name}:0" for name in inner}
    for node in model.graph.node:
        node.name = f"{node.name}?"
        node.doc_string = "renamed"
        node.input[:] = [renamed.get(name, name) for name in node.input]
        node.output[:] = [renamed.get(name, name) for name in node.output]


def as_constants(model: ModelProto) -> None:
    """Turn initializers into Constant nodes."""
    nodes = [make("Constant", [], [tensor.name], value=tensor) for tensor in model.graph.initializer]
    nodes += model.graph.node
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def inside(model: ModelProto) -> None:
    """Move everything into a branch."""
    body = branch("t", *model.graph.node)
    body.output[0].CopyFrom(model.graph.output[0])
    del model.graph.node[:]
    model.graph.input.append(helper.make_tensor_value_info("go", TensorProto.BOOL, []))
    model.graph.node.append(choice("out", body, branch("e", make("Neg", ["x"], ["m"]))))
    model.graph.output[0].name = "out"


def described(model: ModelProto) -> None:
    """Add what no runtime looks at."""
    model.doc_string = model.graph.doc_string = "text"
    model.producer_name = "somebody"
    model.metadata_props.add(key="a", value="b")
    for node in every_node(model.graph):
        for attribute in node.attribute:
            attribute.doc_string = "text"


CLIPPED = TAKEN["Clip"][0]
CHAINED = TAKEN["a chain"][0]


@pytest.mark.parametrize("edit", [other_values, other_names, as_constants, inside, described])
def test_equal_sites_are_one_question(edit: Callable[[ModelProto], None]) -> None:
    """Weights, values of a BatchNormalization, names, and how constants come do not matter."""
    model = CHAINED()
    assert question(model).neighbours == ("BatchNormalization", "Add", "HardSigmoid", "Mul")
    assert key(changed(model, edit)) == key(model)


@pytest.mark.parametrize("edit", [other_codes, other_names, as_constants, inside, described])
def test_equal_quantised_sites_are_one_question(edit: Callable[[ModelProto], None]) -> None:
    model = qdq(ZEROS["int8"], ZEROS["uint8"])
    assert key(changed(model, edit)) == key(model)


def test_equal_sites_of_one_model() -> None:
    model = tiny.two_convs(first=2, second=2)
    model.graph.node.append(make("Relu", ["y"], ["z"]))
    model.graph.output[0].name = "z"
    one, other = questions(model)
    assert one.neighbours == other.neighbours == ("Relu",)
    assert one.key == other.key
    assert one.model == other.model
    assert {name: values.tolist() for name, values in one.feeds.items()} == {
        name: values.tolist() for name, values in other.feeds.items()
    }


def set_attribute(name: str, value: Any) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        site = next(node for node in model.graph.node if node.name == "site")
        kept = [attribute for attribute in site.attribute if attribute.name != name]
        del site.attribute[:]
        site.attribute.extend([*kept, helper.make_attribute(name, value)])

    return edit


def set_values(name: str, array: NDArray[Any]) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        tensor.CopyFrom(numpy_helper.from_array(array, name))

    return edit


def unknown(axis: int) -> Callable[[ModelProto], None]:
    def edit(model: ModelProto) -> None:
        dim = model.graph.input[0].type.tensor_type.shape.dim[axis]
        dim.dim_param = f"size{axis}"

    return edit


def other_kernel(model: ModelProto) -> None:
    set_values("w", values(16, 16, 2, 2))(model)
    set_attribute("kernel_shape", [2, 2])(model)


def with_bias(model: ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(values(16), "bias"))
    next(node for node in model.graph.node if node.name == "site").input.append("bias")


def overridable(model: ModelProto) -> None:
    model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [16, 16, 3, 3]))


def newer(model: ModelProto) -> None:
    model.opset_import[0].version = 21
    model.ir_version = 10


def later_opset(model: ModelProto) -> None:
    model.opset_import[0].version += 1


def follower(op: str) -> Callable[[ModelProto], None]:
    """Put another operator behind the site."""

    def edit(model: ModelProto) -> None:
        node = next(node for node in model.graph.node if node.input[0] == "c")
        node.CopyFrom(make(op, ["c"], node.output))

    return edit


def computed(place: int) -> Callable[[ModelProto], None]:
    """Compute the site's weights, or its bias, from what they were."""

    def edit(model: ModelProto) -> None:
        site = next(node for node in model.graph.node if node.name == "site")
        model.graph.node.insert(0, make("Neg", [site.input[place]], ["negative"]))
        next(node for node in model.graph.node if node.name == "site").input[place] = "negative"

    return edit


def computed_bias(model: ModelProto) -> None:
    with_bias(model)
    computed(2)(model)


OTHER: dict[str, Callable[[ModelProto], None]] = {
    "dilation": set_attribute("dilations", [3, 3]),
    "pads": set_attribute("pads", [1, 2, 1, 2]),
    "stride": set_attribute("strides", [2, 2]),
    "kernel": other_kernel,
    "bias": with_bias,
    "weights that may be given": overridable,
    "bound": set_values("high", np.array(3, np.float32)),
    "unknown batch": unknown(0),
    "unknown height": unknown(2),
    "unknown width": unknown(3),
    "opset": newer,
    "opset alone": later_opset,
    "another activation": follower("Tanh"),
    "a pooling behind it": follower("GlobalAveragePool"),
    "computed weights": computed(1),
    "computed bias": computed_bias,
}


@pytest.mark.parametrize("name", OTHER)
def test_other_sites_are_other_questions(name: str) -> None:
    model = CLIPPED()
    sizes = {"size0": 1, "size2": 12, "size3": 12}
    assert key(changed(model, OTHER[name]), **sizes) != key(model)


def test_every_change_makes_a_question_of_its_own() -> None:
    """But that all weights from outside are one: what they are computed from is not timed."""
    model, sizes = CLIPPED(), {"size0": 1, "size2": 12, "size3": 12}
    keys = {name: key(changed(model, edit), **sizes) for name, edit in OTHER.items() if name != "computed weights"}
    assert len(set(keys.values())) == len(keys)
    assert key(changed(model, OTHER["computed weights"])) == keys["weights that may be given"]


def test_other_surroundings_are_other_questions() -> None:
    relu = after(make("Relu", ["c"], ["z"]), last(), weights=POINT)
    keys = [
        key(relu),
        key(CLIPPED()),
        key(after(make("Tanh", ["c"], ["z"]), last(), weights=POINT)),
        key(after(make("Relu", ["c"], ["y"]))),
        key(after(make("Relu", ["c"], ["z"]), last(), weights=POINT, size=13)),
        key(after(make("Relu", ["c"], ["z"]), last(), weights=POINT, channels=16, outputs=("c", "y"))),
        key(after(make("LeakyRelu", ["c"], ["z"], alpha=0.1), last(), weights=POINT)),
        key(after(make("LeakyRelu", ["c"], ["z"], alpha=0.2), last(), weights=POINT)),
        key(TAKEN["residual"][0]()),
        key(TAKEN["residual, the other way round"][0]()),
        key(relu, ranks=()),
        key(conv2d(channels=16)),
        key(conv2d(channels=16, **HALF)),
        question(relu, bare=True).key,
    ]
    assert len(set(keys)) == len(keys)


@functools.cache
def dynamic() -> ModelProto:
    model = TAKEN["residual"][0]()
    for axis in (0, 2, 3):
        unknown(axis)(model)
    return model


@pytest.mark.parametrize("sizes", [{"size0": 2}, {"size2": 13}, {"size3": 13}])
def test_other_sizes_of_the_run_are_other_questions(sizes: dict[str, int]) -> None:
    usual = {"size0": 1, "size2": 12, "size3": 12}
    assert key(dynamic(), **usual) == key(dynamic(), **usual)
    assert key(dynamic(), **(usual | sizes)) != key(dynamic(), **usual)


@pytest.mark.parametrize(("one", "other"), [("int8", "uint8"), ("int8", "none")])
def test_other_ways_of_storing_are_other_questions(one: str, other: str) -> None:
    usual = key(qdq(ZEROS[one], ZEROS[one]))
    assert key(qdq(ZEROS[other], ZEROS[one])) != usual
    assert key(qdq(ZEROS[one], ZEROS[other])) != usual
    assert key(qdq(ZEROS[one], ZEROS[one], per_channel=False, weight_zero=False)) != usual


def test_a_question_is_the_same_everywhere() -> None:
    """Byte for byte, in other processes too: the cache finds what another run measured."""
    script = (
        "from tests.timing.test_neighbourhood import CHAINED, ZEROS, dynamic, key, qdq\n"
        "print(key(CHAINED()), key(dynamic(), size2=9), key(qdq(ZEROS['int8'], ZEROS['uint8'])))"
    )
    here = [key(CHAINED()), key(dynamic(), size2=9), key(qdq(ZEROS["int8"], ZEROS["uint8"]))]
    for seed in ("1", "2"):
        said = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.split() == here


def test_a_later_ir_version_changes_nothing() -> None:
    model = CHAINED()
    found, asked = profiled(model), []
    for version in (10, 11, 99):
        model.ir_version = version
        asked.append(ask(Source(model), find(model).sites[0], found, numpy_helper.to_array, ON_CPU))
    assert {one.model.ir_version for one in asked} == {10}
    assert len({one.key for one in asked}) == 1


# -- sizes ---------------------------------------------------------------------------------------------------------


def test_unknown_sizes_stay_unknown() -> None:
    asked = question(dynamic(), size0=3, size2=11, size3=13)
    assert {name: values.shape for name, values in asked.feeds.items()} == {
        "source": (3, 16, 11, 13),
        "next_0_1_source": (3, 16, 11, 13),
    }
    for value in asked.model.graph.input:
        dims = value.type.tensor_type.shape.dim
        assert [dim.HasField("dim_value") for dim in dims] == [False, True, False, False]
        assert dims[1].dim_value == 16
    assert asked.site.geometry.extents == (None, None)
    assert asked.site.geometry.batch is None
    check(asked, find(dynamic()).sites[0])


def test_one_unknown_extent() -> None:
    model = after(make("Relu", ["c"], ["y"]))
    unknown(3)(model)
    asked = question(model, size3=7)
    assert asked.site.geometry.extents == (12, None)
    assert asked.feeds["source"].shape == (1, 16, 12, 7)
    check(asked, find(model).sites[0])


def test_an_extent_of_one_is_broadcast() -> None:
    """A gate's extents are 1 in every run: they do not become unknown with the site's."""
    model = TAKEN["gate"][0]()
    unknown(2)(model)
    unknown(3)(model)
    asked = question(model, size2=9, size3=10)
    assert asked.feeds["next_0_1_source"].shape == (1, 16, 1, 1)
    gate = next(value for value in asked.model.graph.input if value.name == "next_0_1_source")
    assert [dim.dim_value for dim in gate.type.tensor_type.shape.dim] == [1, 16, 1, 1]
    check(asked, find(model).sites[0])


def test_sizes_that_are_known_need_no_run() -> None:
    model = after(make("Relu", ["c"], ["y"]))
    asked = question(model, UNSEEN)
    assert asked.key == key(model)
    check(asked, find(model).sites[0])


@pytest.mark.parametrize("axis", [0, 2, 3])
def test_sizes_that_nobody_knows(axis: int) -> None:
    model = after(make("Relu", ["c"], ["y"]))
    unknown(axis)(model)
    site = find(model).sites[0]
    idle = replace(UNSEEN, sites={site.key: SiteRun(share=0.0, shapes=(), times=0)})
    for found in (UNSEEN, idle):
        with pytest.raises(LookupError, match="its sizes are not known"):
            question(model, found)


def test_a_site_of_two_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are in the question, with what follows the second."""
    monkeypatch.setattr("dilrewrite.sites.find.finders", lambda: {"pairs": Pairs()})
    model = after(make("Relu", ["c"], ["y"]), before=[make("Identity", ["x"], ["i"])], source="i")
    asked = question(model)
    assert (len(asked.site.nodes), asked.neighbours) == (2, ("Relu",))
    assert [node.op_type for node in asked.model.graph.node] == ["Conv", "Identity", "Conv", "Relu"]
    assert list(asked.feeds) == ["source"]
    (before,) = run(asked.model, asked.feeds)
    for name in ("im2col", "space_to_batch"):
        fragment = form(asked.site, name)
        assert fragment is not None
        (result,) = run(with_form(asked, fragment), asked.feeds)
        close(before, result)


def test_the_most_frequent_size_is_asked_for() -> None:
    model = conv1d(length=None)
    site = find(model).sites[0]
    ran = SiteRun(share=None, shapes=((1, 2, 30), (1, 2, 40)), times=3)
    asked = question(model, replace(UNSEEN, sites={site.key: ran}))
    assert asked.feeds["x"].shape == (1, 2, 30)


def computed_conv(*nodes: NodeProto, x: Sequence[int | str], weights: Weights | None = None) -> ModelProto:
    """A Conv whose weights are an input of unknown shape."""
    return build(
        [conv_node("x", "c", "v", dilations=[2], pads=[2, 2], kernel_shape=[3]), *nodes],
        {"x": x, "v": ["o", "i", "k"]},
        {"y": None},
        weights,
    )


@pytest.mark.parametrize("x", [["n", "i", "t"], ["n", 5, "t"], [1, 5, 9]], ids=["unknown", "channels known", "known"])
@pytest.mark.parametrize("norm", [True, False])
def test_channels_that_the_run_alone_knows(x: list[int | str], norm: bool) -> None:
    node = normed("c", "y") if norm else make("Relu", ["c"], ["y"])
    model = computed_conv(node, x=x, weights=NORM if norm else None)
    site = find(model).sites[0]
    assert site.geometry.out_channels is None
    asked = question(model, o=16, i=5, k=3, n=1)
    assert asked.feeds["v" if "v" in asked.feeds else "w"].shape == (16, 5, 3)
    assert asked.neighbours == (node.op_type,)
    check(asked, site)


def test_a_neighbourhood_that_changes_the_geometry_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """The question without neighbours is asked instead; when that fails too, the reason is told."""
    model = TAKEN["residual"][0]()
    real = neighbourhood._lead_in

    def narrowed(behind: Any, graph: onnx.GraphProto) -> None:
        real(behind, graph)
        next(value for value in graph.input if value.name == "source").type.tensor_type.shape.dim[2].dim_value = 7

    monkeypatch.setattr(neighbourhood, "_lead_in", narrowed)
    asked = question(model)
    assert asked.neighbours == ()
    assert asked.key == question(model, bare=True).key
    monkeypatch.setattr(neighbourhood, "find", lambda _: find(tiny.plain()))
    with pytest.raises(LookupError, match="does not give it the same geometry"):
        question(model)
