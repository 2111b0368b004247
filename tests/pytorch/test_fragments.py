"""Fragments run in torch: weight edits, and every strategy's form against the native convolution."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import dilrewrite.forms.fragment
from dilrewrite.forms.fragment import (
    AddAxis,
    AddKernelAxis,
    CoreFill,
    DropKernelAxes,
    Fragment,
    PerChannel,
    RepeatOutputs,
    SpreadTaps,
    SwapKernelAxes,
    TakeOutputs,
    TakeTaps,
    TapsToInputs,
    Turn,
    WeightEdit,
)
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.forms.strategies import Refusal, plan, strategies
from dilrewrite.pytorch.fragments import OPSET, edited, program
from dilrewrite.pytorch.methods import geometry_of, prepare

torch = pytest.importorskip("torch", reason="torch is not installed: the fragments run in it")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Leave the other cores alone; tiny sizes gain nothing from them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def counted(*shape: int, dtype: Any = None) -> Any:
    """1, 2, 3, ..: every value is its place."""
    return torch.arange(1, int(np.prod(shape)) + 1, dtype=dtype or torch.float64).reshape(shape)


# -- weight edits --------------------------------------------------------------------------------------------------

EDITS: list[tuple[WeightEdit, tuple[int, ...]]] = [
    (TakeTaps(0, 1, 3), (2, 3, 4)),
    (TakeTaps(1, 0, 1), (2, 3, 4, 3)),
    (TakeTaps(2, 1, 2), (2, 1, 2, 3, 2)),
    (RepeatOutputs(1), (2, 3, 4)),
    (RepeatOutputs(4), (2, 3, 2, 2)),
    (RepeatOutputs(2), (3, 2, 1, 2, 3)),
    (Turn(1), (2, 3, 4)),
    (Turn(2), (4, 3, 2, 3)),
    (TakeOutputs(2), (6, 3, 4)),
    (DropKernelAxes((0, 2)), (2, 3, 1, 4, 1)),
    (PerChannel(2), (5,)),
    (AddAxis(2), (2, 3, 4)),
    (AddKernelAxis(0), (2, 3, 4)),
    (AddKernelAxis(1), (2, 3, 4)),
    (AddKernelAxis(2), (2, 3, 4, 2)),
    (SwapKernelAxes(0, 1), (2, 3, 1, 4)),
    (SwapKernelAxes(2, 0), (2, 3, 2, 1, 4)),
    (TapsToInputs(), (2, 3, 4)),
    (TapsToInputs(), (2, 3, 4, 2)),
    (TapsToInputs(), (2, 3, 1, 2, 3)),
    (SpreadTaps((3,)), (2, 3, 4)),
    (SpreadTaps((2, 3)), (2, 3, 3, 2)),
    (SpreadTaps((1, 2, 4)), (2, 1, 2, 1, 3)),
]


@pytest.mark.parametrize(("edit", "shape"), EDITS, ids=str)
def test_an_edit_in_torch_is_the_edit(edit: WeightEdit, shape: tuple[int, ...]) -> None:
    weight = counted(*shape)
    before = weight.clone()
    found = edited(edit, weight)
    wanted = edit.apply(weight.numpy(), np.zeros((), np.float64))
    assert tuple(found.shape) == wanted.shape
    assert found.dtype == weight.dtype
    assert np.array_equal(found.numpy(), wanted)
    assert torch.equal(weight, before)


@pytest.mark.parametrize(("edit", "shape"), EDITS, ids=str)
def test_an_edit_is_differentiable(edit: WeightEdit, shape: tuple[int, ...]) -> None:
    """Each weight gets the sum of what arrives at the places it moved to."""
    weight = counted(*shape).requires_grad_()
    made = edited(edit, weight)
    upstream = counted(*made.shape)
    (gradient,) = torch.autograd.grad(made, weight, upstream)
    places = edit.apply(counted(*shape, dtype=torch.int64).numpy(), np.zeros((), np.int64))
    wanted = np.bincount(places.ravel(), weights=upstream.numpy().ravel(), minlength=int(np.prod(shape)) + 1)
    assert np.array_equal(gradient.numpy().ravel(), wanted[1:])


def test_every_edit_is_tested() -> None:
    known = {
        kind
        for _, kind in inspect.getmembers(dilrewrite.forms.fragment, inspect.isclass)
        if hasattr(kind, "apply") and kind is not WeightEdit
    }
    assert known == {type(edit) for edit, _ in EDITS}


@dataclass(frozen=True, slots=True)
class NewEdit:
    """An edit that nobody has taught torch."""

    def apply(self, weight: Any, zero: Any) -> Any:
        return weight + zero


def test_an_unknown_edit_is_named() -> None:
    with pytest.raises(NotImplementedError, match="NewEdit"):
        edited(NewEdit(), counted(1, 1, 1))


# -- programs ------------------------------------------------------------------------------------------------------


def geometry(rank: int, stride: int = 1, groups: int = 1, pads: tuple[int, int] = (3, 2)) -> ConvGeometry:
    """With pads (2, 2) the extents are so small that the first and last tap of axis 0 are dead."""
    return geometry_of(
        (2, 4, *((9, 7, 5) if pads != (2, 2) else (2, 2, 2))[:rank]),
        (4, 4 // groups, *(3, 2, 2)[:rank]),
        stride=(stride,) * rank,
        padding=(pads,) * rank,
        dilation=(2, 3, 2)[:rank],
        groups=groups,
        bias=True,
    )


def tensors(of: ConvGeometry) -> tuple[Any, Any, Any]:
    """Whole numbers as input, weight and bias."""
    assert of.batch is not None
    assert of.in_channels is not None
    assert of.out_channels is not None
    random = torch.Generator().manual_seed(0)
    shapes = (
        (of.batch, of.in_channels, *of.extents),
        (of.out_channels, of.in_channels // of.group, *of.kernel),
        (of.out_channels,),
    )
    x, weight, bias = (torch.randint(-4, 5, shape, generator=random).double().requires_grad_() for shape in shapes)
    return x, weight, bias


def fragment(name: str, of: ConvGeometry) -> Fragment | Refusal:
    return plan(name, strategies()[name], of, OPSET)


APPLY = [
    (name, sizes)
    for name, *sizes in itertools.product(strategies(), (1, 2, 3), (1, 2), (1, 2), ((3, 2), (2, 2), (0, 0)))
    if isinstance(fragment(name, geometry(*sizes)), Fragment)
]


def test_every_strategy_applies_somewhere() -> None:
    assert {name for name, _ in APPLY} == set(strategies())


@pytest.mark.parametrize(("name", "sizes"), APPLY)
@pytest.mark.grid(3)
def test_every_strategy_runs_in_torch(name: str, sizes: tuple[int, int, int, tuple[int, int]]) -> None:
    """Output and gradients, at rank, stride, groups and pads; also the strategies that are no method."""
    of = geometry(*sizes)
    planned = fragment(name, of)
    assert isinstance(planned, Fragment)
    x, weight, bias = tensors(of)
    found, wanted = program(planned).run(x, weight, bias), prepare("keep", of)(x, weight, bias)
    assert torch.equal(found, wanted)
    upstream = torch.randint(-4, 5, found.shape, generator=torch.Generator().manual_seed(1)).double()
    for one, other in zip(
        torch.autograd.grad(found, (x, weight, bias), upstream),
        torch.autograd.grad(wanted, (x, weight, bias), upstream),
        strict=True,
    ):
        assert torch.equal(one, other)


CROPPED = geometry(1, pads=(-1, -2))


@pytest.mark.parametrize("name", [name for name in strategies() if isinstance(fragment(name, CROPPED), Fragment)])
def test_negative_pads_crop(name: str) -> None:
    planned = fragment(name, CROPPED)
    assert isinstance(planned, Fragment)
    x, weight, bias = tensors(CROPPED)
    plain = replace(CROPPED, extents=(6,), pads_begin=(0,), pads_end=(0,))
    wanted = prepare("keep", plain)(x[:, :, 1:-2], weight, bias)
    assert torch.equal(program(planned).run(x, weight, bias), wanted)
    assert torch.equal(prepare("keep", CROPPED)(x, weight, bias), wanted)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_where_no_tap_reaches_is_the_bias(rank: int) -> None:
    of = geometry_of(
        (2, 1, *(1,) * rank),
        (3, 1, *(2,) * rank),
        stride=(9,) * rank,
        padding=((4, 13),) * rank,
        dilation=(8,) * rank,
        groups=1,
        bias=True,
    )
    found = fragment("tap_sum", of)
    assert isinstance(found, Fragment)
    assert any(isinstance(core, CoreFill) for core in found.core)
    x, weight, bias = tensors(of)
    wanted = prepare("keep", of)(x, weight, bias)
    y = program(found).run(x, weight, bias)
    assert torch.equal(y, wanted)
    assert torch.equal(torch.autograd.grad(y.sum(), bias)[0], torch.autograd.grad(wanted.sum(), bias)[0])
    without = program(found).run(x, weight, None)
    assert torch.equal(without, torch.zeros_like(wanted))
