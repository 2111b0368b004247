"""Chooses what to feed a model: shapes that it runs on, seeded random data, and the user's own data."""

from __future__ import annotations

import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dilrewrite.backends import Array, CannotRun, Crashed, Io, TimedOut, dtype
from dilrewrite.errors import UsageError, shown
from dilrewrite.staging import is_file

LENGTHS = (64, 32, 128, 224, 256, 16, 100, 512, 8, 4, 1000, 4000, 2, 1, 16000)
"""What unknown extents are tried with, in this order, until the model runs."""

LENGTHS_3D = (32, 16, 24, 48, 64, 96, 8, 4, 2, 1, 128)
"""The same where an input has three or more unknown extents besides the batch."""

SMALL = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
"""What unknown extents are tried with for the smallest size."""

MANY_ELEMENTS = 2**26
"""A random input larger than this many elements is not tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One set of inputs: why it is there (`first`, `divisible`, ..., `user`), and the data."""

    name: str
    feeds: Mapping[str, Array]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every input."""
        return {name: tuple(values.shape) for name, values in self.feeds.items()}


MOST_SIZE = 2**40
"""A longer axis fits into no memory."""


def parse_shapes(texts: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parse `NAME:1x3x224x224` (a scalar: `NAME:`); raises `UsageError` for anything else."""
    found: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, separator, sizes = text.rpartition(":")
        try:
            shape = tuple(int(size) for size in sizes.split("x")) if sizes else ()
        except ValueError:
            shape = (-1,)
        if not separator or not name or any(not 0 <= size <= MOST_SIZE for size in shape):
            raise UsageError(f"--shape {text}: not NAME:SIZExSIZE...", hint="for example --shape input:1x3x224x224")
        found[name] = shape
    return found


UNREADABLE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
    *(NotImplementedError, RuntimeError),  # a packing or a password that the module for archives has not
    *(ValueError, TypeError, AttributeError, SyntaxError, tokenize.TokenError),  # a header that is no Python literal
    *(OverflowError, MemoryError),  # a header with sizes that nothing holds
)
"""What NumPy raises for files that are no archive of arrays."""


def load_inputs(path: Path) -> dict[str, Array]:
    """Read an .npz of inputs by name; raises `UsageError` when it is none."""
    problem = f"--inputs {shown(path)}: not an .npz file of arrays"
    hint = "save one with numpy.savez"
    try:
        if path.exists() and not is_file(path):
            raise UsageError(f"--inputs {shown(path)}: not a regular file", hint=hint)
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise UsageError(f"--inputs {shown(path)}: no such file") from error
    except UNREADABLE as error:
        raise UsageError(f"{problem}: {error}", hint=hint) from error
    others = [repr(name) for name, values in found.items() if not isinstance(values, np.ndarray)]
    if others:
        raise UsageError(f"{problem}: {', '.join(others)} is none", hint=hint)
    return found


def random_values(io: Io, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Return seeded random data: normal for floats, 0 or 1 for integers (0 to 127 for 8 bits), coin flips for bool.

    A single integer is 1: where it is the count of a Loop, the Loop runs.
    """
    if io.element == "string":
        return np.full(shape, "a", dtype=object)
    kind = dtype(io.element)
    if shape == () and "int" in io.element:
        return np.ones(shape, kind)
    if io.element == "bool":
        return rng.integers(0, 2, size=shape).astype(kind)
    if io.element in ("int8", "uint8"):
        return rng.integers(0, 128, size=shape).astype(kind)
    if "int" in io.element:
        return rng.integers(0, 2, size=shape).astype(kind)
    if io.element.startswith("complex"):
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(kind)
    return rng.standard_normal(shape).astype(kind)


class Chooser:
    """Chooses cases for one model. `given` are shapes by input, `user` data by input (from --shape and --inputs).

    `lengths`: what unknown extents are tried with, by the largest number of them in one input.
    """

    def __init__(
        self,
        inputs: Sequence[Io],
        *,
        given: Mapping[str, tuple[int, ...]],
        user: Mapping[str, Array],
        seed: int,
        lengths: Mapping[int, Sequence[int]] | None = None,
    ) -> None:
        self.lengths = lengths
        self.inputs = list(inputs)
        self.given = dict(given)
        self.user = dict(user)
        self.seed = seed
        self._check()
        self.bound = self._bound()

    def _check(self) -> None:
        known = {io.name: io for io in self.inputs}
        for option, names in (("--shape", self.given), ("--inputs", self.user)):
            for name in names:
                if name not in known:
                    raise UsageError(
                        f"{option}: the model has no input {name!r}", hint=f"its inputs: {', '.join(known)}"
                    )
        for name, shape in (*self.given.items(), *((name, values.shape) for name, values in self.user.items())):
            declared = known[name].shape
            if declared is None:
                continue
            clash = len(shape) != len(declared) or any(
                isinstance(d, int) and d != s for d, s in zip(declared, shape, strict=False)
            )
            if clash:
                raise UsageError(
                    f"input {name!r}: shape {list(shape)} does not fit {_dims(declared)}",
                    hint="correct --shape or --inputs",
                )
        for name, values in self.user.items():
            element = known[name].element
            if element.startswith("other:"):
                continue
            wanted = dtype(element)
            if values.dtype != wanted and not (element == "string" and values.dtype.kind in "USO"):
                raise UsageError(
                    f"--inputs: {name!r} is {values.dtype}, the model wants {element}", hint="save it with that type"
                )

    @property
    def symbols(self) -> list[str]:
        """Return the unknown sizes that a choice must fill, equal names once; first axes (the batch) stay out."""
        found: dict[str, None] = {}
        for io in self._open():
            for axis, size in enumerate(io.shape or ()):
                if not isinstance(size, int) and axis > 0 and size not in self.bound:
                    found[self._symbol(io, axis, size)] = None
        return list(found)

    def _bound(self) -> dict[str, int]:
        """Return the named sizes that the given shapes and data fix for other inputs."""
        shapes = {name: values.shape for name, values in self.user.items()} | self.given
        found: dict[str, int] = {}
        for io in self.inputs:
            for declared, size in zip(io.shape or (), shapes.get(io.name, ()), strict=False):
                if isinstance(declared, str) and declared:
                    found.setdefault(declared, int(size))
        return found

    def _open(self) -> list[Io]:
        return [io for io in self.inputs if io.name not in self.given and io.name not in self.user]

    @staticmethod
    def _symbol(io: Io, axis: int, size: int | str | None) -> str:
        return size if isinstance(size, str) and size else f"{io.name}[{axis}]"

    def feeds(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        """Return data for the given sizes of the unknown extents; a first axis that no symbol covers is 1."""
        rng = np.random.default_rng(self.seed)
        sizes = {**self.bound, **sizes}
        feeds: dict[str, Array] = {}
        for io in self.inputs:
            if io.name in self.user:
                values = self.user[io.name]
                feeds[io.name] = values.astype(object) if io.element == "string" else values
                continue
            if io.element.startswith("other:") or (io.shape is None and io.name not in self.given):
                raise UsageError(
                    f"input {io.name!r} ({io.element}) has no shape to make random data for",
                    hint="give it with --inputs FILE.npz",
                )
            shape = self.given.get(io.name)
            if shape is None:
                shape = tuple(
                    size if isinstance(size, int) else sizes.get(self._symbol(io, axis, size), 1)
                    for axis, size in enumerate(io.shape or ())
                )
            if int(np.prod(shape, dtype=np.float64)) > MANY_ELEMENTS:
                raise CannotRun(f"input {io.name!r} of shape {list(shape)} is too large to try")
            feeds[io.name] = random_values(io, shape, rng)
        return feeds

    def first(self, run: Callable[[Mapping[str, Array]], object]) -> tuple[Case, dict[str, int]]:
        """Return the first case on which `run` succeeds, and the sizes chosen for unknown extents.

        Raises `UsageError` that names the inputs when none does.
        """
        symbols = self.symbols
        reason = ""
        for length in self._lengths() if symbols else (1,):
            sizes = dict.fromkeys(symbols, length)
            try:
                feeds = self.feeds(sizes)
                run(feeds)
            except CannotRun as error:
                reason = reason or str(error)
                continue
            name = "user" if self.user else "given" if self.given else "first"
            return Case(name=name, feeds=feeds), sizes
        raise UsageError(
            self._unrunnable(reason), hint="give data that it runs on with --inputs FILE.npz, or sizes with --shape"
        )

    def _lengths(self) -> Sequence[int]:
        unknown = [sum(not isinstance(size, int) for size in (io.shape or ())[1:]) for io in self._open()]
        if self.lengths is not None:
            return self.lengths[min(max(max(unknown, default=1), 1), max(self.lengths))]
        return LENGTHS_3D if max(unknown, default=0) >= 3 else LENGTHS

    def _unrunnable(self, reason: str) -> str:
        random = self._open() + [io for io in self.inputs if io.name in self.given]
        suspects = [io for io in random if "int" in io.element or io.element in ("bool", "string")] or random
        if not suspects:
            return f"the model does not run on the inputs given: {reason}"
        named = ", ".join(f"{io.name!r} ({io.element}{_dims(io.shape)})" for io in suspects)
        return f"the model does not run on random data for {named}: {reason}"

    def more(self, sizes: Mapping[str, int], step: int, run: Callable[[Mapping[str, Array]], object]) -> list[Case]:
        """Return further cases for unknown extents: a multiple of `step`, one that is none, the smallest that runs."""
        symbols = list(sizes)
        if not symbols:
            return []
        base = max(sizes.values())
        even = max(-(-base // step), 1) * step
        wanted: list[tuple[str, Sequence[int]]] = [
            ("divisible", [even]),
            ("not divisible", [even + 1, even + step // 2 + 1, even - 1]),
            ("smallest", [size for size in SMALL if size < base]),
        ]
        found: list[Case] = []
        seen = {tuple(sizes[symbol] for symbol in symbols)}
        for name, lengths in wanted:
            for length in lengths:
                if length < 1 or length > 2**16 or (length,) * len(symbols) in seen:
                    continue
                try:
                    feeds = self.feeds(dict.fromkeys(symbols, length))
                    run(feeds)
                except CannotRun:
                    continue
                except (Crashed, TimedOut):
                    break
                seen.add((length,) * len(symbols))
                found.append(Case(name=name, feeds=feeds))
                break
        return found


def _dims(shape: Sequence[int | str | None] | None) -> str:
    return "" if shape is None else f" [{', '.join('?' if size is None else str(size) for size in shape)}]"


def describe(case: Case) -> str:
    """Return the case's name and shapes in one line."""
    return f"{case.name}: " + ", ".join(f"{name} {list(shape)}" for name, shape in case.shapes.items())
