"""How convolutions are timed in PyTorch: the options of `convbench`. Importing it loads neither torch nor NumPy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated

from dilrewrite.options import Option, Stage, among

ELEMENTS = ("float32", "bfloat16", "float16")


_DEVICE = (re.compile("cpu|cuda(:[0-9]{1,3})?").fullmatch, "not one of cpu, cuda, cuda:N")
_POSITIVE = (lambda seconds: 0 < seconds < math.inf, "more than 0 is needed")
_NOT_NEGATIVE = (lambda seconds: 0 <= seconds < math.inf, "0 or more is needed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting(Stage):
    """How it is timed."""

    device: Annotated[
        str,
        Option(
            "--device",
            "Where to run.",
            "cpu|cuda[:N]",
            check=_DEVICE,
        ),
    ] = "cpu"
    element: Annotated[str, Option("--dtype", "Element type.", "|".join(ELEMENTS), check=among(ELEMENTS))] = "float32"
    channels_last: Annotated[bool, Option("--channels-last", "Channels last in memory.")] = False
    compiled: Annotated[bool, Option("--compile", "Through torch.compile.")] = False
    deterministic: Annotated[bool, Option("--deterministic", "cuDNN's deterministic mode.")] = False
    seconds: Annotated[
        float,
        Option(
            "--seconds",
            "How long each method and pass is timed, about.",
            check=_POSITIVE,
        ),
    ] = 1.0
    repeats: Annotated[int, Option("--repeats", "The fewest runs of each method and pass; 6 in any case.", low=1)] = 6
    warmup: Annotated[
        float,
        Option(
            "--warmup",
            "Seconds that each method and pass runs before.",
            check=_NOT_NEGATIVE,
        ),
    ] = 0.0
    steps: Annotated[int, Option("--steps", "How often the pass is computed in a run, whose mean counts.", low=1)] = 1
    threads: Annotated[int | None, Option("--threads", "Threads. [default: torch's]", low=1, high=4096)] = None
    profile: Annotated[bool, Option("--profile", "Where the time goes, by kind of operator.")] = False
    timeout_s: float = 600.0
