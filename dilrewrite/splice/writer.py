"""Writes the nodes and constants of one fragment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from dilrewrite.forms.fragment import AttributeValue, Node
from dilrewrite.model.walk import ScopePath, copied
from dilrewrite.sites import Operand, Site
from dilrewrite.splice.editor import Editor

STRATEGY_KEY = "dilrewrite.strategy"


def write_metadata(message: NodeProto | ModelProto, key: str, value: str) -> None:
    """Write an entry of a message's metadata, in the place of the one with that key."""
    known = [entry for entry in message.metadata_props if entry.key == key]
    entry = known[0] if known else message.metadata_props.add(key=key)
    entry.value = value


class Writer:
    """The nodes that come in the place of a site's, in their order: `nodes`."""

    def __init__(self, editor: Editor, site: Site, strategy: str) -> None:
        self.editor, self.site, self.strategy = editor, site, strategy
        self.nodes: list[NodeProto] = []

    def original(self, index: int) -> NodeProto:
        """Return a node of the site's node list."""
        node: NodeProto = self.editor.containers[self.site.scope].node[index]
        return node

    def name(self, word: str) -> str:
        """Return a new name that starts with the site's."""
        return self.editor.names.make(f"{self.site.name}/{self.strategy}/{word}")

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
        self.set(made, attributes)
        return self.append(made)

    @staticmethod
    def set(node: NodeProto, attributes: Mapping[str, AttributeValue]) -> None:
        """Write attributes that a node does not have."""
        for key, value in attributes.items():
            several = onnx.AttributeProto.INTS if isinstance(value, tuple) else None  # onnx cannot tell of an empty one
            node.attribute.append(onnx.helper.make_attribute(key, value, attr_type=several))

    def append(self, node: NodeProto) -> NodeProto:
        """Append a node that says which strategy made it, where the IR has room for that."""
        if self.editor.edited.ir_version >= 10:
            write_metadata(node, STRATEGY_KEY, self.strategy)
        self.nodes.append(node)
        return node

    def constant(self, word: str, values: NDArray[np.generic], data_type: int, scope: ScopePath | None = None) -> str:
        """Return the name of a new constant in `scope` (the site's own by default)."""
        name, raw = self.name(word), values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
        tensor = TensorProto(name=name, data_type=data_type, dims=values.shape, raw_data=raw)
        scope = self.site.scope if scope is None else scope
        if self.editor.constants_as_nodes(scope):
            tensor.name, output = "", name
            if self.site.opset < 9 and data_type == TensorProto.INT64:  # Constant holds no integers before opset 9
                raw, output = values.astype("<f8").tobytes(), self.name(f"{word}_float")
                tensor = TensorProto(data_type=TensorProto.DOUBLE, dims=values.shape, raw_data=raw)
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
        if operand.kind == "constant" or self.editor.constants_as_nodes(operand.scope):
            return self.constant(word, *make())
        full_key = (operand.scope, operand.name, *key)
        if full_key not in self.editor.shared:
            self.editor.shared[full_key] = self.constant(word, *make(), operand.scope)
        return self.editor.shared[full_key]

    def emit(self, node: Node, local: dict[str, str], prefix: str = "") -> None:
        """Append a layout operator; `local` are the names of a fragment's tensors in the model."""
        for output in node.outputs:
            self.fresh(output, local, f"{prefix}/{output}" if prefix else output)
        inputs = [local[name] if name else "" for name in node.inputs]
        while inputs and not inputs[-1]:
            inputs.pop()
        self.node(node.op, inputs, [local[name] for name in node.outputs], node.attributes)

    def fresh(self, output: str, local: dict[str, str], word: str) -> str:
        """Return the name of a step's output in the model: a new one, but for the last step's."""
        local[output] = local.get(output) or self.name(word)
        return local[output]

    def like(self, original: NodeProto, inputs: Sequence[str], outputs: Sequence[str], name: str = "") -> NodeProto:
        """Append a copy of a node with other inputs and outputs."""
        copy = copied(original)
        copy.name = name or self.name(original.op_type)
        copy.input[:] = inputs
        copy.output[:] = outputs
        return self.append(copy)
