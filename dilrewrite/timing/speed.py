"""How fast, in words: the only one to say what a ratio means, with one direction for all: `1.21x faster`."""

from __future__ import annotations

import math

SAME = "as fast"


def three(value: float) -> str:
    """Return a number with 3 significant digits, or whole."""
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")


def factors(*ratios: float) -> list[str]:
    """Return ratios with 3 significant digits; with 3 decimals where one of them would read as 1 otherwise."""
    close = any(0.99 < ratio < 1.01 for ratio in ratios) or all(0.95 < ratio < 1.05 for ratio in ratios)
    return [f"{ratio:.3f}" if close and ratio < 10 else three(ratio) for ratio in ratios]


def inverse(value: float) -> float:
    """Return 1 / `value`, infinity for 0."""
    return 1 / value if value else math.inf


def speed(ratio: float) -> str:
    """Return what a ratio second / first says of the second: `1.21x faster`, `1.37x slower`, `as fast`."""
    (factor,) = factors(ratio if ratio > 1 else inverse(ratio))
    return SAME if factor == "1.000" else f"{factor}x {'slower' if ratio > 1 else 'faster'}"


def between(low: float, high: float) -> str:
    """Return the interval of a ratio, the slower end first: `1.18 to 1.24x faster`, `1.01x slower to 1.03x faster`."""
    if low <= 1 <= high:
        least, most = factors(high, inverse(low))
        return f"{least}x slower to {most}x faster"
    ends = (low, high) if low > 1 else (inverse(high), inverse(low))
    return f"{' to '.join(factors(*ends))}x {'slower' if low > 1 else 'faster'}"
