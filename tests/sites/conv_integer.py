"""conv_integer: ConvInteger of uint8 without a zero point of the weights, as a file of `sites/operators/` has it."""

from __future__ import annotations

from collections.abc import Mapping

from onnx import helper

from dilrewrite.forms.fragment import AttributeValue, CoreConv
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.sites import Part
from dilrewrite.sites.operators import Operands, Refused
from dilrewrite.sites.scopes import Scope


class ConvInteger:
    """It sums in int32; padding holds the data's zero point."""

    op = "ConvInteger"

    def read(self, scope: Scope, index: int) -> Part:
        """Return what the node computes as a Conv, and where its operands are."""
        node = scope.nodes[index]
        values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        weight, (_, sizes) = scope.operand(node.input[1]), scope.shape_of(node.input[0])
        if not weight.shape or not sizes or len(node.input) > 3:
            raise Refused("the ConvInteger has sizes that are not known, or a zero point of the weights")
        rank = len(weight.shape) - 2
        geometry = ConvGeometry(
            batch=sizes[0],
            in_channels=weight.shape[1],
            out_channels=weight.shape[0],
            group=1,
            extents=sizes[2:],
            kernel=weight.shape[2:],
            strides=(1,) * rank,
            dilations=tuple(values["dilations"]),
            pads_begin=tuple(values["pads"][:rank]),
            pads_end=tuple(values["pads"][rank:]),
            bias=False,
            element="int32",
            quantized=True,
        )
        zero = scope.operand(node.input[2]) if len(node.input) > 2 else None
        return Part(
            index=index,
            operator="conv_integer",
            geometry=geometry,
            weight=weight,
            bias=None,
            storage="uint8",
            fill=zero,
        )

    def check(self, scope: Scope, index: int) -> None:
        """Let a node without dilation be."""

    def write(self, part: Part, core: CoreConv, operands: Operands) -> tuple[list[str], Mapping[str, AttributeValue]]:
        """Return the inputs and attributes of the ConvInteger for a step of a form."""
        inputs = [operands.source(), operands.weight(), *([part.fill.name] if part.fill is not None else [])]
        names = ("dilations", "group", "pads", "strides")
        return inputs, {"kernel_shape": core.kernel, **{name: getattr(core, name) for name in names}}


OPERATOR = ConvInteger()
