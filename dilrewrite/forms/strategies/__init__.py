"""The exact forms of a dilated Conv, one file each; `plan` turns a geometry into a fragment or a refusal.

The file's name is the strategy's name on the command line, in reports and in test ids.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, cast

from dilrewrite import settings
from dilrewrite.discover import discover
from dilrewrite.forms import transposed
from dilrewrite.forms.builder import END, Builder, Cut, Extent, Tensor, Unsupported
from dilrewrite.forms.fragment import Fragment, TakeTaps
from dilrewrite.forms.fragment import Refusal as Refusal
from dilrewrite.forms.geometry import ConvGeometry, Limit
from dilrewrite.forms.sandwich import Sandwich

FOLD, PLAIN_CONV = "fold", "plain_conv"
"""Forms of a sandwich, and of a ConvTranspose. They take no other site, so they are not among those of a Conv."""

BACK_TO_FLOAT = "back_to_float"
"""The form that is not exact by its nature. It is offered only when asked for, so it is no file of this folder."""


class Strategy(Protocol):
    """One exact form. A frozen dataclass; its fields are its settings (`--strategy NAME:field=value`).

    What sets it apart from other forms it declares in these class attributes.
    """

    takes: ClassVar[tuple[type, ...]] = (ConvGeometry,)
    """What sites may mean. For others than a Conv it has `fragment(meaning, opset)`, which does what `plan` does."""
    prunes: ClassVar[bool] = True
    """Whether dead taps at the ends of the kernel are cut off first."""
    only_prunes: ClassVar[bool] = False
    """Whether it does nothing else. Where other forms come to the same fragment, it goes by this one's name."""
    skips_padding: ClassVar[bool] = False
    """Whether its point is to leave out products with padding, which are 0 only for finite weights."""
    finite_inputs_only: ClassVar[bool] = False
    """Whether it is exact for finite inputs only."""
    on_request: ClassVar[bool] = False
    """Whether it comes into question by name and for a target only: what it is for is no matter of speed."""
    only_transposed: ClassVar[bool] = False
    """Whether it takes a ConvTranspose only."""

    def refusal(self, geometry: ConvGeometry) -> str | None:
        """Return why this form does not apply, in a sentence with the numbers, or `None` when it does.

        `geometry` is normal (see `ConvGeometry.normal`) and pruned.
        """
        ...

    def emit(self, geometry: ConvGeometry, builder: Builder) -> Tensor:
        """Emit the form into `builder`, reading `builder.x`, and return its output [N, O, *Ho]."""
        ...


@functools.cache
def every_strategy() -> dict[str, Strategy]:
    """Return every strategy with its default settings, by name, in sorted order."""
    needs = ("takes", "prunes", "finite_inputs_only")
    return cast("dict[str, Strategy]", discover(sys.modules[__name__], "STRATEGY", "dilrewrite.strategies", needs))


@functools.cache
def strategies() -> dict[str, Strategy]:
    """Return those that come into question for every dilated Conv."""
    return {name: strategy for name, strategy in every_strategy().items() if not getattr(strategy, "on_request", False)}


def _named() -> dict[str, Strategy]:
    """Return the forms of a Conv, of a pooling and of a region."""
    from dilrewrite.forms.pools import pool_forms
    from dilrewrite.forms.regions import region_forms
    from dilrewrite.forms.strategies import _back_to_float, _fold, _plain_conv

    own: dict[str, Strategy] = {FOLD: _fold.FORM, PLAIN_CONV: _plain_conv.FORM, BACK_TO_FLOAT: _back_to_float.FORM}
    return {**pool_forms(), **every_strategy(), **own, **cast("dict[str, Strategy]", region_forms())}


def parse(text: str) -> tuple[str, Strategy]:
    """Return the strategy that `NAME[:key=value,...]` names, of a Conv or of a region, with the settings given.

    Raises `UsageError` for an unknown name, an unknown setting, or a value of the wrong type.
    """
    return settings.parse(text, _named(), "--strategy", f"--strategy {text}: no form")


def spelled(name: str, strategy: Strategy) -> str:
    """Return what `parse` makes this strategy of: its name, and the settings that are not the default ones."""
    return settings.spelled(name, strategy, _named()[name])


def with_max_dilation(strategy: Strategy, limit: Limit) -> Strategy:
    """Return the strategy set to leave dilations that may stay, itself when it has no such setting."""
    if hasattr(strategy, "max_dilation"):
        return cast("Strategy", dataclasses.replace(cast("Any", strategy), max_dilation=limit))
    return strategy


def with_layout(strategy: Strategy, layout: str) -> Strategy:
    """Return the strategy set to make phases in a way of `LAYOUTS`, itself when it makes none in several ways."""
    if hasattr(strategy, "layout"):
        return cast("Strategy", dataclasses.replace(cast("Any", strategy), layout=layout))
    return strategy


def plan(
    name: str,
    strategy: Strategy,
    meaning: object,
    opset: int,
    *,
    storage: str | None = None,
    fixed_weights: bool = True,
) -> Fragment | Refusal:
    """Return the fragment of `strategy` for what a site means, at `opset`, or why there is none.

    `storage` is the element type of the tensor that the fragment reads when it is not the geometry's (a quantised
    site). Dead taps are pruned, negative and SAME_* pads made explicit before the strategy sees the geometry. Weights
    that are not fixed may be NaN or Inf when the model runs, and such a weight gives NaN on padding too: then dead taps
    stay, but for forms that skip padding, and of a ConvTranspose, which has no padding.
    """
    if isinstance(meaning, Sandwich) and ConvGeometry in strategy.takes:
        from dilrewrite.forms.strategies import _fold

        return _fold.around(name, strategy, meaning, opset, storage=storage, fixed_weights=fixed_weights)
    if type(meaning) not in strategy.takes:
        types = " or ".join(each.__name__ for each in strategy.takes)
        return Refusal(name, f"it takes {types}, not {type(meaning).__name__}")
    if not isinstance(meaning, ConvGeometry):
        try:
            planned = cast("Fragment | Refusal", cast("Any", strategy).fragment(meaning, opset))
        except (ArithmeticError, AssertionError, LookupError, TypeError, ValueError) as error:
            return Refusal(name, f"a node breaks the rules of its operator: {type(error).__name__}: {error}")
        if isinstance(planned, Fragment):
            planned.check()
        return planned
    reason = meaning.malformed() or meaning.explicit().invalid()
    if reason:
        return Refusal(name, f"not a valid Conv: {reason}")
    if strategy.only_transposed and meaning.transposed is None:
        return Refusal(name, f"a Conv of dilations {meaning.dilations} is no ConvTranspose")
    builder = Builder(meaning, opset, storage=storage)
    prunes = strategy.prunes and (fixed_weights or strategy.skips_padding or meaning.transposed is not None)
    try:
        if meaning.transposed is None:
            result = _emit(builder, strategy, meaning, prunes=prunes)
        else:
            result = _emit_phases(builder, strategy, meaning, prunes=prunes)
    except Unsupported as lack:
        return Refusal(name, str(lack))
    fragment = builder.finish(name, result, spelled(name, strategy) if name in _named() else "")
    fragment.check()
    return fragment


def _emit(
    builder: Builder, strategy: Strategy, geometry: ConvGeometry, taps: Sequence[TakeTaps] = (), *, prunes: bool
) -> Tensor:
    """Emit the form of a Conv whose weights are `taps` of the site's; raises `Unsupported` where there is none."""
    explicit = geometry.explicit()
    if prunes:
        explicit = explicit.pruned()
    normal = explicit.normal()
    # Nothing but the bias is left. With an unknown extent the Conv stays: it fails where the original does.
    outs = [extent for extent in explicit.out_extents if extent is not None]
    bias_only = prunes and explicit.dead and len(outs) == explicit.rank
    reason = None if bias_only else strategy.refusal(normal)
    if reason:
        raise Unsupported(reason)
    builder.geometry = normal
    if bias_only:
        return builder.fill(outs)
    _enter(builder, geometry, explicit, normal)
    builder.weight_edits = (*taps, *builder.weight_edits)
    return strategy.emit(normal, builder)


def _emit_phases(builder: Builder, strategy: Strategy, geometry: ConvGeometry, *, prunes: bool) -> Tensor:
    """Emit the form of each phase of the outputs of a ConvTranspose, and join them."""
    reason = transposed.refusal(geometry)
    if reason:
        raise Unsupported(reason)
    source, made, bias = builder.x, [], None
    for phase in transposed.output_phases(geometry):
        builder.x = source
        if phase.geometry is not None:
            y = _emit(builder, strategy, phase.geometry, phase.taps, prunes=prunes)
            made.append(builder.slice(y, phase.cuts))
            continue
        bias = bias or transposed.fill(builder, geometry)
        made.append(bias)
    return transposed.join(builder, geometry, made)


def _enter(builder: Builder, given: ConvGeometry, explicit: ConvGeometry, normal: ConvGeometry) -> None:
    """Prune the weights, crop by negative pads and pad by SAME_* pads of unknown extents; leaves `builder.x` normal."""
    x = Tensor(builder.x.name, (given.batch, given.in_channels, *given.extents))
    builder.weight_edits = tuple(
        TakeTaps(axis, front, given.kernel[axis] - back)
        for axis, (front, back) in enumerate(explicit.cut)
        if front or back
    )
    cuts = {}
    for axis, (begin, end) in enumerate(zip(explicit.pads_begin, explicit.pads_end, strict=True)):
        extent = explicit.extents[axis]
        front, back = min(begin or 0, 0), min(end or 0, 0)
        if front or back:
            cuts[axis + 2] = Cut(-front, END if back == 0 else back if extent is None else extent + back)
    x = builder.slice(x, cuts)
    sides: dict[int, tuple[Extent, Extent]] = {}
    for axis in explicit.axes:
        if explicit.pads_begin[axis] is not None:
            continue
        # total = max((ceil(H/s) - 1)*s + span - H, 0), split in halves; odd ones go to the end (UPPER) or front (LOWER)
        cells, stride, span = builder.extent(x, axis + 2), explicit.strides[axis], explicit.span(axis)
        last = ((cells + (stride - 1)) // stride - 1) * stride
        total = builder.positive(last + span - cells)
        small = builder.bounded(total // 2, (span - 1) // 2)
        large = builder.bounded(total - small, span // 2)
        sides[axis + 2] = (small, large) if explicit.auto_pad == "SAME_UPPER" else (large, small)
    if sides:
        x = Tensor(builder.pad(x, sides).name, (x.shape[0], x.shape[1], *normal.extents))
    builder.x = x
