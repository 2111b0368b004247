"""The configurations of the convolution benchmark, in the grammar of the 2016 one, and the built-in ones.

`i3x64x64,k128x3x3,b128,s1x1`: i channels x width x height (x depth), k filters x kernel width x height (x depth), b
batch, s strides. Added: d dilations, p pads, g groups. Sizes are written width first, as there; tensors have the height
first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dilrewrite.errors import UsageError
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.pytorch.methods import geometry_of

GRAMMAR = "iCxWxH,kFxWxH,bN,sWxH,dWxH,psame|valid|WxH,gG"

DIGITS = 9
"""No size has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """A convolution to time. `kernel`, `strides`, ... are in the order of the tensor's axes: depth, height, width.

    `padding`: (begin, end) zeros of each axis.
    """

    text: str
    batch: int
    channels: int
    extents: tuple[int, ...]
    filters: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    groups: int = 1
    name: str = ""

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Return the shape of the input, [N, C, *extents]."""
        return self.batch, self.channels, *self.extents

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Return the shape of the weight, [O, C / groups, *kernel]."""
        return self.filters, self.channels // self.groups, *self.kernel

    def geometry(self, *, bias: bool = False, element: str = "float32") -> ConvGeometry:
        """Return the geometry."""
        return geometry_of(
            self.x_shape,
            self.weight_shape,
            stride=self.strides,
            padding=self.padding,
            dilation=self.dilations,
            groups=self.groups,
            bias=bias,
            element=element,
        )


class MalformedError(UsageError):
    """A configuration that cannot be read: `text`, and the place in it, counted from 0."""

    def __init__(self, text: str, place: int, problem: str) -> None:
        super().__init__(f"{text!r}: {problem}", hint=f"the grammar is {GRAMMAR}")
        self.text = text
        self.place = place

    @property
    def pointer(self) -> str:
        """Return two lines: the text, and a caret under the place."""
        shown = "".join(letter if letter.isprintable() else "?" for letter in self.text)
        return f"  {shown}\n  {' ' * self.place}^"


def parse(text: str) -> Configuration:
    """Read a configuration; the number of a built-in one stands for it.

    Without b it is 1, without s and d 1 and 2 on every axis (2 is the dilation of the original's runs), without p the
    pads that keep the extents at stride 1 ("same"; the odd one at the end), without g 1.
    Raises `MalformedError`, which points at the character, and `UsageError` for sizes that do not fit together.
    """
    if text.isdecimal() and text.isascii():
        number = text.lstrip("0")
        if number not in map(str, range(1, len(BUILT_IN) + 1)):
            listed = ", ".join(f"{number}: {name}" for number, (name, _) in enumerate(BUILT_IN, 1))
            raise UsageError(f"there is no built-in configuration {text}", hint=f"there are {listed}")
        name, items = BUILT_IN[int(number) - 1]
        return _read(items, name)
    return _read(dict(BUILT_IN).get(text, text), text if text in dict(BUILT_IN) else "")


def _read(text: str, name: str) -> Configuration:
    word, items, places = _items(text)
    for letter, words in (("i", "the input, as i3x64x64"), ("k", "the kernel, as k128x3x3")):
        if letter not in items:
            raise MalformedError(text, len(text), f"{words}, is missing")
    (channels, *sizes), (filters, *kernel) = items["i"], items["k"]
    rank = len(sizes)
    if not 1 <= rank <= 3:
        raise MalformedError(text, places["i"], f"the input has {rank} extents, not 1 to 3")
    spatial = {"k": kernel, **{letter: items[letter] for letter in "sdp" if letter in items}}
    for letter, values in spatial.items():
        if len(values) == 1 and letter != "k":
            spatial[letter] = values * rank
        elif len(values) != rank:
            problem = f"{letter} has {len(values)} sizes, and the input {rank} extents"
            raise MalformedError(text, places[letter], problem)
    for letter in "bg":
        if len(items.get(letter, [1])) != 1:
            raise MalformedError(text, places[letter], f"{letter} is one number")
    strides, dilations = spatial.get("s", [1] * rank), spatial.get("d", [2] * rank)
    read = Configuration(
        text=text,
        name=name,
        batch=items.get("b", [1])[0],
        channels=channels,
        extents=tuple(reversed(sizes)),
        filters=filters,
        kernel=tuple(reversed(kernel)),
        strides=tuple(reversed(strides)),
        dilations=tuple(reversed(dilations)),
        padding=tuple(reversed(_pads(word, spatial, dilations))),
        groups=items.get("g", [1])[0],
    )
    geometry = read.geometry()
    reason = geometry.malformed()
    if reason:
        raise MalformedError(text, places["g"], reason)
    reason = geometry.invalid()
    if reason:
        raise UsageError(f"{text!r}: {reason}", hint="a larger input, a smaller kernel or dilation, or more pads")
    return read


def _items(text: str) -> tuple[str, dict[str, list[int]], dict[str, int]]:
    """Return the word for the pads, and the numbers and the place of each item by its letter."""
    word, place = "same", 0
    items: dict[str, list[int]] = {}
    places: dict[str, int] = {}
    for part in text.split(","):
        letter, sizes = part[:1], part[1:]
        if not part:
            raise MalformedError(text, place, "an item is missing")
        if letter not in "ikbsdpg":
            raise MalformedError(text, place, f"{letter!r} is none of i, k, b, s, d, p, g")
        if letter in places:
            raise MalformedError(text, place, f"{letter} is there twice")
        places[letter] = place
        if letter == "p" and sizes in ("same", "valid"):
            word = sizes
        else:
            items[letter] = _numbers(text, sizes, place + 1, zero=letter == "p")
        place += len(part) + 1
    return word, items, places


def _pads(word: str, spatial: dict[str, list[int]], dilations: list[int]) -> list[tuple[int, int]]:
    """Return the (begin, end) pads of each axis: numbers, none for "valid", those that keep the extents for "same"."""
    if "p" in spatial:
        return [(pad, pad) for pad in spatial["p"]]
    if word == "valid":
        return [(0, 0)] * len(dilations)
    totals = [d * (k - 1) for d, k in zip(dilations, spatial["k"], strict=True)]
    return [(total // 2, total - total // 2) for total in totals]


def _numbers(text: str, sizes: str, place: int, *, zero: bool) -> list[int]:
    """Return the numbers of `3x64x64`, which begins at `place`; points at what is none."""
    numbers = []
    for part in sizes.split("x"):
        wrong = re.search(r"[^0-9]", part)
        if wrong is not None:
            raise MalformedError(text, place + wrong.start(), f"{wrong[0]!r} is neither a digit nor x")
        if not part:
            raise MalformedError(text, place, "a number is missing")
        if len(part.lstrip("0")) > DIGITS:
            raise MalformedError(text, place, f"a number has more than {DIGITS} digits")
        if int(part) == 0 and not zero:
            raise MalformedError(text, place, "sizes are at least 1")
        numbers.append(int(part))
        place += len(part) + 1
    return numbers


BUILT_IN: tuple[tuple[str, str], ...] = (
    ("original-64", "i3x64x64,k128x3x3,b128,s1x1,d2x2"),
    ("original-32", "i3x32x32,k128x3x3,b128,s1x1,d2x2"),
    ("original-16", "i3x16x16,k128x3x3,b128,s1x1,d2x2"),
    ("convtasnet-depthwise", "i512x3200,k512x3,b4,s1,d64,g512"),
    ("hifigan-resblock", "i64x4000,k64x11,b8,s1,d5"),
    ("deeplab-aspp", "i256x33x33,k256x3x3,b4,s1x1,d12x12"),
    ("depthwise-aspp", "i256x65x65,k256x3x3,b4,s1x1,d12x12,g256"),
    ("highresnet3d", "i32x48x48x48,k32x3x3x3,b1,s1x1x1,d2x2x2"),
)
"""The three runs of the 2016 benchmark, and geometries of today's networks."""
