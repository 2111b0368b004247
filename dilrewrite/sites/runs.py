"""Follows a tensor through a run of layout operators, forwards: how it lies behind each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx import AttributeProto, NodeProto, helper

from dilrewrite.forms.digits import Laid
from dilrewrite.forms.quasi import Size, Unproved, constant, equal, minus, plus, unknown
from dilrewrite.sites.formulas import Formulas
from dilrewrite.sites.scopes import Scope

MOVING = frozenset(
    {
        "DepthToSpace",
        "Identity",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Layout operators that read one tensor of data, the first input."""

QUANTIZING = frozenset({"DequantizeLinear", "QuantizeLinear"})


@dataclass
class Track:
    """The data of a sandwich: how every tensor of it lies, by name, from the one that enters on.

    `least`: by axis of that one the least extent that counts. `fill`: what is padded with so far (`None`: nothing is).
    """

    scope: Scope
    entered: str
    least: Mapping[int, int]
    laid: dict[str, Laid] = field(init=False)
    shape: tuple[Size, ...] = field(init=False)
    fill: float | None = None

    def __post_init__(self) -> None:
        known = self.scope.shape_of(self.entered)[1]
        if known is None:
            raise Unproved(f"the number of axes of {self.entered!r} is not known")
        self.shape = tuple(
            unknown(f"{axis}", self.least.get(axis, 1)) if size is None else size for axis, size in enumerate(known)
        )
        self.laid = {self.entered: Laid.plain(self.shape)}
        self.sizes = Formulas(self.scope, self._shape)

    def _shape(self, name: str) -> Sequence[Size] | None:
        if name in self.laid:
            return self.laid[name].shape
        known = self.scope.shape_of(name)[1]
        if known is None:
            return None
        return [unknown(f"{name}:{axis}") if size is None else size for axis, size in enumerate(known)]

    def through(self, index: int) -> None:
        """Follow the data through a node. Raises `Unproved`."""
        node = self.scope.nodes[index]
        values = _attributes(node)
        if node.op_type in QUANTIZING:
            self._quantized(node)
            self.laid[node.output[0]] = self.laid[node.input[0]]
        elif node.op_type == "Split":
            self._split(node, values)
        elif node.op_type == "Concat":
            parts = [self.laid[name] for name in node.input]
            self.laid[node.output[0]] = parts[0].stacked(parts[1:], values["axis"] % len(parts[0].axes))
        else:
            self.laid[node.output[0]] = self._moved(node, values, self.laid[node.input[0]])

    def _operand(self, node: NodeProto, place: int) -> str:
        return node.input[place] if len(node.input) > place else ""

    def _integers(self, node: NodeProto, place: int, values: Mapping[str, Any], name: str) -> list[int] | None:
        """Return the integers of an attribute, or of the operand that later versions have in its place."""
        if name in values:
            return list(values[name])
        if not self._operand(node, place):
            return None
        known = [constant(size) for size in self.sizes.row(node.input[place])]
        if None in known:
            raise Unproved(f"the axes of the {node.op_type} {node.name!r} are not known")
        return [size for size in known if size is not None]

    def _sizes(self, node: NodeProto, place: int, values: Mapping[str, Any], name: str) -> list[Size] | None:
        if name in values:
            return list(values[name])
        return self.sizes.row(node.input[place]) if self._operand(node, place) else None

    def _moved(self, node: NodeProto, values: Mapping[str, Any], x: Laid) -> Laid:
        rank = len(x.axes)
        if node.op_type == "Transpose":
            return x.transposed(values.get("perm", range(rank)[::-1]))
        if node.op_type == "Reshape":
            sizes = self._sizes(node, 1, values, "shape") or []
            if not values.get("allowzero"):
                sizes = [x.size(place) if size == 0 else size for place, size in enumerate(sizes)]
            return x.reshaped(sizes)
        if node.op_type == "Squeeze":
            places = self._integers(node, 1, values, "axes")
            return x.squeezed(None if places is None else [place % rank for place in places])
        if node.op_type == "Unsqueeze":
            places = self._integers(node, 1, values, "axes") or []
            return x.unsqueezed([place % (rank + len(places)) for place in places])
        if node.op_type == "SpaceToDepth":
            return x.to_depth(values["blocksize"])
        if node.op_type == "DepthToSpace":
            return x.to_space(values["blocksize"], crd=values.get("mode", b"DCR") == b"CRD")
        if node.op_type == "Pad":
            return self._padded(node, values, x)
        return self._sliced(node, values, x) if node.op_type == "Slice" else x

    def _padded(self, node: NodeProto, values: Mapping[str, Any], x: Laid) -> Laid:
        if values.get("mode", b"constant") != b"constant":
            raise Unproved(f"the Pad {node.name!r} fills in something else than a constant")
        pads, rank = self._sizes(node, 1, values, "pads") or [], len(x.axes)
        axes = self._integers(node, 3, values, "") or range(rank)
        if len(pads) != 2 * len(axes):
            raise Unproved(f"the Pad {node.name!r} has pads of another number of axes")
        if any(pad != 0 for pad in pads):
            fill = float(values.get("value", 0.0))
            if self._operand(node, 2):
                fill = self._scalar(node.input[2])
            if self.fill not in (None, fill):
                raise Unproved("two Pads fill in different values")
            self.fill = fill
        for place, axis in enumerate(axes):
            x = x.padded(axis % rank, pads[place], pads[place + len(axes)])
        return x

    def _sliced(self, node: NodeProto, values: Mapping[str, Any], x: Laid) -> Laid:
        starts, ends = self._sizes(node, 1, values, "starts") or [], self._sizes(node, 2, values, "ends") or []
        axes = self._integers(node, 3, values, "axes") or range(len(starts))
        steps = self._sizes(node, 4, values, "") or [1] * len(starts)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            x = x.sliced(axis % len(x.axes), start, end, step)
        return x

    def _split(self, node: NodeProto, values: Mapping[str, Any]) -> None:
        x, axis = self.laid[node.input[0]], values.get("axis", 0)
        sizes = self._sizes(node, 1, values, "split")
        if sizes is None:
            raise Unproved(f"the Split {node.name!r} does not say how long its parts are")
        start: Size = 0
        for name, size in zip(node.output, sizes, strict=True):
            stop = plus(start, size)
            if name and (self.scope.consumers.get(name) or name in self.scope.outputs):
                self.laid[name] = x.sliced(axis % len(x.axes), start, stop, 1)
            start = stop
        if not equal(minus(start, x.size(axis % len(x.axes))), 0):
            raise Unproved(f"the Split {node.name!r} has parts of another length than what it splits")

    def _quantized(self, node: NodeProto) -> None:
        """Follow what is padded with through a DequantizeLinear or a QuantizeLinear."""
        if self.scope.operand(node.input[1]).shape not in ((), (1,)):
            raise Unproved(f"the {node.op_type} {node.name!r} has a scale per channel")
        zero = self._scalar(node.input[2]) if self._operand(node, 2) else 0.0
        before, after = (0.0, zero) if node.op_type == "QuantizeLinear" else (zero, 0.0)
        if self.fill is not None and self.fill != before:
            raise Unproved(f"what is padded with is no 0 in the {node.op_type} {node.name!r}")
        self.fill = None if self.fill is None else after

    def _scalar(self, name: str) -> float:
        operand = self.scope.operand(name)
        values = self.scope.values(operand) if operand.shape in ((), (1,)) else None
        if values is not None:
            return float(values.ravel()[0])
        raise Unproved(f"the value {name!r} that is padded with is not known")


def _attributes(node: NodeProto) -> dict[str, Any]:
    if any(attribute.ref_attr_name for attribute in node.attribute):
        raise Unproved(f"the {node.op_type} {node.name!r} has an attribute of its function")
    return {
        attribute.name: helper.get_attribute_value(attribute)
        for attribute in node.attribute
        if attribute.type != AttributeProto.GRAPH
    }
