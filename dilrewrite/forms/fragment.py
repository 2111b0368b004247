"""What a strategy emits, as plain data: layout operators, Convs at the core, and weight edits. No ONNX library here.

A fragment reads the site's input `X` and makes the tensor `result`. Its nodes are kept in three parts: `enter` brings
the input into the layout of the Convs, `core` are the Convs, `exit` brings their outputs back. Between the core and the
exit stands, after substitution, what followed the original Conv (an activation, a QuantizeLinear).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

X = "x"
"""The name under which a fragment reads the site's input."""

FILL = "fill"
"""The name under which a fragment's Pad reads the padding value: the zero point of a quantised input."""

AttributeValue = int | float | str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """An operator of the default domain: its type, the names it reads (empty: left out) and makes, its attributes."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]


class WeightEdit(Protocol):
    """A change of weights [out, in // group, *kernel] that moves values and writes zeros, and computes nothing."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the edited shape."""
        ...

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the edited weights; `zero` (a scalar) is what stands for zero."""
        ...


@dataclass(frozen=True, slots=True)
class TakeTaps:
    """Keep the taps `start <= t < stop` of a spatial axis."""

    axis: int
    start: int
    stop: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with the axis cut."""
        return *shape[: self.axis + 2], self.stop - self.start, *shape[self.axis + 3 :]

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the kept taps."""
        return weight[(slice(None),) * (self.axis + 2) + (slice(self.start, self.stop),)]


@dataclass(frozen=True, slots=True)
class RepeatOutputs:
    """Repeat all output channels: [O, ...] -> [times * O, ...], whole sets one after the other."""

    times: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with `times` as many outputs."""
        return shape[0] * self.times, *shape[1:]

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the repeated weights."""
        return np.concatenate([weight] * self.times)


@dataclass(frozen=True, slots=True)
class AddKernelAxis:
    """Give the kernel one more axis of size 1 before spatial axis `axis` (`axis` = rank: at the end)."""

    axis: int

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with the new axis."""
        return *shape[: self.axis + 2], 1, *shape[self.axis + 2 :]

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the reshaped weights."""
        return weight.reshape(self.shape(weight.shape))


@dataclass(frozen=True, slots=True)
class TapsToInputs:
    """Make taps input channels, tap-major: [O, C, *k] -> [O, prod(k) * C, 1, ...]."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the folded shape."""
        return shape[0], int(np.prod(shape[1:])), *(1,) * (len(shape) - 2)

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:  # noqa: ARG002
        """Return the folded weights."""
        return np.moveaxis(weight, 1, -1).reshape(self.shape(weight.shape))


@dataclass(frozen=True, slots=True)
class SpreadTaps:
    """Write the zeros of a dilated kernel into the weights: k -> d(k-1) + 1 on each spatial axis."""

    dilations: tuple[int, ...]

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the spread shape."""
        return *shape[:2], *(d * (k - 1) + 1 for d, k in zip(self.dilations, shape[2:], strict=True))

    def apply(self, weight: NDArray[np.generic], zero: NDArray[np.generic]) -> NDArray[np.generic]:
        """Return the spread weights."""
        spread = np.empty(self.shape(weight.shape), dtype=weight.dtype)
        spread[...] = zero
        spread[(slice(None), slice(None), *(slice(None, None, d) for d in self.dilations))] = weight
        return spread


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreConv:
    """A Conv of the fragment: what it reads and makes, its attributes, and how its weights come from the site's.

    `bias_times`: 0 none, 1 the site's bias, n its n-fold repetition. Pads are never negative.
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

    @property
    def max_dilation(self) -> int:
        """Return the largest dilation that acts on a kernel axis longer than 1."""
        return max((d for d, k in zip(self.dilations, self.kernel, strict=True) if k > 1), default=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreFill:
    """Where no tap touches data: the bias (zeros without one) as [1, O, 1, ...], tiled by the 1-D tensor `repeats`."""

    repeats: str
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """A rewritten Conv as data.

    `constants` are 1-D int64 tensors. `partial`: the core's outputs are partial sums, so nothing that followed the
    original Conv may move between core and exit. `opset` is the one that the nodes are spelled for.
    `multiply_adds` (of the core) and `elements_moved` (written by layout operators) are `None` when a size is unknown.
    `spelling` names the strategy with its settings, as `--strategy` takes it: it plans the form for other sizes.
    """

    strategy: str
    opset: int
    enter: tuple[Node, ...]
    core: tuple[CoreConv | CoreFill, ...]
    exit: tuple[Node, ...]
    constants: Mapping[str, tuple[int, ...]]
    result: str
    partial: bool = False
    multiply_adds: int | None = None
    elements_moved: int | None = None
    spelling: str = ""

    @property
    def max_dilation(self) -> int:
        """Return the largest dilation left in the core."""
        return max((core.max_dilation for core in self.core if isinstance(core, CoreConv)), default=1)

    @property
    def adds(self) -> bool:
        """Say whether partial sums are added outside of the Convs, each rounded to the element type."""
        return any(node.op == "Add" for node in self.exit)

    @property
    def node_count(self) -> int:
        """Return the number of nodes."""
        return len(self.enter) + len(self.core) + len(self.exit)

    def digest(self) -> str:
        """Return 16 hexadecimal digits that differ when the content does (the strategy's name and settings aside)."""
        parts = (
            self.opset,
            self.enter,
            self.core,
            self.exit,
            sorted(self.constants.items()),
            self.result,
            self.partial,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
