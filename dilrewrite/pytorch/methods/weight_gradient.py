"""weight_gradient: the dilated convolution as the weight gradient of a strided one, batch and channels swapped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from dilrewrite.forms.geometry import ConvGeometry
from dilrewrite.pytorch.methods import Form, Method

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class WeightGradient:
    """In the 2016 benchmark: Normal DCD.

    The weight gradient of a convolution with stride S and dilation D is dW[o, i, p] = sum over b and t of
    X[b, i, p*D + t*S] * G[b, o, t]. With X the input and G the weights, both with their first two axes swapped, S the
    dilation and D the stride, that is the dilated convolution. The input is cut to what the taps reach, so that the
    gradient has exactly Ho entries and no more. Groups: the channels of a group become the batch, its place a group.
    """

    def refusal(self, geometry: ConvGeometry) -> str | None:  # noqa: ARG002
        """Refuse nothing."""
        return None

    def form(self, geometry: ConvGeometry) -> Form:
        """Return the form; the pads are written before, and what no tap reaches is cut at the end."""
        import torch
        from torch.nn import functional

        begin, _ = geometry.static_pads
        outs = tuple(out for out in geometry.out_extents if out is not None)
        reach = [
            (out - 1) * s + geometry.span(axis)
            for axis, (out, s) in enumerate(zip(outs, geometry.strides, strict=True))
        ]
        extents = [extent for extent in geometry.extents if extent is not None]
        ends = [want - extent - front for want, extent, front in zip(reach, extents, begin, strict=True)]
        pads = [value for axis in reversed(geometry.axes) for value in (begin[axis], ends[axis])]
        padded = any(pads)
        group, rank = geometry.group, geometry.rank

        def weight_gradient(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if padded:
                x = functional.pad(x, pads)
            batch, channels, outputs = x.shape[0], x.shape[1], weight.shape[0]
            per = channels // group
            # [N, group * C, ..] -> [C, group * N, ..], and [group * O, C, ..] -> [C, group * O, ..]
            swapped = x.reshape(batch, group, per, *x.shape[2:]).permute(2, 1, 0, *range(3, 3 + rank))
            swapped = swapped.reshape(per, group * batch, *x.shape[2:])
            like = weight.new_empty(1).expand(outputs, batch, *outs)
            # stride, padding, dilation, transposed, output padding, groups
            settings = (list(geometry.dilations), [0] * rank, list(geometry.strides), False, [0] * rank, group)
            _, result, _ = torch.ops.aten.convolution_backward(
                weight.transpose(0, 1), swapped, like, None, *settings, [False, True, False]
            )
            y: Tensor = result.transpose(0, 1)
            return y if bias is None else y + bias.reshape(1, -1, *(1,) * rank)

        return weight_gradient


METHOD: Method = WeightGradient()
