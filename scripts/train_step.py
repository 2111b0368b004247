"""Times a training step before and after `rewrite_module`, in turn, and holds the losses of both to each other.

    python scripts/train_step.py --net convtasnet|highres3d|aspp16|aspp8|plain2d
                                  [--seconds S] [--budget S] [--device D] [--json FILE]

The nets are small ones of their kind, with lengths as in use: of ConvTasNet (1-D, depthwise) 4 seconds of sound at
8 kHz, of HighRes3DNet (3-D) a cube of 32, of a depthwise separable ASPP (2-D) the features of four images of 33 x 33,
or of two of 65 x 65 (a sixteenth or an eighth of an image's 513), of a dense 2-D net with 128 channels two images of
64 x 64. Exit code 1 when the losses of 20 steps in float64 differ by more than 1e-9 of their size.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from dilrewrite.pytorch.chosen import NATIVE
from dilrewrite.pytorch.probing import PASSES, Probe, Work, step_timings
from dilrewrite.pytorch.rewriting import Rewriting, rewrite_module
from dilrewrite.timing.stopwatch import Comparison

SEED = 0
STEPS = 20
TOLERANCE = 1e-9
RATE = 1e-3

# ---- ConvTasNet: Luo and Mesgarani, "Conv-TasNet: Surpassing Ideal Time-Frequency Magnitude Masking", 1809.07454 ----


class DepthwiseBlock(nn.Module):
    """1x1, depthwise with a dilation, 1x1, around a shortcut."""

    def __init__(self, bottleneck: int, hidden: int, dilation: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(bottleneck, hidden, 1),
            nn.PReLU(),
            nn.GroupNorm(1, hidden),
            nn.Conv1d(hidden, hidden, 3, padding=dilation, dilation=dilation, groups=hidden),
            nn.PReLU(),
            nn.GroupNorm(1, hidden),
            nn.Conv1d(hidden, bottleneck, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class ConvTasNet(nn.Module):
    """Encoder, blocks with dilations 1, 2, 4, ..., a mask, decoder."""

    def __init__(self, filters: int, bottleneck: int, hidden: int, blocks: int, repeats: int):
        super().__init__()
        self.encoder = nn.Conv1d(1, filters, 16, 8, bias=False)
        self.enter = nn.Conv1d(filters, bottleneck, 1)
        self.blocks = nn.Sequential(
            *(DepthwiseBlock(bottleneck, hidden, 2**block) for _ in range(repeats) for block in range(blocks))
        )
        self.mask = nn.Conv1d(bottleneck, filters, 1)
        self.decoder = nn.ConvTranspose1d(filters, 1, 16, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        encoded = self.encoder(x)
        mask = torch.sigmoid(self.mask(self.blocks(self.enter(encoded))))
        return self.decoder(encoded * mask)


# ---- HighRes3DNet: Li et al., "On the Compactness, Efficiency, and Representation of 3D Convolutional Networks" ----


class DilatedResidual(nn.Module):
    """Two 3x3x3 (or 3x3) convolutions with a dilation, around a shortcut."""

    def __init__(self, channels: int, dilation: int, rank: int):
        super().__init__()
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if rank == 2 else (nn.Conv3d, nn.BatchNorm3d)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [norm(channels), nn.ReLU(), conv(channels, channels, 3, padding="same", dilation=dilation)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def highres3d(channels: int) -> nn.Sequential:
    """Stages with dilation 1, 2 and 4."""
    stages = [
        nn.Sequential(nn.Conv3d(before, after, 1), DilatedResidual(after, dilation, rank=3))
        for before, after, dilation in (
            (channels, channels, 1),
            (channels, 2 * channels, 2),
            (2 * channels, 4 * channels, 4),
        )
    ]
    return nn.Sequential(nn.Conv3d(1, channels, 3, padding=1), *stages, nn.Conv3d(4 * channels, 1, 1))


def plain2d(channels: int) -> nn.Sequential:
    """A dense 2-D net with dilations 2 and 4."""
    stages = [DilatedResidual(channels, dilation, rank=2) for dilation in (2, 4)]
    return nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), *stages, nn.Conv2d(channels, 3, 1))


# ---- ASPP: Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image Segmentation" ----


def unit(before: int, after: int, kernel: int = 1, **settings: int) -> nn.Sequential:
    """A convolution without bias, a normalisation, and a ReLU."""
    conv = nn.Conv2d(before, after, kernel, bias=False, **settings)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class SeparableAspp(nn.Module):
    """What follows a backbone: a 1x1 and depthwise separable 3x3 branches side by side, and a 1x1 on all of them."""

    def __init__(self, features: int, channels: int, rates: Sequence[int], classes: int):
        super().__init__()
        self.reduce = unit(features, channels)
        self.branches = nn.ModuleList([unit(channels, channels)])
        for rate in rates:
            depthwise = unit(channels, channels, 3, padding=rate, dilation=rate, groups=channels)
            self.branches.append(nn.Sequential(depthwise, unit(channels, channels)))
        self.project = unit(channels * len(self.branches), channels)
        self.classify = nn.Conv2d(channels, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        reduced = self.reduce(x)
        return self.classify(self.project(torch.cat([branch(reduced) for branch in self.branches], dim=1)))


@dataclass(frozen=True)
class Case:
    """A net and the shape of its input; the target is like the output."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


CASES = {
    "usual": {
        "convtasnet": Case(lambda: ConvTasNet(64, 32, 64, blocks=7, repeats=2), (2, 1, 32000)),
        "highres3d": Case(lambda: highres3d(8), (1, 1, 32, 32, 32)),
        "aspp16": Case(lambda: SeparableAspp(320, 256, rates=(6, 12, 18), classes=21), (4, 320, 33, 33)),
        "aspp8": Case(lambda: SeparableAspp(320, 256, rates=(12, 24, 36), classes=21), (2, 320, 65, 65)),
        "plain2d": Case(lambda: plain2d(128), (2, 3, 64, 64)),
    },
    "tiny": {
        "convtasnet": Case(lambda: ConvTasNet(4, 3, 4, blocks=3, repeats=1), (1, 1, 160)),
        "highres3d": Case(lambda: highres3d(2), (1, 1, 6, 6, 6)),
        "aspp16": Case(lambda: SeparableAspp(3, 4, rates=(2, 3), classes=2), (1, 3, 5, 5)),
        "aspp8": Case(lambda: SeparableAspp(3, 4, rates=(2, 3), classes=2), (1, 3, 9, 9)),
        "plain2d": Case(lambda: plain2d(4), (1, 3, 8, 8)),
    },
}

# ---- steps ----


def stepper(module: nn.Module, x: Tensor, target: Tensor) -> Callable[[], Tensor]:
    """Return what does a training step and returns its loss."""
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=0.9)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = functional.mse_loss(module(x), target)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def probe(module: nn.Module, x: Tensor, target: Tensor) -> Probe:
    """Return the training step to be timed, on a copy of the module."""

    def make(_passes: tuple[str, ...]) -> Work:
        step = stepper(copy.deepcopy(module), x, target)

        def run() -> None:
            step()

        return Work(run)

    return Probe(make, str(x.device))


def losses(module: nn.Module, x: Tensor, target: Tensor) -> list[float]:
    """Return the losses of some steps in float64, on a copy of the module."""
    step = stepper(copy.deepcopy(module).double(), x.double(), target.double())
    return [float(step()) for _ in range(STEPS)]


def furthest(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the largest difference of two lines of losses, relative to the first."""
    return max(abs(b - a) / abs(a) for a, b in zip(before, after, strict=True))


def show(rewriting: Rewriting, timed: Comparison, difference: float) -> None:
    """Print what was chosen, and what it gained."""
    for layer in rewriting.layers:
        if layer.method != NATIVE:
            print(f"{layer.name}: {layer.reason}")
    paid = rewriting.break_even_steps
    print(
        f"{rewriting.rewritten} of {len(rewriting.layers)} dilated Convs rewritten, after {rewriting.probe_s:.1f} s of "
        f"probing, paid back after {f'{paid} steps' if paid is not None else 'no number of steps'}"
    )
    print(f"original:  {1 / timed.first.median_s:.3g} steps per second")
    print(f"rewritten: {1 / timed.second.median_s:.3g} steps per second")
    print(f"time of a step, rewritten / original: {timed.ratio:.3f} [{timed.low:.3f}, {timed.high:.3f}]")
    print(f"losses of {STEPS} steps in float64: at most {difference:.1e} apart, {TOLERANCE:.0e} allowed")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=CASES["usual"], default="convtasnet")
    parser.add_argument("--seconds", type=float, default=20.0, help="for timing the steps")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for probing")
    parser.add_argument("--device", default="cpu", help="as torch names it")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--size", choices=CASES, default="usual", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)

    torch.manual_seed(SEED)
    case = CASES[given.size][given.net]
    original = case.make().to(given.device)
    x = torch.randn(case.shape, device=given.device)
    with torch.no_grad():
        target = torch.randn_like(copy.deepcopy(original)(x))
    rewritten = copy.deepcopy(original)
    rewriting = rewrite_module(rewritten, x, budget=given.budget)
    timed = step_timings(probe(original, x, target), probe(rewritten, x, target), PASSES, given.seconds, whole=True)
    difference = furthest(losses(original, x, target), losses(rewritten, x, target))
    show(rewriting, timed, difference)
    if given.json is not None:
        figures = {
            "net": given.net,
            "device": given.device,
            "threads": torch.get_num_threads(),
            "layers": [{"name": layer.name, "method": layer.method} for layer in rewriting.layers],
            "probe_s": rewriting.probe_s,
            "break_even_steps": rewriting.break_even_steps,
            "step": dataclasses.asdict(timed),
            "losses_apart": difference,
        }
        given.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return 0 if difference <= TOLERANCE else 1


if __name__ == "__main__":
    raise SystemExit(main())
