"""The ways to compute a dilated convolution in PyTorch, one file each. PyTorch's own autograd differentiates them.

A method is a module of this folder that defines `METHOD`. It sees a geometry whose sizes are all known, says in a
sentence why it does not apply, or returns a function of input, weight and bias.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, cast

from dilrewrite.discover import discover
from dilrewrite.errors import UsageError
from dilrewrite.forms.geometry import ConvGeometry

if TYPE_CHECKING:
    from torch import Tensor

Form = Callable[["Tensor", "Tensor", "Tensor | None"], "Tensor"]
"""Computes the output [N, O, *extents] from input [N, C, *extents], weight [O, C / group, *kernel] and bias [O]."""


class Method(Protocol):
    """A way to compute a convolution."""

    @property
    def name(self) -> str:
        """Return the name of its file."""
        ...

    @property
    def original(self) -> str:
        """Return its name in the 2016 benchmark, "Situationally faster dilated convolutions"; empty when it is new."""
        ...

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Return why it does not apply, with the numbers, or None."""
        ...

    def form(self, geometry: ConvGeometry) -> Form:
        """Return what computes a convolution of this geometry; only where it is not refused."""
        ...


@functools.cache
def methods() -> dict[str, Method]:
    """Return every method by its name, the native form first."""
    found = cast("dict[str, Method]", discover(sys.modules[__name__], "METHOD"))
    return {"keep": found.pop("keep"), **found}


def method(name: str) -> Method:
    """Return the method of a name; raises `UsageError` that lists all for an unknown one."""
    known = methods()
    if name not in known:
        raise UsageError(f"there is no method {name!r}", hint=f"known are {', '.join(known)}")
    return known[name]


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
