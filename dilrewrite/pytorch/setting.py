"""How convolutions are timed in PyTorch: the options of `convbench`. Importing it loads neither torch nor NumPy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from dilrewrite.options import Stage, option

ELEMENTS = ("float32", "bfloat16", "float16")


_DEVICE = (re.compile("cpu|cuda(:[0-9]{1,3})?").fullmatch, "not one of cpu, cuda, cuda:N")
_POSITIVE = (lambda seconds: 0 < seconds < math.inf, "more than 0 is needed")
_NOT_NEGATIVE = (lambda seconds: 0 <= seconds < math.inf, "0 or more is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Stage):
    """How it is timed."""

    GROUP = "Measuring"

    device: str = option("cpu", "--device", "Where to run.", "cpu|cuda[:N]", check=_DEVICE)
    element: str = option("float32", "--dtype", "Element type.", ELEMENTS)
    channels_last: bool = option(False, "--channels-last", "Channels last in memory.")
    compiled: bool = option(False, "--compile", "Through torch.compile.")
    deterministic: bool = option(False, "--deterministic", "cuDNN's deterministic mode.")
    seconds: float = option(
        1.0, "--seconds", "How long each method and pass is timed, about.", "SECONDS", check=_POSITIVE
    )
    repeats: int = option(6, "--repeats", "The fewest runs of each method and pass; 6 in any case.", "N", low=1)
    warmup: float = option(
        0.0, "--warmup", "Seconds that each method and pass runs before.", "SECONDS", check=_NOT_NEGATIVE
    )
    steps: int = option(1, "--steps", "How often the pass is computed in a run, whose mean counts.", "N", low=1)
    threads: int | None = option(None, "--threads", "Threads. [default: torch's]", "N", low=1, high=4096)
    profile: bool = option(False, "--profile", "Where the time goes, by kind of operator.")
    timeout_s: float = 600.0
