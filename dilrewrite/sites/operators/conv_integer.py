"""ConvInteger: a Conv on integers that gives its sums in int32. ONNX, version 10.

y = sum (x - z_x)(w - z_w), modulo 2**32: sums of parts are exact, so every form gives the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.fragment import AttributeValue, CoreConv
from dilrewrite.sites import Part
from dilrewrite.sites.operators import Operands, _integers
from dilrewrite.sites.operators.conv import check_lengths, written
from dilrewrite.sites.scopes import Scope

PLACES = {"weight": 1, "fill": 2, "zero": 3}


@final
@dataclass(frozen=True, slots=True)
class ConvInteger:
    """What dynamic quantisation makes of a Conv; the zero point of the data is computed then."""

    op: str = "ConvInteger"

    def read(self, scope: Scope, index: int) -> Part:
        """Return the node with its geometry and operands."""
        return _integers.read(scope, index, "conv_integer", PLACES, "int32", ())

    def check(self, scope: Scope, index: int) -> None:
        """Raise ValueError when a list has another length than the kernel asks for."""
        node = scope.nodes[index]
        if weight := _integers.given(node, PLACES["weight"]):
            check_lengths(node, scope.operand(weight).shape)

    def write(self, part: Part, core: CoreConv, operands: Operands) -> tuple[list[str], Mapping[str, AttributeValue]]:
        """Return the inputs and attributes of a fragment's ConvInteger: the zero points are the node's."""
        zero = _integers.per_channel(part, core, operands, PLACES["zero"], "weight_zero_point")
        inputs = [operands.source(), operands.weight(), _integers.plain(part, PLACES["fill"]), zero]
        while not inputs[-1]:
            inputs.pop()
        return inputs, written(core)


OPERATOR = ConvInteger()
