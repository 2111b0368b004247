"""Modules of all kinds are rewritten, and compute the same: subclasses that pad, padding modes, norms, whole models."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from dilrewrite.pytorch.chosen import NATIVE, choose
from dilrewrite.pytorch.methods import methods
from dilrewrite.pytorch.rewriting import restore_module, rewrite_module
from tests.pytorch.test_rewriting import CONVS, EXTENTS, TAP_SUM, Scripted, data, results, same, whole_numbers

torch = pytest.importorskip("torch", reason="torch is not installed: modules are rewritten in it")
import torch.nn.functional as F  # noqa: E402, N812
from torch import nn  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


# -- subclasses ------------------------------------------------------------------------------------------------------


class Causal(nn.Conv1d):
    """The causal Conv of most TCNs: pads on the left, and calls super."""

    def __init__(self, *sizes: int, dilation: int = 1, **others: Any) -> None:
        super().__init__(*sizes, dilation=dilation, **others)
        self.left = (sizes[2] - 1) * dilation

    def forward(self, x: Any) -> Any:
        return super().forward(F.pad(x, (self.left, 0)))


class CausalByName(Causal):
    def forward(self, input: Any) -> Any:  # noqa: A002
        return nn.Conv1d.forward(self, input=F.pad(input=input, pad=(self.left, 0)))


class Chomp(nn.Conv1d):
    """Pads on both sides, and cuts the end off."""

    def forward(self, x: Any) -> Any:
        return super().forward(x)[:, :, : -self.padding[0]].contiguous()


class Direct(Causal):
    """Calls what convolves itself, with weights of its own making."""

    def forward(self, x: Any) -> Any:
        return self._conv_forward(F.pad(x, (self.left, 0)), self.weight * 2, self.bias)


class Twice(Causal):
    def forward(self, x: Any) -> Any:
        return super().forward(super().forward(x))


class Reflected2d(nn.Conv2d):
    def forward(self, x: Any, scale: float = 1.0) -> Any:
        return super().forward(F.pad(x, (2, 2, 2, 2), mode="reflect")) * scale


class Framewise3d(nn.Conv3d):
    """Causal in time, as video networks have it."""

    def forward(self, x: Any) -> Any:
        return super().forward(F.pad(x, (2, 2, 2, 2, 4, 0)))


def _normed(layer: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls it old
        return nn.utils.weight_norm(layer)


SUBCLASSES: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "causal": (lambda: Causal(3, 3, 3, dilation=4), (2, 3, 20)),
    "causal, by name": (lambda: CausalByName(3, 3, 3, dilation=4), (2, 3, 20)),
    "causal, depthwise, no bias": (lambda: Causal(4, 4, 3, dilation=4, groups=4, bias=False), (2, 4, 20)),
    "causal, strided": (lambda: Causal(3, 3, 3, dilation=2, stride=2), (2, 3, 20)),
    "chomp": (lambda: Chomp(3, 3, 3, dilation=4, padding=8), (2, 3, 20)),
    "_conv_forward, other weights": (lambda: Direct(3, 3, 3, dilation=4), (2, 3, 20)),
    "reflected": (lambda: Reflected2d(2, 3, 3, dilation=2), (1, 2, 9, 8)),
    "3-D": (lambda: Framewise3d(2, 3, 3, dilation=2), (1, 2, 5, 6, 7)),
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_subclasses_that_pad(name: str, used: list[str]) -> None:
    make, shape = SUBCLASSES[name]
    module = whole_numbers(nn.Sequential(make(), nn.ReLU()))
    x = data(*shape)
    wanted, keys = results(module, x), list(module.state_dict())
    report = rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True))
    assert [(layer.name, layer.method) for layer in report.layers] == [("0", "tap_sum")]
    used.clear()
    assert same(results(module, x), wanted)
    assert used == ["tap_sum"]
    assert list(module.state_dict()) == keys


def test_what_is_probed_has_the_padding_of_the_subclass() -> None:
    module = nn.Sequential(Causal(3, 3, 3, dilation=4))
    (layer,) = rewrite_module(module, torch.randn(2, 3, 20), timings=Scripted(TAP_SUM)).layers
    assert layer.shape == (2, 3, 28)


def test_a_subclass_that_convolves_twice(used: list[str]) -> None:
    """A choice holds for sizes, and both are of a bucket."""
    layer = whole_numbers(Twice(3, 3, 3, dilation=4))
    x = data(2, 3, 20)
    wanted = results(layer, x)
    assert rewrite_module(layer, x, timings=Scripted(TAP_SUM)).rewritten == 1
    used.clear()
    assert same(results(layer, x), wanted)
    assert used == ["tap_sum"] * 2


def test_weights_of_another_type_are_probed_in_it() -> None:
    class Converting(nn.Conv1d):
        def forward(self, x: Any) -> Any:
            return self._conv_forward(x, self.weight.to(x.dtype), self.bias.to(x.dtype))

    layer = whole_numbers(Converting(3, 3, 3, dilation=2)).float()
    x = data(2, 3, 12)
    wanted = results(layer, x)
    report = rewrite_module(layer, x, timings=Scripted(TAP_SUM, runs=True))
    assert (report.rewritten, report.layers[0].element) == (1, "float64")
    assert same(results(layer, x), wanted)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save", "state_dict"])
def test_copies_of_subclasses(how: str, used: list[str]) -> None:
    module = whole_numbers(
        nn.Sequential(Causal(3, 3, 3, dilation=4), nn.Conv1d(3, 3, 3, 1, "same", 2, 1, True, "reflect"))
    )
    x = data(2, 3, 20)
    wanted = results(module, x)
    plain = copy.deepcopy(module)
    assert rewrite_module(module, x, timings=Scripted(TAP_SUM)).rewritten == 2
    expected = ["tap_sum"] * 2
    if how == "deepcopy":
        twin = copy.deepcopy(module)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    elif how == "torch.save":
        stream = io.BytesIO()
        torch.save(module, stream)
        twin = torch.load(io.BytesIO(stream.getvalue()), weights_only=False)
    else:
        twin = whole_numbers(plain)
        twin.load_state_dict(module.state_dict(), strict=True)
        expected = []
    used.clear()
    assert same(results(twin, x), wanted)
    assert used == expected


# -- padding modes ---------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("padding", [2, "same"])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular", "zeros"])
@pytest.mark.parametrize("rank", CONVS)
def test_padding_modes(rank: int, mode: str, padding: int | str, used: list[str]) -> None:
    kernel = 4 if rank == 1 and mode != "zeros" else 3  # "same" then pads one more at the end
    layer = whole_numbers(CONVS[rank](2, 3, kernel, padding=padding, dilation=2 if rank < 3 else (1, 2, 2)))
    layer = whole_numbers(CONVS[rank](2, 3, kernel, padding=padding, dilation=layer.dilation, padding_mode=mode))
    x = data(2, 2, *EXTENTS[rank])
    wanted = results(layer, x)
    assert rewrite_module(layer, x, timings=Scripted(TAP_SUM, runs=True)).rewritten == 1
    used.clear()
    assert same(results(layer, x), wanted)
    assert same([layer(x[0])], [wanted[0][0]]), "without a batch"
    assert used == ["tap_sum"], "a batch of 1 is another bucket"


@pytest.mark.parametrize("mode", ["reflect", "circular"])
def test_a_padding_mode_that_changes_counts(mode: str, used: list[str]) -> None:
    layer = whole_numbers(nn.Conv1d(2, 2, 3, padding=2, dilation=2, padding_mode=mode))
    x = data(1, 2, 12)
    choose(layer, x.shape, "tap_sum")
    layer.padding_mode = "replicate"
    assert torch.equal(layer(x), nn.Conv1d._conv_forward(layer, x, layer.weight, layer.bias))
    layer._reversed_padding_repeated_twice = [1, 0]
    assert torch.equal(layer(x), nn.Conv1d._conv_forward(layer, x, layer.weight, layer.bias))
    assert not used


def test_too_little_to_reflect_fails_as_before() -> None:
    layer = nn.Conv1d(2, 2, 3, padding=9, dilation=9, padding_mode="reflect")
    x = torch.randn(1, 2, 9)
    choose(layer, x.shape, "tap_sum")
    messages = []
    for run in (layer, lambda x: nn.Conv1d._conv_forward(layer, x, layer.weight, layer.bias)):
        with pytest.raises(RuntimeError) as error:
            run(x)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_padding_modes_compiled() -> None:
    torch._dynamo.reset()
    module = whole_numbers(
        nn.Sequential(nn.Conv1d(3, 3, 3, 1, 2, 2, padding_mode="reflect"), Causal(3, 3, 3, dilation=4))
    )
    x = data(2, 3, 20)
    wanted = results(module, x)
    assert rewrite_module(module, x, timings=Scripted(TAP_SUM)).rewritten == 2
    assert same(results(torch.compile(module, fullgraph=True, backend="aot_eager"), x), wanted)


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in methods() if name != NATIVE])
@pytest.mark.parametrize("rank", CONVS)
def test_the_output_lies_in_memory_as_before(name: str, rank: int) -> None:
    """What follows a Conv may be a `view`, whatever the size."""
    last = {2: torch.channels_last, 3: torch.channels_last_3d}
    for groups, element, which in [
        (groups, element, which)
        for groups in (1, 4)
        for element in (torch.float32, torch.float64, torch.float16)
        for which in (("",) if rank == 1 else ("", "input", "weight", "gaps"))
    ]:
        layer = CONVS[rank](4, 4, 3, padding=2, dilation=2, groups=groups).to(element)
        for extent in (7, 8):
            x = torch.randn(2, 4, *(extent,) * rank).to(element)
            if which == "weight":
                layer = layer.to(memory_format=last[rank])
            elif which:
                x = x.to(memory_format=last[rank])
            if which == "gaps":
                x = x[..., :-1]
            with torch.no_grad():
                wanted = CONVS[rank]._conv_forward(layer, x, layer.weight, layer.bias)
                choose(layer, x.shape, name)
                assert layer(x).stride() == wanted.stride(), (groups, element, which, extent)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_many_at_once(last: bool, used: list[str]) -> None:
    """`torch.vmap`, and gradients of each sample."""
    layer = whole_numbers(nn.Conv2d(2, 3, 3, padding=2, dilation=2)).float()
    if last:
        layer = layer.to(memory_format=torch.channels_last)
    parameters, x = dict(layer.named_parameters()), data(4, 1, 2, 7, 8).float()

    def loss(given: Any, one: Any) -> Any:
        return torch.func.functional_call(layer, given, (one,)).sum()

    def both() -> list[Any]:
        gradients = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
        return [torch.vmap(layer)(x), *gradients.values()]

    wanted = both()
    choose(layer, x[0].shape, "space_to_batch")
    assert same(both(), wanted)
    assert set(used) == {"space_to_batch"}


# -- modules around Convs, and weights of all kinds ------------------------------------------------------------------


class Blocks(nn.Module):
    """A list of blocks with residual sums; the last block is the first one again."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(Causal(3, 3, 3, dilation=d), nn.ReLU()) for d in (1, 2, 4))
        self.blocks.append(self.blocks[1])
        self.by_name = nn.ModuleDict({"out": nn.Conv1d(3, 2, 3, padding="same", dilation=2)})

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            x = x + block(x)
        return self.by_name["out"](x)


def test_lists_and_shared_blocks(used: list[str]) -> None:
    module = whole_numbers(Blocks())
    x = data(2, 3, 20)
    wanted = results(module, x)
    report = rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True))
    assert [layer.name for layer in report.layers] == ["blocks.1.0", "blocks.2.0", "by_name.out"]
    used.clear()
    assert same(results(module, x), wanted)
    assert used == ["tap_sum"] * 4
    assert restore_module(module) == 3
    assert all("_conv_forward" not in layer.__dict__ for layer in module.modules())


NORMS: dict[str, Callable[[Any], Any]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "weight_norm, old": _normed,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "spectral_norm, old": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("kind", [nn.Conv1d, Causal], ids=["Conv1d", "subclass"])
@pytest.mark.parametrize("norm", NORMS)
def test_normed_weights(norm: str, kind: Any, used: list[str]) -> None:
    """HiFi-GAN has the first, its discriminators have the last two; statistics are those that they were."""
    torch.manual_seed(3)
    module = nn.Sequential(NORMS[norm](kind(3, 3, 3, dilation=4).double()))
    x = torch.randn(2, 3, 20).double()
    module(x)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    report = rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True))
    assert report.rewritten == 1, report
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    used.clear()
    found = results(module, x)
    assert used == ["tap_sum"]
    module.load_state_dict(before)
    restore_module(module)
    for one, other in zip(found, results(module, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_in_a_wrapper(used: list[str]) -> None:
    module = nn.DataParallel(whole_numbers(Blocks()))
    x = data(2, 3, 20)
    wanted = results(module, x)
    report = rewrite_module(module, x, timings=Scripted(TAP_SUM))
    assert [layer.name for layer in report.layers] == ["module.blocks.1.0", "module.blocks.2.0", "module.by_name.out"]
    used.clear()
    assert same(results(module, x), wanted)
    assert used == ["tap_sum"] * 4


@pytest.mark.parametrize("element", [torch.float16, torch.bfloat16, torch.float64])
def test_element_types(element: Any, used: list[str]) -> None:
    """Small whole numbers are exact in all of them."""
    module = whole_numbers(
        nn.Sequential(Causal(2, 2, 3, dilation=2), nn.Conv1d(2, 2, 3, 1, 2, 2, padding_mode="circular"))
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.clamp_(-1, 1)
    module = module.to(element)
    x = data(1, 2, 12).clamp(-2, 2).to(element)
    wanted = module(x)
    report = rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True))
    assert [layer.element for layer in report.layers] == [str(element).removeprefix("torch.")] * 2
    used.clear()
    assert torch.equal(module(x), wanted)
    assert used == ["tap_sum"] * 2


def test_autocast_of_subclasses(used: list[str]) -> None:
    module = whole_numbers(
        nn.Sequential(Causal(2, 2, 3, dilation=2), nn.Conv1d(2, 2, 3, 1, 2, 2, padding_mode="reflect"))
    )
    module, x = module.float(), data(1, 2, 12).float()
    with torch.autocast("cpu", torch.bfloat16):
        wanted = module(x)
        assert rewrite_module(module, x, timings=Scripted(TAP_SUM, runs=True)).rewritten == 2
        used.clear()
        found = module(x)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, wanted)
    assert used == ["tap_sum"] * 2


def test_hooks_of_subclasses() -> None:
    """They see the input before the padding, and what the class returns."""
    layer = whole_numbers(Causal(3, 3, 3, dilation=4))
    seen: list[tuple[int, int]] = []
    layer.register_forward_hook(lambda _, inputs, y: seen.append((inputs[0].shape[-1], y.shape[-1])))
    x = data(2, 3, 20)
    wanted = results(layer, x)
    assert rewrite_module(layer, x, timings=Scripted(TAP_SUM)).rewritten == 1
    assert same(results(layer, x), wanted)
    assert set(seen) == {(20, 20)}
    assert not layer._forward_pre_hooks


def test_training_goes_on_as_before() -> None:
    plain = whole_numbers(Blocks())
    module = copy.deepcopy(plain)
    x = data(2, 3, 20) / 8
    optimizers = [torch.optim.Adam(net.parameters(), lr=2**-10) for net in (plain, module)]
    assert rewrite_module(module, x, timings=Scripted({"space_to_batch": 0.5})).rewritten == 3
    for _ in range(4):
        for net, optimizer in zip((plain, module), optimizers, strict=True):
            optimizer.zero_grad()
            net(x).square().mean().backward()
            optimizer.step()
    for found, wanted in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


# -- small models of the kinds that there are ------------------------------------------------------------------------


class WaveNet(nn.Module):
    """Gated causal Convs, a residual and a skip path."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleList(Causal(3, 6, 2, dilation=d) for d in (1, 2, 4, 8))
        self.mixes = nn.ModuleList(nn.Conv1d(3, 5, 1) for _ in range(4))

    def forward(self, x: Any) -> Any:
        skips = torch.zeros(())
        for gate, mix in zip(self.gates, self.mixes, strict=True):
            a, b = gate(x).chunk(2, dim=1)
            y = mix(a.tanh() * b.sigmoid())
            x, skips = x + y[:, :3], skips + y[:, 3:]
        return skips


class HiFiGan(nn.Module):
    """The residual blocks of the vocoder, with weight_norm, between transposed Convs."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.ups = norm(nn.ConvTranspose1d(3, 4, 4, 2, 1))
        self.blocks = nn.ModuleList(norm(nn.Conv1d(4, 4, 3, padding=d, dilation=d)) for d in (1, 3, 5))

    def forward(self, x: Any) -> Any:
        x = self.ups(x)
        for block in self.blocks:
            x = x + block(F.leaky_relu(x, 0.1))
        return x.tanh()


class Chomp1d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Any) -> Any:
        return x[:, :, : -self.size].contiguous()


class ConvTasNet(nn.Module):
    """Blocks of a causal separator: depthwise Convs, their padding cut off at the end, and a view for the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(3, 4, 1), nn.PReLU(), nn.Conv1d(4, 4, 3, 1, 2 * d, d, 4), Chomp1d(2 * d), nn.Conv1d(4, 3, 1)
            )
            for d in (1, 2, 4, 8)
        )

    def forward(self, x: Any) -> Any:
        for block in self.blocks:
            y = block(x)
            flat = y.view(y.shape[0], -1)
            x = x + ((flat - flat.mean(1, keepdim=True)) / (flat.std(1, keepdim=True) + 1)).view(y.shape)
        return x


@pytest.mark.parametrize("method", ["tap_sum", "space_to_batch", "space_to_axis"])
@pytest.mark.parametrize("net", [WaveNet, HiFiGan, ConvTasNet])
def test_small_models(net: Any, method: str, used: list[str]) -> None:
    """Losses and gradients agree to the rounding of float64, at a length that does not divide, too."""
    module = net().double()
    for length in (31, 32):
        x = torch.randn(2, 3, length).double()
        wanted = results(module, x)
        report = rewrite_module(module, x, timings=Scripted({method: 0.5}, runs=True))
        assert {layer.method for layer in report.layers} == {method}, report
        used.clear()
        found = results(module, x)
        assert used == [method] * report.rewritten
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
        restore_module(module)
