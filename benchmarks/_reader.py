"""Holds the Convs of a model to a profile, by reading both files alone: nothing of dilrewrite is imported.

It is a second opinion on what the tool writes, and on the tool's own judge of models. It knows the rules of Convs
(not those of element types), the dilation of other windows, and the operators that a profile refuses.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto, helper

PROFILES = Path(__file__).parents[1] / "dilrewrite" / "targets" / "profiles"
WEIGHTS_AT = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
FACTS = {
    "ranks": "rank", "kernel": "k", "dilation": "d", "stride": "s", "pads": "p", "groups": "group", "batch": "N",
    "channels": "Cin", "out_channels": "Cout", "extents": "x", "auto_pad": "auto_pad", "products": "",
}  # fmt: skip
"""The fields of Convs that are read, and what each is about."""


class Axes(tuple[Any, ...]):
    """A value for each axis; a comparison is true where it is true on all."""

    def __bool__(self) -> bool:
        return all(self)


def _by_axis(act: Callable[[Any, Any], Any], *, turned: bool = False) -> Callable[[Axes, Any], Axes]:
    def both(own: Axes, other: Any) -> Axes:
        others = other if isinstance(other, tuple) else (other,) * len(own)
        return Axes(act(b, a) if turned else act(a, b) for a, b in zip(own, others, strict=True))

    return both


for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Axes, f"__{_name}__", _by_axis(getattr(operator, _name)))
    if _name in ("add", "sub", "mul"):
        setattr(Axes, f"__r{_name}__", _by_axis(getattr(operator, _name), turned=True))


def _whole(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: function(value if isinstance(value, tuple) else (value,))


FUNCTIONS = {"max": _whole(max), "min": _whole(min), "sum": _whole(sum), "prod": _whole(math.prod), "ceil": math.ceil}
COMPARED: Mapping[str, Callable[[Any, Any], bool]] = {
    "max": operator.le,
    "min": operator.ge,
    "less_than": operator.lt,
    "multiple_of": lambda value, limit: value % limit == 0,
}


def violations(model: ModelProto, target: str, sizes: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """What in a model breaks a rule of a target: the rules' texts, by the first tensor that the node makes.

    `sizes`: those of inputs, where the model leaves them open. What is not known breaks no rule here.
    """
    profile = json.loads((PROFILES / f"{target}.json").read_text(encoding="utf-8"))
    light = onnx.inliner.inline_local_functions(model) if model.functions else model
    if sizes:
        light = ModelProto.FromString(light.SerializeToString())
        for value in light.graph.input:
            for dim, size in zip(value.type.tensor_type.shape.dim, sizes.get(value.name, ()), strict=False):
                dim.dim_value = size
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    refused = {
        name
        for names, rules in profile["operators"].items()
        for name in names.split()
        if rules.get("where", {}).get("is") == "none"
    }
    found: dict[str, list[str]] = {}
    for node, shapes in _nodes(inferred.graph, {}):
        broken = [f"{node.op_type} is refused"] if node.op_type in refused else []
        if node.op_type in WEIGHTS_AT:
            broken += _broken(profile["conv"], FACTS, _facts(node, shapes, profile.get("parameters", {})))
        elif any(one.name == "dilations" for one in node.attribute):
            rules = [rules for names, rules in profile["operators"].items() if node.op_type in names.split()]
            broken += _broken(rules[0] if rules else {}, {"dilation": "d"}, _window(_attributes(node), ()))
        if broken:
            found[node.output[0]] = broken
    return found


Shapes = Mapping[str, tuple[int | None, ...]]


def _nodes(graph: GraphProto, outer: Shapes, fixed: frozenset[str] = frozenset()) -> Iterator[tuple[NodeProto, Shapes]]:
    """Yield every node, those of subgraphs too, with the shapes that are known where it stands.

    Nodes that compute of constants and known sizes alone are left out: they are done before the model runs. `fixed`:
    what such nodes around this graph make.
    """
    shapes = dict(outer)
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape"):
            shapes[value.name] = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
    shapes |= {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    known = {*fixed, *(tensor.name for tensor in graph.initializer), ""}
    for node in graph.node:
        inner = [one for a in node.attribute for one in (*([a.g] if a.HasField("g") else []), *a.graphs)]
        sized = node.op_type in ("Shape", "Size") and None not in shapes.get(node.input[0], (None,))
        if sized or (known.issuperset(node.input) and not inner and not node.op_type.startswith("Random")):
            known.update(node.output)
            continue
        yield node, shapes
        for one in inner:
            yield from _nodes(one, shapes, frozenset(known))


def _attributes(node: NodeProto) -> dict[str, Any]:
    kinds = (onnx.AttributeProto.INT, onnx.AttributeProto.INTS, onnx.AttributeProto.STRING)
    return {one.name: helper.get_attribute_value(one) for one in node.attribute if one.type in kinds}


def _window(attributes: Mapping[str, Any], kernel: Sequence[int]) -> dict[str, Any]:
    k = Axes(attributes.get("kernel_shape", kernel))
    d = Axes(attributes.get("dilations", [1] * len(k)))
    return {"k": k, "d": d, "s": Axes(attributes.get("strides", [1] * len(k))), "rank": len(k)}


def _facts(node: NodeProto, shapes: Shapes, parameters: Mapping[str, int]) -> dict[str, Any]:
    """What expressions name of a Conv; a fact that is not known is left out."""
    attributes = _attributes(node)
    weight = shapes.get(node.input[WEIGHTS_AT[node.op_type]])
    given, group = shapes.get(node.input[0]), attributes.get("group", 1)
    known = {**parameters, **_window(attributes, (weight or ())[2:]), "group": group}
    k, d, s = (known[name] for name in "kds")
    rank = len(k)
    known |= {"kernel": k, "dilated_kernel": (k - 1) * d + 1}
    known["dilated"] = any(a > 1 and b > 1 for a, b in zip(k, d, strict=True))
    for name, values in (("k", k), ("d", d), ("s", s)):
        known |= {f"{name}{axis}": value for axis, value in zip("dhw", [*[1] * (3 - rank), *values], strict=True)}
    if weight is not None and None not in weight:
        known |= {"Cout": weight[0], "Cin": weight[1] * group}
        known |= {"depthwise": weight[1] == 1 < group, "grouped": weight[1] > 1 and group > 1}
    if given is not None and None not in given:
        known |= {"N": given[0], "C": given[1], "x": Axes(given[2:])}
        known |= dict(zip("DHW", [*[1] * (3 - rank), *given[2:]], strict=True))
    auto = attributes.get("auto_pad", b"NOTSET").decode()
    known["auto_pad"] = auto
    pads = Axes(attributes.get("pads", [0] * 2 * rank)) if auto == "NOTSET" else Axes([0] * 2 * rank)
    if auto.startswith("SAME"):
        if "x" not in known:
            return known
        axes = zip(known["x"], s, known["dilated_kernel"], strict=True)
        sums = [max((-(-extent // step) - 1) * step + reach - extent, 0) for extent, step, reach in axes]
        halves = [one // 2 for one in sums], [one - one // 2 for one in sums]
        pads = Axes([*halves[auto == "SAME_LOWER"], *halves[auto == "SAME_UPPER"]])
    begin, end = pads[:rank], pads[rank:]
    return {**known, "p_begin": Axes(begin), "p_end": Axes(end), "p": Axes(map(max, begin, end))}


def _broken(section: Mapping[str, Any], fields: Mapping[str, str], known: Mapping[str, Any]) -> list[str]:
    """The rules of a section that facts break."""
    broken = []
    for field, fact in fields.items():
        rules = section.get(field, [])
        for rule in rules if isinstance(rules, list) else [rules]:
            try:
                if rule.get("otherwise", "none") == "none" and _computed(rule.get("when", "True"), known):
                    broken += [f"{field}: {test} {rule[test]}" for test in _failed(rule, fact, known)]
            except (NameError, KeyError):  # a fact that is not known, or one of element types
                continue
    return broken


def _computed(text: Any, known: Mapping[str, Any]) -> Any:
    return eval(str(text), {"__builtins__": {}, **FUNCTIONS}, dict(known))


def _failed(rule: Mapping[str, Any], fact: str, known: Mapping[str, Any]) -> Iterator[str]:
    """Yield the tests of a rule that fail."""
    if "holds" in rule and not _computed(rule["holds"], known):
        yield "holds"
    if "symmetric" in rule and known["p_begin"] != known["p_end"]:
        yield "symmetric"
    tests = [test for test in (*COMPARED, "set", "power_of_two", "equal_axes") if test in rule]
    value = _computed(rule.get("expr", fact), known) if tests else ()
    values = value if isinstance(value, tuple) else (value,)
    for test in tests:
        if test in COMPARED:
            limit = _computed(rule[test], known)
            limits = limit if isinstance(limit, tuple) else (limit,) * len(values)
            met = all(map(COMPARED[test], values, limits))
        elif test == "set":
            met = all(one in rule[test] for one in values)
        else:
            met = len(set(values)) == 1 if test == "equal_axes" else all(one & (one - 1) == 0 for one in values)
        if not met:
            yield test
