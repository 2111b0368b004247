"""How numbers and names read in every report: ratios, sizes, times, shares, lists, and texts that differ in numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from dilrewrite.errors import clean as clean
from dilrewrite.timing.speed import between as between
from dilrewrite.timing.speed import factors as factors
from dilrewrite.timing.speed import inverse as inverse
from dilrewrite.timing.speed import speed as speed
from dilrewrite.timing.speed import three
from dilrewrite.timing.stopwatch import CONFIDENCE, MIN_PAIRS, Comparison, Timing

UNKNOWN = "?"  # stands for a size that is known at run time only
NOTHING = "-"  # stands for a figure that there is none of
INTERVAL = f"{100 * CONFIDENCE:.0f} % interval"  # what the intervals of ratios are
NUMBER = r"(?<![\w.])\d+(?:\.\d+)?(?=x?(?![\w.]*\w))"  # in a sentence, for `re`; digits in a name are none

T = TypeVar("T")

# -- names and lists -------------------------------------------------------------------------------------------------


def shorten(text: str, length: int) -> str:
    """Return `text` with its middle left out when it is longer than `length`."""
    room = length - 3
    return text if len(text) <= length else f"{text[: room - room // 2]}...{text[len(text) - room // 2 :]}"


def count(number: int, noun: str) -> str:
    """Return `1 site`, `2 sites`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def dims(shape: Iterable[int | None]) -> str:
    """Return `1x3x224x224`, `scalar` without dimension."""
    return "x".join(UNKNOWN if extent is None else str(extent) for extent in shape) or "scalar"


def listed(items: Sequence[str], most: int) -> str:
    """Return the first `most` items and how many more there are."""
    return f"{', '.join(items[:most])}{f' and {len(items) - most} more' if len(items) > most else ''}"


def joined(*parts: str, by: str = ", ") -> str:
    """Return the parts that say something, with `by` between them."""
    return by.join(filter(None, parts))


def pairs(items: Iterable[tuple[str, object]], separator: str = ", ") -> str:
    """Return `name value, name value`."""
    return separator.join(f"{name} {value}" for name, value in items)


def groups(items: Iterable[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    """Return the items in groups of equal key, in the order of their first members."""
    members: dict[Hashable, list[T]] = {}
    for item in items:
        members.setdefault(key(item), []).append(item)
    return list(members.values())


def merged(texts: Sequence[str], names: Iterable[str] = ()) -> list[tuple[str, int]]:
    """Return texts that differ in numbers and in `names` only as one sentence each, and how many they are.

    Numbers become a range, names a choice: "tap_prune or im2col, is estimated at 1.2 to 3.4x".
    """
    words = "|".join(re.escape(name) for name in sorted(set(names), key=len, reverse=True))
    pattern = re.compile(f"({NUMBER}" + (rf"|(?<!\w)(?:{words})(?!\w)" if words else "") + ")")

    def kind(parts: list[str]) -> Hashable:
        return (*parts[::2], *(part[0].isdigit() for part in parts[1::2]))

    def one(values: Sequence[str]) -> str:
        distinct = list(dict.fromkeys(values))
        if len(distinct) == 1:
            return distinct[0]
        if all(value[0].isdigit() for value in distinct):
            least, *_, most = sorted(distinct, key=float)
            return f"{least} to {most}"
        return f"{', '.join(distinct[:-1])} or {distinct[-1]}"

    alike = groups(map(pattern.split, texts), kind)
    return [("".join(map(one, zip(*some, strict=True))), len(some)) for some in alike]


def numberless(text: str) -> str:
    """Return `text` with a placeholder for each number: equal for what `merged` makes one sentence of."""
    return re.sub(NUMBER, "#", text)


def figure(value: float | None, digits: int = 3) -> str:
    """Return a number with `digits` significant digits; infinities and NaN by name."""
    return NOTHING if value is None else f"{value:.{digits}g}" if value else "0"


def amount(number: int | None) -> str:
    """Return a large whole number with a decimal prefix: `21.7 M`; `?` when unknown."""
    return UNKNOWN if number is None else _scaled(number, 1000, ("", "k", "M", "G", "T", "P"))


def size(number: int | None) -> str:
    """Return a number of bytes with a binary prefix."""
    return NOTHING if number is None else _scaled(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(number: int, base: int, units: Sequence[str]) -> str:
    value, power = float(number), 0
    while abs(value) >= base - 0.5 and power < len(units) - 1:
        value, power = value / base, power + 1
    return f"{three(value) if power else number} {units[power]}".rstrip()


def percent(share: float | None) -> str:
    """Return a share as a percentage that reads 0 % or 100 % only when it is."""
    if share is None:
        return UNKNOWN
    if not math.isfinite(share) or share in (0, 1):
        return f"{100 * share:.0f} %"
    return "<0.1 %" if 0 < share < 0.0005 else ">99.9 %" if 0.9995 <= share < 1 else f"{100 * share:.1f} %"


def change(before: int, after: int) -> str:
    """Return how much a size grew or shrank."""
    if before == after:
        return "0"
    return f"{after - before:+d}" if not before else f"{100 * (after / before - 1):+.1f} %"


def gain(share: float | None) -> str:
    """Return a share of the model's time with its sign, below 0 for a loss."""
    return NOTHING if share is None else "about 0" if abs(share) < 0.0005 else f"{100 * share:+.1f} %"


def left(dilation: int) -> str:
    """Return a dilation that is left, `none` for 1."""
    return str(dilation) if dilation > 1 else "none"


def summed(shares: Iterable[float | None]) -> float | None:
    """Return the sum of what is known; `None` when nothing is."""
    known = [share for share in shares if share is not None]
    return sum(known) if known else None


# -- times and ratios ------------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    """Return a duration in seconds."""
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s"


def milliseconds(value: float) -> str:
    """Return seconds as a number of milliseconds, with 3 significant digits or whole."""
    return three(1000 * value)


def spread(timing: Timing) -> str:
    """Return the 20th to the 80th percentile in milliseconds."""
    return f"{milliseconds(timing.p20_s)} to {milliseconds(timing.p80_s)}"


def interval_of(comparison: Comparison) -> str:
    """Return the interval of a comparison, and its pairs where they are too few for one."""
    few = f" ({comparison.pairs} pairs)" if comparison.pairs < MIN_PAIRS else ""
    return f"{between(comparison.low, comparison.high)}{few}"


ESTIMATED = {
    r" \(\d+ pairs?\)": "",
    rf"(?:[,;] )?{INTERVAL} [\d.]+(?:x \w+)? to (?:[\d.]+|inf)x \w+": "",
    r", 20 to 80 %: [\d.]+ to [\d.]+ (?:ms|M cycles)": "",
    r"^ ?\([\d.]+ to [\d.]+\)$": "",
    r" [(\[][\d.]+(?:x \w+)? to (?:[\d.]+|inf)x (?:slower|faster)[)\]]": "",
    rf" \[{INTERVAL}\]": "",
    r"(?:[,;] )?\bnoise [\d.]+ %": "",
    r",? ?\b\d+ pairs?\b": "",
    r" beyond noise": "",
    r"in these runs the best": "the best",
    r"\b(forms|not) timed\b": r"\1 estimated",
}


def estimated(said: str) -> str:
    """Return what is said of times as it is said of estimates: without intervals, noise and runs."""
    for pattern, words in ESTIMATED.items():
        said = re.sub(pattern, words, said)
    return said


def difference(comparison: Comparison) -> str:
    """Return a comparison in one word or a few: `1.21x faster`, `no difference`."""
    return "no difference" if comparison.low <= 1 <= comparison.high else speed(comparison.ratio)


def figures(comparison: Comparison) -> str:
    """Return `14.2 ms -> 11.7 ms, 95 % interval 1.18 to 1.24x faster`."""
    return f"{medians(comparison)}, {surely(comparison)}"


def versus(comparison: Comparison, on: str = "") -> str:
    """Return the second model against the first: `1.21x faster{on} (14.2 ms -> 11.7 ms, 95 % interval ...)`."""
    beyond = " beyond noise" if comparison.low <= 1 <= comparison.high else ""
    return f"{difference(comparison)}{beyond}{on} ({figures(comparison)})"


def medians(comparison: Comparison) -> str:
    """Return `14.2 ms -> 11.7 ms`."""
    return f"{milliseconds(comparison.first.median_s)} ms -> {milliseconds(comparison.second.median_s)} ms"


def surely(comparison: Comparison) -> str:
    """Return a comparison's interval in words: `95 % interval 1.18 to 1.24x faster`."""
    return f"{INTERVAL} {interval_of(comparison)}"
