"""The nodes that one fragment replaces, and what comes in their place."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from dilrewrite.forms.fragment import FILL, Core, CoreConv, CoreFill, Fragment, Kept, Node, X
from dilrewrite.model.elements import NAMED
from dilrewrite.sites import Site
from dilrewrite.sites.operators import operators
from dilrewrite.splice.editor import Editor
from dilrewrite.splice.operands import StepOperands
from dilrewrite.splice.writer import STRATEGY_KEY, Writer


class Region:
    """One site with its fragment: `indices` are the places of the nodes that go, `map` the names of its tensors."""

    def __init__(self, editor: Editor, site: Site, fragment: Fragment) -> None:
        self.editor, self.site = editor, site
        self.indices = site.absorbed(fragment)
        self.fragment = fragment.keeping(len(site.follow))
        self.writer = Writer(editor, site, fragment.strategy)
        self.absorbed: list[NodeProto] = [self.writer.original(index) for index in self.indices]
        kept = self.indices[len(site.nodes) :]
        self.of = [self.writer.original(index) for index in (*(part.index for part in site.parts), *kept)]
        self.output: str = self.absorbed[-1].output[0]
        self.quantization = site.input_quantization if fragment.enter else None
        self.named: set[int] = set()
        self.map: dict[str, str] = {X: self.quantization.source.name if self.quantization else site.inputs[0]}

    def build(self) -> list[NodeProto]:
        """Return the nodes that replace the region; its output keeps its name."""
        fragment, writer = self.fragment, self.writer
        for word, values in fragment.constants.items():
            self.map[word] = writer.constant(word, np.array(values, np.int64), TensorProto.INT64)
        if any(FILL in node.inputs for node in fragment.enter):
            self.map[FILL] = self._fill_value()
        self.map[fragment.result] = self.output
        number = 0
        for step in fragment.steps:
            number += isinstance(step, Core)
            if isinstance(step, Node):
                writer.emit(step, self.map)
            elif isinstance(step, Kept):
                self._kept(step, number)
            elif isinstance(step, CoreConv):
                self._conv(step, number)
            else:
                self._fill(step)
        self._suspect()
        return writer.nodes

    def _conv(self, core: CoreConv, number: int) -> None:
        """Append a Conv, the `number`-th part of the core; the first of each Conv of the user's keeps its name."""
        part, original, writer = self.site.parts[core.of], self.of[core.of], self.writer
        source = self.map[core.source]
        if self.quantization is not None and part.input_quantization is not None:
            before = writer.original(part.input_quantization.index)
            source = writer.like(before, [source, *before.input[1:]], writer.name(f"{_word(core)}_input"))
        word = "weight" if len(self.fragment.core) == 1 else f"weight_{number}"
        operator = operators()[part.operator]
        inputs, attributes = operator.write(part, core, StepOperands(writer, part, core, source, word))
        output = writer.fresh(core.output, self.map, _word(core))
        name = "" if core.of in self.named else original.name
        self.named.add(core.of)
        emitted = writer.node(operator.op, inputs, [output], attributes, name=name)
        if original.HasField("doc_string") and isinstance(original.doc_string, str):  # bytes: it is not UTF-8
            emitted.doc_string = original.doc_string
        emitted.metadata_props.extend(entry for entry in original.metadata_props if entry.key != STRATEGY_KEY)

    def _fill(self, core: CoreFill) -> None:
        """Append the bias (or zeros), as [1, O, 1, ...], repeated to the core's shape."""
        part, writer = self.site.part, self.writer
        ones = (1,) * part.geometry.rank
        if part.bias is None:
            outputs, kind = part.geometry.out_channels, NAMED[part.geometry.element]
            assert outputs is not None, "the builder refuses a fill without a number of channels"
            start = writer.constant("zeros", np.zeros((1, outputs, *ones), kind.dtype), kind.number)
        else:
            start = writer.name("bias_reshaped")
            shape = writer.constant("bias_shape", np.array([1, -1, *ones], np.int64), TensorProto.INT64)
            bias = part.bias_quantization.output if part.bias_quantization else part.bias.name
            writer.node("Reshape", [bias, shape], [start], {})
        repeat, output = "Expand" if self.site.opset >= 8 else "Tile", writer.fresh(core.output, self.map, _word(core))
        writer.node(repeat, [start, self.map[core.repeats]], [output], {})

    def _kept(self, step: Kept, number: int) -> None:
        """Append a kept node behind the `number`-th part of the core."""
        original = self.of[step.of]
        output = self.writer.fresh(step.output, self.map, f"{original.op_type.lower()}_{number}")
        self.writer.like(original, [self.map[step.source], *original.input[1:]], output)

    def _fill_value(self) -> str:
        """Return the name of the scalar that padding holds, empty when that is 0."""
        zero, editor = self.site.part.fill, self.editor
        if zero is None or (zero.is_constant and not np.any(editor.read(editor.tensor(zero)))):
            return ""  # TensorRT takes no integer constant here
        if zero.shape == ():
            return zero.name
        if zero.is_constant:
            tensor = editor.tensor(zero)
            return self.writer.constant("zero_point", editor.read(tensor).reshape(()), tensor.data_type)
        scalar = self.writer.name("zero_point")
        none = self.writer.constant("scalar", np.zeros(0, np.int64), TensorProto.INT64)
        self.writer.node("Reshape", [zero.name, none], [scalar], {})
        return scalar

    def _suspect(self) -> None:
        """Note what may have lost its last user: operands of the nodes that go, and what they made for each other."""
        site, home = self.site, self.editor.home
        going = self.absorbed[: len(site.nodes)]
        inside = {name for node in self.absorbed for name in node.output} - {"", self.output}
        outside = {name for node in going for name in node.input} - {"", *inside, *site.inputs}
        dequantized = [self.quantization.output] if self.quantization is not None else []
        self.editor.suspects += [(home(site.scope, name), name) for name in sorted(outside)]
        self.editor.suspects += [(site.scope, name) for name in (*dequantized, *sorted(inside))]


def _word(core: Core) -> str:
    """Return what the output of a part of the core is called, whatever follows it."""
    return core.output.partition("/")[0]
