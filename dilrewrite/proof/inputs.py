"""Chooses what to feed a model: shapes that it runs on, seeded random data, and the user's own data."""

from __future__ import annotations

import itertools
import math
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from dilrewrite import options
from dilrewrite.errors import UsageError, shown
from dilrewrite.model.elements import dtype
from dilrewrite.model.light import value_shape
from dilrewrite.proof.roles import MANY_SIZES, symbol_of
from dilrewrite.runtimes import Array, CannotRun, Crashed, Io, TimedOut
from dilrewrite.staging import is_file

LENGTHS = (64, 32, 128, 224, 256, 16, 100, 512, 8, 4, 1000, 4000, 2, 1, 16000)
"""What unknown extents are tried with, in this order, until the model runs."""
LENGTHS_3D = (32, 16, 24, 48, 64, 96, 8, 4, 2, 1, 128)
"""The same where an input has three or more unknown extents besides the batch."""
USUAL_LENGTHS = {1: LENGTHS, 2: LENGTHS, 3: LENGTHS_3D}
"""Both, by the largest number of unknown extents in one input."""
SMALL = (*range(1, 17), 20, 24, 32, 40, 48, 64)
"""What unknown extents are tried with for the smallest size."""
WIDE, WIDE_ELEMENTS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384), 2**22
"""Extents for dilations that the other cases do not reach, and how many elements the inputs may have then."""

BATCHES = (2, 3, 4, 5, 6, 8, 10, 12, 16)
"""What unknown batches are tried with where the model does not run on one sample."""
MORE_BATCHES, MORE_ELEMENTS = range(7, 65), 2**22
"""Batches tried after all else where the model runs on nothing, and how many elements the inputs may have then."""
LARGER, LARGER_ELEMENTS = (6, 4, 3), 2**20
"""How much larger the second batch is than the first, as far as the inputs have no more elements than this."""
LONG_ELEMENTS = 2**18
"""A batch that may be an extent is not made so long that the inputs have more elements than this."""

INTEGERS = ("int16", "int32", "int64", "uint16", "uint32", "uint64")
WIDE_INTEGERS = (101, 11)
"""Below what random whole numbers are in the case that has larger ones than 0 and 1."""
FEW_INTEGERS = 8
"""A row of so few whole numbers may be a shape, pads or sizes: they stay small."""

MANY_ELEMENTS = 2**26
"""A random input larger than this many elements is not tried."""
MOST_SIZE = 2**40
"""A longer axis fits into no memory."""

SPELL_PADS = "convert the model to opset 11 or later (onnx.version_converter), or export it with explicit pads"
"""What to do about a Conv with SAME_* pads and dilation, which ONNX Runtime does not run, where no Pad can be put."""

UNREADABLE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error),
    *(NotImplementedError, RuntimeError),  # a packing or a password that the module for archives has not
    *(ValueError, TypeError, AttributeError, SyntaxError, tokenize.TokenError),  # a header that is no Python literal
    *(OverflowError, MemoryError),  # a header with sizes that nothing holds
)
"""What NumPy raises for files that are no archive of arrays."""

Sizes = Mapping[str, int]
"""What unknown sizes are."""
Run = Callable[[Mapping[str, Array]], object]
"""Runs a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One set of inputs: why it is there (`first`, `divisible`, ..., `user`), and the data."""

    name: str
    feeds: Mapping[str, Array]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every input."""
        return {name: tuple(values.shape) for name, values in self.feeds.items()}


def parse_shapes(texts: Sequence[str], inputs: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Parse `NAME:1x3x224x224` (a scalar: `NAME:`), or sizes alone of the only input; else raises `UsageError`."""
    return options.sizes("shape", texts, inputs, least=0, most=MOST_SIZE)


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
        zipped = f": {error}" if zipfile.is_zipfile(path) else ""  # NumPy takes all else for pickles
        raise UsageError(f"{problem}{zipped}", hint=hint) from error
    others = [repr(name) for name, values in found.items() if not isinstance(values, np.ndarray)]
    if others:
        raise UsageError(f"{problem}: {', '.join(others)} is none", hint=hint)
    return found


def random_values(io: Io, shape: tuple[int, ...], rng: np.random.Generator, below: int = 2) -> Array:
    """Return seeded random data: normal for floats, coin flips for bool, integers from 0 on (to 127 for 8 bits).

    Integers are less than `below`. A single integer is 1: where it is the count of a Loop, the Loop runs.
    """
    if io.element == "string":
        return np.full(shape, "a", dtype=object)
    kind = dtype(io.element)
    if shape == () and "int" in io.element:
        return np.ones(shape, kind)
    if "int" in io.element or io.element == "bool":
        high = {"bool": 2, "int8": 128, "uint8": 128}.get(io.element, below)
        return rng.integers(0, high, size=shape).astype(kind)
    values = rng.standard_normal(shape)
    return (values + 1j * rng.standard_normal(shape) if kind.kind == "c" else values).astype(kind)


def _check_array(io: Io) -> None:
    """Raise `UsageError` for an input that no array can be, as a sequence."""
    kind = io.element.removeprefix("other:")
    if "seq(" in kind or "map(" in kind:
        raise UsageError(
            f"input {io.name!r} is a {kind}: no data can be made for it and no .npz file holds it, so the model cannot "
            "be run",
            hint="take a version with tensor inputs; optimize --verify none --strategy NAME rewrites without running",
        )


def check_names(shapes: Collection[str], data: Collection[str], inputs: Sequence[str]) -> None:
    """Raise `UsageError` when --shape or --inputs names what is no input."""
    for option, names in (("--shape", shapes), ("--inputs", data)):
        for name in names:
            if name not in inputs:
                raise UsageError(f"{option}: the model has no input {name!r}", hint=f"its inputs: {', '.join(inputs)}")


def check_shapes(shapes: Mapping[str, tuple[int, ...]], proto: ModelProto) -> None:
    """Raise `UsageError` for sizes that do not fit what the model declares of its inputs."""
    for value in proto.graph.input:
        if value.name in shapes:
            _check_shape(Io(name=value.name, element="", shape=value_shape(value)[1]), shapes[value.name])


def _check_shape(io: Io, shape: tuple[int, ...]) -> None:
    declared = shape if io.shape is None else io.shape
    pairs = zip(shape, declared, strict=False)
    if len(shape) != len(declared) or any(isinstance(size, int) and size != own for own, size in pairs):
        problem = f"input {io.name!r}: shape {list(shape)} does not fit {_dims(declared)}"
        raise UsageError(problem, hint="correct --shape or --inputs")


def _check_values(io: Io, values: Array) -> None:
    _check_array(io)
    if io.element.startswith("other:") or values.dtype == dtype(io.element):
        return
    if not (io.element == "string" and values.dtype.kind in "USO"):
        problem = f"--inputs: {io.name!r} is {values.dtype}, the model wants {io.element}"
        raise UsageError(problem, hint="save it with that type")


class Chooser:
    """Chooses cases for one model. `given` are shapes by input, `user` data by input (from --shape and --inputs).

    `lengths`: what unknown extents are tried with, by the largest number of them in one input. `roles`: which unknown
    sizes are extents and which are batches, as `Convolutions.roles` tells; otherwise a first axis is a batch.
    `channels`: unknown sizes that convolutions need, as `Convolutions.channels` tells.
    """

    def __init__(
        self,
        inputs: Sequence[Io],
        *,
        given: Mapping[str, tuple[int, ...]],
        user: Mapping[str, Array],
        seed: int,
        lengths: Mapping[int, Sequence[int]] = USUAL_LENGTHS,
        roles: Mapping[str, bool] | None = None,
        channels: Sizes | None = None,
    ) -> None:
        self.inputs, self.user, self.seed, self.lengths = list(inputs), dict(user), seed, lengths
        self.roles = dict(roles or {})
        check_names(given, user, [io.name for io in inputs])
        known = {io.name: io for io in inputs}
        own = {name: tuple(values.shape) for name, values in user.items()}
        for name, shape in (*given.items(), *own.items()):
            _check_shape(known[name], shape)
        for name, values in user.items():
            _check_values(known[name], values)
        self.fixed = {**given, **own}
        self.open = [io for io in inputs if io.name not in self.fixed]
        self.bound: dict[str, int] = {}
        """The named sizes that the given shapes and data fix for other inputs, and the channels."""
        for io in inputs:
            for declared, size in zip(io.shape or (), self.fixed.get(io.name, ()), strict=False):
                if isinstance(declared, str) and declared:
                    self.bound.setdefault(declared, int(size))
        self.bound = {**(channels or {}), **self.bound}
        self.places: dict[str, list[tuple[str, int]]] = {}
        """The unknown sizes that a choice must fill, with the inputs and axes that have them."""
        for io in self.open:
            for axis, size in enumerate(io.shape or ()):
                symbol = symbol_of(io.name, axis, None if isinstance(size, int) else size)
                if not isinstance(size, int) and symbol not in self.bound:
                    self.places.setdefault(symbol, []).append((io.name, axis))

    @property
    def extents(self) -> list[str]:
        """Return the unknown sizes that are extents, equal names once."""
        some = self.places.items()
        return [symbol for symbol, at in some if self.roles.get(symbol, any(axis > 0 for _, axis in at))]

    @property
    def batches(self) -> list[str]:
        """Return the unknown sizes that are batches, equal names once."""
        extents = self.extents
        return [symbol for symbol in self.places if symbol not in extents]

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """Return the shape of every input for the given unknown sizes; one that is not given is 1."""
        sizes = {**self.bound, **sizes}
        return self.fixed | {
            io.name: tuple(
                size if isinstance(size, int) else sizes.get(symbol_of(io.name, axis, size), 1)
                for axis, size in enumerate(io.shape)
            )
            for io in self.open
            if io.shape is not None
        }

    def feeds(self, sizes: Sizes, below: Mapping[str, int] | None = None) -> dict[str, Array]:
        """Return data for the given unknown sizes; one that is not given is 1.

        `below`: what an input's integers are less than, where that is not 2.
        """
        rng, shapes = np.random.default_rng(self.seed), self.shapes(sizes)
        feeds: dict[str, Array] = {}
        for io in self.inputs:
            if io.name in self.user:
                values = self.user[io.name]
                feeds[io.name] = values.astype(object) if io.element == "string" else values
                continue
            _check_array(io)
            if io.element.startswith("other:") or io.name not in shapes:
                problem = f"input {io.name!r} ({io.element}) has no shape to make random data for"
                raise UsageError(problem, hint="give it with --inputs FILE.npz")
            shape = shapes[io.name]
            if math.prod(shape) > MANY_ELEMENTS:
                raise CannotRun(f"input {io.name!r} of shape {list(shape)} is too large to try")
            feeds[io.name] = random_values(io, shape, rng, (below or {}).get(io.name, 2))
        return feeds

    def _elements(self, sizes: Sizes) -> int:
        """Return how many elements all inputs would have."""
        return sum(map(math.prod, self.shapes(sizes).values()))

    # -- the first case ------------------------------------------------------------------------------------------

    def first(self, run: Run) -> tuple[Case, dict[str, int]]:
        """Return the first case on which `run` succeeds, and the sizes chosen: extents, and batches that are not 1.

        Raises `UsageError` that names the inputs when none does.
        """
        reason = ""
        for sizes in self._first_sizes():
            try:
                feeds = self.feeds(sizes)
                run(feeds)
            except CannotRun as error:
                reason = reason or str(error)
                continue
            name = "user" if self.user else "given" if self.fixed else "first"
            return Case(name=name, feeds=feeds), sizes
        hint = "give data that it runs on with --inputs FILE.npz, or sizes with --shape"
        if "AutoPadType::SAME" in reason:  # ONNX Runtime's, of a Conv whose pads could not be spelled out for it
            hint = SPELL_PADS
        raise UsageError(self._unrunnable(reason), hint=hint)

    def _first_sizes(self) -> Iterator[dict[str, int]]:
        """Yield sizes to try: one sample, the smallest batch that runs, all sizes alike, then every batch up to 64."""
        extents, batches = self.extents, self.batches
        lengths = self._lengths(extents) if extents else (1,)
        yield from (dict.fromkeys(extents, length) for length in lengths)
        if not batches:
            return
        for batch in BATCHES:
            yield from (dict.fromkeys(extents, length) | dict.fromkeys(batches, batch) for length in lengths[:2])
        yield from (dict.fromkeys([*extents, *batches], length) for length in self._lengths([*extents, *batches]))
        last = [dict.fromkeys(extents, lengths[0]) | dict.fromkeys(batches, batch) for batch in MORE_BATCHES]
        yield from (sizes for sizes in last if self._elements(sizes) <= MORE_ELEMENTS)

    def _lengths(self, symbols: Sequence[str]) -> Sequence[int]:
        """Return what to try, by the largest number of the symbols in one input."""
        counts = Counter(name for symbol in symbols for name, _ in self.places[symbol])
        return self.lengths[min(max(counts.values(), default=1), max(self.lengths))]

    def _unrunnable(self, reason: str) -> str:
        random = self.open + [io for io in self.inputs if io.name in self.fixed and io.name not in self.user]
        suspects = [io for io in random if "int" in io.element or io.element in ("bool", "string")] or random
        if not suspects:
            return f"the model does not run on the inputs given: {reason}"
        named = ", ".join(f"{io.name!r} ({io.element}{_dims(io.shape)})" for io in suspects)
        return f"the model does not run on random data for {named}: {reason}"

    # -- further cases -------------------------------------------------------------------------------------------

    def more(
        self,
        sizes: Sizes,
        step: int,
        run: Run,
        reached: Callable[[Mapping[str, tuple[int, ...]]], bool] = lambda _: True,
    ) -> list[Case]:
        """Return further cases, each of the first sizes that run; `sizes` are those of the first case.

        Extents: a multiple of `step`, none, and the smallest. All sizes: each another one, as far as the model allows
        it. Batches: more than before, and still more, as items may be treated by their place; and one that may be an
        extent, for all that is known, is made as long as one. Where none of these shapes is one that `reached` asks
        for, extents that are. Integers: larger ones than 0 and 1.
        """
        extents, batches, chosen = self.extents, self.batches, dict.fromkeys(self.places, 1) | dict(sizes)
        found: list[Case] = []
        seen = [self.shapes(chosen)]

        def add(name: str, attempts: Iterable[Sizes]) -> None:
            fresh = ({**chosen, **attempt} for attempt in attempts)
            case = self.attempt(name, (sizes for sizes in fresh if self.shapes(sizes) not in seen), run)
            if case is not None:
                seen.append(case.shapes)
                found.append(case)

        if extents:
            base = max(chosen[extent] for extent in extents)
            even = max(-(-base // step), 1) * step
            add("divisible", self._alike(extents, [even], chosen))
            add("not divisible", self._alike(extents, [even + 1, even + step // 2 + 1, even - 1], chosen))
            add("smallest", self._alike(extents, [size for size in SMALL if size < base], chosen))
        add("unequal", self._unequal(chosen))
        base = max((chosen[batch] for batch in batches), default=0)
        if batches:
            add("batch", self._alike(batches, [base + more for more in (1, 2, 3, base)], chosen))
        add("long", self.longer([batch for batch in batches if batch not in self.roles], chosen))
        if any(case.name == "batch" for case in found):
            larger = [base + more for more in LARGER] + [base * 4, base * 3]  # it may be a multiple alone that runs
            add("larger batch", self._alike(batches, larger, chosen, LARGER_ELEMENTS))
        if extents and not any(map(reached, seen)):
            wide = self._alike(extents, WIDE, chosen, WIDE_ELEMENTS)
            add("wide", (sizes for sizes in wide if reached(self.shapes(sizes))))
        integers = self._integers(chosen, run)
        return found if integers is None else [*found, integers]

    def _alike(
        self, symbols: Sequence[str], lengths: Iterable[int], sizes: Sizes, most: float = math.inf
    ) -> list[dict[str, int]]:
        """Return sizes with all the symbols of one length, as far as the inputs have no more than `most` elements."""
        found = [{**sizes, **dict.fromkeys(symbols, length)} for length in lengths]
        return [attempt for attempt in found if self._elements(attempt) <= most]

    def longer(self, symbols: Sequence[str], sizes: Sizes) -> list[dict[str, int]]:
        """Return sizes with some made as long as extents are, the longest first."""
        return self._alike(symbols, sorted(LENGTHS, reverse=True), sizes, LONG_ELEMENTS)

    def _integers(self, sizes: Sizes, run: Run) -> Case | None:
        """Return a case of large integers in every input of them; where that does not run, in as many as it does."""
        shapes = self.shapes(sizes)
        names = [io.name for io in self.inputs if io.element in INTEGERS and io.name not in self.user]
        names = [name for name in names if math.prod(shapes[name]) > (FEW_INTEGERS if len(shapes[name]) == 1 else 1)]
        if not names:
            return None
        case = self.attempt("integers", [sizes], run, dict.fromkeys(names, WIDE_INTEGERS[0]))
        wide: dict[str, int] = {}
        for name in names[:MANY_SIZES] if case is None else ():
            for below in WIDE_INTEGERS[len(names) == 1 :]:  # one alone was tried
                more = self.attempt("integers", [sizes], run, {**wide, name: below})
                if more is not None:
                    case, wide[name] = more, below
                    break
        return case

    def attempt(
        self, name: str, attempts: Iterable[Sizes], run: Run, below: Mapping[str, int] | None = None
    ) -> Case | None:
        """Return a case of the first sizes that run; `None` where none does, or the model's process ended."""
        for sizes in attempts:
            if not all(1 <= size <= 2**16 for size in sizes.values()):
                continue
            try:
                feeds = self.feeds(sizes, below)
                run(feeds)
            except CannotRun:
                continue
            except (Crashed, TimedOut):
                return None
            return Case(name=name, feeds=feeds)
        return None

    def _unequal(self, chosen: Sizes) -> Iterator[dict[str, int]]:
        """Yield sizes that differ: each from each, those of one axis from another's, those of one input."""
        keys: list[Callable[[str], object]] = [
            lambda symbol: symbol,
            lambda symbol: self.places[symbol][0][1],
            lambda symbol: self.places[symbol][0][0],
        ]
        kinds = (self.extents, self.batches)
        for some in (kinds, kinds[:1]):
            for key, unit in itertools.product(
                keys, (1, 8, 32)
            ):  # networks that halve their input often take few sizes
                sizes: dict[str, int] = {}
                for symbols, step in zip(some, (unit, 1), strict=False):
                    turns = list(dict.fromkeys(map(key, symbols)))
                    sizes |= {symbol: chosen[symbol] + step * turns.index(key(symbol)) for symbol in symbols}
                yield sizes


def _dims(shape: Sequence[int | str | None] | None) -> str:
    return "" if shape is None else f" [{', '.join('?' if size is None else str(size) for size in shape)}]"


def describe(case: Case) -> str:
    """Return the case's name and shapes in one line."""
    return f"{case.name}: " + ", ".join(f"{name} {list(shape)}" for name, shape in case.shapes.items())
