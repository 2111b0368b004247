"""What a strategy emits, as plain data: layout operators, Convs at the core, and weight edits. No ONNX library here.

A fragment reads the site's input `X` and makes the tensor `result`, step by step. The layout operators in front bring
the input into the layout of the Convs (`enter`), then come the Convs (`core`), then what brings their outputs back
(`exit`). Between core and exit stand, as kept steps, the nodes that followed the original Conv (an activation, a
QuantizeLinear).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dilrewrite.errors import FailedError
from dilrewrite.forms.geometry import acting_dilation

X = "x"
"""The name under which a fragment reads the site's (first) input; see `entering`."""

FILL = "fill"
"""The name under which a fragment's Pad reads the padding value: the zero point of a quantised input."""

AttributeValue = int | float | str | tuple[int, ...]


def entering(count: int) -> tuple[str, ...]:
    """Return the names under which a fragment reads the inputs of its site: x, x1, x2, ..."""
    return tuple(f"{X}{place or ''}" for place in range(count))


@dataclass(frozen=True, slots=True)
class Node:
    """An operator of the default domain: its type, the names it reads (empty: left out) and makes, its attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]


_GIVEN = re.compile(rf"{X}\d*")
"""The names of the inputs of a site."""


class WeightEdit(Protocol):
    """A change of weights [out, in // group, *kernel] that moves values and writes zeros, and computes nothing."""

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the edited weights; `zero` (a scalar) is what stands for zero."""
        ...


@dataclass(frozen=True, slots=True)
class TakeTaps:
    """Keep the taps `start <= t < stop` of a spatial axis, every `step`-th of them."""

    axis: int
    start: int
    stop: int
    step: int = 1

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the kept taps."""
        return weight[(slice(None),) * (self.axis + 2) + (slice(self.start, self.stop, self.step),)]


@dataclass(frozen=True, slots=True)
class Turn:
    """Bring the weights of a ConvTranspose into the layout of a Conv's: flip the kernel, exchange the channels.

    [C, O // group, *k] -> [O, C // group, *k], in each group by itself; done twice it is undone.
    """

    group: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the turned weights."""
        return shape[1] * self.group, shape[0] // self.group, *shape[2:]

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the turned weights."""
        groups = weight.reshape(self.group, -1, *weight.shape[1:]).swapaxes(1, 2)
        return np.flip(groups.reshape(self.shape(weight.shape)), tuple(range(2, weight.ndim)))


@dataclass(frozen=True, slots=True)
class RepeatOutputs:
    """Repeat all output channels: [O, ...] -> [times * O, ...], whole sets one after the other."""

    times: int

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the repeated weights."""
        return np.concatenate([weight] * self.times)


@dataclass(frozen=True, slots=True)
class TakeOutputs:
    """Keep the first of `times` equal sets of output channels: [times * O, ...] -> [O, ...]."""

    times: int

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the first set."""
        return weight[: len(weight) // self.times]


@dataclass(frozen=True, slots=True)
class DropKernelAxes:
    """Drop spatial axes on which the kernel has size 1."""

    axes: tuple[int, ...]

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the weights without these axes."""
        return weight.squeeze(tuple(axis + 2 for axis in self.axes))


@dataclass(frozen=True, slots=True)
class PerChannel:
    """Reshape a constant with one value per channel so that it fits a tensor with `rank` axes behind the channels."""

    rank: int

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the reshaped constant."""
        return weight.reshape(-1, *(1,) * self.rank)


@dataclass(frozen=True, slots=True)
class AddKernelAxis:
    """Give the kernel one more axis of size 1 before spatial axis `axis` (`axis` = rank: at the end)."""

    axis: int

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the reshaped weights."""
        return np.expand_dims(weight, self.axis + 2)


@dataclass(frozen=True, slots=True)
class SwapKernelAxes:
    """Exchange two spatial axes of the kernel."""

    first: int
    second: int

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the turned weights."""
        return np.ascontiguousarray(np.swapaxes(weight, self.first + 2, self.second + 2))


@dataclass(frozen=True, slots=True)
class AddAxis:
    """Give a constant one more axis of size 1, at `axis`."""

    axis: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with the new axis."""
        return *shape[: self.axis], 1, *shape[self.axis :]

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the constant with the new axis."""
        return weight.reshape(self.shape(weight.shape))


@dataclass(frozen=True, slots=True)
class TapsToInputs:
    """Make taps input channels, tap-major: [O, C, *k] -> [O, prod(k) * C, 1, ...]."""

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the folded weights."""
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1, *(1,) * (weight.ndim - 2))


@dataclass(frozen=True, slots=True)
class SpreadTaps:
    """Write the zeros of a dilated kernel into the weights: k -> d(k-1) + 1 on each spatial axis."""

    dilations: tuple[int, ...]

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the spread weights."""
        kernel = (d * (k - 1) + 1 for d, k in zip(self.dilations, weight.shape[2:], strict=True))
        spread = np.empty((*weight.shape[:2], *kernel), weight.dtype)
        spread[...] = zero
        taps = (slice(None), slice(None), *(slice(None, None, d) for d in self.dilations))
        spread[taps] = weight
        return spread


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConv:
    """A Conv of the fragment: what it reads and makes, its attributes, and how its weights come from the site's.

    `bias_times`: 0 none, 1 the site's bias, n its n-fold repetition. Pads are never negative. `of`: which node of the
    site it computes, counted from 0.
    """

    source: str
    output: str
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int
    weight: tuple[WeightEdit, ...]
    bias_times: int
    of: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreFill:
    """Where no tap touches data: the bias (zeros without one) as [1, O, 1, ...], tiled by the 1-D tensor `repeats`."""

    repeats: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A node of the user's model that goes on in the fragment: node `of` of its site and of what follows it.

    It reads `sources`, by place, in place of its own inputs, constants with `edits`, and has `attributes` in place of
    its own (`None`: without it).
    """

    of: int
    sources: Mapping[int, str]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    edits: Mapping[int, tuple[WeightEdit, ...]] = field(default_factory=dict)


Core = CoreConv | CoreFill
Step = Node | Core | Kept


def reads(step: Step) -> tuple[str, ...]:
    """Return the names that a step reads, weights and bias of the site aside."""
    if isinstance(step, Node):
        return tuple(name for name in step.inputs if name)
    if isinstance(step, Kept):
        return tuple(step.sources.values())
    return (step.repeats,) if isinstance(step, CoreFill) else (step.source,)


def makes(step: Step) -> tuple[str, ...]:
    """Return the names that a step makes."""
    return step.outputs if isinstance(step, Node | Kept) else (step.output,)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A strategy's no, in a sentence."""

    strategy: str
    """Name of the form."""
    reason: str
    """Why it does not apply, or which proof failed."""


class MalformedFragmentError(FailedError):
    """The steps of a fragment cannot be run in their order; the text names the strategy and the step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A rewritten Conv as data: its steps in the order in which they run.

    `constants` are 1-D int64 tensors. `partial`: the core's outputs are partial sums, so nothing that followed the
    original Conv may move between core and exit. `region`: layout operators (masks, cuts) may stand between cores.
    `opset` is the one that the nodes are spelled for.
    `multiply_adds` (of the core) and `elements_moved` (written by layout operators) are `None` when a size is unknown.
    `spelling` names the strategy with its settings, as `--strategy` takes it: it plans the form for other sizes.
    `in_floats`: each Conv on integers is a Conv in float32, between DequantizeLinear and what makes integers of it.
    """

    strategy: str
    opset: int
    steps: tuple[Step, ...]
    constants: Mapping[str, tuple[int, ...]]
    results: tuple[str, ...]
    partial: bool = False
    region: bool = False
    multiply_adds: int | None = None
    elements_moved: int | None = None
    spelling: str = ""
    in_floats: bool = False

    def _bounds(self) -> tuple[int, int]:
        """Return the places of the first step of the core and of the first of the exit."""
        inner = [place for place, step in enumerate(self.steps) if not isinstance(step, Node)]
        return (inner[0], inner[-1] + 1) if inner else (len(self.steps), len(self.steps))

    @property
    def enter(self) -> tuple[Node, ...]:
        """Return the layout operators in front of the core."""
        return tuple(step for step in self.steps[: self._bounds()[0]] if isinstance(step, Node))

    @property
    def core(self) -> tuple[Core, ...]:
        """Return the Convs, and what stands for one where no tap touches data."""
        return tuple(step for step in self.steps if isinstance(step, Core))

    @property
    def exit(self) -> tuple[Node, ...]:
        """Return the layout operators and sums behind the core."""
        return tuple(step for step in self.steps[self._bounds()[1] :] if isinstance(step, Node))

    @property
    def max_dilation(self) -> int:
        """Return the largest dilation left in the core."""
        return self.dilation_of()

    def dilation_of(self, node: int | None = None) -> int:
        """Return the largest dilation left in the Convs that compute a node of the site (`None`: in all)."""
        convs = (core for core in self.core if isinstance(core, CoreConv) and node in (None, core.of))
        return max((acting_dilation(core.kernel, core.dilations) for core in convs), default=1)

    @property
    def adds(self) -> bool:
        """Say whether partial sums are added outside of the Convs, each rounded to the element type."""
        return any(node.op == "Add" for node in self.exit)

    def keeping(self, count: int, nodes: int = 1) -> Fragment:
        """Return the fragment with the `count` nodes behind the `nodes` of the site as steps between core and exit.

        It is the same where they stay as they are: behind partial sums, and behind a lone Conv with no exit.
        """
        if count == 0 or self.partial or not (self.exit or len(self.core) > 1):
            return self
        steps: list[Step] = [*self.enter]
        for core in self.core:
            names = [*(f"{core.output}/{place}" for place in range(count)), core.output]
            steps.append(replace(core, output=names[0]))
            steps += (
                Kept(of=nodes - 1 + of, sources={0: names[of - 1]}, outputs=(names[of],)) for of in range(1, count + 1)
            )
        return replace(self, steps=(*steps, *self.exit))

    def check(self) -> None:
        """Raise `MalformedFragmentError`, which names the step, unless the steps run in their order.

        Everything read was made before, each name is made once, no layout operator stands inside the core, and the
        output is made.
        """
        for problem in self._problems():
            hint = "tell its author; until it is mended uninstall its package, or name another form with --strategy"
            raise MalformedFragmentError(f"the strategy {self.strategy} is broken: {problem}", hint=hint)

    def _problems(self) -> Iterator[str]:
        first, after = self._bounds()
        makers = {name: place for place, step in enumerate(self.steps) for name in makes(step)}
        given = {name for step in self.steps for name in reads(step) if _GIVEN.fullmatch(name)}
        done: dict[str, int | None] = dict.fromkeys((*given, FILL, *self.constants))
        for place, step in enumerate(self.steps):
            if first <= place < after and isinstance(step, Node) and not self.region:
                yield f"{self._named(place)} stands inside the core, before {self._named(after - 1)}"
            for name in reads(step):
                if name not in done:
                    late = f"only {self._named(makers[name])} makes" if name in makers else "no step makes"
                    yield f"{self._named(place)} reads {name!r}, which {late}"
            for name in makes(step):
                if name in done:
                    earlier = done[name]
                    by = "is given" if earlier is None else f"{self._named(earlier)} makes too"
                    yield f"{self._named(place)} makes {name!r}, which {by}"
                done[name] = place
        for name in self.results:
            if name not in makers:
                yield f"no step of {self.strategy} makes its output {name!r}"

    def _named(self, place: int) -> str:
        """Return a step by its place, its part of the fragment, its operator and the name that it makes."""
        step, (first, after) = self.steps[place], self._bounds()
        part = "enter" if place < first else "core" if place < after else "exit"
        op = step.op if isinstance(step, Node) else type(step).__name__.removeprefix("Core")
        return f"step {place + 1} of {self.strategy} ({part}, {op}, {makes(step)[0]})"

    def digest(self) -> str:
        """Return 16 hexadecimal digits that differ when the content does (the strategy's name and settings aside)."""
        parts = (self.opset, self.steps, sorted(self.constants.items()), self.results, self.partial, self.in_floats)
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
