"""Where a profile and its judge disagree, and why the profile stays as it is; and what no judge can be asked.

Every one is of the same kind: the profile keeps to a documented limit, or to less, and the compiler takes more. What a
compiler refuses, or leaves to the host, no profile calls native: there the profiles were mended.
"""

from __future__ import annotations

from collections.abc import Mapping

QUANTISED = "the files that are written for Vela are int8, and a float model is refused before"
WRITER = "no file for Vela breaks it: the writer refuses first"
FIXED = "the writer takes fixed sizes only"
EMPTY = "a tensor without elements is none that a Conv makes"
BOTH_VELAS = {
    "tensors.quantised: required": QUANTISED,
    "tensors.dtypes: one of int8, uint8, int16, int32": QUANTISED,
    "conv.weights: only constant": WRITER,
    "conv.stride: at least 1 (depthwise)": "ONNX has no stride below 1",
    "operators.Pad.constant: only True": WRITER,
}
UNASKED: Mapping[str, Mapping[str, str]] = {
    "ethos-u-vela-5.2": {"tensors.static: batch may vary": FIXED, **BOTH_VELAS},
    "ethos-u-vela-3.10": {
        "tensors.static: required": FIXED,
        "tensors.extents: at least 1": EMPTY,
        "tensors.channels: at least 1": EMPTY,
        **BOTH_VELAS,
    },
}
"""By profile and rule."""

CUT = "the document's limit; the compiler cuts the Conv into several, at many times the cycles"
RKNN = {
    "tensors.max_rank: at most 4 [beyond]": "the document's limit; a sum of 5-D tensors is compiled as one of 4-D. A "
    "Transpose of 5-D is on the CPU or not, and 2.5.0 has no answer for one of 6-D within 100 s",
    "conv.kernel: at most 31 (not depthwise) [beyond]": CUT,
    "conv.kernel: at most 8 (depthwise) [beyond]": CUT,
    "conv.stride: at most 7 [beyond]": "the document's limit; the compiler takes 8 where it was tried, on rk3588 only",
    "conv.pads: at least 0 [beyond]": "the document's limit; the compiler takes -1, and what it computes was not seen",
    "conv.extents: a width below 16383 where the kernel is dilated along the height (dh > 1 and kh > 1) [beyond]": (
        "the document's limit; the compiler takes 16383 where it was tried, on rk3588 only"
    ),
    "operators.Reshape.rank_out: at most 4 [beyond]": "the document's limit, as of all tensors",
    "operators.ConvTranspose.dilation: at most 1 (max(k) > 1) [beyond]": (
        "the document's limit; the compiler takes 2, and its simulator computes it"
    ),
    "operators.DepthToSpace.where: host [is]": (
        "blocks of 2, 4 and 8 become ConvTransposes on the NPU, of up to 16.8 M cycles; 3, 5 and 16 are on the CPU"
    ),
}
OLD = {
    "conv.dilation: at most 31 (not depthwise) [beyond]": "the document's limit; the compiler makes a Gather of it",
    "conv.dilation: at most 32 (depthwise) [beyond]": "the document's limit; the compiler makes a Gather of it",
    "conv.pads: at most 15 [beyond]": "the document's limit; the compiler puts a Pad in front",
    "operators.Transpose.products: height times width is a multiple of 16 [beyond]": (
        "the document's limit; every permutation of 4 axes that was tried is on the NPU"
    ),
}

VELA = {
    "conv.groups: CONV_2D with one group, or DEPTHWISE_CONV_2D [beyond]": (
        "dilrewrite.tflite writes a Conv for each group, so Vela sees none of several"
    ),
}

DISAGREEMENTS: Mapping[str, Mapping[str, str]] = {
    "ethos-u-vela-3.10": {
        "operators.Unsqueeze.batch: at most 1 [beyond]": (
            "the list's limit of EXPAND_DIMS; dilrewrite.tflite writes RESHAPE, which has none"
        ),
    },
    "ethos-u-vela-5.2": VELA,
    "rknn-2.3.2": {**RKNN, **OLD},
    "rknn-2.5.0": RKNN,
}
"""By profile and case."""
