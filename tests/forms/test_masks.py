"""The mask theorem of docs/maths.md, by brute force: from the definitions, in NumPy, with NaN where anything may stand.

One axis; more axes are the product of theirs. Whole numbers, so equality is bit for bit.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dilrewrite.forms import cells, grid
from dilrewrite.forms.chain import Chain, Link
from dilrewrite.forms.geometry import ConvGeometry

Array = NDArray[Any]


def conv(x: Array, w: Array, bias: Array, d: int, pads: tuple[int, int]) -> Array:
    """Return y[o] = bias + sum over t of w[t] x[o + t*d - p0], x being 0 outside of its extent."""
    extent, k, (p0, p1) = x.shape[1], w.shape[2], pads
    total = extent + p0 + p1 - d * (k - 1)
    y = np.repeat(bias[:, None], total, axis=1)
    for o, t in itertools.product(range(total), range(k)):
        i = o + t * d - p0
        if 0 <= i < extent:
            y[:, o] += w[:, :, t] @ x[:, i]
    return y


@dataclass(frozen=True)
class Cells:
    """A tensor on phases: its cells in order, [C, M * block]; phase r is `cells[:, r::block]`.

    Cell j holds x[j - front] where that is one of the `extent` data; the others are zeros if `clean`, else anything.
    """

    cells: Array
    extent: int
    block: int
    front: int
    clean: bool

    @classmethod
    def entered(cls, x: Array, block: int, front: int) -> "Cells":
        extent = x.shape[1]
        cells = np.zeros((len(x), -(-(extent + front) // block) * block), x.dtype)
        cells[:, front : front + extent] = x
        return cls(cells, extent, block, front, clean=True)

    @property
    def back(self) -> int:
        return self.cells.shape[1] - self.front - self.extent

    @property
    def data(self) -> Array:
        return self.cells[:, self.front : self.front + self.extent]

    def filled(self, value: float) -> "Cells":
        """Return it with `value` in every cell that is not data."""
        cells = np.full_like(self.cells, value)
        cells[:, self.front : self.front + self.extent] = self.data
        return replace(self, cells=cells, clean=value == 0)

    def poisoned(self) -> "Cells":
        return self if self.clean else self.filled(np.nan)

    def each(self, function: Callable[[Array], Array], *, keeps_zero: bool) -> "Cells":
        return replace(self, cells=function(self.cells), clean=self.clean and keeps_zero).poisoned()


def needs(x: Cells, pads: tuple[int, int]) -> bool:
    """The rule: whether a Conv (k > 1) or a Pad must find zeros around the data."""
    return (pads[1] > 0 and x.back > 0) or (pads[0] > 0 and x.front > 0)


@dataclass(frozen=True)
class Inner:
    """The Conv on phases: its pads and what is cut from the end of each phase; how its output lies."""

    pads: tuple[int, int]
    cut: int
    front: int
    extent: int
    samples: int


def inner(x: Cells, k: int, d: int, pads: tuple[int, int]) -> Inner:
    """Return f', c0, Ho, M' and c1 of docs/maths.md."""
    b, f, samples = x.block, x.front, x.cells.shape[1] // x.block
    left = (f - pads[0]) % b
    begin = (pads[0] - f + left) // b
    total = x.extent + sum(pads) - d * (k - 1)
    made = -(-(total + left) // b)
    end = made - (samples + begin - d // b * (k - 1))
    return Inner((begin, max(end, 0)), max(-end, 0), left, total, made)


def convolved(x: Cells, w: Array, bias: Array, d: int, pads: tuple[int, int]) -> Cells:
    """Return the Conv of every phase; no zeros are written."""
    b, how = x.block, inner(x, w.shape[2], d, pads)
    cells = np.empty((len(w), how.samples * b), x.cells.dtype)
    for r in range(b):
        phase = x.cells[:, r::b]
        cells[:, r::b] = conv(phase[:, : phase.shape[1] - how.cut], w, bias, d // b, how.pads)
    return Cells(cells, how.extent, b, how.front, clean=False)


# -- one Conv, every one of them ---------------------------------------------------------------------------------------


def single() -> Iterator[tuple[Cells, int, int, tuple[int, int]]]:
    """Yield inputs 1, 2, 3, ... of every small extent and front, with every kernel, dilation and pair of pads."""
    for b, k, times, extent in itertools.product((2, 3, 4), (2, 3), (1, 2), range(1, 9)):
        d, x = b * times, np.arange(1.0, extent + 1)[None]
        for f, p0, p1 in itertools.product(range(b), range(d * (k - 1) + 2), range(d * (k - 1) + 2)):
            if extent + p0 + p1 > d * (k - 1) and (b < 4 or times == 1 or k == 2):
                yield Cells.entered(x, b, f), k, d, (p0, p1)


def reads(x: Cells, k: int, d: int, pads: tuple[int, int]) -> bool:
    """Say whether an output that is data reads a cell that is not, by the definition of the Conv."""
    total = x.extent + sum(pads) - d * (k - 1)
    cells = {o + t * d - pads[0] + x.front for o in range(total) for t in range(k)}
    return any(0 <= j < x.cells.shape[1] and not x.front <= j < x.front + x.extent for j in cells)


def test_a_conv_reads_what_is_no_data_only_where_the_rule_says_so() -> None:
    """Where it says no, any content gives the result; where it says yes, ones do not, but for the tiny outputs that
    docs/maths.md names: shorter than the dilation and than the pad on that side.
    """
    told: Counter[tuple[bool, bool]] = Counter()
    one = np.zeros(1)
    for x, k, d, pads in single():
        w = np.ones((1, 1, k))
        right = conv(x.data, w, one, d, pads)
        assert np.array_equal(convolved(x, w, one, d, pads).data, right)
        same = np.array_equal(convolved(x.filled(1), w, one, d, pads).data, right)
        assert same == np.array_equal(convolved(x.filled(np.nan), w, one, d, pads).data, right)
        assert same != reads(x, k, d, pads)
        told[needs(x, pads), same] += 1
        if not needs(x, pads):
            assert same
        elif same:
            assert right.shape[1] < d
            sides = [pad for pad, there in zip(pads, (x.front, x.back), strict=True) if pad and there]
            assert min(sides) > right.shape[1]
    assert told[True, False] > 10_000
    assert told[False, True] > 2_000
    assert 0 < told[True, True] < 0.1 * told[True, False]


@pytest.mark.parametrize("b", [2, 3, 4])
def test_the_table_of_operators_says_the_same(b: int) -> None:
    """forms/grid.py: how the output lies, the Conv inside the phases, and whether it needs zeros."""
    count = 0
    for x, k, d, pads in single():
        if x.block != b:
            continue
        geometry = ConvGeometry(
            extents=(x.extent,), kernel=(k,), strides=(1,), dilations=(d,), pads_begin=pads[:1], pads_end=pads[1:],
            in_channels=1, out_channels=1, batch=1, group=1,
        )  # fmt: skip
        link = Link(op="Conv", inputs=("x", "w"), outputs=("y",), attributes={})
        shapes = {"x": (1, 1, x.extent), "w": (1, 1, k)}
        chain = Chain(
            links=(link,), inputs=("x",), outputs=("y",), shapes=shapes, constants=frozenset("w"), integers={},
            opset=17, convs={0: geometry}, block=(b,),
        )  # fmt: skip
        entered = cells.entered(x.extent, b, x.front)
        assert (entered.samples, entered.back) == (x.cells.shape[1] // b, x.back)
        phased = grid.conv(link, {"x": (entered,)}, cells.Space(chain, (b,)), geometry)
        assert phased is not None
        how, (axis,) = inner(x, k, d, pads), phased.axes
        assert cells.data(axis) == (how.front, how.extent, how.samples)
        assert axis.back == how.samples * b - how.front - how.extent
        assert phased.needs == needs(x, pads)
        assert not phased.clean
        assert phased.attributes == {"pads": how.pads, "dilations": (d // b,)}
        assert phased.cuts == ((0, how.cut),)
        count += 1
    assert count > 1_000


@pytest.mark.parametrize("outer", [2, 3, 4])
@pytest.mark.parametrize("inner_block", [2, 3, 4])
def test_phases_of_phases_are_phases(outer: int, inner_block: int) -> None:
    """Phase r0 and of that phase r1 are the cells r0 + r1 * outer, ...; ones brought in twice say where data are."""
    for extent, front in itertools.product(range(1, 40), range(outer)):
        for x in (np.arange(1.0, extent + 1)[None], np.ones((1, extent))):
            cells, flat = Cells.entered(x, outer, front).cells, Cells.entered(x, outer * inner_block, front).cells
            for r0, r1 in itertools.product(range(outer), range(inner_block)):
                twice = Cells.entered(cells[:, r0::outer], inner_block, 0).cells[:, r1::inner_block]
                once = flat[:, r0 + r1 * outer :: outer * inner_block]
                assert twice.shape == once.shape
                assert np.array_equal(twice, once)


# -- chains ------------------------------------------------------------------------------------------------------------


class Grown:
    """A random chain, each tensor plain and on phases; `obeys`: whether zeros are written where the rule asks."""

    def __init__(self, seed: int, *, obeys: bool) -> None:
        self.rng, self.obeys = np.random.default_rng(seed), obeys
        self.block, extent = self.number(2, 6), self.number(1, 59)
        x = self.rng.integers(-3, 4, (2, extent)).astype(float)
        front = self.number(0, self.block - 1) if self.rng.random() < 0.3 else 0
        self.made = [(x, Cells.entered(x, self.block, front))]
        self.told: Counter[str] = Counter()
        for _ in range(self.number(1, 6)):
            getattr(self, self.rng.choice(["conv", "conv", "conv", "one", "above", "clip", "add", "pad", "slice"]))()

    def number(self, least: int, most: int) -> int:
        return int(self.rng.integers(least, most + 1))

    def zeros(self, x: Cells, pads: tuple[int, int]) -> Cells:
        """Return it with zeros where a reader with such pads needs them."""
        need = needs(x, pads)
        self.told[f"{'needed' if need else 'not needed'}, {'clean' if x.clean else 'not clean'}"] += 1
        return x.filled(0) if need and not x.clean and self.obeys else x

    def weights(self, k: int) -> tuple[Array, Array]:
        return self.rng.integers(-1, 2, (2, 2, k)).astype(float), self.rng.integers(0, 4, 2).astype(float)

    def conv(self) -> None:
        (plain, x), k, d = self.made[-1], self.number(2, 4), self.block * self.number(1, 3)
        reach, kind = d * (k - 1), self.number(0, 3)
        free = self.number(0, reach + 2), self.number(0, reach + 2)
        pads = [(reach // 2, reach - reach // 2), (reach, 0), (0, 0), free][kind]
        if x.extent + sum(pads) > reach:
            w, bias = self.weights(k)
            y = convolved(self.zeros(x, pads), w, bias, d, pads).poisoned()
            self.made.append((conv(plain, w, bias, d, pads), y))

    def one(self) -> None:
        (plain, x), (w, bias) = self.made[-1], self.weights(1)
        bias *= self.number(0, 1)
        y = replace(x, cells=conv(x.cells, w, bias, 1, (0, 0)), clean=x.clean and not bias.any())
        self.made.append((conv(plain, w, bias, 1, (0, 0)), y.poisoned()))

    def above(self) -> None:
        plain, x = self.made[-1]
        self.made.append((np.maximum(plain, 0) + 1, x.each(lambda a: np.maximum(a, 0) + 1, keeps_zero=False)))

    def clip(self) -> None:
        plain, x = self.made[-1]
        self.made.append((np.clip(plain, -5, 5), x.each(lambda a: np.clip(a, -5, 5), keeps_zero=True)))

    def add(self) -> None:
        plain, x = self.made[-1]
        alike = [
            (p, o) for p, o in self.made if (o.front, o.cells.shape, p.shape) == (x.front, x.cells.shape, plain.shape)
        ]
        other, y = alike[self.number(0, len(alike) - 1)]
        self.made.append((plain + other, replace(x, cells=x.cells + y.cells, clean=x.clean and y.clean).poisoned()))

    def pad(self) -> None:
        """Whole samples are added to every phase, as many as a Conv of one tap with these pads would."""
        (plain, x), pads = self.made[-1], (self.number(0, 2 * self.block), self.number(0, 5))
        how, x = inner(x, 1, x.block, pads), self.zeros(x, pads)
        cells = np.pad(x.cells, ((0, 0), (how.pads[0] * x.block, how.pads[1] * x.block)))
        y = Cells(cells, how.extent, x.block, how.front, x.clean)
        self.made.append((np.pad(plain, ((0, 0), pads)), y.poisoned()))

    def slice(self) -> None:
        (plain, x), first, behind = self.made[-1], self.number(0, 2 * self.block), self.number(0, 3)
        if x.extent > first + behind:
            before, left = divmod(x.front + first, x.block)
            part = plain[:, first : x.extent - behind]
            size = -(-(part.shape[1] + left) // x.block) * x.block
            cells = x.cells[:, before * x.block : before * x.block + size]
            self.made.append((part, Cells(cells, part.shape[1], x.block, left, clean=False).poisoned()))

    @property
    def right(self) -> bool:
        return all(np.array_equal(plain, x.data) for plain, x in self.made)


@pytest.mark.parametrize("start", [pytest.param(s, marks=pytest.mark.grid(3)) for s in range(0, 12_000, 500)])
def test_with_zeros_where_the_rule_asks_no_chain_is_wrong(start: int) -> None:
    told: Counter[str] = Counter()
    for seed in range(start, start + 500):
        chain = Grown(seed, obeys=True)
        assert chain.right, f"seed {seed}"
        told += chain.told
    assert told["needed, not clean"] > 100
    assert told["not needed, not clean"] > 100


def test_without_them_one_chain_in_three_is_wrong() -> None:
    wrong = sum(not Grown(seed, obeys=False).right for seed in range(1_000))
    assert wrong > 300
