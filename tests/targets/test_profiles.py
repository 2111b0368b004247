"""Every profile holds its own limits: each rule is tried at its limit, and one beyond.

The cases come from the rules themselves: a plain Conv (or operator, or tensor) is changed, a step at a time, until it
meets the rule, and until it breaks it, within what the other conditions of the rule (`when`) ask for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from dilrewrite.targets import Fit, Rule, facts, find, profiles
from dilrewrite.targets.expressions import Expression

SIZES = (1, 2, 3, 4, 5, 7, 8, 15, 16)


def sample(**changes: Any) -> dict[str, Any]:
    """The facts of a Conv: 3x3, 8 channels, 64x64, with changes; what is said of two axes goes for `rank` axes."""
    known: dict[str, Any] = {
        "rank": 2, "k": (3, 3), "d": (1, 1), "s": (1, 1), "begin": (0, 0), "end": (0, 0), "extents": (64, 64),
        "group": 1, "channels": (8, 8), "batch": 1, "auto_pad": "NOTSET", "weights": "constant",
        "input_dtype": "int8", "output_dtype": "int8",
    } | changes  # fmt: skip
    rank = known.pop("rank")
    for name in ("k", "d", "s", "begin", "end", "extents"):
        known[name] = (known[name][:1] * rank + known[name])[-rank:]
    names = {"k": "kernel", "d": "dilations", "s": "strides"}
    return facts.conv(**{names.get(name, name): value for name, value in known.items()}, N0=1)


def around(rule: Rule) -> list[int]:
    """The numbers that matter to a rule: its limits, one beside them, and small ones."""
    limits: set[int] = set(SIZES)
    texts = [rule.limit.text] if isinstance(rule.limit, Expression) else []
    numbers = [*rule.limit] if rule.test == "set" else [int(one) for one in texts if one.isdigit()]
    for number in (one for one in numbers if type(one) is int):
        limits |= {number - 1, number, number + 1}
    return sorted(limits)


def changes(rule: Rule) -> Iterator[dict[str, Any]]:
    """Changes of a plain Conv that may matter to a rule of `conv`."""
    numbers = [one for one in around(rule) if one >= 0]
    ways: dict[str, list[dict[str, Any]]] = {
        "kernel": [{"k": (n, n)} for n in numbers if n > 0] + [{"k": (1, n)} for n in (3, 5)],
        "dilation": [{"d": (n, m)} for n in numbers for m in {n, 2 * n, 1} if n > 0],
        "stride": [{"s": (n, m)} for n in numbers for m in {n, 1} if n > 0],
        "pads": [{"begin": (n, n), "end": (m, m)} for n in numbers for m in {n, 0}],
        "groups": [{"group": n, "channels": (2 * n, 2 * n)} for n in numbers if n > 0] + [{"group": 8}],
        "batch": [{"batch": n} for n in numbers],
        "channels": [{"channels": (n, 8)} for n in numbers if n > 0],
        "out_channels": [{"channels": (8, n)} for n in numbers if n > 0],
        "extents": [{"extents": (n, m)} for n in (*numbers, 12, 64) for m in (n, 64, 65, 4097, 16382, 16383) if n > 0],
        "auto_pad": [{"auto_pad": one} for one in ("NOTSET", "SAME_UPPER")],
        "weights": [{"weights": one} for one in ("constant", "computed")],
        "input_dtype": [{"input_dtype": one} for one in ("int8", "int16", "float16")],
        "output_dtype": [{"output_dtype": one} for one in ("int8", "int16", "float32")],
        "ranks": [{"rank": n} for n in (1, 2, 3)],
        "products": [
            *({"channels": (n, n)} for n in (8, 255, 256, 2047, 2048, 2049, 4096, 4097, 7281, 7282)),
            *({"k": (n, n), "channels": (c, c)} for n in (5, 8, 15, 16, 64, 65) for c in (8, 512, 2048)),
            *({"k": (n, 1)} for n in (63, 64, 65)),
            *({"rank": 3, "channels": (8, 8)},),
        ],
    }  # fmt: skip
    plain: dict[str, Any] = {}
    contexts = [
        plain, {"group": 8}, {"group": 4}, {"d": (2, 2)}, {"d": (2, 2), "group": 8}, {"k": (1, 1)}, {"rank": 3},
        {"rank": 3, "d": (2, 2)}, {"k": (5, 5)}, {"input_dtype": "int16"}, {"s": (2, 2)}, {"k": (33, 33)},
        {"d": (2, 2), "s": (2, 2)}, {"d": (4, 4), "k": (16, 16)}, {"extents": (4, 4)}, {"channels": (2048, 2048)},
    ]  # fmt: skip
    for context, change in itertools.product(contexts, ways.get(rule.field, [{}])):
        yield {**context, **change}


MOST = [
    (name, rule) for name, profile in profiles().items() for some in profile.conv.values() for rule in some
    if rule.test == "max"
]  # fmt: skip


@pytest.mark.parametrize("name", profiles())
def test_every_rule_of_a_conv_is_met_and_broken(name: str) -> None:
    """By a Conv that the rule is for; and where it is broken, the judgement names the rule."""
    profile = profiles()[name]
    for rule in (one for some in profile.conv.values() for one in some):
        met, broken = set(), set()
        for change in changes(rule):
            known = {**profile.parameters, **sample(**change)}
            if rule.applies(known) is not True:
                continue
            fit = rule.fit(known)
            (met if fit is Fit.NATIVE else broken).add(repr(change))
            named = [one.rule for one in profile.conv_findings(known)]
            assert (rule in named) == (fit is not Fit.NATIVE), (name, rule.place, change)
            assert fit in (Fit.NATIVE, rule.otherwise) or rule.test == "is", (name, rule.place, change)
        if rule.test == "is":
            assert bool(met) == (rule.limit == "unlimited"), (name, rule.place)
        elif rule.test == "min":
            assert met, (name, rule.place, "is never met")  # 0 is no kernel, so some are never broken
        else:
            assert met, (name, rule.place, rule.text(), "is never met")
            assert broken, (name, rule.place, rule.text(), "is never broken")


@pytest.mark.parametrize(("name", "rule"), MOST, ids=lambda one: getattr(one, "place", one))
def test_the_limit_is_in_and_the_next_is_out(name: str, rule: Rule) -> None:
    """A fact that is the limit on every axis is taken, one more on one axis is not."""
    parameters = profiles()[name].parameters
    for change in changes(rule):
        known = {**parameters, **sample(**change)}
        limit, value = rule.limit.value(known), rule.fact.value(known)
        if rule.applies(known) is not True or limit is None:
            continue
        values, limits = (one if isinstance(one, tuple) else (one,) for one in (value, limit))
        over = any(a > b for a, b in zip(values, limits * len(values), strict=False))
        assert (rule.fit(known) is Fit.NATIVE) == (not over), (rule.place, change)


def tensors() -> Iterator[dict[str, Any]]:
    numbers = (1, 2, 64, 128, 129, 255, 256, 4096, 4097, 8191, 8192, 8193, 32767, 32768, 65535, 65536, 65537)
    for place, number in itertools.product(range(4), numbers):
        shape = [1, 1, 1, 1]
        shape[place] = number
        yield facts.tensor(shape, "int8", 8, 1)
    for rank in range(1, 9):
        yield facts.tensor([2] * rank, "int8", 8, 2)
    for dtype in ("uint8", "int16", "uint16", "int32", "float32", "float16", "string", "bool", "float64"):
        yield facts.tensor([1, 2, 4, 4], dtype, 32, 1)
    yield facts.tensor([1, 2**14, 2**14, 8], "int8", 8, 1)
    yield facts.tensor([4, 8, 8, 8], "int8", 8, 1)


def operators(op: str) -> Iterator[Mapping[str, Any]]:
    """Nodes of an operator, small and large, of several ranks, with every attribute that rules may ask for."""
    ranks = [(rank, 1, 8, 4) for rank in (2, 3, 4, 5, 6, 9, 11)]
    for rank, batch, channels, extent in [
        *ranks,
        (4, 2, 8, 4),
        (4, 256, 8, 5),
        (4, 1, 9, 5),
        (4, 1, 2049, 4),
        (4, 1, 8, 91),
    ]:
        shape = [batch, channels, *[extent] * (rank - 2)][:rank]
        for attributes, integers in attributes_of(op, rank):
            if op == "ConvTranspose":
                k, d, s, p, group = attributes
                yield {
                    **facts.conv(kernel=[k] * 2, dilations=[d] * 2, strides=[s] * 2, begin=[p] * 2, end=[p] * 2,
                                 group=group, channels=(channels, 8), batch=batch, extents=(extent, extent)),
                    "auto_pad": "SAME_UPPER" if p else "NOTSET",
                }  # fmt: skip
            else:
                count = attributes.pop("inputs", 1) if op == "Sum" else 1
                yield facts.node(op, attributes, [shape], [shape], integers, inputs=count, batch=1)


def attributes_of(op: str, rank: int) -> list[Any]:
    none: list[Any] = []
    if op in ("Concat", "Split"):
        return [({"axis": axis}, none) for axis in range(rank)]
    if op in ("SpaceToDepth", "DepthToSpace"):
        return [({"blocksize": n, "mode": mode}, none) for n in (2, 3, 4) for mode in ("DCR", "CRD", "ABC")]
    if op == "Transpose":
        return [({"perm": [*range(rank)]}, none), ({"perm": [*reversed(range(rank))]}, none)]
    if op == "Slice":
        return [({}, [None, [0], [9], [axis], [step]]) for axis in range(rank) for step in (-1, 1, 2)]
    if op == "Pad":
        pads = [[0] * axis + [1] + [0] * (2 * rank - axis - 1) for axis in range(rank)]
        return [({"mode": mode}, [None, one, None, axes]) for mode in ("constant", "edge") for one in pads
                for axes in (None, [*range(rank)])] + [({}, none)]  # fmt: skip
    if op == "Resize":
        return [({"mode": mode}, none) for mode in ("nearest", "linear", "cubic")]
    if op == "Sum":
        return [({"inputs": n}, none) for n in (2, 3)]
    if op in ("MaxPool", "AveragePool"):
        sizes = (1, 2, 3, 8, 15, 16, 17, 31, 32, 64, 65, 185, 186, 256, 257)
        return [({"kernel_shape": [k] * 2, "strides": [s] * 2, "dilations": [d] * 2, "pads": [p] * 4}, none)
                for k, s, d, p in [*((n, 1, 1, 0) for n in sizes), *((2, n, 1, 0) for n in sizes), (2, 1, 2, 0),
                                   *((2, 1, 1, n) for n in sizes)]] + [
            ({"kernel_shape": [2, 2], "auto_pad": "SAME_UPPER"}, none)]  # fmt: skip
    if op == "ConvTranspose":
        kernels = [(k, 1, 2, 0, 1) for k in (1, 2, 14, 15, 16)]
        strides = [(3, 1, s, 0, 1) for s in (1, 2, 3, 4, 8, 9, 14, 15)]
        others = [(3, 1, 2, 1, 1), (3, 1, 2, 14, 1), (3, 1, 2, 15, 1), (3, 1, 2, 0, 2), (3, 2, 2, 0, 1)]
        return [(one, none) for one in (*kernels, *strides, *others)]
    return [({}, none)]


@pytest.mark.parametrize("name", profiles())
def test_every_rule_of_tensors_and_operators_is_met_and_broken(name: str) -> None:
    profile = profiles()[name]
    sections = [(tuple(tensors()), profile.tensors), *((None, rules) for rules in profile.operators.values())]
    for cases, rules in sections:
        for rule in (one for some in rules.values() for one in some):
            if rule.test == "is":
                continue
            op = rule.place.split(".")[1]
            seen = {rule.fit({**profile.parameters, **known}) for known in (cases or operators(op))
                    if rule.applies({**profile.parameters, **known}) is True}  # fmt: skip
            assert Fit.NATIVE in seen, (name, rule.place, rule.text(), "is never met")
            assert rule.otherwise in seen or rule.test == "min", (name, rule.place, rule.text(), "is never broken")


def conv_fit(name: str, **change: Any) -> Fit:
    profile = find(name)
    found = profile.conv_findings(sample(**change))
    return max((one.fit for one in found), key=lambda fit: fit.rank, default=Fit.NATIVE)


@pytest.mark.parametrize(
    ("d", "set_of_four", "powers"),
    [*((d, True, True) for d in (1, 2, 4, 8)), (16, False, True), *((d, False, False) for d in (3, 6, 7, 12))],
)
def test_sets_of_dilations(d: int, set_of_four: bool, powers: bool) -> None:
    """12 goes neither under {1, 2, 4, 8} nor under powers of two; the 4 and the 3 of it do, and do not."""
    known = {"d": (d, d), "begin": (0, 0), "end": (0, 0), "extents": (96, 96)}
    assert (conv_fit("mediatek-mdla2", **known) is Fit.NATIVE) == set_of_four
    assert (conv_fit("rdk-x3", **known) is Fit.NATIVE) == powers


@pytest.mark.parametrize(("d", "fit"), [(1, Fit.NATIVE), (2, Fit.OUT), (3, Fit.OUT)])
def test_causal_pads_under_less_than_kernel(d: int, fit: Fit) -> None:
    """A causal Conv pads d*(k-1) in front alone: below a kernel of 3 without dilation only; SAME still goes at 2."""
    assert conv_fit("nvidia-dla", d=(1, d), k=(3, 3), begin=(0, 2 * d), end=(0, 0)) is fit
    same = Fit.NATIVE if d <= 2 else Fit.OUT
    assert conv_fit("nvidia-dla", d=(d, d), begin=(d, d), end=(d, d)) is same


def test_products_and_parameters() -> None:
    """dilation * channels is at most 256 * channel_parallel."""
    assert conv_fit("amd-dpu", d=(8, 8), channels=(512, 8)) is Fit.NATIVE
    texts = [one.text for one in find("amd-dpu").conv_findings({**sample(d=(8, 8), channels=(513, 8))})]
    assert "max(d)*Cin 4104 is not at most 256*channel_parallel" in texts
    wide = find("amd-dpu:channel_parallel=32").conv_findings({**sample(d=(8, 8), channels=(513, 8))})
    assert not any("max(d)*Cin" in one.text for one in wide)


def test_equal_axes() -> None:
    assert conv_fit("coral-edgetpu", d=(1, 4), k=(1, 3)) is Fit.OUT
    assert conv_fit("coral-edgetpu", d=(4, 4), k=(1, 3)) is Fit.NATIVE
    assert find("coral-edgetpu").unit_axis_dilation == "match"
    assert conv_fit("coral-edgetpu", d=(4,), k=(3,), begin=(0,), end=(0,), extents=(64,), rank=1) is Fit.UNKNOWN


@pytest.mark.parametrize("d", [1, 2, 3, 5, 16, 17])
def test_extents_that_the_dilation_divides(d: int) -> None:
    for extent in (48, 80, 85, 17 * 16):
        fit = conv_fit("rdk-x5", d=(d, d), extents=(extent, extent))
        assert (fit is Fit.NATIVE) == (d <= 16 and extent % d == 0)
