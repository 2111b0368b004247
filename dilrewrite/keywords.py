"""The keywords of the Python functions, as type checkers and `inspect.signature` see them."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Literal, TypedDict, TypeVar, cast

from dilrewrite.errors import DilrewriteError, meant, own_fault
from dilrewrite.options import every_option

StrPath = str | os.PathLike[str]

Progress = Callable[[str, int, int], None]
"""Called with the step, how many parts of it are done, and how many there are."""


RENAMED = {"budget_s": "budget"}
"""Keywords that go by another name now; the old one still works."""


def silent(step: str, done: int, total: int) -> None:
    """Show no progress."""


Function = TypeVar("Function", bound=Callable[..., Any])


class _Run(TypedDict, total=False):
    inputs: StrPath | None
    threads: int | None
    report: StrPath | None
    report_format: Sequence[str]


class _Sized(_Run, total=False):
    shapes: Sequence[str]
    custom_op_library: Sequence[StrPath]


class Inspect(_Sized, total=False):
    """Of `dilrewrite.inspect`."""

    max_dilation: int
    target: str | None
    profile: bool
    backend: str
    on: str | None


class Verify(_Sized, total=False):
    """Of `dilrewrite.verify`."""

    rtol: float | None
    atol: float | None
    seed: int


class Bench(_Sized, total=False):
    """Of `dilrewrite.bench`."""

    backend: str
    on: str | None
    cool_down_s: float
    budget: float
    seed: int
    export_times: StrPath | None
    export_profile: StrPath | None
    progress: Progress | None


class Build(_Run, total=False):
    """Of `dilrewrite.build`."""

    flavour: Literal["auto", "tensorrt", "tensorrt-rtx"]
    precision: Literal["fp32", "tf32", "fp16", "bf16", "int8-qdq"] | None
    minima: Sequence[str]
    optima: Sequence[str]
    maxima: Sequence[str]
    workspace_mib: int | None
    timing_cache: StrPath | None
    optimization_level: int | None
    compute_capabilities: Sequence[str]
    device: int | None
    plugins: Sequence[StrPath]
    refit: bool
    strip_plan: bool
    version_compatible: bool
    weight_streaming: bool
    save_onnx: StrPath | None
    export_layer_info: StrPath | None
    force: bool
    on: str | None
    seed: int
    progress: Progress | None
    tell: Callable[[str], None] | None


class Fold(Verify, total=False):
    """Of `dilrewrite.fold`."""

    only: str | None
    skip: str | None
    verify: Literal["full", "sites", "none"]
    dry_run: bool
    force: bool
    external_data: Literal["auto", "copy", "reference"]
    progress: Progress | None


class Pass(Verify, total=False):
    """Of `dilrewrite.optimize`, and of the passes in `dilrewrite.integrations`."""

    strategy: str | None
    eliminate: bool
    max_dilation: int
    target: str | None
    allow_requantised: bool
    lift_all: bool
    only: str | None
    skip: str | None
    verify: Literal["full", "sites", "none"]
    force: bool
    backend: str
    on: str | None
    cool_down_s: float
    budget: float | None
    min_gain_percent: float
    decisions: StrPath | None
    save_decisions: StrPath | None
    keep_micro: StrPath | None
    cache: StrPath | None
    no_cache: bool


class Sweep(TypedDict, total=False):
    """Of `dilrewrite.sweep`."""

    strategy: str | None
    eliminate: bool
    max_dilation: int
    target: str | None
    allow_requantised: bool
    lift_all: bool
    only: str | None
    skip: str | None
    backend: str
    budget: float | None
    cool_down_s: float
    min_gain_percent: float
    threads: int | None
    cache: StrPath | None
    no_cache: bool
    shapes: Sequence[str]
    seed: int
    verify: Literal["full", "sites", "none"]
    rtol: float | None
    atol: float | None
    force: bool
    external_data: Literal["auto", "copy", "reference"]
    progress: Progress | None


class Optimize(Pass, total=False):
    """Of `dilrewrite.optimize`."""

    dry_run: bool
    external_data: Literal["auto", "copy", "reference"]
    build_engine: bool | Mapping[str, Any]
    engine: StrPath | None
    progress: Progress | None


_ONLY_TYPED = {"--no-report": "report=None", "--build-engine": "build_engine=True", "--verbose": "tell"}
"""Options of the command line alone, and what they are in Python."""

_TYPED = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-o)(?![\w-])(?: (\S+?)(?=[,;:)]*(?: |$)))?")
"""An option in a message, and the word behind it."""


def in_python(text: str) -> str:
    """Return a message that names options of the command line as one that names keywords of the Python functions."""
    known = {flag: option for option in every_option().values() for flag in option.flags.split()}

    def spoken(match: re.Match[str]) -> str:
        flag, word = match.groups()
        if flag not in known:
            return match[0].replace(flag, _ONLY_TYPED.get(flag, flag))
        option, told = known[flag], match.start() == 0 and text[match.end() : match.end() + 1] == ":"
        if option.kind is bool:
            return match[0].replace(flag, f"{option.name}=True")
        number = word is not None and re.fullmatch(r"-?[0-9.]+|-?inf|nan", word)
        if word is None or not (told or number or word in option.choices or re.match(r"[A-Z]{3}|\w+:\w", word)):
            return match[0].replace(flag, option.name)
        value = word if number else f'"{word}"'
        return f"{option.name}={f'[{value}]' if 'tuple' in str(option.kind) else value}"

    return _TYPED.sub(spoken, text)


_TYPED_HERE = ContextVar("typed", default=False)


@contextmanager
def typed() -> Iterator[None]:
    """Let reports name options: what is called within was typed on the command line."""
    token = _TYPED_HERE.set(True)
    try:
        yield
    finally:
        _TYPED_HERE.reset(token)


def is_typed() -> bool:
    """Say whether what is called was typed on the command line."""
    return _TYPED_HERE.get()


def _spoken(result: Any) -> Any:
    """Return a report whose notes name keywords, unless it is for the command line; anything else as it is."""
    if is_typed() or not getattr(result, "notes", ()):
        return result
    return replace(result, notes=tuple(map(in_python, result.notes)))


def listed(keywords: type, **defaults: object) -> Callable[[Function], Function]:
    """Give a function of `**keywords` a signature and help that list them, with the options' defaults or `defaults`."""
    options = every_option()
    known = {name: option.default for name, option in options.items()} | defaults

    def list_them(function: Function) -> Function:
        bare = inspect.signature(function)
        own = [one for one in bare.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        kinds = {name: getattr(kind, "__forward_arg__", kind) for name, kind in keywords.__annotations__.items()}
        keyword = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
        more = [keyword(name, default=known.get(name), annotation=kind) for name, kind in kinds.items()]
        signature = bare.replace(parameters=[*own, *more])

        @functools.wraps(function)
        def call(*arguments: Any, **given: Any) -> Any:
            given = {RENAMED.get(name, name): value for name, value in given.items()}
            try:
                signature.bind(*arguments, **given)
            except TypeError as error:
                near = meant(next((name for name in given if name not in kinds), ""), kinds)
                raise TypeError(f"{function.__name__}() {error}{f'; did you mean {near!r}?' if near else ''}") from None
            try:
                return _spoken(function(*arguments, **{**defaults, **given}))
            except DilrewriteError as error:
                error.reword(in_python)
                raise
            except (MemoryError, TypeError):  # a TypeError is about what was given
                raise
            except Exception as error:
                own_fault(error)
                raise

        call.__signature__ = signature  # type: ignore[attr-defined]
        help_texts = (
            f"    {name}: {in_python(options[name].help)}" for name in kinds if name in options.keys() - defaults
        )
        call.__doc__ = "\n".join([f"{function.__doc__}\n    Keywords:", *help_texts])
        return cast("Function", call)

    return list_them
