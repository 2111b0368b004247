"""Builds what is timed for a site: its Conv between a producer and its real consumers, up to the next Conv.

A bare Conv misjudges: a runtime fuses a Conv with what follows it, and runs whole stretches of a model in a layout of
its own, which a rewritten form leaves and enters again. So the Conv gets a 1x1 Conv in front, in whose layout its input
comes; the nodes that follow it in the model, as they are there; and 1x1 Convs where the model goes on in that layout.
The nodes that follow are copied from the model; the rest comes from `micro.build`. Values play no part, so sites of
equal geometry, type and neighbours give the same model, byte for byte: they are one question.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.geometry import ConvGeometry, product
from dilrewrite.model.elements import FLOATS, dtype
from dilrewrite.model.walk import DEFAULT_DOMAINS, Container, ScopePath, names_read, resolve, subgraphs
from dilrewrite.proof.inputs import random_values
from dilrewrite.proof.micro import build, retyped
from dilrewrite.runtimes import Array, Io
from dilrewrite.sites import Site
from dilrewrite.sites.find import find
from dilrewrite.sites.known import UNARY
from dilrewrite.splice.substitute import Reader
from dilrewrite.timing.profiling import Profiled, Shape

THROUGH = UNARY | {"Add", "BatchNormalization", "Div", "Identity", "Mul", "PRelu", "Sub"}
"""What is taken along behind a Conv: operators that a runtime may fuse into it, or run in its layout."""

SAME_LAYOUT = THROUGH | {"AveragePool", "Concat", "Conv", "ConvTranspose", "GlobalAveragePool", "MaxPool", "Resize"}
"""Where one of these reads the last tensor, the model goes on in the layout of a Conv."""

MOST_NODES = 4
"""How many nodes are taken along."""

MOST_OTHERS = 1
"""How many of them may read another computed tensor: a runtime fuses one such sum, and each costs time of its own."""

MOST_ELEMENTS = 2**20
"""A constant larger than this is not taken along."""

CHANNELS = 16
"""Channels on the far side of the 1x1 Convs: few, and a whole block in every runtime's blocked layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is timed for some sites: a model with the Conv as it is, where the Conv stands in it, and what it is fed.

    Two questions with the same `key` are the same.
    """

    key: str
    model: ModelProto
    site: Site
    feeds: Mapping[str, Array]
    neighbours: tuple[str, ...]


def ask(
    proto: ModelProto,
    site: Site,
    profiled: Profiled,
    read: Reader,
    layout_ranks: Collection[int],
    *,
    bare: bool = False,
    indexes: Indexes | None = None,
) -> Question:
    """Return the question of a site of `proto`, whose tensors' values `read` returns.

    Sizes that the site knows at run time only stay unknown in the model; the feeds have those of the profiled run.
    `layout_ranks`: of Convs for which the runtime has a layout of its own. `bare`: without neighbours.
    Raises LookupError when a size is known neither from the model nor from the run.
    `indexes`: of `proto`, where more than one of its sites is asked about.
    """
    indexes = indexes or Indexes(proto)
    shape = _input_shape(site, profiled)
    rng = np.random.default_rng(0)
    alone = replace(site, meaning=_with_channels(site, profiled, shape), follow=(), quantizes_output=False)
    micro = build(alone, rng, "float32", reals=True)
    model = micro.model
    if site.geometry.in_channels is None:
        next(value for value in model.graph.input if value.name == "x").type.tensor_type.shape.dim[1].dim_param = "x1"
    element = site.geometry.element
    if element != "float32":
        model = retyped(model, element)
    feeds = {
        name: values.astype(dtype(element)) if values.dtype == np.float32 else values
        for name, values in micro.feeds.items()
    }
    draft = _Draft(proto, indexes, site, profiled, read, site.geometry.rank in layout_ranks, model.graph, feeds)
    if not bare:
        draft.consumers()
        draft.outputs()
    if draft.layout and not bare:
        draft.producer(shape)
    else:
        draft.feed("x", shape, np.dtype(site.storage) if site.storage else dtype(element))
    found = find(model).sites
    if len(found) != 1 or found[0].geometry != site.geometry:
        if not bare:
            return ask(proto, site, profiled, read, layout_ranks, bare=True, indexes=indexes)
        raise LookupError("its neighbourhood does not give it the same geometry")
    made = found[0]
    text = hashlib.sha256(model.SerializeToString(deterministic=True))
    for name in sorted(feeds):
        text.update(f"{name}{feeds[name].shape}{feeds[name].dtype}".encode())
    return Question(
        key=text.hexdigest(),
        model=model,
        site=made,
        feeds=feeds,
        neighbours=tuple(node.op_type for node in draft.taken),
    )


def _input_shape(site: Site, profiled: Profiled) -> Shape:
    """Return the shape of the tensor that a fragment reads, as the site ran with it."""
    run = profiled.sites.get((site.scope, site.index))
    if run is not None and run.shapes:
        return run.shapes[0]
    geometry = site.geometry
    declared = (geometry.batch, geometry.in_channels, *geometry.extents)
    if any(size is None for size in declared):
        raise LookupError("its sizes are not known")
    return tuple(size for size in declared if size is not None)


def _with_channels(site: Site, profiled: Profiled, shape: Shape) -> ConvGeometry:
    """Return the geometry with channels as in the profiled run, where they are known at run time only."""
    weight = profiled.tensors.get((site.scope, site.weight.name))
    outputs = site.geometry.out_channels
    if outputs is None and weight is not None:
        outputs = weight[0]
    return replace(site.geometry, in_channels=shape[1], out_channels=outputs)


class _Index:
    """Who reads and who makes the tensors of one node list. `captured` are read in the graphs inside its nodes."""

    def __init__(self, container: Container) -> None:
        self.readers: dict[str, list[int]] = defaultdict(list)
        self.makers: dict[str, int] = {}
        self.captured: set[str] = set()
        for index, node in enumerate(container.node):
            for name in node.input:
                self.readers[name].append(index)
            for name in node.output:
                self.makers.setdefault(name, index)
            for _, _, inner in subgraphs(node):
                self.captured.update(names_read(inner))
        graph = container if isinstance(container, GraphProto) else None
        self.inputs = {value.name for value in graph.input} if graph is not None else set(container.input)
        self.outputs = {value.name for value in graph.output} if graph is not None else set()
        initializers: Iterable[TensorProto] = graph.initializer if graph is not None else ()
        self.constants = {tensor.name: tensor for tensor in initializers}


class Indexes:
    """The indexes of a model's node lists, each made when it is first needed."""

    def __init__(self, proto: ModelProto) -> None:
        self._proto = proto
        self._known: dict[ScopePath, _Index] = {}

    def of(self, scope: ScopePath) -> _Index:
        """Return the index of the node list at `scope`."""
        if scope not in self._known:
            self._known[scope] = _Index(resolve(self._proto, scope))
        return self._known[scope]


@dataclass
class _Draft:
    """One micro-model in the making: `graph` is edited in place, `feeds` too."""

    proto: ModelProto
    indexes: Indexes
    site: Site
    profiled: Profiled
    read: Reader
    layout: bool
    graph: GraphProto
    feeds: dict[str, Array]
    taken: list[NodeProto] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    ends: dict[str, bool] = field(default_factory=dict)
    others: int = 0
    container: Container = field(init=False)

    def __post_init__(self) -> None:
        self.container = resolve(self.proto, self.site.scope)

    # -- behind the Conv -----------------------------------------------------------------------------------------

    def consumers(self) -> None:
        """Copy the nodes that follow; `ends` are the tensors after which nothing was copied: does the layout go on?"""
        nodes, here = self.container.node, self.indexes.of(self.site.scope)
        known = {nodes[self.site.index].output[0]: self.graph.output[0].name}
        done: set[int] = set()
        pending = list(known)
        while pending:
            name = pending.pop(0)
            readers = here.readers.get(name, [])
            rest = [index for index in dict.fromkeys(readers) if index not in done]
            onward = False
            for index in rest:
                node = nodes[index]
                if len(done) < MOST_NODES and self._fits(node, index, known):
                    done.add(index)
                    self._copy(node, known)
                    pending.append(node.output[0])
                else:
                    known_op = node.domain in DEFAULT_DOMAINS
                    onward = onward or (known_op and node.op_type in SAME_LAYOUT | {"DequantizeLinear"})
                    self.ends[known[name]] = self.ends.get(known[name], False) or onward
            if not readers or name in here.captured or name in here.outputs:
                self.ends.setdefault(known[name], False)
        if not self.ends:
            self.ends[known[nodes[self.site.index].output[0]]] = False
        self.origins = {made: name for name, made in known.items()}

    def _fits(self, node: NodeProto, index: int, known: Mapping[str, str]) -> bool:
        """Say whether a node can be copied: everything else that it reads is a constant or has a known shape."""
        follows = index in self.site.follow
        if node.domain not in DEFAULT_DOMAINS or len([name for name in node.output if name]) != 1:
            return False
        if not follows and node.op_type not in THROUGH:
            return False
        if any(attribute.ref_attr_name for attribute in node.attribute):
            return False
        others = self.others
        for name in node.input:
            if not name or name in known:
                continue
            constant = self._constant(name)
            if constant is None:
                others += 1
                if follows or self._tensor_shape(name) is None or others > MOST_OTHERS:
                    return False
            elif product(tuple(constant.dims)) > MOST_ELEMENTS:
                return False
        return True

    def _copy(self, node: NodeProto, known: dict[str, str]) -> None:
        number = len(self.taken)
        copy = NodeProto(op_type=node.op_type, name=f"next_{number}")
        copy.attribute.extend(node.attribute)
        for attribute in copy.attribute:
            attribute.doc_string = ""
        for place, name in enumerate(node.input):
            if not name or name in known:
                copy.input.append(known.get(name, ""))
                continue
            fresh = f"next_{number}_{place}"
            constant = self._constant(name)
            if constant is not None:
                self.graph.initializer.append(self._neutral(constant, fresh, node.op_type))
            else:
                shape = self._tensor_shape(name)
                assert shape is not None, "the node would not fit"
                self.others += 1
                self._other_input(fresh, shape)
            copy.input.append(fresh)
        copy.output.append(f"next_{number}")
        known[node.output[0]] = copy.output[0]
        self.graph.node.append(copy)
        self.taken.append(copy)

    def _neutral(self, tensor: TensorProto, name: str, op: str) -> TensorProto:
        """Return a constant of the same type and shape; floats get a value of no meaning, except a Clip's bounds."""
        kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
        floating = tensor.data_type in (
            TensorProto.FLOAT,
            TensorProto.FLOAT16,
            TensorProto.BFLOAT16,
            TensorProto.DOUBLE,
        )
        if op in ("QuantizeLinear", "DequantizeLinear") and not floating:
            values = np.full(tuple(tensor.dims), 128 if tensor.data_type == TensorProto.UINT8 else 0).astype(kind)
        elif op == "Clip" or not floating:
            values = np.asarray(self.read(tensor))
        else:
            values = np.full(tuple(tensor.dims), 0.5).astype(kind)
        return TensorProto(name=name, data_type=tensor.data_type, dims=tensor.dims, raw_data=values.tobytes())

    def _constant(self, name: str) -> TensorProto | None:
        """Return the constant of that name that the site's scope sees."""
        path: ScopePath | None = self.site.scope
        while path is not None:
            here = self.indexes.of(path)
            if name in here.makers:
                node = resolve(self.proto, path).node[here.makers[name]]
                values: list[TensorProto] = [a.t for a in node.attribute if a.name == "value" and not a.ref_attr_name]
                return values[0] if node.op_type == "Constant" and values else None
            if name in here.inputs and (path.steps or path.function is not None or self.proto.ir_version >= 4):
                return None
            if name in here.constants:
                return here.constants[name]
            path = ScopePath(path.function, path.steps[:-1]) if path.steps else None
        return None

    def _tensor_shape(self, name: str) -> Shape | None:
        return self.profiled.tensors.get((self.site.scope, name))

    # -- inputs and outputs --------------------------------------------------------------------------------------

    def feed(self, name: str, shape: Shape, kind: np.dtype[np.generic]) -> None:
        """Make random data for an input."""
        rng = np.random.default_rng(len(self.feeds))
        self.feeds[name] = random_values(Io(name=name, element=str(kind), shape=shape), shape, rng)

    def _declared(self, name: str, shape: Shape) -> list[int | str]:
        """Return an input's dims: what the site does not know stays unknown."""
        geometry = self.site.geometry
        sizes = (geometry.batch, geometry.in_channels, *geometry.extents)
        dynamic = any(size is None for size in geometry.extents)
        if len(shape) != len(sizes):
            return list(shape)
        return [
            f"{name}_{axis}" if (axis == 0 and geometry.batch is None) or (axis > 1 and dynamic and size > 1) else size
            for axis, size in enumerate(shape)
        ]

    def _other_input(self, name: str, shape: Shape) -> None:
        """Add another tensor that the copied nodes read, behind a 1x1 Conv where it has channels and extents."""
        element = self.site.geometry.element
        rank = self.site.geometry.rank
        kind = FLOATS[element].number
        if not self.layout or self.site.input_quantization is not None or len(shape) != rank + 2 or shape[1] < CHANNELS:
            self.graph.input.append(helper.make_tensor_value_info(name, kind, self._declared(name, shape)))
            self.feed(name, shape, dtype(element))
            return
        source = f"{name}_source"
        outer = (shape[0], CHANNELS, *shape[2:])
        self.graph.input.append(helper.make_tensor_value_info(source, kind, self._declared(source, outer)))
        self.feed(source, outer, dtype(element))
        self._pointwise(source, name, CHANNELS, shape[1])

    def _pointwise(self, source: str, result: str, channels: int, outputs: int) -> None:
        rank = self.site.geometry.rank
        element = self.site.geometry.element
        rng = np.random.default_rng(1)
        values = (rng.standard_normal((outputs, channels, *(1,) * rank)) / CHANNELS).astype(dtype(element))
        weight = TensorProto(
            name=f"{result}_pointwise", data_type=FLOATS[element].number, dims=values.shape, raw_data=values.tobytes()
        )
        self.graph.initializer.append(weight)
        self.graph.node.append(
            helper.make_node(
                "Conv", [source, weight.name], [result], name=f"{result}_pointwise", kernel_shape=[1] * rank
            )
        )

    def _quantized_pointwise(self, source: str, result: str, channels: int, outputs: int, storage: str) -> None:
        """Add DequantizeLinear, 1x1 Conv, QuantizeLinear; `storage` is the type of what is read and made."""
        zero = np.zeros((), storage) if storage.startswith("int") else np.full((), 128, storage)
        rank = self.site.geometry.rank
        rng = np.random.default_rng(1)
        codes = rng.integers(-100, 100, (outputs, channels, *(1,) * rank)).astype(np.int8)
        constants = {
            "scale": np.array(0.05, np.float32),
            "zero": zero,
            "codes": codes,
            "codes_scale": np.array(0.01, np.float32),
            "codes_zero": np.zeros((), np.int8),
        }
        for word, values in constants.items():
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(values), f"{result}_pointwise_{word}"))
        name = {word: f"{result}_pointwise_{word}" for word in (*constants, "x", "w", "y")}
        self.graph.node.extend(
            [
                helper.make_node("DequantizeLinear", [source, name["scale"], name["zero"]], [name["x"]]),
                helper.make_node(
                    "DequantizeLinear", [name["codes"], name["codes_scale"], name["codes_zero"]], [name["w"]]
                ),
                helper.make_node("Conv", [name["x"], name["w"]], [name["y"]], kernel_shape=[1] * rank),
                helper.make_node("QuantizeLinear", [name["y"], name["scale"], name["zero"]], [result]),
            ]
        )

    def producer(self, shape: Shape) -> None:
        """Put a 1x1 Conv before the input."""
        site = self.site
        outer = (shape[0], min(CHANNELS, shape[1]), *shape[2:])
        given = next(value for value in self.graph.input if value.name == "x")
        given.name = "source"
        dims = given.type.tensor_type.shape.dim
        dims[1].Clear()
        dims[1].dim_value = outer[1]
        if site.input_quantization is not None:
            self.feed("source", outer, np.dtype(site.storage or "int8"))
            self._quantized_pointwise("source", "x", outer[1], shape[1], site.storage or "int8")
        else:
            self.feed("source", outer, dtype(site.geometry.element))
            self._pointwise("source", "x", outer[1], shape[1])
        if shape[1] and site.geometry.in_channels is not None:
            assert shape[1] == site.geometry.in_channels
        self._sort()

    def outputs(self) -> None:
        """Make every tensor at an end an output; behind a 1x1 Conv where the layout goes on."""
        floating = self.graph.output[0].type.tensor_type.elem_type
        quantized = self._quantized()
        del self.graph.output[:]
        for name, onward in self.ends.items():
            result, channels = name, self._channels(name)
            if onward and channels is not None and self.layout:
                result = f"{name}_end"
                if name in quantized:
                    storage = helper.tensor_dtype_to_np_dtype(quantized[name])
                    self._quantized_pointwise(name, result, channels, CHANNELS, str(storage))
                elif self.site.input_quantization is None:
                    self._pointwise(name, result, channels, CHANNELS)
                else:
                    result = name
            value = onnx.ValueInfoProto(name=result)
            value.type.tensor_type.elem_type = quantized.get(name, floating)
            self.graph.output.append(value)

    def _quantized(self) -> dict[str, int]:
        """Return the quantised tensors behind the Conv and their types: those of the zero points, if there are some."""
        types = {tensor.name: tensor.data_type for tensor in self.graph.initializer}
        found: dict[str, int] = {}
        for node in self.taken:
            if node.op_type == "QuantizeLinear":
                named = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
                zero = node.input[2] if len(node.input) > 2 else ""
                found[node.output[0]] = types.get(zero) or named or TensorProto.UINT8
        return found

    def _channels(self, name: str) -> int | None:
        """Return the channels of an end; a sum with another tensor may have more of them than the Conv makes."""
        shape = self._tensor_shape(self.origins[name])
        if shape is None:
            return self.site.geometry.out_channels
        return shape[1] if len(shape) == self.site.geometry.rank + 2 else None

    def _sort(self) -> None:
        """Bring the nodes into an order in which every tensor is made before it is read."""
        made = {value.name for value in self.graph.input} | {tensor.name for tensor in self.graph.initializer} | {""}
        pending = list(self.graph.node)
        ordered: list[NodeProto] = []
        while pending:
            ready = [node for node in pending if all(name in made for name in node.input)]
            assert ready, "the nodes of a micro-model form no cycle"
            ordered += ready
            made.update(name for node in ready for name in node.output)
            pending = [node for node in pending if node not in ready]
        del self.graph.node[:]
        self.graph.node.extend(ordered)
