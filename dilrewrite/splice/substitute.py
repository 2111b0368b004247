"""Puts fragments into a model: the only file that changes a model, and the only maker of names."""

from __future__ import annotations

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from dilrewrite.forms.builder import INFER, Builder, Cut, Tensor
from dilrewrite.forms.fragment import (
    FILL,
    AddKernelAxis,
    AttributeValue,
    CoreConv,
    CoreFill,
    Fragment,
    Kept,
    Node,
    RepeatOutputs,
    SpreadTaps,
    TakeTaps,
    TapsToInputs,
    WeightEdit,
    X,
)
from dilrewrite.model.elements import FLOATS
from dilrewrite.model.shapes import declares, forget_unbelieved, infer_shapes
from dilrewrite.model.walk import (
    Container,
    ScopePath,
    containers,
    graphs_in,
    names_in_training,
    names_read,
    rearrange,
    resolve,
)
from dilrewrite.sites import Dequantized, Normalisation, Operand, Site

STRATEGY_KEY = "dilrewrite.strategy"
VERIFICATION_KEY = "dilrewrite.verification"

Reader = Callable[[TensorProto], NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An edited copy of a model: the proto, the names of tensors made anew, and of weights that went."""

    proto: ModelProto
    added_tensors: tuple[str, ...]
    removed_tensors: tuple[str, ...]


class Names:
    """Makes names that no scope of the model uses: values and nodes of every graph and function, at any depth."""

    def __init__(self, proto: ModelProto) -> None:
        self._used: set[str] = set()
        for container in containers(proto, training=True):
            self._collect(container)
        self._used.update(names_in_training(proto))

    def _collect(self, container: Container) -> None:
        for node in container.node:
            self._used.update((node.name, *node.input, *node.output))
        if isinstance(container, GraphProto):
            for value in (*container.input, *container.output, *container.value_info):
                self._used.add(value.name)
            self._used.update(tensor.name for tensor in container.initializer)
            for sparse in container.sparse_initializer:
                self._used.update((sparse.values.name, sparse.indices.name))
            for annotation in container.quantization_annotation:
                self._used.add(annotation.tensor_name)
                self._used.update(entry.value for entry in annotation.quant_parameter_tensor_names)
        else:
            self._used.update((*container.input, *container.output))
            self._used.update(value.name for value in container.value_info)

    def make(self, wanted: str) -> str:
        """Return `wanted`, or the first of `wanted_2`, `wanted_3`, ... that is free, and reserve it."""
        name, count = wanted, 1
        while not name or name in self._used:
            count += 1
            name = f"{wanted}_{count}"
        self._used.add(name)
        return name


def _uses(root: Container) -> Counter[str]:
    """Count how often each name is used in a graph or function and all graphs inside it."""
    uses = names_read(root)
    for container in (root, *graphs_in(root.node)):
        for annotation in container.quantization_annotation if isinstance(container, GraphProto) else ():
            uses.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    return uses


def _normalise_node(node: NodeProto, change: Normalisation) -> None:
    known = {attribute.name: attribute for attribute in node.attribute}
    if change.dilations is not None:
        known["dilations"].ints[:] = change.dilations
    if change.pads is not None:
        known["auto_pad"].s = b"NOTSET"
        if "pads" in known:
            known["pads"].ints[:] = change.pads
        else:
            node.attribute.append(onnx.helper.make_attribute("pads", list(change.pads)))


def mark(proto: ModelProto, verification: str) -> None:
    """Write how far the model was verified into its metadata."""
    for entry in proto.metadata_props:
        if entry.key == VERIFICATION_KEY:
            entry.value = verification
            return
    proto.metadata_props.add(key=VERIFICATION_KEY, value=verification)


def rewrite(
    proto: ModelProto,
    edits: Sequence[tuple[Site, Fragment]],
    normalisations: Iterable[Normalisation],
    read: Reader,
) -> Rewritten:
    """Return a copy of `proto` in which every site of `edits` is replaced by its fragment.

    Convs that are not replaced get the changes of `normalisations`. `read` returns the values of one tensor of `proto`
    (external ones too); it is called only for weights that a fragment edits. Declared sizes inside the model that
    cannot be believed go. Everything else stays byte for byte.
    """
    edited = ModelProto()
    edited.CopyFrom(proto)
    replaced = {(site.scope, site.index) for site, _ in edits}
    for change in normalisations:
        if (change.scope, change.index) not in replaced:
            _normalise_node(resolve(edited, change.scope).node[change.index], change)
    if not edits:
        return Rewritten(edited, (), ())
    if declares(proto):
        forget_unbelieved(edited, infer_shapes(proto))
    editor = _Editor(proto, edited, read)
    by_scope: dict[ScopePath, list[tuple[Site, Fragment]]] = defaultdict(list)
    for site, fragment in edits:
        by_scope[site.scope].append((site, fragment))
    editor.open(by_scope)
    for path, pairs in by_scope.items():
        editor.scope(path, pairs)
    removed = editor.clean()
    return Rewritten(edited, tuple(editor.added), removed)


def _retain(repeated: Any, keep: Sequence[bool]) -> None:
    if not all(keep):
        rearrange(repeated, [index if kept else None for index, kept in enumerate(keep)])


@dataclass
class _Editor:
    """One call of `rewrite`. Containers of the edited model are looked up before the first change, by original path."""

    source: ModelProto
    edited: ModelProto
    read: Reader
    names: Names = field(init=False)
    added: list[str] = field(default_factory=list)
    suspects: list[tuple[ScopePath, str]] = field(default_factory=list)
    shared: dict[tuple[object, ...], str] = field(default_factory=dict)
    containers: dict[ScopePath, Container] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.names = Names(self.source)

    def open(self, paths: Iterable[ScopePath]) -> None:
        """Look up the containers at `paths` and around them."""
        for path in paths:
            for depth in range(len(path.steps) + 1):
                outer = ScopePath(path.function, path.steps[:depth])
                if outer not in self.containers:
                    self.containers[outer] = resolve(self.edited, outer)

    def scope(self, path: ScopePath, edits: Sequence[tuple[Site, Fragment]]) -> None:
        """Replace the sites of one node list."""
        container = self.containers[path]
        count = len(container.node)
        order: list[int | None] = [index << 20 for index in range(count)]
        fresh: list[NodeProto] = []
        for site, fragment in edits:
            region = _Region(self, site, fragment, container)
            nodes = region.build()
            for index in region.indices:
                order[index] = None
            order.extend((max(region.indices) << 20) + number for number in range(len(nodes)))
            fresh.extend(nodes)
        container.node.extend(fresh)
        rearrange(container.node, order)

    def constants_as_nodes(self, path: ScopePath) -> bool:
        """Say whether constants of this scope must be Constant nodes: in functions, and before IR 4."""
        return path.function is not None or self.edited.ir_version < 4

    def tensor(self, operand: Operand) -> TensorProto:
        """Return the original tensor behind a constant operand."""
        container = resolve(self.source, operand.scope)
        if operand.kind == "constant":
            assert operand.index is not None
            found: TensorProto = next(a.t for a in container.node[operand.index].attribute if a.name == "value")
            return found
        assert isinstance(container, GraphProto)
        found = next(tensor for tensor in container.initializer if tensor.name == operand.name)
        assert isinstance(found, TensorProto)
        return found

    # -- clearing up ---------------------------------------------------------------------------------------------

    def _home(self, path: ScopePath, name: str) -> ScopePath:
        for depth in range(len(path.steps), 0, -1):
            outer = ScopePath(path.function, path.steps[:depth])
            container = self.containers[outer]
            if any(name in node.output for node in container.node):
                return outer
            if isinstance(container, GraphProto) and any(tensor.name == name for tensor in container.initializer):
                return outer
        return ScopePath(path.function)

    def clean(self) -> tuple[str, ...]:
        """Remove what only the replaced nodes used, and the descriptions of tensors that are gone."""
        counted: dict[int | None, Counter[str]] = {}
        for path in self.containers:
            if path.function not in counted:
                counted[path.function] = _uses(resolve(self.edited, ScopePath(path.function)))
                if path.function is None:
                    counted[None].update(names_in_training(self.edited))
        makers: dict[ScopePath, dict[str, int]] = {}
        nodes: dict[ScopePath, set[int]] = defaultdict(set)
        names: dict[ScopePath, set[str]] = defaultdict(set)
        queue = deque(dict.fromkeys(self.suspects))
        while queue:
            path, name = queue.popleft()
            uses = counted[path.function]
            if uses[name] or name in names[path]:
                continue
            container = self.containers[path]
            if path not in makers:
                makers[path] = {name: i for i, node in enumerate(container.node) for name in node.output}
            maker = makers[path].get(name)
            if maker is not None:
                node = container.node[maker]
                if node.op_type not in ("Constant", "DequantizeLinear"):
                    continue
                nodes[path].add(maker)
                for other in node.input:
                    if other:
                        uses[other] -= 1
                        queue.append((self._home(path, other), other))
            elif name in [value.name if isinstance(container, GraphProto) else value for value in container.input]:
                continue
            names[path].add(name)
        removed: list[str] = []
        for path, gone in names.items():
            container = self.containers[path]
            _retain(container.node, [i not in nodes[path] for i in range(len(container.node))])
            if isinstance(container, GraphProto):
                removed.extend(tensor.name for tensor in container.initializer if tensor.name in gone)
                _retain(container.initializer, [tensor.name not in gone for tensor in container.initializer])
                _retain(
                    container.quantization_annotation,
                    [annotation.tensor_name not in gone for annotation in container.quantization_annotation],
                )
            _retain(container.value_info, [value.name not in gone for value in container.value_info])
        return tuple(removed)


class _Region:
    """The nodes that one fragment replaces, and what comes in their place."""

    def __init__(self, editor: _Editor, site: Site, fragment: Fragment, container: Container) -> None:
        self.editor = editor
        self.site = site
        self.fragment = fragment.keeping(len(site.follow))
        self.indices = (site.index, *(site.follow if self.fragment is not fragment else ()))
        self.parts: list[NodeProto] = [container.node[index] for index in self.indices]
        self.conv = self.parts[0]
        self.nodes: list[NodeProto] = []
        self.output: str = self.parts[-1].output[0]
        self.on_integers = site.input_quantization is not None and bool(fragment.enter)
        source = self.conv.input[0]
        if self.on_integers:
            assert site.input_quantization is not None
            source = site.input_quantization.source.name
        self.map: dict[str, str] = {X: source}

    # -- making things -------------------------------------------------------------------------------------------

    def name(self, word: str) -> str:
        """Return a new name that starts with the site's."""
        return self.editor.names.make(f"{self.site.name}/{self.fragment.strategy}/{word}")

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        attributes: Mapping[str, AttributeValue],
        *,
        name: str = "",
    ) -> NodeProto:
        """Append a node."""
        made = NodeProto(op_type=op, name=name or self.name(op), input=inputs, output=outputs)
        for key, value in attributes.items():
            made.attribute.append(
                onnx.helper.make_attribute(
                    key,
                    list(value) if isinstance(value, tuple) else value,
                    attr_type=onnx.AttributeProto.INTS if isinstance(value, tuple) else None,
                )
            )
        return self.append(made)

    def append(self, node: NodeProto) -> NodeProto:
        """Append a node that says which strategy made it, where the IR has room for that."""
        if self.editor.edited.ir_version >= 10:
            known = [entry for entry in node.metadata_props if entry.key == STRATEGY_KEY]
            entry = known[0] if known else node.metadata_props.add(key=STRATEGY_KEY)
            entry.value = self.fragment.strategy
        self.nodes.append(node)
        return node

    def constant(self, word: str, values: NDArray[np.generic], data_type: int, scope: ScopePath | None = None) -> str:
        """Return the name of a new constant in `scope` (the site's own by default)."""
        name = self.name(word)
        tensor = TensorProto(name=name, data_type=data_type, dims=values.shape)
        tensor.raw_data = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        scope = self.site.scope if scope is None else scope
        if self.editor.constants_as_nodes(scope):
            tensor.name = ""
            output = name
            if self.site.opset < 9 and data_type == TensorProto.INT64:  # Constant holds no integers before opset 9
                tensor = TensorProto(data_type=TensorProto.DOUBLE, dims=values.shape)
                tensor.raw_data = values.astype("<f8").tobytes()
                output = self.name(f"{word}_float")
            made = NodeProto(op_type="Constant", name=self.name("Constant"), output=[output])
            made.attribute.append(onnx.helper.make_attribute("value", tensor))
            self.append(made)
            if output != name:
                self.node("Cast", [output], [name], {"to": int(TensorProto.INT64)})
        else:
            container = self.editor.containers[scope]
            assert isinstance(container, GraphProto)
            container.initializer.append(tensor)
            self.editor.added.append(name)
        return name

    def shared_constant(
        self, key: tuple[object, ...], operand: Operand, word: str, make: Callable[[], tuple[NDArray[np.generic], int]]
    ) -> str:
        """Return a new constant beside `operand`, the same one for every site that edits it in the same way."""
        as_nodes = operand.kind == "constant" or self.editor.constants_as_nodes(operand.scope)
        if as_nodes:
            values, data_type = make()
            scope = self.site.scope
            return self.constant(word, values, data_type, scope)
        full_key = (operand.scope, operand.name, *key)
        if full_key not in self.editor.shared:
            values, data_type = make()
            self.editor.shared[full_key] = self.constant(word, values, data_type, operand.scope)
        return self.editor.shared[full_key]

    def lowered(self, source: str, shape: tuple[int | None, ...], edits: Sequence[WeightEdit], prefix: str) -> str:
        """Return the name of computed weights after `edits`, made by graph operators."""
        builder = Builder(self.site.geometry, self.site.opset)
        tensor = Tensor(source, shape)
        for edit in edits:
            tensor = _lower(builder, tensor, edit)
        emitted = builder.finish(prefix, tensor)
        local = {source: source}
        for word, values in emitted.constants.items():
            local[word] = self.constant(f"{prefix}/{word}", np.array(values, np.int64), TensorProto.INT64)
        for node in emitted.enter:
            self._emit(node, local, prefix)
        return local[tensor.name]

    def _emit(self, node: Node, local: dict[str, str], prefix: str = "") -> None:
        for output in node.outputs:
            self._fresh(output, local, f"{prefix}/{output}" if prefix else output)
        inputs = [local[name] if name else "" for name in node.inputs]
        while inputs and not inputs[-1]:
            inputs.pop()
        self.node(node.op, inputs, [local[name] for name in node.outputs], node.attributes)

    def _fresh(self, output: str, local: dict[str, str], word: str) -> str:
        """Return the name of a step's output in the model: a new one, but for the last step's."""
        if output not in local:
            local[output] = self.name(word)
        return local[output]

    # -- operands ------------------------------------------------------------------------------------------------

    def suspect(self, scope: ScopePath, name: str) -> None:
        """Note a tensor that may have lost its last user."""
        self.editor.suspects.append((scope, name))

    def weight(self, core: CoreConv, number: int) -> str:
        """Return the name of the core Conv's weights."""
        site = self.site
        given: str = self.conv.input[1]
        if not core.weight:
            return given
        operand, quantization = site.weight, site.weight_quantization
        word = "weight" if len(self.fragment.core) == 1 else f"weight_{number}"
        if not operand.is_constant:
            shape = operand.shape if operand.shape is not None else (None, None, *site.geometry.kernel)
            return self.lowered(given, shape, core.weight, word)

        def edited() -> tuple[NDArray[np.generic], int]:
            tensor = self.editor.tensor(operand)
            values = self.editor.read(tensor)
            zero: NDArray[np.generic] = np.zeros((), values.dtype)
            if quantization is not None and quantization.zero_point is not None:
                zero = self.editor.read(self.editor.tensor(quantization.zero_point))
                zero = zero.reshape(-1, *(1,) * (values.ndim - 1)) if quantization.axis == 0 else zero.reshape(())
            for edit in core.weight:
                if zero.ndim > 0 and len(zero) != len(values):
                    zero = np.concatenate([zero] * (len(values) // len(zero)))
                values = edit.apply(values, zero)
            return values, tensor.data_type

        zero_name = quantization.zero_point.name if quantization and quantization.zero_point else None
        axis = quantization.axis if quantization else None
        fresh = self.shared_constant(("edit", *core.weight, zero_name, axis), operand, word, edited)
        if quantization is None:
            return fresh
        times = math.prod(edit.times for edit in core.weight if isinstance(edit, RepeatOutputs))
        return self._requantized(quantization, fresh, times, word)

    def _repeated(self, operand: Operand, times: int, word: str) -> str:
        if times == 1:
            return operand.name

        def edited() -> tuple[NDArray[np.generic], int]:
            tensor = self.editor.tensor(operand)
            return np.concatenate([self.editor.read(tensor)] * times), tensor.data_type

        return self.shared_constant(("repeat", times), operand, word, edited)

    def _requantized(self, quantization: Dequantized, values: str, times: int, word: str) -> str:
        """Return the name of `values` behind a DequantizeLinear like the given one, its scales repeated."""
        original = self.editor.containers[self.site.scope].node[quantization.index]
        per_channel = times if quantization.axis == 0 else 1
        inputs = [values, self._repeated(quantization.scale, per_channel, f"{word}_scale")]
        if quantization.zero_point is not None:
            inputs.append(self._repeated(quantization.zero_point, per_channel, f"{word}_zero_point"))
        return self._like(original, inputs, self.name(f"{word}_dequantized"))

    def _like(self, original: NodeProto, inputs: Sequence[str], output: str) -> str:
        """Append a copy of a node with other inputs and another output; return that."""
        copy = NodeProto()
        copy.CopyFrom(original)
        copy.name = self.name(original.op_type)
        copy.input[:] = inputs
        copy.output[:] = [output]
        self.append(copy)
        return output

    def bias(self, times: int) -> str:
        """Return the name of the bias, repeated."""
        operand, quantization = self.site.bias, self.site.bias_quantization
        if operand is None or times == 0:
            return ""
        given: str = self.conv.input[2]
        if times == 1:
            return given
        if not operand.is_constant:
            return self.lowered(given, operand.shape or (None,), [RepeatOutputs(times)], "bias")
        repeated = self._repeated(operand, times, "bias")
        return repeated if quantization is None else self._requantized(quantization, repeated, times, "bias")

    def fill_value(self) -> str:
        """Return the name of the scalar zero point of the input, empty when that is 0."""
        quantization = self.site.input_quantization
        if not self.on_integers or quantization is None or quantization.zero_point is None:
            return ""
        zero = quantization.zero_point
        if zero.is_constant and not np.any(self.editor.read(self.editor.tensor(zero))):
            return ""  # TensorRT takes no integer constant here
        if zero.shape == ():
            return zero.name
        if zero.is_constant:
            tensor = self.editor.tensor(zero)
            return self.constant("zero_point", self.editor.read(tensor).reshape(()), tensor.data_type)
        scalar = self.name("zero_point")
        none = self.constant("scalar", np.zeros(0, np.int64), TensorProto.INT64)
        self.node("Reshape", [zero.name, none], [scalar], {})
        return scalar

    # -- the whole region ----------------------------------------------------------------------------------------

    def build(self) -> list[NodeProto]:
        """Return the nodes that replace the region; its output keeps its name."""
        fragment, site = self.fragment, self.site
        for word, values in fragment.constants.items():
            self.map[word] = self.constant(word, np.array(values, np.int64), TensorProto.INT64)
        if any(FILL in node.inputs for node in fragment.enter):
            self.map[FILL] = self.fill_value()
        self.map[fragment.result] = self.output
        keeps_name, convs = bool(self.conv.name), 0
        for step in fragment.steps:
            if isinstance(step, Node):
                self._emit(step, self.map)
            elif isinstance(step, CoreFill):
                self._fill(step)
            elif isinstance(step, CoreConv):
                convs += 1
                self._conv(step, convs, keeps_name and convs == 1)
            else:
                self._kept(step)
        self.suspect_inputs()
        for part in self.parts[:-1]:
            self.suspect(site.scope, part.output[0])
        return self.nodes

    def _kept(self, step: Kept) -> None:
        part = self.parts[step.of]
        output = self._fresh(step.output, self.map, part.op_type.lower())
        self._like(part, [self.map[step.source], *part.input[1:]], output)

    def suspect_inputs(self) -> None:
        """Note the operands of the replaced Conv."""
        site = self.site
        for name, operand, quantization in (
            (self.conv.input[1], site.weight, site.weight_quantization),
            (self.conv.input[2] if len(self.conv.input) > 2 else "", site.bias, site.bias_quantization),
        ):
            if name and operand is not None:
                self.suspect(site.scope if quantization is not None else operand.scope, name)
        if self.on_integers:
            self.suspect(site.scope, self.conv.input[0])

    def _conv(self, core: CoreConv, number: int, keeps_name: bool) -> None:
        part = self.parts[core.of]
        source = self.map[core.source]
        if self.on_integers:
            quantization = self.site.input_quantization
            assert quantization is not None
            original = self.editor.containers[self.site.scope].node[quantization.index]
            source = self._like(original, [source, *original.input[1:]], self.name(f"{core.output}_input"))
        inputs = [source, self.weight(core, number)]
        bias = self.bias(core.bias_times)
        if bias:
            inputs.append(bias)
        attributes: dict[str, AttributeValue] = {
            "dilations": core.dilations,
            "group": core.group,
            "kernel_shape": core.kernel,
            "pads": core.pads,
            "strides": core.strides,
        }
        output = self._fresh(core.output, self.map, core.output)
        emitted = self.node("Conv", inputs, [output], attributes, name=part.name if keeps_name else "")
        if part.HasField("doc_string") and isinstance(part.doc_string, str):  # bytes: it is not UTF-8
            emitted.doc_string = part.doc_string
        emitted.metadata_props.extend(entry for entry in part.metadata_props if entry.key != STRATEGY_KEY)

    def _fill(self, core: CoreFill) -> None:
        """Append the bias (or zeros), as [1, O, 1, ...], repeated to the core's shape."""
        site = self.site
        ones = (1,) * site.geometry.rank
        if site.bias is None:
            outputs = site.geometry.out_channels
            assert outputs is not None, "the builder refuses a fill without a number of channels"
            kind = FLOATS[site.geometry.element]
            start = self.constant("zeros", np.zeros((1, outputs, *ones), kind.dtype), kind.number)
        else:
            start = self.name("bias_reshaped")
            shape = self.constant("bias_shape", np.array([1, -1, *ones], np.int64), TensorProto.INT64)
            self.node("Reshape", [self.conv.input[2], shape], [start], {})
        output = self._fresh(core.output, self.map, core.output)
        repeat = "Expand" if site.opset >= 8 else "Tile"
        self.node(repeat, [start, self.map[core.repeats]], [output], {})


def _lower(builder: Builder, tensor: Tensor, edit: WeightEdit) -> Tensor:
    """Emit a weight edit as graph operators, for weights that are known at run time only."""
    rank = len(tensor.shape) - 2
    kernel = [extent for extent in tensor.shape[2:] if isinstance(extent, int)]
    if isinstance(edit, TakeTaps):
        return builder.slice(tensor, {edit.axis + 2: Cut(edit.start, edit.stop)})
    if isinstance(edit, RepeatOutputs):
        return builder.concat([tensor] * edit.times, 0)
    if isinstance(edit, AddKernelAxis):
        return builder.reshape(tensor, [0, 0, *kernel[: edit.axis], 1, *kernel[edit.axis :]])
    if isinstance(edit, TapsToInputs):
        turned = builder.transpose(tensor, [0, *range(2, rank + 2), 1])
        return builder.reshape(turned, [0, INFER, *(1,) * rank])
    if isinstance(edit, SpreadTaps):
        for axis, d in enumerate(edit.dilations):
            k = kernel[axis]
            if d == 1 or k == 1:
                continue
            apart = builder.reshape(tensor, [0, 0, *kernel[: axis + 1], 1, *kernel[axis + 1 :]])
            ends = [0] * (rank + 3)
            ends[axis + 3] = d - 1
            padded = builder.pad(apart, [0] * (rank + 3), ends)
            kernel[axis] = k * d
            joined = builder.reshape(padded, [0, 0, *kernel])
            kernel[axis] = d * (k - 1) + 1
            tensor = builder.slice(joined, {axis + 2: Cut(0, kernel[axis])})
        return tensor
    raise TypeError(f"no graph form of {edit!r}")


def disturb(proto: ModelProto, errors: Sequence[tuple[Site, float]], seed: int) -> ModelProto:
    """Return a copy of `proto` whose Convs at `errors` have noise added to their output.

    The noise is uniform, of the given share of the output's largest magnitude. It shows how far the model itself
    carries rounding of that size.
    """
    edited = ModelProto()
    edited.CopyFrom(proto)
    names = Names(proto)
    containers = {site.scope: resolve(edited, site.scope) for site, _ in errors}
    for number, (site, error) in enumerate(errors):
        container = containers[site.scope]
        node = container.node[site.index]
        output = node.output[0]
        clean = names.make(f"{output}/clean")
        node.output[0] = clean
        word = {
            word: names.make(f"{output}/{word}") for word in ("abs", "peak", "share", "scale", "wave", "typed", "noise")
        }
        kind = FLOATS[site.geometry.element]
        share = TensorProto(data_type=kind.number, raw_data=np.array(error, kind.dtype).tobytes())
        make = onnx.helper.make_node
        fresh = [
            make("Constant", [], [word["share"]], value=share),
            make("Abs", [clean], [word["abs"]]),
            make("ReduceMax", [word["abs"]], [word["peak"]], keepdims=0),
            make("Mul", [word["peak"], word["share"]], [word["scale"]]),
            make("RandomUniformLike", [clean], [word["wave"]], dtype=1, low=-1.0, high=1.0, seed=float(seed + number)),
            make("Cast", [word["wave"]], [word["typed"]], to=kind.number),
            make("Mul", [word["typed"], word["scale"]], [word["noise"]]),
            make("Add", [clean, word["noise"]], [output]),
        ]
        container.node.extend(fresh)
    # the new nodes stand at the end of their lists; bring each behind its Conv
    for scope in containers:
        container = containers[scope]
        count = len(container.node) - 8 * sum(site.scope == scope for site, _ in errors)
        order: list[int | None] = [index << 20 for index in range(count)]
        for site, _ in errors:
            if site.scope == scope:
                order.extend((site.index << 20) + place for place in range(1, 9))
        rearrange(container.node, order)
    return edited
