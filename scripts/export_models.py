"""Builds the demo models of `models/` from their papers, with seeded weights; the only user of the torch exporter.

    python scripts/export_models.py [--out DIR]

The weights are not trained: they are drawn so that activations keep their size from layer to layer.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from google.protobuf.message import Message
from torch import Tensor, nn
from torch.nn import functional

OPSET = 18
SEED = 0
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# ---- DeepLabV3: Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", arXiv:1706.05587 ----


class ConvBn(nn.Sequential):
    """Convolution with "same" zero padding, batch normalisation, and ReLU unless `relu` is False."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        rank: int = 2,
        relu: bool = True,
    ):
        conv, norm = (nn.Conv2d, nn.BatchNorm2d) if rank == 2 else (nn.Conv3d, nn.BatchNorm3d)
        padding = dilation * (kernel - 1) // 2
        layers = [conv(c_in, c_out, kernel, stride, padding, dilation, bias=False), norm(c_out)]
        super().__init__(*layers, *([nn.ReLU()] if relu else []))


class ResidualBlock(nn.Module):
    """Basic block of ResNet: two 3x3 convolutions around a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv1 = ConvBn(c_in, c_out, 3, stride, dilation)
        self.conv2 = ConvBn(c_out, c_out, 3, 1, dilation, relu=False)
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else ConvBn(c_in, c_out, 1, stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class Aspp(nn.Module):
    """Atrous spatial pyramid pooling: 1x1, dilated 3x3 and image pooling branches, concatenated and projected."""

    def __init__(self, c_in: int, c_out: int, rates: tuple[int, ...]):
        super().__init__()
        dilated = [ConvBn(c_in, c_out, 3, dilation=rate) for rate in rates]
        self.branches = nn.ModuleList([ConvBn(c_in, c_out, 1), *dilated])
        self.pooled = ConvBn(c_in, c_out, 1)
        self.project = ConvBn(c_out * (len(rates) + 2), c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(functional.adaptive_avg_pool2d(x, 1))
        pooled = functional.interpolate(pooled, size=x.shape[2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))


class AsppSegmentation(nn.Module):
    """DeepLabV3 on a narrow ResNet-10 of output stride 8: [n, 3, H, W] -> logits [n, 21, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            ConvBn(3, 16, 3, stride=2),
            ResidualBlock(16, 24, stride=2),
            ResidualBlock(24, 48, stride=2),
            ResidualBlock(48, 64, dilation=2),  # dilation in place of a fourth stride: the map stays at 1/8
            ResidualBlock(64, 64, dilation=2),
        )
        self.aspp = Aspp(64, 48, rates=(12, 24, 36))  # the paper's rates 6, 12, 18 are doubled at output stride 8
        self.classifier = nn.Conv2d(48, 21, 1)

    def forward(self, image: Tensor) -> Tensor:
        scores = self.classifier(self.aspp(self.backbone(image)))
        return functional.interpolate(scores, size=image.shape[2:], mode="bilinear", align_corners=False)


# ---- DRN: Yu, Koltun, Funkhouser, "Dilated Residual Networks", arXiv:1705.09914. Its groups 5 and 6, in which dilation
# ---- stands in for strides: 1/8 of a 512x512 image. ----


class ResidualStage(nn.Sequential):
    """Four basic blocks, two of dilation 2 and two of 4: features [n, 64, H, W] -> [n, 96, H, W]."""

    def __init__(self) -> None:
        super().__init__(
            ResidualBlock(64, 64, dilation=2),
            ResidualBlock(64, 64, dilation=2),
            ResidualBlock(64, 96, dilation=4),
            ResidualBlock(96, 96, dilation=4),
        )


# ---- HiFi-GAN: Kong et al., "HiFi-GAN: Generative Adversarial Networks for Efficient and High Fidelity Speech
# ---- Synthesis", arXiv:2010.05646. Upsampling of generator V3 (8, 8, 4), ResBlock1 of V1 and V2. ----

LEAKY_SLOPE = 0.1


class ResBlock1(nn.Module):
    """Three residual steps, each a dilated convolution and then an undilated one."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]):
        super().__init__()
        half = (kernel - 1) // 2
        self.convs1 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, 1, d * half, d) for d in dilations)
        self.convs2 = nn.ModuleList(nn.Conv1d(channels, channels, kernel, 1, half) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for conv1, conv2 in zip(self.convs1, self.convs2, strict=True):
            x = x + conv2(functional.leaky_relu(conv1(functional.leaky_relu(x, LEAKY_SLOPE)), LEAKY_SLOPE))
        return x


class HifiganVocoder(nn.Module):
    """HiFi-GAN generator with 64 initial channels: log-mel [n, 80, frames] -> audio [n, 1, 256 * frames]."""

    def __init__(self) -> None:
        super().__init__()
        channels, rates, kernels = 64, (8, 8, 4), (3, 7, 11)
        self.conv_pre = nn.Conv1d(80, channels, 7, padding=3)
        self.ups = nn.ModuleList()
        self.mrfs = nn.ModuleList()  # multi-receptive field fusion, one for each upsampling
        for rate in rates:
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, 2 * rate, rate, padding=rate // 2))
            channels //= 2
            self.mrfs.append(nn.ModuleList(ResBlock1(channels, kernel, (1, 3, 5)) for kernel in kernels))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel)
        for up, blocks in zip(self.ups, self.mrfs, strict=True):
            x = up(functional.leaky_relu(x, LEAKY_SLOPE))
            x = sum(block(x) for block in blocks) / len(blocks)
        return torch.tanh(self.conv_post(functional.leaky_relu(x, LEAKY_SLOPE)))


# ---- TCN: Bai, Kolter, Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
# ---- Modeling", arXiv:1803.01271. Weight normalisation and dropout leave no trace at inference. ----


class CausalConv(nn.Conv1d):
    """Convolution that sees the present and the past only: all of its padding is on the left."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


class TemporalBlock(nn.Module):
    """Two causal convolutions of one dilation around a shortcut."""

    def __init__(self, c_in: int, c_out: int, kernel: int, dilation: int):
        super().__init__()
        self.conv1 = CausalConv(c_in, c_out, kernel, dilation=dilation)
        self.conv2 = CausalConv(c_out, c_out, kernel, dilation=dilation)
        self.shortcut = nn.Identity() if c_in == c_out else nn.Conv1d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(functional.relu(self.conv2(functional.relu(self.conv1(x)))) + self.shortcut(x))


class CausalTcn(nn.Module):
    """Next-step model of polyphonic music, a task of the paper: piano roll [n, 88, time] -> logits [n, 88, time]."""

    def __init__(self) -> None:
        super().__init__()
        keys, channels = 88, 64
        blocks = [TemporalBlock(keys if d == 1 else channels, channels, 3, d) for d in (1, 2, 4, 8, 16)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv1d(channels, keys, 1)

    def forward(self, roll: Tensor) -> Tensor:
        return self.head(self.blocks(roll))


# ---- MeshNet: Fedorov et al., "End-to-end learning of brain tissue segmentation from imperfect labeling",
# ---- arXiv:1612.00940. ----


class MeshNet3d(nn.Module):
    """MeshNet with 16 filters: volume [n, 1, D, H, W] -> logits of three tissues [n, 3, D, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        filters = 16
        layers = [
            ConvBn(1 if i == 0 else filters, filters, 3, 1, d, rank=3) for i, d in enumerate((1, 1, 1, 2, 4, 8, 1))
        ]
        self.body = nn.Sequential(*layers)
        self.classifier = nn.Conv3d(filters, 3, 1)

    def forward(self, volume: Tensor) -> Tensor:
        return self.classifier(self.body(volume))


# ---- SpliceAI: Jaganathan et al., "Predicting Splicing from Primary Sequence with Deep Learning", Cell 176(3), 2019,
# doi:10.1016/j.cell.2018.12.015. Kernels and dilations of SpliceAI-10k, with one residual unit of each kind instead of
# four, and without the crop of 5,000 positions on either side that see padding. ----


class ResidualUnit(nn.Module):
    """Twice batch normalisation, ReLU and dilated convolution, around a shortcut."""

    def __init__(self, channels: int, kernel: int, dilation: int):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.norm1 = nn.BatchNorm1d(channels)
        self.conv1 = nn.Conv1d(channels, channels, kernel, padding=padding, dilation=dilation)
        self.norm2 = nn.BatchNorm1d(channels)
        self.conv2 = nn.Conv1d(channels, channels, kernel, padding=padding, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(functional.relu(self.norm1(x)))
        return x + self.conv2(functional.relu(self.norm2(y)))


class SpliceSites(nn.Module):
    """One-hot nucleotides [n, 4, length] to the logits of none, acceptor and donor [n, 3, length]."""

    def __init__(self, channels: int = 32):
        super().__init__()
        self.stem = nn.Conv1d(4, channels, 1)
        self.skip = nn.Conv1d(channels, channels, 1)
        kinds = ((11, 1), (11, 4), (21, 10), (41, 25))
        self.units = nn.ModuleList(ResidualUnit(channels, kernel, dilation) for kernel, dilation in kinds)
        self.skips = nn.ModuleList(nn.Conv1d(channels, channels, 1) for _ in kinds)
        self.head = nn.Conv1d(channels, 3, 1)

    def forward(self, sequence: Tensor) -> Tensor:
        x = self.stem(sequence)
        total = self.skip(x)
        for unit, skip in zip(self.units, self.skips, strict=True):
            x = unit(x)
            total = total + skip(x)
        return self.head(total)


# ---- Inputs of the kind each model is made for. ----


def normalised_images(n: int, size: int = 224) -> Tensor:
    """Blurred noise with a brightness of its own for each image, about zero mean and unit deviation."""
    coarse = functional.interpolate(torch.randn(n, 3, 14, 14), size=(size, size), mode="bilinear", align_corners=False)
    return coarse + 0.3 * torch.randn(n, 3, size, size) + 0.5 * torch.randn(n, 3, 1, 1)


def feature_maps(n: int, size: int = 64) -> Tensor:
    """What a ReLU leaves of smooth maps with some noise."""
    coarse = functional.interpolate(torch.randn(n, 64, 8, 8), size=(size, size), mode="bilinear", align_corners=False)
    return functional.relu(coarse + 0.3 * torch.randn(n, 64, size, size))


def log_mels(n: int, frames: int = 32) -> Tensor:
    """Natural logarithms of mel magnitudes, floored at 1e-5."""
    return (-5.0 + 2.0 * torch.randn(n, 80, frames)).clamp(min=-11.5)


def piano_rolls(n: int, time: int = 64) -> Tensor:
    """About four of the 88 keys down at any time."""
    return (torch.rand(n, 88, time) < 4 / 88).float()


def volumes(n: int, size: int = 32) -> Tensor:
    """Intensities in [0, 1]: smooth tissue with some noise."""
    coarse = functional.interpolate(torch.rand(n, 1, 6, 6, 6), size=(size,) * 3, mode="trilinear", align_corners=False)
    return (coarse + 0.05 * torch.randn(n, 1, size, size, size)).clamp(0, 1)


def sequences(n: int, length: int = 256) -> Tensor:
    """One nucleotide of four at each position."""
    return functional.one_hot(torch.randint(0, 4, (n, length)), 4).transpose(1, 2).float()


# ---- Weights. ----


def draw_weights(model: nn.Module) -> None:
    """Uniform weights of variance gain² / fan-in; gains and biases keep the size of activations from layer to layer."""
    for name, module in model.named_modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.3, 0.3)
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d)):
            taps = module.weight[0, 0].numel()
            if isinstance(module, nn.ConvTranspose1d):
                taps //= module.stride[0]
            bound = gain(model, name) * (3 / (module.in_channels * taps)) ** 0.5
            nn.init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                nn.init.uniform_(module.bias, -0.1, 0.1)


def gain(model: nn.Module, layer: str) -> float:
    """√2 makes up for a ReLU; less where a branch is added to a shortcut, or where the input is not of unit size."""
    if isinstance(model, HifiganVocoder):
        if "convs2" in layer:
            return 0.4  # three of these are added up in each residual block
        return {"conv_pre": 0.25, "conv_post": 0.4}.get(layer, 2**0.5)
    if isinstance(model, CausalTcn):
        if layer == "blocks.0.conv1" or "shortcut" in layer:
            return (88 / 4) ** 0.5  # 4 of 88 inputs are 1
        return {"head": 1.0}.get(layer, 2**0.5 if "conv1" in layer else 0.8)
    if isinstance(model, SpliceSites):
        if layer == "stem":
            return 4**0.5  # 1 of 4 inputs is 1
        return {"head": 1.0}.get(layer, 0.5 if "skip" in layer else 2**0.5)
    return 2**0.5


def measure_batch_norms(model: nn.Module, batch: Tensor) -> None:
    """Sets the running statistics of every batch normalisation to those of `batch`."""
    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    for norm in norms:
        norm.momentum = None  # an average over all batches seen, of which there is one
    model.train()
    with torch.no_grad():
        model(batch)


@contextmanager
def seeded() -> Iterator[None]:
    """Fixed random numbers and one thread (so that sums have one order) inside, the caller's own after."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            yield
    finally:
        torch.set_num_threads(threads)


# ---- The models and their export. ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """One demo model: how to make it and how it is exported. `dynamic` names the axes of input and output that vary."""

    module: Callable[[], nn.Module]
    inputs: Callable[[int], Tensor]  # batch size -> input batch
    input_name: str
    output_name: str
    dynamic: dict[int, str]

    def build(self) -> nn.Module:
        """The module in eval mode, the same weights at every call."""
        with seeded():
            model = self.module()
            draw_weights(model)
            measure_batch_norms(model, self.inputs(8))
        return model.eval()

    def example(self, n: int = 1) -> Tensor:
        """A seeded input batch [n, ...]."""
        with seeded():
            return self.inputs(n)


DEMOS = {
    "aspp_segmentation": Demo(
        module=AsppSegmentation, inputs=normalised_images, input_name="image", output_name="logits", dynamic={}
    ),
    "resnet_stage_os8": Demo(
        module=ResidualStage, inputs=feature_maps, input_name="features", output_name="maps", dynamic={}
    ),
    "hifigan_vocoder": Demo(
        module=HifiganVocoder, inputs=log_mels, input_name="mel", output_name="audio", dynamic={0: "batch", 2: "frames"}
    ),
    "causal_tcn": Demo(
        module=CausalTcn, inputs=piano_rolls, input_name="roll", output_name="logits", dynamic={0: "batch", 2: "time"}
    ),
    "splice_sites": Demo(
        module=SpliceSites,
        inputs=sequences,
        input_name="sequence",
        output_name="logits",
        dynamic={0: "batch", 2: "length"},
    ),
    "meshnet3d": Demo(module=MeshNet3d, inputs=volumes, input_name="volume", output_name="logits", dynamic={}),
}


def export(name: str) -> onnx.ModelProto:
    """The ONNX model of one demo, checked, with nothing in it that tells where it was made."""
    demo = DEMOS[name]
    axes = {axis: torch.export.Dim(label) for axis, label in demo.dynamic.items()}
    program = torch.onnx.export(
        demo.build(),
        (demo.example(2 if axes else 1),),  # torch.export takes an extent of 1 for a constant
        dynamo=True,
        opset_version=OPSET,
        input_names=[demo.input_name],
        output_names=[demo.output_name],
        dynamic_shapes=(axes,) if axes else None,
        external_data=False,
        verbose=False,
    )
    model = program.model_proto
    model.graph.name = name
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):  # the module's own name says more than the exporter's number
            node.name = node.input[1].removesuffix(".weight")
    strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def strip(message: Message) -> None:
    """Removes documentation and metadata (the exporter writes stack traces there) at every depth."""
    for field in ("doc_string", "metadata_props"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for child in [value] if isinstance(value, Message) else value:
                strip(child)


def main() -> None:
    """Writes every model to `--out`."""
    parser = argparse.ArgumentParser(description="Export the demo models.")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "models", metavar="DIR")
    out = parser.parse_args().out
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns that torchvision, which no demo needs, is missing
    out.mkdir(parents=True, exist_ok=True)
    for name in DEMOS:
        path = out / f"{name}.onnx"
        path.write_bytes(export(name).SerializeToString(deterministic=True))
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
