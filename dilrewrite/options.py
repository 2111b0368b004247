"""What a command may be told: every option once, with its default, its check, and how the command line spells it.

The command line, the Python functions, the checks and a report's options are made from these classes, one for each
stage of the work. Importing this loads neither onnx nor NumPy.
"""

from __future__ import annotations

import functools
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Self

from dilrewrite.errors import UsageError, shown
from dilrewrite.staging import is_file

DEFAULT_BUDGET_S = 60.0

BENCH_BUDGET_S = 20.0

VERIFY_LEVELS = ("full", "sites", "none")

EXTERNAL_DATA_MODES = ("auto", "reference", "copy")

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8-qdq")

MOST_DIGITS = 10
"""No size has more: TensorRT counts the elements of a tensor up to 2**31."""

Check = tuple[Callable[[Any], object], str]
"""Whether a value is legal, and what the error says otherwise. A lambda within an annotation sees no global names."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option: its flags, what `--help` says, the bounds of a number, and the check of a value.

    `check`: by default that it is not below `low`. `reported`: a report tells its value. `name`, `kind`, `default`: of
    the field, which is the keyword in Python. An argument has no flags.
    """

    flags: str
    help: str = ""
    metavar: str | None = None
    low: float | None = None
    high: float | None = None
    check: Check | None = None
    reported: bool = True
    name: str = ""
    kind: Any = bool
    default: Any = False

    @property
    def flag(self) -> str:
        """Return the flag that messages name it by."""
        return self.flags.split()[0]


def _least(low: float | None, unit: str = "") -> Check:
    return (lambda value: low is None or value >= low), f"at least {low}{unit} is needed"


def among(names: Sequence[str]) -> Check:
    """Return the check that a value is one of the names."""
    return (lambda value: value in names), f"not one of {', '.join(names)}"


def _finite(what: str) -> Check:
    return (lambda value: 0 <= value < math.inf), f"a finite {what} of at least 0 is needed"


_LEVEL: Check = (range(6).__contains__, "not one of 0 to 5")
_FILE: Check = (is_file, "no such file")

_NAME_SIZES = "NAME:1x3xHxW"


class Stage:
    """The options of a stage: a frozen dataclass whose fields carry their spellings."""

    __slots__ = ()

    @classmethod
    @functools.cache
    def options(cls) -> Mapping[str, Option]:
        """Return the options by name."""
        hints = typing.get_type_hints(cls, include_extras=True)
        return {
            one.name: replace(option, name=one.name, kind=hints[one.name].__origin__, default=one.default)
            for one in fields(cls)  # type: ignore[arg-type]
            for option in getattr(hints[one.name], "__metadata__", ())
        }

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Self:
        """Return the stage from keywords; paths may be strings, and tuples any sequence."""
        kinds = {name: option.kind for name, option in cls.options().items()}
        return cls(**{name: _typed(value, kinds.get(name)) for name, value in keywords.items()})

    def check(self) -> None:
        """Raise `UsageError` for a value that the option cannot have."""
        for name, option in self.options().items():
            value, check = getattr(self, name), option.check or _least(option.low)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and not check[0](one):
                    text = shown(one) if isinstance(one, Path) else one
                    raise UsageError(f"{option.flag} {text}: {check[1]}")

    def plain(self) -> dict[str, object]:
        """Return what a report tells of it, as plain data."""
        return {
            name: [str(item) for item in value] if isinstance(value, tuple) else value
            for name, option in self.options().items()
            if option.reported
            for value in [getattr(self, name)]
        }


def _typed(value: Any, kind: Any) -> Any:
    """Return a keyword's value as its option has it."""
    if typing.get_origin(kind) is tuple:
        return tuple(map(typing.get_args(kind)[0], value or ()))
    return Path(value) if value is not None and Path in (kind, *typing.get_args(kind)) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope(Stage):
    """Which nodes are rewritten, and into which forms."""

    strategy: Annotated[
        str | None,
        Option(
            "--strategy", "The form to use wherever it applies. [default: the fastest, or none]", "NAME[:key=value,...]"
        ),
    ] = None
    eliminate: Annotated[bool, Option("--eliminate", "Leave no dilated Conv; exit code 1 names what cannot go.")] = (
        False
    )
    max_dilation: Annotated[int, Option("--max-dilation", "Dilations up to N may stay.", "N", low=1)] = 1
    only: Annotated[str | None, Option("--only", "Rewrite only nodes whose name matches.", "REGEX")] = None
    skip: Annotated[str | None, Option("--skip", "Leave nodes whose name matches.", "REGEX")] = None
    decisions: Annotated[Path | None, Option("--decisions", "Do what this file says, without measuring.", "FILE")] = (
        None
    )

    def check(self) -> None:
        """Raise `UsageError` for options that are wrong, or do not fit together."""
        Stage.check(self)
        for name in ("only", "skip"):
            pattern = getattr(self, name)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise UsageError(f"--{name} {pattern}: not a regular expression: {error}") from error
        others = ("strategy", "eliminate", "max_dilation", "only", "skip") if self.decisions is not None else ()
        for option in map(self.options().__getitem__, others):
            if getattr(self, option.name) != option.default:
                raise UsageError(
                    f"--decisions says which forms to take, and {option.flag} too",
                    hint="leave one of them out",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Proving(Stage):
    """How models are run and compared."""

    shapes: Annotated[
        tuple[str, ...], Option("--shape", "Size of an input with unknown extents. Repeatable.", _NAME_SIZES)
    ] = ()
    inputs: Annotated[Path | None, Option("--inputs", "Data to run on, by input name.", "FILE.npz")] = None
    verify: Annotated[
        str,
        Option(
            "--verify", "How much to prove; none only with --strategy.", "full|sites|none", check=among(VERIFY_LEVELS)
        ),
    ] = "full"
    rtol: Annotated[
        float | None,
        Option("--rtol", "Relative tolerance, instead of one by element type.", low=0, check=_finite("number")),
    ] = None
    atol: Annotated[
        float | None,
        Option("--atol", "Absolute tolerance, instead of one by element type.", low=0, check=_finite("number")),
    ] = None
    seed: Annotated[int, Option("--seed", "Seed of all random data.", low=0)] = 0
    threads: Annotated[
        int | None, Option("--threads", "Threads inside an operator. [default: the runtime's]", low=1, high=4096)
    ] = None
    custom_op_library: Annotated[
        tuple[Path, ...],
        Option("--custom-op-library", "Shared library with custom operators. Repeatable.", "FILE", check=_FILE),
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Places(Stage):
    """What is written, and where."""

    output: Annotated[
        Path | None, Option("--output -o", "[default: MODEL.dilrewrite.onnx]", "FILE", reported=False)
    ] = None
    report: Annotated[
        Path | None, Option("--report", "Folder for report.json, .md and .html.", "DIR", reported=False)
    ] = None
    report_format: Annotated[
        tuple[str, ...],
        Option("--report-format", "A format to write instead: csv, junit, ... Repeatable.", "NAME", reported=False),
    ] = ()
    external_data: Annotated[
        str,
        Option(
            "--external-data",
            "What happens to data files of the model.",
            "auto|copy|reference",
            check=among(EXTERNAL_DATA_MODES),
        ),
    ] = "auto"
    dry_run: Annotated[bool, Option("--dry-run", "Measure and write nothing: show what would be.")] = False
    force: Annotated[bool, Option("--force", "Replace an existing output.")] = False
    save_decisions: Annotated[Path | None, Option("--save-decisions", "Write what was decided.", "FILE")] = None
    engine: Annotated[Path | None, Option("--engine", "[default: OUTPUT.engine]", "FILE", reported=False)] = None
    save_onnx: Annotated[
        Path | None, Option("--save-onnx", "The ONNX model as TensorRT gets it.", "FILE", reported=False)
    ] = None
    export_layer_info: Annotated[
        Path | None,
        Option("--export-layer-info", "The layers as JSON, as trtexec writes them.", "FILE", reported=False),
    ] = None
    export_times: Annotated[
        Path | None, Option("--export-times", "Every run's time, as trtexec writes it.", "FILE", reported=False)
    ] = None
    export_profile: Annotated[
        Path | None, Option("--export-profile", "Time by layer, as trtexec writes it.", "FILE", reported=False)
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring(Stage):
    """What is timed, on what, and for how long."""

    profile: Annotated[
        bool, Option("--profile", "Run the model, and show each Conv's share of its time.", reported=False)
    ] = False
    backend: Annotated[str, Option("--backend", "The runtime to time on; auto is the best that is ready.", "NAME")] = (
        "auto"
    )
    budget_s: Annotated[
        float | None,
        Option(
            "--budget",
            "How long measuring may take; 0 measures nothing. [default: 60]",
            "SECONDS",
            low=0,
            check=_finite("number of seconds"),
        ),
    ] = None
    min_gain_percent: Annotated[
        float, Option("--min-gain", "What the whole model must save of its time to be rewritten.", "PERCENT")
    ] = 2.0
    cache: Annotated[Path | None, Option("--cache", "Where timings are kept. [default: the user's cache]", "FILE")] = (
        None
    )
    no_cache: Annotated[bool, Option("--no-cache", "Measure everything anew, and keep nothing.")] = False

    @property
    def seconds(self) -> float:
        """Return the seconds that measuring may take."""
        return DEFAULT_BUDGET_S if self.budget_s is None else self.budget_s

    def check(self) -> None:
        """Raise `UsageError` for options that are wrong, or do not fit together."""
        Stage.check(self)
        percent = self.min_gain_percent
        if not 0 <= percent < 100:
            raise UsageError(f"--min-gain {percent:g}: a percentage of at least 0 and below 100 is needed")
        if self.cache is not None and self.no_cache:
            raise UsageError("--cache and --no-cache were both given", hint="leave one of them out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Building(Stage):
    """What TensorRT engine to build, and how."""

    flavour: Annotated[str, Option("--flavour", "Which TensorRT builds the engine.", "auto|tensorrt|tensorrt-rtx")] = (
        "auto"
    )
    precision: Annotated[
        str | None,
        Option(
            "--precision",
            "What the engine computes in. [default: what the model holds]",
            "|".join(PRECISIONS),
            check=among(PRECISIONS),
        ),
    ] = None
    minima: Annotated[tuple[str, ...], Option("--min", "Smallest size of an input. Repeatable.", _NAME_SIZES)] = ()
    optima: Annotated[tuple[str, ...], Option("--opt", "Size to be fast at. Repeatable.", _NAME_SIZES)] = ()
    maxima: Annotated[tuple[str, ...], Option("--max", "Largest size of an input. Repeatable.", _NAME_SIZES)] = ()
    workspace_mib: Annotated[
        int | None, Option("--workspace", "Memory for scratch data, in MiB.", "MIB", low=1, check=_least(1, " MiB"))
    ] = None
    timing_cache: Annotated[
        Path | None, Option("--timing-cache", "Where TensorRT keeps kernel timings between builds.", "FILE")
    ] = None
    optimization_level: Annotated[
        int | None,
        Option(
            "--optimization-level",
            "How long TensorRT searches.",
            "0-5",
            low=0,
            high=5,
            check=_LEVEL,
        ),
    ] = None
    compute_capabilities: Annotated[
        tuple[str, ...],
        Option("--compute-capability", "A GPU to build for (tensorrt-rtx). Repeatable.", "8.6|12.0|current"),
    ] = ()
    device: Annotated[int | None, Option("--device", "The GPU to build on.", "N", low=0)] = None
    plugins: Annotated[
        tuple[Path, ...], Option("--plugins", "Library of TensorRT plugins. Repeatable.", "FILE", check=_FILE)
    ] = ()
    refit: Annotated[bool, Option("--refit", "Weights can be replaced later.")] = False
    strip_plan: Annotated[bool, Option("--strip-plan", "Leave the weights out of the engine.")] = False
    version_compatible: Annotated[
        bool, Option("--version-compatible", "The engine runs in later versions of TensorRT too.")
    ] = False
    weight_streaming: Annotated[
        bool, Option("--weight-streaming", "Weights may stay in host memory and be streamed.")
    ] = False

    def check(self) -> None:
        """Raise `UsageError` for what is wrong whatever the model is."""
        Stage.check(self)
        for kind, texts in (("min", self.minima), ("opt", self.optima), ("max", self.maxima)):
            sizes(kind, texts)

    def plain(self) -> dict[str, object]:
        """Return what was asked for, and nothing else, as plain data."""
        short = {"minima": "min", "optima": "opt", "maxima": "max"}
        given = {short.get(name, name): value for name, value in Stage.plain(self).items() if said(value)}
        return {"flavour": self.flavour, **given}


def said(value: object) -> bool:
    """Say whether an option was given: 0 is a level and a device, and not `False`."""
    return value is not None and value is not False and value not in ((), [])


def sizes(kind: str, texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Return the sizes by input of texts as `NAME:1x3x224x224`; raises `UsageError` for others."""
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, _, extents = text.rpartition(":")
        parts = extents.split("x")
        whole = all(part.isascii() and part.isdigit() and len(part) <= MOST_DIGITS for part in parts)
        if not name or not whole or 0 in map(int, parts):
            raise UsageError(
                f"--{kind} {text}: not NAME:SIZExSIZE... of sizes from 1 up", hint=f"for example --{kind} x:1x3x224x224"
            )
        if name in shapes:
            raise UsageError(f"--{kind} {text}: input {name!r} was given before", hint="give each input once")
        shapes[name] = tuple(map(int, parts))
    return shapes


STAGES: Mapping[str, type[Stage]] = {
    "scope": Scope,
    "proving": Proving,
    "places": Places,
    "measuring": Measuring,
    "building": Building,
}


def every_option() -> dict[str, Option]:
    """Return the options of all stages by name."""
    return {name: option for stage in STAGES.values() for name, option in stage.options().items()}


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """What a command is told, by stage. `building`: the engine to build, where one is asked for."""

    scope: Scope = Scope()
    proving: Proving = Proving()
    places: Places = Places()
    measuring: Measuring = Measuring()
    building: Building | None = None

    @classmethod
    def of(cls, **keywords: Any) -> CommandOptions:
        """Return options from the keywords of `dilrewrite.optimize` and its like."""
        stages: dict[str, Any] = {}
        for name, stage in STAGES.items():
            given = {key: keywords.pop(key) for key in stage.options() if key in keywords}
            if given:
                stages[name] = stage.of(given)
        assert not keywords, keywords
        return cls(**stages)

    def _stages(self) -> Iterator[Stage]:
        yield from (self.scope, self.proving, self.places, self.measuring)

    def check(self) -> None:
        """Raise `UsageError` for options that are wrong, or do not fit together."""
        for stage in (*self._stages(), *([self.building] if self.building is not None else [])):
            stage.check()
        if self.proving.verify == "none" and self.scope.strategy is None:
            raise UsageError("--verify none works only with --strategy", hint="name the form, or leave verification on")
        if self.places.engine is not None and self.building is None:
            raise UsageError("--engine names the file of an engine", hint="ask for one with --build-engine")

    def plain(self) -> dict[str, object]:
        """Return what a report tells of them, as plain data; what is built is told apart."""
        return {name: value for stage in self._stages() for name, value in stage.plain().items()}
