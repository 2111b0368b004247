"""What a command may be told: every option once, with its default, its check, and how the command line spells it.

The command line, the Python functions, the checks and a report's options are made from these classes, one for each
stage of the work. Importing this loads neither onnx nor NumPy.
"""

from __future__ import annotations

import functools
import math
import re
import reprlib
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from dilrewrite._compat import Self
from dilrewrite.errors import UsageError, folded, meant, shown
from dilrewrite.staging import is_file

DEFAULT_BUDGET_S = 60.0
BENCH_BUDGET_S = 20.0
VERIFY_LEVELS = ("full", "sites", "none")
EXTERNAL_DATA_MODES = ("auto", "reference", "copy")
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8-qdq")
FLAVOURS = ("auto", "tensorrt", "tensorrt-rtx")

Check = tuple[Callable[[Any], object], str]
"""Whether a value is legal, and what the error says otherwise."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """An option: its flags, what `--help` says and in which `group`, the bounds of a number, and the check of a value.

    `check`: by default that it is not below `low`. `choices`: the only values, if there are several. `reported`: a
    report tells its value. `name`, `kind`, `default`: of the field, which is the keyword in Python. An argument has no
    flags.
    """

    flags: str
    help: str = ""
    metavar: str | None = None
    low: float | None = None
    high: float | None = None
    check: Check | None = None
    choices: tuple[str, ...] = ()
    group: str = ""
    reported: bool = True
    name: str = ""
    kind: Any = bool
    default: Any = False

    @property
    def flag(self) -> str:
        """Return the flag that messages name it by."""
        return self.flags.split()[0]


def option(default: T, flags: str, text: str, metavar: str | Sequence[str] | None = None, **facts: Any) -> T:
    """Return a field of a stage: its default, and the rest of its `Option`. `metavar`: the only values, if several."""
    if metavar is not None and not isinstance(metavar, str):
        metavar, facts = "|".join(metavar), {"check": among(metavar), "choices": tuple(metavar), **facts}
    return field(default=default, metadata={"option": Option(flags, text, metavar, **facts)})


def _least(low: float | None, unit: str = "") -> Check:
    return (lambda value: low is None or value >= low), f"at least {low}{unit} is needed"


def among(names: Sequence[str]) -> Check:
    """Return the check that a value is one of the names."""
    return (lambda value: value in names), f"not one of {', '.join(names)}"


def _finite(what: str) -> Check:
    return (lambda value: 0 <= value < math.inf), f"a finite {what} of at least 0 is needed"


_PROOF = "Proof"
_ENGINE = "TensorRT engine"
_TOLERANCE: dict[str, Any] = {"low": 0, "check": _finite("number"), "group": _PROOF}
_SECONDS: dict[str, Any] = {"low": 0, "check": _finite("number of seconds")}
_LEVEL: Check = (range(6).__contains__, "not one of 0 to 5")
_FILE: Check = (is_file, "no such file")
_NAME_SIZES = "NAME:1x3xHxW"


def masked(text: str) -> str:
    """Return the text of `--on` without names of users, nor what some write behind them."""
    return text if text.startswith("cmd:") else re.sub(r"^((?:\w+:)?/*)[^/?]*@", r"\1***@", text)


class Stage:
    """The options of a stage: a frozen dataclass whose fields are made by `option`. `GROUP`: theirs on `--help`."""

    __slots__ = ()

    GROUP: ClassVar[str]

    @classmethod
    @functools.cache
    def options(cls) -> Mapping[str, Option]:
        """Return the options by name."""
        kinds = typing.get_type_hints(cls)
        return {
            one.name: replace(
                known, name=one.name, kind=kinds[one.name], default=one.default, group=known.group or cls.GROUP
            )
            for one in fields(cls)  # type: ignore[arg-type]
            if (known := one.metadata.get("option")) is not None
        }

    @classmethod
    def of(cls, keywords: Mapping[str, Any]) -> Self:
        """Return the stage from keywords; paths may be strings, and tuples any sequence."""
        known = cls.options()
        values = {name: _typed(value, known[name]) if name in known else value for name, value in keywords.items()}
        return cls(**values)

    def check(self) -> None:
        """Raise `UsageError` for a value that the option cannot have."""
        for name, known in self.options().items():
            value, (legal, otherwise) = getattr(self, name), known.check or _least(known.low)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None and not legal(one):
                    problem = f"{known.flag} {shown(one) if isinstance(one, Path) else one}: {otherwise}"
                    near = meant(one, known.choices) if known.choices and isinstance(one, str) else None
                    raise UsageError(problem, hint=f"did you mean {near}?" if near else "")

    def plain(self) -> dict[str, object]:
        """Return what a report tells of it, as plain data."""
        values = {name: getattr(self, name) for name, known in self.options().items() if known.reported}
        return {name: [*map(str, value)] if isinstance(value, tuple) else value for name, value in values.items()}


def _typed(value: Any, option: Option) -> Any:
    """Return a keyword's value as its option has it; of names, `_` is `-`, and capitals are small letters."""
    kind = option.kind
    if typing.get_origin(kind) is tuple and isinstance(value, str | PathLike):
        value = (value,)
    elif typing.get_origin(kind) is tuple and isinstance(value, Iterable) and not isinstance(value, bytes | Mapping):
        value = tuple(value)
    if not _is_a(value, kind):
        raise TypeError(f"{option.name}={reprlib.repr(value)}: {_spoken(kind)} is needed")
    if isinstance(value, str) and value not in option.choices:
        value = next((name for name in option.choices if folded(name) == folded(value)), value)
    if typing.get_origin(kind) is tuple:
        return tuple(map(typing.get_args(kind)[0], value or ()))
    return Path(value) if value is not None and Path in (kind, *typing.get_args(kind)) else value


_KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
    Path: ((str, PathLike), "a path"),
    type(None): (type(None), "None"),
}


def _is_a(value: Any, kind: Any) -> bool:
    """Say whether a value is of an option's kind."""
    if typing.get_origin(kind) is tuple:
        every = isinstance(value, tuple) and all(_is_a(one, typing.get_args(kind)[0]) for one in value)
        return every or value is None
    kinds = typing.get_args(kind) or (kind,)
    return any(isinstance(value, _KINDS[one][0]) for one in kinds if bool in kinds or not isinstance(value, bool))


def _spoken(kind: Any) -> str:
    """Return an option's kind in words: `a number or None`."""
    if typing.get_origin(kind) is tuple:
        return f"a list of {_spoken(typing.get_args(kind)[0]).removeprefix('a ')}s"
    return " or ".join(_KINDS[one][1] for one in typing.get_args(kind) or (kind,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope(Stage):
    """Which nodes are rewritten, and into which forms."""

    GROUP = "Which Convs, which forms"

    strategy: str | None = option(
        None,
        "--strategy",
        "The form to use wherever it applies. [default: the fastest, or none]",
        "NAME[:key=value,...]",
    )
    eliminate: bool = option(False, "--eliminate", "Leave no dilated Conv; exit code 1 names what cannot go.")
    max_dilation: int = option(1, "--max-dilation", "Dilations up to N may stay.", "N", low=1)
    target: str | None = option(
        None,
        "--target",
        "A device: a name of `dilrewrite targets`, or the file of a profile.",
        "NAME[:key=value,...]",
    )
    allow_requantised: bool = option(
        False, "--allow-requantised", "Try integers in float32 too: equal within one quantum, not bit for bit."
    )
    lift_all: bool = option(False, "--lift-all", "Try 1-D chains in two dimensions that have no dilation, too.")
    only: str | None = option(None, "--only", "Rewrite only nodes whose name matches.", "REGEX")
    skip: str | None = option(None, "--skip", "Leave nodes whose name matches.", "REGEX")
    decisions: Path | None = option(None, "--decisions", "Do what this file says, without measuring.", "FILE")

    def check(self) -> None:
        """Raise `UsageError` for options that are wrong, or do not fit together."""
        Stage.check(self)
        for name in ("only", "skip"):
            pattern = getattr(self, name)
            try:
                re.compile(pattern or "")
            except re.error as error:
                raise UsageError(f"--{name} {pattern}: not a regular expression: {error}") from error
        says = "decisions strategy eliminate max_dilation target only skip", "target strategy eliminate max_dilation"
        for name, other in ((name, other) for name, *others in map(str.split, says) for other in others):
            known = self.options()[other]
            if getattr(self, name) is not None and getattr(self, other) != known.default:
                problem = f"--{name} says which forms to take, and {known.flag} too"
                raise UsageError(problem, hint="leave one of them out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Proving(Stage):
    """How models are run and compared."""

    GROUP = "Sizes and data"

    shapes: tuple[str, ...] = option(
        (), "--shape", "Size of an input, as x:1x3x64x64; of the only one, as 1x3x64x64. Repeatable.", _NAME_SIZES
    )
    inputs: Path | None = option(None, "--inputs", "Data to run on, by input name.", "FILE.npz")
    verify: str = option(
        "full", "--verify", "How much to prove; none only with --strategy.", VERIFY_LEVELS, group=_PROOF
    )
    rtol: float | None = option(
        None, "--rtol", "Relative tolerance. [default: by element type]", "NUMBER", **_TOLERANCE
    )
    atol: float | None = option(
        None, "--atol", "Absolute tolerance. [default: by element type]", "NUMBER", **_TOLERANCE
    )
    seed: int = option(0, "--seed", "Seed of all random data.", "N", low=0)
    threads: int | None = option(
        None,
        "--threads",
        "Threads inside an operator. [default: the runtime's]",
        "N",
        low=1,
        high=4096,
        group="Measuring",
    )
    custom_op_library: tuple[Path, ...] = option(
        (), "--custom-op-library", "Shared library with custom operators. Repeatable.", "FILE", check=_FILE
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Places(Stage):
    """What is written, and where."""

    GROUP = "Files"

    output: Path | None = option(
        None, "--output -o", "The new model. [default: MODEL.dilrewrite.onnx]", "FILE", reported=False
    )
    report: Path | None = option(None, "--report", "Folder for report.json, .md and .html.", "DIR", reported=False)
    report_format: tuple[str, ...] = option(
        (), "--report-format", "A format to write instead: csv, junit, ... Repeatable.", "NAME", reported=False
    )
    external_data: str = option(
        "auto", "--external-data", "What happens to data files of the model.", EXTERNAL_DATA_MODES
    )
    dry_run: bool = option(False, "--dry-run", "Measure and write nothing: show what would be.")
    force: bool = option(False, "--force", "Replace an existing output.")
    save_decisions: Path | None = option(None, "--save-decisions", "Write what was decided.", "FILE")
    keep_micro: Path | None = option(
        None, "--keep-micro", "Write each site and region as a model, before and after each form, with data.", "DIR"
    )
    engine: Path | None = option(
        None, "--engine", "The engine's file. [default: OUTPUT.engine]", "FILE", reported=False, group=_ENGINE
    )
    save_onnx: Path | None = option(None, "--save-onnx", "The ONNX model as TensorRT gets it.", "FILE", reported=False)
    export_layer_info: Path | None = option(
        None, "--export-layer-info", "The layers as JSON, as trtexec writes them.", "FILE", reported=False
    )
    export_times: Path | None = option(
        None, "--export-times", "Every run's time, as trtexec writes it.", "FILE", reported=False
    )
    export_profile: Path | None = option(
        None, "--export-profile", "Time by layer, as trtexec writes it.", "FILE", reported=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring(Stage):
    """What is timed, on what, and for how long."""

    GROUP = "Measuring"

    profile: bool = option(False, "--profile", "Run the model, and show each Conv's share of its time.", reported=False)
    backend: str = option("auto", "--backend", "The runtime to time on; auto is the best that is ready.", "NAME")
    on: str | None = option(
        None,
        "--on",
        "Time elsewhere: ssh://[user@]host[:port], a host of ssh's configuration, or 'cmd:PROGRAM {model} {runs}'.",
        "WHERE",
    )
    cool_down_s: float = option(
        0.0, "--cool-down", "A pause before each question that is timed, beside the budget.", "SECONDS", **_SECONDS
    )
    budget: float | None = option(
        None, "--budget", "How long measuring may take; 0 measures nothing. [default: 60]", "SECONDS", **_SECONDS
    )
    min_gain_percent: float = option(
        2.0, "--min-gain", "What the whole model must save of its time to be rewritten.", "PERCENT"
    )
    cache: Path | None = option(None, "--cache", "Where timings are kept. [default: the user's cache]", "FILE")
    no_cache: bool = option(False, "--no-cache", "Measure everything anew, and keep nothing.")

    def plain(self) -> dict[str, object]:
        """Return what a report tells of it, as plain data: of another machine no names of users, and only if asked."""
        told = Stage.plain(self)
        on, pause = told.pop("on"), told.pop("cool_down_s")
        return told | ({"on": masked(str(on))} if on else {}) | ({"cool_down_s": pause} if pause else {})

    @property
    def seconds(self) -> float:
        """Return the seconds that measuring may take."""
        return DEFAULT_BUDGET_S if self.budget is None else self.budget

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

    GROUP = _ENGINE
    SHORT: ClassVar[Mapping[str, str]] = {"minima": "min", "optima": "opt", "maxima": "max"}

    flavour: str = option("auto", "--flavour", "Which TensorRT builds the engine.", FLAVOURS)
    precision: str | None = option(
        None, "--precision", "What the engine computes in. [default: what the model holds]", PRECISIONS
    )
    minima: tuple[str, ...] = option((), "--min", "Smallest size of an input. Repeatable.", _NAME_SIZES)
    optima: tuple[str, ...] = option((), "--opt", "Size to be fast at. Repeatable.", _NAME_SIZES)
    maxima: tuple[str, ...] = option((), "--max", "Largest size of an input. Repeatable.", _NAME_SIZES)
    workspace_mib: int | None = option(
        None, "--workspace", "Memory for scratch data, in MiB.", "MIB", low=1, check=_least(1, " MiB")
    )
    timing_cache: Path | None = option(
        None, "--timing-cache", "Where TensorRT keeps kernel timings between builds.", "FILE"
    )
    optimization_level: int | None = option(
        None, "--optimization-level", "How long TensorRT searches.", "0-5", low=0, high=5, check=_LEVEL
    )
    compute_capabilities: tuple[str, ...] = option(
        (), "--compute-capability", "A GPU to build for (tensorrt-rtx). Repeatable.", "8.6|12.0|current"
    )
    device: int | None = option(None, "--device", "The GPU to build on.", "N", low=0)
    plugins: tuple[Path, ...] = option((), "--plugins", "Library of TensorRT plugins. Repeatable.", "FILE", check=_FILE)
    refit: bool = option(False, "--refit", "Weights can be replaced later.")
    strip_plan: bool = option(False, "--strip-plan", "Leave the weights out of the engine.")
    version_compatible: bool = option(
        False, "--version-compatible", "The engine runs in later versions of TensorRT too."
    )
    weight_streaming: bool = option(False, "--weight-streaming", "Weights may stay in host memory and be streamed.")

    def check(self) -> None:
        """Raise `UsageError` for what is wrong whatever the model is."""
        Stage.check(self)
        sizes("min", self.minima)
        sizes("opt", self.optima)
        sizes("max", self.maxima)

    def plain(self) -> dict[str, object]:
        """Return what was asked for, and nothing else, as plain data."""
        given = {self.SHORT.get(name, name): value for name, value in Stage.plain(self).items() if said(value)}
        return {"flavour": self.flavour, **given}


def said(value: object) -> bool:
    """Say whether an option was given: 0 is a level and a device, and not `False`."""
    return value is not None and value is not False and value not in ((), [])


def sizes(
    kind: str, texts: Sequence[str], inputs: Sequence[str] | None = None, *, least: int = 1, most: int = 10**10 - 1
) -> dict[str, tuple[int, ...]]:
    """Return the sizes by input of texts as `NAME:1x3x224x224` or `NAME:1,3,224,224`; of a scalar, `NAME:`.

    A text without a name is of the only one of `inputs`; where these are not known (`None`) it stands under "". Raises
    `UsageError` for other texts, sizes that are not `least` to `most`, and an input that was given before.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, colon, extents = text.rpartition(":")
        parts = re.split("[x,]", extents) if extents or not colon else []
        whole = all(re.fullmatch(r"[0-9]{1,20}", part) and least <= int(part) <= most for part in parts)
        if not whole or (colon and not name) or (not parts and least):
            problem = f"--{kind} {text}: not NAME:SIZExSIZE... of sizes from {least} up"
            raise UsageError(problem, hint=f"for example --{kind} x:1x3x224x224")
        if not name and inputs is not None:
            if len(inputs) != 1:
                problem = f"--{kind} {text}: the model has {len(inputs)} inputs"
                raise UsageError(
                    problem, hint=f"name one of {', '.join(inputs)}, as --{kind} {[*inputs, 'x'][0]}:{text}"
                )
            (name,) = inputs
        if name and name in shapes:
            raise UsageError(f"--{kind} {text}: input {name!r} was given before", hint="give each input once")
        shapes[name] = tuple(map(int, parts))
    return shapes


_STAGES: tuple[type[Stage], ...] = (Scope, Proving, Places, Measuring, Building)
STAGES = {stage.__name__.lower(): stage for stage in _STAGES}


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
            if given := {key: keywords.pop(key) for key in stage.options() if key in keywords}:
                stages[name] = stage.of(given)
        assert not keywords, keywords
        return cls(**stages)

    def check(self) -> None:
        """Raise `UsageError` for options that are wrong, or do not fit together."""
        for stage in (self.scope, self.proving, self.places, self.measuring, self.building or Building()):
            stage.check()
        if self.proving.verify == "none" and self.scope.strategy is None:
            raise UsageError("--verify none works only with --strategy", hint="name the form, or leave verification on")
        if self.scope.target is not None and self.measuring.on is not None:
            raise UsageError("--target names a device that is not here, and --on one that is", hint="leave one out")
        if self.places.engine is not None and self.building is None:
            raise UsageError("--engine names the file of an engine", hint="ask for one with --build-engine")

    def plain(self) -> dict[str, object]:
        """Return what a report tells of them, as plain data; what is built is told apart."""
        return self.scope.plain() | self.proving.plain() | self.places.plain() | self.measuring.plain()
