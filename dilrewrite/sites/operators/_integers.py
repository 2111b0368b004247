"""What QLinearConv and ConvInteger share: a Conv's attributes, weights and data in 8 bits, zero points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from onnx import NodeProto

from dilrewrite.forms.fragment import CoreConv, RepeatOutputs
from dilrewrite.forms.geometry import product
from dilrewrite.sites import Operand, Part
from dilrewrite.sites.operators import Operands, Refused
from dilrewrite.sites.operators.conv import CODES, attributes_of, geometry_of
from dilrewrite.sites.scopes import ELEMENTS, Scope


def given(node: NodeProto, place: int) -> str:
    """Return the name of an input, "" where the node has none there."""
    return node.input[place] if len(node.input) > place else ""


def read(
    scope: Scope, index: int, operator: str, places: Mapping[str, int], element: str, others: Sequence[int]
) -> Part:
    """Return a node of these operators as a part of a site.

    `places`: of "weight", "fill", "zero" (of the weights) and "bias" (where it can have one) among its inputs;
    `element`: the type that it makes; `others`: further places. Raises `Refused`, and ValueError for what cannot run.
    """
    node = scope.nodes[index]
    if not node.output or not node.output[0]:
        raise ValueError("it has no output")
    found = {place: scope.operand(given(node, place)) for place in (*places.values(), *others) if given(node, place)}
    missing = next((place for place in (0, places["weight"], *others) if not given(node, place)), None)
    if missing is not None:
        raise ValueError(f"it has no input {missing}")
    weight = found[places["weight"]]
    bias, zero = (found.get(places[word]) if word in places else None for word in ("bias", "zero"))
    storage = ELEMENTS.get(scope.shape_of(node.input[0])[0] or 0)
    if storage is None:
        fill = found.get(places["fill"])
        storage = fill.element if fill is not None else None
    for what, kind in (("data", storage), ("weights", weight.element)):
        if kind not in CODES:
            raise Refused(f"its {what} are {kind or 'of a type that is not known'}, not int8 or uint8")
    for what, operand in (("weights", weight), ("zero points of the weights", zero)):
        if operand is not None and not operand.is_constant:
            raise Refused(f"its {what} are computed, or a caller may replace them")
    geometry = geometry_of(scope, node, attributes_of(node), weight, element, quantized=True)
    kept = {places["fill"], places["zero"], *others}
    return Part(
        index=index, operator=operator, geometry=replace(geometry, bias=bias is not None), weight=weight, bias=bias,
        storage=storage, fill=found.get(places["fill"]), weight_zero=zero,
        others={place: operand for place, operand in found.items() if place in kept},
    )  # fmt: skip


def per_channel(part: Part, core: CoreConv, operands: Operands, place: int, word: str) -> str:
    """Return an input with one value for all output channels or one for each, as a step of a fragment reads it."""
    operand = part.others.get(place)
    if operand is None:
        return ""
    times = product(tuple(edit.times for edit in core.weight if isinstance(edit, RepeatOutputs)))
    return operand.name if _single(operand) else operands.repeated(operand, times, word)


def _single(operand: Operand) -> bool:
    return operand.shape in ((), (1,))


def plain(part: Part, place: int) -> str:
    """Return the name of an input that stays as it is, "" where the node has none."""
    operand = part.others.get(place)
    return "" if operand is None else operand.name
