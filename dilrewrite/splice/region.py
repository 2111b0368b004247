"""The nodes that one fragment replaces, and what comes in their place."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto

from dilrewrite.forms.builder import in_pairs
from dilrewrite.forms.fragment import (
    FILL,
    Core,
    CoreConv,
    CoreFill,
    Fragment,
    Kept,
    Node,
    TakeTaps,
    WeightEdit,
    X,
    entering,
    makes,
    reads,
)
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.forms.sandwich import Sandwich
from dilrewrite.model.elements import NAMED
from dilrewrite.sites import Operand, Site
from dilrewrite.sites.operators import operators
from dilrewrite.splice import floats
from dilrewrite.splice.editor import Editor
from dilrewrite.splice.operands import StepOperands
from dilrewrite.splice.writer import STRATEGY_KEY, Writer


class Region:
    """One site with its fragment: `indices` are the places of the nodes that go, `map` the names of its tensors."""

    def __init__(self, editor: Editor, site: Site, fragment: Fragment) -> None:
        self.editor, self.site = editor, site
        self.indices = site.absorbed(fragment)
        self.fragment = fragment.keeping(len(site.follow), len(site.nodes))
        self.writer = Writer(editor, site, fragment.strategy)
        self.absorbed: list[NodeProto] = [self.writer.original(index) for index in self.indices]
        followed = len(self.indices) > len(site.nodes)
        self.outputs = [self.absorbed[-1].output[0]] if followed else list(site.outputs)
        conv, folds = isinstance(site.meaning, ConvGeometry), isinstance(site.meaning, Sandwich)
        self.quantization = site.input_quantization if (fragment.enter and conv) or folds else None
        pairs = self.quantization is not None and in_pairs(site.geometry, site.storage, site.opset)
        self.paired = pairs and not folds
        self.named: set[int] = set()
        self.kept: set[int] = set()
        self.places: list[int] = []
        self.map: dict[str, str] = dict(zip(entering(len(site.inputs)), site.inputs, strict=True))
        if self.quantization is not None and not self.paired and not folds:
            self.map[X] = self.quantization.source.name

    def build(self) -> list[NodeProto]:
        """Return the nodes that replace the region; its output keeps its name."""
        fragment, writer = self.fragment, self.writer
        for word, values in fragment.constants.items():
            self.map[word] = writer.constant(word, np.array(values, np.int64), TensorProto.INT64)
        if any(FILL in node.inputs for node in fragment.enter):
            self._zero_point()
        requantised = self.paired and self.absorbed[-1].op_type == "QuantizeLinear"
        if not requantised:
            self.map.update(zip(fragment.results, self.outputs, strict=True))
        number = 0
        self.places += [-1 if len(self.site.nodes) > 1 else max(self.indices)] * len(writer.nodes)
        for step, place in zip(fragment.steps, self._places(), strict=True):
            number += isinstance(step, Core)
            if isinstance(step, Node):
                writer.emit(step, self.map)
            elif isinstance(step, Kept):
                self._kept(step, number)
            elif isinstance(step, CoreConv):
                self._conv(step, number)
            else:
                self._fill(step)
            self.places += [place] * (len(writer.nodes) - len(self.places))
        if requantised:
            quantize = self.absorbed[-1]
            writer.like(quantize, [self.map[fragment.results[0]], *quantize.input[1:]], self.outputs)
            self.places.append(max(self.indices))
        self._suspect()
        return writer.nodes

    def _places(self) -> list[int]:
        """Return where each step goes: a layout operator right behind what it reads, others where they stood."""
        steps, site = self.fragment.steps, self.site
        if len(site.nodes) == 1:
            return [max(self.indices)] * len(steps)
        nodes = self.editor.containers[site.scope].node
        makers = {name: place for place, node in enumerate(nodes) for name in node.output}
        behind = {x: makers.get(name, -1) for x, name in zip(entering(len(site.inputs)), site.inputs, strict=True)}
        places = []
        for step in steps:
            if isinstance(step, Kept):
                place = self.indices[step.of]
            elif isinstance(step, CoreConv):
                place = site.parts[step.of].index
            else:
                place = max((behind.get(name, -1) for name in reads(step)), default=-1)
            places.append(place)
            behind.update(dict.fromkeys(makes(step), place))
        return places

    def _conv(self, core: CoreConv, number: int) -> None:
        """Append a Conv, the `number`-th part of the core; the first of each Conv of the user's keeps its name."""
        part, writer = self.site.parts[core.of], self.writer
        original = writer.original(part.index)
        source = self.map[core.source]
        if self.quantization is not None and part.input_quantization is not None:
            before = writer.original(part.input_quantization.index)
            codes = self._codes(before, source, _word(core)) if self.paired else source
            source = writer.name(f"{_word(core)}_input")
            writer.like(before, [codes, *before.input[1:]], [source])
        word = "weight" if len(self.fragment.core) == 1 else f"weight_{number}"
        operator, operands = operators()[part.operator], StepOperands(writer, part, core, source, word)
        output = writer.fresh(core.output, self.map, _word(core))
        name = "" if core.of in self.named else original.name
        self.named.add(core.of)
        if self.fragment.in_floats:
            emitted = floats.write(writer, part, core, operands, self._zero_point(), output, name)
        else:
            inputs, attributes = operator.write(part, core, operands)
            emitted = writer.node(operator.op, inputs, [output], attributes, name=name)
        if original.HasField("doc_string") and isinstance(original.doc_string, str):  # bytes: it is not UTF-8
            emitted.doc_string = original.doc_string
        emitted.metadata_props.extend(entry for entry in original.metadata_props if entry.key != STRATEGY_KEY)

    def _codes(self, before: NodeProto, reals: str, word: str) -> str:
        """Append the QuantizeLinear that undoes a DequantizeLinear; return the integers."""
        writer, codes, kind = self.writer, self.writer.name(f"{word}_codes"), NAMED[self.site.storage or ""]
        scale, zero = before.input[1], before.input[2] if len(before.input) > 2 else ""
        zero = zero or writer.constant("zero_point", np.zeros((), kind.dtype), kind.number)
        writer.node("QuantizeLinear", [reals, scale, zero], [codes], {}).domain = before.domain
        return codes

    def _fill(self, core: CoreFill) -> None:
        """Append the bias (or zeros), as [1, O, 1, ...], repeated to the core's shape."""
        part, writer = self.site.part, self.writer
        ones = (1,) * part.geometry.rank
        if part.on_integers:
            start = self._of_zeros()
        elif part.bias is None:
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

    def _of_zeros(self) -> str:
        """Append an operator on integers that reads nothing but zeros, with one tap, so that it rounds as it does."""
        part, writer, ones = self.site.part, self.writer, (1,) * self.site.part.geometry.rank
        kind, channels = NAMED[part.storage or ""], part.geometry.in_channels
        assert channels is not None, "the shape of the weights is known"
        source, zero = (
            writer.constant("zeros", np.zeros((1, channels, *ones), kind.dtype), kind.number),
            self._fill_value(),
        )
        if zero:
            shape = writer.constant("zeros_shape", np.array([1, channels, *ones], np.int64), TensorProto.INT64)
            source = writer.name("zeros_filled")
            writer.node("Expand", [zero, shape], [source], {})
        first = tuple(TakeTaps(axis, 0, 1) for axis, taps in enumerate(part.geometry.kernel) if taps > 1)
        core = CoreConv(
            source=source, output="", kernel=ones, strides=ones, dilations=ones, pads=(0, 0) * len(ones),
            group=part.geometry.group, weight=first, bias_times=int(part.geometry.bias),
        )  # fmt: skip
        operator, output = operators()[part.operator], writer.name("of_zeros")
        inputs, attributes = operator.write(part, core, StepOperands(writer, part, core, source, "weight_first"))
        writer.node(operator.op, inputs, [output], attributes)
        return output

    def _kept(self, step: Kept, number: int) -> None:
        """Append a kept node behind the `number`-th part of the core."""
        original, writer = self.absorbed[step.of], self.writer
        word = f"{original.op_type.lower()}_{number}" if number else original.op_type.lower()
        paired = self.paired and original.op_type == "QuantizeLinear"
        outputs = [writer.name(word) if paired else writer.fresh(output, self.map, word) for output in step.outputs]
        inputs = list(original.input)
        for place, source in step.sources.items():
            inputs += [""] * (place + 1 - len(inputs))
            inputs[place] = self.map[source]
        for place, edits in step.edits.items():
            inputs[place] = self._edited(self.site.operands[step.of, place], edits, word)
        name = "" if number or step.of in self.kept else original.name
        self.kept.add(step.of)
        copy = writer.like(original, inputs, outputs, name=name)
        kept = [attribute for attribute in copy.attribute if attribute.name not in step.attributes]
        del copy.attribute[:]
        copy.attribute.extend(kept)
        writer.set(copy, step.attributes)
        if paired:
            reals = writer.fresh(step.outputs[0], self.map, f"{word}_reals")
            writer.node("DequantizeLinear", [outputs[0], *inputs[1:]], [reals], {}).domain = original.domain

    def _edited(self, operand: Operand, edits: tuple[WeightEdit, ...], word: str) -> str:
        def values() -> tuple[NDArray[np.generic], int]:
            tensor = self.editor.tensor(operand)
            array = self.editor.read(tensor)
            for edit in edits:
                array = edit.apply(array, np.zeros((), array.dtype))
            return array, tensor.data_type

        return self.writer.shared_constant(("edit", *edits), operand, word, values)

    def _zero_point(self) -> str:
        """Return what `_fill_value` does, the same name at each call."""
        if FILL not in self.map:
            self.map[FILL] = self._fill_value()
        return self.map[FILL]

    def _fill_value(self) -> str:
        """Return the name of the scalar that padding holds, empty when that is 0."""
        zero, editor, geometry = self.site.part.fill, self.editor, self.site.part.geometry
        if isinstance(geometry, PoolGeometry):
            kind = NAMED[geometry.element]
            lowest = np.array(-np.inf if kind.dtype.kind not in "iu" else np.iinfo(kind.dtype).min, kind.dtype)
            return self.writer.constant("lowest", lowest, kind.number)
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
        inside = {name for node in self.absorbed for name in node.output} - {"", *self.outputs}
        outside = {name for node in going for name in node.input} - {"", *inside, *site.inputs}
        if isinstance(site.meaning, Sandwich):
            self.editor.sizes |= outside
        dequantized = [self.quantization.output] if self.quantization is not None else []
        self.editor.suspects += [(home(site.scope, name), name) for name in sorted(outside)]
        self.editor.suspects += [(site.scope, name) for name in (*dequantized, *sorted(inside))]


def _word(core: Core) -> str:
    """Return what the output of a part of the core is called, whatever follows it."""
    return core.output.partition("/")[0]
