"""The grid of geometries that every strategy is held to: seeded, named cases, drawn topic by topic."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tests.naive import explicit_pads, out_extents

Ints = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One model with one dilated Conv, at concrete sizes; `unknown` are the spatial axes declared dynamic.

    `channels` and `outputs` count per group. `weights` says how they come: `initializer`, `constant` (node),
    `overridable` (an initializer that is an input too), `computed` (by a node).
    """

    topic: str
    extents: Ints
    kernel: Ints
    strides: Ints
    dilations: Ints
    begin: Ints
    end: Ints
    auto_pad: str = "NOTSET"
    batch: int = 1
    group: int = 1
    channels: int = 1
    outputs: int = 1
    bias: bool = True
    activation: bool = False
    unknown_batch: bool = False
    unknown: Ints = ()
    max_dilation: int | Ints = 1
    opset: int = 17
    ir: int = 8
    weights: str = "initializer"

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def in_channels(self) -> int:
        return self.group * self.channels

    @property
    def out_channels(self) -> int:
        return self.group * self.outputs

    @property
    def weight_shape(self) -> Ints:
        return self.out_channels, self.channels, *self.kernel

    @property
    def spans(self) -> Ints:
        return tuple(d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True))

    def pads(self, extents: Ints | None = None) -> tuple[Ints, Ints]:
        """Explicit (begin, end) pads at the given extents, the case's own by default."""
        extents = self.extents if extents is None else extents
        return explicit_pads(extents, self.kernel, self.strides, self.dilations, self.begin, self.end, self.auto_pad)

    def outs(self, extents: Ints | None = None) -> Ints:
        """Ho of every axis at the given extents, the case's own by default; below 1 where the input is too small."""
        extents = self.extents if extents is None else extents
        return out_extents(extents, self.kernel, self.strides, self.dilations, *self.pads(extents))

    def live(self, axis: int) -> list[int]:
        """The taps of an axis that ever touch data, by trying every output; all of them where H is unknown."""
        if axis in self.unknown:
            return list(range(self.kernel[axis]))
        s, d, h, p0 = self.strides[axis], self.dilations[axis], self.extents[axis], self.pads()[0][axis]
        outs = range(self.outs()[axis])
        return [t for t in range(self.kernel[axis]) if any(0 <= o * s + t * d - p0 < h for o in outs)]

    @property
    def valid(self) -> bool:
        """Say whether this is a valid, dilated Conv that crops no axis away."""
        begin, end = self.pads()
        return (
            any(k > 1 and d > 1 for k, d in zip(self.kernel, self.dilations, strict=True))
            and min(self.outs()) >= 1
            and all(h + min(p0, 0) + min(p1, 0) >= 1 for h, p0, p1 in zip(self.extents, begin, end, strict=True))
        )

    @property
    def name(self) -> str:
        """The test id: what differs from the plainest case is said, the rest left out."""

        def by(values: Ints) -> str:
            return "x".join(map(str, values))

        parts = [self.topic, f"h{by(self.extents)}", f"k{by(self.kernel)}", f"d{by(self.dilations)}"]
        if max(self.strides) > 1:
            parts.append(f"s{by(self.strides)}")
        if self.auto_pad != "NOTSET":
            parts.append(self.auto_pad.lower())
        elif any((*self.begin, *self.end)):
            parts.append("p" + "x".join(f"{p0}+{p1}" for p0, p1 in zip(self.begin, self.end, strict=True)))
        parts.append(f"n{self.batch}c{self.channels}o{self.outputs}g{self.group}")
        if self.unknown_batch or self.unknown:
            parts.append("dyn" + "N" * self.unknown_batch + "".join(map(str, self.unknown)))
        if self.max_dilation != 1:
            parts.append(f"leave{self.max_dilation}")
        if self.weights != "initializer":
            parts.append(self.weights)
        if not self.bias:
            parts.append("nobias")
        if self.activation:
            parts.append("act")
        parts.append(f"opset{self.opset}")
        return "-".join(parts)

    @property
    def features(self) -> frozenset[str]:
        """The words by which cases are counted."""
        found = {f"rank{self.rank}", f"opset{self.opset}", f"batch{self.batch}", self.auto_pad, self.weights}
        acting = [a for a in range(self.rank) if self.kernel[a] > 1 and self.dilations[a] > 1]
        begin, end = self.pads()
        outs = self.outs()
        if self.unknown_batch:
            found.add("unknown batch")
        if self.unknown:
            found.add("unknown extents")
            if self.auto_pad.startswith("SAME") and any(self.strides[a] > 1 for a in self.unknown):
                found.add("computed SAME pads")
        if self.unknown_batch or self.unknown:
            found.add("dynamic")
        if self.group > 1:
            found.add("group")
            found.add("depthwise" if self.channels == 1 else "grouped")
        if len({self.dilations[a] for a in range(self.rank) if self.kernel[a] > 1}) > 1:
            found.add("unequal dilations")
        if not all(self.live(a) for a in range(self.rank)):
            found.add("all taps dead")
        elif any(len(self.live(a)) < self.kernel[a] for a in range(self.rank)):
            found.add("some taps dead")
        for a in acting:
            g = math.gcd(self.strides[a], self.dilations[a])
            phases = self.dilations[a] // g
            if self.strides[a] > 1:
                found.add("strided")
                found.add("s'>1" if self.strides[a] // g > 1 else "s'=1 with g>1")
            if self.extents[a] < self.dilations[a]:
                found.add("extent<dilation")
            if outs[a] < phases:
                found.add("fewer outputs than phases")
            if self.max_dilation > 1 and self.dilations[a] > self.max_dilation:
                found.add("block<d")
        if any(max(p0, p1) > h for p0, p1, h in zip(begin, end, self.extents, strict=True)):
            found.add("pads>extent")
        if min(begin + end) < 0:
            found.add("negative pads")
        if any(k % 2 == 0 for k in self.kernel):
            found.add("even kernel")
        if any(k == 1 for k in self.kernel):
            found.add("kernel axis 1")
        if all(out == 1 for out in outs):
            found.add("Ho=1")
        if acting and all(
            h % d == 0 and p0 % d == 0 and p1 % d == 0
            for h, d, p0, p1 in zip(self.extents, self.dilations, begin, end, strict=True)
        ):
            found.add("divisible")
        return frozenset(found)


def has(*features: str) -> Callable[[Case], bool]:
    return lambda case: case.features.issuperset(features)


Draw = Mapping[str, Any]
"""What a topic does not leave to the defaults: field -> list to choose from, or a function of rank and dice."""


def _per_axis(values: list[int]) -> Callable[[int, random.Random], Ints]:
    return lambda rank, dice: tuple(dice.choice(values) for _ in range(rank))


def _same_on_all(values: list[int]) -> Callable[[int, random.Random], Ints]:
    return lambda rank, dice: (dice.choice(values),) * rank


def _some_axes(rank: int, dice: random.Random) -> Ints:
    return tuple(sorted(dice.sample(range(rank), dice.randint(1, rank))))


def _every_axis(rank: int, _: random.Random) -> Ints:
    return tuple(range(rank))


# topic -> (how many, what every case of it must be, what is not left to the defaults)
TOPICS: dict[str, tuple[int, Callable[[Case], bool], Draw]] = {
    "plain": (36, lambda _: True, {}),
    "square": (24, has("rank2"), {"kernel": _same_on_all([2, 3]), "dilations": _same_on_all([2, 3, 4]), "rank": [2]}),
    "divisible": (
        24,
        has("divisible"),
        {"dilations": _per_axis([2, 2, 3]), "extents": _per_axis([4, 6, 8, 12]), "begin": _per_axis([0, 2, 3, 4]),
         "end": _per_axis([0, 2, 3, 4])},
    ),
    "unequal": (42, has("unequal dilations"), {"rank": [2, 2, 3]}),
    "unequal_dynamic": (
        10,
        has("unequal dilations", "unknown extents"),
        {"rank": [2, 2, 3], "unknown": _every_axis},
    ),
    "grain": (36, has("s'=1 with g>1"), {"strides": _per_axis([1, 2, 2, 3]), "dilations": _per_axis([1, 2, 4, 6])}),
    "overlap": (36, has("s'>1"), {"strides": _per_axis([1, 2, 3, 4]), "dilations": _per_axis([2, 3, 4, 6])}),
    "overlap_dynamic": (
        14,
        has("s'>1", "unknown extents"),
        {"strides": _per_axis([2, 3, 4]), "dilations": _per_axis([2, 3, 4, 6]), "unknown": _some_axes},
    ),
    "short": (
        24,
        has("extent<dilation"),
        {"extents": _per_axis([1, 2, 3, 4]), "dilations": _per_axis([3, 5, 6, 7]), "begin": _per_axis([1, 5, 6, 7]),
         "end": _per_axis([1, 5, 6, 7]), "kernel": _per_axis([1, 2, 3])},
    ),
    "wide_pads": (
        24,
        has("pads>extent"),
        {"extents": _per_axis([2, 3, 5]), "begin": _per_axis([0, 1, 4, 9]), "end": _per_axis([0, 1, 4, 9])},
    ),
    "negative": (
        26,
        has("negative pads"),
        {"begin": _per_axis([-2, -1, 0, 3]), "end": _per_axis([-3, -1, 0, 2])},
    ),
    "negative_dynamic": (
        8,
        has("negative pads", "unknown extents"),
        {"begin": _per_axis([-2, -1, 0, 3]), "end": _per_axis([-3, -1, 0, 2]), "unknown": _some_axes},
    ),
    **{
        f"auto{suffix}": (
            8,
            has(mode, *extra),
            {"auto_pad": [mode], "strides": _per_axis(strides), **({"unknown": _some_axes} if unknown else {})},
        )
        for mode in ("SAME_UPPER", "SAME_LOWER", "VALID")
        for suffix, strides, unknown, extra in (
            ("", [1], False, ()),
            ("_strided", [2, 3], False, ("strided",)),
            ("_dynamic", [1], True, ("unknown extents",)),
            (
                "_strided_dynamic",
                [2, 3],
                True,
                ("computed SAME pads",) if mode.startswith("SAME") else ("strided", "unknown extents"),
            ),
        )
        for suffix in (f"_{mode.lower()}{suffix}",)
    },
    "even": (18, has("even kernel"), {"kernel": _same_on_all([2, 4])}),
    "thin_kernel": (18, has("kernel axis 1"), {"kernel": _per_axis([1, 1, 2, 3]), "rank": [2, 3]}),
    "dead": (
        10,
        has("all taps dead"),
        {"extents": _per_axis([1, 2]), "kernel": _per_axis([1, 2, 2]), "dilations": _per_axis([4, 6]),
         "begin": _per_axis([1, 2, 3]), "end": _per_axis([1, 2, 3, 4])},
    ),
    "dead_dynamic": (
        6,
        lambda case: has("all taps dead", "unknown extents")(case) and len(case.unknown) < case.rank,
        {"extents": _per_axis([1, 2, 5]), "kernel": _per_axis([1, 2, 2]), "dilations": _per_axis([4, 6]),
         "rank": [2, 3], "begin": _per_axis([2, 3, 5]), "end": _per_axis([2, 3, 4, 5]), "unknown": _some_axes},
    ),
    "part_dead": (
        24,
        has("some taps dead"),
        {"kernel": _per_axis([1, 3, 3, 4]), "extents": _per_axis([2, 3, 4, 5]), "dilations": _per_axis([3, 4, 5]),
         "begin": _per_axis([4, 5, 6]), "end": _per_axis([4, 5, 6, 9]), "strides": _per_axis([1, 1, 2, 3])},
    ),
    "single_output": (
        16,
        has("Ho=1"),
        {"extents": _per_axis([3, 5]), "dilations": _per_axis([2, 4]), "kernel": _per_axis([2, 3]),
         "begin": _per_axis([0, 1]), "end": _per_axis([0, 1]), "strides": _per_axis([1, 2])},
    ),
    "few_outputs": (
        16,
        has("fewer outputs than phases"),
        {"dilations": _per_axis([4, 5, 6]), "extents": _per_axis([9, 10, 12]), "kernel": _per_axis([1, 2, 3])},
    ),
    "leave": (
        30,
        has("block<d"),
        {"dilations": _per_axis([3, 4, 6, 8]), "max_dilation": [2, 3, 4], "strides": _per_axis([1, 1, 2])},
    ),
    "leave_dynamic": (
        16,
        has("block<d", "unknown extents"),
        {"dilations": _per_axis([4, 6, 8]), "max_dilation": [2, 3, 4], "strides": _per_axis([1, 1, 2]),
         "unknown": _some_axes},
    ),
    "depthwise": (24, has("depthwise"), {"group": [2, 3, 4], "channels": [1], "outputs": [1, 2]}),
    "grouped": (20, has("grouped"), {"group": [2, 3], "channels": [2], "outputs": [1, 2]}),
    "grouped_dynamic": (
        12,
        has("group", "dynamic"),
        {"group": [2, 3], "unknown_batch": [True], "unknown": _every_axis},
    ),
    "batch_dynamic": (16, has("unknown batch"), {"unknown_batch": [True]}),
    "extents_dynamic": (22, has("unknown extents"), {"unknown": _every_axis}),
    "all_dynamic": (
        22,
        has("unknown batch", "unknown extents"),
        {"unknown_batch": [True], "unknown": _every_axis, "strides": _per_axis([1, 1, 1, 2])},
    ),
    "some_dynamic": (
        16,
        lambda case: 0 < len(case.unknown) < case.rank,
        {"rank": [2, 3], "unknown": _some_axes, "strides": _per_axis([1, 1, 1, 2])},
    ),
    "weights": (
        18,
        lambda case: case.weights != "initializer",
        {"weights": ["constant", "overridable", "computed"], "strides": _per_axis([1, 1, 2])},
    ),
}  # fmt: skip

EXTENTS = {1: [5, 8, 9, 11, 13, 16, 19], 2: [4, 5, 7, 8, 9, 11], 3: [3, 4, 5, 6, 7]}
KERNELS = {1: [2, 3, 3, 4, 5], 2: [1, 2, 3, 3, 4], 3: [1, 2, 2, 3]}
DILATIONS = {1: [2, 3, 4, 5, 6], 2: [2, 2, 3, 4], 3: [1, 2, 2, 3]}
MOST_WORK = 40_000  # multiply-adds: the naive convolution is slow
MOST_PHASES = 40  # more nodes for the same maths


def _ir(opset: int, dice: random.Random) -> int:
    """An IR version that this opset came with, or a later one that the runtime reads."""
    least = 3 if opset < 9 else 4 if opset < 11 else 6 if opset < 13 else 7 if opset < 15 else 8
    if opset >= 19:
        least = 10 if opset >= 21 else 9
    return dice.choice([least, max(least, 8), 10])


def _draw(topic: str, rank: int, dice: random.Random, opset: int) -> Case:
    _, _, given = TOPICS[topic]

    def pick(key: str, default: Callable[[int, random.Random], Any]) -> Any:
        wanted = given.get(key, default)
        return wanted(rank, dice) if callable(wanted) else dice.choice(wanted)

    kernel, dilations = pick("kernel", _per_axis(KERNELS[rank])), pick("dilations", _per_axis(DILATIONS[rank]))
    half = tuple(d * (k - 1) // 2 for d, k in zip(dilations, kernel, strict=True))
    full = tuple(d * (k - 1) for d, k in zip(dilations, kernel, strict=True))
    zero = (0,) * rank
    style = dice.choice([(half, half), (half, half), (zero, zero), (full, zero), None])
    loose = _per_axis([0, 0, 1, 2, 3, 5])
    begin, end = style if style else (loose(rank, dice), loose(rank, dice))
    group = pick("group", lambda *_: dice.choice([1, 1, 1, 2]))
    opset = pick("opset", lambda *_: opset)
    auto_pad = pick("auto_pad", lambda *_: "NOTSET")
    case = Case(
        topic=topic,
        extents=pick("extents", _per_axis(EXTENTS[rank])),
        kernel=kernel,
        strides=pick("strides", lambda *_: (1,) * rank),
        dilations=dilations,
        begin=pick("begin", lambda *_: begin) if auto_pad == "NOTSET" else zero,
        end=pick("end", lambda *_: end) if auto_pad == "NOTSET" else zero,
        auto_pad=auto_pad,
        batch=dice.choice([1, 1, 2, 3]),
        group=group,
        channels=pick("channels", lambda *_: dice.choice([1, 2, 3] if rank == 1 else [1, 2])),
        outputs=pick("outputs", lambda *_: dice.choice([1, 2, 3] if rank == 1 else [1, 2])),
        bias=dice.random() < 0.85,
        unknown_batch=pick("unknown_batch", lambda *_: False),
        unknown=pick("unknown", lambda *_: ()),
        max_dilation=pick("max_dilation", lambda *_: 1),
        opset=opset,
        ir=_ir(opset, dice),
        weights=pick("weights", lambda *_: "initializer"),
    )
    if case.weights == "overridable" and case.ir < 4:
        case = dataclasses.replace(case, ir=4)
    return case


def _affordable(case: Case) -> bool:
    work = case.batch * case.out_channels * case.channels * math.prod(case.outs()) * math.prod(case.kernel)
    phases = math.prod(d for d, k in zip(case.dilations, case.kernel, strict=True) if k > 1)
    return work <= MOST_WORK and phases <= MOST_PHASES


@functools.cache
def cases() -> tuple[Case, ...]:
    """The grid, always the same: half of it with an activation after the Conv, opsets 7 to 22 in turn."""
    found: dict[str, Case] = {}
    total = 0
    for topic, (count, wanted, given) in TOPICS.items():
        dice = random.Random(topic)
        ranks = given.get("rank", [1, 2, 3])
        made, tries = 0, 0
        while made < count:
            tries += 1
            assert tries < 20_000, f"topic {topic} cannot be drawn"
            case = _draw(topic, ranks[made % len(ranks)], dice, 7 + total % 16)
            if not case.valid or not _affordable(case) or not wanted(case):
                continue
            case = dataclasses.replace(case, activation=total % 2 == 0)
            if case.name in found:
                continue
            found[case.name] = case
            made, total = made + 1, total + 1
    return tuple(found.values())


def counts() -> Counter[str]:
    """How many cases have each feature."""
    return Counter(feature for case in cases() for feature in case.features)


if __name__ == "__main__":
    print(len(cases()), *sorted(counts().items()), sep="\n")
