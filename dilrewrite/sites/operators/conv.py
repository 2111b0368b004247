"""Conv: [N, C, *H] with weights [O, C // group, *k] and a bias [O] -> [N, O, *Ho]. ONNX, versions 1, 11 and 22."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from dilrewrite.forms.fragment import AttributeValue, CoreConv, Turn
from dilrewrite.forms.geometry import AUTO_PADS, MAX_RANK, ConvGeometry
from dilrewrite.model.elements import FLOATS
from dilrewrite.sites import Dequantized, Operand, Part
from dilrewrite.sites.operators import INLINE, Operands, Refused
from dilrewrite.sites.scopes import ELEMENTS, Scope

MOST_TAPS = 2**16
"""A kernel axis with more taps is not rewritten: where each of them touches data could not be told in time."""

_SCHEMAS: list[Any] = [onnx.defs.get_schema(op) for op in ("Conv", "ConvTranspose")]
ATTRIBUTE_TYPES = {name: int(known.type) for schema in _SCHEMAS for name, known in schema.attributes.items()}


CODES = ("int8", "uint8")
"""What data and weights of an operator on integers are held in."""


@final
@dataclass(frozen=True, slots=True)
class Conv:
    """The operator of every exporter; a quantised one stands between DequantizeLinear and QuantizeLinear."""

    op: str = "Conv"

    def read(self, scope: Scope, index: int) -> Part:
        """Return the node with its geometry and operands."""
        node = scope.nodes[index]
        check_names(node)
        values, weight = attributes_of(node), operand_of(scope, node.input[1])
        element = element_of(scope, node, *weight)
        quantized = source_of(scope, node, element) is not None
        geometry = geometry_of(scope, node, values, weight[0], element, quantized=quantized)
        return part_of(scope, index, geometry, weight)

    def check(self, scope: Scope, index: int) -> None:
        """Raise ValueError when a list has another length than the kernel asks for."""
        node = scope.nodes[index]
        if len(node.input) > 1:
            check_lengths(node, operand_of(scope, node.input[1])[0].shape)

    def write(self, _: Part, core: CoreConv, operands: Operands) -> tuple[list[str], Mapping[str, AttributeValue]]:
        """Return the inputs and attributes of a fragment's Conv: its step says all."""
        inputs = [operands.source(), operands.weight(), operands.bias()]
        return [*filter(None, inputs)], written(core)


OPERATOR = Conv()


def check_names(node: NodeProto) -> None:
    """Raise ValueError where a node has no data, no weights or no output."""
    for what, names in (("input", node.input[:1]), ("weights", node.input[1:2]), ("output", node.output[:1])):
        if not names or not names[0]:
            raise ValueError(f"it has no {what}")


def part_of(
    scope: Scope,
    index: int,
    geometry: ConvGeometry,
    weight: tuple[Operand, Dequantized | None],
    turn: Turn | None = None,
) -> Part:
    """Return a node with data, weights and bias as a part of a site, of which forms are made of Convs."""
    node = scope.nodes[index]
    source = source_of(scope, node, geometry.element)
    bias, bias_quantization = operand_of(scope, node.input[2]) if geometry.bias else (None, None)
    return Part(
        index=index,
        operator="conv",
        geometry=geometry,
        weight=weight[0],
        bias=bias,
        weight_quantization=weight[1],
        bias_quantization=bias_quantization,
        input_quantization=source,
        storage=source.source.element if source is not None else None,
        fill=source.zero_point if source is not None else None,
        turn=turn,
    )


def written(core: CoreConv) -> dict[str, AttributeValue]:
    """Return the attributes of a fragment's Conv, or of an operator that has the same."""
    return {
        "dilations": core.dilations,
        "group": core.group,
        "kernel_shape": core.kernel,
        "pads": core.pads,
        "strides": core.strides,
    }


def check_lengths(node: NodeProto, weights: tuple[int, ...] | None) -> None:
    """Raise ValueError when a list of a node has another length than the kernel asks for; `weights`: their shape."""
    values = {a.name: a.ints for a in node.attribute if a.type == AttributeProto.INTS and not a.ref_attr_name}
    kernel = values.get("kernel_shape") if weights is None else weights[2:]
    if kernel is None:
        return
    for name, count in (("dilations", len(kernel)), ("strides", len(kernel)), ("pads", 2 * len(kernel))):
        ints_of(values, name, count, 1)


def source_of(scope: Scope, node: NodeProto, element: str) -> Dequantized | None:
    """Return the DequantizeLinear, per tensor, before a node's data; `element`: the type that the node computes in."""
    source = scope.dequantized(node.input[0])
    if source is None or source.axis is not None or source.source.element is None:
        return None
    if source.source.element not in CODES and element != "float32":
        return None  # 16 bits do not come back from their product with a scale in float16
    return source


def attributes_of(node: NodeProto) -> dict[str, Any]:
    """Return a node's attributes; one of its function raises `Refused`, one of another type ValueError."""
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            given = f"its {attribute.name} is an attribute of the function ({attribute.ref_attr_name})"
            raise Refused(f"{given}; {INLINE}")
        right = ATTRIBUTE_TYPES.get(attribute.name, attribute.type)
        if attribute.type != right:
            raise ValueError(f"{attribute.name} is of type {_type(attribute.type)}, not {_type(right)}")
    return {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}


def _type(number: int) -> str:
    return str(AttributeProto.AttributeType.Name(number))


def operand_of(scope: Scope, name: str, axis: int = 0) -> tuple[Operand, Dequantized | None]:
    """Return weights or bias, with the DequantizeLinear in front of them; `axis`: of their output channels."""
    quantization = scope.constant_dequantized(name, axis)
    return (quantization.source if quantization else scope.operand(name)), quantization


def element_of(scope: Scope, node: NodeProto, weight: Operand, quantization: Dequantized | None) -> str:
    """Return the element type that a Conv computes in."""
    element = None if quantization else weight.element
    if element is None:
        number = scope.shape_of(node.input[0])[0]
        element = ELEMENTS.get(number)
        if number and element is None:
            raise Refused(f"its element type is {TensorProto.DataType.Name(number).lower()}")
    if element is None and quantization is not None:
        element = quantization.scale.element
    element = element or "float32"
    if element not in FLOATS:
        raise Refused(f"its element type is {element}")
    return element


def ints_of(values: Mapping[str, Any], name: str, count: int, default: int) -> tuple[int, ...]:
    """Return a list of a node's attributes; ValueError for another length."""
    ints = tuple(values.get(name) or (default,) * count)
    if len(ints) != count:
        raise ValueError(f"{name} has {len(ints)} values, not {count} (Attribute {name} has incorrect size)")
    return ints


def kernel_of(scope: Scope, node: NodeProto, given: Sequence[int] | None, weight: Operand) -> tuple[int, ...]:
    """Return the kernel, of the weights and of the attribute as far as they are known; ValueError where they differ."""
    kernel = tuple(given) if given is not None else None
    if weight.shape is not None:
        if kernel is not None and kernel != weight.shape[2:]:
            raise ValueError(f"kernel_shape {list(kernel)} does not fit the weights {list(weight.shape)}")
        return weight.shape[2:]
    if kernel is not None:
        return kernel
    known = scope.shape_of(node.input[1])[1]
    if known is None or None in known[2:]:
        function = f"; {INLINE}" if scope.path.function is not None else ""
        raise Refused(f"its weights are computed and have no known shape, and it has no kernel_shape{function}")
    return tuple(size for size in known[2:] if size is not None)


def geometry_of(
    scope: Scope, node: NodeProto, values: Mapping[str, Any], weight: Operand, element: str, *, quantized: bool
) -> ConvGeometry:
    """Return what a node with a Conv's attributes computes; ValueError for one that nothing can run.

    `values` are its attributes, `element` is the type that it makes. A third input is its bias.
    """
    x_shape = scope.shape_of(node.input[0])[1]
    kernel = kernel_of(scope, node, values.get("kernel_shape"), weight)
    rank = len(kernel)
    if rank < 1 or rank > MAX_RANK:
        raise Refused(f"it has {rank} spatial axes; 1 to {MAX_RANK} are covered")
    if max(kernel) > MOST_TAPS:
        raise Refused(f"its kernel has {max(kernel)} taps on an axis; up to {MOST_TAPS} are covered")
    if x_shape is not None and len(x_shape) != rank + 2:
        raise ValueError(f"its input has {len(x_shape)} axes, its kernel {list(kernel)} needs {rank + 2}")
    auto_pad = values.get("auto_pad", b"NOTSET").decode(errors="backslashreplace") or "NOTSET"
    if auto_pad not in AUTO_PADS:
        raise ValueError(f"auto_pad is {auto_pad!r}, not one of {', '.join(AUTO_PADS)}")
    pads = ints_of(values, "pads", 2 * rank, 0) if auto_pad == "NOTSET" else (0,) * (2 * rank)
    group = int(values.get("group", 1))
    batch, channels, *extents = (None,) * (rank + 2) if x_shape is None else x_shape
    if weight.shape is not None:
        fitting = weight.shape[1] * group
        if channels not in (None, fitting):
            need = f"its weights {list(weight.shape)} with group {group} need {fitting}"
            raise ValueError(f"its input has {channels} channels, {need}")
        channels = fitting
    geometry = ConvGeometry(
        batch=batch,
        in_channels=channels,
        out_channels=weight.shape[0] if weight.shape is not None else None,
        group=group,
        extents=tuple(extents),
        kernel=kernel,
        strides=ints_of(values, "strides", rank, 1),
        dilations=ints_of(values, "dilations", rank, 1),
        pads_begin=pads[:rank],
        pads_end=pads[rank:],
        auto_pad=auto_pad,
        bias=len(node.input) > 2 and bool(node.input[2]),
        element=element,
        quantized=quantized,
    )
    problem = geometry.malformed() or geometry.explicit().invalid()
    if problem:
        raise ValueError(problem)
    return geometry
