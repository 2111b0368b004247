"""Modules are rewritten where scripted timings say that a form wins, and all that one does with a module goes on."""

from __future__ import annotations

import copy
import io
import itertools
import json
import math
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import dilrewrite.pytorch
from dilrewrite.errors import UsageError
from dilrewrite.pytorch import chosen, probing, rewriting
from dilrewrite.pytorch.chosen import NATIVE, Chosen, bucket, choose
from dilrewrite.pytorch.methods import methods
from dilrewrite.pytorch.probing import PASSES, Probe, TorchBench
from dilrewrite.pytorch.rewriting import restore_module, rewrite_module
from dilrewrite.timing.speed import speed
from dilrewrite.timing.stopwatch import Comparison, Timing
from tests.forms_for_tests import INEXACT

torch = pytest.importorskip("torch", reason="torch is not installed: modules are rewritten in it")
from torch import nn  # noqa: E402

TAP_SUM = {"tap_sum": 0.5}
CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
EXTENTS = {1: (12,), 2: (9, 8), 3: (5, 6, 7)}

# -- scripted timings ------------------------------------------------------------------------------------------------


def comparison(ratio: float, step_s: float = 0.01) -> Comparison:
    """What timing finds without noise."""

    def timing(seconds: float) -> Timing:
        return Timing(median_s=seconds, p20_s=seconds, p80_s=seconds, runs=10)

    return Comparison(
        first=timing(step_s),
        second=timing(step_s * ratio),
        ratio=ratio,
        low=ratio * 0.99,
        high=ratio * 1.01,
        pairs=10,
        noise=None,
        mode="interleaved",
    )


@dataclass
class Scripted:
    """Finds what is written: the ratio of each method's time to the native one's, 2 for those that are not there.

    `runs`: run what is to be timed, too. `asked` has who was asked for: method (empty for the module), passes, seconds.
    """

    ratios: Mapping[str, float]
    whole: float = 0.8
    runs: bool = False
    asked: list[tuple[str, tuple[str, ...], float]] = field(default_factory=list)
    passing: Callable[[float], None] = lambda _seconds: None

    def __call__(
        self, first: Probe, second: Probe, passes: tuple[str, ...], seconds: float, *, whole: bool = False
    ) -> Comparison:
        assert first.name == ("" if whole else NATIVE)
        assert whole == (second.name == "")
        self.asked.append((second.name, passes, seconds))
        self.passing(seconds)
        if self.runs:
            bench = TorchBench({"first": first, "twin": first, "second": second}, passes)
            bench.open(["first", "twin", "second"], runs=1)
            bench.run(["first", "second", "twin", "second"])
            bench.shut()
        return comparison(self.whole if whole else self.ratios.get(second.name, 2.0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# -- modules, and what they compute ----------------------------------------------------------------------------------


def whole_numbers(module: Any) -> Any:
    """The module in float64 with small whole numbers as parameters: sums are exact in any order."""
    module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randint(-3, 4, parameter.shape))
    return module


def data(*shape: int) -> Any:
    return torch.randint(-4, 5, shape).double()


def small() -> Any:
    """Two Convs with a dilation, one of them depthwise, and one without."""
    return whole_numbers(
        nn.Sequential(
            nn.Conv1d(3, 4, 3, padding=2, dilation=2),
            nn.ReLU(),
            nn.Conv1d(4, 4, 3, padding=4, dilation=4, groups=4, bias=False),
            nn.Conv1d(4, 2, 1),
        )
    )


def results(module: Any, *arguments: Any) -> list[Any]:
    """The output and all gradients."""
    inputs = [argument.clone().requires_grad_() for argument in arguments]
    module.zero_grad()
    y = module(*inputs)
    (y * torch.arange(1, y.numel() + 1).reshape(y.shape)).sum().backward()
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [y.detach(), *(tensor.grad.clone() for tensor in (*inputs, *parameters))]


def same(found: Sequence[Any], wanted: Sequence[Any]) -> bool:
    """Bit for bit."""
    return len(found) == len(wanted) and all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def rewrite(module: Any, *arguments: Any, **options: Any) -> Any:
    """Rewritten with `tap_sum` everywhere."""
    return rewrite_module(module, arguments, timings=Scripted(TAP_SUM), **options)


# -- what is computed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in methods() if name != NATIVE])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_every_method_gives_the_same_bits(name: str, rank: int, used: list[str]) -> None:
    layer = whole_numbers(CONVS[rank](2, 3, 3, padding=2, dilation=2))
    x = data(2, 2, *EXTENTS[rank])
    wanted = results(layer, x)
    report = rewrite_module(layer, x, timings=Scripted({name: 0.5}), only=[name])
    (choice,) = report.layers
    if name in choice.refused:
        assert report.rewritten == 0
        return
    assert (report.rewritten, choice.method, choice.name) == (1, name, "")
    assert choice.reason == f"{name} is 2.00x faster than PyTorch's own form"
    assert repr(report) == f"<dilrewrite.pytorch.Rewriting 1 of 1 (itself: {name})>"
    used.clear()
    assert same(results(layer, x), wanted)
    assert used == [name]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("padding", ["same", "valid", 1])
@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_paddings(rank: int, kernel: int, padding: str | int, used: list[str]) -> None:
    """With an even kernel and an odd dilation, "same" pads one more at the end."""
    dilation = 3 if rank == 1 else 1 if kernel == 4 else 2
    dilations = (max(dilation, 2), *(dilation,) * (rank - 1))
    kernels = (kernel, *(min(kernel, 3),) * (rank - 1))  # 64 taps are more than tap_sum takes
    layer = whole_numbers(CONVS[rank](2, 2, kernels, padding=padding, dilation=dilations))
    x = data(1, 2, *(extent + 4 for extent in EXTENTS[rank]))
    wanted = results(layer, x)
    assert rewrite(layer, x).rewritten == 1
    used.clear()
    assert same(results(layer, x), wanted)
    assert used == ["tap_sum"]


def test_without_a_batch(used: list[str]) -> None:
    module = small()
    x = data(3, 12)
    wanted = results(module, x)
    report = rewrite(module, x)
    assert [layer.shape for layer in report.layers] == [(1, 3, 12), (1, 4, 12)]
    used.clear()
    assert same(results(module, x), wanted)
    assert same(results(module, x[None])[1:], [wanted[1][None], *wanted[2:]])
    assert used == ["tap_sum"] * 4


def test_wrong_inputs_fail_as_before() -> None:
    layer = whole_numbers(nn.Conv2d(1, 1, 3, dilation=2))
    example = data(1, 1, 9, 9)
    wrong = [data(9, 9), data(1, 2, 9, 9), data(1, 1, 9, 9).float(), data(1, 1, 9, 3), data(1, 1, 1, 9, 9)]
    before = []
    for x in wrong:
        with pytest.raises(RuntimeError) as error:
            layer(x)
        before.append(str(error.value))
    assert rewrite(layer, example).rewritten == 1
    for x, message in zip(wrong, before, strict=True):
        with pytest.raises(RuntimeError) as error:
            layer(x)
        assert str(error.value) == message


def test_where_the_method_does_not_apply_to_the_very_size_the_native_form_is_used(used: list[str]) -> None:
    """Of one bucket are sizes for which a method may refuse."""
    layer = whole_numbers(nn.Conv1d(1, 1, 3, padding=30, dilation=29))
    sizes = list(range(17, 33))
    wanted = {length: layer(data(1, 1, length) * 0 + 1) for length in sizes}
    assert rewrite_module(layer, data(1, 1, 32), timings=Scripted({"space_to_axis": 0.5})).rewritten == 1
    used.clear()
    for length in sizes:
        assert torch.equal(layer(data(1, 1, length) * 0 + 1), wanted[length])
    assert len(used) == len(sizes)
    choose(layer, (1, 1, 32), "im2col")
    grouped = whole_numbers(nn.Conv1d(2, 2, 3, dilation=2, groups=2))
    choose(grouped, (1, 2, 16), "im2col")
    x = data(1, 2, 16)
    assert torch.equal(grouped(x), nn.Conv1d._conv_forward(grouped, x, grouped.weight, grouped.bias))
    assert used[-1] == "im2col does not apply"


def test_buckets() -> None:
    assert bucket((3, 7, 12, 16)) == (4, 16, 16)
    assert bucket((1, 7, 1)) == (1, 1)
    layer = nn.Conv1d(1, 1, 3, dilation=2)
    chosen = Chosen.of(layer, {bucket((3, 1, 12)): "tap_sum"})
    assert {n for n in range(9) if chosen.choice((n, 1, 12)) == "tap_sum"} == {3, 4}
    assert {t for t in range(40) if chosen.choice((4, 1, t)) == "tap_sum"} == set(range(9, 17))
    for n, t in itertools.product(range(1, 9), range(1, 40)):
        assert (chosen.choice((n, 1, t)) == "tap_sum") == (bucket((n, 1, t)) == (4, 16))
    assert Chosen.of(layer, {(1, 1): "tap_sum"}).choice((0, 1, 0)) == NATIVE


def test_other_sizes_use_the_native_form_and_another_example_adds(used: list[str]) -> None:
    module = small()
    short, long = data(2, 3, 12), data(2, 3, 40)
    wanted = [results(module, x) for x in (short, long)]
    rewrite(module, short)
    used.clear()
    assert same(results(module, long), wanted[1])
    assert used == []
    rewrite_module(module, long, timings=Scripted({"space_to_batch": 0.5}))
    assert module[0]._conv_forward.choices == {(2, 16): "tap_sum", (2, 64): "space_to_batch"}
    used.clear()
    assert same(results(module, short), wanted[0])
    assert same(results(module, long), wanted[1])
    assert used == ["tap_sum"] * 2 + ["space_to_batch"] * 2


def test_the_same_sizes_are_chosen_for_anew() -> None:
    module = small()
    short, long = data(2, 3, 12), data(2, 3, 40)
    rewrite(module, short)
    rewrite(module, long)
    report = rewrite_module(module, long, timings=Scripted({}))
    assert report.rewritten == 0
    assert module[0]._conv_forward.choices == {(2, 16): "tap_sum"}
    assert rewrite_module(module, short, timings=Scripted(TAP_SUM, whole=1.0)).rewritten == 0
    assert all("_conv_forward" not in layer.__dict__ for layer in module.modules())


def test_autocast(used: list[str]) -> None:
    module = small().float()
    x = data(2, 3, 12).float()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = module(x)
        report = rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True))
        used.clear()
        found = module(x)
    assert [layer.element for layer in report.layers] == ["bfloat16"] * 2
    assert report.rewritten == 2
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert torch.equal(found, wanted), "small whole numbers are exact in bfloat16"
    assert used == ["tap_sum"] * 2
    assert module(x).dtype == torch.float32


def test_autocast_computes_in_its_type(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the probe as in the rewritten module, also where it is the module itself that switches it on."""
    seen: list[Any] = []
    form_of = chosen._form

    def watched(name: str, geometry: Any) -> Any:
        def form(x: Any, weight: Any, bias: Any) -> Any:
            seen.append((x.dtype, weight.dtype, bias.dtype if bias is not None else None, geometry.bias))
            return form_of(name, geometry)(x, weight, bias)

        return form

    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small().float()

        def forward(self, x: Any) -> Any:
            with torch.autocast("cpu", torch.bfloat16):
                return self.net(x)

    monkeypatch.setattr(chosen, "_form", watched)
    module = Casting()
    x = data(2, 3, 12).float()
    rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True))
    module(x)
    half = torch.bfloat16
    assert {(half, half, half, True), (half, half, None, False)} == set(seen)


def test_autocast_leaves_float64_alone(used: list[str]) -> None:
    module = small()
    x = data(2, 3, 12)
    with torch.autocast("cpu", torch.bfloat16):
        wanted = module(x)
        report = rewrite(module, x)
        found = module(x)
    assert report.layers[0].element == "float64"
    assert found.dtype == wanted.dtype == torch.float64
    assert torch.equal(found, wanted)
    assert used == ["tap_sum"] * 2


def test_autocast_gives_gradients_after_probing() -> None:
    """Nothing of what probing converted without gradients is left in autocast's cache."""
    module = small().float()
    x = data(2, 3, 12).float()
    with torch.autocast("cpu", torch.bfloat16):
        rewrite_module(module, x, passes=["forward"], timings=Scripted(TAP_SUM, whole=2.0, runs=True))
        module(x).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


# -- what is chosen --------------------------------------------------------------------------------------------------


def test_the_fastest_of_those_that_win() -> None:
    timings = Scripted({"tap_sum": 0.7, "space_to_batch": 0.4, "im2col": 0.99})
    report = rewrite_module(small(), data(2, 3, 12), timings=timings)
    assert [layer.method for layer in report.layers] == ["space_to_batch"] * 2
    assert {*report.layers[0].forms, *report.layers[0].refused} == {*methods()} - {NATIVE, *INEXACT}
    assert "im2col" in report.layers[1].refused
    assert [layer.name for layer in report.layers] == ["0", "2"]


def test_native_keeps_ties() -> None:
    """Faster by the margin is not enough."""
    module = small()
    report = rewrite_module(module, data(2, 3, 12), timings=Scripted({"tap_sum": 0.98, "im2col": 1.0}))
    assert (report.rewritten, report.whole, report.break_even_steps) == (0, None, None)
    assert report.layers[0].reason == "no form is faster beyond noise: the best, tap_sum, is 1.020x faster"
    assert all("_conv_forward" not in layer.__dict__ for layer in module.modules())


def test_a_plain_net_in_2d_keeps_every_layer() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=4, dilation=4),
    )
    before = [dict(layer.__dict__) for layer in net.modules()]
    timings = Scripted({})
    report = rewrite_module(net, torch.randn(1, 3, 8, 8), timings=timings)
    assert [(layer.name, layer.method) for layer in report.layers] == [("3", NATIVE), ("5", NATIVE)]
    assert [set(layer.__dict__) for layer in net.modules()] == [set(values) for values in before]
    assert "" not in {name for name, _, _ in timings.asked}, "nothing to confirm"


@pytest.mark.parametrize("one", PASSES)
def test_passes_are_asked_for_apart(one: str) -> None:
    class ByPass(Scripted):
        def __call__(self, first: Probe, second: Probe, passes: tuple[str, ...], seconds: float, **how: bool) -> Any:
            self.ratios = {"tap_sum": 0.5} if passes == ("forward",) else {"space_to_batch": 0.5}
            return super().__call__(first, second, passes, seconds, **how)

    module = small()
    timings = ByPass({}, runs=True)
    report = rewrite_module(module, data(2, 3, 12), passes=[one], timings=timings)
    wanted = {"forward": "tap_sum", "backward": "space_to_batch"}[one]
    assert {layer.method for layer in report.layers} == {wanted}
    assert report.passes == (one,)
    assert {passes for _, passes, _ in timings.asked} == {(one,)}
    assert timings.asked[-1][0] == ""


def test_alike_is_probed_once() -> None:
    module = nn.Sequential(*(nn.Conv1d(2, 2, 3, padding=2, dilation=2) for _ in range(4)))
    module[0].requires_grad_(False)
    timings = Scripted(TAP_SUM)
    report = rewrite_module(module, torch.randn(1, 2, 12), timings=timings)
    assert report.rewritten == 4
    assert [layer.name for layer in report.layers] == ["0", "1", "2", "3"]
    # The first has neither input nor weight that want a gradient, the second no input: three different Convs.
    assert sum(name == "tap_sum" for name, _, _ in timings.asked) == 3


def test_only_some_methods() -> None:
    timings = Scripted({"tap_sum": 0.5, "space_to_batch": 0.4})
    report = rewrite_module(small(), data(2, 3, 12), only=["tap_sum"], timings=timings)
    assert {layer.method for layer in report.layers} == {"tap_sum"}
    assert {name for name, _, _ in timings.asked} == {"tap_sum", ""}


@pytest.mark.parametrize("whole", [1.0, 1.3, 0.99])
def test_what_the_whole_module_does_not_confirm_is_undone(whole: float) -> None:
    module = small()
    before = [dict(layer.__dict__) for layer in module.modules()]
    report = rewrite_module(module, data(2, 3, 12), timings=Scripted(TAP_SUM, whole=whole, runs=True))
    assert (report.rewritten, report.break_even_steps) == (0, None)
    assert report.whole is not None
    assert report.whole.ratio == whole
    for layer in report.layers:
        assert layer.reason == (
            f"tap_sum is 2.00x faster than PyTorch's own form, but the whole module is {speed(whole)} with it, "
            "not faster beyond noise"
        )
        assert layer.forms
    assert [set(layer.__dict__) for layer in module.modules()] == [set(values) for values in before]


def test_a_module_without_gradients_is_not_confirmed() -> None:
    class Labels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Any) -> Any:
            return self.net(x).argmax(1)

    module = Labels()
    x = data(2, 3, 12)
    report = rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True))
    assert report.rewritten == 0
    assert "the whole module could not be timed" in report.layers[0].reason
    assert rewrite_module(module, x, passes=["forward"], timings=Scripted(TAP_SUM, runs=True)).rewritten == 2


def test_a_form_that_fails_is_told() -> None:
    class Failing(Scripted):
        def __call__(self, first: Probe, second: Probe, *rest: Any, **how: Any) -> Comparison:
            if second.name == "im2col":
                raise RuntimeError("not enough\nmemory")
            return super().__call__(first, second, *rest, **how)

    report = rewrite_module(small(), data(2, 3, 12), timings=Failing(TAP_SUM))
    assert report.layers[0].refused["im2col"] == "failed: not enough memory"
    assert report.rewritten == 2


def test_an_interrupt_leaves_the_module_as_it_was() -> None:
    class Interrupted(Scripted):
        def __call__(self, first: Probe, second: Probe, *rest: Any, **how: Any) -> Comparison:
            found = super().__call__(first, second, *rest, **how)
            if second.name == "":
                raise KeyboardInterrupt
            return found

    module = small()
    short, long = data(2, 3, 12), data(2, 3, 40)
    rewrite(module, short)
    with pytest.raises(KeyboardInterrupt):
        rewrite_module(module, long, timings=Interrupted(TAP_SUM, runs=True))
    assert [module[place]._conv_forward.choices for place in (0, 2)] == [{(2, 16): "tap_sum"}] * 2


def test_budget_0_changes_nothing() -> None:
    module = small()
    report = rewrite_module(module, "not even run", budget=0)
    assert [(layer.method, layer.reason) for layer in report.layers] == [(NATIVE, "not probed: budget 0")] * 2
    assert (report.rewritten, report.probe_s, report.break_even_steps) == (0, 0.0, None)
    assert all("_conv_forward" not in layer.__dict__ for layer in module.modules())


@dataclass
class FakeClock:
    now: float = 100.0

    def perf_counter(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """What `rewrite_module` reads the time from."""
    found = FakeClock()
    monkeypatch.setattr(rewriting, "time", SimpleNamespace(perf_counter=found.perf_counter))
    return found


@pytest.mark.parametrize("overrun", [0.5, 1.0, 3.0])
def test_the_budget_is_kept(overrun: float, clock: FakeClock) -> None:
    """Each timing takes so many times what it was given; the rest gets less, or is left out."""
    module = nn.Sequential(*(nn.Conv1d(2, 2, 3, padding=d, dilation=d) for d in (2, 3, 4, 5, 6)))
    timings = Scripted(TAP_SUM, passing=lambda seconds: clock.pass_by(seconds * overrun))
    report = rewrite_module(module, torch.randn(1, 2, 40), budget=9.0, timings=timings)
    *probes, (last, _, left) = timings.asked
    assert last == ""
    assert report.probe_s == pytest.approx(clock.now - 100.0)
    if overrun <= 1:
        assert report.probe_s <= 9.0 * 1.001
        assert sum(seconds for _, _, seconds in probes) * overrun <= 6.0 * 1.001
        assert left >= 3.0 * 0.999
        assert min(seconds for _, _, seconds in probes) > 0.1, "every form of every layer gets its share"
    else:
        assert clock.now - 100.0 - left * overrun <= 6.0 * 1.3
        assert any("not probed: budget" in layer.refused.values() for layer in report.layers)


@pytest.mark.parametrize(("step_s", "with_noise"), [(0.01, True), (1.0, False)])
def test_a_slow_module_is_not_timed_against_itself(
    step_s: float, with_noise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is time for the fewest pairs of the two at most; those are run in any case."""
    now = [0.0]

    def run() -> None:
        now[0] += step_s

    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter_ns=lambda: int(now[0] * 1e9))
    monkeypatch.setattr(probing, "time", clock)
    stopwatch = probing.Stopwatch
    monkeypatch.setattr(probing, "Stopwatch", lambda *a, **k: stopwatch(*a, **k, clock=clock.monotonic))
    probe = Probe(lambda _passes: probing.Work(run))
    found = probing.step_timings(probe, probe, PASSES, 5.0, whole=True)
    assert (found.noise is not None) == with_noise
    assert now[0] <= max(5.0 * 1.5, (probing.FEWEST_RUNS + 2) * step_s * 1.001)
    now[0] = 0.0
    probing.step_timings(probe, probe, PASSES, 5.0)
    assert now[0] <= max(5.0 * 1.5, probing.FEWEST_RUNS * step_s * 1.001), "the first pairs are enough when time is up"


def test_the_report_tells_the_price(clock: FakeClock) -> None:
    timings = Scripted(TAP_SUM, whole=0.75, passing=lambda _seconds: clock.pass_by(0.5))
    report = rewrite_module(small(), data(2, 3, 12), timings=timings)
    assert report.probe_s == pytest.approx(0.5 * len(timings.asked))
    # A step took 10 ms and takes 7.5.
    assert report.break_even_steps == math.ceil(report.probe_s / 0.0025)


# -- what is left alone ----------------------------------------------------------------------------------------------


def test_what_something_else_computes_is_left_alone() -> None:
    module = small()
    module[0]._conv_forward = lambda x, weight, bias: nn.Conv1d._conv_forward(module[0], x, weight, bias)
    own = module[0]._conv_forward
    report = rewrite(module, data(2, 3, 12))
    assert report.layers[0].reason == "something else has set its _conv_forward: delete that attribute before"
    assert restore_module(module) == 1
    assert module[0]._conv_forward is own


def test_no_dilation_no_candidate() -> None:
    """A kernel of 1 has none either."""
    module = nn.Sequential(nn.Conv1d(3, 3, 3), nn.Conv1d(3, 3, 1, dilation=4))
    report = rewrite_module(module, torch.randn(1, 3, 12))
    assert report.layers == ()
    assert report.rewritten == 0


def test_what_does_not_run_is_told() -> None:
    module = small()
    module.unused = nn.Conv1d(1, 1, 3, dilation=2)
    module.forward = lambda x: module[2](module[0](x))
    report = rewrite(module, data(2, 3, 12))
    assert [layer.reason for layer in report.layers if layer.name == "unused"] == [
        "it did not run on the example: take one that reaches it"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": ["sideways"]}, "passes sideways: not some of forward, backward"),
        ({"passes": []}, "passes are empty"),
        ({"only": ["magic"]}, "no method 'magic'; known are keep"),
        ({"budget": -1}, "budget -1"),
        ({"budget": math.nan}, "budget nan"),
    ],
)
def test_wrong_usage(options: dict[str, Any], message: str) -> None:
    module = small()
    with pytest.raises(UsageError) as error:
        rewrite_module(module, data(2, 3, 12), **options)
    assert message in str(error.value)
    assert all("_conv_forward" not in layer.__dict__ for layer in module.modules())


# -- what is changed after the choice --------------------------------------------------------------------------------


def _circular(layer: Any) -> None:
    layer.padding_mode = "circular"
    layer._reversed_padding_repeated_twice = [4, 4] * len(layer.kernel_size)


def _grouped(layer: Any) -> None:
    layer.groups = 2
    layer.weight = nn.Parameter(layer.weight.detach()[:, :2].clone())


def _complex(layer: Any) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() * (1 + 2j))
    layer.bias = nn.Parameter(layer.bias.detach() * 1j)


def _other_weight(*kernel: int) -> Callable[[Any], None]:
    def change(layer: Any) -> None:
        shape = (*layer.weight.shape[:2], *(kernel * len(layer.kernel_size)))
        layer.weight = nn.Parameter(torch.randint(-3, 4, shape).double())

    return change


CHANGES: dict[str, Callable[[Any], None]] = {
    "dilation": lambda layer: setattr(layer, "dilation", (2,) * len(layer.kernel_size)),
    "dilation, a number": lambda layer: setattr(layer, "dilation", 2),
    "dilation, a list": lambda layer: setattr(layer, "dilation", [3] * len(layer.kernel_size)),
    "padding": lambda layer: setattr(layer, "padding", (1,) * len(layer.kernel_size)),
    "padding, a word": lambda layer: setattr(layer, "padding", "valid"),
    "stride": lambda layer: setattr(layer, "stride", (2,) * len(layer.kernel_size)),
    "padding mode": _circular,
    "groups": _grouped,
    "complex weights": _complex,
    "a longer kernel": _other_weight(5),
    "a kernel of 1": _other_weight(1),
}


@pytest.mark.parametrize("way", ["eager", "forward", "copied", "pickled", "replica", "compiled"])
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_after_the_choice_counts(change: str, way: str, used: list[str]) -> None:
    """A Conv computes what its settings say when it is called, however it came there."""
    layer = whole_numbers(nn.Conv1d(4, 4, 3, padding=4, dilation=4))
    plain = copy.deepcopy(layer)
    x = data(2, 4, 20)
    choose(layer, x.shape, "space_to_axis")
    call = layer
    if way == "compiled":
        torch._dynamo.reset()
        call = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(call(x), plain(x))
    assert set(used) == {"space_to_axis"}
    used.clear()
    torch.manual_seed(1)
    CHANGES[change](layer)
    torch.manual_seed(1)
    CHANGES[change](plain)
    x = x.to(plain.weight.dtype)
    if way == "copied":
        call = copy.deepcopy(layer)
        layer.stride = (7,)  # of another Conv by now
    elif way == "pickled":
        call = pickle.loads(pickle.dumps(layer))
        layer.stride = (7,)
    elif way == "replica":
        call = layer._replicate_for_data_parallel()
        call.weight, call.bias = layer.weight.detach(), layer.bias.detach()
    elif way == "forward":
        call = layer.forward
    assert torch.equal(call(x), plain(x))
    assert not used, "PyTorch computes it"


@pytest.mark.parametrize("rank", CONVS)
def test_a_change_that_is_taken_back_leaves_the_choice(rank: int, used: list[str]) -> None:
    layer = whole_numbers(CONVS[rank](3, 2, 3, padding=2, dilation=2))
    x = data(2, 3, *EXTENTS[rank])
    choose(layer, x.shape, "tap_sum")
    before = results(layer, x)
    layer.dilation = (1,) * rank
    torch.testing.assert_close(layer(x), CONVS[rank]._conv_forward(layer, x, layer.weight, layer.bias), rtol=0, atol=0)
    layer.dilation = [2]  # one number for all axes, as PyTorch takes it
    assert same(results(layer, x), before)
    assert used == ["tap_sum"] * 2


def test_a_choice_for_other_settings_is_not_taken_over() -> None:
    module = small()
    x = data(2, 3, 12)
    rewrite(module, x)
    module[0].dilation = (3,)
    wanted = results(module, x)
    report = rewrite_module(module, (data(2, 3, 40),), timings=Scripted({"space_to_batch": 0.5}))
    assert [layer.method for layer in report.layers] == ["space_to_batch"] * 2
    assert module[0]._conv_forward.choices == {(2, 64): "space_to_batch"}
    assert module[2]._conv_forward.choices == {(2, 16): "tap_sum", (2, 64): "space_to_batch"}
    assert same(results(module, x), wanted)


def test_settings_as_pytorch_takes_them(used: list[str]) -> None:
    """A number for all axes, and lists: both are probed and rewritten."""
    layer = whole_numbers(nn.Conv2d(3, 4, 3))
    layer.stride, layer.padding, layer.dilation = 1, [2], [2, 3]
    x = data(2, 3, 12, 11)
    wanted = results(layer, x)
    assert rewrite(layer, x).rewritten == 1
    used.clear()
    assert same(results(layer, x), wanted)
    assert used == ["tap_sum"]


@pytest.mark.parametrize("name", [name for name in methods() if name != NATIVE])
def test_types_that_do_not_go_together_fail_as_before(name: str) -> None:
    layer = nn.Conv1d(3, 4, 3, padding=2, dilation=2)
    x = torch.randn(2, 3, 12)
    choose(layer, x.shape, name)
    for weight, bias in ((layer.weight.double(), layer.bias), (layer.weight, layer.bias.double())):
        with pytest.raises(RuntimeError) as error:
            nn.Conv1d._conv_forward(layer, x, weight, bias)
        with pytest.raises(RuntimeError) as same_error:
            layer._conv_forward(x, weight, bias)
        assert str(same_error.value) == str(error.value)


# -- what is as before -----------------------------------------------------------------------------------------------


def test_an_example_that_fails_leaves_nothing_behind() -> None:
    module = small()
    with pytest.raises(RuntimeError, match="channels"):
        rewrite(module, data(2, 5, 12))
    for layer in module.modules():
        assert not layer._forward_pre_hooks
        assert not layer._forward_pre_hooks_with_kwargs
        assert "_conv_forward" not in layer.__dict__


class Noisy(nn.Module):
    """Statistics that change in place and by a new tensor, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=2, dilation=2)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("level", torch.zeros(1))
        self.register_buffer("last", None)

    def forward(self, x: Any) -> Any:
        self.level = self.level * 0.9 + float(x.detach().mean())
        self.last = x.detach()
        return self.dropout(self.norm(self.conv(x))) + self.level


@pytest.mark.parametrize("passes", [("forward",), ("backward",), PASSES])
@pytest.mark.parametrize("whole", [0.5, 2.0])
def test_statistics_and_random_numbers_are_as_before(passes: tuple[str, ...], whole: float) -> None:
    module = Noisy()
    x = torch.randn(2, 3, 12)
    module.norm(torch.randn(2, 4, 12))
    level = module.level
    before = copy.deepcopy(module.state_dict())
    random = torch.random.get_rng_state()
    rewrite_module(module, x, passes=passes, timings=Scripted(TAP_SUM, whole=whole, runs=True))
    assert torch.equal(torch.random.get_rng_state(), random)
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert module.level is level
    assert module.last is None
    assert all(parameter.grad is None for parameter in module.parameters())
    assert module.training


def test_hooks_fire() -> None:
    module = small()
    x = data(2, 3, 12)
    wanted = results(module, x)
    rewrite(module, x)
    layer = module[0]
    fired: list[str] = []
    layer.register_forward_pre_hook(lambda *_: fired.append("before"))
    layer.register_forward_hook(lambda *_: fired.append("after"))
    layer.register_full_backward_pre_hook(lambda *_: fired.append("backward begins"))
    layer.register_full_backward_hook(lambda *_: fired.append("backward"))
    layer.weight.register_hook(lambda _: fired.append("weight"))
    assert same(results(module, x), wanted)
    assert sorted(fired) == ["after", "backward", "backward begins", "before", "weight"]


def test_hooks_from_before_fire_and_are_heeded() -> None:
    module = small()
    fired: list[str] = []
    module[2].register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))
    module[2].register_full_backward_hook(lambda *_: fired.append("backward"))
    x = data(2, 3, 12)
    wanted = results(module, x)
    rewrite(module, x)
    fired.clear()
    assert same(results(module, x), wanted)
    assert fired == ["backward"]


def test_called_with_a_named_argument() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 3, 3, dilation=2)

        def forward(self, x: Any) -> Any:
            return self.conv(input=x)

    assert rewrite(Named(), torch.randn(1, 3, 12)).rewritten == 1


def test_two_layers_share_a_parameter(used: list[str]) -> None:
    module = whole_numbers(nn.Sequential(*(nn.Conv1d(3, 3, 3, padding=d, dilation=d) for d in (2, 4))))
    module[1].weight = module[0].weight
    x = data(2, 3, 12)
    wanted = results(module, x)
    assert rewrite(module, x).rewritten == 2
    assert module[1].weight is module[0].weight
    assert len(list(module.parameters())) == 3
    used.clear()
    assert same(results(module, x), wanted)
    assert used == ["tap_sum"] * 2


def test_one_layer_at_two_places() -> None:
    layer = nn.Conv1d(3, 3, 3, padding=2, dilation=2)
    module = whole_numbers(nn.Sequential(layer, nn.ReLU(), layer))
    x = data(2, 3, 12)
    wanted = results(module, x)
    assert rewrite(module, x).rewritten == 1
    assert same(results(module, x), wanted)
    assert restore_module(module) == 1


def test_weight_norm(used: list[str]) -> None:
    module = small().float()
    nn.utils.parametrizations.weight_norm(module[0])
    x = data(2, 3, 12).float()
    wanted = results(module, x)
    keys = list(module.state_dict())
    assert rewrite(module, x).rewritten == 2
    assert list(module.state_dict()) == keys
    used.clear()
    for a, b in zip(results(module, x), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)
    assert used == ["tap_sum"] * 2
    copied = copy.deepcopy(module)
    assert copied[0]._conv_forward == module[0]._conv_forward
    nn.utils.parametrize.remove_parametrizations(module[0], "weight")
    assert type(module[0]) is nn.Conv1d
    assert restore_module(module) == 2


def test_frozen_weights(used: list[str]) -> None:
    module = small()
    module[0].weight.requires_grad_(False)
    module[2].requires_grad_(False)
    x = data(2, 3, 12)
    wanted = results(module, x)
    assert rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True)).rewritten == 2
    used.clear()
    assert same(results(module, x), wanted)
    assert used == ["tap_sum"] * 2
    assert module[0].weight.grad is None
    module.requires_grad_(False)
    assert rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True)).rewritten == 2


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_an_optimizer_from_before_goes_on(kind: str) -> None:
    plain, module = small(), small()
    plain.load_state_dict(module.state_dict())
    x = data(2, 3, 12) / 8
    optimizers = [getattr(torch.optim, kind)(net.parameters(), lr=2**-10) for net in (plain, module)]
    assert rewrite(module, x).rewritten == 2
    before = [parameter.clone() for parameter in module.parameters()]
    for _ in range(3):
        for net, optimizer in zip((plain, module), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for was, found, wanted in zip(before, module.parameters(), plain.parameters(), strict=True):
        assert not torch.equal(was, found)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_state_dict_both_ways() -> None:
    plain, module = small(), small()
    x = data(2, 3, 12)
    rewrite(module, x)
    plain.load_state_dict(module.state_dict(), strict=True)
    assert same(results(module, x), results(plain, x))
    whole_numbers(plain)
    module.load_state_dict(plain.state_dict(), strict=True)
    assert same(results(module, x), results(plain, x))


def test_restored() -> None:
    module = small()
    x = data(2, 3, 12)
    before = [(layer, type(layer), dict(layer.__dict__)) for layer in module.modules()]
    parameters = list(module.parameters())
    wanted = results(module, x)
    rewrite(module, x)
    assert [type(layer) for layer in module.modules()] == [kind for _, kind, _ in before]
    assert restore_module(module) == 2
    for layer, (was, kind, values) in zip(module.modules(), before, strict=True):
        assert layer is was
        assert type(layer) is kind
        assert layer.__dict__ == values
    assert all(a is b for a, b in zip(module.parameters(), parameters, strict=True))
    assert same(results(module, x), wanted)
    assert restore_module(module) == 0


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_carry_the_choice(how: str, used: list[str]) -> None:
    module = small()
    x = data(2, 3, 12)
    wanted = results(module, x)
    rewrite(module, x)
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        stream = io.BytesIO()
        torch.save(module, stream)
        twin = torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    assert twin[0]._conv_forward is not module[0]._conv_forward
    with torch.no_grad():
        module[0].weight.zero_()
    used.clear()
    assert same(results(twin, x), wanted), "the copy has its own parameters"
    assert used == ["tap_sum"] * 2
    restore_module(twin)
    assert "_conv_forward" in module[0].__dict__


def test_replicas_carry_the_choice(used: list[str]) -> None:
    """As DataParallel makes them: the same attributes, and other tensors in the place of the parameters."""
    layer = small()[0]
    x = data(2, 3, 12)
    rewrite(layer, x)
    replica = layer._replicate_for_data_parallel()
    replica.weight, replica.bias = layer.weight.detach() * 2, None
    used.clear()
    with torch.no_grad():
        wanted = torch.nn.functional.conv1d(x, layer.weight * 2, None, layer.stride, layer.padding, layer.dilation)
        assert torch.equal(replica(x), wanted)
    assert used == ["tap_sum"]


# -- what comes after: compiling, exporting, several processes -------------------------------------------------------


@pytest.mark.parametrize("name", ["tap_sum", "space_to_batch", "weight_gradient"])
def test_compiled_without_a_break(name: str) -> None:
    """Choices go on to hold for their sizes alone, and a size without one is no reason to fail."""
    torch._dynamo.reset()
    module = small()
    x, other = data(2, 3, 12), data(2, 3, 40)
    wanted = [results(module, each) for each in (x, other)]
    rewrite_module(module, x, timings=Scripted({name: 0.5}))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert same(results(compiled, x), wanted[0])
    assert same(results(compiled, other), wanted[1])


def test_compiled_with_native_sizes_compiles_once() -> None:
    """Lengths outside of a bucket share a graph, as they do without rewriting."""
    torch._dynamo.reset()
    module = small()
    rewrite(module, data(2, 3, 12))
    graphs: list[Any] = []

    def backend(graph: Any, _example: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    for length in (40, 41, 50, 63):
        x = data(2, 3, length)
        with torch.no_grad():
            assert torch.equal(compiled(x), module(x))
    assert len(graphs) == 1


def test_traced() -> None:
    """A trace serves all sizes."""
    module = small()
    rewrite(module, data(2, 3, 12))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, data(2, 3, 12))
    for length in (9, 12, 40):
        x = data(2, 3, length)
        assert torch.equal(traced(x), module(x))


@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_exported(dynamo: bool, tmp_path: Path, used: list[str]) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed: the exported model runs in it")
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed: torch exports with it")
    module = small().float().eval()
    x = data(2, 3, 12).float()
    assert rewrite(module, x).rewritten == 2
    used.clear()
    file = tmp_path / "exported.onnx"
    lengths: dict[str, Any] = {"dynamic_axes": {"x": {2: "length"}, "y": {2: "length"}}}
    if dynamo:
        lengths = {"dynamic_shapes": ({2: torch.export.Dim("length", min=2, max=4096)},), "verbose": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporters' own
        torch.onnx.export(module, (x,), str(file), dynamo=dynamo, input_names=["x"], output_names=["y"], **lengths)
    assert used == []
    nodes = [node for node in onnx.load(file).graph.node if node.op_type == "Conv"]
    dilations = [list(value.ints) for node in nodes for value in node.attribute if value.name == "dilations"]
    assert sorted(dilations) == [[1], [2], [4]]
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for length in (9, 12, 50):
        x = data(2, 3, length).float()
        (found,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            np.testing.assert_array_equal(found, module(x).numpy())
    assert used == ["tap_sum"] * 4


WORKER = """
import json, os, sys
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from dilrewrite.pytorch.chosen import choose

rank, place = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method="file://" + place, rank=rank, world_size=2)
torch.manual_seed(0)
net = nn.Sequential(nn.Conv1d(3, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv1d(4, 2, 3, dilation=3)).double()
with torch.no_grad():
    for parameter in net.parameters():
        parameter.copy_(torch.randint(-3, 4, parameter.shape))
x = torch.randint(-4, 5, (2, 2, 3, 12)).double()[rank]
found = []
for rewritten in (False, True):
    if rewritten:
        choose(net[0], (2, 3, 12), "tap_sum")
        choose(net[2], (2, 4, 12), "space_to_batch")
    net.zero_grad()
    parallel = DistributedDataParallel(net)
    (parallel(x) * 4).sum().backward()
    found.append([parameter.grad.flatten().tolist() for parameter in net.parameters()])
    del parallel
torch.distributed.barrier()
print(json.dumps(found), flush=True)
os._exit(0)  # the group's own end dies at times when the other side is gone first
"""


def test_two_processes_agree(tmp_path: Path) -> None:
    """The gradients of a distributed step are those of the net that is not rewritten, on both sides."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path / "meeting")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        ended = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], ended
    (plain, rewritten), other = (json.loads(out.splitlines()[-1]) for out, _ in ended)
    assert any(value for gradient in plain for value in gradient)
    assert rewritten == plain
    assert other == [plain, plain]


# -- by the clock, and by name ---------------------------------------------------------------------------------------


def test_timed_by_the_clock() -> None:
    """Whatever wins here, nothing else changes; what it cost is told."""
    module = small()
    x = data(2, 3, 12)
    wanted = results(module, x)
    report = rewrite_module(module, x, budget=0.1, only=["tap_sum", "space_to_batch"])
    assert report.probe_s > 0
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert (report.break_even_steps is None) == (report.rewritten == 0)
    assert same(results(module, x), wanted)


def test_a_tensor_and_a_tuple_of_arguments() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, x: Any, y: Any) -> dict[str, Any]:
            return {"sum": self.net(x + y), "pair": (self.net(x), 3, torch.ones(2, dtype=torch.int64))}

    module = Two()
    timings = Scripted(TAP_SUM, runs=True)
    assert rewrite_module(module, (data(2, 3, 12), data(2, 3, 12)), timings=timings).rewritten == 2


def test_names_of_the_package() -> None:
    for name in dilrewrite.pytorch.__all__:
        assert getattr(dilrewrite.pytorch, name) is not None
    assert dilrewrite.pytorch.rewrite_module is rewrite_module
    assert list(dilrewrite.pytorch.methods.methods()) == list(methods())
    with pytest.raises(AttributeError, match="no_such_name"):
        dilrewrite.pytorch.no_such_name  # noqa: B018


def test_preserved_is_not_for_lazy_buffers() -> None:
    """What has no sizes yet has no values to come back to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Lazy modules")
        module = nn.Sequential(nn.Conv1d(3, 3, 3, dilation=2), nn.LazyBatchNorm1d())
    with probing.preserved(module):
        module(torch.randn(2, 3, 12))
    assert type(module[1]) is nn.BatchNorm1d
