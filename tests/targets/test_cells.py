"""What the sources' tables say of each device, cell by cell: every cell with a value has a rule in the profile.

A cell is `place: what the rule says`; of a table of layout operators, the operators and where they run.
"""

from __future__ import annotations

import pytest

from dilrewrite.targets import profiles

LIMITS = {
    "intel-npu": """
        conv.kernel: at most 11
        conv.dilation: unlimited
        conv.pads: unlimited""",
    "amd-ryzen-ai": """
        conv.kernel: unknown
        conv.dilation: square constant kernels with equal dilations of 2 to 4 become undilated, others stay
        conv.groups: unknown""",
    "ethos-u-vela-3.10": """
        conv.products (kh-1)*dh+1: at most 64
        conv.products ((kh-1)*dh+1)*((kw-1)*dw+1): at most 4096
        conv.stride: at most 3
        conv.stride: at least 1
        conv.dilation: unlimited
        conv.products 127*prod(k)*Cin//group: at most 8323072
        conv.weights: only constant
        conv.batch: at most 1
        tensors.max_rank: at most 4
        tensors.static: required
        tensors.dtypes: one of int8, uint8, int16, int32
        operators.Pad.axes: height and width only
        operators.Concat.batch: at most 1
        operators.Transpose.batch: at most 1
        operators.Add.batch: at most 1
        operators.Pad.batch: at most 1""",
    "ethos-u-vela-5.2": """
        conv.dilation: unlimited
        conv.kernel: unlimited
        conv.stride: strides above 3 only without dilation and without pads
        conv.stride: at most 3
        conv.batch: unlimited
        conv.groups: CONV_2D with one group, or DEPTHWISE_CONV_2D
        conv.products 127*prod(k)*Cin//group: at most 8323072
        tensors.static: batch may vary
        operators.Pad.constant: only True
        operators.Transpose.max_rank: at most 8
        operators.Slice.axes: steps only along height and width""",
    "rknn-2.3.2": """
        conv.dilation: at most 31
        conv.dilation: at most 32
        conv.kernel: at most 31
        conv.kernel: at most 8
        conv.stride: at most 7
        conv.pads: at most 15
        conv.pads: at least 0
        conv.groups: unlimited
        conv.extents: a width below 16383 where the kernel is dilated along the height
        tensors.max_rank: at most 4
        tensors.dtypes: one of int8, float16, float32, int32, int64, bool
        operators.QLinearConv.where: none
        operators.ConvInteger.where: none
        operators.DynamicQuantizeLinear.where: none
        operators.Loop.where: none""",
    "rknn-2.5.0": """
        conv.dilation: unlimited
        conv.kernel: at most 31
        conv.pads: unlimited
        conv.pads: at least 0""",
    "ti-tidl": """
        conv.dilation: unlimited
        conv.kernel: at most 7
        conv.kernel: one of 3, 5, 7
        conv.stride: the same on all axes
        conv.stride: only 1
        conv.stride: one of 1, 2
        conv.stride: kernel 3 with stride 3 is not on all devices
        conv.pads: the input is at least as wide as the pads
        conv.products rank+2: at most 4
        tensors.max_non_singleton: at most 6
        tensors.static: required""",
    "nvidia-dla": """
        conv.dilation: at most 32
        conv.dilation: at least 1
        conv.kernel: at most 32
        conv.stride: at most 8
        conv.pads: at most 31
        conv.pads: below kernel
        conv.groups: at most 8192
        conv.channels: at most 8192
        conv.ranks: only 2
        tensors.extents: at most 8192
        tensors.batch: at most 4096
        tensors.products: the batch is the same for all layers of a loadable
        tensors.static: required
        tensors.dtypes: one of float16, float32, int8""",
    "rdk-x3": """
        conv.dilation: a power of two
        conv.dilation: along the height at most what it is along the width
        conv.dilation: a multiple of the stride where both are above 1
        conv.kernel: at most 7
        conv.pads: the same at both ends
        conv.products Cin//group: at most 2048
        conv.products prod(k)*(Cin//group): at most 32768
        conv.batch: at most 128""",
    "rdk-x5": """
        conv.dilation: at most 16
        conv.dilation: at most 1
        conv.output_dtype: only int8
        conv.extents: a multiple of d
        conv.kernel: at most 31
        conv.stride: at most 256
        conv.stride: only 1
        conv.pads: at most 256
        conv.groups: at most 1
        conv.products prod(k)*(Cin//group): at most 32767
        conv.batch: at most 4096
        tensors.extents: at most 65536
        tensors.bytes: at most 1073741824""",
    "rdk-ultra": """
        conv.dilation: at most 16
        conv.stride: only 1
        conv.kernel: at most 31
        operators.Transpose.moves_batch: only False
        operators.Concat.axis: at least 1""",
    "axera-ax650": """
        conv.dilation: unlimited
        conv.kernel: unlimited
        conv.auto_pad: only NOTSET
        conv.pads: unlimited
        conv.groups: unlimited
        operators.MaxPool.dilation: at most 1""",
    "axera-ax620e": """
        conv.dilation: unlimited
        conv.auto_pad: only NOTSET
        operators.DepthToSpace.mode: only DCR
        operators.MaxPool.dilation: at most 1""",
    "mediatek-mdla2": """
        conv.dilation: one of 1, 2, 4, 8
        conv.kernel: at most 16
        conv.kernel: at most 8
        conv.stride: only 1
        conv.stride: one of 1, 2, 3, 4, 8
        conv.stride: one of 1, 2, 3, 4
        conv.stride: at most k
        conv.pads: at most 15
        conv.pads: at most 0
        conv.groups: no grouped Conv
        conv.channels: at most 8194
        conv.channels: at most 4095
        conv.batch: unlimited
        operators.Add.batch: at most 255
        tensors.max_rank: at most 4
        tensors.dtypes: one of int8, uint8, int16, float16, float32""",
    "amd-dpu": """
        conv.products max(d)*Cin: at most 256*channel_parallel
        conv.kernel: at most 16
        conv.kernel: at most depthwise_kernel
        conv.stride: at most max_stride
        conv.stride: only 1
        conv.products kh*kw*ceil(Cin/channel_parallel): at most bank_depth
        conv.pads: at most (k-1)*d
        conv.pads: at most 15
        conv.groups: one group, or depthwise; others on the CPU""",
    "deepx": """
        conv.dilation: at most 63
        conv.kernel: at most 15
        conv.kernel: 3x3 and 5x5 only
        conv.stride: at most 15
        conv.pads: at most 63
        tensors.extents: at most 8191
        tensors.channels: at most 32767
        tensors.static: required""",
    "nxp-neutron": """
        conv.dilation: at most 4096
        conv.kernel: at most 4096
        conv.stride: at most 4096
        conv.products kh*kw*ceil(Cin/group/macs)*macs: at most 65535
        conv.pads: below kernel
        conv.groups: one group, or depthwise
        conv.weights: only constant
        conv.batch: at most 1
        tensors.dtypes: only int8
        operators.MaxPool.dilation: at most 1""",
    "ascend": """
        conv.dilation: at most 255
        conv.kernel: at most 255
        conv.stride: at most 63
        conv.pads: at most 255
        conv.groups: at most 1
        conv.extents: a width of at most 4096
        conv.ranks: one of 2, 3
        tensors.dtypes: one of float16, float32""",
    "furiosa": """
        conv.dilation: at most 12
        conv.groups: at most 128
        operators.Softmax.batch: at most 2""",
    "coral-edgetpu": """
        conv.dilation: the same on all axes
        conv.batch: at most 1
        operators.Pad.axes: not along the batch
        tensors.max_non_singleton: at most 3
        tensors.dtypes: one of int8, uint8, int32
        tensors.static: required""",
}

LAYOUT = {
    "ethos-u-vela-3.10": """
        host SpaceToDepth DepthToSpace
        native Reshape Transpose Slice Concat Split Pad
        operators.Slice.steps: at most 1
        operators.Pad.axes: height and width only
        operators.ConvTranspose.dilation: at most 1""",
    "ethos-u-vela-5.2": """
        host SpaceToDepth DepthToSpace
        native Reshape Transpose Slice Concat Split Pad
        operators.ConvTranspose.dilation: at most 1""",
    "rknn-2.3.2": """
        host SpaceToDepth DepthToSpace
        native Reshape Transpose Slice Concat Split Pad
        operators.Reshape.rank_out: at most 4
        operators.Transpose.products: height times width is a multiple of 16
        operators.Slice.steps: at most 1
        operators.ConvTranspose.dilation: at most 1
        native Sum""",
    "rknn-2.5.0": """
        host SpaceToDepth DepthToSpace
        native Reshape Transpose Slice Concat Split Pad Gather
        operators.Slice.steps: at most 1
        native Sum""",
    "ti-tidl": """
        native SpaceToDepth DepthToSpace Reshape Transpose Slice Concat Split Pad
        operators.SpaceToDepth.max_rank: at most 4
        operators.Slice.batch: at most 1
        operators.Slice.steps: at most 1
        operators.Concat.axis_from_end: at least -3
        operators.Pad.axes: height and width only
        operators.ConvTranspose.dilation: at most 1""",
    "nvidia-dla": """
        unknown Reshape Transpose Slice Pad SpaceToDepth
        native Concat
        operators.Concat.axis: only 1
        operators.ConvTranspose.dilation: at most 1""",
    "rdk-x3": """
        native SpaceToDepth Slice Concat Split
        host Reshape Transpose
        operators.SpaceToDepth.blocks: only 2
        operators.Concat.channels: at most 2048
        operators.ConvTranspose.dilation: at most 1""",
    "rdk-x5": """
        native SpaceToDepth DepthToSpace Reshape Transpose Slice Concat Split Pad
        operators.SpaceToDepth.blocks: only 2
        operators.SpaceToDepth.max_rank: at most 4
        operators.Reshape.max_rank: at most 10
        operators.Concat.axis: at least 1
        operators.Split.axis: at least 1
        operators.ConvTranspose.dilation: at most 1""",
    "axera-ax650": """
        native SpaceToDepth DepthToSpace Reshape Transpose Slice Concat Split Pad
        operators.Slice.steps: unlimited
        operators.Pad.mode: only constant
        operators.Pad.axes_input: only False
        operators.ConvTranspose.dilation: at most 1""",
    "axera-ax620e": "native SpaceToDepth DepthToSpace Reshape Transpose Slice Concat Split Pad",
    "mediatek-mdla2": """
        unknown SpaceToDepth DepthToSpace Transpose Slice
        native Reshape Concat Split Pad
        operators.Reshape.max_rank: at most 4""",
    "amd-dpu": """
        native SpaceToDepth Concat Split Pad
        host Reshape Transpose Slice""",
    "deepx": """
        none SpaceToDepth DepthToSpace Transpose
        native Slice
        unknown Reshape Pad
        operators.Slice.axes: along the height only
        operators.ConvTranspose.dilation: at most 1""",
    "nxp-neutron": """
        native Concat Pad
        unknown SpaceToDepth Transpose
        operators.Pad.axes: height and width only
        operators.ConvTranspose.dilation: at most 1""",
    "furiosa": """
        native SpaceToDepth DepthToSpace Reshape Transpose Slice Concat Split Pad
        operators.SpaceToDepth.mode: one of CRD, DCR
        operators.Slice.axes: along the height, from 0.7 on the channels""",
    "coral-edgetpu": """
        native SpaceToDepth Reshape Slice Concat Split Pad
        none DepthToSpace Transpose
        operators.Slice.axes: not along the batch
        operators.Concat.axis: at least 1""",
}


def said(name: str) -> set[str]:
    """What the rules of a profile say, as cells."""
    lines = set()
    for rule in profiles()[name].rules():
        expr = f" {rule.fact.text}" if rule.field == "products" and rule.test != "holds" else ""
        lines.add(f"{rule.place}{expr}: {rule.text()}")
        if rule.field == "where":
            lines.add(f"{rule.limit} {rule.place.split('.')[1]}")
    return lines


def cells(table: str) -> list[str]:
    lines = [line.strip() for line in table.strip().splitlines()]
    places = [line for line in lines if ": " in line]
    return places + [f"{where} {op}" for line in lines if ": " not in line
                     for where, *ops in [line.split()] for op in ops]  # fmt: skip


@pytest.mark.parametrize("name", profiles())
def test_every_cell_has_a_rule(name: str) -> None:
    wanted = {*cells(LIMITS[name]), *cells(LAYOUT.get(name, ""))}
    assert wanted - said(name) == set()
    assert len(wanted) >= 3


def test_every_profile_has_its_cells() -> None:
    assert LIMITS.keys() == profiles().keys()
    assert LAYOUT.keys() <= profiles().keys()
