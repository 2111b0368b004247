"""The layers of engines: what is read of recorded logs and inspectors' texts, and real engines' structure."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import dilrewrite
from dilrewrite.model.walk import all_nodes
from dilrewrite.tensorrt.layers import (
    BUILD_LOG,
    INSPECTOR,
    Layer,
    Layers,
    entry_of,
    from_inspector,
    from_log,
    onnx_nodes,
    parsed_name,
)
from dilrewrite.tensorrt.precision import DATATYPES, prepare
from dilrewrite.tensorrt.profiles import Profile
from dilrewrite.tensorrt.sidecar import check_precision
from tests.models_for_tests import build, conv_node, save, values
from tests.tensorrt.rtx import built, library, needs_rtx

LOGS = Path(__file__).parent / "logs"
BETWEEN = "\n-----\n"
UPDATE = "DILREWRITE_UPDATE_GOLDEN"

CONVOLUTIONS = ("Conv", "ConvTranspose")


def convolutions(model: ModelProto) -> list[str]:
    return [parsed_name(node) for node in all_nodes(model) if node.op_type in CONVOLUTIONS]


# -- models ----------------------------------------------------------------------------------------------------------


def conv(source: str, output: str, weight: str, dilation: int, name: str) -> onnx.NodeProto:
    return conv_node(source, output, weight, name=name, dilations=[dilation] * 2, pads=[dilation] * 4)


def lone() -> ModelProto:
    """One dilated Conv."""
    image = [1, 16, 32, 32]
    return build([conv("x", "y", "w", 2, "site")], {"x": image}, {"y": image}, {"w": values(16, 16, 3, 3)})


def between() -> ModelProto:
    """A dilated Conv between two ordinary ones."""
    nodes = [conv("x", "a", "w0", 1, "first"), conv("a", "b", "w1", 2, "site"), conv("b", "y", "w2", 1, "last")]
    image = [1, 16, 32, 32]
    return build(
        nodes, {"x": image}, {"y": image}, {f"w{n}": values(16, 16, 3, 3, seed=n) / np.float32(12) for n in range(3)}
    )


def grouped_transpose() -> ModelProto:
    """A ConvTranspose with groups and a dilation, of which TensorRT makes a layer per group."""
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], name="up", group=2, dilations=[2, 1], kernel_shape=[3, 3]
    )
    return build([node], {"x": [1, 4, 16, 16]}, {"y": [1, 4, 20, 18]}, {"w": values(4, 2, 3, 3)})


def oddly_named() -> ModelProto:
    """A Conv and a Relu, which become one layer, with names that hold the log's own signs."""
    nodes = [
        conv("x", "c", "w", 2, "conv, [odd]: {1}"),
        helper.make_node("Relu", ["c"], ["y"], name="a/b, LayerType: c"),
    ]
    return build(nodes, {"x": [1, 8, 16, 16]}, {"y": [1, 8, 16, 16]}, {"w": values(8, 8, 3, 3)})


def two_streams() -> ModelProto:
    """Two Convs that have nothing to do with each other: streams that wait for each other."""
    image = [1, 16, 32, 32]
    return build(
        [conv("a", "c", "w", 1, "left"), conv("b", "d", "w", 1, "right")],
        {"a": image, "b": image},
        {"c": image, "d": image},
        {"w": values(16, 16, 3, 3)},
    )


def fused() -> ModelProto:
    """A Conv with a LeakyRelu, which the library computes in a fusion of its own, at an open length."""
    return build(
        [
            conv_node("x", "c", name="first", dilations=[2], pads=[4, 0]),
            helper.make_node("LeakyRelu", ["c"], ["r"], name="leaky"),
            conv_node("r", "y", name="second", dilations=[4], pads=[8, 0]),
        ],
        {"x": [1, 8, "time"]},
        {"y": [1, 8, "time"]},
        {"w": values(8, 8, 3)},
    )


@dataclass(frozen=True)
class Recorded:
    """A model whose build log is in `logs/`, and the kinds of layers there."""

    make: Callable[[], ModelProto]
    kinds: str
    profiles: dict[str, Profile] | None = None

    @property
    def path(self) -> Path:
        return LOGS / f"{self.make.__name__}.txt"

    @property
    def messages(self) -> list[str]:
        return self.path.read_text(encoding="utf-8").split(BETWEEN)


RECORDED = [
    Recorded(lone, "kgen correlation kgen"),
    Recorded(oddly_named, "kgen correlation kgen"),
    Recorded(two_streams, "kgen signal wait correlation kgen kgen correlation kgen signal wait"),
    Recorded(
        fused,
        "shape_call kgen runtime_fusion correlation kgen",
        {"x": Profile(min=(1, 8, 64), opt=(1, 8, 128), max=(1, 8, 256))},
    ),
]

every_recorded = pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded.make.__name__)


def read(make: Callable[[], ModelProto]) -> Layers:
    return from_log(next(recorded for recorded in RECORDED if recorded.make is make).messages)


# -- the builder's log -----------------------------------------------------------------------------------------------


@every_recorded
def test_recorded_logs(recorded: Recorded) -> None:
    found = from_log(recorded.messages)
    assert found.source == BUILD_LOG
    assert " ".join(layer.kind for layer in found.layers) == recorded.kinds
    assert all(layer.name for layer in found.layers)


@needs_rtx
@every_recorded
def test_the_library_still_says_what_was_recorded(recorded: Recorded) -> None:
    """Names inside of the library change from build to build; with DILREWRITE_UPDATE_GOLDEN=1 its log is written."""

    def told(layers: Layers) -> list[Any]:
        return [(layer.kind, layer.inputs, layer.outputs, layer.nodes) for layer in layers.layers]

    using = library()
    layers = built(recorded.make(), recorded.profiles, using=using).layers
    if os.environ.get(UPDATE):
        recorded.path.write_text(BETWEEN.join(using.log.messages), encoding="utf-8", newline="\n")
    found = from_log(recorded.messages)
    assert told(layers) == told(found)
    assert layers.memory.keys() == found.memory.keys()


def test_every_log_is_read() -> None:
    assert {path.name for path in LOGS.iterdir()} == {recorded.path.name for recorded in RECORDED}


def test_fields_of_a_layer() -> None:
    layers = read(lone)
    before, site, after = layers.layers
    assert (before.inputs, before.outputs, before.nodes) == (("Float",), ("Float",), ())
    assert (site.name, site.kind, site.nodes) == ("site_myl0_1", "correlation", ("site",))
    assert (site.inputs, site.outputs) == (("Float",), ("Float",)), "and not the constants"
    assert site.tactic == "__myelin_CASK_STUB"
    assert after.tactic.startswith("__myl_")
    assert {name: size > 0 for name, size in layers.memory.items()} == {
        "max_scratch_memory_bytes": True,
        "total_activation_memory_bytes": True,
        "total_weights_memory_bytes": True,
    }


def test_names_with_the_logs_own_signs() -> None:
    _, site, _ = read(oddly_named).layers
    assert site.nodes == ("conv, [odd]: {1}", "a/b, LayerType: c")
    assert site.name.startswith("conv, [odd]: {1}")
    assert (site.kind, site.inputs) == ("correlation", ("Float",))


def test_layers_that_wait_have_nothing_to_read() -> None:
    layers = read(two_streams)
    waiting = [layer for layer in layers.layers if layer.kind in ("signal", "wait")]
    assert waiting
    assert {(layer.inputs, layer.outputs, layer.nodes) for layer in waiting} == {((), (), ())}
    assert layers.datatypes({"left", "right"}) == {"Float": 2}


def message(*lines: str) -> str:
    """A list of layers as the library logs it, and what follows it there."""
    after = ["", "I/O Tensors:", " Name: x, IOMode: Input, DataType: Float, Dimensions: [1]", "", "Engine Metadata:"]
    return "\n".join(["Layers:", *lines, *after])


CONV = (
    "Name: c, LayerType: correlation, Inputs: [ { Name: x, Datatype: Half }], Outputs: [ { Name: y, Datatype: Int8 }]"
)


def test_layers_without_metadata() -> None:
    (layer,) = from_log([message(CONV)]).layers
    assert layer == Layer(name="c", kind="correlation", inputs=("Half",), outputs=("Int8",), nodes=())


@pytest.mark.parametrize(
    "line",
    [
        "Name: c, Colour: red, LayerType: conv, Inputs: [ { Datatype: Half } ], Metadata: [ONNX Layer: n]",
        "Name: c, LayerType: conv, Shape: [1,2], Inputs: [ { Datatype: Half } ], Metadata: [ONNX Layer: n]",
        "Name: c, LayerType: conv, Inputs: [ { More: { Of: [ it ] }, Datatype: Half } ], Metadata: [ONNX Layer: n]",
        "Name: c, LayerType: conv, Stream Id/Number: 1, Inputs: [ { Datatype: Half } ], Metadata: [ONNX Layer: n]",
        "Name: c, LayerType: conv, Inputs: [ { Datatype: Half } ], Metadata: [Origin: here]\x1f[ONNX Layer: n]",
    ],
    ids=["before", "list", "nested", "words", "metadata"],
)
def test_unknown_fields_are_passed_over(line: str) -> None:
    (layer,) = from_log([message(line)]).layers
    assert layer == Layer(name="c", kind="conv", inputs=("Half",), outputs=(), nodes=("n",))


@pytest.mark.parametrize("name", ["a[b", "a{b", "x, Metadata: y"])
def test_names_with_half_a_bracket(name: str) -> None:
    """As TensorRT for RTX 1.7 logs such a Conv."""
    line = CONV.replace("Name: c", f"Name: {name}_myl0_1")
    (layer,) = from_log([message(f"{line}, Metadata: [ONNX Layer: {name}]")]).layers
    assert (layer.kind, layer.inputs, layer.nodes) == ("correlation", ("Half",), (name,))


def test_missing_fields_are_unknown() -> None:
    layers = from_log([message("Name: c, LayerType: correlation, Metadata: ", "Name: d")])
    assert [layer.kind for layer in layers.layers] == ["correlation", "unknown"]
    assert layers.datatypes(()) == {"unknown": 1}


def test_several_lists_are_one() -> None:
    """The library logs a list for each part of an engine."""
    found = from_log(["noise", message(CONV), "Max Scratch Memory: 12 bytes", message(CONV, CONV)])
    assert len(found.layers) == 3
    assert found.memory == {"max_scratch_memory_bytes": 12}


def test_the_list_ends_where_the_next_section_begins() -> None:
    assert len(from_log([message(CONV) + "\nName: no layer, LayerType: correlation"]).layers) == 1


def test_what_is_no_message_of_layers() -> None:
    assert len(from_log(["The Layers: " + CONV, " Layers:\n" + CONV, message(CONV)]).layers) == 1


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "the build log lists no layers"),
        (["Max Scratch Memory: 12 bytes", "anything"], "the build log lists no layers"),
        (["Layers:"], "has a list of layers that cannot be read"),
        ([message()], "has a list of layers that cannot be read"),
        ([message("LayerType: conv, Name: c")], "has a list of layers that cannot be read"),
        (["Layers: []"], "has a list of layers that cannot be read"),
        (['Layers:\n{"Name": "c", "LayerType": "correlation"}'], "has a list of layers that cannot be read"),
    ],
    ids=["nothing", "no list", "cut", "empty", "other order", "brackets", "json"],
)
def test_no_layers_are_an_error(messages: list[str], reason: str) -> None:
    with pytest.raises(dilrewrite.FailedError, match=f"{reason}; .*writes it differently"):
        from_log(messages)


@pytest.mark.parametrize(
    ("metadata", "nodes"),
    [
        ("", ()),
        ("[ONNX Layer: a]", ("a",)),
        ("[ONNX Layer: a]\x1f[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a]\x1e[ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: a][ONNX Layer: b]", ("a", "b")),
        ("[ONNX Layer: b]\x1f[ONNX Layer: a]\x1f[ONNX Layer: b]", ("b", "a")),
        ("[ONNX Layer: a, b]\x1f[ONNX Layer: c d]", ("a, b", "c d")),
        ("[ONNX Layer: layers.[0].conv]\x1f[ONNX Layer: [x]]", ("layers.[0].conv", "[x]")),
        ("[ONNX Layer: /layers/ünï:0]", ("/layers/ünï:0",)),
        ("[Other: a]", ()),
        ("[ONNX Layer: layers[0][1]]", ("layers[0][1]",)),
        ("[ONNX Layer: blocks[0], x]", ("blocks[0], x",)),
    ],
)
def test_onnx_nodes(metadata: str, nodes: tuple[str, ...]) -> None:
    assert onnx_nodes(metadata) == nodes


# -- the inspector ---------------------------------------------------------------------------------------------------


def ten(kind: str = "CaskConvolution", prose: str = "Row major linear FP32", metadata: str = "[ONNX Layer: n]") -> Any:
    """A layer as TensorRT 10's inspector tells it."""
    tensor = {"Location": "Device", "Dimensions": [1, 8, 16, 16], "Format/Datatype": prose}
    return {
        "Name": "n",
        "LayerType": kind,
        "Inputs": [{"Name": "x", **tensor}],
        "Outputs": [{"Name": "y", **tensor}],
        "ParameterType": "Convolution",
        "Weights": {"Type": "Float", "Count": 576},
        "TacticName": "sm80_xmma",
        "StreamId": 0,
        "Metadata": metadata,
    }


def eleven(kind: str = "CaskConvolution", element: str = "Half") -> Any:
    """A layer as TensorRT 11's inspector tells it."""
    tensor = {"Dimensions": [1, 8, 16, 16], "Strides": [2048, 256, 16, 1], "Datatype": element, "Format": "Row major"}
    layer = ten(kind) | {"Inputs": [{"Name": "x", **tensor}], "Outputs": [{"Name": "y", **tensor}]}
    return layer | {"Constants": [], "TacticValue": "0x0"}


@pytest.mark.parametrize(
    ("prose", "element"),
    [
        ("Row major linear FP32", "Float"),
        ("Row major linear FP16 format", "Half"),
        ("Channel major FP16 format where channel % 8 == 0", "Half"),
        ("Row major linear BFloat16 format", "BFloat16"),
        ("Half", "Half"),
        ("Float", "Float"),
        ("Row major linear BF16 format", "BFloat16"),
        ("Thirty-two wide channel vectorized row major Int8 format", "Int8"),
        ("Row major linear FP8 format", "FP8"),
        ("Row major Int32 format", "Int32"),
        ("a format yet to come", "unknown"),
    ],
)
def test_tensorrt_10s_formats(prose: str, element: str) -> None:
    found = from_inspector(json.dumps({"Layers": [ten(prose=prose)], "Bindings": ["x", "y"]}))
    assert found.layers == (
        Layer(
            name="n", kind="CaskConvolution", inputs=(element,), outputs=(element,), nodes=("n",), tactic="sm80_xmma"
        ),
    )
    assert (found.source, found.memory) == (INSPECTOR, {})


def test_tensorrt_11s_schema() -> None:
    text = json.dumps({"Layers": [eleven(), eleven(element="BFloat16")], "I/O Tensors": [{"Name": "x"}]})
    found = from_inspector(text)
    assert [(layer.inputs, layer.outputs) for layer in found.layers] == [(("Half",),) * 2, (("BFloat16",),) * 2]
    assert found.kinds() == {"CaskConvolution": 2}
    assert found.datatypes(()) == {"BFloat16": 1, "Half": 1}


def test_what_an_inspector_may_leave_out() -> None:
    found = from_inspector(json.dumps({"Layers": [{"Name": "c"}, {"Inputs": None, "Outputs": ["x", {}]}, "text"]}))
    assert [(layer.name, layer.kind) for layer in found.layers] == [("c", "unknown"), ("", "unknown")]
    assert found.layers[1].outputs == ("unknown",)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"Layers": ["conv1", "conv2"], "Bindings": ["x"]}', "tells no layers in detail"),
        ('{"Layers": [], "Bindings": ["x"]}', "tells no layers in detail"),
        ('{"Bindings": ["x"]}', "tells no layers in detail"),
        ('["conv1"]', "tells no layers in detail"),
        ("null", "tells no layers in detail"),
        ("", "is no JSON"),
        ('{"Layers": [{"Name": "c"', "is no JSON"),
    ],
    ids=["names only", "empty", "none", "list", "null", "nothing", "cut"],
)
def test_an_inspector_that_tells_too_little(text: str, reason: str) -> None:
    with pytest.raises(dilrewrite.FailedError, match=f"{reason}.*; .*detailed profiling verbosity"):
        from_inspector(text)


# -- what they say ---------------------------------------------------------------------------------------------------


def layer(kind: str, *nodes: str, element: str = "Float") -> Layer:
    return Layer(name="l", kind=kind, inputs=(element,), outputs=(element,), nodes=nodes)


@pytest.mark.parametrize(
    ("kind", "convolves"),
    [
        ("correlation", True),
        ("deconv", True),
        ("Convolution", True),
        ("CaskConvolution", True),
        ("CaskDeconvolutionV2", True),
        ("FusedConvActConvDirect", True),
        ("kgen", False),
        ("gemm", False),
        ("Reformat", False),
        ("signal", False),
        ("unknown", False),
    ],
)
def test_kinds_that_convolve(kind: str, convolves: bool) -> None:
    assert layer(kind, "other").convolves({"conv"}) is convolves


@pytest.mark.parametrize("kind", ["runtime_fusion", "Myelin", "{ForeignNode[a...b]}", "PointWiseFusion"])
def test_a_fusion_convolves_when_it_names_a_conv(kind: str) -> None:
    assert layer(kind, "relu", "conv").convolves({"conv"})
    assert not layer(kind, "relu").convolves({"conv"})
    assert not layer(kind).convolves({"conv"})
    assert not layer(kind, "conv").convolves(())


def test_fusions_are_counted_by_the_convs_that_they_name() -> None:
    layers = read(fused)
    assert {entry.nodes for entry in layers.convolutions({"first", "second"})} == {("leaky", "first"), ("second",)}
    assert layers.datatypes({"first", "second"}) == {"Float": 2}
    assert [entry.kind for entry in layers.convolutions({"second"})] == ["correlation"]
    assert layers.kinds()["runtime_fusion"] == 1


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ("conv", "conv"),
        ("conv | call (Block)", "conv"),
        ("conv | then (then_branch) | node_of_y (If)", "conv"),
        ("a | b", "a | b"),
        ("a | b | call (Block)", "a | b"),
        ("relu | conv (Block)", ""),
        ("convolution", ""),
        ("", ""),
    ],
)
def test_entries_of_functions_and_branches(entry: str, meant: str) -> None:
    assert entry_of(entry, {"conv", "a | b"}) == meant


def listed(*layers: Layer) -> Layers:
    return Layers(source=BUILD_LOG, layers=layers, memory={})


def test_a_convolution_that_the_library_splits_is_one() -> None:
    """As a ConvTranspose with groups; and the kernels around it name it too."""
    parts = [layer("kgen", "up"), layer("deconv", "up"), layer("kgen", "up"), layer("deconv", "up")]
    assert listed(*parts, layer("kgen", "up", "relu")).datatypes(["up"]) == {"Float": 1}


def test_two_convolutions_of_one_name_are_two() -> None:
    twins = [layer("correlation", "c"), layer("correlation", "c"), layer("kgen", "c")]
    assert listed(*twins).datatypes(["c", "c"]) == {"Float": 2}


def test_two_convolutions_in_one_layer_are_two() -> None:
    assert listed(layer("runtime_fusion", "a", "relu", "b")).datatypes(["a", "b"]) == {"Float": 2}
    assert len(listed(layer("correlation", "a", "b")).convolutions(["a", "b"])) == 2


def test_calls_of_a_function_are_convolutions_of_their_own() -> None:
    calls = [layer("runtime_fusion", f"c | call{number} (Block)", "relu") for number in range(3)]
    assert listed(*calls).datatypes(["c"]) == {"Float": 3}


def test_a_generated_kernel_may_hold_a_convolution() -> None:
    found = listed(layer("correlation", "a"), layer("kgen", "b", element="Half"), layer("kgen", "cast", "c"))
    assert found.datatypes(["a", "b", "c"]) == {"Float": 1, "Half": 1, "unknown": 1}


def test_counts_are_sorted() -> None:
    entries = [layer(kind, element=element) for kind, element in (("deconv", "Half"), ("conv", "Float"), ("kgen", "X"))]
    random.Random(0).shuffle(entries)
    found = Layers(source=BUILD_LOG, layers=(*entries, *entries), memory={})
    assert list(found.kinds().items()) == [("conv", 2), ("deconv", 2), ("kgen", 2)]
    assert list(found.datatypes(()).items()) == [("Float", 2), ("Half", 2)]


# -- what real engines are made of -----------------------------------------------------------------------------------


def rewritten(model: ModelProto, strategy: str, folder: Path) -> ModelProto:
    """The model with its Conv `site` in another form."""
    path, out = save(model, folder / "model.onnx"), folder / "rewritten.onnx"
    report = dilrewrite.optimize(path, out, strategy=strategy, only="^site$", verify="none", budget=0)
    assert report.status == "rewritten"
    return onnx.load(out)


def engine(model: ModelProto, precision: str) -> tuple[Layers, dict[str, int]]:
    """The layers, and how many convolution layers read data of each type."""
    prepared = prepare(model, precision, "the model").proto
    layers = built(prepared).layers
    return layers, layers.datatypes(convolutions(prepared))


every_precision = pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])


@needs_rtx
@every_precision
@pytest.mark.parametrize(
    ("make", "strategy", "layers", "convs"),
    [
        (lone, None, 3, 1),
        (lone, "space_to_batch", 3, 1),
        (between, None, 5, 3),
        (between, "space_to_batch", 7, 3),
    ],
    ids=["lone", "lone-space_to_batch", "between", "between-space_to_batch"],
)
def test_structure(
    make: Callable[[], ModelProto], strategy: str | None, layers: int, convs: int, precision: str, tmp_path: Path
) -> None:
    """Between layers in NHWC a rewritten Conv pays two kernels, at the edges none: there a transpose is already."""
    model = rewritten(make(), strategy, tmp_path) if strategy is not None else make()
    found, datatypes = engine(model, precision)
    assert len(found.layers) == layers
    assert found.kinds() == {"correlation": convs, "kgen": layers - convs}
    assert sum(datatypes.values()) == convs
    assert set(datatypes) <= set(DATATYPES[precision])


@needs_rtx
@every_precision
def test_nine_taps_are_nine_convolutions(precision: str, tmp_path: Path) -> None:
    found, datatypes = engine(rewritten(lone(), "tap_sum", tmp_path), precision)
    assert sum(datatypes.values()) == 9
    assert set(datatypes) <= set(DATATYPES[precision])
    assert found.kinds()["correlation"] == 9


def convs(*names: str) -> list[onnx.NodeProto]:
    """Convs with a LeakyRelu between them, which become one layer with it, and weights that the model computes."""
    nodes = [helper.make_node("Mul", ["w0", "scale"], ["w"])]
    last = "x"
    for number, name in enumerate(names):
        end = number == len(names) - 1
        nodes.append(conv(last, "y" if end else f"a{number}", "w", number + 2, name))
        if not end:
            nodes.append(helper.make_node("LeakyRelu", [f"a{number}"], [f"b{number}"], alpha=0.1))
        last = f"b{number}"
    return nodes


def several(*names: str) -> ModelProto:
    image = [1, 4, 32, 32]
    weights = {"w0": values(4, 4, 3, 3), "scale": values(4, 1, 1, 1)}
    return build(convs(*names), {"x": image}, {"y": image}, weights)


def called_twice() -> ModelProto:
    """A function that holds a Conv with a name and one without."""
    body = [conv("p", "q", "w", 2, "inner"), helper.make_node("LeakyRelu", ["q"], ["r"]), conv("r", "s", "w", 3, "")]
    block = helper.make_function("local", "Block", ["p", "w"], ["s"], body, [helper.make_opsetid("", 17)])
    calls = [helper.make_node("Block", [a, "w"], [b], domain="local") for a, b in (("x", "h"), ("h", "y"))]
    image = [1, 4, 32, 32]
    made = build(calls, {"x": image}, {"y": image}, {"w": values(4, 4, 3, 3)}, opset=17)
    made.opset_import.append(helper.make_opsetid("local", 1))
    made.functions.append(block)
    return made


@needs_rtx
@pytest.mark.parametrize(
    ("model", "count"),
    [
        (several("", ""), 2),
        (several("", "", ""), 3),
        (several("one", "", "one"), 3),
        (several("only"), 1),
        (called_twice(), 4),
        (grouped_transpose(), 1),
    ],
    ids=["nameless", "three", "same names", "one", "function", "groups"],
)
def test_every_convolution_is_counted(model: ModelProto, count: int) -> None:
    _, datatypes = engine(model, "fp32")
    assert datatypes == {"Float": count}


@needs_rtx
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_is_computed_of_constants_and_in_generated_kernels(precision: str) -> None:
    """A Conv of a constant reads no data; one of a single channel becomes a kernel of its own."""
    image, lone = [1, 4, 32, 32], [1, 1, 32, 32]
    nodes = [
        conv("k", "a", "w", 2, "constant"),
        helper.make_node("Add", ["a", "x"], ["b"]),
        conv("b", "y", "w", 2, "after"),
        helper.make_node("Conv", ["x1", "w1"], ["y1"], name="lone"),
    ]
    weights = {"w": values(4, 4, 3, 3), "k": values(*image), "w1": values(1, 1, 1, 1)}
    model = build(nodes, {"x": image, "x1": lone}, {"y": image, "y1": lone}, weights)
    prepared = prepare(model, precision, "the model")
    names = convolutions(prepared.proto)
    found = check_precision(prepared, built(prepared.proto).layers, names, "the model")
    assert sum(count for kind, count in found.items() if kind in DATATYPES[precision]) >= 2
    assert set(found) <= {*DATATYPES[precision], "unknown"}


@needs_rtx
def test_rewritten_nodes_are_named_in_the_engine(tmp_path: Path) -> None:
    """So a report can say which layers stand for which Conv."""
    found, _ = engine(rewritten(between(), "space_to_batch", tmp_path), "fp32")
    assert [layer.nodes for layer in found.layers if layer.nodes] == [
        ("first",),
        ("site/space_to_batch/SpaceToDepth",),
        ("site",),
        ("site/space_to_batch/DepthToSpace",),
        ("last",),
    ]
