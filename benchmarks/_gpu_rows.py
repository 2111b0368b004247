"""What rows of timed pairs have in common, on whatever they were timed; loads neither PyTorch nor JAX."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from _gpu_plan import Row

from dilrewrite.timing.stopwatch import Comparison, signed_rank_interval, timing

APART = {"fp32": 1e-3, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}
"""How far outputs on random data may be from the dilated Conv's, as a share of its norm; above, a formula is wrong."""


def compared(samples: Sequence[Sequence[float]], noise: float | None = None) -> Row:
    """The columns of a row: the second of two against the first, by the seconds of their runs in pairs."""
    centre, low, high = signed_rank_interval(np.log(np.divide(samples[1], samples[0])).tolist())
    found = Comparison(
        first=timing(samples[0]),
        second=timing(samples[1]),
        ratio=math.exp(centre),
        low=math.exp(low),
        high=math.exp(high),
        pairs=len(samples[0]),
        noise=noise,
        mode="interleaved",
    )
    return {
        "runs": found.first.runs + found.second.runs,
        "pairs": found.pairs,
        "ratio": found.ratio,
        "low": found.low,
        "high": found.high,
        "noise": noise,
        "faster": found.faster,
        "native_ms": found.first.median_s * 1e3,
        "form_ms": found.second.median_s * 1e3,
    }


def judged(apart: float | None, most: float) -> Row:
    """The columns that say how far an output is from what it is to be, and that it is wrong where it is."""
    wrong = apart is not None and not apart <= most
    finite = apart if apart is None or math.isfinite(apart) else None
    return {"apart": finite, **({"passed": False} if wrong else {})}
