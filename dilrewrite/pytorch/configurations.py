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

_ITEM = re.compile(r"([a-z])([^,]*)")


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

    def __init__(self, message: str, text: str, place: int) -> None:
        super().__init__(message, hint=f"the grammar is {GRAMMAR}")
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
        if text.lstrip("0") not in map(str, range(1, len(BUILT_IN) + 1)):
            listed = ", ".join(f"{number}: {name}" for number, (name, _) in enumerate(BUILT_IN, 1))
            raise UsageError(f"there is no built-in configuration {text}", hint=f"there are {listed}")
        name, items = BUILT_IN[int(text.lstrip("0")) - 1]
        return _read(items, name)
    named = dict(BUILT_IN)
    if text in named:
        return _read(named[text], text)
    return _read(text, "")


def _read(text: str, name: str) -> Configuration:
    items: dict[str, tuple[list[int] | str, int]] = {}
    place = 0
    for part in text.split(","):
        item = _ITEM.fullmatch(part)
        letter = part[:1]
        if not part:
            raise MalformedError(f"{text!r}: an item is missing", text, place)
        if item is None or letter not in "ikbsdpg":
            raise MalformedError(f"{text!r}: {letter!r} is none of i, k, b, s, d, p, g", text, place)
        if letter in items:
            raise MalformedError(f"{text!r}: {letter} is there twice", text, place)
        if letter == "p" and item[2] in ("same", "valid"):
            items[letter] = (item[2], place)
        else:
            items[letter] = (_numbers(text, item[2], place + 1, zero=letter == "p"), place)
        place += len(part) + 1
    for letter, words in (("i", "the input, as i3x64x64"), ("k", "the kernel, as k128x3x3")):
        if letter not in items:
            raise MalformedError(f"{text!r}: {words}, is missing", text, len(text))
    (channels, *sizes), (filters, *kernel) = _list(items["i"][0]), _list(items["k"][0])
    rank = len(sizes)
    if not 1 <= rank <= 3:
        raise MalformedError(f"{text!r}: the input has {rank} extents, not 1 to 3", text, items["i"][1])
    spatial = {"k": kernel, **{letter: _list(items[letter][0]) for letter in "sdp" if _has_list(items, letter)}}
    for letter, values in spatial.items():
        if len(values) == 1 and letter != "k":
            spatial[letter] = values * rank
        elif len(values) != rank:
            what = f"{letter} has {len(values)} sizes, and the input {rank} extents"
            raise MalformedError(f"{text!r}: {what}", text, items[letter][1])
    for letter in "bg":
        if letter in items and len(_list(items[letter][0])) != 1:
            raise MalformedError(f"{text!r}: {letter} is one number", text, items[letter][1])
    batch, groups = (_list(items[letter][0])[0] if letter in items else 1 for letter in "bg")
    strides, dilations = spatial.get("s", [1] * rank), spatial.get("d", [2] * rank)
    word = items.get("p", ("same", 0))[0]
    read = Configuration(
        text=text,
        name=name,
        batch=batch,
        channels=channels,
        extents=tuple(reversed(sizes)),
        filters=filters,
        kernel=tuple(reversed(spatial["k"])),
        strides=tuple(reversed(strides)),
        dilations=tuple(reversed(dilations)),
        padding=tuple(reversed(_pads(word, spatial, dilations))),
        groups=groups,
    )
    geometry = read.geometry()
    reason = geometry.malformed()
    if reason:
        raise MalformedError(f"{text!r}: {reason}", text, items["g"][1])
    reason = geometry.invalid()
    if reason:
        raise UsageError(f"{text!r}: {reason}", hint="a larger input, a smaller kernel or dilation, or more pads")
    return read


def _pads(word: list[int] | str, spatial: dict[str, list[int]], dilations: list[int]) -> list[tuple[int, int]]:
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
    for part in re.split(r"(x)", sizes):
        if part == "x":
            place += 1
            continue
        wrong = re.search(r"[^0-9]", part)
        if wrong is not None:
            raise MalformedError(f"{text!r}: {wrong[0]!r} is neither a digit nor x", text, place + wrong.start())
        if not part:
            raise MalformedError(f"{text!r}: a number is missing", text, place)
        if len(part.lstrip("0")) > DIGITS:
            raise MalformedError(f"{text!r}: a number has more than {DIGITS} digits", text, place)
        if int(part) == 0 and not zero:
            raise MalformedError(f"{text!r}: sizes are at least 1", text, place)
        numbers.append(int(part))
        place += len(part)
    return numbers


def _list(value: list[int] | str) -> list[int]:
    assert isinstance(value, list)
    return value


def _has_list(items: dict[str, tuple[list[int] | str, int]], letter: str) -> bool:
    return letter in items and isinstance(items[letter][0], list)


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
