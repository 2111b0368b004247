"""ConvTranspose: [N, C, *H] with weights [C, O // group, *k] and a bias [O] -> [N, O, *Ho]. ONNX, 1, 11 and 22.

Ho = s(H - 1) + d(k - 1) + 1 - p0 - p1 + output_padding. It is a Conv of stride 1 over the input with s - 1 zeros
between its values: the same dilation, its weights turned, pads d(k - 1) - p0 and d(k - 1) - p1 + output_padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from dilrewrite.forms.fragment import AttributeValue, CoreConv, Turn
from dilrewrite.forms.geometry import AUTO_PADS, ConvGeometry, Transposed
from dilrewrite.sites import Operand, Part
from dilrewrite.sites.operators import Operands, Refused
from dilrewrite.sites.operators.conv import OPERATOR as CONV
from dilrewrite.sites.operators.conv import (
    attributes_of,
    check_names,
    element_of,
    geometry_of,
    ints_of,
    kernel_of,
    operand_of,
    part_of,
    source_of,
)
from dilrewrite.sites.scopes import Scope


@final
@dataclass(frozen=True, slots=True)
class ConvTranspose:
    """What decoders spread their data with; a form of it is made of Convs."""

    op: str = "ConvTranspose"

    def read(self, scope: Scope, index: int) -> Part:
        """Return the node as the Conv that it is, and where its weights are."""
        node = scope.nodes[index]
        check_names(node)
        values, weight = attributes_of(node), operand_of(scope, node.input[1], axis=1)
        kernel, turn = kernel_of(scope, node, values.get("kernel_shape"), weight[0]), Turn(int(values.get("group", 1)))
        dilations = ints_of(values, "dilations", len(kernel), 1)
        reach = tuple(d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
        whole = {"dilations": dilations, "group": turn.group, "kernel_shape": kernel, "pads": reach * 2}
        turned = _turned(scope.shape_of(node.input[0])[1], weight[0], turn)
        element = element_of(scope, node, *weight)
        quantized = source_of(scope, node, element) is not None
        geometry = geometry_of(scope, node, whole, turned, element, quantized=quantized)
        return part_of(scope, index, _padded(geometry, values), weight, turn)

    def check(self, scope: Scope, index: int) -> None:
        """Raise ValueError when a list has another length than the kernel asks for."""
        CONV.check(scope, index)

    def write(self, part: Part, core: CoreConv, operands: Operands) -> tuple[list[str], Mapping[str, AttributeValue]]:
        """Return the inputs and attributes of a Conv, of which its forms are made."""
        return CONV.write(part, core, operands)


OPERATOR = ConvTranspose()


def _turned(given: Sequence[int | None] | None, weight: Operand, turn: Turn) -> Operand:
    """Return the weights with the shape that a Conv's would have; `given`: the shape of the node's input."""
    shape = weight.shape
    if shape is None or len(shape) < 3 or turn.group < 1:
        return weight
    if shape[0] % turn.group:
        raise ValueError(f"its weights {list(shape)} have input channels that group {turn.group} does not divide")
    channels = given[1] if given is not None and len(given) == len(shape) else None
    if channels not in (None, shape[0]):
        raise ValueError(f"its input has {channels} channels, its weights {list(shape)} need {shape[0]}")
    return replace(weight, shape=turn.shape(shape))


def _padded(geometry: ConvGeometry, values: Mapping[str, Any]) -> ConvGeometry:
    """Return the geometry of a Conv with all of its pads, with those of a ConvTranspose with these attributes."""
    rank, extents = geometry.rank, geometry.extents
    strides, more = ints_of(values, "strides", rank, 1), ints_of(values, "output_padding", rank, 0)
    if min(strides) < 1 or min(more) < 0:
        raise ValueError(f"strides {strides} must be at least 1, output_padding {more} at least 0")
    crops = _crops(geometry, values, strides, more)
    begin, end = geometry.static_pads
    geometry = replace(
        geometry,
        pads_begin=tuple(pad - crop for pad, (crop, _) in zip(begin, crops, strict=True)),
        pads_end=tuple(pad - crop + a for pad, (_, crop), a in zip(end, crops, more, strict=True)),
        transposed=Transposed(strides=strides, output_padding=more),
    )
    for axis, out in enumerate(geometry.out_extents):
        if out is not None and out < 1:
            numbers = f"stride {strides[axis]}, kernel {geometry.kernel[axis]}, dilation {geometry.dilations[axis]}"
            raise ValueError(
                f"spatial axis {axis}: extent {extents[axis]} with {numbers}, pads {crops[axis]} and output_padding "
                f"{more[axis]} has {out} outputs"
            )
    return geometry


def _crops(
    geometry: ConvGeometry, values: Mapping[str, Any], strides: Sequence[int], more: Sequence[int]
) -> list[tuple[int, int]]:
    """Return how much of the outputs is cut off at the begin and the end of each axis: the node's pads."""
    rank, auto_pad = geometry.rank, values.get("auto_pad", b"NOTSET").decode(errors="backslashreplace") or "NOTSET"
    if auto_pad not in AUTO_PADS:
        raise ValueError(f"auto_pad is {auto_pad!r}, not one of {', '.join(AUTO_PADS)}")
    sizes = ints_of(values, "output_shape", rank, -1)
    if sizes[0] < 0 and not auto_pad.startswith("SAME"):
        pads = ints_of(values, "pads", 2 * rank, 0) if auto_pad == "NOTSET" else (0,) * (2 * rank)
        if min(pads) < 0:
            raise Refused(f"its pads {list(pads)} are negative; runtimes differ in what that is")
        return list(zip(pads[:rank], pads[rank:], strict=True))
    crops = []
    for axis, (size, s, a) in enumerate(zip(sizes, strides, more, strict=True)):
        extent, whole = geometry.extents[axis], geometry.span(axis) + a - s
        if size >= 0 and extent is None:
            raise Refused(f"its output_shape is {list(sizes)}, and the extent of spatial axis {axis} is not known")
        total = whole + (s * (extent or 0) - size if size >= 0 else 0)
        if total < 0:
            wanted = f"output_shape {list(sizes)}" if size >= 0 else auto_pad
            raise Refused(f"{wanted} asks for {-total} outputs more than spatial axis {axis} has; runtimes differ")
        small, large = total // 2, total - total // 2
        crops.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return crops
