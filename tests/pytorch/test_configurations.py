"""The grammar of the convolution benchmark: what it reads, and where it points at when it cannot."""

from __future__ import annotations

import pytest

from dilrewrite.errors import UsageError
from dilrewrite.pytorch.configurations import BUILT_IN, MalformedError, parse


def test_the_grammar_of_the_original() -> None:
    """Without d, the dilation of the original's runs; without p, the pads that keep the extents."""
    found = parse("i3x64x64,k128x3x3,b128,s1x1")
    assert found.x_shape == (128, 3, 64, 64)
    assert found.weight_shape == (128, 3, 3, 3)
    assert (found.strides, found.dilations, found.groups) == ((1, 1), (2, 2), 1)
    assert found.padding == ((2, 2), (2, 2))
    assert found.geometry().out_extents == (64, 64)
    assert (found.text, found.name) == ("i3x64x64,k128x3x3,b128,s1x1", "")


def test_the_width_is_first() -> None:
    found = parse("i3x8x4x2,k128x3x5x1,s1x2x3,d4x5x6,p7x10x9")
    assert found.x_shape == (1, 3, 2, 4, 8)
    assert found.kernel == (1, 5, 3)
    assert found.strides == (3, 2, 1)
    assert found.dilations == (6, 5, 4)
    assert found.padding == ((9, 9), (10, 10), (7, 7))
    assert parse("i3x9x9,k128x3x5").kernel == (5, 3)


def test_one_dimension() -> None:
    found = parse("i8x100,k8x3,b1,s1,d64")
    assert found.x_shape == (1, 8, 100)
    assert found.weight_shape == (8, 8, 3)
    assert (found.strides, found.dilations, found.padding) == ((1,), (64,), ((64, 64),))


def test_the_order_of_the_items_is_free() -> None:
    a, b = parse("b2,d3x3,k4x3x3,s2x2,i5x9x8"), parse("i5x9x8,k4x3x3,b2,s2x2,d3x3")
    assert (a.x_shape, a.kernel, a.strides, a.dilations) == (b.x_shape, b.kernel, b.strides, b.dilations)


def test_defaults() -> None:
    found = parse("i4x9x9,k6x3x3")
    assert (found.batch, found.strides, found.dilations, found.groups) == (1, (1, 1), (2, 2), 1)


def test_one_number_for_every_axis() -> None:
    found = parse("i4x9x9,k6x3x3,s2,d3,p4")
    assert (found.strides, found.dilations, found.padding) == ((2, 2), (3, 3), ((4, 4), (4, 4)))


def test_groups() -> None:
    found = parse("i6x9,k4x3,g2")
    assert (found.groups, found.weight_shape) == (2, (4, 3, 3))
    assert found.geometry().group == 2


@pytest.mark.parametrize(
    ("pads", "expected"),
    [("psame", ((1, 2),)), ("pvalid", ((0, 0),)), ("p0", ((0, 0),)), ("p5", ((5, 5),)), ("d1", ((0, 1),))],
)
def test_pads(pads: str, expected: tuple[tuple[int, int], ...]) -> None:
    """An odd number of pads has the greater part at the end."""
    text = f"i6x9,k4x2,{pads}" if pads == "d1" else f"i6x9,k4x2,d3,{pads}"
    assert parse(text).padding == expected


@pytest.mark.parametrize("number", range(1, len(BUILT_IN) + 1))
def test_built_in(number: int) -> None:
    name, text = BUILT_IN[number - 1]
    found = parse(str(number))
    assert found == parse(name)
    assert (found.name, found.text) == (name, text)
    assert found.geometry().dilated


def test_the_first_three_are_the_original_ones() -> None:
    for number, extent in enumerate((64, 32, 16), 1):
        found = parse(str(number))
        assert found.x_shape == (128, 3, extent, extent)
        assert found.weight_shape == (128, 3, 3, 3)


@pytest.mark.parametrize("text", ["0", "00", str(len(BUILT_IN) + 1), "9" * 5000])
def test_numbers_of_no_configuration(text: str) -> None:
    with pytest.raises(UsageError, match=r"there is no built-in configuration .* there are 1: original-64, 2: "):
        parse(text)


@pytest.mark.parametrize(
    ("text", "under", "words"),
    [
        ("i3x64y64,k128x3x3", "     ^", "'y' is neither a digit nor x"),
        ("i3x-4x64,k128x3x3", "   ^", "'-' is neither a digit nor x"),
        ("i3x64x64,k128x3.5x3", "               ^", "'.' is neither a digit nor x"),
        ("i3x64x64, k128x3x3", "         ^", "' ' is none of i, k, b, s, d, p, g"),
        ("i3x64x64,q1,k128x3x3", "         ^", "'q' is none of i, k, b, s, d, p, g"),
        ("I3x64x64,k128x3x3", "^", "'I' is none of i, k, b, s, d, p, g"),
        ("3x64x64,k128x3x3", "^", "'3' is none of i, k, b, s, d, p, g"),
        ("nonsense", "^", "'n' is none of i, k, b, s, d, p, g"),
        ("²", "^", "'²' is none of i, k, b, s, d, p, g"),
        ("", "^", "an item is missing"),
        ("i3x64x64,,k128x3x3", "         ^", "an item is missing"),
        ("i3x64x64,k128x3x3,", "                  ^", "an item is missing"),
        ("i3x64x64,k128x3x3,i3x64x64", "                  ^", "i is there twice"),
        ("i3x64x64", "        ^", "the kernel, as k128x3x3, is missing"),
        ("k128x3x3,b1", "           ^", "the input, as i3x64x64, is missing"),
        ("i3x64x,k128x3x3", "      ^", "a number is missing"),
        ("i3xx64,k128x3x3", "   ^", "a number is missing"),
        ("i,k128x3x3", " ^", "a number is missing"),
        ("i3x0x64,k128x3x3", "   ^", "sizes are at least 1"),
        ("i3x9x9,k8x3x3,b0", "               ^", "sizes are at least 1"),
        ("i3x9x9,k8x3x3,s1x0", "                 ^", "sizes are at least 1"),
        ("i3x9x1234567890,k8x3x3", "     ^", "a number has more than 9 digits"),
        ("i3,k128", "^", "the input has 0 extents, not 1 to 3"),
        ("i3x1x2x3x4,k8x1x1x1x1", "^", "the input has 4 extents, not 1 to 3"),
        ("i3x64x64,k128x3", "         ^", "k has 1 sizes, and the input 2 extents"),
        ("i3x64x64,k128x3x3x3", "         ^", "k has 3 sizes, and the input 2 extents"),
        ("i3x64x64,k128", "         ^", "k has 0 sizes, and the input 2 extents"),
        ("i3x64x64,k8x3x3,s1x1x1", "                ^", "s has 3 sizes, and the input 2 extents"),
        ("i3x64,k8x3,d1x1", "           ^", "d has 2 sizes, and the input 1 extents"),
        ("i3x64,k8x3,p1x1", "           ^", "p has 2 sizes, and the input 1 extents"),
        ("i3x64x64,k8x3x3,b128x2", "                ^", "b is one number"),
        ("i4x64x64,k8x3x3,g2x2", "                ^", "g is one number"),
        ("i3x64x64,k8x3x3,psane", "                 ^", "'s' is neither a digit nor x"),
        ("i3x64,k8x3,g2", "           ^", "3 input channels are not divisible by group 2"),
        ("i4x64,k9x3,g2", "           ^", "9 output channels are not divisible by group 2"),
    ],
)
def test_the_place_of_what_is_wrong(text: str, under: str, words: str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse(text)
    assert words in str(caught.value)
    assert repr(text) in str(caught.value)
    assert "the grammar is iCxWxH,kFxWxH," in str(caught.value)
    assert caught.value.exit_code == 2
    assert caught.value.pointer == f"  {text}\n  {under}"


def test_the_pointer_is_two_lines() -> None:
    with pytest.raises(MalformedError) as caught:
        parse("i3x6\n4,\udc80k8x3")
    assert caught.value.pointer == "  i3x6?4,?k8x3\n      ^"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("i3x8x8,k4x9x9,d1,pvalid", "spatial axis 0: extent 8 with pads (0, 0) is 8, less than the dilated kernel's 9"),
        ("i3x8,k4x3,d4,pvalid", "spatial axis 0: extent 8 with pads (0, 0) is 8, less than the dilated kernel's 9"),
        (
            "i3x8x8,k4x3x3,d1x9,p0x1",
            "spatial axis 0: extent 8 with pads (1, 1) is 10, less than the dilated kernel's 19",
        ),
    ],
)
def test_a_kernel_larger_than_the_input(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert not isinstance(caught.value, MalformedError)
    assert words in str(caught.value)
    assert "; a larger input, a smaller kernel or dilation, or more pads" in str(caught.value)
