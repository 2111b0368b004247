"""Every PyTorch method against the native form: outputs, gradients and second derivatives, and what torch is asked."""

from __future__ import annotations

import functools
import itertools
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dilrewrite.errors import UsageError
from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.pytorch.methods import geometry_of, methods, prepare
from tests.contract import ELIMINATING, PROMISES

torch = pytest.importorskip("torch", reason="torch is not installed: the methods run in it")
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]

TRAINING = Path(__file__).parents[2] / "docs" / "training.md"
UPDATE = "DILREWRITE_UPDATE_GOLDEN"

METHODS = tuple(methods())
RANKS = (1, 2, 3)
STRIDES = (1, 2)
KERNEL = (3, 2, 2)

CHANNELS = {"dense": (2, 3, 1), "group 2": (4, 6, 2), "depthwise": (3, 6, 3)}
"""Input channels, output channels, groups."""

DILATIONS: dict[str, Ints] = {"2": (2, 2, 2), "3": (3, 3, 3), "mixed": (4, 3, 1)}
SIZES = ("divisible", "not divisible", "below the dilation")
PADDINGS = ("same", "explicit", "asymmetric", "none")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Leave the other cores alone; tiny sizes gain nothing from them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- the cases -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One convolution at concrete sizes."""

    rank: int
    channels: str = "dense"
    stride: int = 1
    dilation: str = "2"
    size: str = "not divisible"
    padding: str = "same"

    @property
    def groups(self) -> int:
        return CHANNELS[self.channels][2]

    @property
    def kernel(self) -> Ints:
        return KERNEL[: self.rank]

    @property
    def dilations(self) -> Ints:
        return DILATIONS[self.dilation][: self.rank]

    @property
    def extents(self) -> Ints:
        if self.size == "below the dilation":
            return tuple(max(1, d - 1) for d in self.dilations)
        if self.size == "divisible":
            return tuple(3 * d for d in self.dilations)
        return (11, 7, 5)[: self.rank]

    @property
    def pads(self) -> Pads:
        """Same: Ho = ceil(H / s); the others do not depend on the extent, so that in a small one some taps are dead."""
        found = []
        for extent, k, d in zip(self.extents, self.kernel, self.dilations, strict=True):
            total = max((-(-extent // self.stride) - 1) * self.stride + d * (k - 1) + 1 - extent, 0)
            found.append(
                {
                    "same": (total // 2, total - total // 2),
                    "explicit": (d, d),
                    "asymmetric": (2 * d, 1),
                    "none": (0, 0),
                }[self.padding]
            )
        return tuple(found)

    @property
    def input_shape(self) -> Ints:
        return 2, CHANNELS[self.channels][0], *self.extents

    @property
    def weight_shape(self) -> Ints:
        inputs, outputs, groups = CHANNELS[self.channels]
        return outputs, inputs // groups, *self.kernel

    @property
    def geometry(self) -> ConvGeometry:
        return geometry_of(
            self.input_shape,
            self.weight_shape,
            stride=(self.stride,) * self.rank,
            padding=self.pads,
            dilation=self.dilations,
            groups=self.groups,
            bias=True,
        )

    @property
    def phases(self) -> int:
        """Return how many there are of all axes together: a kernel axis of size 1 has none."""
        each = zip(self.dilations, self.kernel, strict=True)
        return math.prod(d // math.gcd(d, self.stride) for d, k in each if k > 1)

    @property
    def overlaps(self) -> bool:
        """Say whether the stride is no divisor of the dilation on a dilated axis."""
        return any(d > 1 and self.stride // math.gcd(self.stride, d) > 1 for d in self.dilations)


def cases(rank: int, channels: str, stride: int, padding: str) -> list[Case]:
    """The valid cases at every size and dilation in which a tap touches data."""
    found = [
        Case(rank=rank, channels=channels, stride=stride, dilation=dilation, size=size, padding=padding)
        for dilation, size in itertools.product(DILATIONS, SIZES)
    ]
    return [case for case in found if case.geometry.invalid() is None and not case.geometry.dead]


TABLE = {"weight_gradient", *PROMISES}


def may_refuse(name: str, case: Case) -> str | None:
    """What a refusal has to say where the method may refuse at all, as a pattern; everywhere else it has to apply.

    A method that is not in the table may refuse what it likes.
    """
    if name == "space_to_axis" and case.rank == 3:
        return r"rank 3 with one more axis has rank 4"
    if name in ("space_to_batch", "space_to_axis", "space_to_group") and case.overlaps:
        return rf"stride {case.stride} and dilation [{''.join(map(str, case.dilations))}] on spatial axis \d"
    if name == "phases_apart" and case.phases > 16:
        return rf"{case.phases} phases need {case.phases} Convs"
    if name == "im2col" and case.groups > 1:
        return rf"group is {case.groups}\b"
    if name == "lift" and case.rank > 1:
        return rf"only a 1-D Conv .* rank {case.rank}"
    if name == "tap_prune" and case.geometry.pruned().kernel == case.kernel:
        return rf"kernel {re.escape(str(case.kernel))} sees only padding"
    return None if name in TABLE else "."


def applies(name: str, geometry: ConvGeometry) -> bool:
    """Say whether a method takes a geometry."""
    return methods()[name].refusal(geometry) is None


def whole_numbers(shape: Sequence[int], seed: int, dtype: Any) -> Any:
    """Whole numbers from -4 to 4: every sum of products of them is exact."""
    drawn = torch.randint(-4, 5, tuple(shape), generator=torch.Generator().manual_seed(seed))
    return drawn.to(dtype)


def computed(name: str, case: Case, dtype: Any) -> dict[str, Any]:
    """The output and the three gradients, for whole-number tensors that depend on the case alone."""
    form = prepare(name, case.geometry)
    x = whole_numbers(case.input_shape, 1, dtype).requires_grad_()
    weight = whole_numbers(case.weight_shape, 2, dtype).requires_grad_()
    bias = whole_numbers(case.weight_shape[:1], 3, dtype).requires_grad_()
    y = form(x, weight, bias)
    gradients = torch.autograd.grad(y, (x, weight, bias), whole_numbers(y.shape, 4, dtype))
    return {"y": y.detach(), **dict(zip(("dL/dx", "dL/dw", "dL/dbias"), gradients, strict=True))}


@functools.cache
def native(case: Case, dtype: Any) -> Mapping[str, Any]:
    return computed("keep", case, dtype)


def bits(tensor: Any) -> Any:
    """Its bits as whole numbers, a zero's sign among them."""
    return tensor.contiguous().view({torch.float32: torch.int32, torch.float64: torch.int64}[tensor.dtype])


# -- bits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.grid(8)
def test_output_and_gradients_are_the_native_ones_bit_for_bit(
    name: str, rank: int, channels: str, stride: int, padding: str
) -> None:
    found = cases(rank, channels, stride, padding)
    assert found
    for case in found:
        reason = methods()[name].refusal(case.geometry)
        if reason is not None:
            allowed = may_refuse(name, case)
            assert allowed is not None, (case, reason)
            assert re.search(allowed, reason), (case, reason)
            continue
        for dtype in (torch.float32, torch.float64):
            wanted = native(case, dtype)
            for what, tensor in computed(name, case, dtype).items():
                assert tensor.dtype == dtype, (case, what)
                assert tensor.shape == wanted[what].shape, (case, what)
                assert torch.equal(bits(tensor), bits(wanted[what])), (case, what)


@pytest.mark.parametrize("rank", RANKS)
def test_the_native_form_is_that_of_torch(rank: int) -> None:
    """What everything is compared with, against a plain call with symmetric pads."""
    case = Case(rank=rank, channels="group 2", stride=2, dilation="3", padding="explicit")
    x, weight = whole_numbers(case.input_shape, 1, torch.float64), whole_numbers(case.weight_shape, 2, torch.float64)
    run = getattr(torch.nn.functional, f"conv{rank}d")
    begin = tuple(begin for begin, _ in case.pads)
    wanted = run(x, weight, None, case.stride, begin, case.dilations, case.groups)
    assert torch.equal(prepare("keep", case.geometry)(x, weight, None), wanted)


@pytest.mark.parametrize("name", METHODS)
def test_without_a_bias(name: str) -> None:
    case = Case(rank=2, dilation="3")
    x, weight = whole_numbers(case.input_shape, 1, torch.float32), whole_numbers(case.weight_shape, 2, torch.float32)
    geometry = geometry_of(
        x.shape, weight.shape, stride=(1, 1), padding=case.pads, dilation=(3, 3), groups=1, bias=False
    )
    if not applies(name, geometry):
        assert may_refuse(name, case)
        pytest.skip("refuses")
    assert torch.equal(prepare(name, geometry)(x, weight, None), prepare("keep", geometry)(x, weight, None))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("keep", "weight_gradient")])
def test_nothing_to_differentiate_is_refused(name: str) -> None:
    """Pads so wide, and strides so long, that every tap misses the data: the output is the bias."""
    geometry = geometry_of((1, 1, 1), (1, 1, 2), stride=(9,), padding=((4, 4),), dilation=(8,), groups=1, bias=True)
    assert geometry.dead
    with pytest.raises(UsageError, match=r"no tap of kernel \(2,\) touches data of extents \(1,\)"):
        prepare(name, geometry)


# -- derivatives ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.grid(3)
def test_first_and_second_derivatives(name: str, rank: int, stride: int) -> None:
    groups = 1 if name == "im2col" else 2
    shape, kernel = (1, 2, *(3, 2, 2)[:rank]), (2, 2 // groups, *(2, 2, 1)[:rank])
    geometry = geometry_of(
        shape,
        kernel,
        stride=(stride,) * rank,
        padding=((1, 1),) * rank,
        dilation=(2,) * rank,
        groups=groups,
        bias=True,
        element="float64",
    )
    if not applies(name, geometry):
        assert (name, rank) in {("space_to_axis", 3), ("lift", 2), ("lift", 3)} or name not in TABLE - {"tap_prune"}
        pytest.skip("refuses")
    form = prepare(name, geometry)
    random = torch.Generator().manual_seed(5)
    tensors = [
        torch.randn(size, dtype=torch.float64, generator=random).requires_grad_()
        for size in (shape, kernel, kernel[:1])
    ]
    assert torch.autograd.gradcheck(form, tensors)
    assert torch.autograd.gradgradcheck(form, tensors)


# -- what torch is asked -------------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):  # type: ignore[misc]
    """Writes down the convolutions that reach ATen: name and arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if "conv" in str(func):
            self.calls.append((str(func), args))
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Asked:
    """A recorded convolution or backward; `mask`: which gradients a backward makes."""

    operator: str
    stride: Ints
    dilation: Ints
    mask: tuple[bool, ...] = ()


def asked(recorder: Recorder) -> list[Asked]:
    """Read the arguments: (input, weight, bias, stride, padding, dilation, ..), a backward has one more in front."""
    found = []
    for operator, args in recorder.calls:
        if operator == "aten.convolution.default":
            found.append(Asked(operator, tuple(args[3]), tuple(args[5])))
        else:
            assert operator == "aten.convolution_backward.default", operator
            found.append(Asked(operator, tuple(args[4]), tuple(args[6]), tuple(args[10])))
    return found


def asked_by(name: str, case: Case) -> tuple[list[Asked], list[Asked]]:
    """The convolutions of the forward and of the backward pass."""
    form = prepare(name, case.geometry)
    x = whole_numbers(case.input_shape, 1, torch.float32).requires_grad_()
    weight = whole_numbers(case.weight_shape, 2, torch.float32).requires_grad_()
    bias = whole_numbers(case.weight_shape[:1], 3, torch.float32).requires_grad_()
    with Recorder() as forward:
        y = form(x, weight, bias)
    with Recorder() as backward:
        torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    return asked(forward), asked(backward)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.grid(4)
def test_no_dilated_convolution_is_left(name: str, rank: int, channels: str, stride: int) -> None:
    """Forward and backward. The inner dilation of `weight_gradient` is the stride s by its nature: 1 for stride 1."""
    for case in (Case(rank=rank, channels=channels, stride=stride, dilation=dilation) for dilation in DILATIONS):
        if may_refuse(name, case):
            continue
        forward, backward = asked_by(name, case)
        assert forward
        assert backward
        for call in (*forward, *backward):
            if name == "keep":
                assert call.dilation == case.dilations, "the recorder sees dilations"
            elif name == "weight_gradient":
                assert call.dilation == (stride,) * rank, (case, call)
            elif name in ELIMINATING:
                assert max(call.dilation) == 1, (case, call)
            else:
                assert max(call.dilation) <= max(case.dilations), (case, call)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("rank", RANKS)
def test_weight_gradient_is_a_weight_gradient(rank: int, channels: str, stride: int) -> None:
    """Forward: one backward of a convolution with stride d, of its weight alone, and no convolution."""
    for dilation in DILATIONS:
        case = Case(rank=rank, channels=channels, stride=stride, dilation=dilation)
        forward, backward = asked_by("weight_gradient", case)
        weight_alone = (False, True, False)
        assert forward == [
            Asked("aten.convolution_backward.default", case.dilations, (stride,) * rank, mask=weight_alone)
        ]
        assert {call.stride for call in backward} == {case.dilations}


# -- the support matrix --------------------------------------------------------------------------------------------

SAMPLING = {
    "stride 1": ((1, "2"), (1, "3")),
    "stride 2, dilation 2": ((2, "2"),),
    "stride 2, dilation 3": ((2, "3"),),
}


def matrix(names: Sequence[str]) -> str:
    """The table: a row per method and rank; the cells are those that are compared bit for bit above."""
    columns = list(itertools.product(CHANNELS, SAMPLING))
    notes: list[str] = []

    def note(reason: str) -> str:
        if reason not in notes:
            notes.append(reason)
        return f"no ({notes.index(reason) + 1})"

    def cell(name: str, rank: int, channels: str, sampling: str) -> str:
        answers: dict[str, list[str]] = {}
        for (stride, dilation), padding in itertools.product(SAMPLING[sampling], PADDINGS):
            case = Case(rank=rank, channels=channels, stride=stride, dilation=dilation, padding=padding)
            reason = methods()[name].refusal(case.geometry)
            answers.setdefault(note(reason) if reason else "yes", []).append(padding)
        if len(answers) == 1:
            return next(iter(answers))
        return ", ".join(f"{'/'.join(dict.fromkeys(paddings))}: {answer}" for answer, paddings in answers.items())

    rows = [
        ("method", "rank", *(f"{channels}, {sampling}" for channels, sampling in columns)),
        ("---",) * (2 + len(columns)),
        *(
            (f"`{name}`", str(rank), *(cell(name, rank, *column) for column in columns))
            for name, rank in itertools.product(names, RANKS)
        ),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    said = "\n".join(f"{number}. {reason}" for number, reason in enumerate(notes, start=1))
    return f"{table}\n\nEvery cell stands for {len(PADDINGS)} paddings: {', '.join(PADDINGS)}. Refusals:\n\n{said}\n"


def test_the_support_matrix_is_what_the_methods_say() -> None:
    """With DILREWRITE_UPDATE_GOLDEN=1 it is written; a method without a row is no matter of this test."""
    text = TRAINING.read_text(encoding="utf-8")
    before, opening, rest = text.partition("<!-- matrix -->\n")
    _, closing, after = rest.partition("<!-- /matrix -->")
    assert opening
    assert closing
    names = [name for name in METHODS if f"| `{name}` | 1 |" in rest or os.environ.get(UPDATE)]
    wanted = f"{before}{opening}{matrix(names)}{closing}{after}"
    if os.environ.get(UPDATE):
        TRAINING.write_text(wanted, encoding="utf-8", newline="\n")
        text = wanted
    assert text == wanted, f"{TRAINING} differs: read the difference, then run with {UPDATE}=1"


# -- prepare -------------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no method 'nonsense'") as caught:
        prepare("nonsense", Case(rank=2).geometry)
    assert "\n" not in str(caught.value)
    assert all(name in caught.value.hint for name in METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_kernel_larger_than_the_input_is_a_usage_error(name: str) -> None:
    geometry = Case(rank=2, dilation="3", size="below the dilation", padding="none").geometry
    with pytest.raises(UsageError, match=rf"{name}: spatial axis 0: extent 2 .* is 2, less than .* 7") as caught:
        prepare(name, geometry)
    assert "\n" not in str(caught.value)


def test_a_refusal_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="im2col: group is 2;") as caught:
        prepare("im2col", Case(rank=2, channels="group 2").geometry)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_question_has_the_same_answer(name: str) -> None:
    """Also for a geometry that is equal and not the same, so that nothing is planned or traced twice."""
    if not applies(name, Case(rank=1).geometry):
        assert may_refuse(name, Case(rank=1))
        pytest.skip("refuses")
    assert prepare(name, Case(rank=1).geometry) is prepare(name, Case(rank=1).geometry)
    assert prepare(name, Case(rank=1).geometry) is not prepare(name, Case(rank=1, dilation="3").geometry)


def test_the_native_form_is_the_first_method() -> None:
    assert METHODS[0] == "keep"
    assert list(METHODS[1:]) == sorted(METHODS[1:])


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.grid(3)
def test_torch_compiles_without_a_graph_break(name: str) -> None:
    """Forward and backward in one graph each; the eager backend compiles no kernel."""
    case = Case(rank=2, dilation="3", padding="asymmetric")
    if not applies(name, case.geometry):
        assert may_refuse(name, case)
        pytest.skip("refuses")
    torch._dynamo.reset()
    compiled = torch.compile(prepare(name, case.geometry), fullgraph=True, backend="aot_eager", dynamic=False)
    tensors = [
        whole_numbers(shape, seed, torch.float32).requires_grad_()
        for seed, shape in enumerate((case.input_shape, case.weight_shape, case.weight_shape[:1]), start=1)
    ]
    y = compiled(*tensors)
    gradients = torch.autograd.grad(y, tensors, whole_numbers(y.shape, 4, torch.float32))
    for found, wanted in zip((y, *gradients), native(case, torch.float32).values(), strict=True):
        assert torch.equal(found, wanted)
