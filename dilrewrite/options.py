"""What a command may do: every option with its default and its check. Importing it loads neither onnx nor NumPy."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dilrewrite.errors import UsageError

if TYPE_CHECKING:
    from dilrewrite.tensorrt.engines import Order

DEFAULT_BUDGET_S = 60.0

VERIFY_LEVELS = ("full", "sites", "none")

EXTERNAL_DATA_MODES = ("auto", "reference", "copy")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeOptions:
    """What `optimize` may do; see `dilrewrite.optimize` for each field."""

    strategy: str | None = None
    eliminate: bool = False
    max_dilation: int = 1
    only: str | None = None
    skip: str | None = None
    shapes: Sequence[str] = ()
    inputs: Path | None = None
    verify: str = "full"
    rtol: float | None = None
    atol: float | None = None
    dry_run: bool = False
    force: bool = False
    seed: int = 0
    threads: int | None = None
    custom_op_library: tuple[Path, ...] = ()
    external_data: str = "auto"
    backend: str = "auto"
    budget_s: float | None = None
    min_gain_percent: float = 2.0
    decisions: Path | None = None
    save_decisions: Path | None = None
    cache: Path | None = None
    no_cache: bool = False
    order: Order | None = None
    engine: Path | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds that measuring may take."""
        return DEFAULT_BUDGET_S if self.budget_s is None else self.budget_s

    def check(self) -> None:
        """Raise `UsageError` for options that do not fit together."""
        if self.verify not in VERIFY_LEVELS:
            raise UsageError(f"--verify {self.verify}: not one of {', '.join(VERIFY_LEVELS)}")
        if self.verify == "none" and self.strategy is None:
            raise UsageError("--verify none works only with --strategy", hint="name the form, or leave verification on")
        if self.max_dilation < 1:
            raise UsageError(f"--max-dilation {self.max_dilation}: at least 1 is needed")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed}: at least 0 is needed")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads}: at least 1 is needed")
        if not 0 <= self.seconds < math.inf:
            raise UsageError(f"--budget {self.budget_s}: a finite number of seconds of at least 0 is needed")
        if not 0 <= self.min_gain_percent < 100:
            raise UsageError(
                f"--min-gain {self.min_gain_percent:g}: a percentage of at least 0 and below 100 is needed"
            )
        if self.decisions is not None:
            for other, given in (
                ("--strategy", self.strategy is not None),
                ("--eliminate", self.eliminate),
                ("--max-dilation", self.max_dilation != 1),
                ("--only", self.only is not None),
                ("--skip", self.skip is not None),
            ):
                if given:
                    raise UsageError(
                        f"--decisions says which forms to take, and {other} too", hint="leave one of them out"
                    )
        if self.order is not None:
            self.order.check()
        elif self.engine is not None:
            raise UsageError("--engine names the file of an engine", hint="ask for one with --build-engine")
        if self.cache is not None and self.no_cache:
            raise UsageError("--cache and --no-cache were both given", hint="leave one of them out")
        for name, value in (("--rtol", self.rtol), ("--atol", self.atol)):
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} {value}: a finite number of at least 0 is needed")
        if self.external_data not in EXTERNAL_DATA_MODES:
            raise UsageError(f"--external-data {self.external_data}: not one of {', '.join(EXTERNAL_DATA_MODES)}")
        for name, pattern in (("--only", self.only), ("--skip", self.skip)):
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise UsageError(f"{name} {pattern}: not a regular expression: {error}") from error

    def plain(self) -> dict[str, object]:
        """Return the options as plain data for a report."""
        shown = {name: getattr(self, name) for name in self.__slots__ if name not in ("order", "engine")}
        found: dict[str, object] = {
            key: [str(item) for item in value] if isinstance(value, tuple) else value for key, value in shown.items()
        }
        if self.order is not None:
            found["build_engine"] = self.order.plain()
        return found
