"""What tensors of sizes hold: the chains of Shape, Gather, Concat and arithmetic before Reshape, Pad and Slice."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from dilrewrite.forms.quasi import Size, Unproved, constant, equal, larger, minus, over, plus, rest, smaller, times
from dilrewrite.model.walk import DEFAULT_DOMAINS
from dilrewrite.sites.scopes import Scope

MOST_ELEMENTS = 4096
"""A tensor with more elements holds no sizes."""

Sizes = NDArray[np.object_]
"""An integer tensor whose elements are sizes."""


@dataclass
class Formulas:
    """The tensors of sizes of a node list. `shape` returns the sizes of any other one, `None` where nothing is known.

    `nodes`: the places of the nodes that compute what was asked for.
    """

    scope: Scope
    shape: Callable[[str], Sequence[Size] | None]
    nodes: set[int] = field(default_factory=set)
    _known: dict[str, Sizes] = field(default_factory=dict)
    _made: dict[str, set[int]] = field(default_factory=dict)

    def of(self, name: str) -> Sizes:
        """Return what a tensor holds. Raises `Unproved` where it cannot be told."""
        if name not in self._known:
            before, self.nodes = self.nodes, set()
            try:
                self._known[name] = self._value(name)
                self._made[name] = self.nodes
            finally:
                self.nodes = before
        self.nodes |= self._made[name]
        return self._known[name]

    def row(self, name: str) -> list[Size]:
        """Return what a tensor of one axis, or a scalar, holds."""
        return list(self.of(name).ravel())

    def _value(self, name: str) -> Sizes:
        operand = self.scope.operand(name)
        if operand.is_constant:
            small = operand.shape is not None and math.prod(operand.shape) <= MOST_ELEMENTS
            values = self.scope.values(operand) if small else None
            return _held(values, name)
        place = self.scope.producers.get(name)
        if place is None:
            raise Unproved(f"the sizes {name!r} are computed outside of it")
        node = self.scope.nodes[place]
        if node.domain not in DEFAULT_DOMAINS:
            raise Unproved(f"{node.op_type} computes the sizes {name!r}")
        attributes: dict[str, Any] = {
            attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute
        }
        self.nodes.add(place)
        if node.op_type == "Shape":
            return self._shape(node, attributes)
        if node.op_type == "Size":
            return _array([_multiplied(self._sizes_of(node.input[0]))], ())
        if node.op_type == "Constant":
            ints = next((attributes[key] for key in ("value_ints", "value_int") if key in attributes), None)
            if ints is not None:
                return _objects(ints)
        compute = _OPERATORS.get(node.op_type)
        if compute is None:
            raise Unproved(f"{node.op_type} computes the sizes {name!r}")
        try:
            return compute([self.of(each) if each else None for each in node.input], attributes, node)
        except (IndexError, TypeError, ValueError) as error:
            raise Unproved(f"{node.op_type} computes the sizes {name!r}: {error}") from error

    def _sizes_of(self, name: str) -> list[Size]:
        sizes = self.shape(name)
        if sizes is None:  # a tensor of sizes itself
            sizes = self.of(name).shape
        return [*sizes]

    def _shape(self, node: NodeProto, values: dict[str, Any]) -> Sizes:
        sizes = self._sizes_of(node.input[0])
        part = sizes[values.get("start", 0) : values.get("end")]
        return _array(part, (len(part),))


def _multiplied(sizes: Sequence[Size]) -> Size:
    whole: Size = 1
    for size in sizes:
        whole = times(whole, size)
    return whole


def _objects(values: Any) -> Sizes:
    return np.asarray(values, np.object_)


def _array(values: Sequence[Size], shape: Sequence[int]) -> Sizes:
    made: Sizes = np.empty(len(values), object)
    made[:] = values
    return made.reshape(tuple(shape))


def _held(values: NDArray[np.generic] | None, name: str) -> Sizes:
    """Return the integers of a constant."""
    whole = values is not None and (
        values.dtype.kind in "iub" or (values.dtype.kind == "f" and np.all(values % 1 == 0))
    )
    if values is None or not whole:
        raise Unproved(f"the constant {name!r} holds no sizes")
    return _array([int(value) for value in values.ravel()], values.shape)


def _integers(values: Sizes | None) -> list[int]:
    """Return the values of an operand that says where to act."""
    known = [] if values is None else [constant(value) for value in values.ravel()]
    if None in known:
        raise Unproved("where a Gather, Slice or Squeeze of sizes acts depends on the extents")
    return [value for value in known if value is not None]


Inputs = list[Sizes | None]


def _first(inputs: Inputs) -> Sizes:
    given = inputs[0]
    assert given is not None
    return given


def _binary(compute: Callable[[Size, Size], Size]) -> Callable[[Inputs, dict[str, Any], NodeProto], Sizes]:
    def run(inputs: Inputs, _: dict[str, Any], __: NodeProto) -> Sizes:
        rows = [each for each in inputs if each is not None]
        return functools.reduce(lambda a, b: _objects(np.frompyfunc(compute, 2, 1)(a, b)), rows)

    return run


def _unary(compute: Callable[[Size], Size]) -> Callable[[Inputs, dict[str, Any], NodeProto], Sizes]:
    return lambda inputs, _, __: _objects(np.frompyfunc(compute, 1, 1)(_first(inputs)))


def _divided(a: Size, b: Size) -> Size:
    if isinstance(a, int) and isinstance(b, int) and b:
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return over(a, b)


def _modulo(a: Size, b: Size) -> Size:
    return a % b if isinstance(a, int) and isinstance(b, int) and b else rest(a, b)


def _same(a: Size, b: Size) -> Size:
    if equal(a, b):
        return 1
    if constant(minus(a, b)) is None:
        raise Unproved("whether two sizes are equal depends on the extents")
    return 0


def _chosen(inputs: Inputs, _: dict[str, Any], __: NodeProto) -> Sizes:
    conditions = [bool(value) for value in _integers(inputs[0])]
    where = np.array(conditions).reshape(_first(inputs).shape)
    return _objects(np.where(where, _objects(inputs[1]), _objects(inputs[2])))


def _gathered(inputs: Inputs, values: dict[str, Any], _: NodeProto) -> Sizes:
    where = np.array(_integers(inputs[1]), int).reshape(inputs[1].shape if inputs[1] is not None else ())
    return _objects(np.take(_first(inputs), where, axis=values.get("axis", 0)))


def _sliced(inputs: Inputs, values: dict[str, Any], _: NodeProto) -> Sizes:
    given = _first(inputs)
    if len(inputs) == 1:
        starts, ends, axes = values["starts"], values["ends"], values.get("axes")
        steps = [1] * len(starts)
    else:
        starts, ends = _integers(inputs[1]), _integers(inputs[2])
        axes = _integers(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else None
        steps = _integers(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    cuts = [slice(None)] * given.ndim
    for axis, *cut in zip(range(len(starts)) if axes is None else axes, starts, ends, steps, strict=True):
        cuts[axis] = slice(*cut)
    return given[tuple(cuts)]


def _axes(inputs: Inputs, values: dict[str, Any]) -> list[int] | None:
    if len(inputs) > 1 and inputs[1] is not None:
        return _integers(inputs[1])
    return list(values["axes"]) if "axes" in values else None


def _squeezed(inputs: Inputs, values: dict[str, Any], _: NodeProto) -> Sizes:
    axes = _axes(inputs, values)
    return _objects(_first(inputs).squeeze(None if axes is None else tuple(axes)))


def _unsqueezed(inputs: Inputs, values: dict[str, Any], _: NodeProto) -> Sizes:
    return _objects(np.expand_dims(_first(inputs), tuple(_axes(inputs, values) or ())))


def _reshaped(inputs: Inputs, values: dict[str, Any], _: NodeProto) -> Sizes:
    given, target = _first(inputs), list(values["shape"]) if "shape" in values else _integers(inputs[1])
    if not values.get("allowzero"):
        target = [given.shape[place] if size == 0 else size for place, size in enumerate(target)]
    return given.reshape(target)


def _padded(inputs: Inputs, values: dict[str, Any], node: NodeProto) -> Sizes:
    given, pads = _first(inputs), _rows(inputs, values)
    if len(inputs) > 3 or values.get("mode", b"constant") != b"constant" or given.ndim * 2 != len(pads):
        raise Unproved(f"the Pad {node.name!r} of sizes is not understood")
    fill = inputs[2].item() if len(inputs) > 2 and inputs[2] is not None else 0
    widths = list(zip(pads[: given.ndim], pads[given.ndim :], strict=True))
    return np.pad(given, widths, constant_values=fill)


def _rows(inputs: Inputs, values: dict[str, Any]) -> list[int]:
    return list(values["pads"]) if "pads" in values else _integers(inputs[1])


def _filled(inputs: Inputs, values: dict[str, Any], node: NodeProto) -> Sizes:
    held = _held(numpy_helper.to_array(values["value"]), node.name).item() if "value" in values else 0
    return np.full(tuple(_integers(inputs[0])), held, object)


def _product(inputs: Inputs, values: dict[str, Any], _: NodeProto) -> Sizes:
    axes = _axes(inputs, values)
    given = _first(inputs)
    if given.ndim != 1 or axes not in (None, [0]):
        raise Unproved("a ReduceProd of sizes has several axes")
    return _array([_multiplied(list(given))], (1,) if values.get("keepdims", 1) else ())


def _whole(inputs: Inputs, values: dict[str, Any], node: NodeProto) -> Sizes:
    if values["to"] not in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL):
        raise Unproved(f"the sizes {node.output[0]!r} are computed as floating-point numbers")
    if values["to"] == TensorProto.BOOL:
        return _array([int(value != 0) for value in _integers(inputs[0])], _first(inputs).shape)
    return _first(inputs)


_OPERATORS: dict[str, Callable[[Inputs, dict[str, Any], NodeProto], Sizes]] = {
    "Abs": _unary(lambda a: larger(a, times(a, -1))),
    "Add": _binary(plus),
    "Cast": _whole,
    "Concat": lambda inputs, values, _: np.concatenate([each for each in inputs if each is not None], values["axis"]),
    "ConstantOfShape": _filled,
    "Div": _binary(_divided),
    "Equal": _binary(_same),
    "Gather": _gathered,
    "Identity": lambda inputs, _, __: _first(inputs),
    "Max": _binary(larger),
    "Min": _binary(smaller),
    "Mod": _binary(_modulo),
    "Mul": _binary(times),
    "Neg": _unary(lambda a: times(a, -1)),
    "Not": _unary(lambda a: 1 - (constant(a) or 0)),
    "Pad": _padded,
    "ReduceProd": _product,
    "Reshape": _reshaped,
    "Slice": _sliced,
    "Squeeze": _squeezed,
    "Sub": _binary(minus),
    "Transpose": lambda inputs, values, _: _first(inputs).transpose(values.get("perm")),
    "Unsqueeze": _unsqueezed,
    "Where": _chosen,
}
COMPUTING = frozenset({"Constant", "Shape", "Size", *_OPERATORS})
"""Operators that compute sizes."""
