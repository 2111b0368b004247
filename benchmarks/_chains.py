"""Chains of dilated Convs as networks hold them, as ONNX models with seeded weights; batch norms are in the Convs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.shape_inference import infer_shapes

Kernel = int | tuple[int, ...]


class Net:
    """A model in the making; every method adds operators and returns the tensor that they make from `x`."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.rank = shape, len(shape) - 2
        self.channels = {"x": shape[1]}
        self.nodes: list[Any] = []
        self.tensors: list[TensorProto] = []
        self.rng = np.random.default_rng(0)

    def hold(self, values: Any) -> str:
        """A constant: floats as float32, integers as int64."""
        array = np.asarray(values)
        name = f"t{len(self.tensors)}"
        kind = np.int64 if array.dtype.kind == "i" else np.float32
        self.tensors.append(numpy_helper.from_array(array.astype(kind), name))
        return name

    def op(self, kind: str, *inputs: str, channels: int | None = None, **attributes: Any) -> str:
        """Any operator of one output, which has the channels of its first input unless told."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        self.channels[name] = self.channels[inputs[0]] if channels is None else channels
        return name

    def conv(
        self, x: str, outputs: int, kernel: Kernel, dilation: Kernel = 1, *, ahead: bool = False, **more: Any
    ) -> str:
        """A Conv with a bias and "same" padding; `ahead`: none; `pads` and `group` as the operator has them."""
        kernel, dilations = self._axes(kernel), self._axes(dilation)
        spans = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        same = [*(span // 2 for span in spans), *(span - span // 2 for span in spans)]
        pads = [0] * (2 * self.rank) if ahead else more.pop("pads", same)
        shape = (outputs, self.channels[x] // more.get("group", 1), *kernel)
        bound = math.sqrt(6 / math.prod(shape[1:]))  # He et al., arXiv:1502.01852: a ReLU takes half
        weight = self.hold(self.rng.uniform(-bound, bound, shape))
        bias = self.hold(self.rng.uniform(-0.1, 0.1, outputs))
        return self.op(
            "Conv", x, weight, bias, channels=outputs, kernel_shape=kernel, dilations=dilations, pads=pads, **more
        )

    def _axes(self, value: Kernel) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * self.rank

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def norm(self, x: str) -> str:
        """Batch normalisation that no Conv takes in."""
        count = self.channels[x]
        ranges = ((0.8, 1.2), (-0.3, 0.3), (-0.1, 0.1), (0.5, 1.5))
        return self.op("BatchNormalization", x, *(self.hold(self.rng.uniform(*ends, count)) for ends in ranges))

    def slice(self, x: str, axis: int, start: int, end: int, channels: int | None = None) -> str:
        return self.op("Slice", x, *(self.hold([value]) for value in (start, end, axis)), channels=channels)

    def halves(self, x: str) -> tuple[str, str]:
        """The first half of the channels, and the second."""
        half = self.channels[x] // 2
        return self.slice(x, 1, 0, half, half), self.slice(x, 1, half, 2 * half, half)

    def model(self, y: str) -> ModelProto:
        """The whole, from `x` to `y`."""
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, (None,) * len(self.shape))
        graph = helper.make_graph(self.nodes, "chain", [x], [out], self.tensors)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        graph.output[0].CopyFrom(infer_shapes(proto).graph.output[0])
        proto.graph.CopyFrom(graph)
        return proto


# -- 2-D and 3-D -----------------------------------------------------------------------------------------------------


def plain(channels: int, dilations: Sequence[int], *extents: int, inputs: int | None = None) -> ModelProto:
    """3x3 Convs, each with a ReLU."""
    net = Net(1, inputs or channels, *extents)
    x = "x"
    for dilation in dilations:
        x = net.relu(net.conv(x, channels, 3, dilation))
    return net.model(x)


def basic_blocks(size: int, channels: int = 128) -> ModelProto:
    """DRN: two basic blocks of dilation 2, then two of 4 with twice the channels."""
    net = Net(1, channels, size, size)
    x = "x"
    for dilation, width in ((2, channels), (2, channels), (4, 2 * channels), (4, 2 * channels)):
        y = net.conv(net.relu(net.conv(x, width, 3, dilation)), width, 3, dilation)
        x = net.relu(net.op("Add", y, x if width == net.channels[x] else net.conv(x, width, 1)))
    return net.model(x)


def bottlenecks(size: int) -> ModelProto:
    """Stages 3 and 4 of ResNet-50 at output stride 8, with half the channels."""
    net = Net(1, 256, size, size)
    x = "x"
    for width, dilations in ((128, (1, 2, 2, 2, 2, 2)), (256, (2, 4, 4))):
        for dilation in dilations:
            y = net.relu(net.conv(x, width, 1))
            y = net.conv(net.relu(net.conv(y, width, 3, dilation)), 4 * width, 1)
            x = net.relu(net.op("Add", y, x if net.channels[x] == 4 * width else net.conv(x, 4 * width, 1)))
    return net.model(x)


def pyramid(size: int, rates: Sequence[int]) -> ModelProto:
    """ASPP: a 1x1 Conv and one of each rate on the same input, side by side, then a 1x1 Conv of all."""
    net = Net(1, 256, size, size)
    branches = [net.relu(net.conv("x", 64, 1)), *(net.relu(net.conv("x", 64, 3, rate)) for rate in rates)]
    joined = net.op("Concat", *branches, axis=1, channels=64 * len(branches))
    return net.model(net.relu(net.conv(joined, 64, 1)))


def erfnet() -> ModelProto:
    """Non-bottleneck-1D blocks: 3x1 and 1x3 Convs, the second pair dilated."""
    net = Net(1, 128, 64, 128)
    x = "x"
    for dilation in (2, 4, 8, 16):
        y = net.relu(net.conv(net.relu(net.conv(x, 128, (3, 1))), 128, (1, 3)))
        y = net.relu(net.conv(y, 128, (3, 1), (dilation, 1)))
        x = net.relu(net.op("Add", net.conv(y, 128, (1, 3), (1, dilation)), x))
    return net.model(x)


# -- 1-D -------------------------------------------------------------------------------------------------------------


def wavenet(channels: int = 32, skips: int = 64) -> ModelProto:
    """Ten gated causal layers of kernel 2 with skip connections; the padding is a Pad of its own."""
    net = Net(1, 1, 16000)
    x, total = net.conv("x", channels, 1), ""
    for dilation in (2**power for power in range(10)):
        padded = net.op("Pad", x, net.hold([0, 0, dilation, 0, 0, 0]))
        a, b = net.halves(net.conv(padded, 2 * channels, 2, dilation, ahead=True))
        gated = net.op("Mul", net.op("Tanh", a), net.op("Sigmoid", b))
        skip = net.conv(gated, skips, 1)
        total = net.op("Add", total, skip) if total else skip
        x = net.op("Add", x, net.conv(gated, channels, 1))
    return net.model(net.conv(net.relu(net.conv(net.relu(total), skips, 1)), 256, 1))


def tcn(channels: int = 64, length: int = 8192) -> ModelProto:
    """Seven blocks of two causal Convs, padded on both sides and cut at the end, around a shortcut."""
    net = Net(1, channels, length)
    x = "x"
    for dilation in (2**power for power in range(7)):
        y = x
        for _ in range(2):
            padding = 2 * dilation
            y = net.relu(net.slice(net.conv(y, channels, 3, dilation, pads=[padding, padding]), 2, 0, length))
        x = net.relu(net.op("Add", x, y))
    return net.model(x)


def hifigan(channels: int = 64) -> ModelProto:
    """Multi-receptive field fusion: three residual blocks of kernels 3, 7 and 11, dilations 1, 3 and 5."""
    net = Net(1, channels, 4095)
    blocks = []
    for kernel in (3, 7, 11):
        x = "x"
        for dilation in (1, 3, 5):
            y = net.conv(net.op("LeakyRelu", x, alpha=0.1), channels, kernel, dilation)
            y = net.conv(net.op("LeakyRelu", y, alpha=0.1), channels, kernel)
            x = net.op("Add", x, y)
        blocks.append(x)
    total = net.op("Add", net.op("Add", blocks[0], blocks[1]), blocks[2])
    return net.model(net.op("Div", total, net.hold(3.0)))


def spliceai(channels: int = 32) -> ModelProto:
    """Four residual units of each of SpliceAI-10k's four kinds, batch norms first."""
    net = Net(1, channels, 10000)
    x = "x"
    for kernel, dilation in ((11, 1), (11, 4), (21, 10), (41, 25)):
        for _ in range(4):
            y = net.conv(net.relu(net.norm(x)), channels, kernel, dilation)
            x = net.op("Add", x, net.conv(net.relu(y), channels, kernel, dilation))
    return net.model(x)


def convtasnet(channels: int = 128, hidden: int = 256) -> ModelProto:
    """Eight depthwise blocks with norms over all channels and all of time (gLN), as PyTorch exports a GroupNorm."""
    net = Net(1, channels, 3200)

    def gln(x: str) -> str:
        apart = net.op("Reshape", x, net.hold([0, 1, -1]), channels=1)
        scale, bias = net.hold([1.0]), net.hold([0.0])
        normal = net.op("InstanceNormalization", apart, scale, bias, epsilon=1e-8)
        back = net.op("Reshape", normal, net.hold([1, hidden, 3200]), channels=hidden)
        gain, shift = (net.hold(net.rng.uniform(*ends, (hidden, 1))) for ends in ((0.8, 1.2), (-0.3, 0.3)))
        return net.op("Add", net.op("Mul", back, gain), shift)

    def prelu(x: str) -> str:
        return net.op("PRelu", x, net.hold([[0.25]]))

    x, total = "x", ""
    for dilation in (2**power for power in range(8)):
        y = gln(prelu(net.conv(x, hidden, 1)))
        y = gln(prelu(net.conv(y, hidden, 3, dilation, group=hidden)))
        skip = net.conv(y, channels, 1)
        total = net.op("Add", total, skip) if total else skip
        x = net.op("Add", x, net.conv(y, channels, 1))
    return net.model(total)


CHAINS: dict[str, Callable[[], ModelProto]] = {
    "CSRNet, back end, 96x128": lambda: plain(128, (2,) * 6, 96, 128),
    "DRN, basic blocks, 64x64": lambda: basic_blocks(64),
    "DRN, basic blocks, 65x65": lambda: basic_blocks(65),
    "ResNet-50, stride 8, 64x64": lambda: bottlenecks(64),
    "context module, 96x128": lambda: plain(64, (1, 1, 2, 4, 8, 16, 1), 96, 128),
    "ASPP 6, 12, 18, 33x33": lambda: pyramid(33, (6, 12, 18)),
    "ERFNet, 64x128": erfnet,
    "MeshNet, 64x64x64": lambda: plain(10, (1, 1, 1, 2, 4, 8, 1), 64, 64, 64, inputs=1),
    "WaveNet, 16,000": wavenet,
    "TCN, 8,192": tcn,
    "HiFi-GAN, fusion, 4,095": hifigan,
    "SpliceAI, 10,000": spliceai,
    "ConvTasNet gLN, 3,200": convtasnet,
}
"""By name, with the extents that they run at."""
