"""Geometries of real networks, as data: what benchmarks time, without anything to time it with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv:
    """A dilated Conv of a network: `padding` is same, causal or valid."""

    network: str
    channels: tuple[int, int]
    extents: tuple[int, ...]
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    group: int = 1
    padding: str = "same"
    activation: str = "Relu"

    @property
    def label(self) -> str:
        """The geometry in short."""

        def short(values: tuple[int, ...]) -> str:
            return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))

        group = f" g{self.group}" if self.group > 1 else ""
        extents = "x".join(map(str, self.extents))
        return (
            f"{len(self.extents)}-D k{short(self.kernel)} d{short(self.dilation)}{group} "
            f"{self.channels[0]}->{self.channels[1]} at {extents}"
            + (f" {self.padding}" if self.padding != "same" else "")
        )

    @property
    def pads(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The padding at the begin of each axis, and at the end."""
        spans = [d * (k - 1) for d, k in zip(self.dilation, self.kernel, strict=True)]
        begins = {"same": [span // 2 for span in spans], "causal": spans, "valid": [0] * len(spans)}[self.padding]
        ends = {"same": [s - b for s, b in zip(spans, begins, strict=True)]}.get(self.padding, [0] * len(spans))
        return tuple(begins), tuple(ends)


def _aspp(network: str, size: int, channels: int, rates: tuple[int, ...]) -> list[Conv]:
    return [
        Conv(network=network, channels=(channels, 256), extents=(size, size), kernel=(3, 3), dilation=(rate, rate))
        for rate in rates
    ]


def _line(network: str, channels: int, length: int, kernel: int, rates: tuple[int, ...], **more: Any) -> list[Conv]:
    return [
        Conv(
            network=network,
            channels=(channels, more.pop("out", channels)) if "out" in more else (channels, channels),
            extents=(length,),
            kernel=(kernel,),
            dilation=(rate,),
            **more,
        )
        for rate in rates
    ]


CONVS: list[Conv] = [
    *_aspp("DeepLabV3 ASPP, output stride 8, 224", 28, 320, (12, 24, 36)),
    *_aspp("DeepLabV3 ASPP, output stride 16, 513", 33, 320, (6, 12, 18)),
    *_aspp("DeepLabV3 ASPP, output stride 8, 513", 65, 320, (12, 24, 36)),
    Conv(network="DeepLabV3 ASPP, ResNet", channels=(2048, 256), extents=(28, 28), kernel=(3, 3), dilation=(12, 12)),
    Conv(
        network="ResNet layer 3, output stride 8", channels=(256, 256), extents=(28, 28), kernel=(3, 3), dilation=(2, 2)
    ),
    Conv(
        network="ResNet layer 4, output stride 8", channels=(512, 512), extents=(28, 28), kernel=(3, 3), dilation=(4, 4)
    ),
    *[
        Conv(network="U2Net RSU-4F", channels=(256, 256), extents=(20, 20), kernel=(3, 3), dilation=(d, d))
        for d in (2, 4, 8)
    ],
    Conv(network="U2NetP RSU-4F", channels=(16, 16), extents=(20, 20), kernel=(3, 3), dilation=(4, 4)),
    *[Conv(network="ERFNet", channels=(128, 128), extents=(64, 128), kernel=(3, 1), dilation=(d, 1)) for d in (2, 8)],
    *[Conv(network="ERFNet", channels=(128, 128), extents=(64, 128), kernel=(1, 3), dilation=(1, d)) for d in (4, 16)],
    Conv(
        network="LR-ASPP MobileNetV3",
        channels=(672, 672),
        extents=(14, 14),
        kernel=(5, 5),
        dilation=(2, 2),
        group=672,
        activation="HardSwish",
    ),
    Conv(
        network="LR-ASPP MobileNetV3",
        channels=(960, 960),
        extents=(14, 14),
        kernel=(5, 5),
        dilation=(2, 2),
        group=960,
        activation="HardSwish",
    ),
    *_line("ConvTasNet", 512, 3200, 3, (2, 16, 128), group=512, activation="PRelu"),
    *_line("WaveNet", 64, 16000, 2, (2, 64, 512), padding="causal", activation="Tanh"),
    *_line("DiffWave", 64, 16000, 3, (2, 64, 512), activation="Tanh"),
    *_line("causal TCN", 64, 4000, 3, (2, 16), padding="causal"),
    *_line("HiFi-GAN", 256, 2752, 3, (3,), activation="LeakyRelu"),
    *_line("HiFi-GAN", 256, 2752, 11, (5,), activation="LeakyRelu"),
    *_line("HiFi-GAN", 128, 5504, 7, (3,), activation="LeakyRelu"),
    *_line("HiFi-GAN", 32, 22016, 11, (5,), activation="LeakyRelu"),
    *_line("Piper", 128, 840, 3, (2,), activation="LeakyRelu"),
    *_line("Piper", 64, 6720, 7, (12,), activation="LeakyRelu"),
    *_line("Piper, duration predictor", 192, 50, 3, (9,), group=192),
    *_line("SpliceAI", 32, 15000, 11, (4,)),
    *_line("SpliceAI", 32, 15000, 21, (10,)),
    *_line("SpliceAI", 32, 15000, 41, (25,)),
    *[
        Conv(network="MeshNet", channels=(21, 21), extents=(64, 64, 64), kernel=(3, 3, 3), dilation=(d, d, d))
        for d in (2, 8)
    ],
    *[
        Conv(network="HighRes3DNet", channels=(c, c), extents=(48, 48, 48), kernel=(3, 3, 3), dilation=(d, d, d))
        for c, d in ((32, 2), (64, 4))
    ],
]


def in_turn(convs: Sequence[Conv]) -> list[Conv]:
    """The geometries in an order in which every network comes once before one comes again."""
    seen: dict[str, int] = {}
    keyed = []
    for place, conv in enumerate(convs):
        network = conv.network.split(",")[0].split(" ")[0]
        seen[network] = seen.get(network, 0) + 1
        keyed.append((seen[network], place, conv))
    return [conv for _, _, conv in sorted(keyed, key=lambda entry: entry[:2])]
