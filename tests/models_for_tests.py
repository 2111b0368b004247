"""Small models for the tests of the upper half: each shows one situation, made with onnx.helper from a fixed seed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

MODELS = Path(__file__).parents[1] / "models"
DEMOS = tuple(sorted(path.stem for path in MODELS.glob("*.onnx")))

Dims = Sequence[int | str | None]


def values(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    """Seeded normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def build(
    nodes: Sequence[NodeProto],
    inputs: Mapping[str, Dims],
    outputs: Mapping[str, Dims | None],
    weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    *,
    types: Mapping[str, int] | None = None,
    element: int = TensorProto.FLOAT,
    opset: int = 17,
    ir: int = 8,
    domains: Sequence[str] = (),
    functions: Sequence[onnx.FunctionProto] = (),
) -> ModelProto:
    """A model of `nodes`; inputs and outputs are of `element` unless `types` names another."""
    types = types or {}

    def declared(name: str, dims: Dims | None) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, types.get(name, element), dims)

    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [declared(name, dims) for name, dims in inputs.items()],
        [declared(name, dims) for name, dims in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir, functions=list(functions))


def conv_node(
    source: str = "x", output: str = "y", weight: str = "w", *, name: str = "conv", **attributes: Any
) -> NodeProto:
    """A Conv; 1-D with kernel 3, dilation 2 and pads 2 unless told."""
    if not attributes:
        attributes = {"dilations": [2], "pads": [2, 2]}
    return helper.make_node("Conv", [source, weight], [output], name=name, **attributes)


def conv1d(
    *,
    length: int | str | None = 16,
    batch: int | str | None = 1,
    channels: int = 2,
    kernel: int = 3,
    dtype: Any = np.float32,
    opset: int = 17,
    ir: int = 8,
    element: int = TensorProto.FLOAT,
    **attributes: Any,
) -> ModelProto:
    """x -> Conv -> y, one axis."""
    return build(
        [conv_node(**attributes)],
        {"x": [batch, channels, length]},
        {"y": [batch, channels, None]},
        {"w": values(channels, channels, kernel, seed=1, dtype=dtype)},
        element=element,
        opset=opset,
        ir=ir,
    )


def conv2d(
    *,
    size: int | str | None = 12,
    batch: int | str | None = 1,
    channels: int = 2,
    dilation: int = 3,
    dtype: Any = np.float32,
    element: int = TensorProto.FLOAT,
    opset: int = 17,
    ir: int = 8,
) -> ModelProto:
    """x -> Conv 3x3 -> Relu -> y."""
    return build(
        [
            conv_node("x", "c", dilations=[dilation] * 2, pads=[dilation] * 4, kernel_shape=[3, 3]),
            helper.make_node("Relu", ["c"], ["y"], name="relu"),
        ],
        {"x": [batch, channels, size, size]},
        {"y": [batch, channels, None, None]},
        {"w": values(channels, channels, 3, 3, seed=2, dtype=dtype)},
        element=element,
        opset=opset,
        ir=ir,
    )


def asymmetric() -> ModelProto:
    """A Conv with a bias and other pads in front than behind, on a length that nothing divides."""
    return build(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv", dilations=[4], pads=[5, 3])],
        {"x": [1, 2, 17]},
        {"y": [1, 2, None]},
        {"w": values(2, 2, 3, seed=22), "b": values(2, seed=23)},
    )


def unequal_dilations() -> ModelProto:
    """A 2-D Conv that is split in 2 by one axis and in 3 by the other."""
    return build(
        [conv_node(dilations=[2, 3], pads=[2, 3, 2, 3])],
        {"x": [1, 2, 11, 13]},
        {"y": [1, 2, None, None]},
        {"w": values(2, 2, 3, 3, seed=24)},
    )


def two_convs(*, first: int = 2, second: int = 4) -> ModelProto:
    """x -> early -> Relu -> late -> y, both dilated."""
    return build(
        [
            conv_node("x", "a", name="early", dilations=[first], pads=[first, first]),
            helper.make_node("Relu", ["a"], ["b"], name="relu"),
            conv_node("b", "y", name="late", dilations=[second], pads=[second, second]),
        ],
        {"x": [1, 2, 20]},
        {"y": [1, 2, 20]},
        {"w": values(2, 2, 3, seed=3)},
    )


def aspp(*, size: int = 28, rate: int = 24, channels: int = 4) -> ModelProto:
    """Two atrous 3x3 branches, one of them mostly on padding, and a 1x1: their sum."""
    return build(
        [
            conv_node("x", "far", "w0", name="far", dilations=[rate] * 2, pads=[rate] * 4),
            conv_node("x", "near", "w1", name="near", dilations=[2, 2], pads=[2] * 4),
            helper.make_node("Conv", ["x", "w2"], ["point"], name="point"),
            helper.make_node("Sum", ["far", "near", "point"], ["y"], name="sum"),
        ],
        {"x": [1, channels, size, size]},
        {"y": [1, channels, size, size]},
        {
            "w0": values(channels, channels, 3, 3, seed=4),
            "w1": values(channels, channels, 3, 3, seed=5),
            "w2": values(channels, channels, 1, 1, seed=6),
        },
    )


def plain() -> ModelProto:
    """Nothing to rewrite: an ordinary Conv."""
    return build(
        [conv_node(dilations=[1], pads=[1, 1])],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3, seed=7)},
    )


def custom_operator() -> ModelProto:
    """A dilated Conv before an operator that nobody knows."""
    return build(
        [conv_node("x", "c"), helper.make_node("Mystery", ["c"], ["y"], name="mystery", domain="my.ops", level=3)],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3, seed=8)},
        domains=["my.ops"],
    )


def custom_operator_inside() -> ModelProto:
    """The same, in both branches of an If."""
    branch = helper.make_graph(
        [helper.make_node("Mystery", ["c"], ["b"], name="mystery", domain="my.ops")],
        "branch",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, None)],
    )
    return build(
        [
            conv_node("x", "c"),
            helper.make_node("If", ["flag"], ["y"], name="if", then_branch=branch, else_branch=branch),
        ],
        {"x": [1, 2, 16], "flag": []},
        {"y": None},
        {"w": values(2, 2, 3, seed=8)},
        types={"flag": TensorProto.BOOL},
        domains=["my.ops"],
    )


def transposed() -> ModelProto:
    """A dilated Conv and a dilated ConvTranspose, which nothing rewrites: it asks for more outputs than it has."""
    larger = {"dilations": [3], "strides": [4], "output_shape": [69]}
    return build(
        [
            conv_node("x", "c"),
            helper.make_node("ConvTranspose", ["c", "u"], ["y"], name="spread", **larger),
        ],
        {"x": [1, 2, 16]},
        {"y": [1, 2, None]},
        {"w": values(2, 2, 3, seed=9), "u": values(2, 2, 3, seed=10)},
    )


def no_op_dilation(*, beside: bool = False) -> ModelProto:
    """A Conv whose dilation acts on a kernel axis of 1 only; `beside` a dilation that acts."""
    nodes = [conv_node("x", "y" if not beside else "c", name="idle", dilations=[5, 1], pads=[0, 1, 0, 1])]
    weights = {"w": values(2, 2, 1, 3, seed=11)}
    if beside:
        nodes.append(conv_node("c", "y", "v", name="acts", dilations=[2, 2], pads=[2] * 4))
        weights["v"] = values(2, 2, 3, 3, seed=12)
    return build(nodes, {"x": [1, 2, 8, 8]}, {"y": [1, 2, 8, 8]}, weights)


def same_upper(*, length: int | str = 15, stride: int = 1, dilation: int = 3, **more: Any) -> ModelProto:
    """A dilated Conv with auto_pad, which ONNX Runtime does not run."""
    return conv1d(length=length, kernel=4, dilations=[dilation], auto_pad="SAME_UPPER", strides=[stride], **more)


def same_upper_of_unknown_length() -> ModelProto:
    """As above, where the pads depend on the length."""
    return same_upper(length="length", stride=2, dilation=4)


def dead_taps_in_front() -> ModelProto:
    """A Conv whose first tap never sees data."""
    return conv1d(length=8, dilations=[6], pads=[12, 2])


def tap_with_one_value() -> ModelProto:
    """A Conv whose outer taps see a single value each."""
    return conv1d(length=10, dilations=[9], pads=[9, 9])


def tap_with_one_value_behind() -> ModelProto:
    """A Conv whose last tap sees a single value, and its first one two."""
    return conv1d(length=10, dilations=[9], pads=[9, 10])


def gather() -> ModelProto:
    """A dilated Conv over a table looked up by an index input that must be 0: random indices are out of range."""
    return build(
        [
            helper.make_node("Gather", ["table", "index"], ["row"], name="look", axis=0),
            helper.make_node("Add", ["x", "row"], ["a"], name="add"),
            conv_node("a", "y"),
        ],
        {"x": [1, 2, 16], "index": [1]},
        {"y": [1, 2, 16]},
        {"table": values(1, 2, 16, seed=13), "w": values(2, 2, 3, seed=14)},
        types={"index": TensorProto.INT64},
    )


def reshape_by_input() -> ModelProto:
    """A dilated Conv on what a Reshape makes to the shape that an input gives."""
    return build(
        [
            helper.make_node("Reshape", ["x", "shape"], ["a"], name="reshape"),
            conv_node("a", "y"),
        ],
        {"x": [32], "shape": [3]},
        {"y": [None, None, None]},
        {"w": values(2, 2, 3, seed=15)},
        types={"shape": TensorProto.INT64},
    )


def random_branch() -> ModelProto:
    """Two outputs, one of them with unseeded noise added."""
    return build(
        [
            conv_node("x", "steady"),
            helper.make_node("RandomNormalLike", ["steady"], ["wild"], name="wild"),
            helper.make_node("Add", ["steady", "wild"], ["shaky"], name="add"),
        ],
        {"x": [1, 2, 16]},
        {"steady": [1, 2, 16], "shaky": [1, 2, 16]},
        {"w": values(2, 2, 3, seed=16)},
    )


def not_finite() -> ModelProto:
    """Outputs with NaN (logarithms of negative values) and with Inf (a division by zero)."""
    return build(
        [
            conv_node("x", "c"),
            helper.make_node("Log", ["c"], ["nan"], name="log"),
            helper.make_node("Relu", ["c"], ["r"], name="relu"),
            helper.make_node("Reciprocal", ["r"], ["inf"], name="reciprocal"),
        ],
        {"x": [1, 2, 16]},
        {"nan": [1, 2, 16], "inf": [1, 2, 16]},
        {"w": values(2, 2, 3, seed=17)},
    )


def quantized_of_odd_length() -> ModelProto:
    """As `quantized`, of an extent that the dilation does not divide."""
    return quantized(15)


def quantized(length: int = 16) -> ModelProto:
    """A dilated Conv between DequantizeLinear and QuantizeLinear, int8 weights per channel."""
    weight = np.random.default_rng(18).integers(-100, 100, size=(2, 2, 3)).astype(np.int8)
    make = helper.make_node
    return build(
        [
            make("QuantizeLinear", ["x", "xs", "xz"], ["xq"], name="q_in"),
            make("DequantizeLinear", ["xq", "xs", "xz"], ["xf"], name="dq_in"),
            make("DequantizeLinear", ["w", "ws", "wz"], ["wf"], name="dq_w", axis=0),
            conv_node("xf", "c", "wf", dilations=[2], pads=[3, 1]),
            make("QuantizeLinear", ["c", "ys", "yz"], ["yq"], name="q_out"),
            make("DequantizeLinear", ["yq", "ys", "yz"], ["y"], name="dq_out"),
        ],
        {"x": [1, 2, length]},
        {"y": [1, 2, length]},
        {
            "w": weight,
            "ws": np.array([0.01, 0.02], np.float32),
            "wz": np.zeros(2, np.int8),
            "xs": np.array(0.03, np.float32),
            "xz": np.array(128, np.uint8),
            "ys": np.array(0.05, np.float32),
            "yz": np.array(120, np.uint8),
        },
    )


def function_with_attribute() -> ModelProto:
    """A Conv in a function whose dilations are an attribute of the function."""
    conv = helper.make_node("Conv", ["a", "b"], ["c"], name="inner", pads=[2, 2])
    conv.attribute.append(AttributeProto(name="dilations", type=AttributeProto.INTS, ref_attr_name="rate"))
    function = helper.make_function(
        "local", "Atrous", ["a", "b"], ["c"], [conv], [helper.make_opsetid("", 17)], attributes=["rate"]
    )
    call = helper.make_node("Atrous", ["x", "w"], ["y"], name="call", domain="local", rate=[2])
    return build(
        [call],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3, seed=19)},
        domains=["local"],
        functions=[function],
    )


def unsorted() -> ModelProto:
    """A dilated Conv that stands before the node it reads from: the checker complains, ONNX Runtime runs it."""
    return build(
        [conv_node("r", "y"), helper.make_node("Relu", ["x"], ["r"], name="relu")],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3, seed=20)},
    )


def shared_symbols() -> ModelProto:
    """Two inputs with the same unknown batch and length, side by side before a dilated Conv."""
    return build(
        [helper.make_node("Concat", ["a", "b"], ["x"], name="join", axis=1), conv_node("x", "y")],
        {"a": ["batch", 1, "time"], "b": ["batch", 1, "time"]},
        {"y": ["batch", 2, "time"]},
        {"w": values(2, 2, 3, seed=21)},
    )


def sequence_output() -> ModelProto:
    """A second output that is a sequence of tensors."""
    model = build(
        [conv_node("x", "y"), helper.make_node("SequenceConstruct", ["y", "x"], ["s"], name="sequence")],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3)},
    )
    model.graph.output.append(helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None))
    return model


def map_output() -> ModelProto:
    """A second output that is a sequence of maps."""
    model = build(
        [
            conv_node("x", "y"),
            helper.make_node("ReduceMean", ["y"], ["r"], name="mean", axes=[2], keepdims=0),
            helper.make_node("ZipMap", ["r"], ["z"], name="map", domain="ai.onnx.ml", classlabels_int64s=[0, 1]),
        ],
        {"x": [1, 2, 16]},
        {"y": [1, 2, 16]},
        {"w": values(2, 2, 3)},
        domains=["ai.onnx.ml"],
    )
    label = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    model.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(label)))
    return model


def string_input() -> ModelProto:
    """Strings that go through beside the Conv."""
    return build(
        [conv_node("x", "y"), helper.make_node("Identity", ["s"], ["t"], name="through")],
        {"x": [1, 2, 16], "s": [2]},
        {"y": [1, 2, 16], "t": [2]},
        {"w": values(2, 2, 3)},
        types={"s": TensorProto.STRING, "t": TensorProto.STRING},
    )


def no_inputs() -> ModelProto:
    """A Conv of constants."""
    return build([conv_node("x", "y")], {}, {"y": [1, 2, 16]}, {"w": values(2, 2, 3), "x": values(1, 2, 16, seed=25)})


def no_samples() -> ModelProto:
    """A declared length of 0: every output comes from the pads."""
    return conv1d(length=0, dilations=[2], pads=[4, 4])


def no_batch() -> ModelProto:
    """A declared batch of 0."""
    return conv1d(batch=0)


def unnamed_nodes() -> ModelProto:
    """Nodes without names."""
    model = two_convs()
    for node in model.graph.node:
        node.name = ""
    return model


# -- files ---------------------------------------------------------------------------------------------------------


def save(model: ModelProto, path: Path) -> Path:
    """Write a model and return its path."""
    path.write_bytes(model.SerializeToString())
    return path


def save_external(model: ModelProto, path: Path, *, files: int = 1) -> Path:
    """Write a model with every initializer outside, spread over `files` files beside it."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    data: dict[str, bytearray] = {}
    for number, tensor in enumerate(model.graph.initializer):
        name = f"{path.stem}.{number % files}.bin"
        content = data.setdefault(name, bytearray())
        raw = numpy_helper.to_array(tensor).tobytes()
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", name), ("offset", len(content)), ("length", len(raw))):
            tensor.external_data.add(key=key, value=str(value))
        content += raw
    for name, content in data.items():
        (path.parent / name).write_bytes(content)
    return save(model, path)


def listing(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden files too: the content of files, `None` for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# -- the command line ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit code, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """All of standard output, which must be JSON."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run the command line in this process."""
    from dilrewrite.cli import main

    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


# -- looking at results --------------------------------------------------------------------------------------------


def every_node(graph: GraphProto) -> Iterator[NodeProto]:
    """The nodes of a graph and of all graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.type == AttributeProto.GRAPH else []), *attribute.graphs):
                yield from every_node(inner)


def dilations(path: Path) -> list[int]:
    """The largest acting dilation of every Conv of a file, read without dilrewrite."""
    found = []
    model = onnx.load(path, load_external_data=False)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in every_node(model.graph):
        if node.op_type != "Conv":
            continue
        named = {attribute.name: list(attribute.ints) for attribute in node.attribute}
        kernel = named.get("kernel_shape") or list(shapes[node.input[1]][2:])
        rates = named.get("dilations") or [1] * len(kernel)
        found.append(max((d for d, k in zip(rates, kernel, strict=True) if k > 1), default=1))
    return found


def run(path: Path, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """Run a file in ONNX Runtime, in this process, without dilrewrite."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def uninstalled(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Let a package, and the distributions whose names begin with its name, not be there."""
    find, version = importlib.util.find_spec, importlib.metadata.version

    def told(name: str) -> str:
        if name.startswith(package):
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", told)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))


def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time each form for a moment only; no timing is too noisy to be kept, as on a busy machine it may be."""
    from dilrewrite.timing import budget, ledger

    for name, seconds in (("FEWEST_S", 0.02), ("MOST_S", 0.1), ("OVERHEAD_S", 0.05)):
        monkeypatch.setattr(budget, name, seconds)
    monkeypatch.setattr(ledger, "lasting", lambda _: True)


def spoil(monkeypatch: pytest.MonkeyPatch, change: Callable[[GraphProto], object]) -> None:
    """Let every rewritten model be another than the one that was proved: `change` edits its graph."""
    from dilrewrite.choice import whole

    real = whole.rewrite

    def slip(*arguments: Any) -> Any:
        result = real(*arguments)
        change(result.proto.graph)
        return result

    monkeypatch.setattr(whole, "rewrite", slip)


def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run whole models in this process: a child each takes most of a test's time, and is tested elsewhere."""
    from dilrewrite.runtimes import TimedBackend

    monkeypatch.setattr(TimedBackend, "session", lambda self, runnable, options: self.loaded(runnable, options))
