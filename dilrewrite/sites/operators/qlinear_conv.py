"""QLinearConv: a Conv on integers, whose sums in int32 are scaled and rounded once. ONNX, version 10.

y = saturate(round(s_x s_w / s_y (sum (x - z_x)(w - z_w) + b)) + z_y). Padding holds z_x. A form sums the same integers
and rounds them in the same operator, so it gives the same bits. (A tap that is 0 in the weights is z_w.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from dilrewrite.forms.fragment import AttributeValue, CoreConv
from dilrewrite.sites import Part
from dilrewrite.sites.operators import Operands, Refused, _integers
from dilrewrite.sites.operators.conv import CODES, check_lengths, written
from dilrewrite.sites.scopes import ELEMENTS, Scope

PLACES = {"fill": 2, "weight": 3, "zero": 5, "bias": 8}
SCALED = (1, 2, 4, 5, 6, 7)
"""Places of scales and zero points: of the data, of the weights, of the output."""


@final
@dataclass(frozen=True, slots=True)
class QLinearConv:
    """What static quantisation in the operator format makes of a Conv."""

    op: str = "QLinearConv"

    def read(self, scope: Scope, index: int) -> Part:
        """Return the node with its geometry and operands."""
        name = _integers.given(scope.nodes[index], 7)
        element = scope.operand(name).element or ELEMENTS.get(scope.shape_of(name)[0] or 0)
        if element not in CODES:
            raise Refused(f"its output is {element or 'of a type that is not known'}, not int8 or uint8")
        return _integers.read(scope, index, "qlinear_conv", PLACES, element, SCALED)

    def check(self, scope: Scope, index: int) -> None:
        """Raise ValueError when a list has another length than the kernel asks for."""
        node = scope.nodes[index]
        if weight := _integers.given(node, PLACES["weight"]):
            check_lengths(node, scope.operand(weight).shape)

    def write(self, part: Part, core: CoreConv, operands: Operands) -> tuple[list[str], Mapping[str, AttributeValue]]:
        """Return the inputs and attributes of a fragment's QLinearConv: the scales and zero points are the node's."""
        scale, zero = (
            _integers.per_channel(part, core, operands, place, word)
            for place, word in ((4, "weight_scale"), (5, "weight_zero_point"))
        )
        x, y = ([_integers.plain(part, place) for place in places] for places in ((1, 2), (6, 7)))
        inputs = [operands.source(), *x, operands.weight(), scale, zero, *y, operands.bias()]
        return inputs if inputs[-1] else inputs[:-1], written(core)


OPERATOR = QLinearConv()
