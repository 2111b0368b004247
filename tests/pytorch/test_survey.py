"""Which convolutions of a module can be rewritten, on which examples, and what is said of the rest."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from dilrewrite.errors import UsageError
from dilrewrite.pytorch.chosen import NATIVE
from dilrewrite.pytorch.probing import PASSES
from dilrewrite.pytorch.rewriting import rewrite_module
from tests.pytorch.test_rewriting import TAP_SUM, Scripted, data, results, small, whole_numbers

torch = pytest.importorskip("torch", reason="torch is not installed: modules are rewritten in it")
import torch.nn.functional as F  # noqa: E402, N812
from torch import nn  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


from tests.pytorch.test_modules import Causal  # noqa: E402

# -- examples --------------------------------------------------------------------------------------------------------


class Keyed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, pair: tuple[Any, list[Any]], *, scale: Any, skip: bool = False) -> Any:
        x, (y, z) = pair
        return {"out": [self.net(x + y) * scale if not skip else z]}


def test_nested_and_named_examples(used: list[str]) -> None:
    module = Keyed()
    pair = (data(2, 3, 12), [data(2, 3, 12), None])
    report = rewrite_module(module, (pair,), kwargs={"scale": data(1)}, timings=Scripted(TAP_SUM, runs=True))
    assert report.rewritten == 2
    used.clear()
    module(pair, scale=2.0)
    assert used == ["tap_sum"] * 2


def test_an_example_by_name_alone() -> None:
    module = small()
    report = rewrite_module(module, kwargs={"input": data(2, 3, 12)}, timings=Scripted(TAP_SUM, runs=True))
    assert report.rewritten == 2


@pytest.mark.parametrize(
    ("module", "given", "named", "message"),
    [
        (Keyed(), (), {"scale": 1}, "the example does not fit Keyed.forward: missing a required argument: 'pair'"),
        (Keyed(), (1, 2), {"scale": 1}, "the example does not fit Keyed.forward: too many positional arguments"),
        (Keyed(), 1, {"scale": 1, "speed": 2}, "Keyed.forward: got an unexpected keyword argument 'speed'"),
        (F.relu, 1, None, "a function is not a torch.nn.Module; pass the module itself"),
    ],
)
def test_wrong_examples(module: Any, given: Any, named: Any, message: str) -> None:
    with pytest.raises(UsageError) as error:
        rewrite_module(module, given, kwargs=named)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(mode: Any, used: list[str]) -> None:
    module = whole_numbers(nn.Sequential(Causal(3, 3, 3, dilation=4), nn.BatchNorm1d(3).double()))
    x = data(2, 3, 20)
    for passes in (PASSES, ("backward",)):
        with mode(), pytest.raises(UsageError, match=r'gradients are off .* pass passes=\("forward",\)'):
            rewrite_module(module, x, passes=passes)
    with mode():
        wanted = module.eval()(x)
        report = rewrite_module(module, x, passes=("forward",), timings=Scripted(TAP_SUM, runs=True))
        used.clear()
        assert torch.equal(module(x), wanted)
    assert report.rewritten == 1
    assert used == ["tap_sum"]
    results(module, x)  # a step afterwards has its gradients


# -- what is left alone, in one line ---------------------------------------------------------------------------------


class OwnConv(nn.Conv1d):
    def _conv_forward(self, x: Any, weight: Any, bias: Any) -> Any:
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Functional(Causal):
    def forward(self, x: Any) -> Any:
        return F.conv1d(F.pad(x, (self.left, 0)), self.weight, self.bias, dilation=self.dilation)


class Elsewhere(Causal):
    """Computes something else altogether."""

    def forward(self, x: Any) -> Any:
        return x * self.weight.mean()


class Shrinking(Causal):
    def forward(self, x: Any) -> Any:
        return self._conv_forward(x, self.weight[:2], self.bias[:2])


class Holding(nn.Module):
    """Takes the weights of its Conv to a function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 3, 3, dilation=2)

    def forward(self, x: Any) -> Any:
        return torch.conv1d(x, self.conv.weight, self.conv.bias, 1, 0, 2)


class Loose(nn.Module):
    """Has weights of its own; the second and the third call have no dilation, and the fourth is the first again."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(3, 3, 3))

    def forward(self, x: Any) -> Any:
        for dilation in (2, 1, 1, 2):
            x = F.conv1d(x, self.taps, dilation=dilation)
        return F.conv_transpose1d(x, self.taps, dilation=3)


def _scripted(layer: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it old
        return torch.jit.script(nn.Sequential(layer, nn.BatchNorm1d(3)))


def _traced(layer: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(nn.Sequential(layer), torch.randn(2, 3, 40))


def _compiled_in_place(layer: Any) -> Any:
    layer.compile(backend="eager")
    return layer


def _exported(layer: Any) -> Any:
    return torch.export.export(layer, (torch.randn(2, 3, 40),)).module()


_FUNCTION = r"conv1d is called as a function at test_survey\.py:\d+: "

ALONE: dict[str, tuple[Callable[[], Any], list[tuple[str, str]]]] = {
    "own _conv_forward": (
        lambda: OwnConv(3, 3, 3, dilation=2),
        [("1", r"OwnConv has a _conv_forward of its own: do that in forward, and call super\(\)\.forward\(x\) there")],
    ),
    "functional": (
        lambda: Functional(3, 3, 3, dilation=2),
        [("1", _FUNCTION + r"call super\(\)\.forward\(x\), or self\._conv_forward\(x, self\.weight, self\.bias\)")],
    ),
    "elsewhere": (
        lambda: Elsewhere(3, 3, 3, dilation=2),
        [("1", r"the forward of Elsewhere does not convolve here: call super\(\)\.forward\(x\) there")],
    ),
    "other shape": (
        lambda: Shrinking(3, 3, 3, dilation=2),
        [("1", r"it convolves with a weight of shape \(2, 3, 3\) instead of \(3, 3, 3\): keep the shape")],
    ),
    "weights of a Conv in a function": (lambda: Holding(), [("1.conv", _FUNCTION + "call .*")]),
    "functions": (
        lambda: Loose(),
        [
            ("1", _FUNCTION + r"only modules are rewritten, such as torch\.nn\.Conv1d"),
            ("1", r"conv_transpose1d is called as a function at test_survey\.py:\d+: only modules .*"),
        ],
    ),
    "transposed": (
        lambda: nn.ConvTranspose1d(3, 3, 3, dilation=2),
        [("1", "it is a ConvTranspose1d: only Conv1d, Conv2d and Conv3d are rewritten")],
    ),
    "lazy": (
        lambda: nn.LazyConv1d(3, 3, dilation=2),
        [("1", "it is lazy, and its sizes are not known: run the module once before")],
    ),
    "scripted": (
        lambda: _scripted(nn.Conv1d(3, 3, 3, dilation=2)),
        [("1", "it is scripted or traced: rewrite the module that it was made from")],
    ),
    "scripted, without a dilation": (lambda: _scripted(nn.Conv1d(3, 3, 3)), []),
    "traced": (
        lambda: _traced(nn.Conv1d(3, 3, 3, dilation=2)),
        [("1", "it is scripted or traced: rewrite the module that it was made from")],
    ),
    "compiled": (
        lambda: torch.compile(nn.Sequential(nn.Conv1d(3, 3, 3, dilation=2), nn.Conv1d(3, 3, 3)), backend="eager"),
        [("1._orig_mod.0", r"it is compiled: call rewrite_module before torch\.compile")],
    ),
    "compiled in place": (
        lambda: _compiled_in_place(nn.Sequential(nn.Conv1d(3, 3, 3, dilation=2))),
        [("1.0", r"it is compiled: call rewrite_module before torch\.compile")],
    ),
    "exported": (lambda: _exported(nn.Sequential(nn.Conv1d(3, 3, 3, dilation=2))), [("1", "conv1d is called .*")]),
    "normed, own _conv_forward": (
        lambda: nn.utils.parametrizations.weight_norm(OwnConv(3, 3, 3, dilation=2)),
        [("1", "OwnConv has a _conv_forward of its own: .*")],
    ),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, when it compiles
@pytest.mark.parametrize("name", ALONE)
def test_left_alone(name: str) -> None:
    """The Conv before it is rewritten all the same, and nothing is set on what is left alone."""
    make, wanted = ALONE[name]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules")
        odd = make()
    module = nn.Sequential(nn.Conv1d(3, 3, 3, padding=2, dilation=2), odd)
    report = rewrite_module(module, torch.randn(2, 3, 40), timings=Scripted(TAP_SUM, runs=True))
    first, *others = report.layers
    assert (first.name, first.method) == ("0", "tap_sum")
    assert [(layer.name, layer.method) for layer in others] == [(where, NATIVE) for where, _ in wanted]
    for layer, (_, reason) in zip(others, wanted, strict=True):
        assert re.fullmatch(reason, layer.reason), layer.reason
    assert all("_conv_forward" not in layer.__dict__ for layer in odd.modules())


def test_compiled_and_scripted_from_the_top() -> None:
    x = torch.randn(2, 3, 40)
    for module in (torch.compile(nn.Conv1d(3, 3, 3, dilation=2), backend="eager"), _traced(nn.Conv1d(3, 3, 3))):
        report = rewrite_module(module, x, timings=Scripted(TAP_SUM))
        assert [layer.method for layer in report.layers] == [NATIVE]


def test_budget_0_names_what_is_left_alone() -> None:
    module = nn.Sequential(nn.Conv1d(3, 3, 3, dilation=2), nn.ConvTranspose1d(3, 3, 3, dilation=2))
    reasons = [layer.reason for layer in rewrite_module(module, "not even run", budget=0).layers]
    assert reasons[0] == "not probed: budget 0"
    assert reasons[1].startswith("it is a ConvTranspose1d")


def test_scripting_a_rewritten_module_takes_the_native_form() -> None:
    module = small()
    x = data(2, 3, 12)
    rewrite_module(module, x, timings=Scripted(TAP_SUM))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(module)
    for length in (12, 40):
        assert torch.equal(scripted(data(2, 3, length) * 0 + 1), module(data(2, 3, length) * 0 + 1))
