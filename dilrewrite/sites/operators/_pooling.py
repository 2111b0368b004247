"""What poolings have in common: how their attributes are read as a geometry, and written for a form's step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto

from dilrewrite.forms.fragment import AttributeValue, CoreConv
from dilrewrite.forms.geometry import MAX_RANK
from dilrewrite.forms.pools import PoolGeometry
from dilrewrite.model.elements import FLOATS
from dilrewrite.sites import Operand, Part
from dilrewrite.sites.operators import INLINE, Operands, Refused
from dilrewrite.sites.scopes import ELEMENTS, Scope


def read(scope: Scope, index: int, name: str, *, kind: str, since: int) -> Part:
    """Return a pooling of the operator file `name` as a part; it has dilations from opset `since` on."""
    node = scope.nodes[index]
    if not node.input or not node.input[0] or not node.output or not node.output[0]:
        raise ValueError("it has no input or no output")
    for attribute in node.attribute:
        if attribute.ref_attr_name:
            given = f"its {attribute.name} is an attribute of the function ({attribute.ref_attr_name})"
            raise Refused(f"{given}; {INLINE}")
    if len(node.output) > 1 and node.output[1]:
        raise Refused("its second output, Indices, holds places in the whole input")
    if scope.opset < since:
        raise Refused(f"{node.op_type} has dilations from opset {since} on, not at {scope.opset}")
    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    number, shape = scope.shape_of(node.input[0])
    element = ELEMENTS.get(number, "" if number else "float32")
    if not element:
        raise Refused(f"its element type is {TensorProto.DataType.Name(number).lower()}")
    geometry = _geometry(values, shape, element, kind)
    return Part(
        index=index,
        operator=name,
        geometry=geometry,
        weight=Operand(kind="constant", name="", shape=None, element=None, scope=scope.path),
        bias=None,
        storage=None if element in FLOATS else element,
    )


def _geometry(values: Mapping[str, Any], shape: tuple[int | None, ...] | None, element: str, kind: str) -> PoolGeometry:
    kernel = tuple(values.get("kernel_shape", ()))
    rank = len(kernel)
    if not 1 <= rank <= MAX_RANK:
        raise Refused(f"it has {rank} spatial axes; 1 to {MAX_RANK} are covered")
    if shape is not None and len(shape) != rank + 2:
        raise ValueError(f"its input has {len(shape)} axes, its kernel {list(kernel)} needs {rank + 2}")
    lists = {name: tuple(values.get(name) or (1,) * rank) for name in ("strides", "dilations")}
    pads = tuple(values.get("pads") or (0,) * 2 * rank)
    auto_pad = values.get("auto_pad", b"NOTSET").decode(errors="backslashreplace") or "NOTSET"
    for what, given, count in (*((what, given, rank) for what, given in lists.items()), ("pads", pads, 2 * rank)):
        if len(given) != count:
            raise ValueError(f"{what} has {len(given)} values, not {count} (Attribute {what} has incorrect size)")
    if auto_pad.startswith("SAME"):
        raise Refused(f"{auto_pad}: ONNX Runtime pads by the kernel without its dilation, ONNX with it; give pads")
    if auto_pad != "NOTSET":
        pads = (0,) * 2 * rank
    largest = max(zip(pads, kernel * 2, strict=True), key=lambda pair: pair[0] - pair[1])
    if min(pads) < 0 or largest[0] >= largest[1]:
        raise Refused(f"pads {list(pads)} and kernel {list(kernel)}: ONNX Runtime pads by 0 to less than the kernel")
    batch, channels, *extents = (None,) * (rank + 2) if shape is None else shape
    geometry = PoolGeometry(
        batch=batch, in_channels=channels, out_channels=channels, group=channels or 1, extents=tuple(extents),
        kernel=kernel, strides=lists["strides"], dilations=lists["dilations"], pads_begin=pads[:rank],
        pads_end=pads[rank:], element=element, kind=kind,
        include_pad=bool(values.get("count_include_pad", 0)), power=int(values.get("p", 2)),
        ceil=bool(values.get("ceil_mode", 0)),
    )  # fmt: skip
    problem = geometry.malformed()
    if problem:
        raise ValueError(problem)
    empty = geometry.invalid()
    if empty:  # runtimes give an empty output
        raise Refused(empty)
    return geometry


def write(part: Part, core: CoreConv, operands: Operands) -> tuple[list[str], dict[str, AttributeValue]]:
    """Return the input and the attributes of a pooling for a step of a form."""
    geometry = part.geometry
    assert isinstance(geometry, PoolGeometry)
    given: dict[str, AttributeValue] = {"kernel_shape": core.kernel, "pads": core.pads, "strides": core.strides}
    if max(core.dilations) > 1:
        given["dilations"] = core.dilations
    if (
        geometry.ceil and core.dilations == geometry.window.dilations
    ):  # as it is; phases have what it adds in their pads
        given["ceil_mode"] = 1
    if geometry.kind == "mean":
        given["count_include_pad"] = int(geometry.include_pad)
    if geometry.kind == "norm":
        given["p"] = geometry.power
    return [operands.source()], given
