"""The ways to compute a dilated convolution in PyTorch. PyTorch's own autograd differentiates them.

A method is a strategy, run in torch, or a module of this folder that defines `METHOD`. It sees a geometry whose sizes
are all known, says in a sentence why it does not apply, or returns a function of input, weight and bias.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast, final

from dilrewrite.discover import discover
from dilrewrite.errors import UsageError, choices
from dilrewrite.forms.fragment import Fragment
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Refusal, plan, strategies, with_layout
from dilrewrite.pytorch.fragments import OPSET, program

if TYPE_CHECKING:
    from torch import Tensor

Form = Callable[["Tensor", "Tensor", "Tensor | None"], "Tensor"]
"""Computes the output [N, O, *extents] from input [N, C, *extents], weight [O, C / group, *kernel] and bias [O]."""


class Method(Protocol):
    """A way to compute a convolution."""

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Return why it does not apply, with the numbers, or None."""
        ...

    def form(self, geometry: ConvGeometry) -> Form:
        """Return what computes a convolution of this geometry; only where it is not refused."""
        ...


@final
@dataclass(frozen=True, slots=True)
class FromStrategy:
    """The strategy of this name, its fragment run in torch."""

    name: str

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Return the strategy's refusal, what torch lacks for it, or that nothing depends on input and weight."""
        if geometry.dead:
            return (
                f"no tap of kernel {geometry.kernel} touches data of extents {geometry.extents}: it is the bias alone"
            )
        fragment = self._plan(geometry)
        if isinstance(fragment, Refusal):
            return fragment.reason
        try:
            program(fragment)
        except NotImplementedError as lack:
            return str(lack)
        return None

    def form(self, geometry: ConvGeometry) -> Form:
        """Return the fragment's program."""
        fragment = self._plan(geometry)
        assert isinstance(fragment, Fragment), "refused before"
        return program(fragment).run

    def _plan(self, geometry: ConvGeometry) -> Fragment | Refusal:
        return plan(self.name, with_layout(strategies()[self.name], "reshape"), geometry, OPSET)


@functools.cache
def methods() -> dict[str, Method]:
    """Return every method by its name, the native form first: the files of this folder, and the strategies."""
    files = cast("dict[str, Method]", discover(sys.modules[__name__], "METHOD"))
    named: dict[str, Method] = {**{name: FromStrategy(name) for name in strategies()}, **files}
    return {"keep": named.pop("keep"), **dict(sorted(named.items()))}


def method(name: str) -> Method:
    """Return the method of a name; raises `UsageError` that lists all for an unknown one."""
    named = methods()
    if name not in named:
        raise UsageError(f"there is no method {name!r}", hint=choices(name, named, "known are"))
    return named[name]


def geometry_of(
    x: Sequence[int],
    weight: Sequence[int],
    *,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
    element: str = "float32",
) -> ConvGeometry:
    """Return the geometry of a convolution of tensors with these shapes; `padding` is (begin, end) of each axis."""
    return ConvGeometry(
        batch=x[0],
        in_channels=x[1],
        out_channels=weight[0],
        group=groups,
        extents=tuple(x[2:]),
        kernel=tuple(weight[2:]),
        strides=tuple(stride),
        dilations=tuple(dilation),
        pads_begin=tuple(begin for begin, _ in padding),
        pads_end=tuple(end for _, end in padding),
        bias=bias,
        element=element,
    )


@functools.lru_cache(maxsize=4096)
def prepare(name: str, geometry: ConvGeometry) -> Form:
    """Return what computes a convolution of this geometry by a method; the same for the same question.

    Raises `UsageError` with the method's reason where it does not apply.
    """
    chosen = method(name)
    reason = geometry.malformed() or geometry.invalid() or chosen.refusal(geometry)
    if reason:
        raise UsageError(f"{name}: {reason}", hint="take another method")
    return chosen.form(geometry)
